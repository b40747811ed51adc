"""Proof by search: the real flow, merge and driver in every order that a few tasks can take, and in long stories."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest

from .explore import interleavings
from .faults import FAULTS, Fault
from .herds import HERDS, Herd
from .orders import check, flows
from .plays import PLAYS
from .stories import Story


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """What thousands of stories would write to the log helps nobody."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_every_order_of_answers_to_one_flow() -> None:
    """Whatever a flow is told, it ends, keeps the rules of the theory, and loses nothing that finAPI gave."""
    played = 0
    for flow in flows():
        check(flow)
        played += 1
    assert played > 10_000


@pytest.mark.parametrize("herd", HERDS, ids=str)
def test_every_interleaving_of_a_small_herd(herd: Herd) -> None:
    """Whoever has the turn when, finAPI is asked once and nobody fails: all schedules with two deviations."""
    assert sum(1 for _ in interleavings(herd.play, deviations=2)) >= 6


@pytest.mark.parametrize("play", PLAYS)
def test_what_failed_before(play: Callable[[Any], None]) -> None:
    """The situations in which the first version lost a login or locked a user, in any order of turns."""
    assert sum(1 for _ in islice(interleavings(play, deviations=2), 300)) >= 1


@pytest.mark.parametrize("start", range(0, 3000, 500))
def test_long_stories(start: int) -> None:
    """Whatever befalls workers, stores, clocks and finAPI: no rule is broken, and all is well after the last fault."""
    for seed in range(start, start + 500):
        Story(seed).play()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.broken.__name__)
def test_each_fault_put_back_is_found(fault: Fault) -> None:
    """The search can fail: with a rule of the heart broken, it finds a schedule, and tells how to play it again."""
    with fault.broken(), pytest.raises(AssertionError, match="play it again with"):
        for _ in islice(interleavings(fault.play, deviations=2), fault.schedules):
            pass


@pytest.mark.parametrize("fault", [fault for fault in FAULTS[:2]], ids=lambda fault: fault.broken.__name__)
def test_a_lost_login_is_found_by_stories_as_well(fault: Fault) -> None:
    """Random stories find the lost logins of the first version within 500 seeds."""
    with fault.broken(), pytest.raises(AssertionError, match=r"(?s)a login is lost.*play it again: Story\("):
        for seed in range(500):
            Story(seed, password=False, rotates=True).play()


def test_a_story_is_the_same_each_time() -> None:
    """A seed is enough to play it again."""
    stories = []
    for _ in range(2):
        story = Story(7)
        story.play()
        stories.append(story.world.story)
    assert stories[0] == stories[1] and len(stories[0]) > 20
