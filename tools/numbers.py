"""Checks the numbers that two branches may both have taken: those of migrations and of ADRs."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

from servicekit.data.migrate import MigrationError, all_migrations

_ROOT = Path(__file__).parent.parent


def problems(adrs: Path) -> list[str]:
    """What is wrong with the numbers of the migrations and of the ADRs in a folder, in words."""
    found = []
    try:
        all_migrations()
    except MigrationError as error:
        found.append(str(error))
    files = sorted(file.name for file in adrs.glob("[0-9]*.md"))
    numbers = Counter(int(name[:4]) for name in files)
    found += [f"ADR {number}: two files have this number" for number, n in numbers.items() if n > 1]
    listed = re.findall(r"^\| \[\d+\]\(([^)]+)\)", (adrs / "README.md").read_text("utf-8"), re.M)
    found += [f"{name}: has no row in docs/adr/README.md" for name in files if name not in listed]
    return found


if __name__ == "__main__":
    wrong = problems(_ROOT / "docs" / "adr")
    sys.exit("\n".join(wrong) or None)
