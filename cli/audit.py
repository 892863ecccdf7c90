"""`evergreen audit`: reads, exports and verifies the audit log through the public API."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from cli import audit_retention
from cli.audit_redact import redact, redact_again
from cli.audit_witness import Required, witness
from cli.durations import rfc3339
from cli.errors import CliError, told
from cli.files import written
from cli.options import CaFile, Email, Home, PasswordFile, Url
from cli.places import tenant_id
from cli.session import session
from cli.tables import counted, moment, printable, table

if TYPE_CHECKING:
    from cli.client import Api

# Each command imports what it needs itself: `evergreen up`, which is in a hurry, loads this file.

app = typer.Typer(
    name="audit",
    help="Read, export and verify the audit log.",
    no_args_is_help=True,
)

app.add_typer(audit_retention.retention)
app.add_typer(audit_retention.hold)
app.command()(audit_retention.archive)
app.command()(audit_retention.prune)

Org = Annotated[
    str,
    typer.Option(
        "--org", help="Only this tenant, by its code or id; all you can see if not given."
    ),
]
After = Annotated[
    str, typer.Option("--after", help="Only from then on: 2026-08-31, or 2026-08-31T08:00:00Z.")
]
Before = Annotated[
    str, typer.Option("--before", help="Only before then: 2026-08-31, or 2026-08-31T08:00:00Z.")
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="File to write to; standard output if not given."),
]

_FAILED = 2
_MOST_PRUNED = 10
"""Logs of which entries were pruned that are named."""
_END_BYTES = 100
_END = {
    "jsonl": re.compile(rb'(?:^|\n)\{"end":\{"entries":\d+\}\}\n$'),
    "csv": re.compile(rb"\r\n$"),
}
"""How an export ends, by its format."""


@app.command("list")
def list_entries(
    org: Org = "",
    actor: Annotated[str, typer.Option(help="Only by this user: an e-mail address or an id.")] = "",
    action: Annotated[
        list[str] | None,
        typer.Option(help="Only this action, such as policy.published or policy.*; repeat it."),
    ] = None,
    resource: Annotated[str, typer.Option(help="Only this resource, such as policies/<id>.")] = "",
    search: Annotated[
        str, typer.Option(help="How an actor, a resource or its name (a serial, …) begins.")
    ] = "",
    related_to: Annotated[
        str,
        typer.Option(help="Only about this resource, or what concerns it, too: devices/<id>."),
    ] = "",
    actor_kind: Annotated[
        str, typer.Option(help="Only by a user, device, system, service or anonymous.")
    ] = "",
    outcome: Annotated[str, typer.Option(help="Only success, refused or failed.")] = "",
    source_ip: Annotated[str, typer.Option(help="Only calls from this address.")] = "",
    request_id: Annotated[str, typer.Option(help="Only the call with this id.")] = "",
    after: After = "",
    before: Before = "",
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of entries.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show who did what, the newest first."""
    with told(_FAILED):
        with session(home, url, ca_file, email, password_file) as api:
            answers = list(
                api.answers(
                    "/api/audit",
                    "entries",
                    limit,
                    orgId=tenant_id(api, org),
                    actor=actor,
                    actions=action or [],
                    resource=resource,
                    search=search,
                    relatedTo=related_to,
                    actorKind=actor_kind,
                    outcome=outcome,
                    sourceIp=source_ip,
                    requestId=request_id,
                    occurredAfter=rfc3339(after, "--after"),
                    occurredBefore=rfc3339(before, "--before"),
                )
            )
        entries = [entry for answer in answers for entry in answer["entries"]]
        if as_json:
            for entry in entries:
                typer.echo(json.dumps(entry, ensure_ascii=False))
        else:
            _show(entries)
        # The last page of all says it.
        _say_pruned(answers[-1])


def _say_pruned(answer: dict[str, Any]) -> None:
    """Says, beside the list, which entries are missing at its end."""
    found = answer.get("pruned", [])[:_MOST_PRUNED]
    for one in found:
        name = printable(str(one.get("orgName") or one["orgId"]))
        typer.echo(
            f"{name}: entries up to no. {one['sequence']}, of {one['lastOccurredAt'][:10]} and"
            f" before, were pruned on {one['prunedAt'][:10]}; archive {one['archiveSha256']}",
            err=True,
        )
    if left := int(answer.get("prunedChains", 0)) - len(found):
        typer.echo(f"… and those of {counted(left, 'other log')}.", err=True)


def _show(entries: list[dict[str, Any]]) -> None:
    if not entries:
        typer.echo("No entries.")
        return
    rows = [
        (
            moment(entry.get("occurredAt")),
            str(entry.get("actor", "")),
            str(entry.get("action", "")),
            _named(entry),
            str(entry.get("sourceIp", "")),
        )
        for entry in entries
    ]
    for line in table(("TIME (UTC)", "ACTOR", "ACTION", "RESOURCE", "FROM"), rows):
        typer.echo(line)


def _named(entry: dict[str, Any]) -> str:
    """What an entry is about, by the name that people knew it by; by its id where none was told."""
    resource, name = str(entry.get("resource", "")), str(entry.get("resourceName", ""))
    kind, separator, rest = resource.partition("/")
    return f"{kind} {name}" if name and separator and "/" not in rest else resource


@app.command()
def export(
    output: Output = None,
    kind: Annotated[
        str, typer.Option("--format", help="jsonl (it can be verified) or csv (for people).")
    ] = "jsonl",
    org: Org = "",
    after: After = "",
    before: Before = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Write the log to a file, with all that is needed to verify it."""
    with (
        told(_FAILED),
        session(home, url, ca_file, email, password_file) as api,
        written(output) as file,
    ):
        end = b""
        for part in api.stream(
            "/api/audit/export",
            format=kind,
            orgId=tenant_id(api, org),
            occurredAfter=rfc3339(after, "--after"),
            occurredBefore=rfc3339(before, "--before"),
        ):
            file.write(part)
            end = (end + part)[-_END_BYTES:]
        # A proxy on the way may hide that the connection broke off.
        if not _END.get(kind, _END["jsonl"]).search(end):
            raise CliError("the export ended early and is not whole; try again")


app.command()(witness)
app.command()(redact)
app.command("redact-again")(redact_again)


@app.command()
def checkpoint(
    output: Output = None,
    tree: Annotated[
        bool,
        typer.Option("--tree", help="That of the tree over all entries: a signed note (C2SP)."),
    ] = False,
    witnessed: Annotated[
        bool,
        typer.Option(
            "--witnessed",
            help="Of the tree, one that enough of the installation's witnesses signed.",
        ),
    ] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Write the signed ends of all chains, or of the tree: keep this elsewhere, for `verify`."""
    with told(_FAILED):
        with session(home, url, ca_file, email, password_file) as api:
            if witnessed:
                text = api.get_text("/api/audit/log/checkpoint", witnessed="true")
            else:
                text = api.get_text("/api/audit/log/checkpoint") if tree else _checkpoint(api)
        with written(output) as file:
            file.write(text.encode())


def _checkpoint(api: Api) -> str:
    from auditlog.chain import Checkpoint, CheckpointError  # noqa: PLC0415

    try:
        return Checkpoint.read(json.dumps(api.get("/api/audit/checkpoint"))).write()
    except CheckpointError as broken:
        raise CliError(f"the installation answered no checkpoint: {broken}") from broken


@app.command()
def follow(
    file: Annotated[Path, typer.Argument(help="Where the checkpoint of the tree is kept.")],
    public_key: Annotated[
        Path | None,
        typer.Option(
            help="File with the keys of the checkpoints; asked from the API if not given."
        ),
    ] = None,
    witnesses: Required = None,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Put the newest checkpoint of the tree into a file, if it continues the one that is there.

    For a timer on another machine: it needs no export. Ends with 0 when the tree only grew, 1 when
    something that the kept checkpoint knows was changed or removed (the file stays as it is), 2
    when that could not be checked.
    """
    from auditlog.keys import read_keys  # noqa: PLC0415
    from auditlog.notes import TreeCheckpoint  # noqa: PLC0415
    from cli import audit_report, audit_tree  # noqa: PLC0415
    from cli.audit_cosigned import follow_witnessed  # noqa: PLC0415

    report = audit_report.Report(typer.echo)
    with told(audit_report.NOT_CHECKED), audit_report.never_mistaken():
        kept = audit_report.Kept.read([file]).trees if file.exists() else ()
        keys = audit_report.read_keys(public_key) if public_key else []
        with session(home, url, ca_file, email, password_file) as api:
            keys = keys or read_keys(api.get_text("/api/v1/audit-keys.pem"))
            if witnesses is not None:
                newest = follow_witnessed(api, keys, kept, witnesses, report)
            else:
                newest = TreeCheckpoint.read(api.get_text("/api/audit/log/checkpoint"))
                newest = audit_tree.continues(
                    newest, keys, kept, report, partial(audit_tree.consistency, api)
                )
        if report.exit_code == audit_report.VERIFIED:
            with written(file) as out:
                out.write(newest.write().encode())
            typer.echo(f"The tree has {newest.size:,} leaves, and only grew.")
    raise typer.Exit(report.exit_code)


@app.command()
def timestamp(
    file: Annotated[Path, typer.Argument(help="What is to be stamped, such as a checkpoint.")],
    authority: Annotated[
        str, typer.Option("--authority", help="The URL of an authority of RFC 3161.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write to; FILE.tsr if not given."),
    ] = None,
) -> None:
    """Have a timestamp authority sign that a file is there now; `openssl ts -verify` checks it."""
    from cli.audit_timestamp import stamp  # noqa: PLC0415

    with told(_FAILED):
        try:
            data = file.read_bytes()
        except OSError as error:
            raise CliError(f"{file} cannot be read: {error.strerror}") from error
        reply = stamp(authority, data)
        with written(output or file.with_name(f"{file.name}.tsr")) as out:
            out.write(reply)


@app.command()
def prove(
    entry: Annotated[str, typer.Argument(help="The entry, by its id.")],
    output: Output = None,
    archive: Annotated[
        Path | None,
        typer.Option(help="The archive that has it, for an entry that was pruned."),
    ] = None,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Write the proof that an entry is in the log: a file that needs nothing else of it."""
    with told(_FAILED):
        with session(home, url, ca_file, email, password_file) as api:
            if archive is not None:
                text = _prove_archived(api, archive, entry)
            else:
                text = api.get_text(f"/api/audit/entries/{quote(entry, safe='')}/proof")
        with written(output) as file:
            file.write(text.encode())


def _prove_archived(api: Api, directory: Path, entry: str) -> str:
    from auditlog.archive import Archive, ArchiveError  # noqa: PLC0415
    from cli.audit_prove import prove as prove_archived  # noqa: PLC0415

    try:
        archive = Archive.open(directory)
    except ArchiveError as broken:
        raise CliError(str(broken)) from broken
    return prove_archived(api, archive, entry).write()


@app.command("check-proof")
def check_proof(
    proof: Annotated[Path, typer.Argument(help="What `evergreen audit prove` wrote.")],
    public_key: Annotated[
        Path | None,
        typer.Option(help="File with the keys of the checkpoints; no connection is made then."),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="A checkpoint of the tree, kept outside; may be repeated."),
    ] = None,
    witnesses: Required = None,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Check a proof of an entry, and say what the entry says.

    Ends with 0 when it is proved, 1 when it is not, 2 when something could not be checked.
    """
    from auditlog.keys import read_keys  # noqa: PLC0415
    from auditlog.notes import NoteError, Proof  # noqa: PLC0415
    from cli import audit_report, audit_tree  # noqa: PLC0415
    from cli.audit_cosigned import require  # noqa: PLC0415
    from cli.client import read_text  # noqa: PLC0415

    report = audit_report.Report(typer.echo)
    with told(audit_report.NOT_CHECKED), audit_report.never_mistaken():
        try:
            found = Proof.read(read_text(proof))
        except NoteError as broken:
            raise CliError(f"{proof} is no proof: {broken}") from broken
        kept = audit_report.Kept.read(checkpoint or ()).trees
        require([("in the proof", found.checkpoint)], witnesses, report)
        if public_key is not None:
            audit_tree.check_proof(found, audit_report.read_keys(public_key), kept, report)
        else:
            with session(home, url, ca_file, email, password_file) as api:
                keys = read_keys(api.get_text("/api/v1/audit-keys.pem"))
                audit_tree.check_proof(
                    found, keys, kept, report, partial(audit_tree.consistency, api)
                )
        for line in audit_tree.told_of(found, report):
            typer.echo(line)
    raise typer.Exit(report.exit_code)


@app.command()
def keys(
    output: Output = None,
    notes: Annotated[
        bool, typer.Option("--notes", help="In the form of signed notes, for other programs.")
    ] = False,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Write the public keys that checkpoints are signed with: keep them with the checkpoints."""
    with told(_FAILED):
        with session(home, url, ca_file, email, password_file) as api:
            text = api.get_text(f"/api/v1/audit-keys.{'vkey' if notes else 'pem'}")
        with written(output) as file:
            file.write(text.encode())


@app.command()
def verify(
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="A checkpoint kept outside; may be repeated."),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(
            help="File with the keys of the checkpoints; asked from the API if not given."
        ),
    ] = None,
    from_export: Annotated[
        Path | None,
        typer.Option(
            help="Verify this exported file, or the archive in this directory, without any"
            " connection."
        ),
    ] = None,
    archive: Annotated[
        list[Path] | None,
        typer.Option(help="A directory with an archive of what was pruned; may be repeated."),
    ] = None,
    part: Annotated[
        bool,
        typer.Option(
            "--part",
            help="The exported file is of some times alone: what is before and behind them is not"
            " looked for.",
        ),
    ] = False,
    witnesses: Required = None,
    org: Org = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Find every change, removal or reordering in the log.

    Recomputes every hash, and compares the chains with the checkpoints that were kept and, online,
    with the one that the installation states now. Ends with 0 when everything fits, 1 when the
    log was tampered with, 2 when something could not be checked.
    """
    from auditlog.chain import Checkpoint  # noqa: PLC0415
    from auditlog.keys import read_keys  # noqa: PLC0415
    from cli import audit_report  # noqa: PLC0415
    from cli import audit_verify as check  # noqa: PLC0415
    from cli.audit_cosigned import require  # noqa: PLC0415
    from cli.client import lines  # noqa: PLC0415

    report = audit_report.Report(typer.echo)
    with told(audit_report.NOT_CHECKED), audit_report.never_mistaken():
        kept = audit_report.Kept.read(checkpoint or ())
        require(kept.trees, witnesses, report)
        trusted_keys = audit_report.read_keys(public_key) if public_key else []
        if from_export is not None and from_export.is_dir():
            anchors = check.anchors(kept, trusted_keys, report)
            for whole in check.open_archives([from_export], trusted_keys, report):
                done = check.run_archive(whole, anchors, trusted_keys, report)
                break
            else:
                raise typer.Exit(report.exit_code)
        elif from_export is not None:
            anchors = check.anchors(kept, trusted_keys, report)
            archives = check.open_archives(archive or (), trusted_keys, report)
            exported = check.read_lines(from_export)
            done = check.run(exported, anchors, org, report, part=part, archives=archives)
        else:
            with session(home, url, ca_file, email, password_file) as api:
                if not trusted_keys:
                    trusted_keys = read_keys(api.get_text("/api/v1/audit-keys.pem"))
                # Before the export, which must then go at least as far.
                now = Checkpoint.read(_checkpoint(api))
                anchors = check.anchors(kept, trusted_keys, report, now)
                archives = check.open_archives(archive or (), trusted_keys, report)
                # The tree, too: an export must not wait while it is fetched.
                tree = check.published(api, anchors.trees, report)
                org = tenant_id(api, org)
                stream = lines(api.stream("/api/audit/export", orgId=org))
                done = check.run(stream, anchors, org, report, published=tree, archives=archives)
        for line in check.summary(report, done, anchors, kept=bool(kept.heads or kept.trees)):
            typer.echo(line)
    raise typer.Exit(report.exit_code)
