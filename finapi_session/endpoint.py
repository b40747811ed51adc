"""The two OAuth calls, over requests-oauthlib: an answer becomes a Token or an error."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import requests
from requests.auth import AuthBase
from urllib3.exceptions import MaxRetryError, NewConnectionError, SSLError
from urllib3.util import Retry

from .environment import Environment
from .error_body import ErrorBody, read_object, retry_after, sent_tokens
from .errors import (
    AccessDeniedError,
    FinapiError,
    InvalidClientError,
    InvalidGrantError,
    RevocationError,
    TokenEndpointError,
    TokenError,
    UserLockedError,
    raised_by_signal_handler,
)
from .events import Journal
from .identity import Credentials
from .redaction import Redacted, redact
from .tokens import Token, sound_refresh_token

if TYPE_CHECKING:
    from .transport import Transport

#: Seconds after which a call is not tried again, waiting included. With the longest single try (CONNECT +
#: READ) this bounds a token call to 70 s.
PATIENCE = 30.0
#: Seconds that one try may take to connect, and to answer; a session's own timeout counts if it is shorter.
CONNECT, READ = 10.0, 30.0
#: How often what is passing is tried again, and how long is waited in between (0, 1, 2 s and a little chance).
RETRIES = Retry(total=3, backoff_factor=0.5, backoff_max=10, backoff_jitter=0.25)

Timeout = Union[float, tuple[Union[float, None], Union[float, None]], None]

_PASSING = {408, 425, 429, 500, 502, 503, 504}
#: Of these a password was surely not judged, so it may be sent again.
_NOT_JUDGED = {429, 503}
#: Here nobody was there to judge it.
_NOBODY = {404, 405}
_BY_STATUS: dict[int, type[TokenError]] = {
    400: InvalidGrantError,
    401: InvalidClientError,
    403: AccessDeniedError,
    423: UserLockedError,
}
_BY_CODE: dict[str | None, type[TokenError]] = {
    "invalid_client": InvalidClientError,
    "invalid_grant": InvalidGrantError,
}
_NOT_THERE = "there is no token endpoint of finAPI at this address"
_WHAT: dict[type[TokenError], str] = {
    InvalidClientError: "finAPI refused the client's credentials",
    InvalidGrantError: "finAPI refused the grant",
    AccessDeniedError: "finAPI denied a token",
    UserLockedError: "finAPI has locked the user",
}


class _Try(NamedTuple):
    """What one call came to. Errors are returned, and raised where no local variable holds a secret."""

    token: Token | None = None
    error: FinapiError | None = None
    again: bool = False
    refreshed: bool = False
    request_id: str | None = None


def _nothing() -> None:
    """Do nothing, before a try."""


class TokenEndpoint:
    """finAPI's token and revoke calls for one host session. It keeps no state between calls."""

    def __init__(
        self,
        host: requests.Session,
        environment: Environment,
        journal: Journal,
        request_id: Callable[[], str],
        retries: Retry = RETRIES,
        timeout: Timeout = None,
    ) -> None:
        self.environment = environment
        self._host = host
        self._journal = journal
        self._request_id = request_id
        self._retries = retries
        self._timeout = _shorter(timeout)

    def fetch(
        self,
        credentials: Credentials,
        renewed: Token | None = None,
        *,
        patient: bool,
        before_each_try: Callable[[], object] = _nothing,
    ) -> Token:
        """Ask for a token: by the refresh token of *renewed* if given, else by password, else for the client.

        Transient failures are tried again if *patient*; a password only where finAPI surely did not judge it, since
        each wrong one counts towards the user's lock. *before_each_try* is called right before every single try; what
        it raises comes through. Raises a :class:`TokenError`, with ``maybe_judged`` set where a password was sent
        and may have been judged.
        """

        def ask() -> _Try:
            before_each_try()
            return self._ask(credentials, renewed)

        attempt = self._persist(ask, patient, str(credentials))
        assert attempt.token is not None
        return attempt.token

    def revoke(self, identity: str, token: Token, bearer: AuthBase | None = None, *, patient: bool) -> None:
        """Revoke *token* and all of its grant (RFC 7009), with the client's *bearer* (finAPI's rule).

        By the refresh token, if there is one, all access tokens go with it. Without *bearer* the token is the
        client's own and proves itself; one that is dead already is gone as wanted. What is passing is tried again if
        *patient*. Raises :class:`RevocationError`.
        """
        self._persist(lambda: self._ask_to_revoke(token, bearer), patient, identity)

    def _persist(self, ask: Callable[[], _Try], patient: bool, identity: str) -> _Try:
        """Try until it is decided, the policy is exhausted, or waiting longer would be too long."""
        started, retries = time.monotonic(), self._retries
        attempt = ask()
        while attempt.again and patient:
            try:
                retries = retries.increment()
            except MaxRetryError:
                break
            wait = max(retries.get_backoff_time(), (attempt.error and attempt.error.retry_after) or 0.0)
            if time.monotonic() - started + wait > PATIENCE:
                break
            time.sleep(wait)
            attempt = ask()
        self._tell(attempt, identity, started)
        if attempt.error is not None:
            raise attempt.error
        return attempt

    def _tell(self, attempt: _Try, identity: str, started: float) -> None:
        token, error = attempt.token, attempt.error
        milliseconds = (time.monotonic() - started) * 1000
        if error is None:
            kind = ("renewed" if attempt.refreshed else "issued") if token else "revoked"
            expires_in = None if token is None or token.expires_at is None else token.lifetime
            self._journal.tell(kind, identity, expires_in, attempt.request_id, milliseconds)
        else:
            kind = "failed" if isinstance(error, (TokenEndpointError, RevocationError)) else "refused"
            self._journal.tell(kind, identity, None, error.request_id, milliseconds, str(error))

    def _ask(self, credentials: Credentials, renewed: Token | None) -> _Try:
        from .transport import UNREADABLE  # with the first token call, as in _transport

        by_password = renewed is None and credentials.username is not None
        refresh_token = (renewed.refresh_token or "",) if renewed else ()
        headers = self._headers()
        secrets = (*credentials.secrets(), *refresh_token)
        judge = _Judge(secrets, by_password, headers["X-Request-Id"], refreshing=renewed is not None)
        asked_at = time.time()
        try:
            answer = self._transport(self.environment.token_url, headers).ask(credentials, renewed, judge)
            token = Token.from_dict(answer, issued_at=asked_at)
        except OSError as error:
            return judge.unanswered(error)
        except UNREADABLE as error:
            return judge.unreadable(type(error).__name__)
        return _Try(token, refreshed=renewed is not None, request_id=judge.request_id)

    def _ask_to_revoke(self, token: Token, bearer: AuthBase | None) -> _Try:
        headers = self._headers()
        judge = _Judge((token.access_token, token.refresh_token or ""), False, headers["X-Request-Id"])
        from .transport import UNREADABLE  # with the first call, as in _transport

        text, hint = Redacted(token.access_token), None
        if bearer is None:
            headers["Authorization"], hint = token.authorization, "access_token"
        elif token.refresh_token is not None:
            text, hint = Redacted(token.refresh_token), "refresh_token"
        try:
            response = self._transport(self.environment.revoke_url, headers).revoke(text, hint, bearer)
            if bearer is not None or response.status_code != 401:
                judge(response)
        except OSError as error:
            attempt = judge.unanswered(error)
        except UNREADABLE as error:
            attempt = judge.unreadable(type(error).__name__)
        else:
            return _Try(request_id=judge.request_id)
        return attempt._replace(error=attempt.error and _as_revocation_error(attempt.error))

    def _transport(self, url: str, headers: dict[str, str]) -> Transport:
        # Imported with the first token call: who finds a token in the store needs no oauthlib.
        from .transport import Transport

        return Transport(self._host, url, headers, self._timeout)

    def _headers(self) -> dict[str, str]:
        return {
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
            "X-Request-Id": self._request_id(),
        }


class _Judge:
    """Tells from status and body what an answer is worth, before requests-oauthlib parses it.

    It is called as that library's compliance hook, and raises what the answer amounts to.
    """

    def __init__(
        self, secrets: tuple[str, ...], by_password: bool, request_id: str, *, refreshing: bool = False
    ) -> None:
        self.request_id = request_id
        self._refreshing = refreshing
        self._secrets = secrets
        self._by_password = by_password
        self._passing = False

    def __call__(self, response: requests.Response) -> requests.Response:
        problem = ErrorBody.of(response, (*self._secrets, *sent_tokens(response)))
        self.request_id = problem.request_id or self.request_id
        status = response.status_code
        if status >= 300 or problem.code in _BY_CODE:
            raise self._refusal(response, problem)
        response._content = json.dumps(_clean(read_object(response))).encode()
        return response

    def _refusal(self, response: requests.Response, problem: ErrorBody) -> TokenError:
        """Return finAPI's no by its code (RFC 6749, section 5.2) where that is plainer than the status."""
        status = response.status_code
        kind = _BY_CODE.get(problem.code) if status in (200, 400, 401) else None
        kind = kind or _BY_STATUS.get(status, TokenEndpointError)
        self._passing = status in (_NOT_JUDGED if self._by_password else _PASSING)
        what = _WHAT.get(kind) or ("finAPI's token endpoint is unavailable" if status in _PASSING else _NOT_THERE)
        error = kind(
            what,
            status=status,
            code=problem.code,
            description=problem.description,
            request_id=self.request_id,
        )
        error.retry_after = retry_after(response.headers.get("Retry-After"))
        unclear = kind is TokenEndpointError and status not in _NOT_JUDGED | _NOBODY
        error.maybe_judged = self._by_password and unclear
        if self._refreshing and kind is InvalidGrantError:
            error.args = ("finAPI refused the refresh token",)
            error.advice = "It is not sent again; the password is, if there is one."
        return error

    def unanswered(self, error: OSError) -> _Try:
        """Return what an exception amounts to: one of ours as it is, no connection, or an answer cut off."""
        if isinstance(error, FinapiError):
            return _Try(error=error.with_traceback(None), again=self._passing)
        if raised_by_signal_handler(error):  # some raise a TimeoutError
            raise error
        hopeless = self._hopeless(error)
        if hopeless is not None:
            redirected = isinstance(
                error, requests.TooManyRedirects
            )  # an answer, and it may be one to a wrong password
            return _Try(error=self._unusable(hopeless, sent=redirected))
        unsent = _unsent(error)
        what = "no connection to finAPI's token endpoint" if unsent else "finAPI's token endpoint did not answer"
        cause = type(_reason(error) or error).__name__
        error_of_ours = self._unusable(f"{what} ({cause})", sent=not unsent)
        return _Try(error=error_of_ours, again=unsent or not self._by_password)

    def _hopeless(self, error: OSError) -> str | None:
        """Return what is wrong if to try again would not help."""
        if not isinstance(error, requests.RequestException):  # a certificate file that is not there
            return f"the call to finAPI's token endpoint could not be sent: {redact(str(error), self._secrets)}"
        if isinstance(error, requests.TooManyRedirects):
            return "finAPI's token endpoint redirects"
        if isinstance(error, ValueError):
            return f"the call to finAPI's token endpoint could not be sent ({type(error).__name__})"
        if _distrusted(_reason(error)):
            how = "set verify on the client's session, or REQUESTS_CA_BUNDLE; a single call's is not used here"
            return f"no trust in finAPI's token endpoint ({type(error).__name__}): {how}"
        return None

    def unreadable(self, reason: str) -> _Try:
        """Return what an answer amounts to that is no token answer; a password may have been counted."""
        what = f"finAPI's token endpoint gave an unreadable answer ({reason})"
        return _Try(error=self._unusable(what, sent=True), again=not self._by_password)

    def _unusable(self, what: str, *, sent: bool) -> TokenEndpointError:
        error = TokenEndpointError(what, request_id=self.request_id)
        error.maybe_judged = sent and self._by_password
        return error


def _clean(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a token answer that are sound; what is not goes, so that oauthlib cannot trip over it."""
    if str(answer.get("token_type", "bearer")).lower() != "bearer":
        return {}
    text = {name: answer.get(name) for name in ("access_token", "refresh_token", "scope")}
    clean: dict[str, Any] = {name: value for name, value in text.items() if isinstance(value, str) and value}
    if not sound_refresh_token(clean.get("refresh_token")):
        clean.pop("refresh_token", None)
    lifetime = Token.from_dict({"access_token": "-", "expires_in": answer.get("expires_in")}, issued_at=0).expires_at
    if lifetime is not None:
        clean["expires_in"] = int(lifetime) or 1
    return clean


def _as_revocation_error(error: FinapiError) -> RevocationError:
    failure = RevocationError(f"the token was not revoked: {error.args[0]}", **error.facts())
    failure.retry_after = error.retry_after
    return failure


def _reason(error: OSError) -> object:
    """Return what urllib3 gave up for."""
    return getattr(error.args[0] if error.args else None, "reason", None)


def _unsent(error: OSError) -> bool:
    """Tell whether no connection came about, so that surely nothing was judged."""
    reason = _reason(error)
    # urllib3 calls whatever goes wrong behind a proxy a ProxyError, an answer that broke off included.
    reason = getattr(reason, "original_error", reason)
    if isinstance(error, requests.exceptions.ConnectTimeout) or isinstance(reason, NewConnectionError):
        return True
    return str(reason).startswith("Tunnel connection failed")


def _distrusted(reason: object) -> bool:
    """Tell whether *reason* is a certificate that is not trusted; trying again would not help."""
    return isinstance(reason, SSLError) and isinstance(reason.args[0], ssl.SSLCertVerificationError)


def _shorter(timeout: Timeout) -> tuple[float, float]:
    """Return connect and read timeouts in seconds: the session's, but no longer than a token call deserves."""
    connect, read = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    return min(connect or CONNECT, CONNECT), min(read or READ, READ)
