"""One flight at a time among the threads of a process, and one result for all who waited."""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextvars import Context, ContextVar, copy_context
from typing import NamedTuple

from .errors import TokenEndpointError, bare

# Greenlets that share a thread wait by sleeping, which lets the one that flies go on.
_POLL_SECONDS = 0.005
# Whoever waits for another thread looks so often whether that one is still there.
_LOOK_SECONDS = 1.0

_REENTERED = "on_event and callable secrets must not ask for a token while one is being asked for"

# Who flies, by process and flight, so that a forked child never waits for a thread that only its parent has. Nobody is
# kept alive by it, so that somebody whom a signal interrupted on the way out is in nobody's way. One for all flights,
# as a process may have very many.
_flying: dict[tuple[int, int], weakref.ref[Ticket]] = {}

#: Flights that are under way in this context, that is: whoever asks again is called by the flight itself.
_aboard: ContextVar[frozenset[int]] = ContextVar("finapi_session_flights", default=frozenset())


class _Failure(NamedTuple):
    error: Exception
    at: float
    whose: str


class Flight:
    """Lets one thread at a time through. A copy, and a forked child, start with nobody in flight."""

    __slots__ = ("failure",)

    def __init__(self) -> None:
        self.failure: _Failure | None = None

    def __reduce__(self) -> tuple[type[Flight], tuple[()]]:
        return Flight, ()

    @property
    def place(self) -> tuple[int, int]:
        """What whoever flies takes."""
        return os.getpid(), id(self)

    @property
    def busy(self) -> bool:
        """Whether somebody flies."""
        flying = _flying.get(self.place)
        return flying is not None and flying() is not None


class Ticket:
    """A place in *flight*, for a ``with`` statement: taken by :meth:`board` if at all, given back at its end.

    So an interruption at any point leaves no flight taken.
    """

    __slots__ = ("_flight", "_entered", "_landed", "_thread", "__weakref__")

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self._entered = time.monotonic()
        self._landed = threading.Event()
        self._thread = threading.get_ident()

    def board(self, seconds: float) -> bool:
        """Wait at most so many *seconds* for the place; with 0, tell whether it was free.

        Raises ``RuntimeError`` if the flight itself asks, and :class:`TokenEndpointError` if it takes too long.
        """
        deadline, place = time.monotonic() + seconds, self._flight.place
        while (holder := _flying.setdefault(place, weakref.ref(self))()) is not self:
            if holder is None:
                _flying.pop(place, None)
                continue
            landed, thread, holder = holder._landed, holder._thread, None
            left = deadline - time.monotonic()
            if left <= 0:
                if seconds:
                    raise _too_long(seconds)
                return False
            if id(self._flight) in _aboard.get():
                raise RuntimeError(_REENTERED)
            if thread == self._thread:
                time.sleep(_POLL_SECONDS)
            else:
                landed.wait(min(left, _LOOK_SECONDS))
        _aboard.set(_aboard.get() | {id(self._flight)})
        return True

    def fail(self, error: Exception, whose: str = "") -> None:
        """Let those who wait with the same credentials (*whose*) have this *error* as well."""
        self._flight.failure = _Failure(bare(error), time.monotonic(), whose)

    def failure(self, whose: str = "") -> Exception | None:
        """Return what failed while this one waited, to be raised in another call."""
        failure = self._flight.failure
        if failure is None or failure.whose != whose or failure.at < self._entered:
            return None
        return bare(failure.error)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        place = self._flight.place
        flying = _flying.get(place)
        if flying is not None and flying() is self:
            _aboard.set(_aboard.get() - {id(self._flight)})
            del _flying[place]
            self._landed.set()


def ashore() -> Context:
    """Return a copy of this context that is aboard no flight: for a thread of its own."""
    context = copy_context()
    context.run(_aboard.set, frozenset())
    return context


def _too_long(seconds: float) -> TokenEndpointError:
    error = TokenEndpointError(f"another thread has been renewing the token for {seconds:.0f} s")
    error.advice = "Try again later."
    return error
