"""Entries as events of OCSF 1.7.0 (schema.ocsf.io): which class an action is, and its members."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from servicekit.build import current
from services.audit.forward.domain import Outcome, outcome_of

_ACCOUNT_CHANGE: Final = 3001
_AUTHENTICATION: Final = 3002
_ENTITY: Final = 3004
_ACCESS: Final = 3005
_DEVICE_CONFIG: Final = 5019
_API: Final = 6003
_OTHER: Final = 99
_CREATE, _READ, _UPDATE, _DELETE = 1, 2, 3, 4

CLASSES: Final[Mapping[str, tuple[int, int]]] = {
    "identity.login_succeeded": (_AUTHENTICATION, 1),
    "identity.login_failed": (_AUTHENTICATION, 1),
    "identity.account_under_attack": (_AUTHENTICATION, _OTHER),
    "identity.refresh_token_reused": (_AUTHENTICATION, _OTHER),
    "identity.logged_out": (_AUTHENTICATION, 2),
    "identity.sessions_ended": (_AUTHENTICATION, 2),
    "identity.directory_login_refused": (_AUTHENTICATION, 1),
    "identity.sso_login_refused": (_AUTHENTICATION, 1),
    "identity.login_refused": (_AUTHENTICATION, 1),
    "identity.logins_refused": (_AUTHENTICATION, 1),
    "identity.calls_refused": (_API, _OTHER),
    "enrollment.calls_refused": (_API, _OTHER),
    "policy.calls_refused": (_API, _OTHER),
    "telemetry.calls_refused": (_API, _OTHER),
    "attestation.calls_refused": (_API, _OTHER),
    "audit.checkpoint": (_API, _READ),
    "audit.calls_refused": (_API, _OTHER),
    "identity.user_created": (_ACCOUNT_CHANGE, 1),
    "identity.user_invited": (_ACCOUNT_CHANGE, _OTHER),
    "identity.invitation_accepted": (_ACCOUNT_CHANGE, 2),
    "identity.user_updated": (_ENTITY, _UPDATE),
    "identity.user_moved_away": (_ENTITY, _UPDATE),
    "identity.user_moved_in": (_ENTITY, _UPDATE),
    "identity.user_deactivated": (_ACCOUNT_CHANGE, 5),
    "identity.user_reactivated": (_ACCOUNT_CHANGE, 2),
    "identity.user_deleted": (_ACCOUNT_CHANGE, 6),
    "identity.service_account_created": (_ACCOUNT_CHANGE, 1),
    "identity.service_account_updated": (_ENTITY, _UPDATE),
    "identity.service_account_deleted": (_ACCOUNT_CHANGE, 6),
    "identity.api_token_created": (_ENTITY, _CREATE),
    "identity.api_token_rotated": (_ENTITY, _UPDATE),
    "identity.api_token_revoked": (_ENTITY, _DELETE),
    "identity.api_token_expires_soon": (_ENTITY, _UPDATE),
    "identity.api_token_expired": (_ENTITY, _DELETE),
    "identity.directory_created": (_ENTITY, _CREATE),
    "identity.directory_updated": (_ENTITY, _UPDATE),
    "identity.directory_deleted": (_ENTITY, _DELETE),
    "identity.directory_tested": (_API, _OTHER),
    "identity.directory_sync_failed": (_API, _OTHER),
    "identity.directory_sync_held": (_API, _OTHER),
    "identity.directory_sync_confirmed": (_API, _OTHER),
    "identity.sso_provider_created": (_ENTITY, _CREATE),
    "identity.sso_provider_updated": (_ENTITY, _UPDATE),
    "identity.sso_provider_deleted": (_ENTITY, _DELETE),
    "identity.sso_provider_tested": (_API, _OTHER),
    "identity.scim_source_created": (_ENTITY, _CREATE),
    "identity.scim_source_updated": (_ENTITY, _UPDATE),
    "identity.scim_source_deleted": (_ENTITY, _DELETE),
    "identity.scim_source_held": (_API, _OTHER),
    "identity.scim_source_confirmed": (_API, _OTHER),
    "identity.scim_person_created": (_ENTITY, _CREATE),
    "identity.scim_person_updated": (_ENTITY, _UPDATE),
    "identity.scim_person_deleted": (_ENTITY, _DELETE),
    "identity.scim_group_created": (_ENTITY, _CREATE),
    "identity.scim_group_updated": (_ENTITY, _UPDATE),
    "identity.scim_group_deleted": (_ENTITY, _DELETE),
    "identity.account_linked": (_ENTITY, _UPDATE),
    "identity.account_unlinked": (_ENTITY, _UPDATE),
    "identity.email_domain_assigned": (_ENTITY, _CREATE),
    "identity.email_domain_updated": (_ENTITY, _UPDATE),
    "identity.email_domain_deleted": (_ENTITY, _DELETE),
    "identity.mfa_enabled": (_ACCOUNT_CHANGE, 10),
    "identity.mfa_disabled": (_ACCOUNT_CHANGE, 11),
    "identity.passkey_added": (_ACCOUNT_CHANGE, 10),
    "identity.passkey_removed": (_ACCOUNT_CHANGE, 11),
    "identity.passkey_counter_behind": (_AUTHENTICATION, _OTHER),
    "identity.mfa_reset": (_ACCOUNT_CHANGE, 11),
    "identity.sign_in_policy_updated": (_ENTITY, _UPDATE),
    "identity.session_confirmed": (_AUTHENTICATION, _OTHER),
    "identity.recovery_codes_created": (_ACCOUNT_CHANGE, _OTHER),
    "identity.recovery_code_used": (_AUTHENTICATION, _OTHER),
    "identity.password_changed": (_ACCOUNT_CHANGE, 3),
    "identity.mail_tested": (_ENTITY, _OTHER),
    "identity.password_reset_requested": (_ACCOUNT_CHANGE, _OTHER),
    "identity.password_reset": (_ACCOUNT_CHANGE, 4),
    "identity.tenant_created": (_ENTITY, _CREATE),
    "identity.tenant_updated": (_ENTITY, _UPDATE),
    "identity.tenant_code_dropped": (_ENTITY, _UPDATE),
    "identity.tenant_archived": (_ENTITY, _UPDATE),
    "identity.tenant_restored": (_ENTITY, _UPDATE),
    "identity.tenant_deletion_requested": (_ENTITY, _DELETE),
    "identity.tenant_deleted": (_ENTITY, _DELETE),
    "identity.event_credential_created": (_ENTITY, _CREATE),
    "identity.event_credential_revoked": (_ENTITY, _DELETE),
    "identity.event_credential_orphaned": (_ENTITY, _UPDATE),
    "identity.event_credential_taken_over": (_ENTITY, _UPDATE),
    "identity.key_rotated": (_ENTITY, _CREATE),
    "enrollment.token_created": (_ENTITY, _CREATE),
    "enrollment.token_revoked": (_ENTITY, _DELETE),
    "enrollment.refused": (_API, _CREATE),
    "enrollment.device_enrolled": (_ENTITY, _CREATE),
    "enrollment.device_reenrolled": (_ENTITY, _UPDATE),
    "enrollment.device_pending": (_ENTITY, _CREATE),
    "enrollment.device_approved": (_ENTITY, _UPDATE),
    "enrollment.device_rejected": (_ENTITY, _UPDATE),
    "enrollment.device_prepared": (_ENTITY, _CREATE),
    "enrollment.device_recovered": (_ENTITY, _UPDATE),
    "enrollment.reenrollment_allowed": (_ENTITY, _UPDATE),
    "enrollment.reenrollment_refused": (_API, _CREATE),
    "enrollment.device_decommissioned": (_ENTITY, _UPDATE),
    "enrollment.device_deleted": (_ENTITY, _DELETE),
    "enrollment.device_restored": (_ENTITY, _UPDATE),
    "enrollment.device_expected": (_ENTITY, _CREATE),
    "enrollment.expected_device_removed": (_ENTITY, _DELETE),
    "enrollment.device_labels_changed": (_ENTITY, _UPDATE),
    "enrollment.device_groups_changed": (_ENTITY, _UPDATE),
    "enrollment.group_created": (_ENTITY, _CREATE),
    "enrollment.group_updated": (_ENTITY, _UPDATE),
    "enrollment.group_deleted": (_ENTITY, _DELETE),
    "enrollment.group_members_changed": (_ENTITY, _UPDATE),
    "policy.created": (_ENTITY, _CREATE),
    "policy.updated": (_ENTITY, _UPDATE),
    "policy.deleted": (_ENTITY, _DELETE),
    "policy.published": (_ENTITY, _UPDATE),
    "policy.withdrawn": (_ENTITY, _UPDATE),
    "policy.rolled_back": (_ENTITY, _UPDATE),
    "policy.secrets_revealed": (_ENTITY, _READ),
    "policy.key_created": (_ENTITY, _CREATE),
    "policy.key_activated": (_ENTITY, _UPDATE),
    "policy.key_certified": (_ENTITY, _UPDATE),
    "policy.key_compromised": (_ENTITY, _UPDATE),
    "policy.key_retired": (_ENTITY, _DELETE),
    "policy.root_set": (_ENTITY, _UPDATE),
    "policy.variable_created": (_ENTITY, _CREATE),
    "policy.variable_updated": (_ENTITY, _UPDATE),
    "policy.variable_deleted": (_ENTITY, _DELETE),
    "policy.rollout_created": (_ENTITY, _CREATE),
    "policy.rollout_approved": (_ENTITY, _UPDATE),
    "policy.rollout_started": (_ENTITY, _UPDATE),
    "policy.rollout_batch_opened": (_ENTITY, _UPDATE),
    "policy.rollout_batch_passed": (_ENTITY, _UPDATE),
    "policy.rollout_paused": (_ENTITY, _UPDATE),
    "policy.rollout_resumed": (_ENTITY, _UPDATE),
    "policy.rollout_stopped": (_ENTITY, _UPDATE),
    "policy.rollout_rolled_back": (_ENTITY, _UPDATE),
    "policy.rollout_completed": (_ENTITY, _UPDATE),
    "policy.rollout_superseded": (_ENTITY, _UPDATE),
    "policy.rollout_canceled": (_ENTITY, _UPDATE),
    "policy.settings_updated": (_ENTITY, _UPDATE),
    "policy.device_sync_requested": (_API, _UPDATE),
    "policy.device_token_rotated": (_ENTITY, _UPDATE),
    "policy.attestation_gate_updated": (_ENTITY, _UPDATE),
    "policy.attestation_gate_held": (_ENTITY, _UPDATE),
    "policy.devices_restricted": (_ENTITY, _UPDATE),
    "policy.devices_released": (_ENTITY, _UPDATE),
    "policy.set_applied": (_ENTITY, _UPDATE),
    "telemetry.event_retention_updated": (_ENTITY, _UPDATE),
    "telemetry.devices_exported": (_API, _READ),
    "telemetry.events_exported": (_API, _READ),
    "telemetry.quarantined_event_exported": (_API, _READ),
    "telemetry.clone_suspected": (_API, _OTHER),
    "attestation.verdict_changed": (_DEVICE_CONFIG, 1),
    "attestation.tpm_bound": (_ENTITY, _UPDATE),
    "attestation.tpm_binding_reset": (_ENTITY, _UPDATE),
    "attestation.trust_root_added": (_ENTITY, _CREATE),
    "attestation.trust_root_removed": (_ENTITY, _DELETE),
    "attestation.endorsement_keys_imported": (_ENTITY, _UPDATE),
    "attestation.endorsement_keys_exported": (_API, _READ),
    "attestation.reference_value_created": (_ENTITY, _CREATE),
    "attestation.reference_value_updated": (_ENTITY, _UPDATE),
    "attestation.reference_value_retired": (_ENTITY, _UPDATE),
    "attestation.reference_value_deleted": (_ENTITY, _DELETE),
    "attestation.attestations_exported": (_API, _READ),
    "audit.exported": (_API, _READ),
    "audit.person_data_exported": (_API, _READ),
    "audit.restored": (_API, _OTHER),
    "audit.entry_redacted": (_API, _UPDATE),
    "audit.retention_updated": (_ENTITY, _UPDATE),
    "audit.legal_hold_set": (_ENTITY, _UPDATE),
    "audit.legal_hold_released": (_ENTITY, _UPDATE),
    "audit.archived": (_API, _READ),
    "audit.pruned": (_API, _OTHER),
    "audit.key_rotated": (_ENTITY, _CREATE),
    "audit.forwarder_created": (_ENTITY, _CREATE),
    "audit.forwarder_updated": (_ENTITY, _UPDATE),
    "audit.forwarder_deleted": (_ENTITY, _DELETE),
    "audit.forwarder_tested": (_API, _OTHER),
    "audit.forwarder_replayed": (_ENTITY, _UPDATE),
    "audit.forwarder_secret_rotated": (_ENTITY, _UPDATE),
    "audit.forwarder_failing": (_ENTITY, _UPDATE),
    "audit.forwarder_recovered": (_ENTITY, _UPDATE),
    "audit.forwarder_disabled": (_ENTITY, _UPDATE),
    "audit.forwarder_quarantine": (_API, _OTHER),
    "audit.forwarder_quarantine_retried": (_API, _OTHER),
    "audit.alert_raised": (_API, _OTHER),
    "audit.alert_resolved": (_API, _OTHER),
    "audit.alert_rules_updated": (_ENTITY, _UPDATE),
    "audit.report_requested": (_API, _CREATE),
    "audit.report_created": (_ENTITY, _CREATE),
    "audit.report_failed": (_API, _OTHER),
    "audit.report_downloaded": (_API, _READ),
    "audit.report_deleted": (_ENTITY, _DELETE),
    "audit.report_schedule_created": (_ENTITY, _CREATE),
    "audit.report_schedule_updated": (_ENTITY, _UPDATE),
    "audit.report_schedule_deleted": (_ENTITY, _DELETE),
}
"""Action → class and activity. A later release's action is activity of an API."""
_CATEGORIES: Final = {
    _ACCOUNT_CHANGE: 3,
    _AUTHENTICATION: 3,
    _ENTITY: 3,
    _ACCESS: 3,
    _DEVICE_CONFIG: 5,
    _API: 6,
}
_INFORMATIONAL, _LOW, _MEDIUM = 1, 2, 3
_SUCCESS, _FAILURE = 1, 2
_NO_ADDRESS: Final = "0.0.0.0"  # noqa: S104 - said of what no call came with


def ocsf_event(record: Mapping[str, Any], host: str) -> dict[str, Any]:
    """An entry as an event of OCSF.

    Args:
        record: the entry, with the members that begin with `audit`.
        host: the public name of the installation.

    Raises:
        ValueError, KeyError: the record is no event of this system.
    """
    data: Mapping[str, Any] = record["data"]
    action = str(data["action"])
    kind, activity = CLASSES.get(action, (_API, _OTHER))
    before, after = data.get("before"), data.get("after")
    role = _role_change(before, after)
    if action == "identity.user_updated" and role:
        kind, activity = _ACCESS, 1
    outcome = outcome_of(record)
    good = outcome is Outcome.SUCCESS
    event: dict[str, Any] = {
        "activity_id": activity,
        "category_uid": _CATEGORIES[kind],
        "class_uid": kind,
        "type_uid": kind * 100 + activity,
        "severity_id": _INFORMATIONAL if good else _MEDIUM,
        "status_id": _SUCCESS if good else _FAILURE,
        "time": round(datetime.fromisoformat(str(record["time"])).timestamp() * 1000),
        "message": f"{action} {data.get('resource', '')}".strip(),
        "metadata": _metadata(record, data, action),
        "unmapped": {"resource": data.get("resource"), "before": before, "after": after},
    }
    if activity == _OTHER:
        event["activity_name"] = action
    actor = {"name": str(data.get("actor") or "system"), "uid": str(data.get("actorId") or "")}
    event["actor"] = {"user": {**actor, **({} if actor["uid"] else {"uid": actor["name"]})}}
    if kind != _DEVICE_CONFIG:
        event["src_endpoint"] = {"ip": str(data.get("sourceIp") or _NO_ADDRESS)}
    resource_type, _, resource_id = str(data.get("resource", "")).partition("/")
    user = _user(data, resource_type, resource_id, before, after)
    if kind == _AUTHENTICATION:
        event["user"] = event["actor"]["user"]
        event["service"] = {"name": "evergreen", "uid": host}
    elif kind == _ACCOUNT_CHANGE:
        event["user"] = user
    elif kind == _ACCESS:
        event["user"] = user
        event["privileges"] = [role]
    elif kind == _ENTITY:
        event["entity"] = {"uid": resource_id or "-", "name": resource_id, "type": resource_type}
    elif kind == _DEVICE_CONFIG:
        event["device"] = {"uid": resource_id, "type_id": 0, "hostname": resource_id}
    else:
        event["api"] = {"operation": action, "service": {"name": action.partition(".")[0]}}
    return event


def _metadata(record: Mapping[str, Any], data: Mapping[str, Any], action: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "version": "1.7.0",
        "uid": str(record["id"]),
        "tenant_uid": str(record.get("tenantid", "")),
        "event_code": action,
        "product": {"name": "Evergreen", "vendor_name": "Evergreen", "version": current().version},
    }
    if "auditsequence" in record:
        found["sequence"] = record["auditsequence"]
        marks = [name for name in ("auditredacted", "audittruncated") if record.get(name)]
        found["labels"] = [f"audithash={record['audithash']}", *(f"{one}=true" for one in marks)]
    if data.get("requestId"):
        found["correlation_uid"] = str(data["requestId"])
    return found


def _role_change(before: Any, after: Any) -> str:
    """The new role, where it is another one."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return ""
    role = after.get("role")
    return str(role) if role and role != before.get("role") else ""


def _user(
    data: Mapping[str, Any], resource_type: str, resource_id: str, before: Any, after: Any
) -> dict[str, Any]:
    side = after if isinstance(after, dict) else before if isinstance(before, dict) else {}
    if resource_type != "users":
        return {"name": str(data.get("actor") or "system"), "uid": str(data.get("actorId") or "-")}
    name = side.get("email") or resource_id
    return {"name": str(name), "uid": resource_id}
