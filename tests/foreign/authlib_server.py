"""Authlib's server on Flask, in a thread: grants, refusals and the check of a bearer are Authlib's own.

finAPI's contract needs two things of it: the secret in the form, and the client's bearer on revoke. A refresh token
serves once; each use of a spent one is counted, which is what a server with reuse detection ends a login for.
"""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme
from authlib.integrations.flask_oauth2 import AuthorizationServer, ResourceProtector, current_token
from authlib.oauth2.rfc6749 import ClientMixin, TokenMixin, grants
from authlib.oauth2.rfc6749.errors import AccessDeniedError
from authlib.oauth2.rfc6750 import BearerTokenValidator
from authlib.oauth2.rfc7009 import RevocationEndpoint
from flask import Flask, request
from werkzeug.serving import make_server

IN_THE_FORM = ["client_secret_post"]


class Client(ClientMixin):
    """The one client."""

    client_id, client_secret = "client & söhne", "secret +%25 &="

    def get_client_id(self) -> str:
        return self.client_id

    def get_allowed_scope(self, scope: str) -> str:
        return scope or "all"

    def check_client_secret(self, client_secret: str) -> bool:
        return client_secret == self.client_secret

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method in IN_THE_FORM

    def check_grant_type(self, grant_type: str) -> bool:
        return True


@dataclass
class Issued(TokenMixin):
    """A token that Authlib gave."""

    client: Client
    user: str | None
    access_token: str
    expires_at: float
    refresh_token: str | None = None
    spent: bool = False

    def end(self) -> None:
        """Let both tokens open nothing any more."""
        self.spent, self.expires_at = True, 0.0

    def check_client(self, client: Client) -> bool:
        return client is self.client

    def get_scope(self) -> str:
        return "all"

    def is_expired(self) -> bool:
        return time.time() >= self.expires_at

    def is_revoked(self) -> bool:
        return False


@dataclass
class Server:
    """A running server: how to reach it, who may log in, and what it has issued."""

    base_url: str = ""
    ca_bundle: str = ""
    client: Client = field(default_factory=Client)
    username: str = "alice"
    password: str = "her & password +%25 Grüße"
    tokens: list[Issued] = field(default_factory=list)
    reused: int = 0
    requests: list[str] = field(default_factory=list)

    def by_access_token(self, text: str) -> Issued | None:
        return next((token for token in self.tokens if token.access_token == text), None)

    def by_refresh_token(self, text: str) -> Issued | None:
        return next((token for token in self.tokens if token.refresh_token == text), None)

    def expire_all(self) -> None:
        """Let every access token have run out long ago."""
        for token in self.tokens:
            token.expires_at = 0.0

    def alive(self) -> int:
        """Count what still opens something, or may be renewed."""
        return sum(not token.is_expired() or bool(token.refresh_token and not token.spent) for token in self.tokens)


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Run a server on loopback, with a certificate of its own."""
    authority, server = trustme.CA(), Server(ca_bundle=str(folder / "ca.pem"))
    authority.cert_pem.write_to_path(server.ca_bundle)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    http = make_server("127.0.0.1", 0, make_app(server), threaded=True, ssl_context=context)
    server.base_url = f"https://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


class Oauth(AuthorizationServer):
    """Authlib's server, with what it has issued."""

    def __init__(self, app: Flask, issued: Server) -> None:
        super().__init__(app, {issued.client.client_id: issued.client}.get, self._keep)
        self.issued = issued

    def _keep(self, answer: dict[str, Any], asked: Any) -> None:
        expires_at, texts = time.time() + answer["expires_in"], (answer["access_token"], answer.get("refresh_token"))
        self.issued.tokens.append(Issued(asked.client, asked.user, texts[0], expires_at, texts[1]))


class ByCredentials(grants.ClientCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = IN_THE_FORM


class ByPassword(grants.ResourceOwnerPasswordCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = IN_THE_FORM

    def authenticate_user(self, username: str, password: str) -> str | None:
        issued = self.server.issued
        return username if (username, password) == (issued.username, issued.password) else None


class ByRefreshToken(grants.RefreshTokenGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = IN_THE_FORM
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> Issued | None:
        token: Issued | None = self.server.issued.by_refresh_token(refresh_token)
        if token is not None and token.spent:
            self.server.issued.reused += 1
            return None
        return token

    def authenticate_user(self, refresh_token: Issued) -> str | None:
        return refresh_token.user

    def revoke_old_credential(self, refresh_token: Issued) -> None:
        refresh_token.end()


class Bearers(BearerTokenValidator):
    def __init__(self, issued: Server) -> None:
        super().__init__()
        self.authenticate_token = issued.by_access_token


class Revocation(RevocationEndpoint):
    def authenticate_endpoint_client(self, _asked: Any) -> Client:
        """Take the client's bearer, and no user's, as finAPI does."""
        if current_token.user is not None:
            raise AccessDeniedError()
        client: Client = current_token.client
        return client

    def query_token(self, token_string: str, token_type_hint: str | None) -> Issued | None:
        issued: Server = self.server.issued
        return issued.by_refresh_token(token_string) or issued.by_access_token(token_string)

    def revoke_token(self, token: Issued, _asked: Any) -> None:
        token.end()


def make_app(server: Server) -> Flask:
    """Return the application: two OAuth calls and one resource."""
    app = Flask(__name__)
    app.config["OAUTH2_REFRESH_TOKEN_GENERATOR"] = True
    oauth, protector = Oauth(app, server), ResourceProtector()
    for grant in (ByCredentials, ByPassword, ByRefreshToken):
        oauth.register_grant(grant)
    oauth.register_endpoint(Revocation)
    protector.register_token_validator(Bearers(server))

    @app.post("/oauth/token")
    def token() -> Any:
        server.requests.append(request.form["grant_type"])
        return oauth.create_token_response()

    @app.post("/oauth/revoke")
    @protector()
    def revoke() -> Any:
        server.requests.append("revoke")
        return oauth.create_endpoint_response("revocation")

    @app.get("/api/v2/accounts")
    @protector()
    def accounts() -> Any:
        return {"owner": current_token.user}

    return app
