"""Secrets, taken out of what people read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import escape
from typing import SupportsIndex
from urllib.parse import quote, quote_plus

_LONGEST = 500
# finAPI repeats the token that it refuses ("Invalid access token: ..."); whatever looks like one goes as well.
_NAMED_TOKEN = re.compile(r"(?i)\b(token|secret|password)(\s*[:=]\s*)[^\s\"'<>,;]+")
_TOKENLIKE = re.compile(r"(?=[A-Za-z._~+/%-]*[0-9])[A-Za-z0-9._~+/%-]{20,}=*|[A-Za-z._~+/%-]{40,}")


class Redacted(str):
    """A secret: its repr, and so that of a dict or a frame that holds it, does not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'[redacted]'"

    def __getitem__(self, key: SupportsIndex | slice) -> Redacted:
        """Return a part, which is as secret: trackers shorten a long text before they ask for its repr."""
        return Redacted(super().__getitem__(key))


def printable(value: object) -> str | None:
    """Return *value* as one line of at most 255 characters, or ``None`` if it is not text."""
    if not isinstance(value, str) or not value:
        return None
    return "".join(character for character in value if character.isprintable())[:255]


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return *text* on one line, shortened, :func:`censored`, and without what looks like a token."""
    text = _TOKENLIKE.sub("[redacted]", censored(text, secrets))
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_LONGEST]


def censored(text: str, secrets: Iterable[str] = ()) -> str:
    """Return *text* without *secrets* in any spelling, and without what it calls a token, secret or password."""
    spellings = {spelling for secret in secrets if secret for spelling in _spellings(secret)}
    if spellings:
        longest_first = sorted(spellings, key=len, reverse=True)
        text = re.sub("|".join(map(re.escape, longest_first)), "[redacted]", text, flags=re.IGNORECASE)
    return _NAMED_TOKEN.sub(r"\1\2[redacted]", text)


def _spellings(secret: str) -> tuple[str, ...]:
    """Return *secret* as it stands in URLs, forms, JSON, HTML and Python."""
    secret = str(secret)
    quoted = quote(secret), quote(secret, safe=""), quote_plus(secret)
    marked = escape(secret), escape(secret).replace("&#x27;", "&#39;")
    literal = (json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret), ascii(secret))
    return secret, *quoted, *marked, *(text[1:-1] for text in literal)
