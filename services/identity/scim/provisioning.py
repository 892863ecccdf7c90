"""What identity providers do by SCIM: people and groups of one source, and of no other.

The caller is a source, known by its token. Its own rows alone are seen; changes of one source wait
for each other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from contract.events.identity.scim import (
    ScimGroupCreated,
    ScimGroupDeleted,
    ScimGroupUpdated,
    ScimPersonCreated,
    ScimPersonDeleted,
    ScimPersonUpdated,
)
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import (
    Code,
    DomainError,
    failed_precondition,
    not_found,
    permission_denied,
    unauthenticated,
)
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from services.identity.api_tokens import store as tokens_store
from services.identity.scim import group_store, people_store, resources, standing_store, ways_in
from services.identity.scim.domain import (
    MOST_EVENT_MEMBERS,
    MOST_GROUPS,
    MOST_PEOPLE,
    ScimGroupRow,
    ScimUser,
    taken,
)
from services.identity.scim.filters import Filter
from services.identity.scim.patches import group_change, patched_user
from services.identity.scim.resources import GroupOf
from services.identity.scim.settling import Settling
from services.identity.sources import store as sources_store
from services.identity.sources.domain import Source
from services.identity.sources.service import SourceAccounts

_MOST_LISTED: Final = 5_000
"""Members in one answer of several groups: a page ends there, and the client asks for the next."""


@dataclass(frozen=True, slots=True)
class ShownUser:
    """A person with the groups that the person is in."""

    user: ScimUser
    groups: Sequence[GroupOf] = ()


@dataclass(frozen=True, slots=True)
class ShownGroup:
    """A group with its members, unless they were not asked for."""

    group: ScimGroupRow
    members: Sequence[UUID] = ()


class Provisioning:
    """The use cases of SCIM's protocol."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        accounts: SourceAccounts,
        settling: Settling,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._accounts = accounts
        self._settling = settling
        self._clock = clock

    # People

    async def users(
        self, call: Call, found: Filter | None, start: int, count: int
    ) -> tuple[int, list[ShownUser]]:
        """People of the source for whom a filter holds, and how many they are."""
        async with self._reading(call) as (connection, source):
            total, users = await people_store.list_people(
                connection, source.id, found, start, count
            )
            groups = await people_store.groups_of(connection, [one.id for one in users])
        return total, [ShownUser(one, groups.get(one.id, ())) for one in users]

    async def user(self, call: Call, user_id: str) -> ShownUser:
        """One of the people of the source.

        Raises:
            DomainError: NOT_FOUND.
        """
        async with self._reading(call) as (connection, source):
            return await self._shown_user(connection, await self._user(connection, source, user_id))

    async def create_user(self, call: Call, body: Mapping[str, Any]) -> ShownUser:
        """Adds somebody, or takes somebody back whom the source had before.

        Raises:
            DomainError: INVALID_ARGUMENT; ALREADY_EXISTS for a user name or an address that is
                somebody's, here or anywhere.
        """
        said = resources.user_body(body)
        async with self._changing(call) as (connection, source):
            at = self._clock()
            user = ScimUser(
                id=new_id(),
                source_id=source.id,
                tenant_id=source.tenant_id,
                user_name=said["userName"],
                external_id=said.get("externalId", ""),
                active=said.get("active", True),
                attributes=_attributes(said),
                created_at=at,
                updated_at=at,
            )
            before = await people_store.same_person(connection, user)
            if before is not None and before.deleted_at is None:
                raise taken("userName")
            if before is not None:
                if before.email != user.email or before.external_id != user.external_id:
                    # Maybe another human. Where the loss of access was held, all is still there.
                    await ways_in.close(connection, self._outbox, source, [str(before.id)], at)
                user = replace(user, id=before.id, updated_at=_later(before.updated_at, at))
            elif await people_store.count_people(connection, source.id) >= MOST_PEOPLE:
                raise failed_precondition(
                    "TOO_MANY_USERS", f"the source has {MOST_PEOPLE} users; delete some first"
                )
            await self._check_address(connection, source, user)
            await people_store.write_person(connection, user)
            event = ScimPersonCreated(id=user.id, after=user.snapshot())
            await self._outbox.append(connection, CloudEvent(event, source.tenant_id))
            await self._settling.settle(connection, source, [user.id], at)
            return ShownUser(user)

    async def replace_user(
        self, call: Call, user_id: str, body: Mapping[str, Any], if_match: str
    ) -> ShownUser:
        """Puts other attributes in the place of somebody's; who is said nothing of being active
        stays what the person is.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT; ALREADY_EXISTS as `create_user`; ABORTED for
                another version.
        """
        said = resources.user_body(body)
        async with self._changing(call) as (connection, source):
            before = await self._user(connection, source, user_id, if_match)
            return await self._update(connection, source, before, said)

    async def patch_user(
        self, call: Call, user_id: str, body: Mapping[str, Any], if_match: str
    ) -> ShownUser:
        """Changes somebody.

        Raises:
            DomainError: as `replace_user`.
        """
        async with self._changing(call) as (connection, source):
            before = await self._user(connection, source, user_id, if_match)
            return await self._update(connection, source, before, patched_user(_kept(before), body))

    async def _update(
        self, connection: Connection, source: Source, before: ScimUser, said: Mapping[str, Any]
    ) -> ShownUser:
        at = self._clock()
        after = replace(
            before,
            user_name=said["userName"],
            external_id=said.get("externalId", ""),
            active=said.get("active", before.active),
            attributes=_attributes(said),
        )
        if after != before:
            after = replace(after, updated_at=_later(before.updated_at, at))
            if after.email != before.email:
                await self._check_address(connection, source, after)
            await people_store.write_person(connection, after)
            event = ScimPersonUpdated(id=after.id, before=before.snapshot(), after=after.snapshot())
            await self._outbox.append(connection, CloudEvent(event, source.tenant_id))
        # Also when nothing is new: an administrator may have deleted the account, say.
        await self._settling.settle(connection, source, [after.id], at)
        return await self._shown_user(connection, after)

    async def delete_user(self, call: Call, user_id: str, if_match: str) -> None:
        """Deletes somebody: the account is disabled, and found again when the source has the
        person again.

        Raises:
            DomainError: NOT_FOUND; ABORTED for another version.
        """
        async with self._changing(call) as (connection, source):
            at = self._clock()
            before = await self._user(connection, source, user_id, if_match)
            after = replace(before, deleted_at=at, updated_at=_later(before.updated_at, at))
            await people_store.write_person(connection, after)
            await group_store.leave_groups(connection, before.id, at)
            event = ScimPersonDeleted(id=before.id, before=before.snapshot())
            await self._outbox.append(connection, CloudEvent(event, source.tenant_id))
            await self._settling.settle(connection, source, [before.id], at)

    async def _check_address(self, connection: Connection, source: Source, user: ScimUser) -> None:
        """Refuses an address that anybody in the installation has.

        Raises:
            DomainError: ALREADY_EXISTS.
        """
        email = user.email
        if email and await self._accounts.is_taken(connection, source, str(user.id), email):
            raise taken("userName")

    async def _user(
        self, connection: Connection, source: Source, user_id: str, if_match: str = ""
    ) -> ScimUser:
        found = None
        if (known := _id(user_id)) is not None:
            found = await people_store.person(connection, source.id, known)
        if found is None:
            raise not_found("user", user_id)
        check_version(if_match, found.version)
        return found

    @staticmethod
    async def _shown_user(connection: Connection, user: ScimUser) -> ShownUser:
        groups = await people_store.groups_of(connection, [user.id])
        return ShownUser(user, groups.get(user.id, ()))

    # Groups

    async def groups(
        self, call: Call, found: Filter | None, start: int, count: int, *, members: bool
    ) -> tuple[int, list[ShownGroup]]:
        """Groups of the source for which a filter holds, and how many they are.

        Args:
            members: whether their members are listed, too; then a page may be shorter.
        """
        async with self._reading(call) as (connection, source):
            total, groups = await group_store.list_groups(
                connection, source.id, found, start, count
            )
            if not members:
                return total, [ShownGroup(one) for one in groups]
            listed: list[ScimGroupRow] = []
            many = 0
            for one in groups:
                many += one.members
                if listed and many > _MOST_LISTED:
                    break
                listed.append(one)
            people = await group_store.members(connection, [one.id for one in listed])
        return total, [ShownGroup(one, people.get(one.id, ())) for one in listed]

    async def group(self, call: Call, group_id: str, *, members: bool) -> ShownGroup:
        """One of the groups of the source.

        Raises:
            DomainError: NOT_FOUND.
        """
        async with self._reading(call) as (connection, source):
            found = await self._group(connection, source, group_id)
            return await self._shown_group(connection, found, members=members)

    async def create_group(self, call: Call, body: Mapping[str, Any]) -> ShownGroup:
        """Adds a group.

        Raises:
            DomainError: INVALID_ARGUMENT; ALREADY_EXISTS for a name that another one has.
        """
        said = resources.group_body(body)
        async with self._changing(call) as (connection, source):
            at = self._clock()
            if await group_store.count_groups(connection, source.id) >= MOST_GROUPS:
                raise failed_precondition(
                    "TOO_MANY_GROUPS", f"the source has {MOST_GROUPS} groups; delete some first"
                )
            group = ScimGroupRow(
                id=new_id(),
                source_id=source.id,
                tenant_id=source.tenant_id,
                display_name=said.display_name,
                external_id=said.external_id,
                created_at=at,
                updated_at=at,
            )
            await group_store.write_group(connection, group)
            added = sorted(said.members or ())
            await self._check_members(connection, source, added)
            await group_store.change_members(connection, group, added, [])
            group = replace(group, members=len(added))
            after = replace(group.snapshot(), added=tuple(added[:MOST_EVENT_MEMBERS]))
            event = ScimGroupCreated(id=group.id, after=after)
            await self._outbox.append(connection, CloudEvent(event, source.tenant_id))
            if await standing_store.is_mapped(connection, source.id, [group.id]):
                await self._settling.settle(connection, source, added, at)
            return await self._shown_group(connection, group, members=True)

    async def replace_group(
        self, call: Call, group_id: str, body: Mapping[str, Any], if_match: str, *, members: bool
    ) -> ShownGroup:
        """Puts another name and other members in the place of a group's, which keeps its members
        where nothing is said of them.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT; ALREADY_EXISTS; ABORTED for another version.
        """
        said = resources.group_body(body)
        async with self._changing(call) as (connection, source):
            before = await self._group(connection, source, group_id, if_match)
            after = replace(before, display_name=said.display_name, external_id=said.external_id)
            known = await group_store.member_ids(connection, before.id)
            wanted = said.members if said.members is not None else known
            return await self._change_group(
                connection, source, before, after, wanted - known, known - wanted, members=members
            )

    async def patch_group(
        self, call: Call, group_id: str, body: Mapping[str, Any], if_match: str, *, members: bool
    ) -> ShownGroup:
        """Changes a group.

        Raises:
            DomainError: as `replace_group`.
        """
        change = group_change(body)
        async with self._changing(call) as (connection, source):
            before = await self._group(connection, source, group_id, if_match)
            after = before
            if change.display_name is not None:
                after = replace(after, display_name=change.display_name)
            if change.external_id is not None:
                after = replace(after, external_id=change.external_id)
            if change.instead is not None:
                known = await group_store.member_ids(connection, before.id)
                wanted = change.instead | change.added
                added, removed = wanted - known, known - wanted
            else:
                named = [*change.added, *change.removed]
                known = await group_store.are_members(connection, before.id, named)
                added, removed = change.added - known, change.removed & known
            return await self._change_group(
                connection, source, before, after, added, removed, members=members
            )

    async def _change_group(
        self,
        connection: Connection,
        source: Source,
        before: ScimGroupRow,
        after: ScimGroupRow,
        added: frozenset[UUID] | set[UUID],
        removed: frozenset[UUID] | set[UUID],
        *,
        members: bool,
    ) -> ShownGroup:
        at = self._clock()
        if after != before or added or removed:
            after = replace(after, updated_at=_later(before.updated_at, at))
            mapped = await standing_store.is_mapped(connection, source.id, [before.id])
            await group_store.write_group(connection, after)
            mapped = mapped or await standing_store.is_mapped(connection, source.id, [after.id])
            come, gone = sorted(added), sorted(removed)
            await self._check_members(connection, source, come)
            await group_store.change_members(connection, after, come, gone)
            after = replace(after, members=before.members + len(come) - len(gone))
            event = ScimGroupUpdated(
                id=after.id,
                before=before.snapshot(),
                after=replace(
                    after.snapshot(),
                    added=tuple(come[:MOST_EVENT_MEMBERS]),
                    removed=tuple(gone[:MOST_EVENT_MEMBERS]),
                ),
            )
            await self._outbox.append(connection, CloudEvent(event, source.tenant_id))
            concerned = added | removed
            if _names(after) != _names(before):
                concerned = concerned | await group_store.member_ids(connection, after.id)
            if mapped:
                await self._settling.settle(connection, source, sorted(concerned), at)
        return await self._shown_group(connection, after, members=members)

    async def delete_group(self, call: Call, group_id: str, if_match: str) -> None:
        """Deletes a group; its members lose what it gave them.

        Raises:
            DomainError: NOT_FOUND; ABORTED for another version.
        """
        async with self._changing(call) as (connection, source):
            at = self._clock()
            before = await self._group(connection, source, group_id, if_match)
            mapped = await standing_store.is_mapped(connection, source.id, [before.id])
            concerned = (
                sorted(await group_store.member_ids(connection, before.id)) if mapped else []
            )
            await group_store.delete_group(connection, before)
            event = ScimGroupDeleted(id=before.id, before=before.snapshot())
            await self._outbox.append(connection, CloudEvent(event, source.tenant_id))
            await self._settling.settle(connection, source, concerned, at)

    @staticmethod
    async def _check_members(
        connection: Connection, source: Source, person_ids: Sequence[UUID]
    ) -> None:
        known = await people_store.are_people(connection, source.id, person_ids)
        for one in person_ids:
            if one not in known:
                raise resources.no_member(one)

    async def _group(
        self, connection: Connection, source: Source, group_id: str, if_match: str = ""
    ) -> ScimGroupRow:
        found = None
        if (known := _id(group_id)) is not None:
            found = await group_store.group(connection, source.id, known)
        if found is None:
            raise not_found("group", group_id)
        check_version(if_match, found.version)
        return found

    @staticmethod
    async def _shown_group(
        connection: Connection, group: ScimGroupRow, *, members: bool
    ) -> ShownGroup:
        if not members:
            return ShownGroup(group)
        people = await group_store.members(connection, [group.id])
        return ShownGroup(group, people.get(group.id, ()))

    # The source that calls

    @asynccontextmanager
    async def _reading(self, call: Call) -> AsyncIterator[tuple[Connection, Source]]:
        scope = Scope.of(UUID(call.caller.tenant_id))
        async with self._database.transaction(scope) as connection:
            yield connection, await self._source(connection, call)

    @asynccontextmanager
    async def _changing(self, call: Call) -> AsyncIterator[tuple[Connection, Source]]:
        async with self._database.system_transaction(
            "an address is one in the whole system"
        ) as connection:
            source = await self._source(connection, call, lock="FOR UPDATE")
            token = call.caller.token
            if token is None or not await tokens_store.works(connection, UUID(token.id)):
                raise _ended()
            yield connection, source
        await self._tenants.follower.try_refresh()

    @staticmethod
    async def _source(connection: Connection, call: Call, *, lock: str = "") -> Source:
        scope = Scope.of(UUID(call.caller.tenant_id))
        source = await sources_store.source(connection, scope, UUID(call.caller.id), lock=lock)
        if source is None or source.kind != "scim":
            raise _ended()
        if not source.enabled:
            raise permission_denied(
                "SOURCE_DISABLED", "the SCIM source is not enabled; ask an Owner"
            )
        return source


def check_version(if_match: str, version: str) -> None:
    """Refuses a change of another version than the client has seen (RFC 7644, section 3.14).

    Raises:
        DomainError: ABORTED.
    """
    if not if_match or if_match.strip() == "*":
        return
    known = version.removeprefix("W/")
    if known not in {one.strip().removeprefix("W/") for one in if_match.split(",")}:
        raise DomainError(
            Code.ABORTED,
            "ETAG_MISMATCH",
            "it was changed since you read it; read it again",
            http_status=412,
        )


def _ended() -> DomainError:
    return unauthenticated("TOKEN_ENDED", "the token was revoked, or has ended; make a new one")


def _id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _attributes(said: Mapping[str, Any]) -> dict[str, Any]:
    return {name: said[name] for name in ("name", "displayName", "emails") if name in said}


def _kept(user: ScimUser) -> dict[str, Any]:
    """What is kept of somebody, with canonical names."""
    return {
        "userName": user.user_name,
        "externalId": user.external_id or None,
        "active": user.active,
        **user.attributes,
    }


def _names(group: ScimGroupRow) -> tuple[str, str]:
    return group.display_name, group.external_id


def _later(before: datetime, at: datetime) -> datetime:
    """A time behind the last change, so that the version is another one."""
    return max(at, before + timedelta(microseconds=1))
