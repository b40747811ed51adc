"""Processes that make API calls with the real library, in the world of models."""

from __future__ import annotations

from typing import Any, NamedTuple

from finapi_session.cell import Cells
from finapi_session.environment import SANDBOX
from finapi_session.errors import TokenError
from finapi_session.events import Journal
from finapi_session.fallback import Fallback
from finapi_session.identity import Credentials, Identity
from finapi_session.knowledge import NOTHING, Knowledge
from finapi_session.source import TokenSource
from finapi_session.tokens import Token

from .models import Endpoint, Finapi, Link, Shared
from .world import World

#: A user's key in the store.
KEY = Credentials("id", "secret", "alice").key(SANDBOX.token_url)


class Outcome(NamedTuple):
    """What came of one API call."""

    status: int
    sends: int
    error: TokenError | None = None


class Process:
    """A worker: a store connection, an endpoint and cells of its own; its sessions live for one call each, or long."""

    def __init__(
        self,
        world: World,
        finapi: Finapi,
        shared: Shared,
        name: str,
        password: str | None = "right",
        token: Token | None = None,
        per_request: bool = True,
    ) -> None:
        self.world, self.finapi, self.shared, self.name = world, finapi, shared, name
        self.password, self.token, self.per_request = password, token, per_request
        self.suspended_until = 0.0
        self.outcomes: list[Outcome] = []
        self.boot()

    def boot(self) -> None:
        """Start, or start again after a kill: nothing is remembered."""
        self.link = Link(self.world, self.shared)
        self.endpoint = Endpoint(self.world, self.finapi)
        self.cells = Cells(Fallback(self.link, Journal(SANDBOX.base_url)))
        self._source = self._new_source()

    def _new_source(self) -> TokenSource:
        identity = Identity("id", "secret", "alice", self.password)
        endpoint: Any = self.endpoint
        return TokenSource(identity, endpoint, self.cells, Journal(SANDBOX.base_url), 60.0, self.token)

    @property
    def source(self) -> TokenSource:
        """The session to call with."""
        return self._new_source() if self.per_request else self._source

    def known(self) -> Knowledge:
        """Return what this process knows of the user."""
        cell = self.cells._cells.get(KEY)
        return NOTHING if cell is None else cell.knowledge

    def call(self) -> None:
        """Make an API call, as BearerAuth makes it: at most two sends."""
        source = self.source
        try:
            outcome = self._call(source)
        except TokenError as error:
            outcome = Outcome(0, 0, error)
        self.world.tell(f"call: {outcome.status or type(outcome.error).__name__}")
        self.outcomes.append(outcome)

    def _call(self, source: TokenSource) -> Outcome:
        token = source.token()
        self._check(token)
        if self._send(token):
            source.accepted(token.authorization)
            return Outcome(200, 1)
        other = source.renew(token.authorization)
        if other is None:
            return Outcome(401, 1)
        if self._send(other):
            source.accepted(other.authorization)
            return Outcome(200, 2)
        source.rejected(other.authorization)
        return Outcome(401, 2)

    def _send(self, token: Token) -> bool:
        self.world.pause()
        accepted = self.finapi.accepts(token.access_token)
        self.world.tell(f"sends {token.access_token}: {200 if accepted else 401}")
        self.world.pause()
        return accepted

    def _check(self, token: Token) -> None:
        """A token known to be dead is not used while a living one is known."""
        known = self.known()
        grant = known.find(token.access_token)
        if grant is None or not known.accepts(grant):
            better = known.usable("", self.world.wall())
            assert better is None, f"{token.access_token} is known to be dead, and {better} to live"
