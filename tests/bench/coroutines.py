"""Coroutines of one event loop that share an auth: what they cost, and for how long a step holds the loop."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import anyio
import httpx

from finapi_session import Environment, FinapiSession
from finapi_session.httpx import FinapiAuth

from .servers import Remote, serving

COUNT = 1000
#: What a token call takes.
LATENCY = 0.2


@dataclass
class Crowd:
    """What became of calls that many coroutines made at the same moment."""

    token_calls: int
    failed: int
    #: The longest step of the loop, in seconds: by the clock, and of the processor (other programs do not count).
    held: float
    busy: float


class Api(httpx.AsyncBaseTransport):
    """The API without sockets, so that what is measured is the waiting for a token: all but *dead* ones are alive."""

    def __init__(self, dead: str) -> None:
        self.dead = dead

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer after everybody else has had a turn."""
        await anyio.sleep(0)
        return httpx.Response(401 if request.headers["Authorization"] == self.dead else 200, json={})


class Steps:
    """An instrument of trio's that measures each step of a task; asyncio's handles are measured by it, too."""

    def __init__(self) -> None:
        self.held = self.busy = 0.0
        self.started = (0.0, 0.0)

    def before_task_step(self, _task: Any) -> None:
        """Start."""
        self.started = (time.perf_counter(), time.thread_time())

    def after_task_step(self, _task: Any) -> None:
        """Stop."""
        self.held = max(self.held, time.perf_counter() - self.started[0])
        self.busy = max(self.busy, time.thread_time() - self.started[1])


def measured(backend: str, main: Callable[[], Awaitable[None]]) -> Steps:
    """Run *main*, and return how long the steps of the loop took."""
    steps, real = Steps(), asyncio.Handle._run
    anyio.run(anyio.sleep, 0, backend=backend)  # anyio, which httpx connects with, loads some 10 ms of code when used
    gc.collect()
    gc.disable()  # as for all times here: what it looks through is the whole process
    if backend == "trio":
        import trio

        class Instrument(Steps, trio.abc.Instrument):
            pass

        steps = Instrument()
        trio.run(main, instruments=[steps])
        return steps

    def timed(handle: asyncio.Handle) -> None:
        steps.before_task_step(None)
        real(handle)
        steps.after_task_step(None)

    with mock.patch.object(asyncio.Handle, "_run", timed):
        asyncio.run(main())  # type: ignore[arg-type]
    return steps


def crowd(backend: str, state: str, remote: Remote) -> Crowd:
    """Let coroutines share a session whose token is *state*: cold, expired or revoked."""
    remote.rule(latency=LATENCY, sticky=False)
    token = remote.plant(-1.0) if state == "expired" else None
    environment, statuses = Environment(remote.place.origin), list[int]()
    session = remote.place.fit(
        FinapiSession("id", "secret", environment=environment, token=token, revoke_on_close=False)
    )
    dead = session.fetch_token().authorization if state == "revoked" else ""
    remote.counts()

    async def one(client: httpx.AsyncClient, gate: anyio.Event) -> None:
        await gate.wait()
        statuses.append((await client.get("/api/v2/banks")).status_code)

    # Made here: that takes httpx some 15 ms, which are none of the loop's.
    made = httpx.AsyncClient(auth=FinapiAuth(session), base_url=environment.base_url, transport=Api(dead))

    async def main() -> None:
        gate = anyio.Event()
        async with made as client, anyio.create_task_group() as tasks:
            for number in range(COUNT):
                tasks.start_soon(one, client, gate)
                if number % 20 == 0:
                    await anyio.sleep(0)
            gate.set()

    steps = measured(backend, main)
    session.close()
    return Crowd(remote.counts().token_calls, COUNT - statuses.count(200), steps.held, steps.busy)


def main() -> None:
    """Print what the crowds that are named cost, as JSON: ``asyncio cold``."""
    with serving() as remote:
        print(json.dumps(vars(crowd(sys.argv[1], sys.argv[2], remote))))


if __name__ == "__main__":
    main()
