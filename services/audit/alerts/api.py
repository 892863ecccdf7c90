"""Alerts over gRPC: translates between proto and domain, nothing else."""

from __future__ import annotations

from evergreen.v1 import audit_pb2 as pb
from evergreen.v1 import audit_pb2_grpc
from servicekit.ids import given_id
from servicekit.rpc.pagination import TimePosition, asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import given_time, optional_timestamp, timestamp
from services.audit.alerts.domain import Alert, Kind, Rule, RuleChange, kinds_of
from services.audit.alerts.service import Alerts, Recipients, ShownRules
from services.audit.alerts.texts import line_of


class AlertApi(audit_pb2_grpc.AlertServiceServicer):
    """evergreen.v1.AlertService."""

    def __init__(self, alerts: Alerts) -> None:
        self._alerts = alerts

    async def ListAlerts(
        self, request: pb.ListAlertsRequest, context: Context
    ) -> pb.ListAlertsResponse:
        """Lists alerts."""
        after, size = asked_page(request, TimePosition.read)
        page = await self._alerts.list_alerts(
            context.call,
            given_id(request.org_id),
            request.kind,
            request.open if request.HasField("open") else None,
            after,
            size,
        )
        return pb.ListAlertsResponse(alerts=map(_to_alert, page.items), next_page_token=page.token)

    async def GetAlertRules(
        self, request: pb.GetAlertRulesRequest, context: Context
    ) -> pb.AlertRules:
        """Answers what counts for a tenant."""
        return _to_rules(await self._alerts.rules(context.call, given_id(request.org_id)))

    async def UpdateAlertRules(
        self, request: pb.UpdateAlertRulesRequest, context: Context
    ) -> pb.AlertRules:
        """Changes what counts for a tenant."""
        recipients = None
        if request.HasField("recipients"):
            recipients = Recipients(
                tuple(dict.fromkeys(request.recipients.emails)),
                tuple(sorted(set(request.recipients.roles))),
            )
        shown = await self._alerts.update(
            context.call,
            given_id(request.org_id),
            [_change(rule) for rule in request.rules],
            recipients,
            inherit=request.inherit,
        )
        return _to_rules(shown)


def _change(given: pb.AlertRuleInput) -> RuleChange:
    return RuleChange(
        kind=given.kind,
        enabled=given.enabled if given.HasField("enabled") else None,
        thresholds={field.name: value for field, value in given.thresholds.ListFields()},
        paused_until=given_time(given, "paused_until"),
        resume=given.resume,
    )


def _to_alert(alert: Alert) -> pb.Alert:
    return pb.Alert(
        id=str(alert.id),
        org_id=str(alert.tenant_id),
        kind=alert.kind,
        subject=alert.subject,
        text=line_of(alert),
        raised_at=timestamp(alert.raised_at),
        resolved_at=optional_timestamp(alert.resolved_at),
    )


def _to_rules(shown: ShownRules) -> pb.AlertRules:
    rules = shown.rules
    return pb.AlertRules(
        org_id=str(shown.tenant.id),
        inherited=not shown.is_own and rules.revision > 0,
        rules=[_to_rule(kind, rules.rule(kind.name)) for kind in kinds_of(shown.tenant.kind)],
        recipients=pb.AlertRecipients(emails=rules.emails, roles=rules.roles),
        updated_at=optional_timestamp(rules.updated_at),
        updated_by=rules.updated_by,
        etag=shown.etag,
    )


def _to_rule(kind: Kind, rule: Rule) -> pb.AlertRule:
    return pb.AlertRule(
        kind=kind.name,
        about=kind.about,
        enabled=rule.enabled,
        thresholds=pb.AlertThresholds(
            **{name: rule.of(kind.name, name) for name in kind.thresholds}
        ),
        paused_until=optional_timestamp(rule.paused_until),
    )
