"""E-mail domains over gRPC."""

from __future__ import annotations

from uuid import UUID

from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc
from servicekit.ids import given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import timestamp
from services.identity.email_domains.domain import EmailDomain
from services.identity.email_domains.service import EmailDomains


def _domain(domain: EmailDomain) -> pb.EmailDomain:
    return pb.EmailDomain(
        domain=domain.domain,
        tenant_id=str(domain.tenant_id),
        source_id=str(domain.source_id or ""),
        assigned_by=domain.assigned_by,
        created_at=timestamp(domain.created_at),
        etag=domain.etag,
    )


class EmailDomainApi(identity_pb2_grpc.EmailDomainServiceServicer):
    """evergreen.v1.EmailDomainService."""

    def __init__(self, domains: EmailDomains) -> None:
        self._domains = domains

    async def ListEmailDomains(
        self, request: pb.ListEmailDomainsRequest, context: Context
    ) -> pb.ListEmailDomainsResponse:
        """Lists domains."""
        after, size = asked_page(request, str)
        page = await self._domains.list(context.call, given_id(request.org_id), after, size)
        return pb.ListEmailDomainsResponse(
            domains=map(_domain, page.items), next_page_token=page.token
        )

    async def CreateEmailDomain(
        self, request: pb.CreateEmailDomainRequest, context: Context
    ) -> pb.EmailDomain:
        """Assigns a domain."""
        return _domain(
            await self._domains.assign(context.call, request.domain, UUID(request.org_id))
        )

    async def UpdateEmailDomain(
        self, request: pb.UpdateEmailDomainRequest, context: Context
    ) -> pb.EmailDomain:
        """Says where people log in."""
        return _domain(
            await self._domains.update(context.call, request.domain, given_id(request.source_id))
        )

    async def DeleteEmailDomain(
        self, request: pb.DeleteEmailDomainRequest, context: Context
    ) -> pb.EmailDomain:
        """Takes a domain back."""
        return _domain(await self._domains.delete(context.call, request.domain))
