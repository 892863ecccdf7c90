"""The second step of a login, and passkeys, which are both at once."""

from __future__ import annotations

from contract.events.identity.sign_in import LoginSucceeded
from servicekit.call import Call
from servicekit.data.postgres import SYSTEM, Database
from servicekit.ids import Clock
from servicekit.peers.tenants import TenantDirectory
from services.identity.authenticators.guesses import Guesses
from services.identity.directories.logins import DirectoryLogins
from services.identity.second_factor.challenges import Challenges, PendingLogin
from services.identity.second_factor.domain import (
    OTP,
    PASSKEY,
    Factors,
    challenge_over,
    otp_needed,
    setup_needed,
    wrong_code,
)
from services.identity.second_factor.passkeys import Passkeys, wrong_passkey
from services.identity.second_factor.service import AppKey, SecondFactors, Setup
from services.identity.second_factor.tries import CodeTries
from services.identity.sessions.domain import OpenSession
from services.identity.sessions.opening import Openings
from services.identity.sources.local_logins import check_local_login
from services.identity.users import store as users_store
from services.identity.users.domain import User


class SecondSteps:
    """The use cases of a login's second step."""

    def __init__(
        self,
        database: Database,
        tenants: TenantDirectory,
        guesses: Guesses,
        directories: DirectoryLogins,
        factors: SecondFactors,
        passkeys: Passkeys,
        challenges: Challenges,
        code_tries: CodeTries,
        openings: Openings,
        clock: Clock,
    ) -> None:
        self._database = database
        self._tenants = tenants
        self._guesses = guesses
        self._directories = directories
        self._factors = factors
        self._passkeys = passkeys
        self._challenges = challenges
        self._code_tries = code_tries
        self._openings = openings
        self._clock = clock

    async def with_code(
        self, call: Call, begun: OpenSession | PendingLogin, device: str | None, otp: str
    ) -> OpenSession:
        """Opens the session of a program that gives its code at once."""
        if isinstance(begun, OpenSession):
            return begun
        async with self._database.system_transaction("a source may be above") as connection:
            factors = await self._factors.of(
                connection, await self._openings.still(connection, begun)
            )
        if not factors.any:
            raise setup_needed()
        if not otp:
            raise otp_needed()
        return await self._finish(call, begun, device, otp)

    async def waiting(self, secret: str) -> tuple[User, Factors, AppKey | None]:
        """The user of a browser's login that waits, the factors, and the key of an app that waits
        for its first code.

        Raises:
            DomainError: UNAUTHENTICATED when it waits no more.
        """
        pending = await self._challenges.find(secret)
        async with self._database.system_transaction("a source may be above") as connection:
            user = await self._openings.still(connection, pending)
            factors = await self._factors.of(connection, user)
            key = None
            if not factors.any:
                key = await self._factors.waiting(connection, user, pending.session_id)
            return user, factors, key

    async def finish_login(self, call: Call, secret: str, code: str, device: str) -> OpenSession:
        """Opens the session of a browser whose login waits.

        Raises:
            DomainError: UNAUTHENTICATED when the code is wrong, or the login waits no more;
                RESOURCE_EXHAUSTED when enough codes were wrong.
        """
        pending = await self._challenges.find(secret)
        await self._challenges.count_try(pending)
        return await self._finish(call, pending, device, code)

    async def _finish(
        self, call: Call, pending: PendingLogin, device: str | None, code: str
    ) -> OpenSession:
        async with self._database.system_transaction("counters have no tenant") as connection:
            user = await self._openings.still(connection, pending)
            attempt = await self._guesses.recognise(
                connection, user.email, user.id, call.source_ip, device or ""
            )
        tried = await self._code_tries.begin(user, attempt, code)
        async with self._database.system_transaction("a source may be above") as connection:
            user = await self._openings.still(connection, pending)
            await self._openings.check_open(connection, user)
            await self._directories.check_confirmed(connection, user)
            proof = await self._factors.prove(connection, user, code)
            if proof.method:
                await self._code_tries.succeeded(connection, tried)
                if pending.secret:
                    await self._challenges.end(connection, pending)
                methods = (*pending.methods, proof.method)
                return await self._openings.open(
                    connection,
                    user,
                    LoginSucceeded,
                    device,
                    methods,
                    pending.session_id,
                    pending.origin,
                    by_link=pending.by_link,
                )
        await self._openings.failed(
            call, user.email, user, attempt, proof.wrong_because, tried=tried
        )
        raise wrong_code(self._clock())

    async def login_with_passkey(self, credential: str, bound: str, device: str) -> OpenSession:
        """Opens a browser's session with a passkey alone: its device has verified the person.

        Args:
            bound: what the browser's challenge was bound to.

        Raises:
            DomainError: UNAUTHENTICATED when it proves nothing, or its user may not log in.
        """
        return await self._by_passkey(credential, "login", bound, device, None)

    async def finish_with_passkey(self, secret: str, credential: str, device: str) -> OpenSession:
        """Opens the session of a browser whose login waits, with a passkey of its user.

        Raises:
            DomainError: as `login_with_passkey`, and when the login waits no more.
        """
        pending = await self._challenges.find(secret)
        return await self._by_passkey(credential, "step", secret, device, pending)

    async def _by_passkey(
        self,
        credential: str,
        kind: str,
        bound: str,
        device: str,
        pending: PendingLogin | None,
    ) -> OpenSession:
        async with self._database.system_transaction("a passkey names no tenant") as connection:
            waiting = (
                await self._openings.still(connection, pending) if pending is not None else None
            )
            used = await self._passkeys.prove(connection, credential, kind, bound)
            user = await users_store.user(
                connection, SYSTEM, used.passkey.account_id, for_update=True
            )
            if user is None or user.status != "active":
                raise wrong_passkey()
            if waiting is not None and waiting.id != user.id:
                raise wrong_passkey()
            await self._openings.check_open(connection, user)
            await self._directories.check_confirmed(connection, user)
            if pending is None or pending.origin is None:
                await check_local_login(connection, user)
            if used.behind:
                await self._passkeys.tell_behind(connection, user, used)
            else:
                await self._passkeys.note_use(connection, used)
                if pending is not None:
                    await self._challenges.end(connection, pending)
                methods = (*(pending.methods if pending else ()), PASSKEY)
                session_id = pending.session_id if pending else None
                return await self._openings.open(
                    connection,
                    user,
                    LoginSucceeded,
                    device,
                    methods,
                    session_id,
                    pending.origin if pending else None,
                    by_link=pending is not None and pending.by_link,
                )
        raise wrong_passkey()

    async def set_up_factor(self, secret: str) -> Setup:
        """Makes what a user needs to set up an app, who gets in only with one.

        Raises:
            DomainError: UNAUTHENTICATED when the login waits no more.
        """
        pending = await self._challenges.find(secret)
        async with self._database.system_transaction("a source may be above") as connection:
            user = await self._openings.still(connection, pending)
            if (await self._factors.of(connection, user)).any:
                raise challenge_over()
            return await self._factors.set_up(connection, user, pending.session_id)

    async def confirm_factor(self, secret: str, code: str, device: str) -> OpenSession:
        """Lets the app count that was set up, and opens the session.

        Raises:
            DomainError: UNAUTHENTICATED when the login waits no more; INVALID_ARGUMENT when the
                code is wrong.
        """
        pending = await self._challenges.find(secret)
        async with self._database.system_transaction("a source may be above") as connection:
            user = await self._openings.still(connection, pending)
            if (await self._factors.of(connection, user)).any:
                raise challenge_over()
            await self._openings.check_open(connection, user)
            await self._directories.check_confirmed(connection, user)
            await self._factors.confirm(connection, user, pending.session_id, code)
            await self._challenges.end(connection, pending)
            await self._factors.end_what_was_opened_without(connection, user)
            methods = (*pending.methods, OTP)
            opened = await self._openings.open(
                connection,
                user,
                LoginSucceeded,
                device,
                methods,
                pending.session_id,
                pending.origin,
                by_link=pending.by_link,
            )
        await self._tenants.follower.try_refresh()
        return opened
