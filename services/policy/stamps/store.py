"""The SQL of stamps: which number of an organisation stands for which document."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, columns
from servicekit.feeds.feed import Cursor, FeedPage, read_page
from servicekit.observability import logs
from servicekit.security.digests import sha256
from servicekit.security.sealing import SealingError
from services.policy.keys.signing import Statement
from services.policy.stamps.domain import (
    Bound,
    Content,
    Document,
    Edition,
    Known,
    Otherwise,
    Rolling,
    Stamp,
    Standing,
    Targets,
    versions_of,
)
from services.policy.vault import SEALED, Vault, of_document, of_version

log = logs.get(__name__)

_CHANGES_A_PAGE: Final = 1000

CHANGING: Final = (
    "SELECT changed_xid FROM policy.assignments",
    "SELECT changed_xid FROM policy.stamps",
    "SELECT changed_xid FROM policy.editions",
    "SELECT changed_xid FROM policy.bindings",
    "SELECT changed_xid FROM policy.groups",
    "SELECT changed_xid FROM policy.profiles",
    "SELECT changed_xid FROM policy.rollout",
    "SELECT changed_xid FROM policy.gate",
    "SELECT changed_xid FROM policy.own_values",
)
"""What the feed below tells of (`servicekit.feeds.changes`)."""

_FED: Final = (
    "assignments",
    "stamps",
    "editions",
    "bindings",
    "groups",
    "profiles",
    "rollout",
    "gate",
    "own_values",
)
_BEHIND: Final = (
    "(SELECT {0}.changed_xid, {0}.id, {0}.tenant_id FROM policy.{0}"
    " WHERE ({0}.changed_xid, {0}.id) > ($1::text::xid8, $2)"
    " ORDER BY {0}.changed_xid, {0}.id LIMIT $3)"
)


async def changed_since(connection: Connection, cursor: Cursor) -> tuple[FeedPage, set[UUID]]:
    """The organisations with which it stands otherwise than at a cursor."""
    page = await read_page(
        connection,
        "SELECT c.changed_xid::text AS changed_xid, c.id AS key, c.tenant_id FROM"
        f" ({' UNION ALL '.join(map(_BEHIND.format, _FED))}) AS c"
        # By the column: the text of the same name would put 99 behind 100.
        " ORDER BY c.changed_xid, c.id LIMIT $3",
        cursor,
        _CHANGES_A_PAGE,
    )
    return page, {row["tenant_id"] for row in page.rows}


async def standings(connection: Connection, tenant_ids: Iterable[UUID]) -> dict[UUID, Standing]:
    """How it stands with organisations, all as of one moment: it is one statement."""
    rows = await connection.fetch(
        "SELECT w.tenant_id, w.document_tenant, w.digest,"
        " ARRAY(SELECT o.version FROM policy.stamps o WHERE o.tenant_id = w.tenant_id"
        " AND o.document_tenant = w.document_tenant AND o.digest = w.digest AND o.stands"
        " AND o.profile IS NULL ORDER BY o.version) AS versions,"
        " (SELECT max(o.version) FROM policy.stamps o WHERE o.tenant_id = w.tenant_id) AS last"
        " FROM (SELECT t.tenant_id, coalesce(e.document_tenant, s.document_tenant)"
        " AS document_tenant, coalesce(e.digest, s.digest) AS digest"
        " FROM unnest($1::uuid[]) AS t (tenant_id)"
        " LEFT JOIN policy.assignments a ON a.tenant_id = t.tenant_id"
        " LEFT JOIN policy.versions v ON v.tenant_id = a.tenant_id AND v.version = a.version"
        " LEFT JOIN policy.editions k ON k.tenant_id = t.tenant_id"
        # An edition of before another version came into force is out of date.
        " LEFT JOIN policy.editions e ON e.tenant_id = t.tenant_id"
        " AND e.own_version IS NOT DISTINCT FROM a.version"
        # What the release before publishes below others lacks their locks until it is folded.
        " LEFT JOIN policy.stamps s ON s.tenant_id = a.tenant_id AND s.version = a.version"
        " AND (v.layer IS NOT NULL OR e.tenant_id IS NOT NULL OR k.tenant_id IS NULL"
        " OR NOT policy.has_layers_above(k.recipe, k.tenant_id))) AS w",
        list(tenant_ids),
    )
    return {
        row["tenant_id"]: Standing(
            Edition.of(Content(row["document_tenant"], row["digest"]), tuple(row["versions"]))
            if row["versions"]
            else None,
            row["last"] or 0,
        )
        for row in rows
    }


async def known(
    connection: Connection, tenant_ids: Iterable[UUID], org_of: Mapping[UUID, Standing]
) -> dict[UUID, Known]:
    """What is in force for tenants.

    Args:
        org_of: how it stands with them, of which their last numbers are taken.
    """
    wanted = list(tenant_ids)
    rollouts = await _rollouts(connection, wanted)
    bound: dict[UUID, list[Bound]] = {}
    order: dict[UUID, dict[UUID, int]] = {}
    for row in await connection.fetch(
        "SELECT b.tenant_id, b.target_id, b.kind = 'device' AS is_device, o.policy_id, o.version"
        " FROM (SELECT f.tenant_id, f.target_id, f.kind FROM policy.bindings f"
        " WHERE f.tenant_id = ANY ($1) AND f.version IS NOT NULL"
        " UNION SELECT r.tenant_id, t.id, 'group' FROM policy.rollout r"
        " CROSS JOIN LATERAL unnest(r.group_ids) AS t (id) WHERE r.tenant_id = ANY ($1) AND r.live"
        " UNION SELECT r.tenant_id, t.id, 'device' FROM policy.rollout r"
        " CROSS JOIN LATERAL unnest(r.device_ids) AS t (id) WHERE r.tenant_id = ANY ($1) AND r.live"
        ") AS b LEFT JOIN policy.bindings o ON o.tenant_id = b.tenant_id"
        " AND o.target_id = b.target_id AND o.version IS NOT NULL"
        " LEFT JOIN policy.groups g ON g.id = b.target_id"
        f" WHERE b.kind = 'device' OR NOT g.deleted ORDER BY {WEAKEST_FIRST}",
        wanted,
    ):
        places = order.setdefault(row["tenant_id"], {})
        places[row["target_id"]] = len(places)
        if row["version"] is not None:
            bound.setdefault(row["tenant_id"], []).append(
                Bound(row["target_id"], row["is_device"], row["policy_id"], row["version"])
            )
    profiles: dict[UUID, dict[Targets, Standing]] = {}
    for row in await connection.fetch(f"{_PROFILES} WHERE p.tenant_id = ANY ($1)", wanted):
        last = org_of[row["tenant_id"]].last if row["tenant_id"] in org_of else 0
        found = _profile(row, last)
        profiles.setdefault(row["tenant_id"], {})[found.targets] = found
    gates = await _gates(connection, wanted)
    rows = await connection.fetch(
        "SELECT t.tenant_id, a.policy_id, a.version, e.recipe,"
        " coalesce(e.problem, '') <> '' OR EXISTS (SELECT FROM policy.profiles p"
        " WHERE p.tenant_id = t.tenant_id AND p.problem <> '') AS held,"
        " coalesce(v.leaves, '{}') AS leaves,"
        " (SELECT json_object_agg(CASE WHEN i.is_secret THEN 'secret.' ELSE 'var.' END || i.name,"
        " i.change) FROM policy.variable i WHERE i.tenant_id = t.tenant_id) AS own_values"
        " FROM unnest($1::uuid[]) AS t (tenant_id)"
        " LEFT JOIN policy.assignments a ON a.tenant_id = t.tenant_id"
        " LEFT JOIN policy.versions v ON v.tenant_id = a.tenant_id AND v.version = a.version"
        " LEFT JOIN policy.editions e ON e.tenant_id = t.tenant_id",
        wanted,
    )
    return {
        row["tenant_id"]: Known(
            None if row["version"] is None else (row["policy_id"], row["version"]),
            row["recipe"],
            tuple(bound.get(row["tenant_id"], ())),
            profiles.get(row["tenant_id"], {}),
            row["held"],
            tuple(rollouts.get(row["tenant_id"], ())),
            order.get(row["tenant_id"], {}),
            gates.get(row["tenant_id"], {}),
            frozenset(row["leaves"]),
            _changes(row["own_values"]),
        )
        for row in rows
    }


def _changes(found: str | None) -> dict[str, int]:
    # Tenants below one have values of the same names.
    return {sys.intern(name): change for name, change in json.loads(found or "{}").items()}


async def _gates(
    connection: Connection, tenant_ids: Sequence[UUID]
) -> dict[UUID, dict[UUID, Otherwise]]:
    """The enforced gates of tenants."""
    found: dict[UUID, dict[UUID, Otherwise]] = {}
    for row in await connection.fetch(
        "SELECT e.tenant_id, e.id, e.otherwise_policy_id, e.otherwise_version FROM policy.gate e"
        " WHERE e.tenant_id = ANY ($1) AND e.mode = 'ENFORCE'",
        tenant_ids,
    ):
        found.setdefault(row["tenant_id"], {})[row["id"]] = Otherwise(
            row["otherwise_policy_id"], row["otherwise_version"]
        )
    return found


async def _rollouts(
    connection: Connection, tenant_ids: Sequence[UUID]
) -> dict[UUID, list[Rolling]]:
    """The rollouts of tenants that deliveries look at."""
    found: dict[UUID, list[Rolling]] = {}
    for row in await connection.fetch(
        "SELECT r.tenant_id, r.id, r.policy_id, r.version, r.group_ids, r.device_ids, r.salt,"
        " r.below, r.open_groups, r.serves, r.holds,"
        " coalesce((r.plan::jsonb ->> 'max_per_minute')::integer, 0) AS max_per_minute,"
        " r.state NOT IN ('CANCELED', 'SUPERSEDED') AS watches"
        " FROM policy.rollout r"
        " WHERE r.tenant_id = ANY ($1) AND r.live ORDER BY r.id",
        tenant_ids,
    ):
        found.setdefault(row["tenant_id"], []).append(
            Rolling(
                id=row["id"],
                policy_id=row["policy_id"],
                version=row["version"],
                group_ids=tuple(row["group_ids"]),
                device_ids=tuple(row["device_ids"]),
                salt=row["salt"],
                below=row["below"],
                open_groups=frozenset(row["open_groups"]),
                serves=row["serves"],
                holds=row["holds"],
                watches=row["watches"],
                max_per_minute=row["max_per_minute"],
            )
        )
    return found


WEAKEST_FIRST: Final = "b.kind = 'device', g.priority, b.target_id"
"""The order of `policy.bindings b` with their `policy.groups g`."""
_PROFILES: Final = (
    "SELECT p.tenant_id, p.targets, p.recipe, p.document_tenant, p.digest,"
    " CASE WHEN p.apart THEN p.id END AS apart,"
    " ARRAY(SELECT o.version FROM policy.stamps o WHERE o.tenant_id = p.tenant_id"
    " AND o.document_tenant = p.document_tenant AND o.digest = p.digest AND o.stands"
    " AND o.profile IS NOT DISTINCT FROM CASE WHEN p.apart THEN p.id END"
    " ORDER BY o.version) AS versions FROM policy.profiles p"
)


def _profile(row: asyncpg.Record, last: int) -> Standing:
    versions = tuple(row["versions"])
    want = (
        Edition.of(Content(row["document_tenant"], row["digest"]), versions) if versions else None
    )
    # A number may have been given out since the organisation's last one was read.
    last = max(last, versions[-1]) if versions else last
    return Standing(want, last, tuple(row["targets"]), row["recipe"], row["apart"])


async def profile(
    connection: Connection, tenant_id: UUID, targets: Targets, last: int
) -> Standing | None:
    """How it stands with the devices of an organisation for which some targets' policies count.

    `None` when they were never put together.
    """
    row = await connection.fetchrow(
        f"{_PROFILES} WHERE p.tenant_id = $1 AND p.targets = $2", tenant_id, list(targets)
    )
    return None if row is None else _profile(row, last)


async def is_in_force(connection: Connection, tenant_id: UUID, wanted: Standing) -> bool:
    """Whether an organisation's versions of a recipe with targets are those in force now.

    A rollout among the targets counts while it serves its devices; a gate while it is enforced.
    """
    made = versions_of(wanted.recipe, {tenant_id, *wanted.targets})
    gates = (await _gates(connection, [tenant_id])).get(tenant_id, {})
    for one in wanted.targets:
        if one in gates:
            return made == {(one, gates[one].version)}
    rows = await connection.fetch(
        "WITH rolled AS (SELECT r.version, r.group_ids || r.device_ids AS targets"
        " FROM policy.rollout r WHERE r.tenant_id = $1 AND r.id = ANY ($2) AND r.serves)"
        " SELECT a.tenant_id AS whose, a.version FROM policy.assignments a WHERE a.tenant_id = $1"
        " AND a.version IS NOT NULL AND NOT EXISTS (SELECT FROM rolled r WHERE r.targets = '{}')"
        " UNION ALL SELECT $1, r.version FROM rolled r WHERE r.targets = '{}'"
        " UNION ALL SELECT b.target_id, b.version FROM policy.bindings b"
        " WHERE b.tenant_id = $1 AND b.target_id = ANY ($2) AND b.version IS NOT NULL"
        " AND NOT EXISTS (SELECT FROM rolled r WHERE b.target_id = ANY (r.targets))"
        " UNION ALL SELECT t.id, r.version FROM rolled r"
        " CROSS JOIN LATERAL unnest(r.targets) AS t (id) WHERE t.id = ANY ($2)",
        tenant_id,
        list(wanted.targets),
    )
    return made == {(row["whose"], row["version"]) for row in rows}


async def documents(
    connection: Connection, vault: Vault, wanted: Sequence[Content]
) -> dict[Content, Document]:
    """Documents with their newest signatures; without those that do not open."""
    rows = await connection.fetch(
        "SELECT d.tenant_id, d.digest, d.body, d.sealed_secrets, s.signature, s.key_id"
        " FROM unnest($1::uuid[], $2::bytea[]) AS w (tenant_id, digest)"
        " JOIN policy.documents d ON d.tenant_id = w.tenant_id AND d.digest = w.digest"
        " JOIN LATERAL (SELECT g.signature, g.key_id FROM policy.signatures g"
        " LEFT JOIN policy.signing_keys k ON k.id = g.key_id"
        " WHERE g.tenant_id = d.tenant_id AND g.digest = d.digest"
        " ORDER BY coalesce(k.signs, false) DESC, g.key_id LIMIT 1) AS s ON true",
        [content.tenant_id for content in wanted],
        [content.digest for content in wanted],
    )
    found: dict[Content, Document] = {}
    for row in rows:
        content = Content(row["tenant_id"], row["digest"])
        try:
            body = body_of(vault, row)
        except SealingError as broken:
            # The others are wanted all the same.
            log.error("document unreadable", tenant=str(content.tenant_id), error=str(broken))
            continue
        found[content] = Document(body, row["signature"], row["key_id"])
    return found


async def insert_documents(
    connection: Connection, vault: Vault, found: Mapping[Content, Document]
) -> None:
    """Stores signed documents, unless they are stored; these stay until the transaction ends."""
    # In one order: others may store the same ones.
    items = sorted(found.items(), key=lambda item: item[0])
    stored = [vault.stored(of_document(*content), {"body": one.body}) for content, one in items]
    names = columns([tuple(content) for content, _ in items])
    there = 0
    while there < len(items):
        await connection.execute(
            "INSERT INTO policy.documents (tenant_id, digest, body, sealed_secrets)"
            " SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::bytea[])"
            " ON CONFLICT DO NOTHING",
            *names,
            [one["body"] for one in stored],
            [one[SEALED] for one in stored],
        )
        # One that was there may be on its way out, which `Collector` knows.
        there = await connection.fetchval(
            "SELECT count(*) FROM (SELECT FROM policy.documents d"
            " JOIN unnest($1::uuid[], $2::bytea[]) AS w (tenant_id, digest)"
            " ON d.tenant_id = w.tenant_id AND d.digest = w.digest"
            " FOR KEY SHARE OF d) AS held",
            *names,
        )
    await connection.execute(
        "INSERT INTO policy.signatures (tenant_id, digest, key_id, signature)"
        " SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::text[], $4::bytea[])"
        " ON CONFLICT DO NOTHING",
        *columns([(*content, one.key_id, one.signature) for content, one in items]),
    )


def body_of(vault: Vault, row: asyncpg.Record) -> bytes:
    """The bytes of a row of documents.

    Raises:
        SealingError: it does not open.
    """
    where = of_document(row["tenant_id"], row["digest"])
    body: bytes = vault.opened(where, row, "body")["body"]
    return body


async def stamps(
    connection: Connection, wanted: Sequence[tuple[UUID, int]]
) -> dict[tuple[UUID, int], Stamp]:
    """What numbers of organisations stand for."""
    rows = await connection.fetch(
        "SELECT s.tenant_id, s.version, s.document_tenant, s.digest, s.key_id, s.statement_head,"
        " s.statement_signature, s.shared"
        " FROM unnest($1::uuid[], $2::bigint[]) AS w (tenant_id, version)"
        " JOIN policy.stamps s ON s.tenant_id = w.tenant_id AND s.version = w.version",
        [tenant_id for tenant_id, _ in wanted],
        [version for _, version in wanted],
    )
    return {
        (row["tenant_id"], row["version"]): Stamp(
            Content(row["document_tenant"], row["digest"]),
            row["key_id"],
            row["statement_head"],
            row["statement_signature"],
            row["shared"],
        )
        for row in rows
    }


NEVER_IN_FORCE: Final = (
    "EXISTS (SELECT FROM policy.rollout r WHERE r.tenant_id = v.tenant_id"
    " AND r.version = v.version AND r.state <> 'COMPLETED')"
)
"""Of `policy.versions v`: it came to devices by a rollout alone, if at all. A number that is rolled
out is of no other publish."""


async def former(
    connection: Connection, vault: Vault, tenant_id: UUID, version: int
) -> tuple[Stamp, Document] | None:
    """A version as it was in force for all devices before numbers were stamped.

    Not one that a rollout brings: its devices get it under another number, and the numbers of an
    organisation are easily guessed.
    """
    found = await published(
        connection, vault, tenant_id, version, f"AND v.targets IS NULL AND NOT {NEVER_IN_FORCE}"
    )
    if found is None:
        return None
    document, statement = found
    content = Content(tenant_id, sha256(document.body))
    return Stamp.of(content, statement, document.body), document


async def published(
    connection: Connection, vault: Vault, tenant_id: UUID, version: int, also: str = ""
) -> tuple[Document, Statement] | None:
    """What was signed of a version; `also` is more of the condition."""
    row = await connection.fetchrow(
        "SELECT authored, document, signature, statement_payload, statement_signature, key_id,"
        " sealed_secrets"
        f" FROM policy.versions v WHERE v.tenant_id = $1 AND v.version = $2 {also}",
        tenant_id,
        version,
    )
    if row is None:
        return None
    where = of_version(tenant_id, version)
    body: bytes = vault.opened(where, row, "authored", "document")["document"]
    payload: bytes = row["statement_payload"]
    if row[SEALED] is not None:
        payload += body + b"}"
    return (
        Document(body, row["signature"], row["key_id"]),
        Statement(payload, row["statement_signature"], row["key_id"]),
    )
