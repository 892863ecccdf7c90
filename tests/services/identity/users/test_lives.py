"""Random lives of people, step by step against a model of who is where and who sees whom."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field
from random import Random
from typing import Final
from uuid import uuid4

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from tests.support import callers
from tests.support.identity import PASSWORD, Identity, identity
from tests.support.paths import LONG

__all__ = ["identity"]  # the fixture

_SEQUENCES: Final = 500 if LONG else 4
_STEPS: Final = 12
_RANK: Final = {"Auditor": 0, "Admin": 1, "Owner": 2}


@dataclass
class Person:
    """What is to be true of a user."""

    id: str
    email: str
    role: str
    tenant: str
    status: str = "active"
    session: callers.Metadata | None = None


@dataclass
class Lives:
    """A reseller with two schools, its people, and what was done."""

    identity: Identity
    random: Random
    parents: dict[str, str]
    """Tenant → the one above it."""
    people: dict[str, Person] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    def sees(self, actor: Person, tenant: str) -> bool:
        while tenant:
            if tenant == actor.tenant:
                return True
            tenant = self.parents.get(tenant, "")
        return False

    def may(self, actor: Person, target: Person, what: str, to: str) -> bool:
        """Whether the product has to let somebody do it."""
        if not self.sees(actor, target.tenant) or target.status == "deleted":
            return False
        if _RANK[actor.role] < 1 or (target.role == "Owner" and actor.role != "Owner"):
            return False
        own = actor is target
        match what:
            case "move":
                return self.sees(actor, to) and (not own or to == target.tenant)
            case "role":
                allowed = to != "Owner" or actor.role == "Owner"
                return allowed and (not own or to == target.role)
            case "email":
                return own or actor.role == "Owner"
            case "deactivate":
                return not own
            case _:
                return not own and target.status == "disabled"

    async def step(self) -> None:
        working = [p for p in self.people.values() if p.status == "active"]
        actor, target = self.random.choice(working), self.random.choice([*self.people.values()])
        what = self.random.choice(["move", "move", "role", "email", "deactivate", "delete"])
        to = {
            "move": self.random.choice([*self.parents]),
            "role": self.random.choice([*_RANK]),
            "email": f"{uuid4().hex[:10]}@school.example",
        }.get(what, "")
        self.done.append(f"{actor.role} {actor.email}: {what} {target.email} {to}")
        await self._do(actor, target, what, to, self.may(actor, target, what, to))
        await self.check()

    async def _do(self, actor: Person, target: Person, what: str, to: str, allowed: bool) -> None:
        if actor.session is None:
            actor.session = await self.identity.as_user(actor.email)
        users, by = self.identity.users, actor.session
        change = pb.UpdateUserRequest(id=target.id)
        call: Awaitable[pb.User]
        match what:
            case "deactivate":
                call = users.DeactivateUser(pb.DeactivateUserRequest(id=target.id), metadata=by)
            case "delete":
                call = users.DeleteUser(pb.DeleteUserRequest(id=target.id), metadata=by)
            case _:
                setattr(change, {"move": "org_id"}.get(what, what), to)
                call = users.UpdateUser(change, metadata=by)
        if not allowed:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call
            assert error.value.code() in {
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.PERMISSION_DENIED,
                grpc.StatusCode.FAILED_PRECONDITION,
            }, error.value
            return
        await call
        before = (target.tenant, target.role, target.email, target.status)
        match what:
            case "move":
                target.tenant = to
            case "role":
                target.role = to
            case "email":
                target.email = to
            case "deactivate":
                target.status = "disabled"
            case _:
                target.status = "deleted"
        if (target.tenant, target.role, target.email, target.status) != before:
            await self._ended(target)

    async def _ended(self, target: Person) -> None:
        """The session that says what was is refused."""
        if target.session is not None:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await self.identity.users.ListUsers(pb.ListUsersRequest(), metadata=target.session)
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
            target.session = None

    async def check(self) -> None:
        """One who works sees exactly the people of the own subtree; the root keeps an Owner."""
        working = [p for p in self.people.values() if p.status == "active"]
        tops = {tenant for tenant, parent in self.parents.items() if not parent}
        assert any(p.role == "Owner" and p.tenant in tops for p in working)
        viewer = self.random.choice(working)
        if viewer.session is None:
            viewer.session = await self.identity.as_user(viewer.email)
        found: dict[str, tuple[str, str, str, str]] = {}
        token = ""
        while True:
            page = await self.identity.users.ListUsers(
                pb.ListUsersRequest(page_size=500, page_token=token, show_deleted=True),
                metadata=viewer.session,
            )
            found |= {u.id: (u.email, u.role, u.tenant_id, u.status) for u in page.users}
            token = page.next_page_token
            if not token:
                break
        wanted = {
            p.id: (p.email, p.role, p.tenant, p.status)
            for p in self.people.values()
            if self.sees(viewer, p.tenant)
        }
        assert {one: found.get(one) for one in wanted} == wanted
        strangers = set(self.people) - set(wanted)
        assert not strangers & set(found)


async def _made(identity: Identity, seed: int) -> Lives:
    root = await identity.as_user()
    me = await identity.users.GetUser(
        pb.GetUserRequest(id=dict(root)["x-evergreen-subject"]), metadata=root
    )
    reseller = await identity.org(root, f"Reseller {uuid4().hex[:6]}", reseller=True)
    schools = [
        await identity.org(root, f"School {uuid4().hex[:6]}", parent_id=reseller.id)
        for _ in range(2)
    ]
    parents = {me.tenant_id: "", reseller.id: me.tenant_id} | {s.id: reseller.id for s in schools}
    lives = Lives(identity, Random(seed), parents)
    roles = (Role.OWNER, Role.ADMIN, Role.AUDITOR)
    for tenant in parents:
        for role in roles[:1] if tenant == me.tenant_id else roles[: lives.random.choice([2, 3])]:
            made = await identity.users.CreateUser(
                pb.CreateUserRequest(
                    email=f"{uuid4().hex[:10]}@school.example",
                    role=role.value,
                    org_id=tenant,
                    password=PASSWORD,
                ),
                metadata=root,
            )
            lives.people[made.id] = Person(made.id, made.email, role.value, tenant)
    return lives


@pytest.mark.timeout(3600 if LONG else 180)
async def test_random_lives_of_people(identity: Identity) -> None:
    """Whoever moves, corrects, deactivates and deletes whom: what may be done is done, nothing else
    is, sessions that say what was are over, and nobody sees more than the own subtree."""
    for seed in range(_SEQUENCES):
        lives = await _made(identity, seed)
        for _ in range(_STEPS):
            try:
                await lives.step()
            except BaseException as error:
                error.add_note(f"seed {seed}: {lives.done}")
                raise
