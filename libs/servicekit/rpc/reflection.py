"""gRPC reflection for outsiders: the public services, and nothing that only services call.

The proto files hold both, so that reflection of the generated code would tell all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha._async import ReflectionServicer
from grpc_reflection.v1alpha.reflection_pb2 import DESCRIPTOR
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

import evergreen.v1
from contract.access import ACCESS, PACKAGE, Audience

_DESCRIPTORS: Final = Path(next(iter(evergreen.v1.__path__))) / "descriptors.binpb"
_PUBLIC: Final = frozenset(
    rpc.split("/")[1] for rpc, rule in ACCESS.items() if rule.audience is not Audience.INTERNAL
)
_NAMES: Final = (
    *sorted(_PUBLIC),
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    reflection.SERVICE_NAME,
)


def add_reflection(server: grpc.aio.Server) -> None:
    """Lets a server answer for the services of all contexts."""
    add_ServerReflectionServicer_to_server(_Reflection(), server)


class _Reflection(ReflectionServicer):  # type: ignore[misc]  # the package has no types
    """Reads the descriptors when the first one asks."""

    def __init__(self) -> None:
        self._service_names = _NAMES

    @cached_property
    def _pool(self) -> descriptor_pool.DescriptorPool:
        return public_pool(_DESCRIPTORS.read_bytes())


def public_pool(descriptors: bytes) -> descriptor_pool.DescriptorPool:
    """The descriptors of everything that a caller from outside may meet."""
    pool = descriptor_pool.DescriptorPool()
    files = list(descriptor_pb2.FileDescriptorSet.FromString(descriptors).file)
    hidden = _internal_messages(files)
    for file in files:
        if file.package == PACKAGE:
            _keep(file.service, [s for s in file.service if f"{PACKAGE}.{s.name}" in _PUBLIC])
            _keep(file.message_type, [m for m in file.message_type if m.name not in hidden])
            # Comments and positions, if there are any, belong to what was left out too.
            file.ClearField("source_code_info")
        pool.Add(file)
    for shared in (health_pb2.DESCRIPTOR, DESCRIPTOR):
        proto = descriptor_pb2.FileDescriptorProto()
        shared.CopyToProto(proto)
        pool.Add(proto)
    return pool


def _internal_messages(files: Iterable[descriptor_pb2.FileDescriptorProto]) -> set[str]:
    """The messages that nothing but internal services uses."""
    ours = [file for file in files if file.package == PACKAGE]
    messages = {m.name: m for file in ours for m in file.message_type}
    internal, public = set[str](), set[str]()
    for service in (service for file in ours for service in file.service):
        names = public if f"{PACKAGE}.{service.name}" in _PUBLIC else internal
        names.update(_own(t) for m in service.method for t in (m.input_type, m.output_type))
    hidden = _reached(internal, messages) - _reached(public, messages)
    return hidden - _reached(messages.keys() - hidden, messages)


def _reached(names: Iterable[str], messages: dict[str, descriptor_pb2.DescriptorProto]) -> set[str]:
    """These messages, and all that are in them."""
    found: set[str] = set()
    waiting = [name for name in names if name in messages]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [t for t in _types(messages[name]) if t in messages]
    return found


def _types(message: descriptor_pb2.DescriptorProto) -> Iterator[str]:
    for field in message.field:
        yield _own(field.type_name)
    for nested in message.nested_type:
        yield from _types(nested)


def _own(type_name: str) -> str:
    """A message's name at the top of our package; something else's is no name of ours."""
    inside = type_name.removeprefix(f".{PACKAGE}.")
    return inside.split(".")[0] if inside != type_name else ""


def _keep(field: object, kept: list[object]) -> None:
    copies = list(kept)
    field.clear()  # type: ignore[attr-defined]  # a repeated field
    field.extend(copies)  # type: ignore[attr-defined]
