"""Passwords of here for Owners alone, where people come from elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from tests.support import callers
from tests.support.directories import DOMAIN, LOCAL, World, fake, reason, row, wanted, world
from tests.support.identity import OWNER, PASSWORD, as_caller

__all__ = ["fake", "world"]  # the fixtures


async def policy(
    world: World, by: callers.Metadata, tenant_id: str, local_login: str = ""
) -> pb.SignInPolicy:
    """Reads the policy, or sets it."""
    factors = world.identity.factors
    if not local_login:
        return await factors.GetSignInPolicy(pb.GetSignInPolicyRequest(id=tenant_id), metadata=by)
    return await factors.UpdateSignInPolicy(
        pb.UpdateSignInPolicyRequest(id=tenant_id, local_login=local_login), metadata=by
    )


async def refusal(call: Awaitable[Any]) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return reason(error)


async def named_directory(
    world: World, tenant_id: str, *rows: pb.RoleMapping, domain: str = "named.example"
) -> pb.Directory:
    """A directory of a tenant that the addresses of a domain lead to."""
    identity = world.identity
    made = await identity.directories.CreateDirectory(
        wanted(world.ldap, *rows, org_id=tenant_id), metadata=world.root
    )
    if domain:
        await identity.domains.CreateEmailDomain(
            pb.CreateEmailDomainRequest(domain=domain, org_id=tenant_id), metadata=world.root
        )
        await identity.domains.UpdateEmailDomain(
            pb.UpdateEmailDomainRequest(domain=domain, source_id=made.id), metadata=world.root
        )
    return made


async def test_only_owners_log_in_with_a_password(world: World) -> None:
    """Others do not, and their sessions end with the next refresh; people of the directory get in
    as before, and the log says why somebody was refused."""
    identity = world.identity
    admin, _ = await identity.user(world.root, Role.ADMIN, world.school.id)
    session = await identity.login(admin.email)
    made = await policy(world, world.owner, world.school.id, "owners-only")
    assert (made.local_login, made.effective_local_login) == ("owners-only", "owners-only")
    assert await refusal(identity.login(admin.email)) == "LOCAL_LOGIN_OFF"
    # A wrong password is told nothing of it.
    assert await refusal(identity.login(admin.email, "not the password")) == "WRONG_CREDENTIALS"
    refresh = pb.RefreshSessionRequest(refresh_token=session.refresh_token)
    assert await refusal(identity.auth.RefreshSession(refresh)) == "WRONG_REFRESH_TOKEN"
    await identity.login(LOCAL)
    await identity.login(OWNER)  # of another tenant
    anna = world.ldap.person("anna", "Admins")
    taken = await world.login("anna")
    again = pb.RefreshSessionRequest(refresh_token=taken.refresh_token)
    assert (await identity.auth.RefreshSession(again)).role == "Admin"
    assert anna.password

    (told,) = await world.events("sign_in_policy_updated")
    assert (told["before"]["localLogin"], told["after"]["localLogin"]) == ("all", "owners-only")
    failed = [e["after"]["reason"] for e in await world.events("login_failed")]
    assert failed == ["LOCAL_LOGIN_OFF", ""]

    await policy(world, world.owner, world.school.id, "all")
    await world.forgive()
    await identity.login(admin.email)


async def test_nobody_sets_a_password_that_opens_nothing(world: World) -> None:
    """An invitation of somebody else than an Owner stays as it is; an Owner's sets a password."""
    identity = world.identity
    await policy(world, world.owner, world.school.id, "owners-only")
    for role, expected in ((Role.AUDITOR, "LOCAL_LOGIN_OFF"), (Role.OWNER, "")):
        invited = await identity.users.CreateUser(
            pb.CreateUserRequest(email=f"new-{role.value}@other.example", role=role.value),
            metadata=world.owner,
        )
        accepted = identity.auth.AcceptInvitation(
            pb.AcceptInvitationRequest(
                invitation_token=invited.invitation_token, password=PASSWORD + " of somebody"
            ),
            metadata=callers.anonymous(),
        )
        if expected:
            assert await refusal(accepted) == expected
            found = await identity.users.GetUser(
                pb.GetUserRequest(id=invited.id), metadata=world.owner
            )
            assert found.status == "invited"
        else:
            assert (await accepted).role == "Owner"


async def test_nobody_is_locked_out_by_it(world: World) -> None:
    """Without a directory or provider in use, and without an Owner who has a password, it does not
    hold; the last such Owner stays."""
    identity = world.identity
    admin, _ = await identity.user(world.root, Role.ADMIN, world.school.id)
    await policy(world, world.owner, world.school.id, "owners-only")
    assert await refusal(identity.login(admin.email)) == "LOCAL_LOGIN_OFF"
    owner = (await world.users())["local"]
    for change in (
        identity.users.DeactivateUser(pb.DeactivateUserRequest(id=owner.id), metadata=world.root),
        identity.users.UpdateUser(
            pb.UpdateUserRequest(id=owner.id, role="Admin"), metadata=world.root
        ),
    ):
        assert await refusal(change) == "LAST_LOCAL_OWNER"

    await world.update(enabled=False)
    found = await policy(world, world.owner, world.school.id)
    assert (found.local_login, found.effective_local_login) == ("owners-only", "all")
    await identity.login(admin.email)
    await world.update(enabled=True)
    assert await refusal(identity.login(admin.email)) == "LOCAL_LOGIN_OFF"
    # An organisation without an Owner of its own, whose people come from a directory.
    bare = await identity.org(world.root, "Bare", code="bare")
    auditor, _ = await identity.user(world.root, Role.AUDITOR, bare.id)
    await named_directory(world, bare.id, row("Admins", Role.ADMIN, bare.id))
    made = await policy(world, world.root, bare.id, "owners-only")
    assert made.effective_local_login == "all"
    await identity.login(auditor.email)


@pytest.mark.parametrize(
    ("leads_to", "domain", "holds"),
    [
        (None, "named.example", False),
        ("below", "named.example", False),
        ("here", "", False),
        ("here", "named.example", True),
    ],
)
async def test_a_directory_that_lets_nobody_in_takes_no_passwords(
    world: World, leads_to: str | None, domain: str, holds: bool
) -> None:
    """One without a role mapping that leads to the tenant, or whose people have no addresses."""
    identity = world.identity
    school = await identity.org(world.root, "North", reseller=True, code="north")
    below = await identity.org(world.root, "Below", code="below", parent_id=school.id)
    await identity.user(world.root, Role.OWNER, school.id)
    admin, _ = await identity.user(world.root, Role.ADMIN, school.id)
    ids = {"here": school.id, "below": below.id}
    rows = [row("Admins", Role.ADMIN, ids[leads_to])] if leads_to else []
    await named_directory(world, school.id, *rows, domain=domain)
    made = await policy(world, world.root, school.id, "owners-only")
    assert made.effective_local_login == ("owners-only" if holds else "all")
    assert made.local_only_users == (1 if holds else 0)
    if holds:
        assert await refusal(identity.login(admin.email)) == "LOCAL_LOGIN_OFF"
    else:
        await identity.login(admin.email)


async def test_how_many_it_shuts_out_is_known_before(world: World) -> None:
    """Active Admins and Auditors of the tenant, and below, where others get in elsewhere, who are
    not linked; Owners, people of the directory and those who cannot log in are none of them."""
    identity = world.identity
    assert (await policy(world, world.owner, world.school.id)).local_only_users == 0
    admin, _ = await identity.user(world.root, Role.ADMIN, world.school.id)
    gone, _ = await identity.user(world.root, Role.AUDITOR, world.school.id)
    await identity.user(world.root, Role.OWNER, world.school.id)
    world.ldap.person("anna", "Admins")
    await world.login("anna")
    await identity.users.DeactivateUser(pb.DeactivateUserRequest(id=gone.id), metadata=world.root)
    await identity.users.CreateUser(
        pb.CreateUserRequest(email="new@other.example", role="Admin"), metadata=world.owner
    )
    assert (await policy(world, world.owner, world.school.id)).local_only_users == 1
    # The root's people get in nowhere else; those of the school are below it.
    await identity.user(world.root, Role.ADMIN)
    root_id = (await world.users())[OWNER.partition("@")[0]].tenant_id
    assert (await policy(world, world.root, root_id)).local_only_users == 1
    other = await identity.org(world.root, "Other", code="other")
    await identity.user(world.root, Role.AUDITOR, other.id)
    assert (await policy(world, world.root, other.id)).local_only_users == 0
    made = await policy(world, world.owner, world.school.id, "owners-only")
    assert made.local_only_users == 1
    assert await refusal(identity.login(admin.email)) == "LOCAL_LOGIN_OFF"
    provider = await identity.providers.CreateSsoProvider(
        pb.CreateSsoProviderRequest(
            name="School sign-in",
            issuer="https://login.example",
            client_id="evergreen",
            client_secret="a secret",
        ),
        metadata=world.owner,
    )
    connection = await identity.database.superuser()
    await connection.execute(
        "INSERT INTO identity.external_identity (source_id, subject, account_id, tenant_id,"
        " email_seen, groups_seen, seen_at) VALUES ($1, 'a', $2, $3, '', '{}', now())",
        provider.id,
        admin.id,
        world.school.id,
    )
    await connection.close()
    assert (await policy(world, world.owner, world.school.id)).local_only_users == 0


async def test_what_a_tenant_above_says_holds_below(world: World) -> None:
    """And is not taken back there; tenants without a directory go on as they are."""
    identity = world.identity
    district = await identity.org(world.root, "District", reseller=True, code="district")
    north = await identity.org(world.root, "North", code="north", parent_id=district.id)
    south = await identity.org(world.root, "South", code="south", parent_id=district.id)
    callers_of: dict[str, callers.Metadata] = {}
    admins = {}
    for school in (north, south):
        _, callers_of[school.id] = await identity.user(world.root, Role.OWNER, school.id)
        admins[school.id], _ = await identity.user(world.root, Role.ADMIN, school.id)
    # The district's directory leads into one of its schools.
    await named_directory(world, district.id, row("Admins", Role.ADMIN, north.id))
    await policy(world, world.root, district.id, "owners-only")
    found = await policy(world, callers_of[north.id], north.id, "all")
    assert (found.local_login, found.effective_local_login) == ("all", "owners-only")
    assert await refusal(identity.login(admins[north.id].email)) == "LOCAL_LOGIN_OFF"
    found = await policy(world, callers_of[south.id], south.id)
    assert found.effective_local_login == "all"
    await identity.login(admins[south.id].email)


async def test_who_may_say_so(world: World) -> None:
    """Owners of the tenant or of one above; words that are none are refused by their field."""
    identity = world.identity
    _, admin = await identity.user(world.root, Role.ADMIN, world.school.id)
    assert await refusal(policy(world, admin, world.school.id, "owners-only")) == "ROLE_MAY_NOT"
    other = await identity.org(world.root, "Other", code="other")
    _, stranger = await identity.user(world.root, Role.OWNER, other.id)
    assert await refusal(policy(world, stranger, world.school.id, "owners-only")) == "NOT_FOUND"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await policy(world, world.owner, world.school.id, "nobody")
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "localLogin" in (error.value.details() or "")
    assert (await policy(world, world.owner, world.school.id)).local_login == "all"
    # Who asks for it is not out by it: the own session goes on.
    mine = await identity.login(LOCAL)
    await policy(world, as_caller(mine.token), world.school.id, "owners-only")
    again = pb.RefreshSessionRequest(refresh_token=mine.refresh_token)
    assert (await identity.auth.RefreshSession(again)).role == "Owner"
    assert DOMAIN in LOCAL
