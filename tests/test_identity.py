"""Who asks, with what: the checks of secrets, their key in a store, and their silence."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import replace

import pytest

from finapi_session.identity import Credentials, Identity

URL = "https://sandbox.finapi.io/oauth/token"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"client_id": ""}, "client_id"),
        ({"client_id": None}, "client_id"),
        ({"client_id": 7}, "client_id"),
        ({"client_secret": ""}, "client_secret"),
        ({"client_secret": None}, "client_secret"),
        ({"client_secret": b"bytes"}, "client_secret"),
        ({"client_secret": "\ud800"}, "client_secret"),
        ({"username": ""}, "username"),
        ({"username": 7}, "username"),
        ({"username": None, "password": "secret-password"}, "password needs a username"),
        ({"password": ""}, "password"),
        ({"password": 7}, "password"),
        ({"client_id": "id\n"}, "client_id must not begin or end with white space"),
        ({"client_secret": " secret"}, "client_secret must not begin or end with white space"),
        ({"password": "secret-password\r\n"}, "password must not begin or end with white space"),
        ({"password": "\u00a0secret-password"}, "password must not begin or end with white space"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, object], named: str) -> None:
    """What cannot be sent is refused at once, by the argument's name, without showing the value."""
    given = {"client_id": "id", "client_secret": "secret", "username": "alice", "password": None, **arguments}
    with pytest.raises((ValueError, TypeError), match=named) as caught:
        Identity(**given)  # type: ignore[arg-type]
    assert "secret-password" not in str(caught.value)


@pytest.mark.parametrize("junk", [None, "", 7, b"bytes", "\ud800", "from-a-file\n"])
def test_junk_from_a_callable_is_named(junk: object) -> None:
    """A callable secret that returns junk is an error naming the argument, when it is asked."""
    with pytest.raises((ValueError, TypeError), match=r"password \(as its callable returned it\)"):
        Identity("id", "secret", "alice", lambda: junk).credentials()  # type: ignore[arg-type,return-value]
    with pytest.raises((ValueError, TypeError), match=r"client_secret \(as its callable returned it\)"):
        Identity("id", lambda: junk).credentials()  # type: ignore[arg-type,return-value]


def test_callables_are_asked_each_time() -> None:
    """A rotated secret is found without a new session."""
    secrets = iter(["first", "second"])
    identity = Identity("id", lambda: next(secrets))
    assert [identity.credentials().client_secret for _ in range(2)] == ["first", "second"]


def test_an_error_of_a_callable_comes_through() -> None:
    """What the vault raises is the caller's to see."""

    def sealed() -> str:
        raise LookupError("vault is sealed")

    with pytest.raises(LookupError, match="vault is sealed"):
        Identity("id", sealed).credentials()


def test_keys_tell_identities_apart() -> None:
    """Environment, client, user and secret each make another key; the case of a user's id does not."""
    base = Credentials("id", "secret", "alice", "password")
    key = base.key(URL)
    assert key == replace(base, username="ALICE", password="other").key(URL)
    others = [
        replace(base, client_id="other").key(URL),
        replace(base, client_secret="other").key(URL),
        replace(base, username="bob").key(URL),
        replace(base, username=None, password=None).key(URL),
        base.key("https://live.finapi.io/oauth/token"),
        replace(base, client_id='id", "alice').key(URL),
    ]
    assert len({key, *others}) == 7
    assert "secret" not in key and "alice" not in key


def test_fingerprints_tell_passwords_apart() -> None:
    """Another password has another fingerprint, no password none, and none of them tells the password."""
    credentials = Credentials("id", "secret", "alice", "password")
    assert credentials.fingerprint != replace(credentials, password="Password").fingerprint
    assert replace(credentials, password=None).fingerprint == ""
    assert "password" not in credentials.fingerprint


def test_reprs_hide_the_secrets() -> None:
    """Identity and credentials show who they are, and nothing that is secret."""
    identity = Identity("id", "s3cret", "alice", "pa55word")
    shown = f"{identity} {identity!r} {identity.credentials()} {identity.credentials()!r}"
    assert "alice" in shown and "s3cret" not in shown and "pa55word" not in shown
    assert str(Identity("id", "s3cret")) == "client 'id'"
    assert pickle.loads(pickle.dumps(identity)) == identity


def test_white_space_inside_a_secret_is_the_callers() -> None:
    """Only at its ends is white space a mistake; a password may hold some, and what is no secret is not looked at."""
    credentials = Identity("my id", "s cr t", " alice", "pass word").credentials()
    assert (credentials.client_id, credentials.password) == ("my id", "pass word")


def test_an_interrupted_digest_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal in the digest of a secret leaves no frame of hmac behind, nor the secrets in ours."""

    def interrupted(key: bytes, *_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hmac.new", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        Credentials("id", "s3cret", "alice", "pa55word").key(URL)
    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack
    assert "interrupted" not in [frame.name for frame in frames]
    assert "s3cret" not in repr([frame.locals for frame in frames if "test_" not in frame.filename])


def test_credentials_hide_plain_text() -> None:
    """Whoever makes credentials of plain text finds it redacted in them, whole or in parts, and as good as before."""
    credentials = Credentials("id", "s3cret", "alice", "pa55word")
    shown = repr([credentials.secrets(), credentials.client_secret, credentials.password, credentials.secrets()[1][:4]])
    assert "s3" not in shown and "pa5" not in shown
    assert credentials.secrets() == ("s3cret", "pa55word")
    assert pickle.loads(pickle.dumps(credentials)) == credentials
