"""`evergreen bootstrap`: what the first start of an installation in containers made."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.errors import CliError, told
from cli.options import Home, home_of
from deploy.containers.settings import only_here
from deploy.launcher import bootstrap as first_start
from deploy.launcher.errors import LauncherError
from deploy.launcher.home import Home as Installation


@dataclass(frozen=True, slots=True)
class _Api(first_start.Api):
    """The API, reached at another address than the public one, which may not lead here."""

    connect: str = ""

    def call(self, path: str, body: Any = None, token: str = "") -> bytes:
        """As `Api.call`; the certificate has to be the public host's all the same."""
        import httpx  # noqa: PLC0415

        from cli.client import connected  # noqa: PLC0415

        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with connected(self.url, self.ca_file, self.connect) as client:
                method = "GET" if body is None else "POST"
                answer = client.request(method, path, json=body, headers=headers)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise LauncherError(f"{path} through the gateway failed: {error}") from error
        return answer.content


def bootstrap(
    public_url: Annotated[str, typer.Option(envvar="PUBLIC_URL", help="Where the gateway is.")],
    home: Home = None,
    connect: Annotated[
        str,
        typer.Option(
            envvar="EVERGREEN_CONNECT",
            help="HOST:PORT of the gateway, when PUBLIC_URL leads elsewhere.",
        ),
    ] = "",
    certificate: Annotated[
        Path | None,
        typer.Option(
            envvar="EVERGREEN_CERTIFICATE", help="Directory of the certificate that was given."
        ),
    ] = None,
    ca: Annotated[bool, typer.Option("--ca", help="Print the CA that devices trust.")] = False,
    policy_key: Annotated[
        bool, typer.Option("--policy-key", help="Print the key that devices check policies with.")
    ] = False,
    email: Annotated[
        str, typer.Option(envvar="EVERGREEN_ADMIN_EMAIL", help="The first Owner.")
    ] = "owner@localhost",
) -> None:
    """Print the first Owner's password, the first pre-shared key and what else is needed."""
    with told(1):
        there = Installation(home_of(home))
        given = certificate / "fullchain.pem" if certificate else None
        ca_file = given if given and given.exists() else there.tls / "ca.crt"
        api = _Api(public_url.rstrip("/"), ca_file, connect)
        try:
            facts = asyncio.run(first_start.write(there, api, email))
        except LauncherError as error:
            raise CliError(str(error)) from error
        if ca:
            typer.echo(ca_file.read_text(encoding="ascii"), nl=False)
        elif policy_key:
            typer.echo(there.policy_public_key_file.read_text(encoding="ascii"), nl=False)
        else:
            typer.echo(json.dumps(facts, indent=2))
            if warning := only_here(public_url):
                typer.echo(warning, err=True)
