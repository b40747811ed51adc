"""A failing store costs a warning, never a call."""

from __future__ import annotations

import functools
import logging
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from finapi_session.stores import GuardedStore, MemoryStore

log = logging.getLogger("finapi_session")


class Flaky(MemoryStore):
    """A store that fails where it is told to."""

    def __init__(self) -> None:
        super().__init__(lock_timeout=0.05)
        self.fails: dict[str, BaseException] = {}

    def get(self, key: str) -> Any:
        self._may_fail("get")
        return super().get(key)

    def set(self, key: str, value: str) -> None:
        self._may_fail("set")
        super().set(key, value)

    def delete(self, key: str) -> None:
        self._may_fail("delete")
        super().delete(key)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        self._may_fail("enter")
        with super().lock(key):
            yield
        self._may_fail("leave")

    def _may_fail(self, operation: str) -> None:
        if operation in self.fails:
            raise self.fails[operation]


@pytest.fixture
def inner() -> Flaky:
    return Flaky()


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def store(inner: Flaky, warnings: list[str]) -> GuardedStore:
    return GuardedStore(inner, warnings.append)


@pytest.mark.parametrize(
    ("operation", "work", "follows"),
    [
        ("get", lambda store: store.get("key"), "going on as if it were empty"),
        ("set", lambda store: store.set("key", "value"), "the token is not kept there"),
        ("delete", lambda store: store.delete("key"), "the token may stay there"),
    ],
)
def test_one_warning_an_outage(
    inner: Flaky,
    store: GuardedStore,
    warnings: list[str],
    operation: str,
    work: Callable[..., Any],
    follows: str,
) -> None:
    """A failing operation returns ``None`` and warns once, and again only after it succeeded in between."""
    for outage in (1, 2):
        inner.fails[operation] = ConnectionError("postgresql://user:password@host")
        for _ in range(3):
            assert work(store) is None
        assert warnings == [f"token store: {operation} failed with ConnectionError, {follows}"] * outage
        del inner.fails[operation]
        work(store)


def test_operations_fail_apart(inner: Flaky, store: GuardedStore, warnings: list[str]) -> None:
    """A ``get`` that succeeds does not end the outage of ``set``."""
    inner.fails["set"] = OSError("read-only")
    for _ in range(3):
        store.set("key", "value")
        store.get("key")
    assert len(warnings) == 1


@pytest.mark.parametrize("value", [b"bytes", 1, ["list"], {}])
def test_what_is_no_text_is_a_miss(
    inner: Flaky, store: GuardedStore, warnings: list[str], value: Any
) -> None:
    """A store that returns something else than text is empty, with a warning."""
    inner._values["key"] = value
    assert store.get("key") is None
    assert warnings == ["token store: get failed with TypeError, going on as if it were empty"]


@pytest.mark.parametrize("where", ["enter", "leave"])
def test_a_lock_that_fails_lets_through(
    inner: Flaky, store: GuardedStore, warnings: list[str], where: str
) -> None:
    """The body runs, once each time, whether the lock fails on the way in or out; one warning."""
    inner.fails[where] = OSError("secret")
    ran = 0
    for _ in range(3):
        with store.lock("key"):
            ran += 1
    assert ran == 3
    assert warnings == ["token store: lock failed with OSError, going on without the lock"]
    inner.fails.clear()
    with store.lock("key"):
        assert len(inner._holders) == 1
    inner.fails[where] = OSError("secret")
    with store.lock("key"):
        pass
    assert len(warnings) == 2


def test_a_lock_that_is_held_too_long_lets_through(
    inner: Flaky, store: GuardedStore, warnings: list[str]
) -> None:
    """A waiter whose time is over goes on without the lock."""
    with inner.lock("key"), store.lock("key"):
        pass
    assert warnings == ["token store: lock failed with TimeoutError, going on without the lock"]


@pytest.mark.parametrize("fails", [[], ["enter"], ["leave"]])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_of_the_body_passes(
    inner: Flaky, store: GuardedStore, error: type[BaseException], fails: list[str]
) -> None:
    """The body's own exception comes out as it is, and the lock is free."""
    inner.fails = {name: OSError() for name in fails}
    raised = error()
    with pytest.raises(error) as caught, store.lock("key"):
        raise raised
    assert caught.value is raised
    assert not inner._holders


@pytest.mark.parametrize("operation", ["get", "set", "delete", "enter", "leave"])
def test_what_ends_the_program_passes(inner: Flaky, store: GuardedStore, operation: str) -> None:
    """``KeyboardInterrupt`` inside the store is no failure of the store."""
    inner.fails[operation] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        store.get("key")
        store.set("key", "value")
        store.delete("key")
        with store.lock("key"):
            pass


@pytest.mark.parametrize(
    ("inner", "says"),
    [
        (None, "NoneType has no get, set, delete, lock"),
        ({}, "dict has no set, delete, lock"),
        ("redis://", "str has no get, set, delete, lock"),
        (MemoryStore, "this is a class"),
    ],
)
def test_what_is_no_store_is_refused(inner: Any, says: str) -> None:
    """The error names the argument ``store`` and what is missing."""
    with pytest.raises(TypeError, match=f"^store must be .*: {says}$"):
        GuardedStore(inner, print)


def test_it_pickles_and_shows_no_secret() -> None:
    """It goes to other processes with its inner store, and its repr is the inner store's."""
    store = GuardedStore(MemoryStore(), functools.partial(log.warning, "%s"))
    store.set("key", "value")
    assert pickle.loads(pickle.dumps(store)).get("key") == "value"
    assert repr(store) == "GuardedStore(<MemoryStore with 1 values>)"
