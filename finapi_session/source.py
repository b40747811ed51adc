"""The tokens of one identity: the fast path, and who renews when.

Time has one table, in seconds; correctness rests on the merge of what is known, never on these bounds:

================  =====  ===========================================================================
token call        30     connect, headers and body (``endpoint.py``)
renewal           45     all tries of one, with what is waited in between (``endpoint.py``)
lease             35     of a store's lock that has one: a call, extended before each try
store's lock      50     waited for longer than a renewal takes (``lock_timeout`` of the stores)
another thread    145    waited for: a store's lock, then a renewal by refresh token and by password
================  =====  ===========================================================================
"""

from __future__ import annotations

import copy
import math
import random
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from requests.auth import AuthBase

from . import renewal
from .background import InBackground
from .cell import LONGEST_PAUSE, Cell, Cells
from .drive import TURN, Drive
from .endpoint import RENEWAL_SECONDS, TokenEndpoint
from .errors import TokenEndpointError, TokenError, raised_by_signal_handler
from .events import Journal, Kind
from .fallback import LOOK_AGAIN
from .flight import Flight, Ticket
from .identity import Credentials, Identity
from .knowledge import Grant, Knowledge
from .renewal import Flow, Want
from .tokens import Bearer, Token

# The part of the soft window that this process lets pass: a sticky client token ends in the same second for every host,
# and they need not all ask for the next one in the same second, too.
_LATE = random.uniform(0.0, 0.1)


class _Held(NamedTuple):
    """The token in use, and until when (epoch seconds) nobody need think about it while no more is *known*."""

    token: Token
    fresh_until: float
    known: Knowledge


class TokenSource:
    """The tokens of one identity: always a valid one, asked for as rarely as possible.

    Any number of threads may use it. A thread waits at most :data:`TURN` seconds for another thread's renewal.
    """

    def __init__(
        self,
        identity: Identity,
        endpoint: TokenEndpoint,
        cells: Cells,
        journal: Journal,
        leeway: float = 60.0,
        token: Token | None = None,
        in_background: bool = False,
    ) -> None:
        self.identity = identity
        self._endpoint = endpoint
        self._cells = cells
        self._journal = journal
        self._leeway = leeway
        self._given = token
        self._in_background = in_background
        self._cell: Cell | None = None
        self._fingerprint = ""
        self._held: _Held | None = None
        self._turn = Flight()

    @property
    def held(self) -> Token | None:
        """The token in use, if there is one; nothing is asked."""
        return self._given if self._held is None else self._held.token

    def revocable(self) -> TokenSource:
        """Return a source of the same tokens, to revoke them: it keeps alive nothing that a password may come from."""
        source = copy.copy(self)
        source.identity = replace(self.identity, password=None)
        return source

    def forget(self) -> None:
        """Keep nothing of a token that was revoked, where nobody shares the store."""
        if self._cell is not None:
            self._cells.forget(self._cell)

    def token(self, *, patient: bool = True) -> Token:
        """Return a valid token, asking finAPI for it if need be. Raises a :class:`TokenError`.

        What is transient is tried again if *patient*.
        """
        fresh = self.fresh()
        if fresh is not None:
            return fresh
        held, token = self._look(), None
        if held is None:
            token = self._in_turn(patient=patient)
            held = self._look()  # what was found in the store may be due soon
        if held is not None and time.time() >= held.fresh_until:
            self._renew_early(held)
            held, token = self._look(), None
        if held is not None:
            return held.token
        token = token or self._in_turn(patient=patient)
        assert token is not None
        return token

    def fresh(self) -> Token | None:
        """Return the token in use while nobody need think about it, else ``None``; it waits for nothing and nobody."""
        held, cell = self._held, self._cell
        if held is not None and cell is not None and held.known is cell.knowledge and time.time() < held.fresh_until:
            return held.token
        return None

    def renew(self, rejected: Bearer, call: str = "") -> Token | None:
        """Return another token than the one that the API *rejected*, or ``None`` if finAPI has no better one.

        *call* is the one that met the 401, as the log is to name it. Raises a :class:`TokenError`.
        """
        held = self._look(rejected)
        return self._in_turn(rejected, call) if held is None else held.token

    def accepted(self, bearer: Bearer) -> None:
        """Note that the API took a token of ours: one in use, as a late answer says nothing of its successor."""
        held, cell = self._held, self._cell
        if held is not None and cell is not None and cell.accepted is not bearer and held.token.authorization == bearer:
            cell.accept(bearer)

    def rejected(self, bearer: Bearer) -> None:
        """Note that the API rejected a token that was obtained in place of another rejected one.

        Unless there is a pause, everybody is told, so that the next caller renews.
        """
        cell = self._cell
        if cell is not None and self._may_renew(cell, bearer):
            with suppress(TokenEndpointError):  # whoever met the 401 has an answer anyhow
                self._drive(renewal.record(cell.knowledge.without(bearer.partition(" ")[2])))

    def revoke(self, bearer: AuthBase | None = None, *, patient: bool, within: float = RENEWAL_SECONDS) -> None:
        """Revoke the identity's tokens, in use or stored, and forget them and what finAPI refused.

        *bearer* is the client's; without it the token, being the client's own, proves itself. What is transient is
        tried again if *patient*, each *within* so many seconds. Raises :class:`RevocationError` and keeps the token, so
        that it can be tried again.
        """
        with Ticket(self._turn) as turn:
            turn.board(TURN)
            self._resolve()
            self._drive(renewal.revoke(self._fingerprint), patient=patient, bearer=bearer, within=within)
            self._held = None

    def _look(self, rejected: Bearer | None = None) -> _Held | None:
        """Return the token to use by what this process knows, if it is not the *rejected* one; nothing is asked."""
        cell = self._cell
        grant = None if cell is None else cell.knowledge.usable(self._fingerprint, time.time())
        if cell is None or grant is None or grant.token.authorization == rejected:
            return None
        return self._hold(cell, grant)

    def _hold(self, cell: Cell, grant: Grant) -> _Held:
        fresh_until = grant.fresh_until(self._leeway, _LATE)
        if cell.lags or fresh_until <= time.time():
            fresh_until = min(cell.early_from, fresh_until) if cell.lags else cell.early_from
        expires_at = math.inf if grant.token.expires_at is None else grant.token.expires_at
        self._held = _Held(grant.token, min(fresh_until, expires_at), cell.knowledge)
        return self._held

    def _in_turn(self, rejected: Bearer | None = None, call: str = "", *, patient: bool = True) -> Token | None:
        """Let one thread renew; the others look again, or share its error."""
        with Ticket(self._turn) as turn:
            turn.board(TURN)
            held = self._look(rejected)
            if held is not None:
                return held.token
            shared = turn.failure()
            if shared is not None:
                self._decided(*_repeated(shared))
                raise shared
            try:
                return self._renewed(rejected, call, patient)
            except Exception as error:
                if not raised_by_signal_handler(error):
                    turn.fail(error)
                raise

    def _renewed(self, rejected: Bearer | None, call: str, patient: bool) -> Token | None:
        """Renew, or only look for a sibling's token while there is a pause."""
        credentials = self._resolve()
        cell = self._cell
        assert cell is not None
        may_ask = rejected is None or self._may_renew(cell, rejected)
        if rejected is not None and may_ask:
            cell.learn(cell.knowledge.without(rejected.partition(" ")[2]))
        want = self._want(rejected=rejected, call=call, may_ask=may_ask)
        grant = self._drive(renewal.renew(want), credentials, patient=patient)
        if grant is not None and grant.token.authorization != rejected:
            return grant.token
        if rejected is not None and may_ask:
            cell.rest(rejected, LONGEST_PAUSE)
            self._decided(_paused("finAPI gives the rejected token again", LONGEST_PAUSE), kind="rejected")
        return None

    def _may_renew(self, cell: Cell, rejected: Bearer) -> bool:
        """Tell whether a *rejected* token may be renewed now, or whether finAPI's tokens die too young for that."""
        if cell.paused():
            return False
        seconds = cell.reject(rejected)
        if seconds:
            self._decided(_paused("the API rejects what finAPI gives", seconds), kind="rejected")
        return not seconds

    def _renew_early(self, held: _Held) -> None:
        """In the soft window one thread renews and the others go on. If that fails, nobody notices."""
        cell = self._cell
        if cell is None or cell.flight.busy:
            return
        if not self._in_background:
            with Ticket(self._turn) as turn:
                if turn.board(0):
                    self._try_early(cell)
        elif not InBackground.take_off(self._turn, self._cells, partial(self._try_early, cell)):
            cell.early_from = _next_try(held.token, self._leeway, 0.0)
            self._decided("no thread before expiry: the token held goes on")

    def _try_early(self, cell: Cell) -> None:
        """Renew, if that is still due: another thread may have done so meanwhile, or failed."""
        held = self._look()
        if held is None or time.time() < held.fresh_until:
            return
        reason, retry_after = "no lock, or no store,", 0.0
        try:
            flow = renewal.renew(self._want(early=True))
            if self._drive(flow, self._resolve(), patient=False, wait=0.0) is not None:
                return
        except Exception as error:
            if raised_by_signal_handler(error):
                raise
            reason, retry_after = type(error).__name__, getattr(error, "retry_after", None) or 0.0
        cell.early_from = _next_try(held.token, self._leeway, retry_after)
        self._decided(f"{reason} before expiry: the token held goes on")

    def _resolve(self) -> Credentials:
        """Ask for the client's secret, and take the cell that it leads to; what a callable raises comes through.

        The password is asked for only where its fingerprint, which depends on that secret, is not known yet.
        """
        credentials = self.identity.without_password()
        before, fingerprint = self._cell, self._fingerprint
        cell = self._cells.of(credentials, self._endpoint.environment.token_url)
        moved = before if before is not None and before.key != cell.key else None
        if moved is not None or not fingerprint:
            credentials = self.identity.with_password(credentials)
            self._fingerprint = credentials.fingerprint
        self._cell = cell
        if moved is not None:
            self._move(moved, fingerprint)
        given, self._given = self._given, None
        if given is not None:
            self._cells.load(cell, refusals=False)
            cell.learn(cell.knowledge.given(given, self._fingerprint))
        return credentials

    def _move(self, before: Cell, fingerprint: str) -> None:
        """Take what is known along to a new client secret, which changes the keys; finAPI keeps users' tokens."""
        if self.identity.username is not None:
            self._drive(renewal.record(before.knowledge.moved(fingerprint, self._fingerprint)))
        self._cells.empty(before)

    def _want(self, **changes: Any) -> Want:
        user = self.identity.username is not None
        return Want(str(self.identity), user, self._fingerprint, self._leeway, **changes)

    def _drive(self, flow: Flow, credentials: Credentials | None = None, **how: Any) -> Grant | None:
        """Carry out *flow*, and hold what it returns."""
        cell = self._cell
        assert cell is not None
        before = cell.knowledge
        drive = Drive(self._cells, cell, self._endpoint, self.identity, credentials, **how)
        try:
            grant = drive.through(flow)
        except TokenError as error:
            if not drive.asked:
                self._decided(*_repeated(error))
            raise
        finally:
            self._fingerprint = drive.fingerprint or self._fingerprint
        if grant is not None:
            self._hold(cell, grant)
            if not drive.asked and before.find(grant.token.access_token) is None:
                expires_in = None if grant.token.expires_at is None else grant.token.expires_at - time.time()
                self._journal.tell("adopted", str(self.identity), expires_in=expires_in)
        return grant

    def _decided(self, reason: str, request_id: str | None = None, kind: Kind = "decided") -> None:
        self._journal.tell(kind, str(self.identity), request_id=request_id, reason=reason)


def _paused(reason: str, seconds: float) -> str:
    return f"{reason}: it is not renewed again for {seconds:g} s"


def _repeated(error: Exception) -> tuple[str, str | None]:
    """Return what is told of an *error* that was met before, and its request id; a callable's text may be secret."""
    if isinstance(error, TokenError):
        return f"nothing was asked: {error}", error.request_id
    return f"nothing was asked: {type(error).__name__}", None


def _next_try(token: Token, leeway: float, retry_after: float) -> float:
    """Return when to try again in the soft window: waiting as long as it has lasted, some six times in all."""
    opened, closes, now = token.renew_at(leeway, _LATE), token.expires_at, time.time()
    if closes is None or now < opened:  # it was for the store, which lacks something
        return now + LOOK_AGAIN
    wait = max(now - opened, (closes - opened) / 30) * random.uniform(1.0, 1.25)
    return min(closes, now + max(wait, retry_after))
