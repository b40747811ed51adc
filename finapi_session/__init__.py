"""A ``requests.Session`` that always carries a valid finAPI access token."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .auth import BearerAuth
    from .authorization import AuthorizationApi
    from .environment import LIVE, LIVE_V2, SANDBOX, SANDBOX_V2, Environment
    from .error_body import raise_for_error
    from .errors import (
        AccessDeniedError,
        ApiError,
        ErrorDetail,
        FinapiError,
        InvalidClientError,
        InvalidGrantError,
        LoginRequiredError,
        ProblemDetail,
        RevocationError,
        TokenEndpointError,
        TokenError,
        UserLockedError,
    )
    from .events import TokenEvent
    from .session import FinapiSession
    from .stores.encrypted import EncryptedStore
    from .stores.file import FileStore
    from .stores.keyring import KeyringStore
    from .stores.memory import MemoryStore
    from .stores.opening import open_store
    from .stores.protocol import TokenStore
    from .stores.redis import RedisStore
    from .stores.sql import SQLStore
    from .tokens import Token

__version__ = "0.1.0"

__all__ = [
    "AccessDeniedError",
    "ApiError",
    "AuthorizationApi",
    "BearerAuth",
    "EncryptedStore",
    "Environment",
    "ErrorDetail",
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
    "open_store",
    "raise_for_error",
]

_HOMES = {
    "auth": ("BearerAuth",),
    "authorization": ("AuthorizationApi",),
    "environment": ("LIVE", "LIVE_V2", "SANDBOX", "SANDBOX_V2", "Environment"),
    "errors": (
        "AccessDeniedError",
        "ApiError",
        "ErrorDetail",
        "FinapiError",
        "InvalidClientError",
        "InvalidGrantError",
        "LoginRequiredError",
        "ProblemDetail",
        "RevocationError",
        "TokenEndpointError",
        "TokenError",
        "UserLockedError",
    ),
    "events": ("TokenEvent",),
    "error_body": ("raise_for_error",),
    "session": ("FinapiSession",),
    "stores.encrypted": ("EncryptedStore",),
    "stores.file": ("FileStore",),
    "stores.keyring": ("KeyringStore",),
    "stores.memory": ("MemoryStore",),
    "stores.opening": ("open_store",),
    "stores.protocol": ("TokenStore",),
    "stores.redis": ("RedisStore",),
    "stores.sql": ("SQLStore",),
    "tokens": ("Token",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
# What a module needs that not everybody has, and the extra that brings it.
_EXTRAS = {
    "stores.encrypted": ("cryptography", "encryption"),
    "stores.keyring": ("keyring", "keyring"),
    "stores.redis": ("redis", "redis"),
    "stores.sql": ("sqlalchemy", "sql"),
}


# Type checkers would take any name for one that it gives; they see those above.
if not TYPE_CHECKING:  # pragma: no branch

    def __getattr__(name: str) -> Any:
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
        except ModuleNotFoundError as error:
            package, extra = _EXTRAS.get(_HOME_OF[name], ("", ""))
            if (error.name or "").partition(".")[0] != package:
                raise
            raise ImportError(f"{name} needs an extra: pip install 'finapi-session[{extra}]'") from error
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    # Without what needs a missing extra: help() and inspect look at everything that is named here.
    lacking = {home for home, (package, _) in _EXTRAS.items() if find_spec(package) is None}
    return sorted({*globals(), *(name for name in __all__ if _HOME_OF[name] not in lacking)})
