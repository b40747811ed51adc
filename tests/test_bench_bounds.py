"""The promised figures, as far as a noisy machine can hold them; ``tests.bench`` has the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from .bench import rows
from .bench.outage import OursFromHalf, minutes_survived
from .bench.peers import Ours, OursInBackground, RequestsOauthlib
from .bench.servers import Remote, serving

_TRIES = 5


@pytest.fixture(scope="module")
def remote() -> Iterator[Remote]:
    """One server of the bench for all tests here."""
    with serving() as running:
        yield running


def _best(measure: Callable[[], float], bound: float) -> float:
    """Return the first of a few measurements that is within *bound*, or the least: noise only ever adds."""
    least = measure()
    for _ in range(_TRIES - 1):
        if least <= bound:
            break
        least = min(least, measure())
    return least


@pytest.mark.parametrize(
    "base, options, bound",
    [
        ("AuthBase", {"variables": 33}, 1.0),
        ("AuthBase", {"variables": 233}, 0.8),
        ("AuthBase", {"trust_env": False}, 1.25),
        ("requests", {"variables": 233}, 0.75),
    ],
)
def test_a_call_costs_less_than_the_least_auth(base: str, options: dict[str, int], bound: float) -> None:
    """A call with a fresh token and a request id costs less than one whose auth sets a header and does no more."""
    code = "from tests.bench import peers, rows; all = (peers.Ours, peers.Plain, peers.Least); "
    code += f"print(rows.call_offline(all, 0.5, {base!r}, **{options!r})[peers.Ours.name].ratio)"
    assert _best(lambda: float(rows.fresh_python(code)), bound) <= bound


def test_the_import_costs_hardly_more_than_that_of_requests_oauthlib() -> None:
    """A fresh interpreter imports the session in about the time of the library underneath."""
    peers = (Ours, RequestsOauthlib)
    assert _best(lambda: rows.import_times(peers, 1)[Ours.name].ratio, 1.25) <= 1.25


def test_the_import_loads_nothing_optional() -> None:
    """Neither an optional dependency nor a store that is not used is loaded."""
    assert rows.optional_modules() == set()


def test_a_cold_start_is_one_connection_and_two_requests(remote: Remote) -> None:
    """The token call and the API call share one TLS connection."""
    assert rows.cold_start(Ours, remote).split(" / ")[:2] == ["1", "2"]


def test_a_warm_start_is_one_request(remote: Remote) -> None:
    """A process that finds a token in its store asks for none."""
    assert rows.warm_start(remote).split(" / ")[:2] == ["1", "1"]


@pytest.mark.parametrize("herd", [rows.cold_herd, rows.expired_herd, rows.revoked_herd])
def test_a_herd_costs_one_token_call(remote: Remote, herd: Callable[[type[Ours], Remote], rows.Herd]) -> None:
    """However many threads find no good token, one asks and no call fails."""
    outcome = herd(Ours, remote)
    assert (outcome.token_calls, outcome.failed) == (1, 0)


def test_only_one_waits_in_the_soft_window(remote: Remote) -> None:
    """While one thread renews before expiry, the others go on with the current token."""
    traffic = rows.around_a_renewal(Ours, remote, seconds=1.5)
    assert (traffic.waited, traffic.token_calls, traffic.failed) == (1, 1, 0)


def test_nobody_waits_in_background(remote: Remote) -> None:
    """While a thread of its own renews before expiry, no call takes half of a renewal."""
    traffic = rows.around_a_renewal(OursInBackground, remote, seconds=1.5)
    assert (traffic.waited, traffic.token_calls, traffic.failed) == (0, 1, 0)


@pytest.mark.parametrize("peer, minutes", [(Ours, 0.9), (OursInBackground, 0.9), (OursFromHalf, 27)])
def test_an_outage_is_survived_for_the_soft_window(peer: type[Ours], minutes: float) -> None:
    """An endpoint that fails as the first renewal is due costs no call for the leeway, save a tenth by chance."""
    assert minutes - 5 / 60 <= minutes_survived(peer) <= peer.leeway / 60


def test_a_sticky_server_is_asked_once(remote: Remote) -> None:
    """A server that gives the same token again is not asked again before that expires."""
    token_calls, failed, _ = rows.inside_the_leeway(Ours, remote, failing=False)
    assert (token_calls, failed) == (1, 0)


def test_a_failing_endpoint_costs_no_call_while_the_token_is_good(
    remote: Remote, caplog: pytest.LogCaptureFixture
) -> None:
    """A 503 before expiry is a warning in the log, and no more."""
    _, failed, _ = rows.inside_the_leeway(Ours, remote, failing=True)
    assert failed == 0
    assert "token failed" in caplog.text


def test_a_user_session_is_light() -> None:
    """One of many user sessions takes at most 4 kB, and at most 200 µs to make."""
    # In a process of its own: where classes have seen much, Python shares the keys of their instances no more.
    code = "from tests.bench import peers, rows; print(rows.user_sessions(peers.Ours, 1000)[0])"
    assert float(rows.fresh_python(code)) <= 4096
    assert _best(lambda: rows.user_sessions(Ours, 1000)[1], 200e-6) <= 200e-6


def test_many_users_cost_each_no_more() -> None:
    """A call of the last of many users costs what one of the first does."""
    from finapi_session import MemoryStore

    assert _best(lambda: rows.crowd(MemoryStore(), 300).growth, 1.25) <= 1.25
