"""The colours of the pictures, on a light ground and on a dark one."""

from __future__ import annotations

from typing import NamedTuple


class Palette(NamedTuple):
    """The colours of one picture; those of a terminal are called as there."""

    ground: str
    text: str
    line: str
    good: str
    soft: str
    bad: str
    green: str
    yellow: str
    blue: str
    magenta: str
    cyan: str


PALETTES = {
    "light": Palette(
        *("#ffffff", "#1f2328", "#6e7781", "#dafbe1", "#fff8c5", "#ffebe9"),
        *("#116329", "#7d4e00", "#0550ae", "#8250df", "#1b6a78"),
    ),
    "dark": Palette(
        *("#131416", "#e6edf3", "#8b949e", "#12361f", "#3d2f00", "#4c1d1d"),
        *("#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd"),
    ),
}
