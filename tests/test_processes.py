"""Processes that share a store ask finAPI once, and neither a killed nor a hung one holds up the others."""

from __future__ import annotations

import fcntl
import signal
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.fernet import Fernet

from .outages import Case, file_place, outage
from .stores import places
from .worker import Program

if TYPE_CHECKING:
    from finapi_session.testing import Sandbox

CALLS = "/oauth/token"
PROCESSES, THREADS = 8, 4
SERVED = {"200": THREADS}

Start = Callable[[], Program]


@pytest.fixture(scope="module")
def redis_socket() -> Iterator[str]:
    """Run Redis; return its socket's path."""
    with tempfile.TemporaryDirectory() as folder, places.redis_server(Path(folder)) as socket:
        yield socket


@pytest.fixture(scope="module")
def postgresql_url() -> Iterator[str]:
    """Run PostgreSQL; return its URL."""
    with tempfile.TemporaryDirectory() as folder, places.postgresql_server(Path(folder)) as url:
        yield url


@pytest.fixture(scope="module")
def fleet(running_sandbox: Sandbox) -> Iterator[list[Program]]:
    """Eight processes, started once: a new session in each knows as little as a new process."""
    programs = [Program(running_sandbox) for _ in range(PROCESSES)]
    yield programs
    for program in programs:
        program.end()


@pytest.fixture
def start(sandbox: Sandbox) -> Iterator[Start]:
    """Start processes, and end them with the test."""
    started: list[Program] = []

    def start() -> Program:
        started.append(Program(sandbox))
        return started[-1]

    yield start
    for program in started:
        program.end()


@pytest.fixture(params=["file", "encrypted", "keyring", "sqlite", "redis", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """An empty store, as the processes are told to open it."""
    name = f"t{uuid.uuid4().hex}"
    if request.param == "redis":
        return ["redis", request.getfixturevalue("redis_socket"), name]
    if request.param == "postgresql":
        return ["sql", request.getfixturevalue("postgresql_url"), name]
    if request.param == "sqlite":
        return ["sql", f"sqlite:///{tmp_path}/tokens.db", name]
    key = [Fernet.generate_key().decode()] if request.param == "encrypted" else []
    return [request.param, str(tmp_path), *key]


@pytest.fixture(params=["client", "alice"])
def who(request: pytest.FixtureRequest, sandbox: Sandbox) -> dict[str, str]:
    """The client, then a user: whose session the processes open."""
    if request.param == "client":
        return {}
    return {"username": "alice", "password": sandbox.users["alice"].password}


def everyone(programs: list[Program], word: str, **arguments: Any) -> list[Any]:
    """Send a word to all of them before any answer is waited for; return the answers."""
    for program in programs:
        program.tell(word, **arguments)
    return [program.answer() for program in programs]


def herd(programs: list[Program]) -> dict[str, int]:
    """Let four threads of each process call at the same time; return how often each outcome came."""
    everyone(programs, "ready", threads=THREADS)
    return dict(sum(map(Counter, everyone(programs, "go")), Counter[str]()))


def holds_a_lock(folder: Path) -> bool:
    """Tell whether anybody holds a lock of the FileStore in *folder*."""
    for path in folder.glob("locks/*"):
        with path.open() as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            continue
        return True
    return False


def stuck_in_a_token_call(program: Program, sandbox: Sandbox, folder: Path, seconds: float) -> None:
    """Let *program* make a token call that takes so long, and return when it is under way."""
    sandbox.latency = {CALLS: seconds}
    program("ready", threads=THREADS)
    program.tell("go")
    places.wait_until(lambda: holds_a_lock(folder))
    time.sleep(0.3)
    sandbox.latency = 0


def test_eight_processes_on_one_store(
    place: list[str], who: dict[str, str], fleet: list[Program], sandbox: Sandbox
) -> None:
    """32 threads of 8 processes: 1 token call on an empty store, 0 on a full one, 1 after a revocation."""
    sandbox.latency = {CALLS: 0.2}
    all_served = {"200": PROCESSES * THREADS}
    everyone(fleet, "open", store=place, **who)
    cold = (herd(fleet), sandbox.count(CALLS))
    everyone(fleet, "open", store=place, **who)
    warm = (herd(fleet), sandbox.count(CALLS))
    sandbox.revoke_tokens()
    revoked = (herd(fleet), sandbox.count(CALLS))
    assert (cold, warm, revoked) == ((all_served, 1), (all_served, 1), (all_served, 2))


def test_a_second_run_finds_the_token(start: Start, tmp_path: Path, sandbox: Sandbox) -> None:
    """A program that is started again makes no token call: the file has the token."""
    for _ in range(2):
        program = start()
        program("open", store=["file", str(tmp_path)], username="alice", password="her-password")
        assert herd([program]) == SERVED
        program.end()
    assert sandbox.count(CALLS) == 1


def test_a_killed_holder_of_the_lock(
    start: Start, fleet: list[Program], who: dict[str, str], tmp_path: Path, sandbox: Sandbox
) -> None:
    """The next process goes on within 1 s of the moment at which the holder was killed in its token call."""
    holder, other = start(), fleet[0]
    everyone([holder, other], "open", store=["file", str(tmp_path)], **who)
    stuck_in_a_token_call(holder, sandbox, tmp_path, seconds=20)
    other("ready", threads=THREADS)
    other.tell("go")
    time.sleep(0.5)
    assert sandbox.count(CALLS) == 0, "the other did not wait for the lock"
    holder.send(signal.SIGKILL)
    killed = time.monotonic()
    assert other.answer() == SERVED
    assert time.monotonic() - killed < 1
    assert sandbox.count(CALLS) == 1


def test_a_killed_holder_of_a_lease(
    start: Start, fleet: list[Program], who: dict[str, str], redis_socket: str, sandbox: Sandbox
) -> None:
    """On Redis the next process goes on as soon as the killed holder's lease (3 s here) ends, with one token call."""
    name = f"t{uuid.uuid4().hex}"
    holder, *others = start(), *fleet[:3]
    everyone([holder, *others], "open", store=["redis", redis_socket, name, 3.0], **who)
    client = places.redis_client(redis_socket)
    sandbox.latency = {CALLS: 20}
    holder("ready", threads=THREADS)
    holder.tell("go")
    places.wait_until(lambda: any(client.scan_iter(f"{name}lock:*")))
    time.sleep(0.3)
    sandbox.latency = 0
    holder.send(signal.SIGKILL)
    killed = time.monotonic()
    assert herd(others) == {"200": len(others) * THREADS}
    assert 1 < time.monotonic() - killed < 4
    assert sandbox.count(CALLS) == 1
    places.close_all()


@pytest.mark.parametrize("situation", ["cold", "revoked"])
def test_a_hung_holder_of_the_lock(
    situation: str, fleet: list[Program], who: dict[str, str], tmp_path: Path, sandbox: Sandbox
) -> None:
    """Others wait the store's bound (1 s here) and go on without the lock; so does the hung one, awake."""
    sandbox.rotate_refresh_tokens = True
    programs = hung, *others = fleet[:3]
    everyone(programs, "open", store=["file", str(tmp_path), 1.0], **who)
    if situation == "revoked":
        assert herd(programs) == {"200": 3 * THREADS}
        sandbox.revoke_tokens()
    before = sandbox.count(CALLS)
    stuck_in_a_token_call(hung, sandbox, tmp_path, seconds=1)
    hung.send(signal.SIGSTOP)
    began = time.monotonic()
    assert herd(others) == {"200": len(others) * THREADS}
    assert 1 <= time.monotonic() - began < 5
    hung.send(signal.SIGCONT)
    assert hung.answer() == SERVED
    assert herd(programs) == {"200": 3 * THREADS}
    # Without the lock each may ask for itself; a user's refresh token that the hung one spent costs one more.
    assert sandbox.count(CALLS) - before <= 1 + 2 * len(others)


def test_an_outage_of_the_store_within_the_soft_window_costs_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    """Processes on rotating refresh tokens renew once, when the store is back; ``tests.outages`` has all stores."""
    row = outage(sandbox, file_place(tmp_path), Case("file", "soft window", False, lifetime=6, down=1, after=2))
    assert (row.failed, row.lost, row.asked) == (0, False, {"refresh_token": 1}), row


def test_an_outage_of_the_store_across_expiry_costs_a_password_call_for_each_process(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """Where reuse of a refresh token ends a login, each process finds its way back by password, once; none is lost."""
    row = outage(sandbox, file_place(tmp_path), Case("file", "expiry", True, lifetime=4, down=3, after=1))
    assert not row.lost and row.ends == {"200": 4}, row
    assert 1 <= row.asked["password"] <= 5 and row.failed <= 8, row
