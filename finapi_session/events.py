"""What happens to tokens, told to the log and to whoever wants to count."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Literal

from .errors import raised_by_signal_handler

log = logging.getLogger("finapi_session")

#: What may happen, see :class:`TokenEvent`.
Kind = Literal["issued", "renewed", "adopted", "revoked", "refused", "failed", "rejected", "store_failed", "decided"]

_LEVELS: dict[Kind, int] = {
    "issued": logging.INFO,
    "renewed": logging.INFO,
    "adopted": logging.INFO,
    "revoked": logging.INFO,
    "refused": logging.WARNING,
    "failed": logging.WARNING,
    "rejected": logging.WARNING,
    "store_failed": logging.WARNING,
    "decided": logging.DEBUG,
}


@dataclass(frozen=True)
class TokenEvent:
    """One fact about a token; it holds no secret.

    ``kind`` is ``issued`` (the first token, or one for a password), ``renewed``, ``adopted`` (found in the
    store, or given by the caller), ``revoked``, ``refused`` (finAPI will not give one), ``failed`` (no usable
    answer), ``rejected`` (the API rejects tokens that finAPI has just given), ``store_failed`` or ``decided`` (why
    nothing was asked). ``identity`` is a client or user, ``environment`` finAPI's base URL, ``expires_in`` the seconds
    that the token is good for (``None``: for ever, or there is none), ``request_id`` the id of the token call,
    ``milliseconds`` how long it took, ``reason`` what happened and what comes next.
    """

    kind: Kind
    identity: str
    environment: str
    expires_in: float | None = None
    request_id: str | None = None
    milliseconds: float | None = None
    reason: str | None = None

    def __str__(self) -> str:
        parts = [f"token {self.kind.replace('_', ' ')}: {self.identity} at {self.environment}"]
        if self.expires_in is not None:
            parts.append(f"{self.expires_in:.0f} s left")
        if self.milliseconds is not None:
            parts.append(f"{self.milliseconds:.0f} ms")
        if self.request_id and self.request_id not in (self.reason or ""):
            parts.append(f"request id {self.request_id}")
        if self.reason:
            parts.append(self.reason)
        return ", ".join(parts)


#: What ``on_event`` takes.
Listener = Callable[[TokenEvent], object]


@dataclass
class Outage:
    """How many OAuth calls in a row got no usable answer: the first is worth a warning, the others are counted."""

    failures: int = 0

    def failed(self) -> int:
        """Count one more, and return how many there are."""
        self.failures += 1
        return self.failures

    def ended(self) -> int:
        """Return how many there were, and begin anew."""
        failures, self.failures = self.failures, 0
        return failures


@dataclass(frozen=True)
class Journal:
    """Writes events to the logger ``finapi_session`` and hands them to ``on_event``."""

    environment: str
    on_event: Listener | None = None
    outage: Outage = field(default_factory=Outage, compare=False)

    def tell(
        self,
        kind: Kind,
        identity: str,
        expires_in: float | None = None,
        request_id: str | None = None,
        milliseconds: float | None = None,
        reason: str | None = None,
        *,
        quietly: bool = False,
    ) -> None:
        """Tell one event, *quietly* at DEBUG. A listener that raises is logged and costs nothing else."""
        event = TokenEvent(kind, identity, self.environment, expires_in, request_id, milliseconds, reason)
        level = logging.DEBUG if quietly else _LEVELS[kind]
        if log.isEnabledFor(level):
            log.log(level, "%s", event, extra={f"finapi_{name}": value for name, value in asdict(event).items()})
        if self.on_event is not None:
            try:
                self.on_event(event)
            except Exception as error:
                if raised_by_signal_handler(error):
                    raise
                log.warning("on_event raised %s; the call goes on", type(error).__name__)
