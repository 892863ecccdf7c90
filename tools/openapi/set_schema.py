"""The JSON Schema of a document in a set's files, for editors and pipelines (part of `make gen`).

Writes `openapi/policy-set.schema.json`, which is published, and the same into the package, which
the gateway serves at `/api/policy-schema.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

Schema = dict[str, Any]

_ROOT: Final = Path(__file__).resolve().parent.parent.parent
PUBLISHED: Final = _ROOT / "openapi" / "policy-set.schema.json"
SERVED: Final = _ROOT / "libs" / "evergreen" / "v1" / "policy-set.schema.json"
_COMPONENTS: Final = "#/components/schemas/"


def set_schema(components: Schema) -> Schema:
    """One document of a set's files: a Set, a DeviceGroup, a Policy, a Variable or a SecretRef.

    Args:
        components: the schemas of the OpenAPI document.
    """
    group = components["DeviceGroupSetEntry"]["properties"]
    policy = components["PolicySetEntry"]["properties"]
    variable = components["PolicySetVariable"]["properties"]
    name = components["ApplyPolicySetRequest"]["properties"]["name"]
    used: Schema = {}
    kinds = {
        "Set": _kind(
            "Set",
            "What the directory is: the set's name, and whose it is.",
            {
                "metadata": {
                    "type": "object",
                    "properties": {"name": name},
                    "required": ["name"],
                    "additionalProperties": False,
                },
                "org": {
                    "type": "string",
                    "description": "The organisation's code or id; the command says it otherwise.",
                },
            },
            ["metadata"],
        ),
        "DeviceGroup": {
            **_kind(
                "DeviceGroup",
                "A group of devices.",
                {
                    **{each: group[each] for each in ("alias", "name", "description", "priority")},
                    "filter": {**group["filter"], "type": "string"},
                    "members": {
                        "const": "external",
                        "description": "Its members are listed elsewhere, and it has no filter.",
                    },
                    "renamedFrom": group["renamedFrom"],
                },
                ["alias"],
            ),
            "oneOf": [{"required": ["filter"]}, {"required": ["members"]}],
        },
        "Policy": _kind(
            "Policy",
            "A policy.",
            {
                **{each: policy[each] for each in ("alias", "name", "description")},
                "targets": {
                    "description": "`[org]` for all devices, or `group:ALIAS` for each group.",
                    "oneOf": [
                        {"const": ["org"]},
                        {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": 100,
                            "items": {"type": "string", "pattern": "^group:."},
                        },
                    ],
                },
                **{each: policy[each] for each in ("bundle", "merging", "draft", "renamedFrom")},
            },
            ["alias", "targets", "bundle"],
        ),
        "Variable": _kind(
            "Variable",
            "A variable that templates name.",
            {each: variable[each] for each in ("name", "value", "overridable")},
            ["name", "value"],
        ),
        "SecretRef": _kind(
            "SecretRef",
            "A secret that has to be set; its value is in no file.",
            {"name": {**variable["name"], "description": "Its name."}},
            ["name"],
        ),
    }
    found = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A document of a set of groups and policies",
        "oneOf": list(kinds.values()),
    }
    _collect(found, components, used)
    return {**_relative(found), "$defs": _relative(dict(sorted(used.items())))}


def write(components: Schema) -> None:
    """Writes both files anew."""
    text = json.dumps(set_schema(components), ensure_ascii=False, indent=2) + "\n"
    PUBLISHED.write_text(text, encoding="utf-8")
    SERVED.write_text(text, encoding="utf-8")


def _kind(kind: str, about: str, members: Schema, required: list[str]) -> Schema:
    return {
        "type": "object",
        "description": about,
        "properties": {
            "apiVersion": {"const": "evergreen/v1"},
            "kind": {"const": kind},
            # Null is no value of a member that is left out in a call.
            **{name: _without_null(schema) for name, schema in members.items()},
        },
        "required": ["kind", *required],
        "additionalProperties": False,
    }


def _without_null(schema: Schema) -> Schema:
    if isinstance(schema.get("type"), list):
        kinds = [kind for kind in schema["type"] if kind != "null"]
        return {**schema, "type": kinds[0] if len(kinds) == 1 else kinds}
    if "oneOf" in schema:
        arms = [arm for arm in schema["oneOf"] if arm != {"type": "null"}]
        if len(arms) == 1:
            return {**{k: v for k, v in schema.items() if k != "oneOf"}, **arms[0]}
    return schema


def _collect(found: Any, components: Schema, used: Schema) -> None:
    """Takes the components that a schema refers to, and those that these refer to."""
    if isinstance(found, dict):
        name = str(found.get("$ref", "")).removeprefix(_COMPONENTS)
        if name and name not in used:
            used[name] = components[name]
            _collect(components[name], components, used)
        for value in found.values():
            _collect(value, components, used)
    elif isinstance(found, list):
        for value in found:
            _collect(value, components, used)


def _relative(found: Any) -> Any:
    return json.loads(json.dumps(found).replace(f'"{_COMPONENTS}', '"#/$defs/'))
