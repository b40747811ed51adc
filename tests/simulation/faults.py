"""The faults of the first version, put back one at a time: the simulation must find each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import mock

from finapi_session import renewal
from finapi_session.cell import Cell, Cells
from finapi_session.knowledge import NOTHING, Grant, Knowledge
from finapi_session.renewal import View
from finapi_session.source import TokenSource

from . import plays
from .herds import Herd


class Fault(NamedTuple):
    """What is *broken*, the play that finds it, and within how many schedules."""

    broken: Callable[[], AbstractContextManager[Any]]
    play: Callable[[Any], None]
    schedules: int


@contextmanager
def the_stores_word_is_final() -> Iterator[None]:
    """Fault 1: what a process knows gives way to what the store has."""
    load = Cells.load

    def forgetful(self: Cells, cell: Cell, *, refusals: bool) -> View:
        view = load(self, cell, refusals=refusals)
        if view.read:
            cell.knowledge = Knowledge(cell.stored.grants, cell.stored.rejections, cell.knowledge.refusals)
        return view._replace(knowledge=cell.knowledge)

    with mock.patch.object(Cells, "load", forgetful):
        yield


@contextmanager
def tokens_are_written_blind() -> Iterator[None]:
    """Fault 2: a process that cannot read writes what it has over what a sibling stored."""
    load = Cells.load

    def sure(self: Cells, cell: Cell, *, refusals: bool) -> View:
        view = load(self, cell, refusals=refusals)
        cell.stored = cell.stored if view.read else NOTHING
        return view._replace(read=True)

    with mock.patch.object(Cells, "load", sure):
        yield


def nobody_notices_who_else_renews() -> AbstractContextManager[Any]:
    """Fault 3: the refresh token goes first, whoever else renews with it."""
    return mock.patch.object(renewal, "_contested", lambda want, view: False)


def a_rejected_replay_is_kept_to_oneself() -> AbstractContextManager[Any]:
    """Fault 4: what one worker learnt of the stored token, the next one learns by a 401 of its own."""
    return mock.patch.object(TokenSource, "rejected", lambda self, bearer: None)


@contextmanager
def a_lost_answer_is_no_answer() -> Iterator[None]:
    """Fault 5: a password whose answer was lost is sent again at once."""
    facts = renewal._facts

    def careless(view: View, error: Any, grant: Grant | None, about: str) -> Knowledge:
        error.maybe_judged = False
        return facts(view, error, grant, about)

    with mock.patch.object(renewal, "_facts", careless):
        yield


@contextmanager
def the_last_answer_is_the_newest() -> Iterator[None]:
    """Fault 6: a late answer counts from when it came, not from when it was asked for."""
    save = Cells.save

    def late(self: Cells, cell: Cell, facts: Knowledge, *, fresh: bool = False) -> View:
        if fresh:
            self.load(cell, refusals=False)
            serial = cell.knowledge.serial + 1
            facts = replace(facts, grants=tuple(replace(grant, serial=serial) for grant in facts.grants))
        return save(self, cell, facts, fresh=fresh)

    with mock.patch.object(Cells, "save", late):
        yield


def nobody_looks_again_under_the_lock() -> AbstractContextManager[Any]:
    """Whoever waited for the lock asks, although somebody was quicker."""

    def hasty(want: renewal.Want) -> renewal.Flow:
        view = yield renewal.Load()
        if renewal._at_hand(view, want) is not None:
            return renewal._at_hand(view, want)
        yield renewal.Lock()
        yield renewal.Load(refusals=True)
        return (yield from renewal._ask(want, view))

    return mock.patch.object(renewal, "renew", hasty)


FAULTS = (
    Fault(the_stores_word_is_final, plays.a_failed_write_with_rotating_refresh_tokens, 10),
    Fault(tokens_are_written_blind, plays.reads_fail_for_a_moment, 10),
    Fault(nobody_notices_who_else_renews, plays.two_workers_with_a_store_each, 10),
    Fault(a_rejected_replay_is_kept_to_oneself, plays.eight_workers_and_a_dead_token_in_the_store, 10),
    Fault(a_lost_answer_is_no_answer, plays.a_wrong_password_whose_answers_are_lost, 10),
    Fault(the_last_answer_is_the_newest, plays.a_worker_suspended_in_its_token_call, 10),
    Fault(nobody_looks_again_under_the_lock, Herd("expired", True, False, 2, 2).play, 2000),
)
