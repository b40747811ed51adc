"""The ``finapi-session`` command, run as a process against a local finAPI."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shlex
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import Mock

import pytest

from finapi_session import SANDBOX
from finapi_session.cli import __main__ as cli, commands
from finapi_session.cli.clients import Client
from finapi_session.cli.logins import Login
from finapi_session.testing import Sandbox

PACKAGE = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "finapi_session.cli"]
# What coverage measures processes with.
COVERAGE = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
SECRET, PASSWORD = "sandbox-client-secret", "Kirschkuchen am Sonntag"
Result = subprocess.CompletedProcess[str]

_KEYRING = """
import json, os, pathlib
from keyring.backend import KeyringBackend

class Vault(KeyringBackend):
    priority = {priority}
    path = pathlib.Path(os.environ["TEST_VAULT"])
    def _all(self):
        return json.loads(self.path.read_text()) if self.path.exists() else {{}}
    def _save(self, entries):
        self.path.write_text(json.dumps(entries))
    def get_password(self, service, username):
        return self._all().get(service)
    def set_password(self, service, username, password):
        self._save(self._all() | {{service: password}})
    def delete_password(self, service, username):
        entries = self._all()
        del entries[service]
        self._save(entries)
"""


@pytest.fixture
def environ(sandbox: Sandbox, bare_machine: Path) -> dict[str, str]:
    """What a process sees: a home of its own, and the sandbox's client."""
    return {
        **COVERAGE,
        "PATH": os.environ["PATH"],
        "HOME": str(bare_machine),
        "PYTHONPATH": str(PACKAGE),
        "PYTHONWARNINGS": "error",
        "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",
        "FINAPI_ENVIRONMENT": sandbox.base_url,
        "FINAPI_CLIENT_ID": sandbox.client_id,
        "FINAPI_CLIENT_SECRET": sandbox.client_secret,
        "REQUESTS_CA_BUNDLE": sandbox.ca_bundle,
    }


@pytest.fixture
def anna(environ: dict[str, str], sandbox: Sandbox) -> dict[str, str]:
    """The same with the user's name and password."""
    return {**environ, "FINAPI_USERNAME": sandbox.username, "FINAPI_PASSWORD": sandbox.password}


@pytest.fixture
def vault(environ: dict[str, str], tmp_path: Path) -> Callable[[float], dict[str, str]]:
    """Makes a machine with a keyring of a given priority, where the environment tells no client."""

    def with_priority(priority: float) -> dict[str, str]:
        (tmp_path / "vault.py").write_text(_KEYRING.format(priority=priority))
        rest = {name: value for name, value in environ.items() if not name.startswith("FINAPI_CLIENT")}
        paths = {"PYTHONPATH": f"{PACKAGE}:{tmp_path}", "TEST_VAULT": str(tmp_path / "vault.json")}
        return {**rest, **paths, "PYTHON_KEYRING_BACKEND": "vault.Vault"}

    return with_priority


def run(environ: dict[str, str], *arguments: str, stdin: str = "") -> Result:
    """Run the command to its end; whatever happens there is no traceback."""
    result = subprocess.run(
        [*COMMAND, *arguments], env=environ, input=stdin, capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in result.stderr + result.stdout
    return result


def the_line(result: Result) -> str:
    """Return the one line on standard error."""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.removeprefix("finapi-session: ").rstrip()


class Terminal:
    """A process on a terminal of its own: type to it, read what it shows."""

    def __init__(self, environ: dict[str, str], *arguments: str, command: list[str] = COMMAND) -> None:
        self.shown = ""
        self._mine, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*command, *arguments],
            env={"TERM": "xterm", **environ},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            # It becomes the controlling terminal, which is where passwords are asked for.
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
        )
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._mine)

    def wait_for(self, text: str) -> None:
        """Read until *text* is shown."""
        while text not in self.shown:
            assert self._read(), f"ended before {text!r}: {self.shown!r}"

    def type(self, text: str) -> None:
        """Type *text*."""
        os.write(self._mine, text.encode())

    def answer(self, question: str, text: str) -> None:
        """Wait for *question* and answer it."""
        self.wait_for(question)
        time.sleep(0.1)
        self.type(f"{text}\n")

    def end(self) -> int:
        """Read to the end; return the exit code."""
        while self._read():
            pass
        assert "Traceback" not in self.shown
        return self.process.wait(30)

    def _read(self) -> bool:
        assert select.select([self._mine], [], [], 30)[0], f"silent for 30 s after {self.shown!r}"
        try:
            data = os.read(self._mine, 65536)
        except OSError:
            return False
        self.shown += data.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(data)


# token


def test_token_alone_on_stdout(environ: dict[str, str], sandbox: Sandbox) -> None:
    """``token`` prints a token that the API takes, on one line, and nothing else."""
    result = run(environ, "token")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1 and len(result.stdout) == sandbox.token_length + 1
    assert sandbox.session(token={"access_token": result.stdout.strip()}).get("/api/v2/banks").ok
    assert sandbox.count("/oauth/token") == 1


def test_token_is_kept_between_runs(anna: dict[str, str], sandbox: Sandbox) -> None:
    """A second run finds the first one's token in the file store, and asks for none."""
    assert run(anna, "token").stdout == run(anna, "token").stdout
    assert sandbox.count("/oauth/token", grant_type="password") == sandbox.count() == 1


def test_user_and_client_are_chosen_by_option(anna: dict[str, str], sandbox: Sandbox) -> None:
    """``--client`` beats FINAPI_USERNAME, ``--user`` does too, and the password goes to its owner alone."""
    sandbox.add_user("berta", "other")
    assert run(anna, "token", "--client").returncode == 0
    result = run(anna, "token", "--user", "berta")
    assert result.returncode == 3 and "login" in the_line(result)
    assert [call.kind for call in sandbox.calls] == ["client"]
    assert run({**anna, "FINAPI_USERNAME": "ANNA.schmidt"}, "token", "--user", "Anna.Schmidt").returncode == 0


def test_a_token_lives_on_without_the_password(anna: dict[str, str], environ: dict[str, str], sandbox: Sandbox) -> None:
    """After a login the user's token is used, and refreshed when it has gone, with no password around."""
    assert run(anna, "login").returncode == 0
    first = run(environ, "token", "--user", sandbox.username)
    sandbox.revoke_tokens(kind="user")
    assert run(environ, "request", "GET", "/api/v2/accounts", "--user", sandbox.username).returncode == 0
    second = run(environ, "token", "--user", sandbox.username)
    assert first.returncode == second.returncode == 0 and first.stdout != second.stdout
    assert sandbox.count("/oauth/token", grant_type="password") == 1


def test_memory_store_keeps_and_revokes_nothing(environ: dict[str, str], sandbox: Sandbox, bare_machine: Path) -> None:
    """With ``--store memory`` the printed token stays valid and no file is written."""
    result = run(environ, "--store", "memory", "token")
    assert result.returncode == 0 and sandbox.count("/oauth/revoke") == 0
    assert not list(bare_machine.rglob("*"))


def test_closed_standard_error(environ: dict[str, str]) -> None:
    """Where nobody reads errors, none is taken for a token."""
    command = shlex.join([*COMMAND, "token"]) + " 2>&-"
    wrong = {**environ, "FINAPI_CLIENT_SECRET": "wrong-secret"}
    result = subprocess.run(["sh", "-c", command], env=wrong, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (3, "")


def test_the_shown_use_of_a_token_is_a_command(environ: dict[str, str]) -> None:
    """The lines of ``token --help`` can be copied into a shell, however narrow the terminal is."""
    shown = run({**environ, "COLUMNS": "60"}, "token", "--help").stdout
    [example] = re.findall(r"printf.*\|\n.*/banks$", shown, re.M)
    assert "Bearer" in example


@pytest.mark.parametrize("store", ["file:{}/tokens", "sqlite:///{}/tokens.db"])
def test_stores_by_name(environ: dict[str, str], sandbox: Sandbox, tmp_path: Path, store: str) -> None:
    """A folder and a database keep tokens, whether named by option or by FINAPI_STORE."""
    name = store.format(tmp_path)
    assert run(environ, "--store", name, "token").stdout == run({**environ, "FINAPI_STORE": name}, "token").stdout
    assert sandbox.count("/oauth/token") == 1


# request


def test_request_writes_the_raw_body_into_a_pipe(anna: dict[str, str]) -> None:
    """Into a pipe goes the body as it came; status and request id go to standard error."""
    result = run(anna, "request", "GET", "/api/v2/accounts", "-H", "X-Request-Id: my-id")
    assert result.returncode == 0
    assert len(json.loads(result.stdout)["accounts"]) == 3 and not result.stdout.startswith("{\n")
    assert result.stderr.startswith("HTTP 200 OK, request id my-id, ")


def test_request_sends_all_it_is_given(environ: dict[str, str], tmp_path: Path) -> None:
    """Parameters, headers and a body from argument, file and standard input arrive as they were given."""
    body = '{"Name": "Jörg & Söhne"}'
    (tmp_path / "body.json").write_text(body)
    options = ["-p", "q=a=b&c", "-p", "leer=", "-H", "X-Text: eins:zwei"]
    for data in (body, f"@{tmp_path}/body.json", "@-"):
        result = run(environ, "request", "post", "api/v2/tests/echo", *options, "-d", data, stdin=body)
        echo = json.loads(result.stdout)
        assert (echo["method"], echo["text"]) == ("POST", body)
        assert echo["query"] == {"q": "a=b&c", "leer": ""}
        assert echo["headers"]["X-Text"] == "eins:zwei"
        assert echo["headers"]["Content-Type"] == "application/json"


def test_request_is_readable_on_a_terminal(anna: dict[str, str]) -> None:
    """On a terminal JSON is indented, and control characters from the answer are shown, not obeyed."""
    body = json.dumps({"ä": "\x9b31m"}, ensure_ascii=False)
    with Terminal({**anna, "NO_COLOR": "1"}, "request", "POST", "/api/v2/tests/echo", "-d", body) as terminal:
        assert terminal.end() == 0
        assert '\n  "method": "POST",\n' in terminal.shown
        assert "\x9b" not in terminal.shown and "\\u009b31m" in terminal.shown
        assert "ä" in terminal.shown


@pytest.mark.parametrize("quiet", [{}, {"NO_COLOR": "1"}, {"NO_COLOR": ""}, {"TERM": "dumb"}], ids=str)
def test_colours_are_for_terminals(anna: dict[str, str], sandbox: Sandbox, quiet: dict[str, str]) -> None:
    """Names, texts, numbers and words are told apart by colour on a terminal that wants it, and nowhere else."""
    body = {"a": 'x": 1 \\', "b": [-1.5e3, None, True, "\x1b[2J"], "c": {}}
    for _ in range(2):
        sandbox.answer_next(200, body=body, path="/accounts")
    with Terminal({**anna, **quiet}, "request", "GET", "/api/v2/accounts") as terminal:
        assert terminal.end() == 0
    shown = terminal.shown.partition("\n")[2]
    plain = json.dumps(body, indent=2)
    assert re.sub(r"\x1b\[\d+m", "", shown) == f"{plain}\n"
    if quiet:
        assert "\x1b" not in shown
    else:
        coloured = dict(re.findall(r"\x1b\[(\d+)m(.*?)\x1b\[0m", shown))
        assert set(coloured) == {"34", "32", "36", "35"} and coloured["36"] == "-1500.0"
        assert '\x1b[32m"x\\": 1 \\\\"\x1b[0m' in shown and '\x1b[34m"a"\x1b[0m: ' in shown
    assert "\x1b" not in run({**anna, **quiet}, "request", "GET", "/api/v2/accounts", "-i").stdout


def test_fields_make_a_body(environ: dict[str, str]) -> None:
    """Fields after the path are a JSON object: texts after =, JSON after :=, wherever the options stand."""
    fields = ["name=Jörg = Söhne", "leer=", "x:y=z", "ids:=[1, 2]", "isNew:=false", 'nested:={"a": "b=c"}', "t=a:=b"]
    result = run(environ, "request", "patch", "-p", "q=1", "/api/v2/tests/echo", *fields, "-H", "X-Text: a")
    echo = json.loads(result.stdout)
    wanted = {"name": "Jörg = Söhne", "leer": "", "x:y": "z", "ids": [1, 2], "isNew": False}
    assert json.loads(echo["text"]) == {**wanted, "nested": {"a": "b=c"}, "t": "a:=b"}
    assert (echo["method"], echo["query"], echo["headers"]["X-Text"]) == ("PATCH", {"q": "1"}, "a")
    assert echo["headers"]["Content-Type"] == "application/json"


def test_headers_before_the_body(environ: dict[str, str], sandbox: Sandbox) -> None:
    """``-i`` writes status line and headers as they came, but no cookie and no token that they repeat."""
    token = run(environ, "token").stdout.strip()
    headers = {"Set-Cookie": "session=cookie-of-mine", "X-Echo": f"Bearer {token}", "X-Text": "a  b", "X-Bad": "\x9b2J"}
    sandbox.answer_next(404, body={"code": "GONE"}, path="/banks", headers=headers)
    result = run(environ, "request", "GET", "/api/v2/banks", "-i")
    head, _, body = result.stdout.partition("\n\n")
    status, *lines = head.split("\n")
    shown = dict(line.split(": ", 1) for line in lines)
    assert result.returncode == 1 and status == "HTTP/1.1 404 NOT FOUND" and json.loads(body) == {"code": "GONE"}
    assert (shown["Set-Cookie"], shown["X-Text"], shown["X-Bad"]) == ("[redacted]", "a  b", "2J")
    assert shown["Content-Type"] == "application/json" and "[redacted]" in shown["X-Echo"]
    assert token not in result.stdout and "cookie-of-mine" not in result.stdout


def test_nothing_to_show_on_a_terminal(environ: dict[str, str], sandbox: Sandbox) -> None:
    """An empty body is not even an empty line."""
    sandbox.answer_next(204, body=b"", path="/banks")
    with Terminal(environ, "request", "DELETE", "/api/v2/banks") as terminal:
        assert terminal.end() == 0 and terminal.shown.count("\n") == 1


def test_text_is_made_harmless_on_a_terminal(anna: dict[str, str], sandbox: Sandbox) -> None:
    """A body that is no JSON cannot command the terminal."""
    sandbox.answer_next(200, body=b"\x1b[2Jgone \xff", path="/accounts")
    with Terminal(anna, "request", "GET", "/api/v2/accounts") as terminal:
        assert terminal.end() == 0
        assert "\\u001b[2Jgone" in terminal.shown and "\x1b" not in terminal.shown


@pytest.mark.parametrize("status", [302, 400, 404, 423, 500])
def test_request_fails_unless_2xx(environ: dict[str, str], sandbox: Sandbox, status: int) -> None:
    """Any other status than 2xx is exit code 1; the body is on standard output all the same."""
    sandbox.answer_next(status, body={"code": "NO"}, path="/banks")
    result = run(environ, "request", "GET", "/api/v2/banks")
    assert result.returncode == 1
    assert json.loads(result.stdout) == {"code": "NO"}
    assert f"HTTP {status}" in result.stderr


def test_request_says_what_to_do_about_an_error(environ: dict[str, str]) -> None:
    """An error is explained, with finAPI's code and the request id."""
    result = run(environ, "request", "GET", "/api/v2/accounts")
    status, error = result.stderr.splitlines()
    assert status.startswith("HTTP 403")
    assert "wants the other kind of token" in error and json.loads(result.stdout)["requestId"] in error


def test_request_hides_a_token_that_finapi_repeats(environ: dict[str, str], sandbox: Sandbox) -> None:
    """A 401 that stays names the refused token in its body; it is taken out before the body is shown."""
    token = run(environ, "token").stdout.strip()
    for _ in range(3):
        sandbox.answer_next(401, body={"error_description": f"Invalid access token: {token}"}, path="/banks")
    result = run(environ, "request", "GET", "/api/v2/banks")
    assert result.returncode == 1
    assert token not in result.stdout + result.stderr and "[redacted]" in result.stdout


@pytest.mark.parametrize("status", [200, 404])
def test_request_hides_a_token_in_the_request_id(environ: dict[str, str], sandbox: Sandbox, status: int) -> None:
    """An answer's request id that repeats the token is shown without it, whatever its status."""
    token = run(environ, "token").stdout.strip()
    sandbox.answer_next(status, path="/api/v2/banks", headers={"X-Request-Id": f"id {token}"})
    result = run(environ, "request", "GET", "/api/v2/banks")
    assert "request id id [redacted]" in result.stderr and token not in result.stderr + result.stdout


def test_request_is_redirected_without_its_token(environ: dict[str, str], sandbox: Sandbox) -> None:
    """A redirect to another origin is followed without the token, and its refusal is shown as it came."""
    elsewhere = sandbox.base_url.replace("127.0.0.1", "localhost") + "/api/v2/banks"
    result = run(environ, "request", "GET", "/api/v2/tests/redirect", "-p", f"to={elsewhere}")
    assert result.returncode == 1 and json.loads(result.stdout)["error"] == "unauthorized"
    assert [call.token for call in sandbox.calls][-1] is None


def test_request_heals_a_401(environ: dict[str, str], sandbox: Sandbox) -> None:
    """A stored token that was revoked meanwhile is renewed unnoticed."""
    run(environ, "token")
    sandbox.revoke_tokens()
    assert run(environ, "request", "GET", "/api/v2/banks").returncode == 0
    assert sandbox.count("/banks", status=401) == sandbox.count("/banks", status=200) == 1


def test_all_pages_are_joined(anna: dict[str, str], sandbox: Sandbox) -> None:
    """``--all-pages`` reads every page once and writes one document of which nothing is lost or doubled."""
    result = run(anna, "request", "GET", "/api/v2/transactions", "--all-pages", "-p", "perPage=50")
    document = json.loads(result.stdout)
    ids = [entry["id"] for entry in document["transactions"]]
    assert result.returncode == 0 and len(set(ids)) == len(ids) == document["paging"]["totalCount"]
    assert document["paging"]["pageCount"] == 1 and "balance" in document
    assert sandbox.count("/transactions") == -(-len(ids) // 50) > 2


def test_all_pages_of_a_path_that_names_one(anna: dict[str, str], sandbox: Sandbox) -> None:
    """A page and its size in the path count like parameters: no page comes twice, none is left out."""
    result = run(anna, "request", "GET", "/api/v2/transactions?perPage=50&page=1", "--all-pages")
    document = json.loads(result.stdout)
    ids = [entry["id"] for entry in document["transactions"]]
    assert len(ids) == len(set(ids)) == document["paging"]["totalCount"] > 50


def test_all_pages_of_nothing_and_of_what_has_none(anna: dict[str, str], sandbox: Sandbox) -> None:
    """An empty result and an answer without pages are each read once and written."""
    nothing = run(anna, "request", "GET", "/api/v2/banks", "--all-pages", "-p", "search=no such bank")
    assert json.loads(nothing.stdout)["banks"] == []
    plain = run(anna, "request", "GET", "/api/v2/accounts", "--all-pages")
    assert len(json.loads(plain.stdout)["accounts"]) == 3
    assert sandbox.count("/banks") == sandbox.count("/accounts") == 1


def test_all_pages_stop_at_an_error(anna: dict[str, str], sandbox: Sandbox) -> None:
    """An error on a later page is what is written, with exit code 1, and no half document."""
    sandbox.answer_next(200, body={"banks": [1], "paging": {"pageCount": 5}}, path="/banks")
    sandbox.answer_next(500, body={"code": "BROKEN"}, path="/banks")
    result = run(anna, "request", "GET", "/api/v2/banks", "--all-pages")
    assert result.returncode == 1 and json.loads(result.stdout) == {"code": "BROKEN"}
    assert sandbox.count("/banks") == 2


def test_all_pages_stop_at_junk(anna: dict[str, str], sandbox: Sandbox) -> None:
    """A page that is no JSON ends it with exit code 1, and no document with a hole is written."""
    sandbox.answer_next(200, body={"banks": [1], "paging": {"pageCount": 5}}, path="/banks")
    sandbox.answer_next("html", path="/banks")
    result = run(anna, "request", "GET", "/api/v2/banks", "--all-pages")
    assert (result.returncode, result.stdout) == (1, "") and "page" in the_line(result)


def test_all_pages_show_progress_on_a_terminal(anna: dict[str, str]) -> None:
    """On a terminal a long read tells how far it is."""
    with Terminal(anna, "request", "GET", "/api/v2/banks", "--all-pages", "-p", "perPage=20") as terminal:
        assert terminal.end() == 0
        assert "\rpage 1 of 3" in terminal.shown and "\rpage 3 of 3\n" in terminal.shown


# Bad input


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["--environment", "moon", "token"],
        ["--environment", "http://127.0.0.1", "token"],
        ["--store", "shoebox", "token"],
        ["--store", "redis://localhost:port", "token"],
        ["--store", "nosuch://x", "token"],
        ["--store", "sqlite://", "token"],
        ["request", "GET"],
        ["request", "GRAB", "/api/v2/banks"],
        ["request", "GET", "https://example.com/api/v2/banks"],
        ["request", "GET", "//example.com/"],
        ["request", "GET", "/api/v2/banks", "-p", "search"],
        ["request", "GET", "/api/v2/banks", "-H", "nothing"],
        ["request", "GET", "/api/v2/banks", "-H", "X-Bad: a\nb"],
        ["request", "GET", "/api/v2/banks", "-H", f"X-Request-Id: {'x' * 256}"],
        ["request", "GET", "/api/v2/banks", "-H", "X-Text: €"],
        ["request", "POST", "/api/v2/users", "-d", "{not json"],
        ["request", "POST", "/api/v2/users", "-d", "@/no/such/file"],
        ["request", "POST", "/api/v2/users", "-d", "[" * 100_000],
        ["request", "POST", "/api/v2/users", "--all-pages"],
        ["request", "GET", "/api/v2/banks", "--all-pages", "-i"],
        ["request", "GET", "/api/v2/banks", "search=Sparkasse"],
        ["request", "POST", "/api/v2/users", "id"],
        ["request", "POST", "/api/v2/users", "=x"],
        ["request", "POST", "/api/v2/users", ":=1"],
        ["request", "POST", "/api/v2/users", "id=a", "id=b"],
        ["request", "POST", "/api/v2/users", "id:=a"],
        ["request", "POST", "/api/v2/users", "id=\udce4"],
        ["request", "POST", "/api/v2/users", 'id:="\udce4"'],
        ["request", "POST", "/api/v2/users", "-d", "\udce4"],
        ["request", "POST", "/api/v2/users", "id=a", "-d", "{}"],
        ["request", "GET", "/api/v2/banks", "--all-pages", "-p", "page=two"],
        ["token", "--user", ""],
        ["sandbox", "--port", "65536"],
        ["sandbox", "--port", "http"],
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_bad_input_is_one_line_and_exit_code_2(environ: dict[str, str], sandbox: Sandbox, arguments: list[str]) -> None:
    """What cannot be meant is told in one line, before the API is called."""
    result = run(environ, *arguments)
    assert result.returncode == 2 and the_line(result)
    assert result.stdout == "" and not [call for call in sandbox.calls if "/oauth/" not in call.path]


def test_help_and_version(environ: dict[str, str]) -> None:
    """Help is there for every command, tells the exit codes, and comes when nothing is asked."""
    bare = run(environ)
    assert bare.returncode == 0 and "Exit codes:" in bare.stdout and "141" in bare.stdout
    for command in ("login", "token", "request", "status", "logout", "check", "sandbox", "demo"):
        assert command in bare.stdout
        assert "Usage: finapi-session" in run(environ, command, "-h").stdout
    assert run(environ, "--version").stdout.startswith("finapi-session, version ")


def test_shell_completion(environ: dict[str, str]) -> None:
    """The line that --help gives for completion works."""
    script = run({**environ, "_FINAPI_SESSION_COMPLETE": "bash_source"})
    assert script.returncode == 0 and "complete" in script.stdout
    words = {
        "_FINAPI_SESSION_COMPLETE": "bash_complete",
        "COMP_WORDS": "finapi-session lo",
        "COMP_CWORD": "1",
    }
    assert run({**environ, **words}).stdout.split() == ["plain,login", "plain,logout"]


@pytest.mark.parametrize(
    "module, extra, arguments",
    [
        ("click", "cli", ["token"]),
        ("keyring", "keyring", ["--store", "keyring", "token"]),
        ("redis", "redis", ["--store", "redis://localhost", "token"]),
        ("sqlalchemy", "sql", ["--store", "sqlite:///x", "token"]),
        ("flask", "sandbox", ["sandbox"]),
        ("trustme", "sandbox", ["demo"]),
    ],
)
def test_missing_extras_are_named(
    environ: dict[str, str], tmp_path: Path, module: str, extra: str, arguments: list[str]
) -> None:
    """Where an optional package is missing, one line tells what to install."""
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError('hidden', name={module!r})")
    hidden = {name: value for name, value in environ.items() if name != "PYTHON_KEYRING_BACKEND"}
    result = run({**hidden, "PYTHONPATH": f"{tmp_path}:{PACKAGE}"}, *arguments)
    assert result.returncode == 2
    assert f"pip install 'finapi-session[{extra}]'" in the_line(result)


# Refusals and outages


def test_wrong_client_secret(environ: dict[str, str]) -> None:
    """A wrong client secret is exit code 3 and a line that names the place to look, without the secret."""
    result = run({**environ, "FINAPI_CLIENT_SECRET": "wrong-secret"}, "token")
    assert result.returncode == 3 and "client's id and secret" in the_line(result)
    assert "wrong-secret" not in result.stderr


@pytest.mark.parametrize("command", ["token", "logout"])
def test_client_secret_that_is_no_text(environ: dict[str, str], command: str) -> None:
    """A secret in another encoding is told as such, not as a bug of the program."""
    result = run({**environ, "FINAPI_CLIENT_SECRET": "\udce4x"}, command, "--client")
    assert result.returncode == 2 and "client_secret must be text that UTF-8 can carry" in result.stderr


def test_wrong_password_is_sent_once(anna: dict[str, str], sandbox: Sandbox) -> None:
    """A refused password is not sent again by the next run, until logout forgets the refusal."""
    wrong = {**anna, "FINAPI_PASSWORD": "wrong-password"}
    for _ in range(3):
        result = run(wrong, "token")
        assert result.returncode == 3 and "Correct user or password" in the_line(result)
        assert "wrong-password" not in result.stderr
    assert sandbox.count("/oauth/token") == 1
    assert run(anna, "logout").returncode == 0
    assert run(wrong, "token").returncode == 3 and sandbox.count("/oauth/token") == 2
    assert run(anna, "token").returncode == 0


def test_locked_user(anna: dict[str, str], sandbox: Sandbox) -> None:
    """A locked user is exit code 3, and the line says what unlocks."""
    sandbox.lock_user(sandbox.username)
    result = run(anna, "token")
    assert result.returncode == 3 and "password change unlocks" in the_line(result)


def test_user_without_password(environ: dict[str, str], sandbox: Sandbox) -> None:
    """A user whose password and token are unknown is told to log in; finAPI is not asked."""
    result = run(environ, "token", "--user", "anna.schmidt")
    assert result.returncode == 3 and "finapi-session login" in the_line(result)
    assert sandbox.count() == 0


def test_nothing_known_of_the_client(environ: dict[str, str]) -> None:
    """Without a client the line says to log in or to set the variables."""
    for name in ("FINAPI_CLIENT_ID", "FINAPI_CLIENT_SECRET"):
        result = run({**environ, name: ""}, "token")
        assert result.returncode == 3 and "login" in the_line(result)


def test_finapi_down(environ: dict[str, str], sandbox: Sandbox) -> None:
    """A closed port is exit code 4, and the line names what to check."""
    result = run({**environ, "FINAPI_ENVIRONMENT": "https://127.0.0.1:9"}, "token")
    assert result.returncode == 4 and "network" in the_line(result)


def test_finapi_gone_after_the_token(environ: dict[str, str], sandbox: Sandbox) -> None:
    """A connection that breaks in the API call is exit code 4 too."""
    sandbox.answer_next("drop", path="/banks")
    result = run(environ, "request", "GET", "/api/v2/banks")
    assert result.returncode == 4 and "did not answer" in the_line(result)


def test_foreign_certificate(environ: dict[str, str]) -> None:
    """A certificate that is not trusted is exit code 4, and the line names REQUESTS_CA_BUNDLE."""
    result = run({name: value for name, value in environ.items() if name != "REQUESTS_CA_BUNDLE"}, "token")
    assert result.returncode == 4 and "REQUESTS_CA_BUNDLE" in the_line(result)


def test_a_store_that_fails_costs_a_warning(environ: dict[str, str], bare_machine: Path) -> None:
    """``token`` works on an unusable store and warns; ``login`` and ``status`` are exit code 5."""
    folder = bare_machine / "tokens"
    folder.mkdir()
    folder.chmod(0o777)
    store = f"file:{folder}"
    result = run(environ, "--store", store, "token")
    assert result.returncode == 0 and len(result.stdout) > 20 and "get: others may write to" in the_line(result)
    for command in ("login", "status"):
        result = run(environ, "--store", store, command)
        assert result.returncode == 5 and "chmod 700" in the_line(result)


def test_redis_is_down(environ: dict[str, str]) -> None:
    """``token`` works without the Redis that was named, with one warning that hides its password."""
    result = run(environ, "--store", "redis://:redis-password@127.0.0.1:9", "token")
    assert result.returncode == 0 and "ConnectionError" in the_line(result)
    assert "redis-password" not in result.stderr


def test_wrong_api_version(environ: dict[str, str], sandbox: Sandbox) -> None:
    """A client of the other API version is exit code 3, and the line names the environment to choose."""
    sandbox.api_version = 2
    result = run(environ, "token")
    assert result.returncode == 3 and "sandbox-v2" in the_line(result)


def test_a_database_that_is_down(environ: dict[str, str]) -> None:
    """A database that cannot be opened is exit code 5, without its URL and the password in it."""
    result = run(environ, "--store", "sqlite:////no/such/folder/x.db", "token")
    assert result.returncode == 5 and "/no/such" not in the_line(result)
    result = run(environ, "--store", "postgresql+psycopg://me:my-password@127.0.0.1:9/x", "token")
    assert result.returncode == 5 and "OperationalError" in the_line(result) and "my-password" not in result.stderr


def test_a_database_file_is_its_owners(environ: dict[str, str], tmp_path: Path) -> None:
    """A SQLite database that a command makes is for its owner alone, whatever the umask, by a URI, too."""
    result = run(environ, "--store", f"sqlite:///{tmp_path}/tokens.db", "token")
    assert result.returncode == 0 and stat.S_IMODE((tmp_path / "tokens.db").stat().st_mode) == 0o600
    assert run(environ, "--store", f"sqlite:///file:{tmp_path}/other.db?uri=true", "token").returncode == 0
    assert stat.S_IMODE((tmp_path / "other.db").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("store", "code", "said"),
    [
        ("file:~nobody-of-this-name/x", 2, "there is no such home folder"),
        ("mysql+pymysql://127.0.0.1:9/x", 2, "pymysql"),
    ],
)
def test_a_store_that_this_machine_lacks(store: str, code: int, said: str, environ: dict[str, str]) -> None:
    """A home folder and a driver that are not there are said to be what is missing."""
    result = run(environ, "--store", store, "token")
    assert result.returncode == code and said in the_line(result)


# login, status, logout


def test_login_without_a_standard_input(anna: dict[str, str]) -> None:
    """A closed standard input is nobody to ask, and no mistake."""
    del anna["FINAPI_USERNAME"], anna["FINAPI_PASSWORD"]
    result = subprocess.run(
        ["bash", "-c", f"{shlex.join(COMMAND)} login <&-"], env=anna, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0 and "Logged in" in result.stdout and result.stderr == ""


def test_what_a_keyring_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package is what is missing, its extra is named."""
    assert commands._no_keyring() == "There is no keyring here"
    monkeypatch.setattr(commands, "find_spec", lambda name: None)
    assert "finapi-session[keyring]" in commands._no_keyring()


def test_login_from_the_environment(anna: dict[str, str], sandbox: Sandbox) -> None:
    """Where the environment gives all, ``login`` asks nothing, and says what stays where."""
    result = run(anna, "login")
    assert result.returncode == 0 and result.stderr == ""
    assert "Logged in: client 'sandbox-client'" in result.stdout and "user 'anna.schmidt'" in result.stdout
    assert "no keyring here: keep FINAPI_CLIENT_ID and FINAPI_CLIENT_SECRET set" in result.stdout
    assert SECRET not in result.stdout and PASSWORD not in result.stdout
    assert sandbox.count("/oauth/token", status=200) == sandbox.count() == 2


@pytest.mark.parametrize("missing", ["FINAPI_CLIENT_ID", "FINAPI_CLIENT_SECRET", "FINAPI_PASSWORD"])
def test_login_without_a_terminal_names_what_is_missing(anna: dict[str, str], missing: str) -> None:
    """Where there is nobody to ask, the line names the variable to set."""
    result = run({**anna, missing: ""}, "login")
    assert result.returncode == 2 and missing in the_line(result)


def test_login_asks_on_a_terminal(vault: Callable[[float], dict[str, str]], sandbox: Sandbox, tmp_path: Path) -> None:
    """``login`` shows no secret and keeps the client in the keyring, not the password; that is enough."""
    machine = vault(5)
    with Terminal(machine, "login") as terminal:
        terminal.answer("Client id:", "sandbox-client")
        terminal.answer("Client secret:", SECRET)
        terminal.answer("User id (Enter for none):", "anna.schmidt")
        terminal.answer("Password:", PASSWORD)
        assert terminal.end() == 0
        assert SECRET not in terminal.shown and PASSWORD not in terminal.shown
        assert "kept in the system's keyring" in terminal.shown
    kept = (tmp_path / "vault.json").read_text()
    assert SECRET in kept and PASSWORD not in kept
    assert run(machine, "request", "GET", "/api/v2/accounts", "--user", "anna.schmidt").returncode == 0
    assert run(machine, "token").returncode == 0
    assert sandbox.count("/oauth/token") == 2


def test_login_again_keeps_the_client(vault: Callable[[float], dict[str, str]], sandbox: Sandbox) -> None:
    """A second login takes the kept client by Enter, so that only the new user is typed."""
    machine = vault(5)
    assert (
        run({**machine, "FINAPI_CLIENT_ID": "sandbox-client", "FINAPI_CLIENT_SECRET": SECRET}, "login").returncode == 0
    )
    with Terminal(machine, "login", "--user", "anna.schmidt") as terminal:
        terminal.answer("Client id [sandbox-client]:", "")
        terminal.answer("Client secret (Enter for the one that is kept):", "")
        terminal.answer("Password:", PASSWORD)
        assert terminal.end() == 0 and SECRET not in terminal.shown
    assert sandbox.count("/oauth/token", status=200) == 2


def test_a_plain_text_keyring_is_not_used(vault: Callable[[float], dict[str, str]], tmp_path: Path) -> None:
    """A stopgap keyring gets no secret; a file is offered, and without it the lines to write come last of all."""
    with Terminal(vault(0.5), "login") as terminal:
        terminal.answer("Client id:", "sandbox-client")
        terminal.answer("Client secret:", SECRET)
        terminal.answer("which only you may read? [y/N]:", "")
        terminal.answer("User id (Enter for none):", "anna.schmidt")
        terminal.answer("Password:", PASSWORD)
        assert terminal.end() == 0 and SECRET not in terminal.shown
    _, found, lines = terminal.shown.partition("so the client's secret is not kept.\n")
    assert found and lines.startswith("For the next commands, and for FinapiSession.from_env() in programs, run:\n")
    assert [line.split()[-1] for line in lines.splitlines()[1:]] == [
        "FINAPI_STORE=file",
        "FINAPI_CLIENT_ID=sandbox-client",
        "secret",
        "FINAPI_USERNAME=anna.schmidt",
    ]
    assert not (tmp_path / "vault.json").exists()


def test_login_and_programs_find_each_other(environ: dict[str, str], sandbox: Sandbox) -> None:
    """With the lines that ``login`` prints, and the secret typed, a program has the token without a token call."""
    bare = {name: value for name, value in environ.items() if name in ("PATH", "HOME", *COVERAGE)}
    there = {"PYTHONPATH": str(PACKAGE), "REQUESTS_CA_BUNDLE": sandbox.ca_bundle, "TERM": "dumb"}
    nobody = {"PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"}
    options = ("--user", "anna.schmidt", "--environment", sandbox.base_url)
    with Terminal({**bare, **there, **nobody}, "login", *options) as terminal:
        terminal.answer("Client id:", "sandbox-client")
        terminal.answer("Client secret:", SECRET)
        terminal.answer("[y/N]:", "n")
        terminal.answer("Password:", PASSWORD)
        assert terminal.end() == 0
    exports = terminal.shown.partition("run:\n")[2]
    program = "from finapi_session import FinapiSession; print(FinapiSession.from_env().get('/api/v2/accounts').text)"
    for command in (
        f"{sys.executable} -c {shlex.quote(program)}",
        f"{shlex.join(COMMAND)} request GET /api/v2/accounts",
    ):
        told = subprocess.run(
            ["bash", "-c", f"{exports}\n{command}"],
            env={**bare, **there},
            input=f"{SECRET}\n",
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert told.returncode == 0 and "Girokonto" in told.stdout, told.stderr
    assert sandbox.count("/oauth/token") == 2


def test_a_database_with_a_password_is_not_repeated(environ: dict[str, str], tmp_path: Path) -> None:
    """Of a store that is a URL, ``login`` says how to set it, and does not print it."""
    url = f"sqlite:///{tmp_path}/tokens-of-mine.db"
    result = run(environ, "login", "--store", url)
    assert "read -rs FINAPI_STORE && export FINAPI_STORE   # then type what you gave to --store" in result.stdout
    assert "tokens-of-mine" not in result.stdout
    assert "FINAPI_STORE" not in run({**environ, "FINAPI_STORE": url}, "login").stdout


def test_a_private_file_for_the_client(
    vault: Callable[[float], dict[str, str]], bare_machine: Path, tmp_path: Path
) -> None:
    """Without a keyring the client may live in a file of the user's alone; a vault, or the last logout, ends that."""
    machine, folder = vault(0.5), bare_machine / ".local/state/finapi_session/clients"
    for priority in (0.5, 5):
        with Terminal(machine, "login", "--client") as terminal:
            terminal.answer("Client id:", "sandbox-client")
            terminal.answer("Client secret:", SECRET)
            terminal.answer(f"{folder}, which only you may read? [y/N]:", "y")
            assert terminal.end() == 0 and "kept there until the last logout" in terminal.shown
        [file] = [path for path in folder.iterdir() if path.is_file()]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600 and SECRET in file.read_text()
        assert run(machine, "token").returncode == 0
        with Terminal(vault(priority), "login", "--client") as terminal:
            terminal.answer("Client id [sandbox-client]:", "")
            terminal.answer("Client secret (Enter for the one that is kept):", "")
            if priority < 1:
                terminal.answer("[y/N]:", "y")
            assert terminal.end() == 0
        assert file.exists() is (priority < 1)
        assert run(machine, "logout", "--all").returncode == 0 and not file.exists()
    assert SECRET not in (tmp_path / "vault.json").read_text()


def test_a_private_file_that_others_may_write_to(vault: Callable[[float], dict[str, str]], bare_machine: Path) -> None:
    """A client is not taken from a folder in which somebody else may have put it."""
    folder = bare_machine / ".local/state/finapi_session/clients"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    result = run(vault(0.5), "token")
    assert result.returncode == 5 and f"chmod 700 {folder}" in the_line(result)


def test_login_with_a_wrong_password(vault: Callable[[float], dict[str, str]]) -> None:
    """A wrong password at login is exit code 3, and the right one works afterwards."""
    machine = {**vault(5), "FINAPI_CLIENT_ID": "sandbox-client", "FINAPI_CLIENT_SECRET": SECRET}
    for password, code in (("wrong", 3), (PASSWORD, 0)):
        with Terminal(machine, "login", "--user", "anna.schmidt") as terminal:
            terminal.answer("Password:", password)
            assert terminal.end() == code


def test_ctrl_c_at_a_question(vault: Callable[[float], dict[str, str]]) -> None:
    """Ctrl-C at a question is exit code 130, without a word."""
    with Terminal(vault(5), "login") as terminal:
        terminal.wait_for("Client id:")
        time.sleep(0.1)
        terminal.type("\x03")
        assert terminal.end() == 130 and "finapi-session:" not in terminal.shown


def test_login_takes_the_kept_client_without_a_terminal(
    vault: Callable[[float], dict[str, str]], sandbox: Sandbox
) -> None:
    """Where nobody can be asked, ``login`` takes the client that an earlier one kept."""
    machine = vault(5)
    run({**machine, "FINAPI_CLIENT_ID": "sandbox-client", "FINAPI_CLIENT_SECRET": SECRET}, "login")
    result = run({**machine, "FINAPI_USERNAME": "anna.schmidt", "FINAPI_PASSWORD": PASSWORD}, "login")
    assert result.returncode == 0 and "user 'anna.schmidt'" in result.stdout


def test_keyring_store(vault: Callable[[float], dict[str, str]], sandbox: Sandbox, bare_machine: Path) -> None:
    """With ``--store keyring`` the token is in the keyring, found by the next run, and in no file."""
    machine = {**vault(5), "FINAPI_CLIENT_ID": "sandbox-client", "FINAPI_CLIENT_SECRET": SECRET}
    token = run(machine, "--store", "keyring", "token").stdout.strip()
    assert token and run(machine, "--store", "keyring", "token").stdout.strip() == token
    assert sandbox.count("/oauth/token") == 1
    assert not [file for file in bare_machine.rglob("*") if file.is_file() and token in file.read_text()]


def test_login_with_memory_says_that_nothing_stays(environ: dict[str, str]) -> None:
    """``login`` into memory is told to be in vain."""
    assert "choose another --store" in run(environ, "--store", "memory", "login").stdout


def test_status(anna: dict[str, str], sandbox: Sandbox) -> None:
    """``status`` lists who is logged in, where and for how long, without finAPI, a secret or a token."""
    token = run(anna, "token").stdout.strip()
    run(anna, "token", "--client")
    sandbox_calls = sandbox.count()
    blind = {name: value for name, value in anna.items() if name not in ("FINAPI_CLIENT_SECRET", "FINAPI_PASSWORD")}
    result = run(blind, "status")
    assert result.returncode == 0 and result.stdout.startswith("2 identities in FileStore(")
    assert f"user anna.schmidt of client sandbox-client at {sandbox.base_url}: token valid for 59 min" in result.stdout
    assert token not in result.stdout and sandbox.count() == sandbox_calls
    document = json.loads(run(blind, "status", "--json").stdout)
    client, user = document["identities"]
    assert (client["username"], user["username"]) == (None, "anna.schmidt")
    assert user["token"] == "valid" and 3500 < user["expires_in"] <= 3600 and user["renewable"] is True
    assert client["renewable"] is False and document["environment"] == sandbox.base_url


def test_status_of_tokens_that_expired_and_that_never_do(environ: dict[str, str], sandbox: Sandbox) -> None:
    """An expired token is told as such, and one that lives for ever has no end."""
    sandbox.lifetime = 1
    run(environ, "token")
    time.sleep(1.1)
    assert json.loads(run(environ, "status", "--json").stdout)["identities"][0]["token"] == "expired"
    sandbox.lifetime = 0
    run(environ, "token")
    assert run(environ, "status").stdout.endswith(": token valid\n")
    (row,) = json.loads(run(environ, "status", "--json").stdout)["identities"]
    assert (row["token"], row["expires_in"]) == ("valid", None)


def test_status_of_a_token_that_is_junk(environ: dict[str, str], bare_machine: Path) -> None:
    """A token that cannot be read is none."""
    run(environ, "token")
    for file in (bare_machine / ".local/state/finapi_session").iterdir():
        if file.is_file() and "access_token" in file.read_text():
            file.write_text("junk")
    assert run(environ, "status").stdout.endswith(": no token\n")


def test_status_of_nobody_and_of_a_broken_index(environ: dict[str, str], bare_machine: Path) -> None:
    """An empty store and one whose files are junk list nobody."""
    assert run(environ, "status").stdout.startswith("No identities in ")
    run(environ, "token")
    for file in (bare_machine / ".local/state/finapi_session").iterdir():
        if file.is_file():
            file.write_text("junk")
    result = run(environ, "status")
    assert result.returncode == 0 and result.stdout.startswith("No identities in ")


def test_logout_revokes_and_forgets_one(anna: dict[str, str], sandbox: Sandbox) -> None:
    """``logout`` revokes and forgets the user's tokens; the client that had to help is listed then."""
    token = run(anna, "token").stdout.strip()
    result = run(anna, "logout")
    assert result.returncode == 0 and "Logged out: user 'anna.schmidt'" in result.stdout
    assert sandbox.count("/oauth/revoke", status=200, revoked="anna.schmidt") == 1
    assert sandbox.session(token={"access_token": token}).get("/api/v2/banks").request.headers["Authorization"] != token
    rows = json.loads(run(anna, "status", "--json").stdout)["identities"]
    assert [row["username"] for row in rows] == [None]


def test_logout_all(anna: dict[str, str], sandbox: Sandbox, bare_machine: Path) -> None:
    """``logout --all`` revokes every token, users' before the client's, and leaves none behind."""
    sandbox.add_user("berta", "pw")
    run(anna, "token")
    run({**anna, "FINAPI_USERNAME": "berta", "FINAPI_PASSWORD": "pw"}, "token")
    assert run(anna, "logout", "--all").returncode == 0
    revoked = [call.revoked for call in sandbox.calls if call.path.endswith("/oauth/revoke")]
    assert revoked == ["anna.schmidt", "berta", "client"]
    assert run(anna, "status").stdout.startswith("No identities")
    assert not [file for file in (bare_machine / ".local/state/finapi_session").iterdir() if file.is_file()]


def test_the_last_logout_takes_the_kept_secret(vault: Callable[[float], dict[str, str]], tmp_path: Path) -> None:
    """The keyring holds the client's secret while any of its tokens is kept, and no longer."""
    machine = vault(5)
    given = {**machine, "FINAPI_CLIENT_ID": "sandbox-client", "FINAPI_CLIENT_SECRET": SECRET}
    run({**given, "FINAPI_USERNAME": "anna.schmidt", "FINAPI_PASSWORD": PASSWORD}, "login")
    assert run(machine, "logout").returncode == 0
    assert SECRET in (tmp_path / "vault.json").read_text()
    assert run(machine, "logout", "--all").returncode == 0
    assert SECRET not in (tmp_path / "vault.json").read_text()


def test_logout_after_the_client_secret_changed(anna: dict[str, str], sandbox: Sandbox) -> None:
    """A user's token had under the old secret is revoked with the new one."""
    run(anna, "token")
    sandbox.change_client_secret("new-secret")
    result = run({**anna, "FINAPI_CLIENT_SECRET": "new-secret"}, "logout")
    assert result.returncode == 0
    assert sandbox.count("/oauth/revoke", status=200, revoked="anna.schmidt") == 1
    rows = json.loads(run(anna, "status", "--json").stdout)["identities"]
    assert [row["username"] for row in rows] == [None]


def test_logout_that_fails_keeps_the_token(environ: dict[str, str], sandbox: Sandbox) -> None:
    """A token that finAPI did not revoke stays listed, and the line says to try again."""
    run(environ, "token")
    sandbox.answer_next(503, path="/oauth/revoke", times=9)
    result = run(environ, "logout", "--all")
    assert result.returncode == 4 and "try again" in result.stderr
    assert run(environ, "status").stdout.startswith("1 identity")


@pytest.mark.parametrize("hint", [None, "access_token", "refresh_token"])
def test_revoke_a_token_from_standard_input(hint: str | None, environ: dict[str, str], sandbox: Sandbox) -> None:
    """A leaked token is revoked by the client, whose own is listed like any other; nothing repeats it."""
    leaked = sandbox.session(sandbox.username, revoke_on_close=False).fetch_token()
    text = leaked.refresh_token if hint == "refresh_token" else leaked.access_token
    result = run(environ, "revoke", *(("--hint", hint) if hint else ()), stdin=f"{text}\n")
    assert (result.returncode, result.stdout) == (0, f"Revoked at {sandbox.base_url}, if finAPI knew it.\n")
    assert [call.revoked for call in sandbox.calls if call.path == "/oauth/revoke"] == [sandbox.username]
    assert str(text) not in result.stderr + result.stdout
    assert "sandbox-client" in run(environ, "status").stdout


@pytest.mark.parametrize("junk", ["", "two\nlines", "t\u00f6ken", "x" * 16_385], ids=["none", "two", "umlaut", "long"])
def test_revoke_junk(junk: str, environ: dict[str, str], sandbox: Sandbox) -> None:
    """What cannot be a token is refused in one line before anything is sent."""
    result = run(environ, "revoke", stdin=junk)
    assert result.returncode == 2 and the_line(result).startswith("token must be text")
    assert sandbox.calls == []


def test_revoke_bytes_that_are_no_text(environ: dict[str, str]) -> None:
    """Bytes on standard input that are no text are a mistake of whoever typed the command."""
    result = subprocess.run([*COMMAND, "revoke"], env=environ, input=b"\xff\xfe", capture_output=True, timeout=60)
    assert result.returncode == 2 and b"token must be text" in result.stderr


def test_revoke_without_a_standard_input(environ: dict[str, str]) -> None:
    """A process without a standard input is told what is missing."""
    command = f"exec {shlex.join([*COMMAND, 'revoke'])} <&-"
    result = subprocess.run(["sh", "-c", command], env=environ, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and "standard input" in result.stderr


def test_logout_of_nobody(anna: dict[str, str], sandbox: Sandbox) -> None:
    """To log out who is not logged in costs no call."""
    result = run(anna, "logout")
    whom = f"user 'anna.schmidt' at {sandbox.base_url}"
    assert (result.returncode, result.stdout) == (0, f"Nobody to log out: no token was kept of {whom}.\n")
    assert sandbox.count() == 0


def test_logout_where_nobody_is_logged_in(vault: Callable[[float], dict[str, str]], anna: dict[str, str]) -> None:
    """On a machine where nothing is known that is what is said; where others are logged in, the client is missing."""
    for arguments in (["logout"], ["logout", "--all"], ["logout", "--user", "anna.schmidt"]):
        result = run(vault(0.5), *arguments)
        assert (result.returncode, result.stdout, result.stderr) == (0, "Nobody is logged in.\n", "")
    run(anna, "token")
    result = run(vault(0.5), "logout")
    assert result.returncode == 3 and "the secret of a client" in the_line(result)


def test_logout_all_goes_on_where_a_client_is_not_known(environ: dict[str, str], sandbox: Sandbox) -> None:
    """Who cannot be logged out stays listed and makes it exit code 3; the others are logged out."""
    elsewhere = {**environ, "FINAPI_ENVIRONMENT": sandbox.base_url.replace("127.0.0.1", "localhost")}
    assert run(environ, "token").returncode == run(elsewhere, "token").returncode == 0
    result = run(environ, "logout", "--all")
    assert result.returncode == 3 and "Not logged out: client 'sandbox-client' at https://localhost" in result.stderr
    (row,) = json.loads(run(environ, "status", "--json").stdout)["identities"]
    assert row["environment"].startswith("https://localhost")
    assert run(elsewhere, "logout", "--all").returncode == 0


# Interruptions


def test_ctrl_c_in_a_slow_request(environ: dict[str, str], sandbox: Sandbox) -> None:
    """Ctrl-C while finAPI is slow ends at once, with exit code 130 and no word."""
    run(environ, "token")
    sandbox.latency = {"/banks": 20}
    process = subprocess.Popen(
        [*COMMAND, "request", "GET", "/api/v2/banks"],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 20
    while sandbox.connections < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=5)
    assert (process.returncode, out, err.strip()) == (130, b"", b"")


@pytest.mark.parametrize("arguments", ["request GET /api/v2/transactions --all-pages", "--help", "token"])
def test_closed_pipe(anna: dict[str, str], arguments: str) -> None:
    """Where the reader has gone, the command ends quietly with 141, as ``cat`` does."""
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run([*COMMAND, *arguments.split()], env=anna, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert result.returncode == 141
    assert b"Traceback" not in result.stderr and b"Broken" not in result.stderr and b"ignored" not in result.stderr


def test_pipe_into_head(anna: dict[str, str]) -> None:
    """A pipe whose reader leaves early gets what it wanted, without complaint."""
    line = f"{shlex.join(COMMAND)} request GET /api/v2/transactions --all-pages 2>/dev/null | head -c 20"
    result = subprocess.run(["bash", "-c", line], env=anna, capture_output=True, text=True, timeout=60)
    assert (result.returncode, len(result.stdout), result.stderr) == (0, 20, "")


def test_full_disk(environ: dict[str, str]) -> None:
    """Output that cannot be written is an error in one line."""
    with open("/dev/full", "wb") as full:
        result = subprocess.run([*COMMAND, "token"], env=environ, stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert result.returncode == 5 and result.stderr.count(b"\n") == 1 and b"No space left" in result.stderr


# Secrets


def test_no_secret_is_seen(anna: dict[str, str], sandbox: Sandbox, bare_machine: Path) -> None:
    """Neither output of any command nor a file that others may read holds a secret or a token."""
    token = run(anna, "token").stdout.strip()
    client_token = run(anna, "token", "--client").stdout.strip()
    for arguments in (
        ["-vv", "login"],
        ["-vv", "status"],
        ["-vv", "request", "GET", "/api/v2/accounts"],
        ["-v", "logout"],
    ):
        result = run(anna, *arguments)
        for secret in (SECRET, PASSWORD, token, client_token):
            assert secret not in result.stdout + result.stderr
    files = [path for path in bare_machine.rglob("*") if "finapi_session" in path.parts]
    assert files
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
        if path.is_file():
            assert SECRET not in path.read_text() and PASSWORD not in path.read_text()


def test_verbose_logs_to_stderr(environ: dict[str, str]) -> None:
    """``-v`` tells on standard error what happened to the token; standard output stays as it was."""
    result = run(environ, "-v", "token")
    assert result.stderr.startswith("INFO token issued: client 'sandbox-client'") and result.stdout.count("\n") == 1


def test_closed_stdout(environ: dict[str, str]) -> None:
    """Without a standard output there is nothing to complain about."""
    line = f"{shlex.join(COMMAND)} status >&-"
    result = subprocess.run(["bash", "-c", line], env=environ, capture_output=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, b"")


def test_ctrl_c_before_the_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the command is still being loaded is exit code 130 too."""
    monkeypatch.setattr(cli, "_run", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130


def test_a_mistake_of_ours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An exception that nobody foresaw is one line with its class; its text might be a secret."""
    monkeypatch.setattr(cli, "_run", Mock(side_effect=RuntimeError("secret")))
    with pytest.raises(SystemExit) as end:
        cli.main()
    err = capsys.readouterr().err
    assert end.value.code == 70 and "RuntimeError" in err and err.count("\n") == 1 and "secret" not in err


# sandbox


@pytest.fixture
def served(environ: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """``finapi-session sandbox`` on a machine with proxies, and what it printed to export."""
    bare = {name: value for name, value in environ.items() if "FINAPI" not in name and "BUNDLE" not in name}
    proxies = {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "intern.example"}
    with subprocess.Popen(
        [*COMMAND, "sandbox"],
        env={**bare, **proxies},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(9)]
            exports = dict(shlex.split(line)[1].split("=", 1) for line in lines if line.startswith("export "))
            yield process, {**bare, **proxies, **exports}
        finally:
            process.kill()


def test_sandbox_is_reached_as_it_prints(served: tuple[Any, dict[str, str]]) -> None:
    """With the printed lines every command reaches the sandbox, past the machine's proxies."""
    _, machine = served
    assert machine["no_proxy"] == "127.0.0.1,intern.example"
    result = run(machine, "request", "GET", "/api/v2/accounts")
    assert result.returncode == 0 and "Girokonto" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sandbox_ends_by_signal(served: tuple[Any, dict[str, str]], number: int) -> None:
    """Ctrl-C and SIGTERM end the sandbox cleanly: exit code 0, and its certificate is removed."""
    process, machine = served
    assert Path(machine["REQUESTS_CA_BUNDLE"]).exists()
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 0 and "Traceback" not in err
    assert not Path(machine["REQUESTS_CA_BUNDLE"]).exists()


def test_sandbox_without_proxies(environ: dict[str, str]) -> None:
    """Where the machine has no proxy, none is to be passed by."""
    with subprocess.Popen([*COMMAND, "sandbox"], env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "CURL_CA_BUNDLE" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == ""


def test_sandbox_on_a_port_that_is_taken(environ: dict[str, str], sandbox: Sandbox) -> None:
    """A port that is taken is told in one line, as the wrong usage that it is."""
    result = run(environ, "sandbox", "--port", sandbox.base_url.rpartition(":")[2])
    assert result.returncode == 2 and "in use" in the_line(result)


def test_sandbox_runs_a_command_in_its_environment(environ: dict[str, str]) -> None:
    """After ``--`` a command finds the sandbox in its environment, has the output to itself, and its code is ours."""
    code = (
        "from finapi_session import FinapiSession; "
        "print(FinapiSession.from_env().get('/api/v2/accounts').status_code); exit(7)"
    )
    result = run(environ, "sandbox", "--", sys.executable, "-c", code)
    assert (result.returncode, result.stdout, result.stderr) == (7, "200\n", "")


def test_sandbox_ends_with_its_command_however_it_ends(environ: dict[str, str]) -> None:
    """A command that a signal ends is told as shells do; one that is not there is told in one line."""
    assert run(environ, "sandbox", "--", "sh", "-c", "kill -KILL $$").returncode == 137
    missing = run(environ, "sandbox", "no-such-command", "--port")
    assert missing.returncode == 2 and "no-such-command cannot be run" in the_line(missing)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sandbox_passes_signals_to_its_command(environ: dict[str, str], number: int, tmp_path: Path) -> None:
    """SIGTERM is handed on, Ctrl-C reaches both at a terminal; the command ends first, with the code that it likes."""
    line = f"trap 'exit 9' INT TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done"
    with subprocess.Popen([*COMMAND, "sandbox", "bash", "-c", line], env=environ, start_new_session=True) as process:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            time.sleep(0.02)
        send = os.killpg if number == signal.SIGINT else os.kill
        send(process.pid, number)
        assert process.wait(20) == 9


def test_sandbox_writes_its_variables_to_a_file(environ: dict[str, str], tmp_path: Path) -> None:
    """The file is the owner's alone, sets the same variables in a shell, and goes when the sandbox ends."""
    path = tmp_path / "sandbox.env"
    for _ in range(2):
        same = f'test "$(. {path}; echo $FINAPI_PASSWORD)" = "$FINAPI_PASSWORD"'
        line = f"{same} && stat -c %a {path} && grep -c = {path}"
        result = run(environ, "sandbox", "--env-file", str(path), "--", "bash", "-c", line)
        assert (result.returncode, result.stdout) == (0, "600\n7\n"), result.stderr
        assert list(tmp_path.iterdir()) == []
        path.write_text("# Written by finapi-session sandbox; it is left of one that was killed.")


def test_sandbox_leaves_files_of_others_alone(environ: dict[str, str], tmp_path: Path) -> None:
    """A file of variables that is somebody's own is not written over, and one that cannot be written is told."""
    path = tmp_path / ".env"
    path.write_text("SECRET_KEY=mine")
    theirs = run(environ, "sandbox", "--env-file", str(path), "--", "true")
    assert theirs.returncode == 2 and "is there already" in the_line(theirs)
    assert path.read_text() == "SECRET_KEY=mine"
    nowhere = run(environ, "sandbox", "--env-file", str(tmp_path / "no" / "where"), "--", "true")
    assert nowhere.returncode == 2 and "cannot be written" in the_line(nowhere)
    gone = run(environ, "sandbox", "--env-file", str(tmp_path / "x"), "--", "rm", str(tmp_path / "x"))
    assert gone.returncode == 0


def test_sandbox_keeps_its_certificate(environ: dict[str, str], tmp_path: Path) -> None:
    """With ``--ca-file`` the certificate that was trusted once is that of the next start."""
    path = tmp_path / "ca.pem"
    told = run(environ, "sandbox", "--ca-file", str(path), "--", "sh", "-c", "echo $REQUESTS_CA_BUNDLE")
    kept = path.read_bytes()
    assert told.stdout == f"{path}\n"
    again = run(environ, "sandbox", "--ca-file", str(path), "--", *COMMAND, "request", "GET", "/api/v2/banks")
    assert again.returncode == 0 and path.read_bytes() == kept
    path.write_text("notes")
    junk = run(environ, "sandbox", "--ca-file", str(path), "--", "true")
    assert junk.returncode == 2 and "no certificate authority" in the_line(junk)
    nowhere = run(environ, "sandbox", "--ca-file", str(tmp_path / "no" / "where"), "--", "true")
    assert nowhere.returncode == 2 and "--ca-file" in the_line(nowhere)


def test_the_package_itself_is_the_command(environ: dict[str, str]) -> None:
    """``python -m finapi_session`` is the same program under the same name."""
    command = [sys.executable, "-m", "finapi_session", "-h"]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, run(environ, "-h").stdout)


def test_a_password_of_somebody_else_is_not_taken_for_a_users(anna: dict[str, str], sandbox: Sandbox) -> None:
    """Without a terminal, the line says which two variables are to be set for this user."""
    result = run(anna, "login", "--user", "alice")
    assert result.returncode == 2 and "set FINAPI_USERNAME=alice and FINAPI_PASSWORD" in the_line(result)


def test_users_are_told_apart_as_finapi_does() -> None:
    """Only the case of ASCII letters does not count: two users with other keys are two in the list."""
    client = Client("id", "secret")
    one, same, other = (Login.of(client, name, SANDBOX) for name in ("ÄnnA", "ÄNNa", "änna"))
    assert one == same and one.key == same.key
    assert one != other and one.key != other.key


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], [], ["--version"]])
def test_help_needs_no_requests(arguments: list[str]) -> None:
    """Help and version come without the libraries that calls need: most of what a start would cost."""
    code = (
        f"import sys; sys.argv[1:] = {arguments!r}\n"
        "from finapi_session.cli.__main__ import main\n"
        "try:\n    main()\n"
        "except SystemExit as ending:\n"
        "    heavy = {'requests', 'urllib3', 'oauthlib', 'finapi_session.session'} & set(sys.modules)\n"
        "    print(ending.code, sorted(heavy))"
    )
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE).stdout
    assert told.endswith("\n0 []\n") and "finapi-session" in told


# --- a database file, a keyring, an index that somebody else may have made ------------------------------------------


@pytest.fixture
def open_machine(environ: dict[str, str]) -> Iterator[tuple[dict[str, str], Path]]:
    """A folder in which every user may search, and the environment."""
    with TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield environ, Path(folder)


def planted(folder: Path, owner: int, mode: int, name: str = "tokens.db") -> Path:
    """Put a database with a table like ours into *folder*, of that owner and mode."""
    path = folder / name
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE finapi_session_tokens (name VARCHAR(64) PRIMARY KEY, value TEXT NOT NULL)")
    os.chown(path, owner, owner)
    path.chmod(mode)
    return path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be someone else")
@pytest.mark.parametrize(
    ("owner", "mode", "advice"),
    [
        (4242, 0o600, "belongs to another user: name a file of your own"),
        (4242, 0o666, "belongs to another user"),
        (0, 0o666, "others may open {}: run 'chmod 600 {}'"),
        (0, 0o644, "others may open {}: run 'chmod 600 {}'"),
        (0, 0o660, "others may open {}: run 'chmod 600 {}'"),
    ],
)
@pytest.mark.parametrize("url", ["sqlite:///{}", "sqlite:///file:{}?uri=true", "sqlite:///{}/../tokens.db"])
def test_a_database_file_that_others_may_open(
    open_machine: tuple[dict[str, str], Path], owner: int, mode: int, advice: str, url: str
) -> None:
    """A SQLite file of another user, or that others may open, gets no token, whatever the URL calls it."""
    environ, folder = open_machine
    (folder / "sub").mkdir()
    path = planted(folder, owner, mode)
    place = str(folder / "sub") if ".." in url else str(path)
    result = run(environ, "--store", url.format(place), "token")
    assert result.returncode == 5 and result.stdout == ""
    said = the_line(result)
    assert advice.partition("{}")[0] in said and ("chmod" not in advice or "chmod 600" in said)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM finapi_session_tokens").fetchone() == (0,)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be someone else")
@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_database_in_a_folder_that_others_may_write_to(open_machine: tuple[dict[str, str], Path], mode: int) -> None:
    """Beside the file others could plant a journal, which SQLite would play back; nothing is made there."""
    environ, folder = open_machine
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(mode)
    result = run(environ, "--store", f"sqlite:///{shared}/tokens.db", "token")
    assert result.returncode == 5 and f"others may write to {shared}" in the_line(result)
    assert not list(shared.iterdir())


def test_a_database_of_ones_own(environ: dict[str, str], tmp_path: Path) -> None:
    """One's own file goes on working, by a URI too, which is made for its owner alone as well."""
    for url in (f"sqlite:///{tmp_path}/a.db", f"sqlite:///file:{tmp_path}/b%20b.db?uri=true"):
        assert run(environ, "--store", url, "token").stdout == run(environ, "--store", url, "token").stdout
    made = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir() if path.is_file()}
    assert made == {"a.db": 0o600, "b b.db": 0o600}


def test_a_keyring_in_plain_text_is_no_store(vault: Callable[[float], dict[str, str]], tmp_path: Path) -> None:
    """``--store keyring`` on a stopgap is exit code 5 and says what to do; nothing is written to it."""
    machine = {**vault(0.5), "FINAPI_CLIENT_ID": "sandbox-client", "FINAPI_CLIENT_SECRET": SECRET}
    result = run(machine, "--store", "keyring", "token")
    assert result.returncode == 5 and result.stdout == ""
    assert "Vault" in the_line(result) and "plain text" in the_line(result)
    assert "install a vault" in the_line(result) and "--store file" in the_line(result)
    assert "plaintext=True" not in the_line(result) and not (tmp_path / "vault.json").exists()


def index_of(home: Path) -> Path:
    """Return the file with the list of identities."""
    folder = home / ".local/state/finapi_session"
    [path] = [file for file in folder.iterdir() if file.is_file() and file.read_text().startswith("[")]
    return path


JUNK_ENTRIES: list[Any] = [
    {"base_url": "not an address"},
    {"base_url": "http://127.0.0.1"},
    {"base_url": 7},
    {"oauth_path": "oauth"},
    {"client_id": 7},
    {"username": ["anna"]},
    {"key": None},
    {"more": "x"},
    "junk",
    None,
]


@pytest.mark.parametrize("change", JUNK_ENTRIES, ids=str)
def test_junk_in_the_index(environ: dict[str, str], bare_machine: Path, change: Any) -> None:
    """An entry that is none is skipped with one warning; the others are listed, and the next login drops it."""
    run(environ, "token")
    path = index_of(bare_machine)
    [entry] = json.loads(path.read_text())
    path.write_text(json.dumps([{**entry, **change} if isinstance(change, dict) else change, entry]))
    result = run(environ, "status")
    assert result.returncode == 0 and result.stdout.startswith("1 identity in "), result.stderr
    assert the_line(result) == "1 entry in the list of logins cannot be read and is skipped."
    assert run(environ, "logout", "--client").returncode == 0
    assert run(environ, "status").stderr == ""


def test_an_index_that_is_no_list(environ: dict[str, str], bare_machine: Path) -> None:
    """What is no list at all is an empty one, with a warning."""
    run(environ, "token")
    index_of(bare_machine).write_text('["')
    result = run(environ, "status")
    assert result.returncode == 0 and result.stdout.startswith("No identities in ")
    assert the_line(result) == "The list of logins cannot be read and is taken for empty."


EVIL = "anna\x1b]0;owned\x07\n\u202eevil\x9b2J"


@pytest.mark.parametrize("field", ["username", "client_id"])
def test_names_in_the_index_reach_no_terminal_raw(environ: dict[str, str], bare_machine: Path, field: str) -> None:
    """Whoever can write to the store cannot move the cursor, hide a line or turn the writing around."""
    run(environ, "token")
    path = index_of(bare_machine)
    [entry] = json.loads(path.read_text())
    path.write_text(json.dumps([{**entry, field: EVIL}]))
    for arguments in (("status",), ("status", "--json"), ("logout", "--all")):
        result = run(environ, *arguments)
        shown = result.stdout + result.stderr
        assert all(character.isprintable() or character == "\n" for character in shown), shown
        assert "owned" in shown and "\nevil" not in shown


# --- purge --------------------------------------------------------------------------------------------------------


def grow_old(folder: Path, days: int) -> None:
    """Make all files in *folder* that old."""
    then = time.time() - days * 86_400
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def test_purge_of_files(anna: dict[str, str], bare_machine: Path) -> None:
    """``purge`` removes what is older, lists it no longer, keeps the list itself, and says how many went."""
    folder = bare_machine / ".local/state/finapi_session"
    run(anna, "token")
    run(anna, "token", "--client")
    grow_old(folder, 89)
    result = run(anna, "purge", "--older-than", "90d")
    assert result.returncode == 0 and result.stdout == "Nothing is older than 90d.\n"
    assert run(anna, "status").stdout.startswith("2 identities in ")
    grow_old(folder, 91)
    [hers] = [path for path in folder.glob("?" * 64) if '"refresh_token": "' in path.read_text()]
    os.utime(hers)
    result = run(anna, "purge", "--older-than", "90d")
    assert result.returncode == 0 and re.fullmatch(r"Removed \d values? older than 90d.\n", result.stdout)
    status = run(anna, "status").stdout
    assert status.startswith("1 identity in ") and "anna.schmidt" in status


def test_purge_of_a_database(anna: dict[str, str], tmp_path: Path) -> None:
    """It does the same in a database."""
    store = ("--store", f"sqlite:///{tmp_path}/tokens.db")
    run(anna, *store, "token")
    with contextlib.closing(sqlite3.connect(tmp_path / "tokens.db")) as connection, connection:
        connection.execute("UPDATE finapi_session_tokens SET updated = updated - 7200")
    assert run(anna, *store, "purge", "--older-than", "3h").stdout == "Nothing is older than 3h.\n"
    with contextlib.closing(sqlite3.connect(tmp_path / "tokens.db")) as connection, connection:
        connection.execute("UPDATE finapi_session_tokens SET updated = updated - 90000 WHERE value LIKE '[%'")
    assert run(anna, *store, "purge", "--older-than", "1d").stdout == "Nothing is older than 1d.\n"
    assert "anna.schmidt" in run(anna, *store, "status").stdout
    with contextlib.closing(sqlite3.connect(tmp_path / "tokens.db")) as connection, connection:
        connection.execute("UPDATE finapi_session_tokens SET updated = updated - 7200")
    assert run(anna, *store, "purge", "--older-than", "60m").stdout.startswith("Removed ")
    assert run(anna, *store, "status").stdout.startswith("No identities in ")


def test_purge_of_a_table_without_ages(anna: dict[str, str], tmp_path: Path) -> None:
    """A table from before says which statement it needs."""
    planted(tmp_path, os.geteuid(), 0o600)
    result = run(anna, "--store", f"sqlite:///{tmp_path}/tokens.db", "purge", "--older-than", "1d")
    assert result.returncode == 5 and "ALTER TABLE finapi_session_tokens ADD COLUMN updated BIGINT" in the_line(result)


@pytest.mark.parametrize("given", ["0d", "-1d", "90", "d", "1y", "nan d", "", "1e400d", "٣d"])
def test_purge_with_a_junk_age(environ: dict[str, str], given: str) -> None:
    """What is no age is wrong usage, and the option is named."""
    result = run(environ, "purge", "--older-than", given)
    assert result.returncode == 2 and "'--older-than'" in the_line(result) and "such as 90d" in the_line(result)


@pytest.mark.parametrize(("store", "said"), [("memory", "nothing"), ("redis://127.0.0.1:9", "expire_after")])
def test_purge_of_a_store_that_has_none(environ: dict[str, str], store: str, said: str) -> None:
    """A store that ends its values in another way, or with the process, says so."""
    result = run(environ, "--store", store, "purge", "--older-than", "90d")
    assert result.returncode == 2 and said in the_line(result)


def test_purge_of_a_folder_that_others_may_write_to(environ: dict[str, str], tmp_path: Path) -> None:
    """What the store refuses is exit code 5, with what to do."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    result = run(environ, "--store", f"file:{folder}", "purge", "--older-than", "90d")
    assert result.returncode == 5 and f"chmod 700 {folder}" in the_line(result)
