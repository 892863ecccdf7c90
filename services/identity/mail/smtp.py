"""One mail to the operator's server by SMTP (RFC 5321), within a bounded time and size.

Bytes go over a `Wire`, which knows what the kernel has taken; a server that drips, hangs or floods
is cut off. What a server says is not passed on but for its codes: an answer may repeat what was
sent, a link or a password.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import ssl
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from typing import Final

from servicekit.outgoing.addresses import Named, NotConnectedError, Rules
from servicekit.outgoing.guard import Guard, Resolve, resolve
from servicekit.outgoing.wire import Wire, certificate_reason, client_context
from services.identity.mail.domain import Fault, MailServer, NotSentError, read_address

SECONDS: Final = 45.0
"""For one mail as a whole, with its connection, until the server has all of it."""
ANSWER_SECONDS: Final = 120.0
"""For the answer then, within which the server may look for viruses: who gives up too early sends
the mail twice. (RFC 5321, 4.5.3.2.6, recommends 10 minutes; an organisation's next mail waits.)"""
_CONNECT_SECONDS: Final = 15.0
_FAREWELL_SECONDS: Final = 1.0
_MOST_LINES: Final = 100
_MOST_BYTES: Final = 16 << 10
"""Of all that a server says in one conversation."""
_CODE: Final = re.compile(rb"([2-5]\d\d)([ -]|$)")
_ENHANCED: Final = re.compile(rb"[245]\.\d{1,3}\.\d{1,3}(?= |$)")


class _Reply:
    """What a server answered."""

    def __init__(self, code: int, lines: list[bytes]) -> None:
        self.code = code
        self.lines = lines

    @property
    def shown(self) -> str:
        """Its codes alone."""
        found = _ENHANCED.match(self.lines[-1])
        return f"{self.code} {found[0].decode()}" if found else str(self.code)


class _Conversation:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._buffer = b""
        self._left = _MOST_BYTES

    @property
    def has_more(self) -> bool:
        """Whether the server has said more than was asked for."""
        return bool(self._buffer)

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        await self._wire.start_tls(context, host)

    async def ask(self, line: bytes) -> _Reply:
        await self._wire.send(line + b"\r\n")
        return await self.reply()

    async def send(self, data: bytes) -> None:
        await self._wire.send(data)

    async def reply(self) -> _Reply:
        lines: list[bytes] = []
        while len(lines) < _MOST_LINES:
            line = await self._line()
            found = _CODE.match(line)
            if found is None:
                raise NotSentError("NO_SMTP", "server")
            lines.append(line[4:])
            if found[2] != b"-":
                return _Reply(int(found[1]), lines)
        raise NotSentError("TOO_LONG_AN_ANSWER", "server")

    async def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            part = await self._wire.receive(4096)
            if not part:
                raise NotSentError("CLOSED", "server")
            self._left -= len(part)
            if self._left < 0:
                raise NotSentError("TOO_LONG_AN_ANSWER", "server")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.rstrip(b"\r")


class Smtp:
    """Sends mails.

    Args:
        server: where they go.
        seconds: what one may take as a whole, until the server has all of it.
        answer_seconds: what the answer may take then.
        lookup: resolves the server's name.
    """

    def __init__(
        self,
        server: MailServer,
        seconds: float = SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        lookup: Resolve = resolve,
    ) -> None:
        self._server = server
        self._seconds = seconds
        self._answer_seconds = answer_seconds
        # The operator named it: it may be on this machine.
        rules = Rules(allowed=(Named(server.host.lower(), None, server.port),))
        self._guard = Guard(rules, lookup=lookup)

    async def send(self, message: EmailMessage, to: str) -> None:
        """Has the server take a mail.

        Raises:
            NotSentError: it has not, as far as is known.
        """
        # Until the server hears of the recipient, nothing of the mail can be what stops it.
        fault: Fault = "server"
        phase = "CONNECT"
        wire: Wire | None = None
        try:
            async with asyncio.timeout(self._seconds) as limit:
                wire = await self._connect()
                talk = _Conversation(wire)
                phase = "TLS" if self._server.tls == "smtps" else "GREETING"
                extensions = await self._greet(talk)
                await self._log_in(talk, extensions)
                phase = "SENDER"
                recipient, international = self._addresses(to, extensions)
                await self._name_sender(talk, international=international)
                phase, fault = "RECIPIENT", "retry"
                await self._name_recipient(talk, recipient)
                phase = "DATA"
                await self._hand_over(talk, message, international=international)
                fault = "unanswered"
                now = asyncio.get_running_loop().time()
                limit.reschedule(now + self._answer_seconds)
                _expect(await talk.reply(), 250, "DATA", of_mail=True)
        except NotSentError as error:
            if fault == "server" or error.fault != "server":
                raise
            codes = error.reason.removeprefix(f"{phase} ")
            raise NotSentError(f"{phase} {codes}", _after(error, fault)) from None
        except TimeoutError:
            raise NotSentError(f"{phase} TIMEOUT", fault) from None
        except NotConnectedError as error:
            raise NotSentError(error.reason, "server") from None
        except ssl.SSLCertVerificationError as error:
            raise NotSentError(certificate_reason(error), "server") from None
        except ssl.SSLError:
            raise NotSentError("TLS_FAILED", "server") from None
        except OSError:
            raise NotSentError(f"{phase} CLOSED", fault) from None
        else:
            # The mail is taken, however the farewell goes.
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await wire.send(b"QUIT\r\n")
        finally:
            if wire is not None:
                wire.close()

    async def _connect(self) -> Wire:
        async with asyncio.timeout(_CONNECT_SECONDS):
            return await self._guard.connect(self._server.host, self._server.port, root=True)

    async def _greet(self, talk: _Conversation) -> dict[bytes, bytes]:
        """Greets, and encrypts where that is set; answers what the server can do."""
        server = self._server
        if server.tls == "smtps":
            await talk.start_tls(self._context(), server.host)
        _expect(await talk.reply(), 220, "GREETING")
        extensions = await self._hello(talk)
        if server.tls != "starttls":
            return extensions
        if b"STARTTLS" not in extensions:
            raise NotSentError("NO_STARTTLS", "server")
        _expect(await talk.ask(b"STARTTLS"), 220, "STARTTLS")
        if talk.has_more:
            # Somebody on the way has put it in, to be read as if it had been encrypted.
            raise NotSentError("STARTTLS_INJECTION", "server")
        await talk.start_tls(self._context(), server.host)
        return await self._hello(talk)

    def _context(self) -> ssl.SSLContext:
        return client_context(self._server.ca_pem, "", "")

    async def _hello(self, talk: _Conversation) -> dict[bytes, bytes]:
        reply = await talk.ask(b"EHLO " + self._server.name.encode("ascii", "ignore"))
        _expect(reply, 250, "EHLO")
        found = (line.upper().partition(b" ") for line in reply.lines[1:])
        return {name.strip(): said.strip() for name, _, said in found}

    async def _log_in(self, talk: _Conversation, extensions: dict[bytes, bytes]) -> None:
        server = self._server
        if not server.user:
            return
        offered = extensions.get(b"AUTH", b"").split()
        user, password = server.user.encode(), server.password.encode()
        if b"PLAIN" in offered:
            said = base64.b64encode(b"\0" + user + b"\0" + password)
            reply = await talk.ask(b"AUTH PLAIN " + said)
        elif b"LOGIN" in offered:
            _expect(await talk.ask(b"AUTH LOGIN"), 334, "AUTH")
            _expect(await talk.ask(base64.b64encode(user)), 334, "AUTH")
            reply = await talk.ask(base64.b64encode(password))
        else:
            raise NotSentError("NO_AUTH", "server")
        _expect(reply, 235, "AUTH")

    def _addresses(self, to: str, extensions: dict[bytes, bytes]) -> tuple[str, bool]:
        """The recipient as it is named, and whether that or the sender needs SMTPUTF8 (RFC 6531):
        hosts have names in ASCII, what stands before the `@` need not."""
        try:
            recipient = read_address(to).addr_spec
        except ValueError:
            raise NotSentError("BAD_ADDRESS", "mail") from None
        international = not (recipient + self._server.sender.addr_spec).isascii()
        if international and b"SMTPUTF8" not in extensions:
            raise NotSentError("NO_SMTPUTF8", "mail")
        return recipient, international

    async def _name_sender(self, talk: _Conversation, *, international: bool) -> None:
        sender = self._server.sender.addr_spec.encode()
        more = b" SMTPUTF8" if international else b""
        # Whether the sender may send is not the mail's business.
        _expect(await talk.ask(b"MAIL FROM:<" + sender + b">" + more), 250, "SENDER")

    @staticmethod
    async def _name_recipient(talk: _Conversation, recipient: str) -> None:
        reply = await talk.ask(b"RCPT TO:<" + recipient.encode() + b">")
        _expect(reply, 250, "RECIPIENT", of_mail=True, also=251)

    async def _hand_over(
        self, talk: _Conversation, message: EmailMessage, *, international: bool
    ) -> None:
        _expect(await talk.ask(b"DATA"), 354, "DATA", of_mail=True)
        policy = SMTPUTF8 if international else SMTP
        lines = message.as_bytes(policy=policy).split(b"\r\n")
        stuffed = b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines)
        end = b".\r\n" if stuffed.endswith(b"\r\n") else b"\r\n.\r\n"
        await talk.send(stuffed + end)


def _after(error: NotSentError, fault: Fault) -> Fault:
    """Whose fault it is that a server breaks off: one that says so has not taken the mail."""
    return "retry" if error.reason.startswith("DATA 4") else fault


def _expect(reply: _Reply, code: int, phase: str, *, of_mail: bool = False, also: int = 0) -> None:
    """Takes the answer that goes on, and no other.

    Args:
        of_mail: whether another one concerns this mail alone.

    Raises:
        NotSentError: it is another one.
    """
    if reply.code in {code, also}:
        return
    fault: Fault = "server"
    # 421: the server is about to close the connection, whatever was asked.
    if of_mail and reply.code != 421:
        fault = "mail" if reply.code >= 500 else "retry"
    raise NotSentError(f"{phase} {reply.shown}", fault)
