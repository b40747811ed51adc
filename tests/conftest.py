"""Every test runs as on a bare machine, whatever this one sets."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import HealthCheck, settings

from .clocks import Clock
from .loopback import Authorities, Authority, Loopback

if TYPE_CHECKING:
    from finapi_session import FinapiSession
    from finapi_session.testing import Sandbox

# A busy machine makes no example wrong: nothing that hypothesis makes is judged by the clock.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

_SET_BY_MACHINES = (
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NETRC",
    *(f"{kind}_proxy" for kind in ("http", "https", "all", "no")),
    *(f"{kind}_PROXY" for kind in ("HTTP", "HTTPS", "ALL", "NO")),
    *(f"FINAPI_{name}" for name in ("CLIENT_ID", "CLIENT_SECRET", "USERNAME", "PASSWORD", "ENVIRONMENT", "STORE")),
)


def _save_only_ones_own_coverage() -> None:
    """Let ``os._exit`` of a forked child save what it ran itself.

    Coverage's own way saves the parent's data as well, and waits for ever for a lock of them that another thread of the
    parent held at the fork.
    """
    with suppress(ImportError):
        from posix import _exit

        from coverage import Coverage

        ours = Coverage.current()

        def leave(status: int) -> NoReturn:
            with suppress(Exception):  # a child may not write any more, or not there
                if ours is not None:
                    ours.save()
            _exit(status)

        os._exit = leave


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_save_only_ones_own_coverage)


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Take out of the environment what machines set, and give the test a home of its own."""
    home = tmp_path_factory.mktemp("home")
    for name in _SET_BY_MACHINES:
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    # keyring takes what is installed, and keyrings.alt is.
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    return home


@pytest.fixture(scope="module")
def running_sandbox() -> Iterator[Sandbox]:
    """One finAPI for the tests of a module."""
    from finapi_session.testing import Sandbox

    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def own_sandbox() -> Iterator[Sandbox]:
    """A finAPI of the test's own, for one that leaves a close under way; alice is known to it."""
    from finapi_session.testing import Sandbox

    with Sandbox() as sandbox:
        sandbox.add_user("alice", "her-password")
        yield sandbox
        for thread in threading.enumerate():
            if thread.name == "finapi-session-close":
                thread.join(20)


@pytest.fixture
def sandbox(running_sandbox: Sandbox) -> Iterator[Sandbox]:
    """A finAPI as it is after its start, with a user called alice."""
    running_sandbox.reset()
    running_sandbox.add_user("alice", "her-password")
    yield running_sandbox


@pytest.fixture(params=["client", "alice"])
def session(request: pytest.FixtureRequest, sandbox: Sandbox) -> Iterator[FinapiSession]:
    """A client's session, then a user's."""
    with sandbox.session(None if request.param == "client" else "alice") as session:
        yield session


@pytest.fixture
def clock(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Our clock, which the test may set."""
    return Clock(sandbox, monkeypatch)


@pytest.fixture(scope="session")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Authorities:
    """The CA of all loopback servers of this run."""
    return Authorities(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def loopback(authorities: Authorities) -> Iterator[Loopback]:
    """A server on a loopback port that stands for finAPI."""
    with authorities.serve() as server:
        yield server


@pytest.fixture
def authority(loopback: Loopback) -> Authority:
    """The OAuth calls of finAPI, and an API that wants their tokens, on that server."""
    return Authority(loopback)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """See to it that every test has a sentence that says what it proves, and that a file's tests share a worker."""
    for item in items:
        if config.pluginmanager.hasplugin("xdist"):
            # One foreign server for a run, not one for each worker; one sandbox for a file.
            group = "foreign" if "foreign" in item.path.parts else item.path.name
            item.add_marker(pytest.mark.xdist_group(group))
        function = getattr(item, "function", None)
        if function is not None and function.__name__.startswith("test_") and not function.__doc__:
            raise pytest.UsageError(f"{item.nodeid} has no sentence that says what it proves")
