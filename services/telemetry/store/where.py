"""Conditions of a query, with their parameters."""

from __future__ import annotations

from typing import Any

from servicekit.postgres import Scope


class Where:
    """Gathers the conditions of a query; only those that are given, so that indexes fit."""

    def __init__(self, scope: Scope) -> None:
        self._conditions: list[str] = []
        self._filters: list[str] = []
        self.parameters: list[Any] = []
        if scope.tenant_ids is not None and len(scope.tenant_ids) == 1:
            # Only so does an index by tenant give rows in the order of a list.
            self.add("tenant_id = ?", scope.tenant_ids[0])
        elif scope.tenant_ids is not None:
            self.add("tenant_id = ANY (?)", list(scope.tenant_ids))

    def add(self, condition: str, *values: Any) -> None:
        """Adds a condition in which each `?` stands for the next value."""
        self._conditions.append(self._filled(condition, values))

    def filter(self, condition: str, *values: Any) -> None:
        """Adds a condition that no index answers: every row that the others let through is read."""
        self._filters.append(self._filled(condition, values))

    def _filled(self, condition: str, values: tuple[Any, ...]) -> str:
        for value in values:
            condition = condition.replace("?", self.parameter(value), 1)
        return condition

    def parameter(self, value: Any) -> str:
        """Adds a parameter; answers how SQL refers to it."""
        self.parameters.append(value)
        return f"${len(self.parameters)}"

    def contains(self, columns: tuple[str, ...], text: str) -> None:
        """Filters by a text that is found in one of the columns, whatever its case."""
        escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        pattern = self.parameter(f"%{escaped}%")
        found = " OR ".join(f"{column} ILIKE {pattern}" for column in columns)
        self._filters.append(f"({found})")

    @property
    def sql(self) -> str:
        """The `WHERE` clause; empty without conditions."""
        return "WHERE " + " AND ".join(self._conditions) if self._conditions else ""

    @property
    def is_filtered(self) -> bool:
        """Whether rows are read that may not be wanted."""
        return bool(self._filters)

    def page(self, columns: str, table: str, order: str, limit: int, scan: int) -> str:
        """A query for the first rows in an order, with `wanted` beside the columns.

        It reads `scan` rows at most. When it reads that many, it answers the last one too, be it
        wanted or not, so that the next page can go on behind it. However rare what is looked for
        is, a page costs no more than that.
        """
        if not self._filters:
            return (
                f"SELECT {columns}, true AS wanted, false AS last FROM {table} {self.sql}"
                f" ORDER BY {order} LIMIT {self.parameter(limit)}"
            )
        most = self.parameter(scan)
        return (
            f"SELECT {columns}, wanted, place = {most} AS last FROM (SELECT {columns},"
            f" {' AND '.join(self._filters)} AS wanted,"
            f" row_number() OVER (ORDER BY {order}) AS place"
            f" FROM {table} {self.sql} ORDER BY {order} LIMIT {most}) AS seen"
            f" WHERE wanted OR place = {most} ORDER BY {order} LIMIT {self.parameter(limit)}"
        )
