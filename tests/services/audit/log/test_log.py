"""The audit log: what gets into it, once, and that nothing gets out of it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from auditlog.chain import NO_HASH, entry_hash
from contract.events.policy import RevealedSecrets, SecretsRevealed
from servicekit.app import Kit
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.jetstream import AUDIT, ConsumerState
from servicekit.messaging.outbox import Outbox
from services.audit.log.gaps import First, GapWatch
from tests.conftest import MakeKit
from tests.support.audit import (
    ORG,
    ROOT,
    SISTER,
    Audit,
    SentEvent,
    StartAudit,
    audit,
    event,
    message,
    start_audit,
)

__all__ = ["audit", "start_audit"]


async def test_an_event_becomes_an_entry(audit: Audit) -> None:
    """With who, what, when, before and after, and hashed as documented."""
    first, second = event(1), event(2)
    await audit.record(first, second)
    newest, oldest = await audit.entries(org_id=str(ORG.id))
    assert newest.id == str(second.id)
    assert (newest.sequence, newest.previous_hash) == (2, oldest.hash)
    assert (oldest.sequence, oldest.previous_hash) == (1, NO_HASH)
    assert newest.actor == "owner@school.example"
    assert newest.action == "policy.updated"
    assert newest.resource == "policies/2"
    assert newest.actor_role == "Owner"
    assert newest.org_id == str(ORG.id)
    assert newest.occurred_at.ToDatetime(second.occurred_at.tzinfo) == second.occurred_at
    assert dict(newest.before) == {"name": "old"}
    assert dict(newest.after) == {"name": "nåme", "n": 2}
    (row,) = await audit.sql("SELECT record FROM audit.entry WHERE sequence = 1")
    assert entry_hash(str(ORG.id), 1, NO_HASH, row["record"]) == oldest.hash
    assert json.loads(row["record"]) == json.loads(first.payload())


async def test_what_comes_again_is_recorded_once(audit: Audit) -> None:
    """In the same batch, in a later one, and beside new events."""
    one, two, three = event(1), event(2), event(3)
    await audit.record(one, two, one)
    await audit.record(two, three)
    await audit.record(one, two, three)
    found = await audit.entries(org_id=str(ORG.id))
    assert [e.id for e in found] == [str(e.id) for e in (three, two, one)]
    assert [e.sequence for e in found] == [3, 2, 1]


async def test_two_processes_keep_the_chains_whole(audit: Audit) -> None:
    """Batches for the same tenants at the same moment, with many of the same events."""
    other = replace(audit)
    tenants = [ORG.id, SISTER.id, ROOT.id]
    events = [event(n, tenants[n % 3]) for n in range(120)]
    batches = [events[i : i + 20] for i in range(0, 120, 10)]
    await asyncio.gather(
        *(audit.record(*batch) for batch in batches),
        *(other.record(*reversed(batch)) for batch in batches),
    )
    found = await audit.entries(page_size=500)
    assert {e.id for e in found} == {str(e.id) for e in events}
    for tenant_id in tenants:
        chain = sorted((e for e in found if e.org_id == str(tenant_id)), key=lambda e: e.sequence)
        assert [e.sequence for e in chain] == list(range(1, 41))
        assert [e.previous_hash for e in chain[1:]] == [e.hash for e in chain[:-1]]


MALFORMED = [
    ("evergreen.v1.x.policy.updated", b"{}", "subject"),
    ("", b"", "JSON"),
    ("", b"\xff\xfe", "JSON"),
    ("", b"[]", "object"),
    ("", b'{"a":NaN}', "JSON"),
    ("", b"[" * 100_000, "JSON"),
    ("", b"{}", "not an event"),
    ("", b'{"id":1,"tenantid":"x","data":{}}', "not an event"),
]


async def test_what_is_no_event_is_quarantined(audit: Audit) -> None:
    """With its reason, and without stopping what comes behind it; once, however often it comes."""
    for number, (subject, data, reason) in enumerate(MALFORMED, start=1):
        broken = message(subject=subject or event().subject, data=data or b" ")
        good = event(number)
        for _ in range(2):
            await audit.recorder.handle([broken, message(good)])
        assert (await audit.entries())[0].id == str(good.id)
        rows = await audit.sql("SELECT payload, reason FROM audit.dead_letter ORDER BY received_at")
        assert len(rows) == number
        assert rows[-1]["payload"] == broken.data
        assert reason in rows[-1]["reason"]


async def test_an_event_must_fit_its_subject(audit: Audit) -> None:
    """A service can publish under its own name only; what an event claims beyond is refused."""
    changes: list[dict[str, object]] = [
        {"tenantid": str(SISTER.id)},
        {"id": "not-a-uuid"},
        {"time": "yesterday"},
        {"time": "2026-11-24T08:00:00"},
        {"time": "0001-01-01T00:00:00Z"},
        {"time": "9999-12-31T23:59:59-10:00"},
        {"data": None},
    ]
    made = event(1)
    for change in changes:
        body = json.loads(made.payload()) | change
        await audit.recorder.handle([message(made, data=json.dumps(body).encode())])
    other = replace(event(2), name="identity.user_created")
    await audit.recorder.handle([message(subject=event().subject, data=other.payload().encode())])
    assert await audit.entries() == []
    (row,) = await audit.sql("SELECT count(*) FROM audit.dead_letter")
    assert row["count"] == len(changes) + 1


async def test_awkward_text_is_recorded(audit: Audit) -> None:
    """NUL, long texts and emoji do not keep an action out of the log."""
    awkward = event(1, resource="policies/" + "x" * 5000, after={"a": "\x00😀", "n": 1e300})
    await audit.record(awkward)
    (entry,) = await audit.entries()
    assert entry.resource == awkward.resource
    assert dict(entry.after)["a"] == "\x00😀"
    (row,) = await audit.sql("SELECT resource FROM audit.entry")
    assert row["resource"] == awkward.resource[:256]


async def test_another_event_with_a_known_id_is_quarantined(audit: Audit) -> None:
    """What is in the log stays as it is."""
    made = event(1)
    await audit.record(made)
    await audit.record(replace(made, after={"name": "forged"}))
    (entry,) = await audit.entries()
    assert dict(entry.after)["name"] == "nåme"
    (row,) = await audit.sql("SELECT reason FROM audit.dead_letter")
    assert "another event with this id" in row["reason"]


async def test_device_events_are_not_recorded(audit: Audit) -> None:
    """Telemetry keeps what devices report about themselves."""
    await audit.record(event(1, name="telemetry.device_events"))
    assert await audit.entries() == []
    assert await audit.sql("SELECT FROM audit.dead_letter") == []


REFUSED = [
    "UPDATE audit.entry SET actor = 'x'",
    "DELETE FROM audit.entry",
    "TRUNCATE audit.entry",
    "DELETE FROM audit.chain_head",
    "TRUNCATE audit.chain_head",
    "UPDATE audit.chain_head SET tenant_id = gen_random_uuid()",
    "UPDATE audit.chain_head SET sequence = 1, hash = decode(repeat('00', 32), 'hex')",
    "DROP TABLE audit.entry",
    "ALTER TABLE audit.entry DISABLE TRIGGER ALL",
    "UPDATE audit.dead_letter SET reason = ''",
    "DELETE FROM audit.signing_key",
]


async def test_the_database_refuses_to_change_the_log(audit: Audit) -> None:
    """The service's own role can only add to it."""
    await audit.record(event(1), event(2))
    async with audit.kit.database.dedicated() as connection:
        await connection.execute("SELECT set_config('evergreen.scope', '*', false)")
        for statement in REFUSED:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    assert len(await audit.entries()) == 2


async def test_even_a_superuser_has_to_remove_the_triggers_first(audit: Audit) -> None:
    """Nobody changes the log by mistake, not in a replication session either."""
    await audit.record(event(1))
    connection = await audit.database.superuser()
    try:
        for setting in ("origin", "replica"):
            await connection.execute(f"SET session_replication_role = {setting}")
            for statement in (
                "UPDATE audit.entry SET actor = 'x'",
                "DELETE FROM audit.entry",
                "TRUNCATE audit.entry",
                "DELETE FROM audit.chain_head",
                "UPDATE audit.chain_head SET sequence = 0",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError, match="only grows"):
                    await connection.execute(statement)
    finally:
        await connection.close()


async def test_a_transaction_sees_its_tenants_only(audit: Audit) -> None:
    """Row security is the second wall behind the queries."""
    await audit.record(event(1), event(2, SISTER.id))
    async with audit.kit.database.dedicated() as connection:
        assert await connection.fetch("SELECT FROM audit.entry") == []
        await connection.execute("SELECT set_config('evergreen.scope', $1, false)", str(SISTER.id))
        rows = await connection.fetch("SELECT tenant_id FROM audit.entry")
        heads = await connection.fetch("SELECT tenant_id FROM audit.chain_head")
    assert {row["tenant_id"] for row in (*rows, *heads)} == {SISTER.id}


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM audit.entry WHERE sequence = 3",
        "DELETE FROM audit.chain_head",
        "UPDATE audit.chain_head SET sequence = 1",
        "UPDATE audit.entry SET sequence = 9 WHERE sequence = 3",
    ],
)
async def test_a_damaged_chain_does_not_stop_the_log(audit: Audit, damage: str) -> None:
    """What happens next is recorded behind the damage."""
    await audit.record(event(1), event(2), event(3))
    await audit.sql(damage)
    later = event(4), event(5, SISTER.id)
    await audit.record(*later)
    await audit.record(event(6))
    found = {e.id for e in await audit.entries()}
    assert {str(e.id) for e in later} <= found
    assert await audit.sql("SELECT FROM audit.dead_letter") == []


async def publish(kit: Kit, *events: SentEvent) -> None:
    """Publishes as a service's relay does, but so that the stream takes repetitions too."""
    await kit.messaging.ensure_stream()
    for made in events:
        await kit.messaging.publish(made.subject, made.payload().encode(), str(uuid4()))


async def test_events_arrive_through_the_stream(start_audit: StartAudit, make_kit: MakeKit) -> None:
    """Published by their own service, recorded in their order, once, by two processes."""
    policy = await make_kit("policy")
    audit = await start_audit()
    org = uuid4()
    actor = str(uuid4())
    events = [event(n, org, actor_id=actor) for n in range(40)]
    await publish(policy, *events[:20])
    await publish(policy, *events)
    found = await audit.until_recorded(40, actor=actor)
    assert sorted(e.id for e in found) == sorted(str(e.id) for e in events)
    assert sorted(e.sequence for e in found) == list(range(1, 41))


def revealed() -> CloudEvent:
    """An event of policy, about a policy of its own."""
    after = RevealedSecrets(name="Classroom", version="7")
    return CloudEvent(SecretsRevealed(id=uuid4(), after=after), uuid4())


async def test_what_the_log_lost_is_sent_again(start_audit: StartAudit, make_kit: MakeKit) -> None:
    """A restored database lacks entries that were acknowledged: the outboxes publish again."""
    policy = await make_kit("policy")
    audit = await start_audit()
    made = revealed()
    async with policy.database.system_transaction("a test works on all rows") as connection:
        await policy.outbox.append(connection, made)
    relay = asyncio.create_task(policy.outbox.run(policy.messaging))
    try:
        await audit.until_recorded(1, resource=made.event.resource)
        await audit.sql("DELETE FROM audit.entry")
        await audit.sql("DELETE FROM audit.chain_head")
        await audit.sql("UPDATE audit.stream_position SET sequence = 0")
        await until_acknowledged(audit)
        assert await GapWatch(audit.kit.database, audit.kit.messaging, nothing).check()
        await audit.until_recorded(1, resource=made.event.resource)
        assert not await GapWatch(audit.kit.database, audit.kit.messaging, nothing).check()
    finally:
        relay.cancel()


async def until_acknowledged(audit: Audit) -> None:
    while (
        state := await audit.kit.messaging.consumer_state(AUDIT)
    ) is None or state.acknowledged == 0:
        await asyncio.sleep(0.02)


class FakeMessaging:
    """A stream that is where a test says."""

    def __init__(self, **state: Any) -> None:
        start = ConsumerState(incarnation="i1", oldest=1, acknowledged=0, waiting=0)
        self.state = replace(start, **state)
        self.asked: list[str] = []
        self.unanswered = 0
        """So many questions about the consumer fail first."""

    def wake_after_outage(self, wake: asyncio.Event) -> None:
        """It is never away."""

    async def ensure_stream(self, _: object = None) -> str:
        return self.state.incarnation

    async def consumer_state(self, durable: str) -> ConsumerState:
        if self.unanswered:
            self.unanswered -= 1
            raise OSError("no answer")
        return self.state

    async def publish_again(self) -> str:
        self.asked.append("publish")
        self.state = replace(self.state, incarnation=self.state.incarnation + "'")
        return self.state.incarnation

    async def read_again(self, durable: str) -> None:
        self.asked.append("read")
        self.state = replace(self.state, acknowledged=0)

    async def publish(self, subject: str, payload: bytes, message_id: str) -> None:
        self.asked.append(subject)


async def nothing(_: First) -> None:
    pass


async def test_the_gap_watch_asks_again_for_what_is_missing(audit: Audit) -> None:
    """When the stream dropped something first, is another one, or knows more than the log."""
    fake = FakeMessaging()
    went_back: list[str] = []

    async def note(first: First) -> None:
        async with audit.kit.database.system_transaction("a test") as connection:
            if await first(connection):
                went_back.append(fake.state.incarnation)
                assert not await first(connection), "no other process tells it, too"

    watch = GapWatch(audit.kit.database, fake, note)  # type: ignore[arg-type]

    async def check(position: int | None = None, **state: Any) -> list[str]:
        fake.asked.clear()
        fake.state = replace(fake.state, **state)
        if position is not None:
            await audit.sql("UPDATE audit.stream_position SET sequence = $1", position)
        assert await watch.check() is bool(fake.asked)
        assert not await watch.check(), "once is enough"
        return list(fake.asked)

    assert await check() == [], "the first start"
    assert await check(acknowledged=40, position=40) == [], "all is recorded"
    assert await check(acknowledged=40, position=44, oldest=30) == [], "old ones left the stream"
    assert await check(oldest=45) == [], "what left the stream was recorded"
    assert await check(oldest=46) == ["publish", "read"], "entry 45 left it before"
    assert went_back == []
    assert await check(acknowledged=50, position=45) == ["publish", "read"], "a restored database"
    assert went_back == ["i1'"], "the tree of the log begins anew"
    assert await check(incarnation="i2", oldest=1) == ["read"], "a new stream"
    assert went_back == ["i1'", "i2"], "or a database of before an earlier gap"
    await audit.sql("UPDATE audit.stream_position SET incarnation = ''")
    assert await check() == ["publish", "read"], "a check that ended before it had all sent again"
    await audit.sql("DELETE FROM audit.stream_position")
    assert await check(acknowledged=7) == ["publish", "read"], "an empty database"
    assert went_back == ["i1'", "i2"], "whoever restored it has seen to the tree"


async def test_an_outbox_keeps_what_the_log_lacks(make_kit: MakeKit, audit: Audit) -> None:
    """Old rows go only when nothing left the stream without being recorded.

    A question that was not answered is asked again with the next look.
    """
    policy = await make_kit("policy")
    old = revealed()
    async with policy.database.system_transaction("a test works on all rows") as connection:
        await policy.outbox.append(connection, old)
    for lost, left in ((True, 1), (False, 0)):
        await audit.sql("UPDATE policy.outbox SET published_at = now() - interval '31 days'")
        fake = FakeMessaging(oldest=10, acknowledged=3 if lost else 9)
        fake.unanswered = 0 if lost else 1
        await audit.sql(
            "INSERT INTO policy.outbox_stream (incarnation) VALUES ('i1')"
            " ON CONFLICT (only_row) DO UPDATE SET incarnation = 'i1'"
        )
        outbox = Outbox(policy.database, "policy")
        relay = asyncio.create_task(outbox.run(fake))  # type: ignore[arg-type]
        if left:
            await asyncio.sleep(0.3)
        async with asyncio.timeout(60):
            while len(await audit.sql("SELECT FROM policy.outbox")) != left:
                assert not relay.done(), relay.result()
                await asyncio.sleep(0.05)
        assert not relay.done(), relay.result()
        relay.cancel()
