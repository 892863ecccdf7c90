"""The SQL of what reports ask of the registry."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from servicekit.data.postgres import Connection
from servicekit.rpc.pagination import Page


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """What the registry knows of a device."""

    id: UUID
    serial: str
    model: str
    cpu_model: str
    total_ram_bytes: int
    has_tpm: bool
    status: str
    created_at: datetime
    enrolled_at: datetime | None
    token_name: str
    decommissioned_at: datetime | None
    asset_tag: str


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """An enrollment token, without its secret."""

    id: UUID
    name: str
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


async def devices(
    connection: Connection,
    tenant_id: UUID,
    after: UUID | None,
    limit: int,
    *,
    with_decommissioned: bool,
) -> Page[DeviceRecord, UUID]:
    """The devices of an organisation that were not deleted, by id."""
    rows = await connection.fetch(
        "SELECT d.id, d.serial, d.model, d.cpu_model, d.total_ram_bytes, d.has_tpm, d.status,"
        " d.created_at, d.enrolled_at, coalesce(t.name, '') AS token_name, d.decommissioned_at,"
        " d.asset_tag FROM enrollment.device d"
        " LEFT JOIN enrollment.token t ON t.id = d.enrollment_token_id"
        " WHERE d.tenant_id = $1 AND ($2::uuid IS NULL OR d.id > $2) AND d.deleted_at IS NULL"
        " AND ($4 OR d.status <> 'decommissioned') ORDER BY d.id LIMIT $3",
        tenant_id,
        after,
        limit + 1,
        with_decommissioned,
    )
    found = [
        DeviceRecord(
            id=row["id"],
            serial=row["serial"],
            model=row["model"],
            cpu_model=row["cpu_model"],
            total_ram_bytes=int(row["total_ram_bytes"]),
            has_tpm=row["has_tpm"],
            status=row["status"],
            created_at=row["created_at"],
            enrolled_at=row["enrolled_at"],
            token_name=row["token_name"],
            decommissioned_at=row["decommissioned_at"],
            asset_tag=row["asset_tag"],
        )
        for row in rows
    ]
    return Page.of(found, limit, lambda device: device.id)


async def tokens(
    connection: Connection, tenant_id: UUID, after: UUID | None, limit: int
) -> Page[TokenRecord, UUID]:
    """The enrollment tokens of an organisation, by id."""
    rows = await connection.fetch(
        "SELECT id, name, created_at, expires_at, last_used_at, revoked_at FROM enrollment.token"
        " WHERE tenant_id = $1 AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT $3",
        tenant_id,
        after,
        limit + 1,
    )
    found = [
        TokenRecord(
            id=row["id"],
            name=row["name"],
            created_at=row["created_at"],
            expires_at=row["expires_at"],
            last_used_at=row["last_used_at"],
            revoked_at=row["revoked_at"],
        )
        for row in rows
    ]
    return Page.of(found, limit, lambda token: token.id)
