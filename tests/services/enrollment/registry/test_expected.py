"""Devices that are expected: imported before they enroll, and found by exactly what names them."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import enrollment_pb2 as pb
from services.enrollment.groups.catch_up import CatchUp
from services.enrollment.registry import expected
from tests.support import callers
from tests.support.enrollment import ORG, OTHER, RESELLER, Enrollment, reason, service
from tests.support.refusals import refusal

__all__ = ["service"]

Row = pb.ImportedRegistration


async def _import(
    service: Enrollment, *rows: Row, **more: Any
) -> pb.BatchUpdateRegistrationsResponse:
    return await service.registry.BatchImportRegistrations(
        pb.BatchImportRegistrationsRequest(**{"org_id": str(ORG.id), "rows": rows, **more}),
        metadata=service.admin,
    )


async def _find(service: Enrollment, **more: Any) -> pb.BatchGetRegistrationsResponse:
    return await service.registry.BatchGetRegistrations(
        pb.BatchGetRegistrationsRequest(**more), metadata=service.admin
    )


async def _listed(service: Enrollment, **more: Any) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    token = ""
    while True:
        page = await service.registry.ListRegistrations(
            pb.ListRegistrationsRequest(page_token=token, **more), metadata=service.admin
        )
        found += [(r.serial, r.status) for r in page.registrations]
        if not (token := page.next_page_token):
            return found


async def test_an_expected_device_becomes_active_when_it_enrolls(service: Enrollment) -> None:
    """With its id, its labels over the token's, its asset tag, and in the groups that list it."""
    cart = await service.group("cart-3")
    await service.group("room", filter="labels.room = 214")
    row = Row(
        serial="SN-1",
        model="Book 14",
        asset_tag="A-0417",
        note="Lid",
        labels={"room": "214"},
        groups=["cart-3"],
        line=2,
    )
    done = await _import(service, row)
    (result,) = done.results
    assert (done.applied, done.added, result.result, result.line) == (True, 1, "ADDED", 2)
    waits = await service.registration(result.id)
    assert (waits.status, waits.serial, waits.model) == ("expected", "SN-1", "Book 14")
    assert (waits.asset_tag, waits.note, dict(waits.labels)) == ("A-0417", "Lid", {"room": "214"})
    assert (await service.groups.GetDeviceGroup(
        pb.GetDeviceGroupRequest(id=cart.id), metadata=service.admin
    )).waiting == 1  # fmt: skip
    assert await service.sql("SELECT FROM enrollment.device") == []
    token = await service.token(labels={"room": "0", "year": "7"})
    device = (await service.enrolled(token.pre_shared_key, "sn-1"))["device_id"]
    assert device == result.id
    came = await service.registration(device)
    # The firmware's words count from now on.
    assert (came.status, came.serial, came.model) == ("active", "sn-1", "Framework 12")
    assert (came.asset_tag, came.note) == ("A-0417", "Lid")
    assert dict(came.labels) == {"room": "214", "year": "7"}
    assert await service.groups_of(device) == {"cart-3", "room"}
    assert await service.sql("SELECT FROM enrollment.expected_device") == []
    assert [e["after"]["serial"] for e in await service.events("device_expected")] == ["SN-1"]
    again = await _import(service, row)
    assert [r.result for r in again.results] == ["UNCHANGED"]


async def test_the_same_list_again_changes_nothing(service: Enrollment) -> None:
    """What changed is changed; no event is written twice; a try writes nothing."""
    rows = [Row(serial=f"SN-{n}", asset_tag=f"A-{n}", labels={"room": "1"}) for n in range(3)]
    tried = await _import(service, *rows, validate_only=True)
    assert (tried.applied, tried.added) == (False, 3)
    assert await service.sql("SELECT FROM enrollment.expected_device") == []
    assert (await _import(service, *rows)).added == 3
    assert (await _import(service, *rows)).unchanged == 3
    changed = await _import(
        service,
        Row(serial="sn-0", asset_tag="", remove_labels=["room"]),
        Row(serial="SN-1", labels={"room": "2"}),
        Row(serial="SN-2", model="Book"),
    )
    assert (changed.changed, changed.added) == (3, 0)
    assert len(await service.events("device_expected")) == 3
    assert len(await service.events("device_labels_changed")) == 3
    found = {r.serial: r for r in (await _find(service, serials=["SN-0", "sn-1"])).registrations}
    assert (found["SN-0"].asset_tag, dict(found["SN-0"].labels)) == ("", {})
    assert dict(found["SN-1"].labels) == {"room": "2"}


async def test_a_list_with_errors_is_not_imported(service: Enrollment) -> None:
    """All errors at once, each with its line; or the rest without them."""
    rows = [
        Row(serial="SN-1", line=2),
        Row(serial="Default string", line=3),
        Row(serial="sn-1", line=4),
        Row(serial="SN-2", labels={"Room": "1"}, line=5),
        Row(serial="SN-3", groups=["none"], line=6),
        Row(serial="unnamed:1", line=7),
    ]
    refused = await _import(service, *rows)
    assert (refused.applied, refused.refused, refused.added) == (False, 5, 1)
    assert [(r.line, r.field) for r in refused.results if r.result == "REFUSED"] == [
        (3, "serial"),
        (4, "serial"),
        (5, "labels.Room"),
        (6, "groups[0]"),
        (7, "serial"),
    ]
    assert refused.results[2].message == "is also on line 2"
    assert await service.sql("SELECT FROM enrollment.expected_device") == []
    done = await _import(service, *rows, skip_refused=True)
    assert (done.applied, done.added, done.refused) == (True, 1, 5)
    too_many = await refusal(_import(service, *[Row(serial=f"SN-{n}") for n in range(1001)]))
    assert too_many.fields == ["rows"]


async def test_a_known_device_is_changed_by_a_list(service: Enrollment) -> None:
    """Enrolled, retired; one that was deleted is refused."""
    key = (await service.token()).pre_shared_key
    await service.group("cart-3")
    ids = [(await service.enrolled(key, f"SN-{n}"))["device_id"] for n in range(3)]
    await service.act("DecommissionDevice", ids[1])
    await service.act("DecommissionDevice", ids[2])
    await service.act("DeleteDevice", ids[2])
    rows = [
        Row(serial=f"SN-{n}", asset_tag=f"A-{n}", model="x", groups=["cart-3"]) for n in range(3)
    ]
    done = await _import(service, *rows, skip_refused=True)
    assert [r.result for r in done.results] == ["CHANGED", "CHANGED", "REFUSED"]
    assert done.results[2].reason == "DEVICE_DELETED"
    assert await service.groups_of(ids[0]) == {"cart-3"}
    assert await service.groups_of(ids[1]) == set()
    assert (await service.registration(ids[0])).model == "Framework 12"


async def test_lists_show_expected_devices(service: Enrollment) -> None:
    """Among all, or alone; by filter and asset tag; in pages, newest first."""
    key = (await service.token()).pre_shared_key
    for n in range(3):
        await _import(service, Row(serial=f"E-{n}", asset_tag="A", labels={"room": str(n)}))
        await service.enrolled(key, f"D-{n}")
    everything = [(f"{kind}-{n}", status) for n in (2, 1, 0)
                  for kind, status in (("D", "active"), ("E", "expected"))]  # fmt: skip
    for size in (1, 2, 3, 5, 100):
        assert await _listed(service, page_size=size) == everything
    assert await _listed(service, status="expected", page_size=2) == everything[1::2]
    assert await _listed(service, status="active") == everything[::2]
    assert await _listed(service, filter="labels.room >= 1") == [everything[1], everything[3]]
    assert await _listed(service, serial="e-1") == [("E-1", "expected")]
    assert len(await _listed(service, asset_tag="A")) == 3


async def test_names_are_matched_whole(service: Enrollment) -> None:
    """Serial numbers in any spelling, asset tags, ids; and what nobody has."""
    await _import(
        service, Row(serial="5CD0000010", asset_tag="A-1"), Row(serial="S2", asset_tag="A-1")
    )
    device = (await service.enrolled((await service.token()).pre_shared_key, "S3"))["device_id"]
    nobody = str(uuid4())
    found = await _find(
        service,
        org_id=str(ORG.id),
        serials=["5CD000001", "5cd0000010", "S3"],
        asset_tags=["A-1", "a-1", "A"],
        ids=[device, nobody],
    )
    assert [r.serial for r in found.registrations] == ["5CD0000010", "S2", "S3"]
    assert list(found.missing_serials) == ["5CD000001"]
    assert list(found.missing_asset_tags) == ["a-1", "A"]
    assert list(found.missing_ids) == [nobody]


async def test_an_expected_device_is_described_and_removed(service: Enrollment) -> None:
    """By its id; nothing else can be decided about it, and nothing of it stays."""
    (result,) = (await _import(service, Row(serial="SN-1"))).results
    labelled = await service.label(result.id, room="214")
    assert (labelled.status, dict(labelled.labels)) == ("expected", {"room": "214"})
    for method, expected_reason in (
        ("ApproveDevice", "DEVICE_NOT_PENDING"),
        ("RejectDevice", "DEVICE_NOT_PENDING"),
        ("AllowReenrollment", "DEVICE_EXPECTED"),
        ("DecommissionDevice", "DEVICE_EXPECTED"),
    ):
        assert (await refusal(service.act(method, result.id))).reason == expected_reason
    stale = await refusal(
        service.registry.DeleteDevice(
            pb.DeleteDeviceRequest(id=result.id, etag="other"), metadata=service.admin
        )
    )
    assert stale.code is grpc.StatusCode.ABORTED
    await service.act("DeleteDevice", result.id)
    assert (await refusal(service.registration(result.id))).code is grpc.StatusCode.NOT_FOUND
    (event,) = await service.events("expected_device_removed")
    assert event["before"]["labels"] == {"room": "214"}
    assert event["resource"] == f"devices/{result.id}"
    device = (await service.enrolled((await service.token()).pre_shared_key))["device_id"]
    assert device != result.id


async def test_a_token_can_admit_expected_devices_alone(service: Enrollment) -> None:
    """Others are refused; a service of the last release admits nobody by it."""
    await _import(service, Row(serial="SN-1"), Row(serial="SN-2"))
    wrong = await refusal(service.token(only_expected=True, serials=["SN-1"]))
    assert wrong.fields == ["serials"]
    token = await service.token(only_expected=True, require_approval=True)
    assert (token.only_expected, list(token.serials)) == (True, [])
    (row,) = await service.sql("SELECT serial_count FROM enrollment.token")
    assert row["serial_count"] == 1
    key = token.pre_shared_key
    assert reason(await service.enroll(key, "SN-3")) == "DEVICE_NOT_EXPECTED"
    assert reason(await service.enroll(key, "To be filled by O.E.M.")) == "SERIAL_NOT_LISTED"
    assert reason(await service.enroll(key, "SN-1")) == "AWAITING_APPROVAL"
    ((device, status),) = [
        (r["id"], r["status"])
        for r in await service.sql("SELECT id, status FROM enrollment.device")
    ]
    assert status == "pending"
    await service.act("ApproveDevice", str(device))
    await service.enrolled(key, "SN-1")
    refusals = await service.registry.ListEnrollmentRefusals(
        pb.ListEnrollmentRefusalsRequest(serial="SN-3"), metadata=service.admin
    )
    assert [r.reason for r in refusals.enrollment_refusals] == ["DEVICE_NOT_EXPECTED"]


async def test_an_expected_device_can_be_prepared(service: Enrollment) -> None:
    """Its start file carries the id by which it was expected."""
    (result,) = (await _import(service, Row(serial="SN-1", model="Book", asset_tag="A-1"))).results
    answer = await service.registry.PrepareDevice(
        pb.PrepareDeviceRequest(org_id=str(ORG.id), serial="sn-1"), metadata=service.admin
    )
    assert json.loads(answer.data)["device_id"] == result.id
    found = await service.registration(result.id)
    assert (found.status, found.model, found.asset_tag) == ("prepared", "Book", "A-1")


async def test_one_organisations_list_binds_no_other(service: Enrollment) -> None:
    """A serial number that a school expects enrolls elsewhere as if nothing were known of it."""
    (result,) = (await _import(service, Row(serial="SN-1", labels={"room": "1"}))).results
    other = await service.enrolled((await service.token(OTHER)).pre_shared_key, "SN-1")
    assert other["device_id"] != result.id
    assert (await service.registration(result.id)).status == "expected"
    stranger = callers.user(OTHER.id, Role.OWNER)
    auditor = callers.user(ORG.id, Role.AUDITOR)
    batch = pb.BatchImportRegistrationsRequest(org_id=str(ORG.id), rows=[Row(serial="SN-9")])
    for who, code in ((stranger, "NOT_FOUND"), (auditor, "PERMISSION_DENIED")):
        found = await refusal(service.registry.BatchImportRegistrations(batch, metadata=who))
        assert found.code.name == code
    look = pb.BatchGetRegistrationsRequest(serials=["SN-1"], ids=[result.id])
    seen = await service.registry.BatchGetRegistrations(look, metadata=stranger)
    assert [r.id for r in seen.registrations] == [other["device_id"]]
    assert list(seen.missing_ids) == [result.id]
    seen = await service.registry.BatchGetRegistrations(look, metadata=auditor)
    assert [r.id for r in seen.registrations] == [result.id]
    gone = pb.GetRegistrationRequest(id=result.id)
    assert (await refusal(service.registry.GetRegistration(gone, metadata=stranger))).code is (
        grpc.StatusCode.NOT_FOUND
    )
    await service.registry.BatchImportRegistrations(
        batch, metadata=callers.user(RESELLER.id, Role.ADMIN)
    )


async def test_a_device_that_the_last_release_let_in_is_found(service: Enrollment) -> None:
    """It knows nothing of expected devices: their labels are taken over afterwards."""
    await _import(service, Row(serial="SN-1", asset_tag="A-1", labels={"room": "1"}))
    device = uuid4()
    await service.sql(
        "INSERT INTO enrollment.device (id, tenant_id, serial, model, cpu_model, cpu_count,"
        " total_ram_bytes, has_tpm, status, token_version, created_at)"
        " VALUES ($1, $2, 'sn-1', 'M', '', 1, 0, false, 'active', 1, now())",
        device,
        ORG.id,
    )
    catch_up = CatchUp(service.kit.database, service.kit.outbox)
    while await catch_up.step():
        pass
    found = await service.registration(str(device))
    assert (dict(found.labels), found.asset_tag) == ({"room": "1"}, "A-1")
    assert await _listed(service) == [("sn-1", "active")]


async def test_an_import_and_an_enrollment_at_once_are_one_device(service: Enrollment) -> None:
    """Whichever comes first: labels, groups and id agree afterwards."""
    key = (await service.token()).pre_shared_key
    await service.group("cart-3")
    rows = [Row(serial=f"SN-{n}", labels={"room": "1"}, groups=["cart-3"]) for n in range(20)]
    await asyncio.gather(
        *(service.enrolled(key, f"SN-{n}") for n in range(20)),
        *(_import(service, *rows[begin : begin + 5]) for begin in range(0, 20, 5)),
    )
    found = await service.sql(
        "SELECT labels, cardinality(group_ids) AS groups FROM enrollment.device"
    )
    assert [(json.loads(row["labels"]), row["groups"]) for row in found] == [
        ({"room": "1"}, 1)
    ] * 20
    assert await service.sql("SELECT FROM enrollment.expected_device") == []


async def test_an_organisation_expects_a_bounded_number(
    service: Enrollment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list that goes beyond is refused as a whole."""
    monkeypatch.setattr(expected, "MOST_EXPECTED", 2)
    await _import(service, Row(serial="SN-1"), Row(serial="SN-2"))
    found = await refusal(_import(service, Row(serial="SN-3")))
    assert found.reason == "TOO_MANY_EXPECTED"
    assert len(await _listed(service)) == 2
