"""What is known of an identity: facts, and the one way in which two copies of them meet.

A process has a copy, and so has the store; a copy that missed something lags, and :meth:`Knowledge.merge` brings it up
to date, in whichever order copies meet. Each fact bears a ``serial``, a logical clock: one more than the greatest that
whoever states it has seen. Of two statements about the same token or password the later serial counts.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, TypeVar

from .errors import (
    AccessDeniedError,
    InvalidClientError,
    InvalidGrantError,
    LoginRequiredError,
    TokenEndpointError,
    TokenError,
    UserLockedError,
)
from .tokens import Token

#: The oldest grant goes first: this many newer ones must end before anybody misses it.
MOST_GRANTS = 8
#: The oldest rejection goes first: should a copy that lags so far bring its token back, that costs one 401.
MOST_REJECTIONS = 64
#: The oldest refusal goes first; one that is met again is stated anew, so it protects nobody by then.
MOST_REFUSALS = 64

#: What a refusal is about: any token call for the identity, a login that nobody here can make, or a password.
ASKING, LOGIN = "asking", "login"

_About = TypeVar("_About")
_Fact = TypeVar("_Fact")

# One for all that know nothing of a kind; nobody writes to it.
_NONE: Mapping[str, Any] = {}

#: The errors that finAPI would only repeat, by name.
KINDS: dict[str, type[TokenError]] = {
    kind.__name__: kind
    for kind in (
        AccessDeniedError,
        InvalidClientError,
        InvalidGrantError,
        LoginRequiredError,
        TokenEndpointError,
        UserLockedError,
    )
}


def password_subject(fingerprint: str) -> str:
    """Return what a refusal of the password with this *fingerprint* is about."""
    return f"password {fingerprint}"


@dataclass(frozen=True, slots=True)
class Grant:
    """A token that finAPI gave, and how it was obtained.

    ``fingerprint`` is that of the password of its login, empty without one; ``proven`` says that finAPI took that
    password. ``shared`` says that others may have its refresh token as well, and renew with it. ``sticky`` says that
    finAPI gave the same token when asked early, so that nobody need ask again before it expires.
    """

    token: Token = field(repr=False)
    serial: int = 0
    fingerprint: str = field(default="", repr=False)
    proven: bool = False
    shared: bool = False
    sticky: bool = False
    access_id: str = field(init=False, repr=False, compare=False)
    refresh_id: str | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        refresh_token = self.token.refresh_token
        object.__setattr__(self, "access_id", token_id(self.token.access_token))
        object.__setattr__(self, "refresh_id", None if refresh_token is None else token_id(refresh_token))

    @property
    def about(self) -> tuple[str | None, ...]:
        """What it states something about: these tokens, obtained with this password."""
        return self.access_id, self.refresh_id, self.fingerprint

    @property
    def rank(self) -> tuple[Any, ...]:
        """The order of statements about one token, and of grants: by serial, then the later asking, then any."""
        token = self.token
        return (
            self.serial,
            token.issued_at or 0.0,
            math.inf if token.expires_at is None else token.expires_at,
            token.refresh_token or "",
            token.access_token,
            token.scope or "",
            self.fingerprint,
            self.proven,
            self.shared,
            self.sticky,
        )

    def fresh_until(self, leeway: float, late: float = 0.0) -> float:
        """Return the epoch second until which nobody need look for another token, see :meth:`Token.renew_at`."""
        return self.token.renew_at(0.0 if self.sticky else leeway, late)

    def belongs_to(self, fingerprint: str) -> bool:
        """Tell whether whoever has the password of *fingerprint* may use it; without one, whatever is there."""
        return not fingerprint or self.fingerprint == fingerprint


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that finAPI would only repeat: for good, or for ``rest`` seconds until ``until`` (epoch seconds).

    A pardon is a refusal that has ended.
    """

    error: str
    what: str
    serial: int = 0
    until: float | None = None
    rest: float = 0.0
    status: int | None = None
    code: str | None = None
    description: str | None = None
    request_id: str | None = None
    retry_after: float | None = None

    @classmethod
    def of(cls, error: TokenError, serial: int, now: float, rest: float | None = None) -> Refusal:
        """Keep *error* for *rest* seconds from *now* (epoch seconds), or for good without *rest*."""
        until = None if rest is None else now + rest
        told = {**error.facts(), "retry_after": error.retry_after}
        return cls(type(error).__name__, error.args[0], serial, until, rest or 0.0, **told)

    @property
    def rank(self) -> tuple[Any, ...]:
        """The order of statements about one subject: by serial, then the longer one, then any."""
        until = math.inf if self.until is None else self.until
        texts = (self.error, self.what, str(self.status), self.code, self.description, self.request_id)
        return (self.serial, until, self.rest, *(text or "" for text in texts))

    def pardoned(self, serial: int) -> Refusal:
        """Return the statement that it counts no more."""
        return replace(self, serial=serial, until=0.0, rest=0.0)

    def holds(self, now: float) -> bool:
        """Tell whether it counts at *now* (epoch seconds); a clock that was set back does not prolong it."""
        return self.until is None or 0 < self.until - now <= self.rest

    def to_error(self, now: float) -> TokenError:
        """Return the error that finAPI refused with."""
        facts: dict[str, Any] = {name: getattr(self, name) for name in ("status", "code", "description", "request_id")}
        error = KINDS[self.error](self.what, **facts)
        if self.retry_after is not None and self.until is not None:
            error.retry_after = max(self.retry_after - (now - self.until + self.rest), 0.0)
        elif isinstance(error, TokenEndpointError):
            error.add_that_the_password_rests()
        return error


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Grants (the newest first), rejections of tokens (by id, with their serial), refusals (by what they are about)."""

    grants: tuple[Grant, ...] = ()
    rejections: Mapping[str, int] = field(default_factory=lambda: _NONE)
    refusals: Mapping[str, Refusal] = field(default_factory=lambda: _NONE)

    @property
    def serial(self) -> int:
        """The greatest serial seen."""
        stated = (grant.serial for grant in self.grants), (refusal.serial for refusal in self.refusals.values())
        return max((0, *stated[0], *stated[1], *self.rejections.values()))

    def merge(self, other: Knowledge) -> Knowledge:
        """Return what both know; *self*, if *other* knows no more.

        Commutative, associative and idempotent up to the bounds above.
        """
        ours, theirs = ({grant.about: grant for grant in known.grants} for known in (self, other))
        grants = sorted(_later(ours, theirs, _rank).values(), key=_rank, reverse=True)
        rejections = _later(self.rejections, other.rejections, int)
        refusals = _later(self.refusals, other.refusals, _rank)
        merged = Knowledge(tuple(grants), rejections, refusals)._bounded()
        return self if merged == self else merged

    def _bounded(self) -> Knowledge:
        """Drop what is dead, then what goes first."""
        grants = tuple(self._living())[:MOST_GRANTS]
        rejections, refusals = self.rejections, self.refusals
        if len(rejections) > MOST_REJECTIONS:
            # Those of a grant that is kept for its other token stay with it.
            needed = {token for grant in grants for token in (grant.access_id, grant.refresh_id)}
            rejections = dict(
                heapq.nlargest(MOST_REJECTIONS, rejections.items(), key=lambda item: (item[0] in needed, *item[::-1]))
            )
        if len(refusals) > MOST_REFUSALS:
            refusals = dict(heapq.nlargest(MOST_REFUSALS, refusals.items(), key=lambda item: (*item[1].rank, item[0])))
        return Knowledge(grants, rejections, refusals)

    def _living(self) -> Iterator[Grant]:
        """Yield the grants that are of use: each refresh token with its newest access token only."""
        renewing = set()
        for grant in self.grants:
            login = grant.refresh_id, grant.fingerprint
            renews = self.renews(grant) and login not in renewing
            if renews:
                renewing.add(login)
            if renews or self.accepts(grant):
                yield grant

    def accepts(self, grant: Grant) -> bool:
        """Tell whether nobody has heard that the access token of *grant* is dead, whatever its expiry."""
        return grant.serial >= self.rejections.get(grant.access_id, 0)

    def renews(self, grant: Grant) -> bool:
        """Tell whether *grant* has a refresh token of which nobody has heard that it is spent."""
        return grant.refresh_id is not None and grant.serial >= self.rejections.get(grant.refresh_id, 0)

    def usable(self, fingerprint: str, now: float) -> Grant | None:
        """Return the grant to use at *now* (epoch seconds) by whoever has the password of *fingerprint*.

        The newest one, or one that was issued after it; older ones only if no newer one can be renewed.
        """
        since = -math.inf
        for grant in self.grants:
            if grant.belongs_to(fingerprint):
                issued_at = grant.token.issued_at or 0.0
                if self.accepts(grant) and not grant.token.expired(now) and issued_at > since:
                    return grant
                if self.renews(grant):
                    since = max(since, issued_at)
        return None

    def renewable(self, fingerprint: str) -> Grant | None:
        """Return the newest grant with a refresh token that may serve."""
        return next((grant for grant in self.grants if grant.belongs_to(fingerprint) and self.renews(grant)), None)

    def find(self, access_token: str) -> Grant | None:
        """Return the grant of *access_token*, if it is known and not wholly dead."""
        wanted = token_id(access_token)
        return next((grant for grant in self.grants if grant.access_id == wanted), None)

    def without(self, access_token: str) -> Knowledge:
        """Return the statement that *access_token* is dead, if it is known."""
        grant = self.find(access_token)
        return NOTHING if grant is None else rejected([grant.access_id], self.serial + 1)

    def refusal(self, subject: str, now: float) -> Refusal | None:
        """Return the refusal of *subject*, if it holds at *now* (epoch seconds)."""
        refusal = self.refusals.get(subject)
        return refusal if refusal is not None and refusal.holds(now) else None

    def fades(self, subject: str) -> bool:
        """Tell whether the refusal of *subject* is among the older ones, which are forgotten first."""
        newer = sum(refusal.rank > self.refusals[subject].rank for refusal in self.refusals.values())
        return newer >= MOST_REFUSALS // 2

    def given(self, token: Token, fingerprint: str) -> Knowledge:
        """Return the statement that the caller brought *token*: news only if nothing is known of it.

        It is the newest grant if it was issued after all others, and the last resort if not.
        """
        grant = Grant(token, fingerprint=fingerprint)
        if self.find(token.access_token) or {grant.access_id, grant.refresh_id} & self.rejections.keys():
            return NOTHING
        newest = max((known.token.issued_at or 0.0 for known in self.grants), default=0.0)
        serial = self.serial + 1 if (token.issued_at or 0.0) > newest else 0
        return Knowledge((replace(grant, serial=serial),))

    def moved(self, fingerprint: str, new: str) -> Knowledge:
        """Return what is known to whoever has the password of *fingerprint*, which is *new* under another secret."""
        grants = (replace(grant, fingerprint=new) for grant in self.grants if grant.belongs_to(fingerprint))
        subjects = {password_subject(fingerprint): password_subject(new), LOGIN: LOGIN}
        refusals = {subjects[name]: refusal for name, refusal in self.refusals.items() if name in subjects}
        return Knowledge(tuple(grants), self.rejections, refusals)


#: What is known of an identity at first: one for all, as a process may have very many users.
NOTHING = Knowledge()


def token_id(token: str) -> str:
    """Return what tells *token* from another one without telling the token."""
    return sha256(token.encode()).hexdigest()[:16]


def rejected(tokens: Iterable[str | None], serial: int) -> Knowledge:
    """Return the statement that *tokens* (by id) are dead."""
    return Knowledge(rejections={token: serial for token in tokens if token is not None})


def _later(
    ours: Mapping[_About, _Fact], theirs: Mapping[_About, _Fact], rank: Callable[[_Fact], Any]
) -> Mapping[_About, _Fact]:
    """Return the later of the statements about each."""
    if not (ours and theirs):
        return ours or theirs
    return {**ours, **{about: max(fact, ours.get(about, fact), key=rank) for about, fact in theirs.items()}}


def _rank(fact: Grant | Refusal) -> tuple[Any, ...]:
    return fact.rank
