"""Refused calls of users: what the log of the caller's tenant is told of them."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

from contract.access import Role
from contract.events.audit import AuditCallsRefused
from evergreen.v1 import audit_pb2 as pb
from servicekit.call import Call, Caller, CallerKind
from servicekit.rpc import refused as refused_module
from servicekit.rpc.refused import RefusedCalls
from tests.services.audit.log.test_api import fill
from tests.support import callers
from tests.support.audit import ORG, SISTER, Audit, audit, start_audit
from tests.support.events import check_event
from tests.support.refusals import refusal

__all__ = ["audit", "start_audit"]


async def _told(audit: Audit) -> list[Any]:
    rows = await audit.sql("SELECT payload FROM audit.outbox ORDER BY id")
    events = [json.loads(row["payload"]) for row in rows]
    return [e for e in events if e["data"]["action"] == "audit.calls_refused"]


async def test_refused_calls_are_told_in_the_callers_log(audit: Audit) -> None:
    """Once for each caller, RPC and reason; written at the latest when the service stops."""
    await fill(audit)
    user = uuid4()
    auditor = callers.user(ORG.id, Role.AUDITOR, user_id=user, email="a@school.example")
    for _ in range(3):
        await refusal(audit.api.RotateAuditKey(pb.RotateAuditKeyRequest(), metadata=auditor))
    await refusal(
        audit.api.ListAuditEntries(
            pb.ListAuditEntriesRequest(org_id=str(SISTER.id)), metadata=auditor
        )
    )
    await refusal(
        audit.api.ListAuditEntries(
            pb.ListAuditEntriesRequest(org_id=str(uuid4())), metadata=auditor
        )
    )
    await audit.running.stop(0)
    told = await _told(audit)
    for event in told:
        check_event(event)
    assert {
        (e["data"]["after"]["rpc"], e["data"]["after"]["reason"], e["data"]["after"]["count"])
        for e in told
    } == {
        ("AuditService/RotateAuditKey", "ROLE_MAY_NOT", 3),
        ("AuditService/ListAuditEntries", "FOREIGN_TENANT", 1),
    }
    first = told[0]
    assert first["tenantid"] == str(ORG.id)
    assert first["data"]["resource"] == f"users/{user}/calls"
    assert first["data"]["actor"] == "a@school.example"
    assert (first["data"]["outcome"], first["data"]["reason"]) == ("refused", "ROLE_MAY_NOT")


async def test_a_flood_is_bounded(audit: Audit, monkeypatch: Any) -> None:
    """So many callers are told of at a time; the others are not."""
    monkeypatch.setattr(refused_module, "_MOST_KEYS", 2)
    kit = audit.kit
    gathered = RefusedCalls(kit.database, kit.outbox, AuditCallsRefused, kit.clock)
    for number in range(5):
        caller = Caller(CallerKind.USER, str(UUID(int=number)), str(ORG.id), Role.AUDITOR, "a@b.c")
        gathered.note(Call("/evergreen.v1.X/Y", caller, ""), "ROLE_MAY_NOT")
    await gathered.flush()
    assert len(await _told(audit)) == 2
    await gathered.flush()
    assert len(await _told(audit)) == 2
