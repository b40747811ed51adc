"""finAPI's calls as a Flask application: what each path answers, and to which kind of token."""

from __future__ import annotations

import base64
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from .authority import Authority, ErrorShape, Kind, Owner, Refusal, Settings, User
from .books import Books
from .catalogue import Catalogue, page
from .filters import USERS, Listing

View = Callable[..., Any]

#: Where the sandbox puts the request id of a call, given or made up.
REQUEST_ID = "finapi.request_id"
_OAUTH_PATH = re.compile(r"(/api/v2)?/oauth/\w+")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_ANYONE: tuple[Kind, ...] = ("client", "user")
_NO_QUERY = Listing({}, paged=False)


def create_application(authority: Authority, settings: Settings, books: Books) -> Flask:
    """Return finAPI on *authority*'s tokens and users, and on what *books* have of the users."""
    application = Flask("finapi_session.testing", static_folder=None)
    application.json.sort_keys = False  # type: ignore[attr-defined]
    application.before_request(lambda: _check_request(settings))
    application.register_error_handler(Refusal, lambda refusal: _refused(refusal, settings.error_shape))
    application.register_error_handler(HTTPException, lambda error: _refused(_refusal(error), settings.error_shape))
    _Tokens(authority).route(application)
    _Resources(authority, settings, books).route(application)
    return application


def bearer() -> str | None:
    """Return the bearer token of the request, if it has one."""
    given = request.authorization
    return given.token if given is not None and given.type == "bearer" else None


class _Tokens:
    """The two OAuth calls, on the paths of both API versions."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    def route(self, application: Flask) -> None:
        for prefix in ("/oauth", "/api/v2/oauth"):
            application.add_url_rule(f"{prefix}/token", f"{prefix}/token", self.token, methods=["POST"])
            application.add_url_rule(f"{prefix}/revoke", f"{prefix}/revoke", self.revoke, methods=["POST"])

    def token(self) -> Response:
        answer = jsonify(self._authority.token(_form()))
        answer.headers.update({"Cache-Control": "no-store", "Pragma": "no-cache"})
        return answer

    def revoke(self) -> Response:
        self._authority.revoke(bearer(), _form())
        return Response()


class _Resources:
    """The calls that take a token; each is told whose it is."""

    def __init__(self, authority: Authority, settings: Settings, books: Books) -> None:
        self._authority = authority
        self._settings = settings
        self._books = books

    def route(self, application: Flask) -> None:
        for path, kind, view, listing in Catalogue(self._books).routes():
            self._add(application, "GET", path, _ANYONE if kind is None else (kind,), view, listing)
        routes: tuple[tuple[str, str, tuple[Kind, ...], View], ...] = (
            ("GET", "clientConfiguration", ("client",), self.client_configuration),
            ("POST", "users", ("client",), self.create_user),
            ("GET", "users", ("user",), self.own_user),
            ("DELETE", "users", ("user",), self.delete_own_user),
            ("DELETE", "users/<user_id>", ("client",), self.delete_user),
            ("POST", "users/verify/<user_id>", ("client",), self.verify_user),
            ("POST", "users/requestPasswordChange", ("client",), self.request_password_change),
            ("POST", "users/executePasswordChange", ("client",), self.execute_password_change),
        )
        for method, path, kinds, view in routes:
            self._add(application, method, path, kinds, view, _NO_QUERY)
        self._add(application, "GET", "mandatorAdmin/getUserList", ("client",), self.list_users, USERS)
        for method in _METHODS:
            self._add(application, method, "tests/echo", _ANYONE, self.echo, None)
            self._add(application, method, "tests/redirect", _ANYONE, self.redirect, None)

    def _add(
        self,
        application: Flask,
        method: str,
        path: str,
        kinds: tuple[Kind, ...],
        view: View,
        listing: Listing | None,
    ) -> None:
        """Answer *path* to *kinds* of tokens. Of the query *listing* tells the parameters; ``None`` takes any."""
        rule = f"/api/v2/{path}"
        guarded = self._guarded(kinds, view, listing)
        application.add_url_rule(rule, f"{method} {rule}", guarded, methods=[method], provide_automatic_options=False)

    def _guarded(self, kinds: tuple[Kind, ...], view: View, listing: Listing | None) -> View:
        def guarded(**values: str) -> Any:
            owner = self._authority.check(bearer())
            if owner.kind not in kinds:
                wanted = f"This call requires the access token of a {kinds[0]}, not of a {owner.kind}"
                raise Refusal(403, "FORBIDDEN", wanted)
            _check_query(listing)
            return view(owner, **values)

        return guarded

    def client_configuration(self, owner: Owner) -> Any:
        settings = self._settings
        return {
            "clientId": settings.client_id,
            "clientName": "finAPI Sandbox (local)",
            "clientAccessTokensValidityPeriod": settings.lifetime,
            "userAccessTokensValidityPeriod": settings.lifetime,
            "refreshTokensValidityPeriod": settings.refresh_lifetime or 0,
            "maxUserLoginAttempts": settings.max_login_attempts,
            "isUserAutoVerificationEnabled": settings.auto_verify,
            "isDevelopmentModeEnabled": True,
            "isMandatorAdmin": True,
            "preferredConsentType": "ONETIME",
        }

    def create_user(self, owner: Owner) -> Any:
        fields = _json_object()
        user = User(
            id=_text(fields, "id") or secrets.token_hex(12),
            password=_text(fields, "password") or secrets.token_urlsafe(18),
            email=_text(fields, "email"),
            phone=_text(fields, "phone"),
            auto_update=fields.get("isAutoUpdateEnabled") is True,
            verified=self._settings.auto_verify,
        )
        self._authority.add_user(user)
        return _user(user) | {"password": user.password}, 201

    def own_user(self, owner: Owner) -> Any:
        return _user(self._authority.user(owner.user_id))

    def delete_own_user(self, owner: Owner) -> Any:
        return self.delete_user(owner, owner.user_id or "")

    def delete_user(self, owner: Owner, user_id: str) -> Any:
        self._authority.remove_user(user_id)
        self._books.forget(user_id)
        return {}

    def verify_user(self, owner: Owner, user_id: str) -> Any:
        self._authority.verify_user(user_id)
        return {}

    def request_password_change(self, owner: Owner) -> Any:
        user = self._authority.user(_text(_json_object(), "userId"))
        ticket = self._authority.request_password_change(user.id)
        return {"userId": user.id, "userEmail": user.email, "passwordChangeToken": ticket}

    def execute_password_change(self, owner: Owner) -> Any:
        fields = _json_object()
        user_id, password, ticket = (_text(fields, name) for name in ("userId", "password", "passwordChangeToken"))
        if not user_id or not password or not ticket:
            raise Refusal(400, "MISSING_FIELD", "userId, password and passwordChangeToken are required")
        self._authority.execute_password_change(user_id, password, ticket)
        return {}

    def list_users(self, owner: Owner) -> Any:
        listed = [
            {"userId": user.id, "userEmail": user.email, "isDeleted": False, "isLocked": user.locked}
            for user in self._authority.users.values()
        ]
        return page("users", USERS, listed)

    def echo(self, owner: Owner) -> Any:
        body = request.get_data()
        try:
            text = body.decode()
        except UnicodeDecodeError:
            text = None
        return {
            "method": request.method,
            "headers": dict(request.headers),
            "query": request.args.to_dict(),
            "text": text,
            "base64": base64.b64encode(body).decode(),
            "kind": owner.kind,
            "username": owner.user_id,
        }

    def redirect(self, owner: Owner) -> Any:
        status = request.args.get("status", 302, int)
        if "to" not in request.args or status not in (301, 302, 303, 307, 308):
            raise Refusal(400, "BAD_REQUEST", "'to' must be a URL, 'status' one of 301, 302, 303, 307, 308")
        return Response(status=status, headers={"Location": request.args["to"]})


def _check_request(settings: Settings) -> None:
    if len(request.headers.get("X-Request-Id", "")) > 255:
        raise Refusal(400, "BAD_REQUEST", "X-Request-Id must not be longer than 255 characters")
    path = _OAUTH_PATH.fullmatch(request.path)
    if path and settings.api_version not in (None, 2 if path[1] else 1):
        raise Refusal(403, "access_denied", f"The client is bound to API version {settings.api_version}")


def _check_query(listing: Listing | None) -> None:
    known = set(request.args) if listing is None else listing.names
    for name in request.args:
        if name not in known:
            takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            raise Refusal(400, "BAD_REQUEST", f"Unknown parameter '{name}': {takes}")


def _form() -> Mapping[str, str]:
    if request.query_string:
        raise Refusal(400, "invalid_request", "Parameters belong in the body, not in the query string")
    if request.mimetype != "application/x-www-form-urlencoded":
        raise Refusal(400, "invalid_request", "The body must be application/x-www-form-urlencoded")
    return request.form.to_dict()


def _json_object() -> dict[str, Any]:
    body = request.get_json(force=True, silent=True)
    if not isinstance(body, dict):
        raise Refusal(400, "BAD_REQUEST", "The body must be a JSON object")
    return body


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise Refusal(400, "BAD_REQUEST", f"{name} must be text")
    return value


def _user(user: User) -> dict[str, Any]:
    return {
        "id": user.id,
        "password": "XXXXX",
        "email": user.email,
        "phone": user.phone,
        "isAutoUpdateEnabled": user.auto_update,
    }


def _refusal(error: HTTPException) -> Refusal:
    status = error.code or 500
    code = {404: "ENTITY_NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(status, "UNEXPECTED_ERROR")
    return Refusal(status, code, error.description or error.name)


def _refused(refusal: Refusal, oauth_shape: ErrorShape) -> tuple[dict[str, Any], int]:
    return error_body(refusal, request.method, request.path, request.environ[REQUEST_ID], oauth_shape), refusal.status


def error_body(refusal: Refusal, method: str, path: str, request_id: str, oauth_shape: ErrorShape) -> dict[str, Any]:
    """Return *refusal* in one of finAPI's two shapes; OAuth calls and refused tokens have their own."""
    on_oauth = _OAUTH_PATH.fullmatch(path) is not None
    if (on_oauth and oauth_shape == "oauth") or (not on_oauth and refusal.status == 401):
        return {"error": refusal.code, "error_description": refusal.message}
    kind = "TECHNICAL" if refusal.status >= 500 else "BUSINESS"
    return {
        "errors": [{"message": refusal.message, "code": refusal.code.upper(), "type": kind}],
        "date": time.strftime("%Y-%m-%d %H:%M:%S.000", time.gmtime()),
        "requestId": request_id,
        "endpoint": f"{method} {path}",
        "authContext": "0/0",
        "bank": None,
    }
