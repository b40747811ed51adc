"""A store of one's own in ten lines: tokens in the cache that a Django site has anyway."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from random import uniform
from types import SimpleNamespace
from typing import Any
from uuid import uuid4


class DjangoCacheStore:
    def __init__(self, cache: Any, lease: int = 35) -> None:
        self.cache, self.lease = cache, lease

    def get(self, key: str) -> Any:
        return self.cache.get(self._name(key))

    def set(self, key: str, value: str) -> None:
        self.cache.set(self._name(key), value, timeout=None)

    def delete(self, key: str) -> None:
        self.cache.delete(self._name(key))

    @contextmanager
    def lock(self, key: str) -> Iterator[Any]:
        name, mine, until = self._name(key) + ".lock", uuid4().hex, time.monotonic() + 50

        def extend() -> None:  # called before each token call, so that the lease covers one
            if self.cache.get(name) == mine:
                self.cache.touch(name, self.lease)

        try:
            while not self.cache.add(name, mine, timeout=self.lease):
                if time.monotonic() > until:
                    raise TimeoutError("another process held the lock for 50 s")
                time.sleep(uniform(0.005, 0.02))
            yield SimpleNamespace(extend=extend)
        finally:
            if self.cache.get(name) == mine:  # else the lease has ended, and it is another one's
                self.cache.delete(name)

    def _name(self, key: str) -> str:
        return f"finapi_session.{sha256(key.encode()).hexdigest()}"


def open_store(socket: str, prefix: str) -> DjangoCacheStore:
    """Open the store over Django's own Redis cache; in a site, ``django.core.cache.cache`` is at hand."""
    from django.core.cache.backends.redis import RedisCache  # type: ignore[import-untyped]

    cache = RedisCache(f"unix://{socket}", {"KEY_PREFIX": prefix})
    return DjangoCacheStore(cache, lease=2)
