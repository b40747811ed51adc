"""``finapi-session sandbox``: a local finAPI for other shells, or for one command."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..testing import Sandbox

_MARK = "# Written by finapi-session sandbox"


def serve(port: int, ca_file: str | None, env_file: str | None, command: Sequence[str]) -> int:
    """Serve until Ctrl-C, or while *command* runs in the sandbox's environment; return the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _started(port, ca_file) as server:
        variables = server.environ(server.username)
        with _written(env_file, variables):
            return _run(command, variables) if command else _wait(server.base_url, variables)


def _started(port: int, ca_file: str | None) -> Sandbox:
    from ..testing import Sandbox

    try:
        return Sandbox(port=port, ca_file=ca_file).start()
    except ValueError as error:
        raise click.BadParameter(f"--ca-file: {error}") from None
    except OSError as error:
        at_fault = f"--ca-file: {error.filename}" if error.filename else f"port {port}"
        raise click.UsageError(f"{at_fault} cannot be served: {error.strerror}") from None


@contextmanager
def _written(env_file: str | None, variables: Mapping[str, str]) -> Iterator[None]:
    """Keep *variables* in a file of the owner's while the block runs. It is there whole, or not at all."""
    if env_file is None:
        yield
        return
    lines = [
        f"{_MARK}; it is removed when the sandbox ends.",
        *(f"{name}={shlex.quote(value)}" for name, value in variables.items()),
    ]
    path, unfinished = Path(env_file), Path(f"{env_file}.{os.getpid()}")
    try:
        if path.exists() and not path.read_text(errors="replace").startswith(_MARK):
            raise click.BadParameter(f"--env-file: {env_file} is there already and is not of this command")
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write("\n".join(lines) + "\n")
        unfinished.replace(path)
    except OSError as error:
        raise click.BadParameter(f"--env-file: {error.filename} cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            path.unlink()


def _run(command: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run *command* to its end; return its exit code, as a shell gives it."""
    # Ctrl-C at a terminal reaches the command as well, and how it ends is for it to say.
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        process = subprocess.Popen(command, env={**os.environ, **variables})
    except OSError as error:
        raise click.UsageError(f"{command[0]} cannot be run: {error.strerror}") from None
    signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    code = process.wait()
    return code if code >= 0 else 128 - code


def _wait(base_url: str, variables: Mapping[str, str]) -> int:
    try:
        click.echo(f"# A local finAPI at {base_url}, until Ctrl-C. To use it from another shell:")
        for name, value in variables.items():
            click.echo(f"export {name}={shlex.quote(value)}")
        threading.Event().wait()
    except KeyboardInterrupt:
        click.echo("# The local finAPI has ended.", err=True)
    return 0
