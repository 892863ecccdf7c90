"""`evergreen identity`, `evergreen policy`, …: one service as this process; and its probe."""

from __future__ import annotations

from collections.abc import Callable

import typer

from cli.entry import run_service
from servicekit.access import CONTEXTS

_PANEL = "In containers"


def add_to(app: typer.Typer) -> None:
    """Registers a command for each service; `audit` is there (see `cli.entry`)."""
    for context in CONTEXTS:
        if context == "audit":
            continue
        app.command(
            context,
            help=f"Run the {context} service. Its settings are in the environment (EVERGREEN_…).",
            rich_help_panel=_PANEL,
        )(_run(context))
    app.command("health", rich_help_panel=_PANEL)(health)


def _run(context: str) -> Callable[[], None]:
    def run() -> None:
        run_service(context)

    return run


def health() -> None:
    """Tell whether the service in this container is ready; ends with 1 when it is not."""
    from cli.health import probe  # noqa: PLC0415

    raise typer.Exit(probe())
