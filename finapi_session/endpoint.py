"""The two OAuth calls, over requests-oauthlib: an answer becomes a Token or an error."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Union

import requests
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.util import Retry

from .answer import UnreadableAnswerError
from .environment import Environment
from .errors import TRANSIENT, FinapiError, InvalidGrantError, RevocationError, TokenEndpointError
from .events import Journal, Kind
from .identity import Credentials
from .judge import Attempt, Judge
from .redaction import Redacted
from .tokens import Token

if TYPE_CHECKING:
    from .transport import Transport

#: Seconds in which a single call ends: connecting, headers and body together (what can outlast them, see Transport).
CALL_SECONDS = 30.0
#: Seconds in which all tries of one :meth:`TokenEndpoint.fetch` end, waiting included.
RENEWAL_SECONDS = 45.0
#: Seconds that a further try must have left of those; without them it is not made.
FURTHER_TRY_SECONDS = 15.0
#: Seconds of a call that may go into connecting; a session's own timeout counts if it is shorter.
CONNECT_SECONDS = 10.0
#: How often what is transient is tried again, and how long is waited in between (0, 1, 2 s and a little chance).
RETRIES = Retry(total=3, backoff_factor=0.5, backoff_max=10, backoff_jitter=0.25)

Timeout = Union[float, tuple[Union[float, None], Union[float, None]], None]


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
        self.request_id = request_id
        self._retries = retries
        self._timeout = _shorter(timeout)

    def with_request_id(self, request_id: str) -> TokenEndpoint:
        """Return the same endpoint, whose calls carry *request_id* as their ``X-Request-Id``."""
        endpoint = copy.copy(self)
        endpoint.request_id = lambda: request_id
        return endpoint

    def fetch(
        self,
        credentials: Credentials,
        renewed: Token | None = None,
        *,
        patient: bool,
        before_each_try: Callable[[], object] = _nothing,
        within: float = RENEWAL_SECONDS,
        why: str | None = None,
    ) -> Token:
        """Ask for a token: by the refresh token of *renewed* if given, else by password, else for the client.

        Transient failures are tried again if *patient*; a password only where finAPI surely did not judge it, since
        each wrong one counts towards the user's lock. All tries end *within* so many seconds. *before_each_try* is
        called right before every single try; what it raises comes through. *why* is for the log. Raises a
        :class:`TokenError`, with ``maybe_judged`` set where a password was sent and may have been judged;
        ``ValueError`` if the host's ``verify`` is none; and whatever an adapter of the caller's, or a signal's handler,
        raises.
        """
        refresh_token = None if renewed is None else Redacted(renewed.refresh_token or "")
        return self.exchange(
            credentials, refresh_token, patient=patient, before_each_try=before_each_try, within=within, why=why
        )

    def exchange(
        self,
        credentials: Credentials,
        refresh_token: Redacted | None,
        *,
        patient: bool,
        before_each_try: Callable[[], object] = _nothing,
        within: float = RENEWAL_SECONDS,
        why: str | None = None,
    ) -> Token:
        """Ask for a token by *refresh_token*, if given, else as :meth:`fetch` does."""

        def ask(seconds: float) -> Attempt:
            before_each_try()
            return self._ask(credentials, refresh_token, seconds)

        attempt = self._persist(ask, patient, str(credentials), within, why)
        assert attempt.token is not None
        return attempt.token

    def revoke(
        self,
        identity: str,
        token: Token,
        bearer: AuthBase | None = None,
        *,
        patient: bool,
        within: float = RENEWAL_SECONDS,
    ) -> None:
        """Revoke *token* and all of its grant (RFC 7009), with the client's *bearer* (finAPI's rule).

        By the refresh token, if there is one, all access tokens go with it. Without *bearer* the token is the
        client's own and proves itself; one that is dead already is gone as wanted. Transient failures are tried again
        if *patient*, *within* so many seconds in all; getting the *bearer*'s own token has bounds of its own. Raises
        :class:`RevocationError`, and else as :meth:`fetch` does.
        """
        secrets = Redacted(token.access_token), Redacted(token.refresh_token or "")
        text, hint = secrets[0], None if bearer else "access_token"
        if bearer is not None and token.refresh_token is not None:
            text, hint = secrets[1], "refresh_token"
        self.revoke_text(identity, text, hint, bearer, patient=patient, within=within, secrets=secrets)

    def revoke_text(
        self,
        identity: str,
        text: Redacted,
        hint: str | None,
        bearer: AuthBase | None,
        *,
        patient: bool,
        within: float = RENEWAL_SECONDS,
        secrets: tuple[Redacted, ...] = (),
    ) -> None:
        """Revoke the token *text*, of the kind that *hint* says, as :meth:`revoke` does; *secrets* are not repeated."""

        def ask(seconds: float) -> Attempt:
            return self._ask_to_revoke(text, hint, bearer, (text, *secrets), seconds)

        self._persist(ask, patient, identity, within)

    def _persist(
        self, ask: Callable[[float], Attempt], patient: bool, identity: str, within: float, why: str | None = None
    ) -> Attempt:
        """Try until it is decided, the policy is exhausted, or waiting longer would leave no time for a further try."""
        started, retries = time.monotonic(), self._retries
        attempt = ask(min(CALL_SECONDS, within))
        while attempt.again and patient:
            try:
                retries = retries.increment()
            except MaxRetryError:
                break
            wait = max(retries.get_backoff_time(), (attempt.error and attempt.error.retry_after) or 0.0)
            if time.monotonic() - started + wait > within - FURTHER_TRY_SECONDS:
                break
            time.sleep(wait)
            attempt = ask(min(CALL_SECONDS, started + within - time.monotonic()))
        self._tell(attempt, identity, started, why)
        if attempt.error is not None:
            raise attempt.error
        return attempt

    def _tell(self, attempt: Attempt, identity: str, started: float, why: str | None) -> None:
        token, error = attempt.token, attempt.error
        milliseconds = (time.monotonic() - started) * 1000
        if error is not None and _is_outage(error):
            self._tell_outage(error, identity, milliseconds)
            return
        request_id, reason = (attempt.request_id, why) if error is None else (error.request_id, str(error))
        failures = self._journal.outage.ended()
        if failures:
            after = f"the first answer after {failures} failed call{'s' if failures > 1 else ''}"
            reason = after if reason is None else f"{after}, {reason}"
        expires_in = None if token is None or token.expires_at is None else token.lifetime
        self._journal.tell(_kind(attempt), identity, expires_in, request_id, milliseconds, reason)

    def _tell_outage(self, error: FinapiError, identity: str, milliseconds: float) -> None:
        failures = self._journal.outage.failed()
        reason = f"{error} ({failures} in a row)" if failures > 1 else str(error)
        self._journal.tell("failed", identity, None, error.request_id, milliseconds, reason, quietly=failures > 1)

    def _ask(self, credentials: Credentials, refresh_token: Redacted | None, seconds: float) -> Attempt:
        by_password = refresh_token is None and credentials.username is not None
        headers, refreshing = self._headers(), refresh_token is not None
        secrets = (*credentials.secrets(), refresh_token or Redacted())
        judge = Judge(secrets, headers["X-Request-Id"], by_password, refreshing)
        # A connection that somebody on the way has dropped, unnoticed, would cost the password.
        transport = self._transport(self.environment.token_url, headers, seconds, judge, alone=by_password)
        try:
            token = transport.ask(credentials, refresh_token, judge)
        except (OSError, HTTPError) as error:
            return judge.unanswered(error)
        except UnreadableAnswerError as error:
            return judge.unreadable(str(error))
        return Attempt(token, refreshed=refreshing, request_id=judge.request_id)

    def _ask_to_revoke(
        self, token: Redacted, hint: str | None, bearer: AuthBase | None, secrets: tuple[Redacted, ...], seconds: float
    ) -> Attempt:
        headers = self._headers()
        if bearer is None:
            headers["Authorization"] = Redacted(f"Bearer {token}")
        judge = Judge(secrets, headers["X-Request-Id"])
        transport = self._transport(self.environment.revoke_url, headers, seconds, judge)
        try:
            response = transport.revoke(token, hint, bearer)
            if bearer is not None or response.status_code != 401:
                judge(response)
        except (OSError, HTTPError) as error:
            attempt = judge.unanswered(error)
            return attempt._replace(error=attempt.error and _as_revocation_error(attempt.error))
        return Attempt(request_id=judge.request_id)

    def _transport(
        self, url: str, headers: dict[str, str], seconds: float, judge: Judge, *, alone: bool = False
    ) -> Transport:
        # Imported with the first token call: whoever finds a token in the store needs no oauthlib.
        from .transport import Transport

        transport = Transport(self._host, url, headers, self._timeout, seconds, alone=alone)
        judge.proxied, judge.paths = transport.proxied, transport.paths
        return transport

    def _headers(self) -> dict[str, str]:
        return {
            "Accept": "application/json",
            "Cache-Control": "no-store",  # no cache of the caller's may answer, or keep, what holds tokens
            "Content-Type": "application/x-www-form-urlencoded",
            "X-Request-Id": self.request_id(),
        }


def _is_outage(error: FinapiError) -> bool:
    """Tell whether *error* says that the endpoint does not work, for whomever."""
    unanswered = isinstance(error, RevocationError) and (error.status is None or error.status in TRANSIENT)
    return unanswered or isinstance(error, TokenEndpointError)


def _kind(attempt: Attempt) -> Kind:
    """Return what an answer amounts to."""
    if attempt.error is not None:
        return "failed" if isinstance(attempt.error, RevocationError) else "refused"
    if attempt.token is None:
        return "revoked"
    return "renewed" if attempt.refreshed else "issued"


def _as_revocation_error(error: FinapiError) -> RevocationError:
    said = "finAPI refused to" if isinstance(error, InvalidGrantError) else error.args[0]
    failure = RevocationError(f"the token was not revoked: {said}", **error.facts())
    failure.retry_after = error.retry_after
    return failure


def _shorter(timeout: Timeout) -> tuple[float, float]:
    """Return connect and read timeouts in seconds: the session's, but no longer than a token call deserves."""
    connect, read = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    return min(connect or CONNECT_SECONDS, CONNECT_SECONDS), min(read or CALL_SECONDS, CALL_SECONDS)
