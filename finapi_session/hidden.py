"""Text that is used as it is and shown as nothing."""

from __future__ import annotations


class Hidden(str):
    """A secret: its repr, and so that of a dict or a frame that holds it, does not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'[redacted]'"
