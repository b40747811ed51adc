"""How long stores wait for a lock, and how."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

#: Seconds that a lock is waited for: longer than all tries of a renewal (45 s) take together.
LOCK_TIMEOUT = 50.0
#: Seconds that a lock with a lease lasts: one token call (30 s), and what surrounds it.
LEASE = 35.0

# The mean, 12.5 ms, is 80 tries a second for each waiter; the last of 16 gets the lock some 45 ms after the first.
_SHORTEST, _LONGEST = 0.005, 0.02


def pause() -> float:
    """Return the seconds until the next try; random, so that waiters do not come all at once."""
    return random.uniform(_SHORTEST, _LONGEST)


def wait_for(attempt: Callable[[], bool], seconds: float, holder: str) -> None:
    """Call *attempt* until it returns true; raise ``TimeoutError``, which names the *holder*, after *seconds*."""
    deadline = time.monotonic() + seconds
    while not attempt():
        if time.monotonic() > deadline:
            raise too_long(seconds, holder)
        time.sleep(pause())


def too_long(seconds: float, holder: str) -> TimeoutError:
    """Return the error of somebody who has waited *seconds* for a lock of *holder*."""
    return TimeoutError(f"another {holder} held the lock for {seconds:g} s")
