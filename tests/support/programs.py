"""The command line, as a program of its own for each call, without an interpreter's start for each.

Python takes longer to start and to load the command line than most commands take. One process has
it loaded, and forks for each call: what is called has its own arguments, environment, directory and
files, and ends as a program does. `python -m tests.support.programs SOCKET` is that process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_LONGEST: Final = 1 << 20
_NOT_LOADED_YET: Final = ("EVERGREEN_FIPS", "EVERGREEN_SUITES", "PYTHON")
"""How environment begins that is looked at while modules are loaded."""


def evergreen(
    arguments: Sequence[str | Path], environment: Mapping[str, str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """Runs a command, with nothing on its standard input; answers what it said.

    Args:
        arguments: behind `evergreen`.
        environment: all of it.
        seconds: it is killed after.

    Raises:
        subprocess.TimeoutExpired: it was.
    """
    words = [*map(str, arguments)]
    if any(
        name.startswith(_NOT_LOADED_YET) and value != os.environ.get(name)
        for name, value in environment.items()
    ):
        return subprocess.run(
            [sys.executable, "-m", "cli.main", *words],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        code = _call(words, environment, (out.fileno(), err.fileno()), seconds)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(words, code, *said)


def _call(
    words: list[str], environment: Mapping[str, str], files: tuple[int, int], seconds: float
) -> int:
    wanted = json.dumps([words, dict(environment), str(Path.cwd())]).encode()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as call,
        Path(os.devnull).open() as nothing,
    ):
        call.connect(_server())
        socket.send_fds(call, [wanted], [nothing.fileno(), *files])
        pid = int(call.recv(_LONGEST))
        call.settimeout(seconds)
        try:
            return int(call.recv(_LONGEST))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(words, seconds) from None


@functools.cache
def _server() -> str:
    """The address of the process that forks; it ends with this one."""
    directory = tempfile.mkdtemp(prefix="evergreen-programs-")
    path = f"{directory}/socket"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.programs", path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n", "the command line was not loaded"

    def end() -> None:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        Path(directory).rmdir()

    atexit.register(end)
    return path


def main(path: str) -> None:
    """Forks for each call, until standard input ends."""
    # What commands load themselves, when they are run.
    import asyncpg  # noqa: F401, PLC0415
    import httpx  # noqa: F401, PLC0415

    import cli.client  # noqa: PLC0415
    import cli.main  # noqa: F401, PLC0415

    # Nobody waits for those who wait for a command.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        ways = selectors.DefaultSelector()
        ways.register(listener, selectors.EVENT_READ)
        ways.register(sys.stdin, selectors.EVENT_READ)
        while not any(key.fileobj is sys.stdin for key, _ in ways.select()):
            call, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _serve(call)
            call.close()
    Path(path).unlink()


def _serve(call: socket.socket) -> None:
    """Runs one command, and says how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    wanted, files, _, _ = socket.recv_fds(call, _LONGEST, 3)
    words, environment, directory = json.loads(wanted)
    pid = os.fork()
    if pid == 0:
        call.close()
        _become(words, environment, directory, files)
    call.send(str(pid).encode())
    _, status = os.waitpid(pid, 0)
    # Who called may be gone.
    with contextlib.suppress(OSError):
        call.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(
    words: list[str], environment: dict[str, str], directory: str, files: list[int]
) -> None:
    """Is the command, to its end."""
    from cli.main import run  # noqa: PLC0415

    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["evergreen", *words]
    sys.modules["__main__"].__package__ = None
    code: Any = 0
    try:
        run()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    main(sys.argv[1])
