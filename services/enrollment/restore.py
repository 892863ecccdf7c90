"""What a backup and a restore have to know of enrollment's schema.

Devices and tokens that were locked out since the backup stay so, as far as a source still knows.
Further devices that enrolled since are registered again when they call (`registry`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from contract.events.enrollment import TokenRevoked
from servicekit.data.backup import Connection, Recorded, Tables, Tenants

TABLES: Final = Tables(signs_of_use=frozenset({"device"}))
_LOST_REVISIONS: Final = 1_000_000
"""More than the labels and groups of a device change between two backups."""
_INSERT: Final = (
    "INSERT INTO enrollment.device (id, tenant_id, serial, model, cpu_model, cpu_count,"
    " total_ram_bytes, has_tpm, status, token_version, created_at, decommissioned_at, enrolled_at)"
)


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A device as it was last known."""

    id: UUID
    tenant_id: UUID
    serial: str
    model: str
    status: str
    token_version: int
    at: datetime


@dataclass(slots=True)
class Known:
    """What is known of devices and tokens since the backup."""

    devices: dict[UUID, KnownDevice] = field(default_factory=dict)
    retired: set[UUID] = field(default_factory=set)
    """Devices of which only this is known."""
    token_uses: dict[UUID, int] = field(default_factory=dict)
    """Enrollment token → how often it was used."""
    revoked_tokens: set[UUID] = field(default_factory=set)

    def device(self, device: KnownDevice) -> None:
        """Takes a device's state; the newest one counts."""
        known = self.devices.get(device.id)
        if known is None or known.at <= device.at:
            self.devices[device.id] = device

    async def read(self, connection: Connection) -> None:
        """Takes what a database knows that is about to be replaced."""
        now = await connection.fetchval("SELECT now()")
        for row in await connection.fetch(
            "SELECT id, tenant_id, serial, model, status, token_version FROM enrollment.device"
        ):
            self.device(KnownDevice(**dict(row), at=now))
        for row in await connection.fetch("SELECT id, uses, revoked_at FROM enrollment.token"):
            self.token_uses[row["id"]] = row["uses"]
            if row["revoked_at"] is not None:
                self.revoked_tokens.add(row["id"])

    def learn(self, entry: Recorded) -> None:
        """Takes an entry of the audit log."""
        after = entry.after
        if entry.kind == "devices" and "status" in after and "tokenVersion" in after:
            self.device(
                KnownDevice(
                    UUID(entry.name),
                    UUID(after.get("orgId") or str(entry.tenant_id)),
                    str(after.get("serial", "")),
                    str(after.get("model", "")),
                    str(after["status"]),
                    int(after["tokenVersion"]),
                    entry.at,
                )
            )
        elif entry.action == TokenRevoked.NAME:
            self.revoked_tokens.add(UUID(entry.name))


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a restore did to the registry."""

    carried: int
    """Devices whose newer state was carried over."""
    retired: int
    """Devices that were retired after the backup, and are again."""


async def repair(connection: Connection, known: Known, tenants: Tenants) -> Repaired:
    """Brings devices and tokens to the state in which they were last known."""
    carried, retired = 0, 0
    for device in known.devices.values():
        changed = await _carry(connection, device, tenants)
        carried += changed
        retired += changed and device.status in {"decommissioned", "rejected"}
    for device_id in known.retired:
        retired += await _retire(connection, device_id, tenants)
    await _revoke(connection, known)
    await _compute_groups_again(connection)
    return Repaired(carried, retired)


async def _compute_groups_again(connection: Connection) -> None:
    """Makes memberships newer than all that was told since the backup: devices have changed."""
    if await connection.fetchval(
        # A backup of 0.1.0 is repaired before its schema is brought forward, and has no groups.
        "SELECT EXISTS (SELECT FROM information_schema.columns WHERE table_schema = 'enrollment'"
        " AND table_name = 'device' AND column_name = 'membership_revision')"
    ):
        await connection.execute(
            "UPDATE enrollment.device SET groups_computed_at = NULL,"
            " membership_revision = membership_revision + $1",
            _LOST_REVISIONS,
        )


async def _revoke(connection: Connection, known: Known) -> None:
    await connection.execute(
        "UPDATE enrollment.token t SET uses = k.uses"
        " FROM unnest($1::uuid[], $2::integer[]) AS k (id, uses)"
        " WHERE t.id = k.id AND t.uses < k.uses",
        list(known.token_uses),
        list(known.token_uses.values()),
    )
    await connection.execute(
        "UPDATE enrollment.token SET revoked_at = now() WHERE id = ANY ($1) AND revoked_at IS NULL",
        list(known.revoked_tokens),
    )


async def _carry(connection: Connection, device: KnownDevice, tenants: Tenants) -> bool:
    """Brings a device to the state in which it was last known; answers whether that is another."""
    decommissioned_at = device.at if device.status == "decommissioned" else None
    enrolled_at = device.at if device.status == "active" else None
    done: str = await connection.execute(
        "UPDATE enrollment.device SET status = $2, token_version = greatest(token_version, $3),"
        " decommissioned_at = coalesce($4, decommissioned_at),"
        " enrolled_at = coalesce(enrolled_at, $5), reenrollment_allowed_until = NULL"
        " WHERE id = $1 AND (status <> $2 OR token_version < $3)",
        device.id,
        device.status,
        device.token_version,
        decommissioned_at,
        enrolled_at,
    )
    if done == "UPDATE 1":
        return True
    done = "INSERT 0 0"
    if device.tenant_id in tenants.all:
        done = await connection.execute(
            f"{_INSERT} VALUES ($1, $2, $3, $4, '', 0, 0, false, $5, $6, $7, $8, $9)"
            " ON CONFLICT DO NOTHING",
            device.id,
            device.tenant_id,
            device.serial,
            device.model,
            device.status,
            device.token_version,
            device.at,
            decommissioned_at,
            enrolled_at,
        )
    if done == "INSERT 0 0" and device.status == "decommissioned":
        # Its organisation or its serial number is another's now; it is locked out all the same.
        return await _retire(connection, device.id, tenants)
    return done == "INSERT 0 1"


async def _retire(connection: Connection, device_id: UUID, tenants: Tenants) -> bool:
    """Locks a device out; one that the backup does not know is kept with the root tenant."""
    if tenants.root is None:
        return False
    done: str = await connection.execute(
        f"{_INSERT} VALUES ($1::uuid, $2, 'retired:' || $1::uuid::text, '', '', 0, 0, false,"
        " 'decommissioned', 1, now(), now(), NULL)"
        " ON CONFLICT (id) DO UPDATE SET status = 'decommissioned',"
        " decommissioned_at = now(), reenrollment_allowed_until = NULL"
        " WHERE device.status <> 'decommissioned'",
        device_id,
        tenants.root,
    )
    return done == "INSERT 0 1"
