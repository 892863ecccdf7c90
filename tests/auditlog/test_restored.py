"""A chain that went back to a backup: told apart from tampering, and never passed over."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from auditlog.chain import Columns, canonical
from auditlog.entries import Entry
from auditlog.findings import Kind
from auditlog.told import Pruning, Redaction, Restore
from tests.auditlog.test_chain import START, TENANT, chain, check, checkpoint, event, seal


def grown(kept: list[Entry], restored: dict[str, Any], more: int) -> list[Entry]:
    """The chain of a backup, the entry that tells of the restore, and some behind it."""
    entries = list(kept)
    for number in range(more + 1):
        made = event(100 + number, {"n": number})
        if number == 0:
            made["data"] |= {"action": "audit.restored", "after": restored}
        last = entries[-1]
        entries.append(
            seal(TENANT, last.sequence + 1, last.hash, canonical(made), Columns.of(made))
        )
    return entries


def told(kept: list[Entry], minutes: int = -1) -> dict[str, Any]:
    point = START + timedelta(minutes=minutes)
    return {"point": point.isoformat(), "sequence": len(kept), "hash": kept[-1].hash}


def test_a_checkpoint_from_before_the_backup_still_agrees() -> None:
    before = chain([{"n": n} for n in range(6)])
    assert check(grown(before[:4], told(before[:4]), 3), checkpoint(before[:3])) == []


def test_a_checkpoint_newer_than_the_backup_is_called_that() -> None:
    """Whether the new chain is shorter than the checkpoint or longer."""
    before = chain([{"n": n} for n in range(8)])
    for more in (0, 9):
        (found,) = check(grown(before[:4], told(before[:4]), more), checkpoint(before))
        assert (found.kind, found.sequence) == (Kind.RESTORED, 5)
        assert "entries 5 to 8 were lost" in found.message
        assert "ask whoever runs the server" in found.message


def test_what_the_backup_holds_is_excused_by_nothing() -> None:
    """An entry that tells of a restore does not cover a change in front of it."""
    before = chain([{"n": n} for n in range(8)])
    forged = chain([{"n": n} for n in (0, 1, 9, 3)])
    (found,) = check(grown(forged, told(forged), 9), checkpoint(before[:3]))
    assert found.kind is Kind.FORGED


def test_a_backup_newer_than_the_checkpoint_excuses_nothing() -> None:
    before = chain([{"n": n} for n in range(8)])
    (found,) = check(grown(before[:4], told(before[:4], minutes=+1), 9), checkpoint(before))
    assert found.kind is Kind.FORGED


def test_an_entry_that_tells_of_a_restore_badly_excuses_nothing() -> None:
    before = chain([{"n": n} for n in range(8)])
    for bad in ({}, {"point": "soon", "sequence": 1}, {"point": "2026-01-01", "sequence": "x"}):
        (found,) = check(grown(before[:4], bad, 9), checkpoint(before))
        assert found.kind is Kind.FORGED


@pytest.mark.parametrize("read", [Redaction.of, Pruning.of, Restore.of])
def test_a_number_without_end_tells_nothing(read: Callable[[Entry], object]) -> None:
    """JSON has such numbers, and who writes an entry may write what he likes."""
    made = event(1, {"n": 1})
    after = {"point": START.isoformat(), "sequence": "N", "from": "N", "to": 1, "hash": "a"}
    made["data"] |= {"action": "x", "after": after | {"occurredAt": START.isoformat()}}
    record = canonical(made).replace('"N"', "1e999")
    entry = seal(TENANT, 1, "00" * 32, record, Columns.of(made))
    assert read(entry) is None
