"""NATS under the supervisor."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final

from deploy import nats
from deploy.launcher import probe
from deploy.launcher.errors import LauncherError
from deploy.launcher.events import parse_nats
from deploy.launcher.home import Home, password
from deploy.launcher.process import ProcessSpec
from deploy.private_files import write_private
from servicekit.security import nkey
from servicekit.security.tls import Tls

ISSUER: Final = "nats_issuer"
"""The secret with which identity vouches for integrators."""
_BINARY: Final = "nats-server"
_ROOM: Final = 64 * 1024**2


def binary() -> Path:
    """The server's executable, installed beside this Python.

    Raises:
        LauncherError: it is not installed.
    """
    path = Path(sys.executable).with_name(_BINARY)
    if not path.is_file():
        raise LauncherError(
            f"{path} is missing.", advice="Install the packages again: make clean run"
        )
    return path


def process(
    home: Home,
    contexts: tuple[str, ...],
    ports: Mapping[str, int],
    *,
    host: str = "127.0.0.1",
    tls: Tls | None = None,
) -> ProcessSpec:
    """Writes the server's configuration; answers its process.

    Args:
        host: the address for clients; others than loopback need `tls`.
    """
    users = (*contexts, nats.GATEKEEPER, nats.OPERATOR)
    configuration = home.nats / "nats.conf"
    text = nats.render(
        ports["nats"],
        ports["nats_monitor"],
        home.nats / "store",
        {user: home.secret(f"nats_{user}", password) for user in users},
        host=host,
        tls=tls,
        issuer=nkey.public_key(home.secret(ISSUER, nkey.new_seed)),
    )
    write_private(configuration, text)
    # Streams of homes from before there were accounts: they belong to none now, and the server
    # would never be healthy. Nothing is lost: the outboxes fill the new ones from the database.
    shutil.rmtree(home.nats / "store" / "jetstream" / "$G", ignore_errors=True)

    async def stuck() -> str:
        # A stream that could not be written once takes nothing any more, also when there is room
        # again, until the server starts anew.
        status, body = await probe.http(ports["nats_monitor"], "/healthz")
        if status != HTTPStatus.SERVICE_UNAVAILABLE or b"write error" not in body:
            return ""
        room = shutil.disk_usage(home.nats).free > _ROOM
        return "its disk was full, and has room again" if room else ""

    return ProcessSpec(
        name="nats",
        argv=(str(binary()), "--config", str(configuration)),
        parse=parse_nats,
        cwd=home.nats,
        shown_from="warning",
        stuck=stuck,
        grace=10.0,
    )
