"""Changes of mappings, some people at a time."""

from __future__ import annotations

import asyncio

import pytest

from contract.access import Role
from services.identity.scim import service, settling
from tests.support.scim import World, world
from tests.support.single_sign_on import fake, row
from tests.support.stack import PATIENCE

__all__ = ["fake", "world"]  # the fixtures


async def _statuses(world: World) -> set[tuple[str, str]]:
    users = (await world.users()).values()
    return {(one.role, one.status) for one in users if one.origin == "scim"}


async def test_a_change_of_mappings_goes_through_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several transactions; the answer comes when it is done."""
    monkeypatch.setattr(settling, "MOST_REMAPPED", 3)
    people = [await world.scim.user(f"p{number}") for number in range(10)]
    await world.scim.group("staff", *people)
    assert await _statuses(world) == {("Auditor", "active")}
    done = await world.update(role_mappings=[row("staff", Role.ADMIN)])
    assert (done.remaining, await _statuses(world)) == (0, {("Admin", "active")})
    # What mappings take is held by nobody, in no batch.
    done = await world.update(role_mappings=[row("nobody", Role.ADMIN)])
    assert (done.remaining, done.held) == (0, 0)
    assert await _statuses(world) == {("Admin", "disabled")}


async def test_what_is_left_of_it_follows_by_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where it stopped, as after a restart. Meanwhile people that the source changes are as
    the new mappings say, and what those take is not held."""
    monkeypatch.setattr(settling, "MOST_REMAPPED", 3)
    monkeypatch.setattr(service, "_REMAP_SECONDS", -1.0)
    people = [await world.scim.user(f"p{number:02}") for number in range(20)]
    staff = await world.scim.group("staff", *people)
    connection = await world.identity.database.superuser()
    try:
        left = await world.update(role_mappings=[row("admins", Role.ADMIN)])
        assert left.remaining > 0
        assert left.etag != world.source.etag
        for one in people[-7:]:
            await world.scim.activate(one, True)
            await world.scim.remove(staff, one)
        assert await world.user("p19") == ("Auditor", "disabled")
        assert (await world.now()).held == 0
        async with asyncio.timeout(PATIENCE):
            while (await world.now()).remaining:
                await asyncio.sleep(0.2)
        place = await connection.fetchval("SELECT remapped_to FROM identity.scim_source")
    finally:
        await connection.close()
    assert place is None
    assert await _statuses(world) == {("Auditor", "disabled")}
    events = await world.events("user_deactivated")
    assert len(events) == 20, "each lost it once"
