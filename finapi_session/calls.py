"""API calls that carried a token, told to the log with their request ids; what nobody reads is not formatted."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import requests

from .events import log
from .redaction import Redacted, printable

#: What is raised when a connection breaks, or does not come about.
BROKEN = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


def name(request: Any) -> str:
    """Return what a *request*, of requests or httpx, is called in the log: without its query, which tells of people."""
    return f"{request.method} {printable(urlsplit(str(request.url)).path)}"


def with_id(request: Any) -> str:
    """Return the name of *request* and its id."""
    return f"{name(request)}, request id {_id(request.headers, request)}"


def answered(whose: object, request: Any, response: Any, took: timedelta | None = None) -> None:
    """Log the status of the *response* that came to *request* of *whose*: at INFO from 400 on, else at DEBUG."""
    level = logging.INFO if response.status_code >= 400 else logging.DEBUG
    if log.isEnabledFor(level):
        milliseconds = None if took is None else took.total_seconds() * 1000
        outcome = (
            f"{response.status_code}" if milliseconds is None else f"{response.status_code}, {milliseconds:.0f} ms"
        )
        request_id = _id(response.headers, request) or _id(request.headers, request)
        facts = {"status": response.status_code, "request_id": request_id, "milliseconds": milliseconds}
        _tell(level, "answered", outcome, whose, request, facts)


def broke(whose: object, request: requests.PreparedRequest, error: requests.RequestException) -> None:
    """Log that the connection of *request* broke: the kind of *error* alone, as its text may hold a query."""
    if log.isEnabledFor(logging.INFO):
        facts = {"status": None, "request_id": _id(request.headers, request), "milliseconds": None}
        _tell(logging.INFO, "broke", type(error).__name__, whose, request, facts)


def _tell(level: int, kind: str, outcome: str, whose: object, request: Any, facts: dict[str, Any]) -> None:
    fields = {"kind": kind, "identity": str(whose), "call": name(request), **facts}
    text = f"call {kind}: {fields['call']} of {whose}, {outcome}, request id {facts['request_id']}"
    log.log(level, "%s", text, extra={f"finapi_{field}": value for field, value in fields.items()})


def _id(headers: Any, request: Any) -> str | None:
    """Return the request id in *headers*, without the token that *request* was sent with."""
    return printable(headers.get("X-Request-Id"), [Redacted(request.headers["Authorization"][7:])])
