"""`evergreen policies seal`: seals what was stored before, on the machine of the database alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli.errors import CliError, told
from cli.options import DatabaseHome

if TYPE_CHECKING:
    from cli.migrate import Target
    from servicekit.data.backup import Connection
    from services.policy.vault import Vault

_FAILED: Final = 2
_LEFT: Final = 1
_SECONDS: Final = 600


def seal(
    home: DatabaseHome = None,
    master_key_file: Annotated[
        Path | None,
        typer.Option(
            "--master-key-file",
            envvar="EVERGREEN_MASTER_KEY_FILE",
            help="File with the master key; that of the installation on this machine without.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Only count what is left, and end with 1 while there is anything."
        ),
    ] = False,
    to_open: Annotated[
        bool,
        typer.Option("--open", help="Open all that is sealed, for a release that cannot read it."),
    ] = False,
) -> None:
    """Seal the stored policies and documents that hold secrets. It may run while the product does,
    and be repeated: a run that was ended goes on where it was.

    First set EVERGREEN_POLICY_SECRETS=sealed for the policy service, when 0.2.0 runs nowhere any
    more; for --open set it to open.
    """
    from cli.migrate import find_master_key, find_target, run_on_database  # noqa: PLC0415

    with told(_FAILED):
        target = find_target(home)
        if check:
            left = run_on_database(_counted(target, to_open=to_open))
            for table, count in left.items():
                typer.echo(f"{table:<18}{count} to {'open' if to_open else 'seal'}")
            if any(left.values()):
                raise typer.Exit(_LEFT)
            return
        key = find_master_key(master_key_file, home)
        if key is None:
            raise CliError("there is no master key; give --master-key-file")
        run_on_database(_seal(target, key, to_open=to_open))


async def _counted(target: Target, *, to_open: bool) -> dict[str, int]:
    import asyncpg  # noqa: PLC0415

    from services.policy import sealing  # noqa: PLC0415

    connection = await _connected(target)
    try:
        return await sealing.waiting(connection, to_open=to_open)
    except asyncpg.UndefinedColumnError as error:
        raise CliError(_OLDER) from error
    finally:
        await connection.close()


async def _seal(target: Target, master_key: bytes, *, to_open: bool) -> None:
    import asyncpg  # noqa: PLC0415

    from servicekit.data import key_check  # noqa: PLC0415
    from servicekit.security.sealing import SealingError  # noqa: PLC0415
    from services.policy import sealing  # noqa: PLC0415

    connection = await _connected(target)
    done: dict[str, int] = {}
    try:
        await key_check.is_noted(connection, master_key)
        async for progress in sealing.run(
            connection, _vault(master_key, seals=not to_open), to_open=to_open
        ):
            done[progress.table] = progress.done
            typer.echo(f"{progress.table}: {progress.done} of {progress.of}")
    except SealingError as error:
        raise CliError(f"{error}; what was done stays so") from error
    except asyncpg.UndefinedColumnError as error:
        raise CliError(_OLDER) from error
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
        raise CliError("other work keeps rows; run this again, what was done stays so") from error
    finally:
        await connection.close()
    what = "opened" if to_open else "sealed"
    typer.echo(f"{sum(done.values())} rows were {what}.")


_OLDER: Final = "the database's schema is older than this release; run `evergreen migrate up`"


def _vault(master_key: bytes, *, seals: bool) -> Vault:
    from servicekit.security.sealing import Sealer  # noqa: PLC0415
    from services.policy.vault import PURPOSE, Vault  # noqa: PLC0415

    return Vault(Sealer(master_key, PURPOSE), seals=seals)


async def _connected(target: Target) -> Connection:
    import asyncpg  # noqa: PLC0415

    return await asyncpg.connect(
        target.dsn, password=target.password, timeout=30, command_timeout=_SECONDS
    )
