"""The two OAuth calls below a session: the endpoint's contract with whoever decides when to ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import requests
from urllib3.util import Retry

from finapi_session import Environment, InvalidClientError, InvalidGrantError, Token, TokenEndpointError, TokenError
from finapi_session.endpoint import TokenEndpoint
from finapi_session.errors import is_about_refresh_token
from finapi_session.events import Journal
from finapi_session.identity import Credentials

from .loopback import Answer, Authority, Loopback

CLIENT = Credentials("id", "cl1ent-s3cret")
ALICE = replace(CLIENT, username="alice", password="her-p4ssword")
OLD = Token("old", refresh_token="refresh-0")


@pytest.fixture
def host(loopback: Loopback) -> Iterator[requests.Session]:
    """A session of requests alone, which trusts the server."""
    with requests.Session() as session:
        session.verify = loopback.ca
        yield session


@pytest.fixture
def endpoint(host: requests.Session, loopback: Loopback, authority: Authority) -> TokenEndpoint:
    """The endpoint on that session, which waits very shortly between tries."""
    environment = Environment(loopback.origin)
    retries = Retry(total=3, backoff_factor=0.001)
    return TokenEndpoint(host, environment, Journal(environment.base_url, None), lambda: "r-7", retries)


# --- what the caller is told, and when --------------------------------------------------------------------------


def test_before_each_try(endpoint: TokenEndpoint, authority: Authority) -> None:
    """What the caller wants done before each try is done right before each, the first included, and may say no."""
    seen: list[int] = []
    authority.answers = [Answer(503), Answer(503)]
    endpoint.fetch(ALICE, patient=True, before_each_try=lambda: seen.append(len(authority.calls)))
    assert seen == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        endpoint.fetch(ALICE, patient=True, before_each_try=lambda: 1 / 0)
    assert len(authority.calls) == 3


UNCLEAR = {
    "500": Answer(500),
    "502": Answer(502),
    "504": Answer(504, "<html>gateway</html>"),
    "408": Answer(408),
    "425": Answer(425),
    "418": Answer(418),
    "dropped": Answer(drop=True),
    "cut off": Answer(200, '{"access_', {"Content-Length": "500"}),
    "html": Answer(200, "<html>maintenance</html>"),
    "no token": Answer(200, {"expires_in": 5}),
    "redirect": Answer(302, headers={"Location": "/login?error"}),
}
CLEAR = {
    "429": Answer(429),
    "503": Answer(503),
    "404": Answer(404),
    "405": Answer(405),
    "wrong": Answer(400, {"error": "invalid_grant"}),
    "client": Answer(401, {"error": "invalid_client"}),
    "denied": Answer(403),
    "locked": Answer(423),
}


@pytest.mark.parametrize("kind", [*UNCLEAR, *CLEAR])
def test_a_password_that_may_have_been_judged(kind: str, endpoint: TokenEndpoint, authority: Authority) -> None:
    """Where a password was sent and the answer does not tell whether it was judged, the error says so; else not."""
    answer = {**UNCLEAR, **CLEAR}[kind]
    for credentials, renewed in ((ALICE, None), (ALICE, OLD), (CLIENT, None)):
        authority.answers = [answer]
        with pytest.raises(TokenError) as caught:
            endpoint.fetch(credentials, renewed, patient=False)
        by_password = credentials is ALICE and renewed is None
        assert caught.value.maybe_judged is (by_password and kind in UNCLEAR), (credentials, renewed)
        assert caught.value.again().maybe_judged is caught.value.maybe_judged


def test_a_password_that_was_not_sent_was_not_judged(host: requests.Session) -> None:
    """Without a connection, or without trust in the certificate, nobody got to see a password."""
    environment = Environment("https://127.0.0.1:9")
    nowhere = TokenEndpoint(host, environment, Journal(environment.base_url, None), lambda: "r", Retry(0))
    with pytest.raises(TokenEndpointError) as caught:
        nowhere.fetch(ALICE, patient=False)
    assert caught.value.maybe_judged is False


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "invalid_grant", True),
        (401, "invalid_grant", True),
        (401, "INVALID_TOKEN", True),
        (400, "invalid_request", True),
        (400, "BAD_REQUEST", True),
        (400, None, False),
        (401, None, False),
        (401, "unauthorized", False),
        (403, "invalid_request", False),
        *((400, code, False) for code in ("invalid_client", "UNAUTHORIZED_CLIENT", "unsupported_grant_type")),
        *((400, code, False) for code in ("invalid_scope", "Invalid_Client_Metadata")),
    ],
)
def test_what_is_about_the_refresh_token(status: int, code: str | None, expected: bool) -> None:
    """A refusal is about the refresh token if its code says so, or if it is a 400 with a code not about the client."""
    kind = InvalidGrantError if status == 400 else InvalidClientError
    assert is_about_refresh_token(kind("no", status=status, code=code)) is expected
