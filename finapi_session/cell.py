"""What this process knows of an identity, and how that meets the store."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from .envelope import Foreign, dumps, dumps_refusals, loads, loads_refusals, sealed, unsealed
from .fallback import LOOK_AGAIN, Fallback
from .flight import Flight, Ticket
from .identity import Credentials
from .knowledge import NOTHING, Knowledge, rejected
from .renewal import View
from .tokens import Bearer

# Enough for the identities of a busy process; one that the store lacks is never forgotten.
_MOST_CELLS = 1000
#: Seconds for which a token is not renewed again after the API rejected those that finAPI had just given.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
# A token that lived for so many seconds, or for as long as the last pause, was of use.
_MOMENT = 1.0
# What fails where a store answers, but not with what we wrote.
_VALUE = "value"

# By process, so that a forked child never waits for a thread that only its parent has.
_merging: dict[int, threading.RLock] = {}


class Pause(NamedTuple):
    """Until when (epoch seconds) *bearer*, which the API rejected as soon as it was used, is not renewed again."""

    bearer: Bearer
    until: float
    seconds: float


class Cell:
    """The state of one identity in a process, shared by all of its sources however short they live.

    ``knowledge`` is what is known, ``stored`` what the store is known to have, ``accepted`` what the API took last,
    ``early_from`` when (epoch seconds) an early renewal may be tried again. A copy starts anew but for what is known.
    """

    __slots__ = ("key", "seal", "knowledge", "stored", "accepted", "pause", "early_from", "flight")

    def __init__(self, key: str, seal: str) -> None:
        self.key = key
        self.seal = seal
        self.knowledge = NOTHING
        self.stored = NOTHING
        self.accepted: Bearer | None = None
        self.pause: Pause | None = None
        self.early_from = -math.inf
        self.flight = Flight()

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.key, self.seal, self.knowledge, self.stored)

    def learn(self, facts: Knowledge) -> None:
        """Merge *facts* into what is known."""
        with _merging.setdefault(os.getpid(), threading.RLock()):
            self.knowledge = self.knowledge.merge(facts)

    @property
    def lags(self) -> bool:
        """Whether the store lacks something that is known."""
        return self.stored.merge(self.knowledge) != self.stored

    def accept(self, bearer: Bearer) -> None:
        """Note that the API took *bearer*: a token that lives ends a pause, its own after a moment."""
        self.accepted = bearer
        if self.pause is not None:
            moment = SHORTEST_PAUSE if self.pause.bearer == bearer else 0.0
            self.pause = self.pause._replace(until=min(self.pause.until, time.time() + moment))

    def rest(self, bearer: Bearer, seconds: float) -> None:
        """Renew *bearer* no more for so many *seconds*."""
        self.accepted, self.pause = None, Pause(bearer, time.time() + seconds, seconds)

    def paused(self) -> bool:
        """Tell whether nothing is to be renewed now; a clock that was set back does not prolong it."""
        return self.pause is not None and 0 < self.pause.until - time.time() <= LONGEST_PAUSE

    def reject(self, bearer: Bearer) -> float:
        """Note that the API rejected *bearer*; return the seconds for which it is not renewed.

        They double with each young token that the API never took, if the one before died only a moment ago: then
        finAPI's tokens are of no use, be it that the API rejects all, or only one endpoint that does.
        """
        last, now, seconds = self.pause, time.time(), 0.0
        if self._was_of_use(bearer, now):
            return seconds
        if last is not None and abs(now - last.until) <= max(_MOMENT, last.seconds):
            seconds = min(max(SHORTEST_PAUSE, 2 * last.seconds), LONGEST_PAUSE)
        self.rest(bearer, seconds)
        return seconds

    def _was_of_use(self, bearer: Bearer, now: float) -> bool:
        """Tell whether the API took *bearer* before, or it is no longer young, or its pause is over."""
        if self.accepted == bearer or (self.pause is not None and self.pause.bearer == bearer):
            return True
        grant = self.knowledge.find(bearer.partition(" ")[2])
        return grant is None or now - (grant.token.issued_at or 0.0) > LONGEST_PAUSE


def _restored(key: str, seal: str, knowledge: Knowledge, stored: Knowledge) -> Cell:
    cell = Cell(key, seal)
    cell.knowledge, cell.stored = knowledge, stored
    return cell


class Cells:
    """The cells of a process, over one store."""

    def __init__(self, fallback: Fallback) -> None:
        self.fallback = fallback
        self._cells: dict[str, Cell] = {}

    def of(self, credentials: Credentials, token_url: str) -> Cell:
        """Return the cell of an identity."""
        key = credentials.key(token_url)
        seal = sys.intern(credentials.seal)  # one for all users of a client
        cell = self._cells.get(key) or self._cells.setdefault(key, Cell(key, seal))
        if len(self._cells) > _MOST_CELLS:
            self._forget_one(cell)
        return cell

    def load(self, cell: Cell, *, refusals: bool) -> View:
        """Merge what the store has into what is known."""
        read, stored = self._read(cell, cell.key, loads)
        if read:
            stored = Knowledge(stored.grants, stored.rejections, cell.stored.refusals)
            cell.stored = stored
            cell.learn(stored)
        if refusals:
            answered, refused = self._read(cell, refusals_key(cell.key), loads_refusals)
            if answered:
                cell.stored = Knowledge(cell.stored.grants, cell.stored.rejections, refused.refusals)
                cell.learn(refused)
        now = time.time()
        return View(cell.knowledge, now, read, cell.lags and now >= cell.early_from)

    def save(self, cell: Cell, facts: Knowledge, *, fresh: bool = False) -> View:
        """Merge *facts*, and what the store has, into what is known, and write what the store lacks.

        A token is written only after reading, or *fresh* from finAPI; a refusal is written even blind.
        """
        cell.learn(facts)
        view = self.load(cell, refusals=True)
        known, stored = cell.knowledge, cell.stored
        if (view.read or fresh) and (known.grants, known.rejections) != (stored.grants, stored.rejections):
            if self.fallback.set(cell.key, sealed(cell.seal, cell.key, dumps(known))):
                cell.stored = Knowledge(known.grants, known.rejections, cell.stored.refusals)
        if known.refusals != stored.refusals:
            key = refusals_key(cell.key)
            if self.fallback.set(key, sealed(cell.seal, key, dumps_refusals(known))):
                cell.stored = Knowledge(cell.stored.grants, cell.stored.rejections, known.refusals)
        if cell.lags:
            cell.early_from = max(cell.early_from, time.time() + LOOK_AGAIN)
        else:
            cell.stored = known  # the same: one copy will do
        return view._replace(knowledge=known)

    def lagging(self) -> list[Cell]:
        """Return the cells that know what the store lacks."""
        return [cell for cell in list(self._cells.values()) if cell.lags]

    def settle(self) -> None:
        """Write what the store lacks, cell after cell, until the store fails; one that hung is tried once more."""
        self.fallback.wake()
        for cell in self.lagging():
            with Ticket(cell.flight) as ticket, self.fallback.lock(cell.key) as lock:
                ticket.board(0)
                lock.acquire()
                self.save(cell, NOTHING)
            if cell.lags:
                return

    def empty(self, cell: Cell) -> None:
        """Keep nothing of *cell*, which is not used any more; what the store does not take now is settled later."""
        tokens = [token for grant in cell.knowledge.grants for token in (grant.access_id, grant.refresh_id)]
        self.save(cell, rejected(tokens, cell.knowledge.serial + 1))
        if not cell.lags and self.fallback.delete(cell.key) and self.fallback.delete(refusals_key(cell.key)):
            self._cells.pop(cell.key, None)

    def forget(self, cell: Cell) -> None:
        """Keep nothing of a *cell* without tokens but what was refused: for a store that nobody shares."""
        with Ticket(cell.flight) as ticket, self.fallback.lock(cell.key) as lock:
            if ticket.board(0) and not (cell.knowledge.grants or cell.paused()) and lock.acquire():
                self.fallback.delete(cell.key)
                self._cells.pop(cell.key, None)

    def _read(self, cell: Cell, key: str, take: Callable[[str], Knowledge]) -> tuple[bool, Knowledge]:
        """Return whether the store answered, and what it has under *key*: nothing, if that is not ours."""
        read = self.fallback.get(key)
        if read.text is None:
            return read.answered, NOTHING
        try:
            known = take(unsealed(cell.seal, key, read.text))
        except Foreign as error:
            self.fallback.warn(_VALUE, f"it is {error}, and is taken for nothing")
            return True, NOTHING
        self.fallback.recovered(_VALUE)
        return True, known

    def _forget_one(self, busy: Cell) -> None:
        cells = list(self._cells.items())
        idle = (key for key, cell in cells if cell is not busy and not cell.flight.busy and not cell.lags)
        self._cells.pop(next(idle, ""), None)


def refusals_key(key: str) -> str:
    """Return the key of the refusals: a key of their own, so that neither can cover the tokens nor be covered."""
    return f"{key}-refusals"
