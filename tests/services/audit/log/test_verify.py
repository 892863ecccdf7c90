"""`evergreen audit verify` finds what somebody with superuser rights did to the log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from auditlog.chain import Checkpoint
from evergreen.v1 import audit_pb2 as pb
from servicekit.security.signing import Signer
from services.audit.log.recorder import Recorder
from tests.support import callers
from tests.support.audit import (
    ORG,
    RESELLER,
    ROOT,
    SISTER,
    STRANGER,
    Audit,
    StartAudit,
    audit,
    event,
    start_audit,
)
from tests.support.audit_cli import Outcome, evergreen, rewrite

__all__ = ["audit", "start_audit"]


@dataclass
class Kept:
    """What a careful administrator keeps elsewhere."""

    directory: Path
    checkpoints: list[Path]
    keys: Path

    async def verify(self, audit: Audit, *more: str) -> Outcome:
        """Exports the log as it is now and verifies it against what was kept."""
        export = self.directory / "export.jsonl"
        export.write_text(await audit.export())
        points = [part for path in self.checkpoints for part in ("--checkpoint", path)]
        return await evergreen(
            "audit", "verify", "--from-export", export, *points, "--public-key", self.keys, *more
        )


async def keep(audit: Audit, directory: Path) -> Kept:
    """Records two chains and keeps a checkpoint in the middle and one at the end."""
    keys = directory / "audit-keys.pem"
    keys.write_text(await audit.public_keys())
    checkpoints = []
    for part in range(2):
        await audit.record(*(event(part * 10 + n) for n in range(5)))
        await audit.record(*(event(part * 10 + n, SISTER.id) for n in range(3)))
        path = directory / f"checkpoint-{part}.json"
        path.write_text(await audit.checkpoint())
        checkpoints.append(path)
    return Kept(directory, checkpoints, keys)


async def test_an_untouched_log_verifies(audit: Audit, tmp_path: Path) -> None:
    """Also after it grew, and for one tenant alone."""
    kept = await keep(audit, tmp_path)
    await audit.record(event(50), event(51, STRANGER.id))
    found = await kept.verify(audit)
    assert (found.code, found.err) == (0, "")
    assert "Verified: 18 entries in 3 chains, 2 checkpoints. Nothing was changed." in found.out
    export = tmp_path / "one.jsonl"
    export.write_text(await audit.export(org_id=str(ORG.id)))
    alone = await evergreen(
        "audit", "verify", "--from-export", export, "--org", str(ORG.id),
        "--checkpoint", kept.checkpoints[1], "--public-key", kept.keys,
    )  # fmt: skip
    assert alone.code == 0, alone.out


async def test_a_log_verifies_across_rotations_of_the_key(
    start_audit: StartAudit, tmp_path: Path
) -> None:
    """Checkpoints of every key count, with the keys of today; older keys say what they lack."""
    ahead = timedelta()
    audit = await start_audit(stream=False, clock=lambda: datetime.now(UTC) + ahead)
    kept = await keep(audit, tmp_path)
    made = await audit.api.RotateAuditKey(pb.RotateAuditKeyRequest(), metadata=audit.owner)
    assert made.state == "next"
    # A key is published before it signs.
    ahead = timedelta(seconds=30)
    published = await audit.public_keys()
    assert published.count("BEGIN PUBLIC KEY") == 2
    assert Checkpoint.read(await audit.checkpoint()).key_id != made.key_id
    # Ten years later the first key still verifies, and does not sign.
    for years in (0, 10):
        ahead = timedelta(days=365 * years, seconds=61)
        await audit.record(event(60 + years))
        path = tmp_path / f"rotated-{years}.json"
        path.write_text(await audit.checkpoint())
        kept.checkpoints.append(path)
        assert Checkpoint.read(path.read_text()).key_id == made.key_id
    old_keys = await kept.verify(audit)
    assert old_keys.code == 2
    assert f"its key {made.key_id} is not among the public keys" in old_keys.out
    kept.keys.write_text(await audit.public_keys())
    found = await kept.verify(audit)
    assert (found.code, found.err) == (0, "")
    assert "4 checkpoints. Nothing was changed." in found.out
    listed = await audit.api.ListAuditKeys(pb.ListAuditKeysRequest(), metadata=audit.owner)
    assert [key.state for key in listed.keys] == ["retired", "active"]


async def test_a_reseller_does_not_rotate_the_key(audit: Audit) -> None:
    """Nor an organisation's Owner: checkpoints of everybody are signed with it."""
    for tenant_id in (RESELLER.id, ORG.id):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await audit.api.RotateAuditKey(
                pb.RotateAuditKeyRequest(), metadata=callers.user(tenant_id)
            )
        assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


ONE = f"tenant_id = '{ORG.id}'"
TAMPERING = [
    (f"UPDATE audit.entry SET record = replace(record, 'owner@', 'other@') WHERE {ONE}"
     " AND sequence = 4",
     ["entry 4", "changed", "hash does not fit"]),
    (f"UPDATE audit.entry SET actor = 'other@school.example' WHERE {ONE} AND sequence = 4",
     ["entry 4", "changed", "the column actor says “other@school.example”"]),
    (f"UPDATE audit.entry SET occurred_at = occurred_at - interval '1 day' WHERE {ONE}"
     " AND sequence = 4",
     ["entry 4", "changed", "the column occurred_at"]),
    (f"DELETE FROM audit.entry WHERE {ONE} AND sequence = 4",
     ["removed", "entry 4 was removed"]),
    (f"DELETE FROM audit.entry WHERE {ONE} AND sequence > 8",
     ["truncated", "entries 9 to 10 were cut off: the log itself says"]),
    (f"WITH gone AS (DELETE FROM audit.entry WHERE {ONE} AND sequence > 8)"
     " UPDATE audit.chain_head h SET sequence = 8, hash = e.hash FROM audit.entry e"
     f" WHERE e.tenant_id = h.tenant_id AND e.sequence = 8 AND e.{ONE}",
     ["truncated", "entries 9 to 10 were cut off: the checkpoint of"]),
    ("UPDATE audit.entry a SET record = b.record, id = gen_random_uuid(),"
     " occurred_at = b.occurred_at, resource = b.resource FROM audit.entry b"
     f" WHERE a.{ONE} AND b.{ONE} AND a.sequence IN (3, 7) AND b.sequence = 10 - a.sequence",
     ["reordered", "what stands at entry 3 belongs at entry 7"]),
    (f"WITH gone AS (DELETE FROM audit.entry WHERE {ONE}) DELETE FROM audit.chain_head WHERE {ONE}",
     ["removed", "the whole chain is missing"]),
    ("INSERT INTO audit.entry SELECT tenant_id, 11, gen_random_uuid(), occurred_at, actor,"
     " actor_id, action, resource, record, hash, hash FROM audit.entry"
     f" WHERE {ONE} AND sequence = 10",
     ["forged", "entry 11 was added without the log's knowledge"]),
]  # fmt: skip


async def test_tampering_is_found_and_named(audit: Audit, tmp_path: Path) -> None:
    """Each in turn, on a log that was whole before; the other tenant is not accused."""
    kept = await keep(audit, tmp_path)
    for table in ("entry", "chain_head"):
        await audit.sql(f"CREATE TABLE public.{table} AS TABLE audit.{table}")
    for statement, words in TAMPERING:
        await audit.sql(statement)
        found = await kept.verify(audit)
        assert found.code == 1, (statement, found)
        for word in words:
            assert word in found.out, (statement, found.out)
        assert f"tenant {ORG.id}" in found.out
        assert f"tenant {SISTER.id}" not in found.out
        for table in ("entry", "chain_head"):
            await audit.sql(f"DELETE FROM audit.{table}")
            await audit.sql(f"INSERT INTO audit.{table} SELECT * FROM public.{table}")
    assert (await kept.verify(audit)).code == 0


async def test_a_chain_made_anew_fits_no_checkpoint(audit: Audit, tmp_path: Path) -> None:
    """All hashes fit, only what was kept elsewhere does not; it tells where the change begins."""
    kept = await keep(audit, tmp_path)
    rows = await audit.sql(
        "SELECT record FROM audit.entry WHERE tenant_id = $1 ORDER BY sequence", ORG.id
    )
    records = [row["record"] for row in rows]
    records[7] = records[7].replace("owner@", "other@")
    await rewrite(audit, str(ORG.id), records)
    found = await kept.verify(audit)
    assert found.code == 1
    assert f"tenant {ORG.id}: forged: the chain was rewritten behind entry 5" in found.out
    blind = await evergreen("audit", "verify", "--from-export", tmp_path / "export.jsonl")
    assert blind.code == 0
    assert "No earlier checkpoint was given" in blind.out


async def test_a_forged_checkpoint_is_no_proof(audit: Audit, tmp_path: Path) -> None:
    """A changed one is tampering; one of an unknown key proves nothing; other files neither."""
    kept = await keep(audit, tmp_path)
    good = kept.checkpoints[1].read_text()
    kept.checkpoints[1].write_text(good.replace(" 10 ", " 9 "))
    assert (await kept.verify(audit)).code == 1
    kept.checkpoints[1].write_text(good)
    kept.keys.write_text(Signer(bytes(32)).public.pem())
    unknown = await kept.verify(audit)
    assert unknown.code == 2
    assert "not among the public keys" in unknown.out
    kept.keys.write_text("nothing")
    assert (await kept.verify(audit)).code == 2
    kept.checkpoints[1].write_text("nothing")
    broken = await kept.verify(audit)
    assert (broken.code, broken.out) == (2, "")
    assert "is no checkpoint" in broken.err


async def test_what_breaks_off_cannot_be_verified(audit: Audit, tmp_path: Path) -> None:
    """It is neither called sound, nor tampered with; nor is a filtered export of 0.1.0."""
    await keep(audit, tmp_path)
    whole = await audit.export()
    filtered = await audit.export(occurred_after=event(3).occurred_at)
    assert '"complete":false' in filtered
    old = filtered.replace(',"based":true', "", 1)
    for text in (old, filtered, whole[: len(whole) // 2], "", '{"x":1}\n'):
        path = tmp_path / "part.jsonl"
        path.write_text(text)
        found = await evergreen("audit", "verify", "--from-export", path)
        assert (found.code, found.err) == (2, ""), text[:200]
        assert "UNCHECKED the export" in found.out
    missing = await evergreen("audit", "verify", "--from-export", tmp_path / "missing")
    assert missing.code == 2
    assert "cannot be read: No such file" in missing.err


async def test_a_part_of_the_log_is_verified(audit: Audit, tmp_path: Path) -> None:
    """From its first entry to its last; entries between that the filter leaves out are links."""
    salted = Audit(
        **{**vars(audit), "recorder": Recorder(audit.kit.database, audit.kit.clock, salted=True)}
    )
    # The fourth and the sixth arrived late.
    for number in (0, 1, 2, 9, 3, 10, 4, 5, 6):
        await salted.record(event(number))
    await salted.record(event(1, SISTER.id), event(3, SISTER.id))
    point, keys, path = (tmp_path / name for name in ("checkpoint", "keys.pem", "part.jsonl"))
    point.write_text(await audit.checkpoint())
    keys.write_text(await audit.public_keys())
    await salted.record(event(5, SISTER.id))
    times = {"occurred_after": event(2).occurred_at, "occurred_before": event(6).occurred_at}

    async def verify(text: str, *more: str) -> Outcome:
        path.write_text(text)
        return await evergreen(
            *("audit", "verify", "--from-export", path, *more),
            *("--checkpoint", point, "--public-key", keys),
        )

    text = await audit.export(**times)
    lines = [json.loads(line) for line in text.splitlines()]
    assert [next(iter(line)) for line in lines] == [
        *("format", "base", "entry", "withheld", "entry", "withheld", "entry", "entry"),
        *("base", "entry", "entry", "head", "end"),
    ]
    records = "".join(line["entry"]["record"] for line in lines if "entry" in line)
    assert "policies/9" not in records
    unasked = await verify(text)
    assert (unasked.code, "--part" in unasked.out) == (2, True), unasked
    done = await verify(text, "--part")
    assert (done.code, done.err) == (0, ""), done
    assert "That was a part of the log" in done.out
    for old, new, said in (
        ("policies/4", "policies/7", "was changed"),
        (lines[3]["withheld"]["digest"][:9], "000000000", "does not fit its digest"),
        (f'{lines[4]["entry"]["hash"]}"', f'{"0" * 64}"', "changed"),
    ):
        bad = await verify(text.replace(old, new), "--part")
        assert (bad.code, said in bad.out) == (1, True), bad
    gone = "".join(line for line in text.splitlines(keepends=True) if '"withheld"' not in line)
    bad = await verify(gone, "--part")
    assert (bad.code, "entry 4 was removed" in bad.out) == (1, True), bad
    await audit.sql("UPDATE audit.entry SET salt = NULL WHERE sequence = 4")
    plain = await verify(await audit.export(**times), "--part")
    assert (plain.code, "1 entry that the filter left out" in plain.out) == (2, True), plain


async def test_exports_hold_what_the_caller_may_see(audit: Audit) -> None:
    """Nothing of other tenants, in no format."""
    await audit.record(event(1), event(1, SISTER.id), event(1, ROOT.id))
    by = callers.user(SISTER.id)
    lines = [json.loads(line) for line in (await audit.export(by)).splitlines()]
    assert [line["entry"]["tenantId"] for line in lines if "entry" in line] == [str(SISTER.id)]
    assert [line["head"]["tenantId"] for line in lines if "head" in line] == [str(SISTER.id)]
    csv = await audit.export(by, format="csv")
    assert len(csv.splitlines()) == 2
