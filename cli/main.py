"""The `evergreen` command: one file a subject, registered here."""

from __future__ import annotations

import logging

import typer

from cli import audit, bootstrap, database, events, init, migrate, nats, services, simulate, up
from cli.backup import commands as backup
from cli.doctor import commands as doctor

app = typer.Typer(
    name="evergreen",
    help="Runs and administers the Evergreen Selfhost Backend.",
    no_args_is_help=True,
    add_completion=False,
    # A traceback with local variables could show secrets.
    pretty_exceptions_show_locals=False,
)
app.command("up")(up.up)
app.add_typer(migrate.app)
app.add_typer(database.app)
app.add_typer(backup.app)
app.command("doctor")(doctor.doctor)
app.add_typer(audit.app)
app.command("sim")(simulate.sim)
app.command("init")(init.init)
app.command("bootstrap")(bootstrap.bootstrap)
app.add_typer(init.gateway_app)
app.add_typer(nats.app)
app.add_typer(events.app)
services.add_to(app)


@app.callback()
def _evergreen() -> None:
    """Keeps `up` a command of its own, however few others there are."""
    # nats-py's streams do not know that they have TLS; asyncio warns of it whenever NATS hangs up.
    asyncio_log = logging.getLogger("asyncio")
    asyncio_log.addFilter(lambda record: "eof_received" not in record.getMessage())


if __name__ == "__main__":
    app()
