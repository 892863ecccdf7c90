"""`evergreen up`: runs the whole product on this machine, without containers."""

from __future__ import annotations

import typer


def up() -> None:
    """Start everything here and keep it running; Ctrl-C stops it.

    The state is in $EVERGREEN_HOME (./.evergreen), the gateway listens on $EVERGREEN_PORT (8443).
    The first Owner is $EVERGREEN_ADMIN_EMAIL with $EVERGREEN_ADMIN_PASSWORD, or owner@localhost
    with a generated password. EVERGREEN_LOG_FORMAT=json shows the log as JSON lines.
    """
    # Only this command needs the servers and the services' runtime; others start without them.
    from deploy.launcher.main import run  # noqa: PLC0415

    raise typer.Exit(run())
