"""The audit commands, and what a superuser can do to the log that they check."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from auditlog.chain import NO_HASH, entry_hash
from tests.support import programs
from tests.support.audit import Audit
from tests.support.stack import PATIENCE


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


async def evergreen(*arguments: str | Path, **environment: str) -> Outcome:
    """Runs the real command."""
    done = await asyncio.to_thread(
        programs.evergreen,
        arguments,
        {"PATH": "/usr/bin:/bin", "COLUMNS": "200", **environment},
        PATIENCE,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


async def rewrite(audit: Audit, tenant_id: str, records: Sequence[str]) -> None:
    """Makes a whole chain anew so that all of it fits together, its head included."""
    connection = await audit.database.superuser()
    previous = NO_HASH
    try:
        for sequence, record in enumerate(records, start=1):
            mine = entry_hash(tenant_id, sequence, previous, record)
            data = json.loads(record)["data"]
            await connection.execute(
                "UPDATE audit.entry SET record = $3, previous_hash = $4, hash = $5, action = $6,"
                " actor = $7, resource = $8 WHERE tenant_id = $1 AND sequence = $2",
                tenant_id,
                sequence,
                record,
                bytes.fromhex(previous),
                bytes.fromhex(mine),
                data["action"],
                data["actor"],
                data["resource"],
            )
            previous = mine
        await connection.execute(
            "UPDATE audit.chain_head SET hash = $2 WHERE tenant_id = $1",
            tenant_id,
            bytes.fromhex(previous),
        )
    finally:
        await connection.close()
