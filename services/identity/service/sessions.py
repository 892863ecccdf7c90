"""Logging in, staying logged in, logging out, and the passwords for it."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from servicekit.call import Call
from servicekit.errors import DomainError, invalid_field, unauthenticated
from servicekit.events import Event
from servicekit.ids import Clock, new_id
from servicekit.outbox import Outbox
from servicekit.postgres import Connection, Database
from servicekit.tenants import TenantDirectory
from services.identity import store
from services.identity.domain import (
    REFRESH_GRACE,
    OpenSession,
    User,
    new_secret,
    normalise_email,
    secret_hash,
)
from services.identity.passwords import GuessThrottle, Passwords
from services.identity.tokens import TokenSigner

_FORGET_AFTER: Final = timedelta(days=7)
_WRONG_SECONDS: Final = 0.25
"""How long the answer to wrong credentials takes after they were checked."""


def _wrong_credentials() -> DomainError:
    return unauthenticated("WRONG_CREDENTIALS", "the e-mail address or the password is wrong")


def _wrong_refresh_token() -> DomainError:
    return unauthenticated("WRONG_REFRESH_TOKEN", "the session has ended; log in again")


class Sessions:
    """The use cases around sessions."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        passwords: Passwords,
        throttle: GuessThrottle,
        signer: TokenSigner,
        session_life: timedelta,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._passwords = passwords
        self._throttle = throttle
        self._signer = signer
        self._session_life = session_life
        self._clock = clock

    async def login(self, call: Call, email: str, password: str) -> OpenSession:
        """Opens a session.

        Raises:
            DomainError: UNAUTHENTICATED when the credentials are wrong, the same for an unknown
                address and a disabled user; RESOURCE_EXHAUSTED when too many attempts wait.
        """
        email = normalise_email(email)
        async with self._throttle.attempt(email, call.source_ip):
            async with self._database.transaction() as connection:
                found = await store.credentials(connection, "email", email)
            right = await self._passwords.verify(found.password_hash if found else None, password)
            if found is None or not right or found.user.status != "active":
                # Counted before the answer is due, for a caller who does not wait for it.
                self._throttle.failed(email, call.source_ip)
                # Only a user's failures are recorded. The time that takes must not tell that
                # there is such a user.
                await asyncio.gather(
                    self._login_failed(found.user if found else None),
                    asyncio.sleep(_WRONG_SECONDS),
                )
                raise _wrong_credentials()
            self._throttle.succeeded(email, call.source_ip)
            async with self._database.transaction() as connection:
                # Read again, locked: meanwhile the user may have been disabled, or got another
                # password, which ended the sessions that there were.
                now = await store.credentials(connection, "id", found.user.id, for_update=True)
                if (
                    now is None
                    or now.user.status != "active"
                    or now.password_hash != found.password_hash
                ):
                    raise _wrong_credentials()
                return await self._open(connection, now.user, "identity.login_succeeded")

    async def _login_failed(self, user: User | None) -> None:
        if user is None:
            return  # no tenant whose log could hold it
        async with self._database.transaction() as connection:
            await self._outbox.append(
                connection,
                Event(
                    "identity.login_failed",
                    user.tenant_id,
                    f"users/{user.id}",
                    after={"email": user.email},
                ),
            )

    async def _open(self, connection: Connection, user: User, event: str) -> OpenSession:
        at = self._clock()
        session_id = new_id()
        await store.insert_session(connection, session_id, user, at, at + self._session_life)
        answer = await self._issue(connection, user, session_id, at)
        await self._outbox.append(
            connection,
            Event(
                event,
                user.tenant_id,
                f"users/{user.id}",
                after={"email": user.email, "sessionId": str(session_id)},
                actor=user.email,
                actor_id=str(user.id),
                actor_role=user.role.value,
            ),
        )
        return answer

    async def _issue(
        self, connection: Connection, user: User, session_id: UUID, at: datetime
    ) -> OpenSession:
        refresh = new_secret()
        await store.insert_refresh_token(connection, secret_hash(refresh), session_id, at)
        token, expires_at = self._signer.session_token(user, session_id, at)
        return OpenSession(user, token, refresh, expires_at)

    async def refresh(self, refresh_token: str) -> OpenSession:
        """Exchanges a refresh token; one that was used a while ago ends its session.

        Raises:
            DomainError: UNAUTHENTICATED when the token is unknown, was used more than
                `REFRESH_GRACE` ago, or its session is over.
        """
        at = self._clock()
        token_hash = secret_hash(refresh_token)
        async with self._database.transaction() as connection:
            token = await store.refresh_token(connection, token_hash)
            if token is None or token.ended or token.expires_at <= at:
                raise _wrong_refresh_token()
            user = await store.user(connection, token.account_id)
            if user is None or user.status != "active":
                raise _wrong_refresh_token()
            if token.used_at is None:
                await store.use_refresh_token(connection, token_hash, at)
            if token.used_at is None or at <= token.used_at + REFRESH_GRACE:
                return await self._issue(connection, user, token.session_id, at)
            # Somebody else has it too. Which of the two is the thief cannot be told: both go.
            await store.end_session(connection, token.session_id, at)
            await self._outbox.append(
                connection,
                Event(
                    "identity.refresh_token_reused",
                    user.tenant_id,
                    f"users/{user.id}",
                    after={"sessionId": str(token.session_id), "sessionEnded": True},
                ),
            )
        await self._refresh_directory()
        raise _wrong_refresh_token()

    def current(self, call: Call) -> OpenSession:
        """The session of the caller's token; its refresh token is not known here."""
        caller = call.caller
        assert caller.role is not None
        assert caller.expires_at is not None
        assert caller.issued_at is not None
        user = User(
            UUID(caller.id),
            UUID(caller.tenant_id),
            caller.email,
            caller.role,
            "active",
            caller.issued_at,
        )
        token, expires_at = self._signer.session_token(
            user, UUID(caller.session_id), caller.issued_at, caller.expires_at
        )
        return OpenSession(user, token, "", expires_at)

    async def logout(self, call: Call) -> None:
        """Ends the caller's session."""
        caller = call.caller
        async with self._database.transaction() as connection:
            if await store.end_session(connection, UUID(caller.session_id), self._clock()):
                await self._outbox.append(
                    connection,
                    Event(
                        "identity.logged_out",
                        UUID(caller.tenant_id),
                        f"users/{caller.id}",
                        after={"sessionId": caller.session_id},
                    ),
                )
        await self._refresh_directory()

    async def change_password(self, call: Call, current: str, new: str) -> None:
        """Sets a new password and ends the caller's other sessions.

        Raises:
            DomainError: INVALID_ARGUMENT when the current password is wrong.
        """
        caller = call.caller
        user_id = UUID(caller.id)
        async with self._throttle.attempt(caller.email, call.source_ip):
            async with self._database.transaction() as connection:
                found = await store.credentials(connection, "id", user_id)
            if found is None or not await self._passwords.verify(found.password_hash, current):
                self._throttle.failed(caller.email, call.source_ip)
                raise invalid_field("currentPassword", "is wrong")
            self._throttle.succeeded(caller.email, call.source_ip)
        password_hash = await self._passwords.hash(new)
        at = self._clock()
        async with self._database.transaction() as connection:
            user = await store.user(connection, user_id, for_update=True)
            if user is None or user.status != "active":
                raise _wrong_credentials()
            await store.set_password(connection, user_id, password_hash, at)
            await store.end_sessions_of(connection, user_id, at, but=UUID(caller.session_id))
            await self._outbox.append(
                connection,
                Event("identity.password_changed", user.tenant_id, f"users/{user_id}"),
            )
        await self._refresh_directory()

    async def accept_invitation(self, invitation_token: str, password: str) -> OpenSession:
        """Sets the password of an invited user and opens a session.

        Raises:
            DomainError: UNAUTHENTICATED when the invitation is unknown, used or expired.
        """
        # Looked at before the password is hashed, which is dear and must not be had for nothing.
        async with self._database.transaction() as connection:
            await self._invited(connection, invitation_token)
        password_hash = await self._passwords.hash(password)
        async with self._database.transaction() as connection:
            user = await self._invited(connection, invitation_token)
            await store.set_password(connection, user.id, password_hash, self._clock())
            return await self._open(connection, user, "identity.invitation_accepted")

    async def _invited(self, connection: Connection, invitation_token: str) -> User:
        """The invited user, locked."""
        token_hash = secret_hash(invitation_token)
        user = await store.invited_user(connection, token_hash, self._clock())
        if user is None:
            raise unauthenticated(
                "WRONG_INVITATION", "the invitation is not valid (any more); ask for a new one"
            )
        return user

    async def forget_old(self) -> None:
        """Deletes sessions that expired or ended a while ago."""
        async with self._database.transaction() as connection:
            await store.forget_sessions(connection, self._clock() - _FORGET_AFTER)

    async def _refresh_directory(self) -> None:
        """Lets this process refuse an ended session at once; the others hear within a second."""
        await self._tenants.follower.try_refresh()
