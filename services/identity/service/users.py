"""The people who administer tenants."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from servicekit.access import Role
from servicekit.call import Call
from servicekit.errors import not_found, unauthenticated
from servicekit.events import Event
from servicekit.ids import Clock, new_id
from servicekit.outbox import Outbox
from servicekit.postgres import Connection, Database
from servicekit.tenants import TenantDirectory
from services.identity import store
from services.identity.domain import (
    INVITATION_LIFE,
    User,
    check_may_invite,
    check_may_manage,
    check_not_self,
    new_secret,
    normalise_email,
    secret_hash,
)
from services.identity.passwords import Passwords


class Users:
    """The use cases around users."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        directory: TenantDirectory,
        passwords: Passwords,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._directory = directory
        self._passwords = passwords
        self._clock = clock

    async def list(self, call: Call, org_id: str, after: UUID | None, limit: int) -> list[User]:
        """Users of one tenant or of the caller's subtree, behind a position."""
        scope = await self._directory.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.list_users(connection, scope, after, limit)

    async def get(self, call: Call, user_id: str) -> User:
        """One user of the caller's subtree.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._directory.query_scope(call.caller, "")
        async with self._database.transaction(scope) as connection:
            found = await store.user(connection, UUID(user_id))
        if found is None:
            raise not_found("user", user_id)
        return found

    async def create(
        self, call: Call, email: str, role: Role, tenant_id: str, password: str | None
    ) -> tuple[User, str | None]:
        """Adds a user; answers the user and, without a password, an invitation token.

        Raises:
            DomainError: PERMISSION_DENIED when an Admin makes an Owner; NOT_FOUND for the
                tenant; ALREADY_EXISTS when the address is taken.
        """
        check_may_manage(call.caller.role, role)
        tenant = await self._directory.require(call.caller, tenant_id or call.caller.tenant_id)
        at = self._clock()
        user = User(
            new_id(),
            tenant.id,
            normalise_email(email),
            role,
            "active" if password is not None else "invited",
            at,
        )
        password_hash = await self._passwords.hash(password) if password is not None else None
        invitation = None if password is not None else new_secret()
        scope = self._directory.scope(UUID(call.caller.tenant_id))
        async with self._database.transaction(scope) as connection:
            await self._check_actor(connection, call)
            await store.insert_user(
                connection,
                user,
                password_hash=password_hash,
                invitation=(secret_hash(invitation), at + INVITATION_LIFE) if invitation else None,
            )
            await self._outbox.append(
                connection,
                Event("identity.user_created", tenant.id, f"users/{user.id}", after=user.audit()),
            )
        return user, invitation

    async def set_role(self, call: Call, user_id: str, role: Role) -> User:
        """Changes a user's role and ends the user's sessions, which have the old one.

        Raises:
            DomainError: NOT_FOUND, PERMISSION_DENIED, or FAILED_PRECONDITION for oneself.
        """
        scope = await self._directory.query_scope(call.caller, "")
        async with self._database.transaction(scope) as connection:
            before = await self._manageable(connection, call, user_id, role)
            if before.role is role:
                return before
            check_not_self(call.caller.id, before)
            after = replace(before, role=role)
            await self._write(connection, "identity.user_updated", before, after)
        await self._directory.follower.try_refresh()
        return after

    async def deactivate(self, call: Call, user_id: str) -> User:
        """Disables a user and ends the user's sessions.

        Raises:
            DomainError: NOT_FOUND, PERMISSION_DENIED, or FAILED_PRECONDITION for oneself.
        """
        scope = await self._directory.query_scope(call.caller, "")
        async with self._database.transaction(scope) as connection:
            before = await self._manageable(connection, call, user_id)
            check_not_self(call.caller.id, before)
            if before.status == "disabled":
                return before
            after = replace(before, status="disabled")
            await self._write(connection, "identity.user_deactivated", before, after)
        await self._directory.follower.try_refresh()
        return after

    async def invite(self, call: Call, user_id: str) -> tuple[User, str]:
        """Invites a user (again); the old password and all sessions end.

        Raises:
            DomainError: NOT_FOUND, PERMISSION_DENIED, or FAILED_PRECONDITION for oneself.
        """
        token = new_secret()
        scope = await self._directory.query_scope(call.caller, "")
        async with self._database.transaction(scope) as connection:
            before = await self._manageable(connection, call, user_id)
            check_not_self(call.caller.id, before)
            check_may_invite(call.caller.role, before)
            after = replace(before, status="invited")
            at = self._clock()
            await store.set_invitation(
                connection, before.id, secret_hash(token), at + INVITATION_LIFE, at
            )
            await self._write(connection, "identity.user_invited", before, after)
        await self._directory.follower.try_refresh()
        return after, token

    async def _manageable(
        self, connection: Connection, call: Call, user_id: str, role: Role | None = None
    ) -> User:
        """The user, locked, if the caller may manage such a one (and grant `role`)."""
        await self._check_actor(connection, call)
        found = await store.user(connection, UUID(user_id), for_update=True)
        if found is None:
            raise not_found("user", user_id)
        check_may_manage(call.caller.role, found.role, *([role] if role else []))
        return found

    async def _check_actor(self, connection: Connection, call: Call) -> None:
        """Refuses an actor who lost the role a moment ago.

        The lock makes two Owners who disable each other take turns, so that one remains.
        """
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('identity:users'))")
        actor = await store.user(connection, UUID(call.caller.id))
        if actor is None or actor.status != "active" or actor.role is not call.caller.role:
            raise unauthenticated("SESSION_ENDED", "the session has ended; log in again")

    async def _write(self, connection: Connection, event: str, before: User, after: User) -> None:
        at = self._clock()
        await store.update_user(connection, after, at)
        await store.end_sessions_of(connection, after.id, at)
        await self._outbox.append(
            connection,
            Event(
                event,
                after.tenant_id,
                f"users/{after.id}",
                before=before.audit(),
                after=after.audit(),
            ),
        )
