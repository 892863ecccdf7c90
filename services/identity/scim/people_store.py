"""People as SCIM sources have said that they are, in SQL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection
from servicekit.rpc.pagination import Page
from services.identity.scim.domain import HELD, ListedPerson, ScimUser, taken
from services.identity.scim.filters import Field, Fields, Filter, Several, narrowed, time_fields
from services.identity.scim.resources import GroupOf
from services.identity.scim.schemas import USER

_PERSON: Final = (
    "p.id, p.source_id, p.tenant_id, p.user_name, p.external_id, p.active, p.attributes,"
    " p.problem, p.created_at, p.updated_at, p.deleted_at"
)
PERSON_FIELDS: Final[Fields] = {
    "id": Field("p.id", "id"),
    "username": Field("p.user_key", "folded"),
    "externalid": Field("p.external_id", "exact"),
    "active": Field("p.active", "bool"),
    "displayname": Field("p.attributes ->> 'displayName'"),
    "name.formatted": Field("p.attributes -> 'name' ->> 'formatted'"),
    "name.familyname": Field("p.attributes -> 'name' ->> 'familyName'"),
    "name.givenname": Field("p.attributes -> 'name' ->> 'givenName'"),
    "emails": Several(
        "EXISTS (SELECT FROM jsonb_array_elements(p.attributes -> 'emails') AS e WHERE {where})",
        {
            "value": Field("e ->> 'value'"),
            "type": Field("e ->> 'type'"),
            "display": Field("e ->> 'display'"),
            "primary": Field("(e ->> 'primary')::boolean", "bool"),
        },
    ),
    "groups": Several(
        "EXISTS (SELECT FROM identity.scim_member m WHERE m.person_id = p.id AND {where})",
        {"value": Field("m.group_id", "id")},
    ),
    **time_fields("p"),
}
"""What people are filtered by."""


def _person(row: asyncpg.Record) -> ScimUser:
    return ScimUser(
        id=row["id"],
        source_id=row["source_id"],
        tenant_id=row["tenant_id"],
        user_name=row["user_name"],
        external_id=row["external_id"] or "",
        active=row["active"],
        attributes=json.loads(row["attributes"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        deleted_at=row["deleted_at"],
        problem=row["problem"],
    )


async def people_after(
    connection: Connection, source_id: UUID, after: UUID, most: int
) -> list[UUID]:
    """People of a source behind one of them, deleted ones included."""
    rows = await connection.fetch(
        "SELECT id FROM identity.scim_person WHERE source_id = $1 AND id > $2 ORDER BY id LIMIT $3",
        source_id,
        after,
        most,
    )
    return [row["id"] for row in rows]


async def forget_gone(connection: Connection) -> None:
    """Deletes people whom their sources have no more and of whom no account is left."""
    await connection.execute(
        "DELETE FROM identity.scim_person p WHERE p.deleted_at IS NOT NULL AND NOT EXISTS"
        " (SELECT FROM identity.external_identity e"
        " WHERE e.source_id = p.source_id AND e.subject = p.id::text)"
    )


async def count_people(connection: Connection, source_id: UUID) -> int:
    """How many people a source has."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM identity.scim_person WHERE source_id = $1 AND deleted_at IS NULL",
        source_id,
    )
    return found


async def person(connection: Connection, source_id: UUID, person_id: UUID) -> ScimUser | None:
    """One of the people of a source."""
    row = await connection.fetchrow(
        f"SELECT {_PERSON} FROM identity.scim_person p"
        " WHERE p.source_id = $1 AND p.id = $2 AND p.deleted_at IS NULL",
        source_id,
        person_id,
    )
    return _person(row) if row else None


async def same_person(connection: Connection, new: ScimUser) -> ScimUser | None:
    """Somebody of the source with the user name of a new person, or, of those whom it has no more,
    with the address."""
    row = await connection.fetchrow(
        f"SELECT {_PERSON} FROM identity.scim_person p WHERE p.source_id = $1 AND (p.user_key = $2"
        " OR (p.deleted_at IS NOT NULL AND $3 <> '' AND p.email = $3))"
        " ORDER BY p.deleted_at IS NULL DESC, p.user_key = $2 DESC, p.deleted_at DESC, p.id"
        " LIMIT 1",
        new.source_id,
        new.user_key,
        new.email,
    )
    return _person(row) if row else None


async def write_person(connection: Connection, person: ScimUser) -> None:
    """Adds or writes somebody.

    Raises:
        DomainError: ALREADY_EXISTS when the source has the user name.
    """
    try:
        await connection.execute(
            "INSERT INTO identity.scim_person (id, source_id, tenant_id, user_name, user_key,"
            " external_id, active, email, attributes, problem, created_at, updated_at, deleted_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
            " ON CONFLICT (id) DO UPDATE SET user_name = excluded.user_name,"
            " user_key = excluded.user_key, external_id = excluded.external_id,"
            " active = excluded.active, email = excluded.email,"
            " attributes = excluded.attributes, problem = excluded.problem,"
            " created_at = excluded.created_at, updated_at = excluded.updated_at,"
            " deleted_at = excluded.deleted_at",
            person.id,
            person.source_id,
            person.tenant_id,
            person.user_name,
            person.user_key,
            person.external_id or None,
            person.active,
            person.email,
            json.dumps(person.attributes),
            person.problem,
            person.created_at,
            person.updated_at,
            person.deleted_at,
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name == "scim_user_name_taken":
            raise taken("userName") from error
        raise


async def list_people(
    connection: Connection, source_id: UUID, found: Filter | None, start: int, count: int
) -> tuple[int, list[ScimUser]]:
    """People of a source for whom a filter holds, and how many they are.

    Args:
        start: from which on, of all, beginning with 1.
        count: how many at most.
    """
    of_source = "p.source_id = $1 AND p.deleted_at IS NULL"
    where, parameters = narrowed(of_source, source_id, found, PERSON_FIELDS, USER)
    total = await connection.fetchval(
        f"SELECT count(*) FROM identity.scim_person p WHERE {where}", *parameters
    )
    if not count or start > total:
        return total, []
    rows = await connection.fetch(
        f"SELECT {_PERSON} FROM identity.scim_person p WHERE {where}"
        f" ORDER BY p.id OFFSET {start - 1} LIMIT {count}",
        *parameters,
    )
    return total, [_person(row) for row in rows]


async def groups_of(
    connection: Connection, person_ids: Sequence[UUID]
) -> dict[UUID, list[GroupOf]]:
    """The groups that people are in, by the people."""
    rows = await connection.fetch(
        "SELECT m.person_id, g.id, g.display_name FROM identity.scim_member m"
        " JOIN identity.scim_group g ON g.id = m.group_id WHERE m.person_id = ANY ($1)"
        " ORDER BY g.display_name, g.id",
        list(person_ids),
    )
    found: dict[UUID, list[GroupOf]] = {}
    for row in rows:
        found.setdefault(row["person_id"], []).append(GroupOf(row["id"], row["display_name"]))
    return found


async def listed_people(
    connection: Connection, source_id: UUID, after: UUID | None, limit: int
) -> Page[ListedPerson, UUID]:
    """People of a source behind a position, with their accounts, oldest first; those whom it has
    no more as long as their accounts would lose access."""
    rows = await connection.fetch(
        f"SELECT {_PERSON}, e.account_id FROM identity.scim_person p"
        " LEFT JOIN identity.external_identity e"
        " ON e.source_id = p.source_id AND e.subject = p.id::text"
        " WHERE p.source_id = $1 AND (p.deleted_at IS NULL OR p.problem = $4)"
        " AND ($2::uuid IS NULL OR p.id > $2) ORDER BY p.id LIMIT $3",
        source_id,
        after,
        limit + 1,
        HELD,
    )
    groups = await groups_of(connection, [row["id"] for row in rows])
    found = [
        ListedPerson(
            _person(row),
            row["account_id"],
            tuple(one.display for one in groups.get(row["id"], [])),
        )
        for row in rows
    ]
    return Page.of(found, limit, lambda one: one.person.id)


async def are_people(
    connection: Connection, source_id: UUID, person_ids: Sequence[UUID]
) -> set[UUID]:
    """Those of some people whom a source has."""
    rows = await connection.fetch(
        "SELECT id FROM identity.scim_person"
        " WHERE source_id = $1 AND id = ANY ($2) AND deleted_at IS NULL",
        source_id,
        list(person_ids),
    )
    return {row["id"] for row in rows}
