"""A ``requests.Session`` that always carries a valid finAPI access token."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .auth import BearerAuth
    from .environment import LIVE, LIVE_V2, SANDBOX, SANDBOX_V2, Environment
    from .errors import (
        AccessDeniedError,
        ApiError,
        FinapiError,
        InvalidClientError,
        InvalidGrantError,
        LoginRequiredError,
        RevocationError,
        TokenEndpointError,
        TokenError,
        UserLockedError,
    )
    from .events import TokenEvent
    from .problem import ProblemDetail, raise_for_error
    from .session import FinapiSession
    from .stores.encrypted import EncryptedStore
    from .stores.file import FileStore
    from .stores.keyring import KeyringStore
    from .stores.memory import MemoryStore
    from .stores.protocol import TokenStore
    from .stores.redis import RedisStore
    from .stores.sql import SQLStore
    from .tokens import Token

__version__ = "0.1.0"

__all__ = [
    "AccessDeniedError",
    "ApiError",
    "BearerAuth",
    "EncryptedStore",
    "Environment",
    "FileStore",
    "FinapiError",
    "FinapiSession",
    "InvalidClientError",
    "InvalidGrantError",
    "KeyringStore",
    "LIVE",
    "LIVE_V2",
    "LoginRequiredError",
    "MemoryStore",
    "ProblemDetail",
    "RedisStore",
    "RevocationError",
    "SANDBOX",
    "SANDBOX_V2",
    "SQLStore",
    "Token",
    "TokenEndpointError",
    "TokenError",
    "TokenEvent",
    "TokenStore",
    "UserLockedError",
    "raise_for_error",
]

_HOMES = {
    "auth": ("BearerAuth",),
    "environment": ("LIVE", "LIVE_V2", "SANDBOX", "SANDBOX_V2", "Environment"),
    "errors": (
        "AccessDeniedError",
        "ApiError",
        "FinapiError",
        "InvalidClientError",
        "InvalidGrantError",
        "LoginRequiredError",
        "RevocationError",
        "TokenEndpointError",
        "TokenError",
        "UserLockedError",
    ),
    "events": ("TokenEvent",),
    "problem": ("ProblemDetail", "raise_for_error"),
    "session": ("FinapiSession",),
    "stores.encrypted": ("EncryptedStore",),
    "stores.file": ("FileStore",),
    "stores.keyring": ("KeyringStore",),
    "stores.memory": ("MemoryStore",),
    "stores.protocol": ("TokenStore",),
    "stores.redis": ("RedisStore",),
    "stores.sql": ("SQLStore",),
    "tokens": ("Token",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_EXTRAS = {"redis": "redis", "sqlalchemy": "sql", "keyring": "keyring", "cryptography": "encryption"}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise ImportError(f"{name} needs an extra: pip install 'finapi-session[{extra}]'") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
