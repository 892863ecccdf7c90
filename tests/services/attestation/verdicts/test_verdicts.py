"""Lists, files, the feed and the counts of verdicts."""

from __future__ import annotations

import csv
import io
import json
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from prometheus_client import REGISTRY

from contract.access import Role
from evergreen.v1 import attestation_pb2, attestation_pb2_grpc
from servicekit.rpc.channels import open_channel
from services.attestation.verdicts import service
from tests.support import callers
from tests.support.attestation import (
    ORG,
    RESELLER,
    SISTER,
    STRANGER,
    World,
    evidence_of,
    world,
)
from tests.support.refusals import refusal

__all__ = ["world"]

GOOD, SECOND, THIRD = "agent-m1-grub", "agent-m1-loc3", "agent-m2-grub"
BAD = {"nonce": ""}


async def fleet(world: World) -> dict[str, UUID]:
    """Devices with all kinds of verdicts, as soon as the service has heard of all of them."""
    devices = {
        "good": world.add(serial="SN-1", model="Model"),
        "failed": world.add(serial="=SN-2"),
        "none": world.add(),
        "prepared": world.add(status="prepared"),
        "sister": world.add(SISTER.id),
        "pending": world.add(status="pending"),
        "gone": world.add(status="decommissioned"),
    }
    assert (await world.attest(devices["good"], evidence_of(GOOD)))[0] == "SELF_CONSISTENT"
    assert (await world.attest(devices["failed"], BAD))[0] == "FAILED"
    await world.attest(devices["sister"], evidence_of(SECOND), SISTER.id)
    return devices


async def test_lists_have_the_devices_in_use_of_the_callers_subtree(world: World) -> None:
    """By id, over pages, by verdict, reason and organisation; NONE without evidence."""
    devices = await fleet(world)
    mine = sorted(str(devices[n]) for n in ("good", "failed", "none", "prepared"))
    assert await world.list() == mine
    assert await world.list(page_size=1) == mine
    for role in Role:
        assert await world.list(callers.user(ORG.id, role)) == mine
    all_of_them = sorted([*mine, str(devices["sister"])])
    reseller = callers.user(RESELLER.id)
    assert await world.list(reseller) == all_of_them
    assert await world.list(reseller, org_id=str(SISTER.id)) == [str(devices["sister"])]
    assert await world.list(callers.user(STRANGER.id)) == []
    named = attestation_pb2.ListAttestationsRequest(org_id=str(ORG.id))
    call = world.admin.ListAttestations(named, metadata=callers.user(STRANGER.id))
    assert (await refusal(call)).code is grpc.StatusCode.NOT_FOUND
    for wanted, names in [
        ({"verdict": "SELF_CONSISTENT"}, {"good"}),
        ({"verdict": "FAILED"}, {"failed"}),
        ({"verdict": "NONE"}, {"none", "prepared"}),
        ({"verdict": "VERIFIED"}, set()),
        ({"reason": "NONCE_SIZE"}, {"failed"}),
        ({"reason": "AK_NOT_BOUND"}, {"good"}),
        ({"verdict": "FAILED", "reason": "AK_NOT_BOUND"}, set()),
    ]:
        assert await world.list(**wanted) == sorted(str(devices[name]) for name in names), wanted
    odd = attestation_pb2.ListAttestationsRequest(verdict="GOOD")
    refused = await refusal(world.admin.ListAttestations(odd, metadata=world.owner))
    assert "verdict" in refused.body["message"]


async def test_evidence_grows_stale(world: World) -> None:
    """After 14 days without new evidence; a device that never had any is not stale."""
    devices = await fleet(world)
    assert await world.list(stale=True) == []
    world.clock.ahead = timedelta(days=14, minutes=1)
    await world.attest(devices["failed"], BAD | {"pcrs": {"0": "1"}})
    assert await world.list(stale=True) == [str(devices["good"])]
    assert (await world.get(devices["good"])).stale
    assert not (await world.get(devices["failed"])).stale
    assert not (await world.get(devices["none"])).stale


async def test_a_device_alone_has_its_registers_and_its_history(world: World) -> None:
    """The newest first, over pages; of another subtree it does not exist."""
    devices = await fleet(world)
    device = devices["good"]
    await world.attest(device, BAD)
    await world.attest(device, evidence_of(THIRD))
    shown = await world.get(device)
    assert (shown.serial_number, shown.model, shown.bank) == ("SN-1", "Model", "sha256")
    assert dict(shown.pcrs) == evidence_of(THIRD)["pcrs"]
    assert shown.org_id == str(ORG.id)
    first = await world.history(device, page_size=2)
    assert [v.verdict for v in first.verdicts] == ["SELF_CONSISTENT", "FAILED"]
    assert first.verdicts[0].attested_at == shown.attested_at
    last = await world.history(device, page_size=2, page_token=first.next_page_token)
    assert [dict(v.pcrs) for v in last.verdicts] == [evidence_of(GOOD)["pcrs"]]
    assert last.next_page_token == ""
    assert (await world.get(devices["gone"])).verdict == "NONE"
    request = attestation_pb2.ListAttestationVerdictsRequest(device_id=str(device))
    for stranger in (callers.user(STRANGER.id), callers.user(SISTER.id)):
        alone = attestation_pb2.GetAttestationRequest(device_id=str(device))
        for call in (
            world.admin.GetAttestation(alone, metadata=stranger),
            world.admin.ListAttestationVerdicts(request, metadata=stranger),
        ):
            assert (await refusal(call)).code is grpc.StatusCode.NOT_FOUND
    missing = attestation_pb2.GetAttestationRequest(device_id=str(uuid4()))
    call = world.admin.GetAttestation(missing, metadata=world.owner)
    assert (await refusal(call)).code is grpc.StatusCode.NOT_FOUND


async def exported(world: World, by: callers.Metadata, **request: Any) -> str:
    chunks = world.admin.ExportAttestations(
        attestation_pb2.ExportAttestationsRequest(**request), metadata=by
    )
    return b"".join([chunk.data async for chunk in chunks]).decode()


async def test_verdicts_are_exported(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a list has them, in CSV that no spreadsheet takes for formulas, and in JSON; recorded."""
    monkeypatch.setattr(service, "MAX_SIZE", 2)
    devices = await fleet(world)
    text = await exported(world, world.owner, format="csv")
    rows = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"))))
    assert [row["deviceId"] for row in rows] == await world.list()
    failed = next(row for row in rows if row["deviceId"] == str(devices["failed"]))
    assert failed["serialNumber"].startswith("'=")
    assert (failed["verdict"], failed["reasons"], failed["stale"]) == (
        "FAILED",
        "NONCE_SIZE",
        "false",
    )
    text = await exported(world, world.owner, verdict="SELF_CONSISTENT")
    (good,) = json.loads(text)
    assert good["reasons"] == ["DEVICE_CHOSE_NONCE", "AK_NOT_BOUND"]
    assert good["deviceId"] == str(devices["good"])
    (listed,) = (
        await world.admin.ListAttestations(
            attestation_pb2.ListAttestationsRequest(verdict="SELF_CONSISTENT"),
            metadata=world.owner,
        )
    ).attestations
    # All that the description of the API has of a verdict, also what is empty.
    assert good == MessageToDict(listed, always_print_fields_with_no_presence=True)
    assert json.loads(await exported(world, callers.user(STRANGER.id))) == []
    events = await world.events("attestation.attestations_exported")
    assert events[1]["data"]["after"] == {
        "format": "json",
        "filter": {"verdict": "SELF_CONSISTENT"},
    }


async def test_telemetry_follows_verdicts_and_nobody_else(world: World) -> None:
    """The feed tells of each change; of devices without evidence it does not."""
    devices = await fleet(world)
    request = attestation_pb2.ListVerdictChangesRequest()
    page = await world.internal.ListVerdictChanges(request)
    told = {change.device_id: change.verdict for change in page.verdicts}
    assert told == {
        str(devices["good"]): "SELF_CONSISTENT",
        str(devices["failed"]): "FAILED",
        str(devices["sister"]): "SELF_CONSISTENT",
    }
    request.cursor, request.wait_seconds = page.next_cursor, 4
    waiting = world.internal.ListVerdictChanges(request)
    await world.attest(devices["none"], evidence_of(THIRD))
    (change,) = (await waiting).verdicts
    assert (change.device_id, change.tenant_id) == (str(devices["none"]), str(ORG.id))
    assert change.HasField("attested_at")
    async with open_channel(world.kit.settings.internal_listen, "audit") as channel:
        other = attestation_pb2_grpc.AttestationInternalServiceStub(channel)
        refused = await refusal(other.ListVerdictChanges(request))
    assert refused.code is grpc.StatusCode.PERMISSION_DENIED


async def test_devices_are_counted_by_verdict(world: World) -> None:
    """Those in use; the metrics of Prometheus have them a minute later at most."""
    await fleet(world)
    await world.list()
    verdicts = service.Verdicts(
        world.kit.database,
        world.kit.outbox,
        world.kit.tenants,
        None,  # type: ignore[arg-type]  # counting asks nobody
        timedelta(days=14),
        world.clock,
    )
    world.clock.ahead = timedelta(days=20)
    await verdicts.count()

    def value(name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(name, labels)

    devices = "evergreen_attestation_devices"
    assert value(devices, verdict="SELF_CONSISTENT") == 2
    assert value(devices, verdict="FAILED") == 1
    assert value(devices, verdict="NONE") == 2
    assert value(devices, verdict="VERIFIED") == 0
    assert value("evergreen_attestation_stale_devices") == 3
    assert (value("evergreen_attestation_evidence_total", outcome="FAILED") or 0) >= 1
    assert (value("evergreen_attestation_failures_total", outcome="NONCE_SIZE") or 0) >= 1
