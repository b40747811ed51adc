"""``FinapiSession`` against a server that rotates refresh tokens and never heard of finAPI."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from finapi_session.environment import Environment
from finapi_session.errors import InvalidClientError, InvalidGrantError, LoginRequiredError
from finapi_session.session import FinapiSession

from .server import ForeignServer, serve

ACCOUNTS = "/api/v2/accounts"
THREADS = 16
Open = Callable[..., FinapiSession]


class SharedStore:
    """A store of somebody else's making, which several sessions share."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.locks: dict[str, AbstractContextManager[object]] = {}

    def get(self, key: str) -> str | None:
        return self.values.get(key)

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def delete(self, key: str) -> None:
        self.values.pop(key, None)

    def lock(self, key: str) -> AbstractContextManager[object]:
        return self.locks.setdefault(key, threading.RLock())


def open_session(server: ForeignServer, oauth_path: str = "/oauth", **settings: Any) -> FinapiSession:
    environment = Environment(server.base_url, oauth_path=oauth_path)
    client = {"client_id": server.client_id, "client_secret": server.client_secret}
    session = FinapiSession(**{**client, "environment": environment, **settings})
    session.trust_env = False
    session.verify = server.ca_bundle
    return session


def as_alice(server: ForeignServer, **settings: Any) -> FinapiSession:
    return open_session(server, **{"username": server.username, "password": server.password, **settings})


@pytest.fixture
def opened(server: ForeignServer) -> Iterator[Open]:
    """Open sessions that are closed after the test, whatever it leaves of their tokens."""
    with ExitStack() as stack:
        yield lambda make, **settings: stack.enter_context(make(server, **settings))


def owner(session: requests.Session) -> Any:
    response = session.get(ACCOUNTS)
    assert response.status_code == 200, response.text
    return response.json()["owner"]


def revoke_behind_our_back(server: ForeignServer, token: str, hint: str) -> None:
    """Revoke as another process of the same client would, with a bearer of its own."""
    client = {"client_id": server.client_id, "client_secret": server.client_secret}
    with requests.Session() as http:
        http.trust_env, http.verify = False, server.ca_bundle
        form = {"grant_type": "client_credentials", **client}
        bearer = http.post(f"{server.base_url}/oauth/token", data=form, timeout=30).json()["access_token"]
        headers = {"Authorization": f"Bearer {bearer}"}
        for gone, how in ((token, hint), (bearer, "access_token")):
            form = {"token": gone, "token_type_hint": how}
            url = f"{server.base_url}/oauth/revoke"
            http.post(url, data=form, headers=headers, timeout=30).raise_for_status()


@pytest.mark.parametrize("oauth_path", ["/oauth", "/api/v2/oauth"])
def test_client(server: ForeignServer, opened: Open, oauth_path: str) -> None:
    """A client session asks for one token, at its first call, and keeps it for the next."""
    session = opened(open_session, oauth_path=oauth_path)
    assert server.issued_access_tokens() == 0
    assert [owner(session) for _ in range(3)] == [None] * 3
    assert (server.issued_access_tokens(), server.issued_refresh_tokens()) == (1, 0)


def test_user(server: ForeignServer, opened: Open) -> None:
    """A user session logs in once, with a password that careless encoding would break."""
    session = opened(as_alice)
    assert [owner(session) for _ in range(3)] == ["alice"] * 3
    assert (server.issued_access_tokens(), server.issued_refresh_tokens()) == (1, 1)


def test_user_of_a_client(server: ForeignServer, opened: Open) -> None:
    """A client session and the user session made from it each use a token of their own."""
    client = opened(open_session)
    with client.user(server.username, server.password) as alice:
        assert [owner(client), owner(alice), owner(client)] == [None, "alice", None]
        assert server.issued_access_tokens() == 2
    assert server.refresh_tokens() == 0
    assert owner(client) is None
    assert server.issued_access_tokens() == 2


def test_expired_user_token_is_refreshed(server: ForeignServer, opened: Open) -> None:
    """A user token that expired on the server only is healed by one refresh, unseen by the caller."""
    session = opened(as_alice)
    owner(session)
    server.expire_all()
    assert owner(session) == "alice"
    assert (server.issued_refresh_tokens(), server.refresh_tokens()) == (2, 1)
    assert (server.access_tokens(), server.logins()) == (1, 1)


def test_rotated_refresh_token_is_kept(server: ForeignServer, opened: Open) -> None:
    """Each refresh uses the token that the last one gave: an old one would kill the whole family."""
    session = opened(as_alice)
    for _ in range(4):
        assert owner(session) == "alice"
        server.expire_all()
    assert (server.issued_refresh_tokens(), server.refresh_tokens()) == (4, 1)
    assert server.logins() == 1


def test_expired_client_token_is_replaced(server: ForeignServer, opened: Open) -> None:
    """A client token that expired on the server only is replaced by one new one."""
    session = opened(open_session)
    owner(session)
    server.expire_all()
    assert owner(session) is None
    assert (server.issued_access_tokens(), server.access_tokens()) == (2, 1)


def test_body_is_sent_again(server: ForeignServer, opened: Open) -> None:
    """The call that met the expired token arrives whole when it is repeated."""
    session = opened(as_alice)
    owner(session)
    server.expire_all()
    answer = session.post(ACCOUNTS, data="Grüße & =+%".encode())
    assert answer.json()["received"] == "Grüße & =+%"
    assert [earlier.status_code for earlier in answer.history] == [401]


def in_threads(*sessions: FinapiSession) -> list[Any]:
    """Let all threads call in the same moment, spread over the sessions."""
    barrier = threading.Barrier(THREADS)

    def call(number: int) -> Any:
        barrier.wait(30)
        return owner(sessions[number % len(sessions)])

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(call, range(THREADS)))


def test_first_call_of_many_threads(server: ForeignServer, opened: Open) -> None:
    """Threads that start together on a new session share one login."""
    session = opened(as_alice)
    assert in_threads(session) == ["alice"] * THREADS
    assert (server.issued_access_tokens(), server.logins()) == (1, 1)


def test_rotation_under_threads(server: ForeignServer, opened: Open) -> None:
    """Threads that meet an expired token together cause one rotation each time, and none of them fails."""
    session = opened(as_alice)
    owner(session)
    for turn in (2, 3, 4):
        server.expire_all()
        assert in_threads(session) == ["alice"] * THREADS
        assert (server.issued_refresh_tokens(), server.refresh_tokens()) == (turn, 1)
    assert server.logins() == 1


def test_rotation_under_sessions_that_share_a_store(server: ForeignServer, opened: Open) -> None:
    """Sessions on one store never send a refresh token that another of them has used up."""
    store = SharedStore()
    sessions = [opened(as_alice, store=store) for _ in range(4)]
    assert in_threads(*sessions) == ["alice"] * THREADS
    for turn in (2, 3):
        server.expire_all()
        assert in_threads(*sessions) == ["alice"] * THREADS
        assert (server.issued_refresh_tokens(), server.refresh_tokens()) == (turn, 1)
    assert server.logins() == 1


@pytest.mark.parametrize("hint", ["access_token", "refresh_token"])
def test_revoked_behind_our_back(server: ForeignServer, opened: Open, hint: str) -> None:
    """A user token that somebody else revoked, refresh token and all, costs one more login and no failure."""
    session = opened(as_alice)
    token = session.fetch_token()
    revoke_behind_our_back(server, getattr(token, hint), hint)
    assert (server.access_tokens(), server.refresh_tokens()) == (0, 0)
    response = session.get(ACCOUNTS)
    assert (response.status_code, [earlier.status_code for earlier in response.history]) == (200, [401])
    assert (server.refresh_tokens(), server.logins()) == (1, 2)


def test_client_token_revoked_behind_our_back(server: ForeignServer, opened: Open) -> None:
    """A client token that somebody else revoked is replaced within the call that met the 401."""
    session = opened(open_session)
    revoke_behind_our_back(server, session.fetch_token().access_token, "access_token")
    response = session.get(ACCOUNTS)
    assert (response.status_code, [earlier.status_code for earlier in response.history]) == (200, [401])
    assert server.access_tokens() == 1


def test_refused_refresh_token_falls_back_to_the_password(server: ForeignServer, opened: Open) -> None:
    """When the server lost the access token and refuses the refresh token for it, the password helps once."""
    session = opened(as_alice)
    owner(session)
    server.lose_access_tokens()
    assert in_threads(session) == ["alice"] * THREADS
    assert (server.access_tokens(), server.logins()) == (1, 2)


def test_without_a_password_a_login_is_asked_for(server: ForeignServer, opened: Open) -> None:
    """A user session that lives on an adopted token refreshes it, and says so when nothing is left to do."""
    token = opened(as_alice, revoke_on_close=False).fetch_token()
    session = opened(open_session, username=server.username, token=token)
    server.expire_all()
    assert owner(session) == "alice"
    server.lose_access_tokens()
    with pytest.raises(LoginRequiredError):
        session.get(ACCOUNTS)
    assert server.logins() == 1


class Recorder(HTTPAdapter):
    """Keeps every answer that came through it."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[requests.Response] = []

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        self.answers.append(super().send(*args, **kwargs))
        return self.answers[-1]


def test_failed_renewal_gives_the_connection_back(server: ForeignServer, opened: Open) -> None:
    """The 401 whose renewal fails is closed, as the caller never gets to see it and cannot do so."""
    token = opened(as_alice, revoke_on_close=False).fetch_token()
    session = opened(open_session, username=server.username, token=token)
    recorder = Recorder()
    session.mount("https://", recorder)
    server.lose_access_tokens()
    with pytest.raises(LoginRequiredError):
        session.get(ACCOUNTS)
    assert [answer.status_code for answer in recorder.answers] == [401, 400]
    assert all(answer.raw.closed for answer in recorder.answers)


def test_refused_password(server: ForeignServer, opened: Open) -> None:
    """A wrong password is a typed error without the password in it, and no token comes of it."""
    session = opened(as_alice, password="wrong & söhne")
    with pytest.raises(InvalidGrantError) as refusal:
        session.get(ACCOUNTS)
    assert refusal.value.status == 400
    assert "wrong & söhne" not in repr(refusal.value) + str(refusal.value)
    assert server.issued_access_tokens() == 0


def test_refused_client(server: ForeignServer, opened: Open) -> None:
    """A wrong client secret is a typed error, for client and user sessions alike."""
    for make in (open_session, as_alice):
        with pytest.raises(InvalidClientError) as refusal:
            opened(make, client_secret="wrong").get(ACCOUNTS)
        assert refusal.value.status == 401
    assert server.issued_access_tokens() == 0


@pytest.mark.parametrize("make", [open_session, as_alice])
def test_close_gives_everything_back(server: ForeignServer, make: Open) -> None:
    """After closing, no token of the session is alive at the server, refreshed or not."""
    with make(server) as session:
        owner(session)
        server.expire_all()
        owner(session)
    assert (server.access_tokens(), server.refresh_tokens()) == (0, 0)


def test_close_of_a_whole_story(server: ForeignServer) -> None:
    """A client session and its user's session leave nothing alive."""
    with open_session(server) as client, client.user(server.username, server.password) as alice:
        assert [owner(client), owner(alice)] == [None, "alice"]
        assert server.access_tokens() == 2
    assert (server.access_tokens(), server.refresh_tokens()) == (0, 0)


def test_close_after_all_tokens_died(server: ForeignServer) -> None:
    """Closing when client and user token have expired still revokes the refresh token."""
    with open_session(server) as client, client.user(server.username, server.password) as alice:
        assert [owner(client), owner(alice)] == [None, "alice"]
        server.expire_all()
    assert (server.access_tokens(), server.refresh_tokens()) == (0, 0)


def test_close_leaves_a_shared_store_alone(server: ForeignServer, opened: Open) -> None:
    """Closing a session on a store that others live on revokes nothing; the next session needs no login."""
    store = SharedStore()
    with as_alice(server, store=store) as session:
        owner(session)
    assert (server.access_tokens(), server.refresh_tokens()) == (1, 1)
    assert owner(opened(as_alice, store=store)) == "alice"
    assert server.issued_access_tokens() == 1


def test_revoke_now(server: ForeignServer, opened: Open) -> None:
    """``revoke`` kills the user's grant at once, and the session logs in anew when it is used again."""
    session = opened(as_alice)
    owner(session)
    session.revoke()
    assert server.refresh_tokens() == 0
    assert owner(session) == "alice"
    assert server.logins() == 2


def test_expiry_is_not_put_too_late(server: ForeignServer, opened: Open) -> None:
    """A token's end is never later than the server's, whatever part of a second it was given in."""
    for _ in range(6):
        token = opened(open_session).fetch_token()
        assert token.expires_at is not None
        assert token.expires_at <= time.time() + 3600
        time.sleep(0.1)


def test_expiry_by_the_clock(running_server: ForeignServer) -> None:
    """A token whose short life ran out is refreshed before the call: the server never sees it dead."""
    with serve(lifetime=2) as short_lived, as_alice(short_lived) as session:
        owner(session)
        time.sleep(2.2)
        response = session.get(ACCOUNTS)
        assert (response.status_code, response.history) == (200, [])
        assert (short_lived.issued_refresh_tokens(), short_lived.logins()) == (2, 1)
