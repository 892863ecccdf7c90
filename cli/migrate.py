"""`evergreen migrate`: brings the database's schema to this release."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from cli.errors import CliError, told
from cli.options import MIGRATE_URL, DatabaseHome, home_of
from cli.secrets import read_secret

if TYPE_CHECKING:
    from servicekit.data.migrate import Migration, Status

T = TypeVar("T")

app = typer.Typer(
    name="migrate",
    help="Bring the database's schema to this release.",
    no_args_is_help=True,
)

_PASSWORD_FILE: Final = "EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE"
_FAILED: Final = 1

MasterKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--master-key-file",
        envvar="EVERGREEN_MASTER_KEY_FILE",
        help=f"With {MIGRATE_URL}: file with the master key. A database with another one is left"
        " as it is.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")]


@dataclass(frozen=True, slots=True)
class Target:
    """The database, as the role that owns the schemas."""

    dsn: str = field(repr=False)
    password: str | None = field(repr=False)


def find_target(home: Path | None) -> Target:
    """What the environment says, else the installation on this machine.

    Raises:
        CliError: there is neither, or a secret cannot be read.
    """
    if dsn := os.environ.get(MIGRATE_URL, ""):
        file = os.environ.get(_PASSWORD_FILE, "")
        return Target(dsn, read_secret(Path(file)) if file else None)
    from deploy.launcher.home import Home as Installation  # noqa: PLC0415
    from deploy.postgres.roles import DATABASE, MIGRATOR  # noqa: PLC0415

    root = home_of(home)
    installation = Installation(root)
    if not installation.secrets.is_dir():
        raise CliError(
            f"there is no installation in {root}; name one with --home, or set {MIGRATE_URL}"
        )
    sockets = installation.run_directory() / "postgres"
    return Target(
        f"postgresql://{MIGRATOR}@/{DATABASE}?host={sockets}",
        read_secret(installation.secrets / "postgres_migrator"),
    )


def find_master_key(given: Path | None, home: Path | None) -> bytes | None:
    """The master key in a file, else the one of the installation on this machine; `None` without.

    Raises:
        CliError: the file does not hold one.
    """
    from servicekit.security.sealing import SealingError, read_master_key  # noqa: PLC0415

    if given is None:
        if os.environ.get(MIGRATE_URL):
            return None
        given = home_of(home) / "secrets" / "master_key"
        if not given.exists():
            return None
    try:
        return read_master_key(given)
    except SealingError as error:
        raise CliError(str(error)) from error


def run_on_database(work: Coroutine[Any, Any, T]) -> T:
    """Runs work on the database.

    Raises:
        CliError: it went wrong.
    """
    import asyncpg  # noqa: PLC0415

    from servicekit.data.key_check import OtherKeyError  # noqa: PLC0415
    from servicekit.data.migrate import MigrationError  # noqa: PLC0415

    try:
        return asyncio.run(work)
    except (MigrationError, OtherKeyError) as error:
        raise CliError(str(error)) from error
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as error:
        raise CliError(f"the database refuses the role or its password: {error}") from error
    except asyncpg.LockNotAvailableError as error:
        raise CliError(
            "a migration did not get its lock in several attempts, and what it did is undone; run"
            " it again when there is less traffic"
        ) from error
    except (OSError, TimeoutError, asyncpg.InterfaceError) as error:
        reason = str(error) or type(error).__name__
        raise CliError(f"the database cannot be reached: {reason}") from error
    except (asyncpg.PostgresError, ValueError) as error:
        raise CliError(f"the database says: {error}") from error


@app.command()
def up(
    home: DatabaseHome = None,
    as_json: AsJson = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Apply the migrations and roll back, to see that they work."
        ),
    ] = False,
    master_key_file: MasterKeyFile = None,
) -> None:
    """Apply the migrations that are missing. Safe to run twice, also at the same time."""
    with told(_FAILED):
        from servicekit.data import migrate  # noqa: PLC0415

        target = find_target(home)
        work = migrate.rehearse if dry_run else migrate.up
        found = run_on_database(
            work(
                target.dsn,
                target.password,
                tell=lambda line: typer.echo(line, err=True),
                master_key=find_master_key(master_key_file, home),
            )
        )
        if as_json:
            key = "wouldApply" if dry_run else "applied"
            typer.echo(json.dumps({key: [_named(m) for m in found]}))
            return
        verb = "would apply" if dry_run else "applied"
        for migration in found:
            typer.echo(f"{verb} {migration.schema} {migration.version:04d} {migration.name}")
        if not found:
            typer.echo("The schema is up to date.")
        elif dry_run:
            typer.echo(f"Migrations that work, and are not applied yet: {len(found)}.")
        else:
            typer.echo(f"Migrations applied: {len(found)}.")


@app.command()
def status(
    home: DatabaseHome = None,
    as_json: AsJson = False,
    check: Annotated[
        bool, typer.Option("--check", help="End with 1 when a migration is missing.")
    ] = False,
) -> None:
    """Show which migrations are applied."""
    with told(_FAILED):
        from servicekit.data import migrate  # noqa: PLC0415

        target = find_target(home)
        found = run_on_database(migrate.status(target.dsn, target.password))
        missing = sum(1 for item in found if item.applied_at is None)
        if as_json:
            typer.echo(json.dumps({"migrations": [_state(item) for item in found]}))
        else:
            _show(found, missing)
    if check and missing:
        raise typer.Exit(_FAILED)


def _named(migration: Migration) -> dict[str, Any]:
    return {
        "schema": migration.schema,
        "version": migration.version,
        "name": migration.name,
    }


def _state(item: Status) -> dict[str, Any]:
    at = item.applied_at
    return _named(item.migration) | {"appliedAt": at.isoformat() if at else None}


def _show(found: list[Status], missing: int) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("SCHEMA", "VERSION", "NAME", "APPLIED (UTC)"):
        table.add_column(name)
    for item in found:
        at = item.applied_at
        table.add_row(
            item.migration.schema,
            f"{item.migration.version:04d}",
            item.migration.name,
            at.strftime("%Y-%m-%d %H:%M:%S") if at else "[yellow]missing[/yellow]",
        )
    console = Console()
    console.print(table)
    console.print(
        f"Migrations missing: {missing}. Apply them with: evergreen migrate up"
        if missing
        else "The schema is up to date."
    )
