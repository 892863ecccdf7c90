"""`python -m servicekit.zygote SOCKET`: has what all services load, and forks services from it.

Nine tenths of a service's memory is code, and the six share most of it. Forked from one process,
they also share its memory. This process does nothing by itself: it has no event loop, no thread and
no connection, and gRPC is only imported. Who asks it for a service (`deploy.launcher.zygote`)
becomes the parent of that service, so it lives on when this process ends.

A question is one message on the socket: JSON, and the descriptor where output goes. The child
answers with its process id, and begins when that was heard.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

from contract.contexts import CONTEXTS

LOADED: Final = (
    "servicekit.app",
    *(f"evergreen.v1.{name}_pb2_grpc" for name in (*CONTEXTS, "device")),
    "servicekit.keys.service",
    "servicekit.rpc.reflection",
    "servicekit.security.jwt",
    "servicekit.security.nkey",
    "servicekit.security.passwords",
    # Of the pages; one service has them, and none pays for them that has none.
    "servicekit.http.asgi",
    "fastapi",
    "starlette.staticfiles",
)
"""What is shared. No service's own modules: each has its own metrics, and nothing of another."""

MOST_BYTES: Final = 1 << 16
_PR_SET_PDEATHSIG: Final = 1
_ADOPTION_SECONDS: Final = 5.0
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Forks services until it is ended; returns in each of them when that has ended."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    Path(sys.argv[1]).unlink(missing_ok=True)
    # What the collector would write into every object is what could not be shared.
    gc.disable()
    for name in LOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    listener.bind(sys.argv[1])
    listener.listen()
    while True:
        asked, _ = listener.accept()
        with asked:
            wanted = _child(asked)
        if wanted:
            break
    listener.close()
    gc.enable()
    sys.argv = [wanted]
    runpy.run_module(wanted, run_name="__main__", alter_sys=True)


def _child(asked: socket.socket) -> str:
    """Answers a question; in the child with the module that it is to run."""
    data, descriptors, *_ = socket.recv_fds(asked, MOST_BYTES, 1)
    # One that goes at once, so that the child is left to the process that adopts it.
    if (between := os.fork()) != 0:
        os.waitpid(between, 0)
        for descriptor in descriptors:
            os.close(descriptor)
        return ""
    if os.fork() != 0:
        os._exit(0)
    try:
        return _become(asked, json.loads(data), descriptors[0])
    except BaseException as error:
        os.write(2, f"not begun: {error!r}\n".encode())
        os._exit(1)


def _become(asked: socket.socket, wanted: dict[str, Any], output: int) -> str:
    """Makes this process what a new one would be; answers the module that it is to run."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, to in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, to)
    os.close(nothing)
    os.close(output)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    time.tzset()
    os.chdir(wanted["directory"])
    _show_as(wanted["command"])
    end = time.monotonic() + _ADOPTION_SECONDS
    while os.getppid() != wanted["parent"]:
        if time.monotonic() > end:
            raise ChildProcessError("not adopted by the process that asked")
        time.sleep(0.001)
    _libc.prctl(_PR_SET_PDEATHSIG, wanted["orphan_signal"], 0, 0, 0)
    asked.sendall(str(os.getpid()).encode())
    # Who asked may be gone, or have given up and started the service in another way.
    if not asked.recv(1) or os.getppid() != wanted["parent"]:
        raise ChildProcessError("not wanted any more")
    return str(wanted["module"])


def _show_as(command: str) -> None:
    """Makes a command line visible where this process's own is, as far as there is room."""
    fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
    start, end = int(fields[45]), int(fields[46])
    room = end - start
    if not start or room < 1:
        # A kernel that tells nobody.
        return
    ctypes.memmove(start, command.encode()[: room - 1].ljust(room, b"\0"), room)


if __name__ == "__main__":
    main()
