"""`evergreen users reset-password`: the way back for who has the server's machine."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest

from contract.access import Role
from contract.events.identity.users import PasswordReset
from evergreen.v1 import identity_pb2 as pb
from services.identity.recovery import ACTOR
from tests.conftest import MakeKit, ServeService
from tests.support import callers, programs
from tests.support.identity import OWNER, PASSWORD, Identity, as_caller, identity, running
from tests.support.mail import SENDER, body, mail_server
from tests.support.servers import TestDatabase
from tests.support.stack import PATIENCE

__all__ = ["identity"]  # the fixture

URL = "https://school.example"


async def reset(
    identity: Identity, directory: Path, *arguments: str, **environment: str
) -> tuple[int, str, str]:
    """Runs the real command on the server's machine."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("EVERGREEN_", "PUBLIC_"))}
    dsn, password = identity.database.of_migrator()
    secret = directory / "migrator"
    secret.write_text(password)
    done = await asyncio.to_thread(
        programs.evergreen,
        ("users", "reset-password", *arguments),
        kept
        | {
            "EVERGREEN_MIGRATE_DATABASE_URL": dsn,
            "EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE": str(secret),
            "EVERGREEN_HOME": str(directory),
        }
        | environment,
        PATIENCE,
    )
    return done.returncode, done.stdout, done.stderr


async def accept(identity: Identity, token: str, password: str) -> pb.Session:
    return await identity.auth.AcceptInvitation(
        pb.AcceptInvitationRequest(invitation_token=token, password=password),
        metadata=callers.anonymous(),
    )


async def test_the_only_owner_who_forgot_the_password_comes_back(
    identity: Identity, tmp_path: Path
) -> None:
    """The command ends password and sessions, and prints a link that sets a new password once; the
    log has who did it. The password itself is nowhere."""
    session = await identity.login()
    code, out, err = await reset(identity, tmp_path, OWNER.upper(), PUBLIC_URL=URL)
    assert (code, f"{OWNER}: the password and all sessions have ended" in err) == (0, True), err
    link = urlsplit(out.strip())
    assert (link.netloc, link.path) == ("school.example", "/auth/accept")
    token = link.fragment.removeprefix("token=")
    for call in (
        identity.login(),
        identity.auth.RefreshSession(
            pb.RefreshSessionRequest(refresh_token=session.refresh_token),
            metadata=callers.anonymous(),
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    opened = await accept(identity, token, "another long password")
    assert (opened.email, opened.role) == (OWNER, "Owner")
    with pytest.raises(grpc.aio.AioRpcError):
        await accept(identity, token, "yet another password")
    await identity.login(password="another long password")
    (event,) = [
        e["data"] for e in await identity.events() if e["data"]["action"] == PasswordReset.NAME
    ]
    assert (event["actor"], event["before"]["status"]) == (ACTOR, "active")
    assert event["after"]["status"] == "invited"
    assert event["actorId"]
    assert token not in str(event)


async def test_who_was_deactivated_comes_back_on_purpose(
    identity: Identity, tmp_path: Path
) -> None:
    """A deactivated user needs --reactivate, except for the only Owner; an unknown address, an
    archived organisation and a database that is away are told in a sentence, and change nothing."""
    owner = await identity.as_user()
    made, _ = await identity.user(owner, Role.AUDITOR)
    await identity.users.DeactivateUser(pb.DeactivateUserRequest(id=made.id), metadata=owner)
    code, out, err = await reset(identity, tmp_path, made.email)
    assert (code, out) == (2, "")
    assert "add --reactivate" in err
    code, out, err = await reset(identity, tmp_path, made.email, "--reactivate")
    assert (code, "was deactivated, and is invited again" in err) == (0, True), err
    assert "/auth/accept" in err  # the public address is not known here
    await accept(identity, out.strip(), PASSWORD)

    connection = await identity.database.superuser()
    try:
        await connection.execute(
            "UPDATE identity.account SET status = 'disabled' WHERE email = $1", OWNER
        )
    finally:
        await connection.close()
    code, out, err = await reset(identity, tmp_path, OWNER, PUBLIC_URL=URL)
    assert (code, "was deactivated, and is invited again" in err) == (0, True), err
    token = out.strip().rpartition("=")[2]
    back = as_caller((await accept(identity, token, PASSWORD)).token)

    org = await identity.org(back, "Closing")
    pupil, _ = await identity.user(back, Role.ADMIN, org.id)
    connection = await identity.database.superuser()
    try:
        await connection.execute(
            "UPDATE identity.tenant SET archived_at = now() WHERE id = $1::text::uuid", org.id
        )
    finally:
        await connection.close()
    before = len(await identity.events())
    for email, said in (
        (pupil.email, "organisation is archived"),
        ("nobody@school.example", "no such user"),
    ):
        code, out, err = await reset(identity, tmp_path, email)
        assert (code, out) == (2, "")
        assert said in err
    code, out, err = await reset(
        identity, tmp_path, OWNER, EVERGREEN_MIGRATE_DATABASE_URL="postgresql://x@127.0.0.1:1/x"
    )
    assert (code, out) == (2, "")
    assert "the database cannot be reached" in err
    assert "Traceback" not in err
    assert len(await identity.events()) == before


async def test_the_user_is_told_by_mail_where_mail_is_sent(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, tmp_path: Path
) -> None:
    """The command has no mail server: the service sends the notice."""
    async with mail_server() as box:
        settings = {"smtp_url": f"smtp://localhost:{box.port}", "smtp_from": SENDER}
        async with running(
            make_kit, serve, database, tmp_path, public_url=URL, **settings
        ) as identity:
            await identity.login()
            async with asyncio.timeout(10):
                while not await mail_is_on(identity):
                    await asyncio.sleep(0.05)
            code, _, err = await reset(identity, tmp_path, OWNER)
            assert code == 0, err
            (mail,) = await box.until(1)
            assert box.subjects(OWNER) == ["Your password was ended"]
            assert body(mail).startswith("The operator of the server has ended the password")


async def mail_is_on(identity: Identity) -> bool:
    connection = await identity.database.superuser()
    try:
        return bool(await connection.fetchval("SELECT count(*) FROM identity.mail_server"))
    finally:
        await connection.close()
