"""What RedisStore does beyond the contract: leases, lost locks, and a network that is cut."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import LockNotOwnedError
from redis.retry import Retry

from finapi_session import RedisStore

from . import places
from .host import Host

PORT = 16379


@pytest.fixture
def client(redis_socket: str) -> redis.Redis:
    """A client of the real server."""
    return places.redis_client(redis_socket)


def test_names_in_redis(client: redis.Redis, fresh_name: str) -> None:
    """Values and locks lie under the prefix, in names apart, and other prefixes see nothing."""
    store = RedisStore(client, fresh_name)
    store.set("key", "value")
    with store.lock("key"):
        assert sorted(client.scan_iter(f"{fresh_name}*")) == [
            f"{fresh_name}lock:key".encode(),
            f"{fresh_name}token:key".encode(),
        ]
    assert client.exists(f"{fresh_name}lock:key") == 0
    assert RedisStore(client, f"{fresh_name}.").get("key") is None


def test_a_token_does_not_expire_and_a_lock_does(client: redis.Redis, fresh_name: str) -> None:
    """The lock's lease is that of one token call, and shorter than others wait; ``extend`` puts it back to that."""
    store = RedisStore(client, fresh_name)
    store.set("key", "value")
    with store.lock("key") as lock:
        assert 34 <= client.ttl(f"{fresh_name}lock:key") <= 35 < store.lock_timeout
        client.expire(f"{fresh_name}lock:key", 5)
        lock.extend()
        assert 34 <= client.ttl(f"{fresh_name}lock:key") <= 35
    assert client.ttl(f"{fresh_name}token:key") == -1


def test_a_lost_lease_is_not_extended(client: redis.Redis, fresh_name: str) -> None:
    """``extend`` raises nothing and takes nothing from the next holder; leaving the block tells of the loss."""
    store, block = RedisStore(client, fresh_name), RedisStore(client, fresh_name, lease=5).lock("key")
    with pytest.raises(LockNotOwnedError), store.lock("key") as lock:  # noqa: PT012
        client.delete(f"{fresh_name}lock:key")
        block.__enter__()
        lock.extend()
        assert client.ttl(f"{fresh_name}lock:key") <= 5
    block.__exit__(None, None, None)


# redis-py 5.0 leaves the sockets of connections that fail to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_redis_that_is_gone_extends_nothing(tmp_path: Path) -> None:
    """``extend`` raises nothing either when Redis does not answer; leaving the block does."""
    with places.redis_server(tmp_path) as socket:
        pool = redis.ConnectionPool(
            connection_class=redis.UnixDomainSocketConnection, path=socket, retry=Retry(NoBackoff(), 0)
        )
        block = RedisStore(redis.Redis(connection_pool=pool)).lock("key")
        lock = block.__enter__()
    lock.extend()
    with pytest.raises(redis.ConnectionError):
        block.__exit__(None, None, None)
    pool.disconnect()
    gc.collect()


def test_waiters_only_read(client: redis.Redis, fresh_name: str) -> None:
    """A waiter costs Redis one ``GET`` a try, and fewer than 150 tries a second."""

    def calls() -> dict[str, int]:
        found: Any = client.info("commandstats")
        return {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in found.items()}

    store = RedisStore(client, fresh_name, lock_timeout=1)
    with store.lock("key"):
        before = calls()
        with pytest.raises(TimeoutError), store.lock("key"):
            raise AssertionError("two holders")
        after = calls()
    made = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert made["set"] == 1 and 30 < made["get"] < 150
    # Giving up what is not ours is one script.
    assert set(made) - {"info", "evalsha", "eval", "script|load", "client|setinfo"} == {"set", "get"}


def test_a_forked_child_leaves_its_parents_lock(client: redis.Redis, fresh_name: str) -> None:
    """A child forked inside the block leaves it without an error, and the lock is still the parent's."""
    store = RedisStore(client, fresh_name, lock_timeout=0.1)
    block = store.lock("key")
    with block:
        assert places.forked(lambda: block.__exit__(None, None, None))
        with pytest.raises(TimeoutError), store.lock("key"):
            raise AssertionError("two holders")


@pytest.mark.parametrize("moment", ["taking", "giving back"])
def test_a_signal_leaves_no_lock(redis_socket: str, fresh_name: str, moment: str) -> None:
    """Ctrl-C right after Redis gave the lock, or while it is given back: the next one gets it at once."""
    command = "SET" if moment == "taking" else "EVALSHA"
    struck: list[str] = []

    class Struck(redis.UnixDomainSocketConnection):
        def send_command(self, *args: Any, **options: Any) -> None:
            self.sent = args[0]
            super().send_command(*args, **options)
            if self.sent == command == "EVALSHA" and not struck:
                struck.append(moment)
                self.disconnect()
                raise KeyboardInterrupt

        def read_response(self, *args: Any, **options: Any) -> Any:
            answer = super().read_response(*args, **options)
            if self.sent == command == "SET" and not struck:
                struck.append(moment)
                raise KeyboardInterrupt
            return answer

    pool = redis.ConnectionPool(connection_class=Struck, path=redis_socket, retry=Retry(NoBackoff(), 0))
    store = RedisStore(redis.Redis(connection_pool=pool), fresh_name, lock_timeout=0.5)
    with pytest.raises(KeyboardInterrupt), store.lock("key"):
        assert moment == "giving back"
    assert struck
    with store.lock("key"):
        pass
    pool.disconnect()


def test_a_lock_waits_for_a_bounded_time(client: redis.Redis, fresh_name: str) -> None:
    """Whoever waits longer than ``lock_timeout`` seconds gets ``TimeoutError``, and the holder stays."""
    store = RedisStore(client, fresh_name, lock_timeout=0.1)
    with store.lock("key"):
        with pytest.raises(TimeoutError, match="0.1 s"), store.lock("key"):
            raise AssertionError("two holders")
        assert client.exists(f"{fresh_name}lock:key") == 1


@pytest.mark.parametrize("retries", [0, 1])
def test_an_answer_that_is_lost_leaves_no_lock(redis_socket: str, fresh_name: str, retries: int) -> None:
    """Redis locked, and the connection broke before it said so: the next one waits for nobody."""
    lost: list[str] = []

    class Cut(redis.UnixDomainSocketConnection):
        def send_command(self, *args: Any, **options: Any) -> None:
            self.locking = args[0] == "SET" and "NX" in args
            super().send_command(*args, **options)

        def read_response(self, *args: Any, **options: Any) -> Any:
            answer = super().read_response(*args, **options)
            if self.locking and not lost:
                lost.append("the answer")
                self.disconnect()
                raise redis.ConnectionError("cut")
            return answer

    retry = Retry(NoBackoff(), retries)
    pool = redis.ConnectionPool(connection_class=Cut, path=redis_socket, retry=retry)
    client = redis.Redis(connection_pool=pool)
    started = time.monotonic()
    with suppress(redis.ConnectionError), RedisStore(client, fresh_name).lock("key"):
        assert retries == 1
    with RedisStore(client, fresh_name).lock("key"):
        assert lost and time.monotonic() - started < 5
    pool.disconnect()


def test_a_lost_lease_is_told_and_takes_nothing_from_the_next_holder(client: redis.Redis, fresh_name: str) -> None:
    """A holder whose lease ran out leaves with an error, and the lock of the next one stays."""
    slow, next_one = RedisStore(client, fresh_name, lease=0.1), RedisStore(client, fresh_name)
    block = next_one.lock("key")
    with pytest.raises(LockNotOwnedError), slow.lock("key"):
        block.__enter__()
    assert client.exists(f"{fresh_name}lock:key") == 1
    block.__exit__(None, None, None)
    assert client.exists(f"{fresh_name}lock:key") == 0


def test_an_error_of_the_body_goes_before_a_lost_lease(client: redis.Redis, fresh_name: str) -> None:
    """What the body raised is raised, even if the lock was lost meanwhile."""
    with pytest.raises(ZeroDivisionError), RedisStore(client, fresh_name).lock("key"):
        client.delete(f"{fresh_name}lock:key")
        raise ZeroDivisionError


def test_a_forked_child_has_connections_of_its_own(client: redis.Redis, fresh_name: str) -> None:
    """Parent and child use the store at once after a fork, and neither reads the other's answers."""
    store = RedisStore(client, fresh_name)
    store.set("parent", "p" * 1000)

    def work() -> None:
        for _ in range(200):
            store.set("child", "c" * 1000)
            assert store.get("child") == "c" * 1000
        with store.lock("key"):
            pass

    with ExitStack() as stack:
        stop = threading.Event()
        wrong: list[str | None] = []

        def read() -> None:
            while not stop.is_set():
                if (value := store.get("parent")) != "p" * 1000:
                    wrong.append(value)

        reader = threading.Thread(target=read)
        reader.start()
        stack.callback(reader.join)
        stack.callback(stop.set)
        assert places.forked(work)
    assert not wrong


def test_repr_shows_no_password() -> None:
    """The repr names the prefix and nothing of the connection."""
    with redis.Redis(password="secret") as client:
        assert repr(RedisStore(client, "app:")) == "RedisStore(prefix='app:')"


@pytest.fixture
def network(tmp_path: Path) -> Iterator[str]:
    """Two network namespaces, each with a cable of its own to this host, and a Redis on it."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("two hosts need root and the command ip")
    if subprocess.run(["ip", "netns", "add", "finapi1"], capture_output=True).returncode:
        pytest.skip("this machine makes no network namespaces")
    with ExitStack() as stack:
        stack.callback(ip, "netns", "del", "finapi1")
        ip("netns", "add", "finapi2")
        stack.callback(ip, "netns", "del", "finapi2")
        for number in (1, 2):
            ip("link", "add", f"finapi{number}", "type", "veth", "peer", "eth0", "netns", f"finapi{number}")
            ip("addr", "add", f"10.213.{number}.1/24", "dev", f"finapi{number}")
            ip("link", "set", f"finapi{number}", "up")
            ip("-n", f"finapi{number}", "addr", "add", f"10.213.{number}.2/24", "dev", "eth0")
            ip("-n", f"finapi{number}", "link", "set", "eth0", "up")
        with places.redis_server(tmp_path, port=PORT) as socket:
            yield socket


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def test_two_hosts_one_cut_off(network: str) -> None:
    """A host cut off while it holds the lock costs the other its lease; healed, both have one token."""
    with (
        Host("finapi1", f"redis://10.213.1.1:{PORT}") as one,
        Host("finapi2", f"redis://10.213.2.1:{PORT}") as two,
    ):
        assert one("renew") == two("renew") == "token of finapi1"
        assert one("hold") == "held"
        ip("link", "set", "finapi1", "down")
        started = time.monotonic()
        two("forget")
        assert two("renew") == "token of finapi2"
        assert time.monotonic() - started < 5
        assert one("get") in {"ConnectionError", "TimeoutError"}
        assert one("leave") in {"ConnectionError", "TimeoutError", "LockNotOwnedError"}
        ip("link", "set", "finapi1", "up")
        places.wait_until(lambda: one("get") == "token of finapi2")
        assert one("renew") == two("renew") == "token of finapi2"
