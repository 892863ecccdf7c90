"""What a change of a value makes anew: what the value is put into, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

from tests.conftest import tenant
from tests.services.policy.variables.test_own_values import OWN, Seen
from tests.services.policy.variables.test_variables import SECRET, TEMPLATE, Keeper
from tests.support.policy import ORG, RESELLER, ROOT, SISTER, World, world

__all__ = ["world"]


async def _put(keeper: Keeper, tenant_id: UUID, name: str, value: str, **more: Any) -> Any:
    return await keeper.variable("Create", org_id=str(tenant_id), name=name, value=value, **more)


async def _published(world: World) -> Keeper:
    """A template of the root that leaves all that it names to those below."""
    root = Keeper(world.channel, ROOT.id)
    await _put(root, ROOT.id, "host", "root.example", overridable=True)
    await _put(root, ROOT.id, "wifi", SECRET, secret=True, overridable=True)
    await root.published(ROOT.id, TEMPLATE)
    return root


async def _editions(world: World) -> dict[UUID, tuple[str, str]]:
    """When what organisations have was made, and of what."""
    connection = await world.database.superuser()
    rows = await connection.fetch(
        "SELECT tenant_id, changed_xid::text AS made, recipe FROM policy.editions"
    )
    await connection.close()
    return {row["tenant_id"]: (row["made"], row["recipe"]) for row in rows}


async def _documents(world: World) -> int:
    connection = await world.database.superuser()
    found: int = await connection.fetchval("SELECT count(*) FROM policy.documents")
    await connection.close()
    return found


async def test_a_value_that_no_template_above_names_makes_nothing_anew(world: World) -> None:
    """Whosever it is: of the school itself, and of a district between."""
    await _published(world)
    district, school = Keeper(world.channel, RESELLER.id), Keeper(world.channel, ORG.id)
    device, other = Seen(world, ORG.id), Seen(world, SISTER.id)
    await _put(school, ORG.id, "host", "school.example")
    while (await device.has())[0] != "https://school.example/start":
        pass
    await other.has()
    before = await _editions(world)
    theirs = await _put(district, RESELLER.id, "unrelated", "x")
    await district.variable("Update", id=theirs.id, value="y")
    await district.variable("Delete", id=theirs.id)
    await _put(school, ORG.id, "unrelated", "x")
    # Who changes something that counts gets it: all before was looked at.
    await _put(school, ORG.id, "wifi", OWN, secret=True)
    assert await device.has() == ("https://school.example/start", OWN)
    after = await _editions(world)
    assert after[SISTER.id] == before[SISTER.id]
    assert await other.stays()
    made = after[ORG.id]
    await _put(school, ORG.id, "another", "x")
    await _put(Keeper(world.channel, SISTER.id), SISTER.id, "host", "sister.example")
    assert await other.has() == ("https://sister.example/start", SECRET)
    assert (await _editions(world))[ORG.id] == made


async def test_a_value_that_a_nearer_one_replaces_makes_no_document(world: World) -> None:
    """A district's own value is for those of its schools that have none."""
    await _published(world)
    district, school = Keeper(world.channel, RESELLER.id), Keeper(world.channel, ORG.id)
    await _put(school, ORG.id, "host", "school.example")
    device, other = Seen(world, ORG.id), Seen(world, SISTER.id)
    while (await device.has())[0] != "https://school.example/start":
        pass
    await other.has()
    documents = await _documents(world)
    theirs = await _put(district, RESELLER.id, "host", "district.example")
    assert await other.has() == ("https://district.example/start", SECRET)
    await district.variable("Update", id=theirs.id, value="other.example")
    assert await other.has() == ("https://other.example/start", SECRET)
    assert await device.stays()
    assert await _documents(world) == documents + 2


async def test_two_schools_of_one_name_share_no_document(world: World) -> None:
    """What is put in for one of them is its own, and goes with it."""
    twins = [
        replace(tenant(300 + number, RESELLER), name="Linden", code="linden") for number in (1, 2)
    ]
    world.kit.tenants.learn(twins)
    template = {"template": {"browser": {"homepage": "https://x.example/{{org.name}}"}}}
    await Keeper(world.channel, RESELLER.id).published(RESELLER.id, template)
    for twin in twins:
        browser = (await Seen(world, twin.id).gets())["browser"]
        assert browser["homepage"] == "https://x.example/Linden"
    connection = await world.database.superuser()
    rows = await connection.fetch(
        "SELECT tenant_id, document_tenant FROM policy.editions WHERE tenant_id = ANY ($1)",
        [twin.id for twin in twins],
    )
    await connection.close()
    assert {row["tenant_id"]: row["document_tenant"] for row in rows} == {
        twin.id: twin.id for twin in twins
    }
