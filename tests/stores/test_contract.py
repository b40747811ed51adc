"""Every store of ours, and a ten-line one over Django's cache, against the contract that we ship."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from finapi_session import FileStore, MemoryStore
from finapi_session.testing.contract import MakeStore, StoreContract

from . import django_cache, places, vault


class OurContract(StoreContract):
    """The contract as our own stores keep it."""

    woken_within = 0.1


class TestMemoryStore(OurContract):
    shared = False

    @pytest.fixture
    def make_store(self) -> MakeStore:
        return MemoryStore


class TestFileStore(OurContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path) -> MakeStore:
        return partial(FileStore, tmp_path / "tokens")


class TestRedisStore(OurContract):
    freed_within = 3.0

    @pytest.fixture
    def make_store(self, redis_socket: str, fresh_name: str) -> MakeStore:
        return partial(places.redis_store, redis_socket, fresh_name)


class TestRedisStoreThatDecodes(OurContract):
    freed_within = 3.0

    @pytest.fixture
    def make_store(self, redis_socket: str, fresh_name: str) -> MakeStore:
        return partial(places.redis_store, redis_socket, fresh_name, decode=True)


class TestSQLStoreOnPostgreSQL(OurContract):
    @pytest.fixture
    def make_store(self, postgresql_url: str, fresh_name: str) -> MakeStore:
        return partial(places.sql_store, postgresql_url, fresh_name)


class TestSQLStoreOnPostgreSQLWithOneConnection(OurContract):
    @pytest.fixture
    def make_store(self, postgresql_url: str, fresh_name: str) -> MakeStore:
        return partial(places.sql_store, postgresql_url, fresh_name, pool_size=1)


class TestSQLStoreOnSQLite(OurContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path) -> MakeStore:
        return partial(places.sql_store, f"sqlite:///{tmp_path}/app.db")


class TestSQLStoreOnSQLiteWithOneConnection(OurContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path) -> MakeStore:
        return partial(places.sql_store, f"sqlite:///{tmp_path}/app.db", pool_size=1)


class TestKeyringStore(OurContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeStore:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        return partial(vault.open_store, tmp_path)


class TestEncryptedStore(OurContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path) -> MakeStore:
        return partial(places.encrypted_store, tmp_path / "tokens", Fernet.generate_key())


class TestDjangoCacheStore(OurContract):
    freed_within = 3.0

    @pytest.fixture
    def make_store(self, redis_socket: str, fresh_name: str) -> MakeStore:
        return partial(django_cache.open_store, redis_socket, fresh_name)
