"""What must be different in a database that went back in time.

- Nobody is logged in: sessions end, and the key that signs users' tokens is made anew, for a token
  of a session that began after the backup cannot be recognised.
- Policy versions go on well above all that may have been published since: a device never gets a
  lower version than it has, and no version ever stands for two policies.
- Devices that were retired since stay retired, as far as a source still knows (`facts`); further
  devices that enrolled since are registered again when they call (services/enrollment).
- Users are what they were last known to be, and what was revoked stays revoked, likewise.
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
    has_owner: bool
    """Whether an Owner of the root tenant can log in."""


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
    await _bring_users(connection, facts)
    await _revoke(connection, facts)
    await _tell(connection, header)
    default = await connection.fetchval("SELECT id FROM identity.tenant WHERE code = 'default'")
    return Outcome(
        header,
        int(sessions.rsplit(" ", 1)[1]),
        carried,
        retired,
        str(default or ""),
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM identity.account a JOIN identity.tenant t"
            " ON t.id = a.tenant_id WHERE t.kind = 'root' AND a.role = 'Owner'"
            " AND a.status = 'active' AND a.password_hash IS NOT NULL)"
        ),
    )


async def _bring_users(connection: Connection, facts: Facts) -> None:
    """Brings users to what they were last known to be.

    Where only the log of it is known, not the login itself, a password that was ended stays so:
    the user has to be invited again. Nobody is added: that would give, not take away.
    """
    await connection.executemany(
        "UPDATE identity.account SET role = $2, status = $3, password_hash = $4,"
        " invitation_hash = $5, invitation_expires_at = $6, updated_at = now() WHERE id = $1"
        " AND (role, status, password_hash, invitation_hash) IS DISTINCT FROM ($2, $3, $4, $5)",
        [
            (
                user_id,
                known.role,
                known.status,
                known.login.password_hash,
                known.login.invitation_hash,
                known.login.invitation_expires_at,
            )
            for user_id, known in facts.users.items()
            if known.login
        ],
    )
    await connection.executemany(
        "UPDATE identity.account SET role = coalesce(nullif($2, ''), role),"
        " status = CASE WHEN $3 = 'disabled' THEN 'disabled' WHEN $4 THEN 'invited'"
        " ELSE status END,"
        " password_hash = CASE WHEN $4 THEN NULL ELSE password_hash END,"
        " invitation_hash = CASE WHEN $4 THEN NULL ELSE invitation_hash END,"
        " invitation_expires_at = CASE WHEN $4 THEN NULL ELSE invitation_expires_at END,"
        " updated_at = now() WHERE id = $1",
        [
            (user_id, known.role, known.status, known.voided)
            for user_id, known in facts.users.items()
            if not known.login
        ],
    )


async def _revoke(connection: Connection, facts: Facts) -> None:
    """Takes away again what was taken away from programs and devices to come."""
    await connection.execute(
        "UPDATE enrollment.token t SET uses = k.uses"
        " FROM unnest($1::uuid[], $2::integer[]) AS k (id, uses)"
        " WHERE t.id = k.id AND t.uses < k.uses",
        list(facts.token_uses),
        list(facts.token_uses.values()),
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
    # One without a counter had published nothing then, and may have published since.
    await connection.execute(
        "INSERT INTO policy.version_counters (tenant_id, last_version)"
        " SELECT id, 0 FROM identity.tenant WHERE kind = 'org' ON CONFLICT DO NOTHING"
    )
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
    if done == "INSERT 0 0" and device.status == "decommissioned":
        # Its organisation or its serial number is another's now; it is locked out all the same.
        return await _retire(connection, device.id)
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
