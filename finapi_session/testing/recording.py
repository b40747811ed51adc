"""A request as the sandbox keeps it: a :class:`Call`, without secrets."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, parse_qsl

from requests.structures import CaseInsensitiveDict
from werkzeug.datastructures import Authorization, EnvironHeaders
from werkzeug.wrappers import Response

from .authority import Authority, Kind
from .traffic import Call

_REDACTED = "[redacted]"
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie"})
_SECRET_WORDS = ("password", "secret", "token")


def described(environ: Mapping[str, Any], authority: Authority) -> Call:
    """Return what can be told of a request before it is judged."""
    path, given = environ["PATH_INFO"], environ.get("HTTP_X_REQUEST_ID", "")
    form = _form(environ) if path.endswith(("/oauth/token", "/oauth/revoke")) else {}
    bearer = bearer_of(environ)
    kind, username = _caller(authority, form, bearer)
    revoked = authority.owner(form.get("token"))
    return Call(
        method=environ["REQUEST_METHOD"],
        path=path,
        status=None,
        request_id=given if 0 < len(given) <= 255 else str(uuid.uuid4()),
        grant_type=form.get("grant_type"),
        kind=kind,
        username=username,
        token=bearer[:4] if bearer else None,
        revoked=(revoked.user_id or revoked.kind) if revoked else None,
        params=_params(environ.get("QUERY_STRING", "")),
        headers=_headers(environ),
        json=_json(environ),
    )


def bearer_of(environ: Mapping[str, Any]) -> str | None:
    """Return the bearer token of a request, if it has one."""
    given = Authorization.from_header(environ.get("HTTP_AUTHORIZATION"))
    return given.token if given is not None and given.type == "bearer" else None


def given_token(response: Response, call: Call) -> str | None:
    """Return what may be shown of the token that *response* gives, if it gives one."""
    if response.status_code != 200 or not call.path.endswith("/oauth/token"):
        return None
    token: str = json.loads(response.get_data())["access_token"]
    return token[:4]


def _caller(authority: Authority, form: Mapping[str, str], bearer: str | None) -> tuple[Kind | None, str | None]:
    if form.get("grant_type") == "client_credentials":
        return "client", None
    if form.get("grant_type") == "password":
        return "user", form.get("username", "").lower()
    return authority.owner(bearer or form.get("refresh_token")) or (None, None)


def _body(environ: Mapping[str, Any]) -> str:
    stream = environ["wsgi.input"]
    body: str = stream.read().decode("utf-8", "replace")
    stream.seek(0)
    return body


def _form(environ: Mapping[str, Any]) -> dict[str, str]:
    return dict(parse_qsl(_body(environ)))


def _params(query: str) -> dict[str, str | list[str]]:
    read = _redacted(parse_qs(query, keep_blank_values=True))
    return {
        name: values[0] if isinstance(values, list) and len(values) == 1 else values for name, values in read.items()
    }


def _headers(environ: Mapping[str, Any]) -> CaseInsensitiveDict[str]:
    headers = EnvironHeaders(dict(environ))
    return CaseInsensitiveDict(
        {name: _REDACTED if name.lower() in _SECRET_HEADERS else value for name, value in headers.items()}
    )


def _json(environ: Mapping[str, Any]) -> Any:
    if "json" not in environ.get("CONTENT_TYPE", ""):
        return None
    try:
        return _redacted(json.loads(_body(environ)))
    except (ValueError, RecursionError):
        return None


def _redacted(value: Any) -> Any:
    """Return *value* without what is called a password, a secret or a token."""
    if isinstance(value, list):
        return [_redacted(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _REDACTED if any(word in name.lower() for word in _SECRET_WORDS) else _redacted(each)
        for name, each in value.items()
    }
