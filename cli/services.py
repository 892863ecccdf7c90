"""`evergreen serve <context>`: one service as this process; and its probe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final

import typer

from cli.process import run_service
from contract.contexts import CONTEXTS

_PANEL: Final = "In containers"
_NAMES: Final = f"{', '.join(CONTEXTS[:-1])} or {CONTEXTS[-1]}"


def add_to(app: typer.Typer) -> None:
    """Registers `serve` and `health`, and the words that 0.1.0 had in place of `serve`.

    The old words may go after 0.3.0. `audit` is one more of them (see `cli.entry`).
    """
    app.command("serve", rich_help_panel=_PANEL)(serve)
    for context in CONTEXTS:
        if context != "audit":
            app.command(context, help=f"The same as serve {context}.", hidden=True)(_run(context))
    app.command("health", rich_help_panel=_PANEL)(health)


def _known(context: str) -> str:
    if context not in CONTEXTS:
        raise typer.BadParameter(f"unknown service {context!r}; give {_NAMES}")
    return context


def serve(
    context: Annotated[
        str, typer.Argument(callback=_known, metavar="SERVICE", help=f"{_NAMES.capitalize()}.")
    ],
) -> None:
    """Run one of the six services; its settings are in the environment (EVERGREEN_…)."""
    run_service(context)


def _run(context: str) -> Callable[[], None]:
    def run() -> None:
        run_service(context)

    return run


def health() -> None:
    """Tell whether the service in this container is ready; ends with 1 when it is not."""
    from cli.health import probe  # noqa: PLC0415

    raise typer.Exit(probe())
