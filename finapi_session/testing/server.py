"""The wire: HTTP/1.1 over TLS on a loopback port, a thread for each connection."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any, NamedTuple

from flask import Flask
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.wrappers import Response

HOST = "127.0.0.1"
_HANDSHAKE_SECONDS = 10
_GOODBYE_SECONDS = 2


class Answer(NamedTuple):
    """A response and how much of it is sent: all of it (1), that share of its body, or nothing (0).

    Unless all is sent, the connection breaks after it.
    """

    response: Response
    share: float = 1


class Handler(WSGIRequestHandler):
    """Serves one connection, request after request."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def run_wsgi(self) -> None:
        """Answer one request. Werkzeug's own way closes the connection after each; finAPI keeps it open."""
        environ = self.make_environ()
        try:
            body = self._read_body(environ)
        except (ValueError, OSError):
            self.close_connection = True
            return
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        environ |= {"wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        self._send(self.server.respond(environ, self.server), environ)

    def _read_body(self, environ: dict[str, Any]) -> bytes:
        stream = environ["wsgi.input"]
        if environ.get("wsgi.input_terminated"):
            body: bytes = stream.read()
            return body
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = stream.read(length)
        if len(body) != length:
            raise ValueError("the client left in the middle of its body")
        return body

    def _send(self, answer: Answer, environ: dict[str, Any]) -> None:
        self.close_connection = self.close_connection or answer.share < 1
        if not answer.share:
            return
        chunks, status, headers = answer.response.get_wsgi_response(environ)
        self.send_response(int(status[:3]), status[4:])
        for name, value in headers:
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        body = b"".join(chunks)
        self.wfile.write(body[: int(len(body) * answer.share)])

    def version_string(self) -> str:
        """Return the name in the ``Server`` header."""
        return "finapi-session-sandbox"

    def log(self, type: str, message: str, *args: Any) -> None:
        """Say nothing: the sandbox keeps its calls."""


class Server(ThreadedWSGIServer):
    """Listens on 127.0.0.1 from its construction on. *respond* answers each WSGI environment."""

    def __init__(
        self,
        app: Flask,
        respond: Callable[[dict[str, Any], Server], Answer],
        context: ssl.SSLContext,
        port: int,
    ) -> None:
        self.respond = respond
        self.connections = 0
        self._open: set[object] = set()
        self._changed = threading.Condition()
        self._interrupted = threading.Event()
        # Werkzeug would end the process if the port is taken, so it gets a socket that is bound already.
        with socket.create_server((HOST, port), backlog=128) as listener:
            super().__init__(HOST, port, app, Handler, fd=listener.fileno())
        self.ssl_context = context
        # A client that connects and says nothing must not hold up the others: hands are shaken in its thread.
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def pause(self, seconds: float) -> None:
        """Wait, unless connections are being closed."""
        self._interrupted.wait(seconds)

    def disconnect(self) -> None:
        """Close all connections that are open now, and wait for their threads."""
        with self._changed:
            doomed = set(self._open)
            for connection in doomed:
                with suppress(OSError):
                    # Not the SSL socket's own shutdown(): that one takes the TLS layer from under its reader.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)  # type: ignore[arg-type]
            # Only now: whoever is woken finds the connection gone, and answers nobody.
            self._interrupted.set()
            self._changed.wait_for(lambda: not doomed & self._open, _GOODBYE_SECONDS)
            self._interrupted.clear()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take in a connection and give it a thread."""
        with self._changed:
            self._open.add(request)
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands, then serve the connection until it ends."""
        request.settimeout(_HANDSHAKE_SECONDS)
        request.do_handshake()
        request.settimeout(None)
        with self._changed:
            self.connections += 1
        super().finish_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        super().shutdown_request(request)
        with self._changed:
            self._open.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over what clients do to connections; show what is wrong with the sandbox."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)
