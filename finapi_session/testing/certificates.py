"""The sandbox's certificate authority: made for each start, or kept in a file of the caller's."""

from __future__ import annotations

import os
import ssl
import tempfile
from contextlib import suppress
from pathlib import Path

import trustme

_KIND = trustme.KeyType.ECDSA


class Certificates:
    """Gives a server its certificate; ``path`` is the file that clients trust."""

    def __init__(self) -> None:
        self.path = ""
        self._ours = False

    def configure(self, context: ssl.SSLContext, ca_file: str | None, *names: str) -> None:
        """Give *context* a certificate for *names*, from the authority in *ca_file* or from a new one.

        Raises ``OSError`` if *ca_file* cannot be read or written, and ``ValueError`` if it holds no authority.
        """
        authority = trustme.CA(key_type=_KIND) if ca_file is None else _kept(Path(ca_file))
        authority.issue_cert(*names, key_type=_KIND).configure_cert(context)
        self._ours = ca_file is None
        self.path = _temporary_file(authority.cert_pem.bytes()) if ca_file is None else os.path.abspath(ca_file)

    def remove(self) -> None:
        """Remove the file, unless it is the caller's."""
        if self._ours:
            with suppress(FileNotFoundError):
                os.unlink(self.path)


def _kept(certificate: Path) -> trustme.CA:
    """Return the authority in *certificate* and in the private ``.key`` beside it; make both if neither is there."""
    key = Path(f"{certificate}.key")
    if certificate.exists() or key.exists():
        try:
            return trustme.CA.from_pem(certificate.read_bytes(), key.read_bytes())
        except (ValueError, TypeError):
            raise ValueError(f"{certificate} and {key.name} beside it hold no certificate authority") from None
    authority = trustme.CA(key_type=_KIND)
    with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(authority.private_key_pem.bytes())
    certificate.write_bytes(authority.cert_pem.bytes())
    return authority


def _temporary_file(content: bytes) -> str:
    handle, path = tempfile.mkstemp(prefix="finapi-sandbox-", suffix=".pem")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    return path
