"""What the gateway is told: addresses, files and limits. All else is the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import evergreen.v1

KIB: Final = 1024
MIB: Final = 1024 * KIB

DESCRIPTORS: Final = Path(next(iter(evergreen.v1.__path__))) / "descriptors.binpb"
"""The descriptor set that is installed beside the generated code."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `burst` requests at once, `per_second` in the long run."""

    burst: int
    per_second: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds that keep one caller, or a crowd, from taking everything.

    A school sits behind one address, and the console logs all its users in from one address too;
    so whatever is counted by address is generous, and guessing passwords is slowed down per
    account by identity.
    """

    body: int = MIB
    """Bytes of a request's body, where nothing else is said."""
    events_body: int = 32 * MIB
    """Bytes of a batch of events: an agent sends 50,000 queued ones in one body."""
    response: int = 16 * MIB
    """Bytes of an answer that is transcoded as a whole; streamed downloads have no limit."""
    header_kib: int = 16
    """KiB of all request headers together."""
    timeout: float = 15
    """Seconds that an answer may take, where nothing else is said."""
    connections: int = 20_000
    """Open client connections; further ones are closed at once."""
    heap: int = 1024 * MIB
    """Bytes of memory; near it the gateway refuses requests, then connections."""
    upstream_requests: int = 2048
    """Requests in flight to one context, and as many again waiting for a connection."""
    cached_tokens: int = 10_000
    """Verified tokens kept per worker and kind (6.6 kB each); less than are active costs time."""
    counted_callers: int = 50_000
    """Callers whose rate is remembered, per limit; the least recent are forgotten."""
    device: Rate = Rate(burst=120, per_second=2)
    """Calls of one device."""
    user: Rate = Rate(burst=300, per_second=20)
    """Calls of one user."""
    login: Rate = Rate(burst=120, per_second=4)
    """Logins, refreshes and accepted invitations from one address."""
    enroll: Rate = Rate(burst=2000, per_second=50)
    """Enrollments from one address: a whole school is switched on in one morning."""
    open: Rate = Rate(burst=500, per_second=50)
    """Calls from one address to everything else that needs no token."""
    other: Rate = Rate(burst=5000, per_second=1000)
    """Requests of everybody together to what is not there."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a context listens for the gateway: `unix:PATH` or `HOST:PORT`."""

    grpc: str
    http: str = ""
    """Its plain HTTP routes; empty for a context that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """All that differs between one environment and another."""

    directory: Path
    """Where the rendered files will lie; Envoy watches it."""
    port: int
    certificate_file: Path
    private_key_file: Path
    contexts: Mapping[str, Endpoints]
    """Every context of the access table."""
    admin: str
    """Envoy's own administration: `unix:PATH`, or a loopback `HOST:PORT`. Never public."""
    addresses: tuple[str, ...] = ("0.0.0.0", "::")  # noqa: S104 - the product's public port
    """Where to listen; leave out `::` on a machine without IPv6."""
    descriptors: Path = DESCRIPTORS
    cors_origins: tuple[str, ...] = ()
    """Origins (`https://console.example.org`) of pages that may call with credentials."""
    trusted_proxies: int = 0
    """How many proxies in front append the client's address to `X-Forwarded-For`."""
    key_refresh: float = 5
    """Seconds between two looks at identity's token keys; a new key is published long before."""
    access_log: Literal["off", "errors", "all"] = "errors"
    """`errors`: what failed on this side; a client's own mistakes are not logged."""
    access_log_file: str = "/dev/stdout"
    limits: Limits = field(default_factory=Limits)
