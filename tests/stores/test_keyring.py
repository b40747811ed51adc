"""What KeyringStore does beyond the contract: long values, writers that die, machines without a vault."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.backends import fail, null
from keyring.backends.chainer import ChainerBackend
from keyring.errors import NoKeyringError, PasswordDeleteError

from finapi_session import KeyringStore

from . import vault


class Killed(BaseException):
    """The writer is dead."""


class Vault(KeyringBackend):
    """A vault in memory with Windows' limit, in which a writer dies after so many steps."""

    priority = 1

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries: dict[tuple[str, str], str] = {}
        self.steps = itertools.count()
        self.dies_at = -1

    def get_password(self, service: str, username: str) -> str | None:
        return self.entries.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self._step()
        assert len(password.encode("utf-16-le")) <= 2560
        self.entries[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self._step()
        if self.entries.pop((service, username), None) is None:
            raise PasswordDeleteError("not found")

    def _step(self) -> None:
        if next(self.steps) == self.dies_at:
            raise Killed


@pytest.fixture(autouse=True)
def safe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Vault]:
    """The vault that keyring finds."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    before = keyring.core._keyring_backend
    made = Vault()
    keyring.set_keyring(made)
    yield made
    monkeypatch.setattr(keyring.core, "_keyring_backend", before)


VALUES = [
    "",
    "short",
    "a" * 1199,
    "b" * 1200,
    "c" * 1201,
    "ü" * 600,
    "\U0001f511" * 599,
    "\U0001f511" * 5000,
    "d" * 9000,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{value[:1]}*{len(value)}")
def test_every_length_fits(safe: Vault, value: str) -> None:
    """Values at and over the limit come back whole, and after ``delete`` nothing is left in the vault."""
    store = KeyringStore()
    for _ in range(3):
        store.set("key", value)
        assert store.get("key") == value
    store.delete("key")
    assert not safe.entries


def test_a_short_value_is_one_entry(safe: Vault) -> None:
    """It needs one entry, whatever was there before."""
    store = KeyringStore()
    for value in ("long" * 1000, "longer" * 1000, "short"):
        store.set("key", value)
    assert len(safe.entries) == 1


def test_no_part_of_an_old_value_stays(safe: Vault) -> None:
    """After a value was replaced nothing of it is left in the vault."""
    store = KeyringStore()
    for value in ("a" * 9000, "b" * 4000, "c" * 9000, "d" * 4000, "e"):
        store.set("key", value)
        kept = [entry for entry in safe.entries.values() if ":" not in entry and not entry.startswith("=")]
        assert set("".join(kept)) <= {value[0]}


@pytest.mark.parametrize("lengths", list(itertools.permutations([10, 3000, 9000], 2)), ids=str)
def test_a_writer_killed_at_any_step(safe: Vault, lengths: tuple[int, int]) -> None:
    """Whichever step is its last, the value is the old or the new one, and the next ``set`` cleans up."""
    old, new = "o" * lengths[0], "n" * lengths[1]
    seen = set()
    for step in range(30):
        store = KeyringStore()
        store.set("key", old)
        safe.steps, safe.dies_at = itertools.count(), step
        try:
            store.set("key", new)
        except Killed:
            pass
        else:
            break
        finally:
            safe.dies_at = -1
        seen.add(store.get("key"))
        assert seen <= {old, new}
        for length in (9000, 3000, 10):
            store.set("key", "x" * length)
            assert store.get("key") == "x" * length
        assert len(safe.entries) == 1
    else:
        raise AssertionError("never done")
    assert old in seen
    assert store.get("key") == new


def test_a_deleter_killed_at_any_step(safe: Vault) -> None:
    """A long value that was half deleted is gone, and the next ``delete`` removes the rest."""
    store = KeyringStore()
    for step in range(9):
        store.set("key", "o" * 9000)
        safe.steps, safe.dies_at = itertools.count(), step
        with pytest.raises(Killed):
            store.delete("key")
        safe.dies_at = -1
        assert store.get("key") == ("o" * 9000 if step == 0 else None)
        store.delete("key")
        assert not safe.entries


def test_a_value_with_a_part_gone_is_none(safe: Vault) -> None:
    """If someone removed or changed a part in the vault, the value is a miss and no mix."""
    store = KeyringStore()
    store.set("key", "o" * 9000)
    part = next(name for name, entry in safe.entries.items() if set(entry) == {"o"})
    safe.entries[part] = "x" * 1200
    assert store.get("key") is None
    del safe.entries[part]
    assert store.get("key") is None


def test_what_is_not_ours_is_a_value_error(safe: Vault) -> None:
    """An entry that another program wrote raises ``ValueError``, and ``set`` mends it."""
    store = KeyringStore()
    store.set("key", "value")
    [name] = safe.entries
    safe.entries[name] = "something"
    with pytest.raises(ValueError, match="not enough values"):
        store.get("key")
    store.set("key", "value")
    assert store.get("key") == "value"


def test_another_deleter_comes_first(safe: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that vanishes between the look and the ``delete`` is no error."""
    store = KeyringStore()
    store.set("key", "o" * 3000)

    def vanish(self: Vault, service: str, username: str) -> None:
        del self.entries[service, username]
        raise PasswordDeleteError("not found")

    monkeypatch.setattr(Vault, "delete_password", vanish)
    store.delete("key")
    assert not safe.entries


def test_a_reader_between_two_writes(safe: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader whose parts are replaced under its hands looks again and gets the newer value whole."""
    store = KeyringStore()
    store.set("key", "a" * 3000)
    real, reads = Vault.get_password, itertools.count()

    def read(self: Vault, service: str, username: str) -> str | None:
        if next(reads) == 2:
            KeyringStore().set("key", "b" * 3000)
            KeyringStore().set("key", "c" * 3000)
        return real(self, service, username)

    monkeypatch.setattr(Vault, "get_password", read)
    assert store.get("key") == "c" * 3000


def test_services_are_apart(safe: Vault) -> None:
    """Two services share neither values nor locks; each entry's service tells whose it is."""
    one, two = KeyringStore("one", lock_timeout=0.1), KeyringStore("two", lock_timeout=0.1)
    one.set("key", "value")
    assert two.get("key") is None
    with one.lock("key"), two.lock("key"):
        pass
    [(service, username)] = safe.entries
    assert service.startswith("one:")
    assert username == "one"


def test_a_lock_waits_for_a_bounded_time(tmp_path: Path) -> None:
    """The lock is a file in the user's state folder; waiting for it ends with ``TimeoutError``."""
    store = KeyringStore(lock_timeout=0.1)
    with store.lock("key"), pytest.raises(TimeoutError), store.lock("key"):
        raise AssertionError("two holders")
    assert len(list((tmp_path / "finapi_session" / "locks").iterdir())) == 1


@pytest.mark.parametrize("operation", ["get", "set", "delete"])
def test_without_a_vault(operation: str) -> None:
    """A machine without a backend raises an error that names what to take instead."""
    keyring.set_keyring(fail.Keyring())  # type: ignore[no-untyped-call]
    arguments: tuple[Any, ...] = ("key", "value") if operation == "set" else ("key",)
    with pytest.raises(NoKeyringError, match="install a backend for it, or .* FileStore, encrypted by EncryptedStore"):
        getattr(KeyringStore(), operation)(*arguments)


def test_threads_on_a_vault_of_files(tmp_path: Path) -> None:
    """A reader against a writer of long and short values on a vault in files sees none torn."""
    store = vault.open_store(tmp_path)
    stop, torn = threading.Event(), []

    def write() -> None:
        for number in itertools.count():
            store.set("key", str(number % 10) * (4000 if number % 2 else 10))
            if stop.is_set():
                return

    store.set("key", "0" * 10)
    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(100):
        value = store.get("key")
        if value is None or len(set(value)) != 1 or len(value) not in (10, 4000):
            torn.append(value)
    stop.set()
    writer.join()
    assert not torn


def test_repr() -> None:
    """The repr names the service."""
    assert repr(KeyringStore("app")) == "KeyringStore('app')"


# --- backends that keep plain text --------------------------------------------------------------------------------


class PlaintextKeyring(Vault):
    """A backend that says by its name what it does, whatever priority somebody gave it."""

    priority = 9


class Stopgap(Vault):
    """A backend that keyring itself does not recommend."""

    priority = 0.5


PLAIN: list[type[Vault]] = [PlaintextKeyring, Stopgap]


@pytest.mark.parametrize("backend", PLAIN)
def test_a_backend_that_keeps_plain_text_is_refused(backend: type[Vault]) -> None:
    """The store cannot be made on it; the error names it, and what to do instead."""
    keyring.set_keyring(backend())
    with pytest.raises(ValueError, match=f"{backend.__name__}.*plain text.*EncryptedStore.*plaintext=True"):
        KeyringStore()


@pytest.mark.parametrize("backend", PLAIN)
def test_plain_text_that_is_wanted(backend: type[Vault]) -> None:
    """Whoever says so gets it."""
    keyring.set_keyring(made := backend())
    store = KeyringStore(plaintext=True)
    store.set("key", "value")
    assert store.get("key") == "value" and made.entries


def test_a_backend_that_is_put_in_later(safe: Vault) -> None:
    """Nothing is written to a backend that took the vault's place after the store was made."""
    store = KeyringStore()
    keyring.set_keyring(made := Stopgap())
    with pytest.raises(ValueError, match="plain text"):
        store.set("key", "value")
    assert not made.entries and not safe.entries


@pytest.mark.parametrize(("first", "refused"), [(Vault, False), (Stopgap, True)])
def test_several_backends_in_a_chain(first: type[Vault], refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a chain, what counts is the one that is written to: the first."""
    monkeypatch.setattr(ChainerBackend, "backends", [first(), Stopgap()])
    keyring.set_keyring(ChainerBackend())  # type: ignore[no-untyped-call]
    if refused:
        with pytest.raises(ValueError, match="Stopgap"):
            KeyringStore()
    else:
        KeyringStore().set("key", "value")


def test_the_plain_text_backend_that_people_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """keyrings.alt's file in plain text is refused, and not written; with ``plaintext=True`` it is."""
    file = pytest.importorskip("keyrings.alt.file", reason="keyrings.alt is not installed")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    keyring.set_keyring(file.PlaintextKeyring())
    with pytest.raises(ValueError, match="PlaintextKeyring"):
        KeyringStore()
    assert not list(tmp_path.rglob("*.cfg"))
    store = KeyringStore(plaintext=True)
    store.set("key", "value" * 1000)
    assert store.get("key") == "value" * 1000 and list(tmp_path.rglob("*.cfg"))


@pytest.mark.parametrize("backend", [fail.Keyring, null.Keyring])
def test_what_keeps_nothing_keeps_no_plain_text(backend: type[KeyringBackend]) -> None:
    """A machine without a vault, and keyring's own backend that forgets all, are none of these."""
    keyring.set_keyring(backend())  # type: ignore[no-untyped-call]
    KeyringStore()
