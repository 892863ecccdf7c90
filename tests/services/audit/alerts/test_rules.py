"""Rules of alerts: what counts, etags, and requests that contradict themselves."""

from __future__ import annotations

from datetime import timedelta

import grpc

from evergreen.v1 import audit_pb2 as pb
from tests.services.audit.alerts.conftest import (
    NOW,
    ORG_OWNER,
    RESELLER_OWNER,
    World,
    input_of,
    rule_of,
)
from tests.support.refusals import refusal

LOGINS = "logins-refused"


async def test_a_school_that_changes_a_number_is_told_itself(world: World) -> None:
    """Its own Owners, whomever the reseller tells of all others."""
    for recipients in (
        pb.AlertRecipientsInput(emails=["it@reseller.example"]),
        pb.AlertRecipientsInput(roles=["Auditor"]),
    ):
        await world.update(RESELLER_OWNER, recipients=recipients)
        own = await world.update(rules=[input_of(LOGINS, thresholds={"count": 4})])
        assert list(own.recipients.roles) == ["Owner"]
        assert not own.recipients.emails
        await world.update(inherit=True)
    await world.update(rules=[input_of(LOGINS, thresholds={"count": 4})])
    await world.failed_logins(5)
    await world.watch.read_log()
    assert (await world.notices())[-1][1:] == ([], ["Owner"])


async def test_a_school_says_that_nobody_is_told(world: World) -> None:
    """That looks like what it sees of the reseller's, and is another thing."""
    await world.update(
        RESELLER_OWNER, recipients=pb.AlertRecipientsInput(emails=["it@reseller.example"])
    )
    own = await world.update(recipients=pb.AlertRecipientsInput())
    assert not own.inherited
    await world.failed_logins(21)
    await world.watch.read_log()
    assert await world.notices() == []


async def test_the_first_change_with_an_etag(world: World) -> None:
    """Of the root tenant, a reseller and a school; again when nothing is said any more."""
    for by in (world.audit.owner, RESELLER_OWNER, ORG_OWNER):
        for count in (3, 4):
            shown = await world.rules(by)
            changed = await world.update(
                by, rules=[input_of(LOGINS, thresholds={"count": count})], etag=shown.etag
            )
            assert changed.etag == (await world.rules(by)).etag != shown.etag
        await world.update(by, inherit=True, etag=changed.etag)


async def test_an_etag_does_not_come_again(world: World) -> None:
    """Rules that were removed and made anew are others."""
    first = await world.update(rules=[input_of(LOGINS, thresholds={"count": 3})])
    await world.update(inherit=True)
    await world.update(rules=[input_of(LOGINS, thresholds={"count": 4})])
    late = world.update(rules=[input_of(LOGINS, enabled=False)], etag=first.etag)
    assert (await refusal(late)).code is grpc.StatusCode.ABORTED
    assert rule_of(await world.rules(), LOGINS).enabled


async def test_requests_that_contradict_themselves(world: World) -> None:
    """Each is refused by its field, and nothing is changed."""
    later = NOW + timedelta(days=1)
    for wanted, field in (
        ({"inherit": True, "rules": [input_of(LOGINS, enabled=False)]}, "inherit"),
        ({"inherit": True, "recipients": pb.AlertRecipientsInput()}, "inherit"),
        ({"rules": [input_of(LOGINS, later, resume=True)]}, "rules[0].resume"),
        ({"rules": [input_of(LOGINS, NOW)]}, "rules[0].pausedUntil"),
        ({"rules": [input_of(LOGINS), input_of(LOGINS, enabled=False)]}, "rules[1].kind"),
    ):
        refused = await refusal(world.update(**wanted))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    assert not (await world.rules()).HasField("updated_at")
    refused = await refusal(world.alerts(kind="nonsense"))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["kind"])
