"""Giving tokens back when a session is closed: several at once, within a bound, and telling only what lives on."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import copy_context

from .errors import RevocationError, raised_by_signal_handler
from .events import Journal
from .source import TokenSource

#: Seconds that one ``close()`` may take, however many tokens there are, and whatever one of them waits for.
CLOSE_SECONDS = 10.0
_NAME = "finapi-session-close"
# The first ones go one by one: they tell whether finAPI answers at all.
_ONE_BY_ONE = 3
_AT_ONCE = 8
# Revocations in a row without an answer after which no other one is tried.
_MOST_UNANSWERED = 2


class Closing:
    """The revocations of one ``close()``: *revoke* is called with a source, and the seconds that it has.

    They are done in other threads, which are left alone when the time is over: a store's lock, and the client's token
    that revokes the users', have longer bounds of their own.
    """

    def __init__(self, revoke: Callable[[TokenSource, float], None], journal: Journal) -> None:
        self._revoke = revoke
        self._journal = journal
        self._deadline = time.monotonic() + CLOSE_SECONDS
        self._unanswered = 0
        # Of what nobody knows yet whether it lives on; in their order, which a set has not.
        self._open: dict[TokenSource, None] = {}

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self._deadline - time.monotonic()

    def give_back(self, sources: Iterable[TokenSource], prepare: Callable[[], object] | None = None) -> None:
        """Revoke the tokens of *sources*, one try each, while finAPI answers.

        *prepare* comes first, and where it fails nothing is revoked.
        """
        waiting = deque(source for source in sources if source.held is not None)
        self._open.update(dict.fromkeys(waiting))
        if waiting:
            self.in_threads(lambda: self._begin(waiting, prepare))
        self.in_threads(lambda: self._work(waiting), min(len(waiting), _AT_ONCE))

    def end(self) -> None:
        """Tell which tokens live on because time was over."""
        self._live_on(list(self._open), "finAPI does not answer")

    def in_threads(self, work: Callable[[], None], number: int = 1) -> None:
        """Let a *number* of threads do *work* for as long as there is time."""
        threads = [
            threading.Thread(target=copy_context().run, args=(work,), name=_NAME, daemon=True) for _ in range(number)
        ]
        try:
            for thread in threads:
                thread.start()
        except RuntimeError:  # there can be no more threads, or the interpreter ends
            work()
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(self.left, 0.0))

    def _begin(self, waiting: deque[TokenSource], prepare: Callable[[], object] | None) -> None:
        """Prepare, and revoke the first ones."""
        try:
            if prepare is not None:
                prepare()
        except Exception as error:
            if raised_by_signal_handler(error):
                raise
            self._live_on(list(waiting), type(error).__name__)
            waiting.clear()
        self._work(waiting, _ONE_BY_ONE)

    def _work(self, waiting: deque[TokenSource], most: int = sys.maxsize) -> None:
        """Revoke one after the other while finAPI answers, until another thread has taken the last one."""
        with suppress(IndexError):
            while most and self._unanswered < _MOST_UNANSWERED and self.left > 0:
                self._try(waiting.popleft())
                most -= 1

    def _try(self, source: TokenSource) -> None:
        """Revoke, and note whether finAPI answered."""
        try:
            self._revoke(source, self.left)
        except Exception as error:
            if raised_by_signal_handler(error):
                raise
            self._live_on([source], type(error).__name__)
            answered = isinstance(error, RevocationError) and error.status is not None
            self._unanswered = 0 if answered else self._unanswered + 1
        else:
            self._unanswered = 0
            self._open.pop(source, None)

    def _live_on(self, sources: list[TokenSource], reason: str) -> None:
        """Tell that the tokens of *sources* live on: in one line, however many they are."""
        for source in sources:
            self._open.pop(source, None)
        if sources:
            whose = str(sources[0].identity) if len(sources) == 1 else f"{len(sources)} identities"
            tokens = "the token lives on" if len(sources) == 1 else f"{len(sources)} tokens live on"
            self._journal.tell("failed", whose, reason=f"{reason} on close; {tokens}")
