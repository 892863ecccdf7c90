"""NATS under the supervisor."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from deploy import nats
from deploy.launcher.errors import LauncherError
from deploy.launcher.events import parse_nats
from deploy.launcher.home import Home, password, write_private
from deploy.launcher.process import ProcessSpec

_BINARY: Final = "nats-server"


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


def process(home: Home, contexts: tuple[str, ...], ports: Mapping[str, int]) -> ProcessSpec:
    """Writes the server's configuration; answers its process."""
    passwords = {context: home.secret(f"nats_{context}", password) for context in contexts}
    configuration = home.nats / "nats.conf"
    text = nats.render(ports["nats"], ports["nats_monitor"], home.nats / "store", passwords)
    write_private(configuration, text)
    return ProcessSpec(
        name="nats",
        argv=(str(binary()), "--config", str(configuration)),
        parse=parse_nats,
        cwd=home.nats,
        shown_from="warning",
        grace=10.0,
    )
