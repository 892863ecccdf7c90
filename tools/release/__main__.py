"""`python -m tools.release VERSION`: two commits, and what is published of the first one."""

from __future__ import annotations

import argparse
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tools.release import artifacts, changelog, places, record
from tools.release.tree import ROOT, ReleaseError, generate, git

_CHANGELOG: Final = ROOT / "CHANGELOG.md"
_NOTES: Final = "docs/upgrade.md"


def main() -> None:
    """Makes the release that the command line names."""
    told = _arguments()
    try:
        if not told.artifacts_only:
            make(told.version, told.next or places.next_version(told.version), told.date)
        if not told.no_artifacts:
            release = next((r for r in record.releases() if r.version == told.version), None)
            if release is None:
                raise ReleaseError(f"{record.RECORD} has no release {told.version}")
            out = told.output or ROOT / "dist" / told.version
            artifacts.build(release, out, told.build_option)
    except ReleaseError as error:
        sys.exit(f"tools.release: {error}")


def make(version: str, following: str, date: str) -> None:
    """Commits a release, and the beginning of the next one.

    Raises:
        ReleaseError: something is missing; nothing is changed then.
    """
    check(version, following)
    _say(f"{version}: version, changelog, documents of the API")
    places.write(version)
    text = _CHANGELOG.read_text(encoding="utf-8")
    _CHANGELOG.write_text(changelog.released(text, version, date), encoding="utf-8")
    generate()
    git("commit", "--quiet", "--all", "--message", f"Release {version}")
    _say(f"{version}: migrations, protos and events are recorded; {following} begins")
    record.record(version, date)
    places.write(following)
    text = _CHANGELOG.read_text(encoding="utf-8")
    _CHANGELOG.write_text(changelog.begun(text), encoding="utf-8")
    generate()
    git("add", record.EVENTS.format(version=version))
    git("commit", "--quiet", "--all", "--message", f"{following} begins; {version} is recorded")
    _say(f"A tag, if you want one: git tag -a v{version} {git('rev-parse', 'HEAD~')}")


def check(version: str, following: str) -> None:
    """Refuses what is no release yet.

    Raises:
        ReleaseError: with what to do first.
    """
    if not places.is_release(version):
        raise ReleaseError(f"{version} is no release's version")
    if places.parts(following) <= places.parts(version) or places.is_release(following):
        raise ReleaseError(f"{following} does not follow {version}: it is as 1.2.0.dev0")
    last = record.releases()[-1].version
    if places.parts(version) <= places.parts(last):
        raise ReleaseError(f"{version} does not follow {last}, the last release")
    places.current()
    if git("status", "--porcelain"):
        raise ReleaseError("commit what was changed first: a release is a commit")
    changelog.released(_CHANGELOG.read_text(encoding="utf-8"), version, "")
    notes = (ROOT / _NOTES).read_text(encoding="utf-8")
    if not re.search(rf"^##+ .*\b{re.escape(version)}\b", notes, re.M):
        raise ReleaseError(
            f"{_NOTES} has no section about {version}: write what an administrator has to know"
        )


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=main.__doc__)
    parser.add_argument("version", help="the release, as 1.2.3")
    parser.add_argument("--next", help="what begins then; 1.3.0.dev0 after 1.2.3")
    today = datetime.now(UTC).date().isoformat()
    parser.add_argument("--date", default=today, help="the day of the release; today's (UTC)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--no-artifacts", action="store_true", help="commit, and build nothing")
    what.add_argument(
        "--artifacts-only", action="store_true", help="build of a release that is recorded"
    )
    parser.add_argument("--output", type=Path, help="directory of what is built; dist/VERSION")
    parser.add_argument(
        "--build-option", action="append", default=[], help="passed on to docker build"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
