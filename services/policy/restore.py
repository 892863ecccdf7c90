"""What a backup and a restore have to know of policy's schema.

Versions go on well above all that may have been published since the backup: a device never gets a
lower version than it has, and no version ever stands for two policies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from contract.events.policy import (
    PolicyKeyCompromised,
    PolicyKeyRetired,
    PolicyPublished,
    PolicyRolledBack,
    RolloutCreated,
)
from servicekit.data.backup import Connection, Recorded, Tables
from services.policy.keys.service import PURPOSE
from services.policy.keys.store import FIRST_KEY
from services.policy.vault import PURPOSE as POLICY_SECRETS

TABLES: Final = Tables(
    # What attestation tells, and what a restore says itself.
    made_anew=frozenset({"device_verdict", "key_log_restore"}),
    sealed={"signing_keys": PURPOSE},
    secrets=dict.fromkeys(("policies", "versions", "documents", "variable"), POLICY_SECRETS),
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
    keys: list[Mapping[str, Any]] = field(default_factory=list, repr=False)
    """The rows of keys of the replaced database, if its release knows several."""
    log: list[Mapping[str, Any]] = field(default_factory=list, repr=False)
    """The published log of keys there."""
    retired: set[UUID] = field(default_factory=set)
    """Keys that were retired since."""
    compromised: dict[UUID, datetime] = field(default_factory=dict)
    """Keys → when somebody said that they are in wrong hands."""

    log_end: tuple[int, str] = (0, "")
    """The last entry of the log of keys that the audit log tells of: its number, and the SHA-256
    of its payload."""

    def version(self, tenant_id: UUID, version: int) -> None:
        """Takes a published version."""
        self.versions[tenant_id] = max(self.versions.get(tenant_id, 0), version)

    async def read(self, connection: Connection) -> None:
        """Takes what a database knows that is about to be replaced."""
        for row in await connection.fetch(
            "SELECT tenant_id, last_version FROM policy.version_counters"
        ):
            self.version(row["tenant_id"], row["last_version"])
        if await _has_keys(connection):
            self.keys = await connection.fetch(
                "SELECT id, public_key, sealed_seed, signs, created_at, row_id, tenant_id, state,"
                " activated_at, retired_at, compromised_at, certified_by, request_id,"
                " is_first FROM policy.signing_keys"
            )
            self.log = await connection.fetch(
                "SELECT sequence, action, envelope, digest, key_id FROM policy.key_log"
            )

    def learn(self, entry: Recorded) -> None:
        """Takes an entry of the audit log."""
        if (
            entry.action in {PolicyPublished.NAME, PolicyRolledBack.NAME, RolloutCreated.NAME}
            and "version" in entry.after
        ):
            self.version(entry.tenant_id, int(entry.after["version"]))
        if "logSequence" in entry.after:
            end = (int(entry.after["logSequence"]), str(entry.after["logSha256"]))
            self.log_end = max(self.log_end, end)
        if entry.action == PolicyKeyRetired.NAME:
            self.retired.add(UUID(entry.name))
        elif entry.action == PolicyKeyCompromised.NAME:
            self.compromised[UUID(entry.name)] = entry.at


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
    if await _has_keys(connection):
        await _repair_keys(connection, known)
    has_gates: bool = await connection.fetchval("SELECT to_regclass('policy.gate') NOTNULL")
    if has_gates:
        # What devices proved since the backup is not known: no more of them are restricted before
        # somebody looks.
        await connection.execute(
            "UPDATE policy.gate SET held = 'RESTORED', changed_xid = pg_current_xact_id()"
            " WHERE mode = 'ENFORCE'"
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


async def _has_keys(connection: Connection) -> bool:
    found: bool = await connection.fetchval("SELECT to_regclass('policy.key_log') NOTNULL")
    return found


async def _is_later(connection: Connection, known: Known) -> bool:
    """Whether the replaced database is the same installation's, and knows all that the backup does
    of keys."""
    first: str | None = await connection.fetchval(FIRST_KEY)
    entries: int = await connection.fetchval("SELECT count(*) FROM policy.key_log")
    return len(known.log) >= entries and any(
        row["id"] == first and row["is_first"] for row in known.keys
    )


async def _repair_keys(connection: Connection, known: Known) -> None:
    """Keeps keys that devices pin since the backup, and ends those that ended since.

    A key of the replaced database is sealed by the master key that stays. Where that database is
    gone, so are its keys: their devices enroll anew.
    """
    rows = known.keys if await _is_later(connection, known) else []
    if rows:
        # Whoever has read the longer log would take a shorter one for a fork.
        await connection.execute("DELETE FROM policy.key_log")
        await connection.executemany(
            "INSERT INTO policy.key_log (sequence, action, envelope, digest, key_id)"
            " VALUES ($1, $2, $3, $4, $5)",
            [tuple(row.values()) for row in known.log],
        )
        await connection.execute("UPDATE policy.signing_keys SET signs = false, state = 'retiring'")
        for row in rows:
            await connection.execute(
                "INSERT INTO policy.signing_keys (id, public_key, sealed_seed, signs, created_at,"
                " row_id, tenant_id, state, activated_at, retired_at, compromised_at, certified_by,"
                " request_id, is_first)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
                " ON CONFLICT (id) DO UPDATE SET sealed_seed = excluded.sealed_seed,"
                " signs = excluded.signs, state = excluded.state,"
                " activated_at = excluded.activated_at, retired_at = excluded.retired_at,"
                " compromised_at = excluded.compromised_at, certified_by = excluded.certified_by",
                *row.values(),
            )
        return
    if await connection.fetchval("SELECT to_regclass('policy.key_log_restore') NOTNULL"):
        # What was entered in the log since the backup is lost; the next start says so in it.
        # By what the service's own role may do, which changes no such row.
        await connection.execute("DELETE FROM policy.key_log_restore")
        await connection.execute(
            "INSERT INTO policy.key_log_restore (lost_sequence, lost_digest) VALUES ($1, $2)"
            " ON CONFLICT (only_row) DO NOTHING",
            known.log_end[0],
            bytes.fromhex(known.log_end[1]) or None,
        )
    await _pass_on_signing(connection, known)
    # The last key of the installation goes on: without one nothing is signed.
    await connection.execute(
        "UPDATE policy.signing_keys SET state = 'retired', sealed_seed = NULL, retired_at = now()"
        " WHERE row_id = ANY ($1) AND NOT signs AND state <> 'active'",
        [*known.retired],
    )
    await connection.executemany(
        "UPDATE policy.signing_keys SET compromised_at = coalesce(compromised_at, $2)"
        " WHERE row_id = $1",
        [*known.compromised.items()],
    )


async def _pass_on_signing(connection: Connection, known: Known) -> None:
    """Lets the active key sign what is stored, where the one that did was retired since."""
    heir: UUID | None = await connection.fetchval(
        "SELECT row_id FROM policy.signing_keys WHERE tenant_id IS NULL AND state = 'active'"
        " AND NOT signs AND sealed_seed NOTNULL AND row_id <> ALL ($1)",
        [*known.retired],
    )
    if heir is not None:
        await connection.execute(
            "UPDATE policy.signing_keys SET signs = false WHERE signs AND row_id = ANY ($1)",
            [*known.retired],
        )
        await connection.execute(
            "UPDATE policy.signing_keys SET signs = true WHERE row_id = $1"
            " AND NOT EXISTS (SELECT FROM policy.signing_keys k WHERE k.signs)",
            heir,
        )
