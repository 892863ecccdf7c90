"""Alerts and the dashboard ask for metrics that exist, and every alert leads to its advice."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import REGISTRY

from contract.contexts import CONTEXTS
from tests.support.paths import ROOT

RULES = yaml.safe_load((ROOT / "deploy/prometheus/rules/evergreen.yaml").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/evergreen.json").read_text())

FROM_PROMETHEUS = {"up"}
# Seen at the administration port of a running Envoy; some appear with their first use.
FROM_ENVOY = {
    "envoy_http_downstream_cx_active",
    "envoy_http_downstream_rq_overload_close",
    "envoy_http_downstream_rq_time_bucket",
    "envoy_http_downstream_rq_xx",
    "envoy_http_jwt_authn_jwt_cache_hit",
    "envoy_http_jwt_authn_jwt_cache_miss",
    "envoy_http_local_rate_limit_rate_limited",
    "envoy_listener_downstream_cx_overload_reject",
    "envoy_server_days_until_first_cert_expiring",
    "envoy_server_memory_allocated",
    "envoy_server_memory_heap_size",
}


def expressions() -> Iterator[str]:
    for rule in ALERTS.values():
        yield rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]


def selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    """The selectors of an expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    elif isinstance(node, promql_parser.MatrixSelector):
        yield node.vector_selector
    else:
        for name in ("expr", "lhs", "rhs", "param"):
            child = getattr(node, name, None)
            if child is not None:
                yield from selectors(child)
        for child in getattr(node, "args", None) or ():
            yield from selectors(child)


@pytest.fixture(scope="module")
def metrics() -> set[str]:
    """The names of all samples that the services can show."""
    for module in ("app", "feeds.feed", "vitals", "observability.metrics"):
        importlib.import_module(f"servicekit.{module}")
    for context in CONTEXTS:
        importlib.import_module(f"services.{context}.__main__")
    names: set[str] = set()
    for family in REGISTRY.collect():
        names |= {family.name, *(sample.name for sample in family.samples)}
        if family.type == "counter":
            names.add(f"{family.name}_total")
        if family.type == "histogram":
            names.add(f"{family.name}_bucket")
    return names


def test_every_metric_that_is_asked_for_exists(metrics: set[str]) -> None:
    """A metric that was renamed would silence its alert without a word."""
    asked = {s.name for text in expressions() for s in selectors(promql_parser.parse(text))}
    assert {"evergreen_ready", "evergreen_calls_total", "up"} <= asked
    assert asked <= metrics | FROM_ENVOY | FROM_PROMETHEUS


def test_every_alert_leads_to_its_advice() -> None:
    """By an anchor that is there, and no advice is left over."""
    text = (ROOT / "docs/runbooks.md").read_text()
    advice = set(re.findall(r"^## (Evergreen\w+)$", text, re.MULTILINE))
    assert advice == set(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{name.lower()}"
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]


def test_the_panels_do_not_overlap() -> None:
    """Each place of the dashboard is one panel's."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
