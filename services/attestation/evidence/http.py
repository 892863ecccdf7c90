"""Attestation's device route, in the released agent's JSON."""

from __future__ import annotations

import json
from functools import partial

from servicekit.call import Call
from servicekit.http.server import Answer, Route, parse_text_object
from servicekit.rpc.chain import require_own_device
from servicekit.times import format_rfc3339
from services.attestation.evidence.examiners import LARGE_BODY
from services.attestation.evidence.service import Attestations
from services.attestation.evidence.wire import from_json, shaped


def routes(attestations: Attestations) -> dict[str, Route]:
    """The route that devices attest by."""

    async def attest(call: Call, body: bytes) -> Answer:
        request = parse_text_object(body)
        require_own_device(call, request.get("device_id"))
        evidence = shaped(request.get("evidence"))
        answer = await attestations.attest(call, partial(from_json, evidence))
        told = {
            "verdict": answer.verdict,
            "reasons": answer.reasons,
            "attested_at": format_rfc3339(answer.attested_at),
        }
        return Answer(body=json.dumps(told, separators=(",", ":")).encode())

    return {
        "/api/v1/devices/attest": Route(
            "/evergreen.v1.DeviceService/AttestBoot",
            attest,
            room=attestations.room_for_body,
            room_from=LARGE_BODY,
        )
    }
