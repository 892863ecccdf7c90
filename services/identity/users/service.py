"""The people who administer tenants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Literal, Protocol, TypeAlias
from uuid import UUID

from contract.access import Role
from contract.events.identity.users import (
    UserCreated,
    UserDeactivated,
    UserDeleted,
    UserInvited,
    UserMovedAway,
    UserMovedIn,
    UserReactivated,
    UserUpdated,
)
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import failed_precondition, invalid_field, not_found, unauthenticated
from servicekit.etags import check_etag
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from servicekit.security.tokens import new_secret, secret_hash
from servicekit.texts import normal_email
from services.identity.authenticators import guess_store
from services.identity.authenticators.password_rules import Person
from services.identity.authenticators.passwords import Passwords
from services.identity.tenants import store as tenants_store
from services.identity.users import store
from services.identity.users.domain import (
    INVITATION_LIFE,
    Invitation,
    User,
    check_local,
    check_may_invite,
    check_may_manage,
    check_may_raise_by_token,
    check_may_readdress,
    check_may_readdress_by_token,
    check_not_self,
    unlinked,
)

_Change: TypeAlias = UserUpdated | UserDeactivated | UserInvited | UserReactivated
EndSessions: TypeAlias = Callable[[Connection, UUID, datetime], Awaitable[object]]
"""Ends all sessions of a user."""
OrphanCredentials: TypeAlias = Callable[[Connection, User, datetime, Scope | None], Awaitable[None]]
"""Ends the event credentials of a user until somebody takes them over, but those of a scope."""
HoldCredentials: TypeAlias = Callable[[Connection, UUID, str, str], Awaitable[None]]
"""Names a user as the holder of the user's event credentials: by id, and the address after the old
one."""


class HeldTokens(Protocol):
    """What users need to know of API tokens; the database ends those of a user who changes."""

    async def holder_changed(self, connection: Connection, holder_id: UUID) -> None:
        """Tells which tokens ended because of what the transaction did to their holder."""

    async def still_works(self, connection: Connection, token_id: UUID) -> bool:
        """Whether the token of a call works now."""


InviteByMail: TypeAlias = Callable[
    [Connection, User, str, datetime], Awaitable[Literal["queued", "off", "full"]]
]
"""Has the link of an invited user, with a token and until a time, sent by mail."""


@asynccontextmanager
async def _undone(connection: Connection, undone: bool) -> AsyncIterator[None]:
    """Does what is in the block, and takes it back when it was only to be tried."""
    if not undone:
        yield
        return
    trial = connection.transaction()
    await trial.start()
    try:
        yield
    finally:
        await trial.rollback()


class Users:
    """The use cases around users."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        directory: TenantDirectory,
        passwords: Passwords,
        end_sessions: EndSessions,
        orphan_credentials: OrphanCredentials,
        hold_credentials: HoldCredentials,
        api_tokens: HeldTokens,
        invite_by_mail: InviteByMail,
        clock: Clock,
    ) -> None:
        self._invite_by_mail = invite_by_mail
        self._database = database
        self._outbox = outbox
        self._directory = directory
        self._passwords = passwords
        self._end_sessions = end_sessions
        self._orphan_credentials = orphan_credentials
        self._hold_credentials = hold_credentials
        self._api_tokens = api_tokens
        self._clock = clock

    async def list(
        self,
        call: Call,
        org_id: UUID | None,
        after: UUID | None,
        limit: int,
        *,
        deleted: bool = False,
    ) -> Page[User, UUID]:
        """Users of one tenant or of the caller's subtree, behind a position.

        Args:
            deleted: whether those who were deleted are listed, too.
        """
        scope = await self._directory.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.list_users(connection, scope, after, limit, deleted=deleted)

    async def invited(self, call: Call, before: UUID | None, limit: int) -> Page[User, UUID]:
        """Users of the caller's subtree who are invited, newest first, before a position."""
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            return await store.invited_users(connection, scope, before, limit)

    async def get(self, call: Call, user_id: UUID) -> User:
        """One user of the caller's subtree.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            found = await store.user(connection, scope, user_id)
        if found is None:
            raise not_found("user", user_id)
        return found

    async def create(
        self, call: Call, email: str, role: Role, tenant_id: UUID | None, password: str | None
    ) -> tuple[User, Invitation | None]:
        """Adds a user; answers the user and, without a password, an invitation.

        Raises:
            DomainError: PERMISSION_DENIED when an Admin makes an Owner; NOT_FOUND for the
                tenant; ALREADY_EXISTS when the address is taken.
        """
        check_may_manage(call.caller.role, role)
        own = UUID(call.caller.tenant_id)
        tenant = await self._directory.require(call.caller, tenant_id or own, to_add=True)
        at = self._clock()
        user = User(
            id=new_id(),
            tenant_id=tenant.id,
            email=normal_email(email),
            role=role,
            status="active" if password is not None else "invited",
            created_at=at,
        )
        hashes = None
        if password is not None:
            person = Person(user.email, tenant.name, tenant.code)
            hashes = await self._passwords.hash(password, person)
        token = None if password is not None else new_secret()
        invitation = None
        scope = self._directory.scope(own)
        async with self._database.transaction(scope) as connection:
            await self._check_actor(connection, scope, call)
            await store.insert_user(
                connection,
                user,
                password=hashes,
                invitation=(secret_hash(token), at + INVITATION_LIFE) if token else None,
            )
            if token is not None:
                invitation = await self._mailed(connection, user, token, at)
            await self._outbox.append(
                connection,
                CloudEvent(UserCreated(id=user.id, after=user.snapshot()), tenant.id),
            )
        return user, invitation

    async def _mailed(
        self, connection: Connection, user: User, token: str, at: datetime
    ) -> Invitation:
        """What is shown once of an invitation, which is sent by mail where mail is sent."""
        mail = await self._invite_by_mail(connection, user, token, at + INVITATION_LIFE)
        return Invitation(token, mail)

    async def update(
        self,
        call: Call,
        user_id: UUID,
        *,
        role: Role | None = None,
        email: str | None = None,
        tenant_id: UUID | None = None,
        validate_only: bool = False,
    ) -> tuple[User, Invitation | None]:
        """Changes a user and ends the user's sessions, which say what was.

        Answers the user and, when the address of an invited one was corrected, a new invitation:
        the old one may be in somebody else's hands.

        Raises:
            DomainError: NOT_FOUND for the user or the tenant; PERMISSION_DENIED;
                FAILED_PRECONDITION for the own role or tenant; ALREADY_EXISTS when the address is
                taken; INVALID_ARGUMENT when nothing is to be changed.
        """
        caller = call.caller
        if role is None and email is None and tenant_id is None:
            raise invalid_field("role", "give what to change: role, email or orgId")
        scope = await self._directory.query_scope(caller)
        if tenant_id is not None:
            await self._directory.require(caller, tenant_id)
        async with self._database.transaction(scope) as connection:
            before = await self._manageable(connection, scope, call, user_id, role)
            after = replace(
                before,
                role=role or before.role,
                email=normal_email(email) if email is not None else before.email,
                tenant_id=tenant_id or before.tenant_id,
            )
            if after == before:
                return before, None
            check_may_raise_by_token(caller.token is not None, before, after)
            stays = (after.email, after.tenant_id) == (before.email, before.tenant_id)
            if not (stays and await store.has_role_of_its_own(connection, before)):
                check_local(before)
            if (after.role, after.tenant_id) != (before.role, before.tenant_id):
                await self._check_owner_stays(connection, call, before)
            if (after.role, after.tenant_id) != (before.role, before.tenant_id):
                check_not_self(caller.id, before)
            if after.tenant_id != before.tenant_id:
                await self._directory.require(caller, after.tenant_id, to_add=True)
            if after.email != before.email:
                check_may_readdress_by_token(caller.token is not None)
                check_may_readdress(caller.role, caller.id, before)
            invitation = None
            async with _undone(connection, validate_only):
                token = None
                if after.email != before.email and before.status == "invited":
                    token = new_secret()
                await self._change(connection, before, after, token)
                if token is not None:
                    invitation = await self._mailed(connection, after, token, self._clock())
                await self._check_owner_left(connection, call, before)
        if validate_only:
            return after, None
        await self._directory.follower.try_refresh()
        return after, invitation

    async def _change(
        self, connection: Connection, before: User, after: User, invitation: str | None
    ) -> None:
        at = self._clock()
        if invitation is not None:
            expires_at = at + INVITATION_LIFE
            await store.set_invitation(connection, before, secret_hash(invitation), expires_at, at)
        if after.tenant_id == before.tenant_id:
            await self._write(connection, UserUpdated, before, after)
        else:
            await store.update_user(connection, before, after, at)
            await self._end_sessions(connection, after.id, at)
            seen = self._directory.scope(after.tenant_id)
            await self._orphan_credentials(connection, before, at, seen)
            # To each tenant what concerns it: neither learns of the other one.
            await self._api_tokens.holder_changed(connection, after.id)
            await self._outbox.append(
                connection,
                CloudEvent(UserMovedAway(id=before.id, before=before.snapshot()), before.tenant_id),
                CloudEvent(UserMovedIn(id=after.id, after=after.snapshot()), after.tenant_id),
            )
        if after.email != before.email:
            await self._hold_credentials(connection, after.id, before.email, after.email)

    async def delete(self, call: Call, user_id: UUID, *, validate_only: bool = False) -> User:
        """Deletes a deactivated user; a tombstone stays, and the address is free again.

        Raises:
            DomainError: NOT_FOUND, PERMISSION_DENIED, or FAILED_PRECONDITION for oneself and for a
                user who is not deactivated.
        """
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await self._manageable(connection, scope, call, user_id)
            check_not_self(call.caller.id, before)
            if before.status != "disabled":
                raise failed_precondition(
                    "USER_NOT_DEACTIVATED",
                    f"the user is {before.status}; deactivate the user first",
                )
            at = self._clock()
            after = replace(before, status="deleted", deleted_at=at, deleted_by=call.caller.name)
            if validate_only:
                return after
            # The last release may have deactivated the user, and knows credentials by the address,
            # which somebody else may have next.
            await self._orphan_credentials(connection, before, at, None)
            await self._hold_credentials(connection, before.id, before.email, before.email)
            await self._end_sessions(connection, before.id, at)
            await store.bury(connection, after)
            event = UserDeleted(id=after.id, before=before.snapshot(), after=after.snapshot())
            await self._outbox.append(connection, CloudEvent(event, after.tenant_id))
        await self._directory.follower.try_refresh()
        return after

    async def deactivate(self, call: Call, user_id: UUID) -> User:
        """Disables a user and ends the user's sessions and event credentials.

        Raises:
            DomainError: NOT_FOUND, PERMISSION_DENIED, or FAILED_PRECONDITION for oneself.
        """
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await self._manageable(connection, scope, call, user_id)
            check_not_self(call.caller.id, before)
            if before.status == "disabled" and before.disabled_by == "admin":
                return before
            await self._check_owner_stays(connection, call, before)
            after = replace(before, status="disabled", disabled_by="admin")
            await self._write(connection, UserDeactivated, before, after)
            await self._orphan_credentials(connection, after, self._clock(), None)
            await self._check_owner_left(connection, call, before)
        await self._directory.follower.try_refresh()
        return after

    async def deactivate_unseen(self, unseen_for: timedelta, most: int) -> int:
        """Disables users of all tenants who were not here for so long; answers how many.

        A tenant's last active Owner stays. Time comes as far as purges of tenants let it, so that a
        clock that is ahead disables nobody.

        Args:
            most: how many at once.
        """
        async with self._database.system_transaction(
            "inactive users of all tenants are disabled"
        ) as connection:
            reached = await tenants_store.purge_reached(connection)
            before = min(self._clock(), reached) - unseen_for
            found = await store.unseen(connection, before, most)
        count = 0
        for user_id, tenant_id in found:
            scope = Scope.of(tenant_id)
            async with self._database.transaction(scope) as connection:
                await store.take_turns(connection)
                user = await store.user(connection, scope, user_id, for_update=True)
                if user is None or not await store.is_unseen(connection, user, before):
                    continue
                if await store.is_last_local_owner(connection, user):
                    continue  # who may be here for the day when a directory does not answer
                after = replace(user, status="disabled", disabled_by="admin")
                actor = f"system (not seen for {unseen_for.days} days)"
                await self._write(connection, UserDeactivated, user, after, actor)
                await self._orphan_credentials(connection, after, self._clock(), None)
            count += 1
        if found:
            await self._directory.follower.try_refresh()
        return count

    async def reactivate(self, call: Call, user_id: UUID) -> User:
        """No longer keeps a user from elsewhere out: the next sync or login lets the user in, if
        the role mappings do.

        Raises:
            DomainError: NOT_FOUND, PERMISSION_DENIED, or FAILED_PRECONDITION for a user with a
                password of the own, who is invited again instead.
        """
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await self._manageable(connection, scope, call, user_id)
            if before.origin == "local":
                raise failed_precondition(
                    "USER_IS_LOCAL", "the user logs in with a password here; invite the user again"
                )
            if before.status != "disabled" or before.disabled_by != "admin":
                return before
            after = replace(before, disabled_by="source")
            await self._write(connection, UserReactivated, before, after)
        return after

    async def invite(self, call: Call, user_id: UUID) -> tuple[User, Invitation]:
        """Invites a user (again); the old password, all sessions and all links with providers end.

        Raises:
            DomainError: NOT_FOUND; PERMISSION_DENIED for an Admin when the user was ever active;
                FAILED_PRECONDITION for oneself.
        """
        token = new_secret()
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await self._manageable(connection, scope, call, user_id)
            check_not_self(call.caller.id, before)
            check_may_invite(call.caller.role, before)
            check_local(before)
            await self._check_owner_stays(connection, call, before)
            after = replace(before, status="invited")
            at = self._clock()
            await store.set_invitation(
                connection, before, secret_hash(token), at + INVITATION_LIFE, at
            )
            # A person who had the old password may have logged in from there.
            await guess_store.forget_account(connection, before.id)
            await self._write(connection, UserInvited, before, after)
            links = await store.forget_links(connection, before.id)
            await self._outbox.append(
                connection, *(CloudEvent(one, after.tenant_id) for one in unlinked(after, links))
            )
            invitation = await self._mailed(connection, after, token, at)
        await self._directory.follower.try_refresh()
        return after, invitation

    async def _manageable(
        self,
        connection: Connection,
        scope: Scope,
        call: Call,
        user_id: UUID,
        role: Role | None = None,
    ) -> User:
        """The user, locked, if the caller may manage such a one (and grant `role`)."""
        await self._check_actor(connection, scope, call)
        found = await store.user(connection, scope, user_id, for_update=True)
        if found is None:
            raise not_found("user", user_id)
        check_may_manage(call.caller.role, found.role, *([role] if role else []))
        check_etag(found.etag)
        return found

    async def _check_owner_stays(self, connection: Connection, call: Call, user: User) -> None:
        """Keeps a tenant whose people come from elsewhere one Owner with a password here, who gets
        in when the directory or provider does not answer.

        Raises:
            DomainError: FAILED_PRECONDITION.
        """
        if not await store.is_last_local_owner(connection, user):
            return
        actor = await store.user(
            connection, Scope.of(UUID(call.caller.tenant_id)), UUID(call.caller.id)
        )
        foreign = actor is not None and actor.origin != "local"
        if foreign or await store.has_source(connection, user.tenant_id):
            raise failed_precondition(
                "LAST_LOCAL_OWNER",
                "the user is the last Owner of the organisation with a password here, who gets in"
                " when its directory does not answer; make another one first",
            )

    async def _check_actor(self, connection: Connection, scope: Scope, call: Call) -> None:
        """Refuses an actor who lost the role a moment ago.

        The lock makes two Owners who disable each other take turns, so that one remains.
        """
        await store.take_turns(connection)
        if (token := call.caller.token) is not None:
            if not await self._api_tokens.still_works(connection, UUID(token.id)):
                raise unauthenticated("TOKEN_ENDED", "the API token was revoked, or has ended")
            return
        actor = await store.user(connection, scope, UUID(call.caller.id))
        if actor is None or actor.status != "active" or actor.role is not call.caller.role:
            raise unauthenticated("SESSION_ENDED", "the session has ended; log in again")

    @staticmethod
    async def _check_owner_left(connection: Connection, call: Call, before: User) -> None:
        """A service account, which is nobody in the tenant, does not leave it without an Owner.

        Raises:
            DomainError: FAILED_PRECONDITION.
        """
        if call.caller.token is None or before.role is not Role.OWNER or before.status != "active":
            return
        if not await store.has_active_owner(connection, before.tenant_id):
            raise failed_precondition("LAST_OWNER", "it is the last active Owner of the tenant")

    async def _write(
        self,
        connection: Connection,
        event: type[_Change],
        before: User,
        after: User,
        actor: str = "",
    ) -> None:
        at = self._clock()
        await store.update_user(connection, before, after, at)
        await self._end_sessions(connection, after.id, at)
        await self._outbox.append(
            connection,
            CloudEvent(
                event(id=after.id, before=before.snapshot(), after=after.snapshot()),
                after.tenant_id,
                actor=actor,
            ),
        )
        await self._api_tokens.holder_changed(connection, after.id)
