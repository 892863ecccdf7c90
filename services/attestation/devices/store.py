"""The SQL of devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection, columns
from servicekit.peers.deleted import DeletedDevices
from services.attestation.grades import Verdict

DELETED: Final = DeletedDevices("attestation", "attestation.device")


@dataclass(frozen=True, slots=True)
class RegisteredDevice:
    """A device as the registry has it."""

    device_id: UUID
    tenant_id: UUID
    status: str
    serial: str
    model: str
    deleted: bool


@dataclass(frozen=True, slots=True)
class Told:
    """What the last event told of a device, and how many there were on that day."""

    verdict: Verdict
    on: date | None
    times: int


@dataclass(frozen=True, slots=True)
class LockedDevice:
    """A device whose calls come one after the other."""

    told: Told
    model: str
    binding_id: UUID | None
    ak_name: bytes | None
    """The name of the key that the device is bound to."""
    reset_count: int | None
    """How often its TPM had been reset at the latest evidence."""


async def write_devices(connection: Connection, devices: Sequence[RegisteredDevice]) -> None:
    """Keeps devices as the registry has them now; of deleted ones, nothing is left."""
    if staying := [device for device in devices if not device.deleted]:
        await connection.execute(
            "INSERT INTO attestation.device (device_id, tenant_id, status, serial, model)"
            " SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[])"
            " AS u(device_id, tenant_id, status, serial, model) ORDER BY device_id"
            " ON CONFLICT (device_id) DO UPDATE SET tenant_id = excluded.tenant_id,"
            " status = excluded.status, serial = excluded.serial, model = excluded.model",
            *columns([(d.device_id, d.tenant_id, d.status, d.serial, d.model) for d in staying]),
        )
    gone = [device.device_id for device in devices if device.deleted]
    retired = [device.device_id for device in devices if device.status == "decommissioned"]
    if not gone and not retired:
        return
    await DELETED.wait_for_writers(connection)
    # A machine that is out of use may become somebody else's: nothing names its TPM any more.
    await unbind(connection, [*gone, *retired])
    for table in ("device", "boot_verdict", "seen_nonce"):
        await connection.execute(
            f"DELETE FROM attestation.{table} WHERE device_id = ANY ($1)", gone
        )


async def unbind(connection: Connection, device_ids: Sequence[UUID]) -> int:
    """Frees devices from their TPMs; a verdict that needs one is none any more.

    Answers how many had one.
    """
    done: str = await connection.execute(
        "UPDATE attestation.device SET binding_id = NULL, reference_value_ids = '{}',"
        " reasons = CASE WHEN verdict IN ('KNOWN_TPM', 'VERIFIED') THEN '{AK_NOT_BOUND}'"
        " ELSE reasons END,"
        " verdict = CASE WHEN verdict IN ('KNOWN_TPM', 'VERIFIED') THEN 'SELF_CONSISTENT'"
        " ELSE verdict END, changed_xid = pg_current_xact_id()"
        " WHERE device_id = ANY ($1) AND binding_id IS NOT NULL",
        device_ids,
    )
    # The TPM makes the same signing key for its next device.
    for table in ("tpm_binding", "tpm_enrollment", "challenge", "seen_key"):
        await connection.execute(
            f"DELETE FROM attestation.{table} WHERE device_id = ANY ($1)", device_ids
        )
    return int(done.rsplit(" ", 1)[1])


async def read_cursor(connection: Connection) -> str:
    """How far the registry's feed was read; empty for not at all."""
    cursor: str | None = await connection.fetchval("SELECT cursor FROM attestation.device_cursor")
    return cursor or ""


async def write_cursor(connection: Connection, cursor: str) -> None:
    """Stores how far the registry's feed was read."""
    await connection.execute(
        "INSERT INTO attestation.device_cursor (cursor) VALUES ($1)"
        " ON CONFLICT (only_row) DO UPDATE SET cursor = excluded.cursor",
        cursor,
    )


async def lock_device(
    connection: Connection, device_id: UUID, tenant_id: UUID
) -> LockedDevice | None:
    """Locks a device's row, which is made when the registry was not heard of it yet.

    `None` when the device is deleted, of which nothing is stored.
    """
    await DELETED.keep_out(connection)
    found = await _locked(connection, device_id)
    if found is not None:
        return found
    await connection.execute(
        "INSERT INTO attestation.device (device_id, tenant_id, status)"
        " SELECT $1, $2, 'active'"
        f" WHERE {DELETED.condition('$1')} ON CONFLICT DO NOTHING",
        device_id,
        tenant_id,
    )
    return await _locked(connection, device_id)


async def _locked(connection: Connection, device_id: UUID) -> LockedDevice | None:
    row = await connection.fetchrow(
        "SELECT d.told_verdict, d.told_on, d.told_times, d.model, d.binding_id, b.ak_name,"
        " b.reset_count"
        " FROM attestation.device d LEFT JOIN attestation.tpm_binding b ON b.id = d.binding_id"
        " WHERE d.device_id = $1 FOR UPDATE OF d",
        device_id,
    )
    if row is None:
        return None
    return LockedDevice(
        told=Told(Verdict(row["told_verdict"]), row["told_on"], row["told_times"]),
        model=row["model"],
        binding_id=row["binding_id"],
        ak_name=row["ak_name"],
        reset_count=row["reset_count"],
    )
