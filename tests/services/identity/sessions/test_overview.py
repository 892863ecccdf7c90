"""Open sessions are listed and ended, by who has them and by who manages users."""

from __future__ import annotations

import asyncio
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock
from uuid import UUID, uuid4

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from servicekit.ids import now
from services.identity.authenticators.passwords import Passwords
from services.identity.restore import Known, repair
from services.identity.settings import IdentitySettings
from services.identity.tenants import store as tenants_store
from services.identity.users.service import Users
from tests.conftest import MakeKit, ServeService
from tests.support.callers import Metadata
from tests.support.identity import (
    OWNER,
    PASSWORD,
    Identity,
    as_caller,
    claims,
    identity,
    refused,
    running,
)
from tests.support.servers import TestDatabase

__all__ = ["identity"]  # the fixture


async def log_in(identity: Identity, email: str, address: str) -> pb.Session:
    return await identity.auth.Login(
        pb.LoginRequest(email=email, password=PASSWORD),
        metadata=(("x-envoy-external-address", address),),
    )


async def own(identity: Identity, by: Metadata, **asked: Any) -> pb.ListSessionsResponse:
    return await identity.sessions.ListSessions(pb.ListSessionsRequest(**asked), metadata=by)


async def test_ones_own_sessions_are_listed_and_ended(identity: Identity) -> None:
    """Newest first, with where they are from and when they were last seen; page by page. One that
    has ended is refused, and so is its refresh token."""
    first = await log_in(identity, OWNER, "192.0.2.1")
    second = await log_in(identity, OWNER, "2001:db8::1")
    third = await log_in(identity, OWNER, "192.0.2.3")
    me = as_caller(third.token)
    listed = (await own(identity, me)).sessions
    assert [one.id for one in listed] == [
        claims(session.token)["sid"] for session in (third, second, first)
    ]
    assert [one.current for one in listed] == [True, False, False]
    assert [one.address for one in listed] == ["192.0.2.3", "2001:db8::1", "192.0.2.1"]
    assert listed[0].user_agent.startswith("grpc-python")
    assert listed[0].last_seen_at == listed[0].created_at
    assert listed[0].expires_at.seconds - listed[0].created_at.seconds == 30 * 24 * 3600

    page = await own(identity, me, page_size=2)
    rest = await own(identity, me, page_size=2, page_token=page.next_page_token)
    assert [*page.sessions, *rest.sessions] == list(listed)
    assert rest.next_page_token == ""

    moved = await identity.auth.RefreshSession(
        pb.RefreshSessionRequest(refresh_token=first.refresh_token),
        metadata=(("x-envoy-external-address", "192.0.2.99"),),
    )
    seen = (await own(identity, me)).sessions[2]
    assert seen.address == "192.0.2.99"
    assert seen.last_seen_at.ToDatetime(UTC) > seen.created_at.ToDatetime(UTC)

    end = pb.EndSessionRequest(id=listed[1].id)
    assert (await identity.sessions.EndSession(end, metadata=me)).ended == 1
    assert (await identity.sessions.EndSession(end, metadata=me)).ended == 0
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await own(identity, as_caller(second.token))
    assert refused(error)["details"][0]["reason"] == "SESSION_ENDED"
    others = await identity.sessions.EndOtherSessions(pb.EndOtherSessionsRequest(), metadata=me)
    assert others.ended == 1
    with pytest.raises(grpc.aio.AioRpcError):
        await identity.auth.RefreshSession(
            pb.RefreshSessionRequest(refresh_token=moved.refresh_token)
        )
    assert [one.current for one in (await own(identity, me)).sessions] == [True]
    ended = [
        event["data"]["after"]
        for event in await identity.events()
        if event["data"]["action"] == "identity.sessions_ended"
    ]
    assert ended == [
        {"email": OWNER, "count": 1, "sessionId": listed[1].id, "by": ""},
        {"email": OWNER, "count": 1, "sessionId": listed[2].id, "by": ""},
    ]


async def test_nobody_ends_another_ones_session_as_the_own(identity: Identity) -> None:
    """It is as if there were none."""
    owner = await identity.login()
    _, other = await identity.user(as_caller(owner.token), Role.OWNER)
    for session_id in (claims(owner.token)["sid"], str(uuid4())):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await identity.sessions.EndSession(pb.EndSessionRequest(id=session_id), metadata=other)
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
    await own(identity, as_caller(owner.token))


async def test_who_manages_users_sees_and_ends_their_sessions(identity: Identity) -> None:
    """Of the own subtree; an Admin ends no Owner's."""
    owner = await identity.as_user()
    org = await identity.org(owner, "North")
    boss, as_boss = await identity.user(owner, Role.OWNER, org.id)
    person, as_person = await identity.user(owner, Role.AUDITOR, org.id)
    _, as_admin = await identity.user(owner, Role.ADMIN, org.id)
    _, stranger = await identity.user(owner, Role.OWNER, (await identity.org(owner, "South")).id)
    await identity.login(person.email)

    def asked(user: pb.User) -> pb.ListUserSessionsRequest:
        return pb.ListUserSessionsRequest(id=user.id)

    listed = (await identity.sessions.ListUserSessions(asked(person), metadata=as_admin)).sessions
    assert [one.current for one in listed] == [False, False]
    one = pb.EndUserSessionsRequest(id=person.id, session_id=listed[0].id)
    everything = pb.EndUserSessionsRequest(id=person.id)
    for request in (one, everything):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await identity.sessions.EndUserSessions(request, metadata=stranger)
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await identity.sessions.EndUserSessions(request, metadata=as_person)
        assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.sessions.ListUserSessions(asked(person), metadata=stranger)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    # A session of somebody else is no session of the user's.
    mixed = pb.EndUserSessionsRequest(id=boss.id, session_id=listed[0].id)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.sessions.EndUserSessions(mixed, metadata=owner)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.sessions.EndUserSessions(
            pb.EndUserSessionsRequest(id=boss.id), metadata=as_admin
        )
    assert refused(error)["details"][0]["reason"] == "OWNERS_MANAGE_OWNERS"
    await own(identity, as_boss)

    assert (await identity.sessions.EndUserSessions(one, metadata=as_admin)).ended == 1
    assert (await identity.sessions.EndUserSessions(everything, metadata=as_admin)).ended == 1
    assert (await identity.sessions.EndUserSessions(everything, metadata=as_admin)).ended == 0
    with pytest.raises(grpc.aio.AioRpcError):
        await own(identity, as_person)
    ended = [e for e in await identity.events() if e["data"]["action"].endswith("sessions_ended")]
    (_, shown) = ended
    assert shown["data"]["resource"] == f"users/{person.id}"
    assert shown["tenantid"] == org.id


async def test_a_refresh_waits_for_nobody_who_changes_the_user(identity: Identity) -> None:
    """Who holds the user may wait for the session, which the refresh holds."""
    session = await identity.login()
    other = await identity.database.superuser()
    try:
        async with other.transaction():
            await other.execute("SELECT FROM identity.account FOR NO KEY UPDATE")
            fresh = await identity.auth.RefreshSession(
                pb.RefreshSessionRequest(refresh_token=session.refresh_token), timeout=60
            )
    finally:
        await other.close()
    assert fresh.refresh_token != session.refresh_token


async def test_a_user_shows_the_last_login(identity: Identity) -> None:
    """Absent before the first one; a refresh is none."""
    owner = await identity.as_user()
    made = await identity.users.CreateUser(
        pb.CreateUserRequest(email="anna@x.example", role="Admin", password=PASSWORD),
        metadata=owner,
    )
    assert not made.HasField("last_login_at")
    session = await identity.login("anna@x.example")
    found = await identity.users.GetUser(pb.GetUserRequest(id=made.id), metadata=owner)
    assert found.last_login_at.seconds > 0
    assert found.etag == made.etag
    await identity.auth.RefreshSession(
        pb.RefreshSessionRequest(refresh_token=session.refresh_token)
    )
    again = await identity.users.GetUser(pb.GetUserRequest(id=made.id), metadata=owner)
    assert again == found


async def _away(database: TestDatabase, days: dict[str, int]) -> None:
    """As if users had not been here for so many days."""
    connection = await database.superuser()
    try:
        await connection.executemany(
            "UPDATE identity.account SET seen_at = now() - make_interval(days => $2)"
            " WHERE email = $1",
            list(days.items()),
        )
    finally:
        await connection.close()


async def test_users_who_do_not_come_are_deactivated(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, tmp_path: Path
) -> None:
    """After the days that the operator has set, with their sessions; never a tenant's last Owner:
    of several the one who was here last stays. An archived organisation's users stay as they are.
    """
    async with running(make_kit, serve, database, tmp_path) as identity:
        root = await identity.as_user()
        org, gone = await identity.org(root, "North"), await identity.org(root, "Gone")
        owners = [(await identity.user(root, Role.OWNER, org.id))[0] for _ in range(2)]
        admin, as_admin = await identity.user(root, Role.ADMIN, org.id)
        here, _ = await identity.user(root, Role.ADMIN, org.id)
        invited = await identity.users.CreateUser(
            pb.CreateUserRequest(email="i@x.example", role="Admin", org_id=org.id), metadata=root
        )
        archived, _ = await identity.user(root, Role.ADMIN, gone.id)
        await _archive(database, gone.id, "now()")
        days = {user.email: 91 for user in (admin, invited, archived)}
        await _away(database, {**days, OWNER: 1000, owners[0].email: 100, owners[1].email: 200})
    async with running(make_kit, serve, database, tmp_path, inactive_days=90) as identity:
        root = await identity.as_user()

        async def status(user: pb.User) -> str:
            found = await identity.users.GetUser(pb.GetUserRequest(id=user.id), metadata=root)
            return found.status

        async with asyncio.timeout(60):
            while [await status(user) for user in (admin, owners[1])] != ["disabled"] * 2:
                await asyncio.sleep(0.05)
        assert [await status(user) for user in (owners[0], here, archived)] == ["active"] * 3
        assert await status(invited) == "invited"
        with pytest.raises(grpc.aio.AioRpcError):
            await own(identity, as_admin)
        told = [
            (event["data"]["resource"], event["data"]["actor"])
            for event in await identity.events()
            if event["data"]["action"] == "identity.user_deactivated"
        ]
        assert sorted(told) == sorted(
            (f"users/{user.id}", "system (not seen for 90 days)") for user in (admin, owners[1])
        )


async def _archive(database: TestDatabase, tenant_id: str, at: str) -> None:
    connection = await database.superuser()
    try:
        await connection.execute(
            f"UPDATE identity.tenant SET archived_at = {at} WHERE id = $1", UUID(tenant_id)
        )
    finally:
        await connection.close()


async def test_users_of_a_restored_organisation_count_as_seen(identity: Identity) -> None:
    """They could not log in before."""
    root = await identity.as_user()
    org = await identity.org(root, "North")
    user, _ = await identity.user(root, Role.ADMIN, org.id)
    await _away(identity.database, {user.email: 400})
    connection = await identity.database.superuser()
    try:
        await tenants_store.reopen(connection, [UUID(org.id)], now())  # type: ignore[arg-type]
    finally:
        await connection.close()
    assert await _seen_lately(identity.database, user.email)


async def _seen_lately(database: TestDatabase, email: str) -> bool:
    connection = await database.superuser()
    try:
        found: bool = await connection.fetchval(
            "SELECT seen_at > now() - interval '1 day' FROM identity.account WHERE email = $1",
            email,
        )
    finally:
        await connection.close()
    return found


async def test_a_clock_that_is_ahead_deactivates_nobody(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, tmp_path: Path
) -> None:
    """Time comes as far as purges of archived organisations let it."""
    async with running(make_kit, serve, database, tmp_path) as identity:
        owner = await identity.as_user()
        await identity.user(owner, Role.ADMIN)
    kit = await make_kit("identity", IdentitySettings, admin_email=OWNER)
    ahead = now() + timedelta(days=4000)
    users = Users(
        kit.database,
        kit.outbox,
        kit.tenants,
        Passwords(),
        *(AsyncMock() for _ in range(5)),
        lambda: ahead,
    )
    assert await users.deactivate_unseen(timedelta(days=90), 100) == 0


async def test_a_restore_does_not_make_users_inactive(identity: Identity) -> None:
    """Nobody could be seen since the backup."""
    await _away(identity.database, {OWNER: 400})
    connection = await identity.database.superuser()
    try:
        await repair(connection, Known())
    finally:
        await connection.close()
    assert await _seen_lately(identity.database, OWNER)
