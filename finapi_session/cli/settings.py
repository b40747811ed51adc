"""What the options say: where finAPI is, where tokens are kept, how much is told; and the sessions that follow."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from ..identity import folded
from ..stores.opening import open_store
from ..stores.protocol import TokenStore
from ..tokens import Token
from .clients import Client, kept_client
from .logins import Login, Logins, StorageError

# What needs requests is imported where it is used: --help and completion need none of it.
if TYPE_CHECKING:
    from ..environment import Environment
    from ..events import TokenEvent
    from ..session import FinapiSession

NAMES = ("sandbox", "live", "sandbox-v2", "live-v2")


@dataclass
class Settings:
    """What the options say, before the command and after it."""

    environment_name: str = NAMES[0]
    #: Whether an option says so, rather than a variable.
    is_environment_given: bool = False
    store_name: str = "file"
    verbose: int = 0

    @cached_property
    def environment(self) -> Environment:
        """Where finAPI is."""
        from ..environment import Environment

        try:
            return Environment.named(self.environment_name)
        except ValueError as error:
            raise click.UsageError(f"FINAPI_ENVIRONMENT: {error}") from None

    @cached_property
    def store(self) -> TokenStore:
        """The store, opened when it is first used; connections to a database end with the command."""
        store, context = _opened(self.store_name), click.get_current_context(silent=True)
        engine = getattr(store, "engine", None)
        if engine is not None and context is not None:
            context.find_root().call_on_close(engine.dispose)
        return store

    @cached_property
    def logins(self) -> Logins:
        """The identities in the store."""
        return Logins(self.store, lambda what: click.echo(f"finapi-session: {what}", err=True))

    def tell_more(self, count: int) -> None:
        """Log to standard error what happens to tokens, *count* levels more than so far."""
        logger = logging.getLogger("finapi_session")
        if count and not self.verbose:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
            logger.addHandler(handler)
        self.verbose += count
        logger.setLevel(logging.DEBUG if self.verbose > 1 else logging.INFO)

    def client(self, environment: Environment, client_id: str | None = None) -> Client:
        """Return the client of the environment's variables, or the one that ``login`` kept.

        Raises :class:`LoginRequiredError` if there is none, or none called *client_id*.
        """
        from ..errors import LoginRequiredError

        given = Client(os.environ.get("FINAPI_CLIENT_ID", ""), os.environ.get("FINAPI_CLIENT_SECRET", ""))
        if environment == self.environment and all(given) and client_id in (None, given.client_id):
            return given
        kept = kept_client(environment)
        wanted = client_id or given.client_id
        if kept is not None and (not wanted or wanted == kept.client_id):
            return kept
        name = f"client {wanted!r}" if wanted else "a client"
        raise LoginRequiredError(f"the secret of {name} at {name_of(environment)} is not known here")

    def session(
        self, client: Client, username: str | None, password: str | None = None, **options: Any
    ) -> FinapiSession:
        """Return a session on the store. Closing it revokes nothing: other processes have the same tokens."""
        from ..options import NOT_GIVEN
        from ..session import FinapiSession

        options = {"environment": self.environment, **options}
        try:
            return FinapiSession(
                *client,
                username=username,
                password=NOT_GIVEN if password is None else password,
                store=self.store,
                revoke_on_close=False,
                on_event=None if self.verbose else _warn,
                **options,
            )
        except (TypeError, ValueError) as error:
            raise click.UsageError(str(error)) from None

    def logged_in(self, username: str | None) -> FinapiSession:
        """Return a session that has a valid token, and list its identity."""
        client = self.client(self.environment)
        session = self.session(client, username, password_of(username))
        session.fetch_token()
        # A store that fails has been told of, and costs no call.
        with suppress(StorageError):
            self.logins.add(Login.of(client, username, self.environment))
        return session


def _opened(text: str) -> TokenStore:
    """Return the store of ``--store``; a database is asked at once, so that one that fails is told of."""
    try:
        store = open_store(text)
        if hasattr(store, "create_table"):
            store.create_table()
    except ValueError as error:
        if text == "keyring":
            what = str(error).partition(":")[0]
            advice = "install a vault for it (such as Secret Service), or choose --store file"
            raise StorageError(f"{what}: {advice}") from None
        raise click.BadParameter(f"--store: {error}") from None
    except ImportError:
        raise
    except PermissionError as error:  # of a SQLite file, and it says what to do
        raise StorageError(str(error)) from None
    except Exception as error:  # drivers raise of their own, too
        raise StorageError(f"the database of --store fails ({type(error).__name__}): mend it") from None
    return store


def _warn(event: TokenEvent) -> None:
    if event.kind == "store_failed":
        click.echo(f"finapi-session: {event}", err=True)


def password_of(username: str | None) -> str | None:
    """Return ``FINAPI_PASSWORD``, unless ``FINAPI_USERNAME`` says that it is somebody else's."""
    owner = os.environ.get("FINAPI_USERNAME") or username
    if username is None or owner is None or folded(owner) != folded(username):
        return None
    return os.environ.get("FINAPI_PASSWORD") or None


def name_of(environment: Environment) -> str:
    """Return what *environment* is called, or its address."""
    from ..environment import Environment

    at = environment.token_url
    return next((name for name in NAMES if Environment.named(name).token_url == at), environment.base_url)


def left_of(token: Token) -> str:
    """Tell for how long *token* is valid."""
    valid = "valid" if token.expires_at is None else "valid" + for_seconds(int(token.expires_at - time.time()))
    return f"token {valid}"


def for_seconds(seconds: object) -> str:
    """Return " for" and how many minutes or *seconds*, or nothing for no number."""
    if not isinstance(seconds, int):
        return ""
    return f" for {seconds // 60} min" if seconds >= 120 else f" for {seconds} s"
