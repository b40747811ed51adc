"""Pictures of a terminal: what commands print on one, run against a sandbox; what differs each time is made stable."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from hashlib import sha256
from html import escape
from typing import NamedTuple

from palettes import Palette

from finapi_session.testing import Sandbox

#: The pictures, and what is typed, one after the other.
SHOTS = {
    "demo": "demo",
    "check": "check",
    "login": "login --user alice",
    "status": "status",
    "request": "request GET /api/v2/banks/277701 -i",
}
_DAY = (2026, 11, 25)
# The program itself, but for the demo's user and day, on which its data depend.
_PROGRAM = f"""
import datetime, functools, secrets, types
from finapi_session import testing
from finapi_session.cli import __main__, demo
testing.Sandbox = functools.partial(testing.Sandbox, today=datetime.date{_DAY})
demo.secrets = types.SimpleNamespace(token_hex=lambda _: "5e7a11", token_urlsafe=secrets.token_urlsafe)
__main__.main()
"""
_SGR = re.compile(r"\x1b\[([0-9;]*)m")
_COLOURS = {"32": "green", "33": "yellow", "34": "blue", "35": "magenta", "36": "cyan"}
_SIZE, _LINE, _MARGIN = 13, 19, 16
_CHARACTER = 0.602 * _SIZE


class Style(NamedTuple):
    """How a piece of text looks: the field of the palette that colours it, and whether it is bold or dim."""

    colour: str = "text"
    bold: bool = False
    dim: bool = False


def screens() -> dict[str, str]:
    """Return what each picture shows, as a terminal gets it."""
    with Sandbox(username="alice", password="her-password") as sandbox, tempfile.TemporaryDirectory() as home:
        machine = {
            **sandbox.environ("alice"),
            "HOME": home,
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",
            "TERM": "xterm-256color",
            "TMPDIR": home,
        }
        return {
            name: f"$ finapi-session {typed}\n" + _stable(_run(typed, machine), home) for name, typed in SHOTS.items()
        }


def _run(typed: str, machine: dict[str, str]) -> str:
    """Return what a command writes on a terminal."""
    mine, theirs = pty.openpty()
    command = [sys.executable, "-c", _PROGRAM, *typed.split()]
    with subprocess.Popen(command, env=machine, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        written = b"".join(iter(lambda: _read(mine), b""))
    os.close(mine)
    text = written.decode().replace("\r\n", "\n")
    if process.returncode:
        raise RuntimeError(f"{typed} ended with {process.returncode}: {text}")
    return text


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other side is closed
        return b""


def _stable(text: str, home: str) -> str:
    """Return *text* with the same ids, tokens, times and places each time."""
    text = text.replace(f"FileStore('{home}", "FileStore('~").replace(home, f"{os.sep}tmp")
    text = re.sub(r"(?<=finapi-demo-)\w+", "k3v9x2ab", text)
    text = re.sub(r"(?<=127\.0\.0\.1:)\d+", "8443", text)
    text = re.sub(r"\b\d+ ms\b", "8 ms", text)
    text = re.sub(r"\b35\d\d s\b", "3600 s", text)
    text = re.sub(r"(?<=process )\d+", "4711", text)
    text = re.sub(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", "Wed, 25 Nov 2026 09:41:07 GMT", text)
    text = _numbered(text, r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", lambda n: str(uuid.uuid5(_IDS, str(n))))
    return _numbered(text, r"(?<= )[\w~.-]{4}(?=\.\.\.)", lambda n: sha256(str(n).encode()).hexdigest()[:4])


_IDS = uuid.UUID(int=0)


def _numbered(text: str, pattern: str, make: Callable[[int], str]) -> str:
    """Return *text* with what *pattern* finds replaced by what *make* makes of its number: the same for the same."""
    numbers: dict[str, int] = {}
    return re.sub(pattern, lambda found: make(numbers.setdefault(found[0], len(numbers))), text)


def draw(screen: str, palette: Palette) -> str:
    """Return the picture of *screen* in *palette*'s colours."""
    lines = list(_lines(screen.rstrip("\n")))
    longest = max(sum(len(text) for text, _ in line) for line in lines)
    width, height = round(longest * _CHARACTER) + 2 * _MARGIN, len(lines) * _LINE + 2 * _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(lines[0][0][0])}" font-size="{_SIZE}" fill="{palette.text}" '
        "font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace\">",
        f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" fill="{palette.ground}" '
        f'stroke="{palette.line}" stroke-opacity="0.4"/>',
    ]
    for number, line in enumerate(lines):
        spans = "".join(_span(text, style, palette) for text, style in line)
        if spans:
            parts.append(f'<text x="{_MARGIN}" y="{_MARGIN + _LINE * number + 14}" xml:space="preserve">{spans}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _lines(screen: str) -> Iterator[list[tuple[str, Style]]]:
    """Split *screen* into lines, and each of them where its style changes."""
    line: list[tuple[str, Style]] = []
    for text, style in _pieces(screen):
        first, *others = text.split("\n")
        line += [(first, style)] if first else []
        for other in others:
            yield line
            line = [(other, style)] if other else []
    yield line


def _pieces(screen: str) -> Iterator[tuple[str, Style]]:
    """Split *screen* where its style changes."""
    style = Style()
    for place, piece in enumerate(_SGR.split(screen)):
        if place % 2 == 0:
            yield piece, style
        elif piece in ("", "0"):
            style = Style()
        else:
            style = _changed(style, piece)


def _changed(style: Style, code: str) -> Style:
    if code in ("1", "2", "22"):
        return style._replace(bold=code == "1", dim=code == "2")
    return style._replace(colour=_COLOURS[code])


def _span(text: str, style: Style, palette: Palette) -> str:
    colour = palette.line if style.dim else getattr(palette, style.colour)
    looks = [f' fill="{colour}"'] if colour != palette.text else []
    looks += [' font-weight="bold"'] if style.bold else []
    return f"<tspan{''.join(looks)}>{escape(text, quote=False)}</tspan>" if looks else escape(text, quote=False)
