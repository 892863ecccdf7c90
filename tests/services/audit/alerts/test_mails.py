"""Mails about alerts: which are left out, and what makes up for them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

from services.audit.notices.domain import MOST_AN_HOUR
from tests.services.audit.alerts.conftest import World, input_of
from tests.support.audit import ORG


async def flood(world: World) -> None:
    """More mails about devices than there may be in an hour."""
    for number in range(MOST_AN_HOUR + 5):
        await world.verdict("VERIFIED", "FAILED", f"devices/{number:02}")
        await world.watch.read_log()
        world.now += timedelta(seconds=1)


async def test_what_was_left_out_is_in_the_daily_mail(world: World) -> None:
    """An hour later, also what is over by then; and then once a day, the newest first."""
    await flood(world)
    assert len(await world.notices()) == MOST_AN_HOUR
    last = f"devices/{MOST_AN_HOUR + 4:02}"
    for number in range(MOST_AN_HOUR):
        await world.verdict("FAILED", "VERIFIED", f"devices/{number:02}")
    await world.verdict("FAILED", "VERIFIED", last)
    await world.watch.read_log()
    await world.watch.look()
    assert len(await world.notices()) == MOST_AN_HOUR
    world.now += timedelta(minutes=61)
    await world.watch.look()
    await world.watch.look()
    subjects = await world.subjects()
    assert subjects[MOST_AN_HOUR:] == ["Open alerts: 4 (Tenant 163)"]
    text = json.dumps((await world.notices())[-1][0][0])
    assert f"Resolved: the boot of {last}" in text
    assert text.index(f"Open: the boot of devices/{MOST_AN_HOUR + 3:02}") < text.index("Resolved")
    world.now += timedelta(hours=25)
    await world.watch.look()
    assert (await world.subjects())[-1] == "Open alerts: 4 (Tenant 163)"
    assert last not in json.dumps((await world.notices())[-1][0])


async def test_the_daily_mail_has_a_number_of_its_own(world: World) -> None:
    """It is sent also in an hour that is full."""
    await world.verdict("VERIFIED", "FAILED", "devices/old")
    await world.watch.read_log()
    world.now += timedelta(hours=24)
    await flood(world)
    await world.watch.look()
    assert (await world.subjects())[-1].startswith("Open alerts:")


async def test_a_pause_stops_mails(world: World) -> None:
    """The daily one, too."""
    await world.verdict("VERIFIED", "FAILED")
    await world.watch.read_log()
    until = world.now + timedelta(days=9)
    await world.update(rules=[input_of("attestation-failed", until)])
    mails = len(await world.notices())
    for _ in range(2):
        world.now += timedelta(days=2)
        await world.watch.look()
    assert len(await world.notices()) == mails
    world.now += timedelta(days=6)
    await world.watch.look()
    assert (await world.subjects())[-1].startswith("Open alerts: 1")


async def test_names_of_before_there_were_rules(world: World) -> None:
    """What identity refuses in a subject is left out of it."""
    world.audit.kit.tenants.learn([replace(ORG, name="Lin\u200bden\u202e School")])
    await world.failed_logins(21)
    await world.watch.read_log()
    ((texts, _, _),) = await world.notices()
    assert texts[0]["subject"].endswith("(Linden School)")
    assert texts[0]["paragraphs"][0] == "Linden School"


async def test_mails_of_one_school_are_no_matter_of_another(world: World) -> None:
    """Those of the root tenant are told, however many a school has."""
    await flood(world)
    await world.backup(timedelta(hours=27))
    await world.watch.look()
    rows = await world.audit.sql("SELECT DISTINCT tenant_id FROM audit.notice")
    assert len(rows) == 2
