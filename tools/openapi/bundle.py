"""The schemas of an authored policy: a device document, a template, or the web console's form.

The contract has a policy's bundle as any JSON. What the policy service takes is narrower, and
stated here in the words of JSON Schema with the service's own limits.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from services.policy.authoring import configuration, document, violations
from tools.openapi.contract import Contract, is_map, message_of

Schema = dict[str, Any]

_TEXT: Final[Schema] = {
    "type": "string",
    "maxLength": violations.MAX_TEXT,
    "pattern": r"^[^\x00]*$",
}
_KEY: Final[Schema] = _TEXT | {"maxLength": violations.MAX_KEY}
_STRINGS: Final[Schema] = {
    "type": ["object", "null"],
    "propertyNames": {"maxLength": violations.MAX_KEY, "pattern": r"^[^\x00]*$"},
    "additionalProperties": _TEXT | {"maxLength": document.MAX_SECRET},
    "maxProperties": document.MAX_ENTRIES,
}
_AUTHORED: Final = "Authored"
_WORD: Final = "[A-Za-z_][A-Za-z0-9_]*"
_APP_ID: Final = (
    f"^({'|'.join(configuration.CATALOGUE)}|{_WORD}(\\.{_WORD})+\\.[A-Za-z_][A-Za-z0-9_-]*)$"
)


def bundle_schema() -> Schema:
    """Any form of an authored policy."""
    return {
        "description": "An authored policy: a device document, an object with `configuration` as "
        "the web console writes it, or a template. It is kept as authored and compiled to the "
        "document that devices get.",
        "anyOf": [
            {"$ref": "#/components/schemas/AuthoredPolicyDocument"},
            {"$ref": "#/components/schemas/PolicyTemplate"},
            {"$ref": "#/components/schemas/ConsolePolicy"},
        ],
    }


def components(contract: Contract) -> dict[str, Schema]:
    """The named schemas that `bundle_schema` refers to."""
    found: dict[str, Schema] = {}
    _document(contract, contract.message("PolicyDocument"), found)
    found["AuthoredPolicyDocument"]["description"] = (
        "A device document. What is left out is empty; devices tell an absent list or map (null) "
        "from an empty one. At most 512 KiB in all."
    )
    template = _object(
        {
            "template": {
                "anyOf": [
                    {"$ref": "#/components/schemas/AuthoredPolicyDocument"},
                    {"$ref": "#/components/schemas/ConsolePolicy"},
                ]
            }
        },
        "template",
    )
    template["description"] = (
        "A device document, or what the web console writes, whose texts may have `{{var.NAME}}`, "
        "`{{org.code}}`, `{{org.name}}` and, in fields that hold secrets, `{{secret.NAME}}`: the "
        "tenant's values when the policy is published."
    )
    return found | {"ConsolePolicy": _console(), "PolicyTemplate": template}


def _document(contract: Contract, message: Descriptor, found: dict[str, Schema]) -> Schema:
    name = _AUTHORED + message.name
    if name not in found:
        properties: Schema = {}
        for field in message.fields:
            schema = _member(contract, field, found)
            schema["description"] = contract.comment(field.full_name)
            properties[field.name] = schema
        found[name] = {
            "type": "object",
            "description": contract.comment(message.full_name),
            "properties": properties,
            "additionalProperties": False,
        }
    return {"$ref": f"#/components/schemas/{name}"}


def _member(contract: Contract, field: FieldDescriptor, found: dict[str, Schema]) -> Schema:
    if is_map(field):
        return dict(_STRINGS)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        schema = _document(contract, message_of(field), found)
        if not field.is_repeated:
            return {"oneOf": [schema, {"type": "null"}]}
    else:
        schema = dict(_TEXT) if field.type == FieldDescriptor.TYPE_STRING else {"type": "boolean"}
    return _list(schema) if field.is_repeated else schema


def _list(items: Schema) -> Schema:
    return {"type": ["array", "null"], "items": items, "maxItems": violations.MAX_ITEMS}


def _object(properties: Schema, *required: str, nullable: bool = False) -> Schema:
    schema: Schema = {
        "type": ["object", "null"] if nullable else "object",
        "properties": properties,
        "additionalProperties": False,
    }
    return schema | {"required": list(required)} if required else schema


def _enum(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _console() -> Schema:
    label = _TEXT | {"type": ["string", "null"]}
    app = _object(
        {
            "id": _TEXT | {"pattern": _APP_ID},
            "target": _enum(*configuration.TARGETS),
            "groupIds": _list(_KEY),
        },
        "id",
    )
    passphrase = dict(_TEXT)
    passphrase["description"] = (
        "The console has no field for it and leaves it out: then the one that is stored for this "
        "name stays, in this policy or in the one in force. A policy is not published while a "
        "network has none."
    )
    network = _object(
        {
            "ssid": _TEXT,
            "security": _enum(*configuration.WIFI_SECURITY),
            "passphrase": passphrase,
        },
        "ssid",
    )
    minutes = {"type": "number", "minimum": 0, "maximum": configuration.MAX_LOCK_MINUTES}
    form = _object(
        {
            "apps": _list(app),
            "updateChannel": _enum(*configuration.CHANNELS),
            "browser": _object(
                {"homepageUrl": _TEXT, "allowPopups": {"type": "boolean"}}, nullable=True
            ),
            "network": _object({"wifiNetworks": _list(network)}, nullable=True),
            "security": _object(
                {"diskEncryption": {"type": "boolean"}, "lockAfterMinutes": minutes},
                nullable=True,
            ),
        }
    )
    form["description"] = (
        "What devices have no setting for (`allowPopups`, `diskEncryption`, `lockAfterMinutes`, "
        "apps whose target is a group) is kept and compiles to nothing. What the form has no "
        "switch for comes from a baseline: SELinux on, SSH and the login of root off, USBGuard as "
        "the policy in force has it. `wpa2` is WPA2 (`wpa-psk`), `wpa3` is WPA3 (`sae`)."
    )
    signature = _object({"status": label, "signer": label}, nullable=True)
    signature["description"] = (
        "The console's own words; kept and without effect. `signed` of the policy says what is "
        "signed and in force."
    )
    schema = _object(
        {
            "id": label,
            "name": label,
            "version": label,
            "orgId": label,
            "signature": signature,
            "configuration": form,
        },
        "configuration",
    )
    schema["description"] = "The web console's form of a policy."
    return schema
