"""How a process stands with finAPI over one identity: what its sources must know of each other."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from .errors import TokenEndpointError, bare

#: Seconds that a thread waits for another one of its process that is renewing. The other may wait for the
#: store's lock (20 s), then for two token calls of 70 s each at the very worst (see ``endpoint.PATIENCE``).
TURN = 160.0
#: Seconds for which a token is not renewed again after finAPI rejected what it had just given.
STANDSTILL = 30.0
#: The same, at first, where others renew with our refresh token: they will soon be done.
PAUSE = 1.0
# So many new tokens in a row must be rejected unused: a single one may have been revoked on its way to us.
_STRIKES = 2
# So many tokens had by the refresh token must be rejected: a single one may have been revoked.
_LOSSES = 2


class Failure(NamedTuple):
    """What failed last, a token call or asking for the secrets: when (monotonic seconds), and how long to rest then."""

    error: Exception
    at: float
    rest: float

    def again(self) -> Exception:
        """Return the error, to be raised in another call."""
        return bare(self.error)

    def answers(self, entered: float) -> bool:
        """Tell whether it is the answer for who came at *entered*: before it failed, or before the rest is over."""
        return 0 < self.at + self.rest - entered <= TURN + self.rest


class Turn:
    """A lock for the threads of this process: who holds it and asks again is told so, instead of waiting for itself."""

    __slots__ = ("_locks", "_holder")

    def __init__(self) -> None:
        # By process, so that a forked child never meets a lock that a thread of its parent holds.
        self._locks: dict[int, threading.Lock] = {}
        self._holder: tuple[int, int] | None = None

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for one's turn, at most :data:`TURN` seconds."""
        if self._holder == (os.getpid(), threading.get_ident()):
            raise RuntimeError("on_event and callable secrets must not ask for a token while one is being asked for")
        with self._acquired(TURN) as acquired:
            if not acquired:
                raise TokenEndpointError(f"another thread has been renewing the token for {TURN:.0f} s")
            yield

    @contextmanager
    def unless_taken(self) -> Iterator[bool]:
        """Take the turn if nobody has it, and tell whether that was so."""
        with self._acquired(0) as acquired:
            yield acquired

    @contextmanager
    def _acquired(self, seconds: float) -> Iterator[bool]:
        lock = self._locks.setdefault(os.getpid(), threading.Lock())
        acquired = lock.acquire(timeout=seconds)
        if acquired:
            self._holder = os.getpid(), threading.get_ident()
        try:
            yield acquired
        finally:
            if acquired:
                self._holder = None
                lock.release()


class Standing:
    """Shared by all sources of an identity with the same password, however short they live. A copy starts anew."""

    __slots__ = (
        "failure",
        "early_from",
        "renewing",
        "_strikes",
        "_unproven",
        "_standstill",
        "_refreshed",
        "_losses",
        "_signed_in",
    )

    def __init__(self) -> None:
        self.failure: Failure | None = None
        #: Epoch seconds before which no early renewal is tried again.
        self.early_from = -math.inf
        #: Taken by who renews in this process, whatever the store's lock does.
        self.renewing = Turn()
        self._strikes = 0
        self._unproven: int | None = None
        self._standstill: tuple[int, float] | None = None
        self._refreshed: int | None = None
        self._losses = 0
        self._signed_in = False

    def __reduce__(self) -> tuple[type[Standing], tuple[()]]:
        return Standing, ()

    def given(self, bearer: str) -> None:
        """Note that finAPI has just given the token of *bearer*."""
        self._unproven = hash(bearer)

    def accepted(self) -> None:
        """Note that the API took a token."""
        self._strikes = 0

    def rejected(self, bearer: str) -> float:
        """Note that the API rejected *bearer*, had in place of another rejected one; return the seconds to rest then.

        That tells something only of a token that finAPI has just given, and only once.
        """
        if hash(bearer) != self._unproven:
            return 0.0
        self._unproven = None
        self._strikes += 1
        if hash(bearer) == self._refreshed:
            self._losses += 1  # it counts twice: lost before it was used
        if self._strikes < _STRIKES:
            return 0.0
        return PAUSE if self.contested and self._strikes == _STRIKES else STANDSTILL

    def refreshed(self, bearer: str) -> None:
        """Note that finAPI has just given the token of *bearer* for the refresh token."""
        self._refreshed = hash(bearer)

    def lost(self, bearer: str) -> None:
        """Note that the API rejected the token of *bearer*, which was in use."""
        if hash(bearer) == self._refreshed:
            self._refreshed = None
            self._losses += 1

    def signed_in(self) -> None:
        """Note that finAPI takes the password."""
        self._signed_in = True

    def uncontested(self) -> None:
        """Note that nobody else has a newer token."""
        self._losses = 0

    @property
    def contested(self) -> bool:
        """Tell whether others renew with our refresh token, each time killing our token, and the password is good."""
        return self._losses >= _LOSSES and self._signed_in

    def stand_still(self, bearer: str, seconds: float) -> None:
        """Let the token of *bearer*, which the API rejects, not be renewed for so many seconds."""
        self._standstill = (hash(bearer), time.time() + seconds)

    def stands_still(self, bearer: str) -> bool:
        """Tell whether that is so; a clock that was set back does not prolong it."""
        if self._standstill is None:
            return False
        standing, until = self._standstill
        return standing == hash(bearer) and 0 < until - time.time() <= STANDSTILL

    def go_on(self) -> None:
        """Forget the standstill."""
        self._standstill = None
