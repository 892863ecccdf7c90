"""Reads the contract out of the descriptor set: services, HTTP bindings, fields, comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from google.api import annotations_pb2, field_behavior_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from contract.access import ACCESS, PACKAGE, Rule
from evergreen.v1 import rules_pb2

DESCRIPTORS: Final = Path(rules_pb2.__file__).parent / "descriptors.binpb"
# Field numbers of descriptor.proto, of which the paths of comments are made.
_MESSAGES, _SERVICES, _FIELDS, _METHODS = 4, 6, 2, 2


@dataclass(frozen=True, slots=True)
class Operation:
    """One RPC that the gateway also serves as JSON over HTTP."""

    method: MethodDescriptor
    access: Rule
    verb: str
    """`get`, `post`, `patch` or `delete`."""
    path: str
    has_body: bool
    """Whether the fields that are not in the path come as a JSON body, not as a query."""

    @property
    def rpc(self) -> str:
        """The full method name, as native gRPC calls it."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    @property
    def service(self) -> str:
        """The service's short name."""
        return str(self.method.containing_service.name)

    @property
    def path_fields(self) -> tuple[str, ...]:
        """The fields that are bound by the path, in its order."""
        return tuple(re.findall(r"\{(\w+)(?:=\*\*)?}", self.path))

    @property
    def is_device_form(self) -> bool:
        """Whether the JSON is the agent's: snake_case, served without transcoding."""
        return self.access.agent_form


class Contract:
    """The package's services and messages, with their comments."""

    def __init__(self, descriptors: bytes) -> None:
        files = descriptor_pb2.FileDescriptorSet.FromString(descriptors).file
        self._pool = descriptor_pool.DescriptorPool()
        for file in files:
            self._pool.Add(file)
        self._files = [file for file in files if file.package == PACKAGE]
        self._comments = {
            name: comment for file in self._files for name, comment in _comments(file)
        }

    @cached_property
    def operations(self) -> tuple[Operation, ...]:
        """All RPCs with an HTTP binding, in the order of the access table."""
        order = list(ACCESS)
        return tuple(sorted(self._operations(), key=lambda found: order.index(found.rpc)))

    def _operations(self) -> Iterator[Operation]:
        for file in self._files:
            for service in self._pool.FindFileByName(file.name).services_by_name.values():
                for method in service.methods:
                    http = method.GetOptions().Extensions[annotations_pb2.http]
                    verb = http.WhichOneof("pattern")
                    if verb is None:
                        continue
                    if http.body not in ("", "*") or http.additional_bindings:
                        raise NotImplementedError(f"{method.full_name}: this kind of HTTP binding")
                    yield Operation(
                        method,
                        ACCESS[f"/{service.full_name}/{method.name}"],
                        verb,
                        getattr(http, verb),
                        http.body == "*",
                    )

    def message(self, name: str) -> Descriptor:
        """A message of the package by its short name."""
        return self._pool.FindMessageTypeByName(f"{PACKAGE}.{name}")

    @cached_property
    def _names(self) -> dict[str, str]:
        messages = (self.message(m.name) for file in self._files for m in file.message_type)
        return {field.name: field.json_name for message in messages for field in message.fields}

    def in_json(self, comment: str, *, snake_case: bool) -> str:
        """The comment of a field, with the names of fields in it as the JSON has them."""
        if snake_case:
            return comment
        return re.sub(r"`(\w+)`", lambda m: f"`{self._names.get(m[1], m[1])}`", comment)

    def comment(self, full_name: str) -> str:
        """The comment of a service, method, message or field, as Markdown paragraphs."""
        return self._comments.get(full_name, "")


def rules(field: FieldDescriptor) -> rules_pb2.FieldRules:
    """What the field's values must satisfy."""
    found: rules_pb2.FieldRules = field.GetOptions().Extensions[rules_pb2.rules]
    return found


def is_required(field: FieldDescriptor) -> bool:
    """Whether a request without the field is refused."""
    behaviors = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    # A list or map that is left out is an empty one.
    return field_behavior_pb2.REQUIRED in behaviors or (
        field.is_repeated and rules(field).min_len > 0
    )


def is_map(field: FieldDescriptor) -> bool:
    """Whether the field is a map."""
    return bool(
        field.is_repeated and field.message_type and field.message_type.GetOptions().map_entry
    )


def message_of(field: FieldDescriptor) -> Descriptor:
    """The type of a field that holds messages."""
    assert field.message_type is not None
    return field.message_type


def split_comment(comment: str) -> tuple[str, str]:
    """The first sentence, without its full stop, and the rest."""
    first, _, rest = comment.partition(". ")
    head, newline, tail = first.partition("\n")
    if newline:
        first, rest = head, f"{tail}. {rest}" if rest else tail
    return first.rstrip("."), rest.strip()


def _comments(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, str]]:
    for location in file.source_code_info.location:
        if location.leading_comments and (name := _name(file, tuple(location.path))):
            yield f"{file.package}.{name}", _paragraphs(location.leading_comments)


def _name(file: descriptor_pb2.FileDescriptorProto, path: tuple[int, ...]) -> str | None:
    match path:
        case (kind, index) if kind == _MESSAGES:
            return file.message_type[index].name
        case (kind, index, part, field) if kind == _MESSAGES and part == _FIELDS:
            message = file.message_type[index]
            return f"{message.name}.{message.field[field].name}"
        case (kind, index) if kind == _SERVICES:
            return file.service[index].name
        case (kind, index, part, method) if kind == _SERVICES and part == _METHODS:
            service = file.service[index]
            return f"{service.name}.{service.method[method].name}"
        case _:
            return None


def _paragraphs(comment: str) -> str:
    blocks = re.split(r"\n\s*\n", comment.strip())
    return "\n\n".join(" ".join(block.split()) for block in blocks)
