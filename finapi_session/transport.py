"""One OAuth call over requests-oauthlib, on the connections of another session.

**The border.** Below :meth:`Transport.ask` and :meth:`Transport.revoke` the secrets are plain text in the frames of
requests-oauthlib, requests, urllib3 and our own. Whatever leaves them (a signal's exception may, at any line) leaves
its frames behind, so that no error tracker shows them.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import requests
from oauthlib.oauth2 import BackendApplicationClient, LegacyApplicationClient, OAuth2Error
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.auth import AuthBase
from requests.utils import select_proxy
from requests_oauthlib import OAuth2Session
from urllib3.exceptions import HTTPError
from urllib3.util import Retry, Timeout

from .answer import UnreadableAnswerError, read_body
from .errors import chain, raised_by_signal_handler, without_frames
from .identity import Credentials
from .pools import drop_connections, has_connections
from .settings import checked_verify
from .tokens import Token

# What oauthlib raises for an answer that cannot be read. Without an answer such an error is that of an adapter of the
# caller's, and comes through.
_UNREADABLE = (OAuth2Error, HTTPError, ValueError, TypeError, LookupError, AttributeError, RecursionError, Warning)

Judge = Callable[[requests.Response], requests.Response]

_Result = TypeVar("_Result")


class Transport(OAuth2Session):  # type: ignore[misc]
    """Carries one call to *url* over *host*'s adapters, with nothing else of it than its ``User-Agent``.

    *headers* are the call's, *timeout* the seconds to connect and to wait for a next byte, *seconds* those in which all
    of the call must be done, from when it is sent until its body is read. What can outlast them is an answer whose
    status line and headers drip: http.client reads them line by line, and each byte of them may take as long as the
    whole call. So can looking up the host's name, which has no time limit in Python. A call *alone* goes over a
    connection made for it, which is closed after it, or is the first in *host*'s pool.

    Raises ``ValueError`` if *host*'s ``verify`` is neither a path nor a bool nor ``None``, which is the default.
    """

    def __init__(
        self,
        host: requests.Session,
        url: str,
        headers: dict[str, str],
        timeout: tuple[float, float],
        seconds: float,
        *,
        alone: bool = False,
    ) -> None:
        super().__init__()
        settings = host.merge_environment_settings(url, {}, False, None, None)
        self.proxies, self.verify, self.cert = settings["proxies"], checked_verify(settings["verify"]), settings["cert"]
        self.trust_env = False  # the host has read the environment, and its verify goes before that
        self._host = host
        self._url = url
        self._seconds = seconds
        self._alone = alone
        self._own_adapter: HTTPAdapter | None = None
        self._answered = False
        self._wants_body = True
        connect, read = (min(part, seconds) for part in timeout)
        # A body in its plain form: the library bounds what it decodes, and need not.
        headers = {"Accept-Encoding": "identity", **_user_agent(host), **headers}
        self._call: dict[str, Any] = {"headers": headers, "timeout": Timeout(seconds, connect, read)}

    @property
    def proxied(self) -> bool:
        """Whether the call goes through a proxy."""
        return select_proxy(self._url, self.proxies) is not None

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that the call's settings name, which are no secrets."""
        named = (self.verify, *(self.cert if isinstance(self.cert, tuple) else (self.cert,)))
        return tuple(str(path) for path in named if path and path is not True)

    def ask(self, credentials: Credentials, refresh_token: str | None, judge: Judge) -> Token:
        """Return the token for *refresh_token*, if given, or else for the *credentials* alone.

        *judge* sees the answer before it is parsed. Raises what *judge* raises, ``OSError`` or urllib3's ``HTTPError``
        if there is no answer, :class:`UnreadableAnswerError` for one without a token, and whatever an adapter of the
        caller's, or a signal's handler, raises.
        """
        return self._across_the_border(partial(self._ask, credentials, refresh_token, judge))

    def revoke(self, token: str, hint: str | None, bearer: AuthBase | None) -> requests.Response:
        """Return the answer to the wish that *token* be revoked, asked with the client's *bearer*.

        Raises as :meth:`ask` does.
        """
        return self._across_the_border(partial(self._revoke, token, hint, bearer))

    def get_adapter(self, url: str) -> BaseAdapter:
        """Return the host's adapter, so that both share their connections, without retries of its own.

        What may be sent again is for the endpoint to say: each wrong password counts.
        """
        adapter = self._host.get_adapter(url)
        if not isinstance(adapter, HTTPAdapter):
            return adapter
        alone = self._alone and has_connections(adapter)
        if not alone and not _tries_again(adapter.max_retries):
            return adapter
        twin = object.__new__(type(adapter))
        twin.__dict__.update(adapter.__dict__, max_retries=Retry(0, read=False))
        if alone:
            drop_connections(twin, 1)
            self._own_adapter = twin
        return twin

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Follow no redirect: a 307 would post the secrets to another host."""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send *request*, and return its answer, the body read in pieces within the call's bounds."""
        ends = time.monotonic() + self._seconds
        response: requests.Response = super().send(request, **{**kwargs, "stream": True})
        self._answered = True
        if response._content is False:
            try:
                response._content = read_body(response, ends)
            except (requests.RequestException, UnreadableAnswerError):
                if response.status_code < 300 and self._wants_body:
                    raise
                response._content = b""  # the status is enough
            response._content_consumed = True
        return response

    def _ask(self, credentials: Credentials, refresh_token: str | None, judge: Judge) -> Token:
        kind = BackendApplicationClient if credentials.username is None else LegacyApplicationClient
        self._client = kind(credentials.client_id)
        self.register_compliance_hook("access_token_response", judge)
        self.register_compliance_hook("refresh_token_response", judge)
        own = {"client_secret": credentials.client_secret, **self._call}
        asked_at = time.time()
        with _unlogged():
            if refresh_token is not None:
                # An answer without a refresh token leaves the old one valid; the library keeps it.
                answer = self.refresh_token(self._url, refresh_token, client_id=credentials.client_id, **own)
            else:
                own.update(username=credentials.username, password=credentials.password)
                answer = self.fetch_token(self._url, include_client_id=True, **own)
        # oauthlib's own expires_at counts from the answer, rounded; ours counts from the asking.
        return Token.from_dict({**answer, "expires_at": None}, issued_at=asked_at)

    def _revoke(self, token: str, hint: str | None, bearer: AuthBase | None) -> requests.Response:
        self._wants_body = False  # RFC 7009, section 2.2: all is in the status
        _, _, body = BackendApplicationClient("").prepare_token_revocation_request(self._url, token, hint)
        with _unlogged():
            response: requests.Response = self.post(self._url, data=body, auth=bearer, **self._call)
        return response

    def _across_the_border(self, call: Callable[[], _Result]) -> _Result:
        """Return what *call* returns; what it raises is raised without the frames that it came through."""
        handled = sys.exc_info()[1]
        try:
            return call()
        except BaseException as error:  # noqa: B036 - it is raised below
            failure = self._outside(error, handled)
        finally:
            if self._own_adapter is not None:
                HTTPAdapter.close(self._own_adapter)
        try:
            # Not in the except clause: the error would become its context, with all of its frames.
            raise failure
        finally:
            del failure

    def _outside(self, error: BaseException, handled: BaseException | None) -> BaseException:
        """Return *error* as it is seen outside, where *handled* was just being handled."""
        # The innermost: requests wraps a TimeoutError, whoever raised it.
        for link in reversed(chain(error, handled)):
            if raised_by_signal_handler(link):
                return without_frames(link, handled)
        if self._answered and isinstance(error, _UNREADABLE) and not isinstance(error, OSError):
            if not isinstance(error, UnreadableAnswerError):
                error = UnreadableAnswerError(type(error).__name__)
        elif isinstance(error, Exception) and not isinstance(error, OSError):
            *_, (frame, line) = traceback.walk_tb(error.__traceback__)
            # Python 3.10 has no notes.
            getattr(error, "add_note", str)(f"raised in {frame.f_code.co_filename}, line {line}, by an OAuth call")
        return without_frames(error, handled)


def _user_agent(host: requests.Session) -> dict[str, str]:
    return {name: value for name, value in (host.headers or {}).items() if name.lower() == "user-agent"}


def _tries_again(retries: Retry | int | bool) -> bool:
    """Tell whether an adapter with *retries* (it may be a plain number) tries again, or makes an error of a status."""
    return not isinstance(retries, Retry) or retries.total != 0 or bool(retries.status_forcelist)


_within_a_call: ContextVar[bool] = ContextVar("finapi_session_token_call", default=False)


def _other_peoples(_record: logging.LogRecord) -> bool:
    return not _within_a_call.get()


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep requests-oauthlib from logging our secrets at DEBUG; other users of it keep their logs."""
    logging.getLogger("requests_oauthlib.oauth2_session").addFilter(_other_peoples)
    reset = _within_a_call.set(True)
    try:
        yield
    finally:
        _within_a_call.reset(reset)
