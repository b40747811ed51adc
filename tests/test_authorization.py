"""finAPI's two OAuth calls by finAPI's own names: every parameter, and nothing of a session's own state."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from finapi_session import (
    AuthorizationApi,
    FinapiSession,
    InvalidGrantError,
    MemoryStore,
    RevocationError,
    Token,
    TokenEvent,
)

from .loopback import Answer, Authority, Loopback

OTHER = ("other-id", "0ther-s3cret")


@pytest.fixture
def events() -> list[TokenEvent]:
    """What the session's listener is told."""
    return []


@pytest.fixture
def session(loopback: Loopback, authority: Authority, events: list[TokenEvent]) -> Iterator[FinapiSession]:
    """A client's session."""
    with FinapiSession("id", "secret", environment=loopback.origin, retries=1, on_event=events.append) as session:
        session.verify = loopback.ca
        yield session


@pytest.fixture
def api(session: FinapiSession) -> AuthorizationApi:
    """The two calls over it."""
    return AuthorizationApi(session)


GRANTS: dict[str, dict[str, str]] = {
    "client_credentials": {},
    "password": {"username": "älice", "password": "her p4ssword"},
    "refresh_token": {"refresh_token": "refresh-0"},
}


@pytest.mark.parametrize("grant_type", GRANTS)
@pytest.mark.parametrize("x_request_id", [None, "mine", "x" * 255], ids=["none", "mine", "longest"])
def test_get_token(
    grant_type: str, x_request_id: str | None, api: AuthorizationApi, loopback: Loopback, authority: Authority
) -> None:
    """Each grant sends what it needs, of all that is given, under the caller's request id, and returns a Token."""
    every = {name: value for needed in GRANTS.values() for name, value in needed.items()}
    token = api.get_token(grant_type, *OTHER, x_request_id=x_request_id, **every)
    assert isinstance(token, Token) and token.access_token == "token-1" and token.lifetime == 3600
    own = {"client_id": OTHER[0], "client_secret": OTHER[1]}
    assert authority.calls == [{"grant_type": grant_type, **GRANTS[grant_type], **own}]
    sent = loopback.sent[0].headers["x-request-id"]
    assert sent == x_request_id if x_request_id else len(sent) == 36


def test_nothing_is_stored(loopback: Loopback, authority: Authority) -> None:
    """Neither the session nor its store knows a token that was got by hand, and the next one is asked for anew."""
    store = MemoryStore()
    with FinapiSession("id", "secret", environment=loopback.origin, store=store) as session:
        session.verify = loopback.ca
        api = AuthorizationApi(session)
        got = [api.get_token("client_credentials", "id", "secret").access_token for _ in range(2)]
        assert got == ["token-1", "token-2"] and session.fetch_token().access_token == "token-3"
    assert authority.revoked == []


@pytest.mark.parametrize("hint", [None, "access_token", "refresh_token"])
def test_revoke_token(
    hint: str | None, api: AuthorizationApi, loopback: Loopback, authority: Authority, session: FinapiSession
) -> None:
    """A token is revoked with the client's own, with the hint that is given, under the caller's request id."""
    authority.live.add("leaked")
    api.revoke_token("leaked", token_type_hint=hint, x_request_id="mine")
    sent = loopback.to("/oauth/revoke")[0]
    assert sent.form == {"token": "leaked"} | ({"token_type_hint": hint} if hint else {})
    assert (sent.bearer, sent.headers["x-request-id"]) == ("token-1", "mine")
    assert authority.live == {"token-1"} and session.fetch_token().access_token == "token-1"


def test_revoke_with_a_users_session(session: FinapiSession, loopback: Loopback, authority: Authority) -> None:
    """Over a user's session it is the client's token all the same, which finAPI wants, and a dead one is renewed."""
    session.fetch_token()
    authority.kill()
    loopback.routes["/oauth/revoke"] = lambda sent: Answer() if sent.bearer in authority.live else Answer(401)
    AuthorizationApi(session.user("alice", "her-password")).revoke_token("leaked")
    assert [sent.bearer for sent in loopback.to("/oauth/revoke")] == ["token-1", "token-2"]
    assert {call["grant_type"] for call in authority.calls} == {"client_credentials"}


def test_retries_errors_and_events_are_the_sessions(
    api: AuthorizationApi, authority: Authority, loopback: Loopback, events: list[TokenEvent]
) -> None:
    """Transient failures are tried again as often as the session does; errors are of its kinds, and told to it."""
    authority.answers = [Answer(503), Answer(400, {"error": "invalid_grant", "error_description": "her p4ssword"})]
    with pytest.raises(InvalidGrantError) as caught:
        api.get_token("password", *OTHER, **GRANTS["password"], x_request_id="mine")
    assert "p4ssword" not in str(caught.value) and caught.value.request_id == "mine"
    loopback.routes["/oauth/revoke"] = lambda _: Answer(400, {"error": "no", "error_description": "not leaked-t0ken"})
    with pytest.raises(RevocationError, match=r"not \[redacted\]"):
        api.revoke_token("leaked-t0ken")
    assert [event.kind for event in events] == ["refused", "issued", "failed"]


BAD_GRANTS: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    (("implicit", *OTHER), {}, "grant_type must be password, client_credentials or refresh_token"),
    ((None, *OTHER), {}, "grant_type must be"),
    (("password", *OTHER), {"password": "p4ssword"}, "grant_type password needs username"),
    (("password", *OTHER), {"username": "alice"}, "grant_type password needs password"),
    (("password", *OTHER), {"username": "", "password": "p4ssword"}, "username must not be empty"),
    (("password", *OTHER), {"username": "alice", "password": "p4ssword\n"}, "password must not begin or end"),
    (("refresh_token", *OTHER), {}, "grant_type refresh_token needs refresh_token"),
    (("refresh_token", *OTHER), {"refresh_token": "r\n"}, "refresh_token must be text of printable"),
    (("refresh_token", *OTHER), {"refresh_token": 7}, "refresh_token must be text of printable"),
    (("client_credentials", "", "s"), {}, "client_id must not be empty"),
    (("client_credentials", "id", None), {}, "client_secret must be text"),
    (("client_credentials", *OTHER), {"x_request_id": "x" * 256}, "request_id must be 1 to 255 characters"),
    (("client_credentials", *OTHER), {"x_request_id": "a\nb"}, "request_id must be 1 to 255 characters"),
    (("client_credentials", *OTHER), {"x_request_id": 7}, "request_id must be text"),
]


@pytest.mark.parametrize(("arguments", "options", "said"), BAD_GRANTS)
def test_a_grant_that_lacks_something(
    arguments: tuple[Any, ...], options: dict[str, Any], said: str, api: AuthorizationApi, loopback: Loopback
) -> None:
    """What a grant needs and lacks, or cannot be, is named before anything is sent, without a secret in any frame."""
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        api.get_token(*arguments, **options)
    assert loopback.sent == [] and not isinstance(caught.value, requests.RequestException)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    ours = repr([frame.locals for frame in shown.stack if "finapi_session" in frame.filename.split("tests")[0]])
    assert "s3cret" not in ours and "p4ssword" not in ours.replace("her p4ssword", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"token": ""}, "token must be text of printable"),
        ({"token": "a\nb"}, "token must be text of printable"),
        ({"token": None}, "token must be text, not NoneType"),
        ({"token": Token("t")}, "token must be text, not Token"),
        ({"token": "t", "token_type_hint": "id_token"}, "token_type_hint must be"),
        ({"token": "t", "x_request_id": "x" * 256}, "request_id must be 1 to 255 characters"),
    ],
)
def test_a_revocation_of_junk(options: dict[str, Any], said: str, api: AuthorizationApi, loopback: Loopback) -> None:
    """What cannot be revoked, or asked for, is named before anything is sent."""
    with pytest.raises((ValueError, TypeError), match=said):
        api.revoke_token(**options)
    assert loopback.sent == []


def test_it_needs_a_session() -> None:
    """Anything but a session of ours is a TypeError that says so."""
    with pytest.raises(TypeError, match="session must be a FinapiSession, not Session"):
        AuthorizationApi(requests.Session())  # type: ignore[arg-type]
