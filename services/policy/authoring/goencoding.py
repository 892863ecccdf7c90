"""Go's `encoding/json` encoding of the DOCUMENT: the exact bytes that a policy signature covers.

A released agent decodes the envelope into its own structs, encodes the document again with
`json.Marshal`, and checks the signature over the result (contract, "What exactly is signed"). So
these bytes have to be Go's, byte for byte. The rules are those of `appendString` and the map
encoder in Go's src/encoding/json/encode.go, Go 1.22 and newer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from services.policy.authoring.document import Document

# What Go escapes and json.dumps(ensure_ascii=False) does not. Quotes, the backslash and the
# control characters both escape alike; U+007F both leave alone.
_GO_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}
_NEEDS_GO_ESCAPE = re.compile("[<>&\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def encode_document(document: Document) -> bytes:
    """The bytes of `json.Marshal` for this document in the agent's structs.

    Half a surrogate pair, which JSON text can name and UTF-8 cannot hold, becomes U+FFFD, as it
    does when Go decodes it.
    """
    try:
        return _encoded(document)
    except UnicodeEncodeError:
        return _encoded(_plain(document))


def encoded_size(text: str) -> int:
    """The bytes of a text inside a document, without its quotes."""
    return len(_encoded(_plain(text))) - 2


def _members(value: Any) -> dict[str, Any]:
    """The members of one struct in field order, with map keys in Go's order."""
    schema: Any = type(value)
    return {
        name: {key: found[key] for key in sorted(found)} if isinstance(found, dict) else found
        for name in _names(schema)
        for found in (getattr(value, name),)
    }


_ENCODER = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), check_circular=False, default=_members
)


def _encoded(plain: Any) -> bytes:
    text = _ENCODER.encode(plain)
    # None of these characters is JSON punctuation, so each one stands inside a string.
    text = _NEEDS_GO_ESCAPE.sub(lambda found: _GO_ESCAPES[found[0]], text)
    return text.encode()


def _plain(value: Any) -> Any:
    """The value as json.dumps takes it: members in field order, map keys in Go's order."""
    if isinstance(value, str):
        return value if value.isascii() else _SURROGATE.sub("\ufffd", value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        replaced = {_plain(key): _plain(entry) for key, entry in value.items()}
        # Python orders text by code point, which is the order of the UTF-8 bytes.
        return {key: replaced[key] for key in sorted(replaced)}
    schema: Any = type(value)
    return {name: _plain(getattr(value, name)) for name in _names(schema)}


@cache
def _names(schema: Any) -> tuple[str, ...]:
    return tuple(entry.name for entry in fields(schema))
