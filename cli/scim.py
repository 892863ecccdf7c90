"""`evergreen scim`: identity providers that send people and groups by SCIM 2.0."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.directories import confirm as ask
from cli.directories import mapped_row, named, tenants_by_id
from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import tenant_id
from cli.session import session
from cli.tables import show_list
from cli.tokens import Days, hand_over, in_days
from cli.users import user_named

if TYPE_CHECKING:
    from cli.client import Api

app = typer.Typer(
    name="scim",
    help="SCIM sources: add, make tokens, look at people, confirm, change, delete.",
    no_args_is_help=True,
)

_Source = Annotated[str, typer.Argument(help="The source, by its name or id.")]
_Org = Annotated[str, typer.Option("--org", help="An organisation or reseller, by its code or id.")]
_Map = Annotated[
    list[str] | None,
    typer.Option("--map", help="GROUP=ROLE or GROUP=ROLE@ORG, in their order. Repeat it."),
]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]

_FAILED: Final = 2
_ALL: Final = sys.maxsize
_COLUMNS: Final = ("NAME", "TENANT", "ENABLED", "PEOPLE", "GROUPS", "USERS", "HELD", "ID")
_PEOPLE: Final = ("USER NAME", "EMAIL", "ACTIVE", "GROUPS", "ACCOUNT")


@app.command("list")
def list_sources(
    org: _Org = "",
    as_json: _Json = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the SCIM sources that you can see."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = list(_sources(api, tenant_id(api, org)))
        _show(api, found, as_json=as_json)


@app.command()
def show(
    source: _Source,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show a SCIM source as JSON."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        typer.echo(json.dumps(_found(api, source), ensure_ascii=False, indent=2))


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="A name for people to read.")],
    mapping: _Map = None,
    org: _Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Add a SCIM source, and show where the identity provider sends to."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        body: dict[str, Any] = {
            "name": name,
            "roleMappings": [mapped_row(api, one) for one in mapping or []],
        }
        if org:
            body["orgId"] = tenant_id(api, org)
        made = api.post("/api/scim-sources", body)
        _show(api, [made])
        typer.echo(f"Enter there: {made['baseUrl']} (base URL)")
        typer.echo(f"and the token that `evergreen scim token {name!r}` makes.")


@app.command()
def token(
    source: _Source,
    name: Annotated[str, typer.Option("--name", help="The token's name.")] = "scim",
    days: Days = 365,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Create a token for a SCIM source and print it, this once.

    `evergreen tokens` lists, rotates and revokes it.
    """
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, source)
        body = {"name": name, "scimSourceId": found["id"], "expiresAt": in_days(days)}
        hand_over(api.post("/api/tokens", body))


@app.command()
def people(
    source: _Source,
    without: Annotated[
        bool, typer.Option("--without-account", help="Only those whose account cannot be used.")
    ] = False,
    as_json: _Json = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the people of a SCIM source, and why somebody has no account."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        path = f"/api/scim-sources/{_found(api, source)['id']}/people"
        found = [one for one in api.pages(path, "people", _ALL) if one["problem"] or not without]
        show_list(found, _PEOPLE, _person_row, as_json=as_json)


@app.command()
def edit(
    source: _Source,
    new_name: Annotated[str, typer.Option("--new-name", help="Another name.")] = "",
    enabled: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Whether it may send anything.")
    ] = None,
    mapping: _Map = None,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Change a SCIM source. `--map` puts all its rows in the place of those before."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, source)
        body: dict[str, Any] = {}
        if new_name:
            body["name"] = new_name
        if enabled is not None:
            body["enabled"] = enabled
        if mapping:
            body["roleMappings"] = [mapped_row(api, one) for one in mapping]
        if not body:
            raise CliError("say what to change, as --map or --disable")
        changed = api.patch(f"/api/scim-sources/{found['id']}", body | {"etag": found["etag"]})
        _show(api, [changed])
        if changed["remaining"]:
            typer.echo(f"The accounts of {changed['remaining']} more people follow by themselves.")


@app.command()
def confirm(
    source: _Source,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Let a SCIM source take access from those who are held."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, source)
        if not found["held"]:
            typer.echo("Nobody is held.")
            return
        ask(f"Let {found['name']} take access from {found['held']} users?", yes)
        body = {"users": found["held"]}
        after = api.post(f"/api/scim-sources/{found['id']}/confirm", body)
        typer.echo(f"Done; {after['held']} users are held now.")


@app.command()
def unlink(
    source: _Source,
    user: Annotated[str, typer.Argument(help="The user, by the e-mail address or the id.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Take a user out of a SCIM source: local again, and deactivated until you invite or delete."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found, of = _found(api, source), user_named(api, user)
        ask(f"Take {of['email']} out of {found['name']} and deactivate the user?", yes)
        api.post(f"/api/scim-sources/{found['id']}/unlink", {"userId": of["id"]})
        typer.echo(
            f"{of['email']} is local and deactivated;"
            f" `evergreen users invite {of['email']}` makes a link for a password here."
        )


@app.command()
def delete(
    source: _Source,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Delete a SCIM source; users who come from it are deactivated."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = _found(api, source)
        ask(f"Delete {found['name']} and deactivate its users?", yes)
        api.delete(f"/api/scim-sources/{found['id']}", etag=found["etag"])
        typer.echo(f"{found['name']} is deleted; users who came from it are deactivated.")


def _person_row(one: dict[str, Any]) -> Sequence[str]:
    return (
        one["userName"],
        one["email"],
        "yes" if one["active"] else "no",
        ",".join(one["groups"]),
        one["problem"] or "ok",
    )


def _sources(api: Api, org_id: str = "") -> Iterator[dict[str, Any]]:
    yield from api.pages("/api/scim-sources", "sources", _ALL, orgId=org_id)


def _found(api: Api, name: str) -> dict[str, Any]:
    return named(api, "/api/scim-sources", "sources", "SCIM source", name)


def _show(api: Api, found: list[dict[str, Any]], *, as_json: bool = False) -> None:
    codes = {} if as_json else tenants_by_id(api)

    def row(one: dict[str, Any]) -> Sequence[str]:
        return (
            one["name"],
            codes.get(one["tenantId"], one["tenantId"]),
            "yes" if one["enabled"] else "no",
            str(one["people"]),
            str(one["groups"]),
            str(one["users"]),
            str(one["held"]),
            one["id"],
        )

    show_list(found, _COLUMNS, row, as_json=as_json)
