"""A program whose OAuth calls are interrupted by signals, and which looks for secrets in what error trackers show.

``python -m tests.tracked KIND LEVEL ORIGIN CA POINTS`` prints, as JSON, how many points there were, what came through,
and which secrets were seen where. Trackers change a process for good, so this is one of its own.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from io import StringIO
from types import FrameType
from typing import Any

import loguru
import requests
import rich.console
import rich.traceback
import sentry_sdk
from requests.auth import AuthBase
from urllib3.util import Retry

from finapi_session import Environment, FinapiSession, MemoryStore, Token
from finapi_session.endpoint import TokenEndpoint
from finapi_session.events import Journal
from finapi_session.identity import Credentials
from finapi_session.redaction import Redacted

# Trackers show lines of the source, so no secret stands in one. They are longer than what trackers cut texts to.
MARK = {name: f"Q{name}" + "-" * 2 + "s3" + "cret" for name in ("client", "password", "refresh", "access", "bearer")}
SECRET = {name: mark + "x" * 100 for name, mark in MARK.items()}
SIGNALS = (signal.SIGUSR1, signal.SIGINT, signal.SIGUSR2)


class LimitError(Exception):
    """A time limit of the caller's, like Celery's."""


class Bearer(AuthBase):
    """The client's token on a revocation."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put it on."""
        request.headers["Authorization"] = Redacted("Bearer " + SECRET["bearer"])
        return request


def over_limit(_number: int, _frame: FrameType | None) -> None:
    """Raise an exception of the caller's."""
    raise LimitError


def timed_out(_number: int, _frame: FrameType | None) -> None:
    """Raise what is an OSError, as the failures of a network are."""
    raise TimeoutError


def of_endpoint(kind: str, origin: str, ca: str) -> Callable[[], object]:
    """Return a call of *kind* of the endpoint alone.

    Each has connections of its own: an exception in the middle of urllib3's pool may leave that locked for good.
    """
    alice = Credentials("id", SECRET["client"], "alice", SECRET["password"])
    token = Token(SECRET["access"], refresh_token=SECRET["refresh"])

    def call() -> object:
        host = requests.Session()
        host.verify, host.trust_env = ca, False
        endpoint = TokenEndpoint(host, Environment(origin), Journal(origin, None), lambda: "r", Retry(0))
        if kind == "revoke":
            return endpoint.revoke("alice", token, Bearer(), patient=False)
        return endpoint.fetch(alice, token if kind == "refresh" else None, patient=False)

    return call


def of_session(kind: str, origin: str, ca: str) -> Callable[[], object]:
    """Return a call of *kind* of a session of alice's, always as if it were her first one."""

    def call() -> object:
        old = {"access_token": SECRET["access"], "refresh_token": SECRET["refresh"], "expires_at": time.time() - 1}
        token = None if kind == "password" else Token.from_dict(old)
        del old
        session = FinapiSession(
            "id",
            SECRET["client"],
            username="alice",
            password=SECRET["password"],
            environment=origin,
            token=token,
            store=MemoryStore(),
            retries=0,
        )
        session.verify, session.trust_env = ca, False
        return session.revoke() if kind == "revoke" else session.get("/api/v2/x")

    return call


class Interrupter:
    """Sends a signal at the *point*-th function call or return of what it watches."""

    def __init__(self, point: int, number: signal.Signals) -> None:
        self.seen, self._point, self._number = 0, point, number

    def __call__(self, _frame: FrameType, _event: str, _argument: object) -> None:
        """Count, as a profiler that Python calls."""
        self.seen += 1
        if self.seen == self._point:
            signal.raise_signal(self._number)

    def watch(self, call: Callable[[], object]) -> BaseException | None:
        """Return what *call* raised."""
        sys.setprofile(self)
        try:
            call()
        except BaseException as error:
            sys.setprofile(None)
            return error
        finally:
            sys.setprofile(None)
        return None


def shown(error: BaseException, events: list[Any], lines: list[str], whole: bool) -> dict[str, str]:
    """Return what each tracker shows of *error*; rich cuts no text if *whole*."""
    sentry_sdk.capture_exception(error)
    loguru.logger.opt(exception=error).error("interrupted")
    texts = {"sentry": json.dumps(events), "loguru": "".join(lines)}
    options: dict[str, Any] = {"locals_max_string": None, "locals_max_length": None} if whole else {}
    of_error = (type(error), error, error.__traceback__)
    printed = StringIO()
    traceback = rich.traceback.Traceback.from_exception(*of_error, show_locals=True, **options)
    rich.console.Console(file=printed, width=10_000).print(traceback)
    return {**texts, "rich": printed.getvalue()}


def main(kind: str, level: str, origin: str, ca: str, points: str) -> None:
    """Interrupt the call at so many points of it, evenly spread."""
    events: list[Any] = []
    lines: list[str] = []
    sentry_sdk.init("https://key@127.0.0.1:9/1", before_send=lambda event, _: events.append(event))
    loguru.logger.remove()
    loguru.logger.add(lines.append, backtrace=True, diagnose=True)
    signal.signal(signal.SIGUSR1, over_limit)
    signal.signal(signal.SIGUSR2, timed_out)
    logging.getLogger("finapi_session").addHandler(logging.NullHandler())
    call = {"endpoint": of_endpoint, "session": of_session}[level](kind, origin, ca)
    call()
    counter = Interrupter(0, signal.SIGINT)
    counter.watch(call)
    came: list[str] = []
    leaks: list[tuple[int, str, str]] = []
    for number in range(int(points)):
        point = 1 + number * counter.seen // int(points)
        error = Interrupter(point, SIGNALS[number % 3]).watch(call)
        if error is not None:
            came.append(type(error).__name__)
            texts = shown(error, events, lines, whole=number % 2 == 0)
            leaks += [(point, where, name) for where, text in texts.items() for name in MARK if MARK[name] in text]
            assert len(events) == 1 and all(texts.values())
        events.clear()
        lines.clear()
    print(json.dumps({"points": counter.seen, "came": came, "leaks": leaks}))


if __name__ == "__main__":
    main(*sys.argv[1:])
