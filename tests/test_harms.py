"""What would have hurt in production: each case was reproduced by a reader who tried to break the library."""

from __future__ import annotations

import copy
import gc
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from freezegun import freeze_time
from requests.adapters import BaseAdapter

from finapi_session import (
    ApiError,
    FileStore,
    FinapiSession,
    InvalidClientError,
    InvalidGrantError,
    LoginRequiredError,
    MemoryStore,
    Token,
    TokenEndpointError,
    TokenError,
    TokenEvent,
)
from finapi_session.auth import bearer_auth_of
from finapi_session.errors import raised_by_signal_handler
from finapi_session.source import TokenSource
from finapi_session.testing import Sandbox

ECHO = "/api/v2/tests/echo"
CALLS = "/oauth/token"


def without_password(sandbox: Sandbox, store: MemoryStore, **options: Any) -> FinapiSession:
    """A session for alice that has no password, as in a worker of its own."""
    client = (sandbox.client_id, sandbox.client_secret)
    session = FinapiSession(*client, username="alice", environment=sandbox.environment, store=store, **options)
    session.verify, session.trust_env = sandbox.ca_bundle, False
    return session


# --- a password is sent once -------------------------------------------------------------------------------------


@pytest.fixture
def proxy() -> Iterator[str]:
    """A proxy that tunnels, and refuses to for the host called refused."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(listener,), daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def _accept(listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            threading.Thread(target=_tunnel, args=(listener.accept()[0],), daemon=True).start()


def _tunnel(client: socket.socket) -> None:
    with client, suppress(OSError):
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        host, _, port = head.split()[1].decode().partition(":")
        if host == "localhost":
            client.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            return
        with socket.create_connection((host, int(port))) as server:
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            threading.Thread(target=_pump, args=(server, client), daemon=True).start()
            _pump(client, server)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_a_password_whose_answer_is_lost_behind_a_proxy_is_sent_once(sandbox: Sandbox, proxy: str) -> None:
    """urllib3 calls an answer that broke off behind a proxy a ProxyError, which is no proof that nothing was judged."""
    alice = sandbox.session("alice", "wrong")
    alice.proxies = {"https": proxy}
    sandbox.answer_next("lose", path=CALLS, times=9)
    with pytest.raises(TokenEndpointError, match="did not answer"):
        alice.fetch_token()
    assert sandbox.count(CALLS) == 1 and sandbox.users["alice"].failed_logins == 1


# Older versions of urllib3 leave the socket of a refused tunnel to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_proxy_that_makes_no_tunnel_has_judged_nothing(sandbox: Sandbox, proxy: str) -> None:
    """Where the proxy refuses, a password was not sent, and may be tried again."""
    alice = sandbox.session("alice", environment=replace(sandbox.environment, base_url="https://localhost:9"))
    alice.proxies = {"https": proxy}
    asked = []
    alice._endpoint._request_id = lambda: asked.append(1) or "r"  # type: ignore[func-returns-value]
    with pytest.raises(TokenEndpointError, match="no connection"):
        alice.fetch_token()
    gc.collect()
    assert len(asked) == 4


def test_a_wrong_password_is_sent_once_however_slow_the_answer(sandbox: Sandbox) -> None:
    """Sessions of one process do not go on without the lock of their store while one of them waits for finAPI."""
    client = sandbox.session(store=MemoryStore(lock_timeout=0.05))
    sandbox.latency = {CALLS: 0.5}

    def sign_in(_: int) -> None:
        with pytest.raises(InvalidGrantError):
            client.user("alice", "wrong").fetch_token()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(sign_in, range(4)))
    assert sandbox.count(CALLS) == 1


def test_a_refused_refresh_token_is_told_as_such(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """The log does not blame the password for it."""
    alice = sandbox.session("alice")
    alice.get(ECHO)
    sandbox.revoke_tokens("alice", refresh=True)
    assert alice.get(ECHO).status_code == 200
    [refused] = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert "finAPI refused the refresh token (400 invalid_grant" in refused
    assert "It is not sent again; the password is, if there is one." in refused


# --- a token is not lost -----------------------------------------------------------------------------------------


def test_a_token_given_beats_a_dead_one_in_the_store(sandbox: Sandbox) -> None:
    """A user without a password uses the live token that she was given, whatever spent one is stored."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    sandbox.revoke_tokens("alice", refresh=True)
    fresh = sandbox.session("alice").fetch_token().to_dict()
    alice = without_password(sandbox, store, token={name: fresh[name] for name in ("access_token", "refresh_token")})
    alice._ledger.save(_key(alice), _expired(alice))
    assert alice.get(ECHO).status_code == 200


def _key(session: FinapiSession) -> str:
    return session._own._key(session._own.identity.credentials())


def _expired(session: FinapiSession) -> Any:
    stored = session._ledger.load(_key(session))
    assert stored.token is not None
    return replace(stored, token=replace(stored.token, expires_at=time.time() - 1))


def test_a_token_given_goes_before_an_older_one_in_the_store(sandbox: Sandbox) -> None:
    """Who logs in elsewhere and hands over what was had there works with that, though what is stored seems good."""
    sandbox.sticky = False
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    time.sleep(0.01)
    given = sandbox.session("alice").fetch_token()
    sandbox.advance(1)
    assert without_password(sandbox, store, token=given).fetch_token() == given


@pytest.mark.parametrize("username", [None, "alice"])
def test_a_store_that_fell_back_in_time_costs_no_call(username: str | None, sandbox: Sandbox) -> None:
    """After a failover to a copy that lags, who has the newer token renews that, and does not use the dead one."""
    sandbox.rotate_refresh_tokens = True
    store = MemoryStore()
    session = sandbox.session(username, store=store)
    session.get(ECHO)
    lagging = store.get(_key(session))
    assert lagging is not None
    for calls in (2, 3):
        sandbox.expire_tokens()
        assert session.get(ECHO).status_code == 200
        assert sandbox.count(CALLS) == calls
        store.set(_key(session), lagging)


def test_a_token_given_is_stored(sandbox: Sandbox) -> None:
    """What was had elsewhere is there for the next process."""
    store = MemoryStore()
    token = sandbox.session("alice").fetch_token()
    assert without_password(sandbox, store, token=token).get(ECHO).status_code == 200
    assert without_password(sandbox, store).get(ECHO).status_code == 200
    assert sandbox.count(CALLS) == 1


def test_a_token_given_with_a_password_is_stored_for_who_knows_that(sandbox: Sandbox) -> None:
    """A sibling with the same password takes it from the store; one with another password does not."""
    store = MemoryStore()
    token = sandbox.session("alice").fetch_token()
    for given in (token, None):
        assert sandbox.session("alice", store=store, token=given).get(ECHO).status_code == 200
    assert sandbox.count(CALLS) == 1
    with pytest.raises(InvalidGrantError):
        sandbox.session("alice", "wrong", store=store).get(ECHO)


class Shaky(MemoryStore):
    """A store that fails to write as often as it is told to, and whose locks may be down."""

    def __init__(self) -> None:
        super().__init__()
        self.failures = 0
        self.locks = True

    def set(self, key: str, value: str) -> None:
        """Write, or fail."""
        if self.failures:
            self.failures -= 1
            raise OSError("disk full")
        super().set(key, value)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Lock, or fail."""
        if not self.locks:
            raise OSError("locks are down")
        with super().lock(key):
            yield


@pytest.mark.parametrize("later", ["close", "call"])
def test_a_refresh_token_that_the_store_did_not_take_is_saved_later(
    later: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failed write does not lose a replaced refresh token: it is written on close, or by a call ten seconds on."""
    sandbox.rotate_refresh_tokens = True
    store = Shaky()
    sandbox.session("alice", store=store).fetch_token()
    alice = without_password(sandbox, store)
    alice.get(ECHO)
    sandbox.expire_tokens("alice")
    store.failures = 1
    assert alice.get(ECHO).status_code == 200
    if later == "close":
        alice.close()
    else:
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 11)
        assert alice.get(ECHO).status_code == 200
    sandbox.expire_tokens("alice")
    assert without_password(sandbox, store).get(ECHO).status_code == 200


def test_a_token_given_that_the_store_did_not_take_is_saved_later(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was had elsewhere is written by a call ten seconds on, if the store failed at first."""
    store, now = Shaky(), time.time()
    store.failures = 1
    alice = without_password(sandbox, store, token=sandbox.session("alice").fetch_token())
    for seconds, values in ((0, 0), (9, 0), (11, 1)):
        monkeypatch.setattr(time, "time", lambda at=now + seconds: at)
        assert alice.get(ECHO).status_code == 200
        assert repr(store) == f"<MemoryStore with {values} values>"
    assert sandbox.count(CALLS) == 1


class Link(MemoryStore):
    """One process's connection to a *shared* store; it may be down, or fail to say that a write arrived."""

    def __init__(self, shared: MemoryStore) -> None:
        super().__init__()
        self.shared = shared
        self.up = True
        self.silent = 0

    def _reach(self) -> MemoryStore:
        if not self.up:
            raise OSError("unreachable")
        return self.shared

    def get(self, key: str) -> str | None:
        """Read there."""
        return self._reach().get(key)

    def set(self, key: str, value: str) -> None:
        """Write there."""
        self._reach().set(key, value)
        if self.silent:
            self.silent -= 1
            raise OSError("timed out")

    def delete(self, key: str) -> None:
        """Delete there."""
        self._reach().delete(key)

    def lock(self, key: str) -> Any:
        """Lock there."""
        return self._reach().lock(key)


@pytest.fixture
def later(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets both clocks on by so many seconds."""
    real, ahead = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])

    def go_on(seconds: float) -> None:
        ahead[0] += seconds
        sandbox.advance(seconds)

    return go_on


def test_a_token_of_the_configuration_harms_no_newer_one_in_the_store(
    sandbox: Sandbox, later: Callable[[float], None]
) -> None:
    """A worker that starts again with its first token, whose expiry it does not know, lives on what is stored."""
    sandbox.rotate_refresh_tokens = True
    store, first = MemoryStore(), sandbox.session("alice").fetch_token()
    seed = {"access_token": first.access_token, "refresh_token": first.refresh_token}
    worker = without_password(sandbox, store, token=seed)
    for _ in range(2):
        assert worker.get(ECHO).status_code == 200
        later(3601)
    assert without_password(sandbox, store, token=seed).get(ECHO).status_code == 200
    assert without_password(sandbox, store).get(ECHO).status_code == 200


def test_a_dead_token_of_the_configuration_is_not_stored_over_a_good_one(sandbox: Sandbox) -> None:
    """It seems to be the newest, as it tells no time; the refresh token that others live on stays all the same."""
    sandbox.rotate_refresh_tokens = True
    store, first = MemoryStore(), sandbox.session("alice").fetch_token()
    seed = {"access_token": first.access_token, "refresh_token": first.refresh_token, "expires_in": 3600}
    worker = without_password(sandbox, store, token=seed)
    worker.get(ECHO)
    sandbox.expire_tokens("alice")
    assert worker.get(ECHO).status_code == 200
    assert without_password(sandbox, store, token=seed).get(ECHO).status_code == 200
    assert without_password(sandbox, store).get(ECHO).status_code == 200


def test_a_token_given_after_a_login_was_required_serves(sandbox: Sandbox, later: Callable[[float], None]) -> None:
    """What was refused of the stored token says nothing of the one that the caller brings."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    sandbox.revoke_tokens("alice", refresh=True)
    with pytest.raises(LoginRequiredError):
        without_password(sandbox, store).get(ECHO)
    later(3601)
    fresh = {"access_token": sandbox.session("alice").fetch_token().access_token}
    assert without_password(sandbox, store, token=fresh).get(ECHO).status_code == 200


def test_a_process_that_was_cut_off_leaves_its_siblings_token_alone(sandbox: Sandbox) -> None:
    """What finAPI refused it meanwhile is said of its own token, not of the one that a sibling has stored."""
    sandbox.rotate_refresh_tokens = True
    shared = MemoryStore()
    sandbox.session("alice", store=shared).fetch_token()
    link = Link(shared)
    cut_off, sibling = without_password(sandbox, link), without_password(sandbox, shared)
    for session in (cut_off, sibling):
        session.get(ECHO)
    link.up = False
    sandbox.expire_tokens("alice")
    assert sibling.get(ECHO).status_code == 200
    with pytest.raises(LoginRequiredError):
        cut_off.get(ECHO)
    link.up = True
    assert cut_off.get(ECHO).status_code == 200
    sandbox.expire_tokens("alice")
    assert without_password(sandbox, shared).get(ECHO).status_code == 200


@pytest.mark.parametrize("arrived", [False, True])
def test_a_store_that_is_well_again_is_left_alone(
    arrived: bool, sandbox: Sandbox, later: Callable[[float], None]
) -> None:
    """After one failed write nobody looks every ten seconds for ever, and what a sibling revokes stays revoked."""
    shared, kinds = MemoryStore(), []
    link = Link(shared)
    link.up, link.silent = arrived, 1
    alice = sandbox.session("alice", store=link, on_event=lambda event: kinds.append(event.kind))
    alice.get(ECHO)
    link.up = True
    for _ in range(4):
        later(11)
        alice.get(ECHO)
    assert sorted(kinds) == ["adopted", "issued", "store_failed"] and not alice._ledger.unsaved
    sandbox.session("alice", store=shared).revoke()
    alice._ledger.settle_all()
    assert shared.get(_key(alice)) is None


def test_a_refusal_does_not_bring_a_revoked_token_back(sandbox: Sandbox) -> None:
    """What was revoked while the store was down is gone there, whatever finAPI said after that."""
    shared = MemoryStore()
    link = Link(shared)
    alice = sandbox.session("alice", store=link)
    token = alice.fetch_token()
    link.up = False
    alice.revoke()
    sandbox.answer_next(403, path=CALLS)
    with pytest.raises(TokenError):
        alice.fetch_token()
    link.up = True
    alice._ledger.settle_all()
    assert token.access_token not in str(shared.get(_key(alice)))


def test_a_vault_is_not_asked_at_each_call_for_a_stores_sake(sandbox: Sandbox, later: Callable[[float], None]) -> None:
    """A token that never expires and that the store does not take is looked after every ten seconds only."""
    asked: list[int] = []

    def vault() -> str:
        asked.append(1)
        if len(asked) > 1:
            raise LookupError("sealed")
        return "her-password"

    sandbox.lifetime = 0
    link = Link(MemoryStore())
    link.up = False
    alice = sandbox.session("alice", vault, store=link)
    alice.get(ECHO)
    for _ in range(3):
        later(11)
        for _ in range(5):
            alice.fetch_token()
    assert len(asked) == 4


def test_who_loses_a_race_for_a_refresh_token_leaves_the_winners_in_the_store(sandbox: Sandbox) -> None:
    """Without a lock, a refused refresh token is not written over the one that a sibling has just had."""
    sandbox.rotate_refresh_tokens = True
    store = Shaky()
    sandbox.session("alice", store=store).fetch_token()
    winner, loser = (without_password(sandbox, store) for _ in range(2))
    for session in (winner, loser):
        session.get(ECHO)
    store.locks = False
    sandbox.expire_tokens("alice")
    sandbox.latency = {CALLS: 0.3}

    def call(session: FinapiSession, after: float) -> Any:
        time.sleep(after)
        with suppress(LoginRequiredError):
            session.get(ECHO)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(call, (winner, loser), (0.0, 0.15)))
    assert sandbox.count(CALLS, grant_type="refresh_token") == 2
    sandbox.latency = 0
    assert without_password(sandbox, store).get(ECHO).status_code == 200


def _beside_a_newer_one(sandbox: Sandbox, stored: str, own: str | None = None, expires_in: int = -1) -> FinapiSession:
    """A worker whose given token, with the refresh token *own*, is expired, and older than the stored one."""
    store = MemoryStore()
    token = sandbox.session("alice", store=store).fetch_token()
    sandbox.expire_tokens("alice")
    older = replace(token, access_token="older", issued_at=1.0, expires_at=2.0)
    older = older if own is None else replace(older, refresh_token=own)
    worker = without_password(sandbox, store, token=older)
    newer = replace(token, refresh_token=stored, expires_at=time.time() + expires_in)
    worker._ledger.save(_key(worker), replace(worker._ledger.load(_key(worker)), token=newer))
    return worker


def test_a_refused_refresh_token_gives_way_to_another_one_at_hand(sandbox: Sandbox) -> None:
    """Nobody need log in while there is a good one, be it the older; the refused one is not sent again."""
    worker = _beside_a_newer_one(sandbox, "refused")
    assert worker.get(ECHO).status_code == 200
    assert sandbox.count(CALLS, grant_type="refresh_token") == 2
    sandbox.expire_tokens("alice")
    assert worker.get(ECHO).status_code == 200
    assert sandbox.count(CALLS, grant_type="refresh_token") == 3


@pytest.mark.parametrize(("again", "expires_in"), [("same worker", -1), ("restarted", -1), ("restarted", 3600)])
def test_a_good_refresh_token_outlasts_the_refusal_of_another(again: str, expires_in: int, sandbox: Sandbox) -> None:
    """finAPI is down when the older one's turn comes: it is there for the next call, here and in a new process."""
    worker = _beside_a_newer_one(sandbox, "refused", expires_in=expires_in)
    own = worker._own.held
    sandbox.answer_next(400, body={"error": "invalid_grant"}, path=CALLS)
    sandbox.answer_next(302, path=CALLS)
    with pytest.raises(TokenEndpointError):
        worker.get(ECHO)
    if again == "restarted":
        worker = without_password(sandbox, worker._ledger.store, token=own)  # type: ignore[arg-type]
    assert worker.get(ECHO).status_code == 200


@pytest.mark.parametrize("expires_in", [-1, 3600])
@pytest.mark.parametrize(("own", "calls"), [("refused", 1), ("refused-too", 2)])
def test_a_refused_refresh_token_is_sent_once_whoever_holds_it(
    own: str, calls: int, expires_in: int, sandbox: Sandbox
) -> None:
    """What finAPI said of it counts for every token that was had with it, stored, held or set aside."""
    worker = _beside_a_newer_one(sandbox, "refused", own, expires_in)
    for _ in range(3):
        with pytest.raises(LoginRequiredError):
            worker.get(ECHO)
    assert sandbox.count(CALLS, grant_type="refresh_token") == calls


@pytest.mark.parametrize("code", ["invalid_client", "INVALID_CLIENT"])
def test_a_wrong_client_secret_is_sent_once_however_many_refresh_tokens_there_are(code: str, sandbox: Sandbox) -> None:
    """What finAPI refused is the client: another refresh token would not help, and none is dropped."""
    worker = _beside_a_newer_one(sandbox, "another")
    sandbox.answer_next(401, body={"error": code}, path=CALLS)
    with pytest.raises(InvalidClientError):
        worker.get(ECHO)
    assert sandbox.count(CALLS, grant_type="refresh_token") == 1
    tokens = worker._own.held, worker._ledger.load(_key(worker)).token
    assert all(token is not None and token.refresh_token for token in tokens)


@pytest.mark.parametrize("expires_in", [-1, 3600])
def test_a_token_given_serves_beside_a_stored_one_that_was_refused(expires_in: int, sandbox: Sandbox) -> None:
    """Another worker has learnt that the stored one is of no use any more; that says nothing of what is given here."""
    worker = _beside_a_newer_one(sandbox, "refused", expires_in=expires_in)
    with pytest.raises(LoginRequiredError):
        without_password(sandbox, worker._ledger.store).get(ECHO)  # type: ignore[arg-type]
    assert worker.get(ECHO).status_code == 200


def test_an_access_token_given_serves_beside_a_stored_one_that_was_refused(sandbox: Sandbox) -> None:
    """It is used although it is the older one and there is no refresh token any more."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    sandbox.revoke_tokens("alice", refresh=True)
    with pytest.raises(LoginRequiredError):
        without_password(sandbox, store).get(ECHO)
    given = Token(sandbox.session("alice").fetch_token().access_token, issued_at=1.0)
    assert without_password(sandbox, store, token=given).get(ECHO).status_code == 200


@pytest.mark.parametrize("password", [None, "her-password"])
def test_a_token_given_is_stored_over_one_that_nobody_lives_on(password: str | None, sandbox: Sandbox) -> None:
    """One had by a password stays: who knows that can go on by it."""
    sandbox.sticky = False
    store = MemoryStore()
    first = sandbox.session("alice", store=MemoryStore() if password is None else store).fetch_token()
    worker = without_password(sandbox, store, token=first)
    worker.get(ECHO)
    sandbox.revoke_tokens("alice", refresh=True)
    with pytest.raises(LoginRequiredError):
        worker.get(ECHO)
    time.sleep(0.01)
    given = sandbox.session("alice").fetch_token()
    assert without_password(sandbox, store, token=given).get(ECHO).status_code == 200
    stored = worker._ledger.load(_key(worker)).token
    assert stored is not None and (stored.access_token == given.access_token) is (password is None)


def test_a_dead_access_token_given_leaves_the_stored_one_in_use(sandbox: Sandbox) -> None:
    """What others live on is taken as it is, and not renewed."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    worker = without_password(sandbox, store, token=Token("dead", issued_at=time.time()))
    assert worker.get(ECHO).status_code == 200
    assert sandbox.count(CALLS) == 1
    sandbox.revoke_tokens("alice", refresh=True)
    with pytest.raises(LoginRequiredError):
        worker.get(ECHO)


@pytest.mark.parametrize("refused", [False, True])
def test_an_older_token_is_not_used_while_there_is_a_better_one(
    refused: bool, sandbox: Sandbox, later: Callable[[float], None]
) -> None:
    """Before expiry the one in use goes on, though it cannot be renewed; after it, one that can be renewed is."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    worker = without_password(sandbox, store, token=Token("dead", issued_at=1.0))
    assert worker.get(ECHO).status_code == 200
    if refused:
        sandbox.answer_next(400, body={"error": "invalid_grant"}, path=CALLS)
    else:
        sandbox.expire_tokens("alice")
    for seconds in (3550, 20, 20):
        later(seconds if refused else 0)
        assert worker.get(ECHO).status_code == 200
    assert sandbox.count(CALLS) == 2 and sandbox.count(ECHO, status=401) == (0 if refused else 1)


def test_what_was_set_aside_is_not_lost_to_a_siblings_renewal(sandbox: Sandbox) -> None:
    """A user's other grant is there when the one that siblings renewed is gone; its refusal then counts once."""
    sandbox.sticky = False
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    given = replace(sandbox.session("alice").fetch_token(), issued_at=1.0)
    worker, sibling = without_password(sandbox, store, token=given), without_password(sandbox, store)
    for session in (worker, sibling):
        session.get(ECHO)
    sandbox.expire_tokens("alice")
    for session in (sibling, worker):
        assert session.get(ECHO).status_code == 200
    sibling.revoke()
    assert worker.get(ECHO).status_code == 200
    sandbox.revoke_tokens("alice", refresh=True)
    calls = sandbox.count(CALLS)
    with pytest.raises(LoginRequiredError):
        worker.get(ECHO)
    assert sandbox.count(CALLS) == calls + 1


def test_a_token_given_is_gone_once_it_is_revoked(sandbox: Sandbox) -> None:
    """Who revokes has nothing left to renew with, and finAPI is not asked."""
    alice = without_password(sandbox, MemoryStore(), token=sandbox.session("alice").fetch_token())
    alice.get(ECHO)
    alice.revoke()
    calls = sandbox.count(CALLS)
    with pytest.raises(LoginRequiredError, match="there is no token"):
        alice.get(ECHO)
    assert sandbox.count(CALLS) == calls


@pytest.mark.parametrize("body", [{"error": "invalid_client"}, {}])
@pytest.mark.parametrize("early", [False, True])
def test_a_client_refused_once_costs_no_refresh_token(
    body: dict[str, str], early: bool, sandbox: Sandbox, later: Callable[[float], None]
) -> None:
    """The token that a worker started with is long dead: it takes no place of the one that may be renewed again."""
    sandbox.rotate_refresh_tokens = True
    store, first = MemoryStore(), sandbox.session("alice").fetch_token()
    seed = {"access_token": first.access_token, "refresh_token": first.refresh_token}
    without_password(sandbox, store, token=seed).get(ECHO)
    later(3601)
    for worker in (without_password(sandbox, store, token=seed) for _ in range(2)):
        assert worker.get(ECHO).status_code == 200
    later(3550 if early else 3601)
    sandbox.answer_next(401, body=body, path=CALLS)
    with nullcontext() if early else pytest.raises(TokenError):
        assert worker.get(ECHO).status_code == 200
    later(61)
    assert worker.get(ECHO).status_code == 200
    assert without_password(sandbox, store).get(ECHO).status_code == 200


def test_a_dead_token_that_another_worker_stores_costs_no_refresh_token(sandbox: Sandbox) -> None:
    """After a store was emptied a worker starts with its first token: who has a better refresh token keeps it."""
    sandbox.rotate_refresh_tokens = True
    store, first = MemoryStore(), sandbox.session("alice").fetch_token()
    seed = {"access_token": first.access_token, "refresh_token": first.refresh_token}
    worker = without_password(sandbox, store, token=seed)
    worker.get(ECHO)
    sandbox.expire_tokens("alice")
    worker.get(ECHO)
    store.delete(_key(worker))
    with pytest.raises(LoginRequiredError):
        without_password(sandbox, store, token=seed).get(ECHO)
    sandbox.expire_tokens("alice")
    statuses = [worker.get(ECHO).status_code for _ in range(2)]
    assert statuses[-1] == 200
    assert without_password(sandbox, store).get(ECHO).status_code == 200


def test_a_siblings_refusal_costs_no_refresh_token_that_the_store_did_not_take(
    sandbox: Sandbox, later: Callable[[float], None]
) -> None:
    """What a sibling learnt of the refresh token before says nothing of the one that replaced it."""
    sandbox.rotate_refresh_tokens = True
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    link = Link(store)
    worker, sibling = without_password(sandbox, link), without_password(sandbox, store)
    for session in (worker, sibling):
        session.get(ECHO)
    sandbox.expire_tokens("alice")
    link.up = False
    assert worker.get(ECHO).status_code == 200
    link.up = True
    with pytest.raises(LoginRequiredError):
        sibling.get(ECHO)
    later(11)
    for session in (worker, sibling):
        assert session.get(ECHO).status_code == 200


def test_an_outage_of_the_store_with_many_users_loses_nobodys_token(sandbox: Sandbox) -> None:
    """A thousand others do not push out of memory what the store did not take."""
    sandbox.rotate_refresh_tokens = True
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    link = Link(store)
    worker = without_password(sandbox, link)
    worker.get(ECHO)
    link.up = False
    sandbox.expire_tokens("alice")
    worker.get(ECHO)
    link.up = True
    for number in range(1001):
        worker._ledger.load(str(number))
    worker.close()
    assert without_password(sandbox, store).get(ECHO).status_code == 200


@pytest.mark.parametrize("stored", ["known to her", "taken in place of what was given"])
def test_revoke_leaves_no_grant_alive(stored: str, sandbox: Sandbox) -> None:
    """Of a user with a token given beside the stored one nothing is left, in use or not."""
    sandbox.sticky = False
    store = MemoryStore()
    tokens = [sandbox.session("alice", store=store).fetch_token(), sandbox.session("alice").fetch_token()]
    given = replace(tokens[1], issued_at=1.0)
    alice = without_password(sandbox, store, token=given)
    if stored != "known to her":
        alice.get(ECHO)
    alice.revoke()
    with pytest.raises(LoginRequiredError, match="there is no token"):
        alice.get(ECHO)
    for token in tokens:
        with pytest.raises(LoginRequiredError):
            without_password(sandbox, MemoryStore(), token=token).get(ECHO)


def test_a_token_given_is_not_stored_for_a_password_that_it_was_not_had_with(sandbox: Sandbox) -> None:
    """Renewed in place of a stored one that was refused, it does not serve who knows only the old password."""
    store, old = MemoryStore(), sandbox.users["alice"].password
    sandbox.session("alice", store=store).fetch_token()
    sandbox.change_password("alice", "new-password")
    fresh = sandbox.session("alice", "new-password").fetch_token()
    sandbox.expire_tokens("alice")
    seed = {"access_token": fresh.access_token, "refresh_token": fresh.refresh_token}
    assert without_password(sandbox, store, token=seed).get(ECHO).status_code == 200
    with pytest.raises(InvalidGrantError):
        sandbox.session("alice", old, store=store).get(ECHO)


def test_a_refused_password_is_remembered_over_an_outage(sandbox: Sandbox) -> None:
    """That the store took nothing, and a sibling's token meanwhile, does not bring it to finAPI again."""
    store = MemoryStore()
    link = Link(store)
    good, bad = sandbox.session("alice", store=store), sandbox.session("alice", "wrong", store=link)
    good.get(ECHO)
    link.up = False
    with pytest.raises(InvalidGrantError):
        bad.get(ECHO)
    sandbox.expire_tokens("alice")
    good.get(ECHO)
    link.up = True
    for session in (bad, bad, sandbox.session("alice", "wrong", store=store)):
        with pytest.raises(InvalidGrantError):
            session.get(ECHO)
    assert sandbox.users["alice"].failed_logins == 1
    assert good.get(ECHO).status_code == 200


def test_a_process_that_was_cut_off_leaves_a_siblings_refusal_alone(sandbox: Sandbox) -> None:
    """Its newer token is stored together with the refusal that it did not know of."""
    store = MemoryStore()
    link = Link(store)
    cut_off = sandbox.session("alice", store=link)
    cut_off.get(ECHO)
    link.up = False
    with pytest.raises(InvalidGrantError):
        sandbox.session("alice", "wrong", store=store).get(ECHO)
    sandbox.expire_tokens("alice")
    time.sleep(0.01)
    cut_off.get(ECHO)
    link.up = True
    cut_off.close()
    with pytest.raises(InvalidGrantError):
        sandbox.session("alice", "wrong", store=store).get(ECHO)
    assert sandbox.users["alice"].failed_logins == 1
    calls = sandbox.count(CALLS)
    assert sandbox.session("alice", store=store).get(ECHO).status_code == 200
    assert sandbox.count(CALLS) == calls


def test_a_password_refused_while_the_store_is_down_at_start_is_sent_once(sandbox: Sandbox) -> None:
    """That the store has a token of that password from before does not mean that finAPI takes it again."""
    store, old = MemoryStore(), sandbox.users["alice"].password
    sandbox.session("alice", store=store).fetch_token()
    sandbox.change_password("alice", "new-password")
    link = Link(store)
    link.up = False
    worker = sandbox.session("alice", old, store=link)
    with pytest.raises(InvalidGrantError):
        worker.get(ECHO)
    link.up = True
    for _ in range(2):
        with suppress(InvalidGrantError):
            worker.get(ECHO)
    assert sandbox.users["alice"].failed_logins == 1


@pytest.mark.parametrize(("renewable", "calls"), [(False, 2), (True, 2), (True, 0)])
def test_a_token_given_while_the_store_is_down_at_start_harms_no_stored_one(
    renewable: bool, calls: int, sandbox: Sandbox
) -> None:
    """What others live on is there when the store is back: no dead token, nor one without renewal, takes its place."""
    sandbox.sticky = False
    first = sandbox.session("alice").fetch_token()
    if renewable:
        sandbox.revoke_tokens("alice", refresh=True)
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    seed = {"access_token": first.access_token, "refresh_token": first.refresh_token if renewable else None}
    link = Link(store)
    link.up = False
    worker = without_password(sandbox, link, token=seed)
    worker.fetch_token()
    for up in (False, True)[:calls]:
        link.up = up
        with suppress(LoginRequiredError):
            worker.get(ECHO)
    link.up = True
    worker.close()
    sandbox.expire_tokens("alice")
    assert without_password(sandbox, store).get(ECHO).status_code == 200


class Slow(Link):
    """A connection that takes its time to fail."""

    def set(self, key: str, value: str) -> None:
        """Write there, or fail after half a second."""
        if not self.up:
            time.sleep(0.5)
        super().set(key, value)


def test_two_threads_on_a_store_that_fails_slowly_lose_no_refresh_token(sandbox: Sandbox) -> None:
    """A session without a password, that comes while one with it waits for the store, uses what that one has had."""
    sandbox.rotate_refresh_tokens = True
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    link = Slow(store)
    root = sandbox.session(store=link)
    pair = [root.user("alice", "her-password"), root.user("alice")]
    for session in pair:
        session.get(ECHO)
    link.up = False
    sandbox.expire_tokens("alice")

    def call(number: int) -> int:
        time.sleep(0.15 * number)
        return pair[number].get(ECHO).status_code

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(call, range(2))) == [200, 200]
    link.up = True
    root.close()
    assert without_password(sandbox, store).get(ECHO).status_code == 200


def test_a_user_who_logs_in_again_renews_at_once(sandbox: Sandbox) -> None:
    """That an older refresh token was refused says nothing of the new one."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    worker = without_password(sandbox, store)
    worker.get(ECHO)
    sandbox.change_password("alice", "new-password")
    with pytest.raises(LoginRequiredError):
        worker.get(ECHO)
    sandbox.session("alice", "new-password", store=store).fetch_token()
    assert worker.get(ECHO).status_code == 200
    sandbox.expire_tokens("alice")
    assert worker.get(ECHO).status_code == 200


def test_a_clock_put_right_does_not_keep_a_worker_from_a_stored_token(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record of the time when the clock was fast does not outlast its tokens for who has no password."""
    store, right = MemoryStore(), time.time
    with monkeypatch.context() as fast:
        fast.setattr(time, "time", lambda: right() + 1800)
        sandbox.session("alice", store=store).fetch_token()
        worker = without_password(sandbox, store)
        worker.get(ECHO)
    sibling = sandbox.session("alice", store=store)
    sibling.revoke()
    sibling.fetch_token()
    with suppress(LoginRequiredError):
        worker.get(ECHO)
    assert worker.get(ECHO).status_code == 200


def test_a_clock_put_right_does_not_lose_a_refresh_token(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a store which was down did not take outlives a stored token that seems to last longer, but is dead."""
    sandbox.rotate_refresh_tokens = True
    store, right = MemoryStore(), time.time
    link = Link(store)
    with monkeypatch.context() as fast:
        fast.setattr(time, "time", lambda: right() + 1800)
        sandbox.session("alice", store=store).fetch_token()
    worker = without_password(sandbox, link)
    worker.get(ECHO)
    link.up = False
    sandbox.expire_tokens("alice")
    assert worker.get(ECHO).status_code == 200
    link.up = True
    worker.close()
    assert without_password(sandbox, store).get(ECHO).status_code == 200


@pytest.mark.parametrize(
    ("status", "code", "spent"),
    [
        (400, None, False),
        (400, "invalid_grant", True),
        (400, "invalid_client", False),
        (400, "BAD_REQUEST", True),
        (401, "invalid_token", True),
        (401, "INVALID_TOKEN", True),
        (401, "INVALID_CLIENT", False),
        (401, "invalid_grant", True),
        (401, "invalid_client", False),
        (401, None, False),
        (401, "unauthorized", False),
        (200, "invalid_grant", True),
    ],
)
def test_which_refusals_spend_a_refresh_token(status: int, code: str | None, spent: bool, sandbox: Sandbox) -> None:
    """One that may be about the client keeps it: a user without a password would have to log in again for nothing."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    alice = without_password(sandbox, store)
    alice.get(ECHO)
    sandbox.revoke_tokens("alice")
    body: dict[str, object] = {} if code is None else {"error": code}
    sandbox.answer_next(status, body=body, path=CALLS)
    with pytest.raises(TokenError):
        alice.get(ECHO)
    held = alice._own.held
    assert held is not None and (held.refresh_token is None) is spent


def _sealed() -> str:
    class Sealed(Exception):
        pass

    raise Sealed


def test_a_copy_starts_anew(sandbox: Sandbox) -> None:
    """Neither whose turn it was, nor what a vault raised, goes along into a copy or a pickle."""
    copies: list[TokenSource] = []
    session = sandbox.session(on_event=lambda _: copies.append(copy.deepcopy(session._own)))
    session.fetch_token()
    assert copies[0].token() is not None
    sealed = FinapiSession("id", _sealed, environment=sandbox.environment)
    with pytest.raises(Exception) as caught:  # noqa: B017 - its class is local
        sealed.fetch_token()
    assert type(caught.value).__name__ == "Sealed"
    assert pickle.loads(pickle.dumps(sealed))._own._secretless is None


# --- nothing leaks, nothing hangs --------------------------------------------------------------------------------


def test_a_pickled_answer_holds_no_secret(sandbox: Sandbox) -> None:
    """A cache or a queue that pickles answers, or requests' errors, gets no more than with requests itself."""
    alice = sandbox.session("alice", lambda: "her-password", on_event=lambda _: None)
    answer = alice.get(ECHO)
    token = alice.fetch_token()
    sandbox.answer_next("drop", path=ECHO)
    with pytest.raises(requests.ConnectionError) as caught:
        alice.get(ECHO)
    for thing in (answer, caught.value):
        pickled = pickle.dumps(thing)
        for secret in (sandbox.client_secret, "her-password", token.refresh_token or ""):
            assert secret.encode() not in pickled
    again = pickle.loads(pickle.dumps(answer))
    assert again.json() == answer.json()
    assert requests.Session().send(again.request, verify=sandbox.ca_bundle).status_code == 200


def test_a_deep_copy_of_a_request_is_healed_too(sandbox: Sandbox) -> None:
    """Only a pickle leaves the session behind."""
    session = sandbox.session()
    prepared = copy.deepcopy(session.prepare_request(requests.Request("GET", ECHO)))
    sandbox.revoke_tokens()
    assert session.send(prepared).status_code == 200
    pickled = pickle.loads(pickle.dumps(prepared))
    for _ in range(2):
        session.auth(pickled)  # type: ignore[operator]
    assert len(pickled.hooks["response"]) == 1


class Heavy:
    """Something in a frame of the caller."""


def test_what_a_vault_raised_keeps_no_frame_alive(sandbox: Sandbox) -> None:
    """The error that waiting threads share is a copy without a traceback, if it can be copied."""
    heavy: list[weakref.ref[Heavy]] = []

    class Odd(Exception):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(one)

    errors: list[Exception] = [LookupError("sealed"), Odd("a", "b")]

    def vault() -> str:
        raise errors[0]

    session = sandbox.session(client_secret=vault)

    def handler() -> None:
        local = Heavy()
        heavy.append(weakref.ref(local))
        with suppress(LookupError, Odd):
            session.fetch_token()

    handler()
    shared, raised = session._own._secretless, errors.pop(0)
    assert shared is not None and type(shared.error) is LookupError and shared.error is not raised
    del raised
    gc.collect()
    assert heavy[0]() is None
    handler()
    assert session._own._secretless is not None and session._own._secretless.again() is errors[0]


def test_a_listener_that_uses_a_twin_in_an_early_renewal_waits_for_nobody(sandbox: Sandbox) -> None:
    """Another session of the user goes on with the token that is still good, at no token call of its own."""
    sandbox.kill_on_refresh = False
    inner: list[tuple[int, float]] = []

    def listen(event: TokenEvent) -> None:
        if event.kind == "renewed" and not inner:
            started = time.monotonic()
            inner.append((twin.get(ECHO).status_code, time.monotonic() - started))

    client = sandbox.session(on_event=listen, store=MemoryStore(lock_timeout=3))
    alice, twin = (client.user("alice", "her-password") for _ in range(2))
    now = time.time()
    for session in (alice, twin):
        session.get(ECHO)
        record = session._own._record
        assert record.token is not None
        token = replace(record.token, expires_at=now + 20, issued_at=now - 3600)
        session._own._hold(replace(record, token=token))
        session._ledger.save(_key(session), session._own._record)
    assert alice.get(ECHO).status_code == 200
    assert inner[0][0] == 200 and inner[0][1] < 1
    assert sandbox.count(CALLS, grant_type="refresh_token") == 1


class TimeIsUp(Exception):
    """What a signal handler raises, as Celery's does."""


def test_a_time_limit_by_signal_comes_through(sandbox: Sandbox) -> None:
    """What a handler raises in the middle of a token call is the caller's, not an unreadable answer to try again."""
    sandbox.latency = {CALLS: 1.0}
    _limited(0.3, sandbox.session().fetch_token)


def test_a_listener_that_calls_in_an_early_renewal_is_told_at_once(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """It would wait for itself; the library says what it must not do, and the renewal goes on."""
    said: list[str] = []

    def listen(event: TokenEvent) -> None:
        if event.kind == "renewed":
            try:
                alice._own.renew(alice._own._record.token.authorization)  # type: ignore[union-attr]
            except RuntimeError as error:
                said.append(str(error))

    alice = sandbox.session("alice", on_event=listen)
    alice.get(ECHO)
    token = alice._own._record.token
    assert token is not None
    now = time.time()
    alice._own._hold(replace(alice._own._record, token=replace(token, expires_at=now + 20, issued_at=now - 3600)))
    alice._ledger.save(_key(alice), alice._own._record)
    assert alice.get(ECHO).status_code == 200
    assert said == ["on_event and callable secrets must not ask for a token while one is being asked for"]


@pytest.mark.parametrize("times", [1, 9])
def test_close_tries_each_revocation_once(times: int, sandbox: Sandbox) -> None:
    """An exit does not wait for a finAPI that is overloaded."""
    client = sandbox.session()
    for session in (client, client.user("alice", "her-password")):
        session.get(ECHO)
    sandbox.answer_next(503, path="/oauth/revoke", times=times)
    client.close()
    assert sandbox.count("/oauth/revoke") == 2


def test_close_does_not_wait_for_a_finapi_that_is_gone(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """After two revocations in a row without an answer no other one is tried, and the log says what lives on."""
    client = sandbox.session()
    users = [client.user("alice", "her-password"), client.user(sandbox.username, sandbox.password)]
    for session in (client, *users):
        session.get(ECHO)
    sandbox.answer_next("drop", path="/oauth/revoke", times=9)
    client.close()
    assert sandbox.count("/oauth/revoke") == 2
    assert caplog.text.count("RevocationError on close; the token lives on") == 2
    assert caplog.text.count("finAPI does not answer on close; the token lives on") == 1


def test_close_goes_on_after_one_dropped_connection(sandbox: Sandbox) -> None:
    """One revocation without an answer says nothing of the next."""
    client = sandbox.session()
    for session in (client, client.user("alice", "her-password"), client.user(sandbox.username, sandbox.password)):
        session.get(ECHO)
    sandbox.answer_next("drop", path="/oauth/revoke")
    client.close()
    assert sandbox.count("/oauth/revoke") == 3


def test_close_gives_up_where_there_is_no_token_to_revoke_with(sandbox: Sandbox) -> None:
    """Where the client's own token cannot be had, nothing can be revoked, and nobody waits for each user."""
    client = sandbox.session()
    for name in ("bert", "carla"):
        sandbox.add_user(name, "password")
    users = [client.user(name, "password") for name in ("bert", "carla")]
    users += [client.user("alice", "her-password"), client.user(sandbox.username, sandbox.password)]
    for session in users:
        session.get(ECHO)
    sandbox.answer_next(503, path=CALLS, times=9)
    client.close()
    assert sandbox.count(CALLS, status=503) == 1 and sandbox.count("/oauth/revoke") == 0


def test_close_while_other_threads_make_users(sandbox: Sandbox) -> None:
    """close() raises nothing and closes everything, whoever makes sessions meanwhile."""
    client = sandbox.session()
    interval, stop, made = sys.getswitchinterval(), threading.Event(), []

    def make() -> None:
        while not stop.is_set():
            made.append(client.user("alice", "her-password"))
            del made[:-20]

    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=make)
    thread.start()
    try:
        for _ in range(2000):
            client.close()
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


# --- as requests does it -----------------------------------------------------------------------------------------


class Bare(BaseAdapter):
    """An adapter that says of an answer no more than requests itself needs."""

    def __init__(self, inner: BaseAdapter) -> None:
        super().__init__()
        self.inner = inner

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Send by the adapter inside, and forget how."""
        answer = self.inner.send(request, *args, **options)
        del answer.connection  # type: ignore[attr-defined]
        return answer

    def close(self) -> None:
        """Close the adapter inside."""
        self.inner.close()


def test_an_adapter_that_does_not_say_how_it_sent(sandbox: Sandbox) -> None:
    """A 401 that cannot be sent again is returned, and the next call has a new token."""
    session = sandbox.session()
    session.mount("https://", Bare(session.get_adapter(sandbox.base_url)))
    session.get(ECHO)
    sandbox.revoke_tokens()
    assert [session.get(ECHO).status_code for _ in range(2)] == [401, 200]


def test_no_url_is_an_error_as_in_requests(sandbox: Sandbox) -> None:
    """Nothing is sent for a URL that is ``None``."""
    with pytest.raises(requests.exceptions.MissingSchema):
        sandbox.session().get(None)  # type: ignore[arg-type]
    assert sandbox.calls == []


def test_parameters_of_a_session_may_be_text(sandbox: Sandbox) -> None:
    """A user's session has the client's parameters, in whichever form requests takes them."""
    client = sandbox.session()
    client.params = "search=Sparkasse"  # type: ignore[assignment]
    assert client.user("alice", "her-password").params == "search=Sparkasse"


# --- whose token heals, what a gateway says, what hangs, who is kept alive ---------------------------------------


def test_a_request_given_to_another_user_is_healed_with_hers(sandbox: Sandbox) -> None:
    """The auth that a request was given last is the only one that answers for it: nobody reads another's accounts."""
    client = sandbox.session()
    alice, anna = client.user("alice", "her-password"), client.user(sandbox.username, sandbox.password)
    prepared = alice.prepare_request(requests.Request("GET", ECHO))
    assert alice.send(prepared).json()["username"] == "alice"
    prepared.prepare_auth(anna.auth)
    assert len(prepared.hooks["response"]) == 1
    assert anna.send(prepared).json()["username"] == sandbox.username
    sandbox.revoke_tokens(sandbox.username)
    answer = anna.send(prepared)
    assert answer.json()["username"] == sandbox.username and [kept.status_code for kept in answer.history] == [401]


def test_copies_of_a_request_have_each_their_own_user(sandbox: Sandbox) -> None:
    """A prepared request may be copied and given to each user in turn."""
    client = sandbox.session()
    template = client.prepare_request(requests.Request("GET", ECHO))
    for user in (client.user("alice", "her-password"), client.user(sandbox.username, sandbox.password)):
        mine = template.copy()
        mine.prepare_auth(user.auth)
        sandbox.revoke_tokens()
        assert user.send(mine).json()["username"] == user._own.identity.username
    assert bearer_auth_of(template) is client.auth


def test_the_auth_of_another_environment_works_here_too(sandbox: Sandbox) -> None:
    """What may carry a token to an address is for the token's own environment to say."""
    with Sandbox() as elsewhere, elsewhere.session() as other:
        session = sandbox.session()
        session.verify = elsewhere.ca_bundle
        answer = session.get(f"{elsewhere.base_url}{ECHO}", auth=other.auth)
        assert answer.status_code == 200 and elsewhere.count(ECHO) == 1
        assert session.get(f"{elsewhere.base_url}{ECHO}").status_code == 401


def test_a_400_of_a_gateway_costs_no_login(sandbox: Sandbox) -> None:
    """An answer that names no error is not finAPI's: the refresh token is kept, and serves when the gateway is well."""
    store = MemoryStore()
    with_password = sandbox.session("alice", store=store)
    with_password.get(ECHO)
    for session, asked in ((with_password, 2), (without_password(sandbox, store), 1)):
        sandbox.revoke_tokens("alice")
        sandbox.answer_next(400, body="<html>400 Bad Request</html>", path=CALLS, times=asked)
        with pytest.raises(TokenError):
            session.get(ECHO)
        with freeze_time(datetime.now(timezone.utc) + timedelta(seconds=61), tick=True):
            assert session.get(ECHO).status_code == 200
    assert sandbox.count(CALLS, grant_type="password", status=200) == 1


def _limited(seconds: float, act: Callable[[], object], error: Exception = TimeIsUp("soft time limit")) -> None:
    """Let *act* be broken off by *error* after so many *seconds*, as a task queue does."""

    def ring(*_: object) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with pytest.raises(type(error), match=str(error)):
            act()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Sluggish(MemoryStore):
    """A store of which one method takes its time."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def get(self, key: str) -> str | None:
        """Return the value, in time."""
        self._pause("get")
        return super().get(key)

    def set(self, key: str, value: str) -> None:
        """Keep the value, in time."""
        self._pause("set")
        super().set(key, value)

    def lock(self, key: str) -> Any:
        """Return the lock, in time."""
        self._pause("lock")
        return super().lock(key)

    def _pause(self, method: str) -> None:
        if method == self.method:
            time.sleep(1)


@pytest.mark.parametrize("method", ["get", "set", "lock"])
def test_a_time_limit_comes_through_a_store(sandbox: Sandbox, method: str) -> None:
    """A task that is to end while a store is slow ends; the next one works."""
    session = sandbox.session(store=Sluggish(method))
    _limited(0.3, session.fetch_token)
    assert session.get(ECHO).status_code == 200


def test_a_time_limit_comes_through_an_early_renewal(sandbox: Sandbox) -> None:
    """Nobody notices that an early renewal fails, save who was to stop."""
    sandbox.lifetime = 30
    session = sandbox.session(sandbox.username, leeway=3600)
    token = session.fetch_token()
    session._own._hold(replace(session._own._record, token=replace(token, issued_at=time.time() - 9999)))
    session._ledger.save(_key(session), session._own._record)
    sandbox.latency = {CALLS: 1.0}
    _limited(0.3, lambda: session.get(ECHO))


@pytest.mark.parametrize("path", ["/oauth/revoke", CALLS])
def test_a_time_limit_comes_through_close(sandbox: Sandbox, path: str) -> None:
    """close() raises nothing of its own, and does not keep what a signal says."""
    session = sandbox.session("alice")
    session.get(ECHO)
    sandbox.latency = {path: 1.0}
    _limited(0.3, session.close)


def test_a_time_limit_comes_through_a_listener(sandbox: Sandbox) -> None:
    """A listener's own errors cost nothing; a signal's that strikes there is not one of them."""
    _limited(0.3, sandbox.session(on_event=lambda _: time.sleep(1)).fetch_token)


def test_a_time_limit_may_be_a_timeout_error(sandbox: Sandbox) -> None:
    """Many handlers raise the builtin TimeoutError, which is no failure of finAPI's endpoint either."""

    class Slow(BaseAdapter):
        def send(self, *_: object, **__: object) -> requests.Response:
            time.sleep(1)
            return requests.Response()

        def close(self) -> None:
            """Have nothing to close."""

    session = sandbox.session()
    session.mount("https://", Slow())
    _limited(0.3, session.fetch_token, TimeoutError("my limit"))


class Limit:
    """A handler that is a method, as RQ's is."""

    def ring(self, *_: object) -> None:
        """Raise."""
        raise TimeIsUp("soft time limit")


@pytest.mark.parametrize("handler", [Limit().ring, partial(Limit.ring, Limit())])
def test_whatever_a_handler_is_made_of_it_is_known(handler: Callable[..., None]) -> None:
    """Task queues have functions, methods and partials for handlers; what anybody else raises is not a signal's."""
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(TimeIsUp) as caught:
            signal.raise_signal(signal.SIGALRM)
        with pytest.raises(OSError) as other:
            raise OSError
        assert raised_by_signal_handler(caught.value) and not raised_by_signal_handler(other.value)
    finally:
        signal.signal(signal.SIGALRM, before)


class Account:
    """An object of the caller's, whose method gives the password of the session that it holds."""

    def __init__(self, client: FinapiSession) -> None:
        self.session = client.user("alice", self.password)

    def password(self) -> str:
        """Return the password."""
        return "her-password"


def test_a_session_that_its_password_refers_to_is_collected(sandbox: Sandbox) -> None:
    """Neither the session nor the caller's object outlives its use, and close() still gives the token back."""
    client = sandbox.session()
    account = Account(client)
    account.session.get(ECHO)
    gone = weakref.ref(account.session)
    del account
    for _ in range(2):
        gc.collect()
    # What a finalizer revives has no weak reference any more, and is collected in the second turn or never.
    assert gone() is None and not [each for each in gc.get_objects() if type(each) is Account]
    client.close()
    assert sandbox.count("/oauth/revoke", status=200) == 2


def test_the_end_of_a_program_is_quiet(sandbox: Sandbox, tmp_path: Path) -> None:
    """Sessions that nobody closed, one of which its password refers to, end without a word."""
    script = tmp_path / "script.py"
    script.write_text(f"""
from finapi_session import FinapiSession

class Account:
    def __init__(self, client):
        self.session = client.user("alice", self.password)

    def password(self):
        return "her-password"

client = FinapiSession({sandbox.client_id!r}, {sandbox.client_secret!r}, environment={sandbox.base_url!r})
client.verify, client.trust_env = {sandbox.ca_bundle!r}, False
accounts = [Account(client), client]
accounts.append(accounts)
print(accounts[0].session.get({ECHO!r}).status_code)
""")
    command = [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", str(script)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("200\n", "")


@pytest.mark.parametrize("method", ["get", "set"])
def test_a_store_that_hangs_is_waited_for_once(sandbox: Sandbox, method: str) -> None:
    """After one call has waited for it, the others go on with what is in memory, and one tries it again later."""

    class Hanging(MemoryStore):
        asked = locked = 0
        hangs = True

        def _hang(self, verb: str) -> None:
            if self.hangs and verb == method:
                self.asked += 1
                time.sleep(1.1)
                raise OSError("no answer")

        def get(self, key: str) -> str | None:
            self._hang("get")
            return super().get(key)

        def set(self, key: str, value: str) -> None:
            self._hang("set")
            super().set(key, value)

        def lock(self, key: str) -> Any:
            self.locked += 1
            return super().lock(key)

    store = Hanging()
    client = sandbox.session(store=store)
    started = time.monotonic()
    for _ in range(5):
        client.user("alice", "her-password").get(ECHO)
        client.get(ECHO)
    assert time.monotonic() - started < 3 and store.asked == 1 and store.locked == (method == "set")
    assert sandbox.count(CALLS) == 2
    store.hangs = False
    client._ledger._rest_until = time.monotonic() - 1
    client._own._held = None
    client.get(ECHO)
    client.close()
    assert store.asked == 1 and len(store._values) == 2 and sandbox.count(CALLS) == 2


def test_only_one_tries_a_store_that_hung(sandbox: Sandbox) -> None:
    """When its rest is over, one caller waits for it, not all."""
    asked: list[float] = []

    class Hanging(MemoryStore):
        def get(self, key: str) -> str | None:
            asked.append(time.monotonic())
            time.sleep(1.1)
            raise OSError("no answer")

    client = sandbox.session(store=Hanging())
    client.get(ECHO)
    client._ledger._rest_until = time.monotonic() - 1
    users = [client.user("alice", "her-password") for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert {answer.status_code for answer in pool.map(lambda user: user.get(ECHO), users)} == {200}
    assert len(asked) == 2


def test_the_reason_of_a_folder_that_is_refused_is_told(
    sandbox: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What to do about a store's folder is in the warning, as no call fails of it."""
    tmp_path.chmod(0o777)
    assert sandbox.session(store=FileStore(tmp_path)).get(ECHO).status_code == 200
    assert f"run 'chmod 700 {tmp_path}'" in caplog.text


def test_settings_may_be_none(sandbox: Sandbox) -> None:
    """What requests takes for no setting is none for users' sessions, too."""
    client = sandbox.session()
    for setting in ("proxies", "hooks", "headers", "params"):
        setattr(client, setting, None)
    assert client.user("alice", "her-password").get(ECHO).status_code == 200
    assert client.get(ECHO).status_code == 200


def test_an_error_of_the_api_tells_when_to_come_back(sandbox: Sandbox) -> None:
    """A Retry-After is told in seconds, as it is of a token call."""
    session = sandbox.session(raise_for_error=True)
    sandbox.answer_next(429, headers={"Retry-After": "120"}, path=ECHO)
    with pytest.raises(ApiError, match="Try again in 120 s") as caught:
        session.get(ECHO)
    assert caught.value.retry_after == 120
