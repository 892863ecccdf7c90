"""All that the six services hold about one person, as one file.

Each service is asked page by page, one organisation in a question; nothing is kept here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, TypeAlias, TypeVar
from uuid import UUID

import grpc

from contract.events.audit import PersonDataExported, PersonSought
from evergreen.v1 import (
    attestation_pb2_grpc,
    enrollment_pb2_grpc,
    identity_pb2_grpc,
    person_pb2,
    policy_pb2_grpc,
    telemetry_pb2_grpc,
)
from servicekit.admission.fair import Shares
from servicekit.call import Call, Caller
from servicekit.data.postgres import Database, Scope
from servicekit.errors import exhausted, unavailable
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.persons import Person, look
from services.audit.person_data import store
from services.audit.person_data.domain import (
    MOST_RECORDS,
    Found,
    Sought,
    begin_line,
    end_line,
    record_line,
    searched_line,
)

T = TypeVar("T")
_Page: TypeAlias = tuple[list[Found], int, str]
"""Records, how many rows were looked through, and where to go on."""
_Ask: TypeAlias = Callable[[UUID, Person, str], Awaitable[_Page]]

_OWN: Final = "audit"
_AT_ONCE: Final = 2
"""Exports that run at the same time."""
_QUIET: Final = 50
"""Pages without a record before a line says how far it is."""
_RETRY_AFTER: Final = 30.0
_SECONDS: Final = 30.0
"""So long an answer may take."""
_PAUSES: Final = (0.5, 2.0, 8.0)
"""Seconds before a question is asked again."""
_AWAY: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        # A release before, which is being replaced.
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)


class PersonData:
    """Exports what is held about a person.

    Args:
        channel: the channel to another service.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        channel: Callable[[str], grpc.aio.Channel],
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._clock = clock
        self._places = Shares(_AT_ONCE)
        self._identity = identity_pb2_grpc.IdentityInternalServiceStub(channel("identity"))
        enrollment = enrollment_pb2_grpc.EnrollmentInternalServiceStub(channel("enrollment"))
        policy = policy_pb2_grpc.PolicyInternalServiceStub(channel("policy"))
        telemetry = telemetry_pb2_grpc.TelemetryInternalServiceStub(channel("telemetry"))
        attestation = attestation_pb2_grpc.AttestationInternalServiceStub(channel("attestation"))
        self._ask: Mapping[str, _Ask] = {
            "identity": _asking("identity", self._identity.ListPersonRecords),
            "enrollment": _asking("enrollment", enrollment.ListPersonRecords),
            "policy": _asking("policy", policy.ListPersonRecords),
            "telemetry": _asking("telemetry", telemetry.ListPersonRecords),
            "attestation": _asking("attestation", attestation.ListPersonRecords),
            _OWN: self._own,
        }

    async def export(
        self, call: Call, org_id: UUID | None, sought: Sought
    ) -> AsyncGenerator[list[str], None]:
        """The lines of an export; the last one says that it is complete.

        Raises:
            DomainError: NOT_FOUND for a tenant that is not in the subtree; RESOURCE_EXHAUSTED;
                UNAVAILABLE when another service does not answer.
        """
        own = UUID(call.caller.tenant_id)
        top = await self._tenants.require(call.caller, org_id or own, deleted=True)
        nodes = [top] if org_id is not None else self._tenants.subtree(top.id, deleted=True)
        with self._place(call.caller):
            async with self._database.transaction(Scope.of(top.id)) as connection:
                # Which names, it does not say: the log is for ever, and they may be pupils'.
                after = PersonSought(emails=sought.emails, names=len(sought.names))
                event = PersonDataExported(id=top.id, after=after)
                await self._outbox.append(connection, CloudEvent(event, top.id, call=call))
            yield [begin_line(sought, top.name, self._clock(), call.caller.name)]
            person = Person(sought.emails, sought.names)
            if sought.emails:
                ids = [one for node in nodes for one in await self._accounts(node.id, person)]
                person = replace(person, ids=tuple(dict.fromkeys(ids)))
            records = 0
            for node in nodes:
                for service, ask in self._ask.items():
                    rows = pages = 0
                    async for page, looked_at in _pages(ask, node.id, person):
                        rows += looked_at
                        found = page[: MOST_RECORDS - records]
                        records += len(found)
                        if found:
                            yield [record_line(str(node.id), node.name, one) for one in found]
                        pages = 0 if found else pages + 1
                        if pages >= _QUIET:
                            # A line now and then keeps the connection.
                            pages = 0
                            yield [searched_line(str(node.id), service, rows)]
                        if records >= MOST_RECORDS:
                            yield [end_line(records, complete=False)]
                            return
                    yield [searched_line(str(node.id), service, rows)]
            yield [end_line(records, complete=True)]

    @contextmanager
    def _place(self, caller: Caller) -> Iterator[None]:
        if not self._places.take(caller.tenant_id):
            raise exhausted(
                "TOO_MANY_EXPORTS",
                "too many exports at once; try again when one has ended",
                retry_after=_RETRY_AFTER,
            )
        try:
            yield
        finally:
            self._places.give_back(caller.tenant_id)

    async def _accounts(self, tenant_id: UUID, person: Person) -> list[UUID]:
        """The ids of the person's accounts in a tenant."""
        request = person_pb2.FindPersonAccountsRequest(
            tenant_id=str(tenant_id), emails=person.emails
        )
        answer = await _answer("identity", self._identity.FindPersonAccounts, request)
        return [UUID(one) for one in answer.ids]

    async def _own(self, tenant_id: UUID, person: Person, token: str) -> _Page:
        """A page of what this service holds itself."""
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            page = await look(connection, _OWN, store.TABLES, tenant_id, person, token)
        found = [Found(_OWN, one.kind, one.id, one.content) for one in page.records]
        return found, page.looked_at, page.token


async def _pages(
    ask: _Ask, tenant_id: UUID, person: Person
) -> AsyncIterator[tuple[list[Found], int]]:
    token = ""
    while True:
        found, looked_at, token = await ask(tenant_id, person, token)
        yield found, looked_at
        if not token:
            return


def _asking(service: str, ask: Callable[..., Awaitable[Any]]) -> _Ask:
    """Asks another service for a page."""

    async def asked(tenant_id: UUID, person: Person, token: str) -> _Page:
        request = person_pb2.ListPersonRecordsRequest(
            tenant_id=str(tenant_id),
            emails=person.emails,
            names=person.names,
            ids=map(str, person.ids),
            page_token=token,
        )
        answer = await _answer(service, ask, request)
        found = [
            Found(service, one.kind, one.id, json.loads(one.content)) for one in answer.records
        ]
        return found, answer.looked_at, answer.next_page_token

    return asked


async def _answer(service: str, ask: Callable[..., Awaitable[T]], request: object) -> T:
    """The answer of a service, which is asked again when it is away for a moment.

    Raises:
        DomainError: UNAVAILABLE when it is away for longer.
    """
    for pause in (*_PAUSES, None):
        try:
            return await ask(request, timeout=_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _AWAY:
                raise
            if pause is None:
                raise unavailable(f"{service} is not available; try again") from error
        await asyncio.sleep(pause)
    raise AssertionError("the last pause is none")
