"""The state diagram of a token."""

from __future__ import annotations

from html import escape
from typing import NamedTuple

from palettes import Palette

WIDTH, HEIGHT = 860, 430


class Box(NamedTuple):
    """A state: where it is, what it is called, what holds in it, and the field of the palette that colours it."""

    x: int
    y: int
    title: str
    note: str
    colour: str


class Arrow(NamedTuple):
    """A transition: a path, what it is about, and where that is written."""

    path: str
    label: str
    x: int
    y: int
    anchor: str = "middle"


BOX = (180, 62)
BOXES = (
    Box(20, 40, "rejected", "the API answered 401", "bad"),
    Box(340, 40, "fresh", "no lock, no store, no call", "good"),
    Box(660, 40, "soft window", "one renews, others go on", "soft"),
    Box(660, 180, "expired", "the others wait", "bad"),
    Box(20, 180, "no token", "first call, or a new process", "ground"),
    Box(340, 180, "renewal", "store, refresh token, password", "ground"),
    Box(20, 330, "refused", "TokenError, until it changes", "bad"),
    Box(340, 330, "resting", "Retry-After, lost answer, pause", "soft"),
    Box(660, 330, "failed", "TokenEndpointError", "bad"),
)
ARROWS = (
    Arrow("M520 71 H652", "leeway before expiry", 586, 62),
    Arrow("M750 102 V172", "expiry", 758, 142, "start"),
    Arrow("M200 90 C270 110 320 140 372 174", "is there a newer one?", 240, 138),
    Arrow("M415 172 V110", "another token", 407, 145, "end"),
    Arrow("M660 90 C590 110 540 140 488 174", "one thread", 618, 124, "start"),
    Arrow("M660 211 H528", "one for all", 594, 203),
    Arrow("M200 211 H332", "ask", 266, 203),
    Arrow("M340 71 H208", "401", 274, 62),
    Arrow("M360 242 C300 280 220 300 160 322", "refused", 246, 278, "end"),
    Arrow("M430 242 V322", "transient", 438, 290, "start"),
    Arrow("M520 361 H652", "at expiry", 586, 353),
    Arrow("M415 322 V250", "later", 407, 290, "end"),
)


def draw(palette: Palette) -> str:
    """Return the picture in *palette*'s colours."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="The states of a token" font-family="sans-serif" font-size="13" fill="{palette.text}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{palette.ground}"/>',
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 L10 5 L0 10 z" fill="{palette.line}"/></marker></defs>',
    ]
    parts += [_arrow(arrow, palette) for arrow in ARROWS]
    parts += [_box(box, palette) for box in BOXES]
    return "\n".join([*parts, "</svg>\n"])


def _box(box: Box, palette: Palette) -> str:
    width, height = BOX
    middle = box.x + width // 2
    return (
        f'<rect x="{box.x}" y="{box.y}" width="{width}" height="{height}" rx="8" '
        f'fill="{getattr(palette, box.colour)}" stroke="{palette.line}"/>'
        f'<text x="{middle}" y="{box.y + 26}" text-anchor="middle" font-weight="bold">{escape(box.title)}</text>'
        f'<text x="{middle}" y="{box.y + 46}" text-anchor="middle" font-size="11">{escape(box.note)}</text>'
    )


def _arrow(arrow: Arrow, palette: Palette) -> str:
    return (
        f'<path d="{arrow.path}" fill="none" stroke="{palette.line}" stroke-width="1.5" marker-end="url(#head)"/>'
        f'<text x="{arrow.x}" y="{arrow.y}" text-anchor="{arrow.anchor}" font-size="11">{escape(arrow.label)}</text>'
    )
