"""From the last release to this one, and back, under load: with real changes of the schema."""

from __future__ import annotations

import time
from pathlib import Path

from contract.contexts import CONTEXTS
from tests.e2e.world import Org, make_org, ok
from tests.fakes.agent import Agent, CallError
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.images import RELEASED, TREE
from tests.kubernetes.load import load
from tests.kubernetes.releases import image, production
from tests.support.stack import until
from tests.upgrade.released import unpack


def _enrolled(org: Org) -> Agent:
    """A device; the pods of a first installation may still be getting to know each other."""
    found: list[Agent] = []

    def tried() -> bool:
        try:
            found.append(org.device())
        except CallError:
            return False
        return True

    until(tried, 120, "no device enrolls", pause=1)
    return found[0]


def test_an_upgrade_and_a_rollback_lose_no_call(cluster: Cluster, tmp_path: Path) -> None:
    """The production profile, 20 calls a second of devices and a person; then `helm test`."""
    chart = unpack(tmp_path / "released") / "helm" / "evergreen"
    with (
        production(
            cluster, tmp_path, chart=chart, rights="SUPERUSER", **image(RELEASED)
        ) as release,
        release.reached(tmp_path) as stack,
        stack.client(stack.login()["token"]) as root,
    ):
        namespace = release.namespace
        org = make_org(stack, root)
        org.publish()
        devices = [_enrolled(org) for _ in range(6)]
        before = namespace.secret("ev-gateway-tls")
        works = [
            *(device.pull for device in devices),
            *(device.report_state for device in devices),
            lambda: ok(root.get("/api/devices", params={"orgId": org.id})),
        ]
        with load(works, 20) as found:
            time.sleep(10)
            release.upgrade(image(TREE))
            time.sleep(10)
            upgraded = found.calls
            for component in (*CONTEXTS, "gateway"):
                images = {
                    pod["spec"]["containers"][0]["image"]
                    for pod in namespace.pods(component).values()
                }
                assert component == "gateway" or images == {TREE}, component
            release.rollback(1)
            time.sleep(10)
        assert not found.failures, "\n".join(found.failures)
        assert found.calls - upgraded > 200
        assert {
            pod["spec"]["containers"][0]["image"] for pod in namespace.pods("policy").values()
        } == {RELEASED}
        # What devices trust has stayed.
        after = namespace.secret("ev-gateway-tls")
        assert after["tls.crt"] == before["tls.crt"]
        assert before["ca.crt"].strip() in after["ca.crt"]
        release.upgrade(image(TREE))
        release.test()
        published = org.publish()
        for device in devices:
            until(lambda device=device: device.pull(), 60, "no new policy", pause=1)
            assert device.version == str(published["version"])
