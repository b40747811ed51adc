"""Many threads that do the same thing in the same moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from finapi_session import FinapiError

#: An API call that answers with what it was asked, and finAPI's token calls.
ECHO, CALLS = "/api/v2/tests/echo", "/oauth/token"


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
    """Return the statuses of answers, errors as they are."""
    return {getattr(result, "status_code", result) for result in results}


def warm(session: Any) -> None:
    """Let the session hold a token that the API has taken."""
    assert session.get(ECHO).status_code == 200


def grants(sandbox: Any) -> list[str]:
    """Return how finAPI was asked for tokens so far: password, refresh_token or client_credentials."""
    return [call.grant_type for call in sandbox.calls if call.grant_type]


def without_threads(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let *act* run where no thread can be started."""

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        act()
