"""One service as this process; imports nothing of the other commands."""

from __future__ import annotations

import runpy
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


def run_service(context: str) -> None:
    """Runs a service until it is told to stop; names the settings that keep it from starting."""
    try:
        runpy.run_module(f"services.{context}", run_name="__main__", alter_sys=True)
    except ValueError as error:
        from pydantic import ValidationError  # noqa: PLC0415

        if not isinstance(error, ValidationError) or not error.title.endswith("Settings"):
            raise
        sys.stderr.write(_broken_settings(context, error))
        sys.exit(2)


def _broken_settings(context: str, error: ValidationError) -> str:
    """One line a setting, without its value, which may be a secret."""
    lines = []
    for one in error.errors(include_url=False, include_context=False, include_input=False):
        field = "_".join(map(str, one["loc"]))
        # Those that share a standard's name (OTEL_…) are reported under it.
        name = field if field.isupper() else f"EVERGREEN_{field.upper()}"
        reason = "is not set" if one["type"] == "missing" else one["msg"]
        lines.append(f"evergreen serve {context}: {f'{name}: ' if field else ''}{reason}\n")
    return "".join(lines)
