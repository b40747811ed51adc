"""As requests does it: adapters, proxies, addresses, settings."""

from __future__ import annotations

import array
import gc
import mmap
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3.util import Retry

from finapi_session import ApiError, TokenEndpointError
from finapi_session.auth import MOST_DRAINED
from finapi_session.testing import Sandbox

from .herd import CALLS, ECHO


@pytest.fixture
def proxy() -> Iterator[str]:
    """A proxy that tunnels, and refuses to for the host called refused."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(listener,), daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def _accept(listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            threading.Thread(target=_tunnel, args=(listener.accept()[0],), daemon=True).start()


def _tunnel(client: socket.socket) -> None:
    with client, suppress(OSError):
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        host, _, port = head.split()[1].decode().partition(":")
        if host == "localhost":
            client.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            return
        with socket.create_connection((host, int(port))) as server:
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            threading.Thread(target=_pump, args=(server, client), daemon=True).start()
            _pump(client, server)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_a_password_whose_answer_is_lost_behind_a_proxy_is_sent_once(sandbox: Sandbox, proxy: str) -> None:
    """urllib3 calls an answer that broke off behind a proxy a ProxyError, which is no proof that nothing was judged."""
    alice = sandbox.session("alice", "wrong")
    alice.proxies = {"https": proxy}
    sandbox.answer_next("lose", path=CALLS, times=9)
    with pytest.raises(TokenEndpointError, match="did not answer"):
        alice.fetch_token()
    assert sandbox.count(CALLS) == 1 and sandbox.users["alice"].failed_logins == 1


# Older versions of urllib3 leave the socket of a refused tunnel to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_proxy_that_makes_no_tunnel_has_judged_nothing(sandbox: Sandbox, proxy: str) -> None:
    """Where the proxy refuses, a password was not sent, and may be tried again."""
    elsewhere = replace(sandbox.environment, base_url="https://localhost:9")
    asked: list[str] = []

    def request_id() -> str:
        asked.append("r")
        return "r"

    alice = sandbox.session("alice", environment=elsewhere, request_id=request_id)
    alice.proxies = {"https": proxy}
    with pytest.raises(TokenEndpointError, match="no connection"):
        alice.fetch_token()
    gc.collect()
    assert len(asked) == 4


class Bare(BaseAdapter):
    """An adapter that says of an answer no more than requests itself needs."""

    def __init__(self, inner: BaseAdapter) -> None:
        super().__init__()
        self.inner = inner

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Send by the adapter inside, and forget how."""
        answer = self.inner.send(request, *args, **options)
        del answer.connection  # type: ignore[attr-defined]
        return answer

    def close(self) -> None:
        """Close the adapter inside."""
        self.inner.close()


def test_an_adapter_that_does_not_say_how_it_sent(sandbox: Sandbox) -> None:
    """A 401 that cannot be sent again is returned, and the next call has a new token."""
    session = sandbox.session()
    session.mount("https://", Bare(session.get_adapter(sandbox.base_url)))
    session.get(ECHO)
    sandbox.revoke_tokens()
    assert [session.get(ECHO).status_code for _ in range(2)] == [401, 200]


def test_no_url_is_an_error_as_in_requests(sandbox: Sandbox) -> None:
    """Nothing is sent for a URL that is ``None``."""
    with pytest.raises(requests.exceptions.MissingSchema):
        sandbox.session().get(None)  # type: ignore[arg-type]
    assert sandbox.calls == []


def test_parameters_of_a_session_may_be_text(sandbox: Sandbox) -> None:
    """A user's session has the client's parameters, in whichever form requests takes them."""
    client = sandbox.session()
    client.params = "search=Sparkasse"  # type: ignore[assignment]
    assert client.user("alice", "her-password").params == "search=Sparkasse"


def test_settings_may_be_none(sandbox: Sandbox) -> None:
    """What requests takes for no setting is none for users' sessions, too."""
    client = sandbox.session()
    for setting in ("proxies", "hooks", "headers", "params"):
        setattr(client, setting, None)
    assert client.user("alice", "her-password").get(ECHO).status_code == 200
    assert client.get(ECHO).status_code == 200


def test_an_error_of_the_api_tells_when_to_come_back(sandbox: Sandbox) -> None:
    """A Retry-After is told in seconds, as it is of a token call."""
    session = sandbox.session(raise_api_errors=True)
    sandbox.answer_next(429, headers={"Retry-After": "120"}, path=ECHO)
    with pytest.raises(ApiError, match="Try again in 120 s") as caught:
        session.get(ECHO)
    assert caught.value.retry_after == 120


def test_an_adapter_that_tries_again_after_a_401_leaves_that_to_the_session(sandbox: Sandbox) -> None:
    """A ``Retry`` with 401 in its list does not keep a token from being renewed; the caller's own is not changed."""
    session = sandbox.session()
    again = Retry(2, status_forcelist=[401, 502], backoff_factor=0)
    session.mount("https://", HTTPAdapter(max_retries=again))
    assert session.get(ECHO).status_code == 200
    sandbox.revoke_tokens()
    answer = session.get(ECHO)
    assert answer.status_code == 200 and [kept.status_code for kept in answer.history] == [401]
    sandbox.answer_next(502, path=ECHO, times=2)
    assert session.get(ECHO).status_code == 200
    assert again.status_forcelist == [401, 502]
    assert session.get_adapter(sandbox.base_url).max_retries is not again  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["memoryview", "array", "mmap", "bytearray"])
def test_a_body_of_bytes_in_any_form_is_sent_again(kind: str, sandbox: Sandbox, tmp_path: Path) -> None:
    """What can be read twice is replayed whole after a 401."""
    session = sandbox.session()
    session.get(ECHO)
    sandbox.revoke_tokens()
    (tmp_path / "body").write_bytes(b"all of it")
    with open(tmp_path / "body", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        bodies: dict[str, Any] = {
            "memoryview": memoryview(b"all of it"),
            "array": array.array("B", b"all of it"),
            "bytearray": bytearray(b"all of it"),
            "mmap": mapped,
        }
        answer = session.post(ECHO, data=bodies.pop(kind))
        bodies.clear()
    assert answer.status_code == 200 and len(answer.history) == 1
    assert answer.json()["text"] == "all of it"


@pytest.mark.parametrize("size", [60_000, 5_000_000])
def test_of_a_long_401_only_the_beginning_is_read(size: int, sandbox: Sandbox) -> None:
    """The replay waits for no more than 64 kB of the answer that it replaces: a longer one's connection is closed."""
    session = sandbox.session()
    session.get(ECHO)
    before = sandbox.connections
    sandbox.revoke_tokens()
    sandbox.answer_next(401, body="x" * size, path=ECHO)
    answer = session.get(ECHO)
    assert answer.status_code == 200
    assert len(answer.history[0].content) == size or size > MOST_DRAINED
    assert len(answer.history[0].content) <= MOST_DRAINED + 2 * 8192
    assert sandbox.connections - before == (0 if size < MOST_DRAINED else 1)


@pytest.mark.parametrize("verify", ["", 0, ()])
def test_what_is_no_verify_sends_nothing(verify: Any, sandbox: Sandbox) -> None:
    """Only a literal ``False`` switches checking off, for API calls too; ``None`` is the default."""
    session = sandbox.session()
    session.fetch_token()
    before = len(sandbox.calls)
    with pytest.raises(ValueError, match="verify must be True, False or the path of a CA bundle"):
        session.get(ECHO, verify=verify)
    session.verify = verify
    with pytest.raises(ValueError, match="verify must be True"):
        session.get(ECHO)
    session.verify = None
    with pytest.raises(requests.exceptions.SSLError):
        session.get(ECHO)
    assert len(sandbox.calls) == before
