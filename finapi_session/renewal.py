"""Renewal: what to do, step by step. It decides and does nothing: no clock, lock, socket or store of its own.

Theory of operation
-------------------

A token is *fresh* from the moment it is obtained; nobody thinks about it. Shortly before it expires its *soft window*
opens: it is still good, but one thread at a time looks for its successor while the others go on; it may be a thread
made for that. Once it has *expired*, or the API has *rejected* it with a 401, nobody can go on without another one.

A thread that needs one first looks at what is known, here and in the store: a sibling (another thread, process or
host with the same credentials) may have been quicker. If none was, it takes the lock, which lets one at a time
through, and looks again, for the same reason. Only then is finAPI asked: by refresh token as long as there is one that
may serve, then by password. What finAPI answers is merged into what is known and saved before it is used, so that
whatever happens next, it is not lost; and since what a sibling saved meanwhile is merged as well, the newest token is
used, whoever obtained it.

A token is told from its rejection by a logical clock (see ``knowledge.py``), so it does not matter who hears what
first. A refresh token that was spent, replaced or refused is buried: it is not sent again. So is an access token that
the API rejected. A *password* is sent once per judgement, since finAPI locks a user after a few wrong ones: one that
was refused is not sent again (its *fingerprint*, a keyed hash, is kept), and one whose answer was lost rests. Whoever
keeps it, a vault or a person, is asked only when it is to be sent: it may have been changed since.

finAPI's tokens are *sticky*: while one lives, the same credentials get the same token again. So a token that comes
again early keeps the expiry it had and is not asked for again before. After its expiry, "expires in 0 s" for the same
token is its last second rather than "never".

Where others *share* our refresh token and renew with it, each renewal kills the token of the others. It shows in a
renewed token that is rejected early in its life. The password then gets the token that the others have.

=====================  =============================================  ==========================================
what is known          what is done                                   what comes of it
=====================  =============================================  ==========================================
a usable token         nothing                                        that token
early, no lock or      nothing: two who renew at once may spend       the token in use goes on
store                  the same refresh token
finAPI rests           nothing (403, 423, refused client,             the same error, no call
                       ``Retry-After``)
a refresh token        asked by it; refused: buried, the next one     a token, or the next row
a password             asked for; sent once; refused before: nothing  a token, or the same error, no call
neither                nothing                                        ``LoginRequiredError``
=====================  =============================================  ==========================================
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, Union

from .errors import (
    CLIENT_CODES,
    InvalidClientError,
    InvalidGrantError,
    LoginRequiredError,
    TokenEndpointError,
    TokenError,
    is_about_refresh_token,
)
from .knowledge import ASKING, LOGIN, NOTHING, Grant, Knowledge, Refusal, password_subject, rejected
from .tokens import Bearer, Token

#: Seconds for which the client's refusal, a 403 and a 423 are taken for granted, and a password whose answer was lost
#: rests at first; each further time it rests twice as long.
REST = 60.0
_LONGEST_PASSWORD_REST = 3600.0
# finAPI's wish not to be called is heeded for so many seconds at a time: it may be a mistake.
_LONGEST_RETRY_AFTER = 300.0
_LAST_SECOND = 1.0


class Want(NamedTuple):
    """What is wanted, and by whom: *label* names the identity, *fingerprint* its password, empty without one.

    *leeway* is in seconds. *early* if the token in use is still good, *rejected* what the API rejected when it
    answered *call*; unless *may_ask*, finAPI is left alone.
    """

    label: str
    user: bool
    fingerprint: str = ""
    leeway: float = 60.0
    early: bool = False
    rejected: Bearer | None = None
    call: str = ""
    may_ask: bool = True


class Load(NamedTuple):
    """Merge what the store has into what is known, *refusals* as well; answered with a :class:`View`."""

    refusals: bool = False


class Lock(NamedTuple):
    """Wait for the lock; answered with whether it was obtained."""


class Save(NamedTuple):
    """Merge *facts* into what is known, and write that to the store; answered with a :class:`View`.

    What is *fresh* from finAPI is written even where the store cannot be read; so are refusals.
    """

    facts: Knowledge
    fresh: bool = False


class Password(NamedTuple):
    """Ask for the password as it is now, once in a flow; answered with its fingerprint."""


class Fetch(NamedTuple):
    """Ask finAPI by the refresh token of *grant*, else by password or for the client; *why* is for the log.

    Answered with an :class:`Answer`.
    """

    grant: Grant | None
    why: str | None = None


class Answer(NamedTuple):
    """What finAPI gave or refused with, and when (epoch seconds)."""

    said: Token | TokenError
    now: float


class View(NamedTuple):
    """What is known at *now* (epoch seconds), whether the store could be *read* for it, and whether it *lags*."""

    knowledge: Knowledge
    now: float
    read: bool = True
    lags: bool = False


class Revoke(NamedTuple):
    """Ask finAPI to revoke *grant*; answered with nothing."""

    grant: Grant


Step = Union[Load, Lock, Save, Password, Fetch, Revoke]
#: Yields steps, is sent their answers, and returns.
Flow = Generator[Step, Any, Union[Grant, None]]


def renew(want: Want) -> Flow:
    """Return a grant whose token is good, ``None`` if nobody may ask for one now; raises a :class:`TokenError`."""
    view: View = yield Load()
    grant = None if view.lags else _at_hand(view, want)
    if grant is not None or not want.may_ask:
        return grant
    locked, view = yield from _settle(NOTHING)
    grant = _at_hand(view, want)
    if grant is not None or (want.early and not (locked and view.read)):
        return grant
    return (yield from _ask(want, view))


def record(facts: Knowledge) -> Flow:
    """Merge *facts* into what the store has; returns ``None``."""
    yield from _settle(facts)
    return None


def revoke(fingerprint: str) -> Flow:
    """Revoke all that whoever has the password of *fingerprint* may use, and pardon that password; returns ``None``."""
    yield Lock()
    view: View = yield Load(refusals=True)
    for grant in view.knowledge.grants:
        known, serial = view.knowledge, view.knowledge.serial + 1
        alive = known.renews(grant) or (known.accepts(grant) and not grant.token.expired(view.now))
        if grant.belongs_to(fingerprint):
            if alive:
                yield Revoke(grant)
            view = yield Save(rejected([grant.access_id, grant.refresh_id], serial))
    subjects = {password_subject(fingerprint), ASKING, LOGIN} & view.knowledge.refusals.keys()
    pardons = {name: view.knowledge.refusals[name].pardoned(view.knowledge.serial + 1) for name in subjects}
    yield Save(Knowledge(refusals=pardons))
    return None


def _settle(facts: Knowledge) -> Generator[Step, Any, tuple[bool, View]]:
    """Lock, look again, and write *facts* and what the store lacks; return whether the lock was obtained as well."""
    locked: bool = yield Lock()
    view: View = yield Load(refusals=True)
    if view.lags or facts != NOTHING:
        view = yield Save(facts)
    return locked, view


def _at_hand(view: View, want: Want) -> Grant | None:
    grant = view.knowledge.usable(want.fingerprint, view.now)
    if grant is not None and want.early and view.now >= grant.fresh_until(want.leeway):
        return None
    return grant


def _ask(want: Want, view: View) -> Flow:
    yield from _heed(ASKING, view)
    if not want.user:
        return (yield from _by_credentials(want, view, ASKING))
    if _contested(want, view):
        with suppress(InvalidGrantError):
            return (yield from _by_password(want, view, shared=True))
        view = yield Load(refusals=True)
    return (yield from _by_refresh_token(want, view))


def _by_refresh_token(want: Want, view: View) -> Flow:
    """Ask by one refresh token after the other, then by password."""
    refused: TokenError | None = None
    while refused is None or is_about_refresh_token(refused):
        quicker, grant = _at_hand(view, want), view.knowledge.renewable(want.fingerprint)
        if quicker is not None or grant is None:
            break
        answer: Answer = yield Fetch(grant, _why(want, view))
        view = view._replace(now=answer.now)
        if isinstance(answer.said, Token):
            shared = answer.said.refresh_token == grant.token.refresh_token
            return (yield from _keep(want, view, grant, answer.said, shared))
        refused = answer.said
        view = yield from _hear(view, refused, grant)
    quicker = _at_hand(view, want)
    if quicker is not None:
        return quicker
    if want.fingerprint:
        return (yield from _by_password(want, view))
    raise (yield from _login_required(want, view, refused))


def _contested(want: Want, view: View) -> bool:
    """Tell whether others renew with our refresh token, as ours died young, and the password is known to be good."""
    grant = view.knowledge.renewable(want.fingerprint)
    if grant is None or view.knowledge.accepts(grant):
        return False
    young = view.now < (grant.token.issued_at or 0.0) + grant.token.lifetime / 2
    good = grant.proven and view.knowledge.refusal(password_subject(want.fingerprint), view.now) is None
    return young and good and grant.shared and grant.fingerprint == want.fingerprint


def _by_password(want: Want, view: View, shared: bool = False) -> Flow:
    """Ask by password, unless it was refused; one that was changed may have a token already."""
    want = want._replace(fingerprint=(yield Password()))
    quicker = _at_hand(view, want)
    if quicker is not None:
        return quicker
    subject = password_subject(want.fingerprint)
    yield from _heed(subject, view)
    return (yield from _by_credentials(want, view, subject, shared))


def _by_credentials(want: Want, view: View, about: str, shared: bool = False) -> Flow:
    answer: Answer = yield Fetch(None, _why(want, view))
    view = view._replace(now=answer.now)
    if isinstance(answer.said, Token):
        shared = shared and answer.said.authorization != want.rejected
        return (yield from _keep(want, view, None, answer.said, shared))
    yield from _hear(view, answer.said, None, about)
    raise answer.said


def _why(want: Want, view: View) -> str | None:
    """Return why another token is needed, ``None`` for the first one."""
    last = next((grant for grant in view.knowledge.grants if grant.belongs_to(want.fingerprint)), None)
    if want.early:
        return "early, before the last one expires"
    if want.rejected is not None:
        return f"after a 401 to {want.call}" if want.call else "after a 401"
    if last is None:
        return None
    return "the last one has expired" if last.token.expired(view.now) else "the last one was rejected"


def _heed(subject: str, view: View) -> Generator[Step, Any, None]:
    """Raise what finAPI said of *subject*, if that still holds."""
    refusal = view.knowledge.refusal(subject, view.now)
    if refusal is None:
        return
    if view.knowledge.fades(subject):
        yield Save(Knowledge(refusals={subject: replace(refusal, serial=view.knowledge.serial + 1)}))
    raise refusal.to_error(view.now)


def _login_required(want: Want, view: View, refused: TokenError | None) -> Generator[Step, Any, TokenError]:
    """Return why nobody here can log in: finAPI *refused* the refresh token, now or before."""
    before = view.knowledge.refusal(LOGIN, view.now)
    if refused is None:
        missing = LoginRequiredError(f"there is no token for {want.label}")
        return missing if before is None else before.to_error(view.now)
    error = LoginRequiredError(f"finAPI refused the refresh token of {want.label}", **refused.facts())
    subject, rest = (LOGIN, None) if is_about_refresh_token(refused) else (ASKING, REST)
    refusal = Refusal.of(error, view.knowledge.serial + 1, view.now, rest)
    yield Save(Knowledge(refusals={subject: refusal}))
    return error


def _hear(view: View, error: TokenError, grant: Grant | None, about: str = ASKING) -> Generator[Step, Any, View]:
    """Keep what *error* says, and return what is known then; raises it where no other grant would help."""
    facts = _facts(view, error, grant, about)
    if facts != NOTHING:
        view = yield Save(facts)
    if grant is not None and not _about_one_grant(error):
        raise error
    return view


def _about_one_grant(error: TokenError) -> bool:
    """Tell whether the next refresh token, or the password, may do better (RFC 6749, section 5.2)."""
    about_client = isinstance(error, InvalidClientError) and (error.code or "").lower() in CLIENT_CODES
    return isinstance(error, (InvalidGrantError, InvalidClientError)) and not about_client


def _facts(view: View, error: TokenError, grant: Grant | None, about: str) -> Knowledge:
    """Return the statement that *error* makes about the refresh token of *grant*, or about the credentials."""
    serial = view.knowledge.serial + 1
    if grant is not None and is_about_refresh_token(error):
        return rejected([grant.refresh_id], serial)
    if grant is not None and _about_one_grant(error):
        return NOTHING  # it may have been the client or a gateway: the refresh token stays
    rests = _rests(view, error, about)
    return Knowledge(refusals={subject: Refusal.of(error, serial, view.now, rest) for subject, rest in rests})


def _rests(view: View, error: TokenError, about: str) -> Iterator[tuple[str, float | None]]:
    """Yield what is not asked again because of *error*, and for how many seconds: ``None`` is for good."""
    if not isinstance(error, TokenEndpointError):
        wrong_password = isinstance(error, InvalidGrantError) and about != ASKING
        yield (about, None) if wrong_password else (ASKING, REST)
        return
    if error.retry_after:
        yield ASKING, min(error.retry_after, _LONGEST_RETRY_AFTER)
    if error.maybe_judged:
        last = view.knowledge.refusals.get(about)
        yield about, min(max(REST, 2 * last.rest if last else 0.0), _LONGEST_PASSWORD_REST)


def _keep(want: Want, view: View, parent: Grant | None, token: Token, shared: bool) -> Flow:
    """Keep the *token* that finAPI gave, by the refresh token of *parent* or by password, and return what to use."""
    serial, subject = view.knowledge.serial + 1, password_subject(want.fingerprint)
    known = view.knowledge.find(token.access_token)
    sticky = known is not None and (want.early or known.sticky)
    if known is not None:
        token = _same_again(known.token, token, view.now)
    if parent is None:
        grant = Grant(token, serial, want.fingerprint, bool(want.fingerprint), shared, sticky)
        facts = NOTHING
        if subject in view.knowledge.refusals:
            facts = Knowledge(refusals={subject: view.knowledge.refusals[subject].pardoned(serial)})
    else:
        grant = replace(parent, token=token, serial=serial, shared=shared, sticky=sticky)
        facts = rejected({parent.access_id, parent.refresh_id} - {grant.access_id, grant.refresh_id}, serial)
    facts = facts.merge(Knowledge((grant,)))
    view = yield Save(facts, fresh=True)
    return view.knowledge.usable(want.fingerprint, view.now) or grant


def _same_again(known: Token, token: Token, now: float) -> Token:
    """Return what to make of finAPI giving the token that is *known* (a sticky one).

    Before its expiry nothing new is known. After it, ``expires_in`` 0 is a token's last second, not "never",
    unless that second was granted before.
    """
    if not known.expired(now):
        return replace(token, expires_at=known.expires_at, issued_at=known.issued_at)
    if token.expires_at is None and known.lifetime > _LAST_SECOND:
        return replace(token, expires_at=now + _LAST_SECOND, issued_at=now)
    return token
