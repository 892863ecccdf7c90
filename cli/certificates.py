"""`evergreen certificates`: renewal in Kubernetes, and the replacement of a CA."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli.durations import duration
from cli.errors import CliError, told
from cli.options import home_of

app = typer.Typer(
    name="certificates",
    help="Certificates of the installation's own CAs: renew them, replace a CA.",
    no_args_is_help=True,
)

_STEPS: Final = ("kept", "begin", "switch", "end")
_FAILED: Final = 1


@app.command()
def renew(
    authorities: Annotated[str, typer.Option(help="Secret with the CAs.")],
    gateway: Annotated[str, typer.Option(help="Secret with the gateway's certificate.")] = "",
    gateway_host: Annotated[
        list[str] | None, typer.Option(help="A name of the gateway; may be repeated.")
    ] = None,
    gateway_life: Annotated[str, typer.Option(help="How long its certificates live.")] = "9528h",
    gateway_ca: Annotated[str, typer.Option(help=f"Its CA: {', '.join(_STEPS)}.")] = "kept",
    inside: Annotated[
        str, typer.Option(help="Secret with the certificates between the parts.")
    ] = "",
    inside_host: Annotated[
        list[str] | None, typer.Option(help="PARTY=NAME of one of them; may be repeated.")
    ] = None,
    inside_life: Annotated[str, typer.Option(help="How long those live.")] = "43824h",
    inside_ca: Annotated[str, typer.Option(help=f"Their CA: {', '.join(_STEPS)}.")] = "kept",
) -> None:
    """Renew certificates of a Helm release that are due: two thirds of their life are over.

    Runs in a pod that may read and replace these Secrets; the chart's CronJob is one. What is not
    due stays as it is.
    """
    with told(_FAILED):
        from dataclasses import replace  # noqa: PLC0415
        from datetime import timedelta  # noqa: PLC0415

        from deploy.certificates import INSIDE, SERVER, AuthorityError  # noqa: PLC0415
        from deploy.kubernetes import certificates  # noqa: PLC0415
        from deploy.kubernetes.api import Api, KubernetesError  # noqa: PLC0415

        lives = {
            kind: timedelta(seconds=duration(text, f"--{name}-life"))
            for kind, name, text in (
                (SERVER, "gateway", gateway_life),
                (INSIDE, "inside", inside_life),
            )
        }
        parties: dict[str, list[str]] = {}
        for text in inside_host or ():
            party, equals, host = text.partition("=")
            if not equals:
                raise CliError(f"--inside-host is PARTY=NAME, not {text!r}")
            parties.setdefault(party, []).append(host)
        wanted = certificates.Wanted(
            authorities=authorities,
            gateway=gateway,
            gateway_hosts=gateway_host or (),
            gateway_kind=replace(SERVER, life=lives[SERVER]),
            gateway_ca=_step(gateway_ca),
            inside=inside,
            inside_hosts=parties,
            inside_kind=replace(INSIDE, life=lives[INSIDE]),
            inside_ca=_step(inside_ca),
        )
        try:
            done = certificates.renew(Api.of_pod(os.environ), wanted)
        except (KubernetesError, AuthorityError, ValueError) as error:
            raise CliError(str(error)) from error
        for line in done or ["nothing is due"]:
            typer.echo(line)


@app.command()
def rollover(
    which: Annotated[
        str,
        typer.Argument(
            help="`gateway`: the CA that devices trust; `inside`: the one between the parts."
        ),
    ],
    step: Annotated[str, typer.Argument(help="begin, switch or end.")],
    home: Annotated[
        Path | None,
        typer.Option(
            "--home", envvar="EVERGREEN_HOME", help="Directory of the installation.",
            show_default=False,
        ),
    ] = None,
) -> None:  # fmt: skip
    """Replace a CA in three steps, without a moment in which it is not trusted.

    `begin` makes the next CA and adds it to ca.crt: give that file to all devices. `switch` lets
    the next CA sign. `end` takes the old one out of ca.crt. (In Kubernetes: the chart's values
    certificates.gatewayCa and certificates.insideCa.)
    """
    with told(_FAILED):
        from deploy.certificates import Authority  # noqa: PLC0415
        from deploy.launcher.home import Home  # noqa: PLC0415

        root = home_of(home)
        directories = {"gateway": Home(root).tls, "inside": root / "inside"}
        if which not in directories or step not in _STEPS[1:]:
            raise CliError("say gateway or inside, and begin, switch or end")
        directory = directories[which]
        authority = Authority(directory / "ca.crt", directory / "ca.key")
        if not authority.certificate_file.exists():
            raise CliError(f"there is no CA in {directory}")
        name = "Evergreen CA" if which == "gateway" else "Evergreen inside CA"
        changed = {
            "begin": lambda: authority.begin(name),
            "switch": authority.switch,
            "end": authority.end,
        }[step]()
        typer.echo(_SAID[step] if changed else "nothing to do")
        if step == "begin":
            typer.echo(f"{authority.certificate_file} has both certificates")


_SAID: Final = {
    "begin": "The next CA is made, and trusted beside the old one.",
    "switch": "The next CA signs from now on; the old one is still trusted.",
    "end": "The old CA is not trusted any more.",
}


def _step(text: str) -> Any:
    if text not in _STEPS:
        raise CliError(f"a CA is {', '.join(_STEPS)}; not {text!r}")
    return text
