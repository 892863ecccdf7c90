"""Evidence of a boot, and what it proves by itself.

The order of the checks is that of `Reason`: the first that fails is the reason. What evidence
proves beside that of others (a nonce that was used, a key of another device) the store knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from servicekit.security.digests import sha256
from services.attestation.evidence import event_log, signatures, structures, userspace_log
from services.attestation.evidence.event_log import LogError, replay
from services.attestation.evidence.structures import (
    DIGEST_BYTES,
    MOST_ATTEST,
    MOST_PUBLIC,
    MOST_SIGNATURE,
    Alg,
    MalformedError,
    Public,
)
from services.attestation.evidence.userspace_log import (
    IMAGE,
    UserspaceLogError,
    replay_userspace,
)
from services.attestation.grades import Reason, Verdict

NONCE_BYTES: Final = range(16, 65)
MOST_QUOTES: Final = 4
REGISTERS: Final = 24
_VERSION: Final = "2.0"
_ATTRIBUTES: Final = 0x00050472
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign: those of the
agent's template, and no others. Nothing in a quote covers them, so that a test of some bits would
let the others be changed."""
_ALL_REGISTERS: Final = b"\xff" * (REGISTERS // 8)
_BANKS: Final = {20: Alg.SHA1, 32: Alg.SHA256, 48: Alg.SHA384}
"""By the length of a value."""
_FIRMWARE: Final = range(8)
"""The registers that firmware extends at every measured boot."""
_COUNTER: Final = 1 << 32
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})+").fullmatch
_INDICES: Final = {str(index): index for index in range(REGISTERS)}


MOST_BYTES: Final = {
    "nonce": NONCE_BYTES.stop - 1,
    "ak_public": MOST_PUBLIC,
    "quote": MOST_ATTEST,
    "signature": MOST_SIGNATURE,
    "event_log": event_log.MOST_BYTES,
    "userspace_log": userspace_log.MOST_BYTES,
}
"""The longest that the parts of evidence are decoded and parsed."""


@dataclass(frozen=True, slots=True)
class EvidenceQuote:
    """A quote as it was sent; `None` for what is no base64, or longer than such a thing can be."""

    version: str
    quote: bytes | None
    signature: bytes | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Evidence as it was sent, with `None` for what cannot be what it should be."""

    nonce: bytes | None
    ak_public: bytes | None
    quotes: Sequence[EvidenceQuote]
    pcrs: Mapping[str, str]
    event_log: bytes | None
    """The firmware's event log; `None` from agents that do not send it."""
    userspace_log: bytes | None
    """What user space measured; likewise."""
    sha256: bytes
    """Of all of it, however it was written down."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What good evidence says."""

    bank: str
    pcrs: Mapping[int, str]
    nonce_sha256: bytes
    ak_name: bytes
    secure_boot: bool | None
    """Whether the event log shows it; `None` without a log."""
    for_device: bool
    """Whether the quotes are over the nonce, the device and the key, and not the nonce alone."""
    image: str | None
    """Register 11 before user space measured into it; `None` where no log shows that."""
    reset_count: int
    """How often the TPM was reset, blurred by the same number in all quotes of a key."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, its reasons, and, unless it failed, what the evidence says."""

    verdict: Verdict
    reasons: tuple[Reason, ...]
    facts: Facts | None = None
    matched: tuple[UUID, ...] = ()
    """The reference values that the boot matches."""


def failed(reason: Reason) -> Judgement:
    """The verdict over evidence of which one check failed."""
    return Judgement(Verdict.FAILED, (reason,))


class RefusedError(Exception):
    """Evidence, or a part of it, of which one check failed."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def judge(evidence: Evidence, device_id: str = "") -> Judgement:
    """What evidence of a device proves by itself: `SELF_CONSISTENT` at best."""
    try:
        return _judge(evidence, device_id)
    except RefusedError as refused:
        return failed(refused.reason)


def _judge(evidence: Evidence, device_id: str) -> Judgement:
    nonce = evidence.nonce
    if nonce is None or len(nonce) not in NONCE_BYTES:
        raise RefusedError(Reason.NONCE_SIZE)
    public = read_signing_key(evidence.ak_public)
    assert evidence.ak_public is not None
    name = name_of(evidence.ak_public, public.name_alg)
    bound_nonce = sha256(nonce + device_id.encode() + name)
    bank, values = _values(evidence.pcrs)
    if not 1 <= len(evidence.quotes) <= MOST_QUOTES:
        raise RefusedError(Reason.QUOTE_COUNT)
    quotes = _quotes(evidence, public, (nonce, bound_nonce))
    if bank is Alg.SHA1:
        raise RefusedError(Reason.PCR_BANK_WEAK)
    if bank not in quotes:
        raise RefusedError(Reason.PCR_BANK_NOT_QUOTED)
    if len(values) != REGISTERS:
        raise RefusedError(Reason.PCR_SELECTION_MISMATCH)
    joined = b"".join(bytes.fromhex(values[index]) for index in range(REGISTERS))
    if signatures.digest(public.scheme.hash, joined) != quotes[bank].digest:
        raise RefusedError(Reason.PCR_DIGEST_MISMATCH)
    secure_boot, image = _replayed(evidence, values) if bank is Alg.SHA256 else (None, None)
    limits = [Reason.DEVICE_CHOSE_NONCE, Reason.AK_NOT_BOUND]
    limits += unmeasured(values)
    facts = Facts(
        bank=bank.name.lower(),
        pcrs=values,
        nonce_sha256=sha256(nonce),
        ak_name=name,
        secure_boot=secure_boot,
        for_device=quotes[bank].nonce == bound_nonce,
        image=image,
        reset_count=quotes[bank].boot.reset_count,
    )
    return Judgement(Verdict.SELF_CONSISTENT, tuple(limits), facts)


def _replayed(evidence: Evidence, values: Mapping[int, str]) -> tuple[bool | None, str | None]:
    """Whether secure boot was on, and register 11 before user space, as far as logs show it."""
    if evidence.event_log is None:
        return None, None
    try:
        found = replay(evidence.event_log, values)
        if evidence.userspace_log is None:
            return found.secure_boot, None
        replay_userspace(evidence.userspace_log, found.image, values[IMAGE])
    except (LogError, UserspaceLogError) as wrong:
        raise RefusedError(wrong.reason) from wrong
    return found.secure_boot, found.image.hex()


def went_back(before: int, now: int) -> bool:
    """Whether a counter of 32 bits, perhaps blurred by a fixed number, is lower than it was."""
    return (now - before) % _COUNTER >= _COUNTER // 2


def unmeasured(pcrs: Mapping[int, str]) -> list[Reason]:
    """The reason that is told where the firmware measured nothing."""
    empty = all(set(pcrs[index]) == {"0"} for index in _FIRMWARE)
    return [Reason.PCR_UNMEASURED] if empty else []


def name_of(public: bytes, name_alg: int) -> bytes:
    """The TPM's name of a key: an algorithm, and its digest of the public area."""
    return name_alg.to_bytes(2, "big") + signatures.digest(name_alg, public)


def read_signing_key(data: bytes | None) -> Public:
    """Reads a key that may sign evidence (TPMT_PUBLIC).

    Raises:
        RefusedError: it may not.
    """
    try:
        if data is None:
            raise MalformedError("too long, or no base64")
        public = structures.parse_public(data)
        signatures.check_shape(public.key)
    except MalformedError as broken:
        raise RefusedError(Reason.AK_MALFORMED) from broken
    if public.name_alg not in signatures.STRONG:
        raise RefusedError(Reason.AK_NAME_ALG)
    if public.attributes != _ATTRIBUTES or public.policy:
        raise RefusedError(Reason.AK_ATTRIBUTES)
    if not signatures.can_sign(public.key, public.scheme):
        raise RefusedError(Reason.AK_SCHEME)
    if not signatures.has_good_size(public.key):
        raise RefusedError(Reason.AK_KEY_SIZE)
    return public


def _values(pcrs: Mapping[str, str]) -> tuple[Alg, dict[int, str]]:
    sizes = {len(value) for value in pcrs.values()}
    if (
        len(sizes) != 1
        or (bank := _BANKS.get(sizes.pop() // 2)) is None
        or not pcrs.keys() <= _INDICES.keys()
        or not all(map(_HEX, pcrs.values()))
    ):
        raise RefusedError(Reason.PCRS_MALFORMED)
    return bank, {_INDICES[index]: value for index, value in pcrs.items()}


def _quotes(
    evidence: Evidence, public: Public, nonces: tuple[bytes, bytes]
) -> dict[int, structures.Quote]:
    """The quotes by bank, all of them of one boot and over one of the nonces."""
    key = signatures.load(public.key)
    quotes: dict[int, structures.Quote] = {}
    for sent in evidence.quotes:
        quote = _quote(sent, public, key, nonces)
        quoted = quote.selections[0].bank
        if quoted not in DIGEST_BYTES:
            raise RefusedError(Reason.PCR_BANK_UNKNOWN)
        if quoted in quotes:
            raise RefusedError(Reason.PCR_BANK_REPEATED)
        # The digest over the registers is taken by the hash of the scheme, whatever the bank.
        if len(quote.digest) != DIGEST_BYTES[Alg(public.scheme.hash)]:
            raise RefusedError(Reason.PCR_DIGEST_MISMATCH)
        quotes[quoted] = quote
    if len({quote.nonce for quote in quotes.values()}) > 1:
        raise RefusedError(Reason.NONCE_MISMATCH)
    if len({(quote.signer, quote.boot) for quote in quotes.values()}) > 1:
        raise RefusedError(Reason.QUOTES_OF_TWO_BOOTS)
    return quotes


def _quote(
    sent: EvidenceQuote, public: Public, key: signatures.Key, nonces: tuple[bytes, bytes]
) -> structures.Quote:
    """A quote that the key signed over one of the nonces and over all registers of one bank."""
    if sent.version != _VERSION:
        raise RefusedError(Reason.QUOTE_VERSION)
    quote, signature = _parsed(sent)
    name_alg = Alg(public.name_alg)
    if len(quote.signer) != 2 + DIGEST_BYTES[name_alg] or quote.signer[:2] != name_alg.to_bytes(
        2, "big"
    ):
        raise RefusedError(Reason.QUOTE_SIGNER)
    if signature.scheme != public.scheme:
        raise RefusedError(Reason.SIGNATURE_SCHEME)
    assert sent.quote is not None
    if not key.verify(public.scheme, signature, sent.quote):
        raise RefusedError(Reason.SIGNATURE_INVALID)
    if quote.nonce not in nonces:
        raise RefusedError(Reason.NONCE_MISMATCH)
    if all(selection.is_empty for selection in quote.selections):
        raise RefusedError(Reason.PCR_SELECTION_EMPTY)
    if len(quote.selections) != 1 or quote.selections[0].bits != _ALL_REGISTERS:
        raise RefusedError(Reason.PCR_SELECTION_MISMATCH)
    return quote


def _parsed(sent: EvidenceQuote) -> tuple[structures.Quote, structures.Signature]:
    if sent.quote is None or len(sent.quote) < 6:
        raise RefusedError(Reason.QUOTE_MALFORMED)
    if not structures.has_magic(sent.quote):
        raise RefusedError(Reason.QUOTE_MAGIC)
    if not structures.is_quote(sent.quote):
        raise RefusedError(Reason.QUOTE_TYPE)
    try:
        quote = structures.parse_quote(sent.quote)
    except MalformedError as broken:
        raise RefusedError(Reason.QUOTE_MALFORMED) from broken
    try:
        if sent.signature is None:
            raise MalformedError("too long, or no base64")
        return quote, structures.parse_signature(sent.signature)
    except MalformedError as broken:
        raise RefusedError(Reason.SIGNATURE_MALFORMED) from broken
