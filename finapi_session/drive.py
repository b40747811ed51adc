"""What carries out a flow: it has the store, the locks and finAPI at hand, and decides nothing."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

from requests.auth import AuthBase

from .cell import Cell, Cells
from .endpoint import RENEWAL_SECONDS, TokenEndpoint
from .errors import TokenEndpointError, TokenError
from .fallback import StoreLock
from .flight import Ticket
from .identity import Credentials, Identity
from .knowledge import Grant
from .renewal import Answer, Fetch, Flow, Load, Lock, Password, Revoke, Save, Step
from .tokens import Token

#: Seconds that a thread waits for another one of its process, see ``source.py``.
TURN = 145.0


class Drive:
    """One ride through a flow for *identity*, whose cell is *cell*, with these *credentials*.

    They get the password when it is to be sent. *patient* tries again what is transient. *wait* is how many seconds
    other threads are waited for; with 0 the lock is not obtained while one of them has it. *bearer* is the client's,
    to revoke with, *within* so many seconds each.
    """

    __slots__ = (
        "asked",
        "fingerprint",
        "_cells",
        "_cell",
        "_endpoint",
        "_identity",
        "_credentials",
        "_patient",
        "_wait",
        "_bearer",
        "_within",
    )

    def __init__(
        self,
        cells: Cells,
        cell: Cell,
        endpoint: TokenEndpoint,
        identity: Identity,
        credentials: Credentials | None,
        *,
        patient: bool = True,
        wait: float = TURN,
        bearer: AuthBase | None = None,
        within: float = RENEWAL_SECONDS,
    ) -> None:
        #: Whether finAPI was asked.
        self.asked = False
        #: That of the password, if the flow asked for it.
        self.fingerprint = ""
        self._cells, self._cell, self._endpoint, self._identity = cells, cell, endpoint, identity
        self._credentials, self._patient, self._wait = credentials, patient, wait
        self._bearer, self._within = bearer, within

    def through(self, flow: Flow) -> Grant | None:
        """Do what *flow* says, step by step, and return what it returns. Locks are given back on every way out."""
        answer: Any = None
        with Ticket(self._cell.flight) as ticket, self._cells.fallback.lock(self._cell.key) as lock, closing(flow):
            try:
                while True:
                    answer = self._perform(flow.send(answer), ticket, lock)
            except StopIteration as done:
                grant: Grant | None = done.value
                return grant

    def _perform(self, step: Step, ticket: Ticket, lock: StoreLock) -> Any:
        if isinstance(step, Load):
            return self._cells.load(self._cell, refusals=step.refusals)
        if isinstance(step, Lock):
            return ticket.board(self._wait) and lock.acquire()
        if isinstance(step, Save):
            return self._cells.save(self._cell, step.facts, fresh=step.fresh)
        if isinstance(step, Password):
            return self._ask_for_password()
        self.asked = True
        if isinstance(step, Revoke):
            return self._endpoint.revoke(
                str(self._identity), step.grant.token, self._bearer, patient=self._patient, within=self._within
            )
        return Answer(self._fetch(step, ticket, lock), time.time())

    def _ask_for_password(self) -> str:
        assert self._credentials is not None
        self._credentials = self._identity.with_password(self._credentials)
        self.fingerprint = self._credentials.fingerprint
        return self.fingerprint

    def _fetch(self, step: Fetch, ticket: Ticket, lock: StoreLock) -> Token | TokenError:
        """Ask finAPI, unless it failed somebody else with these credentials while this one waited."""
        assert self._credentials is not None
        whose = self._credentials.fingerprint if step.grant is None else step.grant.fingerprint
        shared = ticket.failure(whose)
        if isinstance(shared, TokenError):
            return shared
        token = None if step.grant is None else step.grant.token
        try:
            return self._endpoint.fetch(
                self._credentials, token, patient=self._patient, before_each_try=lock.extend, why=step.why
            )
        except TokenError as error:
            if isinstance(error, TokenEndpointError) and self._patient:
                ticket.fail(error, whose)
            return error.again()
