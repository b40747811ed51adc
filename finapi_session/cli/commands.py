"""The commands of ``finapi-session``; :mod:`~finapi_session.cli` runs them."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from .. import __version__
from ..identity import folded
from ..redaction import printable
from ..stores.opening import POSSIBLE, open_store
from ..stores.protocol import TokenStore
from ..tokens import LONGEST_TOKEN, Token
from .logins import Client, Login, Logins, StorageError, forget_client, keep_client, kept_client

# What needs requests is imported where it is used: --help and completion need none of it.
if TYPE_CHECKING:
    from ..environment import Environment
    from ..events import TokenEvent
    from ..session import FinapiSession

_Command = TypeVar("_Command", bound=Callable[..., Any])

_NAMES = ("sandbox", "live", "sandbox-v2", "live-v2")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
_EPILOG = """
\b
Also read from the environment:
  FINAPI_CLIENT_ID, FINAPI_CLIENT_SECRET   the client; else what 'login' kept in the system's keyring
  FINAPI_USERNAME, FINAPI_PASSWORD         a user of it
  FINAPI_ENVIRONMENT, FINAPI_STORE         the two options above
  REQUESTS_CA_BUNDLE, HTTPS_PROXY, NO_PROXY, NO_COLOR

\b
Exit codes:
  0    done
  1    the API answered with an error
  2    wrong usage, or something is not installed
  3    login required or refused
  4    finAPI is unreachable or not usable
  5    the token store or a file is not usable
  70   a mistake of this program
  130  interrupted (Ctrl-C)
  141  the reader of the output has gone

\b
Completion, for bash (also: zsh_source, fish_source):
  eval "$(_FINAPI_SESSION_COMPLETE=bash_source finapi-session)"
"""


@dataclass
class Settings:
    """What the options before the command say."""

    environment: Environment
    store_name: str
    verbose: int

    @cached_property
    def store(self) -> TokenStore:
        """The store, opened when it is first used."""
        return _opened(self.store_name)

    @cached_property
    def logins(self) -> Logins:
        """The identities in the store."""
        return Logins(self.store, lambda what: click.echo(f"finapi-session: {what}", err=True))

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
        raise LoginRequiredError(f"the secret of {name} at {_name(environment)} is not known here")

    def session(
        self, client: Client, username: str | None, password: str | None = None, **options: Any
    ) -> FinapiSession:
        """Return a session on the store. Closing it revokes nothing: other processes have the same tokens."""
        from ..session import NOT_GIVEN, FinapiSession

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
        session = self.session(client, username, _password_of(username))
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


def _named(_context: click.Context, _parameter: click.Parameter, name: str) -> Environment:
    from ..environment import Environment

    try:
        return Environment.named(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--environment",
    metavar="NAME|URL",
    envvar="FINAPI_ENVIRONMENT",
    default="sandbox",
    show_default=True,
    callback=_named,
    help=f"{', '.join(_NAMES)}, or an https base URL.",
)
@click.option(
    "--store",
    metavar="STORE",
    envvar="FINAPI_STORE",
    default="file",
    show_default=True,
    help=f"Where tokens are kept: {POSSIBLE}.",
)
@click.option("-v", "--verbose", count=True, help="Log to standard error what happens to tokens; -vv: more.")
@click.version_option(__version__, "--version", prog_name="finapi-session")
@click.pass_context
def commands(context: click.Context, environment: Environment, store: str, verbose: int) -> None:
    """Get, use and revoke finAPI access tokens."""
    context.obj = Settings(environment, store, verbose)
    if "NO_COLOR" in os.environ:
        context.color = False
    handler = logging.StreamHandler() if verbose else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("finapi_session")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose > 1 else logging.INFO)


def _whose(command: _Command) -> _Command:
    """Add the options that choose between the client and a user."""
    user = click.option("--user", metavar="ID", envvar="FINAPI_USERNAME", show_envvar=True, help="A user.")
    client = click.option("--client", is_flag=True, help="The client, though FINAPI_USERNAME is set.")
    return user(client(command))


@commands.command()
@_whose
@click.pass_obj
def login(settings: Settings, user: str | None, client: bool) -> None:
    """Check credentials, and keep their tokens.

    Asks for what the environment does not give. The client's id and secret stay in the system's keyring, if
    there is one; a user's password is not kept.
    """
    settings.logins.all()
    asked = _ask_client(settings.environment)
    _log_in(settings, asked, None, None)
    _keep(settings, asked)
    if user is None and not client and sys.stdin is not None and sys.stdin.isatty():
        user = click.prompt("User id (Enter for none)", default="", show_default=False, err=True) or None
    if user is not None and not client:
        variables = f"FINAPI_USERNAME={user} and FINAPI_PASSWORD"
        password = _password_of(user) or _ask(variables, "Password", hide_input=True)
        _log_in(settings, asked, user, password)


def _ask_client(environment: Environment) -> Client:
    kept = kept_client(environment) or Client("", "")
    client_id, secret = os.environ.get("FINAPI_CLIENT_ID"), os.environ.get("FINAPI_CLIENT_SECRET")
    client_id = client_id or _ask("FINAPI_CLIENT_ID", "Client id", default=kept.client_id or None)
    if not secret and client_id == kept.client_id:
        hint = "Client secret (Enter for the one that is kept)"
        secret = _ask("", hint, hide_input=True, default=kept.client_secret, show_default=False)
    return Client(client_id, secret or _ask("FINAPI_CLIENT_SECRET", "Client secret", hide_input=True))


def _ask(variable: str, text: str, default: str | None = None, **options: Any) -> str:
    """Ask on the terminal; without one take *default*, or say which *variable* to set."""
    if sys.stdin is not None and sys.stdin.isatty():
        answer: str = click.prompt(text, default=default, err=True, **options)
        return answer
    if default is not None:
        return default
    raise click.UsageError(f"there is no terminal to ask on: set {variable}")


def _log_in(settings: Settings, client: Client, username: str | None, password: str | None) -> None:
    with settings.session(client, username, password) as session:
        token = session.fetch_token()
    login = Login.of(client, username, settings.environment)
    settings.logins.add(login)
    click.echo(f"Logged in: {login} at {_name(settings.environment)}, {_left(token)}.")


def _keep(settings: Settings, client: Client) -> None:
    if settings.store_name == "memory":
        click.echo("Tokens in memory end with this command: choose another --store to keep them.")
    if keep_client(client, settings.environment):
        click.echo("The client's id and secret are kept in the system's keyring.")
    elif "FINAPI_CLIENT_ID" not in os.environ or "FINAPI_CLIENT_SECRET" not in os.environ:
        click.echo(f"{_no_keyring()}, so the client's secret is not kept. Before the next commands, run:")
        click.echo(f"  export FINAPI_CLIENT_ID={shlex.quote(client.client_id)}")
        click.echo("  read -rs FINAPI_CLIENT_SECRET && export FINAPI_CLIENT_SECRET   # then type the secret")
    else:
        click.echo(f"{_no_keyring()}: keep FINAPI_CLIENT_ID and FINAPI_CLIENT_SECRET set.")


def _no_keyring() -> str:
    missing = find_spec("keyring") is None
    return "No keyring without pip install 'finapi-session[keyring]'" if missing else "There is no keyring here"


@commands.command()
@_whose
@click.pass_obj
def token(settings: Settings, user: str | None, client: bool) -> None:
    """Print a valid access token, alone, for curl and other clients.

    \b
    printf 'Authorization: Bearer %s' "$(finapi-session token)" |
      curl -H @- https://sandbox.finapi.io/api/v2/banks
    """  # noqa: D301 - click's mark of a paragraph that keeps its lines
    with settings.logged_in(None if client else user) as session:
        click.echo(session.fetch_token().access_token)


@commands.command()
@click.argument("method", type=click.Choice(_METHODS, case_sensitive=False))
@click.argument("path")
@click.option("-p", "--param", "params", metavar="NAME=VALUE", multiple=True, help="A query parameter.")
@click.option("-d", "--data", metavar="JSON|@FILE|@-", help="A JSON body, a file, or standard input.")
@click.option("-H", "--header", "headers", metavar="NAME:VALUE", multiple=True, help="A header.")
@_whose
@click.option("--all-pages", is_flag=True, help="Read all pages, and write them as one document.")
@click.pass_obj
def request(
    settings: Settings,
    method: str,
    path: str,
    params: tuple[str, ...],
    data: str | None,
    headers: tuple[str, ...],
    user: str | None,
    client: bool,
    all_pages: bool,
) -> int:
    """Call the API, as in request GET /api/v2/banks.

    The body goes to standard output: readable on a terminal, as it came into a pipe. Status and request id
    go to standard error. The exit code is 0 only for an answer of 2xx.
    """
    from . import output

    method, body = method.upper(), output.read_body(data)
    query, sent = output.pairs(params, "="), dict(output.pairs(headers, ":"))
    if not settings.environment.trusts(settings.environment.absolute(path)):
        raise click.UsageError(f"{path} is not an address of {_name(settings.environment)}")
    if all_pages and (method != "GET" or body is not None):
        raise click.UsageError("--all-pages is for GET without --data")
    if body is not None and "content-type" not in map(str.lower, sent):
        sent["Content-Type"] = "application/json"
    with settings.logged_in(None if client else user) as session:
        if all_pages:
            return output.show_all_pages(session, path, query, sent)
        return output.show(output.call(session, method, path, params=query, data=body, headers=sent))


@commands.command()
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@click.pass_obj
def status(settings: Settings, as_json: bool) -> None:
    """List whose tokens the store keeps, where, and for how long. Asks finAPI nothing."""
    rows, store = [_described(settings, login) for login in settings.logins.all()], repr(settings.store)
    if as_json:
        document = {"environment": _name(settings.environment), "store": store, "identities": rows}
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(f"{len(rows) or 'No'} {'identity' if len(rows) == 1 else 'identities'} in {store}")
    for row in rows:
        renewable = ", renewed without a password" if row["renewable"] else ""
        # Whoever can write to the store may have put them there: a terminal would obey control characters.
        client, user = printable(row["client_id"]), printable(row["username"])
        who = f"user {user} of client" if user else "client"
        click.echo(f"  {who} {client} at {row['environment']}:", nl=False)
        click.echo(f" {_TOKEN[str(row['token'])]}{_for(row['expires_in'])}{renewable}")


_TOKEN = {"valid": "token valid", "expired": "token expired", "none": "no token"}


def _described(settings: Settings, login: Login) -> dict[str, object]:
    token, now = settings.logins.token(login), time.time()
    expires_at = None if token is None else token.expires_at
    valid = token is not None and not token.expired(now)
    return {
        "client_id": login.client_id,
        "username": login.username,
        "environment": _name(login.environment),
        "token": "valid" if valid else "none" if token is None else "expired",
        "expires_in": int(expires_at - now) if valid and expires_at is not None else None,
        "renewable": token is not None and token.refresh_token is not None,
    }


@commands.command()
@_whose
@click.option("--all", "everybody", is_flag=True, help="All clients and users that 'status' lists.")
@click.pass_obj
def logout(settings: Settings, user: str | None, client: bool, everybody: bool) -> None:
    """Revoke tokens and forget them: the client's, a user's, or all.

    finAPI gives one token to all who ask with the same credentials, so other processes lose it too. The
    client's secret is forgotten with the last of its tokens.
    """
    if everybody:
        _log_out_all(settings)
        return
    environment = settings.environment
    its = settings.client(environment)
    settings.session(its, None).close()  # what cannot be a client is told as anywhere else
    who = Login.of(its, None if client else user, environment)
    _log_out(settings, next((login for login in settings.logins.all() if login == who), who))


def _log_out_all(settings: Settings) -> None:
    """Log everybody out, whoever cannot be; raise the first error at the end."""
    from ..errors import FinapiError

    failures: list[Exception] = []
    # Users first: revoking takes the client's token, and may list the client anew.
    for of_users in (True, False):
        for login in [each for each in settings.logins.all() if (each.username is not None) is of_users]:
            try:
                _log_out(settings, login)
            except FinapiError as error:
                click.echo(f"Not logged out: {login} at {_name(login.environment)}.", err=True)
                failures.append(error)
    if failures:
        raise failures[0]


def _log_out(settings: Settings, login: Login) -> None:
    environment = login.environment
    if environment.token_url == settings.environment.token_url:
        environment = settings.environment
    client = settings.client(environment, login.client_id)
    stored = settings.logins.token(login)
    # The token is handed over, since a client whose secret has changed finds nothing in the store.
    with settings.session(client, login.username, environment=environment, token=stored) as session:
        session.revoke()
    settings.logins.remove(login)
    _list_client(settings, client, environment)
    click.echo(f"Logged out: {login} at {_name(environment)}{'' if stored else ', no token was kept'}.")


def _list_client(settings: Settings, client: Client, environment: Environment) -> None:
    """List the client, if a user's logout had to get its token; forget its secret if nobody is left."""
    itself = Login.of(client, None, environment)
    if settings.logins.token(itself) is not None:
        settings.logins.add(itself)
    here = {(login.client_id, login.environment.token_url) for login in settings.logins.all()}
    kept = kept_client(environment)
    if kept is not None and (kept.client_id, environment.token_url) not in here:
        forget_client(environment)


@commands.command()
@click.option("--older-than", "age", metavar="AGE", required=True, help="Such as 90d, 12h, 30m or 45s.")
@click.pass_obj
def purge(settings: Settings, age: str) -> None:
    """Remove from the store what nobody has set for long, with its lock files. Revokes nothing.

    A token that is used and need not be renewed is not set: choose more than a token and its refresh token live.
    """
    seconds, remove = _seconds(age), getattr(settings.store, "purge", None)
    if remove is None:
        raise click.UsageError(_NO_PURGE)
    try:
        removed = settings.logins.purge(seconds, remove)
    finally:
        if hasattr(settings.store, "engine"):
            settings.store.engine.dispose()
    values = "1 value" if removed == 1 else f"{removed} values"
    click.echo(f"Removed {values} older than {age}." if removed else f"Nothing is older than {age}.")


_NO_PURGE = (
    "purge is for files and databases: Redis ends values by itself, with RedisStore(expire_after=...), a keyring is "
    "emptied by 'logout', and memory keeps nothing"
)
_AGE = re.compile("([1-9][0-9]{0,8})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(age: str) -> float:
    found = _AGE.fullmatch(age)
    if found is None:
        raise click.BadParameter("write it as a number and s, m, h or d, such as 90d", param_hint="'--older-than'")
    return int(found[1]) * _UNITS[found[2]]


@commands.command()
@click.option("--hint", type=click.Choice(("access_token", "refresh_token")), help="What kind of token it is.")
@click.pass_obj
def revoke(settings: Settings, hint: str | None) -> None:
    """Revoke a token that standard input gives, a leaked one for example.

    With --hint access_token that token alone; with --hint refresh_token, and without a hint, all of its grant.
    """
    from ..authorization import AuthorizationApi

    if sys.stdin is None:
        raise click.UsageError("give the token on standard input")
    environment = settings.environment
    client = settings.client(environment)
    with settings.session(client, None) as session:
        try:
            # More than the longest token is none.
            text = _ask("", "Token", hide_input=True) if sys.stdin.isatty() else sys.stdin.read(2 * LONGEST_TOKEN)
            AuthorizationApi(session).revoke_token(text.strip(), token_type_hint=hint)
        except ValueError as error:
            reason = "token must be text" if isinstance(error, UnicodeError) else str(error)
            raise click.UsageError(reason) from None
    with suppress(StorageError):  # the client's own token, which it took, is kept
        settings.logins.add(Login.of(client, None, environment))
    click.echo(f"Revoked at {_name(environment)}, if finAPI knew it.")


@commands.command(context_settings={"allow_interspersed_args": False})
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The port; without it a free one.")
@click.option("--env-file", metavar="FILE", help="Also write the variables to FILE, which is there while it runs.")
@click.option("--ca-file", metavar="FILE", help="Keep the certificate to trust in FILE for later starts.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
def sandbox(port: int, env_file: str | None, ca_file: str | None, command: tuple[str, ...]) -> int:
    """Serve a local finAPI until Ctrl-C, and print how to reach it.

    With a command, runs it with the variables set, and ends when it ends, with its exit code:

    \b
    finapi-session sandbox -- pytest
    """  # noqa: D301 - click's mark of a paragraph that keeps its lines
    from .serving import serve

    return serve(port, ca_file, env_file, command)


@commands.command()
@click.pass_obj
def check(settings: Settings) -> int:
    """Look whether finAPI, the client and the store are as a deployment needs them.

    One line each: ok, warn or fail. The exit code is 0 unless something failed. It asks for one token of the client's
    and reads its configuration; it revokes nothing, and leaves no value in the store.
    """
    from .check import check as look

    environment, name = settings.environment, settings.store_name
    return look(environment, lambda: settings.client(environment), lambda: open_store(name))


@commands.command()
@click.pass_context
def demo(context: click.Context) -> None:
    """Tell the story of a token, call by call, on a local finAPI.

    With --environment given and the client's variables set, tells the read-only part of it on finAPI itself;
    with FINAPI_USERNAME and FINAPI_PASSWORD also the user's part.
    """
    from . import demo as story

    settings, parent = context.obj, context.parent
    chosen = parent and parent.get_parameter_source("environment") is ParameterSource.COMMANDLINE
    if not chosen:
        story.on_a_sandbox()
        return
    user = os.environ.get("FINAPI_USERNAME")
    story.on_finapi(settings.client(settings.environment), settings.environment, user, _password_of(user))


def _password_of(username: str | None) -> str | None:
    """Return ``FINAPI_PASSWORD``, unless ``FINAPI_USERNAME`` says that it is somebody else's."""
    owner = os.environ.get("FINAPI_USERNAME") or username
    if username is None or owner is None or folded(owner) != folded(username):
        return None
    return os.environ.get("FINAPI_PASSWORD") or None


def _warn(event: TokenEvent) -> None:
    if event.kind == "store_failed":
        click.echo(f"finapi-session: {event}", err=True)


def _name(environment: Environment) -> str:
    from ..environment import Environment

    at = environment.token_url
    return next((name for name in _NAMES if Environment.named(name).token_url == at), environment.base_url)


def _left(token: Token) -> str:
    valid = "valid" if token.expires_at is None else "valid" + _for(int(token.expires_at - time.time()))
    return f"token {valid}"


def _for(seconds: object) -> str:
    if not isinstance(seconds, int):
        return ""
    return f" for {seconds // 60} min" if seconds >= 120 else f" for {seconds} s"
