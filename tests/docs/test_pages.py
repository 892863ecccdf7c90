"""The documents fit the tree: links, paths and modules that they name, and who calls whom."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from contract.access import ACCESS, Audience
from contract.contexts import CONTEXTS
from tests.support.paths import ROOT
from tools import numbers

_LEFT_OUT: Final = re.compile(r"(^|/)(\.|node_modules/|build/|dist/|bench-results/|__pycache__)")
_SPOKEN: Final = {"tools/asyncapi/description.md", "tools/openapi/description.md"}
"""Texts of documents that `make gen` makes."""
_PACKAGES: Final = (
    "auditlog|bench|chaos|cli|contract|deploy|helm|libs|protos|services|servicekit|tests|tools"
)
_LINK: Final = re.compile(r"\]\(([^)\s]+)\)")
_PATH: Final = re.compile(rf"`((?:{_PACKAGES}|docs)/[\w./-]+)`")
_MODULE: Final = re.compile(rf"`((?:{_PACKAGES})(?:\.\w+)+)[`(]")
_OF_A_DAY: Final = ("CHANGELOG.md", "docs/measurements/", "docs/adr/")
"""They say what was."""


@cache
def tree() -> frozenset[str]:
    """The files and folders of the project, by their paths."""
    found = set()
    for folder, folders, files in os.walk(ROOT):
        inside = Path(folder).relative_to(ROOT).as_posix().removeprefix(".").lstrip("/")
        folders[:] = [f for f in folders if not _LEFT_OUT.search(f"{f}/")]
        found.update(f"{inside}/{name}".lstrip("/") for name in (*folders, *files))
    return frozenset(found)


def pages() -> list[str]:
    return sorted(path for path in tree() if path.endswith(".md"))


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def prose(path: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text(path), flags=re.M | re.S)


def anchors(path: str) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


def links(page: str) -> Iterator[tuple[str, str, str]]:
    """The links of a page to files: as they are written, the file, the anchor."""
    for link in _LINK.findall(prose(page)):
        if not re.match(r"\w+:", link):
            path, _, anchor = link.partition("#")
            target = os.path.normpath(Path(page).parent / path) if path else page
            yield link, target, anchor


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    """To a file or a folder, and to a heading of it."""
    for link, target, anchor in links(page):
        assert target in tree(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked() -> None:
    """From the README, through other pages."""
    reached, ahead = set(), {"README.md"}
    while ahead:
        page = ahead.pop()
        reached.add(page)
        ahead |= {target for _, target, _ in links(page) if target.endswith(".md")} - reached
    assert set(pages()) - reached == _SPOKEN


@pytest.mark.parametrize("page", [p for p in pages() if not p.startswith(_OF_A_DAY)])
def test_what_a_page_names_is_there(page: str) -> None:
    """Paths from the project's folder (or from `libs`), and modules with what is in them."""
    for path in _PATH.findall(prose(page)):
        assert {path.rstrip("/"), f"libs/{path}".rstrip("/")} & tree() or "NNNN" in path, path
    for name in _MODULE.findall(prose(page)):
        assert is_there(name.split(".")), name


def is_there(parts: list[str]) -> bool:
    """Whether there is such a module, or one with such a name in it."""
    for length in range(len(parts), 0, -1):
        base, rest = "/".join(parts[:length]), parts[length:]
        for place in (base, f"libs/{base}"):
            if f"{place}.py" in tree():
                return not rest or re.search(rf"\b{rest[0]}\b", text(f"{place}.py")) is not None
            if place in tree():
                init = f"{place}/__init__.py"
                return not rest or (init in tree() and rest[0] in text(init))
    return False


def table(page: str, first: str) -> list[list[str]]:
    """The rows of the table whose heading begins with some cells."""
    _, _, below = text(page).partition(f"| {first}")
    lines = below.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def named(cell: str) -> set[str]:
    """The contexts that a cell names."""
    words = set(re.findall(r"\w+", cell))
    return set(CONTEXTS) if "all" in words else set(CONTEXTS) & words


def test_the_architecture_says_who_calls_whom() -> None:
    """As the access table has it."""
    allowed = {
        (caller, rule.context)
        for rule in ACCESS.values()
        if rule.audience is Audience.INTERNAL
        for caller in rule.callers
        if caller != rule.context
    }
    rows = table("docs/architecture.md", "context | owns")
    assert [row[0] for row in rows] == list(CONTEXTS)
    for context, _, calls, called in rows:
        assert named(calls) == {to for by, to in allowed if by == context}, context
        assert named(called) - {context} == {by for by, to in allowed if to == context}, context


def test_the_architecture_names_every_capability() -> None:
    """By its folder."""
    rows = table("docs/architecture.md", "context | capabilities")
    folders = {
        context: {path.parent.name for path in (ROOT / "services" / context).glob("*/__init__.py")}
        for context in CONTEXTS
    }
    assert {context: set(re.findall(r"`(\w+)`", what)) for context, what in rows} == folders


def test_what_amends_an_adr_is_named_in_its_status() -> None:
    """The one that decided first names the later one."""
    rows = table("docs/adr/README.md", "ADR | decision")
    numbered = [(re.findall(r"\d+", adr)[0], status) for adr, _, status in rows]
    amends = {(by, of) for by, said in numbered for of in re.findall(r"amends (\d+)", said)}
    amended = {(by, of) for of, said in numbered for by in re.findall(r"amended by \[(\d+)", said)}
    assert amends == amended


def test_adrs_have_numbers_and_rows_of_their_own(tmp_path: Path) -> None:
    """`make lint` looks for it, and for migrations, as two branches may take one number."""
    assert numbers.problems(ROOT / "docs/adr") == []
    for name in ("0001-a.md", "0002-b.md", "0002-c.md"):
        (tmp_path / name).touch()
    (tmp_path / "README.md").write_text("| [1](0001-a.md) | A |\n| [2](0002-b.md) | B |\n")
    assert numbers.problems(tmp_path) == [
        "ADR 2: two files have this number",
        "0002-c.md: has no row in docs/adr/README.md",
    ]
