"""The local certificate authority and the gateway's certificate, made once and kept."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from deploy.certificates import SERVER, Authority, check_pair
from deploy.private_files import write_private

CHAIN: Final = "fullchain.pem"
KEY: Final = "privkey.pem"
"""The files of a certificate that is given, as certbot and others name them."""


class GivenCertificateError(Exception):
    """A certificate that is given cannot be served; the message says why."""


@dataclass(frozen=True, slots=True)
class Tls:
    """The files of the gateway's TLS."""

    ca_certificate: Path
    server_certificate: Path
    server_key: Path
    given: tuple[Path, Path] | None = None
    """A certificate of another CA, with its key: devices and browsers see that one."""


def host_names(urls: Iterable[str] = ()) -> list[str]:
    """The names and addresses that the gateway's certificate is good for, beside those of URLs."""
    names = ["localhost", "127.0.0.1", "::1"]
    hosts = [urlsplit(url).hostname or "" for url in urls]
    names += [host for host in dict.fromkeys(hosts) if host and host not in names]
    # Not getfqdn(): without a name server it waits for many seconds.
    own = socket.gethostname()
    if own and own.isascii() and own not in names:
        names.append(own)
    return names


def ensure(directory: Path, names: list[str], now: datetime.datetime) -> Tls:
    """Makes the CA and the server certificate, or renews the latter when it is due.

    The server certificate is made anew, by the same CA, after two thirds of its life, or when it
    is for other names; the CA is made once only, for devices and browsers trust it.
    """
    files = Tls(directory / "ca.crt", directory / "server.crt", directory / "server.key")
    authority = Authority.ensure_in(directory, f"Evergreen local CA on {socket.gethostname()}", now)
    authority.ensure_files(files.server_certificate, files.server_key, names, SERVER, now)
    # The certificates are public, and a person's browser has to be able to import the CA.
    files.ca_certificate.chmod(0o644)
    files.server_certificate.chmod(0o644)
    return files


def read_given(source: Path, now: datetime.datetime) -> tuple[str, str]:
    """A certificate that is given, the chain and the key.

    Raises:
        GivenCertificateError: it cannot be served.
    """
    try:
        chain, key = (source / CHAIN).read_bytes(), (source / KEY).read_bytes()
        check_pair(chain, key, now)
        return chain.decode("ascii"), key.decode("ascii")
    except OSError as error:
        raise GivenCertificateError(f"{error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise GivenCertificateError(f"{source / CHAIN}, {source / KEY}: {error}") from error


def take(source: Path, directory: Path, now: datetime.datetime) -> tuple[tuple[Path, Path], bool]:
    """Takes a certificate that is given into the home, where both of its files fit each other.

    Returns:
        The files, and whether they are other ones than before.

    Raises:
        GivenCertificateError: it cannot be served; the files of before stay.
    """
    chain, key = read_given(source, now)
    files = (directory / "given.crt", directory / "given.key")
    changed = False
    for path, text in zip(reversed(files), (key, chain), strict=True):
        if not path.exists() or path.read_text(encoding="ascii") != text:
            write_private(path, text)
            changed = True
    return files, changed
