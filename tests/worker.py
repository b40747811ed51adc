"""A program that calls finAPI when it is told to: one JSON object a line in, one out.

:class:`Program` runs it as a process of its own, on a bare machine, and talks to it.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from finapi_session import Environment, FileStore, FinapiSession, RedisStore, TokenEvent, TokenStore, open_store

from .stores import places

if TYPE_CHECKING:
    from finapi_session.testing import Sandbox

ECHO = "/api/v2/tests/echo"
PATIENCE = 30.0
#: Seconds: 30, and as many as the clock may have been set back meanwhile without ending it.
UNDER_WAY = 5.0


class Program:
    """The parent's end: ``program("word", ...)`` sends a word and returns what it comes to."""

    def __init__(self, sandbox: Sandbox, stderr: IO[bytes] | None = None) -> None:
        settings = [sandbox.base_url, sandbox.ca_bundle, sandbox.client_id, sandbox.client_secret]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.worker", *settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=Path(__file__).parents[1],
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        )

    def __call__(self, word: str, **arguments: object) -> Any:
        self.tell(word, **arguments)
        return self.answer()

    def tell(self, word: str, **arguments: object) -> None:
        """Send a word and do not wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([word, arguments]).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, seconds: float = PATIENCE) -> Any:
        """Wait for what the last word comes to."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        assert ready, f"process {self._process.pid} said nothing for {seconds:g} s"
        line = self._process.stdout.readline()
        assert line, f"process {self._process.pid} is gone"
        return json.loads(line)

    def send(self, number: signal.Signals) -> None:
        """Stop, continue or kill the process by a signal."""
        self._process.send_signal(number)

    def end(self) -> None:
        """Kill the process, also a stopped one."""
        self._process.kill()
        self._process.communicate()


def call(session: FinapiSession, resting: Callable[[], bool] = lambda: False) -> str:
    """Make a call that carries a marker of its own; tell what came of it, and if that was *resting*."""
    marker = uuid.uuid4().hex
    try:
        response = session.post(ECHO, data=marker)
    except Exception as error:
        return type(error).__name__
    if response.status_code == 401:
        return "401 replayed" if response.history else "401 at rest" if resting() else "401"
    if response.status_code == 200 and response.json()["text"] != marker:
        return "somebody else's answer"
    return str(response.status_code)


class Worker:
    """The program's words: one session on one store, and threads that call."""

    def __init__(self, base_url: str, ca_bundle: str, client_id: str, client_secret: str) -> None:
        self._environment = Environment(base_url)
        self._client = (client_id, client_secret)
        self._ca_bundle = ca_bundle
        self._session: FinapiSession | None = None
        self._threads: list[threading.Thread] = []
        self._outcomes: Counter[str] = Counter()
        self._tallying = threading.Lock()
        self._start, self._stop = threading.Event(), threading.Event()
        self._given: list[tuple[str, float, float]] = []
        self._taken: list[float] = []
        self._longest = 0.0
        self._pauses: list[tuple[float, float, int, float]] = []

    def open(self, store: list[Any], username: str | None = None, password: str | None = None) -> None:
        """Make a new session, which knows nothing, on a *store*: the name of an opener and its arguments."""
        self._close()
        name, *arguments = store
        options: Any = {"environment": self._environment, "store": _OPENERS[name](*arguments)}
        options |= {"username": username, "on_event": self._note} | ({"password": password} if password else {})
        self._session = FinapiSession(*self._client, **options)
        self._session.verify, self._session.trust_env = self._ca_bundle, False

    def ready(self, threads: int, calls: int = 1) -> None:
        """Start threads that wait for ``go`` and then make so many calls each, or until ``stop`` if 0."""
        self._outcomes.clear()
        self._start.clear()
        self._stop.clear()
        # If who starts this program is killed, standard input ends, and the program with it, whatever it was told.
        self._threads = [threading.Thread(target=self._work, args=(calls,), daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def go(self) -> dict[str, int]:
        """Let the threads go, all at once, and return how often each outcome came."""
        self._start.set()
        return self._joined()

    def run(self) -> None:
        """Let the threads go, and do not wait for them."""
        self._start.set()

    def stop(self) -> dict[str, int]:
        """Let the threads finish their calls, and return how often each outcome came."""
        self._stop.set()
        return self._joined()

    def tally(self) -> dict[str, int]:
        """Return how often each outcome came so far."""
        with self._tallying:
            return dict(self._outcomes)

    def longest(self) -> float:
        """Return how many seconds the longest call took."""
        return self._longest

    def pauses(self) -> list[tuple[float, float, int, float]]:
        """Return when renewal was given up for a while, as the API took neither of the last two tokens.

        That is: when (epoch seconds of the machine) the first of the two was asked for, when it was given up, and how
        many calls with either of them the API took in truth, and for how many seconds.
        """
        return self._pauses

    def renewals(self) -> list[tuple[float, float]]:
        """Return from when to when (epoch seconds of the machine) each refresh grant took."""
        return [(asked, noted) for kind, asked, noted in self._given if kind == "renewed"]

    def clock(self, ahead: float) -> None:
        """Set this process's wall clock *ahead* seconds off the machine's, as a stepped clock does."""
        time.time = lambda: _MACHINE_TIME() + ahead

    def rest(self) -> dict[str, int]:
        """Close all connections; return how many threads and open files of each kind are left."""
        self._close(forget=False)
        gc.collect()
        left = Counter(_kind(entry) for entry in os.listdir("/proc/self/fd"))
        return {**left, "thread": len(threading.enumerate())}

    def _work(self, calls: int) -> None:
        assert self._session is not None
        self._start.wait()
        made = 0
        while not self._stop.is_set() and (calls == 0 or made < calls):
            began = _MACHINE_TIME()
            outcome = call(self._session, self._resting)
            made += 1
            with self._tallying:
                self._outcomes[outcome] += 1
                self._taken += [began] * (outcome == "200")
                self._longest = max(self._longest, _MACHINE_TIME() - began)

    def _note(self, event: TokenEvent) -> None:
        now = _MACHINE_TIME()
        if event.kind in ("issued", "renewed", "adopted"):  # a sibling's token may be the one that died young
            self._given.append((event.kind, now - (event.milliseconds or 0.0) / 1000, now))
        elif event.kind == "rejected":
            _, asked, given = self._given[-2:][0]
            seconds = float(str(event.reason).split()[-2])
            with self._tallying:
                self._pauses.append((asked, now, sum(began > given for began in self._taken), seconds))

    def _resting(self) -> bool:
        # A call that was under way when the pause ended came too early all the same.
        return any(_MACHINE_TIME() - began < seconds + UNDER_WAY for _, began, _, seconds in self._pauses)

    def _joined(self) -> dict[str, int]:
        for thread in self._threads:
            thread.join()
        return dict(self._outcomes)

    def _close(self, forget: bool = True) -> None:
        if self._session is not None:
            self._session.close()
        if forget:
            places.close_all()
        else:
            _disconnect_store(self._session)


def _kind(descriptor: str) -> str:
    with suppress(FileNotFoundError):
        return os.readlink(f"/proc/self/fd/{descriptor}").partition(":")[0]
    return "listing"


def _disconnect_store(session: FinapiSession | None) -> None:
    """Close the connections of the session's store, which opens new ones when it is used again."""
    store: Any = session and session._cells.fallback.store
    if hasattr(store, "engine"):
        store.engine.dispose()
    if hasattr(store, "client"):
        store.client.close()


def _keyring_store(folder: str) -> TokenStore:
    from .stores import vault

    store: TokenStore = vault.open_store(Path(folder))
    return store


def _redis_store(socket: str, prefix: str, lease: float = 120.0) -> TokenStore:
    return RedisStore(places.redis_client(socket), prefix, lease=lease)


_OPENERS: dict[str, Callable[..., TokenStore]] = {
    "file": lambda folder, lock_timeout=20.0: FileStore(folder, lock_timeout=lock_timeout),
    "encrypted": lambda folder, key: places.encrypted_store(Path(folder), key.encode()),
    "keyring": _keyring_store,
    "redis": _redis_store,
    "sql": places.sql_store,
    "text": open_store,
}
_MACHINE_TIME = time.time


def main(*settings: str) -> None:
    """Obey the words on standard input until it ends."""
    worker = Worker(*settings)
    for line in sys.stdin:
        word, arguments = json.loads(line)
        print(json.dumps(getattr(worker, word)(**arguments)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
