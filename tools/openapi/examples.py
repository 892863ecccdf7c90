"""Examples of the main calls; each one satisfies the schema that it stands beside."""

from __future__ import annotations

from typing import Any, Final

_ORG: Final = "01936d2e-5a70-7c31-9d0e-3f6f1a8b2c01"
_DEVICE: Final = "01936d2e-9c14-7a02-8b77-51d2c3e4f506"
_POLICY: Final = "01936d2f-0b3d-7e55-a1c4-6b7a8c9d0e1f"
_TOKEN: Final = "eyJhbGciOiJFZERTQSIsImtpZCI6Ik1Ea3gifQ.eyJzdWIiOiIwMTkzNmQyZSJ9.c2lnbmF0dXJl"
_SIGNATURE: Final = (
    "mQ8mM7k0w3gqzU0Qy0c0xO3qJmJ4Z0qv1b8rj0m1kq3n5m0oQ2yqk8x3a1z7n0l4b6d9f2h5j8k1m4p7s0uXBQ=="
)

_DOCUMENT: Final[dict[str, Any]] = {
    "apps": {"required": [{"id": "org.gnome.Calculator", "branch": "stable", "source": "flathub"}]},
    "updates": {
        "channel": "stable",
        "reboot_required": False,
        "maintenance_windows": ["Sat 02:00-05:00"],
    },
    "browser": {
        "homepage": "https://intranet.school.example/",
        "extensions": [],
        "allow_dev_tools": False,
        "managed_bookmarks": [{"name": "Library", "url": "https://library.school.example/"}],
    },
    "network": {
        "wifi": [
            {
                "ssid": "School",
                "passphrase": "a long passphrase",
                "security": "wpa-psk",
                "hidden": False,
                "metered": False,
                "eap": None,
            }
        ],
        "vpns": None,
        "vpn_dns": None,
    },
    "security": {
        "selinux_enforce": True,
        "ssh_enabled": False,
        "usbguard": True,
        "usbguard_rules": ["allow with-interface equals { 03:00:01 03:01:01 }"],
        "allow_root_login": False,
    },
}
_ENVELOPE: Final = {"version": "7", "signature": _SIGNATURE, "policy": _DOCUMENT}
_SESSION: Final = {
    "token": _TOKEN,
    "refreshToken": "6pQm0bqkq3rV7S1v9xZz2w",
    "role": "Owner",
    "expiresAt": "2026-09-01T08:00:00Z",
    "email": "owner@school.example",
    "tenantId": _ORG,
}
_WIFI: Final = _DOCUMENT["network"]["wifi"][0]
_MASKED: Final = _DOCUMENT | {
    "network": _DOCUMENT["network"] | {"wifi": [_WIFI | {"passphrase": "[masked]"}]}
}
_AUTHORED: Final = {
    "id": _POLICY,
    "orgId": _ORG,
    "name": "Classroom laptops",
    "version": "7",
    "createdAt": "2026-08-20T09:30:00Z",
    "updatedAt": "2026-09-01T07:12:45.120Z",
    "signed": True,
    "description": "Grades 5 to 8",
    "bundle": _MASKED,
    "inForce": True,
    "hasUnpublishedChanges": False,
    "rolloutId": "",
    "etag": "12",
    "warnings": [],
}
_SUMMARY: Final = {
    "id": _DEVICE,
    "hostname": "5CD1234XYZ",
    "model": "HP ProBook 445 G9",
    "osVersion": "",
    "policyVersion": "7",
    "health": "healthy",
    "orgId": _ORG,
    "lastSeen": "2026-09-01T07:58:03.221Z",
    "status": "online",
    "healthDetail": "",
    "neverSeen": False,
    "attestationVerdict": "SELF_CONSISTENT",
    "fallsShort": False,
    "restricted": False,
    "attestedAt": "2026-09-01T07:12:45.120Z",
    "serialNumber": "5CD1234XYZ",
    "labels": {"room": "214"},
    "groupIds": [],
}
_EVENT: Final = {
    "id": "01936d31-4e5f-7a6b-8c7d-9e0f1a2b3c4d",
    "occurredAt": "2026-09-01T07:57:59.104Z",
    "timestamp": "2026-09-01T07:57:59.104Z",
    "actor": f"device:{_DEVICE}",
    "action": "app.install.failure",
    "actionType": "app.install.failure",
    "severity": "error",
    "deviceId": _DEVICE,
    "orgId": _ORG,
    "message": "installing an application failed (org.gnome.Calculator): no space left",
    "metadata": {"app": "org.gnome.Calculator", "error": "no space left"},
    "receivedAt": "2026-09-01T07:58:03.221Z",
    "clockOff": False,
}

EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "AuthService/Login": {
        "request": {"email": "owner@school.example", "password": "correct horse battery staple"},
        "answer": _SESSION,
    },
    "AuthService/RefreshSession": {
        "request": {"refreshToken": "6pQm0bqkq3rV7S1v9xZz2w"},
        "answer": _SESSION,
    },
    "TenantService/CreateTenant": {
        "request": {"name": "Hillside School", "code": "hillside"},
        "answer": {
            "id": _ORG,
            "name": "Hillside School",
            "parentId": "01936d2d-0000-7000-8000-000000000001",
            "reseller": False,
            "createdAt": "2026-08-20T09:00:00Z",
            "updatedAt": "2026-08-20T09:00:00Z",
            "code": "hillside",
            "kind": "org",
            "etag": "5e884898da28047151d0",
            "status": "active",
            "archivedBy": "",
            "deletedBy": "",
            "oldCodes": [],
            "language": "",
            "timeZone": "",
        },
    },
    "TenantService/UpdateTenant": {"request": {"name": "Hillside Middle School"}},
    "UserService/CreateUser": {
        "request": {"email": "admin@school.example", "role": "Admin", "tenantId": _ORG},
        "answer": {
            "id": "01936d2e-7777-7d31-8d0e-3f6f1a8b2c02",
            "email": "admin@school.example",
            "role": "Admin",
            "status": "invited",
            "createdAt": "2026-08-20T09:05:00Z",
            "tenantId": _ORG,
            "invitationToken": "hZp8m2Xr1q0t5v7y",
            "etag": "2c70e12b7a0646f92279",
            "origin": "local",
        },
    },
    "UserService/UpdateUser": {"request": {"role": "Auditor"}},
    "EnrollmentTokenService/CreateEnrollmentToken": {
        "request": {
            "orgId": _ORG,
            "name": "Cart 3",
            "maxUses": 30,
            "requireApproval": False,
            "labels": {"room": "214"},
        },
        "answer": {
            "id": "01936d2e-8888-7d31-8d0e-3f6f1a8b2c03",
            "orgId": _ORG,
            "name": "Cart 3",
            "createdAt": "2026-08-20T09:10:00Z",
            "expiresAt": "2026-11-18T09:10:00Z",
            "maxUses": 30,
            "uses": 0,
            "serials": [],
            "requireApproval": False,
            "status": "active",
            "secret": "k3vT9q0mWx7d",
            "preSharedKey": "hillside:k3vT9q0mWx7d",
            "etag": "f4d5b6c1a2093e8d7760",
            "labels": {"room": "214"},
            "groupIds": [],
            "onlyExpected": False,
            "policyKeyId": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
        },
    },
    "DeviceRegistryService/BatchImportRegistrations": {
        "request": {
            "orgId": _ORG,
            "rows": [
                {
                    "line": 2,
                    "serial": "5CD0000001",
                    "assetTag": "A-0001",
                    "labels": {"room": "214"},
                    "groups": ["cart-3"],
                }
            ],
        },
        "answer": {
            "results": [
                {
                    "line": 2,
                    "serial": "5CD0000001",
                    "id": _DEVICE,
                    "result": "ADDED",
                    "field": "",
                    "reason": "",
                    "message": "",
                }
            ],
            "applied": True,
            "added": 1,
            "changed": 0,
            "unchanged": 0,
            "refused": 0,
        },
    },
    "DeviceGroupService/CreateDeviceGroup": {
        "request": {
            "orgId": _ORG,
            "name": "Year 7",
            "alias": "year-7",
            "filter": "labels.year = 7 AND has_tpm = true",
        },
        "answer": {
            "id": "01936d2e-aaaa-7d31-8d0e-3f6f1a8b2c05",
            "orgId": _ORG,
            "name": "Year 7",
            "alias": "year-7",
            "description": "",
            "priority": 40,
            "filter": "labels.year = 7 AND has_tpm = true",
            "members": 28,
            "waiting": 0,
            "state": "ready",
            "createdAt": "2026-08-20T09:10:00Z",
            "updatedAt": "2026-08-20T09:10:00Z",
            "etag": "0f4d5b6c1a2093e8d776",
        },
    },
    "DeviceGroupService/ChangeGroupMembers": {
        "request": {"add": ["5CD0000001", "5CD0000002"], "remove": ["5CD0000009"]},
    },
    "DeviceRegistryService/PrepareDevice": {
        "request": {"orgId": _ORG, "serial": "5CD1234XYZ", "model": "HP ProBook 445 G9"},
        "answer": {"device_id": _DEVICE, "device_token": _TOKEN, "policy": _ENVELOPE},
    },
    "PolicyService/CreatePolicy": {
        "request": {"name": "Classroom laptops", "orgId": _ORG, "bundle": _DOCUMENT},
        "answer": _AUTHORED
        | {"version": "0", "signed": False, "inForce": False, "hasUnpublishedChanges": True},
    },
    "PolicyService/UpdatePolicy": {
        "request": {
            "name": "Classroom laptops",
            "bundle": {
                "configuration": {
                    "apps": [{"id": "org.gnome.Calculator", "target": "all"}],
                    "updateChannel": "stable",
                    "network": {
                        "wifiNetworks": [
                            {"ssid": "School", "security": "wpa3", "passphrase": "[masked]"}
                        ]
                    },
                }
            },
        }
    },
    "PolicyService/UpdateAttestationGate": {
        "request": {"orgId": _ORG, "mode": "OBSERVE", "atLeast": "KNOWN_TPM", "graceHours": 24},
        "answer": {
            "orgId": _ORG,
            "mode": "OBSERVE",
            "atLeast": "KNOWN_TPM",
            "graceHours": 24,
            "updatedAt": "2026-09-01T07:58:03.221Z",
            "etag": "b52c7c9acd5bea402be3",
            "groupId": "",
            "otherwisePolicyId": "",
            "otherwiseVersion": "",
            "maxPercent": 0,
            "held": "",
            "restrictedDevices": 0,
            "groupAlias": "",
        },
    },
    "PolicyService/PublishPolicy": {"request": {}, "answer": _AUTHORED},
    "PolicyService/RollbackPolicy": {"request": {"version": "6"}},
    "InventoryService/ListDevices": {"answer": {"devices": [_SUMMARY], "nextPageToken": ""}},
    "InventoryService/GetDevice": {
        "answer": _SUMMARY
        | {
            "installedApps": [
                {
                    "id": "org.gnome.Calculator",
                    "name": "org.gnome.Calculator",
                    "version": "47.1",
                }
            ],
            "healthSnapshot": {"disk": "healthy", "battery": "healthy"},
            "updates": {
                "channel": "stable",
                "lastSync": "2026-09-01T07:58:03.221Z",
                "status": "idle",
            },
            "events": [_EVENT],
            "lastError": "",
            "policyOrphaned": False,
        }
    },
    "EventService/ListEvents": {"answer": {"events": [_EVENT], "nextPageToken": ""}},
    "AuditService/ListAuditEntries": {
        "answer": {
            "entries": [
                {
                    "id": "01936d32-1111-7a6b-8c7d-9e0f1a2b3c4e",
                    "occurredAt": "2026-09-01T07:12:45.120Z",
                    "actor": "owner@school.example",
                    "action": "policy.published",
                    "resource": f"policies/{_POLICY}",
                    "orgId": _ORG,
                    "actorId": "01936d2e-6666-7d31-8d0e-3f6f1a8b2c04",
                    "actorRole": "Owner",
                    "sourceIp": "192.0.2.10",
                    "requestId": "6b1d3a52-7f0e-4c8c-9a57-0d2f5b1c9e44",
                    "before": {"version": "6"},
                    "after": {"version": "7"},
                    "sequence": 42,
                    "previousHash": "9f" * 32,
                    "hash": "3c" * 32,
                    "orgName": "Hillside School",
                    "outcome": "success",
                    "reason": "",
                    "resourceName": "Classrooms",
                    "actorKind": "user",
                    "sessionId": "01936d2e-7b1f-7d40-8f02-0c9e8a7b6c5d",
                    "userAgent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/145.0",
                    "changes": [],
                    "redacted": False,
                    "related": [],
                }
            ],
            "nextPageToken": "",
            "pruned": [
                {
                    "sequence": 41,
                    "hash": "9f" * 32,
                    "archiveSha256": "5a" * 32,
                    "prunedAt": "2026-09-02T09:30:00Z",
                    "orgId": _ORG,
                    "orgName": "Hillside School",
                    "lastOccurredAt": "2019-12-20T11:03:12.500Z",
                }
            ],
            "prunedChains": 1,
        }
    },
    "DeviceService/EnrollDevice": {
        "request": {
            "serial": "5CD1234XYZ",
            "model": "HP ProBook 445 G9",
            "cpu_model": "AMD Ryzen 5 5625U",
            "cpu_count": 12,
            "total_ram_bytes": 16500000000,
            "has_tpm": True,
            "pre_shared_key": "hillside:k3vT9q0mWx7d",
        },
        "answer": {"device_id": _DEVICE, "device_token": _TOKEN, "policy": _ENVELOPE},
    },
    "DeviceService/PullPolicy": {"request": {"current_version": "6"}, "answer": _ENVELOPE},
    "DeviceService/ReportState": {
        "request": {
            "device_id": _DEVICE,
            "state": {
                "timestamp": "2026-09-01T07:58:03.221407912Z",
                "installed_apps": [
                    {"id": "org.gnome.Calculator", "version": "47.1", "branch": "stable"}
                ],
                "update_status": "idle",
                "disk_total_bytes": 256000000000,
                "disk_free_bytes": 181000000000,
                "battery_percent": 87.5,
                "last_error": "",
            },
        },
        "answer": {},
    },
    "DeviceService/ReportEvents": {
        "request": {
            "device_id": _DEVICE,
            "events": [
                {
                    "id": "1788249479104000000",
                    "type": "app.install_failed",
                    "timestamp": "2026-09-01T07:57:59.104Z",
                    "payload": {
                        "severity": "warning",
                        "message": "org.gnome.Calculator: no space left",
                    },
                }
            ],
        },
        "answer": {"accepted": 1, "duplicates": 0, "quarantined": 0},
    },
}
