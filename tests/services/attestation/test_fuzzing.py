"""What devices and administrators send in binary or as text is read or refused, within its bounds.

Evidence itself is changed at random in `evidence/test_corpus.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import resource
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives import serialization

from servicekit.errors import DomainError
from servicekit.ids import now
from services.attestation.binding.endorsement import (
    EndorsementError,
    make_credential,
    read_endorsement_key,
)
from services.attestation.evidence.domain import RefusedError, read_signing_key
from services.attestation.evidence.event_log import LogError, replay
from services.attestation.evidence.userspace_log import UserspaceLogError, replay_userspace
from services.attestation.trust.certificates import CertificateError, Root, follow, read_root
from services.attestation.trust.service import _parsed
from tests.fakes.boot import Boot, userspace_log
from tests.fakes.tpm import Maker, Tpm
from tests.support.paths import LONG

_SECONDS = 600 if LONG else 0
_LEAST = 1_500
_MOST_HELD = 24 << 20
"""Bytes that reading one input may hold at once: a log of a MiB is cut into its parts."""
_MOST_GROWN_KIB = 64 << 10

_MAKER, _TPM, _BOOT = Maker(), Tpm(), Boot()
_ROOTS = {b"root": Root(b"root", _MAKER.root.public_bytes(serialization.Encoding.DER))}
_LEAF = _MAKER.certify(_TPM.ek)
_PCRS = {index: value.hex() for index, value in _BOOT.registers().items()}
_CSV = b"\xef\xbb\xbfserial,ek_hash\r\n" + b"".join(
    b'"S-%d",%s\r\n' % (number, b"ab" * 32) for number in range(20)
)


def _endorsement(data: bytes) -> None:
    # What is taken for a key can be used as one.
    make_credential(read_endorsement_key(data), b"\x00\x0b" + bytes(32), bytes(32))


_PARSERS: dict[str, tuple[Callable[[bytes], object], type[Exception], bytes]] = {
    "an event log": (lambda data: replay(data, _PCRS), LogError, _BOOT.log()),
    "a log of user space": (
        lambda data: replay_userspace(data, bytes(32), "00" * 32),
        UserspaceLogError,
        userspace_log("enter-initrd", "leave-initrd", "sysinit", "ready"),
    ),
    "an endorsement key": (_endorsement, EndorsementError, _TPM.ek_public),
    "a signing key": (read_signing_key, RefusedError, _TPM.ak.public),
    "a certificate": (
        lambda data: follow(data, _MAKER.chain, _ROOTS, now()),
        CertificateError,
        _LEAF,
    ),
    "a certificate of a chain": (
        lambda data: follow(_LEAF, [data], _ROOTS, now()),
        CertificateError,
        _MAKER.chain[0],
    ),
    "a root": (
        lambda data: read_root(data.decode("latin-1")),
        CertificateError,
        _MAKER.root_pem.encode(),
    ),
    "a list of keys": (lambda data: _parsed(data.decode("utf-8", "replace")), DomainError, _CSV),
}
"""By what is read: what reads it, what it refuses with, and good input."""
_LENGTHS = (b"\0", b"\xff", b"\x80", b"\x7f\xff", b"\xff\xff", b"\x84\xff\xff\xff\xff", b"\x30\x80")
"""What lengths are written as, and nothing is behind them."""


def _inputs(seed: int, good: bytes) -> Iterator[bytes]:
    source = random.Random(seed)
    while True:
        data = bytearray(good)
        for _ in range(source.choice((1, 1, 2, 4, 16))):
            at = source.randrange(len(data)) if data else 0
            match source.randrange(7):
                case 0 if data:
                    data[at] ^= 1 << source.randrange(8)
                case 1 if data:
                    data[at] = source.randrange(256)
                case 2:
                    del data[at : at + source.choice((1, 2, 16, 200))]
                case 3:
                    data[at:at] = source.randbytes(source.choice((1, 2, 32, 700)))
                case 4:
                    data[at : at + 1] = source.choice(_LENGTHS)
                case 5:
                    # A part of it again and again, up to more than may be sent.
                    part = bytes(data[at : at + source.choice((1, 8, 64))])
                    data[at:at] = part * source.choice((2, 50, 2_000))
                case _:
                    data = bytearray(source.randbytes(source.choice((0, 1, 30, 3_000))))
        yield bytes(data)


@pytest.mark.hypothesis
@pytest.mark.timeout(3_600)
def test_what_is_sent_is_read_or_refused() -> None:
    """Whatever it is, nothing else is raised, and no input holds much memory.

    At length for ten minutes, without a growth of the process.
    """
    until = time.monotonic() + _SECONDS
    sources = {name: _inputs(7, good) for name, (*_, good) in _PARSERS.items()}
    grown: list[int] = []
    tracemalloc.start()
    try:
        for count in itertools.count():
            if count >= _LEAST // len(_PARSERS) and time.monotonic() >= until:
                break
            for name, (read, refusal, _) in _PARSERS.items():
                data = next(sources[name])
                tracemalloc.reset_peak()
                before, _ = tracemalloc.get_traced_memory()
                try:
                    with contextlib.suppress(refusal):
                        read(data)
                except Exception as error:
                    raise AssertionError(f"{name}, input {count}: {data[:200]!r}") from error
                _, peak = tracemalloc.get_traced_memory()
                assert peak - before < _MOST_HELD, (name, count)
            grown.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    finally:
        tracemalloc.stop()
    assert grown[-1] - grown[len(grown) // 2] < _MOST_GROWN_KIB


def test_good_input_is_read() -> None:
    """So that what is changed above is not refused for something else."""
    assert replay(_BOOT.log(), _PCRS).secure_boot
    assert read_endorsement_key(_TPM.ek_public).sha256 == _TPM.ek_sha256
    read_signing_key(_TPM.ak.public)
    assert follow(_LEAF, _MAKER.chain, _ROOTS, now()).root == b"root"
    assert read_root(_MAKER.root_pem).subject == "CN=Maker root"
    assert len(_parsed(_CSV.decode())) == 20
