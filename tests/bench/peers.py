"""finapi_session and what people would pick instead, each used as its own documentation says."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from importlib import import_module
from importlib.metadata import version
from typing import Any, ClassVar

import requests

from .servers import TENANT, Place

ID, SECRET = "bench-client", "bench-secret"
_Token = Mapping[str, Any]


class Peer:
    """A client of the bench; it holds *token*, as OAuth libraries keep one, if it is given.

    ``early`` tells whether it renews before a token expires, ``heals`` whether it renews on a 401, ``stores``
    whether it keeps tokens for other processes.
    """

    name: ClassVar[str]
    distribution: ClassVar[str]
    imports: ClassVar[str]
    early: ClassVar[bool] = False
    heals: ClassVar[bool] = False
    stores: ClassVar[bool] = False
    session: Any

    def __init__(self, place: Place, token: _Token | None = None) -> None:
        raise NotImplementedError

    def get(self, url: str) -> requests.Response:
        """Make one API call."""
        response: requests.Response = self.session.get(url)
        return response

    def user(self, number: int) -> object:
        """Return a session for one of many users of the same client."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the connections."""
        self.session.close()

    @classmethod
    def available(cls) -> bool:
        """Tell whether it is installed."""
        try:
            import_module(cls.imports.split()[1])
        except ImportError:
            return False
        return True

    @classmethod
    def version(cls) -> str:
        """Return its name and version."""
        return f"{cls.distribution} {version(cls.distribution)}"


class Ours(Peer):
    """This library."""

    name, distribution = "finapi_session", "finapi-session"
    imports = "from finapi_session import FinapiSession"
    early = heals = stores = True
    leeway, in_background = 60.0, False

    def __init__(self, place: Place, token: _Token | None = None, store: Any = None) -> None:
        from finapi_session import Environment, FinapiSession

        environment = Environment(place.origin)
        how = {"leeway": self.leeway, "renew_in_background": self.in_background, "revoke_on_close": False}
        self.session = place.fit(FinapiSession(ID, SECRET, environment=environment, token=token, store=store, **how))

    def user(self, number: int) -> object:
        """Return a session on the same connections."""
        return self.session.user(f"user-{number}", f"password-{number}")

    @classmethod
    def version(cls) -> str:
        """Return its name and version; it may run from its source."""
        return f"{cls.distribution} {import_module('finapi_session').__version__}"


class OursInBackground(Ours):
    """The same with its option: what is about to expire is renewed in a thread."""

    name, in_background = "finapi_session, in background", True


class Plain(Peer):
    """``requests.Session`` with a header set by hand, once."""

    name, distribution, imports = "requests", "requests", "import requests"

    def __init__(self, place: Place, token: _Token | None = None) -> None:
        self.session = place.fit(requests.Session())
        if token is None:
            form = {"grant_type": "client_credentials", "client_id": ID, "client_secret": SECRET}
            token = self.session.post(place.token_url, data=form).json()
        self.session.headers["Authorization"] = f"Bearer {token['access_token']}"

    def user(self, number: int) -> object:
        """Return a session of its own."""
        return requests.Session()


class Least(Plain):
    """requests with five lines of ``AuthBase``: the least that sets a token."""

    name, distribution, imports = "AuthBase", "requests", "import requests"

    def __init__(self, place: Place, token: _Token | None = None) -> None:
        super().__init__(place, token)
        self.session.auth = _Header(self.session.headers.pop("Authorization"))


class _Header(requests.auth.AuthBase):
    def __init__(self, header: str) -> None:
        self.header = header

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self.header
        return request


class RequestsOauthlib(Peer):
    """requests-oauthlib, "Backend Application Flow": a token is fetched by hand, again once expired."""

    name, distribution, imports = "requests-oauthlib", "requests-oauthlib", "import requests_oauthlib"

    def __init__(self, place: Place, token: _Token | None = None) -> None:
        from oauthlib.oauth2 import BackendApplicationClient
        from requests_oauthlib import OAuth2Session

        client = BackendApplicationClient(client_id=ID)
        self.session = place.fit(OAuth2Session(client=client, token=token and dict(token)))
        self._token_url = place.token_url
        if token is None:
            self._fetch()

    def _fetch(self) -> None:
        self.session.fetch_token(token_url=self._token_url, client_id=ID, client_secret=SECRET)

    def get(self, url: str) -> requests.Response:
        """Make one API call; ``TokenExpiredError`` says when to fetch: there is no refresh token here."""
        from oauthlib.oauth2 import TokenExpiredError

        try:
            return super().get(url)
        except TokenExpiredError:
            self._fetch()
            return super().get(url)

    def user(self, number: int) -> object:
        """Return a session of its own, "Legacy Application Flow"."""
        from oauthlib.oauth2 import LegacyApplicationClient
        from requests_oauthlib import OAuth2Session

        return OAuth2Session(client=LegacyApplicationClient(client_id=ID))


class Authlib(Peer):
    """Authlib, "OAuth2Session": fetches by hand once, then by itself within 60 s of expiry."""

    name, distribution = "Authlib", "Authlib"
    imports = "from authlib.integrations.requests_client import OAuth2Session"
    early = True

    def __init__(self, place: Place, token: _Token | None = None) -> None:
        self._token_url = place.token_url
        self.session = place.fit(self._make(token and dict(token), grant_type="client_credentials"))
        if token is None:
            self.session.fetch_token()

    def _make(self, token: Any = None, **metadata: str) -> Any:
        from authlib.integrations.requests_client import OAuth2Session

        method = "client_secret_post"
        return OAuth2Session(ID, SECRET, method, token=token, token_endpoint=self._token_url, **metadata)

    def user(self, number: int) -> object:
        """Return a session of its own."""
        return self._make()


class RequestsOauth2client(Peer):
    """requests_oauth2client: an auth handler that fetches within 20 s of expiry."""

    name, distribution = "requests_oauth2client", "requests-oauth2client"
    imports = "from requests_oauth2client import OAuth2ClientCredentialsAuth"
    early = True

    def __init__(self, place: Place, token: _Token | None = None) -> None:
        from requests_oauth2client import BearerToken, OAuth2Client, OAuth2ClientCredentialsAuth

        session = place.fit(requests.Session())
        self._client = OAuth2Client(place.token_url, client_id=ID, client_secret=SECRET, session=session)
        held = None
        if token is not None:
            held = BearerToken(token["access_token"], expires_at=_aware(token["expires_at"]))
        self.session = place.fit(requests.Session())
        self.session.auth = OAuth2ClientCredentialsAuth(self._client, token=held)

    def user(self, number: int) -> object:
        """Return a session of its own, for the same client."""
        from requests_oauth2client import OAuth2ResourceOwnerPasswordAuth

        session = requests.Session()
        session.auth = OAuth2ResourceOwnerPasswordAuth(
            self._client, username=f"user-{number}", password=f"password-{number}"
        )
        return session


class GoogleAuth(Peer):
    """google-auth: ``AuthorizedSession`` with credentials whose ``refresh`` asks for a client's token."""

    name, distribution = "google-auth", "google-auth"
    imports = "from google.auth.transport.requests import AuthorizedSession"
    early = heals = True

    def __init__(self, place: Place, token: _Token | None = None) -> None:
        from google.auth.transport.requests import AuthorizedSession, Request

        self._credentials = _google_credentials(place.token_url)
        if token is not None:
            expiry = _aware(token["expires_at"]).replace(tzinfo=None)
            self._credentials.token, self._credentials.expiry = token["access_token"], expiry
        asking = Request(place.fit(requests.Session()))
        self.session = place.fit(AuthorizedSession(self._credentials, auth_request=asking))

    def user(self, number: int) -> object:
        """Return a session of its own, with credentials of its own."""
        from google.auth.transport.requests import AuthorizedSession

        return AuthorizedSession(_google_credentials(""))


class GoogleAuthInBackground(GoogleAuth):
    """The same with its documented option: what is about to expire is renewed in a thread."""

    name = "google-auth, non-blocking"

    def __init__(self, place: Place, token: _Token | None = None) -> None:
        super().__init__(place, token)
        self._credentials.with_non_blocking_refresh()


class Botocore(Peer):
    """botocore's ``RefreshableCredentials``, which ask a callback for what it keeps as the token."""

    name, distribution = "botocore", "botocore"
    imports = "from botocore.credentials import RefreshableCredentials"
    early = True

    def __init__(self, place: Place, token: _Token | None = None) -> None:
        from botocore.credentials import RefreshableCredentials

        self.session, self._url = place.fit(requests.Session()), place.token_url
        kept = self._ask() if token is None else _metadata(token)
        self._credentials = RefreshableCredentials.create_from_metadata(kept, self._ask, "bench")

    def _ask(self) -> dict[str, str]:
        form = {"grant_type": "client_credentials", "client_id": ID, "client_secret": SECRET}
        answer = self.session.post(self._url, data=form)
        answer.raise_for_status()
        given = answer.json()
        return _metadata(given | {"expires_at": time.time() + given["expires_in"]})

    def get(self, url: str) -> requests.Response:
        """Make one API call with the token that the credentials hold."""
        token = self._credentials.get_frozen_credentials().token
        response: requests.Response = self.session.get(url, headers={"Authorization": f"Bearer {token}"})
        return response


def _metadata(token: _Token) -> dict[str, str]:
    expiry = _aware(token["expires_at"]).isoformat()
    return {"access_key": "-", "secret_key": "-", "token": token["access_token"], "expiry_time": expiry}


class Databricks(Peer):
    """databricks-sdk's ``ClientCredentials``, with the asynchronous refresh that its own clients use."""

    name, distribution = "databricks-sdk", "databricks-sdk"
    imports = "from databricks.sdk.oauth import ClientCredentials"
    early = True

    def __init__(self, place: Place, token: _Token | None = None) -> None:
        from databricks.sdk.oauth import ClientCredentials, Token

        self.session = place.fit(requests.Session())
        self._source = ClientCredentials(ID, SECRET, place.token_url, use_params=True, disable_async=False)
        if token is not None:
            expiry = datetime.now() + timedelta(seconds=token["expires_at"] - time.time())
            self._source._update_token(Token(token["access_token"], token["token_type"], expiry=expiry))

    def get(self, url: str) -> requests.Response:
        """Make one API call with the token that the source gives."""
        token = self._source.token().access_token
        response: requests.Response = self.session.get(url, headers={"Authorization": f"Bearer {token}"})
        return response


class Msal(Peer):
    """msal gives tokens out of its cache, and the caller puts each into a header."""

    name, distribution, imports = "msal", "msal", "import msal"
    early = True

    def __init__(self, place: Place, token: _Token | None = None) -> None:
        import msal

        self.session = place.fit(requests.Session())
        self._application = msal.ConfidentialClientApplication(
            ID, client_credential=SECRET, oidc_authority=place.origin + TENANT, http_client=self.session
        )
        if token is not None:
            self._keep(place, dict(token))

    def _keep(self, place: Place, token: dict[str, Any]) -> None:
        left = max(int(token["expires_at"] - time.time()), 0)
        event = {"client_id": ID, "scope": ["all"], "token_endpoint": place.token_url}
        self._application.token_cache.add({**event, "response": token | {"expires_in": left}})

    def get(self, url: str) -> requests.Response:
        """Make one API call with the token that the cache, or the endpoint, gives."""
        token = self._application.acquire_token_for_client(scopes=["all"])["access_token"]
        response: requests.Response = self.session.get(url, headers={"Authorization": f"Bearer {token}"})
        return response


def _aware(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=timezone.utc)


def _google_credentials(token_url: str) -> Any:
    """Return credentials for google-auth's documented extension point, ``Credentials.refresh``."""
    from google.auth import credentials, exceptions

    class ClientCredentials(credentials.Credentials):
        def refresh(self, request: Any) -> None:
            body = f"grant_type=client_credentials&client_id={ID}&client_secret={SECRET}"
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = request(url=token_url, method="POST", body=body, headers=headers)
            if answer.status != 200:
                raise exceptions.RefreshError(f"HTTP {answer.status}", retryable=answer.status >= 500)
            given = json.loads(answer.data)
            self.token = given["access_token"]
            now = datetime.now(timezone.utc).replace(tzinfo=None)
            self.expiry = now + timedelta(seconds=given["expires_in"])

    return ClientCredentials()


PEERS: tuple[type[Peer], ...] = (
    Ours,
    Plain,
    Least,
    RequestsOauthlib,
    Authlib,
    RequestsOauth2client,
    GoogleAuth,
    Msal,
)
