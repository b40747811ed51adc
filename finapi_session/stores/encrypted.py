"""Tokens encrypted before another store sees them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from hashlib import sha256

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from ..redaction import Redacted
from .protocol import TokenStore

_log = logging.getLogger("finapi_session")

#: A Fernet key, as ``Fernet.generate_key()`` makes them.
Key = str | bytes
#: One key, or several of which the first writes and all read, or what returns them.
Keys = Key | Iterable[Key] | Callable[[], "Key | Iterable[Key]"]


class EncryptedStore:
    """Encrypts values with Fernet (AES-128-CBC, HMAC-SHA256) and keeps them in the store *inner*.

    ``keys`` is a key, several (the first writes, all read: put a new one first to rotate), or a callable
    that returns either and is asked at each ``get`` and ``set``. Bad keys raise ``ValueError``. A value that
    no key opens, or that was kept under another key of the store, is a miss and a warning in the log. The
    lock is *inner*'s.
    """

    # Without a __dict__ there are no vars that show the keys.
    __slots__ = ("inner", "_keys")

    def __init__(self, inner: TokenStore, keys: Keys) -> None:
        self.inner = inner
        self._keys = keys if callable(keys) else (keys := _listed(keys))
        if not callable(keys):
            self._fernet()

    def get(self, key: str) -> str | None:
        """Return the value last set under *key*, or ``None`` if there is none or no key opens it."""
        sealed = self.inner.get(_sealed(key))
        if sealed is None:
            return None
        try:
            opened = self._fernet().decrypt(sealed.encode())
        except InvalidToken:
            opened = b""
        name, value = opened[:32], opened[32:]
        if name != _name(key):
            _log.warning("no key opens the value in %r; it is taken for nothing", self.inner)
            return None
        return value.decode()

    def set(self, key: str, value: str) -> None:
        """Encrypt *value* with the first key and keep it under *key*."""
        self.inner.set(_sealed(key), self._fernet().encrypt(_name(key) + value.encode()).decode())

    def delete(self, key: str) -> None:
        """Forget *key*; nothing happens if it is not there."""
        self.inner.delete(_sealed(key))

    def lock(self, key: str) -> AbstractContextManager[object]:
        """Return the lock of the inner store."""
        return self.inner.lock(_sealed(key))

    def _fernet(self) -> MultiFernet:
        keys = _listed(self._keys()) if callable(self._keys) else self._keys
        return MultiFernet([Fernet(key) for key in keys])

    def __repr__(self) -> str:
        return f"EncryptedStore({self.inner!r})"


def _listed(keys: Key | Iterable[Key]) -> list[Key]:
    """Return the keys, hidden: one that is mistyped raises, and error trackers keep the frames' variables."""
    return [Redacted(key if isinstance(key, str) else key.decode("latin-1")) for key in _several(keys)]


def _several(keys: Key | Iterable[Key]) -> Iterable[Key]:
    return [keys] if isinstance(keys, (str, bytes)) else keys


def _sealed(key: str) -> str:
    # A name of its own, so that who reads the inner store without the keys neither trips over it nor replaces it.
    return f"sealed.{key}"


def _name(key: str) -> bytes:
    # It is encrypted with the value, so that nobody can pass one user's token off as another's.
    return sha256(key.encode("utf-8", "surrogatepass")).digest()
