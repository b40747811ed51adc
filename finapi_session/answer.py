"""An answer's body, read within bounds of time and size."""

from __future__ import annotations

import time
import zlib
from typing import Any

import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.response import BaseHTTPResponse

#: Bytes of an answer that are read, and decoded, at most.
ANSWER_BYTES = 2**20
_PIECE = 2**16
_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # what zlib calls these (RFC 9110, section 8.4.1)


class UnreadableAnswerError(ValueError):
    """An answer came, but it is none that can be read; the text says why, without a word of the answer."""


def read_body(response: requests.Response, ends: float) -> bytes:
    """Return the decoded body of *response*, of which nothing has been read, at most :data:`ANSWER_BYTES` of it.

    *ends* is the second (monotonic) at which it must be complete. Raises ``requests.ReadTimeout`` if it is not,
    ``requests.ConnectionError`` if it breaks off, and :class:`UnreadableAnswerError` if it is too long, or encoded in a
    way that was not asked for. The connection is closed then.
    """
    try:
        return _decoded(_received(response.raw, ends), response.headers.get("Content-Encoding", ""))
    except BaseException:
        response.close()
        raise


def _received(raw: Any, ends: float) -> bytes:
    body = bytearray()
    try:
        while piece := _next_piece(raw, ends - time.monotonic()):
            body += piece
            if len(body) > ANSWER_BYTES:
                raise _too_long()
    except ReadTimeoutError:
        raise _too_slow() from None
    except HTTPError as error:
        raise requests.ConnectionError(error) from None
    return bytes(body)


def _next_piece(raw: Any, left: float) -> bytes:
    """Return what is there of the body, waiting *left* seconds at most; nothing at its end."""
    if left <= 0:
        raise _too_slow()
    if not isinstance(raw, BaseHTTPResponse):  # an adapter of the caller's made it
        piece: bytes = raw.read(_PIECE)
        return piece
    socket = _socket_of(raw)
    if socket is not None:
        socket.settimeout(left)
    # read() would wait until a piece is full: a body that drips would never be interrupted.
    return raw.read1(_PIECE, decode_content=False)


def _socket_of(raw: BaseHTTPResponse) -> Any:
    """Return the socket that *raw* is read from, or ``None``.

    http.client lets go of it as soon as the headers say that the connection ends with the answer; then it is only in
    the file that the body is read from.
    """
    socket = getattr(raw.connection, "sock", None)
    if socket is not None:
        return socket
    file = getattr(getattr(raw, "_fp", None), "fp", None)
    return getattr(getattr(file, "raw", None), "_sock", None)


def _decoded(body: bytes, encoding: str) -> bytes:
    """Return *body* as it was before the server encoded it, though ``identity`` was asked for."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity") or not body:
        return body
    if encoding not in _WINDOWS:
        raise UnreadableAnswerError("its Content-Encoding was not asked for")
    inflater = zlib.decompressobj(_WINDOWS[encoding])
    try:
        decoded = inflater.decompress(body, ANSWER_BYTES + 1)
    except zlib.error:
        raise UnreadableAnswerError(f"it is no {encoding}") from None
    if len(decoded) > ANSWER_BYTES:
        raise _too_long()
    if not inflater.eof:
        raise UnreadableAnswerError("it is cut off")
    return decoded


def _too_long() -> UnreadableAnswerError:
    return UnreadableAnswerError(f"longer than {ANSWER_BYTES >> 20} MB")


def _too_slow() -> requests.ReadTimeout:
    return requests.ReadTimeout("its body took too long")
