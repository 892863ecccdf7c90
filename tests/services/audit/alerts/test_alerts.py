"""Alerts: when they are raised, kept and resolved, what tells of them, and who says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import audit_pb2 as pb
from services.audit.alerts import levels
from services.audit.alerts.board import Board
from services.audit.alerts.domain import Happened, Rule, is_many, peaks
from services.audit.notices.domain import MOST_AN_HOUR
from services.audit.notices.service import Notices
from tests.services.audit.alerts.conftest import (
    DEVICE,
    NOW,
    RESELLER_OWNER,
    USER,
    World,
    rule_of,
)
from tests.support import callers
from tests.support.audit import (
    ORG,
    ROOT,
    SISTER,
    STRANGER,
)
from tests.support.refusals import refusal


async def test_a_user_who_is_guessed_at(world: World) -> None:
    """One alert for all guesses, one event and one mail; it ends when the hour has half as many."""
    await world.failed_logins(20)
    await world.watch.read_log()
    assert await world.alerts() == []
    await world.failed_logins(3)
    await world.watch.read_log()
    await world.watch.read_log()
    (alert,) = await world.alerts(open=True)
    assert (alert.kind, alert.subject) == ("logins-refused", USER)
    assert alert.text == "23 logins failed within an hour"
    (raised,) = await world.told("raised")
    assert (raised["kind"], raised["facts"]) == ("logins-refused", {"number": 23})
    ((texts, addresses, roles),) = await world.notices()
    assert (addresses, roles) == ([], ["Owner"])
    assert texts[0]["subject"].startswith("Alert: 23 logins failed")
    assert texts[1]["subject"].startswith("Alarm: 23 Anmeldungen")
    assert "owner@school.example" not in json.dumps(texts)
    await world.watch.look()
    assert await world.told("resolved") == []
    world.now += timedelta(minutes=50)
    await world.failed_logins(15)
    world.now += timedelta(minutes=20)
    await world.watch.look()
    assert len(await world.alerts(open=True)) == 1
    world.now += timedelta(minutes=50)
    await world.watch.look()
    assert await world.alerts(open=True) == []
    assert len(await world.told("resolved")) == 1
    assert len(await world.told("raised")) == 1
    assert len(await world.alerts(open=False)) == 1


async def test_what_is_recorded_late_counts_in_its_hour(world: World) -> None:
    """The service was away for a day: what happened meanwhile is told, and is over."""
    await world.failed_logins(21, ago=24 * 60)
    await world.failed_logins(5)
    await world.watch.read_log()
    assert len(await world.told("raised")) == 1
    await world.watch.look()
    assert len(await world.told("resolved")) == 1


async def test_logins_with_unknown_addresses_are_the_root_tenants(world: World) -> None:
    """Sums count as often as they say."""
    await world.happened(
        "identity.logins_refused", "logins/1", tenant=ROOT.id, after={"count": 201}
    )
    await world.watch.read_log()
    (alert,) = await world.alerts(by=world.audit.owner)
    assert (alert.org_id, alert.subject) == (str(ROOT.id), "")
    assert await world.alerts() == []


async def test_a_device_that_fails_its_check(world: World) -> None:
    """Only one that was good before; the last word counts, and one that is gone is no matter."""
    await world.verdict("NONE", "FAILED")
    await world.watch.read_log()
    assert await world.alerts() == []
    await world.verdict("VERIFIED", "FAILED")
    await world.verdict("FAILED", "VERIFIED")
    await world.watch.read_log()
    assert await world.alerts() == []
    await world.verdict("VERIFIED", "FAILED")
    await world.verdict("VERIFIED", "FAILED", "devices/other")
    await world.watch.read_log()
    assert {alert.subject for alert in await world.alerts(open=True)} == {DEVICE, "devices/other"}
    # Both in one mail.
    assert len(await world.notices()) == 1
    await world.watch.look()
    assert len(await world.alerts(open=True)) == 2
    await world.verdict("FAILED", "KNOWN_TPM")
    await world.happened("enrollment.device_decommissioned", "devices/other")
    await world.watch.read_log()
    assert await world.alerts(open=True) == []


async def test_a_crash_loses_and_doubles_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written before the end of a transaction is not there; two processes raise one."""
    await world.failed_logins(21)

    async def dies(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch, pytest.raises(asyncio.CancelledError):
        patch.setattr(Notices, "add", dies)
        await world.watch.read_log()
    assert await world.alerts() == []
    assert await world.told("raised") == []
    await asyncio.gather(*(world.watch.read_log() for _ in range(4)))
    assert len(await world.alerts()) == 1
    assert len(await world.told("raised")) == 1
    assert len(await world.notices()) == 1


async def test_one_tenant_keeps_no_other_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be looked at is tried again a minute later, and nothing of it is lost."""
    settle = Board.settle

    async def breaks(self: Board, connection: Any, tenant: Any, *more: Any, **named: Any) -> None:
        if tenant.id == ORG.id:
            raise RuntimeError("broken")
        await settle(self, connection, tenant, *more, **named)

    for tenant in (ORG.id, SISTER.id):
        await world.failed_logins(21, tenant=tenant)
    with monkeypatch.context() as patch:
        patch.setattr(Board, "settle", breaks)
        await world.watch.read_log()
    assert [alert.org_id for alert in await world.alerts(by=RESELLER_OWNER)] == [str(SISTER.id)]
    await world.watch.read_log()
    assert len(await world.alerts(by=RESELLER_OWNER)) == 1
    world.now += timedelta(minutes=2)
    await world.watch.read_log()
    assert len(await world.alerts(by=RESELLER_OWNER)) == 2


async def test_entries_of_before_raise_nothing(world: World) -> None:
    """A damaged or redacted record counts once and stops nothing."""
    await world.failed_logins(19)
    await world.audit.sql("UPDATE audit.entry SET record = '' WHERE tenant_id = $1", ORG.id)
    await world.verdict("VERIFIED", "FAILED")
    await world.audit.sql(
        "UPDATE audit.entry SET record = '' WHERE action = 'attestation.verdict_changed'"
    )
    await world.failed_logins(2)
    await world.watch.read_log()
    assert [alert.kind for alert in await world.alerts()] == ["logins-refused"]


async def test_a_forwarder_that_fails(world: World) -> None:
    """After a quarter of an hour, again after a day; resolved when it has delivered for as long."""
    forwarder = await world.forwarder(failing_since=NOW)
    await world.watch.look()
    assert await world.alerts() == []
    world.now += timedelta(minutes=16)
    await world.watch.look()
    (alert,) = await world.alerts()
    assert alert.subject == f"forwarders/{forwarder}"
    assert alert.text == "the forwarder “SIEM” delivers nothing"
    world.now += timedelta(days=1)
    await world.watch.look()
    await world.watch.look()
    subjects = [texts[0]["subject"] for texts, _, _ in await world.notices()]
    assert [subject.partition(":")[0] for subject in subjects] == ["Alert", "Still", "Open alerts"]
    assert len(await world.told("raised")) == 1
    await world.audit.sql("UPDATE audit.forwarder_state SET failing_since = NULL")
    await world.watch.look()
    assert len(await world.alerts(open=True)) == 1
    world.now += timedelta(minutes=16)
    await world.watch.look()
    assert await world.alerts(open=True) == []
    assert len(await world.told("resolved")) == 1


async def test_backups_that_become_old(world: World) -> None:
    """Of the root tenant alone, and only when there was one."""
    await world.watch.look()
    await world.backup(timedelta(hours=27))
    await world.watch.look()
    (alert,) = await world.alerts(by=world.audit.owner)
    assert (alert.kind, alert.text) == ("backup-too-old", "the newest backup is 27 hours old")
    assert await world.alerts() == []


async def test_rules_count_below(world: World) -> None:
    """A reseller says it for its schools; a school that says something begins with what counted."""
    assert not (await world.rules()).inherited
    changed = await world.update(
        RESELLER_OWNER,
        rules=[
            pb.AlertRuleInput(kind="logins-refused", thresholds=pb.AlertThresholdsInput(count=2)),
            pb.AlertRuleInput(kind="attestation-failed", enabled=False),
        ],
        recipients=pb.AlertRecipientsInput(emails=["it@reseller.example"]),
    )
    assert list(changed.recipients.emails) == ["it@reseller.example"]
    shown = await world.rules()
    assert shown.inherited
    assert rule_of(shown, "logins-refused").thresholds.count == 2
    # Whom the reseller tells is its own business.
    assert "reseller" not in str(shown)
    await world.failed_logins(3)
    await world.verdict("VERIFIED", "FAILED")
    await world.watch.read_log()
    assert [alert.kind for alert in await world.alerts()] == ["logins-refused"]
    ((_, addresses, roles),) = await world.notices()
    assert (addresses, roles) == (["it@reseller.example"], [])
    own = await world.update(rules=[pb.AlertRuleInput(kind="attestation-failed", enabled=True)])
    assert rule_of(own, "logins-refused").thresholds.count == 2
    assert (list(own.recipients.emails), own.inherited) == ([], False)
    assert rule_of(await world.rules(RESELLER_OWNER), "attestation-failed").enabled is False
    assert (await world.update(inherit=True)).inherited
    rows = await world.audit.sql(
        "SELECT payload FROM audit.outbox WHERE subject LIKE '%alert_rules_updated' ORDER BY id"
    )
    assert len(rows) == 3
    assert "it@reseller" not in "".join(row["payload"] for row in rows[1:])
    # What changes nothing writes nothing.
    await world.update(inherit=True)
    assert len(await world.told("rules_updated")) == 3


async def test_a_kind_that_is_paused_or_off(world: World) -> None:
    """While it is paused nothing is raised; turned off, what is open is resolved."""
    await world.failed_logins(21)
    await world.watch.read_log()
    until = NOW + timedelta(days=14)
    paused = pb.AlertRuleInput(kind="logins-refused")
    paused.paused_until.FromDatetime(until)
    await world.update(rules=[paused])
    world.now += timedelta(hours=3)
    await world.failed_logins(30, tenant=ORG.id)
    await world.watch.read_log()
    await world.watch.look()
    assert len(await world.alerts(open=True)) == 1
    await world.update(rules=[pb.AlertRuleInput(kind="logins-refused", resume=True, enabled=False)])
    await world.watch.look()
    assert await world.alerts(open=True) == []


async def test_who_sees_and_says_what(world: World) -> None:
    """Alerts and rules of others are not there; Auditors read; what is wrong is said by field."""
    await world.failed_logins(21)
    await world.watch.read_log()
    assert len(await world.alerts(by=RESELLER_OWNER)) == 1
    assert await world.alerts(by=callers.user(STRANGER.id)) == []
    assert await world.alerts(by=callers.user(SISTER.id)) == []
    auditor = callers.user(ORG.id, Role.AUDITOR)
    assert len(await world.alerts(by=auditor)) == 1
    await world.rules(auditor)
    assert (await refusal(world.update(auditor, inherit=True))).reason == "ROLE_MAY_NOT"
    calls: tuple[Callable[..., Awaitable[Any]], ...] = (world.rules, world.update, world.alerts)
    for call in calls:
        refused = await refusal(call(by=callers.user(SISTER.id), org_id=str(ORG.id)))
        assert refused.code is grpc.StatusCode.NOT_FOUND
    for rule, field_name in (
        (pb.AlertRuleInput(kind="nonsense"), "rules[0].kind"),
        (pb.AlertRuleInput(kind="backup-too-old"), "rules[0].kind"),
        (
            pb.AlertRuleInput(kind="logins-refused", thresholds=pb.AlertThresholdsInput(days=3)),
            "rules[0].thresholds.days",
        ),
        (
            pb.AlertRuleInput(kind="logins-refused", thresholds=pb.AlertThresholdsInput(count=0)),
            "rules[0].thresholds.count",
        ),
    ):
        assert (await refusal(world.update(rules=[rule]))).fields == [field_name]
    wrong = world.update(recipients=pb.AlertRecipientsInput(emails=["not an address"]))
    assert (await refusal(wrong)).fields == ["recipients.emails[0]"]
    assert not (await world.rules()).inherited
    refused = await refusal(world.update(etag="another"))
    assert refused.code is grpc.StatusCode.ABORTED


async def test_a_flood_of_mails_is_bounded(world: World) -> None:
    """The alerts are there all the same."""
    for number in range(MOST_AN_HOUR + 5):
        await world.verdict("VERIFIED", "FAILED", f"devices/{number}")
        await world.watch.read_log()
    assert len(await world.alerts(page_size=500)) == MOST_AN_HOUR + 5
    assert len(await world.notices()) == MOST_AN_HOUR
    # One of another kind is told all the same.
    await world.failed_logins(21)
    await world.watch.read_log()
    assert (await world.subjects())[-1].startswith("Alert: 21 logins failed")


def test_the_most_within_an_hour() -> None:
    """The hour slides, and only hours with something new count; what has no subject counts once."""

    def happened(minutes: float, subject: str, amount: int = 1, new: bool = True) -> Happened:
        return Happened(NOW + timedelta(minutes=minutes), subject, amount, new)

    one_hour = [happened(0, "a"), happened(30, "b", 2), happened(59, "a")]
    found = [*one_hour, happened(61, "", 5), happened(200, "a")]
    assert peaks(found) == {"a": 2, "b": 2, "": 8}
    known = [replace(one, is_new=False) for one in found]
    assert peaks(known) == {}
    assert peaks([*known[:4], found[4]]) == {"a": 1, "": 1}
    # Recorded late: it counts in the hours behind it.
    assert peaks([found[0], *known[1:]]) == {"a": 2, "": 4}


def test_thresholds() -> None:
    """More than a number and more than a part."""
    assert is_many(6, 40, 10, 5)
    assert not is_many(5, 40, 10, 5)
    assert not is_many(6, 60, 10, 5)
    assert not is_many(0, 0, 0, 0)


def test_certificates_that_end(tmp_path: Path) -> None:
    """Three weeks before, and again one week before; what cannot be read says nothing."""
    (tmp_path / "broken.pem").write_text("no certificate")
    files = {"a": tmp_path / "broken.pem", "b": tmp_path / "none.pem"}
    assert levels.ends_of_files(files) == []
    ends = [levels.Ending("service", NOW + timedelta(days=20))]
    (found,) = levels.certificates(ends, Rule(), NOW)
    assert (found.subject, found.step) == ("service", 0)
    (found,) = levels.certificates(ends, Rule(), NOW + timedelta(days=14))
    assert found.step == 1
    assert levels.certificates(ends, Rule(), NOW - timedelta(days=2)) == []
