"""The README's recipes keep their word: how long a Redis or a PostgreSQL that hangs is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from finapi_session import RedisStore, SQLStore, TokenStore, open_store

from .hanging import Proxy, proxy_to

if TYPE_CHECKING:
    from finapi_session.testing import Sandbox


def redis_recipe(url: str) -> RedisStore:
    once = Retry(NoBackoff(), 0)
    return RedisStore(Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, retry=once))


def psycopg_recipe(url: str) -> Engine:
    limits = {
        "connect_timeout": 5,
        "tcp_user_timeout": 5000,
        "prepare_threshold": None,
        "options": "-c statement_timeout=2000 -c idle_in_transaction_session_timeout=60000",
    }
    return create_engine(url, connect_args=limits, pool_pre_ping=True)


@contextmanager
def taking(least: float, most: float) -> Iterator[None]:
    """Fail unless the block takes so many seconds."""
    started = time.monotonic()
    yield
    assert least <= time.monotonic() - started <= most


@pytest.fixture
def redis_proxy(redis_socket: str) -> Iterator[Proxy]:
    """A Redis that can be told to hang."""
    with proxy_to(redis_socket) as proxy:
        yield proxy


@pytest.fixture
def postgresql_proxy(postgresql_url: str) -> Iterator[Proxy]:
    """A PostgreSQL that can be told to hang."""
    url = make_url(postgresql_url)
    with proxy_to(f"{url.query['host']}/.s.PGSQL.{url.port or 5432}") as proxy:
        # Whoever waits without a bound fails a test then, and does not hang the run.
        rescue = Timer(40, proxy.flowing.set)
        rescue.start()
        yield proxy
        rescue.cancel()


@pytest.mark.parametrize("opened", [redis_recipe, open_store])
def test_a_redis_that_hangs(redis_proxy: Proxy, opened: Callable[[str], Any]) -> None:
    """One command waits 2 s, a lock twice that at most, on a connection that was good and on a new one."""
    store = opened(f"redis://127.0.0.1:{redis_proxy.port}")
    store.set("key", "value")
    redis_proxy.flowing.clear()
    for _ in range(2):
        with taking(1.9, 4), pytest.raises(RedisTimeoutError):
            store.get("key")
    with taking(1.9, 6), pytest.raises(RedisTimeoutError), store.lock("key"):
        raise AssertionError("locked")
    redis_proxy.flowing.set()
    assert store.get("key") == "value"
    store.client.close()


def test_a_session_on_a_redis_that_hangs(redis_proxy: Proxy, sandbox: Sandbox) -> None:
    """The first call waits 5 s at most in all, a second session's alike, and the calls after that for nothing."""
    store: TokenStore = open_store(f"redis://127.0.0.1:{redis_proxy.port}")
    redis_proxy.flowing.clear()
    for _ in range(2):
        with sandbox.session("alice", store=store) as session:
            with taking(0, 5):
                assert session.get("/api/v2/accounts").ok
            with taking(0, 1.5):
                assert session.get("/api/v2/accounts").ok


def test_a_postgresql_that_hangs_from_the_start(postgresql_proxy: Proxy) -> None:
    """Connecting waits 5 s, by the recipe and by ``open_store`` alike."""
    postgresql_proxy.flowing.clear()
    url = f"postgresql+psycopg://postgres@127.0.0.1:{postgresql_proxy.port}/postgres"
    opened: Any = open_store(url)
    for store in (SQLStore(psycopg_recipe(url)), opened):
        with taking(4.5, 8), pytest.raises(OperationalError, match="timeout"):
            store.get("key")
        store.engine.dispose()


def test_a_postgresql_that_hangs_on_an_open_connection(
    postgresql_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``open_store`` waits for an answer, then for a new connection; a holder goes on without the lock's."""
    monkeypatch.setattr("finapi_session.stores.opening._SQL_SECONDS", 2)
    store: Any = open_store(f"postgresql+psycopg://postgres@127.0.0.1:{postgresql_proxy.port}/postgres")
    store.set("key", "value")
    postgresql_proxy.flowing.clear()
    with taking(3.5, 8), pytest.raises(OperationalError, match="timeout"):
        store.get("key")
    postgresql_proxy.flowing.set()
    assert store.get("key") == "value"
    with pytest.raises(OperationalError, match="no answer within 2 s"), store.lock("key"):
        postgresql_proxy.flowing.clear()
        with taking(3.5, 8), pytest.raises(OperationalError):
            store.get("key")
        postgresql_proxy.flowing.set()
        store.set("key", "new")
    assert store.get("key") == "new"
    store.engine.dispose()


def test_a_postgresql_that_is_busy(postgresql_url: str, fresh_name: str) -> None:
    """A statement that the server cannot finish ends after 2 s; the server does that, behind a proxy that flows."""
    engine = psycopg_recipe(postgresql_url)
    store = SQLStore(engine, fresh_name)
    store.set("key", "value")
    with engine.begin() as connection:
        connection.execute(text(f"LOCK TABLE {fresh_name}"))
        with taking(1.9, 4), pytest.raises(OperationalError, match="statement timeout"):
            store.get("key")
    assert store.get("key") == "value"
    engine.dispose()
