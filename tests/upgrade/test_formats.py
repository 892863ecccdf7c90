"""What this tree writes, read by the release before: its own verifier, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from auditlog.chain import NO_HASH, Columns, Head, canonical, record_digest
from auditlog.entries import Entry
from auditlog.export import closing_line, entry_line, head_line, opening_line
from tests.upgrade.released import all_releases, unpack

TENANT = "00000000-0000-0000-0000-0000000000a3"
START = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
_VERIFY = """
import sys
from auditlog.export import verify
from auditlog.verify import Verifier
verifier = Verifier()
for found in verify(open(sys.argv[1], encoding="utf-8"), verifier):
    print(found.message)
print("entries", verifier.entries, "unlinked", verifier.unlinked)
"""


def chain() -> list[Entry]:
    """Entries with a salt and one without, in one chain."""
    found: list[Entry] = []
    previous = NO_HASH
    for number in range(1, 5):
        data = {"action": "policy.updated", "actor": "a", "actorId": "b", "resource": "policies/1"}
        event = {
            "id": f"00000000-0000-0000-0000-{number:012d}",
            "tenantid": TENANT,
            "time": (START + timedelta(seconds=number)).isoformat(),
            "data": data,
        }
        made = Entry(
            tenant_id=TENANT,
            sequence=number,
            previous_hash=previous,
            hash="",
            record=canonical(event),
            columns=Columns.of(event),
            salt="" if number == 2 else f"{number:032x}",
        )
        previous = made.true_hash
        found.append(replace(made, hash=previous))
    return found


def verified(tree: Path, directory: Path, entries: list[Entry]) -> str:
    """What the release's verifier says of an export."""
    last = entries[-1]
    count = sum(not entry.redacted for entry in entries)
    file = directory / "export.jsonl"
    file.write_text(
        opening_line(START, complete=True)
        + "".join(map(entry_line, entries))
        + head_line(Head(TENANT, last.sequence, last.hash))
        + closing_line(count),
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-c", _VERIFY, str(file)],
        env={**os.environ, "PYTHONPATH": str(tree / "libs")},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_salted_and_redacted_entries(tmp_path: Path) -> None:
    """0.2.0 verifies both formats, takes a redacted entry for one that was left out, and finds what
    was changed."""
    (release,) = (one for one in all_releases() if one.version == "0.2.0")
    tree = unpack(tmp_path / "last", release)
    entries = chain()
    assert verified(tree, tmp_path, entries) == "entries 4 unlinked 0\n"
    gone = replace(
        entries[2],
        record="",
        salt="",
        redacted=True,
        digest=record_digest(entries[2].salt, entries[2].record),
        columns=replace(entries[2].columns, actor="", actor_id="", resource=""),
    )
    assert verified(tree, tmp_path, [*entries[:2], gone, entries[3]]) == "entries 3 unlinked 0\n"
    changed = replace(entries[0], record=entries[0].record.replace('"a"', '"x"'))
    assert "was changed" in verified(tree, tmp_path, [changed, *entries[1:]])
