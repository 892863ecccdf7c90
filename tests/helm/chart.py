"""Renders the chart."""

from __future__ import annotations

import base64
import functools
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import ROOT

CHART = ROOT / "helm" / "evergreen"
HELM = Path(sys.executable).parent / "helm"
VERSIONS = ("1.30", "1.33", "1.37")
"""Releases of Kubernetes that the chart is checked against."""

EVAL = {"publicUrl": "https://evergreen.example.org"}
PRODUCTION = {**EVAL, "profile": "production", "database.bundled": "false", "database.host": "db"}
GIVEN = {
    "admin.existingSecret": "s1",
    "masterKey.existingSecret": "s2",
    "insideTls.existingSecret": "s3",
    "gateway.tls.existingSecret": "s4",
    "database.admin.existingSecret": "s5",
    "database.migrator.existingSecret": "s6",
    "database.services.existingSecret": "s7",
    "nats.existingSecret": "s8",
}
"""Every secret by name."""
EVERYTHING = {
    **PRODUCTION,
    "database.caSecret": "database-ca",
    "nats.bundled": "false",
    "nats.url": "tls://nats.example.org:4222",
    "nats.caSecret": "nats-ca",
    "nats.events.url": "tls://events.example.org:4222",
    "metrics.serviceMonitor.enabled": "true",
    "metrics.prometheusRule.enabled": "true",
    "backup.enabled": "true",
    "backup.existingSecret": "backup-keys",
    "gateway.ingress.enabled": "true",
    "gateway.httpRoute.enabled": "true",
    "gateway.httpRoute.parentRefs[0].name": "public",
    "gateway.tlsRoute.enabled": "true",
    "gateway.tlsRoute.parentRefs[0].name": "public",
}
"""External servers, and every option switched on."""

CERT_MANAGER = {
    **EVAL,
    "certManager.enabled": "true",
    "nats.events.expose": "true",
    "nats.events.url": "tls://events.example.org:4222",
}
ADDED = (
    "monitoring.coreos.com/v1/ServiceMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
    "gateway.networking.k8s.io/v1/HTTPRoute",
    "gateway.networking.k8s.io/v1alpha2/TLSRoute",
    "cert-manager.io/v1/Certificate",
)
"""Kinds that others bring, which the chart looks for in the cluster."""

Object = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Helm."""
    return subprocess.run(
        [str(HELM), *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def template(
    values: dict[str, str], *arguments: str, added: tuple[str, ...] = ADDED
) -> subprocess.CompletedProcess[str]:
    """Renders the chart with values, and all secrets that it would make.

    Args:
        added: kinds that the cluster knows beside its own.
    """
    values = {"generateSecrets": "true", **values}
    given = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    given += [f"--api-versions={kind}" for kind in added]
    return helm("template", "ev", str(CHART), "--namespace", "fleet", *given, *arguments)


def render(values: dict[str, str], *arguments: str) -> list[Object]:
    """The objects that come of values."""
    return list(_render(tuple(values.items()), arguments))


@functools.cache
def _render(values: tuple[tuple[str, str], ...], arguments: tuple[str, ...]) -> list[Object]:
    done = template(dict(values), *arguments)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.load_all(done.stdout, yaml.CSafeLoader) if found]


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """The pod of everything that has one, with its owner's kind and name."""
    for found in objects:
        name = f"{found['kind']}/{found['metadata']['name']}"
        if found["kind"] == "Pod":
            yield name, found["spec"]
        elif found["kind"] in {"Deployment", "StatefulSet", "Job"}:
            yield name, found["spec"]["template"]["spec"]
        elif found["kind"] == "CronJob":
            yield name, found["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def secrets_of(objects: Iterable[Object]) -> dict[str, dict[str, bytes]]:
    """The values of the Secrets among objects, by their names."""
    return {
        found["metadata"]["name"]: {
            **{key: text.encode() for key, text in found.get("stringData", {}).items()},
            **{key: base64.b64decode(text) for key, text in found.get("data", {}).items()},
        }
        for found in objects
        if found["kind"] == "Secret"
    }


def containers(pod: Object) -> list[Object]:
    """All of a pod's containers."""
    return [*pod.get("initContainers", []), *pod["containers"]]
