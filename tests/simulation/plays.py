"""The situations in which the first version failed, as plays: each may be played in any order of its tasks' turns."""

from __future__ import annotations

from .models import Finapi, Shared
from .processes import Process
from .world import World


def two_workers_with_a_store_each(world: World) -> None:
    """Restarted, both renew by what their store has: 40 calls cost a few token calls, and none fails."""
    finapi = Finapi(world)
    workers = [Process(world, finapi, Shared(), f"P{number}") for number in range(2)]
    _warm(world, workers)
    for worker in workers:
        worker.boot()
    world.now += finapi.lifetime + 1
    before = len(finapi.calls)
    for _ in range(20):
        for worker in workers:
            world.start(worker, worker.call, worker.name)
            world.run()
        world.now += 1.0
    assert {outcome.status for worker in workers for outcome in worker.outcomes} == {200}
    assert len(finapi.calls) - before <= 8, finapi.calls[before:]


def eight_workers_and_a_dead_token_in_the_store(world: World) -> None:
    """All hold a token that has died, and so has the one that the store has for them: at most one of them fails."""
    finapi, shared = Finapi(world), Shared()
    workers = [Process(world, finapi, shared, f"P{number}", per_request=False) for number in range(8)]
    _warm(world, workers)
    finapi.kill()
    other = Process(world, finapi, shared, "other")
    _warm(world, [other])
    finapi.kill()
    for worker in workers:
        worker.outcomes.clear()
        world.start(worker, worker.call, worker.name)
        world.run()
    failed = [outcome for worker in workers for outcome in worker.outcomes if outcome.status != 200]
    assert len(failed) <= 1, failed


def a_wrong_password_whose_answers_are_lost(world: World) -> None:
    """finAPI counts what is not seen here: four calls of two workers send it once, and an hour of them a few times."""
    finapi, shared = Finapi(world, most_failures=8), Shared()
    workers = [Process(world, finapi, shared, f"P{number}", "wrong") for number in range(2)]
    for minute in range(30):
        for worker in workers:
            worker.endpoint.loses = 1
            world.start(worker, worker.call, worker.name)
        world.run()
        if minute == 0:
            assert finapi.failures == 1, "sent again at once"
        world.now += 60.0
    assert finapi.failures <= 6, finapi.failures


def a_worker_suspended_in_its_token_call(world: World) -> None:
    """Another one renews meanwhile; the late answer costs nobody a 401, and the store keeps what lives."""
    finapi, shared = Finapi(world), Shared()
    late, other = (Process(world, finapi, shared, f"P{number}") for number in range(2))
    _warm(world, [late, other])
    world.now += finapi.lifetime + 1
    late.endpoint.latency = 2.0
    world.start(late, late.call, "P0 is late")
    # finAPI has judged, its answer is on the way, and the lease of the lock ends.
    world.start(other, lambda: setattr(late, "suspended_until", world.now + 60.0), "suspension", after=1.5)
    world.start(other, other.call, "P1", after=40.0)
    world.run()
    fresh = Process(world, finapi, shared, "P2")
    calls = len(finapi.calls)
    _warm(world, [fresh])
    assert len(finapi.calls) == calls, "what lives is not in the store"
    outcomes = [*late.outcomes, *other.outcomes, *fresh.outcomes]
    assert {(outcome.status, outcome.sends) for outcome in outcomes} == {(200, 1)}, outcomes


def a_failed_write_with_rotating_refresh_tokens(world: World) -> None:
    """One worker's write fails once, another one tries the spent refresh token: the login is everybody's again."""
    finapi, shared = Finapi(world, rotates=True), Shared()
    seed = finapi.judge("right", None)
    workers = [Process(world, finapi, shared, f"P{number}", None, seed) for number in range(2)]
    _warm(world, workers)
    finapi.kill()
    workers[0].link.down = {"set"}
    for worker in workers:
        world.start(worker, worker.call, worker.name)
        world.run()
    workers[0].link.down = set()
    world.now += 11.0
    _heal(world, workers)


def reads_fail_for_a_moment(world: World) -> None:
    """A worker meets a 401 while it can only write: it does not write what it had over what another one renewed."""
    finapi, shared = Finapi(world, rotates=True), Shared()
    seed = finapi.judge("right", None)
    workers = [Process(world, finapi, shared, f"P{number}", None, seed) for number in range(2)]
    _warm(world, workers)
    finapi.kill()
    world.start(workers[0], workers[0].call, "P0")
    world.run()
    workers[1].link.down = {"get"}
    world.start(workers[1], workers[1].call, "P1")
    world.run()
    workers[1].link.down = set()
    workers[0].boot()
    _heal(world, workers)


def _warm(world: World, workers: list[Process]) -> None:
    for worker in workers:
        world.start(worker, worker.call, worker.name)
        world.run()


def _heal(world: World, workers: list[Process]) -> None:
    for worker in workers:
        worker.outcomes.clear()
    for worker in [*workers, *workers]:
        world.start(worker, worker.call, worker.name)
        world.run()
    last = [worker.outcomes[-1].status for worker in workers]
    assert last == [200] * len(workers), f"a login is lost: {last}"


PLAYS = (
    a_failed_write_with_rotating_refresh_tokens,
    reads_fail_for_a_moment,
    two_workers_with_a_store_each,
    eight_workers_and_a_dead_token_in_the_store,
    a_wrong_password_whose_answers_are_lost,
    a_worker_suspended_in_its_token_call,
)
