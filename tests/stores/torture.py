"""The stores' heavy figures: ``python -m tests.stores.torture``.

Prints how many values were torn or lost under ``kill -9`` and under a reader that never stops, what 100,000
keys in one folder cost, how soon the last of 16 waiters gets a lock, what waiting costs, and what a warm ``get``
takes beside the bare client's own. Ends with 1 if a value was harmed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from statistics import median
from typing import Any

from cryptography.fernet import Fernet

from finapi_session import FileStore, MemoryStore, TokenStore
from finapi_session.testing.contract import last_of, number_of, text_of

from . import places, vault

KEY = "0123456789abcdef" * 4
Open = Callable[[], TokenStore]
Place = tuple[Open, Callable[[TokenStore], Callable[[], object]]]


@contextmanager
def all_places() -> Iterator[dict[str, Place]]:
    """Yield for each store what opens it, and what makes the bare client's own ``get``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vault").mkdir()
        with places.redis_server(folder) as socket, places.postgresql_server(folder) as postgresql:
            yield {
                "file": (partial(FileStore, folder / "tokens"), _bare_file),
                "redis": (partial(places.redis_store, socket, "torture"), _bare_redis),
                "postgresql": (partial(places.sql_store, postgresql), _bare_sql),
                "sqlite": (partial(places.sql_store, f"sqlite:///{folder}/app.db"), _bare_sql),
                "keyring": (partial(vault.open_store, folder / "vault"), _bare_keyring),
                "encrypted file": (
                    partial(places.encrypted_store, folder / "encrypted", Fernet.generate_key()),
                    _bare_fernet,
                ),
                "memory": (MemoryStore, _bare_memory),
            }
            places.close_all()


def _bare_file(store: Any) -> Callable[[], object]:
    path = store._path(KEY)
    return lambda: path.read_text()


def _bare_redis(store: Any) -> Callable[[], object]:
    return lambda: store.client.get(f"{store.prefix}token:{KEY}")


def _bare_sql(store: Any) -> Callable[[], object]:
    from sqlalchemy import text

    statement = text(f"SELECT value FROM {store.table.name} WHERE name = :name")
    names = {"name": sha256(KEY.encode()).hexdigest()}

    def get() -> object:
        with store.engine.connect() as connection:
            return connection.scalar(statement, names)

    return get


def _bare_keyring(store: Any) -> Callable[[], object]:
    import keyring

    return lambda: keyring.get_password(store._entry(KEY), store.service)


def _bare_fernet(store: Any) -> Callable[[], object]:
    inner, fernet = store.inner, store._fernet()
    return lambda: fernet.decrypt((inner.get(f"sealed.{KEY}") or "").encode())


def _bare_memory(store: Any) -> Callable[[], object]:
    values = store._values
    return lambda: values.get(KEY)


def kill_writers(open_store: Open, kills: int) -> tuple[int, int]:
    """Kill writers at random moments; return how many values were harmed, how many not yet reported."""
    harmed = ahead = 0
    written = RawValue("q", 0)
    for _ in range(kills):
        child = _fork_writer(open_store, written)
        before = written.value
        places.wait_until(lambda before=before: written.value > before)  # type: ignore[misc]
        time.sleep(random.uniform(0, 0.005))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        try:
            number = number_of(open_store().get(KEY))
            harmed += number not in (written.value, written.value + 1)
            ahead += number > written.value
        except AssertionError as error:
            harmed += 1
            print(error, file=sys.stderr)
        places.close_all()
    return harmed, ahead


def read_beside_writer(open_store: Open, seconds: float) -> tuple[int, int, int]:
    """Read while another process writes; return how many reads were harmed, and how many reads and writes."""
    written = RawValue("q", 0)
    child = _fork_writer(open_store, written)
    places.wait_until(lambda: written.value > 0)
    store, harmed, reads, seen = open_store(), 0, 0, 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        acknowledged = written.value
        try:
            seen, before = number_of(store.get(KEY)), seen
            harmed += seen < before or seen < acknowledged
        except AssertionError as error:
            harmed += 1
            print(error, file=sys.stderr)
        reads += 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    places.close_all()
    return harmed, reads, written.value


def _fork_writer(open_store: Open, written: Any) -> int:
    child = os.fork()
    if child == 0:
        try:
            store = open_store()
            while True:
                store.set(KEY, text_of(written.value + 1))
                written.value += 1
        finally:
            os._exit(1)
    return child


def herd(store: Any) -> str:
    """Return how soon the last of 16 waiters is done after the holder left, and what one that waits costs here."""
    taken = median(last_of(16, store) for _ in range(5)) * 1000
    with store.lock(KEY), ThreadPoolExecutor(1) as pool:
        store.lock_timeout, used = 1.0, time.process_time()
        failure = pool.submit(store.lock(KEY).__enter__).exception()
        used = time.process_time() - used
    assert isinstance(failure, TimeoutError)
    return f"the last of 16 waiters done {taken:.0f} ms after the holder, each takes {100 * used:.1f} % of a processor"


def many_keys(folder: Path, keys: int) -> list[str]:
    """Return what get, set and lock cost with many keys, beside the same with ten."""
    few, many = FileStore(folder / "few"), FileStore(folder / "many")
    for store, size in ((few, 10), (many, keys)):
        store.set("0", "value")
        for number in range(1, size):
            store._path(str(number)).write_text("value")

    def lock(store: FileStore) -> None:
        with store.lock("7"):
            pass

    lines = []
    for name, work, times in (
        ("get", lambda store: store.get("7"), 2000),
        ("set", lambda store: store.set("7", "value"), 300),
        ("lock", lock, 300),
    ):
        one, other = interleaved(partial(work, few), partial(work, many), times)
        lines.append(f"{name}: {one:.1f} us with 10, {other:.1f} us with {keys}, ratio {other / one:.2f}")
    return lines


def interleaved(one: Callable[[], object], other: Callable[[], object], times: int) -> tuple[float, float]:
    """Return the medians of both in microseconds, measured in turns, so that a busy machine slows both."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(times):
        for work, into in zip((one, other), taken, strict=True):
            started = time.perf_counter()
            work()
            into.append(time.perf_counter() - started)
    return median(taken[0]) * 1e6, median(taken[1]) * 1e6


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--only", help="the stores to torture, by name, with commas")
    options = parser.parse_args(arguments)
    harmed = 0
    with all_places() as stores:
        names = options.only.split(",") if options.only else list(stores)
        shared = [name for name in names if name != "memory"]
        for name in shared:
            lost, ahead = kill_writers(stores[name][0], options.kills)
            harmed += lost
            print(f"{name}: {options.kills} writers killed, {lost} values torn or lost, {ahead} unreported")
        for name in shared:
            wrong, reads, writes = read_beside_writer(stores[name][0], options.seconds)
            harmed += wrong
            print(
                f"{name}: {reads} reads beside {writes} writes in {options.seconds:g} s, "
                f"{wrong} torn, lost or stale"
            )
        for name in names:
            store = stores[name][0]()
            print(f"{name}: {herd(getattr(store, 'inner', store))}")
            places.close_all()
        for name in names:
            store = stores[name][0]()
            store.set(KEY, "t" * 1000)
            bare, own = interleaved(stores[name][1](store), partial(store.get, KEY), 2000)
            print(f"{name}: warm get {own:.1f} us, the bare client's {bare:.1f} us, ratio {own / bare:.2f}")
            places.close_all()
    if "file" in names:
        with tempfile.TemporaryDirectory() as folder:
            print("\n".join(f"file: {line}" for line in many_keys(Path(folder), options.keys)))
    return int(harmed > 0)


if __name__ == "__main__":
    sys.exit(main())
