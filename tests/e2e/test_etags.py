"""Etags of everything that has one: answered in `ETag`, given back in `If-Match`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from google.protobuf.descriptor import Descriptor

from contract.access import Audience
from evergreen.v1 import (
    attestation_pb2,
    audit_pb2,
    enrollment_pb2,
    identity_pb2,
    policy_pb2,
    telemetry_pb2,
)
from tests.e2e.rpcs import Rpc, rpcs
from tests.e2e.world import PASSWORD, Org, assert_error, make_org, ok
from tests.support.stack import Stack, until

_FILES = (identity_pb2, enrollment_pb2, policy_pb2, telemetry_pb2, attestation_pb2, audit_pb2)
_OF_NO_RESOURCE = {
    "ActivatePolicyKey",
    "ApplyDeviceGroupSet",
    "ApplyPolicySet",
    "BatchImportRegistrations",
    "BatchUpdateRegistrations",
    "CertifyPolicyKey",
    "ChangeGroupMembers",
    "MovePolicySecrets",
    "Logout",
    "ChangePassword",
    "EndSession",
    "EndOtherSessions",
    "EndUserSessions",
    "CreateRecoveryCodes",
    "CreateTotp",
    "ConfirmTotp",
    "DeleteTotp",
    "ResetSecondFactors",
    "UpdateSignInPolicy",
    "StepUp",
    "CreatePasskeyOptions",
    "CreatePasskey",
    "CreateReport",
    "DeletePasskey",
    "DeleteReport",
    "DeleteTrustRoot",
    "ImportEndorsementKeys",
    "LearnReferenceValue",
    "MarkPolicyKeyCompromised",
    "PrepareDevice",
    "ReplayForwarder",
    "ResetTpmBinding",
    "RetirePolicyKey",
    "RetryForwarderQuarantine",
    "RotateAuditKey",
    "RotateForwarderSecret",
    "RotateTokenKey",
    "SetPolicyRootKey",
    "SyncDevice",
    "TestForwarder",
    "TestMail",
    "SyncDirectory",
    "TestDirectory",
    "TestSsoProvider",
    "ConfirmScimSource",
    "UnlinkScimUser",
}
"""They change nothing that the API shows with an etag."""


def _short(rpc: Rpc) -> str:
    return rpc.name.rpartition("/")[2]


def _request_of(rpc: Rpc) -> Descriptor | None:
    for file in _FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            if rpc.name.startswith(f"/{service.full_name}/"):
                request: Descriptor = service.methods_by_name[_short(rpc)].input_type
                return request
    return None


def _takes_etag(rpc: Rpc) -> bool:
    request = _request_of(rpc)
    return request is not None and "etag" in request.fields_by_name


_WRITES = [
    r for r in rpcs() if r.rule.audience is Audience.USER and r.rule.writes and r.rule.offered
]
_CHANGES = [r for r in _WRITES if _takes_etag(r)]


@dataclass
class Made:
    """Something to change: where it can be read, if it can alone, and how it is now."""

    id: str
    shown: dict[str, Any]
    path: str | None = None


def _policy(org: Org) -> Made:
    made = org.policy()
    return Made(made["id"], made, f"/api/policies/{made['id']}")


def _published(org: Org) -> Made:
    made = org.publish()
    return Made(made["id"], made, f"/api/policies/{made['id']}")


def _policy_settings(org: Org) -> Made:
    path = f"/api/policy-settings?orgId={org.id}"
    return Made(org.id, ok(org.root.get(path)), path)


def _user(org: Org) -> Made:
    made = ok(
        org.root.post(
            "/api/users",
            json={
                "email": f"{uuid4().hex[:12]}@school.example",
                "role": "Auditor",
                "tenantId": org.id,
                "password": PASSWORD,
            },
        )
    )
    return Made(made["id"], made, f"/api/users/{made['id']}")


def _credential(org: Org) -> Made:
    made = ok(org.admin.post("/api/event-credentials", json={"name": "SIEM"}))
    return Made(made["id"], made)


def _api_token(org: Org) -> Made:
    wanted = {"name": uuid4().hex, "scopes": ["devices:read"], "orgId": org.id}
    made = ok(org.root.post("/api/tokens", json=wanted))
    return Made(made["id"], made, f"/api/tokens/{made['id']}")


def _service_account(org: Org) -> Made:
    wanted = {"name": uuid4().hex, "role": "Admin", "orgId": org.id}
    made = ok(org.root.post("/api/service-accounts", json=wanted))
    return Made(made["id"], made, f"/api/service-accounts/{made['id']}")


def _token(org: Org) -> Made:
    made = org.enrollment_token()
    return Made(made["id"], made, f"/api/enrollment-tokens/{made['id']}")


def _registration(org: Org, device_id: str) -> Made:
    path = f"/api/registrations/{device_id}"
    return Made(device_id, ok(org.root.get(path)), path)


def _device(org: Org) -> Made:
    device_id = org.device().device_id
    assert device_id is not None
    return _registration(org, device_id)


def _waiting(org: Org) -> Made:
    waiting = org.agent(pre_shared_key=org.enrollment_token(requireApproval=True)["preSharedKey"])
    with pytest.raises(Exception, match="4"):
        waiting.enroll()
    (found,) = [
        registration
        for registration in ok(
            org.root.get("/api/registrations", params={"orgId": org.id, "status": "pending"})
        )["registrations"]
        if registration["serial"] == waiting.hardware.serial
    ]
    return _registration(org, found["id"])


def _tenant(org: Org) -> Made:
    path = f"/api/tenants/{org.id}"
    return Made(org.id, ok(org.root.get(path)), path)


def _retention(org: Org) -> Made:
    path = f"/api/events/retention?orgId={org.id}"
    return Made(org.id, ok(org.root.get(path)), path)


def _alert_rules(org: Org) -> Made:
    path = f"/api/alert-rules?orgId={org.id}"
    return Made(org.id, ok(org.root.get(path)), path)


def _log_retention(org: Org) -> Made:
    path = f"/api/audit/retention?orgId={org.id}"
    return Made(org.id, ok(org.root.get(path)), path)


def _gate(org: Org) -> Made:
    path = f"/api/attestation-gate?orgId={org.id}"
    return Made(org.id, ok(org.root.get(path)), path)


def _reference(org: Org) -> Made:
    wanted = {"orgId": org.id, "name": "Image", "pcrs": {"4": "ab" * 32}}
    made = ok(org.root.post("/api/reference-values", json=wanted))
    return Made(made["id"], made)


def _forwarder(org: Org) -> Made:
    wanted = {
        "orgId": org.id,
        "name": "SIEM",
        "kind": "webhook",
        "enabled": False,
        "webhook": {"url": "https://siem.school.example/"},
    }
    made = ok(org.root.post("/api/forwarders", json=wanted))
    return Made(made["id"], made, f"/api/forwarders/{made['id']}")


def _schedule(org: Org) -> Made:
    wanted = {"orgId": org.id, "kind": "access-review", "every": "month"}
    made = ok(org.root.post("/api/report-schedules", json=wanted))
    return Made(made["id"], made, f"/api/report-schedules/{made['id']}")


def _group(org: Org) -> Made:
    alias = f"g{uuid4().hex[:12]}"
    wanted = {"orgId": org.id, "name": "Cart 3", "alias": alias}
    made = ok(org.root.post("/api/device-groups", json=wanted))
    return Made(made["id"], made, f"/api/device-groups/{made['id']}")


def _variable(org: Org) -> Made:
    wanted = {"orgId": org.id, "name": f"v{uuid4().hex[:12]}", "value": "one", "secret": True}
    made = ok(org.root.post("/api/policy-variables", json=wanted))
    return Made(made["id"], made, f"/api/policy-variables/{made['id']}")


def _directory(org: Org) -> Made:
    wanted = {
        "orgId": org.id,
        "name": "Directory",
        "kind": "ad",
        "urls": ["ldaps://127.0.0.1:1"],
        "bindDn": "cn=evergreen",
        "bindPassword": PASSWORD,
        "baseDn": "dc=school",
        "disabled": True,
    }
    made = ok(org.root.post("/api/directories", json=wanted))
    return Made(made["id"], made, f"/api/directories/{made['id']}")


def _provider(org: Org) -> Made:
    wanted = {
        "orgId": org.id,
        "name": "Provider",
        "issuer": "https://login.school.example",
        "clientId": "evergreen",
        "clientSecret": PASSWORD,
        "disabled": True,
    }
    made = ok(org.root.post("/api/sso-providers", json=wanted))
    return Made(made["id"], made, f"/api/sso-providers/{made['id']}")


def _scim_source(org: Org) -> Made:
    made = ok(org.root.post("/api/scim-sources", json={"orgId": org.id, "name": "SCIM"}))
    return Made(made["id"], made, f"/api/scim-sources/{made['id']}")


def _domain(org: Org) -> Made:
    name = f"{uuid4().hex[:12]}.example"
    made = ok(org.root.post("/api/email-domains", json={"domain": name, "orgId": org.id}))
    return Made(name, made)


def _domain_to_point(org: Org) -> Made:
    """With a directory that it may name: the first one of the organisation."""
    _directory(org)
    return _domain(org)


_CASES: dict[str, tuple[Callable[[Org], Made], dict[str, Any]]] = {
    "UpdateTenant": (_tenant, {"name": f"School {uuid4().hex[:6]}"}),
    "UpdateUser": (_user, {"role": "Admin"}),
    "DeactivateUser": (_user, {}),
    "InviteUser": (_user, {}),
    "RotateApiToken": (_api_token, {}),
    "RevokeApiToken": (_api_token, {}),
    "UpdateServiceAccount": (_service_account, {"role": "Auditor"}),
    "DeleteServiceAccount": (_service_account, {}),
    "TakeOverEventCredential": (_credential, {}),
    "RevokeEventCredential": (_credential, {}),
    "RevokeEnrollmentToken": (_token, {}),
    "UpdateRegistration": (_device, {"labels": {"room": "214"}}),
    "UpdateDeviceGroup": (_group, {"name": "Cart III"}),
    "DeleteDeviceGroup": (_group, {}),
    "ApproveDevice": (_waiting, {}),
    "RejectDevice": (_waiting, {}),
    "AllowReenrollment": (_device, {}),
    "DecommissionDevice": (_device, {}),
    "UpdatePolicy": (_policy, {"name": "Other"}),
    "DeletePolicy": (_policy, {}),
    "PublishPolicy": (_policy, {}),
    "WithdrawPolicy": (_published, {}),
    "RollbackPolicy": (_published, {"version": "1"}),
    "UpdatePolicyVariable": (_variable, {"value": "another"}),
    "DeletePolicyVariable": (_variable, {}),
    "UpdateEventRetention": (_retention, {"days": 30}),
    "UpdateAttestationGate": (_gate, {"mode": "OBSERVE"}),
    "UpdatePolicySettings": (_policy_settings, {"timeZone": "Europe/Berlin"}),
    "UpdateReferenceValue": (_reference, {"state": "ACTIVE"}),
    "DeleteReferenceValue": (_reference, {}),
    "UpdateForwarder": (_forwarder, {"name": "Other"}),
    "DeleteForwarder": (_forwarder, {}),
    "UpdateAlertRules": (_alert_rules, {"recipients": {"roles": ["Admin"]}}),
    "UpdateAuditRetention": (_log_retention, {"keepYears": 7}),
    "UpdateReportSchedule": (_schedule, {"keep": 5}),
    "DeleteReportSchedule": (_schedule, {}),
    "UpdateDirectory": (_directory, {"name": "Other"}),
    "DeleteDirectory": (_directory, {}),
    "UpdateSsoProvider": (_provider, {"name": "Other"}),
    "DeleteSsoProvider": (_provider, {}),
    "UpdateScimSource": (_scim_source, {"name": "Other"}),
    "DeleteScimSource": (_scim_source, {}),
    "UpdateEmailDomain": (_domain_to_point, {"sourceId": "one of the organisation's"}),
    "DeleteEmailDomain": (_domain, {}),
}
"""What each call changes, and its body."""
_KEEP_IT = {
    "AllowReenrollment",
    "DeleteDirectory",
    "DeleteEmailDomain",
    "DeleteScimSource",
    "DeleteSsoProvider",
}
"""They answer the resource as it was."""
_STEPS_OF_A_LIFE = {
    "ApproveRollout",
    "PauseRollout",
    "ResumeRollout",
    "AdvanceRollout",
    "CancelRollout",
    "RollBackRollout",
    "ArchiveTenant",
    "RestoreTenant",
    "DeleteTenant",
    "DropTenantCode",
    "DeleteDevice",
    "DeleteUser",
    "ReactivateUser",
}
"""They take an etag as well, and are tried where the steps before them are made."""


@pytest.fixture(scope="module")
def school(stack: Stack, root: httpx.Client) -> Org:
    return make_org(stack, root, "Etags")


@pytest.fixture
def org(stack: Stack, school: Org) -> Iterator[Org]:
    """With a session of the test's own, for a session has a rate."""
    with stack.first_owner() as client:
        yield replace(school, root=client)


def test_every_change_of_a_resource_takes_an_etag() -> None:
    """A new call that changes something takes one too, and is tried below."""
    changes = {_short(r) for r in _CHANGES}
    assert changes == set(_CASES) | _STEPS_OF_A_LIFE
    others = {_short(r) for r in _WRITES} - changes - _OF_NO_RESOURCE
    assert all(name.startswith("Create") for name in others), others


def _change(org: Org, rpc: Rpc, made: Made, if_match: str | None, **field: str) -> httpx.Response:
    headers = {} if if_match is None else {"if-match": if_match}
    url, body = rpc.url(id=made.id, domain=made.id), {**_CASES[_short(rpc)][1], **field}
    if "sourceId" in body:
        found = ok(org.root.get("/api/directories", params={"orgId": org.id}))["directories"]
        body["sourceId"] = found[0]["id"]
    if rpc.method == "DELETE":
        return org.root.request(rpc.method, url, params=body, headers=headers)
    if "version" in body:
        body["version"] = made.shown["version"]
    if "{" not in rpc.path:
        body["orgId"] = made.id
    return org.root.request(rpc.method, url, json=body, headers=headers)


def _refused(answer: httpx.Response, status: int, code: str) -> None:
    body = assert_error(answer, status, code)
    assert body["details"][0]["reason"] == "ETAG_MISMATCH"
    assert "read it again" in body["message"] or "a weak etag" in body["message"]


@pytest.mark.parametrize("rpc", [r for r in _CHANGES if _short(r) in _CASES], ids=_short)
def test_a_change_is_refused_unless_it_knows_what_it_changes(org: Org, rpc: Rpc) -> None:
    """By the header and by the field; nothing has changed then."""
    made = _CASES[_short(rpc)][0](org)
    etag = made.shown["etag"]
    if made.path is not None:
        read = org.root.get(made.path)
        assert read.headers["etag"] == f'"{etag}"'
        assert ok(read)["etag"] == etag
        _refused(org.root.get(made.path, headers={"if-match": '"other"'}), 412, "ABORTED")
    for other in ('"other"', f'W/"{etag}"', '"a", W/"b" , "c"'):
        _refused(_change(org, rpc, made, other), 412, "ABORTED")
    _refused(_change(org, rpc, made, None, etag="other"), 409, "ABORTED")
    _refused(_change(org, rpc, made, "*", etag="other"), 412, "ABORTED")
    for two in (f'"{etag}"', '"third"'):
        assert_error(_change(org, rpc, made, two, etag="other"), 400, "INVALID_ARGUMENT")
    for broken in ("", etag, '"', '"a" "b"', f'w/"{etag}"', '*, "a"', '"a",, "b"'):
        answer = assert_error(_change(org, rpc, made, broken), 400, "INVALID_ARGUMENT")
        assert answer["message"].startswith("If-Match: "), broken
    if made.path is not None:
        assert ok(org.root.get(made.path))["etag"] == etag
    changed = _change(org, rpc, made, f'"a", "{etag}"', etag=etag)
    after = ok(changed)
    if "etag" in after:
        assert changed.headers["etag"] == f'"{after["etag"]}"'
        assert after["etag"] != etag or _short(rpc) in _KEEP_IT
    else:
        assert rpc.method == "DELETE"


def test_a_header_that_no_service_takes_harms_nobody(org: Org) -> None:
    """HTTP allows more characters in names than gRPC does: such headers are dropped."""
    for name in ("!odd", "&odd"):
        ok(org.root.get("/api/tenants", headers={name: "1"}))


def test_any_etag_will_do(org: Org) -> None:
    """`*` is for what exists, and the field's older form stays."""
    made = _policy(org)
    for name, header in (("A", "*"), ("B", None)):
        path = f"/api/policies/{made.id}"
        headers = {"if-match": header} if header else {}
        assert ok(org.root.patch(path, json={"name": name}, headers=headers))["name"] == name
    answer = org.root.patch(
        f"/api/policies/{uuid4()}", json={"name": "C"}, headers={"if-match": "*"}
    )
    assert_error(answer, 404, "NOT_FOUND")


def test_a_call_that_cannot_honour_it_says_so(org: Org) -> None:
    """A new resource has no etag that could be known."""
    answer = org.root.post("/api/tenants", json={"name": uuid4().hex}, headers={"if-match": '"a"'})
    assert assert_error(answer, 400, "INVALID_ARGUMENT")["message"].startswith("If-Match: ")
    ok(org.root.get("/api/tenants", headers={"if-match": '"a"'}))


_REPEATED: dict[str, tuple[Callable[[Org], Made], str, str, dict[str, Any]]] = {
    "identity.tenant_updated": (_tenant, "PATCH", "/api/tenants/{id}", {"name": "Same"}),
    "identity.user_updated": (_user, "PATCH", "/api/users/{id}", {"role": "Admin"}),
    "identity.user_deactivated": (_user, "POST", "/api/users/{id}/deactivate", {}),
    "identity.api_token_revoked": (_api_token, "POST", "/api/tokens/{id}/revoke", {}),
    "identity.service_account_updated": (
        _service_account,
        "PATCH",
        "/api/service-accounts/{id}",
        {"role": "Auditor"},
    ),
    "identity.event_credential_revoked": (
        _credential,
        "POST",
        "/api/event-credentials/{id}/revoke",
        {},
    ),
    "identity.event_credential_taken_over": (
        _credential,
        "POST",
        "/api/event-credentials/{id}/take-over",
        {},
    ),
    "enrollment.token_revoked": (_token, "POST", "/api/enrollment-tokens/{id}/revoke", {}),
    "enrollment.device_labels_changed": (
        _device,
        "PATCH",
        "/api/registrations/{id}",
        {"labels": {"room": "214"}},
    ),
    "enrollment.group_updated": (
        _group,
        "PATCH",
        "/api/device-groups/{id}",
        {"description": "Same"},
    ),
    "enrollment.device_approved": (_waiting, "POST", "/api/devices/{id}/approve", {}),
    "enrollment.device_decommissioned": (_device, "POST", "/api/devices/{id}/decommission", {}),
    "policy.updated": (_policy, "PATCH", "/api/policies/{id}", {"description": "Same"}),
    "policy.variable_updated": (
        _variable,
        "PATCH",
        "/api/policy-variables/{id}",
        {"value": "another"},
    ),
    "policy.withdrawn": (_published, "POST", "/api/policies/{id}/withdraw", {}),
    "attestation.reference_value_updated": (
        _reference,
        "PATCH",
        "/api/reference-values/{id}",
        {"state": "ACTIVE"},
    ),
    "audit.forwarder_updated": (_forwarder, "PATCH", "/api/forwarders/{id}", {"name": "Same"}),
    "telemetry.event_retention_updated": (
        _retention,
        "PATCH",
        "/api/events/retention",
        {"days": 45},
    ),
    "policy.attestation_gate_updated": (
        _gate,
        "PATCH",
        "/api/attestation-gate",
        {"mode": "OBSERVE"},
    ),
    "audit.alert_rules_updated": (
        _alert_rules,
        "PATCH",
        "/api/alert-rules",
        {"recipients": {"roles": ["Admin"]}},
    ),
    "audit.retention_updated": (
        _log_retention,
        "PATCH",
        "/api/audit/retention",
        {"keepYears": 9},
    ),
    "policy.settings_updated": (
        _policy_settings,
        "PATCH",
        "/api/policy-settings",
        {"requireApproval": True},
    ),
    "identity.sso_provider_updated": (
        _provider,
        "PATCH",
        "/api/sso-providers/{id}",
        {"name": "Same"},
    ),
    "identity.scim_source_updated": (
        _scim_source,
        "PATCH",
        "/api/scim-sources/{id}",
        {"name": "Same"},
    ),
    "identity.directory_updated": (
        _directory,
        "PATCH",
        "/api/directories/{id}",
        {"name": "Same"},
    ),
}
"""Calls that change something once: the event, what is made first, and the call."""


def _arrived(org: Org, action: str) -> list[str]:
    """The resources of the entries of an action, as far as they have arrived."""
    entries = ok(org.root.get("/api/audit", params={"orgId": org.id, "action": action}))["entries"]
    return [entry["resource"] for entry in entries]


def test_what_changes_nothing_writes_nothing(stack: Stack, org: Org) -> None:
    """The same call again: the same answer, and neither a new etag nor an entry."""
    root = org.root
    org = make_org(stack, root, "Repeated")
    for make, method, path, body in _REPEATED.values():
        made = make(org)
        given = body if "{id}" in path else {"orgId": org.id, **body}
        url = path.format(id=made.id)
        first = ok(root.request(method, url, json=given))
        assert _settings(ok(root.request(method, url, json=given))) == _settings(first)
        known = {"if-match": f'"{first["etag"]}"'}
        again = ok(root.request(method, url, json=given, headers=known))
        assert _settings(again) == _settings(first)
    with stack.first_owner() as later:
        _wrote_once(replace(org, root=later))


def _settings(resource: dict[str, Any]) -> dict[str, Any]:
    """All but how a forwarder gets on, which is no setting of it."""
    return {k: v for k, v in resource.items() if not (k == "state" and isinstance(v, dict))}


def _wrote_once(org: Org) -> None:
    # What each service told later has arrived: so has all that came before.
    last = {
        "identity.user_created": f"users/{_user(org).id}",
        "enrollment.token_created": f"enrollment-tokens/{_token(org).id}",
        "policy.created": f"policies/{_policy(org).id}",
        "telemetry.events_exported": f"tenants/{org.id}/events",
        "attestation.reference_value_created": f"reference-values/{_reference(org).id}",
        "audit.forwarder_created": f"forwarders/{_forwarder(org).id}",
    }
    assert org.root.get("/api/events/export", params={"orgId": org.id}).is_success
    for action, resource in last.items():
        until(lambda a=action, r=resource: r in _arrived(org, a), 60, f"no entry of {action}", 0.5)
    for action in _REPEATED:
        found = _arrived(org, action)
        assert len(found) == 1, (action, found)
