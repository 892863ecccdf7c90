"""Sessions that are open: refreshed, shown and ended; and all that opens them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from contract.events.identity.sign_in import (
    EndedSession,
    LoggedOut,
    RefreshTokenReused,
    ReusedSession,
)
from servicekit.call import Call
from servicekit.data.postgres import Database, Scope
from servicekit.errors import exhausted
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.security.tokens import secret_hash
from services.identity.authenticators.guesses import Guesses
from services.identity.directories.logins import DirectoryLogins
from services.identity.second_factor.challenges import Challenges
from services.identity.second_factor.domain import OTP, PASSKEY, RECOVERY
from services.identity.second_factor.passkeys import Passkeys
from services.identity.second_factor.service import SecondFactors
from services.identity.sessions import store
from services.identity.sessions.confirming import Confirming
from services.identity.sessions.domain import REFRESH_GRACE, OpenSession
from services.identity.sessions.logins import Logins
from services.identity.sessions.opening import Openings, wrong_refresh_token
from services.identity.sessions.own_passwords import OwnPasswords
from services.identity.sessions.second_steps import SecondSteps
from services.identity.sources.local_logins import may_log_in_here
from services.identity.token_keys.tokens import TokenSigner
from services.identity.users import store as users_store
from services.identity.users.domain import User

_SECOND: Final = frozenset({OTP, RECOVERY, PASSKEY})
"""The methods that are a second factor."""
_MAX_REFRESHES: Final = 32
"""At the same time, of everybody."""
_FORGET_AFTER: Final = timedelta(days=7)


class Sessions:
    """The use cases around open sessions."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        guesses: Guesses,
        directories: DirectoryLogins,
        factors: SecondFactors,
        passkeys: Passkeys,
        challenges: Challenges,
        signer: TokenSigner,
        openings: Openings,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._guesses = guesses
        self._directories = directories
        self._factors = factors
        self._passkeys = passkeys
        self._challenges = challenges
        self._signer = signer
        self._openings = openings
        self._clock = clock
        self._refreshes = 0

    async def refresh(self, refresh_token: str) -> OpenSession:
        """Exchanges a refresh token; one that was used a while ago ends its session.

        Raises:
            DomainError: UNAUTHENTICATED when the token is unknown, was used more than
                `REFRESH_GRACE` ago, or its session is over.
        """
        at = self._clock()
        token_hash = secret_hash(refresh_token)
        async with (
            self._refreshing(),
            self._database.system_transaction("a refresh token names no tenant") as connection,
        ):
            token = await store.refresh_token(connection, token_hash)
            if token is None or token.ended or token.expires_at <= at:
                raise wrong_refresh_token()
            user = await users_store.user(connection, Scope.of(token.tenant_id), token.account_id)
            if user is None or user.status != "active":
                raise wrong_refresh_token()
            await self._directories.check_confirmed(connection, user)
            if token.source_id is None and not await may_log_in_here(connection, user):
                raise wrong_refresh_token()
            factors = await self._factors.of(connection, user)
            lacking = (factors.any and not token.methods & _SECOND) or factors.must_set_up(at)
            if lacking and not await self._factors.is_vouched_for(
                connection, user, token.vouching_tenant_id
            ):
                raise wrong_refresh_token()
            if token.used_at is None:
                await store.use_refresh_token(connection, token_hash, at)
            if token.used_at is None or at <= token.used_at + REFRESH_GRACE:
                return await self._openings.issue(
                    connection, user, token.session_id, at, token.authenticated_at
                )
            # Somebody else has it too. Which of the two is the thief cannot be told: both go.
            await store.end_session(connection, token.session_id, at)
            await self._outbox.append(
                connection,
                CloudEvent(
                    RefreshTokenReused(
                        id=user.id,
                        after=ReusedSession(session_id=token.session_id, session_ended=True),
                    ),
                    user.tenant_id,
                ),
            )
        await self._tenants.follower.try_refresh()
        raise wrong_refresh_token()

    @asynccontextmanager
    async def _refreshing(self) -> AsyncIterator[None]:
        """Bounds refreshes, so that a flood of them leaves the database to logins."""
        if self._refreshes >= _MAX_REFRESHES:
            raise exhausted("TOO_MANY_REFRESHES", "too many refreshes at once; try again")
        self._refreshes += 1
        try:
            yield
        finally:
            self._refreshes -= 1

    def current(self, call: Call) -> OpenSession:
        """The session of the caller's token; its refresh token is not known here."""
        caller = call.caller
        assert caller.role is not None
        assert caller.expires_at is not None
        assert caller.issued_at is not None
        assert caller.authenticated_at is not None
        user = User(
            id=UUID(caller.id),
            tenant_id=UUID(caller.tenant_id),
            email=caller.email,
            role=caller.role,
            status="active",
            created_at=caller.issued_at,
        )
        token, expires_at = self._signer.session_token(
            user,
            UUID(caller.session_id),
            caller.issued_at,
            caller.authenticated_at,
            caller.expires_at,
        )
        return OpenSession(user, token, "", expires_at)

    async def logout(self, call: Call) -> None:
        """Ends the caller's session."""
        caller = call.caller
        async with self._database.transaction(Scope.of(UUID(caller.tenant_id))) as connection:
            if await store.end_session(connection, UUID(caller.session_id), self._clock()):
                await self._outbox.append(
                    connection,
                    CloudEvent(
                        LoggedOut(
                            id=UUID(caller.id),
                            after=EndedSession(session_id=UUID(caller.session_id)),
                        ),
                        UUID(caller.tenant_id),
                    ),
                )
        await self._tenants.follower.try_refresh()

    async def forget_guesses(self) -> None:
        """Deletes failures, origins of logins, and logins that wait, which are too old to count."""
        await self._guesses.forget_old()
        await self._challenges.forget_old()
        await self._passkeys.forget_old()

    async def forget_old(self) -> None:
        """Deletes sessions that expired or ended a while ago."""
        async with self._database.system_transaction(
            "old sessions of all tenants go"
        ) as connection:
            await store.forget_sessions(connection, self._clock() - _FORGET_AFTER)


@dataclass(frozen=True, slots=True)
class Authentication:
    """All that logs people in, and keeps and ends their sessions."""

    logins: Logins
    second_steps: SecondSteps
    confirming: Confirming
    passwords: OwnPasswords
    sessions: Sessions
