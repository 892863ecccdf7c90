"""`evergreen users`: people, and the way back of somebody who lost the password."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.errors import CliError, told
from cli.options import CaFile, DatabaseHome, Email, Home, PasswordFile, Url, home_of
from cli.places import tenant_id
from cli.session import operator
from cli.tables import moment, show_list, table

if TYPE_CHECKING:
    from cli.client import Api
    from cli.migrate import Target
    from services.identity.recovery import Reset

app = typer.Typer(
    name="users",
    help="Users: list, invite, change, deactivate, delete, reset a password.",
    no_args_is_help=True,
)

User = Annotated[str, typer.Argument(help="The user, by the e-mail address or the id.")]
Org = Annotated[str, typer.Option("--org", help="An organisation or reseller, by its code or id.")]
RoleName = Annotated[str, typer.Option("--role", help="Owner, Admin or Auditor.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be changed.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

_FAILED: Final = 2
_SECONDS: Final = 30
_ALL: Final = sys.maxsize
_SESSION_COLUMNS: Final = ("LAST SEEN (UTC)", "SINCE (UTC)", "ADDRESS", "ID", "PROGRAM")
_COLUMNS: Final = ("EMAIL", "ROLE", "STATUS", "TENANT", "ID")


@contextmanager
def _api(
    home: Path | None, url: str, ca_file: Path | None, email: str, password_file: Path | None
) -> Iterator[Api]:
    from cli.client import find_access, logged_in  # noqa: PLC0415

    with logged_in(find_access(home, url, ca_file, email, password_file)) as api:
        yield api


@app.command("list")
def list_users(
    org: Org = "",
    deleted: Annotated[bool, typer.Option(help="Deleted ones, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the users that you can see, oldest first."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        org_id = tenant_id(api, org)
        users = list(_users(api, deleted=deleted, org_id=org_id))
        _show(api, users, as_json=as_json)


@app.command()
def show(
    user: User,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show one user as JSON; also one who was deleted."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        found = user_named(api, user, deleted=True)
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))


@app.command()
def invite(
    address: Annotated[str, typer.Argument(help="The e-mail address.")],
    role: RoleName = "Auditor",
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Add a user, or invite a known one again; print the link to hand over."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        known = [user for user in _users(api) if _is(user, address)]
        if known:
            made = api.post(f"/api/users/{known[0]['id']}/invite", {})
        else:
            body = {"email": address, "role": role}
            made = api.post("/api/users", body | ({"orgId": tenant_id(api, org)} if org else {}))
        _hand_over(made)


@app.command()
def edit(
    user: User,
    role: RoleName = "",
    new_email: Annotated[str, typer.Option("--new-email", help="The new e-mail address.")] = "",
    org: Org = "",
    dry_run: DryRun = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Change a user's role, e-mail address or organisation; the user's sessions end."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        found = user_named(api, user)
        changes = {"role": role, "email": new_email, "orgId": tenant_id(api, org)}
        body: dict[str, Any] = {name: value for name, value in changes.items() if value}
        if not body:
            raise CliError("say what to change: --role, --new-email or --org")
        body |= {"etag": found["etag"], "validateOnly": dry_run}
        changed = api.patch(f"/api/users/{found['id']}", body)
        _say(api, changed, dry_run)
        if "invitationToken" in changed:
            _hand_over(changed)


@app.command()
def deactivate(
    user: User,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Disable a user: sessions and event credentials of the user end."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        _say(api, api.post(f"/api/users/{user_named(api, user)['id']}/deactivate", {}))


@app.command()
def sessions(
    user: User,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show where a user is logged in, newest first."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        found = user_named(api, user)
        path = f"/api/users/{found['id']}/sessions"
        rows = [
            (
                moment(one["lastSeenAt"]),
                moment(one["createdAt"]),
                one["address"],
                one["id"],
                one["userAgent"],
            )
            for one in api.pages(path, "sessions", _ALL)
        ]
        for line in table(_SESSION_COLUMNS, rows):
            typer.echo(line)


@app.command("end-sessions")
def end_sessions(
    user: User,
    session: Annotated[str, typer.Option("--session", help="Only this one, by its id.")] = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Log a user out everywhere; API tokens of the user go on."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        found = user_named(api, user)
        body = {"sessionId": session} if session else {}
        ended = api.post(f"/api/users/{found['id']}/sessions/end", body)["ended"]
        typer.echo(f"{found['email']}: sessions ended: {ended}")


@app.command()
def reactivate(
    user: User,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Let a deactivated user of a directory in again; its role mappings decide as what."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        _say(api, api.post(f"/api/users/{user_named(api, user)['id']}/reactivate", {}))


@app.command()
def delete(
    user: User,
    yes: Yes = False,
    dry_run: DryRun = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Delete a deactivated user. The address is free again; the audit log stays as it is."""
    with told(_FAILED), _api(home, url, ca_file, email, password_file) as api:
        found = user_named(api, user)
        path = f"/api/users/{found['id']}"
        seen = api.delete(path, validateOnly="true", etag=found["etag"])
        if dry_run:
            _say(api, seen, dry_run)
            return
        if not yes:
            if not sys.stdin.isatty():
                raise CliError("nobody can be asked here; give --yes. Nothing was changed")
            typer.confirm(f"Delete {found['email']}?", abort=True)
        _say(api, api.delete(path, etag=found["etag"]))


def _users(api: Api, *, deleted: bool = False, org_id: str = "") -> Iterator[dict[str, Any]]:
    more = {"showDeleted": "true" if deleted else "", "orgId": org_id}
    yield from api.pages("/api/users", "users", _ALL, **more)


def _is(user: dict[str, Any], name: str) -> bool:
    from servicekit.texts import normal_email  # noqa: PLC0415

    return bool(name == user["id"] or normal_email(name) == user["email"])


def user_named(api: Api, name: str, *, deleted: bool = False) -> dict[str, Any]:
    """The user with an address or an id; of several who had an address, who has it now.

    Raises:
        CliError: there is none.
    """
    found = [user for user in _users(api, deleted=deleted) if _is(user, name)]
    living = [user for user in found if user["status"] != "deleted"]
    if not found:
        raise CliError(f"you see no user with the address or id {name}")
    return (living or found)[-1]


def _show(api: Api, users: list[dict[str, Any]], *, as_json: bool = False) -> None:
    """One line a user; a tenant by its code."""
    codes = {}
    if not as_json:
        tenants = api.pages("/api/tenants", "tenants", _ALL, showDeleted="true")
        codes = {tenant["id"]: tenant["code"] for tenant in tenants}

    def row(user: dict[str, Any]) -> Sequence[str]:
        return (
            user["email"],
            user["role"],
            user["status"],
            codes.get(user["tenantId"], user["tenantId"]),
            user["id"],
        )

    show_list(users, _COLUMNS, row, as_json=as_json)


def _say(api: Api, user: dict[str, Any], dry_run: bool = False) -> None:
    """Shows a user as changed; of a dry run, that nothing was."""
    _show(api, [user])
    if dry_run:
        typer.echo("Nothing was changed; so it would be.")


def _hand_over(user: dict[str, Any]) -> None:
    mailed = " The link goes there by mail, too." if user.get("invitationMail") == "queued" else ""
    told_them = f"{user['email']} is invited.{mailed} This link sets a password, once:"
    typer.echo(told_them, err=True)
    typer.echo(user.get("invitationLink") or user["invitationToken"])


@app.command("reset-password")
def reset_password(
    email: Annotated[str, typer.Argument(help="The user's e-mail address.")],
    reactivate: Annotated[
        bool, typer.Option("--reactivate", help="Let a deactivated user in again.")
    ] = False,
    public_url: Annotated[
        str,
        typer.Option(
            envvar=["PUBLIC_URL", "EVERGREEN_PUBLIC_URL"],
            help="Address of the gateway in the link; the home's when not given.",
        ),
    ] = "",
    home: DatabaseHome = None,
) -> None:
    """End a user's password and sessions, and print a link with which the user sets a new one.

    On the server's machine: it needs the database's password, and no login. The link works once,
    for a day. The audit log records it.
    """
    with told(_FAILED):
        from cli.migrate import find_target, run_on_database  # noqa: PLC0415

        target = find_target(home)
        reset = run_on_database(_reset(target, email, reactivate))
        user = reset.before
        if user.status == "disabled":
            typer.echo(f"{user.email} was deactivated, and is invited again.", err=True)
        until = f"until {reset.expires_at:%Y-%m-%d %H:%M} UTC"
        ended = f"{user.email}: the password and all sessions have ended."
        link = reset.link(public_url or _public_url(home))
        if link is not None:
            typer.echo(f"{ended} This link sets a new password, once, {until}:", err=True)
            typer.echo(link)
        else:
            typer.echo(
                f"{ended} Paste this token at https://<your server>/auth/accept, {until}:", err=True
            )
            typer.echo(reset.token)


@app.command("reset-mfa")
def reset_mfa(
    user: User,
    on_server: Annotated[
        bool,
        typer.Option(
            "--on-server",
            help="With the database's password and no login: for the last Owner.",
        ),
    ] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Remove all second factors of a user who lost them, and end the user's sessions.

    The password stays. As an Owner; or on the server's machine. The audit log records it.
    """
    with told(_FAILED):
        if on_server:
            from cli.migrate import find_target, run_on_database  # noqa: PLC0415

            address = run_on_database(_reset_factors(find_target(home), user))
        else:
            with _api(home, url, ca_file, email, password_file) as api:
                found = user_named(api, user)
                address = found["email"]
                api.post(f"/api/users/{found['id']}/reset-mfa", {})
        typer.echo(f"{address}: logs in with the password alone. Sessions have ended.")


def _public_url(home: Path | None) -> str:
    from cli.client import bootstrap  # noqa: PLC0415

    try:
        return bootstrap(home_of(home))["url"]
    except CliError:
        return ""


async def _reset(target: Target, email: str, reactivate: bool) -> Reset:
    from servicekit.ids import now  # noqa: PLC0415
    from services.identity import recovery  # noqa: PLC0415

    async with _on_database(target) as connection:
        return await recovery.reset_password(
            connection, email, operator(), now(), reactivate=reactivate
        )


async def _reset_factors(target: Target, email: str) -> str:
    from servicekit.ids import now  # noqa: PLC0415
    from services.identity import recovery  # noqa: PLC0415

    async with _on_database(target) as connection:
        return (await recovery.reset_factors(connection, email, operator(), now())).email


@asynccontextmanager
async def _on_database(target: Target) -> AsyncIterator[Any]:
    """A transaction of the role that owns the tables.

    Raises:
        CliError: what is done in it is refused.
    """
    import asyncpg  # noqa: PLC0415

    from servicekit.errors import DomainError  # noqa: PLC0415

    pool = asyncpg.create_pool(
        target.dsn, password=target.password, min_size=1, max_size=1, command_timeout=_SECONDS
    )
    try:
        async with (
            asyncio.timeout(_SECONDS),
            pool,
            pool.acquire() as connection,
            connection.transaction(),
        ):
            yield connection
    except DomainError as refused:
        raise CliError(refused.message) from refused
    except asyncpg.UndefinedTableError as error:
        raise CliError("the database has no users yet; start the product first") from error
