"""The laws of what is known: copies meet in any order, nothing that counts is lost, and what is not ours is none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, strategies as st

from finapi_session import MemoryStore, TokenEvent
from finapi_session.cell import Cell, Cells, refusals_key
from finapi_session.envelope import MOST_TEXT, dumps, dumps_refusals, loads, loads_refusals, sealed
from finapi_session.errors import InvalidGrantError, TokenEndpointError, UserLockedError
from finapi_session.events import Journal
from finapi_session.fallback import Fallback
from finapi_session.identity import Credentials
from finapi_session.knowledge import (
    ASKING,
    LOGIN,
    MOST_GRANTS,
    MOST_REFUSALS,
    MOST_REJECTIONS,
    NOTHING,
    Grant,
    Knowledge,
    Refusal,
    password_subject,
    rejected,
    token_id,
)
from finapi_session.tokens import Token

NOW = 1_800_000_000.0
URL = "https://sandbox.finapi.io/oauth/token"
ALICE, BOB = Credentials("id", "secret", "alice", "pw"), Credentials("id", "secret", "bob", "pw")

# --- a small alphabet, so that copies speak of the same tokens ----------------------------------------------------

SERIALS = st.integers(0, 3)
#: Each access token came with the refresh token of its login, or, as it was not repeated, with none.
LOGINS = (("A", "R"), ("A", None), ("B", "R"), ("C", "S"), ("D", None))


def grants_of(logins: Sequence[tuple[str, str | None]]) -> st.SearchStrategy[Grant]:
    """Return grants of these access tokens with their refresh tokens."""
    tokens = st.builds(
        lambda login, expires_at, issued_at: Token(login[0], expires_at, login[1], issued_at),
        st.sampled_from(logins),
        st.sampled_from([None, NOW - 10, NOW + 10]),
        st.sampled_from([None, NOW - 20, NOW - 15]),
    )
    return st.builds(
        Grant,
        tokens,
        SERIALS,
        st.sampled_from(["", "print"]),
        proven=st.booleans(),
        shared=st.booleans(),
        sticky=st.booleans(),
    )


REJECTIONS = st.dictionaries(st.sampled_from([token_id(name) for name in "ABCDRS"]), SERIALS, max_size=4)
REFUSALS = st.dictionaries(
    st.sampled_from([ASKING, LOGIN, password_subject("print")]),
    st.builds(
        Refusal,
        st.sampled_from(["InvalidGrantError", "UserLockedError"]),
        st.just("no"),
        SERIALS,
        st.sampled_from([None, NOW - 10, NOW + 10]),
        st.sampled_from([0.0, 60.0]),
        status=st.sampled_from([None, 400]),
        code=st.sampled_from([None, "code"]),
    ),
    max_size=3,
)
KNOWN = st.builds(
    lambda grants, rejections, refusals: NOTHING.merge(Knowledge(tuple(grants), rejections, refusals)),
    st.lists(grants_of(LOGINS), max_size=4, unique_by=lambda grant: grant.access_id),
    REJECTIONS,
    REFUSALS,
)


def parts(known: Knowledge) -> tuple[Any, Any, Any]:
    """Return what two copies must agree on."""
    return known.grants, dict(known.rejections), dict(known.refusals)


def alive(grant: Grant, rejections: dict[str, int]) -> bool:
    """Tell by the rule's own words whether a token of *grant* lives: no later statement says that it is dead."""
    tokens = [token for token in (grant.access_id, grant.refresh_id) if token is not None]
    return any(rejections.get(token, 0) <= grant.serial for token in tokens)


def latest(statements: Iterable[dict[str, int]]) -> dict[str, int]:
    """Return of each token the latest rejection."""
    found: dict[str, int] = {}
    for each in statements:
        for token, serial in each.items():
            found[token] = max(serial, found.get(token, serial))
    return found


# --- the laws -----------------------------------------------------------------------------------------------------


@given(KNOWN, KNOWN)
def test_merge_is_commutative(one: Knowledge, other: Knowledge) -> None:
    """Whoever hears whom: both know the same afterwards."""
    assert parts(one.merge(other)) == parts(other.merge(one))


@given(KNOWN, KNOWN, KNOWN)
def test_merge_is_associative(one: Knowledge, two: Knowledge, three: Knowledge) -> None:
    """In whichever order three copies meet, the same is known in the end."""
    assert parts(one.merge(two).merge(three)) == parts(one.merge(two.merge(three)))


@given(KNOWN, KNOWN)
def test_merge_is_idempotent(one: Knowledge, other: Knowledge) -> None:
    """What was heard before is no news, and then it is the very same value that is returned."""
    assert one.merge(one) is one and NOTHING.merge(one) == one and one.merge(NOTHING) is one
    merged = one.merge(other)
    assert merged.merge(other) is merged and merged.merge(one) is merged


@given(KNOWN, KNOWN)
def test_merge_loses_no_living_grant(one: Knowledge, other: Knowledge) -> None:
    """A grant of which nobody has heard that it is dead is kept, or a later statement of the same token."""
    merged, rejections = one.merge(other), latest([dict(one.rejections), dict(other.rejections)])
    for grant in (*one.grants, *other.grants):
        same = [each for each in (*one.grants, *other.grants) if each.about == grant.about]
        if alive(grant, rejections) and grant.rank == max(each.rank for each in same):
            # Its refresh token may have come with a newer access token, and its own be dead.
            login = grant.refresh_id, grant.fingerprint
            successors = [each for each in merged.grants if (each.refresh_id, each.fingerprint) == login]
            assert grant in merged.grants or (not merged.accepts(grant) and successors[0].rank > grant.rank)


@given(KNOWN, KNOWN)
def test_merge_loses_no_rejection(one: Knowledge, other: Knowledge) -> None:
    """Within the bounds each rejection is kept, with its latest serial: no dead token comes back to life."""
    merged = one.merge(other)
    assert merged.rejections == latest([dict(one.rejections), dict(other.rejections)])
    for grant in merged.grants:
        assert alive(grant, dict(merged.rejections))


@given(KNOWN, KNOWN)
def test_merge_loses_no_refusal_that_holds(one: Knowledge, other: Knowledge) -> None:
    """Of two statements about one subject the later one counts; what only one of them tells is kept."""
    merged = one.merge(other)
    for subject in {*one.refusals, *other.refusals}:
        said = [known.refusals[subject] for known in (one, other) if subject in known.refusals]
        assert merged.refusals[subject].serial == max(refusal.serial for refusal in said)
        assert merged.refusals[subject] in said
        holding = [refusal for refusal in said if refusal.holds(NOW)]
        if len(holding) == len(said):
            assert merged.refusal(subject, NOW) is not None


@given(KNOWN, KNOWN)
def test_no_serial_goes_back(one: Knowledge, other: Knowledge) -> None:
    """After a merge the next statement is later than all that either of them made."""
    merged, kept = one.merge(other), latest([dict(one.rejections), dict(other.rejections)])
    assert merged.serial >= max([0, *kept.values()])
    assert merged.serial >= max([0, *(grant.serial for grant in merged.grants)])
    assert merged.serial <= max(one.serial, other.serial)


@given(KNOWN)
def test_a_token_that_comes_again_lives_again(known: Knowledge) -> None:
    """finAPI gives a buried token again: a later grant revives it, in whichever order both are heard."""
    again = Grant(Token("A", NOW + 10, "R", NOW), known.serial + 2)
    buried = known.merge(rejected([token_id("A"), token_id("R")], known.serial + 1))
    for merged in (buried.merge(Knowledge((again,))), Knowledge((again,)).merge(buried)):
        assert merged.accepts(again) and merged.renews(again) and again in merged.grants
        assert merged.usable("", NOW) == again
    later = rejected([token_id("A")], known.serial + 3)
    assert buried.merge(Knowledge((again,))).merge(later).usable("", NOW) is None


@given(KNOWN)
def test_what_is_known_comes_back_whole(known: Knowledge) -> None:
    """Grants, rejections and refusals survive their text."""
    back = loads(dumps(known)).merge(loads_refusals(dumps_refusals(known)))
    assert parts(back) == parts(known)


@given(KNOWN, st.sampled_from(["", "print", "another"]))
def test_what_is_used_lives_and_belongs_to_whoever_asks(known: Knowledge, fingerprint: str) -> None:
    """Never a token that is dead, expired, or of another password's login, and the newest of those that may serve."""
    used, by = known.usable(fingerprint, NOW), known.renewable(fingerprint)
    ours = [grant for grant in known.grants if grant.fingerprint == fingerprint or not fingerprint]
    if used is not None:
        assert used in ours and known.rejections.get(used.access_id, 0) <= used.serial
        assert not used.token.expired(NOW)
    if by is not None:
        assert by in ours and by.token.refresh_token is not None
        assert known.rejections.get(token_id(by.token.refresh_token), 0) <= by.serial
        later = used is not None and (used.token.issued_at or 0.0) > (by.token.issued_at or 0.0)
        assert used is None or later or used.rank >= by.rank or not known.renews(used)
    if used is None and by is None:
        assert not any(alive(grant, dict(known.rejections)) and not grant.token.expired(NOW) for grant in ours)


# --- bounds -------------------------------------------------------------------------------------------------------


def test_grants_are_bounded() -> None:
    """A hundred logins leave the newest eight, in whichever order they are heard."""
    grants = [Grant(Token(f"T{number}", NOW + 10, f"R{number}"), number) for number in range(100)]
    for order in (grants, grants[::-1]):
        known = NOTHING
        for grant in order:
            known = known.merge(Knowledge((grant,)))
        assert [grant.serial for grant in known.grants] == list(range(99, 99 - MOST_GRANTS, -1))


def test_rejections_are_bounded_and_those_of_a_kept_grant_stay() -> None:
    """Of a thousand the newest are kept, and the oldest too where its grant is kept for its refresh token."""
    grant = Grant(Token("old", NOW + 10, "R"), 1)
    known = NOTHING.merge(Knowledge((grant,))).merge(rejected(["any", grant.access_id], 2))
    for serial in range(3, 1000):
        known = known.merge(rejected([f"token {serial}"], serial))
    assert len(known.rejections) == MOST_REJECTIONS
    assert known.rejections[grant.access_id] == 2 and "any" not in known.rejections and "token 999" in known.rejections
    assert known.usable("", NOW) is None and known.renewable("") == grant


def test_refusals_are_bounded() -> None:
    """Somebody who guesses passwords does not fill the store; the newest guesses are kept."""
    known = NOTHING
    for serial in range(1, 1000):
        known = known.merge(Knowledge(refusals={f"password {serial}": Refusal("InvalidGrantError", "no", serial)}))
    assert len(known.refusals) == MOST_REFUSALS
    assert f"password {1000 - MOST_REFUSALS}" in known.refusals and "password 999" in known.refusals


def test_the_older_refusals_are_told_from_the_newer_ones() -> None:
    """Whoever meets one that is among the first to go states it anew."""
    refusals = {str(serial): Refusal("InvalidGrantError", "no", serial) for serial in range(MOST_REFUSALS)}
    known = NOTHING.merge(Knowledge(refusals=refusals))
    fading = [serial for serial in range(MOST_REFUSALS) if known.fades(str(serial))]
    assert fading == list(range(MOST_REFUSALS // 2))


def test_long_tokens_fit_into_the_text() -> None:
    """Of grants that are too long together the newest are written; what is read again knows the same of them."""
    grants = tuple(Grant(Token("T" * 8192 + str(number), NOW, "R" * 8192), number) for number in range(MOST_GRANTS))
    known = NOTHING.merge(Knowledge(grants))
    text = dumps(known)
    back = loads(text)
    assert len(text) < MOST_TEXT and 1 <= len(back.grants) < MOST_GRANTS
    assert back.grants == known.grants[: len(back.grants)]
    assert known.merge(back) is known


# --- single facts -------------------------------------------------------------------------------------------------


def test_a_refused_password_counts_for_good_and_others_rest() -> None:
    """Only what finAPI said of a password stays; the rest is over after its seconds, or if the clock was set back."""
    wrong = Refusal.of(InvalidGrantError("no", status=400), 1, NOW)
    locked = Refusal.of(UserLockedError("no", status=423), 1, NOW, 60.0)
    assert wrong.holds(NOW + 1e9) and wrong.holds(NOW - 1e9)
    assert locked.holds(NOW) and locked.holds(NOW + 59.9)
    assert not locked.holds(NOW + 60) and not locked.holds(NOW - 86400)
    assert type(locked.to_error(NOW)) is UserLockedError and locked.to_error(NOW).status == 423
    assert not wrong.pardoned(2).holds(NOW) and wrong.pardoned(2).serial == 2


def test_a_refusal_tells_what_is_left_of_retry_after() -> None:
    """The error that is raised again names the seconds that remain, never fewer than none."""
    error = TokenEndpointError("overloaded", status=429, request_id="id")
    error.retry_after = 50.0
    refusal = Refusal.of(error, 1, NOW, 50.0)
    assert [refusal.to_error(NOW + seconds).retry_after for seconds in (0, 20, 80)] == [50.0, 30.0, 0.0]
    assert refusal.to_error(NOW).facts() == error.facts()


def test_a_sticky_token_is_fresh_until_it_expires() -> None:
    """finAPI would give the same again before; another one is renewed *leeway* seconds earlier."""
    token = Token("token", expires_at=NOW + 3600, issued_at=NOW)
    assert Grant(token, sticky=True).fresh_until(60) == NOW + 3600
    assert Grant(token).fresh_until(60) == NOW + 3540


def test_a_given_token_is_news_once() -> None:
    """It is the newest if it was issued after all others, else the last resort; a known or dead one is no news."""
    old, new = (Token(name, NOW + 3600, issued_at=NOW + at) for name, at in (("old", -5), ("new", 5)))
    known = NOTHING.merge(Knowledge((Grant(Token("T", NOW + 3600, issued_at=NOW), 3),)))
    assert known.merge(known.given(new, "")).grants[0].token == new
    assert known.merge(known.given(old, "")).grants[-1].token == old
    assert known.given(known.grants[0].token, "") is NOTHING
    assert known.merge(rejected([token_id("new")], 4)).given(new, "") is NOTHING


# --- what a store may hold ----------------------------------------------------------------------------------------


def opened(store: MemoryStore, credentials: Credentials = ALICE) -> tuple[Cells, Cell, list[TokenEvent]]:
    """Return the cells of a process on *store*, one of them, and the events that it tells."""
    events: list[TokenEvent] = []
    cells = Cells(Fallback(store, Journal("https://sandbox.finapi.io", events.append)))
    return cells, cells.of(credentials, URL), events


def facts(name: str = "T", serial: int = 1) -> Knowledge:
    """Return a grant of an access token called *name*, and a refused password."""
    refusal = Refusal("InvalidGrantError", "no", serial)
    return NOTHING.merge(Knowledge((Grant(Token(name, NOW + 3600, "R"), serial),), refusals={"password x": refusal}))


def kept(**changes: Any) -> str:
    """Return the text of grants and rejections, changed."""
    return json.dumps({**json.loads(dumps(facts())), **changes})


def kept_grant(**changes: Any) -> str:
    """Return the text of one grant, changed."""
    return kept(grants=[{**json.loads(dumps(facts()))["grants"][0], **changes}])


def kept_refusal(**changes: Any) -> str:
    """Return the text of one refusal, changed."""
    refusal = json.loads(dumps_refusals(facts()))["password x"]
    return json.dumps({"password x": {**refusal, **changes}})


UNSEALED = {
    "empty": "",
    "brace": "{",
    "list": "[]",
    "null": "null",
    "version 1": '{"token": {"access_token": "T"}, "serial": 1.0, "fingerprint": "", "sticky": false, "refusals": {}}',
    "version 3": "3.00.{}",
    "no seal": "2..{}",
    "half": "2.abc",
    "seal of another alphabet": "2.\u00e9\ud800." + dumps(facts()),
    "huge": "2.00." + "x" * 70_000,
    "nested": "[" * 100_000,
}
GRANTS = {
    "nested": "[" * 60_000,
    "text": '"text"',
    "number": "7",
    "nothing": "{}",
    "no grants": kept(grants=5),
    "no rejections": kept(rejections=[]),
    "grant of text": kept(grants=["T"]),
    "token of text": kept_grant(token="T"),
    "token without a token": kept_grant(token={}),
    "token with a line break": kept_grant(token={"access_token": "T\r\nX-Evil: 1"}),
    "serial of text": kept_grant(serial="later"),
    "serial null": kept_grant(serial=None),
    "serial infinite": kept_grant(serial=1).replace('"serial": 1', '"serial": Infinity'),
    "serial not a number": kept_grant(serial=1).replace('"serial": 1', '"serial": NaN'),
    "serial without end": kept_grant(serial=1).replace('"serial": 1', '"serial": ' + "9" * 5000),
    "rejection of text": kept(rejections={"token": "later"}),
}
REFUSED = {
    "nested": "{" + '"a":{' * 10_000,
    "list": "[]",
    "text": '"text"',
    "refusal of text": json.dumps({"asking": "no"}),
    "another error": kept_refusal(error="OSError"),
    "error of a list": kept_refusal(error=["InvalidGrantError"]),
    "number for text": kept_refusal(what=5),
    "text for number": kept_refusal(status="no"),
    "one more": kept_refusal(new=1),
    "until infinite": kept_refusal(until=1).replace('"until": 1', '"until": Infinity'),
    "until without end": kept_refusal(until=10**400),
}


def is_a_miss(store: MemoryStore) -> None:
    """See to it that nothing is known by *store*, that it is told, and that what is new is kept."""
    cells, cell, events = opened(store)
    for _ in range(3):
        view = cells.load(cell, refusals=True)
        assert parts(view.knowledge) == parts(NOTHING) and view.read
    assert {event.kind for event in events} == {"store_failed"}
    assert str(events[0].reason).startswith("value: it is ")
    assert str(events[0].reason).endswith(" and is taken for nothing; going on with what is in memory")
    cells.save(cell, facts("new"))
    again, same, told = opened(store)
    assert parts(again.load(same, refusals=True).knowledge) == parts(facts("new")) and told == []


@pytest.mark.parametrize("where", ["tokens", "refusals"])
@pytest.mark.parametrize("text", UNSEALED.values(), ids=UNSEALED)
def test_what_is_not_ours_is_a_miss(text: str, where: str) -> None:
    """Junk, another version's value and huge ones are warned of once and count as nothing; what is new is kept."""
    store = MemoryStore()
    key = opened(store)[1].key
    store.set(key if where == "tokens" else refusals_key(key), text)
    is_a_miss(store)


@pytest.mark.parametrize("value", [b"2.00.{}", 7, ["2.00.{}"], {"token": "T"}], ids=["bytes", "int", "list", "dict"])
def test_what_is_no_text_is_a_miss(value: Any) -> None:
    """A store of the caller's own that returns something else than text costs a warning, no call."""
    store = MemoryStore()
    store.set(opened(store)[1].key, value)
    is_a_miss(store)


@pytest.mark.parametrize("text", GRANTS.values(), ids=GRANTS)
def test_sealed_tokens_that_are_malformed_are_a_miss(text: str) -> None:
    """Even what bears our seal is read with care."""
    store = MemoryStore()
    cell = opened(store)[1]
    store.set(cell.key, sealed(cell.seal, cell.key, text))
    is_a_miss(store)


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_sealed_refusals_that_are_malformed_are_a_miss(text: str) -> None:
    """Even what bears our seal is read with care."""
    store = MemoryStore()
    cell = opened(store)[1]
    key = refusals_key(cell.key)
    store.set(key, sealed(cell.seal, key, text))
    is_a_miss(store)


@pytest.mark.parametrize(
    "other",
    [BOB, Credentials("id", "another secret", "alice", "pw"), Credentials("another id", "secret", "alice", "pw")],
    ids=["another user", "another secret", "another client"],
)
def test_a_value_of_another_identity_is_a_miss(other: Credentials) -> None:
    """Whoever can write to the store can move a value under another key: it is not used there."""
    store = MemoryStore()
    cells, cell, _ = opened(store, other)
    cells.save(cell, facts("theirs"))
    ours = opened(store)[1].key
    for name in ("", "-refusals"):
        store.set(f"{ours}{name}", store.get(f"{cell.key}{name}") or "")
    is_a_miss(store)


def test_tokens_under_the_key_of_the_refusals_are_a_miss() -> None:
    """Neither of the two values passes for the other one."""
    store = MemoryStore()
    cells, cell, _ = opened(store)
    cells.save(cell, facts())
    tokens, refused = store.get(cell.key) or "", store.get(refusals_key(cell.key)) or ""
    store.set(cell.key, refused)
    store.set(refusals_key(cell.key), tokens)
    is_a_miss(store)


@pytest.mark.parametrize("change", ["token", "seal", "length"])
def test_a_forged_value_is_a_miss(change: str) -> None:
    """One character of the token, of its seal, or one more: it is not used."""
    store = MemoryStore()
    cells, cell, _ = opened(store)
    cells.save(cell, NOTHING.merge(Knowledge((Grant(Token("honest-token", NOW + 3600), 1),))))
    value = store.get(cell.key) or ""
    seal = value.split(".")[1]
    forged = {
        "token": value.replace("honest", "forged"),
        "seal": value.replace(seal, ("0" if seal[0] != "0" else "1") + seal[1:]),
        "length": value + " ",
    }[change]
    assert forged != value
    store.set(cell.key, forged)
    is_a_miss(store)


def test_what_is_kept_by_a_session_shows_no_password() -> None:
    """What is stored holds the token and a keyed hash of the password, neither the password nor the secret."""
    store = MemoryStore()
    cells, cell, _ = opened(store)
    grant = Grant(Token("T", NOW + 3600, "R"), 1, ALICE.fingerprint, proven=True)
    cells.save(
        cell, Knowledge((grant,), refusals={password_subject(ALICE.fingerprint): Refusal("InvalidGrantError", "no")})
    )
    text = (store.get(cell.key) or "") + (store.get(refusals_key(cell.key)) or "")
    assert '"T"' in text and '"pw"' not in text and "secret" not in text


def test_memory_is_bounded() -> None:
    """A process with very many users does not remember them all, but never forgets one that the store lacks."""
    store = MemoryStore()
    events: list[TokenEvent] = []
    cells = Cells(Fallback(store, Journal("https://sandbox.finapi.io", events.append)))
    unsaved = cells.of(ALICE, URL)
    unsaved.learn(facts())
    first = cells.of(BOB, URL)
    for number in range(3000):
        cells.of(Credentials("id", "secret", f"user {number}"), URL)
        assert cells.of(ALICE, URL) is unsaved
    assert cells.of(BOB, URL) is not first
    last = cells.of(Credentials("id", "secret", "user 2999"), URL)
    assert cells.of(Credentials("id", "secret", "user 2999", "another password"), URL) is last


def test_merge_is_associative_where_a_token_came_with_another_refresh_token() -> None:
    """finAPI gives the same access token once with a refresh token and once without: order makes no difference."""
    first = Knowledge((Grant(Token("A", None, "R"), 1),))
    again = Knowledge((Grant(Token("A", None, None), 2),))
    burial = rejected([token_id("A")], 3)
    assert first.merge(again).merge(burial).grants == first.merge(again.merge(burial)).grants


@pytest.mark.parametrize("name", ["tokens", "refusals"])
def test_a_corrupt_value_is_warned_of_once(name: str) -> None:
    """A value that nobody can mend, as on a read-only store, is one warning and not one at each look."""
    events: list[TokenEvent] = []
    store = MemoryStore()
    cells = Cells(Fallback(store, Journal("https://sandbox.finapi.io", events.append)))
    cell = cells.of(Credentials("id", "secret", "alice"), URL)
    store.set(cell.key if name == "tokens" else refusals_key(cell.key), "junk")
    for _ in range(3):
        cells.load(cell, refusals=True)
    assert len(events) == 1


@pytest.mark.parametrize("changes", [{"serial": None}, {"rest": None, "until": 9e9}], ids=["serial", "rest"])
def test_a_sealed_refusal_without_a_number_is_a_miss(changes: dict[str, Any]) -> None:
    """Even what bears our seal raises nothing when it is merged, or asked whether it holds."""
    store = MemoryStore()
    cells = Cells(Fallback(store, Journal("https://sandbox.finapi.io")))
    cell = cells.of(ALICE, URL)
    key = refusals_key(cell.key)
    store.set(key, sealed(cell.seal, key, kept_refusal(**changes)))
    for _ in range(2):
        assert cells.load(cell, refusals=True).knowledge.refusal("password x", 1.8e9) is None


def test_texts_of_a_refusal_are_cleaned_when_they_are_read() -> None:
    """Even what bears our seal moves no cursor and adds no line to a log."""
    refusal = Refusal("InvalidGrantError", "no\x1b[2J\nmore" + "x" * 1000, 1, description="a\r\nb")
    kept = loads_refusals(dumps_refusals(Knowledge(refusals={LOGIN: refusal}))).refusals[LOGIN]
    assert kept.what.startswith("no[2Jmorexxx") and len(kept.what) == 500 and kept.description == "ab"
