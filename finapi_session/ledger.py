"""The records in a store: a store that fails costs a warning, never a call."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from .events import Journal
from .record import Record
from .standing import Standing
from .stores.protocol import TokenStore

#: Seconds after which a store that did not take a record is tried again.
LOOK_AGAIN = 10.0
# What is remembered for a store that fails later: enough for the identities of a busy process.
_MOST_REMEMBERED = 1000


class _Unsaved(NamedTuple):
    """What a store did not take: the serial of what it held then, and whether a new token, or none, is among it."""

    before: float
    new_token: bool


class Ledger:
    """Reads and writes the records of a store, and stands in for it while it fails.

    Each record that went through here is remembered, so that neither a token nor a refusal is lost on a store
    that is down, full or read-only. What such a store did not take counts until it holds something newer.
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
        #: What the store did not take, by key.
        self.unsaved: dict[str, _Unsaved] = {}
        self._failing: set[str] = set()
        self._standings: OrderedDict[tuple[str, str], Standing] = OrderedDict()

    def standing(self, key: str, fingerprint: str) -> Standing:
        """Return how this process stands with finAPI over the identity of *key* and its password."""
        standing = self._standings.setdefault((key, fingerprint), Standing())
        self._standings.move_to_end((key, fingerprint))
        if len(self._standings) > _MOST_REMEMBERED:
            self._standings.popitem(last=False)
        return standing

    def load(self, key: str) -> Record:
        """Return the record under *key*, an empty one if there is none."""
        remembered = self._remembered.get(key, Record())
        try:
            text = self.store.get(key)
            stored = Record() if text is None else Record.loads(text)
        except ValueError:
            self._warn("get", "what it holds is no record of ours, and is taken for nothing")
            return remembered
        except Exception as error:
            self._warn("get", type(error).__name__)
            return remembered
        self._failing.discard("get")
        unsaved = self.unsaved.get(key)
        if unsaved is not None and (stored.serial == unsaved.before or remembered.newer_than(stored)):
            return remembered if unsaved.new_token else _merged(stored, remembered)
        self.unsaved.pop(key, None)
        self._remember(key, stored)
        return stored

    def save(self, key: str, record: Record, *, new_token: bool = True) -> None:
        """Keep *record* under *key*; tell if its token is not new."""
        with self._saving(key, record, "set", new_token):
            self.store.set(key, record.dumps())

    def look_again(self, key: str) -> float:
        """Return the epoch second at which to try again to save what the store did not take; infinite if it did."""
        return time.time() + LOOK_AGAIN if key in self.unsaved else math.inf

    def settle(self, key: str) -> None:
        """Try again to save what the store did not take, unless it has something newer; for who holds the lock."""
        record = self.load(key) if key in self.unsaved else None
        # What cannot be read may be newer.
        if record is not None and key in self.unsaved and "get" not in self._failing:
            self.save(key, record, new_token=self.unsaved[key].new_token)

    def settle_all(self) -> None:
        """Try so for every key, until the store fails."""
        for key in list(self.unsaved):
            with self.lock(key):
                self.settle(key)
            if key in self.unsaved:
                return

    def forget(self, key: str) -> None:
        """Keep nothing under *key*."""
        nothing = self._remembered.get(key, Record()).next(time.time(), token=None, refusals={})
        with self._saving(key, nothing, "delete", True):
            self.store.delete(key)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Exclude the other holders of *key* while the store can; go on without if it cannot."""
        held: Any = None
        try:
            held = self.store.lock(key)
            held.__enter__()
        except Exception as error:
            held = None
            self._warn("lock", type(error).__name__)
        try:
            yield
        finally:
            if held is not None:
                self._release(held)

    def _release(self, held: Any) -> None:
        try:
            held.__exit__(None, None, None)
        except Exception as error:
            self._warn("lock", type(error).__name__)
        else:
            self._failing.discard("lock")

    def _remember(self, key: str, record: Record) -> None:
        self._remembered[key] = record
        if len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)

    @contextmanager
    def _saving(self, key: str, record: Record, verb: str, new_token: bool) -> Iterator[None]:
        unsaved = self.unsaved.get(key) or _Unsaved(self._remembered.get(key, Record()).serial, False)
        self._remember(key, record)
        try:
            yield
        except Exception as error:
            self.unsaved[key] = unsaved._replace(new_token=new_token or unsaved.new_token)
            self._warn(verb, type(error).__name__)
        else:
            self.unsaved.pop(key, None)
            self._failing.discard(verb)

    def _warn(self, verb: str, reason: str) -> None:
        """Warn once an outage; an exception's text may hold a value, so only its name is told."""
        first = not self._failing
        self._failing.add(verb)
        if first:
            name = type(self.store).__name__
            self._journal.tell("store_failed", name, reason=f"{verb}: {reason}; going on with what is in memory")


def _merged(stored: Record, remembered: Record) -> Record:
    """Return what is *stored* with what was refused meanwhile, which says nothing of another token there."""
    tokens = stored.token, remembered.token
    same = all(tokens) and len({token.access_token for token in tokens if token}) == 1
    refusals = {**stored.refusals, **remembered.refusals}
    return stored.next(time.time(), token=remembered.token if same else stored.token, refusals=refusals)
