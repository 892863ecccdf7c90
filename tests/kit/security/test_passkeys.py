"""Passkeys of a device made of software: what is taken, and every way in which it is not true.

What browsers do is tested in one (`tests/external/test_passkeys.py`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from servicekit.security import passkeys
from servicekit.security.passkeys import NewPasskey, PasskeyError, RelyingParty

SITE = RelyingParty("evergreen.example", "https://evergreen.example")
_PRESENT, _VERIFIED, _ATTESTED = 0x01, 0x04, 0x40


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class Device:
    """It signs as it is told, whatever that is."""

    origin: str = SITE.origin
    host: str = SITE.id
    flags: int = _PRESENT | _VERIFIED
    count: int = 0
    kind: str = ""
    """The type of what it signs, instead of the right one."""
    id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def _client(self, kind: str, challenge: bytes) -> bytes:
        said = {"type": self.kind or kind, "challenge": _text(challenge), "origin": self.origin}
        return json.dumps(said).encode()

    def _data(self, more: int = 0) -> bytes:
        host = hashlib.sha256(self.host.encode()).digest()
        return host + bytes([self.flags | more]) + self.count.to_bytes(4, "big")

    def _answer(self, **response: str) -> str:
        named = {"id": _text(self.id), "rawId": _text(self.id), "type": "public-key"}
        return json.dumps(named | {"response": response})

    def make(self, challenge: bytes) -> str:
        """A new passkey, without an attestation."""
        point = self.key.public_key().public_numbers()
        cose = {
            1: 2,
            3: -7,
            -1: 1,
            -2: point.x.to_bytes(32, "big"),
            -3: point.y.to_bytes(32, "big"),
        }
        known = uuid4().bytes + len(self.id).to_bytes(2, "big") + self.id + cbor2.dumps(cose)
        made = {"fmt": "none", "attStmt": {}, "authData": self._data(_ATTESTED) + known}
        return self._answer(
            clientDataJSON=_text(self._client("webauthn.create", challenge)),
            attestationObject=_text(cbor2.dumps(made)),
        )

    def prove(self, challenge: bytes, user: UUID | None = None) -> str:
        """What it signs for a login."""
        client, data = self._client("webauthn.get", challenge), self._data()
        signed = self.key.sign(data + hashlib.sha256(client).digest(), ec.ECDSA(hashes.SHA256()))
        handle = {"userHandle": _text(user.bytes)} if user else {}
        return self._answer(
            clientDataJSON=_text(client),
            authenticatorData=_text(data),
            signature=_text(signed),
            **handle,
        )


def registered(device: Device, challenge: bytes) -> NewPasskey:
    return passkeys.registered(SITE, passkeys.claimed(device.make(challenge)), challenge)


def verified(device: Device, challenge: bytes, made: NewPasskey) -> tuple[int, bool]:
    answer = passkeys.claimed(device.prove(challenge))
    return passkeys.verified(SITE, answer, challenge, made.public_key)


def test_what_a_device_makes_and_proves_is_taken() -> None:
    """With its count of uses, also one that never counts, as synced passkeys do."""
    device = Device()
    challenge = secrets.token_bytes(32)
    made = registered(device, challenge)
    assert (made.credential_id, made.sign_count) == (device.id, 0)
    user = uuid4()
    for count in (0, 0, 7, 8):
        device.count = count
        challenge = secrets.token_bytes(32)
        answer = passkeys.claimed(device.prove(challenge, user))
        assert (answer.credential_id, answer.user_handle) == (device.id, user.bytes)
        assert passkeys.verified(SITE, answer, challenge, made.public_key)[0] == count


LIES: dict[str, dict[str, Any]] = {
    "another origin": {"origin": "https://evil.example"},
    "another port": {"origin": "https://evergreen.example:8443"},
    "without TLS": {"origin": "http://evergreen.example"},
    "a host above": {"host": "example"},
    "another host": {"host": "evil.example"},
    "a person who was not verified": {"flags": _PRESENT},
    "a person who was not there": {"flags": _VERIFIED},
    "another ceremony": {"kind": "payment.get"},
}


@pytest.mark.parametrize("case", LIES)
def test_what_is_not_true_is_refused(case: str) -> None:
    """Where it is made, and where it is used."""
    challenge = secrets.token_bytes(32)
    with pytest.raises(PasskeyError):
        registered(Device(**LIES[case]), challenge)
    good = Device()
    made = registered(good, challenge)
    lying = Device(id=good.id, key=good.key, **LIES[case])
    with pytest.raises(PasskeyError):
        verified(lying, challenge, made)


def test_another_answer_or_another_key_proves_nothing() -> None:
    """A challenge of another login, a device with another key, and a changed signature."""
    device, challenge = Device(), secrets.token_bytes(32)
    made = registered(device, challenge)
    answer = passkeys.claimed(device.prove(challenge))
    with pytest.raises(PasskeyError):
        passkeys.verified(SITE, answer, secrets.token_bytes(32), made.public_key)
    with pytest.raises(PasskeyError):
        passkeys.registered(SITE, passkeys.claimed(device.make(challenge)), b"another")
    stranger = Device(id=device.id)
    with pytest.raises(PasskeyError):
        verified(stranger, challenge, made)
    for part in ("signature", "authenticatorData"):
        changed = json.loads(device.prove(challenge))
        changed["response"][part] = changed["response"][part][::-1]
        with pytest.raises(PasskeyError):
            passkeys.verified(
                SITE, passkeys.claimed(json.dumps(changed)), challenge, made.public_key
            )
    assert verified(device, challenge, made) == (0, False)


@pytest.mark.parametrize(
    "text",
    ["", "x", "null", "[]", "{}", '{"rawId": 1}', '{"rawId": "AA", "response": {}}',
     '{"rawId": "AA", "response": {"clientDataJSON": "AA"}}',
     '{"rawId": "AA", "response": {"clientDataJSON": "e30"}}',
     "[" * 20_000, "x" * 100_000],
)  # fmt: skip
def test_what_is_no_answer_is_refused(text: str) -> None:
    """By its own error, whatever a browser or a program sends."""
    with pytest.raises(PasskeyError):
        passkeys.claimed(text)


def test_a_device_is_asked_for_one_passkey() -> None:
    """Those that a user has are named, so that the same device makes no second one; the person is
    to be verified."""
    known = [secrets.token_bytes(16)]
    options = json.loads(passkeys.creation_options(SITE, uuid4(), "a@b.example", b"c" * 32, known))
    assert [one["id"] for one in options["excludeCredentials"]] == [_text(known[0])]
    assert options["authenticatorSelection"]["userVerification"] == "required"
    assert options["authenticatorSelection"]["residentKey"] == "required"
    asked = json.loads(passkeys.request_options(SITE, b"c" * 32))
    assert (asked["rpId"], asked["userVerification"]) == (SITE.id, "required")
    assert asked["allowCredentials"] == []


def test_a_site_has_a_name() -> None:
    """An address of numbers is none that passkeys can be for."""
    assert RelyingParty.at("https://evergreen.example:8443/") == RelyingParty(
        "evergreen.example", "https://evergreen.example:8443"
    )
    for url in ("", "https://192.0.2.1", "https://[2001:db8::1]"):
        assert RelyingParty.at(url) is None
