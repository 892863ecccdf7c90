"""Real SMTP servers for tests: one that works, with TLS and AUTH, and ones that do not."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.support.receivers import Authority

USER = "evergreen"
PASSWORD = "a planted mail password 51c7"
SENDER = "Evergreen <evergreen@school.example>"


@dataclass
class Mailbox:
    """What a server took, and how it answers."""

    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    """Address → what the server says to `RCPT`."""
    after_data: str = "250 taken"
    logins: list[str] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    asked: list[str] = field(default_factory=list)
    """Whom the server was asked to take mail for."""
    raw: list[bytes] = field(default_factory=list)
    tasted: asyncio.Event = field(default_factory=asyncio.Event)
    hold: asyncio.Event | None = None
    """Until it is set, what was sent is kept without an answer."""

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _: list[str]
    ) -> str:
        self.asked.append(address)
        if said := self.answers.get(address):
            return said
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        assert isinstance(envelope.content, bytes)
        found = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(found, EmailMessage)
        self.tasted.set()
        if self.after_data.startswith("250"):
            self.mails.append(found)
            self.raw.append(envelope.content)
            self.recipients.extend(envelope.rcpt_tos)
        if self.hold is not None:
            await self.hold.wait()
        return self.after_data

    def authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _method: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append(data.login.decode())
        right = (data.login, data.password) == (USER.encode(), PASSWORD.encode())
        return AuthResult(success=right, handled=not right and False)

    async def until(self, count: int, seconds: float = 15.0) -> list[EmailMessage]:
        """Waits for so many mails."""
        async with asyncio.timeout(seconds):
            while len(self.mails) < count:
                await asyncio.sleep(0.02)
        return self.mails

    def to(self, address: str) -> list[EmailMessage]:
        return [mail for mail, to in zip(self.mails, self.recipients, strict=True) if to == address]

    def subjects(self, address: str) -> list[str]:
        return [str(mail["Subject"]).removeprefix("[Evergreen] ") for mail in self.to(address)]


@asynccontextmanager
async def mail_server(
    tls: str = "none",
    *,
    directory: Path | None = None,
    login: bool = False,
    port: int = 0,
    utf8: bool = True,
) -> AsyncIterator[Mailbox]:
    """A server that takes mails.

    Args:
        tls: `none`, `smtps` or `starttls`; the certificate is for localhost, and its CA is put
            into the directory as `ca.pem`.
        login: whether it wants a user.
        utf8: whether it knows SMTPUTF8.
    """
    box = Mailbox()
    context = None
    if tls != "none":
        assert directory is not None
        authority = Authority()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("localhost").files(directory, "mail"))
        (directory / "ca.pem").write_text(authority.pem)

    def made() -> SMTP:
        box.connections += 1
        return SMTP(
            box,
            hostname="mail.test",
            tls_context=context if tls == "starttls" else None,
            require_starttls=tls == "starttls",
            authenticator=box.authenticate if login else None,
            auth_required=login,
            auth_require_tls=login and tls == "starttls",
            enable_SMTPUTF8=utf8,
        )

    server = await asyncio.get_running_loop().create_server(
        made, "127.0.0.1", port, ssl=context if tls == "smtps" else None
    )
    box.port = server.sockets[0].getsockname()[1]
    try:
        yield box
    finally:
        server.close()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def bad_server(talk: Talk) -> AsyncIterator[int]:
    """A server that says whatever `talk` says; answers its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


_LINK = re.compile(r"https://\S+#token=(\S+)")


def body(mail: EmailMessage) -> str:
    """The text of a mail."""
    return str(mail.get_content()).replace("\r\n", "\n")


def token(mail: EmailMessage) -> str:
    """The token of a mail's link."""
    found = _LINK.search(body(mail))
    assert found is not None, body(mail)
    return found[1]
