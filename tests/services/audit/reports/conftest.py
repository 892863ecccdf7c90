"""The audit service, the services that it asks, on one database, and what they know."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast
from uuid import UUID

import pytest
import pytest_asyncio

from contract.access import Role
from evergreen.v1 import (
    attestation_pb2_grpc,
    enrollment_pb2_grpc,
    identity_pb2_grpc,
    policy_pb2_grpc,
    telemetry_pb2_grpc,
)
from evergreen.v1 import audit_pb2 as pb
from evergreen.v1 import audit_pb2_grpc as rpc
from servicekit.app import Kit, Parts, Running
from servicekit.ids import Clock
from servicekit.rpc.channels import open_channel
from servicekit.security.sealing import Sealer
from servicekit.settings import ServiceSettings
from services.attestation.feed import AttestationInternalApi
from services.attestation.settings import AttestationSettings
from services.audit.reports import maker, schedules
from services.enrollment.feed import InternalApi as EnrollmentApi
from services.enrollment.settings import EnrollmentSettings
from services.identity.feed import InternalApi as IdentityApi
from services.identity.settings import IdentitySettings
from services.policy.feed import PolicyInternalApi
from services.policy.vault import PURPOSE, Vault
from services.telemetry.feed import InternalApi as TelemetryApi
from services.telemetry.settings import TelemetrySettings
from tests.conftest import MakeKit, ServeService
from tests.support import callers
from tests.support.audit import (
    ORG,
    RESELLER,
    ROOT,
    SISTER,
    TREE,
    Audit,
    SentEvent,
    StartAudit,
    start_audit,
)

__all__ = ["start_audit"]

AS_OF = datetime(2026, 11, 30, 9, 0, tzinfo=UTC)
"""What the clock says; it stands still."""
NOBODY = cast(Any, None)
VAULT = Vault(Sealer(bytes(32), PURPOSE), seals=False)


class Time:
    """A clock that stands still, and that a test moves."""

    def __init__(self) -> None:
        self.now = AS_OF

    def __call__(self) -> datetime:
        return self.now

    def move(self, **by: float) -> None:
        self.now += timedelta(**by)


def internal_api(context: str, kit: Kit, clock: Clock) -> Parts:
    """The internal RPCs of a service, and nothing else of it: what it knows does not change."""
    database = kit.database
    made: dict[str, Callable[[], Any]] = {
        "identity": lambda: partial(
            identity_pb2_grpc.add_IdentityInternalServiceServicer_to_server,
            IdentityApi(database, NOBODY, NOBODY, NOBODY, NOBODY, NOBODY, clock),
        ),
        "enrollment": lambda: partial(
            enrollment_pb2_grpc.add_EnrollmentInternalServiceServicer_to_server,
            EnrollmentApi(NOBODY, NOBODY, NOBODY, database, clock),
        ),
        "policy": lambda: partial(
            policy_pb2_grpc.add_PolicyInternalServiceServicer_to_server,
            PolicyInternalApi(NOBODY, NOBODY, NOBODY, NOBODY, database, VAULT, NOBODY),
        ),
        "telemetry": lambda: partial(
            telemetry_pb2_grpc.add_TelemetryInternalServiceServicer_to_server,
            TelemetryApi(database),
        ),
        "attestation": lambda: partial(
            attestation_pb2_grpc.add_AttestationInternalServiceServicer_to_server,
            AttestationInternalApi(database, NOBODY),
        ),
    }
    return Parts(internal=[made[context]()])


OWNERS: dict[str, type[ServiceSettings]] = {
    "identity": IdentitySettings,
    "enrollment": EnrollmentSettings,
    "policy": ServiceSettings,
    "telemetry": TelemetrySettings,
    "attestation": AttestationSettings,
}


async def start_the_owner(
    make_kit: MakeKit, serve: ServeService, clock: Clock, context: str
) -> Running:
    """Serves the internal RPCs of a service."""
    kit = await make_kit(context, OWNERS[context], tenants=TREE)

    async def build(kit: Kit) -> Parts:
        return internal_api(context, kit, clock)

    return await serve(kit, build)


@dataclass
class World:
    """What a test talks to."""

    audit: Audit
    time: Time
    start_owner: Callable[[str], Awaitable[Running]]
    owners: dict[str, Running] = field(default_factory=dict)
    reports: rpc.ReportServiceAsyncStub = NOBODY
    schedules: rpc.ReportScheduleServiceAsyncStub = NOBODY

    async def create(self, kind: str, by: callers.Metadata | None = None, **more: Any) -> pb.Report:
        return await self.reports.CreateReport(
            pb.CreateReportRequest(kind=kind, **({"org_id": str(RESELLER.id)} | more)),
            metadata=by or RESELLER_OWNER,
        )

    async def get(self, report_id: str, by: callers.Metadata | None = None) -> pb.Report:
        return await self.reports.GetReport(
            pb.GetReportRequest(id=report_id), metadata=by or RESELLER_OWNER
        )

    async def until(self, report_id: str, status: str = "ready", seconds: float = 60) -> pb.Report:
        """Waits until a report has a status."""
        end = asyncio.get_running_loop().time() + seconds
        while (found := await self.get(report_id)).status != status:
            assert asyncio.get_running_loop().time() < end, found
            assert found.status == "running", found
            await asyncio.sleep(0.02)
        return found

    async def made(self, kind: str, **more: Any) -> pb.Report:
        """A report that is ready."""
        return await self.until((await self.create(kind, **more)).id)

    async def download(
        self, report_id: str, name: str, by: callers.Metadata | None = None
    ) -> bytes:
        parts = self.reports.DownloadReport(
            pb.DownloadReportRequest(id=report_id, name=name), metadata=by or RESELLER_OWNER
        )
        return b"".join([bytes(part.data) async for part in parts])

    async def files(self, report: pb.Report) -> dict[str, bytes]:
        return {file.name: await self.download(report.id, file.name) for file in report.files}

    async def sql(self, statement: str, *arguments: Any) -> list[Any]:
        connection = await self.audit.database.superuser()
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    async def told(self, action: str) -> list[Any]:
        """The payloads of the events of an action, in the outbox."""
        rows = await self.sql(
            "SELECT payload::jsonb -> 'data' AS data FROM audit.outbox"
            " WHERE subject LIKE '%.' || $1 ORDER BY id",
            action,
        )
        return [json.loads(row["data"]) for row in rows]


RESELLER_OWNER = callers.user(RESELLER.id, email="owner@reseller.example")
ORG_AUDITOR = callers.user(ORG.id, Role.AUDITOR, email="auditor@school.example")
ORG_OWNER = callers.user(ORG.id, email="owner@school.example")
SISTER_OWNER = callers.user(SISTER.id, email="owner@sister.example")

StartWorld = Callable[..., Awaitable[World]]


@pytest_asyncio.fixture
async def start_world(
    make_kit: MakeKit,
    serve: ServeService,
    start_audit: StartAudit,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[StartWorld]:
    """Starts the owners' internal RPCs, and audit."""
    monkeypatch.setattr(maker, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(schedules, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(schedules, "_SWEEP_SECONDS", 0.0)
    channels = []

    async def start(**settings: Any) -> World:
        time = Time()

        start_owner = partial(start_the_owner, make_kit, serve, time)
        owners = {context: await start_owner(context) for context in OWNERS}
        audit = await start_audit(
            stream=False,
            clock=time,
            public_url="https://evergreen.school.example",
            **settings,
        )
        channel = open_channel(audit.kit.settings.grpc_listen, "test")
        channels.append(channel)
        return World(
            audit,
            time,
            start_owner,
            owners,
            rpc.ReportServiceStub(channel),
            rpc.ReportScheduleServiceStub(channel),
        )

    yield start
    for channel in channels:
        await channel.close()


@pytest_asyncio.fixture
async def world(start_world: StartWorld) -> World:
    """The services, with what `fill` puts into them."""
    made = await start_world()
    await fill(made)
    return made


HOSTILE = '=HYPERLINK("http://x.example")<script>alert(1)</script>'
"""What a device may call itself."""


def uid(number: int) -> UUID:
    return UUID(int=number)


async def fill(world: World) -> None:
    """Puts a school with four devices, its sister with one, and their people into the services."""
    sql = world.sql
    org, sister, reseller = ORG.id, SISTER.id, RESELLER.id
    for node in (ROOT, RESELLER, ORG, SISTER):
        await sql(
            "INSERT INTO identity.tenant (id, parent_id, kind, name, code, created_at, updated_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, $6)",
            node.id,
            node.parent_id,
            node.kind,
            node.name,
            node.code,
            AS_OF - timedelta(days=500),
        )
    await sql(
        "INSERT INTO enrollment.token (id, tenant_id, name, secret_hash, created_at, expires_at,"
        " max_uses, uses, serial_count, require_approval, last_used_at)"
        " VALUES ($1, $2, 'Autumn', $3, $4, $5, 0, 4, 0, false, $4)",
        uid(0xE1),
        org,
        b"t" * 32,
        AS_OF - timedelta(days=90),
        AS_OF + timedelta(days=90),
    )
    devices = [
        (0xD1, org, "SN-1", "active", 1),
        (0xD2, org, HOSTILE, "active", 45),
        (0xD3, org, "SN-3", "active", None),
        (0xD4, org, "SN-4", "decommissioned", 200),
        (0xD5, sister, "SN-5", "active", 31),
    ]
    for number, tenant, serial, status, seen in devices:
        await sql(
            "INSERT INTO enrollment.device (id, tenant_id, serial, model, cpu_model, cpu_count,"
            " total_ram_bytes, has_tpm, status, token_version, enrollment_token_id, created_at,"
            " enrolled_at, decommissioned_at, asset_tag)"
            " VALUES ($1, $2, $3, 'Framework 12', 'i3', 6, 8589934592, $4, $5, 1, $6, $7, $7,"
            " $8, $9)",
            uid(number),
            tenant,
            serial,
            number != 0xD3,
            status,
            uid(0xE1) if tenant == org else None,
            AS_OF - timedelta(days=80),
            AS_OF - timedelta(days=20) if status == "decommissioned" else None,
            f"A-{number:x}",
        )
        at = None if seen is None else AS_OF - timedelta(days=seen)
        await sql(
            "INSERT INTO telemetry.device (id, tenant_id, registry_status, name, serial, model,"
            " registered_at, policy_version, contact_at, observed_at, state_received_at,"
            " update_status, disk_total_bytes, disk_free_bytes, battery_percent, last_error,"
            " health) VALUES ($1, $2, $3, $4, $5, 'Framework 12', $6, $7, $8, $8, $8, $9,"
            " 1000, $10, 80.5, $11, $12)",
            uid(number),
            tenant,
            status,
            HOSTILE if number == 0xD2 else f"host-{number:x}",
            serial,
            AS_OF - timedelta(days=80),
            "" if at is None else "2",
            at,
            "" if at is None else "up-to-date",
            50 if number == 0xD2 else 500,
            '@SUM(1+1)*cmd|" /C calc"!A0' if number == 0xD2 else "",
            "critical" if number == 0xD2 else "healthy",
        )
    for version, day, rollback in ((1, 60, None), (2, 30, None), (3, 10, 1)):
        await sql(
            "INSERT INTO policy.versions (tenant_id, version, policy_id, authored, document,"
            " signature, statement_payload, statement_signature, key_id, rollback_of,"
            " published_at, published_by) VALUES ($1, $2, $3, '{}', $4, '', '', '', 'key', $5,"
            " $6, 'admin@school.example')",
            org,
            version,
            uid(0xB1),
            f"document {version}".encode(),
            rollback,
            AS_OF - timedelta(days=day),
        )
    await sql(
        "INSERT INTO policy.policies (id, tenant_id, name, authored, created_at, updated_at,"
        " published_version) VALUES ($1, $2, 'Classroom <b>', '{}', $3, $3, 3)",
        uid(0xB1),
        org,
        AS_OF - timedelta(days=60),
    )
    # Stamps need whole statements.
    await sql("ALTER TABLE policy.assignments DISABLE TRIGGER ALL")
    await sql(
        "INSERT INTO policy.assignments (id, tenant_id, policy_id, version) VALUES ($1, $2, $3, 3)",
        uid(0xB2),
        org,
        uid(0xB1),
    )
    await sql(
        "INSERT INTO policy.documents (tenant_id, digest, body) VALUES ($1, $2, 'document 3')",
        org,
        bytes(32),
    )
    await sql(
        "INSERT INTO policy.stamps (tenant_id, version, document_tenant, digest, key_id,"
        " statement_head, statement_signature, cause, stamped_at)"
        " VALUES ($1, 3, $1, $2, 'key', '', '', 'publish', $3)",
        org,
        bytes(32),
        AS_OF - timedelta(days=10),
    )
    for number, version in ((0xD1, 3), (0xD2, 2)):
        await sql(
            "INSERT INTO policy.applied_versions (device_id, tenant_id, version, token_version,"
            " reported_at) VALUES ($1, $2, $3, 1, $4)",
            uid(number),
            org,
            version,
            AS_OF - timedelta(days=1),
        )
    for boot, number, verdict, day in (
        (0xF1, 0xD1, "SELF_CONSISTENT", 5),
        (0xF2, 0xD2, "SELF_CONSISTENT", 9),
        (0xF3, 0xD2, "FAILED", 4),
        (0xF4, 0xD2, "FAILED", 2),
    ):
        await sql(
            "INSERT INTO attestation.boot_verdict (id, tenant_id, device_id, verdict, reasons,"
            " bank, evidence_sha256, attested_at) VALUES ($1, $2, $3, $4, $5, 'sha256', $6, $7)",
            uid(boot),
            org,
            uid(number),
            verdict,
            ["LOG_DIFFERS"] if verdict == "FAILED" else [],
            bytes(32),
            AS_OF - timedelta(days=day),
        )
    for number, tenant, email, role, status, login in (
        (0xC1, org, "owner@school.example", "Owner", "active", 1),
        (0xC2, org, "admin@school.example", "Admin", "active", 120),
        (0xC3, org, "auditor@school.example", "Auditor", "active", None),
        (0xC4, org, "gone@school.example", "Admin", "disabled", 300),
        (0xC5, reseller, "owner@reseller.example", "Owner", "active", 2),
    ):
        await sql(
            "INSERT INTO identity.account (id, tenant_id, email, role, status, created_at,"
            " updated_at, seen_at, last_login_at) VALUES ($1, $2, $3, $4, $5, $6, $6, $6, $7)",
            uid(number),
            tenant,
            email,
            role,
            status,
            AS_OF - timedelta(days=400),
            None if login is None else AS_OF - timedelta(days=login),
        )
    await sql(
        "INSERT INTO identity.event_credential (id, tenant_id, name, secret_hash, created_at,"
        " created_by, expires_at) VALUES ($1, $2, '+SIEM', '', $3, 'owner@school.example', $4)",
        uid(0xA9),
        org,
        AS_OF - timedelta(days=40),
        AS_OF + timedelta(days=40),
    )
    await world.audit.record(*log_of_a_school())


def log_of_a_school() -> list[Any]:
    """What the log of the school says."""

    def sent(number: int, name: str, resource: str, day: float, **sides: Any) -> SentEvent:
        return SentEvent(
            name=name,
            tenant_id=ORG.id,
            resource=resource,
            actor="owner@school.example",
            actor_id=str(uid(0xC1)),
            actor_role="Owner",
            before=sides.get("before"),
            after=sides.get("after"),
            occurred_at=AS_OF - timedelta(days=day),
            id=uid(0x1000 + number),
        )

    return [
        sent(1, "identity.user_created", f"users/{uid(0xC2)}", 400, after={"role": "Auditor"}),
        sent(
            2,
            "identity.user_updated",
            f"users/{uid(0xC2)}",
            100,
            before={"role": "Auditor"},
            after={"role": "Admin"},
        ),
        sent(3, "enrollment.token_created", f"enrollment-tokens/{uid(0xE1)}", 90),
        sent(4, "enrollment.device_approved", f"devices/{uid(0xD1)}", 80),
        sent(5, "enrollment.reenrollment_refused", f"devices/{uid(0xD1)}", 70),
        sent(6, "enrollment.device_decommissioned", f"devices/{uid(0xD4)}", 20),
        sent(7, "identity.login_failed", f"users/{uid(0xC2)}", 1),
    ]
