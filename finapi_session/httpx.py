"""The token of a session for httpx, sync and async: the same renewal, and an event loop that never waits for it.

``httpx.AsyncClient(auth=FinapiAuth(alice), base_url=alice.environment.base_url)``

What a call needs is a generator (:meth:`FinapiAuth._steps`) that says what to send and what to ask of the session's
token source; two drivers do so. The one for :class:`httpx.Client` asks at once. The one for :class:`httpx.AsyncClient`
asks in a worker thread, once for all coroutines of a loop that want the same, and never where a look at the clock
does. Whether and how to renew is the source's business alone.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator
from functools import partial
from typing import Any, NamedTuple

from . import calls
from .errors import bare
from .session import FinapiSession
from .source import TokenSource
from .tokens import Token

try:
    import anyio
    import anyio.lowlevel
    import anyio.to_thread
    import httpx
except ModuleNotFoundError as missing:
    raise ImportError("finapi_session.httpx needs an extra: pip install 'finapi-session[httpx]'") from missing

# Renewals of different sessions that one loop has under way: each is a thread, which sleeps most of the time.
_MOST_THREADS = 40


class FinapiAuth(httpx.Auth):
    """Sends the token of *session* to the origins that its environment trusts, and heals a 401 once.

    For ``auth=`` of an :class:`httpx.AsyncClient` (asyncio or trio), an :class:`httpx.Client`, or one call of them.
    May be shared by clients, threads and event loops. Redirects are followed as the client says; the token goes along
    to trusted origins, and to no other. Calls without an ``X-Request-Id`` get one as the session's calls do. A body
    that cannot be sent twice (a generator, a pipe) keeps its 401; the next call has another token.

    Token calls are the session's own: its ``verify``, ``proxies``, store and events count for them, not the client's.
    In async code, passwords that are callables, and listeners, are called in a worker thread, with the context
    variables of one of the callers.

    Raises ``TypeError`` for anything but a :class:`FinapiSession`; sending raises a
    :class:`~finapi_session.TokenError` if no token can be had.
    """

    def __init__(self, session: FinapiSession) -> None:
        if not isinstance(session, FinapiSession):
            wanted = "FinapiAuth takes a FinapiSession, as in FinapiAuth(client.user('alice', 'her-password'))"
            raise TypeError(f"{wanted}, not {type(session).__name__}")
        self._session = session

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send *request*, ask for tokens, and wait for them: httpx calls this for a ``Client``."""
        steps = self._steps(request)
        wanted = next(steps)
        while wanted is not None:
            if isinstance(wanted, httpx.Request):
                response = yield wanted
                if response.status_code == 401:
                    response.read()  # its connection is free for others while a token is asked for
                wanted = steps.send(response)
            else:
                wanted = steps.send(wanted.ask())

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send *request*, and let worker threads wait: httpx calls this for an ``AsyncClient``."""
        steps = self._steps(request)
        wanted = next(steps)
        while wanted is not None:
            if isinstance(wanted, httpx.Request):
                response = yield wanted
                if response.status_code == 401:
                    await response.aread()
                wanted = steps.send(response)
            else:
                wanted = steps.send(await _shared(wanted))

    def _steps(self, request: httpx.Request) -> Generator[httpx.Request | _Asking | None, Any, None]:
        """Yield what is to be sent and is sent its answer; or what to ask, and is sent that; ``None`` at the end."""
        if self._trusts(request):
            yield from self._authorized(request)
        else:
            yield request
        yield None

    def _authorized(self, request: httpx.Request) -> Generator[httpx.Request | _Asking, Any, None]:
        source, back = self._session._own, _way_back(request.stream)
        if "X-Request-Id" not in request.headers:
            request.headers["X-Request-Id"] = self._session.request_id()
        token = source.fresh() or (yield _Asking(source, "token", "", source.token))
        response = yield _with(request, token)
        if response.status_code == 401 and self._lost_its_token(response):
            response = yield _with(response.request, token)
        yield from self._healed(source, token, response, back)

    def _healed(
        self, source: TokenSource, sent: Token, response: httpx.Response, back: Callable[[], object] | None
    ) -> Generator[httpx.Request | _Asking, Any, None]:
        """Send the request again, once, if *sent* was rejected, another token is there and the body can go *back*."""
        request = response.request
        if request.headers.get("Authorization") != sent.authorization:
            return  # a stranger answered, to whom it was not sent
        calls.answered(source.identity, request, response)
        if response.status_code != 401:
            source.accepted(sent.authorization)
            return
        other = source.fresh()
        if other is None or other.authorization == sent.authorization:
            renew = partial(source.renew, sent.authorization, calls.with_id(request))
            other = yield _Asking(source, "renew", sent.authorization, renew)
        if other is None or not _rewound(back):
            return
        response = yield _with(request, other)
        calls.answered(source.identity, request, response)
        if response.status_code == 401:
            yield _Asking(source, "rejected", other.authorization, partial(source.rejected, other.authorization))
        else:
            source.accepted(other.authorization)

    def _lost_its_token(self, response: httpx.Response) -> bool:
        """Tell whether httpx took the token off at a redirect, though none but trusted origins had a say in it."""
        request = response.request
        requests = [request, *(before.request for before in response.history)]
        return "Authorization" not in request.headers and all(map(self._trusts, requests))

    def _trusts(self, request: httpx.Request) -> bool:
        return self._session.environment.trusts(str(request.url))


def _with(request: httpx.Request, token: Token) -> httpx.Request:
    request.headers["Authorization"] = token.authorization
    return request


class _Asking(NamedTuple):
    """What to ask of *source*: by *kind* and *about*, those who want the same are known."""

    source: TokenSource
    kind: str
    about: str
    ask: Callable[[], Token | None]

    def meanwhile(self) -> Token | None:
        """Return the token that is still good while another is got before it expires: nobody else waits for that."""
        held = self.source.held if self.kind == "token" else None
        return None if held is None or held.expired(time.time()) else held


# One flight for all coroutines of a loop that want the same.


class _Flight:
    """What a worker thread is asked, and what it answered; neither, if whoever asked it was cancelled."""

    __slots__ = ("landed", "answer", "error")

    def __init__(self) -> None:
        self.landed = anyio.Event()
        self.answer: tuple[Token | None] | None = None
        self.error: Exception | None = None


class _Loop(NamedTuple):
    """What is under way on an event loop; its threads are not taken from those that the application counts on."""

    flights: dict[tuple[int, str, str], _Flight]
    threads: anyio.CapacityLimiter


_loops: anyio.lowlevel.RunVar[_Loop] = anyio.lowlevel.RunVar("finapi_session")


def _this_loop() -> _Loop:
    try:
        return _loops.get()
    except LookupError:
        loop = _Loop({}, anyio.CapacityLimiter(_MOST_THREADS))
        _loops.set(loop)
        return loop


async def _shared(asking: _Asking) -> Token | None:
    """Return what *asking* comes to, without holding the loop; raise what it raises.

    Who waits for another coroutine's flight that is cancelled sets out anew: the source sees to it that the thread
    which was left alone and the new one ask finAPI once.
    """
    loop, key = _this_loop(), (id(asking.source), asking.kind, asking.about)
    while (flight := loop.flights.get(key)) is not None:
        held = asking.meanwhile()
        if held is not None:
            return held
        await flight.landed.wait()
        if flight.error is not None:
            raise bare(flight.error)
        if flight.answer is not None:
            return flight.answer[0]
    return await _fly(loop, key, asking.ask)


async def _fly(loop: _Loop, key: tuple[int, str, str], ask: Callable[[], Token | None]) -> Token | None:
    flight = loop.flights[key] = _Flight()
    try:
        answer = await anyio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=loop.threads)
        flight.answer = (answer,)
        return answer
    except Exception as error:
        flight.error = error
        raise
    finally:
        del loop.flights[key]
        flight.landed.set()


# Bodies.


def _way_back(body: Any) -> Callable[[], object] | None:
    """Return what sets *body* back to where it stands; ``None`` if it can be sent only once."""
    if isinstance(body, httpx.ByteStream):
        return _nothing
    files = [getattr(field, "file", b"") for field in getattr(body, "fields", ())]
    if files:  # multipart, which httpx sends from the files' start each time
        return _nothing if all(isinstance(file, (str, bytes)) or _seekable(file) for file in files) else None
    file = getattr(body, "_stream", None)
    try:
        return partial(file.seek, file.tell())  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):
        return None


def _nothing() -> None:
    """Do nothing: httpx sends it from its start each time."""


def _seekable(file: Any) -> bool:
    try:
        file.seek(file.tell())
    except (AttributeError, OSError, ValueError):
        return False
    return True


def _rewound(back: Callable[[], object] | None) -> bool:
    if back is None:
        return False
    try:
        back()
    except (OSError, ValueError):
        return False
    return True
