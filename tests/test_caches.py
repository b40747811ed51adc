"""HTTP caches in front of a session: what they mix up, and the recipes of docs/howto/caches.rst that help."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from finapi_session import FinapiSession
from finapi_session.testing import Sandbox

PAGE = (Path(__file__).parents[1] / "docs" / "howto" / "caches.rst").read_text(encoding="utf-8")


def recipe(name: str) -> str:
    """Return the code block of the page that defines *name*."""
    blocks = re.findall(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", PAGE, re.MULTILINE)
    [block] = [each for each in map(textwrap.dedent, blocks) if f"{name}(" in each]
    return block


@pytest.fixture
def bank(sandbox: Sandbox) -> Sandbox:
    """A finAPI with two users."""
    sandbox.add_user("bob", "his-password")
    return sandbox


def who(session: FinapiSession) -> Any:
    """Return whose data the session gets."""
    return session.get("/api/v2/users").json()["id"]


def seen(client: FinapiSession) -> list[str]:
    """Return whom alice and bob see, twice."""
    alice, bob = client.user("alice", "her-password"), client.user("bob", "his-password")
    return [who(session) for session in (alice, bob, alice, bob)]


def cached(bank: Sandbox, **settings: Any) -> FinapiSession:
    """Return a session with requests-cache's mixin in it."""
    mixin = pytest.importorskip("requests_cache").CacheMixin
    kind = type("Cached", (mixin, FinapiSession), {})
    credentials = {"client_id": bank.client_id, "client_secret": bank.client_secret, "environment": bank.base_url}
    session: FinapiSession = kind(**credentials, backend="memory", **settings)
    session.verify = bank.ca_bundle
    return session


@pytest.mark.parametrize("settings", [{}, {"match_headers": ["Authorization"]}], ids=str)
def test_a_cache_that_looks_at_no_token_mixes_users_up(bank: Sandbox, settings: dict[str, Any]) -> None:
    """The danger is real, and ``match_headers`` alone is no cure: what is redacted is left out of the key as well."""
    with cached(bank, **settings) as client:
        assert seen(client) == ["alice"] * 4


def test_the_recipe_for_requests_cache(bank: Sandbox) -> None:
    """With the page's key each user has answers of their own, from the cache the second time, and no token is in it."""
    pytest.importorskip("requests_cache")
    namespace: dict[str, Any] = {}
    exec(recipe("key_with_user"), namespace)
    with cached(bank, key_fn=namespace["key_with_user"]) as client:
        assert seen(client) == ["alice", "bob"] * 2
        assert bank.count("/api/v2/users", status=200) == 2
        tokens = [client.user(name).fetch_token().access_token for name in ("alice", "bob")]
        kept = client.cache.responses  # type: ignore[attr-defined]
        assert len(kept) == 2
        for key in kept:
            text = repr((key, dict(kept[key].request.headers), dict(kept[key].headers), kept[key].content))
            assert not [token for token in tokens if token in text]


INSTALLED = """
import requests_cache
requests_cache.install_cache(backend="memory", **{settings})
from finapi_session import FinapiSession
client = FinapiSession({client_id!r}, {client_secret!r}, environment={base_url!r})
client.verify = {ca_bundle!r}
alice, bob = client.user("alice", "her-password"), client.user("bob", "his-password")
print(*(session.get("/api/v2/users").json()["id"] for session in (alice, bob)))
"""


@pytest.mark.parametrize("safe", [False, True])
def test_a_cache_that_is_installed_everywhere(bank: Sandbox, safe: bool) -> None:
    """``install_cache`` before the import is under every session, and needs the same key."""
    pytest.importorskip("requests_cache")
    names = {name: getattr(bank, name) for name in ("client_id", "client_secret", "base_url", "ca_bundle")}
    code = INSTALLED.format(settings="{'key_fn': key_with_user}" if safe else "{}", **names)
    code = recipe("key_with_user") + code
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.stdout.split() == (["alice", "bob"] if safe else ["alice", "alice"]), shown.stderr


def test_cachecontrol_on_the_client_mixes_users_up(bank: Sandbox) -> None:
    """CacheControl knows an answer by its address alone, and users go over the client's adapters."""
    cachecontrol = pytest.importorskip("cachecontrol")
    heuristics = pytest.importorskip("cachecontrol.heuristics")
    with bank.session() as client:
        client.mount("https://", cachecontrol.CacheControlAdapter(heuristic=heuristics.ExpiresAfter(days=1)))
        assert seen(client) == ["alice"] * 4


def test_the_recipe_for_cachecontrol(bank: Sandbox) -> None:
    """A session of one's own for each user, with an adapter of its own, keeps them apart."""
    cachecontrol = pytest.importorskip("cachecontrol")
    heuristics = pytest.importorskip("cachecontrol.heuristics")
    for name, password in (("alice", "her-password"), ("bob", "his-password")):
        with bank.session(name, password) as session:
            adapter = cachecontrol.CacheControlAdapter(heuristic=heuristics.ExpiresAfter(days=1))
            session.mount("https://", adapter)
            assert [who(session), who(session)] == [name, name]
    assert bank.count("/api/v2/users", status=200) == 2


def test_the_cookies_of_a_client_that_calls_for_a_user(sandbox: Sandbox) -> None:
    """``client.get(url, auth=alice.auth)`` sends the client session's cookies, as the docs say; hers does not."""
    with sandbox.session() as client, client.user("alice", "her-password") as alice:
        client.cookies.set("whose", "the-clients", domain="127.0.0.1")
        by_client = client.get("/api/v2/users", auth=alice.auth)
        assert by_client.json()["id"] == "alice"
        assert "the-clients" in by_client.request.headers["Cookie"]
        assert "Cookie" not in alice.get("/api/v2/users").request.headers
