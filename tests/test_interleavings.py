"""Real threads under a systematic explorer: herds of two, as far as its bounds go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

#: For each situation, with two preemptions at most, see tests/two_threads.py; it takes hours to exhaust them.
SCHEDULES = 40


def explored(*arguments: str) -> dict[str, Any]:
    """Let the program explore in a process of its own, and return what came of it."""
    root = str(Path(__file__).parent.parent)
    # Without coverage, which would be traced as well.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    environment |= {"FRONTRUN_ACTIVE": "1", "PYTHONPATH": root}
    command = [sys.executable, "-m", "tests.two_threads", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=root, env=environment)
    assert ran.returncode == 0, ran.stderr
    result: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("sources", [1, 2], ids=["one source", "two sources on one store"])
@pytest.mark.parametrize("situation", ["cold", "expired", "rejected"])
def test_two_threads(situation: str, sources: int) -> None:
    """However two threads interleave, finAPI is asked once, and both go on with the same token."""
    result = explored(situation, str(sources), str(SCHEDULES))
    assert result["broken"] == [] and result["explored"] > 8


def test_the_explorer_finds_two_threads_without_locks() -> None:
    """The search can fail: with no lock to hold anybody up, it finds a schedule in which finAPI is asked twice."""
    assert explored("expired", "1", str(SCHEDULES), "unlocked")["broken"]
