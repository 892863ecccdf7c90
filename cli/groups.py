"""`evergreen groups`: groups of devices, listed by serial number or by a filter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.confirm import DryRun, Expect, Yes, confirmed
from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import ALL, AT_ONCE, Org, group_of, org_id, serials_in
from cli.session import session
from cli.tables import table

# Each command imports what it needs itself: `evergreen up`, which is in a hurry, loads this file.

app = typer.Typer(
    name="groups",
    help="Groups of devices: list, create, change their members, delete.",
    no_args_is_help=True,
)

Alias = Annotated[str, typer.Argument(help="The group, by its alias.")]
Serials = Annotated[
    list[str] | None,
    typer.Argument(help="Serial numbers, or ids of devices; whether or not they have enrolled."),
]
FromFile = Annotated[
    Path | None,
    typer.Option("--from-file", help="A file with one serial number a line.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]

_FAILED = 2
_COLUMNS = ("ALIAS", "PRIORITY", "DEVICES", "WAITING", "FILTER", "NAME")
_MANY = 10


@app.command("list")
def list_groups(
    org: Org = "",
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the groups of an organisation, by priority: the last one counts most."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        parameters = {"orgId": org_id(api, org)}
        groups = list(api.pages("/api/device-groups", "deviceGroups", ALL, **parameters))
        for line in (
            [json.dumps(g, ensure_ascii=False) for g in groups] if as_json else _table(groups)
        ):
            typer.echo(line)


@app.command()
def show(
    alias: Alias,
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show one group as JSON."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = group_of(api, org_id(api, org), alias)
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))


@app.command()
def create(
    alias: Annotated[str, typer.Argument(help="Its alias: small letters, digits and -.")],
    name: Annotated[str, typer.Option(help="A name for people; the alias when not given.")] = "",
    filter_: Annotated[
        str,
        typer.Option(
            "--filter", help="Which devices are in it, as 'labels.year = 7'; else they are listed."
        ),
    ] = "",
    priority: Annotated[
        int, typer.Option(help="Its place; behind all others when not given.", min=0)
    ] = 0,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Create a group: with a filter, or with members that are listed."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        body: dict[str, Any] = {
            "orgId": org_id(api, org),
            "alias": alias,
            "name": name or alias,
            "priority": priority,
            "description": description,
        }
        made = api.post("/api/device-groups", body | ({"filter": filter_} if filter_ else {}))
        typer.echo(
            f"Group {alias} has priority {made['priority']} and {_devices(made['members'])}."
        )


@app.command()
def edit(
    alias: Alias,
    name: Annotated[str, typer.Option(help="Another name.", show_default=False)] = "",
    new_alias: Annotated[
        str, typer.Option("--alias", help="Another alias.", show_default=False)
    ] = "",
    filter_: Annotated[
        str, typer.Option("--filter", help="Another filter.", show_default=False)
    ] = "",
    priority: Annotated[int, typer.Option(help="Another place.", min=0, show_default=False)] = 0,
    description: Annotated[
        str | None, typer.Option(help="What it is for; empty for nothing.", show_default=False)
    ] = None,
    yes: Yes = False,
    expect: Expect = None,
    dry_run: DryRun = False,
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Change a group; a filter that moves more than ten devices is confirmed by their number."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        organisation = org_id(api, org)
        found = group_of(api, organisation, alias)
        asked = {"name": name, "alias": new_alias, "filter": filter_, "priority": priority}
        changes: dict[str, Any] = {key: value for key, value in asked.items() if value}
        if description is not None:
            changes["description"] = description
        if not changes:
            raise CliError("say what to change; --help shows the options")
        if filter_ and not _moves(api, found, filter_, yes=yes, expect=expect, dry_run=dry_run):
            return
        if dry_run:
            typer.echo("Nothing was changed.")
            return
        # Not what somebody else has changed since it was looked at.
        made = api.patch(f"/api/device-groups/{found['id']}", changes | {"etag": found["etag"]})
        typer.echo(f"Group {made['alias']} has {_devices(made['members'])}{_computing(made)}.")


def _moves(
    api: Any, group: Any, text: str, *, yes: bool, expect: int | None, dry_run: bool
) -> bool:
    """Shows what a filter would change; answers whether to go on."""
    body = {"orgId": group["orgId"], "filter": text, "groupId": group["id"]}
    seen = api.post("/api/device-groups/preview", body)
    moved = seen["joining"] + seen["leaving"]
    typer.echo(
        f"{_devices(seen['matched'])} match;"
        f" {seen['joining']} would come, {seen['leaving']} leave.",
        err=True,
    )
    if moved <= _MANY or dry_run:
        return True
    return confirmed("move them", moved, yes=yes, expect=expect, dry_run=dry_run)


@app.command()
def delete(
    alias: Alias,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Delete a group; its devices stay."""
    from cli.confirm import need_terminal  # noqa: PLC0415

    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = group_of(api, org_id(api, org), alias)
        if not yes:
            need_terminal("--yes")
            question = f"Delete the group {alias}, which has {_devices(found['members'])}?"
            typer.confirm(question, abort=True, err=True)
        api.delete(f"/api/device-groups/{found['id']}", etag=found["etag"])
        typer.echo(f"Group {alias} is deleted.")


@app.command()
def members(
    alias: Alias,
    as_json: AsJson = False,
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show who is in a group; `waiting` has not enrolled yet, or is locked out."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = group_of(api, org_id(api, org), alias)
        listed = list(api.pages(f"/api/device-groups/{found['id']}/members", "members", ALL))
        if as_json:
            for member in listed:
                typer.echo(json.dumps(member, ensure_ascii=False))
            return
        rows = [
            (
                member["serial"],
                "waiting" if member["waiting"] else member["status"],
                member["model"],
                member["deviceId"],
            )
            for member in listed
        ]
        for line in table(("SERIAL", "STATUS", "MODEL", "ID"), rows):
            typer.echo(line)


@app.command()
def add(
    alias: Alias,
    serials: Serials = None,
    from_file: FromFile = None,
    dry_run: DryRun = False,
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Add devices to a group by serial number, before they enroll or after."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        _list(api, org, alias, "add", _named(serials, from_file), dry_run=dry_run)


@app.command()
def remove(
    alias: Alias,
    serials: Serials = None,
    from_file: FromFile = None,
    dry_run: DryRun = False,
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Take devices out of a group by serial number."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        _list(api, org, alias, "remove", _named(serials, from_file), dry_run=dry_run)


@app.command()
def preview(
    filter_: Annotated[str, typer.Argument(metavar="FILTER", help="As 'labels.year = 7'.")],
    alias: Annotated[
        str, typer.Option("--group", help="The group whose filter it would be.", show_default=False)
    ] = "",
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show which devices a filter matches, and who would come into a group or leave it."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        organisation = org_id(api, org)
        body = {"orgId": organisation, "filter": filter_}
        if alias:
            body["groupId"] = group_of(api, organisation, alias)["id"]
        seen = api.post("/api/device-groups/preview", body)
        kinds = ("matched", "joining", "leaving") if alias else ("matched",)
        rows = [
            (kind, member["serial"], member["model"], member["deviceId"])
            for kind in kinds
            for member in seen.get(f"{kind}Sample", [])
        ]
        for line in table(("", "SERIAL", "MODEL", "ID"), rows):
            typer.echo(line)
        counted = ", ".join(f"{seen[kind]} {kind}" for kind in kinds)
        typer.echo(f"{counted}. Nothing was changed.", err=True)


def _named(serials: list[str] | None, from_file: Path | None) -> list[str]:
    found = [*(serials or ()), *serials_in(from_file)]
    if not found:
        raise CliError("name serial numbers, or a file of them with --from-file")
    return found


def _list(api: Any, org: str, alias: str, what: str, names: list[str], *, dry_run: bool) -> None:
    found = group_of(api, org_id(api, org), alias)
    counts = dict.fromkeys(("joined", "waiting", "removed", "unchanged"), 0)
    unknown: list[str] = []
    for begin in range(0, len(names), AT_ONCE):
        body = {what: names[begin : begin + AT_ONCE], "validateOnly": dry_run}
        answer = api.post(f"/api/device-groups/{found['id']}/members", body)
        for kind in counts:
            counts[kind] += len(answer.get(kind, []))
        unknown += answer.get("unknown", [])
    said = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)
    typer.echo(f"{said or 'nothing to do'}.{' Nothing was changed.' if dry_run else ''}")
    if unknown:
        raise CliError(f"no device has these ids: {', '.join(unknown)}")


def _table(groups: list[Any]) -> list[str]:
    rows = [
        (
            group["alias"],
            str(group["priority"]),
            str(group["members"]),
            str(group["waiting"]) if "filter" not in group else "-",
            group.get("filter", "(listed)"),
            group["name"],
        )
        for group in groups
    ]
    return table(_COLUMNS, rows)


def _devices(number: int) -> str:
    return f"{number} device{'' if number == 1 else 's'}"


def _computing(group: Any) -> str:
    return "; the others follow" if group["state"] == "computing" else ""
