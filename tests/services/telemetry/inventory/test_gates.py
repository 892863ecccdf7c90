"""Devices whose boots fall short of what their organisation asks for, which policy tells."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from google.protobuf.timestamp_pb2 import Timestamp

from tests.support.telemetry import ORG, RESELLER, SISTER, Admin, World, eventually, world

__all__ = ["world"]


def enrolled(hours: int) -> Timestamp:
    """Some hours ago."""
    found = Timestamp()
    found.FromDatetime(datetime.now(UTC) - timedelta(hours=hours))
    return found


async def test_devices_show_whether_they_fall_short(world: World) -> None:
    """In lists, alone and in files, and as a filter, of one organisation and of several."""
    good, bad, old, new, out = (uuid4() for _ in range(5))
    for device, hours in ((good, 9), (bad, 9), (old, 9), (new, 0)):
        world.registry.tell(device, enrolled_at=enrolled(hours))
    world.registry.tell(out, status="decommissioned", enrolled_at=enrolled(9))
    theirs = uuid4()
    world.registry.tell(theirs, SISTER.id, enrolled_at=enrolled(9))
    world.attestation.tell(good, "KNOWN_TPM")
    for device, org in ((bad, ORG.id), (out, ORG.id), (theirs, SISTER.id)):
        world.attestation.tell(device, "SELF_CONSISTENT", org)
    reseller = Admin(world.channel, RESELLER.id)

    async def filtered(admin: Admin) -> set[str]:
        return {device.id for device in (await admin.devices(falls_short=True)).devices}

    async def short(admin: Admin) -> set[str]:
        page = await admin.devices()
        shown = {device.id for device in page.devices if device.falls_short}
        assert await filtered(admin) == shown
        return shown

    async def known() -> bool:
        verdicts = {d.attestation_verdict for d in (await reseller.devices()).devices}
        return verdicts == {"KNOWN_TPM", "SELF_CONSISTENT", "NONE"}

    await eventually(known)
    assert await short(reseller) == set()
    world.policy.ask("KNOWN_TPM")

    async def judged() -> bool:
        return await filtered(world.admin) == mine

    mine = {str(bad), str(old)}
    await eventually(judged)
    assert await short(world.admin) == mine
    assert await short(reseller) == mine
    for device in (good, bad, old, new, out):
        assert (await world.admin.device(device)).falls_short is (str(device) in mine)
    rare = await world.admin.devices(falls_short=True, search=f"S-{bad.hex[-6:]}")
    assert [device.id for device in rare.devices] == [str(bad)]
    _, file = await world.admin.export_devices(format="csv", falls_short=True)
    rows = list(csv.DictReader(io.StringIO(file.decode().removeprefix("\ufeff"))))
    assert {row["id"]: row["fallsShort"] for row in rows} == dict.fromkeys(mine, "true")
    _, file = await world.admin.export_devices()
    assert {row["id"] for row in json.loads(file) if row["fallsShort"]} == mine
    world.policy.ask("VERIFIED", SISTER.id)

    async def both() -> bool:
        return await filtered(reseller) == {*mine, str(theirs)}

    await eventually(both)
    assert await short(reseller) == {*mine, str(theirs)}
    world.policy.ask("KNOWN_TPM", mode="OFF")

    async def off() -> bool:
        return await filtered(world.admin) == set()

    await eventually(off)
    assert await short(world.admin) == set()
    assert await short(reseller) == {str(theirs)}


async def test_a_gate_that_cannot_be_read_stops_nothing(world: World) -> None:
    """It is quarantined; the next one counts."""
    device = uuid4()
    world.registry.tell(device, enrolled_at=enrolled(9))
    world.policy.ask("BETTER")
    world.policy.ask("SELF_CONSISTENT")

    async def judged() -> bool:
        return [d.id for d in (await world.admin.devices(falls_short=True)).devices] == [
            str(device)
        ]

    await eventually(judged)


async def test_devices_show_whether_they_have_the_other_policy(world: World) -> None:
    """As policy says it: in lists, alone and in files, and as a filter, each in its own tree. Of a
    deleted device nothing is left."""
    mine, other, theirs = uuid4(), uuid4(), uuid4()
    for device in (mine, other):
        world.registry.tell(device, enrolled_at=enrolled(9))
    world.registry.tell(theirs, SISTER.id, enrolled_at=enrolled(9))
    world.policy.restrict(mine)
    world.policy.restrict(theirs, SISTER.id)
    reseller = Admin(world.channel, RESELLER.id)

    async def filtered(admin: Admin) -> set[str]:
        return {device.id for device in (await admin.devices(restricted=True)).devices}

    async def heard() -> bool:
        return await filtered(reseller) == {str(mine), str(theirs)}

    await eventually(heard)
    assert await filtered(world.admin) == {str(mine)}
    shown = (await reseller.devices()).devices
    assert {device.id for device in shown if device.restricted} == {str(mine), str(theirs)}
    assert (await world.admin.device(mine)).restricted
    assert not (await world.admin.device(other)).restricted
    _, file = await world.admin.export_devices(format="csv", restricted=True)
    rows = list(csv.DictReader(io.StringIO(file.decode().removeprefix("\ufeff"))))
    assert [(row["id"], row["restricted"]) for row in rows] == [(str(mine), "true")]
    world.policy.restrict(mine, restricted=False)
    world.registry.tell(theirs, SISTER.id, deleted=True)

    async def gone() -> bool:
        return await filtered(reseller) == set()

    await eventually(gone)
    connection = await world.database.superuser()
    try:
        assert await connection.fetchval("SELECT count(*) FROM telemetry.restricted_device") == 0
    finally:
        await connection.close()
