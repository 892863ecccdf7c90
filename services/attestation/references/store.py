"""The SQL of reference values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.rpc.pagination import Page
from services.attestation.references.domain import (
    REGISTERS,
    Kind,
    ReferenceValue,
    Source,
    State,
)

_COLUMNS: Final = "id, tenant_id, name, kind, model, pcrs, state, source, created_at, updated_at"


async def insert(connection: Connection, value: ReferenceValue) -> None:
    """Adds a value."""
    await connection.execute(
        f"INSERT INTO attestation.reference_value ({_COLUMNS})"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        value.id,
        value.tenant_id,
        value.name,
        value.kind,
        value.model,
        json.dumps(value.pcrs),
        value.state,
        value.source,
        value.created_at,
        value.updated_at,
    )


async def update(connection: Connection, value: ReferenceValue) -> None:
    """Stores a value's name and state."""
    await connection.execute(
        "UPDATE attestation.reference_value SET name = $2, state = $3, updated_at = $4"
        " WHERE id = $1 AND tenant_id = $5",
        value.id,
        value.name,
        value.state,
        value.updated_at,
        value.tenant_id,
    )


async def delete(connection: Connection, value: ReferenceValue) -> None:
    """Removes a value."""
    await connection.execute(
        "DELETE FROM attestation.reference_value WHERE id = $1 AND tenant_id = $2",
        value.id,
        value.tenant_id,
    )


async def count(connection: Connection, tenant_id: UUID) -> tuple[int, int]:
    """How many values an organisation has, and how many digests are in them."""
    row = await connection.fetchrow(
        "SELECT count(DISTINCT v.id) AS found, coalesce(sum(jsonb_array_length(p.value)), 0)::int"
        " AS digests FROM attestation.reference_value v, jsonb_each(v.pcrs) AS p"
        " WHERE v.tenant_id = $1",
        tenant_id,
    )
    return row["found"], row["digests"]


async def find_value(
    connection: Connection, scope: Scope, value_id: UUID, *, for_update: bool
) -> ReferenceValue | None:
    """One value of a scope."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM attestation.reference_value"
        " WHERE id = $1 AND ($2::uuid[] IS NULL OR tenant_id = ANY ($2))"
        f"{' FOR UPDATE' if for_update else ''}",
        value_id,
        scope.tenant_ids,
    )
    return None if row is None else _value(row)


async def list_values(
    connection: Connection, scope: Scope, after: UUID | None, limit: int
) -> Page[ReferenceValue, UUID]:
    """The values of a scope, the oldest first."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM attestation.reference_value"
        " WHERE ($1::uuid[] IS NULL OR tenant_id = ANY ($1))"
        " AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT $3",
        scope.tenant_ids,
        after,
        limit + 1,
    )
    return Page.of([_value(row) for row in rows], limit, lambda value: value.id)


async def values_of(connection: Connection, tenant_id: UUID) -> list[ReferenceValue]:
    """The active values of an organisation."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM attestation.reference_value"
        " WHERE tenant_id = $1 AND state = 'ACTIVE' ORDER BY id",
        tenant_id,
    )
    return [_value(row) for row in rows]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a boot of a device with a known TPM."""

    device_id: UUID
    model: str
    pcrs: dict[int, str]
    image: str | None
    """Register 11 before user space measured into it, where a log shows that."""


_KNOWN: Final = "device_id, model, pcrs, image"


async def known_device(connection: Connection, scope: Scope, device_id: UUID) -> Known | None:
    """The latest boot of a device of a scope, whose verdict needs its TPM."""
    row = await connection.fetchrow(
        f"SELECT {_KNOWN} FROM attestation.device WHERE device_id = $1"
        " AND ($2::uuid[] IS NULL OR tenant_id = ANY ($2))"
        " AND verdict IN ('KNOWN_TPM', 'VERIFIED') AND bank = 'sha256'",
        device_id,
        scope.tenant_ids,
    )
    return None if row is None else _known(row)


async def tenant_of(connection: Connection, scope: Scope, device_id: UUID) -> UUID | None:
    """The organisation of a device of a scope."""
    found: UUID | None = await connection.fetchval(
        "SELECT tenant_id FROM attestation.device WHERE device_id = $1"
        " AND ($2::uuid[] IS NULL OR tenant_id = ANY ($2))",
        device_id,
        scope.tenant_ids,
    )
    return found


@dataclass(frozen=True, slots=True)
class Boots:
    """Devices whose latest boots are alike, as far as they are compared."""

    model: str
    is_verified: bool
    secure_boot: bool | None
    pcrs: dict[int, str]
    image: str | None
    devices: int


_COMPARED: Final = tuple(sorted(index for indices in REGISTERS.values() for index in indices))
_VALUES: Final = ", ".join(f"pcrs->>'{index}'" for index in _COMPARED)


async def known_boots(connection: Connection, tenant_id: UUID) -> list[Boots]:
    """The latest boots of an organisation's devices in use whose verdicts need their TPMs."""
    rows = await connection.fetch(
        "SELECT lower(model) AS model, verdict = 'VERIFIED' AS is_verified, secure_boot,"
        f" ARRAY[{_VALUES}] AS pcrs, image, count(*)::int AS devices"
        " FROM attestation.device WHERE tenant_id = $1"
        " AND verdict IN ('KNOWN_TPM', 'VERIFIED') AND bank = 'sha256'"
        " AND status IN ('active', 'prepared') GROUP BY 1, 2, 3, 4, 5",
        tenant_id,
    )
    return [
        Boots(
            model=row["model"],
            is_verified=row["is_verified"],
            secure_boot=row["secure_boot"],
            pcrs=dict(zip(_COMPARED, row["pcrs"], strict=True)),
            image=row["image"],
            devices=row["devices"],
        )
        for row in rows
    ]


def _known(row: asyncpg.Record) -> Known:
    return Known(
        device_id=row["device_id"],
        model=row["model"],
        image=row["image"],
        pcrs={int(index): value for index, value in json.loads(row["pcrs"]).items()},
    )


def _value(row: asyncpg.Record) -> ReferenceValue:
    stored: dict[str, list[str]] = json.loads(row["pcrs"])
    return ReferenceValue(
        id=row["id"],
        tenant_id=row["tenant_id"],
        name=row["name"],
        kind=Kind(row["kind"]),
        model=row["model"],
        pcrs={int(index): tuple(values) for index, values in stored.items()},
        state=State(row["state"]),
        source=Source(row["source"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
