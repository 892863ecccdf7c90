"""Counts an organisation's devices: all in use, those that do not call, and those behind."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from evergreen.v1 import enrollment_pb2, policy_pb2
from servicekit.rpc.values import time_of
from services.audit.alerts.domain import (
    DEVICES_NOT_SEEN,
    POLICY_BEHIND,
    Finding,
    Rule,
    is_many,
)
from services.audit.reports.sources import Sources

_IN_USE: Final = "active"


@dataclass(frozen=True, slots=True)
class Counts:
    """Devices of an organisation."""

    days: int
    """So long a device has not called that counts as unseen."""
    hours: int
    """So long it may take to apply what is in force."""
    in_use: int = 0
    unseen: int = 0
    behind: int = 0

    def not_seen(self, rule: Rule) -> list[Finding]:
        """Whether too many do not call."""
        facts = {
            "number": self.unseen,
            "of": self.in_use,
            "days": self.days,
        }
        return self._many(DEVICES_NOT_SEEN, rule, self.unseen, facts)

    def far_behind(self, rule: Rule) -> list[Finding]:
        """Whether too many do not have what is in force."""
        facts = {
            "number": self.behind,
            "of": self.in_use,
            "hours": self.hours,
        }
        return self._many(POLICY_BEHIND, rule, self.behind, facts)

    def _many(self, kind: str, rule: Rule, number: int, facts: dict[str, int]) -> list[Finding]:
        percent, count = rule.of(kind, "percent"), rule.of(kind, "count")
        return [Finding("", facts)] if is_many(number, self.in_use, percent, count) else []


async def count(sources: Sources, org_id: UUID, days: int, hours: int, at: datetime) -> Counts:
    """Asks the owners of the data, page by page.

    Args:
        sources: the owners.
        org_id: the organisation.
        days: so long a device has not called that counts as unseen.
        hours: so long it may take to apply what is in force.
        at: the time.

    Raises:
        AwayError: one of them does not answer.
    """
    in_use = unseen = behind = 0
    async for page in sources.devices(org_id):
        devices = [one for one in page if one.status == _IN_USE]
        ids = [one.device_id for one in devices]
        if not ids:
            continue
        facts = await sources.facts(org_id, ids)
        required, versions = await sources.versions_of(org_id, ids)
        for device in devices:
            in_use += 1
            seen = facts.get(device.device_id)
            last = seen.last_seen_at if seen and seen.HasField("last_seen_at") else _begin(device)
            unseen += at - time_of(last) >= timedelta(days=days)
            has = versions.get(device.device_id)
            behind += has is not None and _is_behind(
                device, required, has, timedelta(hours=hours), at
            )
    return Counts(days, hours, in_use, unseen, behind)


def _is_behind(
    device: enrollment_pb2.DeviceRecord,
    required: policy_pb2.RequiredVersion | None,
    has: policy_pb2.DeviceVersion,
    hours: timedelta,
    at: datetime,
) -> bool:
    """Whether a device has not got what is in force for too long; reports count as this does."""
    wanted = has.required if has.targeted else required.versions if required else ()
    if not wanted or has.version in wanted:
        return False
    begins = [has.first_above] if has.HasField("first_above") else []
    if not has.HasField("reported_at"):
        begins.append(_begin(device))
    return bool(begins) and at - max(map(time_of, begins)) >= hours


def _begin(device: enrollment_pb2.DeviceRecord) -> Timestamp:
    return device.enrolled_at if device.HasField("enrolled_at") else device.created_at
