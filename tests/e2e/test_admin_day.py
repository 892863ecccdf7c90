"""An administrator's day, and the audit log of it: every action, and none that did not happen."""

from __future__ import annotations

import copy
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.access import Audience
from tests.e2e.rpcs import rpcs
from tests.e2e.test_attestation import bind
from tests.e2e.world import DOCUMENT, PASSWORD, Org, assert_error, make_org, ok
from tests.fakes.agent import Agent, CallError
from tests.fakes.tpm import Maker, Tpm
from tests.support.events import check_event
from tests.support.stack import PATIENCE, Stack, until


class Recorder:
    """Does what it is told as one admin, and notes what the audit log must say of it."""

    def __init__(self, client: httpx.Client, actor: str) -> None:
        self.client = client
        self.actor = actor
        self.wanted: Counter[tuple[str, str, str]] = Counter()
        self.secrets: list[str] = []

    def do(self, action: str, resource: str, method: str, path: str, **body: Any) -> dict[str, Any]:
        """Calls, and expects an entry; `{id}` in the resource is the answer's id."""
        answer = ok(self.client.request(method, path, json=body))
        self.wanted[self.actor, action, resource.replace("{id}", str(answer.get("id", "")))] += 1
        return answer


def entries_of(org: Org) -> list[dict[str, Any]]:
    """All entries of an organisation, newest first, page by page."""
    found: list[dict[str, Any]] = []
    token = ""
    while True:
        page = ok(
            org.root.get("/api/audit", params={"orgId": org.id, "pageSize": 7, "pageToken": token})
        )
        found += page["entries"]
        token = page["nextPageToken"]
        if not token:
            return found


def test_every_action_is_in_the_audit_log(stack: Stack, root: httpx.Client) -> None:
    """Who, what, when, from where, before and after; without secrets."""
    email = stack.email
    made = ok(root.post("/api/tenants", json={"name": "Audited school"}))
    org = Org(stack, made["id"], made["code"], root)
    me = Recorder(root, email)
    me.wanted[email, "identity.tenant_created", f"tenants/{org.id}"] += 1

    me.do(
        "identity.tenant_updated", f"tenants/{org.id}", "PATCH", f"/api/tenants/{org.id}", name="N2"
    )
    user = me.do(
        "identity.user_created",
        "users/{id}",
        "POST",
        "/api/users",
        email=f"helper-{org.code}@school.example",
        role="Admin",
        tenantId=org.id,
        password=PASSWORD,
    )
    helper = Recorder(stack.client(stack.login(user["email"], PASSWORD)["token"]), user["email"])
    orphan = helper.do(
        "identity.event_credential_created",
        "event-credentials/{id}",
        "POST",
        "/api/event-credentials",
        name="Monitoring",
    )
    me.wanted += helper.wanted
    me.secrets.append(orphan["secret"])
    me.do(
        "identity.user_updated",
        f"users/{user['id']}",
        "PATCH",
        f"/api/users/{user['id']}",
        role="Auditor",
    )
    invited = me.do(
        "identity.user_invited", f"users/{user['id']}", "POST", f"/api/users/{user['id']}/invite"
    )
    me.secrets.append(invited["invitationToken"])
    me.do(
        "identity.user_deactivated",
        f"users/{user['id']}",
        "POST",
        f"/api/users/{user['id']}/deactivate",
    )
    where = f"event-credentials/{orphan['id']}"
    me.wanted[email, "identity.event_credential_orphaned", where] += 1
    me.do("identity.event_credential_taken_over", where, "POST", f"/api/{where}/take-over")

    credential = me.do(
        "identity.event_credential_created",
        "event-credentials/{id}",
        "POST",
        "/api/event-credentials",
        name="SIEM",
        tenantId=org.id,
    )
    me.secrets.append(credential["secret"])
    reader = stack.events(credential)

    token = me.do(
        "enrollment.token_created",
        "enrollment-tokens/{id}",
        "POST",
        "/api/enrollment-tokens",
        orgId=org.id,
        name="Room 12",
        requireApproval=True,
    )
    me.secrets.append(token["secret"])
    agents = [org.agent(pre_shared_key=token["preSharedKey"]) for _ in range(2)]
    for agent in agents:
        with pytest.raises(CallError):
            agent.enroll()
    waiting = ok(root.get("/api/registrations", params={"orgId": org.id, "status": "pending"}))
    ids = {r["serial"]: r["id"] for r in waiting["registrations"]}
    first, second = (ids[a.hardware.serial] for a in agents)
    for device in (first, second):
        me.wanted[f"device:{device}", "enrollment.device_pending", f"devices/{device}"] += 1
    me.do("enrollment.device_approved", f"devices/{first}", "POST", f"/api/devices/{first}/approve")
    me.do(
        "enrollment.device_rejected", f"devices/{second}", "POST", f"/api/devices/{second}/reject"
    )
    agents[0].enroll()  # admitted by the approval
    me.do(
        "enrollment.token_revoked",
        f"enrollment-tokens/{token['id']}",
        "POST",
        f"/api/enrollment-tokens/{token['id']}/revoke",
    )
    _attest(me, org, agents[0], f"devices/{first}")
    prepared = ok(root.post("/api/registrations", json={"orgId": org.id, "serial": "P-1"}))
    me.wanted[email, "enrollment.device_prepared", f"devices/{prepared['device_id']}"] += 1
    me.secrets.append(prepared["device_token"])

    policy = me.do(
        "policy.created",
        "policies/{id}",
        "POST",
        "/api/policies",
        name="P",
        orgId=org.id,
        bundle=DOCUMENT,
    )
    where = f"policies/{policy['id']}"
    changed = copy.deepcopy(DOCUMENT)
    changed["network"]["wifi"][0]["passphrase"] = "another wifi secret"
    changed["browser"]["homepage"] = "https://second.example"
    me.do("policy.published", where, "POST", f"/api/{where}/publish")
    me.do("policy.updated", where, "PATCH", f"/api/{where}", bundle=changed)
    me.do("policy.published", where, "POST", f"/api/{where}/publish")
    me.do("policy.rolled_back", where, "POST", f"/api/{where}/rollback", version="1")
    me.do("policy.device_sync_requested", f"devices/{first}", "POST", f"/api/devices/{first}/sync")
    me.do("policy.withdrawn", where, "POST", f"/api/{where}/withdraw")
    ok(root.request("DELETE", f"/api/{where}"))
    me.wanted[email, "policy.deleted", where] += 1
    me.do(
        "telemetry.event_retention_updated",
        f"tenants/{org.id}/event-retention",
        "PATCH",
        "/api/events/retention",
        orgId=org.id,
        days=30,
    )
    me.do(
        "policy.attestation_gate_updated",
        f"tenants/{org.id}/attestation-gate",
        "PATCH",
        "/api/attestation-gate",
        orgId=org.id,
        mode="OBSERVE",
    )
    me.do(
        "policy.settings_updated",
        f"tenants/{org.id}/policy-settings",
        "PATCH",
        "/api/policy-settings",
        orgId=org.id,
        timeZone="Europe/Berlin",
    )
    for what, action in {
        "devices": "telemetry.devices_exported",
        "events": "telemetry.events_exported",
        "attestations": "attestation.attestations_exported",
        "audit": "audit.exported",
    }.items():
        assert root.get(f"/api/{what}/export", params={"orgId": org.id}).is_success
        me.wanted[email, action, f"tenants/{org.id}/{what}"] += 1
    sought = {"orgId": org.id, "emails": [email], "names": ["nobody at all"]}
    assert root.post("/api/person-data/export", json=sought).is_success
    me.wanted[email, "audit.person_data_exported", f"tenants/{org.id}/person-data"] += 1
    me.do(
        "enrollment.reenrollment_allowed",
        f"devices/{first}",
        "POST",
        f"/api/devices/{first}/allow-reenrollment",
    )
    me.do(
        "enrollment.device_decommissioned",
        f"devices/{first}",
        "POST",
        f"/api/devices/{first}/decommission",
    )
    me.secrets += [PASSWORD, "the wifi secret", "another wifi secret", agents[0].device_token]

    # What is refused leaves no entry.
    assert_error(root.patch(f"/api/tenants/{org.id}", json={"name": ""}), 400)
    assert_error(root.post(f"/api/devices/{second}/approve", json={}), 400)
    assert_error(org.auditor.post("/api/policies", json={}), 403)

    def complete() -> bool:
        return len(_relevant(entries_of(org))) >= me.wanted.total()

    until(complete, PATIENCE, "audit entries are missing")
    found = _relevant(entries_of(org))
    assert Counter((e["actor"], e["action"], e["resource"]) for e in found) == me.wanted
    for entry in found:
        assert entry["orgId"] == org.id
        # This machine, or the bridge between it and containers on it.
        assert ip_address(entry["sourceIp"]).is_private
        assert entry["requestId"]
        assert entry["occurredAt"]
    (update,) = [e for e in found if e["action"] == "identity.user_updated"]
    assert (update["before"]["role"], update["after"]["role"]) == ("Admin", "Auditor")
    (rename,) = [e for e in found if e["action"] == "identity.tenant_updated"]
    assert (rename["before"]["name"], rename["after"]["name"]) == ("Audited school", "N2")
    text = json.dumps(found)
    for secret in me.secrets:
        assert secret not in text

    # The same, event by event, is what the organisation's integrator has received.
    received = reader.until(lambda events: len(_received(events)) >= me.wanted.total())
    assert {e["id"] for e in found} == {e["id"] for e in _received(received)}
    for event in received:
        check_event(event)
        assert event["tenantid"] == org.id
    for secret in me.secrets:
        assert secret not in json.dumps(received)
    gone = me.do(
        "identity.event_credential_revoked",
        f"event-credentials/{credential['id']}",
        "POST",
        f"/api/event-credentials/{credential['id']}/revoke",
    )
    assert gone["revokedAt"]
    reader.until_cut_off()


def _attest(me: Recorder, org: Org, agent: Agent, device: str) -> None:
    """A device's TPM, known from a list; what it booted becomes what devices may boot."""
    tpm = Tpm()
    me.do(
        "attestation.endorsement_keys_imported",
        f"tenants/{org.id}/tpm-endorsement-keys",
        "POST",
        "/api/tpm-endorsement-keys:import",
        orgId=org.id,
        csv=f"serial,ek_hash\n{agent.hardware.serial},{tpm.ek_sha256.hex()}\n",
    )
    path = f"/api/{device}"
    # A list is of serial numbers: attestation has to have heard of the device's.
    until(
        lambda: me.client.get(f"{path}/attestation").json().get("serialNumber"),
        PATIENCE,
        "attestation does not know the device",
    )
    assert bind(org, agent, tpm)["verdict"] == "KNOWN_TPM"
    for told in ("tpm_bound", "verdict_changed"):
        me.wanted[f"device:{agent.device_id}", f"attestation.{told}", device] += 1
    learned = me.do(
        "attestation.reference_value_created",
        "reference-values/{id}",
        "POST",
        f"{path}/attestation:learn",
        name="As delivered",
        kind="FIRMWARE",
    )
    where = f"reference-values/{learned['id']}"
    me.do("attestation.reference_value_updated", where, "PATCH", f"/api/{where}", state="ACTIVE")
    me.do("attestation.reference_value_retired", where, "PATCH", f"/api/{where}", state="RETIRED")
    stated = me.do(
        "attestation.reference_value_created",
        "reference-values/{id}",
        "POST",
        "/api/reference-values",
        orgId=org.id,
        name="Image",
        pcrs={"4": "ab" * 32},
    )
    where = f"reference-values/{stated['id']}"
    ok(me.client.delete(f"/api/{where}"))
    me.wanted[me.actor, "attestation.reference_value_deleted", where] += 1
    me.do("attestation.tpm_binding_reset", device, "POST", f"{path}/tpm-binding:reset")


def test_forwarders_are_in_the_log(org: Org) -> None:
    """Each step of a forwarder's life, with its name, and without what it keeps secret."""
    session = ok(org.owner.get("/auth/session"))
    me = Recorder(org.owner, session["email"])
    resource = "forwarders/{id}"
    header = {"name": "Authorization", "value": "a value that nobody reads"}
    webhook = {"url": "https://siem.school.example/hook?t=query", "headers": [header]}
    made = me.do(
        "audit.forwarder_created",
        resource,
        "POST",
        "/api/forwarders",
        name="SIEM",
        kind="webhook",
        enabled=False,
        webhook=webhook,
    )
    where = f"forwarders/{made['id']}"
    path = f"/api/{where}"
    me.do("audit.forwarder_updated", where, "PATCH", path, name="Other")
    me.do("audit.forwarder_tested", where, "POST", f"{path}/test")
    replay = {"from": "2026-01-01T00:00:00Z"}
    me.do("audit.forwarder_replayed", where, "POST", f"{path}/replay", **replay)
    rotated = me.do("audit.forwarder_secret_rotated", where, "POST", f"{path}/rotate-secret")
    me.do("audit.forwarder_quarantine_retried", where, "POST", f"{path}/quarantine/retry")
    ok(org.owner.delete(path))
    me.wanted[me.actor, "audit.forwarder_deleted", where] += 1

    def entries() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ok(org.owner.get("/api/audit", params={"resource": where}))[
            "entries"
        ]
        return found

    until(lambda: len(entries()) >= me.wanted.total(), PATIENCE, "audit entries are missing")
    found = entries()
    assert Counter((e["actor"], e["action"], e["resource"]) for e in found) == me.wanted
    for entry in found:
        assert (entry["actorKind"], entry["outcome"]) == ("user", "success")
        assert entry["userAgent"].startswith("python-httpx/")
        assert entry["sessionId"]
        assert entry["resourceName"] in {"SIEM", "Other"}
    (renamed,) = (e for e in found if e["action"] == "audit.forwarder_updated")
    assert ok(org.owner.get(f"/api/audit/entries/{renamed['id']}"))["changes"] == [
        {"path": "/name", "before": "SIEM", "after": "Other"}
    ]
    text = json.dumps(found)
    for hidden in ("nobody reads", "query", made["secret"], rotated["secret"]):
        assert hidden not in text


def test_roots_of_tpms_are_in_the_root_tenants_log(stack: Stack, root: httpx.Client) -> None:
    """They are the whole installation's: added and removed, with what certificate it was."""
    me = Recorder(root, stack.email)
    maker = Maker("Recorded")
    made = me.do(
        "attestation.trust_root_added",
        "tpm-roots/{id}",
        "POST",
        "/api/tpm-roots",
        certificatePem=maker.root_pem,
    )
    where = f"tpm-roots/{made['id']}"
    ok(root.delete(f"/api/{where}"))
    me.wanted[me.actor, "attestation.trust_root_removed", where] += 1

    def entries() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ok(root.get("/api/audit", params={"resource": where}))[
            "entries"
        ]
        return found

    until(lambda: len(entries()) >= me.wanted.total(), PATIENCE, "audit entries are missing")
    removed, added = entries()
    assert Counter((e["actor"], e["action"], e["resource"]) for e in (added, removed)) == me.wanted
    assert removed["orgId"] == added["orgId"] == ok(root.get("/auth/session"))["tenantId"]
    assert added["after"] == removed["before"]
    assert (added["after"]["subject"], added["after"]["sha256"]) == (
        "CN=Recorded root",
        made["sha256"],
    )


def _received(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    data = [e["data"] | {"id": e["id"]} for e in events]
    return _relevant([d for d in data if "action" in d])


def _relevant(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the test's own helpers: the Auditor it made, that user's logins and attempts."""
    return [
        e
        for e in entries
        if not (
            e["action"] in {"identity.login_succeeded"}
            # Of the Auditor's attempt to write, some seconds later.
            or e["action"].endswith(".calls_refused")
            or (
                e["action"] == "identity.user_created"
                and (e["after"] or {}).get("email", "").startswith("auditor-")
            )
        )
    ]


def test_the_audit_log_can_be_filtered(org: Org) -> None:
    """By actor, action, resource and time."""
    policy = org.publish()
    until(
        lambda: (
            len(
                ok(org.owner.get("/api/audit", params={"resource": f"policies/{policy['id']}"}))[
                    "entries"
                ]
            )
            == 2
        ),
        PATIENCE,
        "the entries did not arrive",
    )
    found = ok(org.owner.get("/api/audit", params={"action": "policy.published"}))["entries"]
    assert [e["resource"] for e in found] == [f"policies/{policy['id']}"]
    at = found[0]["occurredAt"]
    later = ok(
        org.owner.get("/api/audit", params={"action": "policy.published", "occurredAfter": at})
    )
    assert later["entries"] == found
    before = ok(
        org.owner.get("/api/audit", params={"action": "policy.published", "occurredBefore": at})
    )
    assert before["entries"] == []
    nobody = ok(org.owner.get("/api/audit", params={"actor": "nobody@school.example"}))
    assert nobody["entries"] == []


def test_every_writing_call_of_users_is_in_this_file_or_later() -> None:
    """A new RPC that writes has to be put into the day above."""
    text = Path(__file__).read_text(encoding="utf-8")
    names = {
        "CreateTenant": "identity.tenant_created",
        "UpdateTenant": "identity.tenant_updated",
        "CreateUser": "identity.user_created",
        "UpdateUser": "identity.user_updated",
        "InviteUser": "identity.user_invited",
        "DeactivateUser": "identity.user_deactivated",
        "DeleteUser": "identity.user_deleted",
        "CreateEventCredential": "identity.event_credential_created",
        "TakeOverEventCredential": "identity.event_credential_taken_over",
        "RevokeEventCredential": "identity.event_credential_revoked",
        "CreateEnrollmentToken": "enrollment.token_created",
        "RevokeEnrollmentToken": "enrollment.token_revoked",
        "ApproveDevice": "enrollment.device_approved",
        "RejectDevice": "enrollment.device_rejected",
        "AllowReenrollment": "enrollment.reenrollment_allowed",
        "DecommissionDevice": "enrollment.device_decommissioned",
        "PrepareDevice": "enrollment.device_prepared",
        "CreatePolicy": "policy.created",
        "UpdatePolicy": "policy.updated",
        "DeletePolicy": "policy.deleted",
        "PublishPolicy": "policy.published",
        "RollbackPolicy": "policy.rolled_back",
        "WithdrawPolicy": "policy.withdrawn",
        "SyncDevice": "policy.device_sync_requested",
        "UpdatePolicySettings": "policy.settings_updated",
        "UpdateEventRetention": "telemetry.event_retention_updated",
        "UpdateAttestationGate": "policy.attestation_gate_updated",
        "ImportEndorsementKeys": "attestation.endorsement_keys_imported",
        "ResetTpmBinding": "attestation.tpm_binding_reset",
        "CreateTrustRoot": "attestation.trust_root_added",
        "DeleteTrustRoot": "attestation.trust_root_removed",
        "CreateReferenceValue": "attestation.reference_value_created",
        "LearnReferenceValue": "attestation.reference_value_created",
        "UpdateReferenceValue": "attestation.reference_value_updated",
        "DeleteReferenceValue": "attestation.reference_value_deleted",
        "CreateForwarder": "audit.forwarder_created",
        "UpdateForwarder": "audit.forwarder_updated",
        "DeleteForwarder": "audit.forwarder_deleted",
        "TestForwarder": "audit.forwarder_tested",
        "ReplayForwarder": "audit.forwarder_replayed",
        "RotateForwarderSecret": "audit.forwarder_secret_rotated",
        "RetryForwarderQuarantine": "audit.forwarder_quarantine_retried",
    }
    elsewhere = {
        "Logout",
        "ChangePassword",
        # test_orgs_cli.py, tests/services/test_tenant_life.py
        "ArchiveTenant",
        "RestoreTenant",
        "DeleteTenant",
        "DropTenantCode",
        "DeleteDevice",
        # test_keys.py
        "RotateTokenKey",
        "RotateAuditKey",
        # tests/services/identity/sessions/test_overview.py
        "EndSession",
        "EndOtherSessions",
        "EndUserSessions",
        # tests/services/identity/second_factor; a key that waits for its first code is no event
        "CreateRecoveryCodes",
        "CreateTotp",
        "ConfirmTotp",
        "DeleteTotp",
        "ResetSecondFactors",
        "UpdateSignInPolicy",
        "StepUp",
        # tests/external/test_passkeys.py
        "CreatePasskeyOptions",
        "CreatePasskey",
        "DeletePasskey",
        # tests/services/identity/api_tokens
        "CreateApiToken",
        "RotateApiToken",
        "RevokeApiToken",
        "CreateServiceAccount",
        "UpdateServiceAccount",
        "DeleteServiceAccount",
        # tests/services/identity/directories
        "CreateDirectory",
        "UpdateDirectory",
        "DeleteDirectory",
        "TestDirectory",
        "SyncDirectory",
        # tests/services/identity/mail
        "TestMail",
        # tests/services/identity/sso
        "CreateSsoProvider",
        "UpdateSsoProvider",
        "DeleteSsoProvider",
        "TestSsoProvider",
        # tests/services/identity/scim
        "CreateScimSource",
        "UpdateScimSource",
        "DeleteScimSource",
        "ConfirmScimSource",
        "UnlinkScimUser",
        "CreateEmailDomain",
        "UpdateEmailDomain",
        "DeleteEmailDomain",
        "ReactivateUser",
        # tests/services/enrollment/groups, registry/test_labels.py, registry/test_expected.py
        "CreateDeviceGroup",
        "UpdateDeviceGroup",
        "DeleteDeviceGroup",
        "ChangeGroupMembers",
        "ApplyDeviceGroupSet",
        # tests/services/policy/sets
        "ApplyPolicySet",
        "MovePolicySecrets",
        "UpdateRegistration",
        "BatchUpdateRegistrations",
        "BatchImportRegistrations",
        # tests/services/policy/variables
        "CreatePolicyVariable",
        "UpdatePolicyVariable",
        "DeletePolicyVariable",
        # tests/services/policy/keys
        "CreatePolicyKey",
        "ActivatePolicyKey",
        "RetirePolicyKey",
        "MarkPolicyKeyCompromised",
        "CertifyPolicyKey",
        "SetPolicyRootKey",
        # tests/services/policy/rollouts
        "ApproveRollout",
        "PauseRollout",
        "ResumeRollout",
        "AdvanceRollout",
        "CancelRollout",
        "RollBackRollout",
        # tests/services/audit/reports
        "CreateReport",
        "DeleteReport",
        "CreateReportSchedule",
        "UpdateReportSchedule",
        "DeleteReportSchedule",
        # tests/services/audit/alerts
        "UpdateAlertRules",
        # tests/services/audit/retention
        "UpdateAuditRetention",
    }
    writes = {
        r.name.rpartition("/")[2]
        for r in rpcs()
        if r.rule.writes and r.rule.audience is Audience.USER
    }
    assert writes == set(names) | elsewhere
    assert all(action in text for action in names.values())


def test_a_list_of_large_events_is_answered(org: Org) -> None:
    """A page is as large as the gateway passes on, whatever limit the console gives."""
    agent = org.device()
    for _ in range(50):
        agent.record("large", [1] * 32_000)
    agent.send_events()
    with ThreadPoolExecutor() as pool:
        large = pool.submit(org.owner.get, "/api/events", params={"limit": 100})
        ok(org.owner.get("/api/events/retention"))
        first = ok(large.result())
    assert 20 < len(first["events"]) < 40
    assert first["events"][0]["metadata"]["value"] == [1] * 32_000
    found, token = 0, ""
    while True:
        page = ok(org.owner.get("/api/events", params={"pageSize": 500, "pageToken": token}))
        found += len(page["events"])
        token = page["nextPageToken"]
        if not token:
            break
    assert found == 50


def test_a_console_session_has_all_that_the_console_reads(stack: Stack) -> None:
    """Login, session, refresh, logout: JSON bodies with the console's names."""
    session = stack.login()
    assert {"token", "refreshToken", "role", "expiresAt", "email", "tenantId"} <= set(session)
    with stack.client(session["token"]) as client:
        now = ok(client.get("/auth/session"))
        assert (now["email"], now["role"], now["tenantId"]) == (
            session["email"],
            session["role"],
            session["tenantId"],
        )
        assert now["expiresAt"] == session["expiresAt"]
        fresh = ok(client.post("/auth/refresh", json={"refreshToken": session["refreshToken"]}))
        assert fresh["token"] != session["refreshToken"]
        assert ok(client.post("/auth/logout", json={})) == {}


def test_lists_for_the_console_are_objects_with_one_list(org: Org) -> None:
    """Also when they are empty: the console reads the list without asking."""
    for path, key in (
        ("/api/devices", "devices"),
        ("/api/policies", "policies"),
        ("/api/events", "events"),
        ("/api/users", "users"),
        ("/api/tenants", "tenants"),
    ):
        body = ok(org.owner.get(path))
        assert isinstance(body[key], list), path
        assert isinstance(body["nextPageToken"], str)
    user = ok(org.owner.get("/api/users"))["users"][0]
    assert {"id", "email", "role", "status", "createdAt"} <= set(user)
    tenant = ok(org.owner.get("/api/tenants"))["tenants"][0]
    assert {"id", "name", "reseller", "createdAt", "updatedAt", "parentId"} <= set(tenant)


def test_an_organisations_owner_cannot_leave_it(stack: Stack, root: httpx.Client) -> None:
    """An org's Owner makes no tenants; a reseller's does, below the reseller."""
    org = make_org(stack, root)
    assert_error(org.owner.post("/api/tenants", json={"name": "Below"}), 400, "FAILED_PRECONDITION")
