"""What is sent of each kind of entry."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any
from uuid import UUID

import pytest

from contract.events import EXAMPLES
from contract.events.base import Action
from contract.events.identity.users import UserUpdated
from servicekit.messaging.events import CloudEvent
from services.audit.forward.domain import Syslog
from services.audit.forward.formats import Item
from services.audit.forward.lines import Lines
from services.audit.forward.ocsf import ocsf_event
from services.audit.forward.stdout import Stdout
from tests.services.audit.forward.conftest import StartWorld
from tests.support.audit import event

_ACTIONS = {name: found for name, found in EXAMPLES.items() if isinstance(found, Action)}
_NEEDED = {
    3001: {"user"},
    3002: {"user", "service"},
    3004: {"entity"},
    3005: {"user", "privileges"},
    5019: {"device"},
    6003: {"actor", "api", "src_endpoint"},
}
"""What a class of OCSF 1.7.0 requires beside what all have."""


def _item(action: Action) -> Item:
    found = CloudEvent(action, UUID(int=5))
    item = Item.test(found.id, found.payload())
    return Item(item.id, 1, {**item.record, "auditsequence": 1, "audithash": "ab" * 32})


@pytest.mark.parametrize("name", sorted(_ACTIONS))
def test_every_action_has_a_message(name: str) -> None:
    """With what its class needs, and as lines of both forms."""
    item = _item(_ACTIONS[name])
    sent = ocsf_event(item.record, "evergreen.school.example")
    assert sent["type_uid"] == sent["class_uid"] * 100 + sent["activity_id"]
    assert sent["category_uid"] == sent["class_uid"] // 1000
    assert _NEEDED[sent["class_uid"]] <= set(sent)
    assert ("src_endpoint" in sent) is (sent["class_uid"] != 5019)
    assert sent["metadata"]["event_code"] == name
    for form in ("json", "cef"):
        lines = Lines(Syslog("x", 1, format=form), "evergreen.school.example")  # type: ignore[arg-type]
        assert lines.message(item).isascii() or form == "cef"


def test_another_role_is_access_management() -> None:
    """The other changes of a user are not."""
    item = _item(_ACTIONS[UserUpdated.NAME])
    data: dict[str, Any] = dict(item.data)
    data["before"], data["after"] = {"role": "Admin"}, {"role": "Owner", "email": "a@b.example"}
    sent = ocsf_event({**item.record, "data": data}, "x")
    assert (sent["class_uid"], sent["privileges"]) == (3005, ["Owner"])


async def test_entries_on_standard_output(
    start_world: StartWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line for each, after it was recorded; what nobody reads is dropped."""
    file = io.StringIO()
    stdout = Stdout(file)
    monkeypatch.setattr("services.audit.forward.stdout._MOST_WAITING", 3)
    world = await start_world()
    world.audit.recorder._recorded = stdout.recorded  # type: ignore[method-assign]
    await world.record(*(event(n) for n in range(1, 6)))
    task = asyncio.create_task(stdout.run())
    await world.receiver.until(lambda: file.getvalue().count("\n") == 3)
    task.cancel()
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["audit"]["auditsequence"] for line in lines] == [1, 2, 3]
    assert all(line["audit"]["audithash"] for line in lines)
