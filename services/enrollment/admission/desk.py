"""The applications of one transaction, decided one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.ids import new_id
from servicekit.serials import serial_key
from services.enrollment.admission.domain import (
    Application,
    Decision,
    Outcome,
    decide,
    decide_unnamed,
    refused,
)
from services.enrollment.registry import locks
from services.enrollment.registry.domain import Device
from services.enrollment.registry.peers import key_retired
from services.enrollment.tokens.domain import EnrollmentToken

ADMITTING: Final = frozenset({Outcome.ADMITTED, Outcome.HELD, Outcome.READMITTED})
"""What registers a device, or changes what is known of it."""


class Desk:
    """The state of a batch: each decision sees what those before it changed."""

    def __init__(
        self,
        tokens: dict[UUID, EnrollmentToken],
        listed: set[tuple[UUID, str]],
        devices: dict[tuple[UUID, str], Device],
        unnamed: Sequence[Device],
        at: datetime,
        expected: Mapping[tuple[UUID, str], Device],
        retired_keys: Collection[str] = (),
    ) -> None:
        self._tokens = tokens
        self._listed = listed
        self._names = {asked: locks.name_of(device) for asked, device in devices.items()}
        self._devices = {locks.name_of(device): device for device in devices.values()}
        self._unnamed: dict[tuple[UUID, bytes], dict[UUID, Device]] = {}
        for device in unnamed:
            self._keep_unnamed(device)
        self._known = {device.id for device in (*devices.values(), *unnamed)}
        self._expected = expected
        self._retired_keys = retired_keys
        self._touched: dict[UUID, Device] = {}
        self._given: dict[UUID, tuple[UUID, ...]] = {}
        self.at = at
        self.uses: Counter[UUID] = Counter()

    def decide(self, application: Application, token_id: UUID) -> Decision:
        """Decides one application."""
        token = self._tokens[token_id]
        if token.revoked_at is None and token.policy_key_id in self._retired_keys:
            return refused(key_retired())
        if application.is_named:
            decision = self._decide_named(application, token)
        else:
            decision = self._decide_unnamed(application, token)
        if decision.outcome in ADMITTING:
            self.uses[token.id] += decision.counts
            self._tokens[token.id] = replace(token, uses=token.uses + decision.counts)
        if decision.device is not None and decision.device is not decision.before:
            self._touched[decision.device.id] = decision.device
            if decision.outcome in ADMITTING and token.group_ids:
                self._given[decision.device.id] = token.group_ids
        return decision

    def _decide_named(self, application: Application, token: EnrollmentToken) -> Decision:
        key = serial_key(application.serial)
        name = self._names.get((token.tenant_id, application.serial), (token.tenant_id, key))
        decision = decide(
            application,
            token,
            self._devices.get(name),
            listed=not token.serial_count or (token.id, key) in self._listed,
            new_id=new_id(),
            at=self.at,
            waiting=self._expected.get((token.tenant_id, key)),
        )
        if decision.device is not None:
            self._devices[name] = decision.device
        return decision

    def _decide_unnamed(self, application: Application, token: EnrollmentToken) -> Decision:
        candidates = self._unnamed.get((token.tenant_id, application.likeness()), {})
        decision = decide_unnamed(
            application, token, [*candidates.values()], new_id=new_id(), at=self.at
        )
        if decision.device is not None:
            self._keep_unnamed(decision.device)
        return decision

    def _keep_unnamed(self, device: Device) -> None:
        if device.fingerprint is not None:
            kind = self._unnamed.setdefault((device.tenant_id, device.fingerprint), {})
            kind[device.id] = device

    @property
    def new(self) -> list[Device]:
        """The devices that the batch registered."""
        return [d for d in self._touched.values() if d.id not in self._known]

    @property
    def arrived(self) -> list[UUID]:
        """The devices that were expected, and are registered now."""
        return [d.id for d in self._expected.values() if d.id in self._touched]

    @property
    def given(self) -> list[tuple[Device, tuple[UUID, ...]]]:
        """Devices, and the groups that their enrollment tokens put them into."""
        return [(self._touched[id_], groups) for id_, groups in self._given.items()]

    @property
    def changed(self) -> list[Device]:
        """The known devices that the batch changed."""
        return [d for d in self._touched.values() if d.id in self._known]
