"""Who makes and changes forwarders, what is refused, and that secrets are nowhere."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToJson

from contract.access import Role
from evergreen.v1 import audit_pb2 as pb
from tests.services.audit.forward.conftest import StartWorld, World
from tests.support import callers
from tests.support.audit import ORG, RESELLER, ROOT, SISTER, event
from tests.support.refusals import refusal

BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"webhook": {"url": "ftp://x.example/"}}, "webhook.url"),
    ({"webhook": {"url": "https:///x"}}, "webhook.url"),
    ({"webhook": {"url": "https://a..b/"}}, "webhook.url"),
    ({"webhook": {"url": "https://user:secret@x.example/"}}, "webhook.url"),
    ({"webhook": {"url": "https://x.example/#a"}}, "webhook.url"),
    ({"webhook": {"url": "https://x.example:99999/"}}, "webhook.url"),
    ({"webhook": {"url": "https://x.example/ a"}}, "webhook.url"),
    ({"webhook": {"url": "https://x.example\\@y.example/"}}, "webhook.url"),
    ({"webhook": {"url": "https://ex\u00e4mple/"}}, "webhook.url"),
    ({"webhook": {"headers": [{"name": "Host", "value": "x"}]}}, "webhook.headers[0].name"),
    ({"webhook": {"headers": [{"name": "a b", "value": "x"}]}}, "webhook.headers[0].name"),
    ({"webhook": {"headers": [{"name": "a", "value": "x\r\ny: z"}]}}, "webhook.headers[0].value"),
    ({"webhook": {"headers": [{"name": "a"}]}}, "webhook.headers[0].value"),
    ({"webhook": {"batch": 101}}, "webhook.batch"),
    ({"webhook": {"format": "xml"}}, "webhook.format"),
    ({"filter": {"actions": ["policy.*", "Policy"]}}, "filter.actions"),
    ({"filter": {"excluded_actions": ["*.x"]}}, "filter.excludedActions"),
    ({"filter": {"outcomes": ["good"]}}, "filter.outcomes"),
    ({"start_at": "yesterday"}, "startAt"),
    ({"syslog": {"host": "x.example"}}, "syslog"),
]


async def test_what_is_wrong_is_named(world: World) -> None:
    """By its field; nothing is stored."""
    for change, field in BROKEN:
        refused = await refusal(world.create(**change))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT, field
        assert refused.fields[0] == field, refused.body
    for syslog, field in (
        ({"host": "a b"}, "syslog.host"),
        ({"host": "a..b"}, "syslog.host"),
        ({"host": "9.9.9.9", "server_name": "." + "a" * 64}, "syslog.serverName"),
        ({"host": "9.9.9.9", "max_bytes": 10}, "syslog.maxBytes"),
        ({"host": "9.9.9.9", "sd_id": "evergreen"}, "syslog.sdId"),
        ({"host": "9.9.9.9", "transport": "udp", "ca_pem": "x"}, "syslog.transport"),
        ({"host": "9.9.9.9", "facility": 24}, "syslog.facility"),
    ):
        request = pb.CreateForwarderRequest(name="x", kind="syslog", syslog=syslog)
        refused = await refusal(
            world.audit.forwarders.CreateForwarder(request, metadata=world.admin)
        )
        assert refused.fields == [field], refused.body
    listed = await world.audit.forwarders.ListForwarders(
        pb.ListForwardersRequest(), metadata=world.admin
    )
    assert not listed.forwarders


async def test_secrets_are_nowhere(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in answers nor in events, columns or the log."""
    caplog.set_level(logging.DEBUG)
    header = {"name": "Authorization", "value": "Bearer hidden-value"}
    made = await world.create(webhook={"headers": [header], "url": world.receiver.url + "?t=query"})
    world.receiver.answer = lambda _: 500
    await world.record(event(1))
    await world.until(made.id, lambda f: f.state.attempts > 0)
    await world.audit.forwarders.TestForwarder(
        pb.TestForwarderRequest(id=made.id), metadata=world.admin
    )
    await world.update(made.id, name="Other")
    secret = made.secret.removeprefix("whsec_")
    shown = MessageToJson(await world.get(made.id))
    listed = MessageToJson(
        await world.audit.forwarders.ListForwarders(
            pb.ListForwardersRequest(), metadata=world.admin
        )
    )
    rows = await world.audit.sql("SELECT payload FROM audit.outbox")
    stored = await world.audit.sql("SELECT to_jsonb(f)::text AS row FROM audit.forwarder f")
    assert json.loads(shown)["webhook"]["headers"] == [{"name": "Authorization", "set": True}]
    for text in (
        shown, listed, caplog.text, *(r["payload"] for r in rows), *(r["row"] for r in stored),
    ):  # fmt: skip
        assert "hidden-value" not in text
        assert secret not in text
    assert not any("query" in row["payload"] for row in rows)


async def test_a_change_keeps_what_it_does_not_show(world: World) -> None:
    """What an answer has can be sent back; secrets go to no other target."""
    header = {"name": "X-Token", "value": "kept"}
    made = await world.create(webhook={"headers": [header]})
    back = {
        "url": made.webhook.url, "batch": 2, "headers": [{"name": "X-Token", "set": True}],
    }  # fmt: skip
    changed = await world.update(made.id, webhook=back)
    assert (changed.webhook.batch, changed.webhook.headers[0].set) == (2, True)
    assert changed.etag != made.etag
    await world.record(event(1))
    await world.receiver.until_events(1)
    assert world.receiver.posted[0].headers["x-token"] == "kept"
    refused = await refusal(
        world.update(made.id, webhook=back | {"url": "https://9.9.9.9/elsewhere"})
    )
    assert refused.fields == ["webhook.headers[0].value"]
    refused = await refusal(world.update(made.id, syslog={"host": "9.9.9.9"}))
    assert refused.fields == ["syslog"]
    same = await world.update(made.id, name=changed.name)
    assert same.etag == changed.etag
    assert len(await world.told("audit.forwarder_updated")) == 1


async def test_roles_and_tenants(world: World) -> None:
    """An Auditor reads; nobody sees another's; those above see those below."""
    made = await world.create()
    auditor = callers.user(ORG.id, Role.AUDITOR)
    assert (await world.get(made.id, auditor)).id == made.id
    assert (await world.get(made.id, callers.user(RESELLER.id))).id == made.id
    api = world.audit.forwarders
    calls: list[Any] = [
        (api.GetForwarder, pb.GetForwarderRequest(id=made.id)),
        (api.UpdateForwarder, pb.UpdateForwarderRequest(id=made.id, name="x")),
        (api.DeleteForwarder, pb.DeleteForwarderRequest(id=made.id)),
        (api.TestForwarder, pb.TestForwarderRequest(id=made.id)),
        (api.ReplayForwarder, _replay(made.id)),
        (api.RotateForwarderSecret, pb.RotateForwarderSecretRequest(id=made.id)),
        (api.ListForwarderQuarantine, pb.ListForwarderQuarantineRequest(id=made.id)),
        (api.RetryForwarderQuarantine, pb.RetryForwarderQuarantineRequest(id=made.id)),
    ]
    for rpc, request in calls:
        refused = await refusal(rpc(request, metadata=callers.user(SISTER.id)))
        assert refused.code is grpc.StatusCode.NOT_FOUND
        reads = type(request).__name__.startswith(("Get", "List"))
        if not reads:
            refused = await refusal(rpc(request, metadata=auditor))
            assert refused.code is grpc.StatusCode.PERMISSION_DENIED
    create = pb.CreateForwarderRequest(
        name="x", kind="webhook", webhook={"url": world.receiver.url}
    )
    refused = await refusal(api.CreateForwarder(create, metadata=auditor))
    assert refused.code is grpc.StatusCode.PERMISSION_DENIED
    create.org_id = str(SISTER.id)
    refused = await refusal(api.CreateForwarder(create, metadata=world.admin))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    mine = await api.ListForwarders(pb.ListForwardersRequest(), metadata=callers.user(SISTER.id))
    assert not mine.forwarders


def _replay(forwarder_id: str) -> pb.ReplayForwarderRequest:
    request = pb.ReplayForwarderRequest(id=forwarder_id)
    getattr(request, "from").FromJsonString("2026-11-24T08:00:00Z")
    return request


async def test_a_tenant_has_so_many(start_world: StartWorld) -> None:
    """One more is refused, and one less makes room."""
    world = await start_world(forwarders_per_tenant=2)
    made = [await world.create(enabled=False) for _ in range(2)]
    refused = await refusal(world.create())
    assert refused.reason == "TOO_MANY_FORWARDERS"
    await world.create(callers.user(ROOT.id), enabled=False)
    await world.audit.forwarders.DeleteForwarder(
        pb.DeleteForwarderRequest(id=made[0].id), metadata=world.admin
    )
    await world.create(enabled=False)
    assert len(await world.told("audit.forwarder_deleted")) == 1


async def test_a_name_is_one_forwarders(world: World) -> None:
    """Of a tenant: commands go by names. What has the same name from before works, and keeps it."""
    made = await world.create(name="SIEM", enabled=False)
    refused = await refusal(world.create(name="SIEM", enabled=False))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "NAME_TAKEN")
    other = await world.create(name="Other", enabled=False)
    assert (await refusal(world.update(other.id, name="SIEM"))).reason == "NAME_TAKEN"
    assert (await world.get(other.id)).etag == other.etag
    await world.create(callers.user(RESELLER.id), name="SIEM", enabled=False)
    await world.audit.sql("UPDATE audit.forwarder SET name = 'SIEM' WHERE name = 'Other'")
    assert (await world.update(other.id, name="SIEM", enabled=True)).enabled
    assert (await world.update(made.id, name="SIEM", enabled=True)).enabled


async def test_an_organisation_that_is_made_later_is_forwarded(world: World) -> None:
    """From its first entry on."""
    await world.create(callers.user(RESELLER.id), start_at="now")
    later = replace(SISTER, id=event().id, name="Later", code="later")
    world.audit.kit.tenants.learn([later])
    await world.record(event(1, later.id), event(2, later.id))
    await world.receiver.until_events(2)
    assert {e["tenantid"] for e in world.receiver.events} == {str(later.id)}


async def test_one_process_sends_at_a_time(world: World, start_world: StartWorld) -> None:
    """A second one takes over when the first stops."""
    made = await world.create()
    await world.record(event(1))
    await world.receiver.until_events(1)
    (row,) = await world.audit.sql("SELECT lease FROM audit.forwarder_state")
    assert row["lease"] is not None
    # What was sent and not noted would come again.
    await world.until(made.id, lambda found: found.state.backlog == 0)
    await world.audit.running.stop(0)
    (row,) = await world.audit.sql("SELECT lease FROM audit.forwarder_state")
    assert row["lease"] is None
    other = await start_world()
    await other.record(event(2))
    await other.receiver.until_events(2)
    assert [e["auditsequence"] for e in other.receiver.events] == [1, 2]
    await other.until(made.id, lambda found: found.state.backlog == 0)


async def test_a_process_that_died_loses_its_lease(world: World, start_world: StartWorld) -> None:
    """And what it had sent and not noted comes again."""
    await world.create(enabled=False)
    await world.record(event(1))
    await world.audit.sql(
        "UPDATE audit.forwarder_state SET lease = gen_random_uuid(),"
        " lease_until = now() + interval '1 day'"
    )
    (found,) = (
        await world.audit.forwarders.ListForwarders(
            pb.ListForwardersRequest(), metadata=world.admin
        )
    ).forwarders
    await world.update(found.id, enabled=True)
    await world.until(found.id, lambda f: f.state.backlog == 1)
    assert world.receiver.posted == []
    await world.audit.sql("UPDATE audit.forwarder_state SET lease_until = now()")
    await world.receiver.until_events(1)


async def test_a_lost_master_key_disables(world: World) -> None:
    """What waits stays, and giving the webhook anew heals it."""
    made = await world.create(enabled=False)
    await world.audit.sql(
        "UPDATE audit.forwarder SET sealed_secrets = set_byte(sealed_secrets, 40, 7)"
        " WHERE get_byte(sealed_secrets, 40) <> 7"
    )
    await world.record(event(1))
    await world.update(made.id, enabled=True)
    found = await world.until(made.id, lambda f: not f.enabled)
    assert (found.state.reason, found.state.backlog) == ("SECRET_UNREADABLE", 1)
    healed = await world.update(made.id, enabled=True, webhook={"url": world.receiver.url})
    assert healed.secret not in ("", made.secret)
    await world.receiver.until_events(1)
