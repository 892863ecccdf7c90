"""The enrollment service on a real database, its neighbours faked at their sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import pytest_asyncio

from contract.access import Role
from evergreen.v1 import (
    device_pb2,
    device_pb2_grpc,
    enrollment_pb2,
    enrollment_pb2_grpc,
    identity_pb2,
    identity_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
)
from servicekit.app import Kit
from servicekit.peers.tenants import TenantNode
from servicekit.rpc.channels import open_channel
from services.enrollment.__main__ import build
from services.enrollment.settings import EnrollmentSettings
from tests.conftest import MakeKit, ServeService, tenant
from tests.support import callers
from tests.support.neighbours import served
from tests.support.servers import TestDatabase

ROOT = tenant(1, kind="root", code="root")
RESELLER = tenant(2, ROOT, "reseller", "reseller")
ORG = tenant(3, RESELLER, "org", "school")
OTHER = tenant(4, ROOT, "org", "other")
TENANTS = [ROOT, RESELLER, ORG, OTHER]

# Awkward on purpose: what a JSON round trip would change must arrive unchanged.
ENVELOPE = (
    b'{"version":"7","signature":"c2ln","policy":{"apps":{"required":null},"updates":{"channel":'
    b'"a\\u003cb","reboot_required":false,"maintenance_windows":[ ]}}}'
)


@dataclass
class FakeIdentity(identity_pb2_grpc.IdentityInternalServiceServicer):
    """Issues tokens that tell what they were issued for."""

    tenants: list[TenantNode] = field(default_factory=list)
    issued: int = 0
    down: bool = False

    async def IssueDeviceToken(  # noqa: N802
        self, request: identity_pb2.IssueDeviceTokenRequest, context: Any
    ) -> identity_pb2.IssueDeviceTokenResponse:
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        self.issued += 1
        token = f"{request.device_id}/{request.tenant_id}/{request.token_version}/{self.issued}"
        return identity_pb2.IssueDeviceTokenResponse(device_token=token)

    async def ListAccessChanges(  # noqa: N802
        self, request: identity_pb2.ListAccessChangesRequest, context: Any
    ) -> identity_pb2.ListAccessChangesResponse:
        return identity_pb2.ListAccessChangesResponse(
            tenants=[
                identity_pb2.Tenant(
                    id=str(node.id),
                    parent_id=str(node.parent_id) if node.parent_id else None,
                    kind=node.kind,
                    name=node.name,
                    code=node.code,
                )
                for node in self.tenants
            ],
            next_cursor="1",
        )


@dataclass
class FakePolicy(policy_pb2_grpc.PolicyInternalServiceServicer):
    """Has one policy for everybody, and knows who has called."""

    envelope: bytes = ENVELOPE
    called: set[tuple[str, int]] = field(default_factory=set)
    applied: list[policy_pb2.AppliedVersion] = field(default_factory=list)
    asked: list[policy_pb2.GetDevicePolicyRequest] = field(default_factory=list)
    down: bool = False
    keys: list[str] = field(default_factory=list)
    """The keys that devices may pin, the active one first; none in a release that knows one."""
    retired: set[str] = field(default_factory=set)
    retired_next: set[str] = field(default_factory=set)
    """Keys that are retired right after the next signature with one."""
    for_groups: dict[str, list[str]] = field(default_factory=dict)
    """The names of the policies of groups, by the groups' ids."""

    async def ListGroupPolicies(  # noqa: N802
        self, request: policy_pb2.ListGroupPoliciesRequest, context: Any
    ) -> policy_pb2.ListGroupPoliciesResponse:
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        return policy_pb2.ListGroupPoliciesResponse(
            policies=[
                policy_pb2.GroupPolicy(name=name)
                for name in self.for_groups.get(request.group_id, ())
            ]
        )

    async def GetTokenPolicyKey(  # noqa: N802
        self, request: policy_pb2.GetTokenPolicyKeyRequest, context: Any
    ) -> policy_pb2.TokenPolicyKey:
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        if not self.keys:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "of an older release")
        if request.enrolling and request.policy_key_id in self.retired:
            return policy_pb2.TokenPolicyKey()
        asked = request.policy_key_id or self.keys[0]
        if asked not in self.keys:
            return policy_pb2.TokenPolicyKey()
        return policy_pb2.TokenPolicyKey(policy_key_id=asked, public_key_pem=f"PEM of {asked}")

    async def GetDevicePolicy(  # noqa: N802
        self, request: policy_pb2.GetDevicePolicyRequest, context: Any
    ) -> policy_pb2.GetDevicePolicyResponse:
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        if request.policy_key_id in self.retired:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "retired")
        self.asked.append(request)
        if request.policy_key_id in self.retired_next:
            self.retired.add(request.policy_key_id)
        return policy_pb2.GetDevicePolicyResponse(
            envelope=self.envelope,
            statement=device_pb2.PolicyStatement(payload=b"exact") if self.envelope else None,
            has_called=(request.device_id, request.token_version) in self.called,
        )

    async def ListAppliedVersions(  # noqa: N802
        self, request: policy_pb2.ListAppliedVersionsRequest, context: Any
    ) -> policy_pb2.ListAppliedVersionsResponse:
        return policy_pb2.ListAppliedVersionsResponse(
            versions=self.applied[int(request.cursor or 0) :], next_cursor=str(len(self.applied))
        )


@dataclass
class Neighbours:
    """The services that enrollment asks."""

    identity: FakeIdentity
    policy: FakePolicy


@asynccontextmanager
async def neighbours(kit: Kit) -> AsyncIterator[Neighbours]:
    """Serves the fakes where the kit's settings say that their originals are."""
    found = Neighbours(FakeIdentity(), FakePolicy())
    async with (
        served(
            kit.settings.identity_target,
            identity_pb2_grpc.add_IdentityInternalServiceServicer_to_server,
            found.identity,
        ),
        served(
            kit.settings.policy_target,
            policy_pb2_grpc.add_PolicyInternalServiceServicer_to_server,
            found.policy,
        ),
    ):
        yield found


def hardware(**more: Any) -> dict[str, Any]:
    """What the released agent sends, but for its serial number and key."""
    return {
        "model": "Framework 12",
        "cpu_model": "i3",
        "cpu_count": 6,
        "total_ram_bytes": 8 << 30,
        "has_tpm": True,
    } | more


@dataclass
class Enrollment:
    """The running service, its neighbours, and stubs to call it."""

    database: TestDatabase
    kit: Kit
    neighbours: Neighbours
    agents: httpx.AsyncClient
    tokens: enrollment_pb2_grpc.EnrollmentTokenServiceAsyncStub
    registry: enrollment_pb2_grpc.DeviceRegistryServiceAsyncStub
    groups: enrollment_pb2_grpc.DeviceGroupServiceAsyncStub
    devices: device_pb2_grpc.DeviceServiceAsyncStub
    internal: enrollment_pb2_grpc.EnrollmentInternalServiceAsyncStub

    @property
    def admin(self) -> callers.Metadata:
        """An Admin of the school."""
        return callers.user(ORG.id, Role.ADMIN, email="admin@school.example")

    async def token(self, org: TenantNode = ORG, **more: Any) -> enrollment_pb2.EnrollmentToken:
        """A new enrollment token."""
        return await self.tokens.CreateEnrollmentToken(
            enrollment_pb2.CreateEnrollmentTokenRequest(
                **{"org_id": str(org.id), "name": "Batch", **more}
            ),
            metadata=callers.user(org.id, Role.ADMIN, email="admin@school.example"),
        )

    async def group(
        self, alias: str, org: TenantNode = ORG, **more: Any
    ) -> enrollment_pb2.DeviceGroup:
        """A new group."""
        return await self.groups.CreateDeviceGroup(
            enrollment_pb2.CreateDeviceGroupRequest(
                **{"org_id": str(org.id), "name": alias, "alias": alias, **more}
            ),
            metadata=callers.user(org.id, Role.ADMIN, email="admin@school.example"),
        )

    async def label(self, device_id: str, **labels: str) -> enrollment_pb2.Registration:
        """Labels a device."""
        return await self.registry.UpdateRegistration(
            enrollment_pb2.UpdateRegistrationRequest(id=device_id, labels=labels),
            metadata=self.admin,
        )

    async def groups_of(self, device_id: str) -> set[str]:
        """The aliases of the groups that a device is in."""
        rows = await self.sql(
            "SELECT coalesce(g.alias, x::text) AS alias FROM enrollment.device d"
            " CROSS JOIN LATERAL unnest(d.group_ids) x"
            " LEFT JOIN enrollment.device_group g ON g.id = x WHERE d.id = $1::text::uuid",
            device_id,
        )
        return {row["alias"] for row in rows}

    async def post(self, body: bytes) -> httpx.Response:
        """The agent's call with any body."""
        return await self.agents.post(
            "/api/v1/devices/enroll", content=body, headers=dict(callers.anonymous())
        )

    async def enroll(self, key: str, serial: str = "SN-1", **more: Any) -> httpx.Response:
        """The released agent's call."""
        body = hardware(**more) | {"serial": serial, "pre_shared_key": key}
        return await self.post(json.dumps(body).encode())

    async def enrolled(self, key: str, serial: str = "SN-1", **more: Any) -> dict[str, Any]:
        """The answer to a call that is expected to succeed."""
        answer = await self.enroll(key, serial, **more)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def act(self, method: str, device_id: str) -> enrollment_pb2.Registration:
        """An administrator's decision about a device."""
        request = getattr(enrollment_pb2, f"{method}Request")(id=device_id)
        found: enrollment_pb2.Registration = await getattr(self.registry, method)(
            request, metadata=self.admin
        )
        return found

    async def registration(self, device_id: str) -> enrollment_pb2.Registration:
        return await self.act("GetRegistration", device_id)

    def called(self, device_id: str, version: int = 1) -> None:
        """The device uses its token."""
        self.neighbours.policy.called.add((device_id, version))

    async def sql(self, statement: str, *arguments: Any) -> list[Any]:
        """Runs a statement as a superuser."""
        connection = await self.database.superuser()
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    async def events(self, name: str = "") -> list[dict[str, Any]]:
        """The data of the events in the outbox, oldest first."""
        rows = await self.sql("SELECT payload FROM enrollment.outbox ORDER BY id")
        found = [json.loads(row["payload"]) for row in rows]
        return [
            event["data"] | {"tenantId": event["tenantid"]}
            for event in found
            if name in event["data"]["action"]
        ]


@asynccontextmanager
async def running(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, **settings: Any
) -> AsyncIterator[Enrollment]:
    """Starts the service between its fake neighbours."""
    kit = await make_kit("enrollment", EnrollmentSettings, tenants=TENANTS, **settings)
    async with (
        neighbours(kit) as found,
        grpc.aio.insecure_channel(kit.settings.grpc_listen) as public,
        open_channel(kit.settings.internal_listen, "telemetry") as internal,
        httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=kit.settings.http_listen.removeprefix("unix:"),
                limits=httpx.Limits(max_connections=64),
                verify=False,
            ),
            base_url="http://enrollment",
            timeout=60,
        ) as agents,
    ):
        await serve(kit, build)
        yield Enrollment(
            database,
            kit,
            found,
            agents,
            enrollment_pb2_grpc.EnrollmentTokenServiceStub(public),
            enrollment_pb2_grpc.DeviceRegistryServiceStub(public),
            enrollment_pb2_grpc.DeviceGroupServiceStub(public),
            device_pb2_grpc.DeviceServiceStub(public),
            enrollment_pb2_grpc.EnrollmentInternalServiceStub(internal),
        )


@pytest_asyncio.fixture
async def service(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase
) -> AsyncIterator[Enrollment]:
    """The service between its fake neighbours."""
    async with running(make_kit, serve, database) as found:
        yield found


def reason(answer: httpx.Response) -> str:
    """The stable reason of a refusal."""
    found: str = answer.json()["details"][0]["reason"]
    return found
