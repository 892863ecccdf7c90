"""The floor over gRPC, behind the gateway's transcoder: a handler that does nothing.

A synchronous server with eight threads; messages are not even parsed. All threads run on one
processor: on several they cost more.
"""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import grpc

_SERVING = b"\x08\x01"


_Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class _Floor(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        self._nothing: _Handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
        self._health: _Handler = grpc.unary_unary_rpc_method_handler(
            lambda request, context: _SERVING
        )

    def service(self, details: grpc.HandlerCallDetails) -> _Handler:
        is_health = details.method == "/grpc.health.v1.Health/Check"
        return self._health if is_health else self._nothing


def main(listen: str) -> None:
    """Serves until SIGTERM."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    server = grpc.server(ThreadPoolExecutor(8), handlers=[_Floor()])
    server.add_insecure_port(f"unix:{listen}")
    server.start()
    signal.sigwait({signal.SIGTERM})
    server.stop(0)


if __name__ == "__main__":
    main(sys.argv[1])
