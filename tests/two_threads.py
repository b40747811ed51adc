"""A program that explores herds of two real threads: ``python -m tests.two_threads SITUATION SOURCES SCHEDULES``.

frontrun decides at each bytecode that touches what both share who goes on; it wants a process of its own, in which it
replaces threads, locks and clocks.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import frontrun

from finapi_session.cell import Cells
from finapi_session.environment import SANDBOX
from finapi_session.errors import InvalidGrantError
from finapi_session.events import Journal
from finapi_session.fallback import Fallback, StoreLock
from finapi_session.flight import Ticket
from finapi_session.identity import Credentials, Identity
from finapi_session.source import TokenSource
from finapi_session.stores.memory import MemoryStore
from finapi_session.tokens import Token

#: How often a schedule may take the turn from a thread that could go on.
PREEMPTIONS = 2
#: Schedules by chance, which go far from one thread after the other.
RANDOM = 8


class Endpoint:
    """finAPI for one user: a refresh token is replaced when it is used, and kills what was given before."""

    environment = SANDBOX

    def __init__(self) -> None:
        self.asked = 0
        self.issued = 0
        self.alive = ""
        self.refresh_token = ""
        self.lifetime = 3600.0

    def fetch(
        self,
        credentials: Credentials,
        renewed: Token | None = None,
        *,
        patient: bool = True,
        before_each_try: Callable[[], object] = bool,
        why: str | None = None,
    ) -> Token:
        """Give a new token."""
        before_each_try()
        self.asked += 1
        if renewed is not None and renewed.refresh_token != self.refresh_token:
            raise InvalidGrantError("spent", status=400, code="invalid_grant")
        self.issued += 1
        self.alive, self.refresh_token = f"A{self.issued}", f"R{self.issued}"
        now = time.time()
        return Token(self.alive, now + self.lifetime, self.refresh_token, now)


class Herd:
    """Two threads, on one source or on two over one store, and what they got."""

    def __init__(self, situation: str, sources: int) -> None:
        self.endpoint, store = Endpoint(), MemoryStore()
        journal = Journal(SANDBOX.base_url)
        self.sources = []
        for _ in range(sources):
            endpoint: Any = self.endpoint
            cells = Cells(Fallback(store, journal))
            self.sources.append(TokenSource(Identity("id", "secret", "alice", "pw"), endpoint, cells, journal))
        self.sources *= 3 - sources
        self.got: list[str] = []
        self.rejected = None
        if situation != "cold":
            self.endpoint.lifetime = -1.0 if situation == "expired" else 3600.0
            held = [source.token() for source in self.sources]
            self.endpoint.lifetime = 3600.0
            self.rejected = held[-1].authorization if situation == "rejected" else None
        if self.rejected:
            self.endpoint.alive = ""
        self.before = self.endpoint.asked

    def call(self, number: int) -> None:
        """Obtain a token as a call does."""
        source = self.sources[number]
        token = source.token()
        if token.access_token != self.endpoint.alive:
            token = source.renew(token.authorization) or token
        self.got.append(token.access_token)

    def is_well(self) -> bool:
        """Tell whether finAPI was asked once, and both have what it gave."""
        return self.endpoint.asked == self.before + 1 and self.got == [self.endpoint.alive] * 2


def main(situation: str, sources: str, schedules: str, locks: str = "locked") -> None:
    """Explore at most so many schedules, and print what came of it; with ``unlocked`` no lock holds anybody up."""
    logging.disable(logging.CRITICAL)
    if locks == "unlocked":
        Ticket.board = lambda self, seconds: True  # type: ignore[method-assign]
        StoreLock.acquire = lambda self: True  # type: ignore[method-assign]
    common: dict[str, Any] = {
        "setup": lambda: Herd(situation, int(sources)),
        "workers": [lambda herd: herd.call(0), lambda herd: herd.call(1)],
        "invariant": Herd.is_well,
        "detect_io": False,
        "trace_packages": ["finapi_session.*"],
        "timeout_per_run": 60.0,
        "deadlock_timeout": 60.0,
    }
    results = [
        frontrun.explore(strategy="random", max_attempts=RANDOM, max_ops=10**6, seed=1, **common),
        frontrun.explore(preemption_bound=PREEMPTIONS, max_executions=int(schedules), **common),
    ]
    broken = [result.explanation for result in results if not result.property_holds]
    print(json.dumps({"explored": sum(result.num_explored for result in results), "broken": broken}))


if __name__ == "__main__":
    main(*sys.argv[1:])
