"""Where finAPI is: its addresses, and the origins that may see a token."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

import requests

_ORIGIN = re.compile(r"(https://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\]))((?::[0-9]+)?)/*")
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_OAUTH_PATH = re.compile(r"(?<=[^/])/([A-Za-z0-9._~-]+/)*oauth$")


@dataclass(frozen=True)
class Environment:
    """One finAPI environment.

    *base_url* is the https address of finAPI Access, to which relative URLs are joined; *oauth_path* the path
    of its two OAuth calls; *trusted* the other origins that take the same token (Web Form, Data
    Intelligence). A token goes to *base_url* and to these, to nobody else.

    Raises ``ValueError`` or ``TypeError`` for anything but an https origin.
    """

    base_url: str
    oauth_path: str = "/oauth"
    trusted: tuple[str, ...] = ()
    _prefixes: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.oauth_path, str) or not _PATH.fullmatch(self.oauth_path):
            raise ValueError(f"oauth_path must be a path such as '/oauth', not {self.oauth_path!r}")
        if isinstance(self.trusted, str):
            raise TypeError("trusted must be a tuple of https origins, not text")
        base_url = _origin(self.base_url, "base_url")
        trusted = tuple(_origin(url, "trusted") for url in self.trusted)
        prefixes = tuple(prefix for origin in (base_url, *trusted) for prefix in _beginnings(origin))
        for name, value in (("base_url", base_url), ("trusted", trusted), ("_prefixes", prefixes)):
            object.__setattr__(self, name, value)

    @classmethod
    def named(cls, name: str) -> Environment:
        """Return the environment called *name*: sandbox, live, sandbox-v2, live-v2, or an https base URL.

        A URL may have the OAuth path behind it, as in ``https://finapi.example/api/v2/oauth``.
        """
        if name.lower() in _NAMED:
            return _NAMED[name.lower()]
        if "://" in name:
            path = _OAUTH_PATH.search(name)
            return cls(name) if path is None else cls(name[: path.start()], path[0])
        raise ValueError(f"unknown environment {name!r}: use one of {', '.join(_NAMED)}, or an https base URL")

    @property
    def token_url(self) -> str:
        """Where tokens are asked for (RFC 6749, section 3.2)."""
        return f"{self.base_url}{self.oauth_path}/token"

    @property
    def revoke_url(self) -> str:
        """Where tokens are revoked (RFC 7009, section 2)."""
        return f"{self.base_url}{self.oauth_path}/revoke"

    def absolute(self, url: str | bytes) -> str:
        """Return *url*, joined to ``base_url`` if it is relative."""
        text = url.decode("utf-8") if isinstance(url, bytes) else str(url)
        if text.startswith(("https://", "http://")):
            return text
        if text.startswith("/") and not text.startswith("//"):
            return self.base_url + text
        return urljoin(self.base_url + "/", text)

    def trusts(self, url: str | None) -> bool:
        """Tell whether a token may go to *url*, as a request's URL stands when it is sent.

        Scheme, host and port are compared letter by letter up to the character that ends them: there is no
        second parser that could read the URL in another way than the one that connects.
        """
        return url is not None and (url.startswith(self._prefixes) or f"{url.lower()}/".startswith(self._prefixes))


def _beginnings(origin: str) -> tuple[str, ...]:
    """Return all that a URL of *origin* may begin with, including the character that ends the origin."""
    ports = ("",) if urlsplit(origin).port else ("", ":443")
    return tuple(origin + port + end for port in ports for end in "/?#")


def _origin(url: str, argument: str) -> str:
    """Return the https origin *url* in the form in which requests writes it, or raise ``ValueError``."""
    wanted = f"{argument} must be an https origin such as 'https://sandbox.finapi.io'"
    if not isinstance(url, str):
        raise TypeError(f"{wanted}, not {type(url).__name__}")
    prepared = requests.PreparedRequest()
    try:
        prepared.prepare_url(url, None)
        origin = _ORIGIN.fullmatch(prepared.url or "")
        port = urlsplit(prepared.url).port
    except ValueError as error:
        raise ValueError(f"{wanted}: {type(error).__name__}") from None
    if origin is None or url[-1:] in "?#":
        raise ValueError(f"{wanted}, without user, path, query or fragment")
    return origin[1] if port == 443 else origin[1] + origin[2]


_SANDBOXES = ("https://webform-sandbox.finapi.io", "https://di-sandbox.finapi.io")
_LIVES = ("https://webform-live.finapi.io", "https://di-live.finapi.io")

#: finAPI's sandbox and live environments, for clients bound to API version 1 and to version 2.
SANDBOX = Environment("https://sandbox.finapi.io", trusted=_SANDBOXES)
LIVE = Environment("https://live.finapi.io", trusted=_LIVES)
SANDBOX_V2 = Environment("https://sandbox.finapi.io", "/api/v2/oauth", trusted=_SANDBOXES)
LIVE_V2 = Environment("https://live.finapi.io", "/api/v2/oauth", trusted=_LIVES)

_NAMED = {"sandbox": SANDBOX, "live": LIVE, "sandbox-v2": SANDBOX_V2, "live-v2": LIVE_V2}
