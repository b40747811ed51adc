"""Lengths of time that callers give."""

from __future__ import annotations

import math


def positive_seconds(argument: str, value: float) -> float:
    """Return *value* if it is a finite number of seconds above 0.

    Raises ``TypeError`` for what is no number, and ``ValueError`` for one that is none of these; both name *argument*.
    """
    wanted = f"{argument} must be a number of seconds above 0"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{wanted}, not {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{wanted}, not {value!r}")
    return value
