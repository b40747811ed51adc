"""``finapi-session check`` tells what a deployment wants to know, and its exit code what failed first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import freezegun
import pytest

from finapi_session import MemoryStore
from finapi_session.cli import check as looks
from finapi_session.cli.check import check
from finapi_session.cli.clients import Client
from finapi_session.environment import Environment
from finapi_session.errors import LoginRequiredError
from finapi_session.testing import Sandbox

from .test_cli import environ, run

__all__ = ["environ"]


def marks(text: str) -> dict[str, str]:
    """Return what each line tells, by mark and subject."""
    rows = [re.split(r" {2,}", line.strip(), maxsplit=2) for line in text.splitlines()]
    return {f"{mark} {what}": told for mark, what, told in rows}


@pytest.fixture
def look(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Check the sandbox in this process; returns the exit code and what was told."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", sandbox.ca_bundle)

    def run_check(open_store: Any = MemoryStore, secret: str | None = None) -> tuple[int, dict[str, str]]:
        client = Client(sandbox.client_id, secret or sandbox.client_secret)
        code = check(sandbox.environment, lambda: client, open_store)
        return code, marks(capsys.readouterr().out)

    return run_check


def test_all_is_well(environ: dict[str, str], sandbox: Sandbox, bare_machine: Path) -> None:
    """On a sound deployment every line is ok, one token is asked for, and nothing is left or revoked."""
    result = run(environ, "check")
    told = marks(result.stdout)
    assert (result.returncode, result.stderr) == (0, "") and {key[:2] for key in told} == {"ok"}
    subjects = "environment certificate clock client API version lifetimes logins store sharing"
    assert " ".join(key[3:] for key in told) == subjects
    assert told["ok logins"] == "3 wrong passwords in a row lock a user" and told["ok API version"] == "1"
    assert sandbox.count("/oauth/token", status=200) == 1 and sandbox.count("/oauth/revoke") == 0
    assert [path for path in bare_machine.rglob("*") if path.is_file() and path.stat().st_size] == []


def test_no_secret_is_told(environ: dict[str, str]) -> None:
    """Neither the client's secret nor a token is in what is written, whatever fails."""
    wrong = run({**environ, "FINAPI_CLIENT_SECRET": "wrong-secret-of-mine"}, "check")
    assert wrong.returncode == 3 and "wrong-secret-of-mine" not in wrong.stdout + wrong.stderr
    assert marks(wrong.stdout)["fail client"].startswith("finAPI refused the client's credentials (401")


def test_nothing_answers(environ: dict[str, str], sandbox: Sandbox) -> None:
    """Where nothing listens, that is told with exit code 4, and the store is looked at all the same."""
    with Sandbox() as gone:
        address = gone.base_url
    result = run({**environ, "FINAPI_ENVIRONMENT": address}, "check")
    told = marks(result.stdout)
    assert result.returncode == 4 and "does not answer (ConnectionError)" in told["fail environment"]
    assert "fail client" in told and "ok store" in told


def test_a_certificate_that_is_not_trusted(environ: dict[str, str]) -> None:
    """The line says which variable to set, and the client's secret is sent to nobody."""
    environ.pop("REQUESTS_CA_BUNDLE")
    result = run(environ, "check")
    assert result.returncode == 4 and "REQUESTS_CA_BUNDLE" in marks(result.stdout)["fail certificate"]


def test_nobody_is_logged_in(environ: dict[str, str]) -> None:
    """Without credentials the line says what to run."""
    environ.pop("FINAPI_CLIENT_ID")
    result = run(environ, "check")
    assert result.returncode == 3 and "run 'finapi-session login'" in marks(result.stdout)["fail client"]


def test_the_wrong_api_version(look: Any, sandbox: Sandbox) -> None:
    """A client that is bound to the other version is told so."""
    sandbox.api_version = 1
    assert marks_of(look())["ok API version"] == "1"
    sandbox.api_version = 2
    assert marks_of(look())["ok API version"] == "2"
    code = check(Environment(sandbox.base_url), lambda: Client("sandbox-client", "sandbox-client-secret"), MemoryStore)
    assert code == 3


def marks_of(found: tuple[int, dict[str, str]]) -> dict[str, str]:
    """Return the lines of a check that did not fail."""
    code, told = found
    assert code == 0
    return told


@pytest.mark.parametrize(("offset", "where"), [(-100, "behind"), (100, "ahead of")])
def test_a_clock_that_is_wrong(offset: float, where: str) -> None:
    """A clock that is off by more than the wire can explain is told with its direction."""
    with freezegun.freeze_time("2026-01-01"):
        found = looks._clock("Thu, 01 Jan 2026 00:00:00 GMT", 1767225600 + offset)
    assert found.mark == "warn" and found.told.startswith(f"100 s {where} finAPI's")


@pytest.mark.parametrize("date", [None, "yesterday"])
def test_a_server_that_tells_no_time(date: str | None) -> None:
    """Without a date that can be read nothing is said about the clock."""
    assert looks._clock(date, 0.0)[:3] == ("warn", "clock", "finAPI tells no time")


def test_lifetimes_beside_the_leeway(look: Any, sandbox: Sandbox) -> None:
    """Tokens that live less than twice the leeway are a warning, those that never expire are not."""
    sandbox.lifetime = 100
    assert marks_of(look())["warn lifetimes"].endswith("live 100 s: the leeway of 60 s is cut to half of that")
    sandbox.lifetime, sandbox.max_login_attempts = 0, 0
    told = marks_of(look())
    assert "warn lifetimes" not in told and told["ok logins"] == "users are never locked"


def test_a_configuration_that_cannot_be_read(look: Any, sandbox: Sandbox) -> None:
    """A client that may not read it is warned of what is not known; an API that breaks off is a failure."""
    sandbox.answer_next(403, path="/clientConfiguration")
    told = marks_of(look())
    assert told["warn logins"] == "not told" and told["warn lifetimes"] == "refresh tokens: not told"
    sandbox.answer_next("drop", path="/clientConfiguration")
    code, told = look()
    assert code == 4 and told["fail API"] == "does not answer (ConnectionError)"


def test_an_endpoint_that_is_down(look: Any, sandbox: Sandbox) -> None:
    """A token endpoint that gives no token is no mistake of the client's."""
    sandbox.answer_next(503, path="/oauth/token", method="POST")
    code, told = look()
    assert code == 4 and told["fail client"].startswith("not asked for: ")


def test_a_client_that_cannot_be_one(look: Any) -> None:
    """A secret that no client can have is told as what it is."""
    code, told = look(secret="a\nb")
    assert code == 3 and "client_secret" in told["fail client"]


def test_a_store_that_nobody_shares(look: Any) -> None:
    """Memory works, and is a warning: no other process finds what is in it."""
    assert marks_of(look())["warn sharing"] == "no other process sees it"


class Forgetful(MemoryStore):
    """Takes everything and keeps nothing."""

    def set(self, key: str, value: str) -> None:
        """Forget *value*."""


class Broken(MemoryStore):
    """Fails with a text that holds a password."""

    def set(self, key: str, value: str) -> None:
        """Fail."""
        raise ConnectionError("redis://:password@host is down")


@pytest.mark.parametrize(("store", "said"), [(Forgetful, "forgets"), (Broken, "not usable (ConnectionError)")])
def test_a_store_that_fails(look: Any, store: type[MemoryStore], said: str) -> None:
    """It is exit code 5, and the driver's own text, which may hold a password, is not told."""
    code, told = look(store)
    assert code == 5 and said in told["fail store"] and "password" not in told["fail store"]


def test_the_docs_explain_each_line(environ: dict[str, str]) -> None:
    """The page on the command has a row for each subject, in the order in which it tells them."""
    page = Path(__file__).parents[1] / "docs" / "command-line" / "check.rst"
    rows = re.findall(r"^``([A-Za-z ]+)`` {2,}", page.read_text(encoding="utf-8"), re.M)
    assert rows == [told[3:] for told in marks(run(environ, "check").stdout)]


def test_a_password_of_netrc_stays_at_home(look: Any, sandbox: Sandbox, bare_machine: Path) -> None:
    """The first look sends no credentials, though netrc has some for the host."""
    netrc = bare_machine / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine")
    netrc.chmod(0o600)
    look()
    assert sandbox.calls[0].path == "/oauth/token" and "Authorization" not in sandbox.calls[0].headers


def test_the_first_failure_gives_the_code(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where client and store both fail, the code is the client's; a store that cannot be named is wrong usage."""
    import click

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", sandbox.ca_bundle)

    def nobody() -> Client:
        raise LoginRequiredError("nobody")

    assert check(sandbox.environment, nobody, Broken) == 3
    with pytest.raises(click.BadParameter):
        check(sandbox.environment, nobody, lambda: (_ for _ in ()).throw(click.BadParameter("shoebox")))
