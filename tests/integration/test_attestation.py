"""Attestation: this release offers none of its calls, to those who may call them."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import httpx

from evergreen.v1 import attestation_pb2, attestation_pb2_grpc, device_pb2, device_pb2_grpc
from servicekit.access import Role
from servicekit.channels import open_channel
from services.attestation.__main__ import build
from services.attestation.settings import AttestationSettings
from tests import callers
from tests.conftest import MakeKit, ServeService, tenant
from tests.integration.policy import neighbours
from tests.integration.refusals import refusal

ROOT = tenant(1, kind="root")
ORG = tenant(2, ROOT)
EVIDENCE = device_pb2.AttestationEvidence(nonce=b"n")


async def test_calls_are_unimplemented_for_those_who_may_call(
    make_kit: MakeKit, serve: ServeService
) -> None:
    """Without credentials 401, with the wrong ones 403, else 501, in the one error shape."""
    kit = await make_kit("attestation", AttestationSettings, tenants=[ROOT, ORG])
    device_id = uuid4()
    owner, auditor = callers.user(ORG.id), callers.user(ORG.id, Role.AUDITOR)
    device = callers.device(device_id, ORG.id)
    async with neighbours(kit), open_channel(kit.settings.grpc_listen, "test") as channel:
        await serve(kit, build)
        api = attestation_pb2_grpc.AttestationServiceStub(channel)
        devices = device_pb2_grpc.DeviceServiceStub(channel)
        listing = attestation_pb2.ListAttestationsRequest()
        creating = attestation_pb2.CreateReferenceValueRequest(
            org_id=str(ORG.id), name="n", pcrs={"0": "00"}
        )
        own = device_pb2.AttestBootRequest(device_id=str(device_id), evidence=EVIDENCE)
        other = device_pb2.AttestBootRequest(device_id=str(uuid4()), evidence=EVIDENCE)
        # The registry's word about locked-out devices comes a moment after the start.
        while (await refusal(devices.AttestBoot(own, metadata=device))).body["code"] == 14:
            await asyncio.sleep(0.05)
        expected = [
            (api.ListAttestations(listing, metadata=callers.anonymous()), "UNAUTHENTICATED"),
            (api.ListAttestations(listing, metadata=device), "UNAUTHENTICATED"),
            (api.ListAttestations(listing, metadata=owner), "UNIMPLEMENTED"),
            (api.CreateReferenceValue(creating, metadata=auditor), "PERMISSION_DENIED"),
            (api.CreateReferenceValue(creating, metadata=owner), "UNIMPLEMENTED"),
            (devices.AttestBoot(own, metadata=owner), "UNAUTHENTICATED"),
            (devices.AttestBoot(other, metadata=device), "PERMISSION_DENIED"),
            (devices.AttestBoot(own, metadata=device), "UNIMPLEMENTED"),
        ]
        for call, status in expected:
            found = await refusal(call)
            assert found.body["code"] == found.code.value[0]
            assert found.body["status"] == status
        transport = httpx.AsyncHTTPTransport(uds=kit.settings.http_listen.removeprefix("unix:"))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            body = {"device_id": str(device_id), "evidence": {"nonce": "AA==", "pcrs": {}}}
            for headers, sent, status_code in [
                (callers.anonymous(), body, 401),
                (device, body | {"device_id": str(uuid4())}, 403),
                (device, {}, 400),
                (device, body, 501),
            ]:
                answer = await http.post("/api/v1/devices/attest", json=sent, headers=dict(headers))
                assert answer.status_code == status_code, answer.text
                assert answer.json()["message"] == answer.json()["error"]
