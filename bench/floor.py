"""The floor: the product's own gateway configuration in front of Python that does nothing.

The configuration is the running product's, file by file; only addresses differ. So whatever the
product's filters cost, the floor pays as well, and what is left between the two is ours.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from bench.cpu import Process, below, processes, read_process
from bench.traffic import Call
from contract.access import PACKAGE
from deploy.gateway.envoy import address, typed
from deploy.gateway.render import BOOTSTRAP, CLUSTERS, LISTENER
from tests.support.stack import Stack, free_port, until

PLAIN_HTTP: Final = "floor-plain-http"
SYNC_GRPC: Final = "floor-sync-grpc"
WHAT: Final = {
    PLAIN_HTTP: "the gateway's filters, then uvloop and httptools over plain HTTP doing nothing:"
    " the way in that the product's device calls take",
    SYNC_GRPC: "the gateway's filters, the transcoder, then a synchronous gRPC server with eight"
    " threads pinned to one processor doing nothing: the way in that transcoded calls take",
}
"""The floors, and what each of them is."""

_TRANSCODER = "envoy.filters.http.grpc_json_transcoder"
_JWT = "envoy.filters.http.jwt_authn"
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Places:
    """Where a copy of the gateway lives, and what stands behind it."""

    directory: Path
    port: int
    admin_port: int
    http_socket: Path
    grpc_socket: Path


def copied(files: dict[str, str], places: Places, *, transcoded: bool) -> dict[str, str]:
    """The gateway's files with other addresses.

    Args:
        files: the product's, by name.
        places: the addresses of the copy.
        transcoded: device calls in JSON become gRPC at the gateway, and are not passed on as
            they are.
    """
    config = {name: yaml.load(text, yaml.CSafeLoader) for name, text in files.items()}
    (listener,) = config[LISTENER]["resources"]
    listener.pop("additional_addresses", None)
    listener["address"] = address(f"127.0.0.1:{places.port}")
    for cluster in config[CLUSTERS]["resources"]:
        socket = places.http_socket if cluster["name"].endswith("-http") else places.grpc_socket
        (endpoints,) = cluster["load_assignment"]["endpoints"]
        endpoints["lb_endpoints"] = [{"endpoint": {"address": address(f"unix:{socket}")}}]
    bootstrap = config[BOOTSTRAP]
    bootstrap["admin"]["address"] = address(f"127.0.0.1:{places.admin_port}")
    sources = bootstrap["dynamic_resources"]
    sources["lds_config"]["path_config_source"]["path"] = str(places.directory / LISTENER)
    sources["cds_config"]["path_config_source"]["path"] = str(places.directory / CLUSTERS)
    if transcoded:
        _transcode(listener)
    return {
        name: yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False)
        for name, content in config.items()
    }


def _transcode(listener: dict[str, Any]) -> None:
    http = listener["filter_chains"][0]["filters"][0]["typed_config"]
    for one in http["http_filters"]:
        if one["name"] == _TRANSCODER:
            one["typed_config"]["services"].append(f"{PACKAGE}.DeviceService")
    for route in http["route_config"]["virtual_hosts"][0]["routes"]:
        path = route["match"].get("path", "")
        filters = route.get("typed_per_filter_config", {})
        if path.startswith("/api/v1/devices/") and "route" in route and _TRANSCODER in filters:
            # The token is asked for by the route of the RPC that comes out of it.
            del filters[_TRANSCODER]
            filters[_JWT] = typed(
                "extensions.filters.http.jwt_authn.v3.PerRouteConfig", requirement_name="nobody"
            )


@dataclass(frozen=True, slots=True)
class Floor:
    """A running floor."""

    name: str
    port: int
    ca_file: str
    roots: tuple[int, ...]
    """Its processes: the gateway's copy and the handlers'."""
    rest_cpus: float = 0.0

    def processes(self) -> list[Process]:
        everything = processes()
        own = [p for p in map(read_process, self.roots) if p is not None]
        return own + [p for root in self.roots for p in below(root, everything)]

    async def settled(self) -> None:
        """It does nothing behind its answers."""

    def is_success(self, call: Call, status: int) -> bool:
        return status in (200, 304)


@contextmanager
def running(stack: Stack, directory: Path) -> Iterator[list[Floor]]:
    """Starts both floors beside a product; they take the same tokens."""
    directory.mkdir()
    jwks = directory / "jwks.json"
    with stack.client() as client:
        jwks.write_bytes(client.get("/.well-known/jwks.json").raise_for_status().content)
    http_socket, grpc_socket = directory / "http.sock", directory / "grpc.sock"
    with ExitStack() as running_now:
        http = running_now.enter_context(_python("floor_http", str(http_socket), str(jwks)))
        grpc = running_now.enter_context(_python("floor_grpc", str(grpc_socket)))
        until(lambda: http_socket.exists() and grpc_socket.exists(), 30, "no floor")
        floors = []
        for name, handler in ((PLAIN_HTTP, http), (SYNC_GRPC, grpc)):
            home = directory / name
            home.mkdir()
            places = Places(home, free_port(), free_port(), http_socket, grpc_socket)
            transcoded = name == SYNC_GRPC
            envoy = running_now.enter_context(_gateway(stack, places, transcoded=transcoded))
            floors.append(Floor(name, places.port, stack.ca_file, (envoy.pid, handler.pid)))
        yield floors


@contextmanager
def _gateway(
    stack: Stack, places: Places, *, transcoded: bool
) -> Iterator[subprocess.Popen[bytes]]:
    source = stack.home / "gateway"
    names = (BOOTSTRAP, LISTENER, CLUSTERS, "secret-gateway.yaml")
    files = {name: (source / name).read_text() for name in names}
    for name, text in copied(files, places, transcoded=transcoded).items():
        (places.directory / name).write_text(text)
    # With the very arguments of the product's gateway.
    (pid,) = stack.pids("gateway")
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    words[words.index("--config-path") + 1] = str(places.directory / BOOTSTRAP)
    with _process(words, places.directory / "envoy.log") as process:
        url = f"http://127.0.0.1:{places.admin_port}/ready"
        until(lambda: _ready(url, process), 60, f"no gateway: see {places.directory}/envoy.log")
        yield process


def _ready(url: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the floor's gateway ended"
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def _python(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-m", f"bench.{module}", *arguments]
    with _process(words, None) as process:
        yield process


@contextmanager
def _process(words: list[str], log: Path | None) -> Iterator[subprocess.Popen[bytes]]:
    output = log.open("wb") if log else subprocess.DEVNULL
    process = subprocess.Popen(
        words,
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if log else None,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
