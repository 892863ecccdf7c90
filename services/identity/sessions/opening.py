"""Sessions as they open, whatever was right before: waiting for a second step where one is needed,
with their first tokens, and told where they are new.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, TypeAlias
from uuid import UUID

from contract.events.identity.sign_in import (
    AccountUnderAttack,
    Attack,
    InvitationAccepted,
    LoginAttempt,
    LoginFailed,
    LoginSucceeded,
    OpenedSession,
)
from servicekit.call import Call, current_call
from servicekit.data.postgres import SYSTEM, Connection, Database, Scope
from servicekit.errors import DomainError, unauthenticated
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.security.tokens import new_secret, secret_hash
from services.identity.authenticators.guesses import Attempt, Guesses
from services.identity.mail.notices import Notices
from services.identity.second_factor.challenges import Challenges, PendingLogin
from services.identity.second_factor.domain import challenge_over
from services.identity.second_factor.service import SecondFactors
from services.identity.second_factor.tries import CodeTries, CodeTry
from services.identity.sessions import store
from services.identity.sessions.domain import OpenSession
from services.identity.sessions.refusals import UnknownLogins
from services.identity.sources import store as sources_store
from services.identity.sources.domain import Origin
from services.identity.tenants import store as tenants_store
from services.identity.token_keys.tokens import TokenSigner
from services.identity.users import store as users_store
from services.identity.users.domain import User

_Opening: TypeAlias = LoginSucceeded | InvitationAccepted
WRONG_SECONDS: Final = 0.25
"""How long the answer to wrong credentials takes after they were checked."""


def wrong_credentials() -> DomainError:
    """The same for an unknown address, a wrong password and a disabled user."""
    return unauthenticated("WRONG_CREDENTIALS", "the e-mail address or the password is wrong")


def wrong_refresh_token() -> DomainError:
    """The session is over, or never was."""
    return unauthenticated("WRONG_REFRESH_TOKEN", "the session has ended; log in again")


class Openings:
    """What all ways in have in common, in the transactions of their use cases."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        guesses: Guesses,
        factors: SecondFactors,
        challenges: Challenges,
        code_tries: CodeTries,
        signer: TokenSigner,
        session_life: timedelta,
        unknown: UnknownLogins,
        notices: Notices,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._guesses = guesses
        self._factors = factors
        self._challenges = challenges
        self._code_tries = code_tries
        self._signer = signer
        self._session_life = session_life
        self._unknown = unknown
        self._notices = notices
        self._clock = clock

    async def settle(
        self,
        connection: Connection,
        user: User,
        device: str | None,
        methods: tuple[str, ...],
        origin: Origin | None = None,
    ) -> OpenSession | PendingLogin:
        """Opens the session of a user whose first step was right, or says that another one is
        needed.

        Args:
            methods: how the first step was taken.
            origin: which source has recognised the user.
        """
        if (pending := await self.pending(connection, user, methods)) is not None:
            return replace(pending, origin=origin)
        return await self.open(connection, user, LoginSucceeded, device, methods, origin=origin)

    async def pending(
        self, connection: Connection, user: User, methods: tuple[str, ...]
    ) -> PendingLogin | None:
        """What waits for a second step, where the user needs one."""
        factors = await self._factors.of(connection, user)
        if not factors.any and not factors.must_set_up(self._clock()):
            return None
        scope = Scope.of(user.tenant_id)
        credentials = await users_store.credentials(connection, scope, user.id)
        assert credentials is not None
        return self._challenges.begun(credentials, methods, new_id())

    async def kept(self, begun: OpenSession | PendingLogin) -> OpenSession | PendingLogin:
        """A login that waits, for a browser to come back to."""
        if isinstance(begun, OpenSession):
            return begun
        async with self._database.transaction(Scope.of(begun.tenant_id)) as connection:
            return replace(begun, secret=await self._challenges.keep(connection, begun))

    async def still(self, connection: Connection, pending: PendingLogin) -> User:
        """The user of a login that waits, locked.

        Args:
            connection: sees all tenants.

        Raises:
            DomainError: UNAUTHENTICATED when the first step is not right any more: another
                password, or a source that is not in use, or that has this user no more.
        """
        scope = Scope.of(pending.tenant_id)
        origin = pending.origin
        if origin is not None:
            source = await sources_store.source(
                connection, SYSTEM, origin.source_id, lock="FOR SHARE"
            )
            if source is None or not source.enabled:
                raise challenge_over()
        now = await users_store.credentials(connection, scope, pending.user_id, for_update=True)
        user = self._challenges.is_still(pending, now)
        if user is None:
            raise challenge_over()
        if origin is not None:
            known = await sources_store.identities_of(connection, user.id)
            if all(one.source_id != origin.source_id for one in known):
                raise challenge_over()
        return user

    @staticmethod
    async def check_open(connection: Connection, user: User) -> None:
        """Holds off an archive of the user's tenant, or refuses the login after one.

        Raises:
            DomainError: UNAUTHENTICATED.
        """
        scope = Scope.of(user.tenant_id)
        tenant = await tenants_store.tenant(connection, scope, user.tenant_id, for_share=True)
        if tenant is None or tenant.status != "active":
            raise unauthenticated(
                "ORGANISATION_ARCHIVED", "your organisation is archived; nobody can log in"
            )

    async def failed(
        self,
        call: Call,
        email: str,
        user: User | None,
        attempt: Attempt,
        reason: str = "",
        source: UUID | None = None,
        tried: CodeTry | None = None,
    ) -> None:
        """Tells the log of a login that failed, and of an attack that shows in it."""
        if user is None:
            await self._unknown.note(call, email)
            return
        async with self._database.transaction(Scope.of(user.tenant_id)) as connection:
            events = [
                CloudEvent(
                    LoginFailed(
                        id=user.id,
                        after=LoginAttempt(email=user.email, reason=reason, source=source),
                    ),
                    user.tenant_id,
                )
            ]
            attacks = [await self._guesses.attacked(connection, attempt)]
            if tried is not None:
                attacks.append(await self._code_tries.attacked(connection, tried))
            for attack in attacks:
                if attack is None:
                    continue
                failures, until = attack
                events.append(
                    CloudEvent(
                        AccountUnderAttack(
                            id=user.id,
                            after=Attack(email=user.email, failures=failures, until=until),
                        ),
                        user.tenant_id,
                    )
                )
            await self._outbox.append(connection, *events)

    async def open(
        self,
        connection: Connection,
        user: User,
        event: type[_Opening],
        device: str | None,
        methods: tuple[str, ...],
        session_id: UUID | None = None,
        origin: Origin | None = None,
        *,
        by_link: bool = False,
    ) -> OpenSession:
        """Opens a session, and tells of it."""
        at = self._clock()
        session_id = session_id or new_id()
        until = at + self._session_life
        await store.insert_session(connection, session_id, user, at, until, methods, origin)
        authenticated_at = (origin.authenticated_at if origin else None) or at
        if not by_link:
            await self._tell_of_place(connection, user, device, session_id)
        answer = await self.issue(
            connection, user, session_id, at, authenticated_at, device, login=True
        )
        after = OpenedSession(
            email=user.email,
            session_id=session_id,
            methods=methods,
            source=origin.source_id if origin else None,
        )
        await self._outbox.append(
            connection,
            CloudEvent(
                event(id=user.id, after=after),
                user.tenant_id,
                actor=user.email,
                actor_id=str(user.id),
                actor_role=user.role.value,
            ),
        )
        return answer

    async def _tell_of_place(
        self, connection: Connection, user: User, device: str | None, session_id: UUID
    ) -> None:
        """Has the user told of a login from where the account was not used lately; not of the
        first one."""
        if user.last_login_at is None:
            return
        source = current_call.get().source_ip
        if not await self._guesses.is_familiar(connection, user.id, source, device):
            await self._notices.new_place(connection, user, session_id)

    async def issue(
        self,
        connection: Connection,
        user: User,
        session_id: UUID,
        at: datetime,
        authenticated_at: datetime,
        device: str | None = None,
        *,
        login: bool = False,
    ) -> OpenSession:
        """New tokens of a session, which somebody uses just now."""
        refresh = new_secret()
        await store.insert_refresh_token(connection, secret_hash(refresh), session_id, at)
        call = current_call.get()
        source = call.source_ip
        await store.note_seen(connection, session_id, at, source, call.user_agent)
        await users_store.note_seen(connection, user, at, login=login)
        device = await self._guesses.remember(connection, user.id, source, device)
        token, expires_at = self._signer.session_token(user, session_id, at, authenticated_at)
        return OpenSession(user, token, refresh, expires_at, device)
