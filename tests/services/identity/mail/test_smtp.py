"""The conversation with mail servers, good and bad ones."""

from __future__ import annotations

import asyncio
import time
from email.headerregistry import Address
from email.message import EmailMessage
from pathlib import Path

import pytest

from services.identity.mail.domain import (
    MailServer,
    NotSentError,
    greeting_name,
    one_line,
    read_address,
    read_mailbox,
    read_server_url,
)
from services.identity.mail.smtp import Smtp
from tests.support.mail import PASSWORD, SENDER, USER, bad_server, body, mail_server

TO = "person@school.example"


def message(text: str = "Hello\n.\n..dots\n") -> EmailMessage:
    mail = EmailMessage()
    mail["From"] = SENDER
    mail["To"] = TO
    mail["Subject"] = "Grüße"
    mail.set_content(text, cte="quoted-printable")
    return mail


def server(port: int, tls: str = "none", ca: Path | None = None, **more: str) -> MailServer:
    url = {"none": "smtp", "smtps": "smtps", "starttls": "smtp+starttls"}[tls]
    made = read_server_url(f"{url}://localhost:{port}")
    return MailServer(
        made.host,
        made.port,
        made.tls,
        more.get("user", ""),
        more.get("password", ""),
        ca.read_text() if ca else "",
        read_mailbox(SENDER),
        "evergreen.school.example",
    )


async def refused(smtp: Smtp, to: str = TO) -> NotSentError:
    with pytest.raises(NotSentError) as error:
        await smtp.send(message(), to)
    return error.value


@pytest.mark.parametrize("tls", ["none", "smtps", "starttls"])
async def test_a_mail_is_taken_as_it_was_written(tls: str, tmp_path: Path) -> None:
    """With each kind of encryption, and a user where there is one; dots stay."""
    async with mail_server(tls, directory=tmp_path, login=tls == "starttls") as box:
        ca = tmp_path / "ca.pem" if tls != "none" else None
        user = {"user": USER, "password": PASSWORD} if tls == "starttls" else {}
        await Smtp(server(box.port, tls, ca, **user)).send(message(), TO)
        assert box.recipients == [TO]
        assert body(box.mails[0]) == "Hello\n.\n..dots\n"
        assert box.mails[0]["Subject"] == "Grüße"
        assert box.logins == ([USER] if user else [])


async def test_what_the_server_refuses_is_told_apart(tmp_path: Path) -> None:
    """5xx to the recipient or the mail ends it, 4xx does not; a wrong password, an unknown CA and a
    server without STARTTLS concern every mail."""
    async with mail_server("none") as box:
        smtp = Smtp(server(box.port))
        box.answers = {
            "gone@school.example": "550 5.1.1 no such user",
            "full@school.example": "452 4.2.2 full",
        }
        error = await refused(smtp, "gone@school.example")
        assert (error.fault, error.reason) == ("mail", "RECIPIENT 550 5.1.1")
        error = await refused(smtp, "full@school.example")
        assert (error.fault, error.reason) == ("retry", "RECIPIENT 452 4.2.2")
        box.after_data = "554 5.7.1 your password is hunter2"
        error = await refused(smtp)
        assert (error.fault, error.reason) == ("mail", "DATA 554 5.7.1")
        box.after_data = "451 4.3.0 later"
        assert (await refused(smtp)).fault == "retry"
        assert (await refused(Smtp(server(box.port, "starttls")))).reason == "NO_STARTTLS"
        assert box.mails == []
    async with mail_server("starttls", directory=tmp_path, login=True) as box:
        strange = Smtp(server(box.port, "starttls"))
        error = await refused(strange)
        assert (error.fault, error.reason) == ("server", "CERTIFICATE_UNKNOWN")
        wrong = Smtp(
            server(box.port, "starttls", tmp_path / "ca.pem", user=USER, password="wrong one")
        )
        error = await refused(wrong)
        assert (error.fault, error.reason) == ("server", "AUTH 535 5.7.8")
    assert (await refused(Smtp(server(1)))).reason == "CONNECTION_REFUSED"


async def test_no_address_can_say_more_than_an_address() -> None:
    """Neither commands nor further recipients get in by an address, or headers by a text."""
    async with mail_server("none") as box:
        smtp = Smtp(server(box.port))
        for bad in (
            "a>,<b@x.example",
            "a b@x.example",
            "a@x.example\r\nDATA",
            "a@x..example",
            '"a"@x',
        ):
            error = await refused(smtp, bad)
            assert (error.fault, error.reason) == ("mail", "BAD_ADDRESS")
        assert box.mails == []
        assert box.asked == []
        await smtp.send(message(), "jürgen@school.example")
        assert box.recipients == ["jürgen@school.example"]
    assert one_line("a\r\nBcc: b\u2028c") == "a Bcc: b c"
    with pytest.raises(ValueError, match="Header values"):
        message()["X"] = "a\r\nBcc: b@x.example"


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "nobody",
        "a@",
        "@b",
        "a@b c",
        "a\n@b.example",
        "a@-b.example",
        "a@x\u200d.example",
        "a@x\u3002y",
    ],
)
def test_what_is_no_address(bad: str) -> None:
    with pytest.raises(ValueError, match="must be an e-mail address"):
        read_address(bad)


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("smtp://localhost", True),
        ("smtp://[::1]", True),
        ("smtp://mail.example", False),
        ("smtp://192.0.2.1", False),
        ("smtps://mail.example", True),
    ],
)
def test_who_could_read_mails_on_the_way(url: str, private: bool) -> None:
    assert read_server_url(url).is_private is private


def test_addresses_and_names() -> None:
    assert read_mailbox("Schule <post@schule.example>") == Address(
        "Schule", "post", "schule.example"
    )
    assert read_address("post@schüle.example").domain == "xn--schle-mva.example"
    assert read_address("post@Straße.example").domain == "xn--strae-oqa.example"
    assert greeting_name("https://schüle.example") == "xn--schle-mva.example"
    assert greeting_name("https://e.example:8443/x") == "e.example"
    assert greeting_name("https://192.0.2.1") == "[192.0.2.1]"
    assert greeting_name("https://[2001:db8::1]") == "[IPv6:2001:db8::1]"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mail.example:25", "must be smtps://"),
        ("http://mail.example", "must be smtps://"),
        ("smtps://u:secret@mail.example", "holds a password"),
        ("smtp://user@mail.example", "nothing is encrypted"),
        ("smtps://mail.example:x", "must be smtps://"),
        ("smtps://mail.example/path", "must be smtps://"),
    ],
)
def test_urls_that_are_refused(url: str, why: str) -> None:
    """Above all a user, and so a password, where everybody on the way reads it."""
    with pytest.raises(ValueError, match=why) as error:
        read_server_url(url)
    assert "secret" not in str(error.value)


async def slow(smtp: Smtp) -> tuple[NotSentError, float]:
    began = time.monotonic()
    error = await refused(smtp)
    return error, time.monotonic() - began


async def test_servers_that_drip_hang_flood_and_lie() -> None:
    """Each is cut off within the time, and none of them gets more than its share of memory."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"2")
            await writer.drain()
            await asyncio.sleep(0.05)

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"220-" + b"x" * 900 + b"\r\n")
            await writer.drain()

    async def no_smtp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await reader.read()

    async def inject(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        await reader.readline()
        writer.write(b"250-hello\r\n250 STARTTLS\r\n")
        await reader.readline()
        writer.write(b"220 go\r\n235 logged in\r\n")
        await reader.read()

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    for talk, reason in (
        (hang, "TIMEOUT"),
        (drip, "TIMEOUT"),
        (flood, "TOO_LONG_AN_ANSWER"),
        (no_smtp, "NO_SMTP"),
        (close, "CLOSED"),
    ):
        async with bad_server(talk) as port:
            error, took = await slow(Smtp(server(port), seconds=1.0))
            assert reason in error.reason
            assert error.fault == "server"
            assert took < 3
    async with bad_server(inject) as port:
        error, _ = await slow(Smtp(server(port, "starttls"), seconds=2.0))
        assert error.reason == "STARTTLS_INJECTION"


@pytest.mark.parametrize(
    ("answers", "fault", "phase"),
    [
        (0, "server", "GREETING"),
        (1, "server", "SENDER"),
        (2, "retry", "RECIPIENT"),
        (3, "retry", "DATA"),
    ],
)
async def test_a_server_that_hangs_over_a_mail_stops_that_mail_alone(
    answers: int, fault: str, phase: str
) -> None:
    """What happens once the server knows the recipient is the mail's own trouble."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        for _ in range(answers):
            await reader.readline()
            writer.write(b"250 ok\r\n")
        await reader.read()

    async with bad_server(hang) as port:
        error, took = await slow(Smtp(server(port), seconds=1.0))
        assert (error.fault, error.reason.rpartition(" ")) == (fault, (phase, " ", "TIMEOUT"))
        assert took < 3


async def test_a_server_has_longer_for_a_mail_that_it_has() -> None:
    """It may have taken one that it does not answer, but not if it says that it has to close."""

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        for answer in (b"250 hello\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            await reader.readline()
            writer.write(answer)
        await reader.readuntil(b"\r\n.\r\n")
        await asyncio.sleep(1.5)
        writer.write(said)
        await reader.read()

    async with bad_server(late) as port:
        said = b"250 taken\r\n"
        await Smtp(server(port), seconds=1.0, answer_seconds=5.0).send(message(), TO)
        error = await refused(Smtp(server(port), seconds=1.0, answer_seconds=1.0))
        assert (error.fault, error.reason) == ("unanswered", "DATA TIMEOUT")
        said = b"421 4.3.2 closing\r\n"
        error = await refused(Smtp(server(port), seconds=1.0, answer_seconds=5.0))
        assert (error.fault, error.reason) == ("retry", "DATA 421 4.3.2")


async def test_smtputf8_is_asked_for_where_it_is_needed() -> None:
    """Not for a host's name, which goes in ASCII; a server without it gets such mails as well."""
    async with mail_server("none", utf8=False) as box:
        mail = message()
        del mail["To"]
        mail["To"] = read_address("post@schüle.example")
        await Smtp(server(box.port)).send(mail, "post@schüle.example")
        assert box.recipients == ["post@xn--schle-mva.example"]
        assert box.raw[0].isascii()
        error = await refused(Smtp(server(box.port)), "jürgen@school.example")
        assert (error.fault, error.reason) == ("mail", "NO_SMTPUTF8")
