"""THE list of the contexts, and the files that a person writes beside it."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest
import yaml

from cli.backup.catalog import TABLES
from contract.access import ACCESS
from contract.addresses import HTTP
from contract.contexts import BY_NAME, CONTEXTS, SEALERS
from contract.events import EXAMPLES
from deploy.containers import layout
from servicekit.settings import ServiceSettings
from tests.support.paths import ROOT
from tools import chart_contexts

CHART = ROOT / "helm" / "evergreen"


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((ROOT / "docker-compose.yaml").read_text())


def test_every_context_has_its_folder_its_protos_and_its_rows() -> None:
    """Its events, and what a restore has to repair in it; and what looks like a seventh is none."""
    folders = {path.parent.name for path in (ROOT / "services").glob("*/__main__.py")}
    protos = {path.stem for path in (ROOT / "protos/evergreen/v1").glob("*.proto")}
    assert folders == set(CONTEXTS)
    assert protos >= set(CONTEXTS)
    events = {path.stem for path in (ROOT / "libs/contract/events").iterdir()}
    assert events >= set(CONTEXTS)
    assert {name.partition(".")[0] for name in EXAMPLES} <= set(CONTEXTS)
    assert set(TABLES) == set(CONTEXTS)
    assert {rule.context for rule in ACCESS.values()} == set(CONTEXTS)


def test_who_is_reached_by_plain_http_has_a_use_for_it() -> None:
    """The agent's form of an RPC, or an address that is no RPC's."""
    spoken = {rule.context for rule in ACCESS.values() if rule.agent_form}
    spoken |= {row.served_by for row in HTTP if not row.is_grpc}
    assert {name for name, context in BY_NAME.items() if context.http} == spoken & set(CONTEXTS)


def test_who_gets_the_master_key_seals_with_it() -> None:
    """Nobody else has code for it."""
    found = {
        path.relative_to(ROOT / "services").parts[0]
        for path in (ROOT / "services").rglob("*.py")
        if re.search(r"\bSealer\b", path.read_text())
    }
    assert found == set(SEALERS)


def test_every_service_is_told_where_the_others_are() -> None:
    """By a setting of its own for each."""
    targets = [name for name in ServiceSettings.model_fields if name.endswith("_target")]
    assert targets == [f"{context}_target" for context in CONTEXTS]


def test_import_linter_knows_them() -> None:
    """Services are independent of each other, and the capabilities of each have their layers."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    of_type = {contract["type"]: contract for contract in linter["contracts"]}
    services = [f"services.{context}" for context in sorted(CONTEXTS)]
    assert of_type["independence"]["modules"] == services
    assert set(of_type["acyclic_siblings"]["ancestors"]) >= set(services)
    capabilities = {
        f"services.{context}.{path.parent.name}"
        for context in CONTEXTS
        for path in (ROOT / "services" / context).glob("*/__init__.py")
    }
    assert set(of_type["layers"]["containers"]) == capabilities


def test_compose_runs_them(compose: Any) -> None:
    """Each with its own role, user, files, and the master key only where it seals."""
    environment = compose["x-environment"]
    for name, context in BY_NAME.items():
        service = compose["services"][name]
        own = service["environment"]
        assert service["command"] == ["serve", name]
        assert own["EVERGREEN_DATABASE_URL"].startswith(f"postgresql://{context.role}@")
        assert own["EVERGREEN_NATS_USER"] == name
        assert ("EVERGREEN_MASTER_KEY_FILE" in own) is context.seals
        assert bool(own["EVERGREEN_HTTP_LISTEN"]) is context.http
        assert environment[f"EVERGREEN_{name.upper()}_TARGET"].startswith(f"{name}:")
        secrets = ["${SMTP_SECRETS:-no-smtp-secrets}:/run/smtp:ro"] if name == "identity" else []
        assert service["volumes"] == [f"{name}:/run/evergreen:ro", *secrets]
        assert name in compose["volumes"]
        assert f"{name}:/var/lib/evergreen/{name}" in compose["services"]["init"]["volumes"]
    serving = {
        s for s, what in compose["services"].items() if what.get("command", [""])[0] == "serve"
    }
    assert serving == set(CONTEXTS)
    assert set(compose["services"]["gateway"]["depends_on"]) == {"init", *CONTEXTS}


def test_the_image_has_a_directory_for_each_volume() -> None:
    """Whose owner a new volume gets; without one it is root's, and nothing can be written."""
    words = (ROOT / "Dockerfile").read_text().split()
    compose = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
    ours = compose["services"]["policy"]["image"]
    mounted = {
        volume.split(":")[1] if not volume.startswith("$") else volume.split("}:")[1].split(":")[0]
        for service in compose["services"].values()
        if service.get("image") == ours
        for volume in service.get("volumes", [])
        if not volume.endswith(":ro")
    }
    assert {f"/var/lib/evergreen/{name}" for name in CONTEXTS} < mounted
    assert mounted <= set(words)


def test_prometheus_looks_at_them() -> None:
    """By the names of Compose."""
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (services,) = (s for s in config["scrape_configs"] if s["job_name"] == "evergreen")
    assert services["static_configs"] == [
        {"targets": [f"{context}:{layout.OPS_PORT}"], "labels": {"service": context}}
        for context in CONTEXTS
    ]


def test_the_chart_has_values_for_each() -> None:
    """And its templates the list that `make gen` makes."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert list(values["services"]) == list(CONTEXTS)
    assert set(schema["properties"]["services"]["properties"]) == set(CONTEXTS)
    assert chart_contexts.TEMPLATE.read_text() == chart_contexts.template()
