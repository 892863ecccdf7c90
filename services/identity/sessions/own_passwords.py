"""Passwords that people set: the first one by an invitation, a new one by a link or the old one."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from contract.events.identity.sign_in import (
    InvitationAccepted,
    LoginSucceeded,
    OpenedSession,
    PasswordChanged,
)
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import invalid_field, unauthenticated
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.security.tokens import secret_hash
from services.identity.authenticators import guess_store
from services.identity.authenticators.guesses import Guesses
from services.identity.authenticators.password_rules import Person
from services.identity.authenticators.passwords import Passwords
from services.identity.directories.logins import password_is_elsewhere
from services.identity.password_resets import store as resets_store
from services.identity.second_factor.challenges import PendingLogin
from services.identity.second_factor.domain import PASSWORD, otp_needed, setup_needed
from services.identity.second_factor.service import SecondFactors
from services.identity.sessions import store
from services.identity.sessions.domain import OpenSession
from services.identity.sessions.opening import Openings, wrong_credentials
from services.identity.sessions.second_steps import SecondSteps
from services.identity.sources.local_logins import check_local_login
from services.identity.users import store as users_store
from services.identity.users.domain import User, unlinked


class OwnPasswords:
    """The use cases around one's own password."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        passwords: Passwords,
        guesses: Guesses,
        factors: SecondFactors,
        openings: Openings,
        second_steps: SecondSteps,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._passwords = passwords
        self._guesses = guesses
        self._factors = factors
        self._openings = openings
        self._second_steps = second_steps
        self._clock = clock

    async def change_password(self, call: Call, current: str, new: str) -> None:
        """Sets a new password and ends the caller's other sessions.

        Raises:
            DomainError: INVALID_ARGUMENT when the current password is wrong.
        """
        caller = call.caller
        user_id = UUID(caller.id)
        scope = Scope.of(UUID(caller.tenant_id))
        found = await self.confirm_password(call, current)
        async with self._database.transaction(scope) as connection:
            protected = (await self._factors.of(connection, found)).any
        person = self._person(found, second_factor=protected)
        hashes = await self._passwords.hash(new, person, "newPassword", before=current)
        at = self._clock()
        async with self._database.transaction(scope) as connection:
            user = await users_store.user(connection, scope, user_id, for_update=True)
            if user is None or user.status != "active":
                raise wrong_credentials()
            await users_store.set_password(connection, user, hashes, at)
            await store.end_sessions_of(connection, user_id, at, but=UUID(caller.session_id))
            await self._outbox.append(
                connection,
                CloudEvent(PasswordChanged(id=user.id), user.tenant_id),
            )
        await self._tenants.follower.try_refresh()

    async def confirm_password(self, call: Call, current: str) -> User:
        """Makes sure that the caller knows the password, and not only has the session.

        Raises:
            DomainError: INVALID_ARGUMENT when it is wrong; FAILED_PRECONDITION for a user whose
                password is elsewhere.
        """
        caller = call.caller
        scope = Scope.of(UUID(caller.tenant_id))
        attempt = self._guesses.of_session(caller.id)
        async with self._guesses.attempt(attempt) as counted:
            async with self._database.transaction(scope) as connection:
                found = await users_store.credentials(connection, scope, UUID(caller.id))
            if found is not None and found.user.origin != "local":
                raise password_is_elsewhere()
            if found is None or not await self._passwords.verify(found.hashes, current):
                raise invalid_field("currentPassword", "is wrong")
            async with self._database.transaction(scope) as connection:
                await self._guesses.succeeded(connection, counted)
        return found.user

    async def accept_invitation(
        self, call: Call, invitation_token: str, password: str, otp: str = ""
    ) -> OpenSession:
        """Sets the password of an invited user and opens a session, with both factors at once.

        Raises:
            DomainError: UNAUTHENTICATED when the invitation is unknown, used or expired, and when a
                second factor is missing, which leaves the invitation as it is, or wrong.
        """
        async with self._database.system_transaction("an invitation names no tenant") as connection:
            invited = await self._invited(connection, invitation_token)
            factors = await self._factors.of(connection, invited)
        if factors.must_set_up(self._clock()):
            raise setup_needed()
        if factors.any and not otp:
            raise otp_needed()
        begun = await self._accept(invitation_token, password, None)
        return await self._second_steps.with_code(call, begun, None, otp)

    async def begin_with_invitation(
        self, invitation_token: str, password: str, device: str
    ) -> OpenSession | PendingLogin:
        """Sets the password of an invited user and opens a browser's session, or keeps a login that
        waits for the second factor.

        Args:
            device: as for `login`.

        Raises:
            DomainError: UNAUTHENTICATED when the invitation is unknown, used or expired.
        """
        return await self._openings.kept(await self._accept(invitation_token, password, device))

    async def _accept(
        self, invitation_token: str, password: str, device: str | None
    ) -> OpenSession | PendingLogin:
        # Looked at before the password is hashed, which is dear and must not be had for nothing.
        async with self._database.system_transaction("an invitation names no tenant") as connection:
            invited = await self._invited(connection, invitation_token)
            protected = (await self._factors.of(connection, invited)).any
        person = self._person(invited, second_factor=protected)
        hashes = await self._passwords.hash(password, person)
        async with self._database.transaction(Scope.of(invited.tenant_id)) as connection:
            user = await self._invited(connection, invitation_token)
            await self._openings.check_open(connection, user)
            await check_local_login(connection, user)
            await users_store.set_password(connection, user, hashes, self._clock())
            is_reset = user.status == "active"
            if is_reset:
                await self._password_was_reset(connection, user)
            methods = (PASSWORD,)
            pending = await self._openings.pending(connection, user, methods)
            if pending is None:
                event = LoginSucceeded if is_reset else InvitationAccepted
                return await self._openings.open(
                    connection, user, event, device, methods, by_link=True
                )
            pending = replace(pending, by_link=True)
            if is_reset:
                return pending
            # The session is not open yet, but the invitation is used.
            after = OpenedSession(email=user.email, session_id=pending.session_id, methods=methods)
            await self._outbox.append(
                connection,
                CloudEvent(
                    InvitationAccepted(id=user.id, after=after),
                    user.tenant_id,
                    actor=user.email,
                    actor_id=str(user.id),
                    actor_role=user.role.value,
                ),
            )
            return pending

    async def _password_was_reset(self, connection: Connection, user: User) -> None:
        """Ends what the old password has opened; second factors stay."""
        await resets_store.end(connection, user)
        await store.end_sessions_of(connection, user.id, self._clock())
        # A person who had the old password may have logged in from there.
        await guess_store.forget_account(connection, user.id)
        # As an invitation does: somebody else's login elsewhere may be linked.
        links = await users_store.forget_links(connection, user.id)
        await self._outbox.append(
            connection,
            *(
                CloudEvent(
                    event,
                    user.tenant_id,
                    actor=user.email,
                    actor_id=str(user.id),
                    actor_role=user.role.value,
                )
                for event in (PasswordChanged(id=user.id), *unlinked(user, links))
            ),
        )

    def _person(self, user: User, *, second_factor: bool) -> Person:
        tenant = self._tenants.known(user.tenant_id)
        names = (tenant.name, tenant.code) if tenant else ("", "")
        return Person(user.email, *names, second_factor=second_factor)

    async def _invited(self, connection: Connection, invitation_token: str) -> User:
        """The user whom an invitation, or a link for a new password, was made for, locked."""
        token_hash = secret_hash(invitation_token)
        user = await users_store.invited_user(connection, token_hash, self._clock())
        if user is None:
            user = await self._resetting(connection, token_hash)
        if user is None:
            raise unauthenticated(
                "WRONG_INVITATION", "the invitation is not valid; ask for a new one"
            )
        return user

    async def _resetting(self, connection: Connection, token_hash: bytes) -> User | None:
        """The user of a link for a new password, if the account is what it was when it was made."""
        found = await resets_store.found(connection, token_hash, self._clock())
        if found is None:
            return None
        scope = Scope.of(found.tenant_id)
        now = await users_store.credentials(connection, scope, found.account_id, for_update=True)
        if (
            now is None
            or now.user.status != "active"
            or now.user.origin != "local"
            or now.user.email != found.email
            or resets_store.mark_of(now) != found.password_mark
        ):
            return None
        return now.user
