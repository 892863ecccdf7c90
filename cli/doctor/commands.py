"""The command `evergreen doctor`."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli.errors import told
from cli.options import home_of

if TYPE_CHECKING:
    from cli.doctor.finding import Finding
    from cli.doctor.installation import Installation

FOUND: Final = 1
_NOT_CHECKED: Final = 2


def doctor(
    home: Annotated[
        Path | None,
        typer.Option(
            "--home",
            envvar="EVERGREEN_HOME",
            help="Directory of an installation on this machine, when PUBLIC_URL is not set;"
            " ./.evergreen when nothing is given.",
            show_default=False,
        ),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            "--ca-file",
            envvar="EVERGREEN_CA_FILE",
            help="CA that the gateway's certificate is checked with; the system's when not given.",
            show_default=False,
        ),
    ] = None,
    disks: Annotated[
        list[Path] | None,
        typer.Option("--disk", help="A directory whose disk is looked at too; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")] = False,
) -> None:
    """Look for what is wrong with an installation, and say how to mend it.

    Without containers it looks at the home. Else it goes by PUBLIC_URL, TRUSTED_PROXIES, and the
    services' settings: EVERGREEN_MIGRATE_DATABASE_URL, EVERGREEN_DATABASE_URL, EVERGREEN_NATS_URL,
    EVERGREEN_NATS_MONITOR_URL; what is not set is not looked at. Ends with 1 for an error.
    """
    with told(_NOT_CHECKED):
        from cli.doctor import installation  # noqa: PLC0415

        place = (
            installation.given(os.environ, ca_file)
            if os.environ.get("PUBLIC_URL")
            else installation.of_home(home_of(home))
        )
        found = asyncio.run(_examine(place, disks or []))
        _show(found, as_json=as_json)
        if any(finding.severity == "error" for finding in found):
            raise typer.Exit(FOUND)


async def _examine(place: Installation, disks: list[Path]) -> list[Finding]:
    from cli.doctor.examine import examine  # noqa: PLC0415

    return await examine(place, disks)


def _show(found: list[Finding], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"findings": [asdict(finding) for finding in found]}))
        return
    for finding in found:
        typer.echo(f"{finding.severity.upper():7}  {finding.code}: {finding.what.rstrip('.')}.")
        typer.echo(f"         {finding.fix}")
    if not found:
        typer.echo("Nothing is wrong.")
