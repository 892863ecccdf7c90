"""Tenants and users: who may do what, who sees what, and what is recorded of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from random import Random
from uuid import UUID, uuid4

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc as rpc
from tests.support import callers
from tests.support.identity import OWNER, PASSWORD, Identity, claims, identity, refused
from tests.support.paths import LONG
from tests.support.servers import Servers

__all__ = ["identity"]  # the fixture


async def test_the_first_start_makes_root_default_org_and_owner(identity: Identity) -> None:
    """A fresh installation has one Owner at the root and the organisation `default`."""
    owner = await identity.as_user()
    tenants = (await identity.tenants.ListTenants(pb.ListTenantsRequest(), metadata=owner)).tenants
    assert [(t.kind, t.code) for t in tenants] == [("root", "root"), ("org", "default")]
    users = (await identity.users.ListUsers(pb.ListUsersRequest(), metadata=owner)).users
    assert [(u.email, u.role, u.status) for u in users] == [(OWNER, "Owner", "active")]


async def test_only_owners_manage_owners_and_nobody_locks_themselves_out(
    identity: Identity,
) -> None:
    """An Admin can neither make, demote nor disable an Owner; an Owner not the own account."""
    owner = await identity.as_user()
    _, admin = await identity.user(owner, Role.ADMIN)
    me = dict(owner)["x-evergreen-subject"]
    denied = grpc.StatusCode.PERMISSION_DENIED
    create = pb.CreateUserRequest(email="x@school.example", role="Owner", password=PASSWORD)
    for attempt, code in (
        (identity.users.CreateUser(create, metadata=admin), denied),
        (
            identity.users.UpdateUser(pb.UpdateUserRequest(id=me, role="Admin"), metadata=admin),
            denied,
        ),
        (identity.users.DeactivateUser(pb.DeactivateUserRequest(id=me), metadata=admin), denied),
        (identity.users.InviteUser(pb.InviteUserRequest(id=me), metadata=admin), denied),
        (
            identity.users.DeactivateUser(pb.DeactivateUserRequest(id=me), metadata=owner),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        (
            identity.users.UpdateUser(pb.UpdateUserRequest(id=me, role="Auditor"), metadata=owner),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await attempt
        assert error.value.code() is code
    await identity.auth.GetSession(pb.GetSessionRequest(), metadata=owner)


async def test_an_owner_may_reset_a_user(identity: Identity) -> None:
    """An Admin invites a new user as often as needed; to void a password takes an Owner."""
    owner = await identity.as_user()
    _, admin = await identity.user(owner, Role.ADMIN)
    active, session = await identity.user(owner, Role.AUDITOR)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.users.InviteUser(pb.InviteUserRequest(id=active.id), metadata=admin)
    assert refused(error)["details"][0]["reason"] == "OWNERS_INVITE_ADMINS_AGAIN"
    await identity.login(active.email)
    new = await identity.users.CreateUser(
        pb.CreateUserRequest(email="new@school.example", role="Admin"), metadata=admin
    )
    again = await identity.users.InviteUser(pb.InviteUserRequest(id=new.id), metadata=admin)
    assert again.invitation_token != new.invitation_token
    invited = await identity.users.InviteUser(pb.InviteUserRequest(id=active.id), metadata=owner)
    assert invited.status == "invited"
    with pytest.raises(grpc.aio.AioRpcError):
        await identity.auth.GetSession(pb.GetSessionRequest(), metadata=session)
    # An Admin does not get hold of what the Owner opened, either.
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.users.InviteUser(pb.InviteUserRequest(id=active.id), metadata=admin)
    assert refused(error)["details"][0]["reason"] == "OWNERS_INVITE_ADMINS_AGAIN"
    (reset,) = [
        event["data"]
        for event in await identity.events()
        if event["data"]["resource"] == f"users/{active.id}"
        and event["data"]["action"] == "identity.user_invited"
    ]
    assert (reset["actor"], reset["before"]["status"]) == (OWNER, "active")


_STEPS = ("to-admin", "to-auditor", "invite", "deactivate", "accept")
_SEQUENCES = [
    *product(_STEPS, repeat=3 if LONG else 2),
    *(tuple(Random(n).choices(_STEPS, k=7)) for n in range(40 if LONG else 15)),
]
"""Each is followed by another invitation, which is accepted."""


@pytest.mark.long
@pytest.mark.parametrize("role", [Role.ADMIN, Role.AUDITOR])
@pytest.mark.parametrize("ends", ["active", "disabled", "reset by an Owner"])
async def test_no_steps_of_an_admin_lead_into_somebodys_account(
    identity: Identity, role: Role, ends: str
) -> None:
    """Whatever an Admin does with roles, invitations and deactivation, in any order, with a user
    who was ever active: no session as that user comes of it."""
    owner = await identity.as_user()
    _, admin = await identity.user(owner, Role.ADMIN)

    async def step(name: str, user: pb.User, tokens: list[str]) -> None:
        match name:
            case "to-admin" | "to-auditor":
                to = name.removeprefix("to-").title()
                await identity.users.UpdateUser(
                    pb.UpdateUserRequest(id=user.id, role=to), metadata=admin
                )
            case "invite":
                found = await identity.users.InviteUser(
                    pb.InviteUserRequest(id=user.id), metadata=admin
                )
                tokens.append(found.invitation_token)
            case "deactivate":
                await identity.users.DeactivateUser(
                    pb.DeactivateUserRequest(id=user.id), metadata=admin
                )
            case "accept":
                for token in tokens:
                    await identity.auth.AcceptInvitation(
                        pb.AcceptInvitationRequest(
                            invitation_token=token, password="the intruder's one"
                        )
                    )

    async def try_all(user: pb.User, steps: Sequence[str]) -> None:
        tokens: list[str] = []
        for name in (*steps, "invite", "accept"):
            with suppress(grpc.aio.AioRpcError):
                await step(name, user, tokens)

    user, _ = await identity.user(owner, role)
    if ends == "disabled":
        await identity.users.DeactivateUser(pb.DeactivateUserRequest(id=user.id), metadata=owner)
    elif ends != "active":
        await identity.users.InviteUser(pb.InviteUserRequest(id=user.id), metadata=owner)
    connection = await identity.database.superuser()
    try:
        columns = "role, status, password_hash, invitation_hash"
        as_it_was = await connection.fetchrow(
            f"SELECT {columns} FROM identity.account WHERE id = $1", UUID(user.id)
        )
        for steps in _SEQUENCES:
            await try_all(user, steps)
            await connection.execute(
                f"UPDATE identity.account SET ({columns}) = ($2, $3, $4, $5) WHERE id = $1",
                UUID(user.id),
                *as_it_was,
            )
    finally:
        await connection.close()
    taken = [
        event["data"]["action"]
        for event in await identity.events()
        if event["data"]["resource"] == f"users/{user.id}"
        and event["data"]["action"] in {"identity.invitation_accepted", "identity.login_succeeded"}
    ]
    assert taken == ["identity.login_succeeded"]  # the user's own, before


async def test_the_tree_has_resellers_and_orgs(identity: Identity) -> None:
    """Resellers stand below the root, organisations below the root or a reseller."""
    owner = await identity.as_user()
    reseller = await identity.org(owner, "Big Reseller", reseller=True)
    school = await identity.org(owner, "Grundschule Überall!", parent_id=reseller.id)
    assert (reseller.kind, school.kind, school.code) == ("reseller", "org", "grundschule-uberall")
    twin = await identity.org(owner, "Grundschule Überall!", parent_id=reseller.id)
    assert twin.code.startswith("grundschule-uberall-")
    for parent, more in ((school.id, {}), (reseller.id, {"reseller": True})):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await identity.org(owner, "Nope", parent_id=parent, **more)
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.org(owner, "Taken", code=school.code)
    assert error.value.code() is grpc.StatusCode.ALREADY_EXISTS
    renamed = await identity.tenants.UpdateTenant(
        pb.UpdateTenantRequest(id=school.id, name="New name"), metadata=owner
    )
    assert (renamed.name, renamed.code) == ("New name", school.code)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.tenants.UpdateTenant(
            pb.UpdateTenantRequest(id=school.id, reseller=True), metadata=owner
        )
    assert refused(error)["message"] == "reseller: cannot be changed"


async def test_tenants_do_not_see_each_other(identity: Identity) -> None:
    """A reseller's Owner sees the subtree; an organisation's neither its sister nor its parent."""
    root = await identity.as_user()
    reseller = await identity.org(root, "Reseller", reseller=True)
    _, at_reseller = await identity.user(root, Role.OWNER, reseller.id)
    mine = await identity.org(at_reseller, "Mine")
    other = await identity.org(root, "Other")
    me, at_mine = await identity.user(at_reseller, Role.OWNER, mine.id)
    them, _ = await identity.user(root, Role.ADMIN, other.id)

    seen = await identity.tenants.ListTenants(pb.ListTenantsRequest(), metadata=at_reseller)
    assert {t.id for t in seen.tenants} == {reseller.id, mine.id}
    seen = await identity.tenants.ListTenants(pb.ListTenantsRequest(), metadata=at_mine)
    assert {t.id for t in seen.tenants} == {mine.id}
    users = await identity.users.ListUsers(pb.ListUsersRequest(), metadata=at_mine)
    assert {u.id for u in users.users} == {me.id}
    for attempt in (
        identity.tenants.GetTenant(pb.GetTenantRequest(id=other.id), metadata=at_mine),
        identity.tenants.GetTenant(pb.GetTenantRequest(id=reseller.id), metadata=at_mine),
        identity.tenants.UpdateTenant(
            pb.UpdateTenantRequest(id=other.id, name="Mine now"), metadata=at_mine
        ),
        identity.org(at_mine, "Below", parent_id=other.id),
        identity.users.ListUsers(pb.ListUsersRequest(org_id=other.id), metadata=at_mine),
        identity.users.GetUser(pb.GetUserRequest(id=them.id), metadata=at_mine),
        identity.users.UpdateUser(
            pb.UpdateUserRequest(id=them.id, role="Auditor"), metadata=at_mine
        ),
        identity.users.DeactivateUser(pb.DeactivateUserRequest(id=them.id), metadata=at_mine),
        identity.users.InviteUser(pb.InviteUserRequest(id=them.id), metadata=at_mine),
        identity.user(at_mine, Role.ADMIN, other.id),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await attempt
        assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_lists_come_in_pages(identity: Identity) -> None:
    """Every item is on exactly one page, and a made-up token is refused."""
    owner = await identity.as_user()
    made = {(await identity.org(owner, f"School {n}")).id for n in range(5)}
    found: list[str] = []
    token = ""
    while True:
        page = await identity.tenants.ListTenants(
            pb.ListTenantsRequest(page_size=2, page_token=token), metadata=owner
        )
        assert len(page.tenants) <= 2
        found += [t.id for t in page.tenants]
        token = page.next_page_token
        if not token:
            break
    assert len(found) == len(set(found)) == 7
    assert made <= set(found)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.tenants.ListTenants(
            pb.ListTenantsRequest(page_token="made up"), metadata=owner
        )
    assert refused(error)["message"].startswith("pageToken: ")


async def test_every_change_has_its_event_without_secrets(identity: Identity) -> None:
    """Who, what, from where, before and after; and nothing of a change that was refused."""
    owner = await identity.as_user()
    user, _ = await identity.user(owner, Role.ADMIN, email="helper@school.example")
    await identity.users.UpdateUser(
        pb.UpdateUserRequest(id=user.id, role="Auditor"), metadata=owner
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await identity.user(owner, Role.ADMIN, email="helper@school.example")
    with pytest.raises(grpc.aio.AioRpcError):
        await identity.login(password="wrong")
    events = await identity.events()
    names = [e["data"]["action"] for e in events]
    assert names.count("identity.user_created") == 2
    assert names.count("identity.login_failed") == 1
    (update,) = [e for e in events if e["data"]["action"] == "identity.user_updated"]
    data = update["data"]
    assert data["actor"] == OWNER
    assert data["actorRole"] == "Owner"
    assert data["sourceIp"] == "192.0.2.7"
    assert data["requestId"] == dict(owner)["x-request-id"]
    assert data["resource"] == f"users/{user.id}"
    assert (data["before"]["role"], data["after"]["role"]) == ("Admin", "Auditor")
    assert PASSWORD not in json.dumps(events)
    assert "argon2" not in json.dumps(events)


async def test_device_tokens_are_bound_to_one_device(identity: Identity) -> None:
    """The token names the device, its organisation and its generation."""
    device, org = str(uuid4()), str(uuid4())
    answer = await identity.internal.IssueDeviceToken(
        pb.IssueDeviceTokenRequest(device_id=device, tenant_id=org, token_version=3)
    )
    found = claims(answer.device_token)
    assert (found["sub"], found["tid"], found["ver"], found["iss"]) == (
        device,
        org,
        3,
        "evergreen:devices",
    )
    assert found["exp"] == answer.expires_at.seconds


async def test_internal_calls_are_refused_on_the_gateway_listener(
    identity: Identity, servers: Servers
) -> None:
    """What the gateway can reach serves no internal call, and the other way round."""
    directory = servers.run / identity.database.name
    async with grpc.aio.insecure_channel(f"unix:{directory}/identity.gw") as public:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rpc.IdentityInternalServiceStub(public).IssueDeviceToken(
                pb.IssueDeviceTokenRequest(device_id=str(uuid4()), tenant_id=str(uuid4()))
            )
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    async with grpc.aio.insecure_channel(f"unix:{directory}/identity.int") as internal:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rpc.TenantServiceStub(internal).ListTenants(
                pb.ListTenantsRequest(), metadata=callers.user(uuid4())
            )
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


BAD_USERS = [
    (pb.CreateUserRequest(role="Admin", password=PASSWORD), "email"),
    (pb.CreateUserRequest(email="no at sign", role="Admin", password=PASSWORD), "email"),
    (pb.CreateUserRequest(email="a@b.example", role="King", password=PASSWORD), "role"),
    (pb.CreateUserRequest(email="a@b.example", role="Admin", password="short"), "password"),
    (pb.CreateUserRequest(email="a\x00@b.example", role="Admin"), "email"),
    (pb.CreateUserRequest(email="a@b.example", role="Admin", tenant_id="1"), "tenantId"),
    (pb.CreateUserRequest(email="a" * 300 + "@b.example", role="Admin"), "email"),
]


async def test_bad_input_names_its_field(identity: Identity) -> None:
    """INVALID_ARGUMENT, the field and the rule; nothing is changed."""
    owner = await identity.as_user()
    for request, field in BAD_USERS:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await identity.users.CreateUser(request, metadata=owner)
        body = refused(error)
        assert body["code"] == 3
        assert body["error"] == body["message"]
        violations = body["details"][1]["fieldViolations"]
        assert [v["field"] for v in violations] == [field], request
        users = await identity.users.ListUsers(pb.ListUsersRequest(), metadata=owner)
        assert len(users.users) == 1


async def test_a_roots_id_is_a_uuid_of_its_time(identity: Identity) -> None:
    """Ids are UUIDv7."""
    owner = await identity.as_user()
    page = await identity.tenants.ListTenants(pb.ListTenantsRequest(), metadata=owner)
    assert {UUID(t.id).version for t in page.tenants} == {7}
