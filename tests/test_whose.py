"""Whose token goes out and heals; what goes along with copies and pickles, and what is kept alive."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from finapi_session import FinapiSession, TokenEvent
from finapi_session.auth import bearer_auth_of
from finapi_session.testing import Sandbox

from .herd import ECHO


def test_a_request_given_to_another_user_is_healed_with_hers(sandbox: Sandbox) -> None:
    """The auth that a request was given last is the only one that answers for it: nobody reads another's accounts."""
    client = sandbox.session()
    alice, anna = client.user("alice", "her-password"), client.user(sandbox.username, sandbox.password)
    prepared = alice.prepare_request(requests.Request("GET", ECHO))
    assert alice.send(prepared).json()["username"] == "alice"
    prepared.prepare_auth(anna.auth)
    assert len(prepared.hooks["response"]) == 1
    assert anna.send(prepared).json()["username"] == sandbox.username
    sandbox.revoke_tokens(sandbox.username)
    answer = anna.send(prepared)
    assert answer.json()["username"] == sandbox.username and [kept.status_code for kept in answer.history] == [401]


def test_copies_of_a_request_have_each_their_own_user(sandbox: Sandbox) -> None:
    """A prepared request may be copied and given to each user in turn."""
    client = sandbox.session()
    template = client.prepare_request(requests.Request("GET", ECHO))
    for name, password in (("alice", "her-password"), (sandbox.username, sandbox.password)):
        user, mine = client.user(name, password), template.copy()
        mine.prepare_auth(user.auth)
        sandbox.revoke_tokens()
        assert user.send(mine).json()["username"] == name
    assert bearer_auth_of(template) is client.auth


def test_the_auth_of_another_environment_works_here_too(sandbox: Sandbox) -> None:
    """What may carry a token to an address is for the token's own environment to say."""
    with Sandbox() as elsewhere, elsewhere.session() as other:
        session = sandbox.session()
        session.verify = elsewhere.ca_bundle
        answer = session.get(f"{elsewhere.base_url}{ECHO}", auth=other.auth)
        assert answer.status_code == 200 and elsewhere.count(ECHO) == 1
        assert session.get(f"{elsewhere.base_url}{ECHO}").status_code == 401


def test_a_pickled_answer_holds_no_secret(sandbox: Sandbox) -> None:
    """A cache or a queue that pickles answers, or requests' errors, gets no more than with requests itself."""
    alice = sandbox.session("alice", lambda: "her-password", on_event=lambda _: None)
    answer = alice.get(ECHO)
    token = alice.fetch_token()
    sandbox.answer_next("drop", path=ECHO)
    with pytest.raises(requests.ConnectionError) as caught:
        alice.get(ECHO)
    for thing in (answer, caught.value):
        pickled = pickle.dumps(thing)
        for secret in (sandbox.client_secret, "her-password", token.refresh_token or ""):
            assert secret.encode() not in pickled
    again = pickle.loads(pickle.dumps(answer))
    assert again.json() == answer.json()
    assert requests.Session().send(again.request, verify=sandbox.ca_bundle).status_code == 200


def test_a_deep_copy_of_a_request_is_healed_too(sandbox: Sandbox) -> None:
    """Only a pickle leaves the session behind."""
    session = sandbox.session()
    prepared = copy.deepcopy(session.prepare_request(requests.Request("GET", ECHO)))
    sandbox.revoke_tokens()
    assert session.send(prepared).status_code == 200
    pickled = pickle.loads(pickle.dumps(prepared))
    for _ in range(2):
        session.auth(pickled)  # type: ignore[operator]
    assert len(pickled.hooks["response"]) == 1


def _sealed() -> str:
    class Sealed(Exception):
        pass

    raise Sealed


def test_a_copy_starts_anew(sandbox: Sandbox) -> None:
    """Neither whose turn it was, nor what a vault raised, goes along into a copy or a pickle."""
    copies: list[FinapiSession] = []

    def listen(_: TokenEvent) -> None:
        if not copies:
            copies.append(copy.deepcopy(session))

    session: FinapiSession = sandbox.session(on_event=listen)
    session.fetch_token()
    assert copies[0].get(ECHO).status_code == 200
    sealed = FinapiSession("id", _sealed, environment=sandbox.environment)
    with pytest.raises(Exception) as caught:  # noqa: B017 - its class is local
        sealed.fetch_token()
    assert type(caught.value).__name__ == "Sealed"
    again = pickle.loads(pickle.dumps(sealed))
    with pytest.raises(Exception) as caught:  # noqa: B017 - its class is local
        again.fetch_token()
    assert type(caught.value).__name__ == "Sealed"


class Heavy:
    """Something in a frame of the caller."""


def test_what_a_vault_raised_keeps_no_frame_alive(sandbox: Sandbox) -> None:
    """The error that waiting threads share is a copy without a traceback."""
    heavy: list[weakref.ref[Heavy]] = []

    def vault() -> str:
        raise LookupError("sealed")

    session = sandbox.session(client_secret=vault)

    def handler() -> None:
        local = Heavy()
        heavy.append(weakref.ref(local))
        with suppress(LookupError):
            session.fetch_token()

    handler()
    gc.collect()
    assert heavy[0]() is None


class Odd(Exception):
    """An error that cannot be copied."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def test_an_error_of_a_vault_that_cannot_be_copied_is_shared_as_it_is(sandbox: Sandbox) -> None:
    """Whoever waited for another thread gets the same error, and the vault is not asked again for it."""
    asked: list[int] = []
    waiting = threading.Barrier(2)

    def vault() -> str:
        asked.append(1)
        time.sleep(0.3)
        raise Odd("sealed", "")

    session = sandbox.session(client_secret=vault)

    def call(_: int) -> Exception:
        waiting.wait()
        with pytest.raises(Odd) as caught:
            session.fetch_token()
        return caught.value

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(call, range(2))
    assert one is other and len(asked) == 1


class Account:
    """An object of the caller's, whose method gives the password of the session that it holds."""

    def __init__(self, client: FinapiSession) -> None:
        self.session = client.user("alice", self.password)

    def password(self) -> str:
        """Return the password."""
        return "her-password"


def test_a_session_that_its_password_refers_to_is_collected(sandbox: Sandbox) -> None:
    """Neither the session nor the caller's object outlives its use, and close() still gives the token back."""
    client = sandbox.session()
    account = Account(client)
    account.session.get(ECHO)
    gone = weakref.ref(account.session)
    del account
    for _ in range(2):
        gc.collect()
    # What a finalizer revives has no weak reference any more, and is collected in the second turn or never.
    assert gone() is None and not [each for each in gc.get_objects() if type(each) is Account]
    client.close()
    assert sandbox.count("/oauth/revoke", status=200) == 2


def test_the_end_of_a_program_is_quiet(sandbox: Sandbox, tmp_path: Path) -> None:
    """Sessions that nobody closed, one of which its password refers to, end without a word."""
    script = tmp_path / "script.py"
    script.write_text(f"""
from finapi_session import FinapiSession, TokenEvent

class Account:
    def __init__(self, client):
        self.session = client.user("alice", self.password)

    def password(self):
        return "her-password"

client = FinapiSession({sandbox.client_id!r}, {sandbox.client_secret!r}, environment={sandbox.base_url!r})
client.verify, client.trust_env = {sandbox.ca_bundle!r}, False
accounts = [Account(client), client]
accounts.append(accounts)
print(accounts[0].session.get({ECHO!r}).status_code)
""")
    command = [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", str(script)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("200\n", "")


def test_a_request_of_one_environment_takes_no_token_to_another(sandbox: Sandbox) -> None:
    """For a token of ours its own environment decides where it may go, whoever sends it."""
    with Sandbox() as elsewhere, elsewhere.session() as other:
        prepared = sandbox.session().prepare_request(requests.Request("GET", ECHO))
        assert "Authorization" in prepared.headers
        prepared.url = f"{elsewhere.base_url}{ECHO}"
        assert other.send(prepared).status_code == 401
        assert [call.headers.get("Authorization") for call in elsewhere.calls if call.path == ECHO] == [None]


def test_a_subclass_gives_each_user_what_is_theirs(sandbox: Sandbox) -> None:
    """``made_for_user`` is called on the new session, which shares all other attributes with the client's."""

    class Counting(FinapiSession):
        """A session with an attribute of its own."""

        seen: list[str]

        def made_for_user(self) -> None:
            self.seen = []

    client = Counting(sandbox.client_id, sandbox.client_secret, environment=sandbox.environment)
    client.seen, client.params = ["client"], {"ids": [1]}
    alice = client.user("alice", "her-password")
    alice.params["ids"].append(2)  # type: ignore[index]
    assert alice.seen == [] and client.seen == ["client"] and client.params == {"ids": [1]}


def test_a_subclass_without_a_hash_works(sandbox: Sandbox) -> None:
    """A dataclass, or a class with ``__eq__``, has no hash; it is a session like any other."""

    class Equal(FinapiSession):
        """A session that is compared."""

        def __eq__(self, other: object) -> bool:
            return True

    session = Equal(sandbox.client_id, sandbox.client_secret, environment=sandbox.environment)
    session.verify, session.trust_env = sandbox.ca_bundle, False
    assert session.get(ECHO).status_code == 200
    assert session.user("alice", "her-password").get(ECHO).status_code == 200
