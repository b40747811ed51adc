"""Every public name, used as users would and checked by ``mypy --strict``. Nothing here is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ContextManager, Literal

import httpx
import pytest
import requests
from urllib3.util import Retry

import finapi_session
from finapi_session import (
    LIVE,
    LIVE_V2,
    SANDBOX,
    SANDBOX_V2,
    AccessDeniedError,
    ApiError,
    AuthorizationApi,
    BearerAuth,
    EncryptedStore,
    Environment,
    ErrorDetail,
    FileStore,
    FinapiError,
    FinapiSession,
    InvalidClientError,
    InvalidGrantError,
    KeyringStore,
    LoginRequiredError,
    MemoryStore,
    ProblemDetail,
    RedisStore,
    RevocationError,
    SQLStore,
    Token,
    TokenEndpointError,
    TokenError,
    TokenEvent,
    TokenStore,
    UserLockedError,
    open_store,
    raise_for_error,
)
from finapi_session.httpx import FinapiAuth
from finapi_session.testing import Call, Sandbox, StoreContract

if TYPE_CHECKING:
    from redis import Redis
    from sqlalchemy import Engine
    from typing_extensions import assert_type


class DictStore:
    """A store as somebody else writes it, without a base class."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        """Return a value."""
        return self.values.get(key)

    def set(self, key: str, value: str) -> None:
        """Keep a value."""
        self.values[key] = value

    def delete(self, key: str) -> None:
        """Drop a value."""
        self.values.pop(key, None)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Lock nothing."""
        yield


class MySession(FinapiSession):
    """A session with something of one's own."""

    def accounts(self) -> Any:
        """Return the accounts."""
        return self.get("/api/v2/accounts").json()["accounts"]


def sessions(token: Token) -> Iterator[FinapiSession]:
    """Make sessions in every way."""
    yield FinapiSession("id", "secret")
    yield FinapiSession("id", lambda: "secret", username="alice", password=lambda: "her-password")
    for environment in (
        SANDBOX,
        LIVE,
        SANDBOX_V2,
        LIVE_V2,
        "live",
        Environment("https://finapi.example.com"),
    ):
        yield FinapiSession("id", "secret", environment=environment, timeout=(3.05, 60), retries=Retry(total=2))
    yield FinapiSession("id", "secret", username="alice", token=token, store=FileStore(), revoke_on_close=True)
    yield FinapiSession("id", "secret", username="alice", token={"access_token": "t", "expires_in": 60}, leeway=5)
    yield FinapiSession("id", "secret", renew_in_background=True)
    yield FinapiSession("id", "secret", request_id="mine", retries=0, raise_api_errors=True, on_event=count, timeout=5)
    yield FinapiSession("id", "secret", request_id=lambda: "mine", timeout=None, store=DictStore(), on_event=print)
    yield FinapiSession.from_env(environment=LIVE, store=MemoryStore(lock_timeout=1))
    yield FinapiSession.from_env(username=None, leeway=5, on_event=count, token=token, raise_api_errors=True)


def use(session: MySession) -> None:
    """Use a session as requests' own, and its further methods."""
    with session as client, client.user("alice", "her-password") as alice, client.user("bob"):
        assert_type(client, MySession)
        assert_type(alice, MySession)
        assert_type(MySession.from_env(), MySession)
        for page in alice.pages("/api/v2/transactions", params={"accountIds": [1, 2]}, timeout=5):
            assert_type(page, requests.Response)
        assert_type(alice.get("/api/v2/accounts", params={"page": 1}, timeout=5), requests.Response)
        assert_type(alice.fetch_token(), Token)
        alice.accounts()
        client.get("/api/v2/accounts", auth=alice.auth)
        client.send(client.prepare_request(requests.Request("GET", "/api/v2/banks")), stream=True)
        as_requests: requests.Session = client
        as_requests.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=50))
        environment: Environment = client.environment
        assert_type(environment, Environment)
        client.request_id = "mine"
        client.request_id = lambda: "mine"
        request_id: str = client.request_id()
        print(request_id)
        alice.revoke()
    session.close()


def by_hand(session: FinapiSession) -> None:
    """Make finAPI's two OAuth calls."""
    api = AuthorizationApi(session)
    assert_type(api.get_token("client_credentials", "id", "secret", x_request_id="mine"), Token)
    token = api.get_token("password", "id", "secret", username="alice", password="her-password")
    token = api.get_token("refresh_token", "id", "secret", refresh_token=token.refresh_token)
    api.revoke_token(token.access_token, token_type_hint="access_token", x_request_id="mine")
    api.revoke_token(token.access_token)


def tokens(token: Token) -> tuple[Token, ...]:
    """Make, keep and look at tokens."""
    assert_type(token.access_token, str)
    assert_type(token.refresh_token, "str | None")
    assert_type(token.expires_at, "float | None")
    assert_type(token.issued_at, "float | None")
    assert_type(token.scope, "str | None")
    assert_type(token.lifetime, float)
    assert_type(token.expired(0.0), bool)
    assert_type(token.renew_at(60), float)
    header: str = token.authorization
    return Token.loads(token.dumps()), Token.from_dict(token.to_dict(), issued_at=1.0), Token(header[7:])


def environments() -> tuple[str, ...]:
    """Make environments, and ask them."""
    here = Environment("https://finapi.example.com", "/api/v2/oauth", trusted=("https://webform.example.com",))
    assert_type(here.trusts(here.absolute("/api/v2/banks")), bool)
    return (
        here.base_url,
        here.oauth_path,
        *here.trusted,
        here.token_url,
        Environment.named("live").revoke_url,
    )


def errors(session: FinapiSession) -> object:
    """Catch every error, and read what it says."""
    try:
        raise_for_error(session.get("/api/v2/accounts"))
    except (
        InvalidClientError,
        InvalidGrantError,
        AccessDeniedError,
        UserLockedError,
        LoginRequiredError,
    ) as error:
        assert_type(error.status, "int | None")
        return error.code
    except TokenEndpointError as error:
        return assert_type(error.retry_after, "float | None")
    except TokenError as error:
        return error.again()
    except ApiError as error:
        http: requests.HTTPError = error
        details: tuple[ErrorDetail, ...] = error.errors
        formerly: tuple[ProblemDetail, ...] = details
        return [(detail.code, detail.type, detail.message, detail.field) for detail in formerly], http.response
    except RevocationError as error:
        return error.description
    except FinapiError as error:
        as_requests: requests.RequestException = error
        return error.request_id, error.advice, as_requests
    return None


def count(event: TokenEvent) -> None:
    """Listen to events."""
    if event.kind == "store_failed":
        assert_type(event.kind, Literal["store_failed"])
    print(event.kind, event.identity, event.environment, event.reason)
    print((event.expires_in or 0.0) + (event.milliseconds or 0.0), event.request_id)


def stores(redis: Redis, engine: Engine) -> list[TokenStore]:
    """Make every store, and use one."""
    sql = SQLStore(engine, "tokens", lock_timeout=5)
    sql.create_table()
    files = FileStore(Path("tokens"), lock_timeout=5)
    made: list[TokenStore] = [
        MemoryStore(),
        files,
        RedisStore(redis, "prefix:", lease=60, expire_after=90 * 86_400),
        sql,
        KeyringStore("service", plaintext=True),
        open_store("file:tokens"),
    ]
    made += [
        EncryptedStore(files, b"key"),
        EncryptedStore(sql, ["new", "old"]),
        EncryptedStore(DictStore(), lambda: "key"),
    ]
    with RedisStore(redis).lock("key") as held:
        held.extend()
    for store in made:
        lock: ContextManager[object] = store.lock("key")
        with lock:
            store.set("key", store.get("key") or "value")
            store.delete("key")
    gone: int = files.purge(90 * 86_400.0) + sql.purge(older_than=3600)
    print(gone)
    return made


def elsewhere(auth: BearerAuth) -> requests.Response:
    """Use the auth with plain requests."""
    return requests.get(f"{SANDBOX.base_url}/api/v2/accounts", auth=auth, timeout=10)


async def over_httpx(session: FinapiSession) -> tuple[httpx.Response, httpx.Response]:
    """Use the auth with httpx."""
    auth: httpx.Auth = FinapiAuth(session)
    with httpx.Client(auth=auth, base_url=session.environment.base_url) as client:
        sent = client.get("/api/v2/accounts")
    async with httpx.AsyncClient(auth=auth) as asynchronous:
        return sent, await asynchronous.get("/api/v2/accounts", auth=FinapiAuth(session))


def local_finapi() -> list[Call]:
    """Use the sandbox as tests do."""
    with Sandbox(lifetime=60, sticky=False) as sandbox, sandbox.session("anna.schmidt", leeway=5) as session:
        sandbox.answer_next(503, path="/oauth/token", headers={"Retry-After": "1"}, times=2)
        sandbox.answer_next("drop")
        sandbox.expire_tokens("anna.schmidt")
        sandbox.revoke_tokens(kind="client", refresh=True)
        sandbox.add_user("bob", "his-password", verified=False)
        sandbox.lock_user("bob")
        sandbox.add_user("emil", "his-password", empty=True)
        account = sandbox.add_account("emil", kind="SAVINGS", balance=1.5)
        sandbox.add_transaction("emil", -2, account=account["id"], counterpart="Shop", purpose="Shopping")
        sandbox.answer("/payments", 201, body={"id": 7}, method="POST")
        assert_type(sandbox.planned, list[str])
        sandbox.assert_all_planned_used()
        assert_type(sandbox.environ("emil"), dict[str, str])
        assert_type(session, FinapiSession)
        assert_type(sandbox.count("/oauth/token", grant_type="password"), int)
        environment: Environment = sandbox.environment
        print(sandbox.base_url, sandbox.ca_bundle, sandbox.connections, environment)
        return sandbox.calls


class DictStoreContract(StoreContract):
    """The contract, run on a store of one's own; the name keeps pytest from collecting it here."""

    shared = False

    @pytest.fixture
    def make_store(self) -> partial[DictStore]:
        """Return what opens the store."""
        return partial(DictStore)


VERSION: str = finapi_session.__version__
