"""Nothing breaks it: junk from the server, the store and the caller becomes a sound result or a typed error.

No sockets: an adapter of the tests' own answers, and tells where each request would really have gone.
"""

from __future__ import annotations

import copy
import io
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import pytest
import requests
from hypothesis import HealthCheck, assume, example, given, settings, strategies as st
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3 import PoolManager
from urllib3.response import HTTPResponse

from finapi_session import (
    ApiError,
    BearerAuth,
    FinapiError,
    FinapiSession,
    MemoryStore,
    RevocationError,
    Token,
    TokenEndpointError,
    TokenError,
    raise_for_error,
)
from finapi_session.cell import Cell, refusals_key
from finapi_session.envelope import Foreign, dumps, dumps_refusals, loads, loads_refusals, sealed, unsealed
from finapi_session.environment import Environment
from finapi_session.error_body import ErrorBody, retry_after
from finapi_session.identity import Credentials
from finapi_session.knowledge import Grant, Knowledge, Refusal, password_subject

fuzz = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)

HOST = "f.example"
ENVIRONMENT = Environment(f"https://{HOST}", trusted=(f"https://web.{HOST}:8443",))
TRUSTED = {("https", HOST, 443), ("https", f"web.{HOST}", 8443)}
GOOD = {
    "access_token": "t-1",
    "token_type": "bearer",
    "expires_in": 3600,
    "scope": "all",
    "refresh_token": "r-1",
}
_SAFE_HEADER = re.compile(r"Bearer [\x21-\x7e]+")


@dataclass
class Answered:
    """What to answer."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)


Responder = Callable[[requests.PreparedRequest], Answered]


class Answering(BaseAdapter):
    """Answers as *respond* says, and keeps where each request would go and with which Authorization."""

    def __init__(self, respond: Responder) -> None:
        super().__init__()
        self.respond = respond
        self.sent: list[tuple[Any, Any, requests.PreparedRequest]] = []
        self._http = HTTPAdapter()

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Find the pool that would carry it, as HTTPAdapter does, and answer."""
        try:
            where, tls = self._http.build_connection_pool_key_attributes(request, True, None)
            pool = PoolManager().connection_from_host(**where, pool_kwargs=tls)
        except ValueError as error:
            raise requests.exceptions.InvalidURL(error) from None
        authorization = request.headers.get("Authorization")
        self.sent.append(((pool.scheme, pool.host, pool.port), authorization, request.copy()))
        answer = self.respond(request)
        body = b"" if answer.status in (204, 304) else answer.body
        raw = HTTPResponse(io.BytesIO(body), answer.headers, answer.status, preload_content=False)
        response: requests.Response = self._http.build_response(request, raw)
        response.connection = self  # type: ignore[assignment]
        return response

    def close(self) -> None:
        """Nothing is open."""

    def calls(self, path: str) -> int:
        """Count the requests to *path*."""
        return sum(request.url.partition("?")[0].endswith(path) for *_, request in self.sent if request.url)

    def check(self) -> None:
        """No token went to anybody else, and none that could end a header."""
        for where, authorization, _ in self.sent:
            if authorization is not None:
                assert where in TRUSTED, where
                assert _SAFE_HEADER.fullmatch(authorization)


def _session(respond: Responder, **options: Any) -> tuple[FinapiSession, Answering]:
    session = FinapiSession("id", "secret", environment=ENVIRONMENT, retries=0, **options)
    session.trust_env = False
    adapter = Answering(respond)
    session.adapters.clear()
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session, adapter


def _as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def _finapi(answer: Responder) -> Responder:
    """Give good tokens, and answer everything else with *answer*."""

    def respond(request: requests.PreparedRequest) -> Answered:
        return Answered(body=_as_json(GOOD)) if "/oauth/" in str(request.url) else answer(request)

    return respond


# --- what servers say -------------------------------------------------------------------------------------------

_NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 10**400, 1e308, math.inf, -math.inf, math.nan, True])
)
# The high ones are no letters of the Latin-1 that headers are made of; lone surrogates have a test of their own.
_TEXTS = st.one_of(
    st.text(max_size=30), st.sampled_from(["", " ", "a\r\nb: c", "\x00", "bearer", "1e999", "é", "x" * 9000])
)
_SCALARS = st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)
_KEYS = st.sampled_from(
    [
        "access_token",
        "token_type",
        "expires_in",
        "refresh_token",
        "scope",
        "expires_at",
        "issued_at",
        "id_token",
    ]
    + [
        "error",
        "error_description",
        "errorDescription",
        "errors",
        "code",
        "message",
        "description",
        "requestId",
    ]
)
_ERROR_ENTRIES = st.lists(
    st.one_of(_JSON, st.dictionaries(st.sampled_from(["code", "message", "type", "field"]), _JSON)),
    max_size=4,
)
_OBJECTS = st.one_of(
    st.dictionaries(_KEYS, _JSON, max_size=6),
    st.dictionaries(_KEYS, _JSON, max_size=3).map(lambda junk: {**GOOD, **junk}),
    _ERROR_ENTRIES.map(lambda entries: {"errors": entries}),
)
_STRANGE_BODIES = [
    b"",
    b"{}",
    b"null",
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b'{"access_token": "t", "access_token": ["u"], "token_type": "bearer"}',
    b'{"access_token": "t", "token_type": "bearer", "expires_in": 1e999}',
    b'{"access_token": "t", "token_type": "bearer", "expires_in": ' + b"9" * 5000 + b"}",
    b'{"access_token": "t", "token_type": "bearer", "expires_in": NaN, "expires_at": -Infinity}',
    b'{"error": {"error": "invalid_client"}, "errors": {"code": 1}}',
    b'\xff\xfe{\x00"\x00a\x00"\x00:\x001\x00}\x00',
    b"\xef\xbb\xbf{}",
    '{"error": "\\ud800", "error_description": "\\udfff token: x"}'.encode(),
]
_BODIES = st.one_of(
    _OBJECTS.map(_as_json), _JSON.map(_as_json), st.binary(max_size=80), st.sampled_from(_STRANGE_BODIES)
)
# What http.client lets through as a header's value.
_LINES = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=40)
_RETRY_AFTER = st.one_of(
    _LINES,
    st.integers().map(str),
    st.sampled_from(["9" * 400, "9" * 5000, "-1", "1e9", "inf", "nan", " 5 ", "٣", "Thu, 01 Jan 1970 00:00:00 GMT"])
    | st.sampled_from(
        ["Fri, 31 Dec 9999 23:59:59 GMT", "Sun, 99 Foo 2026 99:99:99", "Mon, 01 Jan 0001 00:00:00 +9999"]
    ),
)
_HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Retry-After": _RETRY_AFTER,
        "X-Request-Id": _LINES,
        "Content-Type": _LINES | st.sampled_from(["application/json; charset=utf-16", "text/html; charset=no-such"]),
        "WWW-Authenticate": _LINES,
        "Set-Cookie": _LINES,
        "Location": _LINES,
    },
)
_STATUSES = st.one_of(
    st.sampled_from([200, 201, 204, 301, 307, 400, 401, 403, 423, 429, 500, 503]), st.integers(200, 999)
)
_ANSWERS = st.builds(Answered, _STATUSES, _BODIES, _HEADERS)


def _sound(error: FinapiError) -> None:
    """An error that can be shown: one line, bounded."""
    text = f"{error} {error!r}"
    assert len(str(error)) < 2500 and "\n" not in str(error) and "\r" not in str(error)
    assert text.encode("utf-8")
    assert error.request_id is None or len(error.request_id) <= 255


@fuzz
@given(_ANSWERS, st.booleans())
def test_whatever_the_token_endpoint_answers(answer: Answered, user: bool) -> None:
    """Any answer to a token call is a token that fits a header, or a TokenError; and so is the next one."""
    who = {"username": "alice", "password": "pw"} if user else {}
    session, adapter = _session(lambda _: answer, **who)
    try:
        token = session.fetch_token()
    except TokenError as error:
        _sound(error)
        assert (
            not isinstance(error, TokenEndpointError) or error.retry_after is None or math.isfinite(error.retry_after)
        )
    else:
        assert _SAFE_HEADER.fullmatch(token.authorization)
        assert token.expires_at is None or math.isfinite(token.expires_at)
        assert Token.loads(token.dumps()) == token
        _go_on(session, token)
    adapter.check()


def _go_on(session: FinapiSession, token: Token) -> None:
    """Renew and revoke what a strange answer gave."""
    calls: list[Callable[[], object]] = [partial(session._own.renew, token.authorization), session.revoke]
    for call in calls:
        try:
            call()
        except (TokenError, RevocationError) as error:
            _sound(error)


@fuzz
@given(_ANSWERS)
def test_whatever_an_api_call_is_answered(answer: Answered) -> None:
    """An error body of any shape becomes an ApiError that can be shown, anything else is left alone."""
    assume(answer.status not in (301, 302, 303, 307, 308))
    session, adapter = _session(_finapi(lambda _: answer))
    response = session.get("/api/v2/x")
    try:
        raise_for_error(response)
    except ApiError as error:
        _sound(error)
        assert response.status_code == error.status == answer.status >= 400
        assert error.response is not None and isinstance(error.response.text, str)
    else:
        assert answer.status < 400
    adapter.check()


@fuzz
@given(_BODIES, _HEADERS, st.lists(st.text(max_size=12), max_size=3))
def test_problems_of_any_body(body: bytes, headers: Mapping[str, str], secrets: list[str]) -> None:
    """A problem is read from any body, in bounds and in printable text."""
    response = requests.Response()
    response.status_code, response._content = 400, body
    response.headers.update(headers)
    problem = ErrorBody.of(response, [secret for secret in secrets if len(secret) > 2])
    texts = [problem.code, problem.description, problem.request_id]
    texts += [text for detail in problem.details for text in (detail.code, detail.type, detail.message, detail.field)]
    for text in texts:
        assert text is None or (len(text) <= 500 and text.isprintable())


@fuzz
@given(_RETRY_AFTER)
def test_any_retry_after(value: str) -> None:
    """Retry-After is a bounded number of seconds from 0 up, or nothing."""
    seconds = retry_after(value)
    assert seconds is None or 0 <= seconds <= 1e9


@fuzz
@given(_RETRY_AFTER)
def test_any_retry_after_in_an_answer(value: str) -> None:
    """With whatever Retry-After, a 503 is a TokenEndpointError, and the next call can be told so too."""
    assume(value.isascii())
    session, _ = _session(lambda _: Answered(503, b"", {"Retry-After": value}))
    for _ in range(2):
        with pytest.raises(TokenEndpointError) as caught:
            session.fetch_token()
        _sound(caught.value)


# --- what stores hold -------------------------------------------------------------------------------------------

_CREDENTIALS = Credentials("id", "secret", "alice", "pw")
_KEY = _CREDENTIALS.key(ENVIRONMENT.token_url)
_CELL = Cell(_KEY, _CREDENTIALS.seal)
_TOKEN = Token("stored-1", expires_at=4e9, refresh_token="stored-r", issued_at=3.9e9, scope="all")
_SUBJECT = password_subject(_CREDENTIALS.fingerprint)
_REFUSAL = Refusal("InvalidGrantError", "refused", 3, None, 0.0, 400, "code", "said", "r-1")
_GRANT = Grant(_TOKEN, 3, _CREDENTIALS.fingerprint, proven=True, sticky=True)
_GRANTS = json.loads(dumps(Knowledge((_GRANT,), {"dead": 2})))
_GRANTS["grants"] = {"0": _GRANTS["grants"][0]}
_RECORD = {"grants": _GRANTS, "refusals": json.loads(dumps_refusals(Knowledge(refusals={_SUBJECT: _REFUSAL})))}


def _places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inner = (
        [place for name in value for place in _places(value[name], (*path, name))] if isinstance(value, dict) else []
    )
    return [path, *inner]


_PLACES = _places(_RECORD)
_IN_REFUSAL = ("refusals", _SUBJECT)
_RAW_JUNK = [
    "1e999",
    "-1e999",
    "NaN",
    "9" * 400,
    "9" * 5000,
    "[" * 100_000,
    '"\\ud800"',
    '"x\\r\\ny: z"',
    '"requests"',
]
_JUNK = st.one_of(_JSON.map(json.dumps), st.sampled_from(_RAW_JUNK), st.just(None))


def _mutated(place: tuple[str, ...], junk: str | None, expired: bool) -> tuple[str, str]:
    """Return what is known, grants and refusals, with *junk* (``None``: nothing at all) at *place*."""
    record = holder = copy.deepcopy(_RECORD)
    if not place:
        return junk or "", junk or ""
    if expired:
        record["grants"]["grants"]["0"]["token"].update(expires_at=2, issued_at=1)
    for name in place[:-1]:
        holder = holder[name]
    if junk is None:
        del holder[place[-1]]
    else:
        holder[place[-1]] = "\0here"
    grants = record.get("grants", {})
    if isinstance(grants, dict) and isinstance(grants.get("grants"), dict):
        grants["grants"] = list(grants["grants"].values())
    texts = (json.dumps(part).replace('"\\u0000here"', junk or "") for part in (grants, record.get("refusals", {})))
    return next(texts), next(texts)


def _use(grants: str, refusals: str = "{}") -> None:
    """Let a session of the user, and one without her password, live on a store that holds these texts, well sealed."""
    for read, text in ((loads, grants), (loads_refusals, refusals)):
        with suppress(Foreign):
            read(text)
    for password in ({"password": "pw"}, {}):
        store = MemoryStore()
        for key, text in ((_KEY, grants), (refusals_key(_KEY), refusals)):
            store.set(key, sealed(_CELL.seal, key, text))
        session, adapter = _session(_finapi(lambda _: Answered()), username="alice", store=store, **password)
        for call in (partial(session.get, "/api/v2/x"), session.fetch_token, session.revoke):
            try:
                call()
            except (TokenError, RevocationError) as error:
                _sound(error)
        adapter.check()
        kept = store.get(_KEY)
        if kept is not None and kept != sealed(_CELL.seal, _KEY, grants):
            loads(unsealed(_CELL.seal, _KEY, kept))


@fuzz
@given(st.sampled_from([place for place in _PLACES if place[:2] != _IN_REFUSAL]), _JUNK, st.booleans())
def test_a_record_with_junk_in_any_place(place: tuple[str, ...], junk: str | None, expired: bool) -> None:
    """A good record with junk in any one place is used or is a miss, never a crash."""
    assume(place[-1:] != ("refresh_token",) or junk != '"\\ud800"')
    _use(*_mutated(place, junk, expired))


@fuzz
@given(st.sampled_from([place for place in _PLACES if place[:2] == _IN_REFUSAL]), _JUNK)
@example((*_IN_REFUSAL, "until"), '"soon"')
@example((*_IN_REFUSAL, "error"), '"requests"')
@example((*_IN_REFUSAL, "error"), "[]")
def test_a_record_with_junk_in_a_refusal(place: tuple[str, ...], junk: str | None) -> None:
    """A good record with junk in any place of a refusal is used or is a miss, never a crash."""
    _use(*_mutated(place, junk, expired=True))


@fuzz
@given(st.one_of(_JSON.map(json.dumps), st.text(max_size=60), st.sampled_from(_RAW_JUNK)))
def test_a_store_that_holds_junk(text: str) -> None:
    """Any text in a store is a miss: the session asks for a token of its own."""
    with pytest.raises(Foreign):
        loads(text)
    _use(text)
    for key in (_KEY, refusals_key(_KEY)):
        store = MemoryStore()
        store.set(key, text)
        session, _ = _session(_finapi(lambda _: Answered()), username="alice", password="pw", store=store)
        assert session.get("/api/v2/x").status_code == 200


@fuzz
@given(st.one_of(st.none(), st.integers(), st.binary(max_size=20), st.lists(st.integers()), st.floats()))
def test_a_store_that_gives_no_text(value: object) -> None:
    """A store that returns something else than text costs a warning, never a call."""

    class Odd(MemoryStore):
        def get(self, key: str) -> Any:
            return value

    session, _ = _session(_finapi(lambda _: Answered()), store=Odd())
    assert session.get("/api/v2/x").status_code == 200


@fuzz
@given(st.dictionaries(_KEYS, _JSON, max_size=6))
def test_a_token_of_the_callers(given_token: dict[str, Any]) -> None:
    """A mapping given as `token=` is a token that fits a header, or a ValueError that names the argument."""
    try:
        session, adapter = _session(_finapi(lambda _: Answered()), token=given_token)
    except ValueError as error:
        assert "token" in str(error)
    else:
        session.get("/api/v2/x")
        adapter.check()


# --- where tokens go --------------------------------------------------------------------------------------------

_URL_PIECES = st.sampled_from(
    [
        "https://",
        "http://",
        "https:",
        "//",
        "/",
        "\\",
        "@",
        ":",
        "?",
        "#",
        ".",
        "..",
        "%2f",
        "%40",
        "%00",
        "%09",
        ";",
    ]
    + [
        HOST,
        HOST.upper(),
        f"web.{HOST}",
        "evil.example",
        "user",
        "user:pw",
        "443",
        "8443",
        "80",
        "00443",
        "0x1bb",
    ]
    + [
        "[",
        "]",
        "[::1]",
        "::1",
        "127.0.0.1",
        "2130706433",
        "\t",
        "\n",
        "\r",
        " ",
        "\x00",
        "\x7f",
        "\x85",
        "\xa0",
    ]
    + [
        "。",
        ".",
        "ⓕ.example",
        "f\u00ad.example",
        "ｆ.example",
        "ſ",
        "\u212a",
        "\u200b",
        "xn--f-",
        "é",
        "\u202e",
    ]
)
_FORGED = st.builds(
    lambda pieces, before: before + "".join(pieces),
    st.lists(_URL_PIECES, max_size=7),
    st.sampled_from(["", f"https://{HOST}", f"https://{HOST}:443", f"https://web.{HOST}:8443", "https://evil.example"]),
)
_TRICKS = [
    f"https://{HOST}@evil.example/",
    f"https://{HOST}:443@evil.example/",
    f"https://evil.example\\@{HOST}/",
    f"https://{HOST}\\@evil.example/",
    f"https://{HOST}%2f@evil.example/",
    f"https://{HOST}.evil.example/",
    f"https://{HOST}./",
    f"https://{HOST}:8443/",
    f"https://web.{HOST}/",
    f"http://{HOST}/",
    f"http://{HOST}:443/",
    f"HTTP://{HOST.upper()}/",
    f"//evil.example/{HOST}",
    f"///evil.example/https://{HOST}",
    "https:evil.example",
    f"https://evil.example/?https://{HOST}/",
    f"https://evil.example#@{HOST}/",
    f"https://{HOST}\t.evil.example/",
    f"https://{HOST}\n@evil.example/",
    f" https://{HOST}/",
    f"https://{HOST}:443:80/",
    f"https://[{HOST}]/",
    "\\\\evil.example\\x",
    "/\\evil.example",
    "/\t/evil.example/",
]


def _hostile(test: Callable[[str], None]) -> Callable[[], None]:
    for trick in _TRICKS:
        test = example(trick)(test)
    return fuzz(given(_FORGED)(test))


_NO_CONNECTION = (requests.RequestException, ValueError)


@_hostile
def test_a_token_goes_to_trusted_origins_only(url: str) -> None:
    """Whatever the URL of a call is, its token goes only where requests would connect to a trusted origin."""
    session, adapter = _session(_finapi(lambda _: Answered()))
    try:
        session.get(url)
    except _NO_CONNECTION:
        pass
    adapter.check()


@_hostile
def test_a_token_goes_to_trusted_origins_only_unprepared(url: str) -> None:
    """The same for a URL that nothing normalised before the auth sees it and the adapter connects."""
    session, adapter = _session(_finapi(lambda _: Answered()))
    request = requests.PreparedRequest()
    request.prepare("GET", f"https://{HOST}/")
    request.url = url
    try:
        assert isinstance(session.auth, BearerAuth)
        session.send(session.auth(request))
    except (*_NO_CONNECTION, AttributeError):
        pass
    adapter.check()


@_hostile
def test_a_redirect_takes_the_token_to_trusted_origins_only(url: str) -> None:
    """Whatever Location a trusted or a foreign host names, the token arrives at trusted origins only."""
    _redirect([url])


@fuzz
@given(
    st.lists(st.one_of(_FORGED, st.sampled_from(_TRICKS)), min_size=2, max_size=4),
    st.sampled_from([302, 303, 307, 308]),
)
def test_a_chain_of_redirects(urls: list[str], status: int) -> None:
    """No chain of redirects carries the token out, and after a renewal it does not either."""
    _redirect(urls, status)


def _redirect(urls: list[str], status: int = 302) -> None:
    # As they arrive: no line can end in a header, and requests reads Latin-1 as UTF-8 again.
    arriving = [url.replace("\r", "").replace("\n", "").encode().decode("latin-1") for url in urls]
    locations: list[str] = []
    seen: list[str] = []

    def answer(request: requests.PreparedRequest) -> Answered:
        if request.method == "PUT" and not seen:
            seen.append("401")
            return Answered(401)
        return Answered(status, headers={"Location": locations.pop(0)}) if locations else Answered()

    for first in ("/api/v2/x", "https://evil.example/"):
        for method in ("GET", "PUT"):
            seen.clear()
            locations[:] = arriving
            session, adapter = _session(_finapi(answer))
            try:
                session.request(method, first, data=b"x")
            except _NO_CONNECTION:
                pass
            adapter.check()
            assert first.startswith("https://evil") or adapter.sent[1][1] is not None


@fuzz
@given(_FORGED)
def test_an_environment_of_any_base_url(url: str) -> None:
    """Whatever base URL is accepted, tokens go to exactly that origin, as requests connects to it."""
    try:
        environment = Environment(url)
    except (ValueError, TypeError):
        return
    assert Environment(environment.base_url).base_url == environment.base_url
    request = requests.Request("GET", environment.base_url + "/x").prepare()
    where, _ = HTTPAdapter().build_connection_pool_key_attributes(request, True, None)
    token, _ = HTTPAdapter().build_connection_pool_key_attributes(
        requests.Request("POST", environment.token_url).prepare(), True, None
    )
    assert where == token and where["scheme"] == "https"


@pytest.mark.parametrize("header", ["Host", "host", "X-Forwarded-Host", "Authorization"])
def test_headers_of_the_caller_move_no_token(header: str) -> None:
    """A Host or Authorization header of the caller's moves no token to another host."""
    session, adapter = _session(_finapi(lambda _: Answered()))
    for url in ("/api/v2/x", "https://evil.example/"):
        session.get(url, headers={header: "evil.example"})
    adapter_token = [(where, sent) for where, sent, _ in adapter.sent if sent and sent.startswith("Bearer")]
    assert {where for where, _ in adapter_token} == {("https", HOST, 443)}


def test_a_prepared_request_whose_url_was_changed() -> None:
    """A request prepared for finAPI, then pointed elsewhere and sent by the session, arrives without the token."""
    session, adapter = _session(_finapi(lambda _: Answered()))
    request = session.prepare_request(requests.Request("GET", "/api/v2/x"))
    request.url = "https://evil.example/"
    session.send(request)
    adapter.check()


# --- what callers say -------------------------------------------------------------------------------------------

_IDS = st.one_of(st.text(max_size=12), st.binary(max_size=12), st.integers(250, 260).map("x".__mul__), st.integers())


@fuzz
@given(_IDS)
@example(" x")
@example("x\r\nAuthorization: evil")
@example("x\x00")
@example(b"\xff")
def test_any_request_id_in_a_calls_header(request_id: Any) -> None:
    """A call's own X-Request-Id is sent letter by letter, or is a ValueError and nothing of the call is sent."""
    session, adapter = _session(_finapi(lambda _: Answered()))
    session.fetch_token()
    try:
        session.get("/api/v2/x", headers={"X-Request-Id": request_id})
    except ValueError:
        assert adapter.calls("/x") == 0
    else:
        sent = adapter.sent[-1][2].headers["X-Request-Id"]
        text = sent if isinstance(sent, str) else sent.decode("latin-1")
        assert sent == request_id and 1 <= len(text) <= 255 and not re.search(r"[\x00-\x1f\x7f-\x9f]", text)
        text.encode("latin-1")


@fuzz
@given(st.one_of(_IDS, st.lists(st.text()), st.none()))
def test_any_request_id_of_a_session(request_id: Any) -> None:
    """A session's request id, given or made, is sent with every call, or is refused before anything is sent."""
    assume(not isinstance(request_id, str) or request_id == request_id.lstrip())
    for given_id in (request_id, lambda: request_id):
        session, adapter = None, None
        try:
            session, adapter = _session(_finapi(lambda _: Answered()), request_id=given_id)
            session.get("/api/v2/x")
        except (ValueError, TypeError) as error:
            assert "request_id" in str(error) and (adapter is None or not adapter.sent)
        else:
            assert [sent.headers["X-Request-Id"] for *_, sent in adapter.sent] == [request_id] * 2


@fuzz
@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_any_credentials(client_id: str, secret: str, username: str, password: str) -> None:
    """Any text in ids and secrets arrives whole in the form, and two different passwords never share a token."""
    assume(all((client_id, secret, username, password)))
    assume(all(text == text.strip() for text in (client_id, secret, password)))
    forms: list[dict[str, str]] = []

    def respond(request: requests.PreparedRequest) -> Answered:
        assert isinstance(request.body, str)
        forms.append(dict(parse_qsl(request.body, keep_blank_values=True, strict_parsing=True)))
        return Answered(body=_as_json({**GOOD, "access_token": f"t-{len(forms)}"}))

    store = MemoryStore()
    for password_now, calls in ((password, 1), (password, 1), (password + "x", 2)):
        session = FinapiSession(
            client_id,
            secret,
            username=username,
            password=password_now,
            environment=ENVIRONMENT,
            retries=0,
            store=store,
        )
        session.trust_env = False
        session.mount("https://", Answering(respond))
        session.fetch_token()
        assert len(forms) == calls
    wanted = {"client_id": client_id, "client_secret": secret, "username": username, "password": password}
    assert forms[0] == {"grant_type": "password", **wanted}


# --- findings ---------------------------------------------------------------------------------------------------


def test_a_refresh_token_that_cannot_be_sent() -> None:
    """A refresh token with a lone surrogate does not keep the password from being used, nor breaks revoke()."""
    answers = [{**GOOD, "refresh_token": "\ud800"}, {**GOOD, "access_token": "t-2"}]
    session, _ = _session(lambda _: Answered(body=_as_json(answers.pop(0))), username="alice", password="pw")
    token = session.fetch_token()
    answers += [GOOD] * 3
    renewed = session._own.renew(token.authorization)
    assert renewed is not None and renewed.access_token == "t-2"
    session.revoke()


def test_raise_for_error_on_a_stream_that_was_read() -> None:
    """A streamed error whose body the caller has read already is an ApiError all the same."""
    session, _ = _session(_finapi(lambda _: Answered(500, b"x" * 50)))
    response = session.get("/api/v2/x", stream=True)
    list(response.iter_content(10))
    with pytest.raises(ApiError):
        raise_for_error(response)


def test_raise_for_error_on_a_stream_that_is_cut_off() -> None:
    """A streamed error whose body is cut off is an ApiError all the same."""
    session, _ = _session(_finapi(lambda _: Answered(500, b"x" * 50, {"Content-Length": "500"})))
    with pytest.raises(ApiError):
        raise_for_error(session.get("/api/v2/x", stream=True))


def test_a_retry_after_of_years_is_not_obeyed_for_years(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an hour finAPI is asked again, whatever one Retry-After said."""
    answers = [Answered(503, b"", {"Retry-After": "999999999"}), Answered(body=_as_json(GOOD))]
    session, _ = _session(lambda _: answers.pop(0))
    with pytest.raises(TokenEndpointError):
        session.fetch_token()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    assert session.fetch_token().access_token == "t-1"


def test_a_look_alike_user_has_a_key_of_its_own() -> None:
    """A user id that only Unicode folds into another one (KELVIN SIGN) does not find that user's token."""
    keys = {Credentials("id", "secret", name).key("https://f.example") for name in ("karl", "\u212aarl")}
    assert len(keys) == 2


def test_a_secret_that_is_a_part_of_the_mark_itself() -> None:
    """A secret of one letter blows up no error text, and one that begins another leaves nothing of it."""
    from finapi_session.redaction import censored

    assert len(censored("e" * 100, ("e",))) <= 1000
    assert "def" not in censored("abcdef", ("abc", "abcdef"))
