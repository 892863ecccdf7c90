"""One process: how it is started so that it never outlives the launcher, and how it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from deploy.launcher.events import Parser
from servicekit.security import mode

_PR_SET_PDEATHSIG: Final = 1
# Looked up before the fork: the child must not search for libraries.
_prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class Account:
    """The user that a process runs as, when the launcher runs as root."""

    uid: int
    gid: int


class Child(Protocol):
    """A child process of the launcher; `asyncio.subprocess.Process` is one."""

    pid: int

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; `None` while it runs."""
        ...

    async def wait(self) -> int:
        """Waits until it has ended; answers its exit status."""
        ...

    def send_signal(self, signal: int) -> None:
        """Sends it a signal.

        Raises:
            ProcessLookupError: it has ended.
        """
        ...

    def kill(self) -> None:
        """Kills it.

        Raises:
            ProcessLookupError: it has ended.
        """
        ...


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to run, and how to stop it."""

    name: str
    argv: tuple[str, ...]
    parse: Parser
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Beside the few variables of the launcher's own environment that every process gets."""
    shown_from: str = "info"
    """The least level that the terminal shows."""
    account: Account | None = None
    pass_fds: tuple[int, ...] = ()
    fork: Callable[[ProcessSpec, int], Awaitable[Child]] | None = None
    """Starts it in a cheaper way than `spawn`, with its output going to a descriptor.

    Raises OSError if that is not possible at the moment.
    """
    prepare: Callable[[], Awaitable[None]] | None = None
    """Done before each start, after a crash too."""
    stuck: Callable[[], Awaitable[str]] | None = None
    """Says what keeps a running process from ever working again; empty while nothing does. Asked
    now and then; a process that is stuck for some time is restarted."""
    drain: Callable[[], Awaitable[None]] | None = None
    """Done before the stop signal."""
    stop_signal: signal.Signals = signal.SIGTERM
    grace: float = 8.0
    """Seconds from the stop signal to the next, harder one."""
    hurry_signal: signal.Signals = signal.SIGKILL
    """What follows when the grace is over or a person is in a hurry."""
    orphan_signal: signal.Signals = signal.SIGKILL
    """What the kernel sends when the launcher dies."""

    @property
    def is_ours(self) -> bool:
        """Whether it runs code of this product, and not another program."""
        return self.argv[0] == sys.executable


# PYTHON… and PATH would let the caller's shell change what the services import.
_INHERITED: Final = (
    "LANG",
    "LC_ALL",
    "HOME",
    "TMPDIR",
    "PATH",
    # Which algorithms there are, for all processes alike.
    mode.FIPS,
    mode.SUITES,
)
_OPENSSL: Final = ("OPENSSL_CONF", "OPENSSL_MODULES", mode.SHA256)
"""Which module of OpenSSL there is; in FIPS mode alone, for a caller's shell may be about
something else."""
_SET: Final = {"TZ": "UTC"}
"""So that all logs, and whatever a library says of a time, are in one zone."""


def environment(spec: ProcessSpec) -> dict[str, str]:
    """All that the process is told by its environment."""
    names = _INHERITED + (_OPENSSL if mode.is_required() else ())
    inherited = {name: os.environ[name] for name in names if name in os.environ}
    return inherited | _SET | dict(spec.env)


async def spawn(spec: ProcessSpec, output: int) -> Child:
    """Starts the process in a session of its own, all its output going to a descriptor.

    Raises:
        OSError: it cannot be started.
    """
    account: dict[str, object] = {}
    if spec.account is not None:
        account = {"user": spec.account.uid, "group": spec.account.gid, "extra_groups": []}
    return await asyncio.create_subprocess_exec(
        *spec.argv,
        cwd=spec.cwd,
        env=environment(spec),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=asyncio.subprocess.STDOUT,
        # Ctrl-C in the terminal reaches the launcher only, which stops its processes in order.
        start_new_session=True,
        pass_fds=spec.pass_fds,
        preexec_fn=_die_with(os.getpid(), spec.orphan_signal),
        **account,  # type: ignore[arg-type]  # typeshed types each keyword apart
    )


def _die_with(launcher: int, orphan_signal: signal.Signals) -> Callable[[], None]:
    """Ties the child to the launcher; runs in the child after it changed its user."""

    def tie() -> None:
        if _prctl is not None:
            _prctl(_PR_SET_PDEATHSIG, int(orphan_signal), 0, 0, 0)
        if os.getppid() != launcher:
            os._exit(1)

    return tie


def kill_group(pid: int) -> None:
    """Kills what a process that has ended left behind in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def describe_exit(code: int) -> str:
    """An exit status in words: `exit status 1`, `killed by SIGKILL`."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def start_time(pid: int) -> str | None:
    """When the kernel started the process, in its own unit; None when there is no such process.

    Together with the id it names a process for good: ids are used again.
    """
    try:
        # The command name may hold spaces and parentheses; the fields follow its last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] == "Z" else fields[19]
