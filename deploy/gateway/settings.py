"""What the gateway is told: addresses, files and limits. All else is the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import evergreen.v1
from deploy.gateway.limits import Limits
from servicekit.observability.tracing import Traces
from servicekit.security.tls import Tls

DESCRIPTORS: Final = Path(next(iter(evergreen.v1.__path__))) / "descriptors.binpb"
"""The descriptor set that is installed beside the generated code."""


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
    more_certificates: tuple[tuple[Path, Path], ...] = ()
    """Others, each with its key: clients that ask for one of their names see them."""
    contexts: Mapping[str, Endpoints]
    """Every context of the access table."""
    inside: Tls | None = None
    """The gateway's certificate for the services, where they are reached over a network."""
    console: str = ""
    """`http://HOST:PORT` of the web console, which is served under the same origin."""
    metrics: str = ""
    """`HOST:PORT` where Prometheus and probes may look; for the inside only."""
    admin: str
    """Envoy's own administration: `unix:PATH` where other users have the machine too; a loopback
    `HOST:PORT` where none but this container does. Never public."""
    addresses: tuple[str, ...] = ("0.0.0.0", "::")  # noqa: S104 - the product's public port
    """Where to listen; leave out `::` on a machine without IPv6."""
    descriptors: Path = DESCRIPTORS
    descriptors_at: Path | None = None
    """Where Envoy finds a copy of them, when it runs elsewhere."""
    public_url: str = ""
    """Where browsers find the gateway, as `https://HOST[:PORT]`: its pages may change things."""
    former_public_urls: tuple[str, ...] = ()
    """Its addresses of before: still served as `public_url`, and who uses them is logged."""
    cors_origins: tuple[str, ...] = ()
    """Origins (`https://console.example.org`) of pages that may call with credentials."""
    reflection: bool = False
    """Whether users may ask for the API's descriptors by gRPC reflection."""
    trusted_proxies: int = 0
    """How many proxies in front append the client's address to `X-Forwarded-For`."""
    key_refresh: float = 5
    """Seconds between two looks at identity's token keys; a new key is published long before."""
    access_log: Literal["off", "errors", "all"] = "errors"
    """`errors`: what failed on this side; a client's own mistakes are not logged."""
    access_log_file: str = "/dev/stdout"
    traces: Traces | None = None
    """Where spans go; without it the gateway begins no trace."""
    limits: Limits = field(default_factory=Limits)

    def secret_file(self, name: str) -> Path:
        """Where a secret is described: Envoy wants a file for each."""
        return self.directory / f"secret-{name}.yaml"
