"""The local certificate authority and the gateway's certificate, made once and kept."""

from __future__ import annotations

import datetime
import socket
from dataclasses import dataclass
from pathlib import Path

from deploy.certificates import SERVER, Authority


@dataclass(frozen=True, slots=True)
class Tls:
    """The files of the gateway's TLS."""

    ca_certificate: Path
    server_certificate: Path
    server_key: Path


def host_names() -> list[str]:
    """The names and addresses that the gateway's certificate is good for."""
    names = ["localhost", "127.0.0.1", "::1"]
    # Not getfqdn(): without a name server it waits for many seconds.
    own = socket.gethostname()
    if own and own.isascii() and own not in names:
        names.append(own)
    return names


def ensure(directory: Path, names: list[str], now: datetime.datetime) -> Tls:
    """Makes the CA and the server certificate, or renews the latter when it is due.

    The server certificate is made anew, by the same CA, within 30 days of its end, or when it
    does not cover `names`; the CA is made once only, for devices and browsers trust it.
    """
    files = Tls(directory / "ca.crt", directory / "server.crt", directory / "server.key")
    authority = Authority.ensure_in(directory, f"Evergreen local CA on {socket.gethostname()}", now)
    authority.ensure_files(files.server_certificate, files.server_key, names, SERVER, now)
    # The certificates are public, and a person's browser has to be able to import the CA.
    files.ca_certificate.chmod(0o644)
    files.server_certificate.chmod(0o644)
    return files
