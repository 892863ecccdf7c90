"""JSON Schemas of messages: what a request may hold, and what an answer does hold.

The mapping is proto3's JSON mapping. Requests and answers differ: in a request a field may be
left out or null and has to satisfy its rules; an answer always has every field without presence.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from evergreen.v1 import rules_pb2
from servicekit.rpc.rules import DEFAULT_MAX_ITEMS, DEFAULT_MAX_STRING
from servicekit.texts import NAME_PATTERN, TEXT_PATTERN
from tools.openapi import bundle
from tools.openapi.contract import Contract, is_map, is_required, message_of, rules

Schema = dict[str, Any]

INT32: Final = (-(1 << 31), (1 << 31) - 1)
UINT64: Final = (0, (1 << 64) - 1)
MAX_BYTES: Final = 1 << 20
ANY_TEXT: Final = r"^[^\x00]*$"
_PATTERNS: Final[dict[int, Schema]] = {
    rules_pb2.FieldRules.FORMAT_NAME: {"pattern": NAME_PATTERN},
    rules_pb2.FieldRules.FORMAT_TEXT: {"pattern": TEXT_PATTERN},
}
"""No string may hold NUL, for PostgreSQL stores none."""
BASE64: Final = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
UUID_OR_NOTHING: Final = r"^(?:[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})?$"

GRPC_ONLY: Final = frozenset(
    {"evergreen.v1.PolicyEnvelope.not_modified", "evergreen.v1.PolicyEnvelope.statement"}
)
"""Fields that the JSON form of a message never has."""
SET_ASIDE: Final = frozenset({"evergreen.v1.ReportEventsRequest.events"})
"""Lists of which an item that breaks its rules does not fail the request."""
MENDED: Final = frozenset({"evergreen.v1.ReportStateRequest.state"})
"""Messages of which a field that breaks its rules does not fail the request."""
BUNDLES: Final = frozenset(
    {
        "evergreen.v1.CreatePolicyRequest.bundle",
        "evergreen.v1.UpdatePolicyRequest.bundle",
        "evergreen.v1.Policy.bundle",
        "evergreen.v1.SimulatePolicyRequest.bundle",
        "evergreen.v1.PolicySetEntry.bundle",
        "evergreen.v1.ExportedPolicy.bundle",
    }
)
"""Fields of any JSON that hold an authored policy."""
NULLABLE_IN_ANSWERS: Final = frozenset(
    {"PolicyApps", "PolicyUpdates", "PolicyBrowser", "PolicyNetwork", "PolicyWifi", "PolicyVpn"}
    | {"PolicySecurity"}
)
"""Messages of which an answer gives lists and maps as they were authored: null when absent."""


class Direction(Enum):
    """Which way a message goes."""

    REQUEST = "request"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class Form:
    """How a message looks as JSON."""

    direction: Direction
    snake_case: bool
    strict: bool = False
    """Whether names that no field has are refused."""

    def name(self, field: FieldDescriptor) -> str:
        """The field's name."""
        return field.name if self.snake_case else field.json_name


class Schemas:
    """Makes the schemas of messages, and collects those that others refer to."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._forms: dict[str, Form] = {}
        self.components: dict[str, Schema] = {}

    def reference(self, message: Descriptor, form: Form) -> Schema:
        """A reference to the message's schema, which is made on first use."""
        name = message.name
        if (known := self._forms.setdefault(name, form)) != form:
            raise NotImplementedError(f"{name} as {form} and as {known} needs two names")
        if name not in self.components:
            self.components[name] = {}  # holds the place, and ends recursion
            self.components[name] = self.object(message, form)
        return _ref(name)

    def object(self, message: Descriptor, form: Form, without: tuple[str, ...] = ()) -> Schema:
        """The message's schema itself; `without` names fields that are not in the JSON."""
        schema: Schema = {"type": "object"}
        if comment := self._contract.comment(message.full_name):
            schema["description"] = comment
        fields = [f for f in message.fields if f.name not in without]
        fields = [f for f in fields if f.full_name not in GRPC_ONLY]
        if fields:
            schema["properties"] = {form.name(f): self.field(f, form) for f in fields}
        if form.direction is Direction.REQUEST:
            required = [form.name(f) for f in fields if is_required(f)]
        else:
            required = [form.name(f) for f in fields if _always_answered(f, form)]
        if required:
            schema["required"] = required
        if form.strict:
            schema["additionalProperties"] = False
        return schema

    def field(self, field: FieldDescriptor, form: Form, *, in_body: bool = True) -> Schema:
        """The schema of one field, with its comment."""
        asked = form.direction is Direction.REQUEST
        schema = self._value(field, form)
        may_be_null = asked and in_body and not is_required(field)
        if may_be_null or (field.is_repeated and _owner(field).name in NULLABLE_IN_ANSWERS):
            schema = _or_null(schema)
        if comment := self._contract.comment(field.full_name):
            schema["description"] = self._contract.in_json(comment, snake_case=form.snake_case)
        return schema

    def _value(self, field: FieldDescriptor, form: Form) -> Schema:
        asked = form.direction is Direction.REQUEST
        rule = rules(field)
        if is_map(field):
            text = _text(DEFAULT_MAX_STRING) if asked else {"type": "string"}
            value = text
            if message_of(field).fields_by_name["value"].message_type is not None:
                # All of them are lists of names.
                value = {"type": "array", "items": text}
            schema: Schema = {"type": "object", "additionalProperties": value}
            if asked:
                schema |= {"propertyNames": text} | _sizes("Properties", rule)
            return schema
        if not field.is_repeated:
            return self._single(field, form)
        items = self._single(field, form)
        if asked and field.full_name in SET_ASIDE:
            items = {"anyOf": [items, {"description": "Anything else is quarantined."}]}
        schema = {"type": "array", "items": items}
        return schema | _sizes("Items", rule) if asked else schema

    def _single(self, field: FieldDescriptor, form: Form) -> Schema:
        asked = form.direction is Direction.REQUEST
        match field.type:
            case FieldDescriptor.TYPE_MESSAGE:
                return self._message(field, form)
            case FieldDescriptor.TYPE_STRING:
                return _string(field) if asked else {"type": "string"}
            case FieldDescriptor.TYPE_BYTES:
                return _bytes(rules(field).max_len or MAX_BYTES if asked else None)
            case FieldDescriptor.TYPE_BOOL:
                return {"type": "boolean"}
            case FieldDescriptor.TYPE_DOUBLE:
                return {"type": "number", "format": "double"}
            case FieldDescriptor.TYPE_INT32:
                return {"type": "integer", "format": "int32"} | (_range(field) if asked else {})
            case FieldDescriptor.TYPE_UINT64 if asked:
                low, high = UINT64
                return {
                    "type": "integer",
                    "format": "uint64",
                    "minimum": low,
                    "maximum": high,
                }
        raise NotImplementedError(f"{field.full_name}: the JSON form of its type")

    def _message(self, field: FieldDescriptor, form: Form) -> Schema:
        if field.full_name in BUNDLES:
            self.components.setdefault("PolicyBundle", bundle.bundle_schema())
            for name, schema in bundle.components(self._contract).items():
                self.components.setdefault(name, schema)
            return _ref("PolicyBundle")
        message = message_of(field)
        match message.full_name:
            case "google.protobuf.Timestamp":
                return {"type": "string", "format": "date-time"}
            case "google.protobuf.Struct":
                return {"type": "object", "additionalProperties": True}
            case "google.protobuf.Value":
                return {}
        schema = self.reference(message, form)
        if form.direction is Direction.REQUEST and field.full_name in MENDED:
            return {
                "anyOf": [schema, {"type": "object", "description": "Any other one is sanitised."}]
            }
        return schema


def _always_answered(field: FieldDescriptor, form: Form) -> bool:
    # The transcoder leaves unset messages out; the device calls' own JSON has all of them.
    return not field.has_presence or (form.snake_case and field.containing_oneof is None)


def _owner(field: FieldDescriptor) -> Descriptor:
    assert field.containing_type is not None
    return field.containing_type


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: Schema) -> Schema:
    if not schema:
        return schema
    if "$ref" in schema:
        # An authored policy is an object; null would be a value of its own there.
        if schema["$ref"].endswith("/PolicyBundle"):
            return schema
        return {"oneOf": [schema, {"type": "null"}]}
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    schema = schema | {"type": [*types, "null"]}
    if "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    return schema


def _text(longest: int, shortest: int = 0) -> Schema:
    schema: Schema = {"type": "string"}
    if shortest:
        schema["minLength"] = shortest
    return schema | {"maxLength": longest, "pattern": ANY_TEXT}


def _string(field: FieldDescriptor) -> Schema:
    rule = rules(field)
    if field.is_repeated:
        if rule.format == rules_pb2.FieldRules.FORMAT_UUID:
            return {"type": "string", "format": "uuid"}
        return _text(rule.item_max_len or DEFAULT_MAX_STRING)
    required = is_required(field)
    if rule.any_of:
        return {"type": "string", "enum": [v for v in rule.any_of if v or not required]}
    if rule.format == rules_pb2.FieldRules.FORMAT_UUID:
        if required:
            return {"type": "string", "format": "uuid"}
        return {"type": "string", "pattern": UUID_OR_NOTHING}
    schema = _text(rule.max_len or DEFAULT_MAX_STRING, rule.min_len or int(required))
    if rule.format == rules_pb2.FieldRules.FORMAT_EMAIL:
        schema["format"] = "email"
    if rule.pattern:
        schema["pattern"] = f"^(?:{rule.pattern})$"
    if rule.format == rules_pb2.FieldRules.FORMAT_FIRMWARE:
        # What firmware says is trimmed, NUL too.
        del schema["pattern"]
    return schema | _PATTERNS.get(rule.format, {})


def _bytes(longest: int | None) -> Schema:
    schema: Schema = {"type": "string", "contentEncoding": "base64"}
    if longest is not None:
        schema |= {"maxLength": -(-longest // 3) * 4, "pattern": BASE64}
    return schema


def _range(field: FieldDescriptor) -> Schema:
    rule = rules(field)
    low, high = INT32
    return {
        "minimum": rule.min if rule.HasField("min") else low,
        "maximum": rule.max if rule.HasField("max") else high,
    }


def _sizes(what: str, rule: rules_pb2.FieldRules) -> Schema:
    sizes: Schema = {f"min{what}": rule.min_len} if rule.min_len else {}
    return sizes | {f"max{what}": rule.max_len or DEFAULT_MAX_ITEMS}
