"""`evergreen devices` for many: lists, labels, and devices that are expected."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.confirm import DryRun
from cli.errors import CliError, told
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import ALL, AT_ONCE, Org, group_of, org_id, serials_in
from cli.session import session
from cli.tables import counted, table

if TYPE_CHECKING:
    from cli.client import Api

# Each command imports what it needs itself: `evergreen up`, which is in a hurry, loads this file.

_FAILED = 2
_PARTLY = 8
_DONE = {name: name for name in ("added", "changed", "unchanged", "refused")}
_TO_DO = {**_DONE, "added": "to add", "changed": "to change"}
_SHOWN = 20
_COLUMNS = ("SERIAL", "ASSET", "STATUS", "MODEL", "LABELS", "ID")
_EXPORTED = ("serial", "asset_tag", "model", "groups", "note")
_MADE_UP = ("unnamed:", "recovered:", "retired:")
"""What the registry calls devices whose serial number it does not know."""
_SET = re.compile(r"([^=]+)=(.+)", re.DOTALL)
_UNSET = re.compile(r"([a-z][a-z0-9_-]{0,62})-")


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    app.command("list")(list_devices)
    app.command("label")(label)
    app.command("import")(import_devices)
    app.command("export")(export_devices)


def list_devices(
    filter_: Annotated[
        str, typer.Option("--filter", help="As 'labels.room = 214'.", show_default=False)
    ] = "",
    status: Annotated[
        str,
        typer.Option(
            help="Only with this status: expected, pending, prepared, active, decommissioned.",
            show_default=False,
        ),
    ] = "",
    group: Annotated[
        str, typer.Option(help="Only in this group, by its alias.", show_default=False)
    ] = "",
    org: Org = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the registered and expected devices, newest first."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        parameters = {"filter": filter_, "status": status}
        if org or group:
            parameters["orgId"] = org_id(api, org)
        if group:
            parameters["groupId"] = group_of(api, parameters["orgId"], group)["id"]
        devices = list(api.pages("/api/registrations", "registrations", ALL, **parameters))
        if as_json:
            for device in devices:
                typer.echo(json.dumps(device, ensure_ascii=False))
            return
        for line in table(_COLUMNS, map(_cells, devices)):
            typer.echo(line)


def _cells(device: Any) -> tuple[str, ...]:
    labels = " ".join(f"{key}={value}" for key, value in sorted(device["labels"].items()))
    names = ("serial", "assetTag", "status", "model")
    return (*(device[name] for name in names), labels, device["id"])


def label(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="DEVICE... LABEL...",
            help="Serial numbers or ids; then KEY=VALUE to set a label, KEY- to remove one.",
        ),
    ],
    from_file: Annotated[
        Path | None,
        typer.Option(
            "--from-file", help="A file with one serial number a line.", show_default=False
        ),
    ] = None,
    asset_tag: Annotated[
        str | None, typer.Option(help="The school's number; empty for none.", show_default=False)
    ] = None,
    note: Annotated[
        str | None, typer.Option(help="A remark; empty for none.", show_default=False)
    ] = None,
    dry_run: DryRun = False,
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Label devices: all of them, or none when one is not known."""
    with told(_FAILED):
        labels = {found[1]: found[2] for word in words if (found := _SET.fullmatch(word))}
        removed = [found[1] for word in words if (found := _UNSET.fullmatch(word))]
        devices = [w for w in words if not _SET.fullmatch(w) and not _UNSET.fullmatch(w)]
        devices += serials_in(from_file)
        change: dict[str, Any] = {"labels": labels, "removeLabels": removed}
        change |= {} if asset_tag is None else {"assetTag": asset_tag}
        change |= {} if note is None else {"note": note}
        if not devices:
            raise CliError("name devices by their serial numbers or ids")
        if not labels and not removed and len(change) == 2:
            raise CliError("say what to change: KEY=VALUE, KEY-, --asset-tag or --note")
        rows = [change | {"device": device, "line": n} for n, device in enumerate(devices, 1)]
        with session(home, url, ca_file, email, password_file) as api:
            _send(
                api, "update", org_id(api, org), rows, skip_refused=False, dry_run=dry_run, what=""
            )


def import_devices(
    file: Annotated[Path, typer.Argument(help="A CSV or JSON file; - for standard input.")],
    mapped: Annotated[
        list[str] | None,
        typer.Option("--map", help="What a column is, as 'Colour=label:colour'."),
    ] = None,
    ignored: Annotated[
        list[str] | None, typer.Option("--ignore-columns", help="A column to leave out.")
    ] = None,
    clear_empty: Annotated[
        bool, typer.Option("--clear-empty", help="Empty cells remove what is known.")
    ] = False,
    create_groups: Annotated[
        bool, typer.Option("--create-groups", help="Create groups that are missing.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Import the rest when some rows are refused.")
    ] = False,
    dry_run: DryRun = False,
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Import a list of devices: those that are not known are expected, the others are changed.

    Columns are serial, asset_tag, model, groups (aliases with | between), room, label:KEY and note.
    An empty cell leaves what is known, `-` removes it. The same file again changes nothing.
    """
    from cli.roster import read_roster  # noqa: PLC0415

    with told(_FAILED):
        try:
            data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        except OSError as error:
            raise CliError(f"{file} cannot be read: {error.strerror}") from error
        roster = read_roster(
            data,
            mapped=dict(_meanings(mapped or [])),
            ignored=ignored or [],
            clear_empty=clear_empty,
        )
        typer.echo(f"{file}: {len(roster.rows)} rows, {roster.about}", err=True)
        with session(home, url, ca_file, email, password_file) as api:
            organisation = org_id(api, org)
            rows = list(roster.rows)
            _send(
                api,
                "import",
                organisation,
                rows,
                skip_refused=skip_bad,
                dry_run=dry_run,
                what="line ",
                new_groups=_missing_groups(api, organisation, rows) if create_groups else {},
            )


def export_devices(
    file: Annotated[
        Path | None, typer.Argument(help="The file; standard output when not given.")
    ] = None,
    filter_: Annotated[
        str, typer.Option("--filter", help="As 'labels.room = 214'.", show_default=False)
    ] = "",
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Write the devices as CSV that `devices import` takes: edit a column, and import the file.

    Machines without a serial number of their own are left out. Groups are those that list devices.
    """
    from cli.files import written  # noqa: PLC0415
    from servicekit.spreadsheet import BYTE_ORDER_MARK, LINE_BREAK, csv_line  # noqa: PLC0415

    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        parameters = {"orgId": org_id(api, org), "filter": filter_}
        found = api.pages("/api/registrations", "registrations", ALL, **parameters)
        devices = [device for device in found if not device["serial"].startswith(_MADE_UP)]
        groups = _groups(api, parameters["orgId"])
        keys = sorted({key for device in devices for key in device["labels"]})
        lines = [csv_line([*_EXPORTED, *(f"label:{key}" for key in keys)])]
        for device in sorted(devices, key=lambda device: str(device["serial"])):
            aliases = "|".join(sorted(groups.get(_key(device["serial"]), ())))
            said = (device["serial"], device["assetTag"], device["model"], aliases, device["note"])
            labels = (device["labels"].get(key, "") for key in keys)
            lines.append(csv_line([*said, *labels]))
        with written(file) as out:
            out.write((BYTE_ORDER_MARK + LINE_BREAK.join(lines) + LINE_BREAK).encode())
        typer.echo(f"{len(devices):,} devices.", err=True)


def _groups(api: Api, org: str) -> dict[str, list[str]]:
    """Serial number → the groups that list it."""
    found: dict[str, list[str]] = {}
    for group in api.pages("/api/device-groups", "deviceGroups", ALL, orgId=org):
        if "filter" not in group:
            path = f"/api/device-groups/{group['id']}/members"
            for member in api.pages(path, "members", ALL):
                found.setdefault(_key(member["serial"]), []).append(group["alias"])
    return found


def _key(serial: str) -> str:
    from servicekit.serials import serial_key  # noqa: PLC0415

    return serial_key(serial)


def _meanings(mapped: list[str]) -> Iterator[tuple[str, str]]:
    for pair in mapped:
        column, equals, what = pair.rpartition("=")
        known = {"serial", "assetTag", "model", "groups", "note"}
        what = "assetTag" if what == "asset_tag" else what
        if not equals or (what not in known and not what.startswith("label:")):
            raise CliError(f"--map {pair}: must be COLUMN=label:KEY, or COLUMN=serial and the like")
        yield column, what


def _missing_groups(api: Api, org: str, rows: list[Any]) -> Mapping[str, int]:
    """Aliases of groups that rows name and nobody made yet, with the number of rows of each."""
    wanted = Counter(alias for row in rows for alias in row.get("groups", []))
    known = {g["alias"] for g in api.pages("/api/device-groups", "deviceGroups", ALL, orgId=org)}
    return {alias: number for alias, number in wanted.items() if alias not in known}


def _without(row: Any, aliases: Mapping[str, int]) -> Any:
    """A row without groups that are not there yet."""
    if not aliases or "groups" not in row:
        return row
    kept = [alias for alias in row["groups"] if alias not in aliases]
    rest = {name: value for name, value in row.items() if name != "groups"}
    return {**rest, "groups": kept} if kept or not row["groups"] else rest


def _send(
    api: Api,
    what_to_do: str,
    org: str,
    rows: list[Any],
    *,
    skip_refused: bool,
    dry_run: bool,
    what: str,
    new_groups: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Sends rows, after all of them were looked at.

    Args:
        new_groups: groups that are made first, once no row is in the way.

    Raises:
        typer.Exit: some were refused.
    """
    path = f"/api/registrations/batch-{what_to_do}"
    parts = [rows[begin : begin + AT_ONCE] for begin in range(0, len(rows), AT_ONCE)]

    def send(part: list[Any], *, validate_only: bool) -> Any:
        checked = [_without(row, new_groups) for row in part] if validate_only else part
        body = {"orgId": org, "rows": checked, "skipRefused": skip_refused}
        return api.post(path, body | {"validateOnly": validate_only})

    seen = [send(part, validate_only=True) for part in parts]
    refused = [r for answer in seen for r in answer["results"] if r["result"] == "REFUSED"]
    for result in refused[:_SHOWN]:
        place = f"{what}{result['line']}  " if what else ""
        field = f"{result['field']}: " if result["field"] not in {"", "device"} else ""
        typer.echo(f"{place}{result['serial']}  {field}{result['message']}", err=True)
    if len(refused) > _SHOWN:
        typer.echo(f"and {len(refused) - _SHOWN} more", err=True)
    does = not dry_run and (skip_refused or not refused)
    for alias, number in new_groups.items():
        if does:
            api.post("/api/device-groups", {"orgId": org, "alias": alias, "name": alias})
            typer.echo(f"Group {alias} is created.", err=True)
        else:
            typer.echo(f"Group {alias} would be created, for {counted(number, 'row')}.", err=True)
    done = [send(part, validate_only=False) for part in parts] if does else seen
    counts = {name: sum(answer[name] for answer in done) for name in _DONE}
    names = _DONE if does else _TO_DO
    said = ", ".join(f"{number:,} {names[name]}" for name, number in counts.items())
    typer.echo(f"{said}.{'' if does else ' Nothing was changed.'}")
    if counts["refused"]:
        raise typer.Exit(_PARTLY if does else _FAILED)
