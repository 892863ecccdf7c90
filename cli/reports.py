"""`evergreen reports`: reports that are kept and signed, and verified without a server."""

from __future__ import annotations

import json
import time
from calendar import day_name
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.confirm import need_terminal
from cli.errors import CliError, told
from cli.files import written
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import tenant_id
from cli.session import session
from cli.tables import moment, table

if TYPE_CHECKING:
    from auditlog.reports import ReportManifest
    from cli.client import Api

# Each command imports what it needs itself: `evergreen up`, which is in a hurry, loads this file.

app = typer.Typer(
    name="reports",
    help="Make reports that are kept and signed, and verify them.",
    no_args_is_help=True,
)
schedules = typer.Typer(
    name="schedules", help="Reports that are made by themselves.", no_args_is_help=True
)
app.add_typer(schedules)

_FAILED: Final = 2
_TAMPERED: Final = 1
_PATH: Final = "/api/reports"
_SCHEDULES: Final = "/api/report-schedules"
_ALL: Final = 1_000_000
_PAUSE_SECONDS: Final = 0.5
_PART: Final = 1 << 20
_COLUMNS: Final = ("AS OF", "KIND", "STATUS", "ROWS", "REQUESTED BY", "ID")
_SCHEDULE_COLUMNS: Final = ("KIND", "EVERY", "AT", "NEXT (UTC)", "LAST (UTC)", "NOTIFY", "ID")

Org = Annotated[
    str,
    typer.Option(
        "--org", help="The tenant, by its code or id, with all below it; yours when not given."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Kind = Annotated[str, typer.Argument(help="The kind; `evergreen reports kinds` shows all.")]
Parameter = Annotated[
    list[str] | None,
    typer.Option("--parameter", "-p", help="What it is asked for: NAME=VALUE, such as days=30."),
]
Format = Annotated[
    list[str] | None, typer.Option("--format", help="csv, json or html; all when not given.")
]
Report = Annotated[str, typer.Argument(help="The report's id.")]
Schedule = Annotated[str, typer.Argument(help="The schedule's id.")]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="The folder to write to; it is made if needed.")
]


@app.command()
def kinds(
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show the kinds of reports, and what each can be asked for."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = api.get("/api/report-kinds")["kinds"]
        rows = [(one["name"], ", ".join(one["parameters"]) or "-", one["title"]) for one in found]
        _show(found if as_json else None, table(("KIND", "PARAMETERS", "TITLE"), rows))


@app.command()
def create(
    kind: Kind,
    parameter: Parameter = None,
    form: Format = None,
    org: Org = "",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Wait until it is ready, and write it to this folder."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is ready.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Make a report."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        made = api.post(_PATH, _body(kind, parameter, form, tenant_id(api, org)))
        if output is None and not wait:
            typer.echo(f"The report is being made: {made['id']}")
            typer.echo(f"evergreen reports download {made['id']} -o FOLDER", err=True)
            return
        ready = _ready(api, made["id"])
        typer.echo(f"The report is ready, with {ready.get('rows', 0)} rows: {ready['id']}")
        if output is not None:
            _download(api, ready, output)


@app.command("list")
def list_reports(
    kind: Annotated[str, typer.Option(help="Only this kind.")] = "",
    org: Org = "",
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of reports.")] = 50,
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show reports, the newest first."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = list(api.pages(_PATH, "reports", limit, kind=kind, orgId=tenant_id(api, org)))
        _show(found if as_json else None, table(_COLUMNS, [_row(one) for one in found]))


@app.command()
def show(
    report: Report,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show one report as JSON."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        typer.echo(json.dumps(api.get(f"{_PATH}/{report}"), ensure_ascii=False, indent=2))


@app.command()
def download(
    report: Report,
    output: Output = Path(),
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Write all files of a report, and its manifest, to a folder."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        _download(api, api.get(f"{_PATH}/{report}"), output)


@app.command()
def delete(
    report: Report,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Delete a report with its files."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = api.get(f"{_PATH}/{report}")
        if not yes:
            need_terminal("--yes")
            if not typer.confirm(f"Delete the report {found['kind']} of {found['asOf']}?"):
                raise CliError("nothing was changed")
        api.delete(f"{_PATH}/{report}")
        typer.echo("The report is deleted.")


@app.command()
def verify(
    manifest: Annotated[Path, typer.Argument(help="The report's manifest.txt.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="The files to check; all of the manifest, beside it, if not given."),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(help="The installation's audit keys in PEM, fetched before."),
    ] = None,
) -> None:
    """Check a report without a server: 0 it is as it was made, 1 it was changed, 2 not checked."""
    from auditlog.notes import NoteError  # noqa: PLC0415
    from auditlog.reports import ReportManifest  # noqa: PLC0415
    from cli.audit_report import never_mistaken, read_keys  # noqa: PLC0415
    from cli.client import read_text  # noqa: PLC0415

    with told(_FAILED), never_mistaken():
        if public_key is None:
            raise CliError(
                "give the installation's public keys with --public-key;"
                " /api/v1/audit-keys.pem has them"
            )
        keys = read_keys(public_key)
        try:
            found = ReportManifest.read(read_text(manifest))
        except NoteError as broken:
            raise CliError(f"{manifest} is no manifest of a report: {broken}") from broken
        signed = found.signed_by(keys)
        if signed is None:
            raise CliError("none of the public keys signed the manifest; give the right ones")
        paths = files or [manifest.parent / file.name for file in found.files]
        # Without a good signature, its digests say nothing of the files.
        faults = (
            _faults(found, paths)
            if signed
            else ["the manifest was changed: its signature is not good"]
        )
    for fault in faults:
        typer.echo(f"TAMPERED: {fault}")
    if faults:
        raise typer.Exit(_TAMPERED)
    typer.echo(
        f"The report {found.kind} of {found.as_of} is as {', '.join(found.signers(keys))} made it:"
        f" {found.rows} rows, {len(paths)} {'file' if len(paths) == 1 else 'files'}."
    )
    typer.echo(f"Asked for with {found.parameters}, read {found.read_from} to {found.read_until}.")
    if found.cryptography:
        typer.echo(f"Made and signed in {found.cryptography}.")


@schedules.command("create")
def create_schedule(
    kind: Kind,
    every: Annotated[str, typer.Option(help="day, week or month.")],
    on: Annotated[int, typer.Option(help="Of a week 1 (Monday) to 7, of a month 1 to 31.")] = 1,
    hour: Annotated[int, typer.Option(help="At which hour.")] = 3,
    time_zone: Annotated[str, typer.Option(help="Such as Europe/Berlin.")] = "UTC",
    keep: Annotated[int, typer.Option(help="How many of its reports are kept.")] = 12,
    parameter: Parameter = None,
    form: Format = None,
    org: Org = "",
    notify: Annotated[
        list[str] | None,
        typer.Option(
            help="An address that gets a mail when one is ready or fails; repeat it for more."
        ),
    ] = None,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Have reports made by themselves."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        rhythm = {
            "every": every,
            "on": 0 if every == "day" else on,
            "hour": hour,
            "timeZone": time_zone,
            "keep": keep,
            "notify": list(notify or []),
        }
        made = api.post(_SCHEDULES, _body(kind, parameter, form, tenant_id(api, org)) | rhythm)
        typer.echo(f"The first report is made at {made['nextRunAt']}: schedule {made['id']}")


@schedules.command("list")
def list_schedules(
    org: Org = "",
    as_json: AsJson = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show all schedules."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = list(api.pages(_SCHEDULES, "reportSchedules", _ALL, orgId=tenant_id(api, org)))
        rows = [_schedule_row(one) for one in found]
        _show(found if as_json else None, table(_SCHEDULE_COLUMNS, rows))


@schedules.command()
def edit(
    schedule: Schedule,
    every: Annotated[str, typer.Option(help="day, week or month.")] = "",
    on: Annotated[
        int | None, typer.Option(help="Of a week 1 (Monday) to 7, of a month 1 to 31.")
    ] = None,
    hour: Annotated[int | None, typer.Option(help="At which hour.")] = None,
    time_zone: Annotated[str, typer.Option(help="Such as Europe/Berlin.")] = "",
    keep: Annotated[int | None, typer.Option(help="How many of its reports are kept.")] = None,
    parameter: Parameter = None,
    form: Format = None,
    notify: Annotated[
        list[str] | None,
        typer.Option(help="In the place of who gets a mail now; repeat it for more."),
    ] = None,
    notify_nobody: Annotated[bool, typer.Option(help="Nobody gets a mail any more.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Change a schedule; what is not given stays. Parameters are replaced as a whole."""
    wanted: dict[str, Any] = {
        "every": every or None,
        "on": on,
        "hour": hour,
        "timeZone": time_zone or None,
        "keep": keep,
        "formats": form or None,
        "notify": notify or None,
        "notifyNobody": notify_nobody or None,
    }
    body = {name: value for name, value in wanted.items() if value is not None}
    with told(_FAILED):
        if parameter:
            body["parameters"] = dict(_parameter(text) for text in parameter)
        if not body:
            raise CliError("say what to change: `evergreen reports schedules edit --help` has all")
        with session(home, url, ca_file, email, password_file) as api:
            found = api.patch(f"{_SCHEDULES}/{schedule}", body)
        typer.echo(
            f"The next report is made at {found.get('nextRunAt') or '-'};"
            f" mails go to {', '.join(found.get('notify', [])) or 'nobody'}."
        )


@schedules.command()
def enable(
    schedule: Schedule,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Have its reports made again."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        found = api.patch(f"{_SCHEDULES}/{schedule}", {"enabled": True})
        typer.echo(f"The next report is made at {found['nextRunAt']}.")


@schedules.command()
def disable(
    schedule: Schedule,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Make no more of its reports; those that are there stay."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        api.patch(f"{_SCHEDULES}/{schedule}", {"enabled": False})
        typer.echo("No more reports are made until it is enabled.")


@schedules.command("delete")
def delete_schedule(
    schedule: Schedule,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Delete a schedule; its reports stay until they expire."""
    with told(_FAILED), session(home, url, ca_file, email, password_file) as api:
        api.delete(f"{_SCHEDULES}/{schedule}")
        typer.echo("The schedule is deleted.")


def _show(found: Sequence[Any] | None, lines: Sequence[str]) -> None:
    for line in lines if found is None else (json.dumps(o, ensure_ascii=False) for o in found):
        typer.echo(line)


def _body(
    kind: str, parameter: Sequence[str] | None, form: Sequence[str] | None, org: str
) -> dict[str, Any]:
    body: dict[str, Any] = {"kind": kind, "formats": list(form or [])}
    if parameter:
        body["parameters"] = dict(_parameter(text) for text in parameter)
    if org:
        body["orgId"] = org
    return body


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise CliError(f"--parameter is NAME=VALUE, not {text!r}")
    if value in {"true", "false"}:
        return name, value == "true"
    return name, int(value) if value.isdecimal() else value


def _ready(api: Api, report_id: str) -> Any:
    """The report, when it is ready.

    Raises:
        CliError: it failed.
    """
    while True:
        found = api.get(f"{_PATH}/{report_id}")
        if found["status"] == "ready":
            return found
        if found["status"] == "failed":
            raise CliError(f"the report failed: {found.get('error', '')}")
        time.sleep(_PAUSE_SECONDS)


def _download(api: Api, report: Any, folder: Path) -> None:
    if report["status"] != "ready":
        raise CliError(f"the report is {report['status']}: {report.get('error', '')}".rstrip(": "))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CliError(f"{folder} cannot be made: {error.strerror}") from error
    for file in report["files"]:
        # The server names it: nothing but a name in this folder is taken.
        name = Path(file["name"]).name
        path = folder / name
        count = 0
        with written(path) as out:
            for part in api.stream(f"{_PATH}/{report['id']}/files/{name}"):
                out.write(part)
                count += len(part)
            if count != file.get("bytes", 0):
                raise CliError(f"{name} ended early and is not whole; try again")
        typer.echo(str(path))


def _faults(manifest: ReportManifest, paths: Sequence[Path]) -> list[str]:
    """What is wrong with files.

    Raises:
        CliError: one cannot be read, or is none of the report.
    """
    from servicekit.security.digests import Sha256  # noqa: PLC0415

    known = {file.name: file for file in manifest.files}
    faults = []
    for path in paths:
        file = known.get(path.name)
        if file is None:
            raise CliError(f"{path} is no file of this report: {', '.join(known)}")
        digest = Sha256()
        try:
            with path.open("rb") as content:
                while part := content.read(_PART):
                    digest.update(part)
        except OSError as error:
            raise CliError(f"{path} cannot be read: {error.strerror}") from error
        if digest.hexdigest() != file.sha256:
            faults.append(f"{path} is not what the report had under this name")
    return faults


def _row(one: Any) -> list[str]:
    return [
        one["asOf"],
        one["kind"],
        one["status"] + (f" ({one['error']})" if one.get("error") else ""),
        str(one.get("rows", 0)),
        one["requestedBy"],
        one["id"],
    ]


def _schedule_row(one: Any) -> list[str]:
    day = one.get("on", 0)
    days = {"week": f" on {day_name[(day - 1) % 7]}", "month": f" on day {day}"}
    last = moment(one.get("lastRunAt"))
    return [
        one["kind"],
        one["every"] + days.get(one["every"], ""),
        f"{one.get('hour', 0)}:00 {one['timeZone']}",
        moment(one.get("nextRunAt")),
        last + (f" ({one['lastError']})" if one.get("lastError") else ""),
        ", ".join(one.get("notify", [])) or "-",
        one["id"],
    ]
