"""The foreign server itself, asked with plain ``requests``: what the session's tests may rely on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from .server import TESTS, ForeignServer


class Caller:
    """finAPI's two calls and one resource, spelt out by hand."""

    def __init__(self, server: ForeignServer, http: requests.Session, prefix: str = "") -> None:
        self.server, self.http, self.prefix = server, http, prefix

    def token(self, grant_type: str, **form: str) -> requests.Response:
        client = {"client_id": self.server.client_id, "client_secret": self.server.client_secret}
        return self._post("token", {"grant_type": grant_type, **client, **form})

    def client_token(self) -> dict[str, Any]:
        return _good(self.token("client_credentials"))

    def user_token(self) -> dict[str, Any]:
        user = {"username": self.server.username, "password": self.server.password}
        return _good(self.token("password", **user))

    def refresh(self, refresh_token: str) -> requests.Response:
        return self.token("refresh_token", refresh_token=refresh_token)

    def revoke(self, bearer: str | None, token: str, hint: str | None = None) -> requests.Response:
        form = {"token": token} | ({"token_type_hint": hint} if hint else {})
        return self._post("revoke", form, headers=_bearer(bearer))

    def accounts(self, bearer: str | None) -> requests.Response:
        return self.http.get(f"{self.server.base_url}/api/v2/accounts", headers=_bearer(bearer), timeout=30)

    def _post(self, call: str, form: dict[str, str], **how: Any) -> requests.Response:
        url = f"{self.server.base_url}{self.prefix}/oauth/{call}"
        return self.http.post(url, data=form, timeout=30, **how)


def _bearer(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _good(response: requests.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.fixture
def caller(server: ForeignServer, http: requests.Session) -> Caller:
    return Caller(server, http)


def test_client_token_opens_the_resource(caller: Caller) -> None:
    """A client gets a token without a refresh token, and the resource takes it."""
    token = caller.client_token()
    assert "refresh_token" not in token
    assert _good(caller.accounts(token["access_token"]))["owner"] is None
    assert (caller.server.access_tokens(), caller.server.refresh_tokens()) == (1, 0)


def test_user_token_is_hers(caller: Caller) -> None:
    """A password with spaces, ``&=+%`` and non-ASCII text gets through, and the token is its user's."""
    token = caller.user_token()
    assert token["refresh_token"]
    assert token["expires_in"] == 3600
    assert _good(caller.accounts(token["access_token"]))["owner"] == "alice"


def test_secrets_are_hard_to_send(server: ForeignServer) -> None:
    """The password and the client's secret hold what careless encoding loses."""
    for text in (server.password, server.client_secret):
        assert not text.isascii()
        assert set(" &=+%") <= set(text)


def test_client_secret_is_hashed(server: ForeignServer) -> None:
    """The toolkit's hashing of client secrets is on."""
    (stored,) = server.database.execute("SELECT client_secret FROM oauth2_provider_application").fetchone()
    assert stored.startswith("pbkdf2_sha256$")
    assert server.client_secret not in stored


@pytest.mark.parametrize("prefix", ["", "/api/v2"])
def test_both_api_versions(server: ForeignServer, http: requests.Session, prefix: str) -> None:
    """Token and revoke answer under the paths of either API version."""
    caller = Caller(server, http, prefix)
    bearer = caller.client_token()["access_token"]
    assert caller.revoke(bearer, bearer).status_code == 200
    assert server.access_tokens() == 0


def test_tokens_are_not_sticky(caller: Caller) -> None:
    """Unlike finAPI, each grant gives a token of its own, and the earlier one lives on."""
    tokens = [caller.client_token()["access_token"] for _ in range(2)]
    assert len(set(tokens)) == 2
    assert [caller.accounts(token).status_code for token in tokens] == [200, 200]


def test_refresh_rotates(caller: Caller) -> None:
    """A refresh gives a new pair and kills the old access token in that moment."""
    old = caller.user_token()
    new = _good(caller.refresh(old["refresh_token"]))
    assert new["refresh_token"] != old["refresh_token"]
    assert caller.accounts(old["access_token"]).status_code == 401
    assert caller.accounts(new["access_token"]).status_code == 200
    assert (caller.server.refresh_tokens(), caller.server.issued_refresh_tokens()) == (1, 2)


def test_refresh_heals_an_expired_token(caller: Caller) -> None:
    """An expired access token is refused with 401, and its refresh token still works."""
    old = caller.user_token()
    caller.server.expire_all()
    assert caller.accounts(old["access_token"]).status_code == 401
    new = _good(caller.refresh(old["refresh_token"]))
    assert caller.accounts(new["access_token"]).status_code == 200


def test_used_refresh_token_takes_its_family_along(caller: Caller) -> None:
    """A refresh token sent a second time is refused, and reuse protection kills all that came from it."""
    old = caller.user_token()
    new = _good(caller.refresh(old["refresh_token"]))
    refused = caller.refresh(old["refresh_token"])
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")
    assert caller.accounts(new["access_token"]).status_code == 401
    assert caller.refresh(new["refresh_token"]).status_code == 400
    assert (caller.server.access_tokens(), caller.server.refresh_tokens()) == (0, 0)


@pytest.mark.parametrize("hint", [None, "access_token", "refresh_token"])
@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
def test_revoke_by_the_clients_bearer(caller: Caller, kind: str, hint: str | None) -> None:
    """The client's token revokes a user's grant by either token and any hint, also a wrong one."""
    bearer = caller.client_token()["access_token"]
    token = caller.user_token()
    answer = caller.revoke(bearer, token[kind], hint)
    assert (answer.status_code, answer.text) == (200, "")
    assert caller.accounts(token["access_token"]).status_code == 401
    assert caller.refresh(token["refresh_token"]).status_code == 400
    assert caller.accounts(bearer).status_code == 200


def test_revoking_the_unknown_is_no_error(caller: Caller) -> None:
    """A token that is not there any more is revoked with 200, as RFC 7009 has it."""
    bearer = caller.client_token()["access_token"]
    assert caller.revoke(bearer, "never-given-out").status_code == 200


@pytest.mark.parametrize(("bearer", "status"), [(None, 401), ("junk", 401), ("user", 403), ("expired", 401)])
def test_revoke_refuses_another_bearer(caller: Caller, bearer: str | None, status: int) -> None:
    """Revoking without the client's living token is refused, and revokes nothing."""
    if bearer == "expired":
        bearer = caller.client_token()["access_token"]
        caller.server.expire_all()
    token = caller.user_token()
    bearer = token["access_token"] if bearer == "user" else bearer
    assert caller.revoke(bearer, token["access_token"]).status_code == status
    assert caller.accounts(token["access_token"]).status_code == 200


def test_a_token_in_the_body_is_no_bearer(caller: Caller) -> None:
    """A client token sent as a parameter does not stand in for the header."""
    bearer = caller.client_token()["access_token"]
    url = f"{caller.server.base_url}/oauth/revoke"
    answer = caller.http.post(url, data={"token": bearer, "access_token": bearer}, timeout=30)
    assert answer.status_code == 401
    assert caller.accounts(bearer).status_code == 200


@pytest.mark.parametrize(
    ("form", "status", "error"),
    [
        ({"grant_type": "password", "username": "alice", "password": "wrong"}, 400, "invalid_grant"),
        ({"grant_type": "refresh_token", "refresh_token": "wrong"}, 400, "invalid_grant"),
        ({"grant_type": "client_credentials", "client_secret": "wrong"}, 401, "invalid_client"),
        ({"grant_type": "client_credentials", "client_id": "wrong"}, 401, "invalid_client"),
        ({"grant_type": "telepathy"}, 400, "unsupported_grant_type"),
    ],
)
def test_refusals(caller: Caller, form: dict[str, str], status: int, error: str) -> None:
    """Wrong users, clients and grants are refused with the statuses of finAPI, in OAuth's shape."""
    answer = caller.token(**form)
    assert (answer.status_code, answer.json()["error"]) == (status, error)


@pytest.mark.parametrize("bearer", [None, "junk"])
def test_resource_wants_a_token(caller: Caller, bearer: str | None) -> None:
    """The resource answers 401 with a challenge and no body where a token is missing or unknown."""
    answer = caller.accounts(bearer)
    assert (answer.status_code, answer.text) == (401, "")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")


@pytest.mark.parametrize("path", ["/oauth/token", "/oauth/revoke", "/api/v2/oauth/token", "/api/v2/accounts"])
def test_request_id_is_echoed(caller: Caller, path: str) -> None:
    """Every answer, a refusal too, carries the request id that was sent."""
    answer = caller.http.post(caller.server.base_url + path, headers={"X-Request-Id": "id-1"}, timeout=30)
    assert answer.status_code >= 400
    assert answer.headers["X-Request-Id"] == "id-1"


def test_many_calls_at_once(server: ForeignServer) -> None:
    """Sixteen clients that write at the same time all get their tokens: the database does not lock up."""

    def ask(_: int) -> str:
        with requests.Session() as http:
            http.trust_env, http.verify = False, server.ca_bundle
            caller = Caller(server, http)
            return str(_good(caller.refresh(caller.user_token()["refresh_token"]))["access_token"])

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(ask, range(32)))) == 32
    assert (server.access_tokens(), server.refresh_tokens()) == (32, 32)
    assert "locked" not in server.log.read_text()


def test_log_holds_no_secrets(caller: Caller) -> None:
    """The server's log names calls and request ids only, so it may be shown when a test fails."""
    token = caller.user_token()
    log = caller.server.log.read_text()
    secrets = [*token.values(), caller.server.password, caller.server.client_secret]
    assert "/oauth/token" in log
    assert not [text for text in secrets if isinstance(text, str) and len(text) > 8 and text in log]


SERVE_AND_RAISE = """
import sys
from foreign.server import serve
with serve() as server:
    print(server.base_url, server.log.parent, flush=True)
    sys.stdin.read()
    raise SystemExit(3)
"""


@pytest.fixture
def other_server() -> Iterator["subprocess.Popen[str]"]:
    hostile = {"REQUESTS_CA_BUNDLE": "/none", "HTTPS_PROXY": "http://127.0.0.1:1"}
    environ = {**os.environ, **hostile, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVE_AND_RAISE],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def test_nothing_is_left_behind(other_server: "subprocess.Popen[str]") -> None:
    """After an exception, proxies and a foreign CA bundle set, neither files nor a listener remain."""
    assert other_server.stdout is not None
    base_url, folder = other_server.stdout.readline().split()
    assert os.path.isdir(folder)
    other_server.communicate("", timeout=30)
    assert other_server.returncode == 3
    assert not os.path.exists(folder)
    with requests.Session() as http, pytest.raises(requests.ConnectionError):
        http.trust_env = False
        http.get(base_url, timeout=5)
