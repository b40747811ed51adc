"""Values in a store that are forged, moved, of another version or huge: a miss and a warning, never used."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable

import pytest

from finapi_session import InvalidGrantError, MemoryStore
from finapi_session.testing import Sandbox

from .herd import CALLS, warm
from .links import Link
from .logins import keys, stored

# What would tell a reader of the log or of an error something else than what happened.
_EVIL = "\x1b[2Jok\r\n2026-11-25 CRITICAL root: all is well"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of the store, and see to it that none leaves its line."""
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert not any(re.search(r"[\x00-\x1f\x7f-\x9f]", text) for text in said)
    return [text for text in said if "store failed" in text]


def _tampered(value: str) -> str:
    """Return *value* with another expiry under the same seal."""
    return value.replace('"expires_at": 1', '"expires_at": 2')


FORGERIES: dict[str, Callable[[str], str]] = {
    "tampered": _tampered,
    "no seal": lambda value: "2.." + value.split(".", 2)[2],
    "another seal": lambda value: f"2.{'0' * 64}." + value.split(".", 2)[2],
    "not ASCII": lambda value: "2.\udcff\u00e9." + value.split(".", 2)[2],
    "a later version": lambda value: "3" + value[1:],
    "version 0.1.0": lambda value: json.dumps({"token": json.loads(value.split(".", 2)[2])["grants"][0]["token"]}),
    "text of evil": lambda value: _EVIL,
    "empty": lambda value: "",
    "huge": lambda value: value + " " * 70000,
    "deep": lambda value: "2.x." + "[" * 60000,
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_token_is_a_miss_and_a_warning(
    forgery: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever can write to the store but does not know the client's secret can make nobody use a token."""
    store, key = MemoryStore(), keys(sandbox)[0]
    sandbox.session("alice", store=store).fetch_token()
    value = store.get(key)
    assert value is not None and FORGERIES[forgery](value) != value
    store.set(key, FORGERIES[forgery](value))
    alice = sandbox.session("alice", store=store)
    warm(alice)
    assert sandbox.count(CALLS, grant_type="password") == 2 and warnings(caplog)
    assert [grant.token for grant in stored(sandbox, store)] == [alice.fetch_token()]
    caplog.clear()
    warm(sandbox.session("alice", store=store))
    assert sandbox.count(CALLS) == 2 and not warnings(caplog)


def test_a_token_moved_to_another_user_is_a_miss_and_a_warning(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Mallory's value under Anna's key, seal and all: Anna does not work on Mallory's accounts."""
    store = MemoryStore()
    sandbox.add_user("mallory", "his-password")
    sandbox.session("mallory", store=store).fetch_token()
    moved = store.get(keys(sandbox, "mallory")[0])
    assert moved is not None
    store.set(keys(sandbox, sandbox.username)[0], moved)
    anna = sandbox.session(sandbox.username, store=store)
    warm(anna)
    assert sandbox.calls[-1].username == sandbox.username and warnings(caplog)


def test_a_refusal_moved_to_another_user_locks_nobody_out(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """What was refused of Mallory does not keep Anna from signing in."""
    store = MemoryStore()
    sandbox.add_user("mallory", "his-password")
    with pytest.raises(InvalidGrantError):
        sandbox.session("mallory", "wrong", store=store).fetch_token()
    moved = store.get(keys(sandbox, "mallory")[1])
    assert moved is not None
    store.set(keys(sandbox, sandbox.username)[1], moved)
    warm(sandbox.session(sandbox.username, store=store))
    assert warnings(caplog)


def test_a_token_under_the_key_of_refusals_is_a_miss_and_a_warning(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """The seal binds a value to its own key, of which one user has two."""
    store, (key, refusals) = MemoryStore(), keys(sandbox)
    sandbox.session("alice", store=store).fetch_token()
    sandbox.expire_tokens("alice")
    value = store.get(key)
    assert value is not None
    store.set(refusals, value)
    warm(sandbox.session("alice", store=store))
    assert warnings(caplog)


@pytest.mark.parametrize("seal", ["", "0" * 64])
def test_a_forged_refusal_is_a_miss_and_tells_nothing(
    seal: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither keeps it anybody from signing in, nor does its text reach a log or a screen."""
    store = MemoryStore()
    refusal = {"error": "InvalidGrantError", "what": _EVIL, "description": _EVIL, "serial": 10**6}
    text = json.dumps({"asking": refusal, "login": refusal}, ensure_ascii=False)
    store.set(keys(sandbox)[1], f"2.{seal}.{text}")
    warm(sandbox.session("alice", store=store))
    assert warnings(caplog)


def test_an_old_value_is_a_miss_and_a_plain_warning(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """What version 0.1.0 stored is told as such, and is replaced by what is obtained."""
    store = MemoryStore()
    store.set(keys(sandbox)[0], '{"token": {"access_token": "old"}, "refused": {}}')
    warm(sandbox.session("alice", store=store))
    reason = "value: it is of another version, or not ours, and is taken for nothing"
    assert all(reason in warning for warning in warnings(caplog)) and warnings(caplog)
    assert "old" not in str(store.get(keys(sandbox)[0]))


def test_what_is_not_ours_is_warned_of_once(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """One value that cannot be read, in one call, is one warning."""
    store = MemoryStore()
    store.set(keys(sandbox)[0], '{"token": {"access_token": "old"}, "refused": {}}')
    warm(sandbox.session("alice", store=store))
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("value", [b"bytes", 5, ["a"], {"a": "b"}])
def test_what_is_no_text_is_a_miss_and_a_warning(
    value: object, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """A store of the caller's that gives back something else than it was given fails nobody's call."""

    class Odd(Link):
        def get(self, key: str) -> str | None:
            super().get(key)
            return value  # type: ignore[return-value]

    alice = sandbox.session("alice", store=Odd())
    warm(alice)
    assert any(type(value).__name__ in text for text in warnings(caplog))
    alice.close()
