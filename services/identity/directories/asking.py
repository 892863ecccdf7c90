"""What is asked of directories, and what can come of it; light enough to be there without any.

LDAP itself (`ldap`) is loaded with the first question: it takes half a second and 14 MB.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from servicekit.outgoing.guard import Guard
from services.identity.directories.domain import LOGIN, Reading

_VALUE_BEGINS: Final = re.compile(r".*[A-Za-z0-9-]=", re.DOTALL).fullmatch
"""What stands before a value that is compared for equality."""
_MESSAGE_OCTETS: Final = 128 * 1024
"""What one message of a server may have: an entry with a handful of attributes."""
T = TypeVar("T")

_SEQUENCE: Final = 0x30
_LENGTH_OCTETS: Final = 4
_MOST_TEXT: Final = 400
_LOGIN_OCTETS: Final = 1024 * 1024
_LOGIN_MESSAGES: Final = 6_000
_LOGIN_CPU_SECONDS: Final = 3.0
_SYNC_OCTETS: Final = 4 * 1024 * 1024
_SYNC_MESSAGES: Final = 10_000
_SYNC_CPU_SECONDS: Final = 10.0
_PERSON_OCTETS: Final = 16 * 1024
_PERSON_MESSAGES: Final = 200
_PERSON_CPU_SECONDS: Final = 0.02
"""What the groups of a person may add to that of a sync."""


def readable(text: str) -> str:
    """A text of a directory, as it can be stored and shown: no controls, not too long."""
    plain = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
    return plain if len(plain) <= _MOST_TEXT else plain[:_MOST_TEXT] + "…"


class AwayError(Exception):
    """A directory cannot be asked, or its answer is none.

    `step` is the step that failed, as the API names it; the text says why.
    """

    def __init__(self, step: str, text: str) -> None:
        super().__init__(readable(text))
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
    guard: Guard
    """Says where servers may be."""
    root: bool
    """Whether the directory is the root tenant's."""

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


@dataclass(slots=True)
class Budget:
    """What a directory may take; conversations that belong together share one."""

    seconds: float
    octets: int
    messages: int
    cpu_seconds: float
    """Of this process, to read what the directory sends."""

    @classmethod
    def of_login(cls, seconds: float) -> Budget:
        """What one login may take."""
        return cls(seconds, _LOGIN_OCTETS, _LOGIN_MESSAGES, _LOGIN_CPU_SECONDS)

    @classmethod
    def of_sync(cls, seconds: float, people: int) -> Budget:
        """What a sync of so many people may take."""
        return cls(
            seconds,
            _SYNC_OCTETS + people * _PERSON_OCTETS,
            _SYNC_MESSAGES + people * _PERSON_MESSAGES,
            _SYNC_CPU_SECONDS + people * _PERSON_CPU_SECONDS,
        )


class Job:
    """One conversation and its budget; `expire` may be called from another thread."""

    def __init__(self, budget: Budget, loop: asyncio.AbstractEventLoop) -> None:
        self._budget = budget
        self._loop = loop
        self.began = time.monotonic()
        self.deadline = self.began + budget.seconds
        self._cpu_end: float | None = None
        self.connection: Any = None
        self.expired = False

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self.deadline - time.monotonic()

    @property
    def spent(self) -> float:
        """The seconds since it began."""
        return time.monotonic() - self.began

    def check(self) -> None:
        """Ends the conversation when its time is over.

        Raises:
            AwayError: it is.
        """
        if self.expired or self.left <= 0:
            raise AwayError("connect", "the directory took too long to answer")

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Has something done by the event loop, in the time that is left.

        Raises:
            TimeoutError: it is not done by then.
        """
        done = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return done.result(max(self.left, 0))
        except TimeoutError:
            done.cancel()
            raise

    def receive(self, octets: int, messages: int) -> None:
        """Takes what has arrived off the budget.

        Raises:
            OSError: it is too much.
        """
        budget = self._budget
        budget.octets -= octets
        budget.messages -= messages
        if self._cpu_end is None:
            self._cpu_end = time.thread_time() + budget.cpu_seconds
        if min(budget.octets, budget.messages, self._cpu_end - time.thread_time()) < 0:
            raise OSError("the server sent too much")

    def end(self) -> None:
        """Takes the time that has passed off the budget."""
        self._budget.seconds -= self.spent
        if self._cpu_end is not None:
            self._budget.cpu_seconds = self._cpu_end - time.thread_time()

    def expire(self) -> None:
        """Ends the conversation; a thread that waits for the server wakes up."""
        self.expired = True
        found = getattr(self.connection, "socket", None)
        if isinstance(found, socket.socket):
            # Not the method of a TLS socket: that one would go on in the clear. It may not be
            # connected yet, or be gone.
            with suppress(OSError):
                socket.socket.shutdown(found, socket.SHUT_RDWR)


class Frames:
    """Messages (BER, X.690), seen by their heads before they are whole, and never a large one."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._head = b""
        self._left = 0

    def take(self, data: bytes) -> None:
        """Looks at what has arrived.

        Raises:
            OSError: it is no message, or too much.
        """
        at = messages = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            self._head += data[at : at + 1]
            at += 1
            length = self._length()
            if length is not None:
                self._head, self._left = b"", length
                messages += 1
        self._job.receive(len(data), messages)

    def _length(self) -> int | None:
        """How long the message is whose head there is; `None` where that is not whole."""
        head = self._head
        if head[0] != _SEQUENCE:
            raise OSError("the server sent no LDAP")
        if len(head) < 2:
            return None
        length = head[1]
        if length & 0x80:
            octets = length & 0x7F
            if not 0 < octets <= _LENGTH_OCTETS:
                raise OSError("the server sent no LDAP")
            if len(head) < 2 + octets:
                return None
            length = int.from_bytes(head[2:], "big")
        if length > _MESSAGE_OCTETS:
            raise OSError("the server sent too large a message")
        return length


class Bounded(socket.socket):
    """A socket that ends when what arrives is too much; before TLS there is one small answer."""

    frames: Frames | None = None

    def recv(self, *arguments: Any) -> bytes:
        """Receives."""
        data = super().recv(*arguments)
        if self.frames is not None:
            self.frames.take(data)
        return data


class BoundedTls(ssl.SSLSocket):
    """The same within TLS."""

    frames: Frames | None = None

    def recv(self, *arguments: Any) -> bytes:
        """Receives."""
        data = super().recv(*arguments)
        if self.frames is not None:
            self.frames.take(data)
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
