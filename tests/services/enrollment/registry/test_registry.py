"""The registry: what administrators see and decide, and the feed that makes it effective."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import enrollment_pb2 as pb
from evergreen.v1 import policy_pb2
from servicekit.call import Caller, CallerKind
from servicekit.errors import DomainError
from servicekit.feeds.feed import Cursor
from servicekit.peers.devices import DeviceAccess, Mirror
from services.telemetry.inventory.service import DEVICES
from tests.conftest import MakeKit
from tests.support import callers
from tests.support.enrollment import (
    ENVELOPE,
    ORG,
    OTHER,
    RESELLER,
    ROOT,
    Enrollment,
    reason,
    service,
)
from tests.support.refusals import refusal
from tests.support.stack import PATIENCE

__all__ = ["service"]


async def _prepare(service: Enrollment, serial: str = "SN-1", **more: Any) -> dict[str, Any]:
    answer = await service.registry.PrepareDevice(
        pb.PrepareDeviceRequest(**{"org_id": str(ORG.id), "serial": serial, **more}),
        metadata=service.admin,
    )
    assert answer.content_type == "application/json"
    found: dict[str, Any] = json.loads(answer.data)
    return found


async def test_a_prepared_device_starts_from_its_file(service: Enrollment) -> None:
    """The file is the contract's, as a download, with the policy's exact bytes."""
    call = service.registry.PrepareDevice(
        pb.PrepareDeviceRequest(org_id=str(ORG.id), serial=' S/"N 1', model="Framework 12"),
        metadata=service.admin,
    )
    headers = dict(await call.initial_metadata() or ())
    answer = await call
    assert headers["content-disposition"] == 'attachment; filename="evergreen-S_N_1.json"'
    assert headers["cache-control"] == "no-store"
    assert answer.data.endswith(b'"policy":' + ENVELOPE + b"}")
    found = json.loads(answer.data)
    assert list(found) == ["device_id", "device_token", "policy"]
    registration = await service.registration(found["device_id"])
    assert (registration.status, registration.serial) == ("prepared", 'S/"N 1')
    assert registration.enrollment_token_id == ""
    (event,) = await service.events("device_prepared")
    assert event["actor"] == "admin@school.example"
    assert found["device_token"] not in json.dumps(event)


async def test_a_prepared_device_becomes_active_when_it_calls(service: Enrollment) -> None:
    """It never enrolls: its first question for a policy counts."""
    found = await _prepare(service)
    service.neighbours.policy.applied.append(
        policy_pb2.AppliedVersion(
            device_id=found["device_id"], tenant_id=str(ORG.id), version="7", token_version=1
        )
    )
    async with asyncio.timeout(PATIENCE):
        while (await service.registration(found["device_id"])).status != "active":
            await asyncio.sleep(0.1)
    assert (await service.registration(found["device_id"])).HasField("enrolled_at")
    (event,) = await service.events("device_enrolled")
    assert event["actor"] == f"device:{found['device_id']}"
    assert (event["before"]["status"], event["after"]["status"]) == ("prepared", "active")


async def test_a_prepared_serial_is_known(service: Enrollment) -> None:
    """Neither an agent nor a second file takes it over."""
    token = await service.token()
    await _prepare(service)
    assert reason(await service.enroll(token.pre_shared_key)) == "DEVICE_ALREADY_ENROLLED"
    again = await refusal(
        service.registry.PrepareDevice(
            pb.PrepareDeviceRequest(org_id=str(ORG.id), serial="SN-1"), metadata=service.admin
        )
    )
    assert (again.code, again.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "DEVICE_ALREADY_ENROLLED",
    )


async def test_an_allowed_device_is_prepared_again(service: Enrollment) -> None:
    """With its old identity and newer tokens; a call with an old token is not its first one."""
    first = await _prepare(service, model="Framework 12")
    await service.act("AllowReenrollment", first["device_id"])
    second = await _prepare(service)
    assert second["device_id"] == first["device_id"]
    assert second["device_token"].split("/")[2] == "2"
    for generation in (1, 2):
        registration = await service.registration(first["device_id"])
        assert registration.status == "prepared"
        assert registration.model == "Framework 12"
        service.neighbours.policy.applied.append(
            policy_pb2.AppliedVersion(
                device_id=first["device_id"], tenant_id=str(ORG.id), token_version=generation
            )
        )
        if generation == 1:
            await asyncio.sleep(1.2)
    async with asyncio.timeout(PATIENCE):
        while (await service.registration(first["device_id"])).status != "active":
            await asyncio.sleep(0.1)


async def test_nothing_is_prepared_while_a_neighbour_is_away(service: Enrollment) -> None:
    """No device without its file stays behind."""
    service.neighbours.identity.down = True
    found = await refusal(
        service.registry.PrepareDevice(
            pb.PrepareDeviceRequest(org_id=str(ORG.id), serial="SN-1"), metadata=service.admin
        )
    )
    assert found.code is grpc.StatusCode.UNAVAILABLE
    assert await service.sql("SELECT FROM enrollment.device") == []
    service.neighbours.identity.down = False
    await _prepare(service)


async def test_one_serial_prepared_twice_at_once_is_one_device(service: Enrollment) -> None:
    """One file is answered, the other request is refused."""
    answers = await asyncio.gather(*(_prepare(service) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(answer, dict) for answer in answers) == 1
    for answer in answers:
        if isinstance(answer, grpc.aio.AioRpcError):
            assert answer.code() in (grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.ABORTED)


async def test_decommissioning_is_final_and_told_once(service: Enrollment) -> None:
    """The second time changes nothing; the first time is in the log with before and after."""
    token = await service.token()
    found = await service.enrolled(token.pre_shared_key)
    first = await service.act("DecommissionDevice", found["device_id"])
    assert first.status == "decommissioned"
    assert first.HasField("decommissioned_at")
    assert await service.act("DecommissionDevice", found["device_id"]) == first
    (event,) = await service.events("device_decommissioned")
    assert event["actor"] == "admin@school.example"
    assert event["sourceIp"] == "192.0.2.7"
    assert event["before"]["status"] == "active"
    assert event["after"]["status"] == "decommissioned"


async def test_decommissioning_withdraws_a_permission_to_enroll_again(service: Enrollment) -> None:
    """The later word counts."""
    token = await service.token()
    found = await service.enrolled(token.pre_shared_key)
    await service.act("AllowReenrollment", found["device_id"])
    await service.act("DecommissionDevice", found["device_id"])
    assert reason(await service.enroll(token.pre_shared_key)) == "DEVICE_DECOMMISSIONED"
    await service.act("AllowReenrollment", found["device_id"])
    withdrawn = await service.act("DecommissionDevice", found["device_id"])
    assert not withdrawn.HasField("reenrollment_allowed_until")
    assert reason(await service.enroll(token.pre_shared_key)) == "DEVICE_DECOMMISSIONED"


async def test_only_a_device_that_waits_is_approved_or_rejected(service: Enrollment) -> None:
    """A repeated decision changes nothing; an opposite one is refused."""
    token = await service.token(require_approval=True)
    for serial in ("SN-1", "SN-2", "SN-3"):
        await service.enroll(token.pre_shared_key, serial)
    rows = await service.sql("SELECT id FROM enrollment.device ORDER BY serial")
    one, two, three = (str(row["id"]) for row in rows)
    for _ in range(2):
        assert (await service.act("ApproveDevice", one)).status == "active"
        assert (await service.act("RejectDevice", two)).status == "rejected"
    assert (await service.act("DecommissionDevice", three)).status == "decommissioned"
    for method, device in (
        ("RejectDevice", one),
        ("ApproveDevice", two),
        ("ApproveDevice", three),
        ("RejectDevice", three),
    ):
        found = await refusal(service.act(method, device))
        assert (found.code, found.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "DEVICE_NOT_PENDING",
        )
    assert len(await service.events("device_approved")) == 1
    assert len(await service.events("device_rejected")) == 1


async def test_a_device_that_waits_needs_no_permission_to_enroll_again(service: Enrollment) -> None:
    """It is approved or rejected instead."""
    token = await service.token(require_approval=True)
    await service.enroll(token.pre_shared_key)
    (row,) = await service.sql("SELECT id FROM enrollment.device")
    found = await refusal(service.act("AllowReenrollment", str(row["id"])))
    assert (found.code, found.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "DEVICE_PENDING",
    )


async def test_a_list_goes_on_where_it_stopped_and_filters(service: Enrollment) -> None:
    """Newest first, in pages, by organisation and status."""
    token, other = await service.token(), await service.token(OTHER)
    made = [
        (await service.enrolled(token.pre_shared_key, f"SN-{n}"))["device_id"] for n in range(5)
    ]
    foreign = (await service.enrolled(other.pre_shared_key))["device_id"]
    await service.act("DecommissionDevice", made[2])

    async def pages(who: callers.Metadata, **query: Any) -> list[str]:
        found: list[str] = []
        page = ""
        while True:
            answer = await service.registry.ListRegistrations(
                pb.ListRegistrationsRequest(page_size=2, page_token=page, **query), metadata=who
            )
            found += [registration.id for registration in answer.registrations]
            page = answer.next_page_token
            if not page:
                return found

    root = callers.user(ROOT.id, Role.AUDITOR)
    assert await pages(service.admin) == made[::-1]
    assert await pages(root) == [foreign, *made[::-1]]
    assert await pages(root, org_id=str(OTHER.id)) == [foreign]
    assert await pages(root, org_id=str(RESELLER.id)) == made[::-1]
    assert await pages(root, status="decommissioned") == [made[2]]
    assert await pages(root, status="pending") == []


async def test_organisations_do_not_meet(service: Enrollment) -> None:
    """Another organisation's devices look as if they did not exist, whatever is tried."""
    token = await service.token()
    device_id = (await service.enrolled(token.pre_shared_key))["device_id"]
    stranger = callers.user(OTHER.id)
    before = await service.registration(device_id)
    for method in (
        "GetRegistration",
        "ApproveDevice",
        "RejectDevice",
        "AllowReenrollment",
        "DecommissionDevice",
    ):
        request = getattr(pb, f"{method}Request")(id=device_id)
        found = await refusal(getattr(service.registry, method)(request, metadata=stranger))
        assert found.code is grpc.StatusCode.NOT_FOUND, method
    for org in (ORG, RESELLER, ROOT):
        for call in (
            service.registry.ListRegistrations(
                pb.ListRegistrationsRequest(org_id=str(org.id)), metadata=stranger
            ),
            service.registry.PrepareDevice(
                pb.PrepareDeviceRequest(org_id=str(org.id), serial="SN-1"), metadata=stranger
            ),
        ):
            assert (await refusal(call)).code is grpc.StatusCode.NOT_FOUND
    assert await service.registration(device_id) == before
    mine = await service.registry.ListRegistrations(
        pb.ListRegistrationsRequest(), metadata=stranger
    )
    assert not mine.registrations


BAD_QUESTIONS: list[tuple[str, Any, str]] = [
    ("ListRegistrations", pb.ListRegistrationsRequest(org_id="x"), "orgId"),
    ("ListRegistrations", pb.ListRegistrationsRequest(status="lost"), "status"),
    ("ListRegistrations", pb.ListRegistrationsRequest(page_size=-1), "pageSize"),
    ("ListRegistrations", pb.ListRegistrationsRequest(page_size=501), "pageSize"),
    ("ListRegistrations", pb.ListRegistrationsRequest(page_token="%"), "pageToken"),
    ("ListRegistrations", pb.ListRegistrationsRequest(page_token="W10"), "pageToken"),
    ("GetRegistration", pb.GetRegistrationRequest(), "id"),
    ("GetRegistration", pb.GetRegistrationRequest(id="1"), "id"),
    ("ApproveDevice", pb.ApproveDeviceRequest(id="\x00"), "id"),
    ("RejectDevice", pb.RejectDeviceRequest(), "id"),
    ("AllowReenrollment", pb.AllowReenrollmentRequest(id="x" * 36), "id"),
    ("DecommissionDevice", pb.DecommissionDeviceRequest(), "id"),
    ("PrepareDevice", pb.PrepareDeviceRequest(org_id=str(ORG.id)), "serial"),
    ("PrepareDevice", pb.PrepareDeviceRequest(org_id=str(ORG.id), serial="\x01"), "serial"),
    ("PrepareDevice", pb.PrepareDeviceRequest(org_id=str(ORG.id), serial=" "), "serial"),
    ("PrepareDevice", pb.PrepareDeviceRequest(org_id=str(ORG.id), serial="x" * 129), "serial"),
    ("PrepareDevice", pb.PrepareDeviceRequest(serial="SN-1"), "orgId"),
    ("PrepareDevice", pb.PrepareDeviceRequest(serial="SN-1", org_id="x"), "orgId"),
    (
        "PrepareDevice",
        pb.PrepareDeviceRequest(org_id=str(ORG.id), serial="SN-1", model="x" * 257),
        "model",
    ),
]


async def test_bad_questions_name_their_field(service: Enrollment) -> None:
    """Every field of every call is checked."""
    for method, request, field in BAD_QUESTIONS:
        found = await refusal(getattr(service.registry, method)(request, metadata=service.admin))
        assert found.code is grpc.StatusCode.INVALID_ARGUMENT, (method, request)
        assert found.fields == [field]


async def told_all(read: Callable[[str], Awaitable[tuple[Any, str]]], cursor: str) -> str:
    """The cursor behind which a feed tells nothing again.

    What was written while another transaction ran is told until that is over.
    """
    while True:
        told, cursor = await read(cursor)
        if not told:
            return cursor


async def test_the_feed_tells_what_changed_since(service: Enrollment) -> None:
    """All devices in pages, then only what changed; restricted ones on their own."""
    token = await service.token()
    made = [
        (await service.enrolled(token.pre_shared_key, f"SN-{n}"))["device_id"] for n in range(5)
    ]

    async def read(cursor: str, **more: Any) -> tuple[list[pb.DeviceChange], str]:
        found: list[pb.DeviceChange] = []
        while True:
            answer = await service.internal.ListDeviceChanges(
                pb.ListDeviceChangesRequest(cursor=cursor, limit=2, **more)
            )
            found += answer.devices
            cursor = answer.next_cursor
            if not answer.more:
                return found, cursor

    everything, cursor = await read("")
    assert [change.device_id for change in everything] == made
    assert everything[0].tenant_id == str(ORG.id)
    assert everything[0].serial == "SN-0"
    assert everything[0].HasField("enrolled_at")
    assert (await read("", restricted_only=True))[0] == []
    cursor = await told_all(read, cursor)
    await service.act("DecommissionDevice", made[3])
    changed, cursor = await read(cursor)
    assert [(change.device_id, change.status) for change in changed] == [
        (made[3], "decommissioned")
    ]
    # What the feed does not carry does not wake its readers.
    cursor = await told_all(read, cursor)
    await service.enroll(token.pre_shared_key, "SN-1", model="other")
    assert (await read(cursor))[0] == []
    await service.act("AllowReenrollment", made[3])
    await service.enrolled(token.pre_shared_key, "SN-3")
    restricted, _ = await read("", restricted_only=True)
    assert [(c.device_id, c.status, c.token_version) for c in restricted] == [
        (made[3], "active", 2)
    ]


async def test_a_change_that_commits_late_is_not_skipped(service: Enrollment) -> None:
    """A transaction that began before a reading and ended after it is in the next one."""
    token = await service.token()
    slow = (await service.enrolled(token.pre_shared_key, "slow"))["device_id"]
    fast = (await service.enrolled(token.pre_shared_key, "fast"))["device_id"]

    async def read(cursor: str) -> tuple[dict[str, str], str]:
        answer = await service.internal.ListDeviceChanges(
            pb.ListDeviceChangesRequest(cursor=cursor)
        )
        return {change.device_id: change.status for change in answer.devices}, answer.next_cursor

    cursor = await told_all(read, "")
    async with service.kit.database.system_transaction("a test works on all rows") as connection:
        await connection.execute(
            "UPDATE enrollment.device SET status = 'decommissioned' WHERE id = $1", UUID(slow)
        )
        # A later transaction commits first, and is read.
        await service.act("DecommissionDevice", fast)
        changed, cursor = await read(cursor)
        assert changed == {fast: "decommissioned"}
        again, cursor = await read(cursor)
        assert slow not in again
    late, _ = await read(cursor)
    assert late[slow] == "decommissioned"


async def test_the_feed_refuses_a_cursor_of_another_kind(service: Enrollment) -> None:
    """A cursor is what the feed answered, or empty."""
    for cursor in ("x", "1:2", "a:b:c"):
        found = await refusal(
            service.internal.ListDeviceChanges(pb.ListDeviceChangesRequest(cursor=cursor))
        )
        assert (found.code, found.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["cursor"])
    assert str(Cursor()) == "0:00000000-0000-0000-0000-000000000000:0"


async def test_the_feed_is_not_open_to_the_gateway(service: Enrollment) -> None:
    """The gateway's socket does not serve the other services' calls."""
    address = service.kit.settings.grpc_listen
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(
            "/evergreen.v1.EnrollmentInternalService/ListDeviceChanges",
            request_serializer=pb.ListDeviceChangesRequest.SerializeToString,
        )
        try:
            await call(pb.ListDeviceChangesRequest())
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        else:
            raise AssertionError("it was answered")


@pytest.mark.parametrize("mirror", [None, DEVICES], ids=["restricted", "all"])
async def test_a_lock_out_reaches_a_service_in_time_and_lasts(
    service: Enrollment, make_kit: MakeKit, mirror: Mirror[Any] | None
) -> None:
    """Another service refuses the device within 5 s, and after its restart without a feed.

    Also where it reads all devices, of which it keeps apart only those that are restricted.
    """
    token = await service.token()
    lost = (await service.enrolled(token.pre_shared_key, "lost"))["device_id"]
    again = (await service.enrolled(token.pre_shared_key, "again"))["device_id"]
    kit = await make_kit("telemetry")
    access = kit.device_access(mirror)
    await access.load()
    following = asyncio.create_task(access.follower.run())
    try:
        await _until(lambda: access.ready)
        assert _may_call(access, lost)
        await service.act("DecommissionDevice", lost)
        await service.act("AllowReenrollment", again)
        await service.enrolled(token.pre_shared_key, "again")
        await _until(lambda: not _may_call(access, lost) and not _may_call(access, again))
        assert _may_call(access, again, version=2)
        # What it heard it obeys at once, and keeps a moment later.
        restarted = kit.device_access(mirror)
        await restarted.load()
        async with asyncio.timeout(PATIENCE):
            while _may_call(restarted, lost) or _may_call(restarted, again):
                await asyncio.sleep(0.05)
                await restarted.load()
    finally:
        following.cancel()
    assert restarted.ready
    assert _may_call(restarted, again, version=2)
    async with kit.database.system_transaction("a test works on all rows") as connection:
        known = await connection.fetch("SELECT id FROM telemetry.device")
        restricted = await connection.fetch("SELECT device_id FROM telemetry.device_access")
    assert {str(row["id"]) for row in known} == (set() if mirror is None else {lost, again})
    assert {str(row["device_id"]) for row in restricted} == {lost, again}


def _may_call(access: DeviceAccess, device_id: str, version: int = 1) -> bool:
    try:
        access.check(
            Caller(CallerKind.DEVICE, id=device_id, tenant_id=str(ORG.id), token_version=version)
        )
    except DomainError:
        return False
    return True


async def _until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.05)
