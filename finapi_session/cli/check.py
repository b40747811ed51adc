"""``finapi-session check``: what a deployment wants to know, a line each."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import requests

from ..environment import Environment
from ..error_body import read_object
from ..errors import FinapiError, LoginRequiredError, TokenEndpointError
from ..session import FinapiSession
from ..stores.protocol import TokenStore

if TYPE_CHECKING:
    from .clients import Client

#: The exit codes of the command line.
LOGIN, UNREACHABLE, STORAGE = 3, 4, 5
#: Seconds before expiry from which a session renews, unless told.
_LEEWAY = 60
#: Seconds by which clocks may differ: ``Date`` counts whole ones, and the answer was on its way.
_SKEW = 5
_TIMEOUT = (10, 30)
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_PERIODS = {
    "clientAccessTokensValidityPeriod": "client tokens",
    "userAccessTokensValidityPeriod": "user tokens",
    "refreshTokensValidityPeriod": "refresh tokens",
}


class Finding(NamedTuple):
    """One line: its mark, what was looked at, what was found, and the exit code if it failed."""

    mark: str
    what: str
    told: str
    code: int = 0


def check(environment: Environment, find_client: Callable[[], Client], open_store: Callable[[], TokenStore]) -> int:
    """Look at finAPI, the client and the store, write a line for each finding, and return the first failure's code."""
    code = 0
    for finding in (*_network(environment), *_client(environment, find_client), *_store(open_store)):
        mark = click.style(f"{finding.mark:<4}", fg=_COLOURS[finding.mark])
        click.echo(f"{mark}  {finding.what:<12}  {finding.told}")
        code = code or finding.code
    return code


def _network(environment: Environment) -> Iterator[Finding]:
    """Ask the token endpoint without credentials: any answer at all is good."""
    began = time.time()
    try:
        answer = requests.get(environment.token_url, auth=_nobody, timeout=_TIMEOUT, allow_redirects=False)
    except requests.exceptions.SSLError:
        yield Finding("fail", "certificate", "not trusted: set REQUESTS_CA_BUNDLE to your company's", UNREACHABLE)
        return
    except requests.RequestException as error:
        told = f"{environment.base_url} does not answer ({type(error).__name__}): look at network and proxies"
        yield Finding("fail", "environment", told, UNREACHABLE)
        return
    yield Finding(
        "ok", "environment", f"{environment.base_url} answers, {answer.elapsed.total_seconds() * 1000:.0f} ms"
    )
    yield Finding("ok", "certificate", "trusted")
    yield _clock(answer.headers.get("Date"), (began + time.time()) / 2)


def _nobody(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keep the password out that netrc may have for the host."""
    return request


def _clock(date: str | None, now: float) -> Finding:
    try:
        skew = now - parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError):
        return Finding("warn", "clock", "finAPI tells no time")
    if abs(skew) <= _SKEW:
        return Finding("ok", "clock", f"within {_SKEW} s of finAPI's")
    where = "ahead of" if skew > 0 else "behind"
    return Finding(
        "warn", "clock", f"{abs(skew):.0f} s {where} finAPI's: set it, for the sake of logs and certificates"
    )


def _client(environment: Environment, find_client: Callable[[], Client]) -> Iterator[Finding]:
    """Get a token with a memory of our own, so that the client is really asked for; nothing is revoked."""
    try:
        with FinapiSession(*find_client(), environment=environment, revoke_on_close=False, retries=0) as session:
            session.fetch_token()
            yield Finding("ok", "client", "accepted")
            yield Finding("ok", "API version", f"{2 if '/v2/' in environment.oauth_path else 1}")
            yield from _configuration(session)
    except LoginRequiredError as error:
        yield Finding("fail", "client", f"{error.args[0]}: run 'finapi-session login'", LOGIN)
    except TokenEndpointError as error:
        yield Finding("fail", "client", f"not asked for: {error.args[0]}", UNREACHABLE)
    except (FinapiError, ValueError) as error:
        yield Finding("fail", "client", str(error), LOGIN)


def _configuration(session: FinapiSession) -> Iterator[Finding]:
    try:
        answer = session.get("/api/v2/clientConfiguration", timeout=_TIMEOUT)
    except requests.RequestException as error:
        yield Finding("fail", "API", f"does not answer ({type(error).__name__})", UNREACHABLE)
        return
    settings = read_object(answer) if answer.ok else {}
    for name, what in _PERIODS.items():
        yield _lifetime(what, settings.get(name))
    attempts = settings.get("maxUserLoginAttempts")
    told = "users are never locked" if attempts == 0 else f"{attempts} wrong passwords in a row lock a user"
    yield Finding("ok", "logins", told) if isinstance(attempts, int) else Finding("warn", "logins", "not told")


def _lifetime(what: str, seconds: Any) -> Finding:
    if not isinstance(seconds, int):
        return Finding("warn", "lifetimes", f"{what}: not told")
    if seconds == 0:
        return Finding("ok", "lifetimes", f"{what} never expire")
    told = f"{what} live {seconds} s"
    if seconds >= 2 * _LEEWAY or what == "refresh tokens":
        return Finding("ok", "lifetimes", told)
    return Finding("warn", "lifetimes", f"{told}: the leeway of {_LEEWAY} s is cut to half of that")


def _store(open_store: Callable[[], TokenStore]) -> Iterator[Finding]:
    """Write a value that nobody else reads, under a lock, and look for it as another process would."""
    key, value = f"finapi-session check {secrets.token_hex(8)}", secrets.token_hex(8)
    try:
        store, began = open_store(), time.monotonic()
        with store.lock(key):
            store.set(key, value)
            mine = store.get(key) == value
            shared = open_store().get(key) == value
            store.delete(key)
    except click.ClickException:
        raise
    except Exception as error:  # drivers raise of their own, and their texts may hold an address with its password
        yield Finding("fail", "store", f"not usable ({type(error).__name__}): calls would go on in memory", STORAGE)
        return
    if not mine:
        yield Finding("fail", "store", "forgets what is written", STORAGE)
        return
    told = f"{type(store).__name__} reads, writes and locks, {(time.monotonic() - began) * 1000:.0f} ms"
    yield Finding("ok", "store", told)
    yield (
        Finding("ok", "sharing", "others see it") if shared else Finding("warn", "sharing", "no other process sees it")
    )
