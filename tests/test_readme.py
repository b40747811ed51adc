"""The README is true: its Python and its commands are run, its tables are compared with the code."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import trustme
from docutils import nodes
from docutils.core import publish_doctree

import finapi_session
from finapi_session import LIVE, SANDBOX, Environment, FinapiError, FinapiSession, TokenEvent
from finapi_session.endpoint import RETRIES
from finapi_session.events import _LEVELS
from finapi_session.testing import Sandbox

from .stores import django_cache, places

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]
README = ROOT / "README.rst"
TEXT = README.read_text(encoding="utf-8")
HOSTS = {urlsplit(origin).hostname for known in (SANDBOX, LIVE) for origin in (known.base_url, *known.trusted)}
FRAMEWORKS = (
    "flask_app.py",
    "django_app.py",
    "fastapi_app.py",
    "celery_app.py",
    "openapi_client.py",
    "notebook.ipynb",
)

Run = Callable[[str], dict[str, Any]]


class Block(NamedTuple):
    """A piece of code in the README, as a reader would copy it."""

    section: str
    language: str
    code: str
    line: int


def parsed() -> nodes.document:
    """Return the README as docutils reads it; a mere hint of docutils raises."""
    strict = {"report_level": 1, "halt_level": 2, "syntax_highlight": "none", "file_insertion_enabled": False}
    return publish_doctree(TEXT, settings_overrides=strict)


def title_of(node: nodes.Node) -> str:
    """Return the title of the section that *node* is in."""
    while not isinstance(node.parent, (nodes.section, nodes.document)):
        node = node.parent
    return str(node.parent.next_node(nodes.title).astext())


DOCUMENT = parsed()
BLOCKS = [
    Block(title_of(node), node["classes"][-1], node.astext(), TEXT[: TEXT.index(indented)].count("\n"))
    for node in DOCUMENT.findall(nodes.literal_block)
    if "code" in node["classes"]
    for indented in ["\n".join(line and f"    {line}" for line in node.astext().split("\n"))]
]


def blocks(section: str, language: str = "python") -> list[Block]:
    """Return the blocks of a section."""
    found = [block for block in BLOCKS if (block.section, block.language) == (section, language)]
    assert found, f"no {language} under {section!r}"
    return found


def table(section: str) -> list[list[str]]:
    """Return the rows of the first table of a section, as text, without its head."""
    found = next(node for node in DOCUMENT.findall(nodes.table) if title_of(node) == section)
    body = found.next_node(nodes.tbody)
    return [[entry.astext().replace("\n", " ") for entry in row.children] for row in body.children]


@pytest.fixture(scope="module")
def finapi() -> Iterator[Sandbox]:
    """A sandbox whose certificate is good for finAPI's own host names."""
    issue = trustme.CA.issue_cert
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trustme.CA, "issue_cert", lambda ca, *names, **how: issue(ca, *names, *sorted(HOSTS), **how))
        sandbox = Sandbox(
            client_id="client-id", client_secret="client-secret", username="alice", password="her-password"
        ).start()
    with sandbox:
        yield sandbox


@pytest.fixture
def run(finapi: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the Python of a section as it is, where finAPI's host names lead to the sandbox, others nowhere."""
    finapi.reset()
    lookup, port = socket.getaddrinfo, urlsplit(finapi.base_url).port

    def getaddrinfo(host: Any, *rest: Any, **options: Any) -> Any:
        if host in HOSTS:
            return lookup("127.0.0.1", port, *rest[1:], **options)
        assert host in ("127.0.0.1", "localhost", None), f"the README leads to {host}"
        return lookup(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for name, value in variables(finapi).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run_section(section: str) -> dict[str, Any]:
        namespace: dict[str, Any] = {"__name__": "readme"}
        for block in blocks(section):
            exec(compile("\n" * block.line + block.code, str(README), "exec"), namespace)
        return namespace

    return run_section


def variables(finapi: Sandbox) -> dict[str, str]:
    """Return what a reader has set."""
    return {
        "FINAPI_CLIENT_ID": finapi.client_id,
        "FINAPI_CLIENT_SECRET": finapi.client_secret,
        "REQUESTS_CA_BUNDLE": finapi.ca_bundle,
    }


# Its Python.


def test_every_python_section_is_run_here() -> None:
    """No section with Python is left out of this file, and no code is in a language that nobody tries."""
    assert {block.language for block in BLOCKS} == {"python", "console"}
    here = Path(__file__).read_text()
    shown = {block.section for block in BLOCKS if block.language == "python"} - {
        "Testing your own code",
        "Frameworks",
    }
    assert [title for title in sorted(shown) if f'run("{title}")' not in here] == []


def test_ten_lines_that_work(run: Run, finapi: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """The first example prints banks and accounts; both tokens are revoked, all on one connection."""
    namespace = run("Ten lines that work")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{namespace['banks']['paging']['totalCount']} banks"
    assert [line.split()[0] for line in out[1:]] == ["Girokonto", "Tagesgeld", "Kreditkarte"]
    assert (finapi.count("/token"), finapi.count("/revoke", status=200), finapi.connections) == (2, 2, 1)
    assert len([line for line in blocks("Ten lines that work")[0].code.split("\n") if line.strip()]) <= 10


def test_async(run: Run, finapi: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's accounts come over httpx, for which one token is fetched, and given back at the end."""
    monkeypatch.setenv("FINAPI_ENVIRONMENT", finapi.base_url)
    monkeypatch.setenv("FINAPI_USERNAME", finapi.username)
    monkeypatch.setenv("FINAPI_PASSWORD", "her-password")
    monkeypatch.setenv("SSL_CERT_FILE", finapi.ca_bundle)  # where httpx looks
    assert len(run("Async")["accounts"]) == 3
    assert finapi.count("/oauth/token", username=finapi.username) == 1
    assert finapi.count("/oauth/revoke", status=200) >= 1


def test_environments(run: Run) -> None:
    """The three ways to name an environment give the one that was meant."""
    namespace = run("Environments and API versions")
    assert namespace["session"].environment == finapi_session.LIVE_V2
    assert namespace["proxied"].trusts("https://webform.example.com/x")


def test_environments_table() -> None:
    """Each named environment is the constant beside it, on the paths beside it, and all are there."""
    rows = table("Environments and API versions")
    for name, constant, path, _ in rows:
        environment = getattr(finapi_session, constant.split()[0])
        assert Environment.named(name) == environment and environment.oauth_path == path
    assert len(rows) == 4 and inspect.signature(FinapiSession).parameters["environment"].default is SANDBOX


def test_the_auth_alone(run: Run, finapi: Sandbox) -> None:
    """Her auth serves a call of the client's session and one of plain requests."""
    namespace = run("Arguments")
    assert namespace["accounts"].json() == namespace["also"].json() and "accounts" in namespace["also"].json()
    assert finapi.count("/accounts", username="alice", status=200) == 2


def test_arguments_table() -> None:
    """The table has every argument of the session, with its default."""
    shown = {name: default for name, default, _ in table("Arguments")}
    real = {
        name: parameter.default
        for name, parameter in inspect.signature(FinapiSession).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    said = {"environment": "SANDBOX", "request_id": "a new UUID", "retries": f"{RETRIES.total}, with backoff"}
    assert shown == {name: said.get(name, repr(default)) for name, default in real.items()}
    assert f"leeway={real['leeway']:.0f};" in TEXT and f"{real['leeway']:.0f} s before expiry *" in TEXT


def test_stores(run: Run, finapi: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every store is made as shown, on a real Redis and database; a second session finds the sealed token."""
    from cryptography.fernet import Fernet

    with places.redis_server(tmp_path) as path:
        monkeypatch.setenv("REDIS_URL", f"unix://{path}")
        monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/app.db")
        monkeypatch.setenv("FERNET_KEYS", f"{Fernet.generate_key().decode()} {Fernet.generate_key().decode()}")
        namespace = run("Stores")
        assert finapi.count("/oauth/token") == 1 and finapi.count("/oauth/revoke") == 0
        with FinapiSession.from_env(store=namespace["sealed"]) as session:
            assert session.get("/api/v2/banks").ok and finapi.count("/oauth/token") == 1
        for name in ("files", "database"):
            namespace[name].set("key", "value")
            assert namespace[name].get("key") == "value"
        namespace["redis"].client.close()
        namespace["database"].engine.dispose()


def test_the_store_of_ones_own() -> None:
    """The store over Django's cache is the one that passes the store contract in ``tests/stores``."""
    shown = blocks("Stores")[1].code
    assert inspect.getsource(django_cache.DjangoCacheStore).strip() in shown
    source = inspect.getsource(django_cache)
    assert all(line in source for line in shown.split("\n") if line.startswith(("import", "from")))


def test_stores_table() -> None:
    """The table has every store of the package."""
    shown = {row[0].split()[0] for row in table("Stores")}
    assert shown == {name for name in finapi_session.__all__ if name.endswith("Store")} - {"TokenStore"}


def test_errors(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The example ends in the ApiError that it speaks of."""
    run("Errors")
    assert re.fullmatch(r"403 [0-9a-f-]{36} \['FORBIDDEN'\]\n", capsys.readouterr().out)


def test_errors_without_a_token(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The example's other branch takes the error that has no token."""
    monkeypatch.setenv("FINAPI_CLIENT_SECRET", "wrong")
    run("Errors")
    assert capsys.readouterr().out.startswith("no token: finAPI refused the client's credentials (401 ")


def test_errors_table() -> None:
    """The table has every error that is raised, the TokenErrors first."""
    shown = [row[0] for row in table("Errors") if row[0]]
    leaves = {
        name
        for name in finapi_session.__all__
        if name.endswith("Error") and not getattr(finapi_session, name).__subclasses__()
    }
    assert set(shown) == leaves
    tokens = [issubclass(getattr(finapi_session, name), finapi_session.TokenError) for name in shown]
    assert tokens == [True] * 6 + [False] * 2


def test_request_ids(run: Run, finapi: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """The caller's ids are those that finAPI saw, on the token calls too."""
    run("Request ids")
    assert capsys.readouterr().out == "nightly-import just-this-call\n"
    assert {call.request_id for call in finapi.calls} == {"nightly-import", "just-this-call"}


def test_testing_your_own_code(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests that a reader would copy pass, in a pytest of their own."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    for number, block in enumerate(blocks("Testing your own code"), 1):
        pytester.makepyfile(**{f"test_shown_{number}": block.code})
    plugin = () if entry_points(group="pytest11", name="finapi_session") else ("-p", "finapi_session.testing.plugin")
    result = pytester.runpytest_subprocess(*plugin, "-p", "no:cacheprovider", "-W", "error")
    result.assert_outcomes(passed=6)


def test_metrics(run: Run, finapi: Sandbox) -> None:
    """Prometheus counts, and OpenTelemetry times, what happened to the tokens."""
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from prometheus_client import REGISTRY

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    metrics.set_meter_provider(provider)
    namespace = run("Metrics")
    counted = {
        kind: REGISTRY.get_sample_value("finapi_token_events_total", {"kind": kind}) for kind in ("issued", "revoked")
    }
    assert counted == {"issued": 1, "revoked": 1}
    found: Any = reader.get_metrics_data()
    [metric] = found.resource_metrics[0].scope_metrics[0].metrics
    assert metric.name == "finapi.token.duration"
    timed = {point.attributes["kind"]: point.count for point in metric.data.data_points}
    assert timed == {"issued": 1, "revoked": 1}
    REGISTRY.unregister(namespace["events"])
    provider.shutdown()


def test_event_kinds() -> None:
    """The kinds of events in the text are those that there are."""
    said = next(
        node for node in DOCUMENT.findall(nodes.paragraph) if node.astext().startswith("on_event is called with a")
    )
    shown = {literal.astext() for literal in said.findall(nodes.literal)}
    assert shown - {"on_event", "TokenEvent", "kind"} == set(_LEVELS)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The library's logger, put back afterwards."""
    found = logging.getLogger("finapi_session")
    handlers, level = list(found.handlers), found.level
    yield found
    found.handlers[:] = handlers
    found.setLevel(level)


def test_logs(run: Run, finapi: Sandbox, logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line of the JSON log has the fields of the table, and no secret."""
    run("Logs")
    err = capsys.readouterr().err
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["finapi_kind"] for line in lines] == ["issued", "revoked"]
    wanted = [row[0] for row in table("Logs")]
    assert all(list(line) == ["level", "message", *wanted] for line in lines)
    assert wanted == [f"finapi_{field.name}" for field in fields(TokenEvent)]
    assert finapi.client_secret not in err


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_frameworks_are_the_files_that_are_run(name: str) -> None:
    """The program in the README is, letter by letter, the one that test_examples.py runs."""
    text = (ROOT / "tests" / "examples" / name).read_text(encoding="utf-8")
    if name.endswith(".ipynb"):
        text = "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")
    else:
        text = text[text.index('"""', 3) + 3 :]
    assert blocks("Frameworks")[FRAMEWORKS.index(name)].code == text.strip("\n")
    assert len(blocks("Frameworks")) == len(FRAMEWORKS)


# Its commands.


def commands(section: str) -> list[str]:
    """Return the shell lines of a section."""
    lines = "\n".join(block.code for block in blocks(section, "console")).split("\n")
    assert all(line.startswith("$ ") for line in lines)
    return [line.removeprefix("$ ") for line in lines]


def test_command_line(run: Run, finapi: Sandbox, tmp_path: Path) -> None:
    """The lines of the shell session run one after the other, without a terminal; none fails."""
    command = tmp_path / "finapi-session"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m finapi_session.cli "$@"\n')
    command.chmod(0o755)
    port = urlsplit(finapi.base_url).port
    Path(os.environ["HOME"], ".curlrc").write_text(
        f'connect-to = "sandbox.finapi.io:443:127.0.0.1:{port}"\ncacert = "{finapi.ca_bundle}"\nsilent\n'
    )
    lines = [line for line in commands("Command line") if "curl" not in line or shutil.which("curl")]
    # What a person would type when asked; from then on she has a token.
    lines[0] = f"FINAPI_PASSWORD=her-password {lines[0]}"
    ours = {
        "FINAPI_ENVIRONMENT": finapi.base_url,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
    }
    shown = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
        env={**os.environ, **ours},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert shown.returncode == 0, shown.stderr
    transactions = json.loads((tmp_path / "transactions.json").read_text())["transactions"]
    assert len(transactions) > 20
    assert re.search(r"^ *user alice of .* valid", shown.stdout, re.M) and "Berliner Sparkasse" in shown.stdout
    assert {call.revoked for call in finapi.calls if call.path.endswith("/revoke")} == {"client", "alice"}


def test_the_two_commands() -> None:
    """They are one line each, and complete; CI runs the second one, and the first one's demo exists."""
    from finapi_session.cli.commands import commands as group

    demo, checks = commands("Two commands")
    assert demo == "python3 -m venv .venv && .venv/bin/pip install -e '.[sandbox]' && .venv/bin/finapi-session demo"
    assert checks == "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox"
    assert checks in (ROOT / ".ci" / "run").read_text() and "demo" in group.commands


def test_extras_table() -> None:
    """The table has every extra of the package, and the lines that install name no other."""
    setup = ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"])
    assert [row[0] for row in table("Install")] == list(setup["options.extras_require"])
    assert commands("Install") == ["pip install ."]
    assert {name for found in re.findall(r"'\.\[([\w,]+)\]'", TEXT) for name in found.split(",")} <= extras


# Its looks.


def test_it_renders_where_it_is_read() -> None:
    """The renderer of package indexes takes it, and its pictures are its own, with words for who cannot see them."""
    from readme_renderer import rst

    assert rst.render(TEXT) is not None
    assert not list(DOCUMENT.findall(nodes.problematic))
    for image in DOCUMENT.findall(nodes.image):
        assert (ROOT / image["uri"]).is_file() and image["alt"]


def test_nothing_of_this_machine_is_in_it() -> None:
    """Neither a path of the machine that it was written on nor a package index's host is in it."""
    for name in (README, ROOT / "CHANGELOG.rst"):
        text = name.read_text(encoding="utf-8")
        assert not re.search(r"/(work|home|root|tmp|Users)/|pypi\.|pythonhosted", text), name


def test_the_bench_finds_its_place() -> None:
    """The marks between which the bench table goes are there, once, in this order."""
    assert TEXT.count(".. bench-table-start\n") == TEXT.count(".. bench-table-end\n") == 1
    assert TEXT.index(".. bench-table-start") < TEXT.index(".. bench-table-end")


def test_the_errors_are_told_without_secrets() -> None:
    """What the README says of all errors holds: they are exceptions of requests with these four fields."""
    error = FinapiError("what", status=400, code="c", description="d", request_id="r")
    assert (error.status, error.code, error.description, error.request_id) == (400, "c", "d", "r")
    assert isinstance(error, OSError) and error.request is None and error.response is None
