"""What is asked of directories, and what can come of it; light enough to be there without any.

LDAP itself (`ldap`) is loaded with the first question: it takes half a second and 14 MB.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from services.identity.directories.domain import LOGIN, Reading

_PLAIN_BYTES: Final = 64 * 1024
"""What a server may send before TLS: the answer to StartTLS has some 30 bytes."""
_VALUE_BEGINS: Final = re.compile(r".*[A-Za-z0-9-]=", re.DOTALL).fullmatch
"""What stands before a value that is compared for equality."""
_BYTES: Final = 16 * 1024 * 1024
"""What a server may send in one conversation."""


class AwayError(Exception):
    """A directory cannot be asked, or its answer is none.

    `step` is the step that failed, as the API names it; the text says why.
    """

    def __init__(self, step: str, text: str) -> None:
        super().__init__(text)
        self.step = step


class WrongPasswordError(Exception):
    """A directory refuses a person's password; `reason` is what it said, as `AD_533`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Settings:
    """What a conversation needs to know of a directory."""

    urls: tuple[str, ...]
    starttls: bool
    ca_pem: str
    bind_dn: str
    bind_password: str = field(repr=False)
    base_dn: str
    group_base_dn: str
    reading: Reading
    groups: tuple[str, ...]
    """The mapped groups."""
    allow_private: bool
    """Whether servers may have addresses of private networks."""

    @property
    def is_ad(self) -> bool:
        """Whether entries are Active Directory's."""
        return self.reading.id_attribute.lower() == "objectguid"


@dataclass(frozen=True, slots=True)
class Entry:
    """A person in a directory."""

    dn: str
    subject: str
    email: str
    name: str
    active: bool
    """Whether the directory lets the person log in, as far as the entry says so."""


class Job:
    """One conversation and its time; `expire` may be called from another thread."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.connection: Any = None
        self.expired = False

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self.deadline - time.monotonic()

    def check(self) -> None:
        """Ends the conversation when its time is over.

        Raises:
            AwayError: it is.
        """
        if self.expired or self.left <= 0:
            raise AwayError("connect", "the directory took too long to answer")

    def expire(self) -> None:
        """Ends the conversation; whoever waits for the server wakes up."""
        self.expired = True
        found = getattr(self.connection, "socket", None)
        if isinstance(found, socket.socket):
            # Not the method of a TLS socket: that one would go on in the clear. It may not be
            # connected yet, or be gone.
            with suppress(OSError):
                socket.socket.shutdown(found, socket.SHUT_RDWR)


class Bounded(socket.socket):
    """A socket that ends when too much arrives before TLS."""

    received = 0

    def recv(self, *arguments: Any) -> bytes:
        """Receives."""
        data = super().recv(*arguments)
        self.received += len(data)
        if self.received > _PLAIN_BYTES:
            raise OSError("the server sent too much before TLS")
        return data


class BoundedTls(ssl.SSLSocket):
    """The same within TLS."""

    received = 0

    def recv(self, *arguments: Any) -> bytes:
        """Receives."""
        data = super().recv(*arguments)
        self.received += len(data)
        if self.received > _BYTES:
            raise OSError("the server sent too much")
        return data


def context_for(ca_pem: str) -> ssl.SSLContext:
    """How servers are verified: with the given CAs, or the system's.

    Raises:
        ValueError: what is given holds no certificate.
    """
    try:
        context = ssl.create_default_context(cadata=ca_pem or None)
    except (ssl.SSLError, ValueError, TypeError) as broken:
        raise ValueError("must be certificates in PEM") from broken
    if ca_pem:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        # Newer Pythons want more of a CA than those of many schools have.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = BoundedTls
    return context


def filter_fault(template: str) -> str | None:
    """The rule that a filter with `{login}` breaks."""
    if LOGIN not in template:
        return f"must contain {LOGIN}, which stands for the address"
    if "{" in template.replace(LOGIN, "") or "}" in template.replace(LOGIN, ""):
        return f"must contain no braces but {LOGIN}"
    if any(_VALUE_BEGINS(piece) is None for piece in template.split(LOGIN)[:-1]):
        return f"must have {LOGIN} as a whole value, as in (mail={LOGIN})"
    if any(not piece.startswith(")") for piece in template.split(LOGIN)[1:]):
        return f"must have {LOGIN} as a whole value, as in (mail={LOGIN})"
    from ldap3.operation.search import parse_filter  # noqa: PLC0415 - see above

    try:
        parse_filter(template.replace(LOGIN, "x"), None, True, True, None, False)
    except Exception:  # whatever a parser stumbles over
        return "must be an LDAP filter, as (&(objectClass=person)(mail={login}))"
    return None
