"""Who is found in texts, and what is told of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from servicekit.rpc.persons import ANOTHER, Person

ANNA = Person(("anna@school.example",), ("Anna Schmidt",))


@pytest.mark.parametrize(
    ("names", "text", "found"),
    [
        (("Anna Schmidt",), "lent to ANNA \u00a0 schmidt.", True),
        (("Anna Schmidt",), "home/Anna_Schmidt/x anna.schmidt", True),
        (("Anna Schmidt",), "Joanna Schmidt, Anna Schmidtke", False),
        (("Müller",), "MU\u0308LLER", True),
        (("王小明",), "学生王小明的平板", True),
        (("李明",), "这是李明。", True),
        (("สมชาย",), "แท็บเล็ตของสมชายครับ", True),
        (("Anna",), "学生Anna的平板", True),
        (("Linden",), "ben@linden.example", False),
        (("Ben",), "ben.mueller@school.example", False),
        (("Ben",), "Ben wrote to ben.mueller@school.example", True),
        (("Anna Schmidt",), "anna.schmidt@other.example", True),
    ],
)
def test_names(names: tuple[str, ...], text: str, found: bool) -> None:
    """Whole words, in any case, and not a word of somebody's address."""
    assert Person((), names).is_in(text) is found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("'anna@school.example', ben@school.example.", f"'anna@school.example', {ANOTHER}."),
        ("email=Anna@School.example", "email=Anna@School.example"),
        ("joanna@school.example xanna@school.example", f"{ANOTHER} {ANOTHER}"),
        ("o'anna@school.example", ANOTHER),
        ("anna@school.example.org", ANOTHER),
        ("ben\uff20school.example", ANOTHER),
        ("from 学生anna@school.example的", "from 学生anna@school.example的"),
        ("@ben@school.example", f"@{ANOTHER}"),
        ("no @ address @", "no @ address @"),
    ],
)
def test_addresses_of_others(text: str, shown: str) -> None:
    """An address is the person's when all of it is, whatever stands around it."""
    assert ANNA.text(text) == shown
    assert ANNA.is_in(text) is ("anna@school.example" in shown.lower())


def test_a_name_does_not_open_addresses() -> None:
    """Neither as a word of the domain, nor as a part of what stands before it."""
    for name in ("School", "Ben"):
        person = Person((), (name,))
        assert person.text("ben.mueller@school.example") == ANOTHER
    assert Person((), ("Ben Mueller",)).text("ben.mueller@x.example") == "ben.mueller@x.example"


def test_of_long_texts_what_is_around_the_person() -> None:
    """Wherever the person stands in it, and without half an address."""
    text = (
        f"{' ' * 5_000}{'ﬃ x ' * 2_000}ben@school.example {'y' * 190} Anna  Schmidt {'z ' * 3_000}"
    )
    told = ANNA.text(text)
    assert "Anna  Schmidt" in told
    assert len(told) < 1_000
    assert "ben" not in told
    many = ANNA.text("Anna Schmidt went home. " * 5_000)
    assert many.startswith("Anna Schmidt")
    assert len(many) < 20_000


@pytest.mark.parametrize("piece", ["a", "a@", "@", "a.", ".", "a-b@c.d", "Anna ", "anna."])
def test_no_text_takes_long(piece: str) -> None:
    """Each character is looked at a few times, whatever stands beside it."""
    text = piece * (500_000 // len(piece))
    ANNA.text(text)
    assert not ANNA.is_in(text)


def test_the_persons_own_lists_are_told() -> None:
    """Lists of values as they are; of lists of objects, and of people, what has the person."""
    value = {
        "user": "Anna Schmidt",
        "visited": ["a", "b"],
        "marks": [1, 2],
        "loans": [{"to": "Anna Schmidt"}, {"to": "Cem"}],
        "team": ["Anna Schmidt", "Cem"],
    }
    (part,) = ANNA.parts_of(value)
    assert part == {
        "path": "",
        "value": {
            "user": "Anna Schmidt",
            "visited": ["a", "b"],
            "marks": [1, 2],
            "loans": [{"to": "Anna Schmidt"}, {"furtherElements": 1}],
            "team": ["Anna Schmidt", {"furtherElements": 1}],
        },
    }


def test_many_parts_are_counted_and_paths_are_short() -> None:
    """However long the names of members are; and addresses are no paths."""
    value: dict[str, Any] = {"k" * 30_000: [{"a": "Anna Schmidt"}] * 1_600}
    parts = ANNA.parts_of(value)
    assert parts[-1] == {"further": 1_580}
    assert len(json.dumps(parts)) < 10_000
    (part,) = ANNA.parts_of({"ben@school.example": {"x": "Anna Schmidt"}})
    assert part == {"path": f"/{ANOTHER}", "value": {"x": "Anna Schmidt"}}
