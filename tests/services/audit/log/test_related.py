"""Entries are found by what else they concern."""

from __future__ import annotations

import json
from uuid import UUID

from contract.events.enrollment import DeviceGroupsChanged, MovedDevice, MovedDevices
from servicekit.messaging.events import CloudEvent
from services.audit.log.recorder import Recorder
from tests.support.audit import ORG, RESELLER, SISTER, Audit, audit, event, message, start_audit
from tests.support.callers import user

__all__ = ["audit", "start_audit"]

DEVICE = f"devices/{UUID(int=1)}"
GROUP = f"device-groups/{UUID(int=9)}"


async def test_all_that_happened_to_a_device(audit: Audit) -> None:
    """What was done to it alone, and to it as one of many; and of no other tenant."""
    moved = CloudEvent(
        DeviceGroupsChanged(
            id=ORG.id,
            after=MovedDevices(
                count=2,
                devices=tuple(
                    MovedDevice(id=UUID(int=n), serial=f"SN-{n}", joined=(UUID(int=9),), left=())
                    for n in (1, 2)
                ),
            ),
        ),
        ORG.id,
    )
    recorder = Recorder(audit.kit.database, audit.kit.clock, salted=True)
    await recorder.handle([message(subject=moved.subject, data=moved.payload().encode())])
    await audit.record(
        event(1, resource=DEVICE, name="enrollment.device_enrolled"),
        event(2, resource=f"devices/{UUID(int=2)}"),
        event(3, tenant_id=SISTER.id, told={"related": [DEVICE, 7, None]}),
        event(4, told={"related": "devices"}),
    )
    found = await audit.entries(related_to=DEVICE, by=user(ORG.id))
    assert [one.action for one in found] == [
        "enrollment.device_groups_changed",
        "enrollment.device_enrolled",
    ]
    assert list(found[0].related) == [DEVICE, f"devices/{UUID(int=2)}", GROUP]
    assert len(await audit.entries(related_to=DEVICE, by=user(RESELLER.id))) == 3
    assert len(await audit.entries(related_to=GROUP)) == 1
    assert await audit.entries(related_to="devices/") == []
    found = await audit.entries(related_to=DEVICE, actions=["enrollment.device_enrolled"])
    assert len(found) == 1
    csv = await audit.export(format="csv", org_id=str(ORG.id))
    assert f"{DEVICE} devices/{UUID(int=2)} {GROUP}" in csv


def test_events_that_concern_nothing_else_are_as_before() -> None:
    """The log hashes what was sent: most events have no such member."""
    moved = DeviceGroupsChanged(id=ORG.id, after=MovedDevices(count=0, devices=()))
    assert "related" not in json.loads(CloudEvent(moved, ORG.id).payload())["data"]
