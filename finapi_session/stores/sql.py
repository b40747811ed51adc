"""Tokens in an SQL database, over the caller's own SQLAlchemy engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import Any, TypeVar

from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Engine,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    bindparam,
    delete,
    func,
    insert,
    inspect,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import DatabaseError, DBAPIError, IntegrityError
from sqlalchemy.types import TypeEngine

from ..redaction import Redacted
from ..seconds import positive_seconds
from .file import FileStore
from .protocol import AdviceError
from .waiting import LOCK_TIMEOUT, wait_for

_Outcome = TypeVar("_Outcome")


class _Unlogged(TypeDecorator[str]):
    """Text that SQLAlchemy's log of statements and rows shows as redacted."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[str]:
        """Return a type that is long enough: MySQL's TEXT holds 64 kB."""
        long = mysql.MEDIUMTEXT() if dialect.name in ("mysql", "mariadb") else Text()
        return dialect.type_descriptor(long)

    def process_bind_param(self, value: str | None, dialect: object) -> str | None:
        """Hide what is written."""
        return value and Redacted(value)

    def process_result_value(self, value: str | None, dialect: object) -> str | None:
        """Hide what is read."""
        return value and Redacted(value)


# Whatever the server's own character set is, which may be one that has few characters.
_ANY_TEXT: Any = {"mysql_charset": "utf8mb4", "mariadb_charset": "utf8mb4"}
_WRITE = "write SQLStore(sqlalchemy.create_engine('...'))"


class SQLStore:
    """Keeps each value in a row of ``table``, for PostgreSQL, MySQL, MariaDB and SQLite.

    The table is made when it is first needed; where the database forbids that, ``PermissionError`` says so, and
    :meth:`create_table` or a migration from ``store.table`` makes it: ``name`` (64 characters, the key's SHA-256,
    primary), ``value`` (long text) and ``updated`` (when it was set, in seconds since 1970 by the database's clock). A
    table without ``updated`` does, but :meth:`purge` needs it. ``lock_timeout`` is how many seconds a lock waits
    before it raises ``TimeoutError``. Errors of the database are raised as SQLAlchemy's. What is no engine, or one of
    asyncio, raises ``TypeError``; a database without locks ``ValueError``.

    A lock is the database's own and is freed with its holder: an advisory lock on PostgreSQL and MySQL, held
    by a connection that is taken out of the pool. The thread that holds a lock reads and writes over that
    connection, so it needs no other, and waiters keep no transaction open: a pooler that shares connections out
    by transactions (pgbouncer) lends one to each holder, and to a waiter only while it tries. On SQLite, which
    knows no lock but that of the whole database, a lock is a file in the folder ``<database>-locks``. (``BEGIN
    IMMEDIATE`` would keep everybody from writing for as long as a token call takes, and a child forked meanwhile
    would wait for its parent's lock in vain.)
    """

    def __init__(
        self, engine: Engine, table: str = "finapi_session_tokens", *, lock_timeout: float = LOCK_TIMEOUT
    ) -> None:
        self.engine = _checked(engine)
        self.table = Table(
            table,
            MetaData(),
            Column("name", String(64), primary_key=True),
            Column("value", _Unlogged, nullable=False),
            Column("updated", BigInteger),
            **_ANY_TEXT,
        )
        self.lock_timeout = lock_timeout
        self._row = self.table.c.name == bindparam("row")
        self._select = select(self.table.c.value).where(self._row)
        self._touch = update(self.table).where(self._row).values(name=self.table.c.name)
        self._process = os.getpid()
        self._ready = False
        self._has_ages: bool | None = None
        self._mine = threading.local()

    def create_table(self) -> None:
        """Create the table if it is not there; several processes may do so at once."""
        try:
            self.table.create(self._engine(), checkfirst=True)
        except DatabaseError:
            if not self._has_table():
                raise

    def get(self, key: str) -> str | None:
        """Return the value last set under *key*, or ``None``."""
        value: str | None = self._run(lambda connection: connection.scalar(self._select, {"row": _name(key)}))
        return None if value is None else str(value)

    def set(self, key: str, value: str) -> None:
        """Keep *value* under *key*; it is committed when this returns."""
        if self._update(key, value):
            return
        try:
            self._run(lambda connection: self._insert(connection, key, value))
        except IntegrityError:
            # Somebody else has just inserted it.
            if not self._update(key, value):
                raise

    def delete(self, key: str) -> None:
        """Forget *key*; nothing happens if it is not there."""
        self._run(lambda connection: connection.execute(delete(self.table).where(self._row), {"row": _name(key)}))

    def purge(self, older_than: float) -> int:
        """Remove what nobody has set for *older_than* seconds, and return how many values that were.

        A token that is used and need not be renewed is not set: choose more than a token and its refresh token live.
        Ages are told by the database's clock; rows without one, from before the table had the column, count from now
        on. Raises ``ValueError`` or ``TypeError`` for what is no number of seconds above 0, ``LookupError`` if the
        table has no column ``updated``, and the database's errors.
        """
        seconds = positive_seconds("older_than", older_than)
        updated = self.table.c.updated
        now: ColumnElement[int] = literal_column(_NOW[self.engine.dialect.name])

        def work(connection: Connection) -> int:
            if not self._tells_ages(connection):
                advice = f"run 'ALTER TABLE {self.table.name} ADD COLUMN updated BIGINT'"
                raise LookupError(f"the table {self.table.name} has no column that tells ages: {advice}, then restart")
            connection.execute(update(self.table).where(updated.is_(None)).values(updated=now))
            return connection.execute(delete(self.table).where(updated < now - round(seconds))).rowcount

        gone = self._run(work)
        if self.engine.dialect.name == "sqlite":
            FileStore(self._folder()).purge(older_than)
        return gone

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Exclude every other holder of *key*, or raise ``TimeoutError``.

        Leaving raises SQLAlchemy's error if the lock's connection broke meanwhile; an error of the body goes
        first.
        """
        name = _name(f"{self.table.name}\n{key}")
        self._prepare()
        if self.engine.dialect.name == "sqlite":
            with FileStore(self._folder(), lock_timeout=self.lock_timeout).lock(name):
                yield
            return
        hold = _Hold(self._engine().connect(), name)
        try:
            hold.begin()
            wait_for(hold.attempt, self.lock_timeout, "thread, process or host")
            self._mine.holds = [*self._holds(), hold]
            yield
            hold.leave()
        except BaseException:
            with suppress(DatabaseError):
                hold.close()
            raise

    def _run(self, work: Callable[[Connection], _Outcome]) -> _Outcome:
        """Return what *work* comes to in a transaction of its own, over the connection of the lock that we hold."""
        self._prepare()
        for hold in reversed(self._holds()):
            if hold.usable():
                try:
                    return hold.run(work)
                except DBAPIError as error:
                    # The lock is lost, which its end tells. What is written need not be.
                    if not error.connection_invalidated:
                        raise
                    hold.lost = error
        with self._engine().begin() as connection:
            return work(connection)

    def _holds(self) -> list[_Hold]:
        """Return the locks that this thread holds, the last one last."""
        return [hold for hold in getattr(self._mine, "holds", ()) if not hold.ended()]

    def _prepare(self) -> None:
        """See to it, once, that the table is there."""
        if self._ready:
            return
        if not self._has_table():
            self._make_table()
        self._ready = True

    def _make_table(self) -> None:
        try:
            self.create_table()
        except DatabaseError as error:
            reason = type(error.orig).__name__
        else:
            return
        raise AdviceError(
            f"the table {self.table.name} is missing, and the database does not let this user create it ({reason}): "
            "call SQLStore(...).create_table() once as a user who may, or make it by a migration from SQLStore.table"
        )

    def _has_table(self) -> bool:
        return inspect(self._engine()).has_table(self.table.name)

    def _folder(self) -> str:
        """Return the folder of a SQLite database's locks."""
        with self._engine().connect() as connection:
            return f"{connection.exec_driver_sql('PRAGMA database_list').all()[0][2]}-locks"

    def _engine(self) -> Engine:
        """Return the engine; a forked child leaves its parent's connections alone."""
        if self._process != os.getpid():
            self.engine.dispose(close=False)
            self._process = os.getpid()
        return self.engine

    def _update(self, key: str, value: str) -> bool:
        def work(connection: Connection) -> bool:
            # Servers log statements that fail, some drivers' with the values in them: this one has none.
            there = connection.execute(self._touch, {"row": _name(key)}).rowcount > 0
            if there:
                change = update(self.table).where(self._row).values(self._stamp(connection))
                connection.execute(change, {"row": _name(key), "value": value})
            return there

        return self._run(work)

    def _insert(self, connection: Connection, key: str, value: str) -> None:
        row = {"name": _name(key), "value": value, **self._stamp(connection)}
        connection.execute(insert(self.table).values(row))

    def _stamp(self, connection: Connection) -> dict[str, ColumnElement[int]]:
        """Return what to set beside a value; nothing in a table that has no place for it."""
        return {"updated": literal_column(_NOW[connection.dialect.name])} if self._tells_ages(connection) else {}

    def _tells_ages(self, connection: Connection) -> bool:
        """Tell whether the table has the column ``updated``. The database is asked once, by *connection*."""
        if self._has_ages is None:
            # A statement that fails would end the transaction, and with it the lock.
            columns = inspect(connection).get_columns(self.table.name)
            self._has_ages = any(column["name"] == "updated" for column in columns)
        return self._has_ages

    def __repr__(self) -> str:
        return f"SQLStore({self.engine.dialect.name}, table={self.table.name!r})"


class _Hold:
    """A lock, held or waited for, and the connection that it lives on."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.lost: DBAPIError | None = None
        self._connection = connection
        self._name = name
        self._attempt, self._commit = _LOCKS[connection.dialect.name]
        self._process = os.getpid()

    def begin(self) -> None:
        """Take the connection out of the pool, which may be one of a single connection."""
        # An engine that commits each statement would give a transaction's lock back at once.
        self._connection.execution_options(isolation_level="READ COMMITTED")
        self._connection.detach()

    def attempt(self) -> bool:
        """Take the lock if it is free; whoever does not get it leaves no transaction open."""
        taken = self._attempt(self._connection, self._name)
        if not taken:
            self._connection.rollback()
        return taken

    def ended(self) -> bool:
        """Tell whether the lock was given back."""
        return self._connection.closed

    def usable(self) -> bool:
        """Tell whether the connection is there, and this process's own: a forked child's is not."""
        return self.lost is None and self._process == os.getpid()

    def run(self, work: Callable[[Connection], _Outcome]) -> _Outcome:
        """Return what *work* comes to, committed; an error undoes it, and the lock is kept in either case."""
        with self._connection.begin_nested():
            outcome = work(self._connection)
        self._commit(self._connection, self._name)
        return outcome

    def leave(self) -> None:
        """Give the lock back; raise the database's error if it was lost meanwhile."""
        if self.lost is not None:
            raise self.lost
        self.close()

    def close(self) -> None:
        """Close the connection, which frees the lock; a forked child leaves it to its parent."""
        if self._process != os.getpid():
            return
        try:
            self._connection.close()
        except DatabaseError:
            # Nothing could be rolled back on it; the second time closes it without.
            self._connection.close()
            raise


def _checked(engine: Any) -> Engine:
    """Return *engine*; raise what says which to take instead if it is none, or one whose database has no lock."""
    kind = type(engine).__name__
    if isinstance(engine, (str, URL)):
        raise TypeError(f"SQLStore takes an engine, not a URL: {_WRITE}, or open_store('...')")
    if kind == "AsyncEngine" or (isinstance(engine, Engine) and engine.dialect.is_async):
        raise TypeError(f"SQLStore takes an engine that waits for its answers, not one of asyncio: {_WRITE}")
    if not isinstance(engine, Engine):
        raise TypeError(f"SQLStore takes an engine of SQLAlchemy, not {kind}: {_WRITE}")
    if engine.dialect.name not in {"sqlite", *_LOCKS}:
        raise ValueError(f"SQLStore knows no lock for {engine.dialect.name}; it knows {', '.join(['sqlite', *_LOCKS])}")
    if engine.dialect.name == "sqlite" and _in_memory(engine):
        raise ValueError("SQLStore cannot share an in-memory SQLite database; use MemoryStore, or a database file")
    return engine


def _name(key: str) -> str:
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _in_memory(engine: Engine) -> bool:
    database = engine.url.database or ":memory:"
    return database == ":memory:" or "mode=memory" in str(engine.url) or "file::memory:" in database


def _number(name: str) -> int:
    return int.from_bytes(bytes.fromhex(name)[:8], "big", signed=True)


def _try_postgresql(connection: Connection, name: str) -> bool:
    # The transaction's own lock: it also holds behind a connection pooler that shares sessions out.
    return bool(connection.scalar(select(func.pg_try_advisory_xact_lock(_number(name)))))


def _commit_postgresql(connection: Connection, name: str) -> None:
    """Commit, and go on in a new transaction, without letting anybody have the lock between the two.

    A lock of the session bridges them. All is one message, so that no pooler gives the session away between.
    """
    number = _number(name)
    connection.exec_driver_sql(
        f"SELECT pg_advisory_lock({number}); COMMIT; BEGIN ISOLATION LEVEL READ COMMITTED; "
        f"SELECT pg_advisory_xact_lock({number}); SELECT pg_advisory_unlock({number})",
        execution_options={"no_parameters": True},
    )


def _try_mysql(connection: Connection, name: str) -> bool:
    return connection.scalar(select(func.get_lock(name, 0))) == 1


def _commit_mysql(connection: Connection, _name: str) -> None:
    connection.commit()


_LOCKS: dict[str, tuple[Callable[[Connection, str], bool], Callable[[Connection, str], None]]] = {
    "postgresql": (_try_postgresql, _commit_postgresql),
    "mysql": (_try_mysql, _commit_mysql),
    "mariadb": (_try_mysql, _commit_mysql),
}
# Whole seconds since 1970, by the database's clock: hosts may differ.
_NOW = {
    "sqlite": "CAST(strftime('%s', 'now') AS INTEGER)",
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS BIGINT)",
    "mysql": "UNIX_TIMESTAMP()",
    "mariadb": "UNIX_TIMESTAMP()",
}
