"""Small words of Envoy's configuration language."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from servicekit.security import mode

Config = dict[str, Any]

_TYPES: Final = "type.googleapis.com/envoy."


def typed(message: str, **config: Any) -> Config:
    """A typed configuration; `message` is the type's name below `envoy.`."""
    return {"@type": f"{_TYPES}{message}", **config}


def extension(name: str, message: str, **config: Any) -> Config:
    """A named extension with its configuration."""
    return {"name": name, "typed_config": typed(message, **config)}


def address(text: str) -> Config:
    """`unix:PATH` or `HOST:PORT` as Envoy writes it."""
    if text.startswith("unix:"):
        return {"pipe": {"path": text.removeprefix("unix:")}}
    host, _, port = text.rpartition(":")
    return socket_address(host.strip("[]"), int(port))


def socket_address(host: str, port: int) -> Config:
    """A TCP address."""
    return {"socket_address": {"address": host, "port_value": port}}


def approved_tls() -> Config:
    """The parameters of TLS by which Envoy keeps to approved algorithms, where FIPS mode is on."""
    return {"compliance_policies": ["FIPS_202205"]} if mode.is_required() else {}


def seconds(value: float) -> str:
    """A duration as protobuf's JSON writes it."""
    return f"{value:g}s"


def header(name: str, value: str, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> Config:
    """A header to set."""
    return {"header": {"key": name, "value": value}, "append_action": action}


def header_is(name: str, **string_match: str) -> Config:
    """Matches a header's value: `exact=…`, `prefix=…`."""
    return {"name": name, "string_match": string_match}


def percent(numerator: int) -> Config:
    """A fixed share of requests."""
    return {"default_value": {"numerator": numerator, "denominator": "HUNDRED"}}


def script(path: Path, **parts: str) -> str:
    """A script with each `{{name}}` in it filled in."""
    text = path.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    return text
