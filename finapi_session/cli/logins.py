"""Who is logged in at the command line: an index of identities in the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..identity import Credentials, folded, label
from ..stores.protocol import TokenStore
from ..tokens import Token
from .clients import Client

if TYPE_CHECKING:
    from ..environment import Environment

_INDEX = "finapi-session command line: identities"


class StorageError(OSError):
    """A token store cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Login:
    """One identity of which the store keeps a token, under ``key``. Holds no secret."""

    client_id: str
    username: str | None
    base_url: str
    oauth_path: str
    key: str = field(repr=False, compare=False)

    @classmethod
    def of(cls, client: Client, username: str | None, environment: Environment) -> Login:
        """Return the login of a client, or of one of its users, at *environment*."""
        key = Credentials(*client, username).key(environment.token_url)
        username = folded(username)
        return cls(client.client_id, username, environment.base_url, environment.oauth_path, key)

    @property
    def environment(self) -> Environment:
        """Where it was logged in, without the origins that only API calls go to."""
        from ..environment import Environment

        return Environment(self.base_url, self.oauth_path)

    def __str__(self) -> str:
        return label(self.client_id, self.username)


class Logins:
    """The identities of which *store* keeps tokens, listed in the store itself. Raises :class:`StorageError`.

    A store cannot list its keys, and tells from none of them whose token is under it. Others may be able to write to
    it: an entry that is none is skipped, and *warn* is told of it once.
    """

    def __init__(self, store: TokenStore, warn: Callable[[str], object]) -> None:
        self._store = store
        self._warn: Callable[[str], object] | None = warn

    def all(self) -> list[Login]:
        """Return all of them, users after their client. An index that cannot be read is an empty one."""
        with self._storing():
            return self._listed()

    def add(self, login: Login) -> None:
        """List *login*; an older one of the same identity goes."""
        if any(other == login and other.key == login.key for other in self.all()):
            return
        with self._storing(), self._store.lock(_INDEX):
            self._write([*(other for other in self._listed() if other != login), login])

    def remove(self, login: Login) -> None:
        """List *login* no longer, and keep no token of it."""
        with self._storing(), self._store.lock(_INDEX):
            self._write([other for other in self._listed() if other != login])
            from ..cell import refusals_key

            self._store.delete(login.key)
            self._store.delete(refusals_key(login.key))

    def purge(self, older_than: float, purge: Callable[[float], int]) -> int:
        """Call the store's *purge*, and list nobody whose token went. Return how many values went."""
        with self._storing(), self._store.lock(_INDEX):
            # The list is in use, however long nobody has logged in.
            self._write(self._listed())
            removed = purge(older_than)
            self._write([login for login in self._listed() if self._store.get(login.key) is not None])
        return removed

    def token(self, login: Login) -> Token | None:
        """Return the token that the store keeps of *login*, the newest one."""
        from ..envelope import unverified

        with self._storing():
            text = self._store.get(login.key)
        with suppress(ValueError):
            return next((grant.token for grant in unverified(text or "").grants), None)
        return None

    def _listed(self) -> list[Login]:
        entries = self._entries()
        logins = [login for login in map(_read, entries) if login is not None]
        if junk := len(entries) - len(logins):
            many = f"{junk} entries in the list of logins cannot be read and are skipped."
            self._tell("1 entry in the list of logins cannot be read and is skipped." if junk == 1 else many)
        return sorted(logins, key=lambda login: (login.base_url, login.client_id, login.username or ""))

    def _entries(self) -> list[object]:
        text = self._store.get(_INDEX)
        try:
            entries = json.loads(text or "[]")
        except (ValueError, RecursionError):
            entries = None
        if isinstance(entries, list):
            return entries
        self._tell("The list of logins cannot be read and is taken for empty.")
        return []

    def _tell(self, what: str) -> None:
        warn, self._warn = self._warn, None
        if warn is not None:
            warn(what)

    def _write(self, logins: list[Login]) -> None:
        if logins:
            self._store.set(_INDEX, json.dumps([asdict(login) for login in logins]))
        else:
            self._store.delete(_INDEX)

    @contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Other libraries' texts may hold the store's own password.
            ours = isinstance(error, OSError) or type(error) is LookupError
            reason = str(error) if ours else type(error).__name__
            what = f"the store {self._store!r} fails: {reason}. Mend it, or choose another --store."
            raise StorageError(what) from None


def _read(entry: Any) -> Login | None:
    """Return the login that *entry* of the list is, or ``None`` for junk."""
    try:
        login = Login(**entry)
        texts = (login.client_id, login.key, "" if login.username is None else login.username)
        return login if login.environment and all(isinstance(text, str) for text in texts) else None
    except (TypeError, ValueError):
        return None
