"""The command `evergreen backup restore-release`, which the chart's Job for restores runs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli.backup.commands import (
    Archive,
    Identity,
    PassphraseFile,
    given_target,
    key_of,
    run_on_database,
    say,
)
from cli.errors import CliError, told
from cli.options import REDACTED_FILE

if TYPE_CHECKING:
    from cli.backup.aftermath import Outcome

_FAILED: Final = 1
_REFUSED: Final = 2
"""The exit code after which the Job is not tried again."""
_NEWEST: Final = "newest"


def restore_release(
    archive: Archive,
    release: Annotated[
        str,
        typer.Option(
            envvar="EVERGREEN_RELEASE", help="What the names of the release's objects begin with."
        ),
    ],
    instance: Annotated[
        str,
        typer.Option(envvar="EVERGREEN_RELEASE_INSTANCE", help="The release's name, as in labels."),
    ],
    master_key_file: Annotated[
        Path, typer.Option(envvar="EVERGREEN_MASTER_KEY_FILE", help="File with the master key.")
    ],
    run: Annotated[
        str,
        typer.Option(
            envvar="EVERGREEN_RESTORE_RUN",
            help="What names this restore. One of the same name goes on where it was cut short.",
        ),
    ],
    public_url: Annotated[
        str, typer.Option(envvar="PUBLIC_URL", help="Where devices and browsers reach the gateway.")
    ],
    admin_secret: Annotated[
        str,
        typer.Option(
            envvar="EVERGREEN_RELEASE_ADMIN_SECRET",
            help="The Secret that gets the first Owner's password; none without it.",
        ),
    ] = "",
    gateway_secret: Annotated[
        str,
        typer.Option(
            envvar="EVERGREEN_RELEASE_GATEWAY_SECRET",
            help="The Secret that gets the gateway's certificate, if it is for PUBLIC_URL.",
        ),
    ] = "",
    ca_secret: Annotated[
        str,
        typer.Option(
            envvar="EVERGREEN_RELEASE_CA_SECRET",
            help="The Secret that gets the CA of that certificate, and its key.",
        ),
    ] = "",
    passphrase_file: PassphraseFile = None,
    identity: Identity = None,
    redacted_file: Annotated[
        Path | None,
        typer.Option(
            "--redacted-file",
            envvar=REDACTED_FILE,
            help="The list that `evergreen audit redact` keeps: what it names is redacted again.",
        ),
    ] = None,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget-replaced",
            envvar="EVERGREEN_RESTORE_FORGET_REPLACED",
            help="Keep nothing of the replaced installation.",
        ),
    ] = False,
) -> None:
    """Put an archive back into a release of the Helm chart, from a pod of its cluster.

    Stops the services, restores, fills the Secrets that the chart made, starts the services, and
    examines the installation. The master key stays as it is. ARCHIVE may also be the name of a
    backup in EVERGREEN_BACKUP_TARGET, or `newest`. Ends with 2 when it refuses to begin.
    """
    with told(_FAILED), _cluster_told():
        from cli.backup.facts import Facts, read_redacted  # noqa: PLC0415
        from cli.backup.fetch import fetched  # noqa: PLC0415
        from cli.backup.procedure import Wanted  # noqa: PLC0415
        from cli.cluster.release import Release, ReleaseSecrets  # noqa: PLC0415
        from cli.cluster.restore import RefusedError, ReleaseRestore, start_again  # noqa: PLC0415
        from deploy.kubernetes.api import Api  # noqa: PLC0415

        api = Api.of_pod(os.environ)
        key = key_of(
            passphrase_file or _given("passphrase", "PASSPHRASE_FILE"),
            identity or _given("identity", "IDENTITY_FILE"),
        )
        facts = Facts()
        if (listed := redacted_file or _given("redacted", "")) is not None:
            read_redacted(listed, facts)
        there = Release(api, release, instance)
        with contextlib.ExitStack() as stack:
            try:
                path = stack.enter_context(
                    fetched(_found(archive), None, lambda name: _say(f"Fetched {name}."))
                )
            except CliError:
                # An earlier attempt may have stopped them.
                run_on_database(start_again(there, given_target()))
                raise
            work = ReleaseRestore(
                Wanted(path, key, facts, replace=True, carry=not forget, run=run),
                there,
                ReleaseSecrets(
                    api, master_key_file, admin_secret, gateway_secret, ca_secret, public_url
                ),
                given_target(),
                _say,
            )
            try:
                done = run_on_database(work.run())
            except RefusedError as error:
                typer.echo(f"evergreen: {error}", err=True)
                raise typer.Exit(_REFUSED) from None
        if done is not None:
            _tell(*done)
        _examine()


@contextlib.contextmanager
def _cluster_told() -> Iterator[None]:
    """Ends the command, too, where the cluster's API does not answer or refuses."""
    from deploy.kubernetes.api import KubernetesError  # noqa: PLC0415

    try:
        yield
    except KubernetesError as error:
        raise CliError(str(error)) from error


def _say(line: str) -> None:
    typer.echo(line)
    sys.stdout.flush()


def _given(name: str, usual: str) -> Path | None:
    """A file of the restore's Secret, else of the one that backups have, if they have one."""
    from cli.backup.stores.store import secret_file  # noqa: PLC0415

    path = Path(os.environ.get("EVERGREEN_RESTORE_SECRETS", "/nonexistent")) / name
    if path.exists():
        return path
    return secret_file(usual) if usual else None


def _tell(outcome: Outcome, left: list[str]) -> None:
    if "tls/server.crt" in left:
        _say(
            "The gateway keeps its certificate: the archive's is not for this release. Devices"
            " that trust another CA do not come back before they trust this one."
        )
    say(outcome, "The services run.")


def _found(archive: str) -> str:
    """The archive's path."""
    target = os.environ.get("EVERGREEN_BACKUP_TARGET", "").rstrip("/")
    if "/" in archive:
        return archive
    if not target:
        raise CliError(f"{archive}: give a path, or set EVERGREEN_BACKUP_TARGET")
    return target if archive == _NEWEST else f"{target}/{archive}"


def _examine() -> None:
    _say("evergreen doctor:")
    # With settings of its own, as a person would run it; what it finds does not undo the restore.
    subprocess.run([sys.executable, "-m", "cli.entry", "doctor"], check=False)
