"""`evergreen audit retention`, `hold`, `archive` and `prune`: for how long the log is kept."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from cli.confirm import DryRun, Expect, Yes, confirmed
from cli.errors import CliError, told
from cli.migrate import MasterKeyFile
from cli.options import CaFile, DatabaseHome, Email, Home, PasswordFile, Url
from cli.places import tenant_id
from cli.session import operator, session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from auditlog.archive import Archive
    from cli.migrate import Target
    from services.audit.retention.prune import Plan

T = TypeVar("T")

retention = typer.Typer(
    name="retention",
    help="For how long the log is kept before it may be pruned.",
    no_args_is_help=True,
)
hold = typer.Typer(
    name="hold",
    help="Legal holds: nothing of a log is pruned or redacted.",
    no_args_is_help=True,
)

_FAILED: Final = 2
_PATH: Final = "/api/audit/retention"
_SECONDS: Final = 60
Tenant = Annotated[
    str,
    typer.Option(
        "--org", help="The tenant, by its code or id; yours when not given.", show_default=False
    ),
]


@retention.command()
def show(
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Show for how long a tenant's log is kept, and what was pruned of it."""
    with told(_FAILED):
        with session(home, url, ca_file, email, password_file) as api:
            found = api.get(_PATH, orgId=tenant_id(api, org))
        _show(found)


@retention.command("set")
def set_years(
    keep_years: Annotated[
        int | None, typer.Option("--keep-years", min=1, max=30, help="For so many years.")
    ] = None,
    for_ever: Annotated[bool, typer.Option("--for-ever", help="For ever.")] = False,
    inherit: Annotated[
        bool, typer.Option("--inherit", help="Say nothing: what is said above counts.")
    ] = False,
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Say for how long a tenant's log, and those below it, are kept at least. Deletes nothing."""
    with told(_FAILED):
        if [keep_years is not None, for_ever, inherit].count(True) != 1:
            raise CliError("give one of --keep-years, --for-ever and --inherit")
        wanted = {"inherit": True} if inherit else {"keepYears": 0 if for_ever else keep_years}
        with session(home, url, ca_file, email, password_file) as api:
            found = api.patch(_PATH, {"orgId": tenant_id(api, org), **wanted})
        _show(found)


@hold.command("set")
def set_hold(
    reason: Annotated[str, typer.Option(help="Why; it stays in the log for ever.")],
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Set a legal hold on the log of a tenant and of all below it."""
    with told(_FAILED):
        with session(home, url, ca_file, email, password_file) as api:
            body = {"orgId": tenant_id(api, org), "legalHold": True, "holdReason": reason}
            found = api.patch(_PATH, body)
        _show(found)


@hold.command()
def release(
    org: Tenant = "",
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    email: Email = "",
    password_file: PasswordFile = None,
) -> None:
    """Release the legal hold of a tenant."""
    with told(_FAILED):
        with session(home, url, ca_file, email, password_file) as api:
            found = api.patch(_PATH, {"orgId": tenant_id(api, org), "legalHold": False})
        _show(found)


def _show(found: dict[str, Any]) -> None:
    """Prints what the API answers."""
    counts = found.get("inForce", {})
    years = int(counts.get("keepYears", 0))
    above = " (said above)" if counts.get("keepFromAbove") else ""
    typer.echo(f"Tenant {found['orgId']}")
    typer.echo(f"Kept:        {f'{years} years' if years else 'for ever'}{above}")
    if found.get("legalHold"):
        since = str(found.get("heldAt", ""))[:10]
        typer.echo(f"Legal hold:  {found['holdReason']} ({found['heldBy']}, {since})")
    elif counts.get("legalHold"):
        typer.echo("Legal hold:  of a tenant above")
    else:
        typer.echo("Legal hold:  none")
    if pruned := found.get("pruned"):
        typer.echo(
            f"Pruned:      up to entry {pruned['sequence']}, {str(pruned['prunedAt'])[:10]};"
            f" archive {pruned['archiveSha256']}"
        )


def archive(
    until: Annotated[
        str, typer.Option("--until", help="Entries of before this day or time (RFC 3339), in UTC.")
    ],
    to: Annotated[Path, typer.Option("--to", help="Directory for the archive; is made.")],
    org: Annotated[
        str, typer.Option("--org", help="Only the chain of this tenant, by its code or id.")
    ] = "",
    master_key_file: MasterKeyFile = None,
    home: DatabaseHome = None,
) -> None:
    """Write the oldest entries into files that verify without a server, on the server's machine.

    Nothing is deleted. `evergreen audit prune` takes out what an archive has.
    """
    from cli import audit_report  # noqa: PLC0415
    from cli import audit_verify as check  # noqa: PLC0415
    from cli.migrate import find_master_key, find_target, run_on_database  # noqa: PLC0415
    from services.audit.retention.archives import Archiver, key_ring, seeing_all  # noqa: PLC0415
    from services.identity.tree import tenant_named  # noqa: PLC0415

    with told(_FAILED):
        at, wanted = datetime.now(UTC), _time(until)
        key = find_master_key(master_key_file, home)
        if key is None:
            raise CliError("the manifest is signed: name the master key with --master-key-file")

        async def work(connection: Any) -> None:
            async with seeing_all(connection):
                ring = await key_ring(connection, key, at)
                only = await tenant_named(connection, org) if org else None
            if org and only is None:
                raise CliError(f"no tenant has the code or id {org}")
            await Archiver(connection, ring, at, operator()).write(to, wanted, only)

        run_on_database(_connected(find_target(home), work))
        report = audit_report.Report(typer.echo)
        keys = run_on_database(_connected(find_target(home), _keys))
        for written in check.open_archives([to], keys, report):
            check.run_archive(written, check.Anchors((), ()), keys, report)
            for chain in written.manifest.chains:
                typer.echo(
                    f"Archived: tenant {chain.tenant_id}, entries {chain.first} to {chain.last}."
                )
        if not report.is_good:
            raise CliError(f"{to} has what the log has, and that does not verify: it is not pruned")
        typer.echo(f"The archive is in {to}. Nothing was deleted.")


def prune(
    directory: Annotated[
        Path, typer.Argument(metavar="ARCHIVE", help="What `evergreen audit archive` wrote.")
    ],
    yes: Yes = False,
    expect: Expect = None,
    dry_run: DryRun = False,
    home: DatabaseHome = None,
) -> None:
    """Take the entries of an archive out of the log for good, on the server's machine.

    Each chain goes on behind them, and an entry says who did it. What is younger than the log is
    kept, under a legal hold, not sent by a forwarder yet, or among the last 1,000, stays.
    """
    from cli import audit_report  # noqa: PLC0415
    from cli import audit_verify as check  # noqa: PLC0415
    from cli.migrate import find_target, run_on_database  # noqa: PLC0415

    report = audit_report.Report(typer.echo)
    with told(_FAILED), audit_report.never_mistaken():
        target = find_target(home)
        keys = run_on_database(_connected(target, _keys))
        found = check.open_archives([directory], keys, report)
        for one in found:
            check.run_archive(one, check.Anchors((), ()), keys, report)
        # An entry behind the archive may be the one that says that one of it was redacted.
        if not found or not report.is_good:
            raise CliError("the archive does not verify; nothing was pruned")
        run_on_database(
            _connected(target, lambda c: _prune(c, found[0], yes=yes, expect=expect, dry=dry_run))
        )


async def _prune(
    connection: Any, archive: Archive, *, yes: bool, expect: int | None, dry: bool
) -> None:
    """Plans, asks and prunes."""
    from uuid import UUID  # noqa: PLC0415

    from servicekit.errors import DomainError  # noqa: PLC0415
    from services.audit.retention import prune as pruning  # noqa: PLC0415
    from services.audit.retention.archives import seeing_all  # noqa: PLC0415
    from services.identity.tree import tenant_lines  # noqa: PLC0415

    async with pruning.alone(connection):
        async with seeing_all(connection):
            lines = await tenant_lines(connection)
        plans: list[Plan] = []
        for chain in archive.manifest.chains:
            line = lines.of(UUID(chain.tenant_id))
            plans.append(await pruning.plan(connection, archive, chain, line, datetime.now(UTC)))
        _tell(plans)
        wanted = [plan for plan in plans if plan.count]
        if not wanted:
            typer.echo("Nothing can be pruned.")
            return
        count = sum(plan.count for plan in wanted)
        if not confirmed("prune", count, yes=yes, expect=expect, dry_run=dry):
            return
        failed = 0
        for plan in wanted:
            try:
                gone = await pruning.prune(connection, archive, plan, operator())
            except DomainError as refused:
                failed += 1
                typer.echo(f"STAYS     tenant {plan.chain.tenant_id}: {refused.message}")
            else:
                typer.echo(f"Pruned:   tenant {plan.chain.tenant_id}, {gone:,} entries.")
    if failed:
        raise CliError(f"{failed} chains were not pruned to the end; run it again")


def _tell(plans: Sequence[Plan]) -> None:
    for plan in plans:
        tenant = f"tenant {plan.chain.tenant_id}"
        if plan.count:
            typer.echo(f"PRUNE     {tenant}: entries {plan.first} to {plan.last}")
        if plan.reason:
            typer.echo(f"STAYS     {tenant}: {plan.reason}")


async def _keys(connection: Any) -> list[Any]:
    """The public keys of audit."""
    from auditlog.keys import CheckpointKey  # noqa: PLC0415
    from servicekit.keys import store  # noqa: PLC0415

    return [CheckpointKey(key.public.raw) for key in await store.keys(connection, "audit")]


async def _connected(target: Target, work: Callable[[Any], Awaitable[T]]) -> T:
    """Does something with a connection of the role that owns the tables.

    Raises:
        CliError: it was refused.
    """
    import asyncpg  # noqa: PLC0415

    from servicekit.errors import DomainError  # noqa: PLC0415
    from servicekit.security.sealing import SealingError  # noqa: PLC0415

    connection = await asyncpg.connect(
        target.dsn, password=target.password, timeout=_SECONDS, command_timeout=_SECONDS
    )
    try:
        return await work(connection)
    except (DomainError, SealingError) as refused:
        raise CliError(getattr(refused, "message", str(refused))) from refused
    finally:
        await connection.close()


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as wrong:
        raise CliError(f"--until: {text} is no day and no time") from wrong
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
