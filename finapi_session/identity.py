"""Who asks for a token, and with what."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Union

from .redaction import Redacted

#: A secret, or a callable that returns it (a vault). A client's is asked for whenever a token is looked for, a password
#: when it is to be sent, and at first, since tokens are known by its fingerprint.
Secret = Union[str, Callable[[], str]]


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """The credentials of one identity, as they are at one moment. Its repr shows no secret."""

    client_id: str
    client_secret: str
    username: str | None = None
    password: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "client_secret", Redacted(self.client_secret))
        object.__setattr__(self, "password", None if self.password is None else Redacted(self.password))

    def __repr__(self) -> str:
        return f"<Credentials of {self}>"

    def __str__(self) -> str:
        return label(self.client_id, self.username)

    def key(self, token_url: str) -> str:
        """Return the name under which a store keeps this identity's token.

        A wrong or rotated client secret makes another key, and so finds nothing. finAPI's user ids are
        case-insensitive.
        """
        return self._digest("key", token_url, folded(self.username))

    @property
    def seal(self) -> str:
        """The secret by which what a store keeps is bound to this client."""
        return self._digest("seal")

    @property
    def fingerprint(self) -> str:
        """What tells this password from another one without telling the password; empty without one."""
        return "" if self.password is None else self._digest("password", folded(self.username), self.password)

    def secrets(self) -> tuple[Redacted, ...]:
        """Return what no error may repeat."""
        return tuple(Redacted(secret) for secret in (self.client_secret, self.password) if secret)

    def _digest(self, *parts: str | None) -> str:
        text, handled = Redacted(json.dumps([self.client_id, *parts])), sys.exc_info()[1]
        try:
            return hmac.new(self.client_secret.encode(), text.encode(), hashlib.sha256).hexdigest()
        except BaseException as error:  # noqa: B036 - a signal: the frames of hmac hold both
            from .errors import without_frames  # it needs requests, which --help does not

            raise without_frames(error, handled)  # noqa: B904 - it is the same error


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """A client, or a user of a client. Its repr shows no secret.

    Raises ``TypeError`` or ``ValueError``, naming the argument, for what cannot be sent.
    """

    client_id: str
    client_secret: Secret
    username: str | None = None
    password: Secret | None = None

    def __post_init__(self) -> None:
        _check("client_id", self.client_id)
        if not callable(self.client_secret):
            object.__setattr__(self, "client_secret", Redacted(_check("client_secret", self.client_secret)))
        if self.username is not None:
            _check("username", self.username)
        if self.password is not None:
            if self.username is None:
                raise ValueError("password needs a username (in the environment: FINAPI_USERNAME)")
            if not callable(self.password):
                object.__setattr__(self, "password", Redacted(_check("password", self.password)))

    def __repr__(self) -> str:
        return f"<Identity {self}>"

    def __str__(self) -> str:
        return label(self.client_id, self.username)

    def user(self, username: str, password: Secret | None) -> Identity:
        """Return a user of the same client."""
        _check("username", username)
        return Identity(self.client_id, self.client_secret, username, password)

    def credentials(self) -> Credentials:
        """Return the secrets as they are now; what a callable raises comes through."""
        return self.with_password(self.without_password())

    def without_password(self) -> Credentials:
        """Return the client's secret as it is now; the password is not asked for."""
        return Credentials(self.client_id, _reveal("client_secret", self.client_secret), self.username)

    def with_password(self, credentials: Credentials) -> Credentials:
        """Return *credentials* with the password as it is now, if there is one and it is not there yet."""
        if self.password is None or credentials.password is not None:
            return credentials
        return replace(credentials, password=_reveal("password", self.password))


_CAPITALS = re.compile("[A-Z]+")


def folded(username: str | None) -> str | None:
    """Return *username* as finAPI compares it: user ids are case-insensitive there.

    Only ASCII is folded: other alphabets have letters whose lower case is somebody else's.
    """
    return username and _CAPITALS.sub(lambda match: match[0].lower(), username)


def label(client_id: str, username: str | None) -> str:
    """Return what an identity is called where people read it."""
    return f"client {client_id!r}" if username is None else f"user {username!r}"


def _reveal(argument: str, secret: Secret) -> str:
    return _check(f"{argument} (as its callable returned it)", secret()) if callable(secret) else secret


def _check(argument: str, value: object) -> str:
    """Return *value* if it is text that a form can carry, else raise without showing it, in a frame's locals either."""
    if not isinstance(value, str):
        kind, value = type(value).__name__, None
        raise TypeError(f"{argument} must be text, not {kind}")
    value = Redacted(value)
    if not value:
        raise ValueError(f"{argument} must not be empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{argument} must be text that UTF-8 can carry") from None
    if value != value.strip() and not argument.startswith("username"):
        raise ValueError(f"{argument} must not begin or end with white space, as a line of a file does: strip it")
    return value
