"""What is public is listed, documented, typed, and loads nothing that is not used."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import FunctionType, ModuleType

import pytest
import requests

import finapi_session
import finapi_session.testing
from finapi_session import FinapiSession
from finapi_session.options import Overrides

ROOT = Path(__file__).parents[1]
PAGES = "\n".join(
    path.read_text(encoding="utf-8") for path in (ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst")))
)
SURFACE = ROOT / "tests" / "typed_surface.py"

#: The modules of optional dependencies, and the extra that brings them.
OPTIONAL = {
    "redis": "redis",
    "sqlalchemy": "sql",
    "keyring": "keyring",
    "cryptography": "encryption",
    "click": "cli",
    "flask": "sandbox",
    "werkzeug": "sandbox",
    "trustme": "sandbox",
}
NEEDS_AN_EXTRA = [
    ("finapi_session", "RedisStore", "redis"),
    ("finapi_session", "SQLStore", "sqlalchemy"),
    ("finapi_session", "KeyringStore", "keyring"),
    ("finapi_session", "EncryptedStore", "cryptography"),
    ("finapi_session.testing", "Sandbox", "flask"),
    ("finapi_session.testing", "Sandbox", "werkzeug"),
    ("finapi_session.testing", "Sandbox", "trustme"),
]
MISSPELT = """\
import finapi_session
from finapi_session import TokenEvent
from finapi_session import FinapiSession
from finapi_session import FinapiSesion  # wrong
from finapi_session.testing import Sandbox
from finapi_session.testing import Sandbocks  # wrong

try:
    FinapiSession("id", "secret").get("/x")
except finapi_session.InvalidGrantError:
    Sandbox()
except finapi_session.InvalidGrantErorr:  # wrong
    pass

FinapiSession.from_env(username="alice", leeway=30)
FinapiSession.from_env(usernme="alice")  # wrong
FinapiSession.from_env(leeway="30")  # wrong
FinapiSession.from_env().environment = finapi_session.LIVE  # wrong
TokenEvent("renewed", "user 'alice'", "https://finapi.example.com")
TokenEvent("renwed", "user 'alice'", "https://finapi.example.com")  # wrong
"""
BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def fresh(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run *code* in an interpreter of its own."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), *sys.path)))}
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)


def loaded_by(statement: str) -> set[str]:
    """Return the modules that *statement* loads."""
    shown = fresh(f"import sys; before = set(sys.modules)\n{statement}\nprint(*(set(sys.modules) - before))")
    assert shown.returncode == 0, shown.stderr
    return set(shown.stdout.split())


def ours() -> Iterator[ModuleType]:
    """Import every module of the package."""
    yield finapi_session
    for found in walk_packages(finapi_session.__path__, "finapi_session."):
        yield import_module(found.name)


def imported_for_types(module: ModuleType) -> dict[str, str]:
    """Return the names that a lazy module imports for type checkers, each with its home."""
    source = ast.parse(inspect.getsource(module))
    [block] = [node for node in source.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


@pytest.mark.parametrize("module", [finapi_session, finapi_session.testing], ids=lambda module: module.__name__)
def test_what_is_listed_is_there(module: ModuleType) -> None:
    """``__all__``, ``dir``, the star import, the names for type checkers and their homes are the same."""
    listed = set(module.__all__)
    assert sorted(listed) == list(module.__all__) and listed <= set(dir(module))
    star: dict[str, object] = {}
    exec(f"from {module.__name__} import *", star)
    assert set(star) - {"__builtins__"} == listed
    for name, home in imported_for_types(module).items():
        assert getattr(import_module(f"{module.__name__}.{home}"), name) is getattr(module, name)
    assert set(imported_for_types(module)) == listed


@pytest.mark.parametrize("module", [finapi_session, finapi_session.testing], ids=lambda module: module.__name__)
def test_what_is_not_there_is_refused(module: ModuleType) -> None:
    """Another name is an AttributeError that names it, as with any module."""
    with pytest.raises(AttributeError, match="no attribute 'Sessoin'"):
        module.Sessoin  # noqa: B018


def test_the_docs_have_every_public_name() -> None:
    """Whatever can be imported is told of in README or docs."""
    public = {*finapi_session.__all__, *finapi_session.testing.__all__}
    assert sorted(name for name in public if not re.search(rf"\b{name}\b", PAGES)) == []


def test_the_docs_have_no_other_names() -> None:
    """What they write like a class of ours is one."""
    shown = set(re.findall(r"``([A-Z][A-Za-z]+(?:Store|Error|Session|Auth|Event|Token|Detail|Contract))\b", PAGES))
    # finapi_session.httpx is imported by its own name: it needs an extra.
    public = {*finapi_session.__all__, *finapi_session.testing.__all__, "FinapiAuth"}
    assert shown and shown <= public


def test_the_docs_have_every_method_of_a_session() -> None:
    """What a session can do beyond requests.Session is told of there."""
    known = dir(requests.Session)
    further = {name for name in dir(FinapiSession) if not name.startswith("_") and name not in known}
    facts = {"environment", "request_id"}
    assert further - facts == {"user", "made_for_user", "fetch_token", "revoke", "from_env", "pages"}
    assert sorted(name for name in further - facts if f"``{name}(" not in PAGES) == []
    assert sorted(name for name in facts if f"``session.{name}``" not in PAGES) == []


def test_the_typed_surface_uses_every_public_name() -> None:
    """The file that mypy checks uses each name, and each argument of a session."""
    tree = ast.parse(SURFACE.read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    given = {word.arg for node in calls if ast.unparse(node.func) == "FinapiSession" for word in node.keywords}
    assert {
        *finapi_session.__all__,
        *finapi_session.testing.__all__,
        "user",
        "fetch_token",
        "revoke",
        "from_env",
        "pages",
    } <= used
    parameters = inspect.signature(FinapiSession).parameters.values()
    assert {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY} == given


@pytest.mark.parametrize("checker", ["mypy", "basedpyright"])
def test_a_misspelt_name_is_an_error_for_type_checkers(checker: str, tmp_path: Path) -> None:
    """The real checker finds a misspelt import, attribute and kind, each on its line, and nothing in right ones."""
    pytest.importorskip(checker)
    (tmp_path / "use.py").write_text(MISSPELT)
    quiet = ["--no-error-summary", "--no-incremental"] if checker == "mypy" else ["--level", "error"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT)}
    command = [sys.executable, "-m", checker, *quiet, "use.py"]
    shown = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    found = re.findall(r"use\.py:(\d+):.*(?:error|Error)", shown.stdout)
    wrong = [str(number) for number, line in enumerate(MISSPELT.splitlines(), 1) if "wrong" in line]
    assert sorted(set(found), key=int) == wrong and shown.returncode == 1, shown.stdout + shown.stderr


def test_from_env_takes_what_a_session_takes() -> None:
    """Its typed keywords are the arguments of a session, with the same types."""
    taken = {name: hint.__forward_arg__ for name, hint in Overrides.__annotations__.items()}
    assert taken == {name: str(each.annotation) for name, each in inspect.signature(FinapiSession).parameters.items()}


def test_the_typed_surface_imports() -> None:
    """The file that mypy checks is also a module that runs, with warnings as errors."""
    shown = fresh("import tests.typed_surface")
    assert (shown.returncode, shown.stderr) == (0, "")


def test_importing_the_package_loads_nothing_else() -> None:
    """``import finapi_session`` loads no dependency, optional or not, and no module of its own."""
    loaded = loaded_by("import finapi_session")
    assert {name for name in loaded if name.startswith("finapi_session")} == {"finapi_session"}
    assert not loaded & {*OPTIONAL, "requests", "requests_oauthlib", "filelock", "platformdirs", "pytest"}


def test_importing_the_session_loads_no_store_but_its_own() -> None:
    """A session comes with its memory; no other store is loaded, and no optional dependency."""
    loaded = loaded_by("from finapi_session import FinapiSession; FinapiSession('id', 'secret').close()")
    stores = {name for name in loaded if name.startswith("finapi_session.stores.")}
    assert stores == {f"finapi_session.stores.{name}" for name in ("memory", "protocol", "waiting")}
    assert not loaded & {*OPTIONAL, "filelock", "platformdirs", "pytest"}
    assert not {name for name in loaded if name.startswith(("finapi_session.testing", "finapi_session.cli"))}


@pytest.mark.parametrize(("module", "name", "dependency"), NEEDS_AN_EXTRA)
def test_a_missing_extra_is_named(module: str, name: str, dependency: str) -> None:
    """Without its dependency, importing a name says which extra to install."""
    code = BLOCK.format(module=dependency) + f"from {module} import {name}"
    shown = fresh(code)
    assert shown.returncode == 1
    wanted = f"ImportError: {name} needs an extra: pip install 'finapi-session[{OPTIONAL[dependency]}]'"
    assert shown.stderr.splitlines()[-1] == wanted


@pytest.mark.parametrize("module", ["finapi_session", "finapi_session.testing"])
def test_looking_at_it_needs_no_extra(module: str) -> None:
    """help() and inspect show what can be used, where nothing optional is installed."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({list(OPTIONAL)}))"
    looked = f"{blocked}\nimport inspect, pydoc, {module} as it\nprint(*dict(inspect.getmembers(it)))\nhelp(it)"
    shown = fresh(looked)
    assert shown.returncode == 0, shown.stderr
    names = set(shown.stdout.splitlines()[0].split())
    lacking = {name for home, name, _ in NEEDS_AN_EXTRA if home == module}
    assert lacking and not lacking & names and "NAME" in shown.stdout
    assert names >= set(sys.modules[module].__all__) - lacking


def test_a_missing_command_line_is_named() -> None:
    """Without click, the command says in one line which extra to install."""
    code = (
        BLOCK.format(module="click") + "from finapi_session.cli.__main__ import main; sys.argv[1:] = ['status']; main()"
    )
    shown = fresh(code)
    assert shown.returncode == 2 and "pip install 'finapi-session[cli]'" in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


def test_the_rest_works_without_any_extra() -> None:
    """With every optional dependency gone, all names that need none can be imported."""
    blocked = "".join(BLOCK.format(module=module) for module in OPTIONAL)
    free = set(finapi_session.__all__) - {name for _, name, _ in NEEDS_AN_EXTRA}
    shown = fresh(f"{blocked}\nfrom finapi_session import {', '.join(sorted(free))}")
    assert shown.returncode == 0, shown.stderr


def test_help_on_a_session_can_be_read() -> None:
    """help() tells each argument on a line of its own, begins with what is ours, and no line is too long."""
    shown = fresh("import finapi_session; help(finapi_session.FinapiSession)").stdout
    words = [name for name in inspect.signature(FinapiSession).parameters]
    assert [name for name in words if not re.search(rf"^ \|  :param {name}: \S", shown, re.M)] == []
    assert re.findall(r"^ \|  :param (\w+):", shown, re.M) == words
    ours = shown[: shown.index("inherited from requests.sessions.Session")]
    assert all(f" |  {name}(" in ours for name in ("pages", "user", "revoke", "fetch_token", "from_env"))


def test_everything_public_has_a_docstring() -> None:
    """Each public module, class, function, method and property of the package says what it is."""
    bare = {module.__name__ for module in ours() if not module.__doc__}
    for module in ours():
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", "") != module.__name__:
                continue
            if isinstance(value, FunctionType) and not value.__doc__:
                bare.add(f"{module.__name__}.{name}")
            if inspect.isclass(value):
                bare |= {f"{module.__name__}.{bad}" for bad in undocumented(value)}
    assert sorted(bare) == []


def undocumented(kind: type) -> Iterator[str]:
    """Name what a class should describe, and does not."""
    # A dataclass without a docstring gets its signature for one.
    if not kind.__doc__ or kind.__doc__.startswith(f"{kind.__name__}("):
        yield kind.__name__
    for name, value in vars(kind).items():
        described = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        is_member = isinstance(described, (FunctionType, property)) or type(described).__name__ == "cached_property"
        if is_member and not name.startswith("_") and not described.__doc__:
            yield f"{kind.__name__}.{name}"


def test_the_changelog_begins_with_this_version() -> None:
    """The first entry is this version, released or not."""
    first = re.search(r"^(\d\S*) \(.+\)$", (ROOT / "CHANGELOG.rst").read_text(encoding="utf-8"), re.M)
    assert first is not None and first[1] == finapi_session.__version__


def test_a_missing_dependency_that_is_no_extra_is_not_called_one() -> None:
    """A broken installation says which module is missing, and names no extra."""
    code = "import sys; sys.modules['filelock'] = None\nimport finapi_session\nfinapi_session.FileStore"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert "filelock" in run.stderr and "extra" not in run.stderr


def test_the_oldest_versions_are_tested() -> None:
    """``tox -e oldest`` pins each requirement of ``setup.cfg`` at the lowest version that it allows."""
    setup, tox = ConfigParser(interpolation=None), ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    tox.read(ROOT / "tox.ini")
    wanted = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    floors = re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(wanted), re.MULTILINE)
    pins = re.findall(r"^([\w-]+)==([\d.]+)", tox["testenv:oldest"]["deps"], re.MULTILINE)
    assert set(pins) == set(floors)


def audit(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the audit of the lowest versions, as ``tox -e audit`` does, by its record alone."""
    return subprocess.run(
        [sys.executable, ROOT / ".ci" / "audit", "--recorded", *arguments], capture_output=True, text=True
    )


def test_the_oldest_versions_have_no_published_weakness() -> None:
    """No version that ``setup.cfg`` allows has a weakness on record, but those that are accepted with a reason."""
    result = audit()
    assert (result.returncode, result.stderr) == (0, "") and "0 that count" in result.stdout


@pytest.mark.parametrize(
    ("now", "then", "said"),
    [
        ("requests>=2.33,", "requests>=2.32.3,", "Python 3.12: requests 2.32.3 has CVE-2026-25645, ended in 2.33.0"),
        ("cryptography>=50,", "cryptography>=46.0.7,", "Python 3.13: cryptography 46.0.7 has CVE-2026-69247"),
        ("anyio>=4.15,", "anyio>=4.4,", "Python 3.10: anyio 4.4 has CVE-2026-63374, ended in 4.14.2"),
        ("filelock>=4.2.1,", "filelock>=4.0,", "Python 3.11: filelock 4.0 has CVE-2026-112909, ended in 4.2.1"),
    ],
)
def test_a_lower_floor_is_found(tmp_path: Path, now: str, then: str, said: str) -> None:
    """One that is lowered is named; what is accepted on Python 3.10 is accepted nowhere else."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "advisories.tsv").write_text((ROOT / ".ci" / "advisories.tsv").read_text())
    setup = (ROOT / "setup.cfg").read_text()
    assert now in setup
    (tmp_path / "setup.cfg").write_text(setup.replace(now, then))
    result = audit(str(tmp_path))
    assert result.returncode == 1 and said in result.stdout
    assert ("Python 3.10: filelock" in result.stdout) is False


def test_the_bill_of_materials(tmp_path: Path) -> None:
    """It tells of the wheel that is built all that it needs, the hashes of what is released, and the same each time."""
    pytest.importorskip("setuptools")
    for name in ("setup.cfg", "setup.py", "README.rst", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "finapi_session", tmp_path / "finapi_session")
    build = ("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", ".")
    subprocess.run([sys.executable, *build], cwd=tmp_path, check=True, capture_output=True)
    bills = []
    for _ in range(2):
        command = [sys.executable, ROOT / ".ci" / "sbom", tmp_path / "dist"]
        subprocess.run(command, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "TZ": "Asia/Tokyo"})
        [path] = (tmp_path / "dist").glob("*.cdx.json")
        bills.append(path.read_text())
    assert bills[0] == bills[1] and path.name == f"finapi-session-{finapi_session.__version__}.cdx.json"
    bill = json.loads(bills[0])
    assert bill["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    [wheel] = (tmp_path / "dist").glob("*.whl")
    [release] = bill["metadata"]["component"]["externalReferences"]
    assert release["hashes"] == [{"alg": "SHA-256", "content": sha256(wheel.read_bytes()).hexdigest()}]
    scopes = {component["name"]: component["scope"] for component in bill["components"]}
    assert {name for name, scope in scopes.items() if scope == "required"} == {
        "filelock",
        "oauthlib",
        "platformdirs",
        "requests",
        "requests-oauthlib",
        "urllib3",
    }
    assert {"redis", "sqlalchemy", "keyring", "cryptography", "click", "flask", "werkzeug", "trustme"} < set(scopes)
    [ranges] = [component["properties"] for component in bill["components"] if component["name"] == "filelock"]
    assert [entry["value"].partition(";")[0] for entry in ranges] == ["<5,>=3.30", "<5,>=4.2.1"]
