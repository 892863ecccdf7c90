"""`make bench`: evidence of boots, as the released agent sends it."""

from __future__ import annotations

import json
from itertools import islice

from bench import traffic
from bench.evidence import KEYS, Key, attest_body
from bench.traffic import Device, Traffic
from services.attestation.evidence.domain import judge
from services.attestation.evidence.wire import from_json, shaped
from tests.support.attestation import evidence_of


def test_the_evidence_is_judged_like_an_agents() -> None:
    """As consistent, each time with a nonce of its own; it has the parts that an agent's has."""
    key = Key(Key().pem)
    bodies = [json.loads(attest_body("device", key)) for _ in range(2)]
    nonces = set()
    for body in bodies:
        assert body["device_id"] == "device"
        evidence = body["evidence"]
        assert judge(from_json(shaped(evidence))).verdict == "SELF_CONSISTENT"
        assert len(evidence["quotes"]) == 2
        nonces.add(evidence["nonce"])
    assert len(nonces) == 2
    agents = evidence_of("agent-m1-grub")
    assert agents.keys() == bodies[0]["evidence"].keys()
    assert agents["pcrs"].keys() == bodies[0]["evidence"]["pcrs"].keys()
    assert abs(len(json.dumps(agents)) - len(json.dumps(bodies[0]["evidence"]))) < 100


def test_each_device_attests_with_its_own_key() -> None:
    """A key is one device's; so no more devices attest than there are keys."""
    devices = [Device(f"id-{number}", f"token-{number}") for number in range(3)]
    calls = list(islice(Traffic(devices, 1, "key").of(traffic.ATTEST), 6))
    assert {call.path for call in calls} == {b"/api/v1/devices/attest"}
    keys: dict[str, set[str]] = {}
    for call in calls:
        body = json.loads(call.body)
        assert call.token == f"token-{body['device_id'].removeprefix('id-')}"
        keys.setdefault(body["device_id"], set()).add(body["evidence"]["ak_public"])
    assert all(len(found) == 1 for found in keys.values())
    assert len(set.union(*keys.values())) == 3
    assert KEYS == 64
