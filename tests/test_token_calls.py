"""The two OAuth calls below a session: the endpoint's contract with whoever decides when to ask."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import signal
import socket
import ssl
import threading
import time
import traceback
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
import responses
import trustme
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3.exceptions import InsecureRequestWarning
from urllib3.util import Retry

from finapi_session import Environment, InvalidClientError, InvalidGrantError, Token, TokenEndpointError, TokenError
from finapi_session.endpoint import (
    CALL_SECONDS,
    CONNECT_SECONDS,
    FURTHER_TRY_SECONDS,
    RENEWAL_SECONDS,
    TokenEndpoint,
)
from finapi_session.errors import is_about_refresh_token, raised_by_signal_handler
from finapi_session.events import Journal
from finapi_session.identity import Credentials

from .loopback import Answer, Authorities, Authority, Loopback

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


# --- bounds of time and size ------------------------------------------------------------------------------------


class Tcp:
    """A TLS server that does with each connection as the test says."""

    def __init__(self, authorities: Authorities, talk: Callable[[ssl.SSLSocket, int], None]) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authorities._certificate.configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.origin, self.ca = f"https://127.0.0.1:{self._listener.getsockname()[1]}", authorities.path
        self.connections = 0
        self._talk = talk
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._handle, args=(plain, self.connections), daemon=True).start()

    def _handle(self, plain: socket.socket, number: int) -> None:
        with suppress(OSError), plain, self._context.wrap_socket(plain, server_side=True) as connection:
            self._talk(connection, number)

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def endpoint(self, host: requests.Session, timeout: float | None = None) -> TokenEndpoint:
        """Return the endpoint at this server."""
        host.verify = self.ca
        environment = Environment(self.origin)
        return TokenEndpoint(host, environment, Journal(self.origin, None), lambda: "r-7", Retry(0), timeout)


@pytest.fixture
def tcp(authorities: Authorities) -> Iterator[Callable[[Callable[[ssl.SSLSocket, int], None]], Tcp]]:
    """What makes such a server."""
    made: list[Tcp] = []

    def make(talk: Callable[[ssl.SSLSocket, int], None]) -> Tcp:
        made.append(Tcp(authorities, talk))
        return made[-1]

    yield make
    for server in made:
        server.close()


def _read_request(connection: ssl.SSLSocket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or b"\r\n\r\n"
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:]).get(b"content-length", 0))
    while len(body) < length:
        body += connection.recv(65536)
    return body


HEADS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
    "closing": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n",
    "no length": b"HTTP/1.1 200 OK\r\n\r\n",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("drips", [60, 0.8], ids=["drips", "stops"])
def test_a_body_that_does_not_end(
    kind: str, drips: float, tcp: Any, host: requests.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a body drips, or stops in the middle, the call ends within its seconds, body included."""
    over = threading.Event()

    def talk(connection: ssl.SSLSocket, _number: int) -> None:
        _read_request(connection)
        connection.sendall(HEADS[kind])
        until = time.monotonic() + drips
        while time.monotonic() < until and not over.wait(0.05):
            connection.sendall(b"1\r\n \r\n" if kind == "chunked" else b" ")
        over.wait(60)

    monkeypatch.setattr("finapi_session.endpoint.CALL_SECONDS", 1.0)
    started = time.monotonic()
    with pytest.raises(TokenEndpointError, match="did not answer .*took too long") as caught:
        tcp(talk).endpoint(host).fetch(ALICE, patient=False)
    over.set()
    assert 0.9 < time.monotonic() - started < 1.6 and caught.value.maybe_judged


class DrippingFile(io.RawIOBase):
    """A body that never ends."""

    def read(self, _size: int = -1) -> bytes:
        """Return a little of it, after a while."""
        time.sleep(0.2)
        return b" "


def test_a_body_of_another_make_that_does_not_end(
    endpoint: TokenEndpoint, host: requests.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the library cannot reach the socket it looks at the clock before it waits for more."""
    response = requests.Response()
    response.status_code, response.raw = 200, DrippingFile()
    host.mount("https://", AnsweringAdapter(response))
    monkeypatch.setattr("finapi_session.endpoint.CALL_SECONDS", 0.5)
    with pytest.raises(TokenEndpointError, match="did not answer .*took too long"):
        endpoint.fetch(CLIENT, patient=False)
    assert response.raw.closed


def test_of_a_revocation_the_status_is_enough(
    endpoint: TokenEndpoint, loopback: Loopback, host: requests.Session
) -> None:
    """A revocation that finAPI confirmed is one, whatever is wrong with the body, of which it has none (RFC 7009)."""
    for answer in (Answer(200, b" " * 2_000_000), Answer(200, b"", {"Content-Length": "9"}), Answer(200, "<html>")):
        loopback.routes["/oauth/revoke"] = lambda _, answer=answer: answer  # type: ignore[misc]
        endpoint.revoke("id", OLD, patient=False)


def test_connecting_and_the_headers_are_in_the_same_bound(
    tcp: Any, host: requests.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow handshake leaves less time for the headers: both together end within the call's seconds."""
    over = threading.Event()

    def talk(connection: ssl.SSLSocket, _number: int) -> None:
        _read_request(connection)
        over.wait(5)

    monkeypatch.setattr("finapi_session.endpoint.CALL_SECONDS", 1.5)
    server = tcp(talk)
    slow = server._handle
    server._handle = lambda plain, number: (time.sleep(0.8), slow(plain, number))
    started = time.monotonic()
    with pytest.raises(TokenEndpointError, match="did not answer"):
        server.endpoint(host).fetch(CLIENT, patient=False)
    over.set()
    assert 1.4 < time.monotonic() - started < 2.2


def test_all_tries_end_within_their_seconds(
    endpoint: TokenEndpoint, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A further try is made only if there is time for it: with less left, waiting included, the error comes at once."""
    authority.answers = [Answer(503, headers={"Retry-After": "1"})] * 4
    monkeypatch.setattr("finapi_session.endpoint.FURTHER_TRY_SECONDS", 1.0)
    started = time.monotonic()
    with pytest.raises(TokenEndpointError):
        endpoint.fetch(CLIENT, patient=True, within=2.5)
    assert time.monotonic() - started < 2 and len(authority.calls) == 2


def test_the_bounds_fit_each_other() -> None:
    """A try that uses up its time leaves none for another: the last one begins early enough to end in time."""
    assert 0 < CONNECT_SECONDS < CALL_SECONDS < RENEWAL_SECONDS
    assert 0 < FURTHER_TRY_SECONDS <= RENEWAL_SECONDS - CALL_SECONDS


def _bomb(layers: int) -> bytes:
    bomb = b'{"access_token": "' + b" " * 200_000_000
    for _ in range(layers):
        bomb = gzip.compress(bomb, 6)
    return bomb


SMALL = json.dumps({"access_token": "sound", "token_type": "bearer"}).encode()
ENCODED = {
    "gzip": (gzip.compress(SMALL), "gzip", None),
    "x-gzip": (gzip.compress(SMALL), " X-GZip ", None),
    "deflate": (zlib.compress(SMALL), "deflate", None),
    "identity": (SMALL, "identity", None),
    "cut off": (gzip.compress(SMALL)[:-12], "gzip", "it is cut off"),
    "no gzip": (SMALL, "gzip", "it is no gzip"),
    "odd": (SMALL, "br", "Content-Encoding was not asked for"),
    "twice": (gzip.compress(gzip.compress(SMALL)), "gzip, gzip", "Content-Encoding was not asked for"),
    "long": (b" " * 2_000_000 + SMALL, "", "longer than 1 MB"),
    "inflated": (gzip.compress(b" " * 2_000_000 + SMALL), "gzip", "longer than 1 MB"),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_an_encoded_answer(kind: str, endpoint: TokenEndpoint, loopback: Loopback, authority: Authority) -> None:
    """A plain body is asked for; one that is encoded all the same is read if it is short, sound and encoded once."""
    body, encoding, said = ENCODED[kind]
    authority.answers = [Answer(200, body, {"Content-Encoding": encoding} if encoding else {})]
    if said is None:
        assert endpoint.fetch(ALICE, patient=False).access_token == "sound"
    else:
        with pytest.raises(TokenEndpointError, match=f"unreadable answer .*{said}") as caught:
            endpoint.fetch(ALICE, patient=False)
        assert caught.value.maybe_judged
    assert loopback.sent[-1].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("layers", [1, 2])
def test_a_bomb_is_not_inflated(
    layers: int, endpoint: TokenEndpoint, authority: Authority, host: requests.Session
) -> None:
    """Of 200 MB in a small gzip, or in a gzip in a gzip, about 1 MB is decoded, and its connection is closed."""
    authority.answers = [Answer(200, _bomb(layers), {"Content-Encoding": ", ".join(["gzip"] * layers)})]
    tracemalloc.start()
    try:
        with pytest.raises(TokenEndpointError, match="unreadable answer"):
            endpoint.fetch(CLIENT, patient=False)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert endpoint.fetch(CLIENT, patient=False).access_token == "token-1"


@pytest.mark.parametrize("status", [400, 503])
def test_a_refusal_counts_though_its_body_is_too_long(
    status: int, endpoint: TokenEndpoint, authority: Authority
) -> None:
    """What the status says is certain, however long or broken the body is."""
    for answer in (Answer(status, b" " * 2_000_000), Answer(status, b"{", {"Content-Length": "500"})):
        authority.answers = [answer]
        with pytest.raises(TokenError) as caught:
            endpoint.fetch(ALICE, patient=False)
        assert caught.value.status == status and not caught.value.maybe_judged


def test_a_token_that_is_too_long(endpoint: TokenEndpoint, authority: Authority) -> None:
    """finAPI's tokens have at most 8,192 characters: one of 16,384 is taken, a longer one is not, of either kind."""
    longest = {"access_token": "x" * 16_384, "refresh_token": "y" * 16_384, "token_type": "bearer"}
    authority.answers = [Answer(200, longest)]
    token = endpoint.fetch(ALICE, patient=False)
    assert (token.access_token, token.refresh_token) == ("x" * 16_384, "y" * 16_384)
    for name in ("access_token", "refresh_token"):
        authority.answers = [Answer(200, {**longest, name: "x" * 16_385})]
        if name == "access_token":
            with pytest.raises(TokenEndpointError, match="unreadable answer"):
                endpoint.fetch(ALICE, patient=False)
        else:
            assert endpoint.fetch(ALICE, patient=False).refresh_token is None


# --- whose connection, certificate and name ---------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["", 0, 0.0, [], b""])
def test_a_falsy_verify_is_an_error(verify: Any, endpoint: TokenEndpoint, host: requests.Session) -> None:
    """Only a literal False switches checking off: what is merely falsy is refused before anything is sent."""
    host.verify = verify
    with pytest.raises(ValueError, match="verify must be True, False or the path of a CA bundle"):
        endpoint.fetch(ALICE, patient=True)
    with pytest.raises(ValueError, match="verify must be"):
        endpoint.revoke("alice", OLD, patient=True)


def test_verify_none_is_the_default(
    endpoint: TokenEndpoint, host: requests.Session, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a word on verify certificates are checked, by REQUESTS_CA_BUNDLE if it is set; False checks nothing."""
    host.verify = None
    with pytest.raises(TokenEndpointError, match="no trust in finAPI's token endpoint"):
        endpoint.fetch(ALICE, patient=False)
    assert loopback.sent == []
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", loopback.ca)
    assert endpoint.fetch(ALICE, patient=False).access_token == "token-1"
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    host.verify = False
    with pytest.warns(InsecureRequestWarning):
        assert endpoint.fetch(ALICE, patient=False).access_token == "token-2"


@pytest.mark.parametrize("name", ["my-app/7", None])
def test_what_goes_along_of_the_sessions_headers(
    name: str | None, endpoint: TokenEndpoint, host: requests.Session, loopback: Loopback
) -> None:
    """The session's User-Agent goes along on both calls, nothing else of its headers; no cache may keep the answers."""
    host.headers.update({"user-agent": name, "X-Mine": "1", "Accept": "text/html", "PSU-IP-Address": "192.0.2.1"})
    endpoint.fetch(CLIENT, patient=False)
    endpoint.revoke("id", Token("token-1"), patient=False)
    host.headers = None  # type: ignore[assignment]
    endpoint.fetch(CLIENT, patient=False)
    assert [sent.headers.get("user-agent", "").split("/")[0] for sent in loopback.sent] == [
        *["my-app" if name else "python-urllib3"] * 2,
        "python-requests",
    ]
    for sent in loopback.sent:
        assert sent.headers["cache-control"] == "no-store" and sent.headers["accept"] == "application/json"
        assert not {"x-mine", "psu-ip-address"} & set(sent.headers)


def test_a_password_goes_over_a_connection_made_for_it(tcp: Any, host: requests.Session) -> None:
    """A pooled connection that a load balancer has dropped costs no password: it arrives, once, and is answered."""
    bodies: list[tuple[int, bytes]] = []

    def talk(connection: ssl.SSLSocket, number: int) -> None:
        while body := _read_request(connection):
            bodies.append((number, body))
            if len([of for of, _ in bodies if of == number]) > 1:
                return  # it looked alive; what is sent on it now is lost
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(SMALL), SMALL))

    server = tcp(talk)
    endpoint = server.endpoint(host)
    endpoint.fetch(CLIENT, patient=False)
    assert endpoint.fetch(ALICE, patient=False).access_token == "sound"
    assert [(number, b"her-p4ssword" in body) for number, body in bodies] == [(1, False), (2, True)]
    with pytest.raises(TokenEndpointError, match="did not answer"):  # others share their connections
        endpoint.fetch(CLIENT, patient=False)
    assert server.connections == 2


def test_a_password_has_its_adapters_settings(host: requests.Session, loopback: Loopback, authority: Authority) -> None:
    """Its own connection is made as all others of the caller's adapter, and the adapter's own are left as they are."""
    pinned = PinnedAdapter(loopback.ca)
    host.mount("https://", pinned)
    host.verify = True
    environment = Environment(loopback.origin)
    endpoint = TokenEndpoint(host, environment, Journal(environment.base_url, None), lambda: "r-7", Retry(0))
    for credentials in (ALICE, CLIENT, ALICE, CLIENT):
        endpoint.fetch(credentials, patient=False)
    assert loopback.connections == 2 and len(pinned.poolmanager.pools) == 1


class PinnedAdapter(HTTPAdapter):
    """An adapter with a CA of its own."""

    def __init__(self, ca: str) -> None:
        self._context = ssl.create_default_context(cafile=ca)
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make connections that trust it."""
        super().init_poolmanager(*args, **kwargs, ssl_context=self._context)

    def cert_verify(self, *_: Any) -> None:
        """Leave it to that."""


# --- adapters of the caller's -----------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [3, 0, False, None, Retry(0, status_forcelist=[503], allowed_methods=None)])
def test_retries_of_an_adapter_may_be_a_number(
    retries: Any, endpoint: TokenEndpoint, host: requests.Session, authority: Authority
) -> None:
    """Whatever urllib3 takes for max_retries works, is not used for token calls, and is left to the adapter."""
    adapter = HTTPAdapter()
    adapter.max_retries = retries
    host.mount("https://", adapter)
    authority.answers = [Answer(503)]
    with pytest.raises(TokenEndpointError) as caught:
        endpoint.fetch(CLIENT, patient=False)
    assert caught.value.status == 503 and len(authority.calls) == 1
    assert endpoint.fetch(ALICE, patient=True).access_token == "token-1"
    assert adapter.max_retries is retries


class FailingAdapter(HTTPAdapter):
    """An adapter that raises *error* in place of sending."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.calls = error, []

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        """Count, and raise."""
        body = request.body
        self.calls.append(body)
        raise self.error


@pytest.mark.parametrize("kind", [AttributeError, TypeError, KeyError, UserWarning, RecursionError, ValueError])
@pytest.mark.parametrize("credentials", [ALICE, CLIENT], ids=["password", "client"])
def test_an_adapters_own_error_is_the_callers(
    kind: type[Exception], credentials: Credentials, endpoint: TokenEndpoint, host: requests.Session
) -> None:
    """What an adapter of the caller's raises before there is an answer comes through at once, and says where it was."""
    adapter = FailingAdapter(kind("mine"))
    host.mount("https://", adapter)
    with pytest.raises(kind, match="mine") as caught:
        endpoint.fetch(credentials, patient=True)
    assert caught.value is adapter.error and len(adapter.calls) == 1
    notes = getattr(caught.value, "__notes__", [f"raised in {__file__}"])
    assert [note for note in notes if note.startswith(f"raised in {__file__}")]
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    assert __file__ not in frames[1:] and not any("requests" in frame for frame in frames)


def test_a_time_limit_that_a_signal_brings_is_the_callers(endpoint: TokenEndpoint, host: requests.Session) -> None:
    """A handler's TimeoutError comes through as it is, though it is an OSError and though somebody wrapped it."""

    def handler(_number: int, _frame: object) -> None:
        raise TimeoutError("over the limit")

    class Interrupted(HTTPAdapter):
        wrapping = False

        def send(self, *_: Any, **__: Any) -> requests.Response:
            try:
                signal.raise_signal(signal.SIGTERM)
            except OSError as error:
                if self.wrapping:
                    raise requests.ConnectionError("wrapped") from error
                raise
            raise AssertionError

    adapter = Interrupted()
    host.mount("https://", adapter)
    before = signal.signal(signal.SIGTERM, handler)
    try:
        for wrapping in (False, True):
            adapter.wrapping = wrapping
            with pytest.raises(TimeoutError, match="over the limit") as caught:
                endpoint.fetch(ALICE, patient=True)
            assert type(caught.value) is TimeoutError and raised_by_signal_handler(caught.value)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_the_caller_was_handling_keeps_its_frames(endpoint: TokenEndpoint, host: requests.Session) -> None:
    """The frames that are cut off are those of the call: not those of an error in whose handling it was made."""
    host.mount("https://", FailingAdapter(AttributeError("mine")))
    try:
        raise LookupError("before")
    except LookupError as before:
        with pytest.raises(AttributeError) as caught:
            endpoint.fetch(CLIENT, patient=False)
        assert caught.value.__context__ is before and before.__traceback__ is not None


class AnsweringAdapter(BaseAdapter):
    """An adapter without urllib3 that answers with *response*."""

    def __init__(self, response: requests.Response) -> None:
        super().__init__()
        self.response = response

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        """Answer."""
        self.response.request, self.response.url = request, request.url or ""
        return self.response

    def close(self) -> None:
        """Keep nothing open."""


@pytest.mark.parametrize("read", [True, False])
def test_an_adapter_without_urllib3(read: bool, endpoint: TokenEndpoint, host: requests.Session) -> None:
    """An answer that an adapter made by itself is taken, from a file or read already."""
    response = requests.Response()
    response.status_code = 200
    if read:
        response._content = SMALL
    else:
        response.raw = io.BytesIO(SMALL)
    host.mount("https://", AnsweringAdapter(response))
    assert endpoint.fetch(ALICE, patient=False).access_token == "sound"


# --- the cause in words -----------------------------------------------------------------------------------------


def _fails(endpoint: TokenEndpoint, credentials: Credentials = CLIENT) -> TokenEndpointError:
    """Return what a call fails of, and see to it that it was made once, though failures are waited out."""
    tries: list[int] = []
    with pytest.raises(TokenEndpointError) as caught:
        endpoint.fetch(credentials, patient=True, before_each_try=lambda: tries.append(1))
    assert len(tries) == 1
    return caught.value


SETTINGS = "Check verify, cert, proxies and adapters of the client's session."


def test_socks_without_its_library(endpoint: TokenEndpoint, host: requests.Session) -> None:
    """A SOCKS proxy without what it needs is told in words, and not tried again."""
    host.proxies = {"https": "socks5://127.0.0.1:9"}
    error = _fails(endpoint)
    assert "could not be sent (InvalidSchema: Missing dependencies for SOCKS support.)" in str(error)
    assert SETTINGS in str(error)


def test_a_proxys_password_is_not_told(endpoint: TokenEndpoint, host: requests.Session) -> None:
    """The address of a proxy that is none is shown without its password."""
    host.proxies = {"https": "http://me:my-p4ss@[::1"}
    assert "could not be sent" in str(_fails(endpoint)) and "my-p4ss" not in str(_fails(endpoint))


def test_a_key_that_does_not_fit(endpoint: TokenEndpoint, host: requests.Session, tmp_path: Path) -> None:
    """A client's key of another certificate, or a file that holds no certificate, is told, and not tried again."""
    one, other = (trustme.CA().issue_cert("client.example.com") for _ in range(2))
    one.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    other.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "junk.pem").write_text("junk")
    for cert in ((str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")), str(tmp_path / "junk.pem")):
        host.cert = cert
        error = _fails(endpoint)
        assert "the client's certificate or key does not fit (SSLError: [" in str(error)
        assert SETTINGS in str(error) and not error.maybe_judged


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "reset"), BrokenPipeError(32, "broken"), TimeoutError("late")]
)
def test_an_adapters_own_broken_connection(error: OSError, endpoint: TokenEndpoint, host: requests.Session) -> None:
    """An adapter that lets the operating system's errors through may have sent the password: it is not sent again."""
    adapter = FailingAdapter(error)
    host.mount("https://", adapter)
    with pytest.raises(TokenEndpointError, match="did not answer") as caught:
        endpoint.fetch(ALICE, patient=True)
    assert caught.value.maybe_judged and len(adapter.calls) == 1


def test_paths_are_no_secrets(endpoint: TokenEndpoint, host: requests.Session) -> None:
    """The path of a file that is missing is shown whole, whatever is a part of it; a secret beside it is not."""
    path = "/somewhere/of/id/0123456789/cl1ent-s3cret/for-her-p4ssword.pem"
    host.cert = path
    assert f"invalid path: {path})" in str(_fails(endpoint))
    host.mount("https://", FailingAdapter(OSError(f"not {path} but cl1ent-s3cret")))
    assert f"(OSError: not {path} but [redacted])" in str(_fails(endpoint))


def test_the_text_of_responses_is_told(endpoint: TokenEndpoint, loopback: Loopback) -> None:
    """Where a test mocks with responses and forgot the token call, that library's own words say so."""
    with responses.RequestsMock() as mock, pytest.raises(TokenEndpointError) as caught:
        mock.get("https://elsewhere.example.com", body="x")
        mock.assert_all_requests_are_fired = False
        endpoint.fetch(CLIENT, patient=False)
    assert "Connection refused by Responses" in str(caught.value) and "/oauth/token" in str(caught.value)


def test_a_proxy_of_a_single_call_is_hinted_at(host: requests.Session) -> None:
    """Where no connection comes about, the error says that a single call's proxies are not used here."""
    environment = Environment("https://127.0.0.1:9")
    endpoint = TokenEndpoint(host, environment, Journal(environment.base_url, None), lambda: "r", Retry(0))
    hint = "set proxies on the client's session, or HTTPS_PROXY; a single call's are not used here"
    with pytest.raises(TokenEndpointError, match=hint) as caught:
        endpoint.fetch(CLIENT, patient=False)
    assert "[Errno" in str(caught.value) and "refused" in str(caught.value)
    host.proxies = {"https": "http://127.0.0.1:9"}
    with pytest.raises(TokenEndpointError) as caught:
        endpoint.fetch(CLIENT, patient=False)
    assert hint not in str(caught.value)


@pytest.mark.parametrize("status", [200, 400, 401])
@pytest.mark.parametrize(
    "code",
    ["invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope", "invalid_client_metadata"],
)
@pytest.mark.parametrize("spelt", [str.lower, str.upper, str.title])
def test_a_code_about_the_client(
    spelt: Callable[[str], str], code: str, status: int, endpoint: TokenEndpoint, authority: Authority
) -> None:
    """RFC 6749's codes about the client are its error, with advice that fits, whatever the status and grant."""
    for credentials, renewed in ((ALICE, None), (ALICE, OLD), (CLIENT, None)):
        authority.answers = [Answer(status, {"error": spelt(code), "error_description": "no"})]
        with pytest.raises(InvalidClientError, match="client's credentials") as caught:
            endpoint.fetch(credentials, renewed, patient=True)
        error = caught.value
        assert (error.status, error.code) == (status, spelt(code)) and not error.maybe_judged
        assert "password" not in error.advice and ("client_id" in error.advice) is (code == "invalid_client")
    assert len(authority.calls) == 3


ADVISED = {
    "wrong password": (ALICE, None, Answer(400, {"error": "invalid_grant"}), "Correct the username or password"),
    "odd request": (ALICE, None, Answer(400, {"error": "invalid_request"}), "Correct the username or password"),
    "client": (CLIENT, None, Answer(400, {"error": "invalid_request"}), "Check client_id and client_secret"),
    "refresh token": (ALICE, OLD, Answer(400, {"error": "invalid_grant"}), "It is not sent again"),
    "refresh token 401": (ALICE, OLD, Answer(401, {"error": "INVALID_TOKEN"}), "It is not sent again"),
    "expired": (ALICE, OLD, Answer(401), "The refresh token may have expired"),
    "client secret": (ALICE, OLD, Answer(401, {"error": "invalid_client"}), "Check client_id and client_secret"),
    "outage": (ALICE, None, Answer(503), "The fault is not here: try again later."),
    "limit": (ALICE, None, Answer(429), "Too many calls: try again later."),
    "gateway": (ALICE, None, Answer(504), "The fault is not here: try again later. The password may have been counted"),
    "gateway, no password": (ALICE, OLD, Answer(504), "The fault is not here: try again later."),
    "elsewhere": (ALICE, None, Answer(404), "Check the base URL"),
    "moved": (ALICE, None, Answer(301, headers={"Location": "/x"}), "Check the base URL"),
    "junk": (ALICE, None, Answer(200, "<html>"), "Check base URL, network, proxies and verify"),
}


@pytest.mark.parametrize("kind", ADVISED)
def test_advice_fits_the_cause(kind: str, endpoint: TokenEndpoint, authority: Authority) -> None:
    """An outage is not the base URL's fault, a refused refresh token not the client's, a client has no password."""
    credentials, renewed, answer, advice = ADVISED[kind]
    authority.answers = [answer]
    with pytest.raises(TokenError) as caught:
        endpoint.fetch(credentials, renewed, patient=False)
    assert str(caught.value).partition("). ")[2].startswith(advice)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_answer_with_a_byte_order_mark(endpoint: TokenEndpoint, authority: Authority) -> None:
    """JSON behind a byte order mark is read, a token as well as a refusal, and a token's null type is bearer."""
    mark = b"\xef\xbb\xbf"
    authority.answers = [Answer(200, mark + b'{"access_token": "sound", "token_type": null}')]
    assert endpoint.fetch(CLIENT, patient=False).access_token == "sound"
    authority.answers = [Answer(400, mark + b'{"error": "invalid_client"}')]
    with pytest.raises(InvalidClientError):
        endpoint.fetch(CLIENT, patient=False)


def test_an_errors_repr(endpoint: TokenEndpoint, authority: Authority) -> None:
    """The repr of an error has what it was, and of status, code and request id those that there are."""
    authority.answers = [Answer(400, {"error": "invalid_grant", "error_description": "so"}, {"X-Request-Id": "r-9"})]
    with pytest.raises(InvalidGrantError) as caught:
        endpoint.fetch(ALICE, patient=False)
    facts = "status=400, code='invalid_grant', request_id='r-9'"
    assert repr(caught.value) == f"InvalidGrantError('finAPI refused the grant', {facts})"
    assert repr(TokenEndpointError("no answer")) == "TokenEndpointError('no answer')"
