"""Signing keys of a service: made at the first start, followed, rotated by command."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from contract.events.base import KeyRotation, NextKey, ReplacedKey
from servicekit.call import Call, CallerKind
from servicekit.data.postgres import Connection, Database
from servicekit.errors import failed_precondition, invalid_field, permission_denied
from servicekit.feeds.feed import WAIT_SECONDS, Follower
from servicekit.ids import Clock, new_id
from servicekit.keys import store
from servicekit.keys.ring import KeyRing, RingKey, State
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.peers.tenants import TenantDirectory
from servicekit.security import mode
from servicekit.security.sealing import Sealer
from servicekit.security.signing import Signer, new_seed
from servicekit.security.suites import ED25519

log = logs.get(__name__)

MAX_KEYS: Final = 10
"""Of one purpose, whose signatures count: all of them are looked at and published."""
MAX_KEPT_KEYS: Final = 100
"""Of a purpose whose keys verify for ever."""
_FORGOTTEN_AFTER: Final = timedelta(days=30)
_MARGIN: Final = timedelta(minutes=5)
"""Beside the life of what a key signed: clocks differ, and replicas stop signing one by one."""


@dataclass(frozen=True, slots=True)
class Purpose:
    """What keys are for."""

    name: str
    life: timedelta | None
    """How long what they sign is in use at most; `None` for ever."""
    approved: str = ED25519
    """The algorithm of new keys where new values are made with approved algorithms."""

    @property
    def algorithm(self) -> str:
        """The algorithm of new keys."""
        return self.approved if mode.writes_approved() else ED25519


class SigningKeys:
    """The keys of a service in its table `<context>.signing_key`.

    Args:
        database: the service's.
        outbox: takes the event of a rotation.
        tenants: tells whether a caller is one of the root tenant.
        sealer: seals private keys.
        context: the service's name, and its schema.
        event: a rotation's event.
        purposes: what the service has keys for; each has one from the first start on.
        lead: how long a new key is published before it signs.
        clock: the time.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        sealer: Sealer,
        *,
        context: str,
        event: type[KeyRotation],
        purposes: tuple[Purpose, ...],
        lead: timedelta,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._sealer = sealer
        self._context = context
        self._event = event
        self._purposes = {purpose.name: purpose for purpose in purposes}
        self._lead = lead
        self._clock = clock
        self.ring = KeyRing(sealer.open, clock)
        self.follower = Follower(f"{context} keys", self._read, self._pause)

    async def load(self) -> None:
        """Reads the keys, and makes the first of each purpose.

        Raises:
            SealingError: the master key is missing or not the one that sealed the keys.
        """
        async with self._database.system_transaction("keys belong to no tenant") as connection:
            await store.lock(connection, self._context)
            found = await store.keys(connection, self._context)
            at = self._clock()
            for name in self._purposes.keys() - {key.purpose for key in found}:
                key = self._new(name, at, at)
                await store.insert(connection, self._context, key)
                log.info("signing key made", purpose=name, key=key.public.id)
                found.append(key)
            self.ring.replace(found)
            await self._renew(connection, found)

    async def rotate(
        self, call: Call, purpose: str, request_id: UUID | None
    ) -> tuple[RingKey, State]:
        """Makes the next key of a purpose, which signs after the lead.

        A request with the id of an earlier one answers its key, and makes none.

        Raises:
            DomainError: PERMISSION_DENIED to everyone but Owners of the root tenant;
                INVALID_ARGUMENT for an unknown purpose; FAILED_PRECONDITION while a rotation is in
                progress or too many keys verify.
        """
        root = await self._root(call)
        if purpose not in self._purposes:
            raise invalid_field("purpose", f"must be one of {', '.join(sorted(self._purposes))}")
        async with self._database.system_transaction("keys belong to no tenant") as connection:
            await store.lock(connection, self._context)
            self.ring.replace(await store.keys(connection, self._context))
            states = {k: s for k, s in self.ring.states().items() if k.purpose == purpose}
            for known, state in states.items():
                if request_id is not None and known.request_id == request_id:
                    return known, state
            key = await self._add(connection, states, purpose, request_id)
            active = next(k for k, state in states.items() if state is State.ACTIVE)
            await self._outbox.append(
                connection,
                CloudEvent(
                    self._event(
                        id=request_id or new_id(),
                        before=ReplacedKey(key_id=active.public.id),
                        after=NextKey(
                            key_id=key.public.id,
                            purpose=purpose,
                            algorithm=key.algorithm,
                            signs_from=key.signs_from,
                        ),
                    ),
                    root,
                ),
            )
        await self.follower.try_refresh()
        return key, State.NEXT

    async def _add(
        self,
        connection: Connection,
        states: Mapping[RingKey, State],
        purpose: str,
        request_id: UUID | None,
    ) -> RingKey:
        at = self._clock()
        for known, state in states.items():
            if state is State.NEXT:
                raise failed_precondition(
                    "ROTATION_IN_PROGRESS",
                    f"a rotation is in progress: key {known.public.id} signs from"
                    f" {known.signs_from.isoformat(timespec='seconds')} on",
                )
        life = self._purposes[purpose].life
        verifying = [key for key in states if key.verifies(at)]
        most = MAX_KEPT_KEYS if life is None else MAX_KEYS
        if len(verifying) >= most:
            ends = [key.verifies_until for key in verifying if key.verifies_until is not None]
            after = f" before {min(ends).isoformat(timespec='seconds')}" if ends else ""
            raise failed_precondition(
                "TOO_MANY_KEYS",
                f"{most} keys for {purpose} verify; there cannot be more{after}",
            )
        key = replace(self._new(purpose, at, at + self._lead), request_id=request_id)
        await store.insert(connection, self._context, key)
        if life is not None:
            active = next(k for k, state in states.items() if state is State.ACTIVE)
            until = key.signs_from + life + _MARGIN
            await store.retire(connection, self._context, active, until)
            await store.forget(connection, self._context, at - _FORGOTTEN_AFTER)
        return key

    def _new(self, purpose: str, at: datetime, signs_from: datetime) -> RingKey:
        algorithm = self._purposes[purpose].algorithm
        seed = new_seed(algorithm)
        public = Signer(seed, algorithm).public
        return RingKey(public, purpose, algorithm, self._sealer.seal(seed), at, signs_from)

    async def _renew(self, connection: Connection, keys: list[RingKey]) -> None:
        """Seals anew what was sealed in an older way."""
        for key in keys:
            if not self._sealer.is_current(key.sealed_seed):
                sealed = self._sealer.seal(self._sealer.open(key.sealed_seed))
                await store.reseal(connection, self._context, key, sealed)

    async def _root(self, call: Call) -> UUID:
        if call.caller.kind is CallerKind.USER:
            scope = await self._tenants.query_scope(call.caller, None)
            if scope.tenant_ids is None:
                return UUID(call.caller.tenant_id)
        raise permission_denied(
            "ROOT_ONLY", "the keys of the installation are rotated by Owners of the root tenant"
        )

    async def _read(self, _cursor: str) -> tuple[str, bool]:
        async with self._database.system_transaction("keys belong to no tenant") as connection:
            self.ring.replace(await store.keys(connection, self._context))
        return "", False

    async def _pause(self, _cursor: str) -> bool:
        await asyncio.sleep(WAIT_SECONDS)
        return True
