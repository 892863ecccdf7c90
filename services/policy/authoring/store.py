"""Policies and versions in SQL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.ids import new_id
from servicekit.rpc.pagination import Page
from servicekit.security.digests import sha256
from services.policy.authoring.domain import Policy, Published
from services.policy.authoring.stored_form import joined, parted
from services.policy.authoring.templates import references
from services.policy.keys.signing import Statement
from services.policy.layers.merging import Merging
from services.policy.stamps.domain import Content, Document
from services.policy.stamps.numbers import move_counters
from services.policy.stamps.store import NEVER_IN_FORCE, insert_documents
from services.policy.targets.domain import PolicyTargets
from services.policy.targets.store import bind, gone, unbind
from services.policy.vault import (
    DIGEST,
    HOLDS_SECRETS,
    NAMES_SECRETS,
    SEALED,
    Vault,
    of_policy,
    of_version,
)
from services.policy.versions import Version

_POLICY = (
    "p.id, p.tenant_id, p.name, p.description, p.revision, p.published_version, p.merging,"
    " p.targets, p.changed_since_publish, p.created_at, p.updated_at,"
    " (EXISTS (SELECT FROM policy.assignments a WHERE a.tenant_id = p.tenant_id"
    " AND a.policy_id = p.id) OR EXISTS (SELECT FROM policy.bindings b"
    " WHERE b.tenant_id = p.tenant_id AND b.policy_id = p.id)) AS in_force,"
    " (SELECT r.id FROM policy.rollout r WHERE r.tenant_id = p.tenant_id AND r.policy_id = p.id"
    " AND r.state IN ('AWAITING_APPROVAL', 'SCHEDULED', 'RUNNING', 'PAUSED', 'STOPPED')"
    " ORDER BY r.id DESC LIMIT 1) AS rollout_id"
)
VERSION = (
    "v.tenant_id, v.version, v.policy_id, v.authored, v.document, v.signature,"
    " v.statement_payload, v.statement_signature, v.key_id, v.rollback_of, v.published_at,"
    " v.published_by, v.form_extra, v.layer, v.inherits, v.targets, v.sealed_secrets"
)
_AUTHORED: Final = ("authored", "form_extra")
_PUBLISHED: Final = (*_AUTHORED, "layer", "document")


def _policy(vault: Vault, row: asyncpg.Record) -> Policy:
    opened = vault.opened(of_policy(row["tenant_id"], row["id"]), row, *_AUTHORED)
    columns = {name: value for name, value in row.items() if name not in {*_AUTHORED, SEALED}}
    authored = joined(opened["authored"], opened["form_extra"])
    merging = columns.pop("merging")
    targets = PolicyTargets.read(columns.pop("targets"))
    return Policy(
        authored=authored,
        merging=Merging() if merging is None else Merging.of(json.loads(merging)),
        targets=targets,
        **columns,
    )


def _text_of(merging: Merging) -> str | None:
    stored = merging.stored()
    return json.dumps(stored, ensure_ascii=False) if stored else None


def _stored(vault: Vault, policy: Policy) -> dict[str, str | bytes | None]:
    authored, extra = parted(policy.authored)
    return vault.stored(
        of_policy(policy.tenant_id, policy.id), {"authored": authored, "form_extra": extra}
    )


def _uses(policy: Policy) -> list[str]:
    return sorted(references(json.loads(policy.authored)))


def to_version(vault: Vault, row: asyncpg.Record) -> Version:
    """A row with the columns of a version."""
    opened = vault.opened(of_version(row["tenant_id"], row["version"]), row, *_PUBLISHED)
    payload = row["statement_payload"]
    if row[SEALED] is not None:
        payload += opened["document"] + b"}"
    return Version(
        tenant_id=row["tenant_id"],
        version=row["version"],
        policy_id=row["policy_id"],
        authored=joined(opened["authored"], opened["form_extra"]),
        document=opened["document"],
        signature=row["signature"],
        statement=Statement(
            payload=payload,
            signature=row["statement_signature"],
            key_id=row["key_id"],
        ),
        rollback_of=row["rollback_of"],
        published_at=row["published_at"],
        published_by=row["published_by"],
        layer=opened["layer"],
        inherits=row["inherits"],
        targets=row["targets"],
    )


async def list_policies(
    connection: Connection, vault: Vault, scope: Scope, after: UUID | None, limit: int
) -> Page[Policy, UUID]:
    """The policies of a scope, oldest first (their ids have that order), without bundles."""
    rows = await connection.fetch(
        f"SELECT {_POLICY}, '' AS authored, NULL AS form_extra, NULL AS sealed_secrets"
        " FROM policy.policies p"
        " WHERE ($1::uuid[] IS NULL OR p.tenant_id = ANY ($1))"
        " AND ($2::uuid IS NULL OR p.id > $2) ORDER BY p.id LIMIT $3",
        scope.tenant_ids,
        after,
        limit + 1,
    )
    return Page.of([_policy(vault, row) for row in rows], limit, lambda policy: policy.id)


async def get_policy(
    connection: Connection,
    vault: Vault,
    scope: Scope,
    policy_id: UUID,
    *,
    for_update: bool = False,
) -> Policy | None:
    """One policy; with `for_update` nobody else changes it until the transaction ends."""
    wanted = "p.id = $1 AND ($2::uuid[] IS NULL OR p.tenant_id = ANY ($2))"
    if for_update:
        # A statement of its own: one that waits for a lock sees the row as it is then, and the
        # assignments as they were before.
        await connection.execute(
            f"SELECT FROM policy.policies p WHERE {wanted} FOR UPDATE", policy_id, scope.tenant_ids
        )
    row = await connection.fetchrow(
        f"SELECT {_POLICY}, p.authored, p.form_extra, p.sealed_secrets FROM policy.policies p"
        f" WHERE {wanted}",
        policy_id,
        scope.tenant_ids,
    )
    return None if row is None else _policy(vault, row)


async def insert_policy(connection: Connection, vault: Vault, policy: Policy) -> None:
    """Stores a new policy."""
    stored = _stored(vault, policy)
    await connection.execute(
        "INSERT INTO policy.policies (id, tenant_id, name, description, authored, revision,"
        " created_at, updated_at, form_extra, merging, targets, sealed_secrets, uses)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        policy.id,
        policy.tenant_id,
        policy.name,
        policy.description,
        stored["authored"],
        policy.revision,
        policy.created_at,
        policy.updated_at,
        stored["form_extra"],
        _text_of(policy.merging),
        policy.targets.text(),
        stored[SEALED],
        _uses(policy),
    )


async def update_policy(
    connection: Connection, vault: Vault, policy: Policy, now: datetime
) -> Policy:
    """Stores a changed policy under a new revision; the row has to be locked."""
    changed = replace(policy, revision=policy.revision + 1, updated_at=now)
    stored = _stored(vault, changed)
    await connection.execute(
        "UPDATE policy.policies SET name = $3, description = $4, authored = $5, revision = $6,"
        " published_version = $7, changed_since_publish = $8, updated_at = $9, form_extra = $10,"
        " merging = $11, targets = $12, sealed_secrets = $13, uses = $14"
        " WHERE id = $1 AND tenant_id = $2",
        changed.id,
        changed.tenant_id,
        changed.name,
        changed.description,
        stored["authored"],
        changed.revision,
        changed.published_version,
        changed.changed_since_publish,
        changed.updated_at,
        stored["form_extra"],
        _text_of(changed.merging),
        changed.targets.text(),
        stored[SEALED],
        _uses(changed),
    )
    return changed


async def delete_policy(connection: Connection, policy: Policy) -> None:
    """Deletes a policy; its versions stay."""
    await connection.execute(
        "DELETE FROM policy.policies WHERE id = $1 AND tenant_id = $2", policy.id, policy.tenant_id
    )


async def take_out_of_force(connection: Connection, policy: Policy) -> None:
    """Leaves those without a policy for which this one is in force; their rows tell of that."""
    await unbind(connection, policy.tenant_id, policy.id)
    await connection.execute(
        "UPDATE policy.assignments SET policy_id = NULL, version = NULL,"
        " changed_xid = pg_current_xact_id() WHERE tenant_id = $1 AND policy_id = $2",
        policy.tenant_id,
        policy.id,
    )


async def insert_version(connection: Connection, vault: Vault, version: Version) -> None:
    """Stores a signed version and moves the org's counter to it."""
    authored, extra = parted(version.authored)
    stored = vault.stored(
        of_version(version.tenant_id, version.version),
        {
            "authored": authored,
            "form_extra": extra,
            "layer": version.layer,
            "document": version.document,
        },
    )
    is_sealed = stored[SEALED] is not None
    payload = version.statement.payload
    await connection.execute(
        "INSERT INTO policy.versions (tenant_id, version, policy_id, authored, document,"
        " signature, statement_payload, statement_signature, key_id, rollback_of, published_at,"
        " published_by, form_extra, layer, inherits, targets, sealed_secrets, document_digest,"
        " leaves)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,"
        " $18, $19)",
        version.tenant_id,
        version.version,
        version.policy_id,
        stored["authored"],
        stored["document"],
        version.signature,
        # The rest of it is the document, and a brace.
        payload[: -len(version.document) - 1] if is_sealed else payload,
        version.statement.signature,
        version.statement.key_id,
        version.rollback_of,
        version.published_at,
        version.published_by,
        stored["form_extra"],
        stored["layer"],
        version.inherits,
        version.targets,
        stored[SEALED],
        sha256(version.document) if is_sealed else None,
        sorted(version.leaves),
    )
    await move_counters(connection, {version.tenant_id: version.version})


async def put_version_in_force(connection: Connection, vault: Vault, version: Version) -> None:
    """Puts a stored version in force for all that it is for.

    Devices that get the policy because they fall short of a gate get it, too.
    """
    await connection.execute(
        "UPDATE policy.gate SET otherwise_version = $3, changed_xid = pg_current_xact_id()"
        " WHERE tenant_id = $1 AND otherwise_policy_id = $2",
        version.tenant_id,
        version.policy_id,
        version.version,
    )
    targets = PolicyTargets.read(version.targets)
    if targets:
        # Some may have been deleted while the version was rolled out.
        left = targets.without(await gone(connection, version.tenant_id, targets))
        await bind(connection, version.tenant_id, left, version.policy_id, version.version)
        return
    # A trigger stamps the number with the document, which it could store in the open alone.
    content = Content(version.tenant_id, sha256(version.document))
    document = Document(version.document, version.signature, version.statement.key_id)
    await insert_documents(connection, vault, {content: document})
    await connection.execute(
        "INSERT INTO policy.assignments (id, tenant_id, policy_id, version)"
        " VALUES ($1, $2, $3, $4) ON CONFLICT (tenant_id, target) DO UPDATE"
        " SET policy_id = excluded.policy_id, version = excluded.version,"
        " changed_xid = pg_current_xact_id()",
        new_id(),
        version.tenant_id,
        version.policy_id,
        version.version,
    )


async def get_version(
    connection: Connection, vault: Vault, tenant_id: UUID, version: int
) -> Version | None:
    """One published version of an org."""
    row = await connection.fetchrow(
        f"SELECT {VERSION} FROM policy.versions v WHERE v.tenant_id = $1 AND v.version = $2",
        tenant_id,
        version,
    )
    return None if row is None else to_version(vault, row)


async def was_never_in_force(connection: Connection, version: Version) -> bool:
    """Whether a version came to devices by a rollout alone, if at all."""
    found: bool = await connection.fetchval(
        f"SELECT {NEVER_IN_FORCE} FROM policy.versions v WHERE v.tenant_id = $1 AND v.version = $2",
        version.tenant_id,
        version.version,
    )
    return found


async def get_version_before(
    connection: Connection, vault: Vault, version: Version
) -> Version | None:
    """What was published of the same policy before a version."""
    row = await connection.fetchrow(
        f"SELECT {VERSION} FROM policy.versions v WHERE v.policy_id = $1 AND v.tenant_id = $2"
        " AND v.version < $3 ORDER BY v.version DESC LIMIT 1",
        version.policy_id,
        version.tenant_id,
        version.version,
    )
    return None if row is None else to_version(vault, row)


async def get_in_force(connection: Connection, vault: Vault, tenant_id: UUID) -> Version | None:
    """The version in force for an org; stays it while the org's counter is locked."""
    row = await connection.fetchrow(
        f"SELECT {VERSION} FROM policy.assignments a JOIN policy.versions v"
        " ON v.tenant_id = a.tenant_id AND v.version = a.version WHERE a.tenant_id = $1",
        tenant_id,
    )
    return None if row is None else to_version(vault, row)


async def list_versions(
    connection: Connection, policy: Policy, before: int | None, limit: int, *, ask_secrets: bool
) -> Page[Published, int]:
    """What was published of a policy, newest first; with `ask_secrets` which ones hold secrets."""
    rows = await connection.fetch(
        "SELECT v.version, v.published_at, v.published_by, v.rollback_of, v.key_id,"
        f" encode({DIGEST}, 'hex') AS document_sha256,"
        # Nobody is to try out those of layers above, nor those that a template names. Of a sealed
        # version it is not known which ones they are.
        f" (($5 OR v.inherits OR v.sealed_secrets IS NOT NULL OR v.authored ~ '{NAMES_SECRETS}')"
        f" AND {HOLDS_SECRETS}) AS holds_secrets,"
        f" {NEVER_IN_FORCE} AS never_in_force"
        " FROM policy.versions v WHERE v.policy_id = $1 AND v.tenant_id = $2"
        " AND ($3::bigint IS NULL OR v.version < $3) ORDER BY v.version DESC LIMIT $4",
        policy.id,
        policy.tenant_id,
        before,
        limit + 1,
        ask_secrets,
    )
    return Page.of([Published(**row) for row in rows], limit, lambda version: version.version)


async def count(connection: Connection, tenant_ids: Sequence[UUID]) -> int:
    """How many policies organisations have."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM policy.policies WHERE tenant_id = ANY ($1)", tenant_ids
    )
    return found
