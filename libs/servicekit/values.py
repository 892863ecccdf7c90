"""Protobuf's well-known types and what they hold: JSON without rounding, and times."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from google.protobuf.struct_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp


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


def timestamp(at: datetime) -> Timestamp:
    """A time as protobuf has it."""
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp
