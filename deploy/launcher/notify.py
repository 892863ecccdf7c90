"""Tells systemd how the launcher is (`sd_notify`), and sees whether its output is the journal's."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


def notify(*facts: str, environment: Mapping[str, str] = os.environ) -> None:
    """Sends facts such as `READY=1` to the service manager, if one asked for them.

    https://www.freedesktop.org/software/systemd/man/sd_notify.html
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # "@" stands for the abstract name space.
    name = f"\0{address[1:]}" if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto("\n".join(facts).encode(), name)


def is_journal(descriptor: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether what is written to a descriptor goes to systemd's journal."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"
