"""Opens batches, and stops rollouts that do harm, with nobody watching.

Every process runs it. A rollout is looked at by one at a time, and what becomes of it is decided
and stored in one transaction that has its row: a process that dies in between has changed nothing,
and another one decides anew.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import grpc

from evergreen.v1 import telemetry_pb2, telemetry_pb2_grpc
from servicekit.call import begin_background_call
from servicekit.data.postgres import Connection, Database
from servicekit.feeds.changes import Changes
from servicekit.ids import Clock
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from servicekit.rpc.values import timestamp
from services.policy.rollouts import domain, store
from services.policy.rollouts.domain import MOST_WATCHED, Counts, Rollout, State, Step
from services.policy.rollouts.metrics import DEVICES, FAILED, ROLLOUTS
from services.policy.rollouts.service import Rollouts, may_serve
from services.policy.stamps.domain import bucket
from services.policy.targets.store import gone

log = logs.get(__name__)

LOOK_SECONDS = 15.0
_TELEMETRY_SECONDS: Final = 5.0
_ASKED_AT_ONCE: Final = 500
_MOST_ASKED: Final = 5_000
"""Devices whose failures are looked for in a look; the others have their turn in the next ones."""
_COUNTED_EVERY: Final = timedelta(minutes=10)
_MOST_EXPECTATIONS: Final = 1_000
_ASKS: Final = (State.RUNNING, State.AWAITING_APPROVAL)
_READ_AT_ONCE: Final = 1_000
_FORGET_SECONDS: Final = 3_600.0


class RolloutWorker:
    """Looks at rollouts. The service runs its task."""

    def __init__(
        self,
        database: Database,
        rollouts: Rollouts,
        telemetry: telemetry_pb2_grpc.TelemetryInternalServiceAsyncStub,
        changes: Changes,
        clock: Clock,
    ) -> None:
        self._database = database
        self._rollouts = rollouts
        self._telemetry = telemetry
        self._changes = changes
        self._clock = clock
        self._forget_at = 0.0
        self._expectations: dict[UUID, tuple[int, datetime, int]] = {}
        """By rollouts: the batch, when it was counted, and the devices in it."""

    async def run(self) -> None:
        """Looks at all rollouts again and again, for as long as the service lives."""
        outage = Repeated(log, "rollouts not looked at")
        while True:
            begin_background_call()
            try:
                await self.look()
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Looks at the rollouts that no other process has just looked at."""
        now = self._clock()
        async with self._database.system_transaction(
            "rollouts of all tenants are looked at"
        ) as connection:
            taken = await store.take(connection, LOOK_SECONDS / 2)
            states = await store.count_states(connection)
            if (moment := asyncio.get_running_loop().time()) >= self._forget_at:
                await store.forget_devices(connection, now)
                await store.forget_profiles(connection, now)
                self._forget_at = moment + _FORGET_SECONDS
        for state in domain.OPEN:
            ROLLOUTS.labels(state.value).set(states.get(state, 0))
        seen: Counter[str] = Counter()
        for rollout in taken:
            try:
                seen.update(await self._look_at(rollout))
            except Exception:
                # The others go on.
                FAILED.inc()
                log.exception("rollout not looked at", rollout=str(rollout.id))
        for name in ("served", "applied", "failed", "trouble", "lost"):
            DEVICES.labels(name).set(seen[name])
        await self._ask_for_trouble(taken)

    async def _look_at(self, rollout: Rollout) -> dict[str, int]:
        """Decides what becomes of a rollout; answers what was seen of its devices."""
        expected = None
        if rollout.state is State.RUNNING and rollout.is_soaked(self._clock()):
            expected = await self._expected_lately(rollout)
        async with self._database.system_transaction(
            "what tenants above say counts, too"
        ) as connection:
            now = self._clock()
            locked = await store.lock(connection, rollout)
            if locked is None or not (locked.live or locked.is_open):
                return {}
            if locked.batch != rollout.batch:
                expected = None
            counts = locked.counts or Counts()
            if locked.is_open or locked.state is State.ROLLED_BACK:
                counts = replace(await store.count(connection, locked, now), expected=expected)
            looked = replace(locked, counts=counts)
            if locked.is_open:
                looked = domain.looked(locked, counts, now)
            step = await self._step(connection, looked, counts, now)
            after = await self._rollouts.put(connection, locked, step or Step(looked))
        if after.serves != locked.serves or step is not None:
            await self._changes.catch_up()
        return {
            "served": counts.served,
            "applied": counts.applied,
            "failed": counts.failed,
            "trouble": counts.trouble,
            "lost": counts.lost,
        }

    async def _step(
        self, connection: Connection, rollout: Rollout, counts: Counts, now: datetime
    ) -> Step | None:
        if (reason := await self._has_no_sense(connection, rollout)) is not None:
            counted = replace(rollout, counts=counts)
            return domain.superseded(counted, now, keep=False, reason=reason)
        if rollout.state is State.ROLLED_BACK:
            all_back = counts.returned >= counts.served + counts.excused
            watched = rollout.ended_at is not None and now - rollout.ended_at > MOST_WATCHED
            if not (all_back or watched):
                return None
            return Step(domain.forgotten(replace(rollout, counts=counts)))
        effect = await self._rollouts.in_effect(connection, rollout.tenant_id)
        return domain.judged(rollout, counts, now, may_open=may_serve(rollout, effect, now))

    async def _has_no_sense(self, connection: Connection, rollout: Rollout) -> str | None:
        """Why a rollout has to end that nobody ended; `None` for not at all."""
        deleted = await gone(connection, rollout.tenant_id, rollout.targets)
        if rollout.targets and not rollout.targets.without(deleted):
            return "TARGETS_DELETED"
        if not rollout.policy_name:
            # The release before deleted the policy, or published: it knows no rollouts.
            return "POLICY_DELETED"
        base = await store.base_of(connection, rollout.tenant_id, rollout.targets)
        return None if rollout.is_based_on(base, deleted) else "PUBLISHED"

    async def _ask_for_trouble(self, rollouts: Sequence[Rollout]) -> None:
        """Notes devices that tell of failures; the next look counts them.

        Nothing waits for it, and one question without an answer ends it: telemetry is away for all.
        """
        wanted = [one for one in rollouts if one.live and one.state in _ASKS]
        for rollout in wanted:
            left = max(_ASKED_AT_ONCE, _MOST_ASKED // len(wanted))
            while left > 0:
                now = self._clock()
                async with self._database.system_transaction(
                    "devices to ask after are of the rollout's tenant, which is not this process's"
                ) as connection:
                    some = await store.to_ask(connection, rollout, now, min(left, _ASKED_AT_ONCE))
                if not some:
                    break
                left -= len(some)
                try:
                    troubled = await self._troubled(rollout, some)
                except grpc.aio.AioRpcError as away:
                    log.info("failures of devices unknown", error=str(away.code()))
                    return
                asked = [device for device, _ in some]
                async with self._database.system_transaction(
                    "what telemetry answered is noted of the devices that were asked"
                ) as connection:
                    await store.note_answers(connection, rollout, asked, troubled, now)

    async def _troubled(
        self, rollout: Rollout, served: Sequence[tuple[UUID, datetime]]
    ) -> list[UUID]:
        answer = await self._telemetry.ListDeviceVitals(
            telemetry_pb2.ListDeviceVitalsRequest(
                tenant_id=str(rollout.tenant_id),
                devices=[
                    telemetry_pb2.DeviceSince(device_id=str(device), since=timestamp(at))
                    for device, at in served
                ],
            ),
            timeout=_TELEMETRY_SECONDS,
        )
        return [
            UUID(one.device_id)
            for one in answer.devices
            if one.failures_since and not one.failures_before
        ]

    async def _expected_lately(self, rollout: Rollout) -> int:
        """As `_expected`, counted anew every ten minutes."""
        now = self._clock()
        batch, at, found = self._expectations.get(rollout.id, (-1, now, 0))
        if batch != rollout.batch or now - at >= _COUNTED_EVERY:
            found = await self._expected(rollout)
            if len(self._expectations) >= _MOST_EXPECTATIONS:
                self._expectations.clear()
            self._expectations[rollout.id] = (rollout.batch, now, found)
        return found

    async def _expected(self, rollout: Rollout) -> int:
        """How many devices are in the open batches of a rollout."""
        found, after = 0, None
        while True:
            async with self._database.system_transaction(
                "a rollout's devices are registered in its tenant"
            ) as connection:
                page = await store.registered(connection, rollout.tenant_id, after, _READ_AT_ONCE)
            for device_id, group_ids in page:
                if _is_for(rollout, device_id, group_ids) and (
                    bucket(rollout.salt, str(device_id)) < rollout.below
                    or not rollout.open_groups.isdisjoint(group_ids)
                ):
                    found += 1
            if len(page) < _READ_AT_ONCE:
                return found
            after = page[-1][0]


def _is_for(rollout: Rollout, device_id: UUID, group_ids: Sequence[UUID]) -> bool:
    targets = rollout.targets.ids
    return not targets or device_id in targets or any(one in targets for one in group_ids)
