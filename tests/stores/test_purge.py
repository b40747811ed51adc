"""What nobody uses any more goes: ``purge`` of files and rows, lock files included, and values that Redis ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import BigInteger, create_engine, inspect, text

from finapi_session import FileStore, RedisStore, SQLStore

from . import places

DAY = 86_400.0
JUNK: list[tuple[Any, type[Exception]]] = [
    (0, ValueError),
    (-1, ValueError),
    (float("nan"), ValueError),
    (float("inf"), ValueError),
    (True, TypeError),
    ("90", TypeError),
    (None, TypeError),
]


@pytest.fixture
def files(tmp_path: Path) -> FileStore:
    """A store in a folder that is not there yet."""
    return FileStore(tmp_path / "tokens", lock_timeout=20)


def age(store: FileStore, key: str, seconds: float) -> None:
    """Make the value under *key* as old as if it had been set so long ago."""
    then = time.time() - seconds
    os.utime(store._path(key), (then, then))


def left(store: FileStore) -> tuple[int, int]:
    """Return how many values and lock files there are."""
    values = [path for path in store.directory.iterdir() if path.is_file()]
    return len(values), len(list((store.directory / "locks").iterdir()))


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "error"), JUNK, ids=repr)
def test_junk_ages_are_refused(tmp_path: Path, files: FileStore, value: Any, error: type[Exception]) -> None:
    """What is no number of seconds above 0 is an error that names the argument, and nothing goes."""
    database = SQLStore(create_engine(f"sqlite:///{tmp_path}/tokens.db"))
    for purge in (files.purge, database.purge):
        with pytest.raises(error, match="older_than must be a number of seconds above 0"):
            purge(value)


def test_fifty_made_up_names(files: FileStore) -> None:
    """Fifty values and their fifty lock files are gone, those in use stay, and the count is of values."""
    for number in range(50):
        with files.lock(f"user {number}"):
            files.set(f"user {number}", "value")
        age(files, f"user {number}", 31 * DAY)
    for key in ("anna", "bert"):
        with files.lock(key):
            files.set(key, key)
    age(files, "bert", 29 * DAY)
    assert files.purge(30 * DAY) == 50
    assert left(files) == (2, 2)
    assert (files.get("anna"), files.get("bert")) == ("anna", "bert")
    assert files.purge(30 * DAY) == 0


def test_lock_files_without_a_value_go(files: FileStore) -> None:
    """What a user left who was refused, and so never had a value, goes as well."""
    for number in range(9):
        with files.lock(f"user {number}"):
            pass
    (files.directory / "locks" / "notes.txt").write_text("not ours")
    assert files.purge(DAY) == 0
    assert [path.name for path in (files.directory / "locks").iterdir()] == ["notes.txt"]


def test_a_purge_of_nothing_makes_nothing(files: FileStore) -> None:
    """Where there is no folder there is nothing to purge."""
    assert files.purge(DAY) == 0
    assert not files.directory.exists()


def test_leftovers_go_and_strangers_stay(files: FileStore) -> None:
    """Files in flight of killed writers go; what is not ours stays."""
    files.set("key", "value")
    leftover, stranger = files.directory / "incoming" / ("a" * 32), files.directory / "notes.txt"
    for path in (leftover, stranger):
        path.write_text("x")
        os.utime(path, (0, 0))
    files.purge(DAY)
    assert (leftover.exists(), stranger.exists()) == (False, True)


def test_what_is_locked_stays(files: FileStore) -> None:
    """A value whose lock is held is being renewed: it stays, and nobody waits."""
    files.set("key", "value")
    age(files, "key", 2 * DAY)
    started = time.monotonic()
    with files.lock("key"):
        assert files.purge(DAY) == 0
        assert time.monotonic() - started < 2
    assert files.get("key") == "value"


def test_ages_are_told_by_the_folders_clock(files: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose clock is a year ahead purges nothing that was just set."""
    files.set("key", "value")
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert files.purge(DAY) == 0
    assert files.get("key") == "value"


@pytest.mark.parametrize("again", [False, True])
def test_a_value_that_is_set_meanwhile_stays(files: FileStore, monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    """A writer who holds no lock and comes between the look and the removal loses nothing, nor does the next one."""
    files.set("key", "old")
    age(files, "key", 2 * DAY)
    real_rename, real_link = os.rename, os.link

    def rename(old: Path, new: Path) -> None:
        monkeypatch.setattr(os, "rename", real_rename)
        files.set("key", "new")
        real_rename(old, new)

    def link(old: Path, new: Path) -> None:
        if again:
            files.set("key", "newest")
        real_link(old, new)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "link", link)
    assert files.purge(DAY) == 0
    assert files.get("key") == ("newest" if again else "new")
    assert not list((files.directory / "incoming").iterdir())


def test_a_value_that_is_deleted_meanwhile(files: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that its owner deletes at that moment is not counted."""
    files.set("key", "old")
    age(files, "key", 2 * DAY)
    real = os.rename

    def rename(old: Path, new: Path) -> None:
        files.delete("key")
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    assert files.purge(DAY) == 0


COUNT = """
import sys
from pathlib import Path
from finapi_session import FileStore
store, tally = FileStore(sys.argv[1]), Path(sys.argv[2])
for _ in range(int(sys.argv[3])):
    with store.lock("key"):
        count = int(tally.read_text())
        tally.write_text(str(count + 1))
"""


def test_no_lock_is_torn_by_a_purge(files: FileStore, tmp_path: Path) -> None:
    """Four processes count under a lock whose file is purged all the time: no count is lost, so no two were in."""
    tally = tmp_path / "tally"
    tally.write_text("0")
    command = [sys.executable, "-c", COUNT, str(files.directory), str(tally), "300"]
    counters = [subprocess.Popen(command) for _ in range(4)]
    purged = 0
    while any(counter.poll() is None for counter in counters):
        before = len(list((files.directory / "locks").glob("*"))) if files.directory.exists() else 0
        files.purge(DAY)
        purged += before
    assert [counter.wait() for counter in counters] == [0, 0, 0, 0]
    assert tally.read_text() == "1200"
    assert purged > 20


def test_two_purges_at_once(files: FileStore) -> None:
    """Two who purge at once remove each value once, and neither fails."""
    for number in range(60):
        files.set(str(number), "value")
        age(files, str(number), 2 * DAY)
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(files.purge(DAY))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 60 and left(files) == (0, 0)


# --- databases ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path, fresh_name: str) -> SQLStore:
    """A store on each database."""
    if request.param == "sqlite":
        return places.sql_store(f"sqlite:///{tmp_path}/tokens.db", fresh_name)
    return places.sql_store(request.getfixturevalue("postgresql_url"), fresh_name)


def age_rows(store: SQLStore, seconds: float, but: str) -> None:
    """Make all rows but one as old as if they had been set so long ago."""
    change = text(f"UPDATE {store.table.name} SET updated = updated - {seconds:.0f} WHERE value != '{but}'")
    with store.engine.begin() as connection:
        connection.execute(change)


def test_old_rows_go(database: SQLStore) -> None:
    """Rows that nobody has set for so long go, those set again stay, and they are counted."""
    for key in ("anna", "bert", "carl", "dora"):
        database.set(key, key)
    age_rows(database, 2 * DAY, but="anna")
    database.set("bert", "bert")
    assert database.purge(DAY) == 2
    assert [database.get(key) for key in ("anna", "bert", "carl", "dora")] == ["anna", "bert", None, None]
    assert database.purge(DAY) == 0


def test_lock_files_beside_sqlite_go(tmp_path: Path) -> None:
    """The lock files that SQLite needs go with the rows."""
    store = places.sql_store(f"sqlite:///{tmp_path}/tokens.db")
    for number in range(9):
        with store.lock(f"user {number}"):
            pass
    store.purge(DAY)
    assert not list((tmp_path / "tokens.db-locks" / "locks").iterdir())


OLD_TABLE = "CREATE TABLE {} (name VARCHAR(64) PRIMARY KEY, value TEXT NOT NULL)"


@pytest.fixture
def older(database: SQLStore) -> SQLStore:
    """A store on a table from before there were ages."""
    with database.engine.begin() as connection:
        connection.execute(text(f"DROP TABLE {database.table.name}"))
        connection.execute(text(OLD_TABLE.format(database.table.name)))
    return SQLStore(database.engine, database.table.name)


def test_a_table_without_ages_works_as_before(older: SQLStore) -> None:
    """A table that a migration made earlier is read and written; a purge says which statement gives it ages."""
    older.create_table()
    for value in ("old", "new"):
        older.set("key", value)
        assert older.get("key") == value
    with older.lock("key"):
        older.set("key", "newer")
    statement = f"ALTER TABLE {older.table.name} ADD COLUMN updated BIGINT"
    with pytest.raises(LookupError, match=f"has no column that tells ages: run '{re.escape(statement)}'"):
        older.purge(DAY)
    assert older.get("key") == "newer"


def test_a_table_that_was_given_ages(older: SQLStore) -> None:
    """After that statement the rows that were there count from the first purge on."""
    older.set("key", "value")
    with older.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {older.table.name} ADD COLUMN updated BIGINT"))
    store = SQLStore(older.engine, older.table.name)
    assert store.purge(DAY) == 0
    store.set("other", "other")
    age_rows(store, 2 * DAY, but="other")
    assert store.purge(DAY) == 1
    assert (store.get("key"), store.get("other")) == (None, "other")


def test_the_column_of_a_migration(database: SQLStore) -> None:
    """``store.table`` has the column, which may be empty, so a migration from it adds what old rows lack."""
    column = database.table.c.updated
    assert isinstance(column.type, BigInteger) and column.nullable
    [found] = [each for each in inspect(database.engine).get_columns(database.table.name) if each["name"] == "updated"]
    assert found["nullable"]


def test_without_a_table(tmp_path: Path) -> None:
    """Without a table a purge makes it, as any call does, and finds nothing."""
    store = SQLStore(places.engine(f"sqlite:///{tmp_path}/tokens.db"))
    assert store.purge(DAY) == 0 and inspect(store.engine).has_table("finapi_session_tokens")


def test_what_a_holder_writes_has_an_age(database: SQLStore) -> None:
    """Both kinds of write are stamped over the connection of a lock, and a purge goes over it, too."""
    with database.lock("user"):
        for value in ("old", "new"):
            database.set("user", value)
            with database.engine.connect() as connection:
                stamps = connection.scalars(text(f"SELECT updated FROM {database.table.name}")).all()
            assert len(stamps) == 1 and abs(stamps[0] - time.time()) < 100
            age_rows(database, DAY / 2, but="")
        age_rows(database, DAY, but="")
        assert database.purge(DAY) == 1 and database.get("user") is None
    with database.lock("user"):
        assert database.get("user") is None


def test_a_holder_asks_for_no_second_connection(postgresql_url: str, fresh_name: str) -> None:
    """With a pool of a single connection the first write, which asks for the columns, and a purge still go."""
    engine = create_engine(postgresql_url, pool_size=1, max_overflow=0, pool_timeout=1)
    places.sql_store(postgresql_url, fresh_name)
    store = SQLStore(engine, fresh_name)
    with store.lock("user"), engine.connect():
        store.set("user", "value")
        assert store.purge(DAY) == 0 and store.get("user") == "value"
    engine.dispose()


# --- Redis --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "error"), [junk for junk in JUNK if junk[0] is not None], ids=repr)
def test_junk_expiries_are_refused(redis_socket: str, value: Any, error: type[Exception]) -> None:
    """What is no number of seconds above 0 is an error that names the argument."""
    with pytest.raises(error, match="expire_after must be a number of seconds above 0"):
        RedisStore(places.redis_client(redis_socket), expire_after=value)


def test_values_end_by_themselves(redis_socket: str, fresh_name: str) -> None:
    """Redis forgets a value so many seconds after it was last set; each ``set`` begins anew."""
    store = RedisStore(places.redis_client(redis_socket), fresh_name, expire_after=0.5)
    store.set("key", "value")
    for _ in range(3):
        time.sleep(0.3)
        store.set("key", "value")
    assert store.get("key") == "value"
    places.wait_until(lambda: store.get("key") is None, 2)


@pytest.mark.parametrize("expire_after", [None, 1e300, 1e-9])
def test_extreme_expiries(redis_socket: str, fresh_name: str, expire_after: float | None) -> None:
    """Without one a value stays; one beyond what Redis counts is as long as it can; the shortest is a millisecond."""
    client: Redis = places.redis_client(redis_socket)
    RedisStore(client, fresh_name, expire_after=expire_after).set("key", "value")
    left: Any = client.pttl(f"{fresh_name}token:key")
    assert left == -1 if expire_after is None else left > 1e12 if expire_after > 1 else left in (-2, 0, 1)
