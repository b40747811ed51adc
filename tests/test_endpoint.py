"""The two OAuth calls: what is sent, and what every kind of answer becomes."""

from __future__ import annotations

import logging
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from typing import Any

import pytest
import requests
from freezegun import freeze_time
from requests.adapters import HTTPAdapter
from requests_oauthlib import OAuth2Session
from urllib3.util import Retry

from finapi_session import (
    AccessDeniedError,
    Environment,
    FinapiSession,
    InvalidClientError,
    InvalidGrantError,
    MemoryStore,
    RevocationError,
    Token,
    TokenEndpointError,
    TokenError,
    UserLockedError,
)
from finapi_session.endpoint import CALL_SECONDS, CONNECT_SECONDS
from finapi_session.identity import Credentials

from .loopback import Answer, Authority, Loopback, Sent

SECRET, PASSWORD = "cliënt&=+% sécret/\"'", "pässword&=+% ☃/\"'"


@pytest.fixture
def client(loopback: Loopback, authority: Authority) -> Iterator[FinapiSession]:
    """A client whose id and secret need quoting, that waits very shortly between tries."""
    retries = Retry(total=3, backoff_factor=0.001)
    with FinapiSession("id&ä=+%", SECRET, environment=loopback.origin, retries=retries) as session:
        session.verify = loopback.ca
        yield session


@pytest.fixture
def alice(client: FinapiSession) -> FinapiSession:
    """A user of that client."""
    return client.user("älice&=+%", PASSWORD)


# --- what is sent -----------------------------------------------------------------------------------------------


def test_every_parameter_of_the_token_call(client: FinapiSession, alice: FinapiSession, authority: Authority) -> None:
    """The three grants send finAPI's parameters as a form, whole whatever is in them."""
    client.fetch_token()
    authority.lifetime = 1
    alice.fetch_token()
    time.sleep(1.1)
    alice.fetch_token()
    own = {"client_id": "id&ä=+%", "client_secret": SECRET}
    assert authority.calls == [
        {"grant_type": "client_credentials", **own},
        {"grant_type": "password", "username": "älice&=+%", "password": PASSWORD, **own},
        {"grant_type": "refresh_token", "refresh_token": "refresh-2", **own},
    ]


def test_headers_of_the_oauth_calls(client: FinapiSession, loopback: Loopback) -> None:
    """Both calls are forms that accept JSON, carry a request id of their own, and no Basic authentication."""
    client.fetch_token()
    client.revoke()
    assert len({sent.headers["x-request-id"] for sent in loopback.sent}) == 2
    for sent in loopback.sent:
        assert sent.headers["accept"] == "application/json"
        assert sent.headers["content-type"] == "application/x-www-form-urlencoded"
        assert sent.query == {}
        assert not sent.headers.get("authorization", "").startswith("Basic")


def test_every_parameter_of_the_revoke_call(client: FinapiSession, alice: FinapiSession, loopback: Loopback) -> None:
    """A user's grant is revoked by her refresh token with the client's bearer, the client's by itself."""
    alice.fetch_token()
    alice.revoke()
    client.revoke()
    sent = [(request.bearer, request.form) for request in loopback.to("/oauth/revoke")]
    assert sent == [
        ("token-2", {"token": "refresh-1", "token_type_hint": "refresh_token"}),
        ("token-2", {"token": "token-2", "token_type_hint": "access_token"}),
    ]


def test_a_user_token_without_refresh_token_is_revoked_with_all_of_its_grant(
    loopback: Loopback, authority: Authority
) -> None:
    """Without a refresh token no hint is given: finAPI then revokes all of the grant."""
    authority.live.add("adopted")
    session = FinapiSession(
        "id",
        "secret",
        username="alice",
        environment=loopback.origin,
        token={"access_token": "adopted"},
        revoke_on_close=True,
    )
    session.verify = loopback.ca
    session.close()
    assert authority.revoked[0] == {"token": "adopted"}


def test_a_fixed_request_id_is_sent_with_every_call(loopback: Loopback, authority: Authority) -> None:
    """`request_id` as text, or what the callable makes, is the X-Request-Id of OAuth and API calls."""
    for request_id in ("night run 7", lambda: "night run 7"):
        with FinapiSession("id", "secret", environment=loopback.origin, request_id=request_id) as session:
            session.verify = loopback.ca
            session.get("/api/v2/x")
    assert {sent.headers["x-request-id"] for sent in loopback.sent} == {"night run 7"}


# --- refusals ---------------------------------------------------------------------------------------------------

FIRST_SHAPE = {"error": "some_code", "error_description": "it is so"}
MISSPELT = {"error": "some_code", "errorDescription": "it is so"}
SECOND_SHAPE = {"errors": [{"code": "some_code", "message": "it is so", "type": "BUSINESS"}], "requestId": "r-1"}


@pytest.mark.parametrize("body", [FIRST_SHAPE, MISSPELT, SECOND_SHAPE], ids=["first", "misspelt", "second"])
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidGrantError),
        (401, InvalidClientError),
        (403, AccessDeniedError),
        (423, UserLockedError),
        (300, TokenEndpointError),
        (404, TokenEndpointError),
        (405, TokenEndpointError),
    ],
)
def test_refusals_are_typed(
    status: int, error: type[TokenError], body: dict[str, object], alice: FinapiSession, authority: Authority
) -> None:
    """Each of finAPI's refusals is an error of its own that says what finAPI said, after one call."""
    authority.answers = [Answer(status, body, {"X-Request-Id": "r-1"})]
    with pytest.raises(error) as caught:
        alice.get("/api/v2/x")
    assert type(caught.value) is error
    assert (caught.value.status, caught.value.code) == (status, "some_code")
    assert (caught.value.description, caught.value.request_id) == ("it is so", "r-1")
    assert f"{status} some_code it is so" in str(caught.value) and "request id r-1" in str(caught.value)
    assert len(authority.calls) == 1


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, "invalid_client", InvalidClientError),
        (401, "invalid_grant", InvalidGrantError),
        (200, "invalid_grant", InvalidGrantError),
    ],
)
def test_a_plain_code_beats_the_status(
    status: int, code: str, error: type[TokenError], alice: FinapiSession, authority: Authority
) -> None:
    """Where RFC 6749's code says more plainly than the status who was refused, it counts."""
    authority.answers = [Answer(status, {"error": code})]
    with pytest.raises(error):
        alice.get("/api/v2/x")


@pytest.mark.parametrize("status", [400, 401, 403, 423])
@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b'{"error": ', b"\xff\xfe", b"[" * 100_000, b"null", b"7"])
def test_a_refusal_counts_whatever_its_body(
    status: int, body: bytes, client: FinapiSession, authority: Authority
) -> None:
    """Empty, HTML, truncated, binary or deeply nested: the status alone makes the error."""
    authority.answers = [Answer(status, body)]
    with pytest.raises(TokenError) as caught:
        client.get("/api/v2/x")
    assert caught.value.status == status and caught.value.code is None


# --- junk -------------------------------------------------------------------------------------------------------

UNUSABLE: list[bytes | dict[str, object]] = [
    b"",
    b"<html>Service</html>",
    b'{"access_token": "trunc',
    b"access_token=form&token_type=bearer",
    b"[" * 100_000,
    b"[]",
    b'"text"',
    {},
    {"access_token": ""},
    {"access_token": None},
    {"access_token": 5},
    {"access_token": ["a"]},
    {"access_token": "a\r\nX-Evil: 1"},
    {"access_token": "a b"},
    {"access_token": "tokén"},
    {"access_token": "t", "token_type": "mac"},
    {"access_token": "t", "token_type": 7},
    {"error": "odd"},
]


@pytest.mark.parametrize("body", UNUSABLE, ids=range(len(UNUSABLE)))
def test_an_unusable_answer_is_tried_again_and_typed(
    body: bytes | dict[str, object], client: FinapiSession, authority: Authority
) -> None:
    """An answer without a usable token is passing for a client, and an error of ours if it stays."""
    authority.answers = [Answer(200, body)]
    assert client.get("/api/v2/x").ok
    assert len(authority.calls) == 2
    client.revoke()
    authority.answers = [Answer(200, body)] * 4
    with pytest.raises(TokenEndpointError):
        client.get("/api/v2/x")
    assert len(authority.calls) == 6


@pytest.mark.parametrize(
    "extra",
    [
        {"expires_in": "soon"},
        {"expires_in": -1},
        {"expires_in": 1e300},
        {"expires_in": [1]},
        {"expires_in": {"a": 1}},
        {"expires_in": None},
        {"expires_in": True},
        {"scope": 7},
        {"scope": ["all"]},
        {"scope": {"a": 1}},
        {"refresh_token": 7},
        {"refresh_token": ""},
        {"refresh_token": "a\nb"},
        {"token_type": "BEARER"},
        {"token_type": None},
        {"expires_at": "junk"},
        {"unknown": {"deep": [[[]]]}},
        {"error": None},
    ],
)
def test_junk_beside_the_token_does_no_harm(
    extra: dict[str, object], client: FinapiSession, authority: Authority
) -> None:
    """A sound access token is taken whatever else is in the answer; what is junk there counts as absent."""
    authority.answers = [Answer(200, {"access_token": "sound", "token_type": "bearer", **extra})]
    token = client.fetch_token()
    assert token == Token("sound", issued_at=token.issued_at, scope=token.scope)
    assert len(authority.calls) == 1


@pytest.mark.parametrize(("expires_in", "lifetime"), [(0.5, 1), ("59", 59), (60.9, 60)])
def test_what_came_with_the_token(
    expires_in: object, lifetime: float, client: FinapiSession, authority: Authority
) -> None:
    """The scope is kept, and an expiry of whole seconds: a part of the first one is no "never"."""
    answer = {"access_token": "t", "token_type": "bearer", "scope": "all", "expires_in": expires_in}
    authority.answers = [Answer(200, answer)]
    token = client.fetch_token()
    assert token.scope == "all" and token.lifetime == pytest.approx(lifetime)


def test_an_expiry_counts_from_the_asking(client: FinapiSession, loopback: Loopback, authority: Authority) -> None:
    """A slow answer makes no token live longer: its seconds began before the request was sent, at the latest."""

    def slow(sent: Sent) -> Answer:
        time.sleep(0.4)
        return authority.token(sent)

    loopback.routes["/oauth/token"] = slow
    started = time.time()
    token = client.fetch_token()
    assert token.issued_at is not None and started <= token.issued_at < started + 0.3
    assert token.lifetime == pytest.approx(3600)


def test_a_refused_refresh_token_is_not_repeated(alice: FinapiSession, authority: Authority) -> None:
    """What finAPI says of the refresh token that it refuses is told without it."""
    alice.get("/api/v2/x")
    authority.kill()
    authority.answers = [Answer(403, {"error": "no", "error_description": "not with refresh-1"})]
    with pytest.raises(AccessDeniedError, match=r"not with \[redacted\]"):
        alice.get("/api/v2/x")


def test_a_token_of_8192_characters(client: FinapiSession, authority: Authority, loopback: Loopback) -> None:
    """finAPI's longest token is carried whole."""
    authority.answers = [Answer(200, {"access_token": "x" * 8192, "token_type": "bearer"})]
    authority.live.add("x" * 8192)
    assert client.get("/api/v2/x").ok


# --- what errors say --------------------------------------------------------------------------------------------

ELSEWHERE = {"Location": "https://127.0.0.1:9/oauth/token"}
ADVICE = "Check base URL, network, proxies and verify, or try again later."
COUNTED = " The password may have been counted: it is not sent again for a minute or more."
PASSES, CHECK_URL = "The fault is not here: try again later.", "Check the base URL."
SAID = {
    "down": (Answer(503), f"finAPI's token endpoint is unavailable (503). {PASSES}"),
    "elsewhere": (Answer(404), f"there is no token endpoint of finAPI at this address (404). {CHECK_URL}"),
    "redirect": (Answer(307, headers=ELSEWHERE), f"finAPI's token endpoint redirects (307). {CHECK_URL}{COUNTED}"),
    "html": (
        Answer(200, "<html>"),
        f"finAPI's token endpoint gave an unreadable answer (MissingTokenError). {ADVICE}{COUNTED}",
    ),
    "odd": (
        Answer(200, {"error": "odd"}),
        f"finAPI's token endpoint answered without a token (200 odd). {ADVICE}{COUNTED}",
    ),
    "dropped": (
        Answer(drop=True),
        "finAPI's token endpoint did not answer (ConnectionError: Remote end closed connection without response). "
        + ADVICE
        + COUNTED,
    ),
}
SETTINGS = "Check verify, cert, proxies and adapters of the client's session."
NOTHING_SENT: dict[str, tuple[Callable[[FinapiSession], object], str]] = {
    "untrusted": (
        lambda session: setattr(session, "verify", True),
        "no trust in finAPI's token endpoint (SSLError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
        "unable to get local issuer certificate): set verify on the client's session, or REQUESTS_CA_BUNDLE; "
        f"a single call's is not used here. {SETTINGS}",
    ),
    "no certificate": (
        lambda session: setattr(session, "cert", "/nowhere/secret.pem"),
        "the call to finAPI's token endpoint could not be sent (OSError: "
        f"Could not find the TLS certificate file, invalid path: /nowhere/secret.pem). {SETTINGS}",
    ),
    "no adapter": (
        lambda session: session.adapters.clear(),
        "the call to finAPI's token endpoint could not be sent (InvalidSchema: No connection adapters were found for "
        f"'https://127.0.0.1:9/oauth/token'). {SETTINGS}",
    ),
    "refused": (
        lambda session: session.mount("https://", Refusing(requests.ConnectTimeout())),
        "no connection to finAPI's token endpoint (ConnectTimeout); if it takes a proxy, set proxies on the client's "
        f"session, or HTTPS_PROXY; a single call's are not used here. {ADVICE}",
    ),
    "wordless": (
        lambda session: session.mount("https://", Refusing(requests.ConnectionError())),
        f"finAPI's token endpoint did not answer (ConnectionError). {ADVICE}{COUNTED}",
    ),
}


class Refusing(HTTPAdapter):
    """An adapter that raises *error* for every request."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def send(self, *_: Any, **__: Any) -> requests.Response:
        raise self.error


@pytest.fixture
def numbered(loopback: Loopback, authority: Authority) -> Iterator[FinapiSession]:
    """A user's session whose request id is known, and which tries once."""
    with FinapiSession(
        "id", "secret", username="alice", password="her-pw", environment=loopback.origin, request_id="r-7", retries=0
    ) as session:
        session.verify = loopback.ca
        yield session


@pytest.mark.parametrize("kind", SAID)
def test_what_an_unusable_answer_is_called(kind: str, numbered: FinapiSession, authority: Authority) -> None:
    """Each kind of answer without a token says in one sentence what was wrong, and which call it was."""
    answer, said = SAID[kind]
    authority.answers = [answer]
    with pytest.raises(TokenEndpointError) as caught:
        numbered.fetch_token()
    assert str(caught.value) == f"{said} [request id r-7]" and caught.value.request_id == "r-7"


@pytest.mark.parametrize("kind", NOTHING_SENT)
def test_what_a_call_that_was_not_sent_is_called(kind: str, numbered: FinapiSession) -> None:
    """A call that cannot be sent says why, without a secret that its settings happen to hold."""
    prepare, said = NOTHING_SENT[kind]
    prepare(numbered)
    with pytest.raises(TokenEndpointError) as caught:
        numbered.fetch_token()
    told = str(caught.value).replace(numbered.environment.base_url, "https://127.0.0.1:9")
    assert told == f"{said} [request id r-7]"


def test_an_answer_that_requests_trips_over_is_a_typed_error(
    client: FinapiSession, authority: Authority, loopback: Loopback
) -> None:
    """A redirect to bytes that are no address is one as any other: on the token call, and on a revocation."""
    odd = Answer(302, headers={"Location": "//\xff:99999999"})
    authority.answers = [odd]
    with pytest.raises(TokenEndpointError, match="redirects"):
        client.fetch_token()
    client.fetch_token()
    loopback.routes["/oauth/revoke"] = lambda _: odd
    with pytest.raises(RevocationError, match="redirects"):
        client.revoke()


@pytest.mark.parametrize("code", ["invalid_client", "invalid_grant"])
def test_a_code_does_not_make_a_refusal_of_an_outage(code: str, client: FinapiSession, authority: Authority) -> None:
    """A 503 is passing whatever its body says: nothing is refused, and the client is asked again."""
    authority.answers = [Answer(503, {"error": code})] * 4
    with pytest.raises(TokenEndpointError):
        client.fetch_token()
    assert client.fetch_token().access_token == "token-1"


# --- passing failures -------------------------------------------------------------------------------------------

PASSING = {
    "429": Answer(429),
    "500": Answer(500),
    "502": Answer(502),
    "503": Answer(503, {"error": "unavailable"}),
    "504": Answer(504, "<html>gateway</html>"),
    "dropped": Answer(drop=True),
    "cut off": Answer(200, '{"access_', {"Content-Length": "500"}),
    "html": Answer(200, "<html>maintenance</html>"),
}


@pytest.mark.parametrize("kind", PASSING)
def test_one_passing_failure_is_not_noticed(kind: str, client: FinapiSession, authority: Authority) -> None:
    """Two token calls, no failed call: for the client, and for a refresh."""
    authority.answers = [PASSING[kind]]
    assert client.get("/api/v2/x").ok
    assert len(authority.calls) == 2
    alice = client.user("alice", "password")
    alice.fetch_token()
    authority.kill()
    authority.answers = [PASSING[kind]]
    assert alice.get("/api/v2/x").ok
    assert [call["grant_type"] for call in authority.calls[2:]] == ["password", "refresh_token", "refresh_token"]


@pytest.mark.parametrize("kind", PASSING)
def test_a_password_is_sent_again_only_where_it_was_not_judged(
    kind: str, alice: FinapiSession, authority: Authority
) -> None:
    """After 429 and 503 the password is tried again; after anything else it may have counted, so it is not."""
    authority.answers = [PASSING[kind]]
    if kind in ("429", "503"):
        assert alice.get("/api/v2/x").ok
        assert len(authority.calls) == 2
    else:
        with pytest.raises(TokenEndpointError):
            alice.get("/api/v2/x")
        assert len(authority.calls) == 1


def test_a_password_is_tried_again_without_a_connection(loopback: Loopback) -> None:
    """Where no connection came about nothing was sent, so the password is tried again, within bounds."""
    waits: list[float] = []
    session = FinapiSession(
        "id", "secret", username="alice", password="p", environment="https://127.0.0.1:9", retries=Retry(2)
    )
    session.request_id = lambda: waits.append(time.monotonic()) or "r"  # type: ignore[func-returns-value]
    with pytest.raises(TokenEndpointError, match="no connection"):
        session.fetch_token()
    assert len(waits) == 3


def test_an_endpoint_that_is_down_for_good(client: FinapiSession, authority: Authority) -> None:
    """Tries are bounded; the error carries the status and when finAPI asks to be called again."""
    authority.answers = [Answer(503, headers={"Retry-After": "0"})] * 20
    with pytest.raises(TokenEndpointError) as caught:
        client.get("/api/v2/x")
    assert (caught.value.status, caught.value.retry_after) == (503, 0)
    assert len(authority.calls) == 4


@pytest.mark.parametrize("answer", [Answer(500), Answer(drop=True)], ids=["500", "dropped"])
@pytest.mark.parametrize("total", [1, 3, None])
def test_retries_of_an_adapter_are_not_for_token_calls(
    total: int | None, answer: Answer, client: FinapiSession, alice: FinapiSession, authority: Authority
) -> None:
    """An adapter that sends again what failed does so for API calls: a password that may have counted goes out once."""
    again = Retry(total, read=3, status=3, status_forcelist=[500], allowed_methods=None)
    client.mount("https://", HTTPAdapter(max_retries=again))
    authority.answers = [answer] * 4
    with pytest.raises(TokenEndpointError):
        alice.get("/api/v2/x")
    assert len(authority.calls) == 1
    authority.answers.clear()
    with freeze_time(datetime.now(timezone.utc) + timedelta(seconds=61), tick=True):  # the password has rested
        assert alice.get("/api/v2/x").ok
    assert client.get_adapter("https://x").max_retries is again  # type: ignore[attr-defined]


def test_retries_of_an_adapter_do_not_multiply_ours(caplog: pytest.LogCaptureFixture) -> None:
    """Nor does an adapter try again, at once, what does not connect: how often and when is for our own policy."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        environment = Environment(f"https://127.0.0.1:{closed.getsockname()[1]}")
    session = FinapiSession("id", "secret", environment=environment, retries=0)
    session.trust_env = False
    session.mount("https://", HTTPAdapter(max_retries=2))
    with pytest.raises(TokenEndpointError):
        session.get("/api/v2/x")
    assert [record for record in caplog.records if record.name.startswith("urllib3")] == []


def test_a_policy_without_a_total_is_refused() -> None:
    """The finer counts of a Retry are not used here, so one that has no other bound is none."""
    with pytest.raises(ValueError, match="retries must have a total"):
        FinapiSession("id", "secret", retries=Retry(total=None, connect=3))


def test_a_policy_of_the_callers(loopback: Loopback, authority: Authority) -> None:
    """`retries` as a count, 0 included, is how often what is passing is tried again."""
    for count in (0, 2):
        authority.answers = [Answer(503)] * 9
        session = FinapiSession("id", "secret", environment=loopback.origin, retries=count)
        session.verify = loopback.ca
        before = len(authority.calls)
        with pytest.raises(TokenEndpointError):
            session.fetch_token()
        assert len(authority.calls) - before == count + 1


@pytest.mark.parametrize("value", ["2", lambda: formatdate(time.time() + 2.5, usegmt=True)], ids=["seconds", "date"])
def test_retry_after_is_waited_for(value: object, client: FinapiSession, authority: Authority) -> None:
    """A `Retry-After` of two seconds, as a number or a date, is waited for."""
    authority.answers = [Answer(503, headers={"Retry-After": value() if callable(value) else str(value)})]
    started = time.monotonic()
    assert client.get("/api/v2/x").ok
    assert 1.4 < time.monotonic() - started < 4
    assert len(authority.calls) == 2


def test_a_long_retry_after_fails_at_once(client: FinapiSession, authority: Authority) -> None:
    """Nobody waits a day: the error tells the time, and until then finAPI is not asked again."""
    authority.answers = [Answer(429, headers={"Retry-After": "86400"})] * 9
    started = time.monotonic()
    for _ in range(3):
        with pytest.raises(TokenEndpointError, match="Try again in 86400 s") as caught:
            client.get("/api/v2/x")
        assert caught.value.retry_after == pytest.approx(86400, abs=5)
    assert time.monotonic() - started < 1
    assert len(authority.calls) == 1


@pytest.mark.parametrize("value", ["", "soon", "-5", "1e9", "9" * 5000, "Mon, 99 Foo 2026"])
def test_a_junk_retry_after_is_none(value: str, client: FinapiSession, authority: Authority) -> None:
    """A `Retry-After` that is no time is no crash and no wait."""
    authority.answers = [Answer(503, headers={"Retry-After": value})]
    try:
        assert client.get("/api/v2/x").ok
    except TokenEndpointError as error:
        assert value.isdigit() and error.retry_after


# --- revoking ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 500, 503])
def test_a_failed_revocation_is_raised_and_can_be_tried_again(
    status: int, client: FinapiSession, loopback: Loopback, authority: Authority
) -> None:
    """`revoke()` raises and keeps the token, so that a second one can succeed; `close()` does not raise."""
    client.fetch_token()
    loopback.routes["/oauth/revoke"] = lambda _: Answer(status, {"error": "not_now", "error_description": "later"})
    with pytest.raises(RevocationError, match=f"{status} not_now") as caught:
        client.revoke()
    error = caught.value
    assert (error.status, error.code, error.description) == (status, "not_now", "later")
    assert error.request_id == loopback.to("/oauth/revoke")[-1].headers["x-request-id"]
    client.close()
    loopback.routes["/oauth/revoke"] = authority.revoke
    client.revoke()
    assert authority.live == set()


def test_a_failed_revocation_repeats_no_token(
    alice: FinapiSession, loopback: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    """finAPI may repeat the tokens that it does not revoke; the error does not."""
    token = alice.fetch_token()
    said = f"not {token.access_token}, nor {token.refresh_token}"
    loopback.routes["/oauth/revoke"] = lambda _: Answer(400, {"error": "no", "error_description": said})
    with pytest.raises(RevocationError, match=r"not \[redacted\], nor \[redacted\]"):
        alice.revoke()
    assert str(token.refresh_token) not in caplog.text


def test_a_revocation_without_an_answer_names_its_call(
    numbered: FinapiSession, loopback: Loopback, authority: Authority
) -> None:
    """Where finAPI's answer is lost, the error still tells the request id that was sent."""
    client = numbered.user("alice")._client
    loopback.routes["/oauth/revoke"] = lambda _: Answer(drop=True)
    client.token()
    with pytest.raises(RevocationError, match="did not answer.*request id r-7"):
        client.revoke(patient=True)


@pytest.mark.parametrize(
    ("timeout", "used"),
    [
        (5, (5, 5)),
        ((3, 4), (3, 4)),
        ((None, 4), (CONNECT_SECONDS, 4)),
        ((3, None), (3, CALL_SECONDS)),
        (None, (CONNECT_SECONDS, CALL_SECONDS)),
        (1000, (CONNECT_SECONDS, CALL_SECONDS)),
    ],
)
def test_token_calls_wait_no_longer_than_the_session(timeout: Any, used: tuple[float, float]) -> None:
    """The session's timeout, one number or two, holds for token calls as well, up to what one deserves."""
    session = FinapiSession("id", "secret", timeout=timeout)
    assert session._endpoint._timeout == used


def test_what_is_revoked_is_what_the_store_has(loopback: Loopback, authority: Authority) -> None:
    """A sibling's newer token goes, not the one that we held before; who renews meanwhile is waited for."""
    store = MemoryStore()
    ours, sibling = (FinapiSession("id", "secret", environment=loopback.origin, store=store) for _ in range(2))
    ours.verify = sibling.verify = loopback.ca
    ours.get("/api/v2/x")
    sibling.get("/api/v2/x")
    authority.kill()
    sibling.get("/api/v2/x")
    with store.lock(Credentials("id", "secret").key(ours.environment.token_url)):
        revoking = threading.Thread(target=ours.revoke)
        revoking.start()
        revoking.join(0.3)
        assert authority.revoked == []
    revoking.join(5)
    assert [form["token"] for form in authority.revoked] == ["token-2"]


def test_a_revocation_does_not_wait_for_the_token_endpoint(client: FinapiSession, authority: Authority) -> None:
    """While finAPI wants no token calls, what is held can be revoked."""
    client.get("/api/v2/x")
    authority.answers = [Answer(429, headers={"Retry-After": "86400"})]
    with freeze_time(datetime.now(timezone.utc) + timedelta(seconds=3590), tick=True):
        client.fetch_token()  # an early renewal fails, and nobody notices
        assert len(authority.calls) == 2
        client.revoke()
    assert len(authority.revoked) == 1


def test_a_503_on_revocation_is_tried_again(client: FinapiSession, loopback: Loopback, authority: Authority) -> None:
    """RFC 7009: a token is still there after a 503, and may be revoked later."""
    client.fetch_token()
    answers = [Answer(503), Answer(drop=True)]
    loopback.routes["/oauth/revoke"] = lambda sent: answers.pop(0) if answers else authority.revoke(sent)
    client.revoke()
    assert len(authority.revoked) == 3 and authority.live == set()


def test_a_revocation_waits_as_long_as_finapi_asks(
    client: FinapiSession, loopback: Loopback, authority: Authority
) -> None:
    """`Retry-After` counts for revocations too, and a long one is told with the error."""
    client.fetch_token()
    answers = [Answer(503, headers={"Retry-After": "1"})]
    loopback.routes["/oauth/revoke"] = lambda sent: answers.pop(0) if answers else authority.revoke(sent)
    started = time.monotonic()
    client.revoke()
    assert time.monotonic() - started > 0.9 and authority.live == set()
    client.fetch_token()
    answers.append(Answer(503, headers={"Retry-After": "86400"}))
    with pytest.raises(RevocationError, match="Try again in 86400 s"):
        client.revoke()


def test_a_dead_client_token_is_simply_gone(client: FinapiSession, loopback: Loopback, authority: Authority) -> None:
    """A client token that finAPI no longer knows is not renewed in order to be revoked."""
    client.fetch_token()
    loopback.routes["/oauth/revoke"] = lambda _: Answer(401, {"error": "invalid_token"})
    client.revoke()
    assert len(authority.calls) == 1


def test_a_client_token_that_died_is_renewed_to_revoke_a_users(
    client: FinapiSession, alice: FinapiSession, loopback: Loopback, authority: Authority
) -> None:
    """To revoke her token the client's is renewed as for any call."""
    client.fetch_token()
    alice.fetch_token()
    loopback.routes["/oauth/revoke"] = lambda sent: (
        authority.revoke(sent) if sent.bearer in authority.live else Answer(401)
    )
    authority.kill()
    alice.revoke()
    assert [call["grant_type"] for call in authority.calls] == ["client_credentials", "password", "client_credentials"]
    assert [sent.bearer for sent in loopback.to("/oauth/revoke")] == ["token-1", "token-3"]


def test_without_a_client_token_to_be_had_a_user_is_not_revoked(alice: FinapiSession, authority: Authority) -> None:
    """What keeps the client's token from us is what the revocation failed of."""
    alice.fetch_token()
    authority.answers = [Answer(401)]
    with pytest.raises(RevocationError, match="client's credentials"):
        alice.revoke()


# --- secrets ----------------------------------------------------------------------------------------------------


def test_errors_hold_no_secret(alice: FinapiSession, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever finAPI repeats of them, no secret is in an error, its chain, its pickle, its traceback or a log."""
    caplog.set_level(logging.DEBUG)
    for answer in (
        Answer(400, {"error": "invalid_grant", "error_description": f"Bad {PASSWORD} for {SECRET}"}),
        Answer(200, {"error": "invalid_client", "error_description": f"{SECRET!r}"}),
        Answer(drop=True),
        Answer(500, f"<p>{SECRET}</p>"),
    ):
        authority.answers = [answer]
        session = FinapiSession("id&ä=+%", SECRET, username="alice", password=PASSWORD, environment=alice.environment)
        session.verify = alice.verify
        with pytest.raises(TokenError) as caught:
            session.get("/api/v2/x")
        error = caught.value
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=False).format())
        shown += f"{error!r} {error} {vars(error)} {pickle.dumps(error)!r} {error.__cause__!r} {error.__context__!r}"
        assert error.__context__ is None and error.response is None and error.request is None
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        for secret in (SECRET, PASSWORD):
            assert secret not in shown and repr(secret)[1:-1] not in shown
    logged = "".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert "s%C3%A9cret" not in logged and "sécret" not in logged and "p%C3%A4ss" not in logged


def test_other_users_of_requests_oauthlib_keep_their_logs(
    client: FinapiSession, caplog: pytest.LogCaptureFixture
) -> None:
    """Only our own token calls are kept out of that library's log."""
    caplog.set_level(logging.DEBUG, logger="requests_oauthlib")
    client.fetch_token()
    assert not [record for record in caplog.records if record.name.startswith("requests_oauthlib")]
    with OAuth2Session("other") as other, pytest.raises(requests.ConnectionError):
        other.get("https://127.0.0.1:9/")
    assert [record for record in caplog.records if record.name.startswith("requests_oauthlib")]
