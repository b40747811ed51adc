"""More of the search than the suite has time for: ``tox -e explore -- --minutes 10 [--deviations 3] [--seed 0]``."""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time

from .explore import interleavings
from .herds import HERDS
from .orders import check, flows
from .plays import PLAYS
from .stories import Story


def main() -> int:
    """Search for so many minutes; return 1 with the first failure, which says how to play it again."""
    parser = argparse.ArgumentParser(prog="explore", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for how long")
    parser.add_argument("--deviations", type=int, default=3, help="of small herds, from whoever has the turn keeps it")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the first story")
    wanted = parser.parse_args()
    logging.disable(logging.CRITICAL)
    ends = time.monotonic() + 60 * wanted.minutes
    print(f"first seed {wanted.seed}, {wanted.deviations} deviations, {wanted.minutes:g} minutes", flush=True)
    try:
        _search(wanted.seed, wanted.deviations, ends)
    except AssertionError as error:
        print(f"FOUND\n{error}")
        return 1
    return 0


def _search(seed: int, deviations: int, ends: float) -> None:
    played = 0
    for flow in flows():
        check(flow)
        played += 1
    print(f"{played} orders of answers", flush=True)
    half = time.monotonic() + (ends - time.monotonic()) / 2
    played, exhausted = 0, 0
    for play in (*(herd.play for herd in HERDS), *PLAYS):
        for _ in interleavings(play, deviations):
            played += 1
            if time.monotonic() > half:
                break
        else:
            exhausted += 1
    print(f"{played} interleavings, {exhausted} of {len(HERDS) + len(PLAYS)} situations exhausted", flush=True)
    played = 0
    while time.monotonic() < ends:
        Story(seed + played, steps=12 + played % 30).play()
        played += 1
    print(f"{played} stories", flush=True)


if __name__ == "__main__":
    sys.exit(main())
