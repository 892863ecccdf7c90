"""What the database tells of the product's work: quarantined rows, budgets, policies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg

from cli.doctor.finding import Finding, warning
from contract.contexts import CONTEXTS
from services.policy import sealing

_NEAR: Final = 0.8
"""The share of a storage budget from which on it is told of."""
_SILENT: Final = timedelta(minutes=10)
"""So long a device that was let in may take to its first poll."""


async def quarantined(connection: asyncpg.Connection[asyncpg.Record]) -> AsyncIterator[Finding]:
    """What the services noted of rows that they could not handle (`servicekit.data.quarantine`)."""
    for context in CONTEXTS:
        table = f"{context}.quarantined_row"
        if await connection.fetchval("SELECT to_regclass($1)", table) is None:
            continue
        for row in await connection.fetch(
            "SELECT DISTINCT ON (place) place, key, reason, last_seen::text AS last_seen,"
            f" count(*) OVER (PARTITION BY place) AS found FROM {table} AS q"
            " ORDER BY place, q.last_seen DESC, key"
        ):
            yield warning(
                "ROWS_QUARANTINED",
                f"{context} left out {_rows(row['found'])} that it cannot handle"
                f" ({row['place']}); the latest one is {row['key']}, at {row['last_seen']}:"
                f" {row['reason']}",
                f"See EvergreenRowsQuarantined in docs/runbooks.md; all are in the table {table}.",
            )


async def storage(
    connection: asyncpg.Connection[asyncpg.Record], clock: Callable[[], datetime]
) -> AsyncIterator[Finding]:
    """Who has stored nearly all that a day's budget allows (docs/limits.md)."""
    if await connection.fetchval("SELECT to_regclass('telemetry.storage_use')") is None:
        return
    async with connection.transaction(readonly=True):
        await connection.execute("SELECT set_config('evergreen.scope', '*', true)")
        rows = await connection.fetch(
            "SELECT DISTINCT ON (what) what, subject, tenant_id, bytes, limit_bytes,"
            " count(*) OVER (PARTITION BY what) AS found FROM telemetry.storage_use"
            " WHERE day = $1 AND bytes >= $2::float8 * limit_bytes"
            " ORDER BY what, bytes::float8 / limit_bytes DESC",
            clock().astimezone(UTC).date(),
            _NEAR,
        )
    for row in rows:
        owner, _, kind = row["what"].partition("_")
        whose = (
            f"the device {row['subject']} (organisation {row['tenant_id']})"
            if owner == "device"
            else f"the organisation {row['subject']}"
        )
        more = f", and {row['found'] - 1} more are like it" if row["found"] > 1 else ""
        used = row["bytes"] >= row["limit_bytes"]
        yield warning(
            "STORAGE_BUDGET_USED" if used else "STORAGE_BUDGET_NEARLY_USED",
            f"{whose} has stored {row['bytes']} bytes of {kind} today, of {row['limit_bytes']}"
            f" that it may{more}" + (": it is refused until tomorrow" if used else ""),
            "See EvergreenStorageBudget in docs/runbooks.md.",
        )


async def orphaned(connection: asyncpg.Connection[asyncpg.Record]) -> AsyncIterator[Finding]:
    """Which organisations have no policy in force any more, while devices run one."""
    if await connection.fetchval("SELECT to_regclass('policy.assignments')") is None:
        return
    async with connection.transaction(readonly=True):
        await connection.execute("SELECT set_config('evergreen.scope', '*', true)")
        rows = await connection.fetch(
            "SELECT s.tenant_id, count(*) AS devices FROM policy.assignments s"
            " JOIN policy.applied_versions a ON a.tenant_id = s.tenant_id AND a.version > 0"
            " JOIN policy.devices d ON d.device_id = a.device_id AND d.status = 'active'"
            " WHERE s.version IS NULL GROUP BY s.tenant_id ORDER BY devices DESC, s.tenant_id"
        )
        if not rows:
            return
        name = None
        if await connection.fetchval("SELECT to_regclass('identity.tenant')") is not None:
            name = await connection.fetchval(
                "SELECT name FROM identity.tenant WHERE id = $1", rows[0]["tenant_id"]
            )
    devices = sum(row["devices"] for row in rows)
    one = devices == 1
    whose = f"{name} ({rows[0]['tenant_id']})" if name else f"{rows[0]['tenant_id']}"
    others = len(rows) - 1
    more = f", the others of {others} more organisation{'s' if others > 1 else ''}"
    yield warning(
        "POLICY_ORPHANED",
        f"{devices} {'device runs' if one else 'devices run'} a policy although none is in force"
        f" for {'it' if one else 'them'}: {rows[0]['devices']} of the organisation {whose}"
        + (more if others else ""),
        "Publish a policy there; it replaces what the devices run. GET /api/orphaned-devices lists"
        " them.",
    )


async def wrong_keys(
    connection: asyncpg.Connection[asyncpg.Record],
) -> AsyncIterator[Finding]:
    """How many devices pin a key for policies that is compromised or retired, or perhaps another
    one than is known: an agent ends when the first policy is not signed with its own."""
    if await connection.fetchval("SELECT to_regclass('policy.key_log')") is None:
        return
    async with connection.transaction(readonly=True):
        await connection.execute("SELECT set_config('evergreen.scope', '*', true)")
        if await connection.fetchval("SELECT count(*) < 2 FROM policy.signing_keys"):
            return
        found = await connection.fetch(
            "SELECT k.id, k.state = 'retired' AS retired, k.compromised_at NOTNULL AS compromised,"
            " count(*) AS devices, count(*) FILTER (WHERE a.device_id IS NULL"
            " AND d.status = 'active' AND d.enrolled_at < now() - $1::interval) AS silent"
            " FROM policy.devices d LEFT JOIN policy.memberships m ON m.device_id = d.device_id"
            " JOIN policy.signing_keys k ON k.id = coalesce(m.key_id, (SELECT f.id"
            " FROM policy.signing_keys f WHERE f.is_first))"
            " LEFT JOIN policy.applied_versions a ON a.device_id = d.device_id"
            " WHERE d.status IN ('pending', 'prepared', 'active') OR d.archived"
            " GROUP BY k.id ORDER BY k.id",
            _SILENT,
        )
    for row in found:
        pin = (
            f"{row['devices']} device{'' if row['devices'] == 1 else 's'} with the key {row['id']}"
        )
        if row["retired"]:
            yield warning(
                "POLICY_KEY_RETIRED",
                f"{pin}, which is retired, get no policy any more",
                "Let them enroll again with another key: evergreen keys devices lists them.",
            )
        elif row["compromised"]:
            yield warning(
                "POLICY_KEY_COMPROMISED",
                f"{pin} take policies from anybody who has its private half",
                "Move them to another key: evergreen keys devices lists them.",
            )
        elif row["silent"]:
            yield warning(
                "POLICY_KEY_DOUBTFUL",
                f"{row['silent']} of {pin} enrolled and never asked for a policy: they may pin"
                " another key",
                "Compare the key in their image with evergreen keys pem; let them enroll again.",
            )


async def unsealed(connection: asyncpg.Connection[asyncpg.Record]) -> AsyncIterator[Finding]:
    """Whether some policies with secrets lie sealed and others do not, or none that name them."""
    if not await connection.fetchval(
        "SELECT count(*) > 0 FROM information_schema.columns WHERE table_schema = 'policy'"
        " AND table_name = 'documents' AND column_name = 'sealed_secrets'"
    ):
        return
    async with connection.transaction(readonly=True):
        await connection.execute("SELECT set_config('evergreen.scope', '*', true)")
        is_sealed = await connection.fetchval(
            "SELECT EXISTS (SELECT FROM policy.policies WHERE sealed_secrets IS NOT NULL)"
            " OR EXISTS (SELECT FROM policy.versions WHERE sealed_secrets IS NOT NULL)"
        )
        names = not is_sealed and await connection.fetchval(
            "SELECT count(*) FROM policy.policies p WHERE p.published_version IS NOT NULL"
            " AND to_jsonb(p)->>'uses' LIKE '%\"secret.%'"
        )
    if names:
        yield warning(
            "NAMED_SECRETS_OPEN",
            f"{names} published {'policy names' if names == 1 else 'policies name'} secrets, whose"
            " values lie open in the database, in what was published",
            "When 0.2.0 runs nowhere any more, set EVERGREEN_POLICY_SECRETS=sealed for the policy"
            " service; then run `evergreen policies seal`.",
        )
    if not is_sealed:
        return
    if left := sum((await sealing.waiting(connection)).values()):
        yield warning(
            "POLICY_SECRETS_OPEN",
            f"{_rows(left)} of stored policies with secrets {_are(left)} not sealed, as others are",
            "Run `evergreen policies seal`; `evergreen policies seal --check` says what is left.",
        )


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
