"""Mails: their rules."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.headerregistry import Address
from typing import Final, Literal, TypeAlias
from urllib.parse import unquote, urlsplit
from uuid import UUID

import idna

SEALED_FOR: Final = "identity-mail"
Language: TypeAlias = Literal["en", "de"]
Queued: TypeAlias = Literal["queued", "off", "full"]
"""What became of a mail: it waits for the server; the installation sends none; or the organisation
has too many that wait, or it or the address has had too many lately."""
Budget: TypeAlias = Literal["asked", "written", "told", "notice"]
"""Who causes a mail, each within bounds of its own, so that none takes another's place: anybody who
asks for a link; a user who writes to an address that need not be known here; another service; an
event that a person is told of."""
MOST_WAITING: Final = 1_000
"""Mails of one tenant and budget."""
MOST_A_DAY: Final = 3_000
"""Mails of one tenant and budget that are made within 24 hours."""
MOST_WRITTEN_AN_HOUR: Final = 5
"""Mails that users of all tenants write to one address."""
MOST_WRITTEN_A_DAY: Final = 10
MOST_WRITTEN_ABOVE: Final = 3_000
"""Mails that users write within 24 hours in a top-level organisation, with all below it."""
NOTICE_LIFE: Final = timedelta(days=3)
"""A notice that could not be sent for so long is given up."""
KEPT: Final = timedelta(days=7)
"""How long an ended mail stays, without its secret: so long the same thing makes no second one."""

_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]+"
_LOCAL: Final = re.compile(rf"{_ATOM}(\.{_ATOM})*")
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PORTS: Final = {"smtps": 465, "smtp+starttls": 587, "smtp": 25}
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where mails go, by the operator's settings."""

    host: str
    port: int
    tls: Literal["smtps", "starttls", "none"]
    user: str = ""
    password: str = field(default="", repr=False)
    ca_pem: str = ""
    sender: Address = field(default_factory=Address)
    name: str = "localhost.localdomain"
    """How this side greets, and the right half of each Message-ID."""

    @property
    def is_private(self) -> bool:
        """Whether nobody on the way can read mails: they are encrypted, or stay on this machine."""
        if self.tls != "none" or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def read_server_url(url: str) -> MailServer:
    """Reads `smtps://[USER@]HOST[:PORT]`, `smtp+starttls://…` or `smtp://HOST[:PORT]`.

    Raises:
        ValueError: it is none of them, or says a password, or a user where nothing is encrypted.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as broken:
        raise ValueError("must be smtps://[USER@]HOST[:PORT]") from broken
    if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError(
            "must be smtps://[USER@]HOST[:PORT], smtp+starttls://[USER@]HOST[:PORT] or"
            " smtp://HOST[:PORT]"
        )
    if parts.password is not None:
        raise ValueError("holds a password: put that into the file of EVERGREEN_SMTP_PASSWORD_FILE")
    user = unquote(parts.username or "")
    if user and parts.scheme == "smtp":
        raise ValueError(
            "names a user where nothing is encrypted: use smtps:// or smtp+starttls://, or no user"
        )
    tls: Literal["smtps", "starttls", "none"] = "none"
    if parts.scheme != "smtp":
        tls = "smtps" if parts.scheme == "smtps" else "starttls"
    return MailServer(parts.hostname, port or _PORTS[parts.scheme], tls, user)


def read_mailbox(text: str) -> Address:
    """Reads `name@host` or `Name <name@host>`.

    Raises:
        ValueError: it is no address that mail can be sent to.
    """
    shown, bracket, inside = text.strip().partition("<")
    if not bracket:
        return read_address(shown)
    plain = read_address(inside.removesuffix(">"))
    return Address(one_line(shown).strip(' "'), plain.username, plain.domain)


def read_address(text: str) -> Address:
    """Reads `name@host`, and nothing that could be more than that.

    Raises:
        ValueError: it is no address that mail can be sent to.
    """
    local, at, host = text.strip().rpartition("@")
    try:
        domain = ascii_host(host)
    except ValueError as broken:
        raise ValueError("must be an e-mail address") from broken
    labels = domain.split(".")
    if (
        not at
        or not _LOCAL.fullmatch(local)
        or len(local.encode()) > 64
        or len(domain) > 253
        or not all(map(_LABEL.fullmatch, labels))
    ):
        raise ValueError("must be an e-mail address")
    return Address("", local, domain)


def ascii_host(host: str) -> str:
    """The name of a host as the DNS has it (IDNA2008): no letter becomes another one, for that
    would be another host.

    Raises:
        ValueError: it is none.
    """
    if host.isascii():
        return host.lower()
    return idna.encode(host.lower(), strict=True).decode()


def greeting_name(public_url: str) -> str:
    """How this installation calls itself to a mail server: by its public host.

    Raises:
        ValueError: that is no name of a host.
    """
    host = urlsplit(public_url).hostname or "localhost.localdomain"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ascii_host(host)
    return f"[IPv6:{address}]" if address.version == 6 else f"[{address}]"


def one_line(text: str, most: int = 200) -> str:
    """A text as a part of a header or a line: without controls, and not too long."""
    return _CONTROLS.sub(" ", text).strip()[:most]


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail that waits."""

    id: UUID
    tenant_id: UUID
    kind: str
    address: str
    details: Mapping[str, object]
    secret: str = field(repr=False)
    """Of a mail with a link, the link's token."""
    created_at: datetime
    expires_at: datetime
    attempts: int
    language: Language
    time_zone: str


@dataclass(frozen=True, slots=True)
class ServerState:
    """How the mail server was last found."""

    last_success_at: datetime | None
    failing_since: datetime | None
    last_error: str
    last_error_at: datetime | None


@dataclass(frozen=True, slots=True)
class Overview:
    """What waits and what became of the mails of the last days, of all tenants."""

    server: ServerState
    waiting: int
    oldest_at: datetime | None
    sent: int
    refused: int
    expired: int
    last_refusal: str


Fault: TypeAlias = Literal["server", "retry", "unanswered", "mail"]
"""`server` where no mail would get through; `retry` where this one may later; `unanswered` where
the server has all of it, and may have taken it; `mail` where this one never will."""
MOST_UNANSWERED: Final = 3
"""How often a mail is sent whole without an answer: each time somebody may have got it."""


class NotSentError(Exception):
    """A mail was not taken.

    Args:
        reason: phase and reply code, without what the server or we have said: both could hold
            secrets.
        fault: what is to blame.
    """

    def __init__(self, reason: str, fault: Fault) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fault = fault


_SERVER_PAUSES: Final = (5.0, 15.0, 30.0, 60.0, 120.0, 300.0)
_MAIL_PAUSES: Final = (60.0, 300.0, 900.0, 1800.0, 3600.0)


def server_pause(failures: int) -> float:
    """Seconds until the server is tried again after so many failures in a row (at least one)."""
    return _SERVER_PAUSES[min(failures, len(_SERVER_PAUSES)) - 1]


def mail_pause(attempts: int) -> float:
    """Seconds until a mail is tried again after so many attempts (at least one)."""
    return _MAIL_PAUSES[min(attempts, len(_MAIL_PAUSES)) - 1]
