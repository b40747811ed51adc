"""One OAuth call over requests-oauthlib, on the connections of another session."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import requests
from oauthlib.oauth2 import BackendApplicationClient, LegacyApplicationClient, OAuth2Error
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.auth import AuthBase
from requests_oauthlib import OAuth2Session
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from .identity import Credentials
from .redaction import Redacted
from .tokens import Token

#: What oauthlib and urllib3 raise for an answer that cannot be read. Nothing wider: a time limit that comes by a signal
#: in the middle of a call is the caller's.
UNREADABLE = (OAuth2Error, HTTPError, ValueError, TypeError, LookupError, AttributeError, RecursionError, Warning)

Judge = Callable[[requests.Response], requests.Response]


class Transport(OAuth2Session):  # type: ignore[misc]
    """Carries one call to *url* over *host*'s adapters, with nothing else of it: no header, cookie, hook or auth."""

    def __init__(self, host: requests.Session, url: str, headers: dict[str, str], timeout: tuple[float, float]) -> None:
        super().__init__()
        settings = host.merge_environment_settings(url, {}, False, None, None)
        self.proxies, self.verify, self.cert = settings["proxies"], settings["verify"], settings["cert"]
        self.trust_env = False  # the host has read the environment, and its verify goes before that
        self.max_redirects = 0  # a 307 would post them to another host
        self._host = host
        self._url = url
        self._call: dict[str, Any] = {"headers": headers, "timeout": timeout}

    def get_adapter(self, url: str) -> BaseAdapter:
        """Return the host's adapter, so that both share their connections, without retries of its own.

        What may be sent again is for the endpoint to say: each wrong password counts.
        """
        adapter = self._host.get_adapter(url)
        if isinstance(adapter, HTTPAdapter) and adapter.max_retries.total != 0:
            shared, adapter = adapter, object.__new__(type(adapter))
            adapter.__dict__.update(shared.__dict__, max_retries=Retry(0))
        return adapter

    def ask(self, credentials: Credentials, renewed: Token | None, judge: Judge) -> dict[str, Any]:
        """Ask for a token, by the refresh token of *renewed* if given; *judge* sees the answer before it is parsed."""
        kind = BackendApplicationClient if credentials.username is None else LegacyApplicationClient
        self._client = kind(credentials.client_id)
        self.register_compliance_hook("access_token_response", judge)
        self.register_compliance_hook("refresh_token_response", judge)
        own = {"client_secret": credentials.client_secret, **self._call}
        with _unlogged():
            if renewed is not None:
                refresh_token = Redacted(renewed.refresh_token or "")
                # An answer without a refresh token leaves the old one valid; the library keeps it.
                answer = self.refresh_token(self._url, refresh_token, client_id=credentials.client_id, **own)
            else:
                own.update(username=credentials.username, password=credentials.password)
                answer = self.fetch_token(self._url, include_client_id=True, **own)
        # oauthlib's own expires_at counts from the answer, rounded; ours counts from the asking.
        return {name: value for name, value in answer.items() if name != "expires_at"}

    def revoke(self, token: str, hint: str | None, bearer: AuthBase | None) -> requests.Response:
        """Ask for *token* to be revoked, with the client's *bearer*."""
        _, _, body = BackendApplicationClient("").prepare_token_revocation_request(self._url, token, hint)
        body = Redacted(body)
        with _unlogged():
            response: requests.Response = self.post(self._url, data=body, auth=bearer, **self._call)
        return response


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
