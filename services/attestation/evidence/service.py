"""Takes evidence of boots and judges it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from contract.events.attestation import FormerVerdict, NewVerdict, VerdictChanged
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from services.attestation.devices import store as device_store
from services.attestation.devices.store import LockedDevice, Told
from services.attestation.evidence import store
from services.attestation.evidence.domain import (
    Evidence,
    Facts,
    Judgement,
    failed,
    judge,
    unmeasured,
    went_back,
)
from services.attestation.evidence.examiners import Examiners
from services.attestation.evidence.metrics import EVIDENCE, FAILURES
from services.attestation.grades import VERDICTS, Reason, Verdict
from services.attestation.references import store as references
from services.attestation.references.domain import grade

log = logs.get(__name__)

RETRY_WINDOW: Final = timedelta(minutes=10)
"""So long the same evidence is taken for a repetition of the same call; later it hides what the
device has booted since."""
MOST_TOLD: Final = 24
"""Events that a device can cause on a day: the released agent attests once an hour at most."""
SEEN_FOR: Final = timedelta(days=400)
"""So long a nonce and a key are known."""
_FORGET_SECONDS: Final = 3600.0
_FORGET_ROWS: Final = 1000
_PAUSE_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class Answer:
    """What a device is told of its evidence."""

    verdict: Verdict
    reasons: tuple[str, ...]
    attested_at: datetime


class Attestations:
    """The verdicts over evidence."""

    def __init__(
        self, database: Database, outbox: Outbox, examiners: Examiners, clock: Clock
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._examiners = examiners
        self.room_for_body = examiners.room_for_body
        self._clock = clock

    async def attest(self, call: Call, read: Callable[[], Evidence]) -> Answer:
        """Judges the evidence of the calling device and stores the verdict.

        Evidence that the device sends again within ten minutes has the verdict that it had.

        Args:
            read: decodes the evidence; it runs in a thread.

        Raises:
            DomainError: RESOURCE_EXHAUSTED when too many attest at once.
        """
        caller = call.caller
        with self._examiners.place(caller.tenant_id):
            evidence, judgement = await self._examiners.run(
                caller.tenant_id, lambda: _examine(read, caller.id)
            )
            async with self._database.system_transaction(
                "evidence is compared with that of all devices"
            ) as connection:
                answer = await self._decide(
                    connection, UUID(caller.id), UUID(caller.tenant_id), evidence, judgement
                )
        EVIDENCE.note(answer.verdict)
        if answer.verdict is Verdict.FAILED:
            FAILURES.note(answer.reasons[0])
        return answer

    async def _decide(
        self,
        connection: Connection,
        device_id: UUID,
        tenant_id: UUID,
        evidence: Evidence,
        judgement: Judgement,
    ) -> Answer:
        device = await device_store.lock_device(connection, device_id, tenant_id)
        # From here on the device's calls come one after the other.
        now = self._clock()
        if device is None:
            # It was deleted while it called.
            return Answer(judgement.verdict, judgement.reasons, now)
        before = await store.find_verdict(connection, device_id, evidence.sha256)
        if before is not None and now - before.attested_at < RETRY_WINDOW:
            return Answer(before.verdict, before.reasons, before.attested_at)
        if judgement.facts is not None and device.binding_id is not None:
            judgement = await self._known(
                connection, device_id, tenant_id, device, judgement.facts, now
            )
        elif judgement.facts is not None:
            used = await store.note_seen(
                connection, device_id, tenant_id, judgement.facts, evidence.sha256, now
            )
            if used is not None:
                judgement = failed(used)
        await store.write_verdict(
            connection,
            new_id(),
            device_id,
            tenant_id,
            judgement,
            evidence.sha256,
            now,
            device.binding_id if judgement.verdict.needs_tpm else None,
        )
        await self._tell(connection, device_id, tenant_id, device.told, judgement, now)
        return Answer(judgement.verdict, judgement.reasons, now)

    async def _known(
        self,
        connection: Connection,
        device_id: UUID,
        tenant_id: UUID,
        device: LockedDevice,
        facts: Facts,
        now: datetime,
    ) -> Judgement:
        """What good evidence of a device proves that is bound to a TPM."""
        if facts.ak_name != device.ak_name:
            return failed(Reason.AK_NOT_PINNED)
        # Nobody else's evidence can be taken for this device's.
        if not facts.for_device:
            return failed(Reason.NONCE_MISMATCH)
        good_until = await store.take_challenge(connection, device_id, facts.nonce_sha256)
        if isinstance(good_until, Reason):
            return failed(good_until)
        if good_until <= now:
            return failed(Reason.CHALLENGE_EXPIRED)
        values = await references.values_of(connection, tenant_id)
        # The values are of this bank.
        comparable = facts.pcrs if facts.bank == "sha256" else {}
        found = grade(comparable, device.model, facts.secure_boot, values, facts.image)
        reasons = (*found.reasons, *unmeasured(facts.pcrs))
        verdict = found.verdict
        if device.reset_count is not None and went_back(device.reset_count, facts.reset_count):
            # The TPM was cleared, or is one of a machine that was taken back to an earlier state.
            verdict = min(verdict, Verdict.KNOWN_TPM, key=VERDICTS.index)
            reasons = (Reason.RESET_COUNT_WENT_BACK, *reasons)
        elif device.reset_count != facts.reset_count:
            await store.write_reset_count(connection, device_id, facts.reset_count)
        return Judgement(verdict, reasons, facts, found.matched)

    async def _tell(
        self,
        connection: Connection,
        device_id: UUID,
        tenant_id: UUID,
        told: Told,
        judgement: Judgement,
        now: datetime,
    ) -> None:
        times = told.times if told.on == now.date() else 0
        if judgement.verdict is told.verdict or times >= MOST_TOLD:
            return
        await store.write_told(
            connection, device_id, Told(judgement.verdict, now.date(), times + 1)
        )
        await self._outbox.append(
            connection,
            CloudEvent(
                VerdictChanged(
                    id=device_id,
                    before=FormerVerdict(verdict=told.verdict.value),
                    after=NewVerdict(
                        verdict=judgement.verdict.value,
                        reasons=tuple(str(reason) for reason in judgement.reasons),
                        attested_at=now,
                    ),
                ),
                tenant_id,
            ),
        )

    async def forget(self) -> None:
        """Forgets, once an hour, what was seen long ago, for as long as the service lives."""
        outage = Repeated(log, "old nonces and keys are not forgotten")
        while True:
            try:
                await self.forget_once()
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(_FORGET_SECONDS)

    async def forget_once(self) -> None:
        """Forgets what was seen too long ago, in small steps."""
        rows = 1
        while rows:
            async with self._database.system_transaction(
                "old nonces of all tenants go"
            ) as connection:
                rows = await store.forget_seen(connection, self._clock() - SEEN_FOR, _FORGET_ROWS)
            await asyncio.sleep(_PAUSE_SECONDS)


def _examine(read: Callable[[], Evidence], device_id: str) -> tuple[Evidence, Judgement]:
    evidence = read()
    return evidence, judge(evidence, device_id)
