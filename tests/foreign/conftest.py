"""One foreign server for all tests here, with an empty token table for each."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import requests

from .server import ForeignServer, serve

NEEDS = ("django", "oauth2_provider", "gunicorn", "trustme")


@pytest.fixture(scope="session")
def running_server() -> Iterator[ForeignServer]:
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing or sys.platform == "win32":
        pytest.skip(f"the foreign server needs POSIX and {', '.join(missing or NEEDS)}")
    with serve() as server:
        yield server


@pytest.fixture
def server(running_server: ForeignServer) -> ForeignServer:
    running_server.clear()
    return running_server


@pytest.fixture
def http(server: ForeignServer) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        session.verify = server.ca_bundle
        yield session
