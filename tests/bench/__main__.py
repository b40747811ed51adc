"""The command: measure, print one table, and write that of the docs and the picture if asked to."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import time
from collections.abc import Iterable
from datetime import date
from pathlib import Path

from .peers import (
    PEERS,
    Authlib,
    GoogleAuth,
    GoogleAuthInBackground,
    Least,
    Ours,
    OursInBackground,
    Peer,
    Plain,
    RequestsOauthlib,
)
from .picture import draw
from .rows import Peers, Row, all_rows, around_a_renewal
from .servers import serving

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.rst"
_START, _END = ".. bench-table-start", ".. bench-table-end"
#: A lone hyphen would start a list.
_NONE = "\\-"
_SHORT = (Ours, Plain, Least, RequestsOauthlib, Authlib, GoogleAuth)


def main(arguments: list[str] | None = None) -> int:
    """Run the bench."""
    options = _parser().parse_args(arguments)
    _like_a_bare_machine()
    peers = [peer for peer in PEERS if peer.available()]
    started = time.monotonic()
    with serving() as remote:
        rows = []
        for row in all_rows(peers, remote, options.quick):
            print(f"{time.monotonic() - started:4.0f} s  {row.title}", file=sys.stderr)
            rows.append(row)
        if options.svg:
            shown = [
                peer
                for peer in (OursInBackground, Ours, Authlib, GoogleAuth, GoogleAuthInBackground)
                if peer.available()
            ]
            options.svg.write_text(draw({p.name: around_a_renewal(p, remote) for p in shown}), encoding="utf-8")
    ending = _ending(peers, options.quick)
    brief = _rst([row for row in rows if row.brief], [peer for peer in peers if peer in _SHORT], ending)
    print(brief if options.readme else _plain(rows, peers, ending))
    if options.write:
        _write(brief)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, with rougher figures")
    parser.add_argument("--readme", action="store_true", help="print the table of the docs instead")
    parser.add_argument(
        "--write", action="store_true", help="put that table into docs/benchmarks.rst, between its marks"
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the picture of a renewal")
    return parser


def _like_a_bare_machine() -> None:
    """Take out what would send the clients elsewhere or make them distrust the server; keep logs quiet."""
    logging.getLogger().addHandler(logging.NullHandler())
    for name in list(os.environ):
        if name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC") or name.lower().endswith("_proxy"):
            del os.environ[name]


def _ending(peers: Peers, quick: bool) -> list[str]:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    machine = f"{os.cpu_count()} processors, {platform.system()}"
    command = "python -m tests.bench" + (" --quick" if quick else "")
    versions = ", ".join(peer.version() for peer in peers)
    return [f"{date.today().isoformat()}, {python}, {machine}, ``{command}``.", versions + "."]


def _plain(rows: list[Row], peers: Peers, ending: Iterable[str]) -> str:
    """Return the table as text: a block for each row is easier to read than seven columns of sentences."""
    notes = _notes(rows)
    lines = []
    for row in rows:
        lines.append(f"{row.title} [{notes[row.note]}]" if row.note else row.title)
        names = dict.fromkeys([*(peer.name for peer in peers), *row.cells])
        lines += [f"    {name:{max(map(len, names))}}  {row.cells.get(name, '-')}" for name in names]
    lines += ["", *(f"[{number}] {note}" for note, number in notes.items()), "", *ending]
    return "\n".join(lines)


def _notes(rows: Iterable[Row]) -> dict[str, int]:
    notes = dict.fromkeys(row.note for row in rows if row.note)
    return {note: number for number, note in enumerate(notes, 1)}


def _rst(rows: list[Row], peers: list[type[Peer]], ending: Iterable[str]) -> str:
    """Return the table as reStructuredText, with its notes beneath."""
    notes = _notes(rows)
    lines = [".. list-table::", "   :header-rows: 1", "", "   * -"]
    lines += [f"     - {peer.name}" for peer in peers]
    for row in rows:
        lines.append(f"   * - {row.title}" + (f" ({notes[row.note]})" if row.note else ""))
        lines += [f"     - {row.cells.get(peer.name, _NONE)}" for peer in peers]
    beneath = [f"({number}) {note[0].upper()}{note[1:]}." for note, number in notes.items()]
    return "\n".join([*lines, "", *beneath, "", *ending])


def _write(table: str) -> None:
    """Put *table* between the marks of the page; raises ``ValueError`` if they are not there."""
    text = _PAGE.read_text(encoding="utf-8")
    if _START not in text or _END not in text:
        raise ValueError(f"docs/benchmarks.rst has no {_START} and {_END}")
    before, _, rest = text.partition(_START)
    _, _, after = rest.partition(_END)
    _PAGE.write_text(f"{before}{_START}\n\n{table}\n\n{_END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
