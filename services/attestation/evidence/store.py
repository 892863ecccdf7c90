"""The SQL of evidence.

Whether evidence is new is asked of the whole installation: these statements run without a tenant
scope.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection
from services.attestation.devices.store import Told
from services.attestation.evidence.domain import Facts, Judgement
from services.attestation.grades import Reason, Verdict

MOST_VERDICTS: Final = 100
"""The newest verdicts of a device that are kept."""
MOST_GOOD: Final = 20
"""Verdicts better than `FAILED` that are kept of a device, however many are newer: whoever has its
token can send bad evidence as often as it likes."""
MOST_SEEN: Final = 2_000
"""Nonces and keys of a device that are kept: two a day for longer than they are kept anyway."""


_SEEN_TOO_MUCH: Final = (
    "DELETE FROM attestation.{table} WHERE {key} IN (SELECT {key} FROM attestation.{table}"
    " WHERE device_id = $3 ORDER BY seen_at DESC OFFSET $16)"
)


@dataclass(frozen=True, slots=True)
class Known:
    """The verdict over evidence that was sent before."""

    verdict: Verdict
    reasons: tuple[str, ...]
    attested_at: datetime


async def take_challenge(
    connection: Connection, device_id: UUID, nonce_sha256: bytes
) -> datetime | Reason:
    """Takes the challenge of a device away; answers until when it is good, or why it is none."""
    expires_at: datetime | None = await connection.fetchval(
        "DELETE FROM attestation.challenge WHERE device_id = $1 AND nonce_sha256 = $2"
        " RETURNING expires_at",
        device_id,
        nonce_sha256,
    )
    if expires_at is not None:
        return expires_at
    another = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM attestation.challenge WHERE device_id = $1)", device_id
    )
    return Reason.NONCE_MISMATCH if another else Reason.CHALLENGE_UNKNOWN


async def find_verdict(
    connection: Connection, device_id: UUID, evidence_sha256: bytes
) -> Known | None:
    """The latest verdict over the same evidence of the same device."""
    row = await connection.fetchrow(
        "SELECT verdict, reasons, attested_at FROM attestation.boot_verdict"
        " WHERE device_id = $1 AND evidence_sha256 = $2 ORDER BY id DESC LIMIT 1",
        device_id,
        evidence_sha256,
    )
    if row is None:
        return None
    return Known(
        verdict=Verdict(row["verdict"]),
        reasons=tuple(row["reasons"]),
        attested_at=row["attested_at"],
    )


async def write_reset_count(connection: Connection, device_id: UUID, count: int) -> None:
    """Stores how often the TPM of a device had been reset."""
    await connection.execute(
        "UPDATE attestation.tpm_binding SET reset_count = $2 WHERE device_id = $1",
        device_id,
        count,
    )


async def note_seen(
    connection: Connection,
    device_id: UUID,
    tenant_id: UUID,
    facts: Facts,
    evidence_sha256: bytes,
    now: datetime,
) -> Reason | None:
    """Notes what good evidence was made of; answers why it is of no use, if it was used before."""
    new = await connection.fetchval(
        "INSERT INTO attestation.seen_nonce"
        " (nonce_sha256, evidence_sha256, tenant_id, device_id, seen_at)"
        " VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING RETURNING true",
        facts.nonce_sha256,
        evidence_sha256,
        tenant_id,
        device_id,
        now,
    )
    if not new:
        same = await connection.fetchval(
            "SELECT evidence_sha256 = $2 AND device_id = $3 FROM attestation.seen_nonce"
            " WHERE nonce_sha256 = $1",
            facts.nonce_sha256,
            evidence_sha256,
            device_id,
        )
        return Reason.EVIDENCE_REPLAYED if same else Reason.NONCE_REPLAYED
    # A device may use its key again. The device that holds a key keeps it.
    holders = await connection.fetchrow(
        "WITH seen AS (INSERT INTO attestation.seen_key AS k"
        " (ak_name, tenant_id, device_id, seen_at)"
        " VALUES ($1, $2, $3, $4) ON CONFLICT (ak_name) DO UPDATE"
        " SET seen_at = CASE WHEN k.device_id = excluded.device_id"
        " THEN excluded.seen_at ELSE k.seen_at END RETURNING device_id)"
        " SELECT (SELECT device_id FROM seen),"
        " (SELECT device_id FROM attestation.tpm_binding WHERE ak_name = $1)",
        facts.ak_name,
        tenant_id,
        device_id,
        now,
    )
    assert holders is not None
    others = {*holders.values()} - {device_id, None}
    return Reason.AK_OF_ANOTHER_DEVICE if others else None


async def write_verdict(
    connection: Connection,
    verdict_id: UUID,
    device_id: UUID,
    tenant_id: UUID,
    judgement: Judgement,
    evidence_sha256: bytes,
    now: datetime,
    binding_id: UUID | None,
) -> None:
    """Stores a verdict as the device's latest one, and forgets the oldest of too many."""
    facts = judgement.facts
    # One statement, for it is what a device's boot costs most: none of its parts sees the others.
    await connection.execute(
        "WITH written AS (INSERT INTO attestation.boot_verdict (id, tenant_id, device_id, verdict,"
        " reasons, bank, pcrs, evidence_sha256, attested_at, binding_id, secure_boot,"
        " reference_value_ids) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)),"
        " latest AS (UPDATE attestation.device SET verdict = $4, reasons = $5, bank = $6,"
        " pcrs = $7, attested_at = $9, secure_boot = $11, reference_value_ids = $12, image = $13,"
        " changed_xid = pg_current_xact_id() WHERE device_id = $3),"
        f" old_nonces AS ({_SEEN_TOO_MUCH.format(table='seen_nonce', key='nonce_sha256')}),"
        f" old_keys AS ({_SEEN_TOO_MUCH.format(table='seen_key', key='ak_name')})"
        " DELETE FROM attestation.boot_verdict WHERE id IN (SELECT id FROM attestation.boot_verdict"
        " WHERE device_id = $3 ORDER BY id DESC OFFSET $14 - 1)"
        " AND id NOT IN (SELECT id FROM attestation.boot_verdict WHERE device_id = $3"
        " AND verdict <> 'FAILED' ORDER BY id DESC LIMIT $15)",
        verdict_id,
        tenant_id,
        device_id,
        judgement.verdict,
        [str(reason) for reason in judgement.reasons],
        facts.bank if facts else "",
        json.dumps(facts.pcrs) if facts else None,
        evidence_sha256,
        now,
        binding_id,
        facts.secure_boot if facts else None,
        judgement.matched,
        facts.image if facts else None,
        MOST_VERDICTS,
        MOST_GOOD - (judgement.verdict is not Verdict.FAILED),
        MOST_SEEN,
    )


async def write_told(connection: Connection, device_id: UUID, told: Told) -> None:
    """Notes what an event told of a device."""
    await connection.execute(
        "UPDATE attestation.device SET told_verdict = $2, told_on = $3, told_times = $4"
        " WHERE device_id = $1",
        device_id,
        told.verdict,
        told.on,
        told.times,
    )


async def forget_seen(connection: Connection, before: datetime, most: int) -> int:
    """Forgets some of what was seen before a time; answers how many rows."""
    rows = 0
    for table, key in (("seen_nonce", "nonce_sha256"), ("seen_key", "ak_name")):
        done: str = await connection.execute(
            f"DELETE FROM attestation.{table} WHERE {key} IN (SELECT {key}"
            f" FROM attestation.{table} WHERE seen_at < $1 ORDER BY seen_at LIMIT $2)",
            before,
            most,
        )
        rows += int(done.rsplit(" ", 1)[1])
    return rows
