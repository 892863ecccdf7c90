"""Labels of devices: what administrators set and remove, one by one and many at once."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import enrollment_pb2 as pb
from servicekit.errors import DomainError
from services.enrollment.registry.labels import clean_labels
from tests.support import callers
from tests.support.enrollment import ORG, OTHER, RESELLER, Enrollment, service
from tests.support.refusals import refusal

__all__ = ["service"]


async def _update(service: Enrollment, id_: str, **more: Any) -> pb.Registration:
    return await service.registry.UpdateRegistration(
        pb.UpdateRegistrationRequest(id=id_, **more), metadata=service.admin
    )


async def _batch(
    service: Enrollment, *rows: pb.RegistrationChange, **more: Any
) -> pb.BatchUpdateRegistrationsResponse:
    return await service.registry.BatchUpdateRegistrations(
        pb.BatchUpdateRegistrationsRequest(**{"org_id": str(ORG.id), "rows": rows, **more}),
        metadata=service.admin,
    )


async def test_labels_are_set_and_removed_one_by_one(service: Enrollment) -> None:
    """Others stay; the second time changes nothing; the event has before and after."""
    device = (await service.enrolled((await service.token()).pre_shared_key))["device_id"]
    first = await _update(
        service, device, labels={"room": " 214 ", "year": "7"}, asset_tag="A-0417", note="Lid\nbent"
    )
    assert dict(first.labels) == {"room": "214", "year": "7"}
    assert (first.asset_tag, first.note) == ("A-0417", "Lid\nbent")
    assert await _update(service, device, labels={"room": "214"}, etag=first.etag) == first
    second = await _update(
        service, device, labels={"cart": "3"}, remove_labels=["year", "absent"], asset_tag=""
    )
    assert dict(second.labels) == {"room": "214", "cart": "3"}
    assert (second.asset_tag, second.note) == ("", "Lid\nbent")
    assert second.etag != first.etag
    assert await service.registration(device) == second
    one, two = await service.events("device_labels_changed")
    assert one["actor"] == "admin@school.example"
    assert one["before"]["labels"] == {}
    assert one["after"] == {
        "serial": "SN-1",
        "orgId": str(ORG.id),
        "labels": {"room": "214", "year": "7"},
        "assetTag": "A-0417",
        "note": "Lid\nbent",
    }
    assert two["after"]["labels"] == {"cart": "3", "room": "214"}


@pytest.mark.parametrize(
    ("labels", "field"),
    [
        ({"Room": "1"}, "labels.Room"),
        ({"1room": "1"}, "labels.1room"),
        ({"": "1"}, "labels."),
        ({"r" * 64: "1"}, f"labels.{'r' * 64}"),
        ({"room": " "}, "labels.room"),
        ({"room": "x" * 129}, "labels.room"),
        ({"room": "a\nb"}, "labels.room"),
        ({f"k{n}": "1" for n in range(33)}, "labels"),
    ],
)
def test_a_label_that_breaks_a_rule_is_named(labels: dict[str, str], field: str) -> None:
    """Key, value, number."""
    with pytest.raises(DomainError) as refused:
        clean_labels(labels)
    assert refused.value.violations[0].field == field


async def test_a_refused_label_changes_nothing(service: Enrollment) -> None:
    """Neither with a wrong key, nor with too many in all."""
    device = (await service.enrolled((await service.token()).pre_shared_key))["device_id"]
    before = await _update(service, device, labels={f"k{n}": "1" for n in range(32)})
    wrong: list[dict[str, Any]] = [
        {"labels": {"one-more": "1"}},
        {"labels": {"Key": "1"}},
        {"labels": {"k1": "2"}, "remove_labels": ["k1"]},
        {"remove_labels": ["Key"]},
        {"note": "x" * 501},
        {"asset_tag": "a\tb"},
    ]
    for more in wrong:
        found = await refusal(_update(service, device, **more))
        assert found.code is grpc.StatusCode.INVALID_ARGUMENT, more
    assert await service.registration(device) == before
    swapped = await _update(service, device, labels={"one-more": "1"}, remove_labels=["k1"])
    assert len(swapped.labels) == 32


async def test_lists_find_devices_by_labels(service: Enrollment) -> None:
    """By the filter of groups, by asset tag; a wrong filter is refused."""
    key = (await service.token()).pre_shared_key
    ids = [(await service.enrolled(key, f"SN-{n}"))["device_id"] for n in range(3)]
    await _update(service, ids[0], labels={"room": "214"}, asset_tag="A-1")
    await _update(service, ids[1], labels={"room": "215"}, asset_tag="A-1")

    async def found(**more: Any) -> list[str]:
        answer = await service.registry.ListRegistrations(
            pb.ListRegistrationsRequest(**more), metadata=service.admin
        )
        return [registration.id for registration in answer.registrations]

    assert await found(filter="labels.room = 214") == [ids[0]]
    assert await found(filter="labels:room", page_size=10) == [ids[1], ids[0]]
    assert await found(filter="NOT labels:room AND model = Frame*") == [ids[2]]
    assert await found(asset_tag="A-1", filter="labels.room > 214") == [ids[1]]
    assert await found(asset_tag="a-1") == []
    wrong = await refusal(
        service.registry.ListRegistrations(
            pb.ListRegistrationsRequest(filter="room = 214"), metadata=service.admin
        )
    )
    assert wrong.code is grpc.StatusCode.INVALID_ARGUMENT
    assert wrong.body["message"].startswith("filter: at character 1: no such field")


async def test_what_is_deleted_has_no_labels(service: Enrollment) -> None:
    """They go with what is known of the hardware; nobody labels what is deleted."""
    device = (await service.enrolled((await service.token()).pre_shared_key))["device_id"]
    await _update(service, device, labels={"room": "214"}, asset_tag="A-1", note="x")
    await service.act("DecommissionDevice", device)
    # A retired device keeps them, and they can be corrected.
    assert dict((await _update(service, device, note="sold")).labels) == {"room": "214"}
    gone = await service.act("DeleteDevice", device)
    assert (dict(gone.labels), gone.asset_tag, gone.note) == ({}, "", "")
    refused = await refusal(_update(service, device, labels={"room": "1"}))
    assert refused.reason == "DEVICE_DELETED"


async def test_labels_survive_another_enrollment(service: Enrollment) -> None:
    """The machine comes back as what it was."""
    key = (await service.token()).pre_shared_key
    device = (await service.enrolled(key))["device_id"]
    await _update(service, device, labels={"room": "214"})
    await service.act("AllowReenrollment", device)
    assert (await service.enrolled(key))["device_id"] == device
    assert dict((await service.registration(device)).labels) == {"room": "214"}


async def test_many_devices_are_labelled_at_once(service: Enrollment) -> None:
    """By serial number in any spelling, or by id; each row has its result."""
    key = (await service.token()).pre_shared_key
    ids = [(await service.enrolled(key, f"SN-{n}"))["device_id"] for n in range(3)]
    rows = [
        pb.RegistrationChange(device="sn-0", labels={"room": "214"}, line=2),
        pb.RegistrationChange(device=ids[1], labels={"room": "215"}, asset_tag="A-2", line=3),
        pb.RegistrationChange(device="SN-2", remove_labels=["room"], line=4),
    ]
    tried = await _batch(service, *rows, validate_only=True)
    assert not tried.applied
    assert [r.result for r in tried.results] == ["CHANGED", "CHANGED", "UNCHANGED"]
    assert await service.events("device_labels_changed") == []
    done = await _batch(service, *rows)
    assert done.applied
    assert list(done.results) == list(tried.results)
    assert [(r.line, r.serial, r.id) for r in done.results] == [
        (2, "SN-0", ids[0]),
        (3, "SN-1", ids[1]),
        (4, "SN-2", ids[2]),
    ]
    assert (done.changed, done.unchanged, done.refused) == (2, 1, 0)
    assert dict((await service.registration(ids[1])).labels) == {"room": "215"}
    assert len(await service.events("device_labels_changed")) == 2
    again = await _batch(service, *rows)
    assert (again.applied, again.changed, again.unchanged) == (True, 0, 3)
    assert len(await service.events("device_labels_changed")) == 2


async def test_one_refused_row_keeps_all_back(service: Enrollment) -> None:
    """Unless they are to be skipped; each says what is wrong."""
    key = (await service.token()).pre_shared_key
    for n in range(2):
        await service.enrolled(key, f"SN-{n}")
    other = (await service.enrolled((await service.token(OTHER)).pre_shared_key, "SN-9"))[
        "device_id"
    ]
    rows = [
        pb.RegistrationChange(device="SN-0", labels={"room": "1"}, line=2),
        pb.RegistrationChange(device="SN-1", labels={"Room": "1"}, line=3),
        pb.RegistrationChange(device="SN-7", line=4),
        pb.RegistrationChange(device=other, labels={"room": "1"}, line=5),
        pb.RegistrationChange(device="SN-9", labels={"room": "1"}, line=6),
        pb.RegistrationChange(device="sn-0", labels={"room": "2"}, line=7),
        pb.RegistrationChange(device="Default string", line=8),
        pb.RegistrationChange(device="SN-1", add_groups=["none"], line=9),
    ]
    refused = await _batch(service, *rows)
    assert not refused.applied
    assert [(r.result, r.field, r.reason) for r in refused.results] == [
        ("CHANGED", "", ""),
        ("REFUSED", "labels.Room", "INVALID_FIELD"),
        ("REFUSED", "", "DEVICE_NOT_FOUND"),
        ("REFUSED", "", "DEVICE_NOT_FOUND"),
        ("REFUSED", "", "DEVICE_NOT_FOUND"),
        ("REFUSED", "device", "INVALID_FIELD"),
        ("REFUSED", "device", "INVALID_FIELD"),
        ("REFUSED", "device", "INVALID_FIELD"),
    ]
    assert refused.results[5].message == "is also on line 2"
    assert await service.events("device_labels_changed") == []
    done = await _batch(service, *rows, skip_refused=True)
    assert (done.applied, done.changed, done.refused) == (True, 1, 7)


async def test_an_organisation_labels_its_own_devices(service: Enrollment) -> None:
    """A reseller those below it, an Auditor none, a stranger none."""
    device = (await service.enrolled((await service.token()).pre_shared_key))["device_id"]
    request = pb.UpdateRegistrationRequest(id=device, labels={"room": "1"})
    batch = pb.BatchUpdateRegistrationsRequest(
        org_id=str(ORG.id), rows=[pb.RegistrationChange(device="SN-1", labels={"room": "2"})]
    )
    stranger = callers.user(OTHER.id, Role.OWNER)
    auditor = callers.user(ORG.id, Role.AUDITOR)
    for who, code in ((stranger, "NOT_FOUND"), (auditor, "PERMISSION_DENIED")):
        found = await refusal(service.registry.UpdateRegistration(request, metadata=who))
        assert found.code.name == code
        found = await refusal(service.registry.BatchUpdateRegistrations(batch, metadata=who))
        assert found.code.name == code
    reseller = callers.user(RESELLER.id, Role.ADMIN)
    await service.registry.UpdateRegistration(request, metadata=reseller)
    await service.registry.BatchUpdateRegistrations(batch, metadata=reseller)
    assert dict((await service.registration(device)).labels) == {"room": "2"}
