"""The SQL of numbers that are given out: an organisation's counter, and what its numbers stand for.

Most of it is for many organisations at once: a publish of a tenant above is about thousands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from servicekit.data.postgres import Connection, columns
from services.policy.stamps.domain import Content, Stamp
from services.policy.stamps.store import body_of, published
from services.policy.vault import Vault
from services.policy.versions import MAX_JUMP

_LOCK: Final = (
    "SELECT tenant_id, last_version FROM policy.version_counters WHERE tenant_id = ANY ($1)"
    " ORDER BY tenant_id FOR UPDATE"
)


class Counter(NamedTuple):
    """An organisation's counter."""

    last: int
    """The last version."""
    reported: int
    """The highest one that devices report, which counts only as far as it may move the counter."""


class Wanted(NamedTuple):
    """What devices of an organisation are to have, and a number is to stand for."""

    tenant_id: UUID
    content: Content
    apart: UUID | None = None
    """The profile of the devices, where its numbers are its own."""


@dataclass(frozen=True, slots=True)
class Numbered:
    """A new number, beside those of publishes, and what it stands for."""

    wanted: Wanted
    version: int
    stamp: Stamp


async def lock_counters(
    connection: Connection, tenant_ids: Collection[UUID]
) -> dict[UUID, Counter]:
    """Locks counters of organisations, always in the same order."""
    wanted = sorted(tenant_ids)
    last = {row["tenant_id"]: row["last_version"] for row in await connection.fetch(_LOCK, wanted)}
    if len(last) < len(wanted):
        await connection.execute(
            "INSERT INTO policy.version_counters (tenant_id, last_version)"
            " SELECT t.tenant_id, 0 FROM unnest($1::uuid[]) AS t (tenant_id)"
            " ON CONFLICT (tenant_id) DO NOTHING",
            [one for one in wanted if one not in last],
        )
        rows = await connection.fetch(_LOCK, wanted)
        last = {row["tenant_id"]: row["last_version"] for row in rows}
    rows = await connection.fetch(
        "SELECT t.tenant_id, t.last, (SELECT max(a.version) FROM policy.applied_versions a"
        " WHERE a.tenant_id = t.tenant_id AND a.version <= t.last + $3) AS reported"
        " FROM unnest($1::uuid[], $2::bigint[]) AS t (tenant_id, last)",
        wanted,
        [last[one] for one in wanted],
        MAX_JUMP,
    )
    return {row["tenant_id"]: Counter(row["last"], row["reported"] or 0) for row in rows}


async def lock_counter(connection: Connection, tenant_id: UUID) -> Counter:
    """Locks an organisation's counter."""
    return (await lock_counters(connection, [tenant_id]))[tenant_id]


async def move_counters(connection: Connection, last: Mapping[UUID, int]) -> None:
    """Moves counters, which have to be locked, to new numbers."""
    await connection.execute(
        "UPDATE policy.version_counters c SET last_version = t.last"
        " FROM unnest($1::uuid[], $2::bigint[]) AS t (tenant_id, last)"
        " WHERE c.tenant_id = t.tenant_id",
        list(last),
        list(last.values()),
    )


async def previous_payloads(
    connection: Connection, vault: Vault, last: Mapping[UUID, int]
) -> dict[UUID, bytes]:
    """The statements' payloads of numbers, whether publishes or draws made them."""
    rows = await connection.fetch(
        "SELECT s.tenant_id AS whose, s.statement_head, d.tenant_id, d.digest, d.body,"
        " d.sealed_secrets FROM unnest($1::uuid[], $2::bigint[]) AS t (tenant_id, version)"
        " JOIN policy.stamps s ON s.tenant_id = t.tenant_id AND s.version = t.version"
        " JOIN policy.documents d ON d.tenant_id = s.document_tenant AND d.digest = s.digest",
        list(last),
        list(last.values()),
    )
    payloads = {
        row["whose"]: bytes(row["statement_head"] + body_of(vault, row) + b"}") for row in rows
    }
    for tenant_id, version in last.items():
        # It was published, and never came into force.
        if tenant_id not in payloads and version:
            found = await published(connection, vault, tenant_id, version)
            if found is not None:
                payloads[tenant_id] = found[1].payload
    return payloads


async def previous_payload(
    connection: Connection, vault: Vault, tenant_id: UUID, version: int
) -> bytes | None:
    """The statement's payload of a number, whether a publish or a draw made it."""
    return (await previous_payloads(connection, vault, {tenant_id: version})).get(tenant_id)


async def stood_for_something(connection: Connection, tenant_id: UUID, version: int) -> bool:
    """Whether a number was ever given out, as far as the database knows."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM policy.stamps WHERE tenant_id = $1 AND version = $2)"
        " OR EXISTS (SELECT FROM policy.versions WHERE tenant_id = $1 AND version = $2)",
        tenant_id,
        version,
    )
    return found


async def earlier_draw(connection: Connection, tenant_id: UUID, count: int) -> datetime | None:
    """When an org drew the last number but `count - 1`; `None` when it drew fewer."""
    drawn: datetime | None = await connection.fetchval(
        "SELECT s.stamped_at FROM policy.stamps s WHERE s.tenant_id = $1 AND s.cause = 'draw'"
        " ORDER BY s.version DESC OFFSET $2 LIMIT 1",
        tenant_id,
        count - 1,
    )
    return drawn


async def standing(connection: Connection, wanted: Collection[Wanted]) -> set[Wanted]:
    """That for which a number stands."""
    rows = await connection.fetch(
        "SELECT t.tenant_id, t.document_tenant, t.digest, t.profile"
        " FROM unnest($1::uuid[], $2::uuid[], $3::bytea[], $4::uuid[])"
        " AS t (tenant_id, document_tenant, digest, profile)"
        # The highest one, and not whether there is one: without statistics a plan for that may look
        # through the numbers of all organisations that share a document.
        " WHERE (SELECT max(s.version) FROM policy.stamps s WHERE s.tenant_id = t.tenant_id"
        " AND s.document_tenant = t.document_tenant AND s.digest = t.digest AND s.stands"
        " AND s.profile IS NOT DISTINCT FROM t.profile) IS NOT NULL",
        [one.tenant_id for one in wanted],
        [one.content.tenant_id for one in wanted],
        [one.content.digest for one in wanted],
        [one.apart for one in wanted],
    )
    return {
        Wanted(row["tenant_id"], Content(row["document_tenant"], row["digest"]), row["profile"])
        for row in rows
    }


async def end_standing(connection: Connection, wanted: Collection[Wanted]) -> None:
    """Lets the numbers of contents stand for nothing: the next ones are new, whatever was before.

    Args:
        wanted: the contents, with the organisation of each.
    """
    await connection.execute(
        "UPDATE policy.stamps s SET stands = false, changed_xid = pg_current_xact_id()"
        " FROM unnest($1::uuid[], $2::uuid[], $3::bytea[], $4::uuid[])"
        " AS t (tenant_id, document_tenant, digest, profile)"
        " WHERE s.tenant_id = t.tenant_id AND s.document_tenant = t.document_tenant"
        " AND s.digest = t.digest AND s.stands AND s.profile IS NOT DISTINCT FROM t.profile",
        [one.tenant_id for one in wanted],
        [one.content.tenant_id for one in wanted],
        [one.content.digest for one in wanted],
        [one.apart for one in wanted],
    )


async def end_apart(connection: Connection, profiles: Iterable[tuple[UUID, UUID]]) -> None:
    """Lets the numbers of single profiles stand for nothing: their next ones are new, whatever
    they have.

    Args:
        profiles: with the organisation of each.
    """
    tenant_ids, ids = columns(list(profiles))
    await connection.execute(
        "UPDATE policy.stamps s SET stands = false, changed_xid = pg_current_xact_id()"
        " FROM unnest($1::uuid[], $2::uuid[]) AS t (tenant_id, profile)"
        " WHERE s.tenant_id = t.tenant_id AND s.profile = t.profile AND s.stands",
        tenant_ids,
        ids,
    )


async def share(connection: Connection, contents: Iterable[tuple[UUID, Content]]) -> None:
    """Lets any device of an org have contents again that were made for some of them before.

    Args:
        contents: with the organisation of each.
    """
    rows = [(tenant_id, *content) for tenant_id, content in contents]
    await connection.execute(
        "UPDATE policy.stamps s SET shared = true, changed_xid = pg_current_xact_id()"
        " FROM unnest($1::uuid[], $2::uuid[], $3::bytea[])"
        " AS t (tenant_id, document_tenant, digest)"
        " WHERE s.tenant_id = t.tenant_id AND s.document_tenant = t.document_tenant"
        " AND s.digest = t.digest AND s.stands AND NOT s.shared AND s.profile IS NULL",
        *columns(rows),
    )


async def insert_numbers(
    connection: Connection, numbered: Sequence[Numbered], now: datetime, cause: str
) -> None:
    """Stores for what new numbers stand, beside those of publishes."""
    await connection.execute(
        "INSERT INTO policy.stamps (tenant_id, version, document_tenant, digest, key_id,"
        " statement_head, statement_signature, shared, profile, stamped_at, cause, knows_layers)"
        " SELECT t.*, $10::timestamptz, $11::text, true FROM unnest($1::uuid[], $2::bigint[],"
        " $3::uuid[], $4::bytea[], $5::text[], $6::bytea[], $7::bytea[], $8::boolean[],"
        " $9::uuid[]) AS t",
        *columns(
            [
                (
                    one.wanted.tenant_id,
                    one.version,
                    one.wanted.content.tenant_id,
                    one.wanted.content.digest,
                    one.stamp.key_id,
                    one.stamp.statement_head,
                    one.stamp.statement_signature,
                    one.stamp.shared,
                    one.wanted.apart,
                )
                for one in numbered
            ]
        ),
        now,
        cause,
    )
