"""The images as archives, for a cluster that cannot pull.

    python -m tests.kubernetes.images DIRECTORY

They are built as tests/compose builds them: ours by the Dockerfile, the last release's by its own,
and stand-ins of the public ones.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.compose import images
from tests.compose.docker import Docker, daemon
from tests.upgrade.released import unpack

TREE: Final = "evergreen-backend:tree"
"""This tree's."""
RELEASED: Final = "evergreen-backend:released"
"""The last release's."""


def build(docker: Docker) -> list[str]:
    """Builds what the tests install; answers the names."""
    images.build_all(docker)
    docker("tag", images.ours(), TREE)
    with tempfile.TemporaryDirectory() as name:
        tree = unpack(Path(name))
        docker("build", "--quiet", "--network=host", "--tag", RELEASED, str(tree))
    services = images.compose_file()["services"]
    return [TREE, RELEASED, *(services[name]["image"] for name in ("gateway", "postgres", "nats"))]


def main(directory: Path) -> None:
    """Writes an archive for each image."""
    directory.mkdir(parents=True, exist_ok=True)
    with daemon() as docker:
        for name in build(docker):
            file = directory / f"{name.replace('/', '-').replace(':', '-')}.tar"
            docker("save", "--output", file, name)
            print(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
