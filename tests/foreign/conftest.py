"""One foreign server for all tests here, with an empty token table for each."""

import sys
from collections.abc import Iterator

import pytest
import requests

from .server import ForeignServer, serve


@pytest.fixture(scope="session")
def running_server() -> Iterator[ForeignServer]:
    if sys.platform == "win32":
        pytest.skip("gunicorn needs POSIX")
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
