"""The first step of a login: a password of here, one of a directory, or a provider's word."""

from __future__ import annotations

import asyncio

from contract.events.identity.sign_in import LoginSucceeded
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import DomainError, unauthenticated
from servicekit.ids import Clock
from servicekit.peers.tenants import TenantDirectory
from services.identity.authenticators.guesses import Attempt, Counted, Guesses, Standing
from services.identity.authenticators.passwords import Passwords
from services.identity.directories.domain import Directory
from services.identity.directories.logins import DirectoryLogins, RefusedByDirectoryError
from services.identity.second_factor.challenges import PendingLogin
from services.identity.second_factor.domain import FACTOR_ELSEWHERE, PASSWORD, SSO
from services.identity.second_factor.service import SecondFactors
from services.identity.sessions import store
from services.identity.sessions.domain import OpenSession
from services.identity.sessions.opening import WRONG_SECONDS, Openings, wrong_credentials
from services.identity.sessions.second_steps import SecondSteps
from services.identity.sources.domain import NotAdmittedError, Origin
from services.identity.sources.local_logins import LOCAL_LOGIN_OFF, check_local_login
from services.identity.sso.accounts import SsoAccounts
from services.identity.sso.logins import Arrival
from services.identity.users import store as users_store
from services.identity.users.domain import User, spellings
from services.identity.users.store import Credentials


class Logins:
    """The use cases of a login's first step."""

    def __init__(
        self,
        database: Database,
        tenants: TenantDirectory,
        passwords: Passwords,
        guesses: Guesses,
        directories: DirectoryLogins,
        factors: SecondFactors,
        sso: SsoAccounts,
        openings: Openings,
        second_steps: SecondSteps,
        clock: Clock,
    ) -> None:
        self._database = database
        self._tenants = tenants
        self._passwords = passwords
        self._guesses = guesses
        self._directories = directories
        self._factors = factors
        self._sso = sso
        self._openings = openings
        self._second_steps = second_steps
        self._clock = clock

    async def login(
        self, call: Call, email: str, password: str, device: str | None = None, otp: str = ""
    ) -> OpenSession:
        """Opens a session, with both factors at once.

        Args:
            device: the value of the device cookie (`DEVICE_COOKIE`) that a browser sent, empty when
                it sent none; `None` for a program, which is given no cookie. The cookie is to be
                set to the answer's `device`.
            otp: a code of a second factor; empty without one.

        Raises:
            DomainError: UNAUTHENTICATED when the credentials are wrong, the same for an unknown
                address and a disabled user, and when a second factor is missing or wrong;
                RESOURCE_EXHAUSTED when too many attempts wait.
        """
        begun = await self._begin(call, email, password, device)
        return await self._second_steps.with_code(call, begun, device, otp)

    async def begin_login(
        self, call: Call, email: str, password: str, device: str
    ) -> OpenSession | PendingLogin:
        """Opens a browser's session, or keeps a login that waits for the second factor.

        Raises:
            DomainError: as `login`.
        """
        return await self._openings.kept(await self._begin(call, email, password, device))

    async def _begin(
        self, call: Call, email: str, password: str, device: str | None
    ) -> OpenSession | PendingLogin:
        """Takes the first step of a login."""
        stored, email = spellings(email)
        async with self._database.system_transaction("a login names no tenant") as connection:
            found = await users_store.credentials_by_email(connection, stored, email)
            attempt = await self._guesses.recognise(
                connection, email, found.user.id if found else None, call.source_ip, device or ""
            )
            directory = await self._directories.route(connection, found, email)
        async with self._guesses.attempt(attempt) as counted:
            if directory is not None:
                user = found.user if found else None
                return await self._login_elsewhere(
                    call, directory, user, email, password, attempt, counted, device
                )
            right = await self._passwords.verify(
                found.hashes if found else None,
                password,
                stranger=attempt.standing is Standing.STRANGE,
            )
            if found is None or not right or found.user.status != "active":
                # The time that recording it takes must not tell whether there is such a user.
                await asyncio.gather(
                    self._openings.failed(call, email, found.user if found else None, attempt),
                    asyncio.sleep(WRONG_SECONDS),
                )
                raise wrong_credentials()
            try:
                return await self._let_in(found, password, counted, device)
            except DomainError as error:
                if error.reason == LOCAL_LOGIN_OFF:
                    await self._openings.failed(call, email, found.user, attempt, error.reason)
                raise

    async def _let_in(
        self, found: Credentials, password: str, counted: Counted, device: str | None
    ) -> OpenSession | PendingLogin:
        """Takes the first step of a user whose password here was right a moment ago."""
        assert found.hashes is not None
        renewed = await self._passwords.renewed(found.hashes, password)
        scope = Scope.of(found.user.tenant_id)
        async with self._database.transaction(scope) as connection:
            # Read again, locked: meanwhile the user may have been disabled, or got another
            # password, which ended the sessions that there were.
            now = await users_store.credentials(connection, scope, found.user.id, for_update=True)
            if (
                now is None
                or now.user.status != "active"
                or not await self._still_right(found, now, password)
            ):
                raise wrong_credentials()
            await self._openings.check_open(connection, now.user)
            await check_local_login(connection, now.user)
            if now.hashes == found.hashes and now.hashes != renewed:
                await users_store.renew_hashes(connection, now.user, renewed)
            await self._guesses.succeeded(connection, counted)
            return await self._openings.settle(connection, now.user, device, (PASSWORD,))

    async def _login_elsewhere(
        self,
        call: Call,
        directory: Directory,
        user: User | None,
        email: str,
        password: str,
        attempt: Attempt,
        counted: Counted,
        device: str | None,
    ) -> OpenSession | PendingLogin:
        """Takes the first step of a person whom a directory recognises; the password goes there
        alone.

        Args:
            user: the account with the address, if there is one.
            counted: what the attempt was counted by.

        Raises:
            DomainError: as `login`; UNAVAILABLE when the directory does not answer.
        """
        try:
            recognised = await self._directories.verify(
                directory, email, password, attempt.standing
            )
        except RefusedByDirectoryError as refused:
            await asyncio.gather(
                self._openings.failed(call, email, user, attempt, refused.reason, directory.id),
                asyncio.sleep(WRONG_SECONDS),
            )
            raise (refused.told or wrong_credentials()) from None
        # What the directory says of the person is committed, also when there is no login.
        refusal: NotAdmittedError | None = None
        async with self._database.system_transaction(
            "an address is one in the whole system"
        ) as connection:
            try:
                admitted = await self._directories.admit(connection, recognised)
                await self._openings.check_open(connection, admitted)
                await self._guesses.succeeded(connection, counted)
                origin = Origin(directory.id)
                begun = await self._openings.settle(
                    connection, admitted, device, (PASSWORD,), origin
                )
            except NotAdmittedError as error:
                refusal = error
        if refusal is not None:
            told = await self._directories.not_admitted(recognised, email, refusal.reason)
            await self._tenants.follower.try_refresh()
            raise told
        self._directories.admitted()
        return begun

    async def enter(self, arrival: Arrival, device: str) -> OpenSession | PendingLogin:
        """Opens a browser's session of a person whom a provider has recognised, or keeps a login
        that waits for the second factor, where the provider does not answer for one.

        Args:
            device: as for `login`.

        Raises:
            DomainError: UNAUTHENTICATED when the person gets no login.
        """
        # What the provider says of the person is committed, also when there is no login.
        refusal: NotAdmittedError | None = None
        async with self._database.system_transaction(
            "an address is one in the whole system"
        ) as connection:
            try:
                admitted = await self._sso.admit(connection, arrival)
                await self._openings.check_open(connection, admitted)
                begun = await self._entered(connection, arrival, admitted, device)
            except NotAdmittedError as error:
                refusal = error
        if refusal is not None:
            told = await self._sso.not_admitted(arrival, refusal.reason)
            await self._tenants.follower.try_refresh()
            raise told
        self._sso.admitted()
        # The sessions of a user who had another role until now are over.
        await self._tenants.follower.try_refresh()
        return await self._openings.kept(begun)

    async def _entered(
        self, connection: Connection, arrival: Arrival, user: User, device: str
    ) -> OpenSession | PendingLogin:
        provider = arrival.provider
        origin = Origin(provider.id, arrival.claims.sid, arrival.authenticated_at)
        vouching = provider.source.tenant_id if provider.trusts_mfa else None
        if not await self._factors.is_vouched_for(connection, user, vouching):
            return await self._openings.settle(connection, user, device, (SSO,), origin)
        methods = (SSO, FACTOR_ELSEWHERE)
        return await self._openings.open(
            connection, user, LoginSucceeded, device, methods, origin=origin
        )

    async def link(self, arrival: Arrival) -> None:
        """Links a person of a provider with the account of the session that asked for it.

        Raises:
            DomainError: UNAUTHENTICATED when that session is over; FAILED_PRECONDITION when the
                two cannot be linked.
        """
        async with self._database.system_transaction(
            "a provider may be of a tenant above"
        ) as connection:
            session = arrival.session
            if session is None or not await store.is_open(connection, session, self._clock()):
                raise unauthenticated("SESSION_ENDED", "the session has ended; log in again")
            await self._sso.link(connection, arrival)

    async def _still_right(self, found: Credentials, now: Credentials, password: str) -> bool:
        """Whether the password is right now; another login may have renewed its hash."""
        return now.hashes == found.hashes or await self._passwords.verify(now.hashes, password)
