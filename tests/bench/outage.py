"""How long calls go on while the token endpoint is down, from a client's worst moment on: when it would renew."""

from __future__ import annotations

import threading
import time
from typing import Any
from unittest import mock

import freezegun
import requests
from requests.adapters import HTTPAdapter

from .peers import Botocore, Databricks, Ours, Peer
from .servers import Offline, Place, Rules

_LIFETIME, _STEP = 3600, 5


class OursFromHalf(Ours):
    """This library, told to renew from half of a token's life."""

    name, leeway = "finapi_session, leeway=1800", 1800.0


#: What has no place in the table, as it is made for other servers.
OTHERS: tuple[type[Peer], ...] = (Botocore, Databricks)


def minutes_survived(peer: type[Peer]) -> float:
    """Return for how many minutes calls go on from when *peer* first asks for the next token, and gets none.

    It makes a call every five seconds of a clock that is set on, and its token lives for an hour.
    """
    adapter = _Judging()
    adapter.finapi.rules = Rules(failing=True)
    place, asked_at = Place(adapter=adapter), None
    with freezegun.freeze_time() as clock, mock.patch.object(HTTPAdapter, "send", adapter.send_for):
        token = adapter.finapi.plant(_LIFETIME)
        given = {"access_token": token, "token_type": "bearer", "expires_in": _LIFETIME}
        client = peer(place, {**given, "expires_at": time.time() + _LIFETIME})
        for second in range(0, 2 * _LIFETIME, _STEP):
            fails = _fails(client, place.origin)
            if asked_at is None and adapter.finapi.counts.token_calls:
                asked_at = second
            if fails:
                return (second - (second if asked_at is None else asked_at)) / 60
            clock.tick(_STEP)
    raise AssertionError(f"{peer.name} outlives its token")


def _fails(client: Peer, origin: str) -> bool:
    try:
        return client.get(f"{origin}/api/v2/banks").status_code != 200
    except Exception:
        return True
    finally:
        # What renews in a thread has had its five seconds before the clock goes on.
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join(0.02)


class _Judging(Offline):
    """A null adapter that looks at tokens."""

    def __deepcopy__(self, _memo: object) -> _Judging:
        return self  # google-auth gives its thread a copy of the session

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Answer with 401 where the token is not alive."""
        bearer = (request.headers.get("Authorization") or "").partition(" ")[2]
        response = super().send(request, *args, **kwargs)
        if (request.url or "").endswith("/banks") and time.time() >= self.finapi.ends.get(bearer, 0.0):
            response.status_code = 401
        return response

    def send_for(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Answer in place of an adapter of a client that makes its own session."""
        return self.send(request, *args, **kwargs)
