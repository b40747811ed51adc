"""Tokens in the desktop's own vault."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256

import keyring
from keyring.errors import NoKeyringError, PasswordDeleteError

from .file import FileStore
from .waiting import LOCK_TIMEOUT

# Windows keeps at most 2560 bytes an entry, of UTF-16: two bytes a character, four outside the basic plane.
_PART = 1200
_SLOTS = "ab"
_TRIES = 10
_NO_VAULT = (
    "this machine has no vault that keyring can use: install a backend for it, or keep tokens with "
    "FileStore, encrypted by EncryptedStore if the disk is not"
)
_PLAIN_TEXT = (
    "keyring's backend {} keeps plain text, or is not one that keyring recommends: install a vault for it (such as "
    "Secret Service), keep tokens with FileStore, encrypted by EncryptedStore, or say KeyringStore(plaintext=True)"
)


class KeyringStore:
    """Keeps values in the vault that ``keyring`` finds: macOS Keychain, Windows' vault, Secret Service.

    A long value is split into parts; a writer that is killed in between leaves the old value. A machine
    without a vault raises ``keyring.errors.NoKeyringError``. Vaults have no locks: this store's are files in
    the user's state folder, so they exclude the processes of one user on one machine. ``lock_timeout`` is
    how many seconds a lock waits before it raises ``TimeoutError``.

    A backend that keeps plain text, or that keyring itself does not recommend, raises ``ValueError`` when the store
    is made, and before anything is written if it took the vault's place later; ``plaintext=True`` takes it.
    """

    def __init__(
        self, service: str = "finapi_session", *, lock_timeout: float = LOCK_TIMEOUT, plaintext: bool = False
    ) -> None:
        self.service = service
        self.lock_timeout = lock_timeout
        self.plaintext = plaintext
        self._refuse_plain_text()

    def get(self, key: str) -> str | None:
        """Return the value last set under *key*, or ``None`` if there is none or a part of it is gone."""
        for _ in range(_TRIES):
            head = self._read(key)
            if head is None or head.startswith("="):
                return head and head[1:]
            slot, count, digest = head.split(":")
            value = "".join(self._read(key, slot, number) or "" for number in range(int(count)))
            if _digest(value) == digest:
                return value
        return None

    def set(self, key: str, value: str) -> None:
        """Keep *value* under *key*; a reader sees it whole or not at all."""
        self._refuse_plain_text()
        old = self._read(key) or ""
        parts = _split(value)
        slot = "b" if old.startswith("a") else "a"
        head = f"{slot}:{len(parts)}:{_digest(value)}" if parts else f"={value}"
        for number, part in enumerate(parts):
            keyring.set_password(self._entry(key, slot, number), self.service, part)
        # The parts count from here on: the entry that names them changes in one step.
        keyring.set_password(self._entry(key), self.service, head)
        for name in _SLOTS:
            self._drop(key, name, len(parts) if name == slot else 0)

    def delete(self, key: str) -> None:
        """Forget *key*; nothing happens if it is not there."""
        if self._read(key) is not None:
            with suppress(PasswordDeleteError):
                keyring.delete_password(self._entry(key), self.service)
        for slot in _SLOTS:
            self._drop(key, slot, 0)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Exclude all threads and processes of this user that want *key*, or raise ``TimeoutError``."""
        with FileStore(lock_timeout=self.lock_timeout).lock(self._entry(key)):
            yield

    def _refuse_plain_text(self) -> None:
        backend = keyring.get_keyring()
        # Of several in a chain the first one is written to.
        backend = next(iter(getattr(backend, "backends", ())), backend)
        # One below 0 keeps nothing, and one of 0 cannot be used; keyring's line for a vault is 1.
        if not self.plaintext and (0 < backend.priority < 1 or type(backend).__name__.startswith("Plaintext")):
            raise ValueError(_PLAIN_TEXT.format(type(backend).__name__))

    def _entry(self, key: str, slot: str = "", number: int = 0) -> str:
        # A service for each entry: Windows moves the others about when one of several is written.
        return f"{self.service}:{_digest(key)}{slot and f':{slot}{number}'}"

    def _read(self, key: str, slot: str = "", number: int = 0) -> str | None:
        try:
            return keyring.get_password(self._entry(key, slot, number), self.service)
        except NoKeyringError:
            raise NoKeyringError(_NO_VAULT) from None

    def _drop(self, key: str, slot: str, first: int) -> None:
        """Remove the parts of *slot* from *first* on, the last one first, so that no gap hides others."""
        end = first
        while self._read(key, slot, end) is not None:
            end += 1
        for number in reversed(range(first, end)):
            with suppress(PasswordDeleteError):
                keyring.delete_password(self._entry(key, slot, number), self.service)

    def __repr__(self) -> str:
        return f"KeyringStore({self.service!r})"


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _split(value: str) -> list[str]:
    """Return the parts of a long value; a short one has none, it fits in the first entry."""
    size = _PART if value.isascii() else _PART // 2
    if len(value) < size:
        return []
    return [value[start : start + size] for start in range(0, len(value), size)]
