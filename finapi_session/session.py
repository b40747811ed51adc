"""A requests.Session that always carries a valid finAPI token."""

from __future__ import annotations

import copy
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING, Any, TypeVar

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from urllib3.util import Retry

from . import __version__, calls
from .auth import BearerAuth, bearer_auth_of
from .background import InBackground
from .cell import Cells
from .closing import Closing
from .endpoint import RENEWAL_SECONDS, RETRIES, Timeout, TokenEndpoint
from .environment import SANDBOX, Environment
from .error_body import raise_for_error
from .events import Journal, Listener, log
from .fallback import Fallback
from .identity import Identity, Secret
from .options import (
    NOT_GIVEN,
    TIMEOUT,
    NotGiven,
    Overrides,
    check_headers,
    checked_environment,
    checked_flag,
    checked_leeway,
    checked_listener,
    checked_password,
    checked_request_ids,
    checked_retry,
    checked_timeout,
    checked_token,
    new_request_id,
    opened_store,
)
from .paging import answers
from .pools import leave_to_parent
from .settings import checked_verify, merged
from .source import TokenSource
from .stores.protocol import TokenStore
from .tokens import Bearer, Token

if TYPE_CHECKING:
    from typing_extensions import Never, Unpack  # in every type checker

_Session = TypeVar("_Session", bound="FinapiSession")


class FinapiSession(requests.Session):
    """A ``requests.Session`` for one finAPI client, or one of its users.

    Calls to finAPI carry a token that is fetched at the first call, renewed before it expires or when finAPI rejects
    it, and shared through a store. Everything else is as in requests.

    :param client_id: what finAPI gave the application.
    :param client_secret: its secret: text, or a callable that returns it.
    :param username: a user of the client; without one it is the client's session.
    :param password: the user's: text, or a callable that returns it. Left out, she lives on a stored token; ``None`` is
        an error, as a form may lack it.
    :param environment: an :class:`Environment`, its name (such as ``live``), or an https base URL, behind which may be
        the OAuth path (``/api/v2/oauth`` for clients bound to API version 2).
    :param store: where tokens are kept: a store, or a text for :func:`open_store`; in this session's memory by default.
    :param token: a token obtained elsewhere: a :class:`Token`, or a dict as OAuth libraries keep it.
    :param leeway: seconds before expiry from which the token is renewed.
    :param renew_in_background: whether a thread of its own renews before expiry, so that no call waits for it.
    :param revoke_on_close: whether ``close()`` revokes; by default unless *store* or *token* is yours.
    :param timeout: seconds, or a pair for connecting and reading, where a call names none.
    :param request_id: the ``X-Request-Id`` of calls that have none: text, or a callable that returns it.
    :param retries: a count or a urllib3 ``Retry`` (its ``total`` and backoff), for transient failures of token calls.
    :param raise_api_errors: raise :class:`ApiError` on every answer of 400 and above.
    :param on_event: called with a :class:`TokenEvent` for everything that happens to a token.
    :raises ValueError, TypeError: naming the argument, before anything is sent.

    Any call may raise a :class:`TokenError`.
    """

    def __init__(
        self,
        client_id: str,
        client_secret: Secret,
        *,
        username: str | None = None,
        password: Secret | NotGiven = NOT_GIVEN,
        environment: Environment | str = SANDBOX,
        store: TokenStore | str | None = None,
        token: Token | Mapping[str, Any] | None = None,
        leeway: float = 60.0,
        renew_in_background: bool = False,
        revoke_on_close: bool | None = None,
        timeout: Timeout = TIMEOUT,
        request_id: str | Callable[[], str] = new_request_id,
        retries: Retry | int = RETRIES,
        raise_api_errors: bool = False,
        on_event: Listener | None = None,
    ) -> None:
        identity = Identity(client_id, client_secret, username, checked_password(password, username))
        super().__init__()
        self.headers["User-Agent"] = f"finapi-session/{__version__} {self.headers['User-Agent']}"
        self._environment = checked_environment(environment)
        self.timeout = timeout
        self._request_id = checked_request_ids(request_id)
        self.raise_api_errors = raise_api_errors
        self.revoke_on_close = store is None and token is None if revoke_on_close is None else revoke_on_close
        self._leeway = checked_leeway(leeway)
        self._in_background = checked_flag("renew_in_background", renew_in_background)
        self._journal = Journal(self.environment.base_url, checked_listener(on_event))
        self._cells = Cells(Fallback(opened_store(store), self._journal))
        self._shares_store = store is not None
        retry, seconds = checked_retry(retries), checked_timeout(timeout)
        self._endpoint = TokenEndpoint(self, self.environment, self._journal, self._request_id, retry, seconds)
        given = checked_token(token)
        self._client = self._source(Identity(client_id, client_secret), given if username is None else None)
        self._own = self._client if username is None else self._source(identity, given)
        self.auth = BearerAuth(self._own, self.environment)
        self._parent: FinapiSession | None = None
        self._begin()

    def _begin(self) -> None:
        """Have no users yet, and be found in a forked child."""
        # By id: a set of them could not be read while another thread adds one.
        self._users: weakref.WeakValueDictionary[int, FinapiSession] = weakref.WeakValueDictionary()
        # The tokens of users whose sessions nobody holds any more: close() gives them back too.
        self._left: dict[str, TokenSource] = {}
        self._leaver: _Leaver | None = None
        if self._parent is None:
            _roots[id(self)] = self

    def __repr__(self) -> str:
        store = type(self._cells.fallback.store).__name__
        return f"<{type(self).__name__} of {self._own.identity} at {self.environment.base_url}, tokens in {store}>"

    @property
    def environment(self) -> Environment:
        """Where finAPI is; it stays as it was given."""
        return self._environment

    @environment.setter
    def environment(self, _: Never) -> None:
        raise AttributeError("a session's environment cannot be changed, as its tokens belong to it: make another one")

    @property
    def request_id(self) -> Callable[[], str]:
        """What returns the ``X-Request-Id`` of a call; a text or a callable may be set.

        Set on the client's session, it counts for the token calls of all; a user's session keeps the one that it was
        made with for her own calls.
        """
        return self._request_id

    @request_id.setter
    def request_id(self, given: str | Callable[[], str]) -> None:
        self._request_id = checked_request_ids(given)
        if self._parent is None:
            self._endpoint.request_id = self._request_id

    @classmethod
    def from_env(cls: type[_Session], **overrides: Unpack[Overrides]) -> _Session:
        """Make a session from the environment variables ``FINAPI_CLIENT_ID`` and so on.

        They are ``_CLIENT_ID``, ``_CLIENT_SECRET``, ``_USERNAME``, ``_PASSWORD``, ``_ENVIRONMENT`` (a name such
        as ``live``, or an https base URL) and ``_STORE`` (a text for :func:`open_store`). *overrides* are arguments,
        which go before; ``username=None`` makes a session for the client whatever user the environment names.

        Raises ``ValueError`` if the client's id or secret is not there.
        """
        names = ("client_id", "client_secret", "username", "password", "environment", "store")
        found: dict[str, str | None] = {name: os.environ.get(f"FINAPI_{name.upper()}") for name in names}
        if "username" in overrides:  # another user, or with None the client itself: the password is not theirs
            found["password"] = None
        arguments: dict[str, Any] = {name: value for name, value in found.items() if value}
        arguments.update(overrides)
        for name in ("client_id", "client_secret"):
            if name not in arguments:
                raise ValueError(f"set FINAPI_{name.upper()} in the environment, or give {name}=")
        return cls(**arguments)

    def user(self: _Session, username: str, password: Secret | NotGiven = NOT_GIVEN) -> _Session:
        """Return a session for a user of the same client, on the same connections, settings and store.

        Left out, a *password* is not needed while there is a stored token; ``None`` is a ``TypeError``. Closing the
        session revokes her token only, if at all, and leaves the connections open. Cookies are not shared, attributes
        of a subclass are: :meth:`made_for_user` may give her own. Her token calls go by *verify*, *cert* and *proxies*
        of the client's session, so set them there, and before.
        """
        identity = self._client.identity.user(username, checked_password(password, username))
        session = type(self).__new__(type(self))
        session.__dict__.update(self.__dict__)
        session.headers, session.cookies = CaseInsensitiveDict(self.headers or {}), RequestsCookieJar()
        session.proxies, session.params = copy.copy(self.proxies), copy.deepcopy(self.params)
        session.hooks = {event: copy.copy(hooks) for event, hooks in (self.hooks or {}).items()}
        session._parent = self._parent or self
        session._own = self._source(identity)
        session.auth = BearerAuth(session._own, self.environment)
        self._users[id(session)] = session
        session._leaver = _Leaver(session._own, self._left) if session.revoke_on_close else None
        session.made_for_user()
        return session

    def made_for_user(self) -> None:
        """Be called on each session that :meth:`user` makes: here a subclass replaces what users must not share."""

    def pages(self, url: str, params: Any = None, **options: Any) -> Iterator[requests.Response]:
        """Return the answers for all pages of a list, such as transactions, one after the other.

        :param url: as for ``get``; a ``page`` in it or in *params* is the first one that is asked for.
        :param params: the query; ``perPage`` is 500 unless given, which is finAPI's most.
        :param options: what else ``get`` takes, for each call.
        :raises ValueError: for a page that is no number from 1 up, at once.

        An answer that is not paged, or of 400 and above, is the last one. Each is asked for when it is wanted.
        """
        return answers(self, url, params, options)

    def fetch_token(self) -> Token:
        """Return a valid token; finAPI is asked only if need be. Raises a :class:`TokenError`.

        A thread may wait for another one's renewal, as long as that one's calls may last (``source.TURN``).
        """
        return self._own.token()

    def revoke(self) -> None:
        """Revoke this session's token, and forget it and what finAPI refused.

        The next call asks for a new one. Raises :class:`RevocationError`; the token is kept then.
        """
        self._revoke(self._own)

    def close(self, _ending: Callable[[], bool] = sys.is_finalizing) -> None:
        """Revoke the tokens, the users' before the client's, if ``revoke_on_close``; then close the connections.

        Several are revoked at once, within 10 seconds in all. Never raises for a failed revocation: that is logged. At
        the end of the program nothing is revoked.
        """
        if not _ending():
            self._give_back()
        if self._parent is None:
            super().close()

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        """Prepare *request* as requests does, on the environment's base URL and with a request id."""
        url = "" if request.url is None else self._environment.absolute(request.url)
        if request.headers and self._environment.trusts(url):
            check_headers(request.headers)
        if url != request.url:
            request = copy.copy(request)
            request.url = url
        prepared = super().prepare_request(request)
        if self._environment.trusts(prepared.url):
            if "X-Request-Id" in prepared.headers:
                check_headers(prepared.headers)
            else:
                prepared.headers["X-Request-Id"] = self._request_id()
        return prepared

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send *request* as requests does, with the session's timeout where the call names none."""
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self.timeout
        verify = kwargs.get("verify", self.verify)
        if verify is not True:
            kwargs["verify"] = checked_verify(verify)
        if isinstance(request.headers.get("Authorization"), Bearer):
            # Whoever sends it: the token's own environment decides where it may go.
            if not (bearer_auth_of(request) or self.environment).trusts(request.url):
                del request.headers["Authorization"]
        try:
            response = super().send(request, **kwargs)
        except calls.BROKEN as error:
            _tell_break(request, error)
            raise
        if self.raise_api_errors:
            raise_for_error(response)
        return response

    def merge_environment_settings(
        self, url: str, proxies: Any, stream: bool | None, verify: Any, cert: Any
    ) -> dict[str, Any]:
        """Merge as requests does, but let an explicit ``session.verify`` beat ``REQUESTS_CA_BUNDLE``."""
        if verify is None and self.verify is not True:
            verify = self.verify
        return merged(super().merge_environment_settings, url, proxies, stream, verify, cert)

    def get_adapter(self, url: str) -> BaseAdapter:
        """Return the adapter for *url*; one that would try again after a 401 leaves that to the session."""
        adapter = super().get_adapter(url)
        retries = getattr(adapter, "max_retries", None)
        statuses = getattr(retries, "status_forcelist", None)
        if statuses and isinstance(retries, Retry) and 401 in statuses:
            shared, adapter = adapter, object.__new__(type(adapter))
            without = retries.new(status_forcelist=set(statuses) - {401})
            adapter.__dict__.update(shared.__dict__, max_retries=without)
        return adapter

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Let the token go along with a redirect to trusted origins only; netrc never takes its place."""
        auth = bearer_auth_of(prepared_request)
        sent = response.request.headers.get("Authorization")
        if auth is not None and isinstance(sent, Bearer):
            auth.redirected(prepared_request)
        elif auth is None or sent is not None:
            super().rebuild_auth(prepared_request, response)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_users", "_left", "_leaver")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def _source(self, identity: Identity, token: Token | None = None) -> TokenSource:
        return TokenSource(
            identity, self._endpoint, self._cells, self._journal, self._leeway, token, self._in_background
        )

    def _revoke(self, source: TokenSource, *, patient: bool = True, within: float = RENEWAL_SECONDS) -> None:
        bearer = None if source is self._client else BearerAuth(self._client, self.environment)
        source.revoke(bearer, patient=patient, within=within)

    def _give_back(self) -> None:
        """Revoke what is to be revoked on close, wait for what renews, and let the store have what it lacks."""
        closing = Closing(lambda source, seconds: self._revoke(source, patient=False, within=seconds), self._journal)
        sources = self._to_revoke()
        # Without the client's token no user's can be revoked.
        closing.give_back((it for it in sources if it is not self._client), lambda: self._client.token(patient=False))
        closing.give_back(it for it in sources if it is self._client)
        if self._parent is None:
            InBackground.land_all(self._cells, closing.left)
            if self._cells.lagging():
                closing.in_threads(self._cells.settle)
        closing.end()
        for source in sources:
            if source.held is None:
                self._forget(source)

    def _forget(self, source: TokenSource) -> None:
        """Keep nothing of *source*, whose token was revoked; in a given store, others need to know that it was."""
        left = self._left.pop(str(source.identity), None)
        if left is not None and left.held is not None:
            self._left.setdefault(str(source.identity), left)
        if not self._shares_store:
            source.forget()

    def _to_revoke(self) -> list[TokenSource]:
        """Return whose tokens end with this session, the users' first: the client's is needed for that."""
        own = [self._own] if self.revoke_on_close else []
        if self._parent is not None:
            return own
        users = [user._own for ref in self._users.valuerefs() if (user := ref()) and user.revoke_on_close]
        return [*users, *self._left.values(), *own, *([self._client] if own and self._own is not self._client else [])]


class _Leaver:
    """Leaves the token of a user's session to the client's, when nobody holds the user's any more.

    It is part of the session, so that one which its own password's callable refers to is collected, too.
    """

    __slots__ = ("_source", "_left")

    def __init__(self, source: TokenSource, left: dict[str, TokenSource]) -> None:
        self._source, self._left = source, left

    def __del__(self, _ending: Callable[[], bool] = sys.is_finalizing) -> None:
        # On its way out Python has no modules left to do this with, and nobody would close the client's session.
        if self._source.held is not None and not _ending():
            self._left[str(self._source.identity)] = self._source.revocable()


def _tell_break(request: requests.PreparedRequest, error: requests.RequestException) -> None:
    """Log that the connection of a call with a token broke, unless it is that of a redirect or a replay."""
    auth, sent = bearer_auth_of(request), request.headers.get("Authorization")
    if auth is not None and isinstance(sent, Bearer) and error.request in (None, request):
        auth.broke(request, error)


# By id: a subclass may have no hash.
_roots: weakref.WeakValueDictionary[int, FinapiSession] = weakref.WeakValueDictionary()


def _renew_in_child() -> None:
    """Give a forked child connections and locks of its own, as those of other threads are held for ever.

    Each adapter by itself, as one of the caller's may refuse.
    """
    for session in list(_roots.values()):
        for jar in (session.cookies, *(user.cookies for user in session._users.values())):
            if isinstance(jar, CookieJar):
                vars(jar)["_cookies_lock"] = threading.RLock()
        for adapter in session.adapters.values():
            if isinstance(adapter, HTTPAdapter):
                try:
                    leave_to_parent(adapter)
                except Exception as error:
                    names = type(adapter).__name__, type(error).__name__
                    log.warning("%s keeps its parent's connections in a forked child (%s)", *names)


if hasattr(os, "register_at_fork"):  # pragma: no branch - it is not there on Windows
    os.register_at_fork(after_in_child=_renew_in_child)
