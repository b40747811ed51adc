"""The table of promises in docs/security.rst: each names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.rst").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"``(tests/[\w/]+\.py)::(\w+)``", PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda part: part.rpartition("/")[2])
def test_each_promise_names_a_test_that_exists(file: str, name: str) -> None:
    """The test that holds a promise is there, under that name, with a sentence that says what it proves."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    [found] = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    assert ast.get_docstring(found)


def test_no_promise_is_without_a_test() -> None:
    """Every row of the table names a test, against actors that the page lists; docutils reads it without a hint."""
    strict = {"report_level": 1, "halt_level": 2, "syntax_highlight": "none", "file_insertion_enabled": False}
    document = publish_doctree(PAGE, settings_overrides=strict)
    listed = re.findall(r"^- \*\*([\w -]+)\*\*: ", PAGE.partition("Promise and")[0], re.MULTILINE)
    table = list(document.findall(nodes.table))[1]
    rows = [[cell.astext() for cell in row.children] for row in table.next_node(nodes.tbody).children]
    assert len(rows) > 20 and [row for row in rows if "tests/" not in row[2]] == []
    assert {actor.strip().lower() for row in rows for actor in row[0].split(",")} == set(map(str.lower, listed))


def test_no_address_is_named_that_does_not_exist() -> None:
    """The policy and the page name no mail address and no web address: there is none yet."""
    for text in (PAGE, (ROOT / ".github" / "SECURITY.md").read_text(encoding="utf-8")):
        assert not re.search(r"https?://|[\w.]+@[\w-]+\.\w+", text)
