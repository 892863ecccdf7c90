"""Alerts are open while their condition holds: also through pauses, and whatever others send."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest

from evergreen.v1 import audit_pb2 as pb
from servicekit.security.certificates import last_end_of
from services.audit.alerts import board
from services.audit.forward import health_store
from services.audit.forward import store as forwarders
from services.audit.forward.domain import Disabled
from services.audit.tree.witnesses import Away
from tests.services.audit.alerts.conftest import (
    DEVICE,
    NOW,
    ORG_OWNER,
    RESELLER_OWNER,
    World,
    input_of,
    rule_of,
)
from tests.support import callers
from tests.support.audit import ORG, SISTER
from tests.support.receivers import Authority
from tests.support.refusals import refusal

ATTESTATION = "attestation-failed"
UNSEEN = "devices-not-seen"


def of_version_four(pem: str) -> str:
    """The certificate with another version number, which OpenSSL takes all the same."""
    lines = pem.strip().splitlines()
    der = bytearray(base64.b64decode("".join(lines[1:-1])))
    at = der.index(b"\xa0\x03\x02\x01\x02")
    der[at + 4] = 3
    return f"{lines[0]}\n{base64.b64encode(der).decode()}\n{lines[-1]}\n"


async def test_a_certificate_that_cannot_be_read(world: World) -> None:
    """It is refused; one that is there already keeps nothing else from being looked at."""
    broken = of_version_four(Authority().pem)
    request = pb.CreateForwarderRequest(
        name="x", kind="webhook", webhook={"url": "https://9.9.9.9/", "ca_pem": broken}
    )
    refused = await refusal(
        world.audit.forwarders.CreateForwarder(request, metadata=world.audit.owner)
    )
    assert refused.fields == ["webhook.caPem"]
    await world.forwarder(1, ca_pem=broken)
    await world.forwarder(2, failing_since=NOW - timedelta(hours=1))
    await world.backup(timedelta(hours=27))
    await world.watch.look()
    assert [alert.kind for alert in await world.alerts()] == ["forwarder-failing"]
    found = await world.alerts(by=world.audit.owner)
    assert {alert.kind for alert in found} == {"backup-too-old", "forwarder-failing"}


async def test_certificates_of_forwarders_are_their_tenants_matter(world: World) -> None:
    """The school is told, and not the root; of those that are trusted the last one counts."""
    ca = Authority()
    ends = last_end_of(ca.pem.encode())
    forwarder = await world.forwarder(ca_pem=ca.pem)
    await world.forwarder(6, ca_pem=ca.issue("old", days=-1).certificate + ca.pem)
    world.now = ends - timedelta(days=22)
    await world.watch.look()
    assert await world.alerts() == []
    await world.audit.sql("DELETE FROM audit.forwarder WHERE id <> $1", forwarder)
    world.now = ends - timedelta(days=20)
    await world.watch.look()
    (alert,) = await world.alerts(by=world.audit.owner)
    assert (alert.org_id, alert.subject) == (str(ORG.id), f"forwarders/{forwarder}")
    assert alert.text == f"a certificate of the forwarder “SIEM” ends on {ends:%Y-%m-%d}"


@pytest.mark.parametrize("how", ["paused", "off"])
async def test_verdicts_are_known_while_nobody_wants_to_hear_of_them(
    world: World, how: str
) -> None:
    """What ends in a pause is resolved; what fails in it, or while off, is raised afterwards."""
    other = "devices/other"
    await world.verdict("VERIFIED", "FAILED")
    await world.watch.read_log()
    mails = len(await world.notices())
    off = input_of(ATTESTATION, NOW + timedelta(days=9))
    if how == "off":
        off = input_of(ATTESTATION, enabled=False)
    await world.update(rules=[off])
    await world.happened("enrollment.device_decommissioned", DEVICE)
    await world.verdict("VERIFIED", "FAILED", other)
    await world.watch.read_log()
    await world.watch.look()
    assert await world.alerts(open=True) == []
    assert [one["subject"] for one in await world.told("resolved")] == [DEVICE]
    # That it is off is told, and nothing in a pause.
    assert len(await world.notices()) == mails + (how == "off")
    await world.update(rules=[input_of(ATTESTATION, resume=True, enabled=True)])
    await world.watch.look()
    assert [alert.subject for alert in await world.alerts(open=True)] == [other]
    assert len(await world.told("raised")) == 2
    await world.verdict("FAILED", "VERIFIED", other)
    await world.watch.read_log()
    assert await world.alerts(open=True) == []


async def test_beyond_the_cap(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that found no room is raised when there is some."""
    monkeypatch.setattr(board, "MOST_OPEN", 1)
    for device in ("devices/a", "devices/b"):
        await world.verdict("VERIFIED", "FAILED", device)
    await world.watch.read_log()
    (first,) = await world.alerts(open=True)
    await world.verdict("FAILED", "VERIFIED", first.subject)
    await world.watch.read_log()
    await world.watch.look()
    (second,) = await world.alerts(open=True)
    assert second.subject != first.subject


async def test_a_pause_and_off(world: World) -> None:
    """What is off is resolved also in a pause."""
    await world.failed_logins(21)
    await world.watch.read_log()
    until = NOW + timedelta(days=14)
    await world.update(rules=[input_of("logins-refused", until, enabled=False)])
    await world.watch.look()
    assert await world.alerts(open=True) == []
    assert len(await world.told("resolved")) == 1


async def test_a_forwarder_that_the_system_disabled(world: World) -> None:
    """It delivers nothing: also one that was good until then. Enabled again it begins anew."""
    made = await world.audit.forwarders.CreateForwarder(
        pb.CreateForwarderRequest(
            name="SIEM", kind="webhook", enabled=False, webhook={"url": "https://9.9.9.9/"}
        ),
        metadata=ORG_OWNER,
    )
    await world.audit.sql(
        "UPDATE audit.forwarder SET enabled = true, disabled_reason = '' WHERE id = $1::text::uuid",
        made.id,
    )
    async with world.audit.kit.database.system_transaction("a test") as connection:
        scope = world.audit.kit.tenants.scope(ORG.id)
        (forwarder,) = (await forwarders.list_forwarders(connection, scope, None, 9)).items
        assert await health_store.disable(connection, forwarder, Disabled.GONE, world.now)
    await world.update(rules=[input_of("forwarder-failing", thresholds={"minutes": 60})])
    await world.watch.look()
    assert await world.alerts() == []
    world.now += timedelta(minutes=61)
    await world.watch.look()
    (alert,) = await world.alerts(open=True)
    assert alert.kind == "forwarder-failing"
    world.now += timedelta(days=30)
    await world.audit.forwarders.UpdateForwarder(
        pb.UpdateForwarderRequest(id=made.id, enabled=True), metadata=ORG_OWNER
    )
    await world.watch.look()
    world.now += timedelta(minutes=16)
    await world.watch.look()
    assert await world.alerts(open=True) == []


async def test_an_archived_school(world: World) -> None:
    """Its alerts are resolved, nobody gets a mail, and nothing is raised until it is back."""
    await world.verdict("VERIFIED", "FAILED")
    await world.forwarder(failing_since=NOW - timedelta(hours=1))
    world.devices.unseen[ORG.id] = 9
    await world.watch.read_log()
    await world.watch.look()
    world.watch.leads = True
    await world.count()
    assert len(await world.alerts(open=True)) == 3
    mails = len(await world.notices())
    world.becomes("archived")
    await world.watch.look()
    await world.failed_logins(30)
    for _ in range(2):
        world.now += timedelta(days=2)
        await world.watch.read_log()
        await world.watch.look()
        await world.count()
    assert await world.alerts(open=True, by=RESELLER_OWNER) == []
    assert len(await world.told("resolved")) == 3
    assert len(await world.notices()) == mails
    world.becomes("active")
    await world.watch.look()
    found = {alert.kind for alert in await world.alerts(open=True)}
    assert found == {ATTESTATION, "forwarder-failing"}


async def test_rows_that_cannot_be_read(world: World) -> None:
    """Rules of another release or a bad repair are none, an alert of another kind has its name."""
    await world.update(rules=[input_of("logins-refused", enabled=False)])
    for rules in ("[1]", '{"logins-refused": {"enabled": 7}, "attestation-failed": "x"}'):
        await world.audit.sql("UPDATE audit.alert_rules SET rules = $1", rules)
        await world.watch.read_log()
        await world.watch.look()
    await world.audit.sql(
        "INSERT INTO audit.alert (id, tenant_id, kind, subject, facts, raised_at)"
        " VALUES ($1, $2, 'rollout-stopped', '', '3', $3)",
        SISTER.id,
        SISTER.id,
        NOW - timedelta(days=2),
    )
    await world.failed_logins(21)
    await world.watch.read_log()
    await world.watch.look()
    found = {alert.kind: alert.text for alert in await world.alerts(by=RESELLER_OWNER)}
    assert found["rollout-stopped"] == "rollout-stopped"
    assert "logins-refused" in found
    assert any("Open alerts" in subject for subject in await world.subjects())


async def test_devices_are_counted_by_the_rules_of_that_moment(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is turned off while they are counted raises nothing."""
    world.devices.unseen[ORG.id] = 9
    world.watch.leads = True
    devices = world.devices.devices

    async def turned_off(org_id: object) -> object:
        await world.update(rules=[input_of(UNSEEN, enabled=False)])
        async for page in devices(org_id):  # type: ignore[arg-type]
            yield page

    with monkeypatch.context() as patch:
        patch.setattr(world.devices, "devices", turned_off)
        await world.count()
    assert ORG.id in world.devices.asked
    assert await world.alerts() == []


async def test_how_often_devices_are_counted(world: World) -> None:
    """Once an hour, sooner where an alert may end, and not at all while all is paused."""
    world.devices.unseen = {ORG.id: 9, SISTER.id: 9}
    world.watch.leads = True
    await world.count()
    assert {alert.org_id for alert in await world.alerts(by=RESELLER_OWNER)} == {
        str(ORG.id),
        str(SISTER.id),
    }
    until = world.now + timedelta(days=40)
    await world.update(
        callers.user(SISTER.id),
        rules=[input_of(kind, until) for kind in (UNSEEN, "policy-behind")],
    )

    async def asked_after(minutes: float) -> set[object]:
        world.devices.asked.clear()
        world.now += timedelta(minutes=minutes)
        await world.count()
        return {one for one in world.devices.asked if one in (ORG.id, SISTER.id)}

    assert await asked_after(20) == set()
    assert await asked_after(41) == {ORG.id}
    world.devices.unseen[ORG.id] = 0
    assert await asked_after(61) == {ORG.id}
    assert len(await world.alerts(open=True)) == 1
    assert await asked_after(16) == {ORG.id}
    assert await world.alerts(open=True) == []
    # In the pause it stays as it is, and no daily mail tells of it.
    world.now += timedelta(days=2)
    await world.watch.look()
    assert len(await world.alerts(open=True, by=RESELLER_OWNER)) == 1
    assert not any("Open" in subject for subject in await world.subjects())


async def test_a_lease_of_a_clock_that_was_wrong(world: World) -> None:
    """A process whose clock was a day ahead, and that died, keeps nobody from looking."""
    await world.audit.sql(
        "INSERT INTO audit.alert_lead (lease, lease_until) VALUES ($1, $2)"
        " ON CONFLICT (only_row) DO UPDATE SET lease = $1, lease_until = $2",
        ORG.id,
        datetime.now(UTC) + timedelta(days=400),
    )
    assert await world.watch.lead()


async def test_a_witness_that_stays_away(world: World) -> None:
    """The root is told after two hours, after a day and when it signs again; a process that has
    just begun does not resolve what the one before it told."""
    root = world.audit.owner
    world.away[:] = [Away("district", NOW, "TIMEOUT")]
    world.now += timedelta(minutes=119)
    await world.watch.look()
    assert await world.alerts(by=root) == []
    world.now += timedelta(minutes=1)
    await world.watch.look()
    (alert,) = await world.alerts(by=root)
    assert (alert.kind, alert.subject) == ("witness-away", "witnesses/district")
    assert alert.text == "the witness “district” does not sign the audit log (TIMEOUT)"
    assert await world.alerts() == []

    # Another process looks, which has asked in vain for a moment.
    world.away[:] = [Away("district", world.now, "NO_SIGNATURE")]
    for _ in range(2):
        world.now += timedelta(minutes=20)
        await world.watch.look()
    (alert,) = await world.alerts(by=root, open=True)
    assert "NO_SIGNATURE" in alert.text
    world.now += timedelta(days=1)
    await world.watch.look()
    world.away.clear()
    for _ in range(2):
        await world.watch.look()
        world.now += timedelta(minutes=16)
    assert await world.alerts(by=root, open=True) == []
    assert len(await world.told("raised")) == len(await world.told("resolved")) == 1
    said = [one.partition(":")[0] for one in await world.subjects()]
    assert [one for one in said if one != "Open alerts"] == ["Alert", "Still", "Resolved"]


async def test_who_cannot_say_something_of_witnesses(world: World) -> None:
    """They are the installation's: the root's rules count alone."""
    change = input_of("witness-away", enabled=False)
    refused = await refusal(world.update(rules=[change]))
    assert refused.fields == ["rules[0].kind"]
    world.away[:] = [Away("district", NOW - timedelta(hours=3), "TIMEOUT")]
    await world.update(by=world.audit.owner, rules=[change])
    await world.watch.look()
    assert await world.alerts(by=world.audit.owner) == []
    changed = await world.update(
        by=world.audit.owner,
        rules=[input_of("witness-away", enabled=True, thresholds={"hours": 4})],
    )
    assert rule_of(changed, "witness-away").thresholds.hours == 4
    await world.watch.look()
    assert await world.alerts(by=world.audit.owner) == []
    world.now += timedelta(hours=1)
    await world.watch.look()
    assert len(await world.alerts(by=world.audit.owner)) == 1
