"""What is known as the text that a store keeps: JSON, bound to its key and its client by an HMAC under their secret.

Whoever may write to the store can neither forge such a text nor move it to another key; what they make is
:class:`Foreign`, and so is all that cannot be read.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from hashlib import sha256
from typing import Any

from .knowledge import KINDS, NOTHING, Grant, Knowledge, Refusal
from .redaction import Redacted
from .tokens import Token

#: What a store may give back, in characters: more is none of ours.
MOST_TEXT = 65536
_FORMAT = "2"
_LARGEST = 2**53
_LONGEST_TEXT = 500
_FLAGS = ("proven", "shared", "sticky")


class Foreign(ValueError):
    """A stored value is not ours; the message says why, and shows nothing of it."""


def sealed(seal: str, key: str, text: str) -> str:
    """Return *text* bound to *key* under the secret *seal*."""
    return Redacted(f"{_FORMAT}.{_mac(seal, key, text)}.{text}")


def unsealed(seal: str, key: str, kept: object) -> str:
    """Return the text that was sealed, or raise :class:`Foreign`."""
    mac, text = _opened(kept)
    if not hmac.compare_digest(mac.encode("utf-8", "replace"), _mac(seal, key, text).encode()):
        raise Foreign("not sealed by this client for this identity")
    return Redacted(text)


def unverified(kept: str) -> Knowledge:
    """Return the grants in what a store keeps, for whoever only shows or revokes them, or raise :class:`Foreign`."""
    return loads(_opened(kept)[1])


def dumps(known: Knowledge) -> str:
    """Return grants and rejections as JSON text, the newest grants that fit; it holds tokens."""
    names = ("serial", "fingerprint", *_FLAGS)
    grants = [{"token": it.token.to_dict(), **{name: getattr(it, name) for name in names}} for it in known.grants]
    while True:
        text = json.dumps({"grants": grants, "rejections": dict(known.rejections)})
        if len(text) < MOST_TEXT - 1024 or not grants:
            return text
        grants.pop()


def dumps_refusals(known: Knowledge) -> str:
    """Return the refusals as JSON text."""
    return json.dumps({subject: asdict(refusal) for subject, refusal in known.refusals.items()})


def loads(text: str) -> Knowledge:
    """Return the grants and rejections that :func:`dumps` wrote, or raise :class:`Foreign`."""
    return _read(text, _grants)


def loads_refusals(text: str) -> Knowledge:
    """Return the refusals that :func:`dumps_refusals` wrote, or raise :class:`Foreign`."""
    return _read(text, lambda kept: Knowledge(refusals={name: _refusal(told) for name, told in kept.items()}))


def _opened(kept: object) -> tuple[str, str]:
    """Return the HMAC and the text of what a store keeps."""
    if not isinstance(kept, str):
        raise Foreign(f"no text but {type(kept).__name__}")
    if len(kept) > MOST_TEXT:
        raise Foreign("too long")
    version, _, rest = kept.partition(".")
    if version != _FORMAT:
        raise Foreign("of another version, or not ours")
    mac, _, text = rest.partition(".")
    return mac, text


def _mac(seal: str, key: str, text: str) -> str:
    return hmac.new(seal.encode(), f"{key}\n{text}".encode("utf-8", "replace"), sha256).hexdigest()


def _read(text: str, take: Callable[[Any], Knowledge]) -> Knowledge:
    try:
        return take(json.loads(text))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, OverflowError):
        raise Foreign("malformed") from None  # the cause's own text may show what is there


def _grants(kept: Mapping[str, Any]) -> Knowledge:
    rejections = {token: _serial(serial) for token, serial in kept["rejections"].items()}
    return NOTHING.merge(Knowledge(tuple(map(_grant, kept["grants"])), rejections))


def _grant(kept: Mapping[str, Any]) -> Grant:
    flags = {name: bool(kept[name]) for name in _FLAGS}
    return Grant(Token.from_dict(kept["token"]), _serial(kept["serial"]), str(kept["fingerprint"]), **flags)


def _refusal(kept: Mapping[str, Any]) -> Refusal:
    """Return the refusal with its texts on one line: they reach the log and terminals."""
    refusal = Refusal(**{name: _printable(value) for name, value in kept.items()})
    _serial(refusal.serial)
    texts = (refusal.what, refusal.code, refusal.description, refusal.request_id)
    numbers = (refusal.status, refusal.until, refusal.rest, refusal.retry_after)
    sound = refusal.error in KINDS, refusal.rest is not None, *map(_is_text, texts), *map(_is_number, numbers)
    if not all(sound):
        raise ValueError("not a refusal")
    return refusal


def _printable(value: object) -> Any:
    return "".join(c for c in value if c.isprintable())[:_LONGEST_TEXT] if isinstance(value, str) else value


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and abs(value) < _LARGEST)


def _serial(value: object) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise ValueError("not a serial")
    return value
