"""Whatever SCIM, administrators and Owners do in whatever order: nobody is more than the mappings
say."""

from __future__ import annotations

import asyncio
import os
import random
import time
from contextlib import suppress
from typing import Any

import grpc

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from tests.support.scim import World, world
from tests.support.single_sign_on import LOCAL, fake, row
from tests.support.stack import PATIENCE

__all__ = ["fake", "world"]  # the fixtures

STEPS = int(os.environ.get("SCIM_STEPS", "150"))
RANK = {Role.AUDITOR: 0, Role.ADMIN: 1, Role.OWNER: 2}
NAMES = ("anna", "bert", "carl", "dora", "emil", "fred", "gina", "hans")
GROUPS = ("owners", "admins", "staff", "others")


class Model:
    """What SCIM has said, and what the mappings are."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.people: dict[str, dict[str, Any]] = {}
        self.groups: dict[str, dict[str, Any]] = {}
        self.members: dict[str, set[str]] = {name: set() for name in GROUPS}
        self.rows = {"owners": Role.OWNER, "admins": Role.ADMIN, "staff": Role.AUDITOR}
        self.out: set[str] = set()
        """Whom an administrator has deactivated."""
        self.unlinked: set[str] = set()
        """Whom an Owner has taken out of the source, and deleted."""

    def role(self, name: str) -> Role | None:
        """The highest role that somebody may have."""
        if name not in self.people or not self.people[name]["active"] or name in self.out:
            return None
        roles = [self.rows[g] for g in GROUPS if name in self.members[g] and g in self.rows]
        return max(roles, key=RANK.__getitem__) if roles else None

    async def step(self) -> str:
        acts = [self.send, self.send, self.group, self.join, self.join, self.join, self.leave,
                self.leave, self.replace, self.toggle, self.toggle, self.rename, self.delete,
                self.map, self.deactivate, self.reactivate, self.meddle, self.confirm,
                self.unlink]  # fmt: skip
        act = self.random.choice(acts)
        await act()
        return act.__name__

    async def send(self) -> None:
        name = self.random.choice(NAMES)
        if name not in self.people:
            self.people[name] = await self.world.scim.user(name)
            for members in self.members.values():
                members.discard(name)

    async def group(self) -> None:
        name = self.random.choice(GROUPS)
        if name not in self.groups:
            self.groups[name] = await self.world.scim.group(name)
        elif self.random.random() < 0.3:
            await self.world.scim.ok("DELETE", f"/Groups/{self.groups.pop(name)['id']}")
            self.members[name] = set()

    def _pair(self) -> tuple[str, str] | None:
        if not self.groups or not self.people:
            return None
        return self.random.choice(sorted(self.groups)), self.random.choice(sorted(self.people))

    async def join(self) -> None:
        if (pair := self._pair()) is not None:
            await self.world.scim.add(self.groups[pair[0]], self.people[pair[1]])
            self.members[pair[0]].add(pair[1])

    async def leave(self) -> None:
        if (pair := self._pair()) is not None:
            await self.world.scim.remove(self.groups[pair[0]], self.people[pair[1]])
            self.members[pair[0]].discard(pair[1])

    async def replace(self) -> None:
        if (pair := self._pair()) is None:
            return
        kept = self.random.sample(sorted(self.people), self.random.randint(0, len(self.people)))
        value = [{"value": self.people[name]["id"]} for name in kept]
        path = f"/Groups/{self.groups[pair[0]]['id']}"
        await self.world.scim.patch(path, {"op": "Replace", "path": "members", "value": value})
        self.members[pair[0]] = set(kept)

    async def toggle(self) -> None:
        if self.people:
            one = self.people[self.random.choice(sorted(self.people))]
            one["active"] = not one["active"]
            await self.world.scim.activate(one, one["active"])

    async def rename(self) -> None:
        if self.people:
            one = self.people[self.random.choice(sorted(self.people))]
            change = {"op": "replace", "path": "displayName", "value": str(self.random.random())}
            await self.world.scim.patch(f"/Users/{one['id']}", change)

    async def delete(self) -> None:
        if self.people:
            name = self.random.choice(sorted(self.people))
            await self.world.scim.ok("DELETE", f"/Users/{self.people.pop(name)['id']}")
            self.unlinked.discard(name)
            for members in self.members.values():
                members.discard(name)

    async def map(self) -> None:
        names = self.random.sample(GROUPS, self.random.randint(1, len(GROUPS)))
        self.rows = {name: self.random.choice(list(RANK)) for name in names}
        rows = [row(name, role) for name, role in self.rows.items()]
        await self.world.update(role_mappings=rows)

    async def _account(self) -> tuple[str, pb.User] | None:
        users = await self.world.users()
        mine = [name for name in sorted(users) if name in NAMES]
        if not mine:
            return None
        name = self.random.choice(mine)
        return name, users[name]

    async def deactivate(self) -> None:
        if (found := await self._account()) is not None:
            name, user = found
            await self.world.identity.users.DeactivateUser(
                pb.DeactivateUserRequest(id=user.id), metadata=self.world.owner
            )
            self.out.add(name)

    async def reactivate(self) -> None:
        if (found := await self._account()) is not None:
            name, user = found
            await self.world.identity.users.ReactivateUser(
                pb.ReactivateUserRequest(id=user.id), metadata=self.world.owner
            )
            self.out.discard(name)

    async def meddle(self) -> None:
        """What administrators cannot do."""
        if (found := await self._account()) is not None:
            with suppress(grpc.aio.AioRpcError):
                await self.world.identity.users.UpdateUser(
                    pb.UpdateUserRequest(id=found[1].id, role="Owner"), metadata=self.world.owner
                )
            with suppress(grpc.aio.AioRpcError):
                await self.world.identity.users.InviteUser(
                    pb.InviteUserRequest(id=found[1].id), metadata=self.world.owner
                )

    async def confirm(self) -> None:
        with suppress(grpc.aio.AioRpcError):
            await self.world.identity.scim.ConfirmScimSource(
                pb.ConfirmScimSourceRequest(id=self.world.source.id, users=100),
                metadata=self.world.owner,
            )

    async def unlink(self) -> None:
        """Takes somebody out of the source for good: only a new person gets an account again."""
        if (found := await self._account()) is not None:
            name, user = found
            await self.world.identity.scim.UnlinkScimUser(
                pb.UnlinkScimUserRequest(id=self.world.source.id, user_id=user.id),
                metadata=self.world.owner,
            )
            await self.world.identity.users.DeleteUser(
                pb.DeleteUserRequest(id=user.id), metadata=self.world.owner
            )
            self.out.discard(name)
            if name in self.people:
                self.unlinked.add(name)

    async def check(self, done: list[str]) -> None:
        """Nobody is more than the model says, but those who are held for an Owner's word; after
        that nobody at all."""
        held = {
            name for name, problem in (await self.world.problems()).items() if problem == "HELD"
        }
        for name, user in (await self.world.users()).items():
            if name not in NAMES or name in held:
                continue
            allowed = self.role(name)
            assert name not in self.unlinked, (name, done)
            assert user.origin == "scim", done
            if user.status == "active":
                assert allowed is not None, (name, user.role, done[0], done[-5:])
                assert Role(user.role) is allowed, (name, user.role, allowed, done[0], done[-5:])
            elif name not in self.out and allowed is not None:
                await self._let_in(name, allowed, done)

    async def _let_in(self, name: str, allowed: Role, done: list[str]) -> None:
        """Waits for who was let in again by an administrator: the service looks after that."""
        until = time.monotonic() + PATIENCE
        while (user := (await self.world.users())[name]).status != "active":
            assert time.monotonic() < until, (name, "is out", done[0], done[-5:])
            await asyncio.sleep(0.05)
        assert Role(user.role) is allowed, (name, user.role, allowed, done[0], done[-5:])


async def test_nobody_is_more_than_the_mappings_say(world: World) -> None:
    """Nor less; and the local Owner stays what they are."""
    seed = int(os.environ.get("SCIM_SEED", "0")) or random.randrange(1 << 30)
    model = Model(world, seed)
    done: list[str] = [f"seed {seed}"]
    for _ in range(STEPS):
        done.append(await model.step())
        await model.check(done)
    await model.confirm()
    await model.check(done)
    assert (await world.now()).held == 0
    user = (await world.users())[LOCAL.partition("@")[0]]
    assert (user.role, user.status, user.origin) == ("Owner", "active", "local")
