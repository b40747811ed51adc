"""What is kept of one identity: its token, and what finAPI refused."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .errors import (
    AccessDeniedError,
    InvalidClientError,
    InvalidGrantError,
    LoginRequiredError,
    TokenError,
    UserLockedError,
)
from .tokens import Token

#: Seconds for which the client's refusal, a 403 and a 423 are taken for granted.
REST = 60.0
# More wrong passwords than this at a time are somebody's guessing: the oldest is forgotten.
_MOST_REFUSALS = 8


_KINDS: dict[str, type[TokenError]] = {
    kind.__name__: kind
    for kind in (InvalidClientError, InvalidGrantError, AccessDeniedError, UserLockedError, LoginRequiredError)
}


@dataclass(frozen=True)
class Refusal:
    """An error that finAPI would only repeat, until ``until`` (epoch seconds), or for good if that is ``None``."""

    error: str
    what: str
    status: int | None = None
    code: str | None = None
    description: str | None = None
    request_id: str | None = None
    until: float | None = None

    def __post_init__(self) -> None:
        texts = (self.what, self.code, self.description, self.request_id)
        numbers = (self.status, self.until)
        if self.error not in _KINDS or not all(map(_text_or_none, texts)) or not all(map(_number_or_none, numbers)):
            raise ValueError("not a refusal")

    @classmethod
    def of(cls, error: TokenError, *, for_good: bool, now: float) -> Refusal:
        """Keep *error*; only a password and a refresh token are refused for good."""
        until = None if for_good else now + REST
        return cls(error=type(error).__name__, what=error.args[0], until=until, **error.facts())

    def holds(self, now: float) -> bool:
        """Tell whether it still counts at *now*; a clock that was set back does not prolong it."""
        return self.until is None or 0 < self.until - now <= REST

    def to_error(self) -> TokenError:
        """Return the error that was refused with."""
        said = {"status": self.status, "code": self.code, "description": self.description}
        return _KINDS[self.error](self.what, request_id=self.request_id, **said)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Record:
    """What a store keeps of one identity.

    ``serial`` grows with each change, whatever the clocks do, so that of two records the newer one is known.
    ``fingerprint`` is that of the password that the token was had with. ``sticky`` says that finAPI gave the
    same token when asked early, so that nobody need ask again before it expires.
    """

    token: Token | None = field(default=None, repr=False)
    serial: float = 0.0
    fingerprint: str = ""
    sticky: bool = False
    refusals: dict[str, Refusal] = field(default_factory=dict, repr=False)

    def next(self, now: float, **changes: Any) -> Record:
        """Return the record that follows this one at *now* (epoch seconds)."""
        return replace(self, serial=max(now, self.serial + 0.001), **changes)

    def without(self, refused: Token) -> Record:
        """Return the record without the refresh token of *refused*: itself if it has another one or none."""
        if self.token is None or self.token.refresh_token is None or self.token.refresh_token != refused.refresh_token:
            return self
        return replace(self, token=replace(self.token, refresh_token=None))

    def refusal(self, fingerprint: str, now: float) -> Refusal | None:
        """Return what finAPI refused this password with, if that still counts at *now* (epoch seconds)."""
        refusal = self.refusals.get(fingerprint)
        return refusal if refusal is not None and refusal.holds(now) else None

    def fresh_until(self, leeway: float) -> float:
        """Return the epoch second until which nobody need look for another token."""
        if self.token is None:
            return -math.inf
        return self.token.renew_at(0.0 if self.sticky else leeway)

    def newer_than(self, other: Record) -> bool:
        """Tell whether this is the newer one of two that do not follow each other.

        Their serials may be of clocks that were set: a token that expires later is not taken for the older one.
        """
        outlasted = self.token is not None and self.fresh_until(0.0) < other.fresh_until(0.0)
        return self.serial > other.serial and not outlasted

    def refused(self, fingerprint: str, refusal: Refusal) -> dict[str, Refusal]:
        """Return the refusals with one more."""
        others = {name: kept for name, kept in self.refusals.items() if name != fingerprint}
        return dict([*others.items(), (fingerprint, refusal)][-_MOST_REFUSALS:])

    def dumps(self) -> str:
        """Return the record as JSON text; it holds the token."""
        return json.dumps(
            {
                "serial": self.serial,
                "fingerprint": self.fingerprint,
                "sticky": self.sticky,
                "token": self.token and self.token.to_dict(),
                "refusals": {name: asdict(refusal) for name, refusal in self.refusals.items()},
            }
        )

    @classmethod
    def loads(cls, text: str) -> Record:
        """Return the record that :meth:`dumps` wrote, or raise ``ValueError``."""
        try:
            kept = json.loads(text)
            return cls(
                token=None if kept["token"] is None else Token.from_dict(kept["token"]),
                serial=float(kept["serial"]),
                fingerprint=str(kept["fingerprint"]),
                sticky=bool(kept["sticky"]),
                refusals={str(name): Refusal(**refusal) for name, refusal in kept["refusals"].items()},
            )
        except (AttributeError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise ValueError(f"not a record: {type(error).__name__}") from None


#: What is kept of an identity of which nothing is known: one for all, as a process may have very many users.
NOTHING = Record()


def _text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


def _number_or_none(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and math.isfinite(value))
