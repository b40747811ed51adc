"""What finAPI refuses: the client, the user, a refresh token, or to be called at all; and what rests because of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from finapi_session import (
    AccessDeniedError,
    FinapiError,
    FinapiSession,
    InvalidClientError,
    LoginRequiredError,
    MemoryStore,
    Token,
    TokenEndpointError,
    TokenError,
    UserLockedError,
)
from finapi_session.testing import Sandbox

from .clocks import Clock
from .herd import CALLS, ECHO, grants, warm


def end_refresh_tokens(sandbox: Sandbox, how: str) -> None:
    """Let finAPI answer refresh grants with 400 (invalid) or 401 (expired)."""
    if how == "401":
        sandbox.expire_tokens(refresh=True)
    else:
        sandbox.revoke_tokens(refresh=True)


def on_a_token(sandbox: Sandbox, token: Token, **options: Any) -> FinapiSession:
    """Return a session of alice that has no password."""
    names = {"username": "alice", "environment": sandbox.environment, "token": token}
    alice = FinapiSession(sandbox.client_id, sandbox.client_secret, **{**names, **options})
    alice.verify, alice.trust_env = sandbox.ca_bundle, False
    return alice


# --- what rests for a minute --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prepare", "error"),
    [
        (lambda sandbox: sandbox.change_client_secret("other"), InvalidClientError),
        (lambda sandbox: sandbox.lock_user("alice"), UserLockedError),
        (lambda sandbox: setattr(sandbox, "api_version", 2), AccessDeniedError),
    ],
)
def test_what_rests_for_a_minute(
    prepare: Callable[[Sandbox], None], error: type[FinapiError], sandbox: Sandbox, clock: Clock
) -> None:
    """A wrong client secret, a locked user and a wrong API version cost one call in ten, and again after 60 s."""
    alice = sandbox.session("alice")
    prepare(sandbox)
    for _ in range(10):
        with pytest.raises(error):
            alice.get(ECHO)
        clock.step(5)
    assert sandbox.count(CALLS) == 1
    clock.step(11)
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


def test_a_rest_is_not_prolonged_by_a_clock_that_was_set_back(sandbox: Sandbox, clock: Clock) -> None:
    """A refusal that lies a day in the future is none."""
    session = sandbox.session()
    sandbox.change_client_secret("other")
    clock.step(86400)
    with pytest.raises(InvalidClientError):
        session.get(ECHO)
    clock.step(-86400)
    with pytest.raises(InvalidClientError):
        session.get(ECHO)
    assert sandbox.count(CALLS) == 2


def test_what_rests_is_kept_for_all_processes(sandbox: Sandbox) -> None:
    """A locked user costs ten processes on one store one call, and each of them the same error."""
    store = MemoryStore()
    sandbox.lock_user("alice")
    told = set()
    for _ in range(10):
        with pytest.raises(UserLockedError) as caught:
            sandbox.session("alice", store=store).get(ECHO)
        told.add(str(caught.value))
    assert sandbox.count(CALLS) == 1 and len(told) == 1


# --- Retry-After --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("username", [None, "alice"])
def test_retry_after_is_heeded_by_all_processes(username: str | None, sandbox: Sandbox, clock: Clock) -> None:
    """Ten sessions one after the other on one store make one token call, are told how long, and then go on."""
    store = MemoryStore()
    sandbox.answer_next(429, headers={"Retry-After": "100"}, path=CALLS)
    for _ in range(10):
        with pytest.raises(TokenEndpointError) as caught:
            sandbox.session(username, store=store).get(ECHO)
        assert caught.value.retry_after == pytest.approx(100, abs=5)
    clock.step(90)
    with pytest.raises(TokenEndpointError) as caught:
        sandbox.session(username, store=store).get(ECHO)
    assert caught.value.retry_after == pytest.approx(10, abs=5) and sandbox.count(CALLS) == 1
    clock.step(11)
    warm(sandbox.session(username, store=store))


def test_retry_after_is_heeded_for_five_minutes_at_most(sandbox: Sandbox, clock: Clock) -> None:
    """A wish not to be called for a day may be a mistake: after 300 s finAPI is asked once more."""
    session = sandbox.session()
    sandbox.answer_next(429, headers={"Retry-After": "86400"}, path=CALLS)
    for step in (0, 290):
        clock.step(step)
        with pytest.raises(TokenEndpointError):
            session.get(ECHO)
    assert sandbox.count(CALLS) == 1
    clock.step(11)
    warm(session)


def test_what_a_sibling_stored_is_taken_while_finapi_wants_no_calls(sandbox: Sandbox) -> None:
    """A long `Retry-After` is for asking finAPI, not for looking into the store."""
    store = MemoryStore()
    elsewhere = sandbox.session("alice").fetch_token()
    ours = sandbox.session("alice", store=store)
    sandbox.answer_next(429, headers={"Retry-After": "300"}, path=CALLS)
    for _ in range(2):
        with pytest.raises(TokenEndpointError):
            ours.get(ECHO)
    with sandbox.session("alice", store=store, token=elsewhere) as sibling:
        warm(sibling)
    warm(ours)
    assert sandbox.count(CALLS) == 2


# --- refresh tokens that finAPI refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["400", "401"])
def test_a_refused_refresh_token_is_followed_by_the_password_once(how: str, sandbox: Sandbox) -> None:
    """An invalid (400) or expired (401) refresh token costs one call more, and the call does not fail."""
    alice = sandbox.session("alice")
    warm(alice)
    end_refresh_tokens(sandbox, how)
    warm(alice)
    assert grants(sandbox) == ["password", "refresh_token", "password"]


@pytest.mark.parametrize("how", ["400", "401"])
def test_without_a_password_a_login_is_required(how: str, sandbox: Sandbox) -> None:
    """A user who lives on a token gets LoginRequiredError when it ends, and finAPI is asked once."""
    alice = on_a_token(sandbox, sandbox.session("alice").fetch_token())
    warm(alice)
    end_refresh_tokens(sandbox, how)
    before = sandbox.count(CALLS)
    for _ in range(3):
        with pytest.raises(LoginRequiredError, match="alice.*password") as caught:
            alice.get(ECHO)
    assert sandbox.count(CALLS) - before == 1
    refused = [call for call in sandbox.calls if call.grant_type][-1]
    error = caught.value
    assert (error.status, error.code) == ((401, "invalid_token") if how == "401" else (400, "invalid_grant"))
    assert (error.description or "").startswith("Invalid refresh token") and error.request_id == refused.request_id


@pytest.mark.parametrize("how", ["400", "401"])
def test_a_refresh_token_that_was_refused_is_never_sent_again(how: str, sandbox: Sandbox, clock: Clock) -> None:
    """Also a minute later, by us and by a sibling on the same store."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    alice, sibling = (sandbox.session(store=store).user("alice") for _ in range(2))
    warm(alice)
    end_refresh_tokens(sandbox, how)
    before = sandbox.count(CALLS)
    for elapsed in (0, 61):
        clock.step(elapsed)
        for user in (alice, sibling):
            with pytest.raises(LoginRequiredError):
                user.get(ECHO)
    assert sandbox.count(CALLS) == before + 1


@pytest.mark.parametrize("answer", [500, 423, "drop"])
def test_a_refused_refresh_token_goes_whatever_comes_of_the_password(
    answer: Any, sandbox: Sandbox, clock: Clock
) -> None:
    """Each refresh token is refused once: the password that fails after it does not bring it back."""
    alice = sandbox.session("alice")
    warm(alice)
    sandbox.revoke_tokens(refresh=True)
    sandbox.answer_next(answer, path=CALLS, grant_type="password", times=3)
    for elapsed in (0, 61, 61):
        clock.step(elapsed)
        with pytest.raises(TokenError):
            alice.get(ECHO)
    assert sandbox.count(CALLS, grant_type="refresh_token") == 1


def test_a_new_token_beats_what_is_left_of_a_spent_one(sandbox: Sandbox, clock: Clock) -> None:
    """After a login was required, the token that the caller brings is used, although the refusal was kept later."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    cron = sandbox.session(store=store).user("alice")
    warm(cron)
    sandbox.revoke_tokens(refresh=True)
    new = sandbox.session("alice").fetch_token()
    with pytest.raises(LoginRequiredError):
        cron.get(ECHO)
    clock.step(3601)
    alice = on_a_token(sandbox, replace(new, expires_at=new.expires_at and new.expires_at + 3660), store=store)
    assert alice.fetch_token().access_token == new.access_token


@pytest.mark.parametrize("answer", [{}, None], ids=["no code", "no OAuth answer"])
def test_a_gateways_400_ends_no_refresh_token(answer: Any, sandbox: Sandbox, clock: Clock) -> None:
    """A 400 without a code is not finAPI's word on the refresh token: without a password it serves a minute later."""
    alice = on_a_token(sandbox, sandbox.session("alice").fetch_token())
    warm(alice)
    sandbox.revoke_tokens()
    body = "<html>Bad Request</html>" if answer is None else answer
    sandbox.answer_next(400, body=body, path=CALLS)
    with pytest.raises(TokenError):
        alice.get(ECHO)
    clock.step(61)
    warm(alice)
    assert grants(sandbox) == ["password", "refresh_token", "refresh_token"]


def test_a_user_without_anything_must_log_in(sandbox: Sandbox) -> None:
    """Without a password and a token nothing is sent."""
    with pytest.raises(LoginRequiredError, match="there is no token for user 'nobody'"):
        sandbox.session("nobody").get(ECHO)
    assert sandbox.calls == []


# --- the client is refused, by way of a refresh token -------------------------------------------------------------


@pytest.mark.parametrize("password", [None, "her-password"], ids=["without a password", "with one"])
@pytest.mark.parametrize("status", [400, 401])
def test_a_suspended_client_costs_no_user_her_login(
    status: int, password: str | None, sandbox: Sandbox, clock: Clock
) -> None:
    """While finAPI refuses the client, no other grant is tried, and the refresh token works again afterwards."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    alice = sandbox.session(store=store).user("alice", *filter(None, [password]))
    warm(alice)
    sandbox.revoke_tokens()
    sandbox.answer_next(status, body={"error": "invalid_client"}, path=CALLS)
    for _ in range(3):
        with pytest.raises(InvalidClientError):
            alice.get(ECHO)
    assert grants(sandbox) == ["password", "refresh_token"]
    clock.step(61)
    warm(alice)
    assert grants(sandbox) == ["password", "refresh_token", "refresh_token"]


@pytest.mark.parametrize("code", ["unauthorized_client", "unsupported_grant_type", "invalid_scope"])
def test_a_code_about_the_client_ends_no_refresh_token(code: str, sandbox: Sandbox, clock: Clock) -> None:
    """The password is not sent after it with the same client, and a minute later the refresh token serves."""
    alice = sandbox.session("alice")
    warm(alice)
    sandbox.revoke_tokens()
    sandbox.answer_next(401, body={"error": code}, path=CALLS)
    with pytest.raises(InvalidClientError):
        alice.get(ECHO)
    clock.step(61)
    warm(alice)
    assert grants(sandbox) == ["password", "refresh_token", "refresh_token"]


def test_a_refused_client_is_told_from_a_refused_refresh_token(sandbox: Sandbox, clock: Clock) -> None:
    """Without a password, a client secret that finAPI refuses is said to be that, and the refresh token is kept."""
    store = MemoryStore()
    sandbox.session("alice", store=store).fetch_token()
    alice = sandbox.session(store=store).user("alice")
    warm(alice)
    sandbox.revoke_tokens()
    sandbox.answer_next(401, body={"error": "invalid_client"}, path=CALLS)
    with pytest.raises(InvalidClientError):
        alice.get(ECHO)
    token = Token.from_dict({"access_token": "none", "expires_at": 1.0})
    clock.step(61)
    assert on_a_token(sandbox, token, store=store).get(ECHO).status_code == 200
    assert grants(sandbox) == ["password", "refresh_token", "refresh_token"]
