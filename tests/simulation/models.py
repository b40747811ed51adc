"""finAPI and a store as models, for one user of one client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from finapi_session.environment import SANDBOX
from finapi_session.errors import InvalidGrantError, TokenEndpointError, TokenError, UserLockedError
from finapi_session.identity import Credentials
from finapi_session.tokens import Token

from .world import World

LEASE, LOCK_TIMEOUT = 35.0, 50.0


@dataclass
class Login:
    """One grant of finAPI's: an access token that lives or not, and the refresh token beside it."""

    access_token: str
    refresh_token: str
    expires_at: float
    alive: bool = True


@dataclass
class Finapi:
    """finAPI's rules on the tokens of one user, in each of the readings that FINAPI.md leaves open."""

    world: World
    sticky: bool = True
    kills: bool = True
    rotates: bool = False
    detects_reuse: bool = False
    lifetime: float = 3600.0
    password: str = "right"
    most_failures: int = 1000
    logins: list[Login] = field(default_factory=list)
    spent: set[str] = field(default_factory=set)
    calls: list[tuple[str, str, bool]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    failures: int = 0
    issued: int = 0
    revoked_at: int = 0

    def judge(self, password: str | None, refresh_token: str | None) -> Token:
        """Answer a token call, or raise."""
        now = self.world.now
        if self.failures >= self.most_failures:
            self.calls.append(("locked", "", False))
            raise UserLockedError("locked", status=423, code="LOCKED")
        if refresh_token is not None:
            return self._refresh(refresh_token, now)
        if password != self.password:
            self.failures += 1
            self.refused.append(str(password))
            self.calls.append(("password", str(password), False))
            raise InvalidGrantError("wrong", status=400, code="invalid_grant")
        self.failures = 0
        self.calls.append(("password", str(password), True))
        living = [login for login in self.logins if login.alive and now < login.expires_at]
        return self._answer(living[-1] if self.sticky and living else self._issue(None))

    def _refresh(self, refresh_token: str, now: float) -> Token:
        login = next((login for login in self.logins if login.refresh_token == refresh_token), None)
        if login is None:
            self.calls.append(("refresh", refresh_token, False))
            if self.detects_reuse and refresh_token in self.spent:
                self.logins.clear()
            raise InvalidGrantError("no such refresh token", status=400, code="invalid_grant")
        self.calls.append(("refresh", refresh_token, True))
        if self.kills:
            login.alive = False
        return self._answer(self._issue(login))

    def _issue(self, parent: Login | None) -> Login:
        self.issued += 1
        refresh_token = f"R{self.issued}"
        if parent is not None:
            self.logins.remove(parent)
            if self.rotates:
                self.spent.add(parent.refresh_token)
            else:
                refresh_token = parent.refresh_token
        elif not self.rotates and self.logins:
            refresh_token = self.logins[-1].refresh_token
        login = Login(f"A{self.issued}", refresh_token, self.world.now + self.lifetime)
        self.logins.append(login)
        return login

    def _answer(self, login: Login) -> Token:
        seconds = int(login.expires_at - self.world.now)
        answer = {"access_token": login.access_token, "refresh_token": login.refresh_token, "expires_in": seconds}
        return Token.from_dict(answer, issued_at=self.world.wall())

    def accepts(self, access_token: str) -> bool:
        """Tell whether the API takes the token."""
        return any(
            login.access_token == access_token and login.alive and self.world.now < login.expires_at
            for login in self.logins
        )

    def honours(self) -> bool:
        """Tell whether some refresh token would be taken."""
        return bool(self.logins)

    def kill(self) -> None:
        """Let all access tokens die; refresh tokens live on."""
        for login in self.logins:
            login.alive = False

    def revoke(self, token: Token) -> None:
        """Revoke a token, and all of its grant."""
        gone = (token.access_token, token.refresh_token)
        self.logins = [login for login in self.logins if not {login.access_token, login.refresh_token} & set(gone)]


@dataclass
class Shared:
    """What a store keeps, and who has its lock until when."""

    values: dict[str, str] = field(default_factory=dict)
    locks: dict[str, tuple[object, float]] = field(default_factory=dict)


class Link:
    """One process's way to a store; what the world plans may befall it: failing reads, writes or locks, hanging."""

    def __init__(self, world: World, shared: Shared) -> None:
        self.world, self.shared = world, shared
        self.down: set[str] = set()
        self.hangs = 0.0
        self.dead = False

    def get(self, key: str) -> str | None:
        """Read."""
        self._reach("get")
        return self.shared.values.get(key)

    def set(self, key: str, value: str) -> None:
        """Write; with ``lost`` planned, it arrives and seems not to."""
        self._reach("set")
        self.shared.values[key] = str(value)
        if "lost" in self.down:
            raise OSError("timed out")

    def delete(self, key: str) -> None:
        """Delete."""
        self._reach("set")
        self.shared.values.pop(key, None)

    @contextmanager
    def lock(self, key: str) -> Iterator[Any]:
        """Lock with a lease, as in Redis."""
        self._reach("lock")
        lease = _Lease(self, key)
        lease.take()
        try:
            yield lease
        finally:
            lease.give_back()

    def _reach(self, verb: str) -> None:
        self.world.pause()
        if self.dead:
            raise OSError("this process is dead")
        if verb in self.down:
            if self.hangs:
                self.world.sleep(self.hangs)
            raise OSError("unreachable")


class _Lease:
    def __init__(self, link: Link, key: str) -> None:
        self.link, self.key = link, key

    def take(self) -> None:
        world, locks = self.link.world, self.link.shared.locks
        deadline = world.now + LOCK_TIMEOUT
        while self.key in locks and world.now < locks[self.key][1]:
            if world.now >= deadline:
                raise TimeoutError("another process held the lock")
            world.sleep(1.0)
        self.extend()

    def extend(self) -> None:
        """Put the lease back to its full length, if it is still ours."""
        holder, until = self.link.shared.locks.get(self.key, (self, 0.0))
        if holder is self or self.link.world.now >= until:
            self.link.shared.locks[self.key] = (self, self.link.world.now + LEASE)

    def give_back(self) -> None:
        if not self.link.dead and self.link.shared.locks.get(self.key, (None, 0))[0] is self:
            del self.link.shared.locks[self.key]


class Endpoint:
    """What a source needs of an endpoint: finAPI, with what may befall a call."""

    environment = SANDBOX

    def __init__(self, world: World, finapi: Finapi) -> None:
        self.world, self.finapi = world, finapi
        #: Answers that are lost, or 503s, for the next calls of this process; seconds that a call takes.
        self.loses = 0
        self.fails = 0
        self.retry_after: float | None = None
        self.latency = 0.0

    def fetch(
        self,
        credentials: Credentials,
        renewed: Token | None = None,
        *,
        patient: bool = True,
        before_each_try: Callable[[], object] = bool,
        why: str | None = None,
    ) -> Token:
        """Ask; a transient failure is tried again once if *patient*, a password only where it was not judged."""
        before_each_try()
        try:
            return self._try(credentials, renewed)
        except TokenEndpointError as error:
            if not patient or error.maybe_judged or error.retry_after:
                raise
            self.world.sleep(1.0)
            before_each_try()
            return self._try(credentials, renewed)

    def _try(self, credentials: Credentials, renewed: Token | None) -> Token:
        self.world.sleep(self.latency / 2)
        if self.fails:
            self.fails -= 1
            error = TokenEndpointError("overloaded", status=503)
            error.retry_after = self.retry_after
            raise error
        said: Token | TokenError
        try:
            said = self.finapi.judge(credentials.password, renewed.refresh_token if renewed else None)
        except TokenError as refusal:
            said = refusal
        self.world.tell(f"finAPI on {'refresh' if renewed else 'password'}: {_shown(said)}")
        self.world.sleep(self.latency / 2)
        if self.loses:
            self.loses -= 1
            error = TokenEndpointError("no answer")
            error.maybe_judged = renewed is None
            raise error
        if isinstance(said, TokenError):
            raise said
        return said

    def revoke(
        self, identity: str, token: Token, bearer: object = None, *, patient: bool = True, within: float = 45.0
    ) -> None:
        """Revoke."""
        self.world.pause()
        self.finapi.revoke(token)


def _shown(said: Token | TokenError) -> str:
    return f"{said.access_token}/{said.refresh_token}" if isinstance(said, Token) else type(said).__name__
