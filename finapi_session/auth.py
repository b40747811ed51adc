"""The token goes out in a header, a 401 comes in: the auth of a session, and of any other requests call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from http.cookiejar import CookieJar
from typing import Any, cast

import requests
from requests.auth import AuthBase
from requests.cookies import extract_cookies_to_jar
from requests.exceptions import UnrewindableBodyError
from requests.utils import rewind_body

from . import calls
from .environment import Environment
from .source import TokenSource
from .tokens import Bearer

#: Bytes of a rejected call's answer that are read before it is sent again.
MOST_DRAINED = 65536


class BearerAuth(AuthBase):
    """Sends the token of *source* to the origins that *environment* trusts, and heals a 401 once.

    ``session.auth`` is one, for single calls and for other sessions: nobody makes it by hand. May be shared by
    threads and sessions. Sending raises a :class:`~finapi_session.TokenError` if no token can be had.
    """

    def __init__(self, source: TokenSource, environment: Environment) -> None:
        self._source = source
        self._environment = environment

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the token on *request*, if it goes to a trusted origin."""
        if request.body is not None and request._body_position is None and hasattr(request.body, "tell"):
            request._body_position = cast(Any, request.body).tell()  # requests asks only what it streams
        sent = self._source.token().authorization if self.trusts(request.url) else None
        if sent is not None:
            request.headers["Authorization"] = sent
        # Before the caller's hooks, so that those see the final answer only; in place of an earlier one, which would
        # heal with another token, or that of somebody else.
        hooks = [hook for hook in request.hooks["response"] if not isinstance(hook, _Healing)]
        request.hooks = {**request.hooks, "response": [_Healing(self, sent), *hooks]}
        return request

    def trusts(self, url: str | None) -> bool:
        """Tell whether the token may go to *url*."""
        return self._environment.trusts(url)

    def redirected(self, request: requests.PreparedRequest) -> None:
        """Carry the token along to a trusted origin, and to no other."""
        request.headers.pop("Authorization", None)
        self(request)

    def heal(self, response: requests.Response, sent: Bearer, **kwargs: Any) -> requests.Response:
        """Return *response*, or the answer to the same request with another token if the one *sent* was rejected."""
        request = response.request
        # By its value: a recorder that plays an answer again has a request of its own making.
        if request.headers.get("Authorization") != sent:
            return response
        calls.answered(self._source.identity, request, response, response.elapsed)
        if response.status_code != 401:
            self._source.accepted(sent)
            return response
        if not self.trusts(request.url):
            return response
        _give_back(response)
        token = self._source.renew(sent, calls.with_id(request))
        if token is None or not hasattr(response, "connection") or not _rewind(request):
            return response
        replayed = self._replay(response, token.authorization, **kwargs)
        if replayed.status_code == 401:
            self._source.rejected(token.authorization)
        else:
            self._source.accepted(token.authorization)
        return replayed

    def broke(self, request: requests.PreparedRequest, error: requests.RequestException) -> None:
        """Log that the connection of *request* broke."""
        calls.broke(self._source.identity, request, error)

    def _replay(self, response: requests.Response, authorization: Bearer, **kwargs: Any) -> requests.Response:
        """Send the request again over the same adapter, and return its answer with the first one as history."""
        request = _again(response, authorization)
        started = time.perf_counter()
        try:
            replayed: requests.Response = response.connection.send(request, **kwargs)
        except calls.BROKEN as error:
            self.broke(request, error)
            raise
        replayed.elapsed = timedelta(seconds=time.perf_counter() - started)
        replayed.history = [*response.history, response]
        replayed.request = request
        calls.answered(self._source.identity, request, replayed, replayed.elapsed)
        return replayed


class _Healing:
    """The response hook of *auth*, and what it *sent*. Pickled with an answer, it leaves session and secrets behind."""

    __slots__ = ("auth", "sent")

    def __init__(self, auth: BearerAuth | None, sent: Bearer | None) -> None:
        self.auth, self.sent = auth, sent

    def __call__(self, response: requests.Response, **kwargs: Any) -> requests.Response:
        if self.auth is None or self.sent is None:
            return response
        return self.auth.heal(response, self.sent, **kwargs)

    def __reduce__(self) -> tuple[type[_Healing], tuple[None, None]]:
        return _Healing, (None, None)

    def __deepcopy__(self, _memo: object) -> _Healing:
        return self


def bearer_auth_of(request: requests.PreparedRequest) -> BearerAuth | None:
    """Return the auth that *request* was prepared with, if it is ours."""
    for hook in request.hooks["response"]:
        if isinstance(hook, _Healing) and hook.auth is not None:
            return hook.auth
    return None


def _give_back(response: requests.Response) -> None:
    """Read a short answer to its end, so that its connection serves the replay too; a long one's is closed."""
    with suppress(requests.RequestException, RuntimeError):
        if not response._content_consumed:
            response._content = b"".join(_beginning(response))
            response._content_consumed = True
    response.close()


def _beginning(response: requests.Response) -> Iterator[bytes]:
    """Yield what *response* begins with, not much more than :data:`MOST_DRAINED` bytes of it."""
    drained = 0
    for chunk in response.iter_content(8192):
        yield chunk
        drained += len(chunk)
        if drained > MOST_DRAINED:
            response.raw.close()
            return


def _rewind(request: requests.PreparedRequest) -> bool:
    """Set the body back to where it started; tell whether it can be sent again."""
    if request.body is None or isinstance(request.body, str) or _is_buffer(request.body):
        return True
    try:
        rewind_body(request)
    except UnrewindableBodyError:
        return False
    return True


def _is_buffer(body: object) -> bool:
    """Tell whether *body* is bytes in any form (``memoryview``, ``array``), not something that reading moves on in."""
    if hasattr(body, "seek"):
        return False
    try:
        return memoryview(body) is not None  # type: ignore[arg-type]
    except TypeError:
        return False


def _again(response: requests.Response, authorization: Bearer) -> requests.PreparedRequest:
    """Return the request that *response* came to, once more, with another token and the cookies of *response*."""
    request = response.request.copy()
    cookies = cast(CookieJar, request._cookies)
    extract_cookies_to_jar(cookies, response.request, response.raw)
    request.prepare_cookies(cookies)
    request.headers["Authorization"] = authorization
    return request
