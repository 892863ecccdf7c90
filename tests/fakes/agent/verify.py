"""How the released agent checks a policy: its own re-encoding under a pinned Ed25519 key."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tests.fakes.agent.gojson import marshal
from tests.fakes.agent.structs import DOCUMENT


class BadSignatureError(Exception):
    """The envelope's signature is not the pinned key's over the document as decoded."""


def load_pinned_key(key: bytes | str | Path) -> Ed25519PublicKey:
    """A key from PEM `PUBLIC KEY` text, 32 raw bytes, or a file with either."""
    if isinstance(key, Path):
        key = key.read_bytes()
    if isinstance(key, str):
        key = key.encode()
    if len(key) == 32:
        return Ed25519PublicKey.from_public_bytes(key)
    loaded = load_pem_public_key(key)
    if not isinstance(loaded, Ed25519PublicKey):
        raise TypeError("the pinned key is no Ed25519 key")
    return loaded


def signed_bytes(document: dict[str, Any]) -> bytes:
    """The bytes that a policy signature has to cover: the decoded document, encoded again."""
    return marshal(DOCUMENT, document)


def check_envelope(key: Ed25519PublicKey, envelope: dict[str, Any]) -> None:
    """Checks a decoded ENVELOPE. Raises `BadSignatureError`."""
    try:
        # Go's base64.StdEncoding skips line ends, demands padding, and takes nothing else.
        text = envelope["signature"].replace("\r", "").replace("\n", "").encode()
        signature = base64.b64decode(text, validate=True)
        key.verify(signature, signed_bytes(envelope["policy"]))
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise BadSignatureError(f"policy version {envelope['version']!r}") from error
