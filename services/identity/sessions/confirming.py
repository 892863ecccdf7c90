"""Whether it is still the one who logged in that uses a session: asked before what opens more."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from contract.events.identity.sign_in import OpenedSession, SessionConfirmed
from servicekit.call import Call
from servicekit.data.postgres import SYSTEM, Connection, Database, Scope
from servicekit.errors import failed_precondition, invalid_field
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from services.identity.authenticators.guesses import Guesses, Standing
from services.identity.authenticators.passwords import Passwords
from services.identity.directories.logins import (
    DirectoryLogins,
    RefusedByDirectoryError,
    password_is_elsewhere,
)
from services.identity.second_factor.domain import (
    PASSKEY,
    PASSWORD,
    otp_needed,
    setup_needed,
    wrong_code,
)
from services.identity.second_factor.passkeys import Passkeys, wrong_passkey
from services.identity.second_factor.service import Proof, SecondFactors
from services.identity.second_factor.tries import CodeTries
from services.identity.sessions import store
from services.identity.sessions.domain import OpenSession
from services.identity.sessions.opening import Openings, wrong_credentials, wrong_refresh_token
from services.identity.sources.domain import BY_PROVIDER
from services.identity.token_keys.tokens import TokenSigner
from services.identity.users import store as users_store
from services.identity.users.domain import User
from services.identity.users.store import Credentials


class Confirming:
    """The use cases of a step-up."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        passwords: Passwords,
        guesses: Guesses,
        directories: DirectoryLogins,
        factors: SecondFactors,
        passkeys: Passkeys,
        code_tries: CodeTries,
        signer: TokenSigner,
        openings: Openings,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._passwords = passwords
        self._guesses = guesses
        self._directories = directories
        self._factors = factors
        self._passkeys = passkeys
        self._code_tries = code_tries
        self._signer = signer
        self._openings = openings
        self._clock = clock

    async def step_up(self, call: Call, password: str, otp: str) -> OpenSession:
        """Confirms that it is still the caller who uses the session; answers a new token of it.

        Raises:
            DomainError: INVALID_ARGUMENT when the password is wrong; UNAUTHENTICATED when a second
                factor is missing or wrong; as `login`.
        """
        caller = call.caller
        scope = Scope.of(UUID(caller.tenant_id))
        attempt = self._guesses.of_session(caller.id)
        async with self._guesses.attempt(attempt) as counted:
            async with self._database.transaction(scope) as connection:
                found = await users_store.credentials(connection, scope, UUID(caller.id))
            if found is None or found.user.status != "active":
                raise wrong_credentials()
            user = found.user
            if user.origin in BY_PROVIDER:
                raise failed_precondition(
                    "SIGN_IN_AGAIN",
                    "your organisation's sign-in knows you, and no password here: confirm it at"
                    " /auth/confirm, which leads there",
                )
            if not await self._knows_password(found, password):
                await self._openings.failed(call, user.email, user, attempt, "STEP_UP")
                raise invalid_field("password", "is wrong")
            async with self._database.transaction(scope) as connection:
                await self._guesses.succeeded(connection, counted)
                factors = await self._factors.of(connection, user)
        async with self._database.system_transaction("a directory is above") as connection:
            await self._directories.check_confirmed(connection, user)
        if factors.must_set_up(self._clock()):
            raise setup_needed()
        if factors.any and not otp:
            raise otp_needed()
        tried = await self._code_tries.begin(user, attempt, otp) if factors.any else None
        at = self._clock()
        async with self._database.transaction(scope) as connection:
            now = await users_store.credentials(connection, scope, user.id, for_update=True)
            if now is None or now.user.status != "active" or now.hashes != found.hashes:
                raise wrong_credentials()
            proof = await self._factors.prove(connection, now.user, otp) if tried else Proof()
            if not proof.wrong_because:
                if tried is not None:
                    await self._code_tries.succeeded(connection, tried)
                session_id = UUID(caller.session_id)
                methods = (PASSWORD, *([proof.method] if proof.method else []))
                if not await store.confirm_session(connection, session_id, at, methods):
                    raise wrong_refresh_token()
                after = OpenedSession(email=user.email, session_id=session_id, methods=methods)
                await self._outbox.append(
                    connection,
                    CloudEvent(SessionConfirmed(id=user.id, after=after), user.tenant_id),
                )
                token, expires_at = self._signer.session_token(now.user, session_id, at, at)
                return OpenSession(now.user, token, "", expires_at)
        await self._openings.failed(
            call, user.email, user, attempt, proof.wrong_because, tried=tried
        )
        raise wrong_code(at)

    async def _knows_password(self, found: Credentials, password: str) -> bool:
        """Whether a user's password is right, here or in the user's directory.

        Raises:
            DomainError: FAILED_PRECONDITION when nobody can tell; as `DirectoryLogins.verify`.
        """
        if found.user.origin == "local":
            return await self._passwords.verify(found.hashes, password)
        email = found.user.email
        async with self._database.system_transaction("a directory is above") as connection:
            directory = await self._directories.route(connection, found, email)
        if directory is None:
            raise password_is_elsewhere()
        try:
            await self._directories.verify(directory, email, password, Standing.OWN)
        except RefusedByDirectoryError:
            return False
        return True

    async def step_up_with_passkey(self, call: Call, credential: str) -> OpenSession:
        """Confirms with a passkey that it is still the caller; answers a new token.

        Raises:
            DomainError: UNAUTHENTICATED when it proves nothing.
        """
        caller = call.caller
        at, session_id = self._clock(), UUID(caller.session_id)
        async with self._database.system_transaction("a passkey names no tenant") as connection:
            used = await self._passkeys.prove(connection, credential, "step", caller.session_id)
            user = await users_store.user(
                connection, SYSTEM, used.passkey.account_id, for_update=True
            )
            if user is None or user.status != "active" or str(user.id) != caller.id:
                raise wrong_passkey()
            if used.behind:
                await self._passkeys.tell_behind(connection, user, used)
            else:
                await self._passkeys.note_use(connection, used)
                return await self._confirmed(connection, user, session_id, (PASSKEY,), at)
        raise wrong_passkey()

    async def _confirmed(
        self,
        connection: Connection,
        user: User,
        session_id: UUID,
        methods: tuple[str, ...],
        at: datetime,
    ) -> OpenSession:
        if not await store.confirm_session(connection, session_id, at, methods):
            raise wrong_refresh_token()
        after = OpenedSession(email=user.email, session_id=session_id, methods=methods)
        confirmed = SessionConfirmed(id=user.id, after=after)
        await self._outbox.append(connection, CloudEvent(confirmed, user.tenant_id))
        token, expires_at = self._signer.session_token(user, session_id, at, at)
        return OpenSession(user, token, "", expires_at)
