"""`evergreen service`: a unit of systemd, so that the product starts with the machine."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli.errors import CliError, told
from cli.options import home_of
from servicekit.security import mode

if TYPE_CHECKING:
    from deploy.systemd import Unit

app = typer.Typer(
    name="service", help="Start the product with the machine (systemd).", no_args_is_help=True
)
_FAILED: Final = 1
_NOT_RUNNING: Final = 3
_NOT_INSTALLED: Final = 4
"""As `systemctl status` ends."""
_UNITS: Final = Path("/etc/systemd/system")
_ENVIRONMENT: Final = Path("/etc/evergreen/evergreen.env")
_TEMPLATE: Final = """\
# Settings of the Evergreen service, one VARIABLE=value a line; docs/install.md has more. After a
# change of the port, of a directory or of the target of backups: evergreen service install.
#EVERGREEN_PUBLIC_URL=https://evergreen.school.example
#EVERGREEN_PORT=8443
#EVERGREEN_BACKUP_TARGET=/backups
#EVERGREEN_BACKUP_SCHEDULE=02:30
#EVERGREEN_BACKUP_SECRETS=/etc/evergreen/backup
"""

Name = Annotated[str, typer.Option(help="The unit's name, where there are several.")]
Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        envvar="EVERGREEN_HOME",
        help="Directory of the installation; ./.evergreen when nothing is given.",
        show_default=False,
    ),
]


@app.command()
def install(
    home: Home = None,
    user: Annotated[
        str,
        typer.Option(
            help="Who runs it; the owner of the home when there is one, else who called sudo.",
            show_default=False,
        ),
    ] = "",
    environment: Annotated[
        Path, typer.Option("--env-file", help="Its settings; made when it is missing.")
    ] = _ENVIRONMENT,
    log_directory: Annotated[
        Path | None,
        typer.Option(
            "--log-dir",
            help="Where log files go, beside the journal; <home>/logs when nothing is given."
            " EVERGREEN_LOG_FILE_MIB and EVERGREEN_LOG_FILES bound them.",
            show_default=False,
        ),
    ] = None,
    name: Name = "evergreen",
    start: Annotated[bool, typer.Option(help="Start it now, too.")] = True,
    show: Annotated[
        bool, typer.Option("--print", help="Show the unit, and change nothing.")
    ] = False,
) -> None:
    """Write a unit of systemd, and start it now and at each boot. As root, or with sudo.

    Run it again after a change of the port, of directories or of the target of backups.
    """
    with told(_FAILED):
        root = home_of(home)
        logs = log_directory.absolute() if log_directory else None
        unit = _unit(root, user or _owner(root), environment.absolute(), logs)
        if show:
            typer.echo(unit.render(), nl=False)
            return
        _require_systemd()
        path = _path(name)
        again = path.exists()
        if not again and start:
            _require_stopped(root)
        _prepare(unit)
        _write(path, unit.render())
        _systemctl("daemon-reload")
        _systemctl("enable", path.name)
        typer.echo(f"Wrote {path}; settings are in {unit.environment_file}.")
        if start:
            typer.echo("Starting; the first time takes a minute ...")
            _systemctl("restart", path.name)
            typer.echo(f"It runs, and starts with the machine. Its log: journalctl -u {path.stem}")


@app.command()
def uninstall(name: Name = "evergreen") -> None:
    """Stop it and remove its unit. The home, its data and the settings stay."""
    with told(_FAILED):
        _require_systemd()
        path = _path(name)
        if not path.exists():
            raise CliError(f"there is no {path}")
        _systemctl("disable", "--now", path.name)
        path.unlink()
        _systemctl("daemon-reload")
        typer.echo(f"Stopped, and removed {path}. Home and settings are where they were.")


@app.command()
def status(name: Name = "evergreen") -> None:
    """Show whether it runs, since when, and what it says. Ends with 3 when it does not run."""
    with told(_FAILED):
        _require_systemd(root=False)
        path = _path(name)
        if not path.exists():
            typer.echo(f"There is no {path}: run evergreen service install.")
            raise typer.Exit(_NOT_INSTALLED)
        names = (
            "ActiveState",
            "SubState",
            "UnitFileState",
            "StatusText",
            "ActiveEnterTimestamp",
            "NRestarts",
        )
        shown = _systemctl("show", path.name, f"--property={','.join(names)}")
        facts = dict(line.partition("=")[::2] for line in shown.splitlines())
        runs = facts.get("ActiveState") == "active"
        since = f" since {facts['ActiveEnterTimestamp']}" if runs else ""
        typer.echo(f"{path.stem}: {facts.get('ActiveState')} ({facts.get('SubState')}){since}")
        if facts.get("StatusText"):
            typer.echo(f"It says: {facts['StatusText']}")
        boot = "starts" if facts.get("UnitFileState") == "enabled" else "does not start"
        typer.echo(f"It {boot} with the machine; restarts after failures: {facts['NRestarts']}.")
        typer.echo(f"Its log: journalctl -u {path.stem}")
        if not runs:
            raise typer.Exit(_NOT_RUNNING)


def _unit(home: Path, user: str, environment: Path, logs: Path | None) -> Unit:
    from deploy.launcher.home import Home as Installation  # noqa: PLC0415
    from deploy.launcher.up import LONGEST_STOP_SECONDS  # noqa: PLC0415
    from deploy.systemd import Unit  # noqa: PLC0415

    try:
        account = pwd.getpwnam(user)
    except KeyError as error:
        raise CliError(f"this machine has no user {user}; make one, or name another") from error
    settings = _settings(environment)
    port = settings.get("EVERGREEN_PORT", "8443")
    if not (port.isascii() and port.isdigit()):
        raise CliError(f"{environment}: EVERGREEN_PORT is {port!r}, not a port")
    if mode.is_required() and settings.get(mode.FIPS) != mode.REQUIRED:
        # systemd does not know the caller's environment: it would run without, and nobody see it.
        raise CliError(
            f"{environment} lacks {mode.FIPS}={mode.REQUIRED}, which this command has: write it"
            " there, with OPENSSL_CONF (docs/fips.md)"
        )
    names = ("EVERGREEN_BACKUP_TARGET", "EVERGREEN_BACKUP_WORK_DIRECTORY", "EVERGREEN_LOG_DIR")
    writable = tuple(
        Path(settings[name]) for name in names if settings.get(name, "").startswith("/")
    )
    return Unit(
        command=_command(),
        home=home,
        user=user,
        group=grp.getgrgid(account.pw_gid).gr_name,
        environment_file=environment,
        port=int(port),
        stop_seconds=LONGEST_STOP_SECONDS,
        writable=writable,
        own_tmp=Installation(home).has_room_for_sockets,
        logs=logs,
    )


def _command() -> tuple[str, ...]:
    """How this very program is started."""
    script = Path(sys.executable).with_name("evergreen")
    return (str(script), "up") if script.exists() else (sys.executable, "-m", "cli.entry", "up")


def _settings(path: Path) -> dict[str, str]:
    """What a file for systemd says, as far as the unit depends on it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{path} cannot be read: {error}") from error
    pairs = (line.strip().partition("=") for line in lines if not line.lstrip().startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, sign, value in pairs if sign}


def _owner(home: Path) -> str:
    """Whose service it is, when nobody is named."""
    if home.exists():
        owner = home.stat().st_uid
        try:
            return pwd.getpwuid(owner).pw_name
        except KeyError as error:
            raise CliError(f"{home} belongs to no user of this machine") from error
    return os.environ.get("SUDO_USER") or pwd.getpwuid(os.geteuid()).pw_name


def _prepare(unit: Unit) -> None:
    """Makes what must be there before the first start, for the one who runs it."""
    account = pwd.getpwnam(unit.user)
    try:
        for directory in (unit.home, *([unit.logs] if unit.logs else ())):
            if not directory.exists():
                directory.mkdir(parents=True, mode=0o700)
                os.chown(directory, account.pw_uid, account.pw_gid, follow_symlinks=False)
        if not unit.environment_file.exists():
            unit.environment_file.parent.mkdir(parents=True, exist_ok=True)
            _write(unit.environment_file, _TEMPLATE, 0o600)
    except OSError as error:
        raise CliError(f"{error.filename} cannot be made: {error.strerror}") from error


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    beside = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(descriptor, mode)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CliError(f"{path} cannot be written: {error.strerror}") from error


def _path(name: str) -> Path:
    if not name.replace("-", "").isalnum():
        raise CliError(f"{name!r} is no name for a unit: use letters, digits and -")
    return _UNITS / f"{name}.service"


def _require_systemd(*, root: bool = True) -> None:
    """Refuses a machine without systemd, and who may not change it.

    Raises:
        CliError: that is so.
    """
    if shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir():
        raise CliError(
            "systemd does not run on this machine. `evergreen service install --print` shows the"
            " unit; for another service manager, let it run `evergreen up` with EVERGREEN_HOME, and"
            " stop it with SIGTERM"
        )
    if root and os.geteuid() != 0:
        raise CliError("this changes the machine: run it with sudo")


def _require_stopped(home: Path) -> None:
    """Refuses a home that runs without systemd: two cannot have it.

    Raises:
        CliError: it runs.
    """
    from deploy.launcher.errors import LauncherError  # noqa: PLC0415
    from deploy.launcher.home import Home as Installation  # noqa: PLC0415

    if not home.exists():
        return
    try:
        # As root: a lock that is made here could not be taken by the one who is to run it.
        Installation(home).require_free()
    except LauncherError as error:
        raise CliError(f"{error.message} Stop it first") from error
    except OSError as error:
        raise CliError(f"{home} cannot be used: {error.strerror}") from error


def _systemctl(*words: str) -> str:
    """What systemctl answers.

    Raises:
        CliError: it fails.
    """
    done = subprocess.run(  # noqa: S603 - no shell
        ("systemctl", *words),  # noqa: S607 - of the administrator's PATH
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip()
        hint = f"; see journalctl -u {words[-1]} -e" if words[0] == "restart" else ""
        raise CliError(f"systemctl {' '.join(words)}: {said}{hint}")
    return done.stdout
