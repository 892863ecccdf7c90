"""The structures of a TPM 2.0 that evidence consists of, read strictly.

All are defined in "TPM 2.0 Library, Part 2: Structures" (TCG): integers are big-endian, a sized
buffer (TPM2B) has its length in two bytes before it. A structure with a byte too many, or with a
value that the TPM never writes, is refused: what is not understood is not believed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NoReturn

MOST_PUBLIC: Final = 1024
"""Bytes of a TPMT_PUBLIC at most; one with RSA-4096 has 536."""
MOST_ATTEST: Final = 1024
"""Bytes of a TPMS_ATTEST at most; a quote over four banks with SHA-512 has some 270."""
MOST_SIGNATURE: Final = 1024
"""Bytes of a TPMT_SIGNATURE at most; one of RSA-4096 has 518."""
_MOST_SELECTIONS: Final = 16
"""As HASH_COUNT of the reference implementation; a TPML_PCR_SELECTION is never longer."""
_MOST_SELECT_BYTES: Final = 4

MAGIC: Final = 0xFF544347
"""TPM_GENERATED_VALUE: begins what a TPM made itself, and nothing that it signs for others."""


class Alg(IntEnum):
    """TPM_ALG_ID, as far as evidence has them."""

    RSA = 0x0001
    SHA1 = 0x0004
    SHA256 = 0x000B
    SHA384 = 0x000C
    SHA512 = 0x000D
    NULL = 0x0010
    RSASSA = 0x0014
    RSAES = 0x0015
    RSAPSS = 0x0016
    OAEP = 0x0017
    ECDSA = 0x0018
    ECDAA = 0x001A
    SM2 = 0x001B
    ECSCHNORR = 0x001C
    ECC = 0x0023


QUOTE: Final = 0x8018
"""TPM_ST_ATTEST_QUOTE."""
DIGEST_BYTES: Final = {Alg.SHA1: 20, Alg.SHA256: 32, Alg.SHA384: 48, Alg.SHA512: 64}
"""How long the digests of a bank, or of a scheme, are."""
_WITH_HASH: Final = frozenset(
    {Alg.RSASSA, Alg.RSAPSS, Alg.ECDSA, Alg.SM2, Alg.ECSCHNORR, Alg.OAEP, Alg.ECDAA}
)
_WITHOUT_HASH: Final = frozenset({Alg.NULL, Alg.RSAES})


class MalformedError(ValueError):
    """Bytes that are not the structure that belongs there."""


class Reader:
    """Reads integers and buffers one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            MalformedError: there are fewer.
        """
        end = self._at + count
        if end > len(self._data):
            raise MalformedError("truncated")
        found = self._data[self._at : end]
        self._at = end
        return found

    def integer(self, size: int) -> int:
        """The next integer, of `size` bytes."""
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        """The next TPM2B."""
        return self.take(self.integer(2))

    def end(self) -> None:
        """Refuses bytes that are left.

        Raises:
            MalformedError: there are some.
        """
        if self._at != len(self._data):
            raise MalformedError("trailing bytes")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a key signs: an algorithm and a hash, which are `Alg` where they are known."""

    algorithm: int
    hash: int


@dataclass(frozen=True, slots=True)
class RsaUnique:
    """An RSA key: the size that the TPM was asked for, and the key itself."""

    bits: int
    exponent: int
    modulus: bytes


@dataclass(frozen=True, slots=True)
class EccUnique:
    """A point of a curve, which is a TPM_ECC_CURVE."""

    curve: int
    x: bytes
    y: bytes


@dataclass(frozen=True, slots=True)
class Public:
    """A TPMT_PUBLIC of a key that can sign."""

    name_alg: int
    attributes: int
    policy: bytes
    scheme: Scheme
    key: RsaUnique | EccUnique


@dataclass(frozen=True, slots=True)
class Selection:
    """Some registers of a bank."""

    bank: int
    bits: bytes
    """One bit a register, the lowest register in the lowest bit of the first byte."""

    @property
    def is_empty(self) -> bool:
        """Whether no register is selected."""
        return not any(self.bits)


@dataclass(frozen=True, slots=True)
class Boot:
    """What a quote says of the boot that it was made in. A TPM blurs it for keys that are not in
    the endorsement hierarchy, in the same way for all quotes of a key."""

    reset_count: int
    restart_count: int
    firmware: int


@dataclass(frozen=True, slots=True)
class Quote:
    """A TPMS_ATTEST of a quote."""

    signer: bytes
    """The qualified name of the key: an algorithm and a digest over the key and its parents."""
    nonce: bytes
    boot: Boot
    selections: tuple[Selection, ...]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Signature:
    """A TPMT_SIGNATURE: one number of RSA, or r and s of ECDSA."""

    scheme: Scheme
    numbers: tuple[bytes, ...]


def parse_public(data: bytes) -> Public:
    """Reads the public area of a signing key.

    Raises:
        MalformedError: it is none of an RSA or ECC key, has trailing bytes, or encrypts.
    """
    reader = Reader(data)
    kind = reader.integer(2)
    name_alg, attributes, policy = reader.integer(2), reader.integer(4), reader.sized()
    if kind not in {Alg.RSA, Alg.ECC}:
        raise MalformedError("neither an RSA nor an ECC key")
    if len(policy) not in {0, *DIGEST_BYTES.values()}:
        raise MalformedError("the policy is no digest")
    if reader.integer(2) != Alg.NULL:
        raise MalformedError("a symmetric algorithm, which only keys that encrypt have")
    scheme = _scheme(reader)
    key: RsaUnique | EccUnique
    if kind == Alg.RSA:
        bits, exponent = reader.integer(2), reader.integer(4)
        key = RsaUnique(bits, exponent, reader.sized())
    else:
        curve = reader.integer(2)
        if reader.integer(2) != Alg.NULL:
            raise MalformedError("a key derivation, which only keys that encrypt have")
        key = EccUnique(curve, reader.sized(), reader.sized())
    reader.end()
    return Public(name_alg, attributes, policy, scheme, key)


def _scheme(reader: Reader) -> Scheme:
    algorithm = reader.integer(2)
    if algorithm in _WITHOUT_HASH:
        return Scheme(algorithm, Alg.NULL)
    if algorithm not in _WITH_HASH:
        raise MalformedError("an unknown scheme")
    found = Scheme(algorithm, reader.integer(2))
    if algorithm == Alg.ECDAA:
        reader.integer(2)
    return found


def has_magic(data: bytes) -> bool:
    """Whether a structure says that a TPM made it."""
    return data[:4] == MAGIC.to_bytes(4, "big")


def is_quote(data: bytes) -> bool:
    """Whether a TPMS_ATTEST is of a quote."""
    return data[4:6] == QUOTE.to_bytes(2, "big")


def parse_quote(data: bytes) -> Quote:
    """Reads a quote whose magic and type were checked.

    Raises:
        MalformedError: it is none, or has trailing bytes.
    """
    reader = Reader(data)
    reader.take(6)
    signer, nonce = reader.sized(), reader.sized()
    reader.integer(8)  # The clock, which may go back after an unclean stop.
    reset_count, restart_count = reader.integer(4), reader.integer(4)
    if reader.integer(1) > 1:
        raise MalformedError("`safe` is neither yes nor no")
    firmware = reader.integer(8)
    count = reader.integer(4)
    if count > _MOST_SELECTIONS:
        raise MalformedError("too many selections")
    selections = tuple(_selection(reader) for _ in range(count))
    digest = reader.sized()
    reader.end()
    return Quote(signer, nonce, Boot(reset_count, restart_count, firmware), selections, digest)


def _selection(reader: Reader) -> Selection:
    bank, size = reader.integer(2), reader.integer(1)
    if size > _MOST_SELECT_BYTES:
        raise MalformedError("a selection of too many registers")
    return Selection(bank, reader.take(size))


def parse_signature(data: bytes) -> Signature:
    """Reads a signature.

    Raises:
        MalformedError: it is none of RSA or ECDSA, or has trailing bytes.
    """
    reader = Reader(data)
    algorithm = reader.integer(2)
    if algorithm not in {Alg.RSASSA, Alg.RSAPSS, Alg.ECDSA}:
        _unknown_signature()
    scheme = Scheme(algorithm, reader.integer(2))
    count = 2 if algorithm == Alg.ECDSA else 1
    numbers = tuple(reader.sized() for _ in range(count))
    reader.end()
    return Signature(scheme, numbers)


def _unknown_signature() -> NoReturn:
    raise MalformedError("neither an RSA nor an ECDSA signature")
