"""What the operator sees of mail, and a try of the mail server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from contract.events.identity.tenants import MailTest, MailTested
from servicekit.call import Call
from servicekit.data.postgres import Database, Scope
from servicekit.errors import exhausted, failed_precondition, not_found, permission_denied
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from services.identity.mail import store
from services.identity.mail.domain import (
    KEPT,
    NOTICE_LIFE,
    Language,
    Mail,
    MailServer,
    NotSentError,
    Overview,
)
from services.identity.mail.letters import MESSAGE, Letters
from services.identity.mail.service import Mails
from services.identity.mail.smtp import Smtp

_TRIALS: Final = 4
"""That may be under way."""
_TOO_LATE: Final = "the server does not answer in time"
_ADVICE: Final[Mapping[str, str]] = {
    "BAD_ADDRESS": "this is no address that mail can be sent to",
    "CONNECTION_REFUSED": "nothing listens at host and port of EVERGREEN_SMTP_URL",
    "NAME_NOT_FOUND": "the host of EVERGREEN_SMTP_URL has no address",
    "NO_CONNECTION": "host and port of EVERGREEN_SMTP_URL are not reached from here: a firewall?",
    "CERTIFICATE_UNKNOWN": "give the CA of the server's certificate in EVERGREEN_SMTP_CA_FILE",
    "CERTIFICATE_OF_ANOTHER_NAME": "use the name in EVERGREEN_SMTP_URL that its certificate has",
    "CERTIFICATE_EXPIRED": "the certificate of the mail server is not valid any more",
    "CERTIFICATE_NOT_YET_VALID": "the certificate of the mail server is not valid yet",
    "NO_STARTTLS": "the server does not encrypt on this port: try smtps:// and port 465",
    "STARTTLS_INJECTION": "somebody between here and the server changes what it says",
    "STARTTLS": "the server refuses to encrypt now: its administrator knows why",
    "TLS": "the server does not encrypt in time: smtps:// is for port 465",
    "TLS_FAILED": "the server does not speak TLS there: smtp+starttls:// is for port 587",
    "NO_AUTH": "the server takes neither PLAIN nor LOGIN: is a user needed at all?",
    "AUTH": "user or password is wrong, or needs an app password there",
    "SENDER": "the server does not let this user send as EVERGREEN_SMTP_FROM",
    "RECIPIENT": "the server does not take mail for this address from here",
    "NO_SMTP": "what answers there is no mail server",
    "NO_SMTPUTF8": "the server takes no address with letters other than a to z before the @",
    "GREETING": "the server takes no mail from here, or none now",
    "EHLO": "the server takes no mail from here, or none now",
    "DATA": "the server has refused the mail itself",
}
"""What to do, by the first word of the reason."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What a try came to."""

    error: str
    advice: str
    took_ms: int


@dataclass(frozen=True, slots=True)
class ToldText:
    """A text of another service in one language."""

    language: Language
    subject: str
    paragraphs: Sequence[str]


@dataclass(frozen=True, slots=True)
class Told:
    """For how many addresses a mail waits, and for how many there was no place."""

    queued: int
    full: int


class MailOperations:
    """Shows how mail is, tries it, and takes mails of other services.

    Args:
        server: where mails go; `None` where none are sent.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        mails: Mails,
        server: MailServer | None,
        letters: Letters | None,
        smtp: Smtp | None,
        manners: tuple[Language, str],
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._mails = mails
        self.server = server
        self._letters = letters
        self._smtp = smtp
        self._language, self._time_zone = manners
        self._clock = clock
        self._trials = 0

    async def status(self, call: Call) -> Overview:
        """What waits, and how the server was last found.

        Raises:
            DomainError: PERMISSION_DENIED outside of the root tenant.
        """
        await self._check_root(call)
        async with self._database.system_transaction("mails are counted") as connection:
            return await store.overview(connection)

    async def test(self, call: Call, address: str) -> Tried:
        """Sends a mail at once.

        Raises:
            DomainError: PERMISSION_DENIED outside of the root tenant; FAILED_PRECONDITION where no
                mail is sent; RESOURCE_EXHAUSTED when too many tries are under way.
        """
        await self._check_root(call)
        if self._smtp is None or self._letters is None:
            raise failed_precondition(
                "NO_MAIL",
                "this installation sends no mail: set EVERGREEN_SMTP_URL (and not"
                " EVERGREEN_OUTBOUND=false)",
            )
        if self._trials >= _TRIALS:
            raise exhausted("TOO_MANY_TRIALS", "too many tries are under way; try again")
        tenant_id = UUID(call.caller.tenant_id)
        async with self._database.system_transaction("a mail is tried") as connection:
            language, time_zone = await store.manners(connection, tenant_id)
        at = self._clock()
        mail = Mail(
            id=new_id(),
            tenant_id=tenant_id,
            kind="test",
            address=address,
            details={"at": at.isoformat(), "by": call.caller.name},
            secret="",
            created_at=at,
            expires_at=at + NOTICE_LIFE,
            attempts=1,
            language=language or self._language,
            time_zone=time_zone or self._time_zone,
        )
        loop = asyncio.get_running_loop()
        began = loop.time()
        error = ""
        self._trials += 1
        try:
            await self._smtp.send(self._letters.write(mail), address)
        except NotSentError as failed:
            error = failed.reason
        except ValueError:
            error = "BAD_ADDRESS"
        finally:
            self._trials -= 1
        tried = MailTested(id=tenant_id, after=MailTest(address=address, ok=not error, error=error))
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            await self._outbox.append(connection, CloudEvent(tried, tenant_id))
        return Tried(error, _advice(error), round((loop.time() - began) * 1000))

    async def tell(
        self,
        tenant_id: UUID,
        key: str,
        texts: Sequence[ToldText],
        *,
        user_ids: Sequence[UUID] = (),
        roles: Sequence[str] = (),
        addresses: Sequence[str] = (),
        times: dict[str, datetime] | None = None,
        path: str = "",
        expires_at: datetime | None = None,
    ) -> Told:
        """Has a mail of another service wait for people of a tenant.

        Raises:
            DomainError: NOT_FOUND for the tenant.
        """
        if not self._mails.on:
            return Told(0, 0)
        if self._tenants.known(tenant_id) is None:
            raise not_found("tenant", tenant_id)
        at = self._clock()
        life = min(expires_at - at, KEPT) if expires_at else NOTICE_LIFE
        details = {
            "texts": {
                text.language: {"subject": text.subject, "paragraphs": list(text.paragraphs)}
                for text in texts
            },
            "times": {name: one.isoformat() for name, one in (times or {}).items()},
            "path": path,
        }
        counts = {"queued": 0, "full": 0, "off": 0}
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            found = await store.addresses(connection, tenant_id, user_ids, roles)
            for address in dict.fromkeys((*found, *addresses)):
                queued = await self._mails.send(
                    connection,
                    MESSAGE,
                    tenant_id,
                    address,
                    f"told:{key}",
                    details,
                    budget="told",
                    life=life,
                )
                counts[queued] += 1
        return Told(counts["queued"], counts["full"])

    async def _check_root(self, call: Call) -> None:
        scope = await self._tenants.query_scope(call.caller, None)
        if scope.tenant_ids is not None:
            raise permission_denied(
                "ROOT_ONLY", "mail is the business of the root tenant, which is the operator's"
            )


def _advice(error: str) -> str:
    if error.endswith(" TIMEOUT"):
        return _TOO_LATE
    return _ADVICE.get(error.partition(" ")[0], "")
