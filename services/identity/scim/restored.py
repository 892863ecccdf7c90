"""What a restore has to know of SCIM: nobody is in a group again by an old backup.

The source itself does not send again what it has sent. So people and members of whom it is known
that they went since the backup go; the others, and those who came since, the source sends again
when an administrator restarts it over there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from contract.events.identity.scim import (
    ScimGroupDeleted,
    ScimGroupUpdated,
    ScimPersonCreated,
    ScimPersonDeleted,
    ScimPersonUpdated,
)
from servicekit.data.backup import Connection, Recorded
from services.identity.scim.domain import MOST_EVENT_MEMBERS, UNLINKED

_OF_PEOPLE: Final = frozenset(
    {ScimPersonCreated.NAME, ScimPersonUpdated.NAME, ScimPersonDeleted.NAME}
)


@dataclass(slots=True)
class KnownScim:
    """What is known of people and groups since the backup."""

    members: set[tuple[UUID, UUID]] | None = None
    """Groups and who is in them; `None` where the database that is replaced cannot be read."""
    present: set[UUID] | None = None
    """People whom their sources have; likewise."""
    names: dict[UUID, tuple[str, str]] | None = None
    """Names and external ids of groups; likewise."""
    told_people: dict[UUID, tuple[datetime, bool, bool]] = field(default_factory=dict)
    """When the audit log last told of people, and whether they were deleted or inactive then."""
    inactive: set[UUID] = field(default_factory=set)
    """As the database that is replaced knows them."""
    unlinked: set[UUID] = field(default_factory=set)
    """Those whose account an Owner has taken out of the source, likewise."""
    gone: set[UUID] = field(default_factory=set)
    """Groups and people that were deleted; people left all groups by that, whoever came back."""
    left: set[tuple[UUID, UUID]] = field(default_factory=set)
    """Groups, and who left them, as far as the audit log names them."""
    emptied: set[UUID] = field(default_factory=set)
    """Groups that more left than it names."""
    told_names: dict[UUID, tuple[datetime, str, str]] = field(default_factory=dict)
    """When groups got which names and external ids, as the audit log says it."""

    async def read(self, connection: Connection) -> None:
        """Takes what a database knows that is about to be replaced."""
        if not await _there(connection):
            return
        members = await connection.fetch("SELECT group_id, person_id FROM identity.scim_member")
        self.members = {(row["group_id"], row["person_id"]) for row in members}
        people = await connection.fetch(
            "SELECT id, active, problem FROM identity.scim_person WHERE deleted_at IS NULL"
        )
        self.present = {row["id"] for row in people}
        self.inactive |= {row["id"] for row in people if not row["active"]}
        self.unlinked |= {row["id"] for row in people if row["problem"] == UNLINKED}
        groups = await connection.fetch(
            "SELECT id, display_name, coalesce(external_id, '') AS external_id"
            " FROM identity.scim_group"
        )
        self.names = {row["id"]: (row["display_name"], row["external_id"]) for row in groups}

    def learn(self, entry: Recorded) -> None:
        """Takes an entry of the audit log."""
        if entry.action == ScimGroupDeleted.NAME:
            self.gone.add(UUID(entry.name))
        elif entry.action in _OF_PEOPLE:
            gone = entry.action == ScimPersonDeleted.NAME
            state = (entry.at, gone, not gone and not entry.after["active"])
            person_id = UUID(entry.name)
            if gone:
                self.gone.add(person_id)
            # The source may have had the person again.
            self.told_people[person_id] = max(self.told_people.get(person_id, state), state)
        elif entry.action == ScimGroupUpdated.NAME:
            group_id = UUID(entry.name)
            removed = [UUID(one) for one in entry.after["removed"]]
            self.left |= {(group_id, one) for one in removed}
            if len(removed) >= MOST_EVENT_MEMBERS:
                self.emptied.add(group_id)
            name, given = str(entry.after["displayName"]), str(entry.after["externalId"])
            told = self.told_names.get(group_id, (entry.at, name, given))
            self.told_names[group_id] = max(told, (entry.at, name, given))


async def bring_scim(connection: Connection, known: KnownScim) -> None:
    """Takes people and members away who went since."""
    # An older archive has no such tables.
    if not await _there(connection):
        return
    people = {row["id"] for row in await connection.fetch("SELECT id FROM identity.scim_person")}
    gone = {one for one, (_, deleted, _) in known.told_people.items() if deleted} & people
    if known.present is not None:
        gone |= people - known.present
    inactive = known.inactive | {
        one for one, (_, _, was_inactive) in known.told_people.items() if was_inactive
    }
    await connection.execute(
        "UPDATE identity.scim_person SET deleted_at = coalesce(deleted_at, now())"
        " WHERE id = ANY ($1)",
        list(gone),
    )
    await connection.execute(
        "UPDATE identity.scim_person SET active = false WHERE id = ANY ($1)", list(inactive)
    )
    await connection.execute(
        "UPDATE identity.scim_person SET problem = $2 WHERE id = ANY ($1)",
        list(known.unlinked),
        UNLINKED,
    )
    rows = await connection.fetch("SELECT group_id, person_id FROM identity.scim_member")
    members = {(row["group_id"], row["person_id"]) for row in rows}
    lost = {
        one
        for one in members
        if one in known.left or one[0] in known.emptied or one[1] in known.gone
    }
    if known.members is not None:
        # What the log says was undone since, as far as this says so.
        lost = members - known.members | {one for one in members if one[1] in gone}
    await connection.executemany(
        "DELETE FROM identity.scim_member WHERE group_id = $1 AND person_id = $2", list(lost)
    )
    await _bring_groups(connection, known)


async def _bring_groups(connection: Connection, known: KnownScim) -> None:
    rows = await connection.fetch("SELECT id, display_name, external_id FROM identity.scim_group")
    groups = {row["id"]: (row["display_name"], row["external_id"] or "") for row in rows}
    gone = known.gone & set(groups)
    names = {one: (name, given) for one, (_, name, given) in known.told_names.items()}
    if known.names is not None:
        gone |= set(groups) - set(known.names)
        names = known.names
    await connection.execute("DELETE FROM identity.scim_group WHERE id = ANY ($1)", list(gone))
    others = {
        one: names[one]
        for one, name in groups.items()
        if one not in gone and names.get(one, name) != name
    }
    await connection.execute(
        # Two that have changed names have the same for a moment.
        "UPDATE identity.scim_group SET name_key = id::text, external_id = NULL"
        " WHERE id = ANY ($1)",
        list(others),
    )
    await connection.executemany(
        "UPDATE identity.scim_group SET display_name = $2, name_key = $3,"
        " external_id = nullif($4, '') WHERE id = $1",
        [(one, name, name.casefold(), given) for one, (name, given) in others.items()],
    )


async def _there(connection: Connection) -> bool:
    found = await connection.fetchval("SELECT to_regclass('identity.scim_person')")
    return found is not None
