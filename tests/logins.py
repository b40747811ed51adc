"""Workers that live on a user's login, and what a store keeps of it."""

from __future__ import annotations

from typing import Any

from finapi_session import FinapiSession, MemoryStore, TokenStore
from finapi_session.cell import refusals_key
from finapi_session.envelope import unverified
from finapi_session.identity import Credentials
from finapi_session.knowledge import Grant
from finapi_session.testing import Sandbox


def without_password(sandbox: Sandbox, store: TokenStore, **options: Any) -> FinapiSession:
    """Return a session for alice that has no password, as in a worker of its own."""
    client = (sandbox.client_id, sandbox.client_secret)
    session = FinapiSession(*client, username="alice", environment=sandbox.environment, store=store, **options)
    session.verify, session.trust_env = sandbox.ca_bundle, False
    return session


def keys(sandbox: Sandbox, username: str | None = "alice", secret: str | None = None) -> tuple[str, str]:
    """Return the names under which a store keeps an identity's tokens and refusals."""
    credentials = Credentials(sandbox.client_id, secret or sandbox.client_secret, username)
    key = credentials.key(sandbox.environment.token_url)
    return key, refusals_key(key)


def stored(sandbox: Sandbox, store: TokenStore, username: str | None = "alice") -> tuple[Grant, ...]:
    """Return the grants that *store* keeps, the newest first."""
    text = store.get(keys(sandbox, username)[0])
    return () if text is None else unverified(text).grants


def stored_by(sandbox: Sandbox, store: MemoryStore, **options: Any) -> None:
    """Let a worker put a token into *store* and go; finAPI is not asked."""
    worker = without_password(sandbox, store, **options)
    calls = len(sandbox.calls)
    worker.fetch_token()
    worker.close()
    assert len(sandbox.calls) == calls
