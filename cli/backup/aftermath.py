"""What must be different in a database that went back in time.

- Nobody is logged in: sessions end, and the key that signs users' tokens is made anew, for a token
  of a session that began after the backup cannot be recognised.
- Policy versions go on well above all that may have been published since: a device never gets a
  lower version than it has, and no version ever stands for two policies.
- Devices that were retired since stay retired, as far as a source still knows (`facts`); further
  devices that enrolled since are registered again when they call (services/enrollment).
- Every chain of the audit log says that it was restored, up to which entry, and from what.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from cli.backup.archive import Header
from cli.backup.catalog import Connection
from cli.backup.facts import Facts, KnownDevice
from servicekit.events import Event

LOST_VERSIONS: Final = 1000
"""More policies than an organisation publishes between two backups."""
_INSERT: Final = (
    "INSERT INTO enrollment.device (id, tenant_id, serial, model, cpu_model, cpu_count,"
    " total_ram_bytes, has_tpm, status, token_version, created_at, decommissioned_at, enrolled_at)"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a restore did beside copying."""

    header: Header
    sessions: int
    carried: int
    """Devices whose newer state was carried over."""
    retired: int
    """Devices that were retired after the backup, and are again."""
    default_tenant: str
    """The organisation that the first start made, if it is still there."""


async def apply(connection: Connection, header: Header, facts: Facts) -> Outcome:
    """Makes the changes; the transaction sees all rows."""
    sessions = await connection.execute(
        "UPDATE identity.session SET ended_at = now(), changed_xid = pg_current_xact_id()"
        " WHERE ended_at IS NULL"
    )
    await connection.execute("DELETE FROM identity.signing_key WHERE purpose = 'users'")
    await _raise_versions(connection, facts)
    carried, retired = 0, 0
    for device in facts.devices.values():
        changed = await _carry(connection, device)
        carried += changed
        retired += changed and device.status in {"decommissioned", "rejected"}
    for device_id in facts.retired:
        retired += await _retire(connection, device_id)
    await _revoke(connection, facts)
    await _tell(connection, header)
    default = await connection.fetchval("SELECT id FROM identity.tenant WHERE code = 'default'")
    return Outcome(
        header,
        int(sessions.rsplit(" ", 1)[1]),
        carried,
        retired,
        str(default or ""),
    )


async def _revoke(connection: Connection, facts: Facts) -> None:
    """Takes away again what was taken away from people and programs."""
    await connection.execute(
        "UPDATE identity.account SET status = 'disabled', updated_at = now()"
        " WHERE id = ANY ($1) AND status <> 'disabled'",
        [user for user, status in facts.users.items() if status == "disabled"],
    )
    await connection.execute(
        "UPDATE enrollment.token SET revoked_at = now() WHERE id = ANY ($1) AND revoked_at IS NULL",
        list(facts.revoked_tokens),
    )
    # An older archive has no such table.
    if await connection.fetchval("SELECT to_regclass('identity.event_credential')") is not None:
        await connection.execute(
            "UPDATE identity.event_credential SET revoked_at = now()"
            " WHERE id = ANY ($1) AND revoked_at IS NULL",
            list(facts.revoked_credentials),
        )


async def _raise_versions(connection: Connection, facts: Facts) -> None:
    known = list(facts.versions.items())
    await connection.execute(
        "UPDATE policy.version_counters c SET last_version = $1 + greatest(c.last_version,"
        " (SELECT max(k.version) FROM unnest($2::uuid[], $3::bigint[]) AS k (tenant_id, version)"
        " WHERE k.tenant_id = c.tenant_id))",
        LOST_VERSIONS,
        [tenant_id for tenant_id, _ in known],
        [version for _, version in known],
    )


async def _carry(connection: Connection, device: KnownDevice) -> bool:
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
    done = await connection.execute(
        f"{_INSERT} SELECT $1, $2, $3, $4, '', 0, 0, false, $5, $6, $7, $8, $9"
        " WHERE EXISTS (SELECT FROM identity.tenant WHERE id = $2) ON CONFLICT DO NOTHING",
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
    return done == "INSERT 0 1"


async def _retire(connection: Connection, device_id: UUID) -> bool:
    """Locks a device out; one that the backup does not know is kept with the root tenant."""
    done: str = await connection.execute(
        f"{_INSERT} SELECT $1::uuid, t.id, 'retired:' || $1::uuid::text, '', '', 0, 0, false,"
        " 'decommissioned', 1, now(), now(), NULL FROM identity.tenant t WHERE t.kind = 'root'"
        " ON CONFLICT (id) DO UPDATE SET status = 'decommissioned',"
        " decommissioned_at = now(), reenrollment_allowed_until = NULL"
        " WHERE device.status <> 'decommissioned'",
        device_id,
    )
    return done == "INSERT 0 1"


async def _tell(connection: Connection, header: Header) -> None:
    """Puts the restore into every chain, through audit's outbox, as every entry comes there."""
    events = [
        Event(
            "audit.restored",
            row["tenant_id"],
            f"backups/{header.id}",
            after={
                "point": header.point.isoformat().replace("+00:00", "Z"),
                "sequence": row["sequence"],
                "hash": row["hash"].hex(),
                "release": header.release,
            },
            actor="evergreen backup restore",
            actor_id=getpass.getuser(),
        )
        for row in await connection.fetch(
            "SELECT tenant_id, sequence, hash FROM audit.chain_head ORDER BY tenant_id"
        )
    ]
    await connection.executemany(
        "INSERT INTO audit.outbox (id, subject, payload) VALUES ($1, $2, $3)",
        [(event.id, event.subject, event.payload()) for event in events],
    )
