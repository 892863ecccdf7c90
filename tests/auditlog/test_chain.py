"""The audit chain: whatever is done to it is found, and nothing is found in an untouched one."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditlog.chain import (
    NO_HASH,
    Checkpoint,
    CheckpointError,
    Columns,
    Head,
    canonical,
    entry_hash,
)
from auditlog.entries import Entry
from auditlog.export import (
    ExportError,
    closing_line,
    entry_line,
    head_line,
    opening_line,
    verify,
)
from auditlog.findings import Finding, Kind
from auditlog.verify import Verifier
from servicekit.security.signing import Signer, read_pem_bundle

TENANT = "01930000-0000-7000-8000-00000000000a"
OTHER = "01930000-0000-7000-8000-00000000000b"
START = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
SIGNER = Signer(bytes(range(32)))

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
bodies = st.lists(st.dictionaries(texts, texts | st.integers() | st.none(), max_size=2))


def event(number: int, after: Any, tenant: str = TENANT) -> dict[str, Any]:
    return {
        "id": str(UUID(int=number)),
        "tenantid": tenant,
        "time": (START + timedelta(seconds=number)).isoformat(),
        "data": {
            "action": "policy.updated",
            "resource": f"policies/{number}",
            "actor": "owner@localhost",
            "actorId": "u1",
            "after": after,
        },
    }


def seal(tenant: str, sequence: int, previous: str, record: str, columns: Columns) -> Entry:
    return Entry(
        tenant, sequence, previous, entry_hash(tenant, sequence, previous, record), record, columns
    )


def chain(afters: Sequence[Any], tenant: str = TENANT, ids: int = 1) -> list[Entry]:
    entries: list[Entry] = []
    for number, after in enumerate(afters, start=1):
        made = event(ids + number, after, tenant)
        previous = entries[-1].hash if entries else NO_HASH
        entries.append(seal(tenant, number, previous, canonical(made), Columns.of(made)))
    return entries


def rechained(entries: Sequence[Entry]) -> list[Entry]:
    """The same entries, numbered and hashed anew, as somebody would who covers the traces."""
    result: list[Entry] = []
    for number, entry in enumerate(entries, start=1):
        previous = result[-1].hash if result else NO_HASH
        result.append(seal(entry.tenant_id, number, previous, entry.record, entry.columns))
    return result


def checkpoint(*chains: Sequence[Entry]) -> Checkpoint:
    heads = [Head(c[-1].tenant_id, c[-1].sequence, c[-1].hash) for c in chains if c]
    statement = Checkpoint.state(START, heads)
    signature = base64.b64encode(SIGNER.sign(statement.encode())).decode()
    return Checkpoint.of(statement, SIGNER.public.id, signature)


def check(entries: Sequence[Entry], *checkpoints: Checkpoint, heads: bool = True) -> list[Finding]:
    lines = [opening_line(START, complete=True), *(entry_line(e) for e in entries)]
    if entries and heads:
        last = entries[-1]
        lines.append(head_line(Head(last.tenant_id, last.sequence, last.hash)))
    lines.append(closing_line(len(entries)))
    return list(verify(lines, Verifier(checkpoints)))


def kinds(findings: Sequence[Finding]) -> set[Kind]:
    return {f.kind for f in findings}


def test_the_hash_is_what_the_documentation_says() -> None:
    """Five parts with a line feed between them, as `printf … | sha256sum` computes it."""
    text = f"evergreen audit entry v1\n{TENANT}\n7\n{NO_HASH}\n" + '{"a":"ä"}'
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert entry_hash(TENANT, 7, NO_HASH, '{"a":"ä"}') == expected


@given(bodies, st.integers(0, 30))
def test_an_untouched_chain_verifies(afters: list[Any], at: int) -> None:
    """A log that only grew agrees with every checkpoint that was ever taken of it."""
    entries = chain(afters)
    points = [checkpoint(entries[:at]), checkpoint(entries)]
    assert check(entries, *points) == []


def changed_record(entry: Entry) -> Entry:
    return dataclasses.replace(entry, record=entry.record.replace("policy.", "p0licy."))


def changed_columns(entry: Entry) -> Entry:
    columns = dataclasses.replace(entry.columns, actor="somebody@else")
    return dataclasses.replace(entry, columns=columns)


def changed_hash(entry: Entry) -> Entry:
    return dataclasses.replace(entry, hash=hashlib.sha256(b"x").hexdigest())


def changed_previous(entry: Entry) -> Entry:
    return dataclasses.replace(entry, previous_hash=hashlib.sha256(b"x").hexdigest())


def changed_and_hashed(entry: Entry) -> Entry:
    made = event(UUID(entry.columns.id).int, "another thing")
    return seal(
        entry.tenant_id, entry.sequence, entry.previous_hash, canonical(made), entry.columns
    )


def changed_tenant(entry: Entry) -> Entry:
    return dataclasses.replace(entry, tenant_id=OTHER)


CHANGES = [
    changed_record,
    changed_columns,
    changed_hash,
    changed_previous,
    changed_and_hashed,
    changed_tenant,
]
lengths = st.integers(2, 12)


@given(lengths, st.data(), st.sampled_from(CHANGES))
def test_one_changed_entry_is_found(
    length: int, data: st.DataObject, change: Callable[[Entry], Entry]
) -> None:
    """Whatever part of it was changed, and wherever it stands."""
    entries = chain(range(length))
    point = checkpoint(entries)
    at = data.draw(st.integers(0, length - 1))
    entries[at] = change(entries[at])
    assert check(entries, point)


@given(lengths, st.data(), st.booleans(), st.booleans())
def test_one_removed_entry_is_found(
    length: int, data: st.DataObject, renumber: bool, rehash: bool
) -> None:
    """Also when the others close the gap, and when all hashes are made to fit."""
    entries = chain(range(length))
    point = checkpoint(entries)
    at = data.draw(st.integers(0, length - 1))
    rest = entries[:at] + entries[at + 1 :]
    if renumber:
        rest = (
            rechained(rest)
            if rehash
            else [dataclasses.replace(e, sequence=n) for n, e in enumerate(rest, start=1)]
        )
    assert check(rest, point)


@given(lengths, st.data())
def test_two_swapped_entries_are_found(length: int, data: st.DataObject) -> None:
    """By their numbers, by their records, in the file, and with all hashes made to fit."""
    entries = chain(range(length))
    point = checkpoint(entries)
    i = data.draw(st.integers(0, length - 2))
    j = data.draw(st.integers(i + 1, length - 1))
    a, b = entries[i], entries[j]
    numbers, records, places = list(entries), list(entries), list(entries)
    numbers[i] = dataclasses.replace(b, sequence=a.sequence)
    numbers[j] = dataclasses.replace(a, sequence=b.sequence)
    records[i] = dataclasses.replace(a, record=b.record, columns=b.columns)
    records[j] = dataclasses.replace(b, record=a.record, columns=a.columns)
    places[i], places[j] = b, a
    for swapped in (numbers, records):
        assert Kind.REORDERED in kinds(check(swapped, point))
    for swapped in (places, rechained(places)):
        assert check(swapped, point)


@given(lengths, st.data(), st.booleans())
def test_an_inserted_entry_is_found(length: int, data: st.DataObject, cover: bool) -> None:
    """Also when the chain was made anew with it."""
    entries = chain(range(length))
    point = checkpoint(entries)
    at = data.draw(st.integers(0, length - 1))
    made = event(999, "forged")
    previous = entries[at - 1].hash if at else NO_HASH
    forged = seal(TENANT, at + 1, previous, canonical(made), Columns.of(made))
    with_it = [*entries[:at], forged, *entries[at:]]
    assert check(rechained(with_it) if cover else with_it, point)


@given(lengths, st.data())
def test_a_cut_off_chain_is_found(length: int, data: st.DataObject) -> None:
    """When the log's own word of the end was changed with it, the checkpoint still knows."""
    entries = chain(range(length))
    point = checkpoint(entries)
    left = entries[: data.draw(st.integers(0, length - 1))]
    found = check(left, point)
    assert kinds(found) == ({Kind.TRUNCATED} if left else {Kind.REMOVED})


def test_the_log_itself_knows_where_a_chain_ends() -> None:
    """A careless cut needs no checkpoint to be found."""
    entries = chain(range(5))
    head = head_line(Head(TENANT, 5, entries[-1].hash))
    lines = [opening_line(START, complete=True), *map(entry_line, entries[:3]), head]
    found = list(verify([*lines, closing_line(3)], Verifier()))
    assert [(f.kind, f.sequence) for f in found] == [(Kind.TRUNCATED, 4)]


def test_findings_name_tenant_entry_and_manner() -> None:
    """A removal in one chain and a change in another one are told apart."""
    one, two = chain(range(4)), chain(range(4), OTHER, ids=100)
    two[1] = changed_record(two[1])
    found = check([one[0], one[1], one[3], *two], checkpoint(one, two))
    assert [(f.tenant_id, f.sequence, f.kind) for f in found] == [
        (TENANT, 3, Kind.REMOVED),
        (OTHER, 2, Kind.CHANGED),
        (OTHER, 2, Kind.CHANGED),
    ]
    assert "entry 3 was removed" in found[0].message


def test_a_rewritten_chain_is_bracketed_by_checkpoints() -> None:
    """What an older checkpoint confirms is said to be sound."""
    entries = chain(range(6))
    points = [checkpoint(entries[:2]), checkpoint(entries)]
    entries[3] = changed_and_hashed(entries[3])
    (found,) = check(rechained(entries), *points)
    assert found.kind is Kind.FORGED
    assert "rewritten behind entry 2, up to entry 6" in found.message


def test_only_one_tenants_chain_can_be_checked() -> None:
    """The other chains of a checkpoint are no concern then."""
    one, two = chain(range(4)), chain(range(4), OTHER, ids=100)
    lines = [opening_line(START, complete=True), *map(entry_line, one), closing_line(4)]
    assert list(verify(lines, Verifier([checkpoint(one, two)], only=TENANT))) == []
    found = list(verify(lines, Verifier([checkpoint(one, two)])))
    assert [f.tenant_id for f in found] == [OTHER]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["[]\n"],
        ["{}\n"],
        ["not JSON\n"],
        [opening_line(START, complete=True)],
        [opening_line(START, complete=False), closing_line(0)],
        [opening_line(START, complete=True), closing_line(1)],
        [opening_line(START, complete=True), '{"entry":{}}\n', closing_line(1)],
        [opening_line(START, complete=True), closing_line(0), closing_line(0)],
    ],
)
def test_a_file_that_is_no_whole_export_proves_nothing(lines: list[str]) -> None:
    """It is refused instead of being called sound."""
    with pytest.raises(ExportError):
        list(verify(lines, Verifier()))


def test_a_checkpoint_survives_its_file() -> None:
    """The file is the statement with a signature line; a changed letter breaks the signature."""
    point = checkpoint(chain(range(3)), chain(range(2), OTHER))
    text = point.write()
    again = Checkpoint.read(text)
    assert again == point
    keys = read_pem_bundle("noise\n" + SIGNER.public.pem())
    assert again.signed_by(keys) is True
    assert again.signed_by([]) is None
    forged = Checkpoint.read(text.replace(f"{TENANT} 3", f"{TENANT} 2"))
    assert forged.signed_by(keys) is False


@pytest.mark.parametrize("text", ["", "{}", "[]", "evergreen audit checkpoint v1\nx\n", "a\n\nb"])
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    """With a sentence about it."""
    with pytest.raises(CheckpointError):
        Checkpoint.read(text)


def test_records_are_canonical() -> None:
    """Keys are sorted at every level, nothing is escaped without need, NaN is refused."""
    assert canonical({"b": {"z": 1, "a": "ä<\u2028"}, "a": None}) == (
        '{"a":null,"b":{"a":"ä<\u2028","z":1}}'
    )
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical({"a": float("nan")})
