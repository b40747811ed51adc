"""What a token store is."""

from __future__ import annotations

from typing import ContextManager, Protocol, runtime_checkable


class AdviceError(PermissionError):
    """A store of this package refuses what others may change; the message says what to do, and shows no value."""


@runtime_checkable
class TokenStore(Protocol):
    """Keeps text under a key, for as many threads, processes and hosts as share it.

    Values are opaque: a store neither reads nor understands them. Any method may raise what its medium
    raises; a session then warns and goes on as if the store were empty.
    """

    def get(self, key: str) -> str | None:
        """Return the value last set under *key*, or ``None``."""
        ...

    def set(self, key: str, value: str) -> None:
        """Keep *value* under *key*; a reader sees the old value or the new one, never a part."""
        ...

    def delete(self, key: str) -> None:
        """Forget *key*; nothing happens if it is not there."""
        ...

    def lock(self, key: str) -> ContextManager[object]:
        """A context that excludes every other holder of *key*, and is freed when its holder dies.

        Entering waits for a bounded time (50 s in the stores of this package: longer than a whole renewal takes) and
        then raises ``TimeoutError``. A lock with a lease, which ends by itself, yields an object with a method
        ``extend()``: called before each token call, it puts the lease back to its full length, and raises nothing.
        """
        ...
