"""Who may call what, and within which bounds: the one table of all RPCs.

The services' pipeline, the gateway's configuration, the OpenAPI document and the tests are made
from it. An RPC without a row is refused. What a row can say is in `contract.rows`; a row that
contradicts itself fails at import. Addresses that are no RPC's are in `contract.addresses`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from contract.contexts import CONTEXTS
from contract.rows import (
    ENDLESS,
    Audience,
    Body,
    File,
    RateClass,
    Role,
    Rule,
    read_scope,
    write_scope,
)

__all__ = ["ACCESS", "AREAS", "NATIVE", "PACKAGE", "SCOPES", "Audience", "Role", "Rule"]

PACKAGE: Final = "evergreen.v1"

_READ: Final = frozenset({Role.OWNER, Role.ADMIN, Role.AUDITOR})
_WRITE: Final = frozenset({Role.OWNER, Role.ADMIN})
_OWN: Final = frozenset({Role.OWNER})

_OPEN: Final = Rule(audience=Audience.PUBLIC, rate=RateClass.OPEN)
_PUBLISHED: Final = Rule(audience=Audience.PUBLIC, rate=RateClass.PUBLISHED)
_OPEN_WRITE: Final = replace(_OPEN, writes=True, strict=True)
_ENROLL: Final = Rule(audience=Audience.PUBLIC, writes=True, rate=RateClass.ENROLL, agent_form=True)
_POLL: Final = Rule(
    audience=Audience.DEVICE_LAPSED, rate=RateClass.DEVICE, agent_form=True, unchanged=True
)
_REPORT: Final = Rule(audience=Audience.DEVICE, writes=True, rate=RateClass.DEVICE, agent_form=True)
_CHALLENGE: Final = Rule(audience=Audience.DEVICE, writes=True, rate=RateClass.DEVICE)
_USER_READ: Final = Rule(audience=Audience.USER, roles=_READ, rate=RateClass.USER, strict=True)
_USER_OWN: Final = replace(_USER_READ, writes=True)
_ADMIN_WRITE: Final = replace(_USER_OWN, roles=_WRITE)
_OWNER_WRITE: Final = replace(_USER_OWN, roles=_OWN)
_FRESH_OWN: Final = replace(_USER_OWN, fresh=True)
_FRESH_ADMIN: Final = replace(_ADMIN_WRITE, fresh=True)
_FRESH_OWNER: Final = replace(_OWNER_WRITE, fresh=True)


def _services(*callers: str) -> Rule:
    return Rule(audience=Audience.INTERNAL, callers=frozenset(callers))


_JSON: Final = "application/json"
_CSV: Final = "text/csv"
_CHOSEN: Final = "The file, in the format that was asked for"
_PEM: Final = File(about="The keys in PEM", media=("application/x-pem-file",))
_TEXT: Final = "text/plain"
_PROOF: Final = File(about="The proof", media=(_TEXT,))
_TREE_CHECKPOINT: Final = File(about="The checkpoint", media=(_TEXT,))
_TILE: Final = File(about="The hashes", media=("application/octet-stream",))
_NOTE_KEYS: Final = File(about="The keys, a line each", media=(_TEXT,))
_AUDIT_FILE: Final = File(about=_CHOSEN, media=("application/jsonl", _CSV))
_EVENT_FILE: Final = File(about=_CHOSEN, media=(_JSON, _CSV), list_of="Event")
_DEVICE_FILE: Final = File(about=_CHOSEN, media=(_JSON, _CSV), list_of="DeviceSummary")
_ATTESTATION_FILE: Final = File(about=_CHOSEN, media=(_JSON, _CSV), list_of="Attestation")
_KEY_FILE: Final = File(about="The keys as CSV", media=(_CSV,))
_REPORT_FILE: Final = File(
    about="The file", media=(_CSV, _JSON, "text/html", _TEXT, "application/jsonl")
)
_PERSON_FILE: Final = File(about="What is held about the person", media=("application/jsonl",))
_RAW_EVENT: Final = File(about="The event as it was sent", media=(_TEXT,))
_START_FILE: Final = File(
    about="The file that the agent starts from",
    media=(_JSON,),
    agent_form_of="EnrollDeviceResponse",
)
_DOWNLOAD: Final = replace(_USER_READ, timeout=ENDLESS)

_TABLE: Final[dict[str, dict[str, dict[str, Rule]]]] = {
    "identity": {
        "AuthService": {
            # Attempts are slowed down after failures, by up to half a minute.
            "Login": replace(_OPEN_WRITE, rate=RateClass.LOGIN, timeout=45),
            "RefreshSession": replace(_OPEN_WRITE, rate=RateClass.REFRESH),
            "AcceptInvitation": replace(_OPEN_WRITE, rate=RateClass.INVITATION),
            "ForgotPassword": replace(_OPEN_WRITE, rate=RateClass.LOGIN, timeout=30),
            "GetSession": _USER_READ,
            "Logout": _USER_OWN,
            "ChangePassword": replace(_USER_OWN, timeout=30),
            "StepUp": replace(_USER_OWN, timeout=45),
            "ListLoginMethods": replace(_OPEN, strict=True),
        },
        "SessionService": {
            "ListSessions": _USER_READ,
            "EndSession": _USER_OWN,
            "EndOtherSessions": _USER_OWN,
            "ListUserSessions": replace(_USER_READ, roles=_WRITE),
            "EndUserSessions": _ADMIN_WRITE,
        },
        "SecondFactorService": {
            "GetSecondFactors": _USER_READ,
            "CreateRecoveryCodes": _FRESH_OWN,
            "CreateTotp": _FRESH_OWN,
            "ConfirmTotp": _USER_OWN,
            "DeleteTotp": _FRESH_OWN,
            "CreatePasskeyOptions": _FRESH_OWN,
            "CreatePasskey": _FRESH_OWN,
            "DeletePasskey": _FRESH_OWN,
            "ResetSecondFactors": _FRESH_OWNER,
            "GetSignInPolicy": _USER_READ,
            "UpdateSignInPolicy": _FRESH_OWNER,
        },
        "TenantService": {
            "ListTenants": _USER_READ,
            "GetTenant": _USER_READ,
            "CreateTenant": _OWNER_WRITE,
            "UpdateTenant": _OWNER_WRITE,
            "DropTenantCode": _OWNER_WRITE,
            # With thousands of tenants below one.
            "ArchiveTenant": replace(_OWNER_WRITE, timeout=60),
            "RestoreTenant": replace(_OWNER_WRITE, timeout=60),
            "DeleteTenant": replace(_OWNER_WRITE, timeout=60),
            "GetTenantDeletion": _USER_READ,
        },
        "UserService": {
            "ListUsers": _USER_READ,
            "GetUser": _USER_READ,
            "CreateUser": _ADMIN_WRITE,
            "UpdateUser": _ADMIN_WRITE,
            "DeactivateUser": _ADMIN_WRITE,
            "DeleteUser": _ADMIN_WRITE,
            "ReactivateUser": _ADMIN_WRITE,
            "InviteUser": _ADMIN_WRITE,
        },
        "EventCredentialService": {
            "ListEventCredentials": _USER_READ,
            "CreateEventCredential": _ADMIN_WRITE,
            "TakeOverEventCredential": _OWNER_WRITE,
            "RevokeEventCredential": _ADMIN_WRITE,
        },
        "DirectoryService": {
            "ListDirectories": _USER_READ,
            "GetDirectory": _USER_READ,
            "CreateDirectory": _FRESH_OWNER,
            "UpdateDirectory": replace(_FRESH_OWNER, timeout=30),
            "DeleteDirectory": replace(_FRESH_OWNER, timeout=30),
            # They wait for somebody else's server.
            "TestDirectory": replace(_OWNER_WRITE, timeout=45),
            "SyncDirectory": replace(_OWNER_WRITE, timeout=60),
        },
        "EmailDomainService": {
            "ListEmailDomains": _USER_READ,
            "CreateEmailDomain": _FRESH_OWNER,
            "UpdateEmailDomain": _FRESH_OWNER,
            "DeleteEmailDomain": _FRESH_OWNER,
        },
        "SsoProviderService": {
            "ListSsoProviders": _USER_READ,
            "GetSsoProvider": _USER_READ,
            "CreateSsoProvider": _FRESH_OWNER,
            "UpdateSsoProvider": replace(_FRESH_OWNER, timeout=30),
            "DeleteSsoProvider": replace(_FRESH_OWNER, timeout=30),
            # It waits for somebody else's server.
            "TestSsoProvider": replace(_FRESH_OWNER, timeout=45),
        },
        "ScimSourceService": {
            "ListScimSources": _USER_READ,
            "GetScimSource": _USER_READ,
            "CreateScimSource": _FRESH_OWNER,
            "UpdateScimSource": replace(_FRESH_OWNER, timeout=30),
            "DeleteScimSource": replace(_FRESH_OWNER, timeout=30),
            "ConfirmScimSource": replace(_FRESH_OWNER, timeout=30),
            "UnlinkScimUser": _FRESH_OWNER,
            "ListScimPeople": _USER_READ,
        },
        "ApiTokenService": {
            "ListApiTokens": _USER_READ,
            "GetApiToken": _USER_READ,
            "CreateApiToken": _FRESH_OWN,
            "RotateApiToken": _FRESH_OWN,
            "RevokeApiToken": _USER_OWN,
        },
        "ServiceAccountService": {
            "ListServiceAccounts": _USER_READ,
            "GetServiceAccount": _USER_READ,
            "CreateServiceAccount": _FRESH_ADMIN,
            "UpdateServiceAccount": _FRESH_ADMIN,
            "DeleteServiceAccount": _ADMIN_WRITE,
        },
        "MailService": {
            "GetMailStatus": _USER_READ,
            # It waits for the mail server.
            "TestMail": replace(_OWNER_WRITE, timeout=60),
        },
        "TokenKeyService": {
            "GetJwks": _OPEN,
            "ListTokenKeys": _USER_READ,
            "RotateTokenKey": _FRESH_OWNER,
        },
        "IdentityInternalService": {
            "IssueDeviceToken": _services("enrollment", "policy"),
            "ListAccessChanges": _services(*CONTEXTS),
            "ListUserFacts": _services("audit"),
            "ListCredentialFacts": _services("audit"),
            "NoteTokenUses": _services(*CONTEXTS),
            "ReportTenantErasure": _services(*CONTEXTS),
            "SendMail": _services("audit"),
            "FindPersonAccounts": _services("audit"),
            "ListPersonRecords": _services("audit"),
        },
    },
    "enrollment": {
        "DeviceService": {"EnrollDevice": _ENROLL},
        "EnrollmentTokenService": {
            "ListEnrollmentTokens": _USER_READ,
            "GetEnrollmentToken": _USER_READ,
            "CreateEnrollmentToken": _ADMIN_WRITE,
            "RevokeEnrollmentToken": _ADMIN_WRITE,
        },
        "DeviceRegistryService": {
            "ListRegistrations": _USER_READ,
            "GetRegistration": _USER_READ,
            "UpdateRegistration": _ADMIN_WRITE,
            # A thousand devices, each with its event.
            "BatchUpdateRegistrations": replace(_ADMIN_WRITE, timeout=60),
            "BatchImportRegistrations": replace(_ADMIN_WRITE, timeout=60),
            "BatchGetRegistrations": _USER_READ,
            "ApproveDevice": _ADMIN_WRITE,
            "RejectDevice": _ADMIN_WRITE,
            "AllowReenrollment": _ADMIN_WRITE,
            "DecommissionDevice": _ADMIN_WRITE,
            "DeleteDevice": _ADMIN_WRITE,
            "ListEnrollmentRefusals": _USER_READ,
            "PrepareDevice": replace(_ADMIN_WRITE, file=_START_FILE),
        },
        "DeviceGroupService": {
            "ListDeviceGroups": _USER_READ,
            "GetDeviceGroup": _USER_READ,
            "CreateDeviceGroup": _ADMIN_WRITE,
            "UpdateDeviceGroup": _ADMIN_WRITE,
            "DeleteDeviceGroup": _ADMIN_WRITE,
            "ListGroupMembers": _USER_READ,
            "ChangeGroupMembers": _ADMIN_WRITE,
            "PreviewDeviceGroup": _USER_READ,
            # Hundreds of groups, each with its devices.
            "ApplyDeviceGroupSet": replace(_ADMIN_WRITE, timeout=60),
        },
        "EnrollmentInternalService": {
            "ListDeviceChanges": _services("policy", "telemetry", "attestation"),
            "ListGroupChanges": _services("policy", "telemetry"),
            "CountEnrollment": _services("identity"),
            "ListDeviceRecords": _services("audit"),
            "ListTokenRecords": _services("audit"),
            "ListPersonRecords": _services("audit"),
        },
    },
    "policy": {
        "DeviceService": {"PullPolicy": _POLL},
        "PolicyService": {
            "ListPolicies": _USER_READ,
            "GetPolicy": _USER_READ,
            "CreatePolicy": _ADMIN_WRITE,
            "UpdatePolicy": _ADMIN_WRITE,
            "DeletePolicy": _ADMIN_WRITE,
            "PublishPolicy": _ADMIN_WRITE,
            "WithdrawPolicy": _ADMIN_WRITE,
            "RollbackPolicy": _ADMIN_WRITE,
            "ListPolicyVersions": _USER_READ,
            "DiffPolicyVersions": _USER_READ,
            "GetEffectivePolicy": _USER_READ,
            "GetLayeredPolicy": _USER_READ,
            # With secrets to compare: for those who may see them.
            "SimulatePolicy": replace(_USER_READ, roles=_WRITE, timeout=30),
            # Hundreds of policies, each compiled and signed; and a simulation.
            "ApplyPolicySet": replace(_ADMIN_WRITE, timeout=60),
            "ExportPolicySet": _USER_READ,
            "MovePolicySecrets": replace(_ADMIN_WRITE, timeout=60),
            "ListOrphanedDevices": _USER_READ,
            "GetAttestationGate": _USER_READ,
            "UpdateAttestationGate": _ADMIN_WRITE,
            "PreviewAttestationGate": _USER_READ,
            "ListAttestationGates": _USER_READ,
            "SyncDevice": _ADMIN_WRITE,
        },
        "PolicyRolloutService": {
            "ListRollouts": _USER_READ,
            "GetRollout": _USER_READ,
            "ListRolloutDevices": _USER_READ,
            "ApproveRollout": _FRESH_ADMIN,
            "PauseRollout": _ADMIN_WRITE,
            "ResumeRollout": _ADMIN_WRITE,
            "AdvanceRollout": _ADMIN_WRITE,
            "CancelRollout": _ADMIN_WRITE,
            "RollBackRollout": _ADMIN_WRITE,
            "GetPolicySettings": _USER_READ,
            "UpdatePolicySettings": _FRESH_ADMIN,
        },
        "PolicyVariableService": {
            "ListPolicyVariables": _USER_READ,
            "GetPolicyVariable": _USER_READ,
            "CreatePolicyVariable": _ADMIN_WRITE,
            # It may publish all policies of a tenant.
            "UpdatePolicyVariable": replace(_ADMIN_WRITE, timeout=60),
            "DeletePolicyVariable": _ADMIN_WRITE,
        },
        "PolicyKeyService": {
            "ListPolicyKeys": _OPEN,
            "GetPolicyKeysPem": replace(_OPEN, file=_PEM),
            "ListPolicyKeyLog": _OPEN,
            "ListManagedPolicyKeys": _USER_READ,
            "ListPolicyKeyDevices": _USER_READ,
            "CreatePolicyKey": _FRESH_OWNER,
            "ActivatePolicyKey": _FRESH_OWNER,
            "RetirePolicyKey": _FRESH_OWNER,
            "MarkPolicyKeyCompromised": _FRESH_OWNER,
            "ExportPolicyKey": _USER_READ,
            "CertifyPolicyKey": _FRESH_OWNER,
            "GetPolicyRootKey": _OPEN,
            "SetPolicyRootKey": _FRESH_OWNER,
        },
        "PolicyInternalService": {
            "GetDevicePolicy": _services("enrollment", "telemetry"),
            "GetTokenPolicyKey": _services("enrollment"),
            "ListAppliedVersions": _services("enrollment", "telemetry"),
            "CountPolicies": _services("identity"),
            "ListGroupPolicies": _services("enrollment"),
            "ListAttestationGateChanges": _services("telemetry"),
            "ListRestrictedDeviceChanges": _services("telemetry"),
            "ListPublishedVersions": _services("audit"),
            "ListDeviceVersions": _services("audit"),
            "ListPersonRecords": _services("audit"),
        },
    },
    "telemetry": {
        "DeviceService": {
            "ReportState": replace(_REPORT, body=Body.STATE),
            "ReportEvents": replace(_REPORT, body=Body.EVENTS, timeout=60),
        },
        "InventoryService": {
            "ListDevices": _USER_READ,
            "GetDevice": _USER_READ,
            "ExportDevices": replace(_DOWNLOAD, file=_DEVICE_FILE),
        },
        "EventService": {
            "ListEvents": _USER_READ,
            "ExportEvents": replace(_DOWNLOAD, file=_EVENT_FILE),
            "ListQuarantinedEvents": _USER_READ,
            "ExportQuarantinedEvent": replace(_DOWNLOAD, file=_RAW_EVENT),
            "GetEventRetention": _USER_READ,
            "UpdateEventRetention": _ADMIN_WRITE,
        },
        "TelemetryInternalService": {
            "CountEvents": _services("identity", "audit"),
            "ListDeviceFacts": _services("audit"),
            "ListPersonRecords": _services("audit"),
            "ListDeviceVitals": _services("policy"),
        },
    },
    "attestation": {
        "DeviceService": {"AttestBoot": replace(_REPORT, body=Body.STATE)},
        "AttestationService": {
            "CreateChallenge": _CHALLENGE,
            "CreateTpmEnrollment": _CHALLENGE,
            "ActivateTpmEnrollment": _CHALLENGE,
            "ResetTpmBinding": _ADMIN_WRITE,
            "ListTrustRoots": _USER_READ,
            "CreateTrustRoot": _OWNER_WRITE,
            "DeleteTrustRoot": _OWNER_WRITE,
            "ImportEndorsementKeys": _ADMIN_WRITE,
            "ExportEndorsementKeys": replace(_DOWNLOAD, roles=_OWN, file=_KEY_FILE),
            "ListAttestations": _USER_READ,
            "GetAttestation": _USER_READ,
            "ListAttestationVerdicts": _USER_READ,
            "ExportAttestations": replace(_DOWNLOAD, file=_ATTESTATION_FILE),
            "ListReferenceValues": _USER_READ,
            "CreateReferenceValue": _ADMIN_WRITE,
            "UpdateReferenceValue": _ADMIN_WRITE,
            "DeleteReferenceValue": _ADMIN_WRITE,
            "LearnReferenceValue": _ADMIN_WRITE,
            "PreviewReferenceValues": replace(_USER_READ, timeout=60),
        },
        "AttestationInternalService": {
            "ListVerdictChanges": _services("policy", "telemetry"),
            "ListDeviceVerdicts": _services("audit"),
            "ListPersonRecords": _services("audit"),
        },
    },
    "audit": {
        "AuditService": {
            "ListAuditEntries": _USER_READ,
            "GetAuditEntry": _USER_READ,
            "GetAuditCheckpoint": _USER_READ,
            "ExportAuditEntries": replace(_DOWNLOAD, file=_AUDIT_FILE),
            "GetAuditKeysPem": replace(_OPEN, file=_PEM),
            "GetAuditProof": replace(_USER_READ, file=_PROOF),
            "GetAuditLogCheckpoint": replace(_USER_READ, file=_TREE_CHECKPOINT),
            "GetAuditLogTile": replace(_USER_READ, file=_TILE),
            "GetPublicAuditLogCheckpoint": replace(_PUBLISHED, file=_TREE_CHECKPOINT),
            "GetPublicAuditLogTile": replace(_PUBLISHED, file=_TILE),
            "GetAuditConsistency": _USER_READ,
            "GetAuditLogKeys": replace(_OPEN, file=_NOTE_KEYS),
            "ListAuditKeys": _USER_READ,
            "RotateAuditKey": _FRESH_OWNER,
        },
        "AuditRetentionService": {
            "GetAuditRetention": _USER_READ,
            "UpdateAuditRetention": _FRESH_OWNER,
        },
        "ForwarderService": {
            "ListForwarders": _USER_READ,
            "GetForwarder": _USER_READ,
            "CreateForwarder": _ADMIN_WRITE,
            "UpdateForwarder": _ADMIN_WRITE,
            "DeleteForwarder": _ADMIN_WRITE,
            # A target may take a minute for its answer.
            "TestForwarder": replace(_ADMIN_WRITE, timeout=75),
            "ReplayForwarder": _ADMIN_WRITE,
            "RotateForwarderSecret": _FRESH_ADMIN,
            "ListForwarderQuarantine": _USER_READ,
            "RetryForwarderQuarantine": _ADMIN_WRITE,
        },
        "ReportService": {
            "ListReportKinds": _USER_READ,
            # An Auditor is who needs them.
            "CreateReport": _USER_OWN,
            "ListReports": _USER_READ,
            "GetReport": _USER_READ,
            "DownloadReport": replace(_DOWNLOAD, file=_REPORT_FILE),
            "DeleteReport": _ADMIN_WRITE,
        },
        "PersonDataService": {
            "ExportPersonData": replace(_DOWNLOAD, roles=_OWN, fresh=True, file=_PERSON_FILE),
        },
        "ReportScheduleService": {
            "ListReportSchedules": _USER_READ,
            "GetReportSchedule": _USER_READ,
            "CreateReportSchedule": _ADMIN_WRITE,
            "UpdateReportSchedule": _ADMIN_WRITE,
            "DeleteReportSchedule": _ADMIN_WRITE,
        },
        "AlertService": {
            "ListAlerts": _USER_READ,
            "GetAlertRules": _USER_READ,
            "UpdateAlertRules": _ADMIN_WRITE,
        },
    },
}

_AREA_OF: Final[Mapping[str, str]] = {
    "TenantService": "tenants",
    "UserService": "users",
    "SessionService": "users",
    "EventCredentialService": "events",
    "EnrollmentTokenService": "enrollment",
    "DeviceRegistryService": "devices",
    "DeviceGroupService": "devices",
    "PolicyService": "policies",
    "PolicyRolloutService": "policies",
    "PolicyVariableService": "policies",
    "InventoryService": "devices",
    "EventService": "events",
    "AttestationService": "attestation",
    "AuditService": "audit",
    "AuditRetentionService": "audit",
    "ForwarderService": "audit",
    "ReportService": "audit",
    "ReportScheduleService": "audit",
    "AlertService": "audit",
    # Of these no token may call anything.
    "AuthService": "",
    "SecondFactorService": "",
    "ApiTokenService": "",
    "ServiceAccountService": "",
    "DirectoryService": "",
    "EmailDomainService": "",
    "SsoProviderService": "",
    "ScimSourceService": "",
    "TokenKeyService": "",
    "PolicyKeyService": "",
    "MailService": "",
    "PersonDataService": "",
}
"""The areas of services that users call."""
_PEOPLE_ONLY: Final = frozenset(
    {
        # One's own sessions: a token has none.
        "ListSessions",
        "EndSession",
        "EndOtherSessions",
        # Their answers let somebody log in, or read on when the token has ended.
        "CreateUser",
        "InviteUser",
        "CreateEventCredential",
        "TakeOverEventCredential",
        # A forwarder goes on sending when the token has ended.
        "CreateForwarder",
        "UpdateForwarder",
        "RotateForwarderSecret",
        # The person who asks for a rollout could make an account and a token to approve it.
        "ApproveRollout",
        # The installation's keys.
        "RotateAuditKey",
        # Releases what a court may have asked for.
        "UpdateAuditRetention",
    }
)
"""What no API token may do, of services that have an area."""


def _row(context: str, service: str, method: str, row: Rule) -> Rule:
    if row.audience is not Audience.USER:
        return replace(row, context=context)
    if service not in _AREA_OF:
        raise ValueError(f"{service} is for users: name its area in _AREA_OF, or none for tokens")
    area = "" if method in _PEOPLE_ONLY else _AREA_OF[service]
    return replace(row, context=context, area=area)


ACCESS: Final[Mapping[str, Rule]] = {
    f"/{PACKAGE}.{service}/{method}": _row(context, service, method, row)
    for context, services in _TABLE.items()
    for service, methods in services.items()
    for method, row in methods.items()
}
"""Every RPC by its full method name, `/evergreen.v1.<Service>/<Method>`."""

SCIM_READ: Final = "/scim/v2/read"
SCIM_WRITE: Final = "/scim/v2/write"
_SCIM: Final = Rule(context="identity", audience=Audience.SCIM, rate=RateClass.SCIM, timeout=30)
NATIVE: Final[Mapping[str, Rule]] = {SCIM_READ: _SCIM, SCIM_WRITE: replace(_SCIM, writes=True)}
"""What passes through the pipeline and is no RPC's, by what metrics and logs call it."""

AREAS: Final = tuple(sorted({row.area for row in ACCESS.values() if row.area}))
"""What API tokens can be for."""
SCOPES: Final = tuple(scope for area in AREAS for scope in (read_scope(area), write_scope(area)))
"""All that an API token can be given."""
