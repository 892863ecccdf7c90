"""Confirmations: what touches many, or cannot be undone, is confirmed by its number."""

from __future__ import annotations

import sys
from typing import Annotated, TypeAlias

import typer

from cli.errors import CliError
from cli.tables import counted

Yes: TypeAlias = Annotated[
    bool, typer.Option("--yes", help="Do not ask; needs --expect where a number is asked for.")
]
Expect: TypeAlias = Annotated[
    int | None,
    typer.Option("--expect", help="The number to confirm, as --dry-run shows it.", min=0),
]
DryRun: TypeAlias = Annotated[
    bool, typer.Option("--dry-run", help="Only show what would be touched.")
]


def confirmed(what: str, count: int, *, yes: bool, expect: int | None, dry_run: bool) -> bool:
    """Asks for the number of what is touched; answers whether to go on.

    Args:
        what: what is done with it, a verb.
        count: the number.
        yes: whether not to ask; the number has to be given then.
        expect: the number that was given.
        dry_run: whether only to say it.

    Raises:
        CliError: nobody can be asked, or the number is another one; nothing was changed.
    """
    if dry_run:
        typer.echo(f"Nothing was changed. The number to confirm is {count}.")
        return False
    if expect is not None and expect != count:
        raise CliError(f"it touches {counted(count, 'object')}, not {expect}; nothing was changed")
    if yes and expect is None:
        raise CliError(f"--yes needs --expect {count} here; nothing was changed")
    if not yes:
        need_terminal(f"--yes --expect {count}")
        given = typer.prompt(f"Type {count} to {what}", err=True)
        if given.strip() != str(count):
            raise CliError("that is another number; nothing was changed")
    return True


def need_terminal(options: str) -> None:
    """Refuses to ask where nobody answers.

    Args:
        options: what to give instead.

    Raises:
        CliError: standard input is no terminal.
    """
    if not sys.stdin.isatty():
        raise CliError(f"nobody can be asked here; give {options}. Nothing was changed")
