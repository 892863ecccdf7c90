"""Reports on devices: unseen ones, their health, their boots, and the register of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import datetime
from typing import ClassVar, Final

from evergreen.v1 import enrollment_pb2
from servicekit.peers.tenants import TenantNode
from services.audit.reports.domain import Column, Kind, Parameters, Summary, Table, days_between
from services.audit.reports.kinds.base import (
    DEVICE,
    Asked,
    Page,
    bars,
    device_cells,
    figures,
    org_bars,
    time_of,
)

_NO_VERDICT: Final = "NONE"
_NOT_KEPT: Final = "NOT_KEPT"
"""Attestation keeps so many boots of a device, and those of the period are not among them."""
_VERDICTS: Final = (_NO_VERDICT, _NOT_KEPT, "FAILED", "SELF_CONSISTENT", "KNOWN_TPM", "VERIFIED")
_HEALTH: Final = ("healthy", "warning", "critical")
_WELL_DISK_PERCENT: Final = 10


class DevicesNotSeen:
    """Devices that have not called for some days."""

    KIND: ClassVar = Kind(
        name="devices-not-seen",
        title="Devices not seen",
        about="Devices in use that have not called for so many days, or never.",
        tables=(
            Table(
                "rows",
                "Devices",
                (
                    *DEVICE,
                    Column("enrolledAt", "Enrolled"),
                    Column("lastSeenAt", "Last seen"),
                    Column("daysSinceSeen", "Days since"),
                    Column("policyVersion", "Policy version"),
                    Column("registryStatus", "Status"),
                ),
            ),
        ),
        made_from=("enrollment", "telemetry"),
        areas=("devices",),
        defaults=Parameters(days=30),
        takes=("days",),
    )

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._devices = self._unseen = self._never = self._longest = 0
        self._orgs: Counter[TenantNode] = Counter()

    async def pages(self) -> AsyncGenerator[Page, None]:
        """The devices, of each organisation by id."""
        asked = self._asked
        most = asked.parameters.days or 0
        for org in asked.orgs:
            async for devices in asked.sources.devices(org.id):
                facts = await asked.sources.facts(org.id, [one.device_id for one in devices])
                rows = []
                for device in devices:
                    self._devices += 1
                    known = facts.get(device.device_id)
                    seen = time_of(known, "last_seen_at") if known else None
                    days = None if seen is None else days_between(seen, asked.as_of)
                    if days is not None and days < most:
                        continue
                    self._unseen += 1
                    self._never += seen is None
                    self._longest = max(self._longest, days or 0)
                    self._orgs[org] += 1
                    rows.append(
                        (
                            *device_cells(org, device, known.hostname if known else ""),
                            time_of(device, "enrolled_at"),
                            seen,
                            days,
                            known.policy_version if known else "",
                            device.status,
                        )
                    )
                yield 0, rows

    def summary(self) -> Summary:
        """How many there are."""
        return Summary(
            figures(
                {
                    "devices in use": self._devices,
                    "not seen": self._unseen,
                    "never seen": self._never,
                    "most days since": self._longest,
                }
            ),
            "Devices not seen, by organisation",
            org_bars(self._orgs),
        )


class DeviceHealth:
    """How devices do."""

    KIND: ClassVar = Kind(
        name="device-health",
        title="Health of devices",
        about="What devices in use reported last: updates, disk, battery and errors. Devices of the"
        " present release do not report the version of their operating system, so osVersion is"
        " empty.",
        tables=(
            Table(
                "rows",
                "Devices",
                (
                    *DEVICE,
                    Column("updateStatus", "Updates"),
                    Column("osVersion", "OS version"),
                    Column("stateReportedAt", "State of"),
                    Column("health", "Health"),
                    Column("diskFreePercent", "Disk free %"),
                    Column("batteryPercent", "Battery %"),
                    Column("lastError", "Last error"),
                ),
            ),
        ),
        made_from=("enrollment", "telemetry"),
        areas=("devices",),
    )

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._health: Counter[str] = Counter()
        self._devices = self._full = 0

    async def pages(self) -> AsyncGenerator[Page, None]:
        """The devices, of each organisation by id."""
        asked = self._asked
        for org in asked.orgs:
            async for devices in asked.sources.devices(org.id):
                facts = await asked.sources.facts(
                    org.id, [one.device_id for one in devices], with_last_error=True
                )
                rows = []
                for device in devices:
                    self._devices += 1
                    known = facts.get(device.device_id)
                    reported = time_of(known, "state_received_at") if known else None
                    if known is None or reported is None:
                        self._health["no report"] += 1
                        name = known.hostname if known else ""
                        unknown = (None, "", None, "unknown", None, None, "")
                        rows.append((*device_cells(org, device, name), *unknown))
                        continue
                    self._health[known.health] += 1
                    disk = (
                        round(known.disk_free_percent, 1)
                        if known.HasField("disk_free_percent")
                        else None
                    )
                    self._full += disk is not None and disk < _WELL_DISK_PERCENT
                    rows.append(
                        (
                            *device_cells(org, device, known.hostname),
                            known.update_status,
                            "",
                            reported,
                            known.health,
                            disk,
                            round(known.battery_percent, 1)
                            if known.HasField("battery_percent")
                            else None,
                            known.last_error,
                        )
                    )
                yield 0, rows

    def summary(self) -> Summary:
        """How many do how."""
        return Summary(
            figures(
                {
                    "devices in use": self._devices,
                    "critical": self._health["critical"],
                    "warning": self._health["warning"],
                    "without a report": self._health["no report"],
                    f"below {_WELL_DISK_PERCENT} % of disk": self._full,
                }
            ),
            "Devices by health",
            bars(self._health, (*_HEALTH, "no report")),
        )


class AttestationReport:
    """What the boots of devices prove."""

    KIND: ClassVar = Kind(
        name="attestation",
        title="Boots of devices",
        about="The verdict over the latest boot of each device in use within the period.",
        tables=(
            Table(
                "rows",
                "Devices",
                (
                    *DEVICE,
                    Column("verdict", "Verdict"),
                    Column("reason", "Reasons"),
                    Column("attestedAt", "Attested"),
                    Column("failedSince", "Failed since"),
                    Column("referenceValue", "Reference values"),
                    Column("hasTpm", "TPM"),
                ),
            ),
        ),
        made_from=("enrollment", "telemetry", "attestation"),
        areas=("devices", "attestation"),
        takes=("from", "until"),
    )

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._verdicts: Counter[str] = Counter()
        self._devices = self._without_tpm = 0

    async def pages(self) -> AsyncGenerator[Page, None]:
        """The devices, of each organisation by id."""
        asked = self._asked
        wanted = replace(asked.parameters, until=asked.until)
        for org in asked.orgs:
            async for devices in asked.sources.devices(org.id):
                ids = [one.device_id for one in devices]
                facts = await asked.sources.facts(org.id, ids)
                verdicts = await asked.sources.verdicts(org.id, ids, wanted)
                rows = []
                for device in devices:
                    self._devices += 1
                    self._without_tpm += not device.has_tpm
                    known = facts.get(device.device_id)
                    found = verdicts.get(device.device_id)
                    at = time_of(found, "attested_at") if found else None
                    if at and wanted.start and at < wanted.start:
                        found = None
                    self._verdicts[found.verdict if found else _NO_VERDICT] += 1
                    rows.append(
                        (
                            *device_cells(org, device, known.hostname if known else ""),
                            found.verdict if found else _NO_VERDICT,
                            ", ".join(found.reasons) if found else "",
                            at if found else None,
                            time_of(found, "failed_since") if found else None,
                            ", ".join(found.reference_values) if found else "",
                            device.has_tpm,
                        )
                    )
                yield 0, rows

    def summary(self) -> Summary:
        """How many have which verdict."""
        return Summary(
            figures(
                {
                    "devices in use": self._devices,
                    "verified": self._verdicts["VERIFIED"],
                    "failed": self._verdicts["FAILED"],
                    "without evidence": self._verdicts[_NO_VERDICT],
                    "without a TPM": self._without_tpm,
                }
            ),
            "Devices by verdict",
            bars(self._verdicts, _VERDICTS),
        )


class AssetRegister:
    """All devices that were there."""

    KIND: ClassVar = Kind(
        name="asset-register",
        title="Register of devices",
        about="All devices that were there within the period, with their status at its end, who"
        " approved and who decommissioned them, as the audit log says, and how often they enrolled"
        " again or were refused within it. Devices that were deleted are not in it: the audit log"
        " says which (enrollment.device_deleted).",
        tables=(
            Table(
                "rows",
                "Devices",
                (
                    *DEVICE,
                    Column("assetTag", "Asset tag"),
                    Column("cpuModel", "Processor"),
                    Column("memoryBytes", "Memory"),
                    Column("hasTpm", "TPM"),
                    Column("status", "Status"),
                    Column("preparedAt", "Registered"),
                    Column("enrolledAt", "Enrolled"),
                    Column("enrollmentTokenName", "Token"),
                    Column("approvedBy", "Approved by"),
                    Column("decommissionedAt", "Decommissioned"),
                    Column("decommissionedBy", "By"),
                    Column("reenrollments", "Enrolled again", total=True),
                    Column("refusals", "Refused", total=True),
                ),
            ),
        ),
        made_from=("enrollment", "telemetry", "audit"),
        areas=("devices",),
        defaults=Parameters(with_decommissioned=True),
        takes=("from", "until", "withDecommissioned"),
    )
    # Who did it is asked of all the time before, and how often only of the period.
    _BY: Final = ("enrollment.device_approved", "enrollment.device_decommissioned")
    _TIMES: Final = ("enrollment.device_reenrolled", "enrollment.reenrollment_refused")

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._statuses: Counter[str] = Counter()
        self._devices = self._again = self._refused = 0

    async def pages(self) -> AsyncGenerator[Page, None]:
        """The devices, of each organisation by id."""
        asked = self._asked
        start = asked.parameters.start
        for org in asked.orgs:
            async for found in asked.sources.devices(org.id, whatever_status=True):
                devices = [device for device in found if self._was_there(device)]
                if not devices:
                    continue
                facts = await asked.sources.facts(org.id, [one.device_id for one in devices])
                resources = [f"devices/{one.device_id}" for one in devices]
                by = await asked.log.acts(org.id, self._BY, resources, None, asked.until)
                acts = await asked.log.acts(org.id, self._TIMES, resources, start, asked.until)
                rows = []
                for device in devices:
                    known = facts.get(device.device_id)
                    resource = f"devices/{device.device_id}"
                    approved, ended_by = (by.get((resource, a)) for a in self._BY)
                    again, refused = (acts.get((resource, a)) for a in self._TIMES)
                    status, ended = self._status(device)
                    self._devices += 1
                    self._statuses[status] += 1
                    self._again += again.times if again else 0
                    self._refused += refused.times if refused else 0
                    rows.append(
                        (
                            *device_cells(org, device, known.hostname if known else ""),
                            device.asset_tag,
                            device.cpu_model,
                            device.total_ram_bytes,
                            device.has_tpm,
                            status,
                            time_of(device, "created_at"),
                            time_of(device, "enrolled_at"),
                            device.enrollment_token_name,
                            approved.actor if approved else "",
                            ended,
                            ended_by.actor if ended and ended_by else "",
                            again.times if again else 0,
                            refused.times if refused else 0,
                        )
                    )
                yield 0, rows

    def _status(self, device: enrollment_pb2.DeviceRecord) -> tuple[str, datetime | None]:
        """The status of a device at the end of the period, and when it was decommissioned."""
        ended = time_of(device, "decommissioned_at")
        if ended is None or ended < self._asked.until:
            return device.status, ended
        enrolled = time_of(device, "enrolled_at")
        return ("active" if enrolled and enrolled < self._asked.until else "prepared"), None

    def _was_there(self, device: enrollment_pb2.DeviceRecord) -> bool:
        wanted = self._asked.parameters
        made, ended = time_of(device, "created_at"), time_of(device, "decommissioned_at")
        if self._status(device)[0] == "decommissioned" and not wanted.with_decommissioned:
            return False
        if wanted.start and ended and ended < wanted.start:
            return False
        return made is None or made < self._asked.until

    def summary(self) -> Summary:
        """How many there are."""
        return Summary(
            figures(
                {
                    "devices": self._devices,
                    "active": self._statuses["active"],
                    "decommissioned": self._statuses["decommissioned"],
                    "enrolled again": self._again,
                    "refused": self._refused,
                }
            ),
            "Devices by status",
            bars(self._statuses),
        )
