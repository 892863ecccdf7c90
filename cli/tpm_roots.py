"""`evergreen tpm-roots`: the certificates by which TPMs are known, through the public API."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.confirm import DryRun, need_terminal
from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.tables import table

if TYPE_CHECKING:
    from cli.client import Api

app = typer.Typer(
    name="tpm-roots",
    help="List, add and remove the certificates by which TPMs are known.",
    no_args_is_help=True,
)

_FAILED: Final = 2
_PATH: Final = "/api/tpm-roots"
_COLUMNS: Final = ("SUBJECT", "VALID UNTIL", "SHA-256", "ID")
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_MOST_BYTES: Final = 1 << 20

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@app.command("list")
def list_roots(
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the certificates by which TPMs are known."""
    from cli.client import find_access, logged_in  # noqa: PLC0415

    with told(_FAILED):
        with logged_in(find_access(home, url, ca_file, email, password_file)) as api:
            roots = api.get(_PATH).get("roots", [])
        for line in [json.dumps(root) for root in roots] if as_json else _table(roots):
            typer.echo(line)


@app.command("import")
def import_roots(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="In PEM or DER.")],
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Add certificates by which TPMs are known, for all organisations.

    It shows subject, fingerprint and validity of each, and asks before it adds them: compare the
    fingerprints with those that the maker of the TPMs publishes. Only an Owner of the root tenant
    may do it. Certificates that are there already are passed over.
    """
    from cli.client import find_access, logged_in  # noqa: PLC0415

    with told(_FAILED):
        texts = [text for path in files for text in _certificates(path)]
        with logged_in(find_access(home, url, ca_file, email, password_file)) as api:
            known = {root["sha256"] for root in api.get(_PATH).get("roots", [])}
            shown = [(text, _shown(api, text)) for text in texts]
            new = {root["sha256"]: (text, root) for text, root in shown}
            new = {key: found for key, found in new.items() if key not in known}
            if passed := len(texts) - len(new):
                typer.echo(f"{passed} are there already, or twice.", err=True)
            if not new:
                return
            for line in _table([root for _, root in new.values()]):
                typer.echo(line)
            if dry_run:
                typer.echo("Nothing was changed.")
                return
            if not yes:
                need_terminal("--yes")
                typer.confirm(f"Trust {len(new)} certificates?", abort=True, err=True)
            for text, _ in new.values():
                api.post(_PATH, {"certificatePem": text})
        typer.echo(f"{len(new)} certificates are trusted now.")


@app.command()
def remove(
    root_id: Annotated[str, typer.Argument(metavar="ID")],
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Remove a certificate; devices that are bound by it stay bound."""
    from cli.client import find_access, logged_in  # noqa: PLC0415

    with told(_FAILED):
        with logged_in(find_access(home, url, ca_file, email, password_file)) as api:
            api.delete(f"{_PATH}/{root_id}")
        typer.echo("It is not trusted any more.")


def _shown(api: Api, text: str) -> dict[str, Any]:
    """What the backend makes of a certificate, without adding it."""
    found: dict[str, Any] = api.post(_PATH, {"certificatePem": text, "validateOnly": True})
    return found


def _certificates(path: Path) -> list[str]:
    """The certificates of a file, each in PEM.

    Raises:
        CliError: there are none.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise CliError(f"{path} is too large to be certificates")
    if found := _PEM.findall(data):
        return [block.decode() for block in found]
    if data[:1] != b"\x30":
        raise CliError(f"{path} has no certificate, neither in PEM nor in DER")
    text = base64.encodebytes(data).decode()
    return [f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"]


def _table(roots: list[dict[str, Any]]) -> list[str]:
    rows = [
        (root["subject"], f"{root['notAfter'][:10]}", root["sha256"], root["id"] or "-")
        for root in roots
    ]
    return table(_COLUMNS, rows)
