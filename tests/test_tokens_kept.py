"""No login is lost: tokens that are given, stored and known side by side, refused ones, clocks, late answers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from finapi_session import (
    FinapiSession,
    InvalidClientError,
    InvalidGrantError,
    LoginRequiredError,
    MemoryStore,
    Token,
    TokenEndpointError,
    TokenError,
)
from finapi_session.envelope import unverified
from finapi_session.testing import Sandbox

from .clocks import Clock
from .herd import CALLS, ECHO, statuses, warm
from .links import Link
from .logins import keys, stored, stored_by, without_password


def seed_of(token: Token, **more: Any) -> dict[str, Any]:
    """Return *token* as a configuration keeps it: it tells no times."""
    return {"access_token": token.access_token, "refresh_token": token.refresh_token, **more}


# --- a token given ------------------------------------------------------------------------------------------------


def test_a_token_given_beats_a_dead_one_in_the_store(sandbox: Sandbox, clock: Clock) -> None:
    """A user without a password uses the live token that she was given, whatever spent one is stored."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    clock.go_on(3601)
    sandbox.revoke_tokens("alice", refresh=True)
    fresh = sandbox.session("alice").fetch_token()
    alice = without_password(sandbox, store, token=seed_of(fresh))
    warm(alice)
    assert alice.fetch_token().access_token == fresh.access_token


def test_a_token_given_goes_before_an_older_one_in_the_store(sandbox: Sandbox) -> None:
    """Whoever logs in elsewhere and hands over the token works with that, though what is stored seems good."""
    sandbox.sticky = False
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    time.sleep(0.01)
    given = sandbox.session("alice").fetch_token()
    sandbox.advance(1)
    assert without_password(sandbox, store, token=given).fetch_token() == given


def test_a_token_given_is_stored_on_close(sandbox: Sandbox) -> None:
    """What was obtained elsewhere is there for the next process."""
    store = MemoryStore()
    with without_password(sandbox, store, token=sandbox.session("alice").fetch_token()) as alice:
        warm(alice)
    warm(without_password(sandbox, store))
    assert sandbox.count(CALLS) == 1


def test_a_token_given_is_stored_by_the_first_call(sandbox: Sandbox) -> None:
    """It is there for the next process whether or not this one lives to its end."""
    store = MemoryStore()
    warm(without_password(sandbox, store, token=sandbox.session("alice").fetch_token()))
    warm(without_password(sandbox, store))
    assert sandbox.count(CALLS) == 1


@pytest.mark.parametrize("revoke_on_close", [None, False, True])
def test_a_token_given_lives_on_unless_told_otherwise(revoke_on_close: bool | None, sandbox: Sandbox) -> None:
    """It is the caller's, even where the store is the session's own memory."""
    token = sandbox.session("alice").fetch_token()
    client = (sandbox.client_id, sandbox.client_secret)
    options: dict[str, Any] = {"environment": sandbox.environment, "revoke_on_close": revoke_on_close}
    alice = FinapiSession(*client, username="alice", token=token, **options)
    alice.verify, alice.trust_env = sandbox.ca_bundle, False
    warm(alice)
    alice.close()
    revoked = sandbox.count("/oauth/revoke", revoked="alice")
    assert revoked == (1 if revoke_on_close else 0)
    with nullcontext() if not revoked else pytest.raises(LoginRequiredError):
        warm(without_password(sandbox, MemoryStore(), token=token))


def test_a_token_given_with_a_password_is_stored_for_whoever_knows_that(sandbox: Sandbox) -> None:
    """A sibling with the same password takes it from the store; one with another password does not."""
    store = MemoryStore()
    token = sandbox.session("alice").fetch_token()
    for given in (token, None):
        with sandbox.session("alice", store=store, token=given) as alice:
            warm(alice)
    assert sandbox.count(CALLS) == 1
    with pytest.raises(InvalidGrantError):
        sandbox.session("alice", "wrong", store=store).get(ECHO)


def test_a_token_of_the_configuration_harms_no_newer_one_in_the_store(sandbox: Sandbox, clock: Clock) -> None:
    """A worker that starts again with its first token, whose expiry it does not know, lives on what is stored."""
    sandbox.rotate_refresh_tokens = True
    store, seed = MemoryStore(), seed_of(sandbox.session("alice").fetch_token())
    worker = without_password(sandbox, store, token=seed)
    for _ in range(2):
        warm(worker)
        clock.go_on(3601)
    warm(without_password(sandbox, store, token=seed))
    warm(without_password(sandbox, store))


def test_a_dead_token_of_the_configuration_is_not_stored_over_a_good_one(sandbox: Sandbox) -> None:
    """It seems to be the newest, as it tells no time; the refresh token that others live on stays all the same."""
    sandbox.rotate_refresh_tokens = True
    store, seed = MemoryStore(), seed_of(sandbox.session("alice").fetch_token(), expires_in=3600)
    worker = without_password(sandbox, store, token=seed)
    warm(worker)
    sandbox.expire_tokens("alice")
    warm(worker)
    warm(without_password(sandbox, store, token=seed))
    warm(without_password(sandbox, store))


def test_a_token_given_after_a_login_was_required_serves(sandbox: Sandbox, clock: Clock) -> None:
    """What was refused of the stored token says nothing of the one that the caller brings."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    sandbox.revoke_tokens("alice", refresh=True)
    with pytest.raises(LoginRequiredError):
        without_password(sandbox, store).get(ECHO)
    clock.go_on(3601)
    fresh = {"access_token": sandbox.session("alice").fetch_token().access_token}
    warm(without_password(sandbox, store, token=fresh))


def test_an_access_token_given_serves_beside_a_stored_one_that_was_refused(sandbox: Sandbox) -> None:
    """It is used although it is the older one and there is no refresh token any more."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    sandbox.revoke_tokens("alice", refresh=True)
    with pytest.raises(LoginRequiredError):
        without_password(sandbox, store).get(ECHO)
    given = Token(sandbox.session("alice").fetch_token().access_token, issued_at=1.0)
    warm(without_password(sandbox, store, token=given))


@pytest.mark.parametrize("password", [None, "her-password"])
def test_a_token_given_is_stored_beside_what_others_live_on(password: str | None, sandbox: Sandbox) -> None:
    """Whoever has no password lives on the newest; whoever knows the password goes on by that."""
    sandbox.sticky = False
    store = MemoryStore()
    first = sandbox.session("alice", store=MemoryStore() if password is None else store).fetch_token()
    worker = without_password(sandbox, store, token=first)
    warm(worker)
    sandbox.revoke_tokens("alice", refresh=True)
    with pytest.raises(LoginRequiredError):
        worker.get(ECHO)
    given = sandbox.session("alice").fetch_token()
    with without_password(sandbox, store, token=given) as other:
        warm(other)
    calls = sandbox.count(CALLS)
    assert without_password(sandbox, store).fetch_token() == given and sandbox.count(CALLS) == calls
    warm(worker)
    warm(sandbox.session("alice", store=store))
    assert sandbox.count(CALLS, grant_type="password") == 3


def test_a_dead_access_token_given_leaves_the_stored_one_in_use(sandbox: Sandbox) -> None:
    """What others live on is taken as it is, and not renewed."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    worker = without_password(sandbox, store, token=Token("dead", issued_at=time.time()))
    warm(worker)
    assert sandbox.count(CALLS) == 1
    sandbox.revoke_tokens("alice", refresh=True)
    with pytest.raises(LoginRequiredError):
        worker.get(ECHO)


@pytest.mark.parametrize("refused", [False, True])
def test_an_older_token_is_not_used_while_there_is_a_better_one(refused: bool, sandbox: Sandbox, clock: Clock) -> None:
    """Before expiry the one in use goes on, though it cannot be renewed; after it, one that can be renewed is."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    worker = without_password(sandbox, store, token=Token("dead", issued_at=1.0))
    warm(worker)
    if refused:
        sandbox.answer_next(400, body={"error": "invalid_grant"}, path=CALLS)
    else:
        sandbox.expire_tokens("alice")
    for seconds in (3550, 20, 20):
        clock.go_on(seconds if refused else 0)
        warm(worker)
    assert sandbox.count(CALLS) == 2 and sandbox.count(ECHO, status=401) == (0 if refused else 1)


def test_a_token_given_serves_nobody_with_a_password_that_it_was_not_obtained_with(
    sandbox: Sandbox, clock: Clock
) -> None:
    """Renewed in place of a stored one that was refused, it does not serve whoever knows only the old password."""
    store, old = MemoryStore(), sandbox.users["alice"].password
    sandbox.session("alice", store=store).fetch_token()
    sandbox.change_password("alice", "new-password")
    fresh = sandbox.session("alice", "new-password").fetch_token()
    sandbox.expire_tokens("alice")
    worker = without_password(sandbox, store, token=seed_of(fresh))
    # The stored one is dead, and so is the one given, whose age is unknown: two sends are all that a call gets.
    assert worker.get(ECHO).status_code == 401
    clock.go_on(1)
    warm(worker)
    with pytest.raises(InvalidGrantError):
        sandbox.session("alice", old, store=store).get(ECHO)
    assert sandbox.users["alice"].failed_logins == 1


def test_a_dead_token_that_another_worker_stores_costs_no_refresh_token(sandbox: Sandbox) -> None:
    """After a store was emptied a worker starts with its first token: whoever has a better refresh token keeps it."""
    sandbox.rotate_refresh_tokens = True
    store, seed = MemoryStore(), seed_of(sandbox.session("alice").fetch_token())
    worker = without_password(sandbox, store, token=seed)
    warm(worker)
    sandbox.expire_tokens("alice")
    warm(worker)
    store.delete(keys(sandbox)[0])
    with pytest.raises(LoginRequiredError):
        without_password(sandbox, store, token=seed).get(ECHO)
    sandbox.expire_tokens("alice")
    assert [worker.get(ECHO).status_code for _ in range(2)][-1] == 200
    warm(without_password(sandbox, store))


# --- several grants of one user -----------------------------------------------------------------------------------


def _two_grants(
    sandbox: Sandbox, clock: Clock, newer: str, older: str | None = None, *, expired: bool = True
) -> tuple[MemoryStore, Token]:
    """Return a store with a token that is dead, with the refresh token *newer*, and an older one with *older*.

    It has *expired*, or seems to live; without *older*, the older one has the refresh token that finAPI takes.
    """
    token = sandbox.session("alice").fetch_token()
    sandbox.expire_tokens("alice")
    store = MemoryStore()
    stored_by(sandbox, store, token=replace(token, refresh_token=newer, expires_at=time.time() + 600))
    if expired:
        clock.go_on(601)
    older = token.refresh_token if older is None else older
    return store, replace(token, access_token="older", refresh_token=older, issued_at=1.0, expires_at=2.0)


def test_a_refused_refresh_token_gives_way_to_another_one_at_hand(sandbox: Sandbox, clock: Clock) -> None:
    """Nobody need log in while there is a good one, be it the older; the refused one is not sent again."""
    store, older = _two_grants(sandbox, clock, "refused")
    worker = without_password(sandbox, store, token=older)
    warm(worker)
    assert sandbox.count(CALLS, grant_type="refresh_token") == 2
    sandbox.expire_tokens("alice")
    warm(worker)
    assert sandbox.count(CALLS, grant_type="refresh_token") == 3
    sandbox.expire_tokens("alice")
    warm(without_password(sandbox, store, token=older))
    assert sandbox.count(CALLS, grant_type="refresh_token") == 4


@pytest.mark.parametrize(("again", "expired"), [("same worker", True), ("restarted", True), ("restarted", False)])
def test_a_good_refresh_token_outlasts_the_refusal_of_another(
    again: str, expired: bool, sandbox: Sandbox, clock: Clock
) -> None:
    """finAPI is down when the older one's turn comes: it is there for the next call, here and in a new process."""
    store, older = _two_grants(sandbox, clock, "refused", expired=expired)
    worker = without_password(sandbox, store, token=older)
    sandbox.answer_next(400, body={"error": "invalid_grant"}, path=CALLS)
    sandbox.answer_next(302, path=CALLS)
    with pytest.raises(TokenEndpointError):
        worker.get(ECHO)
    if again == "restarted":
        worker.close()
        worker = without_password(sandbox, store)
    warm(worker)
    assert sandbox.count(CALLS, grant_type="refresh_token") == 3


@pytest.mark.parametrize("expired", [True, False])
@pytest.mark.parametrize(("older", "calls"), [("refused", 1), ("refused-too", 2)])
def test_a_refused_refresh_token_is_sent_once_whoever_holds_it(
    older: str, calls: int, expired: bool, sandbox: Sandbox, clock: Clock
) -> None:
    """What finAPI said of it counts for every token that came with it, stored, held or given again."""
    store, given = _two_grants(sandbox, clock, "refused", older, expired=expired)
    worker = without_password(sandbox, store, token=given)
    for session in (worker, worker, worker, without_password(sandbox, store, token=given)):
        with pytest.raises(LoginRequiredError):
            session.get(ECHO)
    assert sandbox.count(CALLS, grant_type="refresh_token") == calls


@pytest.mark.parametrize("code", ["invalid_client", "INVALID_CLIENT"])
def test_a_wrong_client_secret_is_sent_once_however_many_refresh_tokens_there_are(
    code: str, sandbox: Sandbox, clock: Clock
) -> None:
    """What finAPI refused is the client: another refresh token would not help, and none is dropped."""
    store, older = _two_grants(sandbox, clock, "another")
    worker = without_password(sandbox, store, token=older)
    sandbox.answer_next(401, body={"error": code}, path=CALLS)
    for _ in range(2):
        with pytest.raises(InvalidClientError):
            worker.get(ECHO)
    assert sandbox.count(CALLS, grant_type="refresh_token") == 1
    clock.go_on(61)
    warm(worker)
    assert sandbox.count(CALLS, grant_type="refresh_token") == 3


@pytest.mark.parametrize("expired", [True, False])
def test_a_token_given_serves_beside_a_stored_one_that_was_refused(
    expired: bool, sandbox: Sandbox, clock: Clock
) -> None:
    """Another worker has learnt that the stored one is of no use any more; that says nothing of what is given here."""
    store, older = _two_grants(sandbox, clock, "refused", expired=expired)
    worker = without_password(sandbox, store, token=older)
    with pytest.raises(LoginRequiredError):
        without_password(sandbox, store).get(ECHO)
    warm(worker)


def test_a_grant_of_ones_own_is_not_lost_to_a_siblings_renewal(sandbox: Sandbox, clock: Clock) -> None:
    """A user's other grant is there when the one that siblings renewed is gone; its refusal then counts once."""
    sandbox.sticky = False
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    given = replace(sandbox.session("alice").fetch_token(), issued_at=1.0)
    sibling = without_password(sandbox, store)
    warm(sibling)
    sandbox.expire_tokens("alice")
    worker = without_password(sandbox, store, token=given)
    for session in (sibling, worker):
        warm(session)
    sandbox.session("alice", store=store).revoke()
    worker.get(ECHO)  # what it holds is dead, and so is the access token of the other grant: two sends are all
    clock.go_on(1)
    warm(worker)
    sandbox.revoke_tokens("alice", refresh=True)
    calls = sandbox.count(CALLS)
    for _ in range(2):
        with pytest.raises(LoginRequiredError):
            worker.get(ECHO)
    assert sandbox.count(CALLS) == calls + 1


@pytest.mark.parametrize("body", [{"error": "invalid_client"}, {}])
@pytest.mark.parametrize("early", [False, True])
def test_a_client_refused_once_costs_no_refresh_token(
    body: dict[str, str], early: bool, sandbox: Sandbox, clock: Clock
) -> None:
    """The token that a worker started with is long dead: it takes no place of the one that may be renewed again."""
    sandbox.rotate_refresh_tokens = True
    store, seed = MemoryStore(), seed_of(sandbox.session("alice").fetch_token())
    warm(without_password(sandbox, store, token=seed))
    clock.go_on(3601)
    for worker in (without_password(sandbox, store, token=seed) for _ in range(2)):
        warm(worker)
    clock.go_on(3550 if early else 3601)
    sandbox.answer_next(401, body=body, path=CALLS)
    with nullcontext() if early else pytest.raises(TokenError):
        warm(worker)
    clock.go_on(61)
    warm(worker)
    warm(without_password(sandbox, store))


def test_a_user_who_logs_in_again_renews_at_once(sandbox: Sandbox) -> None:
    """That an older refresh token was refused says nothing of the new one."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    worker = without_password(sandbox, store)
    warm(worker)
    sandbox.change_password("alice", "new-password")
    with pytest.raises(LoginRequiredError):
        worker.get(ECHO)
    sandbox.session("alice", "new-password", store=store).fetch_token()
    warm(worker)
    sandbox.expire_tokens("alice")
    warm(worker)


# --- refusals that are not about the refresh token ----------------------------------------------------------------


def test_a_refused_refresh_token_is_told_as_such(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """The log does not blame the password for it."""
    alice = sandbox.session("alice")
    warm(alice)
    sandbox.revoke_tokens("alice", refresh=True)
    warm(alice)
    [refused] = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert "finAPI refused the refresh token (400 invalid_grant" in refused
    assert "It is not sent again; the password is, if there is one." in refused


@pytest.mark.parametrize(
    ("status", "code", "spent"),
    [
        (400, None, False),
        (400, "invalid_grant", True),
        (400, "invalid_client", False),
        (400, "BAD_REQUEST", True),
        (401, "invalid_token", True),
        (401, "INVALID_TOKEN", True),
        (401, "INVALID_CLIENT", False),
        (401, "invalid_grant", True),
        (401, "invalid_client", False),
        (401, None, False),
        (401, "unauthorized", False),
        (200, "invalid_grant", True),
    ],
)
def test_which_refusals_spend_a_refresh_token(
    status: int, code: str | None, spent: bool, sandbox: Sandbox, clock: Clock
) -> None:
    """One that may be about the client keeps it: a user without a password would have to log in again for nothing."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    alice = without_password(sandbox, store)
    warm(alice)
    sandbox.revoke_tokens("alice")
    body: dict[str, object] = {} if code is None else {"error": code}
    sandbox.answer_next(status, body=body, path=CALLS)
    with pytest.raises(TokenError):
        alice.get(ECHO)
    clock.go_on(61)
    for session in (alice, without_password(sandbox, store)):
        with pytest.raises(LoginRequiredError) if spent else nullcontext():
            warm(session)
    assert sandbox.count(CALLS, grant_type="refresh_token") == (1 if spent else 2)


def test_a_400_of_a_gateway_costs_no_login(sandbox: Sandbox, clock: Clock) -> None:
    """An answer that names no error is not finAPI's: the refresh token is kept, and serves when the gateway is well."""
    store = MemoryStore()
    with_password = sandbox.session("alice", store=store)
    warm(with_password)
    for session, asked in ((with_password, 2), (without_password(sandbox, store), 1)):
        sandbox.revoke_tokens("alice")
        sandbox.answer_next(400, body="<html>400 Bad Request</html>", path=CALLS, times=asked)
        with pytest.raises(TokenError):
            session.get(ECHO)
        clock.go_on(61)
        warm(session)
    assert sandbox.count(CALLS, grant_type="password", status=200) == 1


# --- clocks, and answers that come late ---------------------------------------------------------------------------


def test_a_clock_put_right_does_not_keep_a_worker_from_a_stored_token(sandbox: Sandbox, clock: Clock) -> None:
    """What was stored while the clock was fast does not outlast its tokens for whoever has no password."""
    store = MemoryStore()
    clock.step(1800)
    sandbox.session("alice", store=store).fetch_token()
    worker = without_password(sandbox, store)
    warm(worker)
    clock.step(-1800)
    sibling = sandbox.session("alice", store=store)
    sibling.revoke()
    sibling.fetch_token()
    with suppress(LoginRequiredError):
        worker.get(ECHO)
    warm(worker)


def test_a_clock_put_right_does_not_lose_a_refresh_token(sandbox: Sandbox, clock: Clock) -> None:
    """One that a store which was down did not take outlives a stored token that seems to last longer, but is dead."""
    sandbox.rotate_refresh_tokens = True
    store = MemoryStore()
    link = Link(store)
    clock.step(1800)
    sandbox.session("alice", store=store).fetch_token()
    clock.step(-1800)
    worker = without_password(sandbox, link)
    warm(worker)
    link.cut()
    sandbox.expire_tokens("alice")
    warm(worker)
    link.mend()
    worker.close()
    warm(without_password(sandbox, store))


class Suspended(HTTPAdapter):
    """The connection of a process that is suspended when the answer to its token call comes."""

    def __init__(self) -> None:
        super().__init__()
        self.answered, self.awake = threading.Event(), threading.Event()

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Send, and come back when the process is awake."""
        answer = super().send(request, *args, **options)
        if (request.url or "").endswith(CALLS):
            self.answered.set()
            assert self.awake.wait(30)
        return answer


@pytest.mark.parametrize("password", [None, "her-password"])
@pytest.mark.parametrize("rejected", [False, True])
def test_the_late_answer_of_a_suspended_worker_costs_nobody_a_401(
    rejected: bool, password: str | None, sandbox: Sandbox, clock: Clock
) -> None:
    """Its lock has ended and another one has renewed: it takes the newer token, and the store keeps what lives."""
    shared = MemoryStore()
    sandbox.session("alice", store=shared).fetch_token()
    late, other = (_worker(sandbox, Link(shared, *down), password) for down in ((), ("lock",)))
    for session in (late, other):
        warm(session)
    suspended = Suspended()
    late.mount("https://", suspended)
    if rejected:
        sandbox.expire_tokens("alice")
    else:
        clock.go_on(3601)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(late.get, ECHO)
        assert suspended.answered.wait(30)
        # What finAPI gave the late one is not in the store yet, and dies of this one's renewal.
        warm(other)
        suspended.awake.set()
        assert answer.result().status_code == 200
    calls = sandbox.count(CALLS)
    for session in (late, other, _worker(sandbox, shared, password)):
        warm(session)
        assert session.fetch_token() == other.fetch_token()
    assert sandbox.count(CALLS) == calls and sandbox.count(ECHO, status=401) == (2 if rejected else 0)


def _worker(sandbox: Sandbox, store: MemoryStore, password: str | None) -> FinapiSession:
    return sandbox.session("alice", store=store) if password else without_password(sandbox, store)


def test_one_call_is_made_while_the_lock_is_waited_for_longer_than_it_takes(sandbox: Sandbox, clock: Clock) -> None:
    """Two processes renew a refresh token that is replaced, and finAPI is slow: it is spent once."""
    sandbox.rotate_refresh_tokens = True
    store = MemoryStore(lock_timeout=5)
    sandbox.session("alice", store=store).fetch_token()
    workers = [without_password(sandbox, store) for _ in range(3)]
    for worker in workers:
        warm(worker)
    clock.go_on(3601)
    sandbox.latency = {CALLS: 0.5}
    with ThreadPoolExecutor(3) as pool:
        assert statuses(list(pool.map(lambda worker: worker.get(ECHO), workers))) == {200}
    assert sandbox.count(CALLS, grant_type="refresh_token") == 1


def test_a_lock_that_is_waited_for_too_short_costs_no_login(sandbox: Sandbox, clock: Clock) -> None:
    """Whoever goes on without it sends a spent refresh token; that is said of it alone, and the next call is well."""
    sandbox.rotate_refresh_tokens = True
    store = MemoryStore(lock_timeout=0.05)
    sandbox.session("alice", store=store).fetch_token()
    workers = [without_password(sandbox, store) for _ in range(3)]
    for worker in workers:
        warm(worker)
    clock.go_on(3601)
    sandbox.latency = {CALLS: 0.5}

    def call(worker: FinapiSession) -> None:
        with suppress(LoginRequiredError):
            worker.get(ECHO)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(call, workers))
    assert sandbox.count(CALLS, grant_type="refresh_token", status=200) == 1
    for worker in (*workers, without_password(sandbox, store)):
        warm(worker)


# --- the client's secret is changed -------------------------------------------------------------------------------


@pytest.mark.parametrize("password", [None, "her-password"])
def test_a_client_secret_changed_in_a_running_process_costs_no_login(
    password: str | None, sandbox: Sandbox, clock: Clock
) -> None:
    """finAPI keeps users' tokens then: they go along, and nothing is left in the store that the old secret opens."""
    sandbox.rotate_refresh_tokens = True
    store, secrets = MemoryStore(), [sandbox.client_secret]
    old = [*keys(sandbox), *keys(sandbox, None)]
    with sandbox.session("alice", store=store) as first:
        first.fetch_token()
    client = sandbox.session(client_secret=lambda: secrets[-1], store=store)
    alice = client.user("alice", *filter(None, [password]))
    for session in (client, alice):
        warm(session)
    assert store.get(old[0]) and store.get(old[2])
    secrets.append("another-client-secret")
    sandbox.change_client_secret(secrets[-1])
    clock.go_on(3601)
    for session in (client, alice):
        warm(session)
    assert [store.get(key) for key in old] == [None] * 4
    assert sandbox.count(CALLS, grant_type="password") == 1
    warm(without_password(sandbox, store))
    alice.revoke()
    assert stored(sandbox, store) == ()
    sandbox.expire_tokens("alice")
    with nullcontext() if password else pytest.raises(LoginRequiredError):
        warm(alice)
    assert sandbox.count(CALLS, grant_type="password") == (2 if password else 1)


def test_a_refused_password_is_not_sent_again_for_a_new_client_secret(sandbox: Sandbox) -> None:
    """What finAPI said of the password goes along as the tokens do."""
    secrets = [sandbox.client_secret]
    alice = sandbox.session("alice", "wrong", client_secret=lambda: secrets[-1])
    for _ in range(2):
        with pytest.raises(InvalidGrantError):
            alice.get(ECHO)
        secrets.append("another-client-secret")
        sandbox.change_client_secret(secrets[-1])
    assert sandbox.users["alice"].failed_logins == 1


def test_a_client_secret_changed_while_the_store_is_down_leaves_nothing_for_ever(
    sandbox: Sandbox, clock: Clock
) -> None:
    """What the old secret opens holds no token any more when the store is back: by a later call, or on close."""
    store, secrets = MemoryStore(), [sandbox.client_secret]
    old = keys(sandbox)[0]
    sandbox.session("alice", store=store).fetch_token()
    link = Link(store)
    client = sandbox.session(client_secret=lambda: secrets[-1], store=link)
    alice = client.user("alice")
    warm(alice)
    secrets.append("another-client-secret")
    sandbox.change_client_secret(secrets[-1])
    clock.go_on(3601)
    link.cut()
    warm(alice)
    link.mend()
    clock.go_on(11)
    warm(alice)
    client.close()
    assert not unverified(store.get(old) or "").grants and len(stored(sandbox, store)) == 1
