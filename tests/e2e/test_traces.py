"""One call is one trace, from the gateway through the services, whatever the collector does."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from contract.contexts import CONTEXTS
from tests.e2e.world import DOCUMENT, PASSWORD, Org, assert_error, make_org
from tests.fakes.agent import Agent
from tests.support import stack as test_stack
from tests.support.collector import CLIENT, SERVER, Collector, Seen, collecting
from tests.support.stack import PATIENCE, Stack, free_port, until

V1 = "evergreen.v1"
THEIRS = "c" * 32


@dataclass
class Traced:
    """A product that records every call; what was called, and where the spans went."""

    org: Org
    agent: Agent
    session: dict[str, Any]
    collector: Collector
    started: ExitStack
    """Ends the collector."""
    answers: dict[str, httpx.Response]

    def spans(self, answer: str, *parts: str) -> list[Seen]:
        """The trace that an answer belongs to, of which `parts` (`service rpc`) must be there."""
        return self.collector.traced(self.answers[answer].headers["x-request-id"], *parts)

    def of(self, service: str, rpc: str) -> Seen:
        """The first recorded call of an RPC."""

        def seen() -> Seen | None:
            names = (f"evergreen-{service}", rpc)
            return next((s for s in self.collector.seen if (s.service, s.name) == names), None)

        found: Seen = until(seen, PATIENCE, f"{rpc} was not recorded")
        return found


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """Starts, and stops, without a collector; with one it is called in all the ways below."""
    port = free_port()
    with (
        test_stack.running(
            tmp_path_factory.mktemp("traced") / "home",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
            OTEL_TRACES_SAMPLER_ARG="1",
        ) as stack,
        ExitStack() as started,
    ):
        collector = started.enter_context(collecting(port))
        session = stack.login()
        org = make_org(stack, stack.client(session["token"]))
        policy = {"name": "Policy", "orgId": org.id, "bundle": DOCUMENT}
        owner, auditor = org.owner, org.auditor
        answers = {"made": owner.post("/api/policies", json=policy)}
        org.publish()
        agent = org.device()
        agent.pull()
        agent.report_state()
        agent.record("app.installed", {"severity": "info", "message": "installed the calculator"})
        agent.send_events()
        answers["found"] = owner.get("/api/devices", params={"search": agent.hardware.serial})
        answers["missing"] = owner.get("/api/policies/01890000-0000-7000-8000-000000000000")
        answers["forbidden"] = auditor.post("/api/policies", json=policy)
        for flags in ("00", "01"):
            theirs = {"traceparent": f"00-{THEIRS}-{'d' * 16}-{flags}"}
            answers[flags] = owner.get("/api/policies", headers=theirs)
        yield Traced(org, agent, session, collector, started, answers)


def _one(spans: list[Seen], service: str, name: str, kind: int = SERVER) -> Seen:
    (found,) = (
        span
        for span in spans
        if (span.service, span.name, span.kind) == (f"evergreen-{service}", f"{V1}.{name}", kind)
    )
    return found


def _metrics(stack: Stack, context: str) -> dict[str, float]:
    """What became of a service's spans; empty where none are counted."""
    port = json.loads((stack.home / "launcher.json").read_text())["ports"][context]
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    return {
        sample.labels["outcome"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "evergreen_spans_total"
    }


def _log(stack: Stack, context: str) -> list[dict[str, Any]]:
    whole = (stack.home / "logs" / f"{context}.log").read_text().rpartition("\n")[0]
    # gRPC's own library writes a line now and then, as of a connection that was cut.
    return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


def test_an_admins_call_is_one_trace(traced: Traced) -> None:
    """The service's span is the gateway's child; the log has the trace's id."""
    assert traced.answers["made"].status_code == 200
    rpc = "PolicyService/CreatePolicy"
    spans = traced.spans(
        "made",
        f"evergreen-gateway {V1}.{rpc}",
        f"evergreen-policy {V1}.{rpc}",
        "evergreen-policy database transaction",
    )
    gateway, policy = _one(spans, "gateway", rpc), _one(spans, "policy", rpc)
    assert gateway.parent == ""
    assert policy.parent == gateway.id
    assert policy.attributes["evergreen.tenant_id"] == traced.org.id
    assert policy.attributes["evergreen.caller"] == "user"
    assert policy.attributes["rpc.response.status_code"] == "OK"
    assert not policy.failed
    assert any(s.name == "database transaction" and s.parent == policy.id for s in spans)
    until(
        lambda: any(
            line.get("trace_id") == policy.trace and line["event"] == "call"
            for line in _log(traced.org.stack, "policy")
        ),
        PATIENCE,
        "the log does not name the trace",
    )


def test_a_devices_call_goes_on_in_the_services_that_are_asked(traced: Traced) -> None:
    """Enrollment: the gateway, enrollment, and by its calls identity and policy."""
    enroll = "DeviceService/EnrollDevice"
    asked = {
        "identity": "IdentityInternalService/IssueDeviceToken",
        "policy": "PolicyInternalService/GetDevicePolicy",
    }
    seen = traced.of("enrollment", f"{V1}.{enroll}")
    spans = traced.collector.traced(
        seen.attributes["evergreen.request_id"],
        f"evergreen-gateway {V1}.{enroll}",
        "evergreen-enrollment batch of enrollments",
        *(f"evergreen-{service} {V1}.{name}" for service, name in asked.items()),
    )
    server = _one(spans, "enrollment", enroll)
    assert server.parent == _one(spans, "gateway", enroll).id
    for service, name in asked.items():
        client = _one(spans, "enrollment", name, CLIENT)
        assert client.parent == server.id
        assert _one(spans, service, name).parent == client.id


def test_a_reports_way_into_the_database_is_seen(traced: Traced) -> None:
    """A state waits for its batch, and for the batch to be written."""
    batch = traced.of("telemetry", "batch of states")
    state = traced.of("telemetry", f"{V1}.DeviceService/ReportState")
    assert (batch.trace, batch.parent) == (state.trace, state.id)
    assert "taken to be written" in batch.text
    assert state.attributes["evergreen.tenant_id"] == traced.org.id


def test_errors_are_told_as_what_they_are(traced: Traced) -> None:
    """A caller's mistake has its code; what the product cannot do is an error of the span."""
    assert_error(traced.answers["missing"], 404)
    rpc = "PolicyService/GetPolicy"
    spans = traced.spans("missing", *(f"evergreen-{s} {V1}.{rpc}" for s in ("gateway", "policy")))
    span = _one(spans, "policy", rpc)
    assert span.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert not span.failed

    assert_error(traced.answers["forbidden"], 403)
    rpc = "PolicyService/CreatePolicy"
    spans = traced.spans("forbidden", f"evergreen-policy {V1}.{rpc}")
    assert _one(spans, "policy", rpc).attributes["error.type"] == "ROLE_MAY_NOT"


@pytest.mark.parametrize("flags", ["00", "01"])
def test_a_clients_own_trace_is_not_continued(traced: Traced, flags: str) -> None:
    """Nobody outside decides what is recorded, nor puts spans into the trace of another one."""
    rpc = f"{V1}.PolicyService/ListPolicies"
    spans = traced.spans(flags, f"evergreen-gateway {rpc}", f"evergreen-policy {rpc}")
    assert THEIRS not in {span.trace for span in spans}


def test_spans_hold_no_secrets(traced: Traced) -> None:
    """No token, body, password, key, query or serial number."""
    org, agent = traced.org, traced.agent
    rpc = f"{V1}.InventoryService/ListDevices"
    traced.spans("found", f"evergreen-gateway {rpc}", f"evergreen-telemetry {rpc}")
    traced.of("telemetry", f"{V1}.DeviceService/ReportEvents")
    text = "\n".join(span.text for span in traced.collector.seen)
    for secret in (
        agent.hardware.serial,
        agent.device_token,
        traced.session["token"],
        org.stack.password,
        PASSWORD,
        org.pre_shared_key,
        org.pre_shared_key.rpartition(":")[2],
        "the wifi secret",
        "calculator",
        "search=",
    ):
        assert secret not in text


def test_without_a_collector_calls_go_on(traced: Traced) -> None:
    """Spans are dropped and counted, the log says it once, a service stops and starts."""
    org, agent = traced.org, traced.agent
    traced.started.close()
    before = _metrics(org.stack, "telemetry")["not_sent"]

    def dropped() -> bool:
        agent.report_state()
        assert org.root.get("/api/policies").status_code == 200
        return _metrics(org.stack, "telemetry")["not_sent"] > before

    until(dropped, PATIENCE, "no span was dropped")

    def told() -> list[str]:
        return [line["event"] for line in _log(org.stack, "telemetry") if "spans" in line["event"]]

    until(
        lambda: told() and told()[-1] == "spans not sent",
        PATIENCE,
        "the log does not say so",
    )
    # Of each outage and of its end, not of each batch.
    assert all(one != other for one, other in itertools.pairwise(told()))

    (first,) = org.stack.pids("telemetry")
    org.stack.signal("telemetry", signal.SIGTERM)
    until(lambda: first not in org.stack.pids("telemetry"), PATIENCE, "telemetry does not stop")
    until(
        lambda: any(line["event"] == "stopped" for line in _log(org.stack, "telemetry")),
        PATIENCE,
        "telemetry was not stopped, but killed",
    )
    org.stack.until_ready(PATIENCE)
    agent.report_state()


def test_without_a_setting_nothing_is_recorded(stack: Stack) -> None:
    """No tracer in the gateway; no service has loaded what records spans."""
    listener = (stack.home / "gateway" / "listener.yaml").read_text()
    assert "tracers" not in listener
    for context in CONTEXTS:
        assert _metrics(stack, context) == {}
