"""What the environment adds to the settings of a call, without a search through all of it each time.

requests looks through every variable for proxies at every call: a third of what a call costs on a machine with few
variables, and nearly all of it on one with many. What it finds depends on the variables whose names end in ``_proxy``
and on nothing else (``urllib.request.getproxies_environment``; ``requests.utils.should_bypass_proxies``), so while
there is no such name it finds nothing. Whether there is one is a fact about the names alone: it is remembered together
with all of them, and so it cannot go stale. Whatever else comes (a proxy, a URL that is hard to read, a platform that
keeps proxies elsewhere, a mock) is left to requests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import requests
from requests import sessions, utils

_Merge = Callable[..., dict[str, Any]]

_MERGE: Any = requests.Session.merge_environment_settings
# A URL about whose host nobody can be of two minds; of no other is said that requests finds no proxy for it.
_URL = re.compile(r"https?://[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]+)?(?:[/?#]|\Z)")
# Where requests looks. On macOS and Windows that is more than variables, in a test it may be a mock.
_SESSIONS, _UTILS = vars(sessions), vars(utils)
_LOOK_UP, _BYPASS = _SESSIONS["get_environ_proxies"], _UTILS["should_bypass_proxies"]

#: Names of variables, as the environment had them, of which none ends in ``_proxy``.
_without_proxies: tuple[object, ...] | None = None


def merged(inherited: _Merge, url: Any, proxies: Any, stream: bool | None, verify: Any, cert: Any) -> dict[str, Any]:
    """Return what *inherited*, a session's method as requests has it, returns for the other arguments.

    Raises what it raises.
    """
    function: Any = getattr(inherited, "__func__", None)
    if function is _MERGE:
        session: Any = inherited.__self__  # type: ignore[attr-defined]
        if session.trust_env and _can_be_told(url, proxies) and _no_proxy_is_named():
            inherited = partial(function, _WithoutEnvironment(session))
            if verify is True or verify is None:
                verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or verify
    return inherited(url, proxies, stream, verify, cert)


def checked_verify(given: object) -> Any:
    """Return *given* as requests takes it: only a literal ``False`` switches checking off, ``None`` is the default.

    Raises ``ValueError`` for anything else that is falsy.
    """
    if given is None:
        return True
    if given or given is False:
        return given
    raise ValueError(f"verify must be True, False or the path of a CA bundle, not {given!r}: set session.verify")


class _WithoutEnvironment:
    """A *session* as it stands, but with no environment to look into: requests merges the rest."""

    __slots__ = ("_session",)
    trust_env = False

    def __init__(self, session: requests.Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def _can_be_told(url: Any, proxies: Any) -> bool:
    """Tell whether the outcome depends on the environment only: the call names no exceptions of its own."""
    named = proxies is None or (type(proxies) is dict and "no_proxy" not in proxies)
    return named and isinstance(url, str) and _URL.match(url) is not None


def _no_proxy_is_named() -> bool:
    """Tell whether no variable can name a proxy, for requests as it is here and now."""
    global _without_proxies
    if not _reads_variables_only():
        return False
    variables = getattr(os.environ, "_data", None)
    if type(variables) is not dict:
        return False
    names = tuple(variables)
    if names == _without_proxies:  # the same objects, mostly: some nanoseconds each
        return True
    if any(name[-6:].lower() == b"_proxy" for name in names):
        return False
    _without_proxies = names
    return True


def _reads_variables_only() -> bool:
    return (
        _SESSIONS["get_environ_proxies"] is _LOOK_UP
        and _UTILS["should_bypass_proxies"] is _BYPASS
        and _UTILS["getproxies"] is _UTILS["getproxies_environment"]
        and _UTILS["proxy_bypass"] is _UTILS["proxy_bypass_environment"]
    )
