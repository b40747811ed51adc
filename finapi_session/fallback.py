"""A store that never fails its caller: what fails is told once an outage, and what hangs is left alone for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from .errors import raised_by_signal_handler
from .events import Journal
from .stores.protocol import AdviceError, TokenStore

#: Seconds after which a store that hung, or that did not take a value, is tried again.
LOOK_AGAIN = 10.0
# A store that takes so many seconds to fail is one that hangs: every call would wait for it.
_HANGS = 1.0


class Read(NamedTuple):
    """What a store gave for a key, if it answered at all."""

    answered: bool
    text: str | None = None


class Fallback:
    """Reads and writes the texts of *store*; any failure is a warning and counts as no answer.

    Raises ``TypeError`` for what is no store.
    """

    def __init__(self, store: TokenStore, journal: Journal) -> None:
        missing = [name for name in ("get", "set", "delete", "lock") if not callable(getattr(store, name, None))]
        if isinstance(store, type):
            raise TypeError(f"store must be an object, not the class {store.__name__}: write {store.__name__}(...)")
        if missing:
            lacks = f"{type(store).__name__} lacks {', '.join(missing)}"
            raise TypeError(f"store must have get, set, delete and lock; {lacks}")
        self.store = store
        self._journal = journal
        self._failing: set[str] = set()
        #: Monotonic seconds until which the store is left alone, as it hung; 0 if it did not.
        self._rest_until = 0.0

    def get(self, key: str) -> Read:
        """Return what is kept under *key*."""
        return self._ask("get", lambda: self.store.get(key))

    def set(self, key: str, text: str) -> bool:
        """Keep *text* under *key*; tell whether the store took it."""
        return self._ask("set", lambda: self.store.set(key, text)).answered

    def delete(self, key: str) -> bool:
        """Keep nothing under *key*; tell whether the store did so."""
        return self._ask("delete", lambda: self.store.delete(key)).answered

    def lock(self, key: str) -> StoreLock:
        """Return a lock of *key* among all who share the store, not yet taken."""
        return StoreLock(self, key)

    def warn(self, verb: str, reason: str) -> None:
        """Warn of what came of *verb*, once an outage."""
        first = not self._failing
        self._failing.add(verb)
        if first:
            name = type(self.store).__name__
            self._journal.tell("store_failed", name, reason=f"{verb}: {reason}; going on with what is in memory")

    def recovered(self, verb: str) -> None:
        """Note that *verb* works again."""
        self._failing.discard(verb)

    def rests(self) -> bool:
        """Tell whether the store is left alone for the moment."""
        # Another process, which a pickled session may have come to, may have another clock.
        return 0 < self._rest_until - time.monotonic() <= LOOK_AGAIN

    def wake(self) -> None:
        """Let the next caller try a store that hung."""
        self._rest_until = 0.0

    def failed(self, verb: str, error: Exception) -> None:
        """Warn of *error* by its name: its text may hold a value, save where it is our own advice."""
        if raised_by_signal_handler(error):
            raise error
        self.warn(verb, str(error) if isinstance(error, AdviceError) else type(error).__name__)

    def _ask(self, verb: str, act: Callable[[], str | None]) -> Read:
        """Ask the store, unless it rests; one that hung before it failed rests, and then one caller tries it again."""
        if self.rests():
            return Read(False)
        asked_at = time.monotonic()
        if self._rest_until:
            self._rest_until = asked_at + LOOK_AGAIN
        try:
            text = act()
        except Exception as error:
            if time.monotonic() - asked_at >= _HANGS:
                self._rest_until = time.monotonic() + LOOK_AGAIN
            self.failed(verb, error)
            return Read(False)
        self._rest_until = 0.0
        self.recovered(verb)
        return Read(True, text)


class StoreLock:
    """The store's lock of one key, for a ``with`` statement: taken by :meth:`acquire` if at all, released at its end.

    So an interruption at any point leaves no lock taken.
    """

    __slots__ = ("_fallback", "_key", "_context", "_lease")

    def __init__(self, fallback: Fallback, key: str) -> None:
        self._fallback, self._key = fallback, key
        self._context: AbstractContextManager[object] | None = None
        self._lease: object = None

    def acquire(self) -> bool:
        """Wait for the lock as long as the store does, and tell whether it was obtained."""
        if self._fallback.rests():
            return False
        try:
            self._context = self._fallback.store.lock(self._key)
            self._lease = self._context.__enter__()
        except Exception as error:
            self._fallback.failed("lock", error)
            self._context = None
            return False
        return True

    def extend(self) -> None:
        """Put the lease of the lock back to its full length, where it has one."""
        extend = getattr(self._lease, "extend", None)
        if callable(extend):
            try:
                extend()
            except Exception as error:
                self._fallback.failed("lock", error)

    def __enter__(self) -> StoreLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self._context is None:
            return
        try:
            # With an error, one that was never entered is left as it is.
            self._context.__exit__(kind, error, trace)
        except Exception as failure:
            if failure is not error:
                self._fallback.failed("lock", failure)
        else:
            self._fallback.recovered("lock")
