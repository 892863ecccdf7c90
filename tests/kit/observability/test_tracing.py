"""Traces: what an operator may say, what is recorded, and that it is bounded."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from contract.contexts import CONTEXTS
from deploy.containers import files
from deploy.containers.settings import Installation, InstallationError
from deploy.gateway import Endpoints, GatewaySettings, render
from deploy.launcher import options
from deploy.launcher.errors import LauncherError
from servicekit.observability.spans import Tracer
from servicekit.observability.tracing import ENDPOINT, PROTOCOL, RATIO, SAMPLER, Traces
from tests.support import yaml_text
from tests.support.stack import PATIENCE

RPC = "/evergreen.v1.PolicyService/ListPolicies"
PARENT = f"00-{'a' * 32}-{'b' * 16}-"
RECORDED = {"traceparent": f"{PARENT}01"}
GATEWAY = GatewaySettings(
    directory=Path("/conf"),
    port=8443,
    certificate_file=Path("/tls/crt"),
    private_key_file=Path("/tls/key"),
    admin="unix:/run/admin.sock",
    contexts={c: Endpoints(grpc=f"unix:/run/{c}.gw", http=f"unix:/run/{c}.http") for c in CONTEXTS},
)


@pytest.mark.parametrize(
    ("endpoint", "ratio", "found"),
    [
        ("http://collector:4317", "", Traces("collector", 4317, tls=False, ratio=0.01)),
        ("https://otel.example/", "1", Traces("otel.example", 4317, tls=True, ratio=1)),
        (" http://[::1]:5 ", " 0.0001 ", Traces("::1", 5, tls=False, ratio=0.0001)),
        ("http://127.0.0.1", "0", Traces("127.0.0.1", 4317, tls=False, ratio=0)),
        ("", "nonsense", None),
    ],
)
def test_a_collector_is_given_by_the_standards_variables(
    endpoint: str, ratio: str, found: Traces | None
) -> None:
    """Without one nothing else is looked at."""
    assert Traces.of_environment({ENDPOINT: endpoint, RATIO: ratio}) == found


@pytest.mark.parametrize(
    ("said", "rule"),
    [
        ({ENDPOINT: "collector:4317"}, "http://HOST[:PORT]"),
        ({ENDPOINT: "http://collector:port"}, "http://HOST[:PORT]"),
        ({ENDPOINT: "http://collector:0"}, "http://HOST[:PORT]"),
        ({ENDPOINT: "http://collector:4318/v1/traces"}, "http://HOST[:PORT]"),
        ({ENDPOINT: "http://user:password@collector"}, "http://HOST[:PORT]"),
        ({RATIO: "1.5"}, "from 0.0001 to 1"),
        ({RATIO: "0.00001"}, "from 0.0001 to 1"),
        ({RATIO: "nan"}, "from 0.0001 to 1"),
        ({RATIO: "a tenth"}, "from 0.0001 to 1"),
        ({PROTOCOL: "http/protobuf"}, "grpc is the only one"),
        ({SAMPLER: "always_on"}, "parentbased_traceidratio is the only one"),
    ],
)
def test_what_cannot_be_is_named_at_the_start(
    said: dict[str, str], rule: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The variable and its rule, by `make run` and by the containers' `init`."""
    environment = {ENDPOINT: "http://collector:4317", **said}
    (name,) = said
    with pytest.raises(LauncherError) as refused:
        options.read(environment)
    assert f"{name} is '{said[name]}'" in refused.value.message
    assert rule in refused.value.message
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(InstallationError, match=name):
        files.render_gateway(tmp_path, Installation(public_url="https://a.example"), tmp_path)


def _rendered(traces: Traces | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The connection manager and the clusters by name."""
    found = render(dataclasses.replace(GATEWAY, traces=traces))
    (listener,) = yaml_text.load(found["listener.yaml"])["resources"]
    clusters = yaml_text.load(found["clusters.yaml"])["resources"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return manager, {cluster["name"]: cluster for cluster in clusters}


def test_without_a_collector_the_gateway_has_no_tracer() -> None:
    """Not a word of it; with one, a tracer and a cluster, and the rest as it was."""
    manager, clusters = _rendered(None)
    assert "tracing" not in manager
    traced, more = _rendered(Traces("otel.example", 4317, tls=True, ratio=0.25))
    tracing = traced.pop("tracing")
    assert traced == manager
    assert tracing["random_sampling"] == {"value": 25.0}
    collector = more.pop("traces")
    assert more == clusters
    assert collector["transport_socket"]["typed_config"]["sni"] == "otel.example"


def test_without_a_collector_a_service_never_loads_the_sdk() -> None:
    """None of them, whatever it imports."""
    services = ", ".join(f"services.{context}.__main__" for context in CONTEXTS)
    code = (
        f"import sys, {services}\n"
        "loaded = ('opentelemetry.sdk', 'opentelemetry.exporter')\n"
        "print([module for module in sys.modules if module.startswith(loaded)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@contextmanager
def _silent() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def _closed() -> Iterator[int]:
    """A port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def _count(outcome: str) -> float:
    return REGISTRY.get_sample_value("evergreen_spans_total", {"outcome": outcome}) or 0


@pytest.mark.parametrize("collector", [_silent, _closed])
async def test_spans_that_nobody_takes_are_dropped_and_counted(collector: Any) -> None:
    """The queue is bounded, no span is unaccounted for, and a service stops all the same."""
    spans = 10_000
    outcomes = ("sent", "not_sent", "queue_full")
    before = {outcome: _count(outcome) for outcome in outcomes}
    with collector() as port:
        tracer = Tracer(Traces("127.0.0.1", port, tls=False, ratio=1), "policy")
        for _ in range(spans):
            span = tracer.continued(RPC, RECORDED)
            assert span is not None
            span.end("OK")
        await asyncio.wait_for(tracer.close(), PATIENCE)

        def counted() -> dict[str, float]:
            return {outcome: _count(outcome) - before[outcome] for outcome in outcomes}

        async with asyncio.timeout(PATIENCE):
            while sum(counted().values()) < spans:
                await asyncio.sleep(0.05)
    assert counted()["sent"] == 0
    assert counted()["queue_full"] > 0
    assert sum(counted().values()) == spans


@pytest.mark.parametrize(
    "headers",
    [{}, {"traceparent": ""}, {"traceparent": f"{PARENT}00"}, {"traceparent": "nonsense1"}],
)
async def test_a_service_records_nothing_by_itself(headers: dict[str, str]) -> None:
    """What the gateway did not pick is not recorded, and no header breaks a call."""
    with _closed() as port:
        tracer = Tracer(Traces("127.0.0.1", port, tls=False, ratio=1), "policy")
        assert tracer.continued(RPC, headers) is None
        await asyncio.wait_for(tracer.close(), PATIENCE)
