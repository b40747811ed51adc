"""The soft window: a token that is still good, but not for long, is renewed by one thread, and nobody else notices."""

from __future__ import annotations

import threading
import time

import pytest

from finapi_session import FinapiSession, MemoryStore, TokenEndpointError, TokenEvent
from finapi_session.testing import Sandbox

from .clocks import Clock
from .herd import CALLS, ECHO, grants, herd, statuses, warm
from .links import Link, key_of


def test_one_thread_renews_in_the_soft_window_and_nobody_else_waits(
    session: FinapiSession, sandbox: Sandbox, clock: Clock
) -> None:
    """While the endpoint takes a second, 15 of 16 threads go on with the token that is still good."""
    sandbox.sticky, sandbox.kill_on_refresh = False, False
    warm(session)
    clock.before_expiry(session)
    sandbox.latency = {CALLS: 1}
    results, seconds = herd(16, lambda: session.get(ECHO))
    assert statuses(results) == {200}
    assert sandbox.count(CALLS) == 2
    assert sorted(seconds)[-2] < 0.9 < sorted(seconds)[-1]


def test_whoever_renews_early_uses_the_new_token(session: FinapiSession, sandbox: Sandbox, clock: Clock) -> None:
    """The call that renewed in the soft window goes out with the new token: the old one may be dead by then."""
    sandbox.sticky = False
    warm(session)
    clock.before_expiry(session)
    warm(session)
    assert (sandbox.count(CALLS), sandbox.count(ECHO)) == (2, 2)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("reading", range(1, 9))
def test_whoever_comes_late_to_the_soft_window_does_not_renew_again(
    reading: int, fails: bool, session: FinapiSession, sandbox: Sandbox, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whichever reading of its clock a thread is held up while another one renews, or fails: one token call."""
    sandbox.sticky = False
    warm(session)
    clock.before_expiry(session)
    sandbox.answer_next(503, path=CALLS, times=99 if fails else 0)
    now, slow, readings = time.time, threading.get_ident(), iter(range(1, 1000))

    def held_up() -> float:
        if threading.get_ident() == slow and next(readings) == reading:
            herd(1, session.fetch_token)
        return now()

    monkeypatch.setattr(time, "time", held_up)
    session.fetch_token()
    session.fetch_token()
    assert sandbox.count(CALLS) == 2


@pytest.mark.parametrize("lifetime", [60, 5])
def test_short_lives(lifetime: float, session: FinapiSession, sandbox: Sandbox, clock: Clock) -> None:
    """A token that lives for less than the leeway is renewed in the second half of its life, and no earlier."""
    sandbox.lifetime = lifetime
    for _ in range(10):
        warm(session)
    assert sandbox.count(CALLS) == 1
    clock.step(0.6 * lifetime)
    warm(session)
    assert sandbox.count(CALLS) == 2


def test_a_session_made_for_one_call_renews_early(sandbox: Sandbox, clock: Clock) -> None:
    """What it finds in the store may be in its soft window, and is renewed there, not by all at expiry."""
    store = MemoryStore()
    warm(sandbox.session("alice", store=store))
    clock.before_expiry(sandbox.session("alice", store=store))
    for _ in range(3):
        warm(sandbox.session(store=store).user("alice", "her-password"))
    assert grants(sandbox) == ["password", "refresh_token"]


# --- what fails before expiry is not noticed ----------------------------------------------------------------------


def test_a_failing_endpoint_is_not_noticed_while_the_token_is_good(
    session: FinapiSession, sandbox: Sandbox, clock: Clock
) -> None:
    """With a 503 for all of the soft window, 30 calls spread over it make at most 8 token calls and all succeed."""
    warm(session)
    clock.before_expiry(session, left=60)
    sandbox.answer_next(503, path=CALLS, times=99)
    before = sandbox.count(CALLS)
    for _ in range(30):
        warm(session)
        clock.step(1.9)
    assert 2 <= sandbox.count(CALLS) - before <= 8


def test_the_soft_window_opens_with_one_try(session: FinapiSession, sandbox: Sandbox, clock: Clock) -> None:
    """A try that fails in the moment in which the window opens is not made again in that moment."""
    warm(session)
    sandbox.answer_next(503, path=CALLS, times=99)
    clock.before_expiry(session, left=59.99)
    for _ in range(10):
        warm(session)
    assert sandbox.count(CALLS) == 2


def test_a_try_that_fails_early_leaves_everything_as_it_was(sandbox: Sandbox, clock: Clock) -> None:
    """After a failed early try the token in use goes on, without another look into the store at each call."""
    store = Link()
    session = sandbox.session("alice", store=store)
    warm(session)
    clock.before_expiry(session)
    sandbox.answer_next(503, path=CALLS)
    warm(session)
    looks = store.asked["get"]
    warm(session)
    assert store.asked["get"] == looks and sandbox.count(CALLS) == 2


def test_short_soft_windows_are_tried_in_time(session: FinapiSession, sandbox: Sandbox, clock: Clock) -> None:
    """A soft window of 25 s is tried again after 25/30 s, neither earlier nor after one of the long window's 2 s."""
    sandbox.lifetime = 50
    warm(session)
    clock.before_expiry(session, left=24.99)
    sandbox.answer_next(503, path=CALLS)
    warm(session)
    clock.step(0.4)
    warm(session)
    assert sandbox.count(CALLS) == 2
    clock.step(0.8)
    warm(session)
    assert sandbox.count(CALLS) == 3


def test_whoever_comes_early_is_told_what_finapi_asked_of_another(sandbox: Sandbox, clock: Clock) -> None:
    """While finAPI wants no calls, the early try of another process makes none, and its reason is finAPI's."""
    events: list[TokenEvent] = []
    store = MemoryStore()
    other, alice = (sandbox.session("alice", store=store, on_event=heard) for heard in (None, events.append))
    warm(other)
    warm(alice)
    clock.before_expiry(alice)
    sandbox.answer_next(429, headers={"Retry-After": "50"}, path=CALLS)
    warm(other)
    warm(alice)
    assert sandbox.count(CALLS) == 2
    assert str(events[-1].reason).startswith("TokenEndpointError before expiry")


def test_a_refresh_refused_in_the_soft_window_costs_no_sibling_its_token(sandbox: Sandbox, clock: Clock) -> None:
    """What finAPI refuses early is the refresh token: the access token serves all processes until it expires."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    alice, sibling = (sandbox.session(store=store).user("alice") for _ in range(2))
    warm(alice)
    clock.before_expiry(alice)
    sandbox.answer_next(400, body={"error": "invalid_grant"}, path=CALLS)
    warm(alice)
    warm(sibling)
    warm(alice)
    assert sandbox.count(CALLS) == 2
    alice.revoke_on_close = True
    alice.close()
    assert sandbox.count("/oauth/revoke", status=200) == 1


def test_retry_after_counts_in_the_soft_window(session: FinapiSession, sandbox: Sandbox, clock: Clock) -> None:
    """finAPI's wish not to be called again is heeded there too."""
    warm(session)
    clock.before_expiry(session, left=60)
    sandbox.answer_next(429, headers={"Retry-After": "50"}, path=CALLS, times=99)
    for _ in range(20):
        warm(session)
        clock.step(2)
    assert sandbox.count(CALLS) == 2


def test_a_vault_that_fails_in_the_soft_window_is_not_noticed(sandbox: Sandbox, clock: Clock) -> None:
    """A callable secret that raises costs no call while the token is good, and is told when it is needed."""
    opened = True

    def vault() -> str:
        if not opened:
            raise LookupError("vault is sealed")
        return sandbox.client_secret

    session = sandbox.session(client_secret=vault)
    warm(session)
    clock.before_expiry(session)
    opened = False
    warm(session)
    clock.step(31)
    with pytest.raises(LookupError):
        session.get(ECHO)


# --- an early renewal that lasts too long -------------------------------------------------------------------------


def test_an_early_renewal_that_fails_after_expiry_is_followed_by_another(
    session: FinapiSession, sandbox: Sandbox, clock: Clock
) -> None:
    """The token ended while the early try was under way and failed: a new one is sent, never the expired one."""
    sandbox.sticky = False
    warm(session)
    expired = session.fetch_token()
    clock.before_expiry(session, left=0.3)
    sandbox.latency = {CALLS: 0.6}
    sandbox.answer_next(503, path=CALLS)
    token = session.fetch_token()
    assert token.access_token != expired.access_token and not token.expired(time.time())
    assert sandbox.count(CALLS) == 3


def test_an_early_renewal_that_fails_after_expiry_is_an_error_if_finapi_fails_on(
    sandbox: Sandbox, clock: Clock
) -> None:
    """Where there is no new token the call says so, and the API is not called with the expired one."""
    session = sandbox.session(retries=0)
    warm(session)
    clock.before_expiry(session, left=0.3)
    sandbox.latency = {CALLS: 0.6}
    sandbox.answer_next(503, path=CALLS, times=2)
    with pytest.raises(TokenEndpointError):
        session.get(ECHO)
    assert (sandbox.count(CALLS), sandbox.count(ECHO)) == (3, 1)


# --- early only with the store and its lock -----------------------------------------------------------------------


@pytest.mark.parametrize("down", [{"get"}, {"lock"}, {"get", "set", "delete", "lock"}], ids=["reads", "locks", "all"])
def test_nobody_renews_early_without_the_store(down: set[str], sandbox: Sandbox, clock: Clock) -> None:
    """Two who renew at once may spend the same refresh token: while the store cannot be read or locked, early waits."""
    sandbox.rotate_refresh_tokens = True
    shared = MemoryStore()
    links = [Link(shared) for _ in range(2)]
    pair = [sandbox.session("alice", store=link) for link in links]
    for session in pair:
        warm(session)
    clock.before_expiry(pair[0], left=59)
    for link in links:
        link.down = set(down)
    for _ in range(3):
        for session in pair:
            warm(session)
        clock.step(2)
    assert sandbox.count(CALLS) == 1
    for link in links:
        link.down = set()
    clock.step(11)
    for _ in range(3):
        for session in pair:
            warm(session)
    assert grants(sandbox) == ["password", "refresh_token"]


def test_nobody_renews_early_while_another_process_has_the_lock(sandbox: Sandbox, clock: Clock) -> None:
    """Whoever has it is renewing already, or hangs: the token in use goes on until it expires."""
    store = MemoryStore(lock_timeout=0.05)
    alice = sandbox.session("alice", store=store)
    warm(alice)
    clock.before_expiry(alice)
    with store.lock(key_of(sandbox, "alice")):
        herd(1, lambda: warm(alice))
    assert sandbox.count(CALLS) == 1


# --- the clock is set ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [86400, -86400, -7200], ids=["day forward", "day back", "two hours back"])
def test_the_wall_clock_steps(step: float, session: FinapiSession, sandbox: Sandbox, clock: Clock) -> None:
    """A clock that is set costs at most one token call, and no call fails; nor do those after it is set right."""
    warm(session)
    clock.step(step)
    for _ in range(3):
        warm(session)
    assert sandbox.count(CALLS) <= 2
    clock.step(-step)
    for _ in range(3):
        warm(session)
    assert sandbox.count(CALLS) <= 3


def test_why_a_token_is_not_renewed_is_told(sandbox: Sandbox, clock: Clock) -> None:
    """An event of the identity says what was decided in the soft window."""
    events: list[TokenEvent] = []
    session = sandbox.session("alice", on_event=events.append)
    warm(session)
    clock.before_expiry(session)
    sandbox.answer_next(500, path=CALLS)
    warm(session)
    assert [(event.identity, event.reason) for event in events if event.kind == "decided"] == [
        ("user 'alice'", "TokenEndpointError before expiry: the token held goes on")
    ]
