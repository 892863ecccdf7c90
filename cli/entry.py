"""Where `evergreen` begins: a service, or a probe, starts without the rest of the commands."""

from __future__ import annotations

import os
import runpy
import sys

from servicekit.access import CONTEXTS


def main() -> None:
    """Runs the command of `sys.argv`."""
    word = sys.argv[1] if len(sys.argv) == 2 else ""
    # `evergreen audit` is both a service and the commands about the audit log.
    if word in CONTEXTS and "EVERGREEN_GRPC_LISTEN" in os.environ:
        run_service(word)
    elif word == "health":
        from cli.health import probe  # noqa: PLC0415

        sys.exit(probe())
    else:
        from cli.main import app  # noqa: PLC0415

        app()


def run_service(context: str) -> None:
    """Runs a service until it is told to stop."""
    runpy.run_module(f"services.{context}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
