"""The arguments of a session, checked as soon as they are given. All raise naming the argument, and show no secret."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import Any, TypedDict

from urllib3.util import Retry

from .endpoint import RETRIES, Timeout
from .environment import Environment
from .events import Listener
from .identity import Secret
from .stores.memory import MemoryStore
from .stores.protocol import TokenStore
from .tokens import Token

#: Seconds to connect and to wait for an answer, where a call names no timeout.
TIMEOUT = (10.0, 180.0)
# finAPI's limit is 255 characters; a control character would end the header, and headers are Latin-1.
_REQUEST_ID = re.compile(r"[\x20-\x7e\xa0-\xff]{1,255}")

_LONGEST = 100 * 365 * 86400.0


class NotGiven(Enum):
    """The default of an argument that may be left out but must not be ``None``."""

    NOT_GIVEN = "not given"

    def __repr__(self) -> str:
        return self.value


NOT_GIVEN = NotGiven.NOT_GIVEN


class Overrides(TypedDict, total=False):
    """The arguments of :class:`FinapiSession`, each of which may be given to its ``from_env()``."""

    client_id: str
    client_secret: Secret
    username: str | None
    password: Secret | NotGiven
    environment: Environment | str
    store: TokenStore | str | None
    token: Token | Mapping[str, Any] | None
    leeway: float
    renew_in_background: bool
    revoke_on_close: bool | None
    timeout: Timeout
    request_id: str | Callable[[], str]
    retries: Retry | int
    raise_api_errors: bool
    on_event: Listener | None


def new_request_id() -> str:
    """Return a new unique request id: a random UUID (RFC 9562, version 4), of fresh random bits in every process."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def checked_password(given: Secret | NotGiven | None, username: str | None) -> Secret | None:
    """Return the password, ``None`` if none was *given*; one that is ``None`` is an error where there is a user."""
    if given is None and username is not None:
        raise TypeError("password must not be None: leave it out for a user who lives on a stored token or on token=")
    return None if isinstance(given, NotGiven) else given


def opened_store(given: TokenStore | str | None) -> TokenStore:
    """Return the store that was *given*, or that a text stands for, or memory."""
    if isinstance(given, str):
        from .stores.opening import open_store

        return open_store(given)
    return MemoryStore() if given is None else given


def checked_token(given: Token | Mapping[str, Any] | None) -> Token | None:
    """Return the token that was *given*, if any, from a dict as well."""
    if given is None or isinstance(given, Token):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(f"token must be a Token or a mapping with access_token, not {type(given).__name__}")
    try:
        return Token.from_dict(given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"token is not usable: {error}") from None


def checked_environment(given: Environment | str) -> Environment:
    """Return the environment that was *given*, by name as well."""
    if isinstance(given, str):
        return Environment.named(given)
    if not isinstance(given, Environment):
        raise TypeError(f"environment must be an Environment or its name, not {type(given).__name__}")
    return given


def checked_leeway(given: float) -> float:
    """Return seconds."""
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise TypeError(f"leeway must be a number of seconds, not {type(given).__name__}")
    if not 0 <= given <= _LONGEST:
        raise ValueError(f"leeway must be a finite number of seconds from 0 up, not {given!r:.40}")
    return given


def checked_flag(argument: str, given: bool) -> bool:
    """Return what is *given* for *argument*."""
    if not isinstance(given, bool):
        raise TypeError(f"{argument} must be True or False, not {type(given).__name__}")
    return given


def checked_timeout(given: Timeout) -> Timeout:
    """Return seconds, or a pair of them, or ``None``."""
    parts = given if isinstance(given, tuple) else (given, given)
    sound = [
        part is None or (isinstance(part, (int, float)) and part is not True and 0 < part <= _LONGEST) for part in parts
    ]
    if len(parts) != 2 or not all(sound):
        raise ValueError(f"timeout must be seconds above 0, or a pair (connect, read) of them, not {given!r:.80}")
    return given


def checked_retry(given: Retry | int) -> Retry:
    """Return the policy that was *given*, or one of so many tries more."""
    if isinstance(given, Retry):
        if given.total is None:
            raise ValueError("retries must have a total: the other counts of a Retry are not used")
        return given
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise ValueError(f"retries must be a urllib3 Retry or a count from 0 up, not {given!r}")
    return RETRIES.new(total=given)


def checked_listener(given: Listener | None) -> Listener | None:
    """Return what is called with events, if anything."""
    if given is not None and not callable(given):
        raise TypeError(f"on_event must be callable, not {type(given).__name__}")
    return given


def checked_request_ids(given: str | Callable[[], str]) -> Callable[[], str]:
    """Return what returns the request id of a call, from a text as well."""
    if isinstance(given, str):
        return partial(str, check_request_id(given))
    if given is new_request_id:
        return new_request_id
    if not callable(given):
        raise TypeError(f"request_id must be text or a callable that returns it, not {type(given).__name__}")
    return partial(_ask_for_request_id, given)


def _ask_for_request_id(make: Callable[[], str]) -> str:
    return check_request_id(make())


def check_headers(headers: Mapping[str, str | bytes | None]) -> None:
    """Check the request id that a caller has set, if there is one."""
    for name in headers:
        if len(name) == len("x-request-id") and name.lower() == "x-request-id":
            value = headers[name]
            if isinstance(value, (str, bytes)):
                check_request_id(value.decode("latin-1") if isinstance(value, bytes) else value)


def check_request_id(request_id: object) -> str:
    """Return a request id that a header can carry."""
    if not isinstance(request_id, str):
        raise TypeError(f"request_id must be text, not {type(request_id).__name__}")
    if not _REQUEST_ID.fullmatch(request_id) or request_id != request_id.strip():
        raise ValueError("request_id must be 1 to 255 characters that a header can carry, no control characters")
    return request_id
