"""Identity on a real database, called over its gateway socket."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import grpc
import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc as rpc
from servicekit.access import Role
from services.identity.__main__ import build
from services.identity.settings import IdentitySettings
from tests import callers
from tests.conftest import MakeKit, ServeService
from tests.servers import Servers, TestDatabase

OWNER = "owner@school.example"
PASSWORD = "a long enough password"


@dataclass
class Identity:
    """The running service, and stubs to call it."""

    database: TestDatabase
    auth: rpc.AuthServiceAsyncStub
    tenants: rpc.TenantServiceAsyncStub
    users: rpc.UserServiceAsyncStub
    keys: rpc.TokenKeyServiceAsyncStub
    internal: rpc.IdentityInternalServiceAsyncStub

    async def login(self, email: str = OWNER, password: str = PASSWORD) -> pb.Session:
        return await self.auth.Login(
            pb.LoginRequest(email=email, password=password), metadata=callers.anonymous()
        )

    async def as_user(self, email: str = OWNER, password: str = PASSWORD) -> callers.Metadata:
        """The metadata that the gateway would make of a fresh session's token."""
        return as_caller((await self.login(email, password)).token)

    async def events(self) -> list[dict[str, Any]]:
        """All events in the outbox, oldest first."""
        connection = await self.database.superuser()
        try:
            rows = await connection.fetch("SELECT payload FROM identity.outbox ORDER BY id")
        finally:
            await connection.close()
        return [json.loads(row["payload"]) for row in rows]

    async def org(self, owner: callers.Metadata, name: str, **more: Any) -> pb.Tenant:
        return await self.tenants.CreateTenant(
            pb.CreateTenantRequest(name=name, **more), metadata=owner
        )

    async def user(
        self, by: callers.Metadata, role: Role, tenant_id: str = "", email: str = ""
    ) -> tuple[pb.User, callers.Metadata]:
        """A new active user with a session."""
        email = email or f"{uuid4().hex[:8]}@school.example"
        made = await self.users.CreateUser(
            pb.CreateUserRequest(
                email=email, role=role.value, tenant_id=tenant_id, password=PASSWORD
            ),
            metadata=by,
        )
        return made, await self.as_user(email)


def claims(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def as_caller(token: str) -> callers.Metadata:
    found = claims(token)
    return callers.user(
        found["tid"],
        Role(found["role"]),
        user_id=found["sub"],
        session_id=found["sid"],
        email=found["email"],
    )


def refused(error: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> dict[str, Any]:
    """The error body that the gateway would answer."""
    trailing = dict(error.value.trailing_metadata() or ())
    body: dict[str, Any] = json.loads(trailing["x-evergreen-error"])
    return body


@pytest_asyncio.fixture
async def identity(
    make_kit: MakeKit,
    serve: ServeService,
    servers: Servers,
    database: TestDatabase,
    tmp_path: Any,
) -> AsyncIterator[Identity]:
    secret = tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    kit = await make_kit(
        "identity", IdentitySettings, admin_email=OWNER.upper(), admin_password_file=secret
    )
    await serve(kit, build)
    await kit.tenants.follower.refresh()
    async with (
        grpc.aio.insecure_channel(kit.settings.grpc_listen) as public,
        grpc.aio.insecure_channel(kit.settings.internal_listen) as internal,
    ):
        yield Identity(
            database,
            rpc.AuthServiceStub(public),
            rpc.TenantServiceStub(public),
            rpc.UserServiceStub(public),
            rpc.TokenKeyServiceStub(public),
            rpc.IdentityInternalServiceStub(internal),
        )


async def test_the_first_start_makes_root_default_org_and_owner(identity: Identity) -> None:
    """A fresh installation has one Owner at the root and the organisation `default`."""
    owner = await identity.as_user()
    tenants = (await identity.tenants.ListTenants(pb.ListTenantsRequest(), metadata=owner)).tenants
    assert [(t.kind, t.code) for t in tenants] == [("root", "root"), ("org", "default")]
    users = (await identity.users.ListUsers(pb.ListUsersRequest(), metadata=owner)).users
    assert [(u.email, u.role, u.status) for u in users] == [(OWNER, "Owner", "active")]


async def test_a_login_answers_a_token_that_the_published_key_verifies(
    identity: Identity,
) -> None:
    """The token is EdDSA, names its key, lives an hour, and carries who the user is."""
    session = await identity.login(OWNER.upper())
    keys = await identity.keys.GetJwks(pb.GetJwksRequest())
    kid = jwt.get_unverified_header(session.token)["kid"]
    (key,) = [k for k in keys.keys if k.kid == kid]
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key.x + "="))
    found = jwt.decode(
        session.token,
        public,
        algorithms=["EdDSA"],
        audience="evergreen:api",
        issuer="evergreen:users",
    )
    assert found["exp"] - found["iat"] == 3600
    assert found["exp"] == session.expires_at.seconds
    assert (found["role"], found["email"], found["knd"]) == ("Owner", OWNER, "user")
    assert (session.role, session.email, session.tenant_id) == ("Owner", OWNER, found["tid"])


@pytest.mark.parametrize(
    ("email", "password"),
    [(OWNER, "wrong password"), ("nobody@school.example", PASSWORD), (OWNER, PASSWORD + " ")],
)
async def test_wrong_credentials_look_the_same(
    identity: Identity, email: str, password: str
) -> None:
    """Nothing tells an unknown address from a wrong password."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.login(email, password)
    body = refused(error)
    assert (body["status"], body["message"]) == (
        "UNAUTHENTICATED",
        "the e-mail address or the password is wrong",
    )


async def test_a_refresh_token_works_once_and_its_reuse_ends_the_session(
    identity: Identity,
) -> None:
    """Rotation: the newest token works; an old one shows a theft, and all of them end."""
    first = await identity.login()
    second = await identity.auth.RefreshSession(
        pb.RefreshSessionRequest(refresh_token=first.refresh_token)
    )
    assert second.refresh_token != first.refresh_token
    assert claims(second.token)["sid"] == claims(first.token)["sid"]
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.auth.RefreshSession(
            pb.RefreshSessionRequest(refresh_token=first.refresh_token)
        )
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.auth.RefreshSession(
            pb.RefreshSessionRequest(refresh_token=second.refresh_token)
        )
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.auth.GetSession(pb.GetSessionRequest(), metadata=as_caller(second.token))
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_secrets_are_stored_hashed_only(identity: Identity) -> None:
    """Neither passwords nor refresh tokens nor invitations are in the database as they are."""
    owner = await identity.as_user()
    session = await identity.login()
    invited = await identity.users.CreateUser(
        pb.CreateUserRequest(email="new@school.example", role="Auditor"), metadata=owner
    )
    connection = await identity.database.superuser()
    try:
        tables = [
            r["tablename"]
            for r in await connection.fetch(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'identity'"
            )
        ]
        dump = ""
        for table in tables:
            rows = await connection.fetch(f"SELECT t::text AS text FROM identity.{table} t")
            dump += "".join(row["text"] for row in rows)
    finally:
        await connection.close()
    for secret in (PASSWORD, session.refresh_token, invited.invitation_token, session.token):
        assert secret
        assert secret not in dump
    assert "$argon2id$v=19$m=19456,t=2,p=1$" in dump


async def test_logout_ends_the_session_and_tells_the_other_services(identity: Identity) -> None:
    """The session's token is refused at once here, and is in the feed for the others."""
    session = await identity.login()
    caller = as_caller(session.token)
    await identity.auth.GetSession(pb.GetSessionRequest(), metadata=caller)
    await identity.auth.Logout(pb.LogoutRequest(), metadata=caller)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.auth.GetSession(pb.GetSessionRequest(), metadata=caller)
    assert refused(error)["details"][0]["reason"] == "SESSION_ENDED"
    feed = await identity.internal.ListAccessChanges(pb.ListAccessChangesRequest())
    assert claims(session.token)["sid"] in {s.session_id for s in feed.ended_sessions}
    with pytest.raises(grpc.aio.AioRpcError):
        await identity.auth.RefreshSession(
            pb.RefreshSessionRequest(refresh_token=session.refresh_token)
        )


async def test_an_invited_user_sets_a_password_once(identity: Identity) -> None:
    """Invited, accepted, active; the invitation does not work twice."""
    owner = await identity.as_user()
    user = await identity.users.CreateUser(
        pb.CreateUserRequest(email="New@School.example", role="Admin"), metadata=owner
    )
    assert (user.email, user.status) == ("new@school.example", "invited")
    session = await identity.auth.AcceptInvitation(
        pb.AcceptInvitationRequest(invitation_token=user.invitation_token, password=PASSWORD)
    )
    assert session.role == "Admin"
    found = await identity.users.GetUser(pb.GetUserRequest(id=user.id), metadata=owner)
    assert (found.status, found.HasField("invitation_token")) == ("active", False)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.auth.AcceptInvitation(
            pb.AcceptInvitationRequest(invitation_token=user.invitation_token, password=PASSWORD)
        )
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_new_password_ends_the_other_sessions(identity: Identity) -> None:
    """Whoever changes a password keeps the session it was changed in, and no other one."""
    kept, lost = await identity.as_user(), await identity.as_user()
    await identity.auth.ChangePassword(
        pb.ChangePasswordRequest(current_password=PASSWORD, new_password="another long password"),
        metadata=kept,
    )
    await identity.auth.GetSession(pb.GetSessionRequest(), metadata=kept)
    with pytest.raises(grpc.aio.AioRpcError):
        await identity.auth.GetSession(pb.GetSessionRequest(), metadata=lost)
    with pytest.raises(grpc.aio.AioRpcError):
        await identity.login()
    await identity.login(password="another long password")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.auth.ChangePassword(
            pb.ChangePasswordRequest(current_password=PASSWORD, new_password="yet another one..."),
            metadata=kept,
        )
    assert refused(error)["message"] == "currentPassword: is wrong"


async def test_a_disabled_user_is_cut_off(identity: Identity) -> None:
    """No login, no refresh, and the session's token is refused at once."""
    owner = await identity.as_user()
    user, caller = await identity.user(owner, Role.ADMIN)
    done = await identity.users.DeactivateUser(pb.DeactivateUserRequest(id=user.id), metadata=owner)
    assert done.status == "disabled"
    for attempt in (
        identity.auth.GetSession(pb.GetSessionRequest(), metadata=caller),
        identity.login(user.email),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await attempt
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


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


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.CreateUserRequest(role="Admin", password=PASSWORD), "email"),
        (pb.CreateUserRequest(email="no at sign", role="Admin", password=PASSWORD), "email"),
        (pb.CreateUserRequest(email="a@b.example", role="King", password=PASSWORD), "role"),
        (pb.CreateUserRequest(email="a@b.example", role="Admin", password="short"), "password"),
        (pb.CreateUserRequest(email="a\x00@b.example", role="Admin"), "email"),
        (pb.CreateUserRequest(email="a@b.example", role="Admin", tenant_id="1"), "tenantId"),
        (pb.CreateUserRequest(email="a" * 300 + "@b.example", role="Admin"), "email"),
    ],
)
async def test_bad_input_names_its_field(
    identity: Identity, request_: pb.CreateUserRequest, field: str
) -> None:
    """INVALID_ARGUMENT, the field and the rule; nothing is changed."""
    owner = await identity.as_user()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.users.CreateUser(request_, metadata=owner)
    body = refused(error)
    assert body["code"] == 3
    assert body["error"] == body["message"]
    violations = body["details"][1]["fieldViolations"]
    assert [v["field"] for v in violations] == [field]
    users = await identity.users.ListUsers(pb.ListUsersRequest(), metadata=owner)
    assert len(users.users) == 1


async def test_a_roots_id_is_a_uuid_of_its_time(identity: Identity) -> None:
    """Ids are UUIDv7."""
    owner = await identity.as_user()
    page = await identity.tenants.ListTenants(pb.ListTenantsRequest(), metadata=owner)
    assert {UUID(t.id).version for t in page.tenants} == {7}
