"""Whose rows a transaction sees stands where it begins, in every file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
_FOLDERS = ("services", "libs", "cli", "deploy", "tests", "bench", "chaos", "tools")


def _faults(source: str) -> Iterator[str]:
    """What is wrong with the transactions of a file; a connection's own are asyncpg's."""
    tree = ast.parse(source)
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        call = called.get(id(node))
        if node.attr in {"system_transaction", "system_lane"} and not _says_why(call):
            yield f"line {node.lineno}: {node.attr} needs its reason, a literal"
        owner = getattr(node.value, "attr", None) or getattr(node.value, "id", "")
        if node.attr == "transaction" and owner.endswith("database"):
            given = [*call.args, *(k.value for k in call.keywords)] if call is not None else []
            if len(given) != 1 or ast.unparse(given[0]).split(".")[-1] in {"SYSTEM", "Scope(None)"}:
                yield f"line {node.lineno}: transaction needs a scope that is not all rows"


def _says_why(call: ast.Call | None) -> bool:
    if call is None or call.keywords or len(call.args) != 1:
        return False
    why = call.args[0]
    return isinstance(why, ast.Constant) and isinstance(why.value, str) and " " in why.value


def test_every_transaction_says_whose_rows_it_sees() -> None:
    """It names a scope, or says in a literal why it needs the rows of all tenants."""
    sources = [path for folder in _FOLDERS for path in (_ROOT / folder).rglob("*.py")]
    found = [
        f"{path.relative_to(_ROOT)} {fault}"
        for path in sources
        for fault in _faults(path.read_text())
    ]
    assert sum("system_transaction(" in path.read_text() for path in sources) > 10
    assert found == []


@pytest.mark.parametrize(
    ("call", "right"),
    [
        ("kit.database.transaction(scope)", True),
        ("self._database.transaction(Scope((org.id,)))", True),
        ("connection.transaction()", True),
        ("self._database.system_transaction('a login names no tenant')", True),
        ("self._database.transaction()", False),
        ("database.transaction(SYSTEM)", False),
        ("database.transaction(postgres.SYSTEM)", False),
        ("database.transaction(scope=Scope(None))", False),
        ("begin(database.transaction)", False),
        ("database.system_transaction()", False),
        ("database.system_transaction('')", False),
        ("database.system_transaction(why)", False),
        ("database.system_lane(why)", False),
        ("database.system_lane('a batch spans tenants')", True),
        ("database.system_transaction(f'for {caller} only')", False),
        ("begin(database.system_transaction)", False),
    ],
)
def test_a_transaction_without_a_scope_is_found(call: str, right: bool) -> None:
    """Also one that hides behind a variable."""
    assert (not list(_faults(call))) is right
