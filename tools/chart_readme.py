"""The chart's README, made from the schema of its values and their defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

CHART: Final = Path(__file__).parents[1] / "helm" / "evergreen"

_HEAD: Final = """\
# Helm chart: Evergreen

<!-- Made by `make gen` from values.schema.json and values.yaml. -->

Runs the backend on Kubernetes {kube}. `docs/install.md` tells how to begin, and what an external
PostgreSQL and NATS need. `docs/upgrade.md`, `docs/backup.md` and `docs/certificates.md` go on
from there.

Every secret can be given (`existingSecret`); then the chart makes none. `profile: production` asks
for an external PostgreSQL and two pods or more of everything.

## Values

| value | type | default | meaning |
| --- | --- | --- | --- |
"""
_INHERITS: Final = "services."


def readme() -> str:
    """The text of the README."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    rows = "".join(f"| {' | '.join(row)} |\n" for row in _rows(schema, values, ""))
    return _HEAD.format(kube=chart["kubeVersion"].removesuffix("-0")) + rows


def _rows(schema: Mapping[str, Any], values: Any, prefix: str) -> Iterator[tuple[str, ...]]:
    for name, part in sorted(schema["properties"].items()):
        path = f"{prefix}{name}"
        if path == "global":
            continue
        value = (values or {}).get(name)
        if "properties" in part and not path.startswith(_INHERITS):
            yield from _rows(part, value, f"{path}.")
            continue
        yield f"`{path}`", _type(part), _code(value), _meaning(part)


def _type(part: Mapping[str, Any]) -> str:
    if "enum" in part:
        return ", ".join(f"`{choice}`" for choice in part["enum"])
    kind = part["type"]
    return kind if isinstance(kind, str) else " or ".join(kind)


def _code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _meaning(part: Mapping[str, Any]) -> str:
    return str(part.get("description", "")).replace("|", "\\|")


def write() -> None:
    """Writes it."""
    (CHART / "README.md").write_text(readme(), encoding="utf-8")
