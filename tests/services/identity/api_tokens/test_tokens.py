"""API tokens: what they may do, who makes and ends them, and that an end is the end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock
from uuid import UUID, uuid4

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from servicekit.call import caller_from_headers
from servicekit.errors import DomainError
from servicekit.ids import new_id, now
from services.identity.api_tokens.service import ApiTokens
from tests.conftest import MakeKit
from tests.support.callers import Metadata
from tests.support.identity import (
    OWNER,
    PASSWORD,
    Identity,
    as_token,
    claims,
    identity,
    refused,
)

__all__ = ["identity"]  # the fixture

SCANNED = re.compile(r"evt_eyJ[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{86}")


async def create(identity: Identity, by: Metadata, name: str = "Job", **more: Any) -> pb.ApiToken:
    request = pb.CreateApiTokenRequest(name=name, scopes=more.pop("scopes", ["users:read"]), **more)
    return await identity.tokens.CreateApiToken(request, metadata=by)


async def account(identity: Identity, by: Metadata, role: Role, org_id: str = "") -> str:
    made = await identity.accounts.CreateServiceAccount(
        pb.CreateServiceAccountRequest(name=uuid4().hex, role=role.value, org_id=org_id),
        metadata=by,
    )
    return made.id


async def listed(identity: Identity, by: Metadata, **asked: Any) -> list[pb.ApiToken]:
    asked.setdefault("show_ended", True)
    found = await identity.tokens.ListApiTokens(pb.ListApiTokensRequest(**asked), metadata=by)
    return list(found.tokens)


async def reason(call: Awaitable[Any]) -> str:
    """Why a call is refused; what is wrong, for an invalid field."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    body = refused(error)
    found: str = body["details"][0]["reason"]
    return str(body["message"]) if found == "INVALID_FIELD" else found


async def read(identity: Identity, token: pb.ApiToken) -> list[str]:
    """The addresses of the users that a token shows."""
    found = await identity.users.ListUsers(pb.ListUsersRequest(), metadata=as_token(token.token))
    return [user.email for user in found.users]


async def refuses(identity: Identity, token: pb.ApiToken) -> bool:
    return await reason(read(identity, token)) == "TOKEN_ENDED"


def at(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


async def told(identity: Identity, name: str) -> list[dict[str, Any]]:
    events = [event["data"] | {"tenant": event["tenantid"]} for event in await identity.events()]
    return [event for event in events if event["action"] == f"identity.{name}"]


async def test_a_token_acts_as_its_holder_within_its_scopes(identity: Identity) -> None:
    """It says so itself, for 90 days; it is shown once, and found by scanners of secrets. What is
    done with it is done by it, in the log."""
    owner = await identity.as_user()
    org = await identity.org(owner, "North")
    admin, as_admin = await identity.user(owner, Role.ADMIN, org.id)
    made = await create(identity, as_admin, "Nightly report (Süd) 🌲", scopes=["users:write"])
    assert SCANNED.fullmatch(made.token)
    assert (made.role, made.status, list(made.scopes)) == ("Admin", "active", ["users:write"])
    assert (made.held_by, made.user_id, made.tenant_id) == (admin.email, admin.id, org.id)
    life = made.expires_at.ToDatetime(UTC) - now()
    assert timedelta(days=89, hours=23) < life <= timedelta(days=90)
    said = claims(made.token.removeprefix("evt_"))
    assert (said["iss"], said["aud"], said["sub"]) == ("evergreen:tokens", "evergreen:api", made.id)
    assert said["exp"] == made.expires_at.seconds

    assert admin.email in await read(identity, made)
    victim, _ = await identity.user(owner, Role.AUDITOR, org.id)
    await identity.users.DeactivateUser(
        pb.DeactivateUserRequest(id=victim.id), metadata=as_token(made.token)
    )
    (done,) = await told(identity, "user_deactivated")
    assert done["actor"] == f"token:Nightly report (Süd) 🌲 ({admin.email})"
    assert (done["actorId"], done["actorRole"]) == (admin.id, "Admin")

    (shown,) = await listed(identity, owner)
    assert not shown.HasField("token")
    whole = str(await identity.events())
    assert made.token not in whole
    assert made.token.rpartition(".")[2] not in whole


def _calls(
    identity: Identity, by: Metadata, user: pb.User, org_id: str
) -> dict[str, Callable[[], Awaitable[Any]]]:
    return {
        "tokens": lambda: create(identity, by),
        "list tokens": lambda: listed(identity, by),
        "service accounts": lambda: account(identity, by, Role.AUDITOR),
        "session": lambda: identity.auth.GetSession(pb.GetSessionRequest(), metadata=by),
        "password": lambda: identity.auth.ChangePassword(
            pb.ChangePasswordRequest(current_password=PASSWORD, new_password="another long one!"),
            metadata=by,
        ),
        "sessions": lambda: identity.sessions.ListSessions(pb.ListSessionsRequest(), metadata=by),
        "user": lambda: identity.users.CreateUser(
            pb.CreateUserRequest(email="x@x.example", role="Auditor", password=PASSWORD),
            metadata=by,
        ),
        "invitation": lambda: identity.users.InviteUser(
            pb.InviteUserRequest(id=user.id), metadata=by
        ),
        "address": lambda: identity.users.UpdateUser(
            pb.UpdateUserRequest(id=user.id, email="mine@x.example"), metadata=by
        ),
        "higher role": lambda: identity.users.UpdateUser(
            pb.UpdateUserRequest(id=user.id, role="Admin"), metadata=by
        ),
        "other organisation": lambda: identity.users.UpdateUser(
            pb.UpdateUserRequest(id=user.id, org_id=org_id), metadata=by
        ),
        "event credential": lambda: identity.credentials.CreateEventCredential(
            pb.CreateEventCredentialRequest(name="x"), metadata=by
        ),
        "keys": lambda: identity.keys.RotateTokenKey(
            pb.RotateTokenKeyRequest(purpose="tokens"), metadata=by
        ),
    }


async def test_no_token_makes_what_opens_something(identity: Identity) -> None:
    """No tokens, passwords, invitations, credentials or keys, whatever its scopes and its role."""
    owner = await identity.as_user()
    user, _ = await identity.user(owner, Role.AUDITOR)
    org = await identity.org(owner, "North")
    every = ["users:write", "tenants:write", "events:write", "audit:write"]
    made = await create(identity, owner, scopes=every)
    for what, call in _calls(identity, as_token(made.token), user, org.id).items():
        assert await reason(call()) == "TOKEN_MAY_NOT", what
    lower, _ = await identity.user(owner, Role.ADMIN)
    await identity.users.UpdateUser(
        pb.UpdateUserRequest(id=lower.id, role="Auditor"), metadata=as_token(made.token)
    )


async def test_a_scope_is_needed_and_no_role_is_exceeded(identity: Identity) -> None:
    """`write` reads as well; nothing else is implied."""
    owner = await identity.as_user()
    org = await identity.org(owner, "North")
    reads = await create(identity, owner, "reads", scopes=["tenants:read"])
    writes = await create(identity, owner, "writes", scopes=["tenants:write"])
    lower = await create(identity, owner, "lower", scopes=["tenants:write"], role="Admin")

    def change(token: pb.ApiToken) -> Awaitable[Any]:
        request = pb.UpdateTenantRequest(id=org.id, name=uuid4().hex)
        return identity.tenants.UpdateTenant(request, metadata=as_token(token.token))

    for token in (reads, writes):
        await identity.tenants.ListTenants(pb.ListTenantsRequest(), metadata=as_token(token.token))
        assert await reason(read(identity, token)) == "SCOPE_MISSING"
    assert await reason(change(reads)) == "SCOPE_MISSING"
    assert await reason(change(lower)) == "ROLE_MAY_NOT"
    await change(writes)


async def test_what_a_new_token_may_be(identity: Identity) -> None:
    """At most what its maker is, where its maker is or below, for 400 days; nothing is made
    otherwise."""
    owner = await identity.as_user()
    north, south = await identity.org(owner, "North"), await identity.org(owner, "South")
    _, as_admin = await identity.user(owner, Role.ADMIN, north.id)
    _, as_auditor = await identity.user(owner, Role.AUDITOR, north.id)
    service = await account(identity, owner, Role.ADMIN, north.id)
    root_service = await account(identity, owner, Role.OWNER)
    wrong: list[tuple[Metadata, dict[str, Any], str]] = [
        (as_admin, {"role": "Owner"}, "ROLE_TOO_HIGH"),
        (as_auditor, {"role": "Admin"}, "ROLE_TOO_HIGH"),
        (as_admin, {"org_id": south.id}, "NOT_FOUND"),
        (as_admin, {"org_id": str(uuid4())}, "NOT_FOUND"),
        (as_admin, {"service_account_id": root_service}, "NOT_FOUND"),
        (as_auditor, {"service_account_id": service}, "ROLE_MAY_NOT"),
        (owner, {"service_account_id": service, "role": "Owner"}, "ROLE_TOO_HIGH"),
        (owner, {"service_account_id": service, "org_id": south.id}, "NOT_FOUND"),
        (owner, {"scopes": []}, "scopes: must name at least one scope, such as devices:read"),
        (owner, {"scopes": ["tokens:write"]}, "scopes: 'tokens:write' is none; there are"),
        (as_auditor, {"scopes": ["users:write"]}, "scopes: an Auditor's token cannot write"),
        (owner, {"expires_at": at(now() + timedelta(days=401))}, "expiresAt: must be at most 400"),
        (owner, {"expires_at": at(now() + timedelta(minutes=4))}, "expiresAt: must be at least"),
        (owner, {"expires_at": at(now() - timedelta(days=1))}, "expiresAt: must be at least"),
        (owner, {"name": " "}, "name: "),
    ]
    for by, asked, why in wrong:
        assert (await reason(create(identity, by, **asked))).startswith(why), asked
    assert await listed(identity, owner) == []

    below = await create(identity, owner, org_id=north.id, expires_at=at(now() + timedelta(399)))
    assert OWNER not in await read(identity, below)
    by_service = await create(identity, owner, service_account_id=service)
    assert (by_service.role, by_service.tenant_id) == ("Admin", north.id)
    assert await reason(create(identity, owner)) == "NAME_TAKEN"
    await create(identity, as_auditor)


async def test_tokens_are_seen_and_ended_within_the_subtree(identity: Identity) -> None:
    """Its holder ends one, and who manages such users; nobody who only reads, and nobody else."""
    owner = await identity.as_user()
    org = await identity.org(owner, "North")
    auditor, as_auditor = await identity.user(owner, Role.AUDITOR, org.id)
    _, as_other = await identity.user(owner, Role.AUDITOR, org.id)
    _, as_admin = await identity.user(owner, Role.ADMIN, org.id)
    _, as_boss = await identity.user(owner, Role.OWNER, org.id)
    _, stranger = await identity.user(owner, Role.OWNER, (await identity.org(owner, "South")).id)
    mine = await create(identity, as_auditor)
    bosses = await create(identity, as_boss)
    await create(identity, owner)

    assert [one.id for one in await listed(identity, as_admin)] == [mine.id, bosses.id]
    assert [one.id for one in await listed(identity, as_auditor, mine=True)] == [mine.id]
    assert await listed(identity, stranger) == []
    get = pb.GetApiTokenRequest(id=mine.id)
    assert (await identity.tokens.GetApiToken(get, metadata=as_other)).held_by == auditor.email
    assert await reason(identity.tokens.GetApiToken(get, metadata=stranger)) == "NOT_FOUND"

    def revoke(token: pb.ApiToken, by: Metadata) -> Awaitable[pb.ApiToken]:
        return identity.tokens.RevokeApiToken(pb.RevokeApiTokenRequest(id=token.id), metadata=by)

    def rotate(token: pb.ApiToken, by: Metadata) -> Awaitable[pb.ApiToken]:
        return identity.tokens.RotateApiToken(pb.RotateApiTokenRequest(id=token.id), metadata=by)

    assert await reason(revoke(mine, stranger)) == "NOT_FOUND"
    assert await reason(rotate(mine, stranger)) == "NOT_FOUND"
    assert await reason(revoke(mine, as_other)) == "NOT_YOUR_TOKEN"
    assert await reason(revoke(bosses, as_admin)) == "ROLE_TOO_HIGH"
    # Whoever gets the successor could do what its holder may.
    for by in (as_other, as_admin, as_boss, owner):
        assert await reason(rotate(mine, by)) == "HOLDERS_ROTATE"
    await read(identity, mine)
    assert (await revoke(mine, as_admin)).status == "revoked"
    assert await refuses(identity, mine)
    assert (await revoke(mine, as_auditor)).status == "revoked"
    assert (await revoke(bosses, as_boss)).status == "revoked"
    assert len(await told(identity, "api_token_revoked")) == 2
    assert await listed(identity, as_admin, show_ended=False) == []


async def test_a_rotation_overlaps(identity: Identity) -> None:
    """The old token works on for as long as was asked for, and its successor lives as long as it
    was to. It has one successor."""
    owner = await identity.as_user()
    first = await create(identity, owner, expires_at=at(now() + timedelta(days=30)))
    second = await identity.tokens.RotateApiToken(
        pb.RotateApiTokenRequest(id=first.id, overlap_hours=2), metadata=owner
    )
    assert (second.name, list(second.scopes), second.role) == (first.name, ["users:read"], "Owner")
    life = second.expires_at.ToDatetime(UTC) - now()
    assert timedelta(days=29, hours=23) < life <= timedelta(days=30, minutes=1)
    for token in (first, second):
        await read(identity, token)
    old = next(one for one in await listed(identity, owner) if one.id == first.id)
    assert (old.status, old.replaced_by) == ("active", second.id)
    rest = old.ends_at.ToDatetime(UTC) - now()
    assert timedelta(hours=1, minutes=59) < rest <= timedelta(hours=2)
    again = pb.RotateApiTokenRequest(id=first.id)
    assert await reason(identity.tokens.RotateApiToken(again, metadata=owner)) == "ALREADY_ROTATED"

    third = await identity.tokens.RotateApiToken(
        pb.RotateApiTokenRequest(id=second.id), metadata=owner
    )
    assert await refuses(identity, second)
    await read(identity, third)
    ended = pb.RotateApiTokenRequest(id=second.id)
    assert await reason(identity.tokens.RotateApiToken(ended, metadata=owner)) == "TOKEN_ENDED"
    await _move(identity, first.id, ends_at="now()")
    async with asyncio.timeout(60):
        while not await _is_refused(identity, first):
            await asyncio.sleep(0.05)
    events = await told(identity, "api_token_rotated")
    assert [event["after"]["endedBecause"] for event in events] == ["rotated", "rotated"]


async def _is_refused(identity: Identity, token: pb.ApiToken) -> bool:
    try:
        await read(identity, token)
    except grpc.aio.AioRpcError as error:
        return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False


async def _move(identity: Identity, token_id: str, **columns: str) -> None:
    """Changes a token as if time had gone by."""
    setting = ", ".join(f"{name} = {value}" for name, value in columns.items())
    connection = await identity.database.superuser()
    try:
        await connection.execute(
            f"UPDATE identity.api_token SET {setting}, changed_xid = pg_current_xact_id()"
            " WHERE id = $1",
            UUID(token_id),
        )
    finally:
        await connection.close()


def _update(**change: Any) -> Callable[[Identity, Metadata, pb.User], Awaitable[Any]]:
    return lambda identity, owner, user: identity.users.UpdateUser(
        pb.UpdateUserRequest(id=user.id, **change), metadata=owner
    )


_LEAVES: dict[str, Callable[[Identity, Metadata, pb.User], Awaitable[Any]]] = {
    "deactivated": lambda i, owner, user: i.users.DeactivateUser(
        pb.DeactivateUserRequest(id=user.id), metadata=owner
    ),
    "invited again": lambda i, owner, user: i.users.InviteUser(
        pb.InviteUserRequest(id=user.id), metadata=owner
    ),
    "lower role": _update(role="Auditor"),
}


@pytest.mark.parametrize("how", _LEAVES)
async def test_tokens_end_with_their_holder(identity: Identity, how: str) -> None:
    """Deactivated, invited again, or with a lower role than the token's. The log says so of each.
    Tokens of service accounts go on, whoever made them."""
    owner = await identity.as_user()
    org = await identity.org(owner, "North")
    user, as_user = await identity.user(owner, Role.ADMIN, org.id)
    held = await create(identity, as_user)
    low = await create(identity, as_user, "low", role="Auditor")
    service = await account(identity, as_user, Role.ADMIN)
    stays = await create(identity, as_user, service_account_id=service)
    await _LEAVES[how](identity, owner, user)
    assert await refuses(identity, held)
    await read(identity, stays)
    ended = {held.id} if how == "lower role" else {held.id, low.id}
    if how == "lower role":
        await read(identity, low)
    else:
        assert await refuses(identity, low)
    events = await told(identity, "api_token_revoked")
    assert {event["resource"] for event in events} == {f"tokens/{one}" for one in ended}
    assert {event["after"]["endedBecause"] for event in events} == {"holder"}
    found = {one.id: one.status for one in await listed(identity, owner)}
    assert [found[one] for one in ended] == ["ended"] * len(ended)


async def test_a_user_who_moves_takes_no_token_along(identity: Identity) -> None:
    """And one whose address is corrected keeps them, under the new one."""
    owner = await identity.as_user()
    old, new = await identity.org(owner, "Old"), await identity.org(owner, "New")
    user, as_user = await identity.user(owner, Role.ADMIN, old.id)
    token = await create(identity, as_user)
    await _update(email="new@x.example")(identity, owner, user)
    await read(identity, token)
    (shown,) = await listed(identity, owner)
    assert shown.held_by == "new@x.example"
    await _update(org_id=new.id)(identity, owner, user)
    assert await refuses(identity, token)


async def test_what_the_last_release_does_to_a_user_ends_tokens_too(identity: Identity) -> None:
    """It knows of no tokens; the database does."""
    owner = await identity.as_user()
    user, as_user = await identity.user(owner, Role.ADMIN)
    token = await create(identity, as_user)
    connection = await identity.database.superuser()
    try:
        await connection.execute(
            "UPDATE identity.account SET status = 'disabled' WHERE id = $1", UUID(user.id)
        )
    finally:
        await connection.close()
    async with asyncio.timeout(60):
        while not await _is_refused(identity, token):
            await asyncio.sleep(0.05)


async def test_a_service_account_leaves_an_owner(identity: Identity) -> None:
    """Its token deactivates users as far as its role and scope go, but not the last Owner."""
    owner = await identity.as_user()
    org = await identity.org(owner, "North")
    first, _ = await identity.user(owner, Role.OWNER, org.id)
    second, _ = await identity.user(owner, Role.OWNER, org.id)
    service = await account(identity, owner, Role.OWNER, org.id)
    token = await create(identity, owner, scopes=["users:write"], service_account_id=service)
    by = as_token(token.token)
    await identity.users.DeactivateUser(pb.DeactivateUserRequest(id=first.id), metadata=by)
    last = pb.DeactivateUserRequest(id=second.id)
    assert await reason(identity.users.DeactivateUser(last, metadata=by)) == "LAST_OWNER"
    lower = pb.UpdateUserRequest(id=second.id, role="Admin")
    assert await reason(identity.users.UpdateUser(lower, metadata=by)) == "LAST_OWNER"
    (done,) = await told(identity, "user_deactivated")
    assert done["actor"].startswith("token:Job (service account ")
    assert done["actorId"] == service


async def test_service_accounts(identity: Identity) -> None:
    """Made, changed and deleted by who may have such a role; with a lower role or deleted, the
    tokens that may do more end. What is deleted stays in the list of deleted ones."""
    owner = await identity.as_user()
    org = await identity.org(owner, "North")
    _, as_admin = await identity.user(owner, Role.ADMIN, org.id)
    _, as_auditor = await identity.user(owner, Role.AUDITOR, org.id)
    _, stranger = await identity.user(owner, Role.OWNER, (await identity.org(owner, "South")).id)

    def make(by: Metadata, role: str, name: str = "CI") -> Awaitable[pb.ServiceAccount]:
        request = pb.CreateServiceAccountRequest(name=name, role=role)
        return identity.accounts.CreateServiceAccount(request, metadata=by)

    def edit(by: Metadata, made: pb.ServiceAccount, **change: str) -> Awaitable[pb.ServiceAccount]:
        request = pb.UpdateServiceAccountRequest(id=made.id, **change)
        return identity.accounts.UpdateServiceAccount(request, metadata=by)

    def delete(by: Metadata, made: pb.ServiceAccount) -> Awaitable[pb.ServiceAccount]:
        request = pb.DeleteServiceAccountRequest(id=made.id)
        return identity.accounts.DeleteServiceAccount(request, metadata=by)

    assert await reason(make(as_auditor, "Auditor")) == "ROLE_MAY_NOT"
    assert await reason(make(as_admin, "Owner")) == "ROLE_TOO_HIGH"
    made = await make(as_admin, "Admin")
    assert await reason(make(as_admin, "Auditor")) == "NAME_TAKEN"
    other = await make(as_admin, "Auditor", "Other")
    assert await reason(edit(as_admin, other, name="CI")) == "NAME_TAKEN"
    for call in (edit(stranger, made, name="x"), delete(stranger, made)):
        assert await reason(call) == "NOT_FOUND"
    assert await reason(edit(as_admin, made, role="Owner")) == "ROLE_TOO_HIGH"
    assert (await reason(edit(as_admin, made))).startswith("name: give what to change")

    high = await create(identity, as_admin, service_account_id=made.id)
    low = await create(identity, as_admin, "low", service_account_id=made.id, role="Auditor")
    assert (await edit(as_admin, made, role="Auditor", name="Runner")).role == "Auditor"
    assert await refuses(identity, high)
    await read(identity, low)
    shown = await listed(identity, as_admin, service_account_id=made.id)
    assert [(one.held_by, one.status) for one in shown] == [
        ("Runner", "ended"),
        ("Runner", "active"),
    ]
    raised = await edit(owner, made, role="Owner")
    assert await reason(delete(as_admin, raised)) == "ROLE_TOO_HIGH"
    assert (await delete(owner, made)).deleted_by == OWNER
    assert await refuses(identity, low)
    assert await reason(delete(owner, made)) == "NOT_FOUND"
    assert await reason(create(identity, owner, service_account_id=made.id)) == "NOT_FOUND"

    def names(deleted: bool) -> Awaitable[pb.ListServiceAccountsResponse]:
        request = pb.ListServiceAccountsRequest(show_deleted=deleted)
        return identity.accounts.ListServiceAccounts(request, metadata=as_auditor)

    assert [one.name for one in (await names(False)).service_accounts] == ["Other"]
    assert [one.name for one in (await names(True)).service_accounts] == ["Runner", "Other"]
    await make(as_admin, "Admin", "Runner")
    for name in ("created", "updated", "deleted"):
        assert await told(identity, f"service_account_{name}")
    assert len(await told(identity, "api_token_revoked")) == 2


async def test_an_archived_organisations_tokens_rest(identity: Identity) -> None:
    """They are refused while it is archived, and none is made; then they go on."""
    owner = await identity.as_user()
    org = await identity.org(owner, "North")
    token = await create(identity, owner, org_id=org.id)
    await _archive(identity, org.id, "now()")
    async with asyncio.timeout(60):
        while not await _is_refused(identity, token):
            await asyncio.sleep(0.05)
    assert await reason(read(identity, token)) == "ORGANISATION_ARCHIVED"
    assert await reason(create(identity, owner, "x", org_id=org.id)) == "ORGANISATION_ARCHIVED"
    await _archive(identity, org.id, "NULL")
    async with asyncio.timeout(60):
        while await _is_refused(identity, token):
            await asyncio.sleep(0.05)


async def _archive(identity: Identity, tenant_id: str, moment: str) -> None:
    connection = await identity.database.superuser()
    try:
        await connection.execute(
            f"UPDATE identity.tenant SET archived_at = {moment},"
            " changed_xid = pg_current_xact_id() WHERE id = $1",
            UUID(tenant_id),
        )
    finally:
        await connection.close()


async def test_a_service_that_starts_knows_what_works(
    identity: Identity, make_kit: MakeKit
) -> None:
    """However long ago a token was revoked, and however many there are: page by page."""
    owner = await identity.as_user()
    tokens = [await create(identity, owner, f"Job {n}") for n in range(3)]
    for token in tokens[1:]:
        await identity.tokens.RevokeApiToken(pb.RevokeApiTokenRequest(id=token.id), metadata=owner)
    long_ago = "now() - interval '200 days'"
    await _move(identity, tokens[1].id, created_at=long_ago, ends_at=long_ago)
    started = (await make_kit("policy")).tenants
    await started.follower.refresh()
    for token, works in zip(tokens, (True, False, False), strict=True):
        caller = caller_from_headers(dict(as_token(token.token)))
        # As if it had been made a day ago: the signature alone is not enough.
        old = replace(caller, issued_at=now() - timedelta(days=1))
        if works:
            started.check_session(old)
            continue
        with pytest.raises(DomainError):
            started.check_session(old)
    paged, cursor = set[str](), ""
    while True:
        page = await identity.internal.ListAccessChanges(
            pb.ListAccessChangesRequest(limit=1, api_token_cursor=cursor)
        )
        paged.update(one.token_id for one in page.api_tokens)
        if page.next_api_token_cursor == cursor or not page.api_tokens:
            break
        cursor = page.next_api_token_cursor
    assert paged == {token.id for token in tokens}
    last_release = await identity.internal.ListAccessChanges(pb.ListAccessChangesRequest())
    assert list(last_release.api_tokens) == []
    assert not last_release.HasField("next_api_token_cursor")


async def test_uses_are_noted(identity: Identity) -> None:
    """When and from where, the latest use; a holder is seen by it. An unknown one is nothing."""
    owner = await identity.as_user()
    token = await create(identity, owner)
    connection = await identity.database.superuser()
    try:
        await connection.execute("UPDATE identity.account SET seen_at = '2020-01-01'")
        first, second = now() - timedelta(minutes=2), now()
        uses = [
            pb.TokenUse(token_id=token.id, used_at=at(second), address="192.0.2.9"),
            pb.TokenUse(token_id=token.id, used_at=at(first), address="192.0.2.8"),
            pb.TokenUse(token_id=str(uuid4()), used_at=at(first), address="192.0.2.7"),
        ]
        await identity.internal.NoteTokenUses(pb.NoteTokenUsesRequest(uses=uses))
        await identity.internal.NoteTokenUses(pb.NoteTokenUsesRequest(uses=uses[1:]))
        await identity.internal.NoteTokenUses(pb.NoteTokenUsesRequest())
        (shown,) = await listed(identity, owner)
        assert shown.last_used_at.ToDatetime(UTC) == second
        assert shown.last_used_from == "192.0.2.9"
        assert shown.etag == token.etag
        seen = await connection.fetchval("SELECT seen_at FROM identity.account")
        assert seen == second
    finally:
        await connection.close()


async def test_tokens_are_bounded(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a holder that work; those of a tenant that have not expired, ended ones included."""
    monkeypatch.setattr("services.identity.api_tokens.service.MOST_OF_HOLDER", 2)
    owner = await identity.as_user()
    tokens = [await create(identity, owner, name) for name in "ab"]
    assert await reason(create(identity, owner, "c")) == "TOO_MANY_TOKENS"
    # A rotation takes the place of what it ends.
    await identity.tokens.RotateApiToken(pb.RotateApiTokenRequest(id=tokens[0].id), metadata=owner)
    monkeypatch.setattr("services.identity.api_tokens.service.MOST_OF_HOLDER", 50)
    # Nobody who may only read fills the tenant with tokens that were revoked.
    monkeypatch.setattr("services.identity.api_tokens.service.MOST_OF_PERSON", 3)
    for token in await listed(identity, owner, show_ended=False):
        await identity.tokens.RevokeApiToken(pb.RevokeApiTokenRequest(id=token.id), metadata=owner)
    assert await reason(create(identity, owner, "c")) == "TOO_MANY_TOKENS"
    monkeypatch.setattr("services.identity.api_tokens.service.MOST_OF_PERSON", 100)
    monkeypatch.setattr("services.identity.api_tokens.service.MOST_OF_TENANT", 3)
    assert await reason(create(identity, owner, "c")) == "TOO_MANY_TOKENS"


async def test_tokens_of_people_whom_nobody_confirms_end(
    identity: Identity, make_kit: MakeKit
) -> None:
    """Of those who come from a directory or a provider, which is in use and has said for 30 days
    that they are there; local ones, and service accounts, need nobody's word."""
    kit = await make_kit("identity")
    work = ApiTokens(kit.database, kit.outbox, kit.tenants, Mock(), Mock(), now).end_unconfirmed
    root = await identity.as_user()
    local = await create(identity, root, "local")
    connection = await identity.database.superuser()
    source, days = new_id(), {"confirmed": 29, "left": 31}
    tokens = {}
    await connection.execute(
        "INSERT INTO identity.source (id, tenant_id, kind, name, enabled, grace_hours, created_at,"
        " updated_at) SELECT $1, id, 'sso', 'Provider', true, 12, now(), now()"
        " FROM identity.tenant WHERE kind = 'root'",
        source,
    )
    for name, ago in days.items():
        user, caller = await identity.user(root, Role.ADMIN)
        tokens[name] = await create(identity, caller, name)
        await connection.execute(
            "UPDATE identity.account SET origin = 'sso' WHERE id = $1::text::uuid", user.id
        )
        await connection.execute(
            "INSERT INTO identity.external_identity (source_id, subject, account_id, tenant_id,"
            " email_seen, groups_seen, seen_at) SELECT $1, $2, id, tenant_id, email, '{}',"
            " now() - make_interval(days => $4) FROM identity.account WHERE id = $3::text::uuid",
            source,
            name,
            user.id,
            ago,
        )
    for _ in range(2):
        await work()
    (revoked,) = await told(identity, "api_token_revoked")
    assert revoked["resource"] == f"tokens/{tokens['left'].id}"
    await connection.execute("UPDATE identity.source SET enabled = false WHERE id = $1", source)
    await connection.close()
    await work()
    assert len(await told(identity, "api_token_revoked")) == 2
    left = {token.id for token in await listed(identity, root, show_ended=False)}
    assert local.id in left
    assert not left & {token.id for token in tokens.values()}


async def test_the_end_of_a_token_is_told_before_and_when_it_comes(
    identity: Identity, make_kit: MakeKit
) -> None:
    """Once each; not of one that was made for a short time, nor of one that somebody ended."""
    kit = await make_kit("identity")
    work = ApiTokens(kit.database, kit.outbox, kit.tenants, Mock(), Mock(), now).tell_of_ends
    owner = await identity.as_user()
    soon = await create(identity, owner, "soon", expires_at=at(now() + timedelta(days=30)))
    short = await create(identity, owner, "short", expires_at=at(now() + timedelta(days=10)))
    ended = await create(identity, owner, "ended")
    await identity.tokens.RevokeApiToken(pb.RevokeApiTokenRequest(id=ended.id), metadata=owner)
    thirteen = "now() + interval '13 days'"
    await _move(
        identity,
        soon.id,
        created_at="now() - interval '30 days'",
        expires_at=thirteen,
        ends_at=thirteen,
    )
    for _ in range(2):
        await work()
    assert [e["resource"] for e in await told(identity, "api_token_expires_soon")] == [
        f"tokens/{soon.id}"
    ]
    past = "now() - interval '1 minute'"
    for token in (soon, short):
        await _move(identity, token.id, expires_at=past, ends_at=past)
    for _ in range(2):
        await work()
    assert {e["resource"] for e in await told(identity, "api_token_expired")} == {
        f"tokens/{soon.id}",
        f"tokens/{short.id}",
    }
    assert {one.status for one in await listed(identity, owner)} == {"expired", "revoked"}
    old = "now() - interval '31 days'"
    await _move(identity, soon.id, expires_at=old, ends_at=old)
    await work()
    assert soon.id not in {one.id for one in await listed(identity, owner)}
