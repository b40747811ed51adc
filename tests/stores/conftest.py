"""The servers that the stores' tests share: one each for the whole run."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from . import places

_numbers = count()


@pytest.fixture(scope="session")
def redis_socket() -> Iterator[str]:
    """Run Redis; return its socket's path."""
    with tempfile.TemporaryDirectory() as folder, places.redis_server(Path(folder)) as socket:
        yield socket


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """Run PostgreSQL; return its URL."""
    with tempfile.TemporaryDirectory() as folder, places.postgresql_server(Path(folder)) as url:
        yield url


@pytest.fixture(autouse=True)
def connections_are_closed() -> Iterator[None]:
    """Close the connections that the test opened through ``places``."""
    yield
    places.close_all()


@pytest.fixture
def fresh_name() -> str:
    """Return a name that no other test of this run has."""
    return f"t{next(_numbers)}"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts disks")
    disk = tmp_path / "disk"
    disk.mkdir(0o700)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine mounts nothing")
    yield disk
    subprocess.run(["umount", disk], check=True)
