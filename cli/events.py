"""`evergreen events`: the streams that integrators read."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import CliError, told
from cli.options import Home, home_of
from cli.secrets import read_secret

app = typer.Typer(
    name="events", help="Inspect and repair the streams of events.", no_args_is_help=True
)

_FAILED = 2


@app.callback()
def _events() -> None:
    """Keeps `rebuild` a command of its own."""


@app.command()
def rebuild(
    stream: Annotated[
        str, typer.Argument(help="EVERGREEN, or EVERGREEN_TELEMETRY for what devices reported.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    home: Home = None,
    nats_url: Annotated[
        str, typer.Option(envvar="EVERGREEN_NATS_URL", help="NATS, if not that of a home.")
    ] = "",
    password_file: Annotated[
        Path | None,
        typer.Option(help="File with the password of NATS's user `operator`, if not in the home."),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(envvar="EVERGREEN_NATS_CA_FILE", help="CA of NATS's certificate."),
    ] = None,
) -> None:
    """Throw a stream away, and have it published again from PostgreSQL.

    Readers get all events of the last 30 days once more, with the ids that they had.
    """
    with told(_FAILED):
        from contract.subjects import STREAMS  # noqa: PLC0415

        if stream not in {known.name for known in STREAMS}:
            raise CliError(f"there is no stream {stream}")
        if not nats_url:
            nats_url, password_file, ca_file = _of_home(home)
        if password_file is None:
            password_file = home_of(home) / "secrets" / "nats_operator"
        if not yes:
            typer.confirm(f"Throw {stream} away and publish it again?", abort=True)
        password = read_secret(password_file)
        asyncio.run(_delete(stream, nats_url, password, ca_file))
        typer.echo(f"{stream} is published again; the services need a moment.")


def _of_home(home: Path | None) -> tuple[str, Path, Path | None]:
    from deploy.launcher.home import Home as Layout  # noqa: PLC0415

    layout = Layout(home_of(home))
    port = layout.remembered().get("ports", {}).get("nats")
    if port is None:
        raise CliError(f"{layout.root} is no home of `evergreen up`")
    has_tls = '"tls"' in (layout.nats / "nats.conf").read_text(encoding="utf-8")
    host = "tls://localhost" if has_tls else "nats://127.0.0.1"
    ca_file = layout.tls / "ca.crt" if has_tls else None
    return f"{host}:{port}", layout.secrets / "nats_operator", ca_file


async def _delete(stream: str, url: str, password: str, ca_file: Path | None) -> None:
    import nats  # noqa: PLC0415
    import nats.errors  # noqa: PLC0415
    import nats.js.errors  # noqa: PLC0415

    from servicekit.messaging.jetstream import servers_of  # noqa: PLC0415

    async def quiet(_: Exception) -> None:
        """What failed is raised, too."""

    try:
        client = await nats.connect(
            servers_of(url),
            user="operator",
            password=password,
            inbox_prefix="_INBOX_operator",
            tls=ssl.create_default_context(cafile=ca_file) if url.startswith("tls://") else None,
            allow_reconnect=False,
            error_cb=quiet,
        )
        try:
            await client.jetstream().delete_stream(stream)
        finally:
            await client.close()
    except nats.js.errors.NotFoundError:
        return  # somebody else was faster
    except (nats.errors.Error, OSError) as error:
        raise CliError(f"NATS at {url} does not do it: {error or type(error).__name__}") from error
