"""The API rejects a token: healed at once where that helps, with pauses where it does not; and others renew too."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from finapi_session import FinapiSession, MemoryStore, TokenError, TokenEvent
from finapi_session.testing import Sandbox

from .clocks import Clock
from .herd import CALLS, ECHO, grants, herd, statuses, warm
from .links import key_of

# --- a 401, and what is none --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [403, 423, 451, 510])
def test_other_statuses_are_not_about_the_token(status: int, session: FinapiSession, sandbox: Sandbox) -> None:
    """403, 423, 451 and 510 from the API are answers, not reasons to renew."""
    warm(session)
    sandbox.answer_next(status, path=ECHO)
    assert session.get(ECHO).status_code == status
    assert sandbox.count(CALLS) == 1 and sandbox.count(ECHO) == 2


@pytest.mark.parametrize("sticky", [False, True])
def test_every_call_rejected_although_tokens_are_fresh(sticky: bool, session: FinapiSession, sandbox: Sandbox) -> None:
    """An API that rejects every token gets at most 20 sends and 3 token calls in 10 calls, and heals with the API."""
    sandbox.sticky = sticky
    sandbox.answer_next(401, path=ECHO, times=99)
    for _ in range(10):
        assert session.get(ECHO).status_code == 401
    assert sandbox.count(CALLS) <= 3
    assert sandbox.count(ECHO) <= 20
    assert session.get("/api/v2/banks").status_code == 200


def test_one_rejected_replay_after_good_calls_makes_no_pause(sandbox: Sandbox) -> None:
    """A token revoked on its way to us says nothing of the API: the next call renews."""
    session = sandbox.session("alice")
    warm(session)
    sandbox.answer_next(401, path=ECHO, times=2)
    assert session.get(ECHO).status_code == 401
    sandbox.revoke_tokens()
    warm(session)


def test_a_rejected_replay_is_told_to_siblings(sandbox: Sandbox) -> None:
    """Eight workers hold a dead token, and so is the one that the store has for them: one at most hands on a 401."""
    store = MemoryStore()
    eight = [sandbox.session("alice", store=store) for _ in range(8)]
    for session in eight:
        warm(session)
    sandbox.revoke_tokens()
    warm(sandbox.session("alice", store=store))
    sandbox.revoke_tokens()
    answered = [session.get(ECHO).status_code for session in eight]
    assert answered.count(200) >= 7


def test_many_threads_that_meet_one_dead_token_count_as_one(sandbox: Sandbox) -> None:
    """Several replays with the same new token that are rejected make no pause: the next call renews at once."""
    alice = sandbox.session("alice")
    warm(alice)
    sandbox.latency = {ECHO: 0.3}
    sandbox.answer_next(401, path=ECHO, times=8)
    results, _ = herd(4, lambda: alice.get(ECHO))
    assert statuses(results) == {401} and sandbox.count(CALLS) == 2
    sandbox.latency = 0
    sandbox.revoke_tokens()
    warm(alice)


# --- pauses -------------------------------------------------------------------------------------------------------


def test_the_first_rejected_token_in_a_row_is_only_buried(sandbox: Sandbox) -> None:
    """A replay that is rejected too, after good calls, is followed by a renewal at the very next call."""
    alice = sandbox.session("alice")
    warm(alice)
    sandbox.answer_next(401, path=ECHO, times=2)
    assert [alice.get(ECHO).status_code for _ in range(2)] == [401, 200]
    # The token that is buried is not sent again, not even to be told so.
    assert (sandbox.count(CALLS), sandbox.count(ECHO)) == (3, 4)


@pytest.mark.parametrize("username", [None, "alice"])
def test_a_pause_doubles_from_half_a_second_to_half_a_minute(
    username: str | None, sandbox: Sandbox, clock: Clock
) -> None:
    """The second token in a row that the API never took makes 0.5 s, the next ones 1, 2, 4, 8, 16 and then 30 s."""
    sandbox.sticky = False
    session = sandbox.session(username)
    sandbox.answer_next(401, path=ECHO, times=99)
    assert session.get(ECHO).status_code == 401
    assert sandbox.count(CALLS) == 2
    for seconds in (0.5, 1, 2, 4, 8, 16, 30, 30):
        before = sandbox.count(CALLS)
        clock.step(seconds - 0.3)
        assert session.get(ECHO).status_code == 401 and sandbox.count(CALLS) == before
        clock.step(0.4)
        assert session.get(ECHO).status_code == 401 and sandbox.count(CALLS) == before + 1


def test_an_api_that_rejects_all_is_asked_about_ever_more_rarely(sandbox: Sandbox, clock: Clock) -> None:
    """20 calls in 22 seconds cost no more than 8 token calls, the next hour's cost two a minute."""
    sandbox.sticky = False
    alice = sandbox.session("alice")
    sandbox.answer_next(401, path=ECHO, times=999)
    for _ in range(20):
        assert alice.get(ECHO).status_code == 401
        clock.step(1.1)
    assert sandbox.count(CALLS) <= 8
    before = sandbox.count(CALLS)
    for _ in range(60):
        assert alice.get(ECHO).status_code == 401
        clock.step(5)
    assert sandbox.count(CALLS) - before <= 11


def test_within_a_pause_callers_get_their_401(sandbox: Sandbox) -> None:
    """Nothing is sent twice and finAPI is not asked while the API rejects what finAPI gives."""
    sandbox.sticky = False
    session = sandbox.session()
    sandbox.answer_next(401, path=ECHO, times=99)
    session.get(ECHO)
    sends, calls = sandbox.count(ECHO), sandbox.count(CALLS)
    for _ in range(3):
        assert session.get(ECHO).status_code == 401
    assert (sandbox.count(ECHO), sandbox.count(CALLS)) == (sends + 3, calls)


def test_a_token_that_the_api_takes_ends_a_pause(sandbox: Sandbox, clock: Clock) -> None:
    """Half a minute's pause of one token is over as soon as another one lives: the next 401 is healed at once."""
    store = MemoryStore()
    ours, sibling = (sandbox.session(store=store) for _ in range(2))
    warm(ours)
    sandbox.answer_next(401, path=ECHO)  # finAPI gives the very same token again
    assert ours.get(ECHO).status_code == 401
    sandbox.revoke_tokens()
    warm(sibling)
    warm(ours)
    sandbox.revoke_tokens()
    warm(ours)


def test_a_pause_ends_when_a_sibling_has_a_better_token(sandbox: Sandbox) -> None:
    """While we ask for nothing new, what a sibling has stored is taken."""
    store = MemoryStore()
    ours, sibling = (sandbox.session(store=store) for _ in range(2))
    warm(ours)
    sandbox.answer_next(401, path=ECHO)
    assert ours.get(ECHO).status_code == 401
    sandbox.revoke_tokens()
    calls = sandbox.count(CALLS)
    assert ours.get(ECHO).status_code == 401 and sandbox.count(CALLS) == calls
    sibling.fetch_token()
    assert sibling.get(ECHO).status_code == 200
    assert ours.get(ECHO).status_code == 200
    assert sandbox.count(CALLS) == calls + 1


def test_the_very_token_that_was_rejected_comes_again(sandbox: Sandbox, clock: Clock) -> None:
    """A sticky finAPI's same token is not sent again, and not asked for again for 30 s; then it is."""
    session = sandbox.session()
    sandbox.answer_next(401, path=ECHO, times=99)
    assert session.get(ECHO).status_code == 401
    assert (sandbox.count(CALLS), sandbox.count(ECHO)) == (2, 1)
    clock.step(29)
    assert session.get(ECHO).status_code == 401 and sandbox.count(CALLS) == 2
    clock.step(1.5)
    assert session.get(ECHO).status_code == 401 and sandbox.count(CALLS) == 3


def test_a_clock_that_is_set_back_prolongs_no_pause(sandbox: Sandbox, clock: Clock) -> None:
    """A pause that lies a day in the future is none."""
    session = sandbox.session()
    clock.step(86400)
    sandbox.answer_next(401, path=ECHO)
    assert session.get(ECHO).status_code == 401
    clock.step(-86400)
    sandbox.revoke_tokens()
    warm(session)


@pytest.mark.parametrize("username", [None, "alice"])
def test_why_a_token_is_not_renewed_is_told(
    username: str | None, sandbox: Sandbox, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning and an event of the identity say that the API or finAPI is at odds, and for how long that is heeded."""
    events: list[TokenEvent] = []
    sandbox.sticky = False
    session = sandbox.session(username, on_event=events.append)
    sandbox.answer_next(401, path=ECHO, times=3)
    session.get(ECHO)
    clock.step(0.6)
    held = session.fetch_token()
    same = {"access_token": held.access_token, "refresh_token": held.refresh_token, "expires_in": 3600}
    sandbox.answer_next(200, body=same, path=CALLS)
    session.get(ECHO)
    told = [event for event in events if event.kind == "rejected"]
    assert {event.identity for event in told} == {"client 'sandbox-client'" if username is None else "user 'alice'"}
    assert [event.reason for event in told] == [
        "the API rejects what finAPI gives: it is not renewed again for 0.5 s",
        "finAPI gives the rejected token again: it is not renewed again for 30 s",
    ]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == list(map(str, told))


# --- others renew with the same refresh token ---------------------------------------------------------------------


def workers(sandbox: Sandbox, count: int) -> list[FinapiSession]:
    """Return warm sessions of one user in as many processes that share no store: sticky, they have the same token."""
    made = [sandbox.session("alice") for _ in range(count)]
    for session in made:
        warm(session)
    return made


def renewed(sandbox: Sandbox, clock: Clock, **options: Any) -> FinapiSession:
    """Return a session of alice whose token was obtained by refresh token after its expiry, and is in use."""
    alice = sandbox.session("alice", **options)
    warm(alice)
    clock.go_on(3601)
    warm(alice)
    assert grants(sandbox)[-1] == "refresh_token"
    return alice


def test_workers_without_a_shared_store_come_to_share_a_token(sandbox: Sandbox, clock: Clock) -> None:
    """Each refresh kills the other worker's token; soon both ask by password, which gives them the same one."""
    pair = workers(sandbox, 2)
    clock.go_on(3601)
    for _ in range(20):
        for session in pair:
            warm(session)
    assert sandbox.count(CALLS, grant_type="refresh_token") <= 4
    assert sandbox.count(CALLS) <= 2 + 4 + 2
    assert len({session.fetch_token().access_token for session in pair}) == 1
    calls = sandbox.count(CALLS)
    sandbox.expire_tokens("alice")
    for session in pair:
        warm(session)
    assert sandbox.count(CALLS) == calls + 2


def test_workers_without_a_shared_store_at_once(sandbox: Sandbox, clock: Clock) -> None:
    """Four that meet expired tokens in the same moment lose some pauses at most, and then share a token."""
    four = workers(sandbox, 4)

    def work(session: FinapiSession) -> list[int]:
        answered = []
        for _ in range(25):
            answered.append(session.get(ECHO).status_code)
            time.sleep(0.06)
        return answered

    for _ in range(3):
        clock.go_on(3601)
        calls = sandbox.count(CALLS)
        with ThreadPoolExecutor(4) as pool:
            lists = list(pool.map(work, four))
        assert sum(answered.count(200) for answered in lists) >= 50, lists
        assert sandbox.count(CALLS) - calls <= 24
        clock.step(31)  # longer than the longest pause
        for _ in range(2):
            for session in four:
                session.get(ECHO)
        for session in four:
            warm(session)
        assert len({session.fetch_token().access_token for session in four}) == 1


@pytest.mark.parametrize(
    ("age", "then"), [(0, "password"), (1700, "password"), (1900, "refresh_token")], ids=["new", "young", "old"]
)
def test_a_renewed_token_that_is_rejected_early_in_its_life(
    age: float, then: str, sandbox: Sandbox, clock: Clock
) -> None:
    """Before half of its lifetime others have renewed: the password gets their token. Later it has just ended."""
    alice = renewed(sandbox, clock)
    clock.go_on(age)
    warm(alice)
    sandbox.revoke_tokens("alice")
    warm(alice)
    assert grants(sandbox) == ["password", "refresh_token", then]


def test_a_token_of_the_password_that_is_rejected_is_renewed_by_refresh_token(sandbox: Sandbox) -> None:
    """It was not obtained by refresh token, so nothing tells of others that renew with that."""
    alice = sandbox.session("alice")
    warm(alice)
    sandbox.revoke_tokens("alice")
    warm(alice)
    assert grants(sandbox) == ["password", "refresh_token"]


def test_refresh_tokens_that_are_replaced_are_no_fight(sandbox: Sandbox) -> None:
    """Nobody else can have renewed with them, however often the tokens obtained by them are rejected."""
    sandbox.rotate_refresh_tokens = True
    alice = sandbox.session("alice")
    warm(alice)
    for _ in range(4):
        sandbox.expire_tokens("alice")
        warm(alice)
    assert grants(sandbox) == ["password", *["refresh_token"] * 4]


def test_before_expiry_the_refresh_token_goes_first_whoever_else_renews(sandbox: Sandbox, clock: Clock) -> None:
    """A sticky finAPI gives no other token by password while one lives."""
    alice = renewed(sandbox, clock)
    clock.before_expiry(alice)
    warm(alice)
    assert grants(sandbox) == ["password", "refresh_token", "refresh_token"]
    sandbox.revoke_tokens("alice")
    warm(alice)
    assert grants(sandbox)[3:] == ["password"]


def test_whoever_has_no_password_renews_by_refresh_token_whoever_else_does(sandbox: Sandbox, clock: Clock) -> None:
    """Without a password there is nothing else to renew with."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    alice = sandbox.session(store=store).user("alice")
    warm(alice)
    for _ in range(3):
        sandbox.revoke_tokens("alice")
        warm(alice)
    assert grants(sandbox) == ["password", *["refresh_token"] * 3]


def test_a_password_that_gets_the_rejected_token_gives_way_to_the_refresh_token(sandbox: Sandbox, clock: Clock) -> None:
    """Where nobody has a better one, there was no fight: after the pause the refresh token is asked by again."""
    alice = renewed(sandbox, clock)
    sandbox.answer_next(401, path=ECHO)
    assert alice.get(ECHO).status_code == 401
    clock.step(31)
    sandbox.answer_next(401, path=ECHO)
    assert alice.get(ECHO).status_code == 200
    assert grants(sandbox) == ["password", "refresh_token", "password", "refresh_token"]


def test_replays_killed_by_another_worker_make_a_short_pause_only(sandbox: Sandbox, clock: Clock) -> None:
    """Two replays in a row killed by workers that renew too cost half a second, not half a minute."""
    sandbox.sticky = False
    alice = sandbox.session("alice")
    warm(alice)
    sandbox.answer_next(401, path=ECHO, times=3)
    assert [alice.get(ECHO).status_code for _ in range(3)] == [401, 401, 200]
    assert sandbox.count(CALLS) == 3
    sandbox.revoke_tokens("alice")
    clock.step(0.6)
    assert alice.get(ECHO).status_code == 200


# --- refresh tokens, as finAPI may or may not give them -----------------------------------------------------------


def test_a_refresh_answer_without_a_refresh_token_keeps_the_old_one(sandbox: Sandbox, clock: Clock) -> None:
    """A left-out refresh token stays valid, and is used again."""
    sandbox.rotate_refresh_tokens = "omit"
    alice = sandbox.session("alice")
    warm(alice)
    for _ in range(2):
        clock.go_on(3601)
        warm(alice)
    assert grants(sandbox) == ["password", "refresh_token", "refresh_token"]


def test_a_replaced_refresh_token_is_stored_before_its_access_token_is_used(sandbox: Sandbox, clock: Clock) -> None:
    """At the moment of the first API call with a new token, the store has it and its refresh token."""
    sandbox.rotate_refresh_tokens = True
    store = MemoryStore()
    alice = sandbox.session("alice", store=store)
    stored_when_used = []
    prepare: Any = alice.auth

    def spy(request: Any) -> Any:
        request = prepare(request)
        carried = request.headers["Authorization"].removeprefix("Bearer ")
        stored_when_used.append(carried in (store.get(key_of(sandbox, "alice")) or ""))
        return request

    alice.auth = spy
    warm(alice)
    clock.go_on(3601)
    warm(alice)
    assert stored_when_used == [True, True]


@pytest.mark.parametrize(
    ("status", "body"), [(401, {"error": "unauthorized"}), (400, {})], ids=["401 of another code", "400 of a gateway"]
)
def test_a_password_refused_in_a_fight_is_not_sent_again_in_the_same_renewal(
    status: int, body: Any, sandbox: Sandbox
) -> None:
    """The password goes first and is refused; what the refresh grant is answered does not send it once more."""
    alice = sandbox.session("alice")
    warm(alice)
    sandbox.revoke_tokens("alice")
    warm(alice)
    sandbox.revoke_tokens("alice")
    sandbox.answer_next(400, body={"error": "invalid_grant"}, path=CALLS, grant_type="password", times=9)
    sandbox.answer_next(status, body=body, path=CALLS, grant_type="refresh_token", times=9)
    with pytest.raises(TokenError):
        alice.get(ECHO)
    assert grants(sandbox)[2:] == ["password", "refresh_token"]


def test_a_token_that_lived_ends_the_row_of_those_that_did_not(sandbox: Sandbox, clock: Clock) -> None:
    """After a pause and good calls, a rejected replay is the first in a row again: the next call renews at once."""
    sandbox.sticky = False  # else finAPI gives the token that was rejected again, which rests for half a minute
    alice = sandbox.session("alice")
    warm(alice)
    sandbox.answer_next(401, path=ECHO, times=3)
    assert [alice.get(ECHO).status_code for _ in range(2)] == [401, 401]
    clock.step(0.6)
    sandbox.revoke_tokens()
    for _ in range(10):
        warm(alice)
    clock.step(5)
    sandbox.answer_next(401, path=ECHO, times=2)
    assert alice.get(ECHO).status_code == 401
    sandbox.revoke_tokens()
    warm(alice)


def test_a_renewed_token_whose_replay_is_rejected_is_a_fight_too(sandbox: Sandbox) -> None:
    """It was obtained by refresh token and rejected at once: the password goes first in the call that renews it."""
    alice = sandbox.session("alice")
    warm(alice)
    sandbox.answer_next(401, path=ECHO, times=2)
    assert alice.get(ECHO).status_code == 401
    sandbox.revoke_tokens("alice")
    warm(alice)
    assert grants(sandbox) == ["password", "refresh_token", "password"]


def test_workers_without_a_shared_store_settle(sandbox: Sandbox) -> None:
    """Four that meet expired tokens at once: after two rounds a third costs next to no call (as it was before)."""
    four = [sandbox.session("alice") for _ in range(4)]
    for session in four:
        warm(session)
    for _ in range(3):
        time.sleep(1.1)
        sandbox.expire_tokens("alice")
        calls = sandbox.count(CALLS)
        with ThreadPoolExecutor(4) as pool:
            lists = list(pool.map(lambda session: [session.get(ECHO).status_code for _ in range(25)], four))
    assert sum(answered.count(200) for answered in lists) >= 96
    assert sandbox.count(CALLS) - calls <= 12
