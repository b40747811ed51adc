"""Errors that help: what finAPI says, in all of its shapes, without what must not be repeated."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import unicodedata
from collections.abc import Callable
from urllib.parse import quote

import pytest
import requests
from urllib3 import HTTPResponse

from finapi_session import ApiError, ErrorDetail, FinapiError, raise_for_error
from finapi_session.error_body import ErrorBody
from finapi_session.redaction import censored, redact
from finapi_session.testing import Sandbox

TOKEN = "a-token/with+odd=characters"


def answer(status: int, body: bytes, **headers: str) -> requests.Response:
    """An answer to a call that carried TOKEN."""
    response = requests.Response()
    response.status_code, response.reason = status, "Reason"
    response.url = "https://sandbox.finapi.io/api/v2/accounts?ids=1"
    response.headers.update(headers)
    response.raw = HTTPResponse(io.BytesIO(body), preload_content=False)
    request = requests.Request("GET", response.url, headers={"X-Request-Id": "sent-id"}).prepare()
    request.headers["Authorization"] = f"Bearer {TOKEN}"
    response.request = request
    return response


OAUTH = b'{"error": "invalid_token", "error_description": "Invalid access token: %s"}' % TOKEN.encode()
ACCESS = (
    b'{"errors": [{"message": "Not yours", "code": "ENTITY_NOT_FOUND", "type": "BUSINESS"},'
    b' {"message": "Nor this", "code": "OTHER", "type": "BUSINESS"}, "junk"],'
    b' "date": "2026-01-01", "requestId": "r-7", "endpoint": "GET /x", "authContext": "1/2", "bank": "x"}'
)
WEB_FORM = b'{"code": "ABORTED", "description": "The form was left", "timestamp": "x", "endpoint": "x"}'
WEB_FORM_400 = b'{"errors": [{"field": "bankId", "message": "must not be null"}], "timestamp": "x"}'
INTELLIGENCE = b'{"code": "ILLEGAL_FIELD_VALUE", "message": "Bad field", "requestId": "r-9", "endpoint": "x"}'


@pytest.mark.parametrize(
    ("body", "code", "description", "request_id", "details"),
    [
        (OAUTH, "invalid_token", "Invalid access token: [redacted]", "sent-id", 0),
        (ACCESS, "ENTITY_NOT_FOUND", "Not yours", "r-7", 2),
        (WEB_FORM, "ABORTED", "The form was left", "sent-id", 0),
        (WEB_FORM_400, None, "must not be null", "sent-id", 1),
        (INTELLIGENCE, "ILLEGAL_FIELD_VALUE", "Bad field", "r-9", 0),
        (b"<html><h1>Bad gateway</h1></html>", None, "Reason", "sent-id", 0),
        (b"", None, "Reason", "sent-id", 0),
        (b'{"errors": 7, "error": 5, "message": ["x"]}', None, "Reason", "sent-id", 0),
        (b"[" * 100_000, None, "Reason", "sent-id", 0),
    ],
)
def test_every_shape_is_read(body: bytes, code: str | None, description: str, request_id: str, details: int) -> None:
    """All of finAPI's error shapes, and what is none, become one error with what they tell."""
    with pytest.raises(ApiError) as caught:
        raise_for_error(answer(400, body))
    error = caught.value
    assert (error.status, error.code, error.description, error.request_id) == (400, code, description, request_id)
    assert len(error.errors) == details
    assert str(error).startswith("GET /api/v2/accounts failed (400 ")
    assert f"[request id {request_id}]" in str(error)


def test_the_details_are_kept() -> None:
    """finAPI's list of errors comes whole, with the field where Web Form names one."""
    assert ErrorBody.of(answer(400, ACCESS)).details[1] == ErrorDetail("OTHER", "BUSINESS", "Nor this")
    assert ErrorBody.of(answer(400, WEB_FORM_400)).details == (ErrorDetail(message="must not be null", field="bankId"),)


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "rejected the token"),
        (403, "other kind of token"),
        (404, "not there"),
        (423, "busy: try again later"),
        (429, "try again later"),
        (451, "legal"),
        (500, "try again later"),
        (503, "try again later"),
        (510, "wants more from the user"),
    ],
)
def test_the_message_says_what_to_do(status: int, advice: str) -> None:
    """The statuses that have a meaning at finAPI come with a next step; unknown codes pass through."""
    with pytest.raises(ApiError, match=advice) as caught:
        raise_for_error(answer(status, b'{"errors": [{"code": "BRAND_NEW", "message": "m"}]}'))
    assert caught.value.code == "BRAND_NEW"


CODES = ["ADDITIONAL_AUTHENTICATION_REQUIRED", "BANK_SERVER_REJECTION", "A_CODE_OF_FORTY_CHARACTERS_AND_THEN_SOME_MORE"]


@pytest.mark.parametrize("code", CODES)
def test_long_codes_and_what_they_ask_for_are_whole(code: str) -> None:
    """Code and body tell how to go on: no length makes a token of a code, a key, a hash or a number."""
    more = {"multiStepAuthentication": {"hash": "0123456789abcdef0123456789abcdef", "number": 12345678901234567890}}
    body = {"errors": [{"code": code, "type": "TECHNICAL_OR_BUSINESS_KIND", "message": "m", **more}]}
    with pytest.raises(ApiError) as caught:
        raise_for_error(answer(510, json.dumps(body).encode()))
    error = caught.value
    assert (error.code, error.errors[0].type) == (code, "TECHNICAL_OR_BUSINESS_KIND")
    with error.response as response:
        assert json.loads(b"".join(response.iter_content())) == response.json() == body


def test_a_code_that_is_a_secret_is_redacted_and_one_that_has_its_letters_is_not() -> None:
    """The password "grant" does not hide invalid_grant, and is not shown where finAPI repeats it."""
    for said, code in (("invalid_grant", "invalid_grant"), ("grant", "[redacted]")):
        assert ErrorBody.of(answer(400, json.dumps({"error": said}).encode()), ("grant",)).code == code


def test_it_is_an_http_error_like_any_other() -> None:
    """Code that catches requests' errors and looks at the response goes on working, and finds no secret in it."""
    with pytest.raises(requests.HTTPError) as caught:
        raise_for_error(answer(401, OAUTH, **{"Set-Cookie": "session=1", "X-Other": "kept"}))
    error = caught.value
    assert isinstance(error, FinapiError) and isinstance(error, requests.RequestException)
    assert error.response.status_code == 401
    assert error.response.json()["error"] == "invalid_token"
    assert error.response.headers == {"X-Other": "kept"}
    assert error.request is None and error.response.request is None and error.response.url.endswith("/accounts")
    assert TOKEN.encode() not in pickle.dumps(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("status", [200, 204, 302, 399])
def test_what_is_no_error_passes(status: int) -> None:
    """Below 400 nothing is raised."""
    raise_for_error(answer(status, ACCESS))


def test_raise_for_error_on_every_call(sandbox: Sandbox) -> None:
    """With `raise_api_errors=True` every bad answer raises, and a 401 that was healed is none."""
    with sandbox.session(raise_api_errors=True) as client:
        assert client.get("/api/v2/banks").ok
        sandbox.revoke_tokens()
        assert client.get("/api/v2/banks").ok
        with pytest.raises(ApiError) as caught:
            client.get("/api/v2/accounts", stream=True)
    assert caught.value.status == 403 and caught.value.errors and caught.value.request_id
    assert sandbox.count("/api/v2/banks", status=401) == 1


def test_without_it_answers_are_answers(sandbox: Sandbox) -> None:
    """By default a bad answer is returned, as requests does."""
    with sandbox.session() as client:
        assert client.get("/api/v2/accounts").status_code == 403


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Invalid access token: abc", "Invalid access token: [redacted]"),
        ("Invalid refresh token:abc def", "Invalid refresh token:[redacted] def"),
        ("password=hunter2, please", "password=[redacted], please"),
        ("see 0123456789abcdef0123456789 there", "see [redacted] there"),
        ("two\nlines\tand\x00control", "two lines and control"),
        ("The token has expired", "The token has expired"),
        ("s3cr&et s3cr%26et s3cr&amp;et", "[redacted] [redacted] [redacted]"),
    ],
)
def test_redaction(text: str, clean: str) -> None:
    """Tokens and known secrets go, in every spelling; plain words stay; the text becomes one line."""
    assert redact(text, ("s3cr&et", "")) == clean


def test_long_texts_are_cut() -> None:
    """A page of text does not fill the log; the body that a handler may read is not cut."""
    assert len(redact("word " * 1000)) == 500
    assert len(censored("word " * 1000)) == 5000


# --- secrets in disguise, and what a redaction tells ----------------------------------------------------------------

PASSWORD = "Käse&Brot"  # as it was typed: one character for the ä


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@pytest.mark.parametrize("password", [PASSWORD, "ﬁnAPI-ﬁsch²", "Ångström", "Cafe\u0301-Bar"])
def test_a_secret_in_another_normal_form(form: str, password: str) -> None:
    """A server that composes or decomposes characters repeats the same password in other code points."""
    said = unicodedata.normalize(form, password)
    for text in (said, quote(said), json.dumps(said)[1:-1]):
        assert redact(f"you sent <{text}> to us", (password,)) == "you sent <[redacted]> to us"


def test_secrets_that_overlap() -> None:
    """Of two secrets of which one begins within the other nothing is left."""
    assert censored("so abcdefghijklmno it", ["abcdefghij", "fghijklmno"]) == "so [redacted] it"


def test_a_secret_that_was_searched_for_is_not_kept() -> None:
    """What looks for a secret leaves none behind, as a pattern would in the cache of re."""
    assert redact("Bad credentials: hunter+2two", ["hunter+2two"]) == "Bad credentials: [redacted]"
    assert "hunter" not in repr([kept for name, kept in vars(re).items() if name.startswith("_cache")])


@pytest.mark.parametrize("before", ["", "a", "ab", "anna:", "anna.b:"])
@pytest.mark.parametrize("after", ["", "z", "zz"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_short_password_in_base64(before: str, after: str, encode: Callable[[bytes], bytes]) -> None:
    """Base64, as Basic credentials are sent, hides a password at any place in it, padded or not."""
    password = "ö>geh?im"
    said = encode(f"{before}{password}{after}".encode()).decode()
    for text in (said, said.rstrip("=")):
        clean = redact(f"you sent <{text}>", (password,))
        # Four characters of Base64 are three bytes: what is left must not tell more than the ends.
        left = clean.removeprefix("you sent <").removesuffix(">")
        assert "[redacted]" in left and len(left.replace("[redacted]", "")) <= len(said) - len(password), left


@pytest.mark.parametrize("header", [True, False])
def test_a_request_id_that_repeats_a_secret(header: bool) -> None:
    """An id in the header or in the body that holds what was sent is shown without it."""
    for said in (f"id-{TOKEN}", f"id-{TOKEN[:5]}\x00{TOKEN[5:]}", f"id-{quote(TOKEN, safe='')}"):
        body = json.dumps({"requestId": said}).encode()
        response = answer(400, b"" if header else body, **({"X-Request-Id": said} if header else {}))
        with pytest.raises(ApiError) as caught:
            raise_for_error(response)
        assert caught.value.request_id == "id-[redacted]"
        assert TOKEN not in str(caught.value)


def test_a_secret_at_the_end_of_a_long_request_id() -> None:
    """An id is cut to 255 characters after secrets are out, so that no beginning of one is left."""
    said = "x" * 250 + TOKEN
    assert ErrorBody.of(answer(400, b"", **{"X-Request-Id": said}), (TOKEN,)).request_id == "x" * 250 + "[reda"


@pytest.mark.parametrize("request_id", ["4f2c1f6e-0d8a-4a52-9c0a-1f1f1f1f1f1f", "a" * 60, "order 7/2"])
def test_an_honest_request_id_is_whole(request_id: str) -> None:
    """An id is what finAPI asks for: nothing is taken for a token because it looks like one."""
    response = answer(400, b"", **{"X-Request-Id": request_id})
    assert ErrorBody.of(response, (TOKEN, "a" * 5, "order")).request_id == request_id


@pytest.mark.parametrize("password", ["Bad", "bad", "a", "crede", "Bad c"])
def test_a_redaction_does_not_tell_a_short_password(password: str) -> None:
    """A well-known text with a gap tells what was in it: passwords too short for finAPI are not searched for."""
    body = json.dumps({"error": "invalid_grant", "error_description": "Bad credentials"}).encode()
    assert ErrorBody.of(answer(400, body), (password,)).description == "Bad credentials"


def test_a_short_password_that_is_all_that_is_said() -> None:
    """Where the password is all there is, or is called so, leaving it out tells nothing, and it is left out."""
    for said, clean in (("abc", "[redacted]"), (" abc ", "[redacted]"), ("password: abc", "password: [redacted]")):
        body = json.dumps({"error_description": said}).encode()
        assert ErrorBody.of(answer(400, body), ("abc",)).description == clean


def test_secrets_of_six_characters_are_searched_for() -> None:
    """finAPI takes passwords of 6 characters and more; those are found."""
    assert redact("you sent abcdef", ("abcdef",)) == "you sent [redacted]"
    assert redact("you sent abcde", ("abcde",)) == "you sent abcde"
