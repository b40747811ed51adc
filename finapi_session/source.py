"""The tokens of one identity: the fast path, and what drives a renewal.

Time has one table, in seconds; correctness rests on the merge of what is known, never on these bounds:

================  =====  ===========================================================================
token call        30     connect, headers and body (``endpoint.CALL``)
renewal           45     all tries of one, with what is waited in between (``endpoint.RENEWAL``)
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
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any, NamedTuple

from requests.auth import AuthBase

from . import renewal
from .cell import LONGEST_PAUSE, Cell, Cells, Pause
from .endpoint import TokenEndpoint
from .errors import TokenEndpointError, TokenError, raised_by_signal_handler
from .events import Journal
from .fallback import LOOK_AGAIN, StoreLock
from .flight import Flight, Ticket
from .identity import Credentials, Identity
from .knowledge import NOTHING, Grant, Knowledge
from .knowledge import rejected as buried
from .renewal import Answer, Fetch, Flow, Load, Lock, Revoke, Save, Step, View, Want
from .tokens import Bearer, Token

#: Seconds that a thread waits for another one of its process, see the table above.
TURN = 145.0


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
    ) -> None:
        self.identity = identity
        self._endpoint = endpoint
        self._cells = cells
        self._journal = journal
        self._leeway = leeway
        self._given = token
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

    def token(self, *, patient: bool = True) -> Token:
        """Return a valid token, asking finAPI for it if need be. Raises a :class:`TokenError`.

        What is transient is tried again if *patient*.
        """
        held, cell = self._held, self._cell
        if held is not None and cell is not None and held.known is cell.knowledge and time.time() < held.fresh_until:
            return held.token
        held = self._look()
        if held is not None and time.time() >= held.fresh_until:
            self._renew_early(held)
            held = self._look()
        if held is not None:
            return held.token
        token = self._in_turn(None, patient=patient)
        assert token is not None
        return token

    def renew(self, rejected: Bearer) -> Token | None:
        """Return another token than the one that the API *rejected*, or ``None`` if finAPI has no better one.

        Raises a :class:`TokenError`.
        """
        return self._other_than(rejected) or self._in_turn(rejected)

    def accepted(self, bearer: Bearer) -> None:
        """Note that the API took a token of ours."""
        cell = self._cell
        if cell is not None and cell.accepted is not bearer:
            cell.accept(bearer)

    def rejected(self, bearer: Bearer) -> None:
        """Note that the API rejected a token that was obtained in place of another rejected one."""
        cell = self._cell
        if cell is None:
            return
        seconds = cell.reject(bearer)
        if seconds:
            self._tell_pause("the API rejects what finAPI gives", seconds)
        elif not cell.paused():
            # Told to everybody, so that the next caller renews; whoever meets a 401 has his answer anyhow.
            with suppress(TokenEndpointError):
                self._drive(renewal.record(self._burial(cell, bearer)))

    def revoke(self, bearer: AuthBase | None = None, *, patient: bool) -> None:
        """Revoke the identity's tokens, in use or stored, and forget them and what finAPI refused.

        *bearer* is the client's; without it the token, being the client's own, proves itself. What is transient is
        tried again if *patient*. Raises :class:`RevocationError` and keeps the token, so that it can be tried again.
        """
        with Ticket(self._turn) as turn:
            self._boarded(turn)
            credentials = self._resolve()
            self._drive(renewal.revoke(credentials.fingerprint), _Caller(patient=patient, bearer=bearer))
            self._held = None

    def _look(self) -> _Held | None:
        """Return the token to use by what this process knows; nothing is asked, neither the store nor for secrets."""
        cell = self._cell
        grant = None if cell is None else cell.knowledge.usable(self._fingerprint, time.time())
        return None if cell is None or grant is None else self._hold(cell, grant)

    def _hold(self, cell: Cell, grant: Grant) -> _Held:
        now = time.time()
        fresh_until = grant.fresh_until(self._leeway)
        if fresh_until <= now:
            fresh_until = cell.early_from
        if cell.lags:
            fresh_until = min(fresh_until, cell.early_from)
        expires_at = math.inf if grant.token.expires_at is None else grant.token.expires_at
        self._held = _Held(grant.token, min(fresh_until, expires_at), cell.knowledge)
        return self._held

    def _other_than(self, rejected: Bearer) -> Token | None:
        held = self._look()
        return None if held is None or held.token.authorization == rejected else held.token

    def _in_turn(self, rejected: Bearer | None, *, patient: bool = True) -> Token | None:
        """Let one thread renew; the others look again, or share its error."""
        with Ticket(self._turn) as turn:
            self._boarded(turn)
            held = self._look()
            if held is not None and held.token.authorization != rejected:
                return held.token
            shared = turn.failure()
            if shared is not None:
                raise shared
            try:
                return self._obtain(patient) if rejected is None else self._replace(rejected)
            except Exception as error:
                if not raised_by_signal_handler(error):
                    turn.fail(error)
                raise

    def _obtain(self, patient: bool) -> Token:
        credentials = self._resolve()
        grant = self._drive(renewal.renew(self._want()), _Caller(credentials, patient))
        assert grant is not None
        return grant.token

    def _replace(self, rejected: Bearer) -> Token | None:
        """Bury the *rejected* token and renew, or only look for a sibling's while there is a pause."""
        credentials, cell = self._resolve(), self._known_cell()
        paused = cell.paused()
        seconds = 0.0 if paused else cell.reject(rejected)
        if seconds:
            self._tell_pause("the API rejects what finAPI gives", seconds)
        may_ask = not paused and not seconds
        if may_ask:
            cell.learn(self._burial(cell, rejected))
        want = self._want(rejected=rejected, may_ask=may_ask)
        grant = self._drive(renewal.renew(want), _Caller(credentials))
        if grant is not None and grant.token.authorization != rejected:
            return grant.token
        if may_ask:
            cell.pause = Pause(rejected, time.time() + LONGEST_PAUSE, LONGEST_PAUSE)
            self._tell_pause("finAPI gives the rejected token again", LONGEST_PAUSE)
        return None

    def _renew_early(self, held: _Held) -> None:
        """In the soft window one thread renews and the others go on. If that fails, nobody notices."""
        cell = self._cell
        if cell is None or cell.flight.busy:
            return
        with Ticket(self._turn) as turn:
            if turn.board(0) and self._held is held:
                self._try_early(held)

    def _try_early(self, held: _Held) -> None:
        retry_after, reason = 0.0, "the lock or the store cannot be had"
        try:
            caller = _Caller(self._resolve(), patient=False, wait=0.0)
            if self._drive(renewal.renew(self._want(early=True)), caller) is not None:
                return
        except Exception as error:
            if raised_by_signal_handler(error):
                raise
            retry_after, reason = getattr(error, "retry_after", None) or 0.0, type(error).__name__
        self._known_cell().early_from = self._next_try(held.token, retry_after)
        self._journal.tell("decided", str(self.identity), reason=f"{reason} before expiry: the token held goes on")

    def _next_try(self, token: Token, retry_after: float) -> float:
        """Return when to try again in the soft window: waiting as long as it has lasted, some six times in all."""
        opened, closes, now = token.renew_at(self._leeway), token.expires_at, time.time()
        if closes is None or now < opened:  # it was for the store, which lacks something
            return now + LOOK_AGAIN
        wait = max(now - opened, (closes - opened) / 30) * random.uniform(1.0, 1.25)
        return min(closes, now + max(wait, retry_after))

    def _resolve(self) -> Credentials:
        """Ask for the secrets, and take the cell that they lead to; what a callable raises comes through."""
        credentials = self.identity.credentials()
        before, fingerprint = self._cell, self._fingerprint
        cell = self._cells.of(credentials, self._endpoint.environment.token_url)
        self._cell, self._fingerprint = cell, credentials.fingerprint
        if before is not None and before.key != cell.key:
            self._move(before, fingerprint)
        return credentials

    def _known_cell(self) -> Cell:
        assert self._cell is not None
        return self._cell

    def _move(self, before: Cell, fingerprint: str) -> None:
        """Take what is known along to a new client secret, which changes the keys; finAPI keeps users' tokens."""
        grants = (grant for grant in before.knowledge.grants if grant.belongs_to(fingerprint))
        moved = tuple(replace(grant, fingerprint=self._fingerprint) for grant in grants)
        if self.identity.username is not None:
            self._drive(renewal.record(Knowledge(moved, before.knowledge.rejections)))
        self._cells.remove(before.key)

    def _want(self, **changes: Any) -> Want:
        label, user = str(self.identity), self.identity.username is not None
        return Want(label, user, self._fingerprint, self._leeway, **changes)

    def _drive(self, flow: Flow, caller: _Caller | None = None) -> Grant | None:
        """Do what *flow* says, step by step, and hold what it returns. Locks are given back on every way out."""
        cell, caller = self._known_cell(), caller or _Caller()
        before, answer = cell.knowledge, None
        with Ticket(cell.flight) as ticket, self._cells.fallback.lock(cell.key) as lock, closing(flow):
            try:
                while True:
                    answer = self._perform(flow.send(answer), cell, caller, ticket, lock)
            except StopIteration as done:
                grant: Grant | None = done.value
        if grant is not None:
            self._hold(cell, grant)
            if before.find(grant.token.access_token) is None and not caller.asked:
                expires_in = None if grant.token.expires_at is None else grant.token.expires_at - time.time()
                self._journal.tell("adopted", str(self.identity), expires_in=expires_in)
        return grant

    def _perform(self, step: Step, cell: Cell, caller: _Caller, ticket: Ticket, lock: StoreLock) -> Any:
        if isinstance(step, Load):
            return self._load(cell, step.refusals)
        if isinstance(step, Lock):
            return self._boarded(ticket, caller.wait) and lock.acquire()
        if isinstance(step, Save):
            return self._cells.save(cell, step.facts, fresh=step.fresh)
        caller.asked = True
        if isinstance(step, Revoke):
            token = step.grant.token
            return self._endpoint.revoke(str(self.identity), token, caller.bearer, patient=caller.patient)
        return self._fetch(step, caller, ticket, lock)

    def _load(self, cell: Cell, refusals: bool) -> View:
        view = self._cells.load(cell, refusals=refusals)
        given, self._given = self._given, None
        if given is None:
            return view
        cell.learn(cell.knowledge.given(given, self._fingerprint))
        return view._replace(knowledge=cell.knowledge)

    def _fetch(self, step: Fetch, caller: _Caller, ticket: Ticket, lock: StoreLock) -> Answer:
        """Ask finAPI, unless it failed another source of the identity while this one waited."""
        shared = ticket.failure(self._fingerprint)
        if isinstance(shared, TokenError):
            return Answer(shared, time.time())
        assert caller.credentials is not None
        token = None if step.grant is None else step.grant.token
        try:
            said: Token | TokenError = self._endpoint.fetch(
                caller.credentials, token, patient=caller.patient, before_each_try=lock.extend
            )
        except TokenError as error:
            said = error.again()
            if isinstance(error, TokenEndpointError) and caller.patient:
                ticket.fail(error, self._fingerprint)
        return Answer(said, time.time())

    def _burial(self, cell: Cell, bearer: Bearer) -> Knowledge:
        grant = cell.knowledge.find(bearer.partition(" ")[2])
        return NOTHING if grant is None else buried([grant.access_id], cell.knowledge.serial + 1)

    def _boarded(self, ticket: Ticket, seconds: float = TURN) -> bool:
        """Wait for the other threads; raises :class:`TokenEndpointError` if they take longer than so many *seconds*."""
        boarded = ticket.board(seconds)
        if seconds and not boarded:
            raise TokenEndpointError(f"another thread has been renewing the token for {seconds:.0f} s")
        return boarded

    def _tell_pause(self, reason: str, seconds: float) -> None:
        reason = f"{reason}: it is not renewed again for {seconds:g} s"
        self._journal.tell("decided", str(self.identity), reason=reason)


class _Caller:
    """Whoever waits for a flow: with which *credentials*, whether *patient*, how many seconds for other threads.

    *bearer* is the client's, to revoke with.
    """

    __slots__ = ("credentials", "patient", "wait", "bearer", "asked")

    def __init__(
        self,
        credentials: Credentials | None = None,
        patient: bool = True,
        wait: float = TURN,
        bearer: AuthBase | None = None,
    ) -> None:
        self.credentials = credentials
        self.patient = patient
        self.wait = wait
        self.bearer = bearer
        self.asked = False
