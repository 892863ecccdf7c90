"""`evergreen nats render`: the configuration of a NATS server in a container."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from cli.errors import CliError, told
from cli.secrets import read_secret
from contract.contexts import CONTEXTS
from servicekit.security.tls import Tls

_ISSUER: Final = "issuer"

app = typer.Typer(
    name="nats",
    help="The configuration of NATS, for a server in a container.",
    no_args_is_help=True,
)


@app.callback()
def _nats() -> None:
    """Keeps `render` a command of its own."""


@app.command()
def render(
    file: Annotated[Path, typer.Argument(help="Directory for the output.")],
    passwords: Annotated[
        Path,
        typer.Option(
            help="Directory with the passwords: a file for each service, `gatekeeper` and"
            " `operator`; and `issuer`, the key that identity vouches for integrators with."
        ),
    ],
    certificate: Annotated[
        Path, typer.Option(help="Directory with ca.crt, tls.crt and tls.key of the server.")
    ],
    store: Annotated[Path, typer.Option(help="JetStream's directory.")] = Path("/data"),
    name: Annotated[
        str, typer.Option(envvar="NATS_SERVER_NAME", help="The server's name.")
    ] = "evergreen",
    cluster: Annotated[
        list[str] | None,
        typer.Option(help="Host of a server of the cluster; say it for each, this one included."),
    ] = None,
) -> None:
    """Write it, with a user for each service and what each may do."""
    with told(1):
        from deploy import nats  # noqa: PLC0415
        from deploy.containers import layout  # noqa: PLC0415
        from deploy.private_files import write_private  # noqa: PLC0415
        from servicekit.security import nkey  # noqa: PLC0415

        users = (*CONTEXTS, nats.GATEKEEPER, nats.OPERATOR)
        found = {user: read_secret(passwords / user) for user in users}
        try:
            key = nkey.public_key(read_secret(passwords / _ISSUER))
        except ValueError as error:
            raise CliError(f"{passwords / _ISSUER}: {error}") from error
        text = nats.render(
            layout.NATS_PORT,
            layout.NATS_MONITOR_PORT,
            store,
            found,
            host="0.0.0.0",  # noqa: S104 - with TLS, inside the walls
            monitor_host="0.0.0.0",  # noqa: S104 - probes come from the node
            tls=Tls(certificate / "ca.crt", certificate / "tls.crt", certificate / "tls.key"),
            name=name,
            cluster=cluster or (),
            issuer=key,
        )
        write_private(file, text)
        typer.echo(f"nats-server starts with --config {file}")
