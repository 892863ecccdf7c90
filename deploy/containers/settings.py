"""What an administrator says about an installation in containers."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


class InstallationError(Exception):
    """An installation cannot be made so; the message is for a person and says what to do."""


def only_here(public_url: str) -> str:
    """What an administrator must know of an address that leads nowhere from elsewhere, if it is."""
    host = urlsplit(public_url).hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost" or host.endswith(".localhost")
    if not local:
        return ""
    return (
        f"The public address is {public_url}: devices elsewhere cannot reach it. Before you enroll"
        " any, set PUBLIC_URL to the name that they find this machine by, as"
        " https://evergreen.school.example (with Compose: in the file .env, then `docker compose"
        " up` again)."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """The settings of `evergreen init`."""

    public_url: str
    """Where devices and browsers reach the gateway: `https://HOST[:PORT]`."""
    former_public_urls: tuple[str, ...] = ()
    """Its addresses of before, which go on working."""
    published_port: int | None = None
    """The port of this machine that leads to the gateway, if that is known."""
    certificate: Path | None = None
    """A directory with `fullchain.pem` and `privkey.pem`; without it a local CA signs."""
    trusted_proxies: int = 0
    """How many proxies stand before the gateway and append to `X-Forwarded-For`."""
    console_url: str = ""
    """Where the web console runs, if it is to be under the same origin."""
    gateway_workers: int = 1
    """Threads of the gateway."""
    service_host: str = "{context}"
    """The host name of a service."""
    listen: str = "0.0.0.0"  # noqa: S104 - a container's own address
    """The address on which the gateway listens."""
    server_certificate: Path | None = None
    """Where Envoy finds `tls.crt` and `tls.key` for clients, if not beside its configuration."""
    inside_certificate: Path | None = None
    """Where it finds `ca.crt`, `tls.crt` and `tls.key` for the services, likewise."""
    postgres_major: int | None = None
    """The major version of the PostgreSQL that will be started, if that is known."""
    empty_database: bool = False
    """Whether it may begin without the data that an older one has left."""

    @property
    def host(self) -> str:
        """The host of the public address."""
        return urlsplit(self.public_url).hostname or ""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts of the public address, and of those of before."""
        former = (urlsplit(url).hostname or "" for url in self.former_public_urls)
        return tuple(dict.fromkeys([self.host, *former]))

    def check(self) -> None:
        """Finds what cannot work.

        Raises:
            InstallationError: what it is.
        """
        for former in self.former_public_urls:
            # Its pages may change things, and without TLS anybody on the way could write them.
            if urlsplit(former).scheme != "https":
                raise InstallationError(
                    f"FORMER_PUBLIC_URLS has {former!r}, not https://HOST[:PORT]"
                )
        url = urlsplit(self.public_url)
        if url.scheme != "https" or not url.hostname or url.path not in {"", "/"}:
            raise InstallationError(
                f"PUBLIC_URL is {self.public_url!r}; give the address that devices and browsers"
                " will use, as https://evergreen.school.example"
            )
        port = url.port or 443
        if self.published_port and not self.trusted_proxies and port != self.published_port:
            raise InstallationError(
                f"PUBLIC_URL says port {port}, but the gateway is published on port"
                f" {self.published_port}: set HTTPS_PORT={port}, or put the port into PUBLIC_URL."
                " (With a reverse proxy in front, set TRUSTED_PROXIES.)"
            )
        for name in ("fullchain.pem", "privkey.pem") if self.certificate else ():
            path = (self.certificate or Path()) / name
            try:
                path.read_bytes()
            except OSError as error:
                raise InstallationError(
                    f"{name} in TLS_DIRECTORY cannot be read ({error.strerror}). The containers"
                    " run as user 10001: chown 10001 the file, and keep its mode 0600."
                ) from error
