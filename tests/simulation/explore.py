"""Every interleaving of a few tasks, up to a number of deviations from "whoever has the turn keeps it"."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .world import Scripted, World


def interleavings(play: Callable[[World], None], deviations: int) -> Iterator[list[int]]:
    """Play every schedule with at most so many *deviations*, and yield each one played; errors name theirs."""
    waiting: list[list[int]] = [[]]
    while waiting:
        script = waiting.pop()
        schedule = Scripted(script)
        world = World(schedule)
        try:
            play(world)
        except BaseException as error:
            story = "\n".join(world.story)
            raise AssertionError(
                f"{type(error).__name__}: {error}\nplay it again with {schedule.taken}\n{story}"
            ) from error
        yield schedule.taken
        spent = sum(chosen != schedule.offered[at][1] for at, chosen in enumerate(script))
        if spent < deviations:
            for at in range(len(script), len(schedule.taken)):
                options, preferred = schedule.offered[at]
                waiting += [[*schedule.taken[:at], other] for other in range(options) if other != preferred]
