"""What was pruned is said where people look for it: lists, exports, files for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from auditlog.archive import entries_file
from auditlog.export import verify
from auditlog.findings import Kind
from auditlog.verify import Verifier
from cli import audit as command
from cli.audit_report import Report
from cli.audit_verify import Anchors
from cli.audit_verify import run as run_check
from evergreen.v1 import audit_pb2 as pb
from services.audit.log.domain import MOST_BASES
from tests.services.audit.retention.conftest import LONG_AGO, NEWEST, Operator, operator
from tests.support.audit import ORG, RESELLER, SISTER, STRANGER, audit, start_audit
from tests.support.callers import Metadata, user

__all__ = ["audit", "operator", "start_audit"]

_OLD = 30
_LAST = LONG_AGO + timedelta(hours=_OLD - 1)
"""When the last one that goes happened."""


def stamp(at: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(at)
    return made


async def pruned(operator: Operator, directory: Path, tenant_id: UUID = ORG.id) -> str:
    """A log of which the entries of long ago were pruned; answers the digest of the archive."""
    await operator.record(_OLD, tenant_id=tenant_id)
    await operator.audit.tree_checkpoint(_OLD + NEWEST)
    await operator.keep(5)
    archive = await operator.archive(directory)
    assert await operator.prune(archive) == [_OLD]
    return archive.sha256(entries_file(str(tenant_id)))


async def listed(
    operator: Operator, by: Metadata | None = None, **wish: Any
) -> pb.ListAuditEntriesResponse:
    answer: pb.ListAuditEntriesResponse = await operator.audit.api.ListAuditEntries(
        pb.ListAuditEntriesRequest(**wish), metadata=by or operator.audit.owner
    )
    return answer


async def test_a_list_ends_with_what_was_pruned(operator: Operator, tmp_path: Path) -> None:
    """On its last page, whatever it is filtered by; not where it begins later, nor to those who
    do not see the chain."""
    sha256 = await pruned(operator, tmp_path / "a")
    first = await listed(operator, page_size=500)
    assert (list(first.pruned), first.pruned_chains) == ([], 0)
    while first.next_page_token:
        first = await listed(operator, page_size=500, page_token=first.next_page_token)
    (told,) = first.pruned
    assert (told.org_id, told.org_name, told.sequence) == (str(ORG.id), ORG.name, _OLD)
    assert (told.archive_sha256, len(told.hash)) == (sha256, 64)
    assert told.last_occurred_at.ToDatetime(_LAST.tzinfo) == _LAST
    assert told.pruned_at.seconds > told.last_occurred_at.seconds
    rule = await operator.rules.GetAuditRetention(
        pb.GetAuditRetentionRequest(org_id=str(ORG.id)), metadata=operator.audit.owner
    )
    assert rule.pruned == told
    for wish, is_told in (
        ({"resource": "policies/3"}, True),
        ({"search": "nobody"}, True),
        ({"occurred_before": stamp(LONG_AGO)}, True),
        ({"occurred_after": stamp(_LAST), "actor": "x"}, True),
        ({"occurred_after": stamp(_LAST + timedelta(seconds=1)), "actor": "x"}, False),
        ({"org_id": str(SISTER.id)}, False),
        ({"org_id": str(ORG.id), "action": "policy.none"}, True),
    ):
        answer = await listed(operator, **wish)
        assert (len(answer.pruned), answer.pruned_chains) == (is_told, is_told), wish
    for other in (SISTER.id, STRANGER.id):
        answer = await listed(operator, user(other), action="policy.none")
        assert (list(answer.pruned), answer.pruned_chains) == ([], 0)
    answer = await listed(operator, user(RESELLER.id), action="policy.none")
    assert len(answer.pruned) == 1


async def test_a_list_names_some_chains_and_counts_all(operator: Operator) -> None:
    """However many tenants there are."""
    many = MOST_BASES + 20
    await operator.audit.sql(
        "INSERT INTO audit.chain_base (chain_id, sequence, hash, until_sequence, until_hash,"
        " archive_sha256, pruned_at, last_occurred_at) SELECT gen_random_uuid(), n, sha256('x'), n,"
        " sha256('x'), sha256('y'), now() - make_interval(days => n), now() FROM"
        f" generate_series(1, {many}) n"
    )
    answer = await listed(operator)
    assert (len(answer.pruned), answer.pruned_chains) == (MOST_BASES, many)
    assert answer.pruned[0].sequence == 1


async def test_a_filtered_export_says_what_it_is_without(
    operator: Operator, tmp_path: Path
) -> None:
    """Also where nothing else of its time is left; `verify --part` tells it."""
    sha256 = await pruned(operator, tmp_path / "a")
    for wish, begins in (
        ({"occurred_before": stamp(_LAST)}, None),
        ({"occurred_after": stamp(LONG_AGO + timedelta(hours=3))}, _OLD + 1),
        ({"occurred_after": stamp(_LAST + timedelta(hours=1))}, _OLD + 1),
    ):
        text = await operator.audit.export(**wish)
        lines = [json.loads(line) for line in text.splitlines()]
        told = [line["pruned"] for line in lines if "pruned" in line]
        entries = [line["entry"]["sequence"] for line in lines if "entry" in line]
        assert entries[:1] == ([] if begins is None else [begins])
        assert len(told) == (wish.get("occurred_after") != stamp(_LAST + timedelta(hours=1)))
        said: list[str] = []
        report = Report(said.append)
        verifier = run_check(text.splitlines(), Anchors((), ()), "", report, part=True)
        assert (report.exit_code, len(verifier.missing)) == (0, len(told)), said
        if told:
            assert {name: told[0][name] for name in ("tenantId", "sequence", "archiveSha256")} == {
                "tenantId": str(ORG.id), "sequence": _OLD, "archiveSha256": sha256,
            }  # fmt: skip
            (line,) = [one for one in said if one.startswith("PRUNED")]
            assert f"without entries up to {_OLD}, of {_LAST:%Y-%m-%d} and before" in line
            assert sha256 in line


async def test_a_part_has_one_beginning(operator: Operator) -> None:
    """A second one would hide what was removed between entries."""
    await operator.record(0, 20)
    text = await operator.audit.export(occurred_after=stamp(LONG_AGO))
    lines = text.splitlines()
    at = next(n for n, line in enumerate(lines) if '"sequence":9,' in line)
    gone = json.loads(lines[at])["entry"]
    place = {name: gone[name] for name in ("tenantId", "sequence", "hash")}
    lines[at] = json.dumps({"base": place})
    lines[-1] = json.dumps({"end": {"entries": 19}})
    found = list(verify(lines, Verifier(part=True)))
    assert Kind.REORDERED in {one.kind for one in found}
    assert any("removed" in one.message for one in found)


async def test_a_file_for_spreadsheets_begins_with_what_was_pruned(
    operator: Operator, tmp_path: Path
) -> None:
    """A row of its own before the chain's entries; none where the file begins later."""
    sha256 = await pruned(operator, tmp_path / "a")
    for wish in ({}, {"occurred_before": stamp(_LAST)}):
        text = await operator.audit.export(format="csv", **wish)
        rows = list(csv.DictReader(io.StringIO(text.lstrip("\ufeff"))))
        (told,) = [row for row in rows if row["prunedAt"]]
        assert rows.index(told) == 0
        assert {name: value for name, value in told.items() if value and name != "prunedAt"} == {
            "occurredAt": f"{_LAST:%Y-%m-%dT%H:%M:%SZ}",
            "tenantId": str(ORG.id),
            "sequence": str(_OLD),
            "hash": told["hash"],
            "archiveSha256": sha256,
        }
        assert len(rows) == 1 + (0 if wish else NEWEST + 1)
    later = await operator.audit.export(
        format="csv", occurred_after=stamp(_LAST + timedelta(seconds=1))
    )
    rows = list(csv.DictReader(io.StringIO(later.lstrip("\ufeff"))))
    assert [row for row in rows if row["prunedAt"]] == []


def test_the_command_says_it_beside_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error, so that `--json` has entries alone; of many logs the first ones."""
    one = {
        "orgId": str(ORG.id), "orgName": "S\x1b[2J", "sequence": 30, "archiveSha256": "3c1f",
        "lastOccurredAt": "2015-03-02T05:00:00Z", "prunedAt": "2026-11-30T09:00:00.1Z",
    }  # fmt: skip
    command._say_pruned({"pruned": [one] * 12, "prunedChains": 120})
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert (said.out, len(lines)) == ("", 11)
    assert lines[0] == (
        "S\\x1b[2J: entries up to no. 30, of 2015-03-02 and before, were pruned on 2026-11-30;"
        " archive 3c1f"
    )
    assert lines[-1] == "… and those of 110 other logs."
    command._say_pruned({})
    assert capsys.readouterr().err == ""
