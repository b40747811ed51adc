"""A token that the caller brings with token=: used, stored, renewed like any other, and left alone on close."""

from __future__ import annotations

import inspect
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from requests_oauthlib import OAuth2Session

from finapi_session import FinapiSession, MemoryStore, Token
from finapi_session.testing import Sandbox

from .herd import CALLS, ECHO, grants, warm
from .links import key_of


@pytest.mark.parametrize("as_dict", [False, True], ids=["Token", "dict"])
def test_a_given_token_renews_like_any_other(as_dict: bool, sandbox: Sandbox) -> None:
    """`token=` is used without a token call, stored, and renewed by its refresh token."""
    token = sandbox.session("alice").fetch_token()
    store = MemoryStore()
    alice = FinapiSession(
        sandbox.client_id,
        sandbox.client_secret,
        username="alice",
        environment=sandbox.environment,
        token=token.to_dict() if as_dict else token,
        store=store,
    )
    alice.verify, alice.trust_env = sandbox.ca_bundle, False
    warm(alice)
    assert sandbox.count(CALLS) == 1
    sandbox.revoke_tokens()
    warm(alice)
    assert grants(sandbox) == ["password", "refresh_token"]
    assert alice.fetch_token().access_token in (store.get(key_of(sandbox, "alice")) or "")


def test_a_token_as_requests_oauthlib_has_it(sandbox: Sandbox) -> None:
    """A dict as that library keeps it, obtained by that library, is adopted with its expiry."""
    from oauthlib.oauth2 import BackendApplicationClient

    with OAuth2Session(client=BackendApplicationClient(sandbox.client_id)) as other:
        other.trust_env = False
        theirs = other.fetch_token(
            sandbox.environment.token_url,
            client_secret=sandbox.client_secret,
            include_client_id=True,
            verify=sandbox.ca_bundle,
        )
    with sandbox.session(token=theirs) as session:
        warm(session)
        assert session.fetch_token().expires_at == theirs["expires_at"]
    assert sandbox.count(CALLS) == 1


@pytest.mark.parametrize(("revoke_on_close", "alive"), [(None, True), (False, True), (True, False)])
def test_a_given_token_is_revoked_on_close_only_if_told(
    revoke_on_close: bool | None, alive: bool, sandbox: Sandbox
) -> None:
    """It is the caller's: it lives on, unless `revoke_on_close=True`."""
    token = sandbox.session("alice").fetch_token()
    with sandbox.session("alice", token=token, revoke_on_close=revoke_on_close) as alice:
        warm(alice)
    assert sandbox.count("/oauth/revoke", revoked="alice") == (0 if alive else 1)
    if alive:
        before = sandbox.count(CALLS)
        warm(sandbox.session("alice", "wrong", token=token))
        assert sandbox.count(CALLS) == before


def test_a_given_token_that_is_older_than_what_is_known_is_the_last_resort(sandbox: Sandbox) -> None:
    """A worker starts again with the token of its configuration: what the store has since then goes before."""
    store = MemoryStore()
    sandbox.rotate_refresh_tokens = True
    configured = sandbox.session("alice").fetch_token()
    first = sandbox.session("alice", store=store, token=configured)
    warm(first)
    sandbox.revoke_tokens()
    warm(first)
    for _ in range(3):
        warm(sandbox.session("alice", store=store, token=configured))
    assert grants(sandbox) == ["password", "refresh_token"]


def test_a_given_token_that_is_newer_than_what_is_known_goes_before(sandbox: Sandbox) -> None:
    """What the caller obtained after all that the store knows is used at once."""
    store = MemoryStore()
    sandbox.sticky = False
    sandbox.session("alice", store=store).fetch_token()
    new = sandbox.session("alice").fetch_token()
    assert sandbox.session("alice", store=store, token=new).fetch_token().access_token == new.access_token


def test_a_given_token_that_has_expired_costs_a_renewal_only(sandbox: Sandbox) -> None:
    """It is not sent: its refresh token is."""
    token = sandbox.session("alice").fetch_token()
    alice = sandbox.session("alice", token=replace(token, expires_at=time.time() - 1))
    warm(alice)
    assert grants(sandbox) == ["password", "refresh_token"] and sandbox.count(ECHO, status=401) == 0


@pytest.mark.parametrize("token", [Token("never-heard-of"), {"access_token": "never-heard-of"}], ids=["Token", "dict"])
def test_a_given_token_that_finapi_does_not_know_is_replaced(token: Any, sandbox: Sandbox) -> None:
    """One 401, then the password gets a token."""
    alice = sandbox.session("alice", token=token)
    warm(alice)
    assert grants(sandbox) == ["password"] and sandbox.count(ECHO, status=401) == 1


def test_a_given_token_is_stored_by_the_first_call(sandbox: Sandbox) -> None:
    """Whoever brings a token brings it for all processes: they find it although its process was killed since."""
    store = MemoryStore()
    token = sandbox.session("alice").fetch_token()
    warm(sandbox.session("alice", store=store, token=token))
    assert token.access_token in (store.get(key_of(sandbox, "alice")) or "")


def test_a_password_that_is_none_is_an_error(sandbox: Sandbox) -> None:
    """A form without a password opens nobody's session: left out and ``None`` are two things."""
    client = sandbox.session()
    client.user("alice", "her-password").get(ECHO)
    with pytest.raises(TypeError, match="password must not be None: leave it out"):
        client.user("alice", None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="password must not be None"):
        FinapiSession("id", "secret", username="alice", password=None)  # type: ignore[arg-type]
    assert "password: 'Secret | NotGiven' = not given" in str(inspect.signature(FinapiSession.user))


def test_a_store_may_be_named(tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """``store=`` takes a text for ``open_store``, and ``from_env`` reads one."""
    with sandbox.session(store=f"file:{tmp_path / 'tokens'}") as session:
        warm(session)
    monkeypatch.setenv("FINAPI_STORE", f"file:{tmp_path / 'tokens'}")
    for name, value in sandbox.environ().items():
        monkeypatch.setenv(name, value)
    with FinapiSession.from_env(username=None) as session:
        warm(session)
    assert sandbox.count(CALLS) == 1
    with pytest.raises(ValueError, match="file:FOLDER"):
        FinapiSession("id", "secret", store="nonsense")
