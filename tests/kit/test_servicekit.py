"""What services share and what needs no server: page tokens, errors of the database, followers."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from google.protobuf.struct_pb2 import Struct, Value

from evergreen.v1 import identity_pb2_grpc
from servicekit.data.postgres import as_domain_error
from servicekit.errors import Code, DomainError
from servicekit.feeds.feed import Follower
from servicekit.ids import now
from servicekit.observability.logs import Repeated, Waiting
from servicekit.peers.tenants import TenantDirectory, TenantNode
from servicekit.rpc.channels import open_channel
from servicekit.rpc.pagination import Page, TimePosition, decode_token, encode_token
from servicekit.rpc.rules import DEFAULT_MAX_STRING
from servicekit.rpc.values import filling, to_value


def _token(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def test_a_token_answers_the_position_that_it_was_made_of() -> None:
    """And an empty one the beginning."""
    found = decode_token(encode_token("ü", "2"), lambda *parts: parts)
    assert found == ("ü", "2")
    assert decode_token("", UUID) is None


def test_a_page_knows_with_which_token_its_list_goes_on() -> None:
    """One item more than it holds was looked for, or more are there for another reason."""
    ids = [UUID(int=number) for number in range(3)]
    page = Page.of(ids, 2, lambda one: one)
    assert (page.items, decode_token(page.token, UUID)) == (ids[:2], ids[1])
    last = Page.of(ids, 3, lambda one: one)
    assert (last.items, last.token) == (ids, "")
    assert Page.of(ids, 3, lambda one: one, more=True).after == ids[2]
    assert Page.of([], 3, lambda one: one).token == ""
    at = TimePosition(datetime(2026, 11, 29, 12, 0, 0, 5, UTC), ids[1])
    assert decode_token(Page(ids, at).token, TimePosition.read) == at
    with pytest.raises(DomainError):
        decode_token(encode_token("2026-11-29T12:00:00", str(ids[1])), TimePosition.read)


@pytest.mark.parametrize(
    "token",
    [
        _token([[1]]),
        _token([7]),
        _token([None]),
        _token({"0": "1"}),
        _token("text"),
        _token(5),
        _token(["a\x00b"]),
        _token(["\ud800"]),
        _token(["1", "2"]),
        base64.urlsafe_b64encode(b"[" * 20_000).decode(),
        "made up",
        "é",
    ],
)
def test_a_made_up_token_is_the_callers_mistake(token: str) -> None:
    """Whatever is in it, it is INVALID_ARGUMENT and names the field."""
    with pytest.raises(DomainError) as refused:
        decode_token(token, UUID)
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert refused.value.violations[0].field == "pageToken"


@pytest.mark.parametrize("letter", ["é", "\U0001f4bb", '"', "\\"])
def test_a_token_of_any_name_is_taken_again(letter: str) -> None:
    """The longest serial number of any script makes a token that a request may hold."""
    name = letter * 128
    token = encode_token(name, str(UUID(int=5)))
    assert len(token) <= DEFAULT_MAX_STRING
    assert decode_token(token, lambda *parts: parts) == (name, str(UUID(int=5)))


def test_large_json_is_filled_in_with_pauses() -> None:
    """And is what it would be at once."""
    json = {"a": [1, 2.5, "x", None, True, {"b": []}], "n": [[n] for n in range(3_000)], "e": {}}
    struct, at_once = Struct(), Value()
    pauses = sum(1 for _ in filling(json, struct))
    to_value(json, at_once)
    assert struct == at_once.struct_value
    assert pauses >= 5
    shown = Struct()
    list(filling(json, shown, lambda item, depth: f"{depth}" if isinstance(item, list) else item))
    assert shown == {"a": "1", "n": "1", "e": {}}


def test_what_passes_by_itself_is_tried_again_and_a_defect_is_not() -> None:
    """Else a caller would send a bad value for ever, and take a batch of others with it."""
    assert as_domain_error(asyncpg.DataError("value out of int64 range")) is None
    away = as_domain_error(asyncpg.InterfaceError("connection is closed"))
    assert away is not None
    assert away.code is Code.UNAVAILABLE
    again = as_domain_error(asyncpg.InvalidCachedStatementError("cached plan is invalid"))
    assert again is not None
    assert again.code is Code.UNAVAILABLE


async def test_a_reading_that_failed_answers_nobody() -> None:
    """Those who waited for it read themselves, and learn whether the other service is away."""
    gate = asyncio.Event()
    answers: list[Exception | None] = [None, None, ConnectionError("away"), ConnectionError("away")]
    asked = 0

    async def fetch(cursor: str) -> tuple[str, bool]:
        nonlocal asked
        answer = answers[asked]
        asked += 1
        if asked > 1:
            await gate.wait()
        if answer is not None:
            raise answer
        return cursor, False

    follower = Follower("test", fetch)
    await follower.refresh()
    waiting = [asyncio.create_task(follower.refresh()) for _ in range(3)]
    await asyncio.sleep(0)
    gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert results[0] is None
    assert all(isinstance(result, ConnectionError) for result in results[1:])


async def test_those_who_wait_share_one_reading() -> None:
    """A flood of questions costs two answers."""
    gate = asyncio.Event()
    asked = 0

    async def fetch(cursor: str) -> tuple[str, bool]:
        nonlocal asked
        asked += 1
        await gate.wait()
        return cursor, False

    follower = Follower("test", fetch)
    waiting = [asyncio.create_task(follower.refresh()) for _ in range(20)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*waiting)
    assert asked == 2


async def test_a_code_that_changed_hands_stays_with_its_new_tenant() -> None:
    """Also when the feed tells of the old tenant last, because it changed once more."""
    channel = open_channel("unix:/nowhere", "test")
    directory = TenantDirectory(identity_pb2_grpc.IdentityInternalServiceStub(channel), now)
    root = TenantNode(UUID(int=1), None, "root", "Root", "root")
    old = TenantNode(UUID(int=2), root.id, "org", "Old", "school")
    new = TenantNode(UUID(int=3), root.id, "org", "New", "other")
    directory.learn([root, old, new])
    directory.learn(
        [
            TenantNode(new.id, root.id, "org", "New", "school"),
            TenantNode(old.id, root.id, "org", "Old", "school-2"),
        ]
    )
    found = await directory.by_code("school")
    assert found is not None
    assert found.id == new.id
    await channel.close()


async def test_a_line_is_whole_when_it_ends_at_the_root() -> None:
    """A tenant may be told of before those above it, and by an old identity's first page alone."""
    channel = open_channel("unix:/nowhere", "test")
    directory = TenantDirectory(identity_pb2_grpc.IdentityInternalServiceStub(channel), now)
    root = TenantNode(UUID(int=1), None, "root", "Root", "root")
    reseller = TenantNode(UUID(int=2), root.id, "reseller", "District", "district")
    org = TenantNode(UUID(int=3), reseller.id, "org", "School", "school")
    for told, synced, whole in (
        ([], True, False),
        ([root, org], True, False),
        ([reseller], False, False),
        ([], True, True),
    ):
        directory.learn(told)
        directory.follower.synced = synced
        if whole:
            assert directory.whole_line(org.id) == [root, reseller, org]
        else:
            with pytest.raises(DomainError, match="not known yet"):
                directory.whole_line(org.id)
    await channel.close()


def test_an_outage_is_told_once_and_when_it_is_over() -> None:
    """A few failures are normal, and more at a start; an outage is not told every second."""
    told: list[str] = []
    starting = [True]

    class Log:
        def warning(self, what: str, **_: str) -> None:
            told.append(f"warning: {what}")

        def info(self, what: str, **_: str) -> None:
            told.append(f"info: {what}")

        def debug(self, what: str, **_: str) -> None:
            """Not told."""

    repeated = Repeated(
        Log(),  # type: ignore[arg-type]  # what it uses of a logger
        "it is away",
        starting=lambda: starting[0],
    )
    for _ in range(20):
        repeated.failed(OSError())
    repeated.worked()
    assert told == []
    for _ in range(20):
        repeated.failed(OSError())
    assert told == []
    # What has been away for the whole start is told of when the start should be over.
    starting[0] = False
    repeated.failed(OSError())
    assert told.pop() == "warning: it is away"
    repeated.worked()
    assert told.pop() == "info: it is away: over"
    repeated.failed(OSError())
    repeated.worked()
    assert told == []
    for _ in range(20):
        repeated.failed(OSError())
    assert told == ["warning: it is away"]
    repeated.worked()
    repeated.worked()
    assert told == ["warning: it is away", "info: it is away: over"]


def test_what_a_start_waits_for_is_a_warning_when_it_takes_long() -> None:
    """Once at the beginning, once more when the others should be there."""
    told: list[str] = []
    starting = [True]

    class Log:
        def warning(self, event: str, reason: str, what: str) -> None:
            told.append(f"warning: {event}: {what}: {reason}")

        def info(self, event: str, reason: str, what: str) -> None:
            told.append(f"info: {event}: {what}: {reason}")

    waiting = Waiting(
        Log(),  # type: ignore[arg-type]  # what it uses of a logger
        "waiting",
        starting=lambda: starting[0],
        what="the others",
    )
    for moment in (True, True, False, False):
        starting[0] = moment
        waiting.still("refused")
    assert told == [
        "info: waiting: the others: refused",
        "warning: waiting: the others: refused",
    ]
