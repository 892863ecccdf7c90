"""Makes content that no client would send: right, wrong and broken; the same for a seed."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from contract.contexts import CONTEXTS

_TEXTS: Final = (
    *("", " ", "a", "0", "-1", "null", "x" * 300, "x" * 70_000, "é\u0301", "\U0001f600", "\u200b"),
    *("\x00", "a\nb", "\u2028", "%00", "../..", "'; --", "{{}}", "$1", "\\", '"', "=cmd|x"),
    *("1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z"),
    *("2026-02-30T00:00:00Z", "not-a-uuid", "00000000-0000-0000-0000-000000000000"),
    *("owner@localhost", "a@b", "@", "Owner", "asc", "csv", "json", "online", "AAAA", "AAA", "7"),
)
_HALVES: Final = ("\ud800", "a\udfffb")
"""Text that JSON can write, and UTF-8 cannot."""
_INTS: Final = (0, 1, -1, 2, 500, 501, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63 - 1)
_DOUBLES: Final = (0.0, -0.0, 1.5, 1e308, 5e-324, float("inf"), float("-inf"), float("nan"))
_SECONDS: Final = (0, -1, 1_764_400_000, -62_135_596_800, 253_402_300_799, 2**62, -(2**62))
_SIGNED: Final = {FieldDescriptor.CPPTYPE_INT32: 31, FieldDescriptor.CPPTYPE_INT64: 63}
_UNSIGNED: Final = {FieldDescriptor.CPPTYPE_UINT32: 32, FieldDescriptor.CPPTYPE_UINT64: 64}
_DEEPEST: Final = 5


def request_type(rpc: str) -> type[Message]:
    """The request's class of an RPC, `/evergreen.v1.Service/Method`."""
    for context in (*CONTEXTS, "device"):
        importlib.import_module(f"evergreen.v1.{context}_pb2")
    _, service, method = rpc.split("/")
    found = Default().FindServiceByName(service).FindMethodByName(method)  # type: ignore[no-untyped-call]
    message: type[Message] = GetMessageClass(found.input_type)
    return message


@dataclass
class Fuzzer:
    """One stream of random content."""

    seed: int
    known: list[str] = field(default_factory=list)
    """Texts that mean something to the product: ids, secrets, addresses."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def text(self, *, halves: bool = False) -> str:
        if self.known and self.chance(0.4):
            return self.random.choice(self.known)
        return self.random.choice(_TEXTS + _HALVES if halves else _TEXTS)

    def message(self, kind: type[Message], depth: int = 0) -> Message:
        """A message of a type, with random fields."""
        filled = kind()
        for item in kind.DESCRIPTOR.fields:
            if self.chance(0.25) or depth > _DEEPEST:
                continue
            self._fill(filled, item, depth)
        return filled

    def _fill(self, message: Message, item: FieldDescriptor, depth: int) -> None:
        if item.is_repeated:
            count = self.random.choice((0, 1, 1, 2, 3, 1_200 if depth == 0 else 4))
            if item.message_type and item.message_type.GetOptions().map_entry:
                self._fill_map(getattr(message, item.name), item.message_type, min(count, 70))
            elif item.message_type:
                for _ in range(min(count, 40)):
                    made = self.message(GetMessageClass(item.message_type), depth + 1)
                    getattr(message, item.name).append(made)
            else:
                getattr(message, item.name).extend(self._scalar(item) for _ in range(count))
        elif item.message_type:
            made = self.message(GetMessageClass(item.message_type), depth + 1)
            getattr(message, item.name).CopyFrom(made)
            getattr(message, item.name).SetInParent()
        else:
            setattr(message, item.name, self._scalar(item))

    def _fill_map(self, target: Any, entry: Descriptor, count: int) -> None:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        for _ in range(count):
            if value.message_type:
                target[self._scalar(key)].CopyFrom(
                    self.message(GetMessageClass(value.message_type), 9)
                )
            else:
                target[self._scalar(key)] = self._scalar(value)

    def _scalar(self, item: FieldDescriptor) -> Any:
        kind = item.cpp_type
        if kind == FieldDescriptor.CPPTYPE_STRING:
            text = self.text()
            return text.encode() if item.type == FieldDescriptor.TYPE_BYTES else text
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return self.chance(0.5)
        if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return self.random.choice(_DOUBLES)
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            return self.random.choice([v.number for v in item.enum_type.values])
        pool = _SECONDS if item.full_name == "google.protobuf.Timestamp.seconds" else _INTS
        number = self.random.choice(pool)
        if (bits := _UNSIGNED.get(kind)) is not None:
            return number % (1 << bits)
        half = 1 << _SIGNED[kind]
        return (number + half) % (2 * half) - half

    def broken(self, data: bytes) -> bytes:
        """The bytes with some changes, half of the time none."""
        found = bytearray(data)
        while self.chance(0.5):
            at = self.random.randint(0, len(found))
            match self.random.randint(0, 5):
                case 0:
                    found[at:at] = self.random.randbytes(self.random.randint(1, 9))
                case 1:
                    del found[at : at + self.random.randint(1, 9)]
                case 2 if found:
                    found[at % len(found)] ^= 1 << self.random.randint(0, 7)
                case 3:
                    del found[at:]
                case 4:
                    found[at:at] = found[at : at + 40] * self.random.randint(1, 30)
                case _:
                    # The length of something that does not come, and endless numbers.
                    found[at:at] = self.random.choice((b"\xff" * 12, b"\x0a\xff\xff\xff\xff\x0f"))
        return bytes(found[: 1 << 20])

    def json(self, depth: int = 0) -> Any:
        """Any JSON."""
        choices: list[Callable[[], Any]] = [
            lambda: self.text(halves=True),
            lambda: self.random.choice(_INTS),
            lambda: self.random.choice(_DOUBLES),
            lambda: self.random.choice((None, True, False, 10**400)),
        ]
        if depth < 4:
            choices += [
                lambda: [self.json(depth + 1) for _ in range(self.random.randint(0, 4))],
                lambda: {
                    self.text(halves=True): self.json(depth + 1)
                    for _ in range(self.random.randint(0, 4))
                },
            ]
        return self.random.choice(choices)()

    def body(self, kind: type[Message], *, snake: bool) -> bytes:
        """A JSON body for a call that takes such a message, or nearly."""
        if self.chance(0.1):
            return self.random.choice(
                (b"", b"[" * 50_000, b'{"a":' * 50_000, b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"{}{}")
            )
        try:
            value = json_format.MessageToDict(self.message(kind), preserving_proto_field_name=snake)
        except (json_format.SerializeToJsonError, ValueError):
            value = {}  # a time, or a number, that JSON does not have
        for name in list(value):
            if self.chance(0.15):
                value[name] = self.json()
        if self.chance(0.3):
            names = [item.name if snake else item.json_name for item in kind.DESCRIPTOR.fields]
            name = (
                self.random.choice([*names, "more"]) if self.chance(0.7) else self.text(halves=True)
            )
            value[name] = self.json()
        text = json.dumps(value)
        if value and self.chance(0.1):
            text = text[:-1] + "," + text[1:]  # each member twice
        data = text.encode()
        return self.broken(data) if self.chance(0.3) else data
