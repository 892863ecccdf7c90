"""Where `evergreen` begins: what runs for long, or often, starts without the other commands."""

from __future__ import annotations

import os
import sys

from cli.process import run_service
from contract.contexts import CONTEXTS
from servicekit.security import mode


def main() -> None:
    """Runs the command of `sys.argv`; what FIPS mode forbids ends it with one line."""
    try:
        _run()
    except (mode.FipsError, mode.ForbiddenImportError) as error:
        mode.refuse(error)


def _run() -> None:
    match sys.argv[1:]:
        case ["serve", context] if context in CONTEXTS:
            run_service(context)
        # The words of 0.1.0 (see `cli.services`); `audit` is also a group of commands.
        case [context] if context in CONTEXTS and "EVERGREEN_GRPC_LISTEN" in os.environ:
            run_service(context)
        # It stays as long as the product runs, with all that it has loaded.
        case ["up"]:
            from deploy.launcher.main import run  # noqa: PLC0415

            sys.exit(run())
        case ["health"]:
            from cli.health import probe  # noqa: PLC0415

            sys.exit(probe())
        # Lives as long as a service, and waits for nearly all of it.
        case ["backup", "schedule"]:
            from cli.backup.scheduler import main as schedule  # noqa: PLC0415

            sys.exit(schedule())
        case _:
            from cli.main import run as run_command  # noqa: PLC0415

            run_command()


if __name__ == "__main__":
    main()
