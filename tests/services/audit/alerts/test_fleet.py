"""Devices of an organisation are counted by asking the services that know them."""

from __future__ import annotations

from datetime import timedelta

from services.audit.alerts.domain import Rule
from services.audit.alerts.fleet import Counts, count
from services.audit.reports.sources import Sources
from tests.services.audit.reports.conftest import AS_OF, World, start_world, world
from tests.support.audit import ORG, SISTER, start_audit

__all__ = ["start_audit", "start_world", "world"]


async def test_devices_are_counted(world: World) -> None:
    """Those in use; unseen since their last call or their enrollment; behind after some hours."""
    sources = Sources(world.audit.kit.channel)
    week, two_days = timedelta(days=7), timedelta(hours=48)
    found = await count(sources, ORG.id, week, two_days, AS_OF)
    assert found == Counts(in_use=3, unseen=2, behind=2)
    assert (await count(sources, SISTER.id, week, two_days, AS_OF)).unseen == 1
    longer = await count(sources, ORG.id, timedelta(days=50), timedelta(days=11), AS_OF)
    assert longer == Counts(in_use=3, unseen=1, behind=0)
    rule = Rule(thresholds={"percent": 50, "count": 1})
    (unseen,) = found.not_seen(rule)
    assert unseen.facts == {"number": 2, "of": 3, "days": 7}
    assert len(found.far_behind(rule)) == 1
    assert found.not_seen(Rule()) == []
