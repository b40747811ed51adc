"""Long stories by seed: workers of one user call while stores fail, answers are lost, processes die and clocks jump.

What is not modelled: bytes (TLS, HTTP, JSON beyond the values in the store), real threads, memory, other users.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from finapi_session.envelope import unverified
from finapi_session.knowledge import NOTHING, Knowledge

from .models import Finapi, Shared
from .processes import KEY, Process
from .world import Seeded, World

#: Seconds after which whatever rested has rested enough: the longest rest of a password.
_LONG = 3700.0


@dataclass
class Story:
    """One story: everything in it follows from *seed*. ``kinds`` names what may befall the workers."""

    seed: int
    steps: int = 12
    password: bool | None = None
    rotates: bool | None = None
    kinds: tuple[str, ...] | None = None
    world: World = field(init=False)
    lossy: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.world = World(Seeded(self.seed))
        pick = self.random.choice
        rotates = pick((True, False)) if self.rotates is None else self.rotates
        has_password = pick((True, False)) if self.password is None else self.password
        self.finapi = Finapi(self.world, sticky=pick((True, False)), kills=pick((True, False)), rotates=rotates)
        self.shared = Shared()
        seed = None
        if not has_password:
            seed = self.finapi.judge("right", None)
        per_request, count = pick((True, False)), pick((2, 3))
        secret = "right" if has_password else None
        self.workers = [
            Process(self.world, self.finapi, self.shared, f"P{n}", secret, seed, per_request) for n in range(count)
        ]

    def play(self) -> None:
        """Play it, let all faults end, and see to it that nothing is lost."""
        state = random.getstate()
        random.seed(self.seed)
        try:
            for _ in range(self.steps):
                self._step()
            self._heal()
        except BaseException as error:
            story = "\n".join(self.world.story)
            again = f"Story({self.seed}, {self.steps}, {self.password}, {self.rotates}, {self.kinds}).play()"
            raise AssertionError(f"{type(error).__name__}: {error}\nplay it again: {again}\n{story}") from error
        finally:
            random.setstate(state)

    def stored(self) -> Knowledge:
        """Return what the store has of the user."""
        with suppress(ValueError):
            return unverified(self.shared.values.get(KEY, ""))
        return NOTHING

    def _step(self) -> None:
        worker = self.random.choice(self.workers)
        kinds = self.kinds or tuple(_EVENTS)
        event = self.random.choice(kinds)
        self.world.tell(f"-- {event} ({worker.name})")
        _EVENTS[event](self, worker)
        for each in self.random.sample(self.workers, self.random.randint(1, len(self.workers))):
            self.world.start(each, each.call, each.name, after=self.random.choice((0.0, 0.0, 0.5)))
        self.world.run()
        self._check()

    def _check(self) -> None:
        outcomes = [outcome for worker in self.workers for outcome in worker.outcomes]
        assert all(outcome.sends <= 2 for outcome in outcomes), "more than two sends a call"
        for refused in set(self.finapi.refused):
            assert self.finapi.refused.count(refused) <= 1, f"a refused password was sent again: {refused}"

    def _heal(self) -> None:
        for worker in self.workers:
            worker.link.down, worker.link.hangs = set(), 0.0
            worker.endpoint.loses = worker.endpoint.fails = 0
            worker.endpoint.latency, worker.suspended_until = 0.0, 0.0
        self.world.step = 0.0
        self.world.now += _LONG
        self.world.tell("-- all faults end")
        if self.workers[0].password is None and (self.lossy or not self.finapi.honours()):
            return
        calls = 3 * len(self.workers)
        for number in range(calls):
            worker = self.workers[number % len(self.workers)]
            self.world.start(worker, worker.call, worker.name)
            self.world.run()
            self.world.now += 31.0  # longer than the longest pause
        last = [worker.outcomes[-1].status for worker in self.workers]
        assert set(last) == {200}, f"a login is lost that finAPI still honours: {last}"


def _nothing(story: Story, worker: Process) -> None: ...


def _time_passes(story: Story, worker: Process) -> None:
    story.world.now += story.random.choice((1.0, 30.0, 3550.0, 3601.0))


def _tokens_die(story: Story, worker: Process) -> None:
    story.finapi.kill()


def _reads_fail(story: Story, worker: Process) -> None:
    worker.link.down = {"get"}


def _writes_fail(story: Story, worker: Process) -> None:
    worker.link.down = {"set"}


def _locks_fail(story: Story, worker: Process) -> None:
    worker.link.down = {"lock"}


def _store_fails(story: Story, worker: Process) -> None:
    worker.link.down = {"get", "set", "lock"}


def _store_hangs(story: Story, worker: Process) -> None:
    worker.link.down, worker.link.hangs = {"get", "set", "lock"}, 2.0


def _writes_seem_lost(story: Story, worker: Process) -> None:
    worker.link.down = {"lost"}


def _store_is_well(story: Story, worker: Process) -> None:
    worker.link.down, worker.link.hangs = set(), 0.0


def _store_falls_back(story: Story, worker: Process) -> None:
    """A replica that lags takes over: the values of a moment ago."""
    if story.random.random() < 0.5:
        story.shared.values = dict(getattr(story, "_snapshot", {}))
    else:
        story._snapshot = dict(story.shared.values)  # type: ignore[attr-defined]


def _value_is_garbage(story: Story, worker: Process) -> None:
    # Whoever writes garbage over the only copy may lose a login: that is not the library's doing.
    story.lossy = True
    story.shared.values[KEY] = story.random.choice(("", "{", "2.x.y", "[" * 1000, "x" * 70000))


def _finapi_fails(story: Story, worker: Process) -> None:
    worker.endpoint.fails = story.random.randint(1, 3)
    worker.endpoint.retry_after = story.random.choice((None, 5.0, 400.0))


def _answer_is_lost(story: Story, worker: Process) -> None:
    # With a refresh token that is replaced, a lost answer is a lost login, whatever the client does.
    story.lossy |= story.finapi.rotates
    worker.endpoint.loses = 1


def _finapi_is_slow(story: Story, worker: Process) -> None:
    worker.endpoint.latency = story.random.choice((0.0, 1.0, 25.0))


def _outsider_renews(story: Story, worker: Process) -> None:
    """Another client of the same user renews with the same refresh token."""
    if story.finapi.logins and not story.finapi.rotates:
        story.finapi.judge(None, story.finapi.logins[-1].refresh_token)


def _process_is_suspended(story: Story, worker: Process) -> None:
    worker.endpoint.latency = 1.0
    worker.suspended_until = story.world.now + story.random.choice((10.0, 60.0, 4000.0))


def _process_dies(story: Story, worker: Process) -> None:
    """It is killed somewhere in the call that it makes now, and starts again."""
    task = story.world.start(worker, worker.call, f"{worker.name} dies")
    turns = story.random.randint(1, 30)

    def strike() -> None:
        for _ in range(turns):
            story.world.pause()
        if not task.done:
            # A token that it has just received is gone with it.
            story.lossy = True
            worker.link.dead = True
            story.world.kill(task)
        _process_restarts(story, worker)

    story.world.start(_Fate(), strike, "fate")
    story.world.run()


def _process_restarts(story: Story, worker: Process) -> None:
    # What a store did not take, or lost, is gone with the process.
    kept = {grant.access_id for grant in story.stored().grants}
    story.lossy |= any(grant.access_id not in kept for grant in worker.known().grants)
    worker.boot()


def _clock_steps(story: Story, worker: Process) -> None:
    story.world.step = story.random.choice((0.0, 86400.0, -86400.0, 1800.0))


class _Fate:
    suspended_until = 0.0


_EVENTS: dict[str, Callable[[Story, Process], Any]] = {
    "nothing": _nothing,
    "time passes": _time_passes,
    "tokens die": _tokens_die,
    "reads fail": _reads_fail,
    "writes fail": _writes_fail,
    "locks fail": _locks_fail,
    "store fails": _store_fails,
    "store hangs": _store_hangs,
    "writes seem lost": _writes_seem_lost,
    "store is well": _store_is_well,
    "store falls back": _store_falls_back,
    "value is garbage": _value_is_garbage,
    "finAPI fails": _finapi_fails,
    "answer is lost": _answer_is_lost,
    "finAPI is slow": _finapi_is_slow,
    "outsider renews": _outsider_renews,
    "process is suspended": _process_is_suspended,
    "process dies": _process_dies,
    "process restarts": _process_restarts,
    "clock steps": _clock_steps,
}
