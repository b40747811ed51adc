"""The local finAPI keeps finAPI's rules, and does to a test what the test asks for."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import freezegun
import pytest
import requests

import finapi_session.testing
from finapi_session import FinapiSession
from finapi_session.testing import Sandbox
from finapi_session.testing.authority import CLIENT, Authority, Refusal, Settings, User
from finapi_session.testing.demo_data import accounts, first_day, transactions

ANNA = "anna.schmidt"
PASSWORD = "Kirschkuchen am Sonntag"
TOKEN, REVOKE = "/oauth/token", "/oauth/revoke"
ECHO = "/api/v2/tests/echo"
SOME_DAY = date(2025, 6, 30)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.3

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock at rest."""
    return Clock()


@pytest.fixture
def settings() -> Settings:
    """The usual rules."""
    return Settings()


@pytest.fixture
def authority(settings: Settings, clock: Clock) -> Authority:
    """The OAuth rules alone, with one user."""
    authority = Authority(settings, clock)
    authority.add_user(User(ANNA, PASSWORD))
    return authority


def form(grant_type: str = "client_credentials", **fields: str) -> dict[str, str]:
    """Return the form of a token call."""
    credentials = {"client_id": "sandbox-client", "client_secret": "sandbox-client-secret"}
    return {**credentials, "grant_type": grant_type, **fields}


def sign_in(username: str = ANNA, password: str = PASSWORD) -> dict[str, str]:
    """Return the form of a password grant."""
    return form("password", username=username, password=password)


def refresh(token: Any) -> dict[str, str]:
    """Return the form of a refresh grant."""
    return form("refresh_token", refresh_token=token)


def refused(authority: Authority, fields: dict[str, str]) -> int:
    """Return the status with which a token call is refused."""
    with pytest.raises(Refusal) as caught:
        authority.token(fields)
    return caught.value.status


def lives(authority: Authority, token: Any) -> bool:
    """Tell whether an access token is accepted."""
    try:
        authority.check(token)
    except Refusal:
        return False
    return True


# The rules, without a socket.


def test_a_sticky_token_counts_down_to_zero_and_is_then_replaced(authority: Authority, clock: Clock) -> None:
    """The same credentials get the same token while it lives, whose last second reads 0."""
    seen = []
    for after in (0, 0.1, 3540, 3599.1, 3599.9):
        clock.now = 1000.3 + after
        seen.append(authority.token(form()))
    assert len({answer["access_token"] for answer in seen}) == 1
    assert [answer["expires_in"] for answer in seen] == [3600, 3599, 60, 0, 0]
    assert seen[0]["token_type"] == "bearer" and seen[0]["scope"] == "all" and "refresh_token" not in seen[0]
    clock.now = 1000.3 + 3600
    assert not lives(authority, seen[0]["access_token"])
    assert authority.token(form())["access_token"] != seen[0]["access_token"]


def test_lifetime_zero_is_for_ever(authority: Authority, settings: Settings, clock: Clock) -> None:
    """A client whose tokens never expire reads expires_in 0."""
    settings.lifetime = 0
    answer = authority.token(form())
    clock.now += 10**9
    assert answer["expires_in"] == 0 and lives(authority, answer["access_token"])
    assert authority.token(form()) == answer


def test_tokens_are_as_long_as_set(authority: Authority, settings: Settings) -> None:
    """Tokens of the greatest length that finAPI announces can be had."""
    settings.token_length = 8192
    assert len(str(authority.token(form())["access_token"])) == 8192


def test_without_sticky_each_sign_in_gives_a_token_of_its_own(authority: Authority, settings: Settings) -> None:
    """The other reading: a new token every time, and the older ones live on."""
    settings.sticky = False
    first, second = authority.token(sign_in()), authority.token(sign_in())
    assert first["access_token"] != second["access_token"] and first["refresh_token"] != second["refresh_token"]
    assert lives(authority, first["access_token"]) and lives(authority, second["access_token"])


def test_a_refresh_gives_a_new_token_and_kills_the_old_one(authority: Authority) -> None:
    """A refresh renews at once, keeps the refresh token, and the next sign-in gets the renewed token."""
    first = authority.token(sign_in())
    second = authority.token(refresh(first["refresh_token"]))
    assert second["access_token"] != first["access_token"] and second["refresh_token"] == first["refresh_token"]
    assert not lives(authority, first["access_token"]) and lives(authority, second["access_token"])
    assert authority.token(sign_in()) == second


def test_a_refresh_may_leave_the_old_token_alive(authority: Authority, settings: Settings) -> None:
    """With kill_on_refresh off both tokens are good, and the newer is the sticky one."""
    settings.kill_on_refresh = False
    first = authority.token(sign_in())
    second = authority.token(refresh(first["refresh_token"]))
    assert lives(authority, first["access_token"]) and lives(authority, second["access_token"])
    assert authority.token(sign_in()) == second


def test_refresh_tokens_may_rotate(authority: Authority, settings: Settings) -> None:
    """A rotated refresh token is replaced, and the old one is dead."""
    settings.rotate_refresh_tokens = True
    first = authority.token(sign_in())
    second = authority.token(refresh(first["refresh_token"]))
    assert second["refresh_token"] != first["refresh_token"]
    assert refused(authority, refresh(first["refresh_token"])) == 400
    assert authority.token(refresh(second["refresh_token"]))


def test_a_spent_refresh_token_is_refused_and_harms_nobody(authority: Authority, settings: Settings) -> None:
    """Without reuse detection, a refresh token that rotation has spent is 400, and what followed it lives on."""
    settings.rotate_refresh_tokens = True
    first = authority.token(sign_in())
    second = authority.token(refresh(first["refresh_token"]))
    assert refused(authority, refresh(first["refresh_token"])) == 400
    assert lives(authority, second["access_token"]) and authority.token(refresh(second["refresh_token"]))


def test_a_spent_refresh_token_ends_its_grant_if_reuse_is_detected(authority: Authority, settings: Settings) -> None:
    """With the switch, it takes the living access and refresh token along; a new sign-in is not touched."""
    settings.rotate_refresh_tokens = settings.detect_reuse = True
    first = authority.token(sign_in())
    second = authority.token(refresh(first["refresh_token"]))
    assert refused(authority, refresh(first["refresh_token"])) == 400
    assert not lives(authority, second["access_token"]) and refused(authority, refresh(second["refresh_token"])) == 400
    fresh = authority.token(sign_in())
    assert refused(authority, refresh(first["refresh_token"])) == 400 and lives(authority, fresh["access_token"])


def test_a_made_up_refresh_token_ends_no_grant(authority: Authority, settings: Settings) -> None:
    """Reuse is a token that was once good: any other text is refused, and that is all."""
    settings.rotate_refresh_tokens = settings.detect_reuse = True
    answer = authority.token(sign_in())
    assert refused(authority, refresh("made-up")) == 400 and lives(authority, answer["access_token"])


def test_refresh_tokens_may_be_left_out(authority: Authority, settings: Settings) -> None:
    """A refresh token that is left out of the answer stays valid."""
    settings.rotate_refresh_tokens = "omit"
    first = authority.token(sign_in())
    assert "refresh_token" not in authority.token(refresh(first["refresh_token"]))
    assert authority.token(refresh(first["refresh_token"]))


def test_an_expired_refresh_token_is_401_and_a_sign_in_replaces_it(
    authority: Authority, settings: Settings, clock: Clock
) -> None:
    """Past its life a refresh token is answered with 401, until a password brings another."""
    settings.refresh_lifetime = 100
    first = authority.token(sign_in())
    clock.now += 99.9
    second = authority.token(refresh(first["refresh_token"]))
    clock.now += 0.1
    assert refused(authority, refresh(first["refresh_token"])) == 401
    third = authority.token(sign_in())
    assert third["access_token"] == second["access_token"] and third["refresh_token"] != first["refresh_token"]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (form(client_id="x"), 401),
        (form(client_secret="x"), 401),
        ({"grant_type": "client_credentials"}, 401),
        (sign_in(password="x") | {"client_secret": "x"}, 401),
        (form("implicit"), 400),
        (form(""), 400),
        (form("password", username=ANNA), 400),
        (form("password", password=PASSWORD), 400),
        (sign_in(username="nobody"), 400),
        (sign_in(password=PASSWORD.lower()), 400),
        (form("refresh_token"), 400),
        (refresh("x"), 400),
    ],
)
def test_wrong_forms_are_refused(authority: Authority, fields: dict[str, str], status: int) -> None:
    """A wrong client is 401, everything else that is wrong 400."""
    assert refused(authority, fields) == status


def test_an_access_token_does_not_refresh(authority: Authority) -> None:
    """An access token is no refresh token, and a refresh token opens nothing."""
    answer = authority.token(sign_in())
    assert refused(authority, refresh(answer["access_token"])) == 400
    assert not lives(authority, answer["refresh_token"])


def test_user_ids_are_case_insensitive(authority: Authority) -> None:
    """However a user id is spelt, it is the same user with the same token."""
    assert authority.token(sign_in("Anna.SCHMIDT")) == authority.token(sign_in())
    with pytest.raises(Refusal, match="exists"):
        authority.add_user(User("ANNA.schmidt", "x"))


def test_bad_passwords_in_a_row_lock_the_user(authority: Authority) -> None:
    """The third bad password locks, kills the tokens, and the right one no longer helps; a change does."""
    answer = authority.token(sign_in())
    assert [refused(authority, sign_in(password="x")) for _ in range(4)] == [400, 400, 400, 423]
    assert refused(authority, sign_in()) == 423
    assert not lives(authority, answer["access_token"])
    assert refused(authority, refresh(answer["refresh_token"])) == 400
    authority.change_password(ANNA, "new")
    assert authority.token(sign_in(password="new"))


def test_a_good_password_starts_the_count_anew(authority: Authority) -> None:
    """Only consecutive bad passwords count."""
    for _ in range(3):
        assert [refused(authority, sign_in(password="x")) for _ in range(2)] == [400, 400]
        assert authority.token(sign_in())


def test_a_locked_user_is_not_signed_in_with_any_password(authority: Authority) -> None:
    """Locking by hand does what bad passwords do."""
    authority.lock_user("ANNA.schmidt")
    assert refused(authority, sign_in()) == refused(authority, sign_in(password="x")) == 423


def test_unverified_users_wait(authority: Authority) -> None:
    """An unverified user gets 403 with the right password, a token once verified."""
    authority.add_user(User("new", "secret", verified=False))
    assert refused(authority, sign_in("new", "x")) == 400
    assert refused(authority, sign_in("new", "secret")) == 403
    authority.verify_user("NEW")
    assert authority.token(sign_in("new", "secret"))


def test_a_new_client_secret_ends_the_clients_tokens_only(authority: Authority) -> None:
    """The users' tokens outlive a change of the client's secret."""
    client, user = authority.token(form()), authority.token(sign_in())
    authority.change_client_secret("other")
    assert not lives(authority, client["access_token"]) and lives(authority, user["access_token"])
    assert refused(authority, form()) == 401
    assert authority.token(form(client_secret="other"))


def test_a_removed_user_is_gone(authority: Authority) -> None:
    """Removing a user ends the tokens and the name."""
    answer = authority.token(sign_in())
    authority.remove_user("Anna.Schmidt")
    assert not lives(authority, answer["access_token"]) and refused(authority, sign_in()) == 400


@pytest.mark.parametrize(
    ("named", "hint", "access_lives", "refresh_lives"),
    [
        ("access_token", "access_token", False, True),
        ("access_token", "", False, False),
        ("access_token", "refresh_token", False, False),
        ("refresh_token", "refresh_token", False, False),
        ("refresh_token", "", False, False),
        ("refresh_token", "access_token", False, False),
        ("unknown", "", True, True),
        ("unknown", "access_token", True, True),
    ],
)
def test_revoking_by_hint(authority: Authority, named: str, hint: str, access_lives: bool, refresh_lives: bool) -> None:
    """The hint access_token ends that token alone, anything else the grant; an unknown token none."""
    client, user = authority.token(form()), authority.token(sign_in())
    fields = {"token": str(user.get(named, "unknown")), "token_type_hint": hint}
    authority.revoke(str(client["access_token"]), fields)
    assert lives(authority, user["access_token"]) == access_lives
    assert lives(authority, client["access_token"])
    if refresh_lives:
        assert authority.token(refresh(user["refresh_token"]))
    else:
        assert refused(authority, refresh(user["refresh_token"])) == 400


def test_the_client_may_revoke_the_token_it_uses(authority: Authority) -> None:
    """A client token can be given back with itself, once."""
    token = str(authority.token(form())["access_token"])
    authority.revoke(token, {"token": token})
    with pytest.raises(Refusal) as caught:
        authority.revoke(token, {"token": token})
    assert caught.value.status == 401


def test_revoking_needs_the_client(authority: Authority) -> None:
    """Without a bearer, with an unknown or a user's it is 401; without token or with a strange hint 400."""
    user, client = (str(authority.token(fields)["access_token"]) for fields in (sign_in(), form()))
    cases: list[tuple[str | None, dict[str, str], int]] = [
        (None, {"token": user}, 401),
        ("unknown", {"token": user}, 401),
        (user, {"token": user}, 401),
        (client, {}, 400),
        (client, {"token": user, "token_type_hint": "id_token"}, 400),
    ]
    for bearer, fields, status in cases:
        with pytest.raises(Refusal) as caught:
            authority.revoke(bearer, fields)
        assert caught.value.status == status
    assert lives(authority, user)


@pytest.mark.parametrize("act", ["expire_tokens", "revoke_tokens"])
@pytest.mark.parametrize(
    ("match", "client_lives", "user_lives"),
    [
        ({}, False, False),
        ({"kind": "client"}, False, True),
        ({"kind": "user"}, True, False),
        ({"username": "ANNA.schmidt"}, True, False),
    ],
)
def test_tokens_end_behind_peoples_backs(
    authority: Authority, act: str, match: dict[str, Any], client_lives: bool, user_lives: bool
) -> None:
    """Expired and revoked alike, whose tokens are named lose them, and only those."""
    client, user = authority.token(form()), authority.token(sign_in())
    getattr(authority, act)(**match)
    assert lives(authority, client["access_token"]) == client_lives
    assert lives(authority, user["access_token"]) == user_lives
    assert authority.token(refresh(user["refresh_token"]))


@pytest.mark.parametrize("act", ["expire_tokens", "revoke_tokens"])
def test_a_misspelt_user_is_no_one_elses_silence(authority: Authority, act: str) -> None:
    """A test that names a user who is not there is told so, instead of passing for ever."""
    with pytest.raises(Refusal, match="'nobody' does not exist"):
        getattr(authority, act)("nobody")


@pytest.mark.parametrize(("act", "status"), [("expire_tokens", 401), ("revoke_tokens", 400)])
def test_refresh_tokens_end_if_asked(authority: Authority, act: str, status: int) -> None:
    """An expired refresh token is 401, a revoked one 400; the password still works."""
    user = authority.token(sign_in())
    getattr(authority, act)(refresh=True)
    assert refused(authority, refresh(user["refresh_token"])) == status
    assert authority.token(sign_in())["refresh_token"] != user["refresh_token"]


def test_nothing_prints_a_secret(authority: Authority, settings: Settings) -> None:
    """The secret and the password stay out of every repr."""
    authority.user(ANNA).ticket = "ticket-text"
    shown = f"{settings!r} {authority.users!r} {Sandbox()!r}"
    assert PASSWORD not in shown and "sandbox-client-secret" not in shown and "ticket-text" not in shown


def test_one_token_however_many_threads_ask(authority: Authority) -> None:
    """Concurrent sign-ins get one sticky token."""
    answers: list[object] = []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        answers.append(authority.token(sign_in())["access_token"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8 and len(set(answers)) == 1


# The server.


class Web:
    """Calls the sandbox as curl would, on one connection."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.session = requests.Session()
        self.session.verify, self.session.trust_env = sandbox.ca_bundle, False

    def __call__(self, method: str, path: str, bearer: str | None = None, **options: Any) -> requests.Response:
        """Send a request to *path* with *bearer*."""
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        headers |= options.pop("headers", {})
        options = {"timeout": 10, "allow_redirects": False, "headers": headers, **options}
        return self.session.request(method, self.sandbox.base_url + path, **options)

    def client(self) -> str:
        """Return a client token."""
        token: str = self("POST", TOKEN, data=form()).json()["access_token"]
        return token

    def user(self) -> str:
        """Return the first user's token."""
        token: str = self("POST", TOKEN, data=sign_in()).json()["access_token"]
        return token


@pytest.fixture(scope="module")
def server() -> Iterator[Sandbox]:
    """One server for all tests here."""
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(server: Sandbox) -> Sandbox:
    """The server in its first state."""
    server.reset()
    return server


@pytest.fixture
def web(sandbox: Sandbox) -> Iterator[Web]:
    """A connection to the sandbox."""
    web = Web(sandbox)
    with web.session:
        yield web


@pytest.mark.parametrize("prefix", ["", "/api/v2"])
def test_the_three_grants_and_revoke_over_tls(web: Web, prefix: str) -> None:
    """On the paths of both versions tokens are given, renewed and revoked, all on one kept connection."""
    client = web("POST", prefix + TOKEN, data=form())
    user = web("POST", prefix + TOKEN, data=sign_in()).json()
    renewed = web("POST", prefix + TOKEN, data=refresh(user["refresh_token"])).json()
    revoked = web("POST", prefix + REVOKE, client.json()["access_token"], data={"token": renewed["access_token"]})
    assert (revoked.status_code, revoked.content) == (200, b"")
    assert client.headers["Cache-Control"] == "no-store"
    assert web("GET", "/api/v2/accounts", renewed["access_token"]).status_code == 401
    assert web.sandbox.connections == 1


@pytest.mark.parametrize("version", [1, 2])
def test_a_client_is_bound_to_its_api_version(web: Web, version: Any) -> None:
    """The OAuth path of the other version answers 403 and says why; the environment follows the version."""
    web.sandbox.api_version = version
    good, bad = (TOKEN, "/api/v2" + TOKEN) if version == 1 else ("/api/v2" + TOKEN, TOKEN)
    assert web("POST", good, data=form()).status_code == 200
    answer = web("POST", bad, data=form())
    assert answer.status_code == 403 and f"API version {version}" in answer.json()["error_description"]
    assert web.sandbox.environment.token_url.endswith(good)


@pytest.mark.parametrize(
    "options",
    [
        {"params": form()},
        {"data": form(), "params": {"x": "1"}},
        {"json": form()},
        {"files": {name: (None, value) for name, value in form().items()}},
        {"data": form(), "headers": {"X-Request-Id": "x" * 256}},
    ],
)
def test_only_a_form_in_the_body_is_taken(web: Web, options: dict[str, Any]) -> None:
    """Anything in the query, another kind of body, or a request id that is too long is 400."""
    answer = web("POST", TOKEN, **options)
    assert answer.status_code == 400 and answer.json()["error_description"]


def test_text_beyond_ascii_survives(web: Web) -> None:
    """Ids and passwords with umlauts and the form's own characters sign in."""
    web.sandbox.add_user("Jürgen&Söhne", "a=b&c+d% ß€")
    answer = web("POST", TOKEN, data=sign_in("jürgen&söhne", "a=b&c+d% ß€"))
    assert answer.status_code == 200
    assert web.sandbox.calls[-1].username == "jürgen&söhne"


def test_request_ids_are_echoed_or_made(web: Web) -> None:
    """A request id up to 255 characters comes back; without one there is a new one, on errors too."""
    assert web("POST", TOKEN, data=form(), headers={"X-Request-Id": "y" * 255}).headers["X-Request-Id"] == "y" * 255
    made = {web("GET", "/nowhere").headers["X-Request-Id"] for _ in range(3)}
    assert len(made) == 3
    assert web.sandbox.calls[0].request_id == "y" * 255
    long = web("GET", ECHO, web.client(), headers={"X-Request-Id": "z" * 256})
    assert long.status_code == 400 and len(long.headers["X-Request-Id"]) == 36


def test_a_refused_bearer_is_repeated_as_finapi_does(web: Web) -> None:
    """A 401 on an API call has the OAuth shape and repeats the token; none at all is 401 too."""
    answer = web("GET", ECHO, "no-such-token")
    assert answer.status_code == 401
    assert answer.json() == {
        "error": "invalid_token",
        "error_description": "Invalid access token: no-such-token",
    }
    assert web("GET", ECHO).status_code == 401
    assert web("GET", ECHO, headers={"Authorization": "Basic eDp5"}).status_code == 401


def test_errors_have_finapis_shape(web: Web) -> None:
    """Errors of API calls list themselves with request id and endpoint; OAuth errors do so if asked to."""
    web.sandbox.error_shape = "api"
    refused = web("POST", TOKEN, data=form("implicit"), headers={"X-Request-Id": "r1"})
    wrong_kind = web("GET", "/api/v2/accounts", web.client(), headers={"X-Request-Id": "r2"})
    for answer, request_id, endpoint in (
        (refused, "r1", "POST /oauth/token"),
        (wrong_kind, "r2", "GET /api/v2/accounts"),
    ):
        body = answer.json()
        assert list(body) == ["errors", "date", "requestId", "endpoint", "authContext", "bank"]
        assert (body["requestId"], body["endpoint"]) == (request_id, endpoint)
        assert body["errors"][0]["type"] == "BUSINESS" and body["errors"][0]["message"]
    assert (refused.status_code, wrong_kind.status_code) == (400, 403)
    assert wrong_kind.json()["errors"][0]["code"] == "FORBIDDEN"


@pytest.mark.parametrize(
    ("method", "path", "kinds"),
    [
        ("GET", "/api/v2/banks", "client user"),
        ("GET", "/api/v2/clientConfiguration", "client"),
        ("POST", "/api/v2/users", "client"),
        ("GET", "/api/v2/users", "user"),
        ("GET", "/api/v2/mandatorAdmin/getUserList", "client"),
        ("GET", "/api/v2/bankConnections", "user"),
        ("GET", "/api/v2/accounts", "user"),
        ("GET", "/api/v2/transactions", "user"),
        ("GET", "/api/v2/categories", "user"),
        ("GET", "/api/v2/labels", "user"),
        ("GET", "/api/v2/banks/277701", "client user"),
        ("DELETE", "/api/v2/users", "user"),
        ("DELETE", "/api/v2/users/anna.schmidt", "client"),
    ],
)
def test_each_call_wants_its_kind_of_token(web: Web, method: str, path: str, kinds: str) -> None:
    """The wrong kind of token is 403, the right one 2xx."""
    tokens = {"client": web.client(), "user": web.user()}
    for kind in sorted(tokens, key=lambda kind: kind in kinds):
        status = web(method, path, tokens[kind], json={} if method == "POST" else None).status_code
        assert (status < 300) == (kind in kinds) and status in (200, 201, 403), kind


def test_unknown_paths_and_methods(web: Web) -> None:
    """What finAPI does not have is 404 or 405, in its error shape."""
    assert [web("GET", "/nowhere").status_code, web("GET", TOKEN).status_code] == [404, 405]
    assert web("GET", "/nowhere").json()["errors"][0]["code"] == "ENTITY_NOT_FOUND"
    assert web("DELETE", "/api/v2/accounts", web.user()).json()["errors"][0]["code"] == "METHOD_NOT_ALLOWED"


def test_banks_are_paged_and_searched(web: Web) -> None:
    """Pages hold 20 by default and together every bank once; a search looks at name, code, BIC and city."""
    token = web.client()
    pages = [web("GET", "/api/v2/banks", token, params={"page": page}).json() for page in (1, 2, 3)]
    assert pages[0]["paging"] == {"page": 1, "perPage": 20, "pageCount": 3, "totalCount": 43}
    banks = [bank for page in pages for bank in page["banks"]]
    assert len({bank["id"] for bank in banks}) == 43
    whole = web("GET", "/api/v2/banks", token, params={"perPage": 500}).json()
    assert whole["banks"] == banks
    for search, bic in (
        ("sparkasse BREMEN", "SBREDE22XXX"),
        ("43060967", "GENODEM1GLS"),
        ("bylade", "BYLADEM1001"),
    ):
        found = web("GET", "/api/v2/banks", token, params={"search": search}).json()
        assert [bank["bic"] for bank in found["banks"]] == [bic]
    nothing = web("GET", "/api/v2/banks", token, params={"search": "no such bank"}).json()
    assert nothing["paging"]["pageCount"] == 0 and nothing["banks"] == []


@pytest.mark.parametrize(
    "paging", [{"page": "0"}, {"page": "-1"}, {"perPage": "501"}, {"perPage": "x"}, {"perPage": "²"}]
)
def test_bad_paging_is_refused(web: Web, paging: dict[str, str]) -> None:
    """Pages count from 1 and hold at most 500."""
    assert web("GET", "/api/v2/banks", web.client(), params=paging).status_code == 400


def test_users_are_created_found_and_deleted(web: Web) -> None:
    """The client creates a user who signs in, sees herself, is listed, and deletes herself."""
    client = web.client()
    fields = {
        "id": "Bernd",
        "password": "geheim-1",
        "email": "b@example.org",
        "phone": "+49 30 1",
        "isAutoUpdateEnabled": True,
    }
    created = web("POST", "/api/v2/users", client, json=fields)
    assert (created.status_code, created.json()) == (201, fields)
    assert web("POST", "/api/v2/users", client, json={"id": "bernd"}).status_code == 422
    token = web("POST", TOKEN, data=sign_in("bernd", "geheim-1")).json()["access_token"]
    assert web("GET", "/api/v2/users", token).json() == fields | {"password": "XXXXX"}
    listed = web("GET", "/api/v2/mandatorAdmin/getUserList", client).json()["users"]
    assert [user["userId"] for user in listed] == [ANNA, "Bernd"]
    assert web("DELETE", "/api/v2/users", token).status_code == 200
    assert web("GET", "/api/v2/users", token).status_code == 401
    assert web("DELETE", "/api/v2/users/bernd", client).status_code == 404


def test_a_user_may_be_made_of_nothing(web: Web) -> None:
    """Without fields finAPI makes up id and password, which sign in."""
    user = web("POST", "/api/v2/users", web.client(), json={}).json()
    assert web("POST", TOKEN, data=sign_in(user["id"], user["password"])).status_code == 200


@pytest.mark.parametrize("body", ["", "[]", "{", '{"id": 1}', '"text"'])
def test_a_body_that_is_no_user_is_refused(web: Web, body: str) -> None:
    """What is not a JSON object of texts is 400."""
    assert web("POST", "/api/v2/users", web.client(), data=body).status_code == 400


def test_new_users_may_have_to_be_verified(web: Web) -> None:
    """Without automatic verification a new user gets 403 until the client verifies them."""
    web.sandbox.auto_verify = False
    web("POST", "/api/v2/users", web.client(), json={"id": "new", "password": "secret"})
    assert web("POST", TOKEN, data=sign_in("new", "secret")).status_code == 403
    assert web("POST", "/api/v2/users/verify/new", web.client()).status_code == 200
    assert web("POST", TOKEN, data=sign_in("new", "secret")).status_code == 200


def test_a_password_is_changed_on_a_ticket(web: Web) -> None:
    """A ticket changes the password once, and the user's tokens end with that."""
    client, user = web.client(), web.user()
    ticket = web("POST", "/api/v2/users/requestPasswordChange", client, json={"userId": ANNA}).json()
    order = {"userId": ANNA, "password": "other", "passwordChangeToken": ticket["passwordChangeToken"]}
    path = "/api/v2/users/executePasswordChange"
    assert web("POST", path, client, json=order | {"passwordChangeToken": "x"}).status_code == 404
    assert web("POST", path, client, json={"userId": ANNA}).status_code == 400
    assert web("GET", ECHO, user).status_code == 200
    assert web("POST", path, client, json=order).status_code == 200
    assert web("POST", path, client, json=order).status_code == 404
    assert web("GET", ECHO, user).status_code == 401
    assert web("POST", TOKEN, data=sign_in(password="other")).status_code == 200


def test_the_client_configuration_tells_the_rules(web: Web) -> None:
    """What is set on the sandbox is what its client reads."""
    web.sandbox.lifetime, web.sandbox.max_login_attempts = 60, 5
    read = web("GET", "/api/v2/clientConfiguration", web.client()).json()
    assert (read["clientAccessTokensValidityPeriod"], read["maxUserLoginAttempts"]) == (60, 5)
    assert read["refreshTokensValidityPeriod"] == 0


def test_accounts_are_believable(web: Web) -> None:
    """A user has three accounts whose IBANs check, and other numbers than another user."""
    found = web("GET", "/api/v2/accounts", web.user()).json()["accounts"]
    assert [account["accountName"] for account in found] == ["Girokonto", "Tagesgeld", "Kreditkarte"]
    for account in found[:2]:
        digits = account["iban"][4:] + account["iban"][:4]
        assert len(digits) == 22 and int("".join(str(int(character, 36)) for character in digits)) % 97 == 1
    assert not {account["iban"] for account in accounts("bernd")[:2]} & {account["iban"] for account in found}
    connection = web("GET", "/api/v2/bankConnections", web.user()).json()["connections"][0]
    assert connection["accountIds"] == [account["id"] for account in found]


def test_transactions_are_paged_filtered_and_add_up(web: Web) -> None:
    """There are more than 120, the newest first, and their sums are those of what was asked for."""
    web.sandbox.today = SOME_DAY
    token = web.user()
    read = web("GET", "/api/v2/transactions", token, params={"perPage": 500}).json()
    entries = read["transactions"]
    assert len(entries) == read["paging"]["totalCount"] > 120
    assert entries == sorted(entries, key=lambda entry: entry["bankBookingDate"], reverse=True)
    assert len({entry["id"] for entry in entries}) == len(entries) and all(entry["purpose"] for entry in entries)
    assert read["balance"] == pytest.approx(sum(entry["amount"] for entry in entries))
    assert read["income"] + read["spending"] == pytest.approx(read["balance"])
    wanted = {entry["accountId"] for entry in entries if entry["counterpartName"] == "Hansa Logistik GmbH"}
    one = web("GET", "/api/v2/transactions", token, params={"accountIds": wanted.pop(), "search": "GEHALT"}).json()
    assert [entry["amount"] for entry in one["transactions"]] == [3187.64] * 6
    assert one["spending"] == 0 and one["income"] == pytest.approx(6 * 3187.64)


def test_the_data_are_the_same_on_every_run() -> None:
    """Another process, with another hash seed, sees the same transactions."""
    span = "date(2025, 1, 1), date(2025, 6, 30)"
    code = (
        "from datetime import date; from finapi_session.testing.demo_data import transactions; "
        f"print(transactions('anna.schmidt', {span})[0])"
    )
    environ = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    shown = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == str(transactions(ANNA, date(2025, 1, 1), date(2025, 6, 30))[0])


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_echo_tells_what_arrived(web: Web, method: str) -> None:
    """Method, query, headers and body come back, with the kind of token."""
    answer = web(method, f"{ECHO}?a=1", web.user(), data="Grüße".encode(), headers={"X-Mine": "7"}).json()
    assert (answer["method"], answer["query"], answer["text"]) == (method, {"a": "1"}, "Grüße")
    assert answer["headers"]["X-Mine"] == "7" and (answer["kind"], answer["username"]) == ("user", ANNA)
    raw = web(method, ECHO, web.client(), data=b"\xff\x00").json()
    assert (raw["text"], raw["base64"], raw["kind"]) == (None, "/wA=", "client")


def test_bodies_in_chunks_arrive_and_head_has_none(web: Web) -> None:
    """A body of unknown length is read whole, and the connection stays in step after it and after HEAD."""
    token = web.client()
    assert web("POST", ECHO, token, data=iter([b"one", b"two"])).json()["text"] == "onetwo"
    head = web("HEAD", ECHO, token)
    assert (head.status_code, head.content) == (200, b"") and int(head.headers["Content-Length"]) > 100
    assert web("POST", ECHO, token, data=b"three").json()["text"] == "three"
    assert web.sandbox.connections == 1


def test_redirects_go_where_they_are_told(web: Web) -> None:
    """A redirect wants a token, an address and a status of its kind."""
    path, token = "/api/v2/tests/redirect", web.client()
    answer = web("POST", path, token, params={"to": "https://example.org/a?b=c", "status": 307})
    assert (answer.status_code, answer.headers["Location"]) == (307, "https://example.org/a?b=c")
    assert web("GET", path, token, params={"to": "/x"}).status_code == 302
    assert web("GET", path, token, params={"to": "/x", "status": 200}).status_code == 400
    assert web("GET", path, token).status_code == 400
    assert web("GET", path, params={"to": "/x"}).status_code == 401


# What its lists take.


def listed(web: Web, path: str, **params: Any) -> list[dict[str, Any]]:
    """Return all records of one of the first user's lists."""
    paged = {} if path in ("accounts", "bankConnections") else {"perPage": 500}
    answer = web("GET", f"/api/v2/{path}", web.user(), params={**paged, **params})
    assert answer.status_code == 200, answer.text
    name = {"bankConnections": "connections"}.get(path, path)
    found: list[dict[str, Any]] = answer.json()[name]
    return found


@pytest.mark.parametrize(
    ("path", "params", "holds"),
    [
        ("transactions", {"minBankBookingDate": "2025-03-01"}, lambda e: e["bankBookingDate"] >= "2025-03-01"),
        ("transactions", {"maxBankBookingDate": "2025-03-01"}, lambda e: e["bankBookingDate"] <= "2025-03-01"),
        ("transactions", {"minFinapiBookingDate": "2025-06-01"}, lambda e: e["finapiBookingDate"] >= "2025-06-01"),
        ("transactions", {"maxFinapiBookingDate": "2025-06-01"}, lambda e: e["finapiBookingDate"] <= "2025-06-01"),
        ("transactions", {"minAmount": "-10.99"}, lambda e: e["amount"] >= -10.99),
        ("transactions", {"maxAmount": "-945"}, lambda e: e["amount"] <= -945),
        ("transactions", {"direction": "income"}, lambda e: e["amount"] >= 0),
        ("transactions", {"direction": "spending"}, lambda e: e["amount"] < 0),
        ("transactions", {"search": "gehalt MÄRZ"}, lambda e: "Gehalt März" in e["purpose"]),
        ("transactions", {"counterpart": "rewe"}, lambda e: e["counterpartName"] == "REWE Markt"),
        ("transactions", {"purpose": "miete"}, lambda e: "Miete" in e["purpose"]),
        ("transactions", {"categoryIds": "371,381"}, lambda e: (e["category"] or {}).get("id") in (371, 381)),
        ("accounts", {"accountTypes": "SAVINGS,CREDIT_CARD"}, lambda e: e["accountType"] != "CHECKING"),
        ("accounts", {"search": "tages"}, lambda e: e["accountName"] == "Tagesgeld"),
        ("accounts", {"minBalance": "0"}, lambda e: e["balance"] >= 0),
        ("accounts", {"maxBalance": "0"}, lambda e: e["balance"] <= 0),
        ("banks", {"isTestBank": "true"}, lambda e: e["isTestBank"]),
        ("banks", {"ids": "277701,277702"}, lambda e: e["id"] in (277701, 277702)),
        ("banks", {"search": "sparkasse", "isTestBank": "false"}, lambda e: "parkasse" in e["name"]),
        ("categories", {"search": "bahn"}, lambda e: "Bahn" in e["name"]),
        ("labels", {"search": "steuer"}, lambda e: e["name"] == "Steuer"),
    ],
    # Not the address of a function: every worker of pytest-xdist must name a test alike.
    ids=lambda value: "" if callable(value) else str(value),
)
def test_lists_obey_their_filters(web: Web, path: str, params: dict[str, str], holds: Any) -> None:
    """A filter keeps exactly the records that it speaks of, both ends of a span included, and not all."""
    web.sandbox.today = SOME_DAY
    everything, found = listed(web, path), listed(web, path, **params)
    assert found == [record for record in everything if holds(record)]
    assert 0 < len(found) < len(everything)


def test_filters_that_change_nothing_are_taken(web: Web) -> None:
    """Both views, all directions and a bank's one country are accepted, as by finAPI."""
    same = {"view": "bankView", "direction": "all", "isNew": "false"}
    assert listed(web, "transactions", **same) == listed(web, "transactions", view="userView")
    assert listed(web, "banks", location="DE") == listed(web, "banks")


def test_records_are_found_by_the_ids_of_others(web: Web) -> None:
    """Transactions are found by account, label and id, accounts and connections by each other's ids."""
    accounts, [connection] = listed(web, "accounts"), listed(web, "bankConnections")
    label = listed(web, "labels")[0]
    for account in accounts:
        found = listed(web, "transactions", accountIds=account["id"])
        assert found and {entry["accountId"] for entry in found} == {account["id"]}
    assert all(label in entry["labels"] for entry in listed(web, "transactions", labelIds=label["id"]))
    ids = ",".join(str(entry["id"]) for entry in found[:2])
    assert listed(web, "transactions", ids=ids) == found[:2]
    assert listed(web, "accounts", bankConnectionIds=connection["id"]) == accounts
    assert listed(web, "bankConnections", ids="1") == []


def test_lists_are_ordered_as_asked(web: Web) -> None:
    """The first order counts first; without a direction it ascends."""
    found = listed(web, "transactions", order=["counterpartName", "amount,desc"])
    assert found == sorted(found, key=lambda entry: (entry["counterpartName"], -entry["amount"]))
    assert [bank["name"] for bank in listed(web, "banks", order="name,asc")][0] == "BBBank"


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("transactions", {"minBankBookingDate": "yesterday"}),
        ("transactions", {"minAmount": "NaN"}),
        ("transactions", {"maxAmount": "much"}),
        ("transactions", {"direction": "up"}),
        ("transactions", {"view": "myView"}),
        ("transactions", {"accountIds": "1,x"}),
        ("transactions", {"isNew": "perhaps"}),
        ("transactions", {"order": "mood"}),
        ("transactions", {"order": "amount,up"}),
        ("accounts", {"accountTypes": "PIGGY_BANK"}),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_400(web: Web, path: str, params: dict[str, str]) -> None:
    """A filter whose value is none of its kind is refused, and the message names it."""
    answer = web("GET", f"/api/v2/{path}", web.user(), params=params)
    assert answer.status_code == 400 and next(iter(params)) in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "transactions"),
        ("GET", "accounts"),
        ("GET", "banks"),
        ("GET", "banks/277701"),
        ("GET", "users"),
        ("DELETE", "users"),
    ],
)
def test_an_unknown_parameter_is_400(web: Web, method: str, path: str) -> None:
    """A misspelt parameter is refused with the ones that are known, so that no test passes on it."""
    answer = web(method, f"/api/v2/{path}", web.user(), params={"minBankingDate": "2025-01-01"})
    [error] = answer.json()["errors"]
    assert (answer.status_code, error["code"]) == (400, "BAD_REQUEST")
    assert error["message"].startswith("Unknown parameter 'minBankingDate': it takes ")
    assert ("minBankBookingDate" in error["message"]) == (path == "transactions")


@pytest.mark.parametrize("path", ["banks", "accounts", "transactions", "bankConnections", "categories", "labels"])
def test_each_record_is_there_by_its_id(web: Web, path: str) -> None:
    """What a list has is found alone too, and what it does not have is 404."""
    token = web.user()
    for record in listed(web, path)[:3]:
        assert web("GET", f"/api/v2/{path}/{record['id']}", token).json() == record
    missing = web("GET", f"/api/v2/{path}/12", token)
    assert (missing.status_code, missing.json()["errors"][0]["code"]) == (404, "ENTITY_NOT_FOUND")


def test_categories_are_a_tree_that_transactions_use(web: Web) -> None:
    """Each category names its parent and children, and all but what a test adds has one."""
    categories = {each["id"]: each for each in listed(web, "categories")}
    for each in categories.values():
        assert all(categories[child]["parentName"] == each["name"] for child in each["children"])
    assert all(entry["category"]["id"] in categories for entry in listed(web, "transactions"))


# What its users have.


def test_data_reach_up_to_today(web: Web) -> None:
    """Half a year ends with today by the sandbox's clock, and moving the clock adds days and takes none."""
    web.sandbox.today = SOME_DAY
    before = listed(web, "transactions")
    balance = listed(web, "accounts")[0]["balance"]
    assert before[0]["bankBookingDate"] > "2025-06-26" and before[-1]["bankBookingDate"] == "2025-01-01"
    web.sandbox.advance(40 * 86400)
    after = listed(web, "transactions")
    added = after[: -len(before)]
    assert after[-len(before) :] == before and max(entry["bankBookingDate"] for entry in added) > "2025-08-01"
    first = listed(web, "accounts")[0]
    moved = sum(entry["amount"] for entry in added if entry["accountId"] == first["id"])
    assert first["balance"] == pytest.approx(balance + moved)


def test_today_may_be_set_at_any_time(web: Web) -> None:
    """Data end with the day that is set, and begin half a year before it, whatever was read before."""
    for today, first in (
        (SOME_DAY, "2025-01-01"),
        (date(2024, 2, 29), "2023-09-01"),
        (date(2026, 12, 31), "2026-07-01"),
    ):
        web.sandbox.today = today
        days = [entry["bankBookingDate"] for entry in listed(web, "transactions")]
        assert days[-1] == first and str(today - timedelta(9)) < days[0] <= str(today)
    web.sandbox.reset()
    assert listed(web, "transactions")[-1]["bankBookingDate"] == str(first_day(date.today()))


def test_today_is_the_machines_unless_said() -> None:
    """A sandbox of which nothing is said has the last days of this machine, frozen time included."""
    with freezegun.freeze_time("2031-05-05 12:00"), Sandbox() as sandbox, sandbox.session(ANNA) as anna:
        newest = anna.get("/api/v2/transactions").json()["transactions"][0]["bankBookingDate"]
        assert "2031-05-01" <= newest <= "2031-05-05"
        updated = anna.get("/api/v2/bankConnections").json()["connections"][0]["interfaces"][0]
        assert updated["lastSuccessfulUpdate"].startswith("2031-05-05")


def test_accounts_and_transactions_can_be_added(web: Web) -> None:
    """They are listed with what was there, found by the filters, and counted in the balance."""
    sandbox = web.sandbox
    before = {account["id"]: account["balance"] for account in listed(web, "accounts")}
    added = sandbox.add_account("Anna.Schmidt", "Depot", kind="SECURITY", balance=100.5, iban="DE02100500000024290661")
    entry = sandbox.add_transaction(ANNA, -0.5, account=added["id"], counterpart="Bank", purpose="Fee")
    first = sandbox.add_transaction(ANNA, "12.34", counterpart="REWE Markt")
    after = {account["id"]: account["balance"] for account in listed(web, "accounts")}
    usual = next(iter(before))
    assert after == {**before, usual: pytest.approx(before[usual] + 12.34), added["id"]: 100.0}
    assert listed(web, "transactions", accountIds=added["id"]) == [entry]
    assert first in listed(web, "transactions", categoryIds="391", minAmount="12.34", maxAmount="12.34")
    assert added["id"] in listed(web, "bankConnections")[0]["accountIds"]
    assert [account["iban"] for account in listed(web, "accounts", accountTypes="SECURITY")] == [
        "DE02100500000024290661"
    ]


def test_a_user_may_have_only_what_is_added(sandbox: Sandbox) -> None:
    """A user made empty has no account, no connection and no transaction until a test adds them."""
    sandbox.add_user("emil", "his-password", empty=True)
    with sandbox.session("emil") as emil:
        for path, name in (
            ("accounts", "accounts"),
            ("transactions", "transactions"),
            ("bankConnections", "connections"),
        ):
            assert emil.get(f"/api/v2/{path}").json()[name] == []
        account = sandbox.add_account("emil", balance=10)
        sandbox.add_transaction("emil", 5, account=account["id"])
        assert [each["balance"] for each in emil.get("/api/v2/accounts").json()["accounts"]] == [15]


def test_a_transaction_of_a_later_day_comes_with_the_clock(web: Web) -> None:
    """A standing order of tomorrow is not there before tomorrow."""
    web.sandbox.today = SOME_DAY
    web.sandbox.add_transaction(ANNA, -77.77, day=SOME_DAY + timedelta(1))
    assert listed(web, "transactions", minAmount="-77.77", maxAmount="-77.77") == []
    web.sandbox.advance(86400)
    assert len(listed(web, "transactions", minAmount="-77.77", maxAmount="-77.77")) == 1


def test_what_cannot_be_added_is_told(sandbox: Sandbox) -> None:
    """An unknown user, an account of nobody and a day that is full are errors at once."""
    with pytest.raises(Refusal, match="nobody"):
        sandbox.add_account("nobody")
    with pytest.raises(Refusal, match="account"):
        sandbox.add_transaction(ANNA, 1, account=5)
    for _ in range(80):
        sandbox.add_transaction(ANNA, 1)
    with pytest.raises(ValueError, match="at most 80"):
        sandbox.add_transaction(ANNA, 1)


def test_what_was_added_goes_with_its_user_and_with_a_reset(web: Web) -> None:
    """Neither a user of the same name nor the next test finds what an earlier one had."""
    for end in (
        lambda: (web.sandbox.remove_user(ANNA), web.sandbox.add_user(ANNA, PASSWORD)),
        lambda: (web("DELETE", "/api/v2/users", web.user()), web.sandbox.add_user(ANNA, PASSWORD)),
        web.sandbox.reset,
    ):
        web.sandbox.add_account(ANNA)
        assert len(listed(web, "accounts")) == 4
        end()
        assert len(listed(web, "accounts")) == 3


# What a test can ask for.


def test_a_standing_answer_is_given_until_reset(web: Web) -> None:
    """What the sandbox lacks is answered as told, every time; a planned answer and a later one go before it."""
    web.sandbox.answer("/payments", 201, body={"id": 7}, method="POST")
    web.sandbox.answer_next(503, path="/payments")
    token = web.user()
    answers = [web("POST", "/api/v2/payments", token).status_code for _ in range(3)]
    assert answers == [503, 201, 201] and web("GET", "/api/v2/payments", token).status_code == 404
    web.sandbox.answer("/payments", body={"payments": []})
    assert web("POST", "/api/v2/payments", token).json() == {"payments": []}
    web.sandbox.reset()
    assert web("POST", "/api/v2/payments", web.user()).status_code == 404


def test_a_standing_answer_wants_a_living_token(web: Web) -> None:
    """A success is for a living access token only; an outage is for everybody, and OAuth calls need none."""
    web.sandbox.answer("/payments")
    web.sandbox.answer("/accounts", 502, headers={"Retry-After": "3"})
    refused = web("GET", "/api/v2/payments", "dead-token")
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_token")
    down = web("GET", "/api/v2/accounts")
    assert (down.status_code, down.headers["Retry-After"]) == (502, "3")
    web.sandbox.answer(TOKEN, body={"access_token": "planned", "token_type": "bearer", "expires_in": 60})
    assert web.client() == "planned"


def test_planned_answers_that_were_not_asked_for_are_named(web: Web) -> None:
    """A test can see to it that the trouble which it planned did come."""
    web.sandbox.answer_next(503, path="/banks", times=2)
    web.sandbox.answer_next("drop", method="DELETE", grant_type="password")
    web("GET", "/api/v2/banks")
    assert web.sandbox.planned == ["503 for any call on /banks", "drop for DELETE on any path, grant password"]
    with pytest.raises(AssertionError, match="never asked for: 503 for any call on /banks; drop"):
        web.sandbox.assert_all_planned_used()
    web("GET", "/api/v2/banks")
    web.sandbox.answer_next(200, method="GET", path="/banks")
    web("GET", "/api/v2/banks")
    assert web.sandbox.planned == ["drop for DELETE on any path, grant password"]
    web.sandbox.reset()
    web.sandbox.assert_all_planned_used()


def test_calls_have_what_was_sent_without_secrets(web: Web) -> None:
    """Query, headers and JSON body of a call can be asserted; what is secret in them is not there."""
    client = web.client()
    headers = {"PSU-IP-Address": "192.0.2.7", "Cookie": "session=abc"}
    web("GET", "/api/v2/banks?search=&ids=1&ids=2&page=3", client, headers=headers)
    user = {"id": "new", "password": "secret-1", "deep": [{"clientSecret": "s", "passwordChangeToken": "t", "n": 1}]}
    web("POST", "/api/v2/users", client, json=user)
    web("POST", "/api/v2/users", client, data="{", headers={"Content-Type": "application/json"})
    read, made, broken = web.sandbox.calls[1:]
    assert read.params == {"search": "", "ids": ["1", "2"], "page": "3"} and read.json is None
    assert (read.headers["psu-ip-address"], read.headers["Cookie"]) == ("192.0.2.7", "[redacted]")
    assert read.headers["Authorization"] == "[redacted]"
    hidden = {"clientSecret": "[redacted]", "passwordChangeToken": "[redacted]", "n": 1}
    assert made.json == {"id": "new", "password": "[redacted]", "deep": [hidden]} and broken.json is None
    assert client not in str([(call, dict(call.headers)) for call in web.sandbox.calls]) and hash(read)


def test_environ_leads_a_program_here(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its variables are all that from_env() needs, for the client or a user, past the machine's proxies."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    for username in (None, "ANNA.schmidt"):
        with monkeypatch.context() as patch:
            for name, value in sandbox.environ(username).items():
                patch.setenv(name, value)
            with FinapiSession.from_env() as session:
                assert session.get(ECHO).json()["username"] == (username and ANNA)
    with pytest.raises(Refusal, match="nobody"):
        sandbox.environ("nobody")


def test_environ_tells_the_api_version_and_leaves_proxies_alone(sandbox: Sandbox) -> None:
    """A client of version 2 finds its OAuth path, and a machine without proxies gets no exception from them."""
    sandbox.api_version = 2
    variables = sandbox.environ()
    assert variables["FINAPI_ENVIRONMENT"] == f"{sandbox.base_url}/api/v2/oauth" and "no_proxy" not in variables
    assert "FINAPI_USERNAME" not in variables


def test_a_kept_certificate_is_trusted_by_the_next_start(tmp_path: Path) -> None:
    """Whoever trusts the file once trusts every later sandbox on it; its key is the owner's alone."""
    path = tmp_path / "ca.pem"
    with Sandbox(ca_file=str(path)) as sandbox:
        assert sandbox.ca_bundle == str(path)
    kept = path.read_bytes()
    with Sandbox(ca_file=str(path)) as sandbox, sandbox.session() as session:
        assert session.get("/api/v2/banks").ok
    assert path.read_bytes() == kept and b"PRIVATE" not in kept
    assert stat.S_IMODE(Path(f"{path}.key").stat().st_mode) == 0o600


def test_a_certificate_that_is_none_is_told(tmp_path: Path, sandbox: Sandbox) -> None:
    """A file that holds no authority, and one whose key is gone, are errors; nothing is written over them."""
    path = tmp_path / "ca.pem"
    path.write_text("notes")
    with pytest.raises(FileNotFoundError):
        Sandbox(ca_file=str(path)).start()
    Path(f"{path}.key").write_text("more notes")
    with pytest.raises(ValueError, match="hold no certificate authority"):
        Sandbox(ca_file=str(path)).start()
    assert path.read_text() == "notes"


def test_a_start_that_fails_leaves_no_certificate(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the port is taken, the certificate that was made for the start is removed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OSError):
        Sandbox(port=int(sandbox.base_url.rpartition(":")[2])).start()
    assert list(tmp_path.iterdir()) == []


def test_planned_statuses_come_once_in_order_and_by_path(web: Web) -> None:
    """A plan answers the calls it fits, as often as said, without judging them."""
    web.sandbox.answer_next(503, headers={"Retry-After": "7"}, path="/oauth/token", times=2)
    web.sandbox.answer_next(429, grant_type="password")
    web.sandbox.answer_next(599, body={"odd": True}, path="/banks")
    web.sandbox.answer_next(202, body="plain", headers={"Content-Type": "text/plain", "X-Request-Id": "theirs"})
    assert web("GET", "/api/v2/banks").json() == {"odd": True}
    plain = web("GET", "/api/v2/banks")
    assert (plain.status_code, plain.text, plain.headers["X-Request-Id"]) == (202, "plain", "theirs")
    unavailable = web("POST", TOKEN, data=form())
    assert (unavailable.status_code, unavailable.headers["Retry-After"]) == (503, "7")
    assert unavailable.json()["error"] and web("POST", TOKEN, data=form()).status_code == 503
    assert web("POST", TOKEN, data=form()).status_code == 200
    assert web("POST", TOKEN, data=sign_in(password="wrong")).status_code == 429
    assert web.sandbox.users[ANNA].failed_logins == 0


def test_a_planned_error_on_an_api_call_has_finapis_shape(web: Web) -> None:
    """Without a body of its own a planned error reads like finAPI's, a planned success is an empty object."""
    web.sandbox.answer_next(510)
    web.sandbox.answer_next(500)
    web.sandbox.answer_next(200)
    for status in (510, 500):
        answer = web("GET", "/api/v2/banks")
        assert answer.status_code == status and answer.json()["errors"][0]["type"] == "TECHNICAL"
    assert web("GET", "/api/v2/banks").json() == {}


@pytest.mark.parametrize(
    ("answer", "content"),
    [("html", b"<!DOCTYPE"), ("empty", b""), ("junk", b"\xff\xfe"), ("truncated", b'{"access_')],
)
def test_junk_comes_with_status_200(web: Web, answer: Any, content: bytes) -> None:
    """Bodies that are no token come as if nothing were wrong, on a connection that lives on."""
    web.sandbox.answer_next(answer, path="/oauth/token")
    got = web("POST", TOKEN, data=form())
    assert got.status_code == 200 and got.content.startswith(content)
    with pytest.raises(requests.JSONDecodeError):
        got.json()
    assert web("POST", TOKEN, data=form()).json()["access_token"]
    assert web.sandbox.connections == 1


@pytest.mark.parametrize(
    ("answer", "status", "judged"), [("drop", None, False), ("lose", None, True), ("cut", 200, True)]
)
def test_connections_break_where_told(web: Web, answer: Any, status: int | None, judged: bool) -> None:
    """A dropped call is not judged, a lost or cut one is; the next call finds a new connection."""
    first = web("POST", TOKEN, data=sign_in()).json()
    web.sandbox.answer_next(answer, grant_type="refresh_token")
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        web("POST", TOKEN, data=refresh(first["refresh_token"]))
    call = web.sandbox.calls[-1]
    assert (call.status, call.grant_type, call.username) == (status, "refresh_token", ANNA)
    assert (web("GET", ECHO, first["access_token"]).status_code == 401) == judged
    assert web.sandbox.connections == 2


@pytest.mark.parametrize(
    ("answer", "options"),
    [(199, {}), (600, {}), ("odd", {}), ("drop", {"body": "x"}), ("html", {"headers": {}})],
)
def test_a_plan_that_cannot_be_is_refused(sandbox: Sandbox, answer: Any, options: dict[str, Any]) -> None:
    """A status that does not exist, a strange name, or a body where none can be is a ValueError."""
    with pytest.raises(ValueError, match="answer|body"):
        sandbox.answer_next(answer, **options)


def test_calls_are_recorded_and_counted_without_secrets(web: Web) -> None:
    """Each call is there with method, path, status, grant, caller and four characters of its token."""
    client, user = web.client(), web.user()
    web("GET", "/api/v2/accounts", user)
    web("GET", "/api/v2/accounts", "not-a-token-of-ours")
    web("POST", REVOKE, client, data={"token": user})
    web("POST", REVOKE, client, data={"token": client})
    calls, sandbox = web.sandbox.calls, web.sandbox
    assert [call.status for call in calls] == [200, 200, 200, 401, 200, 200]
    assert [call.kind for call in calls] == ["client", "user", "user", None, "client", "client"]
    assert [call.token for call in calls[:4]] == [client[:4], user[:4], user[:4], "not-"]
    assert [call.revoked for call in calls[4:]] == [ANNA, "client"]
    assert sandbox.count() == 6 and sandbox.count(TOKEN) == 2 and sandbox.count(grant_type="password") == 1
    assert sandbox.count("/accounts", method="GET", status=401) == 1 and sandbox.count(kind="user", username=ANNA) == 2
    assert sandbox.count(revoked="client") == 1
    assert client not in repr(calls) and user not in repr(calls) and PASSWORD not in repr(calls)


def test_latency_is_for_all_or_by_path(web: Web) -> None:
    """Answers wait as long as told, on the paths told."""
    web.sandbox.latency = {"/oauth/token": 0.2}
    began = time.perf_counter()
    web("GET", "/nowhere")
    between = time.perf_counter()
    web.client()
    assert between - began < 0.15 and time.perf_counter() - between >= 0.2
    web.sandbox.latency = 0.2
    began = time.perf_counter()
    web("GET", "/nowhere")
    assert time.perf_counter() - began >= 0.2


def test_the_clock_is_the_sandboxs_own(web: Web) -> None:
    """A test that freezes or moves its own time does not expire tokens; advance() does."""
    with freezegun.freeze_time("2030-01-01") as frozen:
        token = web.client()
        frozen.move_to(datetime(2031, 1, 1))
        assert web("GET", ECHO, token).status_code == 200
    web.sandbox.advance(3599)
    assert web("POST", TOKEN, data=form()).json()["expires_in"] == 0
    web.sandbox.advance(1.5)
    assert web("GET", ECHO, token).status_code == 401


def test_a_clock_of_ones_own() -> None:
    """The clock that is passed in is the one that counts."""
    clock = Clock()
    with Sandbox(clock=clock, lifetime=60) as sandbox:
        web = Web(sandbox)
        with web.session:
            clock.now += 0.4
            token = web.client()
            assert web("GET", ECHO, token).status_code == 200
            clock.now += 60
            assert web("GET", ECHO, token).status_code == 401


def test_users_and_secret_are_at_hand(web: Web) -> None:
    """Locking, verifying, removing, changing and ending tokens all reach the server."""
    sandbox = web.sandbox
    sandbox.add_user("new", "secret", verified=False)
    sandbox.verify_user("new")
    assert web("POST", TOKEN, data=sign_in("new", "secret")).status_code == 200
    sandbox.lock_user("new")
    assert web("POST", TOKEN, data=sign_in("new", "secret")).status_code == 423
    sandbox.change_password("new", "other")
    assert web("POST", TOKEN, data=sign_in("new", "other")).status_code == 200
    sandbox.remove_user("new")
    assert list(sandbox.users) == [ANNA]
    for end in (sandbox.expire_tokens, sandbox.revoke_tokens):
        client, user = web.client(), web.user()
        end(ANNA)
        assert [web("GET", ECHO, token).status_code for token in (client, user)] == [200, 401]
    sandbox.change_client_secret("rotated")
    assert web("POST", TOKEN, data=form()).status_code == 401


def test_reset_puts_everything_back(web: Web) -> None:
    """Settings, users, tokens, time, plans, calls and connections are as after the start."""
    sandbox = web.sandbox
    token = web.client()
    sandbox.lifetime, sandbox.latency, sandbox.api_version = 5, 0.1, 2
    sandbox.change_client_secret("rotated")
    sandbox.change_password(ANNA, "other")
    sandbox.add_user("new", "secret")
    sandbox.answer_next(500, times=3)
    sandbox.advance(1000)
    sandbox.reset()
    assert (sandbox.calls, sandbox.connections, list(sandbox.users)) == ([], 0, [ANNA])
    assert web("GET", ECHO, token).status_code == 401
    assert web("POST", TOKEN, data=sign_in()).json()["expires_in"] == 3600
    assert sandbox.connections == 1 and sandbox.latency == 0


def test_a_hanging_client_holds_up_nobody(web: Web) -> None:
    """Someone who connects and says nothing does not block others, is not counted, and ends with reset()."""
    with socket.create_connection(("127.0.0.1", int(web.sandbox.base_url.rpartition(":")[2]))) as silent:
        began = time.perf_counter()
        web.client()
        assert time.perf_counter() - began < 1
        assert web.sandbox.connections == 1
        web.sandbox.reset()
        silent.settimeout(2)
        assert silent.recv(1) == b""


@pytest.mark.parametrize(
    "head",
    [
        b"POST /oauth/token HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf",
        b"POST /oauth/token HTTP/1.1\r\nContent-Length: junk\r\n\r\n",
        b"POST /oauth/token HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_broken_requests_end_their_connection_quietly(
    sandbox: Sandbox, head: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """A body that is cut off or cannot be read gets no answer, prints nothing and is no call."""
    context = ssl.create_default_context(cafile=sandbox.ca_bundle)
    address = ("127.0.0.1", int(sandbox.base_url.rpartition(":")[2]))
    with (
        socket.create_connection(address) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as wire,
    ):
        wire.settimeout(5)
        wire.sendall(head)
        socket.socket.shutdown(wire, socket.SHUT_WR)
        try:
            received = wire.recv(100)
        except ssl.SSLError:  # A cut inside TLS is answered with an alert.
            received = b""
    assert received == b""
    sandbox.reset()
    assert sandbox.calls == [] and capfd.readouterr().err == ""


def test_a_client_may_ask_to_close(web: Web) -> None:
    """Connection: close is said back, and the next call needs a new connection."""
    assert web("GET", "/nowhere", headers={"Connection": "close"}).headers["Connection"] == "close"
    assert "Connection" not in web("GET", "/nowhere").headers
    assert web.sandbox.connections == 2


def test_nothing_is_printed(web: Web, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither calls nor refused handshakes leave a trace on the terminal."""
    web.client()
    web("GET", "/nowhere")
    with requests.Session() as distrustful, pytest.raises(requests.exceptions.SSLError):
        distrustful.trust_env = False
        distrustful.get(web.sandbox.base_url, timeout=5)
    assert capfd.readouterr() == ("", "")


def test_errors_of_the_sandbox_itself_are_shown(
    sandbox: Sandbox, web: Web, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A mistake in the server is not swallowed like a client's bad manners."""

    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("our own mistake")

    monkeypatch.setattr("finapi_session.testing.sandbox.described", broken)
    with pytest.raises(requests.ConnectionError):
        web("GET", "/nowhere")
    sandbox.reset()
    assert "our own mistake" in capfd.readouterr().err


def test_stop_is_prompt_and_leaves_nothing() -> None:
    """With an idle connection and an answer in waiting, stop() ends both, port, thread and file."""
    sandbox = Sandbox(latency={"/slow": 60})
    sandbox.start()
    assert sandbox.start() is sandbox
    path, port = sandbox.ca_bundle, int(sandbox.base_url.rpartition(":")[2])
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    web = Web(sandbox)
    failures: list[Exception] = []

    def wait() -> None:
        other = Web(sandbox)
        try:
            with other.session:
                other("GET", "/slow")
        except requests.RequestException as error:
            failures.append(error)

    with web.session:
        web.client()
        waiting = threading.Thread(target=wait)
        waiting.start()
        while sandbox.connections < 2:
            time.sleep(0.01)
        began = time.perf_counter()
        sandbox.stop()
        assert time.perf_counter() - began < 1
        waiting.join(5)
    sandbox.stop()
    assert len(failures) == 1 and not os.path.exists(path)
    assert not any(thread.name == "finapi-sandbox" and not thread.daemon for thread in threading.enumerate())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    for name in ("base_url", "ca_bundle", "connections", "environment"):
        with pytest.raises(RuntimeError, match="start"):
            getattr(sandbox, name)


def test_it_starts_again_with_its_users_on_a_port_of_choice() -> None:
    """Stopped and started it has forgotten nothing; a port that is taken is an OSError, not the end."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use|permitted|access"):
            Sandbox(port=port).start()
    sandbox = Sandbox(port=port)
    for _ in range(2):
        with sandbox:
            assert sandbox.base_url == f"https://127.0.0.1:{port}"
            web = Web(sandbox)
            with web.session:
                web.user()
    assert len(sandbox.calls) == 2
    sandbox.reset()
    assert sandbox.calls == []


# Sessions.


def test_a_session_trusts_it_whatever_the_machine_sets(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a foreign CA bundle and a proxy in the environment client and user sessions still get through."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", os.devnull)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with sandbox.session() as client, sandbox.session("ANNA.schmidt") as anna:
        assert client.get("/api/v2/banks").status_code == 200
        assert anna.get("/api/v2/users").json()["id"] == ANNA
    assert sandbox.count(grant_type="password") == 1


def test_a_session_takes_options_and_other_credentials(sandbox: Sandbox) -> None:
    """Options go through to FinapiSession, and what is given goes before what the sandbox knows."""
    other = sandbox.session(ANNA, "wrong", client_id="other", client_secret="x", leeway=5)
    with other as session, pytest.raises(requests.RequestException):
        session.fetch_token()
    assert [call.status for call in sandbox.calls] == [401]
    with sandbox.session("nobody") as session, pytest.raises(requests.RequestException):
        session.fetch_token()


def test_the_package_is_lazy_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names load on use; a missing extra is named, another missing module is not mistaken for it."""
    assert {"Sandbox", "StoreContract", "Call"} <= set(dir(finapi_session.testing))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        finapi_session.testing.Nothing  # noqa: B018
    monkeypatch.delitem(vars(finapi_session.testing), "Sandbox", raising=False)
    for missing, error in (("trustme", ImportError), ("colorsys", ModuleNotFoundError)):

        def fail(name: str, package: str, missing: str = missing) -> None:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

        monkeypatch.setattr(finapi_session.testing, "import_module", fail)
        with pytest.raises(error) as caught:
            finapi_session.testing.Sandbox  # noqa: B018
        assert ("finapi-session[sandbox]" in str(caught.value)) == (missing == "trustme")


def test_the_client_owns_itself(authority: Authority) -> None:
    """A living client token is the client's, an unknown one nobody's."""
    token = str(authority.token(form())["access_token"])
    assert authority.check(token) == authority.owner(token) == CLIENT
    assert authority.owner("unknown") is None and authority.owner(None) is None


def test_the_server_speaks_without_delay(web: Web) -> None:
    """Small answers on a kept connection are not held back by Nagle's algorithm (40 ms each)."""
    token = web.client()
    began = time.perf_counter()
    for _ in range(50):
        web("POST", ECHO, token, data=b"x")
    assert (time.perf_counter() - began) / 50 < 0.03
    assert web.sandbox.connections == 1
