"""Tokens in Redis, shared by all hosts that reach it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from redis.exceptions import RedisError

from ..seconds import positive_seconds
from .waiting import LEASE, LOCK_TIMEOUT, wait_for

if TYPE_CHECKING:
    from redis import Redis
    from redis.cluster import RedisCluster

_WRITE = "write RedisStore(redis.Redis.from_url('redis://...'))"
# Redis adds the time of day to it, and counts in 63 bits.
_LONGEST_MILLISECONDS = 2**62


class RedisStore:
    """Keeps each value under ``<prefix>token:<key>`` over the caller's own redis-py connection.

    TLS, Sentinel, Cluster, passwords, retries and timeouts are the client's matter; whatever it raises is raised.
    Give it a ``socket_timeout`` and no retries: redis-py may else wait for a minute, or for ever.
    ``lock_timeout`` is how many seconds a lock waits before it raises ``TimeoutError``. ``lease`` is how many
    seconds a lock lasts unless its holder extends it: so long do others wait for a holder that was killed. It
    must be longer than one token call (30 s) and shorter than ``lock_timeout``. ``expire_after`` is how many seconds
    after it was last set a value ends (to the millisecond; ``None``: never). A token that is used and need not be
    renewed is not set: choose more than a token and its refresh token live. ``ValueError`` or ``TypeError`` if it is
    not above 0. A text or an asyncio client in place of the client raises ``TypeError``.
    """

    def __init__(
        self,
        client: Redis | RedisCluster,
        prefix: str = "finapi_session:",
        *,
        lock_timeout: float = LOCK_TIMEOUT,
        lease: float = LEASE,
        expire_after: float | None = None,
    ) -> None:
        # The client's types say "awaitable or not" for each answer; a client of this kind never awaits.
        self.client: Any = _checked(client)
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
    def lock(self, key: str) -> Iterator[RedisLock]:
        """Exclude every other holder of *key* on all hosts, or raise ``TimeoutError``.

        Leaving raises ``redis.exceptions.LockNotOwnedError`` if the lease ran out meanwhile; an error of the
        body goes first.
        """
        lock = RedisLock(self.client, f"{self.prefix}lock:{key}", self.lease)
        try:
            wait_for(lock._attempt, self.lock_timeout, "process or host")
            yield lock
            lock._release()
        except BaseException:
            lock._give_up()
            raise

    def _milliseconds(self) -> int | None:
        if self.expire_after is None:
            return None
        return round(min(max(self.expire_after * 1000, 1), _LONGEST_MILLISECONDS))

    def _token(self, key: str) -> str:
        return f"{self.prefix}token:{key}"

    def __repr__(self) -> str:
        return f"RedisStore(prefix={self.prefix!r})"


class RedisLock:
    """A lock while it is held; :meth:`RedisStore.lock` yields it."""

    def __init__(self, client: Any, name: str, lease: float) -> None:
        self._client, self._name = client, name
        self._lock = client.lock(name, timeout=lease, thread_local=False)
        # A name that is known before Redis answers: the lock may be ours though the answer that said so was lost.
        self._lock.local.token = self._mine = uuid4().hex.encode()
        self._process = os.getpid()
        self._looks = self._left = False

    def extend(self) -> None:
        """Put the lease back to its full length.

        Raises nothing: if the lease has run out, leaving the ``with`` block tells; if Redis fails, the lease
        goes on as it was.
        """
        with suppress(RedisError):
            self._lock.reacquire()

    def _attempt(self) -> bool:
        """Take the lock if it is free. A waiter only reads, as long as it is not."""
        if self._looks and (holder := self._client.get(self._name)) is not None:
            return holder in (self._mine, self._mine.decode())
        self._looks = True
        return bool(self._lock.acquire(blocking=False, token=self._mine))

    def _release(self) -> None:
        """Give the lock back; raise ``LockNotOwnedError`` if it is not ours any more."""
        # A forked child leaves the lock to its parent.
        if self._process != os.getpid():
            return
        try:
            self._lock.do_release(self._mine)
        except RedisError:
            # Not a second time: a Redis that hangs has been waited for.
            self._left = True
            raise

    def _give_up(self) -> None:
        """Give the lock back if it is ours, which it may be at any moment since it was first tried for."""
        if not self._left:
            with suppress(RedisError):
                self._release()


def _checked(client: Any) -> Any:
    """Return *client*; raise ``TypeError`` that says what to write if it is none that waits for its answers."""
    if isinstance(client, (str, bytes)):
        raise TypeError(f"RedisStore takes a client, not a URL: {_WRITE}, or open_store('redis://...')")
    kinds = client.__mro__ if isinstance(client, type) else type(client).__mro__
    if any(kind.__module__.startswith("redis.asyncio") for kind in kinds):
        raise TypeError(f"RedisStore takes a client that waits for its answers, not one of redis.asyncio: {_WRITE}")
    if isinstance(client, type) or not all(hasattr(client, name) for name in ("get", "set", "delete", "lock")):
        name = getattr(client, "__name__", type(client).__name__)
        raise TypeError(f"RedisStore takes a client of redis-py, not {name}: {_WRITE}")
    return client
