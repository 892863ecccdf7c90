"""All that is held about one person: what is found, what is not told, and who may ask."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import grpc
import pytest
import pytest_asyncio

from contract.access import Role
from contract.contexts import CONTEXTS
from contract.subjects import SUBJECT_ROOT
from evergreen.v1 import audit_pb2 as pb
from evergreen.v1 import audit_pb2_grpc as rpc
from servicekit.rpc import persons
from servicekit.rpc.channels import open_channel
from servicekit.rpc.persons import Table
from services.attestation.facts import person_store as attestation
from services.audit.person_data import service
from services.audit.person_data import store as audit
from services.enrollment.facts import person_store as enrollment
from services.identity.facts import person_store as identity
from services.policy.facts import person_store as policy
from services.telemetry.facts import person_store as telemetry
from tests.services.audit.reports.conftest import (
    AS_OF,
    ORG_AUDITOR,
    ORG_OWNER,
    RESELLER_OWNER,
    SISTER_OWNER,
    World,
    start_audit,
    start_world,
    uid,
    world,
)
from tests.support import callers
from tests.support.audit import ORG, SISTER, SentEvent
from tests.support.identity import refused

__all__ = ["start_audit", "start_world", "world"]  # the fixtures

ANNA = "anna@school.example"
NAME = "Anna Schmidt"
BEN = "ben@school.example"
ANNAS_ID = uid(0xC7)
PEM = "-----BEGIN PRIVATE KEY-----\nKEYMATERIAL\n-----END PRIVATE KEY-----"
SECRETS = (
    "the wifi secret", "another secret", "argon2-of-anna", "sealed-key", "hash-of-a-secret",
    "KEYMATERIAL", "linden-2026", "4711",
)  # fmt: skip


@dataclass
class Asking:
    """What a test asks."""

    world: World
    stub: rpc.PersonDataServiceAsyncStub

    async def lines(
        self,
        by: callers.Metadata = ORG_OWNER,
        emails: tuple[str, ...] = (ANNA,),
        names: tuple[str, ...] = (NAME,),
        org_id: UUID | None = None,
    ) -> list[dict[str, Any]]:
        asked = pb.ExportPersonDataRequest(
            emails=emails, names=names, org_id=str(org_id) if org_id else ""
        )
        parts = [bytes(p.data) async for p in self.stub.ExportPersonData(asked, metadata=by)]
        return [json.loads(line) for line in b"".join(parts).splitlines()]

    async def records(self, *args: Any, **more: Any) -> list[dict[str, Any]]:
        return [line["record"] for line in await self.lines(*args, **more) if "record" in line]


@pytest_asyncio.fixture
async def asking(world: World) -> AsyncIterator[Asking]:
    await _fill(world)
    channel = open_channel(world.audit.kit.settings.grpc_listen, "test")
    yield Asking(world, rpc.PersonDataServiceStub(channel))
    await channel.close()


async def _fill(world: World) -> None:
    sql, org, at = world.sql, ORG.id, AS_OF - timedelta(days=3)
    await sql(
        "INSERT INTO identity.account (id, tenant_id, email, role, status, password_hash,"
        " created_at, updated_at) VALUES ($1, $2, $3, 'Admin', 'active', 'argon2-of-anna', $4, $4)",
        ANNAS_ID, org, ANNA, at,
    )  # fmt: skip
    await sql(
        "INSERT INTO identity.session (id, account_id, tenant_id, created_at, expires_at,"
        " source_ip, user_agent) VALUES ($1, $2, $3, $4, $5, '192.0.2.44', 'Firefox')",
        uid(0x51), ANNAS_ID, org, at, at + timedelta(days=30),
    )  # fmt: skip
    await sql(
        "INSERT INTO identity.totp (id, account_id, sealed_secrets, created_at, confirmed_at,"
        " last_step) VALUES ($1, $2, 'sealed-key', $3, $3, 0)",
        uid(0x52), ANNAS_ID, at,
    )  # fmt: skip
    await sql(
        "INSERT INTO identity.api_token (id, tenant_id, account_id, held_by, name, role, scopes,"
        " created_at, created_by, expires_at, ends_at)"
        " VALUES ($1, $2, $3, $4, 'inventory', 'Admin', '{devices:read}', $5, $4, $6, $6)",
        uid(0x53), org, ANNAS_ID, ANNA, at, at + timedelta(days=90),
    )  # fmt: skip
    await sql(
        "INSERT INTO identity.mail (id, tenant_id, key, kind, budget, address, details,"
        " created_at, expires_at, next_at) VALUES ($1, $2, 'k', 'sign_in', 'notice', $3, $4, $5,"
        " $5, $5)",
        uid(0x54), org, ANNA, json.dumps({"by": BEN, "program": "Firefox"}), at,
    )  # fmt: skip
    await sql(
        "INSERT INTO identity.source (id, tenant_id, kind, name, enabled, grace_hours, created_at,"
        " updated_at) VALUES ($1, $2, 'scim', 'Entra', true, 24, $3, $3)",
        uid(0x55), org, at,
    )  # fmt: skip
    await sql(
        "INSERT INTO identity.scim_person (id, source_id, tenant_id, user_name, user_key, active,"
        " email, attributes, created_at, updated_at)"
        " VALUES ($1, $2, $3, 'aschmidt', 'aschmidt', true, '', $4, $5, $5)",
        uid(0x56), uid(0x55), org, json.dumps({"displayName": "SCHMIDT, Anna; Anna\u00a0Schmidt"}),
        at,
    )  # fmt: skip
    await sql(
        "UPDATE enrollment.device SET labels = $2, note = 'lent to ANNA  schmidt, not to"
        " ben@school.example' WHERE id = $1",
        uid(0xD1), json.dumps({"pupil": NAME, "teacher": BEN}),
    )  # fmt: skip
    for number, tenant in ((0xE7, org), (0xE8, SISTER.id)):
        payload = {
            "room": "7b",
            "users": [{"name": "anna schmidt", "minutes": 3}, {"name": "Ben", "minutes": 4}],
        }
        await sql(
            "INSERT INTO telemetry.event (device_id, event_id, id, tenant_id, type, severity,"
            " message, payload, occurred_at, received_at)"
            " VALUES ($1, $2, $3, $4, 'login', 'info', '', $5, $6, $6)",
            uid(0xD1), f"e-{number}", uid(number), tenant, json.dumps(payload), at,
        )  # fmt: skip
    authored = {
        "network": {
            "wifi": [
                {"ssid": "Staff", "eap": {"identity": ANNA}, "passphrase": "the wifi secret"},
                {"ssid": "Guests", "passphrase": "another secret"},
            ],
            "vpns": [
                {
                    "name": f"VPN of {NAME}",
                    "data": {"username": "aschmidt", "key": PEM},
                    "secrets": {"cert-pass": "linden-2026-geheim", "pin": "4711"},
                }
            ],
        }
    }
    await sql(
        "UPDATE policy.policies SET authored = $2 WHERE id = $1", uid(0xB1), json.dumps(authored)
    )
    sets = {
        "network.wifi": authored["network"]["wifi"],
        "network.vpns": authored["network"]["vpns"],
    }
    await sql(
        "UPDATE policy.versions SET authored = $2, layer = $3 WHERE tenant_id = $1 AND version = 3",
        org, json.dumps(authored), json.dumps({"sets": sets, "baseline": None, "merging": {}}),
    )  # fmt: skip
    await sql(
        "INSERT INTO audit.dead_letter (digest, subject, payload, reason, received_at)"
        " VALUES ($1, $2, $3, 'it is not an event', $4)",
        bytes(32), f"{SUBJECT_ROOT}.{org}.policy.updated", f'{{"x": "{ANNA}"}}'.encode(), at,
    )  # fmt: skip
    await world.audit.record(
        _sent("policy.published", "policies/1", ANNA, ANNAS_ID, after={"colleague": BEN}),
        _sent("identity.user_deactivated", f"users/{ANNAS_ID}", BEN, uid(0xC8), after={"n": 1}),
        _sent(
            "enrollment.device_labels_changed",
            "devices/1",
            BEN,
            uid(0xC8),
            after={"labels": {"pupil": NAME}, "others": [{"pupil": "Cem"}]},
        ),
        _sent("policy.updated", "policies/2", BEN, uid(0xC8), after={"name": "Joanna Schmidt"}),
    )


def _sent(name: str, resource: str, actor: str, actor_id: UUID, **sides: Any) -> SentEvent:
    return SentEvent(
        name=name,
        tenant_id=ORG.id,
        resource=resource,
        actor=actor,
        actor_id=str(actor_id),
        actor_role="Owner",
        before=sides.get("before"),
        after=sides.get("after"),
        occurred_at=AS_OF,
    )


async def test_all_services_tell(asking: Asking) -> None:
    """What is the person's own is there as it is; of all else what has the person."""
    records = await asking.records()
    found = {(one["service"], one["kind"]): one["content"] for one in records}
    assert found["identity", "account"]["role"] == "Admin"
    assert found["identity", "account"]["hasAPassword"] is True
    assert found["identity", "session"]["sourceIp"] == "192.0.2.44"
    assert found["identity", "authenticator app"].keys() == {"id", "createdAt", "confirmedAt"}
    assert found["identity", "API token"]["name"] == "inventory"
    assert found["identity", "mail"]["details"] == {
        "by": "[another person]", "program": "Firefox",
    }  # fmt: skip
    assert found["identity", "person of SCIM"]["userName"] == "aschmidt"
    device = found["enrollment", "device"]
    assert device["serial"] == "SN-1"
    assert device["note"] == "lent to ANNA  schmidt, not to [another person]"
    assert device["labels"] == [
        {"path": "", "value": {"pupil": NAME, "teacher": "[another person]"}}
    ]
    event = found["telemetry", "device event"]
    assert event["payload"] == [
        {"path": "/users/0", "value": {"name": "anna schmidt", "minutes": 3}}
    ]
    assert event["type"] == "login"
    wifi, vpn = found["policy", "policy"]["authored"]
    assert vpn["value"]["name"] == f"VPN of {NAME}"
    assert found["policy", "policy version"]["authored"] == [wifi, vpn]
    assert wifi == {"path": "/network/wifi/0/eap", "value": {"identity": ANNA}}
    assert found["audit", "message that is no event"]["payload"][0]["value"] == {"x": ANNA}
    entries = {
        one["content"]["action"]: one["content"] for one in records if one["kind"] == "audit entry"
    }
    assert entries["policy.published"]["actor"] == ANNA
    assert entries["policy.published"]["after"] == {"colleague": "[another person]"}
    assert "actor" not in entries["identity.user_deactivated"]
    assert entries["identity.user_deactivated"]["actorRole"] == "Owner"
    labels = entries["enrollment.device_labels_changed"]["after"]
    assert labels == [{"path": "/labels", "value": {"pupil": NAME}}]
    assert "policy.updated" not in entries, "Joanna is somebody else"


async def test_nothing_that_opens_and_nobody_else(asking: Asking) -> None:
    """Secrets, hashes and addresses of others are in no line."""
    text = json.dumps(await asking.lines(), ensure_ascii=False)
    for secret in (*SECRETS, BEN, "Ben", "Cem", "owner@reseller.example"):
        assert secret not in text, secret


async def test_secrets_are_not_found_by_what_is_in_them(asking: Asking) -> None:
    """Neither told, nor guessed word by word: only who logs in somewhere is found."""
    words = ("PRIVATE KEY", "KEYMATERIAL", "linden", "4711", "wifi secret")
    assert not await asking.records(emails=(), names=words)
    found = await asking.records(emails=(), names=("aschmidt",))
    told = [one["content"]["authored"] for one in found if one["service"] == "policy"]
    vpn = {"path": "/network/vpns/0/data", "value": {"username": "aschmidt", "key": "[secret]"}}
    assert told == [[vpn], [vpn]]


async def test_only_the_callers_own(asking: Asking) -> None:
    """An Owner gets the own organisation and those below, or one of them; no other role does."""

    async def tenants(by: callers.Metadata, **more: Any) -> set[str]:
        return {one["organisation"]["id"] for one in await asking.records(by, **more)}

    assert await tenants(ORG_OWNER) == {str(ORG.id)}
    assert await tenants(SISTER_OWNER) == {str(SISTER.id)}
    assert await tenants(RESELLER_OWNER) == {str(ORG.id), str(SISTER.id)}
    assert await tenants(RESELLER_OWNER, org_id=SISTER.id) == {str(SISTER.id)}
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await asking.lines(SISTER_OWNER, org_id=ORG.id)
    assert refused(error)["status"] == "NOT_FOUND"
    for by in (ORG_AUDITOR, callers.user(ORG.id, Role.ADMIN)):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await asking.lines(by)
        assert refused(error)["status"] == "PERMISSION_DENIED"


async def test_the_log_says_who_asked(asking: Asking) -> None:
    """The addresses, and how many names, but no name."""
    await asking.lines()
    (told,) = await asking.world.told("audit.person_data_exported")
    assert told["after"] == {"emails": [ANNA], "names": 1}
    assert told["resource"] == f"tenants/{ORG.id}/person-data"
    assert told["actor"] == "owner@school.example"
    assert NAME not in json.dumps(told)


async def test_the_file_says_what_was_looked_through(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is the same, whatever fits into a page."""
    lines = await asking.lines()
    assert lines[0]["emails"] == [ANNA]
    records = sum("record" in line for line in lines)
    assert lines[-1] == {"end": {"records": records, "complete": True}}
    searched = {
        line["searched"]["service"]: line["searched"]["rows"]
        for line in lines
        if "searched" in line
    }
    assert searched.keys() == set(CONTEXTS)
    monkeypatch.setattr(persons, "ROWS", 2)
    again = await asking.lines()
    kept = [line for line in again if "record" in line]
    assert kept == [line for line in lines if "record" in line]
    assert {
        line["searched"]["service"]: line["searched"]["rows"]
        for line in again
        if "searched" in line
    } == searched
    monkeypatch.setattr(service, "MOST_RECORDS", 2)
    assert (await asking.lines())[-1] == {"end": {"records": 2, "complete": False}}


async def test_a_service_that_is_away_breaks_it_off(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is never half an answer that looks whole; and the place is free again."""
    monkeypatch.setattr(service, "_PAUSES", (0.01,))
    await asking.world.owners["telemetry"].stop(0)
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await asking.lines()
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "telemetry" in (error.value.details() or "")


@pytest.mark.parametrize(
    ("emails", "names", "said"),
    [
        ((), (), "emails"),
        (("not an address",), (), "emails[0]"),
        ((), ("a.b",), "names[0]"),
        ((), (NAME,) * 6, "names"),
    ],
)
async def test_bad_requests_are_refused(
    asking: Asking, emails: tuple[str, ...], names: tuple[str, ...], said: str
) -> None:
    """With the field and the rule; nothing is told to the log."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await asking.lines(emails=emails, names=names)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.value.details() or "").startswith(said)
    assert not await asking.world.told("audit.person_data_exported")


_TABLES: dict[str, tuple[Table, ...]] = {
    "identity": identity.TABLES,
    "enrollment": enrollment.TABLES,
    "policy": policy.TABLES,
    "telemetry": telemetry.TABLES,
    "attestation": attestation.TABLES,
    "audit": audit.TABLES,
}
_EVERYWHERE = {
    "closed_tenant": "organisations",
    "outbox": "the events of the last days, which are the entries of the audit log",
    "outbox_stream": "a position",
    "quarantined_row": "which rows could not be read, and never what is in them",
}
_NOTHING: dict[str, list[str]] = {
    "what devices are and boot": [
        "attestation.boot_verdict",
        "attestation.challenge",
        "attestation.device",
        "attestation.device_access",
        "attestation.listed_key",
        "attestation.seen_key",
        "attestation.seen_nonce",
        "attestation.tpm_binding",
        "attestation.tpm_enrollment",
        "attestation.trust_root",
        "policy.device_access",
        "policy.device_verdict",
        "policy.devices",
        "policy.rollout_device",
        "telemetry.device_access",
        "telemetry.deleted_device",
        "telemetry.quarantine_use",
        "telemetry.storage_use",
        "enrollment.first_start",
    ],
    "told with the rows that they repeat or belong to": [
        "telemetry.device_text",
        "enrollment.token_serial",
        "identity.scim_group",
        "identity.scim_member",
        "policy.documents",
        "policy.groups",
        "policy.memberships",
        "policy.profiles",
        "policy.editions",
        "audit.report_file",
        "identity.source",
        "identity.old_tenant_code",
    ],
    "keys, hashes, and what works once": [
        "identity.guess",
        "identity.login_challenge",
        "identity.refresh_token",
        "identity.signing_key",
        "identity.spent_challenge",
        "identity.sso_used",
        "policy.signatures",
        "policy.signing_keys",
        "audit.signing_key",
    ],
    "settings of organisations": [
        "identity.sign_in_policy",
        "identity.scim_source",
        "identity.sso_provider",
        "policy.attestation_gate",
        "telemetry.attestation_gate",
        "telemetry.retention",
    ],
    "numbers, positions and times": [
        "attestation.device_access_cursor",
        "attestation.device_cursor",
        "audit.alert_digest",
        "audit.alert_lead",
        "audit.alert_position",
        "audit.backup_run",
        "audit.chain_head",
        "audit.forwarder_position",
        "audit.forwarder_state",
        "audit.report_turn",
        "audit.stream_position",
        "audit.tree_cursor",
        "audit.tree_leaf",
        "audit.tree_log",
        "audit.tree_node",
        "enrollment.applied_cursor",
        "identity.mail_server",
        "identity.purge_cursor",
        "identity.tenant_erasure",
        "policy.applied_versions",
        "policy.assignments",
        "policy.bindings",
        "policy.device_access_cursor",
        "policy.device_syncs",
        "policy.devices_cursor",
        "policy.groups_cursor",
        "policy.stamps",
        "policy.verdict_cursor",
        "policy.version_counters",
        "telemetry.device_access_cursor",
        "telemetry.event_relay",
        "telemetry.event_week",
        "telemetry.feed_cursor",
        "telemetry.retention_cursor",
    ],
}
"""Tables that an export does not look through, by the reason."""


async def test_every_table_is_looked_through(asking: Asking) -> None:
    """Or it is said why there is nothing about a person in it."""
    rows = await asking.world.sql(
        "SELECT schemaname || '.' || tablename AS name FROM pg_tables t JOIN pg_class c"
        " ON c.oid = (schemaname || '.' || tablename)::regclass AND NOT c.relispartition"
        " WHERE schemaname = ANY ($1)",
        list(CONTEXTS),
    )
    looked = {table.source.split()[0] for tables in _TABLES.values() for table in tables}
    nothing = {name for names in _NOTHING.values() for name in names}
    nothing |= {f"{context}.{name}" for context in CONTEXTS for name in _EVERYWHERE}
    there = {row["name"] for row in rows}
    assert sorted(there - looked - nothing) == []
    assert sorted(nothing & looked) == []
    assert sorted((looked | nothing) - there) == []
