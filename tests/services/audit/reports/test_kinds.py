"""What kinds of reports say where it is easily said wrongly."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from services.attestation.evidence.store import MOST_VERDICTS
from services.audit.reports import log
from services.audit.reports.domain import written
from tests.services.audit.reports.conftest import AS_OF, World, uid
from tests.support.audit import ORG, RESELLER


async def rows_of(world: World, kind: str, table: str = "rows", **more: Any) -> list[Any]:
    """The rows of a table of a new report on the school."""
    made = await world.made(kind, org_id=str(ORG.id), formats=["json"], **more)
    found = json.loads(await world.download(made.id, f"{kind}.json"))
    rows: list[Any] = found[table]
    return rows


def of_device(rows: list[Any], number: int) -> Any:
    return next(row for row in rows if row["deviceId"] == str(uid(number)))


async def test_a_long_error_is_cut(world: World) -> None:
    """Devices may report 64 Ki characters, and a page has 500 devices."""
    await world.sql("UPDATE telemetry.device SET last_error = repeat('x', 65536)")
    health = await rows_of(world, "device-health")
    assert len(of_device(health, 0xD1)["lastError"]) == 500


async def stamp(world: World, version: int, days: float, digest: int = 0) -> None:
    await world.sql(
        "INSERT INTO policy.documents (tenant_id, digest, body) VALUES ($1, $2, '{}')"
        " ON CONFLICT DO NOTHING",
        ORG.id,
        bytes([digest] * 32),
    )
    await world.sql(
        "INSERT INTO policy.stamps (tenant_id, version, document_tenant, digest, key_id,"
        " statement_head, statement_signature, cause, stamped_at)"
        " VALUES ($1, $2, $1, $3, 'key', '', '', 'publish', $4)",
        ORG.id,
        version,
        bytes([digest] * 32),
        AS_OF - timedelta(days=days),
    )


async def test_a_new_version_gives_nobody_new_days(world: World) -> None:
    """Days count from the first version above the one that a device has; of one that never
    reported, from its enrollment or the first version, whichever was later."""
    await stamp(world, 4, 1, digest=1)
    await world.sql(
        "INSERT INTO policy.versions (tenant_id, version, policy_id, authored, document, signature,"
        " statement_payload, statement_signature, key_id, published_at, published_by)"
        " VALUES ($1, 4, $2, '{}', '{}', '', '', '', 'key', $3, 'admin@school.example')",
        ORG.id,
        uid(0xB1),
        AS_OF - timedelta(days=1),
    )
    await world.sql("ALTER TABLE policy.assignments DISABLE TRIGGER ALL")
    await world.sql("UPDATE policy.assignments SET version = 4 WHERE tenant_id = $1", ORG.id)
    await world.sql(
        "UPDATE enrollment.device SET enrolled_at = $1 WHERE id = $2",
        AS_OF - timedelta(days=3),
        uid(0xD3),
    )
    rows = await rows_of(world, "policy-compliance")
    found = {
        number: (of_device(rows, number)["state"], of_device(rows, number)["daysBehind"])
        for number in (0xD1, 0xD2, 0xD3)
    }
    assert found == {0xD1: ("inGrace", None), 0xD2: ("behind", 10), 0xD3: ("inGrace", None)}
    (org,) = await rows_of(world, "policy-compliance", "organisations")
    assert (org["inGrace"], org["behind"]) == (2, 1)


async def test_policies_of_a_device_count_for_it(world: World) -> None:
    """It is compliant with what is in force for it, and not with the organisation's."""
    await stamp(world, 5, 2, digest=2)
    await world.sql("UPDATE policy.stamps SET shared = false WHERE version = 5")
    await world.sql(
        "INSERT INTO policy.bindings (tenant_id, target_id, kind, policy_id, version)"
        " VALUES ($1, $2, 'device', $3, 3)",
        ORG.id,
        uid(0xD2),
        uid(0xB1),
    )
    await world.sql(
        "INSERT INTO policy.profiles (tenant_id, targets, recipe, document_tenant, digest)"
        " VALUES ($1, $2, '[]', $1, $3)",
        ORG.id,
        [uid(0xD2)],
        bytes([2] * 32),
    )
    await world.sql(
        "UPDATE policy.applied_versions SET version = 5 WHERE device_id = $1", uid(0xD2)
    )
    rows = await rows_of(world, "policy-compliance")
    assert of_device(rows, 0xD2)["state"] == "compliant"
    assert of_device(rows, 0xD2)["requiredVersion"] == "5"
    assert of_device(rows, 0xD1)["state"] == "compliant"


async def test_an_extract_says_how_far_it_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what happened within the period, page by page, and up to which position chains were
    read: what is recorded later is behind that."""
    monkeypatch.setattr(log, "_PAGE", 2)
    period = {"from": AS_OF - timedelta(days=95), "until": AS_OF - timedelta(days=60)}
    rows = await rows_of(world, "audit-extract", parameters=period)
    assert [row["action"] for row in rows] == [
        "enrollment.token_created",
        "enrollment.device_approved",
        "enrollment.reenrollment_refused",
    ]
    (chain,) = await rows_of(world, "audit-extract", "chains", parameters=period)
    (head,) = await world.sql(
        "SELECT sequence, encode(hash, 'hex') AS hash FROM audit.chain_head WHERE tenant_id = $1",
        ORG.id,
    )
    assert (chain["firstSequence"], chain["lastSequence"]) == (3, 5)
    assert (chain["headSequence"], chain["headHash"]) == (head["sequence"], head["hash"])


async def test_the_register_is_as_of_the_end_of_its_period(world: World) -> None:
    """Who approved is asked of all the time before, and a later end is not known yet."""
    period = {"from": AS_OF - timedelta(days=40), "until": AS_OF - timedelta(days=30)}
    rows = await rows_of(world, "asset-register", parameters=period)
    assert of_device(rows, 0xD1)["approvedBy"] == "owner@school.example"
    assert of_device(rows, 0xD1)["refusals"] == 0
    ended = of_device(rows, 0xD4)
    assert (ended["status"], ended["decommissionedAt"], ended["decommissionedBy"]) == (
        "active",
        None,
        "",
    )
    now = of_device(await rows_of(world, "asset-register"), 0xD4)
    assert (now["status"], now["decommissionedBy"]) == ("decommissioned", "owner@school.example")


async def test_forgotten_boots_are_none_that_never_were(world: World) -> None:
    await world.sql(
        "INSERT INTO attestation.boot_verdict (id, tenant_id, device_id, verdict, reasons, bank,"
        " evidence_sha256, attested_at) SELECT gen_random_uuid(), $1, $2, 'FAILED', '{}', 'sha256',"
        " $3, $4 FROM generate_series(1, $5::integer)",
        ORG.id,
        uid(0xD3),
        bytes(32),
        AS_OF - timedelta(days=1),
        MOST_VERDICTS,
    )
    period = {"until": AS_OF - timedelta(days=7)}
    rows = await rows_of(world, "attestation", parameters=period)
    found = {number: of_device(rows, number)["verdict"] for number in (0xD1, 0xD2, 0xD3)}
    assert found == {0xD1: "NONE", 0xD2: "SELF_CONSISTENT", 0xD3: "NOT_KEPT"}


async def test_recipients_are_those_that_work(world: World) -> None:
    """Event credentials read events and the log, those of tenants above, too; one that ended
    receives nothing."""
    for number, tenant, ends in ((0xA1, RESELLER.id, 5), (0xA2, ORG.id, -5)):
        await world.sql(
            "INSERT INTO identity.event_credential (id, tenant_id, name, secret_hash, created_at,"
            " created_by, expires_at) VALUES ($1, $2, 'Other', '', $3, 'x', $4)",
            uid(number),
            tenant,
            AS_OF - timedelta(days=40),
            AS_OF + timedelta(days=ends),
        )
    rows = {row["category"]: row for row in await rows_of(world, "data-inventory")}
    readers = "+SIEM (event credential), 1 event credentials of tenants above"
    assert rows["events of devices"]["recipients"] == readers
    assert rows["audit log"]["recipients"] == readers
    assert rows["devices"]["recipients"] == ""
    assert rows["audit log"]["records"] == 7


async def test_who_was_there_before_logins_were_noted_may_have_logged_in(world: World) -> None:
    await world.sql(
        "UPDATE identity.account SET seen_at = $1 WHERE id = $2",
        AS_OF - timedelta(days=50),
        uid(0xC3),
    )
    rows = await rows_of(world, "access-review")
    flags = {UUID(row["userId"]): row["flag"] for row in rows}
    assert flags[uid(0xC3)] == "loginsUnknown"


async def test_reports_say_what_was_pruned_of_the_log(world: World) -> None:
    """In each form: an extract of a pruned period is not empty without a word; a kind that asks
    the log who did something says it whatever its period, and one that does not ask it does not."""
    last = AS_OF - timedelta(days=100)
    await world.audit.sql("DELETE FROM audit.entry WHERE sequence <= 2 AND tenant_id = $1", ORG.id)
    await world.sql(
        "INSERT INTO audit.chain_base (chain_id, sequence, hash, until_sequence, until_hash,"
        " archive_sha256, pruned_at, last_occurred_at)"
        " VALUES ($1, 2, sha256('a'), 2, sha256('a'), sha256('b'), $2, $3)",
        ORG.id,
        AS_OF - timedelta(days=1),
        last,
    )
    archive = hashlib.sha256(b"b").hexdigest()

    async def said(
        kind: str, start: datetime | None = None
    ) -> tuple[dict[str, Any], str, dict[str, bytes]]:
        period = {"from": start} if start else {}
        files = await world.files(await world.made(kind, parameters=period))
        page = files[f"{kind}.html"].decode()
        return json.loads(files[f"{kind}.json"]), page, files

    found, page, files = await said("audit-extract", last)
    told = {
        "orgId": str(ORG.id), "orgName": ORG.name, "sequence": 2, "lastOccurredAt": written(last),
        "prunedAt": written(AS_OF - timedelta(days=1)), "archiveSha256": archive,
    }  # fmt: skip
    assert found["manifest"]["pruned"] == [told]
    assert found["manifest"]["prunedChains"] == 1
    assert "Not in it" in page
    assert archive in page
    of_org = next(one for one in found["chains"] if one["orgId"] == str(ORG.id))
    assert {name: of_org[name] for name in ("prunedSequence", "archiveSha256")} == {
        "prunedSequence": 2, "archiveSha256": archive,
    }  # fmt: skip
    assert archive in files["audit-extract-chains.csv"].decode()

    found, page, files = await said("audit-extract", last + timedelta(seconds=1))
    assert "pruned" not in found["manifest"]
    assert archive not in page + files["audit-extract-chains.csv"].decode()
    found, _, _ = await said("asset-register", last + timedelta(days=1))
    assert found["manifest"]["pruned"] == [told]
    found, _, _ = await said("device-health")
    assert "pruned" not in found["manifest"]
