"""A local finAPI, for tests and for the demo."""

from __future__ import annotations

import json
import os
import ssl
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl

import trustme
from werkzeug.datastructures import Authorization
from werkzeug.exceptions import default_exceptions
from werkzeug.wrappers import Response

from .application import REQUEST_ID, create_application, error_body
from .authority import Authority, Kind, Refusal, Settings, User
from .server import HOST, Answer, Server
from .traffic import Call, Mishap, Plan, Traffic

if TYPE_CHECKING:
    from ..environment import Environment
    from ..session import FinapiSession

_Sandbox = TypeVar("_Sandbox", bound="Sandbox")
_NOT_RUNNING = "the sandbox does not run: use start(), or a with statement"


@dataclass(kw_only=True, eq=False)
class Sandbox(Settings):
    """A local finAPI over HTTPS on 127.0.0.1, with one client, one user and believable data.

    ``with Sandbox() as sandbox: sandbox.session()``, or ``start()`` and ``stop()``. All methods may be called
    from any thread, and every setting, those of :class:`Settings` included, changed while it runs.

    ``port`` 0 takes a free one. ``username`` and ``password`` are those of the first user. ``latency``
    in seconds precedes every answer; a mapping gives it by the end of the path.
    ``clock`` returns seconds; it is the machine's own, so that a test may freeze its own time.
    """

    port: int = 0
    username: str = "anna.schmidt"
    password: str = field(default="Kirschkuchen am Sonntag", repr=False)
    latency: float | Mapping[str, float] = 0
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def __post_init__(self) -> None:
        self._initial = {knob.name: getattr(self, knob.name) for knob in fields(self)}
        self._advanced = 0.0
        self._traffic = Traffic()
        self._authority = Authority(self, self._now)
        self._application = create_application(self._authority, self)
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self._ca_bundle = ""
        self.add_user(self.username, self.password)

    # Its life.

    def start(self: _Sandbox) -> _Sandbox:
        """Serve, in a thread of its own. Raises ``OSError`` if the port is taken."""
        if self._server is None:
            authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate = authority.issue_cert(HOST, "localhost", key_type=trustme.KeyType.ECDSA)
            certificate.configure_cert(context)
            self._server = Server(self._application, self._respond, context, self.port)
            self._ca_bundle = _temporary_file(authority.cert_pem.bytes())
            self._thread = threading.Thread(
                target=self._server.serve_forever, args=(0.02,), name="finapi-sandbox", daemon=True
            )
            self._thread.start()
        return self

    def stop(self) -> None:
        """Close all connections and the port."""
        server, thread = self._server, self._thread
        if server is not None and thread is not None:
            server.shutdown()
            thread.join()
            server.disconnect()
            self._server = self._thread = None
            with suppress(FileNotFoundError):
                os.unlink(self._ca_bundle)

    def __enter__(self: _Sandbox) -> _Sandbox:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def reset(self) -> None:
        """Put settings, users, tokens, time and calls back to what they were; close all connections."""
        if self._server is not None:
            self._server.disconnect()
            self._server.connections = 0
        self._traffic.clear()
        self._authority.clear()
        for name, value in self._initial.items():
            setattr(self, name, value)
        self._advanced = 0.0
        self.add_user(self.username, self.password)

    # How to reach it.

    @property
    def base_url(self) -> str:
        """Its https address. Raises ``RuntimeError`` while it does not run."""
        return f"https://{HOST}:{self._running.port}"

    @property
    def environment(self) -> Environment:
        """It as an environment, on the paths of API version 1 unless ``api_version`` is 2."""
        from ..environment import Environment

        return Environment(self.base_url, "/api/v2/oauth" if self.api_version == 2 else "/oauth")

    @property
    def ca_bundle(self) -> str:
        """The path of the certificate to trust, in PEM; ``stop()`` removes the file."""
        if self._server is None:
            raise RuntimeError(_NOT_RUNNING)
        return self._ca_bundle

    def session(self, username: str | None = None, password: Any = None, **options: Any) -> FinapiSession:
        """Return a session for the client or a user, that trusts the certificate and uses no proxy.

        The password of a user that the sandbox knows need not be given. *options* are ``FinapiSession``'s.
        """
        from ..session import FinapiSession

        if username is not None and password is None and username.lower() in self.users:
            password = self.users[username.lower()].password
        session = FinapiSession(
            options.pop("client_id", self.client_id),
            options.pop("client_secret", self.client_secret),
            username=username,
            password=password,
            **{"environment": self.environment, **options},
        )
        session.verify, session.trust_env = self.ca_bundle, False
        return session

    # What it saw.

    @property
    def calls(self) -> list[Call]:
        """The calls so far, in the order in which they were answered."""
        return self._traffic.calls

    def count(
        self,
        path: str | None = None,
        *,
        method: str | None = None,
        status: int | None = None,
        grant_type: str | None = None,
        kind: Kind | None = None,
        username: str | None = None,
        revoked: str | None = None,
    ) -> int:
        """Count the calls so far that were like this; *path* is the end of the path."""
        wanted = {"method": method, "status": status, "grant_type": grant_type}
        wanted |= {"kind": kind, "username": username, "revoked": revoked}
        return sum(1 for _ in self._traffic.matching(path, **wanted))

    @property
    def connections(self) -> int:
        """How many TLS connections were made so far."""
        return self._running.connections

    # What happens next.

    def answer_next(
        self,
        answer: int | Mishap = 503,
        *,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        path: str | None = None,
        grant_type: str | None = None,
        times: int = 1,
    ) -> None:
        """Answer the next *times* calls, on paths that end with *path* and for *grant_type*, otherwise.

        A status goes with *body* (bytes, text, or what JSON can hold; finAPI's own error if not given) and
        *headers*. ``"html"``, ``"empty"`` and ``"junk"`` are bodies with status 200. None of these is judged.
        ``"drop"`` closes the connection instead of answering, before the call is judged, ``"lose"`` after;
        ``"cut"`` closes it in the middle of the body, ``"truncated"`` sends half of it as if it were whole.

        Raises ``ValueError`` for another *answer*.
        """
        self._traffic.plan(Plan.of(answer, body, headers, path=path, grant_type=grant_type), times)

    def advance(self, seconds: float) -> None:
        """Move the sandbox's clock forward."""
        self._advanced += seconds

    def expire_tokens(self, username: str | None = None, *, kind: Kind | None = None, refresh: bool = False) -> None:
        """Let tokens of all, of a user or of a *kind* be expired; with *refresh* refresh tokens too."""
        self._authority.expire_tokens(username, kind=kind, refresh=refresh)

    def revoke_tokens(self, username: str | None = None, *, kind: Kind | None = None, refresh: bool = False) -> None:
        """Revoke tokens of all, of a user or of a *kind*; with *refresh* refresh tokens too."""
        self._authority.revoke_tokens(username, kind=kind, refresh=refresh)

    # Its users and its client.

    @property
    def users(self) -> dict[str, User]:
        """All users, by lower-cased id."""
        return self._authority.users

    def add_user(self, username: str, password: str, *, email: str | None = None, verified: bool = True) -> User:
        """Create a user. Raises :class:`Refusal` if the id is taken."""
        return self._authority.add_user(User(username, password, email=email, verified=verified))

    def remove_user(self, username: str) -> None:
        """Delete a user and revoke their tokens. Raises :class:`Refusal` for an unknown one."""
        self._authority.remove_user(username)

    def lock_user(self, username: str) -> None:
        """Lock a user and revoke their tokens, as too many bad passwords do."""
        self._authority.lock_user(username)

    def verify_user(self, username: str) -> None:
        """Verify a user."""
        self._authority.verify_user(username)

    def change_password(self, username: str, password: str) -> None:
        """Change a password, which unlocks the user and revokes their tokens."""
        self._authority.change_password(username, password)

    def change_client_secret(self, secret: str) -> None:
        """Change the client's secret, which revokes the client's tokens and not the users'."""
        self._authority.change_client_secret(secret)

    # One call.

    @property
    def _running(self) -> Server:
        if self._server is None:
            raise RuntimeError(_NOT_RUNNING)
        return self._server

    def _now(self) -> float:
        return self.clock() + self._advanced

    def _respond(self, environ: dict[str, Any], server: Server) -> Answer:
        call = self._described(environ)
        environ[REQUEST_ID] = call.request_id
        plan = self._traffic.take(call.path, call.grant_type) or Plan(None)
        server.pause(self._latency_of(call.path))
        if plan.status is None:
            response = Response.from_app(self._application, environ, buffered=True)
            call = replace(call, token=_given_token(response, call) or call.token)
        else:
            response = self._planned(plan, call)
        if plan.share < 1 and not plan.breaks:
            response.set_data(response.get_data()[: int(len(response.get_data()) * plan.share)])
        response.headers.setdefault("X-Request-Id", call.request_id)
        share = plan.share if plan.breaks else 1
        self._traffic.record(replace(call, status=response.status_code if share else None))
        return Answer(response, share)

    def _described(self, environ: Mapping[str, Any]) -> Call:
        """Return what can be told of a call before it is judged."""
        path, given = environ["PATH_INFO"], environ.get("HTTP_X_REQUEST_ID", "")
        form = _form(environ) if path.endswith(("/oauth/token", "/oauth/revoke")) else {}
        bearer = _bearer(environ)
        kind, username = self._caller(form, bearer)
        revoked = self._authority.owner(form.get("token"))
        return Call(
            method=environ["REQUEST_METHOD"],
            path=path,
            status=None,
            request_id=given if 0 < len(given) <= 255 else str(uuid.uuid4()),
            grant_type=form.get("grant_type"),
            kind=kind,
            username=username,
            token=bearer[:4] if bearer else None,
            revoked=(revoked.user_id or revoked.kind) if revoked else None,
        )

    def _caller(self, form: Mapping[str, str], bearer: str | None) -> tuple[Kind | None, str | None]:
        if form.get("grant_type") == "client_credentials":
            return "client", None
        if form.get("grant_type") == "password":
            return "user", form.get("username", "").lower()
        return self._authority.owner(bearer or form.get("refresh_token")) or (None, None)

    def _latency_of(self, path: str) -> float:
        if isinstance(self.latency, Mapping):
            return next((seconds for end, seconds in self.latency.items() if path.endswith(end)), 0)
        return self.latency

    def _planned(self, plan: Plan, call: Call) -> Response:
        status, body = plan.status or 0, plan.body
        if body is None:
            exception = default_exceptions.get(status)
            refusal = Refusal(status, "UNEXPECTED_ERROR", exception().description or "" if exception else "Planned")
            error = error_body(refusal, call.method, call.path, call.request_id, self.error_shape)
            body = json.dumps(error if status >= 400 else {}).encode()
        return Response(body, status, {"Content-Type": "application/json", **plan.headers})


def _form(environ: Mapping[str, Any]) -> dict[str, str]:
    stream = environ["wsgi.input"]
    body = stream.read().decode("utf-8", "replace")
    stream.seek(0)
    return dict(parse_qsl(body))


def _bearer(environ: Mapping[str, Any]) -> str | None:
    given = Authorization.from_header(environ.get("HTTP_AUTHORIZATION"))
    return given.token if given is not None and given.type == "bearer" else None


def _given_token(response: Response, call: Call) -> str | None:
    if response.status_code != 200 or not call.path.endswith("/oauth/token"):
        return None
    token: str = json.loads(response.get_data())["access_token"]
    return token[:4]


def _temporary_file(content: bytes) -> str:
    handle, path = tempfile.mkstemp(prefix="finapi-sandbox-", suffix=".pem")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    return path
