"""What the environment adds to a call is what it adds to a plain session's, in every case."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from unittest import mock

import pytest
import requests
from hypothesis import given, settings, strategies as st
from requests import sessions, utils

from finapi_session import FinapiSession
from finapi_session.session import new_request_id

from .bench import rows

URL = "https://sandbox.finapi.io/api/v2/banks"
URLS = (
    URL,
    "https://sandbox.finapi.io",
    "https://sandbox.finapi.io:8443/api?x=[1]",
    "http://10.1.2.3:80/x",
    "https://localhost/",
    "HTTPS://Sandbox.finapi.io/",
    "https://user:pass@sandbox.finapi.io/",
    "https://sandbox.finapi.io:99999/",
    "https://sand\tbox.finapi.io/",
    "https://b\u00fccher.example/",
    "https://[::1]:8443/",
    "https://[::1/",
    "https:///nowhere",
    "file:///etc/hosts",
    "",
    "https://sandbox.finapi.io\n/",
)
NAMES = (
    *(f"{scheme}_proxy" for scheme in ("http", "https", "all", "no", "ftp", "other")),
    *(f"{scheme}_PROXY" for scheme in ("HTTP", "HTTPS", "ALL", "NO", "FTP", "OTHER")),
    "Https_Proxy",
    "No_Proxy",
    "_proxy",
    "proxy",
    "HTTPS-PROXY",
    "REQUEST_METHOD",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NETRC",
    "UNRELATED",
)
VALUES = ("", "http://proxy.example:3128", "*", "10.0.0.0/8,.finapi.io", "localhost, sandbox.finapi.io:8443", "/a/file")
PROXIES = (
    None,
    {},
    {"https": "http://mine.example:1"},
    {"https": None},
    {"no_proxy": "sandbox.finapi.io"},
    {"http": "http://mine.example:1", "no_proxy": None},
)
VERIFY = (None, True, False, "/my/ca.pem")
CERT = (None, "/my/client.pem", ("/my/client.pem", "/my/client.key"))

USUAL = ("UNRELATED", "HTTPS_PROXY", "no_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")

names = st.one_of(st.sampled_from(USUAL), st.sampled_from(NAMES))
values = st.one_of(st.just("http://proxy.example:3128"), st.sampled_from(VALUES))
changes = st.one_of(
    st.tuples(st.just("set"), names, values),
    st.tuples(st.just("delete"), names),
    st.tuples(st.just("rename"), names, names),
    st.tuples(st.just("proxies"), st.sampled_from(PROXIES)),
    st.tuples(st.just("verify"), st.sampled_from(VERIFY)),
    st.tuples(st.just("cert"), st.sampled_from(CERT)),
    st.tuples(st.just("stream"), st.sampled_from((None, True, False))),
    st.tuples(st.just("trust_env"), st.booleans()),
)
calls = st.tuples(
    st.one_of(st.just(URL), st.sampled_from(URLS)),
    st.sampled_from(PROXIES),
    st.sampled_from((None, True, False)),
    st.sampled_from(VERIFY),
    st.sampled_from(CERT),
)


@pytest.fixture
def ours() -> Iterator[FinapiSession]:
    """A session that has asked for nothing."""
    with FinapiSession("id", "secret") as session:
        yield session


def change(what: str, values: tuple[Any, ...], *both: requests.Session) -> None:
    """Change a variable, or the same setting of both sessions."""
    if what == "set":
        os.environ[values[0]] = values[1]
    elif what in ("delete", "rename"):
        value = os.environ.pop(values[0], None)
        if what == "rename" and value is not None:  # as many variables as before
            os.environ[values[1]] = value
    else:
        for session in both:
            setattr(session, what, dict(values[0]) if isinstance(values[0], dict) else values[0])


def outcome(session: requests.Session, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
    """What merging gives or raises, and what became of the argument that requests fills."""
    own = dict(proxies) if isinstance(proxies, dict) else proxies
    # The one difference that the session documents.
    if not isinstance(session, FinapiSession) and verify is None and session.verify is not True:
        verify = session.verify
    try:
        merged = session.merge_environment_settings(url, own, stream, verify, cert)
    except Exception as error:
        return type(error), str(error), own
    return merged, type(merged["proxies"]), own


def same(ours: requests.Session, plain: requests.Session, *call: Any) -> bool:
    """Whether a call is sent as a plain session sends it."""
    return bool(outcome(ours, *call) == outcome(plain, *call))


@given(st.lists(st.tuples(changes, calls), min_size=1, max_size=12))
@settings(max_examples=400)
def test_settings_are_those_of_requests_whatever_changes(steps: list[tuple[Any, Any]]) -> None:
    """Variables, hosts, proxies, verify, cert, stream and trust_env may change between any two calls."""
    ours, plain = FinapiSession("id", "secret"), requests.Session()
    with mock.patch.dict(os.environ):
        assert same(ours, plain, URL, {}, None, None, None)
        for (what, *values), call in steps:
            change(what, tuple(values), ours, plain)
            assert same(ours, plain, *call)
            assert same(ours, plain, URL, {}, None, None, None)


@pytest.mark.parametrize("name", NAMES)
def test_each_variable_counts_from_the_next_call_on(name: str, ours: FinapiSession) -> None:
    """A variable that takes another's place, so that there are as many as before, counts at once; so does its end."""
    plain = requests.Session()
    os.environ["UNRELATED"] = "http://proxy.example:3128"
    for verify in (None, True, False):
        assert same(ours, plain, URL, {}, None, verify, None)
    for step in (("rename", "UNRELATED", name), ("set", name, ""), ("rename", name, "UNRELATED")):
        change(step[0], step[1:])
        for verify in (None, True, False):
            assert same(ours, plain, URL, {}, None, verify, None)
    del os.environ["UNRELATED"]


def test_threads_see_what_the_environment_holds_now(ours: FinapiSession) -> None:
    """While one thread sets and deletes a proxy others see one state or the other, and the last one at the end."""
    seen: list[dict[str, str]] = []
    ending = threading.Event()

    def look() -> None:
        while not ending.is_set():
            with suppress(KeyError):  # urllib's own look-up fails so where a name goes while it reads
                seen.append(dict(ours.merge_environment_settings(URL, {}, None, None, None)["proxies"]))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(300):
        os.environ["HTTPS_PROXY"] = "http://proxy.example:3128"
        assert ours.merge_environment_settings(URL, {}, None, None, None)["proxies"] != {}, turn
        del os.environ["HTTPS_PROXY"]
        assert ours.merge_environment_settings(URL, {}, None, None, None)["proxies"] == {}, turn
    ending.set()
    for thread in threads:
        thread.join()
    assert {tuple(proxies.items()) for proxies in seen} <= {(), (("https", "http://proxy.example:3128"),)}


def registry() -> dict[str, str]:
    """Proxies as macOS and Windows keep them."""
    return {"https": "http://from-the-registry.example:1"}


@pytest.mark.parametrize(
    "home, name, replacement",
    [
        (utils, "getproxies", registry),
        (utils, "proxy_bypass", lambda _host: True),
        (utils, "should_bypass_proxies", lambda *_, **__: True),
        (sessions, "get_environ_proxies", lambda *_, **__: registry()),
    ],
)
def test_a_platform_that_reads_more_than_variables_is_left_alone(
    home: Any, name: str, replacement: Callable[..., Any], ours: FinapiSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where requests looks elsewhere (macOS, Windows, a mock), its own look-up is what counts."""
    ours.merge_environment_settings(URL, {}, None, None, None)
    monkeypatch.setattr(home, name, replacement)
    assert same(ours, requests.Session(), URL, {}, None, None, None)


@pytest.mark.parametrize("environ", [{"HTTPS_PROXY": "http://proxy.example:3128"}, {}])
def test_an_environment_of_another_kind_is_left_alone(
    environ: dict[str, str], ours: FinapiSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test that puts a dict in the place of os.environ is served as requests serves it."""
    ours.merge_environment_settings(URL, {}, None, None, None)
    monkeypatch.setattr(os, "environ", environ)
    assert same(ours, requests.Session(), URL, {}, None, None, None)


def test_what_stands_between_the_session_and_requests_is_asked() -> None:
    """A mixin's own merging is not passed over."""

    class Pinned(requests.Session):
        def merge_environment_settings(self, *arguments: Any) -> Any:
            return {**super().merge_environment_settings(*arguments), "verify": "/pinned.pem"}

    class Mine(FinapiSession, Pinned):
        pass

    with Mine("id", "secret") as session:
        assert session.merge_environment_settings(URL, {}, None, None, None)["verify"] == "/pinned.pem"


def test_the_look_up_is_left_out_where_no_proxy_is_named(ours: FinapiSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a variable that ends in _proxy requests' search of the environment does not run; with one it does."""
    searches = []
    walk = type(os.environ).__iter__
    monkeypatch.setattr(type(os.environ), "__iter__", lambda self: searches.append(1) or walk(self))
    ours.merge_environment_settings(URL, {}, None, None, None)
    assert not searches
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    ours.merge_environment_settings(URL, {}, None, None, None)
    assert searches


def test_answers_share_nothing(ours: FinapiSession) -> None:
    """What a caller does to the proxies of one call is not in the next one's."""
    ours.merge_environment_settings(URL, {}, None, None, None)["proxies"]["https"] = "http://mine.example:1"
    assert ours.merge_environment_settings(URL, {}, None, None, None)["proxies"] == {}


def test_request_ids_are_random_uuids_in_every_process() -> None:
    """Each is a version 4 UUID of RFC 9562 in its usual spelling, and a forked child's are its own."""
    import uuid

    made = [new_request_id() for _ in range(20_000)]
    assert len(set(made)) == len(made)
    for text in made[:2000]:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 4, uuid.RFC_4122)
    assert {text[19] for text in made} == set("89ab")
    assert all(len({text[place] for text in made}) == 16 for place in range(36) if place not in (8, 13, 14, 18, 19, 23))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_forked_child_repeats_no_request_id() -> None:
    """No randomness is kept in memory that two processes could both use up."""
    code = (
        "import os; from finapi_session.session import new_request_id as new; new(); "
        "r, w = os.pipe(); pid = os.fork(); "
        "ids = [new() for _ in range(500)]; "
        "(os.write(w, ' '.join(ids).encode()), os._exit(0)) if pid == 0 else os.close(w); "
        "theirs = open(r).read().split(); os.waitpid(pid, 0); print(len(set(ids) | set(theirs)))"
    )
    assert rows.fresh_python(code).strip() == "1000"
