"""EnrollDevice: devices that ask to be let in.

A school boots two thousand laptops at once, all with the same enrollment token. Its uses are
counted under one row's lock, so applications in flight share one transaction: one lock, one
count, one statement for all new devices, one commit. What is answered is committed; a retry
after a lost answer finds it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, TypeAlias
from uuid import UUID

import prometheus_client

from contract.events.enrollment import (
    DeviceEnrolled,
    DevicePending,
    DeviceReenrolled,
    EnrollmentRefused,
    ReenrollmentRefused,
)
from servicekit.call import SYSTEM_CALL, Call
from servicekit.data.batcher import Batcher
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import DomainError, permission_denied, unavailable
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import brief
from servicekit.peers.tenants import TenantDirectory
from servicekit.serials import serial_key
from services.enrollment.admission.desk import ADMITTING, Desk
from services.enrollment.admission.domain import (
    Application,
    Decision,
    Outcome,
    refused,
    taken,
)
from services.enrollment.admission.pinned import PinnedKeys
from services.enrollment.groups import members as group_members
from services.enrollment.groups import membership
from services.enrollment.groups import store as group_store
from services.enrollment.groups.domain import members_changed
from services.enrollment.registry import expected, locks
from services.enrollment.registry import store as device_store
from services.enrollment.registry.domain import Device
from services.enrollment.registry.peers import Issued, Peers
from services.enrollment.registry.refusals import Refusal, note_refusals
from services.enrollment.tokens import store as token_store
from services.enrollment.tokens.domain import EnrollmentToken
from services.enrollment.tokens.keys import wrong_key

log = logs.get(__name__)

_MAX_BATCH: Final = 200
_MAX_WAITING: Final = 2000
_ATTEMPTS: Final = 3

ENROLLMENTS: Final = prometheus_client.Counter(
    "evergreen_enrollments_total", "Devices that asked to be let in, by outcome.", ["outcome"]
)
_Event: TypeAlias = DeviceEnrolled | DevicePending | DeviceReenrolled | ReenrollmentRefused
_EVENTS: Final[Mapping[Outcome, type[_Event]]] = {
    Outcome.ADMITTED: DeviceEnrolled,
    Outcome.HELD: DevicePending,
    Outcome.READMITTED: DeviceReenrolled,
    Outcome.TAKEN: ReenrollmentRefused,
}

_WAITS: Final = "AWAITING_APPROVAL"
_TAKEN: Final = "DEVICE_ALREADY_ENROLLED"

Asked = tuple[Call, Application]


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
        self._pinned = PinnedKeys(peers, clock)
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
        try:
            issued = await self._peers.issue(decision.device, ask_has_called=repeated)
        except BaseException:
            if decision.device.is_unnamed:
                await self._give_back(decision.device)
            raise
        if repeated and issued.has_called:
            # The device has its token and used it; this is somebody else, or it forgot itself.
            refusal = await self._record_refusal(call, application, decision.device)
            raise _refusal(refusal, application)
        ENROLLMENTS.labels(decision.outcome.value).inc()
        return Admitted(decision.device, issued)

    async def decide(self, batch: Sequence[Asked]) -> list[Decision]:
        """Decides applications in one transaction, in their order."""
        hashes = {application.key.secret_hash for _, application in batch}
        async with self._database.system_transaction("a batch spans tenants") as connection:
            keys = await token_store.policy_keys(connection, hashes)
        retired = await self._pinned.retired(keys)
        for _ in range(_ATTEMPTS):
            try:
                async with self._database.system_transaction("a batch spans tenants") as connection:
                    return await self._decide(connection, batch, retired)
            except device_store.SerialTakenError:
                # Another process let a device in meanwhile; the next look finds it.
                continue
        raise unavailable("too many devices enroll at once; try again")

    async def _decide(
        self, connection: Connection, batch: Sequence[Asked], retired: Collection[str]
    ) -> list[Decision]:
        tokens = await token_store.lock_tokens(connection, {a.key.secret_hash for _, a in batch})
        keys = [self._token(application, tokens) for _, application in batch]
        genuine = [
            (token, application)
            for (_, application), token in zip(batch, keys, strict=True)
            if isinstance(token, EnrollmentToken)
        ]
        named = [(token, a.serial) for token, a in genuine if a.is_named]
        await membership.hold(connection, {token.tenant_id for token, _ in genuine})
        at = self._clock()
        devices = await locks.lock_devices(
            connection, {(token.tenant_id, serial) for token, serial in named}
        )
        desk = Desk(
            tokens={token.id: token for token in tokens.values()},
            listed=await token_store.listed(
                connection,
                {(token.id, serial_key(serial)) for token, serial in named if token.serial_count},
            ),
            devices=devices,
            expected=await expected.lock(
                connection,
                {
                    (token.tenant_id, serial_key(serial))
                    for token, serial in named
                    if (token.tenant_id, serial) not in devices
                },
            ),
            unnamed=await locks.lock_unnamed(
                connection,
                {(token.tenant_id, a.likeness()) for token, a in genuine if not a.is_named},
                at,
            ),
            at=at,
            retired_keys=retired,
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
        await expected.remove(connection, desk.arrived)
        await self._give_groups(connection, desk)
        decisions = await self._settled(connection, decisions)
        await self._tell(
            connection,
            [(call, decision) for (call, _), decision in zip(batch, decisions, strict=True)],
        )
        await self._note_refusals(
            connection,
            [
                (call, application, token, error)
                for (call, application), token, decision in zip(batch, keys, decisions, strict=True)
                if isinstance(token, EnrollmentToken)
                and (error := decision.error) is not None
                and error.reason != _WAITS
            ],
            at,
        )
        return decisions

    async def _give_groups(self, connection: Connection, desk: Desk) -> None:
        """Lists devices in the groups that their enrollment tokens give."""
        by_org: dict[UUID, list[tuple[UUID, str, str]]] = {}
        for device, group_ids in desk.given:
            key = locks.name_of(device)[1]
            by_org.setdefault(device.tenant_id, []).extend(
                (group_id, device.serial, key) for group_id in group_ids
            )
        for tenant_id, given in by_org.items():
            # One may have been deleted since the token was read.
            groups = await group_store.groups_by_id(connection, tenant_id, {g for g, _, _ in given})
            members = [member for member in given if member[0] in groups]
            by_token = "an enrollment token"
            added = set(
                await group_members.add_members(connection, tenant_id, members, by_token, desk.at)
            )
            fresh: dict[UUID, list[str]] = {}
            for group_id, serial, key in members:
                if (group_id, key) in added:
                    fresh.setdefault(group_id, []).append(serial)
            for group_id, serials in fresh.items():
                event = members_changed(groups[group_id], serials, [])
                await self._outbox.append(
                    connection, CloudEvent(event, tenant_id, call=SYSTEM_CALL)
                )

    async def _settled(
        self, connection: Connection, decisions: Sequence[Decision]
    ) -> list[Decision]:
        """Computes the groups of devices that came or changed."""
        devices = {
            (device.tenant_id, device.id)
            for decision in decisions
            # Other outcomes change nothing that groups go by.
            if (device := decision.device) is not None and decision.outcome in ADMITTING
        }
        settled = await membership.settle(connection, membership.by_tenant(devices))
        if settled.moved:
            await self._outbox.append(connection, *membership.events_of(settled.moved, SYSTEM_CALL))
        return [
            replace(decision, device=device_store.with_groups(decision.device, settled.memberships))
            if decision.device is not None
            else decision
            for decision in decisions
        ]

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
        if org.going or not org.has_code(application.key.tenant_code):
            return wrong_key()
        if org.status == "archived":
            return permission_denied("ORGANISATION_ARCHIVED", "the organisation is archived")
        return token

    async def _record_refusal(
        self, call: Call, application: Application, device: Device
    ) -> Decision:
        scope = Scope.of(device.tenant_id)
        async with self._database.transaction(scope) as connection:
            at = self._clock()
            known = await device_store.device(connection, scope, device.id, for_update=True)
            refusal = taken(known or device, at)
            if refusal.device is not None:
                await device_store.update_devices(connection, [refusal.device])
            await self._tell(connection, [(call, refusal)])
            if device.enrollment_token_id is not None and refusal.error is not None:
                asked = _refused(
                    call,
                    application,
                    device.tenant_id,
                    device.enrollment_token_id,
                    refusal.error.reason,
                    at,
                )
                await note_refusals(connection, [asked])
        return refusal

    async def _give_back(self, device: Device) -> None:
        """Nobody was told of the identity that was just handed out."""
        try:
            async with self._database.transaction(Scope.of(device.tenant_id)) as connection:
                await locks.give_back(connection, device)
        except Exception as error:
            log.warning(
                "an approved device needs another approval",
                device=str(device.id),
                error=brief(error),
            )

    async def _note_refusals(
        self,
        connection: Connection,
        refusals: Sequence[tuple[Call, Application, EnrollmentToken, DomainError]],
        at: datetime,
    ) -> None:
        noted = {
            (refusal := _refused(call, asked, token.tenant_id, token.id, error.reason, at)).id: (
                call,
                refusal,
            )
            for call, asked, token, error in refusals
        }
        if not noted:
            return
        told = await note_refusals(connection, [refusal for _, refusal in noted.values()])
        calls = {(r.token_id, r.serial, r.reason): call for call, r in noted.values()}
        events = [
            CloudEvent(
                EnrollmentRefused(id=refusal.token_id, after=refusal.snapshot()),
                refusal.tenant_id,
                actor="",
                actor_id="",
                call=calls[refusal.token_id, refusal.serial, refusal.reason],
            )
            for refusal in told
            # Of these there is an event of the device.
            if refusal.reason != _TAKEN
        ]
        if events:
            await self._outbox.append(connection, *events)

    async def _tell(self, connection: Connection, decided: Sequence[tuple[Call, Decision]]) -> None:
        events = [
            event for call, decision in decided if (event := _event(call, decision)) is not None
        ]
        if events:
            await self._outbox.append(connection, *events)


def _refused(
    call: Call, asked: Application, tenant_id: UUID, token_id: UUID, reason: str, at: datetime
) -> Refusal:
    return Refusal(
        id=new_id(),
        tenant_id=tenant_id,
        token_id=token_id,
        reason=reason,
        serial=asked.serial,
        model=asked.hardware.model,
        source_ip=call.source_ip,
        first_at=at,
        last_at=at,
    )


def _event(call: Call, decision: Decision) -> CloudEvent | None:
    device, before = decision.device, decision.before
    event = _EVENTS.get(decision.outcome)
    if event is None or device is None:
        return None
    if decision.outcome is Outcome.TAKEN:
        if before is not None and device.refusal_told_at == before.refusal_told_at:
            return None
        # The caller is not the device, as far as anyone knows.
        actor = actor_id = ""
    else:
        actor, actor_id = f"device:{device.id}", str(device.id)
    return CloudEvent(
        event(
            id=device.id,
            before=before.snapshot() if before else None,
            after=device.snapshot(),
        ),
        device.tenant_id,
        actor=actor,
        actor_id=actor_id,
        call=call,
    )


def _refusal(decision: Decision, application: Application) -> DomainError:
    ENROLLMENTS.labels(decision.outcome.value).inc()
    error = decision.error or wrong_key()
    if error.reason != "ENROLLMENT_REFUSED":
        log.info(
            "enrollment refused",
            reason=error.reason,
            org=application.key.tenant_code,
            serial=application.serial,
        )
    return error
