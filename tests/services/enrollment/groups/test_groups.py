"""Groups: listed by serial number or by a filter, and computed with every change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from random import Random
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import enrollment_pb2 as pb
from servicekit.call import SYSTEM_CALL
from servicekit.data.postgres import Connection
from services.enrollment.groups import catch_up as catch_up_module
from services.enrollment.groups import membership
from services.enrollment.groups import service as groups_module
from services.enrollment.groups.catch_up import CatchUp
from services.enrollment.groups.domain import Moved
from services.enrollment.groups.filters import parse
from services.enrollment.groups.membership import events_of
from services.enrollment.registry import service as registry_module
from services.enrollment.registry.archive import ArchivedDevices
from tests.services.enrollment.groups.reference import Facts, matches
from tests.support import callers
from tests.support.enrollment import ORG, OTHER, RESELLER, ROOT, Enrollment, service
from tests.support.refusals import refusal
from tests.support.stack import PATIENCE

__all__ = ["service"]


async def _change(service: Enrollment, id_: str, **more: Any) -> pb.ChangeGroupMembersResponse:
    return await service.groups.ChangeGroupMembers(
        pb.ChangeGroupMembersRequest(id=id_, **more), metadata=service.admin
    )


async def _update(service: Enrollment, id_: str, **more: Any) -> pb.DeviceGroup:
    return await service.groups.UpdateDeviceGroup(
        pb.UpdateDeviceGroupRequest(id=id_, **more), metadata=service.admin
    )


async def _get(service: Enrollment, id_: str) -> pb.DeviceGroup:
    return await service.groups.GetDeviceGroup(
        pb.GetDeviceGroupRequest(id=id_), metadata=service.admin
    )


async def _members(service: Enrollment, id_: str, size: int = 0) -> list[pb.GroupMember]:
    found: list[pb.GroupMember] = []
    token = ""
    while True:
        page = await service.groups.ListGroupMembers(
            pb.ListGroupMembersRequest(id=id_, page_size=size, page_token=token),
            metadata=service.admin,
        )
        found += page.members
        token = page.next_page_token
        if not token:
            return found


async def _device(service: Enrollment, serial: str, **more: Any) -> str:
    token = await service.token()
    found: str = (await service.enrolled(token.pre_shared_key, serial, **more))["device_id"]
    return found


async def test_a_group_lists_serials_before_they_enroll(service: Enrollment) -> None:
    """Who enrolls later is in it from the first moment, and again after another enrollment."""
    group = await service.group("cart-3", description="Room 214")
    changed = await _change(service, group.id, add=["SN-1", " sn-2 ", "SN-2"])
    assert (list(changed.joined), list(changed.waiting)) == ([], ["SN-1", "sn-2"])
    assert (changed.device_group.members, changed.device_group.waiting) == (0, 2)
    device = await _device(service, "SN-2")
    assert await service.groups_of(device) == {"cart-3"}
    assert list((await service.registration(device)).group_ids) == [group.id]
    (moved,) = await service.events("device_groups_changed")
    assert moved["actor"] == "system"
    assert moved["resource"] == f"tenants/{ORG.id}/device-groups"
    assert moved["after"] == {
        "count": 1,
        "devices": [{"id": device, "serial": "SN-2", "joined": [group.id], "left": []}],
    }
    one, two = await _members(service, group.id, 1)
    assert (one.serial, one.waiting, one.device_id) == ("SN-1", True, "")
    assert (two.serial, two.waiting, two.device_id) == ("SN-2", False, device)
    assert (two.status, two.model, two.added_by) == (
        "active",
        "Framework 12",
        "admin@school.example",
    )
    await service.act("AllowReenrollment", device)
    assert await _device(service, "SN-2") == device
    assert await service.groups_of(device) == {"cart-3"}
    assert (await _get(service, group.id)).members == 1


async def test_members_are_named_by_serial_or_id(service: Enrollment) -> None:
    """What is said twice is said once; ids that nobody has are answered; nothing is half done."""
    group = await service.group("cart-3")
    device, other = await _device(service, "SN-1"), await _device(service, "SN-2")
    nobody = str(uuid4())
    tried = await _change(service, group.id, add=[device, nobody, "SN-3"], validate_only=True)
    assert (list(tried.joined), list(tried.waiting)) == (["SN-1"], ["SN-3"])
    assert await service.groups_of(device) == set()
    done = await _change(service, group.id, add=[device, "SN-1", nobody, "SN-3", other])
    assert sorted(done.joined) == ["SN-1", "SN-2"]
    assert (list(done.waiting), list(done.unknown)) == (["SN-3"], [nobody])
    assert await service.groups_of(device) == {"cart-3"}
    left = await _change(service, group.id, remove=["sn-1", "SN-4"], add=["SN-2"])
    assert list(left.removed) == ["sn-1"]
    assert sorted(left.unchanged) == ["SN-2", "SN-4"]
    assert await service.groups_of(device) == set()
    again = await _change(service, group.id, remove=["SN-1"])
    assert list(again.unchanged) == ["SN-1"]
    added, removed = await service.events("group_members_changed")
    assert added["after"] == {
        "alias": "cart-3",
        "added": 3,
        "removed": 0,
        "addedSerials": ["SN-1", "SN-2", "SN-3"],
        "removedSerials": [],
    }
    assert removed["after"]["removed"] == 1


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"add": ["SN-1", "Default string"]}, "add[1]"),
        ({"add": [""]}, "add[0]"),
        ({"remove": ["a\nb"]}, "remove[0]"),
        ({"add": ["\ufdfa" * 100]}, "add[0]"),
        ({"add": ["SN-1"], "remove": ["sn-1"]}, "remove"),
        ({"add": [f"SN-{n}" for n in range(1001)]}, "add"),
    ],
)
async def test_wrong_members_change_nothing(
    service: Enrollment, more: dict[str, Any], field: str
) -> None:
    """The field is named."""
    group = await service.group("cart-3")
    found = await refusal(_change(service, group.id, **more))
    assert (found.code, found.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    assert await _members(service, group.id) == []


async def test_a_filter_follows_every_change(service: Enrollment) -> None:
    """Of the hardware, of labels, of the device's status, and of the filter itself."""
    group = await service.group("year-7", filter=" labels.year = 7 AND model = Frame* ")
    assert group.filter == "labels.year = 7 AND model = Frame*"
    device = await _device(service, "SN-1")
    await _device(service, "SN-2")
    assert await service.groups_of(device) == set()
    labelled = await service.label(device, year="7")
    assert list(labelled.group_ids) == [group.id]
    assert (await _get(service, group.id)).members == 1
    (member,) = await _members(service, group.id)
    assert (member.device_id, member.waiting, member.added_by) == (device, False, "")
    # Another board in the same case.
    await service.act("AllowReenrollment", device)
    await _device(service, "SN-1", model="Other")
    assert await service.groups_of(device) == set()
    changed = await _update(service, group.id, filter="labels:year")
    assert (changed.members, changed.state) == (1, "ready")
    assert await service.groups_of(device) == {"year-7"}
    retired = await service.act("DecommissionDevice", device)
    assert list(retired.group_ids) == []
    assert (await _get(service, group.id)).members == 0
    await service.act("AllowReenrollment", device)
    await _device(service, "SN-1")
    assert await service.groups_of(device) == {"year-7"}


async def test_a_filter_knows_the_enrollment_token(service: Enrollment) -> None:
    """By name or id, from the enrollment on."""
    token = await service.token(name="Cart 3")
    await service.group("by-name", filter='enrollment_token = "cart 3"')
    await service.group("by-id", filter=f"enrollment_token = {token.id}")
    await service.group("none", filter='enrollment_token = "Cart 4"')
    found = await service.enrolled(token.pre_shared_key)
    assert await service.groups_of(found["device_id"]) == {"by-name", "by-id"}


async def test_a_group_is_changed_and_deleted(service: Enrollment) -> None:
    """With its events; what is deleted is left by all, and its names are free again."""
    device = await _device(service, "SN-1")
    group = await service.group("cart-3", name="Cart 3")
    assert (group.priority, group.members, group.state) == (10, 0, "ready")
    assert not group.HasField("filter")
    second = await service.group("all", filter="serial = SN*")
    assert (second.priority, second.members) == (20, 1)
    await _change(service, group.id, add=["SN-1"])
    changed = await _update(
        service, group.id, name="Cart III", alias="cart-iii", description="x", priority=30,
        etag=group.etag,
    )  # fmt: skip
    assert (changed.name, changed.alias, changed.description) == ("Cart III", "cart-iii", "x")
    assert changed.etag != group.etag
    assert await _update(service, group.id, name="Cart III") == changed
    listed = await service.groups.ListDeviceGroups(
        pb.ListDeviceGroupsRequest(page_size=1), metadata=service.admin
    )
    assert [g.alias for g in listed.device_groups] == ["all"]
    rest = await service.groups.ListDeviceGroups(
        pb.ListDeviceGroupsRequest(page_token=listed.next_page_token), metadata=service.admin
    )
    assert list(rest.device_groups) == [await _get(service, group.id)]
    stale = await refusal(
        service.groups.DeleteDeviceGroup(
            pb.DeleteDeviceGroupRequest(id=group.id, etag=group.etag), metadata=service.admin
        )
    )
    assert stale.code is grpc.StatusCode.ABORTED
    await service.groups.DeleteDeviceGroup(
        pb.DeleteDeviceGroupRequest(id=group.id), metadata=service.admin
    )
    assert await service.groups_of(device) == {"all"}
    assert (await refusal(_get(service, group.id))).code is grpc.StatusCode.NOT_FOUND
    (row,) = await service.sql(
        "SELECT name, alias, deleted_by FROM enrollment.device_group WHERE deleted_at IS NOT NULL"
    )
    assert tuple(row) == ("Cart III", "cart-iii", "admin@school.example")
    fresh = await service.group("cart-iii", priority=30)
    # Who was listed in the deleted one is not in this.
    assert (fresh.members, fresh.waiting) == (0, 0)
    names = ("group_created", "group_updated", "group_deleted")
    assert [len(await service.events(name)) for name in names] == [3, 1, 1]
    (event,) = await service.events("group_updated")
    assert event["resource"] == f"device-groups/{group.id}"
    assert (event["before"]["alias"], event["after"]["alias"]) == ("cart-3", "cart-iii")


async def test_a_group_with_policies_is_not_deleted(service: Enrollment) -> None:
    """The refusal names the policies and the way out; policy has to be there to say so."""
    group = await service.groups.CreateDeviceGroup(
        pb.CreateDeviceGroupRequest(org_id=str(ORG.id), name="Staff", alias="staff"),
        metadata=service.admin,
    )
    request = pb.DeleteDeviceGroupRequest(id=group.id)
    policy = service.neighbours.policy
    policy.for_groups[group.id] = ["Staff Wi-Fi", "Staff apps"]
    refused = await refusal(service.groups.DeleteDeviceGroup(request, metadata=service.admin))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "GROUP_HAS_POLICIES",
    )
    assert "Staff Wi-Fi, Staff apps; withdraw these" in refused.body["message"]
    policy.for_groups.clear()
    policy.down = True
    refused = await refusal(service.groups.DeleteDeviceGroup(request, metadata=service.admin))
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    policy.down = False
    assert (await _get(service, group.id)).alias == "staff"
    await service.groups.DeleteDeviceGroup(request, metadata=service.admin)


async def test_the_latest_deleted_groups_are_known(
    service: Enrollment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their names stay, and the oldest go."""
    monkeypatch.setattr(groups_module, "MOST_TOMBSTONES", 2)
    for n in range(4):
        group = await service.group(f"g{n}")
        await service.groups.DeleteDeviceGroup(
            pb.DeleteDeviceGroupRequest(id=group.id), metadata=service.admin
        )
    rows = await service.sql("SELECT alias FROM enrollment.device_group ORDER BY alias")
    assert [row["alias"] for row in rows] == ["g2", "g3"]


_CREATE: list[tuple[dict[str, Any], str, str]] = [
    ({"alias": "Cart 3"}, "INVALID_ARGUMENT", "alias"),
    ({"alias": "-a"}, "INVALID_ARGUMENT", "alias"),
    ({"alias": "a" * 64}, "INVALID_ARGUMENT", "alias"),
    ({"alias": "x", "name": " "}, "INVALID_ARGUMENT", "name"),
    ({"alias": "x", "priority": -1}, "INVALID_ARGUMENT", "priority"),
    ({"alias": "x", "priority": 1_000_001}, "INVALID_ARGUMENT", "priority"),
    ({"alias": "x", "filter": ""}, "INVALID_ARGUMENT", "filter"),
    ({"alias": "x", "filter": "   "}, "INVALID_ARGUMENT", "filter"),
    ({"alias": "x", "filter": "modle = x"}, "INVALID_ARGUMENT", "filter"),
    ({"alias": "x", "org_id": str(RESELLER.id)}, "INVALID_ARGUMENT", "orgId"),
    ({"alias": "taken"}, "ALREADY_EXISTS", ""),
    ({"alias": "x", "priority": 10}, "ALREADY_EXISTS", ""),
]


async def test_a_wrong_group_is_refused(service: Enrollment) -> None:
    """Each field with its rule; alias and priority are unique in the organisation."""
    await service.group("taken")
    for more, code, field in _CREATE:
        who = callers.user(RESELLER.id, Role.ADMIN)
        request = {"org_id": str(ORG.id), "name": "x", **more}
        found = await refusal(
            service.groups.CreateDeviceGroup(pb.CreateDeviceGroupRequest(**request), metadata=who)
        )
        assert found.code.name == code, more
        assert found.fields == ([field] if field else []), more
    listed = await service.group("listed")
    filtered = await service.group("filtered", filter="has_tpm = true")
    for id_, more, code in (
        (listed.id, {"filter": "has_tpm = true"}, "INVALID_ARGUMENT"),
        (filtered.id, {"filter": ""}, "INVALID_ARGUMENT"),
        (filtered.id, {"filter": "has_tpm"}, "INVALID_ARGUMENT"),
        (filtered.id, {"alias": "taken"}, "ALREADY_EXISTS"),
        (filtered.id, {"priority": 10}, "ALREADY_EXISTS"),
        (filtered.id, {"priority": 0}, "INVALID_ARGUMENT"),
    ):
        found = await refusal(_update(service, id_, **more))
        assert found.code.name == code, more
    refused = await refusal(_change(service, filtered.id, add=["SN-1"]))
    assert refused.reason == "GROUP_HAS_FILTER"
    assert len(await service.events("group_created")) == 3
    # In another organisation both are free.
    await service.group("taken", OTHER, priority=10)


async def test_an_organisation_has_a_bounded_number_of_groups(service: Enrollment) -> None:
    """And of comparisons, because each device that changes is asked them."""
    await service.sql(
        "INSERT INTO enrollment.device_group (id, tenant_id, name, alias, description, priority,"
        " filter, filter_terms, created_at, updated_at) SELECT gen_random_uuid(), $1, 'x',"
        " 'g' || n, '', n, 'has_tpm = true', 5, now(), now() FROM generate_series(1, 999) n",
        ORG.id,
    )
    group = await service.group("last", filter="has_tpm = true")
    for more in ({}, {"filter": "has_tpm = true"}):
        found = await refusal(service.group("more", **more))
        assert found.reason == "TOO_MANY_GROUPS"
    many = " OR ".join(["cpu_count = 1"] * 6)
    assert (await refusal(_update(service, group.id, filter=many))).reason == "TOO_MANY_GROUPS"
    # A device in all of them is computed all the same.
    device = await _device(service, "SN-1")
    assert len(await service.groups_of(device)) == 1000


async def test_a_token_gives_no_group_that_is_just_deleted(
    service: Enrollment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device enrolls; also when the group goes after the token was read."""
    gone, stays = await service.group("gone"), await service.group("stays")
    token = await service.token(group_ids=[gone.id, stays.id])
    hold = membership.hold

    async def deleting(connection: Connection, tenant_ids: Collection[UUID]) -> None:
        monkeypatch.setattr(membership, "hold", hold)
        await service.groups.DeleteDeviceGroup(
            pb.DeleteDeviceGroupRequest(id=gone.id), metadata=service.admin
        )
        await hold(connection, tenant_ids)

    monkeypatch.setattr(membership, "hold", deleting)
    device = (await service.enrolled(token.pre_shared_key))["device_id"]
    assert await service.groups_of(device) == {"stays"}
    listed = await service.sql("SELECT group_id FROM enrollment.group_member")
    assert [str(row["group_id"]) for row in listed] == [stays.id]


def test_an_event_of_moved_devices_is_one_that_is_taken() -> None:
    """However many groups they came into; each device is told once."""
    org = uuid4()
    groups = tuple(uuid4() for _ in range(1_000))
    moved = [Moved(uuid4(), org, f"SN-{n:03}", (), groups) for n in range(501)]
    events = [json.loads(event.payload()) for event in events_of(moved, SYSTEM_CALL)]
    told = [device["serial"] for event in events for device in event["data"]["after"]["devices"]]
    assert told == [one.serial for one in moved]
    assert max(len(json.dumps(event)) for event in events) < 1 << 20
    few = [Moved(uuid4(), org, f"SN-{n:03}", (), groups[:1]) for n in range(501)]
    counts = [
        json.loads(e.payload())["data"]["after"]["count"] for e in events_of(few, SYSTEM_CALL)
    ]
    assert counts == [500, 1]


async def test_a_page_of_devices_ends_where_there_is_no_more_room(
    service: Enrollment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some have many long labels; the list goes on behind them, and misses none."""
    token = await service.token()
    for n in range(3):
        device = (await service.enrolled(token.pre_shared_key, f"SN-{n}"))["device_id"]
        await service.label(device, **{f"k{k}": "x" * 128 for k in range(32)})
    monkeypatch.setattr(registry_module, "PAGE_BYTES", 9_000)
    found: list[list[str]] = []
    page_token = ""
    while not found or page_token:
        page = await service.registry.ListRegistrations(
            pb.ListRegistrationsRequest(page_token=page_token), metadata=service.admin
        )
        found.append([device.serial for device in page.registrations])
        page_token = page.next_page_token
    assert found == [["SN-2", "SN-1"], ["SN-0"]]


async def test_a_preview_tells_who_would_come_and_go(service: Enrollment) -> None:
    """Counts and the first devices; nothing is changed."""
    ids = [await _device(service, f"SN-{n}", cpu_count=n) for n in range(4)]
    group = await service.group("some", filter="cpu_count < 2")

    async def preview(text: str, **more: str) -> pb.PreviewDeviceGroupResponse:
        return await service.groups.PreviewDeviceGroup(
            pb.PreviewDeviceGroupRequest(org_id=str(ORG.id), filter=text, **more),
            metadata=service.admin,
        )

    found = await preview("cpu_count >= 1", group_id=group.id)
    assert (found.matched, found.joining, found.leaving) == (3, 2, 1)
    assert [m.device_id for m in found.joining_sample] == ids[2:]
    assert [m.serial for m in found.leaving_sample] == ["SN-0"]
    alone = await preview("cpu_count >= 1")
    assert (alone.matched, alone.joining, alone.leaving) == (3, 3, 0)
    assert (await refusal(preview("x"))).fields == ["filter"]
    assert (await _get(service, group.id)).members == 2


async def test_an_organisation_has_its_own_groups(service: Enrollment) -> None:
    """A reseller those below it; an Auditor reads; a stranger finds nothing."""
    group = await service.group("cart-3")
    other = await service.group("cart-3", OTHER)
    stranger = callers.user(OTHER.id, Role.OWNER)
    auditor = callers.user(ORG.id, Role.AUDITOR)
    stub = service.groups
    reads: list[tuple[Any, Any]] = [
        (stub.ListDeviceGroups, pb.ListDeviceGroupsRequest(org_id=str(ORG.id))),
        (stub.GetDeviceGroup, pb.GetDeviceGroupRequest(id=group.id)),
        (stub.ListGroupMembers, pb.ListGroupMembersRequest(id=group.id)),
        (
            stub.PreviewDeviceGroup,
            pb.PreviewDeviceGroupRequest(org_id=str(ORG.id), filter="has_tpm = true"),
        ),
    ]
    writes: list[tuple[Any, Any]] = [
        (
            stub.CreateDeviceGroup,
            pb.CreateDeviceGroupRequest(org_id=str(ORG.id), name="x", alias="x"),
        ),
        (stub.UpdateDeviceGroup, pb.UpdateDeviceGroupRequest(id=group.id, name="x")),
        (stub.ChangeGroupMembers, pb.ChangeGroupMembersRequest(id=group.id, add=["SN-1"])),
        (stub.DeleteDeviceGroup, pb.DeleteDeviceGroupRequest(id=group.id)),
    ]
    for call, request in (*reads, *writes):
        found = await refusal(call(request, metadata=stranger))
        assert found.code is grpc.StatusCode.NOT_FOUND
    foreign = pb.PreviewDeviceGroupRequest(
        org_id=str(ORG.id), filter="has_tpm = true", group_id=other.id
    )
    refused = await refusal(stub.PreviewDeviceGroup(foreign, metadata=service.admin))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    for call, request in reads:
        await call(request, metadata=auditor)
    for call, request in writes:
        found = await refusal(call(request, metadata=auditor))
        assert found.code is grpc.StatusCode.PERMISSION_DENIED
    for call, request in (*reads, *writes):
        await call(request, metadata=callers.user(RESELLER.id, Role.ADMIN))
    left = await stub.ListDeviceGroups(
        pb.ListDeviceGroupsRequest(alias="cart-3"), metadata=callers.user(ROOT.id, Role.ADMIN)
    )
    assert [g.org_id for g in left.device_groups] == [str(OTHER.id)]


# The feeds


async def _told(service: Enrollment) -> dict[str, pb.DeviceChange]:
    page = await service.internal.ListDeviceChanges(pb.ListDeviceChangesRequest())
    return {change.device_id: change for change in page.devices}


async def test_the_feed_of_devices_has_their_membership(service: Enrollment) -> None:
    """Labels and groups with a revision that grows; absent while they are not known."""
    device = await _device(service, "SN-1")
    first = (await _told(service))[device].membership
    assert (list(first.group_ids), dict(first.labels)) == ([], {})
    group = await service.group("year-7", filter="labels.year = 7")
    await service.label(device, year="7")
    second = (await _told(service))[device].membership
    assert (list(second.group_ids), dict(second.labels)) == ([group.id], {"year": "7"})
    assert second.revision > first.revision
    # As the last release's service does it.
    await service.sql("UPDATE enrollment.device SET cpu_count = 1")
    assert not (await _told(service))[device].HasField("membership")
    await CatchUp(service.kit.database, service.kit.outbox).step()
    third = (await _told(service))[device].membership
    assert list(third.group_ids) == [group.id]
    assert third.revision > second.revision


async def test_an_organisation_that_takes_too_long_holds_up_no_other(
    service: Enrollment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are computed meanwhile, and it is computed in smaller steps."""
    asked: list[tuple[UUID, int]] = []
    settle = membership.settle

    async def slow(
        connection: Connection, devices: Mapping[UUID, Collection[UUID]]
    ) -> membership.Settled:
        for tenant_id, ids in devices.items():
            asked.append((tenant_id, len(ids)))
            if tenant_id == ORG.id and (len(ids) > 1 or len(asked) < 3):
                raise TimeoutError
        return await settle(connection, devices)

    monkeypatch.setattr(catch_up_module, "_DEVICES", 4)
    monkeypatch.setattr(catch_up_module, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(membership, "settle", slow)
    for org in (ORG, OTHER):
        await service.sql(
            "INSERT INTO enrollment.device (id, tenant_id, serial, model, cpu_model, cpu_count,"
            " total_ram_bytes, has_tpm, status, token_version, created_at)"
            " SELECT gen_random_uuid(), $1, 'SN-' || n, 'M', '', n, 0, false, 'active', 1, now()"
            " FROM generate_series(1, 4) n",
            org.id,
        )
    running = asyncio.create_task(CatchUp(service.kit.database, service.kit.outbox).run())
    try:
        async with asyncio.timeout(PATIENCE):
            while await service.sql(
                "SELECT FROM enrollment.device WHERE groups_computed_at IS NULL"
            ):
                await asyncio.sleep(0.05)
    finally:
        running.cancel()
    tenants = [tenant_id for tenant_id, _ in asked]
    assert {ORG.id, OTHER.id} == {*tenants}


async def test_the_first_policy_is_asked_for_with_the_membership(service: Enrollment) -> None:
    """Before any feed could tell of it; a device whose groups are not computed says nothing."""
    group = await service.group("year-7", filter="labels.year = 7")
    token = await service.token(labels={"year": "7"})
    device = (await service.enrolled(token.pre_shared_key))["device_id"]
    (asked,) = service.neighbours.policy.asked
    assert asked.membership == (await _told(service))[device].membership
    assert (list(asked.membership.group_ids), asked.membership.labels["year"]) == ([group.id], "7")
    await service.registry.PrepareDevice(
        pb.PrepareDeviceRequest(org_id=str(ORG.id), serial="SN-2"), metadata=service.admin
    )
    assert not service.neighbours.policy.asked[-1].HasField("membership")


async def test_the_feed_of_groups_tells_of_deleted_ones(service: Enrollment) -> None:
    """With what policies need of them; a changed list of members is no change of the group."""

    async def told(cursor: str = "") -> tuple[list[pb.GroupChange], str]:
        page = await service.internal.ListGroupChanges(pb.ListGroupChangesRequest(cursor=cursor))
        return list(page.groups), page.next_cursor

    group = await service.group("cart-3", name="Cart 3")
    (first,), cursor = await told()
    assert (first.group_id, first.tenant_id) == (group.id, str(ORG.id))
    assert (first.name, first.alias, first.priority, first.deleted) == (
        "Cart 3",
        "cart-3",
        10,
        False,
    )
    await _update(service, group.id, priority=15)
    (second,), cursor = await told(cursor)
    assert (second.priority, second.revision) == (15, 2)
    await service.groups.DeleteDeviceGroup(
        pb.DeleteDeviceGroupRequest(id=group.id), metadata=service.admin
    )
    (third,), _ = await told(cursor)
    assert (third.deleted, third.revision) == (True, 3)


# What is computed behind a change


async def test_a_large_group_is_computed_in_steps(
    service: Enrollment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first devices with the change itself, the others soon; also when it is deleted."""
    monkeypatch.setattr(groups_module, "_AT_ONCE", 3)
    monkeypatch.setattr(catch_up_module, "_DEVICES", 2)
    await service.sql(
        "INSERT INTO enrollment.device (id, tenant_id, serial, model, cpu_model, cpu_count,"
        " total_ram_bytes, has_tpm, status, token_version, created_at, groups_computed_at)"
        " SELECT gen_random_uuid(), $1, 'SN-' || n, 'M', '', n, 0, false, 'active', 1, now(), now()"
        " FROM generate_series(1, 20) n",
        ORG.id,
    )
    group = await service.group("most", filter="cpu_count > 4")
    assert (group.state, group.members) == ("computing", 3)

    async def ready() -> pb.DeviceGroup:
        async with asyncio.timeout(PATIENCE):
            while (found := await _get(service, group.id)).state != "ready":
                await asyncio.sleep(0.05)
        return found

    assert (await ready()).members == 16
    # A device that changes meanwhile is computed by the new filter at once.
    await _update(service, group.id, filter="cpu_count <= 4")
    assert (await ready()).members == 4
    moved = [
        d for e in await service.events("device_groups_changed") for d in e["after"]["devices"]
    ]
    assert len(moved) == 16 + 20
    await service.groups.DeleteDeviceGroup(
        pb.DeleteDeviceGroupRequest(id=group.id), metadata=service.admin
    )
    async with asyncio.timeout(PATIENCE):
        while await service.sql("SELECT FROM enrollment.device WHERE group_ids <> '{}'"):
            await asyncio.sleep(0.05)


async def test_devices_of_the_last_release_are_computed(service: Enrollment) -> None:
    """It writes nothing of groups; a service finds them by that, and tells of it."""
    group = await service.group("all", filter="serial = SN*")
    await _change(service, (await service.group("listed")).id, add=["SN-7"])
    device = uuid4()
    await service.sql(
        "INSERT INTO enrollment.device (id, tenant_id, serial, model, cpu_model, cpu_count,"
        " total_ram_bytes, has_tpm, status, token_version, created_at)"
        " VALUES ($1, $2, 'SN-7', 'M', '', 1, 0, false, 'active', 1, now())",
        device,
        ORG.id,
    )
    assert await service.groups_of(str(device)) == set()
    catch_up = CatchUp(service.kit.database, service.kit.outbox)
    while await catch_up.step():
        pass
    assert await service.groups_of(str(device)) == {"all", "listed"}
    (event,) = await service.events("device_groups_changed")
    assert group.id in event["after"]["devices"][0]["joined"]
    assert await service.sql("SELECT FROM enrollment.device WHERE groups_computed_at IS NULL") == []


async def test_an_archived_organisation_has_nobody_in_its_groups(service: Enrollment) -> None:
    """Its devices come back into them with it."""
    group = await service.group("all", filter="serial = SN*")
    device = await _device(service, "SN-1")
    work = ArchivedDevices(service.kit.outbox, service.kit.clock)
    async with service.kit.database.transaction(service.kit.tenants.scope(ORG.id)) as connection:
        await work.archive(connection, ORG)
    assert (await _get(service, group.id)).members == 0
    async with service.kit.database.transaction(service.kit.tenants.scope(ORG.id)) as connection:
        await work.restore(connection, ORG)
    assert await service.groups_of(device) == {"all"}


# Whatever happens in whatever order


def _facts(row: Any) -> Facts:
    return Facts(
        serial=row["serial"],
        model=row["model"],
        cpu_model=row["cpu_model"],
        cpu_count=row["cpu_count"],
        total_ram_bytes=int(row["total_ram_bytes"]),
        has_tpm=row["has_tpm"],
        enrolled_at=row["enrolled_at"],
        token=(row["token_id"], row["token_name"]) if row["token_id"] else None,
        labels=json.loads(row["labels"]),
    )


async def _check(service: Enrollment) -> None:
    """Each device is in the groups that Python says, from its row and the groups alone."""
    groups = await service.sql(
        "SELECT id, tenant_id, filter FROM enrollment.device_group WHERE deleted_at IS NULL"
    )
    lists = {
        (row["group_id"], row["serial_key"])
        for row in await service.sql("SELECT group_id, serial_key FROM enrollment.group_member")
    }
    devices = await service.sql(
        "SELECT d.*, t.id AS token_id, t.name AS token_name FROM enrollment.device d"
        " LEFT JOIN enrollment.token t ON t.id = d.enrollment_token_id"
    )
    for row in devices:
        wanted: set[UUID] = set()
        if row["status"] in {"pending", "prepared", "active"} and row["deleted_at"] is None:
            wanted = {
                group["id"]
                for group in groups
                if group["tenant_id"] == row["tenant_id"]
                and (
                    (group["id"], row["serial_key"]) in lists
                    if group["filter"] is None
                    else matches(parse(group["filter"]), _facts(row))
                )
            }
        assert row["group_ids"] == sorted(wanted), (row["serial"], row["status"])
        assert row["groups_computed_at"] is not None


_SOME = (
    "labels.year = 7",
    "labels.year > 7 OR model = Other",
    "cpu_count >= 4 AND NOT labels:room",
    "enrollment_token = Cart*",
    "serial = SN-1 OR serial = SN-2",
)


async def test_any_history_ends_with_what_python_says(
    service: Enrollment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls in random order, several at a time: what was computed bit by bit is the whole."""
    monkeypatch.setattr(groups_module, "_AT_ONCE", 2)
    random = Random(55)
    given = (await service.group("given")).id
    keys = [
        (await service.token(name=name, group_ids=ids, labels={"cart": "1"})).pre_shared_key
        for name, ids in (("Cart 1", [given]), ("Room", []))
    ]
    serials = [f"SN-{n}" for n in range(8)]
    groups: list[str] = [given]

    async def device_id() -> str | None:
        rows = await service.sql("SELECT id::text FROM enrollment.device ORDER BY id")
        return random.choice(rows)["id"] if rows else None

    async def enroll() -> None:
        await service.enroll(
            random.choice(keys),
            random.choice(serials),
            model=random.choice(("Book", "Other")),
            cpu_count=random.choice((2, 4)),
        )

    async def label() -> None:
        if (id_ := await device_id()) is not None:
            key, value = random.choice((("year", "7"), ("year", "10"), ("room", "A")))
            await service.registry.UpdateRegistration(
                pb.UpdateRegistrationRequest(
                    id=id_,
                    labels={key: value},
                    remove_labels=random.choice(([], ["cart"])),
                ),
                metadata=service.admin,
            )

    async def decide() -> None:
        if (id_ := await device_id()) is not None:
            await service.act(
                random.choice(("AllowReenrollment", "DecommissionDevice", "DeleteDevice")), id_
            )

    async def add_group() -> None:
        more = {} if random.random() < 0.4 else {"filter": random.choice(_SOME)}
        groups.append((await service.group(f"g{random.randrange(10**9)}", **more)).id)

    async def change_group() -> None:
        if groups:
            await _update(service, random.choice(groups), filter=random.choice(_SOME))

    async def change_members() -> None:
        if groups:
            some = random.sample(serials, 4)
            await _change(service, random.choice(groups), add=some[:3], remove=some[3:])

    async def delete_group() -> None:
        if len(groups) > 3:
            id_ = groups.pop(random.randrange(len(groups)))
            await service.groups.DeleteDeviceGroup(
                pb.DeleteDeviceGroupRequest(id=id_), metadata=service.admin
            )

    async def bulk() -> None:
        rows = [
            pb.RegistrationChange(device=serial, labels={"year": random.choice("789")})
            for serial in random.sample(serials, 3)
        ]
        await service.registry.BatchUpdateRegistrations(
            pb.BatchUpdateRegistrationsRequest(org_id=str(ORG.id), rows=rows, skip_refused=True),
            metadata=service.admin,
        )

    steps = [enroll, enroll, enroll, label, label, decide, add_group, change_group, change_members,
             delete_group, bulk]  # fmt: skip
    for _ in range(40):
        answers = await asyncio.gather(
            *(random.choice(steps)() for _ in range(random.randint(1, 4))), return_exceptions=True
        )
        for answer in answers:
            # Refusals are part of the game, defects are not.
            if isinstance(answer, BaseException):
                assert isinstance(answer, grpc.aio.AioRpcError), answer
                assert answer.code() not in {
                    grpc.StatusCode.INTERNAL,
                    grpc.StatusCode.UNAVAILABLE,
                }, answer
    async with asyncio.timeout(PATIENCE):
        while await service.sql(
            "SELECT FROM enrollment.device_group WHERE computing_after IS NOT NULL"
        ):
            await asyncio.sleep(0.05)
    await _check(service)
    assert groups
