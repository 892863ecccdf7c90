"""Loopback ports: picked free, kept from start to start, picked anew when taken meanwhile."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterable, Mapping

import psutil

from deploy.launcher.errors import LauncherError

# Below the ranges that kernels hand out for outgoing connections, so that none takes a kept port.
_PICK_FROM = range(18000, 28000)


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now; connections that linger do not count."""
    try:
        _bind(port, host)
    except OSError:
        return False
    return True


def _bind(port: int, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind((host, port))
        probe.listen(1)


def pick(
    names: Iterable[str], kept: Mapping[str, int], chooser: random.Random | None = None
) -> dict[str, int]:
    """A free loopback port for each name: the kept one if it is free, otherwise a new one.

    Raises:
        LauncherError: no free port was found.
    """
    ports: dict[str, int] = {}
    chooser = chooser or random.SystemRandom()
    for name in names:
        candidates = [kept[name]] if name in kept else []
        candidates += chooser.sample(_PICK_FROM, 200)
        for port in candidates:
            if port not in ports.values() and is_free(port):
                ports[name] = port
                break
        else:
            raise LauncherError("No free port on 127.0.0.1 was found between 18000 and 28000.")
    return ports


def gateway_addresses(port: int, *, loopback_only: bool = False) -> tuple[str, ...]:
    """The addresses on which the gateway can listen: all of the machine, IPv6 where it has it.

    Args:
        port: the gateway's port.
        loopback_only: whether only programs of this machine are to reach it.

    Raises:
        LauncherError: the port cannot be had; says why and how to choose another one.
    """
    addresses = []
    # Devices on the network come in by all addresses.
    hosts = ("127.0.0.1", "::1") if loopback_only else ("0.0.0.0", "::")  # noqa: S104
    for host in hosts:
        try:
            _bind(port, host)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise LauncherError(
                    f"Port {port} is taken by another program{listener(port)}.",
                    advice="Stop that program, or choose another port: "
                    f"EVERGREEN_PORT={port + 1 if port < 65535 else 8443} make run",
                ) from error
            if error.errno == errno.EACCES:
                raise LauncherError(
                    f"Port {port} may be used by root only.",
                    advice="Choose one above 1023: EVERGREEN_PORT=8443 make run",
                ) from error
            if ":" not in host:
                raise
        else:
            addresses.append(host)
    return tuple(addresses)


def listener(port: int) -> str:
    """Which process listens on the port, as far as this user may see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if connection.status != psutil.CONN_LISTEN or not address or not connection.pid:
                continue
            if address.port == port:
                return f" ({psutil.Process(connection.pid).name()}, process {connection.pid})"
    except psutil.Error:
        pass
    return ""
