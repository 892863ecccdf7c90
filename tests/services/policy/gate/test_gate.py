"""What an organisation asks of its devices' boots, and who falls short of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
from prometheus_client import REGISTRY

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.rpc.channels import open_channel
from services.policy.gate.service import note_short
from services.policy.syncs import store as syncs_store
from tests.support.policy import (
    ORG,
    RESELLER,
    ROOT,
    SISTER,
    STRANGER,
    Admin,
    World,
    world,
)
from tests.support.refusals import refusal
from tests.support.stack import PATIENCE

__all__ = ["world"]

_AGO = timedelta(hours=2)


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Waits until something is so."""
    async with asyncio.timeout(PATIENCE):
        while not await check():
            await asyncio.sleep(0.05)


async def fleet(world: World) -> dict[str, UUID]:
    """Devices with all kinds of verdicts, as soon as policy has heard of them."""
    now = datetime.now(UTC)
    devices = {}
    for verdict in ("FAILED", "SELF_CONSISTENT", "KNOWN_TPM", "VERIFIED"):
        devices[verdict] = uuid4()
        world.neighbours.registry.add(devices[verdict], ORG.id, enrolled_at=now)
        world.neighbours.attestation.tell(devices[verdict], verdict)
    devices["old"], devices["new"] = uuid4(), uuid4()
    world.neighbours.registry.add(devices["old"], ORG.id, enrolled_at=now - _AGO)
    world.neighbours.registry.add(devices["new"], ORG.id, enrolled_at=now)
    for status in ("pending", "prepared", "decommissioned"):
        out = uuid4()
        world.neighbours.registry.add(out, ORG.id, status, enrolled_at=now - _AGO)
        world.neighbours.attestation.tell(out, "FAILED")
    theirs = uuid4()
    world.neighbours.registry.add(theirs, SISTER.id, enrolled_at=now - _AGO)
    world.neighbours.attestation.tell(theirs, "FAILED", SISTER.id)

    async def heard() -> bool:
        of_all = await world.admin.call("PreviewAttestationGate", at_least="VERIFIED")
        sister = await Admin(world.channel, SISTER.id).call("PreviewAttestationGate")
        return (
            of_all.devices_in_use == 6
            and {d.verdict for d in of_all.devices} > {"KNOWN_TPM", "SELF_CONSISTENT"}
            and sister.falling_short == 1
        )

    await eventually(heard)
    return devices


async def test_nothing_is_asked_until_somebody_says_so(world: World) -> None:
    """Off; what is said counts from then on, each field by itself, and is told once."""
    gate = await world.admin.call("GetAttestationGate")
    assert (gate.org_id, gate.mode, gate.at_least, gate.grace_hours) == (
        str(ORG.id),
        "OFF",
        "SELF_CONSISTENT",
        24,
    )
    assert not gate.HasField("updated_at")
    first = await world.admin.call("UpdateAttestationGate", mode="OBSERVE", at_least="KNOWN_TPM")
    assert (first.mode, first.at_least, first.grace_hours) == ("OBSERVE", "KNOWN_TPM", 24)
    assert first.HasField("updated_at")
    assert first.etag != gate.etag
    assert await world.admin.call("UpdateAttestationGate", mode="OBSERVE") == first
    assert await world.admin.call("GetAttestationGate", org_id=str(ORG.id)) == first
    second = await world.admin.call("UpdateAttestationGate", grace_hours=0, etag=first.etag)
    assert (second.mode, second.grace_hours) == ("OBSERVE", 0)
    stale = await refusal(world.admin.call("UpdateAttestationGate", mode="OFF", etag=first.etag))
    assert stale.code is grpc.StatusCode.ABORTED
    told = [event["data"] for event in await world.events()]
    assert [(event["action"], event["resource"]) for event in told] == [
        ("policy.attestation_gate_updated", f"tenants/{ORG.id}/attestation-gate")
    ] * 2
    rest = {"groupId": None, "otherwisePolicyId": None, "maxPercent": 0, "held": ""}
    before = {"mode": "OFF", "atLeast": "SELF_CONSISTENT", "graceHours": 24}
    assert told[0]["before"] == before | rest
    after = {"mode": "OBSERVE", "atLeast": "KNOWN_TPM", "graceHours": 0}
    assert told[1]["after"] == after | rest


WRONG_GATES = [
    ("mode", "ENFORCED"),
    ("mode", "observe"),
    ("at_least", "FAILED"),
    ("at_least", ""),
    ("grace_hours", -1),
    ("grace_hours", 8761),
]


async def test_a_wrong_gate_is_refused_by_its_field(world: World) -> None:
    """Everything has a verdict that fails; nothing changes."""
    for field, value in WRONG_GATES:
        refused = await refusal(world.admin.call("UpdateAttestationGate", **{field: value}))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT, (field, value)
        assert {"mode": "mode", "at_least": "atLeast", "grace_hours": "graceHours"}[
            field
        ] in refused.body["message"]
        assert not (await world.admin.call("GetAttestationGate")).HasField("updated_at")


async def test_each_sees_the_gates_of_its_subtree(world: World) -> None:
    """An Auditor reads, and says nothing; others' organisations do not exist; a tenant that is no
    organisation has no gate."""
    await world.admin.call("UpdateAttestationGate", mode="OBSERVE")
    for user in (
        Admin(world.channel, ORG.id, "Auditor"),
        Admin(world.channel, RESELLER.id, "Auditor"),
        Admin(world.channel, ROOT.id, "Owner"),
    ):
        shown = await user.call("GetAttestationGate", org_id=str(ORG.id))
        assert shown.mode == "OBSERVE"
        await user.call("PreviewAttestationGate", org_id=str(ORG.id))
    auditor = Admin(world.channel, ORG.id, "Auditor")
    refused = await refusal(auditor.call("UpdateAttestationGate", mode="OFF"))
    assert refused.code is grpc.StatusCode.PERMISSION_DENIED
    for method in ("GetAttestationGate", "UpdateAttestationGate", "PreviewAttestationGate"):
        for stranger in (STRANGER, SISTER):
            call = Admin(world.channel, stranger.id).call(method, org_id=str(ORG.id))
            assert (await refusal(call)).code is grpc.StatusCode.NOT_FOUND
        refused = await refusal(Admin(world.channel, RESELLER.id).call(method))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    sister = await Admin(world.channel, SISTER.id).call("GetAttestationGate")
    assert sister.mode == "OFF"


async def test_a_preview_says_who_would_fall_short(world: World) -> None:
    """Devices in use below a verdict, and those without evidence once their time is over."""
    devices = await fleet(world)
    never, wanted = {"old"}, {"SELF_CONSISTENT": {"FAILED"}}
    wanted["KNOWN_TPM"] = wanted["SELF_CONSISTENT"] | {"SELF_CONSISTENT"}
    wanted["VERIFIED"] = wanted["KNOWN_TPM"] | {"KNOWN_TPM"}
    for verdict, names in wanted.items():
        found = await world.admin.call("PreviewAttestationGate", at_least=verdict, grace_hours=1)
        ids = sorted(str(devices[name]) for name in names | never)
        assert [device.device_id for device in found.devices] == ids
        assert (found.devices_in_use, found.falling_short, found.in_grace) == (6, len(ids), 1)
        assert (found.at_least, found.grace_hours, found.next_page_token) == (verdict, 1, "")
    patient = await world.admin.call("PreviewAttestationGate")
    assert [device.verdict for device in patient.devices] == ["FAILED"]
    assert (patient.at_least, patient.grace_hours) == ("SELF_CONSISTENT", 24)
    assert patient.in_grace == 2
    hasty = {"at_least": "VERIFIED", "grace_hours": 0, "page_size": 3}
    page = await world.admin.call("PreviewAttestationGate", **hasty)
    more = await world.admin.call(
        "PreviewAttestationGate", page_token=page.next_page_token, **hasty
    )
    assert (page.falling_short, more.falling_short, more.next_page_token) == (5, 5, "")
    shown = {device.device_id: device for device in [*page.devices, *more.devices]}
    assert shown.keys() == {str(id_) for name, id_ in devices.items() if name != "VERIFIED"}
    old, failed = shown[str(devices["old"])], shown[str(devices["FAILED"])]
    assert (old.verdict, old.org_id, old.HasField("attested_at")) == ("NONE", str(ORG.id), False)
    assert failed.HasField("attested_at")
    assert failed.HasField("enrolled_at")
    # What the organisation asks is what a preview begins with.
    await world.admin.call("UpdateAttestationGate", at_least="VERIFIED", grace_hours=0)
    assert (await world.admin.call("PreviewAttestationGate")).falling_short == 5


async def test_the_metric_counts_those_that_are_observed(world: World) -> None:
    """Not those of organisations that ask for nothing, nor those of whom nothing is known yet."""
    await fleet(world)

    async def short() -> float | None:
        await note_short(world.kit.database, world.kit.clock())
        return REGISTRY.get_sample_value(
            "evergreen_policy_attestation_short_devices", {"mode": "OBSERVE"}
        )

    assert await short() == 0
    await world.admin.call("UpdateAttestationGate", mode="OBSERVE", at_least="KNOWN_TPM")
    assert await short() == 2
    await world.admin.call("UpdateAttestationGate", grace_hours=1)
    assert await short() == 3
    await Admin(world.channel, SISTER.id).call("UpdateAttestationGate", mode="OBSERVE")
    assert await short() == 4
    await world.admin.call("UpdateAttestationGate", mode="OFF")
    assert await short() == 1


async def test_verdicts_are_followed(world: World) -> None:
    """The latest one counts; of a deleted device nothing is left, and one that cannot be read stops
    nothing."""
    devices = await fleet(world)
    attestation, registry = world.neighbours.attestation, world.neighbours.registry

    async def short() -> set[str]:
        found = await world.admin.call("PreviewAttestationGate")
        return {device.device_id for device in found.devices}

    assert await short() == {str(devices["FAILED"])}
    attestation.tell(devices["FAILED"], "VERIFIED")
    attestation.verdicts[-1].device_id = "no id"
    attestation.tell(devices["FAILED"], "VERIFIED")
    attestation.tell(devices["VERIFIED"], "FAILED")

    async def changed() -> bool:
        return await short() == {str(devices["VERIFIED"])}

    await eventually(changed)
    registry.add(devices["VERIFIED"], ORG.id, "decommissioned", deleted=True)

    async def left() -> list[Any]:
        connection = await world.database.superuser()
        try:
            return list(
                await connection.fetch(
                    "SELECT FROM policy.device_verdict WHERE device_id = $1", devices["VERIFIED"]
                )
            )
        finally:
            await connection.close()

    async def gone() -> bool:
        return await left() == []

    await eventually(gone)
    # A verdict that comes late does not bring it back.
    attestation.tell(devices["VERIFIED"], "FAILED")
    attestation.tell(devices["FAILED"], "FAILED")

    async def heard() -> bool:
        return await short() == {str(devices["FAILED"])}

    await eventually(heard)
    assert await left() == []


async def test_telemetry_is_told_of_gates(world: World) -> None:
    """The feed tells of each gate as it is, to telemetry alone."""
    other = Admin(world.channel, SISTER.id)
    await world.admin.call("UpdateAttestationGate", mode="OBSERVE", at_least="VERIFIED")
    await other.call("UpdateAttestationGate", grace_hours=5)
    request = policy_pb2.ListAttestationGateChangesRequest(limit=1)
    async with open_channel(world.kit.settings.internal_listen, "telemetry") as channel:
        stub = policy_pb2_grpc.PolicyInternalServiceStub(channel)

        async def read() -> list[tuple[str, str, int]]:
            found, more = [], True
            while more:
                page = await stub.ListAttestationGateChanges(request)
                found += [(gate.org_id, gate.mode, gate.grace_hours) for gate in page.gates]
                request.cursor, more = page.next_cursor, page.more
            return found

        assert await read() == [(str(ORG.id), "OBSERVE", 24), (str(SISTER.id), "OFF", 5)]
        # What was written while another transaction ran is told until that is over.
        async with asyncio.timeout(PATIENCE):
            while await read():
                await asyncio.sleep(0.05)
        request.wait_seconds = 20
        asked = asyncio.ensure_future(stub.ListAttestationGateChanges(request))
        await world.admin.call("UpdateAttestationGate", mode="OFF")
        (told,) = (await asked).gates
        assert (told.org_id, told.mode, told.at_least) == (str(ORG.id), "OFF", "VERIFIED")
    async with open_channel(world.kit.settings.internal_listen, "audit") as channel:
        call = policy_pb2_grpc.PolicyInternalServiceStub(channel).ListAttestationGateChanges(
            request
        )
        assert (await refusal(call)).code is grpc.StatusCode.PERMISSION_DENIED


async def test_devices_of_the_last_release_are_read_once_more(world: World) -> None:
    """It did not keep which groups they are in, and moved the positions of its own alone."""
    device = uuid4()
    world.neighbours.registry.add(device, ORG.id, enrolled_at=datetime.now(UTC) - _AGO)

    async def heard() -> bool:
        found = await world.admin.call("PreviewAttestationGate")
        return bool(found.devices_in_use == 1)

    await eventually(heard)
    connection = await world.database.superuser()
    try:
        await connection.execute(
            "UPDATE policy.devices_cursor SET cursor = '9', enrolled_cursor = '9',"
            " membership_cursor = NULL"
        )
    finally:
        await connection.close()
    async with world.kit.database.system_transaction("a test") as inside:
        assert await syncs_store.devices_cursor(inside) == ""
