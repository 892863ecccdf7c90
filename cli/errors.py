"""How commands say that they cannot go on: one plain sentence on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


class CliError(Exception):
    """A command cannot go on; the message is for a person and says what to do."""


@contextmanager
def told(code: int) -> Iterator[None]:
    """Ends the command with an exit code when a `CliError` comes out of the block."""
    try:
        yield
    except CliError as error:
        typer.echo(f"evergreen: {error}", err=True)
        raise typer.Exit(code) from None
    except BrokenPipeError:
        # `evergreen … | head` has read enough.
        raise typer.Exit(code) from None
