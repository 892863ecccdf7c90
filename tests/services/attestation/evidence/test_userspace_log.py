"""The log of what user space measured: systemd's records, replayed."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest

from services.attestation.evidence.userspace_log import (
    MOST_BYTES,
    UserspaceLogError,
    replay_userspace,
)
from tests.fakes.boot import userspace_log

_BEFORE = sha256(b"an image").digest()


def extended(*phases: str) -> str:
    """Register 11 behind them."""
    register = _BEFORE
    for phase in phases:
        register = sha256(register + sha256(phase.encode()).digest()).digest()
    return register.hex()


def record(**change: Any) -> bytes:
    """A record of a phase, or of something else."""
    good = json.loads(userspace_log("ready")[1:])
    return b"\x1e" + json.dumps(good | change).encode() + b"\n"


def reason(log: bytes, signed: str = "") -> str:
    """Why a log is wrong; empty when it is not."""
    try:
        replay_userspace(log, _BEFORE, signed or extended("ready"))
    except UserspaceLogError as wrong:
        return str(wrong.reason)
    return ""


def test_a_log_explains_what_was_measured_since() -> None:
    """In its order; other registers are not looked at."""
    assert reason(userspace_log("ready")) == ""
    assert reason(userspace_log("a", "b"), extended("a", "b")) == ""
    assert reason(userspace_log("b", "a"), extended("a", "b")) == "USERSPACE_LOG_MISMATCH"
    assert reason(userspace_log()) == "USERSPACE_LOG_MISMATCH"
    assert reason(record() + record(pcr=15, digests=None, content="a machine")) == ""


@pytest.mark.parametrize(
    "log",
    [
        b"x" + record(),
        b"\x1e" + record(),
        b"\x1e[]",
        b"\x1e{",
        b"\x1e" + b"[" * 5_000,
        b"\x1e" * 2_000,
        record(digests="many"),
        record(digests=[{"hashAlg": "sha256", "digest": "no hex"}]),
        record(digests=[{"hashAlg": "sha1", "digest": "00" * 20}]),
        record(digests=[{"hashAlg": "sha256", "digest": "00" * 32}]),
        record(content={}),
        record(content={"string": 5}),
        record(content={"string": "\ud800"}),
        record(content={"string": "enter-initrd"}),
        record() + b" " * MOST_BYTES,
    ],
    ids=range(15),
)
def test_what_is_no_log_is_malformed(log: bytes) -> None:
    """No records, too many, too long; and digests of something else than what they say."""
    assert reason(log) == "USERSPACE_LOG_MALFORMED"
