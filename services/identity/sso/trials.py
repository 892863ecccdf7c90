"""Providers tried step by step, so that an Owner sees what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from contract.events.identity.sources import SsoProviderTested, SsoTest
from servicekit.call import Call
from servicekit.data.postgres import Database, Scope
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from services.identity.sso.asking import Asking, AwayError, read_keys, well_known
from services.identity.sso.claims import LEEWAY
from services.identity.sso.domain import Provider
from services.identity.sso.service import Providers

_ADDRESS: Final = "address"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a try."""

    step: str
    ok: bool
    detail: str


class Trials:
    """Tries providers; what they say is fetched anew."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        providers: Providers,
        asking: Asking,
        public_url: str,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._providers = providers
        self._asking = asking
        self._public_url = public_url
        self._clock = clock

    async def test(self, call: Call, provider_id: UUID) -> list[Step]:
        """Tries a provider, step by step; the last step may have failed.

        Raises:
            DomainError: NOT_FOUND; RESOURCE_EXHAUSTED when too many ask providers at once.
        """
        provider = await self._providers.get(call, provider_id)
        steps: list[Step] = []
        try:
            async with self._asking.place(provider, self._providers.top_of(provider)):
                await self._try(provider, steps)
        except AwayError as error:
            steps.append(Step(error.step, False, str(error)))
        except TimeoutError:
            # The one that was asked last, or the first.
            step = steps[-1].step if steps else _ADDRESS
            steps.append(Step(step, False, "it takes too long to answer"))
        failed = next((step for step in steps if not step.ok), None)
        source = provider.source
        event = SsoProviderTested(
            id=provider.id,
            after=SsoTest(name=source.name, ok=failed is None, last_step=steps[-1].step),
        )
        async with self._database.transaction(Scope.of(source.tenant_id)) as connection:
            await self._outbox.append(connection, CloudEvent(event, source.tenant_id))
        return steps

    async def _try(self, provider: Provider, steps: list[Step]) -> None:
        tenant = self._tenants.known(provider.source.tenant_id)
        root = tenant is not None and tenant.kind == "root"
        if not self._public_url:
            raise AwayError(_ADDRESS, "EVERGREEN_PUBLIC_URL is not set: nobody could come back")
        url = well_known(provider.issuer)
        answer = await self._asking.get(provider, url, root=root)
        steps.append(Step(_ADDRESS, True, f"{url} answers"))
        document = self._asking.read_document(provider, answer)
        more = ", and says who it is when people come back" if document.says_issuer else ""
        steps.append(Step("document", True, f"issuer is {provider.issuer}{more}"))
        if provider.single_logout:
            if not document.end_session_endpoint:
                raise AwayError("logout", "it has no end_session_endpoint: nobody signs out there")
            steps.append(Step("logout", True, "people who sign out here are led there"))
        published = await self._asking.get(provider, document.jwks_uri, root=root, step="keys")
        keys = read_keys(published)
        named = ", ".join(sorted({key.algorithm or key.kind for key in keys}))
        steps.append(Step("keys", True, f"{len(keys)} for signatures ({named})"))
        if published.date is not None:
            ahead = (published.date - self._clock()).total_seconds()
            if abs(ahead) > LEEWAY.total_seconds():
                raise AwayError("clock", f"its clock differs by {ahead:.0f} seconds; set it right")
            steps.append(Step("clock", True, f"differs by {abs(ahead):.0f} seconds"))
        steps.append(Step("mappings", True, _mappings(provider)))


def _mappings(provider: Provider) -> str:
    if provider.keeps_roles:
        return "none: people are invited, and keep their role"
    who = "everybody of its e-mail domains" if provider.just_in_time else "people who are invited"
    return f"{len(provider.mappings)} rows, of the claim {provider.groups_claim}, for {who}"
