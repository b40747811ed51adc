"""Nothing leaks: the whole story, with every failure, and a hunt for the secrets in all that could be shown.

Each secret begins and ends with letters that no way of quoting changes, so that it is found in every spelling,
and also if only a part of it was taken out; only Base64 needs spellings of its own.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import gc
import html
import json
import logging
import os
import pickle
import stat
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import requests
from requests.adapters import HTTPAdapter
from requests_oauthlib import OAuth2Session

import finapi_session
from finapi_session import (
    ApiError,
    EncryptedStore,
    FileStore,
    FinapiError,
    FinapiSession,
    MemoryStore,
    RevocationError,
    Token,
    TokenError,
    TokenEvent,
    raise_for_error,
)
from finapi_session.testing import Sandbox

from .loopback import Answer, Loopback

_PACKAGE = str(Path(finapi_session.__file__).parent)
_ODD = "ä &=+%\"'<\\ß "
CLIENT_SECRET = f"Qcl1ent{_ODD}s3cretQ"
PASSWORD = f"Qpass{_ODD}w0rdQ"
# A token is visible ASCII. It is short, so that it does not look like one.
_TOKEN = "Qt{0:03}&+%\"'<\\~x{0:03}Q="
_CLIENT_MARKS = ("Qcl1ent", "s3cretQ")
_PASSWORD_MARKS = ("Qpass", "w0rdQ")
_STRANGE_ID = "id&ä=+%"


class Leak(AssertionError):
    """A secret was found where it could be seen."""


class Hunt:
    """Looks for secrets in whatever could be shown, and keeps what it looked through."""

    def __init__(self) -> None:
        self.marks = {*_CLIENT_MARKS, *_PASSWORD_MARKS, *_encoded(CLIENT_SECRET), *_encoded(PASSWORD)}
        self.marks |= set(_encoded(f"{_STRANGE_ID}:{CLIENT_SECRET}"))
        self.texts = 0
        self.errors: list[BaseException] = []

    def token(self, number: int) -> str:
        """Return a new token, which is a secret from now on."""
        token = _TOKEN.format(number)
        self.marks |= {f"Qt{number:03}", f"x{number:03}Q", *_encoded(token)}
        return token

    def text(self, where: str, text: str | bytes) -> None:
        """Look in a text."""
        self.texts += 1
        shown = text.decode("latin-1") if isinstance(text, bytes) else text
        found = next((mark for mark in self.marks if mark in shown), None)
        if found is not None:
            at = shown.index(found)
            raise Leak(f"{where}: ...{shown[max(at - 60, 0) : at + 60]!r}...")

    def thing(self, where: str, thing: object, depth: int = 4) -> None:
        """Look in what print and vars show of an object, and of the library's own objects in it."""
        self.text(where, f"{thing!r} {thing}")
        inside = vars(thing) if hasattr(thing, "__dict__") else {}
        self.text(f"vars of {where}", repr(inside))
        for name, value in inside.items() if depth else ():
            # What stores keep is the matter of tests of their own.
            if type(value).__module__.startswith("finapi_session") and ".stores." not in type(value).__module__:
                self.thing(f"{where}.{name}", value, depth - 1)

    def error(self, error: BaseException, *, locals_too: bool = True) -> None:
        """Look in an error, all that it holds and came from, its traceback and its pickle."""
        self.errors.append(error)
        for link in _chain(error):
            self.text("error", f"{link!r} {link} {link.args!r}")
            if isinstance(link, FinapiError):
                self._own_error(link)
            shown = traceback.TracebackException.from_exception(link, capture_locals=locals_too)
            for frame in shown.stack:
                if frame.filename.startswith(_PACKAGE):
                    self.text(f"locals of {frame.name}", repr(frame.locals))
        self.text("traceback", "".join(traceback.format_exception(error)))

    def _own_error(self, error: FinapiError) -> None:
        self.thing(type(error).__name__, error)
        self.thing("again", error.again())
        self.text("pickle", pickle.dumps(error))
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error)
        if error.response is not None:
            self.thing("response", error.response)
            self.text("response", error.response.content)
            self.text("response", error.response.text)
            assert error.response.request is None

    def attempt(self, call: Callable[[], object], expected: type[BaseException] | None = None) -> None:
        """Call, and look in what comes of it; an error of the *expected* kind must."""
        try:
            result = call()
        except BaseException as error:
            if expected is None or not isinstance(error, expected):
                raise
            self.error(error)
        else:
            assert expected is None, f"no {expected}"
            self.thing("result", result)


def _encoded(secret: str) -> list[str]:
    """Return Base64 and hex as they appear in a longer text that was encoded."""
    data = secret.encode()
    shifted = [base64.b64encode(b"\0" * shift + data)[4 : -4 * 2] for shift in range(3)]
    return [part.decode() for part in shifted] + [data.hex()]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class _Log(logging.Handler):
    """Writes down each record as any formatter or collector could: its text, and all of its fields."""

    def __init__(self) -> None:
        super().__init__(level=1)
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record as text."""
        fields = " ".join(f"{value!r} {value}" for value in vars(record).values())
        self.lines.append((record.name, f"{self.format(record)} {fields}"))


@contextmanager
def _everything_logged() -> Iterator[_Log]:
    """Set every logger there is to DEBUG."""
    names = [name for name, logger in logging.root.manager.loggerDict.items() if isinstance(logger, logging.Logger)]
    loggers = [logging.getLogger(), *map(logging.getLogger, names)]
    before = [(logger, logger.level, logger.disabled) for logger in loggers]
    log = _Log()
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.disabled = False
    logging.getLogger().addHandler(log)
    try:
        yield log
    finally:
        logging.getLogger().removeHandler(log)
        for logger, level, disabled in before:
            logger.setLevel(level)
            logger.disabled = disabled


_children: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.putenv"}:
        _children.append(f"{event} {arguments!r}")


sys.addaudithook(_audit)


@pytest.fixture
def hunt() -> Hunt:
    """A hunt for the secrets of this test."""
    return Hunt()


@pytest.fixture
def stage(sandbox: Sandbox, hunt: Hunt, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """A finAPI whose secrets all need quoting, and whose tokens are known to the hunt."""
    authority: Any = sandbox._authority
    numbers = iter(range(1, 1000))

    def new_token(grant: object) -> str:
        token = hunt.token(next(numbers))
        authority._holders[token] = grant
        return token

    monkeypatch.setattr(authority, "_new_token", new_token)
    sandbox.client_id, sandbox.client_secret = _STRANGE_ID, CLIENT_SECRET
    sandbox.max_login_attempts = 3
    sandbox.add_user("älice", PASSWORD)
    return sandbox


def _client(stage: Sandbox, **options: Any) -> FinapiSession:
    return stage.session(**{"retries": 0, **options})


def _alice(stage: Sandbox, **options: Any) -> FinapiSession:
    return stage.session("älice", **{"retries": 0, **options})


# --- the scenes: what a session can live through ----------------------------------------------------------------


def all_goes_well(stage: Sandbox, hunt: Hunt) -> None:
    """Client and user tokens, pages of both, requests, tokens and events as people print them."""
    events: list[TokenEvent] = []
    with _client(stage, on_event=events.append) as client, client.user("älice", PASSWORD) as alice:
        for session, path in ((client, "/api/v2/banks"), (alice, "/api/v2/accounts")):
            response = session.get(path)
            assert response.status_code == 200
            hunt.thing("response", response)
            hunt.thing("request", response.request)
            hunt.text("headers", f"{response.request.headers} {response.request.headers!r}")
            hunt.thing("token", session.fetch_token())
            hunt.thing("session", session)
            hunt.thing("auth", session.auth)
            hunt.thing("identity", session._own.identity)
            hunt.thing("credentials", session._own.identity.credentials())
            hunt.thing("environment", session.environment)
            hunt.text(
                "settings",
                repr(session.merge_environment_settings(session.environment.base_url, {}, None, None, None)),
            )
        alice.revoke()
    assert {event.kind for event in events} == {"issued", "revoked"}
    for event in events:
        hunt.thing("event", event)
        hunt.text("event", repr(dataclasses.asdict(event)))


def renewal_of_every_kind(stage: Sandbox, hunt: Hunt) -> None:
    """An expired token is refreshed, a revoked one healed, one that both tokens of were revoked logged in again."""
    alice = _alice(stage)
    hunt.attempt(lambda: alice.get("/api/v2/accounts"))
    stage.revoke_tokens("älice")
    hunt.attempt(lambda: alice.get("/api/v2/accounts"))
    stage.revoke_tokens("älice", refresh=True)
    hunt.attempt(lambda: alice.get("/api/v2/accounts"))
    assert alice.get("/api/v2/accounts").history == []
    # The second time a renewed token died young, as if somebody else renewed: the password went first.
    assert stage.count("/oauth/token", grant_type="refresh_token") == 1
    hunt.thing("session", alice)


def a_wrong_client_secret(stage: Sandbox, hunt: Hunt) -> None:
    """A refused client secret, the first time and as remembered."""
    stage.client_secret = "another"
    client = _client(stage, client_secret=CLIENT_SECRET)
    for _ in range(2):
        hunt.attempt(client.fetch_token, TokenError)
        hunt.attempt(lambda: client.get("/api/v2/banks"), TokenError)
    hunt.thing("session", client)


def a_wrong_password_until_locked(stage: Sandbox, hunt: Hunt) -> None:
    """A refused password, as remembered, and the lock that follows on several wrong ones."""
    stage.users["älice"].password = "another"
    for attempt in range(4):
        alice = _alice(stage, password=f"{PASSWORD}{attempt}")
        hunt.attempt(alice.fetch_token, TokenError)
        hunt.attempt(alice.fetch_token, TokenError)
        hunt.thing("session", alice)
    assert stage.count("/oauth/token", status=423) == 1


def a_user_who_is_not_verified(stage: Sandbox, hunt: Hunt) -> None:
    """A 403 for a user."""
    stage.users["älice"].verified = False
    hunt.attempt(_alice(stage).fetch_token, TokenError)


def a_refresh_token_that_is_refused(stage: Sandbox, hunt: Hunt) -> None:
    """finAPI names the refresh token that it refuses, unknown or expired."""
    junk = Token(hunt.token(900), expires_at=1.0, refresh_token=hunt.token(901))
    without_password = FinapiSession(
        stage.client_id, CLIENT_SECRET, username="älice", environment=stage.environment, token=junk, retries=0
    )
    without_password.verify, without_password.trust_env = stage.ca_bundle, False
    hunt.attempt(without_password.fetch_token, TokenError)
    alice = _alice(stage)
    alice.fetch_token()
    stage.expire_tokens("älice", refresh=True)
    stage.change_password("älice", "another")
    hunt.attempt(lambda: alice.get("/api/v2/accounts"), TokenError)
    hunt.thing("session", alice)


def an_endpoint_that_fails(stage: Sandbox, hunt: Hunt) -> None:
    """Everything that is no answer, for client and user, echoing what was sent where there is a body."""
    body = f"client_secret={quote_plus(CLIENT_SECRET)} {PASSWORD} {quote(PASSWORD)}"
    for answer in ("drop", "lose", "cut", "truncated", "html", "empty", "junk", 500, 503, 307, 302, 404, 429):
        planned: dict[str, Any] = {}
        if isinstance(answer, int):
            planned = {"body": body, "headers": {"Location": "https://127.0.0.1:9/?a=b", "Retry-After": "0"}}
        for session in (_client(stage), _alice(stage)):
            stage.answer_next(answer, path="/oauth/token", **planned)
            hunt.attempt(session.fetch_token, TokenError)


def an_endpoint_that_is_down(stage: Sandbox, hunt: Hunt) -> None:
    """Nobody listens, nobody is trusted, and no certificate is to be found."""
    alice = _alice(stage, environment="https://127.0.0.1:9")
    hunt.attempt(alice.fetch_token, TokenError)
    for verify in (True, "/no/such/file.pem"):
        alice = _alice(stage)
        alice.verify = verify
        hunt.attempt(alice.fetch_token, TokenError)


def answers_that_repeat_the_secrets(stage: Sandbox, hunt: Hunt) -> None:
    """Descriptions in both shapes repeat what was sent, in many spellings."""
    spellings: list[Callable[[str], str]] = [str, quote, quote_plus, html.escape, repr, json.dumps]
    for spelling in spellings:
        said = f"Bad credentials {spelling(PASSWORD)} of a client with {spelling(CLIENT_SECRET)}, or so"
        for body in (
            {"error": "invalid_grant", "error_description": said},
            {"errors": [{"message": said, "code": said}]},
        ):
            stage.answer_next(400, path="/oauth/token", body=body)
            alice = _alice(stage)
            hunt.attempt(alice.fetch_token, TokenError)
            hunt.attempt(alice.fetch_token, TokenError)


def an_api_that_rejects_every_token(stage: Sandbox, hunt: Hunt) -> None:
    """Two 401 in a row, each naming the token that it refuses, and other errors of the API that do."""

    def revoke(event: TokenEvent) -> None:
        if event.expires_in:
            stage.revoke_tokens("älice")

    revoking = _alice(stage, on_event=revoke)
    response = revoking.get("/api/v2/accounts")
    assert [answer.status_code for answer in (*response.history, response)] == [401, 401]
    _raised(hunt, response)
    alice = _alice(stage)
    for status in (403, 422, 500):
        token = alice.fetch_token().access_token
        body = {"error": "no", "error_description": f"Not with access token: {token}", "list": [token]}
        stage.answer_next(status, path="/accounts", body=body)
        _raised(hunt, alice.get("/api/v2/accounts"))


def _raised(hunt: Hunt, response: requests.Response) -> None:
    with pytest.raises(ApiError) as caught:
        raise_for_error(response)
    # The frame of raise_for_error is looked at by a test of its own.
    hunt.error(caught.value.again())


def a_revocation_that_fails(stage: Sandbox, hunt: Hunt) -> None:
    """An error of revoke() that names the token, and a close() that says nothing."""
    client = _client(stage)
    alice = client.user("älice", PASSWORD)
    token = alice.fetch_token()
    for status in (400, 503):
        said = f"Cannot revoke {token.refresh_token}, access token: {token.access_token}"
        stage.answer_next(status, path="/oauth/revoke", body={"error": "no", "error_description": said}, times=2)
        hunt.attempt(alice.revoke, RevocationError)
        alice.close()
    stage.answer_next("drop", path="/oauth/revoke", times=9)
    hunt.attempt(alice.revoke, RevocationError)
    client.close()


class _Chatty(MemoryStore):
    """A store of which one method fails, with an error that tells all that it ever held."""

    def __init__(self, failing: str) -> None:
        super().__init__()
        self.failing = failing

    def get(self, key: str) -> str | None:
        """Read, or fail."""
        self._fail("get")
        return super().get(key)

    def set(self, key: str, value: str) -> None:
        """Write, and perhaps fail."""
        super().set(key, value)
        self._fail("set")

    def delete(self, key: str) -> None:
        """Delete, or fail."""
        self._fail("delete")
        super().delete(key)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Lock, or fail."""
        self._fail("lock")
        with super().lock(key):
            yield

    def _fail(self, method: str) -> None:
        if method == self.failing and self._values:
            raise RuntimeError(self._values)


def a_store_that_fails(stage: Sandbox, hunt: Hunt) -> None:
    """A store whose errors hold the tokens that it should have kept."""
    for method in ("get", "set", "lock"):
        events: list[TokenEvent] = []
        client = _client(stage, store=_Chatty(method), revoke_on_close=True, on_event=events.append)
        alice = client.user("älice", PASSWORD)
        for session, path in ((client, "/api/v2/banks"), (alice, "/api/v2/accounts")):
            hunt.attempt(partial(session.get, path))
            stage.revoke_tokens()
            hunt.attempt(partial(session.get, path))
        hunt.thing("session", alice)
        client.close()
        assert "store_failed" in {event.kind for event in events}
        hunt.text("events", f"{events!r} {[str(event) for event in events]}")


def a_listener_that_fails(stage: Sandbox, hunt: Hunt) -> None:
    """A listener that raises what it got."""

    def listen(event: TokenEvent) -> None:
        raise RuntimeError(event)

    alice = _alice(stage, on_event=listen)
    hunt.attempt(lambda: alice.get("/api/v2/accounts"))
    alice.close()


def a_vault_that_fails(stage: Sandbox, hunt: Hunt) -> None:
    """A callable secret that raises, or returns what is no secret, after it was good for a while."""
    answers: list[Any] = [CLIENT_SECRET] * 2
    client = _client(stage, client_secret=lambda: answers.pop(0))
    hunt.attempt(client.fetch_token)
    stage.revoke_tokens()
    for wrong, error in ((b"bytes", TypeError), ("", ValueError)):
        answers[:] = [wrong] * 2
        hunt.attempt(lambda: client.get("/api/v2/banks"), error)


def copies_and_pickles(stage: Sandbox, hunt: Hunt) -> None:
    """A pickled and a copied session work, and show no more than the first."""
    alice = _alice(stage)
    alice.fetch_token()
    for twin in (copy.deepcopy(alice), pickle.loads(pickle.dumps(alice)), copy.copy(alice)):
        hunt.attempt(partial(twin.get, "/api/v2/accounts"))
        hunt.thing("session", twin)
        hunt.thing("auth", twin.auth)


def a_redirect_to_a_stranger(stage: Sandbox, hunt: Hunt) -> None:
    """An API call that is sent away to somebody who does not answer."""
    alice = _alice(stage)
    away = {"Location": "https://127.0.0.1:9/x"}
    stage.answer_next(307, path="/accounts", headers=away)
    try:
        alice.post("/api/v2/accounts", data=b"x")
    except requests.ConnectionError as error:
        assert error.request is not None and "Authorization" not in error.request.headers
        hunt.error(error)
    else:
        raise AssertionError("somebody answered")


SCENES = [
    all_goes_well,
    renewal_of_every_kind,
    a_wrong_client_secret,
    a_wrong_password_until_locked,
    a_user_who_is_not_verified,
    a_refresh_token_that_is_refused,
    an_endpoint_that_fails,
    an_endpoint_that_is_down,
    answers_that_repeat_the_secrets,
    an_api_that_rejects_every_token,
    a_revocation_that_fails,
    a_store_that_fails,
    a_listener_that_fails,
    a_vault_that_fails,
    copies_and_pickles,
    a_redirect_to_a_stranger,
]


def _play(scene: Callable[[Sandbox, Hunt], None], stage: Sandbox, hunt: Hunt) -> int:
    """Play a scene, then look in what was logged, warned and given to children; return how much was logged."""
    _children.clear()
    with _everything_logged() as log, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        scene(stage, hunt)
        gc.collect()
    for name, line in log.lines:
        hunt.text(f"log of {name}", line)
    for warning in warned:
        hunt.text("warning", f"{warning.message!r} {warning}")
    for child in _children:
        hunt.text("child", child)
    hunt.text("environment", repr(os.environ))
    hunt.text("arguments", repr(sys.argv))
    return len(log.lines)


@pytest.mark.parametrize("scene", SCENES, ids=[scene.__name__ for scene in SCENES])
def test_nothing_leaks(scene: Callable[[Sandbox, Hunt], None], stage: Sandbox, hunt: Hunt) -> None:
    """No secret is in a log, error, traceback, pickle, warning, repr or vars, whatever happens."""
    assert _play(scene, stage, hunt) > 0
    assert hunt.texts > 10


def test_the_hunt_finds_what_is_there(stage: Sandbox, hunt: Hunt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the filter on requests-oauthlib's log, and in each spelling of a secret, the hunt is successful."""
    for spelling in (str, quote, quote_plus, html.escape, ascii, json.dumps):
        for secret in (CLIENT_SECRET, PASSWORD, hunt.token(1)):
            with pytest.raises(Leak):
                hunt.text("here", f"well, {spelling(secret)} it is")
    for before in ("", "x", "id"):
        with pytest.raises(Leak):
            hunt.text("here", base64.b64encode(f"{before}:{CLIENT_SECRET}".encode()))
    monkeypatch.setattr("finapi_session.transport._unlogged", nullcontext)
    with pytest.raises(Leak, match="log of requests_oauthlib"):
        _play(all_goes_well, stage, hunt)


# --- what is kept on the disk -----------------------------------------------------------------------------------


def test_files_are_private_and_hold_tokens_only(stage: Sandbox, hunt: Hunt, tmp_path: Path) -> None:
    """FileStore's folders are 0700 and files 0600 with tokens in them, but no client secret and no password."""
    folder = tmp_path / "kept" / "here"
    previous = os.umask(0)
    try:
        with _client(stage, store=FileStore(folder)) as client:
            alice = client.user("älice", PASSWORD)
            token = alice.fetch_token()
            stage.revoke_tokens("älice")
            alice.get("/api/v2/accounts")
            with suppress(TokenError):
                client.user("älice", f"{PASSWORD}!").fetch_token()
            client.fetch_token()
    finally:
        os.umask(previous)
    kept = b""
    for path in [folder.parent, folder, *folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        assert not path.is_symlink()
        hunt.text("file's name", path.name)
        kept += path.read_bytes() if path.is_file() else b""
    assert json.dumps(token.refresh_token).encode() in kept
    hunt.marks = {*_CLIENT_MARKS, *_PASSWORD_MARKS, *_encoded(CLIENT_SECRET), *_encoded(PASSWORD)}
    hunt.text("file", kept)


def test_an_error_of_a_session_on_files_names_no_secret(stage: Sandbox, hunt: Hunt, tmp_path: Path) -> None:
    """A folder that cannot be used costs a warning that holds no secret."""
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)

    def scene(stage: Sandbox, hunt: Hunt) -> None:
        alice = _alice(stage, store=FileStore(tmp_path / "open"))
        hunt.attempt(lambda: alice.get("/api/v2/accounts"))
        hunt.thing("store", alice._cells.fallback.store)

    assert _play(scene, stage, hunt) > 0
    assert [path.name for path in (tmp_path / "open").rglob("*") if path.is_file()] == []


def test_stores_do_not_show_what_they_keep(stage: Sandbox, hunt: Hunt) -> None:
    """The repr of a store and of a session on it shows neither value nor key of an encryption."""
    key = base64.urlsafe_b64encode(b"Qkey" * 8)
    hunt.marks.add(key.decode()[:-4])
    for store in (MemoryStore(), EncryptedStore(MemoryStore(), key)):
        alice = _alice(stage, store=store)
        alice.fetch_token()
        hunt.text("store", f"{store!r} {store}")
        hunt.thing("session", alice, depth=1)


def test_an_encrypted_store_keeps_no_token_in_plain_text(stage: Sandbox, hunt: Hunt) -> None:
    """What is under an EncryptedStore holds no secret in any spelling."""
    inner = MemoryStore()
    alice = _alice(stage, store=EncryptedStore(inner, base64.urlsafe_b64encode(b"Qkey" * 8)))
    alice.fetch_token()
    assert inner._values
    hunt.text("values", repr(inner._values))


# --- other users of requests-oauthlib ---------------------------------------------------------------------------


class _Slow(HTTPAdapter):
    """Holds a call until the test lets it go."""

    def __init__(self) -> None:
        super().__init__()
        self.sending, self.go_on = threading.Event(), threading.Event()

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Tell that a call is under way, wait, and send it."""
        self.sending.set()
        assert self.go_on.wait(10)
        return super().send(*args, **kwargs)


def test_others_keep_their_logs_while_a_token_call_runs(stage: Sandbox, hunt: Hunt, loopback: Loopback) -> None:
    """A thread that uses requests-oauthlib for itself logs as ever while our token call is under way elsewhere."""
    loopback.routes["/token"] = lambda _: Answer(body={"access_token": "theirs", "token_type": "bearer"})
    alice, adapter, failed = _alice(stage), _Slow(), []
    alice.mount("https://", adapter)

    def ours() -> None:
        try:
            alice.fetch_token()
        except Exception as error:
            failed.append(error)

    with _everything_logged() as log:
        thread = threading.Thread(target=ours)
        thread.start()
        assert adapter.sending.wait(10)
        with OAuth2Session("other") as other:
            other.trust_env = False
            other.fetch_token(f"{loopback.origin}/token", code="c0de", client_secret="their-own", verify=loopback.ca)
        adapter.go_on.set()
        thread.join()
    assert not failed
    theirs = [line for name, line in log.lines if name.startswith("requests_oauthlib")]
    assert any("c0de" in line for line in theirs) and any("theirs" in line for line in theirs)
    for _, line in log.lines:
        hunt.text("log", line)


def test_no_secret_is_in_an_address(stage: Sandbox, hunt: Hunt) -> None:
    """Nothing secret is in the URL of any call, where servers and proxies would log it."""
    urls: list[str] = []

    class Watch(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
            urls.append(request.url or "")
            return super().send(request, *args, **kwargs)

    client = _client(stage)
    client.mount("https://", Watch())
    with client, client.user("älice", PASSWORD) as alice:
        alice.get("/api/v2/accounts", params={"page": 1})
        stage.revoke_tokens("älice")
        alice.get("/api/v2/accounts")
    assert len(urls) >= 7
    hunt.text("urls", "\n".join(urls))


# --- findings: each a leak that is still there ------------------------------------------------------------------


def _failing_api_call(stage: Sandbox, challenge: str = "Bearer") -> ApiError:
    alice = _alice(stage, raise_api_errors=True)
    headers = {"WWW-Authenticate": challenge.format(alice.fetch_token().access_token)}
    stage.answer_next(403, path="/accounts", body={"error": "x"}, headers=headers)
    with pytest.raises(ApiError) as caught:
        alice.get("/api/v2/accounts")
    return caught.value


def test_locals_of_raise_for_error(stage: Sandbox, hunt: Hunt) -> None:
    """What collects local variables with a traceback, as Sentry does, sees no token in an ApiError's frames."""
    hunt.error(_failing_api_call(stage))


def test_a_header_that_repeats_the_token(stage: Sandbox, hunt: Hunt) -> None:
    """WWW-Authenticate repeats the token as Spring writes it; an ApiError's response does not."""
    error = _failing_api_call(stage, 'Bearer error_description="Invalid access token: {}"')
    hunt.thing("response", error.again().response)
    hunt.text("pickle", pickle.dumps(error.again()))


def test_an_error_that_names_the_token_before(stage: Sandbox, hunt: Hunt) -> None:
    """An answer to the replay that names the token of the first try is an ApiError without it."""
    alice = _alice(stage)
    token = alice.fetch_token().access_token
    stage.answer_next(401, path="/accounts", body={"error": "x"})
    stage.answer_next(403, path="/accounts", body={"error": "x", "error_description": f"access token: {token}"})
    _raised(hunt, alice.get("/api/v2/accounts"))


def test_a_revocation_that_repeats_the_clients_bearer(stage: Sandbox, hunt: Hunt) -> None:
    """A revocation that names the client's token, with which it was asked for, leaks nothing of it."""
    client = _client(stage)
    said = f"The bearer {client.fetch_token().access_token} may not"
    alice = client.user("älice", PASSWORD)
    alice.fetch_token()
    stage.answer_next(403, path="/oauth/revoke", body={"error": "no", "error_description": said})
    hunt.attempt(alice.revoke, RevocationError)


@pytest.mark.parametrize(
    "spelling",
    [
        lambda text: json.dumps(text)[1:-1].replace("\\u00e4", "\\u00E4"),
        lambda text: json.dumps(text, ensure_ascii=False),
        lambda text: html.escape(text).replace("&#x27;", "&#39;"),
        ascii,
    ],
    ids=["json upper", "json utf-8", "html decimal", "ascii"],
)
def test_rarer_spellings(spelling: Callable[[str], str], stage: Sandbox, hunt: Hunt) -> None:
    """A secret that finAPI repeats in one of the rarer spellings is taken out too."""
    said = f"Bad credentials {spelling(PASSWORD)}"
    stage.answer_next(400, path="/oauth/token", body={"error": "invalid_grant", "error_description": said})
    hunt.attempt(_alice(stage).fetch_token, TokenError)


class _Broken(HTTPAdapter):
    """Raises instead of sending."""

    def __init__(self, raising: Callable[[requests.PreparedRequest], BaseException]) -> None:
        super().__init__()
        self.raising = raising

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Raise."""
        raise self.raising(request)


def test_an_adapters_error_that_holds_the_body(stage: Sandbox, hunt: Hunt) -> None:
    """An adapter of the caller's whose error repeats what it should have sent makes an error without secrets."""
    alice = _alice(stage)
    alice.mount("https://", _Broken(lambda request: OSError(f"not sent: {request.body!r}")))
    hunt.attempt(alice.fetch_token, TokenError)


def test_locals_of_an_interrupted_token_call(stage: Sandbox, hunt: Hunt) -> None:
    """Ctrl-C in a token call leaves a traceback without secrets in the local variables of our frames."""
    alice = _alice(stage)
    alice.mount("https://", _Broken(lambda request: KeyboardInterrupt()))
    hunt.attempt(alice.fetch_token, KeyboardInterrupt)


def test_a_remembered_failure_holds_no_frames(stage: Sandbox, hunt: Hunt) -> None:
    """What a source remembers of a failure does not keep the frames, and with them the secrets, of that call."""
    stage.client_secret = "another"
    client = _client(stage, client_secret=CLIENT_SECRET)
    hunt.attempt(client.fetch_token, TokenError)
    failure = client._own._turn.failure
    assert failure is not None and failure.error.__traceback__ is None


@pytest.mark.parametrize("kind", ["memory", "encrypted"])
def test_vars_of_a_store(kind: str, stage: Sandbox, hunt: Hunt) -> None:
    """vars() of a store shows neither tokens nor keys."""
    key = base64.urlsafe_b64encode(b"Qkey" * 8)
    hunt.marks.add(key.decode()[:-4])
    store = MemoryStore() if kind == "memory" else EncryptedStore(MemoryStore(), key)
    _alice(stage, store=store).fetch_token()
    hunt.thing("store", store)


def test_a_database_that_logs_its_statements(stage: Sandbox, hunt: Hunt, tmp_path: Path) -> None:
    """SQLAlchemy's own log, at DEBUG, holds no token."""
    import sqlalchemy

    def scene(stage: Sandbox, hunt: Hunt) -> None:
        engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/tokens.db")
        store = finapi_session.SQLStore(engine)
        store.create_table()
        _alice(stage, store=store).fetch_token()
        _alice(stage, store=store).fetch_token()
        engine.dispose()

    _play(scene, stage, hunt)
