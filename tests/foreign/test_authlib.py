"""``FinapiSession`` against Authlib's server: another one that rotates refresh tokens, with refusals of its own."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from finapi_session import (
    Environment,
    FileStore,
    FinapiSession,
    InvalidClientError,
    InvalidGrantError,
    LoginRequiredError,
)

pytest.importorskip("authlib")

from .authlib_server import Server, serve  # noqa: E402  (it needs Authlib)

ACCOUNTS = "/api/v2/accounts"
THREADS = 16


@pytest.fixture
def authlib(tmp_path: Path) -> Iterator[Server]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with serve(tmp_path) as server:
        yield server


def open_session(server: Server, **settings: Any) -> FinapiSession:
    arguments = {"client_id": server.client.client_id, "client_secret": server.client.client_secret, **settings}
    session = FinapiSession(environment=Environment(server.base_url), **arguments)
    session.trust_env, session.verify = False, server.ca_bundle
    return session


def as_alice(server: Server, **settings: Any) -> FinapiSession:
    return open_session(server, **{"username": server.username, "password": server.password, **settings})


def owner(session: FinapiSession) -> Any:
    response = session.get(ACCOUNTS)
    assert response.status_code == 200, response.text
    return response.json()["owner"]


def test_client_and_user(authlib: Server) -> None:
    """Each asks once, keeps its token, and gives it back: nothing is alive in the end."""
    with open_session(authlib) as client, client.user(authlib.username, authlib.password) as alice:
        assert [owner(session) for session in (client, alice, client, alice)] == [None, "alice", None, "alice"]
        assert authlib.requests == ["client_credentials", "password"] and authlib.alive() == 2
    assert authlib.requests[2:] == ["revoke", "revoke"] and authlib.alive() == 0


def test_a_rotated_refresh_token_is_kept(authlib: Server) -> None:
    """Each refresh uses the token that the last one gave, and a 401 is healed by it."""
    with as_alice(authlib) as alice:
        for _ in range(4):
            assert owner(alice) == "alice"
            authlib.expire_all()
    assert authlib.requests[:4] == ["password", *["refresh_token"] * 3] and authlib.reused == 0


def test_rotation_under_threads_of_sessions_on_one_store(authlib: Server, tmp_path: Path) -> None:
    """Of many threads that meet an expired token together one refreshes, each time; none spends a token twice."""
    sessions = [as_alice(authlib, store=FileStore(tmp_path / "tokens")) for _ in range(4)]
    barrier = threading.Barrier(THREADS)

    def call(number: int) -> Any:
        barrier.wait(30)
        return owner(sessions[number % len(sessions)])

    with ThreadPoolExecutor(THREADS) as pool:
        for turn in range(4):
            assert list(pool.map(call, range(THREADS))) == ["alice"] * THREADS
            assert authlib.requests == ["password", *["refresh_token"] * turn]
            authlib.expire_all()
    assert authlib.reused == 0


def test_a_refused_refresh_token(authlib: Server) -> None:
    """Authlib's bare ``invalid_grant`` is about the refresh token: the password helps once, else a login is needed."""
    with as_alice(authlib) as alice, open_session(authlib, username="alice", token=alice.fetch_token()) as guest:
        for token in authlib.tokens:
            token.end()
        with pytest.raises(LoginRequiredError):
            guest.get(ACCOUNTS)
        assert owner(alice) == "alice"
    assert authlib.requests[:4] == ["password", "refresh_token", "refresh_token", "password"]


def test_a_wrong_password_is_sent_once(authlib: Server) -> None:
    """Authlib calls it ``invalid_request``; it is the typed error all the same, now and later, without the password."""
    alice = as_alice(authlib, password="wrong & söhne")
    for _ in range(3):
        with pytest.raises(InvalidGrantError) as refusal:
            alice.get(ACCOUNTS)
        assert (refusal.value.status, refusal.value.code) == (400, "invalid_request")
        assert "wrong" not in f"{refusal.value!r} {refusal.value}"
    assert authlib.requests == ["password"]


def test_a_wrong_secret(authlib: Server) -> None:
    """Authlib refuses the client in its own way, which is not taken for a wrong password."""
    for make in (open_session, as_alice):
        with pytest.raises(InvalidClientError) as refusal:
            make(authlib, client_secret="wrong").get(ACCOUNTS)
        assert refusal.value.code == "invalid_client"
    assert authlib.tokens == []


def test_revoke_now(authlib: Server) -> None:
    """``revoke()`` ends the user's grant at once, and she logs in anew when the session is used again."""
    with as_alice(authlib) as alice:
        owner(alice)
        alice.revoke()
        assert [token.user for token in authlib.tokens if not token.is_expired()] == [None]
        assert owner(alice) == "alice"
    assert authlib.requests[:4] == ["password", "client_credentials", "revoke", "password"] and authlib.alive() == 0
