"""The command for the heavy figures runs, with small numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_little_torture() -> None:
    """Five writers killed and a fifth of a second of reading on each store harm no value."""
    command = [
        sys.executable,
        "-m",
        "tests.stores.torture",
        "--kills",
        "5",
        "--seconds",
        "0.2",
        "--keys",
        "100",
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum("5 writers killed, 0 values torn or lost" in line for line in lines) == 6
    assert sum("0 torn, lost or stale" in line for line in lines) == 6
    assert sum("the last of 16 waiters done" in line for line in lines) == 7
    assert sum("warm get" in line for line in lines) == 7
    assert sum("with 100, ratio" in line for line in lines) == 3
