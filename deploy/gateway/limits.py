"""Bounds of the gateway, and the defaults that fit a machine."""

from __future__ import annotations

import dataclasses
import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from deploy.machine import machine_memory

KIB: Final = 1024
MIB: Final = 1024 * KIB

SETTING_PREFIX: Final = "EVERGREEN_GATEWAY_"
WORKERS_SETTING: Final = f"{SETTING_PREFIX}WORKERS"
REFLECTION_SETTING: Final = f"{SETTING_PREFIX}REFLECTION"
MEMORY_SETTING: Final = f"{SETTING_PREFIX}MEMORY"
"""Bytes that the gateway has for itself alone, as a container with a limit of its own."""

GRPC_EVENTS_BODY: Final = 32 * MIB
"""Bytes of a batch of events in gRPC at most: it is held as objects, which take many times as much,
and an agent that speaks gRPC can send several."""

FORM_BODY: Final = 64 * KIB
"""Bytes of a form of a page, or of a browser's login."""
SCIM_BODY: Final = 256 * KIB
"""Bytes of a person or a group of a SCIM source, or of a change of one: some 5,000 members."""

CONNECTION_BYTES: Final = 24 * KIB
"""Memory of an idle TLS connection that has carried a request; measured: 23 kB."""
TOKEN_BYTES: Final = 6_700
"""Memory of a verified token in a worker's cache; measured."""

_HEAP_SHARE: Final = 0.4
_HEAP_SHARE_ALONE: Final = 0.8
"""The rest is for its code, its threads and what the allocator has not given back."""
_CONNECTIONS_SHARE: Final = 0.75
_TOKENS_SHARE: Final = 0.2
_LEAST_HEAP: Final = 256 * MIB
_OTHER_FILES: Final = 4096
"""Descriptors for connections to the services, files and the rest."""
_CALLS_PER_PROCESSOR: Final = 4_000
"""Calls a second, more than a processor can carry: what a tenant's limit allows by default."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `burst` requests at once, `per_second` in the long run."""

    burst: int
    per_second: int

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Reads `BURST:PER_SECOND`.

        Raises:
            ValueError: it is not that.
        """
        burst, per_second = map(int, text.split(":"))
        return cls(burst, per_second)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds that keep one caller, or a crowd, from taking everything.

    A school sits behind one address, and the console logs all its users in from one address too;
    so whatever is counted by address is generous, and guessing passwords is slowed down per
    account by identity.
    """

    body: int = MIB
    """Bytes of a request's body, where nothing else is said."""
    state_body: int = 4 * MIB
    """Bytes of a state: telemetry cuts what is too long in it, and has to see it for that."""
    events_body: int = 96 * MIB
    """Bytes of a batch of events: an agent sends 50,000 queued ones in one body, which it cannot
    split. Telemetry takes up to 128 MiB of all devices together, and no larger body."""
    response: int = 16 * MIB
    """Bytes of an answer that is transcoded as a whole; streamed downloads have no limit."""
    header_kib: int = 16
    """KiB of all request headers together."""
    timeout: float = 15.0
    """Seconds that an answer may take, where nothing else is said."""
    idle: float = 120.0
    """Seconds that a connection may be idle: longer than the agents' minute between two calls, for
    a new TLS connection is dear. When memory runs short it becomes less by itself."""
    accepted_at_once: int = 512
    """New connections that are taken before those that are open get their turn again; the others
    wait in the kernel's queue. With too few a busy gateway, whose rounds are long, takes fewer
    than come: they wait until their devices give up, and all that was done for them was in vain."""
    connections: int = 20_000
    """Open client connections; further ones are closed at once."""
    heap: int = 1024 * MIB
    """Bytes of memory; near it the gateway closes idle connections sooner, ends large requests,
    and refuses requests, then connections."""
    upstream_requests: int = 2048
    """Requests in flight to one context."""
    upstream_waiting: int = 8192
    """Requests that wait for one of these places; further ones are refused."""
    open_requests: int = 128
    """Requests in flight to one context that came without a token and are no logins; they keep
    nobody else waiting, neither here nor in the service."""
    open_waiting: int = 512
    """Requests that wait for one of these places."""
    unauthenticated: float = 60.0
    """Seconds that a stream without a token may last, and that a body in JSON may take."""
    cached_tokens: int = 10_000
    """Verified tokens kept per worker and kind (6.7 kB each); less than are active costs time."""
    counted_callers: int = 50_000
    """Callers whose rate is remembered, per limit; the least recent are forgotten."""
    device: Rate = Rate(burst=20_000, per_second=50)
    """Calls of one device. A released agent that was cut off tells all its states, a call each, as
    fast as they are answered, and begins with the first again when one is refused: one that was
    never let through the whole of a weekend would try for ever. These are ten weeks of states."""
    tenant: Rate = Rate(burst=16_000, per_second=8_000)
    """Calls of all devices of one organisation."""
    user: Rate = Rate(burst=300, per_second=20)
    """Calls of one user."""
    login: Rate = Rate(burst=500, per_second=50)
    """Logins from one address. Identity slows guessing down, by account and by network, and tells a
    pupil's loop from the staff behind the same address; this bucket cannot."""
    refresh: Rate = Rate(burst=1000, per_second=100)
    """Refreshes from one address; a made-up token costs identity one look-up."""
    invitation: Rate = Rate(burst=500, per_second=50)
    """Accepted invitations from one address."""
    enroll: Rate = Rate(burst=5000, per_second=100)
    """Enrollments from one address: a whole school is switched on in one morning."""
    open: Rate = Rate(burst=500, per_second=50)
    """Calls from one address to everything else that needs no token."""
    published: Rate = Rate(burst=500, per_second=50)
    """Calls from one address for what is published of the audit log: tile by tile, a log of a
    million entries is 4,000 of them."""
    pages: Rate = Rate(burst=1000, per_second=100)
    """What browsers at one address read: pages, their files, and whose session it is. Apart from
    `open`, so that nobody behind a school's address keeps its staff from signing in."""
    scim: Rate = Rate(burst=600, per_second=30)
    """Calls with one token of a SCIM source. Microsoft Entra sends up to 25 a second."""
    other: Rate = Rate(burst=5000, per_second=1000)
    """Requests of everybody together to what is not there."""

    @classmethod
    def for_machine(
        cls,
        *,
        workers: int,
        memory: int | None = None,
        own_memory: int | None = None,
        processors: int | None = None,
        open_files: int | None = None,
    ) -> Limits:
        """The defaults for a machine, which the gateway shares with everything else.

        24 GiB hold 200,000 devices with a connection and a cached token each. On a smaller machine
        connections are closed sooner and tokens verified again: slower, not refused.

        Args:
            workers: threads of the gateway; each has its cache of tokens.
            memory: bytes; this machine's or container's when not given.
            own_memory: bytes that the gateway does not share.
            processors: for what one tenant may use; this machine's when not given.
            open_files: descriptors that the gateway may have open; this process's when not given.
        """
        memory = memory or machine_memory()
        processors = processors or len(os.sched_getaffinity(0))
        files = open_files or resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        heap = max(int(memory * _HEAP_SHARE), _LEAST_HEAP)
        if own_memory is not None:
            heap = int(own_memory * _HEAP_SHARE_ALONE)
        connections = int(heap * _CONNECTIONS_SHARE) // CONNECTION_BYTES
        if files != resource.RLIM_INFINITY:
            connections = min(connections, max(files - _OTHER_FILES, files // 2))
        per_second = processors * _CALLS_PER_PROCESSOR
        return cls(
            heap=heap,
            connections=connections,
            cached_tokens=int(heap * _TOKENS_SHARE) // TOKEN_BYTES // workers,
            tenant=Rate(burst=2 * per_second, per_second=per_second),
        )

    @classmethod
    def of_environment(cls, environment: Mapping[str, str], *, workers: int) -> Limits:
        """The defaults for this machine, and what `EVERGREEN_GATEWAY_…` says otherwise.

        Raises:
            ValueError: a setting is not what it should be; it is named.
        """
        text = environment.get(MEMORY_SETTING, "").strip()
        own = _read(MEMORY_SETTING, int, text) if text else None
        return cls.for_machine(workers=workers, own_memory=own).with_settings(environment)

    def with_settings(self, environment: Mapping[str, str]) -> Limits:
        """These limits, but what `EVERGREEN_GATEWAY_<NAME>` says.

        Numbers as they are, rates as `BURST:PER_SECOND`.

        Raises:
            ValueError: a setting is not what it should be; it is named.
        """
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            name = SETTING_PREFIX + field.name.upper()
            text = environment.get(name, "").strip()
            if text:
                changes[field.name] = _read(name, type(getattr(self, field.name)), text)
        return dataclasses.replace(self, **changes)


def workers_of(environment: Mapping[str, str]) -> int:
    """The gateway's threads: half of the processors, or what `EVERGREEN_GATEWAY_WORKERS` says.

    The other half serves what comes through.

    Raises:
        ValueError: the setting is no number above 0.
    """
    text = environment.get(WORKERS_SETTING, "").strip()
    if text:
        return int(_read(WORKERS_SETTING, int, text))
    return max(1, len(os.sched_getaffinity(0)) // 2)


def reflection_of(environment: Mapping[str, str]) -> bool:
    """Whether users may ask for the API's descriptors by gRPC reflection: not unless it is said.

    Raises:
        ValueError: the setting is neither `true` nor `false`.
    """
    text = environment.get(REFLECTION_SETTING, "").strip().lower() or "false"
    if text not in {"true", "false"}:
        raise ValueError(f"{REFLECTION_SETTING} is {text!r}, neither true nor false.")
    return text == "true"


def _read(name: str, kind: type[Any], text: str) -> Any:
    form = "BURST:PER_SECOND, both above 0" if kind is Rate else "a number above 0"
    wrong = ValueError(f"{name} is {text!r}, not {form}.")
    try:
        value = Rate.parse(text) if kind is Rate else kind(text)
    except ValueError:
        raise wrong from None
    least = min(value.burst, value.per_second) if isinstance(value, Rate) else value
    if not least > 0:
        raise wrong
    return value
