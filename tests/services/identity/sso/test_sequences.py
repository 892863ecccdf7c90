"""Whatever a provider says, in whatever order: nobody is more than the mapping says now."""

from __future__ import annotations

import random
from uuid import UUID

import pytest

from contract.access import Role
from services.identity.sources.domain import RoleMapping, decide
from tests.support.identity import claims
from tests.support.paths import LONG
from tests.support.single_sign_on import World, fake, row, world

__all__ = ["fake", "world"]  # the fixtures

GROUPS = ("owners", "admins", "auditors", "strangers")
RANK = {"Auditor": 0, "Admin": 1, "Owner": 2}
SEEDS = range(30) if LONG else range(3)
STEPS = 40 if LONG else 25
ROWS = [
    (group, role)
    for group in ("owners", "admins", "auditors", "*")
    for role in (Role.OWNER, Role.ADMIN, Role.AUDITOR)
    if (group, role) != ("*", Role.OWNER)
]


@pytest.mark.parametrize("seed", SEEDS)
async def test_nobody_is_more_than_the_mapping_says(world: World, seed: int) -> None:
    """After each login the role is at most what the rows of now make of the groups that were told
    last, of this person; and after each change of rows nobody who is active has more."""
    choice = random.Random(seed)
    rows = [("owners", Role.OWNER), ("admins", Role.ADMIN), ("auditors", Role.AUDITOR)]
    told: dict[str, frozenset[str]] = {}

    def most(name: str) -> int:
        mappings = [RoleMapping(group, role, UUID(world.school.id)) for group, role in rows]
        found = decide(mappings, told.get(name, frozenset()))
        return RANK[found.role.value] if found is not None else -1

    logins = 0
    for _ in range(STEPS):
        if choice.random() < 0.25:
            rows = choice.sample(ROWS, choice.randint(1, 4))
            await world.update(role_mappings=[row(*one) for one in rows])
        else:
            name = choice.choice(("anna", "berta", "carl"))
            groups = choice.choice((None, choice.sample(GROUPS, choice.randint(0, 3))))
            world.sso.person(name, *(groups or ()), email_verified=choice.random() < 0.8)
            world.sso.userinfo = {"sub": name}
            if groups is None:
                del world.sso.people[name]["groups"]
            else:
                told[name] = frozenset(groups) & {group for group, _ in rows}
            browser = world.browser()
            answer = await world.arrive(browser, name)
            if answer.status_code == 200:
                logins += 1
                said = claims(browser.cookies["session"])
                assert RANK[said["role"]] <= most(name), (seed, name, groups, rows)
                assert said["tid"] == world.school.id
            else:
                assert "session" not in browser.cookies
        for name, user in (await world.users()).items():
            if user.origin == "sso" and user.status == "active":
                assert RANK[user.role] <= most(name), (seed, name, rows)
    assert logins, "a sequence that lets nobody in shows nothing"
