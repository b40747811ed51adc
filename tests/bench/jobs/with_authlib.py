"""With Authlib."""

import json
import os
import threading
from pathlib import Path

from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session


class Session(OAuth2Session):
    def __init__(self, login):
        self.path = Path(login.folder, f"{login.username or 'client'}.json")
        super().__init__(
            login.client_id,
            login.client_secret,
            token_endpoint=f"{login.base_url}/oauth/token",
            token_endpoint_auth_method="client_secret_post",
            token=json.loads(self.path.read_text()) if self.path.exists() else None,
            leeway=1,
        )
        self.login, self.renewing, self.verify = login, threading.Lock(), login.ca_bundle

    def request(self, method, url, withhold_token=False, **options):
        if withhold_token or url.startswith("https://"):  # a token call
            return super().request(method, url, withhold_token=True, **options)
        url, used = self.login.base_url + url, self.token
        if not used or used.is_expired(1):
            self.renew(used)
            used = self.token
        answer = super().request(method, url, **options)
        if answer.status_code == 401:
            self.renew(used)
            answer = super().request(method, url, **options)
        return answer

    def renew(self, used):
        with self.renewing:
            if self.token is not used:  # another thread was quicker
                return
            try:
                if not used or "refresh_token" not in used:
                    raise OAuthError
                self.refresh_token(refresh_token=used["refresh_token"])
            except OAuthError:
                user = {"username": self.login.username, "password": self.login.password}
                self.fetch_token(**(user if self.login.username else {"grant_type": "client_credentials"}))
            self.keep()

    def keep(self):
        new = self.path.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(self.token, file)
        new.replace(self.path)


make = Session
