"""`evergreen health`: whether the service in this container has all that it needs."""

from __future__ import annotations

import os
import socket
import sys
from typing import Final

_SECONDS: Final = 4.0


def probe() -> int:
    """Asks the service's operations port; answers the exit code.

    Small on purpose: it runs every few seconds in every container.
    """
    host, _, port = os.environ.get("EVERGREEN_OPS_LISTEN", "").rpartition(":")
    if host in {"", "0.0.0.0"}:  # noqa: S104 - where a service listens on every address
        host = "127.0.0.1"
    elif host == "[::]":
        host = "::1"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _SECONDS) as connection:
            connection.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            answer = b""
            while part := connection.recv(4096):
                answer += part
    except (OSError, ValueError) as error:
        sys.stderr.write(f"evergreen: nothing answers on EVERGREEN_OPS_LISTEN: {error}\n")
        return 1
    head, _, body = answer.partition(b"\r\n\r\n")
    sys.stdout.write(body.decode("utf-8", "replace") + "\n")
    return 0 if head.split(b" ")[1:2] == [b"200"] else 1
