"""TLS servers on loopback ports that answer as the test says, and remember all that was sent to them."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import trustme


@dataclass(frozen=True)
class Sent:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        """The body as a form."""
        return dict(parse_qsl(self.body.decode(), keep_blank_values=True, strict_parsing=True))

    @property
    def bearer(self) -> str | None:
        """The token that it carried, if any."""
        return (self.headers.get("authorization") or "").removeprefix("Bearer ") or None


@dataclass
class Answer:
    """What to answer; ``drop`` closes the connection instead."""

    status: int = 200
    body: bytes | str | dict[str, Any] = b""
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False


Responder = Callable[[Sent], Answer]


@dataclass
class Loopback:
    """A server: its origin, what was sent to it, and how it answers each path."""

    origin: str
    ca: str
    routes: dict[str, Responder] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    connections: int = 0

    def to(self, path: str) -> list[Sent]:
        """What was sent to *path*."""
        return [request for request in list(self.sent) if request.path == path]

    def answer(self, request: Sent) -> Answer:
        """Answer as the longest route that fits says."""
        self.sent.append(request)
        fitting = [path for path in self.routes if request.path.startswith(path)]
        return self.routes[max(fitting, key=len)](request) if fitting else Answer(404)


class Authority:
    """finAPI's token endpoint at its simplest: numbered tokens, the newest of which is the live one."""

    def __init__(self, server: Loopback, lifetime: int = 3600) -> None:
        self.lifetime = lifetime
        self.issued = 0
        self.live: set[str] = set()
        self.answers: list[Answer] = []
        self._lock = threading.Lock()
        self._server = server
        server.routes["/oauth/token"] = self.token
        server.routes["/oauth/revoke"] = self.revoke
        server.routes["/api/"] = self.api

    @property
    def calls(self) -> list[dict[str, str]]:
        """The forms of the token calls so far."""
        return [request.form for request in self._server.to("/oauth/token")]

    @property
    def revoked(self) -> list[dict[str, str]]:
        """The forms of the revocations so far."""
        return [request.form for request in self._server.to("/oauth/revoke")]

    def token(self, request: Sent) -> Answer:
        """Give a new token, or the answer that the test wants next."""
        with self._lock:
            if self.answers:
                return self.answers.pop(0)
            self.issued += 1
            token = f"token-{self.issued}"
            self.live.add(token)
        answer = {"access_token": token, "token_type": "bearer", "expires_in": self.lifetime, "scope": "all"}
        if request.form["grant_type"] != "client_credentials":
            answer["refresh_token"] = f"refresh-{self.issued}"
        return Answer(body=answer)

    def revoke(self, request: Sent) -> Answer:
        """Revoke an access token."""
        self.live.discard(request.form["token"])
        return Answer()

    def api(self, request: Sent) -> Answer:
        """Answer a call that carries a live token with what was sent."""
        if request.bearer not in self.live:
            description = f"Invalid access token: {request.bearer}"
            return Answer(401, {"error": "invalid_token", "error_description": description})
        return Answer(body={"bearer": request.bearer, "body": request.body.decode("latin-1")})

    def kill(self) -> None:
        """Revoke all tokens behind everybody's back."""
        self.live.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 30
    loopback: Loopback

    def setup(self) -> None:
        assert isinstance(self.request, ssl.SSLSocket)
        self.request.do_handshake()
        self.loopback.connections += 1
        super().setup()

    def serve(self) -> None:
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Sent(self.command, url.path, dict(parse_qsl(url.query)), headers, self._read())
        answer = self.loopback.answer(request)
        if answer.drop:
            self.close_connection = True
            return
        body = json.dumps(answer.body) if isinstance(answer.body, dict) else answer.body
        content = body.encode() if isinstance(body, str) else body
        self.send_response(answer.status)
        for name, value in ({"X-Request-Id": headers.get("x-request-id", "none")} | answer.headers).items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = self.close_connection or "Content-Length" in answer.headers

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = serve

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        """A client that goes away, or does not trust us, is nothing to print."""


class Authorities:
    """One CA for the servers of a test run."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.path = str(folder / "ca.pem")
        self.ca.cert_pem.write_to_path(self.path)
        self._certificate = self.ca.issue_cert("127.0.0.1", "localhost")

    @contextmanager
    def serve(self, host: str = "127.0.0.1") -> Iterator[Loopback]:
        """Serve on a free port, under the name *host*."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._certificate.configure_cert(context)
        server = _Server(("127.0.0.1", 0), _Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        loopback = Loopback(f"https://{host}:{server.server_address[1]}", self.path)
        server.RequestHandlerClass = type("Handler", (_Handler,), {"loopback": loopback})
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield loopback
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
