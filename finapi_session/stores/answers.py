"""A bound on what psycopg waits for an answer; it has none itself for a server that is there and says nothing."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from sqlalchemy import Engine, event


def bound_waiting(engine: Engine, seconds: float) -> None:
    """Let *engine*, on psycopg, close a connection that has waited so many *seconds* for one answer.

    It takes no thread: psycopg looks up from its waiting ten times a second. Its ``OperationalError`` is raised then.
    """
    driver: Any = engine.dialect.dbapi

    def wait(connection: Any, steps: Any, *rest: Any, **how: Any) -> Any:
        return driver.Connection.wait(connection, _within(seconds, steps, connection, driver), *rest, **how)

    connection_class: Any = type("BoundedConnection", (driver.Connection,), {"wait": wait})
    event.listen(
        engine, "do_connect", lambda _dialect, _record, args, options: connection_class.connect(*args, **options)
    )


def _within(seconds: float, steps: Any, connection: Any, driver: Any) -> Generator[Any, Any, Any]:
    """Go through the *steps* of one answer, which say what they wait for and are sent what is ready, if anything."""
    ends = time.monotonic() + seconds
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() >= ends:
                connection.close()
                raise driver.OperationalError(f"no answer within {seconds:g} s")
            wanted = steps.send(ready)
    except StopIteration as done:
        return done.value
