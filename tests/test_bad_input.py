"""Bad input is refused where it is given: by an error that names the argument, before anything is sent."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from finapi_session import (
    BearerAuth,
    EncryptedStore,
    Environment,
    FileStore,
    FinapiSession,
    MemoryStore,
    Token,
)
from finapi_session.testing import Sandbox

SECRET, PASSWORD = "client-secret-Q1", "password-Q2"
_NONE_OF_THESE = (SECRET, PASSWORD, "Q1", "Q2", "Q3")
_GOOD: dict[str, Any] = {"client_id": "id", "client_secret": SECRET}


class _Half:
    """A store that lacks two methods."""

    def get(self, key: str) -> None:
        """Find nothing."""

    def lock(self, key: str) -> Iterator[None]:
        """Lock nothing."""
        yield


class _Attributes(_Half):
    """A store two methods of which are no methods."""

    set = "Q3"
    delete = None


class _Callable:
    """What may be called, and returns *value*."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __call__(self) -> Any:
        """Return it."""
        return self.value


def _case(argument: str, value: object, says: str, error: type[Exception] = ValueError, **others: Any) -> Any:
    shown = repr(value)[:24] if not callable(value) else type(value).__name__
    return pytest.param({**_GOOD, **others, argument: value}, argument, says, error, id=f"{argument}-{shown}")


_HTTPS, _BARE = (
    "must be an https origin such as 'https://sandbox.finapi.io'",
    "without user, path, query or fragment",
)
_ID = "1 to 255 characters that a header can carry"

CONSTRUCTION = [
    _case("client_id", "", "must not be empty"),
    _case("client_id", None, "must be text, not NoneType", TypeError),
    _case("client_id", 7, "must be text, not int", TypeError),
    _case("client_id", b"id", "must be text, not bytes", TypeError),
    _case("client_id", lambda: "id", "must be text, not function", TypeError),
    _case("client_id", "\ud800", "must be text that UTF-8 can carry"),
    _case("client_secret", "", "must not be empty"),
    _case("client_secret", None, "must be text, not NoneType", TypeError),
    _case("client_secret", 7, "must be text, not int", TypeError),
    _case("client_secret", b"client-secret-Q1", "must be text, not bytes", TypeError),
    _case("client_secret", ["client-secret-Q1"], "must be text, not list", TypeError),
    _case("client_secret", "client-secret-Q1\ud800", "must be text that UTF-8 can carry"),
    _case("username", "", "must not be empty"),
    _case("username", 7, "must be text, not int", TypeError),
    _case("username", b"alice", "must be text, not bytes", TypeError),
    _case("username", "\udfff", "must be text that UTF-8 can carry"),
    _case("password", PASSWORD, "needs a username"),
    _case("password", lambda: PASSWORD, "needs a username"),
    _case("password", "", "needs a username"),
    _case("password", "", "must not be empty", username="alice"),
    _case("password", 7, "must be text, not int", TypeError, username="alice"),
    _case("password", b"password-Q2", "must be text, not bytes", TypeError, username="alice"),
    _case("password", "password-Q2\ud800", "must be text that UTF-8 can carry", username="alice"),
    _case(
        "environment",
        "production",
        "unknown environment 'production': use one of sandbox, live, sandbox-v2, live-v2",
    ),
    _case("environment", "", "unknown environment '': use one of sandbox"),
    _case("environment", "sandbox.finapi.io", "unknown environment 'sandbox.finapi.io': use one of sandbox"),
    _case("environment", None, "must be an Environment or its name, not NoneType", TypeError),
    _case("environment", 7, "must be an Environment or its name, not int", TypeError),
    _case("environment", b"live", "must be an Environment or its name, not bytes", TypeError),
    _case(
        "store",
        MemoryStore,
        "must be an object, not the class MemoryStore: write MemoryStore(...)",
        TypeError,
    ),
    _case("store", {}, "must have get, set, delete and lock; dict lacks set, delete, lock", TypeError),
    _case("store", "tokens.json", "no store is called so; it may be file, file:FOLDER"),
    _case("store", Path("."), "must have get, set, delete and lock", TypeError),
    _case("store", _Half(), "_Half lacks set, delete", TypeError),
    _case("store", _Attributes(), "_Attributes lacks set, delete", TypeError),
    _case("store", 0, "must have get, set, delete and lock", TypeError),
    _case("leeway", -1, "must be a finite number of seconds from 0 up, not -1"),
    _case("leeway", -0.001, "must be a finite number of seconds from 0 up"),
    _case("leeway", math.inf, "must be a finite number of seconds from 0 up, not inf"),
    _case("leeway", -math.inf, "must be a finite number of seconds from 0 up"),
    _case("leeway", math.nan, "must be a finite number of seconds from 0 up, not nan"),
    _case("leeway", None, "must be a number of seconds, not NoneType", TypeError),
    _case("leeway", "60", "must be a number of seconds, not str", TypeError),
    _case("leeway", True, "must be a number of seconds, not bool", TypeError),
    _case("timeout", 0, "must be seconds above 0"),
    _case("timeout", -1, "must be seconds above 0"),
    _case("timeout", "5", "must be seconds above 0"),
    _case("timeout", math.nan, "must be seconds above 0"),
    _case("timeout", (5,), "a pair (connect, read)"),
    _case("timeout", (5, 0), "a pair (connect, read)"),
    _case("timeout", (5, 5, 5), "a pair (connect, read)"),
    _case("retries", -1, "must be a urllib3 Retry or a count from 0 up, not -1"),
    _case("retries", True, "must be a urllib3 Retry or a count from 0 up"),
    _case("retries", 1.5, "must be a urllib3 Retry or a count from 0 up"),
    _case("retries", None, "must be a urllib3 Retry or a count from 0 up"),
    _case("request_id", "", _ID),
    _case("request_id", "x" * 256, _ID),
    _case("request_id", "a\r\nAuthorization: evil", _ID),
    _case("request_id", "a\nb", _ID),
    _case("request_id", "a\x00b", _ID),
    _case("request_id", "a\tb", _ID),
    _case("request_id", "a\x7fb", _ID),
    _case("request_id", "a\x85b", _ID),
    _case("request_id", "☃", _ID),
    _case("request_id", 7, "must be text or a callable that returns it, not int", TypeError),
    _case("request_id", b"x", "must be text or a callable that returns it, not bytes", TypeError),
    _case("request_id", None, "must be text or a callable that returns it, not NoneType", TypeError),
    _case("on_event", "print", "must be callable, not str", TypeError),
    _case("token", "access-Q3", "must be a Token or a mapping with access_token, not str", TypeError),
    _case("token", 7, "must be a Token or a mapping with access_token, not int", TypeError),
    _case("token", {}, "is not usable: access_token must be text of visible ASCII characters"),
    _case("token", {"access_token": ""}, "is not usable: access_token must be text"),
    _case("token", {"access_token": "Q3\r\nX: y"}, "is not usable: access_token must be text"),
    _case("token", {"access_token": b"Q3"}, "is not usable: access_token must be text"),
    _case("token", {"access_token": "Q3 Q3"}, "is not usable: access_token must be text"),
    _case("token", {"access_token": "x", "refresh_token": 7}, "refresh_token must be text of printable ASCII"),
]

BASE_URLS = [
    ("", _HTTPS),
    ("finapi.example", _HTTPS),
    ("http://finapi.example", _HTTPS),
    ("http://127.0.0.1:8080", _HTTPS),
    ("ftp://finapi.example", _HTTPS),
    ("https://", _HTTPS),
    ("https://finapi.example/api/v2", _BARE),
    ("https://finapi.example/?client_secret=Q1", _BARE),
    ("https://finapi.example?", _BARE),
    ("https://finapi.example#Q1", _BARE),
    ("https://alice:password-Q2@finapi.example", _BARE),
    ("https://Q3@finapi.example", _BARE),
    ("https://finapi.example:99999", _HTTPS),
    ("https://finapi.example:https", _HTTPS),
]


def _refused(call: Callable[[], object], error: type[Exception], *says: str) -> Exception:
    """Call; check that the error is of this very kind, that its message says so much, and holds no secret."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    for text in says:
        assert text in message
    shown = "".join(traceback.format_exception_only(caught.value)) + f"{caught.value!r} {caught.value.__cause__!r}"
    for secret in _NONE_OF_THESE:
        assert secret not in shown
    return caught.value


@pytest.fixture
def nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """No adapter is asked to send anything in this test."""
    sent: list[str] = []
    monkeypatch.setattr("requests.adapters.HTTPAdapter.send", lambda self, request, **_: sent.append(request.url))
    yield sent
    assert sent == []


# --- at construction --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "argument", "says", "error"), CONSTRUCTION)
def test_construction(
    arguments: dict[str, Any], argument: str, says: str, error: type[Exception], nothing_is_sent: list[str]
) -> None:
    """Each bad argument is refused at construction, by name, with what to give instead."""
    raised = _refused(lambda: FinapiSession(**arguments), error, argument, says)
    assert type(raised) is error


@pytest.mark.parametrize(("base_url", "says"), BASE_URLS)
def test_base_urls(base_url: str, says: str, nothing_is_sent: list[str]) -> None:
    """What is no https origin is refused as an environment's base URL and as a trusted origin."""
    _refused(lambda: Environment(base_url), ValueError, "base_url", says)
    _refused(lambda: Environment("https://finapi.example", trusted=(base_url,)), ValueError, "trusted", says)
    if "://" in base_url:
        _refused(lambda: FinapiSession(**_GOOD, environment=base_url), ValueError, "base_url", says)


@pytest.mark.parametrize(
    ("name", "value", "argument", "says"),
    [
        ("FINAPI_CLIENT_ID", None, "FINAPI_CLIENT_ID", "or give client_id="),
        ("FINAPI_CLIENT_ID", "", "FINAPI_CLIENT_ID", "or give client_id="),
        ("FINAPI_CLIENT_SECRET", None, "FINAPI_CLIENT_SECRET", "or give client_secret="),
        ("FINAPI_CLIENT_SECRET", "", "FINAPI_CLIENT_SECRET", "or give client_secret="),
        (
            "FINAPI_CLIENT_SECRET",
            "client-secret-Q1\udcff",
            "client_secret",
            "must be text that UTF-8 can carry",
        ),
        ("FINAPI_USERNAME", None, "password", "needs a username"),
        ("FINAPI_USERNAME", "", "password", "needs a username"),
        (
            "FINAPI_ENVIRONMENT",
            "production",
            "environment",
            "unknown environment 'production': use one of sandbox",
        ),
        ("FINAPI_ENVIRONMENT", "http://127.0.0.1", "base_url", _HTTPS),
        ("FINAPI_ENVIRONMENT", "https://u:password-Q2@127.0.0.1", "base_url", _BARE),
    ],
)
def test_from_env(
    name: str,
    value: str | None,
    argument: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    nothing_is_sent: list[str],
) -> None:
    """A variable that is missing, empty or junk is refused by its name or by the argument's."""
    good = {"CLIENT_ID": "id", "CLIENT_SECRET": SECRET, "USERNAME": "alice", "PASSWORD": PASSWORD}
    for known, text in good.items():
        monkeypatch.setenv(f"FINAPI_{known}", text)
    FinapiSession.from_env()
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    _refused(FinapiSession.from_env, ValueError, argument, says)


def test_overrides_of_from_env(monkeypatch: pytest.MonkeyPatch, nothing_is_sent: list[str]) -> None:
    """Arguments that go before the variables are checked as any others."""
    monkeypatch.setenv("FINAPI_CLIENT_ID", "id")
    monkeypatch.setenv("FINAPI_CLIENT_SECRET", SECRET)
    _refused(lambda: FinapiSession.from_env(client_secret=""), ValueError, "client_secret must not be empty")
    _refused(lambda: FinapiSession.from_env(password=PASSWORD), ValueError, "password needs a username")
    _refused(lambda: FinapiSession.from_env(leeway=-1), ValueError, "leeway")
    with pytest.raises(TypeError, match="unknown_argument"):
        FinapiSession.from_env(unknown_argument=1)


# --- users ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("username", "password", "argument", "says", "error"),
    [
        ("", PASSWORD, "username", "must not be empty", ValueError),
        (None, PASSWORD, "username", "must be text, not NoneType", TypeError),
        (None, None, "username", "must be text, not NoneType", TypeError),
        (7, PASSWORD, "username", "must be text, not int", TypeError),
        ("alice", None, "password", "must not be None: leave it out", TypeError),
        (b"alice", PASSWORD, "username", "must be text, not bytes", TypeError),
        ("alice", "", "password", "must not be empty", ValueError),
        ("alice", b"password-Q2", "password", "must be text, not bytes", TypeError),
        ("alice", 7, "password", "must be text, not int", TypeError),
        ("alice", "password-Q2\ud800", "password", "must be text that UTF-8 can carry", ValueError),
    ],
)
def test_user(
    username: Any, password: Any, argument: str, says: str, error: type[Exception], nothing_is_sent: list[str]
) -> None:
    """user() refuses what can be no user or no password, by the argument's name."""
    _refused(lambda: FinapiSession(**_GOOD).user(username, password), error, argument, says)


# --- what is known at the call only -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("junk", "says", "error"),
    [
        (None, "must be text, not NoneType", TypeError),
        (b"client-secret-Q1", "must be text, not bytes", TypeError),
        (["Q1"], "must be text, not list", TypeError),
        ("", "must not be empty", ValueError),
        ("Q1\ud800", "must be text that UTF-8 can carry", ValueError),
    ],
)
@pytest.mark.parametrize("argument", ["client_secret", "password"])
def test_a_callable_secret_that_returns_junk(
    argument: str, junk: object, says: str, error: type[Exception], sandbox: Sandbox
) -> None:
    """A vault that gives no text is named when it is asked, again at each call, and finAPI hears nothing of it."""
    secret = _Callable(junk)
    session = sandbox.session("alice", **{argument: secret})
    for call in (session.fetch_token, lambda: session.get("/api/v2/accounts"), session.revoke):
        _refused(call, error, f"{argument} (as its callable returned it)", says)
    assert sandbox.calls == []
    secret.value = sandbox.client_secret if argument == "client_secret" else "her-password"
    assert session.get("/api/v2/accounts").status_code == 200


def test_a_callable_secret_that_raises(sandbox: Sandbox) -> None:
    """What a vault raises comes through as it is, and nothing is sent."""

    def vault() -> str:
        raise LookupError("the vault is sealed")

    session = sandbox.session("alice", vault)
    with pytest.raises(LookupError, match="the vault is sealed"):
        session.get("/api/v2/accounts")
    assert sandbox.calls == []


@pytest.mark.parametrize(
    ("junk", "says", "error"),
    [
        (None, "request_id must be text, not NoneType", TypeError),
        (7, "request_id must be text, not int", TypeError),
        (b"x", "request_id must be text, not bytes", TypeError),
        ("", _ID, ValueError),
        ("x" * 256, _ID, ValueError),
        ("a\r\nX: y", _ID, ValueError),
        ("☃", _ID, ValueError),
    ],
)
def test_a_callable_request_id_that_returns_junk(
    junk: object, says: str, error: type[Exception], sandbox: Sandbox
) -> None:
    """A request id that no header can carry is refused when it was made, before anything is sent with it."""
    made: list[Any] = []
    session = sandbox.session(request_id=lambda: made.pop())
    for call in (session.fetch_token, lambda: session.get("/api/v2/banks")):
        made[:] = [junk] * 2
        _refused(call, error, says)
    assert sandbox.calls == []
    made[:] = ["good"] * 2
    assert session.get("/api/v2/banks").status_code == 200
    assert [call.request_id for call in sandbox.calls] == ["good", "good"]


def _short(value: object) -> str:
    return ascii(value)[:14].replace("\\", "")


BAD_IDS = ["", "x" * 256, "a\x00b", "a\x01b", "a\tb", "a\x7fb", b"a\x85b", "☃"]
UNSENDABLE_IDS = ["a\r\nX: y", "a\nb", 7, " x"]


@pytest.mark.parametrize("request_id", BAD_IDS + UNSENDABLE_IDS, ids=_short)
@pytest.mark.parametrize("where", ["call", "session"])
def test_a_request_id_in_a_header(where: str, request_id: Any, sandbox: Sandbox) -> None:
    """An X-Request-Id header of a call's or of the session's that finAPI would refuse is a ValueError, not sent."""
    session = sandbox.session()
    session.fetch_token()
    if where == "session":
        session.headers["X-Request-Id"] = request_id
    headers = {"X-Request-Id": request_id} if where == "call" else {}
    with pytest.raises(ValueError, match=r"request_id|[Hh]eader"):
        session.get("/api/v2/banks", headers=headers)
    assert sandbox.count("/banks") == 0


@pytest.mark.parametrize("request_id", ["x", "x" * 255, "a b", "é", b"bytes"], ids=_short)
def test_a_request_id_that_is_good(request_id: Any, sandbox: Sandbox) -> None:
    """Up to 255 characters that a header can carry are sent as they are."""
    response = sandbox.session().get("/api/v2/banks", headers={"X-Request-Id": request_id})
    sent = request_id.decode() if isinstance(request_id, bytes) else request_id
    assert response.status_code == 200
    assert response.request.headers["X-Request-Id"] == request_id
    assert sandbox.calls[-1].request_id.encode("latin-1") in (sent.encode("latin-1"), sent.encode())


def test_a_request_id_for_a_stranger_is_the_callers_matter(sandbox: Sandbox, nothing_is_sent: list[str]) -> None:
    """finAPI's limit holds for finAPI's addresses only."""
    session = sandbox.session()
    prepared = session.prepare_request(
        requests.Request("GET", "https://127.0.0.1:9/", headers={"X-Request-Id": "x" * 300})
    )
    assert len(prepared.headers["X-Request-Id"]) == 300


@pytest.mark.parametrize(
    "url", ["http://[::1", "https://finapi.example:port/", b"\xff", "https://.example/", "mailto:x"]
)
def test_an_address_that_is_none(url: str | bytes, sandbox: Sandbox) -> None:
    """What is no URL is the error of requests or a ValueError, and nothing is sent."""
    with pytest.raises((requests.RequestException, ValueError)):
        sandbox.session().get(url)
    assert sandbox.calls == []


# --- stores -----------------------------------------------------------------------------------------------------


@contextmanager
def _no_lock(key: str) -> Iterator[None]:
    yield


@pytest.mark.parametrize("method", ["get", "set", "delete", "lock"])
def test_a_store_without_one_method(method: str, nothing_is_sent: list[str]) -> None:
    """Each of the four methods is asked for at construction, by name."""

    class Store(MemoryStore):
        pass

    setattr(Store, method, None)
    _refused(lambda: FinapiSession(**_GOOD, store=Store()), TypeError, "store", f"Store lacks {method}")


def test_a_store_of_ones_own_needs_nothing_of_ours(sandbox: Sandbox) -> None:
    """An object with the four methods is a store."""

    class Store:
        def __init__(self) -> None:
            self.kept: dict[str, str] = {}
            self.get, self.set = self.kept.get, self.kept.__setitem__
            self.delete, self.lock = self.kept.pop, _no_lock

    store = Store()
    assert sandbox.session(store=store).get("/api/v2/banks").status_code == 200
    assert len(store.kept) == 1


@pytest.mark.parametrize("keys", ["", b"", "password-Q2", b"Q3" * 16, [], [b"Q3"], ()])
def test_bad_keys_of_an_encrypted_store(keys: Any) -> None:
    """What is no Fernet key is refused at once, and is not in the message."""
    _refused(lambda: EncryptedStore(MemoryStore(), keys), ValueError)


def test_a_file_store_in_no_folder(tmp_path: Path, sandbox: Sandbox) -> None:
    """A folder that cannot be one costs warnings, never a call."""
    (tmp_path / "file").write_text("")
    session = sandbox.session(store=FileStore(tmp_path / "file" / "below"))
    assert session.get("/api/v2/banks").status_code == 200
    with pytest.raises(TypeError):
        FileStore(7)  # type: ignore[arg-type]


# --- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"access_token": ""}, "access_token"),
        ({"access_token": "Q3\n"}, "access_token"),
        ({"access_token": "Q3é"}, "access_token"),
        ({"access_token": 7}, "access_token"),
        ({"access_token": "x", "refresh_token": ""}, "refresh_token"),
        ({"access_token": "x", "refresh_token": b"Q3"}, "refresh_token"),
        ({"access_token": "x", "expires_at": math.inf}, "expires_at"),
        ({"access_token": "x", "expires_at": math.nan}, "expires_at"),
        ({"access_token": "x", "expires_at": "soon"}, "expires_at"),
        ({"access_token": "x", "issued_at": -math.inf}, "issued_at"),
    ],
)
def test_tokens(arguments: dict[str, Any], argument: str) -> None:
    """A Token that could be none is refused by the field's name, without its value."""
    _refused(lambda: Token(**arguments), ValueError, f"{argument} must be")


def test_auth_of_a_session_is_what_it_says(sandbox: Sandbox) -> None:
    """The auth of a session is a BearerAuth that sends nothing when it is only looked at."""
    auth = sandbox.session("alice").auth
    assert isinstance(auth, BearerAuth) and repr(auth)
    assert sandbox.calls == []


# --- findings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", BAD_IDS, ids=_short)
def test_nothing_at_all_is_sent_for_a_bad_request_id(request_id: Any, sandbox: Sandbox) -> None:
    """A call with a bad X-Request-Id does not even fetch a token."""
    with pytest.raises(ValueError):
        sandbox.session().get("/api/v2/banks", headers={"X-Request-Id": request_id})
    assert sandbox.calls == []


def test_a_request_id_with_a_leading_space(sandbox: Sandbox) -> None:
    """A request id that requests will not send is refused at construction."""
    _refused(lambda: FinapiSession(**_GOOD, request_id=" x"), ValueError, "request_id")


@pytest.mark.parametrize("argument", ["leeway", "timeout"])
@pytest.mark.parametrize("value", [10**400, math.inf], ids=["huge", "inf"])
def test_numbers_beyond_floats(argument: str, value: Any) -> None:
    """A number that no clock and no socket can take is refused at construction."""
    _refused(lambda: FinapiSession(**_GOOD, **{argument: value}), ValueError, argument)


def test_a_base_url_whose_host_is_none() -> None:
    """A base URL whose host no server can have is refused."""
    _refused(lambda: Environment("https://{finapi}.example"), ValueError, "base_url")
