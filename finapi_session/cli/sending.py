"""What ``request`` sends, as it was typed: a path with its query, headers, and a body."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import requests

from ..session import FinapiSession

_FIELD = re.compile(r"([^=]*?)(:?=)(.*)", re.DOTALL)
_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Call:
    """One call of the API."""

    method: str
    url: str
    params: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes | None

    @classmethod
    def of(
        cls,
        method: str,
        url: str,
        params: Iterable[str],
        headers: Iterable[str],
        data: str | None,
        fields: tuple[str, ...],
    ) -> Call:
        """Read what was typed, or raise ``UsageError``."""
        if fields and data is not None:
            raise click.UsageError("give the body by --data, or by NAME=VALUE after the path, not by both")
        if fields and method in _WITHOUT_BODY:
            raise click.UsageError(f"{method} has no body: a query parameter is written as -p {fields[0]}")
        body, sent = _body_of(fields) if fields else _read(data), dict(_pairs(headers, ":"))
        if body is not None and "content-type" not in map(str.lower, sent):
            sent["Content-Type"] = "application/json"
        return cls(method, url, _pairs(params, "="), sent, body)

    def send(self, session: FinapiSession) -> requests.Response:
        """Send it; what cannot be sent is a ``UsageError``."""
        try:
            return session.request(self.method, self.url, params=self.params, data=self.body, headers=self.headers)
        except ValueError as error:
            raise _unsendable(error) from None

    def pages(self, session: FinapiSession) -> Iterator[requests.Response]:
        """Answer with page after page; what cannot be sent is a ``UsageError``."""
        try:
            yield from session.pages(self.url, self.params, headers=self.headers)
        except ValueError as error:
            raise _unsendable(error) from None


def _unsendable(error: ValueError) -> click.UsageError:
    return click.UsageError(f"this cannot be sent: {error}")


def _pairs(given: Iterable[str], separator: str) -> list[tuple[str, str]]:
    """Split each of *given* at the first *separator*, or raise ``BadParameter``."""
    split = [text.partition(separator) for text in given]
    for name, found, value in split:
        if not name or not found:
            raise click.BadParameter(f"write it as name{separator}value, not {name + found + value!r}")
    return [(name.strip(), value.strip() if separator == ":" else value) for name, _, value in split]


def _body_of(fields: Iterable[str]) -> bytes:
    """Return the JSON object that ``name=text`` and ``name:=json`` make, or raise ``BadParameter``."""
    body: dict[str, object] = {}
    for field in fields:
        found = _FIELD.fullmatch(field)
        if found is None or not found[1]:
            raise click.BadParameter(f"write a field as name=value or name:=json, not {field!r}")
        if found[1] in body:
            raise click.BadParameter(f"{found[1]} is given twice: a list is written as {found[1]}:='[1, 2]'")
        body[found[1]] = json.loads(_checked(found[3])) if found[2] == ":=" else found[3]
    return _checked(json.dumps(body, ensure_ascii=False))


def _read(given: str | None) -> bytes | None:
    """Return the JSON that *given* is, or that the file after its ``@`` holds (``@-``: standard input)."""
    if given is None:
        return None
    try:
        if given == "@-":
            return _checked(sys.stdin.buffer.read())
        return _checked(Path(given[1:]).read_bytes() if given.startswith("@") else given)
    except OSError as error:
        raise click.BadParameter(f"cannot read {given[1:]}: {error.strerror}") from None


def _checked(text: str | bytes) -> bytes:
    """Return *text* if it is JSON, or raise ``BadParameter``."""
    try:
        json.loads(text)
        return text.encode() if isinstance(text, str) else text
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"this is not JSON ({error})") from None
