"""A drop-in for requests.Session in every corner: each case counts what was sent where."""

from __future__ import annotations

import base64
import copy
import io
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import requests
import requests_mock
import responses
from requests.adapters import HTTPAdapter

from finapi_session import Environment, FinapiSession, TokenEndpointError

from .loopback import Answer, Authorities, Authority, Loopback, Sent


@pytest.fixture
def foreign(authorities: Authorities) -> Iterator[Loopback]:
    """A host that is none of finAPI's."""
    with authorities.serve() as server:
        server.routes["/"] = lambda request: Answer(body={"seen": request.bearer or ""})
        yield server


@pytest.fixture
def trusted(authorities: Authorities, authority: Authority) -> Iterator[Loopback]:
    """Another product of the same environment, which takes the same tokens."""
    with authorities.serve() as server:
        server.routes["/"] = authority.api
        yield server


@pytest.fixture
def session(loopback: Loopback, trusted: Loopback, authority: Authority) -> Iterator[FinapiSession]:
    """A client's session that trusts its own and one more origin."""
    environment = Environment(loopback.origin, trusted=(trusted.origin,))
    with FinapiSession("id", "secret", environment=environment) as session:
        session.verify = loopback.ca
        yield session


def reject_first(authority: Authority, session: FinapiSession) -> None:
    """Let the session hold a token that the API rejects."""
    session.fetch_token()
    authority.kill()


def api(loopback: Loopback) -> list[Sent]:
    """What was sent to the API."""
    return [request for request in loopback.sent if request.path.startswith("/api/")]


# --- bodies ---------------------------------------------------------------------------------------------------


class Unseekable(io.BytesIO):
    """A file as a pipe is one."""

    def tell(self) -> int:
        """Refuse, as a pipe does."""
        raise OSError("not seekable")

    def seek(self, *_: int) -> int:
        """Refuse, as a pipe does."""
        raise OSError("not seekable")


class Spent(io.BytesIO):
    """A file that knows where it is, but cannot go back."""

    def seek(self, *_: int) -> int:
        """Refuse."""
        raise OSError("not seekable")


def file_at(offset: int) -> io.BytesIO:
    """An open file that was read up to *offset*."""
    file = io.BytesIO(b"0123456789")
    file.seek(offset)
    return file


REPLAYED: dict[str, tuple[Callable[[], dict[str, Any]], bytes | None]] = {
    "nothing": (dict, b""),
    "bytes": (lambda: {"data": b"\x00\xff"}, b"\x00\xff"),
    "bytearray": (lambda: {"data": bytearray(b"abc")}, b"abc"),
    "text": (lambda: {"data": "plain"}, b"plain"),
    "form": (lambda: {"data": {"a": "1&2"}}, b"a=1%262"),
    "json": (lambda: {"json": {"a": 1}}, b'{"a": 1}'),
    "file": (lambda: {"data": file_at(0)}, b"0123456789"),
    "file from an offset": (lambda: {"data": file_at(4)}, b"456789"),
    "multipart": (lambda: {"files": {"f": ("n", b"content")}}, None),
}


@pytest.mark.parametrize("case", REPLAYED)
def test_a_401_is_healed_with_the_body_replayed_whole(
    case: str, session: FinapiSession, authority: Authority, loopback: Loopback
) -> None:
    """Whatever can be sent twice is, once, with the very same body and a new token."""
    make, body = REPLAYED[case]
    reject_first(authority, session)
    started = time.perf_counter()
    response = session.post("/api/v2/x", **make())
    took = time.perf_counter() - started
    first, second = api(loopback)
    assert response.status_code == 200
    assert [answer.status_code for answer in response.history] == [401]
    assert first.body == second.body and (body is None or second.body == body)
    assert (first.bearer, second.bearer) == ("token-1", "token-2")
    assert first.headers["x-request-id"] == second.headers["x-request-id"]
    assert len(authority.calls) == 2
    assert 0 < response.elapsed.total_seconds() < took


def test_a_401_that_is_cut_off_is_healed(session: FinapiSession, authority: Authority, loopback: Loopback) -> None:
    """The body of a 401 is nobody's concern: cut off in the middle, it is a 401 all the same."""
    answers = [Answer(401, b"{", {"Content-Length": "500"})]
    loopback.routes["/api/cut"] = lambda sent: answers.pop() if answers else authority.api(sent)
    assert session.get("/api/cut").status_code == 200


def test_a_401_that_was_read_already_is_healed(session: FinapiSession, authority: Authority) -> None:
    """An adapter may have read the answer, to log it, before we see it."""

    class Reading(HTTPAdapter):
        def send(self, *args: Any, **kwargs: Any) -> requests.Response:
            response = super().send(*args, **kwargs)
            if response.status_code == 401:
                list(response.iter_content())
            return response

    session.mount("https://", Reading())
    reject_first(authority, session)
    assert session.get("/api/v2/x").status_code == 200


@pytest.mark.parametrize("body", [lambda: iter([b"a", b"b"]), lambda: Unseekable(b"ab"), lambda: Spent(b"ab")])
def test_what_cannot_be_replayed_is_not(
    body: Callable[[], Any], session: FinapiSession, authority: Authority, loopback: Loopback
) -> None:
    """A generator's 401 is returned as it is, and the next call carries a new token."""
    reject_first(authority, session)
    assert session.post("/api/v2/x", data=body()).status_code == 401
    assert len(api(loopback)) == 1
    assert session.post("/api/v2/x", data=body()).json() == {"bearer": "token-2", "body": "ab"}
    assert len(authority.calls) == 2


def test_method_override_survives_the_replay(session: FinapiSession, authority: Authority, loopback: Loopback) -> None:
    """Headers of the call, such as X-HTTP-Method-Override, are sent again."""
    reject_first(authority, session)
    session.post("/api/v2/x", headers={"X-HTTP-Method-Override": "PATCH", "PSU-IP-Address": "192.0.2.1"})
    assert [sent.headers.get("x-http-method-override") for sent in api(loopback)] == ["PATCH", "PATCH"]
    assert "PSU-IP-Address" not in session.headers


# --- hooks, streams, prepared requests --------------------------------------------------------------------------


def test_the_callers_hooks_see_only_the_final_answer(session: FinapiSession, authority: Authority) -> None:
    """A hook that raises for a status is not bothered with the 401 that was healed."""
    seen = []
    session.hooks["response"].append(lambda response, **_: seen.append(response.status_code))
    reject_first(authority, session)
    session.get("/api/v2/x", hooks={"response": lambda response, **_: response.raise_for_status()})
    assert seen == [] or seen == [200]
    session.get("/api/v2/x")
    assert seen == [200]


def test_streaming_is_left_alone(session: FinapiSession, authority: Authority, loopback: Loopback) -> None:
    """A streamed answer is not read ahead, before nor after a replay, and its connection is used again."""
    reject_first(authority, session)
    with session.get("/api/v2/x", stream=True) as response:
        assert not response._content_consumed  # type: ignore[attr-defined]
        assert b"".join(response.iter_content(3)).startswith(b'{"bearer": "token-2"')
    session.get("/api/v2/x")
    assert loopback.connections == 1


def test_prepared_requests(session: FinapiSession, authority: Authority, loopback: Loopback) -> None:
    """`send(prepare_request(...))` works on relative URLs, also after the token died, and changes no Request."""
    request = requests.Request("GET", "/api/v2/x", params={"a": "1"})
    prepared = session.prepare_request(request)
    assert request.url == "/api/v2/x"
    assert prepared.url == f"{loopback.origin}/api/v2/x?a=1"
    assert session.send(prepared).json()["bearer"] == "token-1"
    authority.kill()
    assert session.send(prepared).json()["bearer"] == "token-2"
    assert session.send(prepared).json()["bearer"] == "token-2"
    assert len(authority.calls) == 2


def test_a_header_that_the_caller_wrote_is_left_alone(
    session: FinapiSession, authority: Authority, loopback: Loopback
) -> None:
    """A 401 for somebody else's Authorization is not ours to heal."""
    prepared = session.prepare_request(requests.Request("GET", "/api/v2/x"))
    prepared.headers["Authorization"] = "Bearer of-somebody-else"
    assert session.send(prepared).status_code == 401
    assert [sent.bearer for sent in api(loopback)] == ["of-somebody-else"]
    assert len(authority.calls) == 1


# --- auth -------------------------------------------------------------------------------------------------------


def test_auth_of_a_call_goes_before(session: FinapiSession, authority: Authority, loopback: Loopback) -> None:
    """`auth=` of a call replaces the session's; a 401 for it is returned."""
    assert session.get("/api/v2/x", auth=("user", "password")).status_code == 401
    assert api(loopback)[0].headers["authorization"] == "Basic " + base64.b64encode(b"user:password").decode()
    assert authority.calls == []


def test_the_auth_alone_serves_other_sessions(
    session: FinapiSession, authority: Authority, loopback: Loopback, foreign: Loopback
) -> None:
    """`session.auth` heals a 401 in any other requests call, and shows a foreign host nothing."""
    reject_first(authority, session)
    with requests.Session() as other:
        other.verify, other.trust_env = loopback.ca, False
        assert other.get(f"{loopback.origin}/api/v2/x", auth=session.auth).json()["bearer"] == "token-2"
        assert other.get(f"{foreign.origin}/", auth=session.auth).json() == {"seen": ""}


def test_a_401_from_where_no_token_should_have_gone_is_not_healed(
    session: FinapiSession, authority: Authority, loopback: Loopback, foreign: Loopback
) -> None:
    """If a caller's own session points a prepared request elsewhere, that host gets no second token."""
    foreign.routes["/"] = lambda _: Answer(401)
    with requests.Session() as other:
        other.verify, other.trust_env = loopback.ca, False
        prepared = other.prepare_request(requests.Request("GET", f"{loopback.origin}/api/v2/x", auth=session.auth))
        prepared.url = f"{foreign.origin}/"
        assert other.send(prepared).status_code == 401
    assert len(foreign.sent) == 1 and len(authority.calls) == 1


def test_netrc_never_takes_the_tokens_place(
    session: FinapiSession, authority: Authority, loopback: Loopback, foreign: Loopback, bare_machine: Path
) -> None:
    """A netrc entry for finAPI's host is used neither for calls, nor for token calls, nor on redirects."""
    (bare_machine / ".netrc").write_text("machine 127.0.0.1 login netrc password netrc\n")
    (bare_machine / ".netrc").chmod(0o600)
    loopback.routes["/api/away"] = lambda _: Answer(302, headers={"Location": f"{foreign.origin}/"})
    loopback.routes["/api/back"] = lambda _: Answer(302, headers={"Location": "/api/v2/x"})
    assert session.get("/api/back").json()["bearer"] == "token-1"
    session.get("/api/away")
    carried = [sent.headers.get("authorization", "") for sent in (*loopback.sent, *foreign.sent)]
    assert not [header for header in carried if header.startswith("Basic")]
    assert foreign.sent[0].bearer is None


# --- redirects --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("healed", [False, True], ids=["before", "after a renewal"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_token_goes_along_to_trusted_origins_only(
    healed: bool,
    status: int,
    session: FinapiSession,
    authority: Authority,
    loopback: Loopback,
    trusted: Loopback,
    foreign: Loopback,
) -> None:
    """On a redirect to the same or a trusted host the live token is sent along, to a foreign one nothing."""
    for number, target in enumerate(("/api/v2/x", f"{trusted.origin}/x", f"{foreign.origin}/x")):

        def redirect(request: Sent, target: str = target) -> Answer:
            answer = authority.api(request)
            return answer if answer.status == 401 else Answer(status, headers={"Location": target})

        loopback.routes[f"/api/to/{number}"] = redirect
    expected = []
    for number in range(3):
        if healed:
            reject_first(authority, session)
        expected.append(session.fetch_token().access_token)
        response = session.post(f"/api/to/{number}", data=b"body")
        assert response.status_code == 200, number
        expected[-1] = session.fetch_token().access_token
    assert [sent.bearer for sent in loopback.to("/api/v2/x")] == [expected[0]]
    assert [sent.bearer for sent in trusted.sent] == [expected[1]]
    assert [sent.bearer for sent in foreign.sent] == [None]
    assert len(authority.calls) == (4 if healed else 1)
    bodies = {sent.body for server in (loopback, trusted, foreign) for sent in server.sent if sent.path.endswith("/x")}
    assert bodies == ({b"body"} if status in (307, 308) else {b""})


def test_a_redirect_that_the_caller_follows_himself(
    session: FinapiSession, authority: Authority, loopback: Loopback, foreign: Loopback
) -> None:
    """``Response.next``, which any session may send, holds the token for trusted origins only."""
    loopback.routes["/api/here"] = lambda _: Answer(302, headers={"Location": "/api/v2/x"})
    loopback.routes["/api/away"] = lambda _: Answer(302, headers={"Location": f"{foreign.origin}/"})
    here, away = (session.get(path, allow_redirects=False).next for path in ("/api/here", "/api/away"))
    assert here is not None and here.headers["Authorization"] == "Bearer token-1"
    assert away is not None and "Authorization" not in away.headers


def test_a_token_rejected_behind_a_redirect_is_renewed_there(
    session: FinapiSession, authority: Authority, loopback: Loopback
) -> None:
    """A 401 that comes after a redirect is healed where it came."""
    loopback.routes["/api/from"] = lambda _: Answer(307, headers={"Location": "/api/v2/x"})
    reject_first(authority, session)
    response = session.post("/api/from", data=b"body")
    assert response.json() == {"bearer": "token-2", "body": "body"}
    assert len(loopback.to("/api/from")) == 1 and len(loopback.to("/api/v2/x")) == 2


def test_a_foreign_host_cannot_send_the_token_back_to_us(
    session: FinapiSession, authority: Authority, loopback: Loopback, foreign: Loopback
) -> None:
    """What a foreign host redirects to finAPI arrives without a token, as with requests itself."""
    foreign.routes["/evil"] = lambda _: Answer(302, headers={"Location": f"{loopback.origin}/api/v2/x"})
    loopback.routes["/api/away"] = lambda _: Answer(302, headers={"Location": f"{foreign.origin}/evil"})
    assert session.get("/api/away").status_code == 401
    assert session.get(f"{foreign.origin}/evil").status_code == 401
    assert [sent.bearer for sent in loopback.to("/api/v2/x")] == [None, None]


def test_a_header_that_the_caller_wrote_follows_the_rules_of_requests(
    session: FinapiSession, loopback: Loopback, foreign: Loopback
) -> None:
    """Somebody else's Authorization goes along on the same host, and is stripped for another one."""
    loopback.routes["/api/here"] = lambda _: Answer(302, headers={"Location": "/api/v2/x"})
    loopback.routes["/api/away"] = lambda _: Answer(302, headers={"Location": f"{foreign.origin}/"})
    for path in ("/api/here", "/api/away"):
        prepared = session.prepare_request(requests.Request("GET", path))
        prepared.headers["Authorization"] = "Bearer theirs"
        session.send(prepared)
    assert [sent.bearer for sent in loopback.to("/api/v2/x")] == ["theirs"]
    assert [sent.bearer for sent in foreign.sent] == [None]


def test_another_auth_and_hook_follow_the_rules_of_requests(session: FinapiSession, loopback: Loopback) -> None:
    """A call with an auth of its own is redirected as on any session, its hooks are called, and no token is added."""
    seen: list[int] = []
    loopback.routes["/api/here"] = lambda _: Answer(302, headers={"Location": "/there"})
    loopback.routes["/there"] = lambda _: Answer()

    def look(response: requests.Response, **_: object) -> None:
        seen.append(response.status_code)

    session.get("/api/here", auth=("me", "mine"), hooks={"response": look})
    assert seen == [302, 200] and {sent.headers["authorization"][:6] for sent in loopback.sent} == {"Basic "}


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_the_token_call_follows_no_redirect(
    status: int, session: FinapiSession, authority: Authority, foreign: Loopback
) -> None:
    """A redirecting token endpoint is an error; the client's secret is posted nowhere else."""
    authority.answers.append(Answer(status, headers={"Location": f"{foreign.origin}/oauth/token"}))
    with pytest.raises(TokenEndpointError, match="redirects"):
        session.get("/api/v2/x")
    assert foreign.sent == [] and len(authority.calls) == 1


# --- what a session keeps ---------------------------------------------------------------------------------------


def test_the_token_call_carries_nothing_of_the_session(
    session: FinapiSession, authority: Authority, loopback: Loopback
) -> None:
    """No header, parameter, cookie or hook of the session goes along with a token call, nor a secret in its URL."""
    seen = []
    session.headers["X-Mine"] = "1"
    session.params = {"tracking": "1"}
    session.cookies["mine"] = "1"
    session.hooks["response"].append(lambda response, **_: seen.append(response.url))
    session.get("/api/v2/x")
    (token_call,) = loopback.to("/oauth/token")
    assert not {"x-mine", "cookie", "authorization"} & set(token_call.headers)
    assert token_call.query == {}
    assert token_call.headers["accept"] == "application/json"
    assert token_call.headers["content-type"] == "application/x-www-form-urlencoded"
    assert seen == [f"{loopback.origin}/api/v2/x?tracking=1"]
    (call,) = api(loopback)
    assert (call.headers["x-mine"], call.headers["cookie"]) == ("1", "mine=1")


def test_cookies_work_and_are_not_shared_with_users(session: FinapiSession, loopback: Loopback) -> None:
    """A cookie that finAPI sets comes back in this session, also one set on a healed 401, but not in a user's."""
    loopback.routes["/api/set"] = lambda _: Answer(headers={"Set-Cookie": "lb=1; Path=/"})
    session.get("/api/set")
    session.get("/api/v2/x")
    with session.user("alice", "password") as alice:
        alice.get("/api/v2/x")
    assert [sent.headers.get("cookie") for sent in loopback.to("/api/v2/x")] == ["lb=1", None]


def test_a_cookie_of_the_401_is_sent_with_the_replay(
    session: FinapiSession, authority: Authority, loopback: Loopback
) -> None:
    """A load balancer that marks its 401 with a cookie finds it on the replay, and afterwards in the session."""

    def balanced(request: Sent) -> Answer:
        answer = authority.api(request)
        return Answer(answer.status, answer.body, {"Set-Cookie": "lb=1; Path=/"} if answer.status == 401 else {})

    loopback.routes["/api/v2/x"] = balanced
    reject_first(authority, session)
    session.get("/api/v2/x")
    assert [sent.headers.get("cookie") for sent in loopback.to("/api/v2/x")] == [None, "lb=1"]
    assert session.cookies["lb"] == "1"


class Counting(HTTPAdapter):
    """An adapter of the caller's that remembers what it was asked to send, and how."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Any, Any]] = []

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        """Send, and remember."""
        self.seen.append((str(request.url), kwargs["timeout"], kwargs["verify"]))
        return super().send(request, **kwargs)


def test_own_adapters_carry_everything(session: FinapiSession, authority: Authority, loopback: Loopback) -> None:
    """A mounted adapter gets the token call, the calls, the replay and the revocations."""
    adapter = Counting()
    session.mount(loopback.origin, adapter)
    reject_first(authority, session)
    session.get("/api/v2/x")
    session.revoke()
    paths = [url.removeprefix(loopback.origin) for url, _, _ in adapter.seen]
    assert paths == ["/oauth/token", "/api/v2/x", "/oauth/token", "/api/v2/x", "/oauth/revoke"]


def test_timeouts(loopback: Loopback, authority: Authority) -> None:
    """The session's timeout stands in where a call names none; token calls have one that is never longer."""
    adapter = Counting()
    with FinapiSession("id", "secret", environment=loopback.origin, timeout=(5, 150)) as session:
        session.verify = loopback.ca
        session.mount(loopback.origin, adapter)
        session.get("/api/v2/x")
        session.get("/api/v2/x", timeout=7)
        session.get("/api/v2/x", timeout=(None, None))
        session.send(session.prepare_request(requests.Request("GET", "/api/v2/x")), verify=loopback.ca)
    # The revocation on close has what is left of ten seconds.
    of_token_calls = {0: 30, 5: 10}
    for at, (_, timeout, _) in enumerate(adapter.seen):
        if at in of_token_calls:
            assert timeout.connect_timeout == 5
            assert of_token_calls[at] - 3 < timeout.read_timeout == timeout.total <= of_token_calls[at]
    rest = [timeout for at, (_, timeout, _) in enumerate(adapter.seen) if at not in of_token_calls]
    assert rest == [(5, 150), 7, (None, None), (5, 150)]


def test_verify(
    session: FinapiSession, loopback: Loopback, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call's verify beats the session's, which beats REQUESTS_CA_BUNDLE, which is used where neither is set."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", __file__)
    assert session.get("/api/v2/x").ok
    with pytest.raises((OSError, requests.exceptions.SSLError)):
        session.get("/api/v2/x", verify=__file__)
    session.verify = __file__
    assert session.get("/api/v2/x", verify=loopback.ca).ok
    session.verify = True
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", loopback.ca)
    session.close()
    assert session.get("/api/v2/x").ok


def test_no_trust_is_an_error_at_once(session: FinapiSession, authority: Authority) -> None:
    """A certificate that is not trusted is not tried again, and the error says where to look."""
    session.verify = True
    with pytest.raises(TokenEndpointError, match="SSLError.*verify"):
        session.get("/api/v2/x")


def test_a_client_certificate_is_used_for_token_calls_too(session: FinapiSession, loopback: Loopback) -> None:
    """`session.cert` is taken for the token call: one that is not there fails it."""
    session.cert = "/no/such/certificate.pem"
    with pytest.raises(TokenEndpointError, match="certificate"):
        session.fetch_token()
    assert loopback.sent == []


def test_proxies_are_used_for_token_calls_too(
    session: FinapiSession, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session's proxies, and the environment's, carry the token call: a dead proxy fails it before it is sent."""
    session._endpoint._retries = session._endpoint._retries.new(total=0)
    session.proxies = {"https": "http://127.0.0.1:9"}
    with pytest.raises(TokenEndpointError, match=r"no connection .*\(ProxyError: .*\)"):
        session.fetch_token()
    session.proxies = {}
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(TokenEndpointError, match=r"no connection .*\(ProxyError: .*\)"):
        session.fetch_token()
    session.trust_env = False
    assert session.fetch_token()
    assert len(loopback.sent) == 1


def test_a_proxy_that_is_no_url_fails_at_once(session: FinapiSession, loopback: Loopback) -> None:
    """What cannot be sent at all is not tried again."""
    session.proxies = {"https": "http://"}
    with pytest.raises(TokenEndpointError, match="could not be sent"):
        session.fetch_token()
    assert loopback.sent == []


# --- copies, pickles, mocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda session: pickle.loads(pickle.dumps(session))])
def test_copies_and_pickles_work(
    duplicate: Callable[[FinapiSession], FinapiSession], session: FinapiSession, authority: Authority
) -> None:
    """A deep copy and a pickle carry the token along, work on connections of their own, and renew by themselves."""
    session.headers["X-Mine"] = "1"
    session.get("/api/v2/x")
    with session.user("alice", "password") as alice:
        alice.get("/api/v2/x")
        for original in (session, alice):
            twin = duplicate(original)
            assert twin.get("/api/v2/x").json() == original.get("/api/v2/x").json()
            assert twin.headers["X-Mine"] == "1"
            assert twin._endpoint._host.adapters is not original._endpoint._host.adapters
            assert twin.auth is not original.auth
        assert len(authority.calls) == 2
        authority.kill()
        assert twin.get("/api/v2/x").json()["bearer"] == "token-3"
        twin.close()
        twin._endpoint._host.close()


def test_a_copy_leaves_finapi_alone_as_well(session: FinapiSession, authority: Authority) -> None:
    """finAPI's wish to be left alone is kept with what is known, so a copy in another process heeds it, too."""
    authority.answers = [Answer(429, headers={"Retry-After": "86400"})]
    for _ in range(2):
        with pytest.raises(TokenEndpointError):
            session.fetch_token()
    with pytest.raises(TokenEndpointError):
        pickle.loads(pickle.dumps(session)).fetch_token()
    assert len(authority.calls) == 1


def test_responses_mocks_it(authority: Authority) -> None:
    """The `responses` library sees token call, call, replay and revocation, as with any session."""
    with responses.RequestsMock() as mock, FinapiSession("id", "secret") as session:
        for token in ("first", "second"):
            mock.post("https://sandbox.finapi.io/oauth/token", json={"access_token": token, "expires_in": 3600})
        mock.get("https://sandbox.finapi.io/api/v2/banks", status=401)
        mock.get("https://sandbox.finapi.io/api/v2/banks", json={"banks": []})
        mock.post("https://sandbox.finapi.io/oauth/revoke")
        assert session.get("/api/v2/banks").json() == {"banks": []}
        session.close()
        assert [call.request.headers.get("Authorization") for call in mock.calls] == [
            None,
            "Bearer first",
            None,
            "Bearer second",
            "Bearer second",
        ]


@pytest.mark.parametrize("mounted", [False, True])
def test_requests_mock_mocks_it(mounted: bool) -> None:
    """The `requests_mock` library sees token call, call and replay, as a mocker and as a mounted adapter."""
    session = FinapiSession("id", "secret", revoke_on_close=False)
    mock = requests_mock.Adapter() if mounted else requests_mock.Mocker()
    with nullcontext() if mounted else mock, session:
        session.mount("https://", mock if mounted else HTTPAdapter())
        tokens = [{"json": {"access_token": token, "expires_in": 3600}} for token in ("first", "second")]
        mock.register_uri("POST", "https://sandbox.finapi.io/oauth/token", tokens)
        answers = [{"status_code": 401}, {"json": {"banks": []}}]
        mock.register_uri("GET", "https://sandbox.finapi.io/api/v2/banks", answers)
        assert session.get("/api/v2/banks").json() == {"banks": []}
        assert [call.headers.get("Authorization") for call in mock.request_history] == [
            None,
            "Bearer first",
            None,
            "Bearer second",
        ]
