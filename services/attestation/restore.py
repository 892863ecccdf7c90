"""What a backup and a restore have to know of attestation's schema.

Challenges and open enrollments are void after a restore: they are good for minutes, and once. A TPM
from which an administrator freed a device since the backup does not come back, nor does a boot that
is not accepted any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from contract.events.attestation import (
    ReferenceValueDeleted,
    ReferenceValueRetired,
    ReferenceValueUpdated,
    TpmBindingReset,
    TrustRootRemoved,
)
from servicekit.data.backup import Connection, Recorded, Tables
from services.attestation.references.domain import State

TABLES: Final = Tables(made_anew=frozenset({"challenge", "tpm_enrollment"}))


@dataclass(slots=True)
class Known:
    """What was decided since the backup."""

    freed: set[UUID] = field(default_factory=set)
    """Devices that were freed from their TPMs."""
    roots: set[UUID] = field(default_factory=set)
    """Roots that were removed."""
    values: dict[UUID, State] = field(default_factory=dict)
    """Reference values that were changed, by the state that they had last."""

    async def read(self, connection: Connection) -> None:
        """Takes what the database knows that is about to be replaced: nothing."""

    def learn(self, entry: Recorded) -> None:
        """Takes an entry of the audit log."""
        if entry.action == TpmBindingReset.NAME:
            self.freed.add(UUID(entry.name))
        elif entry.action == TrustRootRemoved.NAME:
            self.roots.add(UUID(entry.name))
        elif entry.action in {ReferenceValueUpdated.NAME, ReferenceValueRetired.NAME}:
            self.values[UUID(entry.name)] = State(entry.after["state"])
        elif entry.action == ReferenceValueDeleted.NAME:
            # Who deleted it finds it again, and can do so once more.
            self.values[UUID(entry.name)] = State.RETIRED


async def repair(connection: Connection, known: Known) -> None:
    """Undoes what the backup brought back; an older archive lacks some of the tables."""
    if await _has(connection, "tpm_binding"):
        freed = list(known.freed)
        await connection.execute(
            "UPDATE attestation.device SET binding_id = NULL, reasons = '{AK_NOT_BOUND}',"
            " verdict = 'SELF_CONSISTENT' WHERE device_id = ANY ($1)"
            " AND verdict IN ('KNOWN_TPM', 'VERIFIED')",
            freed,
        )
        await connection.execute(
            "UPDATE attestation.device SET binding_id = NULL WHERE device_id = ANY ($1)", freed
        )
        await connection.execute(
            "DELETE FROM attestation.tpm_binding WHERE device_id = ANY ($1)", freed
        )
        await connection.execute(
            "DELETE FROM attestation.trust_root WHERE id = ANY ($1)", list(known.roots)
        )
    if await _has(connection, "reference_value"):
        await connection.execute(
            "UPDATE attestation.reference_value v SET state = k.state"
            " FROM unnest($1::uuid[], $2::text[]) AS k (id, state) WHERE v.id = k.id",
            list(known.values),
            list(known.values.values()),
        )


async def _has(connection: Connection, table: str) -> bool:
    """Whether the schema has a table; the migration that makes it makes what goes with it."""
    found = await connection.fetchval("SELECT to_regclass($1)", f"attestation.{table}")
    return found is not None
