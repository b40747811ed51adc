"""What came in and what goes out next: records of calls, answers planned ahead, and answers that stay."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .authority import Kind

Mishap = Literal["drop", "lose", "cut", "truncated", "html", "empty", "junk"]


@dataclass(frozen=True)
class Call:
    """One call as the sandbox saw it. Holds no secret: of a token the first four characters.

    ``status`` is ``None`` where no answer was sent. ``kind`` and ``username`` tell who called, by the bearer
    or, on a token call, by the form; ``token`` is the bearer, or the token that was given; ``revoked`` is, on
    a revoke call, whose token was named: ``"client"`` or the user's id. ``params`` is the query: a name that came
    once has its text, else the list of texts. ``headers`` are looked up as HTTP does, in any case; ``json`` is the
    body that was sent as JSON, ``None`` for any other. In these three, secrets read ``"[redacted]"``.
    """

    method: str
    path: str
    status: int | None
    request_id: str
    grant_type: str | None = None
    kind: Kind | None = None
    username: str | None = None
    token: str | None = None
    revoked: str | None = None
    params: Mapping[str, str | list[str]] = field(default_factory=dict, hash=False)
    headers: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)
    json: Any = field(default=None, hash=False)


@dataclass(frozen=True)
class Plan:
    """An answer planned ahead, for calls whose path ends with ``path``, of this ``method`` and ``grant_type``.

    ``status`` ``None`` lets the call be judged as always; ``share`` of the body is sent, and ``breaks`` drops
    the connection after it. ``judged`` gives a status below 400 for a living access token only.
    """

    status: int | None
    body: bytes | None = None
    name: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str | None = None
    method: str | None = None
    grant_type: str | None = None
    share: float = 1
    breaks: bool = False
    judged: bool = False

    @classmethod
    def of(cls, answer: int | Mishap, body: object, headers: Mapping[str, str] | None, **match: Any) -> Plan:
        """Make a plan from what a test says; raises ``ValueError`` for an answer that does not exist."""
        if isinstance(answer, int) and 200 <= answer <= 599:
            return cls(answer, _encoded(body), str(answer), headers or {}, **match)
        if answer not in _MISHAPS:
            raise ValueError(f"answer must be a status from 200 to 599 or one of {list(_MISHAPS)}, not {answer!r}")
        if body is not None or headers is not None:
            raise ValueError("body and headers go with a status")
        return cls(**_MISHAPS[str(answer)], name=str(answer), **match)

    def fits(self, call: Call) -> bool:
        """Tell whether this plan is for such a call."""
        wanted = ((self.method, call.method), (self.grant_type, call.grant_type))
        return call.path.endswith(self.path or "") and all(want in (None, value) for want, value in wanted)

    def __str__(self) -> str:
        grant = f", grant {self.grant_type}" if self.grant_type else ""
        return f"{self.name} for {self.method or 'any call'} on {self.path or 'any path'}{grant}"


_PAGE = b"<!DOCTYPE html><html><head><title>finAPI</title></head><body>Back soon.</body></html>"
_MISHAPS: dict[str, dict[str, Any]] = {
    "drop": {"status": 503, "share": 0, "breaks": True},
    "lose": {"status": None, "share": 0, "breaks": True},
    "cut": {"status": None, "share": 0.5, "breaks": True},
    "truncated": {"status": None, "share": 0.5},
    "html": {"status": 200, "body": _PAGE, "headers": {"Content-Type": "text/html"}},
    "empty": {"status": 200, "body": b""},
    "junk": {"status": 200, "body": b"\xff\xfe\x00\x01 no such thing"},
}


class Traffic:
    """Keeps them all. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[Call] = []
        self._plans: list[Plan] = []
        self._standing: list[Plan] = []

    @property
    def calls(self) -> list[Call]:
        """The calls so far, in the order in which they were answered."""
        with self._lock:
            return list(self._calls)

    def record(self, call: Call) -> None:
        """Add a call."""
        with self._lock:
            self._calls.append(call)

    def matching(self, path: str | None, **wanted: object) -> Iterator[Call]:
        """Return the calls whose path ends with *path* and that have every value *wanted* but ``None``."""
        values = {name: value for name, value in wanted.items() if value is not None}
        for call in self.calls:
            if call.path.endswith(path or "") and all(getattr(call, name) == values[name] for name in values):
                yield call

    def plan(self, plan: Plan, times: int) -> None:
        """Add an answer for the next *times* calls that it fits."""
        with self._lock:
            self._plans.extend([plan] * times)

    def stand(self, plan: Plan) -> None:
        """Add an answer for all calls that it fits, before those that stand already."""
        with self._lock:
            self._standing.insert(0, plan)

    @property
    def planned(self) -> list[Plan]:
        """The answers for the next calls that no call has asked for yet."""
        with self._lock:
            return list(self._plans)

    def take(self, call: Call) -> Plan | None:
        """Return the first plan that fits, once, else the newest standing one."""
        with self._lock:
            found = next((plan for plan in self._plans if plan.fits(call)), None)
            if found is not None:
                self._plans.remove(found)
                return found
            return next((plan for plan in self._standing if plan.fits(call)), None)

    def clear(self) -> None:
        """Forget the calls and all answers."""
        with self._lock:
            self._calls.clear()
            self._plans.clear()
            self._standing.clear()


def _encoded(body: object) -> bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    return (body if isinstance(body, str) else json.dumps(body)).encode()
