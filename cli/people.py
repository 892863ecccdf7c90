"""`evergreen people`: what the installation holds about one person."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli.errors import CliError, told
from cli.files import written
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.session import session

# Each command imports what it needs itself: `evergreen up`, which is in a hurry, loads this file.

app = typer.Typer(
    name="people", help="What is held about one person, as a file.", no_args_is_help=True
)

_FAILED: Final = 2
_NOT_COMPLETE: Final = 3
_PATH: Final = "/api/person-data/export"


@app.callback()
def _people() -> None:
    """Keeps `export` a command of its own, however few others there are."""


@app.command()
def export(
    addresses: Annotated[
        list[str] | None, typer.Argument(metavar="EMAIL", help="The person's addresses.")
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="A name that texts may have of the person; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write to; standard output if not given."),
    ] = None,
    org: Annotated[
        str,
        typer.Option("--org", help="Only this tenant, by its id; all that is yours if not given."),
    ] = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Write all that is held about one person to a file, a JSON object a line. Owners only.

    Ends with 3 when the file does not have all.
    """
    if not addresses and not name:
        raise typer.BadParameter("give an address, or a name with --name")
    body: dict[str, Any] = {"emails": addresses or [], "names": name or []}
    if org:
        body["orgId"] = org
    last = b""
    with (
        told(_FAILED),
        session(home, url, ca_file, email, password_file) as api,
        written(output) as file,
    ):
        for part in api.stream(_PATH, body=body):
            file.write(part)
            last = (last + part)[-_END_BYTES:]
        end = _end(last)
    if output is not None:
        typer.echo(f"{output}: {end['records']} records. Read it before you hand it out.")
    if not end["complete"]:
        typer.echo(_why(end["leftOut"]), err=True)
        raise typer.Exit(_NOT_COMPLETE)


def _why(left_out: int) -> str:
    if left_out:
        return (
            f"Not complete: {left_out} rows could not be read, or in part alone;"
            " `evergreen doctor` names the broken ones."
        )
    return "Not complete: there is more than an export holds. Give less common names."


_END_BYTES: Final = 200


def _end(last: bytes) -> dict[str, Any]:
    """What the last line of a file says.

    Raises:
        CliError: it is none.
    """
    try:
        found: dict[str, Any] = json.loads(last.splitlines()[-1])["end"]
        return {
            "records": int(found["records"]),
            "complete": bool(found["complete"]),
            "leftOut": int(found.get("leftOut", 0)),
        }
    except (ValueError, LookupError, TypeError) as broken:
        raise CliError("the export broke off: the file is not complete") from broken
