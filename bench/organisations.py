"""Organisations in bulk with policies of their own and of groups, as real publishes leave them.

The first one is made through the API. The others are copies of its rows, written by PostgreSQL
itself, each with its own code where the first one's stands in its policies. Signatures of published
versions are copied as they are; what the service puts together of them, it signs itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import asyncpg
import httpx

from bench.fleet import DEVICE_ID, LONG_AGO, tidy

_CODE: Final = "school-{:07}"
"""Also in the policies of the organisation; all are of the same length."""
_PATIENCE: Final = 1800.0
_THEIRS: Final = "md5(o.id::text || t.{})::uuid"
"""An id of a copy, the same wherever it is named."""
_TEXT: Final = "replace(t.{}, o.first_code, o.code)"
_BYTES: Final = (
    "'\\x' || encode(convert_to(replace(convert_from(t.{}, 'UTF8'), o.first_code, o.code), 'UTF8'),"
    " 'hex')"
)
_TARGETS: Final = (
    "(SELECT replace(t.targets, g.id::text, md5(o.id::text || g.id)::uuid::text)"
    " FROM policy.groups AS g WHERE g.tenant_id = $1 AND position(g.id::text IN t.targets) > 0)"
)
_MADE: Final = (
    "SELECT (SELECT count(*) FROM policy.editions WHERE recipe LIKE $1 AND recipe <> '[]')"
    " + (SELECT count(*) FROM policy.profiles WHERE recipe LIKE $1)"
)
_NOW: Final = "pg_current_xact_id()::text"
_NOT_TOLD: Final = f"{LONG_AGO}::text"
_OWNED: Final = {"tenant_id": "o.id"}
_ROWS: Final[tuple[tuple[str, Mapping[str, str]], ...]] = (
    ("identity.tenant", {"id": "o.id", "code": "o.code", "changed_xid": _NOW}),
    (
        "enrollment.device_group",
        {**_OWNED, "id": _THEIRS.format("id"), "changed_xid": _NOT_TOLD},
    ),
    ("policy.groups", {**_OWNED, "id": _THEIRS.format("id"), "changed_xid": _NOW}),
    (
        "policy.policies",
        {
            **_OWNED,
            "id": _THEIRS.format("id"),
            "authored": _TEXT.format("authored"),
            "targets": _TARGETS,
        },
    ),
    (
        "policy.versions",
        {
            **_OWNED,
            "policy_id": _THEIRS.format("policy_id"),
            "authored": _TEXT.format("authored"),
            "document": _BYTES.format("document"),
            "statement_payload": _BYTES.format("statement_payload"),
            "layer": _TEXT.format("layer"),
            "targets": _TARGETS,
        },
    ),
    ("policy.version_counters", _OWNED),
    (
        "policy.assignments",
        {
            **_OWNED,
            "id": _THEIRS.format("id"),
            "policy_id": _THEIRS.format("policy_id"),
            "changed_xid": _NOW,
        },
    ),
    (
        "policy.variable",
        {**_OWNED, "id": _THEIRS.format("id"), "value": _TEXT.format("value")},
    ),
    ("policy.own_values", {**_OWNED, "id": _THEIRS.format("id"), "changed_xid": _NOW}),
    (
        "policy.bindings",
        {
            **_OWNED,
            "id": _THEIRS.format("id"),
            "target_id": _THEIRS.format("target_id"),
            "policy_id": _THEIRS.format("policy_id"),
            "changed_xid": _NOW,
        },
    ),
)
"""What is copied, in the order of the references between them, and what a copy has otherwise."""


@dataclass(slots=True)
class Organisations:
    """Those that were made, below one reseller."""

    reseller_id: str
    ids: list[str]
    group_ids: list[list[str]]
    """Of each organisation."""

    def owner_of(self, device: int) -> str:
        """The organisation of the device with a number, from 1: they take turns."""
        return self.ids[(device - 1) % len(self.ids)]


def own_policy(code: str) -> dict[str, Any]:
    """What an organisation says to all of its devices; as long as a school's policy is."""
    apps = [{"id": f"org.example.Subject{n}", "source": "flathub"} for n in range(10)]
    pages = f"https://{code}.example"
    return {
        "apps": {"required": apps},
        "updates": {"channel": "stable", "maintenance_windows": ["Mon-Fri 16:00-20:00"]},
        "browser": {
            "homepage": pages,
            "managed_bookmarks": [
                {"name": f"Subject {n}", "url": f"{pages}/subjects/{n}"} for n in range(12)
            ],
        },
        "network": {
            "wifi": [
                {"ssid": f"{code} {what}", "security": "wpa-psk", "passphrase": f"{code}-{what}"}
                for what in ("lessons", "staff")
            ]
        },
    }


def group_policy(code: str, number: int) -> dict[str, Any]:
    """What it says to one of its groups."""
    return {
        "apps": {"required": [{"id": f"org.example.Group{number}", "source": "flathub"}]},
        "browser": {"homepage": f"https://{code}.example/groups/{number}"},
    }


def reseller_policy(number: int) -> dict[str, Any]:
    """What a district says to all of its schools; with each number something else."""
    page = {"name": "District", "url": f"https://district.example/{number}"}
    return {
        "browser": {"managed_bookmarks": [page]},
        "security": {"selinux_enforce": True, "ssh_enabled": False},
    }


def template(number: int) -> dict[str, Any]:
    """The same as a template of the size of a school's policy, with a page of each school."""
    document = reseller_policy(number)
    more = own_policy("district")
    pages = document["browser"]["managed_bookmarks"] + more["browser"]["managed_bookmarks"]
    own = [{"name": f"Page {n}", "url": f"https://{{{{var.host}}}}/{n}"} for n in range(3)]
    browser = {"homepage": f"https://{{{{var.host}}}}/{number}"}
    browser |= {"managed_bookmarks": [*pages, *own]}
    return {"template": {**more, **document, "browser": browser}}


async def make(
    client: httpx.Client,
    connection: asyncpg.Connection,
    count: int,
    groups: int,
    *,
    with_policies: bool = True,
    with_values: bool = False,
) -> Organisations:
    """Makes organisations below a new reseller.

    Args:
        client: logged in as an Owner of the root tenant.
        connection: a connection that may write every table.
        count: how many, at least one.
        groups: of each, every one with a policy where the product knows policies of groups.
        with_policies: whether they have policies of their own; not without for groups.
        with_values: whether each has a value of its own in what `template` makes.
    """
    reseller = _post(client, "/api/tenants", {"name": "District", "reseller": True})["id"]
    code = _CODE.format(0)
    first = _post(client, "/api/tenants", {"name": "School", "parentId": reseller, "code": code})
    org_id = first["id"]
    if with_values:
        host = {"name": "host", "value": "district.example", "overridable": True}
        _post(client, "/api/policy-variables", {**host, "orgId": reseller})
        own = {"name": "host", "value": f"{code}.example", "orgId": org_id}
        _post(client, "/api/policy-variables", own)
    group_ids = []
    for number in range(groups):
        group = {"orgId": org_id, "name": f"Group {number}", "alias": f"group-{number}"}
        group_ids.append(_post(client, "/api/device-groups", group)["id"])
    if with_policies:
        publish(client, org_id, own_policy(code))
        if await connection.fetchval("SELECT to_regclass('policy.bindings') IS NOT NULL"):
            for number, group_id in enumerate(group_ids):
                publish(client, org_id, group_policy(code, number), group_id)
    async with connection.transaction():
        await connection.execute("SET LOCAL synchronous_commit = off")
        await connection.execute(
            "CREATE TEMPORARY TABLE bench_organisation ON COMMIT DROP AS"
            " SELECT md5($1 || n)::uuid AS id, 'school-' || lpad(n::text, 7, '0') AS code,"
            f" '{code}' AS first_code FROM generate_series(1, $2::integer - 1) AS n",
            org_id,
            count,
        )
        for table, changes in _ROWS:
            await _copy(connection, UUID(org_id), table, changes)
        found = await connection.fetch("SELECT id FROM bench_organisation ORDER BY code")
        copied = await connection.fetch(
            "SELECT array_agg(md5(o.id::text || t.id)::uuid ORDER BY t.n) AS ids"
            " FROM bench_organisation AS o,"
            " unnest($1::uuid[]) WITH ORDINALITY AS t (id, n) GROUP BY o.code ORDER BY o.code",
            [UUID(one) for one in group_ids],
        )
    await tidy(connection, *[table for table, _ in _ROWS if await _has(connection, table)])
    theirs = [[str(one) for one in row["ids"]] for row in copied] or [[] for _ in found]
    return Organisations(
        reseller, [org_id, *(str(row["id"]) for row in found)], [group_ids, *theirs]
    )


async def register(
    connection: asyncpg.Connection, organisations: Organisations, devices: int, first: int = 1
) -> None:
    """Registers devices, by turns in the organisations, and there by turns in the groups.

    The registry's feed does not tell of them: policy knows them already.

    Args:
        devices: the number of the last one.
        first: that of the first one.
    """
    org_ids = [UUID(one) for one in organisations.ids]
    group_ids = [UUID(one) for ids in organisations.group_ids for one in ids]
    groups = len(organisations.group_ids[0])
    made = (
        f"SELECT {DEVICE_ID} AS id, ($2::uuid[])[(n - 1) % $4::bigint + 1] AS tenant_id, n,"
        " CASE WHEN $5::bigint = 0 THEN '{}'::uuid[] ELSE"
        " ARRAY[($3::uuid[])[(n - 1) % $4 * $5 + (n - 1) / $4 % $5 + 1]] END AS group_ids"
        " FROM generate_series($6::bigint, $1::bigint) AS n"
    )
    numbers = (devices, org_ids, group_ids, len(org_ids), groups, first)
    statements = {
        "enrollment.device": "INSERT INTO enrollment.device (id, tenant_id, serial, model,"
        " cpu_model, cpu_count, total_ram_bytes, has_tpm, status, token_version, fingerprint,"
        " created_at, enrolled_at, changed_xid, group_ids, groups_computed_at) SELECT m.id,"
        " m.tenant_id, 'BENCH-' || m.n, 'Evergreen Book 14', 'Simulated', 4, 8589934592, true,"
        " 'active', 1, sha256(m.n::text::bytea), now() - interval '9 days',"
        f" now() - interval '9 days', {LONG_AGO}, m.group_ids, now()",
        "policy.devices": "INSERT INTO policy.devices (device_id, tenant_id, status)"
        " SELECT m.id, m.tenant_id, 'active'",
        "policy.memberships": "INSERT INTO policy.memberships"
        " (device_id, tenant_id, group_ids, revision) SELECT m.id, m.tenant_id, m.group_ids, 1",
    }
    async with connection.transaction():
        await connection.execute("SET LOCAL synchronous_commit = off")
        for table, insert in statements.items():
            if await _has(connection, table) and (groups or table != "policy.memberships"):
                await connection.execute(
                    f"{insert} FROM ({made}) AS m", *numbers, timeout=_PATIENCE
                )
    await tidy(connection, *[table for table in statements if await _has(connection, table)])


async def until_put_together(
    connection: asyncpg.Connection, editions: int, recipe: str = "%"
) -> None:
    """Waits until the service has made so many editions of recipes like that.

    Args:
        editions: for organisations, and for groups.
        recipe: a pattern of LIKE.

    Raises:
        TimeoutError: it does not come to so many.
    """
    if not await _has(connection, "policy.profiles"):
        return
    async with asyncio.timeout(_PATIENCE):
        while await connection.fetchval(_MADE, recipe) < editions:
            await asyncio.sleep(1)


def publish(
    client: httpx.Client, tenant_id: str, document: dict[str, Any], group_id: str | None = None
) -> int:
    """Puts a new policy into force for a tenant, or for a group of it; answers its version."""
    policy: dict[str, Any] = {"name": "Bench", "orgId": tenant_id, "bundle": document}
    if group_id is not None:
        policy |= {"name": f"Bench {group_id}", "targets": {"groupIds": [group_id]}}
    made = _post(client, "/api/policies", policy)
    return int(_post(client, f"/api/policies/{made['id']}/publish", {})["version"])


async def _copy(
    connection: asyncpg.Connection, first: UUID, table: str, changes: Mapping[str, str]
) -> None:
    """Copies the rows of the first organisation for all others, as far as columns are known."""
    if not await _has(connection, table):
        return
    schema, name = table.split(".")
    known = await connection.fetch(
        "SELECT column_name FROM information_schema.columns"
        " WHERE table_schema = $1 AND table_name = $2",
        schema,
        name,
    )
    there = {row["column_name"] for row in known}
    pairs = ", ".join(f"'{column}', {sql}" for column, sql in changes.items() if column in there)
    whose = "id" if table == "identity.tenant" else "tenant_id"
    await connection.execute(
        f"INSERT INTO {table} SELECT r.* FROM {table} AS t CROSS JOIN bench_organisation AS o"
        f" CROSS JOIN LATERAL jsonb_populate_record(t, jsonb_build_object({pairs})) AS r"
        f" WHERE t.{whose} = $1",
        first,
        timeout=_PATIENCE,
    )


async def _has(connection: asyncpg.Connection, table: str) -> bool:
    found: bool = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table)
    return found


def _post(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = client.post(path, json=body).raise_for_status().json()
    return found
