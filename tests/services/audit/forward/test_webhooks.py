"""Webhooks: what arrives, how it is signed, and what becomes of what is not taken."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from typing import Any

import pytest

from auditlog.chain import canonical, entry_hash
from evergreen.v1 import audit_pb2 as pb
from tests.services.audit.forward.conftest import StartWorld, World
from tests.support import callers
from tests.support.audit import ORG, RESELLER, ROOT, SISTER, STRANGER, event
from tests.support.receivers import Posted
from tests.support.refusals import refusal


def verified(secret: str, posted: Posted) -> bool:
    """Whether one of the signatures is the secret's, as Standard Webhooks has it."""
    signed = f"{posted.headers['webhook-id']}.{posted.headers['webhook-timestamp']}.".encode()
    key = base64.b64decode(secret.removeprefix("whsec_"))
    wanted = base64.b64encode(hmac.digest(key, signed + posted.body, hashlib.sha256)).decode()
    return f"v1,{wanted}" in posted.headers["webhook-signature"].split(" ")


async def test_an_entry_arrives_as_it_was_recorded(world: World) -> None:
    """With its place in the chain; without that it is what the log has hashed."""
    made = await world.create(webhook={"headers": [{"name": "X-Token", "value": "t0p"}]})
    await world.record(event(1), event(2))
    first, second = await world.receiver.until_events(2)
    assert [first["auditsequence"], second["auditsequence"]] == [1, 2]
    assert second["auditprevious"] == first["audithash"]
    record = {name: value for name, value in first.items() if not name.startswith("audit")}
    hashed = entry_hash(str(ORG.id), 1, first["auditprevious"], canonical(record))
    assert hashed == first["audithash"]
    posted = world.receiver.posted[0]
    assert posted.headers["content-type"] == "application/cloudevents+json"
    assert posted.headers["webhook-id"] == first["id"]
    assert posted.headers["x-token"] == "t0p"
    assert verified(made.secret, posted)
    assert not verified("whsec_" + base64.b64encode(b"other").decode(), posted)


async def test_several_entries_are_one_message(world: World) -> None:
    """In order; the rest of a page is a message of its own."""
    await world.record(*(event(n) for n in range(1, 8)))
    await world.create(webhook={"batch": 3})
    await world.receiver.until_events(7)
    posted = world.receiver.posted
    assert [len(p.events) for p in posted] == [3, 3, 1]
    assert {p.headers["content-type"] for p in posted} == {"application/cloudevents-batch+json"}
    assert [e["auditsequence"] for e in world.receiver.events] == list(range(1, 8))
    assert len({p.headers["webhook-id"] for p in posted}) == 3


async def test_splunk_gets_lines_of_its_own(world: World) -> None:
    """With the time in seconds, and the installation as the host."""
    await world.record(event(1), event(2))
    token = {"name": "Authorization", "value": "Splunk 11111111-2222"}
    await world.create(webhook={"format": "splunk-hec", "batch": 10, "headers": [token]})
    await world.receiver.until(lambda: world.receiver.posted)
    (posted,) = world.receiver.posted
    lines = [json.loads(line) for line in posted.body.split(b"\n")]
    assert [line["event"]["auditsequence"] for line in lines] == [1, 2]
    assert lines[0]["time"] == 1795507201.0
    assert lines[0]["host"] == "evergreen.school.example"
    assert lines[0]["sourcetype"] == "evergreen:audit"
    assert posted.headers["authorization"] == "Splunk 11111111-2222"


async def test_a_large_change_gives_way_to_its_digest(world: World) -> None:
    """A receiver gets at most 256 KiB of an entry."""
    await world.record(event(1, after={"text": "ä" * 200_000}))
    await world.create()
    (sent,) = await world.receiver.until_events(1)
    assert sent["audittruncated"] is True
    assert set(sent["data"]["after"]) == {"sha256", "bytes"}
    assert sent["data"]["after"]["bytes"] == 400_011
    assert sent["data"]["before"]["bytes"] == 14


async def test_whose_entries_are_sent(world: World) -> None:
    """Those of the tenant, and by default of those below it; of no others."""
    everybody = [ROOT, RESELLER, ORG, SISTER, STRANGER]
    await world.record(*(event(n, node.id) for n, node in enumerate(everybody)))
    await world.create(callers.user(RESELLER.id))
    await world.receiver.until_events(3)
    found = {e["tenantid"] for e in world.receiver.events}
    assert found == {str(node.id) for node in (RESELLER, ORG, SISTER)}
    world.receiver.posted.clear()
    await world.create(callers.user(RESELLER.id), filter={"below_too": False})
    (only,) = await world.receiver.until_events(1)
    assert only["tenantid"] == str(RESELLER.id)


async def test_those_below_are_added_with_what_comes(world: World) -> None:
    """A change of `belowToo` sends nothing of before."""
    reseller = callers.user(RESELLER.id)
    await world.record(event(1, RESELLER.id), event(2))
    made = await world.create(reseller, filter={"below_too": False})
    await world.receiver.until_events(1)
    await world.audit.forwarders.UpdateForwarder(
        pb.UpdateForwarderRequest(id=made.id, filter={"below_too": True}), metadata=reseller
    )
    await world.record(event(3), event(4, SISTER.id))
    await world.receiver.until_events(3)
    sent = sorted((e["tenantid"], e["auditsequence"]) for e in world.receiver.events)
    assert sent == sorted([(str(RESELLER.id), 1), (str(ORG.id), 2), (str(SISTER.id), 1)])


async def test_a_filter_leaves_entries_out(world: World) -> None:
    """By action and by outcome; the position goes on over what is left out."""
    names = [
        "policy.created", "policy.updated", "identity.login_failed", "identity.user_created",
    ]  # fmt: skip
    await world.record(*(event(n, name=name) for n, name in enumerate(names)))
    made = await world.create(
        filter={"actions": ["policy.*", "identity.login_failed"],
                "excluded_actions": ["policy.updated"]},
    )  # fmt: skip
    await world.receiver.until_events(2)
    actions = [e["data"]["action"] for e in world.receiver.events]
    assert actions == ["policy.created", "identity.login_failed"]
    await world.until(made.id, lambda found: found.state.backlog == 0)
    world.receiver.posted.clear()
    await world.create(filter={"outcomes": ["failed"]})
    (only,) = await world.receiver.until_events(1)
    assert only["data"]["action"] == "identity.login_failed"


async def test_a_forwarder_begins_where_it_is_told_to(world: World) -> None:
    """With what comes, with a time, or with everything."""
    await world.record(*(event(n) for n in range(1, 5)))
    late = await world.create(start_at="now")
    timed = await world.create(start_at="2026-11-24T08:00:03Z")
    await world.receiver.until_events(2)
    assert [e["auditsequence"] for e in world.receiver.events] == [3, 4]
    world.receiver.posted.clear()
    await world.record(event(5))
    await world.receiver.until_events(2)
    assert {e["auditsequence"] for e in world.receiver.events} == {5}
    assert (late.start_at, timed.start_at) == ("now", "2026-11-24T08:00:03Z")


async def test_a_target_that_is_away_is_waited_for(world: World) -> None:
    """For thirty days, in order, without a loss, and without being disabled."""
    world.receiver.answer = lambda _: 503
    made = await world.create()
    await world.record(*(event(n) for n in range(1, 21)))
    await world.until(made.id, lambda f: f.state.last_error == "HTTP_503")
    for days in range(1, 31):
        world.time.move(days=1)
        await world.until(made.id, lambda f, days=days: f.state.attempts > days)
    found = await world.get(made.id)
    assert (found.enabled, found.state.status, found.state.backlog) == (True, "failing", 20)
    (told,) = await world.told("audit.forwarder_failing")
    assert told["data"]["after"]["reason"] == "HTTP_503"
    world.receiver.answer = lambda _: 200
    world.time.move(hours=2)
    await world.receiver.until(lambda: len(_sequences(world)) >= 20)
    assert _sequences(world) == list(range(1, 21))
    await world.until(made.id, lambda f: f.state.status == "active" and not f.state.backlog)
    assert len(await world.told("audit.forwarder_recovered")) == 1
    assert len(await world.told("audit.forwarder_failing")) == 1


async def test_a_message_that_was_taken_but_not_noted_comes_again(world: World) -> None:
    """With the same id: a connection that breaks behind the message says nothing of it."""
    seen: list[str] = []

    def answer(posted: Posted) -> Any:
        seen.append(posted.headers["webhook-id"])
        return b"" if len(seen) < 3 else 204

    world.receiver.answer = answer
    made = await world.create()
    await world.record(event(1))
    await world.until(made.id, lambda f: f.state.attempts > 0)
    world.time.move(seconds=10)
    await world.until(made.id, lambda f: f.state.attempts > 1 or len(seen) > 2)
    world.time.move(minutes=2)
    await world.receiver.until_events(1)
    assert len(set(seen)) == 1


async def test_a_target_says_when_to_come_again(world: World) -> None:
    """`Retry-After`, at most an hour."""
    world.receiver.answer = lambda _: (429, {"retry-after": "7200"})
    made = await world.create()
    await world.record(event(1))
    found = await world.until(made.id, lambda f: f.state.last_error == "HTTP_429")
    wait = found.state.next_attempt_at.ToDatetime(world.time().tzinfo) - world.time()
    assert 3000 < wait.total_seconds() <= 3600


async def test_a_target_that_is_gone_gets_nothing_more(world: World) -> None:
    """410 disables; enabled again, the forwarder goes on where it was."""
    world.receiver.answer = lambda _: 410
    made = await world.create()
    await world.record(event(1))
    found = await world.until(made.id, lambda f: not f.enabled)
    assert (found.state.status, found.state.reason) == ("disabled", "GONE")
    assert len(await world.told("audit.forwarder_disabled")) == 1
    world.receiver.answer = lambda _: 200
    await world.update(made.id, enabled=True)
    await world.receiver.until_events(1)


async def test_a_redirect_is_not_followed(world: World) -> None:
    """It is told as one."""
    where = "http://169.254.169.254/latest/meta-data/"
    world.receiver.answer = lambda _: (302, {"location": where})
    made = await world.create()
    await world.record(event(1))
    await world.until(made.id, lambda f: f.state.last_error == "REDIRECTED_302")


async def test_a_message_that_is_refused_is_quarantined(world: World) -> None:
    """After six attempts, when another one is taken; those behind it are sent, then."""
    poison = event(2)

    def answer(posted: Posted) -> Any:
        return 413 if str(poison.id).encode() in posted.body else 204

    world.receiver.answer = answer
    made = await world.create(webhook={"batch": 10})
    await world.record(event(1), poison, event(3))
    for attempt in range(1, 6):
        await until_refused(world, attempt)
        world.time.move(hours=1)
    await world.until(made.id, lambda f: f.state.quarantined == 1)
    await world.receiver.until(lambda: len(_sequences(world)) == 2)
    assert _sequences(world) == [1, 3]
    (told,) = await world.told("audit.forwarder_quarantine")
    assert told["data"]["after"]["entryId"] == str(poison.id)
    listed = await world.audit.forwarders.ListForwarderQuarantine(
        pb.ListForwarderQuarantineRequest(id=made.id), metadata=world.admin
    )
    (message,) = listed.messages
    assert (message.entry_id, message.reason, message.attempts) == (str(poison.id), "HTTP_413", 6)
    world.receiver.answer = lambda _: 204
    retried = await world.audit.forwarders.RetryForwarderQuarantine(
        pb.RetryForwarderQuarantineRequest(id=made.id, ids=[message.id]), metadata=world.admin
    )
    assert retried.retried == 1
    await world.receiver.until(lambda: str(poison.id) in world.receiver.ids)
    await world.until(made.id, lambda f: f.state.quarantined == 0)


async def until_refused(world: World, attempts: int) -> None:
    """Waits until a message was refused so often."""
    for _ in range(1200):
        if await world.attempts() >= attempts:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"refused {await world.attempts()} times, not {attempts}")


def _sequences(world: World) -> list[int]:
    """Of the entries that arrived; hours that are passed over bring checkpoints as well."""
    return [e["auditsequence"] for e in world.receiver.events if "auditsequence" in e]


async def test_a_target_that_refuses_everything_loses_nothing(world: World) -> None:
    """400 to the test as well: then the target is at fault, and nothing is quarantined."""
    world.receiver.answer = lambda _: 400
    made = await world.create()
    await world.record(event(1))
    for attempt in range(1, 6):
        await until_refused(world, attempt)
        world.time.move(hours=1)
    found = await world.until(made.id, lambda f: f.state.status == "failing")
    assert (found.state.quarantined, found.state.backlog) == (0, 1)


async def test_what_no_message_can_be_made_of_holds_nobody_up(world: World) -> None:
    """A damaged record is quarantined at once."""
    await world.record(event(1), event(2), event(3))
    await world.audit.sql("UPDATE audit.entry SET record = 'damaged' WHERE sequence = 2")
    made = await world.create(webhook={"batch": 5})
    await world.receiver.until_events(2)
    assert _sequences(world) == [1, 3]
    await world.until(made.id, lambda f: f.state.quarantined == 1)


async def test_both_secrets_sign_while_one_replaces_the_other(world: World) -> None:
    """A receiver with the old one, then one with the new one, always verifies."""
    made = await world.create()
    rotated = await world.audit.forwarders.RotateForwarderSecret(
        pb.RotateForwarderSecretRequest(id=made.id, overlap_hours=24), metadata=world.admin
    )
    assert rotated.secret.startswith("whsec_")
    assert rotated.secret != made.secret
    await world.record(event(1))
    await world.receiver.until_events(1)
    assert verified(made.secret, world.receiver.posted[0])
    assert verified(rotated.secret, world.receiver.posted[0])
    assert world.receiver.posted[0].headers["webhook-signature"].count("v1,") == 2
    world.time.move(hours=25)
    await world.record(event(2))
    await world.receiver.until_events(2)
    assert not verified(made.secret, world.receiver.posted[1])
    assert verified(rotated.secret, world.receiver.posted[1])


async def test_entries_are_sent_again_from_a_time_on(world: World) -> None:
    """In order and with the same ids."""
    await world.record(*(event(n) for n in range(1, 6)))
    made = await world.create()
    await world.receiver.until_events(5)
    first = list(world.receiver.ids)
    request = pb.ReplayForwarderRequest(id=made.id)
    getattr(request, "from").FromJsonString("2026-11-24T08:00:03Z")
    await world.audit.forwarders.ReplayForwarder(request, metadata=world.admin)
    await world.receiver.until_events(8)
    assert world.receiver.ids == [*first, *first[2:]]
    (told,) = await world.told("audit.forwarder_replayed")
    assert told["data"]["after"]["starting"] == "2026-11-24T08:00:03Z"


async def test_a_test_says_what_came_of_it(world: World) -> None:
    """One message, past the queue; a success has what waits tried at once."""
    world.receiver.answer = lambda _: 503
    made = await world.create()
    await world.record(event(1))
    await world.until(made.id, lambda f: f.state.attempts == 1)

    async def tested() -> pb.TestForwarderResponse:
        return await world.audit.forwarders.TestForwarder(
            pb.TestForwarderRequest(id=made.id), metadata=world.admin
        )

    failed = await tested()
    assert (failed.delivered, failed.status, failed.error) == (False, 503, "HTTP_503")
    world.receiver.answer = lambda _: 202
    good = await tested()
    assert (good.delivered, good.status, good.error) == (True, 202, "")
    await world.receiver.until_events(2)
    types = [e["type"] for e in world.receiver.events]
    assert types == ["evergreen.v1.audit.forwarder_tested", "evergreen.v1.policy.updated"]
    told = await world.told("audit.forwarder_tested")
    assert [t["data"]["after"]["delivered"] for t in told] == [False, True]


async def test_an_answer_without_end_is_not_read(world: World) -> None:
    """Its status counts; a gigabyte behind it is thrown away with the connection."""

    async def endless(posted: Posted) -> Any:
        world.receiver.posted.append(posted)
        return b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n" + b"x" * (1 << 20)

    world.receiver.answer = endless
    made = await world.create()
    await world.record(event(1), event(2))
    await world.receiver.until_events(2)
    await world.until(made.id, lambda f: f.state.backlog == 0)


@pytest.mark.parametrize("rotate", [True, False], ids=["secret", "syslog"])
async def test_only_webhooks_have_a_secret(world: World, rotate: bool) -> None:
    """A syslog forwarder has none to rotate."""
    if rotate:
        made = await world.create()
        assert made.secret.startswith("whsec_")
        assert not (await world.get(made.id)).secret
        return
    made = await world.audit.forwarders.CreateForwarder(
        pb.CreateForwarderRequest(
            name="x",
            kind="syslog",
            enabled=False,
            syslog={"host": "127.0.0.1", "port": world.receiver.port},
        ),
        metadata=world.admin,
    )
    assert not made.secret
    refused = await refusal(
        world.audit.forwarders.RotateForwarderSecret(
            pb.RotateForwarderSecretRequest(id=made.id), metadata=world.admin
        )
    )
    assert refused.reason == "NO_SECRET"


async def test_a_copy_that_is_only_tried_connects_to_nobody(start_world: StartWorld) -> None:
    """A rehearsal restores the installation's forwarders: it neither sends nor disables them."""
    world = await start_world()
    forwarder = await world.create()
    await world.record(event())
    await world.receiver.until_events(1)
    await world.audit.running.stop(0)

    copy = await start_world(outbound=False)
    await copy.record(event())
    await asyncio.sleep(1)
    found = await copy.get(forwarder.id)
    assert (found.enabled, found.state.last_error) == (True, "")
    assert found.state.backlog
    assert len(copy.receiver.events) == 1
    refused = await refusal(copy.create())
    assert "EVERGREEN_OUTBOUND" in refused.body["message"]
