"""Providers over gRPC."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc
from servicekit.ids import given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import timestamp
from services.identity.sources.domain import RoleMapping
from services.identity.sso.domain import CALLBACK, LOGOUT, SIGNED_OUT, Provider, scopes_of
from services.identity.sso.service import Providers
from services.identity.sso.trials import Trials

_PLAIN: Final = (
    "issuer", "client_id", "ca_pem", "groups_claim", "email_claim", "hosted_domain",
    "just_in_time", "login_button", "trusts_mfa", "single_logout",
)  # fmt: skip


def _rows(rows: Iterable[pb.RoleMapping], own: UUID) -> tuple[RoleMapping, ...]:
    """The rows of a request; one that names no tenant leads into the provider's own."""
    return tuple(
        RoleMapping(row.group.strip(), Role(row.role), given_id(row.org_id) or own) for row in rows
    )


class SsoProviderApi(identity_pb2_grpc.SsoProviderServiceServicer):
    """evergreen.v1.SsoProviderService."""

    def __init__(self, providers: Providers, trials: Trials, public_url: str) -> None:
        self._providers = providers
        self._trials = trials
        self._public_url = public_url.rstrip("/")

    async def ListSsoProviders(
        self, request: pb.ListSsoProvidersRequest, context: Context
    ) -> pb.ListSsoProvidersResponse:
        """Lists providers."""
        after, size = asked_page(request, UUID)
        page = await self._providers.list(context.call, given_id(request.org_id), after, size)
        return pb.ListSsoProvidersResponse(
            providers=map(self._provider, page.items), next_page_token=page.token
        )

    async def GetSsoProvider(
        self, request: pb.GetSsoProviderRequest, context: Context
    ) -> pb.SsoProvider:
        """Answers one provider."""
        return self._provider(await self._providers.get(context.call, UUID(request.id)))

    async def CreateSsoProvider(
        self, request: pb.CreateSsoProviderRequest, context: Context
    ) -> pb.SsoProvider:
        """Adds a provider."""
        org_id = given_id(request.org_id)
        own = org_id or UUID(context.call.caller.tenant_id)
        made = await self._providers.create(
            context.call,
            org_id,
            request.name,
            request.client_secret,
            _rows(request.role_mappings, own),
            enabled=not request.disabled,
            session_hours=request.session_hours,
            scopes=request.scopes,
            login_button=request.login_button if request.HasField("login_button") else None,
            given={name: getattr(request, name) for name in _PLAIN if name != "login_button"},
        )
        return self._provider(made)

    async def UpdateSsoProvider(
        self, request: pb.UpdateSsoProviderRequest, context: Context
    ) -> pb.SsoProvider:
        """Changes a provider."""

        def change(before: Provider) -> Provider:
            return _changed(before, request)

        secret = request.client_secret if request.HasField("client_secret") else None
        return self._provider(
            await self._providers.update(context.call, UUID(request.id), change, secret)
        )

    async def DeleteSsoProvider(
        self, request: pb.DeleteSsoProviderRequest, context: Context
    ) -> pb.SsoProvider:
        """Deletes a provider."""
        return self._provider(await self._providers.delete(context.call, UUID(request.id)))

    async def TestSsoProvider(
        self, request: pb.TestSsoProviderRequest, context: Context
    ) -> pb.TestSsoProviderResponse:
        """Tries a provider."""
        steps = await self._trials.test(context.call, UUID(request.id))
        return pb.TestSsoProviderResponse(
            steps=[pb.SsoTestStep(step=one.step, ok=one.ok, detail=one.detail) for one in steps],
            ok=all(one.ok for one in steps),
        )

    def _provider(self, provider: Provider) -> pb.SsoProvider:
        source = provider.source
        own = self._public_url
        return pb.SsoProvider(
            id=str(provider.id),
            tenant_id=str(source.tenant_id),
            name=source.name,
            scopes=provider.scopes,
            session_hours=source.grace // timedelta(hours=1),
            enabled=source.enabled,
            role_mappings=[
                pb.MappedRole(group=row.group, role=row.role.value, org_id=str(row.tenant_id))
                for row in provider.mappings
            ],
            created_at=timestamp(source.created_at),
            updated_at=timestamp(source.updated_at),
            users=provider.users,
            redirect_uri=own + CALLBACK.format(provider=provider.id) if own else "",
            backchannel_logout_uri=(own + LOGOUT.format(provider=provider.id) if own else ""),
            post_logout_redirect_uri=own + SIGNED_OUT if own else "",
            etag=provider.etag,
            **{name: getattr(provider, name) for name in _PLAIN},
        )


def _changed(before: Provider, request: pb.UpdateSsoProviderRequest) -> Provider:
    """A provider as a request wants it."""
    given: dict[str, Any] = {
        name: getattr(request, name) for name in _PLAIN if request.HasField(name)
    }
    if request.scopes:
        given["scopes"] = scopes_of(request.scopes)
    if request.role_mappings:
        given["mappings"] = _rows(request.role_mappings, before.source.tenant_id)
    source: dict[str, Any] = {}
    if request.HasField("name"):
        source["name"] = request.name
    if request.HasField("enabled"):
        source["enabled"] = request.enabled
    if request.HasField("session_hours"):
        source["grace"] = timedelta(hours=request.session_hours)
    return replace(before, source=replace(before.source, **source), **given)
