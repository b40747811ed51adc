"""A store around a store: a failing one costs a warning, never a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from .protocol import TokenStore

_INSTEAD = {
    "get": "going on as if it were empty",
    "set": "the token is not kept there",
    "delete": "the token may stay there",
    "lock": "going on without the lock",
}


class GuardedStore:
    """Turns the exceptions of the store *inner* into misses and calls of *warn*, one for each outage.

    An outage of an operation ends when that operation succeeds again. The warning names the operation, the
    exception's class (not its text, which may hold a secret) and what happens next. ``BaseException`` and
    what the body of a ``with store.lock(...)`` raises pass through.
    """

    def __init__(self, inner: TokenStore, warn: Callable[[str], object]) -> None:
        missing = [name for name in _INSTEAD if not callable(getattr(inner, name, None))]
        if missing or isinstance(inner, type):
            lacks = f"{type(inner).__name__} has no {', '.join(missing)}" if missing else "this is a class"
            raise TypeError(f"store must be an object with the methods of TokenStore: {lacks}")
        self.inner = inner
        self._warn = warn
        self._failing: set[str] = set()

    def get(self, key: str) -> str | None:
        """Return the value last set under *key*, or ``None`` if there is none or the store fails."""
        try:
            value: object = self.inner.get(key)
            if value is not None and not isinstance(value, str):
                raise TypeError
        except Exception as error:
            self._failed("get", error)
            return None
        self._failing.discard("get")
        return value

    def set(self, key: str, value: str) -> None:
        """Keep *value* under *key* if the store can."""
        try:
            self.inner.set(key, value)
        except Exception as error:
            self._failed("set", error)
        else:
            self._failing.discard("set")

    def delete(self, key: str) -> None:
        """Forget *key* if the store can."""
        try:
            self.inner.delete(key)
        except Exception as error:
            self._failed("delete", error)
        else:
            self._failing.discard("delete")

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Exclude other holders of *key* if the store can; otherwise go on without."""
        held = self._enter(key)
        try:
            yield
        finally:
            if held is not None:
                self._leave(held)

    def _enter(self, key: str) -> AbstractContextManager[object] | None:
        try:
            held = self.inner.lock(key)
            held.__enter__()
        except Exception as error:
            self._failed("lock", error)
            return None
        return held

    def _leave(self, held: AbstractContextManager[object]) -> None:
        try:
            held.__exit__(None, None, None)
        except Exception as error:
            self._failed("lock", error)
        else:
            self._failing.discard("lock")

    def _failed(self, operation: str, error: Exception) -> None:
        if operation not in self._failing:
            self._failing.add(operation)
            self._warn(f"token store: {operation} failed with {type(error).__name__}, {_INSTEAD[operation]}")

    def __repr__(self) -> str:
        return f"GuardedStore({self.inner!r})"
