"""A store that never fails its caller: each outage is told once, what hangs is left alone, no lock stays taken."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from finapi_session import MemoryStore, TokenEvent
from finapi_session.cell import Cell, Cells
from finapi_session.envelope import unverified
from finapi_session.events import Journal
from finapi_session.fallback import LOOK_AGAIN, Fallback, Read, StoreLock
from finapi_session.identity import Credentials
from finapi_session.knowledge import NOTHING, Grant, Knowledge, Refusal, rejected, token_id
from finapi_session.stores.protocol import AdviceError
from finapi_session.testing import Sandbox
from finapi_session.tokens import Token

from .links import Link

NOW = time.time()
URL = "https://sandbox.finapi.io/oauth/token"


class Unlocking(Link):
    """A link whose lock fails on the way out."""

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Lock, and fail to give it back."""
        with super().lock(key):
            yield
        raise ConnectionError("redis://:store-password@host is gone")


def opened(store: MemoryStore) -> tuple[Fallback, list[TokenEvent]]:
    """Return what a process has of *store*, and the events that it tells."""
    events: list[TokenEvent] = []
    return Fallback(store, Journal("https://sandbox.finapi.io", events.append)), events


def celled(store: MemoryStore) -> tuple[Cells, Cell]:
    """Return the cells of a process on *store*, and alice's."""
    cells = Cells(opened(store)[0])
    return cells, cells.of(Credentials("id", "secret", "alice"), URL)


def token(name: str, serial: int = 1) -> Knowledge:
    """Return a grant of an access token called *name*."""
    return Knowledge((Grant(Token(name, NOW + 3600, f"refresh {name}"), serial),))


def refused(*names: str, serial: int = 1) -> Knowledge:
    """Return a refused password of each name."""
    return Knowledge(refusals={f"password {name}": Refusal("InvalidGrantError", "no", serial) for name in names})


def known(store: MemoryStore) -> Knowledge:
    """Return what a new process reads."""
    cells, cell = celled(store)
    return cells.load(cell, refusals=True).knowledge


# --- what is no store ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("store", "says"), [(MemoryStore, "not the class MemoryStore"), ({}, "dict lacks set")])
def test_what_is_no_store_is_told_at_once(store: Any, says: str) -> None:
    """A class instead of an object, and an object without the methods, are errors that say so."""
    with pytest.raises(TypeError, match=says):
        opened(store)


# --- outages ------------------------------------------------------------------------------------------------------


def test_a_store_that_works_is_read_and_written() -> None:
    """Whether it answered is told apart from whether it had something."""
    fallback, events = opened(MemoryStore())
    assert fallback.get("key") == Read(True, None)
    assert fallback.set("key", "text") and fallback.get("key") == Read(True, "text")
    assert fallback.delete("key") and fallback.get("key") == Read(True, None)
    assert events == []


@pytest.mark.parametrize("down", [{"get"}, {"set"}, {"delete"}, {"lock"}, {"get", "set", "delete", "lock"}])
def test_a_failing_store_costs_one_warning(down: set[str]) -> None:
    """Whatever fails, the caller goes on and is told once, by the error's name and not by its words."""
    fallback, events = opened(Link(None, *down))
    for _ in range(3):
        with fallback.lock("key") as lock:
            assert lock.acquire() is ("lock" not in down)
            assert fallback.get("key").answered is ("get" not in down)
            assert fallback.set("key", "text") is ("set" not in down)
            assert fallback.delete("key") is ("delete" not in down)
    assert [(event.kind, event.identity) for event in events] == [("store_failed", "Link")]
    verb, _, rest = str(events[0].reason).partition(": ")
    assert verb in down and rest == "OSError; going on with what is in memory"


def test_a_lock_that_fails_on_the_way_out_is_a_warning() -> None:
    """What was done under it is done; the store's own words, which may hold its password, are not told."""
    fallback, events = opened(Unlocking())
    with fallback.lock("key") as lock:
        assert lock.acquire()
    assert len(events) == 1 and "store-password" not in str(events[0]) and "ConnectionError" in str(events[0])


@pytest.mark.parametrize("verb", ["get", "set", "delete", "lock"])
def test_each_outage_is_warned_of(verb: str) -> None:
    """After the store has worked again, the next outage is a new one."""
    store = Link()
    fallback, events = opened(store)
    for down in ({verb}, set(), {verb}):
        store.down = down
        with fallback.lock("key") as lock:
            lock.acquire()
            fallback.get("key")
            fallback.set("key", "text")
            fallback.delete("key")
    assert len(events) == 2


def test_a_file_that_may_not_be_touched_is_named() -> None:
    """Of a store's own advice the text is told: it says which file, and how to mend it."""

    class Forbidding(MemoryStore):
        def get(self, key: str) -> str | None:
            raise AdviceError("others may write to /var/lib/tokens: run 'chmod 700 /var/lib/tokens'")

    fallback, events = opened(Forbidding())
    assert not fallback.get("key").answered
    assert "get: others may write to /var/lib/tokens: run 'chmod 700 /var/lib/tokens'; going on" in str(events[0])


# --- what hangs ---------------------------------------------------------------------------------------------------


def test_a_store_that_hangs_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that took more than a second to fail is not asked for 10 s, then by one caller; if it is well, by all."""
    store = Link(None, "get")
    store.seconds = 1.1
    fallback, _ = opened(store)
    assert not fallback.get("key").answered and fallback.rests()
    assert not fallback.get("key").answered and not fallback.set("key", "text")
    with fallback.lock("key") as lock:
        assert not lock.acquire()
    assert store.asked == {"get": 1, "set": 0, "delete": 0, "lock": 0}
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + LOOK_AGAIN)
    store.mend()
    assert fallback.get("key").answered and not fallback.rests()
    assert fallback.set("key", "text")


def test_a_store_that_fails_at_once_is_asked_each_time() -> None:
    """That costs nothing, and it may be well again."""
    store = Link(None, "get")
    fallback, _ = opened(store)
    for _ in range(3):
        assert not fallback.get("key").answered
    assert store.asked["get"] == 3 and not fallback.rests()


def test_a_store_that_is_slow_but_answers_is_no_failure() -> None:
    """What takes its time and works is asked again."""

    class Slow(MemoryStore):
        def get(self, key: str) -> str | None:
            time.sleep(1.1)
            return "text"

    fallback, events = opened(Slow())
    assert fallback.get("key") == Read(True, "text") and not fallback.rests() and events == []


# --- locks --------------------------------------------------------------------------------------------------------


def test_a_lock_is_taken_only_if_it_is_wanted() -> None:
    """Made and ended without being acquired, it leaves the store alone."""
    store = Link()
    with opened(store)[0].lock("key"):
        pass
    assert store.asked["lock"] == 0


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_of_the_body_passes_through_the_lock(error: type[BaseException]) -> None:
    """Whether the lock was obtained or not, what the body raises comes out as it is, and the lock is free."""
    for store in (Link(), Link(None, "lock"), Unlocking()):
        fallback, _ = opened(store)
        for _ in range(2):
            with pytest.raises(error, match="mine"), fallback.lock("key") as lock:
                lock.acquire()
                raise error("mine")
        with store.shared.lock("key"):
            pass


class Leased(MemoryStore):
    """A store whose lock has a lease; ``down`` if it cannot be extended."""

    def __init__(self) -> None:
        super().__init__()
        self.extended = 0
        self.down = False

    @contextmanager
    def lock(self, key: str) -> Iterator[Any]:
        """Lock, with a lease."""
        with super().lock(key):
            yield self

    def extend(self) -> None:
        """Extend it."""
        self.extended += 1
        if self.down:
            raise OSError("lost")


def test_a_lease_is_extended_where_there_is_one() -> None:
    """A lock that failed, or has no lease, is left as it is; one that cannot be extended is a warning."""
    for store in (Link(), Link(None, "lock")):
        with opened(store)[0].lock("key") as lock:
            lock.acquire()
            lock.extend()
    leased = Leased()
    fallback, events = opened(leased)
    with fallback.lock("key") as lock:
        lock.extend()
        lock.acquire()
        lock.extend()
        assert leased.extended == 1 and events == []
        leased.down = True
        lock.extend()
    assert leased.extended == 2 and len(events) == 1


def test_what_is_locked_is_what_is_kept(sandbox: Sandbox) -> None:
    """The lock of a renewal is that of the identity's own key: renewals of other identities do not wait for it."""
    keys: list[str] = []

    class Listening(Link):
        def lock(self, key: str) -> Any:
            keys.append(key)
            return super().lock(key)

        def set(self, key: str, value: str) -> None:
            keys.append(key)
            super().set(key, value)

    with sandbox.session("alice", store=Listening()) as alice:
        alice.fetch_token()
    assert len(keys) >= 2 and len(set(keys)) == 1


def test_a_lock_is_an_object_of_its_own() -> None:
    """Two of the same key are two turns."""
    fallback, _ = opened(MemoryStore(lock_timeout=0.05))
    with fallback.lock("key") as one, fallback.lock("key") as other, fallback.lock("another key") as third:
        assert isinstance(one, StoreLock) and one.acquire()
        assert not other.acquire() and third.acquire()


# --- a store that lags --------------------------------------------------------------------------------------------


def test_what_was_read_is_known_when_the_store_goes_down() -> None:
    """A token or refusal that was seen in the store counts while the store is down."""
    store = Link()
    writer, theirs = celled(store)
    writer.save(theirs, token("seen").merge(refused("wrong")))
    cells, cell = celled(store)
    cells.load(cell, refusals=True)
    store.cut()
    view = cells.load(cell, refusals=True)
    assert not view.read and view.knowledge.grants == token("seen").grants and list(view.knowledge.refusals)


def test_what_a_store_did_not_take_counts_until_it_has_something_newer() -> None:
    """On a read-only store our newer token counts, and a sibling's still newer one goes before."""
    shared = MemoryStore()
    store = Link(shared, "set")
    others, theirs = celled(shared)
    others.save(theirs, token("old"))
    cells, cell = celled(store)
    assert cells.save(cell, token("ours", 2), fresh=True).knowledge.grants[0].token.access_token == "ours"
    assert cell.lags
    others.save(theirs, token("theirs", 3))
    assert cells.load(cell, refusals=False).knowledge.grants[0].token.access_token == "theirs"
    assert known(shared).grants[0].token.access_token == "theirs"


def test_what_a_store_did_not_take_is_written_when_it_is_back() -> None:
    """Token, rejection and refusal are added to what siblings have written meanwhile, under the lock."""
    shared = MemoryStore()
    store = Link(shared, "get", "set", "lock")
    cells, cell = celled(store)
    facts = token("ours", 2).merge(refused("wrong", serial=2)).merge(rejected([token_id("dead")], 2))
    cells.save(cell, facts, fresh=True)
    others, theirs = celled(shared)
    others.save(theirs, token("theirs", 3).merge(refused("other", serial=3)))
    store.mend()
    store.asked = dict.fromkeys(store.asked, 0)
    cells.settle()
    assert store.asked["lock"] == 1 and not cell.lags
    found = known(shared)
    assert {grant.token.access_token for grant in found.grants} == {"ours", "theirs"}
    assert found.grants[0].token.access_token == "theirs"
    assert set(found.refusals) == {"password wrong", "password other"} and found.rejections == {token_id("dead"): 2}


def test_what_cannot_be_read_is_not_written_over() -> None:
    """While a store takes values but gives none, a sibling's token stays; a refusal is written all the same."""
    shared = MemoryStore()
    others, theirs = celled(shared)
    others.save(theirs, token("theirs", 3))
    cells, cell = celled(Link(shared, "get"))
    cells.save(cell, token("ours", 2).merge(refused("wrong", serial=2)))
    assert [grant.token.access_token for grant in known(shared).grants] == ["theirs"]
    assert list(known(shared).refusals) == ["password wrong"]


def test_what_is_fresh_from_finapi_is_written_even_blind() -> None:
    """It may be the only one that lives: what it replaced is dead anyhow."""
    shared = MemoryStore()
    cells, cell = celled(Link(shared, "get"))
    cells.save(cell, token("new", 2), fresh=True)
    assert [grant.token.access_token for grant in known(shared).grants] == ["new"]


def test_what_arrived_although_the_store_said_no_is_not_written_again() -> None:
    """A write whose answer was lost is found in the store, and done with."""
    store = Link()
    cells, cell = celled(store)
    store.lost = 1
    cells.save(cell, token("ours"), fresh=True)
    assert cell.lags
    cells.load(cell, refusals=True)
    writes = store.asked["set"]
    cells.settle()
    assert not cell.lags and store.asked["set"] == writes


def test_what_is_known_already_is_not_written_again() -> None:
    """Nothing is written that the store has."""
    store = Link()
    cells, cell = celled(store)
    for _ in range(3):
        cells.save(cell, token("ours").merge(refused("wrong")))
    assert store.asked["set"] == 2


def test_a_store_that_did_not_take_a_value_is_tried_again_after_a_while() -> None:
    """Not at each call: what it lacks is tried again 10 s later."""
    store = Link(None, "set")
    cells, cell = celled(store)
    cells.save(cell, token("ours"), fresh=True)
    assert cell.lags and not cells.load(cell, refusals=True).lags
    assert 0 < cell.early_from - time.time() <= LOOK_AGAIN


def test_what_was_buried_stays_dead_when_the_store_has_it() -> None:
    """A token that was revoked while the store was down does not come back with it."""
    shared = MemoryStore()
    store = Link(shared)
    cells, cell = celled(store)
    cells.save(cell, token("revoked", 1))
    store.cut()
    cells.save(cell, rejected([token_id("revoked"), token_id("refresh revoked")], 2))
    store.mend()
    assert cells.load(cell, refusals=True).knowledge.grants == ()
    cells.settle()
    assert unverified(shared.get(cell.key) or "").grants == () and known(shared).rejections != {}


@pytest.mark.parametrize(("serial", "alive"), [(1, False), (3, True)], ids=["before", "after"])
@pytest.mark.parametrize("buried_by", ["us", "a sibling"])
def test_of_a_token_and_its_burial_the_later_one_counts(buried_by: str, serial: int, alive: bool) -> None:
    """It is no matter whose is in the store, and whose the store did not take."""
    shared = MemoryStore()
    burial = rejected([token_id("T"), token_id("refresh T")], 2)
    ours, theirs = (burial, token("T", serial)) if buried_by == "us" else (token("T", serial), burial)
    store = Link(shared, "get", "set")
    cells, cell = celled(store)
    cells.save(cell, ours, fresh=True)
    others, other = celled(shared)
    others.save(other, theirs)
    store.mend()
    assert bool(cells.load(cell, refusals=True).knowledge.grants) is alive
    cells.settle()
    assert bool(known(shared).grants) is alive


def test_a_refresh_token_refused_while_the_store_was_down_is_dropped_there() -> None:
    """Only that one: the access token beside it, and what replaced it meanwhile, stay."""
    shared = MemoryStore()
    store = Link(shared)
    cells, cell = celled(store)
    cells.save(cell, token("T", 1))
    store.down = {"set"}
    cells.save(cell, rejected([token_id("refresh T")], 2))
    others, theirs = celled(shared)
    others.save(theirs, token("T2", 3))
    store.mend()
    cells.settle()
    found = known(shared)
    assert [(grant.token.access_token, found.renews(grant)) for grant in found.grants] == [("T2", True), ("T", False)]


def test_settling_stops_where_the_store_fails() -> None:
    """A process that ends does not ask a store that is down once for each of its users."""
    store = Link(None, "set")
    cells = celled(store)[0]
    for number in range(10):
        cells.of(Credentials("id", "secret", f"user {number}"), URL).learn(token("T"))
    store.asked = dict.fromkeys(store.asked, 0)
    cells.settle()
    assert store.asked["set"] == 1


def test_a_copy_of_what_is_known_goes_its_own_way() -> None:
    """Nothing is shared with what it was before: a merge makes a new value."""
    cells, cell = celled(MemoryStore())
    before = cell.knowledge
    cells.save(cell, token("T"))
    assert before is NOTHING and NOTHING.grants == () and cell.knowledge is not before


@pytest.mark.parametrize("down", [{"get"}, {"set"}, {"delete"}, {"lock"}, {"get", "set", "delete", "lock"}])
def test_a_session_on_a_failing_store_works(down: set[str], sandbox: Sandbox) -> None:
    """No call fails, one token call, one warning."""
    events: list[TokenEvent] = []
    with sandbox.session("alice", store=Link(None, *down), on_event=events.append) as alice:
        for _ in range(3):
            assert alice.get("/api/v2/accounts").ok
    assert sandbox.count("/oauth/token") == 1
    assert sum(event.kind == "store_failed" for event in events) <= 1


def test_a_listener_that_raises_costs_nothing(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """What `on_event` raises is logged by name only, and the call goes on."""

    def listener(_: TokenEvent) -> None:
        raise ValueError("her-password")

    with sandbox.session(on_event=listener) as session:
        assert session.get("/api/v2/banks").ok
    assert "on_event raised ValueError" in caplog.text and "her-password" not in caplog.text


def test_a_lock_that_raises_what_it_was_told_of_is_no_failing_store() -> None:
    """Whatever a caller's own context does with the error of its body, that is not the store's."""

    class Raising:
        """A context that raises the error of its body itself."""

        def __enter__(self) -> None: ...

        def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
            if error is not None:
                raise error

    class Own(MemoryStore):
        """A store with such locks."""

        def lock(self, key: str) -> Any:
            return Raising()

    fallback, events = opened(Own())
    with pytest.raises(LookupError), fallback.lock("key") as lock:
        assert lock.acquire()
        raise LookupError
    assert events == []
