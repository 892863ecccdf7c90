"""Gates of groups: whom they ask, who sees them, and what becomes of devices when they end."""

from __future__ import annotations

from uuid import uuid4

import grpc

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.rpc.channels import open_channel
from services.policy import restore
from tests.services.policy.gate.fleet import (
    counted_restricted,
    eventually,
    grouped,
    opened,
)
from tests.support.policy import ORG, RESELLER, SISTER, Admin, World, world
from tests.support.refusals import refusal

__all__ = ["world"]


async def test_a_group_has_a_gate_of_its_own(world: World) -> None:
    """It asks its devices alone, and counts before that of the organisation; a device that leaves
    the group is not asked any more."""
    fleet = await opened(world, "SELF_CONSISTENT", "SELF_CONSISTENT", "FAILED", "VERIFIED")
    registry = world.neighbours.registry
    staff = registry.group(ORG.id, "staff", 7)
    registry.put(fleet.laptops[0].device.id, ORG.id, staff)
    registry.put(fleet.laptops[3].device.id, ORG.id, staff)
    strict = await world.admin.call(
        "CreatePolicy",
        org_id=str(ORG.id),
        name="Strict",
        bundle={"browser": {"homepage": "https://strict"}},
        targets=policy_pb2.PolicyTargetsChange(group_ids=[str(fleet.empty)]),
    )
    # Two policies cannot be for one group: this one is for one of its own.
    await world.admin.call(
        "UpdatePolicy",
        id=strict.id,
        targets=policy_pb2.PolicyTargetsChange(
            group_ids=[str(registry.group(ORG.id, "strict", 2))]
        ),
    )
    await world.admin.call("PublishPolicy", id=strict.id)

    async def joined() -> bool:
        found = await world.admin.call(
            "PreviewAttestationGate", group_id=str(staff), at_least="KNOWN_TPM"
        )
        return bool(found.devices_in_use == 2 and found.falling_short == 1)

    await eventually(joined)
    gate = await fleet.enforce(1, group_id=str(staff), otherwise_policy_id=strict.id)
    assert (gate.group_id, gate.restricted_devices) == (str(staff), 1)
    assert (await world.admin.call("GetAttestationGate")).mode == "OFF"
    await fleet.have("strict", "normal", "normal", "normal")
    await fleet.enforce(3, max_percent=100)
    await fleet.have("strict", "other", "other", "normal")
    found = await world.admin.call("GetEffectivePolicy", id=str(fleet.laptops[0].device.id))
    assert (found.restriction.group_id, found.restriction.group_alias) == (str(staff), "staff")
    assert found.layers[-1].group_alias == "staff"
    async with open_channel(world.kit.settings.internal_listen, "enrollment") as channel:
        policies = await policy_pb2_grpc.PolicyInternalServiceStub(channel).ListGroupPolicies(
            policy_pb2.ListGroupPoliciesRequest(tenant_id=str(ORG.id), group_id=str(staff))
        )
    assert [one.id for one in policies.policies] == [strict.id]
    registry.put(fleet.laptops[0].device.id, ORG.id)
    fleet.tell(0, "FAILED")
    await fleet.have("other", "other", "other", "normal")


async def test_a_group_may_be_asked_for_less(world: World) -> None:
    """Its gate counts in place of that of the organisation."""
    fleet = await opened(world, "SELF_CONSISTENT", "SELF_CONSISTENT", "VERIFIED", "VERIFIED")
    group_id = str(await grouped(fleet, 0))
    await fleet.enforce(0, group_id=group_id, at_least="SELF_CONSISTENT", max_percent=100)
    # Nor does the preview of the other one count its devices.
    found = await fleet.world.admin.call("PreviewAttestationGate", at_least="KNOWN_TPM")
    assert (found.falling_short, found.devices_in_use) == (1, 4)
    assert [one.device_id for one in found.devices] == [str(fleet.laptops[1].device.id)]
    await fleet.enforce(1)
    await fleet.have("normal", "other", "normal", "normal")


async def test_a_device_whose_gate_ends_while_another_is_held_is_free(world: World) -> None:
    """It gets its own policy and counts so; the share of the other gate is asked for anew."""
    fleet = await opened(world, "FAILED", "VERIFIED", "VERIFIED", "VERIFIED")
    group_id = str(await grouped(fleet, 0))
    await fleet.enforce(1, group_id=group_id, max_percent=100)
    await fleet.have("other", "normal", "normal", "normal")
    await fleet.enforce(1)
    connection = await world.database.superuser()
    try:
        await restore.repair(connection, restore.Known({}), [ORG.id])
    finally:
        await connection.close()
    await world.admin.call("UpdateAttestationGate", group_id=group_id, mode="OFF")
    assert await counted_restricted(fleet) == []
    await fleet.have("normal", "normal", "normal", "normal")
    (told,) = await fleet.events("devices_released")
    assert told["after"]["groupId"] == group_id


async def test_gates_of_groups_are_seen_in_their_subtree_alone(world: World) -> None:
    """A group of another organisation does not exist; an Auditor reads and enforces nothing."""
    fleet = await opened(world, "FAILED", "VERIFIED")
    theirs = world.neighbours.registry.group(SISTER.id, "theirs", 1)
    mine = str(fleet.empty)
    for group_id in (str(theirs), str(uuid4())):
        for method in ("GetAttestationGate", "UpdateAttestationGate", "PreviewAttestationGate"):
            refused = await refusal(world.admin.call(method, group_id=group_id))
            assert refused.code is grpc.StatusCode.NOT_FOUND
    auditor = Admin(world.channel, ORG.id, "Auditor")
    assert (await auditor.call("GetAttestationGate", group_id=mine)).mode == "OFF"
    refused = await refusal(auditor.call("UpdateAttestationGate", group_id=mine, mode="OBSERVE"))
    assert refused.code is grpc.StatusCode.PERMISSION_DENIED
    sister = Admin(world.channel, SISTER.id)
    refused = await refusal(
        sister.call("UpdateAttestationGate", org_id=str(ORG.id), group_id=mine, mode="OBSERVE")
    )
    assert refused.code is grpc.StatusCode.NOT_FOUND
    reseller = Admin(world.channel, RESELLER.id)
    said = await reseller.call(
        "UpdateAttestationGate", org_id=str(ORG.id), group_id=mine, mode="OBSERVE"
    )
    assert (said.mode, said.group_id) == ("OBSERVE", mine)
    # The feed of restricted devices is telemetry's.
    request = policy_pb2.ListRestrictedDeviceChangesRequest()
    await fleet.enforce(1)
    async with open_channel(world.kit.settings.internal_listen, "telemetry") as channel:
        stub = policy_pb2_grpc.PolicyInternalServiceStub(channel)
        (told,) = (await stub.ListRestrictedDeviceChanges(request)).devices
    assert (told.device_id, told.restricted) == (str(fleet.laptops[0].device.id), True)
    async with open_channel(world.kit.settings.internal_listen, "audit") as channel:
        stub = policy_pb2_grpc.PolicyInternalServiceStub(channel)
        refused = await refusal(stub.ListRestrictedDeviceChanges(request))
    assert refused.code is grpc.StatusCode.PERMISSION_DENIED
