"""What a person may choose: the environment variables of `make run`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from deploy.launcher.errors import LauncherError
from servicekit.tracing import Traces

# Plain parsing: the library that services use for this takes half a second to import, and the
# launcher is in a hurry.


@dataclass(frozen=True, slots=True)
class Options:
    """The launcher's settings."""

    home: Path
    """Where the state lives; absolute."""
    port: int
    """The gateway's port."""
    admin_email: str
    """The first Owner; used on the first start."""
    admin_password: str = field(repr=False)
    """The first Owner's password; made when empty."""
    events_listen: tuple[str, int] | None
    """Where integrators reach NATS, host and port; on loopback only, on a free port, if `None`."""
    log_format: Literal["console", "json"]
    """How the terminal shows events: for people or as JSON."""
    log_level: str
    """The least level that is logged."""
    traces: Traces | None
    """Where spans go, by the standard's variables (`OTEL_…`)."""


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

    port = value("PORT", "8443")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        problems.append(f"EVERGREEN_PORT is {port!r}, not a port between 1 and 65535.")
    listen: tuple[str, int] | None = None
    if given := value("EVENTS_LISTEN", ""):
        host, _, number = given.rpartition(":")
        if host and number.isascii() and number.isdigit() and 0 < int(number) < 65536:
            listen = host.strip("[]"), int(number)
        else:
            problems.append(f"EVERGREEN_EVENTS_LISTEN is {given!r}, not HOST:PORT.")
    log_format = choice("LOG_FORMAT", "console", ("console", "json"))
    log_level = choice("LOG_LEVEL", "info", ("debug", "info", "warning", "error"))
    traces = None
    try:
        traces = Traces.of_environment(environment)
    except ValueError as wrong:
        problems.append(str(wrong))
    if problems:
        raise LauncherError(" ".join(problems), advice="Correct the environment and start again.")
    return Options(
        home=Path(value("HOME", ".evergreen")).expanduser().absolute(),
        port=int(port),
        admin_email=value("ADMIN_EMAIL", "owner@localhost"),
        admin_password=environment.get("EVERGREEN_ADMIN_PASSWORD", ""),
        events_listen=listen,
        log_format=cast("Literal['console', 'json']", log_format),
        log_level=log_level,
        traces=traces,
    )
