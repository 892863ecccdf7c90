"""The OpenAPI document says what the contract, its rules and the access table say."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format
from google.protobuf.message_factory import GetMessageClass
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from contract.access import ACCESS, Audience
from evergreen.v1 import device_pb2, enrollment_pb2, identity_pb2, policy_pb2, rules_pb2
from servicekit.errors import DomainError
from servicekit.rpc.rules import violations
from services.policy.authoring.configuration import compile_bundle
from tests.support import yaml_text
from tools import openapi
from tools.openapi.contract import DESCRIPTORS, Contract, is_required, rules, split_comment
from tools.openapi.examples import EXAMPLES
from tools.openapi.schemas import BUNDLES, GRPC_ONLY, SET_ASIDE

DOCUMENT = json.loads(json.dumps(openapi.document()))
CONTRACT = Contract(DESCRIPTORS.read_bytes())
REGISTERED = (device_pb2, enrollment_pb2, identity_pb2, policy_pb2)
VERBS = {"get", "post", "patch", "delete"}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        assert set(item) <= VERBS
        for verb, operation in item.items():
            yield path, verb, operation


OPERATIONS = {o["x-grpc-method"]: (p, v, o) for p, v, o in operations() if "x-grpc-method" in o}


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    """A validator for a schema of the document; its references start at the document."""
    resource = Resource.from_contents(DOCUMENT, default_specification=DRAFT202012)
    registry = Registry().with_resource("urn:document", resource)
    absolute = json.loads(
        json.dumps(schema).replace('"#/components/', '"urn:document#/components/')
    )
    return Draft202012Validator(
        absolute, registry=registry, format_checker=Draft202012Validator.FORMAT_CHECKER
    )


def request_schema(rpc: str) -> dict[str, Any]:
    _, _, operation = OPERATIONS[rpc]
    schema: dict[str, Any] = operation["requestBody"]["content"]["application/json"]["schema"]
    return schema


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    found = DOCUMENT
    for part in schema["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    assert isinstance(found, dict)
    return found


def media_types(found: Any) -> Iterator[dict[str, Any]]:
    """Every media type object below a part of the document."""
    if isinstance(found, dict):
        for key, value in found.items():
            if key == "content":
                yield from value.values()
            yield from media_types(value)
    elif isinstance(found, list):
        for value in found:
            yield from media_types(value)


def test_the_document_is_valid() -> None:
    """It is OpenAPI 3.1 in the eyes of a validator of another origin."""
    validate(DOCUMENT)


def test_the_files_are_up_to_date_and_stable() -> None:
    """`make gen` would write what is there: the same bytes, YAML and JSON saying the same."""
    published = openapi.PUBLISHED.read_text(encoding="utf-8")
    assert published == openapi.as_yaml(openapi.document())
    assert yaml_text.load(published) == DOCUMENT
    assert json.loads(openapi.SERVED.read_text(encoding="utf-8")) == DOCUMENT


def test_every_public_rpc_is_there_once_and_no_other() -> None:
    """What the gateway serves is described, and nothing that it does not serve."""
    public = {rpc for rpc, rule in ACCESS.items() if rule.audience is not Audience.INTERNAL}
    named = [o["x-grpc-method"] for _, _, o in operations() if "x-grpc-method" in o]
    assert sorted(named) == sorted(public)
    ids = [o["operationId"] for _, _, o in operations()]
    assert len(set(ids)) == len(ids)
    assert "Internal" not in json.dumps(sorted(DOCUMENT["components"]["schemas"]))


@pytest.mark.parametrize("rpc", sorted(OPERATIONS))
def test_every_operation_is_complete(rpc: str) -> None:
    """Who may call, what it is, and what can go wrong, as the access table has it."""
    path, verb, operation = OPERATIONS[rpc]
    rule = ACCESS[rpc]
    schemes = {name for entry in operation["security"] for name in entry}
    assert (
        schemes
        == {
            Audience.PUBLIC: set(),
            Audience.USER: {"userToken", "session"},
            Audience.DEVICE: {"deviceToken"},
            Audience.DEVICE_LAPSED: {"deviceToken"},
        }[rule.audience]
    )
    assert schemes <= set(DOCUMENT["components"]["securitySchemes"])
    for role in rule.roles:
        assert role.value in operation["description"]
    assert operation["tags"] == [rpc.split("/")[1].rpartition(".")[2]]
    assert operation["summary"][0].isupper()
    responses = operation["responses"]
    assert {"200", "429", "503", "default"} <= set(responses)
    assert ({"401", "403"} <= set(responses)) or rule.audience is Audience.PUBLIC
    assert ("404" in responses) or "{" not in path
    assert ("requestBody" in operation) == (verb in {"post", "patch"})
    assert ("413" in responses) == ("requestBody" in operation)
    placed = re.findall(r"\{(\w+)}", path)
    assert placed == [p["name"] for p in operation.get("parameters", []) if p["in"] == "path"]
    for status, response in responses.items():
        if status not in {"200", "304"}:
            content = resolved(response)["content"]
            assert content["application/json"]["schema"]["$ref"].endswith("/Error")


def test_names_are_camel_case_but_for_devices() -> None:
    """The console reads camelCase, the released agent snake_case."""
    for rpc, (path, _, operation) in OPERATIONS.items():
        names = [parameter["name"] for parameter in operation.get("parameters", [])]
        if "requestBody" in operation:
            names += resolved(request_schema(rpc)).get("properties", {})
        for name in names:
            if path.startswith("/api/v1/devices/"):
                assert not re.search("[A-Z]", name), (rpc, name)
            else:
                assert "_" not in name, (rpc, name)
    enrolled = DOCUMENT["components"]["schemas"]["EnrollDeviceResponse"]
    assert list(enrolled["properties"]) == ["device_id", "device_token", "policy"]
    assert enrolled["required"] == ["device_id", "device_token", "policy"]


def test_every_comment_of_the_contract_arrives() -> None:
    """No message, field or parameter of the document is without a description."""
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert schema.get("description"), name
    for rpc, (_, _, operation) in OPERATIONS.items():
        for parameter in operation.get("parameters", []):
            assert parameter["description"], (rpc, parameter["name"])


def test_rules_arrive() -> None:
    """Each rule of a request's field is in its schema, with the defaults for what has none."""
    login = resolved(request_schema("/evergreen.v1.AuthService/Login"))
    assert login["required"] == ["email", "password"]
    assert login["properties"]["password"] == {
        "type": "string",
        "minLength": 1,
        "maxLength": 1024,
        "pattern": r"^[^\x00]*$",
        "description": "The user's password.",
    }
    user = resolved(request_schema("/evergreen.v1.UserService/CreateUser"))["properties"]
    assert user["role"]["enum"] == ["Owner", "Admin", "Auditor"]
    assert user["email"]["format"] == "email"
    assert user["password"]["type"] == ["string", "null"]
    update = resolved(request_schema("/evergreen.v1.TenantService/UpdateTenant"))
    assert "id" not in update["properties"]  # it is in the path
    assert update["properties"]["code"]["pattern"] == "^(?:[a-z0-9]([a-z0-9-]*[a-z0-9])?)$"
    token = resolved(request_schema("/evergreen.v1.EnrollmentTokenService/CreateEnrollmentToken"))[
        "properties"
    ]
    assert (token["maxUses"]["minimum"], token["maxUses"]["maximum"]) == (0, 1_000_000)
    assert token["serials"]["maxItems"] == 10_000
    assert token["serials"]["items"]["maxLength"] == 128
    enroll = resolved(request_schema("/evergreen.v1.DeviceService/EnrollDevice"))["properties"]
    assert enroll["total_ram_bytes"]["type"] == ["integer", "null"]
    assert enroll["total_ram_bytes"]["maximum"] == 2**64 - 1
    _, _, devices = OPERATIONS["/evergreen.v1.InventoryService/ListDevices"]
    query = {p["name"]: p["schema"] for p in devices["parameters"]}
    assert query["status"]["enum"] == ["", "online", "offline", "decommissioned"]
    assert query["lastSeenAfter"] == {"type": "string", "format": "date-time"}


def test_every_rule_in_the_contract_is_in_the_document() -> None:
    """Generated for all request fields: the numbers of the rules stand in the schema."""
    for operation in CONTRACT.operations:
        _, _, described = OPERATIONS[operation.rpc]
        members = {p["name"]: p["schema"] for p in described.get("parameters", [])}
        if "requestBody" in described:
            members |= resolved(request_schema(operation.rpc)).get("properties", {})
        for field in operation.method.input_type.fields:
            rule = rules(field)
            schema = members[field.name if operation.is_device_form else field.json_name]
            text = json.dumps(schema)
            for number in (rule.max_len, rule.item_max_len):
                assert not number or str(number) in text, field.full_name
            for value in rule.any_of:
                assert value in schema["enum"] or (value == "" and is_required(field))
            if rule.HasField("max"):
                assert schema["maximum"] == rule.max
            if rule.format == rules_pb2.FieldRules.FORMAT_UUID:
                item = schema.get("items", schema)
                assert item.get("format") == "uuid" or "{12}" in item["pattern"]


def test_field_names_that_the_generator_knows_exist() -> None:
    """The generator's special cases are about fields of the contract."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
        pool.Add(file)
    for name in GRPC_ONLY | SET_ASIDE | BUNDLES:
        assert pool.FindFieldByName(name).full_name == name
    envelope = DOCUMENT["components"]["schemas"]["PolicyEnvelope"]
    assert list(envelope["properties"]) == ["version", "signature", "policy", "device_token"]


def test_every_example_satisfies_its_schema() -> None:
    """What the documentation shows would be accepted, or could have been answered."""
    shown = [media for media in media_types(DOCUMENT) if "example" in media]
    assert len(shown) == sum(len(parts) for parts in EXAMPLES.values()) + len(
        DOCUMENT["components"]["responses"].keys() - {"Error"}
    )
    for media in shown:
        validator(media["schema"]).validate(media["example"])


def test_every_example_request_satisfies_the_services_rules() -> None:
    """The examples pass the checks that the services make, too."""
    for operation in CONTRACT.operations:
        example = EXAMPLES.get(operation.rpc.removeprefix("/evergreen.v1."), {}).get("request")
        if example is not None:
            name = operation.method.input_type.full_name
            message = GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))()
            json_format.ParseDict(example, message)
            for name in operation.path_fields:
                setattr(message, name, "01936d2e-5a70-7c31-9d0e-3f6f1a8b2c01")
            assert violations(message) == [], operation.rpc


def test_the_examples_signature_looks_like_one() -> None:
    """64 bytes in standard base64 with padding."""
    assert (
        len(
            base64.b64decode(
                EXAMPLES["DeviceService/PullPolicy"]["answer"]["signature"], validate=True
            )
        )
        == 64
    )


@pytest.mark.parametrize(
    ("bundle", "fits"),
    [
        ({}, True),
        ({"apps": None}, True),
        ({"apps": {"required": None}}, True),
        ({"apps": {"required": [{"id": "a"}]}, "browser": {"homepage": ""}}, True),
        ({"network": {"wifi": [{"ssid": "s", "eap": {"identity": "x"}}]}}, True),
        ({"configuration": {}}, True),
        ({"name": None, "configuration": {"security": {"lockAfterMinutes": 5.5}}}, True),
        (None, False),
        ([], False),
        ({"apps": {"required": [None]}}, False),
        ({"apps": {"requires": []}}, False),
        ({"updates": {"reboot_required": None}}, False),
        ({"security": {"ssh_enabled": "no"}}, False),
        ({"configuration": None}, False),
        ({"configuration": {"updateChannel": "canary"}}, False),
        ({"configuration": {"apps": [{"target": "all"}]}}, False),
        ({"configuration": {"security": {"lockAfterMinutes": -1}}}, False),
        ({"configuration": {}, "apps": {}}, False),
    ],
)
def test_the_bundles_schema_is_what_the_policy_service_takes(bundle: Any, fits: bool) -> None:
    """The document and the service agree about every one of these."""
    assert validator({"$ref": "#/components/schemas/PolicyBundle"}).is_valid(bundle) == fits
    if fits:
        compile_bundle(bundle)
    else:
        with pytest.raises(DomainError):
            compile_bundle(bundle)


def test_devices_may_leave_lists_null() -> None:
    """Go writes null for an absent list, in requests and in the document alike."""
    state = {
        "device_id": "01936d2e-9c14-7a02-8b77-51d2c3e4f506",
        "state": {"timestamp": "2026-09-01T07:58:03.221407912Z", "installed_apps": None},
    }
    validator(request_schema("/evergreen.v1.DeviceService/ReportState")).validate(state)
    apps = DOCUMENT["components"]["schemas"]["PolicyApps"]["properties"]["required"]
    assert apps["type"] == ["array", "null"]


def test_an_event_that_breaks_a_rule_fits_too() -> None:
    """It is quarantined; the batch succeeds."""
    batch = {
        "device_id": "01936d2e-9c14-7a02-8b77-51d2c3e4f506",
        "events": [{"id": "1"}, {"type": "\x00"}, 5],
    }
    validator(request_schema("/evergreen.v1.DeviceService/ReportEvents")).validate(batch)


def test_not_modified_has_no_body() -> None:
    """The policy answer's 304 is documented, without content."""
    _, _, pull = OPERATIONS["/evergreen.v1.DeviceService/PullPolicy"]
    assert "content" not in pull["responses"]["304"]
    others = [o for _, _, o in operations() if "304" in o["responses"]]
    assert others == [pull]


@pytest.mark.parametrize(
    ("comment", "first", "rest"),
    [
        ("Answers one.", "Answers one", ""),
        ("Answers one. A second. A third.", "Answers one", "A second. A third."),
        ("First of `a.b`, and 2.0. More.", "First of `a.b`, and 2.0", "More."),
        ("First.\n\nA paragraph. More.", "First", "A paragraph. More."),
    ],
)
def test_summaries_are_first_sentences(comment: str, first: str, rest: str) -> None:
    """The summary is the comment's first sentence, and nothing of the rest is lost."""
    assert split_comment(comment) == (first, rest)
