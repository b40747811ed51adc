"""Time limits by signals, and interruptions."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import pytest
import requests
from requests.adapters import BaseAdapter

from finapi_session import FinapiSession, MemoryStore, TokenError
from finapi_session.errors import raised_by_signal_handler
from finapi_session.flight import Ticket
from finapi_session.testing import Sandbox

from .clocks import Clock
from .herd import CALLS, ECHO, warm, without_threads


class TimeIsUp(Exception):
    """What a signal handler raises, as Celery's does."""


def _limited(seconds: float, act: Callable[[], object], error: Exception = TimeIsUp("soft time limit")) -> None:
    """Let *act* be broken off by *error* after so many *seconds*, as a task queue does."""

    def ring(*_: object) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with pytest.raises(type(error), match=str(error)):
            act()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Sluggish(MemoryStore):
    """A store of which one method takes its time."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def get(self, key: str) -> str | None:
        """Return the value, in time."""
        self._pause("get")
        return super().get(key)

    def set(self, key: str, value: str) -> None:
        """Keep the value, in time."""
        self._pause("set")
        super().set(key, value)

    def lock(self, key: str) -> Any:
        """Return the lock, in time."""
        self._pause("lock")
        return super().lock(key)

    def _pause(self, method: str) -> None:
        if method == self.method:
            time.sleep(1)


class Limit:
    """A handler that is a method, as RQ's is."""

    def ring(self, *_: object) -> None:
        """Raise."""
        raise TimeIsUp("soft time limit")


def test_a_time_limit_by_signal_comes_through(sandbox: Sandbox) -> None:
    """What a handler raises in the middle of a token call is the caller's, not an unreadable answer to try again."""
    sandbox.latency = {CALLS: 1.0}
    _limited(0.3, sandbox.session().fetch_token)


@pytest.mark.parametrize("method", ["get", "set", "lock"])
def test_a_time_limit_comes_through_a_store(sandbox: Sandbox, method: str) -> None:
    """A task that is to end while a store is slow ends; the next one works."""
    session = sandbox.session(store=Sluggish(method))
    _limited(0.3, session.fetch_token)
    assert session.get(ECHO).status_code == 200


def test_a_time_limit_comes_through_an_early_renewal(sandbox: Sandbox, clock: Clock) -> None:
    """Nobody notices that an early renewal fails, save who was to stop."""
    session = sandbox.session("alice")
    clock.before_expiry(session)
    sandbox.latency = {CALLS: 1.0}
    _limited(0.3, lambda: session.get(ECHO))
    sandbox.latency = 0
    assert session.get(ECHO).status_code == 200


@pytest.mark.parametrize("threads", [True, False], ids=["in threads", "where there can be none"])
@pytest.mark.parametrize("path", ["/oauth/revoke", CALLS])
def test_a_time_limit_comes_through_close(
    own_sandbox: Sandbox, path: str, threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """close() raises nothing of its own, and does not keep what a signal says."""
    session = own_sandbox.session("alice")
    session.get(ECHO)
    own_sandbox.latency = {path: 1.0}
    close = session.close if threads else partial(without_threads, monkeypatch, session._give_back)
    _limited(0.3, close)


@pytest.mark.parametrize("username", [None, "alice"])
def test_a_time_limit_in_a_token_call_leaves_no_lock_taken(username: str | None, sandbox: Sandbox) -> None:
    """The next call, of whichever thread or worker, asks at once."""
    store = MemoryStore()
    client = sandbox.session(username, store=store)
    sandbox.latency = {CALLS: 0.6}
    _limited(0.2, client.fetch_token)
    sandbox.latency = 0
    started = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(client.get, ECHO).result().status_code == 200
    warm(client)
    warm(sandbox.session(username, store=store))
    assert time.perf_counter() - started < 3


def test_a_time_limit_comes_through_a_listener(sandbox: Sandbox) -> None:
    """A listener's own errors cost nothing; a signal's that strikes there is not one of them."""
    _limited(0.3, sandbox.session(on_event=lambda _: time.sleep(1)).fetch_token)


def test_a_time_limit_may_be_a_timeout_error(sandbox: Sandbox) -> None:
    """Many handlers raise the builtin TimeoutError, which is no failure of finAPI's endpoint either."""

    class Slow(BaseAdapter):
        def send(self, *_: object, **__: object) -> requests.Response:
            time.sleep(1)
            return requests.Response()

        def close(self) -> None:
            """Have nothing to close."""

    session = sandbox.session()
    session.mount("https://", Slow())
    _limited(0.3, session.fetch_token, TimeoutError("my limit"))


@pytest.mark.parametrize("handler", [Limit().ring, partial(Limit.ring, Limit())])
def test_whatever_a_handler_is_made_of_it_is_known(handler: Callable[..., None]) -> None:
    """Task queues have functions, methods and partials for handlers; what anybody else raises is not a signal's."""
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(TimeIsUp) as caught:
            signal.raise_signal(signal.SIGALRM)
        with pytest.raises(OSError) as other:
            raise OSError
        assert raised_by_signal_handler(caught.value) and not raised_by_signal_handler(other.value)
    finally:
        signal.signal(signal.SIGALRM, before)


def _struck(number: int, session: FinapiSession) -> bool:
    """Let an interruption strike a token call at the step of that *number* in which it gives its flights back.

    Return whether there is such a step.
    """
    left = [number]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not Ticket.__exit__.__code__:
            return None
        left[0] -= event in ("call", "line")
        if left[0] == 0:
            raise TimeIsUp
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        session.fetch_token()
    except TimeIsUp:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("number", range(1, 5))
def test_an_interruption_on_the_way_out_leaves_no_flight_taken(number: int, sandbox: Sandbox) -> None:
    """Another thread goes on at once, wherever in a flight's end the signal strikes."""
    session, done = sandbox.session(), threading.Event()

    def call() -> None:
        with suppress(TokenError):
            session.get(ECHO)
            done.set()

    assert _struck(number, session)
    sandbox.revoke_tokens()
    threading.Thread(target=call, daemon=True).start()
    assert done.wait(3)
