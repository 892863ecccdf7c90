"""The corpus: evidence of real TPMs and of forgers, each with the verdict that it must come to."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any
from uuid import UUID

import pytest

from evergreen.v1 import device_pb2
from services.attestation.evidence.domain import judge
from services.attestation.evidence.wire import from_json, from_message
from services.attestation.grades import Verdict
from tests.services.attestation.evidence.mutations import decoded, mutations
from tests.support.attestation import CORPUS, World, evidence_of, world
from tests.support.paths import LONG

__all__ = ["world"]

_BY_THE_STORE = {"NONCE_REPLAYED", "AK_OF_ANOTHER_DEVICE"}
_MUTATIONS = 100_000 if LONG else 2_000
_SECONDS = 600 if LONG else 0


def expected(case: dict[str, Any], verdict: str, reasons: Any) -> tuple[str, str]:
    """The verdict and the reason, as a case states them."""
    return verdict, str(next(iter(reasons), "")) if verdict == "FAILED" else ""


def test_there_are_99_cases() -> None:
    """22 valid ones, and 77 that are changed or forged."""
    kinds = [case["kind"] for case in CORPUS.values()]
    assert (kinds.count("valid"), kinds.count("mutation")) == (22, 77)


@pytest.mark.parametrize("name", CORPUS)
def test_a_case_comes_to_its_verdict_by_itself(name: str) -> None:
    """In JSON and in gRPC, but for what other evidence decides."""
    case = CORPUS[name]
    wanted = (case["expect"]["verdict"], case["expect"]["reason"])
    if wanted[1] in _BY_THE_STORE:
        wanted = ("SELF_CONSISTENT", "")
    evidence = from_json(case["body"]["evidence"])
    found = judge(evidence)
    assert expected(case, found.verdict, found.reasons) == wanted
    if name == "quote-not-base64":
        return
    nonce, ak_public, quotes, pcrs = decoded(case["body"]["evidence"])
    message = device_pb2.AttestationEvidence(
        nonce=nonce,
        ak_public=ak_public,
        quotes=[device_pb2.AttestationQuote(version=v, quote=q, signature=s) for v, q, s in quotes],
        pcrs=pcrs,
    )
    assert from_message(message) == evidence


async def test_the_corpus_as_devices_send_it(world: World) -> None:
    """Each case's device sends it; what others sent before decides with it."""
    for name, case in CORPUS.items():
        # The cases share some evidence: each begins as the first.
        await world.sql("TRUNCATE attestation.seen_nonce, attestation.seen_key")
        for body in [*case["before"], case["body"]]:
            verdict, reasons = await world.attest(body["device_id"], body["evidence"])
        wanted = (case["expect"]["verdict"], case["expect"]["reason"])
        assert expected(case, verdict, reasons) == wanted, name
        if name == "agent-m8-unmeasured":
            assert "PCR_UNMEASURED" in reasons
        if verdict != "FAILED":
            assert {"DEVICE_CHOSE_NONCE", "AK_NOT_BOUND"} <= set(reasons), name
            stored = await world.sql(
                "SELECT verdict, reasons, bank, pcrs ->> '23' AS last FROM attestation.device"
                " WHERE device_id = $1",
                UUID(case["body"]["device_id"]),
            )
            assert (stored[0]["verdict"], stored[0]["reasons"]) == (verdict, reasons)
            assert len(stored[0]["last"]) == {"sha256": 64, "sha384": 96}[stored[0]["bank"]]


@pytest.mark.hypothesis
@pytest.mark.timeout(3_600)
def test_no_change_of_evidence_is_better_than_failed() -> None:
    """Whatever is changed in good evidence, a check finds it, and nothing raises.

    At length also for ten minutes, without a growth of memory.
    """
    seed, count = 1, 0
    until = time.monotonic() + _SECONDS
    grown: list[int] = []
    tracemalloc.start()
    try:
        while count < _MUTATIONS or time.monotonic() < until:
            for name, _, bad in mutations(seed, 2_000):
                found = judge(from_json(bad))
                assert found.verdict is Verdict.FAILED, (seed, name, found)
            count += 2_000
            seed += 1
            grown.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert grown[-1] < grown[len(grown) // 2] + (1 << 20)


async def test_changes_of_evidence_get_a_verdict_from_the_service(world: World) -> None:
    """200 and FAILED, also when good evidence was sent before; then good evidence counts again."""
    device = world.add()
    for name, _, bad in mutations(4711, 5_000 if LONG else 150):
        answer = await world.attest(device, bad)
        assert answer[0] == "FAILED", (name, answer)
    assert (await world.get(device)).verdict == "FAILED"
    assert (await world.attest(device, evidence_of("agent-m2-grub")))[0] == "SELF_CONSISTENT"
