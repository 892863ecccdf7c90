"""`evergreen mail`: whether the installation sends mail, and a try of its mail server."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

import typer

from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.session import session

app = typer.Typer(
    name="mail",
    help="Mail: how the mail server does, and a try of it. For users of the root tenant.",
    no_args_is_help=True,
)

_FAILED: Final = 2


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show how the mail server was last found, and what waits for it."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = api.get("/api/mail")
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for line in _lines(found):
        typer.echo(line)


def _lines(found: dict[str, Any]) -> list[str]:
    if not found.get("on"):
        return ["off: EVERGREEN_SMTP_URL is not set (or EVERGREEN_OUTBOUND is false)"]
    lines = [f"server   {found['server']}", f"sender   {found['sender']}"]
    waiting = found.get("waiting", 0)
    oldest = f", the oldest since {found['oldestAt']}" if waiting else ""
    lines.append(f"waiting  {waiting}{oldest}")
    lines.append(
        f"7 days   {found.get('sent', 0)} sent, {found.get('refused', 0)} refused,"
        f" {found.get('expired', 0)} given up"
    )
    if said := found.get("lastRefusal"):
        lines.append(f"refused  {said}")
    if since := found.get("failingSince"):
        lines.append(f"FAILING  since {since}: {found['lastError']}")
    elif last := found.get("lastSuccessAt"):
        lines.append(f"ok       the server last took a mail at {last}")
    return lines


@app.command()
def test(
    address: Annotated[str, typer.Argument(help="Where the mail goes.")],
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Send a mail at once, past those that wait. For Owners of the root tenant."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        answer = api.post("/api/mail/test", {"address": address})
    took = f"{answer.get('tookMs', 0)} ms"
    if answer.get("sent"):
        typer.echo(f"the mail server took the mail to {address} ({took})")
        return
    with told(_FAILED):
        advice = f": {answer['advice']}" if answer.get("advice") else ""
        raise CliError(f"the mail was not taken ({took}): {answer['error']}{advice}")
