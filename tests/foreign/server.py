"""Start the foreign server as a process of its own, look into its database, and leave nothing behind."""

import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import requests
import trustme

TESTS = Path(__file__).resolve().parent.parent
START_WITHIN = 60.0
STOP_WITHIN = 10.0


@dataclass(frozen=True)
class ForeignServer:
    """A running server: how to reach it, who may log in, and what its database holds."""

    base_url: str
    ca_bundle: str
    client_id: str
    client_secret: str
    username: str
    password: str
    log: Path
    database: sqlite3.Connection

    def access_tokens(self) -> int:
        """Count the access tokens that still open something."""
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")
        return self._number("SELECT count(*) FROM oauth2_provider_accesstoken WHERE expires > ?", now)

    def refresh_tokens(self) -> int:
        """Count the refresh tokens that nobody revoked."""
        return self._number("SELECT count(*) FROM oauth2_provider_refreshtoken WHERE revoked IS NULL")

    def issued_access_tokens(self) -> int:
        """Count all access tokens given out since the last ``clear``, the dead ones too."""
        return self._issued("oauth2_provider_accesstoken")

    def issued_refresh_tokens(self) -> int:
        """Count all refresh tokens given out since the last ``clear``, the dead ones too."""
        return self._issued("oauth2_provider_refreshtoken")

    def logins(self) -> int:
        """Count the password grants since the last ``clear``: each starts a family of refresh tokens."""
        return self._number("SELECT count(DISTINCT token_family) FROM oauth2_provider_refreshtoken")

    def expire_all(self) -> None:
        """Let every access token have run out long ago."""
        self.database.execute("UPDATE oauth2_provider_accesstoken SET expires = '2000-01-01 00:00:00'")

    def lose_access_tokens(self) -> None:
        """Drop the access tokens but not the refresh tokens, which the toolkit then refuses as orphans."""
        self.database.execute("DELETE FROM oauth2_provider_accesstoken")

    def clear(self) -> None:
        """Forget every token, and that there ever was one."""
        self.database.executescript("""
            BEGIN IMMEDIATE;
            DELETE FROM oauth2_provider_accesstoken;
            DELETE FROM oauth2_provider_refreshtoken;
            DELETE FROM sqlite_sequence WHERE name LIKE 'oauth2_provider_%token';
            COMMIT;
        """)

    def _issued(self, table: str) -> int:
        # Revoking deletes an access token's row, so rows cannot be counted; the last number given out can.
        return self._number("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?", table)

    def _number(self, query: str, *values: str) -> int:
        return int(self.database.execute(query, values).fetchone()[0])


@contextmanager
def serve(lifetime: int = 3600) -> Iterator[ForeignServer]:
    """Run a server with a database of its own, whose access tokens live for *lifetime* seconds."""
    with tempfile.TemporaryDirectory(prefix="foreign-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        environ = _environ(folder, lifetime)
        _certificates(folder)
        _seed(environ, folder)
        # Held open for the whole run: the last connection to close locks a WAL database for a moment.
        with closing(_connect(folder)) as database, _gunicorn(environ, folder) as base_url:
            yield ForeignServer(
                base_url=base_url,
                ca_bundle=str(folder / "ca.pem"),
                client_id=environ["FOREIGN_CLIENT_ID"],
                client_secret=environ["FOREIGN_CLIENT_SECRET"],
                username=environ["FOREIGN_USERNAME"],
                password=environ["FOREIGN_PASSWORD"],
                log=folder / "server.log",
                database=database,
            )


def _environ(folder: Path, lifetime: int) -> dict[str, str]:
    """Give the child what it needs and nothing of ours: no proxies, no CA bundle, no warning filters."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LC_ALL": "C.UTF-8",
        "PYTHONUTF8": "1",
        "PYTHONPATH": str(TESTS),
        "PYTHONDONTWRITEBYTECODE": "1",
        "DJANGO_SETTINGS_MODULE": "foreign.settings",
        "FOREIGN_FOLDER": str(folder),
        "FOREIGN_LIFETIME": str(lifetime),
        "FOREIGN_DJANGO_SECRET": secrets.token_urlsafe(48),
        "FOREIGN_CLIENT_ID": f"client-{secrets.token_hex(4)}",
        "FOREIGN_CLIENT_SECRET": f"{secrets.token_urlsafe(12)} &=+%ß:€",
        "FOREIGN_USERNAME": "alice",
        "FOREIGN_PASSWORD": f"{secrets.token_urlsafe(8)} &=+%25 Grüße-日本",
    }


def _certificates(folder: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    leaf = authority.issue_cert("127.0.0.1", "localhost")
    leaf.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))


def _seed(environ: dict[str, str], folder: Path) -> None:
    command = [sys.executable, "-m", "foreign.seed"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, env=environ, cwd=folder, timeout=START_WITHIN, **pipes)
    if done.returncode:
        raise RuntimeError(f"The foreign server's database could not be made:\n{done.stdout}")


def _connect(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / "foreign.sqlite3", timeout=20, isolation_level=None)


@contextmanager
def _gunicorn(environ: dict[str, str], folder: Path) -> Iterator[str]:
    # The child inherits a socket that listens already, so nobody can take the port in between.
    with socket.create_server(("127.0.0.1", 0)) as listener, open(folder / "server.log", "wb") as log:
        base_url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            _command(listener.fileno(), folder),
            env=environ,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, base_url, folder)
        yield base_url
    finally:
        _stop(process)


def _command(descriptor: int, folder: Path) -> list[str]:
    pem = str(folder / "server.pem")
    options = {
        "bind": f"fd://{descriptor}",
        "certfile": pem,
        "keyfile": pem,
        "worker-class": "gthread",
        "workers": "2",
        "threads": "8",
        "keep-alive": "30",
        "graceful-timeout": "1",
        "worker-tmp-dir": str(folder),
        "access-logfile": "-",
        "access-logformat": '%(m)s %(U)s %(s)s request-id "%({x-request-id}i)s"',
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "gunicorn", *flags, "foreign.wsgi:application"]


def _wait_until_ready(process: "subprocess.Popen[bytes]", base_url: str, folder: Path) -> None:
    deadline = time.monotonic() + START_WITHIN
    with requests.Session() as http:
        http.trust_env = False
        http.verify = str(folder / "ca.pem")
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(requests.RequestException):
                if http.get(f"{base_url}/api/v2/accounts", timeout=5).status_code == 401:
                    return
            time.sleep(0.05)
    raise RuntimeError(f"The foreign server did not start:\n{(folder / 'server.log').read_text()}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the whole process group: politely, then for certain."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_WITHIN)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_WITHIN)
