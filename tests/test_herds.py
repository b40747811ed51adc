"""Many threads, sessions or greenlets need a token at once: one of them asks, nobody fails, nobody waits for long."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from requests import Request

from finapi_session import FinapiSession, InvalidGrantError, MemoryStore, TokenEndpointError, TokenEvent
from finapi_session.envelope import unverified
from finapi_session.flight import Ticket
from finapi_session.testing import Sandbox

from .clocks import Clock
from .herd import CALLS, ECHO, herd, statuses, warm
from .links import Link, key_of

# --- cold, expired, revoked --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotating", [False, True])
@pytest.mark.parametrize("sticky", [False, True])
@pytest.mark.parametrize("situation", ["cold", "expired", "revoked"])
def test_a_herd_asks_once(
    situation: str, sticky: bool, rotating: bool, session: FinapiSession, sandbox: Sandbox, clock: Clock
) -> None:
    """32 threads on a cold, expired or revoked token make one token call, and none of them fails."""
    sandbox.sticky, sandbox.rotate_refresh_tokens, sandbox.latency = sticky, rotating, {CALLS: 0.1}
    sandbox.detect_reuse = rotating
    before = 0
    if situation != "cold":
        warm(session)
        before = 1
    if situation == "revoked":
        sandbox.revoke_tokens()
    if situation == "expired":
        clock.go_on(3601)
    results, _ = herd(32, lambda: session.get(ECHO))
    assert statuses(results) == {200}
    assert sandbox.count(CALLS) - before == 1


def test_a_herd_of_sessions_on_one_store_asks_once(sandbox: Sandbox) -> None:
    """32 sessions of one user, each on its own, share what the store has, and spend each refresh token once."""
    store = MemoryStore()
    sandbox.rotate_refresh_tokens = sandbox.detect_reuse = True
    sandbox.latency = {CALLS: 0.1}
    sessions = [sandbox.session("alice", store=store) for _ in range(32)]
    waiting = iter(sessions)
    results, _ = herd(32, lambda: next(waiting).get(ECHO))
    assert statuses(results) == {200} and sandbox.count(CALLS) == 1
    sandbox.revoke_tokens()
    waiting = iter(sessions)
    results, _ = herd(32, lambda: next(waiting).get(ECHO))
    assert statuses(results) == {200} and sandbox.count(CALLS) == 2


@pytest.mark.parametrize(("username", "again"), [(None, "issued"), ("alice", "renewed")])
def test_a_herd_is_one_event(username: str | None, again: str, sandbox: Sandbox) -> None:
    """Threads that have no token or a dead one, and wait for another one's renewal, take its token and tell nothing."""
    events: list[TokenEvent] = []
    session = sandbox.session(username, on_event=events.append)
    sandbox.latency = {CALLS: 0.2}
    for kinds in (["issued"], ["issued", again]):
        results, _ = herd(16, lambda: session.get(ECHO))
        assert statuses(results) == {200} and [event.kind for event in events] == kinds
        sandbox.revoke_tokens()


def test_a_herd_shares_one_failure(sandbox: Sandbox) -> None:
    """Threads that waited while the endpoint failed get that error, instead of asking one after the other."""
    sandbox.latency = {CALLS: 0.1}
    sandbox.answer_next(500, path=CALLS, times=99)
    alice = sandbox.session("alice")
    results, seconds = herd(16, lambda: alice.get(ECHO))
    assert {type(result) for result in results} == {TokenEndpointError}
    assert len({id(result) for result in results}) == 16
    assert sandbox.count(CALLS) == 1
    assert max(seconds) < 2


def test_threads_share_what_a_vault_raises(sandbox: Sandbox) -> None:
    """A vault that is slow to fail is asked once by all threads that wait, and again by the next call."""
    asked: list[int] = []

    def vault() -> str:
        asked.append(1)
        time.sleep(0.3)
        raise ConnectionError("the vault is down")

    session = sandbox.session(client_secret=vault)

    def request() -> str:
        with pytest.raises(ConnectionError, match="the vault is down"):
            session.get(ECHO)
        return "failed"

    _, seconds = herd(8, request)
    assert len(asked) == 1 and max(seconds) < 1
    request()
    assert len(asked) == 2


def test_a_late_401_waits_for_nobody(session: FinapiSession, sandbox: Sandbox, clock: Clock) -> None:
    """Whoever meets a 401 on a token with a successor takes that, even while the next renewal is under way."""
    late = session.prepare_request(Request("GET", ECHO))
    sandbox.revoke_tokens()
    warm(session)
    clock.before_expiry(session)
    sandbox.latency = {CALLS: 1.0}
    with ThreadPoolExecutor(1) as pool:
        renewal = pool.submit(session.get, ECHO)
        time.sleep(0.2)
        started = time.perf_counter()
        assert session.send(late).status_code == 200
        assert time.perf_counter() - started < 0.6 and not renewal.done()
        assert renewal.result().status_code == 200


# --- siblings on one store ----------------------------------------------------------------------------------------


def test_a_sibling_has_renewed_already(sandbox: Sandbox) -> None:
    """A 401 on a token that a sibling has renewed costs no token call, also after a refresh that killed it."""
    store = MemoryStore()
    one, other = (sandbox.session("alice", store=store) for _ in range(2))
    warm(one)
    warm(other)
    sandbox.revoke_tokens()
    warm(one)
    before = sandbox.count(CALLS)
    warm(other)
    assert sandbox.count(CALLS) == before
    assert sandbox.count(ECHO, status=401) == 2


def test_a_sibling_is_found_although_the_clock_was_set_back(sandbox: Sandbox, clock: Clock) -> None:
    """Which of two tokens is newer does not hang on the clock: what a sibling renewed yesterday's noon is taken."""
    store = MemoryStore()
    one, other = (sandbox.session("alice", store=store) for _ in range(2))
    warm(one)
    warm(other)
    sandbox.revoke_tokens()
    clock.step(-86400)
    warm(one)
    before = sandbox.count(CALLS)
    warm(other)
    assert sandbox.count(CALLS) == before


@pytest.mark.parametrize("step", [0, -86400], ids=["sibling", "sibling, clock set back"])
def test_what_is_renewed_after_the_store_was_emptied_is_found(step: float, sandbox: Sandbox, clock: Clock) -> None:
    """Somebody flushes the store, and tokens die: whoever renews first does it for all."""
    store = Link()
    one, other = (sandbox.session("alice", store=store) for _ in range(2))
    for _ in range(2):
        sandbox.revoke_tokens()
        warm(one)
        warm(other)
    store.shared = MemoryStore()
    sandbox.revoke_tokens()
    clock.step(step)
    warm(one)
    before = sandbox.count(CALLS)
    warm(other)
    assert sandbox.count(CALLS) == before


def test_a_warm_start_waits_for_nobody(sandbox: Sandbox) -> None:
    """What the store has is taken without its lock, even while somebody hangs with that."""
    store = MemoryStore()
    warm(sandbox.session(store=store))
    other = sandbox.session(store=store)
    with store.lock(key_of(sandbox)):
        _, seconds = herd(1, lambda: other.get(ECHO))
    assert seconds[0] < 5 and sandbox.count(CALLS) == 1


def test_siblings_on_one_store_do_not_fight(sandbox: Sandbox, clock: Clock) -> None:
    """A token that a sibling has renewed and stored is taken after a 401, and nothing is thought of it."""
    store = MemoryStore()
    pair = [sandbox.session("alice", store=store) for _ in range(2)]
    for session in pair:
        warm(session)
    for one, other in [pair, pair[::-1]] * 3:
        late = other.prepare_request(Request("GET", ECHO))
        clock.before_expiry(one)
        warm(one)
        assert other.send(late).status_code == 200
    assert sandbox.count(ECHO, status=401) == 6
    assert sandbox.count(CALLS, grant_type="password") == 1 and sandbox.count(CALLS) == 7


# --- a user session for each request ------------------------------------------------------------------------------


def test_short_lived_sessions_heed_what_finapi_asked_of_another(sandbox: Sandbox) -> None:
    """A long `Retry-After` rests the token calls of all sessions of a user, not only of the one that heard it."""
    client = sandbox.session()
    sandbox.answer_next(429, headers={"Retry-After": "300"}, path=CALLS, times=99)
    for _ in range(10):
        with pytest.raises(TokenEndpointError):
            client.user("alice", lambda: "her-password").get(ECHO)
    assert sandbox.count(CALLS) == 1


def test_what_finapi_asked_of_one_user_does_not_rest_another(sandbox: Sandbox, clock: Clock) -> None:
    """A `Retry-After` to one identity is not heeded for another one of the same client."""
    store = MemoryStore()
    clock.before_expiry(sandbox.session("alice", store=store), left=-1)
    client = sandbox.session(store=store)
    sandbox.answer_next(429, headers={"Retry-After": "300"}, path=CALLS)
    with pytest.raises(TokenEndpointError):
        client.fetch_token()
    assert client.user("alice").get(ECHO).status_code == 200


def test_a_wrong_password_is_not_the_answer_to_a_right_one(sandbox: Sandbox) -> None:
    """Whoever comes with the right password while a wrong one of the same user is being refused is not refused too."""
    client = sandbox.session()
    wrong, right = client.user("alice", "wrong"), client.user("alice", "her-password")
    sandbox.latency = {CALLS: 0.4}
    with ThreadPoolExecutor(2) as pool:
        refused = pool.submit(wrong.fetch_token)
        time.sleep(0.1)
        given = pool.submit(right.get, ECHO)
        assert isinstance(refused.exception(), InvalidGrantError) and given.result().status_code == 200
    assert sandbox.count(CALLS) == 2


def test_short_lived_sessions_share_a_pause(sandbox: Sandbox) -> None:
    """An API that rejects every token costs ten sessions of a user what it costs one."""
    client = sandbox.session()
    sandbox.answer_next(401, path=ECHO, times=99)
    for _ in range(10):
        assert client.user("alice", "her-password").get(ECHO).status_code == 401
    assert sandbox.count(CALLS) <= 3 and sandbox.count(ECHO) <= 20


def test_short_lived_sessions_do_not_queue_before_expiry(sandbox: Sandbox, clock: Clock) -> None:
    """While the endpoint hangs and fails in the soft window, one session tries, and the others go on at once."""
    client = sandbox.session()
    alice = client.user("alice", "her-password")
    warm(alice)
    clock.before_expiry(alice, left=59)
    sandbox.latency = {CALLS: 0.5}
    sandbox.answer_next(503, path=CALLS, times=99)

    def request() -> Any:
        user = client.user("alice", "her-password")
        user.get(ECHO)
        return user.get(ECHO)

    results, seconds = herd(8, request)
    assert statuses(results) == {200} and sandbox.count(CALLS) == 2
    assert sorted(seconds)[-2] < 0.45 < sorted(seconds)[-1]
    assert request().status_code == 200 and sandbox.count(CALLS) == 2


# --- nobody waits for ever ----------------------------------------------------------------------------------------


def test_nobody_waits_for_ever(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that hangs in its renewal keeps the others for a bounded time only."""
    monkeypatch.setattr("finapi_session.source.TURN", 0.1)
    session = sandbox.session()
    sandbox.latency = {CALLS: 1.0}
    with ThreadPoolExecutor(1) as pool:
        hangs = pool.submit(session.get, ECHO)
        time.sleep(0.3)
        with pytest.raises(TokenEndpointError, match="another thread"):
            session.get(ECHO)
        assert hangs.result().status_code == 200
    warm(session)


def test_the_fast_path_takes_no_lock_and_touches_no_store(sandbox: Sandbox) -> None:
    """With a fresh token, a lock that somebody has and a broken store do not matter."""
    store = Link()
    session = sandbox.session(store=store)
    warm(session)
    store.cut()
    store.asked = dict.fromkeys(store.asked, 0)
    with Ticket(session._own._turn) as ticket, store.shared.lock(key_of(sandbox)):
        assert ticket.board(0)
        _, seconds = herd(1, lambda: session.get(ECHO))
    assert seconds[0] < 5 and set(store.asked.values()) == {0}


_GREENLETS = """
from gevent import monkey
monkey.patch_all(thread=False)
import sys
import gevent
from finapi_session import FinapiSession

session = FinapiSession("sandbox-client", "sandbox-client-secret", environment=sys.argv[1])
session.verify, session.trust_env = sys.argv[2], False
calls = [gevent.spawn(session.get, "/api/v2/tests/echo") for _ in range(8)]
gevent.joinall(calls, raise_error=True)
print(*(call.value.status_code for call in calls))
"""


def test_greenlets_where_threads_are_not_patched(sandbox: Sandbox) -> None:
    """8 greenlets of one thread, as grequests makes them, wait for the one that asks: one token call, all are 200."""
    pytest.importorskip("gevent")
    sandbox.latency = {CALLS: 0.3}
    command = [sys.executable, "-c", _GREENLETS, sandbox.base_url, sandbox.ca_bundle]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.stdout.split(), ended.returncode) == (["200"] * 8, 0), ended.stderr
    assert sandbox.count(CALLS, grant_type="client_credentials") == 1


# --- while tokens are revoked -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [10])
def test_revoking_while_others_call(rounds: int, sandbox: Sandbox) -> None:
    """`revoke()` racing with calls leaves no thread hanging, no failed call, and no token in the store."""
    store = MemoryStore()
    alice = sandbox.session("alice", store=store)
    stop = threading.Event()
    failed: list[Any] = []

    def call() -> None:
        while not stop.is_set():
            status = alice.get(ECHO).status_code
            if status != 200:
                failed.append(status)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(rounds):
        time.sleep(0.05)
        alice.revoke()
    stop.set()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    # A replay may meet the next revocation: two sends a call, no more.
    assert len(failed) <= rounds and set(failed) <= {401}
    alice.revoke()
    left = store.get(key_of(sandbox, "alice"))
    assert left is not None and unverified(left).grants == ()


def test_20_threads_while_tokens_are_killed(sandbox: Sandbox) -> None:
    """Calls of every kind, tokens killed every 250 ms: under 1 % fail, and only those whose replay was killed too."""
    client = sandbox.session()
    alice = client.user("alice", "her-password")
    kinds: list[Callable[[], Any]] = [
        lambda: client.get("/api/v2/banks"),
        lambda: alice.get("/api/v2/accounts"),
        lambda: alice.post(ECHO, data=b"body"),
        lambda: client.get(ECHO, stream=True),
        lambda: alice.get("/api/v2/tests/redirect", params={"to": ECHO}),
    ]
    herd(20, lambda: [kind() for kind in kinds])
    ends = time.monotonic() + 6
    answers: list[Any] = []

    def work(number: int) -> None:
        while time.monotonic() < ends:
            response = kinds[number % len(kinds)]()
            assert response.content is not None
            answers.append(response)
            number += 1

    with ThreadPoolExecutor(20) as pool:
        workers = [pool.submit(work, number) for number in range(20)]
        while time.monotonic() < ends:
            seen = len(answers)
            time.sleep(0.25)
            while len(answers) < seen + 100 and time.monotonic() < ends:
                time.sleep(0.01)  # an overloaded machine needs longer for a few rounds of calls
            sandbox.revoke_tokens()
        for worker in workers:
            worker.result(timeout=30)
    failed = [answer for answer in answers if answer.status_code != 200]
    assert len(answers) > 200
    assert {answer.status_code for answer in failed} <= {401}
    assert all(answer.history for answer in failed), "a 401 was not healed"
    assert len(failed) < len(answers) / 100, f"{len(failed)} of {len(answers)}"


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
