"""An API call at the command line: what is sent, all pages as one, and what is shown of the answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import requests

from ..error_body import raise_for_error, read_object, sent_tokens
from ..errors import ApiError
from ..paging import page_count
from ..redaction import printable
from ..session import FinapiSession


def pairs(given: Iterable[str], separator: str) -> list[tuple[str, str]]:
    """Split each of *given* at the first *separator*, or raise ``BadParameter``."""
    split = [text.partition(separator) for text in given]
    for name, found, value in split:
        if not name or not found:
            raise click.BadParameter(f"write it as name{separator}value, not {name + found + value!r}")
    return [(name.strip(), value.strip() if separator == ":" else value) for name, _, value in split]


def read_body(given: str | None) -> bytes | None:
    """Return the JSON that *given* is, or that the file after its ``@`` holds (``@-``: standard input)."""
    if given is None:
        return None
    try:
        if given == "@-":
            body = sys.stdin.buffer.read()
        else:
            body = Path(given[1:]).read_bytes() if given.startswith("@") else given.encode()
        json.loads(body)
    except OSError as error:
        raise click.BadParameter(f"cannot read {given[1:]}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"this is not JSON ({error})") from None
    return body


def call(session: FinapiSession, method: str, url: str, **what: Any) -> requests.Response:
    """Send a request; what cannot be sent is a ``UsageError``."""
    try:
        return session.request(method, url, **what)
    except ValueError as error:
        raise click.UsageError(f"this cannot be sent: {error}") from None


def tell(response: requests.Response) -> None:
    """Write status, request id and time to standard error."""
    answer = f"HTTP {response.status_code} {printable(response.reason) or ''}".rstrip()
    request_id = response.headers.get("X-Request-Id") or response.request.headers.get("X-Request-Id")
    milliseconds = response.elapsed.total_seconds() * 1000
    shown_id = printable(request_id, sent_tokens(response))
    click.echo(f"{answer}, request id {shown_id}, {milliseconds:.0f} ms", err=True)


def show(response: requests.Response) -> int:
    """Write the body to standard output, tell what to do about an error, and return the exit code."""
    tell(response)
    _show_body(_without_tokens(response))
    try:
        raise_for_error(response)
    except ApiError as error:
        click.echo(f"finapi-session: {error}", err=True)
    return 0 if response.ok and response.status_code < 300 else 1


def show_all_pages(session: FinapiSession, url: str, params: list[tuple[str, str]], headers: dict[str, str]) -> int:
    """Read *url* page after page and write one JSON document; return the exit code.

    An answer that is not 2xx ends it, and is what is written.
    """
    document: dict[str, Any] = {}
    response = None
    for response in _pages(session, url, params, headers):
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


def _pages(
    session: FinapiSession, url: str, params: list[tuple[str, str]], headers: dict[str, str]
) -> Iterator[requests.Response]:
    """Answer with page after page, and show how far it is; what cannot be sent is a ``UsageError``."""
    try:
        for page, response in enumerate(session.pages(url, params, headers=headers), 1):
            _progress(page, page_count(response) or 1, response.ok)
            yield response
    except ValueError as error:
        raise click.UsageError(f"this cannot be sent: {error}") from None


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


def _show_body(body: bytes) -> None:
    if sys.stdout is None or not sys.stdout.isatty():
        click.echo(body, nl=False)
        return
    text = body.decode("utf-8", "backslashreplace")
    try:
        text = json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        pass
    # A terminal would obey control characters.
    text = "".join(c if c.isprintable() or c in "\n\t\xa0" else json.dumps(c)[1:-1] for c in text)
    if text:
        click.echo(text)
