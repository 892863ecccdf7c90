"""`evergreen database init`: the database and its roles on a PostgreSQL that is there already."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import CliError, told
from cli.migrate import MasterKeyFile, find_master_key
from cli.secrets import read_secret
from contract.contexts import CONTEXTS

if TYPE_CHECKING:
    import asyncpg

app = typer.Typer(
    name="database",
    help="Make the database and its roles on a PostgreSQL server.",
    no_args_is_help=True,
)


@app.callback()
def _database() -> None:
    """Keeps `init` a command of its own."""


@app.command()
def init(
    url: Annotated[
        str,
        typer.Option(
            envvar="EVERGREEN_ADMIN_DATABASE_URL",
            help="The database `postgres`, as a role that may make databases and roles.",
        ),
    ],
    secrets: Annotated[
        Path,
        typer.Option(
            envvar="EVERGREEN_ROLE_SECRETS",
            help="Directory with the passwords that the roles get: the files postgres_migrator"
            " and postgres_<service>.",
        ),
    ],
    password_file: Annotated[
        Path | None,
        typer.Option(
            envvar="EVERGREEN_ADMIN_DATABASE_PASSWORD_FILE", help="File with that role's password."
        ),
    ] = None,
    master_key_file: MasterKeyFile = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the server.")] = 60,
) -> None:
    """Make what is missing, and set the roles' passwords. Safe to run again."""
    with told(1):
        from deploy.postgres import roles  # noqa: PLC0415

        passwords = {roles.MIGRATOR: read_secret(secrets / "postgres_migrator")}
        for context in CONTEXTS:
            passwords[roles.service_role(context)] = read_secret(secrets / f"postgres_{context}")
        password = read_secret(password_file) if password_file else None
        key = find_master_key(master_key_file, None) if master_key_file else None
        made = asyncio.run(_ensure(url, password, passwords, key, wait))
        typer.echo("The database was made." if made else "The database is there; roles are set.")


async def _ensure(
    url: str, password: str | None, passwords: dict[str, str], key: bytes | None, wait: float
) -> bool:
    import asyncpg  # noqa: PLC0415

    from deploy.postgres import roles  # noqa: PLC0415

    connection = await _connected(url, password, wait)
    try:
        if key is not None:
            await _require_own(connection, url, password, key)
        return await roles.ensure(connection, passwords)
    except asyncpg.PostgresError as error:
        raise CliError(f"the database says: {error}") from error
    finally:
        await connection.close()


async def _require_own(
    server: asyncpg.Connection[asyncpg.Record], url: str, password: str | None, key: bytes
) -> None:
    """Refuses a database with another master key: new passwords would shut its services out.

    Raises:
        CliError: it has one.
    """
    import asyncpg  # noqa: PLC0415

    from deploy.postgres import roles  # noqa: PLC0415
    from servicekit.data import key_check  # noqa: PLC0415

    there = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)"
    if not await server.fetchval(there, roles.DATABASE):
        return
    connection = await asyncpg.connect(url, password=password, database=roles.DATABASE, timeout=10)
    try:
        await connection.execute(f"SET ROLE {roles.MIGRATOR}")
        await key_check.is_noted(connection, key)
    except key_check.OtherKeyError as error:
        raise CliError(str(error)) from error
    except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedObjectError):
        # Another administrator made it. The migrations compare too.
        return
    finally:
        await connection.close()


async def _connected(
    url: str, password: str | None, wait: float
) -> asyncpg.Connection[asyncpg.Record]:
    import asyncpg  # noqa: PLC0415

    give_up_at = time.monotonic() + wait
    while True:
        try:
            return await asyncpg.connect(url, password=password, timeout=10)
        except asyncpg.InvalidAuthorizationSpecificationError as error:
            raise CliError(f"the database refuses the role or its password: {error}") from error
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            if time.monotonic() > give_up_at:
                raise CliError(f"the database cannot be reached: {error}") from error
        except ValueError as error:
            raise CliError(f"EVERGREEN_ADMIN_DATABASE_URL: {error}") from error
        await asyncio.sleep(0.5)
