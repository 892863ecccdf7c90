"""Which functions of a libcrypto are called, by the kernel's uprobes: no program is changed by it.

A probe lies on each exported function of the families that compute, or fetch what computes, and
counts for all processes that have loaded that file. It needs root, and a kernel with uprobes.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

_TRACING: Final = Path("/sys/kernel/tracing")
_GROUP: Final = "evergreen_libcrypto"
_NAMES: Final = "evergreen_names"
_RECORD: Final = _TRACING / "instances/evergreen"
"""What is fetched is recorded apart: the many calls that are only counted would write over it."""
_RECORD_KIB: Final = 16_384
_FETCHES: Final = (
    "EVP_ASYM_CIPHER_fetch",
    "EVP_CIPHER_fetch",
    "EVP_KDF_fetch",
    "EVP_KEM_fetch",
    "EVP_KEYEXCH_fetch",
    "EVP_MAC_fetch",
    "EVP_MD_fetch",
    "EVP_RAND_fetch",
    "EVP_SIGNATURE_fetch",
)
"""The functions that ask for an algorithm by its name, their second argument."""
COMPUTES: Final = re.compile(
    r"(MD2|MD4|MD5|SHA1|SHA224|SHA256|SHA384|SHA512|RIPEMD160|WHIRLPOOL|HMAC|CMAC|AES|Camellia|SEED"
    r"|DES|BF|CAST|RC2|RC4|RC5|IDEA|RSA|DSA|DH|ECDH|ECDSA|EC_KEY|EC_POINT|SRP|RAND|PKCS5|SCRYPT)(_|$)"
    r"|CRYPTO_(gcm128|ccm128|cbc128|ctr128|cfb128|ofb128|xts128|ocb128|cts128|128)"
    r"|BN_(.*rand|.*prime|mod_(exp|inverse|sqrt)|exp|gcd|BLINDING)|EVP_PBE_|EVP_BytesToKey"
)
"""Functions from before there were providers: some compute by themselves, others hand on."""
_ASKS: Final = re.compile(
    r"EVP_(Q_|Digest|Encrypt|Decrypt|Cipher|Sign|Verify|MAC_init|KDF_derive|RAND_generate"
    r"|PKEY_(derive|sign|verify|keygen|generate|encrypt|decrypt|encapsulate|Q_keygen|fromdata))"
)
"""Those that ask providers for the work."""
_SYMBOL: Final = re.compile(r"^([0-9a-f]+) T (\w+)(?:@.*)?$", re.M)
_SEGMENT: Final = re.compile(r"^ +LOAD +0x([0-9a-f]+) 0x([0-9a-f]+) \S+ 0x([0-9a-f]+)", re.M)
_ASKED: Final = re.compile(r"-(\d+) .* (\w+_fetch|\w+_answer): \(.*?(?:name=\"(.*)\"|ret=0x(\w+))")


@dataclass
class Calls:
    """What was called while the block ran."""

    functions: Counter[str] = field(default_factory=Counter)
    """By name, how often."""
    algorithms: dict[str, set[str]] = field(default_factory=dict)
    """By the function that fetches them: those that were asked for and found."""


@contextmanager
def counted(library: Path) -> Iterator[Calls]:
    """Counts until the block ends.

    Skips the test where the kernel has no uprobes.
    """
    if not (_TRACING / "uprobe_events").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", _TRACING], check=False)
    if not (_TRACING / "uprobe_events").exists():
        pytest.skip("this kernel has no uprobes, or does not let this user have them")
    calls = Calls()
    functions = _functions(library)
    _clear()
    try:
        _define([f"p:{_GROUP}/{name} {library}:{place:#x}" for name, place in functions.items()])
        _define(
            line
            for name in _FETCHES
            for line in (
                f"p:{_NAMES}/{name} {library}:{functions[name]:#x} name=+0(%si):string",
                f"r:{_NAMES}/{name.removesuffix('fetch')}answer {library}:{functions[name]:#x}"
                " ret=$retval",
            )
        )
        _RECORD.mkdir()
        (_RECORD / "buffer_size_kb").write_text(str(_RECORD_KIB))
        enabled = (_TRACING / f"events/{_GROUP}/enable", _RECORD / f"events/{_NAMES}/enable")
        for enable in enabled:
            enable.write_text("1")
        yield calls
        for enable in enabled:
            enable.write_text("0")
        for statistics in _RECORD.glob("per_cpu/cpu*/stats"):
            assert "\noverrun: 0\n" in statistics.read_text(), "more was fetched than is recorded"
        _read(calls, set(functions))
    finally:
        _clear()


def _functions(library: Path) -> dict[str, int]:
    """Where each exported function begins in the file."""
    said = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    ).stdout
    headers = subprocess.run(
        ["readelf", "-lW", library], capture_output=True, text=True, check=True
    ).stdout
    segments = [tuple(int(part, 16) for part in found) for found in _SEGMENT.findall(headers)]

    def place(address: int) -> int:
        return next(
            address - start + offset
            for offset, start, size in segments
            if start <= address < start + size
        )

    return {
        name: place(int(address, 16))
        for address, name in _SYMBOL.findall(said)
        if COMPUTES.match(name) or _ASKS.match(name) or name in _FETCHES
    }


def _define(lines: Iterator[str] | list[str]) -> None:
    """One write for each: the kernel reads a line at a time."""
    descriptor = os.open(_TRACING / "uprobe_events", os.O_WRONLY | os.O_APPEND)
    try:
        for line in lines:
            os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def _clear() -> None:
    if _RECORD.exists():
        _RECORD.rmdir()
    enable = _TRACING / f"events/{_GROUP}/enable"
    if enable.exists():
        enable.write_text("0")
    names = re.findall(
        rf"^[pr]\d*:((?:{_GROUP}|{_NAMES})/\w+)", (_TRACING / "uprobe_events").read_text(), re.M
    )
    _define([f"-:{name}" for name in names])


def _read(calls: Calls, known: set[str]) -> None:
    for line in (_TRACING / "uprobe_profile").read_text().splitlines():
        *_, name, hits = line.split()
        if name in known and int(hits) and not name.endswith("_answer"):
            calls.functions[name] = max(calls.functions[name], int(hits))
    asked: dict[str, tuple[str, str]] = {}
    for thread, event, name, returned in _ASKED.findall((_RECORD / "trace").read_text()):
        if event.endswith("_fetch"):
            asked[thread] = event, name
        elif thread in asked:
            function, wanted = asked.pop(thread)
            if int(returned, 16):
                calls.algorithms.setdefault(function, set()).add(wanted)
