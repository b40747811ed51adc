"""A pytest plugin: a local finAPI for each test, a session on it, and the variables that lead other code to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ..session import FinapiSession
    from .sandbox import Sandbox

_READ = ("CLIENT_ID", "CLIENT_SECRET", "USERNAME", "PASSWORD", "ENVIRONMENT", "STORE")


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
def finapi_client(finapi_sandbox: Sandbox) -> Iterator[FinapiSession]:
    """A session on ``finapi_sandbox`` for its client; for users take ``finapi_sandbox.session(username)``."""
    with finapi_sandbox.session() as session:
        yield session


@pytest.fixture
def finapi_session(finapi_client: FinapiSession) -> FinapiSession:
    """The same as ``finapi_client``, under the name that it had first. It hides the package's name in a test."""
    return finapi_client


@pytest.fixture
def finapi_environ(finapi_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables that lead ``FinapiSession.from_env()`` to ``finapi_sandbox`` as its client, set for this test.

    What the machine sets for finAPI is taken away. For a user, also set what ``finapi_sandbox.environ(username)`` has.
    """
    for name in _READ:
        monkeypatch.delenv(f"FINAPI_{name}", raising=False)
    variables = finapi_sandbox.environ()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables
