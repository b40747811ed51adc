"""The session as DESIGN shows it: one story on one connection, what is kept, what is given back."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest
import requests
import requests_mock

from finapi_session import (
    BearerAuth,
    Environment,
    FileStore,
    FinapiSession,
    InvalidGrantError,
    LoginRequiredError,
    MemoryStore,
    RevocationError,
    Token,
    TokenEndpointError,
    TokenError,
    TokenEvent,
)
from finapi_session.environment import LIVE, SANDBOX
from finapi_session.testing import Sandbox

from .logins import keys, stored

ECHO = "/api/v2/tests/echo"


def test_the_whole_story_on_one_connection(sandbox: Sandbox) -> None:
    """Client, user, a healed 401 and both revocations make no call too many, on one connection but for the login."""
    with sandbox.session() as client:
        banks = client.get("/api/v2/banks", params={"search": "Sparkasse"})
        with client.user("alice", "her-password") as alice:
            assert alice.get("/api/v2/accounts").ok
            sandbox.revoke_tokens("alice")
            accounts = alice.get("/api/v2/accounts")
    assert banks.json()["banks"] and accounts.json()["accounts"]
    assert sandbox.connections == 2  # the password has one of its own
    assert [(call.path, call.status, call.kind) for call in sandbox.calls] == [
        ("/oauth/token", 200, "client"),
        ("/api/v2/banks", 200, "client"),
        ("/oauth/token", 200, "user"),
        ("/api/v2/accounts", 200, "user"),
        ("/api/v2/accounts", 401, None),
        ("/oauth/token", 200, "user"),
        ("/api/v2/accounts", 200, "user"),
        ("/oauth/revoke", 200, "client"),
        ("/oauth/revoke", 200, "client"),
    ]
    assert [call.revoked for call in sandbox.calls[-2:]] == ["alice", "client"]


def test_the_first_fetch_is_lazy(sandbox: Sandbox) -> None:
    """Making and closing sessions sends nothing."""
    with sandbox.session() as client, client.user("alice", "her-password"):
        pass
    sandbox.session("alice").close()
    assert sandbox.calls == []


def test_a_user_alone_revokes_hers_and_the_clients(sandbox: Sandbox) -> None:
    """A session made for a user gets the client's token to revoke hers with, and gives it back as well."""
    with sandbox.session("alice") as alice:
        alice.get(ECHO)
    assert [call.revoked for call in sandbox.calls if call.path == "/oauth/revoke"] == ["alice", "client"]
    assert sandbox.connections == 1


def test_closing_the_parent_closes_its_users(sandbox: Sandbox) -> None:
    """Users whose sessions were left open are revoked before the client."""
    client = sandbox.session()
    alice = client.user("alice", "her-password")
    anna = alice.user(sandbox.username, sandbox.password)
    for session in (client, alice, anna):
        session.get(ECHO)
    client.close()
    revoked = [call.revoked for call in sandbox.calls if call.path == "/oauth/revoke"]
    assert sorted(revoked[:2]) == ["alice", sandbox.username] and revoked[2:] == ["client"]


def test_closing_gives_back_the_tokens_of_users_whose_sessions_are_gone(sandbox: Sandbox) -> None:
    """In the style of a request handler nobody holds the user's session, and her token is revoked all the same."""
    with sandbox.session() as client:
        for _ in range(3):
            assert client.user("alice", "her-password").get(ECHO).ok
        client.user("bert", "password")
        assert len(client._left) == 1
    assert [(call.path, call.revoked) for call in sandbox.calls if call.revoked] == [
        ("/oauth/revoke", "alice"),
        ("/oauth/revoke", "client"),
    ]
    assert sandbox.count("/oauth/token") == 2


def test_a_session_of_ones_own_memory_keeps_nothing_of_users_who_left(sandbox: Sandbox) -> None:
    """Closed or only dropped, and revoked: a server that serves many users keeps nothing of them, nor of itself."""
    client = sandbox.session()
    for number in range(3):
        sandbox.add_user(f"user{number}", "password")
        with client.user(f"user{number}", "password") as user:
            user.get(ECHO)
    store = client._cells.fallback.store
    assert repr(store) == "<MemoryStore with 1 values>" and len(client._cells._cells) == 1
    client.user("alice", "her-password").get(ECHO)
    assert repr(store) == "<MemoryStore with 2 values>"
    client.close()
    assert repr(store) == "<MemoryStore with 0 values>"
    assert (client._cells._cells, client._left) == ({}, {})
    assert client.user("alice", "her-password").get(ECHO).ok


def test_what_was_refused_outlasts_the_users_sessions(sandbox: Sandbox) -> None:
    """A wrong password is not sent again by the next session, though the one with the right one was closed."""
    with sandbox.session() as client:
        for _ in range(3):
            with pytest.raises(InvalidGrantError):
                client.user("alice", "wrong-password").fetch_token()
            with client.user("alice", "her-password") as alice:
                alice.fetch_token()
    assert sandbox.count("/oauth/token", status=400) == 1


def test_a_token_that_was_not_revoked_is_kept(sandbox: Sandbox) -> None:
    """Whose revocation fails is tried again by the next close, a dropped user's too."""
    client = sandbox.session()
    client.user("alice", "her-password").get(ECHO)
    sandbox.answer_next(503, path="/oauth/revoke", times=2)
    client.close()
    assert sandbox.count("/oauth/revoke", status=200) == 0 and len(client._left) == 1
    client.close()
    assert [call.revoked for call in sandbox.calls if call.revoked and call.status == 200] == ["alice", "client"]


def test_a_closed_session_leaves_her_other_one_alone(sandbox: Sandbox) -> None:
    """Another session of the same user, left without a token, gets one of its own; what it has then is kept."""
    with sandbox.session() as client:
        other = client.user("alice", "her-password")
        other.get(ECHO)
        with client.user("alice", "her-password") as alice:
            alice.get(ECHO)
        assert other.get(ECHO).ok and client.user("alice").get(ECHO).ok
    assert sandbox.count("/oauth/token", username="alice") == 2 and sandbox.count(ECHO, status=401) == 0


@pytest.mark.parametrize("once_more", [True, False])
def test_a_token_that_came_after_the_revocation_is_kept(sandbox: Sandbox, once_more: bool) -> None:
    """A session that is closed without a token of its own takes none from those who were dropped since."""
    with sandbox.session() as client:
        alice = client.user("alice", "her-password")
        alice.get(ECHO)
        alice.revoke()
        client.user("alice", "her-password").get(ECHO)
        alice.close()
        assert not once_more or client.user("alice").get(ECHO).ok
    assert sandbox.count("/oauth/token", username="alice") == 2
    assert sandbox.count("/oauth/revoke", status=200, revoked="alice") == 2


def test_a_pause_outlasts_the_users_sessions(sandbox: Sandbox) -> None:
    """Where the API rejects all tokens, a session for each request does not renew each time."""
    sandbox.answer(ECHO, 401)
    with sandbox.session() as client:
        for _ in range(5):
            with client.user("alice", "her-password") as alice:
                assert alice.get(ECHO).status_code == 401
    assert sandbox.count("/oauth/token", username="alice", grant_type="refresh_token") <= 2


def test_a_given_store_keeps_hashes_of_what_was_revoked(sandbox: Sandbox) -> None:
    """Others may share it, and must not bring a revoked token back."""
    store = MemoryStore()
    with sandbox.session("alice", store=store, revoke_on_close=True) as alice:
        token = alice.fetch_token()
    assert [grant for grant in stored(sandbox, store)] == [] and store.get(keys(sandbox)[0]) is not None
    assert token.access_token not in str(store.get(keys(sandbox)[0]))


def test_a_session_works_again_after_close(sandbox: Sandbox) -> None:
    """As with requests, a closed session may be used again; it asks for a new token, once."""
    session = sandbox.session()
    for _ in range(2):
        session.get(ECHO)
        session.close()
        session.close()
    assert sandbox.count("/oauth/token") == 2 and sandbox.count("/oauth/revoke") == 2


@pytest.mark.parametrize(("revoke_on_close", "revocations"), [(None, 0), (False, 0), (True, 1)])
def test_others_live_on_a_given_store(revoke_on_close: bool | None, revocations: int, sandbox: Sandbox) -> None:
    """With the caller's store nothing is revoked on close, unless it is asked for."""
    with sandbox.session(store=MemoryStore(), revoke_on_close=revoke_on_close) as session:
        session.get(ECHO)
    assert sandbox.count("/oauth/revoke") == revocations


def test_close_neither_raises_nor_masks(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """A failed revocation on close is logged; the caller's own exception comes through."""
    with pytest.raises(KeyError, match="mine"), sandbox.session() as session:
        session.get(ECHO)
        sandbox.answer_next(400, path="/oauth/revoke")
        raise KeyError("mine")
    assert "RevocationError on close; the token lives on" in caplog.text
    session.get(ECHO)
    sandbox.answer_next(400, path="/oauth/revoke")
    with pytest.raises(RevocationError):
        session.revoke()


def test_a_vault_that_fails_on_close_is_logged(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """What a callable secret raises while closing does not come through."""
    secrets = [sandbox.client_secret]
    with sandbox.session(client_secret=lambda: secrets.pop()) as session:
        session.fetch_token()
    assert "IndexError on close" in caplog.text


def test_an_expired_token_is_forgotten_without_a_call(sandbox: Sandbox) -> None:
    """A client token past its expiry need not be revoked."""
    old = {"access_token": "old", "expires_at": 1_700_000_000}
    with sandbox.session(token=old, revoke_on_close=True) as session:
        assert session._own.held is not None
    assert sandbox.calls == [] and session._own.held is None


def test_a_token_lives_on_between_runs(sandbox: Sandbox, bare_machine: Path) -> None:
    """A second session on the file store in the home folder makes no token call, for client and user."""
    for _ in range(2):
        with sandbox.session(store=FileStore()) as client:
            client.get(ECHO)
            with client.user("alice", "her-password") as alice:
                alice.get(ECHO)
    with sandbox.session(store=FileStore()) as client, client.user("alice") as alice:
        assert alice.get("/api/v2/accounts").ok
    assert sandbox.count("/oauth/token") == 2 and sandbox.count("/oauth/revoke") == 0
    modes = {path.stat().st_mode & 0o777 for path in bare_machine.rglob("*") if path.is_file()}
    assert modes == {0o600}


def test_a_user_without_a_password_lives_on_the_store(sandbox: Sandbox) -> None:
    """Without a password and without a token nothing can be done, and the error says what can."""
    with sandbox.session() as client, pytest.raises(LoginRequiredError, match="password, or with token="):
        client.user("alice").get(ECHO)


def test_the_auth_serves_one_call(sandbox: Sandbox) -> None:
    """`auth=alice.auth` makes one call of the client's session hers."""
    with sandbox.session() as client:
        alice = client.user("alice", "her-password")
        assert isinstance(alice.auth, BearerAuth)
        assert client.get(ECHO, auth=alice.auth).json()["kind"] == "user"
        assert client.get(ECHO).json()["kind"] == "client"


def test_fetch_token_serves_others(sandbox: Sandbox) -> None:
    """`fetch_token()` returns a valid token for whatever makes its own calls."""
    with sandbox.session("alice") as alice, requests.Session() as other:
        other.trust_env, other.verify = False, sandbox.ca_bundle
        token = alice.fetch_token()
        assert isinstance(token, Token)
        headers = {"Authorization": f"Bearer {token.access_token}"}
        assert other.get(f"{sandbox.base_url}{ECHO}", headers=headers).json()["kind"] == "user"


def test_a_user_takes_over_a_hook_that_is_no_list(sandbox: Sandbox) -> None:
    """requests takes a function where it documents a list, and so do users' sessions."""
    seen = []
    with sandbox.session() as client:
        client.hooks["response"] = lambda response, **_: seen.append(response.status_code)
        client.user("alice", "her-password").get(ECHO)
    assert seen == [200]


def test_users_have_settings_of_their_own(sandbox: Sandbox) -> None:
    """A user's session starts with the parent's settings; changing them leaves the parent's as they are."""
    with sandbox.session() as client:
        client.headers["X-Both"] = "1"
        alice = client.user("alice", "her-password")
        alice.headers["X-Hers"] = "1"
        alice.params = {"hers": "1"}
        alice.hooks["response"].append(lambda response, **_: None)
        assert client.adapters is alice.adapters and client.cookies is not alice.cookies
        assert "X-Hers" not in client.headers and alice.headers["X-Both"] == "1"
        assert client.params == {} and client.hooks["response"] == []


class Bank(FinapiSession):
    """A subclass as users write them."""

    def banks(self) -> list[str]:
        """The names of banks."""
        return [bank["name"] for bank in self.get("/api/v2/banks").json()["banks"]]


def test_subclasses_work(sandbox: Sandbox) -> None:
    """A subclass's `user()` is of the subclass, with its attributes."""
    with Bank(sandbox.client_id, sandbox.client_secret, environment=sandbox.environment) as bank:
        bank.verify = sandbox.ca_bundle
        assert bank.banks()
        assert type(bank.user("alice", "her-password")) is Bank


def test_from_env(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's variables make a session; arguments go before, and what is missing is named."""
    with pytest.raises(ValueError, match="set FINAPI_CLIENT_ID"):
        FinapiSession.from_env()
    monkeypatch.setenv("FINAPI_CLIENT_ID", sandbox.client_id)
    with pytest.raises(ValueError, match="set FINAPI_CLIENT_SECRET"):
        FinapiSession.from_env()
    monkeypatch.setenv("FINAPI_CLIENT_SECRET", sandbox.client_secret)
    assert FinapiSession.from_env().environment is SANDBOX
    assert FinapiSession.from_env(environment="live").environment is LIVE
    monkeypatch.setenv("FINAPI_ENVIRONMENT", sandbox.base_url)
    monkeypatch.setenv("FINAPI_USERNAME", "alice")
    monkeypatch.setenv("FINAPI_PASSWORD", "her-password")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", sandbox.ca_bundle)
    with FinapiSession.from_env() as alice, FinapiSession.from_env(username=None) as client:
        assert alice.get(ECHO).json()["kind"] == "user"
        assert client.get(ECHO).json()["kind"] == "client"


def test_version_2_paths(sandbox: Sandbox) -> None:
    """A client bound to API version 2 uses the OAuth paths of that version; with the others it is denied."""
    sandbox.api_version = 2
    with sandbox.session(environment=Environment(sandbox.base_url, "/api/v2/oauth")) as session:
        assert session.get(ECHO).ok
    assert {call.path for call in sandbox.calls} == {"/api/v2/oauth/token", ECHO, "/api/v2/oauth/revoke"}


def test_request_ids(sandbox: Sandbox) -> None:
    """Each call has an id of its own, also the OAuth calls; the caller's is kept; foreign hosts get none."""
    with sandbox.session() as session:
        mine = session.get(ECHO, headers={"X-Request-Id": "mine"})
        other = session.get(ECHO)
        foreign = session.prepare_request(requests.Request("GET", "https://example.org/"))
    assert mine.headers["X-Request-Id"] == "mine" != other.headers["X-Request-Id"]
    assert "X-Request-Id" not in foreign.headers and "Authorization" not in foreign.headers
    assert len({call.request_id for call in sandbox.calls}) == len(sandbox.calls) == 4


def test_a_dead_endpoint_is_warned_of_once(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """Users and the client warn once together, then failures are counted at DEBUG; the first answer says how many."""
    caplog.set_level(logging.DEBUG, logger="finapi_session")
    events: list[TokenEvent] = []
    client = sandbox.session(on_event=events.append, retries=0)
    for outage in range(2):
        caplog.clear()
        events.clear()
        sandbox.answer_next(503, path="/oauth/token", times=4)
        for name in ("alice", "bob", None, "eve"):
            with pytest.raises(TokenEndpointError):
                (client.user(name, "some-password") if name else client).fetch_token()
        with pytest.raises(InvalidGrantError):
            client.user("alice", f"wrong {outage}").fetch_token()
        assert [event.kind for event in events] == 4 * ["failed"] + ["refused"]
        assert [record.levelname for record in caplog.records] == ["WARNING", *3 * ["DEBUG"], "WARNING"]
        endings = ["]", "] (2 in a row)", "] (3 in a row)", "] (4 in a row)"]
        assert [str(event.reason)[str(event.reason).rindex("]") :] for event in events[:4]] == endings
        assert (events[-1].reason or "").startswith("the first answer after 4 failed calls, finAPI refused the grant")
    sandbox.answer_next("drop", path="/oauth/token")
    with pytest.raises(TokenEndpointError):
        client.fetch_token()
    client.fetch_token()
    assert events[-1].kind == "issued" and events[-1].reason == "the first answer after 1 failed call"


def test_a_dead_revocation_is_the_same_outage(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """Revocations without an answer are counted along, one that finAPI refuses is told as a failure of its own."""
    client = sandbox.session(retries=0)
    client.fetch_token()
    sandbox.answer_next(503, path="/oauth/revoke")
    sandbox.answer_next("drop", path="/oauth/revoke")
    sandbox.answer_next(400, path="/oauth/revoke")
    for _ in range(3):
        with pytest.raises(RevocationError):
            client.revoke()
    first, refused = [record.getMessage() for record in caplog.records]
    assert "the token was not revoked: finAPI's token endpoint is unavailable (503 " in first
    assert "the first answer after 2 failed calls, the token was not revoked: finAPI refused to (400 " in refused
    assert "finAPI does not revoke this token: it ends at its expiry." in refused


def test_logs_tell_what_happened(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """One INFO line for each token issued, adopted, renewed and revoked, and each 401, with fields for JSON loggers."""
    caplog.set_level(logging.INFO, logger="finapi_session")
    store = MemoryStore()
    sandbox.session("alice", store=store).get(ECHO)
    with sandbox.session("alice", store=store, revoke_on_close=True) as alice:
        alice.get(ECHO)
        sandbox.revoke_tokens("alice")
        alice.get(ECHO)
    told = [(record.finapi_kind, record.finapi_identity) for record in caplog.records]  # type: ignore[attr-defined]
    assert told == [
        ("issued", "user 'alice'"),
        ("adopted", "user 'alice'"),
        ("answered", "user 'alice'"),
        ("renewed", "user 'alice'"),
        ("issued", f"client '{sandbox.client_id}'"),
        ("revoked", "user 'alice'"),
        ("revoked", f"client '{sandbox.client_id}'"),
    ]
    issued = caplog.records[0]
    assert issued.finapi_environment == sandbox.base_url  # type: ignore[attr-defined]
    assert 3590 < issued.finapi_expires_in <= 3600  # type: ignore[attr-defined]
    assert issued.finapi_request_id == sandbox.calls[0].request_id  # type: ignore[attr-defined]
    assert issued.finapi_milliseconds > 0  # type: ignore[attr-defined]
    assert "s left" in issued.getMessage() and "request id" in issued.getMessage()
    revoked = caplog.records[-1]
    assert revoked.finapi_request_id == sandbox.calls[-1].request_id  # type: ignore[attr-defined]
    adopted = caplog.records[1]
    assert 3590 < adopted.finapi_expires_in <= 3600  # type: ignore[attr-defined]


@pytest.mark.parametrize(("status", "kind"), [(400, "refused"), (302, "failed")])
def test_events_tell_what_was_refused_and_what_failed(status: int, kind: str, sandbox: Sandbox) -> None:
    """Who counts them knows a user's wrong password from a finAPI that is down, and finds the call and its time."""
    events: list[TokenEvent] = []
    alice = sandbox.session("alice", on_event=events.append)
    sandbox.answer_next(status, path="/oauth/token")
    sandbox.latency = {"/oauth/token": 0.05}
    with pytest.raises(TokenError) as caught:
        alice.fetch_token()
    [event] = events
    assert (event.kind, event.identity, event.request_id) == (kind, "user 'alice'", caught.value.request_id)
    assert event.milliseconds is not None and 50 <= event.milliseconds < 5000
    assert event.reason == str(caught.value)


def test_a_repr_tells_whose_and_where(sandbox: Sandbox, tmp_path: Path) -> None:
    """Client or user, finAPI's address and the kind of store, and no secret."""
    with sandbox.session() as client, sandbox.session("alice", store=FileStore(tmp_path / "tokens")) as alice:
        at = sandbox.base_url
        assert repr(client) == f"<FinapiSession of client 'sandbox-client' at {at}, tokens in MemoryStore>"
        assert repr(alice) == f"<FinapiSession of user 'alice' at {at}, tokens in FileStore>"


def test_a_request_id_may_be_set_later(sandbox: Sandbox) -> None:
    """The client's session has it on its calls and all token calls, a user's on her calls; junk is refused."""
    client = sandbox.session()
    alice = client.user("alice", "her-password")
    client.request_id = "of the client"
    alice.request_id = iter(["first", "second"]).__next__
    client.get(ECHO)
    for _ in range(2):
        alice.get(ECHO)
    client.user("alice", "her-password").get(ECHO)
    ids = [call.request_id for call in sandbox.calls]
    assert ids == ["of the client", "of the client", "of the client", "first", "second", "of the client"]
    for junk in ("", "x" * 256, 7, None):
        with pytest.raises((TypeError, ValueError), match="request_id must be"):
            client.request_id = junk  # type: ignore[assignment]
    assert client.request_id() == "of the client"


def test_an_environment_cannot_be_set_later(sandbox: Sandbox) -> None:
    """It would let tokens of one environment go to another one: the error says what to do."""
    client = sandbox.session()
    with pytest.raises(AttributeError, match="cannot be changed, .* make another one"):
        client.environment = LIVE  # type: ignore[assignment]
    assert client.environment == sandbox.environment and client.get(ECHO).ok


def test_a_fork_gets_connections_of_its_own(sandbox: Sandbox) -> None:
    """The adapters of every session are replaced in a forked child, and only there."""
    with sandbox.session() as session:
        session.get(ECHO)
        session.mount("mock://", requests_mock.Adapter())
        pool = session.get_adapter(sandbox.base_url).poolmanager  # type: ignore[attr-defined]
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            own = session.get_adapter(sandbox.base_url).poolmanager is not pool  # type: ignore[attr-defined]
            os.write(writer, b"own" if own and session.get(ECHO).ok else b"shared")
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reader, 10) == b"own"
        assert session.get_adapter(sandbox.base_url).poolmanager is pool  # type: ignore[attr-defined]
        assert session.get(ECHO).ok
        os.close(reader)
        os.close(writer)
    assert sandbox.connections == 2


def test_an_adapter_that_is_mounted_keeps_as_many_connections_as_there_are_threads(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """24 threads on a pool of 24 open 24 connections at most, token calls included, and urllib3 warns of nothing."""
    gate, size = threading.Barrier(24), 24
    sandbox.latency = {"/banks": 0.2}
    with sandbox.session(revoke_on_close=False) as session:
        session.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=size))

        def work() -> None:
            gate.wait()
            for _ in range(2):
                assert session.user("alice", "her-password").get("/api/v2/banks").status_code

        threads = [threading.Thread(target=work) for _ in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sandbox.connections <= size and "Connection pool is full" not in caplog.text
