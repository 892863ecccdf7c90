"""Devices that fall short of an enforced gate get its other policy, and their own one back."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import grpc
import pytest

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.call import H_AUTHENTICATED
from servicekit.rpc.values import from_value
from tests.services.policy.gate.fleet import (
    AGO,
    OTHER,
    eventually,
    log_in,
    opened,
)
from tests.support.policy import ORG, RESELLER, SISTER, Admin, World, world
from tests.support.refusals import refusal

__all__ = ["world"]


async def test_a_device_that_falls_short_gets_the_other_policy_and_its_own_one_back(
    world: World,
) -> None:
    """Each time as a new version; the others are left alone, and so is who has what he is to have.
    Without evidence a device falls short when its time is over."""
    fleet = await opened(world, "KNOWN_TPM", "SELF_CONSISTENT", "", "VERIFIED")
    gate = await fleet.enforce(2)
    assert (gate.mode, gate.restricted_devices, gate.held) == ("ENFORCE", 2, "")
    assert gate.otherwise_version == fleet.other.version
    await fleet.have("normal", "other", "other", "normal")
    # In place of all that the organisation says.
    assert [one.usbguard for one in fleet.laptops] == [True, False, False, True]
    assert fleet.laptops[1].has == fleet.laptops[2].has
    before = [one.has for one in fleet.laptops]
    fleet.tell(1, "KNOWN_TPM")
    fleet.tell(3, "FAILED")
    await fleet.have("normal", "normal", "other", "other")
    assert fleet.laptops[0].has == before[0]
    fleet.tell(1, "FAILED")
    fleet.tell(2, "VERIFIED")
    fleet.tell(3, "VERIFIED")
    await fleet.have("normal", "other", "normal", "normal")
    # One number, one content, whoever has it.
    contents: dict[int, str] = {}
    for laptop in fleet.laptops:
        for number, homepage in laptop.contents.items():
            assert contents.setdefault(number, homepage) == homepage
    told = await fleet.events("devices_restricted", "devices_released")
    assert told[0]["after"]["count"] == 2
    assert {one["action"] for one in told} == {
        "policy.devices_restricted",
        "policy.devices_released",
    }
    assert {one["actor"] for one in told[1:]} == {"system"}
    # Nothing of it is left when nobody asks for it any more.
    off = await world.admin.call("UpdateAttestationGate", mode="OBSERVE")
    assert (off.mode, off.restricted_devices) == ("OBSERVE", 0)
    await fleet.have("normal", "normal", "normal", "normal")


async def test_it_is_explained(world: World) -> None:
    """The device's policy names the gate, the verdict and the other policy, and nothing else of
    the organisation; what tenants above lock stays locked."""
    fleet = await opened(world, "FAILED", "VERIFIED")
    reseller = Admin(world.channel, RESELLER.id)
    above = await reseller.call(
        "CreatePolicy",
        org_id=str(RESELLER.id),
        name="District",
        bundle={"security": {"usbguard": True}},
        merging=policy_pb2.PolicyMergingChange(locked_fields=["security.usbguard"]),
    )
    await reseller.call("PublishPolicy", id=above.id)
    await fleet.enforce(1)
    await fleet.have("other", "normal")
    assert [one.usbguard for one in fleet.laptops] == [True, True]
    short, fine = (str(one.device.id) for one in fleet.laptops)

    async def current() -> bool:
        found = await world.admin.call("GetEffectivePolicy", id=short)
        return bool(found.state == "CURRENT")

    await eventually(current)
    found = await world.admin.call("GetEffectivePolicy", id=short)
    assert [(one.level, one.policy_name) for one in found.layers] == [
        ("RESELLER", "District"),
        ("GATE", "Other"),
    ]
    assert (found.restriction.at_least, found.restriction.verdict) == ("KNOWN_TPM", "FAILED")
    assert found.restriction.HasField("since")
    assert found.applied_version == str(fleet.laptops[0].has)
    (homepage,) = (one for one in found.fields if one.path == "browser.homepage")
    assert (from_value(homepage.value), homepage.source.level) == ("https://other", "GATE")
    other = await world.admin.call("GetEffectivePolicy", id=fine)
    assert not other.HasField("restriction")
    assert "GATE" not in {one.level for one in other.layers}


async def test_it_takes_a_preview_and_a_share(world: World) -> None:
    """Without the number of the preview, with a smaller one, and for a greater share than was typed
    nothing is enforced."""
    fleet = await opened(world, "FAILED", "FAILED", "VERIFIED", "VERIFIED")
    admin = world.admin
    asked = {
        "mode": "ENFORCE",
        "at_least": "KNOWN_TPM",
        "otherwise_policy_id": fleet.other.id,
        "max_percent": 50,
        "expected_devices": 2,
    }
    draft = await admin.create(ORG.id, OTHER)
    foreign = await Admin(world.channel, SISTER.id).published(SISTER.id, OTHER)
    invalid, aborted = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ABORTED
    failed = grpc.StatusCode.FAILED_PRECONDITION
    wrong: list[tuple[dict[str, Any], Any, str]] = [
        ({"expected_devices": None}, invalid, "expectedDevices"),
        ({"otherwise_policy_id": None}, invalid, "otherwisePolicyId"),
        ({"max_percent": None}, invalid, "maxPercent"),
        ({"max_percent": 0}, invalid, "maxPercent"),
        ({"max_percent": 101}, invalid, "maxPercent"),
        ({"expected_devices": 1}, aborted, "2 devices fall short"),
        ({"max_percent": 49}, failed, "49 percent"),
        # What was said to be seen is bounded by the share, too.
        ({"expected_devices": 3}, failed, "3 of 4"),
        ({"otherwise_policy_id": draft.id}, invalid, "in force"),
        ({"otherwise_policy_id": foreign.id}, invalid, "of the organisation"),
        ({"otherwise_policy_id": str(uuid4())}, invalid, "of the organisation"),
        ({"otherwise_policy_id": "no"}, invalid, "otherwisePolicyId"),
    ]
    for change, code, text in wrong:
        request = {name: value for name, value in (asked | change).items() if value is not None}
        refused = await refusal(admin.call("UpdateAttestationGate", **request))
        assert refused.code is code, change
        assert text in refused.body["message"], change
    gate = await admin.call("GetAttestationGate")
    assert (gate.mode, gate.otherwise_policy_id) == ("OFF", "")
    await fleet.have("normal", "normal", "normal", "normal")
    assert (await admin.call("UpdateAttestationGate", **asked)).mode == "ENFORCE"
    # Again is no change; what asks for more takes a preview again.
    assert (await admin.call("UpdateAttestationGate", mode="ENFORCE")).restricted_devices == 2
    refused = await refusal(admin.call("UpdateAttestationGate", at_least="VERIFIED"))
    assert refused.code is invalid
    assert len(await fleet.events("attestation_gate_updated")) == 1


async def test_more_than_the_share_are_never_restricted(world: World) -> None:
    """When more fall short than may have the other policy, no more get it until somebody says so;
    who has it keeps it, and gets its own one back as ever."""
    fleet = await opened(world, "FAILED", *["VERIFIED"] * 4)
    await fleet.enforce(1, max_percent=40)
    await fleet.have("other", *["normal"] * 4)
    for index in (1, 2):
        fleet.tell(index, "FAILED")

    async def held() -> bool:
        return bool((await world.admin.call("GetAttestationGate")).held)

    await eventually(held)
    gate = await world.admin.call("GetAttestationGate")
    assert (gate.mode, gate.held, gate.restricted_devices) == ("ENFORCE", "SHARE_EXCEEDED", 1)
    (event,) = await fleet.events("attestation_gate_held")
    assert event["after"] == {
        "groupId": None,
        "fallingShort": 3,
        "devicesInUse": 5,
        "maxPercent": 40,
    }
    await fleet.have("other", *["normal"] * 4)
    fleet.tell(0, "VERIFIED")
    await fleet.have(*["normal"] * 5)
    # Two are within the share; it is held all the same, until somebody has looked.
    assert await held()
    again = await fleet.enforce(2, max_percent=40)
    assert (again.held, again.restricted_devices) == ("", 2)
    await fleet.have("normal", "other", "other", "normal", "normal")


async def test_a_device_freed_from_its_tpm_has_time_again(world: World) -> None:
    """Its verdict is less than before, of the same evidence: that is an administrator's doing. New
    evidence that is less counts at once."""
    fleet = await opened(world, "SELF_CONSISTENT", "VERIFIED", "VERIFIED", "VERIFIED")
    await fleet.enforce(1, max_percent=75)
    device = fleet.laptops[1].device.id
    attestation = world.neighbours.attestation
    (evidence,) = (one for one in attestation.verdicts if one.device_id == str(device))
    at = evidence.attested_at.ToDatetime(UTC)
    attestation.tell(device, "SELF_CONSISTENT", at=at)
    fleet.tell(2, "FAILED")
    await fleet.have("other", "normal", "other", "normal")
    found = await world.admin.call("PreviewAttestationGate")
    assert (found.falling_short, found.in_grace, found.restricted) == (2, 1, 2)
    fleet.tell(1, "SELF_CONSISTENT")
    await fleet.have("other", "other", "other", "normal")


async def test_what_becomes_of_the_other_policy(world: World) -> None:
    """Its next publish reaches those that have it; it cannot be withdrawn or deleted, and neither
    is the organisation's own policy theirs."""
    fleet = await opened(world, "FAILED", "VERIFIED")
    await fleet.enforce(1)
    await fleet.have("other", "normal")
    await world.admin.call(
        "UpdatePolicy",
        id=fleet.other.id,
        bundle={"browser": {"homepage": "https://second"}},
        signed=True,
    )
    await fleet.have("second", "normal")
    await world.admin.call(
        "UpdatePolicy",
        id=fleet.normal.id,
        bundle={"browser": {"homepage": "https://third"}},
        signed=True,
    )
    await fleet.have("second", "third")
    for method, request in (("WithdrawPolicy", {}), ("DeletePolicy", {"force": True})):
        refused = await refusal(world.admin.call(method, id=fleet.other.id, **request))
        assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
        assert refused.reason == "POLICY_OF_GATE"
    rolled_back = await world.admin.call(
        "RollbackPolicy", id=fleet.other.id, version=fleet.other.version
    )
    assert rolled_back.version
    await fleet.have("other", "third")
    await world.admin.call("UpdateAttestationGate", mode="OFF")
    await world.admin.call("WithdrawPolicy", id=fleet.other.id)
    await fleet.have("third", "third")


async def test_rollouts_pass_restricted_devices_by(world: World) -> None:
    """No batch reaches them, none of them counts; they get what came when they fall short no
    more."""
    fleet = await opened(world, "FAILED", "VERIFIED", "VERIFIED")
    await fleet.enforce(1)
    await fleet.have("other", "normal", "normal")
    plan = policy_pb2.RolloutPlan(batches=[policy_pb2.RolloutBatch(percent=100, soak="1h")])
    await world.admin.call(
        "UpdatePolicy", id=fleet.normal.id, bundle={"browser": {"homepage": "https://new"}}
    )
    answer = await world.admin.call("PublishPolicy", id=fleet.normal.id, plan=plan)
    await fleet.have("other", "new", "new")
    rollouts = policy_pb2_grpc.PolicyRolloutServiceStub(world.channel)

    async def counted() -> bool:
        found = await rollouts.GetRollout(
            policy_pb2.GetRolloutRequest(id=answer.rollout_id), metadata=world.admin.metadata
        )
        return (found.counts.served, found.counts.applied, found.counts.control) == (2, 2, 0)

    await eventually(counted)
    fleet.tell(0, "VERIFIED")
    fleet.tell(1, "FAILED")
    await fleet.have("new", "other", "new")


async def test_a_freeze_and_a_second_person_count(world: World) -> None:
    """In a freeze nothing is enforced anew. Where publishes need a second person, an Owner has to
    do it."""
    fleet = await opened(world, "FAILED", "VERIFIED")
    rollouts = policy_pb2_grpc.PolicyRolloutServiceStub(world.channel)
    today = str(datetime.now(UTC).date())
    owner = Admin(world.channel, ORG.id, "Owner")
    fresh = (*owner.metadata, (H_AUTHENTICATED, str(int(datetime.now(UTC).timestamp()))))

    async def settings(**change: Any) -> None:
        await rollouts.UpdatePolicySettings(
            policy_pb2.UpdatePolicySettingsRequest(**change), metadata=fresh, timeout=60
        )

    days = policy_pb2.PolicyFreezeChange(name="Exams", first_day=today, last_day=today)
    await settings(freezes=policy_pb2.PolicyFreezesChange(items=[days]))
    frozen = await refusal(fleet.enforce(1))
    assert frozen.reason == "POLICIES_FROZEN"
    await settings(freezes=policy_pb2.PolicyFreezesChange(), require_approval=True)
    alone = await refusal(fleet.enforce(1))
    assert alone.code is grpc.StatusCode.PERMISSION_DENIED
    assert alone.reason == "OWNER_NEEDED"
    admin, world.admin = world.admin, owner
    assert (await fleet.enforce(1)).mode == "ENFORCE"
    await fleet.have("other", "normal")
    # Ending it gives devices a policy, too.
    for mode in ("OFF", "OBSERVE"):
        alone = await refusal(admin.call("UpdateAttestationGate", mode=mode))
        assert alone.reason == "OWNER_NEEDED"
    await settings(freezes=policy_pb2.PolicyFreezesChange(items=[days]), require_approval=False)
    frozen = await refusal(admin.call("UpdateAttestationGate", mode="OFF"))
    assert frozen.reason == "OWNER_NEEDED"
    # The Owner logged in long ago.
    late = await refusal(owner.call("UpdateAttestationGate", mode="OFF"))
    assert late.reason == "STEP_UP_NEEDED"
    log_in(owner)
    assert (await owner.call("UpdateAttestationGate", mode="OFF")).restricted_devices == 0
    await fleet.have("normal", "normal")


async def test_a_simulation_counts_what_devices_have(world: World) -> None:
    """A change of the organisation's policy does not reach restricted devices, which is said; one
    of the other policy reaches them alone."""
    fleet = await opened(world, "FAILED", "VERIFIED", "VERIFIED")
    await fleet.enforce(1)
    await fleet.have("other", "normal", "normal")
    changed = {"browser": {"homepage": "https://changed"}, "security": {"usbguard": True}}
    found = await world.admin.call("SimulatePolicy", policy_id=fleet.normal.id, bundle=changed)
    assert found.devices_affected == 2
    assert {one.code: one.devices for one in found.warnings}["RESTRICTED"] == 1
    found = await world.admin.call("SimulatePolicy", policy_id=fleet.other.id, bundle=changed)
    assert found.devices_affected == 1


@pytest.mark.parametrize("status", ["decommissioned", "prepared"])
async def test_a_device_that_goes_counts_no_more(world: World, status: str) -> None:
    """One that is retired is not restricted any more; one that is about to enroll anew is, for it
    would get rid of the other policy by that."""
    fleet = await opened(world, "FAILED", "VERIFIED")
    await fleet.enforce(1)
    await fleet.have("other", "normal")
    device = fleet.laptops[0].device.id
    world.neighbours.registry.add(device, ORG.id, status, enrolled_at=datetime.now(UTC) - AGO)
    wanted = 1 if status == "prepared" else 0

    async def looked() -> bool:
        fleet.tell(1, "VERIFIED")
        await asyncio.sleep(1.2)
        gate = await world.admin.call("GetAttestationGate")
        preview = await world.admin.call("PreviewAttestationGate")
        return bool(preview.devices_in_use == 1 and gate.restricted_devices == wanted)

    await eventually(looked)
