"""The pytest plugin gives each test a finAPI in its first state, and costs nothing unused."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]


def run(pytester: pytest.Pytester, source: str) -> pytest.RunResult:
    """Run a test file of somebody who uses the plugin."""
    pytester.makepyfile(source)
    installed = entry_points(group="pytest11", name="finapi_session")
    plugin = () if installed else ("-p", "finapi_session.testing.plugin")
    return pytester.runpytest_inprocess(*plugin, "-p", "no:cacheprovider", "--durations=0", "--durations-min=0.05")


def test_each_test_finds_the_first_state(pytester: pytest.Pytester) -> None:
    """What one test does to the sandbox the next does not see, though the server is the same."""
    result = run(
        pytester,
        """
        seen = []

        def test_one(finapi_sandbox, finapi_session):
            finapi_sandbox.answer_next(503, path="/banks", times=9)
            finapi_sandbox.lifetime = 1
            assert finapi_session.get("/api/v2/banks").status_code == 503
            seen.append((finapi_sandbox.base_url, finapi_session.fetch_token().access_token))

        def test_two(finapi_session, finapi_sandbox):
            assert finapi_sandbox.calls == [] and finapi_sandbox.lifetime == 3600
            assert finapi_session.get("/api/v2/banks").status_code == 200
            assert seen[0][0] == finapi_sandbox.base_url
            assert seen[0][1] != finapi_session.fetch_token().access_token
        """,
    )
    result.assert_outcomes(passed=2)


def test_a_missing_extra_is_named(pytester: pytest.Pytester) -> None:
    """Who asks for a fixture where the sandbox cannot run is told what to install."""
    pytester.makepyfile("def test_one(finapi_session): pass")
    code = "import sys, pytest; sys.modules['trustme'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    plugin = "finapi_session.testing.plugin"
    command = [sys.executable, "-c", code, "-p", plugin, "-p", "no:cacheprovider"]
    environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    shown = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert "Sandbox needs an extra: pip install 'finapi-session[sandbox]'" in shown.stdout


def test_the_session_is_closed_and_gives_its_token_back(pytester: pytest.Pytester) -> None:
    """After a test the client's token is revoked."""
    result = run(
        pytester,
        """
        import pytest

        @pytest.fixture
        def after(finapi_sandbox):
            yield
            assert finapi_sandbox.count("/oauth/revoke", revoked="client", status=200) == 1

        def test_one(after, finapi_session):
            assert finapi_session.get("/api/v2/banks").ok
        """,
    )
    result.assert_outcomes(passed=1)


def test_the_two_names_of_the_session_are_one(pytester: pytest.Pytester) -> None:
    """``finapi_client`` is the session; under it the package's own name stays free to import."""
    result = run(
        pytester,
        """
        import finapi_session as package

        def test_one(finapi_client, finapi_session):
            assert finapi_client is finapi_session and isinstance(finapi_client, package.FinapiSession)
        """,
    )
    result.assert_outcomes(passed=1)


def test_code_that_reads_the_environment_finds_the_sandbox(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``finapi_environ`` from_env() is the sandbox's client, whatever user the machine names, and only there."""
    monkeypatch.setenv("FINAPI_USERNAME", "somebody")
    monkeypatch.setenv("FINAPI_PASSWORD", "else")
    result = run(
        pytester,
        """
        import os
        from finapi_session import FinapiSession

        def test_one(finapi_sandbox, finapi_environ, monkeypatch):
            assert "FINAPI_USERNAME" not in os.environ and finapi_environ == finapi_sandbox.environ()
            with FinapiSession.from_env() as session:
                assert session.get("/api/v2/clientConfiguration").ok
            for name, value in finapi_sandbox.environ("anna.schmidt").items():
                monkeypatch.setenv(name, value)
            with FinapiSession.from_env() as session:
                assert session.get("/api/v2/accounts").ok

        def test_two():
            assert os.environ["FINAPI_USERNAME"] == "somebody" and "FINAPI_ENVIRONMENT" not in os.environ
        """,
    )
    result.assert_outcomes(passed=2)


def test_a_test_takes_under_50_ms_after_the_first(pytester: pytest.Pytester) -> None:
    """Twenty tests, each with a token and an API call of its own, take less than 50 ms each.

    Counted in processor time of client and server together, so that a busy machine does not fail it.
    """
    result = run(
        pytester,
        """
        import time
        import pytest

        ends = []

        @pytest.mark.parametrize("number", range(21))
        def test_many(finapi_session, number):
            assert finapi_session.get("/api/v2/banks").ok
            ends.append(time.process_time())

        def test_speed():
            gaps = sorted(later - sooner for sooner, later in zip(ends, ends[1:]))
            assert gaps[len(gaps) // 4] < 0.05, gaps
        """,
    )
    result.assert_outcomes(passed=22)


def test_the_plugin_imports_nothing_heavy() -> None:
    """A test run that does not use the fixtures pays for neither Flask nor requests."""
    code = "import sys, finapi_session.testing.plugin; print(*sys.modules)"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    shown = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    loaded = set(shown.stdout.split())
    assert "finapi_session.testing.plugin" in loaded
    assert not loaded & {"flask", "werkzeug", "trustme", "requests"}
