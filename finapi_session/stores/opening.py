"""A store that is named by a text, as a setting or an option of a command names it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..redaction import Redacted
from .protocol import TokenStore

#: What the text of :func:`open_store` may be.
POSSIBLE = "file, file:FOLDER, keyring, memory, redis://... or an SQLAlchemy URL"

_REDIS_SECONDS = 2
_SQL_SECONDS = 5


def open_store(text: str) -> TokenStore:
    """Return the store that *text* names; nothing is connected to before it is used.

    - ``file``, ``file:FOLDER``: a ``FileStore`` in the user's state folder, or in FOLDER
    - ``keyring``, ``memory``: a ``KeyringStore``, a ``MemoryStore``
    - ``redis://...``, ``rediss://...``, ``unix://...``: a ``RedisStore``, on a client that waits 2 seconds to connect
      and for an answer, and does not try again, unless the URL says otherwise
    - any URL of SQLAlchemy, such as ``postgresql+psycopg://...``: an ``SQLStore``, on an engine that waits 5 seconds
      to connect, unless the URL says otherwise, and, with psycopg and where the driver can, for an answer; a SQLite
      file is made at once, as its owner's alone

    Raises ``TypeError`` for what is no text, ``ValueError`` that lists what is possible for any other text,
    ``ValueError`` for a keyring that keeps plain text, ``ImportError`` for an extra or a driver that is not
    installed, ``PermissionError`` for a SQLite file that others may open, or put a journal beside, and ``OSError``
    where it cannot be made. None of them repeats a URL, which may hold a password.
    """
    if not isinstance(text, str):
        raise TypeError(f"a store is opened by a text, not by {type(text).__name__}: {POSSIBLE}")
    # Error trackers keep the variables of frames.
    text = Redacted(text)
    kind = text.partition(":")[0]
    opener = _OPENERS.get(kind if kind == "file" else text)
    if opener is not None:
        return opener(text[len(kind) + 1 :])
    if "://" not in text:
        raise ValueError(f"no store is called so; it may be {POSSIBLE}")
    opened = _redis_store(text) if kind in ("redis", "rediss", "unix") else _sql_store(text)
    if isinstance(opened, str):
        # Raised here, where no frame holds a client or an engine, whose repr may show a password.
        raise ValueError(f"{opened}; a store may be {POSSIBLE}")
    return opened


def _file_store(folder: str) -> TokenStore:
    from .file import FileStore

    try:
        return FileStore(folder or None)
    except RuntimeError:
        pass
    raise ValueError("there is no such home folder: write file:FOLDER with one that is there")


def _keyring_store(_rest: str) -> TokenStore:
    from finapi_session import KeyringStore  # it says which extra is missing

    return KeyringStore()


def _memory_store(_rest: str) -> TokenStore:
    from .memory import MemoryStore

    return MemoryStore()


_OPENERS: dict[str, Callable[[str], TokenStore]] = {
    "file": _file_store,
    "keyring": _keyring_store,
    "memory": _memory_store,
}


def _redis_store(url: str) -> TokenStore | str:
    """Return the store at *url*, or what is wrong with that."""
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from finapi_session import RedisStore  # it says which extra is missing

    seconds: Any = {"socket_connect_timeout": _REDIS_SECONDS, "socket_timeout": _REDIS_SECONDS}
    try:
        client = Redis.from_url(url, retry=Retry(NoBackoff(), 0), **seconds)
        # Not connected, only made: options that there are not would else be told of at first use.
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    except (TypeError, ValueError):
        return "this is no URL that Redis understands"
    return RedisStore(client)


def _sql_store(url: str) -> TokenStore | str:
    """Return the store at *url*, or what is wrong with that."""
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import ArgumentError

    from finapi_session import SQLStore  # it says which extra is missing

    try:
        address = make_url(url)
        limits = {name: value for name, value in _limits(address).items() if name not in address.query}
        engine = create_engine(address, connect_args=limits, pool_pre_ping=True)
    except (ArgumentError, TypeError, ValueError):
        return "this is no URL that SQLAlchemy understands"
    try:
        store = SQLStore(engine)
    except (TypeError, ValueError) as error:
        return str(error)
    if address.get_driver_name() == "psycopg":
        from .answers import bound_waiting

        bound_waiting(engine, _SQL_SECONDS)
    if address.get_backend_name() == "sqlite":
        _make_private(engine)
    return store


def _limits(address: Any) -> dict[str, Any]:
    """Return what bounds the waiting of the URL's driver, in the driver's own words."""
    driver = address.get_driver_name()
    if driver in ("psycopg", "psycopg2"):
        limits = {"connect_timeout": _SQL_SECONDS, "tcp_user_timeout": 1000 * _SQL_SECONDS}
        # A pooler may give each transaction to another server, where what was prepared is not known.
        return {**limits, "prepare_threshold": None} if driver == "psycopg" else limits
    if driver in ("pymysql", "mysqldb"):
        return dict.fromkeys(("connect_timeout", "read_timeout", "write_timeout"), _SQL_SECONDS)
    return {"timeout": _SQL_SECONDS} if driver == "pg8000" else {}


def _make_private(engine: Any) -> None:
    """Make the file of a SQLite database its owner's alone; what SQLite puts beside it gets the same mode.

    One that others may open, or put a journal beside, which SQLite would play back, is a ``PermissionError``.
    """
    from .folders import refuse_open_file, refuse_shared_folder

    name = str(engine.url.database)
    path = Path(unquote(urlsplit(name).path) if name.startswith("file:") else name).absolute()
    refuse_shared_folder(path.parent)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    try:
        with engine.connect() as connection:
            # SQLite itself tells which file it is; it has read nothing of it yet.
            refuse_open_file(Path(connection.exec_driver_sql("PRAGMA database_list").all()[0][2]))
    finally:
        # A process that is forked from this one would share the connection.
        engine.dispose()
