"""`evergreen service-accounts`: programs that call the API, and stay when people leave."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import tenant_id
from cli.session import session
from cli.tables import table
from cli.tokens import account_named

app = typer.Typer(
    name="service-accounts",
    help="Service accounts: list, create, change, delete.",
    no_args_is_help=True,
)

Account = Annotated[str, typer.Argument(help="The service account, by its name or id.")]
Org = Annotated[str, typer.Option("--org", help="An organisation or reseller, by its code or id.")]

_FAILED: Final = 2
_ALL: Final = sys.maxsize
_COLUMNS: Final = ("NAME", "ROLE", "TENANT", "CREATED BY", "ID")


@app.command("list")
def list_accounts(
    org: Org = "",
    deleted: Annotated[bool, typer.Option("--deleted", help="Deleted ones, too.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the service accounts that you can see, oldest first."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        asked = {"showDeleted": "true" if deleted else ""}
        if org:
            asked["orgId"] = tenant_id(api, org)
        _show(list(api.pages("/api/service-accounts", "serviceAccounts", _ALL, **asked)))


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="A name.")],
    role: Annotated[str, typer.Option("--role", help="Owner, Admin or Auditor.")],
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Add a service account; `evergreen tokens create --service-account` makes its tokens."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        body = {"name": name, "role": role} | ({"orgId": tenant_id(api, org)} if org else {})
        _show([api.post("/api/service-accounts", body)])


@app.command()
def edit(
    account: Account,
    new_name: Annotated[str, typer.Option("--name", help="The name from now on.")] = "",
    role: Annotated[str, typer.Option("--role", help="Owner, Admin or Auditor.")] = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Change a service account. Tokens that may do more than it from then on end."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = account_named(api, account)
        body = {key: value for key, value in (("name", new_name), ("role", role)) if value}
        if not body:
            raise CliError("say what to change: --name or --role")
        body["etag"] = found["etag"]
        _show([api.patch(f"/api/service-accounts/{found['id']}", body)])


@app.command()
def delete(
    account: Account,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Delete a service account; its API tokens end."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = account_named(api, account)
        if not yes:
            if not sys.stdin.isatty():
                raise CliError("nobody can be asked here; give --yes. Nothing was changed")
            typer.confirm(f"Delete {found['name']} and end its tokens?", abort=True)
        _show([api.delete(f"/api/service-accounts/{found['id']}", etag=found["etag"])])


def _show(accounts: Sequence[dict[str, Any]]) -> None:
    rows = [
        (one["name"], one["role"], one["tenantId"], one["createdBy"], one["id"]) for one in accounts
    ]
    for line in table(_COLUMNS, rows):
        typer.echo(line)
