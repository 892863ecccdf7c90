"""No tenant sees or touches another's data, for every RPC that takes a user's token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from contract.access import Audience
from tests.e2e.rpcs import Rpc, rpcs
from tests.e2e.world import DOCUMENT, PASSWORD, Org, assert_error, make_org, ok
from tests.fakes.agent import Agent
from tests.support.stack import PATIENCE, Stack, until

_HIDDEN = {"name": "Authorization", "value": "nobody else may read this"}


@dataclass
class Victim:
    """An organisation with one of everything."""

    org: Org
    agent: Agent
    pending: str
    policy: dict[str, Any]
    rollout: str
    token: dict[str, Any]
    credential: dict[str, Any]
    user: dict[str, Any]
    session: str
    api_token: str
    service_account: str
    entry: dict[str, Any]
    quarantined: dict[str, Any]
    reference: dict[str, Any]
    forwarder: dict[str, Any]
    group: dict[str, Any]
    directory: dict[str, Any]
    domain: str
    provider: dict[str, Any]
    report: str
    schedule: str
    scim_source: dict[str, Any]
    policy_key: dict[str, Any]
    variable: str


@pytest.fixture(scope="module")
def victim(stack: Stack, root: httpx.Client) -> Victim:
    org = make_org(stack, root, "Victim")
    policy = org.publish()
    agent = org.device()
    agent.report_state()
    agent.record("secret.event", {"message": "nobody else may read this"})
    agent.record("", {"message": "nobody else may read this, either"})
    agent.send_events()
    (quarantined,) = ok(org.owner.get("/api/events/quarantine"))["quarantinedEvents"]
    waiting = org.agent(pre_shared_key=org.enrollment_token(requireApproval=True)["preSharedKey"])
    with pytest.raises(Exception, match="4"):
        waiting.enroll()
    (pending,) = ok(org.owner.get("/api/registrations", params={"status": "pending"}))[
        "registrations"
    ]
    (user,) = [
        u
        for u in ok(org.owner.get("/api/users", params={"orgId": org.id}))["users"]
        if u["role"] == "Owner"
    ]
    entries = until(
        lambda: ok(org.owner.get("/api/audit"))["entries"], PATIENCE, "no audit entry arrived"
    )
    token = org.enrollment_token()
    credential = ok(root.post("/api/event-credentials", json={"name": "S", "tenantId": org.id}))
    wanted = {"orgId": org.id, "name": "Image", "pcrs": {"4": "ab" * 32}}
    reference = ok(org.owner.post("/api/reference-values", json=wanted))
    forwarder = ok(
        org.owner.post(
            "/api/forwarders",
            json={
                "name": "SIEM",
                "kind": "webhook",
                "enabled": False,
                "webhook": {"url": "https://siem.school.example/", "headers": [_HIDDEN]},
            },
        )
    )
    named = {"orgId": org.id, "name": "Cart 3", "alias": "cart-3"}
    group = ok(org.owner.post("/api/device-groups", json=named))
    directory = ok(
        org.owner.post(
            "/api/directories",
            json={
                "name": "Directory",
                "kind": "openldap",
                "urls": ["ldaps://127.0.0.1:1"],
                "bindDn": "cn=evergreen",
                "bindPassword": PASSWORD,
                "baseDn": "dc=victim",
                "disabled": True,
            },
        )
    )
    domain = f"{org.id}.example"
    ok(root.post("/api/email-domains", json={"domain": domain, "orgId": org.id}))
    provider = ok(
        org.owner.post(
            "/api/sso-providers",
            json={
                "name": "Provider",
                "issuer": "https://login.victim.example",
                "clientId": "evergreen",
                "clientSecret": PASSWORD,
                "disabled": True,
            },
        )
    )
    return Victim(
        org,
        agent,
        pending["id"],
        policy,
        ok(org.owner.post(f"/api/policies/{policy['id']}/publish", json={"plan": {}}))["rolloutId"],
        token,
        credential,
        user,
        ok(org.owner.get("/auth/sessions"))["sessions"][0]["id"],
        ok(org.owner.post("/api/tokens", json={"name": "x", "scopes": ["users:read"]}))["id"],
        ok(org.owner.post("/api/service-accounts", json={"name": "x", "role": "Admin"}))["id"],
        entries[0],
        quarantined,
        reference,
        forwarder,
        group,
        directory,
        domain,
        provider,
        ok(org.owner.post("/api/reports", json={"kind": "devices-not-seen"}))["id"],
        ok(org.owner.post("/api/report-schedules", json={"kind": "access-review", "every": "day"}))[
            "id"
        ],
        ok(org.owner.post("/api/scim-sources", json={"name": "SCIM"})),
        ok(org.owner.post("/api/policy-keys", json={})),
        ok(
            org.owner.post(
                "/api/policy-variables",
                json={"orgId": org.id, "name": "homepage", "value": "https://victim.example"},
            )
        )["id"],
    )


@pytest.fixture(scope="module")
def stranger(stack: Stack, root: httpx.Client) -> Org:
    return make_org(stack, root, "Stranger")


Case = Callable[[Victim, Org], dict[str, Any]]
"""Makes a request (path parameters, `params` or `json`) that names the victim's data."""


def _by_id(what: Callable[[Victim], str], **json: Any) -> Case:
    return lambda v, _: {"id": what(v), "json": json}


def _in_org(**json: Any) -> Case:
    return lambda v, _: {"json": {"orgId": v.org.id, **json}}


def _list(v: Victim, _: Org) -> dict[str, Any]:
    return {"params": {"orgId": v.org.id}}


def _device(v: Victim) -> str:
    return v.agent.device_id


def _policy_key(v: Victim) -> str:
    return str(v.policy_key["id"])


_NAMED: dict[str, Case] = {
    "SessionService/EndSession": _by_id(lambda v: v.session),
    "SessionService/ListUserSessions": _by_id(lambda v: v.user["id"]),
    "SessionService/EndUserSessions": _by_id(lambda v: v.user["id"]),
    "TenantService/GetTenant": _by_id(lambda v: v.org.id),
    "TenantService/CreateTenant": lambda v, _: {"json": {"name": "x", "parentId": v.org.id}},
    "TenantService/UpdateTenant": _by_id(lambda v: v.org.id, name="Taken over"),
    "TenantService/DropTenantCode": _by_id(lambda v: v.org.id, code="x"),
    "TenantService/ArchiveTenant": _by_id(lambda v: v.org.id, validateOnly=True),
    "TenantService/RestoreTenant": _by_id(lambda v: v.org.id),
    "TenantService/DeleteTenant": _by_id(lambda v: v.org.id),
    "TenantService/GetTenantDeletion": _by_id(lambda v: v.org.id),
    "UserService/ListUsers": _list,
    "UserService/GetUser": _by_id(lambda v: v.user["id"]),
    "UserService/CreateUser": lambda v, _: {
        "json": {
            "email": "in@victim.example",
            "role": "Owner",
            "tenantId": v.org.id,
            "password": PASSWORD,
        }
    },
    "UserService/UpdateUser": _by_id(lambda v: v.user["id"], role="Auditor"),
    "UserService/DeactivateUser": _by_id(lambda v: v.user["id"]),
    "ApiTokenService/ListApiTokens": _list,
    "ApiTokenService/GetApiToken": _by_id(lambda v: v.api_token),
    "ApiTokenService/CreateApiToken": _in_org(name="x", scopes=["users:read"]),
    "ApiTokenService/RotateApiToken": _by_id(lambda v: v.api_token),
    "ApiTokenService/RevokeApiToken": _by_id(lambda v: v.api_token),
    "ServiceAccountService/ListServiceAccounts": _list,
    "ServiceAccountService/GetServiceAccount": _by_id(lambda v: v.service_account),
    "ServiceAccountService/CreateServiceAccount": _in_org(name="x", role="Auditor"),
    "ServiceAccountService/UpdateServiceAccount": _by_id(lambda v: v.service_account, name="y"),
    "ServiceAccountService/DeleteServiceAccount": _by_id(lambda v: v.service_account),
    "SecondFactorService/ResetSecondFactors": _by_id(lambda v: v.user["id"]),
    "SecondFactorService/DeletePasskey": lambda v, _: {
        "id": "01936d2e-9c14-7a02-8b77-51d2c3e4f506"
    },
    "SecondFactorService/GetSignInPolicy": _by_id(lambda v: v.org.id),
    "SecondFactorService/UpdateSignInPolicy": _by_id(lambda v: v.org.id, mfa="all"),
    "UserService/DeleteUser": _by_id(lambda v: v.user["id"]),
    "UserService/InviteUser": _by_id(lambda v: v.user["id"]),
    "UserService/ReactivateUser": _by_id(lambda v: v.user["id"]),
    "DirectoryService/ListDirectories": _list,
    "DirectoryService/GetDirectory": _by_id(lambda v: v.directory["id"]),
    "DirectoryService/CreateDirectory": _in_org(
        name="x",
        kind="ad",
        urls=["ldaps://127.0.0.1:1"],
        bindDn="x",
        bindPassword="x",
        baseDn="x",
    ),
    "DirectoryService/UpdateDirectory": _by_id(lambda v: v.directory["id"], name="x"),
    "DirectoryService/DeleteDirectory": _by_id(lambda v: v.directory["id"]),
    "DirectoryService/TestDirectory": _by_id(lambda v: v.directory["id"]),
    "DirectoryService/SyncDirectory": _by_id(lambda v: v.directory["id"]),
    "SsoProviderService/ListSsoProviders": _list,
    "SsoProviderService/GetSsoProvider": _by_id(lambda v: v.provider["id"]),
    "SsoProviderService/CreateSsoProvider": _in_org(
        name="x", issuer="https://x.example", clientId="x", clientSecret="x"
    ),
    "SsoProviderService/UpdateSsoProvider": _by_id(lambda v: v.provider["id"], name="x"),
    "SsoProviderService/DeleteSsoProvider": _by_id(lambda v: v.provider["id"]),
    "SsoProviderService/TestSsoProvider": _by_id(lambda v: v.provider["id"]),
    "ScimSourceService/ListScimSources": _list,
    "ScimSourceService/GetScimSource": _by_id(lambda v: v.scim_source["id"]),
    "ScimSourceService/CreateScimSource": _in_org(name="x"),
    "ScimSourceService/UpdateScimSource": _by_id(lambda v: v.scim_source["id"], name="x"),
    "ScimSourceService/DeleteScimSource": _by_id(lambda v: v.scim_source["id"]),
    "ScimSourceService/ConfirmScimSource": _by_id(lambda v: v.scim_source["id"], users=1),
    "ScimSourceService/UnlinkScimUser": lambda v, _: {
        "id": v.scim_source["id"],
        "json": {"userId": v.user["id"]},
    },
    "ScimSourceService/ListScimPeople": _by_id(lambda v: v.scim_source["id"]),
    "EmailDomainService/ListEmailDomains": _list,
    "EmailDomainService/CreateEmailDomain": _in_org(domain="stranger.example"),
    "EmailDomainService/UpdateEmailDomain": lambda v, _: {"domain": v.domain, "json": {}},
    "EmailDomainService/DeleteEmailDomain": lambda v, _: {"domain": v.domain},
    "EventCredentialService/ListEventCredentials": _list,
    "EventCredentialService/CreateEventCredential": lambda v, _: {
        "json": {"name": "x", "tenantId": v.org.id}
    },
    "EventCredentialService/TakeOverEventCredential": _by_id(lambda v: v.credential["id"]),
    "EventCredentialService/RevokeEventCredential": _by_id(lambda v: v.credential["id"]),
    "EnrollmentTokenService/ListEnrollmentTokens": _list,
    "EnrollmentTokenService/GetEnrollmentToken": _by_id(lambda v: v.token["id"]),
    "EnrollmentTokenService/CreateEnrollmentToken": _in_org(name="x"),
    "EnrollmentTokenService/RevokeEnrollmentToken": _by_id(lambda v: v.token["id"]),
    "DeviceRegistryService/ListRegistrations": _list,
    "DeviceRegistryService/ListEnrollmentRefusals": _list,
    "DeviceRegistryService/GetRegistration": _by_id(_device),
    "DeviceRegistryService/UpdateRegistration": _by_id(_device, labels={"room": "1"}),
    "DeviceRegistryService/BatchUpdateRegistrations": _in_org(rows=[{"device": "S"}]),
    "DeviceRegistryService/BatchImportRegistrations": _in_org(rows=[{"serial": "S"}]),
    "DeviceRegistryService/BatchGetRegistrations": _in_org(serials=["S"]),
    "DeviceRegistryService/ApproveDevice": _by_id(lambda v: v.pending),
    "DeviceRegistryService/RejectDevice": _by_id(lambda v: v.pending),
    "DeviceRegistryService/AllowReenrollment": _by_id(_device),
    "DeviceRegistryService/DecommissionDevice": _by_id(_device),
    "DeviceRegistryService/DeleteDevice": _by_id(_device),
    "DeviceRegistryService/PrepareDevice": _in_org(serial="S"),
    "DeviceGroupService/ListDeviceGroups": _list,
    "DeviceGroupService/GetDeviceGroup": _by_id(lambda v: v.group["id"]),
    "DeviceGroupService/CreateDeviceGroup": _in_org(name="x", alias="x"),
    "DeviceGroupService/UpdateDeviceGroup": _by_id(lambda v: v.group["id"], name="Taken over"),
    "DeviceGroupService/DeleteDeviceGroup": _by_id(lambda v: v.group["id"]),
    "DeviceGroupService/ListGroupMembers": _by_id(lambda v: v.group["id"]),
    "DeviceGroupService/ChangeGroupMembers": _by_id(lambda v: v.group["id"], add=["S"]),
    "DeviceGroupService/ApplyDeviceGroupSet": _in_org(name="x", groups=[{"alias": "x"}]),
    "DeviceGroupService/PreviewDeviceGroup": _in_org(filter="has_tpm = true"),
    "PolicyService/ListPolicies": _list,
    "PolicyService/GetPolicy": _by_id(lambda v: v.policy["id"]),
    "PolicyService/CreatePolicy": _in_org(name="x", bundle=DOCUMENT),
    "PolicyService/UpdatePolicy": _by_id(lambda v: v.policy["id"], name="Taken over"),
    "PolicyService/DeletePolicy": _by_id(lambda v: v.policy["id"]),
    "PolicyService/PublishPolicy": _by_id(lambda v: v.policy["id"]),
    "PolicyService/WithdrawPolicy": _by_id(lambda v: v.policy["id"]),
    "PolicyService/RollbackPolicy": _by_id(lambda v: v.policy["id"], version="1"),
    "PolicyService/ListPolicyVersions": lambda v, _: {"policy_id": v.policy["id"]},
    "PolicyService/DiffPolicyVersions": lambda v, _: {"policy_id": v.policy["id"], "version": "1"},
    "PolicyService/GetEffectivePolicy": _by_id(_device),
    "PolicyService/GetLayeredPolicy": _list,
    "PolicyService/ApplyPolicySet": _in_org(
        name="x", policies=[{"alias": "x", "bundle": DOCUMENT}]
    ),
    "PolicyService/ExportPolicySet": _list,
    "PolicyService/MovePolicySecrets": _in_org(validate_only=True),
    "PolicyService/SimulatePolicy": _in_org(bundle=DOCUMENT),
    "PolicyService/ListOrphanedDevices": _list,
    "PolicyService/GetAttestationGate": _list,
    "PolicyService/UpdateAttestationGate": _in_org(mode="OBSERVE"),
    "PolicyService/PreviewAttestationGate": _list,
    "PolicyService/ListAttestationGates": _list,
    "PolicyService/SyncDevice": _by_id(_device),
    "PolicyRolloutService/ListRollouts": _list,
    "PolicyRolloutService/GetRollout": _by_id(lambda v: v.rollout),
    "PolicyRolloutService/ListRolloutDevices": lambda v, _: {"rollout_id": v.rollout},
    "PolicyRolloutService/ApproveRollout": _by_id(lambda v: v.rollout),
    "PolicyRolloutService/PauseRollout": _by_id(lambda v: v.rollout),
    "PolicyRolloutService/ResumeRollout": _by_id(lambda v: v.rollout),
    "PolicyRolloutService/AdvanceRollout": _by_id(lambda v: v.rollout),
    "PolicyRolloutService/CancelRollout": _by_id(lambda v: v.rollout),
    "PolicyRolloutService/RollBackRollout": _by_id(lambda v: v.rollout),
    "PolicyRolloutService/GetPolicySettings": _list,
    "PolicyRolloutService/UpdatePolicySettings": _in_org(time_zone="Europe/Berlin"),
    "PolicyKeyService/ListManagedPolicyKeys": _list,
    "PolicyKeyService/ListPolicyKeyDevices": _by_id(_policy_key),
    "PolicyKeyService/CreatePolicyKey": _in_org(activate=True),
    "PolicyKeyService/ActivatePolicyKey": _by_id(_policy_key),
    "PolicyKeyService/RetirePolicyKey": _by_id(_policy_key),
    "PolicyKeyService/MarkPolicyKeyCompromised": _by_id(_policy_key),
    "PolicyKeyService/ExportPolicyKey": _by_id(_policy_key),
    "PolicyKeyService/CertifyPolicyKey": _by_id(_policy_key, payload="e30=", signature="AAAA"),
    "PolicyVariableService/ListPolicyVariables": _list,
    "PolicyVariableService/GetPolicyVariable": _by_id(lambda v: v.variable),
    "PolicyVariableService/CreatePolicyVariable": _in_org(name="x", value="x"),
    "PolicyVariableService/UpdatePolicyVariable": _by_id(lambda v: v.variable, value="x"),
    "PolicyVariableService/DeletePolicyVariable": _by_id(lambda v: v.variable),
    "InventoryService/ListDevices": _list,
    "InventoryService/GetDevice": _by_id(_device),
    "InventoryService/ExportDevices": _list,
    "EventService/ListEvents": _list,
    "EventService/ExportEvents": _list,
    "EventService/ListQuarantinedEvents": _list,
    "EventService/ExportQuarantinedEvent": _by_id(lambda v: v.quarantined["id"]),
    "EventService/GetEventRetention": _list,
    "EventService/UpdateEventRetention": _in_org(days=30),
    "AttestationService/ListAttestations": _list,
    "AttestationService/GetAttestation": lambda v, _: {"device_id": _device(v)},
    "AttestationService/ListAttestationVerdicts": lambda v, _: {"device_id": _device(v)},
    "AttestationService/ExportAttestations": _list,
    "AttestationService/ResetTpmBinding": lambda v, _: {"device_id": _device(v)},
    "AttestationService/ImportEndorsementKeys": _in_org(csv="serial,ek_hash\n"),
    "AttestationService/ExportEndorsementKeys": _list,
    "AttestationService/ListReferenceValues": _list,
    "AttestationService/CreateReferenceValue": _in_org(name="x", pcrs={"4": "ab" * 32}),
    "AttestationService/UpdateReferenceValue": _by_id(lambda v: v.reference["id"], state="ACTIVE"),
    "AttestationService/DeleteReferenceValue": _by_id(lambda v: v.reference["id"]),
    "AttestationService/LearnReferenceValue": lambda v, _: {
        "device_id": _device(v),
        "json": {"name": "x", "kind": "FIRMWARE"},
    },
    "AttestationService/PreviewReferenceValues": _in_org(),
    "AuditService/ListAuditEntries": _list,
    "AuditService/GetAuditEntry": _by_id(lambda v: v.entry["id"]),
    "AuditService/ExportAuditEntries": _list,
    "AuditService/GetAuditProof": _by_id(lambda v: v.entry["id"]),
    "AuditRetentionService/GetAuditRetention": _list,
    "AuditRetentionService/UpdateAuditRetention": _in_org(keepYears=7),
    "ForwarderService/ListForwarders": _list,
    "ForwarderService/GetForwarder": _by_id(lambda v: v.forwarder["id"]),
    "ForwarderService/CreateForwarder": _in_org(
        name="x", kind="webhook", webhook={"url": "https://siem.school.example/"}
    ),
    "ForwarderService/UpdateForwarder": _by_id(lambda v: v.forwarder["id"], name="Taken over"),
    "ForwarderService/DeleteForwarder": _by_id(lambda v: v.forwarder["id"]),
    "ForwarderService/TestForwarder": _by_id(lambda v: v.forwarder["id"]),
    "ForwarderService/ReplayForwarder": _by_id(
        lambda v: v.forwarder["id"], **{"from": "2026-01-01T00:00:00Z"}
    ),
    "ForwarderService/RotateForwarderSecret": _by_id(lambda v: v.forwarder["id"]),
    "ForwarderService/ListForwarderQuarantine": _by_id(lambda v: v.forwarder["id"]),
    "ForwarderService/RetryForwarderQuarantine": _by_id(lambda v: v.forwarder["id"]),
    "ReportService/CreateReport": _in_org(kind="devices-not-seen"),
    "ReportService/ListReports": _list,
    "ReportService/GetReport": _by_id(lambda v: v.report),
    "ReportService/DownloadReport": lambda v, _: {"id": v.report, "name": "manifest.txt"},
    "ReportService/DeleteReport": _by_id(lambda v: v.report),
    "PersonDataService/ExportPersonData": _in_org(emails=["owner@victim.example"]),
    "ReportScheduleService/ListReportSchedules": _list,
    "ReportScheduleService/GetReportSchedule": _by_id(lambda v: v.schedule),
    "ReportScheduleService/CreateReportSchedule": _in_org(kind="access-review", every="day"),
    "ReportScheduleService/UpdateReportSchedule": _by_id(lambda v: v.schedule, keep=1),
    "ReportScheduleService/DeleteReportSchedule": _by_id(lambda v: v.schedule),
    "AlertService/ListAlerts": _list,
    "AlertService/GetAlertRules": _list,
    "AlertService/UpdateAlertRules": _in_org(recipients={"roles": ["Admin"]}),
}
"""Requests that name another tenant's data: all answer 404."""

_UNNAMED = {
    "TenantService/ListTenants",
    "AuditService/GetAuditCheckpoint",
    "AuditService/GetAuditLogCheckpoint",
    "AuditService/GetAuditLogTile",
    "AuditService/GetAuditConsistency",
    "AuthService/GetSession",
    "SessionService/ListSessions",
    "SessionService/EndOtherSessions",
    "SecondFactorService/GetSecondFactors",
    "SecondFactorService/CreateRecoveryCodes",
    "SecondFactorService/CreateTotp",
    "SecondFactorService/ConfirmTotp",
    "SecondFactorService/DeleteTotp",
    "AuthService/StepUp",
    "SecondFactorService/CreatePasskeyOptions",
    "SecondFactorService/CreatePasskey",
    "AuthService/Logout",
    "AuthService/ChangePassword",
    "TokenKeyService/ListTokenKeys",
    "TokenKeyService/RotateTokenKey",
    "PolicyKeyService/SetPolicyRootKey",
    "MailService/GetMailStatus",
    "MailService/TestMail",
    "AuditService/ListAuditKeys",
    "ReportService/ListReportKinds",
    "AuditService/RotateAuditKey",
    "AttestationService/ListTrustRoots",
    "AttestationService/CreateTrustRoot",
    "AttestationService/DeleteTrustRoot",
}
"""They name nothing: they answer for the caller alone, or have the installation's keys."""

_USER = [r for r in rpcs() if r.rule.audience is Audience.USER]


def _short(rpc: Rpc) -> str:
    return rpc.name.removeprefix("/evergreen.v1.")


def test_the_matrix_covers_every_rpc() -> None:
    """A new RPC has to be put into one of the lists above."""
    assert {_short(r) for r in _USER} == set(_NAMED) | _UNNAMED


def _request(client: httpx.Client, rpc: Rpc, case: dict[str, Any]) -> httpx.Response:
    values = {k: v for k, v in case.items() if k not in {"params", "json"}}
    body = case.get("json", {}) if rpc.method in {"POST", "PATCH"} else None
    return client.request(rpc.method, rpc.url(**values), params=case.get("params"), json=body)


@pytest.mark.parametrize("rpc", [r for r in _USER if _short(r) in _NAMED], ids=_short)
def test_another_tenants_data_does_not_exist(victim: Victim, stranger: Org, rpc: Rpc) -> None:
    """404, the same as for what is not there at all; and nothing has changed afterwards."""
    answer = _request(stranger.owner, rpc, _NAMED[_short(rpc)](victim, stranger))
    assert_error(answer, 404, "NOT_FOUND")
    assert "nobody else" not in answer.text


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/api/tenants", "tenants"),
        ("/api/users", "users"),
        ("/api/event-credentials", "credentials"),
        ("/api/tokens", "tokens"),
        ("/api/service-accounts", "serviceAccounts"),
        ("/api/enrollment-tokens", "enrollmentTokens"),
        ("/api/registrations", "registrations"),
        ("/api/device-groups", "deviceGroups"),
        ("/api/policies", "policies"),
        ("/api/devices", "devices"),
        ("/api/events", "events"),
        ("/api/events/quarantine", "quarantinedEvents"),
        ("/api/attestations", "attestations"),
        ("/api/reference-values", "referenceValues"),
        ("/api/audit", "entries"),
        ("/api/forwarders", "forwarders"),
        ("/api/reports", "reports"),
        ("/api/report-schedules", "reportSchedules"),
    ],
)
def test_lists_hold_the_callers_own(victim: Victim, stranger: Org, path: str, key: str) -> None:
    """Without a filter a list holds the caller's subtree, and the victim's owner sees its own."""
    own = {stranger.id, None}
    for item in ok(stranger.owner.get(path))[key]:
        assert item.get("orgId", item.get("tenantId", item["id"])) in own
    assert ok(victim.org.owner.get(path))[key]


def test_after_all_attempts_the_victim_is_as_it_was(victim: Victim) -> None:
    """No write of the stranger had an effect."""
    owner = victim.org.owner
    assert ok(owner.get(f"/api/policies/{victim.policy['id']}"))["name"] == "Policy"
    assert ok(owner.get(f"/api/users/{victim.user['id']}"))["role"] == "Owner"
    assert ok(owner.get(f"/api/registrations/{victim.pending}"))["status"] == "pending"
    assert ok(owner.get(f"/api/registrations/{victim.agent.device_id}"))["status"] == "active"
    assert ok(owner.get(f"/api/enrollment-tokens/{victim.token['id']}"))["status"] == "active"
    (reference,) = ok(owner.get("/api/reference-values"))["referenceValues"]
    assert reference == victim.reference
    (forwarder,) = ok(owner.get("/api/forwarders"))["forwarders"]
    assert forwarder["etag"] == victim.forwarder["etag"]
    assert "secret" in victim.forwarder
    assert "secret" not in forwarder
    keys = ok(owner.get("/api/policy-keys"))["policyKeys"]
    assert [key["state"] for key in keys if key["orgId"]] == ["next"]
    assert ok(owner.get(f"/api/device-groups/{victim.group['id']}")) == victim.group
    assert ok(owner.get(f"/api/registrations/{victim.agent.device_id}"))["labels"] == {}
    victim.agent.report_state()


def test_a_reseller_sees_its_own_and_no_more(stack: Stack, root: httpx.Client) -> None:
    """Above: nothing. Below: everything. Beside: nothing."""
    reseller = ok(root.post("/api/tenants", json={"name": "Reseller", "reseller": True}))
    org_of = Org(stack, reseller["id"], reseller["code"], root)
    school = ok(org_of.owner.post("/api/tenants", json={"name": "Below"}))
    below = Org(stack, school["id"], school["code"], root)
    below.publish()
    below.device()
    assert {t["id"] for t in ok(org_of.owner.get("/api/tenants"))["tenants"]} == {
        reseller["id"],
        school["id"],
    }
    assert len(ok(org_of.owner.get("/api/devices"))["devices"]) == 1
    assert len(ok(org_of.owner.get("/api/policies"))["policies"]) == 1
    beside = make_org(stack, root, "Beside")
    assert_error(org_of.owner.get("/api/devices", params={"orgId": beside.id}), 404)
