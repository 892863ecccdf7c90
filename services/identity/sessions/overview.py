"""The sessions that are open, for those who have them and for those who manage users."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from contract.events.identity.sign_in import EndedSessions, SessionsEnded
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import not_found
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from services.identity.sessions import store
from services.identity.sessions.domain import KnownSession
from services.identity.users import store as users_store
from services.identity.users.domain import User, check_may_manage


class SessionsOverview:
    """The use cases around sessions of others, and around all of one's own."""

    def __init__(
        self, database: Database, outbox: Outbox, tenants: TenantDirectory, clock: Clock
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._clock = clock

    async def own(self, call: Call, before: UUID | None, limit: int) -> Page[KnownSession, UUID]:
        """The caller's open sessions, newest first, behind a position."""
        scope = Scope.of(UUID(call.caller.tenant_id))
        async with self._database.transaction(scope) as connection:
            return await store.open_sessions(
                connection, UUID(call.caller.id), self._clock(), before, limit
            )

    async def end_own(self, call: Call, session_id: UUID) -> int:
        """Ends one of the caller's sessions; answers how many that were.

        Raises:
            DomainError: NOT_FOUND when it is none of the caller's.
        """
        return await self._end(
            call, Scope.of(UUID(call.caller.tenant_id)), UUID(call.caller.id), only=session_id
        )

    async def end_others(self, call: Call) -> int:
        """Ends the caller's sessions but the one of the call; answers how many."""
        return await self._end(
            call,
            Scope.of(UUID(call.caller.tenant_id)),
            UUID(call.caller.id),
            but=UUID(call.caller.session_id),
        )

    async def of_user(
        self, call: Call, user_id: UUID, before: UUID | None, limit: int
    ) -> Page[KnownSession, UUID]:
        """A user's open sessions, newest first, behind a position.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            user = await self._user(connection, scope, user_id)
            return await store.open_sessions(connection, user.id, self._clock(), before, limit)

    async def end_of_user(self, call: Call, user_id: UUID, session_id: UUID | None) -> int:
        """Ends a user's sessions, or one of them; answers how many.

        Raises:
            DomainError: NOT_FOUND for the user or the session; PERMISSION_DENIED for an Admin, of
                an Owner's sessions.
        """
        scope = await self._tenants.query_scope(call.caller)
        return await self._end(call, scope, user_id, only=session_id)

    async def _end(
        self,
        call: Call,
        scope: Scope,
        user_id: UUID,
        *,
        only: UUID | None = None,
        but: UUID | None = None,
    ) -> int:
        at = self._clock()
        async with self._database.transaction(scope) as connection:
            user = await self._user(connection, scope, user_id)
            if str(user.id) != call.caller.id:
                check_may_manage(call.caller.role, user.role)
            if only is not None and not await store.is_session_of(connection, user.id, only):
                raise not_found("session", only)
            ended = await store.end_sessions_of(connection, user.id, at, only=only, but=but)
            if ended:
                await self._tell(connection, user, ended)
        if ended:
            await self._tenants.follower.try_refresh()
        return len(ended)

    async def _user(self, connection: Connection, scope: Scope, user_id: UUID) -> User:
        found = await users_store.user(connection, scope, user_id)
        if found is None:
            raise not_found("user", user_id)
        return found

    async def _tell(self, connection: Connection, user: User, ended: Sequence[UUID]) -> None:
        event = SessionsEnded(
            id=user.id,
            after=EndedSessions(
                email=user.email,
                count=len(ended),
                session_id=ended[0] if len(ended) == 1 else None,
            ),
        )
        await self._outbox.append(connection, CloudEvent(event, user.tenant_id))
