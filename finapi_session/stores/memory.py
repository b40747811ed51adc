"""Tokens in the memory of one process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .waiting import LOCK_TIMEOUT, too_long

# Waiters are woken; should a signal keep a holder from waking them, they look for themselves so often (seconds).
_LOOK_AGAIN = 0.1


class MemoryStore:
    """Keeps values for the threads of one process, and forgets them with it.

    A forked child, a pickle and a copy start with the values of that moment and go their own way; locks stay
    behind. ``lock_timeout`` is how many seconds a lock waits before it raises ``TimeoutError``.
    """

    # Without a __dict__ there are no vars that show the values.
    __slots__ = ("lock_timeout", "_values", "_holders", "__weakref__")

    def __init__(self, *, lock_timeout: float = LOCK_TIMEOUT) -> None:
        self.lock_timeout = lock_timeout
        self._values: dict[str, str] = {}
        self._holders: dict[tuple[int, str], threading.Event] = {}

    def get(self, key: str) -> str | None:
        """Return the value last set under *key*, or ``None``."""
        return self._values.get(key)

    def set(self, key: str, value: str) -> None:
        """Keep *value* under *key*."""
        self._values[key] = value

    def delete(self, key: str) -> None:
        """Forget *key*; nothing happens if it is not there."""
        self._values.pop(key, None)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Exclude the other threads that want *key*, or raise ``TimeoutError``."""
        # The process id keeps a forked child from waiting for a thread that only its parent has.
        place = (os.getpid(), key)
        mine = threading.Event()
        deadline = time.monotonic() + self.lock_timeout
        try:
            try:
                while (holder := self._holders.setdefault(place, mine)) is not mine:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise too_long(self.lock_timeout, "thread")
                    holder.wait(min(left, _LOOK_AGAIN))
                yield
            finally:
                self._free(place, mine)
        except BaseException:
            # Once more, as it may be a signal that came before the first time had an effect.
            self._free(place, mine)
            raise

    def _free(self, place: tuple[int, str], mine: threading.Event) -> None:
        """Give the lock back if it is *mine*, and wake whoever waits for it."""
        if self._holders.get(place) is mine:
            del self._holders[place]
        mine.set()

    def __getstate__(self) -> dict[str, object]:
        return {"lock_timeout": self.lock_timeout, "_values": dict(self._values), "_holders": {}}

    def __setstate__(self, state: dict[str, object]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        return f"<MemoryStore with {len(self._values)} values>"
