"""Devices and events in bulk, as real enrollment and real reports leave them behind.

Rows are written by PostgreSQL itself. They carry a transaction id from before the first reader,
so that the services take them for something they know since long.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

import asyncpg

from bench.product import Product
from cli.sim.bodies import state_body

LONG_AGO: Final = "'3'::xid8"
_APPS: Final = json.dumps(
    json.loads(state_body("", 0, 0))["state"]["installed_apps"], separators=(",", ":")
)
DEVICE_ID: Final = "('01980000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid"


def device_id(number: int) -> str:
    """The id of the device with a number, as the statements below make it."""
    return f"01980000-0000-7000-8000-{number:012x}"


@dataclass(slots=True)
class Fleet:
    """The devices that were put into the database so far."""

    tenant_id: str
    policy_version: int
    devices: int = 0

    @classmethod
    async def of(cls, product: Product) -> Fleet:
        """The fleet of a product: what an earlier run put there, with a new policy in force."""
        await product.first_device()
        connection = await product.superuser()
        try:
            found = await connection.fetchval(
                "SELECT count(*) FROM enrollment.device WHERE serial LIKE 'BENCH-%'"
            )
        finally:
            await connection.close()
        return cls(product.stack.tenant_id, product.publish_policy(), int(found))

    async def grow(self, connection: asyncpg.Connection, devices: int) -> None:
        """Registers devices until there are so many; each has a state and its policy."""
        span = self.devices + 1, devices
        if devices <= self.devices:
            return
        numbers = "generate_series($1::bigint, $2::bigint) AS n"
        async with connection.transaction():
            await connection.execute("SET LOCAL synchronous_commit = off")
            await connection.execute(
                "INSERT INTO enrollment.device (id, tenant_id, serial, model, cpu_model, cpu_count,"
                " total_ram_bytes, has_tpm, status, token_version, fingerprint, created_at,"
                " enrolled_at, changed_xid)"
                f" SELECT {DEVICE_ID}, $3::uuid, 'BENCH-' || n, 'Evergreen Book 14', 'Simulated',"
                " 4, 8589934592, true, 'active', 1, sha256(n::text::bytea),"
                f" now() - interval '9 days', now() - interval '9 days', {LONG_AGO} FROM {numbers}",
                *span,
                self.tenant_id,
            )
            await connection.execute(
                "INSERT INTO telemetry.device (id, tenant_id, name, serial, model, registered_at,"
                " policy_version, contact_at, seen_day, observed_at, state_received_at,"
                " installed_apps, update_status, disk_total_bytes, disk_free_bytes,"
                " battery_percent, health, disk_health, battery_health)"
                f" SELECT {DEVICE_ID}, $3::uuid, 'BENCH-' || n, 'BENCH-' || n, 'Evergreen Book 14',"
                " now() - interval '9 days', $4, seen, seen::date, seen, seen, $5::json, 'idle',"
                " 256000000000,"
                " CASE WHEN n % 50 = 0 THEN 1000000000 ELSE 200000000000 END, 87.5,"
                " CASE WHEN n % 50 = 0 THEN 'critical' ELSE 'healthy' END,"
                " CASE WHEN n % 50 = 0 THEN 'critical' ELSE 'healthy' END, 'healthy'"
                f" FROM {numbers}, LATERAL (SELECT now() - n % 5000 * interval '1 minute'"
                " AS seen) AS s",
                *span,
                self.tenant_id,
                str(self.policy_version),
                _APPS,
            )
            await connection.execute(
                "INSERT INTO policy.devices (device_id, tenant_id, status)"
                f" SELECT {DEVICE_ID}, $3::uuid, 'active' FROM {numbers}",
                *span,
                self.tenant_id,
            )
            await connection.execute(
                "INSERT INTO policy.applied_versions (device_id, tenant_id, version, token_version,"
                " reported_at, changed_xid)"
                f" SELECT {DEVICE_ID}, $3::uuid, $4::bigint, 1, now(), {LONG_AGO} FROM {numbers}",
                *span,
                self.tenant_id,
                self.policy_version,
            )
        self.devices = devices
        await tidy(
            connection,
            "enrollment.device",
            "telemetry.device",
            "policy.devices",
            "policy.applied_versions",
        )


async def tidy(connection: asyncpg.Connection, *tables: str) -> None:
    """Leaves tables as autovacuum would after a while, so that it does not do so in a round."""
    for table in tables:
        await connection.execute(f"VACUUM (ANALYZE) {table}", timeout=1800)
