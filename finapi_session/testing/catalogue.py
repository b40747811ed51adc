"""finAPI's calls that read: banks, categories, and what a user has. Lists with their filters, and single records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flask import request

from . import demo_data, filters
from .authority import Kind, Owner, Refusal
from .books import Books
from .filters import Listing, Record

#: Path below the API's root, the one kind of token that it takes (``None``: either), what answers, its parameters.
Route = tuple[str, "Kind | None", Callable[..., Any], Listing]

_ONE = Listing({}, paged=False)
_LARGEST_PAGE = 500


class Catalogue:
    """Answers from *books*."""

    def __init__(self, books: Books) -> None:
        self._books = books

    def routes(self) -> Iterator[Route]:
        """Return all paths, each as a list and for one record."""
        books = self._books
        kinds: tuple[tuple[str, str, Kind | None, Listing, Callable[[str], Sequence[Record]]], ...] = (
            ("banks", "banks", None, filters.BANKS, lambda user_id: demo_data.banks()),
            ("categories", "categories", "user", filters.CATEGORIES, lambda user_id: demo_data.categories()),
            ("labels", "labels", "user", filters.LABELS, demo_data.labels),
            ("bankConnections", "connections", "user", filters.CONNECTIONS, books.bank_connections),
            ("accounts", "accounts", "user", filters.ACCOUNTS, books.accounts),
            ("transactions", "transactions", "user", filters.TRANSACTIONS, books.transactions),
        )
        for path, name, kind, listing, read in kinds:
            yield path, kind, _list(name, listing, read), listing
            yield f"{path}/<record_id>", kind, _single(path, read), _ONE


def page(name: str, listing: Listing, records: Sequence[Record]) -> dict[str, Any]:
    """Answer with the records that the request's query selects, and with a page of them where *listing* has pages.

    Raises :class:`Refusal` (400) for a value that is not valid.
    """
    found = filters.selected(listing, records, request.args.to_dict(flat=False))
    return _sums(name, found) | (_paged(name, found) if listing.paged else {name: found})


def _list(name: str, listing: Listing, read: Callable[[str], Sequence[Record]]) -> Callable[..., Any]:
    return lambda owner: page(name, listing, read(owner.user_id or ""))


def _single(path: str, read: Callable[[str], Sequence[Record]]) -> Callable[..., Any]:
    def single(owner: Owner, record_id: str) -> Record:
        found = next((record for record in read(owner.user_id or "") if str(record["id"]) == record_id), None)
        if found is None:
            raise Refusal(404, "ENTITY_NOT_FOUND", f"There is no {path}/{record_id}")
        return found

    return single


def _paged(name: str, records: Sequence[Record]) -> dict[str, Any]:
    number, size = _number("page", 1), _number("perPage", 20)
    if number < 1 or not 1 <= size <= _LARGEST_PAGE:
        raise Refusal(400, "BAD_REQUEST", f"page counts from 1, perPage is 1 to {_LARGEST_PAGE}")
    pages = -(-len(records) // size)
    paging = {"page": number, "perPage": size, "pageCount": pages, "totalCount": len(records)}
    return {name: records[(number - 1) * size : number * size], "paging": paging}


def _sums(name: str, records: Sequence[Record]) -> dict[str, Any]:
    """Return the sums that finAPI gives with transactions, of all pages."""
    if name != "transactions":
        return {}
    amounts = [round(entry["amount"] * 100) for entry in records]
    income = sum(cents for cents in amounts if cents > 0)
    return {"income": income / 100, "spending": (sum(amounts) - income) / 100, "balance": sum(amounts) / 100}


def _number(name: str, default: int) -> int:
    given = request.args.get(name, str(default))
    return int(given) if given.isascii() and given.isdigit() else 0
