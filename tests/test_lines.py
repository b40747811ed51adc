"""The README's lines of code are those of programs that do the five jobs."""

from __future__ import annotations

import pytest

from .bench import lines
from .test_readme import table


@pytest.mark.parametrize("module", lines.available().values())
def test_each_program_does_all_five_jobs(module: str) -> None:
    """What is counted works: each program whose library is here passes the five jobs on the sandbox."""
    lines.run(module)


def test_a_program_that_lacks_a_job_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs can fail: without its own way with 401s, a program is told from one that does them."""
    from finapi_session import BearerAuth

    monkeypatch.setattr(BearerAuth, "heal", lambda auth, response, sent, **options: response, raising=True)
    with pytest.raises(AssertionError):
        lines.run("ours")


def test_the_readme_tells_what_is_counted() -> None:
    """Its table has every program, with the number of lines that its file has now."""
    counted = [[name, str(lines.count(lines.source_of(module)))] for name, (module, _) in lines.PROGRAMS.items()]
    assert table("README", "Lines of your code") == counted


def test_only_code_is_counted() -> None:
    """Blank lines, comments and docstrings do not count; a statement on three lines counts three."""
    source = (
        '"""Doc\n\nmore."""\n\nimport os  # why\n\n# so\ndef f():\n    """Doc."""\n    return (\n        1\n    )\n'
    )
    assert lines.count(source) == 5
