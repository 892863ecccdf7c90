"""No sequence of changes there and acts here makes a user more than the mappings say."""

from __future__ import annotations

import contextlib
import random
from uuid import UUID

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from services.identity.sources.domain import EVERYBODY, RoleMapping, decide
from tests.fakes.ldap import FakePerson, group_dn
from tests.support.directories import World, fake, row, world
from tests.support.paths import LONG

__all__ = ["fake", "world"]  # the fixtures

GROUPS = ("Owners", "Admins", "Auditors", "Inner")
RANK = {"Auditor": 0, "Admin": 1, "Owner": 2}
SEEDS = range(40) if LONG else range(3)
STEPS = 40 if LONG else 25


def test_rows_decide_in_their_order() -> None:
    """The tenant is the first matching row's, the role the highest of that tenant's rows."""
    north, south = UUID(int=1), UUID(int=2)
    rows = [
        RoleMapping("a", Role.AUDITOR, north),
        RoleMapping("b", Role.OWNER, south),
        RoleMapping("c", Role.ADMIN, north),
        RoleMapping(EVERYBODY, Role.AUDITOR, south),
    ]
    expected = {
        frozenset("a"): (Role.AUDITOR, north),
        frozenset("ac"): (Role.ADMIN, north),
        frozenset("abc"): (Role.ADMIN, north),
        frozenset("b"): (Role.OWNER, south),
        frozenset("bc"): (Role.OWNER, south),
        frozenset("c"): (Role.ADMIN, north),
        frozenset(): (Role.AUDITOR, south),
    }
    for groups, (role, tenant_id) in expected.items():
        found = decide(rows, groups)
        assert found is not None
        assert (found.role, found.tenant_id) == (role, tenant_id), groups
    assert decide(rows[:3], frozenset()) is None
    assert decide([], frozenset("abc")) is None


class Sequence:
    """Acts at random, and what the mappings say of each person all the while."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.choice = random.Random(seed)
        self.rows = [("Owners", Role.OWNER), ("Admins", Role.ADMIN), ("Auditors", Role.AUDITOR)]
        world.ldap.groups[group_dn("Inner")] = set()
        self.people = [world.ldap.person(f"p{number}") for number in range(3)]
        self.blocked: set[str] = set()
        """Those whom an administrator keeps out."""

    def rank(self, person: FakePerson) -> int:
        """What the mappings say of somebody now; -1 for no login."""
        if person.dn not in self.world.ldap.people or person.disabled:
            return -1
        found = [
            RANK[role.value]
            for group, role in self.rows
            if person.dn in self.world.ldap.members(group_dn(group))
        ]
        return max(found, default=-1)

    async def step(self) -> str:
        """Does something; answers what."""
        person = self.choice.choice(self.people)
        name = person.mail.partition("@")[0]
        act = self.choice.choice(
            ["join", "leave", "nest", "unnest", "disable", "enable", "rows", "login", "login",
             "login", "sync", "sync", "block", "unblock", "promote", "cut"]
        )  # fmt: skip
        groups = self.world.ldap.groups
        group = group_dn(self.choice.choice(GROUPS))
        users = self.world.identity.users
        with contextlib.suppress(grpc.aio.AioRpcError):
            if act == "join":
                groups[group].add(person.dn)
            elif act == "leave":
                groups[group].discard(person.dn)
            elif act == "nest":
                groups[group].add(group_dn("Inner"))
            elif act == "unnest":
                groups[group].discard(group_dn("Inner"))
            elif act in {"disable", "enable"}:
                person.disabled = act == "disable"
            elif act == "rows":
                roles = list(Role)
                self.rows = [(one, self.choice.choice(roles)) for one, _ in self.rows]
                await self.world.update(role_mappings=[row(one, role) for one, role in self.rows])
            elif act == "login":
                await self.world.forgive()
                session = await self.world.login(name)
                assert RANK[session.role] == self.rank(person), (act, name)
                assert name not in self.blocked
            elif act == "sync":
                await self.world.sync()
                await self.exactly()
            elif act in {"block", "unblock", "promote"}:
                user = (await self.world.users()).get(name)
                if user is None:
                    return act
                if act == "block":
                    await users.DeactivateUser(
                        pb.DeactivateUserRequest(id=user.id), metadata=self.world.owner
                    )
                    self.blocked.add(name)
                elif act == "unblock":
                    await users.ReactivateUser(
                        pb.ReactivateUserRequest(id=user.id), metadata=self.world.owner
                    )
                    self.blocked.discard(name)
                else:
                    await users.UpdateUser(
                        pb.UpdateUserRequest(id=user.id, role="Owner"), metadata=self.world.owner
                    )
            elif act == "cut":
                self.world.ldap.lie = "cut"
                await self.world.sync()
        self.world.ldap.lie = ""
        return act

    async def exactly(self) -> None:
        """After a sync everybody is what the mappings say, and nobody more."""
        users = await self.world.users()
        for person in self.people:
            user = users.get(person.mail.partition("@")[0])
            if user is None:
                continue
            name = user.email.partition("@")[0]
            rank = self.rank(person)
            if rank < 0 or name in self.blocked:
                assert user.status == "disabled", name
            else:
                assert (user.status, RANK[user.role]) == ("active", rank), name
            assert user.tenant_id == self.world.school.id

    async def no_more_than_rows(self) -> None:
        """At all times: nobody has a role that no row gives, and who is kept out is out."""
        users = await self.world.users()
        given = {role.value for _, role in self.rows}
        for person in self.people:
            user = users.get(person.mail.partition("@")[0])
            if user is not None and user.status == "active":
                assert user.role in given
                assert user.email.partition("@")[0] not in self.blocked
        local = users["local"]
        assert (local.role, local.status, local.origin) == ("Owner", "active", "local")


@pytest.mark.parametrize("seed", SEEDS)
async def test_nobody_becomes_more_than_the_mappings_say(world: World, seed: int) -> None:
    """Not by groups, nested ones, syncs that fail, other rows, or what administrators do."""
    sequence = Sequence(world, seed)
    done = []
    for _ in range(STEPS):
        done.append(await sequence.step())
        await sequence.no_more_than_rows()
    await world.sync()
    await sequence.exactly()
    assert "login" in done
