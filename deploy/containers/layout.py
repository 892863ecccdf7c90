"""Names, ports and directories of the containers, the same in every installation of that kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.launcher.home import Home

GRPC_PORT: Final = 9090
"""Where the gateway reaches a service by gRPC,"""
HTTP_PORT: Final = 9092
"""where it reaches its plain HTTP,"""
OPS_PORT: Final = 9464
"""and where Prometheus and probes do."""
GATEWAY_PORT: Final = 8443
NATS_PORT: Final = 4222
NATS_MONITOR_PORT: Final = 8222

MOUNTED: Final = Path("/run/evergreen")
"""Where each container finds its own directory."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One directory for each container, below the one that `evergreen init` fills.

    Nobody but the operator has more than what its own work needs.
    """

    root: Path

    @property
    def operator(self) -> Home:
        """All secrets and both CAs, laid out as the home of an installation without containers."""
        return Home(self.root / "operator")

    @property
    def inside_ca(self) -> Path:
        """The CA of the certificates inside the walls."""
        return self.operator.root / "inside"

    def of(self, name: str) -> Path:
        """The directory of a container: `postgres`, `nats`, `gateway`, or a service."""
        return self.root / name
