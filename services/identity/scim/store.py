"""SCIM sources, their people, groups and members, in SQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.rpc.pagination import Page
from services.identity.scim.domain import (
    DISABLED,
    HELD,
    PENDING,
    ListedPerson,
    ScimGroupRow,
    ScimSource,
    ScimUser,
    taken,
)
from services.identity.scim.filters import Field, Fields, Filter, Several, to_sql
from services.identity.scim.resources import GroupOf
from services.identity.scim.schemas import GROUP, USER
from services.identity.sources import store as sources_store
from services.identity.sources.domain import RoleMapping, Source

_SOURCE: Final = (
    "s.id, s.tenant_id, s.name, s.enabled, s.grace_hours, s.created_at, s.updated_at, c.held"
)
_COUNTS: Final = (
    "(SELECT count(*) FROM identity.scim_person p"
    " WHERE p.source_id = s.id AND p.deleted_at IS NULL) AS people,"
    " (SELECT count(*) FROM identity.scim_group g WHERE g.source_id = s.id) AS groups,"
    " (SELECT count(*) FROM identity.external_identity e WHERE e.source_id = s.id) AS users,"
    " (SELECT count(*) FROM identity.scim_person p"
    " WHERE p.source_id = s.id AND p.id > c.remapped_to) AS remaining"
)
_SOURCES: Final = "identity.source s JOIN identity.scim_source c ON c.id = s.id"
_PERSON: Final = (
    "p.id, p.source_id, p.tenant_id, p.user_name, p.external_id, p.active, p.attributes,"
    " p.problem, p.created_at, p.updated_at, p.deleted_at"
)
_GROUP: Final = (
    "g.id, g.source_id, g.tenant_id, g.display_name, g.external_id, g.created_at, g.updated_at"
)
_MEMBERS: Final = "(SELECT count(*) FROM identity.scim_member m WHERE m.group_id = g.id) AS members"
_MAPPED: Final = (
    "(r.external_group = g.external_id OR (r.external_group = g.display_name AND r.external_group"
    " !~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'))"
)
"""A mapping names a group by its external id, or by its name; what is a UUID is an id."""
_TIMES: Final = {"created": "created_at", "lastmodified": "updated_at"}

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
    **{f"meta.{name}": Field(f"p.{column}", "time") for name, column in _TIMES.items()},
}
"""What people are filtered by."""
GROUP_FIELDS: Final[Fields] = {
    "id": Field("g.id", "id"),
    "displayname": Field("g.name_key", "folded"),
    "externalid": Field("g.external_id", "exact"),
    "members": Several(
        "EXISTS (SELECT FROM identity.scim_member m WHERE m.group_id = g.id AND {where})",
        {"value": Field("m.person_id", "id")},
    ),
    **{f"meta.{name}": Field(f"g.{column}", "time") for name, column in _TIMES.items()},
}
"""What groups are filtered by."""


def _source(row: asyncpg.Record, mappings: Sequence[RoleMapping]) -> ScimSource:
    return ScimSource(
        source=Source(
            id=row["id"],
            tenant_id=row["tenant_id"],
            kind="scim",
            name=row["name"],
            enabled=row["enabled"],
            grace=timedelta(hours=row["grace_hours"]),
            created_at=row["created_at"],
            updated_at=row["updated_at"],
        ),
        mappings=tuple(mappings),
        held=row["held"] or 0,
        people=row["people"],
        groups=row["groups"],
        users=row["users"],
        remaining=row["remaining"],
    )


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


def _group(row: asyncpg.Record) -> ScimGroupRow:
    return ScimGroupRow(
        id=row["id"],
        source_id=row["source_id"],
        tenant_id=row["tenant_id"],
        display_name=row["display_name"],
        external_id=row["external_id"] or "",
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        members=row["members"],
    )


# Sources


async def insert_source(connection: Connection, source: ScimSource) -> None:
    """Adds a source with its mappings."""
    await sources_store.insert_source(connection, source.source)
    await connection.execute(
        "INSERT INTO identity.scim_source (id, tenant_id) VALUES ($1, $2)",
        source.id,
        source.source.tenant_id,
    )
    await sources_store.replace_mappings(connection, source.id, source.mappings)


async def update_source(connection: Connection, source: ScimSource) -> None:
    """Writes a source as it was changed."""
    await sources_store.update_source(connection, source.source)
    await sources_store.replace_mappings(connection, source.id, source.mappings)


async def source(
    connection: Connection, scope: Scope, source_id: UUID, *, lock: str = ""
) -> ScimSource | None:
    """One source of the scope's tenants.

    Args:
        lock: `FOR UPDATE` or `FOR SHARE`.
    """
    of = f"{lock} OF s" if lock else ""
    row = await connection.fetchrow(
        f"SELECT {_SOURCE}, {_COUNTS} FROM {_SOURCES}"
        f" WHERE s.id = $1 AND ($2::uuid[] IS NULL OR s.tenant_id = ANY ($2)) {of}",
        source_id,
        scope.tenant_ids,
    )
    if row is None:
        return None
    return _source(row, await sources_store.mappings(connection, source_id))


async def list_sources(
    connection: Connection, scope: Scope, after: UUID | None, limit: int
) -> Page[ScimSource, UUID]:
    """Sources of the scope's tenants behind a position, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_SOURCE}, {_COUNTS} FROM {_SOURCES}"
        " WHERE ($1::uuid[] IS NULL OR s.tenant_id = ANY ($1)) AND ($2::uuid IS NULL OR s.id > $2)"
        " ORDER BY s.id LIMIT $3",
        scope.tenant_ids,
        after,
        limit + 1,
    )
    found = [_source(row, await sources_store.mappings(connection, row["id"])) for row in rows]
    return Page.of(found, limit, lambda one: one.id)


async def held(connection: Connection, source_id: UUID) -> int | None:
    """From how many users a source would take access."""
    found: int | None = await connection.fetchval(
        "SELECT held FROM identity.scim_source WHERE id = $1", source_id
    )
    return found


async def hold(connection: Connection, source_id: UUID, users: int | None) -> None:
    """Writes from how many users a source would take access; `None` for nobody."""
    await connection.execute(
        "UPDATE identity.scim_source SET held = $2 WHERE id = $1", source_id, users
    )


async def remapped_to(connection: Connection, source_id: UUID) -> UUID | None:
    """Up to which of its people the last change of a source's mappings has been carried out; `None`
    when it has been for all."""
    found: UUID | None = await connection.fetchval(
        "SELECT remapped_to FROM identity.scim_source WHERE id = $1", source_id
    )
    return found


async def note_remapped(connection: Connection, source_id: UUID, to: UUID | None) -> None:
    """Notes how far a change of mappings has come; `None` for all people."""
    await connection.execute(
        "UPDATE identity.scim_source SET remapped_to = $2 WHERE id = $1", source_id, to
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


async def unsettled(connection: Connection) -> list[UUID]:
    """The sources of all tenants that hold somebody, whose mappings were changed for some of their
    people only, or whose people wait for accounts or have a problem that others than the source may
    solve."""
    rows = await connection.fetch(
        "SELECT s.id FROM identity.scim_source c JOIN identity.source s ON s.id = c.id"
        " WHERE c.remapped_to IS NOT NULL"
        " OR s.enabled AND (c.held IS NOT NULL OR EXISTS (SELECT FROM identity.scim_person p"
        " WHERE p.source_id = s.id AND p.problem = ANY ($1))) ORDER BY s.id",
        [PENDING, "EMAIL_DOMAIN", "OTHER_ACCOUNT", DISABLED],
    )
    return [row["id"] for row in rows]


async def note_disabled(connection: Connection) -> None:
    """Marks people whose accounts administrators have disabled since their source was heard."""
    await connection.execute(
        # Subjects of other kinds of sources are no ids: the cast must not see them.
        "WITH out AS MATERIALIZED (SELECT e.source_id, e.subject FROM identity.account a"
        " JOIN identity.external_identity e ON e.account_id = a.id"
        " JOIN identity.scim_source c ON c.id = e.source_id"
        " WHERE a.origin = 'scim' AND a.status = 'disabled')"
        " UPDATE identity.scim_person p SET problem = $1 FROM out"
        " WHERE p.id = out.subject::uuid AND p.source_id = out.source_id AND p.problem = ''",
        DISABLED,
    )


async def forget_gone(connection: Connection) -> None:
    """Deletes people whom their sources have no more and of whom no account is left."""
    await connection.execute(
        "DELETE FROM identity.scim_person p WHERE p.deleted_at IS NOT NULL AND NOT EXISTS"
        " (SELECT FROM identity.external_identity e"
        " WHERE e.source_id = p.source_id AND e.subject = p.id::text)"
    )


# People


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


async def write_problems(connection: Connection, problems: Mapping[UUID, str]) -> None:
    """Writes why people have no accounts that can be used."""
    await connection.execute(
        "UPDATE identity.scim_person p SET problem = n.problem"
        " FROM unnest($1::uuid[], $2::text[]) AS n (id, problem)"
        " WHERE p.id = n.id AND p.problem <> n.problem",
        list(problems),
        list(problems.values()),
    )


async def list_people(
    connection: Connection, source_id: UUID, found: Filter | None, start: int, count: int
) -> tuple[int, list[ScimUser]]:
    """People of a source for whom a filter holds, and how many they are.

    Args:
        start: from which on, of all, beginning with 1.
        count: how many at most.
    """
    where, parameters = _where("p.source_id = $1 AND p.deleted_at IS NULL", source_id, found, USER)
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


def _where(
    of_source: str, source_id: UUID, found: Filter | None, urn: str
) -> tuple[str, list[Any]]:
    parameters: list[Any] = [source_id]
    if found is None:
        return of_source, parameters
    fields = PERSON_FIELDS if urn == USER else GROUP_FIELDS
    return f"{of_source} AND ({to_sql(found, fields, parameters, urn)})", parameters


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


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides about somebody."""

    id: UUID
    email: str
    present: bool
    """Whether the source has the person, and says that the person may come in."""
    deleted: bool
    """Whether the source has the person no more."""
    groups: frozenset[str]
    """Those of the mapped groups that the person is in, spelt as in the mappings."""
    problem: str


async def standings(
    connection: Connection, source_id: UUID, person_ids: Sequence[UUID]
) -> list[Standing]:
    """What decides about people of a source, deleted ones included."""
    rows = await connection.fetch(
        "WITH mapped AS (SELECT DISTINCT g.id, r.external_group FROM identity.scim_group g"
        f" JOIN identity.role_mapping r ON r.source_id = g.source_id AND {_MAPPED}"
        " WHERE g.source_id = $1)"
        " SELECT p.id, p.email, p.active AND p.deleted_at IS NULL AS present, p.problem,"
        " p.deleted_at IS NOT NULL AS deleted,"
        " coalesce(array_agg(f.external_group) FILTER (WHERE f.id IS NOT NULL), '{}') AS groups"
        " FROM identity.scim_person p LEFT JOIN (identity.scim_member m"
        " JOIN mapped f ON f.id = m.group_id) ON m.person_id = p.id"
        " WHERE p.source_id = $1 AND p.id = ANY ($2)"
        " GROUP BY p.id ORDER BY p.id",
        source_id,
        list(person_ids),
    )
    return [
        Standing(
            row["id"],
            row["email"],
            row["present"],
            row["deleted"],
            frozenset(row["groups"]),
            row["problem"],
        )
        for row in rows
    ]


async def is_mapped(connection: Connection, source_id: UUID, group_ids: Sequence[UUID]) -> bool:
    """Whether a mapping names one of some groups."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM identity.scim_group g"
        f" JOIN identity.role_mapping r ON r.source_id = g.source_id AND {_MAPPED}"
        " WHERE g.source_id = $1 AND g.id = ANY ($2))",
        source_id,
        list(group_ids),
    )
    return found


async def write_groups_seen(
    connection: Connection, source_id: UUID, groups: Mapping[str, frozenset[str]], at: datetime
) -> None:
    """Writes which mapped groups people are in whose accounts stay what they are.

    Args:
        groups: by the people's subjects.
    """
    if not groups:
        return
    await connection.execute(
        "UPDATE identity.external_identity e SET asked_at = $3,"
        " groups_seen = ARRAY (SELECT jsonb_array_elements_text(n.value))"
        " FROM jsonb_each($2::jsonb) AS n WHERE e.source_id = $1 AND e.subject = n.key",
        source_id,
        json.dumps({subject: sorted(seen) for subject, seen in groups.items()}),
        at,
    )


async def accounts_with_ways_in(
    connection: Connection, source_id: UUID, subjects: Sequence[str]
) -> list[UUID]:
    """Accounts of people of a source that something opens, or did."""
    rows = await connection.fetch(
        "SELECT a.id FROM identity.external_identity e"
        " JOIN identity.account a ON a.id = e.account_id AND a.origin = 'scim'"
        " WHERE e.source_id = $1 AND e.subject = ANY ($2) AND ("
        " EXISTS (SELECT FROM identity.external_identity o JOIN identity.source s"
        " ON s.id = o.source_id AND s.kind <> 'scim' WHERE o.account_id = a.id)"
        " OR EXISTS (SELECT FROM identity.totp t WHERE t.account_id = a.id)"
        " OR EXISTS (SELECT FROM identity.passkey k WHERE k.account_id = a.id)"
        " OR EXISTS (SELECT FROM identity.recovery_code c WHERE c.account_id = a.id)"
        " OR EXISTS (SELECT FROM identity.session o"
        " WHERE o.account_id = a.id AND o.ended_at IS NULL)"
        " OR EXISTS (SELECT FROM identity.api_token o"
        " WHERE o.account_id = a.id AND o.ended_because IS NULL)) ORDER BY a.id",
        source_id,
        list(subjects),
    )
    return [row["id"] for row in rows]


async def guarded(connection: Connection, source_id: UUID, since: datetime) -> tuple[int, set[str]]:
    """Of how many users of a source a guard speaks, those who can log in and those who lost
    access since a time; and who lost it."""
    rows = await connection.fetch(
        "SELECT e.subject, e.lost_at > $2 AS lost FROM identity.external_identity e"
        " JOIN identity.account a ON a.id = e.account_id AND a.origin = 'scim'"
        " WHERE e.source_id = $1 AND (a.status = 'active' OR e.lost_at > $2)",
        source_id,
        since,
    )
    return len(rows), {row["subject"] for row in rows if row["lost"]}


async def people_with(
    connection: Connection, source_id: UUID, problem: str, most: int | None = None
) -> list[UUID]:
    """People of a source with a problem."""
    rows = await connection.fetch(
        "SELECT id FROM identity.scim_person WHERE source_id = $1 AND problem = $2"
        " ORDER BY id LIMIT $3",
        source_id,
        problem,
        most,
    )
    return [row["id"] for row in rows]


async def freed_people(
    connection: Connection, source_id: UUID, tenant_ids: Sequence[UUID], most: int
) -> list[UUID]:
    """People of a source whose problem was solved by others than the source: the domain is an own
    one by now, nobody else has the address, or an administrator keeps them out no more.

    Args:
        tenant_ids: whose domains are own ones.
    """
    rows = await connection.fetch(
        "SELECT p.id FROM identity.scim_person p"
        " WHERE p.source_id = $1 AND p.active AND p.deleted_at IS NULL"
        " AND (p.problem = 'EMAIL_DOMAIN' AND EXISTS (SELECT FROM identity.email_domain d"
        " WHERE d.domain = split_part(p.email, '@', 2) AND d.tenant_id = ANY ($2))"
        " OR p.problem = 'OTHER_ACCOUNT' AND NOT EXISTS"
        " (SELECT FROM identity.account a WHERE a.email = p.email) AND NOT EXISTS"
        " (SELECT FROM identity.external_identity e WHERE e.source_id = p.source_id"
        " AND e.subject = p.id::text)"
        " OR p.problem = 'DISABLED' AND EXISTS (SELECT FROM identity.external_identity e"
        " JOIN identity.account a ON a.id = e.account_id WHERE e.source_id = p.source_id"
        " AND e.subject = p.id::text AND a.origin = 'scim' AND a.disabled_by = 'source'))"
        " ORDER BY p.id LIMIT $3",
        source_id,
        list(tenant_ids),
        most,
    )
    return [row["id"] for row in rows]


async def tenants_of_domains(connection: Connection) -> set[UUID]:
    """The tenants of the scope that domains are assigned to."""
    rows = await connection.fetch("SELECT DISTINCT tenant_id FROM identity.email_domain")
    return {row["tenant_id"] for row in rows}


async def held_people(connection: Connection, source_id: UUID) -> list[UUID]:
    """People whose loss of access waits."""
    return await people_with(connection, source_id, HELD)


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


# Groups


async def count_groups(connection: Connection, source_id: UUID) -> int:
    """How many groups a source has."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM identity.scim_group WHERE source_id = $1", source_id
    )
    return found


async def group(connection: Connection, source_id: UUID, group_id: UUID) -> ScimGroupRow | None:
    """One of the groups of a source."""
    row = await connection.fetchrow(
        f"SELECT {_GROUP}, {_MEMBERS} FROM identity.scim_group g"
        " WHERE g.source_id = $1 AND g.id = $2",
        source_id,
        group_id,
    )
    return _group(row) if row else None


async def write_group(connection: Connection, group: ScimGroupRow) -> None:
    """Adds or writes a group.

    Raises:
        DomainError: ALREADY_EXISTS when the source has the name, or the external id, as either.
    """
    # By a name that is another group's id, a user who names groups would get what that maps to.
    same = await connection.fetchrow(
        "SELECT external_id = $3 AS name FROM identity.scim_group WHERE source_id = $1 AND id <> $2"
        " AND (external_id = $3 OR ($4 <> '' AND display_name = $4)) LIMIT 1",
        group.source_id,
        group.id,
        group.display_name,
        group.external_id,
    )
    if same is not None:
        raise taken("displayName" if same["name"] else "externalId")
    try:
        await connection.execute(
            "INSERT INTO identity.scim_group (id, source_id, tenant_id, display_name, name_key,"
            " external_id, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
            " ON CONFLICT (id) DO UPDATE SET display_name = excluded.display_name,"
            " name_key = excluded.name_key, external_id = excluded.external_id,"
            " updated_at = excluded.updated_at",
            group.id,
            group.source_id,
            group.tenant_id,
            group.display_name,
            group.name_key,
            group.external_id or None,
            group.created_at,
            group.updated_at,
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name == "scim_group_name_taken":
            raise taken("displayName") from error
        if error.constraint_name == "scim_group_external_id_taken":
            raise taken("externalId") from error
        raise


async def delete_group(connection: Connection, group: ScimGroupRow) -> None:
    """Deletes a group; its members stay what they are."""
    await connection.execute(
        "DELETE FROM identity.scim_group WHERE id = $1 AND source_id = $2",
        group.id,
        group.source_id,
    )


async def list_groups(
    connection: Connection, source_id: UUID, found: Filter | None, start: int, count: int
) -> tuple[int, list[ScimGroupRow]]:
    """Groups of a source for which a filter holds, as `list_people`."""
    where, parameters = _where("g.source_id = $1", source_id, found, GROUP)
    total = await connection.fetchval(
        f"SELECT count(*) FROM identity.scim_group g WHERE {where}", *parameters
    )
    if not count or start > total:
        return total, []
    rows = await connection.fetch(
        f"SELECT {_GROUP}, {_MEMBERS} FROM identity.scim_group g WHERE {where}"
        f" ORDER BY g.id OFFSET {start - 1} LIMIT {count}",
        *parameters,
    )
    return total, [_group(row) for row in rows]


async def members(connection: Connection, group_ids: Sequence[UUID]) -> dict[UUID, list[UUID]]:
    """Who is in groups, by the groups."""
    rows = await connection.fetch(
        "SELECT group_id, person_id FROM identity.scim_member WHERE group_id = ANY ($1)"
        " ORDER BY person_id",
        list(group_ids),
    )
    found: dict[UUID, list[UUID]] = {}
    for row in rows:
        found.setdefault(row["group_id"], []).append(row["person_id"])
    return found


async def member_ids(connection: Connection, group_id: UUID) -> set[UUID]:
    """Who is in a group."""
    rows = await connection.fetch(
        "SELECT person_id FROM identity.scim_member WHERE group_id = $1", group_id
    )
    return {row["person_id"] for row in rows}


async def are_members(
    connection: Connection, group_id: UUID, person_ids: Sequence[UUID]
) -> set[UUID]:
    """Those of some people who are in a group."""
    rows = await connection.fetch(
        "SELECT person_id FROM identity.scim_member WHERE group_id = $1 AND person_id = ANY ($2)",
        group_id,
        list(person_ids),
    )
    return {row["person_id"] for row in rows}


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


async def change_members(
    connection: Connection, group: ScimGroupRow, added: Sequence[UUID], removed: Sequence[UUID]
) -> None:
    """Lets people into a group and out of it."""
    await connection.execute(
        "DELETE FROM identity.scim_member WHERE group_id = $1 AND person_id = ANY ($2)",
        group.id,
        list(removed),
    )
    await connection.execute(
        "INSERT INTO identity.scim_member (group_id, person_id, tenant_id)"
        " SELECT $1, one, $3 FROM unnest($2::uuid[]) AS one ON CONFLICT DO NOTHING",
        group.id,
        list(added),
        group.tenant_id,
    )


async def leave_groups(connection: Connection, person_id: UUID, at: datetime) -> None:
    """Takes somebody out of all groups."""
    await connection.execute(
        "WITH gone AS (DELETE FROM identity.scim_member WHERE person_id = $1 RETURNING group_id)"
        " UPDATE identity.scim_group SET updated_at = greatest(updated_at, $2)"
        " WHERE id IN (SELECT group_id FROM gone)",
        person_id,
        at,
    )
