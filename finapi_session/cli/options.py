"""Options that several commands share, what completes them in a shell, and where a misplaced one goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ..redaction import printable
from ..stores.opening import POSSIBLE
from .logins import Logins
from .settings import NAMES, Settings

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
#: What the texts of ``--store`` begin with.
_STORES = ("file", "file:", "keyring", "memory", "redis://", "rediss://", "sqlite:///", "postgresql+psycopg://")

_Command = TypeVar("_Command", bound=Callable[..., Any])


def environment(**more: Any) -> Callable[[_Command], _Command]:
    """Make the option for where finAPI is; *more* is what click is told besides."""
    return click.option(
        "--environment",
        metavar="NAME|URL",
        expose_value=False,
        callback=_choose_environment,
        shell_complete=_completing(lambda _context: NAMES),
        help=f"{', '.join(NAMES)}, or an https base URL.",
        **more,
    )


def store(**more: Any) -> Callable[[_Command], _Command]:
    """Make the option for where tokens are kept."""
    return click.option(
        "--store",
        metavar="STORE",
        expose_value=False,
        callback=_choose_store,
        shell_complete=_completing(lambda _context: _STORES),
        help=f"Where tokens are kept: {POSSIBLE}.",
        **more,
    )


def verbose(command: _Command) -> _Command:
    """Add the option for telling more."""
    text = "Log to standard error what happens to tokens; -vv: each call, too."
    return click.option("-v", "--verbose", count=True, expose_value=False, callback=_tell_more, help=text)(command)


def anywhere(command: _Command) -> _Command:
    """Add the options that may also stand before the command."""
    return environment()(store()(verbose(command)))


def whose(command: _Command) -> _Command:
    """Add the options that choose between the client and a user."""
    user = click.option(
        "--user",
        metavar="ID",
        envvar="FINAPI_USERNAME",
        show_envvar=True,
        shell_complete=_completing(_users),
        help="A user.",
    )
    client = click.option("--client", is_flag=True, help="The client, though FINAPI_USERNAME is set.")
    return user(client(command))


def method(command: _Command) -> _Command:
    """Add the argument for what to do at a path, in capitals or not."""
    complete = _completing(lambda _context: METHODS)
    return click.argument("method", metavar="METHOD", callback=_in_capitals, shell_complete=complete)(command)


def misplaced(error: click.NoSuchOption, commands: click.Group) -> str:
    """Return where the option goes that is not known where it stands, or what is near to it."""
    option = error.option_name
    owners = [
        (name, parameter.metavar)
        for name, command in sorted(commands.commands.items())
        for parameter in command.params
        if option in parameter.opts
    ]
    if not owners:
        return error.format_message()
    *others, last = [name for name, _ in owners]
    listed = f"{', '.join(others)} or {last}" if others else last
    example = " ".join(filter(None, ("finapi-session", owners[0][0], option, owners[0][1])))
    return f"{option} goes after {listed}, as in '{example}'"


def _choose_environment(context: click.Context, parameter: click.Parameter, name: str | None) -> None:
    settings = context.ensure_object(Settings)
    if name is None:
        return
    settings.environment_name = name
    if context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE:
        settings.is_environment_given = True
        from ..environment import Environment

        try:
            Environment.named(name)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None


def _choose_store(context: click.Context, _parameter: click.Parameter, name: str | None) -> None:
    if name is not None:
        context.ensure_object(Settings).store_name = name


def _tell_more(context: click.Context, _parameter: click.Parameter, count: int) -> None:
    context.ensure_object(Settings).tell_more(count)


def _in_capitals(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    if name.upper() in METHODS:
        return name.upper()
    raise click.BadParameter(f"{name!r} is not one of {', '.join(METHODS)}")


def _completing(
    words: Callable[[click.Context], Iterable[str]],
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return what click asks to complete a word: those of *words* that begin like it."""

    def complete(context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
        return [word for word in words(context) if word.lower().startswith(begun.lower())]

    return complete


def _users(context: click.Context) -> list[str]:
    """Return who is logged in, but for names that a terminal would obey; a store that fails completes nothing."""
    settings = context.ensure_object(Settings)
    with suppress(Exception):
        here = settings.environment.base_url
        logins = Logins(settings.store, lambda _what: None).all()
        names = {login.username for login in logins if login.username is not None and login.base_url == here}
        return sorted(name for name in names if printable(name) == name)
    return []
