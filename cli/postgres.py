"""`evergreen postgres`: the data of a home, when a release brings a newer PostgreSQL."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli.errors import CliError, told
from cli.options import home_of

if TYPE_CHECKING:
    from deploy.launcher.errors import LauncherError
    from deploy.launcher.home import Home as Installation

app = typer.Typer(
    name="postgres",
    help="Upgrade the data of an installation without containers to a newer PostgreSQL.",
    no_args_is_help=True,
)
_FAILED: Final = 1

Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        envvar="EVERGREEN_HOME",
        help="Directory of the installation; ./.evergreen when nothing is given.",
        show_default=False,
    ),
]


@app.command()
def upgrade(
    home: Home = None,
    old_binaries: Annotated[
        Path | None,
        typer.Option(
            "--old-binaries",
            help="Directory of the old server's programs, when its package is elsewhere.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Copy the data of an older PostgreSQL to the one of this release. Stop the product first.

    The old data stay beside the new ones until `evergreen postgres remove-old`. When it is cut
    short, run it again: it goes on.
    """
    with told(_FAILED):
        from deploy.launcher.errors import LauncherError  # noqa: PLC0415
        from deploy.launcher.home import Home as Installation  # noqa: PLC0415
        from deploy.launcher.postgres import major  # noqa: PLC0415
        from deploy.launcher.postgres_upgrade import PostgresUpgrade  # noqa: PLC0415

        root = home_of(home)
        given = old_binaries.absolute() if old_binaries else None
        try:
            kept = asyncio.run(PostgresUpgrade(Installation(root), given, typer.echo).run())
        except LauncherError as error:
            raise CliError(_text(error)) from error
        if kept is None:
            typer.echo(f"The data are of PostgreSQL {major()} already.")
            return
        typer.echo("Looking at the tables anew, for the planner ...")
        asyncio.run(_settle(root))
        typer.echo(f"The data are of PostgreSQL {major()} now; the old ones are in {kept}.")
        typer.echo("Start it: make run. When all is well: evergreen postgres remove-old")


async def _settle(root: Path) -> None:
    """What `pg_upgrade` leaves to do: newer extensions, and statistics."""
    import asyncpg  # noqa: PLC0415

    from cli.backup.places import LocalHome  # noqa: PLC0415
    from deploy.launcher.postgres import SUPERUSER, SUPERUSER_SECRET  # noqa: PLC0415
    from deploy.postgres.roles import DATABASE  # noqa: PLC0415

    place = LocalHome(root)
    secret = (place.home.secrets / SUPERUSER_SECRET).read_text(encoding="utf-8").strip()
    with place.held():
        async with place.started():
            sockets = place.home.run_directory() / "postgres"
            connection = await asyncpg.connect(
                f"postgresql://{SUPERUSER}@/{DATABASE}?host={sockets}", password=secret
            )
            try:
                names = await connection.fetch("SELECT extname FROM pg_extension")
                for row in names:
                    await connection.execute(f'ALTER EXTENSION "{row["extname"]}" UPDATE')
                await connection.execute("ANALYZE")
            finally:
                await connection.close()


@app.command()
def status(home: Home = None) -> None:
    """Show of which PostgreSQL the data are. Ends with 1 when they need an upgrade."""
    with told(_FAILED):
        from deploy.launcher.home import Home as Installation  # noqa: PLC0415
        from deploy.launcher.postgres import major, major_of  # noqa: PLC0415
        from deploy.launcher.postgres_upgrade import kept  # noqa: PLC0415

        installation = Installation(home_of(home))
        found = major_of(installation.postgres)
        if found is None:
            raise CliError(f"there are no data of PostgreSQL in {installation.postgres}")
        typer.echo(f"The data are of PostgreSQL {found}; this release has {major()}.")
        for path in kept(installation):
            typer.echo(f"Data of before an upgrade: {path}")
        if found != major() or installation.postgres_upgrade_mark.exists():
            typer.echo("Run: evergreen postgres upgrade")
            raise typer.Exit(_FAILED)


@app.command("remove-old")
def remove_old(
    home: Home = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove the data that upgrades left. They are of no use once devices have reported since."""
    with told(_FAILED):
        from deploy.launcher.home import Home as Installation  # noqa: PLC0415
        from deploy.launcher.postgres_upgrade import kept  # noqa: PLC0415

        installation = Installation(home_of(home))
        found = kept(installation)
        _require_upgraded(installation)
        for path in found:
            if yes or typer.confirm(f"Remove {path}?"):
                shutil.rmtree(path)
                typer.echo(f"Removed {path}.")
        if not found:
            typer.echo("There are none.")


def _require_upgraded(installation: Installation) -> None:
    """Refuses while the old data may be the only ones.

    Raises:
        CliError: that is so.
    """
    from deploy.launcher.postgres import major, major_of  # noqa: PLC0415

    if installation.postgres_upgrade_mark.exists() or major_of(installation.postgres) != major():
        raise CliError("an upgrade is not finished; run: evergreen postgres upgrade")


def _text(error: LauncherError) -> str:
    log = "".join(f"\n  {line}" for line in error.log or ())
    return f"{error.message}{log}" + (f"\n{error.advice}" if error.advice else "")
