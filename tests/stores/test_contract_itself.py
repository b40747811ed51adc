"""The contract finds what is wrong with a store: each of these stores breaks it in one place."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from finapi_session import MemoryStore
from finapi_session.testing.contract import Processes, StoreContract


class NoCase(MemoryStore):
    """Takes ``A`` for ``a``."""

    def set(self, key: str, value: str) -> None:
        super().set(key.lower(), value)

    def get(self, key: str) -> str | None:
        return super().get(key.lower())


class Short(MemoryStore):
    """Keeps as much as a small column does."""

    def set(self, key: str, value: str) -> None:
        super().set(key, value[:4000])


class Latin(MemoryStore):
    """Keeps what its encoding has."""

    def set(self, key: str, value: str) -> None:
        super().set(key, value.encode("latin-1", "replace").decode("latin-1"))


class NoEmpty(MemoryStore):
    """Takes an empty value for none."""

    def get(self, key: str) -> str | None:
        return super().get(key) or None


class InPlace(MemoryStore):
    """Overwrites the beginning of the old value."""

    def set(self, key: str, value: str) -> None:
        super().set(key, value + (self.get(key) or "")[len(value) :])


class Strict(MemoryStore):
    """Deletes only what is there."""

    def delete(self, key: str) -> None:
        del self._values[key]


class Sweeping(MemoryStore):
    """Deletes everything."""

    def delete(self, key: str) -> None:
        self._values.clear()


class NoLock(MemoryStore):
    """Lets everybody in."""

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        yield


class OneLock(MemoryStore):
    """Has one lock for all keys."""

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        self.lock_timeout = 0.1
        with super().lock(""):
            yield


class StickyLock(MemoryStore):
    """Keeps the lock when the body fails."""

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        self._sticky = self.__dict__.setdefault("_sticky", threading.Lock())
        if not self._sticky.acquire(timeout=0.1):
            raise TimeoutError
        yield
        self._sticky.release()


class Sluggish(MemoryStore):
    """Looks for a free lock once in a while."""

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        while key in self._values:
            time.sleep(0.5)
        self.set(key, "taken")
        yield
        self.delete(key)


class Expiring(MemoryStore):
    """Has a lease that nothing makes longer."""

    def extend(self) -> None:
        """Do nothing."""

    @contextmanager
    def lock(self, key: str) -> Iterator[Any]:
        until = time.monotonic() + 0.1
        while self._values.get(key) and time.monotonic() < until:
            time.sleep(0.01)
        self.set(key, "taken")
        yield self
        self.set(key, "")


class Naive:
    """Writes its file in place, and locks with a file that stays when its holder is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> str | None:
        path = self.folder / key
        return path.read_text() if path.exists() else None

    def set(self, key: str, value: str) -> None:
        with (self.folder / key).open("w") as file:
            for letter in value[:5]:
                file.write(letter)
                file.flush()
                time.sleep(0.001)
            file.write(value[5:])

    def delete(self, key: str) -> None:
        (self.folder / key).unlink(missing_ok=True)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        until = time.monotonic() + 1
        while True:
            try:
                os.close(os.open(self.folder / f"{key}.lock", os.O_CREAT | os.O_EXCL))
                break
            except FileExistsError:
                if time.monotonic() > until:
                    raise TimeoutError from None
                time.sleep(0.01)
        yield
        (self.folder / f"{key}.lock").unlink()


@pytest.mark.parametrize(
    ("store", "case", "arguments"),
    [
        (NoCase(), "test_odd_keys", {}),
        (Short(), "test_round_trip", {"value": "0123456789" * 10_000}),
        (Latin(), "test_round_trip", {"value": "令牌"}),
        (NoEmpty(), "test_round_trip", {"value": ""}),
        (InPlace(), "test_overwrite", {"values": ("long", "s")}),
        (Strict(), "test_delete", {}),
        (Sweeping(), "test_delete", {}),
        (NoLock(), "test_lock_excludes_threads", {}),
        (NoLock(), "test_lock_excludes_one_key_only", {}),
        (OneLock(), "test_lock_excludes_one_key_only", {}),
        (StickyLock(), "test_an_error_in_the_body_frees_the_lock", {}),
        (Sluggish(), "test_waiters_are_prompt", {}),
        (Expiring(), "test_an_extended_lock_is_kept", {}),
        (object(), "test_it_is_a_token_store", {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, MemoryStore) else None,
)
def test_a_wrong_store_fails(store: MemoryStore, case: str, arguments: dict[str, Any]) -> None:
    """The case that is about it fails, while a right store passes it."""
    contract = StoreContract()
    contract.woken_within, contract.freed_within = 0.1, 0.3
    if case == "test_round_trip":
        arguments = {**arguments, "make_store": lambda: store}
    with pytest.raises((AssertionError, KeyError, TimeoutError)):
        getattr(contract, case)(store, **arguments)
    if "make_store" in arguments:
        right = MemoryStore()
        arguments = {**arguments, "make_store": lambda: right}
        getattr(contract, case)(right, **arguments)
    else:
        getattr(contract, case)(MemoryStore(), **arguments)


@pytest.mark.parametrize(
    "case",
    [
        "test_a_killed_holder_frees_the_lock",
        "test_a_killed_writer_tears_nothing",
        "test_a_reader_sees_whole_values",
    ],
)
def test_a_wrong_store_fails_beside_processes(tmp_path: Path, case: str) -> None:
    """A store that writes in place and locks with a file that stays fails where processes come in."""
    processes, contract = Processes(), StoreContract()
    contract.kills = 8
    try:
        with pytest.raises((AssertionError, TimeoutError, ValueError)):
            getattr(contract, case)(partial(Naive, tmp_path), processes)
    finally:
        processes.end()


def test_a_store_that_other_processes_cannot_open(tmp_path: Path) -> None:
    """A process that ends is told with its exit code instead of being waited for."""
    processes = Processes()
    try:
        with pytest.raises(AssertionError, match="the other process ended with 1"):
            StoreContract().test_a_killed_holder_frees_the_lock(partial(Naive, tmp_path / "missing"), processes)
    finally:
        processes.end()


def test_the_fixture_is_needed(tmp_path: Path) -> None:
    """A class without the fixture is told what it lacks, and one with it is all that a third party writes."""
    (tmp_path / "test_mine.py").write_text(
        "import functools, pytest\n"
        "from finapi_session import FileStore\n"
        "from finapi_session.testing import StoreContract\n"
        "class TestWithout(StoreContract): pass\n"
        "class TestWith(StoreContract):\n"
        "    @pytest.fixture\n"
        "    def make_store(self, tmp_path):\n"
        "        return functools.partial(FileStore, tmp_path / 'tokens')\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-q",
        "-k",
        "delete or killed_holder",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "2 passed" in done.stdout
    assert "2 errors" in done.stdout
    assert "fixture 'make_store' not found" in done.stdout
