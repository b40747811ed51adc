"""What ``request`` shows of the answer, and all pages as one."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import click
import requests

from ..error_body import raise_for_error, read_object, sent_tokens
from ..errors import ApiError
from ..paging import page_count
from ..redaction import censored, printable


def tell(response: requests.Response) -> None:
    """Write status, request id and time to standard error."""
    answer = f"HTTP {response.status_code} {printable(response.reason) or ''}".rstrip()
    request_id = response.headers.get("X-Request-Id") or response.request.headers.get("X-Request-Id")
    milliseconds = response.elapsed.total_seconds() * 1000
    shown_id = printable(request_id, sent_tokens(response))
    click.echo(f"{answer}, request id {shown_id}, {milliseconds:.0f} ms", err=True)


def show(response: requests.Response, with_headers: bool = False) -> int:
    """Write the body to standard output, tell what to do about an error, and return the exit code."""
    tell(response)
    if with_headers:
        _show_headers(response)
    _show_body(_without_tokens(response))
    try:
        raise_for_error(response)
    except ApiError as error:
        click.echo(f"finapi-session: {error}", err=True)
    return 0 if response.ok and response.status_code < 300 else 1


def show_all_pages(pages: Iterable[requests.Response]) -> int:
    """Write *pages* as one JSON document; return the exit code.

    An answer that is not 2xx ends it, and is what is written.
    """
    document: dict[str, Any] = {}
    response = None
    for page, response in enumerate(pages, 1):
        _progress(page, page_count(response) or 1, response.ok)
        body = read_object(response)
        if response.status_code // 100 != 2 or not body and not document:
            break
        if not body:
            raise click.ClickException("a page is not a JSON object, so nothing was written: try again")
        _join(document, body)
    else:
        assert response is not None
        tell(response)
        _show_body(json.dumps(document, ensure_ascii=False).encode())
        return 0
    return show(response)


def _progress(page: int, last: int, more: bool) -> None:
    if sys.stderr.isatty() and last > 1:
        click.echo(f"\rpage {page} of {last}", nl=page == last or not more, err=True)


def _join(document: dict[str, Any], page: dict[str, Any]) -> None:
    """Add *page*'s lists to those of *document*; what else it says is as on the first page."""
    if not document:
        document.update(page)
    else:
        for name, value in page.items():
            if isinstance(value, list) and isinstance(document.setdefault(name, []), list):
                document[name] = document[name] + value
    if isinstance(document.get("paging"), dict):
        count = document["paging"].get("totalCount")
        document["paging"] = {"page": 1, "perPage": count, "pageCount": 1, "totalCount": count}


def _without_tokens(response: requests.Response) -> bytes:
    """Return the body; of an error without the token that finAPI refuses by repeating it."""
    body = response.content
    for answer in (*response.history, response) if response.status_code >= 400 else ():
        token = str(answer.request.headers.get("Authorization") or "").partition(" ")[2]
        if token:
            body = body.replace(token.encode(), b"[redacted]")
    return body


def _show_headers(response: requests.Response) -> None:
    """Write the status line, the headers and an empty line; cookies are secrets, and so is what repeats a token."""
    tokens = sent_tokens(response)
    version = {10: "1.0", 20: "2"}.get(getattr(response.raw, "version", 11), "1.1")
    status = f"HTTP/{version} {response.status_code} {printable(response.reason) or ''}".rstrip()
    click.secho(status, fg="green" if response.ok else "yellow", bold=True)
    for name, value in response.headers.items():
        shown = "[redacted]" if name.lower() == "set-cookie" else printable(censored(value, tokens)) or ""
        click.echo(f"{click.style(name, fg='cyan')}: {shown}")
    click.echo()


def _show_body(body: bytes) -> None:
    if sys.stdout is None or not sys.stdout.isatty():
        click.echo(body, nl=False)
        return
    text, is_json = body.decode("utf-8", "backslashreplace"), False
    with suppress(ValueError, RecursionError):
        text, is_json = json.dumps(json.loads(body), indent=2, ensure_ascii=False), True
    # A terminal would obey control characters.
    text = "".join(c if c.isprintable() or c in "\n\t\xa0" else json.dumps(c)[1:-1] for c in text)
    if text:
        click.echo(_PARTS.sub(_coloured, text) if is_json else text)


# In JSON as it is indented here: a name, a text, a word, a number.
_PARTS = re.compile(
    r'(?P<name>"(?:[^"\\]|\\.)*"(?=:))|(?P<text>"(?:[^"\\]|\\.)*")'
    r"|(?P<word>true|false|null)|(?P<number>-?[0-9][0-9.eE+-]*)"
)
_COLOURS = {"name": "blue", "text": "green", "word": "magenta", "number": "cyan"}


def _coloured(part: re.Match[str]) -> str:
    return click.style(part[0], fg=_COLOURS[str(part.lastgroup)])
