"""Accounts that an Owner takes out of a source."""

from __future__ import annotations

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from services.identity.scim.schemas import USER
from tests.support import callers
from tests.support.directories import reason
from tests.support.identity import PASSWORD
from tests.support.scim import World, world
from tests.support.single_sign_on import DOMAIN, fake

__all__ = ["fake", "world"]  # the fixtures


async def unlink(
    world: World, name: str, by: callers.Metadata | None = None, source_id: str = ""
) -> pb.ScimSource:
    user = (await world.users())[name]
    return await world.identity.scim.UnlinkScimUser(
        pb.UnlinkScimUserRequest(id=source_id or world.source.id, user_id=user.id),
        metadata=by or world.owner,
    )


async def refusal(world: World, name: str, by: callers.Metadata, source_id: str = "") -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await unlink(world, name, by, source_id)
    return reason(error)


async def test_the_account_is_local_again(world: World) -> None:
    """Disabled, with its role, and without what opened it; an invitation gives it a password."""
    anna = await world.scim.user("anna")
    await world.scim.group("admins", anna)
    world.sso.sso.person("anna")
    session = await world.sso.login("anna")
    after = await unlink(world, "anna")
    assert after.users == 0
    user = (await world.users())["anna"]
    assert (user.origin, user.status, user.role) == ("local", "disabled", "Admin")
    assert session["sid"] in await world.sso.ended()
    await world.sso.refused("anna")
    assert await world.problems() == {"anna": "UNLINKED"}
    told = await world.events("user_deactivated", "account_unlinked")
    assert [one["actor"] for one in told] == ["local@school.example"] * 3
    assert told[0]["after"]["origin"] == "local"
    assert {one["before"]["provider"] for one in told[1:]} == {"Entra", "School sign-in"}

    invited = await world.identity.users.InviteUser(
        pb.InviteUserRequest(id=user.id), metadata=world.owner
    )
    await world.identity.auth.AcceptInvitation(
        pb.AcceptInvitationRequest(invitation_token=invited.invitation_token, password=PASSWORD),
        metadata=callers.anonymous(),
    )
    await world.identity.login(f"anna@{DOMAIN}")


async def test_the_source_has_no_say_any_more(world: World) -> None:
    """Whatever it sends of the person, before and after the invitation; nor of the person anew,
    until the account is gone."""
    anna = await world.scim.user("anna", externalId="1")
    admins = await world.scim.group("admins", anna)
    await unlink(world, "anna")
    user = (await world.users())["anna"]
    owners = await world.scim.group("owners", anna)
    await world.scim.activate(anna, False)
    await world.scim.activate(anna, True)
    await world.scim.patch(
        f"/Users/{anna['id']}", {"op": "replace", "path": "displayName", "value": "Anna"}
    )
    assert await world.user("anna") == ("Admin", "disabled")
    await world.identity.users.InviteUser(pb.InviteUserRequest(id=user.id), metadata=world.owner)
    await world.scim.remove(admins, anna)
    await world.update(role_mappings=[pb.RoleMapping(group="owners", role="Owner")])
    assert await world.user("anna") == ("Admin", "invited")
    assert await world.problems() == {"anna": "UNLINKED"}
    await world.scim.remove(owners, anna)
    await world.scim.ok("DELETE", f"/Users/{anna['id']}")
    assert await world.user("anna") == ("Admin", "invited")
    body = {"schemas": [USER], "userName": f"anna@{DOMAIN}", "externalId": "1"}
    assert (await world.scim.call("POST", "/Users", body)).status_code == 409
    gone = pb.DeactivateUserRequest(id=user.id)
    await world.identity.users.DeactivateUser(gone, metadata=world.owner)
    deleted = pb.DeleteUserRequest(id=user.id)
    await world.identity.users.DeleteUser(deleted, metadata=world.owner)
    again = await world.scim.user("anna", externalId="1")
    await world.scim.add(owners, again)
    assert (await world.users())["anna"].origin == "scim"


async def test_nobody_takes_over_whom_an_owner_took_out(world: World) -> None:
    """Between the invitation and its acceptance: not the source by another one, nor the provider
    that recognises the address; afterwards the account has a password, which counts."""
    anna = await world.scim.user("anna")
    await world.scim.group("admins", anna)
    await unlink(world, "anna")
    user = (await world.users())["anna"]
    invited = await world.identity.users.InviteUser(
        pb.InviteUserRequest(id=user.id), metadata=world.owner
    )
    second, other = await world.second()
    body = {"schemas": [USER], "userName": f"anna@{DOMAIN}"}
    assert (await other.call("POST", "/Users", body)).status_code == 409
    world.sso.sso.person("anna")
    await world.sso.refused("anna")
    assert await world.user("anna") == ("Admin", "invited")
    assert (await world.users())["anna"].origin == "local"
    await world.identity.auth.AcceptInvitation(
        pb.AcceptInvitationRequest(invitation_token=invited.invitation_token, password=PASSWORD),
        metadata=callers.anonymous(),
    )
    await world.identity.login(f"anna@{DOMAIN}")
    assert second.id != world.source.id
    # Invited once more by an Owner, it is a source's to take again.
    await world.identity.users.InviteUser(pb.InviteUserRequest(id=user.id), metadata=world.owner)
    taken = await other.user("anna")
    await other.group("admins", taken)
    assert (await world.users())["anna"].origin == "scim"


async def test_one_whom_the_source_has_no_more(world: World) -> None:
    """Whose account waits for the source, can be had back, too."""
    anna = await world.scim.user("anna")
    await world.scim.group("staff", anna)
    await world.scim.ok("DELETE", f"/Users/{anna['id']}")
    assert (await world.users())["anna"].origin == "scim"
    await unlink(world, "anna")
    user = (await world.users())["anna"]
    assert (user.origin, user.status) == ("local", "disabled")
    deleted = pb.DeleteUserRequest(id=user.id)
    await world.identity.users.DeleteUser(deleted, metadata=world.owner)
    again = await world.scim.user("anna")
    assert (await world.scim.ok("GET", f"/Users/{again['id']}"))["active"]


async def test_who_may_and_whom(world: World) -> None:
    """An Owner of the source's organisation; a user of this source, and not oneself."""
    anna = await world.scim.user("anna")
    await world.scim.group("owners", anna)
    _, admin = await world.identity.user(world.owner, Role.ADMIN)
    assert await refusal(world, "anna", admin) == "ROLE_MAY_NOT"
    other = await world.identity.org(world.sso.root, "Other", code="other")
    _, stranger = await world.identity.user(world.sso.root, Role.OWNER, other.id)
    assert await refusal(world, "anna", stranger) == "NOT_FOUND"
    second, _ = await world.second()
    assert await refusal(world, "anna", world.owner, second.id) == "NOT_FOUND"
    assert await refusal(world, "local", world.owner) == "NOT_FOUND"
    world.sso.sso.person("anna")
    claims = await world.sso.login("anna")
    herself = callers.user(
        claims["tid"],
        Role.OWNER,
        user_id=claims["sub"],
        session_id=claims["sid"],
        email=claims["email"],
    )
    assert await refusal(world, "anna", herself) == "NOT_YOURSELF"
    assert await world.user("anna") == ("Owner", "active")
