"""Tokens in files of the user's own, kept between runs and shared by processes."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_state_path

from ..seconds import positive_seconds
from .folders import refuse_open_folder, refuse_open_way
from .protocol import AdviceError
from .waiting import LOCK_TIMEOUT, pause, too_long

# A write takes milliseconds; what is older than this was left by a writer that was killed.
_LEFTOVER_SECONDS = 60.0
_NAME = re.compile("[0-9a-f]{64}")
_IN_FLIGHT = re.compile("[0-9a-f]{32}")
# Where the system knows them (Windows does not): a link is not followed, and a pipe is opened at once.
_READING = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


class FileStore:
    """Keeps each value in a file (0600) of a private folder (0700), for all processes of one user.

    ``directory`` is made when it is first written to; by default it is ``finapi_session`` in the user's
    state folder. Locks are the operating system's: a killed process holds none. ``lock_timeout`` is how many
    seconds a lock waits before it raises ``TimeoutError``. A folder that others may write to, or swap
    because they may write to a parent of it (the rule is that of OpenSSH's ``StrictModes``), or that another user
    owns, and anything but a regular file in a file's place raise ``PermissionError``. A full or read-only disk
    raises ``OSError``, and the old value stays.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, *, lock_timeout: float = LOCK_TIMEOUT) -> None:
        if directory is None:
            directory = user_state_path("finapi_session", appauthor=False)
        self.directory = Path(directory).expanduser().absolute()
        self.lock_timeout = lock_timeout

    def get(self, key: str) -> str | None:
        """Return the value last set under *key*, or ``None``; ``ValueError`` if the file is not UTF-8."""
        path = self._path(key)
        try:
            refuse_open_folder(self.directory)
            return _read(path).decode()
        except FileNotFoundError:
            return None

    def set(self, key: str, value: str) -> None:
        """Keep *value* under *key*; it is on the disk when this returns."""
        path = self._path(key)
        # A folder of their own for new files, so that leftovers are found without listing a hundred thousand.
        incoming = self._prepare("incoming")
        _refuse_other(path)
        new = incoming / secrets.token_hex(16)
        try:
            _write(new, value.encode())
            os.replace(new, path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        _sync(self.directory)

    def delete(self, key: str) -> None:
        """Forget *key*; nothing happens if it is not there."""
        with suppress(FileNotFoundError):
            refuse_open_folder(self.directory)
            self._path(key).unlink()

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Exclude all threads and processes that want *key*, or raise ``TimeoutError``."""
        path = self._prepare("locks") / self._path(key).name
        _refuse_other(path)
        lock = _lock(path)
        try:
            try:
                lock.acquire(timeout=self.lock_timeout, poll_interval=pause())
            except Timeout:
                raise too_long(self.lock_timeout, "thread or process") from None
            yield
        finally:
            lock.release(force=True)

    def purge(self, older_than: float) -> int:
        """Remove what nobody has set for *older_than* seconds, and return how many values that were.

        A token that is used and need not be renewed is not set: choose more than a token and its refresh token live.
        Locks without a value go with them. What is locked stays, and what is set meanwhile is not lost; ages are told
        by the folder's clock. Raises ``ValueError`` or ``TypeError`` for what is no number of seconds above 0, and
        what the other methods raise.
        """
        seconds = positive_seconds("older_than", older_than)
        try:
            refuse_open_folder(self.directory)
        except FileNotFoundError:
            return 0
        oldest = self._now() - seconds
        places = (self.directory, self._prepare("locks"))
        names = {entry.name for folder in places for entry in _entries(folder, _NAME)}
        return sum(self._purge(name, oldest) for name in names)

    def _now(self) -> float:
        """Return the time by the clock of the folder's disk, which may be another host's."""
        new = self._prepare("incoming") / secrets.token_hex(16)
        _write(new, b"")
        try:
            return new.stat().st_mtime
        finally:
            new.unlink()

    def _purge(self, name: str, oldest: float) -> bool:
        """Remove the value *name* if it is older, and its lock if it has no value; tell whether a value went."""
        value, path = self.directory / name, self.directory / "locks" / name
        if not _is_older(value, oldest):
            return False
        lock = _lock(path)
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return False
            removed = _remove(value, self.directory / "incoming" / secrets.token_hex(16), oldest)
            if not value.exists():
                # Whoever waits for this file finds that it has gone, and takes a new one.
                path.unlink(missing_ok=True)
            return removed
        finally:
            lock.release(force=True)

    def _path(self, key: str) -> Path:
        return self.directory / sha256(key.encode("utf-8", "surrogatepass")).hexdigest()

    def _prepare(self, name: str) -> Path:
        folder = self.directory / name
        # Nothing is made on a way that is not safe; what is not there yet is looked at once it is made.
        with suppress(FileNotFoundError):
            refuse_open_way(self.directory.parent)
        _make_private(folder)
        refuse_open_folder(self.directory)
        refuse_open_folder(folder)
        return folder

    def __repr__(self) -> str:
        return f"FileStore({str(self.directory)!r})"


def _make_private(folder: Path) -> None:
    """Make *folder* and its missing parents for this user alone, whatever the umask."""
    if folder.is_dir():
        return
    _make_private(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir(0o700)
        folder.chmod(0o700)


def _refuse_other(path: Path) -> None:
    """Raise ``PermissionError`` if *path* is there and is not a file: a pipe would make its reader wait for ever."""
    with suppress(FileNotFoundError):
        _refuse_mode(path, path.lstat().st_mode)


def _refuse_mode(path: Path, mode: int) -> None:
    if stat.S_ISLNK(mode):
        raise AdviceError(f"{path} is a symbolic link, not a regular file: remove it")
    if not stat.S_ISREG(mode):
        raise AdviceError(f"{path} is not a regular file: remove it")


def _read(path: Path) -> bytes:
    """Return what the file *path* holds; follows no link, and waits for nothing."""
    _refuse_other(path)
    with open(os.open(path, _READING), "rb") as file:
        _refuse_mode(path, os.fstat(file.fileno()).st_mode)
        return file.read()


def _write(path: Path, data: bytes) -> None:
    """Make the file *path* with *data* in it, on the disk, and sweep its folder."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        os.chmod(path, 0o600)
        # Before the data comes, which may need the leftovers' room.
        _sweep(path.parent, os.fstat(file.fileno()).st_mtime)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sweep(folder: Path, now: float) -> None:
    """Remove what killed writers left in *folder*, where it is *now*: other clocks do not count."""
    for entry in _entries(folder, _IN_FLIGHT):
        with suppress(FileNotFoundError):
            if now - entry.stat(follow_symlinks=False).st_mtime > _LEFTOVER_SECONDS:
                os.unlink(entry)


def _entries(folder: Path, name: re.Pattern[str]) -> Iterator[os.DirEntry[str]]:
    """Yield the files in *folder* whose names are such as we give; what else is there is not ours."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if name.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                yield entry


def _lock(path: Path) -> FileLock:
    # An object of its own for each holder: threads that share one would all be let in.
    return FileLock(path, mode=0o600, thread_local=False)


def _is_older(path: Path, oldest: float) -> bool:
    """Tell whether *path* was last written before *oldest*; what is not there was."""
    try:
        return path.lstat().st_mtime < oldest
    except FileNotFoundError:
        return True


def _remove(path: Path, aside: Path, oldest: float) -> bool:
    """Remove *path* if it is older; look once it is *aside*, where no writer replaces it. Tell whether it went."""
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    try:
        if _is_older(aside, oldest):
            return True
        # It was set meanwhile. One that has been set since then is newer still, and stays.
        with suppress(FileExistsError):
            os.link(aside, path)
        return False
    finally:
        aside.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Put the folder's entries on the disk too, where a folder can be opened."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
