"""What SQLStore does beyond the contract: tables, locks and connections."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, event, func, inspect, select, text
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import InternalError, OperationalError, ProgrammingError
from sqlalchemy.pool import StaticPool
from sqlalchemy.schema import CreateTable

from finapi_session import SQLStore
from finapi_session.stores.sql import _try_mysql

from . import places


@pytest.fixture(params=["postgresql", "sqlite"])
def make(request: pytest.FixtureRequest, fresh_name: str, tmp_path: Path) -> Callable[..., SQLStore]:
    """Open the store on either database, in a table of its own."""
    if request.param == "sqlite":
        return lambda **more: places.sql_store(f"sqlite:///{tmp_path}/app.db", fresh_name, **more)
    url = request.getfixturevalue("postgresql_url")
    return lambda **more: places.sql_store(url, fresh_name, **more)


@pytest.fixture
def postgresql(postgresql_url: str, fresh_name: str) -> SQLStore:
    """A store on PostgreSQL."""
    return places.sql_store(postgresql_url, fresh_name)


@pytest.fixture
def sqlite(tmp_path: Path) -> SQLStore:
    """A store on SQLite."""
    return places.sql_store(f"sqlite:///{tmp_path}/app.db")


def test_the_table_is_made_once(make: Callable[..., SQLStore]) -> None:
    """``create_table`` on a table that is there keeps what it holds."""
    store = make()
    store.set("key", "value")
    store.create_table()
    assert store.get("key") == "value"


def test_the_table_is_made_by_several_at_once(postgresql_url: str, fresh_name: str) -> None:
    """Processes that start together may all make the table."""
    engine = places.engine(postgresql_url)
    stores = [SQLStore(engine, fresh_name) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(store.create_table) for store in stores]:
            future.result(20)
    assert inspect(engine).has_table(fresh_name)


def test_a_table_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """A database that refuses the table raises SQLAlchemy's error."""
    sqlite3.connect(tmp_path / "app.db").close()
    engine = create_engine(f"sqlite:///file:{tmp_path}/app.db?mode=ro&uri=true")
    with pytest.raises(OperationalError, match="readonly"):
        SQLStore(engine).create_table()
    engine.dispose()


def test_a_table_of_their_migrations(sqlite: SQLStore) -> None:
    """``store.table`` joins the metadata that migrations work from, and the store lives in what they make."""
    metadata = MetaData()
    Table("accounts", metadata, Column("id", Integer, primary_key=True))
    store = SQLStore(sqlite.engine, "auth_tokens")
    store.table.to_metadata(metadata)
    metadata.create_all(sqlite.engine)
    store.set("key", "value")
    assert store.get("key") == "value"
    assert {column.name for column in store.table.columns} == {"name", "value", "updated"}


def test_a_write_that_is_refused_shows_no_value(postgresql: SQLStore) -> None:
    """What a database would log of a missing table, or of a standby that only reads, holds no token."""
    sent: list[str] = []
    event.listen(postgresql.engine, "before_cursor_execute", lambda *call: sent.extend(map(str, call[3].values())))
    postgresql.set("key", "first")
    missing = SQLStore(postgresql.engine, f"{postgresql.table.name}_missing")
    with pytest.raises(ProgrammingError):
        missing.set("key", "my-value")
    with postgresql.engine.begin() as connection:
        connection.execute(text("ALTER ROLE CURRENT_USER SET default_transaction_read_only = on"))
    try:
        postgresql.engine.dispose()
        for key in ("key", "other"):
            with pytest.raises(InternalError, match="read-only"):
                postgresql.set(key, "my-value")
    finally:
        with postgresql.engine.begin() as connection:
            connection.execute(text("SET TRANSACTION READ WRITE"))
            connection.execute(text("ALTER ROLE CURRENT_USER RESET default_transaction_read_only"))
        postgresql.engine.dispose()
    assert "first" in sent and "my-value" not in sent


def test_tables_are_apart(make: Callable[..., SQLStore], fresh_name: str) -> None:
    """Stores on two tables of one database share neither values nor locks."""
    one = make()
    two = SQLStore(one.engine, f"{fresh_name}_2", lock_timeout=0.5)
    two.create_table()
    one.set("key", "value")
    assert two.get("key") is None
    with one.lock("key"), two.lock("key"):
        pass


def test_a_lock_waits_for_a_bounded_time(make: Callable[..., SQLStore]) -> None:
    """Whoever waits longer than ``lock_timeout`` seconds gets the builtin ``TimeoutError``."""
    store = make()
    store.lock_timeout = 0.2
    started = time.monotonic()
    with store.lock("key"), pytest.raises(TimeoutError, match="0.2 s"), store.lock("key"):
        raise AssertionError("two holders")
    assert 0.2 <= time.monotonic() - started < 3


@pytest.mark.parametrize("pool_size", [1, 2])
def test_holders_do_not_wait_for_the_pool(make: Callable[..., SQLStore], pool_size: int) -> None:
    """Five threads hold five locks at once, read and write, with a pool of one or two connections."""
    store, together = make(pool_size=pool_size), threading.Barrier(5, timeout=10)

    def work(key: str) -> str | None:
        with store.lock(key):
            together.wait()
            store.set(key, f"value of {key}")
            together.wait()
            return store.get(key)

    with ThreadPoolExecutor(5) as pool:
        found = [future.result(20) for future in [pool.submit(work, str(number)) for number in range(5)]]
    assert found == [f"value of {number}" for number in range(5)]


def test_what_the_holder_sets_is_there_at_once(make: Callable[..., SQLStore]) -> None:
    """A value set under the lock is committed before the lock is left: a killed holder loses nothing."""
    store, other = make(), make(pool_size=2)
    with store.lock("key"):
        store.set("key", "value")
        assert other.get("key") == "value"


def test_the_lock_hinders_no_other_writer(make: Callable[..., SQLStore]) -> None:
    """While a lock is held, others write to the database, this table included."""
    store, other = make(), make(pool_size=2)
    with store.lock("key"):
        with other.engine.begin() as connection:
            connection.execute(text(f"DELETE FROM {other.table.name}"))
        other.set("key", "value")
    assert store.get("key") == "value"


def test_nothing_is_left_in_the_pool(make: Callable[..., SQLStore]) -> None:
    """After get, set, delete and lock no connection is checked out, and a transaction is open nowhere."""
    store = make()
    for _ in range(3):
        with store.lock("key"):
            store.set("key", "value")
            store.get("key")
        store.delete("key")
    assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("later", [False, True])
def test_an_engine_that_commits_by_itself(postgresql: SQLStore, later: bool) -> None:
    """On an engine in AUTOCOMMIT mode, made so or told so later, locks hold and values are kept."""
    engine = create_engine(postgresql.engine.url, isolation_level="READ COMMITTED" if later else "AUTOCOMMIT")
    engine = engine.execution_options(isolation_level="AUTOCOMMIT") if later else engine
    store = SQLStore(engine, postgresql.table.name, lock_timeout=0.1)
    with store.lock("key"):
        store.set("key", "value")
        with pytest.raises(TimeoutError), store.lock("key"):
            raise AssertionError("two holders")
    with store.lock("key"):
        assert postgresql.get("key") == "value"
    engine.dispose()


@pytest.mark.parametrize("error", [OperationalError, ZeroDivisionError])
def test_a_lock_whose_connection_is_killed(postgresql: SQLStore, error: type[Exception]) -> None:
    """If the holder's connection is ended the next one goes on; the holder is told unless its body failed."""
    kill = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
    with pytest.raises(error), postgresql.lock("key"):
        with postgresql.engine.connect() as connection:
            assert connection.execute(text(kill)).scalars().all() == [True]
        with postgresql.lock("key"):
            postgresql.set("key", "value")
        if error is ZeroDivisionError:
            raise error
    assert postgresql.get("key") == "value"
    assert postgresql.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_writer_that_comes_between(postgresql: SQLStore) -> None:
    """Of two that set a new key at once, the second waits for the first and overwrites it."""
    with ThreadPoolExecutor(1) as pool:
        with postgresql.engine.connect() as first:
            names = {"name": _name_of(postgresql), "value": "first"}
            first.execute(postgresql.table.insert().values(**names))
            second = pool.submit(postgresql.set, "key", "second")
            time.sleep(0.3)
            assert not second.done()
            first.commit()
        second.result(10)
    assert postgresql.get("key") == "second"
    with postgresql.engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(postgresql.table)) == 1


def _name_of(store: SQLStore) -> str:
    """Return the name that the store gives the key ``key``."""
    store.set("key", "value")
    with store.engine.connect() as connection:
        name = connection.scalar(select(store.table.c.name))
    store.delete("key")
    return str(name)


def test_a_forked_child_has_connections_of_its_own(postgresql: SQLStore) -> None:
    """A child forked while the pool is open works on new connections; the parent's go on."""
    postgresql.set("key", "value")

    def work() -> None:
        for _ in range(20):
            with postgresql.lock("key"):
                postgresql.set("child", "value")
                assert postgresql.get("child") == "value"

    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            if postgresql.get("key") != "value":
                wrong.append(True)

    reader = threading.Thread(target=read)
    reader.start()
    assert places.forked(work)
    stop.set()
    reader.join()
    assert not wrong
    assert postgresql.get("child") == "value"


def test_another_process_takes_another_pool(postgresql: SQLStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the process is another one, the pool is a new one, and the old connections are left open."""
    postgresql.set("key", "value")
    inherited = postgresql.engine.pool
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert postgresql.get("key") == "value"
    assert postgresql.engine.pool is not inherited
    assert inherited.checkedin() == 1  # type: ignore[attr-defined]
    inherited.dispose()


def test_a_forked_child_is_kept_out_by_its_parent(sqlite: SQLStore) -> None:
    """On SQLite, too, a child waits for the lock that its parent holds, and only for that."""
    sqlite.lock_timeout = 0.3

    def work() -> None:
        with pytest.raises(TimeoutError), sqlite.lock("key"):
            raise AssertionError("two holders")
        with sqlite.lock("other"):
            sqlite.set("key", "the child's")

    with sqlite.lock("key"):
        assert places.forked(work)
        assert sqlite.get("key") == "the child's"


def test_sqlite_without_write_ahead_log(tmp_path: Path) -> None:
    """In SQLite's own default mode readers wait for writers and get whole values."""
    engine = create_engine(f"sqlite:///{tmp_path}/app.db", connect_args={"timeout": 30})
    store = SQLStore(engine)
    store.create_table()
    try:
        with ThreadPoolExecutor(3) as pool:
            work = [pool.submit(store.set, "key", letter * 10_000) for letter in "abcdefghij"]
            seen = [store.get("key") for _ in range(30)]
            for future in work:
                future.result(30)
        assert all(value is None or (len(value), len(set(value))) == (10_000, 1) for value in seen)
    finally:
        engine.dispose()


def test_sqlite_locks_lie_beside_the_database(sqlite: SQLStore, tmp_path: Path) -> None:
    """They are empty files, for their owner alone, in a folder named after the database."""
    with sqlite.lock("key"):
        pass
    [lock] = (tmp_path / "app.db-locks" / "locks").iterdir()
    assert (lock.stat().st_size, lock.stat().st_mode & 0o777) == (0, 0o600)


def test_sqlite_by_uri(tmp_path: Path) -> None:
    """A database named by a URI has its locks beside the file as well."""
    engine = create_engine(f"sqlite:///file:{tmp_path}/app.db?mode=rwc&uri=true")
    store = SQLStore(engine)
    store.create_table()
    with store.lock("key"):
        store.set("key", "value")
    engine.dispose()
    assert (tmp_path / "app.db-locks").is_dir()


def test_a_sqlite_lock_that_cannot_be_made_is_an_error(sqlite: SQLStore, tmp_path: Path) -> None:
    """Something else in the lock's place is an error at once, and not a timeout."""
    with sqlite.lock("key"):
        pass
    [lock] = (tmp_path / "app.db-locks" / "locks").iterdir()
    lock.unlink()
    lock.mkdir()
    with pytest.raises(PermissionError, match="not a regular file"), sqlite.lock("key"):
        raise AssertionError("locked")


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:a?mode=memory&cache=shared&uri=true"]
)
def test_memory_is_refused(url: str) -> None:
    """An in-memory SQLite database raises ``ValueError``, which names what to take instead."""
    engine = create_engine(url, poolclass=StaticPool)
    with pytest.raises(ValueError, match="use MemoryStore, or a database file"):
        SQLStore(engine)


def test_a_database_without_locks_is_refused() -> None:
    """A database that the store knows no lock for raises ``ValueError``."""
    engine = create_engine("sqlite://")
    engine.dialect.name = "oracle"
    with pytest.raises(ValueError, match="no lock for oracle; it knows sqlite, postgresql, mysql, mariadb"):
        SQLStore(engine)


def test_mysql_statements() -> None:
    """On MySQL the value is as long as needed and the lock is ``GET_LOCK``; no server runs here."""
    statements = []

    class Connection:
        def scalar(self, statement: Any) -> int:
            statements.append(str(statement.compile(dialect=mysql.dialect(), compile_kwargs={"literal_binds": True})))
            return len(statements) - 1

    connection: Any = Connection()
    assert not _try_mysql(connection, "a" * 64)
    assert _try_mysql(connection, "a" * 64)
    assert statements[0] == f"SELECT get_lock('{'a' * 64}', 0) AS get_lock_1"
    table = SQLStore(create_engine("sqlite:///unused.db")).table
    assert "value MEDIUMTEXT NOT NULL" in str(CreateTable(table).compile(dialect=mysql.dialect()))


def test_repr_shows_no_password(postgresql: SQLStore) -> None:
    """The repr names the database's kind and the table."""
    assert repr(postgresql) == f"SQLStore(postgresql, table='{postgresql.table.name}')"
