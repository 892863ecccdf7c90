"""Which backups are kept: the newest ones, or some for each day, week and month."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cli.backup.stores.store import Stored
from cli.errors import CliError

_PERIODS: Final[Mapping[str, Callable[[datetime], object]]] = {
    "daily": lambda at: at.date(),
    "weekly": lambda at: at.isocalendar()[:2],
    "monthly": lambda at: (at.year, at.month),
    "yearly": lambda at: at.year,
}
_WORD: Final = re.compile(r"(?P<period>[a-z]+)=(?P<number>\d{1,4})")
DEFAULT: Final = "14"


@dataclass(frozen=True, slots=True)
class Keep:
    """How many backups are kept."""

    newest: int
    periods: Mapping[str, int]
    """Period → for how many of them, each with its newest backup."""

    @classmethod
    def read(cls, text: str) -> Keep:
        """Reads `14`, or `daily=7,weekly=4,monthly=12`.

        Raises:
            CliError: it is neither, or would keep nothing.
        """
        text = text.strip()
        if text.isascii() and text.isdigit() and int(text) > 0:
            return cls(int(text), {})
        periods: dict[str, int] = {}
        for word in text.split(","):
            found = _WORD.fullmatch(word.strip())
            if found is None or found["period"] not in _PERIODS or int(found["number"]) == 0:
                raise CliError(
                    f"EVERGREEN_BACKUP_KEEP is {text!r}; give a number of backups such as 14, or"
                    f" numbers for periods ({', '.join(_PERIODS)}) such as daily=7,weekly=4"
                )
            periods[found["period"]] = int(found["number"])
        return cls(1, periods)

    def superfluous(self, backups: Sequence[Stored]) -> list[Stored]:
        """The backups that may go; the newest one never is among them."""
        newest_first = sorted(backups, key=lambda one: (one.at, one.name), reverse=True)
        kept = {one.name for one in newest_first[: self.newest]}
        for period, number in self.periods.items():
            of = _PERIODS[period]
            last: dict[object, Stored] = {}
            for one in newest_first:
                last.setdefault(of(one.at), one)
            kept |= {one.name for one in list(last.values())[:number]}
        return [one for one in reversed(newest_first) if one.name not in kept]
