"""finAPI as the bench needs it: lean, over loopback TLS in a process of its own, or as an adapter."""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import requests
import trustme
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

HOST = "127.0.0.1"
#: msal takes no authority without a path.
TENANT = "/tenant"
_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Rules:
    """How it answers token calls: for how long, the same token again or not, how slowly, or not at all."""

    lifetime: float = 3600
    sticky: bool = True
    latency: float = 0.0
    failing: bool = False


@dataclass
class Counts:
    """What came in since the last time somebody asked; bytes are those of HTTP, both ways."""

    connections: int = 0
    requests: int = 0
    bytes: int = 0
    token_calls: int = 0


@dataclass
class Finapi:
    """Tokens and answers, without a socket. Thread-safe."""

    rules: Rules = field(default_factory=Rules)
    counts: Counts = field(default_factory=Counts)
    ends: dict[str, float] = field(default_factory=dict)
    newest: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def plant(self, left: float) -> str:
        """Give the client a token that is good for *left* more seconds, and return it."""
        with self.lock:
            return self._issue("client", left)

    def revoke(self) -> None:
        """Revoke all tokens behind everybody's back."""
        with self.lock:
            self.ends.clear()

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
        """Judge one request."""
        if path == "/oauth/token":
            return self._token(dict(parse_qsl(body.decode())))
        if path == "/oauth/revoke":
            return 200, {}
        if path == f"{TENANT}/.well-known/openid-configuration":
            return 200, discovery(f"https://{headers.get('host', HOST)}")
        bearer = headers.get("authorization", "").partition(" ")[2]
        with self.lock:
            alive = time.time() < self.ends.get(bearer, 0.0)
        return (200, {"banks": []}) if alive else (401, {"error": "invalid_token"})

    def _token(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        rules = self.rules
        time.sleep(rules.latency)
        with self.lock:
            self.counts.token_calls += 1
            if rules.failing:
                return 503, {"error": "unavailable"}
            who, now = form.get("username", "client"), time.time()
            token = self.newest.get(who, "")
            if not rules.sticky or now >= self.ends.get(token, 0.0) or form["grant_type"] == "refresh_token":
                token = self._issue(who, rules.lifetime)
            left = int(self.ends[token] - now + 0.001)
        answer = {"access_token": token, "token_type": "bearer", "expires_in": left, "scope": "all"}
        return 200, answer if who == "client" else answer | {"refresh_token": f"refresh-{who}"}

    def _issue(self, who: str, left: float) -> str:
        token = secrets.token_urlsafe(48)
        self.ends[token], self.newest[who] = time.time() + left, token
        return token


def discovery(origin: str) -> dict[str, str]:
    """Return what msal wants to read before it asks for a token."""
    paths = {
        "authorization_endpoint": "/oauth/authorize",
        "token_endpoint": "/oauth/token",
        "jwks_uri": "/jwks",
    }
    return {"issuer": origin + TENANT, **{name: origin + path for name, path in paths.items()}}


class Offline(BaseAdapter):
    """Answers at once and sends nothing: what is measured on it is the client's own work."""

    def __init__(self) -> None:
        super().__init__()
        self.finapi = Finapi()
        self._fine = self._response(200, {"banks": []})

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Answer a token call as finAPI does, anything else with 200 and the same body."""
        path = urlsplit(request.url or "").path
        response = requests.Response()
        if path.startswith("/api/"):
            response.__dict__.update(self._fine)
        else:
            body = request.body if isinstance(request.body, bytes) else str(request.body or "").encode()
            host = {"host": urlsplit(request.url or "").netloc}
            response.__dict__.update(self._response(*self.finapi.answer(request.method or "", path, host, body)))
        response.request, response.url = request, request.url or ""
        return response

    def _response(self, status: int, body: dict[str, Any]) -> dict[str, Any]:
        return {
            "status_code": status,
            "_content": json.dumps(body).encode(),
            "_content_consumed": True,
            "headers": CaseInsensitiveDict({"Content-Type": "application/json"}),
            "raw": _Nothing(),
            "connection": self,
        }

    def close(self) -> None:
        """Nothing is open."""


class _Nothing:
    """A raw answer that has been read."""

    def close(self) -> None:
        """Nothing is open."""

    release_conn = close


class _Connection:
    """Serves one connection, request after request."""

    def __init__(self, sock: ssl.SSLSocket, finapi: Finapi) -> None:
        self._sock, self._finapi, self._buffer = sock, finapi, b""

    def serve(self) -> None:
        """Answer until the client leaves."""
        with self._sock:
            self._sock.do_handshake()
            with self._finapi.lock:
                self._finapi.counts.connections += 1
            while self._one():
                pass

    def _one(self) -> bool:
        while b"\r\n\r\n" not in self._buffer:
            if not self._more():
                return False
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        self._buffer = rest
        while len(self._buffer) < length:
            if not self._more():
                return False
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        method, target, _ = first.split()
        answer = _encoded(*self._finapi.answer(method, target.partition("?")[0], headers, body))
        with self._finapi.lock:
            self._finapi.counts.requests += 1
            self._finapi.counts.bytes += len(head) + 4 + length + len(answer)
        self._sock.sendall(answer)
        return True

    def _more(self) -> bool:
        data = self._sock.recv(65536)
        self._buffer += data
        return bool(data)


def _encoded(status: int, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def _serve(sock: socket.socket, finapi: Finapi) -> None:
    try:
        _Connection(sock, finapi).serve()  # type: ignore[arg-type]
    except OSError:
        sock.close()


def _accept(listener: socket.socket, finapi: Finapi) -> None:
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_serve, args=(sock, finapi), daemon=True).start()


def _obey(finapi: Finapi, order: dict[str, Any]) -> object:
    if "rules" in order:
        finapi.rules = Rules(**order["rules"])
    if "revoke" in order:
        finapi.revoke()
    if "plant" in order:
        return finapi.plant(order["plant"])
    with finapi.lock:
        counts, finapi.counts = finapi.counts, Counts()
    return asdict(counts)


def main() -> None:
    """Serve until standard input ends; each line of it is an order."""
    finapi, authority = Finapi(), trustme.CA(key_type=trustme.KeyType.ECDSA)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST, key_type=trustme.KeyType.ECDSA).configure_cert(context)
    with (
        tempfile.NamedTemporaryFile(suffix=".pem") as bundle,
        socket.create_server((HOST, 0), backlog=256) as plain,
    ):
        bundle.write(authority.cert_pem.bytes())
        bundle.flush()
        listener = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=_accept, args=(listener, finapi), daemon=True).start()
        print(
            json.dumps({"origin": f"https://{HOST}:{listener.getsockname()[1]}", "ca": bundle.name}),
            flush=True,
        )
        for line in sys.stdin:
            print(json.dumps(_obey(finapi, json.loads(line))), flush=True)


@dataclass(frozen=True)
class Place:
    """Where a client finds finAPI: the origin, whom to trust, and an adapter if nothing is to be sent."""

    origin: str = "https://sandbox.finapi.io"
    ca: str | bool = True
    adapter: Offline | None = None

    @property
    def token_url(self) -> str:
        """Where tokens are asked for."""
        return f"{self.origin}/oauth/token"

    def fit(self, session: requests.Session) -> Any:
        """Make *session* talk to this place, and return it."""
        session.verify = self.ca
        if self.adapter is not None:
            session.mount("https://", self.adapter)
        return session


@dataclass
class Remote:
    """The server's process, as the bench sees it."""

    place: Place
    process: subprocess.Popen[str]

    def rule(self, **rules: Any) -> None:
        """Answer by these rules from now on, forget all tokens, and count anew."""
        self._order({"rules": rules, "revoke": True})

    def revoke(self) -> None:
        """Revoke all tokens behind everybody's back, and count anew."""
        self._order({"revoke": True})

    def plant(self, left: float, lifetime: float = 3600) -> dict[str, Any]:
        """Return a token of the client's as OAuth libraries keep it, good for *left* more seconds."""
        token, now = self._order({"plant": left}), time.time()
        return {
            "access_token": token,
            "token_type": "bearer",
            "expires_in": lifetime,
            "expires_at": now + left,
        }

    def counts(self) -> Counts:
        """Return what came in since the last order but ``plant``."""
        return Counts(**self._order({}))

    def _order(self, order: dict[str, Any]) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


@contextmanager
def serving() -> Iterator[Remote]:
    """Run the server in a process of its own, so that it does not share the clients' interpreter lock."""
    command = [sys.executable, "-m", "tests.bench.servers"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield Remote(Place(**json.loads(process.stdout.readline())), process)
        finally:
            process.stdin.close()
            process.wait(10)


if __name__ == "__main__":
    main()
