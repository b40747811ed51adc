"""Small herds: a few threads and processes of one user that need a token in the same moment."""

from __future__ import annotations

from typing import NamedTuple

from finapi_session.tokens import Token

from .models import Finapi, Shared
from .processes import Process
from .world import World


class Herd(NamedTuple):
    """What they meet: a *situation*, with or without a password, and finAPI's reading."""

    situation: str
    password: bool
    rotates: bool
    processes: int
    threads: int

    def play(self, world: World) -> None:
        """Let all of them call at once, and see to it that finAPI is asked once and nobody fails."""
        finapi = Finapi(world, rotates=self.rotates, detects_reuse=self.rotates)
        shared = Shared()
        seed = None if self.password else self._login(finapi)
        password = "right" if self.password else None
        workers = [Process(world, finapi, shared, f"P{n}", password, seed) for n in range(self.processes)]
        if self.situation != "cold":
            for worker in workers:
                world.start(worker, worker.call, f"{worker.name} warms up")
                world.run()
        if self.situation == "expired":
            world.now += finapi.lifetime + 1
        if self.situation == "rejected":
            finapi.kill()
        before = len(finapi.calls)
        for worker in workers:
            for thread in range(self.threads):
                world.start(worker, worker.call, f"{worker.name}.{thread}")
        world.run()
        outcomes = [outcome for worker in workers for outcome in worker.outcomes]
        assert {outcome.status for outcome in outcomes} == {200}, outcomes
        expected = 0 if self.situation == "cold" and not self.password else 1
        assert len(finapi.calls) - before == expected, finapi.calls[before:]
        assert all(outcome.sends <= 2 for outcome in outcomes)

    def _login(self, finapi: Finapi) -> Token:
        token = finapi.judge("right", None)
        finapi.calls.clear()
        return token


HERDS = [
    Herd(situation, password, rotates, processes, threads)
    for situation in ("cold", "expired", "rejected")
    for password, rotates in ((True, False), (True, True), (False, True))
    for processes, threads in ((1, 2), (2, 1), (2, 2))
]
