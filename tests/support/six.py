"""All six services in the test's process, on one database, without a gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import grpc
import httpx
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value

from contract.access import Role
from contract.contexts import CONTEXTS
from evergreen.v1 import (
    audit_pb2_grpc,
    enrollment_pb2,
    enrollment_pb2_grpc,
    identity_pb2,
    identity_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    telemetry_pb2_grpc,
)
from servicekit.app import Kit, Running
from servicekit.settings import ServiceSettings
from services.attestation import __main__ as attestation
from services.attestation.settings import AttestationSettings
from services.audit import __main__ as audit
from services.audit.settings import AuditSettings
from services.enrollment import __main__ as enrollment
from services.enrollment.settings import EnrollmentSettings
from services.identity import __main__ as identity
from services.identity.settings import IdentitySettings
from services.policy import __main__ as policy
from services.policy.settings import PolicySettings
from services.telemetry import __main__ as telemetry
from services.telemetry.settings import TelemetrySettings
from tests.conftest import MakeKit, ServeService
from tests.e2e.world import DOCUMENT
from tests.support import callers
from tests.support.identity import OWNER, PASSWORD, as_caller
from tests.support.servers import TestDatabase

_SERVICES: dict[str, tuple[ModuleType, type[ServiceSettings]]] = {
    "identity": (identity, IdentitySettings),
    "enrollment": (enrollment, EnrollmentSettings),
    "policy": (policy, PolicySettings),
    "telemetry": (telemetry, TelemetrySettings),
    "attestation": (attestation, AttestationSettings),
    "audit": (audit, AuditSettings),
}

_AUDIT_LOG = {
    "audit.entry",
    "audit.chain_head",
    "audit.tree_leaf",
    "audit.tree_cursor",
    "audit.alert_position",
}
"""It keeps what was done in an organisation that is gone, and who read how far."""


@dataclass
class Device:
    """A device as its agent knows itself."""

    id: str
    org_id: str
    serial: str
    version: int = 1

    @property
    def metadata(self) -> callers.Metadata:
        return callers.device(self.id, self.org_id, version=self.version)


@dataclass
class Six:
    """The running product without its gateway, and stubs to call it."""

    database: TestDatabase
    kits: dict[str, Kit]
    agents: dict[str, httpx.AsyncClient]
    auth: identity_pb2_grpc.AuthServiceAsyncStub
    tenants: identity_pb2_grpc.TenantServiceAsyncStub
    users: identity_pb2_grpc.UserServiceAsyncStub
    credentials: identity_pb2_grpc.EventCredentialServiceAsyncStub
    tokens: enrollment_pb2_grpc.EnrollmentTokenServiceAsyncStub
    registry: enrollment_pb2_grpc.DeviceRegistryServiceAsyncStub
    policies: policy_pb2_grpc.PolicyServiceAsyncStub
    inventory: telemetry_pb2_grpc.InventoryServiceAsyncStub
    events: telemetry_pb2_grpc.EventServiceAsyncStub
    audit: audit_pb2_grpc.AuditServiceAsyncStub
    services: dict[str, Running]
    start: Callable[[str], Awaitable[Running]]
    keys: dict[str, str] = field(default_factory=dict)
    """A pre-shared key of each organisation."""

    async def stop(self, context: str) -> None:
        """Stops a service, in the middle of what it does."""
        await self.services[context].stop(0)

    async def start_again(self, context: str) -> None:
        """Starts a service that was stopped."""
        self.services[context] = await self.start(context)

    async def login(self, email: str = OWNER, password: str = PASSWORD) -> callers.Metadata:
        """The metadata that the gateway would make of a fresh session's token."""
        session = await self.auth.Login(
            identity_pb2.LoginRequest(email=email, password=password),
            metadata=callers.anonymous(),
        )
        return as_caller(session.token)

    async def tenant(self, by: callers.Metadata, **more: Any) -> identity_pb2.Tenant:
        """A new tenant."""
        return await self.tenants.CreateTenant(
            identity_pb2.CreateTenantRequest(name=f"Tenant {uuid4().hex[:8]}", **more), metadata=by
        )

    async def org(self, by: callers.Metadata, **more: Any) -> identity_pb2.Tenant:
        """A new organisation with one of everything but devices."""
        org = await self.tenant(by, **more)
        token = await self.tokens.CreateEnrollmentToken(
            enrollment_pb2.CreateEnrollmentTokenRequest(
                org_id=org.id, name="Batch", serials=["listed"] if more.get("listed") else []
            ),
            metadata=by,
        )
        self.keys[org.id] = token.pre_shared_key
        made = await self.policies.CreatePolicy(
            policy_pb2.CreatePolicyRequest(
                name="Policy", org_id=org.id, bundle=ParseDict(DOCUMENT, Value())
            ),
            metadata=by,
        )
        await self.policies.PublishPolicy(policy_pb2.PublishPolicyRequest(id=made.id), metadata=by)
        return org

    async def user(self, by: callers.Metadata, tenant_id: str, role: Role = Role.OWNER) -> str:
        """A new user; answers the address."""
        email = f"{uuid4().hex[:12]}@school.example"
        await self.users.CreateUser(
            identity_pb2.CreateUserRequest(
                email=email, role=role.value, org_id=tenant_id, password=PASSWORD
            ),
            metadata=by,
        )
        return email

    async def enroll(self, key: str, serial: str = "") -> httpx.Response:
        """The released agent's call."""
        body = {
            "serial": serial or f"SN-{uuid4().hex[:10]}",
            "pre_shared_key": key,
            "model": "Framework 12",
            "cpu_model": "i3",
            "cpu_count": 6,
            "total_ram_bytes": 8 << 30,
            "has_tpm": True,
        }
        return await self._post("enrollment", "enroll", callers.anonymous(), body)

    async def device(self, org: identity_pb2.Tenant, serial: str = "") -> Device:
        """An enrolled device that has called every service."""
        serial = serial or f"SN-{uuid4().hex[:10]}"
        answer = await self.enroll(self.keys[org.id], serial)
        assert answer.status_code == 200, answer.text
        device = Device(answer.json()["device_id"], org.id, serial)
        assert await self.works(device) == {"policy": 304, "telemetry": 200}
        return device

    async def works(self, device: Device) -> dict[str, int]:
        """What the services answer to a device's poll and to its report."""
        poll = await self._post(
            "policy",
            "policy",
            device.metadata,
            {"device_id": device.id, "current_version": "999999999"},
        )
        events = [
            {
                "id": str(uuid4().int % 10**18 + 1_700_000_000_000_000_000),
                "type": "test.event",
                "severity": "info",
                "timestamp": "2026-11-01T10:00:00Z",
                "payload": {"message": "a report"},
            },
            {"id": "", "type": ""},
        ]
        report = await self._post(
            "telemetry", "events", device.metadata, {"device_id": device.id, "events": events}
        )
        return {"policy": poll.status_code, "telemetry": report.status_code}

    async def _post(
        self, context: str, what: str, who: callers.Metadata, body: Any
    ) -> httpx.Response:
        return await self.agents[context].post(
            f"/api/v1/devices/{what}", content=json.dumps(body).encode(), headers=dict(who)
        )

    async def sql(self, statement: str, *arguments: Any) -> list[Any]:
        """Runs a statement as a superuser."""
        connection = await self.database.superuser()
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    async def rows_of(self, tenant_id: str) -> dict[str, int]:
        """In which tables there are how many rows of a tenant, as the catalogue says.

        A row is the tenant's when a column of it, or of a row that it refers to, has its id.
        """
        connection = await self.database.superuser()
        try:
            found: dict[str, int] = {}
            for table, column in await connection.fetch(
                "SELECT c.oid::regclass::text, a.attname FROM pg_class c"
                " JOIN pg_namespace n ON n.oid = c.relnamespace"
                " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"
                " AND NOT a.attisdropped AND a.atttypid = ANY ($2::regtype[])"
                " WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition"
                " AND n.nspname = ANY ($1)",
                list(CONTEXTS),
                ["uuid", "text", "json", "bytea"],
            ):
                if table in _AUDIT_LOG or table.endswith("tombstone"):
                    continue
                value = (
                    f"convert_from({column}, 'UTF8')"
                    if column == "payload" and table == ("audit.dead_letter")
                    else f"{column}::text"
                )
                count = await connection.fetchval(
                    f"SELECT count(*) FROM {table} WHERE strpos({value}, $1) > 0", tenant_id
                )
                if count:
                    found[f"{table}.{column}"] = count
            return found
        finally:
            await connection.close()


@asynccontextmanager
async def running(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    directory: Path,
    **identity_settings: Any,
) -> AsyncIterator[Six]:
    """Starts the six services."""
    secret = directory / "password"
    secret.write_text(PASSWORD + "\n")
    more: dict[str, dict[str, Any]] = {
        "identity": {
            "admin_email": OWNER,
            "admin_password_file": secret,
            **identity_settings,
        }
    }
    kits: dict[str, Kit] = {}
    services: dict[str, Running] = {}

    async def start(context: str) -> Running:
        module, settings = _SERVICES[context]
        kit = await make_kit(context, settings, **more.get(context, {}))
        kits[context] = kit
        found = await serve(kit, module.build)
        await kit.tenants.follower.refresh()
        return found

    async with AsyncExitStack() as cleanup:
        channels = {}
        agents = {}
        for context in _SERVICES:
            services[context] = await start(context)
            kit = kits[context]
            channels[context] = await cleanup.enter_async_context(
                grpc.aio.insecure_channel(kit.settings.grpc_listen)
            )
            agents[context] = await cleanup.enter_async_context(
                httpx.AsyncClient(
                    transport=httpx.AsyncHTTPTransport(
                        uds=kit.settings.http_listen.removeprefix("unix:"), verify=False
                    ),
                    base_url=f"http://{context}",
                    timeout=60,
                )
            )
        yield Six(
            database,
            kits,
            agents,
            identity_pb2_grpc.AuthServiceStub(channels["identity"]),
            identity_pb2_grpc.TenantServiceStub(channels["identity"]),
            identity_pb2_grpc.UserServiceStub(channels["identity"]),
            identity_pb2_grpc.EventCredentialServiceStub(channels["identity"]),
            enrollment_pb2_grpc.EnrollmentTokenServiceStub(channels["enrollment"]),
            enrollment_pb2_grpc.DeviceRegistryServiceStub(channels["enrollment"]),
            policy_pb2_grpc.PolicyServiceStub(channels["policy"]),
            telemetry_pb2_grpc.InventoryServiceStub(channels["telemetry"]),
            telemetry_pb2_grpc.EventServiceStub(channels["telemetry"]),
            audit_pb2_grpc.AuditServiceStub(channels["audit"]),
            services,
            start,
        )


async def eventually(
    check: Callable[[], Awaitable[Any]], seconds: float = 60, pause: float = 0.1
) -> Any:
    """Polls until a check's answer is true; answers it.

    Raises:
        AssertionError: when it is not within `seconds`.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while not (found := await check()):
        assert loop.time() < until, "it did not come"
        await asyncio.sleep(pause)
    return found
