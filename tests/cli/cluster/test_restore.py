"""A restore of a release of the chart: whatever cuts it short, there is the old or the restored."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGKILL
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from cli.backup import catalog
from cli.backup.create import create
from cli.backup.keys import SealedKeys
from cli.backup.places import Directories
from cli.cluster.release import STOPPED, ClusterError, Release, ReleaseSecrets
from cli.cluster.restore import RefusedError, ReleaseRestore
from cli.errors import CliError
from contract.contexts import CONTEXTS
from deploy.certificates import SERVER, Authority, now
from deploy.kubernetes.api import Api
from deploy.launcher.home import master_key, password
from deploy.postgres import roles
from tests.fakes.kubernetes import FakeKubernetes, kubernetes
from tests.support.backups import IDENTITY, LOCK, World, owner, seed, superuser, target, world
from tests.support.paths import ROOT

__all__ = ["world"]

pytestmark = pytest.mark.servers

HOST = "evergreen.example.org"
PARTS = (*CONTEXTS, "gateway")
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class Killed(BaseException):
    """As SIGKILL: nothing in the program sees it coming."""


@dataclass(frozen=True)
class Mortal(Api):
    """An API of which the program dies, right after so many changes."""

    left: list[int] = field(default_factory=lambda: [1 << 30])

    def patch(self, plural: str, name: str, change: Any) -> Any:
        answer = super().patch(plural, name, change)
        self.left[0] -= 1
        if not self.left[0]:
            raise Killed
        return answer


class Cluster:
    """A release on a cluster whose controllers do at once what they are told."""

    def __init__(self, fake: FakeKubernetes) -> None:
        self.fake = fake
        self.stuck: set[str] = set()
        fake.after_write = self._control
        for part in PARTS:
            fake.put("deployments", f"ev-{part}", spec={"replicas": 2})
            self._control(f"PATCH deployments/ev-{part}")
        annotated = {"annotations": {LAST_APPLIED: "{…}", "other": "stays"}}
        admin = {"password": b"new", "enrollment-secret": b"new"}
        fake.secret("ev-admin", **admin)["metadata"].update(annotated)
        fake.secret("ev-gateway-tls", **{"tls.crt": b"new", "tls.key": b"new", "ca.crt": b"new"})
        fake.secret("ev-ca", **dict.fromkeys(("gateway.crt", "gateway.key", "inside.key"), b"new"))

    def _control(self, what: str) -> None:
        if what.startswith("PATCH deployments/"):
            found = self.fake.objects["deployments", what.partition("/")[2]]
            part = found["metadata"]["name"].removeprefix("ev-")
            wanted = found["spec"]["replicas"]
            names = ("replicas", "updatedReplicas", "availableReplicas")
            found["status"] = dict.fromkeys(names, wanted)
            for number in range(2):
                labels = {
                    "app.kubernetes.io/instance": "ev",
                    "app.kubernetes.io/component": part,
                }
                name = f"ev-{part}-{number}"
                if number < wanted:
                    metadata = {"labels": labels}
                    self.fake.put("pods", name, metadata=metadata, status={"phase": "Running"})
                elif name not in self.stuck:
                    self.fake.objects.pop(("pods", name), None)

    @property
    def replicas(self) -> set[int]:
        """Of all services."""
        return {
            self.fake.objects["deployments", f"ev-{name}"]["spec"]["replicas"] for name in CONTEXTS
        }


@dataclass
class Scene:
    """An archive of another installation, and the release that it is restored into."""

    world: World
    cluster: Cluster
    restore: ReleaseRestore
    key: Path
    """The file with the release's own master key."""
    api: Mortal

    async def check(self) -> bool:
        """Whether what is in the database opens with the release's key; answers if it is restored.

        Raises:
            AssertionError: there is neither the old nor the restored installation.
        """
        async with superuser(self.world.second) as connection:
            keys = SealedKeys(self.key.read_bytes())
            for table in catalog.SEALED:
                for row in await connection.fetch(f"SELECT public_key, sealed_seed FROM {table}"):
                    keys.check(table, row["public_key"], row["sealed_seed"])
            assert keys.opened
            name = await connection.fetchval("SELECT name FROM identity.tenant WHERE kind = 'root'")
        assert name in {"Root", "New"}
        return bool(name == "Root")


def secret(fake: FakeKubernetes, name: str) -> dict[str, bytes]:
    return fake.data(name)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with kubernetes() as fake:
        yield Cluster(fake)


@pytest_asyncio.fixture
async def scene(world: World, cluster: Cluster, tmp_path: Path) -> AsyncIterator[Scene]:
    await seed(world.first)
    tls = tmp_path / "archived-tls"
    ca = Authority.ensure_in(tls)
    ca.ensure_files(tls / "server.crt", tls / "server.key", [HOST], SERVER, now())
    (tmp_path / "secrets").mkdir()
    for name in ("admin_password", "enrollment_secret"):
        (tmp_path / "secrets" / name).write_text(f"archived {name}\n")
    first_key = world.servers.home.secret_file("master_key", master_key)
    (tmp_path / "secrets" / "master_key").write_bytes(first_key.read_bytes())
    connection = await owner(world.first)
    try:
        files = Directories(tmp_path / "secrets", tls).read()
        await create(connection, files, world.archive, LOCK, "0.1.0")
    finally:
        await connection.close()
    key = tmp_path / "master_key"
    key.write_text(master_key())
    await seed(world.second, key)
    async with superuser(world.second) as connection:
        await connection.execute("SET evergreen.scope = '*'")
        await connection.execute("UPDATE identity.tenant SET name = 'New' WHERE kind = 'root'")
    api = Mortal(cluster.fake.url, "fleet", cluster.fake.account)
    restore = ReleaseRestore(
        replace(world.wanted(replace=True), run="run-1"),
        Release(api, "ev", "ev", seconds=20),
        ReleaseSecrets(api, key, "ev-admin", "ev-gateway-tls", "ev-ca", f"https://{HOST}"),
        target(world.second),
        lambda _: None,
    )
    yield Scene(world, cluster, restore, key, api)


async def test_one_command_does_it_all(scene: Scene) -> None:
    """It stops, restores, hands over and starts, in this order."""
    own = scene.key.read_bytes()
    done = await scene.restore.run()
    assert done is not None
    assert await scene.check()
    fake = scene.cluster.fake
    services = [f"PATCH deployments/ev-{name}" for name in CONTEXTS]
    assert fake.writes == [
        *services,
        "PATCH secrets/ev-admin",
        "PATCH secrets/ev-gateway-tls",
        "PATCH secrets/ev-ca",
        *services,
        "PATCH deployments/ev-gateway",
    ]
    assert scene.cluster.replicas == {2}
    for part in CONTEXTS:
        found = fake.objects["deployments", f"ev-{part}"]["metadata"]
        assert STOPPED not in found.get("annotations", {})
    # Nobody needs the new installation's any more; it is kept beside all the same.
    admin = secret(fake, "ev-admin")
    assert admin["password"] == b"archived admin_password"
    assert admin["enrollment-secret"] == b"archived enrollment_secret"
    assert admin["replaced-by-restore.password"] == b"new"
    annotations = fake.objects["secrets", "ev-admin"]["metadata"]["annotations"]
    assert annotations == {"other": "stays"}
    gateway = secret(fake, "ev-gateway-tls")
    archived = scene.world.directory / "archived-tls"
    assert gateway["tls.crt"] == (archived / "server.crt").read_bytes()
    # Which the certificate is renewed with.
    assert secret(fake, "ev-ca") == {
        "gateway.crt": (archived / "ca.crt").read_bytes(),
        "gateway.key": (archived / "ca.key").read_bytes(),
        "inside.key": b"new",
        "replaced-by-restore.gateway.crt": b"new",
        "replaced-by-restore.gateway.key": b"new",
    }
    assert gateway["replaced-by-restore.tls.key"] == b"new"
    assert scene.key.read_bytes() == own


async def test_it_goes_on_wherever_it_is_killed(scene: Scene) -> None:
    """After a change of the cluster; at each moment there is the old installation or the restored
    one, and no service runs while one takes the other's place."""
    changes = {
        1: (False, {0, 2}, "the first service is stopped"),
        6: (False, {0}, "all are"),
        7: (True, {0}, "the first Secret is filled"),
        9: (True, {0}, "all are"),
        12: (True, {0, 2}, "half of the services are started"),
        16: (True, {2}, "the gateway is restarted"),
    }
    done = 0
    for number, (is_restored, replicas, when) in changes.items():
        scene.api.left[0] = number - done
        with pytest.raises(Killed):
            await scene.restore.run()
        assert await scene.check() is is_restored, when
        assert scene.cluster.replicas == replicas, when
        done = number
    await scene.restore.run()
    assert len(scene.cluster.fake.writes) == 16
    assert await scene.check()
    assert scene.cluster.replicas == {2}


DIES = """
import os, pathlib, signal, sys
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
{cut}
from deploy.kubernetes.api import Api
Api.of_pod = lambda _: Api("{url}", "fleet", pathlib.Path("{account}"))
from cli.entry import main
main()
"""
CUTS = {
    "before the commit": "from cli.backup import restore as m; m._note = die",
    "before the schema is upgraded": "from servicekit.data import migrate as m; m.up = die",
    "before the Secrets are filled": (
        "from cli.cluster.release import StagedSecrets as m; m.put = die"
    ),
    "before it is noted as finished": "from cli.backup import procedure as m; m.finish = die",
    "before the services start": "from cli.cluster.release import Release as m; m.start = die",
}


def command(
    scene: Scene, cut: str, run: str, *more: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """The command as the chart's Job runs it; `cut` is where it dies."""
    world = scene.world
    identity, secret_file = world.directory / "identity", world.directory / "password"
    identity.write_text(str(IDENTITY))
    secret_file.write_text(target(world.second).password or "")
    words = ["backup", "restore-release", str(world.archive), "--identity", str(identity), *more]
    fake = scene.cluster.fake
    program = DIES.format(cut=cut, url=fake.url, account=fake.account)
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        env=os.environ
        | {
            "EVERGREEN_MIGRATE_DATABASE_URL": target(world.second).dsn,
            "EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE": str(secret_file),
            "EVERGREEN_MASTER_KEY_FILE": str(scene.key),
            "EVERGREEN_RELEASE": "ev",
            "EVERGREEN_RELEASE_INSTANCE": "ev",
            "EVERGREEN_RELEASE_ADMIN_SECRET": "ev-admin",
            "EVERGREEN_RELEASE_GATEWAY_SECRET": "ev-gateway-tls",
            "EVERGREEN_RELEASE_CA_SECRET": "ev-ca",
            "EVERGREEN_RESTORE_RUN": run,
            "PUBLIC_URL": f"https://{HOST}",
        }
        | env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("cut", CUTS)
async def test_the_killed_command_is_run_again(scene: Scene, cut: str) -> None:
    """As a Job does it; a new one would begin anew, for the services have not started."""
    killed = await asyncio.to_thread(command, scene, CUTS[cut], "one")
    assert killed.returncode == -SIGKILL, killed.stderr
    assert await scene.check() is (cut != "before the commit")
    assert scene.cluster.replicas == {0}
    other = "one" if cut in {"before the services start", "before the commit"} else "two"
    done = await asyncio.to_thread(command, scene, "", other)
    assert done.returncode == 0, done.stdout + done.stderr
    assert await scene.check()
    assert scene.cluster.replicas == {2}
    assert secret(scene.cluster.fake, "ev-admin")["password"] == b"archived admin_password"
    assert ("going on from there" in done.stdout) is (cut == "before the services start")


@pytest.mark.parametrize("given", ["by the option", "in the Secret"])
async def test_what_a_list_names_is_redacted_again(
    scene: Scene, given: str, tmp_path: Path
) -> None:
    """Though neither database knows that it was; a list that is none stops nothing."""
    async with superuser(scene.world.first) as connection:
        entry = await connection.fetchval("SELECT id FROM audit.entry WHERE sequence = 3")
    secrets = tmp_path / "restore"
    secrets.mkdir()
    listed = secrets / "redacted"
    more, env = [], {"EVERGREEN_RESTORE_SECRETS": str(secrets)}
    if given == "by the option":
        more, env = ["--redacted-file", str(listed)], {}
    listed.write_text("entry 3\n")
    refused = await asyncio.to_thread(command, scene, "", "one", *more, **env)
    assert refused.returncode == 1
    assert "line 1: entry 3 is no entry's id" in refused.stderr
    assert scene.cluster.fake.writes == []
    listed.write_text(f"{entry}  # a name\n")
    done = await asyncio.to_thread(command, scene, "", "two", *more, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    async with superuser(scene.world.second) as connection:
        await connection.execute("SET evergreen.scope = '*'")
        rows = await connection.fetch("SELECT id FROM audit.entry WHERE redacted ORDER BY sequence")
    assert [row["id"] for row in rows] == [entry]


async def _cut_off(scene: Scene) -> None:
    scene.world.archive.write_bytes(scene.world.archive.read_bytes()[:-100])


async def _empty_key(scene: Scene) -> None:
    scene.key.write_text("")


async def _no_service(scene: Scene) -> None:
    del scene.cluster.fake.objects["deployments", "ev-audit"]


async def _no_secret(scene: Scene) -> None:
    del scene.cluster.fake.objects["secrets", "ev-gateway-tls"]


@pytest.mark.parametrize("spoil", [_cut_off, _empty_key, _no_service, _no_secret])
async def test_what_cannot_work_changes_nothing(scene: Scene, spoil: Any) -> None:
    """Not a pod is stopped for it."""
    await spoil(scene)
    before = scene.key.read_bytes()
    with pytest.raises(CliError):
        await scene.restore.run()
    assert scene.cluster.fake.writes == []
    assert scene.key.read_bytes() == before


async def test_a_refusal_after_a_killed_attempt_starts_the_services(scene: Scene) -> None:
    """What was stopped for a restore that cannot go on serves again."""
    scene.api.left[0] = 4
    with pytest.raises(Killed):
        await scene.restore.run()
    await _cut_off(scene)
    with pytest.raises(RefusedError, match="Nothing was changed"):
        await scene.restore.run()
    assert scene.cluster.replicas == {2}
    assert not await scene.check()


async def test_a_restore_that_fails_starts_the_services(scene: Scene) -> None:
    """A pod that does not end, or something that stays connected, and the old installation runs."""
    short = replace(scene.restore, release=replace(scene.restore.release, seconds=0.1))
    scene.cluster.stuck.add("ev-policy-0")
    with pytest.raises(ClusterError, match="ev-policy-0"):
        await short.run()
    assert scene.cluster.replicas == {2}
    scene.cluster.stuck.clear()
    servers = scene.world.servers
    service = await asyncpg.connect(
        servers.postgres.dsn(roles.service_role("policy"), scene.world.second.name),
        password=servers.home.secret("postgres_policy", password),
        server_settings={"application_name": "evergreen"},
    )
    try:
        with pytest.raises(CliError, match="evergreen_policy"):
            await short.run()
    finally:
        await service.close()
    assert scene.cluster.replicas == {2}
    assert not await scene.check()
    assert secret(scene.cluster.fake, "ev-admin")["password"] == b"new"


async def test_a_certificate_of_another_host_is_left(scene: Scene) -> None:
    """The gateway would show devices a certificate that is not its own."""
    secrets = replace(scene.restore.secrets, public_url="https://elsewhere.example.org")
    done = await replace(scene.restore, secrets=secrets).run()
    assert done is not None
    assert "tls/server.crt" in done[1]
    assert secret(scene.cluster.fake, "ev-gateway-tls")["tls.crt"] == b"new"
    assert secret(scene.cluster.fake, "ev-admin")["password"] == b"archived admin_password"


async def test_services_that_were_stopped_by_hand_serve_afterwards(scene: Scene) -> None:
    scene.cluster.fake.objects["deployments", "ev-policy"]["spec"]["replicas"] = 0
    await scene.restore.run()
    assert scene.cluster.fake.objects["deployments", "ev-policy"]["spec"]["replicas"] == 1


def test_what_the_cluster_says_is_told(tmp_path: Path) -> None:
    """In one sentence, as all commands do; here, that there is no cluster."""
    words = ["--release=ev", "--instance=ev", f"--master-key-file={tmp_path / 'key'}", "--run=one"]
    done = subprocess.run(
        [sys.executable, "-m", "cli.entry", "backup", "restore-release", "newest", *words],
        env={"PATH": "", "PUBLIC_URL": f"https://{HOST}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("evergreen: this is no pod of Kubernetes: ")
    assert "Traceback" not in done.stderr
