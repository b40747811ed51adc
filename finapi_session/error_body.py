"""What the body of an error says, in any of finAPI's shapes, with secrets taken out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from .errors import ApiError, ErrorDetail
from .redaction import Redacted, censored, printable, redact

_DESCRIPTIONS = ("error_description", "errorDescription", "description", "message")
# A code is words: it tells what to do next, however long it is and whatever password is one of its words.
_CODE = re.compile(r"[A-Za-z]+(_[A-Za-z]+)*")


@dataclass(frozen=True)
class ErrorBody:
    """An error as the answer's body and headers tell it; what they do not tell is ``None``."""

    code: str | None = None
    description: str | None = None
    request_id: str | None = None
    details: tuple[ErrorDetail, ...] = ()

    @classmethod
    def of(cls, response: requests.Response, secrets: Iterable[str] = ()) -> ErrorBody:
        """Read *response*, whatever its body is, and take *secrets* and all that looks like one out."""
        body, known = read_object(response), tuple(secrets)
        entries = body.get("errors")
        details = tuple(
            ErrorDetail(*(_said(entry, known, name) for name in ("code", "type", "message", "field")))
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, dict)
        )
        first = details[0] if details else ErrorDetail()
        return cls(
            code=_said(body, known, "error", "code") or first.code,
            description=_said(body, known, *_DESCRIPTIONS) or first.message,
            request_id=printable(response.headers.get("X-Request-Id") or body.get("requestId"), known),
            details=details,
        )


def _said(source: Mapping[str, Any], secrets: tuple[str, ...], *names: str) -> str | None:
    """Return the first text of these names, without *secrets*."""
    value = next((source[name] for name in names if source.get(name)), None)
    if not isinstance(value, str):
        return None
    is_code = _CODE.fullmatch(value) and len(value) < 100 and value not in secrets
    return value if is_code and not set(names) & set(_DESCRIPTIONS) else redact(value, secrets)


def read_object(response: requests.Response) -> dict[str, Any]:
    """Return the JSON object in the body, or an empty one for anything else."""
    try:
        body = json.loads(_text(response))
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def sent_tokens(response: requests.Response) -> tuple[str, ...]:
    """Return the tokens that were sent to get *response*, which it may repeat."""
    requests_sent = (answer.request for answer in (*response.history, response) if answer.request is not None)
    headers = (Redacted(request.headers.get("Authorization", "")) for request in requests_sent)
    return tuple(Redacted(header.partition(" ")[2]) for header in headers)


def _text(response: requests.Response) -> str:
    """Return the body as text, empty if it was read elsewhere or breaks off."""
    try:
        return (response.content or b"").decode("utf-8-sig", "replace")
    except (requests.RequestException, RuntimeError):
        return ""


def retry_after(value: str | None) -> float | None:
    """Return the seconds of a ``Retry-After`` header (a number or a date), ``None`` without a sound one."""
    if value is None:
        return None
    policy = Retry()
    # Some versions of urllib3 know a bound, of six hours; others know none.
    policy.retry_after_max = 10**9
    try:
        return min(policy.parse_retry_after(value), policy.retry_after_max)
    except (HTTPError, ValueError, OverflowError, TypeError):
        return None


def raise_for_error(response: requests.Response) -> None:
    """Raise :class:`ApiError` with all that finAPI tells if *response* is 400 or above, else do nothing."""
    if response.status_code >= 400:
        raise _api_error(response)


def _api_error(response: requests.Response) -> ApiError:
    request, tokens = response.request, tuple(map(Redacted, sent_tokens(response)))
    problem = ErrorBody.of(response, tokens)
    call = f"{request.method} {urlsplit(request.url or '').path}" if request is not None else "the call"
    sent_id = request.headers.get("X-Request-Id") if request is not None else None
    error = ApiError(
        f"{call} failed",
        status=response.status_code,
        code=problem.code,
        description=problem.description or redact(str(response.reason or ""), tokens) or None,
        request_id=problem.request_id or printable(sent_id),
    )
    error.errors = problem.details
    error.retry_after = retry_after(response.headers.get("Retry-After"))
    error.response = _bare(response, tokens)
    return error


def _bare(response: requests.Response, tokens: Iterable[str]) -> requests.Response:
    """Return a copy of *response* that holds no secret: no request, no history, no cookies."""
    bare = requests.Response()
    bare.status_code, bare.elapsed, bare.encoding = response.status_code, response.elapsed, "utf-8"
    bare.reason = redact(str(response.reason or ""), tokens)
    bare.url = (response.url or "").partition("?")[0]
    for name, value in response.headers.items():
        if name.lower() != "set-cookie":
            bare.headers[name] = censored(value, tokens)
    bare._content, bare._content_consumed = censored(_text(response), tokens).encode(), True
    return bare
