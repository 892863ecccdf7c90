"""The signed bytes are Go's, and the released agent's own re-encoding agrees with them."""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.policy.authoring.document import (
    App,
    Apps,
    Browser,
    Document,
    Network,
    Wifi,
    parse_document,
)
from services.policy.authoring.goencoding import encode_document
from services.policy.keys.signing import Signer, envelope
from tests.fakes.agent.gojson import DecodeError, marshal, unmarshal
from tests.fakes.agent.structs import DOCUMENT, ENVELOPE
from tests.fakes.agent.verify import BadSignatureError, check_envelope, load_pinned_key
from tests.support.paths import LONG
from tests.support.policies import documents, random_document

VECTORS = json.loads(
    (Path(__file__).parent / "data" / "go_encoding_vectors.json").read_text(encoding="utf-8")
)["vectors"]
SIGNER = Signer(bytes(range(32)))
PINNED = load_pinned_key(SIGNER.public.raw)


def _input(vector: dict[str, Any]) -> bytes:
    if "input_base64" in vector:
        return base64.b64decode(vector["input_base64"])
    text: str = vector["input"]
    return text.encode()


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_simulated_agent_decodes_and_encodes_as_go(vector: dict[str, Any]) -> None:
    """Each vector from Go gives the same bytes, or is refused where Go refuses it."""
    if vector["output"] is None:
        with pytest.raises(DecodeError):
            unmarshal(DOCUMENT, _input(vector))
    else:
        assert marshal(DOCUMENT, unmarshal(DOCUMENT, _input(vector))).decode() == vector["output"]


@pytest.mark.parametrize(
    "vector",
    # What holds U+0000 is no acceptable document.
    [v for v in VECTORS if v["output"] is not None and "\\u0000" not in v["output"]],
    ids=lambda vector: vector["name"],
)
def test_go_output_is_a_fixed_point_of_the_product(vector: dict[str, Any]) -> None:
    """What Go wrote is an acceptable document, and the product encodes it to the same bytes."""
    written = json.loads(vector["output"])
    assert encode_document(parse_document(written)).decode() == vector["output"]


def test_every_character_is_encoded_as_by_the_agent() -> None:
    """Each code point alone, surrogates included, has the same bytes in both implementations."""
    for start in range(0, 0x110000, 0x400):
        text = "".join(map(chr, range(start, start + 0x400)))
        wire = json.dumps({"browser": {"homepage": text}}).encode()
        ours = encode_document(Document(browser=Browser(homepage=text)))
        assert ours == marshal(DOCUMENT, unmarshal(DOCUMENT, wire))


def test_absent_and_empty_are_told_apart() -> None:
    """An absent list or map is null, an empty one is not."""
    wifi = (Wifi(ssid="a"), Wifi(ssid="b", eap={}))
    text = encode_document(Document(apps=Apps(()), network=Network(wifi=wifi))).decode()
    assert '{"apps":{"required":[]}' in text
    assert '"vpns":null' in text
    assert '"eap":null' in text
    assert '"eap":{}' in text


def test_map_keys_are_sorted_by_their_bytes() -> None:
    """A character beyond the basic plane comes after all of that plane, unlike in UTF-16."""
    eap = {"\uffff": "1", "\U0001f600": "2", "b": "3", "B": "4"}
    text = encode_document(Document(network=Network(wifi=(Wifi(eap=eap),)))).decode()
    assert '"eap":{"B":"4","b":"3","\uffff":"1","\U0001f600":"2"}' in text


@given(documents, st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_agents_accept_what_is_signed_and_nothing_else(
    authored: dict[str, Any], place: int, change: int
) -> None:
    """The re-encoding check accepts a document, and never one whose meaning changed."""
    _accepted_unless_changed(authored, place, change)


@pytest.mark.long
def test_agents_accept_thousands_of_documents() -> None:
    """The same for larger documents, from a generator that is faster."""
    first, count = (secrets.randbits(32), 10_000) if LONG else (0, 500)
    for seed in range(first, first + count):
        random = Random(seed)
        authored = random_document(random)
        try:
            _accepted_unless_changed(authored, random.randrange(1 << 20), random.randrange(1, 256))
        except Exception as error:
            raise AssertionError(f"the document of seed {seed}: {authored!r}") from error


def _accepted_unless_changed(authored: dict[str, Any], place: int, change: int) -> None:
    """Signs a document, has the agent check it, and again with one byte of it changed.

    Then it cannot be decoded, or its signature is bad, or the change was one of spelling only
    (`\\u003c` and `\\u003C`, or the case of a name) and what the agent would apply is exactly
    what was signed.
    """
    signed = encode_document(parse_document(authored))
    wire = envelope("7", SIGNER.sign(signed), signed)
    taken = unmarshal(ENVELOPE, wire)
    check_envelope(PINNED, taken)
    assert marshal(DOCUMENT, taken["policy"]) == signed

    place = wire.index(b'"policy":') + len(b'"policy":') + place % len(signed)
    broken = wire[:place] + bytes([wire[place] ^ change]) + wire[place + 1 :]
    try:
        taken = unmarshal(ENVELOPE, broken)
        check_envelope(PINNED, taken)
    except (DecodeError, BadSignatureError):
        return
    assert marshal(DOCUMENT, taken["policy"]) == signed


@given(documents)
def test_no_changed_byte_is_accepted(authored: dict[str, Any]) -> None:
    """Neither the signed bytes nor the signature can change in any one place."""
    signed = encode_document(parse_document(authored))
    signature = SIGNER.sign(signed)
    assert SIGNER.public.verifies(signed, signature)
    step = max(1, len(signed) // 16)
    for place in range(0, len(signed), step):
        changed = signed[:place] + bytes([signed[place] ^ 1]) + signed[place + 1 :]
        assert not SIGNER.public.verifies(changed, signature)
    for place in range(0, 64, 7):
        changed = signature[:place] + bytes([signature[place] ^ 1]) + signature[place + 1 :]
        assert not SIGNER.public.verifies(signed, changed)


def test_encoding_takes_a_realistic_document_in_no_time() -> None:
    """A document of a thousand apps is encoded well below what a publish may take."""
    apps = tuple(App(f"org.example.App{n}", "stable", "flathub") for n in range(1000))
    assert len(encode_document(Document(apps=Apps(apps)))) > 50_000
