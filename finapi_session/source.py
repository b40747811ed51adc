"""When to ask for a token, who asks, and what then."""

from __future__ import annotations

import copy
import math
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

from requests.auth import AuthBase

from .endpoint import TokenEndpoint
from .errors import (
    FinapiError,
    InvalidClientError,
    InvalidGrantError,
    LoginRequiredError,
    TokenEndpointError,
    TokenError,
    bare,
    raised_by_signal_handler,
)
from .events import Journal
from .identity import Credentials, Identity
from .ledger import LOOK_AGAIN, Ledger
from .record import NOTHING, Record, Refusal
from .standing import STANDSTILL, Failure, Standing, Turn
from .tokens import Bearer, Token

_LAST_SECOND = 1.0
# finAPI's wish not to be called is heeded for so many seconds at a time: it may be a mistake.
_LONGEST_REST = 300.0


class _Held(NamedTuple):
    """The token in use, and until when (epoch seconds) nobody need think about it."""

    token: Token
    fresh_until: float


class TokenSource:
    """The tokens of one identity: always a valid one, asked for as rarely as possible.

    Any number of threads may use it. A thread waits at most :data:`TURN` seconds for another thread's renewal.
    """

    def __init__(
        self,
        identity: Identity,
        endpoint: TokenEndpoint,
        ledger: Ledger,
        journal: Journal,
        leeway: float = 60.0,
        token: Token | None = None,
    ) -> None:
        self.identity = identity
        self._endpoint = endpoint
        self._ledger = ledger
        self._journal = journal
        self._leeway = leeway
        self._record = NOTHING if token is None else Record(token, token.issued_at or 0.0)
        #: What was held before a stored one was taken: the last resort of a user without a password.
        self._spare = NOTHING
        self._held: _Held | None = None
        self._standing = Standing()
        self._secretless: Failure | None = None
        self._turn = Turn()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_secretless": None}

    @property
    def held(self) -> Token | None:
        """The token in use, if there is one; nothing is asked."""
        return self._record.token

    def revocable(self) -> TokenSource:
        """Return a source of the same tokens, to revoke them: it keeps alive nothing that a password may come from."""
        source = copy.copy(self)
        source.identity = replace(self.identity, password=None)
        return source

    def fresh(self) -> Token | None:
        """Return the token in use while nobody need think about it, else ``None``; it waits for nothing and nobody."""
        held = self._held
        return held.token if held is not None and time.time() < held.fresh_until else None

    def token(self, *, patient: bool = True) -> Token:
        """Return a valid token, asking finAPI for it if need be. Raises a :class:`TokenError`.

        What is passing is tried again if *patient*.
        """
        held = self._held
        if held is not None and time.time() < held.fresh_until:
            return held.token
        if held is None or held.token.expired(time.time()):
            return self._token_in_turn(patient)
        self._renew_early(held)
        return (self._held or held).token

    def renew(self, rejected: Bearer) -> Token | None:
        """Return another token than the one that the API *rejected*, or ``None`` if finAPI has no better one.

        Raises a :class:`TokenError`.
        """
        other = self._other_than(rejected)
        if other is not None:
            return other
        entered = time.monotonic()
        with self._turn.taken():
            other = self._other_than(rejected)
            if other is not None:
                return other
            need = self._need(entered, rejected)
            if self._standing.stands_still(rejected):
                return self._find(need)
            token = self._obtain(need, entered)
            if token.authorization != rejected:
                return token
            self._stand_still(rejected, "finAPI gives the rejected token again")
            return None

    def accepted(self) -> None:
        """Note that the API took a token of ours."""
        self._standing.accepted()

    def rejected(self, token: Token) -> None:
        """Note that the API rejected *token*, had in place of another rejected one."""
        seconds = self._standing.rejected(token.authorization)
        if seconds:
            self._stand_still(token.authorization, "the API rejects what finAPI gives", seconds)

    def revoke(self, bearer: AuthBase | None = None, *, patient: bool) -> None:
        """Revoke the identity's token, held or stored, and forget it and what finAPI refused.

        *bearer* is the client's; without it the token, being the client's own, proves itself. What is passing is
        tried again if *patient*. Raises :class:`RevocationError` and keeps the token, so that it can be tried again.
        """
        with self._turn.taken():
            credentials = self.identity.credentials()
            key = self._key(credentials)
            with self._ledger.lock(key):
                for token in _grants(self._known(self._ledger.load(key), credentials)):
                    if token.refresh_token or not token.expired(time.time()):
                        self._endpoint.revoke(str(self.identity), token, bearer, patient=patient)
                self._ledger.forget(key)
                self._record, self._spare, self._held = NOTHING, NOTHING, None
                self._standing.go_on()

    def _token_in_turn(self, patient: bool) -> Token:
        entered = time.monotonic()
        with self._turn.taken():
            held = self._held
            if held is not None and not held.token.expired(time.time()):
                return held.token
            return self._obtain(self._need(entered)._replace(patient=patient), entered)

    def _renew_early(self, held: _Held) -> None:
        """In the soft window one thread renews and the others go on. If that fails, nobody notices."""
        if time.time() < self._standing.early_from:
            return
        with self._standing.renewing.unless_taken() as first, self._turn.unless_taken() as free:
            if first and free and self._held is held:
                self._try_early(held)

    def _try_early(self, held: _Held) -> None:
        try:
            entered = time.monotonic()
            self._obtain(self._need(entered, early=True), entered)
        except Exception as error:
            if raised_by_signal_handler(error):
                raise
            retry_after = error.retry_after if isinstance(error, FinapiError) else None
            self._standing.early_from = self._next_try(held.token, retry_after)
            self._held = _Held(held.token, self._standing.early_from)
            reason = f"{type(error).__name__} before expiry: the token held goes on"
            self._journal.tell("decided", str(self.identity), reason=reason)

    def _next_try(self, token: Token, retry_after: float | None) -> float:
        """Return when to try again in the soft window: waiting as long as it has lasted, some six times in all."""
        opened, closes, now = token.renew_at(self._leeway), token.expires_at, time.time()
        if closes is None or now < opened:  # it was for the store, which had not taken it
            return now + LOOK_AGAIN
        return min(closes, now + max(now - opened, (closes - opened) / 30, retry_after or 0.0))

    def _need(self, entered: float, rejected: Bearer | None = None, early: bool = False) -> _Need:
        credentials = self._credentials(entered)
        key = self._key(credentials)
        self._standing = self._ledger.standing(key, credentials.fingerprint)
        return _Need(credentials, key, rejected, early, patient=not early)

    def _credentials(self, entered: float) -> Credentials:
        """Ask for the secrets; who *entered* (monotonic seconds) while that failed another thread shares its error."""
        failure = self._secretless
        if failure is not None and failure.answers(entered):
            raise failure.again()
        try:
            credentials = self.identity.credentials()
        except Exception as error:
            self._secretless = Failure(bare(error), time.monotonic(), 0.0)
            raise
        self._secretless = None
        return credentials

    def _obtain(self, need: _Need, entered: float) -> Token:
        """Take a usable token from the store, else ask finAPI for one; one thread and one process at a time.

        Who *entered* (monotonic seconds) while another thread failed shares its error.
        """
        found = self._find(need)
        if found is not None:
            return found
        # Who comes early has the turn already.
        with nullcontext() if need.early else self._standing.renewing.taken(), self._ledger.lock(need.key):
            self._ledger.settle(need.key)
            return self._take(need, entered)

    def _take(self, need: _Need, entered: float, again: bool = True) -> Token:
        """Take the token at hand, or ask; *again*, once, if a refresh token was refused and there may be another."""
        stored = self._ledger.load(need.key)
        known = self._known(stored, need.credentials)
        at_hand = self._at_hand(known, need)
        if at_hand is not None:
            return self._adopt(need, stored, at_hand)
        failure = self._standing.failure
        if failure is not None and failure.answers(entered):
            raise failure.again()
        try:
            return self._ask(need, stored, known)
        except TokenError as error:
            if again and _is_spent(error):
                return self._take(need, entered, again=False)
            if not need.early:
                rest = min(error.retry_after or 0.0, _LONGEST_REST)
                self._standing.failure = Failure(error.again(), time.monotonic(), rest)
            raise

    def _find(self, need: _Need) -> Token | None:
        """Take a usable token from the store, if that is where the newest one is."""
        if need.key in self._ledger.unsaved:
            return None
        stored = self._ledger.load(need.key)
        newest = self._known(stored, need.credentials)[0]
        return self._adopt(need, stored, newest) if newest is stored and self._serves(stored, need) else None

    def _known(self, stored: Record, credentials: Credentials) -> list[Record]:
        """Return what is held and what is stored for this very password, as far as they count, the newer one first."""
        ours = credentials.password is None or stored.fingerprint == credentials.fingerprint
        known = [self._record]
        if ours and stored.token is not None:
            known = [self._record, stored] if self._record.newer_than(stored) else [stored, self._record]
        # Who has no password cannot get another token: for them the older ones count, too, if nothing else is left.
        return [*known, self._spare] if _lives_on_tokens(credentials) else known[:1]

    def _at_hand(self, known: list[Record], need: _Need) -> Record | None:
        """Return the first record that serves; older ones only at expiry, and if no newer one can be renewed."""
        for record in known:
            renewable = _refresh_token(record.token) is not None
            # Renewing what was set aside tells for sure whether it is good.
            if self._serves(record, need) and not (renewable and record is self._spare):
                return record
            if need.early or renewable:
                return None
        return None

    def _serves(self, record: Record, need: _Need) -> bool:
        now, token = time.time(), record.token
        if token is None or token.authorization == need.rejected or token.expired(now):
            return False
        return not need.early or now < record.fresh_until(self._leeway)

    def _adopt(self, need: _Need, stored: Record, record: Record) -> Token:
        """Hold the token of *record*; the caller's own is stored, but not over one that others live on."""
        fingerprint = need.credentials.fingerprint
        spare = stored.fingerprint == fingerprint and _refresh_token(stored.token) is None
        if record is not stored and (stored.token is None or spare):
            record = stored.next(record.serial, token=record.token, fingerprint=fingerprint)
            self._ledger.save(need.key, record)
        if _lives_on_tokens(need.credentials):
            self._set_aside(record, need)
        token = self._hold(record, self._ledger.look_again(need.key))
        expires_in = None if token.expires_at is None else token.expires_at - time.time()
        self._journal.tell("adopted", str(self.identity), expires_in=expires_in)
        return token

    def _set_aside(self, record: Record, need: _Need) -> None:
        """Keep what is held, if *record* that takes its place is of another grant, and nothing else can be had."""
        held = self._record.token
        if held is None or record.token is None or _same_grant(held, record.token):
            return
        if held.authorization == need.rejected:
            held = replace(held, expires_at=time.time())
        self._spare = replace(self._record, token=held)

    def _hold(self, record: Record, look_again: float = math.inf) -> Token:
        assert record.token is not None
        self._standing.failure = None
        fresh_until = min(record.fresh_until(self._leeway), look_again)
        self._record, self._held = record, _Held(record.token, fresh_until)
        return record.token

    def _ask(self, need: _Need, stored: Record, known: list[Record]) -> Token:
        """Ask finAPI, and keep what it says before it is used: a token or a refusal."""
        last = next((record for record in known if _refresh_token(record.token) is not None), known[0])
        refusal = stored.refusal(need.credentials.fingerprint, time.time())
        if refusal is not None and (refusal.until is not None or _refresh_token(last.token) is None):
            raise refusal.to_error()
        try:
            token = self._exchange(need, last.token, refusal)
        except TokenError as error:
            self._keep_refusal(need, error)
            raise
        return self._keep(need, stored, last, token)

    def _exchange(self, need: _Need, last: Token | None, refusal: Refusal | None) -> Token:
        """Get a token by the refresh token; without one, or if it is refused, by the password, once."""
        if need.credentials.username is None:
            return self._endpoint.fetch(need.credentials, patient=need.patient)
        shared = self._shared(need, refusal)
        if shared is not None:
            return shared
        answer = self._refresh(need, last)
        if isinstance(answer, Token):
            return answer
        if need.credentials.password is not None and refusal is None:
            return self._sign_in(need)
        raise _hopeless(self.identity, answer, refusal)

    def _shared(self, need: _Need, refusal: Refusal | None) -> Token | None:
        """Where others renew with our refresh token, get the token that they have: by the password."""
        if need.rejected is not None:
            self._standing.lost(need.rejected)
        if need.early or refusal is not None or not self._standing.contested:
            return None
        token = self._sign_in(need)
        if token.authorization == need.rejected:
            self._standing.uncontested()
        return token

    def _sign_in(self, need: _Need) -> Token:
        token = self._endpoint.fetch(need.credentials, patient=need.patient)
        self._standing.signed_in()
        return token

    def _refresh(self, need: _Need, last: Token | None) -> Token | TokenError | None:
        """Return the token that finAPI gives for the refresh token of *last*, if it has one, or finAPI's refusal."""
        if last is None or last.refresh_token is None:
            return None
        try:
            token = self._endpoint.fetch(need.credentials, last, patient=need.patient)
        except (InvalidGrantError, InvalidClientError) as error:
            if _is_about_the_token(error):
                self._spend(need, last)
            return error.again()
        if token.refresh_token == last.refresh_token:  # else nobody else can renew with it
            self._standing.refreshed(token.authorization)
        return token

    def _keep(self, need: _Need, stored: Record, known: Record, token: Token) -> Token:
        """Keep the *token* that finAPI gave, and hold it."""
        now, last, sticky = time.time(), known.token, False
        if last is not None and token.access_token == last.access_token:
            if last.authorization == need.rejected:
                return token
            token, sticky = _same_again(last, token, now, need.early), need.early
        fingerprint = need.credentials.fingerprint or known.fingerprint
        now = max(now, known.serial + 0.001)
        record = stored.next(now, token=token, fingerprint=fingerprint, sticky=sticky)
        self._ledger.save(need.key, record)
        self._standing.given(token.authorization)
        if known is self._spare:
            self._spare = NOTHING
        return self._hold(record, self._ledger.look_again(need.key))

    def _spend(self, need: _Need, refused: Token) -> None:
        """Drop the refresh token of *refused*, which finAPI refused; the access token in use may be good still."""
        self._record = self._record.without(refused)
        if self._spare.without(refused) is not self._spare:
            self._spare = NOTHING
        stored = self._ledger.load(need.key)
        spent = stored.without(refused)
        if spent is not stored:
            self._ledger.save(need.key, spent.next(time.time()))

    def _keep_refusal(self, need: _Need, error: TokenError) -> None:
        """Keep *error* if finAPI judged, for all processes; for good if only another password or token helps."""
        if error.status is None or isinstance(error, TokenEndpointError):
            return
        now, stored = time.time(), self._ledger.load(need.key)
        wrong = isinstance(error, InvalidGrantError) and need.credentials.password is not None
        refusal = Refusal.of(error, for_good=wrong or _is_spent(error), now=now)
        refusals = stored.refused(need.credentials.fingerprint, refusal)
        self._ledger.save(need.key, stored.next(now, refusals=refusals))

    def _other_than(self, rejected: Bearer) -> Token | None:
        held = self._held
        if held is None or held.token.authorization == rejected or held.token.expired(time.time()):
            return None
        return held.token

    def _stand_still(self, rejected: Bearer, reason: str, seconds: float = STANDSTILL) -> None:
        self._standing.stand_still(rejected, seconds)
        reason = f"{reason}: it is not renewed again for {seconds:.0f} s"
        self._journal.tell("decided", str(self.identity), reason=reason)

    def _key(self, credentials: Credentials) -> str:
        return credentials.key(self._endpoint.environment.token_url)


class _Need(NamedTuple):
    """What is wanted: a token for *credentials*, but not the *rejected* one.

    *early* if there is one still good, *patient* if what is passing is tried again.
    """

    credentials: Credentials
    key: str
    rejected: Bearer | None
    early: bool
    patient: bool


def _lives_on_tokens(credentials: Credentials) -> bool:
    """Tell whether they are a user's without a password, who cannot get another token."""
    return credentials.username is not None and credentials.password is None


def _grants(known: list[Record]) -> list[Token]:
    """Return the tokens, one of each grant, the newer one first."""
    tokens: list[Token] = []
    for record in known:
        if record.token is not None and not any(_same_grant(record.token, token) for token in tokens):
            tokens.append(record.token)
    return tokens


def _same_grant(one: Token, other: Token) -> bool:
    """Tell whether what renews or revokes *one* does so to the *other*."""
    same_refresh_token = one.refresh_token is not None and one.refresh_token == other.refresh_token
    return same_refresh_token or one.access_token == other.access_token


def _refresh_token(token: Token | None) -> str | None:
    return None if token is None else token.refresh_token


def _same_again(last: Token, token: Token, now: float, early: bool) -> Token:
    """Return what to make of finAPI giving the token that we know (a sticky one).

    Before its expiry nothing new is known. After it, ``expires_in`` 0 is a token's last second, not "never",
    unless that second was granted before.
    """
    if early:
        return replace(token, expires_at=last.expires_at, issued_at=last.issued_at)
    if token.expires_at is None and last.lifetime > _LAST_SECOND:
        return replace(token, expires_at=now + _LAST_SECOND, issued_at=now)
    return token


def _is_spent(error: TokenError) -> bool:
    """Tell whether *error* is that of a user whose refresh token finAPI refused."""
    return isinstance(error, LoginRequiredError) and _is_about_the_token(error)


def _is_about_the_token(error: TokenError) -> bool:
    """Tell whether finAPI refused the refresh token itself, rather than the client that sent it."""
    # A 400 without a code is no answer of an OAuth server (RFC 6749, section 5.2) but of something on the way to it.
    plain = error.status == 400 and bool(error.code) and not _is_about_the_client(error)
    return plain or _code(error) in ("invalid_grant", "invalid_token")


def _is_about_the_client(error: TokenError) -> bool:
    return _code(error) == "invalid_client"


def _code(error: TokenError) -> str:
    """Return finAPI's code as the RFC spells it: finAPI's own shape of errors has capitals."""
    return (error.code or "").lower()


def _hopeless(identity: Identity, refused: TokenError | None, refusal: Refusal | None) -> TokenError:
    """Return why there is no token: finAPI *refused* the refresh token, or, before, the password as well."""
    if refused is not None and _is_about_the_client(refused):
        return refused
    if refusal is not None:
        return refusal.to_error()
    if refused is None:
        return LoginRequiredError(f"there is no token for {identity}")
    return LoginRequiredError(f"finAPI refused the refresh token of {identity}", **refused.facts())
