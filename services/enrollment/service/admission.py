"""EnrollDevice: devices that ask to be let in.

A school boots two thousand laptops at once, all with the same enrollment token. Its uses are
counted under one row's lock, so applications in flight share one transaction: one lock, one
count, one statement for all new devices, one commit. What is answered is committed; a retry
after a lost answer finds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

import prometheus_client

from servicekit import logs
from servicekit.batcher import Batcher
from servicekit.call import Call
from servicekit.errors import DomainError, unavailable
from servicekit.events import Event
from servicekit.ids import Clock, new_id
from servicekit.outbox import Outbox
from servicekit.postgres import Connection, Database
from servicekit.tenants import TenantDirectory
from services.enrollment.domain.decision import (
    Application,
    Decision,
    Outcome,
    decide,
    refused,
    taken,
)
from services.enrollment.domain.keys import wrong_key
from services.enrollment.domain.types import Device, EnrollmentToken
from services.enrollment.service.peers import Issued, Peers
from services.enrollment.store import devices as device_store
from services.enrollment.store import tokens as token_store

log = logs.get(__name__)

_MAX_BATCH: Final = 200
_MAX_WAITING: Final = 2000
_ATTEMPTS: Final = 3

ENROLLMENTS: Final = prometheus_client.Counter(
    "evergreen_enrollments_total", "Devices that asked to be let in, by outcome.", ["outcome"]
)
_EVENTS: Final = {
    Outcome.ADMITTED: "enrollment.device_enrolled",
    Outcome.HELD: "enrollment.device_pending",
    Outcome.READMITTED: "enrollment.device_reenrolled",
    Outcome.TAKEN: "enrollment.reenrollment_refused",
}
_ADMITTING: Final = frozenset({Outcome.ADMITTED, Outcome.HELD, Outcome.READMITTED})

Asked = tuple[Call, Application]
_Key = tuple[UUID, str]


@dataclass(frozen=True, slots=True)
class Admitted:
    """A device that is in, and what it starts with."""

    device: Device
    issued: Issued


class Admission:
    """Lets devices in."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        peers: Peers,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._peers = peers
        self._clock = clock
        self.batcher: Batcher[Asked, Decision] = Batcher(
            "enrollments",
            self.decide,
            max_batch=_MAX_BATCH,
            max_waiting=_MAX_WAITING,
            # As claimed: the secret is looked at later.
            tenant=lambda asked: asked[1].key.tenant_code,
        )

    async def enroll(self, call: Call, application: Application) -> Admitted:
        """Answers a device's identity, its token and the policy in force.

        Raises:
            DomainError: PERMISSION_DENIED when it is not let in, ALREADY_EXISTS when its serial
                number belongs to a device that is in, UNAVAILABLE when identity or policy is
                away (the device is registered then; its retry goes on from there).
        """
        decision = await self.batcher.submit((call, application))
        if decision.error is not None or decision.device is None:
            raise _refusal(decision, application)
        repeated = decision.outcome is Outcome.REPEATED
        issued = await self._peers.issue(decision.device, ask_has_called=repeated)
        if repeated and issued.has_called:
            # The device has its token and used it; this is somebody else, or it forgot itself.
            refusal = await self._record_refusal(call, decision.device)
            raise _refusal(refusal, application)
        ENROLLMENTS.labels(decision.outcome.value).inc()
        return Admitted(decision.device, issued)

    async def decide(self, batch: Sequence[Asked]) -> list[Decision]:
        """Decides applications in one transaction, in their order."""
        for _ in range(_ATTEMPTS):
            try:
                async with self._database.transaction() as connection:
                    return await self._decide(connection, batch)
            except device_store.SerialTakenError:
                # Another process let a device in meanwhile; the next look finds it.
                continue
        raise unavailable("too many devices enroll at once; try again")

    async def _decide(self, connection: Connection, batch: Sequence[Asked]) -> list[Decision]:
        tokens = await token_store.lock_tokens(connection, {a.key.secret_hash for _, a in batch})
        keys = [self._token(application, tokens) for _, application in batch]
        genuine = [
            (token, application.serial)
            for (_, application), token in zip(batch, keys, strict=True)
            if isinstance(token, EnrollmentToken)
        ]
        desk = _Desk(
            tokens={token.id: token for token in tokens.values()},
            listed=await token_store.listed(
                connection, {(token.id, serial) for token, serial in genuine if token.serial_count}
            ),
            devices=await device_store.lock_devices(
                connection, {(token.tenant_id, serial) for token, serial in genuine}
            ),
            at=self._clock(),
        )
        decisions = [
            desk.decide(application, token.id)
            if isinstance(token, EnrollmentToken)
            else refused(token)
            for (_, application), token in zip(batch, keys, strict=True)
        ]
        await token_store.count_uses(connection, desk.uses, desk.at)
        await device_store.insert_devices(connection, desk.new)
        await device_store.update_devices(connection, desk.changed)
        await self._tell(
            connection,
            [(call, decision) for (call, _), decision in zip(batch, decisions, strict=True)],
        )
        return decisions

    def _token(
        self, application: Application, tokens: Mapping[bytes, EnrollmentToken]
    ) -> EnrollmentToken | DomainError:
        """The token of a key.

        A wrong secret is refused before the code is looked at, so that neither the answer nor
        the time it takes tells which codes exist.
        """
        token = tokens.get(application.key.secret_hash)
        if token is None:
            return wrong_key()
        org = self._tenants.known(token.tenant_id)
        if org is None:
            return unavailable("the service is starting")
        return token if org.code == application.key.tenant_code else wrong_key()

    async def _record_refusal(self, call: Call, device: Device) -> Decision:
        async with self._database.transaction() as connection:
            key = (device.tenant_id, device.serial)
            known = (await device_store.lock_devices(connection, {key})).get(key, device)
            refusal = taken(known, self._clock())
            if refusal.device is not None:
                await device_store.update_devices(connection, [refusal.device])
            await self._tell(connection, [(call, refusal)])
        return refusal

    async def _tell(self, connection: Connection, decided: Sequence[tuple[Call, Decision]]) -> None:
        events = [
            event for call, decision in decided if (event := _event(call, decision)) is not None
        ]
        if events:
            await self._outbox.append(connection, *events)


class _Desk:
    """The state of a batch: each decision sees what those before it changed."""

    def __init__(
        self,
        tokens: dict[UUID, EnrollmentToken],
        listed: set[tuple[UUID, str]],
        devices: dict[_Key, Device],
        at: datetime,
    ) -> None:
        self._tokens = tokens
        self._listed = listed
        self._devices = devices
        self._known = frozenset(devices)
        self._touched: set[_Key] = set()
        self.at = at
        self.uses: Counter[UUID] = Counter()

    def decide(self, application: Application, token_id: UUID) -> Decision:
        """Decides one application."""
        token = self._tokens[token_id]
        key = (token.tenant_id, application.serial)
        decision = decide(
            application,
            token,
            self._devices.get(key),
            listed=not token.serial_count or (token.id, application.serial) in self._listed,
            new_id=new_id(),
            at=self.at,
        )
        if decision.outcome in _ADMITTING:
            self.uses[token.id] += decision.counts
            self._tokens[token.id] = replace(token, uses=token.uses + decision.counts)
        if decision.device is not None and decision.device is not decision.before:
            self._devices[key] = decision.device
            self._touched.add(key)
        return decision

    @property
    def new(self) -> list[Device]:
        """The devices that the batch registered."""
        return [self._devices[key] for key in self._touched - self._known]

    @property
    def changed(self) -> list[Device]:
        """The known devices that the batch changed."""
        return [self._devices[key] for key in self._touched & self._known]


def _event(call: Call, decision: Decision) -> Event | None:
    device, before = decision.device, decision.before
    name = _EVENTS.get(decision.outcome)
    if name is None or device is None:
        return None
    if decision.outcome is Outcome.TAKEN:
        if before is not None and device.refusal_told_at == before.refusal_told_at:
            return None
        # Whoever asked is not the device, as far as anyone knows.
        actor = actor_id = ""
    else:
        actor, actor_id = f"device:{device.id}", str(device.id)
    return Event(
        name,
        device.tenant_id,
        f"devices/{device.id}",
        before=before.audit() if before else None,
        after=device.audit(),
        actor=actor,
        actor_id=actor_id,
        call=call,
    )


def _refusal(decision: Decision, application: Application) -> DomainError:
    ENROLLMENTS.labels(decision.outcome.value).inc()
    error = decision.error or wrong_key()
    if error.reason != "ENROLLMENT_REFUSED":
        log.info(
            "a device is not let in",
            reason=error.reason,
            org=application.key.tenant_code,
            serial=application.serial,
        )
    return error
