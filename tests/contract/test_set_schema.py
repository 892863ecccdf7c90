"""The schema of sets' files takes what the command line and the services take."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from cli.set_files import _MEMBERS, _NEEDED
from tests.support.documented import read
from tools import openapi
from tools.openapi import set_schema

SCHEMA = set_schema.set_schema(openapi.document()["components"]["schemas"])
VALIDATOR = Draft202012Validator(SCHEMA)
POLICY: dict[str, Any] = {"kind": "Policy", "alias": "a", "targets": ["org"], "bundle": {}}
GROUP: dict[str, Any] = {"kind": "DeviceGroup", "alias": "a", "filter": "has_tpm = true"}


def test_it_is_what_is_published_and_served() -> None:
    """And a schema by its own draft."""
    text = set_schema.PUBLISHED.read_text(encoding="utf-8")
    assert json.loads(text) == SCHEMA
    assert set_schema.SERVED.read_text(encoding="utf-8") == text
    Draft202012Validator.check_schema(SCHEMA)


def test_it_has_the_members_that_the_reader_has() -> None:
    """And asks for the same."""
    for kind in SCHEMA["oneOf"]:
        name = kind["properties"]["kind"]["const"]
        assert set(kind["properties"]) - {"apiVersion", "kind"} == set(_MEMBERS[name])
        assert set(kind["required"]) == {"kind", *_NEEDED[name]}
        assert kind["additionalProperties"] is False


def test_it_takes_what_is_documented() -> None:
    """The example of the page, each of its documents."""
    (example,) = (block for block in read("docs/policy-sets.md") if block.language == "yaml")
    documents = list(yaml.safe_load_all(example.text))
    assert [one["kind"] for one in documents] == ["Set", "DeviceGroup", "Policy"]
    for document in documents:
        VALIDATOR.validate(document)


@pytest.mark.parametrize(
    ("document", "fits"),
    [
        (POLICY, True),
        ({**POLICY, "targets": ["group:year-7"], "merging": {"lockedFields": ["apps"]}}, True),
        ({**POLICY, "bundle": {"configuration": {"updateChannel": "beta"}}}, True),
        ({**POLICY, "bundle": {"x": 1}}, False),
        ({**POLICY, "targets": []}, False),
        ({**POLICY, "targets": ["org", "group:x"]}, False),
        ({**POLICY, "alias": "Not small"}, False),
        ({**POLICY, "name": None}, False),
        ({**POLICY, "merging": {"x": True}}, False),
        (GROUP, True),
        ({**GROUP, "members": "external"}, False),
        ({"kind": "DeviceGroup", "alias": "a"}, False),
        ({"kind": "DeviceGroup", "alias": "a", "members": "external"}, True),
        ({"kind": "Nothing"}, False),
    ],
)
def test_it_refuses_what_is_refused(document: dict[str, Any], fits: bool) -> None:
    """Unknown members, other targets, and members without a value."""
    assert VALIDATOR.is_valid(document) == fits
