"""finAPI's two OAuth calls as finAPI documents them, for whoever wants to make them by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .auth import BearerAuth
from .identity import Identity
from .options import check_request_id
from .redaction import Redacted
from .session import FinapiSession
from .tokens import Token, sound_refresh_token

if TYPE_CHECKING:
    from .endpoint import TokenEndpoint

#: What a grant needs beside the client's id and secret (RFC 6749, sections 4.3, 4.4 and 6).
_NEEDED: dict[str, tuple[str, ...]] = {
    "password": ("username", "password"),
    "client_credentials": (),
    "refresh_token": ("refresh_token",),
}
_HINTS = (None, "access_token", "refresh_token")


class AuthorizationApi:
    """GetToken and RevokeToken of finAPI's API, called with its own names.

    The calls go over *session*'s connections to its environment, with its retries, time limits, request ids and
    errors; its listeners and logs are told of them. Nothing is stored, and *session*'s own tokens stay as they are.
    Most programs need none of this: a session gets, renews and revokes its tokens by itself.
    """

    def __init__(self, session: FinapiSession) -> None:
        if not isinstance(session, FinapiSession):
            raise TypeError(f"session must be a FinapiSession, not {type(session).__name__}")
        self._session = session

    def get_token(
        self,
        grant_type: str,
        client_id: str,
        client_secret: str,
        *,
        x_request_id: str | None = None,
        refresh_token: str | None = None,
        username: str | None = None,
        password: str | None = None,
    ) -> Token:
        """Return a new token (``POST /oauth/token``).

        :param grant_type: ``password`` for a user's token, ``client_credentials`` for the client's, ``refresh_token``
            for another one of a user.
        :param client_id: The client's id.
        :param client_secret: The client's secret.
        :param x_request_id: The call's ``X-Request-Id``, at most 255 characters; by default the session makes one.
        :param refresh_token: The refresh token, for ``refresh_token`` only.
        :param username: The user's id, for ``password`` only.
        :param password: The user's password, for ``password`` only.

        What a grant does not need is not sent. Raises ``ValueError`` or ``TypeError``, naming the argument, before
        anything is sent, and a :class:`~finapi_session.TokenError` if there is no token. A password is sent however
        often this is called, though finAPI locks a user after a few wrong ones.
        """
        # From here on no frame shows them.
        client_secret, password, refresh_token = map(_redacted, (client_secret, password, refresh_token))
        _check_grant(grant_type, {"username": username, "password": password, "refresh_token": refresh_token})
        endpoint = self._endpoint(x_request_id)
        user = (username, password) if grant_type == "password" else (None, None)
        credentials = Identity(client_id, client_secret, *user).credentials()
        spent = Redacted(refresh_token) if grant_type == "refresh_token" else None
        return endpoint.exchange(credentials, spent, patient=True)

    def revoke_token(self, token: str, *, token_type_hint: str | None = None, x_request_id: str | None = None) -> None:
        """Revoke *token* (``POST /oauth/revoke``, RFC 7009), with the access token of *session*'s client.

        :param token: An access token or a refresh token, of the client or of one of its users.
        :param token_type_hint: ``access_token`` revokes that token alone, ``refresh_token`` all access tokens of its
            grant as well; without it finAPI revokes all of the grant.
        :param x_request_id: As for :meth:`get_token`.

        A token that finAPI does not know counts as revoked. Raises ``ValueError`` or ``TypeError``, naming the
        argument, before anything is sent, :class:`~finapi_session.RevocationError`, and a
        :class:`~finapi_session.TokenError` if there is no token of the client's.
        """
        text = _redacted(token)
        del token
        if not isinstance(text, str):
            raise TypeError(f"token must be text, not {type(text).__name__}")
        if not sound_refresh_token(text):
            raise ValueError("token must be text of printable ASCII characters, as finAPI gave it")
        if token_type_hint not in _HINTS:
            raise ValueError("token_type_hint must be access_token, refresh_token or None")
        endpoint, client = self._endpoint(x_request_id), self._session._client
        bearer = BearerAuth(client, self._session.environment)
        endpoint.revoke_text(str(client.identity), Redacted(text), token_type_hint, bearer, patient=True)

    def _endpoint(self, x_request_id: str | None) -> TokenEndpoint:
        endpoint = self._session._endpoint
        return endpoint if x_request_id is None else endpoint.with_request_id(check_request_id(x_request_id))


def _redacted(value: Any) -> Any:
    return Redacted(value) if isinstance(value, str) else value


def _check_grant(grant_type: str, given: dict[str, str | None]) -> None:
    """Raise ``ValueError`` for a grant that finAPI does not have, or that lacks something."""
    if grant_type not in _NEEDED:
        raise ValueError("grant_type must be password, client_credentials or refresh_token")
    for name in _NEEDED[grant_type]:
        if given[name] is None:
            raise ValueError(f"grant_type {grant_type} needs {name}")
    if grant_type == "refresh_token" and not sound_refresh_token(given["refresh_token"]):
        raise ValueError("refresh_token must be text of printable ASCII characters, as finAPI gave it")
