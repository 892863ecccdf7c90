"""What names a machine: its serial number in any spelling, or an administrator's word."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest

from contract.access import Role
from evergreen.v1 import enrollment_pb2 as pb
from tests.support import callers
from tests.support.enrollment import (
    ORG,
    OTHER,
    ROOT,
    Enrollment,
    hardware,
    reason,
    service,
)

__all__ = ["service"]

SHARED = "To be filled by O.E.M"


async def _listed(service: Enrollment, **query: Any) -> list[pb.Registration]:
    answer = await service.registry.ListRegistrations(
        pb.ListRegistrationsRequest(**query), metadata=service.admin
    )
    return list(answer.registrations)


async def _refusals(service: Enrollment, **query: Any) -> list[pb.EnrollmentRefusal]:
    answer = await service.registry.ListEnrollmentRefusals(
        pb.ListEnrollmentRefusalsRequest(**query), metadata=service.admin
    )
    return list(answer.enrollment_refusals)


async def test_two_equal_machines_are_let_in_one_by_one(service: Enrollment) -> None:
    """Nothing that they send tells them apart: each approval is one identity, handed out once."""
    token = await service.token()
    for _ in range(2):
        answers = await asyncio.gather(
            *(service.enroll(token.pre_shared_key, SHARED) for _ in range(6))
        )
        assert {(a.status_code, reason(a)) for a in answers} == {(403, "AWAITING_APPROVAL")}
        (waits,) = await _listed(service, status="pending")
        assert waits.reported_serial == SHARED
        assert waits.serial == f"unnamed:{waits.id}"
        await service.act("ApproveDevice", waits.id)
        answers = await asyncio.gather(
            *(service.enroll(token.pre_shared_key, SHARED) for _ in range(6))
        )
        (admitted,) = [a for a in answers if a.status_code == 200]
        assert admitted.json()["device_id"] == waits.id
        assert {reason(a) for a in answers if a is not admitted} == {"AWAITING_APPROVAL"}
    assert len(await _listed(service, status="active")) == 2
    assert len(await _listed(service, status="pending")) == 1
    assert len(await service.events("device_pending")) == 3
    (row,) = await service.sql("SELECT uses FROM enrollment.token")
    assert row["uses"] == 3


@pytest.mark.parametrize("serial", ["", "  ", "\x00\x00", "System SerialNumber", "0123456789"])
async def test_a_machine_without_a_serial_number_waits(service: Enrollment, serial: str) -> None:
    """It is seen by administrators, and gets in by their word."""
    token = await service.token()
    assert reason(await service.enroll(token.pre_shared_key, serial)) == "AWAITING_APPROVAL"
    (waits,) = await _listed(service, status="pending")
    assert waits.HasField("reported_serial")
    await service.act("ApproveDevice", waits.id)
    found = await service.enrolled(token.pre_shared_key, serial)
    assert found["device_id"] == waits.id


async def test_an_answer_that_was_not_given_leaves_the_approval(service: Enrollment) -> None:
    """The machine asks again when its neighbours are back, and gets what was approved."""
    token = await service.token()
    await service.enroll(token.pre_shared_key, SHARED)
    (waits,) = await _listed(service, status="pending")
    await service.act("ApproveDevice", waits.id)
    service.neighbours.identity.down = True
    assert (await service.enroll(token.pre_shared_key, SHARED)).status_code == 503
    service.neighbours.identity.down = False
    assert (await service.enrolled(token.pre_shared_key, SHARED))["device_id"] == waits.id
    # A lost answer costs another word, which gives the same device newer tokens.
    assert (await service.enroll(token.pre_shared_key, SHARED)).status_code == 403
    await service.act("AllowReenrollment", waits.id)
    again = await service.enrolled(token.pre_shared_key, SHARED)
    assert (again["device_id"], again["device_token"].split("/")[2]) == (waits.id, "2")


async def test_who_was_refused_or_retired_stays_out(service: Enrollment) -> None:
    """A machine that an administrator rejected makes no second request; nor does a retired one."""
    token = await service.token()
    await service.enroll(token.pre_shared_key, SHARED)
    (waits,) = await _listed(service, status="pending")
    await service.act("RejectDevice", waits.id)
    for _ in range(2):
        assert reason(await service.enroll(token.pre_shared_key, SHARED)) == "DEVICE_REJECTED"
    await service.act("AllowReenrollment", waits.id)
    found = await service.enrolled(token.pre_shared_key, SHARED)
    assert found["device_id"] == waits.id
    await service.act("DecommissionDevice", waits.id)
    assert reason(await service.enroll(token.pre_shared_key, SHARED)) == "AWAITING_APPROVAL"
    assert (await service.registration(waits.id)).status == "decommissioned"


async def test_a_list_admits_no_machine_without_a_serial_number(service: Enrollment) -> None:
    """Nobody can put it on one."""
    token = await service.token(serials=["SN-1"])
    answer = await service.enroll(token.pre_shared_key, SHARED)
    assert (answer.status_code, reason(answer)) == (403, "SERIAL_NOT_LISTED")
    assert await _listed(service) == []


async def test_a_machine_without_a_serial_number_can_be_prepared(service: Enrollment) -> None:
    """Its start file is its name; each call makes one for another machine."""
    made = []
    for _ in range(2):
        answer = await service.registry.PrepareDevice(
            pb.PrepareDeviceRequest(org_id=str(ORG.id), serial=SHARED, model="Book"),
            metadata=service.admin,
        )
        made.append(json.loads(answer.data)["device_id"])
    assert made[0] != made[1]
    found = await service.registration(made[0])
    assert (found.status, found.serial, found.reported_serial) == (
        "prepared",
        f"unnamed:{made[0]}",
        SHARED,
    )


async def test_a_serial_number_is_one_in_every_spelling(service: Enrollment) -> None:
    """Case, width, blanks and NUL make no second device; it is shown as it was first said."""
    token = await service.token(max_uses=1)
    found = await service.enrolled(token.pre_shared_key, "PF-1a2B", model="Book \x00")
    for serial in ("pf-1A2b", " PF-1A2B\x00\x00", "\uff30\uff26-1a2b"):
        again = await service.enrolled(token.pre_shared_key, serial, model="Book")
        assert again["device_id"] == found["device_id"]
    (shown,) = await _listed(service, serial="pf-1a2b ")
    assert (shown.id, shown.serial, shown.model) == (found["device_id"], "PF-1a2B", "Book")
    assert not shown.serial_duplicated
    assert await _listed(service, serial="pf-1a2") == []
    service.called(found["device_id"])
    assert reason(await service.enroll(token.pre_shared_key, "pf-1a2b", model="Book")) == (
        "DEVICE_ALREADY_ENROLLED"
    )
    listed = await service.token(serials=["5cd-x1"])
    assert await service.enrolled(listed.pre_shared_key, "5CD-X1")


async def test_spellings_that_were_two_devices_stay_two(service: Enrollment) -> None:
    """They enrolled before spellings were compared: kept apart, each found as it spells itself."""
    token = await service.token()
    first = (await service.enrolled(token.pre_shared_key, "AB-1x"))["device_id"]
    await service.sql(
        "INSERT INTO enrollment.device (id, tenant_id, serial, model, cpu_model, cpu_count,"
        " total_ram_bytes, has_tpm, status, token_version, created_at)"
        " SELECT $2, tenant_id, 'ab-1X', model, cpu_model, cpu_count, total_ram_bytes, has_tpm,"
        " 'decommissioned', 1, now() FROM enrollment.device WHERE id = $1",
        first,
        uuid4(),
    )
    both = await _listed(service, serial="ab-1x")
    assert {(r.serial, r.serial_duplicated) for r in both} == {("AB-1x", False), ("ab-1X", True)}
    assert (await service.enrolled(token.pre_shared_key, "AB-1x"))["device_id"] == first
    assert (await service.enrolled(token.pre_shared_key, "ab-1x"))["device_id"] == first
    assert reason(await service.enroll(token.pre_shared_key, "ab-1X")) == "DEVICE_DECOMMISSIONED"


async def test_a_retry_comes_from_where_the_device_enrolled(service: Enrollment) -> None:
    """Another address is another machine, with which its firmware shares the serial number."""
    token = await service.token()

    async def enroll(serial: str, address: str) -> Any:
        body = hardware() | {"serial": serial, "pre_shared_key": token.pre_shared_key}
        return await service.agents.post(
            "/api/v1/devices/enroll",
            content=json.dumps(body).encode(),
            headers=dict(callers.anonymous(address)),
        )

    for serial, first, near, far in (
        ("SN-7", "192.0.2.1", "192.0.2.1", "192.0.2.2"),
        ("SN-8", "2001:db8::1", "2001:db8::2:1", "2001:db8:0:1::1"),
    ):
        answers = [await enroll(serial, at) for at in (first, near, far)]
        assert [a.status_code for a in answers] == [200, 200, 409]
        assert answers[0].json()["device_id"] == answers[1].json()["device_id"]
        (refusal,) = await _refusals(service, serial=serial)
        assert (refusal.reason, refusal.source_ip) == ("DEVICE_ALREADY_ENROLLED", far)
    assert len(await service.events("reenrollment_refused")) == 2


async def test_administrators_see_who_was_refused(service: Enrollment) -> None:
    """With the reason and how often; an event tells of each at most once an hour."""
    listed, other = await service.token(serials=["SN-9"]), await service.token(OTHER, max_uses=1)
    for n in range(3):
        answer = await service.enroll(listed.pre_shared_key, "Sn-1" if n else "sn-1")
        assert reason(answer) == "SERIAL_NOT_LISTED"
    for n in range(2):
        await service.enroll(other.pre_shared_key, f"OT-{n}")
    (found,) = await _refusals(service)
    assert (found.reason, found.serial, found.attempts, found.source_ip) == (
        "SERIAL_NOT_LISTED",
        "Sn-1",
        3,
        "192.0.2.9",
    )
    assert (found.org_id, found.enrollment_token_id) == (str(ORG.id), listed.id)
    assert await _refusals(service, serial="other") == []
    answer = await service.registry.ListEnrollmentRefusals(
        pb.ListEnrollmentRefusalsRequest(), metadata=callers.user(ROOT.id, Role.AUDITOR)
    )
    assert [r.reason for r in answer.enrollment_refusals] == ["TOKEN_USED_UP", "SERIAL_NOT_LISTED"]
    events = await service.events("enrollment.refused")
    assert [e["after"]["reason"] for e in events] == ["SERIAL_NOT_LISTED", "TOKEN_USED_UP"]
    assert events[0]["resource"] == f"enrollment-tokens/{listed.id}"
    await service.sql("UPDATE enrollment.refusal SET told_at = told_at - interval '61 minutes'")
    await service.enroll(listed.pre_shared_key, "sn-1")
    assert len(await service.events("enrollment.refused")) == 3


async def test_refusals_are_bounded(service: Enrollment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serial numbers can be made up: of an organisation the latest stay, and a few are told."""
    monkeypatch.setattr("services.enrollment.registry.refusals.MOST_REFUSALS", 15)
    token = await service.token(serials=["SN-9"])
    for n in range(40):
        await service.enroll(token.pre_shared_key, f"made-up-{n}")
    found = await _refusals(service)
    told = range(20)
    assert [r.serial for r in found] == [
        f"made-up-{n}" for n in range(39, -1, -1) if n >= 25 or n in told
    ]
    assert len(await service.events("enrollment.refused")) == 20
    page = await service.registry.ListEnrollmentRefusals(
        pb.ListEnrollmentRefusalsRequest(page_size=20), metadata=service.admin
    )
    rest = await _refusals(service, page_token=page.next_page_token)
    assert [*page.enrollment_refusals, *rest] == found
