"""The programs of tests/examples do what the docs say of them; most are run as real servers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import requests

from finapi_session.testing import Sandbox

from .stores import places

EXAMPLES = Path(__file__).parent / "examples"
#: Runs a program that has the tasks, and returns the words that it printed.
Celery = Callable[[str], list[str]]
USERS = ("alice", "anna.schmidt")
PATIENCE = 60.0


@pytest.fixture
def environ(sandbox: Sandbox, bare_machine: Path) -> dict[str, str]:
    """What is set where an example runs: the sandbox for finAPI, and a vault with its users' passwords."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {
        "HOME": str(bare_machine),
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES), *filter(None, sys.path)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "FINAPI_ENVIRONMENT": sandbox.base_url,
        "FINAPI_CLIENT_ID": sandbox.client_id,
        "FINAPI_CLIENT_SECRET": sandbox.client_secret,
        "FINAPI_PASSWORDS": json.dumps({name: sandbox.users[name].password for name in USERS}),
        "REQUESTS_CA_BUNDLE": sandbox.ca_bundle,
    }


@pytest.fixture(scope="module")
def redis_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The socket of a Redis server."""
    with places.redis_server(tmp_path_factory.mktemp("redis")) as path:
        yield path


@pytest.fixture
def redis_url(redis_path: str) -> str:
    """The URL of an empty Redis."""
    from redis import Redis

    with Redis(unix_socket_path=redis_path) as client:
        client.flushall()
    return f"unix://{redis_path}"


@contextmanager
def running(command: list[str], environ: Mapping[str, str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the end of the block; its output is shown if the test fails."""
    process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, start_new_session=True, **options)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def gunicorn(app: str, environ: Mapping[str, str], *options: str) -> Iterator[str]:
    """Serve *app* with three worker processes; yield its address."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        bound = (
            "--bind",
            f"fd://{listener.fileno()}",
            "--workers",
            "3",
            "--worker-class",
            "gthread",
            "--threads",
            "4",
        )
        command = [sys.executable, "-m", "gunicorn", *bound, "--log-level", "warning", *options, app]
        with running(command, environ, pass_fds=[listener.fileno()]) as process:
            # The kernel takes connections in from now on, so the first request waits for the workers.
            assert process.poll() is None
            yield address


def ask(address: str, user: str) -> requests.Response:
    """Ask a site for a user's accounts, on a connection of its own."""
    return requests.get(f"{address}/accounts", headers={"X-User": user, "Connection": "close"}, timeout=PATIENCE)


def ask_often(address: str, times: int = 24) -> list[requests.Response]:
    """Ask as a crowd: eight at a time, the users in turn."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda number: ask(address, USERS[number % 2]), range(times)))


def holders(responses: list[requests.Response]) -> list[str]:
    """Return whose accounts came, in the order of the asking."""
    return [response.json()["accounts"][0]["accountHolderName"] for response in responses]


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["after the fork", "before the fork"])
def test_flask(sandbox: Sandbox, environ: dict[str, str], redis_url: str, options: tuple[str, ...]) -> None:
    """Three gunicorn workers make one token call a user, one more after a revocation, and mix up nobody."""
    with gunicorn("flask_app:app", environ | {"REDIS_URL": redis_url}, *options) as address:
        assert holders(ask_often(address)) == ["Alice", "Anna Schmidt"] * 12
        assert sandbox.count("/oauth/token", grant_type="password") == sandbox.count("/oauth/token") == 2
        sandbox.revoke_tokens("alice")
        assert holders(ask_often(address)) == ["Alice", "Anna Schmidt"] * 12
        assert sandbox.count("/oauth/token", grant_type="refresh_token") == 1 and sandbox.count("/oauth/token") == 3
        sandbox.lock_user("alice")
        refused = ask(address, "alice")
        assert (refused.status_code, list(refused.json())) == (502, ["error", "request_id"])


def test_greenlets_on_gunicorn(sandbox: Sandbox, environ: dict[str, str], redis_url: str) -> None:
    """Three workers of greenlets make one token call a user, too, and one more after a revocation."""
    with gunicorn("flask_app:app", environ | {"REDIS_URL": redis_url}, "--worker-class", "gevent") as address:
        for calls in (2, 3):
            assert holders(ask_often(address)) == ["Alice", "Anna Schmidt"] * 12
            assert sandbox.count("/oauth/token") == calls
            sandbox.revoke_tokens("alice")


def test_django(sandbox: Sandbox, environ: dict[str, str], tmp_path: Path) -> None:
    """A site's workers share the token in its own database, and find it there after a restart."""
    environ |= {"DATABASE_FILE": str(tmp_path / "site.db"), "DJANGO_SECRET_KEY": "not a secret"}
    for _ in range(2):
        with gunicorn("django_app:application", environ) as address:
            assert holders(ask_often(address)) == ["Alice", "Anna Schmidt"] * 12
            assert sandbox.count("/oauth/token") == 2
    with closing(sqlite3.connect(tmp_path / "site.db")) as database:
        assert database.execute("SELECT count(*) FROM finapi_session_tokens").fetchone() == (2,)


def test_fastapi(sandbox: Sandbox, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of one event loop wait for finAPI side by side, and need one token."""
    import httpx

    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    program = run_path(str(EXAMPLES / "fastapi_app.py"))

    async def serve(app: Any, state: Any, scope: Any, *rest: Any) -> None:
        await app({**scope, "state": dict(state)}, *rest)  # as a server does it

    async def crowd() -> list[Any]:
        app = program["app"]
        async with app.router.lifespan_context(app) as state:
            with_state = partial(serve, app, state)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(with_state), base_url="http://site") as site:
                asking = (site.get("/accounts", headers={"X-User": "alice"}, timeout=PATIENCE) for _ in range(10))
                return await asyncio.gather(*asking)

    sandbox.latency = {"/accounts": 0.5}
    with program["client"]:
        started = time.monotonic()
        answers = asyncio.run(crowd())
        assert time.monotonic() - started < 10 * 0.5
    assert holders(answers) == ["Alice"] * 10 and sandbox.count("/oauth/token") == 1


@pytest.fixture
def celery(environ: dict[str, str], redis_url: str, redis_path: str, tmp_path: Path) -> Iterator[Celery]:
    """Two worker processes, whose tasks have three seconds until they are told to end."""
    broker = f"redis+socket://{redis_path}"
    environ |= {"REDIS_URL": redis_url, "CELERY_BROKER": broker, "CELERY_BACKEND": broker}
    options = ("--concurrency", "2", "--loglevel", "ERROR", "--soft-time-limit", "3")
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    worker = [sys.executable, "-m", "celery", "-A", "celery_app", "worker", *options, *quiet]

    def call(program: str) -> list[str]:
        command = [sys.executable, "-c", f"from celery_app import app, balance\n{program}"]
        shown = subprocess.run(
            command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=2 * PATIENCE, check=False
        )
        assert shown.returncode == 0, shown.stderr
        return shown.stdout.split()

    with running(worker, environ, cwd=tmp_path):
        yield call


def test_celery(sandbox: Sandbox, celery: Celery) -> None:
    """Tasks on two worker processes give each user's sum, with one token call for each user."""
    sums = celery(
        "from celery import group\n"
        f"tasks = group(balance.s(user) for user in {USERS} * 10)()\n"
        f"print(*tasks.get(timeout={PATIENCE}))\n"
    )
    assert len(sums) == 20 and sums == sums[:2] * 10 and sums[0] != sums[1]
    assert sandbox.count("/oauth/token") == 2


def test_celery_ends_a_task_that_waits_for_a_token(sandbox: Sandbox, celery: Celery) -> None:
    """A soft time limit comes through a token call, and the next task of these workers gets its token at once."""
    sandbox.latency = {"/oauth/token": 10.0}
    ended = f"result = balance.delay('alice').get(timeout={PATIENCE}, propagate=False); print(type(result).__name__)"
    assert celery(ended) == ["SoftTimeLimitExceeded"]
    sandbox.latency = 0
    assert len(celery(f"print(balance.delay('alice').get(timeout={PATIENCE}))")) == 1


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the generated client never closes its connections
def test_openapi_client(sandbox: Sandbox) -> None:
    """A client made by swagger-codegen from finAPI's description works with our tokens, one after another."""
    import finapi

    find_banks = run_path(str(EXAMPLES / "openapi_client.py"))["find_banks"]
    configuration = finapi.Configuration()
    configuration.host, configuration.ssl_ca_cert = sandbox.base_url, sandbox.ca_bundle
    sandbox.lifetime = 1
    api = finapi.ApiClient(configuration)
    with sandbox.session() as session, closing(api.pool):
        before = find_banks(session, api, "Sparkasse")
        sandbox.advance(2)
        time.sleep(1.1)
        assert find_banks(session, api, "Sparkasse") == before
        assert before["paging"]["totalCount"] == len(before["banks"]) > 0
    assert sandbox.count("/api/v2/banks", status=200) == sandbox.count("/oauth/token") == 2


def test_notebook(sandbox: Sandbox, environ: dict[str, str], tmp_path: Path) -> None:
    """The notebook prints the accounts in a kernel of its own, and a second kernel needs no new token."""
    environ |= {"FINAPI_USERNAME": "alice", "FINAPI_PASSWORD": "her-password", "IPYTHONDIR": str(tmp_path)}
    code = (
        "import sys, nbformat, nbclient\n"
        "notebook = nbformat.read(sys.argv[1], as_version=4)\n"
        "nbclient.NotebookClient(notebook, timeout=60, kernel_name='python3').execute()\n"
        "print(*(output.text for cell in notebook.cells for output in cell.outputs))\n"
    )
    for _ in range(2):
        shown = subprocess.run(
            [sys.executable, "-c", code, str(EXAMPLES / "notebook.ipynb")],
            env=environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
        )
        assert shown.returncode == 0, shown.stderr
        assert re.findall(r"^ ?(\w+) +-?\d+\.\d\d EUR$", shown.stdout, re.M) == [
            "Girokonto",
            "Tagesgeld",
            "Kreditkarte",
        ]
    assert sandbox.count("/oauth/token") == 1 and sandbox.count("/oauth/revoke") == 0


def test_every_example_is_run() -> None:
    """No program lies in tests/examples that this file does not run."""
    here = Path(__file__).read_text()
    programs = [path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb") and path.stem != "__init__"]
    assert len(programs) == 6 and [path.name for path in programs if path.stem not in here] == []
