"""``renew_in_background=True``: before expiry a thread of its own renews, and no call waits for it."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import freezegun
import httpx
import pytest
import requests_mock

from finapi_session import FileStore, FinapiSession, MemoryStore, TokenEvent
from finapi_session.background import InBackground
from finapi_session.flight import Flight, Ticket
from finapi_session.httpx import FinapiAuth
from finapi_session.testing import Sandbox

from .clocks import Clock
from .herd import CALLS, ECHO, grants, herd, statuses, warm, without_threads
from .logins import stored

#: Seconds of a token call: whoever waits for one is told from whoever does not.
LATENCY = 1.0


@pytest.fixture
def alice(sandbox: Sandbox) -> Iterator[FinapiSession]:
    """A user's session that renews in the background, of a finAPI whose old tokens live on."""
    sandbox.sticky, sandbox.kill_on_refresh = False, False
    with sandbox.session("alice", renew_in_background=True) as session:
        yield session
    assert under_way() == []


def under_way() -> list[threading.Thread]:
    """Return the threads that renew."""
    return [thread for thread in threading.enumerate() if isinstance(thread, InBackground)]


def landed() -> None:
    """Wait for the threads that renew."""
    InBackground.land_all(seconds=20)
    assert under_way() == []


def near_expiry(session: FinapiSession, sandbox: Sandbox, clock: Clock) -> None:
    """Let *session* hold a token in its soft window, and each further token call take a second."""
    warm(session)
    clock.before_expiry(session)
    sandbox.latency = {CALLS: LATENCY}


# --- nobody waits -------------------------------------------------------------------------------------------------


def test_nobody_waits_in_three_lifetimes(alice: FinapiSession, sandbox: Sandbox) -> None:
    """16 threads call at a steady rate while tokens end and token calls take a second: none waits, one call a token."""
    sandbox.lifetime = 6
    alice._own._leeway = 3.0
    warm(alice)
    sandbox.latency, seconds, ends = {CALLS: LATENCY}, [], time.monotonic() + 3 * 3 + 2

    def call_on() -> None:
        while time.monotonic() < ends:
            started = time.perf_counter()
            assert alice.get(ECHO).status_code == 200
            seconds.append(time.perf_counter() - started)
            time.sleep(0.2)

    results, _ = herd(16, call_on)
    assert results == [None] * 16
    landed()
    assert grants(sandbox) == ["password", *["refresh_token"] * 3]
    # A busy machine may hold up a call, but none as long as half of a token call, and nearly none at all.
    assert max(seconds) < LATENCY / 2 and sorted(seconds)[-len(seconds) // 100] < 0.2, sorted(seconds)[-9:]


def test_all_go_on_with_the_token_that_is_still_good(alice: FinapiSession, sandbox: Sandbox, clock: Clock) -> None:
    """In the moment in which the window opens one thread is started, and each call goes out with the old token."""
    near_expiry(alice, sandbox, clock)
    old = alice.fetch_token()
    results, seconds = herd(16, lambda: (alice.get(ECHO).status_code, alice.fetch_token(), len(under_way())))
    assert set(results) == {(200, old, 1)} and max(seconds) < LATENCY * 0.9
    landed()
    assert alice.fetch_token() != old
    assert grants(sandbox) == ["password", "refresh_token"]


def test_whoever_finds_the_token_expired_waits_for_the_thread(
    alice: FinapiSession, sandbox: Sandbox, clock: Clock
) -> None:
    """The token ended while its successor was asked for: all wait for that one, and nobody asks again."""
    near_expiry(alice, sandbox, clock)
    warm(alice)
    clock.step(31)
    results, seconds = herd(8, lambda: alice.get(ECHO))
    assert statuses(results) == {200} and min(seconds) > LATENCY / 4
    assert sandbox.count(CALLS) == 2


def test_two_sessions_of_one_user(sandbox: Sandbox, clock: Clock) -> None:
    """Sessions of one user renew once in all, and none of them waits."""
    sandbox.kill_on_refresh = False
    with sandbox.session(renew_in_background=True) as client:
        pair = [client.user("alice", "her-password") for _ in range(2)]
        for session in pair:
            warm(session)
        near_expiry(pair[0], sandbox, clock)
        for session in pair:
            results, seconds = herd(4, partial(session.get, ECHO))
            assert statuses(results) == {200} and max(seconds) < LATENCY * 0.9
        landed()
        for session in pair:
            warm(session)
        assert grants(sandbox) == ["password", "refresh_token"]


def test_sessions_that_live_for_one_call(sandbox: Sandbox, clock: Clock) -> None:
    """A user's session made for each call, as in a web framework, renews before expiry too, once, and none waits."""
    sandbox.kill_on_refresh = False
    with sandbox.session(renew_in_background=True, revoke_on_close=False) as client:
        near_expiry(client.user("alice", "her-password"), sandbox, clock)
        results, seconds = herd(8, lambda: client.user("alice", "her-password").get(ECHO))
        assert statuses(results) == {200} and max(seconds) < LATENCY * 0.9
        landed()
        warm(client.user("alice", "her-password"))
        assert grants(sandbox) == ["password", "refresh_token"]


def test_coroutines_do_not_wait_either(alice: FinapiSession, sandbox: Sandbox, clock: Clock) -> None:
    """50 calls of httpx in the soft window go out at once, and their loop's end does not wait for the renewal."""
    near_expiry(alice, sandbox, clock)

    async def call() -> list[int]:
        verify = ssl.create_default_context(cafile=sandbox.ca_bundle)
        async with httpx.AsyncClient(auth=FinapiAuth(alice), base_url=sandbox.base_url, verify=verify) as client:
            answers = await asyncio.gather(*(client.get(ECHO) for _ in range(50)))
            return [answer.status_code for answer in answers]

    assert asyncio.run(call()) == [200] * 50
    assert len(under_way()) == 1
    landed()
    assert sandbox.count(CALLS) == 2


# --- what goes along, and what does not ---------------------------------------------------------------------------


def test_context_variables_go_along(sandbox: Sandbox, clock: Clock) -> None:
    """What the thread calls (secrets, on_event) sees the context of the call that started it, and changes a copy."""
    tenant: ContextVar[str] = ContextVar("tenant")
    seen: list[tuple[str, bool]] = []

    def secret() -> str:
        seen.append((tenant.get("none"), isinstance(threading.current_thread(), InBackground)))
        tenant.set(f"{tenant.get('none')}, changed")
        return sandbox.client_secret

    with sandbox.session(client_secret=secret, renew_in_background=True) as client:
        warm(client)
        clock.before_expiry(client)
        tenant.set("bank")
        warm(client)
        landed()
        assert seen[-1] == ("bank", True) and tenant.get() == "bank"


def test_who_starts_a_thread_in_a_flight_is_not_accused(sandbox: Sandbox, clock: Clock) -> None:
    """An on_event of one session calls with another one, whose thread may wait for the first: nobody reenters."""
    sandbox.sticky = False
    answers: list[Any] = []

    def ask_the_client(event: TokenEvent) -> None:
        if event.kind == "issued" and threading.current_thread() is not threading.main_thread():
            answers.append(client.fetch_token())

    def call_with_other(event: TokenEvent) -> None:
        if event.kind == "issued":
            warm(other)
            time.sleep(0.5)  # still aboard, while the other's thread asks for this one's token

    other = sandbox.session(renew_in_background=True, on_event=ask_the_client)
    warm(other)
    clock.before_expiry(other)
    client = sandbox.session(on_event=call_with_other)
    with other, client:
        token = client.fetch_token()
        landed()
        assert answers == [token]


def test_an_event_that_calls_in_the_thread(sandbox: Sandbox, clock: Clock) -> None:
    """An on_event that makes a call with the session itself, in its own thread, goes on with the token it has."""
    results: list[int] = []
    session = sandbox.session(renew_in_background=True, on_event=lambda event: results.append(call(event)))

    def call(event: TokenEvent) -> int:
        in_thread = isinstance(threading.current_thread(), InBackground)
        return session.get(ECHO).status_code if in_thread else 0

    with session:
        near_expiry(session, sandbox, clock)
        warm(session)
        landed()
        assert 200 in results


# --- what fails ---------------------------------------------------------------------------------------------------


def test_errors_go_unnoticed_and_back_off(sandbox: Sandbox, clock: Clock) -> None:
    """With a 503 for all of the soft window, 30 calls spread over it make at most 8 token calls, and all succeed."""
    events: list[TokenEvent] = []
    with sandbox.session("alice", renew_in_background=True, on_event=events.append) as alice:
        warm(alice)
        clock.before_expiry(alice, left=60)
        sandbox.answer_next(503, path=CALLS, times=99)
        for _ in range(30):
            warm(alice)
            landed()
            clock.step(1.9)
        assert 2 <= sandbox.count(CALLS, status=503) <= 8
        reasons = {event.reason for event in events if event.kind == "decided"}
        assert reasons == {"TokenEndpointError before expiry: the token held goes on"}
        sandbox.answer_next(200, path=CALLS, times=0)


def test_a_vault_that_fails_is_not_noticed(sandbox: Sandbox, clock: Clock) -> None:
    """A callable secret that raises in the thread reaches neither a call nor the hook for threads that die."""
    sealed, died = False, []

    def vault() -> str:
        if sealed:
            raise LookupError("vault is sealed")
        return sandbox.client_secret

    hook, threading.excepthook = threading.excepthook, died.append
    try:
        session = sandbox.session(client_secret=vault, renew_in_background=True)
        warm(session)
        clock.before_expiry(session)
        sealed = True
        warm(session)
        landed()
        clock.step(31)
        with pytest.raises(LookupError):
            session.get(ECHO)
    finally:
        threading.excepthook = hook
    assert died == []


def test_no_thread_can_be_started(sandbox: Sandbox, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there can be no more threads, calls go on, it is told and tried later, and at expiry a call renews."""
    events: list[TokenEvent] = []
    session = sandbox.session("alice", renew_in_background=True, on_event=events.append)
    warm(session)
    clock.before_expiry(session)

    without_threads(monkeypatch, lambda: [warm(session) for _ in range(5)])
    told = [event.reason for event in events if event.kind == "decided"]
    assert told == ["no thread before expiry: the token held goes on"]
    assert sandbox.count(CALLS) == 1
    clock.step(31)
    warm(session)
    assert sandbox.count(CALLS) == 2


def test_an_interruption_while_the_thread_starts_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a signal's handler raises there, be it a RuntimeError, is the caller's, and the place is free again."""
    flight, before = Flight(), signal.getsignal(signal.SIGALRM)

    def ring(*_: object) -> None:
        raise RuntimeError("time is up")

    def start(_: threading.Thread) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        time.sleep(5)

    signal.signal(signal.SIGALRM, ring)
    monkeypatch.setattr(threading.Thread, "start", start)
    try:
        with pytest.raises(RuntimeError, match="time is up"):
            InBackground.take_off(flight, None, lambda: None)
    finally:
        signal.signal(signal.SIGALRM, before)
    with Ticket(flight) as ticket:
        assert ticket.board(0)


def test_a_signal_interrupts_the_caller_and_not_the_thread(
    alice: FinapiSession, sandbox: Sandbox, clock: Clock
) -> None:
    """A time limit that ends a caller's work leaves the renewal alone."""
    near_expiry(alice, sandbox, clock)

    def ring(*_: object) -> None:
        raise TimeoutError("soft time limit")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(TimeoutError, match="soft time limit"):
            warm(alice)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            time.sleep(5)
    finally:
        signal.signal(signal.SIGALRM, before)
    landed()
    assert grants(sandbox) == ["password", "refresh_token"]


# --- mocks that end -----------------------------------------------------------------------------------------------


def test_a_sandbox_that_stops(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The server goes away while the thread asks: calls and close() raise nothing for it."""
    with Sandbox() as sandbox:
        session = sandbox.session("anna.schmidt", renew_in_background=True, store=MemoryStore())
        near_expiry(session, sandbox, Clock(sandbox, monkeypatch))
        warm(session)
    session.close()
    assert under_way() == [] and "Traceback" not in caplog.text


def test_requests_mock_that_ends() -> None:
    """A mock that ends while the thread asks leaves nothing behind, and the answer that it gave is taken."""
    asked, ended = threading.Event(), threading.Event()

    def slow(*_: object) -> dict[str, Any]:
        asked.set()
        assert ended.wait(5)
        return {"access_token": "second", "expires_in": 3600}

    first = {"access_token": "first", "expires_at": time.time() + 30, "issued_at": time.time() - 3000}
    session = FinapiSession("id", "secret", token=first, renew_in_background=True)
    with requests_mock.Mocker() as mock:
        mock.post(session.environment.token_url, json=slow)
        for _ in range(2):  # what was given is taken in the first call, and near its end in the second
            assert session.fetch_token().access_token == "first"
        assert asked.wait(5)
    ended.set()
    landed()
    assert session.fetch_token().access_token == "second"
    session.close()


def test_a_frozen_clock_that_is_let_go(sandbox: Sandbox) -> None:
    """freezegun ends while the thread asks: what comes is used, and the next call is answered."""
    sandbox.sticky = False
    session = sandbox.session("alice", renew_in_background=True)
    with session:
        with freezegun.freeze_time(time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())) as frozen:
            warm(session)
            frozen.tick(3570)
            sandbox.latency = {CALLS: LATENCY}
            warm(session)
            assert len(under_way()) == 1
        landed()
        warm(session)


# --- close() ------------------------------------------------------------------------------------------------------


def test_close_waits_and_revokes_what_came(sandbox: Sandbox, clock: Clock) -> None:
    """close() in the middle of a renewal lets it end, and then revokes: nothing lives on, and nothing goes on."""
    events: list[TokenEvent] = []
    alice = sandbox.session("alice", renew_in_background=True, on_event=events.append)
    near_expiry(alice, sandbox, clock)
    warm(alice)
    alice.close()
    assert under_way() == []
    told = [event.kind for event in events if event.identity == "user 'alice'"]
    assert told == ["issued", "renewed", "revoked"]


def test_close_lets_a_login_be_stored(sandbox: Sandbox, clock: Clock) -> None:
    """Where nothing is revoked, the new refresh token is in the store when close() returns."""
    sandbox.rotate_refresh_tokens = True
    store = MemoryStore()
    alice = sandbox.session("alice", store=store, renew_in_background=True)
    near_expiry(alice, sandbox, clock)
    old = stored(sandbox, store)[0].token
    warm(alice)
    alice.close()
    new = stored(sandbox, store)[0].token
    assert under_way() == [] and new.refresh_token not in (None, old.refresh_token)


@pytest.mark.parametrize("keep", [False, True], ids=["revoking", "not revoking"])
def test_close_waits_no_longer_than_it_may(keep: bool, own_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that hangs longer than a close may take is left alone, and the token that lives on is told."""
    monkeypatch.setattr("finapi_session.closing.CLOSE_SECONDS", 1.0)
    events: list[TokenEvent] = []
    client = own_sandbox.session(renew_in_background=True, revoke_on_close=not keep, on_event=events.append)
    warm(client)
    Clock(own_sandbox, monkeypatch).before_expiry(client)
    own_sandbox.latency = {CALLS: 3.0}
    warm(client)
    started = time.monotonic()
    client.close()
    assert 0.8 < time.monotonic() - started < 2.5
    told = [str(event.reason) for event in events if "lives on" in str(event.reason)]
    assert len(told) == (0 if keep else 1)
    landed()


def test_a_user_who_closes_does_not_wait(sandbox: Sandbox, clock: Clock) -> None:
    """A user's session on a store of yours, closed at the end of a request, leaves the renewal to its thread."""
    store = MemoryStore()
    with sandbox.session(store=store, renew_in_background=True) as client:
        with client.user("alice", "her-password") as alice:
            near_expiry(alice, sandbox, clock)
            warm(alice)
            started = time.monotonic()
        assert time.monotonic() - started < LATENCY / 2 and len(under_way()) == 1
    assert under_way() == [] and sandbox.count(CALLS, grant_type="refresh_token") == 1


# --- processes ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX forks")
def test_a_fork_during_the_renewal(alice: FinapiSession, sandbox: Sandbox, clock: Clock) -> None:
    """A child forked meanwhile waits for no thread of its parent's: it calls, closes and ends, as the parent does."""
    alice.revoke_on_close = False
    near_expiry(alice, sandbox, clock)
    warm(alice)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which this is about
        child = os.fork()
    if child == 0:
        signal.alarm(15)
        with suppress(BaseException):
            inherited = len(under_way())
            warm(alice)
            InBackground.land_all(seconds=10)
            alice.close()
            os._exit(inherited)
        os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    landed()
    warm(alice)


_PROGRAM = """
import sys, threading, time
from finapi_session import FileStore, FinapiSession
session = FinapiSession(
    "sandbox-client", "sandbox-client-secret", username="alice", environment=sys.argv[1],
    store=FileStore(sys.argv[3]), leeway=3600, renew_in_background=True,
)
session.verify, session.trust_env = sys.argv[2], False
def calls():
    for _ in range(2):
        assert session.get("/api/v2/tests/echo").status_code == 200
"""
_SPAWN = "import gevent; gevent.joinall([gevent.spawn(calls) for _ in range(3)], raise_error=True)"
_ENDINGS = {
    "main thread": "calls()",
    "daemon thread": "t = threading.Thread(target=calls, daemon=True); t.start(); t.join()",
    "error": "calls(); raise SystemExit(7)",
    "greenlets": _SPAWN,
    "greenlets of one thread": _SPAWN,
    "exit handler": "import atexit; atexit.register(calls)",
}
_PATCHES = {
    "greenlets": "from gevent import monkey; monkey.patch_all()",
    "greenlets of one thread": "from gevent import monkey; monkey.patch_all(thread=False)",
}


@pytest.mark.parametrize("ending", _ENDINGS)
def test_the_end_of_the_program_waits(ending: str, sandbox: Sandbox, tmp_path: Path) -> None:
    """A program that ends during the renewal ends after it: the refresh token that finAPI rotated is in the store."""
    sandbox.rotate_refresh_tokens, sandbox.kill_on_refresh, sandbox.sticky, sandbox.lifetime = True, False, False, 6
    store = FileStore(tmp_path / "tokens")
    first = sandbox.session("alice", store=store, revoke_on_close=False).fetch_token()
    time.sleep(3.5)
    sandbox.latency = {CALLS: LATENCY}
    code = "\n".join((_PATCHES.get(ending, ""), _PROGRAM, _ENDINGS[ending]))
    command = [sys.executable, "-W", "error", "-c", code, sandbox.base_url, sandbox.ca_bundle, str(tmp_path / "tokens")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (7 if ending == "error" else 0, "")
    # Python 3.12 starts no thread in an exit handler, gevent lets none use sockets unless it patches threads.
    least = 0 if ending in ("exit handler", "greenlets of one thread") else 1
    asked = sandbox.count(CALLS, grant_type="refresh_token")
    assert least <= asked <= 1
    assert (stored(sandbox, store)[0].token.refresh_token != first.refresh_token) == bool(asked)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, 1, 0, "yes"])
@pytest.mark.parametrize("make", [FinapiSession, FinapiSession.from_env], ids=["class", "from_env"])
def test_it_is_true_or_false(make: Callable[..., FinapiSession], given: Any) -> None:
    """Anything but a bool is an error that names the argument and what was given."""
    with pytest.raises(TypeError, match=f"renew_in_background must be True or False, not {type(given).__name__}"):
        make(client_id="id", client_secret="secret", renew_in_background=given)
