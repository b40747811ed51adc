"""Processes and threads on shared stores, with everything going wrong: ``python -m tests.soak --minutes 2``.

Prints what was done and what came of it; the exit code is 1 if a bound is broken.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from finapi_session.testing import Sandbox

from .stores import places
from .worker import ECHO, Program

CALLS = "/oauth/token"
THREADS = 4
PATIENCE = 90.0
# Longer than any token call here, and short enough that a killed holder does not idle the others for long.
LEASE = 10.0
#: So many answers to a token call are broken in a row, and so many seconds it then takes at most, with all of its
#: tries. So long no others are broken: a client that meets more than three has to give up.
BROKEN_IN_A_ROW = 2
TOKEN_CALL = 5.0
#: How likely each fault is beside the others.
WEIGHTS = {
    "revocation": 12,
    "revocation of the refresh token": 4,
    "revocation of what was just given": 4,
    "expiry": 4,
    "latency": 8,
    "API connection reset": 8,
    "API 5xx": 8,
    "token call broken": 8,
    "token answers changed": 4,
    "clock step": 3,
    "worker hung": 2,
    "worker killed": 3,
    "Redis restarted": 2,
    "PostgreSQL restarted": 2,
}
#: How a failed call looks that a fault explains; one fault may fail one call. An API call is the caller's
#: to repeat, as with requests: it may have had its effect.
EXPLAINED = {
    "API connection reset": {"ConnectionError", "ChunkedEncodingError"},
    "API 5xx": {"500", "502", "503"},
}
#: The one failure that no fault explains by itself: the token of the replay was killed as well.
REPLAY_KILLED = "401 replayed"
REPLAYS_KILLED_AT_MOST = 0.01
#: Two new tokens in a row were killed before anybody used them. Nobody can tell that from an API that rejects all
#: tokens, so the process renews nothing for 0.5 s, and twice as long each time; a token that lives ends that.
PAUSED = "401 at rest"
PAUSED_AT_MOST = 0.005
#: Seconds from asking for the first of the two to the pause: a moment, a pause, and what the calls take.
LONGEST_BETWEEN = 20.0


class Service:
    """A server that can be restarted."""

    def __init__(self, run: Callable[[], AbstractContextManager[str]]) -> None:
        self._run = run
        self._running = run()
        self.address = self._running.__enter__()

    def restart(self, meanwhile: Callable[[], object]) -> None:
        """Stop the server, do something *meanwhile*, and start it again."""
        self.stop()
        meanwhile()
        self._running = self._run()
        assert self._running.__enter__() == self.address

    def stop(self) -> None:
        """Stop the server."""
        self._running.__exit__(None, None, None)


@dataclass
class Place:
    """A worker's place: its identity on its store. A killed worker's successor takes it over."""

    store: list[Any]
    username: str | None
    ahead: float | None = None
    program: Program | None = None
    resting: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Happening:
    """From when to when (epoch seconds) something befell the tokens of a user or the client, and in which process."""

    username: str | None
    began: float
    ended: float
    program: Program | None = None

    def by_others(self, others: list[Happening]) -> int:
        """Count what happened meanwhile to the same identity, and not by the same process."""
        return sum(
            other.username == self.username
            and other.program is not self.program
            and other.began < self.ended
            and other.ended > self.began
            for other in others
        )


class Soak:
    """Workers, the faults they meet, and what came of it."""

    def __init__(self, sandbox: Sandbox, folder: Path, chance: random.Random, log: IO[bytes]) -> None:
        self.sandbox, self.chance, self.log = sandbox, chance, log
        self.redis = Service(lambda: places.redis_server(folder))
        self.postgresql = Service(lambda: places.postgresql_server(folder))
        stores: dict[str, list[Any]] = {
            "alice": ["file", str(folder / "tokens")],
            "bert": ["redis", self.redis.address, "soak:", LEASE],
            "carla": ["sql", self.postgresql.address],
        }
        self.places = []
        for username, store in stores.items():
            sandbox.add_user(username, f"password of {username}")
            self.places += [Place(store, username), Place(store, username, ahead=0), Place(store, None)]
        self.outcomes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        #: Token calls that each kind of fault makes necessary, and those that nobody could be blamed for.
        self.needed: Counter[str] = Counter()
        self.excused: Counter[str] = Counter()
        self.leaks: Counter[str] = Counter()
        #: Grants whose next answers are to be broken, and when (monotonic seconds) others may be after them.
        self.breaking: set[str | None] = set()
        self.spared_until: dict[str | None, float] = {}
        self.kills: list[Happening] = []
        self.pauses: list[Happening] = []
        #: How many calls were made, before each of them, with the two tokens that were said to be of no use.
        self.served: list[int] = []

    def run(self, seconds: float) -> None:
        """Start the workers, do damage for so long, and stop them."""
        self.slow_down()
        for place in self.places:
            self.start(place)
        # A token for each identity of each store: three users and three times the client.
        self.needed["start"] = 6
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(self.chance.uniform(0.05, 0.4))
            self.spare_token_calls()
            [kind] = self.chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
            self.faults[kind] += 1
            _FAULTS[kind](self)
        self.heal()
        for place in self.places:
            self.finish(place)

    def start(self, place: Place) -> None:
        """Start a worker, let it warm up, note what it has open at rest, and let it work."""
        place.program = program = Program(self.sandbox, self.log)
        password = place.username and f"password of {place.username}"
        program("open", store=place.store, username=place.username, password=password)
        program("ready", threads=THREADS, calls=2)
        program.tell("go")
        self.outcomes.update(program.answer(PATIENCE))
        place.resting = program("rest")
        program("ready", threads=THREADS, calls=0)
        program("run")

    def heal(self) -> None:
        """Let nothing that was planned happen any more."""
        self.sandbox._traffic._plans.clear()
        self.sandbox.latency = 0

    def finish(self, place: Place) -> None:
        """Let a worker finish, and compare what it has open at rest with what it had."""
        assert place.program is not None
        place.program.tell("stop")
        self.outcomes.update(place.program.answer(PATIENCE))
        self.note_pauses(place)
        left = Counter(place.program("rest"))
        left.subtract(place.resting)
        self.leaks.update({kind: count for kind, count in left.items() if count})
        place.program.end()

    def note_pauses(self, place: Place) -> None:
        """Note when a worker paused, and its refresh grants, each of which may have killed a sibling's token."""
        assert place.program is not None
        whose, by = place.username, place.program
        for began, ended, served, _ in by("pauses"):
            self.pauses.append(Happening(whose, began, ended, by))
            self.served.append(served)
        self.kills += [Happening(whose, began, ended, by) for began, ended in by("renewals")]

    def killed(self) -> list[int]:
        """Return how many tokens were killed while each worker that then paused had its last two."""
        return [pause.by_others(self.kills) for pause in self.pauses]

    def end(self) -> None:
        """End whatever still runs."""
        for place in self.places:
            if place.program is not None:
                place.program.end()
        self.redis.stop()
        self.postgresql.stop()

    # The faults.

    def revoke(self, kind: str, do: Callable[..., None], whose: str = "", **how: bool) -> None:
        """Take the tokens of one identity; the client's are used on three stores."""
        whose = whose or self.chance.choice(["alice", "bert", "carla", "client"])
        username = None if whose == "client" else whose
        began = time.time()
        do(username, kind="user" if username else "client", **how)
        self.kills.append(Happening(username, began, time.time()))
        self.needed[kind] += 1 if username else 3
        # A worker whose clock is off cannot tell which of the others' tokens live, so it asks for itself.
        self.excused["clock off"] += any(place.ahead for place in self.places if place.username == username)

    def revoke_what_was_just_given(self) -> None:
        """Take a token, and the one that is given in its place before it has been used much."""
        kind, whose = "revocation of what was just given", self.chance.choice(["alice", "client"])
        before = self.token_calls()
        self.revoke(kind, self.sandbox.revoke_tokens, whose)
        until = time.monotonic() + 2
        while self.token_calls() == before and time.monotonic() < until:
            time.sleep(0.005)
        self.revoke(kind, self.sandbox.revoke_tokens, whose)

    def go_without(self, whose: str) -> None:
        """Let tokens be needed for a while; this happens while the store of *whose* is down."""
        for identity in (whose, "client"):
            self.revoke("store down", self.sandbox.revoke_tokens, identity)
        self.excused["store down"] += 3
        time.sleep(0.5)

    def slow_down(self) -> None:
        self.sandbox.latency = {CALLS: self.chance.uniform(0, 0.5), ECHO: self.chance.uniform(0.01, 0.1)}

    def spare_token_calls(self) -> None:
        """Note which token calls may be meeting broken answers just now."""
        breaking = {plan.grant_type for plan in self.sandbox._traffic._plans if plan.path == CALLS}
        self.spared_until.update(dict.fromkeys(breaking | self.breaking, time.monotonic() + TOKEN_CALL))
        self.breaking = breaking

    def break_a_token_call(self) -> None:
        """Break the first answers to a grant's next call, and make it come; each is a fault.

        A password's are broken only where it did not count.
        """
        kind = "token call broken"
        grant_type = self.chance.choice(["client_credentials", "refresh_token", "password"])
        whose = "client" if grant_type == "client_credentials" else self.chance.choice(["alice", "bert", "carla"])
        answers: list[Any] = [429, 503]
        if grant_type != "password":
            answers += [500, 502, "drop", "lose", "cut", "html"]
        broken = self.chance.choices(answers, k=self.chance.randint(1, BROKEN_IN_A_ROW))
        self.faults[kind] -= 1
        if time.monotonic() < self.spared_until.get(grant_type, 0):
            return
        for answer in broken:
            self.sandbox.answer_next(answer, path=CALLS, grant_type=grant_type)
        self.breaking.add(grant_type)
        self.faults[kind] += len(broken)
        self.needed[f"{kind}, once more"] += len(broken)
        self.revoke(kind, self.sandbox.revoke_tokens, whose, refresh=grant_type == "password")

    def break_an_api_call(self) -> None:
        self.sandbox.answer_next(self.chance.choice(["drop", "lose", "cut"]), path=ECHO)

    def fail_an_api_call(self) -> None:
        self.sandbox.answer_next(self.chance.choice([500, 502, 503]), path=ECHO)

    def change_token_answers(self) -> None:
        self.sandbox.rotate_refresh_tokens = self.chance.choice([True, False, "omit"])
        self.sandbox.sticky = self.chance.choice([True, False])
        self.sandbox.kill_on_refresh = self.chance.choice([True, True, False])

    def step_a_clock(self) -> None:
        place = self.chance.choice([place for place in self.places if place.ahead is not None])
        assert place.program is not None
        place.ahead = self.chance.choice([-86400, -7200, -5, 0, 0, 5, 7200, 86400])
        place.program("clock", ahead=place.ahead)
        self.excused["clock step"] += 2

    def hang_a_worker(self) -> None:
        program = self.chance.choice(self.places).program
        assert program is not None
        program.send(signal.SIGSTOP)
        time.sleep(0.7)
        self.excused["hung"] += 1
        program.send(signal.SIGCONT)

    def kill_a_worker(self) -> None:
        place = self.chance.choice(self.places)
        assert place.program is not None
        self.outcomes.update(place.program("tally"))
        self.note_pauses(place)
        place.program.end()
        self.excused["killed"] += 1
        self.start(place)

    # What came of it.

    def broken_bounds(self) -> list[str]:
        """Return what is worse than it may be."""
        broken = self.unexplained_failures()
        if self.unfounded():
            broken.append("a process paused although its tokens lived")
        if self.token_calls() > self.tolerable():
            broken.append(f"{self.token_calls()} token calls, {self.tolerable()} are tolerable")
        if self.leaks:
            broken.append(f"leaked: {dict(self.leaks)}")
        unexpected = [line for line in self.lines() if not line.startswith("token ")]
        return broken + [f"a worker said: {line}" for line in unexpected[:10]]

    def unexplained_failures(self) -> list[str]:
        """Return which calls failed without a fault, or more often than faults explain."""
        calls, unexplained = self.outcomes.total(), self.failed()
        broken = []
        for fault, looks in EXPLAINED.items():
            count = sum(unexplained.pop(look, 0) for look in looks)
            if count > self.faults[fault]:
                broken.append(f"{count} calls failed as by {fault}, of which there were {self.faults[fault]}")
        if unexplained.pop(REPLAY_KILLED, 0) > calls * REPLAYS_KILLED_AT_MOST:
            broken.append("too many replays were rejected")
        if unexplained.pop(PAUSED, 0) > calls * PAUSED_AT_MOST:
            broken.append("too many calls met a pause")
        if unexplained:
            broken.append(f"calls failed without an excuse: {dict(unexplained)}")
        return broken

    def unfounded(self) -> bool:
        """Tell whether a worker paused without two tokens that died within a moment, or since the last pause."""
        lasted = [pause.ended - pause.began for pause in self.pauses]
        return min(self.killed(), default=2) < 2 or max(lasted, default=0.0) > LONGEST_BETWEEN

    def failed(self) -> Counter[str]:
        """Return how often each outcome came that is no success."""
        return Counter({name: count for name, count in self.outcomes.items() if name != "200"})

    def token_calls(self) -> int:
        return self.sandbox.count(CALLS)

    def tolerable(self) -> int:
        """Return the token calls that the faults explain; a refused refresh token costs one more."""
        refused = self.sandbox.count(CALLS, grant_type="refresh_token", status=400)
        return self.needed.total() + self.excused.total() + refused

    def lines(self) -> list[str]:
        """Return what the workers wrote to standard error."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace").splitlines()

    def report(self) -> None:
        """Print the figures."""
        failed = self.failed()
        calls, ideal, workers = self.outcomes.total(), self.needed.total(), len(self.places)
        warnings = sum(line.startswith("token store failed") for line in self.lines())
        print(f"calls made            {calls}, by {workers} processes of {THREADS} threads")
        print(f"faults injected       {self.faults.total()}")
        for kind, count in sorted(self.faults.items()):
            print(f"    {count:5}  {kind}")
        print(f"calls failed          {failed.total()}")
        for name, count in sorted(failed.items()):
            print(f"    {count:5}  {name}: {_explain(name)}")
        print(f"token calls           {self.token_calls()}, ideal {ideal}, tolerable {self.tolerable()}")
        print(f"pauses                {len(self.pauses)}, tokens killed: {self.killed()}, used: {self.served}")
        print(f"seconds between       {[round(pause.ended - pause.began, 1) for pause in self.pauses]}")
        print(f"store warnings        {warnings}")
        print(f"leaked at rest        {dict(self.leaks) or 0} (threads, sockets, files)")


_FAULTS: dict[str, Callable[[Soak], None]] = {
    "revocation": lambda soak: soak.revoke("revocation", soak.sandbox.revoke_tokens),
    "revocation of the refresh token": lambda soak: soak.revoke(
        "revocation of the refresh token", soak.sandbox.revoke_tokens, refresh=True
    ),
    "revocation of what was just given": Soak.revoke_what_was_just_given,
    "expiry": lambda soak: soak.revoke("expiry", soak.sandbox.expire_tokens),
    "latency": Soak.slow_down,
    "API connection reset": Soak.break_an_api_call,
    "API 5xx": Soak.fail_an_api_call,
    "token call broken": Soak.break_a_token_call,
    "token answers changed": Soak.change_token_answers,
    "clock step": Soak.step_a_clock,
    "worker hung": Soak.hang_a_worker,
    "worker killed": Soak.kill_a_worker,
    "Redis restarted": lambda soak: soak.redis.restart(lambda: soak.go_without("bert")),
    "PostgreSQL restarted": lambda soak: soak.postgresql.restart(lambda: soak.go_without("carla")),
}


def _explain(outcome: str) -> str:
    if outcome == REPLAY_KILLED:
        return "the new token was killed, too, before the replay came"
    if outcome == PAUSED:
        return "two new tokens in a row were killed unused, so renewal pauses"
    for fault, looks in EXPLAINED.items():
        if outcome in looks:
            return f"{fault}; an API call is not repeated by itself, as in requests"
    return "no excuse"


def main() -> int:
    """Soak, report, and tell by the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=None, help="repeats the order of the faults")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"soaking for {options.minutes:g} minutes, --seed {seed}", flush=True)
    with Sandbox() as sandbox, tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        soak = Soak(sandbox, Path(folder), random.Random(seed), log)
        try:
            soak.run(options.minutes * 60)
            soak.report()
            broken = soak.broken_bounds()
        finally:
            soak.end()
    for bound in broken:
        print(f"BROKEN: {bound}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
