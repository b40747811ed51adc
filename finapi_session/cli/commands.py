"""The commands of ``finapi-session``; :mod:`~finapi_session.cli` runs them."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from ..redaction import printable
from ..stores.opening import open_store
from ..tokens import LONGEST_TOKEN
from . import options
from .clients import Client, forget_client, keep_in_file, keep_in_vault, kept_client, private_files
from .logins import Login, StorageError
from .settings import Settings, for_seconds, left_of, name_of, password_of

# What needs requests is imported where it is used: --help and completion need none of it.
if TYPE_CHECKING:
    from ..environment import Environment

_EPILOG = """
\b
Examples:
  finapi-session demo
  finapi-session login --user alice
  finapi-session request GET /api/v2/accounts --user alice
  finapi-session logout --all

\b
Also read from the environment:
  FINAPI_CLIENT_ID, FINAPI_CLIENT_SECRET   the client; else the one that 'login' kept
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


def _examples(*lines: str) -> str:
    """Return what ``--help`` ends with: *lines* that can be copied into a shell."""
    return "\n  ".join(["\b\nExamples:", *lines])


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@options.environment(envvar="FINAPI_ENVIRONMENT", default="sandbox", show_default=True)
@options.store(envvar="FINAPI_STORE", default="file", show_default=True)
@options.verbose
@click.version_option(__version__, "--version", prog_name="finapi-session")
@click.pass_context
def commands(context: click.Context) -> None:
    """Get, use and revoke finAPI access tokens.

    The options below go before a command or after it.
    """
    if "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb":
        context.color = False
    # What nobody asked to be logged is not printed by Python's last resort either.
    logging.getLogger("finapi_session").addHandler(logging.NullHandler())


@commands.command(
    epilog=_examples(
        "finapi-session login",
        "finapi-session login --user alice --environment live",
    )
)
@options.whose
@options.anywhere
@click.pass_obj
def login(settings: Settings, user: str | None, client: bool) -> None:
    """Check credentials, and keep their tokens.

    Asks for what the environment does not give. The client's id and secret stay in the system's keyring, or, where
    there is none and you agree, in a file that only you may read. A user's password is not kept.

    The last lines say what a program needs to find the tokens by FinapiSession.from_env().
    """
    settings.logins.all()
    asked = _ask_client(settings.environment)
    _log_in(settings, asked, None, None)
    is_kept = _keep(asked, settings.environment)
    user = None if client else _asked_user(user)
    if user is not None:
        variables = f"FINAPI_USERNAME={user} and FINAPI_PASSWORD"
        password = password_of(user) or _ask(variables, "Password", hide_input=True)
        _log_in(settings, asked, user, password)
    if settings.store_name == "memory":
        click.echo("Tokens in memory end with this command: choose another --store to keep them.")
    else:
        _tell_exports(settings, asked, user, is_kept)


def _asked_user(given: str | None) -> str | None:
    if given is None and _on_a_terminal():
        return click.prompt("User id (Enter for none)", default="", show_default=False, err=True) or None
    return given


def _on_a_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


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
    if _on_a_terminal():
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
    click.echo(f"Logged in: {login} at {name_of(settings.environment)}, {left_of(token)}.")


def _keep(client: Client, environment: Environment) -> bool:
    """Keep *client* for the next commands, where the machine or its user has a place for it; tell whether."""
    if keep_in_vault(client, environment):
        click.echo("The client's id and secret are kept in the system's keyring.")
        return True
    if _is_given(client) or not _on_a_terminal():
        return False
    place = private_files().directory
    question = f"{_no_keyring()}. Keep the client's id and secret in {place}, which only you may read?"
    if not click.confirm(question, err=True):
        return False
    keep_in_file(client, environment)
    click.echo("They are kept there until the last logout.")
    return True


def _is_given(client: Client) -> bool:
    return client == (os.environ.get("FINAPI_CLIENT_ID"), os.environ.get("FINAPI_CLIENT_SECRET"))


def _tell_exports(settings: Settings, client: Client, user: str | None, is_kept: bool) -> None:
    """Print what the next command lacks, and a program, as lines for a shell."""
    whom = "FinapiSession.from_env() in programs"
    if not is_kept and _is_given(client):
        click.echo(f"{_no_keyring()}: keep FINAPI_CLIENT_ID and FINAPI_CLIENT_SECRET set.")
    elif not is_kept:
        click.echo(f"{_no_keyring()}, so the client's secret is not kept.")
        whom = f"the next commands, and for {whom}"
    lines = _exports(settings, client, user)
    if lines:
        click.echo("\n  ".join([f"For {whom}, run:", *lines]))


def _exports(settings: Settings, client: Client, user: str | None) -> list[str]:
    """Return the lines that set what the environment lacks; what is secret is left to be typed."""
    store = settings.store_name
    read = "read -rs {0} && export {0}   # then type "
    wanted = (
        ("FINAPI_ENVIRONMENT", settings.environment_name, "sandbox", ""),
        # A URL may hold a password.
        ("FINAPI_STORE", store, None, "what you gave to --store" if "://" in store else ""),
        ("FINAPI_CLIENT_ID", client.client_id, None, ""),
        ("FINAPI_CLIENT_SECRET", client.client_secret, None, "the client's secret"),
        ("FINAPI_USERNAME", user, None, ""),
    )
    return [
        read.format(name) + secret if secret else f"export {name}={shlex.quote(str(value))}"
        for name, value, default, secret in wanted
        if os.environ.get(name, default) != value
    ]


def _no_keyring() -> str:
    missing = find_spec("keyring") is None
    return "No keyring without pip install 'finapi-session[keyring]'" if missing else "There is no keyring here"


@commands.command(
    epilog=_examples(
        "printf 'Authorization: Bearer %s' \"$(finapi-session token)\" |",
        "  curl -H @- https://sandbox.finapi.io/api/v2/banks",
    )
)
@options.whose
@options.anywhere
@click.pass_obj
def token(settings: Settings, user: str | None, client: bool) -> None:
    """Print a valid access token, alone, for curl and other clients."""
    with settings.logged_in(None if client else user) as session:
        click.echo(session.fetch_token().access_token)


@commands.command(
    epilog=_examples(
        "finapi-session request GET /api/v2/banks -p search=Berliner -p perPage=5",
        "finapi-session request GET /api/v2/transactions --user alice --all-pages",
        "finapi-session request POST /api/v2/users id=berta isAutoUpdateEnabled:=true --client",
        "finapi-session request POST /api/v2/users -d @user.json -i --client",
        "finapi-session request DELETE /api/v2/users/berta --client",
    )
)
@options.method
@click.argument("path")
@click.argument("fields", nargs=-1, metavar="[NAME=VALUE|NAME:=JSON]...")
@click.option("-p", "--param", "params", metavar="NAME=VALUE", multiple=True, help="A query parameter.")
@click.option("-d", "--data", metavar="JSON|@FILE|@-", help="A JSON body, a file, or standard input.")
@click.option("-H", "--header", "headers", metavar="NAME:VALUE", multiple=True, help="A header.")
@click.option("-i", "--include", is_flag=True, help="Write status line and headers before the body.")
@click.option("--all-pages", is_flag=True, help="Read all pages, and write them as one document.")
@options.whose
@options.anywhere
@click.pass_obj
def request(
    settings: Settings,
    method: str,
    path: str,
    fields: tuple[str, ...],
    params: tuple[str, ...],
    data: str | None,
    headers: tuple[str, ...],
    include: bool,
    all_pages: bool,
    user: str | None,
    client: bool,
) -> int:
    """Call the API, as in request GET /api/v2/banks.

    METHOD is GET, POST, PUT, PATCH, DELETE, HEAD or OPTIONS.

    Fields after the path are a JSON body: with = their values are texts, with := they are JSON. Secrets do not belong
    there, as others may see a command's arguments: give them by -d @FILE or -d @-.

    The body of the answer goes to standard output: in colours on a terminal, as it came into a pipe. Status and
    request id go to standard error. The exit code is 0 only for an answer of 2xx.
    """
    from . import output, sending

    if not settings.environment.trusts(settings.environment.absolute(path)):
        raise click.UsageError(f"{path} is not an address of {name_of(settings.environment)}")
    call = sending.Call.of(method, path, params, headers, data, fields)
    if all_pages and (method != "GET" or include or call.body is not None):
        raise click.UsageError("--all-pages is for GET, without --data and --include")
    with settings.logged_in(None if client else user) as session:
        if all_pages:
            return output.show_all_pages(call.pages(session))
        return output.show(call.send(session), include)


@commands.command(epilog=_examples("finapi-session status", "finapi-session status --json"))
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@options.anywhere
@click.pass_obj
def status(settings: Settings, as_json: bool) -> None:
    """List whose tokens the store keeps, where, and for how long. Asks finAPI nothing."""
    rows, store = [_described(settings, login) for login in settings.logins.all()], repr(settings.store)
    if as_json:
        document = {"environment": name_of(settings.environment), "store": store, "identities": rows}
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(f"{len(rows) or 'No'} {'identity' if len(rows) == 1 else 'identities'} in {store}")
    for row in rows:
        renewable = ", renewed without a password" if row["renewable"] else ""
        # Whoever can write to the store may have put them there: a terminal would obey control characters.
        client, user = printable(row["client_id"]), printable(row["username"])
        who = f"user {user} of client" if user else "client"
        click.echo(f"  {who} {client} at {row['environment']}:", nl=False)
        click.echo(f" {_TOKEN[str(row['token'])]}{for_seconds(row['expires_in'])}{renewable}")


_TOKEN = {"valid": "token valid", "expired": "token expired", "none": "no token"}


def _described(settings: Settings, login: Login) -> dict[str, object]:
    token, now = settings.logins.token(login), time.time()
    expires_at = None if token is None else token.expires_at
    valid = token is not None and not token.expired(now)
    return {
        "client_id": login.client_id,
        "username": login.username,
        "environment": name_of(login.environment),
        "token": "valid" if valid else "none" if token is None else "expired",
        "expires_in": int(expires_at - now) if valid and expires_at is not None else None,
        "renewable": token is not None and token.refresh_token is not None,
    }


@commands.command(epilog=_examples("finapi-session logout --user alice", "finapi-session logout --all"))
@options.whose
@click.option("--all", "everybody", is_flag=True, help="All clients and users that 'status' lists.")
@options.anywhere
@click.pass_obj
def logout(settings: Settings, user: str | None, client: bool, everybody: bool) -> None:
    """Revoke tokens and forget them: the client's, a user's, or all.

    finAPI gives one token to all who ask with the same credentials, so other processes lose it too. The
    client's secret is forgotten with the last of its tokens.
    """
    from ..errors import LoginRequiredError

    if everybody:
        _log_out_all(settings)
        return
    environment = settings.environment
    try:
        its = settings.client(environment)
    except LoginRequiredError:
        if settings.logins.all():
            raise
        click.echo(_NOBODY)
        return
    settings.session(its, None).close()  # what cannot be a client is told as anywhere else
    who = Login.of(its, None if client else user, environment)
    _log_out(settings, next((login for login in settings.logins.all() if login == who), who))


_NOBODY = "Nobody is logged in."


def _log_out_all(settings: Settings) -> None:
    """Log everybody out, whoever cannot be; raise the first error at the end."""
    from ..errors import FinapiError

    failures: list[Exception] = []
    if not settings.logins.all():
        click.echo(_NOBODY)
    # Users first: revoking takes the client's token, and may list the client anew.
    for of_users in (True, False):
        for login in [each for each in settings.logins.all() if (each.username is not None) is of_users]:
            try:
                _log_out(settings, login)
            except FinapiError as error:
                click.echo(f"Not logged out: {login} at {name_of(login.environment)}.", err=True)
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
    whom = f"{login} at {name_of(environment)}"
    click.echo(f"Logged out: {whom}." if stored else f"Nobody to log out: no token was kept of {whom}.")


def _list_client(settings: Settings, client: Client, environment: Environment) -> None:
    """List the client, if a user's logout had to get its token; forget its secret if nobody is left."""
    itself = Login.of(client, None, environment)
    if settings.logins.token(itself) is not None:
        settings.logins.add(itself)
    here = {(login.client_id, login.environment.token_url) for login in settings.logins.all()}
    kept = kept_client(environment)
    if kept is not None and (kept.client_id, environment.token_url) not in here:
        forget_client(environment)


@commands.command(epilog=_examples("finapi-session purge --older-than 90d"))
@click.option("--older-than", "age", metavar="AGE", required=True, help="Such as 90d, 12h, 30m or 45s.")
@options.anywhere
@click.pass_obj
def purge(settings: Settings, age: str) -> None:
    """Remove old values from the store; revokes nothing.

    What nobody has set for so long goes, with its lock files. A token that is used and need not be renewed is not
    set: choose more than a token and its refresh token live.
    """
    seconds, remove = _seconds(age), getattr(settings.store, "purge", None)
    if remove is None:
        raise click.UsageError(_NO_PURGE)
    removed = settings.logins.purge(seconds, remove)
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


@commands.command(epilog=_examples("finapi-session revoke --hint access_token < leaked-token.txt"))
@click.option("--hint", type=click.Choice(("access_token", "refresh_token")), help="What kind of token it is.")
@options.anywhere
@click.pass_obj
def revoke(settings: Settings, hint: str | None) -> None:
    """Revoke a token that standard input gives.

    It may be one that leaked. With --hint access_token that token alone; with --hint refresh_token, and without a
    hint, all of its grant.
    """
    from ..authorization import AuthorizationApi

    if sys.stdin is None:
        raise click.UsageError("give the token on standard input")
    environment = settings.environment
    client = settings.client(environment)
    with settings.session(client, None) as session:
        try:
            # More than the longest token is none.
            text = _ask("", "Token", hide_input=True) if _on_a_terminal() else sys.stdin.read(2 * LONGEST_TOKEN)
            AuthorizationApi(session).revoke_token(text.strip(), token_type_hint=hint)
        except ValueError as error:
            reason = "token must be text" if isinstance(error, UnicodeError) else str(error)
            raise click.UsageError(reason) from None
    with suppress(StorageError):  # the client's own token, which it took, is kept
        settings.logins.add(Login.of(client, None, environment))
    click.echo(f"Revoked at {name_of(environment)}, if finAPI knew it.")


@commands.command(
    context_settings={"allow_interspersed_args": False},
    epilog=_examples("finapi-session sandbox -- finapi-session request GET /api/v2/accounts"),
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The port; without it a free one.")
@click.option(
    "--env-file",
    metavar="FILE",
    type=click.Path(),
    help="Also write the variables to FILE, which is there while it runs.",
)
@click.option(
    "--ca-file", metavar="FILE", type=click.Path(), help="Keep the certificate to trust in FILE for later starts."
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
def sandbox(port: int, env_file: str | None, ca_file: str | None, command: tuple[str, ...]) -> int:
    """Serve a local finAPI until Ctrl-C, and print how to reach it.

    With a command, such as pytest, runs it with the variables set, and ends when it ends, with its exit code.
    """
    from .serving import serve

    return serve(port, ca_file, env_file, command)


@commands.command(epilog=_examples("finapi-session check --environment sandbox"))
@options.anywhere
@click.pass_obj
def check(settings: Settings) -> int:
    """Look whether finAPI, client and store are sound.

    It is what a deployment needs to know, one line each: ok, warn or fail. The exit code is 0 unless something
    failed. It asks for one token of the client's and reads its configuration; it revokes nothing, and leaves no value
    in the store.
    """
    from .check import check as look

    environment, name = settings.environment, settings.store_name
    return look(environment, lambda: settings.client(environment), lambda: open_store(name))


@commands.command(epilog=_examples("finapi-session demo", "finapi-session demo --environment sandbox"))
@options.environment()
@options.verbose
@click.pass_obj
def demo(settings: Settings) -> None:
    """Tell the story of a token, call by call, on a local finAPI.

    With --environment given and the client's variables set, tells the read-only part of it on finAPI itself;
    with FINAPI_USERNAME and FINAPI_PASSWORD also the user's part.
    """
    from . import demo as story

    if not settings.is_environment_given:
        story.on_a_sandbox()
        return
    user = os.environ.get("FINAPI_USERNAME")
    story.on_finapi(settings.client(settings.environment), settings.environment, user, password_of(user))
