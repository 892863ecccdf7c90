"""Restores that are killed, at whatever moment, and run again."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL

import pytest

from cli.backup import catalog
from cli.backup.create import create
from cli.backup.keys import SealedKeys
from cli.backup.places import LocalHome, connected
from cli.backup.restore import NotEmptyError
from cli.backup.verify import verify
from deploy.launcher.home import master_key
from tests.support.backups import (
    IDENTITY,
    KEY,
    LEAVES,
    LOCK,
    World,
    owner,
    seed,
    superuser,
    target,
    world,
)
from tests.support.paths import ROOT
from tests.support.programs import evergreen
from tests.support.stack import PATIENCE, free_port

__all__ = ["world"]

pytestmark = pytest.mark.servers


CUTS = {
    "before the commit": "from cli.backup import restore as m; m._note = die",
    "before the schema is upgraded": "from servicekit.data import migrate as m; m.up = die",
    "before the other files are there": "from cli.backup.places import Staged as m; m.put = die",
    "before it is noted as finished": "from cli.backup import procedure as m; m.finish = die",
}
DIES = """
import os, signal, sys
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
{cut}
from cli.entry import main
main()
"""


def command(arguments: list[str | Path], cut: str, **environment: str) -> int:
    """The exit code of `evergreen`, which dies where a cut says."""
    if not cut:
        return evergreen(arguments, os.environ | environment, PATIENCE).returncode
    done = subprocess.run(
        [sys.executable, "-c", DIES.format(cut=cut), *map(str, arguments)],
        env=os.environ | environment,
        cwd=ROOT,
        check=False,
    )
    return done.returncode


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("replace", [False, True])
async def test_a_restore_that_was_killed_is_run_again(
    world: World, cut: str, replace: bool
) -> None:
    """With the same words, at whatever moment; then the keys open what is in the database."""
    await seed(world.first)
    await world.back_up()
    key = world.directory / "identity"
    key.write_text(str(IDENTITY))
    arguments: list[str | Path] = ["backup", "restore", world.archive, "--identity", key]
    arguments += ["--secrets", world.place.secrets, "--tls", world.directory / "tls"]
    own = world.place.secrets / "master_key"
    if replace:
        world.place.secrets.mkdir()
        own.write_text(master_key())
        await seed(world.second, own)
        arguments.append("--replace")
    to = target(world.second)
    password_file = world.directory / "password"
    password_file.write_text(to.password or "")
    environment = {
        "EVERGREEN_MIGRATE_DATABASE_URL": to.dsn,
        "EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE": str(password_file),
    }
    key_before = own.read_text() if replace else None
    assert await asyncio.to_thread(command, arguments, CUTS[cut], **environment) == -SIGKILL
    # What there is at this moment, the old or the restored, opens with the key that there is.
    async with superuser(world.second) as connection:
        keys = SealedKeys(own.read_bytes())
        for table in catalog.SEALED:
            for row in await connection.fetch(f"SELECT public_key, sealed_seed FROM {table}"):
                keys.check(table, row["public_key"], row["sealed_seed"])
    assert (keys.opened > 0) is (replace or cut != "before the commit")
    assert await asyncio.to_thread(command, arguments, "", **environment) == 0
    connection = await owner(world.second)
    try:
        # Which it refuses when the keys do not open.
        await create(connection, world.place.read(), world.directory / "again", LOCK, "0.1.0")
    finally:
        await connection.close()
    assert key_before in {None, own.read_text()}
    left = [path for path in world.place.secrets.iterdir() if path.name.startswith(".")]
    assert left == []
    # What is whole is an installation, which is not replaced without a word.
    if not replace:
        assert await asyncio.to_thread(command, arguments, "", **environment) == 1


async def test_what_began_after_a_killed_restore_is_not_replaced(world: World) -> None:
    """Services that have started since make it an installation, finished or not."""
    await seed(world.first)
    await world.back_up()
    await world.restore()
    async with superuser(world.second) as connection:
        id_ = verify(world.archive, KEY).header.id
        await connection.execute(
            f"COMMENT ON SCHEMA evergreen IS 'being restored from backup {id_}'"
        )
    await world.restore()
    async with superuser(world.second) as connection:
        await connection.execute(
            f"COMMENT ON SCHEMA evergreen IS 'being restored from backup {id_}';"
            "INSERT INTO identity.signing_key VALUES ('new', 'users', '', '', now())"
        )
    with pytest.raises(NotEmptyError):
        await world.restore()


@pytest.mark.timeout(300)
async def test_a_home_that_a_killed_restore_left_gets_back_what_it_had(
    world: World, tmp_path: Path
) -> None:
    """And what it knows is carried over by the restore that follows."""
    await seed(world.first)
    await world.back_up()
    key = world.directory / "identity"
    key.write_text(str(IDENTITY))
    home = LocalHome(tmp_path / "home")
    arguments: list[str | Path] = ["backup", "restore", world.archive, "--identity", key]
    arguments += ["--home", home.home.root]
    cut = "from cli.backup import procedure as m; m.restore = die"
    assert await asyncio.to_thread(command, arguments, cut) == -SIGKILL
    assert await asyncio.to_thread(command, arguments, "") == 0
    with home.held():
        async with home.started() as to, connected(to) as connection:
            await connection.execute("SET evergreen.scope = '*'")
            await connection.execute(
                f"UPDATE enrollment.device SET status = 'decommissioned' WHERE id = '{LEAVES}'"
            )
    arguments.append("--replace")
    assert await asyncio.to_thread(command, arguments, cut) == -SIGKILL
    # What is half done does not become an installation.
    up = {"EVERGREEN_HOME": str(home.home.root), "EVERGREEN_PORT": str(free_port())}
    assert await asyncio.to_thread(command, ["up"], "", **up) == 1
    assert await asyncio.to_thread(command, arguments, "") == 0
    with home.held():
        async with home.started() as to, connected(to) as connection:
            await connection.execute("SET evergreen.scope = '*'")
            rows = await connection.fetch(
                "SELECT id FROM enrollment.device WHERE status = $1", "decommissioned"
            )
    assert [row["id"] for row in rows] == [LEAVES]
    assert len(list(home.home.root.glob("replaced-*"))) == 1
    assert not home.was_cut_short
