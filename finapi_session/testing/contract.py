"""What every token store must do, as tests that any store can be run against."""

from __future__ import annotations

import math
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from multiprocessing.sharedctypes import RawValue
from typing import Any

import pytest

from finapi_session.stores.protocol import TokenStore

MakeStore = Callable[[], TokenStore]

# A process of its own for each part, started as a stranger would be: it inherits nothing.
_spawn = multiprocessing.get_context("spawn")
_PATIENCE = 30.0
_KEY = "0123456789abcdef" * 4
_LONG = "k" * 299
_ODD_KEYS = [
    "a/b", "/a", "../a", ".", "..", "a.lock", "a", "A", "ä", "Ä", "a b", "a:b", "a%2Fb", "a\\b", "a\nb",
    "令牌", _LONG + "1", _LONG + "2",
]  # fmt: skip


class StoreContract:
    """Derive a test class, give it the fixture ``make_store``, and pytest runs the whole contract.

    ``make_store`` returns a function without arguments that opens the store under test. It must pickle
    (``functools.partial`` of a function of a module does), because other processes call it to open the
    same store; each test needs a store that is empty. ::

        class TestMyStore(StoreContract):
            @pytest.fixture
            def make_store(self, tmp_path):
                return functools.partial(MyStore, tmp_path)
    """

    #: Whether processes share the store; ``False`` skips the tests that need several.
    shared = True
    #: Seconds after which the lock of a killed holder must be free; a lease takes as long as it lasts,
    #: so open the store with one of a second or two.
    freed_within = 2.0
    #: Seconds within which the last of 16 waiters must have had the lock, once its holder has left. Waiters that
    #: poll every 5 to 20 ms take 50 to 80 ms; all stores of this package stay below 0.1.
    woken_within = 1.0
    #: How many writers are killed.
    kills = 3
    #: How long a reader reads while another process writes, in seconds.
    reading_seconds = 0.5

    @pytest.fixture
    def store(self, make_store: MakeStore) -> TokenStore:
        """Return the store under test, opened."""
        return make_store()

    @pytest.fixture
    def processes(self) -> Iterator[Processes]:
        """Start processes, and end them with the test."""
        if not self.shared:
            pytest.skip("this store lives in one process")
        with _processes() as processes:
            yield processes

    def test_it_is_a_token_store(self, store: TokenStore) -> None:
        """It has the four methods of the protocol."""
        assert isinstance(store, TokenStore)

    def test_nothing_is_none(self, store: TokenStore) -> None:
        """A key that was never set reads as ``None``."""
        assert store.get(_KEY) is None

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "value",
            " \t\r\n'\"\\%{}",
            "äöü ß 令牌 \U0001f511",
            '{"token": "' + "0aZ._~+/" * 8_000 + '"}',
            "0123456789" * 10_000,
            "\U0001f511" * 10_000,
        ],
        ids=["empty", "plain", "specials", "unicode", "64 kB", "100 kB", "emojis"],
    )
    def test_round_trip(self, store: TokenStore, make_store: MakeStore, value: str) -> None:
        """What is set is read back, character by character, also by a store opened later."""
        store.set(_KEY, value)
        assert store.get(_KEY) == value
        if self.shared:
            assert make_store().get(_KEY) == value

    def test_odd_keys(self, store: TokenStore) -> None:
        """Keys with slashes, dots, capitals, spaces, other scripts and 300 characters do not get mixed up."""
        for key in _ODD_KEYS:
            store.set(key, f"value of {key}")
        assert [store.get(key) for key in _ODD_KEYS] == [f"value of {key}" for key in _ODD_KEYS]
        for key in _ODD_KEYS:
            with store.lock(key):
                store.delete(key)
        assert [store.get(key) for key in _ODD_KEYS] == [None] * len(_ODD_KEYS)

    @pytest.mark.parametrize("values", [("long" * 5000, "short"), ("short", "long" * 5000), ("one", "two")])
    def test_overwrite(self, store: TokenStore, values: tuple[str, str]) -> None:
        """Of two values the later one is left, and nothing of the earlier one."""
        for value in (*values, *values):
            store.set(_KEY, value)
            assert store.get(_KEY) == value

    def test_delete(self, store: TokenStore) -> None:
        """What is deleted is gone, the neighbours are not, and deleting again does nothing."""
        for key in ("a", "b"):
            store.set(key, f"value of {key}" * 1000)
        for _ in range(2):
            store.delete("a")
            assert (store.get("a"), store.get("b")) == (None, "value of b" * 1000)
        store.set("a", "again")
        assert store.get("a") == "again"

    def test_the_holder_works_on(self, store: TokenStore) -> None:
        """Whoever holds the lock of a key reads, writes and deletes it, and takes the lock again later."""
        for number in range(3):
            with store.lock(_KEY):
                store.set(_KEY, str(number))
                assert store.get(_KEY) == str(number)
                store.delete(_KEY)
                assert store.get(_KEY) is None

    def test_an_error_in_the_body_frees_the_lock(self, store: TokenStore) -> None:
        """An exception leaves the ``with`` block as it is, and the lock is free."""
        with pytest.raises(ZeroDivisionError), store.lock(_KEY):
            raise ZeroDivisionError
        with store.lock(_KEY):
            pass

    def test_lock_excludes_threads(self, store: TokenStore) -> None:
        """Four threads that count up a number in the store under its lock lose no count."""
        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(_count, store, 5) for _ in range(4)]:
                future.result(_PATIENCE)
        assert store.get(_KEY) == "20"

    def test_lock_excludes_one_key_only(self, store: TokenStore) -> None:
        """While one key is locked, another thread gets the lock of another key and not that of the first."""
        waited, other = threading.Event(), threading.Event()
        with ThreadPoolExecutor(2) as pool:
            with store.lock("a"):
                first = pool.submit(_enter, store, "a", waited)
                pool.submit(_enter, store, "b", other).result(_PATIENCE)
                assert other.is_set()
                assert not waited.wait(0.3)
            first.result(_PATIENCE)
        assert waited.is_set()

    def test_waiters_are_prompt(self, store: TokenStore) -> None:
        """Of 16 threads that wait for a lock, the last one has had it soon after its holder left."""
        # The best of five, as a busy machine makes any store slow now and then.
        taken = [math.inf]
        while len(taken) <= 5 and taken[-1] >= self.woken_within:
            taken.append(last_of(16, store))
        assert min(taken) < self.woken_within

    def test_an_extended_lock_is_kept(self, store: TokenStore) -> None:
        """A holder that extends its lock, if the store's locks can be, keeps it for longer than a lease lasts."""
        entered = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            with store.lock(_KEY) as held:
                extend: Callable[[], object] | None = getattr(held, "extend", None)
                if extend is None:
                    return
                waiting = pool.submit(_enter, store, _KEY, entered)
                until = time.monotonic() + self.freed_within
                while time.monotonic() < until:
                    extend()
                    assert not entered.wait(self.freed_within / 20)
            waiting.result(_PATIENCE)

    def test_lock_excludes_processes(self, make_store: MakeStore, processes: Processes) -> None:
        """Three processes that count up a number in the store under its lock lose no count."""
        workers = [processes.start(_count_alone, make_store, 15) for _ in range(2)]
        _count(make_store(), 15)
        for worker in workers:
            worker.join(_PATIENCE)
            assert worker.exitcode == 0
        assert make_store().get(_KEY) == "45"

    def test_a_killed_holder_frees_the_lock(self, make_store: MakeStore, processes: Processes) -> None:
        """A lock that another process holds excludes us, until that process is killed."""
        ready = RawValue("q", 0)
        holder = processes.start(_hold, make_store, ready)
        _wait_for(holder, lambda: ready.value == 1)
        entered = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(_enter, make_store(), _KEY, entered)
            assert not entered.wait(0.3)
            holder.kill()
            killed = time.monotonic()
            waiting.result(_PATIENCE + self.freed_within)
        assert time.monotonic() - killed < self.freed_within

    def test_a_killed_writer_tears_nothing(self, make_store: MakeStore, processes: Processes) -> None:
        """A writer killed at any moment leaves the value it wrote last or the one it was writing, whole."""
        keys = [f"key {number}" for number in range(self.kills)]
        written = [RawValue("q", 0) for _ in keys]
        writers = [processes.start(_write, make_store, key, count) for key, count in zip(keys, written, strict=True)]
        for number, (writer, count) in enumerate(zip(writers, written, strict=True)):
            _wait_for(writer, lambda count=count: count.value > 2)  # type: ignore[misc]
            time.sleep(0.003 * number)
            writer.kill()
            writer.join(_PATIENCE)
        store = make_store()
        for key, count in zip(keys, written, strict=True):
            assert number_of(store.get(key)) in (count.value, count.value + 1)
            store.set(key, "next")
            assert store.get(key) == "next"

    def test_a_reader_sees_whole_values(self, make_store: MakeStore, processes: Processes) -> None:
        """A reader that never stops sees only whole values, each at least as new as the one before."""
        count = RawValue("q", 0)
        writer = processes.start(_write, make_store, _KEY, count)
        _wait_for(writer, lambda: count.value > 0)
        store, seen, first = make_store(), 0, count.value
        until = time.monotonic() + self.reading_seconds
        while time.monotonic() < until:
            number = number_of(store.get(_KEY))
            assert number >= seen
            seen = number
        assert seen > first


class Processes:
    """Starts processes that inherit nothing, and kills them in the end."""

    def __init__(self) -> None:
        self._started: list[SpawnProcess] = []

    def start(self, target: Callable[..., object], *args: Any) -> SpawnProcess:
        """Start a process that runs ``target(*args)``."""
        process = _spawn.Process(target=target, args=args, daemon=True)
        process.start()
        self._started.append(process)
        return process

    def end(self) -> None:
        """Kill what still runs."""
        for process in self._started:
            process.kill()
            process.join(_PATIENCE)
            process.close()


@contextmanager
def _processes() -> Iterator[Processes]:
    processes = Processes()
    try:
        yield processes
    finally:
        processes.end()


def text_of(number: int) -> str:
    """Return a value, short or long, that tells if it is not whole."""
    return f"{number}:" + str(number % 10) * (number % 3 * 5000 + 10)


def number_of(text: str | None) -> int:
    """Return the number of a value made by :func:`text_of`; fail if it is not whole."""
    assert text is not None, "the value was lost"
    number = int(text.partition(":")[0])
    assert text == text_of(number), f"torn: {len(text)} characters of {len(text_of(number))}"
    return number


def _count(store: TokenStore, times: int) -> None:
    for _ in range(times):
        with store.lock(_KEY):
            number = int(store.get(_KEY) or "0")
            time.sleep(0.001)
            store.set(_KEY, str(number + 1))


def _enter(store: TokenStore, key: str, entered: threading.Event) -> None:
    with store.lock(key):
        entered.set()


def last_of(waiters: int, store: TokenStore) -> float:
    """Return the seconds from the end of a lock to that of the last of so many threads that waited for it."""
    left: list[float] = []

    def wait() -> None:
        with store.lock(_KEY):
            pass
        left.append(time.perf_counter())

    with ThreadPoolExecutor(waiters) as pool:
        with store.lock(_KEY):
            waiting = [pool.submit(wait) for _ in range(waiters)]
            time.sleep(0.3)
            ended = time.perf_counter()
        for future in waiting:
            future.result(_PATIENCE)
    return max(left) - ended


def _wait_for(process: SpawnProcess, reached: Callable[[], bool]) -> None:
    until = time.monotonic() + _PATIENCE
    while not reached():
        assert process.is_alive(), f"the other process ended with {process.exitcode}"
        assert time.monotonic() < until, f"the other process did nothing for {_PATIENCE:g} s"
        time.sleep(0.002)


# Other processes run what follows; most of them are killed before they can tell what they covered.


def _count_alone(make_store: MakeStore, times: int) -> None:  # pragma: no cover
    _count(make_store(), times)


def _hold(make_store: MakeStore, ready: Any) -> None:  # pragma: no cover
    with make_store().lock(_KEY):
        ready.value = 1
        time.sleep(_PATIENCE)


def _write(make_store: MakeStore, key: str, written: Any) -> None:  # pragma: no cover
    store = make_store()
    while True:
        store.set(key, text_of(written.value + 1))
        written.value += 1
