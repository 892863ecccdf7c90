"""Names that no field has: the script that finds them in JSON calls before the transcoder.

The transcoder drops members of a body, and parameters of a query, that no field has. Whoever
misspells `orgId` would act on the caller's own organisation and be told of success. So the script
looks for such names first and hands them to the service in a header; the service, which knows the
caller and the shape of errors, refuses the call (`servicekit.rpc.members`).

It looks for two types as well that the transcoder does not insist on: "yes", "0" and the like for
true and false, and a value alone for a list of one. Numbers may be texts, as in protobuf's JSON.

The script also leaves out the parameters of a query that have no value, for a form sends its empty
fields too, and the transcoder would take them for broken times and numbers; and the headers that
say how a gRPC call is written, which a call in JSON is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from deploy.gateway import envoy
from deploy.gateway.api import Method
from deploy.gateway.envoy import Config, extension, typed
from servicekit.call import H_UNKNOWN

MEMBERS: Final = "evergreen.members"

_SCRIPT: Final = Path(__file__).with_suffix(".lua")


def members_filter(methods: Sequence[Method], descriptors: bytes) -> Config:
    """The filter; it works on the routes that `looked_at` is part of."""
    return {
        **extension(
            MEMBERS,
            "extensions.filters.http.lua.v3.Lua",
            default_source_code={"inline_string": script(methods, descriptors)},
            # The path changes only behind its question mark.
            clear_route_cache=False,
        ),
        "disabled": True,
    }


def looked_at() -> Config:
    """The per-route setting of what the transcoder takes."""
    return {MEMBERS: typed("extensions.filters.http.lua.v3.LuaPerRoute", filter_context={})}


def script(methods: Sequence[Method], descriptors: bytes) -> str:
    """The script with the calls of the methods and the messages that they take."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(descriptors).file:
        pool.Add(file)
    messages: dict[str, Descriptor] = {}
    calls: dict[Any, Any] = {}
    for method in methods:
        if method.rule.agent_form:
            continue
        node = calls
        for segment in method.template.strip("/").split("/"):
            name = "**" if segment.endswith("=**}") else "*"
            node = node.setdefault(name if segment.startswith("{") else segment, {})
        request = pool.FindMethodByName(method.path[1:].replace("/", ".")).input_type
        strict = method.rule.strict
        node.setdefault(1, {})[method.verb] = request if strict else None
        if strict:
            _collect(request, messages)
    lines = [f"{_lua(m)} = {_lua(dict(_members(m)))}" for m in messages.values()]
    lines += [
        f"{_lua(message)}[{_lua(name)}] = {_lua(node)}"
        for message in messages.values()
        for name, node, _ in _messages_below(message)
    ]
    return envoy.script(_SCRIPT, header=H_UNKNOWN, messages="\n".join(lines), calls=_lua(calls))


def _collect(message: Descriptor, found: dict[str, Descriptor]) -> None:
    if message.full_name not in found:
        found[message.full_name] = message
        for _, _, below in _messages_below(message):
            _collect(below, found)


def _members(message: Descriptor) -> Iterator[tuple[str | int, Any]]:
    """What members may be called, protobuf's JSON takes both spellings of a field, and what has to
    stand there; messages of ours follow."""
    is_map = message.GetOptions().map_entry
    for field in message.fields:
        if is_map:
            if field.name == "value":
                yield 1, _kind(field)
            continue
        yield field.json_name, _kind(field)
        if field.name != field.json_name:
            yield field.name, _kind(field)


def _kind(field: FieldDescriptor) -> Any:
    """`b` for true or false; what stands in a list, by 2; `None` for what the transcoder checks."""
    of = field.message_type
    is_bool = field.type == field.TYPE_BOOL or (of and of.full_name == "google.protobuf.BoolValue")
    kind = "b" if is_bool else None
    return {2: kind} if _is_list(field) else kind


def _is_list(field: FieldDescriptor) -> bool:
    of = field.message_type
    return field.is_repeated and not (of and of.GetOptions().map_entry)


def _messages_below(message: Descriptor) -> Iterator[tuple[str | int, Any, Descriptor]]:
    """The members that are messages of ours, or lists of such; anything may stand in the others."""
    is_map = message.GetOptions().map_entry
    for field in message.fields:
        below = field.message_type
        if below is None or below.full_name.startswith("google.protobuf."):
            continue
        node = {2: below} if _is_list(field) else below
        if is_map:
            yield 1, node, below
        else:
            yield field.json_name, node, below
            yield field.name, node, below


def _lua(value: Any) -> str:
    """A table, a text, a number, a reference to a message; `None` is false."""
    match value:
        case None:
            return "false"
        case dict():
            return "{" + ", ".join(f"[{_lua(k)}] = {_lua(v)}" for k, v in value.items()) + "}"
        case Descriptor():
            return f'M["{value.full_name}"]'
        case int():
            return str(value)
    return f'"{value}"'
