"""The policy service on a real database, its neighbours faked at their sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import httpx
import pytest_asyncio

from evergreen.v1 import (
    attestation_pb2_grpc,
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
from servicekit.rpc.channels import open_channel
from servicekit.rpc.values import from_value, to_value
from services.policy.__main__ import build
from services.policy.settings import PolicySettings
from tests.conftest import MakeKit, ServeService, tenant
from tests.fakes.agent.gojson import unmarshal
from tests.fakes.agent.structs import ENVELOPE
from tests.fakes.agent.verify import check_envelope, load_pinned_key
from tests.support.neighbours import FakeAttestation, served, until_ready
from tests.support.servers import TestDatabase

ROOT = tenant(1, kind="root")
RESELLER = tenant(2, ROOT, "reseller")
ORG = tenant(3, RESELLER)
SISTER = tenant(4, RESELLER)
STRANGER = tenant(5, ROOT)
TREE = [ROOT, RESELLER, ORG, SISTER, STRANGER]

USER = UUID(int=0xA)
SESSION = UUID(int=0xB)
TOKEN_LIFE = timedelta(days=400)


@dataclass
class FakeIdentity(identity_pb2_grpc.IdentityInternalServiceServicer):
    """Issues tokens that tell what they were issued for."""

    issued: list[identity_pb2.IssueDeviceTokenRequest] = field(default_factory=list)
    down: bool = False
    at_once: asyncio.Barrier | None = None
    """So many calls are answered together."""

    async def IssueDeviceToken(  # noqa: N802
        self, request: identity_pb2.IssueDeviceTokenRequest, context: Any
    ) -> identity_pb2.IssueDeviceTokenResponse:
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        self.issued.append(request)
        if self.at_once is not None:
            await self.at_once.wait()
        answer = identity_pb2.IssueDeviceTokenResponse(
            device_token=f"token-{request.device_id}-{request.token_version}"
        )
        answer.expires_at.FromDatetime(datetime.now(UTC) + TOKEN_LIFE)
        return answer

    async def ListAccessChanges(  # noqa: N802
        self, request: identity_pb2.ListAccessChangesRequest, context: Any
    ) -> identity_pb2.ListAccessChangesResponse:
        return identity_pb2.ListAccessChangesResponse(next_cursor="1")


@dataclass
class FakeRegistry(enrollment_pb2_grpc.EnrollmentInternalServiceServicer):
    """Knows the devices that a test puts into it."""

    devices: list[enrollment_pb2.DeviceChange] = field(default_factory=list)
    groups: list[enrollment_pb2.GroupChange] = field(default_factory=list)
    down: bool = False
    before_answer: Callable[[], Awaitable[None]] | None = None

    def group(self, org_id: UUID, alias: str, priority: int, group_id: UUID | None = None) -> UUID:
        """A group of an organisation, a new one or one that is known, as it is now."""
        group_id = group_id or uuid4()
        self.groups.append(
            enrollment_pb2.GroupChange(
                group_id=str(group_id),
                tenant_id=str(org_id),
                name=alias.title(),
                alias=alias,
                priority=priority,
            )
        )
        return group_id

    def put(self, device_id: UUID, org_id: UUID, *group_ids: UUID, key_id: str = "") -> None:
        """Puts a device into groups, and out of all others; it pins a key."""
        self.add(
            device_id,
            org_id,
            membership=enrollment_pb2.Membership(
                group_ids=map(str, sorted(group_ids)),
                revision=len(self.devices) + 1,
                policy_key_id=key_id,
            ),
        )

    def add(
        self,
        device_id: UUID,
        org_id: UUID,
        status: str = "active",
        enrolled_at: datetime | None = None,
        **more: Any,
    ) -> None:
        change = enrollment_pb2.DeviceChange(
            device_id=str(device_id), tenant_id=str(org_id), status=status, token_version=1, **more
        )
        if enrolled_at is not None:
            change.enrolled_at.FromDatetime(enrolled_at)
        self.devices.append(change)

    async def ListDeviceChanges(  # noqa: N802
        self, request: enrollment_pb2.ListDeviceChangesRequest, context: Any
    ) -> enrollment_pb2.ListDeviceChangesResponse:
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        if self.before_answer is not None:
            await self.before_answer()
        found = [] if request.restricted_only else self.devices[int(request.cursor or 0) :]
        return enrollment_pb2.ListDeviceChangesResponse(
            devices=found, next_cursor=str(len(self.devices))
        )

    async def ListGroupChanges(  # noqa: N802
        self, request: enrollment_pb2.ListGroupChangesRequest, context: Any
    ) -> enrollment_pb2.ListGroupChangesResponse:
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        return enrollment_pb2.ListGroupChangesResponse(
            groups=self.groups[int(request.cursor or 0) :], next_cursor=str(len(self.groups))
        )


@dataclass
class Neighbours:
    """The services that policy asks."""

    identity: FakeIdentity
    registry: FakeRegistry
    attestation: FakeAttestation


@asynccontextmanager
async def neighbours(kit: Kit) -> AsyncIterator[Neighbours]:
    """Serves the fakes where the kit's settings say that their originals are."""
    found = Neighbours(FakeIdentity(), FakeRegistry(), FakeAttestation(ORG.id))
    async with (
        served(
            kit.settings.identity_target,
            identity_pb2_grpc.add_IdentityInternalServiceServicer_to_server,
            found.identity,
        ),
        served(
            kit.settings.enrollment_target,
            enrollment_pb2_grpc.add_EnrollmentInternalServiceServicer_to_server,
            found.registry,
        ),
        AsyncExitStack() as more,
    ):
        if kit.context != "attestation":
            await more.enter_async_context(
                served(
                    kit.settings.attestation_target,
                    attestation_pb2_grpc.add_AttestationInternalServiceServicer_to_server,
                    found.attestation,
                )
            )
        yield found


class Admin:
    """A user of a tenant, as the gateway vouches for."""

    def __init__(self, channel: grpc.aio.Channel, tenant: UUID, role: str = "Admin") -> None:
        self._policies = policy_pb2_grpc.PolicyServiceStub(channel)
        self.metadata: tuple[tuple[str, str], ...] = (
            ("x-evergreen-kind", "user"),
            ("x-evergreen-subject", str(USER)),
            ("x-evergreen-tenant", str(tenant)),
            ("x-evergreen-role", role),
            ("x-evergreen-email", "admin@school.example"),
            ("x-evergreen-session", str(SESSION)),
            ("x-request-id", "request-1"),
            ("x-envoy-external-address", "192.0.2.1"),
        )

    async def call(self, method: str, **request: Any) -> Any:
        """Calls a method of PolicyService; `bundle` is given as JSON."""
        bundle = request.pop("bundle", ...)
        stub = getattr(self._policies, method)
        message = getattr(policy_pb2, f"{method}Request")(**request)
        if bundle is not ...:
            to_value(bundle, message.bundle)
        return await stub(message, metadata=self.metadata, timeout=60)

    async def create(self, org: UUID, bundle: Any, name: str = "Policy") -> policy_pb2.Policy:
        policy: policy_pb2.Policy = await self.call(
            "CreatePolicy", org_id=str(org), name=name, bundle=bundle
        )
        return policy

    async def published(self, org: UUID, bundle: Any) -> policy_pb2.Policy:
        created = await self.create(org, bundle)
        policy: policy_pb2.Policy = await self.call("PublishPolicy", id=created.id)
        return policy


class Device:
    """A device's calls, as the gateway vouches for."""

    def __init__(
        self,
        kit: Kit,
        channel: grpc.aio.Channel,
        device_id: UUID,
        org: UUID,
        *,
        token_version: int = 1,
        age: timedelta = timedelta(0),
    ) -> None:
        self.id = device_id
        issued = datetime.now(UTC) - age
        self.headers = {
            "x-evergreen-kind": "device",
            "x-evergreen-subject": str(device_id),
            "x-evergreen-tenant": str(org),
            "x-evergreen-token-version": str(token_version),
            "x-evergreen-token-issued": str(int(issued.timestamp())),
            "x-evergreen-token-expires": str(int((issued + TOKEN_LIFE).timestamp())),
            "x-request-id": "request-2",
        }
        self._kit = kit
        self._stub = device_pb2_grpc.DeviceServiceStub(channel)

    async def pull(self, version: str = "") -> httpx.Response:
        """The released agent's call."""
        return await self.post(json.dumps({"current_version": version}).encode())

    async def post(self, body: bytes) -> httpx.Response:
        path = self._kit.settings.http_listen.removeprefix("unix:")
        async with httpx.AsyncClient(
            # Without TLS, whose trust would be read each time.
            transport=httpx.AsyncHTTPTransport(uds=path, verify=False),
            base_url="http://policy",
            timeout=60,
        ) as client:
            return await client.post("/api/v1/devices/policy", content=body, headers=self.headers)

    async def pull_grpc(self, version: str = "") -> device_pb2.PolicyEnvelope:
        answer: device_pb2.PolicyEnvelope = await self._stub.PullPolicy(
            device_pb2.PullPolicyRequest(current_version=version),
            metadata=tuple(self.headers.items()),
            timeout=60,
        )
        return answer


def verified(pem: str, answer: httpx.Response) -> dict[str, Any]:
    """The ENVELOPE of an answer, checked as the released agent does it."""
    assert answer.status_code == 200, answer.text
    envelope: dict[str, Any] = unmarshal(ENVELOPE, answer.content)
    check_envelope(load_pinned_key(pem), envelope)
    return envelope


def bundle_of(policy: policy_pb2.Policy) -> Any:
    """The authored form of an answer, as JSON."""
    return from_value(policy.bundle)


@dataclass
class World:
    kit: Kit
    channel: grpc.aio.Channel
    neighbours: Neighbours
    admin: Admin
    database: TestDatabase

    async def events(self) -> list[dict[str, Any]]:
        connection = await self.database.superuser()
        rows = await connection.fetch("SELECT payload FROM policy.outbox ORDER BY id")
        await connection.close()
        return [json.loads(row["payload"]) for row in rows]

    async def pem(self) -> str:
        keys = policy_pb2_grpc.PolicyKeyServiceStub(self.channel)
        answer = await keys.GetPolicyKeysPem(policy_pb2.GetPolicyKeysPemRequest())
        return str(answer.data.decode())


@pytest_asyncio.fixture
async def world(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase
) -> AsyncIterator[World]:
    kit = await make_kit("policy", PolicySettings, tenants=TREE)
    async with neighbours(kit) as found:
        await serve(kit, build)
        channel = open_channel(kit.settings.grpc_listen, "test")
        await until_ready(channel)
        yield World(kit, channel, found, Admin(channel, ORG.id), database)
        await channel.close()
