"""Workers of one user whose tokens die: of each other's renewals, of others, or one after the other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from finapi_session import FinapiSession, MemoryStore, TokenEvent
from finapi_session.testing import Sandbox

from .clocks import Clock
from .herd import CALLS, ECHO, warm


def _restarted(sandbox: Sandbox) -> list[FinapiSession]:
    """Return two workers with the password, and a store each, as they start again from that."""
    stores = [MemoryStore() for _ in range(2)]
    for store in stores:
        warm(sandbox.session("alice", store=store))
    return [sandbox.session("alice", store=store) for store in stores]


def test_two_workers_with_a_store_each_cost_a_few_token_calls(sandbox: Sandbox, clock: Clock) -> None:
    """Each renewal by refresh token kills the other's token, until one signs in and both have the same again."""
    workers = _restarted(sandbox)
    clock.go_on(3601)
    before = sandbox.count(CALLS)
    for _ in range(20):
        for worker in workers:
            warm(worker)
        clock.go_on(1)
    assert sandbox.count(CALLS) - before <= 8


def test_two_workers_with_a_store_each_and_many_threads_fail_nobody(sandbox: Sandbox, clock: Clock) -> None:
    """120 calls by threads of both: a token that the other worker killed is replaced, and nobody's call fails."""
    workers = _restarted(sandbox)
    clock.go_on(3601)
    before = sandbox.count(CALLS)
    barrier = threading.Barrier(6)

    def call(number: int) -> list[int]:
        barrier.wait()
        return [workers[number % 2].get(ECHO).status_code for _ in range(20)]

    with ThreadPoolExecutor(6) as pool:
        statuses = [status for each in pool.map(call, range(6)) for status in each]
    assert statuses == [200] * 120
    assert sandbox.count(CALLS) - before <= 8


def test_a_dead_token_that_the_store_has_fails_at_most_one_of_eight_workers(sandbox: Sandbox) -> None:
    """All hold a token that has died, and so has the one that the store has for them: who meets it buries it."""
    shared = MemoryStore()
    workers = [sandbox.session("alice", store=shared) for _ in range(8)]
    for worker in workers:
        warm(worker)
    sandbox.revoke_tokens("alice")
    warm(sandbox.session("alice", store=shared))
    sandbox.revoke_tokens("alice")
    before = sandbox.count(CALLS)
    statuses = [worker.get(ECHO).status_code for worker in workers]
    assert statuses.count(401) <= 1 and sandbox.count(CALLS) - before == 1
    for worker in workers:
        warm(worker)
    assert sandbox.count(CALLS) - before == 1


def test_a_dead_token_that_the_store_has_fails_at_most_one_of_eight_workers_that_start(
    sandbox: Sandbox, clock: Clock
) -> None:
    """As above, where the API has taken no token of theirs yet: both are old, not ones that finAPI has just given."""
    shared = MemoryStore()
    sandbox.session("alice", store=shared).fetch_token()
    workers = [sandbox.session("alice", store=shared) for _ in range(8)]
    for worker in workers:
        worker.fetch_token()
    sandbox.revoke_tokens("alice")
    warm(sandbox.session("alice", store=shared))
    clock.go_on(1200)
    sandbox.revoke_tokens("alice")
    statuses = [worker.get(ECHO).status_code for worker in workers]
    assert statuses.count(401) <= 1


def _killed_as_they_come(sandbox: Sandbox, times: int) -> tuple[FinapiSession, list[str]]:
    """Return a session of alice in which so many new tokens die as soon as finAPI has given them, and why it waits."""
    reasons: list[str] = []
    left = [0]

    def listen(event: TokenEvent) -> None:
        if event.kind == "rejected":
            reasons.append(event.reason or "")
        if event.kind in ("renewed", "issued") and left[0]:
            left[0] -= 1
            sandbox.revoke_tokens("alice")

    alice = sandbox.session("alice", on_event=listen)
    warm(alice)
    sandbox.revoke_tokens("alice")
    left[0] = times
    return alice, reasons


def test_one_new_token_killed_unused_makes_no_pause(sandbox: Sandbox) -> None:
    """Its caller has the 401, the next call renews at once."""
    alice, reasons = _killed_as_they_come(sandbox, 1)
    assert [alice.get(ECHO).status_code for _ in range(2)] == [401, 200]
    assert reasons == [] and sandbox.count(CALLS) == 3


def test_two_new_tokens_killed_unused_make_a_pause_of_half_a_second(sandbox: Sandbox, clock: Clock) -> None:
    """No standstill: callers fail for that long, and then the next one renews; a token that lives ends it all."""
    alice, reasons = _killed_as_they_come(sandbox, 2)
    assert [alice.get(ECHO).status_code for _ in range(4)] == [401] * 4
    assert reasons == ["the API rejects what finAPI gives: it is not renewed again for 0.5 s"]
    assert sandbox.count(CALLS) == 3
    clock.go_on(0.6)
    warm(alice)
    assert sandbox.count(CALLS) == 4
    sandbox.revoke_tokens("alice")
    warm(alice)
    assert len(reasons) == 1


def test_the_pause_doubles_up_to_half_a_minute(sandbox: Sandbox, clock: Clock) -> None:
    """While the API rejects whatever finAPI gives, it is asked less and less often; one good answer ends that."""
    alice, reasons = _killed_as_they_come(sandbox, 9)
    for _ in range(200):
        alice.get(ECHO)
        clock.go_on(0.51)
    pauses = [float(reason.split()[-2]) for reason in reasons]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]
    calls = sandbox.count(CALLS)
    sandbox.revoke_tokens("alice")
    warm(alice)
    assert calls == 1 + 9 + 1 and sandbox.count(CALLS) == calls + 1 and len(reasons) == len(pauses)
