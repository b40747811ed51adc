"""Every order of answers to one flow: no world, no clock, only what a flow asks and what it may be told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from finapi_session.errors import (
    AccessDeniedError,
    InvalidClientError,
    InvalidGrantError,
    TokenEndpointError,
    TokenError,
    UserLockedError,
)
from finapi_session.knowledge import NOTHING, Grant, Knowledge, rejected, token_id
from finapi_session.renewal import Answer, Fetch, Load, Lock, Password, Save, View, Want, renew
from finapi_session.tokens import Token

NOW = 1_800_000_000.0
#: A flow that takes more steps than this never ends.
MOST_STEPS = 40


class Played(NamedTuple):
    """One flow: what was known, what was wanted, each step with its answer, and what came of it."""

    start: Knowledge
    want: Want
    steps: list[tuple[Any, Any]]
    outcome: Grant | TokenError | None


def starts() -> list[Knowledge]:
    """What may be known: none, one or two tokens, fresh, in the soft window or expired, with refresh tokens or not."""
    one, two = _grant("A1", "R1", 1), _grant("A2", "R2", 2)
    made = [NOTHING]
    for left in (3000.0, 30.0, -1.0):
        made.append(Knowledge((_grant("A1", "R1", 1, left),)))
        made.append(Knowledge((_grant("A1", None, 1, left),)))
    made.append(Knowledge((_grant("A1", "R1", 1, -1.0),)).merge(Knowledge((_grant("A2", "R2", 2, -1.0),))))
    made.append(Knowledge((one,)).merge(rejected([one.access_id], 2)))
    made.append(Knowledge((one, two)).merge(rejected([one.access_id, two.access_id], 3)))
    made.append(Knowledge((one,)).merge(rejected([one.access_id, one.refresh_id], 2)))
    made.append(Knowledge((two,)).merge(rejected([two.access_id], 3)))  # it died young: others share it
    return made


def wants() -> list[Want]:
    """What may be wanted: by the client, by a user with a password or without, early or after a 401."""
    client, password, none = Want("client", False), Want("user", True, "print"), Want("user", True)
    early = [want._replace(early=True) for want in (client, password, none)]
    bearer = _grant("A1", "R1", 1).token.authorization
    return [client, password, none, *early, *(want._replace(rejected=bearer) for want in (client, password, none))]


def _grant(access: str, refresh: str | None, serial: int, left: float = 3000.0) -> Grant:
    token = Token(access, NOW + left, refresh, NOW + left - 3600)
    return Grant(token, serial, "print", proven=True, shared=serial > 1)


def _endpoint_error(maybe_judged: bool, retry_after: float | None) -> TokenEndpointError:
    error = TokenEndpointError("none")
    error.maybe_judged, error.retry_after = maybe_judged, retry_after
    return error


def answers(step: Any, known: Knowledge) -> list[Any]:
    """What a step may be told."""
    if isinstance(step, Load):
        sibling = known.merge(Knowledge((_grant("A9", "R9", known.serial + 1),)))
        return [View(known, NOW), View(known, NOW, read=False), View(sibling, NOW), View(known, NOW, lags=True)]
    if isinstance(step, Lock):
        return [True, False]
    if isinstance(step, Save):
        return [View(known.merge(step.facts), NOW)]
    if isinstance(step, Password):
        return ["print", "changed"]
    refresh = step.grant is not None
    said: list[Token | TokenError] = [
        Token("A5", NOW + 3600, "R5" if refresh else "R1", NOW),
        Token("A1", NOW + 3000, "R1", NOW - 600),
        InvalidGrantError("no", status=400, code="invalid_grant"),
        InvalidGrantError("no", status=400),
        InvalidClientError("no", status=401),
        InvalidClientError("no", status=401, code="invalid_client"),
        AccessDeniedError("no", status=403),
        UserLockedError("no", status=423),
        _endpoint_error(maybe_judged=not refresh, retry_after=None),
        _endpoint_error(maybe_judged=False, retry_after=30.0),
    ]
    return [Answer(each, NOW) for each in said]


def flows() -> Iterator[Played]:
    """Play all of them."""
    for start in starts():
        for want in wants():
            waiting: list[list[int]] = [[]]
            while waiting:
                script = waiting.pop()
                played, offered = _play(start, want, script)
                yield played
                for at in range(len(script), len(offered)):
                    waiting += [[*script, *[0] * (at - len(script)), other] for other in range(1, offered[at])]


def _play(start: Knowledge, want: Want, script: list[int]) -> tuple[Played, list[int]]:
    flow, known, offered = renew(want), start, []
    steps: list[tuple[Any, Any]] = []
    outcome: Grant | TokenError | None = None
    try:
        step = next(flow)
        while True:
            assert len(steps) < MOST_STEPS, "this flow never ends"
            told = [answer for before, answer in steps if isinstance(step, Password) and isinstance(before, Password)]
            options = told[:1] or answers(step, known)
            chosen = script[len(offered)] if len(offered) < len(script) else 0
            offered.append(len(options))
            answer = options[chosen]
            if isinstance(answer, View):
                known = answer.knowledge
            steps.append((step, answer))
            step = flow.send(answer)
    except StopIteration as done:
        outcome = done.value
    except TokenError as error:
        outcome = error
    return Played(start, want, steps, outcome), offered


def check(played: Played) -> None:
    """See to it that the flow kept the rules of ``renewal.py``, whatever it was told."""
    known, asked, passwords, locked, whose = played.start, [], 0, False, played.want.fingerprint
    for step, answer in played.steps:
        if isinstance(step, Lock):
            locked = answer
        if isinstance(step, Password):
            assert whose, "a password was asked for where there is none"
            whose = answer
        if isinstance(step, Fetch):
            assert known.usable(whose, NOW) is None or played.want.early, "a good token was at hand"
            assert locked or not played.want.early, "renewed early without the lock"
            passwords += step.grant is None
            if step.grant is not None:
                assert known.renews(step.grant), "a refresh token was sent that is known to be spent"
                asked.append(step.grant.refresh_id)
            if isinstance(answer.said, Token):
                asked.append(token_id(answer.said.access_token))
        if isinstance(answer, View):
            known = answer.knowledge
    assert passwords <= 1, "a password was sent twice"
    assert len(asked) == len(set(asked)), "a refresh token was sent twice"
    _check_end(played, known)


def _check_end(played: Played, known: Knowledge) -> None:
    given = [answer.said for step, answer in played.steps if isinstance(step, Fetch) and isinstance(answer.said, Token)]
    saved = [step for step, _ in played.steps if isinstance(step, Save)]
    for token in given:
        assert any(grant.token.access_token == token.access_token for save in saved for grant in save.facts.grants)
        assert isinstance(played.outcome, Grant), "finAPI gave a token, and the caller has none"
    if isinstance(played.outcome, Grant):
        assert known.accepts(played.outcome), "a token known to be dead is used"
        assert given or not played.outcome.token.expired(NOW), "an expired token is used"
    elif played.outcome is None:
        assert played.want.early, "nobody may be left without a token or an error"
