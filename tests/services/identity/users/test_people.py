"""People change schools and addresses, and leave: who may do it, and what stays."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any
from uuid import uuid4

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from tests.support import callers
from tests.support.identity import OWNER, PASSWORD, Identity, as_caller, identity, refused
from tests.support.integrators import create

__all__ = ["identity"]  # the fixture


def address() -> str:
    return f"{uuid4().hex[:8]}@school.example"


def update(
    identity: Identity, by: callers.Metadata, user_id: str, **more: Any
) -> Awaitable[pb.User]:
    return identity.users.UpdateUser(pb.UpdateUserRequest(id=user_id, **more), metadata=by)


def delete(
    identity: Identity, by: callers.Metadata, user_id: str, **more: Any
) -> Awaitable[pb.User]:
    return identity.users.DeleteUser(pb.DeleteUserRequest(id=user_id, **more), metadata=by)


async def reason(call: Awaitable[object]) -> str:
    """The reason with which a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    found: str = refused(error)["details"][0]["reason"]
    return found


async def ids(identity: Identity, by: callers.Metadata, **more: Any) -> dict[str, pb.User]:
    page = await identity.users.ListUsers(pb.ListUsersRequest(page_size=500, **more), metadata=by)
    return {user.id: user for user in page.users}


async def actions(identity: Identity, user_id: str) -> list[tuple[str, str]]:
    """What was told of a user: the tenant, and what happened."""
    return [
        (event["tenantid"], event["data"]["action"].removeprefix("identity."))
        for event in await identity.events()
        if event["data"]["resource"] == f"users/{user_id}"
    ]


async def test_a_teacher_changes_schools(identity: Identity) -> None:
    """The user is the other organisation's from then on, with the same password; sessions and the
    event credentials of the old one end; each organisation's log has its half, and no word of the
    other."""
    root = await identity.as_user()
    old, new = await identity.org(root, "Old school"), await identity.org(root, "New school")
    _, left = await identity.user(root, Role.OWNER, old.id)
    _, entered = await identity.user(root, Role.OWNER, new.id)
    teacher, session = await identity.user(root, Role.ADMIN, old.id)
    credential = await create(identity, session)
    assert (
        await update(identity, root, teacher.id, org_id=new.id, validate_only=True)
    ).tenant_id == new.id
    assert (await ids(identity, root))[teacher.id].tenant_id == old.id
    await identity.users.ListUsers(pb.ListUsersRequest(), metadata=session)

    for by in (left, entered):
        assert await reason(update(identity, by, teacher.id, org_id=new.id)) == "NOT_FOUND"
    moved = await update(identity, root, teacher.id, role="Admin", tenant_id=new.id)
    assert (moved.tenant_id, moved.email, moved.role) == (new.id, teacher.email, "Admin")
    assert moved.etag != teacher.etag
    assert (
        await reason(identity.users.ListUsers(pb.ListUsersRequest(), metadata=session))
        == "SESSION_ENDED"
    )
    assert teacher.id not in await ids(identity, left)
    assert teacher.id in await ids(identity, entered)
    there = await identity.as_user(teacher.email)
    assert set(await ids(identity, there)) == set(await ids(identity, entered))
    listed = await identity.credentials.ListEventCredentials(
        pb.ListEventCredentialsRequest(), metadata=left
    )
    assert [(c.id, c.status) for c in listed.credentials] == [(credential.id, "orphaned")]
    told = await actions(identity, teacher.id)
    assert (old.id, "user_moved_away") in told
    assert (new.id, "user_moved_in") in told
    of_old = [str(e) for e in await identity.events() if e["tenantid"] == old.id]
    of_new = [str(e) for e in await identity.events() if e["tenantid"] == new.id]
    assert not any(new.id in text for text in of_old)
    assert not any(old.id in text for text in of_new)


async def test_who_moves_up_keeps_what_is_still_seen(identity: Identity) -> None:
    """From a school to the reseller above it: event credentials of the school go on."""
    root = await identity.as_user()
    reseller = await identity.org(root, "Reseller", reseller=True)
    school = await identity.org(root, "School", parent_id=reseller.id)
    user, session = await identity.user(root, Role.ADMIN, school.id)
    await create(identity, session)
    await update(identity, root, user.id, org_id=reseller.id)
    listed = await identity.credentials.ListEventCredentials(
        pb.ListEventCredentialsRequest(org_id=school.id), metadata=root
    )
    assert [c.status for c in listed.credentials] == ["active"]


async def test_an_address_is_corrected(identity: Identity) -> None:
    """It is normalised and unique everywhere; logins and held credentials have the new one. An
    Admin corrects the own one and those of users who never had a password; the invitation of one
    who is invited is replaced, for it may have gone astray."""
    root = await identity.as_user()
    org = await identity.org(root, "Addresses")
    admin, session = await identity.user(root, Role.ADMIN, org.id)
    other, _ = await identity.user(root, Role.AUDITOR, org.id)
    elsewhere, _ = await identity.user(root, Role.AUDITOR)
    await create(identity, session)
    for taken in (other.email, elsewhere.email.upper()):
        for only_look in (True, False):
            call = update(identity, session, admin.id, email=taken, validate_only=only_look)
            assert await reason(call) == "EMAIL_TAKEN"
    assert await reason(update(identity, session, other.id, email=address())) == (
        "OWNERS_CORRECT_ADDRESSES"
    )
    mine = address()
    assert (await update(identity, session, admin.id, email=f"  {mine.upper()}")).email == mine
    assert (
        await reason(identity.users.ListUsers(pb.ListUsersRequest(), metadata=session))
        == "SESSION_ENDED"
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await identity.login(admin.email)
    session = await identity.as_user(mine)
    listed = await identity.credentials.ListEventCredentials(
        pb.ListEventCredentialsRequest(), metadata=session
    )
    assert [(c.held_by, c.status) for c in listed.credentials] == [(mine, "active")]
    assert (await update(identity, root, other.id, email=address())).email != other.email
    # The old address is free.
    await identity.user(root, Role.AUDITOR, email=admin.email)

    invited = await identity.users.CreateUser(
        pb.CreateUserRequest(email=address(), role="Auditor"), metadata=session
    )
    right = address()
    corrected = await update(identity, session, invited.id, email=right)
    assert corrected.invitation_token not in {"", invited.invitation_token}
    for token, works in ((invited.invitation_token, False), (corrected.invitation_token, True)):
        accepted = identity.auth.AcceptInvitation(
            pb.AcceptInvitationRequest(invitation_token=token, password=PASSWORD),
            metadata=callers.anonymous(),
        )
        if works:
            assert (await accepted).email == right
        else:
            assert await reason(accepted) == "WRONG_INVITATION"
    assert [action for _, action in await actions(identity, invited.id)][:2] == [
        "user_created",
        "user_updated",
    ]


async def test_a_deactivated_user_is_deleted_and_the_address_is_free(identity: Identity) -> None:
    """Only a deactivated one. A tombstone stays, with who did it; a token of a moment ago is still
    refused; event credentials stay orphaned whoever has the address next."""
    root = await identity.as_user()
    org = await identity.org(root, "Leavers")
    user, session = await identity.user(root, Role.ADMIN, org.id)
    credential = await create(identity, session)
    assert await reason(delete(identity, root, user.id)) == "USER_NOT_DEACTIVATED"
    await identity.users.DeactivateUser(pb.DeactivateUserRequest(id=user.id), metadata=root)
    seen = await delete(identity, root, user.id, validate_only=True)
    assert (seen.status, seen.deleted_by) == ("deleted", OWNER)
    assert (await ids(identity, root))[user.id].status == "disabled"
    assert await reason(delete(identity, root, user.id, etag="0" * 20)) == "ETAG_MISMATCH"
    gone = await delete(identity, root, user.id)
    assert (gone.status, gone.email, gone.deleted_by) == ("deleted", user.email, OWNER)
    assert await reason(delete(identity, root, user.id)) == "NOT_FOUND"
    assert user.id not in await ids(identity, root)
    tombstone = (await ids(identity, root, show_deleted=True))[user.id]
    assert (tombstone.email, tombstone.role, tombstone.status) == (user.email, "Admin", "deleted")
    assert tombstone.deleted_at.seconds and tombstone.tenant_id == org.id
    assert (
        await reason(identity.users.ListUsers(pb.ListUsersRequest(), metadata=session))
        == "SESSION_ENDED"
    )
    assert (org.id, "user_deleted") in await actions(identity, user.id)

    heir, heirs = await identity.user(root, Role.ADMIN, org.id, email=user.email)
    assert heir.id != user.id
    listed = await identity.credentials.ListEventCredentials(
        pb.ListEventCredentialsRequest(), metadata=heirs
    )
    assert [(c.id, c.status) for c in listed.credentials] == [(credential.id, "orphaned")]
    both = await ids(identity, heirs, show_deleted=True)
    assert {user.id, heir.id} <= set(both)


async def test_nobody_reaches_over_the_edge_of_the_own_subtree(identity: Identity) -> None:
    """From both sides: neither a user of others, nor another's organisation; and Owners are Owners'
    business. Nobody moves, demotes or deletes themselves, so that an Owner remains."""
    root = await identity.as_user()
    here, there = await identity.org(root, "Here"), await identity.org(root, "There")
    owner, owners = await identity.user(root, Role.OWNER, here.id)
    admin, admins = await identity.user(root, Role.ADMIN, here.id)
    stranger, _ = await identity.user(root, Role.AUDITOR, there.id)
    root_id = dict(root)["x-evergreen-subject"]
    top = (await identity.users.GetUser(pb.GetUserRequest(id=root_id), metadata=root)).tenant_id
    for by in (owners, admins):
        for foreign in (
            update(identity, by, stranger.id, org_id=here.id),
            update(identity, by, stranger.id, email=address()),
            update(identity, by, admin.id, org_id=there.id),
            update(identity, by, admin.id, org_id=top),
            update(identity, by, admin.id, org_id=str(uuid4())),
            delete(identity, by, stranger.id),
            delete(identity, by, root_id),
        ):
            assert await reason(foreign) == "NOT_FOUND"
    for call in (
        update(identity, admins, owner.id, email=address()),
        update(identity, admins, owner.id, org_id=here.id),
        update(identity, admins, admin.id, role="Owner"),
        delete(identity, admins, owner.id),
    ):
        assert await reason(call) == "OWNERS_MANAGE_OWNERS"
    for call in (
        update(identity, root, root_id, org_id=here.id),
        update(identity, root, root_id, role="Admin"),
        delete(identity, root, root_id),
    ):
        assert await reason(call) == "NOT_YOURSELF"
    assert await reason(update(identity, root, admin.id)) == "INVALID_FIELD"
    assert (
        await reason(update(identity, root, admin.id, org_id=here.id, tenant_id=there.id))
        == "INVALID_FIELD"
    )
    assert (await update(identity, root, admin.id, org_id=here.id)).etag == admin.etag
    assert as_caller((await identity.login(admin.email)).token)
