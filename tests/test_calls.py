"""API calls in the log: each with its id, at the level that fits, and why a token was renewed."""

from __future__ import annotations

import logging
import ssl

import httpx
import pytest
import requests

from finapi_session import Environment, FinapiSession, TokenEvent
from finapi_session.httpx import FinapiAuth
from finapi_session.testing import Sandbox

from .clocks import Clock
from .herd import CALLS, ECHO, warm
from .loopback import Answer, Authorities, Authority, Loopback, Sent


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return level and text of what was logged of API calls, without their milliseconds."""
    records = [record for record in caplog.records if record.getMessage().startswith("call ")]
    told = []
    for record in records:
        milliseconds = vars(record)["finapi_milliseconds"]
        text = record.getMessage()
        told.append((record.levelname, text if milliseconds is None else text.replace(f", {milliseconds:.0f} ms", "")))
    return told


@pytest.mark.parametrize(("status", "level"), [(200, "DEBUG"), (404, "INFO"), (503, "INFO")])
def test_each_call_is_told_with_its_id(
    status: int, level: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors at INFO, the rest at DEBUG: method and path without the query, whose, status, and the id as fields too."""
    caplog.set_level(logging.DEBUG, "finapi_session")
    if status != 200:
        sandbox.answer_next(status, path=ECHO)
    response = sandbox.session("alice").get(ECHO, params={"search": "Erika"})
    request_id = response.request.headers["X-Request-Id"]
    said = f"call answered: GET {ECHO} of user 'alice', {status}, request id {request_id}"
    assert lines(caplog) == [(level, said)]
    fields = {name: value for name, value in vars(caplog.records[-1]).items() if name.startswith("finapi_")}
    assert 0 < fields.pop("finapi_milliseconds") < 60_000
    assert fields == {
        "finapi_kind": "answered",
        "finapi_identity": "user 'alice'",
        "finapi_call": f"GET {ECHO}",
        "finapi_status": status,
        "finapi_request_id": request_id,
    }


@pytest.mark.parametrize(("rejected", "outcome"), [(False, "drop"), (False, "cut"), (True, "drop")])
def test_a_connection_that_breaks_is_told(
    rejected: bool, outcome: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """At INFO, once, with the id of the call: before an answer, in the middle of one, and when it is sent again."""
    alice = sandbox.session("alice")
    warm(alice)
    caplog.set_level(logging.INFO, "finapi_session")
    if rejected:
        sandbox.answer_next(401, path=ECHO)
    sandbox.answer_next(outcome, path=ECHO)  # type: ignore[arg-type]
    with pytest.raises(requests.RequestException) as caught:
        alice.get(ECHO, headers={"X-Request-Id": "mine"}, params={"search": "Erika"})
    kind = type(caught.value).__name__
    assert lines(caplog)[1 if rejected else 0 :] == [
        ("INFO", f"call broke: GET {ECHO} of user 'alice', {kind}, request id mine")
    ]
    assert "Erika" not in caplog.text


def test_a_call_that_is_sent_again_is_told_twice(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """The 401, then the renewal that names the call and its id, then the answer."""
    alice = sandbox.session("alice")
    warm(alice)
    caplog.set_level(logging.DEBUG, "finapi_session")
    caplog.clear()
    sandbox.answer_next(401, path=ECHO)
    alice.get(ECHO, headers={"X-Request-Id": "mine"}, params={"search": "Erika"})
    said = f"GET {ECHO} of user 'alice'"
    assert lines(caplog) == [
        ("INFO", f"call answered: {said}, 401, request id mine"),
        ("DEBUG", f"call answered: {said}, 200, request id mine"),
    ]
    assert caplog.messages[1].startswith("token renewed: user 'alice'")
    assert caplog.messages[1].endswith(f", after a 401 to GET {ECHO}, request id mine")


def test_each_hop_of_a_redirect_is_told_once(
    session: FinapiSession, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """As many lines as calls, whether the last one is answered or breaks; none for a host that is not finAPI's."""
    caplog.set_level(logging.DEBUG, "finapi_session")
    for outcome, texts in ((200, ["302", "200"]), ("drop", ["302", "ConnectionError"])):
        caplog.clear()
        sandbox.answer_next(302, headers={"Location": "/api/v2/banks"}, path=ECHO)
        if outcome == "drop":
            sandbox.answer_next("drop", path="/banks")
            with pytest.raises(requests.ConnectionError):
                session.get(ECHO)
        else:
            session.get(ECHO)
        assert [text.split(", ")[1] for _, text in lines(caplog)] == texts


def test_strangers_are_not_told(
    authorities: Authorities, loopback: Loopback, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """A host that gets no token may have a secret in its path: neither its answers nor its breaks are logged."""
    caplog.set_level(logging.DEBUG, "finapi_session")
    with FinapiSession("id", "secret", environment=Environment(loopback.origin)) as session:
        session.verify = loopback.ca
        with authorities.serve() as stranger:
            stranger.routes["/"] = lambda request: Answer(404)
            assert session.get(f"{stranger.origin}/process-token").status_code == 404
        with pytest.raises(requests.ConnectionError):
            session.get("https://127.0.0.1:1/process-token")
    assert caplog.records == []


def test_an_id_that_repeats_the_token_is_not_logged(
    loopback: Loopback, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer whose request id is the token that was sent shows neither at any level."""
    caplog.set_level(logging.DEBUG, "finapi_session")
    loopback.routes["/api/mirror"] = lambda sent: Answer(404, headers={"X-Request-Id": _bearer(sent)})
    with FinapiSession("id", "secret", environment=Environment(loopback.origin)) as session:
        session.verify = loopback.ca
        session.get("/api/mirror")
        token = session.fetch_token().access_token
    assert len(lines(caplog)) == 1 and token not in caplog.text


def _bearer(sent: Sent) -> str:
    assert sent.bearer
    return sent.bearer


def test_calls_over_httpx_are_told_alike(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """A 401, the renewal that names its call, and the answer to what was sent again."""
    alice = sandbox.session("alice")
    warm(alice)
    caplog.set_level(logging.DEBUG, "finapi_session")
    caplog.clear()
    sandbox.answer_next(401, path=ECHO)
    context = ssl.create_default_context(cafile=sandbox.ca_bundle)
    base_url = sandbox.environment.base_url
    with httpx.Client(auth=FinapiAuth(alice), base_url=base_url, verify=context, trust_env=False) as client:
        client.get(ECHO, headers={"X-Request-Id": "mine"}, params={"search": "Erika"})
    said = f"GET {ECHO} of user 'alice'"
    assert lines(caplog) == [
        ("INFO", f"call answered: {said}, 401, request id mine"),
        ("DEBUG", f"call answered: {said}, 200, request id mine"),
    ]
    assert caplog.messages[1].endswith(f", after a 401 to GET {ECHO}, request id mine")


def test_why_a_token_was_obtained_is_told(sandbox: Sandbox, clock: Clock) -> None:
    """The first one needs no reason; the next ones came early, at an expiry, and after somebody met a 401."""
    events: list[TokenEvent] = []
    sandbox.sticky = False
    alice = sandbox.session("alice", on_event=events.append)
    warm(alice)
    clock.before_expiry(alice)
    warm(alice)
    clock.before_expiry(alice, -1)
    warm(alice)
    sandbox.answer_next(401, path=ECHO, times=2)
    alice.get(ECHO)
    warm(alice)
    assert [(event.reason or "first").partition(",")[0] for event in events if event.kind in ("issued", "renewed")] == [
        "first",
        "early",
        "the last one has expired",
        f"after a 401 to GET {ECHO}",
        "the last one was rejected",
    ]
    assert sandbox.count(CALLS) == 5
