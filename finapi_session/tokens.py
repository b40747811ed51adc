"""An access token, as a value."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .redaction import Redacted

# RFC 6749, appendix A.12: an access token is visible ASCII, so nothing in it can end a header.
_VISIBLE = re.compile(r"[\x21-\x7e]+")


# Appendix A.17: a refresh token may hold spaces as well.
_PRINTABLE = re.compile(r"[\x20-\x7e]+")

#: Characters of a token at most; finAPI's may grow to 8,192.
LONGEST_TOKEN = 16_384


class Bearer(Redacted):
    """The ``Authorization`` value of a token (RFC 6750, section 2.1).

    A type of its own, so that ours can be told from one that the caller wrote.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Token:
    """An access token, with what came with it (RFC 6749, section 5.1).

    ``access_token`` and ``refresh_token`` are opaque text of at most 16,384 characters and not shown, ``scope`` is
    what finAPI says of it ("all").
    ``expires_at`` is in epoch seconds by this machine's clock, ``None`` for a token that never expires;
    ``issued_at`` the epoch second at which it was asked for. Raises ``ValueError`` or ``TypeError`` for what
    cannot be a token.
    """

    access_token: str = field(repr=False)
    expires_at: float | None = None
    refresh_token: str | None = field(default=None, repr=False)
    issued_at: float | None = None
    scope: str | None = None
    #: The value of the ``Authorization`` header.
    authorization: Bearer = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_texts(self.access_token, self.refresh_token)
        for name in ("expires_at", "issued_at"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, (int, float)) or not math.isfinite(value)):
                raise ValueError(f"{name} must be a finite number of epoch seconds or None")
        object.__setattr__(self, "authorization", Bearer(f"Bearer {self.access_token}"))

    @classmethod
    def from_dict(cls, answer: Mapping[str, Any], issued_at: float | None = None) -> Token:
        """Make a token from a mapping as OAuth libraries keep it, and as finAPI answers.

        Without ``expires_at`` (epoch seconds) it is counted from *issued_at*, by default now. finAPI's rule:
        ``expires_in`` 0 or absent means never; so does one that is not a number.
        """
        if issued_at is None:
            issued_at = _seconds(answer.get("issued_at"))
        issued_at, expires_at = _span(answer, issued_at)
        return cls(
            access_token=answer.get("access_token", ""),
            expires_at=expires_at,
            refresh_token=answer.get("refresh_token") or None,
            issued_at=issued_at,
            scope=_scope(answer.get("scope")),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what :meth:`from_dict` reads; it holds the secrets."""
        return {name: getattr(self, name) for name in _FIELDS if getattr(self, name) is not None}

    def dumps(self) -> str:
        """Return the token as JSON text; it holds the secrets."""
        return json.dumps(self.to_dict())

    @classmethod
    def loads(cls, text: str) -> Token:
        """Return the token that :meth:`dumps` wrote, or raise ``ValueError``."""
        answer = json.loads(text)
        if not isinstance(answer, dict):
            raise ValueError("a token is kept as a JSON object")
        return cls.from_dict(answer)

    @property
    def lifetime(self) -> float:
        """Seconds from asking to expiry; infinite if either is unknown."""
        if self.expires_at is None or self.issued_at is None:
            return math.inf
        return max(self.expires_at - self.issued_at, 0.0)

    def renew_at(self, leeway: float, late: float = 0.0) -> float:
        """Return the epoch second from which to look for a new token: *leeway* seconds before expiry.

        A short-lived token keeps half of its life; one that never expires is never looked after. *late* is the part of
        the time before expiry, from 0 to 1, by which it is later.
        """
        if self.expires_at is None:
            return math.inf
        return self.expires_at - min(leeway, self.lifetime / 2) * (1 - late)

    def expired(self, now: float) -> bool:
        """Tell whether the token is past its expiry at *now* (epoch seconds)."""
        return self.expires_at is not None and now >= self.expires_at


def _check_texts(access_token: object, refresh_token: object) -> None:
    if not isinstance(access_token, str) or not _VISIBLE.fullmatch(access_token):
        raise ValueError("access_token must be text of visible ASCII characters")
    if len(access_token) > LONGEST_TOKEN:
        raise ValueError(f"access_token must have at most {LONGEST_TOKEN} characters")
    if refresh_token is not None and not sound_refresh_token(refresh_token):
        said = f"text of printable ASCII characters, at most {LONGEST_TOKEN}, or None"
        raise ValueError(f"refresh_token must be {said}")


def sound_refresh_token(value: object) -> bool:
    """Tell whether *value* can be a refresh token."""
    return isinstance(value, str) and len(value) <= LONGEST_TOKEN and _PRINTABLE.fullmatch(value) is not None


_FIELDS = ("access_token", "expires_at", "refresh_token", "issued_at", "scope")


def _span(answer: Mapping[str, Any], issued_at: float | None) -> tuple[float | None, float | None]:
    """Return when the token of *answer* was issued and expires, as far as it tells."""
    lifetime, expires_at = _seconds(answer.get("expires_in")), _seconds(answer.get("expires_at"))
    if lifetime is None:
        return issued_at, expires_at
    if expires_at is None:
        issued_at = time.time() if issued_at is None else issued_at
        return issued_at, issued_at + lifetime
    return expires_at - lifetime if issued_at is None else issued_at, expires_at


def _scope(value: object) -> str | None:
    """Return a scope as finAPI writes it; oauthlib makes a list of it."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " ".join(value)
    return value if isinstance(value, str) else None


def _seconds(value: object) -> float | None:
    """Return *value* as a positive number of seconds, or ``None`` for 0, absent and junk."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return seconds if 0 < seconds < 1e11 else None
