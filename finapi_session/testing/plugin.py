"""A pytest plugin: a local finAPI for each test, and a session on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ..session import FinapiSession
    from .sandbox import Sandbox


@pytest.fixture(scope="session")
def _finapi_sandbox_server() -> Iterator[Sandbox]:
    from . import Sandbox

    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def finapi_sandbox(_finapi_sandbox_server: Sandbox) -> Sandbox:
    """A local finAPI, started once and put back to its first state for each test."""
    _finapi_sandbox_server.reset()
    return _finapi_sandbox_server


@pytest.fixture
def finapi_session(finapi_sandbox: Sandbox) -> Iterator[FinapiSession]:
    """A session on ``finapi_sandbox`` for its client; for users take ``finapi_sandbox.session(username)``."""
    with finapi_sandbox.session() as session:
        yield session
