"""All that is held about one person: what is found, what is not told, and who may ask."""

from __future__ import annotations

import json
import re
import time
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
from servicekit.security.sealing import Sealer
from services.attestation.facts import person_store as attestation
from services.audit.person_data import service
from services.audit.person_data import store as audit
from services.enrollment.facts import person_store as enrollment
from services.identity.facts import person_store as identity
from services.policy.facts import person_store as policy
from services.policy.vault import PURPOSE, Vault
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
        by = _just_now(by)
        parts = [bytes(p.data) async for p in self.stub.ExportPersonData(asked, metadata=by)]
        return [json.loads(line) for line in b"".join(parts).splitlines()]

    async def records(self, *args: Any, **more: Any) -> list[dict[str, Any]]:
        return [line["record"] for line in await self.lines(*args, **more) if "record" in line]


def _just_now(by: callers.Metadata) -> callers.Metadata:
    """A caller who logged in a moment ago, however long the tests before took."""
    now = int(time.time())
    stamps = {
        "x-evergreen-token-issued": str(now),
        "x-evergreen-token-authenticated": str(now),
        "x-evergreen-token-expires": str(now + 3_600),
    }
    return tuple((name, stamps.get(name, value)) for name, value in by)


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
    # Lines that keep the connection say how far it is, and no more.
    monkeypatch.setattr(service, "_QUIET", 0.001)
    monkeypatch.setattr(persons, "ANSWER", 1)
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


async def test_what_devices_send_breaks_nothing(asking: Asking) -> None:
    """Neither half a character, nor numbers of any size, long names of members, or many parts."""
    sql, at = asking.world.sql, AS_OF - timedelta(days=2)
    contents = (
        '{"n": 1e999, "m": NaN, "user": "x", "user": "Anna Schmidt"}',
        json.dumps({"k" * 30_000: [{"a": NAME}] * 1_600}),
        '{"message": "Anna Schmidt \\ud800"}',
        f'"{"a" * 500_000}"',
    )
    for number, content in enumerate(contents, 0xF0):
        # Triggers count them, for whom a scope counts.
        await sql(
            "INSERT INTO telemetry.quarantined_event (device_id, digest, id, tenant_id, reason,"
            " content, received_at) VALUES ($1, $2, $3, $4,"
            " 'scope ' || set_config('evergreen.scope', '*', false), $5, $6)",
            uid(0xD1), bytes([number]) * 32, uid(number), ORG.id, content, at,
        )  # fmt: skip
    await sql(
        "INSERT INTO telemetry.event (device_id, event_id, id, tenant_id, type, severity, message,"
        " payload, occurred_at, received_at)"
        " VALUES ($1, 'e', $2, $3, 'use', 'info', 'login Anna Schmidt', $4, $5, $5)",
        uid(0xD1), uid(0xF6), ORG.id, json.dumps({"minutes": 40, "by": BEN}), at,
    )  # fmt: skip
    lines = await asking.lines()
    assert lines[-1]["end"]["complete"] is True
    told = {one["record"].get("id"): one["record"]["content"] for one in lines if "record" in one}
    (part,) = told[str(uid(0xF0))]["content"]
    assert part["value"] == {"n": "1e999", "m": "NaN", "user": "x", "user (2)": NAME}
    assert told[str(uid(0xF1))]["content"][-1] == {"further": 1_580}
    assert told[str(uid(0xF2))]["content"][0]["value"] == {"message": "Anna Schmidt \ufffd"}
    # What happened is the person's, when the message names the person.
    event = told[str(uid(0xF6))]
    assert event["payload"] == {"minutes": 40, "by": "[another person]"}


async def test_rows_that_cannot_be_read_are_counted(asking: Asking) -> None:
    """Then the file is not complete, and says so."""
    await asking.world.sql(
        "UPDATE policy.policies SET authored = 'no JSON of Anna Schmidt' WHERE id = $1", uid(0xB1)
    )
    lines = await asking.lines()
    records = sum("record" in line for line in lines)
    assert lines[-1] == {"end": {"records": records, "complete": False, "leftOut": 1}}
    (searched,) = [
        line["searched"]
        for line in lines
        if "searched" in line and line["searched"]["service"] == "policy"
    ]
    assert searched["leftOut"] == 1


async def test_what_a_person_who_moved_left(asking: Asking) -> None:
    """Is found by the old organisation, though the account is another one's."""
    await asking.world.sql(
        "UPDATE identity.account SET tenant_id = $2 WHERE id = $1", ANNAS_ID, SISTER.id
    )
    kinds = {one["kind"] for one in await asking.records(org_id=ORG.id)}
    assert "session" in kinds
    assert "account" not in kinds


async def test_nobody_has_all_places(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    """An organisation has one, and that not for ever."""
    monkeypatch.setattr(service, "_PAUSES", (3_600.0,))
    monkeypatch.setattr(service, "_QUIET", 0.01)
    await asking.world.owners["identity"].stop(0)
    asked = pb.ExportPersonDataRequest(emails=[ANNA])

    async def begun(by: callers.Metadata) -> Any:
        call = asking.stub.ExportPersonData(asked, metadata=_just_now(by))
        first: Any = await call.read()
        assert b"personData" in first.data
        return call

    calls = [await begun(ORG_OWNER)]
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await begun(ORG_OWNER)
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    monkeypatch.setattr(service, "_LONGEST", 0.1)
    calls.append(await begun(SISTER_OWNER))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        while (await calls[-1].read()) is not grpc.aio.EOF:
            pass
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    calls.append(await begun(SISTER_OWNER))
    for call in calls:
        call.cancel()


@pytest.mark.parametrize(
    ("emails", "names", "said"),
    [
        ((), (), "emails"),
        (("not an address",), (), "emails[0]"),
        ((), ("a.b",), "names[0]"),
        ((), ("王",), "names[0]"),
        ((), (BEN,), "names[0]"),
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
    "policy": policy.tables(Vault(Sealer(bytes(32), PURPOSE), seals=False)),
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
        "policy.restricted_device",
        "policy.rollout_device",
        "telemetry.device_access",
        "telemetry.restricted_device",
        "telemetry.deleted_device",
        "telemetry.quarantine_use",
        "telemetry.storage_use",
        "enrollment.first_start",
    ],
    "told with the rows that they repeat or belong to": [
        "telemetry.device_text",
        "enrollment.token_serial",
        "identity.scim_member",
        "policy.documents",
        "policy.groups",
        "policy.memberships",
        "policy.profiles",
        "policy.editions",
        "audit.report_file",
        "identity.old_tenant_code",
    ],
    "keys, hashes, and what works once": [
        "identity.guess",
        "identity.login_challenge",
        "identity.refresh_token",
        "identity.signing_key",
        "identity.spent_challenge",
        "identity.sso_used",
        "policy.key_log",
        "policy.key_log_restore",
        "policy.signatures",
        "policy.signing_keys",
        "audit.signing_key",
    ],
    "settings of organisations": [
        "identity.sign_in_policy",
        "identity.scim_source",
        "identity.sso_provider",
        "policy.attestation_gate",
        "policy.gate",
        "telemetry.attestation_gate",
        "telemetry.retention",
    ],
    "numbers, positions and times": [
        "attestation.device_access_cursor",
        "attestation.device_cursor",
        "audit.alert_digest",
        "audit.alert_failed_device",
        "audit.alert_lead",
        "audit.alert_position",
        "audit.backup_run",
        "audit.chain_base",
        "audit.chain_head",
        "audit.forwarder_position",
        "audit.forwarder_state",
        "audit.report_turn",
        "audit.retention_years",
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
        "policy.own_values",
        "policy.bindings",
        "policy.device_access_cursor",
        "policy.device_syncs",
        "policy.devices_cursor",
        "policy.groups_cursor",
        "policy.rollout_pace",
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


_UNTOLD: dict[str, dict[str, str]] = {
    "words that the product chooses, codes and forms": {
        "attestation.reference_value": "source",
        "audit.report": "status",
        "audit.report_schedule": "every time_zone",
        "audit.notice": "source",
        "audit.forwarder": "start_at",
        "audit.forwarder_quarantine": "reason",
        "enrollment.device": "archived_status policy_key_id",
        "enrollment.token": "policy_key_id",
        "identity.api_token": "told",
        "identity.mail": "budget key language",
        "identity.tenant": "code kind language time_zone",
        "identity.tenant_tombstone": "code erased_rows kind",
        "identity.directory": "kind group_mode sync_status tls",
        "policy.rollout": "counts reason",
        "policy.versions": "key_id",
        "policy.setting": "time_zone",
        "policy.variable": "fingerprint",
        "telemetry.device": "attestation_verdict health registry_status policy_version",
    },
    "what machines are": {
        "attestation.reference_value": "pcrs",
        "enrollment.device": "cpu_model model",
        "enrollment.expected_device": "model",
        "enrollment.refusal": "source_ip",
        "identity.directory": "ca_pem email_attribute id_attribute name_attribute",
        "telemetry.device": "battery_health disk_health model",
    },
    "what another column says, too": {
        "audit.entry": "action actor actor_id resource",
        "audit.report": "error manifest",
        "enrollment.device": "serial_key",
        "enrollment.expected_device": "serial_key",
        "enrollment.refusal": "serial_key",
        "identity.scim_person": "user_key",
        "identity.scim_group": "name_key",
        "policy.versions": "layer",
        "policy.rollout": "base",
    },
}
"""Columns with text of tables that are looked through, at which an export does not look."""


async def test_every_text_is_looked_at(asking: Asking) -> None:
    """Or it is said why there is nothing about a person in it."""
    rows = await asking.world.sql(
        "SELECT table_schema || '.' || table_name AS name, column_name FROM"
        " information_schema.columns WHERE table_schema = ANY ($1)"
        " AND data_type IN ('text', 'json', 'jsonb')",
        list(CONTEXTS),
    )
    left: set[str] = set()
    for table in (table for tables in _TABLES.values() for table in tables):
        # Rows that are found by their account alone are the person's own: they are shown.
        if table.searched:
            source = table.source.split()[0]
            looked = set(re.findall(r"\w+", " ".join((*table.shown, *table.searched))))
            looked |= {name.rpartition(".")[2] for name, _ in table.key}
            there = {row["column_name"] for row in rows if row["name"] == source}
            left |= {f"{source}.{name}" for name in there - looked}
    untold = [
        f"{source}.{name}"
        for sources in _UNTOLD.values()
        for source, names in sources.items()
        for name in names.split()
    ]
    assert sorted(left) == sorted(untold)
