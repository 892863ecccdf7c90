"""What a release promises to the next ones: its commit, migrations, protos and events."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tools.release.tree import ROOT, git, python, run

RECORD: Final = "tests/upgrade/releases.json"
PROTOS: Final = "protos/released.binpb"
EVENTS: Final = "tests/contract/recorded/released_{version}.jsonl"
_MIGRATIONS: Final = """\
import json
from servicekit.data.migrate import all_migrations
print(json.dumps({f"{m.schema}/{m.version:04d}_{m.name}": m.checksum for m in all_migrations()}))
"""
_EVENTS: Final = """\
from tests.contract.test_events import ACTIONS, payload_of
for name in sorted(ACTIONS):
    print(payload_of(ACTIONS[name]))
"""


@dataclass(frozen=True, slots=True)
class Release:
    """A release: its version, its commit, its day, and the digests of its migrations."""

    version: str
    commit: str
    date: str
    migrations: dict[str, str]


def releases(root: Path = ROOT) -> list[Release]:
    """All releases, the oldest first."""
    found = json.loads((root / RECORD).read_text(encoding="utf-8"))
    return [Release(**one) for one in found]


def record(version: str, date: str) -> None:
    """Records the commit that is checked out as a release.

    From then on its migrations never change, new ones are checked for locks that would stop the
    traffic, its events fit later schemas, buf compares with its protos, and `tests/upgrade` runs it
    beside the tree.
    """
    migrations = json.loads(python("-c", _MIGRATIONS))
    made = Release(version, git("rev-parse", "HEAD"), date, migrations)
    listed = [asdict(release) for release in (*releases(), made)]
    (ROOT / RECORD).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    (ROOT / EVENTS.format(version=version)).write_text(python("-c", _EVENTS), encoding="utf-8")
    run("npx", "--no-install", "buf", "build", "--exclude-source-info", "-o", PROTOS)
