"""``session.pages`` reads finAPI's lists to their end, one answer a page."""

from __future__ import annotations

from typing import Any

import pytest

from finapi_session import ApiError
from finapi_session.testing import Sandbox

TRANSACTIONS = "/api/v2/transactions"


def ids(pages: Any) -> list[int]:
    """Return the ids of all transactions of *pages*."""
    return [entry["id"] for page in pages for entry in page.json()["transactions"]]


def test_every_page_comes_once(sandbox: Sandbox) -> None:
    """All records come in order, none twice, with as many calls as there are pages."""
    with sandbox.session("alice") as alice:
        whole = ids([alice.get(TRANSACTIONS, params={"perPage": 500})])
        read = ids(alice.pages(TRANSACTIONS, params={"perPage": 50}))
    assert read == whole and sandbox.count(TRANSACTIONS) == 1 + -(-len(whole) // 50) > 3


def test_pages_are_as_large_as_finapi_allows(sandbox: Sandbox) -> None:
    """Unless told, a page has 500 records, so that a list costs the fewest calls."""
    with sandbox.session("alice") as alice:
        list(alice.pages(TRANSACTIONS))
    assert [call.params for call in sandbox.calls if call.path == TRANSACTIONS] == [{"perPage": "500", "page": "1"}]


@pytest.mark.parametrize(
    ("url", "params"),
    [
        (f"{TRANSACTIONS}?page=2&direction=income", {"perPage": 3, "isNew": None}),
        (TRANSACTIONS, [("direction", "income"), ("perPage", "3"), ("page", 2)]),
        (TRANSACTIONS, "direction=income&perPage=3&page=2"),
        (TRANSACTIONS, b"direction=income&perPage=3&page=2"),
        (TRANSACTIONS, {"direction": ["income"], "perPage": "3", "page": ("2",)}),
    ],
    ids=["in the URL", "pairs", "text", "bytes", "lists"],
)
def test_it_begins_at_the_page_that_is_asked_for(sandbox: Sandbox, url: str, params: Any) -> None:
    """In every form that requests takes, the query is obeyed, its page the first one."""
    with sandbox.session("alice") as alice:
        whole = ids(alice.pages(TRANSACTIONS, params={"direction": "income"}))
        assert ids(alice.pages(url, params)) == whole[3:] != []
    first = next(call for call in sandbox.calls if call.params.get("perPage") == "3")
    assert first.params == {"direction": "income", "perPage": "3", "page": "2"}


def test_a_page_is_asked_for_when_it_is_wanted(sandbox: Sandbox) -> None:
    """Whoever leaves the loop early pays for no further page."""
    with sandbox.session("alice") as alice:
        for _ in alice.pages(TRANSACTIONS, params={"perPage": 10}):
            break
    assert sandbox.count(TRANSACTIONS) == 1


def test_what_is_not_paged_and_what_is_empty_is_one_answer(sandbox: Sandbox) -> None:
    """A list without pages and one without records are each asked for once."""
    with sandbox.session("alice") as alice:
        assert [len(page.json()["accounts"]) for page in alice.pages("/api/v2/accounts")] == [3]
        assert [page.json()["banks"] for page in alice.pages("/api/v2/banks", {"search": "none such"})] == [[]]
    assert sandbox.count("/accounts") == sandbox.count("/banks") == 1


@pytest.mark.parametrize("count", [True, "9", None, -1])
def test_a_page_count_that_is_none_ends_it(sandbox: Sandbox, count: object) -> None:
    """An answer whose page count is no number is the last one."""
    sandbox.answer("/odd", body={"paging": {"pageCount": count}})
    with sandbox.session() as client:
        assert len(list(client.pages("/api/v2/odd"))) == 1


def test_an_error_is_the_last_answer(sandbox: Sandbox) -> None:
    """A page that fails is handed over, or raised if the session raises, and none is asked for after it."""
    for raises in (False, True):
        sandbox.answer_next(200, body={"banks": [1], "paging": {"pageCount": 5}}, path="/banks")
        sandbox.answer_next(500, body={"paging": {"pageCount": 5}}, path="/banks")
        with sandbox.session(raise_api_errors=raises) as client:
            pages = client.pages("/api/v2/banks")
            assert next(pages).ok
            if raises:
                pytest.raises(ApiError, next, pages)
            else:
                assert [page.status_code for page in pages] == [500]
    assert sandbox.count("/banks") == 4


def test_each_call_is_like_any_other(sandbox: Sandbox) -> None:
    """Headers go with each page, a 401 in the middle is healed, and each call has a request id of its own."""
    with sandbox.session("alice") as alice:
        pages = alice.pages(TRANSACTIONS, {"perPage": 50}, headers={"X-Mine": "7"})
        next(pages)
        sandbox.revoke_tokens("alice")
        assert {page.status_code for page in pages} == {200}
    calls = [call for call in sandbox.calls if call.path == TRANSACTIONS]
    assert {call.headers["X-Mine"] for call in calls} == {"7"}
    assert (
        len({call.request_id for call in calls}) == len(calls) - 1 and [call.status for call in calls].count(401) == 1
    )


@pytest.mark.parametrize("page", ["two", "0", "-1", "²", ""])
def test_a_page_that_is_no_number_is_told_at_once(sandbox: Sandbox, page: str) -> None:
    """The mistake is raised where it was made, before anything is sent."""
    with sandbox.session() as client:
        with pytest.raises(ValueError, match="page must be a number from 1 up"):
            client.pages("/api/v2/banks", {"page": page})
    assert sandbox.calls == []
