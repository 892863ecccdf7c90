"""Logging in, staying logged in, logging out, and the passwords for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, TypeAlias
from uuid import UUID

from contract.events.identity import (
    AccountUnderAttack,
    Attack,
    EndedSession,
    InvitationAccepted,
    LoggedOut,
    LoginAttempt,
    LoginFailed,
    LoginSucceeded,
    OpenedSession,
    PasswordChanged,
    RefreshTokenReused,
    ReusedSession,
    SessionConfirmed,
)
from servicekit.call import Call, current_call
from servicekit.data.postgres import SYSTEM, Connection, Database, Scope
from servicekit.errors import (
    DomainError,
    exhausted,
    failed_precondition,
    invalid_field,
    unauthenticated,
)
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.security.tokens import new_secret, secret_hash
from services.identity.authenticators import guess_store
from services.identity.authenticators.guesses import Attempt, Counted, Guesses, Standing
from services.identity.authenticators.password_rules import Person
from services.identity.authenticators.passwords import Passwords
from services.identity.directories.domain import Directory
from services.identity.directories.logins import (
    DirectoryLogins,
    RefusedByDirectoryError,
    password_is_elsewhere,
)
from services.identity.mail.notices import Notices
from services.identity.password_resets import store as resets_store
from services.identity.second_factor.challenges import Challenges, PendingLogin
from services.identity.second_factor.domain import (
    FACTOR_ELSEWHERE,
    OTP,
    PASSKEY,
    PASSWORD,
    RECOVERY,
    SSO,
    Factors,
    challenge_over,
    otp_needed,
    setup_needed,
    wrong_code,
)
from services.identity.second_factor.passkeys import Passkeys, wrong_passkey
from services.identity.second_factor.service import AppKey, Proof, SecondFactors, Setup
from services.identity.second_factor.tries import CodeTries, CodeTry
from services.identity.sessions import store
from services.identity.sessions.domain import REFRESH_GRACE, OpenSession
from services.identity.sessions.refusals import UnknownLogins
from services.identity.sources import store as sources_store
from services.identity.sources.domain import BY_PROVIDER, NotAdmittedError, Origin
from services.identity.sources.local_logins import (
    LOCAL_LOGIN_OFF,
    check_local_login,
    may_log_in_here,
)
from services.identity.sso.logins import Arrival, SsoLogins
from services.identity.tenants import store as tenants_store
from services.identity.token_keys.tokens import TokenSigner
from services.identity.users import store as users_store
from services.identity.users.domain import User, spellings, unlinked
from services.identity.users.store import Credentials

_Opening: TypeAlias = LoginSucceeded | InvitationAccepted
_SECOND: Final = frozenset({OTP, RECOVERY, PASSKEY})
"""The methods that are a second factor."""
_MAX_REFRESHES: Final = 32
"""At the same time, of everybody."""
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
        guesses: Guesses,
        directories: DirectoryLogins,
        factors: SecondFactors,
        passkeys: Passkeys,
        challenges: Challenges,
        code_tries: CodeTries,
        sso: SsoLogins,
        signer: TokenSigner,
        session_life: timedelta,
        unknown: UnknownLogins,
        notices: Notices,
        clock: Clock,
    ) -> None:
        self._unknown = unknown
        self._notices = notices
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._passwords = passwords
        self._guesses = guesses
        self._directories = directories
        self._factors = factors
        self._passkeys = passkeys
        self._challenges = challenges
        self._code_tries = code_tries
        self._sso = sso
        self._signer = signer
        self._session_life = session_life
        self._clock = clock
        self._refreshes = 0

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
        return await self._with_code(call, begun, device, otp)

    async def begin_login(
        self, call: Call, email: str, password: str, device: str
    ) -> OpenSession | PendingLogin:
        """Opens a browser's session, or keeps a login that waits for the second factor.

        Raises:
            DomainError: as `login`.
        """
        return await self._kept(await self._begin(call, email, password, device))

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
                    self._login_failed(call, email, found.user if found else None, attempt),
                    asyncio.sleep(_WRONG_SECONDS),
                )
                raise _wrong_credentials()
            try:
                return await self._let_in(found, password, counted, device)
            except DomainError as error:
                if error.reason == LOCAL_LOGIN_OFF:
                    await self._login_failed(call, email, found.user, attempt, error.reason)
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
                raise _wrong_credentials()
            await self._check_open(connection, now.user)
            await check_local_login(connection, now.user)
            if now.hashes == found.hashes and now.hashes != renewed:
                await users_store.renew_hashes(connection, now.user, renewed)
            await self._guesses.succeeded(connection, counted)
            return await self._settle(connection, now.user, device, (PASSWORD,))

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
                self._login_failed(call, email, user, attempt, refused.reason, directory.id),
                asyncio.sleep(_WRONG_SECONDS),
            )
            raise (refused.told or _wrong_credentials()) from None
        # What the directory says of the person is committed, also when there is no login.
        refusal: NotAdmittedError | None = None
        async with self._database.system_transaction(
            "an address is one in the whole system"
        ) as connection:
            try:
                admitted = await self._directories.admit(connection, recognised)
                await self._check_open(connection, admitted)
                await self._guesses.succeeded(connection, counted)
                origin = Origin(directory.id)
                begun = await self._settle(connection, admitted, device, (PASSWORD,), origin)
            except NotAdmittedError as error:
                refusal = error
        if refusal is not None:
            told = await self._directories.not_admitted(recognised, email, refusal.reason)
            await self._refresh_directory()
            raise told
        self._directories.admitted()
        return begun

    async def _settle(
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
        if (pending := await self._pending(connection, user, methods)) is not None:
            return replace(pending, origin=origin)
        return await self._open(connection, user, LoginSucceeded, device, methods, origin=origin)

    async def _pending(
        self, connection: Connection, user: User, methods: tuple[str, ...]
    ) -> PendingLogin | None:
        factors = await self._factors.of(connection, user)
        if not factors.any and not factors.must_set_up(self._clock()):
            return None
        scope = Scope.of(user.tenant_id)
        credentials = await users_store.credentials(connection, scope, user.id)
        assert credentials is not None
        return self._challenges.begun(credentials, methods, new_id())

    async def _kept(self, begun: OpenSession | PendingLogin) -> OpenSession | PendingLogin:
        """A login that waits, for a browser to come back to."""
        if isinstance(begun, OpenSession):
            return begun
        async with self._database.transaction(Scope.of(begun.tenant_id)) as connection:
            return replace(begun, secret=await self._challenges.keep(connection, begun))

    async def _with_code(
        self, call: Call, begun: OpenSession | PendingLogin, device: str | None, otp: str
    ) -> OpenSession:
        """Opens the session of a program that gives its code at once."""
        if isinstance(begun, OpenSession):
            return begun
        async with self._database.system_transaction("a source may be above") as connection:
            factors = await self._factors.of(connection, await self._still(connection, begun))
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
            user = await self._still(connection, pending)
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
            waiting = await self._still(connection, pending) if pending is not None else None
            used = await self._passkeys.prove(connection, credential, kind, bound)
            user = await users_store.user(
                connection, SYSTEM, used.passkey.account_id, for_update=True
            )
            if user is None or user.status != "active":
                raise wrong_passkey()
            if waiting is not None and waiting.id != user.id:
                raise wrong_passkey()
            await self._check_open(connection, user)
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
                return await self._open(
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
            raise _wrong_refresh_token()
        after = OpenedSession(email=user.email, session_id=session_id, methods=methods)
        confirmed = SessionConfirmed(id=user.id, after=after)
        await self._outbox.append(connection, CloudEvent(confirmed, user.tenant_id))
        token, expires_at = self._signer.session_token(user, session_id, at, at)
        return OpenSession(user, token, "", expires_at)

    async def set_up_factor(self, secret: str) -> Setup:
        """Makes what a user needs to set up an app, who gets in only with one.

        Raises:
            DomainError: UNAUTHENTICATED when the login waits no more.
        """
        pending = await self._challenges.find(secret)
        async with self._database.system_transaction("a source may be above") as connection:
            user = await self._still(connection, pending)
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
            user = await self._still(connection, pending)
            if (await self._factors.of(connection, user)).any:
                raise challenge_over()
            await self._check_open(connection, user)
            await self._directories.check_confirmed(connection, user)
            await self._factors.confirm(connection, user, pending.session_id, code)
            await self._challenges.end(connection, pending)
            await self._factors.end_what_was_opened_without(connection, user)
            methods = (*pending.methods, OTP)
            opened = await self._open(
                connection,
                user,
                LoginSucceeded,
                device,
                methods,
                pending.session_id,
                pending.origin,
                by_link=pending.by_link,
            )
        await self._refresh_directory()
        return opened

    async def _finish(
        self, call: Call, pending: PendingLogin, device: str | None, code: str
    ) -> OpenSession:
        async with self._database.system_transaction("counters have no tenant") as connection:
            user = await self._still(connection, pending)
            attempt = await self._guesses.recognise(
                connection, user.email, user.id, call.source_ip, device or ""
            )
        tried = await self._code_tries.begin(user, attempt, code)
        async with self._database.system_transaction("a source may be above") as connection:
            user = await self._still(connection, pending)
            await self._check_open(connection, user)
            await self._directories.check_confirmed(connection, user)
            proof = await self._factors.prove(connection, user, code)
            if proof.method:
                await self._code_tries.succeeded(connection, tried)
                if pending.secret:
                    await self._challenges.end(connection, pending)
                methods = (*pending.methods, proof.method)
                return await self._open(
                    connection,
                    user,
                    LoginSucceeded,
                    device,
                    methods,
                    pending.session_id,
                    pending.origin,
                    by_link=pending.by_link,
                )
        await self._login_failed(call, user.email, user, attempt, proof.wrong_because, tried=tried)
        raise wrong_code(self._clock())

    async def _still(self, connection: Connection, pending: PendingLogin) -> User:
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
                await self._check_open(connection, admitted)
                begun = await self._entered(connection, arrival, admitted, device)
            except NotAdmittedError as error:
                refusal = error
        if refusal is not None:
            told = await self._sso.not_admitted(arrival, refusal.reason)
            await self._refresh_directory()
            raise told
        self._sso.admitted()
        # The sessions of a user who had another role until now are over.
        await self._refresh_directory()
        return await self._kept(begun)

    async def _entered(
        self, connection: Connection, arrival: Arrival, user: User, device: str
    ) -> OpenSession | PendingLogin:
        provider = arrival.provider
        origin = Origin(provider.id, arrival.claims.sid, arrival.authenticated_at)
        vouching = provider.source.tenant_id if provider.trusts_mfa else None
        if not await self._factors.is_vouched_for(connection, user, vouching):
            return await self._settle(connection, user, device, (SSO,), origin)
        methods = (SSO, FACTOR_ELSEWHERE)
        return await self._open(connection, user, LoginSucceeded, device, methods, origin=origin)

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

    @staticmethod
    async def _check_open(connection: Connection, user: User) -> None:
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

    async def _login_failed(
        self,
        call: Call,
        email: str,
        user: User | None,
        attempt: Attempt,
        reason: str = "",
        source: UUID | None = None,
        tried: CodeTry | None = None,
    ) -> None:
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

    async def _open(
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
        at = self._clock()
        session_id = session_id or new_id()
        until = at + self._session_life
        await store.insert_session(connection, session_id, user, at, until, methods, origin)
        authenticated_at = (origin.authenticated_at if origin else None) or at
        if not by_link:
            await self._tell_of_place(connection, user, device, session_id)
        answer = await self._issue(
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

    async def _issue(
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
        refresh = new_secret()
        await store.insert_refresh_token(connection, secret_hash(refresh), session_id, at)
        call = current_call.get()
        source = call.source_ip
        await store.note_seen(connection, session_id, at, source, call.user_agent)
        await users_store.note_seen(connection, user, at, login=login)
        device = await self._guesses.remember(connection, user.id, source, device)
        token, expires_at = self._signer.session_token(user, session_id, at, authenticated_at)
        return OpenSession(user, token, refresh, expires_at, device)

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
                raise _wrong_refresh_token()
            user = await users_store.user(connection, Scope.of(token.tenant_id), token.account_id)
            if user is None or user.status != "active":
                raise _wrong_refresh_token()
            await self._directories.check_confirmed(connection, user)
            if token.source_id is None and not await may_log_in_here(connection, user):
                raise _wrong_refresh_token()
            factors = await self._factors.of(connection, user)
            lacking = (factors.any and not token.methods & _SECOND) or factors.must_set_up(at)
            if lacking and not await self._factors.is_vouched_for(
                connection, user, token.vouching_tenant_id
            ):
                raise _wrong_refresh_token()
            if token.used_at is None:
                await store.use_refresh_token(connection, token_hash, at)
            if token.used_at is None or at <= token.used_at + REFRESH_GRACE:
                return await self._issue(
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
        await self._refresh_directory()
        raise _wrong_refresh_token()

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
        await self._refresh_directory()

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
                raise _wrong_credentials()
            user = found.user
            if user.origin in BY_PROVIDER:
                raise failed_precondition(
                    "SIGN_IN_AGAIN",
                    "your organisation's sign-in knows you, and no password here: confirm it at"
                    " /auth/confirm, which leads there",
                )
            if not await self._knows_password(found, password):
                await self._login_failed(call, user.email, user, attempt, "STEP_UP")
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
                raise _wrong_credentials()
            proof = await self._factors.prove(connection, now.user, otp) if tried else Proof()
            if not proof.wrong_because:
                if tried is not None:
                    await self._code_tries.succeeded(connection, tried)
                session_id = UUID(caller.session_id)
                methods = (PASSWORD, *([proof.method] if proof.method else []))
                if not await store.confirm_session(connection, session_id, at, methods):
                    raise _wrong_refresh_token()
                after = OpenedSession(email=user.email, session_id=session_id, methods=methods)
                await self._outbox.append(
                    connection,
                    CloudEvent(SessionConfirmed(id=user.id, after=after), user.tenant_id),
                )
                token, expires_at = self._signer.session_token(now.user, session_id, at, at)
                return OpenSession(now.user, token, "", expires_at)
        await self._login_failed(call, user.email, user, attempt, proof.wrong_because, tried=tried)
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
                raise _wrong_credentials()
            await users_store.set_password(connection, user, hashes, at)
            await store.end_sessions_of(connection, user_id, at, but=UUID(caller.session_id))
            await self._outbox.append(
                connection,
                CloudEvent(PasswordChanged(id=user.id), user.tenant_id),
            )
        await self._refresh_directory()

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
        return await self._with_code(call, begun, None, otp)

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
        return await self._kept(await self._accept(invitation_token, password, device))

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
            await self._check_open(connection, user)
            await check_local_login(connection, user)
            await users_store.set_password(connection, user, hashes, self._clock())
            is_reset = user.status == "active"
            if is_reset:
                await self._password_was_reset(connection, user)
            methods = (PASSWORD,)
            pending = await self._pending(connection, user, methods)
            if pending is None:
                event = LoginSucceeded if is_reset else InvitationAccepted
                return await self._open(connection, user, event, device, methods, by_link=True)
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

    async def _refresh_directory(self) -> None:
        """Lets this process refuse an ended session at once; the others hear within a second."""
        await self._tenants.follower.try_refresh()
