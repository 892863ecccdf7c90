"""The attestation service on a real database, its neighbours faked at their sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest_asyncio

from evergreen.v1 import (
    attestation_pb2,
    attestation_pb2_grpc,
    device_pb2_grpc,
)
from servicekit.app import Kit
from servicekit.ids import now
from servicekit.rpc.channels import open_channel
from services.attestation.__main__ import build
from services.attestation.settings import AttestationSettings
from tests.conftest import MakeKit, ServeService, tenant
from tests.support import callers
from tests.support.neighbours import until_ready
from tests.support.paths import ROOT as TREE
from tests.support.policy import FakeRegistry, neighbours
from tests.support.servers import TestDatabase
from tests.support.stack import PATIENCE

ROOT = tenant(1, kind="root")
RESELLER = tenant(2, ROOT, "reseller")
ORG = tenant(3, RESELLER)
SISTER = tenant(4, RESELLER)
STRANGER = tenant(5, ROOT)

CORPUS = {
    case["name"]: case
    for case in (
        json.loads(path.read_text())
        for path in sorted((TREE / "tests/services/attestation/corpus").glob("*.json"))
    )
}
"""Evidence that the released agent sent, with software TPMs (swtpm) of eight configurations;
evidence of other keys of these TPMs and of keys in software; and changes of it. By name, in the
order of the files: `before` has the bodies that were sent first, `expect` the verdict and, where it
is `FAILED`, the first check that fails. The valid cases with a forged key are there on purpose:
nothing in their evidence tells them from a TPM's."""


def evidence_of(name: str) -> dict[str, Any]:
    """The evidence of a case of the corpus."""
    found: dict[str, Any] = json.loads(json.dumps(CORPUS[name]["body"]["evidence"]))
    return found


@dataclass
class Time:
    """A clock that a test sets forward."""

    ahead: timedelta = timedelta(0)

    def __call__(self) -> datetime:
        return now() + self.ahead


@dataclass
class World:
    """The service, and what a test says to it."""

    kit: Kit
    clock: Time
    registry: FakeRegistry
    database: TestDatabase
    http: httpx.AsyncClient
    devices: device_pb2_grpc.DeviceServiceStub
    admin: attestation_pb2_grpc.AttestationServiceStub
    internal: attestation_pb2_grpc.AttestationInternalServiceStub
    owner: callers.Metadata = field(default_factory=lambda: callers.user(ORG.id))

    def vouched(self, device_id: UUID | str, org: UUID = ORG.id) -> callers.Metadata:
        """A device with a token that outlives what a test's clock is set forward."""
        return callers.device(device_id, org, expires=now().timestamp() + 500 * 86400)

    async def post(
        self, device_id: UUID | str, body: Any, org: UUID = ORG.id, headers: Any = None
    ) -> httpx.Response:
        """The released agent's call."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        vouched = dict(self.vouched(device_id, org) if headers is None else headers)
        return await self.http.post("/api/v1/devices/attest", content=content, headers=vouched)

    async def attest(
        self, device_id: UUID | str, evidence: Any, org: UUID = ORG.id
    ) -> tuple[str, list[str]]:
        """The verdict over evidence, and the reasons."""
        body = {"device_id": str(device_id), "evidence": evidence}
        answer = await self.post(device_id, body, org)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        return told["verdict"], told["reasons"]

    def add(self, org: UUID = ORG.id, status: str = "active", **more: Any) -> UUID:
        """A device of the registry."""
        device_id = uuid4()
        self.change(device_id, org, status, **more)
        return device_id

    def change(self, device_id: UUID, org: UUID, status: str, **more: Any) -> None:
        """What the registry tells of a device next."""
        self.registry.add(device_id, org, status)
        for name, value in more.items():
            setattr(self.registry.devices[-1], name, value)

    async def get(
        self, device_id: UUID, by: callers.Metadata | None = None
    ) -> attestation_pb2.Attestation:
        """The latest verdict of a device."""
        found: attestation_pb2.Attestation = await self.admin.GetAttestation(
            attestation_pb2.GetAttestationRequest(device_id=str(device_id)),
            metadata=by or self.owner,
        )
        return found

    async def history(self, device_id: UUID, **request: Any) -> Any:
        """A page of the verdicts of a device."""
        return await self.admin.ListAttestationVerdicts(
            attestation_pb2.ListAttestationVerdictsRequest(device_id=str(device_id), **request),
            metadata=self.owner,
        )

    async def list(self, by: callers.Metadata | None = None, **request: Any) -> list[str]:
        """The ids of the devices of a list, of all its pages."""
        found: list[str] = []
        token = ""
        while True:
            page = await self.admin.ListAttestations(
                attestation_pb2.ListAttestationsRequest(page_token=token, **request),
                metadata=by or self.owner,
            )
            found += [device.device_id for device in page.attestations]
            if not (token := page.next_page_token):
                return found

    async def sql(self, query: str, *arguments: Any) -> list[Any]:
        """Rows, as a superuser sees them."""
        connection = await self.database.superuser()
        try:
            return list(await connection.fetch(query, *arguments))
        finally:
            await connection.close()

    async def events_of(self, kind: str) -> list[dict[str, Any]]:
        """The events about a kind of resource, the oldest first."""
        rows = await self.sql("SELECT payload FROM attestation.outbox ORDER BY id")
        found = [json.loads(row["payload"]) for row in rows]
        return [event for event in found if event["subject"].startswith(f"{kind}/")]

    async def events(self, name: str = "attestation.verdict_changed") -> list[dict[str, Any]]:
        """The events of a kind, the oldest first."""
        rows = await self.sql("SELECT payload FROM attestation.outbox ORDER BY id")
        found = [json.loads(row["payload"]) for row in rows]
        return [event for event in found if event["data"]["action"] == name]


async def eventually(check: Any) -> Any:
    """What a check answers as soon as that is something."""
    async with asyncio.timeout(PATIENCE):
        while not (found := await check()):
            await asyncio.sleep(0.05)
    return found


@pytest_asyncio.fixture
async def world(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase
) -> AsyncIterator[World]:
    """The service, with nothing in it."""
    clock = Time()
    made = await make_kit(
        "attestation", AttestationSettings, tenants=[ROOT, RESELLER, ORG, SISTER, STRANGER]
    )
    kit = replace(made, clock=clock)
    async with (
        neighbours(kit) as found,
        open_channel(kit.settings.grpc_listen, "test") as channel,
        open_channel(kit.settings.internal_listen, "telemetry") as inside,
    ):
        await serve(kit, build)
        await until_ready(channel)
        transport = httpx.AsyncHTTPTransport(
            uds=kit.settings.http_listen.removeprefix("unix:"), verify=False
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            service = World(
                kit=kit,
                clock=clock,
                registry=found.registry,
                database=database,
                http=http,
                devices=device_pb2_grpc.DeviceServiceStub(channel),
                admin=attestation_pb2_grpc.AttestationServiceStub(channel),
                internal=attestation_pb2_grpc.AttestationInternalServiceStub(inside),
            )
            # The registry's word about locked-out devices comes a moment after the start.
            while (await service.post(uuid4(), {})).status_code == 503:
                await asyncio.sleep(0.05)
            yield service
