"""With requests-oauthlib."""

import json
import os
import threading
import time
from pathlib import Path

from oauthlib.oauth2 import BackendApplicationClient, LegacyApplicationClient, OAuth2Error
from requests_oauthlib import OAuth2Session


class Session(OAuth2Session):
    def __init__(self, login):
        kind = LegacyApplicationClient if login.username else BackendApplicationClient
        super().__init__(client=kind(login.client_id))
        self.login, self.renewing, self.verify = login, threading.Lock(), login.ca_bundle
        self.path = Path(login.folder, f"{login.username or 'client'}.json")
        if self.path.exists():
            self.token = json.loads(self.path.read_text())

    def request(self, method, url, **options):
        if url.startswith("https://"):  # a token call
            return super().request(method, url, **{**options, "withhold_token": True})
        url, used = self.login.base_url + url, self.access_token
        if not used or self.token["expires_at"] < time.time() + 1:
            self.renew(used)
            used = self.access_token
        answer = super().request(method, url, **options)
        if answer.status_code == 401:
            self.renew(used)
            answer = super().request(method, url, **options)
        return answer

    def renew(self, used):
        with self.renewing:
            if self.access_token != used:  # another thread was quicker
                return
            url, secret = f"{self.login.base_url}/oauth/token", self.login.client_secret
            try:
                if "refresh_token" not in self.token:
                    raise OAuth2Error
                self.refresh_token(url, client_id=self.login.client_id, client_secret=secret)
            except OAuth2Error:
                user = {"username": self.login.username, "password": self.login.password}
                sent = user if self.login.username else {}
                self.fetch_token(url, client_secret=secret, include_client_id=True, **sent)
            self.keep()

    def keep(self):
        new = self.path.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(self.token, file)
        new.replace(self.path)


make = Session
