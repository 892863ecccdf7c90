"""Forwarders over gRPC: translates between proto and domain, nothing else."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from evergreen.v1 import audit_pb2 as pb
from evergreen.v1 import audit_pb2_grpc
from servicekit.errors import invalid_field
from servicekit.ids import given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import given_time, optional_timestamp, timestamp
from services.audit.forward.domain import (
    Filter,
    Format,
    Kind,
    Quarantined,
    Syslog,
    Transport,
    Webhook,
    warnings_of,
)
from services.audit.forward.service import Change, Forwarders, Shown, Target, Wanted

_DEFAULTS = Webhook("")
_SYSLOG = Syslog("", 0)
_TLS_PORT, _PLAIN_PORT = 6514, 514
_OVERLAP_HOURS = 24
_INT32 = 2**31 - 1


class ForwarderApi(audit_pb2_grpc.ForwarderServiceServicer):
    """evergreen.v1.ForwarderService."""

    def __init__(self, forwarders: Forwarders) -> None:
        self._forwarders = forwarders

    async def ListForwarders(
        self, request: pb.ListForwardersRequest, context: Context
    ) -> pb.ListForwardersResponse:
        """Lists forwarders."""
        after, size = asked_page(request, UUID)
        page = await self._forwarders.list_forwarders(
            context.call, given_id(request.org_id), after, size
        )
        return pb.ListForwardersResponse(
            forwarders=[_to_forwarder(shown) for shown in page.items], next_page_token=page.token
        )

    async def GetForwarder(self, request: pb.GetForwarderRequest, context: Context) -> pb.Forwarder:
        """Answers one forwarder."""
        return _to_forwarder(await self._forwarders.get(context.call, UUID(request.id)))

    async def CreateForwarder(
        self, request: pb.CreateForwarderRequest, context: Context
    ) -> pb.Forwarder:
        """Adds a forwarder."""
        kind = Kind(request.kind)
        other = Kind.SYSLOG if kind is Kind.WEBHOOK else Kind.WEBHOOK
        if request.HasField(other.value):
            raise invalid_field(other.value, f"must not be given for a {kind}")
        target = _target(request)
        if target is None:
            raise invalid_field(kind.value, "must be given")
        wanted = Wanted(
            name=request.name,
            kind=kind,
            enabled=request.enabled if request.HasField("enabled") else True,
            start_at=request.start_at,
            below_too=_below_too(request.filter),
            filter=_filter(request.filter),
            target=target,
        )
        return _to_forwarder(
            await self._forwarders.create(context.call, given_id(request.org_id), wanted)
        )

    async def UpdateForwarder(
        self, request: pb.UpdateForwarderRequest, context: Context
    ) -> pb.Forwarder:
        """Changes a forwarder."""
        if request.HasField("webhook") and request.HasField("syslog"):
            raise invalid_field("syslog", "must not be given beside webhook")
        filtered = request.HasField("filter")
        change = Change(
            name=request.name if request.HasField("name") else None,
            enabled=request.enabled if request.HasField("enabled") else None,
            filter=_filter(request.filter) if filtered else None,
            below_too=_below_too(request.filter) if filtered else None,
            target=_target(request),
        )
        return _to_forwarder(await self._forwarders.update(context.call, UUID(request.id), change))

    async def DeleteForwarder(
        self, request: pb.DeleteForwarderRequest, context: Context
    ) -> pb.DeleteForwarderResponse:
        """Removes a forwarder."""
        await self._forwarders.delete(context.call, UUID(request.id))
        return pb.DeleteForwarderResponse()

    async def TestForwarder(
        self, request: pb.TestForwarderRequest, context: Context
    ) -> pb.TestForwarderResponse:
        """Sends one message now."""
        tested = await self._forwarders.test(context.call, UUID(request.id))
        return pb.TestForwarderResponse(
            delivered=not tested.error,
            status=tested.status,
            took_ms=round(tested.took.total_seconds() * 1000),
            error=tested.error,
        )

    async def ReplayForwarder(
        self, request: pb.ReplayForwarderRequest, context: Context
    ) -> pb.Forwarder:
        """Sends again from a time on."""
        since = given_time(request, "from")
        if since is None:
            raise invalid_field("from", "must be given")
        return _to_forwarder(await self._forwarders.replay(context.call, UUID(request.id), since))

    async def RotateForwarderSecret(
        self, request: pb.RotateForwarderSecretRequest, context: Context
    ) -> pb.Forwarder:
        """Makes a new secret that signs."""
        hours = request.overlap_hours if request.HasField("overlap_hours") else _OVERLAP_HOURS
        return _to_forwarder(
            await self._forwarders.rotate_secret(
                context.call, UUID(request.id), timedelta(hours=hours)
            )
        )

    async def ListForwarderQuarantine(
        self, request: pb.ListForwarderQuarantineRequest, context: Context
    ) -> pb.ListForwarderQuarantineResponse:
        """Lists quarantined messages."""
        after, size = asked_page(request, UUID)
        page = await self._forwarders.list_quarantined(context.call, UUID(request.id), after, size)
        return pb.ListForwarderQuarantineResponse(
            messages=[_to_message(message) for message in page.items], next_page_token=page.token
        )

    async def RetryForwarderQuarantine(
        self, request: pb.RetryForwarderQuarantineRequest, context: Context
    ) -> pb.RetryForwarderQuarantineResponse:
        """Has quarantined messages sent once more."""
        ids = []
        for index, text in enumerate(request.ids):
            try:
                ids.append(UUID(text))
            except ValueError:
                raise invalid_field(f"ids[{index}]", "must be a UUID") from None
        count = await self._forwarders.retry_quarantined(context.call, UUID(request.id), ids)
        return pb.RetryForwarderQuarantineResponse(retried=count)


def _below_too(given: pb.ForwarderFilterInput) -> bool:
    return given.below_too if given.HasField("below_too") else True


def _filter(given: pb.ForwarderFilterInput) -> Filter:
    return Filter(
        actions=tuple(given.actions),
        excluded_actions=tuple(given.excluded_actions),
        outcomes=tuple(given.outcomes),
    )


def _target(request: pb.CreateForwarderRequest | pb.UpdateForwarderRequest) -> Target | None:
    if request.HasField("webhook"):
        return _webhook(request.webhook)
    return _syslog(request.syslog) if request.HasField("syslog") else None


def _webhook(given: pb.ForwarderWebhookInput) -> Target:
    config = Webhook(
        url=given.url,
        format=Format(given.format or _DEFAULTS.format),
        batch=given.batch or _DEFAULTS.batch,
        headers=tuple(header.name for header in given.headers),
        ca_pem=given.ca_pem,
        client_certificate_pem=given.client_certificate_pem,
        timeout_seconds=given.timeout_seconds or _DEFAULTS.timeout_seconds,
    )
    values = {header.name: header.value for header in given.headers}
    return Target(config, values, given.client_key_pem)


def _syslog(given: pb.ForwarderSyslogInput) -> Target:
    transport = Transport(given.transport or Transport.TLS)
    config = Syslog(
        host=given.host.removeprefix("[").removesuffix("]"),
        port=given.port or (_TLS_PORT if transport is Transport.TLS else _PLAIN_PORT),
        transport=transport,
        format=Format(given.format or _SYSLOG.format),
        framing=given.framing or _SYSLOG.framing,
        max_bytes=given.max_bytes or _SYSLOG.max_bytes,
        facility=given.facility if given.HasField("facility") else _SYSLOG.facility,
        sd_id=given.sd_id or _SYSLOG.sd_id,
        ca_pem=given.ca_pem,
        server_name=given.server_name,
        client_certificate_pem=given.client_certificate_pem,
    )
    return Target(config, {}, given.client_key_pem)


def _to_forwarder(shown: Shown) -> pb.Forwarder:
    found = shown.forwarder
    answer = pb.Forwarder(
        id=str(found.id),
        org_id=str(found.tenant_id),
        name=found.name,
        kind=found.kind,
        enabled=found.enabled,
        start_at=found.start_at,
        filter=pb.ForwarderFilter(
            actions=found.filter.actions,
            excluded_actions=found.filter.excluded_actions,
            outcomes=found.filter.outcomes,
            below_too=found.below_too,
        ),
        warnings=warnings_of(found.config),
        state=_to_state(shown),
        created_at=timestamp(found.created_at),
        created_by=found.created_by,
        updated_at=timestamp(found.updated_at),
        etag=found.etag,
        second_secret_until=optional_timestamp(found.second_secret_until),
    )
    if shown.secret:
        answer.secret = shown.secret
    config = found.config
    if isinstance(config, Webhook):
        answer.webhook.CopyFrom(
            pb.ForwarderWebhook(
                url=config.url,
                format=config.format,
                batch=config.batch,
                headers=[
                    pb.ForwarderHeader(name=name, set=name in shown.header_names)
                    for name in config.headers
                ],
                ca_pem=config.ca_pem,
                client_certificate_pem=config.client_certificate_pem,
                client_key_set=shown.has_client_key,
                timeout_seconds=config.timeout_seconds,
            )
        )
    else:
        answer.syslog.CopyFrom(
            pb.ForwarderSyslog(
                host=config.host,
                port=config.port,
                transport=config.transport,
                format=config.format,
                framing=config.framing,
                max_bytes=config.max_bytes,
                facility=config.facility,
                sd_id=config.sd_id,
                ca_pem=config.ca_pem,
                server_name=config.server_name,
                client_certificate_pem=config.client_certificate_pem,
                client_key_set=shown.has_client_key,
            )
        )
    return answer


def _to_state(shown: Shown) -> pb.ForwarderState:
    found, lag = shown.forwarder, shown.lag
    state = found.state
    return pb.ForwarderState(
        status=found.status,
        reason=found.disabled_reason,
        failing_since=optional_timestamp(state.failing_since),
        last_success_at=optional_timestamp(state.last_success_at),
        next_attempt_at=optional_timestamp(state.next_attempt_at),
        attempts=state.attempts,
        last_error=state.last_error,
        backlog=min(lag.backlog, _INT32),
        oldest_waiting=optional_timestamp(lag.oldest),
        quarantined=lag.quarantined,
    )


def _to_message(message: Quarantined) -> pb.QuarantinedMessage:
    return pb.QuarantinedMessage(
        id=str(message.id),
        entry_id=str(message.entry_id),
        org_id=str(message.chain_id),
        sequence=message.sequence,
        reason=message.reason,
        attempts=message.attempts,
        quarantined_at=timestamp(message.quarantined_at),
        delivered_at=optional_timestamp(message.delivered_at),
    )
