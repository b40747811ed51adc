"""A renewal that no call waits for: a flight in a thread of its own."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable

from .errors import raised_by_signal_handler
from .flight import Flight, Ticket, ashore


class InBackground(threading.Thread):
    """A thread that flies alone, for *crew*. It is no daemon, so the interpreter's end waits for it."""

    def __init__(self, crew: object, fly: Callable[[], object]) -> None:
        super().__init__(target=fly, name="finapi-session-renewal", daemon=False)
        self.crew = crew

    @classmethod
    def take_off(cls, flight: Flight, crew: object, act: Callable[[], object]) -> bool:
        """Let *act* go on in a thread, unless somebody flies; the place is taken when this returns.

        Context variables go along. Tells whether a thread could be started, if it was needed.
        """
        # The thread is aboard this flight only, and whoever starts it is not.
        context, ticket = ashore(), Ticket(flight)
        if context.run(ticket.board, 0):
            try:
                cls(crew, lambda: context.run(_fly, ticket, act)).start()
            except RuntimeError as error:
                if raised_by_signal_handler(error):
                    raise
                return False
        return True

    @classmethod
    def land_all(cls, crew: object = None, seconds: float = threading.TIMEOUT_MAX) -> None:
        """Wait at most so many *seconds* for the threads of *crew*, or of everybody."""
        deadline = time.monotonic() + seconds
        for thread in threading.enumerate():
            if isinstance(thread, cls) and crew in (None, thread.crew) and thread is not threading.current_thread():
                thread.join(max(deadline - time.monotonic(), 0.0))


def _fly(ticket: Ticket, act: Callable[[], object]) -> None:
    with ticket:
        act()


# Before Python 3.12 an exit handler may start threads that nobody waits for: this one is called after those.
atexit.register(InBackground.land_all)
