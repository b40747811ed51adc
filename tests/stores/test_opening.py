"""Stores that are named by a text, and arguments that are none."""

from __future__ import annotations

import os
import stat
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keyring
import pytest
import redis
import redis.asyncio
from keyring.backends import fail
from sqlalchemy import create_engine, make_url

from finapi_session import (
    FileStore,
    KeyringStore,
    MemoryStore,
    RedisStore,
    SQLStore,
    open_store,
)

from . import places

POSSIBLE = "file, file:FOLDER, keyring, memory, redis://... or an SQLAlchemy URL"


def test_files(bare_machine: Path, tmp_path: Path) -> None:
    """``file`` is the user's state folder, and ``file:FOLDER`` that folder, the user's home included."""
    assert repr(open_store("file")) == repr(open_store("file:")) == repr(FileStore())
    assert repr(open_store(f"file:{tmp_path}")) == repr(FileStore(tmp_path))
    assert repr(open_store("file:~/tokens")) == repr(FileStore(bare_machine / "tokens"))


def test_keyring_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """``keyring`` and ``memory`` are these; each memory is one of its own."""
    monkeypatch.setattr(keyring, "get_keyring", fail.Keyring)  # else what the first test of this process found
    assert isinstance(open_store("keyring"), KeyringStore)
    one, other = open_store("memory"), open_store("memory")
    one.set("key", "value")
    assert isinstance(one, MemoryStore) and other.get("key") is None


def test_a_keyring_in_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """``keyring`` where that is a file in plain text is refused, as by the store itself."""
    backends = pytest.importorskip("keyrings.alt.file")
    monkeypatch.setattr(keyring, "get_keyring", backends.PlaintextKeyring)
    with pytest.raises(ValueError, match="PlaintextKeyring keeps plain text"):
        open_store("keyring")


def test_redis(redis_socket: str) -> None:
    """A URL of Redis is a store there, which waits two seconds at most unless the URL says otherwise."""
    store: Any = open_store(f"unix://{redis_socket}")
    store.set("opened", "value")
    assert isinstance(store, RedisStore) and places.redis_store(redis_socket, store.prefix).get("opened") == "value"
    store.delete("opened")
    store.client.close()
    for url, seconds in (("rediss://host", 2), ("redis://:secret@host/1?socket_timeout=7", 7)):
        settings = getattr(open_store(url), "client").connection_pool.connection_kwargs  # noqa: B009
        assert (settings["socket_timeout"], settings["socket_connect_timeout"]) == (seconds, 2)
        sent: list[bool] = []
        with pytest.raises(redis.ConnectionError):
            settings["retry"].call_with_retry(lambda: refused(sent), lambda _error: None)  # noqa: B023
        assert sent == [True]


def refused(sent: list[bool]) -> None:
    sent.append(True)
    raise redis.ConnectionError


def test_sqlite(tmp_path: Path) -> None:
    """A new database file is its owner's alone, and needs no table made, by a URI, too."""
    path = tmp_path / "app.db"
    store: Any = open_store(f"sqlite:///{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store.set("key", "value")
    assert isinstance(store, SQLStore) and store.get("key") == "value"
    store.engine.dispose()
    other: Any = open_store(f"sqlite:///file:{tmp_path}/other.db?uri=true")
    assert stat.S_IMODE((tmp_path / "other.db").stat().st_mode) == 0o600
    other.engine.dispose()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no modes")
def test_a_sqlite_file_that_others_may_open(tmp_path: Path) -> None:
    """It is refused, whatever it is called, and so is one beside which others could plant a journal."""
    path = tmp_path / "app.db"
    path.touch()
    path.chmod(0o640)
    (tmp_path / "link.db").symlink_to(path)
    for url in (f"sqlite:///{path}", f"sqlite:///file:{path}?uri=true", f"sqlite:///{tmp_path}/link.db"):
        with pytest.raises(PermissionError, match=f"others may open {path}: run 'chmod 600 {path}'"):
            open_store(url)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    with pytest.raises(PermissionError, match="others may write to"):
        open_store(f"sqlite:///{tmp_path}/shared/app.db")
    assert not list((tmp_path / "shared").iterdir())


def test_a_sqlite_store_that_is_opened_has_no_connection(tmp_path: Path) -> None:
    """The look at its file leaves none behind that a forked child would share."""
    store: Any = open_store(f"sqlite:///{tmp_path}/app.db")
    assert store.engine.pool.checkedin() == store.engine.pool.checkedout() == 0


def test_a_sqlite_file_that_cannot_be_made(tmp_path: Path) -> None:
    """A folder that is not there is an error at once."""
    with pytest.raises(FileNotFoundError):
        open_store(f"sqlite:///{tmp_path}/missing/app.db")


def test_postgresql(postgresql_url: str) -> None:
    """A URL of SQLAlchemy is a store there."""
    store: Any = open_store(postgresql_url)
    with store.lock("opened"):
        store.set("opened", "value")
        assert store.get("opened") == "value"
    store.engine.dispose()


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("postgresql+psycopg://", {"connect_timeout": 5, "tcp_user_timeout": 5000, "prepare_threshold": None}),
        ("postgresql+psycopg://h?connect_timeout=9", {"tcp_user_timeout": 5000, "prepare_threshold": None}),
        ("postgresql+psycopg2://", {"connect_timeout": 5, "tcp_user_timeout": 5000}),
        ("mysql+pymysql://", {"connect_timeout": 5, "read_timeout": 5, "write_timeout": 5}),
        ("mysql://", {"connect_timeout": 5, "read_timeout": 5, "write_timeout": 5}),
        ("postgresql+pg8000://", {"timeout": 5}),
        ("postgresql+psycopg2cffi://", {}),
    ],
)
def test_each_driver_is_told_not_to_wait(monkeypatch: pytest.MonkeyPatch, url: str, wanted: dict[str, Any]) -> None:
    """The engine gets the driver's own bounds, save those that the URL sets; no such server runs here."""
    made: list[dict[str, Any]] = []

    def remembered(address: Any, *, connect_args: dict[str, Any], pool_pre_ping: bool) -> Any:
        assert pool_pre_ping and address == make_url(url)
        made.append(connect_args)
        return create_engine("sqlite:///unused.db")

    monkeypatch.setattr("sqlalchemy.create_engine", remembered)
    open_store(url)
    assert made == [wanted]


@pytest.mark.parametrize(
    "text",
    ["", "shoebox", "memory:", "keyring:x", "Files", "redis:/x", "nosuch://u:pass-word@h/x",
     "redis://:pass-word@h:port",
     "postgresql+psycopg://u:pass-word@h:port/x", "://u:pass-word@h", "redis://:pass-word@h/?db=x",
     "sqlite://", "redis://h?nosuchoption=pass-word"],
)  # fmt: skip
def test_another_text_is_refused(text: str) -> None:
    """The error lists what is possible, and neither it nor a frame's variable shows the password."""
    with pytest.raises(ValueError, match="may be") as raised:
        open_store(text)
    shown = "".join(traceback.TracebackException.from_exception(raised.value, capture_locals=True).format())
    assert POSSIBLE in str(raised.value)
    assert "pass-word" not in shown[shown.index("in open_store") :]


def test_an_unknown_home_is_refused() -> None:
    """A home folder that nobody has is said to be what is missing."""
    with pytest.raises(ValueError, match="there is no such home folder"):
        open_store("file:~nobody-of-this-name/x")


@pytest.mark.parametrize("thing", [None, 7, Path("file"), b"file"])
def test_what_is_no_text_is_refused(thing: Any) -> None:
    """Anything but text is a ``TypeError`` that lists what is possible."""
    with pytest.raises(TypeError, match=f"not by {type(thing).__name__}: file"):
        open_store(thing)


URL = "redis://:pass-word@localhost"


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (lambda: URL, "not a URL: write RedisStore.*or open_store"),
        (lambda: URL.encode(), "not a URL: write RedisStore"),
        (lambda: redis.asyncio.Redis.from_url(URL), "not one of redis.asyncio: write RedisStore"),
        (lambda: redis.asyncio.Redis, "not one of redis.asyncio: write RedisStore"),
        (lambda: redis.Redis, "not Redis: write RedisStore"),
        (lambda: redis.ConnectionPool(), "not ConnectionPool: write RedisStore"),
        (lambda: None, "not NoneType: write RedisStore"),
    ],
)
def test_what_is_no_redis_client_is_refused(thing: Callable[[], Any], said: str) -> None:
    """The error says what to write instead, and shows no password."""
    with pytest.raises(TypeError, match=said) as raised:
        RedisStore(thing())
    assert "from_url('redis://...')" in str(raised.value) and "pass-word" not in str(raised.value)


class AsyncEngine:
    """Stands for SQLAlchemy's, which needs another package."""


def aiosqlite_engine() -> Any:
    engine = create_engine("sqlite:///unused.db")
    engine.dialect.is_async = True  # type: ignore[misc]
    return engine


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (lambda: "sqlite:///pass-word", "not a URL: write SQLStore.*or open_store"),
        (lambda: make_url("postgresql://u:pass-word@h"), "not a URL: write SQLStore"),
        (AsyncEngine, "not one of asyncio: write SQLStore"),
        (aiosqlite_engine, "not one of asyncio: write SQLStore"),
        (lambda: create_engine, "not function: write SQLStore"),
        (lambda: None, "not NoneType: write SQLStore"),
    ],
)
def test_what_is_no_engine_is_refused(thing: Callable[[], Any], said: str) -> None:
    """The error says what to write instead, and shows no password."""
    with pytest.raises(TypeError, match=said) as raised:
        SQLStore(thing())
    assert "create_engine('...')" in str(raised.value) and "pass-word" not in str(raised.value)
