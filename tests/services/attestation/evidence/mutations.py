"""Random changes of evidence, the same for a seed: what is decoded is always other evidence."""

from __future__ import annotations

import base64
import copy
import random
from collections.abc import Iterator
from typing import Any

from tests.support.attestation import CORPUS

VALID = {
    name: case["body"]["evidence"]
    for name, case in CORPUS.items()
    if case["kind"] == "valid" and not case["before"]
}

_PARTS = ("nonce", "ak_public", "ak_public", "quote", "quote", "signature", "pcrs", "list")


def mutations(seed: int, count: int) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Names of good evidence, the evidence, and a change of it."""
    source = random.Random(seed)
    names = sorted(VALID)
    made = 0
    while made < count:
        name = source.choice(names)
        good = VALID[name]
        bad = copy.deepcopy(good)
        for _ in range(source.choice((1, 1, 1, 2, 5))):
            _change(source, bad)
        if decoded(bad) == decoded(good):
            continue
        made += 1
        yield name, good, bad


def decoded(evidence: dict[str, Any]) -> Any:
    """Evidence as its bytes."""
    return (
        base64.b64decode(evidence["nonce"]),
        base64.b64decode(evidence["ak_public"]),
        [
            (q["version"], base64.b64decode(q["quote"]), base64.b64decode(q["signature"]))
            for q in evidence["quotes"]
        ],
        evidence["pcrs"],
    )


def _change(source: random.Random, evidence: dict[str, Any]) -> None:
    part = source.choice(_PARTS)
    quotes = evidence["quotes"]
    if part in {"nonce", "ak_public"}:
        evidence[part] = _changed(source, evidence[part])
    elif part in {"quote", "signature"} and quotes:
        quote = source.choice(quotes)
        quote[part] = _changed(source, quote[part])
    elif part == "pcrs" and evidence["pcrs"]:
        _change_registers(source, evidence["pcrs"])
    elif part == "list" and quotes:
        # Without one of its quotes evidence may be good all the same, about less.
        match source.randrange(4):
            case 0:
                quotes.clear()
            case 1:
                quotes.append(copy.deepcopy(source.choice(quotes)))
            case 2:
                other = VALID[source.choice(sorted(VALID))]
                quotes[source.randrange(len(quotes))] = copy.deepcopy(other["quotes"][0])
            case _:
                source.choice(quotes)["version"] = source.choice(("", "2", "2.0 ", "1.2", "2.00"))


def _change_registers(source: random.Random, pcrs: dict[str, str]) -> None:
    name = source.choice(sorted(pcrs))
    match source.randrange(5):
        case 0:
            del pcrs[name]
        case 1:
            pcrs[source.choice(("24", "-1", "00", "+1", "", "٣", "1e0"))] = pcrs[name]
        case 2:
            pcrs[name] = pcrs[name][:-2]
        case 3:
            other = source.choice(sorted(pcrs))
            pcrs[name], pcrs[other] = pcrs[other], pcrs[name]
        case _:
            at = source.randrange(len(pcrs[name]))
            digit = source.choice("0123456789abcdefABG \u0660")
            pcrs[name] = pcrs[name][:at] + digit + pcrs[name][at + 1 :]


def _changed(source: random.Random, text: str) -> str:
    data = bytearray(base64.b64decode(text))
    at = source.randrange(len(data)) if data else 0
    match source.randrange(6) if data else 4:
        case 0 | 1:
            data[at] ^= 1 << source.randrange(8)
        case 2:
            data[at] = source.randrange(256)
        case 3:
            del data[at : at + source.choice((1, 2, 16))]
        case 4:
            data[at:at] = source.randbytes(source.choice((1, 2, 32, 700)))
        case _:
            other = VALID[source.choice(sorted(VALID))]
            data = bytearray(
                base64.b64decode(source.choice((other["ak_public"], other["quotes"][0]["quote"])))
            )
    return base64.b64encode(data).decode()
