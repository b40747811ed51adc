"""Stores that fail as a test wants them to, each over a memory that works."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from finapi_session import MemoryStore
from finapi_session.identity import Credentials

if TYPE_CHECKING:
    from finapi_session.testing import Sandbox


def key_of(sandbox: Sandbox, username: str | None = None) -> str:
    """Return the key under which a store keeps the tokens of the sandbox's client, or of a user."""
    return Credentials(sandbox.client_id, sandbox.client_secret, username).key(sandbox.environment.token_url)


class Link(MemoryStore):
    """One process's connection to a *shared* store: what is in ``down`` (get, set, delete, lock) fails.

    ``lost`` writes arrive and seem not to; ``seconds`` are what a failure takes; ``asked`` counts by method.
    """

    def __init__(self, shared: MemoryStore | None = None, *down: str) -> None:
        super().__init__()
        self.shared = MemoryStore() if shared is None else shared
        self.down = set(down)
        self.lost = 0
        self.seconds = 0.0
        self.asked: dict[str, int] = {"get": 0, "set": 0, "delete": 0, "lock": 0}

    ALL = ("get", "set", "delete", "lock")

    def cut(self) -> None:
        """Let everything fail."""
        self.down = set(self.ALL)

    def mend(self) -> None:
        """Let everything work."""
        self.down = set()

    def get(self, key: str) -> str | None:
        """Read there."""
        self._reach("get")
        return self.shared.get(key)

    def set(self, key: str, value: str) -> None:
        """Write there."""
        self._reach("set")
        self.shared.set(key, value)
        if self.lost:
            self.lost -= 1
            raise OSError("timed out")

    def delete(self, key: str) -> None:
        """Delete there."""
        self._reach("delete")
        self.shared.delete(key)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Lock there."""
        self._reach("lock")
        with self.shared.lock(key):
            yield

    def _reach(self, verb: str) -> None:
        self.asked[verb] += 1
        if verb in self.down:
            time.sleep(self.seconds)
            raise OSError("unreachable")
