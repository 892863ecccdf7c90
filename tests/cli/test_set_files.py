"""Files of sets: only what they can say, and texts stay texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.errors import CliError
from cli.set_files import Set, read_set, write_set

HEAD = "kind: Set\nmetadata: {name: school}\norg: linden\n"


def reading(tmp_path: Path, **files: str) -> Set:
    for name, text in {"set": HEAD, **files}.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    return read_set(tmp_path)


def test_what_looks_like_something_else_is_text(tmp_path: Path) -> None:
    """Serial numbers, times of day, versions and `no` are what somebody wrote."""
    bundle = "{a: no, b: 22:30, c: 0123, d: 5E1234, e: 1.10, f: 2026-01-01, g: 0x1f, h: 1_000}"
    found = reading(tmp_path, p=f"kind: Policy\nalias: a\ntargets: [org]\nbundle: {bundle}\n")
    assert found.policies[0]["bundle"] == {
        "a": "no",
        "b": "22:30",
        "c": "0123",
        "d": "5E1234",
        "e": "1.10",
        "f": "2026-01-01",
        "g": "0x1f",
        "h": "1_000",
    }
    bundle = "{a: true, b: null, c: 7, d: -3, e: ~}"
    found = reading(tmp_path, p=f"kind: Policy\nalias: a\ntargets: [org]\nbundle: {bundle}\n")
    assert found.policies[0]["bundle"] == {"a": True, "b": None, "c": 7, "d": -3, "e": None}


def test_documents_of_all_kinds_are_taken_from_any_files(tmp_path: Path) -> None:
    """Several in one file, in folders, and as JSON; other files are left alone."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "p.json").write_text(
        '{"apiVersion": "evergreen/v1", "kind": "Policy", "alias": "p", "targets":'
        ' ["group:year-7"], "bundle": {}, "draft": true, "merging": {"lockedFields": ["apps"]}}'
    )
    (tmp_path / "README.md").write_text("kind: Nonsense")
    groups = (
        "kind: DeviceGroup\nalias: year-7\npriority: 40\nfilter: labels.year = 7\n---\n"
        "kind: DeviceGroup\nalias: cart\nmembers: external\n---\n"
    )
    found = reading(tmp_path, groups=groups)
    assert (found.name, found.org) == ("school", "linden")
    assert found.groups == [
        {"alias": "year-7", "priority": 40, "filter": "labels.year = 7"},
        {"alias": "cart"},
    ]
    assert found.policies == [
        {
            "alias": "p",
            "bundle": {},
            "draft": True,
            "merging": {"lockedFields": ["apps"]},
            "groups": ["year-7"],
        }
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: Policy\nalais: a\n", "p.yaml:2: a Policy has no member alais; is it alias?"),
        (
            "kind: Police\n",
            "kind is one of Set, DeviceGroup, Policy, Variable, SecretRef, not Police",
        ),
        ("kind: Variable\nname: a\nvalue: 7\n", "p.yaml:3: value is text"),
        ("kind: Variable\nname: a\nvalue: x\noverridable: yes\n", "overridable is true or false"),
        ("kind: SecretRef\nname: a\nvalue: x\n", "p.yaml:3: a SecretRef has no member value"),
        ("kind: Policy\nalias: a\nbundle: {}\n", "a Policy needs the member targets"),
        ("kind: Policy\nalias: a\ntargets: org\nbundle: {}\n", "p.yaml:3: targets is a list"),
        ("kind: Policy\nalias: a\ntargets: [x]\nbundle: {}\n", "are [org], or group:"),
        ("kind: Policy\nalias: a\ntargets: [org, group:x]\nbundle: {}\n", "are [org], or group:"),
        ("kind: Policy\nalias: a\ntargets: []\nbundle: {}\n", "are [org], or group:"),
        ("kind: Policy\nalias: 7\n", "p.yaml:2: alias is text"),
        ("kind: Policy\nalias:\n", "p.yaml:2: alias is text"),
        ("kind: DeviceGroup\nalias: a\npriority: true\n", "priority is a whole number"),
        ("kind: DeviceGroup\nalias: a\n", "has a filter, or members: external"),
        ("kind: DeviceGroup\nalias: a\nmembers: [x]\n", "p.yaml:3: members is text"),
        ("kind: Policy\nalias: a\nalias: b\n", "p.yaml:3: alias comes twice"),
        ("kind: Policy\nalias: &a b\n", "p.yaml:2: anchors are not taken"),
        ("kind: Policy\nalias: !!str b\n", "p.yaml:2: tags are not taken"),
        ("kind: Policy\n7: b\n", "p.yaml:2: names are texts"),
        ("kind: Policy\nalias: [\n", "p.yaml"),
        ("- kind: Policy\n", "each document is an object"),
        ("apiVersion: evergreen/v2\nkind: Policy\n", "apiVersion is evergreen/v1"),
        (HEAD, "one document of kind Set"),
        ("[" * 5000, "p.yaml"),
    ],
)
def test_what_no_set_says_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """With the file and the line, and without a traceback."""
    with pytest.raises(CliError) as refused:
        reading(tmp_path, p=text)
    assert said in str(refused.value)


def test_a_set_names_itself(tmp_path: Path) -> None:
    """By one document of its kind; a file is no directory."""
    with pytest.raises(CliError, match="no document of kind Set"):
        read_set(tmp_path)
    (tmp_path / "x.yaml").write_text("kind: Set\nmetadata: {name: a, labels: {}}\n")
    with pytest.raises(CliError, match="metadata has the set's name"):
        read_set(tmp_path)
    with pytest.raises(CliError, match="is no directory"):
        read_set(tmp_path / "x.yaml")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """Texts that look like something else too; nothing is overwritten."""
    bundle: dict[str, Any] = {
        "a": [
            "no",
            "22:30",
            "0123",
            "5E1234",
            "true",
            "null",
            "~",
            "",
            "7",
            "{{x}}",
            "ä\n\tß",
            "#",
        ],
        "b": {"c": None, "d": True, "e": 7, "f": []},
    }
    groups = [{"alias": "year-7", "name": "on", "priority": 40, "filter": "labels.year = 7"}]
    policy = {"alias": "base", "name": "Base", "targets": ["org"], "bundle": bundle}
    write_set(tmp_path / "set", "school", "0123", groups, [policy])
    found = read_set(tmp_path / "set")
    assert (found.name, found.org, found.groups) == ("school", "0123", groups)
    (entry,) = found.policies
    assert entry["bundle"] == bundle
    with pytest.raises(CliError, match="is not empty"):
        write_set(tmp_path / "set", "school", "x", [], [])
