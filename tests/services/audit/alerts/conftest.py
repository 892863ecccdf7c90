"""The audit service, a process that looks at alerts when a test says so, and a clock."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest
import pytest_asyncio

from evergreen.v1 import audit_pb2 as pb
from evergreen.v1 import audit_pb2_grpc as rpc
from evergreen.v1 import enrollment_pb2, policy_pb2, telemetry_pb2
from servicekit.rpc.channels import open_channel
from servicekit.rpc.values import timestamp
from services.audit.alerts.board import Board
from services.audit.alerts.watch import Watch
from services.audit.notices.service import Notices
from services.audit.reports.sources import Sources
from services.audit.tree.witnesses import Away
from tests.support import callers
from tests.support.audit import ORG, RESELLER, Audit, StartAudit, event, start_audit

__all__ = ["start_audit"]

NOW = datetime(2026, 11, 30, 9, 0, tzinfo=UTC)
NOBODY = cast(Any, None)
USER = f"users/{UUID(int=7)}"
DEVICE = f"devices/{UUID(int=9)}"
ORG_OWNER = callers.user(ORG.id, email="owner@school.example")
RESELLER_OWNER = callers.user(RESELLER.id, email="owner@reseller.example")


@dataclass
class Devices:
    """What the owners of devices answer: so many of an organisation do not call."""

    unseen: dict[UUID, int] = field(default_factory=dict)
    asked: list[UUID] = field(default_factory=list)
    """Organisations that were counted."""

    async def devices(
        self, org_id: UUID
    ) -> AsyncGenerator[Sequence[enrollment_pb2.DeviceRecord], None]:
        self.asked.append(org_id)
        long_ago = timestamp(NOW - timedelta(days=99))
        yield [
            enrollment_pb2.DeviceRecord(
                device_id=str(UUID(int=number)), status="active", created_at=long_ago
            )
            for number in range(self.unseen.get(org_id, 0))
        ]

    async def facts(self, *_: object) -> Mapping[str, telemetry_pb2.DeviceFacts]:
        return {}

    async def versions_of(self, *_: object) -> tuple[None, Mapping[str, policy_pb2.DeviceVersion]]:
        return None, {}


@dataclass
class World:
    """The service, with a process that looks when a test says so."""

    audit: Audit
    api: rpc.AlertServiceAsyncStub
    watch: Watch
    devices: Devices
    away: list[Away] = field(default_factory=list)
    """Witnesses that do not sign."""
    now: datetime = NOW

    async def happened(
        self, name: str, resource: str, *, tenant: UUID = ORG.id, ago: float = 0, **more: Any
    ) -> None:
        """Something is recorded that happened so many minutes ago."""
        at = self.now - timedelta(minutes=ago)
        await self.audit.record(
            event(tenant_id=tenant, name=name, resource=resource, occurred_at=at, **more)
        )

    async def failed_logins(self, count: int, *, tenant: UUID = ORG.id, ago: float = 0) -> None:
        for number in range(count):
            await self.happened(
                "identity.login_failed", USER, tenant=tenant, ago=ago + number / 100
            )

    async def verdict(self, before: str, after: str, device: str = DEVICE) -> None:
        await self.happened(
            "attestation.verdict_changed",
            device,
            before={"verdict": before},
            after={"verdict": after, "reasons": []},
        )

    async def forwarder(
        self, number: int = 5, failing_since: datetime | None = None, **config: str
    ) -> UUID:
        """A forwarder of the school that another process sends for."""
        forwarder = UUID(int=number)
        await self.audit.sql(
            "INSERT INTO audit.forwarder (id, tenant_id, name, kind, enabled, below_too, filter,"
            " config, sealed_secrets, start_at, revision, created_at, created_by, updated_at)"
            " VALUES ($1, $2, 'SIEM', 'webhook', true, true, '{}', $4, '', 'now', 1, $3, '', $3)",
            forwarder,
            ORG.id,
            NOW,
            json.dumps(config),
        )
        await self.audit.sql(
            "INSERT INTO audit.forwarder_state (forwarder_id, tenant_id, failing_since, lease,"
            " lease_until) VALUES ($1, $2, $3, $4, $5)",
            forwarder,
            ORG.id,
            failing_since,
            UUID(int=1),
            NOW + timedelta(days=9),
        )
        return forwarder

    async def backup(self, ago: timedelta) -> None:
        """A backup that was begun some time ago."""
        await self.audit.sql(
            "INSERT INTO audit.backup_run (id, kind, succeeded, started_at, ended_at, target,"
            " name, bytes, max_age_seconds, detail)"
            " VALUES ($1, 'backup', true, $2, $2, '', '', 1, 1, '')",
            UUID(int=3),
            self.now - ago,
        )

    async def count(self) -> None:
        """All organisations whose time has come are counted, also for the first time."""
        await self.watch.count_all()
        self.now += timedelta(seconds=1)
        await self.watch.count_all()

    def becomes(self, status: str) -> None:
        """The school is archived, or active again."""
        self.audit.kit.tenants.learn([replace(ORG, status=status)])

    async def subjects(self) -> list[str]:
        """What mails say first, in English."""
        return [texts[0]["subject"] for texts, _, _ in await self.notices()]

    async def alerts(self, by: callers.Metadata = ORG_OWNER, **wanted: Any) -> list[pb.Alert]:
        answer = await self.api.ListAlerts(pb.ListAlertsRequest(**wanted), metadata=by)
        return list(answer.alerts)

    async def told(self, what: str) -> list[Any]:
        """What events say, in the order in which they were written."""
        rows = await self.audit.sql(
            "SELECT payload FROM audit.outbox WHERE subject LIKE '%.audit.alert_' || $1"
            " ORDER BY id",
            what,
        )
        return [json.loads(row["payload"])["data"]["after"] for row in rows]

    async def notices(self) -> list[Any]:
        rows = await self.audit.sql(
            "SELECT texts, addresses, roles FROM audit.notice ORDER BY created_at, id"
        )
        return [(json.loads(row["texts"]), row["addresses"], row["roles"]) for row in rows]

    async def update(self, by: callers.Metadata = ORG_OWNER, **wanted: Any) -> pb.AlertRules:
        return await self.api.UpdateAlertRules(pb.UpdateAlertRulesRequest(**wanted), metadata=by)

    async def rules(self, by: callers.Metadata = ORG_OWNER, **wanted: Any) -> pb.AlertRules:
        return await self.api.GetAlertRules(pb.GetAlertRulesRequest(**wanted), metadata=by)


async def _waits(_: object) -> None:
    await asyncio.Event().wait()


@pytest_asyncio.fixture
async def world(start_audit: StartAudit, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    # The service's own process never looks: it would read what a test is about to change.
    monkeypatch.setattr(Watch, "run", _waits)
    # Nor are mails handed over, given up and forgotten when a test moves the clock.
    monkeypatch.setattr(Notices, "run", _waits)
    made: World = NOBODY

    def clock() -> datetime:
        return made.now if made else NOW

    audit = await start_audit(stream=False, clock=clock)
    kit = audit.kit
    channel = open_channel(kit.settings.grpc_listen, "test")
    notices = Notices(kit.database, NOBODY, clock)
    devices = Devices()
    away: list[Away] = []
    looks = Watch(
        kit.database,
        kit.tenants,
        Board(kit.outbox, notices),
        notices,
        cast(Sources, devices),
        {},
        lambda: list(away),
        clock,
    )
    made = World(audit, rpc.AlertServiceStub(channel), looks, devices, away)
    yield made
    await channel.close()


def rule_of(rules: pb.AlertRules, kind: str) -> pb.AlertRule:
    return next(rule for rule in rules.rules if rule.kind == kind)


def input_of(kind: str, until: datetime | None = None, **more: Any) -> pb.AlertRuleInput:
    """A change of a kind, with a pause until a time."""
    given = pb.AlertRuleInput(kind=kind, **more)
    if until is not None:
        given.paused_until.FromDatetime(until)
    return given
