"""The launcher as a program: its environment, its exit status."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Final

from deploy.launcher import options, summary
from deploy.launcher.console import Console
from deploy.launcher.errors import LauncherError
from deploy.launcher.home import Home
from deploy.launcher.postgres import require_major
from deploy.launcher.up import Launcher

_PR_SET_PDEATHSIG: Final = 1
_OPEN_FILES: Final = 1 << 20
"""Each connection of a device is one."""


def run() -> int:
    """Runs the launcher until it is stopped; answers the exit status."""
    # Whatever any of the processes writes is for this user's eyes only.
    os.umask(0o077)
    _stop_with_make()
    _allow_many_connections()
    console: Console | None = None
    chosen: options.Options | None = None
    try:
        chosen = options.read()
        console = Console(fmt=chosen.log_format)
        home = Home(chosen.home)
        home.require_whole()
        home.prepare()
        _make_logs(chosen.logs)
        with home.locked():
            require_major(home)
            asyncio.run(Launcher(chosen, home, console).run())
        return 0
    except LauncherError as error:
        text = summary.failure(error, chosen.logs if chosen else None)
        if console is None:
            sys.stderr.write(text)
        else:
            console.say(text)
        return error.status
    except KeyboardInterrupt:
        return 130
    finally:
        if console is not None:
            console.close()


def _make_logs(directory: Path) -> None:
    """Makes the directory of the log files; one that is given keeps its mode.

    Raises:
        LauncherError: it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise LauncherError(
            f"The directory {directory} for logs cannot be made: {error.strerror}.",
            advice="Set EVERGREEN_LOG_DIR to a directory that you can write.",
        ) from error


def _stop_with_make() -> None:
    """`make run` is one program to its user: when make is killed, this stops as well."""
    if os.environ.get("MAKELEVEL") and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def _allow_many_connections() -> None:
    """Raises the limit of open files, which the processes inherit, as far as is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
