"""FastAPI: finAPI is asked on the event loop, by httpx; what blocks has a thread of its own."""

import json
import os
import ssl
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, Header, Request

from finapi_session import FileStore, FinapiSession
from finapi_session.httpx import FinapiAuth

passwords = json.loads(os.environ["FINAPI_PASSWORDS"])  # your vault
client = FinapiSession.from_env(store=FileStore())
trusted = ssl.create_default_context(cafile=os.environ.get("REQUESTS_CA_BUNDLE"))  # httpx does not look for it


@asynccontextmanager
async def lifespan(app):
    async with httpx.AsyncClient(base_url=client.environment.base_url, verify=trusted, timeout=60) as finapi:
        yield {"finapi": finapi}


app = FastAPI(lifespan=lifespan)


@app.get("/accounts")
async def accounts(request: Request, x_user: str = Header()):
    alice = client.user(x_user, lambda: passwords[x_user])
    response = await request.state.finapi.get("/api/v2/accounts", auth=FinapiAuth(alice))
    return response.json()
