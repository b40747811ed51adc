"""A local finAPI, for tests and for the demo."""

from __future__ import annotations

import json
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from werkzeug.exceptions import default_exceptions
from werkzeug.wrappers import Response

from .application import REQUEST_ID, create_application, error_body
from .authority import Authority, Kind, Refusal, Settings, User
from .books import Books
from .certificates import Certificates
from .recording import bearer_of, described, given_token
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

    :param port: 0 takes a free one.
    :param username: the id of the first user.
    :param password: that user's.
    :param latency: seconds before every answer; a mapping gives it by the end of the path.
    :param clock: returns seconds; the machine's own, so that a test may freeze its own time.
    :param today: the last day that has transactions when it starts, the machine's by default; it moves on with
        :meth:`advance`.
    :param ca_file: where the certificate to trust is kept, its key beside it (``.key``), so that a later start has the
        same; ``None`` makes one for each start, which ``stop()`` removes.
    """

    port: int = 0
    username: str = "anna.schmidt"
    password: str = field(default="Kirschkuchen am Sonntag", repr=False)
    latency: float | Mapping[str, float] = 0
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    today: date | None = None
    ca_file: str | None = None

    def __post_init__(self) -> None:
        self._initial = {knob.name: getattr(self, knob.name) for knob in fields(self)}
        self._advanced = 0.0
        self._traffic = Traffic()
        self._authority = Authority(self, self._now)
        self._books = Books(self._start_day, self._day)
        self._application = create_application(self._authority, self, self._books)
        self._certificates = Certificates()
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self.add_user(self.username, self.password)

    # Its life.

    def start(self: _Sandbox) -> _Sandbox:
        """Serve, in a thread of its own.

        Raises ``OSError`` if the port is taken or ``ca_file`` cannot be used, ``ValueError`` if it holds no authority.
        """
        if self._server is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._certificates.configure(context, self.ca_file, HOST, "localhost")
            try:
                self._server = Server(self._application, self._respond, context, self.port)
            except OSError:
                self._certificates.remove()
                raise
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
            self._certificates.remove()

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
        self._books.clear()
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
        """The path of the certificate to trust, in PEM; ``stop()`` removes the file, unless it is your ``ca_file``."""
        if self._server is None:
            raise RuntimeError(_NOT_RUNNING)
        return self._certificates.path

    def environ(self, username: str | None = None) -> dict[str, str]:
        """Return the environment variables that lead a program here: what ``FinapiSession.from_env()`` reads.

        They are the client's, with *username* also that user's. The certificate is told to requests and curl, and
        where the machine has proxies, ``no_proxy`` leads past them. Raises :class:`Refusal` for an unknown user, and
        ``RuntimeError`` while it does not run.
        """
        variables = {
            "FINAPI_ENVIRONMENT": self.base_url + ("/api/v2/oauth" if self.api_version == 2 else ""),
            "FINAPI_CLIENT_ID": self.client_id,
            "FINAPI_CLIENT_SECRET": self.client_secret,
        }
        if username is not None:
            user = self._authority.user(username)
            variables |= {"FINAPI_USERNAME": user.id, "FINAPI_PASSWORD": user.password}
        variables |= {"REQUESTS_CA_BUNDLE": self.ca_bundle, "CURL_CA_BUNDLE": self.ca_bundle}
        proxies = urllib.request.getproxies()
        if set(proxies) - {"no"}:
            variables["no_proxy"] = ",".join(filter(None, (HOST, proxies.get("no"))))
        return variables

    def session(self, username: str | None = None, password: Any = None, **options: Any) -> FinapiSession:
        """Return a session for the client or a user, that trusts the certificate and uses no proxy.

        The password of a user that the sandbox knows need not be given. *options* are ``FinapiSession``'s.
        """
        from ..session import FinapiSession

        if username is not None and password is None and username.lower() in self.users:
            password = self.users[username.lower()].password
        known = {"environment": self.environment} | ({} if password is None else {"password": password})
        session = FinapiSession(
            options.pop("client_id", self.client_id),
            options.pop("client_secret", self.client_secret),
            username=username,
            **{**known, **options},
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
        method: str | None = None,
        grant_type: str | None = None,
        times: int = 1,
    ) -> None:
        """Answer the next *times* calls, on paths that end with *path*, of *method* and *grant_type*, otherwise.

        A status goes with *body* (bytes, text, or what JSON can hold; finAPI's own error if not given) and
        *headers*. ``"html"``, ``"empty"`` and ``"junk"`` are bodies with status 200. None of these is judged.
        ``"drop"`` closes the connection instead of answering, before the call is judged, ``"lose"`` after;
        ``"cut"`` closes it in the middle of the body, ``"truncated"`` sends half of it as if it were whole.

        Raises ``ValueError`` for another *answer*.
        """
        plan = Plan.of(answer, body, headers, path=path, method=method, grant_type=grant_type)
        self._traffic.plan(plan, times)

    def answer(
        self,
        path: str,
        answer: int | Mishap = 200,
        *,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        method: str | None = None,
        grant_type: str | None = None,
    ) -> None:
        """Answer all calls on paths that end with *path* so, until :meth:`reset`: what the sandbox itself lacks.

        Its arguments are those of :meth:`answer_next`, whose answers go before, as does a later ``answer`` for the same
        calls. A status below 400 is given for a living access token only, as finAPI would; OAuth calls need none.

        Raises ``ValueError`` for another *answer*.
        """
        self._traffic.stand(
            Plan.of(answer, body, headers, path=path, method=method, grant_type=grant_type, judged=True)
        )

    @property
    def planned(self) -> list[str]:
        """What :meth:`answer_next` planned and no call has asked for yet, one line each."""
        return [str(plan) for plan in self._traffic.planned]

    def assert_all_planned_used(self) -> None:
        """Raise ``AssertionError`` that names the planned answers that no call asked for."""
        left = self.planned
        assert not left, f"never asked for: {'; '.join(left)}"

    def advance(self, seconds: float) -> None:
        """Move the sandbox's clock forward, its ``today`` too."""
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

    def add_user(
        self,
        username: str,
        password: str,
        *,
        email: str | None = None,
        verified: bool = True,
        empty: bool = False,
    ) -> User:
        """Create a user, who has the believable data, or with *empty* only what is added.

        Raises :class:`Refusal` if the id is taken.
        """
        user = self._authority.add_user(User(username, password, email=email, verified=verified))
        self._books.forget(username, empty=empty)
        return user

    def add_account(
        self,
        username: str,
        name: str = "Girokonto",
        *,
        kind: str = "CHECKING",
        balance: float | Decimal = 0,
        iban: str | None = None,
    ) -> dict[str, Any]:
        """Give a user one more account, and return it as finAPI lists it.

        *kind* is finAPI's ``accountType``; *balance* is in euros, before any transaction. Raises :class:`Refusal` for
        an unknown user.
        """
        return self._books.add_account(self._authority.user(username).id, name, kind, Decimal(str(balance)), iban)

    def add_transaction(
        self,
        username: str,
        amount: float | Decimal,
        *,
        account: int | None = None,
        day: date | None = None,
        counterpart: str = "Somebody",
        purpose: str = "Something",
    ) -> dict[str, Any]:
        """Book *amount* (euros, below 0 what is spent) for a user, and return the transaction as finAPI lists it.

        *account* is an account's id, by default the first one's; *day* is today by default. A later day is there as
        soon as the sandbox's clock gets to it. Raises :class:`Refusal` for an unknown user or account.
        """
        user_id = self._authority.user(username).id
        return self._books.add_transaction(user_id, Decimal(str(amount)), account, day, counterpart, purpose)

    def remove_user(self, username: str) -> None:
        """Delete a user and revoke their tokens. Raises :class:`Refusal` for an unknown one."""
        self._authority.remove_user(username)
        self._books.forget(username)

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

    def _start_day(self) -> date:
        return self.today or date.today()

    def _day(self) -> date:
        if self.today is not None:
            return self.today + timedelta(seconds=self._advanced)
        return (datetime.now() + timedelta(seconds=self._advanced)).date()

    def _respond(self, environ: dict[str, Any], server: Server) -> Answer:
        call = described(environ, self._authority)
        environ[REQUEST_ID] = call.request_id
        plan = self._traffic.take(call) or Plan(None)
        server.pause(self._latency_of(call.path))
        if plan.status is None:
            response = Response.from_app(self._application, environ, buffered=True)
            call = replace(call, token=given_token(response, call) or call.token)
        else:
            response = self._planned(plan, call, bearer_of(environ))
        if plan.share < 1 and not plan.breaks:
            response.set_data(response.get_data()[: int(len(response.get_data()) * plan.share)])
        response.headers.setdefault("X-Request-Id", call.request_id)
        share = plan.share if plan.breaks else 1
        self._traffic.record(replace(call, status=response.status_code if share else None))
        return Answer(response, share)

    def _latency_of(self, path: str) -> float:
        if isinstance(self.latency, Mapping):
            return next((seconds for end, seconds in self.latency.items() if path.endswith(end)), 0)
        return self.latency

    def _planned(self, plan: Plan, call: Call, bearer: str | None) -> Response:
        refusal = self._refusal(plan, call, bearer)
        if refusal is not None:
            return self._refused(refusal, call, plan.headers if refusal.status == plan.status else {})
        body = b"{}" if plan.body is None else plan.body
        return Response(body, plan.status, {"Content-Type": "application/json", **plan.headers})

    def _refusal(self, plan: Plan, call: Call, bearer: str | None) -> Refusal | None:
        """Return what finAPI would say instead of what is planned, or in words of its own; ``None`` for neither."""
        status = plan.status or 0
        if plan.body is None and status >= 400:
            return Refusal(status, "UNEXPECTED_ERROR", _described_status(status))
        if plan.judged and status < 400 and "/oauth/" not in call.path:
            try:
                self._authority.check(bearer)
            except Refusal as refusal:
                return refusal
        return None

    def _refused(self, refusal: Refusal, call: Call, headers: Mapping[str, str]) -> Response:
        error = error_body(refusal, call.method, call.path, call.request_id, self.error_shape)
        return Response(json.dumps(error), refusal.status, {"Content-Type": "application/json", **headers})


def _described_status(status: int) -> str:
    exception = default_exceptions.get(status)
    return exception().description or "" if exception else "Planned"
