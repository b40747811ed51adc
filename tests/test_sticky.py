"""finAPI's tokens are sticky: while one lives, the same credentials get the same one again; and some never expire."""

from __future__ import annotations

import subprocess
import sys

import pytest

from finapi_session import MemoryStore
from finapi_session.testing import Sandbox

from .clocks import Clock
from .herd import CALLS, warm


def test_a_sticky_server_is_asked_once_in_the_soft_window(sandbox: Sandbox, clock: Clock) -> None:
    """10,000 looks at a sticky token inside the leeway cost one token call, and siblings none."""
    store = MemoryStore()
    session = sandbox.session(store=store)
    warm(session)
    before = session.fetch_token()
    clock.before_expiry(session, left=59)
    for _ in range(10_000):
        token = session.fetch_token()
        clock.step(0.005)
    assert (token.access_token, token.expires_at) == (before.access_token, before.expires_at)
    assert token.issued_at == before.issued_at
    assert sandbox.count(CALLS) == 2
    assert sandbox.session(store=store).fetch_token() == token
    assert sandbox.count(CALLS) == 2


def test_hosts_do_not_all_ask_when_the_window_opens() -> None:
    """Each process lets a part of its own of the soft window pass, at most a tenth of it."""
    code = "from finapi_session import source; print(source._LATE)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    parts = {float(run.stdout) for run in runs}
    assert len(parts) == 3 and all(0 <= part <= 0.1 for part in parts)


def test_a_part_of_the_soft_window_passes(sandbox: Sandbox, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is late by a tenth asks 54 s before expiry, and not before; a failure is tried again after 2 s."""
    monkeypatch.setattr("finapi_session.source._LATE", 0.1)
    session = sandbox.session()
    for left, calls in ((55, 1), (54.1, 1), (53.9, 2), (53.0, 2), (50.5, 3)):
        if calls > 1:
            sandbox.answer_next(503, path=CALLS, times=1 if left != 53.0 else 0)
        clock.before_expiry(session, left=left)
        warm(session)
        assert sandbox.count(CALLS) == calls


def test_a_sticky_servers_last_second(sandbox: Sandbox, clock: Clock) -> None:
    """`expires_in` 0 for a token with a known expiry is its last second: at most two more calls, then a new one."""
    sandbox.lifetime = 60
    session = sandbox.session()
    first = session.fetch_token()
    sandbox.advance(59.5)
    clock.step(60.1)
    last_second = session.fetch_token()
    assert last_second.access_token == first.access_token and last_second.expires_at is not None
    session.fetch_token()
    clock.go_on(1.1)
    second = session.fetch_token()
    assert second.access_token != first.access_token
    assert sandbox.count(CALLS) == 3


def test_a_sticky_answer_just_before_expiry(sandbox: Sandbox, clock: Clock) -> None:
    """Asked early in its last second, a sticky token is still one with an expiry: 0 then is not "never"."""
    session = sandbox.session()
    warm(session)
    clock.before_expiry(session, left=0.8)
    token = session.fetch_token()
    assert sandbox.count(CALLS) == 2
    clock.step(0.9)
    sandbox.answer_next(200, body={"access_token": token.access_token, "expires_in": 0}, path=CALLS)
    assert session.fetch_token().lifetime == pytest.approx(1)
    assert sandbox.count(CALLS) == 3


def test_a_sticky_token_that_turns_out_to_live_for_ever(sandbox: Sandbox, clock: Clock) -> None:
    """When the client's lifetime becomes "never", 0 is believed after a second look, and not asked every second."""
    sandbox.lifetime = 60
    session = sandbox.session()
    same = {"access_token": session.fetch_token().access_token, "expires_in": 0}
    sandbox.answer_next(200, body=same, path=CALLS, times=5)
    clock.step(61)
    for _ in range(10):
        session.fetch_token()
        clock.step(2)
    assert session.fetch_token().expires_at is None
    assert sandbox.count(CALLS) == 3


def test_a_last_second_is_not_followed_by_another(sandbox: Sandbox, clock: Clock) -> None:
    """However long the answer takes, a second 0 for the same token is believed: it never expires."""
    session = sandbox.session()
    warm(session)
    same = {"access_token": session.fetch_token().access_token, "expires_in": 0}
    clock.before_expiry(session, left=-0.1)
    sandbox.latency = {CALLS: 0.1}
    sandbox.answer_next(200, body=same, path=CALLS, times=2)
    for _ in range(2):
        token = session.fetch_token()
        clock.step(1.1)
    assert token.expires_at is None and sandbox.count(CALLS) == 3


@pytest.mark.parametrize("answer", [{"expires_in": 0}, {}], ids=["0", "absent"])
def test_never_means_never(answer: dict[str, object], sandbox: Sandbox, clock: Clock) -> None:
    """A token without expiry is used as it is ten years later."""
    store = MemoryStore()
    sandbox.answer_next(200, body={"access_token": "eternal", "token_type": "bearer", **answer}, path=CALLS)
    session = sandbox.session(store=store)
    session.fetch_token()
    clock.step(10 * 365 * 86400)
    assert session.fetch_token().access_token == "eternal"
    assert sandbox.session(store=store).fetch_token().access_token == "eternal"
    assert sandbox.count(CALLS) == 1
