"""Retention of the audit log over gRPC: translates between proto and domain, nothing else."""

from __future__ import annotations

from evergreen.v1 import audit_pb2 as pb
from evergreen.v1 import audit_pb2_grpc
from servicekit.ids import given_id
from servicekit.rpc.server import Context
from servicekit.rpc.values import optional_timestamp
from services.audit.log.api import to_pruned
from services.audit.retention.service import Change, Retention, Shown


class RetentionApi(audit_pb2_grpc.AuditRetentionServiceServicer):
    """evergreen.v1.AuditRetentionService."""

    def __init__(self, retention: Retention) -> None:
        self._retention = retention

    async def GetAuditRetention(
        self, request: pb.GetAuditRetentionRequest, context: Context
    ) -> pb.AuditRetention:
        """Answers for how long a log is kept."""
        return _to_retention(await self._retention.get(context.call, given_id(request.org_id)))

    async def UpdateAuditRetention(
        self, request: pb.UpdateAuditRetentionRequest, context: Context
    ) -> pb.AuditRetention:
        """Changes for how long a log is kept."""
        change = Change(
            keep_years=request.keep_years if request.HasField("keep_years") else None,
            inherit=request.inherit,
            legal_hold=request.legal_hold if request.HasField("legal_hold") else None,
            hold_reason=request.hold_reason,
        )
        shown = await self._retention.update(context.call, given_id(request.org_id), change)
        return _to_retention(shown)


def _to_retention(shown: Shown) -> pb.AuditRetention:
    rule, counts, hold = shown.rule, shown.in_force, shown.rule.hold
    return pb.AuditRetention(
        org_id=str(rule.tenant_id),
        keep_years=rule.keep_years,
        legal_hold=hold is not None,
        hold_reason=hold.reason if hold else "",
        held_by=hold.set_by if hold else "",
        held_at=optional_timestamp(hold.set_at if hold else None),
        in_force=pb.AuditRetentionInForce(
            keep_years=counts.keep_years,
            keep_from_above=counts.keep_from != rule.tenant_id,
            legal_hold=counts.held_by is not None,
            hold_from_above=counts.held_by not in {None, rule.tenant_id},
        ),
        pruned=to_pruned(shown.base, shown.org_name) if shown.base else None,
        updated_at=optional_timestamp(rule.updated_at),
        updated_by=rule.updated_by,
        etag=shown.etag,
    )
