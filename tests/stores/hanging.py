"""A proxy on a loopback port that hangs when it is told to: it takes what is sent, and answers nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Proxy:
    """Passes on what comes, to the Unix socket *path*, as long as :attr:`flowing` is set."""

    def __init__(self, path: str) -> None:
        self.flowing = threading.Event()
        self.flowing.set()
        self._path = path
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End all connections."""
        self.flowing.set()
        for opened in self._open:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(self._path)
                self._open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                self.flowing.wait()
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


@contextmanager
def proxy_to(path: str) -> Iterator[Proxy]:
    """Run a proxy to the Unix socket *path*."""
    proxy = Proxy(path)
    try:
        yield proxy
    finally:
        proxy.close()
