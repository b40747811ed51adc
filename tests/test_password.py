"""A password is sent once per judgement: finAPI counts the wrong ones, and locks the user after a few."""

from __future__ import annotations

import time
from typing import Any

import pytest

from finapi_session import (
    FinapiSession,
    InvalidClientError,
    InvalidGrantError,
    MemoryStore,
    TokenEndpointError,
    TokenEvent,
)
from finapi_session.testing import Sandbox

from .clocks import Clock
from .herd import CALLS, ECHO, grants, herd, warm
from .links import Link

# --- refused ------------------------------------------------------------------------------------------------------


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


def test_a_refused_password_is_told_at_every_call(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """One warning, and for each further call, be it of a thread that waited, an event with the id of the refusal."""
    events: list[TokenEvent] = []
    alice = sandbox.session("alice", "wrong", on_event=events.append)
    herd(4, lambda: alice.get(ECHO))
    for _ in range(3):
        with pytest.raises(InvalidGrantError):
            alice.get(ECHO)
    assert [event.kind for event in events] == ["refused"] + 6 * ["decided"]
    assert len({event.request_id for event in events}) == 1
    assert {event.reason for event in events[1:]} == {f"nothing was asked: {events[0].reason}"}
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_what_is_kept_follows_what_was_kept_whatever_the_clocks(sandbox: Sandbox, clock: Clock) -> None:
    """A process whose clock is a day ahead keeps a refusal, the next one a token: later ones find both."""
    store = MemoryStore()
    clock.step(86400)
    with pytest.raises(InvalidGrantError):
        sandbox.session("alice", "wrong", store=store).fetch_token()
    clock.step(-86400)
    token = sandbox.session("alice", store=store).fetch_token()
    assert sandbox.session("alice", store=store).fetch_token() == token
    with pytest.raises(InvalidGrantError):
        sandbox.session("alice", "wrong", store=store).fetch_token()
    assert sandbox.count(CALLS) == 2


def test_a_wrong_password_neither_sees_nor_harms_the_users_token(sandbox: Sandbox) -> None:
    """A stored token serves only those who know the password that it was obtained with."""
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
    assert grants(sandbox)[2:] == ["refresh_token", "password"]
    assert sandbox.session("alice", store=store).fetch_token() == stored


@pytest.mark.parametrize(("status", "code"), [(401, "invalid_grant"), (400, None)])
def test_a_password_is_refused_for_good_by_status_or_code(
    status: int, code: str | None, sandbox: Sandbox, clock: Clock
) -> None:
    """A 400, and the code invalid_grant at whatever status, may be the user's password: it is not sent again."""
    alice = sandbox.session("alice")
    sandbox.answer_next(status, body={"error": code} if code else {}, path=CALLS)
    for _ in range(3):
        with pytest.raises(InvalidGrantError):
            alice.fetch_token()
        clock.step(61)
    assert sandbox.count(CALLS) == 1


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
    assert grants(sandbox) == ["password", "password", "refresh_token"]


@pytest.mark.parametrize("down", [{"get"}, {"set"}, {"lock"}, {"get", "set", "delete", "lock"}])
def test_a_refused_password_is_not_sent_again_while_the_store_fails(down: set[str], sandbox: Sandbox) -> None:
    """Whatever the store fails at, a wrong password is sent once by a process."""
    wrong = sandbox.session("alice", "wrong", store=Link(None, *down))
    for _ in range(3):
        with pytest.raises(InvalidGrantError):
            wrong.get(ECHO)
    assert sandbox.count(CALLS) == 1


def test_a_refusal_is_written_although_nothing_can_be_read(sandbox: Sandbox) -> None:
    """One process whose reads fail is refused: another one reads of it, and does not send that password."""
    shared = MemoryStore()
    with pytest.raises(InvalidGrantError):
        sandbox.session("alice", "wrong", store=Link(shared, "get")).get(ECHO)
    with pytest.raises(InvalidGrantError):
        sandbox.session("alice", "wrong", store=shared).get(ECHO)
    assert sandbox.count(CALLS) == 1


def test_wrong_guesses_of_others_do_not_push_a_refusal_out(sandbox: Sandbox) -> None:
    """While others guess, the nightly job's refused password is kept: it was sent once in 200 guesses."""
    sandbox.max_login_attempts = 1000
    client = sandbox.session()
    for number in range(200):
        if number % 20 == 0:
            with pytest.raises(InvalidGrantError):
                client.user("alice", "nightly").fetch_token()
        with pytest.raises(InvalidGrantError):
            client.user("alice", f"guess {number}").fetch_token()
    with pytest.raises(InvalidGrantError):
        client.user("alice", "nightly").fetch_token()
    assert sandbox.count(CALLS) == 201


# --- a callable is asked when it must be --------------------------------------------------------------------------


class Vault:
    """Keeps a password, and how often it was asked for."""

    def __init__(self, password: str) -> None:
        self.password = password
        self.asked = 0

    def __call__(self) -> str:
        """Return the password."""
        self.asked += 1
        return self.password


@pytest.mark.parametrize("store", [None, MemoryStore()], ids=["memory", "store"])
def test_a_password_is_asked_for_once_while_its_login_lasts(
    store: MemoryStore | None, sandbox: Sandbox, clock: Clock
) -> None:
    """Whoever types it types it at the first call: not to renew, not to look into the store, not to close or revoke."""
    vault = Vault("her-password")
    with sandbox.session(store=store) as client, client.user("alice", vault) as alice:
        for _ in range(3):
            warm(alice)
            clock.go_on(3601)
        clock.before_expiry(alice)
        warm(alice)
        assert vault.asked == 1
        alice.revoke()
        assert vault.asked == 1
        warm(alice)
        assert vault.asked == 2
    assert vault.asked == 2 and sandbox.count("/oauth/revoke", revoked="alice") == (1 if store else 2)


def test_a_password_is_asked_for_again_when_it_is_to_be_sent(sandbox: Sandbox) -> None:
    """When the refresh token ends the vault is asked: what it has now is sent, and what was refused is not."""
    vault = Vault("her-password")
    alice = sandbox.session("alice", vault)
    warm(alice)
    sandbox.revoke_tokens("alice", refresh=True)
    vault.password = "mistyped"
    for asked in (2, 3):
        with pytest.raises(InvalidGrantError):
            alice.get(ECHO)
        assert vault.asked == asked
    vault.password = "her-password"
    warm(alice)
    assert vault.asked == 4 and grants(sandbox) == ["password", "refresh_token", "password", "password"]


def test_a_changed_password_takes_the_token_that_it_has(sandbox: Sandbox) -> None:
    """A sibling logged in with the new password: whoever learns of it from the vault makes no login of its own."""
    store, vault = MemoryStore(), Vault("her-password")
    alice = sandbox.session("alice", vault, store=store)
    warm(alice)
    vault.password = "new-password"
    sandbox.change_password("alice", "new-password")
    warm(sandbox.session("alice", vault, store=store))
    warm(alice)
    assert grants(sandbox) == ["password", "password", "refresh_token"]


def test_revoke_pardons_what_a_vault_said_last(sandbox: Sandbox) -> None:
    """A vault's password that was refused may be sent again after ``revoke()``, though another one was good before."""
    vault = Vault("her-password")
    alice = sandbox.session("alice", vault)
    warm(alice)
    sandbox.revoke_tokens("alice", refresh=True)
    vault.password = "to-be"
    with pytest.raises(InvalidGrantError):
        alice.get(ECHO)
    sandbox.change_password("alice", "to-be")
    alice.revoke()
    warm(alice)


def test_a_rotated_client_secret_asks_for_the_password_again(sandbox: Sandbox) -> None:
    """Fingerprints are made with the client's secret: under another one hers is not known, and her token goes along."""
    vault, secret = Vault("her-password"), [sandbox.client_secret]
    alice = sandbox.session("alice", vault, client_secret=lambda: secret[0])
    warm(alice)
    secret[0] = sandbox.client_secret = "b" * 36
    sandbox.expire_tokens("alice")
    warm(alice)
    assert vault.asked == 2 and grants(sandbox) == ["password", "refresh_token"]


# --- revoke() pardons ---------------------------------------------------------------------------------------------


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


def test_revoke_pardons_no_other_password(sandbox: Sandbox) -> None:
    """`revoke()` of one session clears its own refusal: another refused password of the user is not sent again."""
    store = MemoryStore()
    wrong, other = (sandbox.session("alice", password, store=store) for password in ("wrong", "other"))
    for session in (wrong, other):
        with pytest.raises(InvalidGrantError):
            session.get(ECHO)
    wrong.revoke()
    for session in (other, sandbox.session("alice", "other", store=store)):
        with pytest.raises(InvalidGrantError):
            session.get(ECHO)
    assert sandbox.count(CALLS) == 2
    with pytest.raises(InvalidGrantError):
        wrong.get(ECHO)
    assert sandbox.count(CALLS) == 3


# --- the answer was lost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [500, "drop", "lose", "html", "empty", "truncated"])
def test_a_password_that_may_have_counted_rests(answer: Any, sandbox: Sandbox, clock: Clock) -> None:
    """A password grant answered 500, cut off or unreadable is one call, of all processes, for 60 s."""
    store = MemoryStore()
    sandbox.answer_next(answer, path=CALLS)
    alice = sandbox.session("alice", store=store)
    for session in (alice, alice, sandbox.session("alice", store=store)):
        with pytest.raises(TokenEndpointError, match="The password may have been counted: it is not sent again"):
            session.get(ECHO)
    clock.step(59)
    with pytest.raises(TokenEndpointError):
        alice.get(ECHO)
    assert sandbox.count(CALLS) == 1
    clock.step(2)
    warm(alice)
    assert sandbox.count(CALLS) == 2


def test_a_password_whose_answers_are_lost_rests_ever_longer(sandbox: Sandbox, clock: Clock) -> None:
    """finAPI counts what is not seen here: four calls send it once, and it rests 60 s, 120 s, up to an hour."""
    sandbox.max_login_attempts = 1000
    store = MemoryStore()
    sandbox.answer_next("lose", path=CALLS, times=99)
    for rest in (60, 120, 240, 480, 960, 1920, 3600, 3600):
        before = sandbox.count(CALLS)
        for _ in range(4):
            with pytest.raises(TokenEndpointError):
                sandbox.session("alice", "wrong", store=store).get(ECHO)
        clock.step(rest - 2)
        with pytest.raises(TokenEndpointError):
            sandbox.session("alice", "wrong", store=store).get(ECHO)
        assert sandbox.count(CALLS) - before == 1
        clock.step(3)


def test_a_lost_answer_rests_one_password_only(sandbox: Sandbox) -> None:
    """Whoever comes with another password of the user is not kept waiting by it."""
    store = MemoryStore()
    sandbox.answer_next("lose", path=CALLS)
    with pytest.raises(TokenEndpointError):
        sandbox.session("alice", "wrong", store=store).get(ECHO)
    warm(sandbox.session("alice", store=store))


def test_a_password_that_finapi_takes_starts_anew(sandbox: Sandbox, clock: Clock) -> None:
    """After a login the next lost answer rests for 60 s again, not for twice the rest before."""
    sandbox.sticky = False
    alice = sandbox.session("alice")
    for _ in range(2):
        sandbox.answer_next("lose", path=CALLS)
        with pytest.raises(TokenEndpointError):
            alice.get(ECHO)
        clock.step(61)
        warm(alice)
        sandbox.revoke_tokens(refresh=True)
        sandbox.answer_next(400, body={"error": "invalid_grant"}, path=CALLS, grant_type="refresh_token")
    assert sandbox.count(CALLS, grant_type="password") == 4


# --- it is about the client ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", ["unauthorized_client", "unsupported_grant_type", "invalid_scope", "invalid_client_metadata"]
)
def test_what_is_said_of_the_client_blames_no_password(code: str, sandbox: Sandbox, clock: Clock) -> None:
    """A code about the client rests for 60 s, its advice is not to correct the password, and then that is sent."""
    alice = sandbox.session("alice")
    sandbox.answer_next(401, body={"error": code}, path=CALLS)
    for _ in range(3):
        with pytest.raises(InvalidClientError) as caught:
            alice.get(ECHO)
        assert caught.value.code == code and "password" not in str(caught.value)
    assert sandbox.count(CALLS) == 1
    clock.step(61)
    warm(alice)


# --- a contested refresh token ------------------------------------------------------------------------------------


def renewed(sandbox: Sandbox, **options: Any) -> FinapiSession:
    """Return a session of alice whose token was obtained by a refresh token that was not replaced, in use."""
    alice = sandbox.session("alice", **options)
    warm(alice)
    sandbox.revoke_tokens("alice")
    warm(alice)
    return alice


def test_a_refused_password_is_not_sent_whoever_else_renews(sandbox: Sandbox) -> None:
    """finAPI took it once and refuses it since: the refresh token serves, now and the next time."""
    alice = renewed(sandbox)
    sandbox.answer_next(400, body={"error": "invalid_grant"}, path=CALLS, grant_type="password")
    for _ in range(3):
        sandbox.revoke_tokens("alice")
        warm(alice)
    assert grants(sandbox) == ["password", "refresh_token", "password", *["refresh_token"] * 3]


def test_a_password_that_finapi_never_took_is_not_sent_whoever_else_renews(sandbox: Sandbox) -> None:
    """It may be wrong, and a wrong one counts: the refresh token serves."""
    alice = sandbox.session("alice", password="wrong", token=sandbox.session("alice").fetch_token())
    for _ in range(3):
        warm(alice)
        sandbox.revoke_tokens("alice")
    assert grants(sandbox) == ["password", "refresh_token", "refresh_token"]


def test_a_password_whose_answer_is_lost_is_sent_once_whoever_else_renews(sandbox: Sandbox) -> None:
    """It rests like any other, and meanwhile the refresh token serves."""
    alice = renewed(sandbox)
    sandbox.revoke_tokens("alice")
    sandbox.answer_next("lose", path=CALLS, grant_type="password")
    with pytest.raises(TokenEndpointError):
        alice.get(ECHO)
    started = time.monotonic()
    warm(alice)
    assert time.monotonic() - started < 5
    assert grants(sandbox) == ["password", "refresh_token", "password", "refresh_token"]
