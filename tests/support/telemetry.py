"""The telemetry service on a real database, its neighbours faked at their sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import httpx
import pytest_asyncio

from evergreen.v1 import (
    attestation_pb2_grpc,
    device_pb2_grpc,
    enrollment_pb2,
    enrollment_pb2_grpc,
    identity_pb2,
    identity_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    telemetry_pb2,
    telemetry_pb2_grpc,
)
from servicekit.app import Kit, Running
from servicekit.rpc.channels import open_channel
from services.telemetry.__main__ import build
from services.telemetry.settings import TelemetrySettings
from tests.conftest import MakeKit, ServeService, tenant
from tests.support.neighbours import FakeAttestation, served, until_ready
from tests.support.servers import TestDatabase

ROOT = tenant(1, kind="root")
RESELLER = tenant(2, ROOT, "reseller")
ORG = tenant(0xABC, RESELLER)
"""With letters in its id, which a caller may write in capitals."""
SISTER = tenant(4, RESELLER)
STRANGER = tenant(5, ROOT)
TREE = [ROOT, RESELLER, ORG, SISTER, STRANGER]


class FakeIdentity(identity_pb2_grpc.IdentityInternalServiceServicer):
    async def ListAccessChanges(  # noqa: N802
        self, request: identity_pb2.ListAccessChangesRequest, context: Any
    ) -> identity_pb2.ListAccessChangesResponse:
        return identity_pb2.ListAccessChangesResponse(next_cursor="1")


@dataclass
class FakeRegistry(enrollment_pb2_grpc.EnrollmentInternalServiceServicer):
    """Tells of the devices that a test puts into it, two a page."""

    changes: list[enrollment_pb2.DeviceChange] = field(default_factory=list)
    cursors: list[str] = field(default_factory=list)
    down: bool = False

    def tell(
        self, device_id: UUID, org: UUID = ORG.id, status: str = "active", **more: Any
    ) -> None:
        change = enrollment_pb2.DeviceChange(
            device_id=str(device_id),
            tenant_id=str(org),
            status=status,
            **{"token_version": 1, "serial": f"S-{device_id.hex[-6:]}", "model": "Book", **more},
        )
        change.created_at.FromDatetime(datetime.now(UTC) - timedelta(days=1))
        self.changes.append(change)

    async def ListDeviceChanges(  # noqa: N802
        self, request: enrollment_pb2.ListDeviceChangesRequest, context: Any
    ) -> enrollment_pb2.ListDeviceChangesResponse:
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        begin = int(request.cursor or 0)
        page = self.changes[begin : begin + 2]
        end = begin + len(page)
        if request.restricted_only:
            page = [c for c in page if c.status == "decommissioned" or c.token_version > 1]
        else:
            self.cursors.append(request.cursor)
        return enrollment_pb2.ListDeviceChangesResponse(
            devices=page, next_cursor=str(end), more=end < len(self.changes)
        )


@dataclass
class FakePolicy(policy_pb2_grpc.PolicyInternalServiceServicer):
    """Tells of the versions that a test puts into it."""

    versions: list[policy_pb2.AppliedVersion] = field(default_factory=list)
    in_force: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The documents in force, by organisation."""
    gates: list[policy_pb2.AttestationGate] = field(default_factory=list)
    restricted: list[policy_pb2.RestrictedDevice] = field(default_factory=list)

    def restrict(self, device_id: UUID, org: UUID = ORG.id, *, restricted: bool = True) -> None:
        self.restricted.append(
            policy_pb2.RestrictedDevice(
                device_id=str(device_id), tenant_id=str(org), restricted=restricted
            )
        )

    async def ListRestrictedDeviceChanges(  # noqa: N802
        self, request: policy_pb2.ListRestrictedDeviceChangesRequest, context: Any
    ) -> policy_pb2.ListRestrictedDeviceChangesResponse:
        return policy_pb2.ListRestrictedDeviceChangesResponse(
            devices=self.restricted[int(request.cursor or 0) :],
            next_cursor=str(len(self.restricted)),
        )

    def ask(self, at_least: str, org: UUID = ORG.id, mode: str = "OBSERVE", hours: int = 1) -> None:
        self.gates.append(
            policy_pb2.AttestationGate(
                org_id=str(org), mode=mode, at_least=at_least, grace_hours=hours
            )
        )

    async def ListAttestationGateChanges(  # noqa: N802
        self, request: policy_pb2.ListAttestationGateChangesRequest, context: Any
    ) -> policy_pb2.ListAttestationGateChangesResponse:
        return policy_pb2.ListAttestationGateChangesResponse(
            gates=self.gates[int(request.cursor or 0) :], next_cursor=str(len(self.gates))
        )

    def tell(self, device_id: UUID, version: str, org: UUID = ORG.id) -> None:
        applied = policy_pb2.AppliedVersion(
            device_id=str(device_id), tenant_id=str(org), version=version
        )
        applied.reported_at.FromDatetime(datetime.now(UTC))
        self.versions.append(applied)

    async def GetDevicePolicy(  # noqa: N802
        self, request: policy_pb2.GetDevicePolicyRequest, context: Any
    ) -> policy_pb2.GetDevicePolicyResponse:
        document = self.in_force.get(request.tenant_id)
        envelope = {"version": "1", "signature": "c2ln", "policy": document}
        return policy_pb2.GetDevicePolicyResponse(
            envelope=json.dumps(envelope).encode() if document is not None else b""
        )

    async def ListAppliedVersions(  # noqa: N802
        self, request: policy_pb2.ListAppliedVersionsRequest, context: Any
    ) -> policy_pb2.ListAppliedVersionsResponse:
        return policy_pb2.ListAppliedVersionsResponse(
            versions=self.versions[int(request.cursor or 0) :], next_cursor=str(len(self.versions))
        )


def event(number: int | str, **change: Any) -> dict[str, Any]:
    """An event as the released agent sends it."""
    return {
        "id": str(number),
        "type": "app.installed",
        "timestamp": "2026-11-24T06:00:00.123456789Z",
        "payload": {"n": number},
        **change,
    }


def state(**change: Any) -> dict[str, Any]:
    """A state as the released agent sends it."""
    return {
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "123Z"),
        "installed_apps": [{"id": "org.gnome.Maps", "version": "47", "branch": "stable"}],
        "update_status": "stable",
        "disk_total_bytes": 1000,
        "disk_free_bytes": 500,
        "battery_percent": 80.5,
        "last_error": "",
        **change,
    }


class Device:
    """A device's calls, as the gateway vouches for."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        channel: grpc.aio.Channel,
        org: UUID = ORG.id,
        device_id: UUID | None = None,
    ) -> None:
        self.id = device_id or uuid4()
        self.org = org
        self.headers = {
            "x-evergreen-kind": "device",
            "x-evergreen-subject": str(self.id),
            "x-evergreen-tenant": str(org),
            "x-evergreen-token-version": "1",
            "x-request-id": "request-1",
        }
        self._http = http
        self.grpc = device_pb2_grpc.DeviceServiceStub(channel)

    async def post(self, what: str, body: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self._http.post(
            f"/api/v1/devices/{what}", content=content, headers=self.headers, timeout=60
        )

    async def state(self, **change: Any) -> httpx.Response:
        return await self.post("state", {"device_id": str(self.id), "state": state(**change)})

    async def events(self, events: Sequence[Any]) -> httpx.Response:
        return await self.post("events", {"device_id": str(self.id), "events": events})

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple(self.headers.items())


class Admin:
    """A user of a tenant, as the gateway vouches for."""

    def __init__(self, channel: grpc.aio.Channel, org: UUID, role: str = "Auditor") -> None:
        self.inventory = telemetry_pb2_grpc.InventoryServiceStub(channel)
        self.event_service = telemetry_pb2_grpc.EventServiceStub(channel)
        self.metadata = (
            ("x-evergreen-kind", "user"),
            ("x-evergreen-subject", str(UUID(int=0xA))),
            ("x-evergreen-tenant", str(org)),
            ("x-evergreen-role", role),
            ("x-evergreen-email", "admin@school.example"),
            ("x-evergreen-session", str(UUID(int=0xB))),
            ("x-request-id", "request-1"),
        )

    async def devices(self, **request: Any) -> telemetry_pb2.ListDevicesResponse:
        answer: telemetry_pb2.ListDevicesResponse = await self.inventory.ListDevices(
            telemetry_pb2.ListDevicesRequest(**request), metadata=self.metadata, timeout=60
        )
        return answer

    async def device(self, device_id: UUID) -> telemetry_pb2.Device:
        answer: telemetry_pb2.Device = await self.inventory.GetDevice(
            telemetry_pb2.GetDeviceRequest(id=str(device_id)), metadata=self.metadata, timeout=60
        )
        return answer

    async def events(self, **request: Any) -> telemetry_pb2.ListEventsResponse:
        answer: telemetry_pb2.ListEventsResponse = await self.event_service.ListEvents(
            telemetry_pb2.ListEventsRequest(**request), metadata=self.metadata, timeout=60
        )
        return answer

    async def quarantined(self, **request: Any) -> telemetry_pb2.ListQuarantinedEventsResponse:
        answer: telemetry_pb2.ListQuarantinedEventsResponse = (
            await self.event_service.ListQuarantinedEvents(
                telemetry_pb2.ListQuarantinedEventsRequest(**request),
                metadata=self.metadata,
                timeout=60,
            )
        )
        return answer

    async def quarantined_content(self, event_id: str) -> str:
        call = self.event_service.ExportQuarantinedEvent(
            telemetry_pb2.ExportQuarantinedEventRequest(id=event_id),
            metadata=self.metadata,
            timeout=60,
        )
        return b"".join([part.data async for part in call]).decode()

    async def export(self, **request: Any) -> tuple[dict[str, str], list[Any]]:
        """The response's headers and trailers, and the parts of the file."""
        call = self.event_service.ExportEvents(
            telemetry_pb2.ExportEventsRequest(**request), metadata=self.metadata, timeout=60
        )
        parts = [part async for part in call]
        return {
            **dict(await call.initial_metadata()),
            **dict(await call.trailing_metadata()),
        }, parts

    async def export_devices(self, **request: Any) -> tuple[dict[str, str], bytes]:
        """The response's headers and trailers, and the file."""
        call = self.inventory.ExportDevices(
            telemetry_pb2.ExportDevicesRequest(**request), metadata=self.metadata, timeout=60
        )
        file = b"".join([part.data async for part in call])
        return {**dict(await call.initial_metadata()), **dict(await call.trailing_metadata())}, file

    async def retention(self, **request: Any) -> telemetry_pb2.EventRetention:
        answer: telemetry_pb2.EventRetention = await self.event_service.GetEventRetention(
            telemetry_pb2.GetEventRetentionRequest(**request), metadata=self.metadata, timeout=60
        )
        return answer

    async def keep(self, **request: Any) -> telemetry_pb2.EventRetention:
        answer: telemetry_pb2.EventRetention = await self.event_service.UpdateEventRetention(
            telemetry_pb2.UpdateEventRetentionRequest(**request),
            metadata=self.metadata,
            timeout=60,
        )
        return answer


@dataclass
class World:
    kit: Kit
    running: Running
    channel: grpc.aio.Channel
    http: httpx.AsyncClient
    registry: FakeRegistry
    policy: FakePolicy
    attestation: FakeAttestation
    admin: Admin
    database: TestDatabase

    def device(self, org: UUID = ORG.id, device_id: UUID | None = None) -> Device:
        return Device(self.http, self.channel, org, device_id)

    async def rows(self, sql: str, *values: Any) -> list[Any]:
        """What a superuser finds in the database."""
        connection = await self.database.superuser()
        try:
            return list(await connection.fetch(sql, *values))
        finally:
            await connection.close()

    async def count(self, table: str = "event") -> int:
        """How many rows a table has."""
        (row,) = await self.rows(f"SELECT count(*) AS n FROM telemetry.{table}")
        return int(row["n"])

    async def stored(self, device: Device) -> dict[str, Any]:
        """What is known of a device's state."""
        (row,) = await self.rows(
            "SELECT *, installed_apps::text AS apps FROM telemetry.device WHERE id = $1",
            device.id,
        )
        return dict(row)


@asynccontextmanager
async def running(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, **settings: Any
) -> AsyncIterator[World]:
    """The service and its neighbours."""
    kit = await make_kit("telemetry", TelemetrySettings, tenants=TREE, **settings)
    registry, policy, attestation = FakeRegistry(), FakePolicy(), FakeAttestation(ORG.id)
    async with (
        served(
            kit.settings.target("identity"),
            identity_pb2_grpc.add_IdentityInternalServiceServicer_to_server,
            FakeIdentity(),
        ),
        served(
            kit.settings.target("enrollment"),
            enrollment_pb2_grpc.add_EnrollmentInternalServiceServicer_to_server,
            registry,
        ),
        served(
            kit.settings.target("policy"),
            policy_pb2_grpc.add_PolicyInternalServiceServicer_to_server,
            policy,
        ),
        served(
            kit.settings.target("attestation"),
            attestation_pb2_grpc.add_AttestationInternalServiceServicer_to_server,
            attestation,
        ),
    ):
        service = await serve(kit, build)
        channel = open_channel(kit.settings.grpc_listen, "test")
        path = kit.settings.http_listen.removeprefix("unix:")
        async with httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=path, verify=False), base_url="http://telemetry"
        ) as http:
            await until_ready(channel)
            yield World(
                kit,
                service,
                channel,
                http,
                registry,
                policy,
                attestation,
                Admin(channel, ORG.id),
                database,
            )
        await channel.close()


@pytest_asyncio.fixture
async def world(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase
) -> AsyncIterator[World]:
    async with running(make_kit, serve, database) as found:
        yield found


async def eventually(check: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    """Waits until something is so."""
    async with asyncio.timeout(seconds):
        while not await check():
            await asyncio.sleep(0.05)
