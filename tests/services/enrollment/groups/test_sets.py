"""Groups as code: planned, applied in one step, and only its own deleted."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from contract.access import Role
from evergreen.v1 import enrollment_pb2 as pb
from tests.support import callers
from tests.support.enrollment import ORG, OTHER, RESELLER, Enrollment, service
from tests.support.refusals import refusal
from tests.support.stack import PATIENCE

__all__ = ["service"]


def entry(alias: str, **more: Any) -> pb.DeviceGroupSetEntry:
    return pb.DeviceGroupSetEntry(alias=alias, **more)


async def apply(
    service: Enrollment, *entries: pb.DeviceGroupSetEntry, metadata: Any = None, **more: Any
) -> pb.ApplyDeviceGroupSetResponse:
    asked = {"org_id": str(ORG.id), "name": "school", **more}
    return await service.groups.ApplyDeviceGroupSet(
        pb.ApplyDeviceGroupSetRequest(groups=entries, **asked), metadata=metadata or service.admin
    )


def actions(found: pb.ApplyDeviceGroupSetResponse) -> dict[str, str]:
    return {one.alias: one.action for one in found.groups}


async def groups(service: Enrollment) -> dict[str, pb.DeviceGroup]:
    """The groups, once their devices are moved."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await service.groups.ListDeviceGroups(
                pb.ListDeviceGroupsRequest(org_id=str(ORG.id)), metadata=service.admin
            )
            if all(one.state != "computing" for one in found.device_groups):
                return {one.alias: one for one in found.device_groups}
            await asyncio.sleep(0.05)


async def test_a_set_is_planned_applied_and_then_there_is_nothing_to_do(
    service: Enrollment,
) -> None:
    """The plan is what is done; groups change places, and a rename keeps the group."""
    entries = [
        entry("year-7", name="Year 7", priority=10, filter="labels.year = 7"),
        entry("cart", priority=20),
        entry("last"),
    ]
    plan = await apply(service, *entries, validate_only=True)
    assert actions(plan) == {"year-7": "CREATE", "cart": "CREATE", "last": "CREATE"}
    assert (await groups(service), plan.applied) == ({}, False)
    done = await apply(service, *entries, expected_plan_sha256=plan.plan_sha256)
    assert actions(done) == actions(plan)
    made = await groups(service)
    assert [(one, made[one].priority) for one in made] == [
        ("year-7", 10),
        ("cart", 20),
        ("last", 30),
    ]
    assert (made["year-7"].filter, made["cart"].HasField("filter")) == ("labels.year = 7", False)
    again = await apply(service, *entries)
    assert actions(again) == {"year-7": "UNCHANGED", "cart": "UNCHANGED", "last": "UNCHANGED"}
    assert await groups(service) == made
    entries = [
        entry("cart", priority=10),
        entry(
            "year-8", name="Year 8", priority=20, filter="labels.year = 8", renamed_from="year-7"
        ),
        entry("last"),
        entry("new"),
    ]
    done = await apply(service, *entries)
    assert actions(done) == {
        "cart": "UPDATE",
        "year-8": "UPDATE",
        "last": "UNCHANGED",
        "new": "CREATE",
    }
    assert list(done.groups[1].changed) == ["alias", "name", "priority", "filter"]
    after = await groups(service)
    assert after["year-8"].id == made["year-7"].id
    assert (after["cart"].priority, after["year-8"].priority, after["new"].priority) == (10, 20, 40)
    refused = await refusal(apply(service, *entries, expected_plan_sha256=plan.plan_sha256))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "PLAN_OUTDATED")


async def test_only_what_belongs_to_the_set_is_deleted(service: Enrollment) -> None:
    """And only with prune; other groups are adopted if that is said."""
    await service.group("by-hand")
    await apply(service, entry("mine"), entry("old"))
    found = await apply(service, entry("mine"), validate_only=True)
    assert actions(found) == {"mine": "UNCHANGED", "by-hand": "OTHER", "old": "LEFT"}
    found = await apply(service, entry("mine"), prune=True)
    assert actions(found) == {"mine": "UNCHANGED", "by-hand": "OTHER", "old": "DELETE"}
    assert set(await groups(service)) == {"mine", "by-hand"}
    refused = await refusal(apply(service, entry("mine"), entry("by-hand")))
    assert refused.reason == "GROUP_NOT_ADOPTED"
    found = await apply(service, entry("mine"), entry("by-hand", name="By-hand"), adopt=True)
    assert found.groups[1].action in {"ADOPT", "UPDATE"}
    found = await apply(service, entry("mine"), name="another", adopt=True, validate_only=True)
    assert {one.alias: one.set_name for one in found.groups} == {"mine": "", "by-hand": "school"}
    assert actions(found) == {"mine": "ADOPT", "by-hand": "OTHER"}


async def test_all_or_nothing(service: Enrollment) -> None:
    """What one entry breaks is named by its place, and nothing of the others is done."""
    await apply(service, entry("listed"))
    before = await groups(service)
    good = entry("good")
    for bad, field in (
        (entry("x", filter="nonsense"), "groups[1].filter"),
        (entry("good"), "groups[1].alias"),
        (entry("listed", filter="has_tpm = true"), "groups[1].filter"),
    ):
        refused = await refusal(apply(service, good, bad))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    twice = [entry("a", priority=7), entry("b", priority=7)]
    assert (await refusal(apply(service, *twice))).fields == ["groups[1].priority"]
    assert await groups(service) == before


async def test_sets_are_of_an_organisation(service: Enrollment) -> None:
    """Those above may; others find nothing, and an Auditor may not."""
    stranger = callers.user(OTHER.id, Role.OWNER)
    auditor = callers.user(ORG.id, Role.AUDITOR)
    district = callers.user(RESELLER.id, Role.ADMIN)
    for metadata, code in (
        (stranger, grpc.StatusCode.NOT_FOUND),
        (auditor, grpc.StatusCode.PERMISSION_DENIED),
    ):
        refused = await refusal(apply(service, entry("x"), metadata=metadata))
        assert refused.code is code
    assert actions(await apply(service, entry("x"), metadata=district)) == {"x": "CREATE"}


async def test_a_plan_counts_devices_and_apply_moves_them_behind(service: Enrollment) -> None:
    """Those that come into groups and leave them; what is deleted is planned, too."""
    token = await service.token()
    for serial in ("SN-1", "SN-2"):
        await service.enrolled(token.pre_shared_key, serial)
    everybody, nobody = "labels.room != 214", "labels.room = 214"
    plan = await apply(service, entry("all", filter=everybody), validate_only=True)
    assert (plan.groups[0].joins, plan.groups[0].leaves) == (2, 0)
    await apply(service, entry("all", filter=everybody), expected_plan_sha256=plan.plan_sha256)
    assert (await groups(service))["all"].members == 2
    plan = await apply(service, entry("all", filter=nobody), validate_only=True)
    assert (plan.groups[0].joins, plan.groups[0].leaves) == (0, 2)
    plan = await apply(service, prune=True, validate_only=True)
    assert (actions(plan), plan.groups[0].leaves) == ({"all": "DELETE"}, 2)


async def test_a_set_of_a_tenant_above_has_no_groups(service: Enrollment) -> None:
    """It is planned and applied like any other; with a group it is refused."""
    district = callers.user(RESELLER.id, Role.ADMIN)
    await apply(service, entry("x"))
    of_district = {"metadata": district, "org_id": str(RESELLER.id)}
    for more in ({"validate_only": True}, {"prune": True}):
        assert not (await apply(service, **of_district, **more)).groups
    assert set(await groups(service)) == {"x"}
    refused = await refusal(apply(service, entry("y"), **of_district))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["orgId"])
