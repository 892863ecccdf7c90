"""Policies of witnesses, and what is asked of one."""

from __future__ import annotations

import pytest

from auditlog.notes import NoteError, TreeCheckpoint
from auditlog.tree import EMPTY_ROOT
from auditlog.witnesses import (
    Policy,
    Request,
    WitnessKey,
    cosigned_at,
    log_keys,
    read_answer,
    read_size,
)

ONE, OTHER, THIRD = (WitnessKey(f"{n}.example", bytes([n]) * 32) for n in (1, 2, 3))
CHECKPOINT = TreeCheckpoint("school.example/audit/01234567", 7, EMPTY_ROOT)


def lines(*more: str) -> str:
    keys = {"one": ONE, "other": OTHER, "third": THIRD}
    made = [f"witness {name} {key.public.text}" for name, key in keys.items()]
    return "\n".join([*made, *more])


@pytest.mark.parametrize(
    ("rest", "enough", "too_few"),
    [
        (["quorum one"], {"one"}, {"other", "third"}),
        (["quorum none"], set(), None),
        (["group g any one other", "quorum g"], {"other"}, {"third"}),
        (["group g all one other", "quorum g"], {"one", "other"}, {"one", "third"}),
        (["group g 2 one other third", "quorum g"], {"one", "third"}, {"third"}),
        (
            ["# nested", "", "group g any one other", "group h all g third", "quorum h"],
            {"one", "third"},
            {"one", "other"},
        ),
    ],
)
def test_a_policy_says_who_is_enough(
    rest: list[str], enough: set[str], too_few: set[str] | None
) -> None:
    policy = Policy.read(lines("log a+b+c https://x.example/", *rest))
    assert policy.is_met(enough)
    assert too_few is None or not policy.is_met(too_few)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (lines(), "no line `quorum`"),
        (lines("quorum nobody"), "line 4: no line above it is about nobody"),
        (lines("quorum one", "quorum one"), "line 5: it is no line `quorum`"),
        (lines("group g 3 one other", "quorum g"), "a number from 1 to 2"),
        (lines("group g 0 one", "quorum g"), "a number from 1 to 1"),
        (lines("group g any one one", "quorum g"), "a member is there twice"),
        (lines("group g any h", "group h any one", "quorum h"), "line 4: no line above"),
        (lines("group one any other", "quorum one"), "the name one is taken"),
        (lines(f"witness again {ONE.public.text}", "quorum one"), "another witness has this key"),
        ("witness a b+c+d\nquorum a", "line 1: "),
        (lines("witnesses x", "quorum one"), "line 4: it is no line `witnesses`"),
        (f"witness a {ONE.public.text} ftp://x\nquorum a", "the address must be"),
        (f"witness a {ONE.public.text} http://u@x\nquorum a", "the address must be"),
        (f"witness a {ONE.public.text.replace('+', '+0', 1)}\nquorum a", "its hash does not fit"),
    ],
)
def test_what_is_no_policy_is_refused(text: str, why: str) -> None:
    with pytest.raises(NoteError) as refused:
        Policy.read(text)
    assert why in str(refused.value)


def test_a_signature_of_a_witness_is_of_one_text_at_one_time() -> None:
    found = ONE.cosign(CHECKPOINT.text, 1_700_000_000)
    (read,) = read_answer(found.line)
    assert read == found
    assert cosigned_at(CHECKPOINT, ONE.public, [read]) == 1_700_000_000
    assert cosigned_at(CHECKPOINT, OTHER.public, [read]) is None
    larger = TreeCheckpoint(CHECKPOINT.origin, 8, EMPTY_ROOT)
    with pytest.raises(NoteError, match=r"the witness 1\.example is forged"):
        cosigned_at(larger, ONE.public, [read])


def test_requests_are_read_as_they_are_written() -> None:
    signed = TreeCheckpoint(CHECKPOINT.origin, 7, EMPTY_ROOT, (ONE.cosign(CHECKPOINT.text, 1),))
    for hashes in ([], [b"a" * 32, b"b" * 32]):
        asked = Request(3, hashes, signed)
        assert Request.read(asked.write()) == asked
    for wrong in (
        "",
        "old 3",
        "old -1\n\n",
        asked.write().replace("old 3", "old 03"),
        "old 1\nx\n\n",
    ):
        with pytest.raises(NoteError):
            Request.read(wrong)
    assert read_size("17\n") == 17
    for wrong in ("", "1 7", "-1", "017"):
        with pytest.raises(NoteError):
            read_size(wrong)


def test_a_witness_is_no_log() -> None:
    """One kind of key does not pass for the other."""
    with pytest.raises(NoteError, match="not the key of a log"):
        log_keys(ONE.public.text)
    with pytest.raises(NoteError, match="no key of a log"):
        log_keys("\n")
