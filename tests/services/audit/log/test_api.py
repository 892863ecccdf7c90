"""Reading the audit log: filters, pages, exports, checkpoints, and whose it is."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from auditlog.chain import Checkpoint
from contract.access import Role
from evergreen.v1 import audit_pb2 as pb
from servicekit.data.postgres import SYSTEM
from servicekit.rpc.pagination import encode_token
from servicekit.security.signing import read_pem_bundle
from services.audit.log import store
from services.audit.log.domain import Filters
from tests.support import callers
from tests.support.audit import (
    ORG,
    RESELLER,
    ROOT,
    SISTER,
    START,
    STRANGER,
    TREE,
    Audit,
    StartAudit,
    audit,
    event,
    start_audit,
)
from tests.support.events import check_event

__all__ = ["audit", "start_audit"]


def at(second: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(START + timedelta(seconds=second))
    return stamp


async def fill(audit: Audit) -> None:
    await audit.record(
        event(1, name="policy.created"),
        event(2, name="policy.published"),
        event(3, name="identity.user_created", resource="users/u", actor="admin@school.example"),
        event(4, SISTER.id, name="policy.published", actor="sister@school.example"),
        event(5, STRANGER.id, name="enrollment.device_enrolled", actor="device:d1"),
        event(6, RESELLER.id, name="identity.tenant_created"),
    )


def numbers(entries: list[pb.AuditEntry]) -> list[int]:
    return [int((e.occurred_at.ToDatetime(START.tzinfo) - START).total_seconds()) for e in entries]


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [6, 5, 4, 3, 2, 1]),
    ({"action": "policy.published"}, [4, 2]),
    ({"actor": "admin@school.example"}, [3]),
    ({"actor": "Admin@School.Example"}, [3]),
    ({"actor": "device:d1"}, [5]),
    ({"actor": "00000000-0000-0000-0000-000000000007", "action": "policy.created"}, [1]),
    ({"resource": "users/u"}, [3]),
    ({"occurred_after": at(2), "occurred_before": at(4)}, [3, 2]),
    ({"org_id": str(ORG.id)}, [3, 2, 1]),
    ({"org_id": str(ORG.id), "action": "policy.published"}, [2]),
    ({"action": "policy.nothing"}, []),
]


async def test_lists_filter(audit: Audit) -> None:
    """Filters are joined by AND; the newest come first."""
    await fill(audit)
    for filters, expected in FILTERS:
        assert numbers(await audit.entries(**filters)) == expected, filters


CALL = {
    "actorKind": "user",
    "outcome": "refused",
    "sourceIp": "2001:DB8::7",
    "requestId": "5f0c-call",
    "resourceName": "Cart_3%",
}
SEARCHES: list[tuple[dict[str, Any], list[int]]] = [
    ({"actions": ["policy.published", "identity.user_created"]}, [4, 3, 2]),
    ({"actions": ["identity.*"]}, [6, 3]),
    ({"actions": ["policy.*"], "action": "policy.created"}, [1]),
    ({"actions": ["policy.x"], "outcome": "refused"}, [7]),
    ({"actor_kind": "user"}, [7]),
    ({"outcome": "refused"}, [7]),
    ({"outcome": "failed"}, []),
    ({"source_ip": "2001:db8::7"}, [7]),
    ({"request_id": "5f0c-call"}, [7]),
    ({"request_id": "5f0c"}, []),
    ({"search": "cart_3%"}, [7]),
    ({"search": "CART"}, [7]),
    ({"search": "cart%"}, []),
    ({"search": "Sister@"}, [4]),
    ({"search": "users/"}, [3]),
    ({"search": "policies/", "occurred_before": at(3)}, [2, 1]),
    ({"search": "Äpfel"}, [8]),
]


async def test_lists_are_searched(audit: Audit) -> None:
    """By what a record says of its call; a record that is damaged or has none is only not found."""
    await fill(audit)
    await audit.record(
        event(7, name="policy.x", resource="x/1", told=CALL),
        event(8, name="policy.x", resource="x/2", told={"resourceName": "äpfel"}),
    )
    for filters, expected in SEARCHES:
        assert numbers(await audit.entries(**filters)) == expected, filters
    await audit.sql("UPDATE audit.entry SET record = '{' WHERE resource = 'users/u'")
    assert numbers(await audit.entries(outcome="refused")) == [7]
    assert numbers(await audit.entries(search="users/")) == [3]


class _AskedError(Exception):
    """What a query asks the database."""


class _Asking:
    async def cursor(self, sql: str, *parameters: Any) -> None:
        raise _AskedError(sql, *parameters)


async def test_searches_use_indexes(audit: Audit) -> None:
    """Of a log of millions, only what is found is read."""
    begins = {"entry_by_name", "entry_by_actors_begin", "entry_by_resources_begin"}
    superuser = await audit.database.superuser()
    try:
        # Of few rows, PostgreSQL would read all.
        await superuser.execute("SET enable_seqscan = off; SET enable_indexscan = off")
        for filters, indexes in (
            (Filters(request_id="x"), {"entry_by_word"}),
            (Filters(source_ip="x"), {"entry_by_word"}),
            (Filters(search="x"), begins),
        ):
            connection: Any = _Asking()
            with pytest.raises(_AskedError) as asked:
                await store.list_entries(connection, SYSTEM, filters, None, 10)
            sql, *parameters = asked.value.args
            plan = await superuser.fetch(f"EXPLAIN {sql}", *parameters)
            assert indexes <= set(re.findall(r"entry_by_\w+", str(plan))), plan
    finally:
        await superuser.close()


async def test_a_page_of_large_entries_ends_early(audit: Audit) -> None:
    """What the gateway passes on; all pages, and an export, have all entries."""
    large = {"bundle": {"texts": ["<" * 1_000] * 300}}
    await audit.record(*(event(n, after={"n": n, **large}) for n in range(20)))
    found: list[Any] = []
    token = ""
    while True:
        answer = await audit.api.ListAuditEntries(
            pb.ListAuditEntriesRequest(page_size=500, page_token=token), metadata=audit.owner
        )
        assert 0 < len(answer.entries) < 8
        found += answer.entries
        token = answer.next_page_token
        if not token:
            break
    assert [e.after["n"] for e in found] == [*range(19, -1, -1)]
    assert len(found[0].after["bundle"]["texts"]) == 300
    assert (await audit.export()).endswith('{"end":{"entries":20}}\n')


async def test_lists_have_pages(audit: Audit) -> None:
    """Each entry once, also when several happened at the same moment and more come meanwhile."""
    await audit.record(*(event(n // 3) for n in range(10)))
    seen: list[str] = []
    token = ""
    while True:
        answer = await audit.api.ListAuditEntries(
            pb.ListAuditEntriesRequest(page_size=4, page_token=token), metadata=audit.owner
        )
        seen += [e.id for e in answer.entries]
        token = answer.next_page_token
        await audit.record(event(100))
        if not token:
            break
    assert len(seen) == len(set(seen)) == 10
    everything = await audit.entries(page_size=500)
    assert [e.id for e in everything if e.id in set(seen)] == seen


VISIBLE = [
    (ROOT, {ORG, SISTER, STRANGER, RESELLER}),
    (RESELLER, {ORG, SISTER, RESELLER}),
    (ORG, {ORG}),
    (STRANGER, {STRANGER}),
]


async def test_everyone_sees_their_own_subtree(audit: Audit) -> None:
    """In lists, single entries, exports and checkpoints; what is not theirs is not there."""
    await fill(audit)
    everything = await audit.entries()
    for who, visible in VISIBLE:
        expected = {str(node.id) for node in visible}
        for role in Role:
            by = callers.user(who.id, role)
            assert {e.org_id for e in await audit.entries(by)} == expected
        for entry in everything:
            request = audit.api.GetAuditEntry(pb.GetAuditEntryRequest(id=entry.id), metadata=by)
            if entry.org_id in expected:
                assert (await request).id == entry.id
            else:
                assert (await refused(request)) is grpc.StatusCode.NOT_FOUND
        for node in TREE:
            listing = audit.entries(by, org_id=str(node.id))
            exporting = audit.export(by, org_id=str(node.id))
            if node in visible or who is ROOT:
                assert {e.org_id for e in await listing} <= {str(node.id)}
                await exporting
            else:
                assert (await refused(listing)) is grpc.StatusCode.NOT_FOUND
                assert (await refused(exporting)) is grpc.StatusCode.NOT_FOUND
        heads = Checkpoint.read(await audit.checkpoint(by)).heads
        assert {head.tenant_id for head in heads} == expected


async def refused(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


BAD: list[dict[str, Any]] = [
    {"page_token": "x"},
    {"page_token": base64.urlsafe_b64encode(b'["2026","x"]').decode()},
    {"page_token": base64.urlsafe_b64encode(b'["2026-01-01","00"]').decode()},
    {"page_token": encode_token("0001-01-01T00:00:00+14:00", str(ORG.id))},
    {"page_token": encode_token("9999-12-31T23:00:00-14:00", str(ORG.id))},
    {"page_size": -1},
    {"page_size": 501},
    {"org_id": "x"},
    {"actor": "a\x00"},
    {"occurred_after": Timestamp(seconds=-(10**11))},
    {"actions": ["policy"]},
    {"actions": ["policy.published", "*"]},
    {"actions": ["policy.x"] * 21},
    {"actor_kind": "person"},
    {"outcome": "SUCCESS"},
    {"search": "a\x00"},
]


async def test_bad_input_is_refused(audit: Audit) -> None:
    """With INVALID_ARGUMENT."""
    for filters in BAD:
        assert (await refused(audit.entries(**filters))) is grpc.StatusCode.INVALID_ARGUMENT


async def test_checkpoints_are_signed(start_audit: StartAudit) -> None:
    """With a key that outlives the process and is published."""
    first = await start_audit(stream=False)
    await fill(first)
    text = await first.checkpoint()
    second = await start_audit(stream=False)
    assert await second.public_keys() == await first.public_keys()
    keys = read_pem_bundle(await second.public_keys())
    checkpoint = Checkpoint.read(text)
    assert checkpoint.signed_by(keys) is True
    entries = await first.entries()
    for head in checkpoint.heads:
        (last,) = [e for e in entries if e.org_id == head.tenant_id and e.sequence == head.sequence]
        assert last.hash == head.hash
    (row,) = await first.sql("SELECT sealed_seed FROM audit.signing_key")
    assert len(row["sealed_seed"]) > 32


async def test_a_csv_export_is_for_people(audit: Audit) -> None:
    """One row an entry, and no cell that a spreadsheet would run as a formula."""
    await audit.record(
        event(1, actor='=HYPERLINK("http://x")', before=None, after={"name": 'a,"b"\nc'}),
        event(2, actor="+1", resource="@x"),
    )
    file = await audit.export(format="csv")
    assert file.startswith("\ufeffoccurredAt,")
    rows = list(csv.DictReader(io.StringIO(file.removeprefix("\ufeff"))))
    assert [row["actor"] for row in rows] == ['\'=HYPERLINK("http://x")', "'+1"]
    assert rows[1]["resource"] == "'@x"
    assert rows[0]["before"] == ""
    assert rows[0]["after"] == '{"name": "a,\\"b\\"\\nc"}'
    assert rows[0]["tenantId"] == str(ORG.id)
    assert rows[0]["occurredAt"] == "2026-11-24T08:00:01Z"


async def test_a_long_export_is_streamed(audit: Audit) -> None:
    """Page by page, nothing twice and nothing left out; times filter it."""
    for batch in range(3):
        await audit.record(*(event(batch * 400 + n) for n in range(400)))
    text = await audit.export()
    assert text.count('{"entry":') == 1200
    assert text.endswith('{"end":{"entries":1200}}\n')
    some = await audit.export(occurred_after=at(10), occurred_before=at(20))
    assert some.count('{"entry":') == 10


async def test_a_damaged_record_does_not_hide_the_others(audit: Audit) -> None:
    """The list still answers; the entry shows that there is nothing to read."""
    await audit.record(event(1), event(2))
    await audit.sql("UPDATE audit.entry SET record = 'garbage' WHERE sequence = 1")
    newest, damaged = await audit.entries()
    assert newest.action == "policy.updated"
    assert (damaged.action, damaged.sequence) == ("", 1)
    assert "garbage" in await audit.export()
    file = await audit.export(format="csv")
    assert len(file.splitlines()) == 3
    # Which only a complete file has.
    assert file.endswith("\r\n")


async def test_an_export_is_in_the_log(audit: Audit) -> None:
    """Who took what out, from when it began; what was refused is not."""
    await audit.record(event(1))
    await audit.export(format="csv", org_id=str(ORG.id), occurred_after=at(10))
    parts = audit.api.ExportAuditEntries(pb.ExportAuditEntriesRequest(), metadata=audit.owner)
    await anext(aiter(parts))
    parts.cancel()
    foreign = audit.export(callers.user(ORG.id), org_id=str(STRANGER.id))
    assert (await refused(foreign)) is grpc.StatusCode.NOT_FOUND
    rows = await audit.sql("SELECT payload FROM audit.outbox ORDER BY id")
    told = [json.loads(row["payload"]) for row in rows]
    for entry in told:
        check_event(entry)
    assert [(e["data"]["resource"], e["data"]["after"]) for e in told] == [
        (
            f"tenants/{ORG.id}/audit",
            {"format": "csv", "filter": {"occurredAfter": "2026-11-24T08:00:10Z"}},
        ),
        (f"tenants/{ROOT.id}/audit", {"format": "jsonl", "filter": {}}),
    ]
    assert {e["data"]["action"] for e in told} == {"audit.exported"}
    assert all(e["data"]["actorRole"] for e in told)


async def test_an_entry_says_what_changed(audit: Audit) -> None:
    """Member by member, with what is new and what is gone; lists as a whole; not in lists."""
    before = {"name": "old", "a/b": {"~": 1, "same": True}, "list": [1, 2], "gone": None}
    after = {"name": "new", "a/b": {"~": 2, "same": True}, "list": [1, 3], "new": {"x": "y"}}
    sent = event(1, before=before, after=after)
    await audit.record(sent, event(2, before=None, after={"name": "made"}))
    entry = await audit.api.GetAuditEntry(
        pb.GetAuditEntryRequest(id=str(sent.id)), metadata=audit.owner
    )
    found = {
        change.path: tuple(
            MessageToDict(getattr(change, side)) if change.HasField(side) else "none"
            for side in ("before", "after")
        )
        for change in entry.changes
    }
    assert found == {
        "/name": ("old", "new"),
        "/a~1b/~0": (1, 2),
        "/list": ([1, 2], [1, 3]),
        "/gone": (None, "none"),
        "/new": ("none", {"x": "y"}),
    }
    listed = await audit.entries()
    assert not any(one.changes for one in listed)
    made = await audit.api.GetAuditEntry(
        pb.GetAuditEntryRequest(id=listed[0].id), metadata=audit.owner
    )
    assert not made.changes
