"""The inventory of personal data (GDPR, Art. 30): what is stored of whom, why and for how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Final
from uuid import UUID

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
    streamed: bool = False
    """Whether event credentials read it,"""
    forwarded: bool = False
    """and whether forwarders send it."""


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
    streamed=True,
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
    "as its retention says, else for ever; it outlives the organisation",
    streamed=True,
    forwarded=True,
)
REPORTS: Final = Category(
    "reports",
    "as those of their kinds",
    "as those of their kinds",
    "evidence",
    "audit.report",
    "as EVERGREEN_REPORT_DAYS says; in reports of tenants above also after the organisation was"
    " deleted",
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
        self._of_tenant: dict[UUID, list[str]] = {}

    async def pages(self) -> AsyncGenerator[Page, None]:
        """The categories of each tenant."""
        for org in self._asked.orgs:
            found = _Org()
            await self._count_devices(org, found)
            await self._count_others(org, found)
            recipients = await self._recipients_of(org)
            yield 0, [self._row(org, category, found, recipients) for category in CATEGORIES]

    def _row(
        self, org: TenantNode, category: Category, found: _Org, recipients: tuple[list[str], ...]
    ) -> Row:
        readers, forwarders = recipients
        names = readers * category.streamed + forwarders * category.forwarded
        goes_out = category.streamed or category.forwarded
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
            (", ".join(names) or "none") if goes_out else "",
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

    async def _recipients_of(self, org: TenantNode) -> tuple[list[str], list[str]]:
        """Who reads events of an organisation, and who is sent its log: those of tenants above are
        counted, and not named."""
        asked = self._asked
        above = asked.above(org.id)
        readers = await self._readers(org.id)
        readers_above = sum([len(await self._readers(one)) for one in above])
        sent = await asked.log.recipients(org.id, above)
        forwarders = [f"{name} (forwarder)" for name in sent.own]
        self._recipients += len(readers) + readers_above + len(forwarders) + sent.above
        if readers_above:
            readers.append(f"{readers_above} event credentials of tenants above")
        if sent.above:
            forwarders.append(f"{sent.above} forwarders of tenants above")
        return readers, forwarders

    async def _readers(self, tenant_id: UUID) -> list[str]:
        """The event credentials of a tenant that work: they read what is below it, too."""
        if tenant_id not in self._of_tenant:
            names = []
            async for credentials in self._asked.sources.credentials(tenant_id):
                for one in credentials:
                    ends = time_of(one, "expires_at")
                    works = not one.HasField("revoked_at") and not (
                        ends and ends <= self._asked.as_of
                    )
                    if one.kind == "event credential" and works:
                        names.append(f"{one.name} (event credential)")
            self._of_tenant[tenant_id] = names
        return list(self._of_tenant[tenant_id])

    async def _count_others(self, org: TenantNode, found: _Org) -> None:
        """Counts what is none of devices'."""
        asked = self._asked
        async for users in asked.sources.users(org.id):
            for user in users:
                found.of(USERS).add(time_of(user, "created_at"))
                found.of(SESSIONS).add(None, user.open_sessions)
        async for credentials in asked.sources.credentials(org.id):
            for one in credentials:
                found.of(CREDENTIALS).add(time_of(one, "created_at"))
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
