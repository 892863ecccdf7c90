"""The command `evergreen doctor`."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.errors import told
from cli.options import home_of

if TYPE_CHECKING:
    from cli.doctor.finding import Check
    from cli.doctor.installation import Installation

FOUND: Final = 1
_NOT_CHECKED: Final = 2
_WARNED: Final = 3
_MOST_ALIKE: Final = 3
_STATUSES: Final = ("ok", "skipped", "warning", "error")


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
    strict: Annotated[
        bool, typer.Option("--strict", help="End with 3 when there are warnings, but no errors.")
    ] = False,
) -> None:
    """Look for what is wrong with an installation, and say how to repair it.

    Every check is listed: ok, warning, error, or skipped with the reason. Nothing is changed.
    Without containers it looks at the home. Else it goes by PUBLIC_URL, TRUSTED_PROXIES, and the
    services' settings: EVERGREEN_MIGRATE_DATABASE_URL, EVERGREEN_DATABASE_URL,
    EVERGREEN_ROLE_SECRETS, EVERGREEN_NATS_URL, EVERGREEN_NATS_MONITOR_URL, EVERGREEN_OPS_TARGET,
    EVERGREEN_GATEWAY_MONITOR_URL.

    Ends with 0 when there is no error, 1 for an error, 2 when nothing could be checked, and with
    --strict 3 for warnings alone.
    """
    with told(_NOT_CHECKED):
        from cli.doctor import installation  # noqa: PLC0415

        place = (
            installation.given(os.environ, ca_file)
            if os.environ.get("PUBLIC_URL")
            else installation.of_home(home_of(home), ca_file)
        )
        checks = asyncio.run(_examine(place, disks or []))
        _show(checks, as_json=as_json)
        statuses = {check.status for check in checks}
        if "error" in statuses:
            raise typer.Exit(FOUND)
        if strict and "warning" in statuses:
            raise typer.Exit(_WARNED)


async def _examine(place: Installation, disks: list[Path]) -> list[Check]:
    from cli.doctor.examine import examine  # noqa: PLC0415

    return await examine(place, disks)


def _show(checks: list[Check], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_as_json(checks)))
        return
    width = max(len(check.name) for check in checks)
    alike = Counter(check.skipped for check in checks if check.skipped)
    for check in checks:
        if alike[check.skipped] > _MOST_ALIKE:
            _show_together([c for c in checks if c.skipped == check.skipped])
            alike[check.skipped] = -1
        if alike[check.skipped] < 0:
            continue
        said = check.skipped or check.seen
        head = f"{check.status:7}  {check.name:{width}}"
        if not check.findings:
            typer.echo(f"{head}  {said}".rstrip())
        for finding in check.findings:
            typer.echo(f"{head}  {finding.code}: {finding.what.rstrip('.')}.")
            typer.echo(f"         {finding.fix}")
    counts = Counter(check.status for check in checks)
    told = ", ".join(_number(status, counts[status]) for status in _STATUSES if counts[status])
    typer.echo(f"{len(checks)} checks: {told}.")
    if not counts["error"] and not counts["warning"]:
        typer.echo("Nothing is wrong.")


def _number(status: str, count: int) -> str:
    """Such as `2 warnings`; what is `ok` or `skipped` has no plural."""
    plural = "s" if count > 1 and status in {"warning", "error"} else ""
    return f"{count} {status}{plural}"


def _show_together(skipped: list[Check]) -> None:
    """One line for checks that were skipped for one reason, as of all that needs a database."""
    subjects = Counter(check.name.partition(".")[0] for check in skipped)
    told = ", ".join(f"{subject} ({count})" for subject, count in subjects.items())
    typer.echo(f"skipped  {skipped[0].skipped}: {told}")


def _as_json(checks: list[Check]) -> dict[str, Any]:
    return {
        "checks": [
            {
                "name": check.name,
                "status": check.status,
                **({"seen": check.seen} if check.seen else {}),
                **({"skipped": check.skipped} if check.skipped else {}),
                "findings": [asdict(finding) for finding in check.findings],
            }
            for check in checks
        ],
        "findings": [asdict(finding) for check in checks for finding in check.findings],
    }
