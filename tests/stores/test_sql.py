"""What SQLStore does beyond the contract: tables, locks and connections."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, event, func, inspect, select, text
from sqlalchemy.dialects import mysql, postgresql as postgresql_dialect, sqlite as sqlite_dialect
from sqlalchemy.exc import IntegrityError, InternalError, OperationalError
from sqlalchemy.pool import NullPool, StaticPool
from sqlalchemy.schema import CreateTable

from finapi_session import SQLStore
from finapi_session.stores.sql import _LOCKS, _name as _sha256, _try_mysql

from . import places

if TYPE_CHECKING:
    from finapi_session.testing import Sandbox


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


def test_the_table_is_made_at_first_use(make: Callable[..., SQLStore], fresh_name: str) -> None:
    """Reading, deleting, locking and writing each make the table that is missing, and ask for it once."""
    engine = make().engine
    for number, use in enumerate(("get", "delete", "lock", "set")):
        store = SQLStore(engine, f"{fresh_name}_{number}")
        if use == "set":
            store.set("key", "value")
        elif use == "lock":
            with store.lock("key"):
                store.set("key", "value")
                assert store.get("key") == "value"
        else:
            getattr(store, use)("key")
        assert inspect(engine).has_table(store.table.name)
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
    store.get("key")
    assert len(asked) == 1


def test_a_user_who_may_not_make_the_table(postgresql: SQLStore, fresh_name: str) -> None:
    """The error says what to do, each time; as soon as the table is there the same store works."""
    with postgresql.engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {fresh_name} LOGIN"))
    engine = create_engine(postgresql.engine.url.set(username=fresh_name))
    store, table = SQLStore(engine, f"{fresh_name}_missing"), f"{fresh_name}_missing"
    try:
        for _ in range(2):
            with pytest.raises(PermissionError, match=rf"{table} is missing.*InsufficientPrivilege.*create_table\(\)"):
                store.get("key")
        with pytest.raises(PermissionError, match="or make it by a migration"), store.lock("key"):
            raise AssertionError("locked")
        SQLStore(postgresql.engine, table).create_table()
        with postgresql.engine.begin() as connection:
            connection.execute(text(f"GRANT ALL ON {table} TO {fresh_name}"))
        store.set("key", "value")
        assert store.get("key") == "value"
    finally:
        engine.dispose()


def test_a_session_without_the_right_to_make_the_table(
    postgresql: SQLStore, fresh_name: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Its calls are served, and one warning names ``create_table()``."""
    with postgresql.engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {fresh_name} LOGIN"))
    engine = create_engine(postgresql.engine.url.set(username=fresh_name))
    with sandbox.session("alice", store=SQLStore(engine, f"{fresh_name}_missing")) as session:
        for _ in range(3):
            assert session.get("/api/v2/accounts").ok
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 1 and "create_table()" in warned[0]
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
    """What a database would log of a missing table on a standby, which only reads, or of its refusal, is no token."""
    sent: list[str] = []
    event.listen(postgresql.engine, "before_cursor_execute", lambda *call: sent.extend(map(str, call[3].values())))
    postgresql.set("key", "first")
    missing = SQLStore(postgresql.engine, f"{postgresql.table.name}_missing")
    with postgresql.engine.begin() as connection:
        connection.execute(text("ALTER ROLE CURRENT_USER SET default_transaction_read_only = on"))
    try:
        postgresql.engine.dispose()
        with pytest.raises(PermissionError):
            missing.set("key", "my-value")
        for key in ("key", "other"):
            with pytest.raises(InternalError, match="read-only"):
                postgresql.set(key, "my-value")
    finally:
        with postgresql.engine.begin() as connection:
            connection.execute(text("SET TRANSACTION READ WRITE"))
            connection.execute(text("ALTER ROLE CURRENT_USER RESET default_transaction_read_only"))
        postgresql.engine.dispose()
    assert "first" in sent and "my-value" not in sent


def test_a_value_that_the_table_refuses_is_an_error(postgresql: SQLStore) -> None:
    """A constraint of the user's raises SQLAlchemy's error; a holder keeps its lock, and goes on writing."""
    with postgresql.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {postgresql.table.name} ADD CHECK (value <> 'bad')"))
    for _ in range(2):
        with pytest.raises(IntegrityError):
            postgresql.set("key", "bad")
        postgresql.set("key", "good")
    other = SQLStore(postgresql.engine, postgresql.table.name, lock_timeout=0.1)
    with postgresql.lock("key"):
        with pytest.raises(IntegrityError):
            postgresql.set("key", "bad")
        postgresql.set("key", "better")
        with pytest.raises(TimeoutError), ThreadPoolExecutor(1) as pool:
            pool.submit(other.lock("key").__enter__).result(10)
    assert postgresql.get("key") == "better"


def sessions(engine: Engine, name: str) -> tuple[int, int]:
    """Return how many sessions the server has for that application, and how many in a transaction of over 0.1 s."""
    with engine.connect() as connection:
        long = "state <> 'idle' AND now() - xact_start > interval '0.1 s'"
        counts = f"count(*), count(*) FILTER (WHERE {long})"
        query = f"SELECT {counts} FROM pg_stat_activity WHERE application_name = :name"
        [row] = connection.execute(text(query), {"name": name})
        return row[0], row[1]


@pytest.mark.parametrize("waiters", [1, 6])
def test_who_waits_keeps_no_transaction_open(postgresql: SQLStore, fresh_name: str, waiters: int) -> None:
    """While one holds, reads and writes and N wait: a connection each, one of them alone in a transaction."""
    named = create_engine(postgresql.engine.url, connect_args={"application_name": fresh_name}, poolclass=NullPool)
    store, seen = SQLStore(named, postgresql.table.name), set()

    def wait() -> None:
        with store.lock("key"):
            pass

    with ThreadPoolExecutor(waiters) as pool:
        with store.lock("key"):
            waiting = [pool.submit(wait) for _ in range(waiters)]
            places.wait_until(lambda: sessions(postgresql.engine, fresh_name)[0] == waiters + 1)
            for number in range(8):
                store.set("key", str(number))
                assert store.get("key") == str(number)
                time.sleep(0.12)
                seen.add(sessions(postgresql.engine, fresh_name))
        for future in waiting:
            future.result(20)
    assert seen == {(waiters + 1, 1)}
    places.wait_until(lambda: sessions(postgresql.engine, fresh_name) == (0, 0))


def test_a_holder_needs_one_connection(make: Callable[..., SQLStore]) -> None:
    """Whoever holds a lock reads, writes and deletes while the pool has nothing left to give."""
    store = make(pool_size=1)
    with store.lock("key"):
        with store.engine.connect() if store.engine.dialect.name == "postgresql" else nullcontext():
            store.set("key", "value")
            assert store.get("key") == "value"
            store.delete("key")
        assert store.get("key") is None


def test_nobody_gets_between_a_holders_writes(postgresql: SQLStore) -> None:
    """Each write of the holder is committed, and yet another, which tries without a pause, never gets the lock."""
    attempt, tried, stop = _LOCKS["postgresql"][0], [], threading.Event()

    def grab() -> None:
        with postgresql.engine.connect() as connection:
            while not stop.is_set():
                tried.append(attempt(connection, _sha256(f"{postgresql.table.name}\nkey")))
                connection.rollback()

    with postgresql.lock("key"):
        thread = threading.Thread(target=grab)
        thread.start()
        for number in range(300):
            postgresql.set("key", str(number))
        stop.set()
        thread.join()
    assert len(tried) > 100 and not any(tried)


def test_a_lock_that_the_server_takes_back(postgresql: SQLStore, fresh_name: str) -> None:
    """``idle_in_transaction_session_timeout`` frees the lock of a holder that hangs; what that writes is kept."""
    options = {"options": "-c idle_in_transaction_session_timeout=1000"}
    impatient = create_engine(postgresql.engine.url, connect_args=options)
    store = SQLStore(impatient, postgresql.table.name)
    with pytest.raises(InternalError, match="idle-in-transaction"), store.lock("key"):  # noqa: PT012
        started = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(postgresql.lock("key").__enter__).result(20)
        assert time.monotonic() - started < 10
        store.set("key", "value")
        assert store.get("key") == "value"
    assert postgresql.get("key") == "value"
    impatient.dispose()


def test_a_child_forked_by_the_holder(postgresql: SQLStore) -> None:
    """It reads, writes and leaves the block over connections of its own; the parent's lock and writes go on."""
    block, inherited = postgresql.lock("key"), postgresql.engine.pool

    def work() -> None:
        postgresql.set("child", "value")
        assert postgresql.engine.pool is not inherited
        block.__exit__(None, None, None)
        with postgresql.lock("other"):
            assert postgresql.get("child") == "value"

    with block:
        postgresql.set("key", "before")
        assert places.forked(work)
        postgresql.set("key", "after")
        with ThreadPoolExecutor(1) as pool:
            other = SQLStore(postgresql.engine, postgresql.table.name, lock_timeout=0.1)
            with pytest.raises(TimeoutError):
                pool.submit(other.lock("key").__enter__).result(10)
    assert (postgresql.get("key"), postgresql.get("child")) == ("after", "value")


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
        # The holder's own write is kept as well.
        postgresql.set("key", "the first one's")
    assert postgresql.get("key") == ("value" if error is ZeroDivisionError else "the first one's")
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
    made = str(CreateTable(table).compile(dialect=mysql.dialect()))
    assert "value MEDIUMTEXT NOT NULL" in made and "CHARSET=utf8mb4" in made


def test_a_holder_on_mysql_commits(sqlite: SQLStore, tmp_path: Path) -> None:
    """Its lock is the session's and outlives the transaction, so what it writes is committed as usual."""
    commit = _LOCKS["mysql"][1]
    assert commit is _LOCKS["mariadb"][1]
    with sqlite.engine.connect() as connection:
        connection.execute(sqlite.table.insert().values(name="name", value="value"))
        commit(connection, "a" * 64)
        with sqlite3.connect(tmp_path / "app.db") as other:
            assert other.execute("SELECT value FROM tokens").fetchall() == [("value",)]
        other.close()


@pytest.mark.parametrize("dialect", [mysql.dialect(), postgresql_dialect.dialect(), sqlite_dialect.dialect()])
def test_values_are_hidden_in_logs_and_errors(dialect: Any) -> None:
    """What SQLAlchemy shows of a value that it sends, or gets, is a placeholder, on each database."""
    column = SQLStore(create_engine("sqlite:///unused.db")).table.c.value
    kind = column.type.dialect_impl(dialect)
    sent = kind.bind_processor(dialect)
    got = kind.result_processor(dialect, None)
    assert sent is not None and got is not None
    assert (sent("my-value"), repr(sent("my-value"))) == ("my-value", "'[redacted]'")
    assert (got("my-value"), repr(got("my-value"))) == ("my-value", "'[redacted]'")


def test_repr_shows_no_password(postgresql: SQLStore) -> None:
    """The repr names the database's kind and the table."""
    assert repr(postgresql) == f"SQLStore(postgresql, table='{postgresql.table.name}')"
