"""The commands `evergreen backup create`, `verify` and `restore`; `scheduled` has the others."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from cli.errors import CliError, told
from cli.options import MIGRATE_URL, REDACTED_FILE, DatabaseHome, home_of
from servicekit.build import VERSION

if TYPE_CHECKING:
    from cli.backup.aftermath import Outcome
    from cli.backup.create import Created
    from cli.backup.crypt import Key, Lock
    from cli.backup.facts import Facts
    from cli.backup.places import Directories, LocalHome
    from cli.backup.verify import Verified
    from servicekit.data.backup import Connection

T = TypeVar("T")

app = typer.Typer(
    name="backup", help="Back up an installation, and restore it.", no_args_is_help=True
)
_PASSPHRASE_FILE: Final = "EVERGREEN_BACKUP_PASSPHRASE_FILE"
_FAILED: Final = 1

Secrets = Annotated[
    Path | None,
    typer.Option("--secrets", help=f"With {MIGRATE_URL}: directory of the keys' files."),
]
Tls = Annotated[
    Path | None,
    typer.Option("--tls", help=f"With {MIGRATE_URL}: directory of ca.crt, ca.key, server.crt, …"),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        envvar=_PASSPHRASE_FILE,
        help="File whose first line is the passphrase of the archive, or of the private key.",
    ),
]
Identity = Annotated[
    Path | None,
    typer.Option("--identity", help="File with the private key (age or SSH) for the archive."),
]
Archive = Annotated[
    str,
    typer.Argument(
        help="The archive: a file, s3://bucket/prefix/name or sftp://user@host/path/name; without"
        " a name, or as a directory, the newest one there.",
        show_default=False,
    ),
]


@app.command()
def create(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The archive; - for the output."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    recipient_file: Annotated[
        Path | None,
        typer.Option(
            "--recipient-file",
            help="File with public keys (age or SSH), one a line; their owners can restore.",
        ),
    ] = None,
    home: DatabaseHome = None,
    secrets: Secrets = None,
    tls: Tls = None,
    configuration: Annotated[
        list[Path] | None,
        typer.Option("--config", help="A file to keep beside, such as .env; may be repeated."),
    ] = None,
) -> None:
    """Write everything of an installation into one encrypted file, while it runs or not."""
    with told(_FAILED):
        lock = lock_of(passphrase_file, recipient_file)
        path = output or Path(time.strftime("evergreen-%Y%m%d-%H%M%S.backup", time.gmtime()))
        run_on_database(_create(place_of(home, secrets, tls, configuration), path, lock))


async def _create(place: LocalHome | Directories, path: Path, lock: Lock) -> None:
    from cli.backup.create import create  # noqa: PLC0415
    from cli.backup.crypt import STANDARD_OUTPUT  # noqa: PLC0415
    from cli.backup.places import LocalHome, connected  # noqa: PLC0415

    files = place.read()
    if isinstance(place, LocalHome):
        async with place.database() as target, connected(target) as connection:
            made = await create(connection, files, path, lock, VERSION)
            await _note(connection, made)
    else:
        async with connected(given_target()) as connection:
            made = await create(connection, files, path, lock, VERSION)
            await _note(connection, made)
    for line in (
        f"{made.path}: {made.rows:,} rows and {len(files)} files.",
        f"Everything that was acknowledged by {made.point:%Y-%m-%d %H:%M:%S.%f} UTC is in.",
        "Check it where you keep it: evergreen backup verify",
    ):
        typer.echo(line, err=path == STANDARD_OUTPUT)


async def _note(connection: Connection, made: Created) -> None:
    """Notes the backup, whose age counts as that of a scheduled one does."""
    from cli.backup import runs  # noqa: PLC0415

    size = made.path.stat().st_size if made.path.exists() else 0
    await runs.note(
        connection,
        "backup",
        made.point,
        succeeded=True,
        target="evergreen backup create",
        name=made.path.name,
        size=size,
    )


@app.command()
def verify(
    archive: Archive, passphrase_file: PassphraseFile = None, identity: Identity = None
) -> None:
    """Check that an archive is whole and can be restored by this release. Needs no server."""
    with told(_FAILED):
        from cli.backup.fetch import fetched  # noqa: PLC0415
        from cli.backup.verify import verify  # noqa: PLC0415

        key = key_of(passphrase_file, identity)
        with fetched(archive, None, _say_fetched) as path:
            _tell(verify(path, key))


def _say_fetched(name: str) -> None:
    typer.echo(f"Fetched {name}.")


def _tell(found: Verified) -> None:
    rows = sum(found.rows.values())
    typer.echo(
        f"The archive is whole: {rows:,} rows of {len(found.rows)} tables, {len(found.files)}"
        f" files; {found.keys} sealed keys open with its master key; {found.entries:,} audit"
        f" entries in {found.chains} chains, nothing changed."
    )
    typer.echo(f"It was made by release {found.header.release} on PostgreSQL {found.header.server}")
    typer.echo(f"and holds what was acknowledged by {found.header.point:%Y-%m-%d %H:%M:%S.%f} UTC.")


@app.command()
def restore(
    archive: Archive,
    passphrase_file: PassphraseFile = None,
    identity: Identity = None,
    home: DatabaseHome = None,
    secrets: Secrets = None,
    tls: Tls = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an existing installation.")
    ] = False,
    audit_export: Annotated[
        list[Path] | None,
        typer.Option(
            "--audit-export",
            help="A newer export of the audit log: what was revoked stays so. May be repeated.",
        ),
    ] = None,
    retired_file: Annotated[
        Path | None,
        typer.Option("--retired-file", help="File with ids of retired devices, one a line."),
    ] = None,
    redacted_file: Annotated[
        Path | None,
        typer.Option(
            "--redacted-file",
            envvar=REDACTED_FILE,
            help="The list that `evergreen audit redact` keeps: what it names is redacted again.",
        ),
    ] = None,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget-replaced",
            help="Keep nothing of the replaced installation.",
        ),
    ] = False,
) -> None:
    """Put an archive back: into an empty home, or an empty database and a directory of keys.

    The services must be stopped. All of the archive is checked before anything is written.
    """
    with told(_FAILED):
        from cli.backup.facts import read_redacted, read_retired  # noqa: PLC0415
        from cli.backup.fetch import fetched  # noqa: PLC0415
        from cli.backup.places import LocalHome  # noqa: PLC0415
        from cli.backup.procedure import Wanted, into_database, into_home  # noqa: PLC0415

        place = place_of(home, secrets, tls, None)
        facts = _no_facts()
        if retired_file is not None:
            read_retired(retired_file, facts)
        if redacted_file is not None:
            if redacted_file.exists():
                read_redacted(redacted_file, facts)
            else:
                # It begins with the first redaction.
                typer.echo(f"There is no {redacted_file}: no list says what was redacted.")
        key = key_of(passphrase_file, identity)
        beside = place.home.root if isinstance(place, LocalHome) else None
        with fetched(archive, beside, _say_fetched) as path:
            wanted = Wanted(
                path, key, facts, tuple(audit_export or ()), replace=replace, carry=not forget
            )
            if isinstance(place, LocalHome):
                outcome, aside = run_on_database(into_home(wanted, place))
                if aside is not None:
                    typer.echo(f"What was there is now in {aside}.")
                then = "Start it: make run"
            else:
                outcome, left = run_on_database(into_database(wanted, place, given_target()))
                if left:
                    typer.echo(
                        f"Not written, as there is no place given for them: {', '.join(left)}."
                    )
                then = "Start the services."
        for tenant_id, count in sorted(facts.unknown.items()):
            typer.echo(
                f"Tenant {tenant_id}: entries without content in the exports of the audit log:"
                f" {count}. What they decided since the backup, as a device that was retired, is"
                " not known: check it before you start the services."
            )
        say(outcome, then)


def say(outcome: Outcome, then: str) -> None:
    """Prints the outcome of a restore, and the next step."""
    typer.echo(f"Restored as of {outcome.header.point:%Y-%m-%d %H:%M:%S.%f} UTC.")
    typer.echo(
        f"Sessions ended: {outcome.logins.sessions}; everybody logs in again. Devices brought to a"
        f" newer state: {outcome.devices.carried}; retired again: {outcome.devices.retired}."
    )
    again = outcome.redactions
    if again.done:
        typer.echo(f"Entries of the audit log that were redacted again: {again.done}.")
    if again.absent:
        typer.echo(
            f"Redacted entries that the backup does not have: {len(again.absent)}. The event stream"
            " brings those of the last 30 days back with their content. When the services have run"
            " for some minutes, redact them again: put these ids into a file, one a line, and run"
            " evergreen audit redact-again FILE"
        )
        for entry_id in again.absent:
            typer.echo(f"  {entry_id}")
    typer.echo(
        "Legal holds and times for which logs are kept are those of that point: set again what was"
        " set since, before you prune or redact (evergreen audit hold, audit retention)."
    )
    if not outcome.logins.has_owner:
        typer.echo(
            "No Owner of the root tenant can log in: what was known since took the role, the"
            " password or the account of each. To have them as of that point, restore again"
            " with --replace --forget-replaced and without --audit-export."
        )
    typer.echo(
        "Devices go on with what they have. One that has a newer policy than the restored one keeps"
        f" it until you publish again. {then}"
    )


def _no_facts() -> Facts:
    from cli.backup.facts import Facts  # noqa: PLC0415

    return Facts()


def place_of(
    home: Path | None, secrets: Path | None, tls: Path | None, configuration: list[Path] | None
) -> LocalHome | Directories:
    """Where the installation is.

    Raises:
        CliError: the options contradict each other, or say too little.
    """
    from cli.backup.places import Directories, LocalHome  # noqa: PLC0415

    if os.environ.get(MIGRATE_URL):
        if secrets is None and home is not None:
            # In containers, the operator's directory is laid out as a home.
            secrets, tls = home / "secrets", tls or home / "tls"
        if secrets is None:
            raise CliError(f"{MIGRATE_URL} is set; say with --secrets where the keys are")
        return Directories(secrets, tls, tuple(configuration or ()))
    if secrets is not None or tls is not None or configuration:
        raise CliError(f"--secrets, --tls and --config are for an installation by {MIGRATE_URL}")
    return LocalHome(home_of(home))


def given_target() -> Any:
    """The database that the environment names."""
    from cli.migrate import find_target  # noqa: PLC0415

    return find_target(None)


def _passphrase(path: Path | None) -> str:
    if path is None:
        return ""
    return _text(path).partition("\n")[0].rstrip("\r")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("latin-1" if path.suffix == ".age" else "utf-8")
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CliError(f"{path} is no text") from error


def lock_of(passphrase_file: Path | None, recipient_file: Path | None) -> Lock:
    """What closes an archive.

    Raises:
        CliError: nothing does, or not well enough.
    """
    from cli.backup.crypt import MIN_PASSPHRASE, Lock  # noqa: PLC0415

    if recipient_file is not None:
        lines = [line.strip() for line in _text(recipient_file).splitlines()]
        recipients = tuple(line for line in lines if line and not line.startswith("#"))
        if not recipients:
            raise CliError(f"there is no public key in {recipient_file}")
        return Lock(recipients=recipients)
    passphrase = _passphrase(passphrase_file)
    if len(passphrase) < MIN_PASSPHRASE:
        raise CliError(
            "a backup holds all keys and is always encrypted: give --recipient-file, or"
            f" --passphrase-file with at least {MIN_PASSPHRASE} characters"
        )
    return Lock(passphrase=passphrase)


def key_of(passphrase_file: Path | None, identity: Path | None) -> Key:
    """What opens an archive.

    Raises:
        CliError: a file cannot be read.
    """
    from cli.backup.crypt import Key  # noqa: PLC0415

    return Key(_passphrase(passphrase_file), _text(identity) if identity is not None else "")


def run_on_database(work: Coroutine[Any, Any, T]) -> T:
    """Runs work on the database; what goes wrong becomes a sentence."""
    import asyncpg  # noqa: PLC0415

    from servicekit.data.migrate import MigrationError  # noqa: PLC0415

    try:
        return asyncio.run(work)
    except MigrationError as error:
        raise CliError(str(error)) from error
    except (OSError, TimeoutError, asyncpg.InterfaceError) as error:
        reason = str(error) or type(error).__name__
        raise CliError(f"the database cannot be reached, or went away: {reason}") from error
    except asyncpg.PostgresError as error:
        raise CliError(f"the database says: {error}") from error
