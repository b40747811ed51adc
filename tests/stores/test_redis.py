"""What RedisStore does beyond the contract: leases, lost locks, and a network that is cut."""

from __future__ import annotations

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
    """The lock's lease is two minutes unless told otherwise, longer than the longest token call."""
    store = RedisStore(client, fresh_name)
    store.set("key", "value")
    with store.lock("key"):
        assert 140 < client.ttl(f"{fresh_name}lock:key") <= 150
    assert client.ttl(f"{fresh_name}token:key") == -1


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
