"""finAPI's paging: a GET, asked page after page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import requests

from .error_body import read_object

if TYPE_CHECKING:
    from .session import FinapiSession

#: Records of a page, if nothing else is asked for: finAPI's most.
PER_PAGE = 500


def page_count(response: requests.Response) -> int | None:
    """Return how many pages *response* says there are, ``None`` if it is not paged."""
    paging = read_object(response).get("paging")
    count = paging.get("pageCount") if isinstance(paging, dict) else None
    return count if type(count) is int else None


def answers(session: FinapiSession, url: str, params: Any, options: Mapping[str, Any]) -> Iterator[requests.Response]:
    """Return the answers for *url*, from the page that *url* or *params* asks for to the last.

    Raises ``ValueError`` for a page that is no number from 1 up.
    """
    parts = urlsplit(url)
    url, wanted = parts._replace(query="").geturl(), _joined([*_pairs(parts.query), *_pairs(params)])
    first = wanted.pop("page", ["1"])[-1]
    if not first.isascii() or not first.isdigit() or int(first) < 1:
        raise ValueError(f"page must be a number from 1 up, not {first!r:.40}")
    return _answers(session, url, int(first), {"perPage": [str(PER_PAGE)], **wanted}, options)


def _answers(
    session: FinapiSession, url: str, page: int, wanted: Mapping[str, list[str]], options: Mapping[str, Any]
) -> Iterator[requests.Response]:
    last = page
    while page <= last:
        response = session.get(url, params={**wanted, "page": [str(page)]}, **options)
        yield response
        last = (page_count(response) or 0) if response.ok else 0
        page += 1


def _pairs(params: Any) -> list[tuple[str, str]]:
    """Return query parameters, in any of the forms that requests takes, as pairs of texts."""
    if isinstance(params, (str, bytes)):
        text = params.decode() if isinstance(params, bytes) else params
        return parse_qsl(text, keep_blank_values=True)
    given = params.items() if isinstance(params, Mapping) else params or ()
    return [
        (str(name), str(value))
        for name, values in given
        if values is not None
        for value in (values if isinstance(values, (list, tuple)) else [values])
    ]


def _joined(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    joined: dict[str, list[str]] = {}
    for name, value in pairs:
        joined.setdefault(name, []).append(value)
    return joined
