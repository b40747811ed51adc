"""An SVG of the calls and waits around a renewal: a lane for each thread, a panel for each client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from .rows import RENEWAL, Traffic

_LEFT, _WIDTH, _LANE, _HEAD, _GAP, _SECONDS = 20, 720, 9, 26, 18, 3.6
_CALL, _WAIT, _RULE, _TEXT = "#2e7d32", "#c62828", "#e0e0e0", "#333333"


def draw(traffics: Mapping[str, Traffic]) -> str:
    """Return the picture of *traffics*, by client, as SVG text."""
    parts: list[str] = []
    top = 44
    for name, traffic in traffics.items():
        lanes = 1 + max(thread for thread, _, _ in traffic.calls)
        parts += _panel(name, traffic, lanes, top)
        top += _HEAD + lanes * _LANE + _GAP
    parts += _axis(top)
    height, width = top + 24, _LEFT * 2 + _WIDTH
    title = f"Calls of 8 threads while a token is renewed, which takes {RENEWAL:.0f} s"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{escape(title)}" font-family="sans-serif" font-size="12" fill="{_TEXT}">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            f'<text x="{_LEFT}" y="22" font-size="14" font-weight="bold">{escape(title)}</text>',
            *parts,
            "</svg>\n",
        ]
    )


def _panel(name: str, traffic: Traffic, lanes: int, top: int) -> Iterable[str]:
    told = f"slowest call {traffic.slowest:.2f} s, {traffic.waited} waited, {traffic.token_calls} token call"
    told += "" if traffic.token_calls == 1 else "s"
    yield f'<text x="{_LEFT}" y="{top + 16}"><tspan font-weight="bold">{escape(name)}</tspan>: {told}</text>'
    for lane in range(lanes):
        y = top + _HEAD + lane * _LANE + _LANE // 2
        calls = [(start, end) for thread, start, end in traffic.calls if thread == lane]
        yield f'<path d="M{_LEFT} {y}h{_WIDTH}" stroke="{_RULE}"/>'
        yield _marks(y, [call for call in calls if not _waited(*call)], _CALL)
        yield _marks(y, [call for call in calls if _waited(*call)], _WAIT)


def _waited(start: float, end: float) -> bool:
    return end - start >= RENEWAL / 2


def _marks(y: int, calls: Iterable[tuple[float, float]], colour: str) -> str:
    """Return one path for all *calls*: a thousand elements would make a heavy picture."""
    path = "".join(f"M{_x(start):.1f} {y}h{max(_x(end) - _x(start), 1.5):.1f}" for start, end in calls)
    return f'<path d="{path}" stroke="{colour}" stroke-width="{_LANE - 2}"/>' if path else ""


def _axis(top: int) -> Iterable[str]:
    for half in range(int(_SECONDS * 2) + 1):
        x = _x(half / 2)
        yield f'<text x="{x:.0f}" y="{top + 8}" font-size="10" text-anchor="middle">{half / 2:g} s</text>'


def _x(seconds: float) -> float:
    return _LEFT + min(seconds, _SECONDS) / _SECONDS * _WIDTH
