"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer

_GROUP = "Which installation, and who you are"

Home: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--home",
        envvar="EVERGREEN_HOME",
        help="Directory of an installation on this machine; ./.evergreen when nothing is given.",
        rich_help_panel=_GROUP,
        show_default=False,
    ),
]
MIGRATE_URL: Final = "EVERGREEN_MIGRATE_DATABASE_URL"
"""Where the environment names a database, for commands that work on one without the services."""
REDACTED_FILE: Final = "EVERGREEN_REDACTED_FILE"
"""Where the environment names the list of redacted entries of the audit log."""
DatabaseHome: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--home",
        envvar="EVERGREEN_HOME",
        help=f"Directory of an installation on this machine, when {MIGRATE_URL} is not set;"
        " ./.evergreen when nothing is given.",
        show_default=False,
    ),
]
Url: TypeAlias = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="EVERGREEN_URL",
        help="Address of the gateway, when the installation is elsewhere.",
        rich_help_panel=_GROUP,
        show_default=False,
    ),
]
CaFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--ca-file",
        envvar="EVERGREEN_CA_FILE",
        help="CA that the gateway's certificate is checked with; the system's when not given.",
        rich_help_panel=_GROUP,
        show_default=False,
    ),
]
Email: TypeAlias = Annotated[
    str,
    typer.Option(
        "--email",
        envvar="EVERGREEN_EMAIL",
        help="Who logs in; the first Owner when --home is used.",
        rich_help_panel=_GROUP,
        show_default=False,
    ),
]
PasswordFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--password-file",
        envvar="EVERGREEN_PASSWORD_FILE",
        help="File with the password; it is asked for when there is none.",
        rich_help_panel=_GROUP,
        show_default=False,
    ),
]


def home_of(given: Path | None) -> Path:
    """The installation's directory."""
    return (given or Path(".evergreen")).expanduser().absolute()
