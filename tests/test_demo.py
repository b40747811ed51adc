"""``finapi-session demo``, run as a process."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from finapi_session.testing import Sandbox

from .test_cli import COMMAND, COVERAGE, PACKAGE, Terminal, run, the_line

STEPS = (
    "A token for the client",
    "Banks",
    "creates a user",
    "The user's token",
    "Accounts and the latest transactions",
    "revoked behind our back",
    "refreshed before the call",
    "Another process",
    "close() revokes",
)


@pytest.fixture
def machine(bare_machine: Path, tmp_path: Path) -> dict[str, str]:
    """A machine with certificates, a proxy and a folder for temporary files of its own, and no client."""
    return {
        **COVERAGE,
        "PATH": os.environ["PATH"],
        "HOME": str(bare_machine),
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": str(PACKAGE),
        "PYTHONWARNINGS": "error",
        "REQUESTS_CA_BUNDLE": str(tmp_path / "companys.pem"),
        "CURL_CA_BUNDLE": str(tmp_path / "companys.pem"),
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }


@pytest.fixture
def client(sandbox: Sandbox, machine: dict[str, str]) -> dict[str, str]:
    """A machine that reaches *sandbox* as if it were finAPI, and has its client."""
    return {
        **machine,
        "FINAPI_CLIENT_ID": sandbox.client_id,
        "FINAPI_CLIENT_SECRET": sandbox.client_secret,
        "REQUESTS_CA_BUNDLE": sandbox.ca_bundle,
        "no_proxy": "127.0.0.1",
    }


def test_the_story(machine: dict[str, str], tmp_path: Path) -> None:
    """The demo tells every step in order, in under ten seconds, past the proxies, and leaves no file."""
    started = time.monotonic()
    result = run(machine, "demo")
    assert (result.returncode, result.stderr) == (0, "") and time.monotonic() - started < 10
    places = [result.stdout.index(step) for step in STEPS]
    assert places == sorted(places)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lines", [1, 3, 7, 12])
def test_the_story_ends_quietly_where_its_reader_leaves(machine: dict[str, str], lines: int) -> None:
    """Wherever ``head`` has enough, in the middle of a call too, nothing is said on standard error."""
    line = f"set -o pipefail; {shlex.join(COMMAND)} demo | head -n {lines}"
    result = subprocess.run(["bash", "-c", line], env=machine, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout.count("\n"), result.stderr) == (141, lines, "")


def test_the_story_is_true(machine: dict[str, str]) -> None:
    """The last line counts the calls told; the one 401 is followed by a refresh and the same call."""
    lines = run(machine, "demo").stdout.splitlines()
    sent = [line.split()[1:3] for line in lines if line.startswith("   > ")]
    answered = [line.split()[1] for line in lines if line.startswith("   < ")]
    tokens, revocations = sent.count(["POST", "/oauth/token"]), sent.count(["POST", "/oauth/revoke"])
    api_calls = len(sent) - tokens - revocations
    assert lines[-1] == (f"{tokens} token calls, {api_calls} API calls, {revocations} revocations, 2 TLS connections")
    assert (tokens, revocations, len(answered)) == (4, 2, len(sent))
    healed = answered.index("401")
    assert answered.count("401") == 1 and {*answered} == {"200", "201", "401"}
    assert sent[healed] == sent[healed + 2] and sent[healed + 1] == ["POST", "/oauth/token"]


def test_second_process_asks_for_no_token(machine: dict[str, str]) -> None:
    """The second process is another one, sends one API call with the first one's token, and no token call."""
    story = run(machine, "demo").stdout
    step = story[story.index("Another process") : story.index("close() revokes")]
    assert re.findall(r"> (\w+ \S+)", step) == ["GET /api/v2/accounts"]
    (bearer,) = re.findall(r"bearer (\w{4})\.\.\.", step)
    before = story[: story.index("Another process")]
    assert re.findall(r"< 200 .* token (\w{4})\.\.\.", before)[-1] == bearer
    assert "token adopted, 0 token calls" in step


def test_the_story_shows_no_secret_and_fits(machine: dict[str, str]) -> None:
    """Of a token four characters are shown, of a password none; lines fit, and are plain in a pipe."""
    story = run(machine, "demo").stdout
    assert not re.search(r"[A-Za-z0-9]{33}", story) and "sandbox-client-secret" not in story
    assert "password" not in re.sub(r"by password, once|grant_type password|no password|needs no password", "", story)
    # The first line names a folder as long as the system likes it.
    assert max(map(len, story.splitlines()[1:])) <= 84
    assert "\x1b" not in story


@pytest.mark.parametrize("no_color", [False, True])
def test_colours(machine: dict[str, str], no_color: bool) -> None:
    """A terminal gets colours, unless NO_COLOR is set."""
    with Terminal({**machine, **({"NO_COLOR": "1"} if no_color else {})}, "demo") as terminal:
        assert terminal.end() == 0
        assert ("\x1b[" in terminal.shown) is not no_color


def test_on_finapi_it_reads_only(client: dict[str, str], sandbox: Sandbox) -> None:
    """With a client and --environment a token and two reads are sent, and nothing is revoked."""
    result = run(client, "--environment", sandbox.base_url, "demo")
    assert (result.returncode, result.stderr) == (0, "")
    assert [(call.method, call.path) for call in sandbox.calls] == [
        ("POST", "/oauth/token"),
        ("GET", "/api/v2/banks"),
        ("GET", "/api/v2/clientConfiguration"),
    ]
    assert result.stdout.splitlines()[-1] == "1 token call, 2 API calls, 0 revocations, 1 TLS connection"


def test_on_finapi_with_a_user(client: dict[str, str], sandbox: Sandbox) -> None:
    """With a user's name and password her accounts are read too."""
    user = {"FINAPI_USERNAME": sandbox.username, "FINAPI_PASSWORD": sandbox.password}
    result = run({**client, **user}, "--environment", sandbox.base_url, "demo")
    assert result.returncode == 0 and "Girokonto" in result.stdout
    assert sandbox.password not in result.stdout
    assert {call.method for call in sandbox.calls if "/oauth/" not in call.path} == {"GET"}
    assert sandbox.count("/oauth/revoke") == 0


def test_a_client_alone_stays_on_the_sandbox(client: dict[str, str], sandbox: Sandbox) -> None:
    """Without --environment finAPI is not called, whatever the variables say."""
    machine = {**client, "FINAPI_ENVIRONMENT": sandbox.base_url}
    result = run(machine, "demo")
    assert result.returncode == 0 and "creates a user" in result.stdout
    assert sandbox.count() == sandbox.connections == 0


def test_on_finapi_without_a_client(machine: dict[str, str], sandbox: Sandbox) -> None:
    """Where the client is not known, one line says so."""
    result = run(machine, "--environment", sandbox.base_url, "demo")
    assert result.returncode == 3 and "FINAPI_CLIENT" not in result.stdout and "login" in the_line(result)


def test_an_error_ends_the_story(client: dict[str, str], sandbox: Sandbox) -> None:
    """An error of finAPI is told with its call and ends the demo with exit code 1."""
    sandbox.answer_next(423, path="/clientConfiguration")
    result = run(client, "--environment", sandbox.base_url, "demo")
    assert result.returncode == 1 and "busy" in the_line(result)
    assert "< 423" in result.stdout


def test_ctrl_c_ends_the_story(machine: dict[str, str], tmp_path: Path) -> None:
    """Ctrl-C ends both processes, the first with 130, without a word, and no file is left."""
    with subprocess.Popen([*COMMAND, "demo"], env=machine, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if b"Another process" in line:
                break
        process.send_signal(signal.SIGINT)
        # They end where nobody holds them any more, the second process neither.
        process.stdout.read()
        assert process.stderr is not None and process.stderr.read().strip() == b""
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_second_process_gets_no_secret_by_argument() -> None:
    """What the second process is started with are its module and the folder; the rest goes by environment."""
    code = """
import subprocess, sys
from unittest import mock
from finapi_session.cli import demo
from finapi_session.testing import Sandbox
with Sandbox() as sandbox, mock.patch.object(subprocess, "run", side_effect=KeyboardInterrupt) as run:
    try:
        demo._tell_second_process(demo.Narrator(), "anna.schmidt", sandbox, "FOLDER")
    except KeyboardInterrupt:
        print(run.call_args.args[0][1:])
"""
    environ = {**os.environ, "PYTHONPATH": str(PACKAGE), "TMPDIR": tempfile.gettempdir()}
    out = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "['-m', 'finapi_session.cli.demo', 'FOLDER']"
