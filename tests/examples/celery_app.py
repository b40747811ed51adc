"""Celery: tasks on any number of workers and hosts, with one token for each user."""

import json
import os

from celery import Celery

from finapi_session import FinapiSession, TokenEndpointError, open_store

app = Celery("tasks", broker=os.environ["CELERY_BROKER"], backend=os.environ["CELERY_BACKEND"])
passwords = json.loads(os.environ["FINAPI_PASSWORDS"])  # your vault
client = FinapiSession.from_env(store=open_store(os.environ["REDIS_URL"]))


@app.task(autoretry_for=(TokenEndpointError,), retry_backoff=True)
def balance(user):
    session = client.user(user, lambda: passwords[user])
    accounts = session.get("/api/v2/accounts").json()["accounts"]
    return sum(account["balance"] for account in accounts)
