"""Which service may call which internal RPC: a matrix made from the access table."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from contract.access import ACCESS, Audience
from contract.contexts import CONTEXTS
from deploy.certificates import Authority
from evergreen.v1 import (
    attestation_pb2_grpc,
    enrollment_pb2_grpc,
    identity_pb2_grpc,
    policy_pb2_grpc,
    telemetry_pb2_grpc,
)
from servicekit.rpc.chain import CallChain
from servicekit.rpc.channels import open_channel
from servicekit.rpc.server import GrpcServer
from servicekit.security.tls import Tls
from tests.support.stack import free_port

INTERNAL = {rpc: rule for rpc, rule in ACCESS.items() if rule.audience is Audience.INTERNAL}
# The generated servicers answer UNIMPLEMENTED, once a call has come so far.
SERVICERS = (
    partial(
        identity_pb2_grpc.add_IdentityInternalServiceServicer_to_server,
        identity_pb2_grpc.IdentityInternalServiceServicer(),
    ),
    partial(
        enrollment_pb2_grpc.add_EnrollmentInternalServiceServicer_to_server,
        enrollment_pb2_grpc.EnrollmentInternalServiceServicer(),
    ),
    partial(
        policy_pb2_grpc.add_PolicyInternalServiceServicer_to_server,
        policy_pb2_grpc.PolicyInternalServiceServicer(),
    ),
    partial(
        telemetry_pb2_grpc.add_TelemetryInternalServiceServicer_to_server,
        telemetry_pb2_grpc.TelemetryInternalServiceServicer(),
    ),
    partial(
        attestation_pb2_grpc.add_AttestationInternalServiceServicer_to_server,
        attestation_pb2_grpc.AttestationInternalServiceServicer(),
    ),
)
Connect = Callable[[str], grpc.aio.Channel]
"""A channel of the party of a name."""
NOBODY = "nobody"


@pytest_asyncio.fixture(params=["network", "socket"])
async def as_service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Connect]:
    """A server of all internal RPCs, and a way to it that shows who calls."""
    authority = Authority.ensure_in(tmp_path / "ca")

    def files(name: str) -> Tls:
        (tmp_path / name).mkdir(exist_ok=True)
        return authority.ensure(tmp_path / name, name)

    def over_network(name: str) -> grpc.aio.Channel:
        options = (("grpc.ssl_target_name_override", "policy"),)
        credentials = files(name).channel_credentials()
        return grpc.aio.secure_channel(where, credentials, options=options)

    def over_socket(name: str) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(where) if name == NOBODY else open_channel(where, name)

    is_network = request.param == "network"
    where = f"127.0.0.1:{free_port()}" if is_network else f"unix:{tmp_path}/int.sock"
    server = GrpcServer(
        where,
        CallChain(max_calls=8),
        SERVICERS,
        (),
        internal=True,
        tls=files("policy") if is_network else None,
    )
    await server.start()
    yield over_network if is_network else over_socket
    await server.stop(0)


async def _code(channel: grpc.aio.Channel, rpc: str, *headers: tuple[str, str]) -> grpc.StatusCode:
    call = channel.unary_unary(rpc)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call(b"", metadata=headers, timeout=60)
    return error.value.code()


async def test_the_services_that_a_row_names_get_in_and_no_others(as_service: Connect) -> None:
    """By the name in the certificate; on a socket, by the name that a service gives."""
    for name in (*CONTEXTS, "gateway", "operator", NOBODY):
        async with as_service(name) as channel:
            admitted = {
                rpc
                for rpc in INTERNAL
                if await _code(channel, rpc) is not grpc.StatusCode.PERMISSION_DENIED
            }
        assert admitted == {rpc for rpc, rule in INTERNAL.items() if name in rule.callers}, name


@pytest.mark.parametrize("as_service", ["network"], indirect=True)
async def test_over_a_network_no_header_makes_another_of_a_service(as_service: Connect) -> None:
    """A hole in telemetry or audit does not issue tokens of devices."""
    rpc = "/evergreen.v1.IdentityInternalService/IssueDeviceToken"
    for name in set(CONTEXTS) - INTERNAL[rpc].callers:
        async with as_service(name) as channel:
            forged = ("x-evergreen-service", "enrollment")
            assert await _code(channel, rpc, forged) is grpc.StatusCode.PERMISSION_DENIED
