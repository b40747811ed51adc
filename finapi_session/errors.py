"""What can go wrong, as exceptions.

::

    requests.RequestException
    └── FinapiError
        ├── TokenError               no token could be obtained
        │   ├── InvalidClientError   401: client id or secret; 400: not this client for this grant
        │   ├── InvalidGrantError    400: username, password or refresh token
        │   ├── AccessDeniedError    403: unverified user, wrong kind of client, wrong API version
        │   ├── UserLockedError      423: too many wrong passwords
        │   ├── LoginRequiredError   nothing left to get a token with
        │   └── TokenEndpointError   no usable answer; transient, unless it says otherwise
        ├── RevocationError          a token could not be revoked
        └── ApiError                 an API call failed (also a requests.HTTPError)

None of them holds a secret, nor a request or a response that does: they may be logged, pickled and shown.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import requests

_Error = TypeVar("_Error", bound="FinapiError")
_AnyError = TypeVar("_AnyError", bound=BaseException)


class FinapiError(requests.RequestException):
    """Base of all errors of this library.

    ``status`` is finAPI's HTTP status, ``code`` and ``description`` what its body says (redacted),
    ``request_id`` the id to quote to finAPI's support, ``retry_after`` the number of seconds after which finAPI
    asks to be called again; each is ``None`` where there is none.
    """

    #: What to do next, as the message says it.
    advice: str = ""
    retry_after: float | None = None

    def __init__(
        self,
        what: str,
        *,
        status: int | None = None,
        code: str | None = None,
        description: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(what)
        self.status = status
        self.code = code
        self.description = description
        self.request_id = request_id

    def __str__(self) -> str:
        said = " ".join(str(part) for part in (self.status, self.code, self.description) if part)
        text = f"{self.args[0]} ({said})." if said else f"{self.args[0]}."
        text = f"{text} {self.advice}" if self.advice else text
        text = text if self.retry_after is None else f"{text} Try again in {self.retry_after:.0f} s."
        return f"{text} [request id {self.request_id}]" if self.request_id else text

    def __repr__(self) -> str:
        facts = [f"{name}={value!r}" for name, value in self.facts().items() if value and name != "description"]
        return f"{type(self).__name__}({', '.join([repr(self.args[0]), *facts])})"

    def facts(self) -> dict[str, Any]:
        """Return status, code, description and request id, as the constructor takes them."""
        return {name: getattr(self, name) for name in ("status", "code", "description", "request_id")}

    def again(self: _Error) -> _Error:
        """Return an equal error without this one's traceback, to be raised in another thread or call."""
        return copy.copy(self).with_traceback(None)


def bare(error: Exception) -> Exception:
    """Return a copy of *error*, which keeps nobody's frames alive; *error* itself if it cannot be copied."""
    try:
        return copy.copy(error).with_traceback(None)
    except Exception:
        return error


def raised_by_signal_handler(error: BaseException) -> bool:
    """Tell whether a signal's handler raised *error* in the middle of a call: a time limit, which is the caller's."""
    return _in_handler(error) is not None


def without_frames(error: _AnyError, handled: BaseException | None = None) -> _AnyError:
    """Return *error*, with neither its own frames nor those of what it came from: they may hold secrets.

    Those of a signal's handler stay, which :func:`raised_by_signal_handler` goes by; so does all of *handled*, the
    exception that the caller was just handling.
    """
    kept = _in_handler(error)
    for link in chain(error, handled):
        link.__traceback__ = None
    return error.with_traceback(kept)


def chain(error: BaseException, handled: BaseException | None = None) -> list[BaseException]:
    """Return *error* and all that it came from, each once, but for *handled* and what that came from."""
    links = [error]
    for link in links:
        causes = (cause for cause in (link.__cause__, link.__context__) if cause is not None)
        links += [cause for cause in causes if not any(cause is known for known in (*links, handled))]
    return links


def _in_handler(error: BaseException) -> TracebackType | None:
    """Return the part of the traceback that begins in a signal's handler, if there is one."""
    import signal  # where something went wrong, and not with every import of the package

    handlers = [getattr(handler, "func", handler) for handler in map(signal.getsignal, signal.valid_signals())]
    codes = {getattr(getattr(handler, "__func__", handler), "__code__", None) for handler in handlers} - {None}
    link = error.__traceback__
    while link is not None and link.tb_frame.f_code not in codes:
        link = link.tb_next
    return link


class TokenError(FinapiError):
    """No access token could be obtained."""

    #: Whether a password was sent and finAPI may have judged it, although its answer does not say so (it was lost, or
    #: unreadable): sent again, a wrong one would count twice towards the user's lock.
    maybe_judged: bool = False


class InvalidClientError(TokenError):
    """finAPI does not accept the client's id or secret (401), or not this client for this grant (400)."""

    advice = "Check client_id and client_secret, and that they belong to this environment."

    def __init__(self, what: str, **facts: Any) -> None:
        super().__init__(what, **facts)
        self.advice = _CLIENT_ADVICE.get((self.code or "").lower(), self.advice)


class InvalidGrantError(TokenError):
    """finAPI does not accept the user's credentials, the refresh token or the grant (400).

    A refused password is not sent again until it changes, or ``revoke()`` is called: finAPI locks the user
    after a few wrong ones.
    """

    advice = "Correct the username or password; this one is not sent again, unless revoke() is called first."


class AccessDeniedError(TokenError):
    """The user is not verified yet, or the client is of the wrong kind or API version (403)."""

    advice = (
        "Verify the user, or use the environment of your API version (SANDBOX/LIVE or SANDBOX_V2/LIVE_V2; "
        "elsewhere a URL that ends in /api/v2/oauth is for version 2)."
    )


class UserLockedError(TokenError):
    """finAPI locked the user after too many wrong passwords (423)."""

    advice = "Only a password change unlocks the user."


class LoginRequiredError(TokenError):
    """There is no token left, and no password to get one with."""

    advice = "Create the session with the user's password, or with token=."


class TokenEndpointError(TokenError):
    """The token endpoint gave no usable answer: unreachable, overloaded, or not speaking OAuth."""

    advice = "Check base URL, network, proxies and verify, or try again later."

    def __init__(self, what: str, **facts: Any) -> None:
        super().__init__(what, **facts)
        if self.status == 429:
            self.advice = "Too many calls: try again later."
        elif self.status in TRANSIENT:
            self.advice = "The fault is not here: try again later."
        elif self.status is not None and self.status >= 300:
            self.advice = "Check the base URL."

    def add_that_the_password_rests(self) -> None:
        """Add to the advice that the password is not sent again for a while, as finAPI may have judged it."""
        self.advice += " The password may have been counted: it is not sent again for a minute or more."


class RevocationError(FinapiError):
    """finAPI did not revoke a token: it may still be valid."""

    advice = "The token may still be valid: call revoke() again."

    def __init__(self, what: str, **facts: Any) -> None:
        super().__init__(what, **facts)
        if self.status == 400:
            self.advice = "finAPI does not revoke this token: it ends at its expiry."


@dataclass(frozen=True)
class ErrorDetail:
    """One entry of finAPI's ``errors``: the field it is about where Web Form names one."""

    code: str | None = None
    type: str | None = None
    message: str | None = None
    field: str | None = None


#: The name of :class:`ErrorDetail` in earlier versions.
ProblemDetail = ErrorDetail


class ApiError(FinapiError, requests.HTTPError):
    """An API call was answered with 400 or above; see :func:`~finapi_session.raise_for_error`.

    ``errors`` are the entries of finAPI's list, each with code, type, message and field where it tells them;
    ``response`` is the answer without its request, cookies and secrets.
    """

    errors: tuple[ErrorDetail, ...] = ()

    @property
    def advice(self) -> str:  # type: ignore[override]
        """What to do next, by the status."""
        if self.status is not None and self.status >= 500 and self.status != 510:
            return "finAPI failed: try again later."
        return _API_ADVICE.get(self.status, "")


_API_ADVICE: dict[int | None, str] = {
    401: "finAPI rejected the token, and a new one too.",
    403: "This call wants the other kind of token (the client's or a user's), or a right that the client lacks.",
    404: "What was asked for is not there, or not this user's.",
    405: "Check the method and the path.",
    423: "The bank connection is busy: try again later.",
    429: "Too many calls: try again later.",
    451: "finAPI may not serve this for legal reasons.",
    510: "The bank wants more from the user: continue as the error's code says.",
}

#: Codes of RFC 6749, section 5.2, and of RFC 7591, section 3.2.2, that are about the client, whatever the status is.
CLIENT_CODES = frozenset(
    ("invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope", "invalid_client_metadata")
)
#: Statuses of the token endpoint that pass by themselves.
TRANSIENT = frozenset((408, 425, 429, 500, 502, 503, 504))

_CLIENT_ADVICE = {
    "unauthorized_client": "This client may not use this grant: ask finAPI's support what it is registered for.",
    "unsupported_grant_type": "There is no such grant at this address: check the base URL, and ask finAPI's support.",
    "invalid_scope": "This client may not have the scope: ask finAPI's support what it is registered for.",
    "invalid_client_metadata": "The client's registration is not in order: ask finAPI's support.",
}


def is_about_refresh_token(error: FinapiError) -> bool:
    """Tell whether *error*, the answer to a refresh grant, is about the refresh token, not the client that sent it.

    A 400 without a code is no answer of an OAuth server (RFC 6749, section 5.2) but of a gateway before it.
    """
    code = (error.code or "").lower()  # finAPI's own shape of errors has capitals
    if code in ("invalid_grant", "invalid_token"):
        return True
    return error.status == 400 and bool(code) and code not in CLIENT_CODES
