"""A host that uses a RedisStore as it is told: ``python -m tests.stores.host URL NAME``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

KEY = "key"


class Host:
    """Runs this module in a namespace; calling it sends one word and returns the answer."""

    def __init__(self, namespace: str, url: str) -> None:
        command = [
            "ip",
            "netns",
            "exec",
            namespace,
            sys.executable,
            "-m",
            "tests.stores.host",
            url,
            namespace,
        ]
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=root
        )

    def __call__(self, word: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(word, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def main(url: str, name: str) -> None:
    from redis import Redis

    from finapi_session import RedisStore

    store = RedisStore(Redis.from_url(url, socket_timeout=0.5, socket_connect_timeout=0.5), lease=2)
    block = store.lock(KEY)

    def renew() -> str:
        with store.lock(KEY):
            if store.get(KEY) is None:
                store.set(KEY, f"token of {name}")
            return str(store.get(KEY))

    words: dict[str, Callable[[], object]] = {
        "renew": renew,
        "get": lambda: store.get(KEY),
        "forget": lambda: store.delete(KEY),
        "hold": lambda: "held" if block.__enter__() else "",
        "leave": lambda: block.__exit__(None, None, None),
    }
    for line in sys.stdin:
        try:
            print(words[line.strip()](), flush=True)
        except Exception as error:
            print(type(error).__name__, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
