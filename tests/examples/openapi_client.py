"""A client generated from finAPI's OpenAPI description: its token comes from a session."""

import finapi  # what the generator made

from finapi_session import FinapiSession


def find_banks(session: FinapiSession, api: finapi.ApiClient, words: str):
    api.configuration.access_token = session.fetch_token().access_token
    return api.call_api(
        "/api/v2/banks",
        "GET",
        query_params=[("search", words)],
        auth_settings=["finapi_auth"],
        response_type="object",
        _return_http_data_only=True,
    )
