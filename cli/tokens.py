"""`evergreen tokens`: API tokens, for programs that call the API."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import one_named, tenant_id
from cli.session import session
from cli.tables import moment, show_list

if TYPE_CHECKING:
    from cli.client import Api

app = typer.Typer(
    name="tokens",
    help="API tokens: list, create, rotate, revoke, and look into one.",
    no_args_is_help=True,
)

Token = Annotated[str, typer.Argument(help="The token, by its name or id.")]
Org = Annotated[str, typer.Option("--org", help="An organisation or reseller, by its code or id.")]
Account = Annotated[
    str, typer.Option("--service-account", help="A service account, by its name or id.")
]
Days = Annotated[int, typer.Option("--days", min=1, max=400, help="How long it is to work.")]

_FAILED: Final = 2
_ALL: Final = sys.maxsize
_PREFIX: Final = "evt_"
_COLUMNS: Final = (
    "NAME",
    "HELD BY",
    "ROLE",
    "SCOPES",
    "STATUS",
    "ENDS (UTC)",
    "LAST USED (UTC)",
    "ID",
)


@app.command("list")
def list_tokens(
    org: Org = "",
    service_account: Account = "",
    ended: Annotated[bool, typer.Option("--ended", help="Those that have ended, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the API tokens that you can see, oldest first."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        asked = {"showEnded": "true" if ended else ""}
        if org:
            asked["orgId"] = tenant_id(api, org)
        if service_account:
            asked["serviceAccountId"] = account_named(api, service_account)["id"]
        found = list(api.pages("/api/tokens", "tokens", _ALL, **asked))
        show_list(found, _COLUMNS, _row, as_json=as_json)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="A name, which entries of the audit log show.")],
    scope: Annotated[
        list[str],
        typer.Option("--scope", help="What it may do, such as devices:read; may be given again."),
    ],
    role: Annotated[
        str, typer.Option("--role", help="Owner, Admin or Auditor; yours when not given.")
    ] = "",
    org: Org = "",
    service_account: Account = "",
    days: Days = 90,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Create an API token and print it, this once."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        body: dict[str, Any] = {"name": name, "scopes": scope, "expiresAt": in_days(days)}
        if role:
            body["role"] = role
        if org:
            body["orgId"] = tenant_id(api, org)
        if service_account:
            body["serviceAccountId"] = account_named(api, service_account)["id"]
        hand_over(api.post("/api/tokens", body))


@app.command()
def rotate(
    token: Token,
    overlap_hours: Annotated[
        int, typer.Option("--overlap-hours", min=0, max=72, help="How long the old one works on.")
    ] = 24,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Create the successor of an API token and print it, this once."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, token)
        body = {"overlapHours": overlap_hours, "etag": found["etag"]}
        made = api.post(f"/api/tokens/{found['id']}/rotate", body)
        typer.echo(f"The old token works for {overlap_hours} more hours.", err=True)
        hand_over(made)


@app.command()
def revoke(
    token: Token,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """End an API token, and by a name also the one that it took the place of.

    It is refused everywhere within seconds.
    """
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        newest = _found(api, token)
        ended = [newest]
        if token != newest["id"]:
            tokens = api.pages("/api/tokens", "tokens", _ALL)
            ended += [one for one in tokens if one["replacedBy"] == newest["id"]]
        revoked = [api.post(f"/api/tokens/{one['id']}/revoke", {}) for one in ended]
        show_list(revoked, _COLUMNS, _row, as_json=False)


@app.command()
def inspect(
    token_file: Annotated[
        Path | None, typer.Argument(help="A file with the token; standard input when not given.")
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", help="The installation's /.well-known/jwks.json, to check it with."),
    ] = None,
) -> None:
    """Show what an API token says of itself. It asks nobody; whether it was revoked it cannot know.

    The token is read from a file or the standard input, for a command line is seen by others.
    """
    with told(_FAILED):
        text = token_file.read_text() if token_file is not None else sys.stdin.read()
        claims, signature = _inspected(text.strip(), keys)
        ends = datetime.fromtimestamp(claims["exp"], UTC)
        said = {
            "id": claims["sub"],
            "name": _plain(claims["nam"]),
            "acts for": _plain(claims["who"]),
            "role": claims["role"],
            "scopes": claims["scp"],
            "tenant": claims["tid"],
            "made": f"{datetime.fromtimestamp(claims['iat'], UTC):%Y-%m-%d %H:%M} UTC",
            "expires": f"{ends:%Y-%m-%d %H:%M} UTC{' (is over)' if ends < _now() else ''}",
            "signature": signature,
        }
        for name, value in said.items():
            typer.echo(f"{name + ':':<11}{value}")


def _inspected(text: str, keys: Path | None) -> tuple[dict[str, Any], str]:
    """What a token says, and what is to be said of its signature.

    Raises:
        CliError: it is no API token, or none that these keys have signed.
    """
    from servicekit.security import jwt  # noqa: PLC0415

    try:
        if not text.startswith(_PREFIX):
            raise ValueError("prefix")
        bare = text.removeprefix(_PREFIX)
        claims = jwt.unverified(bare)
        if (
            claims["iss"] != "evergreen:tokens"
            or not {"sub", "nam", "who", "role", "scp", "tid", "iat", "exp"} <= claims.keys()
        ):
            raise ValueError("claims")
    except (ValueError, KeyError) as broken:
        raise CliError("this is no API token of Evergreen") from broken
    if keys is None:
        return claims, "not checked; give --keys"
    try:
        jwks = json.loads(keys.read_text(encoding="utf-8"))
        right = jwt.is_signed_by(bare, jwks["keys"])
    except (OSError, ValueError, KeyError, TypeError) as broken:
        raise CliError(f"{keys} is no file of keys: {broken}") from broken
    if not right:
        raise CliError("none of these keys has signed the API token")
    return claims, "right"


def _plain(text: str) -> str:
    from urllib.parse import unquote  # noqa: PLC0415

    return unquote(text)


def _now() -> datetime:
    return datetime.now(UTC)


def in_days(days: int) -> str:
    """The time so many days from now, as the API takes it."""
    return f"{_now() + timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}"


def account_named(api: Api, name: str) -> dict[str, Any]:
    """The service account with a name or an id.

    Raises:
        CliError: there is none, or there are several.
    """
    accounts = api.pages("/api/service-accounts", "serviceAccounts", _ALL)
    return one_named(list(accounts), name, "service account")


def _found(api: Api, name: str) -> dict[str, Any]:
    """A token; of those of a name the one that has no successor."""
    tokens = list(api.pages("/api/tokens", "tokens", _ALL))
    newest = [one for one in tokens if name == one["id"] or not one["replacedBy"]]
    return one_named(newest, name, "API token that works")


def _row(one: dict[str, Any]) -> Sequence[str]:
    return (
        one["name"],
        one["heldBy"],
        one["role"],
        ",".join(one["scopes"]),
        one["status"],
        moment(one["endsAt"]),
        moment(one["lastUsedAt"]) if one.get("lastUsedAt") else "never",
        one["id"],
    )


def hand_over(made: dict[str, Any]) -> None:
    """Prints a new token, alone on standard output."""
    typer.echo(
        f"{made['name']} is a token of {made['heldBy']} until {made['expiresAt']}. Keep it like a"
        " password; it is not shown again:",
        err=True,
    )
    typer.echo(made["token"])
