"""`evergreen version`: which release this is, and which one an installation runs."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

import typer

from cli.errors import told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.session import session
from servicekit.build import PRODUCT, current
from servicekit.security import fips, mode

_FAILED: Final = 2


def version(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    server: Annotated[
        bool, typer.Option("--server", help="Also what the installation runs; logs in.")
    ] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the release, its commit, and when it was built."""
    here: dict[str, Any] = {
        "product": PRODUCT,
        **current().as_json(),
        "cryptography": fips.described(),
    }
    there: dict[str, Any] | None = None
    if server:
        with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
            there = dict(api.get("/api/version"))
    if as_json:
        typer.echo(json.dumps(here | ({"server": there} if there else {})))
        return
    typer.echo(text(here))
    if there:
        typer.echo(f"\nThe installation:\n{text(there)}")


def show(asked: bool) -> None:
    """`evergreen --version`: the release in one line."""
    if asked:
        typer.echo(f"{PRODUCT} {current().version}")
        raise typer.Exit


def text(found: dict[str, Any]) -> str:
    """The lines for people; what is not known has none."""
    lines = [f"{found['product']} {found['version']}"]
    lines += [f"{name:<7} {found[name]}" for name in ("commit", "build") if found[name]]
    cryptography = found.get("cryptography", {})
    if cryptography and (cryptography["fips"], cryptography["suites"]) != (mode.OFF, mode.STANDARD):
        lines.append(f"FIPS    {cryptography['fips']}, suites {cryptography['suites']}")
    if module := cryptography.get("module"):
        lines.append(f"module  {module['name']} {module['version']}, SHA-256 {module['sha256']}")
    return "\n".join(lines)
