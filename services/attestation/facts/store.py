"""The SQL of what reports ask of verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection
from services.attestation.evidence.store import MOST_VERDICTS

NOT_KEPT: Final = "NOT_KEPT"


@dataclass(frozen=True, slots=True)
class VerdictFacts:
    """What attestation says of a device."""

    device_id: UUID
    verdict: str
    reasons: tuple[str, ...]
    attested_at: datetime | None
    failed_since: datetime | None
    """Since when all its boots failed; `None` when the latest one did not."""
    reference_values: tuple[str, ...]


async def verdicts(
    connection: Connection, tenant_id: UUID, ids: Sequence[UUID], until: datetime | None
) -> list[VerdictFacts]:
    """The verdicts over the latest boots of some devices before a time, by id.

    Of a device that has as many later boots as are kept, and none before, it is not known any more.
    """
    rows = await connection.fetch(
        "SELECT d.device_id, b.verdict, b.reasons, b.attested_at,"
        " CASE WHEN b.verdict = 'FAILED' THEN (SELECT min(f.attested_at)"
        " FROM attestation.boot_verdict f WHERE f.device_id = d.device_id AND f.id <= b.id"
        " AND f.id > coalesce((SELECT max(g.id::text)::uuid FROM attestation.boot_verdict g"
        " WHERE g.device_id = d.device_id AND g.id < b.id AND g.verdict <> 'FAILED'),"
        " '00000000-0000-0000-0000-000000000000')) END AS failed_since,"
        " ARRAY(SELECT r.name FROM attestation.reference_value r"
        " WHERE r.id = ANY (b.reference_value_ids) ORDER BY r.name) AS reference_values"
        " FROM unnest($2::uuid[]) AS d (device_id) LEFT JOIN LATERAL ("
        "SELECT id, verdict, reasons, attested_at, reference_value_ids"
        " FROM attestation.boot_verdict v WHERE v.device_id = d.device_id AND v.tenant_id = $1"
        " AND ($3::timestamptz IS NULL OR v.attested_at < $3) ORDER BY v.id DESC LIMIT 1"
        ") AS b ON true WHERE b.id IS NOT NULL OR (SELECT count(*) FROM attestation.boot_verdict v"
        " WHERE v.device_id = d.device_id AND v.tenant_id = $1) >= $4 ORDER BY d.device_id",
        tenant_id,
        ids,
        until,
        MOST_VERDICTS,
    )
    return [
        VerdictFacts(
            device_id=row["device_id"],
            verdict=row["verdict"] or NOT_KEPT,
            reasons=tuple(row["reasons"] or ()),
            attested_at=row["attested_at"],
            failed_since=row["failed_since"],
            reference_values=tuple(row["reference_values"]),
        )
        for row in rows
    ]
