"""Whose folders FileStore trusts: its own, and the whole way to it."""

from __future__ import annotations

import errno
import os
import pwd
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from finapi_session import FileStore
from finapi_session.stores.folders import refuse_open_file, refuse_open_folder, refuse_open_way, refuse_shared_folder

from . import places

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be someone else")

MALLORY, NOBODY = 4242, 65534


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in which every user may search; pytest's own are private, as is what is above them."""
    with TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def of_nobody(place: Path) -> Path:
    """A folder of an unprivileged user."""
    folder = place / "home"
    folder.mkdir(0o755)
    os.chown(folder, NOBODY, NOBODY)
    return folder


def as_user(user: int, work: Callable[[], object], group: int | None = None) -> bool:
    """Run *work* in a process that is *user* meanwhile, in *group* alone, by default one of the same number."""

    def become() -> None:
        os.setgroups([])
        os.setegid(user if group is None else group)
        os.seteuid(user)
        try:
            work()
        finally:
            os.seteuid(0)

    return places.forked(become)


def plant(folder: Path) -> None:
    """Make a folder of mallory's that looks like a store: a token under the key, and a file in flight."""
    store = FileStore(folder / "tokens")
    store.set("key", "mallory's token")
    (folder / "tokens" / "incoming" / ("0" * 32)).write_text("in flight")


def refused(store: FileStore, said: str) -> None:
    """See each operation raise a ``PermissionError`` that says so."""
    for operation in (
        lambda: store.get("key"),
        lambda: store.set("key", "value"),
        lambda: store.delete("key"),
        lambda: store.lock("key").__enter__(),
    ):
        with pytest.raises(PermissionError, match=said):
            operation()


def test_a_folder_that_is_swapped_under_an_open_parent(place: Path) -> None:
    """The attack: whoever may write to a parent puts a link in the folder's place. No planted token is returned."""
    parent, elsewhere = place / "open", place / "elsewhere"
    parent.mkdir()
    store = FileStore(parent / "state" / "tokens")
    store.set("key", "value")
    plant(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    parent.chmod(0o777)

    def attack() -> None:
        (parent / "state").rename(parent / "old")
        (parent / "state").symlink_to(elsewhere)

    assert as_user(MALLORY, attack)
    refused(store, f"others may write to {parent}, and so swap .*: run 'chmod go-w {parent}'")
    assert sorted(elsewhere.rglob("*")) == before


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o775])
def test_a_parent_that_others_may_write_to(place: Path, mode: int) -> None:
    """A parent, however far up, that all or a group of several may write to is refused, and nothing is made in it."""
    parent = place / "open"
    parent.mkdir()
    os.chown(parent, 0, NOBODY)
    parent.chmod(mode)
    refused(FileStore(parent / "a" / "b" / "tokens"), f"chmod go-w {parent}'")
    assert not list(parent.iterdir())


def test_a_sticky_parent_is_safe(place: Path) -> None:
    """Where all may write but rename only what is theirs, as in /tmp, a folder of one's own is safe."""
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    store = FileStore(shared / "tokens")
    store.set("key", "value")
    assert store.get("key") == "value"


def test_a_folder_that_another_user_made_first(place: Path) -> None:
    """In a sticky parent mallory may make the folder before we do; it is refused."""
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    assert as_user(MALLORY, lambda: (shared / "tokens").mkdir(0o755))
    refused(FileStore(shared / "tokens"), "belongs to another user")
    refused(FileStore(shared / "tokens" / "mine"), "belongs to another user, who could swap")


def test_another_users_parent_is_refused(place: Path) -> None:
    """A folder of ours in another user's folder can be swapped by that user."""
    parent = place / "theirs"
    store = FileStore(parent / "tokens")
    store.set("key", "value")
    os.chown(parent, MALLORY, MALLORY)
    refused(store, f"{parent} belongs to another user, who could swap")


def test_roots_folders_are_safe_for_everybody(of_nobody: Path) -> None:
    """An unprivileged user's folder may be in root's, as every home is."""

    def work() -> None:
        store = FileStore(of_nobody / "tokens")
        store.set("key", "value")
        assert store.get("key") == "value"

    assert as_user(NOBODY, work)


def test_a_link_is_followed_and_looked_at(place: Path) -> None:
    """A link of ours leads where it leads; the way there has to be safe, too."""
    target = place / "far" / "away"
    FileStore(target / "tokens").set("key", "value")
    (place / "near").symlink_to("far/away")
    store = FileStore(place / "near" / "tokens")
    assert store.get("key") == "value"
    target.parent.chmod(0o777)
    refused(store, f"others may write to {target.parent}")


def test_another_users_link_is_refused(place: Path) -> None:
    """A link on the way that another user could turn elsewhere is refused, though it leads to our own folder."""
    FileStore(place / "real" / "tokens").set("key", "value")
    (place / "link").symlink_to("real")
    os.lchown(place / "link", MALLORY, MALLORY)
    refused(FileStore(place / "link" / "tokens"), "link belongs to another user")


def test_links_in_a_circle(place: Path) -> None:
    """Links that lead nowhere are the system's own error, as for any program."""
    (place / "one").symlink_to("two")
    (place / "two").symlink_to("one")
    with pytest.raises(OSError, match="Too many levels") as raised:
        FileStore(place / "one" / "tokens").get("key")
    assert raised.value.errno == errno.ELOOP


def test_a_parent_that_cannot_be_searched(of_nobody: Path) -> None:
    """A parent without the right to search is named, with what to do."""
    of_nobody.chmod(0o700)
    os.chown(of_nobody, 0, 0)
    assert as_user(
        NOBODY,
        lambda: refused(
            FileStore(of_nobody / "below" / "tokens"),
            f"{of_nobody} does not let this user in: run 'chmod u\\+x {of_nobody}' as its owner, or name another",
        ),
    )


@pytest.fixture
def private_group(of_nobody: Path) -> Iterator[tuple[int, Path]]:
    """A user with a group of their own, as useradd makes them, and their folder, which the group may write to."""
    made = subprocess.run(["useradd", "--no-create-home", "--user-group", "finapi-test"], capture_output=True)
    if made.returncode:
        pytest.skip("this machine makes no users")
    try:
        entry = pwd.getpwnam("finapi-test")
        os.chown(of_nobody, entry.pw_uid, entry.pw_gid)
        of_nobody.chmod(0o775)
        yield entry.pw_uid, of_nobody
    finally:
        subprocess.run(["userdel", "finapi-test"], check=True, capture_output=True)


def test_a_group_of_ones_own(private_group: tuple[int, Path]) -> None:
    """A parent that the user's private group may write to is safe: with a umask of 002 all folders are like that."""
    user, folder = private_group

    def work() -> None:
        refuse_open_way(folder / "..")
        FileStore(folder / "tokens").set("key", "value")

    assert as_user(user, work, folder.stat().st_gid)
    assert stat.S_IMODE((folder / "tokens").stat().st_mode) == 0o700


def test_a_group_of_ones_own_that_somebody_joined(private_group: tuple[int, Path]) -> None:
    """With a second member it is a group like any other."""
    user, folder = private_group
    subprocess.run(["usermod", "--append", "--groups", "finapi-test", "nobody"], check=True, capture_output=True)
    try:
        assert as_user(user, lambda: refused(FileStore(folder / "tokens"), f"others may write to {folder}"))
    finally:
        subprocess.run(["gpasswd", "--delete", "nobody", "finapi-test"], check=True, capture_output=True)


def test_a_user_whom_the_system_does_not_know(of_nobody: Path) -> None:
    """A container's user without an entry has no private group: a parent that a group may write to is refused."""
    os.chown(of_nobody, MALLORY, MALLORY)
    of_nobody.chmod(0o775)
    assert as_user(MALLORY, lambda: refused(FileStore(of_nobody / "tokens"), "others may write to"))


def test_where_there_are_no_users(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no such modes: folders and files are taken as they are, and must only be there."""
    monkeypatch.delattr(os, "geteuid")
    place.chmod(0o777)
    (place / "file").touch(0o666)
    refuse_shared_folder(place)
    refuse_open_file(place / "file")
    refuse_open_folder(place)
    with pytest.raises(FileNotFoundError):
        refuse_open_folder(place / "missing")


def test_a_file_behind_a_link(place: Path) -> None:
    """A link to a file is as safe as the file, and the way to both: one that others may swap is refused."""
    shared = place / "shared"
    shared.mkdir()
    target, link = shared / "file", place / "link"
    target.touch(0o600)
    link.symlink_to(target)
    refuse_open_file(link)
    target.chmod(0o604)
    with pytest.raises(PermissionError, match=f"others may open {target}: run 'chmod 600 {target}'"):
        refuse_open_file(link)
    target.chmod(0o600)
    shared.chmod(0o1777)
    with pytest.raises(PermissionError, match=f"others may write to {shared}"):
        refuse_open_file(link)
