"""The SQL of bindings. A TPM is one device's in the whole installation: no tenant scope."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from services.attestation.grades import BindingReason

_KEPT: Final = ("tpm_enrollment", "challenge")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A TPM that a device may be bound to, and the key that will sign its evidence."""

    ek_sha256: bytes
    ek_certificate: bytes | None
    root_sha256: bytes | None
    ak_name: bytes
    ak_public: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """An enrollment that was not activated yet."""

    id: UUID
    candidate: Candidate
    proof_sha256: bytes
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Bound:
    """The TPM that a device is bound to."""

    id: UUID
    device_id: UUID
    ek_sha256: bytes
    ak_name: bytes
    bound_at: datetime


async def binding_of(connection: Connection, device_id: UUID) -> Bound | None:
    """The TPM that a device is bound to."""
    row = await connection.fetchrow(
        "SELECT id, device_id, ek_sha256, ak_name, bound_at FROM attestation.tpm_binding"
        " WHERE device_id = $1",
        device_id,
    )
    return None if row is None else Bound(**row)


async def holder_of_key(connection: Connection, ek_sha256: bytes) -> UUID | None:
    """The device that is bound to an endorsement key."""
    holder: UUID | None = await connection.fetchval(
        "SELECT device_id FROM attestation.tpm_binding WHERE ek_sha256 = $1", ek_sha256
    )
    return holder


async def holder_of_name(connection: Connection, ak_name: bytes) -> UUID | None:
    """The device that a signing key is bound to.

    That it signed another device's evidence before is less than a TPM that gives a secret away.
    """
    holder: UUID | None = await connection.fetchval(
        "SELECT device_id FROM attestation.tpm_binding WHERE ak_name = $1", ak_name
    )
    return holder


async def is_listed(
    connection: Connection, tenant_id: UUID, serial_key: str, ek_sha256: bytes
) -> bool | None:
    """Whether an organisation lists an endorsement key for a serial number.

    `None` where it lists none for it; of a device whose serial number is not known here yet, where
    it lists none at all.
    """
    found: bool | None
    if serial_key:
        found = await connection.fetchval(
            "SELECT bool_or(ek_sha256 = $3) FROM attestation.listed_key"
            " WHERE tenant_id = $1 AND serial_key = $2",
            tenant_id,
            serial_key,
            ek_sha256,
        )
    else:
        found = await connection.fetchval(
            "SELECT false FROM attestation.listed_key WHERE tenant_id = $1 LIMIT 1", tenant_id
        )
    return found


async def serial_of(connection: Connection, device_id: UUID) -> str:
    """A device's serial number; empty when it has none."""
    serial: str | None = await connection.fetchval(
        "SELECT serial FROM attestation.device WHERE device_id = $1", device_id
    )
    return serial or ""


async def open_enrollment(
    connection: Connection, device_id: UUID, tenant_id: UUID, opened: Opened
) -> None:
    """Stores an enrollment; the one that was open before is void."""
    found = opened.candidate
    await connection.execute(
        "INSERT INTO attestation.tpm_enrollment (device_id, id, tenant_id, ek_sha256,"
        " ek_certificate, root_sha256, ak_name, ak_public, proof_sha256, expires_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (device_id) DO UPDATE SET"
        " id = excluded.id, tenant_id = excluded.tenant_id, ek_sha256 = excluded.ek_sha256,"
        " ek_certificate = excluded.ek_certificate, root_sha256 = excluded.root_sha256,"
        " ak_name = excluded.ak_name, ak_public = excluded.ak_public,"
        " proof_sha256 = excluded.proof_sha256, expires_at = excluded.expires_at",
        device_id,
        opened.id,
        tenant_id,
        found.ek_sha256,
        found.ek_certificate,
        found.root_sha256,
        found.ak_name,
        found.ak_public,
        opened.proof_sha256,
        opened.expires_at,
    )


async def take_enrollment(
    connection: Connection, device_id: UUID, enrollment_id: UUID
) -> Opened | None:
    """Takes the open enrollment of a device away: there is one attempt."""
    row = await connection.fetchrow(
        "DELETE FROM attestation.tpm_enrollment WHERE device_id = $1 AND id = $2"
        " RETURNING id, ek_sha256, ek_certificate, root_sha256, ak_name, ak_public, proof_sha256,"
        " expires_at",
        device_id,
        enrollment_id,
    )
    if row is None:
        return None
    return Opened(
        id=row["id"],
        candidate=Candidate(
            ek_sha256=row["ek_sha256"],
            ek_certificate=row["ek_certificate"],
            root_sha256=row["root_sha256"],
            ak_name=row["ak_name"],
            ak_public=row["ak_public"],
        ),
        proof_sha256=row["proof_sha256"],
        expires_at=row["expires_at"],
    )


async def bind(
    connection: Connection,
    binding_id: UUID,
    device_id: UUID,
    tenant_id: UUID,
    found: Candidate,
    now: datetime,
) -> BindingReason | None:
    """Binds a device; answers why not when the TPM or its key are another device's.

    A device that is bound to the same TPM has the new key from now on.
    """
    try:
        # What a refusal has changed is undone.
        async with connection.transaction():
            if await _bind(connection, binding_id, device_id, tenant_id, found, now):
                return None
            raise _TakenError
    except (_TakenError, asyncpg.UniqueViolationError):
        # Of two that are bound at once, the later one.
        holder = await holder_of_name(connection, found.ak_name)
        if holder not in {None, device_id}:
            return BindingReason.AK_OF_ANOTHER_DEVICE
        return BindingReason.EK_OF_ANOTHER_DEVICE


class _TakenError(Exception):
    pass


async def _bind(
    connection: Connection,
    binding_id: UUID,
    device_id: UUID,
    tenant_id: UUID,
    found: Candidate,
    now: datetime,
) -> bool:
    await connection.execute(
        "DELETE FROM attestation.seen_key WHERE ak_name = $1 AND device_id <> $2",
        found.ak_name,
        device_id,
    )
    done: str = await connection.execute(
        "INSERT INTO attestation.tpm_binding (id, tenant_id, device_id, ek_sha256, ek_certificate,"
        " root_sha256, ak_name, ak_public, bound_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
        " ON CONFLICT DO NOTHING",
        binding_id,
        tenant_id,
        device_id,
        found.ek_sha256,
        found.ek_certificate,
        found.root_sha256,
        found.ak_name,
        found.ak_public,
        now,
    )
    if done.endswith(" 1"):
        await connection.execute(
            "UPDATE attestation.device SET binding_id = $2 WHERE device_id = $1",
            device_id,
            binding_id,
        )
        return True
    renewed: str = await connection.execute(
        "UPDATE attestation.tpm_binding b SET ek_certificate = $3, root_sha256 = $4, ak_name = $5,"
        " ak_public = $6, bound_at = $7,"
        # Another key blurs the counter in another way.
        " reset_count = CASE WHEN b.ak_name = $5 THEN b.reset_count END"
        " WHERE device_id = $1 AND ek_sha256 = $2"
        " AND NOT EXISTS (SELECT FROM attestation.tpm_binding o"
        " WHERE o.ak_name = $5 AND o.device_id <> $1)",
        device_id,
        found.ek_sha256,
        found.ek_certificate,
        found.root_sha256,
        found.ak_name,
        found.ak_public,
        now,
    )
    return renewed.endswith(" 1")


async def write_challenge(
    connection: Connection, device_id: UUID, tenant_id: UUID, nonce: bytes, expires_at: datetime
) -> None:
    """Stores the digest of a device's next nonce; the one before is void."""
    await connection.execute(
        "INSERT INTO attestation.challenge (device_id, tenant_id, nonce_sha256, expires_at)"
        " VALUES ($1, $2, $3, $4) ON CONFLICT (device_id) DO UPDATE SET"
        " tenant_id = excluded.tenant_id, nonce_sha256 = excluded.nonce_sha256,"
        " expires_at = excluded.expires_at",
        device_id,
        tenant_id,
        nonce,
        expires_at,
    )


async def forget_expired(connection: Connection, before: datetime) -> None:
    """Deletes challenges and enrollments that expired before a time."""
    for table in _KEPT:
        await connection.execute(f"DELETE FROM attestation.{table} WHERE expires_at < $1", before)


async def lock_shown(connection: Connection, scope: Scope, device_id: UUID) -> UUID | None:
    """Locks a device of a scope; answers its organisation."""
    org: UUID | None = await connection.fetchval(
        "SELECT tenant_id FROM attestation.device WHERE device_id = $1"
        " AND ($2::uuid[] IS NULL OR tenant_id = ANY ($2)) FOR UPDATE",
        device_id,
        scope.tenant_ids,
    )
    return org
