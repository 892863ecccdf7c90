"""The SQL of simulations: which versions are in force, what they say, and devices by what makes
their policy."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection
from services.policy.authoring.layering import own_of
from services.policy.authoring.stored_form import joined
from services.policy.layers.merging import Level, Merging, Source
from services.policy.simulation.made import Ran
from services.policy.simulation.places import Rank, device_rank, group_rank
from services.policy.stamps import store as stamps_store
from services.policy.stamps.domain import Targets
from services.policy.vault import NAMES_SECRETS, Vault, of_version

_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Alike:
    """Devices of an organisation in the same groups, which have the same version."""

    tenant_id: UUID
    group_ids: tuple[UUID, ...]
    own: UUID | None
    """The device itself, where it has or would have a policy of its own."""
    gate: UUID | None
    """The enforced gate that they fall short of."""
    version: int
    """What they say they have; 0 for nothing."""
    devices: int
    sample: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class InForce:
    """The versions in force, without what they say."""

    of_tenants: dict[UUID, Source]
    """The level of each is to be set."""
    bound: dict[UUID, dict[Rank, Source]]
    """Those for groups and devices, by organisation."""
    gates: dict[UUID, dict[UUID, Source]]
    """Those for devices that fall short of enforced gates, by organisation and gate."""
    leaves: dict[tuple[UUID, int], frozenset[str]]
    """What versions for all devices leave to tenants below, by tenant and number."""


async def alike(
    connection: Connection, tenant_ids: Sequence[UUID], own: Collection[UUID]
) -> AsyncIterator[Alike]:
    """The active devices of organisations.

    Args:
        connection: of the organisations.
        tenant_ids: the organisations.
        own: devices that are looked at one by one.
    """
    rows = connection.cursor(
        "SELECT d.tenant_id, coalesce(m.group_ids, '{}') AS group_ids,"
        " CASE WHEN d.device_id = ANY ($2) THEN d.device_id END AS own,"
        " g.id AS gate, coalesce(a.version, 0) AS version, count(*) AS devices,"
        " (array_agg(d.device_id ORDER BY d.device_id))[1:5] AS sample"
        " FROM policy.devices d"
        " LEFT JOIN policy.memberships m"
        " ON m.device_id = d.device_id AND m.tenant_id = d.tenant_id"
        " LEFT JOIN policy.restricted_device r"
        " ON r.device_id = d.device_id AND r.tenant_id = d.tenant_id"
        " LEFT JOIN policy.gate g ON g.id = r.gate_id AND g.mode = 'ENFORCE'"
        " LEFT JOIN policy.applied_versions a"
        " ON a.device_id = d.device_id AND a.tenant_id = d.tenant_id"
        " WHERE d.tenant_id = ANY ($1) AND d.status = 'active'"
        " GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5",
        list(tenant_ids),
        list(own),
        prefetch=_AT_ONCE,
    )
    async for row in rows:
        yield Alike(
            row["tenant_id"],
            tuple(row["group_ids"]),
            row["own"],
            row["gate"],
            row["version"],
            row["devices"],
            tuple(row["sample"]),
        )


async def count_bound(connection: Connection, tenant_ids: Sequence[UUID]) -> dict[UUID, int]:
    """For how many groups and devices of organisations something is in force; not 0."""
    rows = await connection.fetch(
        "SELECT tenant_id, count(*) AS bound FROM policy.bindings"
        " WHERE tenant_id = ANY ($1) AND version IS NOT NULL GROUP BY 1",
        list(tenant_ids),
    )
    return {row["tenant_id"]: row["bound"] for row in rows}


async def in_force(
    connection: Connection, tenant_ids: Collection[UUID], org_ids: Collection[UUID]
) -> InForce:
    """What is in force, all as of one moment: it is one statement.

    Args:
        connection: that sees all rows.
        tenant_ids: for all of their devices.
        org_ids: for their groups and devices.
    """
    rows = await connection.fetch(
        "SELECT a.tenant_id, NULL AS kind, NULL::uuid AS target_id, NULL AS alias, 0 AS priority,"
        " a.policy_id, a.version, p.name, v.leaves FROM policy.assignments a"
        " JOIN policy.versions v ON v.tenant_id = a.tenant_id AND v.version = a.version"
        " LEFT JOIN policy.policies p ON p.id = a.policy_id AND p.tenant_id = a.tenant_id"
        " WHERE a.tenant_id = ANY ($1) AND a.version IS NOT NULL UNION ALL"
        " SELECT b.tenant_id, b.kind, b.target_id, g.alias, coalesce(g.priority, 0),"
        " b.policy_id, b.version, p.name, '{}' FROM policy.bindings b"
        " LEFT JOIN policy.groups g ON g.id = b.target_id"
        " LEFT JOIN policy.policies p ON p.id = b.policy_id AND p.tenant_id = b.tenant_id"
        " WHERE b.tenant_id = ANY ($2) AND b.version IS NOT NULL"
        " AND (b.kind = 'device' OR NOT g.deleted) UNION ALL"
        " SELECT e.tenant_id, 'gate', e.id, g.alias, 0, e.otherwise_policy_id, e.otherwise_version,"
        " p.name, '{}' FROM policy.gate e LEFT JOIN policy.groups g ON g.id = e.target_id"
        " LEFT JOIN policy.policies p ON p.id = e.otherwise_policy_id"
        " AND p.tenant_id = e.tenant_id WHERE e.tenant_id = ANY ($2) AND e.mode = 'ENFORCE'",
        list(tenant_ids),
        list(org_ids),
    )
    found = InForce({}, {}, {}, {})
    for row in rows:
        source = Source(
            Level.ORG, row["tenant_id"], row["policy_id"], row["name"] or "", row["version"]
        )
        if row["kind"] is None:
            found.of_tenants[source.tenant_id] = source
            found.leaves[source.tenant_id, source.version] = frozenset(row["leaves"])
            continue
        if row["kind"] == "gate":
            gated = replace(
                source,
                level=Level.GATE,
                target_id=row["target_id"],
                target_name=row["alias"] or "",
            )
            found.gates.setdefault(source.tenant_id, {})[row["target_id"]] = gated
            continue
        rank, source = _for_target(row, source)
        found.bound.setdefault(source.tenant_id, {})[rank] = source
    return found


def _for_target(row: asyncpg.Record, source: Source) -> tuple[Rank, Source]:
    target_id = row["target_id"]
    if row["kind"] == "device":
        return device_rank(target_id), replace(source, level=Level.DEVICE, target_id=target_id)
    return (
        group_rank(target_id, row["priority"]),
        replace(source, level=Level.GROUP, target_id=target_id, target_name=row["alias"]),
    )


async def layers_of(
    connection: Connection, vault: Vault, wanted: Sequence[tuple[UUID, int]]
) -> list[tuple[tuple[UUID, int], str]]:
    """The layers of published versions as `Own.read` takes them.

    Of those of the last release, which have none, it is made of what they have.
    """
    rows = await connection.fetch(
        "SELECT v.tenant_id, v.version, v.layer,"
        " CASE WHEN v.layer IS NULL THEN v.authored END AS authored,"
        " CASE WHEN v.layer IS NULL THEN v.form_extra END AS form_extra,"
        " CASE WHEN v.layer IS NULL THEN v.document END AS document, v.sealed_secrets"
        " FROM unnest($1::uuid[], $2::bigint[]) AS w (tenant_id, version)"
        " JOIN policy.versions v ON v.tenant_id = w.tenant_id AND v.version = w.version",
        [tenant_id for tenant_id, _ in wanted],
        [version for _, version in wanted],
    )
    return [((row["tenant_id"], row["version"]), _layer(vault, row)) for row in rows]


def _layer(vault: Vault, row: asyncpg.Record) -> str:
    where = of_version(row["tenant_id"], row["version"])
    if row["layer"] is not None:
        return str(vault.opened(where, row, "layer")["layer"])
    found = vault.opened(where, row, "authored", "form_extra", "document")
    authored = json.loads(joined(found["authored"], found["form_extra"]))
    return own_of(authored, found["document"], Merging()).text()


_ALONE: Final = f"(NOT v.inherits AND v.sealed_secrets IS NULL AND v.authored !~ '{NAMES_SECRETS}')"
"""Whether a version's secrets may be compared: none is of above, and none has a name. Of a sealed
version that is not known."""


async def ran(connection: Connection, vault: Vault, org_id: UUID, version: int) -> Ran | None:
    """What a number of an organisation stands for; `None` for nothing that is known."""
    row = await connection.fetchrow(
        "SELECT d.tenant_id, d.digest, d.body, d.sealed_secrets,"
        f" coalesce({_ALONE} AND v.targets IS NULL, false) AS alone"
        " FROM policy.stamps s JOIN policy.documents d"
        " ON d.tenant_id = s.document_tenant AND d.digest = s.digest"
        " LEFT JOIN policy.versions v ON v.tenant_id = s.tenant_id AND v.version = s.version"
        " AND v.tenant_id = s.document_tenant"
        " WHERE s.tenant_id = $1 AND s.version = $2",
        org_id,
        version,
    )
    if row is not None:
        return Ran(stamps_store.body_of(vault, row), alone=row["alone"])
    former = await stamps_store.former(connection, vault, org_id, version)
    if former is None:
        return None
    alone = await connection.fetchval(
        f"SELECT {_ALONE} FROM policy.versions v WHERE v.tenant_id = $1 AND v.version = $2",
        org_id,
        version,
    )
    return Ran(former[1].body, alone=bool(alone))


async def to_have(
    connection: Connection, vault: Vault, org_id: UUID, targets: Targets
) -> bytes | None:
    """The document that devices are to have where what is in force does not fit together.

    It is what was made for them last, else what is for all devices of the organisation.
    """
    row = await connection.fetchrow(
        "SELECT d.tenant_id, d.digest, d.body, d.sealed_secrets"
        " FROM (SELECT e.document_tenant, e.digest, 1 AS nth FROM policy.editions e"
        " WHERE e.tenant_id = $1 AND $2::uuid[] = '{}' UNION ALL"
        " SELECT p.document_tenant, p.digest, 1 FROM policy.profiles p"
        " WHERE p.tenant_id = $1 AND p.targets = $2 UNION ALL"
        " SELECT e.document_tenant, e.digest, 2 FROM policy.editions e"
        " LEFT JOIN policy.assignments a ON a.tenant_id = e.tenant_id WHERE e.tenant_id = $1"
        " AND e.own_version IS NOT DISTINCT FROM a.version UNION ALL"
        " SELECT s.document_tenant, s.digest, 3 FROM policy.assignments a"
        " JOIN policy.stamps s ON s.tenant_id = a.tenant_id AND s.version = a.version"
        " WHERE a.tenant_id = $1) AS f"
        " JOIN policy.documents d ON d.tenant_id = f.document_tenant AND d.digest = f.digest"
        " ORDER BY f.nth LIMIT 1",
        org_id,
        list(targets),
    )
    return None if row is None else stamps_store.body_of(vault, row)
