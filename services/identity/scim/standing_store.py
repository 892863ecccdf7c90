"""What decides about the accounts of SCIM sources' people, in SQL: groups that are mapped, and why
somebody has no account that can be used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection
from services.identity.scim.domain import DISABLED, HELD

_MAPPED: Final = (
    "(r.external_group = g.external_id OR (r.external_group = g.display_name AND r.external_group"
    " !~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'))"
)
"""A mapping names a group by its external id, or by its name; what is a UUID is an id."""


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


async def write_problems(connection: Connection, problems: Mapping[UUID, str]) -> None:
    """Writes why people have no accounts that can be used."""
    await connection.execute(
        "UPDATE identity.scim_person p SET problem = n.problem"
        " FROM unnest($1::uuid[], $2::text[]) AS n (id, problem)"
        " WHERE p.id = n.id AND p.problem <> n.problem",
        list(problems),
        list(problems.values()),
    )


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
