"""The verdict over a device's latest boot in the inventory, which attestation tells."""

from __future__ import annotations

import csv
import io
import json
from uuid import uuid4

import pytest

from tests.support.telemetry import ORG, World, eventually, world

__all__ = ["world"]


async def test_devices_show_the_verdict_over_their_latest_boot(world: World) -> None:
    """In lists, alone and in files, and as a filter; `NONE` without evidence."""
    good, bad, none, waits = uuid4(), uuid4(), uuid4(), uuid4()
    for device in (good, bad, none):
        world.registry.tell(device)
    world.attestation.tell(good, "FAILED")
    at = world.attestation.tell(good, "SELF_CONSISTENT")
    world.attestation.tell(bad, "FAILED")

    async def shown() -> dict[str, str]:
        page = await world.admin.devices()
        return {device.id: device.attestation_verdict for device in page.devices}

    wanted = {str(good): "SELF_CONSISTENT", str(bad): "FAILED", str(none): "NONE"}

    async def told() -> bool:
        return await shown() == wanted

    await eventually(told)
    alone = await world.admin.device(good)
    assert alone.attestation_verdict == "SELF_CONSISTENT"
    assert abs(alone.attested_at.ToDatetime().timestamp() - at.replace(tzinfo=None).timestamp()) < 1
    assert not (await world.admin.device(none)).HasField("attested_at")
    for verdict, device in (("FAILED", bad), ("SELF_CONSISTENT", good), ("NONE", none)):
        page = await world.admin.devices(attestation_verdict=verdict)
        assert [found.id for found in page.devices] == [str(device)]
    assert not (await world.admin.devices(attestation_verdict="VERIFIED")).devices
    _, file = await world.admin.export_devices(format="csv", attestation_verdict="FAILED")
    (row,) = csv.DictReader(io.StringIO(file.decode().removeprefix("\ufeff")))
    assert (row["id"], row["attestationVerdict"]) == (str(bad), "FAILED")
    assert row["attestedAt"].endswith("Z")
    _, file = await world.admin.export_devices()
    rows = {row["id"]: row for row in json.loads(file)}
    assert "attestedAt" not in rows[str(none)]
    # A device that attests before the registry was heard of it is one device all the same.
    world.attestation.tell(waits, "SELF_CONSISTENT")
    wanted[str(waits)] = "SELF_CONSISTENT"
    await eventually(told)
    world.registry.tell(waits, model="Book 2")
    (found,) = [d for d in (await world.admin.devices()).devices if d.id == str(waits)]
    assert (found.model, found.attestation_verdict) == ("Book 2", "SELF_CONSISTENT")


async def test_a_deleted_device_does_not_come_back_with_a_verdict(world: World) -> None:
    """What attestation tells late of a device that was deleted is left out."""
    device = uuid4()
    world.registry.tell(device)
    world.registry.tell(device, status="decommissioned", deleted=True)

    async def gone() -> bool:
        return not (await world.admin.devices()).devices and bool(
            await world.rows("SELECT FROM telemetry.deleted_device")
        )

    await eventually(gone)
    world.attestation.tell(device, "SELF_CONSISTENT")
    other = uuid4()
    world.registry.tell(other)
    world.attestation.tell(other, "FAILED")

    async def told() -> bool:
        return bool((await world.admin.devices(attestation_verdict="FAILED")).devices)

    await eventually(told)
    assert await world.rows("SELECT FROM telemetry.device WHERE id = $1", device) == []


@pytest.mark.parametrize("broken", ["device_id", "attested_at"])
async def test_a_verdict_that_cannot_be_kept_stops_nothing(world: World, broken: str) -> None:
    """It is quarantined; the next one is shown."""
    device = uuid4()
    world.registry.tell(device)
    world.attestation.tell(device, "FAILED")
    if broken == "device_id":
        world.attestation.verdicts[0].device_id = "no id"
    else:
        world.attestation.verdicts[0].attested_at.seconds = 1 << 60
    other = uuid4()
    world.registry.tell(other)
    world.attestation.tell(other, "SELF_CONSISTENT", ORG.id)

    async def told() -> bool:
        page = await world.admin.devices(attestation_verdict="SELF_CONSISTENT")
        return [found.id for found in page.devices] == [str(other)]

    await eventually(told)
