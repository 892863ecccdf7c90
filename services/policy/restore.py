"""What a backup and a restore have to know of policy's schema.

Versions go on well above all that may have been published since the backup: a device never gets a
lower version than it has, and no version ever stands for two policies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from contract.events.policy import PolicyPublished, PolicyRolledBack, RolloutCreated
from servicekit.data.backup import Connection, Recorded, Tables
from services.policy.keys.service import PURPOSE

TABLES: Final = Tables(
    # What attestation tells.
    made_anew=frozenset({"device_verdict"}),
    sealed={"signing_keys": PURPOSE},
    signs_of_use=frozenset({"policies"}),
)
LOST_VERSIONS: Final = 1_000_000
"""More numbers than an organisation gives out between two backups. The audit log may know of its
publishes; of the numbers that devices drew it does not."""


@dataclass(slots=True)
class Known:
    """What is known of policies that were published since."""

    versions: dict[UUID, int] = field(default_factory=dict)
    """Organisation → the highest version."""

    def version(self, tenant_id: UUID, version: int) -> None:
        """Takes a published version."""
        self.versions[tenant_id] = max(self.versions.get(tenant_id, 0), version)

    async def read(self, connection: Connection) -> None:
        """Takes what a database knows that is about to be replaced."""
        for row in await connection.fetch(
            "SELECT tenant_id, last_version FROM policy.version_counters"
        ):
            self.version(row["tenant_id"], row["last_version"])

    def learn(self, entry: Recorded) -> None:
        """Takes an entry of the audit log."""
        if (
            entry.action in {PolicyPublished.NAME, PolicyRolledBack.NAME, RolloutCreated.NAME}
            and "version" in entry.after
        ):
            self.version(entry.tenant_id, int(entry.after["version"]))


async def repair(connection: Connection, known: Known, organisations: Iterable[UUID]) -> None:
    """Raises the versions of all organisations."""
    # One without a counter had published nothing then, and may have published since.
    await connection.execute(
        "INSERT INTO policy.version_counters (tenant_id, last_version)"
        " SELECT id, 0 FROM unnest($1::uuid[]) AS id ON CONFLICT DO NOTHING",
        list(organisations),
    )
    await connection.execute(
        "UPDATE policy.version_counters c SET last_version = $1 + greatest(c.last_version,"
        " (SELECT max(k.version) FROM unnest($2::uuid[], $3::bigint[]) AS k (tenant_id, version)"
        " WHERE k.tenant_id = c.tenant_id))",
        LOST_VERSIONS,
        list(known.versions),
        list(known.versions.values()),
    )
    has_layers: bool = await connection.fetchval(
        "SELECT count(*) = 2 FROM information_schema.tables WHERE table_schema = 'policy'"
        " AND table_name IN ('editions', 'profiles')"
    )
    if has_layers:
        # Numbers that were made of layers since the backup are not known. Devices that have them
        # get others above: a publish of the same content would give them none.
        for table in ("editions", "profiles"):
            await connection.execute(
                f"UPDATE policy.{table} SET recipe = '', changed_xid = pg_current_xact_id()"
                " WHERE digest IS NOT NULL"
            )
        await connection.execute(
            "UPDATE policy.stamps SET stands = false, changed_xid = pg_current_xact_id()"
            " WHERE stands AND (cause = 'layers' OR NOT shared)"
        )
    has_rollouts: bool = await connection.fetchval("SELECT to_regclass('policy.rollout') NOTNULL")
    if has_rollouts:
        # What devices did since the backup is not known: somebody looks before one goes on.
        await connection.execute(
            "UPDATE policy.rollout SET state = 'PAUSED', reason = 'RESTORED', detail = '',"
            " serves = false, serving_since = NULL, revision = revision + 1,"
            " changed_xid = pg_current_xact_id()"
            " WHERE state IN ('SCHEDULED', 'RUNNING') OR serves"
        )
