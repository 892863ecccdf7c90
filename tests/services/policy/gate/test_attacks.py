"""A restricted device does not get what is kept from it, whatever it says and whatever is away."""

from __future__ import annotations

import pytest

from services.policy.gate.domain import Gate, Mode, Shortfall
from tests.services.policy.gate.fleet import Fleet, opened
from tests.support.policy import ORG, TOKEN_LIFE, Device, World, world

__all__ = ["world"]


def with_old_token(fleet: Fleet) -> Device:
    """The restricted laptop with a token past half of its life: each answer may bring a new one."""
    device = fleet.laptops[0].device.id
    return Device(fleet.world.kit, fleet.world.channel, device, ORG.id, age=TOKEN_LIFE * 0.7)


async def rotated(fleet: Fleet, secret: str) -> str:
    """Publishes a secret to the organisation; answers the number that stands for it."""
    bundle = {"browser": {"homepage": f"https://{secret}"}}
    policy = await fleet.world.admin.call(
        "UpdatePolicy", id=fleet.normal.id, bundle=bundle, signed=True
    )
    return str(policy.version)


async def test_a_number_is_no_key_while_the_registry_is_away(world: World) -> None:
    """No number can be drawn then. The device keeps what it has, with the token that it has."""
    fleet = await opened(world, "FAILED", "VERIFIED")
    await fleet.enforce(1)
    await fleet.have("other", "normal")
    number = await rotated(fleet, "secret")
    await fleet.have("other", "secret")
    assert str(fleet.laptops[1].has) == number
    world.neighbours.registry.down = True
    answer = await with_old_token(fleet).pull(number)
    assert (answer.status_code, answer.text) == (304, "")
    assert not world.neighbours.identity.issued
    # What it is to have brings a new token, as ever.
    answer = await with_old_token(fleet).pull(str(fleet.laptops[0].has))
    assert "https://other" in answer.text
    assert len(world.neighbours.identity.issued) == 1


async def test_a_number_is_no_key_when_all_draws_are_used_up(world: World) -> None:
    """Each new number takes a draw, of which an organisation has ten a minute."""
    fleet = await opened(world, "FAILED", "VERIFIED")
    await fleet.enforce(1)
    await fleet.have("other", "normal")
    device = with_old_token(fleet)
    got = []
    for turn in range(12):
        answer = await device.pull(await rotated(fleet, f"secret{turn}"))
        assert "secret" not in answer.text, turn
        got.append(answer.status_code)
    assert got == [200] * 10 + [304] * 2


@pytest.mark.parametrize(("short", "in_use", "exceeds"), [(2, 12, False), (3, 12, True)])
def test_one_bad_device_does_not_hold_the_gate_of_a_small_fleet(
    short: int, in_use: int, exceeds: bool
) -> None:
    """Two may fall short, although 10 percent are one of 12."""
    gate = Gate(ORG.id, mode=Mode.ENFORCE, max_percent=10)
    assert Shortfall(gate, in_use, short, new=1).exceeds is exceeds
