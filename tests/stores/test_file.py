"""What FileStore does beyond the contract: rights, links, full disks, leftovers, many keys."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from finapi_session import FileStore

from . import places

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be someone else")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.parent.name != "locks")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    """A store in a folder that is not there yet."""
    return FileStore(tmp_path / "state" / "tokens", lock_timeout=0.2)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_all_is_private_from_birth(store: FileStore, mask: int) -> None:
    """Folders are 0700 and files 0600 under every umask, parents and lock files too."""
    with umask(mask):
        store.set("key", "value")
        with store.lock("key"):
            assert store.get("key") == "value"
    found = list(store.directory.parent.rglob("*"))
    assert {mode(path) for path in found if path.is_file()} == {0o600}
    assert {mode(path) for path in (store.directory.parent, *found) if path.is_dir()} == {0o700}


def test_a_new_file_is_private_before_it_holds_anything(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a umask of 0 nobody else could open the new file, not even before its rights were set."""
    born: list[os.stat_result] = []
    real = os.chmod

    def chmod(path: Path, mode: int, **more: bool) -> None:
        born.append(os.stat(path))
        real(path, mode, **more)

    monkeypatch.setattr(os, "chmod", chmod)
    with umask(0):
        store.set("key", "value")
    [new] = [info for info in born if stat.S_ISREG(info.st_mode)]
    assert (stat.S_IMODE(new.st_mode), new.st_size) == (0o600, 0)


def test_the_value_is_on_the_disk_before_it_has_its_name(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced, then renamed, then its folder is synced: no power cut leaves less than a value."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def replaced(old: Path, new: Path) -> None:
        steps.append("replace")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    store.set("key", "value")
    assert steps == ["file", "replace", "folder"]


def test_reading_creates_nothing(store: FileStore) -> None:
    """``get`` and ``delete`` on a folder that is not there leave it so."""
    assert store.get("key") is None
    store.delete("key")
    assert not store.directory.parent.exists()


def test_the_users_state_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a directory the tokens are in the user's state folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    FileStore().set("key", "value")
    assert len(files(tmp_path / "state" / "finapi_session")) == 1


def test_a_directory_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` is the user's home, and a relative directory stays where it was when the process moves."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert FileStore("~/tokens").directory == tmp_path / "tokens"
    monkeypatch.chdir(tmp_path)
    store = FileStore("tokens")
    monkeypatch.chdir("/")
    assert store.directory == tmp_path / "tokens"


def test_one_file_a_key(store: FileStore) -> None:
    """Each key has one file, with a name of hexadecimal digits, and nothing else stays."""
    for key in ("../key", "key", "key"):
        store.set(key, "value")
    names = [path.name for path in files(store.directory)]
    assert len(names) == 2
    assert all(len(name) == 64 and set(name) <= set("0123456789abcdef") for name in names)


@pytest.mark.parametrize("rights", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_may_write_is_refused(store: FileStore, rights: int) -> None:
    """Each operation on it raises an error that names the command to mend it, and writes nothing."""
    store.set("key", "value")
    store.directory.chmod(rights)
    before = files(store.directory)
    for operation in (
        partial(store.get, "key"),
        partial(store.set, "key", "new"),
        partial(store.delete, "key"),
    ):
        with pytest.raises(PermissionError, match=f"run 'chmod 700 {store.directory}'"):
            operation()
    with pytest.raises(PermissionError, match="chmod 700"), store.lock("key"):
        raise AssertionError("locked")
    assert files(store.directory) == before
    store.directory.chmod(0o700)
    assert store.get("key") == "value"


@pytest.mark.parametrize("name", ["incoming", "locks"])
def test_an_inner_folder_that_others_may_write_is_refused(store: FileStore, name: str) -> None:
    """The folders for new files and for locks are looked at as well."""
    store.set("key", "value")
    with store.lock("key"):
        pass
    (store.directory / name).chmod(0o777)
    with pytest.raises(PermissionError, match=f"chmod 700 {store.directory / name}"):  # noqa: SIM117
        with store.lock("key"):
            store.set("key", "new")
    assert store.get("key") == "value"


@needs_root
def test_another_users_folder_is_refused(store: FileStore) -> None:
    """A folder that another user owns is neither read nor written."""
    store.set("key", "value")
    os.chown(store.directory, 65534, 65534)
    with pytest.raises(PermissionError, match="belongs to another user: name a folder of your own"):
        store.get("key")
    with pytest.raises(PermissionError, match="belongs to another user"):
        store.set("key", "new")


@needs_root
def test_another_users_link_to_our_folder_is_refused(store: FileStore, tmp_path: Path) -> None:
    """A symbolic link that someone else could turn elsewhere is no way to our own folder; our own link is."""
    store.set("key", "value")
    link = tmp_path / "link"
    link.symlink_to(store.directory)
    assert FileStore(link).get("key") == "value"
    os.lchown(link, 65534, 65534)
    with pytest.raises(PermissionError, match="belongs to another user"):
        FileStore(link).get("key")


def test_a_link_in_a_values_place_is_refused(store: FileStore, tmp_path: Path) -> None:
    """A symbolic link where a value should be is neither read nor written through; ``delete`` mends it."""
    store.set("key", "value")
    target = tmp_path / "target"
    target.write_text("not ours")
    [path] = files(store.directory)
    path.unlink()
    path.symlink_to(target)
    for operation in (partial(store.get, "key"), partial(store.set, "key", "new")):
        with pytest.raises(PermissionError, match=f"{path} is a symbolic link.*remove it"):
            operation()
    assert target.read_text() == "not ours"
    store.delete("key")
    store.set("key", "new")
    assert (store.get("key"), target.read_text()) == ("new", "not ours")


def test_a_link_in_a_locks_place_is_refused(store: FileStore, tmp_path: Path) -> None:
    """A symbolic link where a lock file should be raises an error, and its target is not touched."""
    with store.lock("key"):
        pass
    target = tmp_path / "target"
    target.write_text("not ours")
    [path] = (store.directory / "locks").iterdir()
    path.unlink()
    path.symlink_to(target)
    with pytest.raises(PermissionError, match="symbolic link"), store.lock("key"):
        raise AssertionError("locked")
    assert target.read_text() == "not ours"


def test_a_full_disk_keeps_the_old_value(small_disk: Path) -> None:
    """On a full disk ``set`` raises, the old value stays whole, nothing is left over, and later sets work."""
    store = FileStore(small_disk / "tokens")
    store.set("key", "old" * 1000)
    with pytest.raises(OSError, match="No space") as raised:
        store.set("key", "new" * 100_000)
    assert raised.value.errno == errno.ENOSPC
    assert len(files(store.directory)) == 1
    assert store.get("key") == "old" * 1000
    store.set("key", "new")
    assert store.get("key") == "new"


def test_a_read_only_disk_keeps_the_old_value(small_disk: Path) -> None:
    """On a disk mounted read-only values are read; writing and locking raise and change nothing."""
    store = FileStore(small_disk / "tokens")
    store.set("key", "old")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    operations = (partial(store.set, "key", "new"), partial(store.delete, "key"), store.lock("key").__enter__)
    for operation in operations:
        with pytest.raises(OSError, match="Read-only") as raised:
            operation()
        assert raised.value.errno == errno.EROFS
    assert store.get("key") == "old"


@needs_root
def test_a_folder_without_the_right_to_write() -> None:
    """An unprivileged owner without the right to write reads the old value and cannot set."""
    # Not below pytest's folders: each run that starts shuts those to everyone else.
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 65534, 65534)
        store = FileStore(Path(folder) / "store")

        def work() -> None:
            os.setuid(65534)
            store.set("key", "old")
            (store.directory / "incoming").chmod(0o500)
            with pytest.raises(PermissionError):
                store.set("key", "new")
            assert store.get("key") == "old"

        assert places.forked(work)


def test_a_file_size_limit_keeps_the_old_value(store: FileStore) -> None:
    """A write that breaks off in the middle leaves the old value whole and no leftover."""
    store.set("key", "old")

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(OSError, match="File too large"):
            store.set("key", "new" * 1000)

    assert places.forked(work)
    assert store.get("key") == "old"
    assert len(files(store.directory)) == 1


def leftover(store: FileStore, name: str, age: float) -> Path:
    """A file in flight, last written to *age* seconds ago."""
    path = store.directory / "incoming" / name
    path.write_text("half a tok")
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_leftovers_of_killed_writers_are_swept(store: FileStore) -> None:
    """The next ``set`` of any key removes what is older than a minute, and not what is written now."""
    store.set("key", "value")
    old, new = leftover(store, "a" * 32, 61), leftover(store, "b" * 32, 0)
    store.set("other", "value")
    assert (old.exists(), new.exists()) == (False, True)


def test_leftovers_are_swept_from_a_full_disk(small_disk: Path) -> None:
    """Leftovers that fill a disk do not keep themselves there: they go before the next value is written."""
    store = FileStore(small_disk / "tokens")
    store.set("key", "old")
    with suppress(OSError), open(leftover(store, "a" * 32, 0), "wb") as file:
        file.write(b"x" * 100_000)
    os.utime(store.directory / "incoming" / ("a" * 32), (0, 0))
    store.set("key", "new" * 1000)
    assert store.get("key") == "new" * 1000


def test_only_names_of_ours_are_swept(store: FileStore) -> None:
    """What another program put among the files in flight stays, however old: a file, a folder, a pipe."""
    store.set("key", "value")
    strangers = [leftover(store, name, 3600) for name in ("notes.txt", "a" * 31, "A" * 32, "a" * 64)]
    folder, pipe = (store.directory / "incoming" / (letter * 32) for letter in "cd")
    folder.mkdir()
    os.mkfifo(pipe)
    for path in (folder, pipe):
        os.utime(path, (0, 0))
    store.set("key", "new")
    assert all(path.exists() for path in (*strangers, folder, pipe))


def test_a_writer_whose_clock_is_ahead_sweeps_nobodys_file(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ages are told by the folder's own clock: a process an hour ahead leaves another's file in flight alone."""
    store.set("key", "value")
    theirs = leftover(store, "a" * 32, 0)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    store.set("key", "new")
    assert theirs.exists()


def make_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, make_socket])
def test_only_a_regular_file_is_a_value_or_a_lock(store: FileStore, make: Callable[[Path], object]) -> None:
    """A pipe, which would hang its reader, a folder and a socket are refused where a value or a lock should be."""
    store.set("key", "value")
    [path] = files(store.directory)
    path.unlink()
    make(path)
    operations: dict[str, Callable[[], object]] = {
        "get": partial(store.get, "key"),
        "set": partial(store.set, "key", "new"),
    }
    started = time.monotonic()
    for operation in operations.values():
        with pytest.raises(PermissionError, match=f"{path} is not a regular file.*remove it"):
            operation()
    (store.directory / "locks").mkdir(0o700)
    make(store.directory / "locks" / path.name)
    with pytest.raises(PermissionError, match="not a regular file"), store.lock("key"):
        raise AssertionError("locked")
    assert time.monotonic() - started < 2


def test_a_value_that_is_swapped_between_look_and_open(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link or a pipe that takes the value's place after it was looked at is not followed and not waited for."""
    store.set("key", "value")
    [path] = files(store.directory)
    real = os.open
    swaps: list[Callable[[], object]] = [lambda: path.symlink_to("/etc/passwd"), lambda: os.mkfifo(path)]

    def opened(name: Path, flags: int, mode: int = 0o777) -> int:
        if name == path:
            path.unlink()
            swaps.pop(0)()
        return real(name, flags, mode)

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(OSError, match="symbolic link"):
        store.get("key")
    path.unlink()
    path.write_text("value")
    with pytest.raises(PermissionError, match="not a regular file"):
        store.get("key")


def test_a_corrupt_file_is_a_value_error(store: FileStore) -> None:
    """What is not UTF-8 raises ``ValueError``, and the next ``set`` mends it."""
    store.set("key", "value")
    [path] = files(store.directory)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="utf-8"):
        store.get("key")
    store.set("key", "value")
    assert store.get("key") == "value"


def test_a_lock_waits_for_a_bounded_time(store: FileStore) -> None:
    """Whoever waits for a held lock longer than ``lock_timeout`` seconds gets ``TimeoutError``."""
    started = time.monotonic()
    with (
        store.lock("key"),
        pytest.raises(TimeoutError),
        FileStore(store.directory, lock_timeout=0.2).lock("key"),
    ):
        raise AssertionError("two holders")
    assert 0.2 <= time.monotonic() - started < 2


def test_a_lock_is_left_by_whichever_thread(store: FileStore) -> None:
    """A lock that one thread took and another gave back is free."""
    block = store.lock("key")
    block.__enter__()
    thread = threading.Thread(target=block.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    with store.lock("key"):
        pass


def test_a_forked_child_waits_for_the_holder_and_no_longer(store: FileStore) -> None:
    """A child forked while a thread of its parent holds the lock is excluded until that thread leaves."""
    store.lock_timeout = 5
    leave, left = threading.Event(), []

    def hold() -> None:
        with store.lock("key"):
            leave.wait(10)
        left.append(True)

    def work() -> None:
        started = time.monotonic()
        with store.lock("key"):
            assert 0.3 < time.monotonic() - started < 3
        with store.lock("other"):
            pass

    holder = threading.Thread(target=hold)
    holder.start()
    places.wait_until(lambda: (store.directory / "locks").exists() and any((store.directory / "locks").iterdir()))
    time.sleep(0.1)
    threading.Timer(0.5, leave.set).start()
    assert places.forked(work)
    holder.join()
    assert left


def test_without_user_ids_and_folder_descriptors(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system knows neither (Windows), values are kept all the same."""
    monkeypatch.delattr(os, "geteuid")
    monkeypatch.delattr(os, "O_DIRECTORY")
    store.set("key", "value")
    store.set("key", "new")
    assert store.get("key") == "new"


def test_many_keys_cost_nothing(tmp_path: Path) -> None:
    """With 3,000 keys in the folder ``get`` and ``set`` take about as long as with ten.

    ``python -m tests.stores.torture`` measures 100,000.
    """
    few, many = FileStore(tmp_path / "few"), FileStore(tmp_path / "many")
    for store, size in ((few, 10), (many, 3000)):
        store.set("0", "value")
        for number in range(1, size):
            store._path(str(number)).write_text("value")
    get_few, get_many = quickest(300, lambda: few.get("7"), lambda: many.get("7"))
    set_few, set_many = quickest(50, lambda: few.set("7", "value"), lambda: many.set("7", "value"))
    assert get_many < 3 * get_few
    assert set_many < 3 * set_few


def quickest(times: int, *works: Callable[[], object]) -> list[float]:
    """The seconds that each takes at best, measured in turns, so that other people's load hits all alike."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(times):
        for seconds, work in zip(taken, works):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
    return [min(seconds) for seconds in taken]


def test_repr(tmp_path: Path) -> None:
    """The repr names the folder."""
    assert repr(FileStore(tmp_path)) == f"FileStore('{tmp_path}')"
