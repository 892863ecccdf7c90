"""Conditions of a query, with their parameters."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from servicekit.data.postgres import Scope

HIDDEN: Final = ("pending", "rejected")
"""Devices with these statuses in the registry are not a part of the fleet."""
NOT_DELETED: Final = (
    "NOT EXISTS (SELECT FROM telemetry.deleted_device x"
    " WHERE x.device_id = {} AND x.back_at IS NULL)"
)
"""What every statement asks that stores something of devices, with the column of their ids."""
_FEWEST: Final = 100
"""Rows of each tenant that a page reads, even if that makes more than it was told to read."""


def containing(text: str) -> str:
    """The pattern of LIKE for what contains a text."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


class Where:
    """Gathers the conditions of a query; only those that are given, so that indexes fit."""

    def __init__(self, scope: Scope) -> None:
        self._conditions: list[str] = []
        self._filters: list[str] = []
        self.parameters: list[Any] = []
        self._tenants: tuple[UUID, ...] | None = None
        if scope.tenant_ids is not None and len(scope.tenant_ids) == 1:
            # Only so does an index by tenant give rows in the order of a list.
            self.add("tenant_id = ?", scope.tenant_ids[0])
        elif scope.tenant_ids is not None:
            self._tenants = scope.tenant_ids

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
        pattern = self.parameter(containing(text))
        found = " OR ".join(f"{column} ILIKE {pattern}" for column in columns)
        self._filters.append(f"({found})")

    @property
    def sql(self) -> str:
        """The `WHERE` clause; empty without conditions. Filters are not in it."""
        conditions = self._conditions
        if self._tenants is not None:
            conditions = [f"tenant_id = ANY ({self.parameter(list(self._tenants))})", *conditions]
        return "WHERE " + " AND ".join(conditions) if conditions else ""

    @property
    def sql_with_filters(self) -> str:
        """The `WHERE` clause with the filters, for rows that are few whatever they say."""
        return " AND ".join([self.sql, *self._filters])

    def page(self, columns: str, table: str, key: str, limit: int, scan: int, *, down: bool) -> str:
        """A query for the first rows by `key` and id, with `wanted` beside the columns.

        It reads about `scan` rows at most when there are filters. When it stops for that, it
        answers the `last` row up to which it has seen all, be it wanted or not, so that the next
        page can go on behind it. However rare what is looked for is, a page costs no more.
        `worth` is how many rows to read then, if some tenants have had no use for their share of
        them; else 0.

        Args:
            down: whether the greatest come first.
        """
        wanted = " AND ".join(self._filters) or "true"
        order = f"{key} DESC, id DESC" if down else f"{key}, id"
        if self._tenants is not None:
            return self._page_of_tenants(columns, table, key, order, wanted, limit, scan, down)
        if not self._filters:
            return (
                f"SELECT {columns}, true AS wanted, false AS last, 0 AS worth FROM {table}"
                f" {self.sql} ORDER BY {order} LIMIT {self.parameter(limit)}"
            )
        most = self.parameter(scan)
        return (
            f"SELECT {columns}, wanted, place = {most} AS last, 0 AS worth FROM (SELECT {columns},"
            f" {wanted} AS wanted, row_number() OVER (ORDER BY {order}) AS place"
            f" FROM {table} {self.sql} ORDER BY {order} LIMIT {most}) AS seen"
            f" WHERE wanted OR place = {most} ORDER BY {order} LIMIT {self.parameter(limit)}"
        )

    def _page_of_tenants(
        self,
        columns: str,
        table: str,
        key: str,
        order: str,
        wanted: str,
        limit: int,
        scan: int,
        down: bool,
    ) -> str:
        """As `page`, for several tenants: the first rows of each, merged.

        An index has the rows of one tenant in order, or those of all; to read the latter for a few
        tenants would be to read everybody's. The first tenant whose part ends too early ends the
        page, for behind that row others may have some that are not seen.
        """
        assert self._tenants is not None
        fewest = min(limit, _FEWEST)
        each = max(scan // len(self._tenants), fewest) if self._filters else limit
        most = self.parameter(each)
        tenants = self.parameter(list(self._tenants))
        conditions = "".join(f" AND {condition}" for condition in self._conditions)
        place = "p_key DESC, p_id DESC" if down else "p_key, p_id"
        behind = ">=" if down else "<="
        # Those with few rows leave the share of all to the others.
        worth = (
            f"coalesce({scan} / nullif((SELECT count(*) FROM seen WHERE place = {most}), 0), 0)"
            f" * {len(self._tenants)} AS worth"
        )
        return (
            "WITH seen AS MATERIALIZED (SELECT e.* FROM"
            f" unnest({tenants}::uuid[]) AS t (id) CROSS JOIN LATERAL (SELECT"
            f" tenant_id AS p_tenant, {key} AS p_key, id AS p_id, {wanted} AS wanted,"
            f" row_number() OVER (ORDER BY {order}) AS place FROM {table}"
            f" WHERE tenant_id = t.id{conditions} ORDER BY {order} LIMIT {most}) AS e),"
            f" cut AS (SELECT p_key, p_id FROM seen WHERE place = {most}"
            f" ORDER BY {place} LIMIT 1),"
            " page AS (SELECT seen.*, coalesce(p_id = (SELECT p_id FROM cut), false) AS last"
            " FROM seen WHERE (wanted OR p_id = (SELECT p_id FROM cut))"
            " AND (NOT EXISTS (SELECT FROM cut)"
            f" OR (p_key, p_id) {behind} (SELECT p_key, p_id FROM cut))"
            f" ORDER BY {place} LIMIT {self.parameter(limit)})"
            " SELECT"
            f" {columns}, wanted, last, {worth} FROM page JOIN {table} ON tenant_id = p_tenant"
            f" AND {key} = p_key AND id = p_id ORDER BY {order}"
        )
