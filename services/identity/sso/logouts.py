"""Logouts: what a provider says is over, and the way there to sign out at it, too."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from contract.events.identity.sign_in import EndedSessions, SessionsEnded
from servicekit.data.postgres import SYSTEM, Connection, Database
from servicekit.errors import Code, DomainError, not_found
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.security import jwt
from servicekit.security.sealing import Sealer
from services.identity.sources import store as sources_store
from services.identity.sso import store
from services.identity.sso.accounts import EndByProvider
from services.identity.sso.asking import Asking
from services.identity.sso.claims import LOGOUT_TOKEN_KINDS, RefusedError, check_logout
from services.identity.sso.domain import SIGNED_OUT, Provider, with_parameters
from services.identity.sso.outcomes import LOGOUTS
from services.identity.sso.service import Providers
from services.identity.users import store as users_store

_LEAVE_SECONDS: Final = 3.0
"""How long who signs out waits for a provider."""


class SsoLogouts:
    """The use cases of both ways.

    Args:
        end_sessions: ends sessions that a provider opened.
        public_url: where providers send people back to.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        providers: Providers,
        asking: Asking,
        sealer: Sealer,
        end_sessions: EndByProvider,
        public_url: str,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._providers = providers
        self._asking = asking
        self._sealer = sealer
        self._end_sessions = end_sessions
        self._public_url = public_url.rstrip("/")
        self._clock = clock

    async def leave(self, session_id: UUID) -> str:
        """Where a browser goes to sign out at the provider that opened its session, too (OpenID
        Connect RP-Initiated Logout 1.0); empty for nowhere.

        The provider asks the person itself: it is shown no token, which would have to be kept.
        """
        async with self._database.system_transaction(
            "a provider may be of a tenant above"
        ) as connection:
            provider_id = await store.to_leave(connection, session_id)
        if provider_id is None:
            return ""
        try:
            async with asyncio.timeout(_LEAVE_SECONDS):
                provider = await self._providers.in_use(provider_id, "")
                async with self._asking.turn(provider, self._providers.top_of(provider)):
                    document = await self._asking.document(
                        provider, root=self._providers.is_of_root(provider)
                    )
        except (DomainError, TimeoutError):
            # The session here is over whatever the provider does.
            return ""
        if not document.end_session_endpoint:
            return ""
        asked = {
            "client_id": provider.client_id,
            "post_logout_redirect_uri": self._public_url + SIGNED_OUT,
        }
        return with_parameters(document.end_session_endpoint, asked)

    async def log_out(self, provider_id: UUID, token: str) -> int:
        """Ends the sessions that a provider says are over (OpenID Connect Back-Channel Logout 1.0);
        answers how many.

        Raises:
            DomainError: NOT_FOUND for the provider; INVALID_ARGUMENT when the token is not taken;
                UNAVAILABLE when the provider's keys cannot be had.
        """
        async with self._database.system_transaction("a provider is asked by its id") as connection:
            provider = await store.provider(connection, SYSTEM, provider_id)
        if provider is None:
            raise not_found("provider", provider_id)
        at = self._clock()
        try:
            async with self._asking.turn(provider, self._providers.top_of(provider)):
                decoded = await self._logout_token(provider, token)
            logout = check_logout(provider, decoded, at)
        except RefusedError as refused:
            LOGOUTS.note("refused")
            raise DomainError(
                Code.INVALID_ARGUMENT, refused.reason, f"the logout token is not taken: {refused}"
            ) from None
        except DomainError:
            LOGOUTS.note("away")
            raise
        mark = self._sealer.mark(f"logout\0{provider.id}\0{logout.id}")
        ended = 0
        async with self._database.system_transaction("a provider's sessions end") as connection:
            if not await store.use(connection, mark, logout.expires_at):
                LOGOUTS.note("refused")
                raise DomainError(
                    Code.INVALID_ARGUMENT, "REPLAYED", "the logout token was used before"
                )
            for user_id in await self._whose(connection, provider, logout.subject, logout.sid):
                ended += await self._end(connection, provider, user_id, logout.sid, at)
        LOGOUTS.note("ok")
        if ended:
            await self._tenants.follower.try_refresh()
        return ended

    async def _logout_token(self, provider: Provider, token: str) -> dict[str, Any]:
        root = self._providers.is_of_root(provider)
        keys = await self._asking.keys(provider, root=root)
        try:
            try:
                return jwt.decode_foreign(token, keys, LOGOUT_TOKEN_KINDS)
            except jwt.UnknownKeyError:
                # Anybody may send one: nobody waits, and keys are fetched once in a while.
                newer = await self._asking.keys(provider, root=root, behind=keys)
                return jwt.decode_foreign(token, newer, LOGOUT_TOKEN_KINDS)
        except ValueError as wrong:
            raise RefusedError("SIGNATURE", str(wrong)) from wrong

    @staticmethod
    async def _whose(
        connection: Connection, provider: Provider, subject: str, sid: str
    ) -> list[UUID]:
        """The accounts that a logout is about; with both, the subject has to be the session's."""
        if subject:
            known = await sources_store.identity(connection, provider.id, subject)
            return [known.account_id] if known is not None else []
        return await store.accounts_of_sid(connection, provider.id, sid)

    async def _end(
        self, connection: Connection, provider: Provider, user_id: UUID, sid: str, at: datetime
    ) -> int:
        ended = await self._end_sessions(connection, user_id, provider.id, at, sid)
        user = await users_store.user(connection, SYSTEM, user_id)
        if not ended or user is None:
            return 0
        event = SessionsEnded(
            id=user.id,
            after=EndedSessions(
                email=user.email,
                count=len(ended),
                session_id=ended[0] if len(ended) == 1 else None,
                by="backchannel",
            ),
        )
        source = provider.source
        await self._outbox.append(
            connection, CloudEvent(event, user.tenant_id, source.actor, str(source.id))
        )
        return len(ended)
