"""What is written of a device while it is deleted: nothing of it is left.

A device that the registry deleted is locked out and no longer in the table where a service keeps
the registry's devices (`servicekit.peers.devices.Mirror`). Reports that were on their way are
written after that. A statement does not see what commits while it runs, so writers and the deletion
exclude each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from servicekit.data.postgres import Connection


@dataclass(frozen=True, slots=True)
class DeletedDevices:
    """The deleted devices of a service.

    Args:
        context: the service.
        table: where it keeps the registry's devices, by `device_id`.
    """

    context: str
    table: str

    def condition(self, column: str) -> str:
        """What every statement asks that stores something a device said.

        Args:
            column: that of the device's id.
        """
        return (
            f"NOT EXISTS (SELECT FROM {self.context}.device_access x"
            f" WHERE x.device_id = {column} AND x.locked_out"
            f" AND NOT EXISTS (SELECT FROM {self.table} d WHERE d.device_id = {column}))"
        )

    async def keep_out(self, connection: Connection) -> None:
        """Keeps deletions waiting until this transaction ends.

        A statement that follows sees every deletion that came before.
        """
        await connection.execute(
            f"SELECT pg_advisory_xact_lock_shared(hashtext('{self.context}:deleted-devices'))"
        )

    async def wait_for_writers(self, connection: Connection) -> None:
        """Waits for those that called `keep_out`, and keeps new ones waiting until the end."""
        await connection.execute(
            f"SELECT pg_advisory_xact_lock(hashtext('{self.context}:deleted-devices'))"
        )
