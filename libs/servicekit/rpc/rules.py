"""Checks requests against the rules that the protos state (`evergreen/v1/rules.proto`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, Final

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from evergreen.v1 import rules_pb2
from servicekit.errors import FieldViolation
from servicekit.rpc.patterns import WORDS
from servicekit.serials import as_printed
from servicekit.texts import email_fault, name_fault, text_fault, tidy
from servicekit.times import EARLIEST, RULE, TOO_LATE

DEFAULT_MAX_STRING: Final = 1024
DEFAULT_MAX_ITEMS: Final = 1000
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_RANGE: Final = range(int(EARLIEST.timestamp()), int(TOO_LATE.timestamp()))
"""Seconds of a timestamp."""

_TEXTS: Final = {
    rules_pb2.FieldRules.FORMAT_EMAIL: email_fault,
    rules_pb2.FieldRules.FORMAT_NAME: name_fault,
    rules_pb2.FieldRules.FORMAT_TEXT: text_fault,
}
"""What people type: it is trimmed before it is checked."""

_Check = Callable[[Message, str], Iterator[FieldViolation]]
_ValueCheck = Callable[[Any], str | None]


def violations(message: Message) -> list[FieldViolation]:
    """All rules that the message breaks, with the fields' names as JSON writes them.

    Trims, in the message, what people type (`servicekit.texts.tidy`) and what firmware says.
    """
    return list(_violations(message, ""))


def _violations(message: Message, prefix: str) -> Iterator[FieldViolation]:
    for check in _checks(message.DESCRIPTOR):
        yield from check(message, prefix)


@cache
def _checks(descriptor: Descriptor) -> tuple[_Check, ...]:
    if descriptor.full_name.startswith("google.protobuf."):
        return (_timestamp,) if descriptor.full_name == Timestamp.DESCRIPTOR.full_name else ()
    return tuple(_field_check(field) for field in descriptor.fields)


def _timestamp(message: Message, prefix: str) -> Iterator[FieldViolation]:
    assert isinstance(message, Timestamp)
    if message.seconds not in _RANGE or not 0 <= message.nanos < 1_000_000_000:
        yield FieldViolation(prefix.rstrip("."), RULE)


def _field_check(field: FieldDescriptor) -> _Check:
    rule = field.GetOptions().Extensions[rules_pb2.rules]
    required = (
        field_behavior_pb2.REQUIRED
        in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    )
    name = field.json_name
    typed = not field.is_repeated and rule.format in _TEXTS
    printed = not field.is_repeated and rule.format == rules_pb2.FieldRules.FORMAT_FIRMWARE
    value_check = _value_check(field, rule)
    is_map = field.is_repeated and bool(
        field.message_type and field.message_type.GetOptions().map_entry
    )

    def check(message: Message, prefix: str) -> Iterator[FieldViolation]:
        path = prefix + name
        if field.has_presence and not message.HasField(field.name):
            if required:
                yield FieldViolation(path, "is required")
            return
        value = getattr(message, field.name)
        if typed and value != (tidied := tidy(value)):
            if not tidied and rule.format != rules_pb2.FieldRules.FORMAT_TEXT:
                yield FieldViolation(path, "must not be blank")
                return
            setattr(message, field.name, tidied)
            value = tidied
        if printed and value != (cleaned := as_printed(value)):
            setattr(message, field.name, cleaned)
            value = cleaned
        if is_map:
            yield from _sized(path, value, rule, "entries")
            yield from _entries(path, () if _has_too_many(value, rule) else value.items())
        elif field.is_repeated:
            yield from _sized(path, value, rule, "items")
            yield from _items(path, () if _has_too_many(value, rule) else value, value_check)
        elif isinstance(value, Message):
            yield from _violations(value, path + ".")
        elif required and not value and field.type != FieldDescriptor.TYPE_BOOL:
            yield FieldViolation(path, "is required")
        elif (broken := value_check(value)) is not None:
            yield FieldViolation(path, broken)

    return check


def _entries(path: str, entries: Iterable[tuple[Any, Any]]) -> Iterator[FieldViolation]:
    for text in (text for entry in entries for text in entry if isinstance(text, str)):
        if (broken := _text_fault(text)) is not None:
            yield FieldViolation(path, f"{broken} in an entry")


def _items(path: str, items: Iterable[Any], value_check: _ValueCheck) -> Iterator[FieldViolation]:
    for index, item in enumerate(items):
        where = f"{path}[{index}]"
        if isinstance(item, Message):
            yield from _violations(item, where + ".")
        elif (broken := value_check(item)) is not None:
            yield FieldViolation(where, broken)


def _has_too_many(value: Any, rule: rules_pb2.FieldRules) -> bool:
    """Then nothing else is checked: to look at each of a million items would take seconds."""
    return len(value) > (rule.max_len or DEFAULT_MAX_ITEMS)


def _sized(
    path: str, value: Any, rule: rules_pb2.FieldRules, what: str
) -> Iterator[FieldViolation]:
    if _has_too_many(value, rule):
        yield FieldViolation(path, f"must have at most {rule.max_len or DEFAULT_MAX_ITEMS} {what}")
    if len(value) < rule.min_len:
        yield FieldViolation(path, f"must have at least {rule.min_len} {what}")


def _value_check(field: FieldDescriptor, rule: rules_pb2.FieldRules) -> _ValueCheck:
    if field.type == FieldDescriptor.TYPE_STRING:
        return _string_check(field, rule)
    if field.type == FieldDescriptor.TYPE_BYTES:
        most = rule.max_len or 1 << 20
        return lambda value: f"must have at most {most} bytes" if len(value) > most else None
    if field.cpp_type in (
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
    ):
        return _number_check(rule)
    return lambda value: None


def _number_check(rule: rules_pb2.FieldRules) -> _ValueCheck:
    low = rule.min if rule.HasField("min") else None
    high = rule.max if rule.HasField("max") else None

    def check(value: int) -> str | None:
        if low is not None and value < low:
            return f"must be at least {low}"
        if high is not None and value > high:
            return f"must be at most {high}"
        return None

    return check


def _string_check(field: FieldDescriptor, rule: rules_pb2.FieldRules) -> _ValueCheck:
    most = (rule.item_max_len if field.is_repeated else rule.max_len) or DEFAULT_MAX_STRING
    least = 0 if field.is_repeated else rule.min_len
    pattern = re.compile(rule.pattern) if rule.pattern else None
    words = WORDS[rule.pattern] if rule.pattern else ""
    any_of = frozenset(rule.any_of)
    is_id = rule.format == rules_pb2.FieldRules.FORMAT_UUID
    text_check = _TEXTS.get(rule.format)

    def check(value: str) -> str | None:
        if (fault := _text_fault(value, most)) is not None:
            return fault
        if len(value) < least:
            return f"must have at least {least} characters"
        if any_of and value not in any_of:
            return "must be one of " + ", ".join(f'"{v}"' for v in rule.any_of if v)
        # An empty optional value means "not given"; min_len refuses it where that matters.
        if value and pattern is not None and pattern.fullmatch(value) is None:
            return words
        if is_id and (value or field.is_repeated) and not is_uuid(value):
            return "must be a UUID"
        return text_check(value) if value and text_check is not None else None

    return check


def _text_fault(value: str, most: int = DEFAULT_MAX_STRING) -> str | None:
    if "\x00" in value:
        return "must not contain the character NUL"
    if len(value) > most:
        return f"must have at most {most} characters"
    return None


def is_uuid(value: str) -> bool:
    """Whether the value is a UUID in its 36-character form."""
    # Not by the UUID class, which takes underscores and the digits of every script.
    return _UUID.fullmatch(value) is not None
