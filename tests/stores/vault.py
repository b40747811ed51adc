"""A vault for keyring, since no desktop is at hand."""

from __future__ import annotations

import os
import time
from pathlib import Path

import keyring
from keyring.backend import KeyringBackend
from keyring.errors import PasswordDeleteError

from finapi_session import KeyringStore


class FolderKeyring(KeyringBackend):
    """A vault in a folder, for several processes; like Windows' it refuses more than 2560 bytes an entry."""

    priority = 1

    def __init__(self, folder: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.folder = folder

    def get_password(self, service: str, username: str) -> str | None:
        try:
            return self._file(service, username).read_bytes().decode()
        except FileNotFoundError:
            return None

    def set_password(self, service: str, username: str, password: str) -> None:
        if len(password.encode("utf-16-le")) > 2560:
            raise ValueError("the stub received bad data")
        new = self.folder / f"{os.getpid()}.{time.monotonic_ns()}.new"
        new.write_bytes(password.encode())
        new.replace(self._file(service, username))

    def delete_password(self, service: str, username: str) -> None:
        try:
            self._file(service, username).unlink()
        except FileNotFoundError:
            raise PasswordDeleteError("not found") from None

    def _file(self, service: str, username: str) -> Path:
        return self.folder / f"{service}@{username}.entry".lower()


def open_store(folder: Path) -> KeyringStore:
    """Open the store over the vault in *folder*; its locks go there too."""
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    keyring.set_keyring(FolderKeyring(folder))
    return KeyringStore()
