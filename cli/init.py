"""`evergreen init` and `evergreen gateway render`: the files of an installation in containers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import CliError, told

gateway_app = typer.Typer(
    name="gateway",
    help="The gateway's configuration, for an Envoy in a container.",
    no_args_is_help=True,
)

PublicUrl = Annotated[
    str,
    typer.Option(
        "--public-url", envvar="PUBLIC_URL", help="Where devices and browsers reach the gateway."
    ),
]
FormerPublicUrls = Annotated[
    str,
    typer.Option(
        "--former-public-urls",
        envvar="FORMER_PUBLIC_URLS",
        help="Its addresses of before, with commas between them, which go on working.",
        show_default=False,
    ),
]
TrustedProxies = Annotated[
    int,
    typer.Option(
        "--trusted-proxies",
        envvar="TRUSTED_PROXIES",
        min=0,
        help="How many reverse proxies stand in front and append to X-Forwarded-For.",
    ),
]
ConsoleUrl = Annotated[
    str,
    typer.Option(
        "--console-url",
        envvar="CONSOLE_URL",
        help="Where the web console runs, to be served under the same address.",
        show_default=False,
    ),
]
Workers = Annotated[
    int,
    typer.Option("--gateway-workers", envvar="GATEWAY_WORKERS", min=1, help="Envoy's threads."),
]


def _former(urls: str) -> tuple[str, ...]:
    from servicekit.http.origins import origins_of  # noqa: PLC0415

    try:
        return origins_of(urls)
    except ValueError as error:
        raise CliError(f"FORMER_PUBLIC_URLS: {error}") from error


@contextmanager
def _plainly() -> Iterator[None]:
    from deploy.containers.settings import InstallationError  # noqa: PLC0415

    with told(1):
        try:
            yield
        except InstallationError as error:
            raise CliError(str(error)) from error
        except OSError as error:
            raise CliError(f"{error.filename or 'a file'}: {error.strerror}") from error


def init(
    directory: Annotated[
        Path, typer.Argument(help="Directory for the output, with one directory for each program.")
    ],
    public_url: PublicUrl,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Complete an installation: no secret of it is ever changed."),
    ] = False,
    published_port: Annotated[
        int,
        typer.Option(
            envvar="HTTPS_PORT", help="The machine's port that leads to the gateway.", min=0
        ),
    ] = 0,
    certificate: Annotated[
        Path | None,
        typer.Option(
            envvar="EVERGREEN_CERTIFICATE",
            help="Directory with fullchain.pem and privkey.pem; without them, a local CA signs.",
            show_default=False,
        ),
    ] = None,
    former_public_urls: FormerPublicUrls = "",
    trusted_proxies: TrustedProxies = 0,
    console_url: ConsoleUrl = "",
    gateway_workers: Workers = 1,
    postgres_major: Annotated[
        int | None,
        typer.Option(
            envvar="EVERGREEN_POSTGRES_MAJOR",
            help="The major version of PostgreSQL that is started on DIRECTORY/postgres-data.",
            show_default=False,
        ),
    ] = None,
    empty_database: Annotated[
        bool,
        typer.Option(
            "--empty-database",
            envvar="EVERGREEN_EMPTY_DATABASE",
            help="Let it begin empty beside an older one's data: a backup is restored next.",
        ),
    ] = False,
) -> None:
    """Make the secrets, certificates and configurations of an installation in containers."""
    with _plainly():
        from deploy.containers.files import MADE, make  # noqa: PLC0415
        from deploy.containers.settings import Installation, only_here  # noqa: PLC0415

        given = certificate if certificate and any(certificate.iterdir()) else None
        installation = Installation(
            public_url=public_url,
            former_public_urls=_former(former_public_urls),
            published_port=published_port or None,
            certificate=given,
            trusted_proxies=trusted_proxies,
            console_url=console_url,
            gateway_workers=gateway_workers,
            postgres_major=postgres_major,
            empty_database=empty_database,
        )
        make(directory.absolute(), installation, keep=keep)
        typer.echo(f"In {directory} (every file with mode 0600):")
        for name, meaning in MADE.items():
            typer.echo(f"  {name}\n      {meaning}")
        if warning := only_here(public_url):
            typer.echo(warning, err=True)


@gateway_app.command()
def render(
    directory: Annotated[Path, typer.Argument(help="Directory for the output.")],
    mounted: Annotated[
        Path, typer.Option(help="Where Envoy finds that directory, and its certificates in it.")
    ] = Path("/run/evergreen"),
    service_host: Annotated[
        str, typer.Option(envvar="SERVICE_HOST", help="Host name of a service, with {context}.")
    ] = "{context}",
    listen: Annotated[
        str, typer.Option(envvar="GATEWAY_LISTEN", help="Address to listen on; :: for IPv6 too.")
    ] = "0.0.0.0",  # noqa: S104 - a container's own address
    server_certificate: Annotated[
        Path | None,
        typer.Option(
            envvar="GATEWAY_CERTIFICATE",
            help="Where Envoy finds tls.crt and tls.key for clients, if they lie elsewhere.",
            show_default=False,
        ),
    ] = None,
    inside_certificate: Annotated[
        Path | None,
        typer.Option(
            envvar="GATEWAY_INSIDE_CERTIFICATE",
            help="Where it finds ca.crt, tls.crt and tls.key for the services, likewise.",
            show_default=False,
        ),
    ] = None,
    public_url: PublicUrl = "",
    former_public_urls: FormerPublicUrls = "",
    trusted_proxies: TrustedProxies = 0,
    console_url: ConsoleUrl = "",
    gateway_workers: Workers = 1,
) -> None:
    """Write Envoy's configuration; a running Envoy takes it over.

    Limits are those that fit this container's memory, and EVERGREEN_GATEWAY_<NAME> says others.
    Beside the files, Envoy needs server.crt and server.key (for clients), and ca.crt, tls.crt and
    tls.key (for the services; DNS name `gateway`) in the directory.
    """
    with _plainly():
        from deploy.containers.files import render_gateway  # noqa: PLC0415
        from deploy.containers.settings import Installation  # noqa: PLC0415

        installation = Installation(
            public_url=public_url,
            former_public_urls=_former(former_public_urls),
            trusted_proxies=trusted_proxies,
            console_url=console_url,
            gateway_workers=gateway_workers,
            service_host=service_host,
            listen=listen,
            server_certificate=server_certificate,
            inside_certificate=inside_certificate,
        )
        render_gateway(directory, installation, mounted)
        typer.echo(f"Envoy starts with --config-path {mounted / 'bootstrap.yaml'}")
