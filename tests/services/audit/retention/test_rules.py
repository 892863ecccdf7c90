"""For how long a log is kept: who may say it, whose word counts, and what the log says of it."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import audit_pb2 as pb
from servicekit.data.postgres import Scope
from tests.services.audit.retention.conftest import Operator, operator
from tests.support.audit import ORG, RESELLER, ROOT, SISTER, STRANGER, audit, start_audit
from tests.support.callers import Metadata, user
from tests.support.refusals import refusal

__all__ = ["audit", "operator", "start_audit"]

RESELLERS = user(RESELLER.id, email="reseller@example.org")
NOBODY = str(UUID(int=0))
SCHOOLS = user(ORG.id, email="school@example.org")


async def get(operator: Operator, by: Metadata, **wish: Any) -> pb.AuditRetention:
    return await operator.rules.GetAuditRetention(pb.GetAuditRetentionRequest(**wish), metadata=by)


async def update(operator: Operator, by: Metadata, **wish: Any) -> pb.AuditRetention:
    return await operator.rules.UpdateAuditRetention(
        pb.UpdateAuditRetentionRequest(**wish), metadata=by
    )


async def told(operator: Operator) -> list[tuple[str, str, Any]]:
    """The events of the outbox: tenant, action, both sides."""
    rows = await operator.audit.sql("SELECT payload FROM audit.outbox ORDER BY id")
    events = [json.loads(row["payload"]) for row in rows]
    return [
        (e["tenantid"], e["data"]["action"], (e["data"]["before"], e["data"]["after"]))
        for e in events
    ]


async def test_the_longest_of_a_line_counts(operator: Operator) -> None:
    """Until the root says something, all is kept for ever; a tenant can only make it longer."""
    assert (await get(operator, SCHOOLS)).in_force.keep_years == 0
    await update(operator, SCHOOLS, keep_years=2)
    shown = await get(operator, SCHOOLS)
    assert (shown.keep_years, shown.in_force.keep_years) == (2, 0)
    assert shown.in_force.keep_from_above
    await operator.keep(5)
    assert (await get(operator, SCHOOLS)).in_force.keep_years == 5
    shown = await update(operator, SCHOOLS, keep_years=9)
    assert (shown.in_force.keep_years, shown.in_force.keep_from_above) == (9, False)
    await update(operator, RESELLERS, keep_years=0)
    assert (await get(operator, SCHOOLS)).in_force.keep_years == 0
    sister = await get(operator, user(SISTER.id))
    assert (sister.in_force.keep_years, sister.HasField("keep_years")) == (0, False)
    assert (await get(operator, user(STRANGER.id))).in_force.keep_years == 5
    shown = await update(operator, SCHOOLS, inherit=True)
    assert not shown.HasField("keep_years")


async def test_what_is_said_above_is_not_shortened_below(operator: Operator) -> None:
    """Nor is a hold released; both can be made longer."""
    await update(operator, RESELLERS, org_id=str(ORG.id), keep_years=7)
    await update(operator, RESELLERS, org_id=str(ORG.id), legal_hold=True, hold_reason="case 4711")
    for wish in (
        {"keep_years": 3},
        {"inherit": True},
        {"legal_hold": False},
        {"legal_hold": True, "hold_reason": "another"},
    ):
        refused = await refusal(update(operator, SCHOOLS, **wish))
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "FROM_ABOVE",
        )
    await update(operator, SCHOOLS, keep_years=8)
    shown = await update(operator, SCHOOLS, legal_hold=True, hold_reason="case 4711")
    assert shown.held_by == "reseller@example.org"
    shown = await update(operator, operator.audit.owner, org_id=str(ORG.id), legal_hold=False)
    assert not shown.legal_hold


async def test_a_longer_word_below_does_not_undo_the_one_above(operator: Operator) -> None:
    """Each level's stays: who makes it longer can go back to what is said above, not further."""
    own: dict[str, Any] = {"org_id": str(ORG.id)}
    await operator.keep(3, **own)
    await update(operator, RESELLERS, keep_years=5, **own)
    await update(operator, SCHOOLS, keep_years=8)
    for years in (4, 1):
        refused = await refusal(update(operator, SCHOOLS, keep_years=years))
        assert refused.reason == "FROM_ABOVE"
    assert (await refusal(update(operator, SCHOOLS, inherit=True))).reason == "FROM_ABOVE"
    assert (await update(operator, SCHOOLS, keep_years=6)).keep_years == 6
    assert (await update(operator, SCHOOLS, keep_years=5)).keep_years == 5
    assert (await refusal(update(operator, RESELLERS, keep_years=2, **own))).reason == "FROM_ABOVE"
    assert (await update(operator, RESELLERS, keep_years=3, **own)).keep_years == 3
    shown = await update(operator, operator.audit.owner, inherit=True, **own)
    assert not shown.HasField("keep_years")
    names = {ROOT.id: "root", RESELLER.id: "reseller", ORG.id: "school"}
    said = [after for _, _, (_, after) in await told(operator)]
    assert [(a["keepYears"], names.get(UUID(a["keepFrom"] or NOBODY))) for a in said] == [
        (3, "root"), (5, "reseller"), (8, "school"), (6, "school"), (5, "reseller"), (3, "root"),
        (None, None),
    ]  # fmt: skip


async def test_the_same_words_from_above_are_those_of_the_one_above(operator: Operator) -> None:
    """Who said them first can no longer take them back; the log says whose they are."""
    words = {"keep_years": 7, "legal_hold": True, "hold_reason": "case 4711"}
    first = await update(operator, SCHOOLS, **words)
    shown = await update(operator, RESELLERS, org_id=str(ORG.id), **words)
    assert shown.held_by == "reseller@example.org"
    assert shown.etag != first.etag
    for wish in ({"legal_hold": False}, {"inherit": True}, {"keep_years": 1}):
        assert (await refusal(update(operator, SCHOOLS, **wish))).reason == "FROM_ABOVE"
    assert (await update(operator, SCHOOLS, **words)).etag == shown.etag
    last = (await told(operator))[-2:]
    assert [(action, before, after) for _, action, (before, after) in last] == [
        (
            "audit.retention_updated",
            {"keepYears": 7, "keepFrom": str(ORG.id)},
            {"keepYears": 7, "keepFrom": str(RESELLER.id)},
        ),
        (
            "audit.legal_hold_set",
            {"reason": "case 4711", "heldFrom": str(ORG.id)},
            {"reason": "case 4711", "heldFrom": str(RESELLER.id)},
        ),
    ]
    assert not (await update(operator, RESELLERS, org_id=str(ORG.id), legal_hold=False)).legal_hold


async def test_a_hold_counts_for_all_below(operator: Operator) -> None:
    """Those below see that there is one, and not why."""
    await update(operator, RESELLERS, legal_hold=True, hold_reason="case 4711")
    shown = await get(operator, SCHOOLS)
    assert (shown.legal_hold, shown.hold_reason, shown.held_by) == (False, "", "")
    assert (shown.in_force.legal_hold, shown.in_force.hold_from_above) == (True, True)
    assert not (await get(operator, user(STRANGER.id))).in_force.legal_hold
    assert not (await get(operator, operator.audit.owner)).in_force.legal_hold


async def test_the_log_says_what_was_changed(operator: Operator) -> None:
    """Once each; what changes nothing says nothing."""
    for _ in range(2):
        await update(operator, SCHOOLS, keep_years=7, legal_hold=True, hold_reason=" case 4711 ")
    await update(operator, SCHOOLS, legal_hold=False)
    await update(operator, SCHOOLS, legal_hold=False)
    own = str(ORG.id)
    hold = {"reason": "case 4711", "heldFrom": own}
    nothing = {"keepYears": None, "keepFrom": None}
    assert await told(operator) == [
        (own, "audit.retention_updated", (nothing, {"keepYears": 7, "keepFrom": own})),
        (own, "audit.legal_hold_set", (None, hold)),
        (own, "audit.legal_hold_released", (hold, None)),
    ]


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"keep_years": 31}, "keepYears"),
        ({"keep_years": -1}, "keepYears"),
        ({"keep_years": 3, "inherit": True}, "inherit"),
        ({"legal_hold": True}, "holdReason"),
        ({"legal_hold": True, "hold_reason": " "}, "holdReason"),
        ({"hold_reason": "why"}, "holdReason"),
        ({"legal_hold": False, "hold_reason": "why"}, "holdReason"),
        ({"legal_hold": True, "hold_reason": "a\nb"}, "holdReason"),
        ({"legal_hold": True, "hold_reason": "x" * 501}, "holdReason"),
        ({"org_id": "school"}, "orgId"),
    ],
)
async def test_what_is_wrong_is_named(operator: Operator, wish: Any, field: str) -> None:
    """And changes nothing."""
    refused = await refusal(update(operator, SCHOOLS, **wish))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert field in str(refused)
    assert await told(operator) == []


async def test_a_lost_update_is_refused(operator: Operator) -> None:
    """By the etag that was read."""
    etag = (await get(operator, SCHOOLS)).etag
    await update(operator, SCHOOLS, keep_years=7, etag=etag)
    refused = await refusal(update(operator, SCHOOLS, keep_years=9, etag=etag))
    assert refused.code is grpc.StatusCode.ABORTED


async def test_owners_of_the_tenant_or_above_alone(operator: Operator) -> None:
    """Admins and Auditors read; another tenant is not there, from either side."""
    for role in (Role.ADMIN, Role.AUDITOR):
        caller = user(ORG.id, role)
        assert (await get(operator, caller)).org_id == str(ORG.id)
        refused = await refusal(update(operator, caller, keep_years=7))
        assert refused.code is grpc.StatusCode.PERMISSION_DENIED
    for own, other in ((ORG, SISTER), (SISTER, ORG), (ORG, RESELLER), (RESELLER, STRANGER)):
        caller = user(own.id)
        for call in (
            get(operator, caller, org_id=str(other.id)),
            update(operator, caller, org_id=str(other.id), keep_years=7),
        ):
            assert (await refusal(call)).code is grpc.StatusCode.NOT_FOUND
    rows = await operator.audit.sql("SELECT chain_id FROM audit.retention")
    assert rows == []


async def test_the_rule_of_a_deleted_tenant_stays(operator: Operator) -> None:
    """As its log does: what erases a tenant leaves it."""
    await update(operator, SCHOOLS, legal_hold=True, hold_reason="case 4711")
    await operator.audit.sql(
        "INSERT INTO audit.closed_tenant (tenant_id, status) VALUES ($1, 'deleting')", ORG.id
    )
    async with operator.audit.kit.database.transaction(Scope.of(ORG.id)) as connection:
        await connection.fetchval("SELECT audit.erase_tenant($1, 500)", ORG.id)
    assert (await get(operator, operator.audit.owner, org_id=str(ORG.id))).legal_hold
    assert (await get(operator, user(ROOT.id), org_id=str(ORG.id))).hold_reason == "case 4711"
