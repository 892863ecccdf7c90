"""What attestation holds about one person, for an export."""

from __future__ import annotations

from typing import Final

from servicekit.rpc.persons import Table

TABLES: Final = (
    Table(
        kind="reference value",
        source="attestation.reference_value",
        shown=("id", "kind", "state", "created_at", "updated_at"),
        searched=("name", "model"),
    ),
)
"""What may hold something about a person, in the order of an export."""
