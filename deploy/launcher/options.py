"""What a person may choose: the environment variables of `make run`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

from deploy.launcher import backups
from deploy.launcher.errors import LauncherError
from deploy.launcher.home import Home
from deploy.launcher.logfile import DEFAULT, Bounds
from deploy.launcher.notify import is_journal
from servicekit.http.origins import origin_of, origins_of
from servicekit.observability.tracing import Traces

# Plain parsing: the library that services use for this takes half a second to import, and the
# launcher is in a hurry.


@dataclass(frozen=True, slots=True)
class Options:
    """The launcher's settings."""

    home: Path
    """Where the state lives; absolute."""
    port: int
    """The gateway's port."""
    loopback_only: bool
    """Whether only programs of this machine reach the gateway, as a proxy in front of it."""
    admin_email: str
    """The first Owner; used on the first start."""
    admin_password: str = field(repr=False)
    """The first Owner's password; made when empty."""
    events_listen: tuple[str, int] | None
    """Where integrators reach NATS, host and port; on loopback only, on a free port, if `None`."""
    log_format: Literal["console", "json", "journal"]
    """How the terminal shows events: for people, as JSON, or as systemd's journal takes them."""
    log_level: str
    """Lowest level that is logged."""
    public_url: str
    """Where browsers reach the gateway: `https://HOST[:PORT]`."""
    former_public_urls: tuple[str, ...]
    """Its addresses of before, which go on working."""
    tls_directory: Path | None
    """Where a certificate of another CA lies: `fullchain.pem` and `privkey.pem`."""
    console_url: str
    """Where the web console runs, to be served under the same address; empty without one."""
    traces: Traces | None
    """Where spans go, by the standard's variables (`OTEL_…`)."""
    logs: Path
    """Where the log files are; absolute."""
    log_bounds: Bounds
    backups: bool = False
    """Whether backups are made on a schedule (`EVERGREEN_BACKUP_…`)."""


def read(environment: Mapping[str, str] = os.environ) -> Options:
    """The settings of this start, from variables that start with `EVERGREEN_`, or `OTEL_`.

    Raises:
        LauncherError: a variable does not hold what it should; all of them are named.
    """
    problems: list[str] = []

    def value(name: str, default: str) -> str:
        return environment.get(f"EVERGREEN_{name}", "").strip() or default

    def choice(name: str, default: str, choices: tuple[str, ...]) -> str:
        found = value(name, default)
        if found not in choices:
            problems.append(f"EVERGREEN_{name} is {found!r}, not one of {', '.join(choices)}.")
        return found

    def number(name: str, default: int, most: int) -> int:
        found = value(name, str(default))
        if not (found.isascii() and found.isdigit() and 0 < int(found) <= most):
            problems.append(f"EVERGREEN_{name} is {found!r}, not a number from 1 to {most}.")
            return default
        return int(found)

    port = value("PORT", "8443")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        problems.append(f"EVERGREEN_PORT is {port!r}, not a port between 1 and 65535.")
    listen: tuple[str, int] | None = None
    try:
        listen = _host_and_port(value("EVENTS_LISTEN", ""))
    except ValueError as wrong:
        problems.append(f"EVERGREEN_EVENTS_LISTEN is {wrong}.")
    usual = "journal" if is_journal(1, environment) else "console"
    log_format = choice("LOG_FORMAT", usual, ("console", "json", "journal"))
    log_level = choice("LOG_LEVEL", "info", ("debug", "info", "warning", "error"))
    loopback_only = choice("LOOPBACK_ONLY", "false", ("false", "true")) == "true"
    public_url = value("PUBLIC_URL", f"https://localhost:{port}")
    # Compose and the chart call it so, too.
    console_url = value("CONSOLE_URL", environment.get("CONSOLE_URL", "").strip())
    if not _is_address(public_url, "https"):
        problems.append(f"EVERGREEN_PUBLIC_URL is {public_url!r}, not https://HOST[:PORT].")
    if console_url and not _is_address(console_url, "http", "https"):
        problems.append(f"EVERGREEN_CONSOLE_URL is {console_url!r}, not http(s)://HOST[:PORT].")
    former: tuple[str, ...] = ()
    try:
        former = _former(value("FORMER_PUBLIC_URLS", ""))
    except ValueError as wrong:
        problems.append(f"EVERGREEN_FORMER_PUBLIC_URLS: {wrong}.")
    traces = None
    try:
        traces = Traces.of_environment(environment)
    except ValueError as wrong:
        problems.append(str(wrong))
    scheduled = False
    try:
        scheduled = backups.are_scheduled(environment)
    except ValueError as wrong:
        problems.append(str(wrong))
    size = number("LOG_FILE_MIB", DEFAULT.largest >> 20, 1 << 20)
    files = number("LOG_FILES", DEFAULT.kept + 1, 1000)
    if problems:
        raise LauncherError(" ".join(problems), advice="Correct the environment and start again.")
    home = Path(value("HOME", ".evergreen")).expanduser().absolute()
    return Options(
        home=home,
        port=int(port),
        loopback_only=loopback_only,
        admin_email=value("ADMIN_EMAIL", "owner@localhost"),
        admin_password=environment.get("EVERGREEN_ADMIN_PASSWORD", ""),
        events_listen=listen,
        log_format=cast("Literal['console', 'json', 'journal']", log_format),
        log_level=log_level,
        public_url=public_url.rstrip("/"),
        former_public_urls=former,
        tls_directory=_directory(value("TLS_DIRECTORY", "")),
        console_url=console_url.rstrip("/"),
        traces=traces,
        logs=Path(value("LOG_DIR", str(Home(home).logs))).expanduser().absolute(),
        log_bounds=Bounds(size << 20, files - 1),
        backups=scheduled,
    )


def _host_and_port(given: str) -> tuple[str, int] | None:
    """An address to listen on; `None` for nothing.

    Raises:
        ValueError: it is none.
    """
    host, _, port = given.rpartition(":")
    if not given:
        return None
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{given!r}, not HOST:PORT")
    return host.strip("[]"), int(port)


def _former(urls: str) -> tuple[str, ...]:
    """The addresses of before.

    Raises:
        ValueError: one is none, or is without TLS. Its pages may change things, and anybody on the
            way could write them.
    """
    found = origins_of(urls)
    for url in found:
        if not url.startswith("https://"):
            raise ValueError(f"{url!r} is not https://HOST[:PORT]")
    return found


def _directory(given: str) -> Path | None:
    return Path(given).expanduser().absolute() if given else None


def _is_address(url: str, *schemes: str) -> bool:
    """Whether it is the address of a web server, without a path."""
    try:
        origin_of(url)
    except ValueError:
        return False
    parts = urlsplit(url)
    return parts.scheme in schemes and parts.path in {"", "/"}
