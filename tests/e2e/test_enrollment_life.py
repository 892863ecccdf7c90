"""How devices come in and go out again, through the gateway."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import grpc
import httpx
import pytest

from evergreen.v1 import device_pb2, device_pb2_grpc
from tests.e2e.world import Org, assert_error, ok
from tests.fakes.agent import Agent, CallError, Hardware
from tests.support.stack import PATIENCE, Stack, until

ROUTES = ("policy", "state", "events", "attest")


def enroll(client: httpx.Client, key: str, serial: str) -> httpx.Response:
    """The released agent's call."""
    return client.post(
        "/api/v1/devices/enroll", json={"serial": serial, "model": "Book", "pre_shared_key": key}
    )


def status(org: Org, route: str, device_id: str, token: str) -> int:
    """What a device route answers to a token."""
    bodies = {
        "policy": {"current_version": ""},
        "state": {"device_id": device_id, "state": {"timestamp": "2026-11-24T08:00:00Z"}},
        "events": {"device_id": device_id, "events": []},
        "attest": {"device_id": device_id, "evidence": {}},
    }
    with org.stack.client(token) as client:
        return client.post(f"/api/v1/devices/{route}", json=bodies[route]).status_code


def reason(body: dict[str, object]) -> str:
    (first, *_) = body["details"]  # type: ignore[misc]  # the shape of every error
    return str(first["reason"])


def registration(org: Org, device_id: str) -> dict[str, object]:
    return ok(org.admin.get(f"/api/registrations/{device_id}"))


def test_the_first_starts_key_lets_a_device_in(stack: Stack) -> None:
    """What `bootstrap.json` says works at once."""
    agent = Agent(
        stack.url,
        pinned_key=Path(stack.bootstrap["policy_public_key_file"]),
        ca_file=stack.ca_file,
        pre_shared_key=stack.pre_shared_key,
        hardware=Hardware(serial=f"FIRST-{uuid4().hex[:8]}"),
    )
    agent.enroll()
    agent.report_state()
    assert stack.pre_shared_key == f"default:{stack.bootstrap['enrollment_secret']}"


def test_a_device_waits_for_approval(stack: Stack, org: Org) -> None:
    """403 with a delay while it waits; the same request gets in after the approval."""
    token = org.enrollment_token(requireApproval=True)
    with stack.client() as client:
        answer = enroll(client, token["preSharedKey"], "WAITS-1")
        assert reason(assert_error(answer, 403, "PERMISSION_DENIED")) == "AWAITING_APPROVAL"
        assert int(answer.headers["retry-after"]) >= 1
        (waiting,) = ok(org.auditor.get("/api/registrations", params={"status": "pending"}))[
            "registrations"
        ]
        assert waiting["serial"] == "WAITS-1"
        approved = ok(org.admin.post(f"/api/devices/{waiting['id']}/approve", json={}))
        assert approved["status"] == "active"
        found = ok(enroll(client, token["preSharedKey"], "WAITS-1"))
    assert found["device_id"] == waiting["id"]
    assert status(org, "state", found["device_id"], found["device_token"]) == 200


def test_a_rejected_device_stays_out(stack: Stack, org: Org) -> None:
    """Its agent is told so for as long as it asks."""
    token = org.enrollment_token(requireApproval=True)
    with stack.client() as client:
        enroll(client, token["preSharedKey"], "NO-1")
        (waiting,) = ok(org.admin.get("/api/registrations", params={"status": "pending"}))[
            "registrations"
        ]
        ok(org.admin.post(f"/api/devices/{waiting['id']}/reject", json={}))
        answer = enroll(client, token["preSharedKey"], "NO-1")
    assert reason(assert_error(answer, 403, "PERMISSION_DENIED")) == "DEVICE_REJECTED"


def test_wrong_keys_look_the_same_over_json_and_grpc(stack: Stack, org: Org) -> None:
    """An unknown code, a wrong secret and another organisation's secret cannot be told apart."""
    secret = org.enrollment_token()["secret"]
    keys = [f"{org.code}:{'x' * 43}", f"nowhere:{secret}", f"default:{secret}", "nonsense"]
    with stack.client() as client:
        bodies = [assert_error(enroll(client, key, "X-1"), 403) for key in keys]
    assert {reason(body) for body in bodies} == {"ENROLLMENT_REFUSED"}
    assert len({body["message"] for body in bodies}) == 1
    credentials = grpc.ssl_channel_credentials(Path(stack.ca_file).read_bytes())
    with grpc.secure_channel(f"localhost:{stack.port}", credentials) as channel:
        stub = device_pb2_grpc.DeviceServiceStub(channel)
        for key in keys:
            with pytest.raises(grpc.RpcError) as refused:
                stub.EnrollDevice(
                    device_pb2.EnrollDeviceRequest(serial="X-1", pre_shared_key=key), timeout=60
                )
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert refused.value.details() == bodies[0]["message"]


def test_grpc_and_json_give_the_same_device(stack: Stack, org: Org) -> None:
    """A native gRPC retry of a JSON enrollment is the same device, with the same policy."""
    org.publish()
    key = org.pre_shared_key
    until(
        lambda: ok(org.owner.get("/api/policies"))["policies"][0]["version"] == "1",
        PATIENCE,
        "no policy",
    )
    with stack.client() as client:
        found = ok(enroll(client, key, "BOTH-1"))
    credentials = grpc.ssl_channel_credentials(Path(stack.ca_file).read_bytes())
    with grpc.secure_channel(f"localhost:{stack.port}", credentials) as channel:
        answer = device_pb2_grpc.DeviceServiceStub(channel).EnrollDevice(
            device_pb2.EnrollDeviceRequest(serial="BOTH-1", model="Book", pre_shared_key=key),
            timeout=60,
        )
    assert answer.device_id == found["device_id"]
    assert answer.policy.version == found["policy"]["version"] == "1"
    assert len(answer.policy.signature) == 64
    assert len(answer.policy.statement.signature) == 64


def test_a_replaced_token_is_refused_on_every_route(stack: Stack, org: Org) -> None:
    """After a device enrolled again, within 5 s; its new token works on each."""
    with stack.client() as client:
        old = ok(enroll(client, org.pre_shared_key, "AGAIN-1"))
        device_id = old["device_id"]
        assert status(org, "policy", device_id, old["device_token"]) == 304
        assert enroll(client, org.pre_shared_key, "AGAIN-1").status_code == 409
        ok(org.admin.post(f"/api/devices/{device_id}/allow-reenrollment", json={}))
        new = ok(enroll(client, org.pre_shared_key, "AGAIN-1"))
        assert new["device_id"] == device_id
        # Its answer was lost: although the device called in its earlier life, this is a retry.
        assert ok(enroll(client, org.pre_shared_key, "AGAIN-1"))["device_id"] == device_id
    for route in ROUTES:
        until(
            lambda route=route: status(org, route, device_id, old["device_token"]) == 401,
            PATIENCE,
            f"{route} still takes the replaced token",
        )
        assert status(org, route, device_id, new["device_token"]) != 401


def test_a_lock_out_survives_restarts(stack: Stack, org: Org) -> None:
    """A service that was killed refuses the device from its first answer on."""
    with stack.client() as client:
        found = ok(enroll(client, org.pre_shared_key, "LOST-1"))
    device_id, token = found["device_id"], found["device_token"]
    assert status(org, "state", device_id, token) == 200
    ok(org.admin.post(f"/api/devices/{device_id}/decommission", json={}))
    for route in ROUTES:
        until(
            lambda route=route: status(org, route, device_id, token) == 401,
            PATIENCE,
            f"{route} still takes the device",
        )
    stack.signal("telemetry", signal.SIGKILL)
    seen = Counter[int]()

    def refused_again() -> bool:
        seen[status(org, "state", device_id, token)] += 1
        return seen[401] >= 10

    until(refused_again, PATIENCE, "the service did not come back", pause=0.1)
    # 429 is the gateway's, for a device that asks this often.
    assert set(seen) <= {401, 429, 503}, seen
    stack.until_ready()
    with stack.client() as client:
        answer = enroll(client, org.pre_shared_key, "LOST-1")
    assert reason(assert_error(answer, 403)) == "DEVICE_DECOMMISSIONED"


def test_a_prepared_device_becomes_active_by_its_first_call(org: Org) -> None:
    """The registry shows that it has started."""
    answer = org.admin.post("/api/registrations", json={"orgId": org.id, "serial": "ZT-7"})
    assert answer.status_code == 200
    assert answer.headers["content-disposition"] == 'attachment; filename="evergreen-ZT-7.json"'
    file = answer.json()
    assert registration(org, file["device_id"])["status"] == "prepared"
    assert status(org, "policy", file["device_id"], file["device_token"]) == 304
    until(
        lambda: registration(org, file["device_id"])["status"] == "active",
        PATIENCE,
        "the device's first call is not noticed",
    )


def test_a_school_boots_all_its_laptops_at_once(stack: Stack, org: Org) -> None:
    """Every one gets in, and each is counted once."""
    laptops, allowed = 300, 290
    token = org.enrollment_token(maxUses=allowed)

    def boot(number: int) -> tuple[int, str]:
        with stack.client() as client:
            for _ in range(20):
                answer = enroll(client, token["preSharedKey"], f"STORM-{number}")
                if answer.status_code not in (429, 503):
                    return answer.status_code, answer.json().get("device_id", "")
                # As an agent would, only sooner.
                time.sleep(0.2 * float(answer.headers.get("retry-after", "1")))
        return answer.status_code, ""

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(boot, range(laptops)))
    assert Counter(code for code, _ in answers) == {200: allowed, 403: laptops - allowed}
    assert len({device for code, device in answers if code == 200}) == allowed
    shown = ok(org.admin.get(f"/api/enrollment-tokens/{token['id']}"))
    assert (shown["uses"], shown["status"]) == (allowed, "used_up")


def test_secrets_are_in_no_log(stack: Stack, org: Org) -> None:
    """Neither enrollment secrets nor device tokens reach a log file or the audit log."""
    token = org.enrollment_token()
    with stack.client() as client:
        found = ok(enroll(client, token["preSharedKey"], "QUIET-1"))
        enroll(client, token["preSharedKey"] + "x", "QUIET-1")
        enroll(client, f"default:{token['secret']}", "QUIET-1")
    file = org.admin.post("/api/registrations", json={"orgId": org.id, "serial": "QUIET-2"}).json()

    def entries() -> list[dict[str, object]]:
        found: list[dict[str, object]] = ok(
            org.owner.get("/api/audit", params={"orgId": org.id, "pageSize": 500})
        )["entries"]
        return found

    until(
        lambda: (
            {"enrollment.device_enrolled", "enrollment.device_prepared"}
            <= {entry["action"] for entry in entries()}
        ),
        PATIENCE,
        "the audit log does not have it",
    )
    texts = [json.dumps(entries())]
    texts += [path.read_text(errors="replace") for path in (stack.home / "logs").glob("*")]
    for secret in (token["secret"], found["device_token"], file["device_token"]):
        assert not any(secret in text for text in texts)


def test_an_agent_that_is_refused_tries_again_by_itself(org: Org) -> None:
    """The released agent treats 409 and 403 as errors that may pass."""
    agent = org.agent(pre_shared_key=f"{org.code}:{'y' * 43}")
    with pytest.raises(CallError) as refused:
        agent.enroll()
    assert refused.value.status == 403
    assert not agent.enrolled
