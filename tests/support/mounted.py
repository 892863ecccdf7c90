"""A Secret as a pod finds it: files behind a link, which an update replaces."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Mounted:
    """A directory that is written as kubelet writes volumes: one rename changes all files."""

    path: Path
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def put(self, files: Mapping[str, bytes]) -> None:
        """Replaces all files at once."""
        self.path.mkdir(exist_ok=True)
        link = self.path / "..data"
        before = link.resolve() if link.exists() else None
        data = self.path / f"..2026_11_29.{next(self._numbers)}"
        data.mkdir()
        for name, content in files.items():
            (data / name).write_bytes(content)
        coming = self.path / "..data_tmp"
        coming.symlink_to(data.name)
        coming.rename(link)
        for name in files:
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(f"..data/{name}")
        if before is not None:
            shutil.rmtree(before)
