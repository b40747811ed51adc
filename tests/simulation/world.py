"""A world in which nothing happens by chance: tasks take turns where a schedule says so, and time is a number.

Whatever waits (a store, finAPI, another thread) does so by :meth:`World.pause` or :meth:`World.sleep`, which let the
schedule choose who goes on. The tasks are greenlets, so that the real library runs in them, lock and flight included.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from unittest import mock

from greenlet import GreenletExit, getcurrent, greenlet

START = 1_800_000_000.0
# More turns than this, and nobody gets anywhere.
_MOST_TURNS = 20_000


class Stuck(AssertionError):
    """Nobody can go on."""


class Schedule(Protocol):
    """Says who goes on, and what befalls whom."""

    def choose(self, options: int, preferred: int) -> int:
        """Return one of so many *options*; *preferred* is the one that changes nothing."""
        ...


class Seeded:
    """A schedule by a seed: it goes on with whoever had the turn in three of four cases."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def choose(self, options: int, preferred: int) -> int:
        """Return one of so many *options*."""
        return preferred if self.random.random() < 0.75 else self.random.randrange(options)


class Scripted:
    """A schedule that was written down: once it ends, whoever has the turn keeps it. It remembers what it chose."""

    def __init__(self, script: list[int]) -> None:
        self.script = script
        self.taken: list[int] = []
        self.offered: list[tuple[int, int]] = []

    def choose(self, options: int, preferred: int) -> int:
        """Return one of so many *options*."""
        number = len(self.taken)
        chosen = self.script[number] if number < len(self.script) else preferred
        self.taken.append(chosen)
        self.offered.append((options, preferred))
        return chosen


class Task:
    """Something that goes on in a process of the world."""

    def __init__(self, process: Any, act: Callable[[], None], name: str) -> None:
        self.process = process
        self.name = name
        self.wakes_at = 0.0
        self.error: BaseException | None = None
        self.greenlet = greenlet(self._run)
        self._act = act

    def _run(self) -> None:
        try:
            self._act()
        except GreenletExit:
            pass
        except BaseException as error:  # it is the scheduler's to raise
            self.error = error

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.greenlet.dead


class World:
    """Tasks, a clock for all, and the story of what happened."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.now = 0.0
        #: Seconds by which the wall clock of everybody is off.
        self.step = 0.0
        self.tasks: list[Task] = []
        self.story: list[str] = []
        self._main = getcurrent()
        self._current: Task | None = None

    def wall(self) -> float:
        """Return the epoch second by the clock of everybody."""
        return START + self.now + self.step

    def tell(self, what: str) -> None:
        """Write down what happened."""
        who = self._current.name if self._current else "-"
        self.story.append(f"{self.now:9.2f} {who}: {what}")

    def start(self, process: Any, act: Callable[[], None], name: str, after: float = 0.0) -> Task:
        """Let *act* begin *after* so many seconds."""
        task = Task(process, act, name)
        task.wakes_at = self.now + after
        self.tasks.append(task)
        return task

    def pause(self) -> None:
        """Let the schedule choose who goes on."""
        self.sleep(0.0)

    def sleep(self, seconds: float) -> None:
        """Let the others go on for so many seconds."""
        assert self._current is not None, "only a task can wait"
        self._current.wakes_at = self.now + max(seconds, 0.0)
        self._main.switch()

    def kill(self, task: Task) -> None:
        """End a task where it is; what it does on its way out reaches nobody, as its process is dead."""
        if not task.done:
            if task.greenlet is getcurrent():
                raise GreenletExit
            task.greenlet.throw(GreenletExit)

    def run(self) -> None:
        """Let all tasks go on, in the order of the schedule, until all have ended."""
        with self._clocks():
            for _ in range(_MOST_TURNS):
                waiting = [task for task in self.tasks if not task.done]
                if not waiting:
                    return
                self._turn(waiting)
        raise Stuck("nobody gets anywhere")

    def _turn(self, waiting: list[Task]) -> None:
        wakes = {task: max(task.wakes_at, task.process.suspended_until) for task in waiting}
        self.now = max(self.now, min(wakes.values()))
        ready = [task for task in waiting if wakes[task] <= self.now]
        preferred = ready.index(self._current) if self._current in ready else 0
        chosen = 0 if len(ready) == 1 else self.schedule.choose(len(ready), preferred)
        self._current = ready[chosen]
        self._current.greenlet.switch()
        if self._current.error is not None:
            raise self._current.error

    @contextmanager
    def _clocks(self) -> Iterator[None]:
        with (
            mock.patch.object(time, "time", self.wall),
            mock.patch.object(time, "monotonic", lambda: 1000.0 + self.now),
            mock.patch.object(time, "sleep", self.sleep),
            mock.patch("finapi_session.source._LATE", 0.0),
        ):
            yield
