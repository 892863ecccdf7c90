"""The inventory of personal data (GDPR, Art. 30): what is stored of whom, why and for how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Final

from servicekit.peers.tenants import TenantNode
from services.audit.reports.domain import Column, Kind, Row, Summary, Table
from services.audit.reports.kinds.base import ORG, Asked, Page, bars, figures, org_cells, time_of


@dataclass(frozen=True, slots=True)
class Category:
    """A kind of data."""

    name: str
    subjects: str
    fields: str
    purpose: str
    table: str
    retention: str
    goes_out: bool = False
    """Whether forwarders and event credentials pass it on."""


USERS: Final = Category(
    "users",
    "staff",
    "e-mail address, role, status, second factors, time of the last login",
    "who may administer devices",
    "identity.account",
    "until the user is deleted; then the id, the address and who deleted it stay",
)
SESSIONS: Final = Category(
    "sessions",
    "staff",
    "IP address and program of a login, its times",
    "to show and to end sessions",
    "identity.session",
    "hours after a session has ended",
)
CREDENTIALS: Final = Category(
    "credentials",
    "staff",
    "name, who made it, last use",
    "what programs log in with",
    "identity.event_credential, identity.api_token",
    "until the organisation is deleted",
)
TOKENS: Final = Category(
    "enrollment tokens",
    "none",
    "name, times, serial numbers",
    "what devices enroll with",
    "enrollment.token",
    "until the organisation is deleted",
)
DEVICES: Final = Category(
    "devices",
    "pupils and staff with a device of their own",
    "serial number, model, hardware, labels, asset tag, note",
    "which devices belong to the organisation",
    "enrollment.device",
    "until the device is deleted; then its id and serial number stay",
)
STATES: Final = Category(
    "states of devices",
    "pupils and staff with a device of their own",
    "host name, installed applications, disk, battery, last error, time of the last call",
    "whether devices work",
    "telemetry.device",
    "the latest one only, until the device is deleted",
)
EVENTS: Final = Category(
    "events of devices",
    "pupils and staff with a device of their own",
    "type, message and content, as the device reports them",
    "what happened on devices",
    "telemetry.event",
    "as the organisation has set it (GET /api/events/retention)",
    goes_out=True,
)
BOOTS: Final = Category(
    "verdicts over boots",
    "pupils and staff with a device of their own",
    "measurements of firmware and system, time of the boot",
    "whether devices boot what they should",
    "attestation.boot_verdict",
    "until the device is deleted",
)
POLICIES: Final = Category(
    "policies",
    "staff",
    "who published a version, and when",
    "what devices are set to",
    "policy.versions",
    "until the organisation is deleted",
)
AUDIT: Final = Category(
    "audit log",
    "staff",
    "who did what, when, from which IP address, before and after",
    "accountability",
    "audit.entry",
    "for ever; it outlives the organisation",
    goes_out=True,
)
REPORTS: Final = Category(
    "reports",
    "as those of their kinds",
    "as those of their kinds",
    "evidence",
    "audit.report",
    "as EVERGREEN_REPORT_DAYS says",
)
CATEGORIES: Final = (
    USERS,
    SESSIONS,
    CREDENTIALS,
    TOKENS,
    DEVICES,
    STATES,
    EVENTS,
    BOOTS,
    POLICIES,
    AUDIT,
    REPORTS,
)


@dataclass(slots=True)
class _Found:
    """How much there is of a category."""

    records: int = 0
    oldest: datetime | None = None

    def add(self, at: datetime | None, records: int = 1) -> None:
        self.records += records
        if at is not None and (self.oldest is None or at < self.oldest):
            self.oldest = at


@dataclass(slots=True)
class _Org:
    """What an organisation has, by category."""

    found: dict[str, _Found] = field(default_factory=dict)

    def of(self, category: Category) -> _Found:
        return self.found.setdefault(category.name, _Found())


class DataInventory:
    """What is stored of whom."""

    KIND: ClassVar = Kind(
        name="data-inventory",
        title="Inventory of personal data",
        about="What is stored of whom, why, for how long, and who receives it (GDPR, Art. 30)."
        " Events are counted up to 100,000.",
        tables=(
            Table(
                "rows",
                "Categories",
                (
                    *ORG,
                    Column("category", "Category"),
                    Column("dataSubjects", "Of whom"),
                    Column("fields", "What"),
                    Column("purpose", "Why"),
                    Column("table", "Where"),
                    Column("retention", "How long"),
                    Column("records", "Records", total=True),
                    Column("oldest", "Oldest"),
                    Column("recipients", "Recipients"),
                ),
            ),
        ),
        made_from=("identity", "enrollment", "policy", "telemetry", "attestation", "audit"),
        areas=("users", "devices", "policies", "events", "enrollment", "attestation"),
    )

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._records: Counter[str] = Counter()
        self._recipients = 0

    async def pages(self) -> AsyncGenerator[Page, None]:
        """The categories of each tenant."""
        for org in self._asked.orgs:
            found = _Org()
            await self._count_devices(org, found)
            recipients = await self._count_others(org, found)
            yield 0, [self._row(org, category, found, recipients) for category in CATEGORIES]

    def _row(self, org: TenantNode, category: Category, found: _Org, recipients: str) -> Row:
        counted = found.of(category)
        self._records[category.name] += counted.records
        return (
            *org_cells(org),
            category.name,
            category.subjects,
            category.fields,
            category.purpose,
            category.table,
            category.retention,
            counted.records,
            counted.oldest,
            recipients if category.goes_out else "",
        )

    async def _count_devices(self, org: TenantNode, found: _Org) -> None:
        asked = self._asked
        async for devices in asked.sources.devices(org.id, whatever_status=True):
            ids = [device.device_id for device in devices]
            for device in devices:
                found.of(DEVICES).add(time_of(device, "created_at"))
            for facts in (await asked.sources.facts(org.id, ids)).values():
                if at := time_of(facts, "state_received_at"):
                    found.of(STATES).add(at)
            verdicts = await asked.sources.verdicts(org.id, ids, asked.parameters)
            for verdict in verdicts.values():
                found.of(BOOTS).add(time_of(verdict, "attested_at"))
        found.of(EVENTS).add(None, await asked.sources.count_events(org.id))

    async def _count_others(self, org: TenantNode, found: _Org) -> str:
        """Counts what is none of devices'; answers who receives what goes out."""
        asked = self._asked
        async for users in asked.sources.users(org.id):
            for user in users:
                found.of(USERS).add(time_of(user, "created_at"))
                found.of(SESSIONS).add(None, user.open_sessions)
        readers = []
        async for credentials in asked.sources.credentials(org.id):
            for one in credentials:
                found.of(CREDENTIALS).add(time_of(one, "created_at"))
                if one.kind == "event credential" and not one.HasField("revoked_at"):
                    readers.append(f"{one.name} (event credential)")
        async for tokens in asked.sources.tokens(org.id):
            for token in tokens:
                found.of(TOKENS).add(time_of(token, "created_at"))
        async for versions in asked.sources.published(org.id):
            for version in versions:
                found.of(POLICIES).add(time_of(version, "published_at"))
        for category, counted in (
            (AUDIT, await asked.log.size(org.id, asked.as_of)),
            (REPORTS, await asked.log.kept_reports(org.id, asked.as_of)),
        ):
            found.of(category).add(counted[1], counted[0])
        sent = await asked.log.recipients(org.id, asked.above(org.id))
        names = [*readers, *(f"{name} (forwarder)" for name in sent.own)]
        self._recipients += len(names) + sent.above
        if sent.above:
            names.append(f"{sent.above} of tenants above")
        return ", ".join(names) or "none"

    def summary(self) -> Summary:
        """How much there is."""
        return Summary(
            figures(
                {
                    "categories": len(CATEGORIES),
                    "users": self._records[USERS.name],
                    "devices": self._records[DEVICES.name],
                    "events of devices": self._records[EVENTS.name],
                    "recipients": self._recipients,
                }
            ),
            "Records by category",
            bars(self._records, [category.name for category in CATEGORIES]),
        )
