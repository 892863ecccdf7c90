"""Devices of an organisation are counted by asking the services that know them."""

from __future__ import annotations

from services.audit.alerts.domain import Rule
from services.audit.alerts.fleet import Counts, count
from services.audit.reports.sources import Sources
from tests.services.audit.reports.conftest import AS_OF, World, start_world, world
from tests.support.audit import ORG, SISTER, start_audit

__all__ = ["start_audit", "start_world", "world"]


async def test_devices_are_counted(world: World) -> None:
    """Those in use; unseen since their last call or their enrollment; behind after some hours."""
    sources = Sources(world.audit.kit.channel)
    found = await count(sources, ORG.id, 7, 48, AS_OF)
    assert found == Counts(7, 48, in_use=3, unseen=2, behind=2)
    assert (await count(sources, SISTER.id, 7, 48, AS_OF)).unseen == 1
    longer = await count(sources, ORG.id, 50, 11 * 24, AS_OF)
    assert longer == Counts(50, 264, in_use=3, unseen=1, behind=0)
    rule = Rule(thresholds={"percent": 50, "count": 1})
    (unseen,) = found.not_seen(rule)
    assert unseen.facts == {"number": 2, "of": 3, "days": 7}
    assert len(found.far_behind(rule)) == 1
    assert found.not_seen(Rule()) == []
