"""Conditions of a query, with their parameters."""

from __future__ import annotations

from typing import Any

from servicekit.postgres import Scope


class Where:
    """Gathers the conditions of a query; only those that are given, so that indexes fit."""

    def __init__(self, scope: Scope) -> None:
        self._conditions: list[str] = []
        self.parameters: list[Any] = []
        if scope.tenant_ids is not None and len(scope.tenant_ids) == 1:
            # Only so does an index by tenant give rows in the order of a list.
            self.add("tenant_id = ?", scope.tenant_ids[0])
        elif scope.tenant_ids is not None:
            self.add("tenant_id = ANY (?)", list(scope.tenant_ids))

    def add(self, condition: str, *values: Any) -> None:
        """Adds a condition in which each `?` stands for the next value."""
        for value in values:
            condition = condition.replace("?", self.parameter(value), 1)
        self._conditions.append(condition)

    def parameter(self, value: Any) -> str:
        """Adds a parameter; answers how SQL refers to it."""
        self.parameters.append(value)
        return f"${len(self.parameters)}"

    def contains(self, columns: tuple[str, ...], text: str) -> None:
        """Demands that a text is found in one of the columns, whatever its case."""
        escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        pattern = self.parameter(f"%{escaped}%")
        found = " OR ".join(f"{column} ILIKE {pattern}" for column in columns)
        self._conditions.append(f"({found})")

    @property
    def sql(self) -> str:
        """The `WHERE` clause; empty without conditions."""
        return "WHERE " + " AND ".join(self._conditions) if self._conditions else ""
