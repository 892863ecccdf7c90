"""What enrollment holds about one person, for an export."""

from __future__ import annotations

from typing import Final

from servicekit.rpc.persons import Table

_LABELS: Final = frozenset({"labels"})

TABLES: Final = (
    Table(
        kind="device",
        source="enrollment.device",
        shown=("id", "serial", "status", "created_at", "deleted_at"),
        searched=(
            "labels",
            "asset_tag",
            "note",
            "serial",
            "reported_serial",
            "enrolled_from",
            "deleted_by",
        ),
        json=_LABELS,
    ),
    Table(
        kind="expected device",
        source="enrollment.expected_device",
        shown=("id", "serial", "created_at"),
        searched=("labels", "asset_tag", "note", "serial"),
        json=_LABELS,
    ),
    Table(
        kind="enrollment token",
        source="enrollment.token",
        shown=("id", "created_at", "expires_at"),
        searched=("name", "labels"),
        json=_LABELS,
    ),
    Table(
        kind="device group",
        source="enrollment.device_group",
        shown=("id", "created_at", "updated_at", "deleted_at"),
        searched=("name", "alias", "description", "filter", "deleted_by"),
    ),
    Table(
        kind="member of a device group",
        source="enrollment.group_member",
        key=(("group_id", "uuid"), ("serial_key", "text")),
        shown=("group_id", "serial", "added_at"),
        searched=("serial", "added_by"),
    ),
    Table(
        kind="refused enrollment",
        source="enrollment.refusal",
        shown=("id", "reason", "first_at", "last_at"),
        searched=("serial", "model"),
    ),
    Table(
        kind="device group of a set",
        source="enrollment.group_set_member",
        key=(("group_id", "uuid"),),
        shown=("group_id",),
        searched=("set_name",),
    ),
)
"""What may hold something about a person, in the order of an export."""
