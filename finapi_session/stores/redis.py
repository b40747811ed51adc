"""Tokens in Redis, shared by all hosts that reach it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from redis.exceptions import RedisError

from ..seconds import positive_seconds

if TYPE_CHECKING:
    from redis import Redis
    from redis.cluster import RedisCluster


_POLL_SECONDS = 0.05
# Redis adds the time of day to it, and counts in 63 bits.
_LONGEST_MILLISECONDS = 2**62


class RedisStore:
    """Keeps each value under ``<prefix>token:<key>`` over the caller's own redis-py connection.

    TLS, Sentinel, Cluster, passwords, retries and timeouts are the client's matter; whatever it raises is raised.
    Give it a ``socket_timeout``: some versions of redis-py wait for ever without one.
    ``lock_timeout`` is how many seconds a lock waits before it raises ``TimeoutError``. ``lease`` is how many
    seconds a lock lasts at most: Redis frees the lock of a killed holder then, so it must be longer than the
    longest renewal (two token calls of 70 s at the very worst). ``expire_after`` is how many seconds after it was
    last set a value ends (to the millisecond; ``None``: never). A token that is used and need not be renewed is not
    set: choose more than a token and its refresh token live. ``ValueError`` or ``TypeError`` if it is not above 0.
    """

    def __init__(
        self,
        client: Redis | RedisCluster,
        prefix: str = "finapi_session:",
        *,
        lock_timeout: float = 20.0,
        lease: float = 150.0,
        expire_after: float | None = None,
    ) -> None:
        # The client's types say "awaitable or not" for each answer; a client of this kind never awaits.
        self.client: Any = client
        self.prefix = prefix
        self.lock_timeout = lock_timeout
        self.lease = lease
        self.expire_after = None if expire_after is None else positive_seconds("expire_after", expire_after)

    def get(self, key: str) -> str | None:
        """Return the value last set under *key*, or ``None``."""
        value: bytes | str | None = self.client.get(self._token(key))
        return value.decode() if isinstance(value, bytes) else value

    def set(self, key: str, value: str) -> None:
        """Keep *value* under *key*, for ``expire_after`` seconds if that was given."""
        self.client.set(self._token(key), value.encode(), px=self._milliseconds())

    def delete(self, key: str) -> None:
        """Forget *key*; nothing happens if it is not there."""
        self.client.delete(self._token(key))

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Exclude every other holder of *key* on all hosts, or raise ``TimeoutError``.

        Leaving raises ``redis.exceptions.LockNotOwnedError`` if the lease ran out meanwhile; an error of the
        body goes first.
        """
        lock = self.client.lock(f"{self.prefix}lock:{key}", timeout=self.lease, thread_local=False)
        try:
            self._wait(lock)
            yield
        except BaseException:
            with suppress(RedisError):
                lock.release()
            raise
        lock.release()

    def _wait(self, lock: Any) -> None:
        """Take *lock* under a name that is known before Redis answers: it may be ours though the answer was lost."""
        lock.local.token = mine = uuid4().hex.encode()
        deadline = time.monotonic() + self.lock_timeout
        while not lock.acquire(blocking=False, token=mine) and not lock.owned():
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process or host held the lock for {self.lock_timeout:g} s")
            time.sleep(_POLL_SECONDS)

    def _milliseconds(self) -> int | None:
        if self.expire_after is None:
            return None
        return round(min(max(self.expire_after * 1000, 1), _LONGEST_MILLISECONDS))

    def _token(self, key: str) -> str:
        return f"{self.prefix}token:{key}"

    def __repr__(self) -> str:
        return f"RedisStore(prefix={self.prefix!r})"
