"""What an answer of finAPI's OAuth calls, or the lack of one, amounts to."""

from __future__ import annotations

import json
import re
import ssl
from dataclasses import dataclass
from typing import Any, NamedTuple

import requests
from urllib3.exceptions import HTTPError, NewConnectionError

from .error_body import ErrorBody, read_object, retry_after, sent_tokens
from .errors import (
    CLIENT_CODES,
    TRANSIENT,
    AccessDeniedError,
    FinapiError,
    InvalidClientError,
    InvalidGrantError,
    TokenEndpointError,
    TokenError,
    UserLockedError,
    raised_by_signal_handler,
)
from .redaction import Redacted, censored
from .tokens import Token, sound_refresh_token

#: Of the transient statuses, those at which a password was surely not judged, so it may be sent again.
_NOT_JUDGED = {429, 503}
#: Here nobody was there to judge it.
_NOBODY = {404, 405}
_BY_STATUS: dict[int, type[TokenError]] = {
    400: InvalidGrantError,
    401: InvalidClientError,
    403: AccessDeniedError,
    423: UserLockedError,
}
_WHAT: dict[type[TokenError], str] = {
    InvalidClientError: "finAPI refused the client's credentials",
    InvalidGrantError: "finAPI refused the grant",
    AccessDeniedError: "finAPI denied a token",
    UserLockedError: "finAPI has locked the user",
}
_ENDPOINT = "finAPI's token endpoint"
_PROXY_HINT = (
    "if it takes a proxy, set proxies on the client's session, or HTTPS_PROXY; a single call's are not used here"
)
_VERIFY_HINT = "set verify on the client's session, or REQUESTS_CA_BUNDLE; a single call's is not used here"
_USERINFO = re.compile(r"//[^/@\s]*@")
# What urllib3 and ssl put around the words of their errors: the object's repr, the place in a C file.
_AROUND = re.compile(r"^(<[^>]*>|\w+\(.*?\)): | \(_ssl\.c:\d+\)$")


class Attempt(NamedTuple):
    """What one try came to. Errors are returned, and raised where no local variable holds a secret."""

    token: Token | None = None
    error: FinapiError | None = None
    again: bool = False
    refreshed: bool = False
    request_id: str | None = None


# What may come when the call is on its way: from requests and urllib3, or as it is from an adapter of the caller's.
_BROKEN_OFF = (requests.RequestException, HTTPError, ConnectionError, TimeoutError)


@dataclass(eq=False)
class Judge:
    """Tells from status and body what an answer is worth, before requests-oauthlib parses it.

    It is called as that library's compliance hook, and raises what the answer amounts to. *secrets* were sent, under
    *request_id*: with a password, or with a refresh token, or neither. *proxied* tells whether through a proxy,
    *paths* which files the call's settings name.
    """

    secrets: tuple[Redacted, ...]
    request_id: str
    by_password: bool = False
    refreshing: bool = False
    proxied: bool = False
    paths: tuple[str, ...] = ()
    transient: bool = False

    def __call__(self, response: requests.Response) -> requests.Response:
        """Return a sound answer, cleaned of what oauthlib would trip over; raise a TokenError for any other."""
        said = ErrorBody.of(response, (*self.secrets, *sent_tokens(response)))
        self.request_id = said.request_id or self.request_id
        clean = _clean(read_object(response)) if response.status_code < 300 else {}
        if response.status_code >= 300 or (said.code and self._refused(response.status_code, said)):
            raise self._refusal(response, said)
        if said.code and "access_token" not in clean:
            raise self._without_token(said)
        response._content = json.dumps(clean).encode()
        return response

    def unanswered(self, error: OSError | HTTPError) -> Attempt:
        """Return what an exception amounts to: one of ours as it is, no connection, or an answer cut off.

        Raises *error* if a signal's handler did, whatever its type.
        """
        if isinstance(error, FinapiError):
            return Attempt(error=error.with_traceback(None), again=self.transient)
        if raised_by_signal_handler(error):  # some raise a TimeoutError
            raise error
        hopeless = self._hopeless(error)
        if hopeless is not None:
            failure = self._unusable(hopeless, sent=False)
            failure.advice = "Check verify, cert, proxies and adapters of the client's session."
            return Attempt(error=failure)
        unsent = _unsent(error)
        what = f"no connection to {_ENDPOINT}" if unsent else f"{_ENDPOINT} did not answer"
        what += f" ({self._in_words(error)})"
        if unsent and not self.proxied:
            what += f"; {_PROXY_HINT}"
        return Attempt(error=self._unusable(what, sent=not unsent), again=unsent or not self.by_password)

    def unreadable(self, reason: str) -> Attempt:
        """Return what an answer amounts to that is no token answer; a password may have been counted."""
        what = f"{_ENDPOINT} gave an unreadable answer ({reason})"
        return Attempt(error=self._unusable(what, sent=True), again=not self.by_password)

    def _refused(self, status: int, said: ErrorBody) -> type[TokenError] | None:
        """Return the kind of finAPI's no by its code (RFC 6749, section 5.2), where that is plainer than the status."""
        code = (said.code or "").lower()  # finAPI's own shape of errors has capitals
        if status not in (200, 400, 401):
            return None
        if code in CLIENT_CODES:
            return InvalidClientError
        about_grant = code == "invalid_grant" or (code == "invalid_token" and self.refreshing)
        return InvalidGrantError if about_grant else None

    def _refusal(self, response: requests.Response, said: ErrorBody) -> TokenError:
        status = response.status_code
        kind = self._refused(status, said) or _BY_STATUS.get(status, TokenEndpointError)
        self.transient = status in (_NOT_JUDGED if self.by_password else TRANSIENT)
        error = kind(_WHAT.get(kind) or _what(response), **self._facts(said, status))
        error.retry_after = retry_after(response.headers.get("Retry-After"))
        unclear = status not in _NOT_JUDGED | _NOBODY
        if not self.by_password:
            self._advise(error)
        return self._open(error) if unclear and isinstance(error, TokenEndpointError) else error

    def _advise(self, error: TokenError) -> None:
        """Say of *error* what was refused, where no password was sent."""
        if isinstance(error, InvalidGrantError) and not self.refreshing:
            error.advice = InvalidClientError.advice
        elif isinstance(error, InvalidGrantError):
            error.args = ("finAPI refused the refresh token",)
            error.advice = "It is not sent again; the password is, if there is one."
        elif isinstance(error, InvalidClientError) and self.refreshing and not error.code:
            error.args = ("finAPI refused the refresh token, or the client's credentials",)
            error.advice = "The refresh token may have expired; if that is not it, check client_id and client_secret."

    def _without_token(self, said: ErrorBody) -> TokenError:
        self.transient = not self.by_password
        return self._open(TokenEndpointError(f"{_ENDPOINT} answered without a token", **self._facts(said, 200)))

    def _facts(self, said: ErrorBody, status: int) -> dict[str, Any]:
        return {"status": status, "code": said.code, "description": said.description, "request_id": self.request_id}

    def _hopeless(self, error: OSError | HTTPError) -> str | None:
        """Return what is wrong if to try again would not help."""
        reason = _innermost(error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            return f"no trust in {_ENDPOINT} ({self._in_words(error)}): {_VERIFY_HINT}"
        if isinstance(reason, ssl.SSLError) and ("X509" in str(reason) or "PEM" in str(reason)):
            return f"the client's certificate or key does not fit ({self._in_words(error)})"
        # A certificate file that is not there, a proxy's address that is none, a missing SOCKS library.
        if isinstance(error, ValueError) or not isinstance(error, _BROKEN_OFF):
            return f"the call to {_ENDPOINT} could not be sent ({self._in_words(error)})"
        return None

    def _in_words(self, error: OSError | HTTPError) -> str:
        """Return the kind of *error*, and what the innermost of its causes says, without secrets."""
        reason = _innermost(error)
        kind = getattr(error.args[0] if error.args else None, "reason", None) or error
        words = _USERINFO.sub("//[redacted]@", _AROUND.sub("", str(reason)))
        parts = re.split(f"({'|'.join(map(re.escape, self.paths))})", words) if self.paths else [words]
        # The paths are no secrets, even where a secret is a part of them.
        words = "".join(part if part in self.paths else censored(part, self.secrets) for part in parts)
        words = " ".join("".join(c if c.isprintable() else " " for c in words).split())[:300]
        return f"{type(kind).__name__}: {words}" if words else type(kind).__name__

    def _unusable(self, what: str, *, sent: bool) -> TokenEndpointError:
        error = TokenEndpointError(what, request_id=self.request_id)
        return self._open(error) if sent else error

    def _open(self, error: TokenEndpointError) -> TokenEndpointError:
        """Return *error*, which leaves open whether finAPI judged the password, if one was sent."""
        if self.by_password:
            error.maybe_judged = True
            error.add_that_the_password_rests()
        return error


def _what(response: requests.Response) -> str:
    if response.status_code in TRANSIENT:
        return f"{_ENDPOINT} is unavailable"
    return f"{_ENDPOINT} redirects" if response.is_redirect else "there is no token endpoint of finAPI at this address"


def _clean(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a token answer that are sound; what is not goes, so that oauthlib cannot trip over it."""
    if str(answer.get("token_type") or "bearer").lower() != "bearer":
        return {}
    text = {name: answer.get(name) for name in ("access_token", "refresh_token", "scope")}
    clean: dict[str, Any] = {name: value for name, value in text.items() if isinstance(value, str) and value}
    if not sound_refresh_token(clean.get("refresh_token")):
        clean.pop("refresh_token", None)
    lifetime = Token.from_dict({"access_token": "-", "expires_in": answer.get("expires_in")}, issued_at=0).expires_at
    if lifetime is not None:
        clean["expires_in"] = int(lifetime) or 1
    return clean


def _innermost(error: BaseException) -> BaseException:
    """Return the error that *error*, of requests or urllib3, was made of in the end."""
    inner = [part for part in (getattr(error, "reason", None), *error.args) if isinstance(part, BaseException)]
    return _innermost(inner[-1]) if inner else error


def _unsent(error: OSError | HTTPError) -> bool:
    """Tell whether no connection came about, so that surely nothing was judged."""
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    # urllib3 calls whatever goes wrong behind a proxy a ProxyError, an answer that broke off included.
    reason = getattr(reason, "original_error", reason)
    if isinstance(error, requests.exceptions.ConnectTimeout) or isinstance(reason, NewConnectionError):
        return True
    return str(reason).startswith("Tunnel connection failed")
