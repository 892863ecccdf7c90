"""`evergreen groups` and `evergreen devices` for many, as an administrator uses them."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from typer.testing import CliRunner

from cli.main import app
from tests.e2e.world import Org, make_org, ok
from tests.fakes.agent import Hardware
from tests.support.stack import PATIENCE, Stack, until


@pytest.fixture(scope="module")
def org(stack: Stack, root: httpx.Client) -> Org:
    return make_org(stack, root, "Grouped")


def run(stack: Stack, org: Org, *words: str, code: int = 0) -> str:
    """What a command prints, with what it says beside it."""
    done = CliRunner().invoke(app, [*words, "--org", org.id, "--home", str(stack.home)])
    assert done.exit_code == code, done.output
    return done.output


def test_a_cart_is_expected_and_grouped(stack: Stack, org: Org, tmp_path: Path) -> None:
    """From the list to the device in the fleet, by commands alone."""
    first, second = (f"GC-{uuid4().hex[:8].upper()}" for _ in range(2))
    file = tmp_path / "cart.csv"
    file.write_text(f"Serial Number;Room;Groups\n{first};214;cart-3\n{second};214;cart-3\n")
    said = run(stack, org, "devices", "import", str(file), code=2)
    assert "groups[0]: no group has the alias cart-3" in said
    assert "0 to add, 0 to change, 0 unchanged, 2 refused. Nothing was changed." in said
    create = ("devices", "import", str(file), "--create-groups")
    said = run(stack, org, *create, "--dry-run")
    assert "Group cart-3 would be created, for 2 rows." in said
    assert "2 to add, 0 to change, 0 unchanged, 0 refused. Nothing was changed." in said
    bad = tmp_path / "bad.csv"
    bad.write_text(file.read_text() + "Default string;214;cart-3\n")
    run(stack, org, *create[:2], str(bad), "--create-groups", code=2)
    assert "cart-3" not in run(stack, org, "groups", "list")
    said = run(stack, org, *create)
    assert "2 added, 0 changed, 0 unchanged, 0 refused." in said
    said = run(stack, org, "devices", "import", str(file))
    assert "0 added, 0 changed, 2 unchanged, 0 refused." in said
    file.write_text(f"serial,asset_tag\n{first},A-1\nDefault string,A-2\n")
    said = run(stack, org, "devices", "import", str(file), "--skip-bad", code=8)
    assert "line 3  Default string  serial: is a placeholder" in said
    assert "0 added, 1 changed, 0 unchanged, 1 refused." in said
    said = run(stack, org, "devices", "list", "--filter", "labels.room = 214")
    assert [line.split()[0] for line in said.splitlines()[1:]] == [second, first]
    assert "A-1" in said
    agent = org.agent(hardware=Hardware(serial=first))
    agent.enroll()
    said = run(stack, org, "devices", "list", "--group", "cart-3")
    assert [line.split()[0] for line in said.splitlines()[1:]] == [first]
    said = run(stack, org, "groups", "members", "cart-3")
    assert sum("waiting" in line for line in said.splitlines()) == 1
    # In the fleet as well, with its labels.
    device = str(agent.device_id)
    found = until(
        lambda: ok(org.root.get(f"/api/devices/{device}")).get("labels"), PATIENCE, "no labels"
    )
    assert found == {"room": "214"}
    # What is exported can be imported, and changes nothing.
    said = run(stack, org, "devices", "export", str(file))
    assert "2 devices." in said
    assert f"{first},A-1,Evergreen Book 14,cart-3,,214\r\n" in file.read_bytes().decode()
    said = run(stack, org, "devices", "import", str(file))
    assert "0 added, 0 changed, 2 unchanged, 0 refused." in said
    run(stack, org, "devices", "label", first, "year=7", "room-")
    run(stack, org, "groups", "create", "year-7", "--filter", "labels.year = 7")
    (group,) = [
        g
        for g in ok(org.root.get("/api/device-groups", params={"orgId": org.id}))["deviceGroups"]
        if g["alias"] == "year-7"
    ]
    assert group["members"] == 1

    def grouped() -> bool:
        listed = ok(org.root.get("/api/devices", params={"group": group["id"], "label": "year=7"}))
        return [d["id"] for d in listed["devices"]] == [device]

    until(grouped, PATIENCE, "the inventory does not know the group")
    said = run(stack, org, "groups", "preview", "labels.year = 8", "--group", "year-7")
    assert "0 matched, 0 joining, 1 leaving" in said
    said = run(stack, org, "groups", "edit", "year-7", "--filter", "labels.year = 8")
    assert "Group year-7 has 0 devices." in said
    said = run(stack, org, "groups", "remove", "cart-3", first, second)
    assert "2 removed." in said
    assert "0" in run(stack, org, "groups", "list")
    run(stack, org, "groups", "delete", "year-7", "--yes")
    said = run(stack, org, "groups", "show", "year-7", code=2)
    assert "no group has the alias year-7" in said
    said = run(stack, org, "devices", "label", first, "Room=7", code=2)
    assert "labels.Room: keys have small letters" in said
    said = run(stack, org, "devices", "label", "GC-0", "year=7", code=2)
    assert "GC-0  no device of the organisation has this serial number" in said
