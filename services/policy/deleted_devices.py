"""What policy stores of devices only while they are not deleted."""

from __future__ import annotations

from typing import Final

from servicekit.peers.deleted import DeletedDevices

DELETED: Final = DeletedDevices("policy", "policy.devices")
