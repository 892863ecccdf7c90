"""`evergreen factors`: the second factors of one's own account."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final

import typer

from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.session import session

app = typer.Typer(
    name="factors",
    help="Your own second factors: show, set up an authenticator app, make recovery codes.",
    no_args_is_help=True,
)

_FAILED: Final = 2


@app.command()
def show(
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show what you have, and what your organisation asks for."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        _say(api.get("/auth/mfa"))


@app.command("recovery-codes")
def recovery_codes(
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Make ten recovery codes in place of those that there were, and print them once."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        made = api.post("/auth/mfa/recovery-codes", {})
        _say_codes(made["codes"])


@app.command("add-app")
def add_app(
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Set up an authenticator app: show its key, as a QR code, and take its first code.

    The first app comes with recovery codes. Where nobody can be asked, the first line is the key's
    address, and the code is read from standard input.
    """
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        codes: list[str] = []
        if not api.get("/auth/mfa").get("totpSince"):
            codes = api.post("/auth/mfa/recovery-codes", {})["codes"]
        key = api.post("/auth/mfa/totp", {})
        if sys.stdin.isatty():
            import segno  # noqa: PLC0415

            segno.make_qr(key["uri"]).terminal(compact=True)
            typer.echo(f"Scan it with the app, or type the key {key['secret']}")
        else:
            typer.echo(key["uri"])
        if codes:
            _say_codes(codes)
        sys.stdout.flush()
        if sys.stdin.isatty():
            code = typer.prompt("Code that the app shows")
        elif not (code := sys.stdin.readline().strip()):
            raise CliError("give the code that the app shows on standard input")
        _say(api.post("/auth/mfa/totp/confirm", {"code": code}))


@app.command("remove-app")
def remove_app(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Remove your authenticator app; with the last factor the recovery codes go."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        if not yes:
            if not sys.stdin.isatty():
                raise CliError("nobody can be asked here; give --yes. Nothing was changed")
            typer.confirm("Remove it?", abort=True)
        _say(api.delete("/auth/mfa/totp"))


@app.command("remove-passkey")
def remove_passkey(
    passkey: Annotated[str, typer.Argument(help="The passkey, by its id or name.")],
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Remove one of your passkeys; they are added in the browser, at /auth/account."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        known = api.get("/auth/mfa").get("passkeys", [])
        found = [one for one in known if passkey in {one["id"], one["name"]}]
        if len(found) != 1:
            raise CliError(f"you have {len(found)} passkeys with the name or id {passkey}")
        _say(api.delete(f"/auth/passkeys/{found[0]['id']}"))


def _say_codes(codes: list[str]) -> None:
    typer.echo("Keep them where you keep passwords. Each works once:", err=True)
    for code in codes:
        typer.echo(code)


def _say(factors: dict[str, Any]) -> None:
    since = factors.get("totpSince", "")
    typer.echo(f"authenticator app: {f'since {since}' if since else 'none'}")
    typer.echo(f"recovery codes left: {factors.get('recoveryCodesLeft', 0)}")
    for one in factors.get("passkeys", []):
        typer.echo(f"passkey: {one['name']} ({one['site']}), {one['id']}")
    if factors.get("required"):
        typer.echo(f"asked for by your organisation from {factors['requiredFrom']} on")
