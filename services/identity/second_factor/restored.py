"""What a restore has to know of second factors.

Where the database that is replaced can be read, factors and policies are what they were last. Where
only the audit log is left, what was removed or used since the backup opens nothing; what was set up
since is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from contract.events.identity import (
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

_COLUMNS: Final = {
    "totp": "id, account_id, sealed_secrets, created_at, confirmed_at, last_step",
    "recovery_code": "id, account_id, sealed_secrets, used_at",
    "passkey": "id, account_id, credential_id, site, public_key, sign_count, backed_up, aaguid,"
    " name, created_at, last_used_at",
}
_POLICY: Final = "tenant_id, mfa, mfa_required_from, updated_at"
_GONE: Final = frozenset({SecondFactorDisabled.NAME, SecondFactorsReset.NAME})


@dataclass(slots=True)
class KnownFactors:
    """What is known of second factors since the backup."""

    users: frozenset[UUID] = frozenset()
    """The users of the database that is replaced; nobody where it cannot be read."""
    rows: dict[str, Sequence[Sequence[Any]]] = field(default_factory=dict)
    """Their rows, by table."""
    policies: Sequence[Sequence[Any]] = ()
    changed_apps: set[UUID] = field(default_factory=set)
    """Users whose app was removed, or another one set up."""
    changed_codes: set[UUID] = field(default_factory=set)
    """Users who made recovery codes, or lost them."""
    used_codes: set[UUID] = field(default_factory=set)
    removed_passkeys: set[UUID] = field(default_factory=set)
    reset: set[UUID] = field(default_factory=set)
    """Users whose factors were all removed."""
    told_policies: dict[UUID, tuple[str, datetime, datetime, str]] = field(default_factory=dict)
    """By tenant, as the log has them: whom, from when on, when that was decided, and who logs in
    with what they have here."""

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
        local = "local_login" if await _has_local_logins(connection) else "'all'"
        found = await connection.fetch(f"SELECT {_POLICY}, {local} FROM identity.sign_in_policy")
        self.policies = [tuple(row) for row in found]

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
            self.told_policies[UUID(entry.name)] = (
                str(entry.after["mfa"]),
                datetime.fromisoformat(since) if since else entry.at,
                entry.at,
                # The release before knows no other.
                str(entry.after.get("localLogin") or "all"),
            )


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
    told = [(tenant_id, *told) for tenant_id, told in known.told_policies.items()]
    await connection.executemany(
        f"INSERT INTO identity.sign_in_policy ({_POLICY})"
        " SELECT $1, $2, $3::timestamptz, $4::timestamptz"
        " WHERE EXISTS (SELECT FROM identity.tenant WHERE id = $1)"
        " ON CONFLICT (tenant_id) DO UPDATE SET mfa = excluded.mfa,"
        " mfa_required_from = excluded.mfa_required_from, updated_at = excluded.updated_at",
        [policy[:4] for policy in (*told, *known.policies)],
    )
    if await _has_local_logins(connection):
        await connection.executemany(
            "UPDATE identity.sign_in_policy SET local_login = $2 WHERE tenant_id = $1",
            [(policy[0], policy[4]) for policy in (*told, *known.policies)],
        )
    # A code of the last minute may have been used since the backup.
    await connection.execute(
        "UPDATE identity.totp SET last_step = greatest(last_step,"
        f" floor(extract(epoch FROM now()) / {STEP_SECONDS})::bigint + 1)"
    )


async def _has_local_logins(connection: Connection) -> bool:
    found = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_attribute WHERE attname = 'local_login'"
        " AND attrelid = 'identity.sign_in_policy'::regclass)"
    )
    return bool(found)


async def _there(connection: Connection, table: str = "totp") -> bool:
    found = await connection.fetchval("SELECT to_regclass($1)", f"identity.{table}")
    return found is not None
