"""Tokens in an SQL database, over the caller's own SQLAlchemy engine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
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
from sqlalchemy.exc import DatabaseError, IntegrityError

from ..redaction import Redacted
from ..seconds import positive_seconds
from .file import FileStore


class _Unlogged(TypeDecorator[str]):
    """Text that SQLAlchemy's log of statements and rows shows as redacted."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: object) -> str | None:
        """Hide what is written."""
        return value and Redacted(value)

    def process_result_value(self, value: str | None, dialect: object) -> str | None:
        """Hide what is read."""
        return value and Redacted(value)


_LONG_TEXT = _Unlogged().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
_POLL_SECONDS = 0.03


class SQLStore:
    """Keeps each value in a row of ``table``, for PostgreSQL, MySQL, MariaDB and SQLite.

    :meth:`create_table` makes the table; otherwise migrations do, from ``store.table``: ``name`` (64
    characters, the key's SHA-256, primary), ``value`` (long text) and ``updated`` (when it was set, in seconds since
    1970 by the database's clock). A table without ``updated`` does, but :meth:`purge` needs it. ``lock_timeout`` is
    how many seconds a lock waits before it raises ``TimeoutError``. Errors of the database are raised as SQLAlchemy's.

    A lock is the database's own and is freed with its holder: an advisory lock on PostgreSQL and MySQL, held
    by a connection that is taken out of the pool, so that even a pool of one serves the holder's ``get`` and
    ``set``; on SQLite, which knows no lock but that of the whole database, a file in the folder
    ``<database>-locks``. (``BEGIN IMMEDIATE`` would keep everybody from writing for as long as a token call takes,
    and a child forked meanwhile would wait for its parent's lock in vain.)
    """

    def __init__(self, engine: Engine, table: str = "finapi_session_tokens", *, lock_timeout: float = 20.0) -> None:
        if engine.dialect.name not in {"sqlite", *_TRY_LOCK}:
            known = ", ".join(["sqlite", *_TRY_LOCK])
            raise ValueError(f"SQLStore knows no lock for {engine.dialect.name}; it knows {known}")
        if engine.dialect.name == "sqlite" and _in_memory(engine):
            raise ValueError("SQLStore cannot share an in-memory SQLite database; use MemoryStore, or a database file")
        self.engine = engine
        self.table = Table(
            table,
            MetaData(),
            Column("name", String(64), primary_key=True),
            Column("value", _LONG_TEXT, nullable=False),
            Column("updated", BigInteger),
        )
        self.lock_timeout = lock_timeout
        self._row = self.table.c.name == bindparam("row")
        self._select = select(self.table.c.value).where(self._row)
        self._touch = update(self.table).where(self._row).values(name=self.table.c.name)
        self._process = os.getpid()
        self._has_ages: bool | None = None

    def create_table(self) -> None:
        """Create the table if it is not there; several processes may do so at once."""
        try:
            self.table.create(self._engine(), checkfirst=True)
        except DatabaseError:
            if not inspect(self._engine()).has_table(self.table.name):
                raise

    def get(self, key: str) -> str | None:
        """Return the value last set under *key*, or ``None``."""
        with self._engine().connect() as connection:
            value: str | None = connection.scalar(self._select, {"row": _name(key)})
            return None if value is None else str(value)

    def set(self, key: str, value: str) -> None:
        """Keep *value* under *key*; it is committed when this returns."""
        if not self._update(key, value) and not self._insert(key, value):
            self._update(key, value)

    def delete(self, key: str) -> None:
        """Forget *key*; nothing happens if it is not there."""
        with self._engine().begin() as connection:
            connection.execute(delete(self.table).where(self._row), {"row": _name(key)})

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
        with self._engine().begin() as connection:
            if not self._tells_ages(connection):
                advice = f"run 'ALTER TABLE {self.table.name} ADD COLUMN updated BIGINT'"
                raise LookupError(f"the table {self.table.name} has no column that tells ages: {advice}, then restart")
            connection.execute(update(self.table).where(updated.is_(None)).values(updated=now))
            gone = connection.execute(delete(self.table).where(updated < now - round(seconds))).rowcount
            locks = _lock_folder(connection)
        if locks is not None:
            FileStore(locks).purge(older_than)
        return gone

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Exclude every other holder of *key*, or raise ``TimeoutError``.

        Leaving raises SQLAlchemy's error if the lock's connection broke meanwhile; an error of the body goes
        first.
        """
        name = _name(f"{self.table.name}\n{key}")
        with self._engine().connect() as connection:
            if connection.dialect.name != "sqlite":
                # An engine that commits each statement would give a transaction's lock back at once.
                connection.execution_options(isolation_level="READ COMMITTED")
                connection.detach()
                self._wait(connection, name)
                try:
                    yield
                except BaseException:
                    with suppress(DatabaseError):
                        connection.close()
                    raise
                return
            folder = _lock_folder(connection)
        with FileStore(folder, lock_timeout=self.lock_timeout).lock(name):
            yield

    def _engine(self) -> Engine:
        """Return the engine; a forked child leaves its parent's connections alone."""
        if self._process != os.getpid():
            self.engine.dispose(close=False)
            self._process = os.getpid()
        return self.engine

    def _update(self, key: str, value: str) -> bool:
        with self._engine().begin() as connection:
            # Servers log statements that fail, some drivers' with the values in them: this one has none.
            there = connection.execute(self._touch, {"row": _name(key)}).rowcount > 0
            if there:
                change = update(self.table).where(self._row).values(self._stamp(connection))
                connection.execute(change, {"row": _name(key), "value": value})
            return there

    def _insert(self, key: str, value: str) -> bool:
        try:
            with self._engine().begin() as connection:
                row = {"name": _name(key), "value": value, **self._stamp(connection)}
                connection.execute(insert(self.table).values(row))
        except IntegrityError:
            return False
        return True

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

    def _wait(self, connection: Connection, name: str) -> None:
        deadline = time.monotonic() + self.lock_timeout
        attempt = _TRY_LOCK[connection.dialect.name]
        while not attempt(connection, name):
            if time.monotonic() > deadline:
                raise self._too_long()
            time.sleep(_POLL_SECONDS)

    def _too_long(self) -> TimeoutError:
        return TimeoutError(f"another thread, process or host held the lock for {self.lock_timeout:g} s")

    def __repr__(self) -> str:
        return f"SQLStore({self.engine.dialect.name}, table={self.table.name!r})"


def _name(key: str) -> str:
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _in_memory(engine: Engine) -> bool:
    database = engine.url.database or ":memory:"
    return database == ":memory:" or "mode=memory" in str(engine.url) or "file::memory:" in database


def _lock_folder(connection: Connection) -> str | None:
    """Return where SQLite's locks are, beside the database's file; ``None`` for a database that has locks."""
    if connection.dialect.name != "sqlite":
        return None
    return f"{connection.exec_driver_sql('PRAGMA database_list').all()[0][2]}-locks"


def _try_postgresql(connection: Connection, name: str) -> bool:
    # The transaction's own lock: it also holds behind a connection pooler that shares sessions out.
    number = int.from_bytes(bytes.fromhex(name)[:8], "big", signed=True)
    return bool(connection.scalar(select(func.pg_try_advisory_xact_lock(number))))


def _try_mysql(connection: Connection, name: str) -> bool:
    return connection.scalar(select(func.get_lock(name, 0))) == 1


_TRY_LOCK: dict[str, Callable[[Connection, str], bool]] = {
    "postgresql": _try_postgresql,
    "mysql": _try_mysql,
    "mariadb": _try_mysql,
}
# Whole seconds since 1970, by the database's clock: hosts may differ.
_NOW = {
    "sqlite": "CAST(strftime('%s', 'now') AS INTEGER)",
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS BIGINT)",
    "mysql": "UNIX_TIMESTAMP()",
    "mariadb": "UNIX_TIMESTAMP()",
}
