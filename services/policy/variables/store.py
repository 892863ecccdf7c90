"""The SQL of variables and secrets."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.rpc.pagination import Page
from services.policy.authoring.filling import OwnValues
from services.policy.authoring.templates import NO_VALUES, Values
from services.policy.variables.domain import Taking, Use, Variable, already_there
from services.policy.vault import Vault, of_variable

_COLUMNS: Final = (
    "v.id, v.tenant_id, v.name, v.is_secret, v.value, v.fingerprint, v.revision, v.updated_at,"
    " v.updated_by, v.set_name, v.set_revision, v.overridable"
)


async def list_variables(
    connection: Connection, scope: Scope, after: UUID | None, limit: int
) -> Page[Variable, UUID]:
    """The variables of a scope, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM policy.variable v"
        " WHERE ($1::uuid[] IS NULL OR v.tenant_id = ANY ($1))"
        " AND ($2::uuid IS NULL OR v.id > $2) ORDER BY v.id LIMIT $3",
        scope.tenant_ids,
        after,
        limit + 1,
    )
    return Page.of([Variable(**row) for row in rows], limit, lambda one: one.id)


async def get(
    connection: Connection, scope: Scope, variable_id: UUID, *, for_update: bool = False
) -> Variable | None:
    """One variable; with `for_update` nobody else changes it until the transaction ends."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM policy.variable v WHERE v.id = $1"
        f" AND ($2::uuid[] IS NULL OR v.tenant_id = ANY ($2)){' FOR UPDATE' if for_update else ''}",
        variable_id,
        scope.tenant_ids,
    )
    return None if row is None else Variable(**row)


async def count(connection: Connection, tenant_id: UUID) -> int:
    """How many a tenant has; holds it for others that add one."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtext('policy:variables'), hashtext($1))", str(tenant_id)
    )
    found: int = await connection.fetchval(
        "SELECT count(*) FROM policy.variable WHERE tenant_id = $1", tenant_id
    )
    return found


async def put(connection: Connection, vault: Vault, variable: Variable, value: str) -> None:
    """Stores a variable, a new one or one that is locked, with its value.

    Templates above may take it: those are told that put layers together.

    Raises:
        DomainError: ALREADY_EXISTS for a name that the tenant has.
    """
    sealed = None
    if variable.is_secret:
        sealed = vault.seal(of_variable(variable.tenant_id, variable.id), value)
    change = await _note_change(connection, variable.tenant_id)
    try:
        await connection.execute(
            "INSERT INTO policy.variable (id, tenant_id, name, is_secret, value, sealed_secrets,"
            " fingerprint, revision, updated_at, updated_by, overridable, change)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT (id) DO UPDATE"
            " SET value = excluded.value, sealed_secrets = excluded.sealed_secrets,"
            " fingerprint = excluded.fingerprint, revision = excluded.revision,"
            " updated_at = excluded.updated_at, updated_by = excluded.updated_by,"
            " overridable = excluded.overridable, change = excluded.change",
            variable.id,
            variable.tenant_id,
            variable.name,
            variable.is_secret,
            None if variable.is_secret else value,
            sealed,
            variable.fingerprint,
            variable.revision,
            variable.updated_at,
            variable.updated_by,
            variable.overridable,
            change,
        )
    except asyncpg.UniqueViolationError as there:
        raise already_there(variable.name) from there


async def _note_change(connection: Connection, tenant_id: UUID) -> int:
    """Tells that a value of a tenant changes; answers a number that no change of it had before."""
    change: int = await connection.fetchval(
        "INSERT INTO policy.own_values (tenant_id, revision) VALUES ($1, 1)"
        " ON CONFLICT (tenant_id) DO UPDATE SET revision = policy.own_values.revision + 1,"
        " changed_xid = pg_current_xact_id() RETURNING revision",
        tenant_id,
    )
    return change


async def hold(
    connection: Connection, tenant_id: UUID, variable_ids: Collection[UUID]
) -> list[Variable]:
    """Variables that nobody else changes until the transaction ends."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM policy.variable v WHERE v.tenant_id = $1 AND v.id = ANY ($2)"
        " ORDER BY v.id FOR UPDATE",
        tenant_id,
        list(variable_ids),
    )
    return [Variable(**row) for row in rows]


async def policies_with(
    connection: Connection, tenant_id: UUID, variables: Collection[Variable]
) -> list[UUID]:
    """The policies that name any of some variables."""
    rows = await connection.fetch(
        "SELECT p.id FROM policy.policies p WHERE p.tenant_id = $1 AND p.uses && $2::text[]",
        tenant_id,
        [one.reference for one in variables],
    )
    return [row["id"] for row in rows]


async def leaving(
    connection: Connection, tenant_ids: Collection[UUID], reference: str
) -> list[Taking]:
    """The policies in force for tenants that leave a value to those below.

    Args:
        connection: that sees these tenants.
        tenant_ids: those above.
        reference: what templates call the value.
    """
    rows = await connection.fetch(
        "SELECT coalesce(p.name, '') AS name, a.tenant_id, a.version FROM policy.assignments a"
        " JOIN policy.versions v ON v.tenant_id = a.tenant_id AND v.version = a.version"
        " LEFT JOIN policy.policies p ON p.tenant_id = a.tenant_id AND p.id = a.policy_id"
        " WHERE a.tenant_id = ANY ($1) AND $2 = ANY (v.leaves) ORDER BY a.tenant_id",
        list(tenant_ids),
        reference,
    )
    return [Taking(**row) for row in rows]


async def left_open(connection: Connection, tenant_ids: Collection[UUID]) -> set[str]:
    """What policies in force for tenants leave to those below, by what templates call it.

    Args:
        connection: that sees these tenants.
        tenant_ids: those above.
    """
    rows = await connection.fetch(
        "SELECT DISTINCT unnest(v.leaves) AS reference FROM policy.assignments a"
        " JOIN policy.versions v ON v.tenant_id = a.tenant_id AND v.version = a.version"
        " WHERE a.tenant_id = ANY ($1)",
        list(tenant_ids),
    )
    return {row["reference"] for row in rows}


async def differing(connection: Connection, tenant_ids: Collection[UUID], limit: int) -> list[UUID]:
    """Tenants among some that have policies or values of their own.

    Args:
        connection: that sees these tenants.
    """
    rows = await connection.fetch(
        "SELECT a.tenant_id FROM policy.assignments a"
        " WHERE a.tenant_id = ANY ($1) AND a.version IS NOT NULL"
        " UNION SELECT v.tenant_id FROM policy.variable v WHERE v.tenant_id = ANY ($1)"
        " ORDER BY tenant_id LIMIT $2",
        list(tenant_ids),
        limit,
    )
    return [row["tenant_id"] for row in rows]


async def held(connection: Connection, tenant_ids: Collection[UUID]) -> set[UUID]:
    """Organisations among some whose layers do not fit together."""
    rows = await connection.fetch(
        "SELECT e.tenant_id FROM policy.editions e"
        " WHERE e.tenant_id = ANY ($1) AND e.problem <> ''",
        list(tenant_ids),
    )
    return {row["tenant_id"] for row in rows}


async def put_into_set(connection: Connection, variable: Variable, set_name: str) -> None:
    """Says which set a variable belongs to, as it is now."""
    await connection.execute(
        "UPDATE policy.variable SET set_name = $3, set_revision = revision"
        " WHERE id = $1 AND tenant_id = $2",
        variable.id,
        variable.tenant_id,
        set_name,
    )


async def delete(connection: Connection, variable: Variable) -> None:
    """Deletes a variable."""
    await connection.execute(
        "DELETE FROM policy.variable WHERE id = $1 AND tenant_id = $2",
        variable.id,
        variable.tenant_id,
    )
    await _note_change(connection, variable.tenant_id)


async def value_of(connection: Connection, vault: Vault, variable: Variable) -> str:
    """The value of a variable or secret.

    Raises:
        SealingError: it does not open.
    """
    found = await values(connection, vault, variable.tenant_id, [variable.reference])
    return found.of[variable.reference]


async def values(
    connection: Connection,
    vault: Vault,
    tenant_id: UUID,
    references: Collection[str],
    *,
    to_keep: bool = False,
) -> Values:
    """The values that a tenant has, by what templates call them.

    Args:
        to_keep: they are not deleted before the transaction ends, either.

    Raises:
        SealingError: one does not open.
    """
    if not references:
        return NO_VALUES
    rows = await connection.fetch(
        "SELECT id, name, is_secret, value, sealed_secrets, revision, overridable"
        " FROM policy.variable"
        " WHERE tenant_id = $1 AND name = ANY ($2) ORDER BY id"
        f"{' FOR SHARE' if to_keep else ''}",
        tenant_id,
        [one.partition(".")[2] for one in references],
    )
    return _read(vault, tenant_id, rows, references)


async def own_values(
    connection: Connection,
    vault: Vault,
    tenant_ids: Collection[UUID],
    references: Collection[str],
) -> dict[UUID, OwnValues]:
    """The values that tenants have of some references, by tenant; without those that have none.
    All are as of one moment.

    Raises:
        SealingError: one does not open.
    """
    rows = await connection.fetch(
        "SELECT tenant_id, id, name, is_secret, value, sealed_secrets, revision, overridable,"
        " change FROM policy.variable WHERE tenant_id = ANY ($1) AND name = ANY ($2)",
        list(tenant_ids),
        [one.partition(".")[2] for one in references],
    )
    by_tenant: dict[UUID, list[asyncpg.Record]] = {}
    for row in rows:
        if _reference(row) in references:
            by_tenant.setdefault(row["tenant_id"], []).append(row)
    return {
        tenant_id: OwnValues(
            {_reference(row): row["change"] for row in some},
            _read(vault, tenant_id, some, references),
        )
        for tenant_id, some in by_tenant.items()
    }


def _reference(row: asyncpg.Record) -> str:
    return f"{'secret' if row['is_secret'] else 'var'}.{row['name']}"


def _read(
    vault: Vault,
    tenant_id: UUID,
    rows: Iterable[asyncpg.Record],
    references: Collection[str],
) -> Values:
    found: dict[str, str] = {}
    marks: dict[str, str] = {}
    left: set[str] = set()
    for row in rows:
        reference = _reference(row)
        if reference not in references:
            continue
        if row["is_secret"]:
            place = of_variable(tenant_id, row["id"])
            found[reference] = vault.open(place, row["sealed_secrets"])
            marks[reference] = f"{row['id']}/{row['revision']}"
        else:
            found[reference] = row["value"]
        if row["overridable"]:
            left.add(reference)
    return Values(found, marks, frozenset(left))


async def uses(
    connection: Connection, variable: Variable, *, for_update: bool = False
) -> list[Use]:
    """The policies that name a variable, oldest first.

    Args:
        for_update: nobody else changes them until the transaction ends.
    """
    wanted = "p.tenant_id = $1 AND $2 = ANY (p.uses)"
    if for_update:
        # A statement of its own: one that waits for locks sees other tables as they were before.
        await connection.execute(
            f"SELECT FROM policy.policies p WHERE {wanted} ORDER BY p.id FOR UPDATE",
            variable.tenant_id,
            variable.reference,
        )
    rows = await connection.fetch(
        "SELECT id AS policy_id, name, changed_since_publish, in_force,"
        " in_force AND published_at < $3 AS has_older_value"
        " FROM (SELECT p.id, p.name, p.changed_since_publish, v.published_at,"
        " (EXISTS (SELECT FROM policy.assignments a WHERE a.tenant_id = p.tenant_id"
        " AND a.policy_id = p.id) OR EXISTS (SELECT FROM policy.bindings b"
        " WHERE b.tenant_id = p.tenant_id AND b.policy_id = p.id)) AS in_force"
        " FROM policy.policies p LEFT JOIN policy.versions v"
        " ON v.tenant_id = p.tenant_id AND v.version = p.published_version"
        f" WHERE {wanted}) AS used ORDER BY id",
        variable.tenant_id,
        variable.reference,
        variable.updated_at,
    )
    return [Use(**row) for row in rows]
