"""What MemoryStore does beyond the contract."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable

import pytest

from finapi_session import MemoryStore

from . import places


def test_a_lock_waits_for_a_bounded_time() -> None:
    """Whoever waits for a held lock longer than ``lock_timeout`` seconds gets ``TimeoutError``."""
    store = MemoryStore(lock_timeout=0.05)
    with store.lock("key"), pytest.raises(TimeoutError, match="0.05 s"), store.lock("key"):
        raise AssertionError("two holders")


def test_a_waiter_is_woken() -> None:
    """A waiter goes on when the holder leaves, not when its time is over."""
    store, entered = MemoryStore(lock_timeout=30), threading.Event()

    def wait() -> None:
        with store.lock("key"):
            entered.set()

    with store.lock("key"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        assert not entered.wait(0.05)
    assert entered.wait(5)
    waiter.join()


def test_locks_leave_nothing_behind() -> None:
    """A thousand keys that were locked once cost no memory afterwards."""
    store = MemoryStore()
    for number in range(1000):
        with store.lock(str(number)):
            pass
    assert not store._holders


def test_a_forked_child_waits_for_no_thread_of_its_parent() -> None:
    """A child forked while threads hold locks has the values and gets every lock at once."""
    store = MemoryStore(lock_timeout=5)
    store.set("a", "value")

    def work() -> None:
        for key in ("a", "b"):
            with store.lock(key):
                assert store.get("a") == "value"
        store.set("a", "the child's")

    with store.lock("a"), store.lock("b"):
        assert places.forked(work, seconds=3)
        assert store.get("a") == "value"


def test_a_child_forked_by_the_holder_leaves_the_block() -> None:
    """A child forked inside the ``with`` block leaves it without an error and takes the lock again."""
    store = MemoryStore(lock_timeout=1)

    def work() -> None:
        block.__exit__(None, None, None)
        with store.lock("a"):
            pass

    block = store.lock("a")
    with block:
        assert places.forked(work)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda store: pickle.loads(pickle.dumps(store))])
def test_copies_have_the_values_and_no_locks(duplicate: Callable[[MemoryStore], MemoryStore]) -> None:
    """A copy made while a lock is held starts with the values, free locks, and goes its own way."""
    store = MemoryStore(lock_timeout=0.1)
    store.set("key", "value")
    with store.lock("key"):
        other = duplicate(store)
        with other.lock("key"):
            assert (other.get("key"), other.lock_timeout) == ("value", 0.1)
    other.set("key", "other")
    assert store.get("key") == "value"


def test_repr_shows_no_secret() -> None:
    """Neither values nor keys are in the repr."""
    store = MemoryStore()
    store.set("the key", "the value")
    assert repr(store) == "<MemoryStore with 1 values>"
