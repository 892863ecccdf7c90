"""Keys, envelopes and the second signature."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime

from cryptography.hazmat.primitives.serialization import load_pem_public_key

from servicekit.security.signing import PublicKey, dsse_encoding, pem_bundle
from services.policy.authoring.document import App, Apps, Document
from services.policy.authoring.goencoding import encode_document
from services.policy.keys.signing import (
    PAYLOAD_TYPE,
    Signer,
    envelope,
    envelope_head,
)
from tests.fakes.agent.gojson import unmarshal
from tests.fakes.agent.structs import ENVELOPE
from tests.fakes.agent.verify import check_envelope, load_pinned_key

SIGNER = Signer(hashlib.sha256(b"test").digest())
DOCUMENT = encode_document(Document(apps=Apps((App("a<b", "stable", "flathub"),))))
TENANT = "0197b1c2-0000-7000-8000-000000000001"
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def test_key_id_is_the_thumbprint_of_rfc_8037() -> None:
    """The example of RFC 8037, appendix A.3."""
    raw = base64.urlsafe_b64decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
    assert PublicKey(raw).id == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    assert PublicKey(raw).jwk()["x"] == "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"


def test_rfc_8032_signature() -> None:
    """Test 2 of RFC 8032, section 7.1: the seed, the public key and the signature."""
    seed = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    signer = Signer(seed)
    assert signer.public.raw.hex() == (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    )
    assert signer.sign(b"\x72").hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )


def test_pem_is_what_others_read() -> None:
    """The PEM text holds the same key, alone and in a bundle with others."""
    pem = SIGNER.public.pem()
    loaded = load_pem_public_key(pem.encode())
    assert loaded.public_bytes_raw() == SIGNER.public.raw  # type: ignore[union-attr]
    other = Signer(bytes(32)).public
    assert pem_bundle([SIGNER.public, other]) == pem + other.pem()


def test_envelope_holds_exactly_the_signed_bytes() -> None:
    """The document stands verbatim in the envelope, and the agent accepts it with either key."""
    body = envelope("12", SIGNER.sign(DOCUMENT), DOCUMENT)
    assert DOCUMENT in body
    taken = unmarshal(ENVELOPE, body)
    assert (taken["version"], taken["device_token"]) == ("12", "")
    for pinned in (SIGNER.public.raw, SIGNER.public.pem()):
        check_envelope(load_pinned_key(pinned), taken)


def test_a_token_is_added_without_touching_the_rest() -> None:
    """An envelope with a token is the same bytes and one more member."""
    signature = SIGNER.sign(DOCUMENT)
    head = envelope_head("12", signature, DOCUMENT)
    assert envelope("12", signature, DOCUMENT) == head + b"}"
    with_token = envelope("12", signature, DOCUMENT, "a.b.c")
    assert with_token == head + b',"device_token":"a.b.c"}'
    assert json.loads(with_token)["device_token"] == "a.b.c"


def test_pae_is_that_of_the_dsse_specification() -> None:
    """The example of the DSSE protocol document."""
    assert dsse_encoding("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_statement_binds_version_tenant_audience_and_predecessor() -> None:
    """The payload names its context, holds the document verbatim, and chains by hash."""
    first = SIGNER.state(DOCUMENT, version=1, tenant=TENANT, previous=None, issued_at=NOON)
    second = SIGNER.state(
        DOCUMENT, version=2, tenant=TENANT, previous=first.payload, issued_at=NOON
    )
    assert first.payload.endswith(b',"document":' + DOCUMENT + b"}")
    payload = json.loads(second.payload)
    del payload["document"]
    assert payload == {
        "version": "2",
        "tenant": TENANT,
        "audience": "evergreen:devices",
        "previous": hashlib.sha256(first.payload).hexdigest(),
        "issuedAt": "2026-11-24T12:00:00Z",
    }
    assert json.loads(first.payload)["previous"] == ""
    signed = dsse_encoding(PAYLOAD_TYPE, second.payload)
    assert SIGNER.public.verifies(signed, second.signature)
    assert not SIGNER.public.verifies(second.payload, second.signature)
    assert second.key_id == SIGNER.public.id
