"""Which API tokens a service takes: what it knows of them, and what it may not know yet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from servicekit import call
from servicekit.call import Caller, CallerKind, TokenOfCaller
from servicekit.errors import Code, DomainError
from servicekit.peers.api_tokens import ApiTokens
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.chain import CallChain
from servicekit.rpc.values import timestamp

AT = datetime(2026, 11, 30, tzinfo=UTC)
DAY = timedelta(days=1)


class Identity:
    """Answers as identity does, page by page; one of the last release says nothing of tokens."""

    def __init__(self) -> None:
        self.pages: list[pb.ListAccessChangesResponse] = []
        self.asked: list[pb.ListAccessChangesRequest] = []
        self.noted: list[pb.NoteTokenUsesRequest] = []
        self.away = False

    async def ListAccessChanges(  # noqa: N802 - of the proto
        self, request: pb.ListAccessChangesRequest, timeout: float
    ) -> pb.ListAccessChangesResponse:
        self.asked.append(request)
        return self.pages.pop(0)

    async def NoteTokenUses(  # noqa: N802 - of the proto
        self, request: pb.NoteTokenUsesRequest, timeout: float
    ) -> pb.NoteTokenUsesResponse:
        if self.away:
            raise OSError("away")
        self.noted.append(request)
        return pb.NoteTokenUsesResponse()


class Service:
    """What a service knows, and a clock to turn."""

    def __init__(self) -> None:
        self.at = AT
        self.identity = Identity()
        stub: Any = self.identity
        self.tokens = ApiTokens(stub, lambda: self.at)
        self.directory = TenantDirectory(stub, lambda: self.at)

    def learn(self, token_id: str, until: datetime | None, expires: datetime) -> None:
        self.tokens.learn([state(token_id, until, expires)])

    def takes(self, token_id: str, issued: datetime, expires: datetime = AT + 90 * DAY) -> bool:
        caller = Caller(
            CallerKind.USER,
            id=str(uuid4()),
            session_id=token_id,
            issued_at=issued,
            expires_at=expires,
            token=TokenOfCaller(token_id, "Job", frozenset()),
        )
        try:
            self.tokens.check(caller, "192.0.2.1")
        except DomainError as refused:
            if refused.code is Code.UNAVAILABLE:
                raise
            assert (refused.code, refused.reason) == (Code.UNAUTHENTICATED, "TOKEN_ENDED")
            return False
        return True


def state(token_id: str, until: datetime | None, expires: datetime) -> pb.ApiTokenState:
    works = None if until is None else timestamp(until)
    return pb.ApiTokenState(token_id=token_id, works_until=works, expires_at=timestamp(expires))


def test_a_token_works_until_its_end() -> None:
    """Revoked, or at the end of an overlap; it stays so, however long it could live."""
    service, issued = Service(), AT - DAY
    service.learn("revoked", None, AT + 300 * DAY)
    service.learn("rotated", AT + timedelta(hours=2), AT + 300 * DAY)
    service.learn("works", AT + 300 * DAY, AT + 300 * DAY)
    service.tokens.all_known(AT)
    far = AT + 300 * DAY
    assert not service.takes("revoked", issued, far)
    assert service.takes("rotated", issued, far)
    service.at += timedelta(hours=2)
    assert not service.takes("rotated", issued, far)
    for _ in range(10):
        service.at += 29 * DAY
        service.tokens.all_known(service.at)
        assert not service.takes("revoked", issued, far)
        assert not service.takes("rotated", issued, far)
        assert service.takes("works", issued, far)


def test_what_is_not_known_is_refused_unless_it_is_new() -> None:
    """A token of before a restore, which the database does not know; one that was made since the
    feed was last read works at once."""
    service = Service()
    with pytest.raises(DomainError) as error:
        service.takes("first", AT)
    assert error.value.code is Code.UNAVAILABLE
    service.tokens.all_known(AT)
    assert not service.takes("gone", AT - timedelta(minutes=2))
    assert service.takes("new", AT + timedelta(seconds=2))
    assert service.takes("in a transaction", AT - timedelta(seconds=5))
    assert not service.takes("new, but over", AT, AT)
    service.at += timedelta(hours=1)
    service.tokens.all_known(service.at)
    assert not service.takes("new", AT + timedelta(seconds=2))


def test_a_token_that_is_revoked_at_once_stays_so() -> None:
    """Although a new one that nothing is known of would work."""
    service = Service()
    service.learn("id", None, AT + 90 * DAY)
    for _ in range(3):
        service.tokens.all_known(service.at)
        assert not service.takes("id", service.at)


async def test_uses_are_handed_over_once() -> None:
    """The latest of each token; with identity away they wait. What is refused is no use."""
    service = Service()
    service.tokens.all_known(AT)
    await service.tokens.tell()
    assert service.identity.noted == []
    used, refused = str(uuid4()), str(uuid4())
    service.learn(used, AT + DAY, AT + DAY)
    assert service.takes(used, AT)
    service.at += timedelta(seconds=10)
    assert service.takes(used, AT)
    assert not service.takes(refused, AT - DAY)
    service.identity.away = True
    with pytest.raises(OSError, match="away"):
        await service.tokens.tell()
    service.identity.away = False
    await service.tokens.tell()
    await service.tokens.tell()
    (noted,) = service.identity.noted
    (use,) = noted.uses
    assert (use.token_id, use.address) == (used, "192.0.2.1")
    assert use.used_at.ToDatetime(UTC) == service.at


async def test_the_feed_keeps_a_position_for_tokens_of_its_own() -> None:
    """An identity of the last release, in between, says nothing of them, and they are not lost."""
    service = Service()
    feed = service.directory.follower
    page = pb.ListAccessChangesResponse
    key = str(uuid4())
    service.identity.pages = [
        page(
            next_cursor="1/1",
            next_api_token_cursor="7",
            more=True,
            api_tokens=[state(key, AT + DAY, AT + DAY)],
        ),
        page(next_cursor="2/2"),
        page(next_cursor="3/3", next_api_token_cursor="8"),
    ]
    await feed.refresh()
    await feed.refresh()
    asked = [(one.cursor, one.api_token_cursor) for one in service.identity.asked]
    assert asked == [("", ""), ("1/1", "7"), ("2/2", "7")]
    assert all(one.HasField("api_token_cursor") for one in service.identity.asked)


def _headers(**more: str) -> dict[str, str]:
    return {
        call.H_KIND: "token",
        call.H_SUBJECT: str(uuid4()),
        call.H_OWNER: str(uuid4()),
        call.H_TENANT: str(uuid4()),
        call.H_ROLE: "Owner",
        call.H_TOKEN_WHO: "m%C3%BCller@x.example",
        call.H_TOKEN_NAME: "J%C3%B6b (1)",
        call.H_SCOPES: "policies:read devices:write",
        **more,
    }


async def test_the_pipeline_asks_for_the_scope_of_the_row() -> None:
    """`write` reads as well; what no token may do no scope opens. The caller is its holder."""
    chain = CallChain(max_calls=30)

    async def work(served: call.Call) -> Caller:
        return served.caller

    async def refused(rpc: str, **more: str) -> str:
        with pytest.raises(DomainError) as error:
            await chain.run(f"/evergreen.v1.{rpc}", _headers(**more), work)
        return error.value.reason

    for rpc in ("PolicyService/ListPolicies", "InventoryService/ListDevices"):
        caller = await chain.run(f"/evergreen.v1.{rpc}", _headers(), work)
        assert caller.kind is CallerKind.USER
        assert caller.role is Role.OWNER
        assert caller.name == "token:Jöb (1) (müller@x.example)"
    assert await refused("PolicyService/CreatePolicy") == "SCOPE_MISSING"
    assert await refused("UserService/ListUsers") == "SCOPE_MISSING"
    assert await refused("AuthService/GetSession") == "TOKEN_MAY_NOT"
    assert await refused("ApiTokenService/CreateApiToken") == "TOKEN_MAY_NOT"
    assert await refused("DeviceService/PullPolicy") == "NO_DEVICE_TOKEN"
    lower = {call.H_ROLE: "Auditor", call.H_SCOPES: "policies:write"}
    assert await refused("PolicyService/CreatePolicy", **lower) == "ROLE_MAY_NOT"
    assert await refused("PolicyService/ListPolicies", **{call.H_OWNER: "x"}) == "BAD_TOKEN"
    assert await refused("PolicyService/ListPolicies", **{call.H_ROLE: "Root"}) == "BAD_TOKEN"


async def test_a_service_that_hears_nothing_of_tokens_refuses_them() -> None:
    """As all users, before the first word from identity."""
    service = Service()
    chain = CallChain(max_calls=30, tenants=service.directory)

    async def work(served: call.Call) -> None:
        pass

    with pytest.raises(DomainError) as error:
        await chain.run("/evergreen.v1.PolicyService/ListPolicies", _headers(), work)
    assert error.value.code is Code.UNAVAILABLE
