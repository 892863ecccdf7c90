"""What devices may boot: learned or uploaded, staged, active, retired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from contract.events.attestation import (
    ReferenceValueCreated,
    ReferenceValueDeleted,
    ReferenceValueRetired,
    ReferenceValueSnapshot,
    ReferenceValueUpdated,
)
from servicekit.call import Call
from servicekit.data.postgres import Database
from servicekit.errors import failed_precondition, not_found
from servicekit.etags import check_etag
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from services.attestation.references import store
from services.attestation.references.domain import (
    REGISTERS,
    Kind,
    ReferenceValue,
    Source,
    State,
    grade,
)

MOST_REFERENCES: Final = 1_000
"""Of an organisation."""
MOST_DIGESTS: Final = 10_000
"""In all values of an organisation: they are read with all evidence of its devices."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A new value."""

    name: str
    kind: Kind
    model: str
    pcrs: Mapping[int, tuple[str, ...]]
    source: Source


@dataclass(frozen=True, slots=True)
class Preview:
    """What a change of values would make of devices with known TPMs, by their latest evidence."""

    devices: int
    would_be_verified: int
    would_not_be_verified: int


class References:
    """The reference values of organisations."""

    def __init__(
        self, database: Database, outbox: Outbox, tenants: TenantDirectory, clock: Clock
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._clock = clock

    async def list_values(
        self, call: Call, org_id: UUID | None, after: UUID | None, limit: int
    ) -> Page[ReferenceValue, UUID]:
        """The values of the caller's subtree, or of one org in it, the oldest first.

        Raises:
            DomainError: NOT_FOUND for an org that is not in the subtree.
        """
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.list_values(connection, scope, after, limit)

    async def create(self, call: Call, org_id: UUID, wanted: Wanted) -> ReferenceValue:
        """Adds a staged value.

        Raises:
            DomainError: NOT_FOUND for an org that is not in the subtree; FAILED_PRECONDITION when
                there are too many.
        """
        scope = await self._tenants.query_scope(call.caller, org_id)
        now = self._clock()
        value = ReferenceValue(
            id=new_id(),
            tenant_id=org_id,
            name=wanted.name,
            kind=wanted.kind,
            model=wanted.model,
            pcrs=wanted.pcrs,
            state=State.STAGED,
            source=wanted.source,
            created_at=now,
            updated_at=now,
        )
        async with self._database.transaction(scope) as connection:
            found, digests = await store.count(connection, org_id)
            digests += sum(map(len, value.pcrs.values()))
            if found >= MOST_REFERENCES or digests > MOST_DIGESTS:
                raise failed_precondition(
                    "TOO_MANY_REFERENCE_VALUES",
                    f"an organisation has at most {MOST_REFERENCES}, with {MOST_DIGESTS} digests;"
                    " delete retired ones",
                )
            await store.insert(connection, value)
            event = ReferenceValueCreated(id=value.id, after=snapshot(value))
            await self._outbox.append(connection, CloudEvent(event, org_id))
        return value

    async def learn(
        self, call: Call, device_id: UUID, name: str, kind: Kind, registers: Sequence[int]
    ) -> ReferenceValue:
        """Adds a staged value of what a device of the caller's subtree booted last.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION when its verdict does not need its TPM.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            org_id = await store.tenant_of(connection, scope, device_id)
            if org_id is None:
                raise not_found("device", device_id)
            known = await store.known_device(connection, scope, device_id)
        if known is None:
            raise failed_precondition(
                "TPM_NOT_KNOWN",
                "what a device booted is learned from a verdict of KNOWN_TPM or VERIFIED only",
            )
        pcrs = {index: (known.pcrs[index],) for index in registers or REGISTERS[kind]}
        wanted = Wanted(name, kind, known.model, pcrs, Source.LEARNED)
        return await self.create(call, org_id, wanted)

    async def update(
        self, call: Call, value_id: UUID, name: str | None, state: State | None
    ) -> ReferenceValue:
        """Renames a value, or makes it staged, active or retired.

        Raises:
            DomainError: NOT_FOUND; ABORTED when its etag is another.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await store.find_value(connection, scope, value_id, for_update=True)
            if before is None:
                raise not_found("reference value", value_id)
            check_etag(before.etag)
            after = replace(
                before,
                name=before.name if name is None else name,
                state=state or before.state,
            )
            if after == before:
                return before
            after = replace(after, updated_at=self._clock())
            await store.update(connection, after)
            retired = after.state is State.RETIRED and before.state is not State.RETIRED
            kind = ReferenceValueRetired if retired else ReferenceValueUpdated
            event = kind(id=value_id, before=snapshot(before), after=snapshot(after))
            await self._outbox.append(connection, CloudEvent(event, after.tenant_id))
        return after

    async def delete(self, call: Call, value_id: UUID) -> None:
        """Removes a value.

        Raises:
            DomainError: as `update`.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await store.find_value(connection, scope, value_id, for_update=True)
            if before is None:
                raise not_found("reference value", value_id)
            check_etag(before.etag)
            await store.delete(connection, before)
            event = ReferenceValueDeleted(id=value_id, before=snapshot(before))
            await self._outbox.append(connection, CloudEvent(event, before.tenant_id))

    async def preview(
        self, call: Call, org_id: UUID, activate: frozenset[UUID], retire: frozenset[UUID]
    ) -> Preview:
        """What devices would be, if some values were active and others retired.

        Raises:
            DomainError: NOT_FOUND for an org that is not in the subtree.
        """
        scope = await self._tenants.query_scope(call.caller, org_id)
        devices = gained = lost = 0
        async with self._database.transaction(scope) as connection:
            page = await store.list_values(connection, scope, None, MOST_REFERENCES)
            values = [_as_if(value, activate, retire) for value in page.items]
            async for known in store.known_devices(connection, org_id):
                devices += 1
                found = grade(known.pcrs, known.model, known.secure_boot, values)
                is_verified, would_be = known.verdict == "VERIFIED", found.verdict == "VERIFIED"
                gained += would_be and not is_verified
                lost += is_verified and not would_be
        return Preview(devices, gained, lost)


def _as_if(
    value: ReferenceValue, activate: frozenset[UUID], retire: frozenset[UUID]
) -> ReferenceValue:
    if value.id in retire:
        return replace(value, state=State.RETIRED)
    return replace(value, state=State.ACTIVE) if value.id in activate else value


def snapshot(value: ReferenceValue) -> ReferenceValueSnapshot:
    """A value as events have it."""
    return ReferenceValueSnapshot(
        name=value.name,
        kind=value.kind.value,
        model=value.model,
        state=value.state.value,
        source=value.source.value,
        pcrs=tuple(sorted(value.pcrs)),
    )
