"""What the repository's own commands do with what goes wrong in a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .neighbours import NEIGHBOURS, ROOT

CI = Path(__file__).resolve().parents[1] / ".ci"


def data_file(path: Path, line: int) -> Path:
    """Write a data file as a process that coverage measures does."""
    from coverage import CoverageData

    data = CoverageData(basename=str(path))
    data.add_lines({str(CI / "measured.py"): [line]})
    data.write()
    return path


def run(*command: str, **environ: str) -> str:
    """Run one of the commands where nothing of this run is, and return what it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")} | environ
    return subprocess.run(command, check=True, capture_output=True, text=True, env=kept, cwd=CI.parent).stdout


@pytest.mark.parametrize("broken", ["cut off", "garbled", "empty", "another's"])
def test_a_corrupt_data_file_neither_breaks_the_run_nor_hides(broken: str, tmp_path: Path) -> None:
    """The others are combined, and the one that a killed process left is named and kept."""
    from coverage import CoverageData

    for number in (1, 2):
        data_file(tmp_path / f".coverage.py312.{number}", number)
    whole = data_file(tmp_path / ".coverage.py312.3", 3).read_bytes()
    (tmp_path / ".coverage.py312.3").write_bytes(
        {
            "cut off": whole[: len(whole) // 2],
            "garbled": whole[:2000] + bytes(len(whole) - 2000),
            "empty": b"",
            "another's": b"no database",
        }[broken]
    )
    (tmp_path / ".coverage.py312.3-journal").write_bytes(b"left over")
    told = run(sys.executable, str(CI / "combine"), str(tmp_path), COVERAGE_FILE=str(tmp_path / ".coverage"))
    assert "2 data files combined, 1 corrupt" in told
    assert "CORRUPT, of a process that was killed: .coverage.py312.3 " in told
    assert (tmp_path / ".coverage.py312.3.corrupt").exists()
    combined = CoverageData(basename=str(tmp_path / ".coverage"))
    combined.read()
    assert sorted(combined.lines(str(CI / "measured.py")) or []) == [1, 2]


def program(folder: Path, name: str, text: str) -> None:
    """Put a shell script into *folder*."""
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_skipped_pythons_are_told(tmp_path: Path) -> None:
    """Those that are found, those that pyenv hides and those that nobody has are told apart, with what to do."""
    program(tmp_path, "python3.10", "echo 3.10")
    program(tmp_path, "python3.11", "echo pyenv: not found >&2; exit 127")
    program(tmp_path, "pyenv", "echo 3.10.13; echo 3.11.7")
    told = run(sys.executable, str(CI / "pythons"), "3.10", "3.11", "3.13", PATH=str(tmp_path), PYENV_VERSION="3.10.13")
    assert told.splitlines() == [
        "Pythons tested: 3.10",
        "Pythons skipped: 3.11, 3.13",
        "  pyenv hides 3.11.7; to have them: export PYENV_VERSION=3.11.7:3.10.13",
        "  to have 3.13: install python3.13 where PATH finds it (pyenv install 3.13)",
    ]


def test_nothing_is_told_where_nothing_is_skipped(tmp_path: Path) -> None:
    """With all of them there is one line, and no pyenv is needed."""
    program(tmp_path, "python3.10", "echo 3.10")
    assert run(sys.executable, str(CI / "pythons"), "3.10", PATH=str(tmp_path)) == "Pythons tested: 3.10\n"


def test_the_neighbours_are_in_the_suite() -> None:
    """The table of other people's software names tests that are there, and packages that they are run with."""
    wanted = " ".join((ROOT / name).read_text(encoding="utf-8").lower() for name in ("tox.ini", "setup.cfg"))
    for neighbour in NEIGHBOURS:
        assert [package for package in neighbour.packages if package.lower() not in wanted] == []
        for pattern in neighbour.tests:
            file, _, test = pattern.partition("::")
            text = (ROOT / file).read_text(encoding="utf-8")
            assert "*" in test or f"def {test}" in text or f"class {test}" in text, pattern
