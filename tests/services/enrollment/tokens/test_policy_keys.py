"""Enrollment tokens carry the key for policies that their devices pin."""

from __future__ import annotations

from datetime import timedelta

import pytest

from evergreen.v1 import enrollment_pb2 as pb
from services.enrollment.admission import pinned
from services.enrollment.registry.archive import ArchivedDevices
from tests.support.enrollment import ORG, Enrollment, service
from tests.support.refusals import refusal

__all__ = ["service"]


@pytest.fixture(autouse=True)
def keys(service: Enrollment) -> None:
    """There are an active key and one of before."""
    service.neighbours.policy.keys = ["new", "old"]


async def key_told(service: Enrollment, device_id: str) -> str:
    """The key of a device, as the registry's feed tells it."""
    changes = await service.internal.ListDeviceChanges(pb.ListDeviceChangesRequest())
    (found,) = [one for one in changes.devices if one.device_id == device_id]
    return str(found.membership.policy_key_id)


async def test_a_device_pins_the_key_of_its_token(service: Enrollment) -> None:
    """The active one unless another is named; the answer has it in PEM once, policy is asked for
    that key's signature, and other services hear of it."""
    token = await service.token()
    assert (token.policy_key_id, token.policy_key_pem) == ("new", "PEM of new")
    shown = await service.tokens.GetEnrollmentToken(
        pb.GetEnrollmentTokenRequest(id=token.id), metadata=service.admin
    )
    assert shown.policy_key_id == "new" and not shown.HasField("policy_key_pem")
    (event,) = await service.events("token_created")
    assert event["after"]["policyKeyId"] == "new"
    named = await service.token(policy_key_id="old")
    for serial, one in (("SN-1", token), ("SN-2", named)):
        device = await service.enrolled(one.pre_shared_key, serial)
        assert service.neighbours.policy.asked[-1].policy_key_id == one.policy_key_id
        found = await service.registration(device["device_id"])
        assert found.policy_key_id == one.policy_key_id
        assert await key_told(service, found.id) == one.policy_key_id


async def test_a_device_moves_by_enrolling_again(service: Enrollment) -> None:
    """With a token of another key, when an administrator allows it; its revision grows."""
    old, new = await service.token(policy_key_id="old"), await service.token()
    device = await service.enrolled(old.pre_shared_key)
    before = await service.registration(device["device_id"])
    await service.act("AllowReenrollment", before.id)
    assert (await service.enrolled(new.pre_shared_key))["device_id"] == before.id
    after = await service.registration(before.id)
    assert (before.policy_key_id, after.policy_key_id) == ("old", "new")
    assert before.etag != after.etag
    assert await key_told(service, after.id) == "new"


async def test_a_prepared_device_has_a_key(service: Enrollment) -> None:
    """Its start file is signed with it."""
    for asked, key_id in (("", "new"), ("old", "old")):
        await service.registry.PrepareDevice(
            pb.PrepareDeviceRequest(org_id=str(ORG.id), serial=f"SN-{key_id}", policy_key_id=asked),
            metadata=service.admin,
        )
        assert service.neighbours.policy.asked[-1].policy_key_id == key_id


async def test_a_start_file_moves_a_known_device(service: Enrollment) -> None:
    """It keeps its identity, and has the new key in the same step."""
    old = await service.token(policy_key_id="old")
    device = await service.enrolled(old.pre_shared_key)
    await service.act("AllowReenrollment", device["device_id"])
    await service.registry.PrepareDevice(
        pb.PrepareDeviceRequest(org_id=str(ORG.id), serial="SN-1"), metadata=service.admin
    )
    asked = service.neighbours.policy.asked[-1]
    assert (asked.device_id, asked.policy_key_id) == (device["device_id"], "new")
    assert await key_told(service, device["device_id"]) == "new"


async def test_other_keys_are_refused(service: Enrollment) -> None:
    """One that the organisation may not have makes no token; one that was retired since lets no
    device in, which would end at once."""
    refused = await refusal(service.token(policy_key_id="of another school"))
    assert refused.fields == ["policyKeyId"]
    assert not await service.events("token_created")
    token = await service.token(policy_key_id="old")
    service.neighbours.policy.retired = {"old"}
    answer = await service.enroll(token.pre_shared_key)
    assert answer.status_code == 403
    assert answer.json()["details"][0]["reason"] == "POLICY_KEY_RETIRED"


async def test_a_retired_key_lets_nobody_in(
    service: Enrollment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is registered, no use is counted, and the permission to enroll again stays, so that
    the repaired image is let in; administrators see the refusal."""
    monkeypatch.setattr(pinned, "KNOWN_FOR", timedelta(0))
    policy = service.neighbours.policy
    old = await service.token(policy_key_id="old", max_uses=2)
    device = await service.enrolled(old.pre_shared_key, "SN-1")
    await service.act("AllowReenrollment", device["device_id"])
    before = await service.registration(device["device_id"])
    policy.retired = {"old"}
    for serial in ("SN-1", "SN-2"):
        answer = await service.enroll(old.pre_shared_key, serial)
        assert answer.status_code == 403
        assert answer.json()["details"][0]["reason"] == "POLICY_KEY_RETIRED"
    assert await service.registration(device["device_id"]) == before
    found = await service.registry.ListRegistrations(
        pb.ListRegistrationsRequest(), metadata=service.admin
    )
    assert [one.serial for one in found.registrations] == ["SN-1"]
    shown = await service.tokens.GetEnrollmentToken(
        pb.GetEnrollmentTokenRequest(id=old.id), metadata=service.admin
    )
    assert shown.uses == 1
    new = await service.token()
    for serial in ("SN-1", "SN-2"):
        await service.enrolled(new.pre_shared_key, serial)


async def test_devices_that_come_back_are_told(service: Enrollment) -> None:
    """Those of an archived organisation, until an administrator decommissions one himself."""
    token = await service.token()
    devices = [
        (await service.enrolled(token.pre_shared_key, serial))["device_id"]
        for serial in ("SN-1", "SN-2")
    ]
    await service.act("DecommissionDevice", devices[1])
    work = ArchivedDevices(service.kit.outbox, service.kit.clock)
    for change, archived in ((work.archive, {True, False}), (work.restore, {False})):
        async with service.kit.database.transaction(
            service.kit.tenants.scope(ORG.id)
        ) as connection:
            await change(connection, ORG)
        changes = await service.internal.ListDeviceChanges(pb.ListDeviceChangesRequest())
        told = {one.device_id: one.archived for one in changes.devices}
        assert set(told.values()) == archived
        assert not told[devices[1]]


async def test_a_start_file_of_a_key_that_ends_meanwhile(service: Enrollment) -> None:
    """Is not given: policy may not have counted its device."""
    service.neighbours.policy.retired_next = {"new"}
    refused = await refusal(
        service.registry.PrepareDevice(
            pb.PrepareDeviceRequest(org_id=str(ORG.id), serial="SN-1"), metadata=service.admin
        )
    )
    assert refused.reason == "POLICY_KEY_RETIRED"


async def test_policy_of_an_older_release_knows_one_key(service: Enrollment) -> None:
    """Tokens and devices then name none; with policy away no token is made."""
    service.neighbours.policy.keys = []
    token = await service.token()
    assert token.policy_key_id == ""
    await service.enrolled(token.pre_shared_key)
    assert service.neighbours.policy.asked[-1].policy_key_id == ""
    service.neighbours.policy.down = True
    assert (await refusal(service.token())).body["code"] == 14
