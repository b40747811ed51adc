"""With finapi_session."""

from finapi_session import FileStore, FinapiSession


def make(login):
    client = FinapiSession(
        login.client_id, login.client_secret, environment=login.base_url, store=FileStore(login.folder)
    )
    client.verify = login.ca_bundle
    return client.user(login.username, login.password) if login.username else client
