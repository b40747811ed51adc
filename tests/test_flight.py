"""One flight at a time: among threads, in a forked child, in itself, and whatever interrupts it."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from finapi_session import FinapiSession, TokenEvent
from finapi_session.errors import TokenEndpointError
from finapi_session.flight import Flight, Ticket
from finapi_session.testing import Sandbox

from .herd import CALLS, ECHO, herd, warm


def flown(flight: Flight, seconds: float = 5.0) -> bool:
    """Fly once, and tell whether the place was obtained."""
    with Ticket(flight) as ticket:
        return ticket.board(seconds)


@contextmanager
def somebody_in(flight: Flight) -> Iterator[threading.Event]:
    """Let another thread fly until the end, or until the event that this yields is set."""
    boarded, land = threading.Event(), threading.Event()

    def fly() -> None:
        with Ticket(flight) as ticket:
            assert ticket.board(5)
            boarded.set()
            land.wait(10)

    thread = threading.Thread(target=fly)
    thread.start()
    assert boarded.wait(5)
    try:
        yield land
    finally:
        land.set()
        thread.join(5)
        assert not thread.is_alive()


# --- threads ------------------------------------------------------------------------------------------------------


def test_one_thread_at_a_time() -> None:
    """Of 16 threads that board 50 times each, no two are ever aboard together, and each one comes aboard."""
    flight = Flight()
    aboard: list[int] = []
    most: list[int] = []

    def fly() -> bool:
        for _ in range(50):
            with Ticket(flight) as ticket:
                assert ticket.board(30)
                aboard.append(1)
                most.append(len(aboard))
                aboard.pop()
        return True

    results, _ = herd(16, fly)
    assert results == [True] * 16 and max(most) == 1 and len(most) == 800
    assert not flight.busy


def test_whoever_waits_too_long_is_told() -> None:
    """A place that is taken is waited for as long as told: not at all, or a moment; then the others have it."""
    flight = Flight()
    with somebody_in(flight) as land:
        assert flight.busy
        started = time.monotonic()
        assert not flown(flight, 0) and time.monotonic() - started < 0.1
        with pytest.raises(TokenEndpointError, match="another thread has been renewing .*s. Try again later."):
            flown(flight, 0.2)
        assert 0.15 < time.monotonic() - started < 2
        land.set()
        assert flown(flight)
    assert not flight.busy


def test_a_ticket_that_never_boarded_takes_nobodys_place() -> None:
    """Its end leaves the place to whoever has it."""
    flight = Flight()
    with somebody_in(flight):
        with Ticket(flight) as ticket:
            assert not ticket.board(0)
        assert flight.busy
        with Ticket(flight):
            pass
        assert flight.busy


def test_an_error_of_the_body_gives_the_place_back() -> None:
    """Whatever is raised aboard comes out as it is."""
    flight = Flight()
    for error in (ValueError, KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(error), Ticket(flight) as ticket:
            assert ticket.board(0)
            raise error("mine")
        assert not flight.busy and flown(flight, 0)


# --- one result for all who waited --------------------------------------------------------------------------------


def test_those_who_waited_share_a_failure() -> None:
    """Whoever boarded after waiting gets a copy of the error, without the frames in which it was raised."""
    flight = Flight()
    with Ticket(flight) as waits, Ticket(flight) as flies:
        assert flies.board(0)
        try:
            raise ConnectionError("the vault is down")
        except ConnectionError as error:
            flies.fail(error)
            original = error
        shared = waits.failure()
    assert type(shared) is ConnectionError and shared.args == ("the vault is down",)
    assert shared is not original and shared.__traceback__ is None and original.__traceback__ is not None


def test_whoever_comes_later_asks_anew() -> None:
    """A failure counts for those who waited while it happened, not for the next caller."""
    flight = Flight()
    with Ticket(flight) as flies:
        assert flies.board(0)
        flies.fail(ValueError("no"))
    time.sleep(0.01)
    with Ticket(flight) as later:
        assert later.failure() is None


def test_a_failure_is_shared_among_the_same_credentials() -> None:
    """What was refused to one password is not the answer to another one."""
    flight = Flight()
    with Ticket(flight) as same, Ticket(flight) as other, Ticket(flight) as flies:
        assert flies.board(0)
        flies.fail(ValueError("no"), "print")
        assert isinstance(same.failure("print"), ValueError)
        assert other.failure("other print") is None and other.failure() is None


class Uncopyable(Exception):
    """An error that cannot be copied."""

    def __reduce__(self) -> Any:
        raise TypeError("not to be copied")


def test_an_error_that_cannot_be_copied_is_shared_as_it_is() -> None:
    """A vault's error may hold a socket or a lock."""
    flight = Flight()
    with Ticket(flight) as waits, Ticket(flight) as flies:
        assert flies.board(0)
        flies.fail(Uncopyable("no"))
        assert isinstance(waits.failure(), Uncopyable)


# --- re-entrance --------------------------------------------------------------------------------------------------


def test_a_flight_that_asks_again_is_told() -> None:
    """Whoever is called aboard and boards the same flight would wait for himself: that is an error at once."""
    flight, other = Flight(), Flight()
    with Ticket(flight) as ticket:
        assert ticket.board(0)
        with pytest.raises(RuntimeError, match="must not ask for a token"):
            flown(flight)
        assert flown(other)
        assert flight.busy, "the second ticket gave the first one's place back"
    assert flown(flight) and flown(other)


def test_another_thread_that_a_flight_starts_waits() -> None:
    """It is not the flight itself that asks: it waits for the place, and obtains it."""
    flight = Flight()
    obtained: list[bool] = []
    with Ticket(flight) as ticket:
        assert ticket.board(0)
        thread = threading.Thread(target=lambda: obtained.append(flown(flight)))
        thread.start()
        time.sleep(0.1)
        assert obtained == []
    thread.join(5)
    assert obtained == [True]


def test_a_listener_that_asks_for_a_token_hangs_nobody(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """`on_event` is told while the token is being made, so it cannot have one: that is said at once."""
    listening = [True]

    def listener(_: TokenEvent) -> object:
        return listening and session.fetch_token()

    session = sandbox.session(on_event=listener)
    results, seconds = herd(1, lambda: session.get(ECHO))
    assert seconds[0] < 5 and "on_event raised RuntimeError" in caplog.text
    assert results[0].status_code == 200 and sandbox.count(CALLS) == 1
    listening.clear()


def test_a_vault_that_asks_for_a_token_is_told(sandbox: Sandbox) -> None:
    """A secret's callable that makes an API call with the same session gets an error at once, and may be mended."""
    broken = [True]

    def vault() -> str:
        if broken:
            session.get(ECHO)
        return sandbox.client_secret

    session: FinapiSession = sandbox.session(client_secret=vault)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="must not ask for a token"):
        session.get(ECHO)
    assert time.monotonic() - started < 5
    broken.clear()
    warm(session)


def test_a_vaults_error_that_is_shared_is_told_by_its_name(sandbox: Sandbox) -> None:
    """Threads that waited for a vault that failed share its error; the event shows no word of it."""
    events: list[TokenEvent] = []

    def vault() -> str:
        time.sleep(0.2)
        raise LookupError("no permission to read s3cret")

    alice = sandbox.session("alice", vault, on_event=events.append)

    def call() -> str:
        with pytest.raises(LookupError, match="s3cret"):
            alice.get(ECHO)
        return "failed"

    assert herd(4, call)[0] == 4 * ["failed"]
    assert {(event.kind, event.reason) for event in events} == {("decided", "nothing was asked: LookupError")}


# --- copies, pickles, forks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda flight: pickle.loads(pickle.dumps(flight))])
def test_a_copy_starts_with_nobody_in_flight(copied: Callable[[Flight], Flight]) -> None:
    """Neither who flies nor what failed goes along."""
    flight = Flight()
    with Ticket(flight) as waits, Ticket(flight) as flies:
        assert flies.board(0)
        flies.fail(ValueError("no"))
        other = copied(flight)
        assert not other.busy and flown(other, 0)
        assert isinstance(waits.failure(), ValueError) and other.failure is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_waits_for_nobody() -> None:
    """A thread that flies in the parent is not there in the child, which boards at once."""
    flight = Flight()
    with somebody_in(flight):
        child = os.fork()
        if not child:
            os._exit(0 if not flight.busy and flown(flight, 0) and not flight.busy else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert flight.busy


# --- interruptions ------------------------------------------------------------------------------------------------


class Struck(BaseException):
    """What a signal's handler raises."""


@contextmanager
def struck_at(opcode: int, code: Any) -> Iterator[list[int]]:
    """Raise at the so many-th opcode of *code*, as a signal's handler would; yields how many there were."""
    count = [0]

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code is not code:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            count[0] += 1
            if count[0] == opcode:
                raise Struck
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python 3.13 tells a new trace function of no opcodes")
@pytest.mark.parametrize("code", [Ticket.board.__code__, Ticket.__init__.__code__, Ticket.__enter__.__code__])
def test_an_interruption_leaves_nothing_taken(code: Any) -> None:
    """Struck at any opcode of the way in, a flight is free again, and so is whoever was struck."""
    strikes = 0
    for opcode in range(1, 200):
        flight = Flight()
        try:
            with struck_at(opcode, code), Ticket(flight) as ticket:
                ticket.board(0)
        except Struck:
            strikes += 1
        assert not flight.busy and flown(flight, 0), f"taken after opcode {opcode}"
    assert strikes >= 2


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an interval timer")
def test_signals_while_waiting_leave_nothing_taken() -> None:
    """A time limit that strikes while a thread waits for its turn comes out at once; the place stays whose it is."""

    def strike(*_: object) -> None:
        raise Struck

    flight = Flight()
    before = signal.signal(signal.SIGALRM, strike)
    try:
        with somebody_in(flight):
            for milliseconds in range(1, 40, 3):
                signal.setitimer(signal.ITIMER_REAL, milliseconds / 1000)
                started = time.monotonic()
                with pytest.raises(Struck), Ticket(flight) as ticket:
                    ticket.board(10)
                assert time.monotonic() - started < 5
                assert flight.busy
        assert flown(flight, 5) and not flight.busy
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python 3.13 tells a new trace function of no opcodes")
def test_an_interruption_on_the_way_out_leaves_nothing_taken() -> None:
    """Struck at any opcode of its end, a flight is free for the next one."""
    taken = []
    for opcode in range(1, 100):
        flight = Flight()
        with suppress(Struck), struck_at(opcode, Ticket.__exit__.__code__):
            flown(flight, 0)
        if flight.busy or not flown(flight, 0):
            taken.append(opcode)
    assert taken == []


STRUCK_AT_ANY_MOMENT = """
import signal
from contextlib import suppress
from finapi_session.flight import Flight, Ticket

class Struck(BaseException):
    pass

def strike(*_):
    raise Struck

def fly(flight):
    with Ticket(flight) as ticket:
        ticket.board(0)

signal.signal(signal.SIGALRM, strike)
taken = 0
for number in range(300):
    flight = Flight()
    with suppress(Struck):
        signal.setitimer(signal.ITIMER_REAL, 0.00005 + number % 100 * 0.000002)
        for _ in range(10_000):  # the signal strikes long before
            fly(flight)
    signal.setitimer(signal.ITIMER_REAL, 0)
    taken += flight.busy
print(taken)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an interval timer")
def test_a_signal_at_any_moment_leaves_a_flight_free() -> None:
    """A real time limit that strikes while a thread flies many times leaves nothing taken."""
    # Without coverage, whose own lock such a signal may leave taken.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-c", STRUCK_AT_ANY_MOMENT]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environ, cwd=Path(__file__).parents[1]
    )
    assert (ran.stdout, ran.stderr) == ("0\n", "")
