"""What the body of an error says, in any of finAPI's shapes, with secrets taken out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

import requests

from .errors import ApiError

_LONGEST = 500
# finAPI repeats the token that it refuses ("Invalid access token: ..."); whatever looks like one goes as well.
_NAMED_TOKEN = re.compile(r"(?i)\b(token|secret|password)(\s*[:=]\s*)[^\s\"'<>,;]+")
_TOKENLIKE = re.compile(r"[A-Za-z0-9._~+/%-]{20,}=*")


@dataclass(frozen=True)
class ProblemDetail:
    """One entry of finAPI's ``errors``: the field it is about where Web Form names one."""

    code: str | None = None
    type: str | None = None
    message: str | None = None
    field: str | None = None


@dataclass(frozen=True)
class Problem:
    """An error as the answer's body and headers tell it; what they do not tell is ``None``."""

    code: str | None = None
    description: str | None = None
    request_id: str | None = None
    details: tuple[ProblemDetail, ...] = ()

    @classmethod
    def of(cls, response: requests.Response, secrets: Iterable[str] = ()) -> Problem:
        """Read *response*, whatever its body is, and take *secrets* and all that looks like one out."""
        body = read_object(response)
        known = tuple(secrets)

        def text(source: Mapping[str, Any], *names: str) -> str | None:
            value = next((source[name] for name in names if source.get(name)), None)
            return redact(value, known) if isinstance(value, str) else None

        entries = body.get("errors")
        details = tuple(
            ProblemDetail(*(text(entry, name) for name in ("code", "type", "message", "field")))
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, dict)
        )
        first = details[0] if details else ProblemDetail()
        return cls(
            code=text(body, "error", "code") or first.code,
            description=text(body, "error_description", "errorDescription", "description", "message") or first.message,
            request_id=printable(response.headers.get("X-Request-Id") or body.get("requestId")),
            details=details,
        )


def read_object(response: requests.Response) -> dict[str, Any]:
    """Return the JSON object in the body, or an empty one for anything else."""
    try:
        body = json.loads(response.content)
    except (ValueError, RecursionError, requests.RequestException):
        return {}
    return body if isinstance(body, dict) else {}


def printable(value: object) -> str | None:
    """Return *value* as one line of at most 255 characters, or ``None`` if it is not text."""
    if not isinstance(value, str) or not value:
        return None
    return "".join(character for character in value if character.isprintable())[:255]


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return *text* on one line, shortened, and :func:`censored`."""
    return " ".join("".join(c if c.isprintable() else " " for c in censored(text, secrets)).split())[:_LONGEST]


def censored(text: str, secrets: Iterable[str] = ()) -> str:
    """Return *text* without *secrets* in any spelling, and without what looks like a token."""
    for secret in filter(None, secrets):
        quoted = quote(secret), quote_plus(secret), escape(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1]
        for spelling in (secret, *quoted):
            text = text.replace(spelling, "[redacted]")
    return _TOKENLIKE.sub("[redacted]", _NAMED_TOKEN.sub(r"\1\2[redacted]", text))


def raise_for_error(response: requests.Response) -> None:
    """Raise :class:`ApiError` with all that finAPI tells if *response* is 400 or above, else do nothing."""
    if response.status_code < 400:
        return
    request = response.request
    secret = str(request.headers.get("Authorization", "")).partition(" ")[2]
    problem = Problem.of(response, (secret,))
    error = ApiError(
        f"{request.method} {urlsplit(request.url or '').path} failed",
        status=response.status_code,
        code=problem.code,
        description=problem.description or printable(response.reason),
        request_id=problem.request_id or printable(request.headers.get("X-Request-Id")),
    )
    error.errors = problem.details
    error.response = _bare(response, secret)
    raise error


def _bare(response: requests.Response, secret: str) -> requests.Response:
    """Return a copy of *response* that holds no secret: no request, no history, no cookies."""
    bare = requests.Response()
    bare.status_code, bare.reason, bare.elapsed = response.status_code, response.reason, response.elapsed
    bare.url = response.url.partition("?")[0]
    bare.headers.update((name, value) for name, value in response.headers.items() if name.lower() != "set-cookie")
    bare.encoding = "utf-8"
    bare._content = censored(response.text, (secret,)).encode()
    return bare
