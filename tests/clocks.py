"""Our clock, which a test may set; finAPI's goes on by itself, or along with ours."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from finapi_session import FinapiSession
    from finapi_session.testing import Sandbox


class Clock:
    """The wall clock of this process, on which soft windows open without a delay by chance."""

    def __init__(self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("finapi_session.source._LATE", 0.0)
        real = time.time
        self._sandbox = sandbox
        self.ahead = 0.0
        monkeypatch.setattr(time, "time", lambda: real() + self.ahead)

    def step(self, seconds: float) -> None:
        """Set our clock on by so many seconds, or back; finAPI's stays as it is."""
        self.ahead += seconds

    def go_on(self, seconds: float) -> None:
        """Let so many seconds pass, for finAPI as well."""
        self.ahead += seconds
        self._sandbox.advance(seconds)

    def before_expiry(self, session: FinapiSession, left: float = 30.0) -> None:
        """Set our clock to where the token of *session* has so many seconds left: negative ones, and it has expired."""
        expires_at = session.fetch_token().expires_at
        assert expires_at is not None
        self.ahead += expires_at - left - time.time()
