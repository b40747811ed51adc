"""README and docs are true: their Python and commands are run, what they print and list is compared with the code."""

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
from contextlib import AbstractContextManager
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import requests
import trustme
from docutils import nodes
from docutils.core import publish_doctree
from docutils.parsers.rst import Directive, directives, roles

import finapi_session
from finapi_session import LIVE, SANDBOX, Environment, FinapiError, FinapiSession, TokenEvent
from finapi_session.cli import __main__ as command_line
from finapi_session.endpoint import RETRIES
from finapi_session.events import _LEVELS
from finapi_session.testing import Sandbox

from .stores import django_cache, places

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.rst"
#: Each page by its path below docs/ without its ending; the README is "README".
PATHS = {"README": README} | {str(path.relative_to(DOCS))[:-4]: path for path in sorted(DOCS.rglob("*.rst"))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PATHS.items()}
HOSTS = {urlsplit(origin).hostname for known in (SANDBOX, LIVE) for origin in (known.base_url, *known.trusted)}
FRAMEWORKS = {
    "howto/flask": "flask_app.py",
    "howto/django": "django_app.py",
    "howto/fastapi": "fastapi_app.py",
    "howto/celery": "celery_app.py",
    "howto/generated-client": "openapi_client.py",
    "howto/notebook": "notebook.ipynb",
}

Run = Callable[[str, str], dict[str, Any]]


class Block(NamedTuple):
    """A piece of code in a page, as a reader would copy it, and the text that follows it at once, if any does."""

    page: str
    section: str
    language: str
    code: str
    line: int
    prints: str | None

    @property
    def is_a_test(self) -> bool:
        """Whether pytest runs it."""
        return re.search(r"^def test_|^class Test", self.code, re.M) is not None


class Ignored(Directive):
    """What only Sphinx knows; its content is left out."""

    has_content, optional_arguments, final_argument_whitespace = True, 9, True
    option_spec = None

    def run(self) -> list[nodes.Node]:
        """Return nothing."""
        return []


def parsed(name: str) -> nodes.document:
    """Return a page as docutils reads it; a mere hint of docutils raises."""
    for role in ("doc", "ref", "term", "class", "func", "meth"):
        roles.register_local_role(role, roles.GenericRole(role, nodes.emphasis))
    for directive in ("toctree", "glossary", "automodule", "autoclass", "autoexception", "autofunction", "include"):
        directives.register_directive(directive, Ignored)
    strict = {"report_level": 1, "halt_level": 2, "syntax_highlight": "none", "file_insertion_enabled": False}
    return publish_doctree(TEXTS[name], source_path=str(PATHS[name]), settings_overrides=strict)


def title_of(node: nodes.Node) -> str:
    """Return the title of the section that *node* is in."""
    while not isinstance(node.parent, (nodes.section, nodes.document)):
        node = node.parent
    return str(node.parent.next_node(nodes.title).astext())


def blocks_of(name: str) -> Iterator[Block]:
    """Find the blocks of a page."""
    for node in DOCUMENTS[name].findall(nodes.literal_block):
        if "code" not in node["classes"]:
            continue
        indented = "\n".join(line and f"    {line}" for line in node.astext().split("\n"))
        line = TEXTS[name][: TEXTS[name].index(indented)].count("\n")
        after = [each for each in node.findall(descend=False, siblings=True)][1:3]
        # One sentence, such as "It prints:", may stand between.
        followed = [each for each in after if isinstance(each, nodes.literal_block) and "text" in each["classes"]][:1]
        close = followed and (followed[0] is after[0] or after[0].astext().endswith("prints:"))
        prints = followed[0].astext() if close else None
        yield Block(name, title_of(node), node["classes"][-1], node.astext(), line, prints)


DOCUMENTS = {name: parsed(name) for name in TEXTS}
BLOCKS = [block for name in TEXTS for block in blocks_of(name)]
#: Whole programs that need a server of their own: test_examples.py runs them.
PROGRAMS = [*FRAMEWORKS, "howto/own-store"]
SCRIPTS = [block for block in BLOCKS if block.language == "python" and not block.is_a_test]


def blocks(page: str, section: str, language: str = "python") -> list[Block]:
    """Return the blocks of a section."""
    found = [block for block in BLOCKS if (block.page, block.section, block.language) == (page, section, language)]
    assert found, f"no {language} under {section!r} of {page}"
    return found


def table(page: str, section: str) -> list[list[str]]:
    """Return the rows of the first table of a section, as text, without its head."""
    found = next(node for node in DOCUMENTS[page].findall(nodes.table) if title_of(node) == section)
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
        assert host in ("127.0.0.1", "localhost", None), f"the page leads to {host}"
        return lookup(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for name, value in variables(finapi).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run_section(page: str, section: str) -> dict[str, Any]:
        namespace: dict[str, Any] = {"__name__": "shown"}
        for block in blocks(page, section):
            exec(compile("\n" * block.line + block.code, str(PATHS[page]), "exec"), namespace)
        return namespace

    return run_section


@pytest.fixture
def as_alice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``from_env()`` make her session."""
    monkeypatch.setenv("FINAPI_USERNAME", "alice")
    monkeypatch.setenv("FINAPI_PASSWORD", "her-password")


def variables(finapi: Sandbox) -> dict[str, str]:
    """Return what a reader has set."""
    return {
        "FINAPI_CLIENT_ID": finapi.client_id,
        "FINAPI_CLIENT_SECRET": finapi.client_secret,
        "REQUESTS_CA_BUNDLE": finapi.ca_bundle,
    }


# Their Python.


def test_every_block_is_in_a_language_that_is_tried() -> None:
    """Python is run here, a shell session below, text is what a program prints or a person types."""
    assert {block.language for block in BLOCKS} == {"python", "console", "text"}


@pytest.mark.parametrize("block", [block for block in SCRIPTS if block.prints], ids=lambda block: block.page)
def test_a_script_prints_what_the_page_says(block: Block, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A block that a text follows prints that text, letter by letter."""
    exec(compile("\n" * block.line + block.code, str(PATHS[block.page]), "exec"), {"__name__": "shown"})
    assert capsys.readouterr().out.strip("\n") == block.prints


def test_every_other_script_has_a_test_of_its_own() -> None:
    """No Python of any page is left out: what prints nothing is run by a test here that names its section."""
    here = Path(__file__).read_text(encoding="utf-8")
    silent = [block for block in SCRIPTS if not block.prints and block.page not in PROGRAMS]
    assert [block[:2] for block in silent if f'run("{block.page}", "{block.section}")' not in here] == []


def test_what_is_shown_as_a_test_passes(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests that a reader would copy pass, in a pytest of their own, with every warning an error."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    shown = [block for block in BLOCKS if block.language == "python" and block.is_a_test]
    for number, block in enumerate(shown, 1):
        pytester.makepyfile(**{f"test_shown_{number}": block.code})
    plugin = () if entry_points(group="pytest11", name="finapi_session") else ("-p", "finapi_session.testing.plugin")
    result = pytester.runpytest_subprocess(*plugin, "-p", "no:cacheprovider", "-W", "error")
    counts = result.parseoutcomes()
    names = re.findall(r"^ *def (test_\w+)", "\n".join(block.code for block in shown), re.M)
    assert set(counts) == {"passed"} and counts["passed"] >= len(names) > 15, result.stdout.str()


def test_ten_lines_that_work(run: Run, finapi: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """The first example prints banks and accounts; both tokens are revoked, on one connection but for the login."""
    namespace = run("README", "Ten lines on finAPI")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{namespace['banks']['paging']['totalCount']} banks"
    assert [line.split()[0] for line in out[1:]] == ["Girokonto", "Tagesgeld", "Kreditkarte"]
    assert (finapi.count("/token"), finapi.count("/revoke", status=200), finapi.connections) == (2, 2, 2)
    assert len([line for line in blocks("README", "Ten lines on finAPI")[0].code.split("\n") if line.strip()]) <= 10


def test_async(run: Run, finapi: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's accounts come over httpx, for which one token is fetched, and given back at the end."""
    monkeypatch.setenv("FINAPI_ENVIRONMENT", finapi.base_url)
    monkeypatch.setenv("FINAPI_USERNAME", finapi.username)
    monkeypatch.setenv("FINAPI_PASSWORD", "her-password")
    monkeypatch.setenv("SSL_CERT_FILE", finapi.ca_bundle)  # where httpx looks
    assert len(run("howto/httpx", "httpx and async code")["accounts"]) == 3
    assert finapi.count("/oauth/token", username=finapi.username) == 1
    assert finapi.count("/oauth/revoke", status=200) >= 1


def test_environments(run: Run) -> None:
    """The three ways to name an environment give the one that was meant."""
    namespace = run("reference/environments", "Environments and API versions")
    assert namespace["session"].environment == finapi_session.LIVE_V2
    assert namespace["proxied"].trusts("https://webform.example.com/x")


def test_environments_table() -> None:
    """Each named environment is the constant beside it, on the paths beside it, and all are there."""
    rows = table("reference/environments", "Environments and API versions")
    for name, constant, path, _ in rows:
        environment = getattr(finapi_session, constant.split()[0])
        assert Environment.named(name) == environment and environment.oauth_path == path
    assert len(rows) == 4 and inspect.signature(FinapiSession).parameters["environment"].default is SANDBOX


def test_the_auth_alone(run: Run, finapi: Sandbox) -> None:
    """Her auth serves a call of the client's session and one of plain requests."""
    namespace = run("reference/session", "The auth alone")
    assert namespace["accounts"].json() == namespace["also"].json() and "accounts" in namespace["also"].json()
    assert finapi.count("/accounts", username="alice", status=200) == 2


def test_arguments_table() -> None:
    """The table has every argument of the session, with its default."""
    shown = {name: default for name, default, _ in table("reference/session", "Session")}
    real = {
        name: parameter.default
        for name, parameter in inspect.signature(FinapiSession).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    said = {"environment": "SANDBOX", "request_id": "a new UUID", "retries": f"{RETRIES.total}, with backoff"}
    assert shown == {name: said.get(name, repr(default)) for name, default in real.items()}
    assert f"{real['leeway']:.0f} s before expiry " in TEXTS["README"]


def test_stores(run: Run, finapi: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every store is made as shown, on a real Redis and database; a second session finds the sealed token."""
    from cryptography.fernet import Fernet

    with places.redis_server(tmp_path) as path:
        monkeypatch.setenv("REDIS_URL", f"unix://{path}")
        monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/app.db")
        monkeypatch.setenv("FERNET_KEYS", f"{Fernet.generate_key().decode()} {Fernet.generate_key().decode()}")
        namespace = run("reference/stores", "Stores")
        assert finapi.count("/oauth/token") == 1 and finapi.count("/oauth/revoke") == 0
        with FinapiSession.from_env(store=namespace["sealed"]) as session:
            assert session.get("/api/v2/banks").ok and finapi.count("/oauth/token") == 1
        for name in ("files", "database"):
            namespace[name].set("key", "value")
            assert namespace[name].get("key") == "value"
        namespace["redis"].client.close()
        namespace["database"].engine.dispose()


def test_caches(run: Run) -> None:
    """The key of the page tells users apart, and shows nobody's token; tests/test_caches.py has it in a cache."""
    pytest.importorskip("requests_cache")
    key_with_user = run("howto/caches", "requests-cache")["key_with_user"]
    calls = [
        requests.Request("GET", f"{SANDBOX.base_url}/x", headers={"Authorization": f"Bearer {token}"}).prepare()
        for token in ("one", "one", "two")
    ]
    keys = [key_with_user(call, match_headers=True) for call in calls]
    assert keys[0] == keys[1] != keys[2] and "one" not in keys[0]


def test_vcrpy(run: Run, finapi: Sandbox, as_alice: None, tmp_path: Path) -> None:
    """What is recorded as the page says plays without a call, a healed 401 too, and no cassette holds a secret."""
    pytest.importorskip("vcr")
    recorder = run("howto/cassettes", "vcrpy")["recorder"]
    check_cassettes(finapi, tmp_path, lambda _: recorder.use_cassette("healed.yaml"))


# betamax uses what today's Pythons warn of.
@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
def test_betamax(run: Run, finapi: Sandbox, as_alice: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded as the page says plays without a call, a healed 401 too, and no cassette holds a secret."""
    betamax = pytest.importorskip("betamax")
    monkeypatch.setattr(betamax.cassette.Cassette, "hooks", {"before_record": [], "before_playback": []})
    run("howto/cassettes", "betamax")
    check_cassettes(
        finapi, tmp_path, lambda session: betamax.Betamax(session, cassette_library_dir=".").use_cassette("healed")
    )


def check_cassettes(
    finapi: Sandbox, folder: Path, recorder: Callable[[FinapiSession], AbstractContextManager[object]]
) -> None:
    """Record a call and a healed one, play them without finAPI, and look for secrets in all cassettes of *folder*."""
    secrets = {"her-password", finapi.client_secret}
    answers, sent = [], []
    for _ in ("recorded", "played"):
        session = FinapiSession.from_env()
        session.headers["Accept-Encoding"] = "identity"
        with recorder(session), session:
            for _ in range(2):
                answer = session.get("/api/v2/accounts")
                answers.append((answer.json(), [kept.status_code for kept in answer.history]))
                token = session.fetch_token()
                secrets |= {token.access_token, str(token.refresh_token)} if not sent else set()
                finapi.revoke_tokens()
        sent.append(len(finapi.calls))
    assert answers[:2] == answers[2:] and [history for _, history in answers[:2]] == [[], [401]]
    assert sent[0] == sent[1]
    texts = [path.read_text(encoding="utf-8") for path in folder.iterdir()]
    assert len(texts) == 2 and all("/oauth/token" in text and "/oauth/revoke" in text for text in texts)
    assert [secret for secret in secrets if any(secret in text for text in texts)] == []


def test_the_store_of_ones_own() -> None:
    """The store over Django's cache is the one that passes the store contract in ``tests/stores``."""
    shown = blocks("howto/own-store", "A store of your own")[0].code
    assert inspect.getsource(django_cache.DjangoCacheStore).strip() in shown
    source = inspect.getsource(django_cache)
    assert all(line in source for line in shown.split("\n") if line.startswith(("import", "from")))


def test_stores_table() -> None:
    """The table has every store of the package."""
    shown = {row[0].split()[0] for row in table("reference/stores", "Stores")}
    assert shown == {name for name in finapi_session.__all__ if name.endswith("Store")} - {"TokenStore"}


def test_errors(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The example ends in the ApiError that it speaks of."""
    run("reference/errors", "Errors")
    assert re.fullmatch(r"403 [0-9a-f-]{36} \['FORBIDDEN'\]\n", capsys.readouterr().out)


def test_errors_without_a_token(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The example's other branch takes the error that has no token."""
    monkeypatch.setenv("FINAPI_CLIENT_SECRET", "wrong")
    run("reference/errors", "Errors")
    assert capsys.readouterr().out.startswith("no token: finAPI refused the client's credentials (401 ")


def test_errors_table() -> None:
    """The table has every error that is raised, the TokenErrors first."""
    shown = [row[0] for row in table("reference/errors", "Errors") if row[0]]
    leaves = {
        name
        for name in finapi_session.__all__
        if name.endswith("Error") and not getattr(finapi_session, name).__subclasses__()
    }
    assert set(shown) == leaves
    tokens = [issubclass(getattr(finapi_session, name), finapi_session.TokenError) for name in shown]
    assert tokens == [True] * 6 + [False] * 2


def test_finapis_own_calls(run: Run, finapi: Sandbox) -> None:
    """The example gets a token by hand, under the id that it names, and revokes it."""
    token = run("reference/authorization", "finAPI's own calls")["token"]
    assert token.access_token and finapi.calls[0].request_id == "audit-7"
    assert "/oauth/revoke" in [call.path for call in finapi.calls]


def test_request_ids(run: Run, finapi: Sandbox) -> None:
    """The caller's ids are those that finAPI saw, on the token calls too."""
    run("howto/request-ids", "Request ids")
    assert {call.request_id for call in finapi.calls} == {"nightly-import", "just-this-call"}


def test_metrics(run: Run, finapi: Sandbox) -> None:
    """Prometheus counts, and OpenTelemetry times, what happened to the tokens."""
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from prometheus_client import REGISTRY

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    metrics.set_meter_provider(provider)
    namespace = run("howto/metrics", "Prometheus")
    run("howto/metrics", "OpenTelemetry")
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
    """The page on events has every kind, with its level, and the runbook has a line for each."""
    shown = {kind: level for kind, level, _ in table("reference/events", "Events")}
    assert shown == {kind: logging.getLevelName(level) for kind, level in _LEVELS.items()}
    lines = {row[0] for row in table("runbook", "The lines")}
    assert {str(TokenEvent(kind, "x", "y")).partition(":")[0] for kind in _LEVELS} <= lines
    assert {"call answered", "call broke"} <= lines


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
    run("howto/logs", "JSON logs")
    err = capsys.readouterr().err
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["finapi_kind"] for line in lines] == ["issued", "revoked"]
    wanted = [row[0] for row in table("howto/logs", "Fields")]
    assert all(list(line) == ["level", "message", *wanted] for line in lines)
    assert wanted == [f"finapi_{field.name}" for field in fields(TokenEvent)]
    assert finapi.client_secret not in err


@pytest.mark.parametrize("page", FRAMEWORKS)
def test_frameworks_are_the_files_that_are_run(page: str) -> None:
    """The program of a page is, letter by letter, the one that test_examples.py runs."""
    text = (ROOT / "tests" / "examples" / FRAMEWORKS[page]).read_text(encoding="utf-8")
    if FRAMEWORKS[page].endswith(".ipynb"):
        text = "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")
    else:
        text = text[text.index('"""', 3) + 3 :]
    assert [block.code for block in BLOCKS if block.page == page] == [text.strip("\n")]


# Their commands.


def commands(page: str, section: str) -> list[str]:
    """Return the shell lines of a section."""
    lines = "\n".join(block.code for block in blocks(page, section, "console")).split("\n")
    assert all(line.startswith("$ ") for line in lines)
    return [line.removeprefix("$ ") for line in lines]


@pytest.fixture
def shell(run: Run, finapi: Sandbox, tmp_path: Path) -> Callable[[list[str]], str]:
    """Run lines of a shell session one after the other, without a terminal; none fails."""
    command = tmp_path / "finapi-session"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m finapi_session.cli "$@"\n')
    command.chmod(0o755)
    port = urlsplit(finapi.base_url).port
    Path(os.environ["HOME"], ".curlrc").write_text(
        f'connect-to = "sandbox.finapi.io:443:127.0.0.1:{port}"\ncacert = "{finapi.ca_bundle}"\nsilent\n'
    )
    (tmp_path / "leaked-token.txt").write_text("leaked\n")
    ours = {
        "FINAPI_ENVIRONMENT": finapi.base_url,
        "FINAPI_PASSWORD": "her-password",  # what a person would type when asked
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
    }

    def run_lines(lines: list[str]) -> str:
        known = [line.replace("--environment sandbox", f"--environment {finapi.base_url}") for line in lines]
        shown = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(known)],
            env={**os.environ, **ours},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert shown.returncode == 0, shown.stderr
        return shown.stdout

    return run_lines


def test_command_line(shell: Callable[[list[str]], str], finapi: Sandbox, tmp_path: Path) -> None:
    """The first lines on the command line read all of alice's transactions, and leave nobody logged in."""
    shown = shell(commands("command-line/index", "Command line"))
    transactions = json.loads((tmp_path / "transactions.json").read_text())["transactions"]
    assert len(transactions) > 20
    assert re.search(r"^ *user alice of .* valid", shown, re.M) and "Berliner Sparkasse" in shown
    assert {call.revoked for call in finapi.calls if call.path.endswith("/revoke")} == {"client", "alice"}


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.page.startswith("command-line/")}))
def test_every_line_on_a_command_runs(page: str, shell: Callable[[list[str]], str]) -> None:
    """The lines of a shell session on each page of the command line run one after the other."""
    sections = dict.fromkeys(block.section for block in BLOCKS if block.page == page and block.language == "console")
    lines = [line for section in sections for line in commands(page, section)]
    shell([line for line in lines if "curl" not in line or shutil.which("curl")])


def test_the_two_commands() -> None:
    """They are one line each, and complete; CI runs the second one, and the first one's demo exists."""
    from finapi_session.cli.commands import commands as group

    demo, checks = commands("README", "Two commands")
    assert demo == "python3 -m venv .venv && .venv/bin/pip install -e '.[sandbox]' && .venv/bin/finapi-session demo"
    assert checks == "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox"
    assert checks in (ROOT / ".ci" / "run").read_text() and "demo" in group.commands


def test_extras_table() -> None:
    """The table has every extra of the package, and the lines that install name no other."""
    setup = ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"])
    assert [row[0] for row in table("README", "Install")] == list(setup["options.extras_require"])
    assert commands("README", "Install") == ["pip install ."]
    text = "\n".join(TEXTS.values())
    assert {name for found in re.findall(r"'\.\[([\w,]+)\]'", text) for name in found.split(",")} <= extras


def test_every_command_has_its_page() -> None:
    """Each command has a page of its name with its options; the first page has those for all, and the exit codes."""
    from finapi_session.cli.commands import commands as group

    shared = {option for parameter in group.params for option in parameter.opts if option != "--version"}
    for name, command in group.commands.items():
        assert next(iter(DOCUMENTS[f"command-line/{name}"].findall(nodes.title))).astext() == name
        options = {parameter.opts[0] for parameter in command.params if parameter.param_type_name == "option"}
        page = TEXTS[f"command-line/{name}"] if name != "login" else TEXTS["command-line/index"]
        assert [option for option in options - shared if option not in page] == [], name
    assert [row[0].split(",")[0] for row in table("command-line/index", "Options for all")] == [
        parameter.opts[0] for parameter in group.params if parameter.opts[0] in shared
    ]
    assert {row[0] for row in table("command-line/index", "Command line")} == set(group.commands)
    codes = {int(row[0]) for row in table("command-line/index", "Exit codes")}
    named = {value for name, value in vars(command_line).items() if name.isupper() and isinstance(value, int)}
    assert codes == named | {0}


def test_environment_variables_are_all_there() -> None:
    """The one table of variables has all that the library and the command read."""
    rows = {row[0] for row in table("reference/environments", "Environment variables")}
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "finapi_session").rglob("*.py")]
    read = set(re.findall(r"\bFINAPI_[A-Z_]+[A-Z]\b", "\n".join(sources))) - {"FINAPI_SESSION_COMPLETE"}
    assert {"FINAPI_STORE", "FINAPI_PASSWORD"} <= read <= rows


# Their looks.


def test_the_readme_is_short() -> None:
    """Whoever meets the package reads two screens; the rest is in the docs."""
    assert TEXTS["README"].count("\n") <= 150
    seven = blocks("README", "Seven lines without an account")[0].code
    assert len(seven.split("\n")) == 7


def test_it_renders_where_it_is_read() -> None:
    """The renderer of package indexes takes the README, and every page is sound."""
    from readme_renderer import rst

    assert rst.render(TEXTS["README"]) is not None
    assert not list(DOCUMENTS["README"].findall(nodes.image)), "a package index shows no picture of the repository"
    for name, document in DOCUMENTS.items():
        assert not list(document.findall(nodes.problematic)), name


def test_every_link_to_a_file_leads_there() -> None:
    """What the README links to is in the repository, and each picture of a page is there, with words for the blind."""
    for link in re.findall(r"<([^>:\s]+)>`_", TEXTS["README"]):
        assert (ROOT / link).is_file(), link
    for name, document in DOCUMENTS.items():
        for image in document.findall(nodes.image):
            assert (PATHS[name].parent / image["uri"]).is_file() and image["alt"]


def test_every_page_is_in_the_readme_or_a_list() -> None:
    """No page is lost: each is linked from the README or stands in a toctree."""
    listed = set(re.findall(r"<docs/([^>]+)\.rst>", TEXTS["README"])) | {"README", "index"}
    for name, text in TEXTS.items():
        folder = f"{name.rpartition('/')[0]}/".lstrip("/")
        listed |= {folder + entry for entry in re.findall(r"^    ([\w/-]+)$", text, re.M)}
    assert sorted(set(TEXTS) - listed) == []


def test_the_pictures_are_as_drawn(tmp_path: Path) -> None:
    """Diagram and terminals are what the script draws, from what the commands print; one that is not is named."""
    shutil.copytree(DOCS / "pictures", tmp_path, dirs_exist_ok=True)
    changed = tmp_path / "demo-light.svg"
    changed.write_text(changed.read_text(encoding="utf-8").replace("401", "402"), encoding="utf-8")
    (tmp_path / "renewal-dark.svg").unlink()
    machine = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(tmp_path / "draw.py"), "--check"]
    told = subprocess.run(command, env=machine, capture_output=True, text=True, timeout=120)
    assert told.stdout == "draw them again: renewal-dark.svg, demo-light.svg\n", told.stderr
    assert told.returncode == 1


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    """The check of the built site finds a missing file, a missing part of a page, and an address that is not https."""
    (tmp_path / "b.html").write_text('<p id="there"><img src="data:image/png;base64,x">')
    bad = ["gone.html", "b.html#gone", "#nowhere", "http://example.org/"]
    good = ["b.html", "b.html#there", "b.html?x#there", "#here", "https://example.org/x#y", "a.html"]
    links = "".join(f'<a href="{link}">x</a>' for link in [*bad, *good])
    (tmp_path / "a.html").write_text(f'<h1 id="here">{links}</h1>')
    command = [sys.executable, str(DOCS / "check_links.py"), str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert (shown.returncode, shown.stdout.splitlines()) == (1, [f"a.html: {link}" for link in bad])
    (tmp_path / "a.html").unlink()
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_nothing_of_this_machine_is_in_it() -> None:
    """Neither a path of the machine that it was written on nor a package index's host is in it."""
    for path in (ROOT / "CHANGELOG.rst", *PATHS.values(), *DOCS.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(work|home|root|tmp|Users)/|pypi\.|pythonhosted", text), path


def test_the_bench_finds_its_place() -> None:
    """The marks between which the bench table goes are there, once, in this order."""
    text = TEXTS["benchmarks"]
    assert text.count(".. bench-table-start\n") == text.count(".. bench-table-end\n") == 1
    assert text.index(".. bench-table-start") < text.index(".. bench-table-end")


def test_the_errors_are_told_without_secrets() -> None:
    """What the pages say of all errors holds: they are exceptions of requests with these four fields."""
    error = FinapiError("what", status=400, code="c", description="d", request_id="r")
    assert (error.status, error.code, error.description, error.request_id) == (400, "c", "d", "r")
    assert isinstance(error, OSError) and error.request is None and error.response is None
