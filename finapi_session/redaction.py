"""Secrets, taken out of what people read."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from html import escape
from typing import Literal, SupportsIndex
from unicodedata import normalize
from urllib.parse import quote, quote_plus

_LONGEST = 500
# finAPI's passwords have at least so many characters.
_SHORTEST = 6
_BASE64 = frozenset("abcdefghijklmnopqrstuvwxyz0123456789+/_-")
_FORMS: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")
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


def printable(value: object, secrets: Iterable[str] = ()) -> str | None:
    """Return *value* as one line of at most 255 characters without *secrets*, or ``None`` if it is not text."""
    if not isinstance(value, str) or not value:
        return None
    return _without("".join(character for character in value if character.isprintable()), secrets)[:255]


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return *text* on one line, shortened, :func:`censored`, and without what looks like a token."""
    text = _TOKENLIKE.sub("[redacted]", censored(text, secrets))
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_LONGEST]


def censored(text: str, secrets: Iterable[str] = ()) -> str:
    """Return *text* without *secrets* in any spelling, and without what it calls a token, secret or password."""
    return _NAMED_TOKEN.sub(r"\1\2[redacted]", _without(text, secrets))


def _without(text: str, secrets: Iterable[str]) -> str:
    """Return *text* without *secrets*, but those in whose place a gap would tell them.

    finAPI's texts are well known: "[redacted] credentials" tells that the password is "Bad". finAPI takes none of
    fewer than six characters, so such a one is left out only where it is all of the text.
    """
    known = tuple(map(Redacted, filter(None, secrets)))
    if text.strip() in known:
        return "[redacted]"
    try:
        return _replaced(text, known)
    except BaseException as error:  # noqa: B036 - a signal's: the frames below hold the secrets in all spellings
        from .errors import without_frames  # where something went wrong, since it brings requests

        raise without_frames(error) from None


def _replaced(text: str, secrets: Iterable[str]) -> str:
    """Return *text* without *secrets*; no pattern is made of them, as ``re`` would keep it."""
    folded, end, kept = _folded(text), 0, list[str]()
    found = {span for secret in secrets if len(secret) >= _SHORTEST for span in _spans(folded, secret)}
    for first, last in sorted(found, key=lambda span: (span[0], -span[1])):
        if first >= end:
            kept += text[end:first], "[redacted]"
        end = max(end, last)
    return "".join((*kept, text[end:]))


def _spans(folded: str, secret: str) -> Iterator[tuple[int, int]]:
    """Yield from where to where *secret* stands in any spelling, in each normal form of Unicode."""
    for form in {str(secret), *(normalize(name, secret) for name in _FORMS)}:
        for spelling in set(_spellings(form)):
            yield from _places(folded, spelling)
        for part in _in_base64(form.encode("utf-8", "surrogatepass")):
            for first, last in _places(folded, part):
                # The characters beside it hold some of its bits, too.
                first -= folded[max(first - 1, 0) : first] in _BASE64
                last += folded[last : last + 1] in _BASE64
                padding = folded[last : last + 2]
                yield first, last + len(padding) - len(padding.lstrip("="))


def _places(folded: str, part: str) -> Iterator[tuple[int, int]]:
    """Yield from where to where *part* stands."""
    part = _folded(part)
    first = folded.find(part)
    while part and first >= 0:
        yield first, first + len(part)
        first = folded.find(part, first + 1)


def _folded(text: str) -> str:
    """Return *text* without case, character by character."""
    if text.isascii():
        return text.lower()
    return "".join(next((one for one in (c.casefold(), c.lower()) if len(one) == 1), c) for c in text)


def _spellings(secret: str) -> tuple[str, ...]:
    """Return *secret* as it stands in URLs, forms, JSON, HTML and Python."""
    quoted = (
        quote(secret, errors="replace"),
        quote(secret, safe="", errors="replace"),
        quote_plus(secret, errors="replace"),
    )
    marked = escape(secret), escape(secret).replace("&#x27;", "&#39;")
    literal = (json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret), ascii(secret))
    return secret, *quoted, *marked, *(text[1:-1] for text in literal)


def _in_base64(secret: bytes) -> Iterator[str]:
    """Yield the part of *secret*'s Base64 that does not depend on what is around it, for each place it may begin at."""
    for before in range(3):
        coded = b64encode(bytes(before) + secret).decode().rstrip("=")
        whole = len(coded) if (before + len(secret)) % 3 == 0 else len(coded) - 1
        part = coded[(0, 2, 3)[before] : whole]
        yield part
        yield part.replace("+", "-").replace("/", "_")
