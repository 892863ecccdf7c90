"""Organisations are archived, restored and deleted: what all six services make of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value

from contract.contexts import CONTEXTS
from contract.subjects import EVENTS
from evergreen.v1 import (
    audit_pb2,
    enrollment_pb2,
    identity_pb2,
    policy_pb2,
    policy_pb2_grpc,
    telemetry_pb2,
)
from services.identity.tenants.life import TenantLife
from services.identity.tenants.objects import TenantObjects
from tests.conftest import MakeKit, ServeService
from tests.support import callers
from tests.support.identity import OWNER, refused
from tests.support.servers import TestDatabase
from tests.support.six import Device, Six, eventually, running


@pytest_asyncio.fixture
async def six(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, tmp_path: Path
) -> AsyncIterator[Six]:
    async with running(make_kit, serve, database, tmp_path) as found:
        yield found


LOCKED_OUT = {"policy": 401, "telemetry": 401}
WORKING = {"policy": 304, "telemetry": 200}


MAY_NAME_IT = {
    # The tombstone of each service: no device of it comes back.
    *(f"{context}.closed_tenant.tenant_id" for context in CONTEXTS),
    # The log of the tenant above says who deleted it; it is a tenant of that one's outbox.
    "identity.outbox.payload",
    # Up to where alerts have read the tenant's log, which stays.
    "audit.alert_position.chain_id",
}


def decommission(device: Device) -> enrollment_pb2.DecommissionDeviceRequest:
    return enrollment_pb2.DecommissionDeviceRequest(id=device.id)


async def archived(six: Six, by: callers.Metadata, tenant_id: str) -> identity_pb2.TenantChange:
    """Looks, and archives what was seen."""
    seen = await six.tenants.ArchiveTenant(
        identity_pb2.ArchiveTenantRequest(id=tenant_id, validate_only=True), metadata=by
    )
    return await six.tenants.ArchiveTenant(
        identity_pb2.ArchiveTenantRequest(id=tenant_id, expected_count=seen.affected.count),
        metadata=by,
    )


async def deleted(six: Six, by: callers.Metadata, tenant_id: str) -> identity_pb2.TenantDeletion:
    """Deletes an archived tenant; answers what its deletion says at its end."""
    seen = await six.tenants.DeleteTenant(
        identity_pb2.DeleteTenantRequest(id=tenant_id, validate_only=True), metadata=by
    )
    await six.tenants.DeleteTenant(
        identity_pb2.DeleteTenantRequest(id=tenant_id, expected_count=seen.affected.count),
        metadata=by,
    )

    async def done() -> identity_pb2.TenantDeletion | None:
        found = await six.tenants.GetTenantDeletion(
            identity_pb2.GetTenantDeletionRequest(id=tenant_id), metadata=by
        )
        return found if found.status == "deleted" else None

    found: identity_pb2.TenantDeletion = await eventually(done)
    return found


async def until_out(six: Six, device: Device) -> None:
    async def out() -> bool:
        return await six.works(device) == LOCKED_OUT

    await eventually(out)


async def statuses(six: Six, org_id: str) -> set[str]:
    rows = await six.sql(
        "SELECT status FROM enrollment.device WHERE tenant_id = $1::text::uuid", org_id
    )
    return {row["status"] for row in rows}


async def test_an_organisation_is_archived_restored_and_deleted(six: Six) -> None:
    """Archived: devices, logins and enrollment stop; the data stays, and all comes back by a
    restore. Deleted: no row is left in any schema but its tombstone and the audit log."""
    root = await six.login()
    org, other = await six.org(root), await six.org(root)
    owner = await six.user(root, org.id)
    device, bystander = await six.device(org), await six.device(other)
    lost = await six.device(org)
    await six.registry.DecommissionDevice(decommission(lost), metadata=root)
    await six.events.UpdateEventRetention(
        telemetry_pb2.UpdateEventRetentionRequest(org_id=org.id, days=30), metadata=root
    )
    reader = await six.credentials.CreateEventCredential(
        identity_pb2.CreateEventCredentialRequest(org_id=org.id, name="SIEM"), metadata=root
    )

    async def reads() -> bool:
        return reader.id in await six.kits["identity"].messaging.readers(EVENTS)

    async def reads_nothing() -> bool:
        return not await reads()

    await eventually(reads)
    before = await six.rows_of(org.id)
    assert {
        "telemetry.event.tenant_id",
        "telemetry.quarantined_event.tenant_id",
        "telemetry.retention.tenant_id",
        "identity.event_credential.tenant_id",
    } <= set(before)

    seen = await six.tenants.ArchiveTenant(
        identity_pb2.ArchiveTenantRequest(id=org.id, validate_only=True), metadata=root
    )
    assert (seen.tenant.status, seen.affected.devices, seen.affected.users) == ("archived", 2, 1)
    assert seen.affected.count == 1 + 1 + 2 + 1 + 1 + 1
    await six.login(owner)
    for expected, reason in ((None, "COUNT_NEEDED"), (5, "COUNT_CHANGED")):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await six.tenants.ArchiveTenant(
                identity_pb2.ArchiveTenantRequest(id=org.id, expected_count=expected),
                metadata=root,
            )
        assert refused(error)["details"][0]["reason"] == reason
    assert await six.works(device) == WORKING

    session = await six.login(owner)
    await archived(six, root, org.id)
    await until_out(six, device)
    assert await six.works(bystander) == WORKING
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await six.login(owner)
    assert refused(error)["details"][0]["reason"] == "ORGANISATION_ARCHIVED"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await six.tenants.ListTenants(identity_pb2.ListTenantsRequest(), metadata=session)
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert (await six.enroll(six.keys[org.id])).status_code == 403

    async def retired() -> bool:
        return await statuses(six, org.id) == {"decommissioned"}

    await eventually(retired)
    await eventually(reads_nothing)

    await six.tenants.RestoreTenant(identity_pb2.RestoreTenantRequest(id=org.id), metadata=root)

    async def back() -> bool:
        works = await six.works(device) == WORKING
        return works and await statuses(six, org.id) == {"active", "decommissioned"}

    await eventually(back)
    assert await six.works(lost) == LOCKED_OUT
    await six.login(owner)
    assert (await six.enroll(six.keys[org.id])).status_code == 200

    await archived(six, root, org.id)
    end = await deleted(six, root, org.id)
    assert {c.context for c in end.contexts if c.finished} == set(CONTEXTS)

    async def gone() -> bool:
        return set(await six.rows_of(org.id)) <= MAY_NAME_IT

    await eventually(gone)
    await eventually(reads_nothing)
    assert await six.works(device) == LOCKED_OUT
    assert await six.works(bystander) == WORKING
    entries = await six.audit.ListAuditEntries(
        audit_pb2.ListAuditEntriesRequest(org_id=org.id), metadata=root
    )
    assert "identity.tenant_created" in {entry.action for entry in entries.entries}


async def test_policies_values_and_keys_go_with_their_tenant(six: Six) -> None:
    """What a reseller leaves to its schools, with the values of one in it; and a key, of which the
    public log says that it ended."""
    root = await six.login()
    reseller = await six.tenant(root, reseller=True)
    school = await six.org(root, parent_id=reseller.id)
    async with grpc.aio.insecure_channel(six.kits["policy"].settings.grpc_listen) as channel:
        variables = policy_pb2_grpc.PolicyVariableServiceStub(channel)
        keys = policy_pb2_grpc.PolicyKeyServiceStub(channel)

        async def put(tenant: str, name: str, value: str, **more: bool) -> None:
            request = policy_pb2.CreatePolicyVariableRequest(
                org_id=tenant, name=name, value=value, **more
            )
            await variables.CreatePolicyVariable(request, metadata=root)

        async def log() -> list[str]:
            entries = (await keys.ListPolicyKeyLog(policy_pb2.ListPolicyKeyLogRequest())).entries
            return [json.loads(one.payload)["action"] for one in entries]

        await put(reseller.id, "host", "district.example", overridable=True)
        await put(reseller.id, "wifi", "a secret of the district", secret=True, overridable=True)
        await put(school.id, "wifi", "a secret of the school", secret=True)
        wifi = {"ssid": "A", "security": "wpa-psk", "passphrase": "{{secret.wifi}}"}
        template = {"browser": {"homepage": "https://{{var.host}}"}, "network": {"wifi": [wifi]}}
        made = await six.policies.CreatePolicy(
            policy_pb2.CreatePolicyRequest(
                name="All", org_id=reseller.id, bundle=ParseDict({"template": template}, Value())
            ),
            metadata=root,
        )
        await six.policies.PublishPolicy(policy_pb2.PublishPolicyRequest(id=made.id), metadata=root)
        await keys.CreatePolicyKey(
            policy_pb2.CreatePolicyKeyRequest(org_id=reseller.id, activate=True), metadata=root
        )
        device = await six.device(school)

        async def has_it() -> bool:
            query = "SELECT count(*) AS n FROM policy.stamps WHERE tenant_id = $1::text::uuid"
            return bool((await six.sql(f"{query} AND cause = 'layers'", school.id))[0]["n"])

        await eventually(has_it)
        assert {
            "policy.own_values.tenant_id",
            "policy.variable.tenant_id",
            "policy.versions.tenant_id",
            "policy.signing_keys.tenant_id",
        } <= set(await six.rows_of(reseller.id))
        before = await log()
        await archived(six, root, reseller.id)
        await until_out(six, device)
        await deleted(six, root, reseller.id)
        for gone in (reseller.id, school.id):
            assert set(await six.rows_of(gone)) <= MAY_NAME_IT
        assert await log() == [*before, "retire"]


async def test_a_reseller_goes_as_a_whole_and_each_side_sees_its_own(six: Six) -> None:
    """With its organisations, by number; what was archived before it stays archived. Owners close
    neither their own tenant nor what is beside them."""
    root = await six.login()
    reseller = await six.tenant(root, reseller=True)
    other = await six.org(root)
    school, early = (
        await six.org(root, parent_id=reseller.id),
        await six.org(root, parent_id=reseller.id),
    )
    at_reseller = await six.login(await six.user(root, reseller.id))
    at_school = await six.login(await six.user(root, school.id))
    at_other = await six.login(await six.user(root, other.id))
    device = await six.device(school)

    for who, tenant, code in (
        (at_school, school.id, grpc.StatusCode.FAILED_PRECONDITION),
        (at_reseller, reseller.id, grpc.StatusCode.FAILED_PRECONDITION),
        (at_school, reseller.id, grpc.StatusCode.NOT_FOUND),
        (at_other, school.id, grpc.StatusCode.NOT_FOUND),
        (at_reseller, other.id, grpc.StatusCode.NOT_FOUND),
    ):
        for call in calls_that_close(six, tenant, who):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call
            assert error.value.code() is code

    await archived(six, at_reseller, early.id)
    seen = await archived(six, root, reseller.id)
    assert (seen.affected.tenants, seen.affected.devices) == (3, 1)
    await until_out(six, device)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await six.tenants.RestoreTenant(
            identity_pb2.RestoreTenantRequest(id=school.id), metadata=root
        )
    assert refused(error)["details"][0]["reason"] == "PARENT_ARCHIVED"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await six.tenant(root, parent_id=reseller.id)
    assert refused(error)["details"][0]["reason"] == "ORGANISATION_ARCHIVED"

    await six.tenants.RestoreTenant(
        identity_pb2.RestoreTenantRequest(id=reseller.id), metadata=root
    )
    states = {
        t.id: t.status
        for t in (
            await six.tenants.ListTenants(identity_pb2.ListTenantsRequest(), metadata=root)
        ).tenants
    }
    assert [states[t] for t in (reseller.id, school.id, early.id)] == [
        "active", "active", "archived",
    ]  # fmt: skip

    at_reseller = await six.login(await six.user(root, reseller.id))
    await archived(six, root, reseller.id)
    end = await deleted(six, root, reseller.id)
    assert end.requested_by == OWNER
    for gone in (reseller.id, school.id, early.id):
        assert set(await six.rows_of(gone)) <= MAY_NAME_IT
    page = await six.tenants.ListTenants(
        identity_pb2.ListTenantsRequest(show_deleted=True), metadata=root
    )
    assert {t.id for t in page.tenants if t.status == "deleted"} == {
        reseller.id, school.id, early.id,
    }  # fmt: skip
    page = await six.tenants.ListTenants(
        identity_pb2.ListTenantsRequest(show_deleted=True), metadata=at_other
    )
    assert {t.id for t in page.tenants} == {other.id}
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await six.tenants.GetTenantDeletion(
            identity_pb2.GetTenantDeletionRequest(id=school.id), metadata=at_other
        )
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    entries = await six.audit.ListAuditEntries(
        audit_pb2.ListAuditEntriesRequest(org_id=school.id), metadata=root
    )
    assert {entry.org_name for entry in entries.entries} == {school.name}
    emails = await six.sql("SELECT email FROM identity.user_tombstone")
    assert len(emails) == 3


def calls_that_close(six: Six, tenant_id: str, who: callers.Metadata) -> list[Awaitable[object]]:
    """Every call that closes or opens a tenant, only looking."""
    return [
        six.tenants.ArchiveTenant(
            identity_pb2.ArchiveTenantRequest(id=tenant_id, validate_only=True), metadata=who
        ),
        six.tenants.RestoreTenant(
            identity_pb2.RestoreTenantRequest(id=tenant_id, validate_only=True), metadata=who
        ),
        six.tenants.DeleteTenant(
            identity_pb2.DeleteTenantRequest(id=tenant_id, validate_only=True), metadata=who
        ),
    ]


async def test_an_old_code_lives_until_it_is_dropped(six: Six) -> None:
    """A new code leaves the keys with the old one alive, says how many there are, and nobody else
    can take it; dropped, it is over, and free. A tenant has ten such codes at most."""
    root = await six.login()
    org = await six.org(root)
    key = six.keys[org.id]
    secret = key.partition(":")[2]
    new = f"new-{uuid4().hex[:8]}"

    async def change(**more: Any) -> identity_pb2.Tenant:
        return await six.tenants.UpdateTenant(
            identity_pb2.UpdateTenantRequest(id=org.id, **more), metadata=root
        )

    seen = await change(code=new, validate_only=True)
    assert [(old.code, old.active_tokens) for old in seen.old_codes] == [(org.code, 1)]
    assert (await six.enroll(f"{new}:{secret}")).status_code == 403
    await change(code=new)
    for code in (org.code, new):

        async def admitted(code: str = code) -> bool:
            return (await six.enroll(f"{code}:{secret}")).status_code == 200

        await eventually(admitted)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await six.tenant(root, code=org.code)
    assert refused(error)["details"][0]["reason"] == "CODE_TAKEN"
    other = await six.tenant(root)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await six.tenants.UpdateTenant(
            identity_pb2.UpdateTenantRequest(id=other.id, code=org.code), metadata=root
        )
    assert refused(error)["details"][0]["reason"] == "CODE_TAKEN"

    async def drop(code: str, **more: Any) -> identity_pb2.Tenant:
        return await six.tenants.DropTenantCode(
            identity_pb2.DropTenantCodeRequest(id=org.id, code=code, **more), metadata=root
        )

    with pytest.raises(grpc.aio.AioRpcError) as error:
        await drop(new)
    assert refused(error)["details"][0]["reason"] == "CODE_IN_USE"
    shown = await drop(org.code, validate_only=True)
    assert [(old.code, old.active_tokens) for old in shown.old_codes] == [(org.code, 1)]
    assert not (await drop(org.code)).old_codes

    async def over() -> bool:
        return (await six.enroll(f"{org.code}:{secret}")).status_code == 403

    await eventually(over)
    assert (await six.enroll(f"{new}:{secret}")).status_code == 200
    await six.tenant(root, code=org.code)

    codes = [new, *(f"new-{uuid4().hex[:8]}" for _ in range(11))]
    for code in codes[1:-1]:
        await change(code=code)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await change(code=codes[-1])
    assert refused(error)["details"][0]["reason"] == "TOO_MANY_OLD_CODES"
    await drop(codes[0])
    assert len((await change(code=codes[-1])).old_codes) == 10


async def test_a_deleted_device_leaves_its_serial_number_out(six: Six) -> None:
    """Only a decommissioned one is deleted; its state and events go, its id and serial number stay,
    and it comes back by an administrator's word alone."""
    root = await six.login()
    org = await six.org(root)
    device, stays = await six.device(org), await six.device(org)

    def delete(**more: Any) -> Awaitable[enrollment_pb2.Registration]:
        request = enrollment_pb2.DeleteDeviceRequest(id=device.id, **more)
        return six.registry.DeleteDevice(request, metadata=root)

    with pytest.raises(grpc.aio.AioRpcError) as error:
        await delete()
    assert refused(error)["details"][0]["reason"] == "DEVICE_NOT_DECOMMISSIONED"
    await six.registry.DecommissionDevice(decommission(device), metadata=root)
    await until_out(six, device)
    assert (await delete(validate_only=True)).deleted_by == OWNER
    assert not (await six.registry.GetRegistration(look_at(device), metadata=root)).deleted_by
    assert (await delete()).deleted_by == OWNER

    async def gone() -> bool:
        named = set(await six.rows_of(device.id))
        return named <= {
            "enrollment.device.id",
            "enrollment.outbox.payload",
            "policy.outbox.payload",
            "telemetry.deleted_device.device_id",
            *(f"{c}.device_access.device_id" for c in ("policy", "telemetry", "attestation")),
        }

    await eventually(gone)
    assert await six.works(device) == LOCKED_OUT
    assert await six.works(stays) == WORKING
    for deleted_too, ids in ((False, {stays.id}), (True, {stays.id, device.id})):
        page = await six.registry.ListRegistrations(
            enrollment_pb2.ListRegistrationsRequest(org_id=org.id, show_deleted=deleted_too),
            metadata=root,
        )
        assert {found.id for found in page.registrations} == ids
    answer = await six.enroll(six.keys[org.id], device.serial)
    assert answer.json()["details"][0]["reason"] == "DEVICE_DECOMMISSIONED"
    await six.registry.AllowReenrollment(
        enrollment_pb2.AllowReenrollmentRequest(id=device.id), metadata=root
    )
    answer = await six.enroll(six.keys[org.id], device.serial)
    assert answer.json()["device_id"] == device.id

    async def back() -> bool:
        return await six.works(replace(device, version=2)) == WORKING

    await eventually(back)


def look_at(device: Device) -> enrollment_pb2.GetRegistrationRequest:
    return enrollment_pb2.GetRegistrationRequest(id=device.id)


async def test_a_service_that_was_away_and_a_tenant_that_fails_hold_up_nobody_else(
    six: Six,
) -> None:
    """A stopped service goes on where it was; rows that cannot go yet keep one tenant waiting, and
    the others are deleted meanwhile."""
    root = await six.login()
    stuck, other = await six.org(root), await six.org(root)
    await six.device(stuck)
    await six.device(other)
    connection = await six.database.superuser()
    try:
        await connection.execute(
            "CREATE TABLE policy.holds (policy uuid REFERENCES policy.policies);"
            " INSERT INTO policy.holds SELECT id FROM policy.policies"
            f" WHERE tenant_id = '{stuck.id}'"
        )
        for org in (stuck, other):
            await archived(six, root, org.id)
        counts = [
            (
                await six.tenants.DeleteTenant(
                    identity_pb2.DeleteTenantRequest(id=org.id, validate_only=True), metadata=root
                )
            ).affected.count
            for org in (stuck, other)
        ]
        for org, count in zip((stuck, other), counts, strict=True):
            await six.tenants.DeleteTenant(
                identity_pb2.DeleteTenantRequest(id=org.id, expected_count=count),
                metadata=root,
            )
        await six.stop("telemetry")

        async def unfinished(org: identity_pb2.Tenant) -> set[str]:
            found = await six.tenants.GetTenantDeletion(
                identity_pb2.GetTenantDeletionRequest(id=org.id), metadata=root
            )
            return {erasure.context for erasure in found.contexts if not erasure.finished}

        async def all_but_telemetry() -> bool:
            return await unfinished(other) == {"telemetry"}

        await eventually(all_but_telemetry)
        await six.start_again("telemetry")

        async def other_is_gone() -> bool:
            return not await unfinished(other) and not (
                set(await six.rows_of(other.id)) - MAY_NAME_IT
            )

        await eventually(other_is_gone)

        async def only_policy_is_left() -> bool:
            return await unfinished(stuck) == {"policy"}

        await eventually(only_policy_is_left)
        noted = await six.sql("SELECT key FROM policy.quarantined_row")
        assert {row["key"] for row in noted} == {stuck.id}
        await connection.execute("DROP TABLE policy.holds")
    finally:
        await connection.close()

    async def stuck_is_gone() -> bool:
        return set(await six.rows_of(stuck.id)) <= MAY_NAME_IT

    await eventually(stuck_is_gone, 90)


async def test_what_is_archived_long_enough_is_deleted_by_itself(six: Six) -> None:
    """By the system, whoever archived it; a clock that is ten years ahead does not hasten it."""
    root = await six.login()
    org = await six.org(root)
    await archived(six, root, org.id)
    kit = six.kits["identity"]

    def life(ahead: timedelta) -> TenantLife:
        nobody = TenantObjects(None, None, None)  # type: ignore[arg-type]  # it counts nothing
        clock = lambda: kit.clock() + ahead  # noqa: E731 - the life's clock
        return TenantLife(kit.database, kit.outbox, kit.tenants, nobody, timedelta(90), clock)

    async def status() -> str:
        found = await six.tenants.GetTenant(identity_pb2.GetTenantRequest(id=org.id), metadata=root)
        return found.status

    await life(timedelta(days=3653)).purge(3600)
    assert await status() == "archived"
    await six.sql("UPDATE identity.purge_cursor SET reached = now() + interval '91 days'")
    await life(timedelta(days=91)).purge(3600)
    assert await status() in {"deleting", "deleted"}

    async def told() -> bool:
        return await status() == "deleted"

    await eventually(told)
    gone = await six.tenants.GetTenant(identity_pb2.GetTenantRequest(id=org.id), metadata=root)
    assert (gone.archived_by, gone.deleted_by) == (OWNER, "system")
