"""What a context tells a backup of its schema, and how a restore asks it.

The command line copies rows without knowing their meaning. `services/<context>/restore.py` has the
meaning: `TABLES`, and where going back in time needs it, a class `Known`, which collects what was
decided after the backup, and `repair`, which changes the restored rows accordingly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from uuid import UUID

if TYPE_CHECKING:
    import asyncpg

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
"""A connection of the role that owns the schemas, in a transaction that sees all rows."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of a schema that a backup treats in a way of their own; names without the schema.

    All others are kept with all columns. Tables whose names end in `_cursor`, `outbox_stream` and
    `quarantined_row` say how far something was read, or what was left out, in every schema: they
    are not kept, and need no mention.
    """

    made_anew: frozenset[str] = frozenset()
    """Tables that the restored installation fills by itself."""
    derived: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Table → column → SQL: columns that an installation derives from others in its own way."""
    ordered: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Table → the columns by which an archive has its rows sorted."""
    sealed: Mapping[str, str] = field(default_factory=dict)
    """Table with `public_key` and `sealed_seed` → for what the master key seals them."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Table with `sealed_secrets`, which may be NULL → for what the master key seals them."""
    passing: Mapping[str, str] = field(default_factory=dict)
    """Table with `id` and `sealed_secrets`, made anew, → for what the master key seals them."""
    signs_of_use: frozenset[str] = frozenset()
    """Tables with rows in every database that an installation uses."""


@dataclass(frozen=True, slots=True)
class Tenants:
    """The tenants of the restored database, as identity has them."""

    root: UUID | None
    organisations: frozenset[UUID]
    all: frozenset[UUID]


@dataclass(frozen=True, slots=True)
class Recorded:
    """An action of the audit log that is newer than the backup."""

    tenant_id: UUID
    at: datetime
    action: str
    kind: str
    """The kind of its resource (`devices`),"""
    name: str
    """and the resource's id."""
    after: Mapping[str, Any]


class Learns(Protocol):
    """What collects the decisions of one context that a restore must not undo."""

    async def read(self, connection: Connection) -> None:
        """Takes what the database knows that is about to be replaced."""

    def learn(self, entry: Recorded) -> None:
        """Takes an entry of the audit log.

        Raises:
            ValueError, KeyError, TypeError: the entry is none that the context makes.
        """
