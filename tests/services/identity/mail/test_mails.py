"""What is mailed when, to whom, in which words; and what happens while the server takes nothing."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc as rpc
from servicekit.rpc.channels import open_channel
from services.identity.mail.domain import MOST_A_DAY, MOST_WAITING
from services.identity.mail.texts import TEXTS, who
from services.identity.password_resets import store as resets_store
from tests.conftest import MakeKit, ServeService
from tests.services.identity.second_factor.test_factors import set_up
from tests.support import callers
from tests.support.identity import OWNER, PASSWORD, Identity, refused, running
from tests.support.mail import SENDER, Mailbox, bad_server, body, mail_server, token
from tests.support.servers import TestDatabase

URL = "https://evergreen.school.example"
NEW = "another long enough password"


@dataclass
class World:
    """Identity with a mail server."""

    identity: Identity
    box: Mailbox
    owner: callers.Metadata
    start: Any

    async def sql(self, query: str, *args: object) -> list[Any]:
        connection = await self.identity.database.superuser()
        try:
            return list(await connection.fetch(query, *args))
        finally:
            await connection.close()

    async def status(self) -> pb.MailStatus:
        return await self.identity.mail.GetMailStatus(
            pb.GetMailStatusRequest(), metadata=self.owner
        )

    async def forget(self, email: str, source: str = "192.0.2.50", language: str = "") -> bool:
        said = await self.identity.auth.ForgotPassword(
            pb.ForgotPasswordRequest(email=email, language=language or None),
            metadata=callers.anonymous(source),
        )
        return said.mail_is_on

    async def invite(self, email: str, tenant: str = "") -> pb.User:
        return await self.identity.users.CreateUser(
            pb.CreateUserRequest(email=email, role="Auditor", org_id=tenant), metadata=self.owner
        )


@asynccontextmanager
async def made(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    directory: Path,
    box: Mailbox | None,
    **more: Any,
) -> AsyncIterator[World]:
    box = box or Mailbox(port=1)
    settings = {
        "smtp_url": f"smtp://localhost:{box.port}",
        "smtp_from": SENDER,
        "public_url": URL,
        **more,
    }
    async with running(make_kit, serve, database, directory, **settings) as identity:
        owner = await identity.as_user()
        yield World(identity, box, owner, None)


@pytest.fixture
def parts(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, tmp_path: Path
) -> tuple[MakeKit, ServeService, TestDatabase, Path]:
    return make_kit, serve, database, tmp_path


async def test_an_invitation_goes_by_mail_and_is_shown_once(parts: Any) -> None:
    """With the same link; the mail is plain text, says that a program sent it, and comes once."""
    async with mail_server() as box, made(*parts, box) as world:
        user = await world.invite("new@school.example")
        assert user.invitation_mail == "queued"
        (mail,) = await box.until(1)
        assert box.recipients == ["new@school.example"]
        assert token(mail) == user.invitation_token
        assert user.invitation_link in body(mail)
        assert mail["Subject"] == "[Evergreen] Your invitation to Root"
        assert mail["From"] == SENDER
        assert mail["Auto-Submitted"] == "auto-generated"
        assert mail["Message-ID"].endswith("@evergreen.school.example>")
        assert mail["Date"]
        assert mail.get_content_type() == "text/plain"
        assert not mail.is_multipart()
        listed = await world.identity.users.GetUser(
            pb.GetUserRequest(id=user.id), metadata=world.owner
        )
        assert not listed.invitation_mail
        with_password, _ = await world.identity.user(world.owner, Role.AUDITOR)
        assert not with_password.invitation_mail
        again = await world.identity.users.InviteUser(
            pb.InviteUserRequest(id=with_password.id), metadata=world.owner
        )
        mails = await box.until(2)
        assert mails[1]["Subject"] == "[Evergreen] Choose a new password"
        assert token(mails[1]) == again.invitation_token
        await until(world, "SELECT 1 FROM identity.mail HAVING count(*) = count(ended_at)")
        rows = await world.sql(
            "SELECT outcome, sealed_secrets, details::text AS details FROM identity.mail"
        )
        assert [(r["sealed_secrets"], r["details"]) for r in rows] == [(None, "{}")] * len(rows)


async def test_a_link_that_has_ended_is_not_sent(parts: Any) -> None:
    """The server was away; meanwhile the user was invited again, or the time was over."""
    async with made(*parts, None) as world:
        user = await world.invite("new@school.example")
        await world.sql("UPDATE identity.mail SET next_at = now() + interval '1 hour'")
        second = await world.identity.users.InviteUser(
            pb.InviteUserRequest(id=user.id), metadata=world.owner
        )
        late = await world.invite("late@school.example")
        assert late.invitation_mail == "queued"
        await world.sql(
            "UPDATE identity.mail SET expires_at = now() - interval '1 second'"
            " WHERE address = 'late@school.example'"
        )
        await world.sql("UPDATE identity.mail SET next_at = now() - interval '1 hour'")
        async with mail_server(port=0) as box:
            # Another process, with a server that works.
            make_kit, serve, database, directory = parts
            other = directory / "other"
            other.mkdir()
            async with made(make_kit, serve, database, other, box):
                (mail,) = await box.until(1)
                assert token(mail) == second.invitation_token
                await until(world, "SELECT 1 FROM identity.mail WHERE outcome = 'void'")
                await until(world, "SELECT 1 FROM identity.mail WHERE outcome = 'expired'")
                assert len(box.mails) == 1


async def until(world: World, query: str, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not await world.sql(query):
            await asyncio.sleep(0.05)


async def test_forgotten_passwords_are_set_by_a_link(parts: Any) -> None:
    """The old one counts until then; the link works once, ends all sessions, and tells the user."""
    async with mail_server() as box, made(*parts, box) as world:
        person, _session = await world.identity.user(world.owner, Role.ADMIN)
        assert await world.forget(person.email.upper())
        (mail,) = await box.until(1)
        assert "/auth/forgot#token=" in body(mail)
        await world.identity.login(person.email)
        accepted = pb.AcceptInvitationRequest(invitation_token=token(mail), password=NEW)
        opened = await world.identity.auth.AcceptInvitation(accepted, metadata=callers.anonymous())
        assert opened.email == person.email
        with pytest.raises(grpc.aio.AioRpcError):
            await world.identity.login(person.email)
        await world.identity.login(person.email, NEW)
        ended = await world.sql(
            "SELECT count(*) AS n FROM identity.session WHERE ended_at IS NOT NULL"
        )
        assert ended[0]["n"] == 2
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await world.identity.auth.AcceptInvitation(accepted, metadata=callers.anonymous())
        assert refused(error)["details"][0]["reason"] == "WRONG_INVITATION"
        await box.until(2)
        assert "Your password was changed" in box.subjects(person.email)
        events = [event["type"].rsplit(".", 1)[1] for event in await world.identity.events()]
        assert "password_reset_requested" in events
        assert "password_changed" in events


async def test_nobody_learns_who_has_an_account(parts: Any) -> None:
    """Same answer, same time, whoever is asked for; and three mails an hour at the most."""
    async with mail_server() as box, made(*parts, box) as world:
        person, _ = await world.identity.user(world.owner, Role.ADMIN)
        gone, _ = await world.identity.user(world.owner, Role.ADMIN)
        await world.identity.users.DeactivateUser(
            pb.DeactivateUserRequest(id=gone.id), metadata=world.owner
        )
        took = {}
        for email in (person.email, "nobody@school.example", gone.email, "no address"):
            began = time.monotonic()
            assert await world.forget(email)
            took[email] = time.monotonic() - began
        assert max(took.values()) - min(took.values()) < 0.1
        await box.until(1)
        for _ in range(4):
            await world.forget(person.email)
        await until(
            world,
            "SELECT 1 WHERE NOT EXISTS (SELECT FROM identity.mail WHERE ended_at IS NULL)",
        )
        # A link whose successor is there already is not sent.
        sent = box.to(person.email)
        assert len(box.mails) == len(sent) <= 3
        asked = [e for e in await world.identity.events() if "reset_requested" in e["type"]]
        assert len(asked) == 3
        for mail in sent:
            accepted = pb.AcceptInvitationRequest(invitation_token=token(mail), password=NEW)
            try:
                await world.identity.auth.AcceptInvitation(accepted, metadata=callers.anonymous())
            except grpc.aio.AioRpcError:
                assert mail is not sent[-1]
            else:
                assert mail is sent[-1]


async def test_a_link_ends_with_what_it_was_made_for(parts: Any) -> None:
    """With another password, another address, or when its hour is over."""
    async with mail_server() as box, made(*parts, box) as world:
        person, session = await world.identity.user(world.owner, Role.ADMIN)
        for count, change in enumerate(("password", "address", "time"), 1):
            await world.forget(person.email, f"192.0.2.{60 + count}")
            async with asyncio.timeout(10):
                while box.subjects(person.email).count("Set a new password") < count:
                    await asyncio.sleep(0.02)
            links = [m for m in box.mails if "#token=" in body(m)]
            if change == "password":
                await world.identity.auth.ChangePassword(
                    pb.ChangePasswordRequest(current_password=PASSWORD, new_password=NEW),
                    metadata=session,
                )
            elif change == "address":
                await world.sql(
                    "UPDATE identity.account SET email = 'x@school.example' WHERE id = $1",
                    UUID(person.id),
                )
            else:
                await world.sql("UPDATE identity.password_reset SET expires_at = now()")
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await world.identity.auth.AcceptInvitation(
                    pb.AcceptInvitationRequest(
                        invitation_token=token(links[-1]), password="yet another long password"
                    ),
                    metadata=callers.anonymous(),
                )
            assert refused(error)["details"][0]["reason"] == "WRONG_INVITATION"
            await world.sql(
                "UPDATE identity.account SET email = $2 WHERE id = $1",
                UUID(person.id),
                person.email,
            )


async def test_people_are_told_of_changes_to_their_accounts(parts: Any) -> None:
    """Password, address (at both), API token; and a sign-in from where they were not lately."""
    async with mail_server() as box, made(*parts, box) as world:
        identity = world.identity
        person, session = await identity.user(world.owner, Role.ADMIN)
        await identity.login(person.email, source="192.0.2.9")
        assert box.mails == []  # as the login before
        await identity.login(person.email, source="198.51.100.7")
        await identity.login(person.email, source="198.51.100.7")
        (mail,) = await box.until(1)
        assert box.subjects(person.email) == ["New sign-in to your account"]
        assert "From: 198.51.100.7" in body(mail)
        await identity.auth.ChangePassword(
            pb.ChangePasswordRequest(current_password=PASSWORD, new_password=NEW), metadata=session
        )
        await identity.tokens.CreateApiToken(
            pb.CreateApiTokenRequest(name="nightly", scopes=["devices:read"]), metadata=session
        )
        await box.until(3)
        assert set(box.subjects(person.email)[1:]) == {
            "Your password was changed",
            "API token made",
        }
        changed = await identity.users.UpdateUser(
            pb.UpdateUserRequest(id=person.id, email="moved@school.example"), metadata=world.owner
        )
        await box.until(5)
        for address in (person.email, changed.email):
            said = next(m for m in box.to(address) if "address of your account" in m["Subject"])
            assert f"from {person.email} to {changed.email}" in body(said)
            assert body(said).startswith(OWNER)


async def test_language_and_time_zone_are_the_organisations(parts: Any) -> None:
    """Or those of the tenant above, or the installation's."""
    async with mail_server() as box, made(*parts, box) as world:
        tenants = world.identity.tenants
        reseller = await world.identity.org(world.owner, "Landkreis", reseller=True)
        school = await world.identity.org(world.owner, "Schule Nord", parent_id=reseller.id)
        changed = await tenants.UpdateTenant(
            pb.UpdateTenantRequest(id=reseller.id, language="de", time_zone="Europe/Berlin"),
            metadata=world.owner,
        )
        assert (changed.language, changed.time_zone) == ("de", "Europe/Berlin")
        assert changed.etag != reseller.etag
        user = await world.invite("neu@school.example", school.id)
        (mail,) = await box.until(1)
        assert mail["Subject"] == "[Evergreen] Ihre Einladung zu Schule Nord"
        assert mail["Content-Language"] == "de"
        until = datetime.now(UTC) + timedelta(days=7)
        assert "Uhr (ME" in body(mail)
        assert str(until.year) in body(mail)
        await tenants.UpdateTenant(
            pb.UpdateTenantRequest(id=school.id, language="en", time_zone="America/New_York"),
            metadata=world.owner,
        )
        await world.identity.users.InviteUser(
            pb.InviteUserRequest(id=user.id), metadata=world.owner
        )
        mails = await box.until(2)
        assert mails[1]["Subject"] == "[Evergreen] Your invitation to Schule Nord"
        assert "(E" in body(mails[1])
        for field, value in (("time_zone", "Mars/Olympus"), ("language", "fr")):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await tenants.UpdateTenant(
                    pb.UpdateTenantRequest(id=school.id, **{field: value}), metadata=world.owner
                )
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        cleared = await tenants.UpdateTenant(
            pb.UpdateTenantRequest(id=school.id, language="", time_zone=""), metadata=world.owner
        )
        assert (cleared.language, cleared.time_zone) == ("", "")


@pytest.mark.parametrize("off", [{"smtp_url": "", "smtp_from": ""}, {"outbound": False}])
async def test_without_a_server_nothing_waits_and_links_are_shown(
    parts: Any, off: dict[str, object]
) -> None:
    """Nor with EVERGREEN_OUTBOUND=false, whatever else is set."""
    async with mail_server() as box, made(*parts, box, **off) as world:
        user = await world.invite("new@school.example")
        assert user.invitation_mail == "off"
        assert user.invitation_link
        assert not await world.forget(OWNER)
        assert await world.sql("SELECT 1 FROM identity.mail") == []
        assert await world.sql("SELECT 1 FROM identity.password_reset") == []
        assert not (await world.status()).on
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await world.identity.mail.TestMail(
                pb.TestMailRequest(address=OWNER), metadata=world.owner
            )
        assert refused(error)["details"][0]["reason"] == "NO_MAIL"
        assert box.connections == 0


async def test_a_server_that_is_away_loses_nothing(parts: Any, capfd: Any) -> None:
    """Mails wait, without a secret in the clear, and go when it is back; the status says so."""
    async with mail_server() as gone:
        port = gone.port
    async with made(*parts, Mailbox(port=port)) as world:
        user = await world.invite("new@school.example")
        await until(world, "SELECT 1 FROM identity.mail_server WHERE failing_since IS NOT NULL")
        status = await world.status()
        assert (status.waiting, status.last_error) == (1, "CONNECTION_REFUSED")
        assert status.server == f"smtp://localhost:{port}"
        tables = await world.sql(
            "SELECT (SELECT json_agg(m)::text FROM identity.mail m) AS one,"
            " (SELECT string_agg(payload, '') FROM identity.outbox) AS two"
        )
        assert "new@school.example" in tables[0]["one"]
        secret = user.invitation_token
        logged = capfd.readouterr().out
        assert "mail server takes nothing" in logged
        for text in (tables[0]["one"], tables[0]["two"], logged):
            assert secret not in text
            # As PostgreSQL shows bytes.
            assert secret.encode().hex() not in text
        async with mail_server(port=port) as box:
            await box.until(1)
            assert token(box.mails[0]) == user.invitation_token
            await until(world, "SELECT 1 FROM identity.mail WHERE outcome = 'sent'")
            status = await world.status()
            assert (status.waiting, status.sent) == (0, 1)
            assert not status.HasField("failing_since")
        assert secret not in capfd.readouterr().out


async def test_one_recipient_stops_nobody_else(parts: Any) -> None:
    """5xx ends a mail, 4xx has it wait on; all others go."""
    async with mail_server() as box, made(*parts, box) as world:
        box.answers = {
            "gone@school.example": "550 5.1.1 unknown",
            "full@school.example": "452 4.2.2 full",
        }
        for name in ("gone", "full", "fine"):
            await world.invite(f"{name}@school.example")
        await box.until(1)
        await until(world, "SELECT 1 FROM identity.mail WHERE last_error LIKE '%452%'")
        await until(world, "SELECT 1 FROM identity.mail WHERE outcome = 'refused'")
        status = await world.status()
        assert (status.sent, status.refused, status.waiting) == (1, 1, 1)
        assert status.last_refusal == "RECIPIENT 550 5.1.1"
        box.answers = {}
        await world.sql("UPDATE identity.mail SET next_at = now() WHERE ended_at IS NULL")
        await box.until(2)
        assert sorted(box.recipients) == ["fine@school.example", "full@school.example"]


async def test_tenants_share_the_server(parts: Any) -> None:
    """One with many mails does not keep the other's waiting, and cannot have more than its own
    share wait."""
    async with mail_server() as box, made(*parts, box) as world:
        loud = await world.identity.org(world.owner, "Loud")
        calm = await world.identity.org(world.owner, "Calm")
        await world.sql(
            "INSERT INTO identity.mail (id, tenant_id, key, kind, budget, address, details,"
            " created_at, expires_at, next_at) SELECT gen_random_uuid(), $1, 'k' || n, 'test',"
            " 'written', 'loud@school.example',"
            ' \'{"at": "2026-11-30T10:00:00+00:00", "by": "x"}\','
            " now(), now() + interval '1 day', now() - interval '1 hour'"
            " FROM generate_series(1, $2) n",
            UUID(loud.id),
            MOST_WAITING,
        )
        assert (await world.invite("more@school.example", loud.id)).invitation_mail == "full"
        await box.until(1)
        assert (await world.invite("calm@school.example", calm.id)).invitation_mail == "queued"
        async with asyncio.timeout(10):
            while "calm@school.example" not in box.recipients:
                await asyncio.sleep(0.02)
        assert len(box.mails) < MOST_WAITING


async def test_the_operator_sees_and_tries_mail(parts: Any) -> None:
    """Owners of the root tenant try it, its users see it; nobody else does."""
    async with mail_server() as box, made(*parts, box) as world:
        tried = await world.identity.mail.TestMail(
            pb.TestMailRequest(address="someone@school.example"), metadata=world.owner
        )
        assert tried.sent
        assert box.subjects("someone@school.example") == ["Test mail"]
        (mail,) = box.to("someone@school.example")
        assert "somebody tried someone@school.example" in body(mail)
        box.answers = {"gone@school.example": "550 5.1.1 unknown"}
        tried = await world.identity.mail.TestMail(
            pb.TestMailRequest(address="gone@school.example"), metadata=world.owner
        )
        assert not tried.sent
        assert tried.error == "RECIPIENT 550 5.1.1"
        assert "does not take mail for this address" in tried.advice
        tried = await world.identity.mail.TestMail(
            pb.TestMailRequest(address="a@-b.example"), metadata=world.owner
        )
        assert (tried.error, tried.advice[:18]) == ("BAD_ADDRESS", "this is no address")
        events = [e for e in await world.identity.events() if e["type"].endswith("mail_tested")]
        assert [event["data"]["after"]["ok"] for event in events] == [True, False, False]
        school = await world.identity.org(world.owner, "School")
        _, theirs = await world.identity.user(world.owner, Role.OWNER, school.id)
        _, auditor = await world.identity.user(world.owner, Role.AUDITOR)
        assert (
            await world.identity.mail.GetMailStatus(pb.GetMailStatusRequest(), metadata=auditor)
        ).on
        for call in (
            world.identity.mail.GetMailStatus(pb.GetMailStatusRequest(), metadata=theirs),
            world.identity.mail.TestMail(pb.TestMailRequest(address=OWNER), metadata=theirs),
            world.identity.mail.TestMail(pb.TestMailRequest(address=OWNER), metadata=auditor),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call
            assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_audit_has_mails_sent(parts: Any) -> None:
    """To users by role or id and to other addresses, in the organisation's language; once for a
    key; and to active users of that tenant alone. Other services may not."""
    async with mail_server() as box, made(*parts, box) as world:
        school = await world.identity.org(world.owner, "Schule")
        other = await world.identity.org(world.owner, "Other")
        await world.identity.tenants.UpdateTenant(
            pb.UpdateTenantRequest(id=school.id, language="de", time_zone="Europe/Berlin"),
            metadata=world.owner,
        )
        people = {}
        for role in (Role.OWNER, Role.ADMIN, Role.AUDITOR):
            people[role], _ = await world.identity.user(world.owner, role, school.id)
        stranger, _ = await world.identity.user(world.owner, Role.OWNER, other.id)
        request = pb.SendMailRequest(
            tenant_id=school.id,
            key="report:1",
            user_ids=[people[Role.AUDITOR].id, stranger.id],
            roles=["Owner"],
            addresses=["siem@school.example"],
            texts=[
                pb.MailText(language="en", subject="Ready", paragraphs=["Since {since}."]),
                pb.MailText(language="de", subject="Fertig", paragraphs=["Seit {since} {no}."]),
            ],
            path="/dashboard",
        )
        request.times["since"].FromDatetime(datetime(2026, 7, 1, 10, 5, tzinfo=UTC))
        address = world.identity.internal_listen
        async with open_channel(address, "audit") as channel:
            internal = rpc.IdentityInternalServiceStub(channel)
            for _ in range(2):
                answer = await internal.SendMail(request)
                assert (answer.mail_is_on, answer.queued, answer.full) == (True, 3, 0)
            await box.until(3)
            await asyncio.sleep(1.5)
            assert sorted(box.recipients) == sorted(
                [people[Role.OWNER].email, people[Role.AUDITOR].email, "siem@school.example"]
            )
            mail = box.mails[0]
            assert mail["Subject"] == "[Evergreen] Fertig"
            assert "Seit 1. Juli 2026, 12:05 Uhr (MESZ) {no}." in body(mail)
            assert f"{URL}/dashboard" in body(mail)
            for bad in (
                pb.SendMailRequest(tenant_id=school.id, key="k", texts=request.texts),
                pb.SendMailRequest(tenant_id=school.id, key="k", roles=["Owner"]),
                pb.SendMailRequest(
                    tenant_id=school.id,
                    key="k",
                    roles=["Owner"],
                    texts=[pb.MailText(language="en", subject="a\r\nBcc: x", paragraphs=["p"])],
                ),
                pb.SendMailRequest(
                    tenant_id=school.id,
                    key="k",
                    roles=["Owner"],
                    texts=request.texts,
                    expires_at=Timestamp(seconds=1),
                ),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await internal.SendMail(bad)
                assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await world.identity.internal.SendMail(request)
        assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def fill(world: World, tenant_id: str, budget: str, count: int = MOST_A_DAY) -> None:
    """Makes so many mails of today that have ended."""
    await world.sql(
        "INSERT INTO identity.mail (id, tenant_id, key, kind, budget, address, details, created_at,"
        " expires_at, next_at, ended_at, outcome) SELECT gen_random_uuid(), $1, 'f' || $2 || n,"
        " 'x', $2, 'x@school.example', '{}', now(), now(), now(), now(), 'sent'"
        " FROM generate_series(1, $3) n",
        UUID(tenant_id),
        budget,
        count,
    )


async def test_an_address_gets_few_mails_whoever_writes_them(parts: Any) -> None:
    """Five an hour, over all organisations: nobody has mails of their own wording pour on a
    stranger. The answer says so, and has the link."""
    async with mail_server() as box, made(*parts, box) as world:
        said = []
        for number in range(4):
            org = await world.identity.org(world.owner, f"Org {number}")
            user = await world.invite("stranger@school.example", org.id)
            again = await world.identity.users.InviteUser(
                pb.InviteUserRequest(id=user.id), metadata=world.owner
            )
            said += [user.invitation_mail, again.invitation_mail]
            assert again.invitation_link
            await world.sql("DELETE FROM identity.account WHERE id = $1", UUID(user.id))
        assert said == ["queued"] * 5 + ["full"] * 3
        # By another way: the new address of somebody with a password.
        person, _ = await world.identity.user(world.owner, Role.AUDITOR)
        await world.identity.users.UpdateUser(
            pb.UpdateUserRequest(id=person.id, email="stranger@school.example"),
            metadata=world.owner,
        )
        rows = await world.sql("SELECT address FROM identity.mail WHERE kind = 'email_changed'")
        assert [row["address"] for row in rows] == [person.email]
        assert (await world.invite("other@school.example")).invitation_mail == "queued"


async def test_who_asks_for_links_takes_no_place_of_notices(parts: Any) -> None:
    """Nor do invitations: each has its own bounds."""
    async with mail_server() as box, made(*parts, box) as world:
        tenant = world.identity
        person, session = await tenant.user(world.owner, Role.ADMIN)
        (root,) = await world.sql("SELECT id FROM identity.tenant WHERE kind = 'root'")
        for budget in ("asked", "written", "told"):
            await fill(world, str(root["id"]), budget)
        assert (await world.invite("new@school.example")).invitation_mail == "full"
        await tenant.auth.ChangePassword(
            pb.ChangePasswordRequest(current_password=PASSWORD, new_password=NEW), metadata=session
        )
        await box.until(1)
        assert box.subjects(person.email) == ["Your password was changed"]


async def test_a_link_that_finds_no_place_ends_none_before_it(parts: Any) -> None:
    """And the audit log does not say that one was sent."""
    async with mail_server() as box, made(*parts, box) as world:
        person, _ = await world.identity.user(world.owner, Role.ADMIN)
        await world.forget(person.email)
        (mail,) = await box.until(1)
        await fill(world, person.tenant_id, "asked")
        await world.forget(person.email)
        await asyncio.sleep(1)
        asked = [e for e in await world.identity.events() if "reset_requested" in e["type"]]
        assert len(asked) == 1
        await world.identity.auth.AcceptInvitation(
            pb.AcceptInvitationRequest(invitation_token=token(mail), password=NEW),
            metadata=callers.anonymous(),
        )


async def test_only_who_has_a_password_here_gets_a_link(parts: Any) -> None:
    """Not who came from a directory and has none, nor anybody of an archived organisation; a link
    that waits when it is archived is not sent."""
    async with made(*parts, None) as world:
        school = await world.identity.org(world.owner, "School")
        without, _ = await world.identity.user(world.owner, Role.ADMIN)
        closed, _ = await world.identity.user(world.owner, Role.ADMIN, school.id)
        await world.sql(
            "UPDATE identity.account SET password_hash = NULL, prepared_hash = NULL WHERE id = $1",
            UUID(without.id),
        )
        await world.forget(closed.email)
        await until(world, "SELECT 1 FROM identity.mail WHERE kind = 'reset'")
        await world.sql(
            "UPDATE identity.tenant SET archived_at = now(), archived_by = 'x',"
            " archived_with = id WHERE id = $1",
            UUID(school.id),
        )
        for person in (without, closed):
            await world.forget(person.email)
        await asyncio.sleep(1)
        rows = await world.sql("SELECT address FROM identity.mail WHERE kind LIKE 'reset%'")
        assert [row["address"] for row in rows] == [closed.email]
        async with mail_server() as box:
            make_kit, serve, database, directory = parts
            other = directory / "other"
            other.mkdir()
            async with made(make_kit, serve, database, other, box):
                await until(world, "SELECT 1 FROM identity.mail WHERE outcome = 'void'")
                assert box.to(closed.email) == []


async def test_a_fault_of_ours_does_not_show_who_has_an_account(
    parts: Any, monkeypatch: Any, capfd: Any
) -> None:
    """Asking for somebody who is known fails inside: the answer is as for anybody."""

    async def broken(*_: object) -> None:
        raise RuntimeError(PASSWORD)

    async with mail_server() as box, made(*parts, box) as world:
        person, _ = await world.identity.user(world.owner, Role.ADMIN)
        monkeypatch.setattr(resets_store, "put", broken)
        assert await world.forget(person.email)
        await asyncio.sleep(0.5)
        logged = capfd.readouterr().out
        assert "password reset failed" in logged
        assert "RuntimeError" in logged
        assert PASSWORD not in logged


async def test_a_link_overtakes_what_has_more_time(parts: Any) -> None:
    """A link for a new password lives an hour; invitations that waited longer let it pass."""
    async with made(*parts, None) as world:
        person, _ = await world.identity.user(world.owner, Role.ADMIN)
        for number in range(3):
            await world.invite(f"new{number}@school.example")
        await world.sql("UPDATE identity.mail SET next_at = now() - interval '1 minute'")
        await world.forget(person.email)
        await until(world, "SELECT 1 FROM identity.mail WHERE kind = 'reset'")
        async with mail_server() as box:
            make_kit, serve, database, directory = parts
            other = directory / "other"
            other.mkdir()
            async with made(make_kit, serve, database, other, box):
                await box.until(4)
                assert box.recipients[0] == person.email


async def test_addresses_in_other_scripts_get_their_mail(parts: Any) -> None:
    """In what stands before the `@`, and in the host's name, which no letter of makes another."""
    async with mail_server() as box, made(*parts, box) as world:
        for email, to in (
            ("jürgen@school.example", "jürgen@school.example"),
            ("post@straße.example", "post@xn--strae-oqa.example"),
        ):
            assert (await world.invite(email)).invitation_mail == "queued"
            async with asyncio.timeout(10):
                while to not in box.recipients:
                    await asyncio.sleep(0.02)
            (mail,) = box.to(to)
            assert str(mail["To"]) == to


async def test_a_server_that_never_answers_gets_a_mail_three_times(parts: Any) -> None:
    """It may have taken each: the next one would be one too many."""
    sent = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"220 hello\r\n")
        for answer in (b"250 hello\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            await reader.readline()
            writer.write(answer)
        await reader.readuntil(b"\r\n.\r\n")
        sent += 1

    async with bad_server(silent) as port, made(*parts, Mailbox(port=port)) as world:
        await world.invite("new@school.example")
        for count in (1, 2):
            await until(world, f"SELECT 1 FROM identity.mail WHERE unanswered = {count}")
            await world.sql("UPDATE identity.mail SET next_at = now()")
        await until(world, "SELECT 1 FROM identity.mail WHERE outcome = 'refused'")
        assert sent == 3
        assert (await world.status()).last_refusal == "DATA CLOSED"


async def test_people_are_told_of_their_factors(parts: Any) -> None:
    """App, recovery codes made and used, and that somebody has reset them."""
    async with mail_server() as box, made(*parts, box) as world:
        identity = world.identity
        person, session = await identity.user(world.owner, Role.ADMIN)
        app, codes = await set_up(identity, session)
        await identity.login(person.email, otp=codes[0])
        await box.until(3)
        assert sorted(box.subjects(person.email)) == [
            "Authenticator app added",
            "Recovery code used",
            "Recovery codes made",
        ]
        used = next(m for m in box.mails if "code used" in m["Subject"])
        assert "Codes that are left: 9." in body(used)
        await identity.factors.ResetSecondFactors(
            pb.ResetSecondFactorsRequest(id=person.id), metadata=world.owner
        )
        reset = (await box.until(4))[3]
        assert reset["Subject"] == "[Evergreen] Your second factor was reset"
        assert body(reset).startswith(OWNER)
        said = "".join(map(body, box.mails))
        assert not any(secret in said for secret in (*codes, base64.b32encode(app.key).decode()))


async def test_a_token_of_a_service_account_is_told_as_what_it_is(parts: Any) -> None:
    """To who makes it: it does not act for that account."""
    async with mail_server() as box, made(*parts, box) as world:
        person, session = await world.identity.user(world.owner, Role.OWNER)
        robot = await world.identity.accounts.CreateServiceAccount(
            pb.CreateServiceAccountRequest(name="Robot", role="Auditor"), metadata=session
        )
        await world.identity.tokens.CreateApiToken(
            pb.CreateApiTokenRequest(
                name="nightly", scopes=["devices:read"], service_account_id=robot.id
            ),
            metadata=session,
        )
        (mail,) = await box.until(1)
        assert box.recipients == [person.email]
        assert mail["Subject"] == "[Evergreen] API token of a service account made"
        assert "for the service account Robot" in body(mail)


async def test_a_link_ends_links_with_providers_and_keeps_second_factors(parts: Any) -> None:
    """Whoever had the password may have linked an account of their own."""
    async with mail_server() as box, made(*parts, box) as world:
        person, session = await world.identity.user(world.owner, Role.ADMIN)
        app, _ = await set_up(world.identity, session)
        await world.sql(
            "WITH made AS (INSERT INTO identity.source VALUES (gen_random_uuid(), $2, 'sso',"
            " 'School login', true, 24, now(), now()) RETURNING id)"
            " INSERT INTO identity.external_identity (source_id, subject, account_id, tenant_id,"
            " email_seen, groups_seen, seen_at) SELECT id, 's', $1, $2, '', '{}', now() FROM made",
            UUID(person.id),
            UUID(person.tenant_id),
        )
        await world.forget(person.email)
        await until(world, "SELECT 1 FROM identity.mail WHERE kind = 'reset' AND outcome = 'sent'")
        link = next(m for m in box.mails if "#token=" in body(m))
        accepted = pb.AcceptInvitationRequest(invitation_token=token(link), password=NEW)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await world.identity.auth.AcceptInvitation(accepted, metadata=callers.anonymous())
        assert refused(error)["details"][0]["reason"] == "OTP_NEEDED"
        assert await world.sql("SELECT 1 FROM identity.external_identity")  # nothing has ended
        accepted.otp = app.code()
        await world.identity.auth.AcceptInvitation(accepted, metadata=callers.anonymous())
        # The link came to the person: no notice of a new place is needed.
        assert await world.sql("SELECT 1 FROM identity.mail WHERE kind = 'sign_in'") == []
        assert await world.sql("SELECT 1 FROM identity.external_identity") == []
        assert any("unlinked" in e["type"] for e in await world.identity.events())
        await world.identity.login(person.email, NEW, otp=app.code(1))


async def test_what_waits_for_somebody_who_is_deleted_is_not_sent(parts: Any) -> None:
    async with made(*parts, None) as world:
        person, session = await world.identity.user(world.owner, Role.ADMIN)
        await world.identity.auth.ChangePassword(
            pb.ChangePasswordRequest(current_password=PASSWORD, new_password=NEW), metadata=session
        )
        await world.identity.users.DeactivateUser(
            pb.DeactivateUserRequest(id=person.id), metadata=world.owner
        )
        assert await world.sql("SELECT 1 FROM identity.mail WHERE ended_at IS NULL")
        await world.identity.users.DeleteUser(
            pb.DeleteUserRequest(id=person.id), metadata=world.owner
        )
        rows = await world.sql("SELECT outcome FROM identity.mail WHERE address = $1", person.email)
        assert {row["outcome"] for row in rows} == {"void"}


def test_texts_are_the_same_in_each_language() -> None:
    """The same mails, which tell the same details."""

    def places(text: Any) -> set[str]:
        return set(re.findall(r"{([a-z]+)}", " ".join((text.subject, *text.paragraphs))))

    assert {kind: places(text) for kind, text in TEXTS["en"].items()} == {
        kind: places(text) for kind, text in TEXTS["de"].items()
    }


def test_who_calls_with_a_token_is_its_holder() -> None:
    """Its name is what anybody likes."""
    assert who("en", "token:nightly (a@b.example)") == "a@b.example"
    assert who("en", "token:boss@b.example (Robot)") == "Somebody"
    assert who("de", "operator (evergreen users reset-password)") == "Der Betreiber des Servers"
