"""What finAPI's lists take as query parameters: how each is read, and which records it keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from .authority import Refusal

Record = dict[str, Any]


class Filter(NamedTuple):
    """One parameter: ``read`` makes a value of its text, ``keeps`` judges a record by it.

    Text that is no value raises ``ValueError``, ``KeyError`` or ``InvalidOperation``.
    """

    read: Callable[[str], Any]
    keeps: Callable[[Record, Any], bool]


class Listing(NamedTuple):
    """A list of finAPI's: the filters that it takes, whether it is paged, and the fields to order it by."""

    filters: Mapping[str, Filter]
    paged: bool = True
    orders: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """The parameters that this list takes. One without pages passes over ``page``, so that all are read alike."""
        more = ({"page", "perPage"} if self.filters or self.paged else set()) | ({"order"} if self.orders else set())
        return frozenset(self.filters) | more


def selected(listing: Listing, records: Iterable[Record], query: Mapping[str, Sequence[str]]) -> list[Record]:
    """Return the records that pass every filter of *query*, in its order. Raises :class:`Refusal` (400)."""
    found = list(records)
    for name, filter_ in listing.filters.items():
        for text in query.get(name, ()):
            wanted = _value(name, filter_, text)
            found = [record for record in found if filter_.keeps(record, wanted)]
    # The last named is sorted by first: sorting keeps the order of equals.
    for text in reversed(query.get("order", ())):
        found = _ordered(found, listing.orders, text)
    return found


def _value(name: str, filter_: Filter, text: str) -> Any:
    try:
        return filter_.read(text)
    except (ValueError, KeyError, InvalidOperation):
        raise Refusal(400, "BAD_REQUEST", f"The value of parameter '{name}' is not valid") from None


def _ordered(records: list[Record], orders: tuple[str, ...], text: str) -> list[Record]:
    name, _, direction = text.partition(",")
    if name not in orders or direction not in ("", "asc", "desc"):
        raise Refusal(400, "BAD_REQUEST", f"order is one of {', '.join(orders)}, then ',asc' or ',desc'")
    return sorted(records, key=lambda record: record[name], reverse=direction == "desc")


def _numbers(text: str) -> set[int]:
    return {int(part) for part in text.split(",")}


def _ids_in(name: str) -> Filter:
    return Filter(_numbers, lambda record, wanted: record[name] in wanted)


def _among(name: str) -> Filter:
    """Keep the records of which the object, or one of the objects, called *name* has one of these ids."""

    def keeps(record: Record, wanted: set[int]) -> bool:
        held = record[name] if isinstance(record[name], list) else [record[name] or {}]
        return any(each.get("id") in wanted for each in held)

    return Filter(_numbers, keeps)


def _words(*names: str) -> Filter:
    def keeps(record: Record, words: list[str]) -> bool:
        text = " ".join(str(record[name] or "") for name in names).lower()
        return all(word in text for word in words)

    return Filter(lambda text: text.lower().split(), keeps)


def _flag(name: str) -> Filter:
    return Filter({"true": True, "false": False}.__getitem__, lambda record, wanted: bool(record[name] == wanted))


def _one_of(name: str, *values: str) -> Filter:
    known = {value: value for value in values}
    return Filter(lambda text: {known[part] for part in text.split(",")}, lambda record, wanted: record[name] in wanted)


def _span(end: str, name: str, read: Callable[[str], Any], of: Callable[[Any], Any]) -> dict[str, Filter]:
    """Return the filters ``min...`` and ``max...`` on a field, both ends included."""
    return {
        f"min{end}": Filter(read, lambda record, least: bool(of(record[name]) >= least)),
        f"max{end}": Filter(read, lambda record, most: bool(of(record[name]) <= most)),
    }


def _days(end: str, name: str) -> dict[str, Filter]:
    return _span(end, name, date.fromisoformat, date.fromisoformat)


def _amounts(end: str, name: str) -> dict[str, Filter]:
    return _span(end, name, _amount, _amount)


def _amount(given: object) -> Decimal:
    amount = Decimal(str(given))
    if not amount.is_finite():
        raise ValueError(given)
    return amount


_SIGNS: dict[str, Callable[[float], bool]] = {
    "all": lambda amount: True,
    "income": lambda amount: amount >= 0,
    "spending": lambda amount: amount < 0,
}
_DIRECTION = Filter(_SIGNS.__getitem__, lambda record, fits: bool(fits(record["amount"])))
_VIEW = Filter({"bankView": None, "userView": None}.__getitem__, lambda record, wanted: True)
_IDS = {"ids": _ids_in("id")}

BANKS = Listing(
    {
        **_IDS,
        "search": _words("name", "blz", "bic", "city"),
        "location": _one_of("location", "DE"),
        "isTestBank": _flag("isTestBank"),
    },
    orders=("id", "name", "blz", "bic", "popularity"),
)
ACCOUNTS = Listing(
    {
        **_IDS,
        "search": _words("accountName", "iban", "accountNumber"),
        "accountTypes": _one_of("accountType", "CHECKING", "SAVINGS", "CREDIT_CARD", "SECURITY", "LOAN", "MEMBERSHIP"),
        "bankConnectionIds": _ids_in("bankConnectionId"),
        **_amounts("Balance", "balance"),
    },
    paged=False,
)
TRANSACTIONS = Listing(
    {
        "view": _VIEW,
        **_IDS,
        "search": _words("counterpartName", "purpose"),
        "counterpart": _words("counterpartName"),
        "purpose": _words("purpose"),
        "accountIds": _ids_in("accountId"),
        **_days("BankBookingDate", "bankBookingDate"),
        **_days("FinapiBookingDate", "finapiBookingDate"),
        **_amounts("Amount", "amount"),
        "direction": _DIRECTION,
        "labelIds": _among("labels"),
        "categoryIds": _among("category"),
        "isNew": _flag("isNew"),
    },
    orders=("id", "bankBookingDate", "finapiBookingDate", "amount", "counterpartName", "purpose"),
)
CONNECTIONS = Listing(_IDS, paged=False)
CATEGORIES = Listing({**_IDS, "search": _words("name"), "isCustom": _flag("isCustom")}, orders=("id", "name"))
LABELS = Listing({**_IDS, "search": _words("name")}, orders=("id", "name"))
USERS = Listing({"isDeleted": _flag("isDeleted"), "isLocked": _flag("isLocked")})
