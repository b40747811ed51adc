"""finAPI's OAuth rules, without HTTP: who gets a token, for how long, and what ends it."""

from __future__ import annotations

import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Kind = Literal["client", "user"]
ErrorShape = Literal["oauth", "api"]


@dataclass(kw_only=True)
class Settings:
    """The client and its rules, as finAPI keeps them for each client; each may change at any time.

    :param client_id: the client's id.
    :param client_secret: its secret.
    :param lifetime: that of access tokens in seconds, 0 for ever.
    :param refresh_lifetime: that of refresh tokens in seconds, ``None`` for ever.
    :param sticky: give the same token while it lives; ``False`` gives a new one each time.
    :param kill_on_refresh: end the old access token at a refresh; ``False`` lets it live on.
    :param rotate_refresh_tokens: ``True`` replaces the refresh token at each use, ``"omit"`` keeps it and leaves it
        out of the answer.
    :param detect_reuse: end the whole grant, its living tokens too, when a refresh token comes that rotation has spent.
    :param max_login_attempts: so many bad passwords in a row lock a user.
    :param auto_verify: ``False`` leaves new users to be verified.
    :param token_length: in characters.
    :param api_version: 1 or 2 binds the client: the other version's OAuth paths answer 403.
    :param error_shape: that of errors on OAuth calls.
    """

    client_id: str = "sandbox-client"
    client_secret: str = field(default="sandbox-client-secret", repr=False)
    lifetime: float = 3600
    refresh_lifetime: float | None = None
    sticky: bool = True
    kill_on_refresh: bool = True
    rotate_refresh_tokens: bool | Literal["omit"] = False
    detect_reuse: bool = False
    max_login_attempts: int = 3
    auto_verify: bool = True
    token_length: int = 64
    api_version: Literal[1, 2] | None = None
    error_shape: ErrorShape = "oauth"


@dataclass
class User:
    """A user of the client, as finAPI keeps it. ``id`` is spelt as it was given."""

    id: str
    password: str = field(repr=False)
    email: str | None = None
    phone: str | None = None
    auto_update: bool = False
    verified: bool = True
    locked: bool = False
    failed_logins: int = 0
    ticket: str | None = field(default=None, repr=False)


class Owner(NamedTuple):
    """Whose a token is: the client, or the user with this lower-cased id."""

    kind: Kind
    user_id: str | None = None


CLIENT = Owner("client")


class Refusal(Exception):
    """What finAPI answers instead: an HTTP status, a code and a message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message


@dataclass(eq=False)
class Grant:
    """One sign-in: its refresh token, its access tokens, and when each dies (``None``: never)."""

    owner: Owner
    refresh_token: str | None = None
    refresh_ends: float | None = None
    access: dict[str, float | None] = field(default_factory=dict)

    def newest(self, now: float) -> str | None:
        """Return the access token that was given last, if it lives."""
        return next((token for token, ends in reversed(self.access.items()) if _lives(ends, now)), None)


class Authority:
    """Gives, renews, checks and revokes tokens. Thread-safe; *clock* returns seconds."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.RLock()
        self._users: dict[str, User] = {}
        self._grants: defaultdict[Owner, list[Grant]] = defaultdict(list)
        self._holders: dict[str, Grant] = {}
        self._spent: dict[str, Grant] = {}

    def clear(self) -> None:
        """Forget all users and tokens."""
        with self._lock:
            self._users.clear()
            self._grants.clear()
            self._holders.clear()
            self._spent.clear()

    # The calls of finAPI's OAuth endpoints.

    def token(self, form: Mapping[str, str]) -> dict[str, object]:
        """Answer a token call, or raise :class:`Refusal`."""
        with self._lock:
            self._check_client(form)
            grant_type = form.get("grant_type")
            if grant_type == "client_credentials":
                return self._sign_in(CLIENT)
            if grant_type == "password":
                return self._sign_in(self._check_user(form))
            if grant_type == "refresh_token":
                return self._refresh(_required(form, "refresh_token"))
            raise Refusal(400, "unsupported_grant_type", f"Unsupported grant type: {grant_type}")

    def revoke(self, bearer: str | None, form: Mapping[str, str]) -> None:
        """Answer a revoke call made with *bearer*, the client's access token, or raise :class:`Refusal`."""
        with self._lock:
            if self.check(bearer) != CLIENT:
                raise Refusal(401, "unauthorized", "Revoking tokens requires the client's access token")
            token, hint = _required(form, "token"), form.get("token_type_hint", "")
            if hint not in ("", "access_token", "refresh_token"):
                raise Refusal(400, "unsupported_token_type", f"Unsupported token type: {hint}")
            grant = self._holders.get(token)
            if grant is not None and hint == "access_token" and token in grant.access:
                self._forget(token)
            elif grant is not None:
                self._end(grant)

    def check(self, bearer: str | None) -> Owner:
        """Return whose living access token *bearer* is, or raise :class:`Refusal`."""
        with self._lock:
            if bearer is None:
                raise Refusal(401, "unauthorized", "Full authentication is required to access this resource")
            grant = self._holders.get(bearer)
            if grant is None or not _lives(grant.access.get(bearer, 0), self._clock()):
                raise Refusal(401, "invalid_token", f"Invalid access token: {bearer}")
            return grant.owner

    def owner(self, token: str | None) -> Owner | None:
        """Return whose *token* is, of either kind and expired or not; ``None`` for an unknown one."""
        with self._lock:
            grant = self._holders.get(token or "")
            return grant.owner if grant else None

    # Users and the client.

    @property
    def users(self) -> dict[str, User]:
        """All users, by lower-cased id."""
        with self._lock:
            return dict(self._users)

    def user(self, user_id: str | None) -> User:
        """Return a user, or raise :class:`Refusal`."""
        with self._lock:
            user = self._users.get((user_id or "").lower())
            if user is None:
                raise Refusal(404, "ENTITY_NOT_FOUND", f"User {user_id!r} does not exist")
            return user

    def add_user(self, user: User) -> User:
        """Take in a new user, or raise :class:`Refusal` if the id is taken."""
        with self._lock:
            if user.id.lower() in self._users:
                raise Refusal(422, "ENTITY_EXISTS", f"User {user.id!r} exists already")
            self._users[user.id.lower()] = user
            return user

    def remove_user(self, user_id: str | None) -> User:
        """Remove a user and all of their tokens, or raise :class:`Refusal`."""
        with self._lock:
            user = self._users.pop(self.user(user_id).id.lower())
            self._end_all(_owner_of(user))
            return user

    def lock_user(self, user_id: str) -> None:
        """Lock a user, which kills their tokens; only a password change unlocks."""
        with self._lock:
            user = self.user(user_id)
            user.locked = True
            self._end_all(_owner_of(user))

    def verify_user(self, user_id: str) -> None:
        """Mark a user as verified."""
        with self._lock:
            self.user(user_id).verified = True

    def change_password(self, user_id: str, password: str) -> None:
        """Set a password, which unlocks the user and revokes their tokens."""
        with self._lock:
            user = self.user(user_id)
            user.password, user.locked, user.failed_logins = password, False, 0
            self._end_all(_owner_of(user))

    def request_password_change(self, user_id: str) -> str:
        """Return the ticket with which a user's password can be changed once."""
        with self._lock:
            ticket = self.user(user_id).ticket = secrets.token_urlsafe(24)
            return ticket

    def execute_password_change(self, user_id: str, password: str, ticket: str) -> None:
        """Change a password on *ticket*, or raise :class:`Refusal`."""
        with self._lock:
            user = self.user(user_id)
            if user.ticket != ticket:
                raise Refusal(404, "ENTITY_NOT_FOUND", "The password change token is not valid")
            user.ticket = None
            self.change_password(user_id, password)

    def change_client_secret(self, secret: str) -> None:
        """Set the client's secret, which revokes the client's tokens and not the users'."""
        with self._lock:
            self._settings.client_secret = secret
            self._end_all(CLIENT)

    # What happens to tokens behind people's backs.

    def expire_tokens(self, username: str | None = None, *, kind: Kind | None = None, refresh: bool = False) -> None:
        """Let access tokens, with *refresh* refresh tokens too, be past their end now."""
        with self._lock:
            now = self._clock()
            for grant in self._matching(username, kind):
                grant.access = dict.fromkeys(grant.access, now)
                if refresh:
                    grant.refresh_ends = now

    def revoke_tokens(self, username: str | None = None, *, kind: Kind | None = None, refresh: bool = False) -> None:
        """Forget access tokens, with *refresh* refresh tokens too."""
        with self._lock:
            for grant in list(self._matching(username, kind)):
                for token in list(grant.access):
                    self._forget(token)
                if refresh:
                    self._end(grant)

    def _matching(self, username: str | None, kind: Kind | None) -> Iterator[Grant]:
        if username is not None:
            self.user(username)
        for owner, grants in self._grants.items():
            if kind in (None, owner.kind) and (username is None or owner.user_id == username.lower()):
                yield from grants

    # The rules.

    def _check_client(self, form: Mapping[str, str]) -> None:
        given = (form.get("client_id"), form.get("client_secret"))
        if given != (self._settings.client_id, self._settings.client_secret):
            raise Refusal(401, "invalid_client", "Bad client credentials")

    def _check_user(self, form: Mapping[str, str]) -> Owner:
        user = self._users.get(_required(form, "username").lower())
        password = _required(form, "password")
        if user is None:
            raise Refusal(400, "invalid_grant", "Bad credentials")
        if user.locked:
            raise Refusal(423, "locked", f"User {user.id} is locked: too many failed logins")
        if user.password != password:
            user.failed_logins += 1
            if user.failed_logins >= self._settings.max_login_attempts:
                self.lock_user(user.id)
            raise Refusal(400, "invalid_grant", "Bad credentials")
        user.failed_logins = 0
        if not user.verified:
            raise Refusal(403, "access_denied", f"User {user.id} is not verified")
        return _owner_of(user)

    def _sign_in(self, owner: Owner) -> dict[str, object]:
        now, grants = self._clock(), self._grants[owner]
        if not grants or not self._settings.sticky:
            grants.append(Grant(owner))
        grant = grants[-1]
        if owner.kind == "user" and not (grant.refresh_token and _lives(grant.refresh_ends, now)):
            self._give_refresh_token(grant, now)
        return _answer(grant, grant.newest(now) or self._give_access_token(grant, now), now)

    def _refresh(self, refresh_token: str) -> dict[str, object]:
        now, grant = self._clock(), self._holders.get(refresh_token)
        if grant is None or grant.refresh_token != refresh_token:
            self._check_reuse(refresh_token)
            raise Refusal(400, "invalid_grant", f"Invalid refresh token: {refresh_token}")
        if not _lives(grant.refresh_ends, now):
            raise Refusal(401, "invalid_token", f"Invalid refresh token (expired): {refresh_token}")
        if self._settings.kill_on_refresh:
            for token in list(grant.access):
                self._forget(token)
        if self._settings.rotate_refresh_tokens is True:
            self._spent[refresh_token] = grant
            self._give_refresh_token(grant, now)
        answer = _answer(grant, self._give_access_token(grant, now), now)
        if self._settings.rotate_refresh_tokens == "omit":
            del answer["refresh_token"]
        return answer

    def _check_reuse(self, refresh_token: str) -> None:
        """End the grant whose spent refresh token comes again, if the client's rules say so (RFC 9700, 4.14.2)."""
        grant = self._spent.get(refresh_token)
        if grant is not None and self._settings.detect_reuse:
            self._end(grant)

    def _give_access_token(self, grant: Grant, now: float) -> str:
        token = self._new_token(grant)
        grant.access[token] = now + self._settings.lifetime if self._settings.lifetime else None
        return token

    def _give_refresh_token(self, grant: Grant, now: float) -> None:
        self._holders.pop(grant.refresh_token or "", None)
        lifetime = self._settings.refresh_lifetime
        grant.refresh_token = self._new_token(grant)
        grant.refresh_ends = None if lifetime is None else now + lifetime

    def _new_token(self, grant: Grant) -> str:
        length = self._settings.token_length
        token = secrets.token_urlsafe(length)[:length].replace("-", "x").replace("_", "z")
        self._holders[token] = grant
        return token

    def _forget(self, access_token: str) -> None:
        del self._holders.pop(access_token).access[access_token]

    def _end(self, grant: Grant) -> None:
        for token in (*grant.access, grant.refresh_token or ""):
            self._holders.pop(token, None)
        self._spent = {token: of for token, of in self._spent.items() if of is not grant}
        self._grants[grant.owner].remove(grant)

    def _end_all(self, owner: Owner) -> None:
        for grant in list(self._grants[owner]):
            self._end(grant)


def _lives(ends: float | None, now: float) -> bool:
    return ends is None or now < ends


def _answer(grant: Grant, token: str, now: float) -> dict[str, object]:
    ends = grant.access[token]
    # Rounded first: (now + 60) - now may come out just below 60.
    left = 0 if ends is None else int(round(ends - now, 6))
    answer = {"access_token": token, "token_type": "bearer", "expires_in": left, "scope": "all"}
    return answer | ({"refresh_token": grant.refresh_token} if grant.refresh_token else {})


def _owner_of(user: User) -> Owner:
    return Owner("user", user.id.lower())


def _required(form: Mapping[str, str], name: str) -> str:
    if not form.get(name):
        raise Refusal(400, "invalid_request", f"Missing parameter: {name}")
    return form[name]
