"""Evidence of a boot as the released agent sends it: two quotes by an RSA key, over two banks.

Nothing in it tells it from that of a TPM, so that it is judged like it.
"""

from __future__ import annotations

import base64
import json
import secrets
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

KEYS: Final = 64
"""A key is one device's: so many devices attest. To make one takes a tenth of a second."""
_BITS: Final = 2048
_BANKS: Final = (0x0004, 0x000B)
"""SHA-1 and SHA-256, in the agent's order."""
_REGISTERS: Final = 24


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


class Key:
    """An attestation key, and what it signs.

    Args:
        pem: one that was kept; a new one without.
    """

    def __init__(self, pem: str = "") -> None:
        loaded = serialization.load_pem_private_key(pem.encode(), None) if pem else None
        made = loaded or rsa.generate_private_key(65537, _BITS)
        assert isinstance(made, rsa.RSAPrivateKey)
        self._key = made
        modulus = self._key.public_key().public_numbers().n.to_bytes(_BITS // 8, "big")
        # TPMT_PUBLIC: RSA, names by SHA-256, attributes, no policy, RSASSA with SHA-256.
        self.public = (
            bytes.fromhex("0001000b00050472000000100014000b")
            + _BITS.to_bytes(2, "big")
            + bytes(4)
            + _sized(modulus)
        )
        self._name = b"\x00\x0b" + sha256(self.public).digest()

    @property
    def pem(self) -> str:
        """The key, to keep it."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()

    def evidence(self) -> dict[str, Any]:
        """New evidence of the same boot, for a nonce of its own."""
        nonce = secrets.token_bytes(32)
        values = [sha256(bytes([index])).digest() for index in range(_REGISTERS)]
        digest = sha256(b"".join(values)).digest()
        return {
            "nonce": _text(nonce),
            "ak_public": _text(self.public),
            "quotes": [self._quote(bank, nonce, digest) for bank in _BANKS],
            "pcrs": {str(index): value.hex() for index, value in enumerate(values)},
        }

    def _quote(self, bank: int, nonce: bytes, digest: bytes) -> dict[str, str]:
        # TPMS_ATTEST: magic, type, signer, nonce, clock and counters, firmware, selection, digest.
        quote = (
            b"\xffTCG\x80\x18"
            + _sized(self._name)
            + _sized(nonce)
            + (1234).to_bytes(8, "big")
            + bytes.fromhex("000000010000000001")
            + bytes(8)
            + bytes.fromhex("00000001")
            + bank.to_bytes(2, "big")
            + b"\x03\xff\xff\xff"
            + _sized(digest)
        )
        signature = self._key.sign(quote, padding.PKCS1v15(), hashes.SHA256())
        return {
            "version": "2.0",
            "quote": _text(quote),
            "signature": _text(bytes.fromhex("0014000b") + _sized(signature)),
        }


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@lru_cache(maxsize=KEYS)
def key(number: int) -> Key:
    """One of the keys of this run."""
    return Key()


def attest_body(device_id: str, by: Key) -> bytes:
    """The request of a device that has booted."""
    request = {"device_id": device_id, "evidence": by.evidence()}
    return json.dumps(request, separators=(",", ":")).encode()
