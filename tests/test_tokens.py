"""The token as a value: what it takes, what it keeps, what it hides, when it is renewed."""

from __future__ import annotations

import copy
import math
import pickle
import time

import pytest
from hypothesis import given, strategies as st

from finapi_session.tokens import Bearer, Token

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("lifetime", "leeway", "expected"),
    [
        (3600, 60, 3540),
        (3600, 0, 3600),
        (3600, 4000, 1800),
        (600, 60, 540),
        (120, 60, 60),
        (119, 60, 59.5),
        (5, 60, 2.5),
        (1, 60, 0.5),
    ],
)
def test_boundaries_of_renewal(lifetime: float, leeway: float, expected: float) -> None:
    """A token is renewed `leeway` seconds before expiry, but a short-lived one keeps half of its life."""
    token = Token("t", expires_at=NOW + lifetime, issued_at=NOW)
    assert token.renew_at(leeway) - NOW == pytest.approx(expected)
    assert not token.expired(NOW + lifetime - 0.001)
    assert token.expired(NOW + lifetime)


@pytest.mark.parametrize(
    ("lifetime", "leeway", "late", "expected"),
    [(3600, 60, 0.1, 3546), (3600, 0, 0.1, 3600), (3600, 4000, 0.1, 1980), (60, 60, 0.05, 31.5), (3600, 60, 1, 3600)],
)
def test_boundaries_of_a_late_renewal(lifetime: float, leeway: float, late: float, expected: float) -> None:
    """A part of the soft window may pass first: of the window as it is, cut to half of a short life too."""
    token = Token("t", expires_at=NOW + lifetime, issued_at=NOW)
    assert token.renew_at(leeway, late) - NOW == pytest.approx(expected)
    assert Token("t").renew_at(leeway, late) == math.inf


def test_never_expires() -> None:
    """Without an expiry a token is neither renewed early nor ever expired."""
    token = Token("t")
    assert token.renew_at(60) == math.inf
    assert not token.expired(1e12)


def test_unknown_start_renews_by_leeway() -> None:
    """A token whose age is not known is renewed `leeway` seconds before expiry."""
    assert Token("t", expires_at=NOW).renew_at(60) == NOW - 60


@pytest.mark.parametrize(
    ("answer", "expires_at"),
    [
        ({"expires_in": 3600}, NOW + 3600),
        ({"expires_in": "3600"}, NOW + 3600),
        ({"expires_in": 59.5}, NOW + 59.5),
        ({"expires_in": 0}, None),
        ({"expires_in": "0"}, None),
        ({}, None),
        ({"expires_in": None}, None),
        ({"expires_in": -5}, None),
        ({"expires_in": True}, None),
        ({"expires_in": "soon"}, None),
        ({"expires_in": [3600]}, None),
        ({"expires_in": math.nan}, None),
        ({"expires_in": math.inf}, None),
        ({"expires_in": 10**400}, None),
        ({"expires_at": NOW + 7}, NOW + 7),
        ({"expires_at": NOW + 7, "expires_in": 3600}, NOW + 7),
        ({"expires_at": "junk", "expires_in": 10}, NOW + 10),
    ],
)
def test_expiry_of_an_answer(answer: dict[str, object], expires_at: float | None) -> None:
    """`expires_in` counts from the asking, 0 or absent means never, and junk in it is no crash."""
    assert Token.from_dict({"access_token": "t", **answer}, issued_at=NOW).expires_at == expires_at


def test_an_answer_that_just_came_counts_from_now() -> None:
    """Without a time of asking, `expires_in` counts from now, and an `issued_at` in the dict from that."""
    before = time.time()
    token = Token.from_dict({"access_token": "t", "expires_in": 600})
    assert token.expires_at is not None and before <= token.expires_at - 600 <= time.time()
    assert Token.from_dict({"access_token": "t", "expires_in": 600, "issued_at": NOW}).expires_at == NOW + 600


def test_a_dict_as_oauthlib_keeps_it_tells_the_age() -> None:
    """`expires_at` and `expires_in` together tell when the token was issued."""
    token = Token.from_dict({"access_token": "t", "expires_at": NOW + 100, "expires_in": 600})
    assert token.issued_at == NOW - 500
    told = {"access_token": "t", "expires_at": NOW + 100, "expires_in": 600, "issued_at": NOW - 1}
    assert Token.from_dict(told).issued_at == NOW - 1


@pytest.mark.parametrize(
    ("scope", "expected"), [("all", "all"), (["all", "more"], "all more"), ([7], None), (7, None), (None, None)]
)
def test_scope_is_text(scope: object, expected: str | None) -> None:
    """A scope is kept as finAPI writes it, also where oauthlib made a list of it; junk is none."""
    assert Token.from_dict({"access_token": "t", "scope": scope}).scope == expected


@pytest.mark.parametrize(
    "arguments",
    [
        {"access_token": ""},
        {"access_token": "a b"},
        {"access_token": "a\r\nX-Evil: 1"},
        {"access_token": "ä"},
        {"access_token": None},
        {"access_token": 5},
        {"access_token": "t", "refresh_token": ""},
        {"access_token": "t", "refresh_token": 7},
        {"access_token": "t", "refresh_token": "\ud800"},
        {"access_token": "t", "expires_at": math.nan},
        {"access_token": "t", "expires_at": "later"},
        {"access_token": "t", "issued_at": math.inf},
    ],
)
def test_what_is_no_token_is_refused(arguments: dict[str, object]) -> None:
    """Nothing that could break a header or a clock becomes a token."""
    with pytest.raises(ValueError, match="must be"):
        Token(**arguments)  # type: ignore[arg-type]


def test_repr_and_header_hide_the_secrets() -> None:
    """Neither the token's repr nor that of its header shows a secret, and there are no `vars` to look into."""
    token = Token("access-secret", refresh_token="refresh-secret", expires_at=NOW)
    assert "secret" not in repr(token) + repr({"Authorization": token.authorization})
    assert str(token.authorization) == "Bearer access-secret"
    with pytest.raises(TypeError):
        vars(token)


@given(
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1),
    st.none() | st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1),
    st.none() | st.floats(min_value=1, max_value=1e10),
)
def test_dumps_and_loads_are_inverse(access: str, refresh: str | None, expires_at: float | None) -> None:
    """Every token comes back from its text, its pickle and its copy as it was."""
    token = Token(access, expires_at=expires_at, refresh_token=refresh, issued_at=NOW, scope="all")
    assert Token.loads(token.dumps()) == token
    assert pickle.loads(pickle.dumps(token)) == token
    assert isinstance(copy.deepcopy(token).authorization, Bearer)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "^a token is kept as a JSON object$"),
        ("null", "^a token is kept as a JSON object$"),
        ('"t"', "^a token is kept as a JSON object$"),
        ("{}", "^access_token must be text of visible ASCII characters$"),
        ('{"access_token": 5}', "^access_token must be text of visible ASCII characters$"),
    ],
)
def test_what_is_no_kept_token_is_refused(text: str, said: str) -> None:
    """A text that `dumps` did not write is a ValueError that says why."""
    with pytest.raises(ValueError, match=said):
        Token.loads(text)


def test_the_longest_token() -> None:
    """A token of 16,384 characters is one, a longer one is a ValueError that names which, and shows nothing of it."""
    assert Token("x" * 16_384, refresh_token="y" * 16_384).lifetime
    for name in ("access_token", "refresh_token"):
        with pytest.raises(ValueError, match=f"^{name} must .*at most 16384") as caught:
            Token(**{"access_token": "t", name: "x" * 16_385})
        assert "xx" not in str(caught.value)
