"""The gates of an organisation, and of all those below a reseller, in one list."""

from __future__ import annotations

import grpc

from evergreen.v1 import policy_pb2
from services.policy import restore
from tests.services.policy.gate.fleet import Fleet, eventually, grouped, opened
from tests.support.policy import ORG, RESELLER, ROOT, SISTER, STRANGER, Admin, World, world
from tests.support.refusals import refusal

__all__ = ["world"]


async def three_gates(world: World) -> tuple[Fleet, str]:
    """An organisation with an enforced gate and one of a group, and its sister with one."""
    fleet = await opened(world, "FAILED", "VERIFIED", "VERIFIED", "VERIFIED")
    group_id = str(await grouped(fleet, 1))
    await world.admin.call("UpdateAttestationGate", group_id=group_id, mode="OBSERVE")
    await fleet.enforce(1)
    sister = Admin(world.channel, SISTER.id)
    await sister.call("UpdateAttestationGate", mode="OBSERVE", at_least="VERIFIED")
    return fleet, group_id


async def test_a_list_shows_what_each_gate_does(world: World) -> None:
    """That of all devices before those of groups; mode, share, how many are restricted, and why
    one is held. As the gate alone is shown."""
    fleet, group_id = await three_gates(world)
    listed = (await world.admin.call("ListAttestationGates")).gates
    shown = [(one.group_alias, one.mode, one.max_percent, one.restricted_devices) for one in listed]
    assert shown == [("", "ENFORCE", 50, 1), ("trolley", "OBSERVE", 0, 0)]
    assert listed[0] == await world.admin.call("GetAttestationGate")
    assert listed[1] == await world.admin.call("GetAttestationGate", group_id=group_id)
    enforced = await world.admin.call("ListAttestationGates", mode="ENFORCE")
    assert list(enforced.gates) == [listed[0]]
    assert (await world.admin.call("ListAttestationGates", only_held=True)).gates == []
    connection = await world.database.superuser()
    try:
        await restore.repair(connection, restore.Known({}), [ORG.id])
        (held,) = (await world.admin.call("ListAttestationGates", only_held=True)).gates
        assert (held.mode, held.held) == ("ENFORCE", "RESTORED")
        # What the last release switches off is off, and the gate of a group that is gone is none.
        await connection.execute("UPDATE policy.attestation_gate SET mode = 'OFF'")
        await connection.execute("UPDATE policy.groups SET deleted = true WHERE alias = 'trolley'")
    finally:
        await connection.close()

    async def ended() -> bool:
        listed = (await world.admin.call("ListAttestationGates")).gates
        return [(one.mode, one.group_id) for one in listed] == [("OFF", "")]

    await eventually(ended)
    await fleet.have("normal", "normal", "normal", "normal")


async def test_a_list_goes_page_by_page_through_the_subtree(world: World) -> None:
    """A reseller sees those of its organisations, each once; nobody sees others'."""
    await three_gates(world)
    reseller = Admin(world.channel, RESELLER.id, "Auditor")
    found: list[policy_pb2.AttestationGate] = []
    token, pages = "", 0
    while pages == 0 or token:
        page = await reseller.call("ListAttestationGates", page_size=1, page_token=token)
        found += page.gates
        token, pages = page.next_page_token, pages + 1
    assert [(one.org_id, one.mode) for one in found] == [
        (str(ORG.id), "ENFORCE"),
        (str(ORG.id), "OBSERVE"),
        (str(SISTER.id), "OBSERVE"),
    ]
    assert pages == 3
    of_one = await reseller.call("ListAttestationGates", org_id=str(SISTER.id))
    assert list(of_one.gates) == [found[2]]
    assert len((await Admin(world.channel, ROOT.id).call("ListAttestationGates")).gates) == 3
    sister = Admin(world.channel, SISTER.id)
    assert list((await sister.call("ListAttestationGates")).gates) == [found[2]]
    stranger = Admin(world.channel, STRANGER.id)
    assert (await stranger.call("ListAttestationGates")).gates == []
    for other in (stranger, sister):
        refused = await refusal(other.call("ListAttestationGates", org_id=str(ORG.id)))
        assert refused.code is grpc.StatusCode.NOT_FOUND
    for token in ("x", "WyJhIiwiYiIsImMiXQ"):
        refused = await refusal(reseller.call("ListAttestationGates", page_token=token))
        assert refused.fields == ["pageToken"]
    refused = await refusal(reseller.call("ListAttestationGates", mode="observe"))
    assert refused.fields == ["mode"]
