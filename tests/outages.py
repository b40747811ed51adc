"""What an outage of the store costs: ``python -m tests.outages``.

For each store, with and without a password: processes call without a pause, on one login whose refresh tokens are
replaced at each use and whose reuse ends it. The store is down for three seconds, once within the soft window of the
token, once across its expiry. Prints a table; the exit code is 1 if a login was lost within the soft window.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from finapi_session.testing import Sandbox

from .soak import Service
from .stores import places
from .worker import ECHO, Program

CALLS = "/oauth/token"
PROCESSES, THREADS = 4, 2
#: Seconds of a token's life for each time of an outage. Half of it is the soft window, which opens with the outage.
LIFETIME = {"soft window": 12, "expiry": 4}
#: Seconds before the soft window opens at which the store goes down.
BEFORE = 0.5
HEAD = ("Down across", "Store", "Password", "Calls", "Failed", "Longest", "Refreshes", "Password calls", "Login")


class Place(NamedTuple):
    """A store, as a worker opens it, and what brings it down and up again with something done in between."""

    store: list[Any]
    restart: Callable[[Callable[[], object]], None]


class Case(NamedTuple):
    """An outage of so many seconds, across what, and for whom; calls go on for some seconds *after* it."""

    store: str
    when: str
    password: bool
    lifetime: int
    down: float = 3.0
    after: float = 4.0


class Row(NamedTuple):
    """What came of one outage: of the calls, of the token calls, and of one more call of each process in the end."""

    case: Case
    outcomes: Counter[str]
    longest: float
    asked: Counter[str | None]
    ends: Counter[str]

    @property
    def failed(self) -> int:
        """How many calls were not answered with 200."""
        return self.outcomes.total() - self.outcomes["200"]

    @property
    def lost(self) -> bool:
        """Whether the login was gone in the end, for any of the processes."""
        return "LoginRequiredError" in self.ends

    def cells(self) -> tuple[str, ...]:
        """Return what the table shows."""
        whose = (self.case.when, self.case.store, "yes" if self.case.password else "no")
        calls = (str(self.outcomes.total()), str(self.failed), f"{self.longest:.1f} s")
        asked = (str(self.asked["refresh_token"]), str(self.asked["password"]))
        return (*whose, *calls, *asked, "lost" if self.lost else "kept")


@contextmanager
def all_places(folder: Path) -> Iterator[dict[str, Place]]:
    """Yield each store, on a server that keeps its values when it is restarted."""
    redis = Service(lambda: places.redis_server(folder, keep=True))
    postgresql = Service(lambda: places.postgresql_server(folder))
    try:
        yield {
            "file": file_place(folder),
            "Redis": Place(["text", f"unix://{redis.address}"], redis.restart),
            "PostgreSQL": Place(["text", postgresql.address], postgresql.restart),
        }
    finally:
        redis.stop()
        postgresql.stop()


def file_place(folder: Path) -> Place:
    """Return a store in files, in the place of whose folder is something else while it is down."""
    tokens = folder / "tokens"

    def restart(meanwhile: Callable[[], object]) -> None:
        away = tokens.rename(folder / "away")
        tokens.touch()
        meanwhile()
        tokens.unlink()
        away.rename(tokens)

    return Place(["text", f"file:{tokens}"], restart)


def outage(sandbox: Sandbox, place: Place, case: Case) -> Row:
    """Have the store go down and up again under calls; return what came of it."""
    sandbox.reset()
    sandbox.add_user("alice", "her-password")
    sandbox.rotate_refresh_tokens = sandbox.detect_reuse = True
    sandbox.lifetime, sandbox.latency = case.lifetime, {ECHO: 0.02, CALLS: 0.05}
    with tempfile.TemporaryFile() as log:
        programs = [Program(sandbox, log) for _ in range(PROCESSES)]
        try:
            open_all(programs, place, password=True)
            began = time.monotonic()
            everyone(programs, "go")
            if not case.password:
                open_all(programs, place, password=False)
            return _under_calls(sandbox, programs, place, case, began + case.lifetime / 2 - BEFORE)
        finally:
            for program in programs:
                program.end()


def open_all(programs: list[Program], place: Place, password: bool) -> None:
    """Let each process open a session, and stand ready for a call."""
    secret = "her-password" if password else None
    everyone(programs, "open", store=place.store, username="alice", password=secret)
    everyone(programs, "ready", threads=1)


def everyone(programs: list[Program], word: str, **arguments: Any) -> list[Any]:
    """Send a word to all of them before any answer is waited for; return the answers."""
    for program in programs:
        program.tell(word, **arguments)
    return [program.answer() for program in programs]


def _under_calls(sandbox: Sandbox, programs: list[Program], place: Place, case: Case, begins: float) -> Row:
    before = len(sandbox.calls)
    everyone(programs, "ready", threads=THREADS, calls=0)
    everyone(programs, "run")
    time.sleep(max(0.0, begins - time.monotonic()))
    place.restart(lambda: time.sleep(max(0.0, begins + case.down - time.monotonic())))
    time.sleep(case.after)
    outcomes: Counter[str] = sum(map(Counter, everyone(programs, "stop")), Counter())
    longest = max(everyone(programs, "longest"))
    asked = Counter(call.grant_type for call in sandbox.calls[before:] if call.path == CALLS)
    everyone(programs, "ready", threads=1)
    ends: Counter[str] = sum(map(Counter, everyone(programs, "go")), Counter())
    return Row(case, outcomes, longest, asked, ends)


def table(rows: list[Row]) -> str:
    """Return *rows* as a table that the documentation can hold."""
    cells = [HEAD, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    line = "  ".join("=" * width for width in widths)
    texts = ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in cells]
    return "\n".join([line, texts[0], line, *texts[1:], line])


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="a store's name")
    only = parser.parse_args().only
    rows = []
    with tempfile.TemporaryDirectory() as name, Sandbox() as sandbox, all_places(Path(name)) as stores:
        for when, store, password in product(LIFETIME, stores, (True, False)):
            if only in (None, store):
                rows.append(outage(sandbox, stores[store], Case(store, when, password, LIFETIME[when])))
                print(*rows[-1].cells(), dict(rows[-1].outcomes), sep=", ", file=sys.stderr)
    print(table(rows))
    return int(any(row.lost for row in rows if row.case.when == "soft window"))


if __name__ == "__main__":
    sys.exit(main())
