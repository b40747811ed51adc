"""What EncryptedStore does beyond the contract: secrecy, rotation, misses."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from traceback import walk_tb

import pytest
from cryptography.fernet import Fernet

from finapi_session import EncryptedStore, MemoryStore

OLD, NEW = Fernet.generate_key(), Fernet.generate_key()


@pytest.fixture
def inner() -> MemoryStore:
    """The store that sees no token."""
    return MemoryStore()


def test_the_inner_store_sees_no_value(inner: MemoryStore) -> None:
    """What the inner store holds is ASCII, does not contain the value, and differs each time."""
    store = EncryptedStore(inner, NEW)
    store.set("key", "the secret")
    first = inner.get("sealed.key")
    assert first is not None
    assert first.isascii()
    assert "secret" not in first
    store.set("key", "the secret")
    assert inner.get("sealed.key") != first


@pytest.mark.parametrize(
    "keys",
    [NEW, NEW.decode(), [NEW], (NEW.decode(), OLD), lambda: NEW, lambda: NEW.decode(), lambda: [NEW, OLD]],
    ids=range(7),  # not by the keys, which are random: workers of one run must agree on the names
)
def test_keys_of_every_kind(inner: MemoryStore, keys: bytes | str | list[bytes] | Callable[[], bytes]) -> None:
    """Keys are bytes or text, one or several, or what a callable returns; the first one writes."""
    EncryptedStore(inner, keys).set("key", "value")
    assert EncryptedStore(inner, keys).get("key") == "value"
    assert EncryptedStore(inner, NEW).get("key") == "value"


@pytest.mark.parametrize("kind", [str, bytes])
def test_a_mistyped_key_shows_no_other_in_the_frames(inner: MemoryStore, kind: type) -> None:
    """An error tracker that keeps variables gets none of the keys that work, when one beside them does not."""
    keys = [NEW.decode() if kind is str else NEW, "typo" if kind is str else b"typo"]
    with pytest.raises(ValueError) as caught:
        EncryptedStore(inner, keys)
    frames = [frame for frame, _ in walk_tb(caught.tb) if frame.f_globals["__name__"] != __name__]
    assert frames and not any(NEW.decode() in repr(frame.f_locals) for frame in frames)


def test_keys_rotate(inner: MemoryStore) -> None:
    """A new first key reads what the old one wrote and writes what the old one does not read."""
    EncryptedStore(inner, OLD).set("key", "value")
    both = EncryptedStore(inner, [NEW, OLD])
    assert both.get("key") == "value"
    both.set("key", "value")
    assert EncryptedStore(inner, NEW).get("key") == "value"
    assert EncryptedStore(inner, OLD).get("key") is None


def test_a_callable_is_asked_each_time(inner: MemoryStore) -> None:
    """Keys that change in a vault change in the running process."""
    keys = [OLD]
    store = EncryptedStore(inner, lambda: keys)
    store.set("key", "value")
    keys.insert(0, NEW)
    assert store.get("key") == "value"
    store.set("key", "value")
    assert EncryptedStore(inner, NEW).get("key") == "value"


@pytest.mark.parametrize(
    "found",
    ["", "plain text", "schlüssel", "{}", Fernet(OLD).encrypt(b"value").decode()],
    ids=["nothing", "ascii", "umlaut", "json", "another key's"],
)
def test_what_no_key_opens_is_a_miss(inner: MemoryStore, caplog: pytest.LogCaptureFixture, found: str) -> None:
    """It reads as ``None`` with one warning, which holds neither what was found nor the key."""
    inner.set("sealed.the key", found)
    with caplog.at_level(logging.WARNING, "finapi_session"):
        assert EncryptedStore(inner, NEW).get("the key") is None
    [record] = caplog.records
    assert (record.name, record.levelname) == ("finapi_session", "WARNING")
    assert record.getMessage() == "no key opens the value in <MemoryStore with 1 values>; it is taken for nothing"


def test_nothing_is_a_miss_without_a_warning(inner: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    """A key that was never set is no reason to warn."""
    assert EncryptedStore(inner, NEW).get("key") is None
    assert not caplog.records


def test_values_cannot_be_swapped(inner: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever can write to the inner store cannot pass one user's token off as another's."""
    store = EncryptedStore(inner, NEW)
    store.set("alice", "her token")
    store.set("bob", "his token")
    inner.set("sealed.bob", inner.get("sealed.alice") or "")
    assert store.get("bob") is None
    assert len(caplog.records) == 1


@pytest.mark.parametrize("keys", ["short", b"short", [NEW, b"short"], [], "ü" * 44], ids=range(5))
def test_bad_keys_are_refused_at_once(inner: MemoryStore, keys: str | bytes | list[bytes]) -> None:
    """A key that is none raises ``ValueError`` when the store is made."""
    with pytest.raises(ValueError, match="Fernet|ASCII"):
        EncryptedStore(inner, keys)


def test_the_lock_is_the_inner_stores(inner: MemoryStore) -> None:
    """Who holds the lock of the inner store excludes us."""
    inner.lock_timeout = 0.05
    with inner.lock("sealed.key"), pytest.raises(TimeoutError), EncryptedStore(inner, NEW).lock("key"):
        raise AssertionError("two holders")


def test_it_pickles(inner: MemoryStore) -> None:
    """A store with keys that are not a callable goes to other processes."""
    store = EncryptedStore(inner, [NEW, OLD])
    store.set("key", "value")
    assert pickle.loads(pickle.dumps(store)).get("key") == "value"


def test_repr_shows_no_key(inner: MemoryStore) -> None:
    """The repr names the inner store only."""
    assert repr(EncryptedStore(inner, NEW)) == "EncryptedStore(<MemoryStore with 0 values>)"


def test_who_has_no_keys_neither_reads_nor_replaces_what_is_sealed(inner: MemoryStore) -> None:
    """A reader of the plain store works on names of its own, so encryption may be switched on while others run."""
    sealed = EncryptedStore(inner, NEW)
    sealed.set("key", "value")
    assert inner.get("key") is None
    inner.set("key", "plain")
    assert sealed.get("key") == "value"
    with sealed.lock("key"), inner.lock("key"):
        sealed.delete("key")
    assert (sealed.get("key"), inner.get("key")) == (None, "plain")
