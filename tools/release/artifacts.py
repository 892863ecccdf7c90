"""What is published of a release, built of its commit in a clean copy of the tree.

Everything lies in one directory: the source, a wheel, the chart, the image as a file (where Docker
is), bills of materials, the provenance and `SHA256SUMS` of all. Nothing is pushed anywhere.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import yaml

from tools.release import places, provenance
from tools.release.record import Release
from tools.release.tree import ROOT, ReleaseError, origin, python, rfc3339, run

NAME: Final = "evergreen-backend"
CHART: Final = "evergreen"
SUMS: Final = "SHA256SUMS"
_SBOM: Final = "/usr/share/evergreen-sbom.cdx.json"
_BIN: Final = Path(sys.executable).parent
_OCI: Final = "org.opencontainers.image"


def build(release: Release, out: Path, options: Sequence[str] = ()) -> None:
    """Builds everything; the directory is emptied before.

    Args:
        options: further ones of `docker build`.

    Raises:
        ReleaseError: a part cannot be built.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    began = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="evergreen-release-") as name:
        tree = Path(name) / f"{NAME}-{release.version}"
        _source(release, tree, out)
        _wheel(tree, out)
        _chart(release, tree, out, began)
        _bill_of_checkout(release, tree, out)
        image = _image(release, tree, out, began, options)
        made = provenance.statement(release, tree, digests(out) | image, began)
    (out / provenance.FILE).write_text(made, encoding="utf-8")
    sums = "".join(f"{digest}  {file}\n" for file, digest in digests(out).items())
    (out / SUMS).write_text(sums, encoding="utf-8")
    sys.stdout.write(f"{out}:\n{sums}")


def digests(out: Path) -> dict[str, str]:
    """The SHA-256 of each file, by its name."""
    found = {}
    for file in sorted(out.iterdir()):
        if file.name != SUMS:
            with file.open("rb") as stream:
                found[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def _source(release: Release, tree: Path, out: Path) -> None:
    archive = subprocess.run(
        ["git", "archive", "--format=tar", f"--prefix={tree.name}/", release.commit],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if archive.returncode != 0:
        raise ReleaseError(f"this clone has no commit {release.commit}: fetch its whole history")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(tree.parent, filter="data")
    if (there := places.current(tree)) != release.version:
        raise ReleaseError(f"{release.commit} is {there}, not {release.version}")
    # Without the time of day in its head: the same commit makes the same file.
    (out / f"{tree.name}.tar.gz").write_bytes(gzip.compress(archive.stdout, mtime=0))


def _wheel(tree: Path, out: Path) -> None:
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", out, "."),
        cwd=tree,
    )
    shutil.rmtree(tree / "build", ignore_errors=True)


def _chart(release: Release, tree: Path, out: Path, began: datetime) -> None:
    file = tree / "helm" / CHART / "Chart.yaml"
    chart = yaml.safe_load(file.read_text(encoding="utf-8"))
    # `helm push` makes annotations of the OCI manifest of these.
    chart["annotations"] |= {
        f"{_OCI}.revision": release.commit,
        f"{_OCI}.created": rfc3339(began),
    }
    file.write_text(yaml.safe_dump(chart, sort_keys=False), encoding="utf-8")
    run(_BIN / "helm", "package", "--destination", out, file.parent)


def _bill_of_checkout(release: Release, tree: Path, out: Path) -> None:
    """What `make run` installs; an image has its own."""
    words = ("--pins", tree / "requirements.txt", "--version", release.version)
    bill = python("-m", "deploy.docker.sbom", *words, root=tree)
    (out / f"{tree.name}.cdx.json").write_text(bill, encoding="utf-8")


def _image(
    release: Release, tree: Path, out: Path, began: datetime, options: Sequence[str]
) -> dict[str, str]:
    """Builds the image; answers its digest by its name, and nothing where no Docker answers."""
    if shutil.which("docker") is None or _fails("docker", "info"):
        sys.stdout.write("No Docker answers here: the image is left out.\n")
        return {}
    name = f"{NAME}:{release.version}"
    source = origin()
    run(
        *("docker", "build", "--quiet", "--tag", name),
        *("--build-arg", f"COMMIT={release.commit}"),
        *("--build-arg", f"CREATED={rfc3339(began)}"),
        *(("--label", f"{_OCI}.source={source}") if source else ()),
        *options,
        tree,
    )
    tar = out / f"{tree.name}-image.tar"
    run("docker", "save", "--output", tar, name)
    run("gzip", "--no-name", "--fast", tar)
    bill = run("docker", "run", "--rm", "--entrypoint", "cat", name, _SBOM)
    (out / f"{tree.name}-image.cdx.json").write_text(bill, encoding="utf-8")
    digest = run("docker", "image", "inspect", "--format={{.Id}}", name).strip()
    return {name: digest.removeprefix("sha256:")}


def _fails(*words: str) -> bool:
    try:
        run(*words)
    except ReleaseError:
        return True
    return False
