"""Closing and revoking: what is given back, how long that takes, and what lives on."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest

from finapi_session import InvalidGrantError, LoginRequiredError, MemoryStore, TokenError
from finapi_session.testing import Sandbox

from .clocks import Clock
from .herd import CALLS, ECHO, warm, without_threads
from .links import Link
from .logins import keys, stored, without_password


@pytest.mark.parametrize("times", [1, 9])
def test_close_tries_each_revocation_once(times: int, sandbox: Sandbox) -> None:
    """An exit does not wait for a finAPI that is overloaded."""
    client = sandbox.session()
    for session in (client, client.user("alice", "her-password")):
        session.get(ECHO)
    sandbox.answer_next(503, path="/oauth/revoke", times=times)
    client.close()
    assert sandbox.count("/oauth/revoke") == 2


def test_close_does_not_wait_for_a_finapi_that_is_gone(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """After two revocations in a row without an answer no other one is tried, and the log says what lives on."""
    client = sandbox.session()
    users = [client.user("alice", "her-password"), client.user(sandbox.username, sandbox.password)]
    for session in (client, *users):
        session.get(ECHO)
    sandbox.answer_next("drop", path="/oauth/revoke", times=9)
    client.close()
    assert sandbox.count("/oauth/revoke") == 2
    assert caplog.text.count("RevocationError on close; the token lives on") == 2
    assert caplog.text.count("finAPI does not answer on close; the token lives on") == 1


def test_close_goes_on_after_one_dropped_connection(sandbox: Sandbox) -> None:
    """One revocation without an answer says nothing of the next."""
    client = sandbox.session()
    for session in (client, client.user("alice", "her-password"), client.user(sandbox.username, sandbox.password)):
        session.get(ECHO)
    sandbox.answer_next("drop", path="/oauth/revoke")
    client.close()
    assert sandbox.count("/oauth/revoke") == 3


def test_close_gives_up_where_there_is_no_token_to_revoke_with(sandbox: Sandbox) -> None:
    """Where the client's own token cannot be had, nothing can be revoked, and nobody waits for each user."""
    client = sandbox.session()
    for name in ("bert", "carla"):
        sandbox.add_user(name, "password")
    users = [client.user(name, "password") for name in ("bert", "carla")]
    users += [client.user("alice", "her-password"), client.user(sandbox.username, sandbox.password)]
    for session in users:
        session.get(ECHO)
    sandbox.answer_next(503, path=CALLS, times=9)
    client.close()
    assert sandbox.count(CALLS, status=503) == 1 and sandbox.count("/oauth/revoke") == 0


def test_close_while_other_threads_make_users(sandbox: Sandbox) -> None:
    """close() raises nothing and closes everything, whoever makes sessions meanwhile."""
    client = sandbox.session()
    interval, stop, made = sys.getswitchinterval(), threading.Event(), []

    def make() -> None:
        while not stop.is_set():
            made.append(client.user("alice", "her-password"))
            del made[:-20]

    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=make)
    thread.start()
    try:
        for _ in range(2000):
            client.close()
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


def test_a_token_given_is_gone_once_it_is_revoked(sandbox: Sandbox) -> None:
    """Who revokes has nothing left to renew with, and finAPI is not asked."""
    alice = without_password(sandbox, MemoryStore(), token=sandbox.session("alice").fetch_token())
    alice.get(ECHO)
    alice.revoke()
    calls = sandbox.count(CALLS)
    with pytest.raises(LoginRequiredError, match="there is no token"):
        alice.get(ECHO)
    assert sandbox.count(CALLS) == calls


@pytest.mark.parametrize("given_before", ["known to her", "taken in place of what was given"])
def test_revoke_leaves_no_grant_alive(given_before: str, sandbox: Sandbox) -> None:
    """Of a user with a token given beside the stored one nothing is left, in use or not."""
    sandbox.sticky = False
    store = MemoryStore()
    tokens = [sandbox.session("alice", store=store).fetch_token(), sandbox.session("alice").fetch_token()]
    given = replace(tokens[1], issued_at=1.0)
    alice = without_password(sandbox, store, token=given)
    if given_before != "known to her":
        alice.get(ECHO)
    alice.revoke()
    with pytest.raises(LoginRequiredError, match="there is no token"):
        alice.get(ECHO)
    for token in tokens:
        with pytest.raises(LoginRequiredError):
            without_password(sandbox, MemoryStore(), token=token).get(ECHO)


def test_what_was_revoked_is_not_brought_back_by_a_worker_that_was_cut_off(sandbox: Sandbox, clock: Clock) -> None:
    """The store keeps that the tokens are dead, and no token: whoever comes back with them drops them."""
    store = MemoryStore()
    link = Link(store)
    cut_off, alice = sandbox.session("alice", store=link), sandbox.session("alice", store=store)
    token = cut_off.fetch_token()
    warm(alice)
    link.cut()
    alice.revoke()
    kept = str(store.get(keys(sandbox)[0]))
    assert token.access_token not in kept and (token.refresh_token or "?") not in kept
    link.mend()
    clock.before_expiry(cut_off)
    warm(cut_off)
    cut_off.close()
    assert token not in [grant.token for grant in stored(sandbox, store)]
    warm(alice)
    assert sandbox.count(CALLS, grant_type="password") == 2 and sandbox.count(CALLS, grant_type="refresh_token") <= 1


def test_revoke_pardons_its_own_password_only(sandbox: Sandbox) -> None:
    """What finAPI refused to others of the same user is not sent again for that."""
    store = MemoryStore()
    mine, theirs = (sandbox.session("alice", password, store=store) for password in ("wrong", "as-wrong"))
    for session in (mine, theirs):
        with pytest.raises(InvalidGrantError):
            session.get(ECHO)
    mine.revoke()
    for session in (theirs, sandbox.session("alice", "as-wrong", store=store)):
        with pytest.raises(InvalidGrantError):
            session.get(ECHO)
    assert sandbox.users["alice"].failed_logins == 2
    with pytest.raises(TokenError):
        mine.get(ECHO)
    assert sandbox.users["alice"].failed_logins == 3


def test_close_takes_ten_seconds_at_most(own_sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the number of users and however slow finAPI: several are revoked at once, and what lives on is told."""
    client = own_sandbox.session()
    users = []
    for number in range(60):
        own_sandbox.add_user(f"user-{number}", "password")
        users.append(client.user(f"user-{number}", "password"))
        users[-1].fetch_token()
    own_sandbox.latency = {"/oauth/revoke": 1.5}
    started = time.monotonic()
    client.close()
    seconds = time.monotonic() - started
    revoked = own_sandbox.count("/oauth/revoke", status=200)
    assert seconds < 11.5 and revoked >= 20, (seconds, revoked)
    [told] = [record.getMessage() for record in caplog.records if "tokens live on" in record.getMessage()]
    assert "finAPI does not answer on close" in told and "identities" in told


@pytest.mark.parametrize("slow", ["the client's token", "the store's lock"])
def test_close_waits_for_nothing_longer(
    slow: str, own_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What a revocation waits for beside its own call does not prolong a close, and what lives on is told."""
    monkeypatch.setattr("finapi_session.closing.CLOSE_SECONDS", 1.0)
    store = MemoryStore()
    client = own_sandbox.session(store=store, revoke_on_close=True)
    alice = client.user("alice", "her-password")
    alice.get(ECHO)
    with ExitStack() as busy:
        if slow == "the store's lock":
            client.fetch_token()
            busy.enter_context(store.lock(keys(own_sandbox)[0]))
        else:
            own_sandbox.latency = {CALLS: 3.0}
        started = time.monotonic()
        client.close()
        assert time.monotonic() - started < 2.5
    assert own_sandbox.count("/oauth/revoke") == 0
    assert "finAPI does not answer on close" in caplog.text


def test_close_waits_no_longer_to_tell_a_store_what_it_lacks(
    own_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that missed a token gets it on close, unless somebody else has its lock for too long."""
    monkeypatch.setattr("finapi_session.closing.CLOSE_SECONDS", 1.0)
    store = MemoryStore()
    link = Link(store)
    alice = own_sandbox.session("alice", store=link)
    link.cut()
    alice.fetch_token()
    link.mend()
    [key, *_] = keys(own_sandbox)
    with store.lock(key):
        started = time.monotonic()
        alice.close()
        assert time.monotonic() - started < 2.5 and store.get(key) is None
    alice.close()
    assert store.get(key) is not None


def test_close_of_many_users_is_quick(sandbox: Sandbox) -> None:
    """Where finAPI answers, nothing lives on."""
    client = sandbox.session()
    for number in range(40):
        sandbox.add_user(f"user-{number}", "password")
        client.user(f"user-{number}", "password").fetch_token()
    client.close()
    assert sandbox.count("/oauth/revoke", status=200) == 41


def test_close_without_another_thread(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started, the tokens are revoked one by one."""
    client = sandbox.session()
    for number in range(6):
        sandbox.add_user(f"user-{number}", "password")
        client.user(f"user-{number}", "password").fetch_token()

    without_threads(monkeypatch, client._give_back)
    assert sandbox.count("/oauth/revoke", status=200) == 7


def test_nothing_is_revoked_at_the_end_of_a_program(sandbox: Sandbox) -> None:
    """A wrapper whose finalizer closes is too late for calls: its token lives on, as that of a dropped session."""
    session = sandbox.session()
    session.fetch_token()
    session.close(_ending=lambda: True)
    assert sandbox.count("/oauth/revoke") == 0
