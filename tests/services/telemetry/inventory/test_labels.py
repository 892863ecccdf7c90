"""Labels and groups of devices in the inventory, which the registry tells."""

from __future__ import annotations

import csv
import io
import json
from uuid import UUID, uuid4

import grpc
import pytest

from evergreen.v1 import enrollment_pb2
from tests.support.telemetry import World, world

__all__ = ["world"]


def _membership(*groups: UUID, **labels: str) -> enrollment_pb2.Membership:
    return enrollment_pb2.Membership(group_ids=map(str, groups), labels=labels, revision=2)


async def test_devices_show_labels_and_groups(world: World) -> None:
    """In lists, alone and in files; and lists are filtered by them."""
    one, two, none = sorted(uuid4() for _ in range(3))
    cart, year = sorted(uuid4() for _ in range(2))
    world.registry.tell(one, membership=_membership(cart, year, room="214", year="7"))
    world.registry.tell(two, membership=_membership(year, room="=1", raum="Büro"))
    world.registry.tell(none)

    async def found(**more: str) -> set[str]:
        return {device.id for device in (await world.admin.devices(**more)).devices}

    listed = {device.id: device for device in (await world.admin.devices()).devices}
    assert dict(listed[str(one)].labels) == {"room": "214", "year": "7"}
    assert list(listed[str(one)].group_ids) == [str(cart), str(year)]
    alone = await world.admin.device(one)
    assert (alone.labels, alone.group_ids) == (listed[str(one)].labels, listed[str(one)].group_ids)
    assert dict(listed[str(none)].labels) == {}
    assert await found(group=str(year)) == {str(one), str(two)}
    assert await found(group=str(uuid4())) == set()
    assert await found(label="room") == {str(one), str(two)}
    assert await found(label="room=214", group=str(cart)) == {str(one)}
    assert await found(label="room==1") == {str(two)}
    assert await found(label="raum=Bu\u0308ro") == {str(two)}
    assert await found(label="year=8") == set()
    for wrong in ({"group": "cart-3"}, {"label": "Room"}, {"label": "=1"}):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await world.admin.devices(**wrong)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    _, file = await world.admin.export_devices(label="year")
    (row,) = json.loads(file)
    assert row["labels"] == {"room": "214", "year": "7"}
    assert row["groupIds"] == [str(cart), str(year)]
    _, file = await world.admin.export_devices(format="csv", group=str(cart))
    (line,) = csv.DictReader(io.StringIO(file.decode().removeprefix("\ufeff")))
    assert json.loads(line["labels"]) == row["labels"]
    assert line["groupIds"] == f"{cart} {year}"


async def test_what_is_not_known_is_kept(world: World) -> None:
    """A registry of the last release says nothing of groups; a later word counts."""
    device, group = uuid4(), uuid4()

    async def shown() -> tuple[dict[str, str], list[str]]:
        found = await world.admin.device(device)
        return dict(found.labels), list(found.group_ids)

    world.registry.tell(device, membership=_membership(group, room="214"))
    assert await shown() == ({"room": "214"}, [str(group)])
    world.registry.tell(device, model="Book 2")
    assert await shown() == ({"room": "214"}, [str(group)])
    world.registry.tell(device, membership=_membership())
    assert await shown() == ({}, [])


async def test_what_a_release_before_passed_over_is_read_once(world: World) -> None:
    """It had read the feed without memberships: its position is not this release's."""
    device = uuid4()
    world.registry.tell(device, membership=_membership(room="214"))
    assert (await world.admin.devices()).devices
    names = {row["feed"] for row in await world.rows("SELECT feed FROM telemetry.feed_cursor")}
    assert "devices" not in names
    assert "devices and memberships" in names
