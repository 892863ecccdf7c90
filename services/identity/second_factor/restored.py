"""What a restore has to know of second factors.

Where the database that is replaced can be read, factors and policies are what they were last. Where
only the audit log is left, what was removed or used since the backup opens nothing; what was set up
since is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from contract.access import Role
from contract.events.identity.sign_in import (
    PasskeyRemoved,
    RecoveryCodesCreated,
    RecoveryCodeUsed,
    SecondFactorDisabled,
    SecondFactorEnabled,
    SecondFactorsReset,
    SignInPolicyUpdated,
)
from servicekit.data.backup import Connection, Recorded
from servicekit.security.totp import STEP_SECONDS
from services.identity.second_factor.domain import Policy

_COLUMNS: Final = {
    "totp": "id, account_id, sealed_secrets, created_at, confirmed_at, last_step",
    "recovery_code": "id, account_id, sealed_secrets, used_at",
    "passkey": "id, account_id, credential_id, site, public_key, sign_count, backed_up, aaguid,"
    " name, created_at, last_used_at",
}
_POLICY: Final = "tenant_id, mfa, mfa_required_from, updated_at"
_EARLIER: Final = {Role.OWNER: "owners_from", Role.ADMIN: "admins_from"}
_GONE: Final = frozenset({SecondFactorDisabled.NAME, SecondFactorsReset.NAME})


@dataclass(slots=True)
class KnownFactors:
    """What is known of second factors since the backup."""

    users: frozenset[UUID] = frozenset()
    """The users of the database that is replaced; nobody where it cannot be read."""
    rows: dict[str, Sequence[Sequence[Any]]] = field(default_factory=dict)
    """Their rows, by table."""
    policies: Sequence[Policy] = ()
    changed_apps: set[UUID] = field(default_factory=set)
    """Users whose app was removed, or another one set up."""
    changed_codes: set[UUID] = field(default_factory=set)
    """Users who made recovery codes, or lost them."""
    used_codes: set[UUID] = field(default_factory=set)
    removed_passkeys: set[UUID] = field(default_factory=set)
    reset: set[UUID] = field(default_factory=set)
    """Users whose factors were all removed."""
    told_policies: list[Policy] = field(default_factory=list)
    """As the log has them, which does not say from when on those are asked who were asked
    before."""

    async def read(self, connection: Connection) -> None:
        """Takes what a database knows that is about to be replaced."""
        if not await _there(connection):
            return
        users = await connection.fetch("SELECT id FROM identity.account")
        self.users = frozenset(row["id"] for row in users)
        for table, columns in _COLUMNS.items():
            if not await _there(connection, table):
                continue
            found = await connection.fetch(f"SELECT {columns} FROM identity.{table}")
            self.rows[table] = [tuple(row) for row in found]
        self.policies = await _policies(connection)

    def learn(self, entry: Recorded) -> None:
        """Takes an entry of the audit log."""
        if entry.action in {*_GONE, SecondFactorEnabled.NAME}:
            self.changed_apps.add(UUID(entry.name))
        if entry.action in {*_GONE, RecoveryCodesCreated.NAME}:
            self.changed_codes.add(UUID(entry.name))
        if entry.action == PasskeyRemoved.NAME:
            self.removed_passkeys.add(UUID(str(entry.after["factorId"])))
        if entry.action == SecondFactorsReset.NAME:
            self.reset.add(UUID(entry.name))
        if entry.action == RecoveryCodeUsed.NAME:
            self.used_codes.add(UUID(str(entry.after["codeId"])))
        if entry.action == SignInPolicyUpdated.NAME:
            since = entry.after["mfaRequiredFrom"]
            told = Policy(
                UUID(entry.name),
                entry.after["mfa"],
                datetime.fromisoformat(since) if since else entry.at,
                entry.at,
                # The release before knows no other.
                local_login=entry.after.get("localLogin") or "all",
            )
            self.told_policies.append(told)


async def bring_factors(connection: Connection, known: KnownFactors) -> None:
    """Brings second factors to what they were last known to be."""
    # An older archive has no such tables.
    if not await _there(connection):
        return
    if known.users:
        for table, columns in _COLUMNS.items():
            if not await _there(connection, table):
                continue
            await connection.execute(
                f"DELETE FROM identity.{table} WHERE account_id = ANY ($1)", list(known.users)
            )
            places = ", ".join(f"${number + 1}" for number in range(len(columns.split(","))))
            await connection.executemany(
                f"INSERT INTO identity.{table} ({columns}) SELECT {places}"
                " WHERE EXISTS (SELECT FROM identity.account WHERE id = $2)",
                known.rows.get(table, ()),
            )
    await connection.execute(
        "DELETE FROM identity.totp WHERE account_id = ANY ($1)",
        list(known.changed_apps - known.users),
    )
    await connection.execute(
        "DELETE FROM identity.recovery_code WHERE account_id = ANY ($1)",
        list(known.changed_codes - known.users),
    )
    await connection.execute(
        "UPDATE identity.recovery_code SET used_at = now() WHERE id = ANY ($1) AND used_at IS NULL",
        list(known.used_codes),
    )
    if await _there(connection, "passkey"):
        await connection.execute(
            "DELETE FROM identity.passkey WHERE id = ANY ($1) OR account_id = ANY ($2)",
            list(known.removed_passkeys),
            list(known.reset - known.users),
        )
    await _bring_policies(connection, known)
    # A code of the last minute may have been used since the backup.
    await connection.execute(
        "UPDATE identity.totp SET last_step = greatest(last_step,"
        f" floor(extract(epoch FROM now()) / {STEP_SECONDS})::bigint + 1)"
    )


async def _bring_policies(connection: Connection, known: KnownFactors) -> None:
    """Brings policies to what they were last known to be. Who was asked for a second factor gets
    no days without one by that."""
    policies = {one.tenant_id: one for one in await _policies(connection)}
    for told in sorted(known.told_policies, key=lambda one: one.updated_at):
        nothing = replace(told, mfa="off")
        policies[told.tenant_id] = policies.get(told.tenant_id, nothing).as_told(told)
    policies |= {one.tenant_id: one for one in known.policies}
    await connection.executemany(
        f"INSERT INTO identity.sign_in_policy ({_POLICY})"
        " SELECT $1, $2, $3::timestamptz, $4::timestamptz"
        " WHERE EXISTS (SELECT FROM identity.tenant WHERE id = $1)"
        " ON CONFLICT (tenant_id) DO UPDATE SET mfa = excluded.mfa,"
        " mfa_required_from = excluded.mfa_required_from, updated_at = excluded.updated_at",
        [(one.tenant_id, one.mfa, one.required_from, one.updated_at) for one in policies.values()],
    )
    if await _has(connection, "owners_from"):
        await connection.executemany(
            "UPDATE identity.sign_in_policy SET owners_from = $2, admins_from = $3"
            " WHERE tenant_id = $1",
            [
                (one.tenant_id, *(one.earlier.get(role) for role in _EARLIER))
                for one in policies.values()
            ],
        )
    if await _has(connection, "local_login"):
        await connection.executemany(
            "UPDATE identity.sign_in_policy SET local_login = $2 WHERE tenant_id = $1",
            [(one.tenant_id, one.local_login) for one in policies.values()],
        )


async def _policies(connection: Connection) -> list[Policy]:
    rows = await connection.fetch(
        f"SELECT {_POLICY},"
        # An older database has no such columns.
        " (to_jsonb(p) ->> 'owners_from')::timestamptz AS owners_from,"
        " (to_jsonb(p) ->> 'admins_from')::timestamptz AS admins_from,"
        " coalesce(to_jsonb(p) ->> 'local_login', 'all') AS local_login"
        " FROM identity.sign_in_policy p"
    )
    return [
        Policy(
            row["tenant_id"],
            row["mfa"],
            row["mfa_required_from"],
            row["updated_at"],
            {role: row[name] for role, name in _EARLIER.items() if row[name] is not None},
            row["local_login"],
        )
        for row in rows
    ]


async def _has(connection: Connection, column: str) -> bool:
    """Whether policies have a column; an older archive does not."""
    found = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_attribute WHERE attname = $1"
        " AND attrelid = 'identity.sign_in_policy'::regclass)",
        column,
    )
    return bool(found)


async def _there(connection: Connection, table: str = "totp") -> bool:
    found = await connection.fetchval("SELECT to_regclass($1)", f"identity.{table}")
    return found is not None
