"""The package loads what is used, and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

DEPENDENCIES = {
    "EncryptedStore": {"cryptography"},
    "FileStore": {"filelock", "platformdirs"},
    "KeyringStore": {"filelock", "keyring", "platformdirs"},
    "MemoryStore": set(),
    "RedisStore": {"redis"},
    "SQLStore": {"filelock", "platformdirs", "sqlalchemy"},
}
EVERY = set().union(*DEPENDENCIES.values())


@pytest.mark.parametrize("name", DEPENDENCIES)
def test_a_store_loads_its_own_dependencies_only(name: str) -> None:
    """Importing the package loads no dependency; naming a store loads those of that store."""
    code = (
        "import sys, finapi_session as stores, finapi_session.stores\n"
        f"print([name for name in {sorted(EVERY)} if name in sys.modules])\n"
        f"getattr(stores, {name!r})\n"
        "ours = [name for name in sys.modules if name.startswith('finapi_session.stores.')]\n"
        "print(sorted({name.split('.')[-1] for name in ours}))\n"
        f"print(sorted(name for name in {sorted(EVERY)} if name in sys.modules))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()
    module = name.removesuffix("Store").lower()
    files = {"file", "folders", "protocol", "waiting"}
    more = {"FileStore": files, "KeyringStore": files, "SQLStore": files, "EncryptedStore": {"protocol"}}
    ours = {module} | more.get(name, {"waiting"})
    # redis-py loads cryptography where it is installed.
    theirs = DEPENDENCIES[name] | ({"cryptography"} if name == "RedisStore" else set())
    assert out == ["[]", str(sorted(ours)), str(sorted(theirs))]
