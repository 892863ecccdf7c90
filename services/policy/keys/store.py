"""Keys that sign policies, their log, and the devices that pin them, in SQL."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.feeds.feed import Cursor, FeedPage, read_page
from servicekit.keys.log import (
    Action,
    Envelope,
    Head,
    is_certificate,
    scope_of,
    sequence_of,
)
from servicekit.rpc.pagination import Page
from servicekit.security.signing import PublicKey, read_jwk
from services.policy.keys.domain import PolicyKey, State

CHANGING: Final = "SELECT changed_xid FROM policy.signing_keys"
"""What the feed below tells of (`servicekit.feeds.changes`)."""
FIRST_KEY: Final = "SELECT k.id FROM policy.signing_keys k WHERE k.is_first"
"""The first key of the installation."""
_KEYS_A_PAGE: Final = 1000
_COLUMNS: Final = (
    "k.row_id, k.public_key, k.created_at, k.sealed_seed, k.signs, k.tenant_id, k.state,"
    " k.activated_at, k.retired_at, k.compromised_at, k.certified_by, k.request_id,"
    " k.is_first, k.ending_until"
)
_IN_USE: Final = "(d.status IN ('pending', 'prepared', 'active') OR d.archived)"
"""Those that come back with their organisation pin their keys meanwhile."""


@dataclass(frozen=True, slots=True)
class PinningDevice:
    """A device that pins a key."""

    device_id: UUID
    tenant_id: UUID
    status: str
    reported_at: datetime | None
    """When it last said what it has; `None` for never."""


def _key(row: asyncpg.Record) -> PolicyKey:
    return PolicyKey(
        id=row["row_id"],
        public=PublicKey(row["public_key"]),
        created_at=row["created_at"],
        sealed_seed=row["sealed_seed"],
        signs=row["signs"],
        tenant_id=row["tenant_id"],
        state=State(row["state"]),
        activated_at=row["activated_at"],
        retired_at=row["retired_at"],
        compromised_at=row["compromised_at"],
        certified_by=row["certified_by"],
        request_id=row["request_id"],
        is_first=row["is_first"],
        ending_until=row["ending_until"],
    )


async def lock(connection: Connection) -> None:
    """Makes processes that start, or change keys, at the same moment take turns."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('policy:keys'))")


async def keys(connection: Connection) -> list[PolicyKey]:
    """All keys."""
    return [
        _key(row) for row in await connection.fetch(f"SELECT {_COLUMNS} FROM policy.signing_keys k")
    ]


async def changed_since(connection: Connection, cursor: Cursor) -> tuple[FeedPage, list[PolicyKey]]:
    """Keys that are new or changed since a cursor."""
    page = await read_page(
        connection,
        f"SELECT k.changed_xid::text AS changed_xid, k.row_id AS key, {_COLUMNS}"
        " FROM policy.signing_keys k WHERE (k.changed_xid, k.row_id) > ($1::text::xid8, $2)"
        # By the column: the text of the same name would put 99 behind 100.
        " ORDER BY k.changed_xid, k.row_id LIMIT $3",
        cursor,
        _KEYS_A_PAGE,
    )
    return page, [_key(row) for row in page.rows]


async def insert(connection: Connection, key: PolicyKey) -> None:
    """Adds a key."""
    await connection.execute(
        "INSERT INTO policy.signing_keys (row_id, id, public_key, sealed_seed, signs, created_at,"
        " tenant_id, state, activated_at, request_id, is_first)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        key.id,
        key.public.id,
        key.public.raw,
        key.sealed_seed,
        key.signs,
        key.created_at,
        key.tenant_id,
        key.state.value,
        key.activated_at,
        key.request_id,
        key.is_first,
    )


async def update(connection: Connection, key: PolicyKey) -> None:
    """Stores what became of a key."""
    await connection.execute(
        "UPDATE policy.signing_keys SET state = $2, sealed_seed = $3, signs = $4,"
        " activated_at = $5, retired_at = $6, compromised_at = $7, certified_by = $8,"
        " ending_until = $9, changed_xid = pg_current_xact_id() WHERE row_id = $1",
        key.id,
        key.state.value,
        key.sealed_seed,
        key.signs,
        key.activated_at,
        key.retired_at,
        key.compromised_at,
        key.certified_by,
        key.ending_until,
    )


async def mark_first(connection: Connection, key: PolicyKey) -> None:
    """Says which key is the first one, where the release before has made it."""
    await connection.execute(
        "UPDATE policy.signing_keys SET is_first = true, changed_xid = pg_current_xact_id()"
        " WHERE row_id = $1",
        key.id,
    )


async def touch(connection: Connection) -> None:
    """Has every process look at the keys again."""
    await connection.execute(
        "UPDATE policy.signing_keys SET changed_xid = pg_current_xact_id() WHERE signs"
    )


async def has_signed(connection: Connection) -> bool:
    """Whether a policy was ever signed here."""
    found: bool = await connection.fetchval("SELECT EXISTS (SELECT FROM policy.versions)")
    return found


# The log


async def head(connection: Connection) -> Head:
    """Where the log ends."""
    row = await connection.fetchrow(
        "SELECT l.sequence, l.digest FROM policy.key_log l ORDER BY l.sequence DESC LIMIT 1"
    )
    return Head() if row is None else Head(row["sequence"], row["digest"])


async def append(connection: Connection, action: Action, key: PublicKey, entry: Envelope) -> Head:
    """Adds an entry about a key behind the end of the log; answers the new end."""
    sequence = sequence_of(entry)
    await connection.execute(
        "INSERT INTO policy.key_log (sequence, action, envelope, digest, key_id)"
        " VALUES ($1, $2, $3, $4, $5)",
        sequence,
        action.value,
        json.dumps(entry.to_json(), separators=(",", ":")),
        entry.sha256,
        key.id,
    )
    return Head(sequence, entry.sha256)


async def take_loss(connection: Connection) -> Head | None:
    """Where the log ended before a restore, as far as that is known; once after each one.

    `None` where nothing was restored since this was last asked.
    """
    row = await connection.fetchrow(
        "DELETE FROM policy.key_log_restore RETURNING lost_sequence, lost_digest"
    )
    return None if row is None else Head(row["lost_sequence"], (row["lost_digest"] or b"").hex())


async def ends(connection: Connection) -> set[tuple[str, Action]]:
    """The ids of keys of which the log says that they ended, and how."""
    rows = await connection.fetch(
        "SELECT l.key_id, l.action FROM policy.key_log l WHERE l.action = ANY ($1)",
        [Action.RETIRE.value, Action.REVOKE.value],
    )
    return {(row["key_id"], Action(row["action"])) for row in rows}


async def entries(connection: Connection, after: int, limit: int) -> Page[Envelope, int]:
    """Entries of the log behind a number."""
    rows = await connection.fetch(
        "SELECT l.sequence, l.envelope FROM policy.key_log l WHERE l.sequence > $1"
        " ORDER BY l.sequence LIMIT $2",
        after,
        limit + 1,
    )
    found = [(row["sequence"], Envelope.from_json(json.loads(row["envelope"]))) for row in rows]
    page = Page.of(found, limit, lambda one: one[0])
    return Page([entry for _, entry in page.items], page.after)


async def _last_root(connection: Connection) -> Envelope | None:
    """The entry that names the root."""
    text = await connection.fetchval(
        "SELECT l.envelope FROM policy.key_log l WHERE l.action = $1"
        " ORDER BY l.sequence DESC LIMIT 1",
        Action.ROOT.value,
    )
    return None if text is None else Envelope.from_json(json.loads(text))


async def root(connection: Connection) -> PublicKey | None:
    """The offline root that certifies keys; `None` for none."""
    entry = await _last_root(connection)
    return None if entry is None else read_jwk(json.loads(entry.payload)["key"])


async def certified(
    connection: Connection, root: PublicKey | None, keys: Iterable[PolicyKey]
) -> frozenset[str]:
    """The ids of those keys of which the log has the root's certificate.

    The log is looked at, and its signatures are checked: a row of a key says what anybody can have
    written who writes into the database.
    """
    asked = {key.public.id: key for key in keys}
    if root is None or not asked:
        return frozenset()
    rows = await connection.fetch(
        "SELECT DISTINCT ON (l.key_id) l.key_id, l.envelope FROM policy.key_log l"
        " WHERE l.action = $1 AND l.key_id = ANY ($2) ORDER BY l.key_id, l.sequence DESC",
        Action.CERTIFY.value,
        list(asked),
    )
    return frozenset(
        row["key_id"]
        for row in rows
        if is_certificate(
            Envelope.from_json(json.loads(row["envelope"])),
            root,
            scope_of(asked[row["key_id"]].tenant_id),
            asked[row["key_id"]].public,
        )
    )


# Devices


async def count_devices(
    connection: Connection, scope: Scope, first: str
) -> dict[str, tuple[int, int]]:
    """How many devices of a scope pin each key, and how many of them ever called; by key ids.

    Args:
        first: the key of devices of which nothing else is known.
    """
    rows = await connection.fetch(
        "SELECT coalesce(m.key_id, $2) AS key_id, count(*) AS devices, count(a.device_id) AS called"
        " FROM policy.devices d LEFT JOIN policy.memberships m ON m.device_id = d.device_id"
        " LEFT JOIN policy.applied_versions a ON a.device_id = d.device_id"
        f" WHERE {_IN_USE} AND ($1::uuid[] IS NULL OR d.tenant_id = ANY ($1)) GROUP BY 1",
        scope.tenant_ids,
        first,
    )
    return {row["key_id"]: (row["devices"], row["called"]) for row in rows}


async def count_pinning(connection: Connection, key_id: str, *, is_first: bool) -> int:
    """How many devices pin a key, whosever they are."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM policy.devices d"
        " LEFT JOIN policy.memberships m ON m.device_id = d.device_id"
        f" WHERE {_IN_USE} AND (m.key_id = $1 OR $2 AND m.key_id IS NULL)",
        key_id,
        is_first,
    )
    return found


async def devices(
    connection: Connection,
    scope: Scope,
    key_id: str,
    after: UUID | None,
    limit: int,
    *,
    is_first: bool,
) -> Page[PinningDevice, UUID]:
    """Devices of a scope that pin a key, by id."""
    rows = await connection.fetch(
        "SELECT d.device_id, d.tenant_id, d.status, a.reported_at FROM policy.devices d"
        " LEFT JOIN policy.memberships m ON m.device_id = d.device_id"
        " LEFT JOIN policy.applied_versions a ON a.device_id = d.device_id"
        f" WHERE {_IN_USE} AND ($1::uuid[] IS NULL OR d.tenant_id = ANY ($1))"
        " AND (m.key_id = $2 OR $3 AND m.key_id IS NULL) AND ($4::uuid IS NULL OR d.device_id > $4)"
        " ORDER BY d.device_id LIMIT $5",
        scope.tenant_ids,
        key_id,
        is_first,
        after,
        limit + 1,
    )
    return Page.of([PinningDevice(**row) for row in rows], limit, lambda device: device.device_id)
