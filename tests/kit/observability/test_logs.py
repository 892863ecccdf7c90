"""What the libraries below say in the logs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
import structlog

from servicekit.observability import logs

_BINARY = b"\xed\xa0\x80 secret"


async def _call(port: int) -> None:
    """A call with a header that is no UTF-8, which no client library sends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    connection.initiate_connection()
    connection.send_headers(
        1,
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/test.Service/Call"),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"x-binary", _BINARY),
        ],
    )
    connection.send_data(1, bytes(5), end_stream=True)
    writer.write(connection.data_to_send())
    while data := await reader.read(65536):
        events = connection.receive_data(data)
        writer.write(connection.data_to_send())
        if any(isinstance(e, h2.events.StreamEnded | h2.events.StreamReset) for e in events):
            break
    writer.close()


@pytest.fixture
def logs_of_others() -> Iterator[None]:
    """Are as they were, after the test."""
    before, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    structlog.configure(**before)
    root.handlers = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("logs_of_others")
async def test_a_header_that_is_no_text_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """Anybody can send it as often as they like; what is wrong with us is logged as before."""
    served = []

    async def serve(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        served.append(dict(context.invocation_metadata() or ()))
        return b""

    logs.configure("test", "info", "json")
    # No logger may keep what it sees here.
    structlog.configure(cache_logger_on_first_use=False)
    server = grpc.aio.server()
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(serve)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Service", {"Call": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        await _call(port)
    finally:
        await server.stop(0)
    logging.getLogger("grpc._cython.cygrpc").error("another error")
    assert "x-binary" in served[0]
    written = capsys.readouterr().out
    assert "another error" in written
    assert "Invalid encoding" not in written
    assert "secret" not in written
