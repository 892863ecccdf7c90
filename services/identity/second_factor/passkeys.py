"""Passkeys: added, removed, and used in place of a password and a code."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from contract.events.identity.sign_in import (
    FactorChange,
    PasskeyAdded,
    PasskeyCounterBehind,
    PasskeyRemoved,
)
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import (
    DomainError,
    failed_precondition,
    invalid_field,
    not_found,
    unauthenticated,
)
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.security import passkeys
from servicekit.security.digests import equal, sha256
from servicekit.security.passkeys import Claimed, PasskeyError, RelyingParty
from servicekit.security.sealing import Sealer
from services.identity.second_factor import passkey_store, store
from services.identity.second_factor.domain import PASSKEY
from services.identity.second_factor.passkey_store import Passkey
from services.identity.second_factor.service import SecondFactors, caller_of
from services.identity.users.domain import User

MOST: Final = 20
_LIFE: Final = timedelta(minutes=10)
_NONCE: Final = 16
_TIME: Final = 8


@dataclass(frozen=True, slots=True)
class Used:
    """A passkey that was proven, and may be used."""

    passkey: Passkey
    sign_count: int
    backed_up: bool

    @property
    def behind(self) -> bool:
        """Whether the device has counted less than before: there may be a copy of it. Passkeys that
        several devices share do not count."""
        counts = self.sign_count > 0 or self.passkey.sign_count > 0
        return counts and self.sign_count <= self.passkey.sign_count


class Passkeys:
    """The use cases around passkeys.

    A challenge says itself until when, for what and for whom it is, under a seal: a page that asks
    for a passkey keeps nothing. Only those that were answered are kept, so that none is twice.

    Args:
        site: what they are for; `None` where the public address is not known.
        sealer: marks challenges.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        factors: SecondFactors,
        sealer: Sealer,
        site: RelyingParty | None,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._factors = factors
        self._sealer = sealer
        self._site = site
        self._clock = clock

    # One's own

    async def own(self, call: Call) -> list[Passkey]:
        """The caller's passkeys."""
        async with self._database.transaction(_scope(call)) as connection:
            return await passkey_store.passkeys(connection, UUID(call.caller.id))

    async def creation_options(self, call: Call) -> str:
        """What a browser is asked to make, as JSON; the answer is good for ten minutes, and for the
        caller's session.

        Raises:
            DomainError: FAILED_PRECONDITION without recovery codes, or where the installation does
                not know its public address.
        """
        site = self._known_site()
        async with self._database.transaction(_scope(call)) as connection:
            user = await caller_of(connection, call)
            await self._factors.check_codes(connection, user, UUID(call.caller.session_id))
            known = await passkey_store.passkeys(connection, user.id)
        challenge = self._challenge("add", call.caller.session_id)
        ids = [one.credential_id for one in known]
        return passkeys.creation_options(site, user.id, user.email, challenge, ids)

    async def add(self, call: Call, name: str, credential: str) -> Passkey:
        """Adds what a browser has made. With the first factor the caller's other sessions end.

        Raises:
            DomainError: INVALID_ARGUMENT when it is not what was asked for; FAILED_PRECONDITION
                when there are enough, and as `creation_options`; ALREADY_EXISTS.
        """
        site = self._known_site()
        at = self._clock()
        async with self._database.transaction(_scope(call)) as connection:
            user = await caller_of(connection, call)
            try:
                answer = passkeys.claimed(credential)
                self._check_challenge(answer, "add", call.caller.session_id)
                made = passkeys.registered(site, answer, answer.challenge)
            except PasskeyError as broken:
                raise invalid_field("credential", f"is no new passkey: {broken}") from broken
            if not await self._spend(connection, answer):
                raise invalid_field("credential", "was used before; ask for new options")
            session_id = UUID(call.caller.session_id)
            await self._factors.check_codes(connection, user, session_id)
            first = not (await self._factors.of(connection, user)).any
            if len(await passkey_store.passkeys(connection, user.id)) >= MOST:
                raise failed_precondition(
                    "TOO_MANY_PASSKEYS", f"you have {MOST} passkeys; remove one first"
                )
            passkey = Passkey(
                id=new_id(),
                account_id=user.id,
                credential_id=made.credential_id,
                site=site.id,
                public_key=made.public_key,
                sign_count=made.sign_count,
                backed_up=made.backed_up,
                aaguid=made.aaguid,
                name=name,
                created_at=at,
                last_used_at=None,
            )
            await passkey_store.insert(connection, passkey)
            event = PasskeyAdded(id=user.id, after=_change(user, passkey))
            await self._outbox.append(connection, CloudEvent(event, user.tenant_id))
            await store.add_methods(connection, session_id, (PASSKEY,))
            if first:
                await self._factors.end_what_was_opened_without(connection, user, but=session_id)
            return passkey

    async def remove(self, call: Call, passkey_id: UUID) -> None:
        """Removes one of the caller's; with the last factor the recovery codes go.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION when a factor is asked for and this is the
                last one.
        """
        async with self._database.transaction(_scope(call)) as connection:
            user = await caller_of(connection, call)
            known = await passkey_store.passkeys(connection, user.id)
            found = next((one for one in known if one.id == passkey_id), None)
            if found is None:
                raise not_found("passkey", passkey_id)
            await self._factors.check_removable(connection, user, last=len(known) == 1)
            await passkey_store.delete(connection, user.id, passkey_id)
            event = PasskeyRemoved(id=user.id, after=_change(user, found))
            await self._outbox.append(connection, CloudEvent(event, user.tenant_id))
            await self._factors.drop_codes_without_factor(connection, user)

    # What a login needs

    def login_options(self, bound: str) -> str:
        """What a browser is asked that names nobody, as JSON; empty where passkeys cannot be.

        Args:
            bound: what only this browser has.
        """
        if self._site is None:
            return ""
        return passkeys.request_options(self._site, self._challenge("login", bound))

    def step_options(self, bound: str, known: Sequence[Passkey]) -> str:
        """What a browser is asked of a user whose first step was right, or who is logged in, as
        JSON; empty where the user has none for this site."""
        site = self._site
        ids = [one.credential_id for one in known if site and one.site == site.id]
        if site is None or not ids:
            return ""
        return passkeys.request_options(site, self._challenge("step", bound), ids)

    async def of_user(self, user: User) -> list[Passkey]:
        """The passkeys of a user whose first step was right."""
        async with self._database.transaction(Scope.of(user.tenant_id)) as connection:
            return await passkey_store.passkeys(connection, user.id)

    async def prove(self, connection: Connection, credential: str, kind: str, bound: str) -> Used:
        """Finds and verifies the passkey of a browser's answer, whose challenge is taken.

        Args:
            connection: sees all rows.
            kind: `login` or `step`.

        Raises:
            DomainError: UNAUTHENTICATED when it proves nothing.
        """
        try:
            answer = passkeys.claimed(credential)
            self._check_challenge(answer, kind, bound)
            found = await passkey_store.passkey(connection, answer.credential_id)
            if self._site is None or found is None or found.site != self._site.id:
                raise PasskeyError("nobody has this passkey")
            if answer.user_handle and answer.user_handle != found.account_id.bytes:
                raise PasskeyError("it is somebody else's")
            count, backed_up = passkeys.verified(
                self._site, answer, answer.challenge, found.public_key
            )
        except PasskeyError as broken:
            raise wrong_passkey() from broken
        if not await self._spend(connection, answer):
            raise wrong_passkey()
        return Used(found, count, backed_up)

    async def note_use(self, connection: Connection, used: Used) -> None:
        """Notes that a passkey has opened something."""
        await passkey_store.note_use(
            connection, used.passkey.id, used.sign_count, self._clock(), backed_up=used.backed_up
        )

    async def tell_behind(self, connection: Connection, user: User, used: Used) -> None:
        """Tells of a passkey that may have a copy."""
        event = PasskeyCounterBehind(id=user.id, after=_change(user, used.passkey))
        await self._outbox.append(connection, CloudEvent(event, user.tenant_id))

    async def forget_old(self) -> None:
        """Deletes challenges that have expired."""
        async with self._database.system_transaction("challenges have no tenant") as connection:
            await passkey_store.forget_spent(connection, self._clock())

    # Challenges

    def _known_site(self) -> RelyingParty:
        if self._site is None:
            raise failed_precondition(
                "NO_PASSKEYS_HERE",
                "passkeys need the installation's public address, with the name of a host",
            )
        return self._site

    def _challenge(self, kind: str, bound: str) -> bytes:
        until = int((self._clock() + _LIFE).timestamp())
        head = secrets.token_bytes(_NONCE) + until.to_bytes(_TIME, "big")
        return head + self._seal_of(head, kind, bound)

    def _seal_of(self, head: bytes, kind: str, bound: str) -> bytes:
        return self._sealer.mark(f"passkey\0{kind}\0{bound}\0{head.hex()}")

    def _check_challenge(self, answer: Claimed, kind: str, bound: str) -> None:
        """Refuses an answer to what was not asked here, or too long ago.

        Raises:
            PasskeyError: it is one.
        """
        head = answer.challenge[: _NONCE + _TIME]
        seal = answer.challenge[_NONCE + _TIME :]
        if len(head) != _NONCE + _TIME or not equal(seal, self._seal_of(head, kind, bound)):
            raise PasskeyError("it answers what was not asked here")
        if _until(head) <= self._clock():
            raise PasskeyError("it took too long")

    @staticmethod
    async def _spend(connection: Connection, answer: Claimed) -> bool:
        until = _until(answer.challenge[: _NONCE + _TIME])
        return await passkey_store.spend(connection, sha256(answer.challenge), until)


def wrong_passkey() -> DomainError:
    """A browser's answer proves nothing."""
    return unauthenticated("WRONG_PASSKEY", "the passkey was not recognised; try again")


def _until(head: bytes) -> datetime:
    return datetime.fromtimestamp(int.from_bytes(head[_NONCE:], "big"), UTC)


def _scope(call: Call) -> Scope:
    return Scope.of(UUID(call.caller.tenant_id))


def _change(user: User, passkey: Passkey) -> FactorChange:
    return FactorChange(email=user.email, method="passkey", factor_id=passkey.id)
