"""`evergreen fips`: what keeps an installation from FIPS mode, and what a command can do of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.errors import CliError, told
from cli.options import DatabaseHome
from cli.tables import table
from servicekit.security import fips, mode

if TYPE_CHECKING:
    from cli.migrate import Target

app = typer.Typer(
    name="fips", help="FIPS mode: what it needs, and the change to it.", no_args_is_help=True
)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
MasterKey = Annotated[
    Path | None,
    typer.Option(
        "--master-key-file",
        envvar="EVERGREEN_MASTER_KEY_FILE",
        help="File with the master key; that of the installation on this machine without.",
        show_default=False,
    ),
]

_FAILED: Final = 2
_LEFT: Final = 1
_SECONDS: Final = 600
_TOKEN_KEYS: Final = ("users", "devices", "tokens")
_COLUMNS: Final = ("WHAT", "OLD", "APPROVED", "HOW IT IS RENEWED")
_MIGRATE: Final = "`evergreen fips migrate`"


@dataclass(frozen=True, slots=True)
class Item:
    """One kind of stored values."""

    what: str
    old: int
    """How many were made in a way that FIPS mode does not read, or would not choose."""
    approved: int
    renewed: str
    """How the old ones are renewed; empty when there are none."""
    blocks: bool
    """Whether the old ones cannot be used in FIPS mode."""


@app.command()
def check() -> None:
    """Say which module does the cryptography of this command. With EVERGREEN_FIPS=required it ends
    with 78 where none does; the start of every process looks in the same way.
    """
    found = fips.described()
    typer.echo(f"EVERGREEN_FIPS is {found['fips']}, EVERGREEN_SUITES is {found['suites']}")
    for name, value in found.get("module", {}).items():
        typer.echo(f"{name:<8}{value}")


@app.command()
def plan(home: DatabaseHome = None, as_json: AsJson = False) -> None:
    """Show what is still sealed, hashed or signed in the old way, and what renews it.

    Ends with 1 while there is something that FIPS mode could not use.
    """
    from cli.migrate import find_target, run_on_database  # noqa: PLC0415

    with told(_FAILED):
        found = run_on_database(_plan(find_target(home)))
    if as_json:
        for item in found:
            typer.echo(json.dumps(asdict(item)))
    else:
        rows = [
            (item.what, str(item.old), str(item.approved), item.renewed or "-") for item in found
        ]
        typer.echo("\n".join(table(_COLUMNS, rows)))
        typer.echo(
            "\nPolicies are signed by Ed25519 in FIPS mode too: released agents know nothing else."
        )
    if any(item.blocks and item.old for item in found):
        raise typer.Exit(_LEFT)


@app.command()
def migrate(home: DatabaseHome = None, master_key_file: MasterKey = None) -> None:
    """Seal with approved algorithms what is sealed in the old way. It may run while the product
    does, and be repeated.

    First set EVERGREEN_SUITES=approved for all services, and for this command: others would seal
    in the old way again.
    """
    from cli.migrate import find_master_key, find_target, run_on_database  # noqa: PLC0415

    with told(_FAILED):
        if mode.is_required():
            raise CliError("in FIPS mode nothing old can be opened; set EVERGREEN_FIPS=off")
        if not mode.writes_approved():
            raise CliError(
                f"set {mode.SUITES}=approved, for all services first and for this command: what is"
                " written meanwhile would be sealed in the old way"
            )
        key = find_master_key(master_key_file, home)
        if key is None:
            raise CliError("there is no master key; give --master-key-file")
        sealed = run_on_database(_migrate(find_target(home), key))
        typer.echo(f"{sealed} values were sealed anew. See what is left: `evergreen fips plan`.")


async def _plan(target: Target) -> list[Item]:
    from cli.backup.catalog import PASSING, SEALED, SECRETS  # noqa: PLC0415

    async with _connected(target) as connection:
        found = []
        for names, column in ((SEALED, "sealed_seed"), ({**SECRETS, **PASSING}, "sealed_secrets")):
            for name in names:
                old, new = await _sealed(connection, name, column)
                found.append(Item(f"sealed: {name}", old, new, _MIGRATE if old else "", True))
        found.append(await _checked(connection))
        found += await _passwords(connection)
        found += [await _token_key(connection, purpose) for purpose in _TOKEN_KEYS]
        return found


async def _sealed(connection: Any, name: str, column: str) -> tuple[int, int]:
    """How many values of a table are sealed in the old way, and in the approved one."""
    row = await connection.fetchrow(
        "SELECT count(*) FILTER (WHERE NOT is_approved) AS old,"
        " count(*) FILTER (WHERE is_approved) AS approved FROM"
        f" (SELECT substring({column} FOR 11) = '$aes256gcm$'::bytea AS is_approved FROM {name}"
        f" WHERE {column} IS NOT NULL) AS found"
    )
    return row["old"], row["approved"]


async def _checked(connection: Any) -> Item:
    """The check of the master key."""
    approved = await connection.fetchval("SELECT count(*) FROM evergreen.approved_key_check")
    how = "" if approved else f"the next start of the services, or {_MIGRATE}"
    return Item("check of the master key", 1 - approved, approved, how, blocks=False)


async def _passwords(connection: Any) -> list[Item]:
    rows = await connection.fetch(
        "SELECT status, count(*) FILTER (WHERE password_hash NOT LIKE '$pbkdf2-sha256$%') AS old,"
        " count(*) FILTER (WHERE password_hash LIKE '$pbkdf2-sha256$%') AS approved"
        " FROM identity.account WHERE password_hash IS NOT NULL GROUP BY status ORDER BY status"
    )
    how = f"the owner's next login with {mode.SUITES}=approved, or `evergreen users reset-password`"
    return [
        Item(
            f"passwords of users: {row['status'].lower()}",
            row["old"],
            row["approved"],
            how if row["old"] else "",
            blocks=row["status"].lower() == "active",
        )
        for row in rows
    ]


async def _token_key(connection: Any, purpose: str) -> Item:
    """The keys that sign tokens now or later, and those whose tokens are still in use."""
    rows = await connection.fetch(
        "SELECT algorithm, verifies_until FROM identity.signing_key WHERE purpose = $1"
        " AND (verifies_until IS NULL OR verifies_until > now())",
        purpose,
    )
    old = [row["verifies_until"] for row in rows if row["algorithm"] != "es256"]
    ends = [at for at in old if at is not None]
    if len(ends) < len(old):
        how = f"`evergreen keys rotate {purpose}` with {mode.SUITES}=approved"
    else:
        how = f"by itself, until {max(ends):%Y-%m-%d %H:%M}Z" if ends else ""
    # What they sign is verified in FIPS mode too: EdDSA is approved (FIPS 186-5).
    return Item(f"keys of tokens: {purpose}", len(old), len(rows) - len(old), how, blocks=False)


async def _migrate(target: Target, master_key: bytes) -> int:
    from cli.backup.catalog import PASSING, SEALED, SECRETS  # noqa: PLC0415
    from servicekit.data import key_check  # noqa: PLC0415
    from servicekit.security.sealing import Sealer, SealingError, uses_standard  # noqa: PLC0415

    sealed = 0
    async with _connected(target) as connection:
        await key_check.is_noted(connection, master_key)
        for names, column in ((SEALED, "sealed_seed"), ({**SECRETS, **PASSING}, "sealed_secrets")):
            for name, purpose in names.items():
                sealer = Sealer(master_key, purpose)
                rows = await connection.fetch(
                    f"SELECT {column} AS sealed FROM {name} WHERE {column} IS NOT NULL"
                )
                for row in rows:
                    if not uses_standard(row["sealed"]):
                        continue
                    try:
                        secret = sealer.open(row["sealed"])
                    except SealingError as wrong:
                        raise CliError(f"a value of {name} does not open: {wrong}") from wrong
                    done = await connection.execute(
                        f"UPDATE {name} SET {column} = $2 WHERE {column} = $1",
                        row["sealed"],
                        sealer.seal_approved(secret),
                    )
                    # One that was replaced or deleted meanwhile is as its service wrote it.
                    sealed += int(done.split()[-1])
        await key_check.note(connection, master_key)
    return sealed


@asynccontextmanager
async def _connected(target: Target) -> AsyncIterator[Any]:
    """A transaction of the role that owns the tables, which sees all rows.

    Raises:
        CliError: the schema is that of an older release.
    """
    import asyncpg  # noqa: PLC0415

    connection = await asyncpg.connect(
        target.dsn, password=target.password, timeout=30, command_timeout=_SECONDS
    )
    try:
        async with asyncio.timeout(_SECONDS), connection.transaction():
            await connection.execute("SELECT set_config('evergreen.scope', '*', true)")
            yield connection
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as error:
        raise CliError(
            "the database's schema is older than this release; run `evergreen migrate up`"
        ) from error
    finally:
        await connection.close()
