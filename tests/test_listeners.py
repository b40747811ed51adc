"""Listeners that call in the middle of a renewal."""

from __future__ import annotations

import time

from finapi_session import MemoryStore, TokenEvent
from finapi_session.testing import Sandbox

from .clocks import Clock
from .herd import CALLS, ECHO


def test_a_listener_that_uses_a_twin_in_an_early_renewal_waits_for_nobody(sandbox: Sandbox, clock: Clock) -> None:
    """Another session of the user goes on with the token that is still good, at no token call of its own."""
    sandbox.kill_on_refresh = False
    inner: list[tuple[int, float]] = []

    def listen(event: TokenEvent) -> None:
        if event.kind == "renewed" and not inner:
            started = time.monotonic()
            inner.append((twin.get(ECHO).status_code, time.monotonic() - started))

    client = sandbox.session(on_event=listen, store=MemoryStore(lock_timeout=3))
    alice, twin = (client.user("alice", "her-password") for _ in range(2))
    for session in (alice, twin):
        session.get(ECHO)
    clock.before_expiry(alice, 20)
    assert alice.get(ECHO).status_code == 200
    assert inner[0][0] == 200 and inner[0][1] < 1
    assert sandbox.count(CALLS, grant_type="refresh_token") == 1


def test_a_listener_that_calls_in_an_early_renewal_is_told_at_once(sandbox: Sandbox, clock: Clock) -> None:
    """It would wait for itself where its token is rejected; it is told what it must not do, and the renewal goes on."""
    said: list[str] = []

    def listen(event: TokenEvent) -> None:
        if event.kind == "renewed" and not said:
            try:
                alice.get(ECHO)
            except RuntimeError as error:
                said.append(str(error))

    alice = sandbox.session("alice", on_event=listen)
    alice.get(ECHO)
    clock.before_expiry(alice, 20)
    assert alice.get(ECHO).status_code == 200
    assert said == ["on_event and callable secrets must not ask for a token while one is being asked for"]
    assert sandbox.count(CALLS) == 2
