"""Records and their ledger: what is kept of an identity, and what happens when the store fails."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from finapi_session.errors import InvalidGrantError, UserLockedError
from finapi_session.events import Journal, TokenEvent
from finapi_session.ledger import Ledger
from finapi_session.record import REST, Record, Refusal
from finapi_session.stores.memory import MemoryStore
from finapi_session.testing import Sandbox
from finapi_session.tokens import Token

NOW = 1_700_000_000.0


class Failing(MemoryStore):
    """A store whose methods named in `down` fail."""

    def __init__(self, *down: str) -> None:
        super().__init__()
        self.down = set(down)
        self.asked: defaultdict[str, list[str]] = defaultdict(list)

    def _suffer(self, verb: str, key: str) -> None:
        self.asked[verb].append(key)
        if verb in self.down:
            raise ConnectionError(f"redis://:store-password@host cannot {verb}")

    def get(self, key: str) -> str | None:
        """Read, or fail."""
        self._suffer("get", key)
        return super().get(key)

    def set(self, key: str, value: str) -> None:
        """Write, or fail."""
        self._suffer("set", key)
        super().set(key, value)

    def delete(self, key: str) -> None:
        """Delete, or fail."""
        self._suffer("delete", key)
        super().delete(key)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Lock, or fail on the way in, or on the way out."""
        self._suffer("lock", key)
        with super().lock(key):
            yield
        self._suffer("unlock", key)


def opened(store: MemoryStore) -> tuple[Ledger, list[TokenEvent]]:
    """A ledger on the store, and the events that it tells."""
    events: list[TokenEvent] = []
    return Ledger(store, Journal("https://sandbox.finapi.io", events.append)), events


def record(name: str, serial: float = 1.0) -> Record:
    """A record of a token called *name*."""
    return Record(Token(name), serial)


def test_records_come_back_whole() -> None:
    """Token, refusals and marks survive their text."""
    refusal = Refusal.of(InvalidGrantError("no", status=400, code="c", description="d"), for_good=True, now=NOW)
    whole = Record(Token("t", NOW, "r", NOW - 5, "all"), 7.5, "print", True, {"print": refusal})
    assert Record.loads(whole.dumps()) == whole
    assert Record.loads(Record().dumps()) == Record()


def test_serials_grow_whatever_the_clock_does() -> None:
    """A record is newer than the one it follows, also after the clock was set back."""
    first = record("a", NOW)
    assert first.next(NOW + 5).serial == NOW + 5
    assert first.serial < first.next(NOW - 86400).serial < first.next(NOW - 86400).next(0).serial


def test_a_refused_password_counts_for_good_and_others_rest() -> None:
    """Only what finAPI said of a password stays; the rest is over after REST seconds, or if the clock was set back."""
    wrong = Refusal.of(InvalidGrantError("no", status=400), for_good=True, now=NOW)
    locked = Refusal.of(UserLockedError("no", status=423), for_good=False, now=NOW)
    assert wrong.holds(NOW + 1e9)
    assert locked.holds(NOW) and locked.holds(NOW + REST - 1)
    assert not locked.holds(NOW + REST) and not locked.holds(NOW - 86400)
    assert type(locked.to_error()) is UserLockedError and locked.to_error().status == 423


def test_nothing_is_never_fresh() -> None:
    """A record without a token asks for one, whatever the clock says."""
    assert Record().fresh_until(60) < 0


def test_a_sticky_token_is_fresh_until_it_expires() -> None:
    """finAPI would give the same again before; another one is renewed *leeway* seconds earlier."""
    token = Token("token", expires_at=NOW + 3600, issued_at=NOW)
    assert Record(token, sticky=True).fresh_until(60) == NOW + 3600
    assert Record(token).fresh_until(60) == NOW + 3540


def test_refusals_are_bounded() -> None:
    """Somebody who guesses passwords does not grow the record without end; the newest guesses are kept."""
    kept = Record()
    for number in range(20):
        refusal = Refusal("InvalidGrantError", f"no {number}")
        kept = kept.next(NOW, refusals=kept.refused(f"print {number}", refusal))
    assert list(kept.refusals) == [f"print {number}" for number in range(12, 20)]


def with_refusal(**changes: object) -> str:
    """The text of a record with a refusal that is no refusal of ours."""
    kept = json.loads(Record(refusals={"print": Refusal("InvalidGrantError", "no")}).dumps())
    kept["refusals"]["print"].update(changes)
    return json.dumps(kept)


JUNK = ["", "{", "[]", "null", "7", '"text"', "{}", '{"token": 5}', "[" * 100_000]
NO_REFUSALS = [with_refusal(error="OSError"), with_refusal(what=5), with_refusal(status="no"), with_refusal(new=1)]


@pytest.mark.parametrize("junk", JUNK + NO_REFUSALS)
def test_a_corrupt_value_is_a_miss(junk: str) -> None:
    """What is no record of ours is warned of once and counts as nothing."""
    store = MemoryStore()
    ledger, events = opened(store)
    store.set("key", junk)
    assert ledger.load("key") == Record() == ledger.load("key")
    assert [event.kind for event in events] == ["store_failed"]
    assert str(events[0].reason).startswith("get: what it holds is no record of ours, and is taken for nothing; ")
    ledger.save("key", record("new"))
    assert ledger.load("key") == record("new")
    store.set("key", junk)
    assert ledger.load("key") == record("new")
    assert len(events) == 2


@pytest.mark.parametrize("down", [{"get"}, {"set"}, {"delete"}, {"lock"}, {"unlock"}, {"get", "set", "delete", "lock"}])
def test_a_failing_store_costs_one_warning(down: set[str]) -> None:
    """Whatever fails, the ledger goes on with what it knows, and warns once, without the store's own words."""
    store = Failing(*down)
    ledger, events = opened(store)
    for serial in range(1, 4):
        with ledger.lock("key"):
            ledger.save("key", record("a", serial))
            assert ledger.load("key") == record("a", serial)
    ledger.forget("key")
    assert ledger.load("key").token is None
    assert [event.kind for event in events] == ["store_failed"]
    verb, _, rest = str(events[0].reason).partition(": ")
    assert events[0].identity == "Failing" and verb in {*down, "lock"}
    assert rest == "ConnectionError; going on with what is in memory"
    assert "store-password" not in str(events[0])


@pytest.mark.parametrize("verb", ["get", "set", "delete", "lock", "unlock"])
def test_each_outage_is_warned_of(verb: str) -> None:
    """After the store has worked again, the next outage is a new one."""
    store = Failing()
    ledger, events = opened(store)
    for down in ({verb}, set(), {verb}):
        store.down = down
        with ledger.lock("key"):
            ledger.load("key")
            ledger.save("key", record("t"))
            ledger.forget("key")
    assert len(events) == 2


def test_what_was_read_is_known_when_the_store_goes_down() -> None:
    """A token or refusal that was seen in the store counts while the store is down."""
    store = Failing()
    ledger, _ = opened(store)
    store.set("key", record("seen").dumps())
    ledger.load("key")
    store.down = {"get"}
    assert ledger.load("key") == record("seen")


def test_what_a_store_did_not_take_counts_until_it_has_something_newer() -> None:
    """On a read-only store our newer record counts, and a sibling's still newer one goes before."""
    store = Failing()
    ledger, _ = opened(store)
    store.set("key", record("old", 1).dumps())
    store.down = {"set"}
    ledger.save("key", record("ours", 2))
    assert ledger.load("key") == record("ours", 2)
    MemoryStore.set(store, "key", record("theirs", 3).dumps())
    assert ledger.load("key") == record("theirs", 3)


def lasting(name: str, serial: float, seconds: float) -> Record:
    """A record of a token called *name* that expires in so many seconds."""
    return Record(Token(name, expires_at=NOW + seconds, issued_at=NOW), serial)


def test_the_successor_of_what_is_stored_counts_whatever_the_clocks_say() -> None:
    """A token had after the clock was put right, while the store was down, goes before the one that it followed."""
    store = Failing()
    ledger, _ = opened(store)
    ledger.save("key", lasting("fast-clock", 9.0, 90000))
    store.down = {"set"}
    for name, serial in (("next", 9.1), ("last", 9.2)):
        ledger.save("key", lasting(name, serial, 600))
        assert ledger.load("key").token == lasting(name, serial, 600).token
    store.down = set()
    ledger.settle("key")
    assert opened(store)[0].load("key").token == lasting("last", 9.2, 600).token


@pytest.mark.parametrize(("seconds", "counts"), [(59, "sibling's"), (60, "ours"), (61, "ours")])
def test_of_two_that_do_not_follow_each_other_the_one_that_lasts_longer_counts(seconds: int, counts: str) -> None:
    """A serial of a clock that was set back says nothing: what is soon to be renewed is not taken for the newer one."""
    store = Failing()
    ledger, _ = opened(store)
    store.down = {"set"}
    ledger.save("key", lasting("ours", 86400.0, seconds))
    store.down = set()
    opened(store)[0].save("key", lasting("sibling's", 1.0, 60))
    loaded = ledger.load("key").token
    assert loaded is not None and loaded.access_token == counts


def test_a_refusal_that_a_store_did_not_take_leaves_the_token_there() -> None:
    """Once the store is back, a sibling's token counts together with what finAPI refused meanwhile."""
    store = Failing()
    ledger, _ = opened(store)
    refusal = Refusal("InvalidGrantError", "no")
    store.down = {"get", "set"}
    ledger.save("key", Record(serial=9, refusals={"wrong": refusal}))
    MemoryStore.set(store, "key", record("theirs", 3).dumps())
    store.down = set()
    loads = [ledger.load("key")]
    ledger.settle("key")
    for loaded in (*loads, opened(store)[0].load("key")):
        assert loaded.token == record("theirs").token and loaded.refusals == {"wrong": refusal}


def refused(*names: str, **changes: Any) -> Record:
    """A record with a refusal of each name."""
    return Record(refusals={name: Refusal("InvalidGrantError", "no") for name in names}, **changes)


@pytest.mark.parametrize(
    ("before", "ours", "theirs", "left", "accepted"),
    [
        ("a", "a b", "a", "a b", ""),
        ("a", "a b", "a c", "a b c", ""),
        ("a", "b", "a c", "b c", ""),
        ("a b", "a b", "c", "c", ""),
        ("", "a b", "", "b", "a"),
        ("", "last", "", "last", "last"),
    ],
    ids=["added here", "added on both sides", "cleared here", "cleared there", "accepted there", "accepted before"],
)
def test_refusals_of_both_sides_count(before: str, ours: str, theirs: str, left: str, accepted: str) -> None:
    """What was refused, or cleared, while the store was down counts beside what it holds, unless it was accepted."""
    store = Failing()
    ledger, _ = opened(store)
    ledger.save("key", refused(*before.split(), serial=1.0, fingerprint="last"))
    store.down = {"set"}
    ledger.save("key", refused(*ours.split(), serial=2.0, fingerprint="last"))
    MemoryStore.set(store, "key", refused(*theirs.split(), serial=3.0, fingerprint=accepted).dumps())
    store.down = set()
    for _ in range(2):
        assert sorted(ledger.load("key").refusals) == left.split()
    ledger.settle("key")
    for loaded in (ledger.load("key"), opened(store)[0].load("key")):
        assert sorted(loaded.refusals) == left.split() and loaded.serial >= 3.0
    assert not ledger.unsaved


@pytest.mark.parametrize(
    ("ours", "theirs", "left"), [(None, "used", None), (None, "replaced", "replaced"), ("used", "used", "used")]
)
def test_a_refresh_token_refused_while_the_store_was_down_is_dropped_there(
    ours: str | None, theirs: str, left: str | None
) -> None:
    """Only that one: what replaced it meanwhile stays, although the access token is the same."""
    store = Failing()
    ledger, _ = opened(store)
    ledger.save("key", Record(Token("access", refresh_token="used"), 1.0))
    store.down = {"set"}
    ledger.save("key", Record(Token("access", refresh_token=ours), 2.0))
    MemoryStore.set(store, "key", Record(Token("access", refresh_token=theirs), 3.0).dumps())
    store.down = set()
    ledger.settle("key")
    stored = opened(store)[0].load("key").token
    assert stored is not None and stored.refresh_token == left and not ledger.unsaved


def test_what_arrived_although_the_store_said_no_is_not_saved_again() -> None:
    """A write whose answer was lost is found in the store, and done with."""
    store = Failing()
    ledger, _ = opened(store)
    store.down = {"set"}
    ledger.save("key", record("ours", 2))
    MemoryStore.set(store, "key", record("ours", 2).dumps())
    assert ledger.load("key") == record("ours", 2) and not ledger.unsaved


def test_what_cannot_be_read_is_not_written_over() -> None:
    """While a store takes values but gives none, a sibling's newer token stays there."""
    store = Failing()
    ledger, _ = opened(store)
    store.down = {"set"}
    ledger.save("key", record("ours", 2))
    MemoryStore.set(store, "key", record("theirs", 3).dumps())
    store.down = {"get"}
    ledger.settle("key")
    assert MemoryStore.get(store, "key") == record("theirs", 3).dumps()
    store.down = set()
    ledger.settle("key")
    assert ledger.load("key") == record("theirs", 3) and not ledger.unsaved


def test_what_was_forgotten_while_the_store_was_down_is_forgotten_there() -> None:
    """A token that was revoked does not come back with the store."""
    store = Failing()
    ledger, _ = opened(store)
    ledger.save("key", replace(refused("wrong", serial=3.0), token=Token("revoked")))
    store.down = {"delete"}
    ledger.forget("key")
    store.down = set()
    store.asked.clear()
    ledger.settle_all()
    assert store.asked["lock"] == ["key"]
    loaded = opened(store)[0].load("key")
    assert loaded.token is None and loaded.refusals == {}


@pytest.mark.parametrize(("serial", "counts"), [(1.0, "ours"), (1e12, "sibling's")])
@pytest.mark.parametrize("forgets", ["ours", "sibling's"])
def test_of_a_token_and_its_revocation_the_newer_one_counts(forgets: str, serial: float, counts: str) -> None:
    """It is no matter whose is in the store, and whose the store did not take."""
    store = Failing()
    ledger, _ = opened(store)
    ledger.save("key", record("revoked", 2.0))
    store.down = {"set", "delete"}
    if forgets == "ours":
        ledger.forget("key")
    else:
        ledger.save("key", record("ours", 3.0))
    store.down = set()
    stored = record("sibling's", serial)
    opened(store)[0].save("key", replace(stored, token=None) if forgets == "sibling's" else stored)
    token = ledger.load("key").token
    assert (token is None) is (forgets == counts)


def test_what_was_forgotten_stays_forgotten_while_the_store_is_down() -> None:
    """Neither the token nor a refusal that was in the store comes back from memory."""
    store = Failing()
    ledger, _ = opened(store)
    ledger.save("key", replace(refused("wrong"), token=Token("revoked")))
    ledger.forget("key")
    store.down = {"get"}
    assert ledger.load("key").token is None and ledger.load("key").refusals == {}


def test_an_exception_of_the_body_passes_through_the_lock() -> None:
    """Whether the lock was had or not, what the body raises comes out as it is, and the lock is free."""
    for store in (Failing(), Failing("lock"), Failing("unlock")):
        ledger, _ = opened(store)
        for _ in range(2):
            with pytest.raises(KeyError, match="mine"), ledger.lock("key"):
                raise KeyError("mine")


def test_memory_is_bounded() -> None:
    """A process with many users does not remember them all for a store that might fail."""
    ledger, _ = opened(MemoryStore())
    for number in range(3000):
        ledger.save(str(number), record("t"))
    assert list(ledger._remembered) == [str(number) for number in range(2000, 3000)]


@pytest.mark.parametrize("verbs", [["get"], ["set"], ["delete"], ["lock"], ["get", "set", "delete", "lock"]])
def test_a_session_on_a_failing_store_works(verbs: list[str], sandbox: Sandbox) -> None:
    """No call fails, one token call, one warning; a wrong password is still sent only once."""
    events: list[TokenEvent] = []
    with sandbox.session("alice", store=Failing(*verbs), on_event=events.append) as alice:
        for _ in range(3):
            assert alice.get("/api/v2/accounts").ok
    assert sandbox.count("/oauth/token") == 1
    wrong = sandbox.session("alice", "wrong", store=Failing(*verbs))
    for _ in range(3):
        with pytest.raises(InvalidGrantError):
            wrong.get("/api/v2/accounts")
    assert sandbox.count("/oauth/token") == 2
    assert sum(event.kind == "store_failed" for event in events) <= 1


def test_what_is_locked_is_what_is_kept(sandbox: Sandbox) -> None:
    """The lock of a renewal is that of the identity's own key: renewals of other identities do not wait for it."""
    store = Failing()
    with sandbox.session("alice", store=store) as alice:
        alice.fetch_token()
    assert set(store.asked) == {"get", "set", "lock", "unlock"}
    assert len({key for keys in store.asked.values() for key in keys}) == 1


def test_a_listener_that_raises_costs_nothing(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """What `on_event` raises is logged by name only, and the call goes on."""

    def listener(_: TokenEvent) -> None:
        raise ValueError("her-password")

    with sandbox.session(on_event=listener) as session:
        assert session.get("/api/v2/banks").ok
    assert "on_event raised ValueError" in caplog.text and "her-password" not in caplog.text


def test_threads_push_each_others_standings_out() -> None:
    """A process with very many users and threads gets one for each all the same."""
    ledger, _ = opened(MemoryStore())
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in pool.map(lambda _: [ledger.standing(str(n % 1003), "") for n in range(20_000)], range(4)):
                pass
    finally:
        sys.setswitchinterval(interval)


def test_standings_are_bounded() -> None:
    """How a process stands with its users is the same thing for all sources of one, and not kept for ever."""
    ledger = Ledger(MemoryStore(), Journal("https://f.example"))
    busy, last = ledger.standing("busy", ""), None
    for number in range(1100):
        last = ledger.standing(str(number), "")
        assert ledger.standing("busy", "") is busy
    assert ledger.standing("1099", "") is last and ledger.standing("1099", "other password") is not last
    assert len(ledger._standings) == 1000
