"""Records what a release promises to the next one: `python -m tools.release`.

Run it on the commit that is released, and commit what it writes. From then on, migrations that
were released never change, new ones are checked for locks that would stop the traffic, and the
tests in `tests/upgrade` run that release beside the current tree.
"""

from __future__ import annotations

import json
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Final

from servicekit.migrate import all_migrations

ROOT: Final = Path(__file__).parents[1]
RECORD: Final = ROOT / "tests" / "upgrade" / "released.json"
PROTOS: Final = ROOT / "protos" / "released.binpb"


def main() -> None:
    """Writes the record, and the descriptors that buf compares with."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    record = {
        "version": metadata.version("evergreen-backend"),
        "commit": commit,
        "migrations": {
            f"{m.schema}/{m.version:04d}_{m.name}": m.checksum for m in all_migrations()
        },
    }
    RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    subprocess.run(
        ["npx", "--no-install", "buf", "build", "--exclude-source-info", "-o", str(PROTOS)],
        cwd=ROOT,
        check=True,
    )


if __name__ == "__main__":
    main()
