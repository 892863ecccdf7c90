"""`evergreen fips`: what keeps an installation from FIPS mode, and what a command can do of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.errors import CliError, told
from cli.options import DatabaseHome
from cli.tables import table
from servicekit.security import fips, mode

if TYPE_CHECKING:
    from cli.migrate import Target
    from servicekit.security.sealing import Sealer

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
_BATCH: Final = 500
"""Values that are sealed anew in one transaction, which then lets go of their rows."""
_LOCK_SECONDS: Final = 5
_NAMED: Final = 20
"""Of the values that do not open, so many are named."""
_OLD: Final = "{0} IS NOT NULL AND substring({0} FOR 11) <> '$aes256gcm$'::bytea"
_KEYS: Final = {
    "audit.signing_key": "key_id",
    "identity.signing_key": "key_id",
    # A row that moves meanwhile is left to the next run.
    "policy.documents": "ctid",
    "policy.versions": "ctid",
}
"""What names a row where it is not `id`."""
_TOKEN_KEYS: Final = ("users", "devices", "tokens")
_COLUMNS: Final = ("WHAT", "OLD", "APPROVED", "HOW IT IS RENEWED")
_MIGRATE: Final = "`evergreen fips migrate`"
_ANEW: Final = "set anew: the master key opens it in no mode"


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
def check(
    tls: Annotated[
        bool, typer.Option("--tls", help="Also whether gRPC's TLS is that of the module.")
    ] = False,
) -> None:
    """Say which module does the cryptography of this command. With EVERGREEN_FIPS=required it ends
    with 78 where none does; the start of every process looks in the same way.
    """
    if tls:
        from servicekit.security.tls import require_grpc_tls  # noqa: PLC0415 - it loads gRPC

        require_grpc_tls()
    found = fips.described()
    typer.echo(f"EVERGREEN_FIPS is {found['fips']}, EVERGREEN_SUITES is {found['suites']}")
    for name, value in found.get("module", {}).items():
        typer.echo(f"{name:<8}{value}")


@app.command()
def plan(
    home: DatabaseHome = None,
    as_json: AsJson = False,
    master_key_file: MasterKey = None,
    recipient_file: Annotated[
        Path | None,
        typer.Option(
            "--recipient-file",
            envvar="EVERGREEN_BACKUP_RECIPIENT_FILE",
            help="Public keys that backups are made for.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show what is still sealed, hashed or signed in the old way, and what renews it.

    Ends with 1 while there is something that FIPS mode could not use.
    """
    from cli.migrate import find_master_key, find_target, run_on_database  # noqa: PLC0415

    with told(_FAILED):
        key = None if mode.is_required() else find_master_key(master_key_file, home)
        found = run_on_database(_plan(find_target(home), key)) + _recipients(recipient_file)
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
        done = run_on_database(_migrate(find_target(home), key))
        typer.echo(
            f"{done.sealed} values were sealed anew. See what is left: `evergreen fips plan`."
        )
    if done.closed:
        named = ", ".join(done.closed[:_NAMED]) + (" ..." if len(done.closed) > _NAMED else "")
        typer.echo(
            f"{len(done.closed)} values do not open with this master key, and are of no use in any"
            f" mode; set them anew: {named}",
            err=True,
        )
        raise typer.Exit(_LEFT)


def _recipients(file: Path | None) -> list[Item]:
    """The public keys of backups; none where there is no file of them."""
    from cli.backup.commands import lock_of  # noqa: PLC0415
    from cli.backup.stores.store import secret_file  # noqa: PLC0415
    from servicekit.security.approved_stream import RECIPIENT  # noqa: PLC0415

    if (file := file or secret_file("RECIPIENT_FILE", private=False)) is None:
        return []
    keys = lock_of(None, file).recipients
    approved = sum(key.startswith(RECIPIENT) for key in keys)
    old = len(keys) - approved
    return [
        Item(
            "public keys of backups",
            old,
            approved,
            "a P-256 key in their place (docs/fips.md)" if old else "",
            blocks=True,
        )
    ]


async def _plan(target: Target, master_key: bytes | None) -> list[Item]:
    from cli.backup.catalog import PASSING, SEALED, SECRETS  # noqa: PLC0415
    from servicekit.data import key_check  # noqa: PLC0415

    async with _connected(target) as connection, _seeing_all(connection):
        if master_key is not None:
            await key_check.is_noted(connection, master_key)
        found = []
        for names, column in ((SEALED, "sealed_seed"), ({**SECRETS, **PASSING}, "sealed_secrets")):
            for name in names:
                old, new = await _sealed(connection, name, column)
                closed = 0
                if old and master_key is not None and column == "sealed_secrets":
                    closed = await _closed(connection, name, names[name], master_key)
                    old -= closed
                found.append(Item(f"sealed: {name}", old, new, _MIGRATE if old else "", True))
                if closed:
                    found.append(Item(f"does not open: {name}", closed, 0, _ANEW, blocks=False))
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


async def _closed(connection: Any, name: str, purpose: str, master_key: bytes) -> int:
    """How many old secrets of a table the master key does not open."""
    from servicekit.security.sealing import Sealer, SealingError  # noqa: PLC0415

    sealer, closed = Sealer(master_key, purpose), 0
    async for row in connection.cursor(
        f"SELECT sealed_secrets FROM {name} WHERE {_OLD.format('sealed_secrets')}"
    ):
        try:
            sealer.open(row[0])
        except SealingError:
            closed += 1
    return closed


async def _checked(connection: Any) -> Item:
    """The check of the master key."""
    approved = await connection.fetchval("SELECT count(*) FROM evergreen.approved_key_check")
    how = "" if approved else f"the next start of the services, or {_MIGRATE}"
    return Item("check of the master key", 1 - approved, approved, how, blocks=False)


async def _passwords(connection: Any) -> list[Item]:
    # A login verifies the hash of the prepared form, where there is one.
    rows = await connection.fetch(
        "SELECT status, count(*) FILTER (WHERE NOT is_approved) AS old,"
        " count(*) FILTER (WHERE is_approved) AS approved FROM (SELECT status,"
        " coalesce(prepared_hash, password_hash) LIKE '$pbkdf2-sha256$%' AS is_approved"
        " FROM identity.account WHERE password_hash IS NOT NULL) AS found"
        " GROUP BY status ORDER BY status"
    )
    login = f"the owner's next login with {mode.SUITES}=approved, or "
    reset = "`evergreen users reset-password`"
    found = []
    for row in rows:
        status = row["status"].lower()
        # They do not block; one who is enabled again later cannot log in before that.
        how = login + reset if status == "active" else f"{reset}, when they are enabled again"
        found.append(
            Item(
                f"passwords of users: {status}",
                row["old"],
                row["approved"],
                how if row["old"] else "",
                blocks=status == "active",
            )
        )
    return found


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


@dataclass(slots=True)
class _Done:
    """What became of the values."""

    sealed: int = 0
    closed: list[str] = field(default_factory=list)
    """Those that do not open: table and primary key."""


async def _migrate(target: Target, master_key: bytes) -> _Done:
    from cli.backup.catalog import PASSING, SEALED, SECRETS  # noqa: PLC0415
    from servicekit.data import key_check  # noqa: PLC0415
    from servicekit.security.sealing import Sealer  # noqa: PLC0415

    done = _Done()
    async with _connected(target) as connection:
        async with _seeing_all(connection):
            await key_check.is_noted(connection, master_key)
        # Signing keys first: a master key that does not open them is not the installation's.
        for names, column in ((SEALED, "sealed_seed"), ({**SECRETS, **PASSING}, "sealed_secrets")):
            for name, purpose in names.items():
                await _seal_anew(connection, name, column, Sealer(master_key, purpose), done)
        async with _seeing_all(connection):
            await key_check.note(connection, master_key)
    return done


async def _seal_anew(connection: Any, name: str, column: str, sealer: Sealer, done: _Done) -> None:
    """Seals a table's old values, some at a time: each batch stays when a later one fails.

    Raises:
        CliError: a signing key does not open; or other work keeps the rows.
    """
    import asyncpg  # noqa: PLC0415

    from servicekit.security.sealing import SealingError  # noqa: PLC0415

    key = _KEYS.get(name, "id")
    async with _seeing_all(connection):
        rows = await connection.fetch(
            f"SELECT {key} AS key FROM {name} WHERE {_OLD.format(column)} ORDER BY 1"
        )
    keys = [row["key"] for row in rows]
    for start in range(0, len(keys), _BATCH):
        sealed = 0
        try:
            async with _seeing_all(connection):
                for row in await connection.fetch(
                    f"SELECT {key} AS key, {column} AS sealed FROM {name}"
                    f" WHERE {key} = ANY ($1) AND {_OLD.format(column)} ORDER BY 1",
                    keys[start : start + _BATCH],
                ):
                    try:
                        secret = sealer.open(row["sealed"])
                    except SealingError as wrong:
                        if column == "sealed_seed":
                            raise CliError(f"a key of {name} does not open: {wrong}") from wrong
                        done.closed.append(f"{name} {row['key']}")
                        continue
                    # One that was replaced or deleted meanwhile is as its service wrote it.
                    said = await connection.execute(
                        f"UPDATE {name} SET {column} = $3 WHERE {key} = $1 AND {column} = $2",
                        row["key"],
                        row["sealed"],
                        sealer.seal_approved(secret),
                    )
                    sealed += int(said.split()[-1])
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            raise CliError(
                f"other work keeps rows of {name}; run this again, what was sealed anew stays so"
            ) from error
        done.sealed += sealed


@asynccontextmanager
async def _seeing_all(connection: Any) -> AsyncIterator[None]:
    """A transaction that sees all rows, and waits for no lock for long."""
    async with connection.transaction():
        await connection.execute(
            "SELECT set_config('evergreen.scope', '*', true),"
            f" set_config('lock_timeout', '{_LOCK_SECONDS}s', true)"
        )
        yield


@asynccontextmanager
async def _connected(target: Target) -> AsyncIterator[Any]:
    """A connection of the role that owns the tables.

    Raises:
        CliError: the schema is that of an older release.
    """
    import asyncpg  # noqa: PLC0415

    connection = await asyncpg.connect(
        target.dsn, password=target.password, timeout=30, command_timeout=_SECONDS
    )
    try:
        yield connection
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as error:
        raise CliError(
            "the database's schema is older than this release; run `evergreen migrate up`"
        ) from error
    finally:
        await connection.close()
