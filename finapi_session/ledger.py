"""The records in a store: a store that fails costs a warning, never a call."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from .errors import raised_by_signal_handler
from .events import Journal
from .record import NOTHING, Record, Refusal
from .standing import Standing
from .stores.protocol import TokenStore
from .tokens import Token

#: Seconds after which a store that did not take a record is tried again.
LOOK_AGAIN = 10.0
# So many seconds make a store that fails one that hangs: every call would wait for it.
_HANGS = 1.0
# What is remembered for a store that fails later: enough for the identities of a busy process.
_MOST_REMEMBERED = 1000


class _AtRest(Exception):
    """The store is not asked, as it has just hung."""


class _Unsaved(NamedTuple):
    """A record that a store did not take, and the one that it followed there."""

    record: Record
    before: Record

    def merged(self, stored: Record) -> Record:
        """Return what to go on with beside what is *stored* now: that itself if nothing of ours is missing in it."""
        ours, before = self
        if stored == before:
            return ours
        newest = stored
        if _another(ours.token, before.token):
            newest = ours if ours.newer_than(stored) and not _poorer(ours.token, stored.token) else stored
        elif ours.token is not None and before.token is not None and ours.token.refresh_token is None:
            newest = stored.without(before.token)
        refusals = self._refusals(stored)
        return newest if refusals == newest.refusals else newest.next(time.time(), refusals=refusals)

    def _refusals(self, stored: Record) -> dict[str, Refusal]:
        ours, before = self.record.refusals, self.before.refusals
        since = stored.serial > self.record.serial and stored.fingerprint != self.before.fingerprint
        accepted = stored.fingerprint if since else None
        kept = {name: refusal for name, refusal in stored.refusals.items() if name in ours or name not in before}
        added = {name: refusal for name, refusal in ours.items() if before.get(name) != refusal and name != accepted}
        return {**kept, **added}


class Ledger:
    """Reads and writes the records of a store, and stands in for it while it fails.

    What it holds is remembered, so that neither a token nor a refusal is lost on a store that is down, full or
    read-only. What such a store did not take counts until it holds something newer.
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
        self._remembered: OrderedDict[str, Record] = OrderedDict()
        #: What the store did not take, by key; none of it is forgotten, as it may be the last token of a user.
        self.unsaved: dict[str, _Unsaved] = {}
        self._failing: set[str] = set()
        #: Monotonic seconds until which the store is left alone, as it hung; 0 if it did not.
        self._rest_until = 0.0
        self._standings: OrderedDict[tuple[str, str], Standing] = OrderedDict()

    def standing(self, key: str, fingerprint: str) -> Standing:
        """Return how this process stands with finAPI over the identity of *key* and its password."""
        standing = self._standings.setdefault((key, fingerprint), Standing())
        with suppress(KeyError):  # another thread has just pushed it out
            self._standings.move_to_end((key, fingerprint))
        if len(self._standings) > _MOST_REMEMBERED:
            self._standings.popitem(last=False)
        return standing

    def load(self, key: str) -> Record:
        """Return the record under *key*, an empty one if there is none."""
        try:
            with self._asked():
                text = self.store.get(key)
            stored = NOTHING if text is None else Record.loads(text)
        except ValueError:
            self._tell("get", "what it holds is no record of ours, and is taken for nothing")
            return self._newest(key)
        except Exception as error:
            self._warn("get", error)
            return self._newest(key)
        self._failing.discard("get")
        self._remember(key, stored)
        unsaved = self.unsaved.get(key)
        if unsaved is None:
            return stored
        merged = unsaved.merged(stored)
        if merged is stored:
            self.unsaved.pop(key, None)
        else:
            self.unsaved[key] = _Unsaved(merged, stored)
        return merged

    def save(self, key: str, record: Record) -> None:
        """Keep *record* under *key*."""
        with self._saving(key, record, "set"), self._asked():
            self.store.set(key, record.dumps())

    def look_again(self, key: str) -> float:
        """Return the epoch second at which to try again to save what the store did not take; infinite if it did."""
        return time.time() + LOOK_AGAIN if key in self.unsaved else math.inf

    def settle(self, key: str) -> None:
        """Try again to save what the store did not take, unless it has something newer; for who holds the lock."""
        record = self.load(key) if key in self.unsaved else None
        # What cannot be read may be newer.
        if record is not None and key in self.unsaved and "get" not in self._failing:
            self.save(key, record)

    def settle_all(self) -> None:
        """Try so for every key, until the store fails."""
        for key in list(self.unsaved):
            with self.lock(key):
                self.settle(key)
            if key in self.unsaved:
                return

    def forget(self, key: str) -> None:
        """Keep nothing under *key*."""
        with self._saving(key, self._newest(key).next(time.time(), token=None, refusals={}), "delete"), self._asked():
            self.store.delete(key)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Exclude the other holders of *key* while the store can; go on without if it cannot."""
        held: Any = None
        try:
            if not self._rests():
                held = self.store.lock(key)
                held.__enter__()
        except Exception as error:
            held = None
            self._warn("lock", error)
        try:
            yield
        finally:
            if held is not None:
                self._release(held)

    def _release(self, held: Any) -> None:
        try:
            held.__exit__(None, None, None)
        except Exception as error:
            self._warn("lock", error)
        else:
            self._failing.discard("lock")

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Ask the store, unless it rests; one that hung before it failed rests, and then one caller tries it again."""
        if self._rests():
            raise _AtRest
        if self._rest_until:
            self._rest_until = time.monotonic() + LOOK_AGAIN
        asked_at = time.monotonic()
        try:
            yield
        except Exception:
            if time.monotonic() - asked_at >= _HANGS:
                self._rest_until = time.monotonic() + LOOK_AGAIN
            raise
        self._rest_until = 0.0

    def _rests(self) -> bool:
        # Another process, which a pickled session may have come to, may have another clock.
        return 0 < self._rest_until - time.monotonic() <= LOOK_AGAIN

    def _remember(self, key: str, record: Record) -> None:
        self._remembered[key] = record
        if len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)

    def _newest(self, key: str) -> Record:
        unsaved = self.unsaved.get(key)
        return self._remembered.get(key, NOTHING) if unsaved is None else unsaved.record

    @contextmanager
    def _saving(self, key: str, record: Record, verb: str) -> Iterator[None]:
        # Threads that come while the store is slow go on with this record, too.
        self.unsaved[key] = _Unsaved(record, self._remembered.get(key, NOTHING))
        try:
            yield
        except Exception as error:
            self._warn(verb, error)
        else:
            self.unsaved.pop(key, None)
            self._remember(key, record)
            self._failing.discard(verb)

    def _warn(self, verb: str, error: Exception) -> None:
        """Warn of *error*, by its name: its text may hold a value, save that of a file which may not be touched."""
        if raised_by_signal_handler(error):
            raise error
        text = f": {error}" if isinstance(error, PermissionError) else ""
        self._tell(verb, f"{type(error).__name__}{text}")

    def _tell(self, verb: str, reason: str) -> None:
        """Warn once an outage."""
        first = not self._failing
        self._failing.add(verb)
        if first:
            name = type(self.store).__name__
            self._journal.tell("store_failed", name, reason=f"{verb}: {reason}; going on with what is in memory")


def _another(token: Token | None, before: Token | None) -> bool:
    """Tell whether *token* is not the same as *before*, be it without its refresh token."""
    return token is not before and (token is None or before is None or token.access_token != before.access_token)


def _poorer(token: Token | None, stored: Token | None) -> bool:
    """Tell whether *token* cannot be renewed and the *stored* one can."""
    if token is None or stored is None:
        return False
    return token.refresh_token is None and stored.refresh_token is not None
