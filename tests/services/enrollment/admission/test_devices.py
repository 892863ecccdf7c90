"""Devices that enroll, over the HTTP route and over gRPC."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import grpc
import pytest

from evergreen.v1 import device_pb2, enrollment_pb2
from tests.support import callers
from tests.support.enrollment import ENVELOPE, ORG, OTHER, Enrollment, hardware, reason, service

__all__ = ["service"]


def _revoke(token_id: str) -> enrollment_pb2.RevokeEnrollmentTokenRequest:
    return enrollment_pb2.RevokeEnrollmentTokenRequest(id=token_id)


async def test_a_device_gets_its_identity_its_token_and_the_policys_exact_bytes(
    service: Enrollment,
) -> None:
    """The answer is the contract's, and the policy's bytes are untouched."""
    token = await service.token()
    answer = await service.enroll(token.pre_shared_key)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert list(found) == ["device_id", "device_token", "policy"]
    assert found["device_token"] == f"{found['device_id']}/{ORG.id}/1/1"
    assert answer.content.endswith(b'"policy":' + ENVELOPE + b"}")
    registration = await service.registration(found["device_id"])
    assert registration.status == "active"
    assert registration.org_id == str(ORG.id)
    assert registration.serial == "SN-1"
    assert registration.model == "Framework 12"
    assert registration.cpu_model == "i3"
    assert registration.cpu_count == 6
    assert registration.has_tpm
    assert registration.enrollment_token_id == token.id
    assert registration.HasField("enrolled_at")


async def test_enrolling_is_told_in_an_event_of_the_device(service: Enrollment) -> None:
    """The event names the device as its actor, and where it called from."""
    token = await service.token()
    found = await service.enrolled(token.pre_shared_key)
    (event,) = await service.events("device_enrolled")
    assert event["actor"] == f"device:{found['device_id']}"
    assert event["actorId"] == found["device_id"]
    assert event["resource"] == f"devices/{found['device_id']}"
    assert event["tenantId"] == str(ORG.id)
    assert event["sourceIp"] == "192.0.2.9"
    assert event["requestId"]
    assert event["before"] is None
    assert event["after"]["serial"] == "SN-1"
    assert event["after"]["status"] == "active"


async def test_without_a_policy_the_envelope_is_empty_and_whole(service: Enrollment) -> None:
    """An empty version says that there is no policy yet; the document has all its parts."""
    service.neighbours.policy.envelope = b""
    token = await service.token()
    policy = (await service.enrolled(token.pre_shared_key))["policy"]
    assert policy["version"] == ""
    assert policy["signature"] == ""
    assert list(policy["policy"]) == ["apps", "updates", "browser", "network", "security"]
    assert policy["policy"]["apps"] == {"required": []}


async def test_grpc_answers_the_same(service: Enrollment) -> None:
    """Native gRPC gives the same device, with the envelope as a message."""
    token = await service.token()
    found = await service.enrolled(token.pre_shared_key)
    answer = await service.devices.EnrollDevice(
        device_pb2.EnrollDeviceRequest(
            serial="SN-1", pre_shared_key=token.pre_shared_key, **hardware()
        ),
        metadata=callers.anonymous(),
    )
    assert answer.device_id == found["device_id"]
    assert answer.policy.version == "7"
    assert answer.policy.signature == b"sig"
    assert answer.policy.policy.updates.channel == "a<b"
    # The second signature is gRPC's alone.
    assert answer.policy.statement.payload == b"exact"
    assert "statement" not in found["policy"]
    service.neighbours.policy.envelope = b""
    request = device_pb2.EnrollDeviceRequest(serial="SN-2", pre_shared_key=token.pre_shared_key)
    answer = await service.devices.EnrollDevice(request, metadata=callers.anonymous())
    assert (answer.policy.version, answer.policy.HasField("statement")) == ("", False)


async def test_a_retry_gives_the_same_device_and_spends_nothing(service: Enrollment) -> None:
    """The answer may be lost any number of times; the last use is enough for all retries."""
    token = await service.token(max_uses=1)
    answers = [await service.enrolled(token.pre_shared_key) for _ in range(3)]
    assert len({a["device_id"] for a in answers}) == 1
    assert len({a["device_token"] for a in answers}) == 3
    assert all("/1/" in a["device_token"] for a in answers)
    assert len(await service.events("device_enrolled")) == 1
    (row,) = await service.sql("SELECT uses, last_used_at FROM enrollment.token")
    assert row["uses"] == 1
    assert row["last_used_at"] is not None


async def test_blanks_around_serial_and_key_do_not_count(service: Enrollment) -> None:
    """Firmware pads serial numbers, and copying adds line ends."""
    token = await service.token()
    found = await service.enrolled(token.pre_shared_key, "SN-1  ")
    again = await service.enrolled(f" {token.pre_shared_key} ", "  SN-1")
    assert again["device_id"] == found["device_id"]
    assert (await service.registration(found["device_id"])).serial == "SN-1"


async def test_other_hardware_with_a_known_serial_takes_nothing_over(service: Enrollment) -> None:
    """A retry is the same in every field; anything else is refused and recorded."""
    token = await service.token()
    found = await service.enrolled(token.pre_shared_key)
    changes: list[dict[str, Any]] = [
        {"model": "Other"},
        {"cpu_model": "i5"},
        {"cpu_count": 4},
        {"total_ram_bytes": 1},
        {"has_tpm": False},
    ]
    for more in changes:
        answer = await service.enroll(token.pre_shared_key, **more)
        assert answer.status_code == 409, more
        assert answer.json()["status"] == "ALREADY_EXISTS"
        assert reason(answer) == "DEVICE_ALREADY_ENROLLED"
        assert found["device_id"] not in answer.text
    registration = await service.registration(found["device_id"])
    assert registration.HasField("reenrollment_refused_at")
    assert registration.model == "Framework 12"


async def test_another_token_takes_nothing_over(service: Enrollment) -> None:
    """The same request with another token of the organisation is no retry."""
    first, second = await service.token(), await service.token()
    await service.enrolled(first.pre_shared_key)
    answer = await service.enroll(second.pre_shared_key)
    assert reason(answer) == "DEVICE_ALREADY_ENROLLED"
    (row,) = await service.sql("SELECT sum(uses) AS uses FROM enrollment.token")
    assert row["uses"] == 1


async def test_a_device_that_has_called_is_not_given_away(service: Enrollment) -> None:
    """Once the token was used, even the identical request is refused."""
    token = await service.token()
    found = await service.enrolled(token.pre_shared_key)
    service.called(found["device_id"])
    answer = await service.enroll(token.pre_shared_key)
    assert answer.status_code == 409
    assert reason(answer) == "DEVICE_ALREADY_ENROLLED"
    assert (await service.registration(found["device_id"])).HasField("reenrollment_refused_at")


async def test_a_looping_agent_does_not_fill_the_log(service: Enrollment) -> None:
    """Refused attempts are told at most once an hour, though each is noted."""
    token = await service.token()
    found = await service.enrolled(token.pre_shared_key)
    for _ in range(3):
        assert (await service.enroll(token.pre_shared_key, model="x")).status_code == 409
    service.called(found["device_id"])
    assert (await service.enroll(token.pre_shared_key)).status_code == 409
    (event,) = await service.events("reenrollment_refused")
    assert event["actor"] == "anonymous"
    assert event["resource"] == f"devices/{found['device_id']}"
    await service.sql(
        "UPDATE enrollment.device SET refusal_told_at = refusal_told_at - interval '61 minutes'"
    )
    assert (await service.enroll(token.pre_shared_key)).status_code == 409
    assert len(await service.events("reenrollment_refused")) == 2


async def test_an_allowed_device_enrolls_again_once_with_its_old_identity(
    service: Enrollment,
) -> None:
    """The administrator's word gives the same id with newer tokens, and a retry of that too."""
    token = await service.token(max_uses=1)
    found = await service.enrolled(token.pre_shared_key)
    service.called(found["device_id"])
    assert (await service.act("AllowReenrollment", found["device_id"])).HasField(
        "reenrollment_allowed_until"
    )
    again = await service.enrolled(token.pre_shared_key, total_ram_bytes=1)
    assert again["device_id"] == found["device_id"]
    assert again["device_token"].split("/")[2] == "2"
    # Its answer was lost: the retry is known although the device called in its earlier life.
    repeated = await service.enrolled(token.pre_shared_key, total_ram_bytes=1)
    assert repeated["device_token"].split("/")[2] == "2"
    service.called(found["device_id"], version=2)
    assert (await service.enroll(token.pre_shared_key, total_ram_bytes=1)).status_code == 409
    registration = await service.registration(found["device_id"])
    assert not registration.HasField("reenrollment_allowed_until")
    (event,) = await service.events("device_reenrolled")
    assert event["before"]["tokenVersion"] == 1
    assert event["after"]["tokenVersion"] == 2
    # The token had admitted the device before; it is not one more.
    (row,) = await service.sql("SELECT uses FROM enrollment.token")
    assert row["uses"] == 1


async def test_the_permission_to_enroll_again_ends(service: Enrollment) -> None:
    """After 24 hours the administrator has to be asked again."""
    token = await service.token()
    found = await service.enrolled(token.pre_shared_key)
    service.called(found["device_id"])
    await service.act("AllowReenrollment", found["device_id"])
    await service.sql("UPDATE enrollment.device SET reenrollment_allowed_until = now()")
    assert (await service.enroll(token.pre_shared_key)).status_code == 409


async def test_wrong_keys_all_look_the_same(service: Enrollment) -> None:
    """Nobody learns which codes exist, nor that a secret belongs to somebody else."""
    token = await service.token()
    other = await service.token(OTHER)
    keys = [
        f"school:{'x' * 43}",
        f"nowhere:{'x' * 43}",
        f"nowhere:{token.secret}",
        f"other:{token.secret}",
        f"school:{other.secret}",
        f"School:{token.secret}",
        token.secret,
        f":{token.secret}",
        "school:",
        f"school:{token.secret}x",
        f"school:{token.secret[:-1]}",
        "root:" + token.secret,
    ]
    answers = [await service.enroll(key) for key in keys]
    assert {a.status_code for a in answers} == {403}
    bodies = {json.dumps({k: v for k, v in a.json().items() if k != "requestId"}) for a in answers}
    assert len(bodies) == 1
    assert {reason(a) for a in answers} == {"ENROLLMENT_REFUSED"}
    assert await service.sql("SELECT FROM enrollment.device") == []


async def test_a_closed_token_says_why(service: Enrollment) -> None:
    """Whoever holds the secret may know why it does not work."""
    revoked, expired = await service.token(), await service.token()
    used_up, listed = await service.token(max_uses=1), await service.token(serials=["SN-9"])
    await service.tokens.RevokeEnrollmentToken(_revoke(revoked.id), metadata=service.admin)
    await service.sql(
        "UPDATE enrollment.token SET expires_at = now() WHERE id::text = $1", expired.id
    )
    await service.enrolled(used_up.pre_shared_key, "SN-0")
    for token, expected in (
        (revoked, "TOKEN_REVOKED"),
        (expired, "TOKEN_EXPIRED"),
        (used_up, "TOKEN_USED_UP"),
        (listed, "SERIAL_NOT_LISTED"),
    ):
        answer = await service.enroll(token.pre_shared_key)
        assert (answer.status_code, reason(answer)) == (403, expected)
    assert await service.enrolled(listed.pre_shared_key, " SN-9")


async def test_a_retry_survives_expiry_but_not_revocation(service: Enrollment) -> None:
    """An admitted device gets its answer; a leaked secret that was revoked gets nothing."""
    token = await service.token()
    await service.enrolled(token.pre_shared_key)
    await service.sql("UPDATE enrollment.token SET expires_at = now()")
    await service.enrolled(token.pre_shared_key)
    await service.tokens.RevokeEnrollmentToken(_revoke(token.id), metadata=service.admin)
    assert reason(await service.enroll(token.pre_shared_key)) == "TOKEN_REVOKED"


async def test_uses_are_never_exceeded(service: Enrollment) -> None:
    """Forty devices at once with a token for ten: ten get in."""
    token = await service.token(max_uses=10)
    answers = await asyncio.gather(
        *(service.enroll(token.pre_shared_key, f"SN-{n}") for n in range(40))
    )
    assert Counter(a.status_code for a in answers) == {200: 10, 403: 30}
    (row,) = await service.sql("SELECT uses FROM enrollment.token")
    assert row["uses"] == 10
    assert len(await service.sql("SELECT FROM enrollment.device")) == 10


async def test_of_two_devices_with_one_serial_exactly_one_wins(service: Enrollment) -> None:
    """Different machines race for a serial number; the others are refused."""
    token = await service.token()
    answers = await asyncio.gather(
        *(service.enroll(token.pre_shared_key, model=f"model {n}") for n in range(20))
    )
    assert Counter(a.status_code for a in answers) == {200: 1, 409: 19}
    assert len(await service.sql("SELECT FROM enrollment.device")) == 1
    assert len(await service.events("reenrollment_refused")) == 1


async def test_one_serial_in_two_organisations_is_two_devices(service: Enrollment) -> None:
    """Organisations do not learn of each other's devices by serial numbers."""
    first, second = await service.token(), await service.token(OTHER)
    one = await service.enrolled(first.pre_shared_key)
    two = await service.enrolled(second.pre_shared_key)
    assert one["device_id"] != two["device_id"]


async def test_the_same_request_many_times_at_once_is_one_device(service: Enrollment) -> None:
    """An impatient agent changes nothing."""
    token = await service.token(max_uses=1)
    answers = await asyncio.gather(*(service.enrolled(token.pre_shared_key) for _ in range(20)))
    assert len({a["device_id"] for a in answers}) == 1


@pytest.mark.parametrize("away", ["identity", "policy"])
async def test_a_neighbour_that_is_away_delays_and_loses_nothing(
    service: Enrollment, away: str
) -> None:
    """503 with a delay; the retry finds the same device, and no second use is spent."""
    token = await service.token(max_uses=1)
    getattr(service.neighbours, away).down = True
    answer = await service.enroll(token.pre_shared_key)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    getattr(service.neighbours, away).down = False
    found = await service.enrolled(token.pre_shared_key)
    (row,) = await service.sql("SELECT id FROM enrollment.device")
    assert found["device_id"] == str(row["id"])


async def test_a_device_waits_for_approval_and_then_gets_in_by_itself(service: Enrollment) -> None:
    """The agent repeats its request; after the approval it succeeds with the same device."""
    token = await service.token(require_approval=True, max_uses=1)
    answer = await service.enroll(token.pre_shared_key)
    assert (answer.status_code, reason(answer)) == (403, "AWAITING_APPROVAL")
    assert int(answer.headers["retry-after"]) >= 1
    assert reason(await service.enroll(token.pre_shared_key)) == "AWAITING_APPROVAL"
    assert reason(await service.enroll(token.pre_shared_key, model="x")) == (
        "DEVICE_ALREADY_ENROLLED"
    )
    (row,) = await service.sql("SELECT id, status, enrolled_at FROM enrollment.device")
    device_id = str(row["id"])
    assert (row["status"], row["enrolled_at"]) == ("pending", None)
    (event,) = await service.events("device_pending")
    assert event["actor"] == f"device:{device_id}"
    approved = await service.act("ApproveDevice", device_id)
    assert approved.status == "active"
    assert approved.HasField("enrolled_at")
    assert (await service.enrolled(token.pre_shared_key))["device_id"] == device_id
    (event,) = await service.events("device_approved")
    assert event["actor"] == "admin@school.example"
    assert event["before"]["status"] == "pending"
    assert event["after"]["status"] == "active"


async def test_a_rejected_device_stays_out_until_it_is_allowed(service: Enrollment) -> None:
    """Rejection is final for the agent; an administrator can change it."""
    token = await service.token(require_approval=True)
    await service.enroll(token.pre_shared_key)
    (row,) = await service.sql("SELECT id FROM enrollment.device")
    assert (await service.act("RejectDevice", str(row["id"]))).status == "rejected"
    answer = await service.enroll(token.pre_shared_key)
    assert (answer.status_code, reason(answer)) == (403, "DEVICE_REJECTED")
    await service.act("AllowReenrollment", str(row["id"]))
    found = await service.enrolled(token.pre_shared_key)
    assert found["device_id"] == str(row["id"])
    assert found["device_token"].split("/")[2] == "2"


async def test_a_decommissioned_device_stays_out_until_it_is_allowed(service: Enrollment) -> None:
    """Also the identical request of a device that never called."""
    token = await service.token()
    found = await service.enrolled(token.pre_shared_key)
    await service.act("DecommissionDevice", found["device_id"])
    answer = await service.enroll(token.pre_shared_key)
    assert (answer.status_code, reason(answer)) == (403, "DEVICE_DECOMMISSIONED")
    await service.act("AllowReenrollment", found["device_id"])
    again = await service.enrolled(token.pre_shared_key)
    assert again["device_id"] == found["device_id"]
    assert again["device_token"].split("/")[2] == "2"
    registration = await service.registration(found["device_id"])
    assert registration.status == "active"
    assert not registration.HasField("decommissioned_at")


async def test_it_waits_when_the_database_is_away(service: Enrollment) -> None:
    """No false success, and recovery by itself."""
    token = await service.token()
    await service.sql("ALTER ROLE evergreen_enrollment NOLOGIN")
    try:
        await service.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE usename = 'evergreen_enrollment'"
        )
        answer = await service.enroll(token.pre_shared_key)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
    finally:
        await service.sql("ALTER ROLE evergreen_enrollment LOGIN")
    await service.enrolled(token.pre_shared_key)


async def test_secrets_are_nowhere(
    service: Enrollment, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the secret nor its hash is in any event or log line, nor the secret in a table."""
    token = await service.token(require_approval=True)
    await service.enroll(token.pre_shared_key)
    await service.enroll(token.pre_shared_key, model="other")
    await service.enroll(f"other:{token.secret}")
    await service.tokens.RevokeEnrollmentToken(_revoke(token.id), metadata=service.admin)
    await service.enroll(token.pre_shared_key)
    (row,) = await service.sql("SELECT encode(secret_hash, 'hex') AS hash FROM enrollment.token")
    kept = []
    for table in ("token", "token_serial", "device", "outbox"):
        kept += await service.sql(f"SELECT t::text AS line FROM enrollment.{table} t")
    assert kept
    told = [json.dumps(event) for event in await service.events()]
    out, err = capfd.readouterr()
    for text in (*told, out, err, caplog.text):
        assert token.secret not in text
        assert row["hash"] not in text
    assert all(token.secret not in line["line"] for line in kept)


async def test_no_token_of_the_caller_is_looked_at(service: Enrollment) -> None:
    """EnrollDevice is public: a bearer token of any kind changes nothing."""
    token = await service.token()
    answer = await service.devices.EnrollDevice(
        device_pb2.EnrollDeviceRequest(serial="SN-1", pre_shared_key=token.pre_shared_key),
        metadata=callers.user(OTHER.id),
    )
    (event,) = await service.events("device_enrolled")
    assert event["actor"] == f"device:{answer.device_id}"


async def test_the_other_device_calls_are_not_served_here(service: Enrollment) -> None:
    """The rest of DeviceService lives in other contexts."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await service.devices.PullPolicy(device_pb2.PullPolicyRequest())
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


BAD_BODIES: list[tuple[str, dict[str, Any]]] = [
    ("serial", {"serial": "x" * 129}),
    ("serial", {"serial": 7}),
    ("serial", {"serial": ["SN-1"]}),
    ("serial", {"serial": "\ud800"}),
    ("model", {"model": "x" * 257}),
    ("model", {"model": 7}),
    ("cpu_model", {"cpu_model": "x" * 257}),
    ("cpu_model", {"cpu_model": {}}),
    ("cpu_count", {"cpu_count": -1}),
    ("cpu_count", {"cpu_count": 65_537}),
    ("cpu_count", {"cpu_count": 1 << 40}),
    ("cpu_count", {"cpu_count": 1.5}),
    ("cpu_count", {"cpu_count": "many"}),
    ("total_ram_bytes", {"total_ram_bytes": -1}),
    ("total_ram_bytes", {"total_ram_bytes": 1 << 64}),
    ("total_ram_bytes", {"total_ram_bytes": True}),
    ("has_tpm", {"has_tpm": "yes"}),
    ("has_tpm", {"has_tpm": 1}),
    ("pre_shared_key", {"pre_shared_key": None}),
    ("pre_shared_key", {"pre_shared_key": ""}),
    ("pre_shared_key", {"pre_shared_key": "ab"}),
    ("pre_shared_key", {"pre_shared_key": "x" * 513}),
    ("pre_shared_key", {"pre_shared_key": "a:b\x00"}),
    ("pre_shared_key", {"pre_shared_key": 1}),
]
BAD_TEXTS = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"7",
    b'"x"',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"serial":NaN}',
]


async def test_bad_input_names_its_field(service: Enrollment) -> None:
    """A 4xx that names the field, in the agent's snake_case, for every field and kind of harm."""
    token = await service.token()
    for field, more in BAD_BODIES:
        body = {"serial": "SN-1", "pre_shared_key": token.pre_shared_key, **hardware(), **more}
        answer = await service.post(json.dumps(body).encode())
        assert answer.status_code == 400, (more, answer.text)
        error = answer.json()
        assert error["status"] == "INVALID_ARGUMENT"
        assert error["error"] == error["message"]
        broken = error["details"][1]["fieldViolations"]
        assert field in [violation["field"] for violation in broken], more
    for text in BAD_TEXTS:
        answer = await service.post(text)
        assert answer.status_code == 400, text[:20]
        assert answer.json()["details"][1]["fieldViolations"]
    assert await service.sql("SELECT FROM enrollment.device") == []


async def test_extremes_are_accepted(service: Enrollment) -> None:
    """The largest values of every field are stored as they are; unknown fields are ignored."""
    token = await service.token()
    serial = "\N{SNOWMAN}" * 128
    found = await service.enrolled(
        token.pre_shared_key,
        serial,
        model="\N{PILE OF POO}" * 256,
        cpu_count=65_536,
        total_ram_bytes=(1 << 64) - 1,
        unknown={"deep": [1]},
    )
    again = await service.enrolled(
        token.pre_shared_key,
        serial,
        model="\N{PILE OF POO}" * 256,
        cpu_count=65_536,
        total_ram_bytes=(1 << 64) - 1,
    )
    assert again["device_id"] == found["device_id"]
    (row,) = await service.sql("SELECT serial, total_ram_bytes FROM enrollment.device")
    assert (row["serial"], int(row["total_ram_bytes"])) == (serial, (1 << 64) - 1)
