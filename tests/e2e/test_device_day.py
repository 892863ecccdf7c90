"""A released device's day: enroll, pull, report, be retired."""

from __future__ import annotations

import copy
import csv
import json
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from contract.subjects import TELEMETRY
from tests.e2e.world import DOCUMENT, Org, assert_error, make_org, ok
from tests.fakes.agent import CallError, Hardware
from tests.fakes.agent.agent import default_state
from tests.support.events import check_event
from tests.support.stack import PATIENCE, Stack, until


def test_a_device_does_its_day(org: Org) -> None:
    """It enrolls with the policy in force, verifies it, and all that it reports is seen."""
    org.publish()
    agent = org.device()
    assert agent.version == "1"
    assert agent.document is not None
    assert agent.document["browser"]["homepage"] == DOCUMENT["browser"]["homepage"]
    assert agent.pull() is False

    agent.report_state()
    agent.record("app.installed", {"severity": "info", "message": "installed the calculator"})
    agent.record("app.install_failed", {"severity": "error", "message": "disk full"})
    assert agent.send_events() == 2

    (device,) = ok(org.owner.get("/api/devices"))["devices"]
    assert device["id"] == agent.device_id
    assert (device["status"], device["orgId"]) == ("online", org.id)
    assert device["model"] == agent.hardware.model
    detail = ok(org.owner.get(f"/api/devices/{agent.device_id}"))
    assert detail["serialNumber"] == agent.hardware.serial
    assert detail["installedApps"]
    events = ok(org.owner.get("/api/events", params={"deviceId": agent.device_id}))["events"]
    assert [e["action"] for e in events] == ["app.install_failed", "app.installed"]
    assert events[0]["severity"] == "error"
    until(
        lambda: ok(org.owner.get(f"/api/devices/{agent.device_id}"))["policyVersion"] == "1",
        PATIENCE,
        "the applied version is not shown",
    )

    made = ok(org.owner.post("/api/event-credentials", json={"name": "SIEM"}))
    messages = org.stack.events(made, TELEMETRY.name).until(bool)
    for message in messages:
        check_event(message)
    reported = [e for m in messages for e in m["data"]["events"]]
    assert {(e["deviceId"], e["type"]) for e in reported} == {
        (agent.device_id, "app.installed"),
        (agent.device_id, "app.install_failed"),
    }


def test_a_device_that_was_cut_off_for_a_day_tells_all_its_states(org: Org) -> None:
    """A call each, as fast as they are answered; a refusal would make it begin again."""
    org.publish()
    agent = org.device()
    yesterday = datetime.now(UTC) - timedelta(days=1)
    for number in range(288):
        at = yesterday + timedelta(minutes=5 * number)
        agent.states.add({"timestamp": at.isoformat(), **default_state()})
    agent.report_state()
    assert not agent.states.entries()


def test_without_a_policy_nothing_is_applied(org: Org) -> None:
    """An empty version at enrollment; polls answer 304 until something is published."""
    agent = org.device()
    assert agent.version == ""
    assert agent.applied == []
    assert agent.pull() is False
    org.publish()
    until(agent.pull, PATIENCE, "the published policy did not arrive")
    assert agent.version == "1"


def test_every_publish_is_a_higher_version(org: Org) -> None:
    """A device gets each new version, once, and never a lower one."""
    policy = org.publish()
    agent = org.device()
    bundle = copy.deepcopy(DOCUMENT)
    bundle["browser"]["homepage"] = "https://second.example"
    ok(org.admin.patch(f"/api/policies/{policy['id']}", json={"bundle": bundle}))
    assert agent.pull() is False, "an unpublished change was delivered"
    assert ok(org.admin.post(f"/api/policies/{policy['id']}/publish", json={}))["version"] == "2"
    until(agent.pull, PATIENCE, "the second version did not arrive")
    assert agent.version == "2"
    back = ok(org.admin.post(f"/api/policies/{policy['id']}/rollback", json={"version": "1"}))
    assert back["version"] == "3"
    until(agent.pull, PATIENCE, "the rollback did not arrive")
    assert agent.version == "3"
    assert agent.document is not None
    assert agent.document["browser"]["homepage"] == DOCUMENT["browser"]["homepage"]


def test_a_console_configuration_reaches_the_device(org: Org) -> None:
    """The editor's form is compiled to the device's document, and read back as it was written."""
    bundle = {
        "id": "",
        "name": "From the console",
        "version": "",
        "orgId": org.id,
        "configuration": {
            "apps": [{"id": "org.gnome.Maps", "target": "all"}],
            "updateChannel": "beta",
            "browser": {"homepageUrl": "https://console.example", "allowPopups": False},
            "network": {
                "wifiNetworks": [{"ssid": "School", "security": "wpa3", "passphrase": "a secret"}]
            },
            "security": {"diskEncryption": True, "lockAfterMinutes": 5},
        },
    }
    made = org.publish(bundle)
    where = f"/api/policies/{made['id']}"
    revealed = {"revealSecrets": "true"}
    assert ok(org.owner.get(where, params=revealed))["bundle"] == bundle
    assert "a secret" not in org.owner.get(where).text
    document = org.device().document
    assert document is not None
    assert document["updates"]["channel"] == "beta"
    assert document["browser"]["homepage"] == "https://console.example"


def test_a_zero_touch_device_starts_from_its_file(org: Org, tmp_path) -> None:  # type: ignore[no-untyped-def]  # pytest's own type
    """The prepared file holds identity, token and policy; the agent needs no pre-shared key."""
    org.publish()
    answer = org.admin.post(
        "/api/registrations", json={"orgId": org.id, "serial": "ZT-1", "model": "Book"}
    )
    assert answer.status_code == 200
    file = tmp_path / "enrollment.json"
    file.write_bytes(answer.content)
    assert set(json.loads(answer.content)) == {"device_id", "device_token", "policy"}
    agent = org.agent(enrollment_file=file, pre_shared_key="")
    assert agent.version == "1"
    assert agent.pull() is False
    agent.report_state()


def test_a_retry_of_an_enrollment_gives_the_same_device(org: Org) -> None:
    """The answer was lost on the way: the same request again is the same device."""
    hardware = Hardware(serial="RETRY-1")
    first, second = org.agent(hardware=hardware), org.agent(hardware=hardware)
    first.enroll()
    second.enroll()
    assert first.device_id == second.device_id
    second.report_state()


def test_a_known_serial_is_not_taken_over(org: Org) -> None:
    """Once the device has called, its serial enrolls again only with an admin's word."""
    hardware = Hardware(serial="KNOWN-1")
    old = org.device(hardware=hardware)
    old.pull()
    new = org.agent(hardware=hardware)
    with pytest.raises(CallError) as refused:
        new.enroll()
    assert refused.value.status == 409
    ok(org.admin.post(f"/api/devices/{old.device_id}/allow-reenrollment", json={}))
    new.enroll()
    assert new.device_id == old.device_id
    until(lambda: _status(old, "policy") == 401, PATIENCE, "the replaced token still works")
    assert new.pull() is False


def _status(agent, name: str) -> int:  # type: ignore[no-untyped-def]  # a probe of the agent's calls
    call = {"policy": agent.pull, "state": agent.report_state, "events": agent.send_events}[name]
    if name == "events":
        agent.record("x")
    try:
        call()
    except CallError as error:
        return error.status or 0
    return 200


def test_a_decommissioned_device_is_locked_out_everywhere(org: Org) -> None:
    """On every device route; it cannot enroll again either."""
    org.publish()
    agent = org.device()
    agent.report_state()
    ok(org.admin.post(f"/api/devices/{agent.device_id}/decommission", json={}))
    for route in ("policy", "state", "events"):
        until(lambda r=route: _status(agent, r) == 401, PATIENCE, f"{route} still works")
    (device,) = ok(org.owner.get("/api/devices", params={"status": "decommissioned"}))["devices"]
    assert device["id"] == agent.device_id
    again = org.agent(hardware=agent.hardware)
    with pytest.raises(CallError) as refused:
        again.enroll()
    assert refused.value.status in {403, 409}


def test_sync_has_the_device_apply_its_policy_again(org: Org) -> None:
    """The next poll answers 200 with the version that the device has."""
    org.publish()
    agent = org.device()
    assert agent.pull() is False
    ok(org.admin.post(f"/api/devices/{agent.device_id}/sync", json={}))
    until(agent.pull, PATIENCE, "the policy was not sent again")
    assert agent.version == "1"


def test_a_device_speaks_for_itself_only(stack: Stack, org: Org, root: httpx.Client) -> None:
    """Device A's token with device B's id is refused on every route that names one."""
    mine, sister = org.device(), org.device()
    stranger = make_org(stack, root).device()
    with stack.client(mine.device_token) as client:
        for other in (sister.device_id, stranger.device_id):
            for route, body in (
                ("state", {"state": {"timestamp": "2026-01-01T00:00:00Z"}}),
                ("events", {"events": []}),
                ("attest", {"evidence": {}}),
            ):
                answer = client.post(f"/api/v1/devices/{route}", json={"device_id": other, **body})
                assert_error(answer, 403, "PERMISSION_DENIED")


def test_an_agent_with_a_tpm_reports_no_failed_attestation(org: Org) -> None:
    """Its evidence is taken with 2xx, so that the next tick has nothing to try again."""
    agent = org.device()
    evidence = {
        "nonce": "AAAA",
        "ak_public": "AAAA",
        "quotes": [{"version": "2.0", "quote": "AAAA", "signature": "AAAA"}],
        "pcrs": {"0": "00"},
    }
    with org.stack.client(agent.device_token) as client:
        answer = client.post(
            "/api/v1/devices/attest", json={"device_id": agent.device_id, "evidence": evidence}
        )
    told = ok(answer)
    assert (told["verdict"], told["reasons"]) == ("FAILED", ["NONCE_SIZE"])


def test_fifty_thousand_events_come_in_one_body(org: Org) -> None:
    """An agent that was offline sends its whole queue; every event is stored."""
    agent = org.device()
    base = time.time_ns()
    for n in range(50_000):
        agent.events.add(
            {
                "id": str(base + n),
                "type": "bulk",
                "timestamp": "2026-03-01T08:00:00.123456789Z",
                "payload": {"n": n, "text": "x" * 40},
            }
        )
    assert agent.send_events() == 50_000
    assert _count(org, agent.device_id) == 50_000


def _count(org: Org, device_id: str) -> int:
    answer = org.owner.get(
        "/api/events/export", params={"deviceId": device_id, "format": "csv"}, timeout=60
    )
    assert answer.status_code == 200
    _, *rows = answer.text.splitlines()
    assert answer.text.endswith("\r\n")
    return len(rows)


@pytest.mark.parametrize(("list_", "key"), [("devices", "id"), ("events", "deviceId")])
def test_lists_come_as_files(org: Org, list_: str, key: str) -> None:
    """Through the gateway, in both forms, with the organisation's own rows and no others."""
    agent = org.device()
    agent.record("app.installed", {"severity": "info", "message": "x"})
    assert agent.send_events() == 1
    path = f"/api/{list_}/export"
    as_json = org.owner.get(path, params={"format": "json"})
    as_csv = org.owner.get(path, params={"format": "csv"})
    for answer, ending in ((as_json, "json"), (as_csv, "csv")):
        assert answer.status_code == 200
        name = f'attachment; filename="evergreen-{list_}.{ending}"'
        assert answer.headers["content-disposition"] == name
    assert [row[key] for row in as_json.json()] == [agent.device_id]
    head, *rows = csv.reader(as_csv.content.decode("utf-8-sig").splitlines())
    assert [dict(zip(head, row, strict=True))[key] for row in rows] == [agent.device_id]
    assert_error(org.owner.get(path, params={"format": "xml"}), 400)


def test_what_goes_well_leaves_no_line_in_the_gateways_log(stack: Stack, org: Org) -> None:
    """200,000 devices would fill the disk; only what failed on this side is logged."""
    agent = org.device()
    agent.pull()
    agent.report_state()
    ok(org.owner.get("/api/devices"))
    log = (stack.home / "logs" / "gateway.log").read_text()
    assert '"status":200' not in log


def test_one_event_of_millions_of_lists_is_quarantined(org: Org) -> None:
    """Within the time that the gateway gives it, so that the agent does not send it for ever."""
    agent = org.device()
    head = f'{{"device_id":"{agent.device_id}","events":[['.encode()
    body = head + b"[]," * ((62 << 20) // 3) + b"[]]]}"
    with org.stack.client(agent.device_token) as client:
        answer = client.post("/api/v1/devices/events", content=body, timeout=90)
    assert ok(answer) == {"accepted": 0, "duplicates": 0, "quarantined": 1}
