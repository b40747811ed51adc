"""What stands between finAPI's contract and the toolkit: two paths, and who may revoke."""

import base64
import io
import json
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote_plus

from django.core.handlers.wsgi import WSGIRequest
from oauth2_provider.oauth2_backends import get_oauthlib_core

Environ = dict[str, Any]
App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

TOKEN, REVOKE = "/o/token/", "/o/revoke_token/"
PATHS = {
    f"{prefix}/oauth/{call}": path
    for prefix in ("", "/api/v2")
    for call, path in (("token", TOKEN), ("revoke", REVOKE))
}


class Front:
    """Map finAPI's paths, take the client's bearer on revoke, echo the request id; change nothing else."""

    def __init__(self, app: App, client_id: str, client_secret: str) -> None:
        self.app = app
        self.client_id = client_id
        pair = f"{quote_plus(client_id)}:{quote_plus(client_secret)}"
        self.basic = "Basic " + base64.b64encode(pair.encode()).decode()
        self.core = get_oauthlib_core()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start = _echo(environ.get("HTTP_X_REQUEST_ID"), start_response)
        path = PATHS.get(environ["PATH_INFO"])
        if path is None:
            return self.app(environ, start)
        mapped = {**environ, "PATH_INFO": path}
        if path == REVOKE:
            refusal = self._refuse(environ)
            if refusal:
                return _answer(refusal, start)
            mapped["HTTP_AUTHORIZATION"] = self.basic
        return self.app(mapped, start)

    def _refuse(self, environ: Environ) -> str | None:
        """Ask the toolkit whose bearer this is; say what is wrong with it, if anything is."""
        # The body is left for the view to read; a token in it or in the query must not pass for the bearer.
        bare = {**environ, "CONTENT_LENGTH": "0", "QUERY_STRING": "", "wsgi.input": io.BytesIO()}
        valid, request = self.core.verify_request(WSGIRequest(bare), scopes=[])
        if not valid:
            return "401 Unauthorized"
        if request.user is not None or request.client.client_id != self.client_id:
            return "403 Forbidden"
        return None


def _echo(request_id: str | None, start_response: Callable[..., Any]) -> Callable[..., Any]:
    if not request_id:
        return start_response

    def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        return start_response(status, [*headers, ("X-Request-Id", request_id)], *rest)

    return start


def _answer(status: str, start: Callable[..., Any]) -> list[bytes]:
    error = {"error": "invalid_token", "error_description": "Revoking takes the client's token."}
    body = json.dumps(error).encode()
    start(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
