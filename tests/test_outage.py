"""Stores that fail, hang, lag and come back: nobody's call fails of it, and no login is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from finapi_session import FileStore, FinapiSession, InvalidGrantError, LoginRequiredError, MemoryStore, TokenError
from finapi_session.testing import Sandbox

from .clocks import Clock
from .herd import CALLS, ECHO, warm
from .links import Link
from .logins import keys, stored, without_password


@pytest.fixture
def wait(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets so many seconds pass by all clocks, the monotonic one included."""
    real, ahead = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + ahead[0])

    def wait(seconds: float) -> None:
        ahead[0] += seconds
        clock.go_on(seconds)

    return wait


def login(sandbox: Sandbox, *, rotate: bool = True) -> MemoryStore:
    """Return a store in which alice's login is; her refresh tokens are replaced at each use if they *rotate*."""
    sandbox.rotate_refresh_tokens = rotate
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    return store


# --- what the store did not take ----------------------------------------------------------------------------------


@pytest.mark.parametrize("later", ["close", "call", "another session"])
def test_a_refresh_token_that_the_store_did_not_take_is_saved_later(later: str, sandbox: Sandbox, clock: Clock) -> None:
    """One failed write does not lose a replaced refresh token: it is written on close, or by a call ten seconds on."""
    store = login(sandbox)
    link = Link(store)
    client = sandbox.session(store=link)
    alice = client.user("alice")
    warm(alice)
    sandbox.expire_tokens("alice")
    link.down = {"set"}
    warm(alice)
    link.mend()
    if later == "close":
        client.close()
    else:
        clock.go_on(11)
        warm(alice if later == "call" else client.user("alice"))
    sandbox.expire_tokens("alice")
    warm(without_password(sandbox, store))


def test_a_token_given_that_the_store_did_not_take_is_saved_later(sandbox: Sandbox, clock: Clock) -> None:
    """What was obtained elsewhere is written by a call ten seconds on, if the store failed at first."""
    store = MemoryStore()
    link = Link(store, "set")
    alice = without_password(sandbox, link, token=sandbox.session("alice").fetch_token())
    for _ in range(2):
        warm(alice)
    assert stored(sandbox, store) == ()
    link.mend()
    clock.go_on(11)
    warm(alice)
    assert len(stored(sandbox, store)) == 1 and sandbox.count(CALLS) == 1


def test_a_refusal_that_the_store_did_not_take_is_saved_by_a_later_call(sandbox: Sandbox, clock: Clock) -> None:
    """Ten seconds on, whoever is told of it again writes it, so that siblings do not send the password."""
    store = MemoryStore()
    link = Link(store, *Link.ALL)
    bad = sandbox.session("alice", "wrong", store=link)
    with pytest.raises(InvalidGrantError):
        bad.get(ECHO)
    link.mend()
    clock.go_on(11)
    for session in (bad, sandbox.session("alice", "wrong", store=store)):
        with pytest.raises(InvalidGrantError):
            session.get(ECHO)
    assert sandbox.users["alice"].failed_logins == 1


@pytest.mark.parametrize("arrived", [False, True])
def test_a_store_that_is_well_again_is_left_alone(arrived: bool, sandbox: Sandbox, clock: Clock) -> None:
    """After one failed write nobody looks every ten seconds for ever, and what a sibling revokes stays revoked."""
    shared = MemoryStore()
    kinds: list[str] = []
    link = Link(shared)
    if arrived:
        link.lost = 1
    else:
        link.cut()
    alice = sandbox.session("alice", store=link, on_event=lambda event: kinds.append(event.kind))
    warm(alice)
    link.mend()
    clock.go_on(11)
    warm(alice)
    asked = dict(link.asked)
    for _ in range(3):
        clock.go_on(11)
        warm(alice)
    assert link.asked == asked and sorted(kinds) == ["issued", "store_failed"]
    sandbox.session("alice", store=shared).revoke()
    alice.close()
    assert stored(sandbox, shared) == ()


def test_a_refusal_does_not_bring_a_revoked_token_back(sandbox: Sandbox) -> None:
    """What was revoked while the store was down is gone there, whatever finAPI said after that."""
    link = Link()
    alice = sandbox.session("alice", store=link)
    token = alice.fetch_token()
    link.cut()
    alice.revoke()
    sandbox.answer_next(403, path=CALLS)
    with pytest.raises(TokenError):
        alice.fetch_token()
    link.mend()
    alice.close()
    kept = [link.shared.get(key) for key in keys(sandbox)]
    assert kept[1] is not None and token.access_token not in str(kept) and (token.refresh_token or "?") not in str(kept)


def test_a_vault_is_not_asked_at_each_call_for_a_stores_sake(sandbox: Sandbox, clock: Clock) -> None:
    """A token that never expires and that the store does not take is looked after every ten seconds only."""
    asked: list[int] = []

    def vault() -> str:
        asked.append(1)
        if len(asked) > 1:
            raise LookupError("sealed")
        return sandbox.client_secret

    sandbox.lifetime = 0
    alice = sandbox.session("alice", client_secret=vault, store=Link(None, *Link.ALL))
    warm(alice)
    for _ in range(3):
        clock.go_on(11)
        for _ in range(5):
            alice.fetch_token()
    assert len(asked) == 4


def test_an_outage_of_the_store_with_many_users_loses_nobodys_token(sandbox: Sandbox) -> None:
    """A thousand others do not push out of memory what the store did not take."""
    store = login(sandbox)
    link = Link(store)
    client = sandbox.session(store=link)
    warm(client.user("alice"))
    link.cut()
    sandbox.expire_tokens("alice")
    warm(client.user("alice"))
    link.mend()
    for number in range(1001):
        with pytest.raises(LoginRequiredError):
            client.user(f"user-{number}").fetch_token()
    client.close()
    warm(without_password(sandbox, store))


# --- workers that are cut off -------------------------------------------------------------------------------------


def test_a_process_that_was_cut_off_leaves_its_siblings_token_alone(sandbox: Sandbox) -> None:
    """What finAPI refused it meanwhile is said of its own token, not of the one that a sibling has stored."""
    shared = login(sandbox)
    link = Link(shared)
    cut_off, sibling = without_password(sandbox, link), without_password(sandbox, shared)
    for session in (cut_off, sibling):
        warm(session)
    link.cut()
    sandbox.expire_tokens("alice")
    warm(sibling)
    with pytest.raises(LoginRequiredError):
        cut_off.get(ECHO)
    link.mend()
    warm(cut_off)
    sandbox.expire_tokens("alice")
    warm(without_password(sandbox, shared))


def test_a_siblings_refusal_costs_no_refresh_token_that_the_store_did_not_take(sandbox: Sandbox, clock: Clock) -> None:
    """What a sibling learnt of the refresh token before says nothing of the one that replaced it."""
    store = login(sandbox)
    link = Link(store)
    worker, sibling = without_password(sandbox, link), without_password(sandbox, store)
    for session in (worker, sibling):
        warm(session)
    sandbox.expire_tokens("alice")
    link.cut()
    warm(worker)
    link.mend()
    with pytest.raises(LoginRequiredError):
        sibling.get(ECHO)
    clock.go_on(11)
    for session in (worker, sibling):
        warm(session)


@pytest.mark.parametrize("seconds", [0.0, 1.1])
def test_a_failed_write_costs_no_login_whoever_tries_the_spent_refresh_token(
    seconds: float, sandbox: Sandbox, wait: Callable[[float], None]
) -> None:
    """With a session a request, one worker's write fails, or hangs, and another one comes: all are well again."""
    shared = login(sandbox)
    link = Link(shared)
    link.seconds = seconds
    one, other = sandbox.session(store=link), sandbox.session(store=Link(shared))
    for client in (one, other):
        warm(client.user("alice"))
    sandbox.expire_tokens("alice")
    link.down = {"set"}
    warm(one.user("alice"))
    with pytest.raises(LoginRequiredError):
        other.user("alice").get(ECHO)
    link.mend()
    warm(one.user("alice"))
    wait(11)
    for client in (one, other, sandbox.session(store=shared)):
        warm(client.user("alice"))
    assert sandbox.count(CALLS, grant_type="refresh_token", status=200) == 1
    sandbox.expire_tokens("alice")
    for client in (other, one):
        warm(client.user("alice"))


def test_whoever_cannot_read_writes_nothing_over_a_newer_token(sandbox: Sandbox) -> None:
    """A worker meets a 401 while its reads fail and its writes work: what another one renewed stays in the store."""
    shared = login(sandbox)
    link = Link(shared)
    blind, sibling = without_password(sandbox, link), without_password(sandbox, shared)
    for session in (blind, sibling):
        warm(session)
    sandbox.expire_tokens("alice")
    warm(sibling)
    link.down = {"get"}
    with pytest.raises(LoginRequiredError):
        blind.get(ECHO)
    assert [grant.token for grant in stored(sandbox, shared)] == [sibling.fetch_token()]
    link.mend()
    calls = sandbox.count(CALLS)
    for session in (blind, without_password(sandbox, shared)):
        warm(session)
    assert sandbox.count(CALLS) == calls


def test_a_password_refused_to_whoever_cannot_read_is_sent_by_nobody_else(sandbox: Sandbox) -> None:
    """A refusal is written even blind, beside the token of others."""
    shared = MemoryStore()
    good = sandbox.session("alice", store=shared)
    warm(good)
    with pytest.raises(InvalidGrantError):
        sandbox.session("alice", "wrong", store=Link(shared, "get")).get(ECHO)
    for _ in range(2):
        with pytest.raises(InvalidGrantError):
            sandbox.session("alice", "wrong", store=shared).get(ECHO)
    assert sandbox.users["alice"].failed_logins == 1
    calls = sandbox.count(CALLS)
    warm(sandbox.session("alice", store=shared))
    assert sandbox.count(CALLS) == calls


def test_a_refused_password_is_not_sent_again_after_an_outage(sandbox: Sandbox) -> None:
    """That the store took nothing, and a sibling's token meanwhile, does not bring it to finAPI again."""
    store = MemoryStore()
    link = Link(store)
    good, bad = sandbox.session("alice", store=store), sandbox.session("alice", "wrong", store=link)
    warm(good)
    link.cut()
    with pytest.raises(InvalidGrantError):
        bad.get(ECHO)
    sandbox.expire_tokens("alice")
    warm(good)
    link.mend()
    for _ in range(2):
        with pytest.raises(InvalidGrantError):
            bad.get(ECHO)
    bad.close()
    with pytest.raises(InvalidGrantError):
        sandbox.session("alice", "wrong", store=store).get(ECHO)
    assert sandbox.users["alice"].failed_logins == 1
    warm(good)


def test_a_process_that_was_cut_off_leaves_a_siblings_refusal_alone(sandbox: Sandbox) -> None:
    """Its newer token is stored together with the refusal that it did not know of."""
    store = MemoryStore()
    link = Link(store)
    cut_off = sandbox.session("alice", store=link)
    warm(cut_off)
    link.cut()
    with pytest.raises(InvalidGrantError):
        sandbox.session("alice", "wrong", store=store).get(ECHO)
    sandbox.expire_tokens("alice")
    warm(cut_off)
    link.mend()
    cut_off.close()
    with pytest.raises(InvalidGrantError):
        sandbox.session("alice", "wrong", store=store).get(ECHO)
    assert sandbox.users["alice"].failed_logins == 1
    calls = sandbox.count(CALLS)
    warm(sandbox.session("alice", store=store))
    assert sandbox.count(CALLS) == calls


def test_a_password_refused_while_the_store_is_down_at_start_is_sent_once(sandbox: Sandbox) -> None:
    """That the store has a token of that password from before does not mean that finAPI takes it again."""
    store, old = MemoryStore(), sandbox.users["alice"].password
    sandbox.session("alice", store=store).fetch_token()
    sandbox.change_password("alice", "new-password")
    link = Link(store, *Link.ALL)
    worker = sandbox.session("alice", old, store=link)
    with pytest.raises(InvalidGrantError):
        worker.get(ECHO)
    link.mend()
    for _ in range(2):
        with suppress(InvalidGrantError):
            worker.get(ECHO)
    assert sandbox.users["alice"].failed_logins == 1


@pytest.mark.parametrize(("renewable", "calls"), [(False, 2), (True, 2), (True, 0)])
def test_a_token_given_while_the_store_is_down_at_start_harms_no_stored_one(
    renewable: bool, calls: int, sandbox: Sandbox
) -> None:
    """What others live on is there when the store is back: no dead token, nor one without renewal, takes its place."""
    sandbox.sticky = False
    first = sandbox.session("alice").fetch_token()
    if renewable:
        sandbox.revoke_tokens("alice", refresh=True)
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    seed = {"access_token": first.access_token, "refresh_token": first.refresh_token if renewable else None}
    link = Link(store, *Link.ALL)
    worker = without_password(sandbox, link, token=seed)
    worker.fetch_token()
    for down in (Link.ALL, ())[:calls]:
        link.down = set(down)
        with suppress(LoginRequiredError):
            worker.get(ECHO)
    link.mend()
    worker.close()
    sandbox.expire_tokens("alice")
    warm(without_password(sandbox, store))


# --- stores without a lock, and slow ones -------------------------------------------------------------------------


def test_whoever_loses_a_race_for_a_refresh_token_leaves_the_winners_in_the_store(sandbox: Sandbox) -> None:
    """Without a lock, a refused refresh token is not written over the one that a sibling has just obtained."""
    store = Link(login(sandbox))
    winner, loser = (without_password(sandbox, store) for _ in range(2))
    for session in (winner, loser):
        warm(session)
    store.down = {"lock"}
    sandbox.expire_tokens("alice")
    sandbox.latency = {CALLS: 0.3}

    def call(session: FinapiSession, after: float) -> Any:
        time.sleep(after)
        with suppress(LoginRequiredError):
            session.get(ECHO)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(call, (winner, loser), (0.0, 0.15)))
    assert sandbox.count(CALLS, grant_type="refresh_token") == 2
    sandbox.latency = 0
    for session in (loser, without_password(sandbox, store)):
        warm(session)


def test_nobody_renews_early_while_the_lock_cannot_be_had(sandbox: Sandbox, clock: Clock) -> None:
    """Two who renew at once may spend the same refresh token: the token in use goes on, and at its end one renews."""
    shared = login(sandbox)
    workers = [without_password(sandbox, Link(shared, "lock")) for _ in range(2)]
    for worker in workers:
        warm(worker)
    clock.go_on(3570)
    for worker in [*workers, *workers]:
        warm(worker)
    assert sandbox.count(CALLS, grant_type="refresh_token") == 0
    clock.go_on(31)
    for worker in workers:
        warm(worker)
    assert sandbox.count(CALLS, grant_type="refresh_token") == 1 and sandbox.count(ECHO, status=401) == 0


@pytest.mark.parametrize("down", [{"get"}, set(Link.ALL)])
def test_nobody_renews_early_while_the_store_cannot_be_read(down: set[str], sandbox: Sandbox, clock: Clock) -> None:
    """A sibling may have renewed already: the token in use goes on, and the store that is back is asked first."""
    shared = login(sandbox)
    link = Link(shared)
    worker, sibling = without_password(sandbox, link), without_password(sandbox, shared)
    for session in (worker, sibling):
        warm(session)
    clock.go_on(3570)
    link.down = down
    warm(worker)
    assert sandbox.count(CALLS, grant_type="refresh_token") == 0
    warm(sibling)
    link.mend()
    clock.go_on(31)
    warm(worker)
    assert sandbox.count(CALLS, grant_type="refresh_token") == 1 and sandbox.count(ECHO, status=401) == 0


def test_a_wrong_password_is_sent_once_however_slow_the_answer(sandbox: Sandbox) -> None:
    """Sessions of one process do not go on without the lock of their store while one of them waits for finAPI."""
    client = sandbox.session(store=MemoryStore(lock_timeout=0.05))
    sandbox.latency = {CALLS: 0.5}

    def sign_in(_: int) -> None:
        with pytest.raises(InvalidGrantError):
            client.user("alice", "wrong").fetch_token()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(sign_in, range(4)))
    assert sandbox.count(CALLS) == 1


def test_two_threads_on_a_store_that_fails_slowly_lose_no_refresh_token(sandbox: Sandbox) -> None:
    """A session without a password, that comes while one with it waits for the store, uses what that one obtained."""
    store = login(sandbox)
    link = Link(store)
    root = sandbox.session(store=link)
    pair = [root.user("alice", "her-password"), root.user("alice")]
    for session in pair:
        warm(session)
    link.cut()
    link.seconds = 0.3
    sandbox.expire_tokens("alice")

    def call(number: int) -> int:
        time.sleep(0.15 * number)
        return pair[number].get(ECHO).status_code

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(call, range(2))) == [200, 200]
    link.mend()
    root.close()
    warm(without_password(sandbox, store))


@pytest.mark.parametrize("verb", ["get", "set"])
def test_a_store_that_hangs_is_waited_for_once(verb: str, sandbox: Sandbox, wait: Callable[[float], None]) -> None:
    """After one call has waited for it, the others go on with what is in memory, and one tries it again later."""
    link = Link(None, verb)
    link.seconds = 1.1
    client = sandbox.session(store=link)
    started = time.perf_counter()
    for _ in range(5):
        warm(client.user("alice", "her-password"))
        warm(client)
    assert time.perf_counter() - started < 3 and link.asked[verb] == 1 and link.asked["lock"] == (verb == "set")
    assert sandbox.count(CALLS) == 2
    link.mend()
    wait(11)
    warm(client)
    client.close()
    assert len(stored(sandbox, link)) == len(stored(sandbox, link, None)) == 1 and sandbox.count(CALLS) == 2


def test_close_tries_a_store_that_hung_once_more(sandbox: Sandbox) -> None:
    """What the store missed is not lost with the process, though a call would not wait for that store yet."""
    link = Link(None, "set")
    link.seconds = 1.1
    alice = sandbox.session("alice", store=link)
    warm(alice)
    link.mend()
    warm(alice)
    assert stored(sandbox, link) == ()
    alice.close()
    assert len(stored(sandbox, link)) == 1


def test_only_one_tries_a_store_that_hung(sandbox: Sandbox, wait: Callable[[float], None]) -> None:
    """When its rest is over, one caller waits for it, not all."""
    link = Link(None, "get")
    link.seconds = 1.1
    client = sandbox.session(store=link)
    warm(client)
    wait(11)
    users = [client.user("alice", "her-password") for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert {answer.status_code for answer in pool.map(lambda user: user.get(ECHO), users)} == {200}
    assert link.asked["get"] == 2


@pytest.mark.parametrize("username", [None, "alice"])
def test_a_store_that_fell_back_in_time_costs_no_call(username: str | None, sandbox: Sandbox) -> None:
    """After a failover to a copy that lags, whoever has the newer token renews that, and does not use the dead one."""
    sandbox.rotate_refresh_tokens = True
    store, key = MemoryStore(), keys(sandbox, username)[0]
    session = sandbox.session(username, store=store)
    warm(session)
    lagging = store.get(key)
    assert lagging is not None
    for calls in (2, 3):
        sandbox.expire_tokens()
        warm(session)
        assert sandbox.count(CALLS) == calls
        store.set(key, lagging)
    sandbox.expire_tokens()
    warm(session)
    warm(sandbox.session(username, store=store))
    assert sandbox.count(CALLS) == 4


def test_the_reason_of_a_folder_that_is_refused_is_told(
    sandbox: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What to do about a store's folder is in the warning, as no call fails of it."""
    tmp_path.chmod(0o777)
    warm(sandbox.session(store=FileStore(tmp_path)))
    assert f"run 'chmod 700 {tmp_path}'" in caplog.text


def test_the_text_of_a_store_of_ones_own_is_not_logged(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """Only the advice of this package's own stores is told: another's error, of whatever kind, may hold a value."""

    class Telling(MemoryStore):
        """A store whose error repeats what it was given."""

        def set(self, key: str, value: str) -> None:
            raise PermissionError(f"may not keep {value}")

    session = sandbox.session(store=Telling())
    token = session.fetch_token().access_token
    assert "set: PermissionError;" in caplog.text and token not in caplog.text and "may not keep" not in caplog.text
