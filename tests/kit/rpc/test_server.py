"""The gRPC side of a service, without what a service needs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc as rpc
from servicekit.rpc.chain import CallChain
from servicekit.rpc.server import Context, GrpcServer
from tests.support import callers


class Auth(rpc.AuthServiceServicer):
    """Takes every password; the address `defect` hits a defect."""

    async def Login(  # type: ignore[override]  # our context  # noqa: N802
        self, request: pb.LoginRequest, context: Context
    ) -> pb.Session:
        if request.email == "defect":
            raise RuntimeError("SELECT secret FROM somewhere")
        return pb.Session(email=request.email)


@pytest_asyncio.fixture
async def target(tmp_path: Path) -> AsyncIterator[str]:
    listen = f"unix:{tmp_path}/s"
    register = partial(rpc.add_AuthServiceServicer_to_server, Auth())
    server = GrpcServer(listen, CallChain(max_calls=8), [register], (), internal=False)
    await server.start()
    yield listen
    await server.stop(0)


async def test_a_message_is_not_unpacked(target: str) -> None:
    """The gateway's limits are for bytes on the wire; a kilobyte may unpack to a megabyte."""
    async with grpc.aio.insecure_channel(target, compression=grpc.Compression.Gzip) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rpc.AuthServiceStub(channel).Login(pb.LoginRequest(email="a", password="b" * 900))
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7f"])
async def test_bytes_that_are_no_message_are_the_callers_mistake(target: str, raw: bytes) -> None:
    """INVALID_ARGUMENT in the one shape, whatever is wrong with them."""
    async with grpc.aio.insecure_channel(target) as channel:
        call = channel.unary_unary("/evergreen.v1.AuthService/Login")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(raw, metadata=callers.anonymous())
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    body = json.loads(dict(error.value.trailing_metadata() or ())["x-evergreen-error"])
    assert (body["status"], body["requestId"] != "") == ("INVALID_ARGUMENT", True)


async def test_a_defect_is_not_explained_to_the_caller(target: str) -> None:
    """INTERNAL with a plain message; the rest is in the log."""
    async with grpc.aio.insecure_channel(target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rpc.AuthServiceStub(channel).Login(pb.LoginRequest(email="defect", password="b"))
    assert error.value.code() is grpc.StatusCode.INTERNAL
    trailing = dict(error.value.trailing_metadata() or ())
    assert "SELECT" not in f"{error.value.details()} {trailing}"
