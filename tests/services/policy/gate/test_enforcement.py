"""Devices that fall short of an enforced gate get its other policy, and their own one back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import grpc
import pytest

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.call import H_AUTHENTICATED
from servicekit.feeds.changes import Changes
from servicekit.rpc.channels import open_channel
from servicekit.rpc.values import from_value
from services.policy import restore
from services.policy.__main__ import build
from services.policy.gate import store as gate_store
from services.policy.gate.enforcement import Enforcement
from services.policy.settings import PolicySettings
from tests.conftest import MakeKit, ServeService
from tests.support.policy import (
    ORG,
    RESELLER,
    SISTER,
    TREE,
    Admin,
    Device,
    World,
    verified,
    world,
)
from tests.support.refusals import refusal
from tests.support.stack import PATIENCE

__all__ = ["world"]

NORMAL: Final = {"browser": {"homepage": "https://normal"}, "security": {"usbguard": True}}
OTHER: Final = {"browser": {"homepage": "https://other"}}
_AGO: Final = timedelta(hours=2)


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Waits until something is so."""
    async with asyncio.timeout(PATIENCE):
        while not await check():
            await asyncio.sleep(0.05)


@dataclass
class Laptop:
    """A device, with all that it ever got."""

    device: Device
    has: int = 0
    homepage: str = ""
    usbguard: bool = False
    contents: dict[int, str] = field(default_factory=dict)

    async def poll(self, pem: str) -> bool:
        """Polls once; answers whether it got something, under a number above all before."""
        answer = await self.device.pull(str(self.has or ""))
        if answer.status_code == 304:
            return False
        envelope = verified(pem, answer)
        number, policy = int(envelope["version"]), envelope["policy"]
        assert number > self.has
        self.has, self.homepage = number, policy["browser"]["homepage"]
        self.usbguard = policy["security"]["usbguard"]
        assert self.contents.setdefault(number, self.homepage) == self.homepage
        return True


@dataclass
class Fleet:
    """An organisation with a policy, another one for a gate, and laptops."""

    world: World
    pem: str
    normal: policy_pb2.Policy
    other: policy_pb2.Policy
    empty: UUID
    """A group without members, for which the other policy is in force."""
    laptops: list[Laptop]

    async def enforce(self, short: int, **more: Any) -> policy_pb2.AttestationGate:
        """Enforces the gate for so many devices of the preview."""
        wanted = {"at_least": "KNOWN_TPM", "grace_hours": 1, "max_percent": 50} | more
        found: policy_pb2.AttestationGate = await self.world.admin.call(
            "UpdateAttestationGate",
            mode="ENFORCE",
            otherwise_policy_id=wanted.pop("otherwise_policy_id", self.other.id),
            expected_devices=short,
            **wanted,
        )
        return found

    def tell(self, index: int, verdict: str) -> None:
        self.world.neighbours.attestation.tell(self.laptops[index].device.id, verdict)

    async def have(self, *homepages: str) -> None:
        """Waits until the laptops have these, and get nothing more."""
        wanted = [f"https://{one}" for one in homepages]

        async def so() -> bool:
            got = [await one.poll(self.pem) for one in self.laptops]
            return not any(got) and [one.homepage for one in self.laptops] == wanted

        await eventually(so)
        await asyncio.sleep(0.3)
        assert await so()

    async def events(self, *names: str) -> list[Any]:
        """The events with these names, as they are told."""
        return [
            one["data"] for one in await self.world.events() if one["data"]["action"][7:] in names
        ]


def log_in(user: Admin) -> None:
    """Lets a user have logged in just now."""
    now = str(int(datetime.now(UTC).timestamp()))
    user.metadata = (*user.metadata, (H_AUTHENTICATED, now))


async def opened(world: World, *verdicts: str) -> Fleet:
    """A fleet with verdicts, which have what is in force."""
    admin, registry = world.admin, world.neighbours.registry
    log_in(admin)
    normal = await admin.published(ORG.id, NORMAL)
    empty = registry.group(ORG.id, "quarantine", 1)
    created = await admin.call(
        "CreatePolicy",
        org_id=str(ORG.id),
        name="Other",
        bundle=OTHER,
        targets=policy_pb2.PolicyTargetsChange(group_ids=[str(empty)]),
    )
    other = await admin.call("PublishPolicy", id=created.id)
    laptops = []
    for verdict in verdicts:
        laptop = Laptop(Device(world.kit, world.channel, uuid4(), ORG.id))
        registry.add(laptop.device.id, ORG.id, enrolled_at=datetime.now(UTC) - _AGO)
        if verdict:
            world.neighbours.attestation.tell(laptop.device.id, verdict)
        laptops.append(laptop)

    async def heard() -> bool:
        connection = await world.database.superuser()
        told = await connection.fetchval("SELECT count(*) FROM policy.device_verdict")
        known = await connection.fetchval("SELECT count(*) FROM policy.devices")
        await connection.close()
        return bool(told == len([*filter(None, verdicts)]) and known == len(verdicts))

    await eventually(heard)
    fleet = Fleet(world, await world.pem(), normal, other, empty, laptops)
    for laptop in laptops:
        await laptop.poll(fleet.pem)
    return fleet


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


async def test_devices_keep_what_they_have_while_nobody_knows_more(world: World) -> None:
    """With attestation or the registry away nobody is moved, and nothing is enforced anew."""
    fleet = await opened(world, "FAILED", "VERIFIED", "VERIFIED", "VERIFIED")
    await fleet.enforce(1)
    await fleet.have("other", "normal", "normal", "normal")
    world.neighbours.attestation.down = True
    fleet.tell(0, "VERIFIED")
    fleet.tell(1, "FAILED")
    await fleet.have("other", "normal", "normal", "normal")
    refused = await refusal(fleet.enforce(1, max_percent=60))
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    world.neighbours.attestation.down = False
    await fleet.have("normal", "other", "normal", "normal")


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


async def test_two_processes_agree(world: World, make_kit: MakeKit, serve: ServeService) -> None:
    """Whichever enforces it, the other one delivers the same under the same numbers."""
    settings = {
        name: f"{getattr(world.kit.settings, name)}2"
        for name in ("grpc_listen", "internal_listen", "http_listen")
    }
    twin = await make_kit("policy", PolicySettings, tenants=TREE, **settings)
    await serve(twin, build)
    channel = open_channel(twin.settings.grpc_listen, "test")
    fleet = await opened(world, "FAILED", "VERIFIED", "FAILED", "VERIFIED")
    for laptop in fleet.laptops[:2]:
        laptop.device = Device(twin, channel, laptop.device.id, ORG.id)
    await fleet.enforce(2)
    await fleet.have("other", "normal", "other", "normal")
    assert fleet.laptops[0].has == fleet.laptops[2].has
    for index, verdict in enumerate(("VERIFIED", "FAILED", "VERIFIED", "FAILED")):
        fleet.tell(index, verdict)
    await fleet.have("normal", "other", "normal", "other")
    assert fleet.laptops[0].has == fleet.laptops[2].has
    assert fleet.laptops[1].has == fleet.laptops[3].has
    told = await fleet.events("devices_restricted")
    assert sum(one["after"]["count"] for one in told) == 4
    await channel.close()


async def test_a_restore_holds_gates(world: World) -> None:
    """What devices proved since is not known: nobody is restricted before somebody has looked, and
    who is stays so."""
    fleet = await opened(world, "FAILED", "VERIFIED", "VERIFIED", "VERIFIED")
    await fleet.enforce(1)
    await fleet.have("other", "normal", "normal", "normal")
    connection = await world.database.superuser()
    try:
        await restore.repair(connection, restore.Known({}), [ORG.id])
    finally:
        await connection.close()
    fleet.tell(1, "FAILED")

    async def heard() -> bool:
        found = await world.admin.call("PreviewAttestationGate")
        return bool(found.falling_short == 2)

    await eventually(heard)
    await fleet.have("other", "normal", "normal", "normal")
    assert (await world.admin.call("GetAttestationGate")).held == "RESTORED"
    assert (await fleet.enforce(2)).held == ""
    await fleet.have("other", "other", "normal", "normal")


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


async def grouped(fleet: Fleet, *indices: int) -> UUID:
    """A group with some of the laptops, as soon as policy has heard of it."""
    world, registry = fleet.world, fleet.world.neighbours.registry
    group_id = registry.group(ORG.id, "trolley", 5)
    for index in indices:
        registry.put(fleet.laptops[index].device.id, ORG.id, group_id)

    async def heard() -> bool:
        connection = await world.database.superuser()
        members = await connection.fetchval(
            "SELECT count(*) FROM policy.memberships WHERE $1 = ANY (group_ids)", group_id
        )
        known = await connection.fetchval(
            "SELECT count(*) FROM policy.groups WHERE id = $1", group_id
        )
        await connection.close()
        return bool(members == len(indices) and known)

    await eventually(heard)
    return group_id


async def counted_restricted(fleet: Fleet) -> list[UUID]:
    """The devices that lists and rollouts take as restricted."""
    connection = await fleet.world.database.superuser()
    rows = await connection.fetch(
        "SELECT device_id FROM policy.restricted_device WHERE gate_id IS NOT NULL"
    )
    await connection.close()
    return [row["device_id"] for row in rows]


async def test_ending_a_gate_restricts_nobody_on_an_old_view(world: World) -> None:
    """With attestation away a device whose time is over may have proved itself."""
    fleet = await opened(world, "FAILED", "FAILED", "VERIFIED", "VERIFIED", "")
    group_id = str(await grouped(fleet, 1))
    # The last one has time, by the organisation's gate alone.
    await fleet.enforce(2, grace_hours=24, max_percent=100)
    await fleet.enforce(1, group_id=group_id, max_percent=100)
    await fleet.have("other", "other", "normal", "normal", "normal")
    world.neighbours.attestation.down = True
    connection = await world.database.superuser()
    await connection.execute(
        "UPDATE policy.devices SET enrolled_at = enrolled_at - interval '1 day'"
    )
    await connection.close()
    await world.admin.call("UpdateAttestationGate", group_id=group_id, mode="OFF")
    assert set(await counted_restricted(fleet)) == {fleet.laptops[0].device.id}


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


async def test_a_group_may_be_asked_for_less(world: World) -> None:
    """Its gate counts in place of that of the organisation."""
    fleet = await opened(world, "SELF_CONSISTENT", "SELF_CONSISTENT", "VERIFIED", "VERIFIED")
    group_id = str(await grouped(fleet, 0))
    await fleet.enforce(0, group_id=group_id, at_least="SELF_CONSISTENT", max_percent=100)
    await fleet.enforce(2)
    await fleet.have("normal", "other", "normal", "normal")


async def test_what_the_last_release_switches_off_ends_with_attestation_away(world: World) -> None:
    """And the audit log tells of it."""
    fleet = await opened(world, "FAILED", "VERIFIED")
    await fleet.enforce(1)
    await fleet.have("other", "normal")
    world.neighbours.attestation.down = True
    connection = await world.database.superuser()
    await connection.execute("UPDATE policy.attestation_gate SET mode = 'OFF'")
    await connection.close()
    kit = world.kit

    async def away() -> bool:
        return False

    changes = Changes(kit.database.system_lane("a test"), gate_store.CHANGING)
    await Enforcement(kit.database, kit.outbox, changes, kit.clock, away).look()
    assert await counted_restricted(fleet) == []
    told = await fleet.events("attestation_gate_updated")
    assert [(one["before"]["mode"], one["after"]["mode"]) for one in told[1:]] == [
        ("ENFORCE", "OFF")
    ]
    await fleet.have("normal", "normal")


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
    world.neighbours.registry.add(device, ORG.id, status, enrolled_at=datetime.now(UTC) - _AGO)
    wanted = 1 if status == "prepared" else 0

    async def looked() -> bool:
        fleet.tell(1, "VERIFIED")
        await asyncio.sleep(1.2)
        gate = await world.admin.call("GetAttestationGate")
        preview = await world.admin.call("PreviewAttestationGate")
        return bool(preview.devices_in_use == 1 and gate.restricted_devices == wanted)

    await eventually(looked)
