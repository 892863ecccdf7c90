"""Services forked from one process that has loaded their code (`servicekit.zygote`).

It ends when all services run: a page that every child has changed would be kept by it alone. A
service that it cannot fork, whatever the reason, is started as any other process; so is one that
crashes later.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from deploy.launcher.events import parse_service
from deploy.launcher.process import ProcessSpec, environment

NAME: Final = "zygote"
CAN_ADOPT: Final = sys.platform == "linux" and hasattr(os, "pidfd_open")
_PR_SET_CHILD_SUBREAPER: Final = 36
_START_SECONDS: Final = 15.0
"""So long it may take to load everything."""
_FORK_SECONDS: Final = 10.0
_libc = ctypes.CDLL(None, use_errno=True)


class Zygote:
    """The process, and what it is asked for.

    Args:
        run: the directory of the sockets.
    """

    def __init__(self, run: Path) -> None:
        self._socket = run / f"{NAME}.sock"
        self._run = run
        self._turn = asyncio.Lock()
        self._is_over = False

    def process(self) -> ProcessSpec:
        """The process itself."""
        return ProcessSpec(
            name=NAME,
            argv=(sys.executable, "-P", "-m", "servicekit.zygote", str(self._socket)),
            parse=parse_service,
            cwd=self._run,
        )

    def end(self) -> None:
        """Says that the process is about to be stopped: nobody waits for it any more."""
        self._is_over = True

    async def fork(self, spec: ProcessSpec, output: int) -> Adopted:
        """Starts `python -P -m MODULE` as a child of this process.

        Raises:
            OSError: that is not possible at the moment.
        """
        question = {
            "module": spec.argv[-1],
            "command": "\0".join(spec.argv),
            "environment": environment(spec),
            "directory": str(spec.cwd),
            "orphan_signal": int(spec.orphan_signal),
            "parent": os.getpid(),
        }
        loop = asyncio.get_running_loop()
        async with self._turn:
            with await self._connected() as asked, _adopting():
                socket.send_fds(asked, [json.dumps(question).encode()], [output])
                async with asyncio.timeout(_FORK_SECONDS):
                    answer = await loop.sock_recv(asked, 32)
                if not answer:
                    raise ConnectionResetError("the zygote did not fork it")
                child = Adopted(int(answer))
                await loop.sock_sendall(asked, b"1")
                return child

    async def _connected(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + _START_SECONDS
        while True:
            if self._is_over:
                raise ConnectionRefusedError("the zygote has ended")
            asked = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            try:
                await loop.sock_connect(asked, str(self._socket))
            except OSError:
                asked.close()
                if self._is_over or loop.time() > give_up_at:
                    raise
            else:
                return asked
            await asyncio.sleep(0.02)


@contextmanager
def _adopting() -> Iterator[None]:
    """Becomes the parent of the grandchildren whose parents end meanwhile.

    No longer than that: nobody here waits for other programs' orphans.
    """
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class Adopted:
    """A child that another process made for this one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = loop.create_future()
        self._descriptor = os.pidfd_open(pid)
        loop.add_reader(self._descriptor, self._note_end)

    def _note_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set_result(self.returncode)

    async def wait(self) -> int:
        """Waits until it has ended; answers its exit status, negative for a signal."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        """Sends it a signal.

        Raises:
            ProcessLookupError: it has ended.
        """
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills it.

        Raises:
            ProcessLookupError: it has ended.
        """
        self.send_signal(signal.SIGKILL)
