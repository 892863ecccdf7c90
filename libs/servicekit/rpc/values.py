"""Protobuf's well-known types and what they hold: JSON without rounding, and times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from servicekit.times import RULE, in_utc, is_usable

_SLICE: Final = 1_000
"""Values between two pauses: a few milliseconds of work."""


def from_value(value: Value) -> Any:
    """What JSON the value is; a whole number comes back as an int."""
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) < 2**53 else number
        case "struct_value":
            return {key: from_value(item) for key, item in value.struct_value.fields.items()}
        case "list_value":
            return [from_value(item) for item in value.list_value.values]
        case _:
            return None


def to_value(json: Any, value: Value) -> None:
    """Fills a value with JSON."""
    match json:
        case None:
            value.null_value = 0  # type: ignore[assignment]
        case bool():
            value.bool_value = json
        case str():
            value.string_value = json
        case int() | float():
            value.number_value = json
        case dict():
            value.struct_value.SetInParent()
            for key, item in json.items():
                to_value(item, value.struct_value.fields[key])
        case _:
            value.list_value.SetInParent()
            for item in json:
                to_value(item, value.list_value.values.add())


def filling(
    json: dict[str, Any], struct: Struct, shown: Callable[[Any, int], Any] = lambda item, _: item
) -> Iterator[None]:
    """Fills a struct with JSON of any size; pauses now and then, so that others can go on.

    Args:
        shown: what stands for an item that is so many levels deep.
    """
    done = 0
    left: list[tuple[Any, Struct | Value, int]] = [(json, struct, 0)]
    while left:
        found, target, depth = left.pop()
        items: Iterator[tuple[Value, Any]]
        if isinstance(found, dict):
            fields = (target if isinstance(target, Struct) else target.struct_value).fields
            if isinstance(target, Value):
                target.struct_value.SetInParent()
            items = ((fields[key], item) for key, item in found.items())
        else:
            assert isinstance(target, Value)
            target.list_value.SetInParent()
            values = target.list_value.values
            items = ((values.add(), item) for item in found)
        for value, item in items:
            to_show = shown(item, depth + 1)
            if isinstance(to_show, dict | list):
                left.append((to_show, value, depth + 1))
            else:
                to_value(to_show, value)
            done += 1
            if done % _SLICE == 0:
                yield


def timestamp(at: datetime) -> Timestamp:
    """A time as protobuf has it."""
    stamp = Timestamp()
    stamp.FromDatetime(in_utc(at))
    return stamp


def optional_timestamp(at: datetime | None) -> Timestamp | None:
    """A time as protobuf has it, if there is one."""
    return timestamp(at) if at is not None else None


def given_time(request: Message, field: str) -> datetime | None:
    """A time field of a request whose rules were checked, if it is given."""
    if not request.HasField(field):
        return None
    stamp: Timestamp = getattr(request, field)
    return stamp.ToDatetime(tzinfo=UTC)


def time_of(stamp: Timestamp) -> datetime:
    """The reverse, for what comes from outside; digits behind the microseconds are dropped.

    Raises:
        ValueError: with the rule that it breaks.
    """
    try:
        time = stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as broken:
        raise ValueError(RULE) from broken
    if not is_usable(time) or not 0 <= stamp.nanos < 1_000_000_000:
        raise ValueError(RULE)
    return time
