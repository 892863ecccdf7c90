"""Reports on policies: who keeps to them, and what was in force."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime
from typing import ClassVar, Final

from evergreen.v1 import enrollment_pb2, policy_pb2
from servicekit.peers.tenants import TenantNode
from services.audit.reports.domain import (
    Column,
    Kind,
    Parameters,
    Row,
    Summary,
    Table,
    days_between,
)
from services.audit.reports.kinds.base import (
    DEVICE,
    ORG,
    Asked,
    Page,
    bars,
    device_cells,
    figures,
    org_bars,
    org_cells,
    time_of,
)

_COMPLIANT: Final = "compliant"
_BEHIND: Final = "behind"
_NO_POLICY: Final = "noPolicy"
_NEVER: Final = "neverReported"
_IN_GRACE: Final = "inGrace"
_ENDS: Final = ("policy.withdrawn", "policy.deleted")
_STATES: Final = (_COMPLIANT, _IN_GRACE, _BEHIND, _NEVER, _NO_POLICY)


class PolicyCompliance:
    """Which devices have the version that is in force."""

    KIND: ClassVar = Kind(
        name="policy-compliance",
        title="Policies on devices",
        about="Which devices in use have the version of the policy that is in force. A device that"
        " has an older one is in grace for some days after the first version above it, and behind"
        " then; one that never reported, after it was enrolled and there was a version.",
        tables=(
            Table(
                "rows",
                "Devices",
                (
                    *DEVICE,
                    Column("policyId", ""),
                    Column("policyName", "Policy"),
                    Column("requiredVersion", "In force"),
                    Column("requiredSince", "Since"),
                    Column("appliedVersion", "Applied"),
                    Column("appliedAt", "Applied at"),
                    Column("state", "State", coded=True),
                    Column("daysBehind", "Days behind"),
                ),
            ),
            Table(
                "organisations",
                "Organisations",
                (
                    *ORG,
                    Column("devices", "Devices", total=True),
                    *(
                        Column(state, label, total=True)
                        for state, label in zip(
                            _STATES,
                            ("Compliant", "In grace", "Behind", "Never reported", "No policy"),
                            strict=True,
                        )
                    ),
                ),
            ),
        ),
        made_from=("enrollment", "telemetry", "policy"),
        areas=("devices", "policies"),
        defaults=Parameters(grace_days=7),
        takes=("graceDays",),
    )

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._states: Counter[str] = Counter()
        self._orgs: list[Row] = []

    async def pages(self) -> AsyncGenerator[Page, None]:
        """The devices, of each organisation by id, and then the organisations."""
        asked = self._asked
        for org in asked.orgs:
            states: Counter[str] = Counter()
            async for devices in asked.sources.devices(org.id):
                ids = [one.device_id for one in devices]
                facts = await asked.sources.facts(org.id, ids)
                required, versions = await asked.sources.versions_of(org.id, ids)
                since = time_of(required, "since") if required else None
                rows = []
                for device in devices:
                    known = facts.get(device.device_id)
                    has = versions[device.device_id]
                    wanted = list(required.versions) if required else []
                    if has.targeted:
                        wanted = list(has.required)
                    state, days = self._state(wanted, device, has)
                    states[state] += 1
                    rows.append(
                        (
                            *device_cells(org, device, known.hostname if known else ""),
                            required.policy_id if required else "",
                            required.policy_name if required else "",
                            wanted[-1] if wanted else "",
                            since if not has.targeted else None,
                            has.version,
                            time_of(has, "reported_at"),
                            state,
                            days,
                        )
                    )
                yield 0, rows
            self._states += states
            if states:
                counts = (states.total(), *(states[state] for state in _STATES))
                self._orgs.append((*org_cells(org), *counts))
        yield 1, self._orgs

    def _state(
        self,
        wanted: Sequence[str],
        device: enrollment_pb2.DeviceRecord,
        has: policy_pb2.DeviceVersion,
    ) -> tuple[str, int | None]:
        """The state of a device, and for how many days it has been behind.

        Args:
            wanted: the numbers that stand for what it is to have; none for nothing.
            device: the device.
            has: what it has.
        """
        if not wanted:
            return _NO_POLICY, None
        if has.version in wanted:
            return _COMPLIANT, None
        reported = has.HasField("reported_at")
        begins = [time_of(has, "first_above")]
        if not reported:
            begins.append(time_of(device, "enrolled_at"))
        since = max((at for at in begins if at), default=self._asked.as_of)
        days = days_between(since, self._asked.as_of)
        if days < (self._asked.parameters.grace_days or 0):
            return _IN_GRACE, None
        return (_BEHIND if reported else _NEVER), days

    def summary(self) -> Summary:
        """How many are in which state."""
        return Summary(
            figures(
                {
                    "devices in use": self._states.total(),
                    "compliant": self._states[_COMPLIANT],
                    "in grace": self._states[_IN_GRACE],
                    "behind": self._states[_BEHIND],
                    "never reported": self._states[_NEVER],
                    "without a policy": self._states[_NO_POLICY],
                }
            ),
            "Devices by state",
            bars(self._states, _STATES),
        )


class PolicyHistory:
    """What was in force when."""

    KIND: ClassVar = Kind(
        name="policy-history",
        title="Policies in force",
        about="Which version of which policy was in force when, within the period: who published"
        " it, and the digest of what devices got.",
        tables=(
            Table(
                "rows",
                "Versions",
                (
                    *ORG,
                    Column("policyId", ""),
                    Column("policyName", "Policy"),
                    Column("version", "Version"),
                    Column("publishedAt", "Published"),
                    Column("publishedBy", "By"),
                    Column("rollbackOf", "Content of"),
                    Column("inForceFrom", "In force from"),
                    Column("inForceUntil", "Until"),
                    Column("documentSha256", "SHA-256 of the document"),
                    Column("signingKeyId", "Key"),
                ),
            ),
        ),
        made_from=("policy", "audit"),
        areas=("policies",),
        takes=("from", "until"),
    )

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._orgs: Counter[TenantNode] = Counter()
        self._versions = self._rollbacks = 0
        self._people: set[str] = set()
        self._with_policy = 0

    async def pages(self) -> AsyncGenerator[Page, None]:
        """The versions, of each organisation by number."""
        asked = self._asked
        for org in asked.orgs:
            # A version is in force until the next one, or until it was withdrawn.
            before: policy_pb2.PublishedVersion | None = None
            withdrawn: dict[str, Sequence[datetime]] = {}
            async for versions in asked.sources.published(org.id):
                policies = sorted({f"policies/{version.policy_id}" for version in versions})
                withdrawn |= await asked.log.times(org.id, _ENDS, policies)
                rows: list[Row] = []
                for version in versions:
                    if before is not None:
                        rows += self._row(org, before, time_of(version, "published_at"), withdrawn)
                    before = version
                yield 0, rows
            if before is not None:
                self._with_policy += 1
                yield 0, self._row(org, before, None, withdrawn)

    def _row(
        self,
        org: TenantNode,
        version: policy_pb2.PublishedVersion,
        replaced: datetime | None,
        withdrawn: Mapping[str, Sequence[datetime]],
    ) -> list[Row]:
        """The row of a version, if it was in force within the period."""
        asked = self._asked
        begin = time_of(version, "published_at")
        assert begin is not None
        ends = [at for at in withdrawn.get(f"policies/{version.policy_id}", ()) if at >= begin]
        end = min([*ends, *([replaced] if replaced else [])], default=None)
        start = asked.parameters.start
        if begin >= asked.until or (start and end and end <= start):
            return []
        self._versions += 1
        self._rollbacks += bool(version.rollback_of)
        self._people.add(version.published_by)
        self._orgs[org] += 1
        return [
            (
                *org_cells(org),
                version.policy_id,
                version.policy_name,
                version.version,
                begin,
                version.published_by,
                version.rollback_of,
                begin,
                end,
                version.document_sha256,
                version.key_id,
            )
        ]

    def summary(self) -> Summary:
        """How many versions there were."""
        return Summary(
            figures(
                {
                    "versions in force": self._versions,
                    "rollbacks": self._rollbacks,
                    "people who published": len(self._people),
                    "organisations with a policy": self._with_policy,
                }
            ),
            "Versions, by organisation",
            org_bars(self._orgs),
        )
