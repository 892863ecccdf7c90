"""All that the six services hold about one person, as one file.

Each service is asked page by page, one organisation in a question; nothing is kept here.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
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
from servicekit.peers.tenants import TenantDirectory, TenantNode
from servicekit.rpc.persons import Person, look
from services.audit.person_data import store
from services.audit.person_data.domain import (
    MOST_RECORDS,
    Found,
    Searched,
    Sought,
    begin_line,
    end_line,
    record_line,
    searched_line,
)

T = TypeVar("T")
_OWN: Final = "audit"
_AT_ONCE: Final = 2
"""Exports that run at the same time."""
_LONGEST: Final = 7_200.0
"""Seconds that one may take."""
_QUIET: Final = 15.0
"""Seconds without a record before a line says how far it is."""
_RETRY_AFTER: Final = 30.0
_SECONDS: Final = 30.0
"""So long an answer may take."""
_PAUSES: Final = (0.5, 2.0, 8.0)
"""Seconds before a question is asked again."""
_TOO_LARGE: Final = "larger than max"
"""What gRPC says of a message: it is as large when it is asked for again."""
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


@dataclass(frozen=True, slots=True)
class _Page:
    found: list[Found]
    looked_at: int
    """Rows that were looked through."""
    left_out: int
    token: str
    """Where to go on; empty at the end."""


_Ask: TypeAlias = Callable[[UUID, Person, str], Awaitable[_Page]]


@dataclass(slots=True)
class _Search:
    """Who is looked for where, and how far it is."""

    nodes: Sequence[TenantNode]
    person: Person
    at: Searched = field(init=False)

    def __post_init__(self) -> None:
        self.at = Searched(str(self.nodes[0].id), "identity")


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
        self._busy: dict[str, object] = {}
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
                UNAVAILABLE when another service does not answer, or it takes too long.
        """
        own = UUID(call.caller.tenant_id)
        # An organisation that was made a moment ago belongs to it.
        await self._tenants.follower.try_refresh()
        top = await self._tenants.require(call.caller, org_id or own, deleted=True)
        nodes = [top] if org_id is not None else self._tenants.subtree(top.id, deleted=True)
        with self._place(call.caller):
            async with self._database.transaction(Scope.of(top.id)) as connection:
                # Which names, it does not say: the log is for ever, and they may be pupils'.
                after = PersonSought(emails=sought.emails, names=len(sought.names))
                event = PersonDataExported(id=top.id, after=after)
                await self._outbox.append(connection, CloudEvent(event, top.id, call=call))
            yield [begin_line(sought, top.name, self._clock(), call.caller.name)]
            search = _Search(nodes, Person(sought.emails, sought.names))
            async with aclosing(_with_signs(self._search(search), search)) as lines:
                async for some in lines:
                    yield some

    async def _search(self, search: _Search) -> AsyncGenerator[list[str], None]:
        """The lines behind the first one."""
        if search.person.emails:
            ids = [
                one for node in search.nodes for one in await self._accounts(node.id, search.person)
            ]
            search.person = replace(search.person, ids=tuple(dict.fromkeys(ids)))
        records = left_out = 0
        for node in search.nodes:
            for service, ask in self._ask.items():
                search.at = Searched(str(node.id), service)
                async for page in _pages(ask, node.id, search.person):
                    search.at = replace(
                        search.at,
                        rows=search.at.rows + page.looked_at,
                        left_out=search.at.left_out + page.left_out,
                    )
                    found = page.found[: MOST_RECORDS - records]
                    records += len(found)
                    if found:
                        yield [record_line(str(node.id), node.name, one) for one in found]
                    if records >= MOST_RECORDS:
                        yield [end_line(records, left_out + search.at.left_out, whole=False)]
                        return
                left_out += search.at.left_out
                yield [searched_line(search.at)]
        yield [end_line(records, left_out, whole=True)]

    @contextmanager
    def _place(self, caller: Caller) -> Iterator[None]:
        """A place of few, of which a tenant has one, and nobody for ever."""
        tenant = caller.tenant_id
        if tenant in self._busy or not self._places.take(tenant):
            raise exhausted(
                "TOO_MANY_EXPORTS",
                "too many exports at once; try again when one has ended",
                retry_after=_RETRY_AFTER,
            )
        this = object()
        self._busy[tenant] = this

        def give_back() -> None:
            if self._busy.get(tenant) is this:
                del self._busy[tenant]
                self._places.give_back(tenant)

        # Of one that reads slowly nothing is heard until it reads on.
        timer = asyncio.get_running_loop().call_later(_LONGEST, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()

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
        return _Page(found, page.looked_at, page.left_out, page.token)


async def _with_signs(
    lines: AsyncGenerator[list[str], None], search: _Search
) -> AsyncGenerator[list[str], None]:
    """Lines, and now and then one that says how far it is: it keeps the connection.

    Raises:
        DomainError: UNAVAILABLE when it takes too long.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + _LONGEST
    coming: asyncio.Task[list[str]] | None = None
    try:
        while loop.time() < until:
            coming = coming or loop.create_task(_next(lines))
            await asyncio.wait({coming}, timeout=_QUIET)
            if not coming.done():
                yield [searched_line(search.at)]
                continue
            some, coming = coming.result(), None
            if not some:
                return
            yield some
        raise unavailable("the export took too long; ask for one organisation at a time")
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait({coming})
        await lines.aclose()


async def _next(lines: AsyncGenerator[list[str], None]) -> list[str]:
    """The next lines; none at the end."""
    return await anext(lines, [])


async def _pages(ask: _Ask, tenant_id: UUID, person: Person) -> AsyncIterator[_Page]:
    token = ""
    while True:
        page = await ask(tenant_id, person, token)
        yield page
        token = page.token
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
        found = [Found(service, one.kind, one.id, one.content) for one in answer.records]
        return _Page(found, answer.looked_at, answer.left_out, answer.next_page_token)

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
            if error.code() not in _AWAY or _TOO_LARGE in (error.details() or ""):
                raise
            if pause is None:
                raise unavailable(f"{service} is not available; try again") from error
        await asyncio.sleep(pause)
    raise AssertionError("the last pause is none")
