"""Who makes and reads reports, what is kept, what is signed, and what happens when things fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
from typer.testing import CliRunner

from auditlog.keys import read_keys
from auditlog.reports import ReportManifest
from cli.reports import app
from contract.access import Role
from evergreen.v1 import audit_pb2 as pb
from evergreen.v1 import identity_pb2
from servicekit.data.postgres import Scope
from servicekit.ids import now
from servicekit.rpc.values import timestamp
from servicekit.security import fips
from servicekit.security.digests import sha256_hex
from services.audit.reports import files, kinds, maker, service, store
from services.audit.reports.kinds import PRODUCERS
from services.audit.reports.kinds.base import Page
from services.audit.reports.kinds.inventory import DataInventory
from tests.services.audit.reports.conftest import (
    AS_OF,
    ORG_AUDITOR,
    ORG_OWNER,
    RESELLER_OWNER,
    SISTER_OWNER,
    StartWorld,
    World,
)
from tests.support import callers
from tests.support.audit import ORG, RESELLER, ROOT, SISTER
from tests.support.refusals import refusal


async def test_an_auditor_of_a_school_sees_only_it(world: World) -> None:
    """Neither in a report nor in the list: a report on a tenant above is not there."""
    above = await world.made("devices-not-seen")
    own = await world.until((await world.create("devices-not-seen", ORG_AUDITOR, org_id="")).id)
    assert own.org_id == str(ORG.id)
    text = (await world.download(own.id, "devices-not-seen.csv", ORG_AUDITOR)).decode()
    assert "SN-3" in text
    assert str(SISTER.id) not in text
    assert "SN-5" not in text
    assert "SN-5" in (await world.download(above.id, "devices-not-seen.csv")).decode()
    listed = await world.reports.ListReports(pb.ListReportsRequest(), metadata=ORG_AUDITOR)
    assert [report.id for report in listed.reports] == [own.id]
    for by, wanted in ((ORG_AUDITOR, above.id), (SISTER_OWNER, own.id)):
        for call in (
            world.get(wanted, by),
            world.download(wanted, "devices-not-seen.csv", by),
            world.download(wanted, "manifest.txt", by),
        ):
            assert (await refusal(call)).code is grpc.StatusCode.NOT_FOUND
    for org in (SISTER, RESELLER, ROOT):
        refused = await refusal(world.create("devices-not-seen", ORG_AUDITOR, org_id=str(org.id)))
        assert refused.code is grpc.StatusCode.NOT_FOUND
    both = await world.reports.ListReports(pb.ListReportsRequest(), metadata=RESELLER_OWNER)
    assert [report.id for report in both.reports] == [own.id, above.id]


async def test_roles(world: World) -> None:
    """All roles make and read reports; an Auditor deletes none, and makes no schedule."""
    made = await world.until((await world.create("access-review", ORG_AUDITOR, org_id="")).id)
    refused = await refusal(
        world.reports.DeleteReport(pb.DeleteReportRequest(id=made.id), metadata=ORG_AUDITOR)
    )
    assert refused.reason == "ROLE_MAY_NOT"
    refused = await refusal(
        world.schedules.CreateReportSchedule(
            pb.CreateReportScheduleRequest(kind="access-review", every="day"), metadata=ORG_AUDITOR
        )
    )
    assert refused.reason == "ROLE_MAY_NOT"
    admin = callers.user(ORG.id, Role.ADMIN)
    await world.reports.DeleteReport(pb.DeleteReportRequest(id=made.id), metadata=admin)
    assert (await refusal(world.get(made.id))).code is grpc.StatusCode.NOT_FOUND
    assert await world.sql("SELECT FROM audit.report_part") == []


async def test_a_token_reads_in_reports_what_it_may_read(world: World) -> None:
    """A report on users needs the scope of users, to make it and to download it."""
    token_id = str(uuid4())
    ends = timestamp(now() + timedelta(days=1))
    tokens = world.audit.kit.tenants.api_tokens
    tokens.learn([identity_pb2.ApiTokenState(token_id=token_id, works_until=ends, expires_at=ends)])
    tokens.all_known(now())
    token = (
        *((name, value) for name, value in ORG_OWNER if name not in _OF_A_SESSION),
        ("x-evergreen-kind", "token"),
        ("x-evergreen-subject", token_id),
        ("x-evergreen-token-owner", str(uuid4())),
        ("x-evergreen-token-name", "Reports"),
        ("x-evergreen-token-who", "owner%40school.example"),
        ("x-evergreen-token-scopes", "audit:write devices:read"),
    )
    made = await world.until((await world.create("devices-not-seen", token, org_id="")).id)
    assert made.requested_by == "token:Reports (owner@school.example)"
    assert await world.download(made.id, "devices-not-seen.csv", token)
    refused = await refusal(world.create("access-review", token, org_id=""))
    assert (refused.reason, refused.body["message"]) == (
        "SCOPE_MISSING",
        "the API token lacks the scope users:read",
    )
    other = await world.until((await world.create("access-review", ORG_OWNER, org_id="")).id)
    refused = await refusal(world.download(other.id, "access-review.csv", token))
    assert refused.reason == "SCOPE_MISSING"


_OF_A_SESSION = {
    "x-evergreen-kind",
    "x-evergreen-subject",
    "x-evergreen-email",
    "x-evergreen-session",
}
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("nothing", {}, "kind"),
    ("devices-not-seen", {"formats": ["pdf"]}, "formats[0]"),
    ("devices-not-seen", {"parameters": {"days": 0}}, "parameters.days"),
    ("devices-not-seen", {"parameters": {"grace_days": 1}}, "parameters.graceDays"),
    ("data-inventory", {"parameters": {"days": 1}}, "parameters.days"),
    (
        "policy-history",
        {"parameters": {"from": AS_OF, "until": AS_OF - timedelta(days=1)}},
        "parameters.until",
    ),
    ("policy-history", {"parameters": {"until": AS_OF + timedelta(days=1)}}, "parameters.until"),
    ("policy-history", {"parameters": {"from": AS_OF + timedelta(days=1)}}, "parameters.from"),
]


async def test_what_is_wrong_is_named(world: World) -> None:
    for kind, more, field in WRONG:
        refused = await refusal(world.create(kind, **more))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.fields == [field], refused.body
    made = await world.made("devices-not-seen")
    refused = await refusal(world.download(made.id, "../secret"))
    assert refused.code is grpc.StatusCode.NOT_FOUND


async def test_a_report_is_what_it_says(world: World, tmp_path: Path) -> None:
    """Digests, manifest, signature and the log's entry agree; one changed byte is found, in each
    file and in the manifest, without a server."""
    made = await world.made("policy-compliance", formats=["html", "csv"])
    assert [file.name for file in made.files] == [
        "policy-compliance.csv",
        "policy-compliance-organisations.csv",
        "policy-compliance.html",
        "manifest.txt",
    ]
    content = await world.files(made)
    for file in made.files:
        assert (file.bytes, file.sha256) == (
            len(content[file.name]),
            sha256_hex(content[file.name]),
        )
        (tmp_path / file.name).write_bytes(content[file.name])
    manifest = ReportManifest.read(content["manifest.txt"].decode())
    (told,) = await world.told("audit.report_created")
    assert told["resource"] == f"reports/{made.id}"
    assert told["after"]["manifestSha256"] == sha256_hex(manifest.text.encode())
    assert manifest.rows == made.rows == told["after"]["rows"]
    keys = tmp_path / "keys.pem"
    keys.write_text(await world.audit.public_keys())
    assert manifest.signed_by(read_keys(keys.read_text()))
    assert {s.name for s in manifest.signatures} == {"evergreen.school.example/reports"}

    def verify(*arguments: str) -> tuple[int, str]:
        command = ["verify", str(tmp_path / "manifest.txt"), "--public-key", str(keys), *arguments]
        found = CliRunner().invoke(app, command)
        return found.exit_code, found.output

    code, output = verify()
    assert (code, "3 files" in output) == (0, True), output
    for name, whole in content.items():
        for at in (0, len(whole) // 2, len(whole) - 2):
            changed = bytearray(whole)
            changed[at] ^= 1
            (tmp_path / name).write_bytes(changed)
            code, output = verify()
            assert code == (2 if "no manifest" in output or "none of" in output else 1), output
            assert code == 1 or name == "manifest.txt"
        (tmp_path / name).write_bytes(whole)
    (tmp_path / "policy-compliance.csv").unlink()
    assert verify()[0] == 2
    assert verify(str(tmp_path / "policy-compliance.html"))[0] == 0


async def test_a_changed_number_in_the_manifest_is_found(world: World, tmp_path: Path) -> None:
    """With the old signature it is a forgery, not an unknown key."""
    made = await world.made("devices-not-seen", formats=["csv"])
    note = (await world.download(made.id, "manifest.txt")).decode()
    forged = ReportManifest.read(note.replace(f"rows {made.rows}\n", f"rows {made.rows + 1}\n"))
    assert forged.signed_by(read_keys(await world.audit.public_keys())) is False


async def test_what_is_done_is_in_the_log(world: World) -> None:
    made = await world.made("devices-not-seen", request_id=str(uuid4()))
    await world.download(made.id, "devices-not-seen.html")
    await world.reports.DeleteReport(pb.DeleteReportRequest(id=made.id), metadata=RESELLER_OWNER)
    (asked,) = await world.told("audit.report_requested")
    assert (asked["actor"], asked["after"]["parameters"]) == (
        "owner@reseller.example",
        {"days": 30},
    )
    (created,) = await world.told("audit.report_created")
    assert (created["actor"], created["after"]["requestedBy"]) == (
        "system",
        "owner@reseller.example",
    )
    (downloaded,) = await world.told("audit.report_downloaded")
    assert downloaded["after"] == {"kind": "devices-not-seen", "file": "devices-not-seen.html"}
    (deleted,) = await world.told("audit.report_deleted")
    assert deleted["before"]["kind"] == "devices-not-seen"
    rows = await world.sql("SELECT id::text FROM audit.outbox WHERE subject LIKE '%report_created'")
    assert [row["id"] for row in rows] == [made.audit_entry_id]


async def test_a_repeated_request_makes_one_report(world: World) -> None:
    request_id = str(uuid4())
    first = await world.create("data-inventory", request_id=request_id)
    again = await world.create("data-inventory", request_id=request_id)
    assert first.id == again.id
    refused = await refusal(world.create("policy-history", request_id=request_id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_USED")
    other = await world.create("data-inventory", ORG_OWNER, org_id="", request_id=request_id)
    assert other.id != first.id


async def test_headers_let_a_page_do_nothing(world: World) -> None:
    """It is a download, runs no script, and loads nothing; what devices say is text in it."""
    made = await world.made("device-health")
    call = world.reports.DownloadReport(
        pb.DownloadReportRequest(id=made.id, name="device-health.html"), metadata=RESELLER_OWNER
    )
    headers = dict(await call.initial_metadata())
    assert headers["content-disposition"] == 'attachment; filename="device-health.html"'
    assert "sandbox" in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]
    parts = [part async for part in call]
    assert parts[0].content_type == "text/html; charset=utf-8"
    text = b"".join(bytes(part.data) for part in parts).decode()
    for forbidden in ("<script", 'http://x.example"', "src=", "href=", "url(", "@import", "on="):
        assert forbidden not in text.replace("&lt;script", ""), forbidden
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert text.count("<svg") == 1
    sheet = (await world.download(made.id, "device-health.csv")).decode("utf-8-sig")
    assert "\r\n" in sheet
    assert ",=" not in sheet
    assert '"=' not in sheet
    assert ",@" not in sheet
    assert json.loads(await world.download(made.id, "device-health.json"))["manifest"]["rows"] == 4


async def test_an_owner_that_is_away_is_waited_for(world: World) -> None:
    """Never half a report: it is made when the owner is back, and fails by name after ten minutes,
    while reports that need others are made."""
    await world.owners["telemetry"].stop(0)
    waits = await world.create("devices-not-seen")
    other = await world.made("policy-history", by=ORG_OWNER, org_id="")
    assert other.status == "ready"

    async def waiting() -> bool:
        rows = await world.sql(
            "SELECT waiting_since FROM audit.report WHERE id = $1", UUID(waits.id)
        )
        return rows[0]["waiting_since"] is not None

    for _ in range(400):
        if await waiting():
            break
        await asyncio.sleep(0.05)
    assert await waiting()
    assert (await world.get(waits.id)).status == "running"
    world.owners["telemetry"] = await world.start_owner("telemetry")
    world.time.move(seconds=11)
    ready = await world.until(waits.id)
    # The next outage is another one.
    assert not await waiting()
    # As of when it was asked for.
    assert ready.as_of.ToDatetime() == AS_OF.replace(tzinfo=None)
    await world.owners["telemetry"].stop(0)
    lost = await world.create("devices-not-seen")
    for _ in range(400):
        rows = await world.sql(
            "SELECT waiting_since FROM audit.report WHERE id = $1", UUID(lost.id)
        )
        if rows[0]["waiting_since"]:
            break
        await asyncio.sleep(0.05)
    world.time.move(minutes=11)
    failed = await world.until(lost.id, "failed")
    assert failed.error == "NOT_AVAILABLE: telemetry is not available"
    assert not failed.files
    (told,) = await world.told("audit.report_failed")
    assert (told["outcome"], told["after"]["reason"]) == ("failed", "NOT_AVAILABLE")


async def test_a_process_that_dies_leaves_nothing_half(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of an attempt before are not in the files of the one that finished, and nobody can
    download before it has."""
    whole = await world.files(await world.made("asset-register"))
    # As if it had died: nobody renews its lease.
    monkeypatch.setattr(maker, "_LEASE_SECONDS", 6)
    monkeypatch.setattr(maker, "_RENEW_SECONDS", 1000)
    monkeypatch.setattr(files, "PART_BYTES", 512)
    begun, gate = asyncio.Event(), asyncio.Event()
    true_add = files.Files.add

    async def held(self: files.Files, table: int, rows: Any) -> None:
        await true_add(self, table, rows)
        if not begun.is_set():
            begun.set()
            await gate.wait()

    monkeypatch.setattr(files.Files, "add", held)
    made = await world.create("asset-register")
    await asyncio.wait_for(begun.wait(), 60)
    rows = await world.sql(
        "SELECT count(*) AS n FROM audit.report_part WHERE report_id = $1", UUID(made.id)
    )
    assert rows[0]["n"] > 0
    refused = await refusal(world.download(made.id, "asset-register.csv"))
    assert refused.reason == "REPORT_NOT_READY"
    # The first attempt hangs, as a killed process would; its lease runs out, and the other place
    # takes the report.
    ready = await world.until(made.id)
    found = await world.files(ready)
    gate.set()
    await asyncio.sleep(0.2)
    del whole["manifest.txt"], found["manifest.txt"]
    assert found == whole
    again = await world.files(await world.get(made.id))
    assert {name: again[name] for name in found} == found
    assert len(await world.told("audit.report_created")) == 2


async def test_a_report_that_breaks_stops_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends after some attempts, with a plain word; another tenant's is made meanwhile."""
    # Long enough for the other report on a busy machine: it has one attempt, too.
    monkeypatch.setattr(maker, "_LEASE_SECONDS", 5.0)
    monkeypatch.setattr(maker, "_MOST_ATTEMPTS", 1)
    monkeypatch.setattr(maker, "_RENEW_SECONDS", 0.1)

    class Broken(DataInventory):
        async def pages(self) -> AsyncGenerator[Page, None]:
            raise RuntimeError("a defect")
            yield

    monkeypatch.setattr(maker, "PRODUCERS", {**PRODUCERS, "data-inventory": Broken})
    broken = await world.create("data-inventory")
    other = await world.made("audit-extract", by=ORG_OWNER, org_id="")
    # Two tables about the entries, and one row about their chain.
    assert other.rows == 7 + 7 + 1
    failed = await world.until(broken.id, "failed")
    assert failed.error.startswith("INTERNAL")
    assert "defect" not in failed.error


async def test_bounds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many rows, too large, too many at a time, too much in all."""
    monkeypatch.setattr(maker, "MOST_ROWS", 3)
    failed = await world.until((await world.create("asset-register")).id, "failed")
    assert failed.error.startswith("TOO_MANY_ROWS")
    monkeypatch.setattr(maker, "MOST_ROWS", 500)
    monkeypatch.setattr(service, "MOST_RUNNING", 0)
    refused = await refusal(world.create("asset-register"))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "TOO_MANY_REPORTS",
    )
    monkeypatch.setattr(service, "MOST_RUNNING", 5)
    monkeypatch.setattr(service, "MOST_KEPT", 1)
    # The one that failed makes room.
    await world.made("asset-register")
    (gone,) = await world.told("audit.report_deleted")
    assert (gone["resource"], gone["before"]["reason"]) == (f"reports/{failed.id}", "room")
    refused = await refusal(world.create("asset-register"))
    assert refused.reason == "REPORTS_FULL"
    # Another tenant has its own bounds.
    await world.create("asset-register", ORG_OWNER, org_id="")


async def make_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """No report is begun any more; the look that was under way has ended."""
    monkeypatch.setattr(maker, "_AT_ONCE", 0)
    looks, begin = asyncio.Event(), maker.begin_background_call

    def look() -> None:
        looks.set()
        begin()

    monkeypatch.setattr(maker, "begin_background_call", look)
    await asyncio.wait_for(looks.wait(), 60)


async def test_a_tenant_asks_for_so_many_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all tenants below it; those have their own."""
    await make_none(monkeypatch)
    monkeypatch.setattr(service, "MOST_RUNNING", 2)
    await world.create("policy-history")
    await world.create("policy-history", org_id=str(ORG.id))
    refused = await refusal(world.create("policy-history", org_id=str(SISTER.id)))
    assert refused.reason == "TOO_MANY_REPORTS"
    await world.create("policy-history", SISTER_OWNER, org_id="")


async def test_tenants_have_their_turns(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for many lets nobody else wait, though they are about different tenants; of one that
    asks, one is made at a time."""
    await make_none(monkeypatch)
    first = await world.create("policy-history")
    more = [await world.create("policy-history", org_id=str(o.id)) for o in (ORG, SISTER)]
    late = await world.create("policy-history", SISTER_OWNER, org_id="")
    database = world.audit.kit.database
    taken = []
    for _ in range(4):
        async with database.system_transaction("a test") as connection:
            found = await store.claim(connection, uuid4(), AS_OF, 3600)
            if found is None:
                break
            taken.append(str(found.id))
    # The sister's own is made on her, whose turn it is; the reseller's others wait.
    assert taken == [first.id, late.id]
    for wanted in (more[0].id, more[1].id):
        await world.sql(
            "UPDATE audit.report SET status = 'failed' WHERE id::text = ANY ($1)", taken
        )
        async with database.system_transaction("a test") as connection:
            found = await store.claim(connection, uuid4(), AS_OF, 3600)
        assert found is not None
        assert str(found.id) == wanted
        taken.append(wanted)


async def test_a_worker_that_wakes_late_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one has the report, or has finished it: its parts stay."""
    made = await world.made("policy-history")
    before = await world.files(made)
    database = world.audit.kit.database
    async with database.transaction(Scope.of(RESELLER.id)) as connection:
        report = await store.find(connection, Scope.of(RESELLER.id), UUID(made.id))
        assert report is not None
        assert not await store.forget_parts(connection, report, uuid4())
    assert await world.files(made) == before


async def test_what_is_stored_is_compared_with_what_was_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that is lost or another one before signing makes the attempt fail, and the next one
    makes the report; one that is lost later makes the download fail."""
    true_finish = files.Files.close
    broken: list[int] = []

    async def close(self: files.Files, *arguments: Any) -> None:
        await true_finish(self, *arguments)
        if not broken:
            broken.append(1)
            await world.sql("DELETE FROM audit.report_part WHERE part = 0")

    monkeypatch.setattr(files.Files, "close", close)
    monkeypatch.setattr(maker, "_LEASE_SECONDS", 2)
    monkeypatch.setattr(maker, "_RENEW_SECONDS", 0.2)
    made = await world.made("policy-history")
    assert broken
    content = await world.files(made)
    for file in made.files:
        assert sha256_hex(content[file.name]) == file.sha256
    await world.sql("DELETE FROM audit.report_part WHERE part = 0")
    refused = await refusal(world.download(made.id, "policy-history.html"))
    assert refused.code is grpc.StatusCode.INTERNAL


async def test_a_report_that_is_deleted_while_it_is_made_frees_its_place(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maker, "_RENEW_SECONDS", 0.05)
    monkeypatch.setattr(maker, "_AT_ONCE", 1)
    begun = asyncio.Event()

    class Endless(DataInventory):
        async def pages(self) -> AsyncGenerator[Page, None]:
            begun.set()
            await asyncio.sleep(1000)
            yield 0, []

    monkeypatch.setattr(maker, "PRODUCERS", {**PRODUCERS, "data-inventory": Endless})
    made = await world.create("data-inventory")
    await asyncio.wait_for(begun.wait(), 60)
    await world.reports.DeleteReport(pb.DeleteReportRequest(id=made.id), metadata=RESELLER_OWNER)
    await world.until((await world.create("policy-history")).id, seconds=60)
    # An error that is none of the database's does not end renewing.
    true_renew = store.renew
    errors: list[int] = []

    async def renew(*arguments: Any) -> bool:
        errors.append(1)
        if len(errors) == 1:
            raise RuntimeError("a defect")
        return await true_renew(*arguments)

    monkeypatch.setattr(store, "renew", renew)
    begun.clear()
    held = await world.create("data-inventory")
    await asyncio.wait_for(begun.wait(), 60)
    for _ in range(200):
        if len(errors) > 2:
            break
        await asyncio.sleep(0.02)
    assert len(errors) > 2
    await world.reports.DeleteReport(pb.DeleteReportRequest(id=held.id), metadata=RESELLER_OWNER)
    await world.until((await world.create("policy-history")).id, seconds=60)


async def test_a_report_of_long_ago_is_not_made_of_today(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waited too long fails by its name; the manifest says when rows were read."""
    await make_none(monkeypatch)
    late = await world.create("devices-not-seen")
    world.time.move(hours=7)
    monkeypatch.setattr(maker, "_AT_ONCE", 2)
    failed = await world.until(late.id, "failed")
    assert failed.error.startswith("TOO_LATE")
    await make_none(monkeypatch)
    slow = await world.create("devices-not-seen", formats=["csv"])
    world.time.move(hours=1)
    monkeypatch.setattr(maker, "_AT_ONCE", 2)
    await world.until(slow.id)
    manifest = ReportManifest.read((await world.download(slow.id, "manifest.txt")).decode())
    assert manifest.parameters == '{"days":30}'
    assert (manifest.as_of, manifest.read_from, manifest.read_until) == (
        "2026-11-30T16:00:00Z",
        "2026-11-30T17:00:00Z",
        "2026-11-30T17:00:00Z",
    )


async def test_a_report_says_which_module_made_it(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In FIPS mode: in the signed manifest, which verifies, and in the files; else nowhere."""
    usual = await world.made("policy-history")
    assert "ryptography" not in (await world.download(usual.id, "manifest.txt")).decode()
    module = fips.Module("OpenSSL FIPS Provider", "3.5.9", "", "", "ab" * 32, "")
    monkeypatch.setattr(fips, "module", lambda: module)
    made = await world.made("policy-history")
    said = f"FIPS mode, OpenSSL FIPS Provider 3.5.9, SHA-256 {'ab' * 32}"
    for name in ("manifest.txt", "policy-history.json", "policy-history.html"):
        content = await world.download(made.id, name)
        assert said in content.decode()
        (tmp_path / name).write_bytes(content)
    manifest = ReportManifest.read((tmp_path / "manifest.txt").read_text())
    assert manifest.cryptography == said
    assert manifest.write() == (tmp_path / "manifest.txt").read_text()
    keys = tmp_path / "keys.pem"
    keys.write_text(await world.audit.public_keys())
    (tmp_path / "policy-history.csv").write_bytes(
        await world.download(made.id, "policy-history.csv")
    )
    words = ["verify", str(tmp_path / "manifest.txt"), "--public-key", str(keys)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert f"Made and signed in {said}." in done.output
    (tmp_path / "manifest.txt").write_text(manifest.write().replace("3.5.9", "3.1.2"))
    assert CliRunner().invoke(app, words).exit_code == 1


async def test_all_tenants_have_a_bound_together(start_world: StartWorld) -> None:
    """What is being made counts as large as it may become; schedules wait, and nothing goes."""
    world = await start_world(report_mib=1, reports_mib=1)
    made = await world.made("policy-history")
    await world.sql("UPDATE audit.report SET bytes = $1", 1 << 20)
    refused = await refusal(world.create("policy-history", SISTER_OWNER, org_id=""))
    assert refused.reason == "REPORTS_FULL"
    assert "EVERGREEN_REPORTS_MIB" in refused.body["message"]
    await world.reports.DeleteReport(pb.DeleteReportRequest(id=made.id), metadata=RESELLER_OWNER)
    await world.create("policy-history", SISTER_OWNER, org_id="")


async def test_a_report_outlives_the_key_that_signed_it(world: World) -> None:
    """After a rotation old manifests verify by the old key, and new ones by the new one."""
    old = await world.made("policy-history", formats=["csv"])
    keys = await world.audit.public_keys()
    audit = world.audit
    await audit.api.RotateAuditKey(pb.RotateAuditKeyRequest(), metadata=audit.owner)
    new = await world.made("policy-history", formats=["csv"])
    both = await world.audit.public_keys()
    for report in (old, new):
        text = (await world.download(report.id, "manifest.txt")).decode()
        assert ReportManifest.read(text).signed_by(read_keys(both))
    text = (await world.download(old.id, "manifest.txt")).decode()
    assert ReportManifest.read(text).signed_by(read_keys(keys))


async def test_too_large_fails_and_leaves_nothing(start_world: StartWorld) -> None:
    world = await start_world(report_mib=1)
    await world.sql(
        "INSERT INTO enrollment.device (id, tenant_id, serial, model, cpu_model, cpu_count,"
        " total_ram_bytes, has_tpm, status, token_version, created_at)"
        " SELECT gen_random_uuid(), $1, 'SN-' || n, repeat('m', 200), 'i3', 6, 1, true, 'active',"
        " 1, $2 FROM generate_series(1, 3000) AS n",
        ORG.id,
        AS_OF,
    )
    failed = await world.until((await world.create("devices-not-seen")).id, "failed")
    assert failed.error.startswith("TOO_LARGE")
    assert await world.sql("SELECT FROM audit.report_part") == []


def test_every_kind_is_described() -> None:
    """Three to five figures, columns with the organisation first, and scopes."""
    assert len(kinds.kinds()) == 9
    for kind in kinds.kinds():
        assert kind.about.endswith(".")
        assert kind.scopes
        assert kind.tables[0].columns[0].name == "orgId"
