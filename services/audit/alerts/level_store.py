"""The SQL of what alerts look at beside the log: forwarders and backups."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from servicekit.data.postgres import Connection
from services.audit.forward.domain import Disabled


@dataclass(frozen=True, slots=True)
class Failing:
    """A forwarder that delivers nothing."""

    id: UUID
    tenant_id: UUID
    name: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Pem:
    """The certificates that a forwarder uses."""

    id: UUID
    tenant_id: UUID
    name: str
    ca: str
    own: str


async def failing(connection: Connection) -> list[Failing]:
    """The forwarders that deliver nothing: that fail, and that the system has disabled."""
    rows = await connection.fetch(
        "SELECT f.id, f.tenant_id, f.name, coalesce(s.failing_since, f.updated_at) AS since"
        " FROM audit.forwarder f JOIN audit.forwarder_state s ON s.forwarder_id = f.id"
        " WHERE f.enabled AND s.failing_since IS NOT NULL"
        " OR NOT f.enabled AND f.disabled_reason <> ALL ($1) ORDER BY f.id",
        [Disabled.NOT, Disabled.BY_USER],
    )
    return [Failing(**row) for row in rows]


async def newest_backup(connection: Connection) -> datetime | None:
    """When the newest good backup was begun."""
    found: datetime | None = await connection.fetchval(
        "SELECT max(started_at) FROM audit.backup_run WHERE kind = 'backup' AND succeeded"
    )
    return found


async def pems(connection: Connection) -> list[Pem]:
    """The certificates that enabled forwarders use."""
    rows = await connection.fetch(
        "SELECT id, tenant_id, name, ca, own FROM (SELECT id, tenant_id, name,"
        " coalesce(config ->> 'ca_pem', '') AS ca,"
        " coalesce(config ->> 'client_certificate_pem', '') AS own"
        " FROM audit.forwarder WHERE enabled) AS f WHERE ca <> '' OR own <> '' ORDER BY id"
    )
    return [Pem(**row) for row in rows]
