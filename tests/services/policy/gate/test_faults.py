"""Gates while neighbours are away, with two processes, after a restore, beside the last release."""

from __future__ import annotations

import asyncio

import grpc

from servicekit.feeds.changes import Changes
from servicekit.rpc.channels import open_channel
from services.policy import restore
from services.policy.__main__ import build
from services.policy.gate import store as gate_store
from services.policy.gate.enforcement import Enforcement
from services.policy.settings import PolicySettings
from tests.conftest import MakeKit, ServeService
from tests.services.policy.gate.fleet import (
    counted_restricted,
    eventually,
    grouped,
    opened,
)
from tests.support.policy import ORG, TREE, Device, World, world
from tests.support.refusals import refusal

__all__ = ["world"]


async def test_devices_keep_what_they_have_while_nobody_knows_more(world: World) -> None:
    """With attestation or the registry away nobody is moved, and nothing is enforced anew."""
    fleet = await opened(world, "FAILED", "VERIFIED", "VERIFIED", "VERIFIED")
    await fleet.enforce(1)
    await fleet.have("other", "normal", "normal", "normal")
    world.neighbours.attestation.down = True
    fleet.tell(0, "VERIFIED")
    fleet.tell(1, "FAILED")
    await fleet.have("other", "normal", "normal", "normal")
    refused = await refusal(fleet.enforce(1, max_percent=60))
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    world.neighbours.attestation.down = False
    await fleet.have("normal", "other", "normal", "normal")


async def test_two_processes_agree(world: World, make_kit: MakeKit, serve: ServeService) -> None:
    """Whichever enforces it, the other one delivers the same under the same numbers."""
    settings = {
        name: f"{getattr(world.kit.settings, name)}2"
        for name in ("grpc_listen", "internal_listen", "http_listen")
    }
    twin = await make_kit("policy", PolicySettings, tenants=TREE, **settings)
    await serve(twin, build)
    channel = open_channel(twin.settings.grpc_listen, "test")
    fleet = await opened(world, "FAILED", "VERIFIED", "FAILED", "VERIFIED")
    for laptop in fleet.laptops[:2]:
        laptop.device = Device(twin, channel, laptop.device.id, ORG.id)
    await fleet.enforce(2)
    await fleet.have("other", "normal", "other", "normal")
    assert fleet.laptops[0].has == fleet.laptops[2].has
    for index, verdict in enumerate(("VERIFIED", "FAILED", "VERIFIED", "FAILED")):
        fleet.tell(index, verdict)
    await fleet.have("normal", "other", "normal", "other")
    assert fleet.laptops[0].has == fleet.laptops[2].has
    assert fleet.laptops[1].has == fleet.laptops[3].has
    told = await fleet.events("devices_restricted")
    assert sum(one["after"]["count"] for one in told) == 4
    await channel.close()


async def test_a_restore_holds_gates(world: World) -> None:
    """What devices proved since is not known: nobody is restricted before somebody has looked, and
    who is stays so."""
    fleet = await opened(world, "FAILED", "VERIFIED", "VERIFIED", "VERIFIED")
    await fleet.enforce(1)
    await fleet.have("other", "normal", "normal", "normal")
    connection = await world.database.superuser()
    try:
        await restore.repair(connection, restore.Known({}), [ORG.id])
    finally:
        await connection.close()
    fleet.tell(1, "FAILED")

    async def heard() -> bool:
        found = await world.admin.call("PreviewAttestationGate")
        return bool(found.falling_short == 2)

    await eventually(heard)
    await fleet.have("other", "normal", "normal", "normal")
    assert (await world.admin.call("GetAttestationGate")).held == "RESTORED"
    assert (await fleet.enforce(2)).held == ""
    await fleet.have("other", "other", "normal", "normal")


async def test_ending_a_gate_restricts_nobody_on_an_old_view(world: World) -> None:
    """With attestation away a device whose time is over may have proved itself."""
    fleet = await opened(world, "FAILED", "FAILED", "VERIFIED", "VERIFIED", "")
    group_id = str(await grouped(fleet, 1))
    # The last one has time, by the organisation's gate alone.
    await fleet.enforce(2, grace_hours=24, max_percent=100)
    await fleet.enforce(1, group_id=group_id, max_percent=100)
    await fleet.have("other", "other", "normal", "normal", "normal")
    world.neighbours.attestation.down = True
    connection = await world.database.superuser()
    await connection.execute(
        "UPDATE policy.devices SET enrolled_at = enrolled_at - interval '1 day'"
    )
    await connection.close()
    await world.admin.call("UpdateAttestationGate", group_id=group_id, mode="OFF")
    assert set(await counted_restricted(fleet)) == {fleet.laptops[0].device.id}


async def test_what_the_last_release_switches_off_ends_with_attestation_away(world: World) -> None:
    """And the audit log tells of it."""
    fleet = await opened(world, "FAILED", "VERIFIED")
    await fleet.enforce(1)
    await fleet.have("other", "normal")
    world.neighbours.attestation.down = True
    connection = await world.database.superuser()
    await connection.execute("UPDATE policy.attestation_gate SET mode = 'OFF'")
    await connection.close()
    kit = world.kit

    async def away() -> bool:
        return False

    changes = Changes(kit.database.system_lane("a test"), gate_store.CHANGING)
    await Enforcement(kit.database, kit.outbox, changes, kit.clock, away).look()
    assert await counted_restricted(fleet) == []
    told = await fleet.events("attestation_gate_updated")
    assert [(one["before"]["mode"], one["after"]["mode"]) for one in told[1:]] == [
        ("ENFORCE", "OFF")
    ]
    await fleet.have("normal", "normal")


async def test_what_the_last_release_switched_off_and_on_is_not_enforced(world: World) -> None:
    """Also when nobody looked in between."""
    fleet = await opened(world, "FAILED", "VERIFIED")
    await fleet.enforce(1)
    await fleet.have("other", "normal")
    connection = await world.database.superuser()
    async with connection.transaction():
        for mode in ("OFF", "OBSERVE"):
            await connection.execute("UPDATE policy.attestation_gate SET mode = $1", mode)
    await connection.close()
    assert (await world.admin.call("GetAttestationGate")).mode == "OBSERVE"
    fleet.tell(1, "VERIFIED")
    await fleet.have("normal", "normal")
    # This one enforces it again as ever.
    assert (await fleet.enforce(1)).restricted_devices == 1
    await fleet.have("other", "normal")


async def test_news_that_come_while_another_process_looks_are_looked_at_next(world: World) -> None:
    """And not within a minute: it may have looked before them."""
    fleet = await opened(world, "FAILED", "VERIFIED", "VERIFIED", "VERIFIED")
    await fleet.enforce(1)
    await fleet.have("other", "normal", "normal", "normal")
    connection = await world.database.superuser()
    try:
        async with connection.transaction():
            await gate_store.lock_gates(connection, ORG.id)
            fleet.tell(1, "FAILED")

            async def heard() -> bool:
                return bool(
                    await connection.fetchval(
                        "SELECT count(*) = 2 FROM policy.device_verdict WHERE verdict = 'FAILED'"
                    )
                )

            await eventually(heard)
            await asyncio.sleep(2.5)
            assert len(await counted_restricted(fleet)) == 1
    finally:
        await connection.close()
    async with asyncio.timeout(10):
        await fleet.have("other", "other", "normal", "normal")
