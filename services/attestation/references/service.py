"""What devices may boot: learned or uploaded, staged, active, retired."""

from __future__ import annotations

import asyncio
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
from services.attestation.grades import Verdict
from services.attestation.references import store
from services.attestation.references.domain import (
    IMAGE,
    REGISTERS,
    Kind,
    ReferenceValue,
    Source,
    State,
    grade,
)
from services.attestation.references.store import Boots

MOST_REFERENCES: Final = 1_000
"""Of an organisation."""
MOST_DIGESTS: Final = 10_000
"""In all values of an organisation: they are read with all evidence of its devices."""


_GRADED_AT_ONCE: Final = 1_000
"""Boots that one look at a thread grades: so long a preview keeps the others' calls waiting."""


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
        booted = known.pcrs if known.image is None else {**known.pcrs, IMAGE: known.image}
        pcrs = {index: (booted[index],) for index in registers or REGISTERS[kind]}
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
        async with self._database.transaction(scope) as connection:
            page = await store.list_values(connection, scope, None, MOST_REFERENCES)
            boots = await store.known_boots(connection, org_id)
        values = [_as_if(value, activate, retire) for value in page.items]
        values = [value for value in values if value.state is State.ACTIVE]
        found = Preview(0, 0, 0)
        # A fleet of equal machines has few boots, but each may be another one.
        for at in range(0, len(boots), _GRADED_AT_ONCE):
            part = boots[at : at + _GRADED_AT_ONCE]
            found = await asyncio.to_thread(_graded, found, part, values)
        return found


def _graded(so_far: Preview, boots: Sequence[Boots], values: Sequence[ReferenceValue]) -> Preview:
    devices, gained, lost = so_far.devices, so_far.would_be_verified, so_far.would_not_be_verified
    for boot in boots:
        grading = grade(boot.pcrs, boot.model, boot.secure_boot, values, boot.image)
        would_be = grading.verdict is Verdict.VERIFIED
        devices += boot.devices
        gained += boot.devices * (would_be and not boot.is_verified)
        lost += boot.devices * (boot.is_verified and not would_be)
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
