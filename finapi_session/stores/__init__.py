"""Token stores: memory, file, Redis, SQL, keyring, and wrappers around them.

A store is loaded when it is first named, so that nobody needs a dependency of a store that is not used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .protocol import TokenStore

if TYPE_CHECKING:
    from .encrypted import EncryptedStore
    from .file import FileStore
    from .guarded import GuardedStore
    from .keyring import KeyringStore
    from .memory import MemoryStore
    from .redis import RedisStore
    from .sql import SQLStore

__all__ = [
    "EncryptedStore",
    "FileStore",
    "GuardedStore",
    "KeyringStore",
    "MemoryStore",
    "RedisStore",
    "SQLStore",
    "TokenStore",
]

_MODULES = {
    "EncryptedStore": "encrypted",
    "FileStore": "file",
    "GuardedStore": "guarded",
    "KeyringStore": "keyring",
    "MemoryStore": "memory",
    "RedisStore": "redis",
    "SQLStore": "sql",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
