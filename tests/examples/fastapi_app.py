"""FastAPI: the session blocks, so each call gets a thread of the pool."""

import json
import os

from fastapi import FastAPI, Header
from fastapi.concurrency import run_in_threadpool

from finapi_session import FileStore, FinapiSession

app = FastAPI()
passwords = json.loads(os.environ["FINAPI_PASSWORDS"])  # your vault
client = FinapiSession.from_env(store=FileStore())


@app.get("/accounts")
async def accounts(x_user: str = Header()):
    session = client.user(x_user, lambda: passwords[x_user])
    response = await run_in_threadpool(session.get, "/api/v2/accounts")
    return response.json()
