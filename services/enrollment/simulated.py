"""The end of simulated devices that a test left, by an operator on the server's machine."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from contract.events.enrollment import DeviceDecommissioned, DeviceDeleted
from servicekit.data.postgres import SYSTEM, Connection
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import write
from services.enrollment.registry import domain, store

PREFIX: Final = "SIM-"
"""What the serial numbers of simulated devices begin with, and of no others that are ended so."""
ACTOR: Final = "operator (evergreen devices end-simulated)"


async def end(connection: Connection, prefix: str, operator: str, at: datetime) -> list[str]:
    """Decommissions and deletes simulated devices; answers their serial numbers.

    Args:
        connection: within a transaction, of a role that owns the tables.
        prefix: what their serial numbers begin with.
        operator: the account of the machine that asks for it.

    Raises:
        ValueError: the prefix may be one of real devices.
    """
    if not prefix.startswith(PREFIX) or prefix == PREFIX:
        raise ValueError(f"give a longer beginning than {PREFIX}, with which all of them begin")
    await connection.execute("SELECT set_config('evergreen.scope', $1, true)", SYSTEM.setting)
    found = await store.devices_by_prefix(connection, prefix)
    events = []
    ended = []
    for device in found:
        out = domain.decommission(device, at)
        gone = domain.delete(out, ACTOR, at)
        ended.append(gone)
        if out != device:
            events.append(_event(DeviceDecommissioned, device, out, operator))
        events.append(_event(DeviceDeleted, out, gone, operator))
    if ended:
        await store.update_devices(connection, ended)
        await write(connection, "enrollment", *events)
    return [device.serial for device in found]


def _event(
    kind: type[DeviceDecommissioned | DeviceDeleted],
    before: domain.Device,
    after: domain.Device,
    operator: str,
) -> CloudEvent:
    event = kind(id=after.id, before=before.snapshot(), after=after.snapshot())
    return CloudEvent(event, after.tenant_id, actor=ACTOR, actor_id=operator)
