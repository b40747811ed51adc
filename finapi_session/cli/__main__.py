"""The ``finapi-session`` command: runs :mod:`~finapi_session.commands`; errors become a line and a code."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from ..errors import FinapiError

#: Exit codes, as ``--help`` tells them. 141 and 130 are what shells give for SIGPIPE and SIGINT.
API_ERROR, USAGE, LOGIN, UNREACHABLE, STORAGE, BUG, INTERRUPTED, CLOSED = 1, 2, 3, 4, 5, 70, 130, 141

_EXTRAS = {
    "click": "cli",
    "keyring": "keyring",
    "redis": "redis",
    "sqlalchemy": "sql",
    "flask": "sandbox",
    "werkzeug": "sandbox",
    "trustme": "sandbox",
}
#: What to do next on the command line, in place of what the library tells programmers.
_ADVICE = {
    "InvalidClientError": "Check the client's id and secret, and that they belong to this --environment.",
    "InvalidGrantError": "Correct user or password; unless --store is memory, this one waits for 'logout --user ...'.",
    "AccessDeniedError": "Verify the user, or choose the --environment of your API version (sandbox-v2).",
    "LoginRequiredError": "Run 'finapi-session login', or set the variables that --help names.",
    "RevocationError": "It may still be valid: try again.",
    "TokenEndpointError": "Check --environment, network, proxies and REQUESTS_CA_BUNDLE, or try later.",
}


def main() -> NoReturn:
    """Run the command line of this process, and exit. No error shows a traceback."""
    try:
        code = _run()
        _flush()
    except BrokenPipeError:
        code = CLOSED
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        code, message = _explained(error)
        if message and sys.stderr is not None:
            print(f"finapi-session: {' '.join(message.split())}", file=sys.stderr)
    try:
        _flush()
    except OSError:
        # What is still buffered has nowhere to go; Python would complain about it on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _run() -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    from .commands import commands

    stdout, stderr = sys.stdout, sys.stderr
    try:
        outcome = commands.main(sys.argv[1:] or ["--help"], prog_name="finapi-session", standalone_mode=False)
    except SystemExit:
        # On a closed pipe click muffles the streams and exits with a code that says nothing.
        if sys.stdout is stdout:
            raise
        sys.stdout, sys.stderr = stdout, stderr
        raise BrokenPipeError from None
    return outcome if isinstance(outcome, int) else 0


def _explained(error: Exception) -> tuple[int, str]:
    """Return the exit code for *error*, and the line that says what to do."""
    import requests

    from ..errors import FinapiError

    if isinstance(error, FinapiError):
        return _code(error), _advised(error)
    if isinstance(error, requests.RequestException):
        advice = _ADVICE["TokenEndpointError"]
        return UNREACHABLE, f"finAPI did not answer ({type(error).__name__}). {advice}"
    if isinstance(error, ImportError):
        return USAGE, _missing(error)
    if isinstance(error, OSError):
        return STORAGE, str(error)
    import click

    if isinstance(error, click.Abort):
        return INTERRUPTED, ""
    if isinstance(error, click.NoSuchOption):
        from .commands import commands
        from .options import misplaced

        return USAGE, misplaced(error, commands)
    if isinstance(error, click.ClickException):
        return error.exit_code, error.format_message()
    return BUG, f"this should not happen: {type(error).__name__}. Please report it, with what -vv tells."


def _code(error: FinapiError) -> int:
    from ..errors import RevocationError, TokenEndpointError, TokenError

    passing = isinstance(error, RevocationError) and (error.status is None or error.status >= 429)
    if passing or isinstance(error, TokenEndpointError):
        return UNREACHABLE
    return LOGIN if isinstance(error, TokenError) else API_ERROR


def _advised(error: FinapiError) -> str:
    text, advice = str(error), _ADVICE.get(type(error).__name__)
    # Advice that is this error's own fits better.
    if advice is None or error.advice != type(error).advice:
        return text
    return text.replace(error.advice, advice) if error.advice else f"{text} {advice}"


def _missing(error: ImportError) -> str:
    module = (error.name or "").partition(".")[0]
    if module in _EXTRAS:
        return f"this needs {module}: pip install 'finapi-session[{_EXTRAS[module]}]'"
    return f"this needs the Python package {module}: install it" if module else str(error)


if __name__ == "__main__":
    main()
