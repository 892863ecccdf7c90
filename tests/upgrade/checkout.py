"""A clone of this repository that a release runs in, by the commands of the documentation."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import site
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.stack import PATIENCE, Stack, free_port, until

_START_SECONDS = 180.0
_INSTALLED_LATER = 4_000_000_000
"""So `make` finds the packages newer than any file that asks for them: they are the tests' own."""


class Checkout:
    """A clone with a branch that `git pull` brings up to date."""

    def __init__(self, directory: Path, commit: str) -> None:
        self.root = directory
        self.port = free_port()
        self._events = free_port()
        subprocess.run(
            ["git", "clone", "--quiet", "--shared", str(ROOT), str(directory)], check=True
        )
        # What is checked out here may be no branch, as where tests run by themselves.
        self.git("fetch", "--quiet", "origin", "+HEAD:refs/remotes/origin/newest")
        self.git("checkout", "--quiet", "-B", "installed", commit)
        self.git("config", "branch.installed.remote", ".")
        self.git("config", "branch.installed.merge", "refs/remotes/origin/newest")
        self._make_environment()

    def git(self, *words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=self.root, capture_output=True, text=True, check=True
        ).stdout.strip()

    @property
    def version(self) -> str:
        """What is checked out."""
        project = tomllib.loads((self.root / "pyproject.toml").read_text())["project"]
        return str(project["version"])

    def evergreen(self, *words: str | Path) -> str:
        """A command of the release that is checked out."""
        done = subprocess.run(
            [str(self.root / ".venv/bin/evergreen"), *map(str, words)],
            cwd=self.root,
            env=self._environment({}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def running(self, commands: str, home: str = ".evergreen", port: int = 0) -> Iterator[Stack]:
        """Runs commands that end with a running product, and stops it as Ctrl-C does."""
        told = {"EVERGREEN_HOME": home, "EVERGREEN_PORT": str(port or self.port)}
        output = self.root.parent / "output"
        with output.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", commands],
                cwd=self.root,
                env=self._environment(told),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        facts = self.root / home / "bootstrap.json"

        def started() -> bool:
            assert process.poll() is None, output.read_text(errors="replace")
            return facts.exists() and b"Evergreen is ready" in output.read_bytes()

        try:
            until(started, _START_SECONDS, f"no start: {output.read_text(errors='replace')}")
            told_by_it = json.loads(facts.read_text())
            yield Stack(self.root / home, port or self.port, process, told_by_it)
        finally:
            if process.poll() is None:
                # A terminal sends it to all of the command's processes.
                os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise

    def _environment(self, told: dict[str, str]) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("EVERGREEN_", "PYTHON", "MAKE"))
        }
        return {**kept, "EVERGREEN_EVENTS_LISTEN": f"127.0.0.1:{self._events}", **told}

    def _make_environment(self) -> None:
        """An environment with the packages that tests run with, and this clone's own modules."""
        home = self.root / ".venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
        (packages,) = (Path(p) for p in site.getsitepackages() if Path(p).is_dir())
        own = home / "lib" / packages.parent.name / "site-packages"
        lines = [self.root / "libs", self.root, packages]
        (own / "here.pth").write_text("".join(f"{line}\n" for line in lines))
        program = home / "bin" / "evergreen"
        program.write_text(
            f"#!{home}/bin/python\nfrom cli.entry import main\n\nif __name__ == '__main__':\n"
            "    main()\n"
        )
        program.chmod(0o755)
        server = "nats-server"
        (home / "bin" / server).symlink_to(Path(sys.executable).with_name(server))
        installed = home / ".installed"
        installed.touch()
        os.utime(installed, (_INSTALLED_LATER, _INSTALLED_LATER))
