"""With google-auth."""

import json
import os
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import requests
from google.auth.credentials import Credentials
from google.auth.exceptions import RefreshError
from google.auth.transport.requests import AuthorizedSession


class FinapiCredentials(Credentials):
    def __init__(self, login):
        super().__init__()
        self.login, self.renewing, self.sent, self.refresh_token = login, threading.Lock(), threading.local(), None
        self.path = Path(login.folder, f"{login.username or 'client'}.json")
        if self.path.exists():
            kept = json.loads(self.path.read_text())
            self.token, self.refresh_token = kept["token"], kept["refresh_token"]
            self.expiry = datetime.fromisoformat(kept["expiry"])

    @property
    def expired(self):  # its own one renews 3:45 minutes early, and holds up every thread for it
        return self.expiry is not None and datetime.now(timezone.utc).replace(tzinfo=None) >= self.expiry

    def apply(self, headers, token=None):
        self.sent.token = self.token
        super().apply(headers, token)

    def refresh(self, request):
        used = getattr(self.sent, "token", None)
        with self.renewing:
            if self.token != used and not self.expired:  # another thread was quicker
                return
            try:
                if not self.refresh_token:
                    raise RefreshError
                self.take(grant_type="refresh_token", refresh_token=self.refresh_token)
            except RefreshError:
                user = {"grant_type": "password", "username": self.login.username, "password": self.login.password}
                self.take(**(user if self.login.username else {"grant_type": "client_credentials"}))
            self.keep()

    def take(self, **form):
        form |= {"client_id": self.login.client_id, "client_secret": self.login.client_secret}
        url = f"{self.login.base_url}/oauth/token"
        answer = requests.post(url, data=form, verify=self.login.ca_bundle, timeout=30)
        if not answer.ok:
            raise RefreshError(answer.status_code)
        token = answer.json()
        self.token, self.refresh_token = token["access_token"], token.get("refresh_token", self.refresh_token)
        self.expiry = datetime.now(timezone.utc).replace(tzinfo=None) + timedelta(seconds=token["expires_in"])

    def keep(self):
        kept = {"token": self.token, "refresh_token": self.refresh_token, "expiry": self.expiry.isoformat()}
        new = self.path.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(kept, file)
        new.replace(self.path)


class Session(AuthorizedSession):
    def __init__(self, login):
        super().__init__(FinapiCredentials(login))
        self.login, self.verify = login, login.ca_bundle

    def request(self, method, url, **options):
        whole = url if url.startswith("https://") else self.login.base_url + url  # it calls itself after a 401
        return super().request(method, whole, **options)


make = Session
