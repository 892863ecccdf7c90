"""`evergreen devices`: devices are approved, retired, deleted, and let in again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.confirm import DryRun, Expect, Yes, confirmed
from cli.errors import CliError, told
from cli.options import CaFile, DatabaseHome, Email, Home, PasswordFile, Url
from cli.session import operator, session
from cli.tables import table

if TYPE_CHECKING:
    from cli.client import Api
    from cli.migrate import Target

# Each command imports what it needs itself: `evergreen up`, which is in a hurry, loads this file.

app = typer.Typer(
    name="devices",
    help="Devices: list, label, import, approve, decommission, delete, let in again.",
    no_args_is_help=True,
)

Devices = Annotated[
    list[str], typer.Argument(help="The devices, by their ids (`id` in `GET /api/devices`).")
]

_FAILED = 2
_SECONDS = 30


@app.command()
def decommission(
    devices: Devices,
    yes: Yes = False,
    expect: Expect = None,
    dry_run: DryRun = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Retire devices: their tokens stop at once, and they cannot enroll by themselves."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:

        def look(device: str) -> Any:
            return api.post(f"/api/devices/{device}/decommission", {"validateOnly": True})

        def act(device: str) -> Any:
            return api.post(f"/api/devices/{device}/decommission", {})

        _all("decommission", devices, look, act, yes=yes, expect=expect, dry_run=dry_run)


@app.command()
def delete(
    devices: Devices,
    yes: Yes = False,
    expect: Expect = None,
    dry_run: DryRun = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Delete decommissioned devices with their states and events, for good."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:

        def look(device: str) -> Any:
            return api.delete(f"/api/devices/{device}", validateOnly="true")

        def act(device: str) -> Any:
            return api.delete(f"/api/devices/{device}")

        _all("delete", devices, look, act, yes=yes, expect=expect, dry_run=dry_run)


@app.command("allow-reenrollment")
def allow_reenrollment(
    devices: Devices,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Let devices enroll again, each once within 24 hours; also decommissioned and deleted ones."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        for found in _one_by_one(api, devices, "allow-reenrollment"):
            typer.echo(f"{found['serial']} may enroll until {found['reenrollmentAllowedUntil']}.")


@app.command()
def approve(
    devices: Devices,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Let in devices that wait for approval: `devices list` shows them as pending."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        for found in _one_by_one(api, devices, "approve"):
            typer.echo(f"{found['serial']} is approved, and enrolls when it asks again.")


@app.command()
def reject(
    devices: Devices,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Refuse devices that wait for approval; `allow-reenrollment` lets one in after all."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        for found in _one_by_one(api, devices, "reject"):
            typer.echo(f"{found['serial']} is rejected.")


@app.command("end-simulated")
def end_simulated(
    prefix: Annotated[
        str, typer.Argument(help="What their serial numbers begin with, as SIM-1a2b3c.")
    ],
    home: DatabaseHome = None,
) -> None:
    """Decommission and delete devices of `evergreen sim`, without logging in.

    On the server's machine: it needs the database's password. The audit log records it.
    """
    with told(_FAILED):
        from cli.migrate import find_target, run_on_database  # noqa: PLC0415

        ended = run_on_database(_end_simulated(find_target(home), prefix))
        for serial in ended:
            typer.echo(f"{serial} is decommissioned and deleted.")
        if not ended:
            typer.echo(f"No device's serial number begins with {prefix}.")


async def _end_simulated(target: Target, prefix: str) -> list[str]:
    import asyncpg  # noqa: PLC0415

    from servicekit.ids import now  # noqa: PLC0415
    from services.enrollment import simulated  # noqa: PLC0415

    connection = await asyncpg.connect(target.dsn, password=target.password, timeout=_SECONDS)
    try:
        async with connection.transaction():
            return await simulated.end(connection, prefix, operator(), now())
    except ValueError as wrong:
        raise CliError(str(wrong)) from wrong
    finally:
        await connection.close(timeout=_SECONDS)


def _one_by_one(api: Api, devices: list[str], call: str) -> Iterator[Any]:
    """Calls for each device, and stops at the first one that fails, which the error names."""
    for device in devices:
        try:
            yield api.post(f"/api/devices/{device}/{call}", {})
        except CliError as error:
            raise CliError(f"{device}: {error}") from error


def _all(
    what: str,
    devices: list[str],
    look: Callable[[str], Any],
    act: Callable[[str], Any],
    *,
    yes: bool,
    expect: int | None,
    dry_run: bool,
) -> None:
    """Looks at all devices before the first one is touched."""
    found = [_named(device, look) for device in devices]
    typer.echo(f"{_number(devices)} would be {_done(what)}:")
    for line in table(("SERIAL", "ID"), [(one["serial"], one["id"]) for one in found]):
        typer.echo(line)
    if not confirmed(what, len(devices), yes=yes, expect=expect, dry_run=dry_run):
        return
    for done, device in enumerate(devices):
        try:
            act(device)
        except CliError as error:
            raise CliError(f"{done} of {len(devices)} are done, then: {error}") from error
    typer.echo(f"{_number(devices)} {_done(what)}.")


def _named(device: str, look: Callable[[str], Any]) -> Any:
    try:
        return look(device)
    except CliError as error:
        raise CliError(f"{device}: {error}. Nothing was changed") from error


def _done(what: str) -> str:
    return f"{what.removesuffix('e')}ed"


def _number(devices: list[str]) -> str:
    return f"{len(devices)} device{'' if len(devices) == 1 else 's'}"
