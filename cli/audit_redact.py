"""`evergreen audit redact`: takes the content out of entries, on the server's machine."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from cli.confirm import need_terminal
from cli.errors import CliError, told
from cli.options import REDACTED_FILE, Home
from cli.session import operator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from uuid import UUID

    from cli.migrate import Target
    from services.audit.redaction.again import Again
    from services.audit.redaction.copies import Copies, Shows
    from services.audit.redaction.entry import Redacted

T = TypeVar("T")

_FAILED: Final = 2
_SECONDS: Final = 30
_LONGEST_REASON: Final = 500
_AGAIN: Final = "operator (evergreen audit redact-again)"

RedactedFile = Annotated[
    Path | None,
    typer.Option(
        "--redacted-file",
        envvar=REDACTED_FILE,
        help="List to which the entry's id is added; keep it where no restore reaches it.",
    ),
]
DeleteReports = Annotated[
    bool, typer.Option("--delete-reports", help="Also delete the kept reports that show it.")
]


def redact(
    entry: Annotated[str, typer.Argument(help="The entry's id.")],
    reason: Annotated[str, typer.Option(help="Why, for the log; name nobody.")],
    unsalted: Annotated[
        bool,
        typer.Option("--unsalted", help="Also an entry of format v1, whose hash confirms a guess."),
    ] = False,
    delete_reports: DeleteReports = False,
    redacted_file: RedactedFile = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
) -> None:
    """Take out the content of an entry for good, on the server's machine.

    Its place, time, action and hash stay, and an entry says who did it and why. Copies in the
    quarantine and in outboxes are deleted; reports that show it are named.
    """
    from cli.migrate import find_target, run_on_database  # noqa: PLC0415
    from services.audit.redaction.entry import look  # noqa: PLC0415

    with told(_FAILED):
        entry_id = _id(entry)
        if not reason.strip() or len(reason) > _LONGEST_REASON or not reason.isprintable():
            raise CliError(
                f"--reason must have 1 to {_LONGEST_REASON} characters that can be printed, in one"
                " line"
            )
        target = find_target(home)
        if not yes:
            need_terminal("--yes")
            found = run_on_database(_in_database(target, lambda c: look(c, entry_id)))
            typer.echo(
                f"Entry {found.sequence} of tenant {found.tenant_id}: {found.action},"
                f" {found.occurred_at:%Y-%m-%d %H:%M:%S} UTC. The reason stays in the log for ever:"
                f" {reason.strip()}"
            )
            if not typer.confirm("Take out the entry's content for good?"):
                raise CliError("nothing was changed")

        async def work(connection: Any) -> tuple[Redacted, Copies]:
            from services.audit.redaction.copies import remove  # noqa: PLC0415
            from services.audit.redaction.entry import Redacted  # noqa: PLC0415
            from services.audit.redaction.entry import redact as take_out  # noqa: PLC0415
            from services.audit.retention.prune import require_no_hold  # noqa: PLC0415
            from services.identity.tree import tenant_lines  # noqa: PLC0415

            known = await look(connection, entry_id)
            await require_no_hold(connection, (await tenant_lines(connection)).of(known.tenant_id))
            if known.redacted:
                # As after a command that was killed before it had removed all copies.
                done = Redacted(known.tenant_id, known.sequence, known.action)
            else:
                done = await take_out(
                    connection, entry_id, reason.strip(), operator(), unsalted=unsalted
                )
            other = await remove(connection, entry_id, operator(), reports_too=delete_reports)
            # Before the transaction ends: an id too many costs nothing, one that is missing does.
            _list(redacted_file, entry_id)
            return done, other

        done, other = run_on_database(_in_database(target, work))
        typer.echo(f"Entry {done.sequence} ({done.action}) of tenant {done.tenant_id} is redacted.")
        _tell(other, deleted=delete_reports)
        run_on_database(_vacuum(target))


def redact_again(
    redacted_file: Annotated[
        Path | None,
        typer.Argument(
            envvar=REDACTED_FILE, help="Also these entries: ids, one a line, `#` for remarks."
        ),
    ] = None,
    home: Home = None,
) -> None:
    """Redact once more what the log says was redacted, and has its content again.

    As after a restore, which does the same for what it knows of.
    """
    from cli.backup.facts import Facts, read_redacted  # noqa: PLC0415
    from cli.migrate import find_target, run_on_database  # noqa: PLC0415

    with told(_FAILED):
        facts = Facts()
        if redacted_file is not None:
            read_redacted(redacted_file, facts)
        target = find_target(home)

        async def work(connection: Any) -> Again:
            from servicekit.data.postgres import SYSTEM  # noqa: PLC0415
            from services.audit.redaction.again import redact_again  # noqa: PLC0415
            from services.audit.retention.prune import held_by  # noqa: PLC0415
            from services.identity.tree import tenant_lines  # noqa: PLC0415

            await connection.execute(
                "SELECT set_config('evergreen.scope', $1, true)", SYSTEM.setting
            )
            listed = set(facts.audit.reasons)
            # The log itself may say why.
            await facts.audit.read(connection)
            lines = await tenant_lines(connection)

            async def is_held(tenant_id: UUID) -> bool:
                return await held_by(connection, lines.of(tenant_id)) is not None

            return await redact_again(
                connection,
                facts.audit.reasons,
                operator(),
                _AGAIN,
                unproven=listed - facts.audit.logged,
                is_held=is_held,
            )

        again = run_on_database(_in_database(target, work))
        typer.echo(f"Entries that were redacted again: {again.done}.")
        for entry_id in again.absent:
            typer.echo(f"The log does not have {entry_id}.")
        for entry_id in again.held:
            typer.echo(f"A legal hold keeps {entry_id}, of which only the list says it.")
        _tell_reports(again.reports, deleted=False)
        run_on_database(_vacuum(target))


def _id(text: str) -> UUID:
    from uuid import UUID  # noqa: PLC0415

    try:
        return UUID(text)
    except ValueError as wrong:
        raise CliError(f"{text} is no entry's id") from wrong


def _list(path: Path | None, entry_id: UUID) -> None:
    """Adds an id to a list, on the disk before it returns.

    Raises:
        CliError: it cannot be written.
    """
    if path is None:
        return
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{entry_id}  # {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror}") from error


def _tell(found: Copies, *, deleted: bool) -> None:
    if found.dead_letters or found.outboxes:
        typer.echo(
            f"Copies that are deleted: {found.dead_letters} in the quarantine,"
            f" {found.outboxes} in outboxes."
        )
    _tell_reports(found.reports, deleted=deleted)


def _tell_reports(reports: Iterable[Shows], *, deleted: bool) -> None:
    for one in reports:
        said = "deleted" if deleted else f"`evergreen reports delete {one.id}` deletes it"
        typer.echo(f"The report {one.kind} of {one.as_of:%Y-%m-%d %H:%M} UTC shows it: {said}.")


async def _in_database(target: Target, work: Callable[[Any], Awaitable[T]]) -> T:
    """Does something in one transaction.

    Raises:
        CliError: it was refused.
    """
    import asyncpg  # noqa: PLC0415

    from servicekit.errors import DomainError  # noqa: PLC0415

    connection = await asyncpg.connect(
        target.dsn, password=target.password, timeout=_SECONDS, command_timeout=_SECONDS
    )
    try:
        async with connection.transaction():
            return await work(connection)
    except DomainError as refused:
        raise CliError(refused.message) from refused
    finally:
        await connection.close()


async def _vacuum(target: Target) -> None:
    """Overwrites old versions of rows, which nobody can read by SQL any more."""
    import asyncpg  # noqa: PLC0415

    from services.audit.redaction.copies import vacuumed  # noqa: PLC0415

    connection = await asyncpg.connect(target.dsn, password=target.password, timeout=_SECONDS)
    try:
        for table in vacuumed():
            await connection.execute(f"VACUUM {table}")
    finally:
        await connection.close()
