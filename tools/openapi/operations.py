"""The `paths` of the document: one operation per RPC that has an HTTP binding."""

from __future__ import annotations

import re
from typing import Final

from google.protobuf.descriptor import FieldDescriptor

from contract.access import PACKAGE, Audience
from contract.rows import File
from evergreen.v1 import rules_pb2
from tools.openapi import errors
from tools.openapi.contract import Contract, Operation, is_required, rules, split_comment
from tools.openapi.examples import EXAMPLES
from tools.openapi.schemas import Direction, Form, Schema, Schemas

_FILE: Final[Schema] = {"schema": {"type": "string"}}
_JSON: Final = "application/json"

_IF_MATCH: Final = {
    "name": "If-Match",
    "in": "header",
    "description": "Refuses the call unless what it changes still has this etag, as `ETag` had it,"
    " or, for `*`, exists. Lists are taken as well; weak etags match nothing.",
    "schema": {"type": "string", "maxLength": 66, "pattern": r'^(\*|"[!#-~]*")$'},
}
_ETAG: Final = {
    "ETag": {
        "description": "The etag in quotation marks, for `If-Match`.",
        "schema": {"type": "string"},
    }
}

# Where fields that are not known are ignored, the transcoder wants them to have a name.
_NAMED: Final = {"propertyNames": {"minLength": 1}}

SECURITY: Final[dict[Audience, list[dict[str, list[str]]]]] = {
    Audience.PUBLIC: [],
    Audience.USER: [{"userToken": []}, {"session": []}],
    Audience.DEVICE: [{"deviceToken": []}],
    Audience.DEVICE_LAPSED: [{"deviceToken": []}],
}


def paths(contract: Contract, schemas: Schemas) -> Schema:
    """All paths, in the order of the operations."""
    found: Schema = {}
    for operation in contract.operations:
        form = Form(Direction.REQUEST, operation.is_device_form, operation.access.strict)
        path = re.sub(
            r"\{(\w+)(?:=\*\*)?}",
            lambda m, o=operation, f=form: f"{{{f.name(_field(o, m[1]))}}}",  # type: ignore[misc]
            operation.path,
        )
        found.setdefault(path, {})[operation.verb] = _operation(contract, schemas, operation, form)
    return found


def _operation(contract: Contract, schemas: Schemas, operation: Operation, form: Form) -> Schema:
    name = operation.method.name
    summary, rest = split_comment(contract.comment(operation.method.full_name))
    access = operation.access
    notes = [rest] if rest else []
    if access.audience is Audience.USER:
        roles = " or ".join(sorted((role.value for role in access.roles), key=_RANK.index))
        scope = f"An API token needs the scope `{access.scope}`."
        notes.append(
            f"Needs the role {roles}. {scope if access.scope else 'No API token may call it.'}"
        )
        if access.fresh:
            notes.append(
                "The login, or `/auth/step-up`, must not be older than 15 minutes: else 403,"
                " `STEP_UP_NEEDED`."
            )
    elif access.audience is Audience.DEVICE_LAPSED:
        notes.append("A token that expired at most 90 days ago is accepted, and replaced.")
    if not access.offered:
        notes.append("This release does not offer the call: its status is 501.")
    found: Schema = {
        "operationId": name[0].lower() + name[1:],
        "tags": [operation.service],
        "summary": summary,
    }
    if notes:
        found["description"] = "\n\n".join(notes)
    found["x-grpc-method"] = operation.rpc
    found["security"] = SECURITY[access.audience]
    if parameters := _parameters(schemas, operation, form):
        found["parameters"] = parameters
    if operation.has_body:
        found["requestBody"] = _request_body(schemas, operation, form)
    fields = operation.method.input_type.fields
    names_something = "{" in operation.path or any(
        rules(f).format == rules_pb2.FieldRules.FORMAT_UUID or f.name.endswith("_id")
        for f in fields
    )
    found["responses"] = _success(contract, schemas, operation) | errors.answers(
        errors.statuses(operation, names_something=names_something)
    )
    return found


_RANK: Final = ("Owner", "Admin", "Auditor")


def _parameters(schemas: Schemas, operation: Operation, form: Form) -> list[Schema]:
    found = []
    for name in operation.path_fields:
        found.append(_parameter(schemas, _field(operation, name), form, "path"))
    if not operation.has_body:
        for field in operation.method.input_type.fields:
            if field.name not in operation.path_fields:
                found.append(_parameter(schemas, field, form, "query"))
    if errors.takes_etag(operation):
        found.append(_IF_MATCH)
    return found


def _parameter(schemas: Schemas, field: FieldDescriptor, form: Form, where: str) -> Schema:
    schema = schemas.field(field, form, in_body=False)
    parameter: Schema = {"name": form.name(field), "in": where}
    if where == "path" or (is_required(field) and not field.is_repeated):
        parameter["required"] = True
    return parameter | {"description": schema.pop("description"), "schema": schema}


def _request_body(schemas: Schemas, operation: Operation, form: Form) -> Schema:
    message = operation.method.input_type
    if operation.path_fields:
        schema = schemas.object(message, form, without=operation.path_fields)
    else:
        schema = schemas.reference(message, form)
    if not (operation.is_device_form or form.strict):
        schema |= _NAMED
    body = _media(schema, operation, "request")
    required = schemas.object(message, form, without=operation.path_fields).get("required", [])
    # A device call's body is an object, if an empty one; the transcoder takes no body for that.
    given = bool(required) or operation.is_device_form
    return {"required": given, "content": {_JSON: body}}


def _success(contract: Contract, schemas: Schemas, operation: Operation) -> Schema:
    access = operation.access
    message = operation.method.output_type
    form = Form(Direction.ANSWER, operation.is_device_form)
    description, _ = split_comment(contract.comment(message.full_name))
    if access.file:
        description = access.file.about
        content = _file(contract, schemas, operation, access.file)
    else:
        content = {_JSON: _media(schemas.reference(message, form), operation, "answer")}
    found: Schema = {"200": {"description": f"{description}.", "content": content}}
    if "etag" in message.fields_by_name:
        found["200"]["headers"] = _ETAG
    if access.unchanged:
        found["304"] = {"description": "The device has this version already. No body."}
    return found


def _file(contract: Contract, schemas: Schemas, operation: Operation, file: File) -> Schema:
    """The content of an answer that is a file, by media type."""
    content: Schema = dict.fromkeys(file.media, _FILE)
    if file.list_of:
        item = schemas.reference(contract.message(file.list_of), Form(Direction.ANSWER, False))
        content[_JSON] = {"schema": {"type": "array", "items": item}}
    elif file.agent_form_of:
        message = contract.message(file.agent_form_of)
        content[_JSON] = _media(
            schemas.reference(message, Form(Direction.ANSWER, True)), operation, "answer"
        )
    return content


def _media(schema: Schema, operation: Operation, part: str) -> Schema:
    media: Schema = {"schema": schema}
    example = EXAMPLES.get(operation.rpc.removeprefix(f"/{PACKAGE}."), {}).get(part)
    if example is not None:
        media["example"] = example
    return media


def _field(operation: Operation, name: str) -> FieldDescriptor:
    return operation.method.input_type.fields_by_name[name]
