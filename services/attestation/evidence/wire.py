"""Evidence as devices send it, in the agent's JSON or in gRPC."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

from evergreen.v1 import device_pb2
from servicekit.errors import invalid_field
from servicekit.rpc.rules import DEFAULT_MAX_ITEMS
from servicekit.security.digests import sha256
from services.attestation.evidence.domain import MOST_BYTES, Evidence, EvidenceQuote

_LOGS: Final = ("event_log", "userspace_log")
_JSON: Final[dict[type, str]] = {str: "a string", list: "a list", dict: "an object"}


def shaped(evidence: Any) -> dict[str, Any]:
    """Evidence in the agent's JSON, if it has that shape; what it says is another matter.

    The released agent takes any status of 400 or more for a failure: it reports an error event and
    tries again with a new key in the TPM, every five minutes for ever. So nothing else is refused.

    Raises:
        DomainError: INVALID_ARGUMENT with the first field of a wrong type.
    """
    if evidence is None:
        raise invalid_field("evidence", "is required")
    _require("evidence", evidence, dict)
    _require("evidence.nonce", evidence.get("nonce"), str)
    _require("evidence.ak_public", evidence.get("ak_public"), str)
    _require("evidence.event_log", evidence.get("event_log"), str)
    _require("evidence.userspace_log", evidence.get("userspace_log"), str)
    quotes, pcrs = evidence.get("quotes"), evidence.get("pcrs")
    _require("evidence.quotes", quotes, list)
    _require("evidence.pcrs", pcrs, dict)
    for name, items in (("quotes", quotes), ("pcrs", pcrs)):
        if items and len(items) > DEFAULT_MAX_ITEMS:
            raise invalid_field(f"evidence.{name}", f"must have at most {DEFAULT_MAX_ITEMS} items")
    for index, quote in enumerate(quotes or ()):
        where = f"evidence.quotes[{index}]"
        if quote is None:
            raise invalid_field(where, "must be an object")
        _require(where, quote, dict)
        for name in ("version", "quote", "signature"):
            _require(f"{where}.{name}", quote.get(name), str)
    for index, value in (pcrs or {}).items():
        if not isinstance(value, str):
            raise invalid_field(f"evidence.pcrs.{index}", "must be a string")
    found: dict[str, Any] = evidence
    return found


def _require(field: str, value: Any, kind: type) -> None:
    """Refuses a value of another type; Go writes `null` for a list that it does not have."""
    if value is not None and not isinstance(value, kind):
        raise invalid_field(field, f"must be {_JSON[kind]}")


def from_json(value: dict[str, Any]) -> Evidence:
    """Evidence of the agent's JSON, whose shape was checked."""
    digest = _Digest()
    nonce = digest.text("nonce", value.get("nonce"))
    ak_public = digest.text("ak_public", value.get("ak_public"))
    quotes = tuple(
        EvidenceQuote(
            version=digest.version(quote.get("version") or ""),
            quote=digest.text("quote", quote.get("quote")),
            signature=digest.text("signature", quote.get("signature")),
        )
        for quote in value.get("quotes") or ()
    )
    pcrs = digest.pcrs(value.get("pcrs") or {})
    firmware, userspace = (
        None if (sent := value.get(name)) is None else digest.text(name, sent) or _unreadable(sent)
        for name in _LOGS
    )
    return Evidence(nonce, ak_public, quotes, pcrs, firmware, userspace, digest.done())


def from_message(message: device_pb2.AttestationEvidence) -> Evidence:
    """Evidence of a gRPC call."""
    digest = _Digest()
    nonce = digest.octets("nonce", message.nonce)
    ak_public = digest.octets("ak_public", message.ak_public)
    quotes = tuple(
        EvidenceQuote(
            version=digest.version(quote.version),
            quote=digest.octets("quote", quote.quote),
            signature=digest.octets("signature", quote.signature),
        )
        for quote in message.quotes
    )
    pcrs = digest.pcrs(message.pcrs)
    firmware = userspace = None
    if message.HasField("event_log"):
        sent = message.event_log
        firmware = digest.octets("event_log", sent) or _unreadable(sent)
    if message.HasField("userspace_log"):
        sent = message.userspace_log
        userspace = digest.octets("userspace_log", sent) or _unreadable(sent)
    return Evidence(nonce, ak_public, quotes, pcrs, firmware, userspace, digest.done())


def _unreadable(sent: str | bytes) -> bytes:
    """Stands for a log that is empty, or that is none."""
    return b"?" if sent else b""


class _Digest:
    """Reads the parts of evidence, and takes the digest of all of them.

    Each part is named, and its length stands before it: other evidence has another digest. What is
    cut off before it is decoded counts as it was written.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def _add(self, name: str, part: bytes) -> None:
        self._parts += (f"{name} {len(part)}:".encode(), part)

    def octets(self, name: str, part: bytes) -> bytes | None:
        """Bytes, unless they are longer than such a part can be."""
        self._add(name, part)
        return part if len(part) <= MOST_BYTES[name] else None

    def text(self, name: str, part: str | None) -> bytes | None:
        """Bytes that were written in base64."""
        text = part or ""
        if len(text) <= 4 * (MOST_BYTES[name] + 2) // 3 + 2:
            try:
                return self.octets(name, base64.b64decode(text, validate=True))
            except (binascii.Error, ValueError):
                pass
        self._add(f"{name} as text", text.encode())
        return None

    def version(self, text: str) -> str:
        """A quote's version, which begins what is said of the quote."""
        self._add("version", text.encode())
        return text

    def pcrs(self, values: Any) -> dict[str, str]:
        """Registers by their names, in whatever order they were written."""
        found = dict(sorted(values.items()))
        for name, value in found.items():
            self._add(f"pcr {len(name)}:{name}", value.encode())
        return found

    def done(self) -> bytes:
        """The digest: 32 bytes."""
        return sha256(b"".join(self._parts))
