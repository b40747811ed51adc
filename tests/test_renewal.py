"""Renewal that never herds, never loops and never locks anyone out: each situation counts the token calls it costs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from freezegun import freeze_time
from requests_oauthlib import OAuth2Session

from finapi_session import (
    AccessDeniedError,
    FinapiError,
    FinapiSession,
    InvalidClientError,
    InvalidGrantError,
    LoginRequiredError,
    MemoryStore,
    Token,
    TokenEndpointError,
    TokenError,
    TokenEvent,
    UserLockedError,
)
from finapi_session.events import Journal
from finapi_session.record import Refusal
from finapi_session.standing import Failure, Standing
from finapi_session.testing import Sandbox

ECHO = "/api/v2/tests/echo"
CALLS = "/oauth/token"


@pytest.fixture(params=["client", "alice"])
def session(request: pytest.FixtureRequest, sandbox: Sandbox) -> Iterator[FinapiSession]:
    """A client's session, then a user's."""
    with sandbox.session(None if request.param == "client" else "alice") as session:
        yield session


def frozen(epoch: float) -> Any:
    """Stop our clock at *epoch* seconds; finAPI's goes on."""
    return freeze_time(datetime.fromtimestamp(epoch, timezone.utc), ignore=["werkzeug", "finapi_session.testing"])


def herd(count: int, call: Callable[[], Any]) -> tuple[list[Any], list[float]]:
    """Make the call in so many threads at once; return what came of each, and how long it took in seconds."""
    barrier = threading.Barrier(count)

    def one(_: int) -> tuple[Any, float]:
        barrier.wait()
        started = time.perf_counter()
        try:
            result = call()
        except FinapiError as error:
            result = error
        return result, time.perf_counter() - started

    with ThreadPoolExecutor(count) as pool:
        results, seconds = zip(*pool.map(one, range(count)))
    return list(results), list(seconds)


def statuses(results: list[Any]) -> set[Any]:
    """The statuses of answers, errors as they are."""
    return {getattr(result, "status_code", result) for result in results}


def warm(session: FinapiSession) -> None:
    """Let the session hold a token that the API has taken."""
    assert session.get(ECHO).status_code == 200


def in_soft_window(session: FinapiSession, left: float = 30) -> None:
    """Let the session's token have so many seconds left by our clock: the soft window is the last minute."""
    source = session._own
    token = source._record.token
    assert token is not None
    now = time.time()
    early = Token(token.access_token, now + left, token.refresh_token, now - 3600)
    source._hold(source._record.next(now, token=early))
    source._ledger.save(source._key(source.identity.credentials()), source._record)


# --- herds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotating", [False, True])
@pytest.mark.parametrize("sticky", [False, True])
@pytest.mark.parametrize("situation", ["cold", "expired", "revoked"])
def test_a_herd_asks_once(
    situation: str, sticky: bool, rotating: bool, session: FinapiSession, sandbox: Sandbox
) -> None:
    """32 threads on a cold, expired or revoked token make one token call, and none of them fails."""
    sandbox.sticky, sandbox.rotate_refresh_tokens, sandbox.latency = sticky, rotating, {CALLS: 0.1}
    before = 0
    if situation != "cold":
        warm(session)
        before = 1
    if situation == "revoked":
        sandbox.revoke_tokens()
    if situation == "expired":
        sandbox.expire_tokens()
        in_soft_window(session, left=-1)
    results, _ = herd(32, lambda: session.get(ECHO))
    assert statuses(results) == {200}
    assert sandbox.count(CALLS) - before == 1


def test_a_herd_of_sessions_on_one_store_asks_once(sandbox: Sandbox) -> None:
    """32 sessions of one user, each on its own, share what the store has."""
    store = MemoryStore()
    sandbox.latency = {CALLS: 0.1}
    sessions = [sandbox.session("alice", store=store) for _ in range(32)]
    waiting = iter(sessions)
    results, _ = herd(32, lambda: next(waiting).get(ECHO))
    assert statuses(results) == {200} and sandbox.count(CALLS) == 1
    sandbox.revoke_tokens()
    waiting = iter(sessions)
    results, _ = herd(32, lambda: next(waiting).get(ECHO))
    assert statuses(results) == {200} and sandbox.count(CALLS) == 2


def test_a_herd_is_one_event(session: FinapiSession, sandbox: Sandbox) -> None:
    """Threads that have no token or a dead one, and wait for another one's renewal, take its token and tell nothing."""
    events: list[TokenEvent] = []
    session._own._journal = replace(session._own._journal, on_event=events.append)
    sandbox.latency = {CALLS: 0.2}
    for _ in range(2):
        results, _ = herd(16, lambda: session.get(ECHO))
        assert statuses(results) == {200} and events == []
        sandbox.revoke_tokens()


def test_a_late_401_waits_for_nobody(session: FinapiSession, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who meets a 401 on a token that has a successor takes that, even while the next renewal is under way."""
    monkeypatch.setattr("finapi_session.standing.TURN", 0.1)
    old = session.fetch_token()
    sandbox.revoke_tokens()
    warm(session)
    with session._own._turn.taken():
        assert session._own.renew(old.authorization) == session.fetch_token() != old


def test_a_sibling_has_renewed_already(sandbox: Sandbox) -> None:
    """A 401 on a token that a sibling has renewed costs no token call, also after a refresh that killed it."""
    store = MemoryStore()
    one, other = (sandbox.session("alice", store=store) for _ in range(2))
    warm(one)
    warm(other)
    sandbox.revoke_tokens()
    warm(one)
    before = sandbox.count(CALLS)
    warm(other)
    assert sandbox.count(CALLS) == before
    assert sandbox.count(ECHO, status=401) == 2


def test_a_sibling_is_found_although_the_clock_was_set_back(sandbox: Sandbox) -> None:
    """Which of two records is newer does not hang on the clock: what a sibling renewed yesterday's noon is taken."""
    store = MemoryStore()
    one, other = (sandbox.session("alice", store=store) for _ in range(2))
    warm(one)
    warm(other)
    sandbox.revoke_tokens()
    with frozen(time.time() - 86400):
        warm(one)
        before = sandbox.count(CALLS)
        warm(other)
    assert sandbox.count(CALLS) == before


@pytest.mark.parametrize(
    ("new", "step"),
    [(False, 0), (False, -86400), (True, 0)],
    ids=["sibling", "sibling, clock set back", "new process"],
)
def test_what_is_renewed_after_the_store_was_emptied_is_found(new: bool, step: float, sandbox: Sandbox) -> None:
    """Somebody flushes the store, and tokens die: who renews first does it for all."""
    store = MemoryStore()
    one, other = (sandbox.session("alice", store=store) for _ in range(2))
    for _ in range(2):
        sandbox.revoke_tokens()
        warm(one)
        warm(other)
    store._values.clear()
    sandbox.revoke_tokens()
    with frozen(time.time() + step):
        warm(sandbox.session("alice", store=store) if new else one)
        before = sandbox.count(CALLS)
        warm(other)
    assert sandbox.count(CALLS) == before


def test_a_warm_start_waits_for_nobody(sandbox: Sandbox) -> None:
    """What the store has is taken without its lock, even while somebody hangs with that."""
    store = MemoryStore()
    warm(sandbox.session(store=store))
    other = sandbox.session(store=store)
    with store.lock(other._own._key(other._own.identity.credentials())):
        _, seconds = herd(1, lambda: other.get(ECHO))
    assert seconds[0] < 5 and sandbox.count(CALLS) == 1


def test_a_herd_shares_one_failure(sandbox: Sandbox) -> None:
    """Threads that waited while the endpoint failed get that error, instead of asking one after the other."""
    sandbox.latency = {CALLS: 0.1}
    sandbox.answer_next(500, path=CALLS, times=99)
    alice = sandbox.session("alice")
    results, seconds = herd(16, lambda: alice.get(ECHO))
    assert {type(result) for result in results} == {TokenEndpointError}
    assert len({id(result) for result in results}) == 16
    assert sandbox.count(CALLS) == 1
    assert max(seconds) < 2


# --- a user session for each request -----------------------------------------------------------------------------


def test_short_lived_sessions_heed_what_finapi_asked_of_another(sandbox: Sandbox) -> None:
    """A long `Retry-After` rests the token calls of all sessions of a user, not only of the one that heard it."""
    client = sandbox.session()
    sandbox.answer_next(429, headers={"Retry-After": "300"}, path=CALLS, times=99)
    for _ in range(10):
        with pytest.raises(TokenEndpointError):
            client.user("alice", lambda: "her-password").get(ECHO)
    assert sandbox.count(CALLS) == 1


def test_what_finapi_asked_of_one_user_does_not_rest_another(sandbox: Sandbox) -> None:
    """A `Retry-After` to one identity is not heeded for another one of the same client."""
    store = MemoryStore()
    alice = sandbox.session("alice", store=store)
    alice.fetch_token()
    in_soft_window(alice, left=-1)
    client = sandbox.session(store=store)
    sandbox.answer_next(429, headers={"Retry-After": "300"}, path=CALLS)
    with pytest.raises(TokenEndpointError):
        client.fetch_token()
    assert client.user("alice").get(ECHO).status_code == 200


def test_a_wrong_password_is_not_the_answer_to_a_right_one(sandbox: Sandbox) -> None:
    """Who comes with the right password while a wrong one of the same user is being refused is not refused too."""
    client = sandbox.session()
    wrong, right = client.user("alice", "wrong"), client.user("alice", "her-password")
    sandbox.latency = {CALLS: 0.4}
    with ThreadPoolExecutor(2) as pool:
        refused = pool.submit(wrong.fetch_token)
        time.sleep(0.1)
        given = pool.submit(right.get, ECHO)
        assert isinstance(refused.exception(), InvalidGrantError) and given.result().status_code == 200
    assert sandbox.count(CALLS) == 2


def test_short_lived_sessions_share_a_standstill(sandbox: Sandbox) -> None:
    """An API that rejects every token costs ten sessions of a user what it costs one."""
    client = sandbox.session()
    sandbox.answer_next(401, path=ECHO, times=99)
    for _ in range(10):
        assert client.user("alice", "her-password").get(ECHO).status_code == 401
    assert sandbox.count(CALLS) <= 3 and sandbox.count(ECHO) <= 20


def test_short_lived_sessions_do_not_queue_before_expiry(sandbox: Sandbox) -> None:
    """While the endpoint hangs and fails in the soft window, one session tries, and the others go on at once."""
    client = sandbox.session()
    alice = client.user("alice", "her-password")
    warm(alice)
    in_soft_window(alice, left=59)
    sandbox.latency = {CALLS: 0.5}
    sandbox.answer_next(503, path=CALLS, times=99)

    def request() -> Any:
        user = client.user("alice", "her-password")
        user.get(ECHO)
        return user.get(ECHO)

    results, seconds = herd(8, request)
    assert statuses(results) == {200} and sandbox.count(CALLS) == 2
    assert sorted(seconds)[-2] < 0.45 < sorted(seconds)[-1]
    assert request().status_code == 200 and sandbox.count(CALLS) == 2


# --- the soft window --------------------------------------------------------------------------------------------


def test_one_thread_renews_in_the_soft_window_and_nobody_else_waits(session: FinapiSession, sandbox: Sandbox) -> None:
    """While the endpoint takes a second, 15 of 16 threads go on with the token that is still good."""
    sandbox.sticky, sandbox.kill_on_refresh = False, False
    warm(session)
    in_soft_window(session)
    sandbox.latency = {CALLS: 1}
    results, seconds = herd(16, lambda: session.get(ECHO))
    assert statuses(results) == {200}
    assert sandbox.count(CALLS) == 2
    assert sorted(seconds)[-2] < 0.9 < sorted(seconds)[-1]


def test_who_renews_early_uses_the_new_token(session: FinapiSession, sandbox: Sandbox) -> None:
    """The call that renewed in the soft window goes out with the new token: the old one may be dead by then."""
    sandbox.sticky = False
    warm(session)
    in_soft_window(session)
    warm(session)
    assert (sandbox.count(CALLS), sandbox.count(ECHO)) == (2, 2)


def test_a_failing_endpoint_is_not_noticed_while_the_token_is_good(session: FinapiSession, sandbox: Sandbox) -> None:
    """With a 503 for all of the soft window, 30 calls spread over it make at most 8 token calls and all succeed."""
    warm(session)
    opened = time.time()
    in_soft_window(session, left=60)
    sandbox.answer_next(503, path=CALLS, times=99)
    before = sandbox.count(CALLS)
    with frozen(opened) as clock:
        for _ in range(30):
            warm(session)
            clock.tick(timedelta(seconds=1.9))
    assert 2 <= sandbox.count(CALLS) - before <= 8


def test_the_soft_window_opens_with_one_try(session: FinapiSession, sandbox: Sandbox) -> None:
    """A try that fails in the moment in which the window opens is not made again in that moment."""
    warm(session)
    opened = time.time()
    sandbox.answer_next(503, path=CALLS, times=99)
    with frozen(opened):
        in_soft_window(session, left=60)
        for _ in range(10):
            warm(session)
    assert sandbox.count(CALLS) == 2


def test_a_try_that_fails_early_leaves_everything_as_it_was(session: FinapiSession, sandbox: Sandbox) -> None:
    """After a failed early try the token held goes on, without another look into the store at each call."""
    warm(session)
    in_soft_window(session)
    sandbox.answer_next(503, path=CALLS)
    warm(session)
    gets, get = [], session._ledger.load
    session._ledger.load = lambda key: gets.append(key) or get(key)  # type: ignore[func-returns-value, method-assign]
    warm(session)
    assert gets == [] and sandbox.count(CALLS) == 2


def test_short_soft_windows_are_tried_in_time(session: FinapiSession, sandbox: Sandbox) -> None:
    """A soft window of 5 s is tried again after 5/30 s, not after one of the long window's 2 s."""
    sandbox.lifetime = 50
    warm(session)
    token = session.fetch_token()
    with frozen(token.renew_at(60) + 0.01) as clock:
        sandbox.answer_next(503, path=CALLS)
        warm(session)
        clock.tick(0.4)
        warm(session)
    assert sandbox.count(CALLS) == 3


def test_who_comes_early_is_told_what_finapi_asked_of_another(sandbox: Sandbox) -> None:
    """While finAPI wants no calls, an early try makes none, and its reason is finAPI's."""
    events: list[TokenEvent] = []
    client = sandbox.session(on_event=events.append)
    alice = client.user("alice", "her-password")
    warm(alice)
    in_soft_window(alice)
    alice._own._standing.failure = Failure(TokenEndpointError("overloaded"), time.monotonic(), 50.0)
    warm(alice)
    assert sandbox.count(CALLS) == 1
    assert str(events[-1].reason).startswith("TokenEndpointError before expiry")


def test_a_refresh_refused_in_the_soft_window_costs_no_sibling_its_token(sandbox: Sandbox) -> None:
    """What finAPI refuses early is the refresh token: the access token serves all processes until it expires."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    alice, sibling = (sandbox.session(store=store).user("alice") for _ in range(2))
    warm(alice)
    in_soft_window(alice)
    sandbox.answer_next(400, body={"error": "invalid_grant"}, path=CALLS)
    warm(alice)
    warm(sibling)
    warm(alice)
    assert sandbox.count(CALLS) == 2
    alice.revoke_on_close = True
    alice.close()
    assert sandbox.count("/oauth/revoke", status=200) == 1


def test_retry_after_counts_in_the_soft_window(session: FinapiSession, sandbox: Sandbox) -> None:
    """finAPI's wish not to be called again is heeded there too."""
    warm(session)
    opened = time.time()
    in_soft_window(session, left=60)
    sandbox.answer_next(429, headers={"Retry-After": "50"}, path=CALLS, times=99)
    with frozen(opened) as clock:
        for _ in range(20):
            warm(session)
            clock.tick(2)
    assert sandbox.count(CALLS) == 2


def test_a_vault_that_fails_in_the_soft_window_is_not_noticed(sandbox: Sandbox) -> None:
    """A callable secret that raises costs no call while the token is good, and is told when it is needed."""
    open_vault = True

    def vault() -> str:
        if not open_vault:
            raise LookupError("vault is sealed")
        return sandbox.client_secret

    session = sandbox.session(client_secret=vault)
    warm(session)
    in_soft_window(session)
    open_vault = False
    warm(session)
    open_vault = True
    in_soft_window(session, left=-1)
    open_vault = False
    with pytest.raises(LookupError):
        session.get(ECHO)


def test_a_sticky_server_is_asked_once_in_the_soft_window(sandbox: Sandbox) -> None:
    """10,000 looks at a sticky token inside the leeway cost one token call, and siblings none."""
    store = MemoryStore()
    session = sandbox.session(store=store)
    warm(session)
    with frozen(time.time()) as clock:
        in_soft_window(session, left=59)
        held = session._own._held
        assert held is not None
        for _ in range(10_000):
            token = session.fetch_token()
            clock.tick(0.0058)
        assert (token.access_token, token.expires_at) == (held.token.access_token, held.token.expires_at)
        assert token.issued_at == held.token.issued_at
        assert sandbox.count(CALLS) == 2
        sandbox.session(store=store).fetch_token()
        assert sandbox.count(CALLS) == 2


def test_a_sticky_servers_last_second(sandbox: Sandbox) -> None:
    """`expires_in` 0 for a token with a known expiry is its last second: at most two more calls, then a new one."""
    sandbox.lifetime = 60
    session = sandbox.session()
    first = session.fetch_token()
    started = time.time()
    sandbox.advance(59.5)
    with frozen(started + 60.1) as clock:
        last_second = session.fetch_token()
        assert last_second.access_token == first.access_token and last_second.expires_at is not None
        session.fetch_token()
        sandbox.advance(1)
        clock.tick(1.1)
        second = session.fetch_token()
    assert second.access_token != first.access_token
    assert sandbox.count(CALLS) == 3


def test_a_sticky_answer_just_before_expiry(sandbox: Sandbox) -> None:
    """Asked early in its last second, a sticky token is still one with an expiry: 0 then is not "never"."""
    session = sandbox.session()
    warm(session)
    with frozen(time.time()) as clock:
        in_soft_window(session, left=0.5)
        token = session.fetch_token()
        clock.tick(0.6)
        sandbox.answer_next(200, body={"access_token": token.access_token, "expires_in": 0}, path=CALLS)
        assert session.fetch_token().lifetime == pytest.approx(1)
    assert sandbox.count(CALLS) == 3


def test_a_sticky_token_that_turns_out_to_live_for_ever(sandbox: Sandbox) -> None:
    """When the client's lifetime becomes "never", 0 is believed after a second look, and not asked every second."""
    sandbox.lifetime = 60
    session = sandbox.session()
    session.fetch_token()
    started = time.time()
    for _ in range(5):
        sandbox.answer_next(200, body={"access_token": session.fetch_token().access_token, "expires_in": 0}, path=CALLS)
    with frozen(started + 61) as clock:
        for _ in range(10):
            session.fetch_token()
            clock.tick(2)
    assert session.fetch_token().expires_at is None
    assert sandbox.count(CALLS) == 3


def test_a_last_second_is_not_followed_by_another(sandbox: Sandbox) -> None:
    """However long the answer takes, a second 0 for the same token is believed: it never expires."""
    session = sandbox.session()
    warm(session)
    in_soft_window(session, left=0)
    same = {"access_token": session._own._record.token and session._own._record.token.access_token, "expires_in": 0}
    sandbox.latency = {CALLS: 0.1}
    for _ in range(2):
        sandbox.answer_next(200, body=same, path=CALLS)
        token = session.fetch_token()
        time.sleep(1.1)
    assert token.expires_at is None and sandbox.count(CALLS) == 3


@pytest.mark.parametrize("answer", [{"expires_in": 0}, {}], ids=["0", "absent"])
def test_never_means_never(answer: dict[str, object], sandbox: Sandbox) -> None:
    """A token without expiry is used as it is ten years later."""
    store = MemoryStore()
    sandbox.answer_next(200, body={"access_token": "eternal", "token_type": "bearer", **answer}, path=CALLS)
    session = sandbox.session(store=store)
    session.fetch_token()
    with frozen(time.time() + 10 * 365 * 86400):
        assert session.fetch_token().access_token == "eternal"
        assert sandbox.session(store=store).fetch_token().access_token == "eternal"
    assert sandbox.count(CALLS) == 1


@pytest.mark.parametrize("lifetime", [60, 5])
def test_short_lives(lifetime: float, session: FinapiSession, sandbox: Sandbox) -> None:
    """A token that lives for less than the leeway is not renewed at once, again and again."""
    sandbox.lifetime = lifetime
    for _ in range(10):
        warm(session)
    assert sandbox.count(CALLS) == 1


# --- refusals ---------------------------------------------------------------------------------------------------


def test_a_wrong_password_is_sent_once(sandbox: Sandbox) -> None:
    """Six sessions with three calls each, then 16 threads: one call, the same error; the right one works at once."""
    store = MemoryStore()
    errors = []
    for _ in range(6):
        session = sandbox.session("alice", "wrong", store=store)
        for _ in range(3):
            with pytest.raises(InvalidGrantError) as caught:
                session.get(ECHO)
            errors.append(caught.value)
    results, _ = herd(16, lambda: sandbox.session("Alice", "wrong", store=store).get(ECHO))
    assert {str(error) for error in [*errors, *results]} == {str(errors[0])}
    assert errors[0].status == 400 and errors[0].request_id
    assert sandbox.count(CALLS) == 1
    warm(sandbox.session("alice", store=store))
    assert sandbox.count(CALLS) == 2
    with pytest.raises(InvalidGrantError):
        sandbox.session("alice", "wrong", store=store).get(ECHO)
    assert sandbox.count(CALLS) == 2


def test_what_is_kept_follows_what_was_kept_whatever_the_clocks(sandbox: Sandbox) -> None:
    """A record counts as newer than one of a process whose clock is a day ahead, also if that had another password."""
    store = MemoryStore()
    with frozen(time.time() + 86400), pytest.raises(InvalidGrantError):
        sandbox.session("alice", "wrong", store=store).fetch_token()
    alice = sandbox.session("alice", store=store)
    key = alice._own._key(alice._own.identity.credentials())
    before = alice._ledger.load(key)
    alice.fetch_token()
    after = alice._ledger.load(key)
    assert after.serial > before.serial and after.refusals == before.refusals != {}


def test_a_wrong_password_neither_sees_nor_harms_the_users_token(sandbox: Sandbox) -> None:
    """A stored token serves only those who know the password that it was had with."""
    store = MemoryStore()
    alice = sandbox.session("alice", store=store)
    warm(alice)
    with pytest.raises(InvalidGrantError):
        sandbox.session("alice", "wrong", store=store).get(ECHO)
    warm(sandbox.session("alice", store=store))
    assert sandbox.count(CALLS) == 2


def test_what_is_refused_of_one_password_harms_no_token_of_another(sandbox: Sandbox) -> None:
    """A refresh token of our own and a wrong password are each sent once; what a sibling stored stays."""
    store = MemoryStore()
    sandbox.sticky = False
    stored = sandbox.session("alice", store=store).fetch_token()
    alice = sandbox.session("alice", "wrong", store=store, token=sandbox.session("alice").fetch_token())
    warm(alice)
    sandbox.revoke_tokens(refresh=True)
    for _ in range(3):
        with pytest.raises(InvalidGrantError):
            alice.get(ECHO)
    assert [call.grant_type for call in sandbox.calls if call.grant_type][2:] == ["refresh_token", "password"]
    assert sandbox.session("alice", store=store).fetch_token() == stored


def test_revoke_clears_a_refusal(sandbox: Sandbox) -> None:
    """After `revoke()` a password that was refused may be sent again: it may have become right."""
    session = sandbox.session("alice", "to-be")
    with pytest.raises(InvalidGrantError):
        session.get(ECHO)
    sandbox.change_password("alice", "to-be")
    with pytest.raises(InvalidGrantError):
        session.get(ECHO)
    assert sandbox.count(CALLS) == 1
    session.revoke()
    warm(session)


@pytest.mark.parametrize("answer", [500, "drop", "lose", "html", "empty", "truncated"])
def test_a_password_that_may_have_counted_is_not_sent_again(answer: Any, sandbox: Sandbox) -> None:
    """A password grant answered 500, cut off or unreadable is one call."""
    sandbox.answer_next(answer, path=CALLS)
    alice = sandbox.session("alice")
    with pytest.raises(TokenEndpointError):
        alice.get(ECHO)
    assert sandbox.count(CALLS) == 1
    warm(alice)


@pytest.mark.parametrize(
    ("prepare", "error"),
    [
        (lambda sandbox: sandbox.change_client_secret("other"), InvalidClientError),
        (lambda sandbox: sandbox.lock_user("alice"), UserLockedError),
        (lambda sandbox: setattr(sandbox, "api_version", 2), AccessDeniedError),
    ],
)
def test_what_rests_for_a_minute(
    prepare: Callable[[Sandbox], None], error: type[FinapiError], sandbox: Sandbox
) -> None:
    """A wrong client secret, a locked user and a wrong API version cost one call in ten, and again after 60 s."""
    alice = sandbox.session("alice")
    prepare(sandbox)
    started = time.time()
    with frozen(started) as clock:
        for _ in range(10):
            with pytest.raises(error):
                alice.get(ECHO)
            clock.tick(5)
        assert sandbox.count(CALLS) == 1
        clock.tick(11)
        with pytest.raises(error):
            alice.get(ECHO)
    assert sandbox.count(CALLS) == 2


def test_a_refresh_token_rests_as_well(sandbox: Sandbox) -> None:
    """What rests for a minute is not tried with the refresh token either."""
    alice = sandbox.session("alice")
    warm(alice)
    sandbox.revoke_tokens()
    sandbox.answer_next(423, path=CALLS, times=99)
    for _ in range(3):
        with pytest.raises(UserLockedError):
            alice.get(ECHO)
    assert sandbox.count(CALLS) == 2


def test_a_rest_is_not_prolonged_by_a_clock_that_was_set_back(sandbox: Sandbox) -> None:
    """A refusal that lies a day in the future is none."""
    session = sandbox.session()
    sandbox.change_client_secret("other")
    with frozen(time.time() + 86400), pytest.raises(InvalidClientError):
        session.get(ECHO)
    with pytest.raises(InvalidClientError):
        session.get(ECHO)
    assert sandbox.count(CALLS) == 2


@pytest.mark.parametrize("expired", [False, True], ids=["400", "401"])
def test_a_refused_refresh_token_is_followed_by_the_password_once(expired: bool, sandbox: Sandbox) -> None:
    """An invalid (400) or expired (401) refresh token costs one call more, and the call does not fail."""
    alice = sandbox.session("alice")
    warm(alice)
    if expired:
        sandbox.expire_tokens(refresh=True)
    else:
        sandbox.revoke_tokens(refresh=True)
    warm(alice)
    assert [call.grant_type for call in sandbox.calls if call.grant_type] == ["password", "refresh_token", "password"]


def test_a_refused_password_is_no_way_out_of_a_refused_refresh_token(sandbox: Sandbox) -> None:
    """When the refresh token ends, a password that was refused before is not sent again."""
    store = MemoryStore()
    with pytest.raises(InvalidGrantError):
        sandbox.session("alice", "wrong", store=store).get(ECHO)
    token = sandbox.session("alice").fetch_token()
    alice = sandbox.session("alice", "wrong", store=store, token=token)
    warm(alice)
    sandbox.revoke_tokens(refresh=True)
    for _ in range(2):
        with pytest.raises(InvalidGrantError):
            alice.get(ECHO)
    grants = [call.grant_type for call in sandbox.calls if call.grant_type]
    assert grants == ["password", "password", "refresh_token"]


@pytest.mark.parametrize("expired", [False, True], ids=["400", "401"])
def test_without_a_password_a_login_is_required(expired: bool, sandbox: Sandbox) -> None:
    """A user who lives on a token gets LoginRequiredError when it ends, and finAPI is asked once."""
    token = sandbox.session("alice").fetch_token()
    alice = FinapiSession(
        sandbox.client_id, sandbox.client_secret, username="alice", environment=sandbox.environment, token=token
    )
    alice.verify, alice.trust_env = sandbox.ca_bundle, False
    warm(alice)
    if expired:
        sandbox.expire_tokens(refresh=True)
    else:
        sandbox.revoke_tokens(refresh=True)
    before = sandbox.count(CALLS)
    for _ in range(3):
        with pytest.raises(LoginRequiredError, match="alice.*password") as caught:
            alice.get(ECHO)
    assert sandbox.count(CALLS) - before == 1
    refused = [call for call in sandbox.calls if call.grant_type][-1]
    error = caught.value
    assert (error.status, error.code) == ((401, "invalid_token") if expired else (400, "invalid_grant"))
    assert (error.description or "").startswith("Invalid refresh token") and error.request_id == refused.request_id


@pytest.mark.parametrize("expired", [False, True], ids=["400", "401"])
def test_a_refresh_token_that_was_refused_is_never_sent_again(expired: bool, sandbox: Sandbox) -> None:
    """Also a minute later, when the refusal has rested, by us and by a sibling on the same store."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    alice, sibling = (sandbox.session(store=store).user("alice") for _ in range(2))
    warm(alice)
    if expired:
        sandbox.expire_tokens(refresh=True)
    else:
        sandbox.revoke_tokens(refresh=True)
    before = sandbox.count(CALLS)
    for elapsed in (0, 61):
        for user in (alice, sibling):
            with frozen(time.time() + elapsed), pytest.raises(LoginRequiredError):
                user.get(ECHO)
    assert sandbox.count(CALLS) == before + 1


@pytest.mark.parametrize(("status", "code"), [(401, "invalid_grant"), (400, None)])
def test_a_password_is_refused_for_good_by_status_or_code(status: int, code: str | None, sandbox: Sandbox) -> None:
    """A 400, and the code invalid_grant at whatever status, may be the user's password: it is not sent again."""
    alice = sandbox.session("alice")
    sandbox.answer_next(status, body={"error": code} if code else {}, path=CALLS)
    with frozen(time.time()) as clock:
        for _ in range(3):
            with pytest.raises(InvalidGrantError):
                alice.fetch_token()
            clock.tick(61)
    assert sandbox.count(CALLS) == 1


@pytest.mark.parametrize("password", [None, "her-password"], ids=["without a password", "with one"])
@pytest.mark.parametrize("status", [400, 401])
def test_a_suspended_client_costs_no_user_her_login(status: int, password: str | None, sandbox: Sandbox) -> None:
    """While finAPI refuses the client, a refresh token and a password are not to blame, and work again afterwards."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    alice = sandbox.session(store=store).user("alice", password)
    warm(alice)
    sandbox.revoke_tokens()
    sandbox.answer_next(status, body={"error": "invalid_client"}, path=CALLS, times=2)
    with pytest.raises(InvalidClientError):
        alice.get(ECHO)
    sandbox._traffic.clear()
    with frozen(time.time() + 61):
        warm(alice)
    assert next(call.grant_type for call in sandbox.calls if call.grant_type) == "refresh_token"


@pytest.mark.parametrize("answer", [500, 423, "drop"])
def test_a_refused_refresh_token_goes_whatever_comes_of_the_password(answer: Any, sandbox: Sandbox) -> None:
    """Each refresh token is refused once: the password that fails after it does not bring it back."""
    alice = sandbox.session("alice")
    warm(alice)
    sandbox.revoke_tokens(refresh=True)
    sandbox.answer_next(answer, path=CALLS, grant_type="password", times=3)
    for elapsed in (0, 61, 122):
        with frozen(time.time() + elapsed), pytest.raises(TokenError):
            alice.get(ECHO)
    assert sandbox.count(CALLS, grant_type="refresh_token") == 1


def test_a_new_token_beats_what_is_left_of_a_spent_one(sandbox: Sandbox) -> None:
    """After a login was required, the token that the caller brings is used, although the refusal was kept later."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    cron = sandbox.session(store=store).user("alice")
    warm(cron)
    sandbox.revoke_tokens(refresh=True)
    new = sandbox.session("alice").fetch_token()
    with pytest.raises(LoginRequiredError):
        cron.get(ECHO)
    with frozen(time.time() + 3601):
        alice = FinapiSession(
            sandbox.client_id,
            sandbox.client_secret,
            username="alice",
            environment=sandbox.environment,
            store=store,
            token=replace(new, expires_at=time.time() + 60),
        )
        assert alice.fetch_token().access_token == new.access_token


def test_a_listener_that_asks_for_a_token_hangs_nobody(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """`on_event` is told while the token is being made, so it cannot have one: that is said at once."""
    session = sandbox.session(on_event=lambda _: session.fetch_token())
    _, seconds = herd(1, lambda: session.get(ECHO))
    assert seconds[0] < 5 and "on_event raised RuntimeError" in caplog.text
    session._journal = session._own._journal = Journal(sandbox.base_url)


def test_what_a_sibling_stored_is_taken_while_finapi_wants_no_calls(sandbox: Sandbox) -> None:
    """A long `Retry-After` is for asking finAPI, not for looking into the store."""
    store = MemoryStore()
    ours = sandbox.session("alice", store=store)
    sandbox.answer_next(429, headers={"Retry-After": "300"}, path=CALLS)
    for _ in range(2):
        with pytest.raises(TokenEndpointError):
            ours.get(ECHO)
    warm(sandbox.session("alice", store=store))
    warm(ours)
    assert sandbox.count(CALLS) == 2


def test_threads_share_what_a_vault_raises(sandbox: Sandbox) -> None:
    """A vault that is slow to fail is asked once by all threads that wait, and again by the next call."""
    asked: list[int] = []

    def vault() -> str:
        asked.append(1)
        time.sleep(0.3)
        raise ConnectionError("the vault is down")

    session = sandbox.session(client_secret=vault)

    def request() -> str:
        with pytest.raises(ConnectionError, match="the vault is down"):
            session.get(ECHO)
        return "failed"

    _, seconds = herd(8, request)
    assert len(asked) == 1 and max(seconds) < 1
    request()
    assert len(asked) == 2


def test_a_user_without_anything_must_log_in(sandbox: Sandbox) -> None:
    """Without a password and a token nothing is sent."""
    with pytest.raises(LoginRequiredError, match="there is no token for user 'nobody'"):
        sandbox.session("nobody").get(ECHO)
    assert sandbox.calls == []


# --- the API rejects --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sticky", [False, True])
def test_every_call_rejected_although_tokens_are_fresh(sticky: bool, session: FinapiSession, sandbox: Sandbox) -> None:
    """An API that rejects every token gets at most 20 sends and 3 token calls in 10 calls, and heals with the API."""
    sandbox.sticky = sticky
    sandbox.answer_next(401, path=ECHO, times=99)
    for _ in range(10):
        assert session.get(ECHO).status_code == 401
    assert sandbox.count(CALLS) <= 3
    assert sandbox.count(ECHO) <= 20
    sandbox._traffic.clear()
    warm(session)


def test_many_threads_that_meet_one_dead_token_count_as_one(sandbox: Sandbox) -> None:
    """A new token that is revoked while several replays are on their way does not make a standstill."""
    session = sandbox.session("alice")
    rejected = session.fetch_token().authorization
    sandbox.revoke_tokens()
    second = session._own.renew(rejected)
    assert second is not None
    sandbox.revoke_tokens()
    for _ in range(4):
        session._own.rejected(second)
    assert session.get(ECHO).status_code == 200


def test_one_rejected_replay_after_good_calls_makes_no_standstill(sandbox: Sandbox) -> None:
    """A token revoked on its way to us says nothing of the API: the next call renews."""
    session = sandbox.session("alice")
    warm(session)
    sandbox.answer_next(401, path=ECHO, times=2)
    assert session.get(ECHO).status_code == 401
    sandbox.revoke_tokens()
    warm(session)


def test_a_standstill_ends_when_a_sibling_has_a_better_token(sandbox: Sandbox) -> None:
    """While we ask for nothing new, what a sibling has stored is taken."""
    store = MemoryStore()
    sandbox.sticky = False
    ours, sibling = (sandbox.session("alice", store=store) for _ in range(2))
    sandbox.answer_next(401, path=ECHO, times=4)
    for _ in range(2):
        assert ours.get(ECHO).status_code == 401
    sandbox.revoke_tokens()
    assert ours.get(ECHO).status_code == 401
    calls = sandbox.count(CALLS)
    sibling.fetch_token()
    assert sibling.get(ECHO).status_code == 200
    assert ours.get(ECHO).status_code == 200
    assert sandbox.count(CALLS) == calls + 1


def test_who_comes_late_to_the_soft_window_does_not_renew_again(session: FinapiSession, sandbox: Sandbox) -> None:
    """A thread that saw the old token before another one renewed it leaves the new one alone."""
    sandbox.sticky = False
    warm(session)
    in_soft_window(session)
    seen = session._own._held
    assert seen is not None
    session.fetch_token()
    session._own._renew_early(seen)
    assert sandbox.count(CALLS) == 2


def test_nobody_waits_for_ever(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that hangs in its renewal keeps the others for a bounded time only."""
    monkeypatch.setattr("finapi_session.standing.TURN", 0.1)
    session = sandbox.session()
    with ThreadPoolExecutor(1) as pool, session._own._turn.taken():
        with pytest.raises(TokenEndpointError, match="another thread"):
            pool.submit(session.get, ECHO).result()
    warm(session)


def test_a_refused_client_is_told_from_a_refused_refresh_token(sandbox: Sandbox) -> None:
    """Without a password, a client secret that finAPI refuses is said to be that, and the refresh token is kept."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    alice = sandbox.session(store=store).user("alice")
    warm(alice)
    sandbox.revoke_tokens()
    sandbox.answer_next(401, body={"error": "invalid_client"}, path=CALLS)
    with pytest.raises(InvalidClientError):
        alice.get(ECHO)
    assert alice._own._record.token is not None and alice._own._record.token.refresh_token


def test_the_standstill_ends(sandbox: Sandbox) -> None:
    """For 30 s a rejected token is not renewed, and then it is."""
    sandbox.sticky = False
    session = sandbox.session()
    sandbox.answer_next(401, path=ECHO, times=7)
    started = time.time()
    with frozen(started) as clock:
        for _ in range(3):
            session.get(ECHO)
        calls = sandbox.count(CALLS)
        clock.tick(29.5)
        session.get(ECHO)
        assert sandbox.count(CALLS) == calls
        clock.tick(1)
        session.get(ECHO)
    assert sandbox.count(CALLS) == calls + 1


@pytest.mark.parametrize("status", [403, 423, 451, 510])
def test_other_statuses_are_not_about_the_token(status: int, session: FinapiSession, sandbox: Sandbox) -> None:
    """403, 423, 451 and 510 from the API are answers, not reasons to renew."""
    warm(session)
    sandbox.answer_next(status, path=ECHO)
    assert session.get(ECHO).status_code == status
    assert sandbox.count(CALLS) == 1 and sandbox.count(ECHO) == 2


def test_why_a_token_is_not_renewed_is_told(session: FinapiSession, sandbox: Sandbox) -> None:
    """An event of the identity says what was decided: in the soft window, and where the API or finAPI is at odds."""
    events: list[TokenEvent] = []
    session._own._journal = replace(session._own._journal, on_event=events.append)
    warm(session)
    in_soft_window(session)
    sandbox.answer_next(500, path=CALLS)
    warm(session)
    sandbox.sticky = False
    sandbox.answer_next(401, path=ECHO, times=5)
    for _ in range(2):
        session.get(ECHO)
    held = session.fetch_token()
    sandbox.answer_next(200, body={"access_token": held.access_token, "expires_in": 3600}, path=CALLS)
    session._own._standing.go_on()
    session.get(ECHO)
    # A user's tokens that are lost one after another may be another worker's doing.
    client = session._own.identity.username is None
    assert {event.identity for event in events} == {str(session._own.identity)}
    assert [event.reason for event in events if event.kind == "decided"] == [
        "TokenEndpointError before expiry: the token held goes on",
        f"the API rejects what finAPI gives: it is not renewed again for {30 if client else 1} s",
        "finAPI gives the rejected token again: it is not renewed again for 30 s",
    ]


# --- others renew with the same refresh token --------------------------------------------------------------------


def workers(sandbox: Sandbox, count: int) -> list[FinapiSession]:
    """Sessions of one user in as many processes that share no store, warm: sticky, they have the same token."""
    made = [sandbox.session("alice") for _ in range(count)]
    for session in made:
        warm(session)
    return made


def test_workers_without_a_shared_store_come_to_share_a_token(sandbox: Sandbox) -> None:
    """Each refresh kills the other worker's token; soon both ask by password, which gives them the same one."""
    pair = workers(sandbox, 2)
    sandbox.expire_tokens("alice")
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


def test_workers_without_a_shared_store_at_once(sandbox: Sandbox) -> None:
    """Workers that meet expired tokens in the same moment settle: after two rounds a third costs next to no call."""
    four = workers(sandbox, 4)
    for _ in range(3):
        time.sleep(1.1)  # longer than the pause after two replays that were killed
        sandbox.expire_tokens("alice")
        calls = sandbox.count(CALLS)
        with ThreadPoolExecutor(4) as pool:
            lists = list(pool.map(lambda session: [session.get(ECHO).status_code for _ in range(25)], four))
    assert sum(list.count(200) for list in lists) >= 96
    assert sandbox.count(CALLS) - calls <= 12


def fight(alice: FinapiSession) -> None:
    """Let her tokens be rejected as if a worker renewed beside her, until she knows."""
    for _ in range(2):
        bearer = alice._own.token().authorization
        alice._own._standing.refreshed(bearer)
        alice._own._standing.lost(bearer)


def test_a_token_revoked_once_is_no_fight(sandbox: Sandbox) -> None:
    """The refresh token goes first, also after a token had by it was revoked."""
    alice = sandbox.session("alice")
    warm(alice)
    for _ in range(2):
        sandbox.revoke_tokens("alice")
        warm(alice)
    assert sandbox.count(CALLS, grant_type="password") == 1
    assert sandbox.count(CALLS, grant_type="refresh_token") == 2


def test_a_refreshed_token_that_is_rejected_unused_counts_twice() -> None:
    """It was surely killed by a refresh; one that was in use may have been revoked."""
    unused = Standing()
    unused.signed_in()
    unused.given("only")
    unused.refreshed("only")
    unused.rejected("only")
    assert not unused.contested
    unused.lost("only")
    assert unused.contested
    used = Standing()
    used.signed_in()
    used.refreshed("one")
    used.lost("one")
    used.given("two")
    used.refreshed("two")
    used.rejected("two")
    assert used.contested
    used.uncontested()
    assert not used.contested
    used.refreshed("three")
    used.lost("three")
    assert not used.contested


def test_refresh_tokens_that_are_replaced_are_no_fight(sandbox: Sandbox) -> None:
    """Nobody else can have renewed with them, however often the tokens had by them are rejected."""
    sandbox.rotate_refresh_tokens = True
    alice = sandbox.session("alice")
    warm(alice)
    for _ in range(4):
        sandbox.expire_tokens("alice")
        warm(alice)
    assert sandbox.count(CALLS, grant_type="password") == 1
    assert sandbox.count(CALLS, grant_type="refresh_token") == 4


def test_before_expiry_the_refresh_token_goes_first_whoever_else_renews(sandbox: Sandbox) -> None:
    """A sticky finAPI gives no other token by password while one lives."""
    alice = sandbox.session("alice")
    warm(alice)
    fight(alice)
    in_soft_window(alice)
    warm(alice)
    assert sandbox.count(CALLS, grant_type="refresh_token") == 1
    sandbox.revoke_tokens("alice")
    warm(alice)
    assert sandbox.count(CALLS, grant_type="password") == 2


def test_who_has_no_password_renews_by_refresh_token_whoever_else_does(sandbox: Sandbox) -> None:
    """Without a password there is nothing else to renew with."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    alice = sandbox.session(store=store).user("alice")
    warm(alice)
    fight(alice)
    sandbox.revoke_tokens("alice")
    warm(alice)
    assert sandbox.count(CALLS, grant_type="refresh_token") == 1


def test_a_password_that_finapi_never_took_is_not_sent_whoever_else_renews(sandbox: Sandbox) -> None:
    """It may be wrong, and a wrong one counts: the refresh token serves."""
    alice = sandbox.session("alice", password="wrong", token=sandbox.session("alice").fetch_token())
    warm(alice)
    fight(alice)
    sandbox.revoke_tokens("alice")
    warm(alice)
    assert [call.grant_type for call in sandbox.calls if call.grant_type] == ["password", "refresh_token"]


def test_a_refused_password_is_not_sent_whoever_else_renews(sandbox: Sandbox) -> None:
    """finAPI took it once and refused it since: the refresh token, had elsewhere, serves."""
    alice = sandbox.session("alice")
    warm(alice)
    fight(alice)
    key = alice._own._key(alice._own.identity.credentials())
    record = alice._ledger.load(key)
    refusals = {record.fingerprint: Refusal("InvalidGrantError", "no")}
    alice._ledger.save(key, record.next(time.time(), refusals=refusals))
    sandbox.expire_tokens("alice")
    warm(alice)
    assert sandbox.count(CALLS, grant_type="password") == 1


def test_a_password_that_gets_the_rejected_token_gives_way_to_the_refresh_token(sandbox: Sandbox) -> None:
    """Where nobody has a better one, there was no fight: after the rest the refresh token is asked by again."""
    alice = sandbox.session("alice")
    warm(alice)
    fight(alice)
    sandbox.answer_next(401, path=ECHO)
    with frozen(time.time()) as clock:
        assert alice.get(ECHO).status_code == 401
        clock.tick(31)
        sandbox.answer_next(401, path=ECHO)
        assert alice.get(ECHO).status_code == 200
    assert [c.grant_type for c in sandbox.calls if c.grant_type] == ["password", "password", "refresh_token"]


def test_siblings_on_one_store_do_not_fight(sandbox: Sandbox) -> None:
    """A token that a sibling has renewed and stored is taken, and nothing is lost by it."""
    store = MemoryStore()
    pair = [sandbox.session("alice", store=store) for _ in range(2)]
    for session in pair:
        warm(session)
    for one, other in [pair, pair[::-1]] * 3:
        one._own.renew(one.fetch_token().authorization)
        warm(other)
    assert not any(session._own._standing.contested for session in pair)
    assert sandbox.count(CALLS, grant_type="password") == 1


def test_a_replay_killed_by_another_worker_makes_a_pause_only(sandbox: Sandbox) -> None:
    """Two replays in a row killed by workers that renew too cost a second, not half a minute."""
    sandbox.sticky = False
    alice = sandbox.session("alice")
    warm(alice)
    sandbox.answer_next(401, path=ECHO, times=4)
    with frozen(time.time()) as clock:
        assert [alice.get(ECHO).status_code for _ in range(3)] == [401, 401, 200]
        assert [c.grant_type for c in sandbox.calls if c.grant_type] == ["password", "refresh_token", "password"]
        sandbox.revoke_tokens("alice")
        assert alice.get(ECHO).status_code == 401
        clock.tick(1.1)
        assert alice.get(ECHO).status_code == 200


def test_an_api_that_rejects_all_is_no_fight_for_long(sandbox: Sandbox) -> None:
    """After the pause of a second the next replay that is rejected makes it half a minute."""
    sandbox.sticky = False
    alice = sandbox.session("alice")
    sandbox.answer_next(401, path=ECHO, times=99)
    with frozen(time.time()) as clock:
        for _ in range(20):
            assert alice.get(ECHO).status_code == 401
            clock.tick(1.1)
    assert sandbox.count(CALLS) == 4


# --- what finAPI may or may not do -------------------------------------------------------------------------------


def test_a_refresh_answer_without_a_refresh_token_keeps_the_old_one(sandbox: Sandbox) -> None:
    """A left-out refresh token stays valid, and is used again."""
    sandbox.rotate_refresh_tokens = "omit"
    alice = sandbox.session("alice")
    warm(alice)
    for _ in range(2):
        sandbox.revoke_tokens()
        warm(alice)
    assert [call.grant_type for call in sandbox.calls if call.grant_type] == [
        "password",
        "refresh_token",
        "refresh_token",
    ]


def test_a_replaced_refresh_token_is_stored_before_its_access_token_is_used(sandbox: Sandbox) -> None:
    """At the moment of the first API call with a new token, the store has it and its refresh token."""
    sandbox.rotate_refresh_tokens = True
    store = MemoryStore()
    alice = sandbox.session("alice", store=store)
    stored_when_used = []
    prepare = alice.auth

    def spy(request: Any) -> Any:
        request = prepare(request)
        carried = request.headers["Authorization"].removeprefix("Bearer ")
        stored_when_used.append(any(carried in value for value in store._values.values()))
        return request

    alice.auth = spy
    warm(alice)
    sandbox.expire_tokens()
    in_soft_window(alice, left=-1)
    warm(alice)
    assert stored_when_used == [True, True]


@pytest.mark.parametrize("as_dict", [False, True], ids=["Token", "dict"])
def test_an_adopted_token_renews_like_any_other(as_dict: bool, sandbox: Sandbox) -> None:
    """`token=` is used without a token call, stored, and renewed by its refresh token."""
    token = sandbox.session("alice").fetch_token()
    store = MemoryStore()
    alice = FinapiSession(
        sandbox.client_id,
        sandbox.client_secret,
        username="alice",
        environment=sandbox.environment,
        token=token.to_dict() if as_dict else token,
        store=store,
    )
    alice.verify, alice.trust_env = sandbox.ca_bundle, False
    warm(alice)
    assert sandbox.count(CALLS) == 1
    sandbox.revoke_tokens()
    warm(alice)
    assert [call.grant_type for call in sandbox.calls if call.grant_type] == ["password", "refresh_token"]
    assert any(alice.fetch_token().access_token in value for value in store._values.values())


def test_a_token_as_requests_oauthlib_had_it(sandbox: Sandbox) -> None:
    """A dict as that library keeps it, got by that library, is adopted with its expiry."""
    from oauthlib.oauth2 import BackendApplicationClient

    with OAuth2Session(client=BackendApplicationClient(sandbox.client_id)) as other:
        other.trust_env = False
        theirs = other.fetch_token(
            sandbox.environment.token_url,
            client_secret=sandbox.client_secret,
            include_client_id=True,
            verify=sandbox.ca_bundle,
        )
    with sandbox.session(token=theirs) as session:
        warm(session)
        assert session.fetch_token().expires_at == theirs["expires_at"]
    assert sandbox.count(CALLS) == 1


@pytest.mark.parametrize("step", [86400, -86400, -7200], ids=["day forward", "day back", "two hours back"])
def test_the_wall_clock_steps(step: float, session: FinapiSession, sandbox: Sandbox) -> None:
    """A clock that is set costs at most one token call, and no call fails; nor do those after it is set right."""
    warm(session)
    with frozen(time.time() + step):
        for _ in range(3):
            warm(session)
    assert sandbox.count(CALLS) <= 2
    for _ in range(3):
        warm(session)
    assert sandbox.count(CALLS) <= 3


@pytest.mark.parametrize("rounds", [10])
def test_revoking_while_others_call(rounds: int, sandbox: Sandbox) -> None:
    """`revoke()` racing with calls leaves no thread hanging, no failed call, and no dead token in the store."""
    store = MemoryStore()
    alice = sandbox.session("alice", store=store)
    stop = threading.Event()
    failed: list[Any] = []

    def call() -> None:
        while not stop.is_set():
            status = alice.get(ECHO).status_code
            if status != 200:
                failed.append(status)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(rounds):
        time.sleep(0.05)
        alice.revoke()
    stop.set()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    # A replay may meet the next revocation: two sends a call, no more.
    assert len(failed) <= rounds and set(failed) <= {401}
    alice.revoke()
    assert store.get(alice._own._key(alice._own.identity.credentials())) is None


def test_the_fast_path_takes_no_lock_and_touches_no_store(sandbox: Sandbox) -> None:
    """With a fresh token, a held lock and a broken store do not matter."""
    session = sandbox.session()
    warm(session)
    source = session._own
    source._ledger = None  # type: ignore[assignment]
    with source._turn.taken():
        warm(session)


def test_20_threads_while_tokens_are_killed(sandbox: Sandbox) -> None:
    """Calls of every kind, tokens killed every 250 ms: under 1 % fail, and only those whose replay was killed too."""
    client = sandbox.session()
    alice = client.user("alice", "her-password")
    kinds: list[Callable[[], Any]] = [
        lambda: client.get("/api/v2/banks"),
        lambda: alice.get("/api/v2/accounts"),
        lambda: alice.post(ECHO, data=b"body"),
        lambda: client.get(ECHO, stream=True),
        lambda: alice.get("/api/v2/tests/redirect", params={"to": ECHO}),
    ]
    herd(20, lambda: [kind() for kind in kinds])
    ends = time.monotonic() + 6
    answers: list[Any] = []

    def work(number: int) -> None:
        while time.monotonic() < ends:
            response = kinds[number % len(kinds)]()
            assert response.content is not None
            answers.append(response)
            number += 1

    with ThreadPoolExecutor(20) as pool:
        workers = [pool.submit(work, number) for number in range(20)]
        while time.monotonic() < ends:
            seen = len(answers)
            time.sleep(0.25)
            while len(answers) < seen + 100 and time.monotonic() < ends:
                time.sleep(0.01)  # an overloaded machine needs longer for a few rounds of calls
            sandbox.revoke_tokens()
        for worker in workers:
            worker.result(timeout=30)
    failed = [answer for answer in answers if answer.status_code != 200]
    assert len(answers) > 200
    assert {answer.status_code for answer in failed} <= {401}
    assert all(answer.history for answer in failed), "a 401 was not healed"
    assert len(failed) < len(answers) / 100, f"{len(failed)} of {len(answers)}"
