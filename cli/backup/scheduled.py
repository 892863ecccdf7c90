"""The commands `evergreen backup run`, `list`, `status`, `rehearse` and `schedule`.

What they need is in the environment (`EVERGREEN_BACKUP_…`), so that a unit of systemd, a container
and a CronJob run the same words.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.backup.commands import (
    Identity,
    PassphraseFile,
    Secrets,
    Tls,
    app,
    given_target,
    key_of,
    lock_of,
    place_of,
    run_on_database,
)
from cli.errors import CliError, told
from cli.options import DatabaseHome
from servicekit.build import VERSION

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from cli.backup.places import Directories, LocalHome
    from cli.backup.run import Done, Job
    from cli.backup.runs import Newest, Run
    from cli.backup.stores.store import Store, Stored
    from cli.migrate import Target

__all__ = ["app"]

_FAILED: Final = 1
_TERMINATED: Final = 143

TargetOption = Annotated[
    str,
    typer.Option(
        "--target",
        envvar="EVERGREEN_BACKUP_TARGET",
        help="Where backups are kept: /directory, sftp://user@host/path or s3://bucket/prefix.",
        show_default=False,
    ),
]
RecipientFile = Annotated[
    Path | None,
    typer.Option(
        "--recipient-file",
        envvar="EVERGREEN_BACKUP_RECIPIENT_FILE",
        help="File with public keys (age or SSH), one a line; their owners can restore.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")]


@app.command()
def run(
    target: TargetOption = "",
    keep: Annotated[
        str,
        typer.Option(
            envvar="EVERGREEN_BACKUP_KEEP",
            help="How many backups are kept: a number, or as daily=7,weekly=4,monthly=12.",
        ),
    ] = "14",
    passphrase_file: PassphraseFile = None,
    recipient_file: RecipientFile = None,
    home: DatabaseHome = None,
    secrets: Secrets = None,
    tls: Tls = None,
    configuration: Annotated[
        list[Path] | None,
        typer.Option("--config", help="A file to keep beside, such as .env; may be repeated."),
    ] = None,
) -> None:
    """Make one backup for the target: create, verify, store, remove old ones.

    The metrics and the doctor show how it ended. The target keeps what it has until the new backup
    is whole in it; backups of other installations, and other files, are never touched. Files that
    are not named are looked for in the directory EVERGREEN_BACKUP_SECRETS: recipients, passphrase,
    s3-credentials, s3-ca.crt, sftp-key, sftp-known-hosts.
    """
    with told(_FAILED), _stoppable():
        from cli.backup.fetch import working  # noqa: PLC0415
        from cli.backup.keep import Keep  # noqa: PLC0415
        from cli.backup.places import LocalHome  # noqa: PLC0415
        from cli.backup.run import Job  # noqa: PLC0415
        from cli.backup.stores.store import require_private, secret_file  # noqa: PLC0415

        recipients = recipient_file or secret_file("RECIPIENT_FILE", private=False)
        passphrase = passphrase_file or secret_file("PASSPHRASE_FILE")
        if passphrase is not None and passphrase.exists():
            require_private(passphrase)
        place = place_of(home, secrets, tls, configuration)
        store, kept, lock = store_of(target), Keep.read(keep), lock_of(passphrase, recipients)
        beside = place.home.root if isinstance(place, LocalHome) else None
        with working(beside) as directory:
            job = Job(store, lock, kept, VERSION, directory, _every(), typer.echo)
            done = run_on_database(_run(job, place))
        _tell(done, store)


async def _run(job: Job, place: LocalHome | Directories) -> Done:
    from cli.backup.places import LocalHome  # noqa: PLC0415
    from cli.backup.run import back_up  # noqa: PLC0415

    if isinstance(place, LocalHome):
        async with place.database() as database:
            return await back_up(job, place, database)
    return await back_up(job, place, given_target())


def _tell(done: Done, store: Store) -> None:
    header, rows = done.verified.header, sum(done.verified.rows.values())
    typer.echo(
        f"{done.stored.name}: {rows:,} rows and {len(header.files)} files in"
        f" {done.stored.bytes:,} bytes, verified, in {store.where}."
    )
    typer.echo(
        f"Everything that was acknowledged by {header.point:%Y-%m-%d %H:%M:%S.%f} UTC is in."
    )
    if done.pruned:
        typer.echo(f"Removed old ones: {', '.join(done.pruned)}.")
    if done.not_pruned:
        typer.echo(f"evergreen: old backups could not be removed: {done.not_pruned}", err=True)


def store_of(target: str) -> Store:
    """The store that is named.

    Raises:
        CliError: none is, or it is none.
    """
    from cli.backup.stores.address import open_store  # noqa: PLC0415
    from cli.backup.stores.store import Access  # noqa: PLC0415

    if not target.strip():
        raise CliError("say where backups are kept: EVERGREEN_BACKUP_TARGET, or --target")
    return open_store(target.strip(), Access.of_environment())


def _every() -> timedelta | None:
    """The interval of the schedule, or how old a backup may become where another program has it.

    Raises:
        CliError: it is none.
    """
    from deploy.schedule import Schedule  # noqa: PLC0415

    text = os.environ.get("EVERGREEN_BACKUP_SCHEDULE", "").strip()
    try:
        return Schedule.read(text).every if text else None
    except ValueError as error:
        raise CliError(f"EVERGREEN_BACKUP_SCHEDULE: {error}") from error


@app.command("list")
def list_(target: TargetOption = "", as_json: AsJson = False) -> None:
    """Show the backups in the target, the oldest first."""
    with told(_FAILED):
        store = store_of(target)
        found = store.all()
        if as_json:
            typer.echo(json.dumps({"backups": [_shown(one) for one in found]}))
            return
        for one in found:
            typer.echo(f"{one.at:%Y-%m-%d %H:%M:%S} UTC  {one.bytes:>15,} bytes  {one.name}")
        typer.echo(f"Backups in {store.where}: {len(found)}.")


def _shown(one: Stored) -> dict[str, Any]:
    return {
        "name": one.name,
        "bytes": one.bytes,
        "installation": one.tag,
        "at": one.at.isoformat(),
    }


@app.command()
def status(home: DatabaseHome = None, as_json: AsJson = False) -> None:
    """Show the last good backup and rehearsal, and what failed. Ends with 1 if a backup is late."""
    with told(_FAILED):
        from cli.migrate import find_target  # noqa: PLC0415
        from servicekit.ids import now  # noqa: PLC0415

        found = run_on_database(_newest(find_target(home)))
        late = found.backup is None or is_late(found.backup, now())
        if as_json:
            typer.echo(json.dumps(_as_json(found, late=late)))
        else:
            for what, run in (("backup", found.backup), ("rehearsal", found.rehearsal)):
                typer.echo(_line(f"Last good {what}", run))
            for what, failed, since in (
                ("backup", found.failed_backup, found.backup),
                ("rehearsal", found.failed_rehearsal, found.rehearsal),
            ):
                if failed and (since is None or failed.started_at > since.started_at):
                    typer.echo(_line(f"The last {what} failed", failed))
        if late:
            raise typer.Exit(_FAILED)


async def _newest(target: Target) -> Newest:
    from cli.backup.places import connected  # noqa: PLC0415
    from cli.backup.runs import newest_runs  # noqa: PLC0415

    async with connected(target) as connection:
        return await newest_runs(connection)


def is_late(run: Run, now: datetime) -> bool:
    """Whether the next backup should have been made by now."""
    return (now - run.started_at).total_seconds() > run.max_age_seconds


def _line(what: str, run: Run | None) -> str:
    if run is None:
        return f"{what}: none yet."
    size = f", {run.bytes:,} bytes in {run.target}" if run.bytes else ""
    detail = f": {run.detail}" if run.detail else ""
    return f"{what}: {run.started_at:%Y-%m-%d %H:%M:%S} UTC{size}{detail}"


def _as_json(found: Newest, *, late: bool) -> dict[str, Any]:
    def begun(run: Run | None) -> str | None:
        return run.started_at.isoformat() if run else None

    return {
        "late": late,
        "lastSuccess": begun(found.backup),
        "lastFailure": begun(found.failed_backup),
        "failure": found.failed_backup.detail if found.failed_backup else "",
        "bytes": found.backup.bytes if found.backup else 0,
        "target": found.backup.target if found.backup else "",
        "name": found.backup.name if found.backup else "",
        "lastRehearsal": begun(found.rehearsal),
        "rehearsal": found.rehearsal.detail if found.rehearsal else "",
    }


@app.command()
def rehearse(
    archive: Annotated[
        str,
        typer.Argument(
            help="The archive, as for restore; the newest one in the target when none is given.",
            show_default=False,
        ),
    ] = "",
    target: TargetOption = "",
    passphrase_file: PassphraseFile = None,
    identity: Identity = None,
    home: DatabaseHome = None,
) -> None:
    """Restore the newest backup into a home that is thrown away, start it, and count.

    The passphrase, or the private key, is looked for in the directory EVERGREEN_BACKUP_SECRETS when
    it is not named (passphrase, identity). The rehearsal listens on a port of its own, and ends
    within minutes. An installation on this machine keeps the time of its last rehearsal.
    """
    with told(_FAILED), _stoppable():
        from cli.backup.fetch import fetched  # noqa: PLC0415
        from cli.backup.rehearse import noted, rehearsed  # noqa: PLC0415
        from cli.backup.stores.store import secret_file  # noqa: PLC0415

        key = key_of(
            passphrase_file or secret_file("PASSPHRASE_FILE"),
            identity or secret_file("IDENTITY_FILE"),
        )
        if not archive:
            archive = store_of(target).where.split(" ")[0]
        with noted(home, archive) as note:
            with fetched(archive, None, lambda name: typer.echo(f"Rehearsing {name} ...")) as path:
                note.name, note.bytes = path.name, path.stat().st_size
                note.detail = rehearsed(path, key)
            typer.echo(note.detail)


@app.command()
def schedule() -> None:
    """Run backups, and rehearsals, when they are due, until it is stopped.

    EVERGREEN_BACKUP_SCHEDULE is a time of day (UTC) such as 02:30, or an interval such as 6h;
    EVERGREEN_BACKUP_REHEARSE_SCHEDULE the same for rehearsals. What was missed is made up for, and
    what failed is tried again.
    """
    from cli.backup.scheduler import main  # noqa: PLC0415

    raise typer.Exit(main())


@contextmanager
def _stoppable() -> Iterator[None]:
    """Lets SIGTERM end the command as an error does: what is half made is removed."""

    def stop(*_: object) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
