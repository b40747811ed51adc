"""The command line's options, where they go, what completes them, and the examples in its help."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finapi_session.cli.commands import commands
from finapi_session.cli.options import METHODS
from finapi_session.testing import Sandbox

from .test_cli import COMMAND, PACKAGE, environ, index_of, run, the_line

__all__ = ["environ"]


@pytest.fixture
def alice(environ: dict[str, str]) -> dict[str, str]:
    """What alice's shell has."""
    return {**environ, "FINAPI_USERNAME": "alice", "FINAPI_PASSWORD": "her-password"}


# Where they go


def test_options_go_before_the_command_and_after_it(environ: dict[str, str], sandbox: Sandbox, tmp_path: Path) -> None:
    """Environment, store and -v mean the same on either side; a token that was kept by one is found by the other."""
    there = ("--environment", sandbox.base_url, "--store", f"file:{tmp_path}/tokens")
    nowhere = {**environ, "FINAPI_ENVIRONMENT": "https://127.0.0.1:9", "FINAPI_STORE": "memory"}
    before, after = run(nowhere, "-v", *there, "token"), run(nowhere, "token", *there, "-v")
    assert before.returncode == after.returncode == 0 and before.stdout == after.stdout
    assert before.stderr.startswith("INFO ") and sandbox.count("/oauth/token") == 1


def test_verbose_adds_up(environ: dict[str, str]) -> None:
    """-v before the command and after it is -vv, which tells of each call besides what happened to tokens."""
    call = ("request", "GET", "/api/v2/banks", "--store", "memory")
    for given, told in ((("-v", *call), False), (("-v", *call, "-v"), True), ((*call, "-vv"), True)):
        result = run(environ, *given)
        assert "INFO token issued" in result.stderr and ("DEBUG call answered" in result.stderr) is told


def test_what_is_said_last_counts(environ: dict[str, str], sandbox: Sandbox) -> None:
    """An option after the command beats the one before it, which beats the variable, even one that is wrong."""
    wrong = {**environ, "FINAPI_ENVIRONMENT": "moon", "FINAPI_STORE": "shoebox"}
    early = ("--environment", "live", "--store", "keyring")
    late = ("--environment", sandbox.base_url, "--store", "memory")
    assert run(wrong, *early, "token", *late).returncode == 0
    assert run(wrong, *late, "token").returncode == 0
    result = run(wrong, "token")
    assert result.returncode == 2 and the_line(result).startswith("FINAPI_ENVIRONMENT: unknown environment 'moon'")
    result = run(wrong, "token", "--environment", "mars")
    assert result.returncode == 2 and "'--environment': unknown environment 'mars'" in the_line(result)


def test_every_command_takes_what_it_uses() -> None:
    """All but the sandbox, which has neither, take an environment and -v; the demo has a store of its own."""
    takes = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in commands.commands.items()
    }
    assert {name for name, options in takes.items() if not {"--environment", "-v"} <= options} == {"sandbox"}
    assert {name for name, options in takes.items() if "--store" not in options} == {"sandbox", "demo"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "--user alice token",
            "--user goes after login, logout, request or token, as in 'finapi-session login --user ID'",
        ),
        ("status --user alice", "--user goes after login, logout, request or token"),
        ("--all logout", "--all goes after logout, as in 'finapi-session logout --all'"),
        ("--all-pages request GET /x", "--all-pages goes after request, as in 'finapi-session request --all-pages'"),
        ("-d {} request POST /x", "-d goes after request, as in 'finapi-session request -d JSON|@FILE|@-'"),
        ("token --port 1", "--port goes after sandbox"),
        ("token --frobnicate", "No such option"),
        ("token --clint", "Did you mean --client?"),
    ],
)
def test_a_misplaced_option_is_told_where_it_goes(environ: dict[str, str], arguments: str, said: str) -> None:
    """An option of another command names that command; what no command knows is told as such."""
    result = run(environ, *arguments.split())
    assert result.returncode == 2 and said in the_line(result).replace("'--client'", "--client")


# Help


def examples(shown: str) -> str:
    """Return the lines under Examples, as one would copy them."""
    found = re.search(r"^  Examples:\n((?:    .*\n?)+)", shown, re.M)
    assert found, shown
    return re.sub(r"^    ", "", found[1], flags=re.M)


@pytest.mark.parametrize("name", ["", *sorted(commands.commands)])
def test_the_examples_of_help_run(name: str, alice: dict[str, str], sandbox: Sandbox, tmp_path: Path) -> None:
    """What ``--help`` shows can be copied into a shell, however narrow the terminal is, and succeeds."""
    shown = run({**alice, "COLUMNS": "60"}, *filter(None, [name]), "--help").stdout
    command = tmp_path / "finapi-session"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m finapi_session "$@"\n')
    command.chmod(0o755)
    (tmp_path / "user.json").write_text('{"id": "clara", "password": "clara-password"}')
    (tmp_path / "leaked-token.txt").write_text("leaked\n")
    lines = re.sub(r"--environment \w+", f"--environment {sandbox.base_url}", examples(shown))
    machine = {**alice, "PATH": f"{tmp_path}{os.pathsep}{alice['PATH']}", "CURL_CA_BUNDLE": sandbox.ca_bundle}
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines.replace("https://sandbox.finapi.io", sandbox.base_url)],
        env=machine,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert name or {call.username for call in sandbox.calls} >= {None, "alice"}


def test_each_command_is_told_in_one_line(environ: dict[str, str]) -> None:
    """In a terminal of 80 columns no command's line in the help is cut off."""
    listed = run({**environ, "COLUMNS": "80"}, "--help").stdout.partition("Commands:")[2].partition("Examples:")[0]
    lines = listed.strip().splitlines()
    assert len(lines) == len(commands.commands) and all(line.endswith(".") for line in lines)
    assert "..." not in listed


@pytest.mark.parametrize("name", sorted(commands.commands))
def test_help_of_a_command_needs_no_requests(name: str) -> None:
    """The help of each command comes without the libraries that calls need, as that of all does."""
    code = (
        f"import sys; sys.argv[1:] = [{name!r}, '--help']\n"
        "from finapi_session.cli.__main__ import main\n"
        "try:\n    main()\n"
        "except SystemExit as ending:\n"
        "    print(ending.code, sorted({'requests', 'urllib3', 'oauthlib', 'filelock'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE).stdout
    assert told.endswith("\n0 []\n")


# Completion


def completed(environ: dict[str, str], *words: str) -> list[str]:
    """Return what a shell offers for the last of *words*."""
    variables = {
        "_FINAPI_SESSION_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["finapi-session", *words]),
        "COMP_CWORD": str(len(words)),
    }
    result = run({**environ, **variables})
    assert result.stderr == ""
    return [line.partition(",")[2] for line in result.stdout.split()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["--environment", "s"], ["sandbox", "sandbox-v2"]),
        (["token", "--environment", "LIVE-"], ["live-v2"]),
        (["--store", "fi"], ["file", "file:"]),
        (["token", "--store", "key"], ["keyring"]),
        (["request", "p"], ["POST", "PUT", "PATCH"]),
        (["request", "''"], list(METHODS)),
        (["revoke", "--hint", "a"], ["access_token"]),
    ],
)
def test_names_are_completed(environ: dict[str, str], words: list[str], offered: list[str]) -> None:
    """A shell completes environments, stores, methods in capitals, and hints."""
    assert completed(environ, *words) == offered


def test_users_are_completed(alice: dict[str, str], sandbox: Sandbox, bare_machine: Path, tmp_path: Path) -> None:
    """A shell completes who is logged in here, in the store that the line names, and no name it would have to obey."""
    assert completed(alice, "token", "--user", "a") == []
    run(alice, "token")
    run({**alice, "FINAPI_ENVIRONMENT": sandbox.base_url.replace("127.0.0.1", "localhost")}, "token")
    entries = json.loads(index_of(bare_machine).read_text())
    evil = {**entries[0], "username": "al\x1b[2J"}
    index_of(bare_machine).write_text(json.dumps([*entries, evil, "junk"]))
    calls = sandbox.count()
    assert completed(alice, "token", "--user", "a") == ["alice"] and completed(alice, "token", "--user", "b") == []
    assert completed(alice, "--store", f"file:{tmp_path}/other", "token", "--user", "a") == []
    assert completed(alice, "--store", "redis://127.0.0.1:9", "token", "--user", "a") == []
    assert sandbox.count() == calls and completed(alice, "--environment", "live", "token", "--user", "a") == []


def test_the_command_line_is_run_as_a_module(environ: dict[str, str]) -> None:
    """The package, and its part with the commands, can be run by ``python -m`` alike."""
    package = [sys.executable, "-m", "finapi_session", "status"]
    told = subprocess.run(package, env=environ, capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stdout) == (0, run(environ, "status").stdout) and package[:3] != COMMAND
