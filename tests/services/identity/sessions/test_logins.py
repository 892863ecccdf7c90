"""Logging in, staying logged in and logging out, in the ordinary course."""

from __future__ import annotations

import asyncio
import base64
from uuid import UUID

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from nacl.pwhash import argon2id

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from servicekit.security.passwords import is_current, verify_password
from tests.support.identity import OWNER, PASSWORD, Identity, as_caller, claims, identity, refused

__all__ = ["identity"]  # the fixture


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


async def test_an_old_hash_of_a_password_is_renewed_by_a_login(identity: Identity) -> None:
    """Logins at the same moment all pass, and leave a hash of today's parameters."""
    old = argon2id.str(PASSWORD.encode(), 1, 8 * 1024 * 1024).decode()
    connection = await identity.database.superuser()
    try:
        await connection.execute("UPDATE identity.account SET password_hash = $1", old)
        await asyncio.gather(*(identity.login() for _ in range(4)))
        renewed = await connection.fetchval("SELECT password_hash FROM identity.account")
        assert is_current(renewed)
        assert verify_password(renewed, PASSWORD)

        # What a later release wrote is no reason for an error of the server.
        await connection.execute("UPDATE identity.account SET password_hash = '$scrypt$ln=17$c$a'")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await identity.login()
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    finally:
        await connection.close()


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
    connection = await identity.database.superuser()
    await connection.execute(
        "UPDATE identity.refresh_token SET used_at = used_at - interval '31 seconds'"
    )
    await connection.close()
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
    assert "$argon2id$v=19$" in dump


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


async def test_an_address_is_spelled_in_one_way_and_found_in_any(identity: Identity) -> None:
    """Full-width letters log in as the plain ones; an address as an earlier release stored it
    still logs in, beside its plain namesake, and is shown."""
    owner = await identity.as_user()
    user, _ = await identity.user(owner, Role.AUDITOR, email="anna@school.example")
    wide = "\uff41\uff4e\uff4e\uff41@school.example"
    assert (await identity.login(wide)).email == "anna@school.example"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.user(owner, Role.AUDITOR, email=wide)
    assert refused(error)["message"] == (
        "email: must be written in plain characters: anna@school.example"
    )
    old, _ = await identity.user(owner, Role.AUDITOR, email="old@school.example")
    for stored in (wide, "an\u200bna@school.example"):
        connection = await identity.database.superuser()
        await connection.execute(
            "UPDATE identity.account SET email = $2 WHERE id = $1", UUID(old.id), stored
        )
        await connection.close()
        assert (await identity.login(stored)).email == stored
        assert (await identity.login("anna@school.example")).email == "anna@school.example"
        listed = await identity.users.ListUsers(pb.ListUsersRequest(), metadata=owner)
        assert {user.id: user.email, old.id: stored}.items() <= {
            found.id: found.email for found in listed.users
        }.items()
