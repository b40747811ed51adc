"""A signal that raises, such as Ctrl-C, leaves no lock taken, wherever in a store it strikes."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import finapi_session
from finapi_session import FileStore, MemoryStore, RedisStore, TokenStore

from . import places

STORES = str(Path(finapi_session.__file__).parent / "stores")


@contextmanager
def struck_at(number: int) -> Iterator[list[str]]:
    """Raise ``KeyboardInterrupt`` before the line of that number that runs in a store; tell where that was."""
    lines, where = count(), list[str]()

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(STORES):
            return None
        if event == "line" and next(lines) == number:
            where.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield where
    finally:
        sys.settrace(before)


@pytest.fixture(params=["memory", "file", "sqlite", "postgresql", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path, fresh_name: str) -> TokenStore:
    """A store that waits for its locks for a moment only."""
    made: dict[str, Callable[[], Any]] = {
        "memory": MemoryStore,
        "file": lambda: FileStore(tmp_path / "tokens"),
        "sqlite": lambda: places.sql_store(f"sqlite:///{tmp_path}/app.db"),
        "postgresql": lambda: places.sql_store(request.getfixturevalue("postgresql_url"), fresh_name),
        "redis": lambda: RedisStore(places.redis_client(request.getfixturevalue("redis_socket")), fresh_name),
    }
    opened = made[request.param]()
    opened.lock_timeout = 0.5
    store: TokenStore = opened
    return store


def test_a_signal_at_any_line_leaves_no_lock(store: TokenStore) -> None:
    """The lock is interrupted before each of its lines in turn, and is free again at once each time."""
    for number in count():
        where: list[str] = []
        with suppress(KeyboardInterrupt), struck_at(number) as where, store.lock("key"):
            pass
        gc.collect()
        if not where:
            break
        with free(where), store.lock("key"):
            pass
    assert number > 8


@contextmanager
def free(where: list[str]) -> Iterator[None]:
    """Say where the signal struck if a lock was left taken."""
    try:
        yield
    except TimeoutError:
        pytest.fail(f"struck at {where}, the lock was left taken")
