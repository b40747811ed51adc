"""Celery: tasks on any number of workers and hosts, with one token for each user."""

import json
import os

from celery import Celery
from redis import Redis

from finapi_session import FinapiSession, RedisStore, TokenEndpointError

app = Celery("tasks", broker=os.environ["CELERY_BROKER"], backend=os.environ["CELERY_BACKEND"])
passwords = json.loads(os.environ["FINAPI_PASSWORDS"])  # your vault
client = FinapiSession.from_env(store=RedisStore(Redis.from_url(os.environ["REDIS_URL"], socket_timeout=5)))


@app.task(autoretry_for=(TokenEndpointError,), retry_backoff=True)
def balance(user):
    session = client.user(user, lambda: passwords[user])
    accounts = session.get("/api/v2/accounts").json()["accounts"]
    return sum(account["balance"] for account in accounts)
