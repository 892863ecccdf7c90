"""Second factors of one's own account, and what a login asks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol
from uuid import UUID

from contract.events.identity.sign_in import (
    FactorChange,
    FactorOwner,
    RecoveryCodesCreated,
    RecoveryCodesLeft,
    RecoveryCodeUsed,
    SecondFactorDisabled,
    SecondFactorEnabled,
    SecondFactorsReset,
    UsedRecoveryCode,
)
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import failed_precondition, invalid_field, not_found
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.security import totp
from servicekit.security.digests import equal, sha256
from servicekit.security.sealing import Sealer
from services.identity.api_tokens.ends import end_tokens_of
from services.identity.second_factor import passkey_store, store
from services.identity.second_factor.domain import (
    CHALLENGE_LIFE,
    OTP,
    RECOVERY,
    RECOVERY_CODES,
    Factors,
    TotpKey,
    codes_first,
    digits,
    is_app_code,
    new_recovery_code,
    plain_code,
    required_from,
)
from services.identity.sources.domain import BY_PROVIDER
from services.identity.users import store as users_store
from services.identity.users.domain import User, check_not_self

_ISSUER: Final = "Evergreen"
_OFF_CLOCK_STEPS: Final = 10
"""Up to five minutes: the log tells a clock that is wrong from a guess."""


@dataclass(frozen=True, slots=True)
class AppKey:
    """A key of an authenticator app, as it is shown once."""

    secret: str = field(repr=False)
    uri: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Setup:
    """What somebody needs to set up an app: its key, and the recovery codes that were made with
    it."""

    key: AppKey
    codes: Sequence[str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of a code: how it was right, or why it was not."""

    method: str = ""
    wrong_because: str = ""


class EndSessions(Protocol):
    """Ends the sessions of a user."""

    async def __call__(
        self, connection: Connection, user_id: UUID, at: datetime, *, but: UUID | None = None
    ) -> object:
        """Ends them, all but one."""


class SecondFactors:
    """The use cases around second factors.

    Args:
        end_sessions: ends the sessions of a user, but one.
        sealer: seals keys of apps, and digests of recovery codes.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        end_sessions: EndSessions,
        sealer: Sealer,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._end_sessions = end_sessions
        self._sealer = sealer
        self._clock = clock

    # One's own

    async def own(self, call: Call) -> Factors:
        """What the caller has, and what is asked of the caller."""
        async with self._database.transaction(_scope(call)) as connection:
            return await self.of(connection, await caller_of(connection, call))

    async def create_recovery_codes(self, call: Call) -> list[str]:
        """Makes recovery codes in place of all that there were."""
        async with self._database.transaction(_scope(call)) as connection:
            user = await caller_of(connection, call)
            return await self._new_codes(connection, user, UUID(call.caller.session_id))

    async def create_totp(self, call: Call) -> AppKey:
        """Makes a key that waits for its first code.

        Raises:
            DomainError: FAILED_PRECONDITION without recovery codes.
        """
        session_id = UUID(call.caller.session_id)
        async with self._database.transaction(_scope(call)) as connection:
            user = await caller_of(connection, call)
            await self.check_codes(connection, user, session_id)
            return await self._new_key(connection, user, session_id)

    async def set_up_own(self, call: Call) -> Setup:
        """Makes a key that waits for its first code, and recovery codes as `set_up`."""
        async with self._database.transaction(_scope(call)) as connection:
            user = await caller_of(connection, call)
            return await self.set_up(connection, user, UUID(call.caller.session_id))

    async def waiting_own(self, call: Call) -> AppKey | None:
        """The caller's key that waits for its first code, once more."""
        async with self._database.transaction(_scope(call)) as connection:
            user = await caller_of(connection, call)
            return await self.waiting(connection, user, UUID(call.caller.session_id))

    async def confirm_totp(self, call: Call, code: str) -> Factors:
        """Lets the key that waits count. With the first factor the caller's other sessions end.

        Raises:
            DomainError: INVALID_ARGUMENT when the code is wrong; FAILED_PRECONDITION when none
                waits that was made in this session, and without recovery codes.
        """
        session_id = UUID(call.caller.session_id)
        async with self._database.transaction(_scope(call)) as connection:
            user = await caller_of(connection, call)
            first = not (await self.of(connection, user)).any
            await self.confirm(connection, user, session_id, code)
            await store.add_methods(connection, session_id, (OTP,))
            if first:
                await self.end_what_was_opened_without(connection, user, but=session_id)
            factors = await self.of(connection, user)
        await self._tenants.follower.try_refresh()
        return factors

    async def delete_totp(self, call: Call) -> Factors:
        """Removes the caller's app; with the last factor the recovery codes go.

        Raises:
            DomainError: FAILED_PRECONDITION when a factor is asked for and this is the last one.
        """
        async with self._database.transaction(_scope(call)) as connection:
            user = await caller_of(connection, call)
            key = await store.totp(connection, user.id, confirmed=True)
            if key is not None:
                last = not await passkey_store.passkeys(connection, user.id)
                await self.check_removable(connection, user, last=last)
                await self._outbox.append(
                    connection,
                    CloudEvent(
                        SecondFactorDisabled(id=user.id, after=_change(user, key)), user.tenant_id
                    ),
                )
                await store.delete_totp(connection, user.id)
            await self.drop_codes_without_factor(connection, user)
            return await self.of(connection, user)

    # Those of others

    async def reset(self, call: Call, user_id: UUID) -> Factors:
        """Removes all factors of a user who has lost them, and ends the user's sessions.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION for the caller's own account.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            user = await users_store.user(connection, scope, user_id, for_update=True)
            if user is None:
                raise not_found("user", user_id)
            check_not_self(call.caller.id, user)
            if await remove_all(connection, user.id):
                await self.end_what_was_opened_without(connection, user)
                event = SecondFactorsReset(id=user.id, after=FactorOwner(email=user.email))
                await self._outbox.append(connection, CloudEvent(event, user.tenant_id))
            factors = await self.of(connection, user)
        await self._tenants.follower.try_refresh()
        return factors

    # What a login needs

    async def end_what_was_opened_without(
        self, connection: Connection, user: User, *, but: UUID | None = None
    ) -> None:
        """Ends the sessions of a user, but for one, and the user's API tokens: somebody who knew
        the password alone may have them."""
        await self._end_sessions(connection, user.id, self._clock(), but=but)
        await self._outbox.append(connection, *await end_tokens_of(connection, user.id))

    async def check_kept(self, call: Call) -> None:
        """Refuses a caller who lacks a second factor that is asked for, also where there are days
        left: what is made now lasts longer than these.

        Raises:
            DomainError: FAILED_PRECONDITION.
        """
        caller = call.caller
        async with self._database.system_transaction(
            "a provider may be of a tenant above"
        ) as connection:
            user = await users_store.user(connection, _scope(call), UUID(caller.id))
            if user is None:
                return
            factors = await self.of(connection, user)
            if factors.any or factors.required_from is None:
                return
            session_id = UUID(caller.session_id)
            vouching = await store.vouching_tenant(connection, session_id)
            if not await self.is_vouched_for(connection, user, vouching):
                raise failed_precondition(
                    "SECOND_FACTOR_REQUIRED",
                    "your organisation asks for a second factor: set one up first, at"
                    " /auth/account",
                )

    async def is_vouched_for(
        self, connection: Connection, user: User, tenant_id: UUID | None
    ) -> bool:
        """Whether a provider's answer for a second factor is enough. It is for those who come from
        providers, whose way in it is; an account with a password here may have been linked by
        somebody who knew only that. And nobody has to believe a provider of a tenant below.

        Args:
            tenant_id: of the provider that answers for one; `None` where none does.
        """
        if tenant_id is None or user.origin not in BY_PROVIDER:
            return False
        counting = await store.policies(connection, tenant_id)
        above = required_from([one for one in counting if one.tenant_id != tenant_id], user.role)
        return above is None or above > self._clock()

    async def of(self, connection: Connection, user: User) -> Factors:
        """What a user has, and what is asked of the user."""
        key = await store.totp(connection, user.id, confirmed=True)
        policies = await store.policies(connection, user.tenant_id)
        return Factors(
            totp_since=key.confirmed_at if key else None,
            recovery_codes_left=await store.recovery_codes_left(connection, user.id),
            passkeys=len(await passkey_store.passkeys(connection, user.id)),
            required_from=required_from(policies, user.role),
        )

    async def check_removable(self, connection: Connection, user: User, *, last: bool) -> None:
        """Refuses to remove the last factor where one is asked for.

        Raises:
            DomainError: FAILED_PRECONDITION.
        """
        if last and (await self.of(connection, user)).required_from is not None:
            raise failed_precondition(
                "SECOND_FACTOR_REQUIRED",
                "your organisation asks for a second factor: set up another one first; another"
                " app takes the place of this one",
            )

    async def drop_codes_without_factor(self, connection: Connection, user: User) -> None:
        """Recovery codes stand in for a factor, and go with the last one."""
        if not (await self.of(connection, user)).any:
            await store.replace_recovery_codes(connection, user.id, ())

    async def prove(self, connection: Connection, user: User, code: str) -> Proof:
        """Takes a code of a user's factors, which works no more then.

        Args:
            connection: its transaction commits what was taken, together with what it opens.
        """
        at = self._clock()
        if is_app_code(code):
            key = await store.totp(connection, user.id, confirmed=True)
            if key is None:
                return Proof(wrong_because="CODE_WRONG")
            secret, typed = self._sealer.open(key.sealed), digits(code)
            step = totp.step_of_code(secret, typed, at)
            if step is None:
                off = totp.step_of_code(secret, typed, at, _OFF_CLOCK_STEPS)
                return Proof(wrong_because="CODE_WRONG" if off is None else "CODE_OFF_CLOCK")
            if not await store.take_step(connection, key, step):
                return Proof(wrong_because="CODE_USED")
            return Proof(OTP)
        used = await self._recovery_code(connection, user, code)
        if used is None or not await store.use_recovery_code(connection, used, at):
            return Proof(wrong_because="CODE_WRONG")
        left = await store.recovery_codes_left(connection, user.id)
        event = RecoveryCodeUsed(
            id=user.id, after=UsedRecoveryCode(email=user.email, code_id=used, left=left)
        )
        await self._outbox.append(connection, self._by(user, event))
        return Proof(RECOVERY)

    async def set_up(self, connection: Connection, user: User, session_id: UUID) -> Setup:
        """Makes a key of an app that waits, and recovery codes where there are none, or no factor:
        somebody who knew the password alone may have made those that there are.

        Args:
            session_id: the session in which, or the one that a login that waits is to open.
        """
        codes: Sequence[str] = ()
        factors = await self.of(connection, user)
        if not factors.any or not factors.recovery_codes_left:
            codes = await self._new_codes(connection, user, session_id)
        return Setup(await self._new_key(connection, user, session_id), codes)

    async def waiting(self, connection: Connection, user: User, session_id: UUID) -> AppKey | None:
        """The key that waits for its first code, once more.

        Args:
            session_id: as for `set_up`. Another one's key is not shown, and does not come to count:
                whoever made it knows it.
        """
        key = await self._waiting_key(connection, user, session_id)
        return None if key is None else self._shown(user, self._sealer.open(key.sealed))

    async def check_codes(self, connection: Connection, user: User, session_id: UUID) -> None:
        """Makes sure that there are recovery codes; before the first factor, that they were made in
        the same session: others may be known to somebody who knew the password alone.

        Args:
            session_id: as for `set_up`.

        Raises:
            DomainError: FAILED_PRECONDITION.
        """
        factors = await self.of(connection, user)
        there = factors.recovery_codes_left > 0
        if not factors.any:
            there = await store.has_codes_of(connection, user.id, session_id)
        if not there:
            raise codes_first()

    async def confirm(
        self, connection: Connection, user: User, session_id: UUID, code: str
    ) -> None:
        """Lets the key that waits count; the code is taken.

        Args:
            session_id: as for `set_up`.

        Raises:
            DomainError: as `confirm_totp`.
        """
        key = await self._waiting_key(connection, user, session_id)
        if key is None:
            raise failed_precondition("NO_TOTP", "make a key for your authenticator app first")
        at = self._clock()
        step = totp.step_of_code(self._sealer.open(key.sealed), digits(code), at)
        if step is None:
            raise invalid_field(
                "code",
                "is none that your app shows for this key now; the clock of your device must be"
                f" right: here it is {at:%H:%M:%S} UTC",
            )
        await self.check_codes(connection, user, session_id)
        await store.confirm_totp(connection, key, step, at)
        event = SecondFactorEnabled(id=user.id, after=_change(user, key))
        await self._outbox.append(connection, self._by(user, event))

    async def _new_codes(self, connection: Connection, user: User, session_id: UUID) -> list[str]:
        codes = [new_recovery_code() for _ in range(RECOVERY_CODES)]
        sealed = [(new_id(), self._sealer.seal(_digest(code))) for code in codes]
        await store.replace_recovery_codes(connection, user.id, sealed, session_id)
        event = RecoveryCodesCreated(
            id=user.id, after=RecoveryCodesLeft(email=user.email, left=len(codes))
        )
        await self._outbox.append(connection, self._by(user, event))
        return codes

    async def _waiting_key(
        self, connection: Connection, user: User, session_id: UUID
    ) -> TotpKey | None:
        since = self._clock() - CHALLENGE_LIFE
        return await store.waiting_totp(connection, user.id, session_id, since)

    async def _new_key(self, connection: Connection, user: User, session_id: UUID) -> AppKey:
        secret = totp.new_totp_key()
        at = self._clock()
        key = TotpKey(new_id(), user.id, self._sealer.seal(secret), at, None, 0)
        await store.insert_totp(connection, key, session_id)
        return self._shown(user, secret)

    @staticmethod
    def _shown(user: User, secret: bytes) -> AppKey:
        return AppKey(totp.key_text(secret), totp.key_uri(secret, user.email, _ISSUER))

    async def _recovery_code(self, connection: Connection, user: User, code: str) -> UUID | None:
        """The id of a recovery code that works."""
        digest, found = _digest(code), None
        for code_id, sealed in await store.recovery_codes(connection, user.id):
            if equal(self._sealer.open(sealed), digest):
                found = code_id
        return found

    @staticmethod
    def _by(
        user: User, event: SecondFactorEnabled | RecoveryCodesCreated | RecoveryCodeUsed
    ) -> CloudEvent:
        """An event of the user's own making, also before the session is open."""
        return CloudEvent(
            event,
            user.tenant_id,
            actor=user.email,
            actor_id=str(user.id),
            actor_role=user.role.value,
        )


async def remove_all(connection: Connection, user_id: UUID) -> bool:
    """Removes whatever a user has; answers whether a factor was among it."""
    had = await store.totp(connection, user_id, confirmed=True) is not None
    had = bool(await passkey_store.delete(connection, user_id)) or had
    await store.delete_totp(connection, user_id)
    await store.replace_recovery_codes(connection, user_id, ())
    return had


def _digest(code: str) -> bytes:
    return sha256(plain_code(code).encode())


def _scope(call: Call) -> Scope:
    return Scope.of(UUID(call.caller.tenant_id))


async def caller_of(connection: Connection, call: Call) -> User:
    """The caller's account, locked.

    Raises:
        DomainError: FAILED_PRECONDITION when it has been disabled just now.
    """
    user = await users_store.user(connection, _scope(call), UUID(call.caller.id), for_update=True)
    if user is None or user.status != "active":
        raise failed_precondition("NOT_ACTIVE", "your account is not active any more")
    return user


def _change(user: User, key: TotpKey) -> FactorChange:
    return FactorChange(email=user.email, method="totp", factor_id=key.id)
