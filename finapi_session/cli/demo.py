"""The story of a token, told call by call: on a local finAPI, or its read-only part on finAPI itself."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlsplit

import click
import requests
from requests.adapters import HTTPAdapter

from ..environment import Environment
from ..error_body import read_object
from ..redaction import printable
from ..session import FinapiSession
from ..stores.file import FileStore

_SHORT_LIFE = 2


@dataclass(frozen=True)
class Exchange:
    """One request and its answer, as the session's adapter saw them. Of a token its first four characters."""

    method: str
    path: str
    sent: str
    status: int
    request_id: str
    got: str = ""

    @classmethod
    def of(cls, response: requests.Response) -> Exchange:
        """Describe *response* and what it answers."""
        request = response.request
        parts = urlsplit(str(request.url))
        return cls(
            method=str(request.method),
            path=unquote_plus(parts._replace(scheme="", netloc="").geturl()),
            sent=_described_request(request, "/oauth/" in parts.path),
            status=response.status_code,
            request_id=printable(response.headers.get("X-Request-Id")) or "-",
            got=_described_token(response) if parts.path.endswith("/oauth/token") else "",
        )


class Watch(HTTPAdapter):
    """Carries a session's calls, the token calls too, and hands each to *tell*."""

    def __init__(self, tell: Callable[[Exchange], object]) -> None:
        super().__init__()
        self._tell = tell
        #: How many connections were opened so far.
        self.connections = 0

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send *request*, and tell it with its answer."""
        response = super().send(request, *args, **kwargs)
        # Now, because closing forgets the pools.
        managers = [self.poolmanager, *self.proxy_manager.values()]
        pools = [manager.pools[key] for manager in managers for key in manager.pools.keys()]
        self.connections = sum(pool.num_connections for pool in pools)
        # Raised here, it would pass for the network's. Output that cannot be written fails again at the next line.
        with suppress(OSError):
            self._tell(Exchange.of(response))
        return response


@dataclass
class Narrator:
    """Writes the story, and counts."""

    steps: int = 0
    exchanges: list[Exchange] = field(default_factory=list)
    #: What the command says of colours: close() tells its calls in threads, of which click knows nothing.
    color: bool | None = field(default_factory=lambda: getattr(click.get_current_context(silent=True), "color", None))

    def step(self, title: str) -> None:
        """Begin a step."""
        self.steps += 1
        click.secho(f"\n{self.steps}. {title}", bold=True)

    def exchange(self, exchange: Exchange) -> None:
        """Tell one call: what was sent, what came back."""
        self.exchanges.append(exchange)
        colour = "green" if exchange.status < 300 else "yellow"
        sent = click.style(exchange.sent, dim=True)
        click.echo(f"   > {exchange.method} {exchange.path}  {sent}", color=self.color)
        status = click.style(str(exchange.status), fg=colour)
        request_id = click.style(f"request id {exchange.request_id}", dim=True)
        click.echo("  ".join(filter(None, (f"   < {status}", request_id, exchange.got))), color=self.color)

    def say(self, text: str) -> None:
        """Tell what it came to."""
        click.secho(f"     {text}", fg="cyan")

    def table(self, heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
        """Write a table; the last column is of numbers."""
        lines = [heads, *rows]
        widths = [max(len(line[place]) for line in lines) for place in range(len(heads))]
        for line in lines:
            cells = [cell.ljust(width) for cell, width in zip(line[:-1], widths[:-1], strict=True)]
            click.secho("     " + "  ".join([*cells, line[-1].rjust(widths[-1])]), bold=line is heads)

    def sum_up(self, connections: int) -> None:
        """Write the last line."""
        ends = [exchange.path.rpartition("/oauth/")[2] for exchange in self.exchanges]
        tokens, revocations = ends.count("token"), ends.count("revoke")
        counts = {
            "token call": tokens,
            "API call": len(ends) - tokens - revocations,
            "revocation": revocations,
            "TLS connection": connections,
        }
        told = ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts.items())
        click.secho(f"\n{told}", bold=True)


def shortened(token: str) -> str:
    """Return what may be shown of a token."""
    return f"{token[:4]}..."


def on_a_sandbox() -> None:
    """Tell the whole story on a local finAPI, started for it."""
    from ..testing import Sandbox

    narrator = Narrator()
    watch = Watch(narrator.exchange)
    with Sandbox() as sandbox, tempfile.TemporaryDirectory(prefix="finapi-demo-") as folder:
        click.echo(f"A local finAPI at {sandbox.base_url}, tokens in {folder}")
        client = sandbox.session(store=FileStore(folder), revoke_on_close=True, raise_api_errors=True)
        client.mount("https://", watch)
        with client:
            _tell_client(narrator, client)
            username, alice = _create_user(narrator, client)
            _tell_user(narrator, alice)
            _lose_token(narrator, alice, lambda: _revoke_and_shorten(sandbox))
            _outlive_token(narrator, alice, sandbox)
            connections = _tell_second_process(narrator, username, sandbox, folder)
            narrator.step("Done: close() revokes the user's token, then the client's")
    narrator.sum_up(watch.connections + connections)


def on_finapi(client: tuple[str, str], environment: Environment, username: str | None, password: str | None) -> None:
    """Tell the part that only reads, on finAPI. Nothing is revoked: other processes share these tokens."""
    narrator = Narrator()
    watch = Watch(narrator.exchange)
    click.echo(f"finAPI at {environment.base_url}, reading only")
    session = FinapiSession(*client, environment=environment, revoke_on_close=False, raise_api_errors=True)
    session.mount("https://", watch)
    with session:
        _tell_client(narrator, session)
        narrator.step("The client's configuration")
        configuration = session.get("/api/v2/clientConfiguration").json()
        narrator.say(f"user tokens live {configuration.get('userAccessTokensValidityPeriod')} s")
        if username is not None and password is not None:
            _tell_user(narrator, session.user(username, password))
    narrator.sum_up(watch.connections)


def _tell_client(narrator: Narrator, client: FinapiSession) -> None:
    narrator.step("A token for the client")
    client.fetch_token()
    narrator.step("Banks, with the same token on the same connection")
    banks = client.get("/api/v2/banks", params={"search": "Sparkasse", "perPage": "3"}).json()
    names = ", ".join(str(bank.get("name")) for bank in banks.get("banks", ()))
    narrator.say(f"{banks.get('paging', {}).get('totalCount')} banks: {names}, ...")


def _create_user(narrator: Narrator, client: FinapiSession) -> tuple[str, FinapiSession]:
    narrator.step("The client creates a user")
    username, password = f"alice-{secrets.token_hex(3)}", secrets.token_urlsafe(12)
    client.post("/api/v2/users", json={"id": username, "password": password})
    narrator.say(f"user {username}")
    return username, client.user(username, password)


def _tell_user(narrator: Narrator, user: FinapiSession) -> None:
    narrator.step("The user's token, by password, once")
    user.fetch_token()
    narrator.step("Accounts and the latest transactions")
    accounts = user.get("/api/v2/accounts").json().get("accounts", ())
    narrator.table(
        ("Account", "IBAN", "EUR"),
        [(_cell(each, "accountName"), _cell(each, "iban"), _amount(each, "balance")) for each in accounts],
    )
    query = {"perPage": "5", "view": "userView"}
    transactions = user.get("/api/v2/transactions", params=query).json().get("transactions", ())
    narrator.table(
        ("Date", "Name", "Purpose", "EUR"),
        [
            (
                *(_cell(each, name) for name in ("valueDate", "counterpartName", "purpose")),
                _amount(each, "amount"),
            )
            for each in transactions
        ],
    )


def _lose_token(narrator: Narrator, user: FinapiSession, lose: Callable[[], object]) -> None:
    narrator.step("The token is revoked behind our back, and the 401 is healed")
    lose()
    answer = user.get("/api/v2/accounts")
    narrator.say(f"the program saw {answer.status_code}; the 401 is in the answer's history")


def _revoke_and_shorten(sandbox: Any) -> None:
    """Take all user tokens away; the next ones are short-lived, so that the story need not wait long."""
    sandbox.revoke_tokens(kind="user")
    sandbox.lifetime = _SHORT_LIFE


def _outlive_token(narrator: Narrator, user: FinapiSession, sandbox: Any) -> None:
    narrator.step(f"The new token lives {_SHORT_LIFE} s: once expired, it is refreshed before the call")
    sandbox.lifetime = 3600
    time.sleep(_SHORT_LIFE)
    user.get("/api/v2/accounts")
    narrator.say("no password was sent, and no call failed")


def _tell_second_process(narrator: Narrator, username: str, sandbox: Any, folder: str) -> int:
    """Let another process use the stored token; return how many connections it made."""
    narrator.step("Another process finds the token in the file store, and needs no password")
    variables = {
        "FINAPI_CLIENT_ID": sandbox.client_id,
        "FINAPI_CLIENT_SECRET": sandbox.client_secret,
        "FINAPI_USERNAME": username,
        "FINAPI_PASSWORD": "",
        "FINAPI_ENVIRONMENT": sandbox.base_url,
        "REQUESTS_CA_BUNDLE": sandbox.ca_bundle,
        "no_proxy": "127.0.0.1",
    }
    command = [sys.executable, "-m", "finapi_session.cli.demo", folder]
    # A session of its own, so that Ctrl-C reaches one process only. If it comes in the moment of the start, that
    # process lives on for a while: what it then misses is nothing to show.
    second = subprocess.run(
        command, env={**os.environ, **variables}, check=True, capture_output=True, start_new_session=True
    )
    told = json.loads(second.stdout)
    for exchange in told["exchanges"]:
        narrator.exchange(Exchange(**exchange))
    narrator.say(f"process {told['process']}: token {' and '.join(told['events'])}, 0 token calls")
    return int(told["connections"])


def _be_second_process(folder: str) -> None:
    exchanges: list[Exchange] = []
    events: list[str] = []
    watch = Watch(exchanges.append)
    options: dict[str, Any] = {
        # If Ctrl-C came as this process started, the folder is gone, and is not to be made again.
        "store": FileStore(Path(folder).resolve(strict=True)),
        "on_event": lambda event: events.append(event.kind),
    }
    with FinapiSession.from_env(**options) as session:
        session.mount("https://", watch)
        session.get("/api/v2/accounts")
    told = {"exchanges": [asdict(exchange) for exchange in exchanges], "events": events}
    print(json.dumps({**told, "connections": watch.connections, "process": os.getpid()}))


def _described_request(request: requests.PreparedRequest, with_form: bool) -> str:
    form = dict(parse_qsl(str(request.body))) if with_form else {}
    told = [f"{name} {form[name]}" for name in ("grant_type", "username") if name in form]
    told += [f"hint {form['token_type_hint']}"] if "token_type_hint" in form else []
    told += [f"{name} {shortened(form[name])}" for name in ("refresh_token", "token") if name in form]
    bearer = str(request.headers.get("Authorization") or "").partition(" ")[2]
    return ", ".join([*told, *([f"bearer {shortened(bearer)}"] if bearer else [])])


def _described_token(response: requests.Response) -> str:
    answer = read_object(response)
    token = answer.get("access_token")
    return f"token {shortened(token)}, {answer.get('expires_in')} s" if isinstance(token, str) else ""


def _cell(record: dict[str, Any], name: str) -> str:
    return (printable(record.get(name)) or "-")[:30]


def _amount(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    return f"{value:,.2f}" if isinstance(value, (int, float)) else "-"


if __name__ == "__main__":
    _be_second_process(sys.argv[1])
