"""Forked children work at once, whatever their parent's threads were doing, and so does the parent."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from requests.adapters import HTTPAdapter
from urllib3 import PoolManager

from finapi_session import FileStore, FinapiSession, MemoryStore, TokenEndpointError, TokenStore
from finapi_session.flight import Flight, Ticket

from .stores import places

if TYPE_CHECKING:
    from finapi_session.testing import Sandbox

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX forks")

ECHO = "/api/v2/tests/echo"
CALLS = "/oauth/token"
CHILDREN, THREADS = 4, 4
#: Seconds of a token call: long enough to fork in the middle of it.
LATENCY = 0.5
PATIENCE = 20
_STDERR = sys.__stderr__ or sys.stderr


class Worked(NamedTuple):
    """What came of a child's or a thread's calls, and how many seconds the first ones took."""

    wrong: list[str]
    first: float


Work = Callable[[], Worked]


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """Let a deadlock fail, not hang."""

    def expired(*_: object) -> None:
        raise TimeoutError("this test hangs")

    usual = signal.signal(signal.SIGALRM, expired)
    signal.alarm(2 * PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, usual)


@pytest.fixture(params=["memory", "file", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TokenStore]:
    """A store that forked children have a copy of, then those that they share."""
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "file":
        yield FileStore(tmp_path / "tokens")
    else:
        yield places.sql_store(f"sqlite:///{tmp_path}/tokens.db")
        places.close_all()


@pytest.fixture
def sessions(store: TokenStore, sandbox: Sandbox) -> Iterator[list[FinapiSession]]:
    """A client's session and one of its users', on the same connections, both used already."""
    # Children with a memory of their own each refresh for themselves, which would kill the others' tokens.
    sandbox.kill_on_refresh = not isinstance(store, MemoryStore)
    with sandbox.session(store=store) as client, client.user("alice", "her-password") as alice:
        assert in_threads(lambda: echoes([client, alice], 1)) == []
        yield [client, alice]


def echoes(sessions: list[FinapiSession], times: int) -> Worked:
    """Make calls, each with a marker of its own, and read whose answers came back."""
    wrong, first, began = [], 0.0, time.monotonic()
    for _ in range(times):
        for session in sessions:
            answer = echo(session)
            if answer is not None:
                wrong.append(answer)
        first = first or time.monotonic() - began
    return Worked(wrong, first)


def echo(session: FinapiSession) -> str | None:
    """Make a call; tell what is wrong with its answer, if anything."""
    marker, username = f"{os.getpid()} {uuid.uuid4()}", session._own.identity.username
    response = session.post(ECHO, data=marker)
    if response.status_code != 200:
        return f"status {response.status_code}"
    answer = response.json()
    mine = (answer["text"], answer["username"]) == (marker, username)
    return None if mine else f"somebody else's answer: {answer}"


def in_threads(work: Work) -> list[str]:
    """Do the work in four threads at once; return what went wrong."""
    wrong: list[str] = []

    def run() -> None:
        try:
            wrong.extend(work().wrong)
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread hangs"
    return wrong


@contextmanager
def busy_parent(sessions: list[FinapiSession]) -> Iterator[None]:
    """Let four threads of this process call all the time; check in the end that all got their answers."""
    stop, wrong = threading.Event(), []

    def until_stopped() -> Worked:
        done = echoes(sessions, 1)
        while not stop.is_set() and not done.wrong:
            done = echoes(sessions, 1)
        return done

    thread = threading.Thread(target=lambda: wrong.append(in_threads(until_stopped)))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert wrong == [[]]


def in_children(work: Work, folder: Path) -> list[Worked]:
    """Fork four children that do the work; return what each came to."""
    files = [folder / f"{uuid.uuid4().hex}.json" for _ in range(CHILDREN)]
    children = [_fork(work, file) for file in files]
    until = time.monotonic() + PATIENCE
    statuses = [_wait(child, until) for child in children]
    assert statuses == [0] * CHILDREN, "a child failed (1, see its traceback), or hung (9)"
    return [Worked(*json.loads(file.read_text())) for file in files]


def _fork(work: Work, file: Path) -> int:
    with warnings.catch_warnings():
        # Newer Pythons warn of a fork beside threads, which is what these tests are about.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.register(signal.SIGALRM, file=_STDERR, chain=True)  # a child that hangs says where, and dies
    signal.alarm(PATIENCE - 5)
    try:
        file.write_text(json.dumps(work()))
        os._exit(0)
    except BaseException:  # noqa: B036 - a child must never come back into the test run
        traceback.print_exc(file=_STDERR)
        os._exit(1)


def _wait(child: int, until: float) -> int:
    """Return how the child ended; kill it if it has not by then."""
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("whose", [0, 1], ids=["client", "alice"])
def test_forked_while_a_renewal_holds_the_locks(
    whose: int, sessions: list[FinapiSession], store: TokenStore, tmp_path: Path, sandbox: Sandbox
) -> None:
    """Children forked in the middle of a token call and of API calls work within 1 s of finAPI's answers."""
    source = sessions[whose]._own
    sandbox.revoke_tokens(kind=("client", "user")[whose])
    sandbox.latency = {CALLS: LATENCY}
    before = sandbox.count(CALLS)
    with busy_parent(sessions):
        places.wait_until(lambda: source._turn.busy)
        time.sleep(LATENCY / 5)
        assert source._turn.busy and sandbox.count(CALLS) == before
        worked = in_children(lambda: echoes(sessions, 20), tmp_path)
    assert [wrong for wrong, _ in worked] == [[]] * CHILDREN
    # A shared store gives them the parent's new token; without one each makes a token call of its own.
    shared = not isinstance(store, MemoryStore)
    assert max(first for _, first in worked) < (1 if shared else 2) * LATENCY + 1
    assert sandbox.count(CALLS) - before == (1 if shared else 1 + CHILDREN)


def test_forked_after_use(sessions: list[FinapiSession], store: TokenStore, tmp_path: Path, sandbox: Sandbox) -> None:
    """Children of a process that has used its session (gunicorn's preload) get its token, not its sockets."""
    calls, connections = sandbox.count(CALLS), sandbox.connections
    worked = in_children(lambda: echoes(sessions, 10), tmp_path)
    assert [wrong for wrong, _ in worked] == [[]] * CHILDREN
    assert echoes(sessions, 10).wrong == []
    assert (sandbox.count(CALLS), sandbox.connections) == (calls, connections + CHILDREN)
    sandbox.revoke_tokens()
    worked = in_children(lambda: echoes(sessions, 10), tmp_path)
    assert [wrong for wrong, _ in worked] == [[]] * CHILDREN
    # The client's and the user's: once for all, or once in each memory.
    assert sandbox.count(CALLS) - calls == (2 * CHILDREN if isinstance(store, MemoryStore) else 2)


def test_a_child_that_closes_the_session(sessions: list[FinapiSession], tmp_path: Path, sandbox: Sandbox) -> None:
    """A child that closes its copy ends neither the parent's connections nor an answer being read."""
    long = "x" * 5_000_000
    connections = sandbox.connections

    def close_after_use() -> Worked:
        worked = echoes(sessions, 2)
        for session in reversed(sessions):
            session.close()
        return worked

    response = sessions[0].post(ECHO, data=long, stream=True)
    begun = response.raw.read(1000)
    worked = in_children(close_after_use, tmp_path)
    assert [wrong for wrong, _ in worked] == [[]] * CHILDREN
    assert json.loads(begun + response.raw.read())["text"] == long
    assert echoes(sessions, 5).wrong == []
    assert sandbox.connections == connections + CHILDREN


def test_children_of_a_thread(sessions: list[FinapiSession], tmp_path: Path, sandbox: Sandbox) -> None:
    """A child forked by a thread, while others call, works too, and so do its own children."""
    outcomes: list[list[Worked]] = []

    def fork_here() -> None:
        echoes(sessions, 1)
        outcomes.append(in_children(lambda: grandchildren(), tmp_path))

    def grandchildren() -> Worked:
        wrong = echoes(sessions, 2).wrong
        inner = in_children(lambda: echoes(sessions, 2), tmp_path)
        return Worked([*wrong, *(text for worked in inner for text in worked.wrong)], 0.0)

    with busy_parent(sessions):
        thread = threading.Thread(target=fork_here)
        thread.start()
        thread.join(PATIENCE)
    assert [[worked.wrong for worked in outcome] for outcome in outcomes] == [[[]] * CHILDREN]


def test_a_child_forked_in_an_early_renewal_renews_early_itself(sandbox: Sandbox, tmp_path: Path) -> None:
    """The lock that lets only one thread renew early is free in a child."""
    flight = Flight()

    def taken() -> Worked:
        with Ticket(flight) as ticket:
            return Worked([] if ticket.board(0) else ["taken"], 0.0)

    with Ticket(flight) as ours, ThreadPoolExecutor(1) as pool:
        assert ours.board(0)
        assert pool.submit(taken).result().wrong == ["taken"]
        worked = in_children(taken, tmp_path)
    assert [wrong for wrong, _ in worked] == [[]] * CHILDREN


def test_a_child_of_a_session_with_other_cookies(
    sessions: list[FinapiSession], tmp_path: Path, sandbox: Sandbox
) -> None:
    """Where the caller has put something else in the jar's place, the other sessions still work in a child."""
    sessions[0].cookies = {}  # type: ignore[assignment]
    worked = in_children(lambda: echoes(sessions[1:], 1), tmp_path)
    assert [wrong for wrong, _ in worked] == [[]] * CHILDREN


def test_a_child_forked_while_others_handle_cookies(
    sessions: list[FinapiSession], tmp_path: Path, sandbox: Sandbox
) -> None:
    """The locks of the cookie jars, which every answer takes for a moment, are free in a child."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ExitStack() as locks:
            for session in sessions:
                locks.enter_context(vars(session.cookies)["_cookies_lock"])
            held.set()
            done.wait(PATIENCE)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    worked = in_children(lambda: echoes(sessions, 1), tmp_path)
    done.set()
    thread.join()
    assert [wrong for wrong, _ in worked] == [[]] * CHILDREN


def test_a_child_keeps_what_its_adapters_were_told(sandbox: Sandbox) -> None:
    """A pinned certificate is pinned in forked workers, too: the client's secret goes to no other server."""
    client = sandbox.session(retries=0)
    pinned = HTTPAdapter()
    client.mount("https://", pinned)
    pinned.init_poolmanager(10, 10, assert_fingerprint="00" * 32)
    client.mount("https://elsewhere.example", Odd())
    with pytest.raises(TokenEndpointError, match="SSLError"):
        client.fetch_token()
    child = os.fork()
    if child == 0:
        try:
            client.fetch_token()
        except TokenEndpointError as error:
            os._exit(3 if "SSLError" in str(error) else 4)
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert sandbox.count() == 0


class Odd(HTTPAdapter):
    """An adapter that has no pool of urllib3's."""

    def init_poolmanager(self, *_: object, **__: object) -> None:
        """Have another one."""
        self.poolmanager = threading.Event()  # type: ignore[assignment]


def test_an_adapter_that_cannot_be_renewed_stops_no_other(
    sessions: list[FinapiSession], tmp_path: Path, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """In a child the other adapters, and other sessions, have connections of their own; a warning names the one."""
    sessions[0].mount("https://elsewhere.example", Stubborn())
    connections = sandbox.connections

    def warned() -> Worked:
        texts = {record.getMessage() for record in caplog.records}
        worked = echoes(sessions, 5)
        told = texts == {"Stubborn keeps its parent's connections in a forked child (TypeError)"}
        return worked if told else Worked([*worked.wrong, *texts, "not told"], 0.0)

    worked = in_children(warned, tmp_path)
    assert [wrong for wrong, _ in worked] == [[]] * CHILDREN
    assert sandbox.connections == connections + CHILDREN and echoes(sessions, 5).wrong == []


class Stubborn(HTTPAdapter):
    """An adapter whose pools cannot be copied."""

    def init_poolmanager(self, *_: object, **__: object) -> None:
        """Have such pools."""
        self.poolmanager = Uncopied()


class Uncopied(PoolManager):
    """Pools that refuse to be copied."""

    def __copy__(self) -> Uncopied:
        raise TypeError("not to be copied")
