"""Inside the walls, over a network: who may vouch for callers, and who is a service."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.certificates import Authority
from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc as rpc
from servicekit.http.asgi import HttpServer
from servicekit.http.protocol import DeviceServer, Request
from servicekit.observability.spans import Tracer
from servicekit.observability.tracing import Traces, current_span
from servicekit.rpc.chain import CallChain
from servicekit.rpc.channels import RenewedChannel, connect
from servicekit.rpc.server import Context, GrpcServer
from servicekit.security.tls import Tls
from servicekit.settings import ServiceSettings
from tests.support import callers
from tests.support.collector import CLIENT, SERVER, collecting
from tests.support.stack import free_port


class Users(rpc.UserServiceServicer):
    """Tells nobody but a user anything."""

    async def ListUsers(  # type: ignore[override]  # our context  # noqa: N802
        self, request: pb.ListUsersRequest, context: Context
    ) -> pb.ListUsersResponse:
        return pb.ListUsersResponse(users=[pb.User(email=context.call.caller.email)])


class Inside(rpc.IdentityInternalServiceServicer):
    """Answers who calls."""

    async def ListAccessChanges(  # type: ignore[override]  # our context  # noqa: N802
        self, request: pb.ListAccessChangesRequest, context: Context
    ) -> pb.ListAccessChangesResponse:
        if request.cursor == "slowly":
            await asyncio.sleep(0.5)
        return pb.ListAccessChangesResponse(next_cursor=context.call.caller.id)


@dataclass
class World:
    """A service on a network, and certificates for whoever calls it."""

    directory: Path
    authority: Authority
    public: str
    internal: str
    device: str
    portal: str

    def files(self, name: str) -> Tls:
        """The certificate of a party that the installation's CA has signed."""
        where = self.directory / name
        where.mkdir(exist_ok=True)
        return self.authority.ensure(where, name)

    def settings(self, name: str) -> ServiceSettings:
        """Those of a service that calls this one."""
        files = self.files(name)
        return ServiceSettings(
            grpc_listen="unix:/nowhere/gw",
            internal_listen="unix:/nowhere/int",
            database_url="postgresql:///",
            identity_target=self.internal,
            policy_target=self.internal,
            tls_ca_file=files.ca_file,
            tls_certificate_file=files.certificate_file,
            tls_key_file=files.key_file,
        )

    def foreign(self, name: str) -> Tls:
        """A certificate with the right name from somebody else's CA, and the right CA to trust."""
        elsewhere = self.directory / f"foreign-{name}"
        elsewhere.mkdir(exist_ok=True)
        files = Authority.ensure_in(elsewhere / "ca").ensure(elsewhere, name)
        return Tls(self.files(name).ca_file, files.certificate_file, files.key_file)

    def channel(self, address: str, tls: Tls | None) -> grpc.aio.Channel:
        """Somebody's channel to an address."""
        ca = self.files("gateway").ca_file.read_bytes()
        credentials = tls.channel_credentials() if tls else grpc.ssl_channel_credentials(ca)
        options = (("grpc.ssl_target_name_override", "identity"),)
        return grpc.aio.secure_channel(address, credentials, options=options)

    async def ask(self, address: str, tls: Tls | None) -> bytes:
        """What plain HTTP over TLS answers; nothing when the connection is ended."""
        context = ssl.create_default_context(cafile=self.files("gateway").ca_file)
        if tls is not None:
            context.load_cert_chain(tls.certificate_file, tls.key_file)
        host, _, port = address.rpartition(":")
        try:
            reader, writer = await asyncio.open_connection(
                host, int(port), ssl=context, server_hostname="identity"
            )
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
        except OSError:
            return b""
        return answer


async def _portal(scope: object, receive: object, send: object) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
    await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]


def _device(request: Request) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    (tmp_path / "identity").mkdir()
    authority = Authority.ensure_in(tmp_path / "ca")
    own = authority.ensure(tmp_path / "identity", "identity")
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(4)]
    made = World(tmp_path, authority, *addresses)
    chain = CallChain(max_calls=8)
    users = partial(rpc.add_UserServiceServicer_to_server, Users())
    inside = partial(rpc.add_IdentityInternalServiceServicer_to_server, Inside())
    servers = [
        GrpcServer(made.public, chain, [users], (), internal=False, tls=own),
        GrpcServer(made.internal, chain, [inside], (), internal=True, tls=own),
    ]
    others = [
        DeviceServer(made.device, _device, own),
        HttpServer(made.portal, _portal, own),
    ]
    for server in (*servers, *others):
        await server.start()
    yield made
    for server in servers:
        await server.stop(0)
    for other in others:
        await other.stop()


async def _list_users(channel: grpc.aio.Channel) -> str:
    """Asks with the headers of an Owner."""
    async with channel:
        answer = await rpc.UserServiceStub(channel).ListUsers(
            pb.ListUsersRequest(), metadata=callers.user(uuid4(), email="owner@example.org")
        )
    return str(answer.users[0].email)


async def _refused(channel: grpc.aio.Channel, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await _list_users(channel)
    assert error.value.code() is code


async def test_the_gateway_vouches_for_its_callers(world: World) -> None:
    """Its certificate makes the headers believed."""
    assert await _list_users(world.channel(world.public, world.files("gateway"))) == (
        "owner@example.org"
    )


async def test_forged_headers_get_nothing(world: World) -> None:
    """From a pod without a certificate, from a service, and from whoever has another CA."""
    unavailable, refused = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED
    await _refused(world.channel(world.public, None), unavailable)
    await _refused(world.channel(world.public, world.foreign("gateway")), unavailable)
    await _refused(world.channel(world.public, world.files("policy")), refused)
    await _refused(grpc.aio.insecure_channel(world.public), unavailable)


async def test_a_service_is_who_its_certificate_says(world: World) -> None:
    """Whatever it writes into its headers; and the gateway is no service."""
    forged = (("x-evergreen-service", "enrollment"),)
    async with world.channel(world.internal, world.files("policy")) as channel:
        answer = await rpc.IdentityInternalServiceStub(channel).ListAccessChanges(
            pb.ListAccessChangesRequest(), metadata=forged
        )
    assert answer.next_cursor == "policy"
    async with world.channel(world.internal, world.files("gateway")) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rpc.IdentityInternalServiceStub(channel).ListAccessChanges(
                pb.ListAccessChangesRequest()
            )
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("listener", ["device", "portal"])
async def test_plain_http_serves_the_gateway_alone(world: World, listener: str) -> None:
    """The device calls and the portal, likewise."""
    address = getattr(world, listener)
    assert (await world.ask(address, world.files("gateway"))).startswith(b"HTTP/1.1 200")
    assert await world.ask(address, world.files("policy")) == b""
    assert await world.ask(address, world.foreign("gateway")) == b""
    assert await world.ask(address, None) == b""


async def test_a_renewed_certificate_is_used_without_a_restart(world: World) -> None:
    """From the next connection on, by gRPC and by HTTP; here one of another CA replaces it."""
    foreign = world.foreign("identity")
    own = world.files("identity")
    own.certificate_file.write_bytes(foreign.certificate_file.read_bytes())
    own.key_file.write_bytes(foreign.key_file.read_bytes())
    assert await world.ask(world.device, world.files("gateway")) == b""
    await _refused(world.channel(world.public, world.files("gateway")), grpc.StatusCode.UNAVAILABLE)


async def test_a_channel_takes_over_a_renewed_certificate(world: World) -> None:
    """With its next call, also of another CA; a call that is on its way ends as it began."""
    settings = world.settings("telemetry")
    tls = settings.tls
    assert tls is not None
    channel = RenewedChannel(tls, lambda: world.channel(world.internal, tls), every=0)
    async with channel:
        ask = rpc.IdentityInternalServiceStub(channel).ListAccessChanges
        slow = asyncio.ensure_future(ask(pb.ListAccessChangesRequest(cursor="slowly")))
        await asyncio.sleep(0.1)
        # Who asks shows whose certificate it is.
        policy = world.files("policy")
        tls.key_file.write_bytes(policy.key_file.read_bytes())
        tls.certificate_file.write_bytes(policy.certificate_file.read_bytes())
        request = pb.ListAccessChangesRequest()
        assert (await ask(request)).next_cursor == "policy"
        assert (await slow).next_cursor == "telemetry"
        tls.ca_file.unlink()  # as while it is being replaced
        assert (await ask(request)).next_cursor == "policy"
        # The CA is replaced: the server's certificate is of the next one by now.
        world.authority.begin("Next CA")
        world.authority.switch()
        for name in ("identity", "telemetry"):
            world.files(name)
        assert (await ask(request)).next_cursor == "telemetry"
        world.authority.end()
        for name in ("identity", "telemetry"):
            world.files(name)
        assert (await ask(request)).next_cursor == "telemetry"


async def test_services_find_each_other_by_name(world: World) -> None:
    """A channel of a service's settings takes the certificate's name for the address's."""
    settings = world.settings("telemetry")
    async with connect(settings, "identity", "telemetry") as channel:
        stub = rpc.IdentityInternalServiceStub(channel)
        assert (
            await stub.ListAccessChanges(pb.ListAccessChangesRequest())
        ).next_cursor == "telemetry"
    async with connect(settings, "policy", "telemetry") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rpc.IdentityInternalServiceStub(channel).ListAccessChanges(
                pb.ListAccessChangesRequest()
            )
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_calls_between_services_are_recorded(world: World) -> None:
    """Over TLS as over sockets: answered, refused and given up; a stop sends what is left."""
    settings, port = world.settings("telemetry"), free_port()
    call = "evergreen.v1.IdentityInternalService/ListAccessChanges"
    request = pb.ListAccessChangesRequest()
    with collecting(port) as collector:
        tracer = Tracer(Traces("127.0.0.1", port, tls=False, ratio=1), "telemetry")
        span = tracer.continued("/a call", {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
        assert span is not None
        token = current_span.set(span)
        async with connect(settings, "identity", "telemetry", tracer) as channel:
            ask = rpc.IdentityInternalServiceStub(channel).ListAccessChanges
            assert (await ask(request)).next_cursor == "telemetry"
            given_up = ask(request)
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
        async with connect(settings, "policy", "telemetry", tracer) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await rpc.IdentityInternalServiceStub(channel).ListAccessChanges(request)
        current_span.reset(token)
        span.end("OK")
        await tracer.close()
        calls = [seen for seen in collector.seen if seen.name == call]
        (server,) = (seen for seen in collector.seen if seen.kind == SERVER)
    codes = [seen.attributes["rpc.response.status_code"] for seen in calls]
    # What was given up before it began was no call.
    assert [code for code in codes if code != "CANCELLED"] == ["OK", "UNAVAILABLE"]
    for seen in calls:
        assert (seen.kind, seen.trace, seen.parent) == (CLIENT, "a" * 32, server.id)
        assert seen.failed is (seen.attributes["rpc.response.status_code"] != "OK")


def test_a_listener_on_a_network_needs_tls() -> None:
    """Else anyone who reaches it could say that he is the gateway."""
    with pytest.raises(ValueError, match="give TLS"):
        ServiceSettings(
            grpc_listen="0.0.0.0:9090",
            internal_listen="unix:/nowhere",
            database_url="postgresql:///",
        )


async def test_a_probe_needs_no_certificate_and_gets_nothing_but_health(tmp_path: Path) -> None:
    """Kubernetes' own probes have none; what they see follows the service's stop."""
    files = Authority.ensure_in(tmp_path / "ca").ensure(tmp_path, "identity")
    where = f"127.0.0.1:{free_port()}"
    server = GrpcServer(
        f"127.0.0.1:{free_port()}",
        CallChain(max_calls=10),
        [partial(rpc.add_UserServiceServicer_to_server, Users())],
        (),
        internal=False,
        tls=files,
        probe=where,
    )
    await server.start()
    async with grpc.aio.insecure_channel(where) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        seen = []
        for serving in (True, False):
            await server.set_serving(serving)
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=60)
            seen.append(answer.status == health_pb2.HealthCheckResponse.SERVING)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await rpc.UserServiceStub(channel).ListUsers(pb.ListUsersRequest(), timeout=60)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await server.stop(0)
    assert seen == [True, False]
