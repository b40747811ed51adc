"""finAPI's addresses, and which URLs may see a token."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
import requests
from hypothesis import given, strategies as st
from urllib3.util import parse_url

from finapi_session.environment import LIVE, LIVE_V2, SANDBOX, SANDBOX_V2, Environment


@pytest.mark.parametrize(
    ("environment", "token_url"),
    [
        (SANDBOX, "https://sandbox.finapi.io/oauth/token"),
        (LIVE, "https://live.finapi.io/oauth/token"),
        (SANDBOX_V2, "https://sandbox.finapi.io/api/v2/oauth/token"),
        (LIVE_V2, "https://live.finapi.io/api/v2/oauth/token"),
    ],
)
def test_oauth_urls(environment: Environment, token_url: str) -> None:
    """Each environment knows finAPI's two OAuth calls at the paths of its API version."""
    assert environment.token_url == token_url
    assert environment.revoke_url == token_url.replace("token", "revoke")


def test_names() -> None:
    """An environment is found by its name in any case, or made of a base URL."""
    assert Environment.named("LIVE-v2") is LIVE_V2
    assert Environment.named("https://127.0.0.1:8443") == Environment("https://127.0.0.1:8443")
    assert Environment.named("https://finapi.example/oauth") == Environment("https://finapi.example")
    version_2 = Environment("https://finapi.example:8443", "/api/v2/oauth")
    assert Environment.named("https://finapi.example:8443/api/v2/oauth") == version_2
    assert Environment.named("https://oauth").base_url == "https://oauth"
    with pytest.raises(ValueError, match="without user, path"):
        Environment.named("https://finapi.example/api/v2")
    with pytest.raises(ValueError, match="unknown environment 'production': use one of sandbox, live"):
        Environment.named("production")


@pytest.mark.parametrize(
    ("base_url", "written"),
    [
        ("https://finapi.example", "https://finapi.example"),
        ("https://FinAPI.Example/", "https://finapi.example"),
        ("https://finapi.example:443", "https://finapi.example"),
        ("https://finapi.example:8443/", "https://finapi.example:8443"),
        ("https://[::1]:8443", "https://[::1]:8443"),
        ("https://bänk.example", "https://xn--bnk-qla.example"),
    ],
)
def test_base_url_is_written_as_requests_writes_it(base_url: str, written: str) -> None:
    """The base URL is normalised once, so that it compares with the URLs that are sent."""
    assert Environment(base_url).base_url == written


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "finapi.example",
        "http://finapi.example",
        "ftp://finapi.example",
        "https://",
        "https://:8443",
        "https://finapi.example/api",
        "https://finapi.example?x=1",
        "https://finapi.example?",
        "https://finapi.example#x",
        "https://user@finapi.example",
        "https://user:secret@finapi.example",
        "https://finapi.example:port",
        "https://finapi.example:99999",
        "https://*.finapi.io",
        None,
        7,
    ],
)
def test_what_is_no_https_origin_is_refused(base_url: object) -> None:
    """Anything but an https origin is an error that names the argument and does not repeat what it may hold."""
    for arguments in ({"base_url": base_url}, {"base_url": "https://finapi.example", "trusted": (base_url,)}):
        with pytest.raises((ValueError, TypeError), match=list(arguments)[-1]) as caught:
            Environment(**arguments)  # type: ignore[arg-type]
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("oauth_path", ["", "oauth", "/oauth/", "/oauth?x", "/o auth", "//evil.example", None])
def test_oauth_path_must_be_a_path(oauth_path: object) -> None:
    """An OAuth path that would change the address is refused."""
    with pytest.raises(ValueError, match="oauth_path"):
        Environment("https://finapi.example", oauth_path)  # type: ignore[arg-type]


def test_trusted_as_text_is_refused() -> None:
    """A single trusted origin given as text is not taken apart letter by letter."""
    with pytest.raises(TypeError, match="trusted must be a tuple"):
        Environment("https://finapi.example", trusted="https://other.example")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "absolute"),
    [
        ("/api/v2/banks", "https://sandbox.finapi.io/api/v2/banks"),
        ("api/v2/banks", "https://sandbox.finapi.io/api/v2/banks"),
        (b"/api/v2/banks", "https://sandbox.finapi.io/api/v2/banks"),
        ("?page=2", "https://sandbox.finapi.io/?page=2"),
        ("https://di-sandbox.finapi.io/x", "https://di-sandbox.finapi.io/x"),
        ("//evil.example/x", "https://evil.example/x"),
        ("HTTPS://Other.example/x", "https://Other.example/x"),
    ],
)
def test_relative_urls_are_joined(url: str | bytes, absolute: str) -> None:
    """A relative URL is one of the base URL's, an absolute one stays."""
    assert SANDBOX.absolute(url) == absolute


@pytest.mark.parametrize(
    "url",
    [
        "https://sandbox.finapi.io/",
        "https://sandbox.finapi.io",
        "https://sandbox.finapi.io:443/x",
        "https://sandbox.finapi.io?x=1",
        "https://SANDBOX.finapi.io/x",
        "HTTPS://sandbox.finapi.io/x",
        "https://webform-sandbox.finapi.io/x",
        "https://di-sandbox.finapi.io/x",
    ],
)
def test_trusted_urls(url: str) -> None:
    """The products of one environment are trusted, in every spelling of their origin."""
    assert SANDBOX.trusts(url)


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "http://sandbox.finapi.io/",
        "https://live.finapi.io/",
        "https://finapi.io/",
        "https://evil.finapi.io/",
        "https://sandbox.finapi.io.evil.example/",
        "https://sandbox.finapi.io@evil.example/",
        "https://sandbox.finapi.io:443@evil.example/",
        "https://user@sandbox.finapi.io/",
        "https://sandbox.finapi.io:8443/",
        "https://sandbox.finapi.io./",
        "https://sandbox.finapi.io\\@evil.example/",
        "https://sandbox.finapi.io%2f@evil.example/",
        "https://sandbox.finapi.io%00/",
        "https://evil.example/https://sandbox.finapi.io/",
        "https://evil.example?https://sandbox.finapi.io/",
        "//sandbox.finapi.io/",
        "/api/v2/banks",
    ],
)
def test_untrusted_urls(url: str | None) -> None:
    """Other schemes, hosts, ports and every trick with them see no token."""
    assert not SANDBOX.trusts(url)


_PIECES = st.sampled_from(
    ["https://", "http://", "sandbox.finapi.io", "SANDBOX.finapi.io", "evil.example", "@", ":", "443", "8443"]
    + ["/", "\\", "?", "#", ".", "%2f", "%40", "[", "]", "::1", "user", "\t", "\n", " ", "//"]
    + ["ſandbox.finapi.io", "。", "\u212a"]
)


@given(st.lists(_PIECES, min_size=1, max_size=9).map("".join))
def test_whatever_is_trusted_connects_to_the_environment(url: str) -> None:
    """No URL is trusted that requests, urllib3 or the standard library would take to another host."""
    prepared = requests.PreparedRequest()
    try:
        prepared.prepare_url(url, None)
    except (ValueError, requests.RequestException):
        prepared.url = None
    for candidate in filter(None, (url, prepared.url)):
        if SANDBOX.trusts(candidate):
            assert urlsplit(candidate).hostname == "sandbox.finapi.io"
            assert urlsplit(candidate).port in (None, 443)
            parsed = parse_url(candidate)
            assert (parsed.scheme, parsed.host, parsed.port or 443) == ("https", "sandbox.finapi.io", 443)
