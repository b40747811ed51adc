"""Error trackers with their default settings find no secret in an OAuth call that a signal interrupts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from .loopback import Authority, Loopback


def _interrupted(kind: str, level: str, loopback: Loopback, points: int) -> dict[str, Any]:
    program = [sys.executable, "-m", "tests.tracked", kind, level, loopback.origin, loopback.ca, str(points)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no such signals")
@pytest.mark.parametrize("kind", ["password", "refresh", "revoke"])
def test_an_interrupted_call_shows_no_secret(kind: str, loopback: Loopback, authority: Authority) -> None:
    """At a hundred points of the call, Sentry, rich and loguru show no secret, whatever the handler raises."""
    report = _interrupted(kind, "endpoint", loopback, 100)
    assert report["leaks"] == []
    # Some come where Python can only report them: in the end of an object, say.
    assert len(report["came"]) > 85 and set(report["came"]) == {"LimitError", "KeyboardInterrupt", "TimeoutError"}
