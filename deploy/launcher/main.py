"""The launcher as a program: its environment, its exit status."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import sys
from typing import Final

from deploy.launcher import options, summary
from deploy.launcher.console import Console
from deploy.launcher.errors import LauncherError
from deploy.launcher.home import Home
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
    home: Home | None = None
    try:
        chosen = options.read()
        console = Console(fmt=chosen.log_format)
        home = Home(chosen.home)
        home.require_whole()
        home.prepare()
        with home.locked():
            asyncio.run(Launcher(chosen, home, console).run())
        return 0
    except LauncherError as error:
        text = summary.failure(error, home.logs if home else None)
        if console is None:
            sys.stderr.write(text)
        else:
            console.say(text)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if console is not None:
            console.close()


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
