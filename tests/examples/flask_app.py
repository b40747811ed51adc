"""Flask: one client session for the process, one user session for each request."""

import json
import os

from flask import Flask, g, request

from finapi_session import FinapiError, FinapiSession, open_store

app = Flask(__name__)
passwords = json.loads(os.environ["FINAPI_PASSWORDS"])  # your vault
client = FinapiSession.from_env(store=open_store(os.environ["REDIS_URL"]))


@app.before_request
def sign_in():
    user = request.headers["X-User"]  # whoever your login says it is
    g.finapi = client.user(user, lambda: passwords[user])


@app.get("/accounts")
def accounts():
    response = g.finapi.get("/api/v2/accounts", headers={"PSU-IP-Address": request.remote_addr})
    return response.json(), response.status_code


@app.errorhandler(FinapiError)
def no_token(error):
    app.logger.warning("%s", error)
    return {"error": "finAPI is not available", "request_id": error.request_id}, 502
