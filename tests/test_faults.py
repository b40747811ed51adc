"""Faults of the heart that the ported tests found: each test fails until its fault is mended, then it moves on."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from finapi_session import MemoryStore, TokenError, TokenEvent
from finapi_session.cell import Cells, sealed, refusals_key
from finapi_session.events import Journal
from finapi_session.fallback import Fallback
from finapi_session.flight import Flight, Ticket
from finapi_session.identity import Credentials
from finapi_session.knowledge import Grant, Knowledge, rejected, token_id
from finapi_session.testing import Sandbox
from finapi_session.tokens import Token

from .clocks import Clock
from .herd import CALLS, ECHO, grants, warm
from .links import Link, key_of
from .test_flight import Struck, flown, struck_at
from .test_knowledge import ALICE, URL, kept_refusal


@pytest.mark.parametrize(
    ("status", "body"), [(401, {"error": "unauthorized"}), (400, {})], ids=["401 of another code", "400 of a gateway"]
)
def test_a_password_refused_in_a_fight_is_not_sent_again_in_the_same_renewal(
    status: int, body: Any, sandbox: Sandbox
) -> None:
    """The password goes first and is refused; what the refresh grant is answered does not send it once more."""
    alice = sandbox.session("alice")
    warm(alice)
    sandbox.revoke_tokens("alice")
    warm(alice)
    sandbox.revoke_tokens("alice")
    sandbox.answer_next(400, body={"error": "invalid_grant"}, path=CALLS, grant_type="password", times=9)
    sandbox.answer_next(status, body=body, path=CALLS, grant_type="refresh_token", times=9)
    with pytest.raises(TokenError):
        alice.get(ECHO)
    assert grants(sandbox)[2:] == ["password", "refresh_token"]


def test_a_token_that_lived_ends_the_row_of_those_that_did_not(sandbox: Sandbox, clock: Clock) -> None:
    """After a pause and good calls, a rejected replay is the first in a row again: the next call renews at once."""
    alice = sandbox.session("alice")
    warm(alice)
    sandbox.answer_next(401, path=ECHO, times=3)
    assert [alice.get(ECHO).status_code for _ in range(2)] == [401, 401]
    clock.step(0.6)
    sandbox.revoke_tokens()
    for _ in range(10):
        warm(alice)
    clock.step(5)
    sandbox.answer_next(401, path=ECHO, times=2)
    assert alice.get(ECHO).status_code == 401
    sandbox.revoke_tokens()
    warm(alice)


def test_a_renewed_token_whose_replay_is_rejected_is_a_fight_too(sandbox: Sandbox) -> None:
    """It was obtained by refresh token and rejected at once: the password goes first in the call that renews it."""
    alice = sandbox.session("alice")
    warm(alice)
    sandbox.answer_next(401, path=ECHO, times=2)
    assert alice.get(ECHO).status_code == 401
    sandbox.revoke_tokens("alice")
    warm(alice)
    assert grants(sandbox) == ["password", "refresh_token", "password"]


def test_what_a_new_process_renews_after_the_store_was_emptied_is_found(sandbox: Sandbox) -> None:
    """Somebody flushes the store, tokens die, and a new process renews: that token serves the others as well."""
    store = Link()
    one, other = (sandbox.session("alice", store=store) for _ in range(2))
    for _ in range(2):
        sandbox.revoke_tokens()
        warm(one)
        warm(other)
    store.shared = MemoryStore()
    sandbox.revoke_tokens()
    warm(sandbox.session("alice", store=store))
    before = sandbox.count(CALLS)
    warm(other)
    assert sandbox.count(CALLS) == before


def test_a_given_token_is_stored_by_the_first_call(sandbox: Sandbox) -> None:
    """Whoever brings a token brings it for all processes: they find it although its process was killed since."""
    store = MemoryStore()
    token = sandbox.session("alice").fetch_token()
    warm(sandbox.session("alice", store=store, token=token))
    assert token.access_token in (store.get(key_of(sandbox, "alice")) or "")


def test_merge_is_associative_where_a_token_came_with_another_refresh_token() -> None:
    """finAPI gives the same access token once with a refresh token and once without: order makes no difference."""
    first = Knowledge((Grant(Token("A", None, "R"), 1),))
    again = Knowledge((Grant(Token("A", None, None), 2),))
    burial = rejected([token_id("A")], 3)
    assert first.merge(again).merge(burial).grants == first.merge(again.merge(burial)).grants


@pytest.mark.parametrize("name", ["tokens", "refusals"])
def test_a_corrupt_value_is_warned_of_once(name: str) -> None:
    """A value that nobody can mend, as on a read-only store, is one warning and not one at each look."""
    events: list[TokenEvent] = []
    store = MemoryStore()
    cells = Cells(Fallback(store, Journal("https://sandbox.finapi.io", events.append)))
    cell = cells.of(Credentials("id", "secret", "alice"), URL)
    store.set(cell.key if name == "tokens" else refusals_key(cell.key), "junk")
    for _ in range(3):
        cells.load(cell, refusals=True)
    assert len(events) == 1


@pytest.mark.parametrize("changes", [{"serial": None}, {"rest": None, "until": 9e9}], ids=["serial", "rest"])
def test_a_sealed_refusal_without_a_number_is_a_miss(changes: dict[str, Any]) -> None:
    """Even what bears our seal raises nothing when it is merged, or asked whether it holds."""
    store = MemoryStore()
    cells = Cells(Fallback(store, Journal("https://sandbox.finapi.io")))
    cell = cells.of(ALICE, URL)
    key = refusals_key(cell.key)
    store.set(key, sealed(cell, key, kept_refusal(**changes)))
    for _ in range(2):
        assert cells.load(cell, refusals=True).knowledge.refusal("password x", 1.8e9) is None


def test_an_interruption_on_the_way_out_leaves_nothing_taken() -> None:
    """Struck at any opcode of its end, a flight is free for the next one."""
    taken = []
    for opcode in range(1, 100):
        flight = Flight()
        with suppress(Struck), struck_at(opcode, Ticket.__exit__.__code__), Ticket(flight) as ticket:
            ticket.board(0)
        if flight.busy or not flown(flight, 0):
            taken.append(opcode)
    assert taken == []


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an interval timer")
def test_a_signal_at_any_moment_leaves_a_flight_free() -> None:
    """A real time limit that strikes while a thread flies many times leaves nothing taken."""

    def strike(*_: object) -> None:
        raise Struck

    taken = 0
    before = signal.signal(signal.SIGALRM, strike)
    try:
        for number in range(300):
            flight = Flight()
            with suppress(Struck):
                signal.setitimer(signal.ITIMER_REAL, 0.00005 + number % 100 * 0.000002)
                for _ in range(10_000):  # the signal strikes long before
                    with Ticket(flight) as ticket:
                        ticket.board(0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            taken += flight.busy
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert taken == 0


def test_workers_without_a_shared_store_settle(sandbox: Sandbox) -> None:
    """Four that meet expired tokens at once: after two rounds a third costs next to no call (as it was before)."""
    four = [sandbox.session("alice") for _ in range(4)]
    for session in four:
        warm(session)
    for _ in range(3):
        time.sleep(1.1)
        sandbox.expire_tokens("alice")
        calls = sandbox.count(CALLS)
        with ThreadPoolExecutor(4) as pool:
            lists = list(pool.map(lambda session: [session.get(ECHO).status_code for _ in range(25)], four))
    assert sum(answered.count(200) for answered in lists) >= 96
    assert sandbox.count(CALLS) - calls <= 12
