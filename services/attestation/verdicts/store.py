"""The SQL of lists of verdicts, and of their feed, which tells of all tenants."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.feeds.feed import Cursor, FeedPage, read_page
from servicekit.rpc.pagination import Page
from services.attestation.grades import Verdict
from services.attestation.verdicts.domain import Attested, BootVerdict, Counts, Wanted

_IN_USE: Final = ("active", "prepared")
"""Lists have the devices with these statuses in the registry."""
CHANGING: Final = "SELECT changed_xid FROM attestation.device WHERE attested_at IS NOT NULL"
"""What the feed of verdicts tells of (`servicekit.feeds.changes`)."""
_JUDGED: Final = "verdict, reasons, bank, attested_at, secure_boot, reference_value_ids"
_DEVICE: Final = f"device_id, tenant_id, serial, model, {_JUDGED}"
_VERDICT: Final = f"id, device_id, tenant_id, {_JUDGED}"


async def list_devices(
    connection: Connection, scope: Scope, wanted: Wanted, after: UUID | None, limit: int
) -> Page[Attested, UUID]:
    """The devices of a scope that are in use, by id, without their registers."""
    conditions, parameters = _filter(scope, wanted)
    if after is not None:
        parameters.append(after)
        conditions.append(f"device_id > ${len(parameters)}")
    parameters.append(limit + 1)
    rows = await connection.fetch(
        f"SELECT {_DEVICE}, NULL AS pcrs, NULL AS ek_sha256 FROM attestation.device"
        f" WHERE {' AND '.join(conditions)} ORDER BY device_id LIMIT ${len(parameters)}",
        *parameters,
    )
    return Page.of([_attested(row) for row in rows], limit, lambda found: found.device_id)


def _filter(scope: Scope, wanted: Wanted) -> tuple[list[str], list[Any]]:
    conditions = ["status = ANY ($1)"]
    parameters: list[Any] = [list(_IN_USE)]

    def add(condition: str, value: object) -> None:
        parameters.append(value)
        conditions.append(condition.format(f"${len(parameters)}"))

    if scope.tenant_ids is not None:
        add("tenant_id = ANY ({}::uuid[])", list(scope.tenant_ids))
    if wanted.verdict:
        add("verdict = {}", wanted.verdict)
    if wanted.reason:
        add("{} = ANY (reasons)", wanted.reason)
    if wanted.older_than is not None:
        add("attested_at < {}", wanted.older_than)
    return conditions, parameters


async def get_device(connection: Connection, scope: Scope, device_id: UUID) -> Attested | None:
    """One device of a scope, whatever its status, with its registers."""
    row = await connection.fetchrow(
        f"SELECT {_DEVICE}, pcrs, (SELECT b.ek_sha256 FROM attestation.tpm_binding b"
        " WHERE b.id = device.binding_id) AS ek_sha256 FROM attestation.device"
        " WHERE device_id = $1 AND ($2::uuid[] IS NULL OR tenant_id = ANY ($2))",
        device_id,
        scope.tenant_ids,
    )
    return None if row is None else _attested(row)


async def list_verdicts(
    connection: Connection, scope: Scope, device_id: UUID, before: UUID | None, limit: int
) -> Page[BootVerdict, UUID]:
    """The verdicts of a device of a scope, the newest first."""
    rows = await connection.fetch(
        f"SELECT {_VERDICT}, pcrs FROM attestation.boot_verdict"
        " WHERE device_id = $1 AND ($2::uuid[] IS NULL OR tenant_id = ANY ($2))"
        " AND ($3::uuid IS NULL OR id < $3) ORDER BY id DESC LIMIT $4",
        device_id,
        scope.tenant_ids,
        before,
        limit + 1,
    )
    return Page.of([_boot_verdict(row) for row in rows], limit, lambda found: found.id)


async def verdicts_since(
    connection: Connection, cursor: Cursor, limit: int
) -> tuple[FeedPage, list[Attested]]:
    """Verdicts since a cursor."""
    page = await read_page(
        connection,
        f"SELECT changed_xid::text AS changed_xid, device_id AS key, {_DEVICE}, NULL AS pcrs,"
        " NULL AS ek_sha256"
        " FROM attestation.device WHERE attested_at IS NOT NULL"
        " AND (changed_xid, device_id) > ($1::text::xid8, $2)"
        # By the column: the text of the same name would put 99 behind 100.
        " ORDER BY device.changed_xid, device_id LIMIT $3",
        cursor,
        limit,
    )
    return page, [_attested(row) for row in page.rows]


async def count(connection: Connection, stale_before: datetime) -> Counts:
    """Counts the devices of the installation."""
    rows = await connection.fetch(
        "SELECT verdict, count(*) AS devices, count(*) FILTER (WHERE attested_at < $2) AS stale"
        " FROM attestation.device WHERE status = ANY ($1) GROUP BY verdict",
        list(_IN_USE),
        stale_before,
    )
    return Counts(
        by_verdict={Verdict(row["verdict"]): row["devices"] for row in rows},
        stale=sum(row["stale"] for row in rows),
    )


def _attested(row: asyncpg.Record) -> Attested:
    return Attested(
        device_id=row["device_id"],
        tenant_id=row["tenant_id"],
        serial=row["serial"],
        model=row["model"],
        verdict=Verdict(row["verdict"]),
        reasons=row["reasons"],
        bank=row["bank"],
        secure_boot=row["secure_boot"],
        reference_value_ids=row["reference_value_ids"],
        attested_at=row["attested_at"],
        pcrs=_registers(row["pcrs"]),
        ek_sha256=row["ek_sha256"],
    )


def _boot_verdict(row: asyncpg.Record) -> BootVerdict:
    return BootVerdict(
        id=row["id"],
        device_id=row["device_id"],
        tenant_id=row["tenant_id"],
        verdict=Verdict(row["verdict"]),
        reasons=row["reasons"],
        bank=row["bank"],
        secure_boot=row["secure_boot"],
        reference_value_ids=row["reference_value_ids"],
        attested_at=row["attested_at"],
        pcrs=_registers(row["pcrs"]),
    )


def _registers(stored: str | None) -> dict[str, str]:
    if stored is None:
        return {}
    registers: dict[str, str] = json.loads(stored)
    return registers
