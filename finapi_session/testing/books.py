"""What each user's bank has: believable data up to today, and what a test adds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal

from . import demo_data
from .authority import Refusal
from .filters import Record

_MOST_A_DAY = 100
# Numbers of the believable transactions of a day; those that a test adds come after them.
_BELIEVABLE_A_DAY = 20


@dataclass
class _Book:
    """What a test added for one user, and whether the believable data are there too."""

    empty: bool = False
    accounts: list[Record] = field(default_factory=list)
    transactions: list[Record] = field(default_factory=list)


class Books:
    """The accounts and transactions of all users. Thread-safe.

    Data begin half a year before the day that *start* returns, and end with the one that *today* returns.
    """

    def __init__(self, start: Callable[[], date], today: Callable[[], date]) -> None:
        self._start = start
        self._today = today
        self._lock = threading.RLock()
        self._books: dict[str, _Book] = {}

    def clear(self) -> None:
        """Forget what was added."""
        with self._lock:
            self._books.clear()

    def forget(self, user_id: str, *, empty: bool = False) -> None:
        """Forget what was added for a user, who then has the believable data, or with *empty* nothing."""
        with self._lock:
            self._books[user_id.lower()] = _Book(empty)

    def accounts(self, user_id: str) -> list[Record]:
        """Return a user's accounts, each with the balance that its transactions make."""
        with self._lock:
            book = self._book(user_id)
            accounts = [*([] if book.empty else demo_data.accounts(user_id.lower())), *book.accounts]
            cents = {account["id"]: _cents(account["balance"]) for account in accounts}
            for entry in self.transactions(user_id):
                cents[entry["accountId"]] += _cents(entry["amount"])
            return [{**account, "balance": cents[account["id"]] / 100} for account in accounts]

    def transactions(self, user_id: str) -> list[Record]:
        """Return a user's transactions up to today, the newest first."""
        with self._lock:
            book, today, first = self._book(user_id), self._today(), demo_data.first_day(self._start())
            usual = () if book.empty else demo_data.transactions(user_id.lower(), first, today)
            added = [entry for entry in book.transactions if entry["bankBookingDate"] <= str(today)]
            return sorted([*usual, *added], key=lambda entry: (entry["bankBookingDate"], entry["id"]), reverse=True)

    def bank_connections(self, user_id: str) -> list[Record]:
        """Return a user's one connection, or none where there is no account."""
        accounts = self.accounts(user_id)
        return [demo_data.bank_connection(user_id.lower(), accounts, self._today())] if accounts else []

    def add_account(self, user_id: str, name: str, kind: str, balance: Decimal, iban: str | None) -> Record:
        """Give a user one more account, and return it."""
        with self._lock:
            book = self._book(user_id)
            # The believable ones are numbers 1 to 3, whether they are there or not.
            account = demo_data.account(user_id.lower(), 4 + len(book.accounts), name, kind, _cents(balance))
            account |= {} if iban is None else {"iban": iban}
            book.accounts.append(account)
            return dict(account)

    def add_transaction(
        self, user_id: str, amount: Decimal, account_id: int | None, day: date | None, counterpart: str, purpose: str
    ) -> Record:
        """Book *amount* on an account, by default the user's first one today, and return the transaction."""
        with self._lock:
            owned = [account["id"] for account in self.accounts(user_id)]
            wanted = owned[:1] if account_id is None else [each for each in owned if each == account_id]
            if not wanted:
                raise Refusal(404, "ENTITY_NOT_FOUND", f"User {user_id!r} has no such account")
            book, day = self._book(user_id), day or self._today()
            place = _BELIEVABLE_A_DAY + sum(1 for entry in book.transactions if entry["bankBookingDate"] == str(day))
            if place >= _MOST_A_DAY:
                raise ValueError(f"a day has at most {_MOST_A_DAY - _BELIEVABLE_A_DAY} transactions of your own")
            number = demo_data.number_of(day, place)
            entry = demo_data.transaction(user_id.lower(), number, wanted[0], day, counterpart, purpose, _cents(amount))
            book.transactions.append(entry)
            return dict(entry)

    def _book(self, user_id: str) -> _Book:
        return self._books.setdefault(user_id.lower(), _Book())


def _cents(amount: float | Decimal) -> int:
    return int((Decimal(str(amount)) * 100).quantize(Decimal(1), ROUND_HALF_EVEN))
