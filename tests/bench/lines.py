"""Counts the lines that five usual jobs take with each library, after running them: ``python -m tests.bench.lines``."""

from __future__ import annotations

import ast
import io
import logging
import os
import stat
import sys
import tempfile
import time
import tokenize
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from finapi_session.testing import Sandbox

ANNA, ACCOUNTS = "anna.schmidt", "/api/v2/accounts"
#: By name: the module of a program, and what it needs.
PROGRAMS = {
    "finapi_session": ("ours", "finapi_session"),
    "Authlib": ("with_authlib", "authlib"),
    "requests-oauthlib": ("with_requests_oauthlib", "requests_oauthlib"),
    "google-auth": ("with_google_auth", "google.auth"),
}
_SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


class Login(NamedTuple):
    """What each program is given: where finAPI is, who signs in, and a folder of its own."""

    base_url: str
    ca_bundle: str
    client_id: str
    client_secret: str
    username: str | None
    password: str | None
    folder: str


def available() -> dict[str, str]:
    """Return the modules of the programs whose library is installed, by name."""
    return {name: module for name, (module, needs) in PROGRAMS.items() if _installed(needs)}


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def count(source: str) -> int:
    """Count the lines of *source* that hold code: no blank ones, comments or docstrings; imports count."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {line for token in tokens if token.type not in _SILENT for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def source_of(module: str) -> str:
    """Return the text of a program."""
    return (Path(__file__).parent / "jobs" / f"{module}.py").read_text(encoding="utf-8")


def run(module: str) -> None:
    """Do all five jobs with a program; raises ``AssertionError`` for one that it does not do."""
    make = import_module(f"tests.bench.jobs.{module}").make
    with Sandbox() as sandbox:
        for job in JOBS:
            sandbox.reset()
            with tempfile.TemporaryDirectory() as folder:
                job(sandbox, partial(_made, make, sandbox, folder))
                assert not [path for path in Path(folder).rglob("*") if stat.S_IMODE(path.stat().st_mode) & 0o077]


def _made(make: Callable[[Login], Any], sandbox: Sandbox, folder: str, username: str | None = ANNA) -> Any:
    return make(_login(sandbox, username, folder))


def _login(sandbox: Sandbox, username: str | None, folder: str) -> Login:
    password = sandbox.users[username].password if username else None
    credentials = (sandbox.client_id, sandbox.client_secret, username, password)
    return Login(sandbox.base_url, sandbox.ca_bundle, *credentials, folder)


def call_as_client_and_user(sandbox: Sandbox, make: Callable[..., Any]) -> None:
    """1. Call as the client, and as a user."""
    assert make(None).get("/api/v2/clientConfiguration").status_code == 200
    assert make().get(ACCOUNTS).status_code == 200


def renew_at_expiry(sandbox: Sandbox, make: Callable[..., Any]) -> None:
    """2. Go on after a token's end, without sending the password again."""
    sandbox.lifetime = 1
    session = make()
    session.get(ACCOUNTS)
    time.sleep(1.1)
    sandbox.lifetime = 3600
    assert session.get(ACCOUNTS).status_code == 200
    assert sandbox.count("/oauth/token", grant_type="refresh_token") >= 1
    assert sandbox.count("/oauth/token", grant_type="password") == 1


def heal_a_401(sandbox: Sandbox, make: Callable[..., Any]) -> None:
    """3. Go on after a token, then the refresh token too, was revoked."""
    session = make()
    session.get(ACCOUNTS)
    for refresh in (False, True):
        sandbox.revoke_tokens(ANNA, refresh=refresh)
        assert session.get(ACCOUNTS).status_code == 200


def keep_the_token(sandbox: Sandbox, make: Callable[..., Any]) -> None:
    """4. Keep the token for the next run; :func:`run` sees to it that the file is the owner's alone."""
    first = make()
    assert first.get(ACCOUNTS).status_code == make().get(ACCOUNTS).status_code == 200
    assert sandbox.count("/oauth/token") == 1


def renew_once_for_all_threads(sandbox: Sandbox, make: Callable[..., Any]) -> None:
    """5. Renew once, however many threads find the token revoked."""
    session = make()
    session.get(ACCOUNTS)
    before = sandbox.count("/oauth/token")
    sandbox.revoke_tokens(ANNA)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: session.get(ACCOUNTS).status_code, range(8)))
    assert answers == [200] * 8 and sandbox.count("/oauth/token") == before + 1


JOBS = (call_as_client_and_user, renew_at_expiry, heal_a_401, keep_the_token, renew_once_for_all_threads)


def table() -> Iterator[str]:
    """Yield the lines of the README's table, after running each program that can be run here."""
    rows = [(name, str(count(source_of(module)))) for name, module in available().items()]
    width = max(len(name) for name, _ in rows)
    rule = f"{'=' * width}  ====="
    yield from (rule, f"{'With':{width}}  Lines", rule)
    for name, lines in rows:
        run(available()[name])
        yield f"{name:{width}}  {lines}"
    yield rule


def main() -> int:
    """Print the table."""
    # Where the machine names certificates, most of the libraries would take those.
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        os.environ.pop(name, None)
    logging.getLogger("finapi_session").addHandler(logging.NullHandler())
    print("\n".join(table()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
