"""The image for FIPS mode and its Compose file, as far as they can be checked without Docker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from contract.contexts import CONTEXTS
from servicekit.http.ops import OpsApp
from servicekit.http.protocol import DeviceServer
from servicekit.security import mode
from tests.compose.docker import with_compose
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE, free_port

SCRIPT = ROOT / "deploy/docker/evergreen-fips.sh"
OPENSSL = """#!/bin/sh
echo "$OPENSSL_CONF" > "$SAID/conf"
{tests}
while [ $# -gt 0 ]; do [ "$1" != -out ] || echo passed > "$2"; shift; done
"""
PROGRAM = """#!/bin/sh
echo "$* ${OPENSSL_CONF:-} ${OPENSSL_MODULES:-}" >> "$SAID/calls"
if [ "$1 $2" = "fips check" ]; then echo "FIPS mode refused: no" >&2; exit "${CHECK:-0}"; fi
exit 3
"""


class Container:
    """What the script finds in a container; the programs note how they are called."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.modules = place / "modules"
        self.modules.mkdir()
        (self.modules / "fips.so").write_text("")
        self.write("openssl", OPENSSL.format(tests=""))
        self.program = self.write("evergreen", PROGRAM)

    def write(self, name: str, text: str) -> Path:
        file = self.place / name
        file.write_text(text)
        file.chmod(0o755)
        return file

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        told = {
            "PATH": f"{self.place}:/usr/bin:/bin",
            "SAID": str(self.place),
            "EVERGREEN_PROGRAM": str(self.program),
            "EVERGREEN_FIPS_MODULES": str(self.modules),
            "EVERGREEN_FIPS_WRITTEN": str(self.place / "fipsmodule.cnf"),
            mode.FIPS: mode.REQUIRED,
            **more,
        }
        return subprocess.Popen(
            ["sh", str(SCRIPT), *words], env=told, stderr=subprocess.PIPE, text=True
        )

    def run(self, *words: str, **more: str) -> tuple[int, str]:
        process = self.start(*words, **more)
        _, said = process.communicate(timeout=PATIENCE)
        return process.returncode, said

    @property
    def calls(self) -> list[str]:
        file = self.place / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def test_the_module_tests_itself_once_and_then_the_command_runs(container: Container) -> None:
    """In each container; not by the configuration that needs what the tests write."""
    for _ in range(2):
        assert container.run("serve", "policy") == (3, "")
    assert (container.place / "conf").read_text() == "/dev/null\n"
    assert (container.place / "fipsmodule.cnf").read_text() == "passed\n"
    called = f"serve policy /etc/evergreen/openssl.cnf {container.modules}"
    assert container.calls == [called, called]


def test_off_is_off(container: Container) -> None:
    """The configuration would go on forbidding what backups of age need."""
    assert container.run("version", **{mode.FIPS: mode.OFF}) == (3, "")
    assert container.calls == ["version  "]
    assert not (container.place / "fipsmodule.cnf").exists()


def test_a_module_that_fails_its_tests_is_refused(container: Container) -> None:
    """In one line, with the status that nobody starts again; nothing is left behind."""
    container.write("openssl", OPENSSL.format(tests="echo INSTALL FAILED >&2; exit 1"))
    code, said = container.run("serve", "policy")
    assert code == mode.REFUSED
    (line,) = said.splitlines()
    assert line.startswith(f"FIPS mode refused: {container.modules}/fips.so: INSTALL FAILED; ")
    assert container.calls == []
    assert not list(container.place.glob("fipsmodule*"))


def test_a_module_that_is_not_where_it_was_said_to_be_is_refused(container: Container) -> None:
    """Debian's is not taken in its place: of a wrong path, Docker makes an empty directory."""
    (container.modules / "fips.so").unlink()
    code, said = container.run("serve", "policy")
    assert code == mode.REFUSED
    assert said.startswith(f"FIPS mode refused: {container.modules}/fips.so is not there; mount ")
    assert len(said.splitlines()) == 1
    assert container.calls == []


@pytest.mark.parametrize("tests", ["", "echo INSTALL FAILED >&2; exit 1"], ids=["guard", "module"])
def test_a_refusal_is_final_where_docker_would_start_it_again(
    container: Container, tests: str
) -> None:
    """The service stays without doing anything, says its line once, and ends when it is told to."""
    container.write("openssl", OPENSSL.format(tests=tests))
    refused = {"EVERGREEN_WHEN_REFUSED": "stay", "CHECK": str(mode.REFUSED)}
    process = container.start("serve", "policy", **refused)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("FIPS mode refused: ")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    assert [call for call in container.calls if call.startswith("serve")] == []
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    # Others are run by somebody who sees how they end; the health check says what it is.
    if not tests:
        assert container.run("migrate", "up", **refused)[0] == 3
        assert container.run("health", **refused)[0] == 3


def test_what_is_not_refused_is_started(container: Container) -> None:
    """A check that fails otherwise is for the command itself to tell."""
    assert container.run("serve", "audit", EVERGREEN_WHEN_REFUSED="stay", CHECK="1")[0] == 3
    assert [call.split()[:2] for call in container.calls] == [["fips", "check"], ["serve", "audit"]]


@pytest.fixture
def files() -> tuple[Any, Any]:
    return (
        yaml.safe_load((ROOT / "docker-compose.yaml").read_text()),
        yaml.safe_load((ROOT / "docker-compose.fips.yaml").read_text()),
    )


def test_compose_says_it_to_each_container_of_ours(files: tuple[Any, Any]) -> None:
    """With one image, and the operator's module; and nothing is left out."""
    usual, fips = files
    ours = {
        name
        for name, service in usual["services"].items()
        if service["image"].startswith("evergreen-backend:")
    }
    said = fips["services"]
    assert said.keys() == ours | {"fips"}
    for name in ours | {"fips"}:
        environment = said[name]["environment"]
        assert environment[mode.FIPS] == "${FIPS:-required}"
        assert environment[mode.SUITES] == mode.APPROVED
        assert environment[mode.SHA256] == "${FIPS_SHA256:-}"
        assert environment["EVERGREEN_FIPS_MODULES"] == "${FIPS_MODULE:+/opt/fips}"
        assert environment["EVERGREEN_WHEN_REFUSED"] == "stay"
        assert said[name]["image"] == said["fips"]["image"]
        assert said[name]["volumes"] == ["${FIPS_MODULE:-no-fips-module}:/opt/fips:ro"]
    for name in CONTEXTS:
        # Each look of the module's guard takes a quarter of a second of the processor.
        assert "evergreen" not in " ".join(said[name]["healthcheck"]["test"])


def test_compose_starts_nothing_where_fips_mode_cannot_be_had(files: tuple[Any, Any]) -> None:
    """All that stays waits, by others or itself, for `init`, and that for the check."""
    usual, fips = files
    check = fips["services"]["fips"]
    assert check["command"] == ["fips", "check", "--tls"]
    assert "restart" not in check
    assert check["network_mode"] == "none"
    for name, value in (("read_only", True), ("cap_drop", ["ALL"]), ("user", "10001:10001")):
        assert check[name] == value
    completed = {"condition": "service_completed_successfully"}
    assert fips["services"]["init"]["depends_on"] == {"fips": completed}

    def waits(name: str) -> bool:
        needed = usual["services"][name].get("depends_on") or {}
        return name == "init" or any(map(waits, needed))

    alone = {"operator", "prometheus", "grafana"}
    assert {name for name in usual["services"] if not waits(name)} == alone


def test_compose_joins_both_files() -> None:
    """What a service has already stays; the second file adds to it."""
    program = with_compose()
    if program is None:
        pytest.skip("needs the command `docker compose`")
    files = ("-f", "docker-compose.yaml", "-f", "docker-compose.fips.yaml")
    done = subprocess.run(
        [program, "compose", *files, "--profile", "*", "config", "--format", "json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
    )
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    for name in CONTEXTS:
        service = services[name]
        assert service["image"].startswith("evergreen-backend-fips:")
        assert service["environment"]["EVERGREEN_OPS_LISTEN"] == "0.0.0.0:9464"
        assert {"/run/evergreen", "/opt/fips"} <= {one["target"] for one in service["volumes"]}
        assert service["healthcheck"]["interval"] == "5s"
        assert service["restart"] == "unless-stopped"
        assert service["tmpfs"] == ["/tmp"]
    assert services["init"]["build"]["dockerfile"] == "Dockerfile.fips"


async def test_a_service_s_health_is_looked_at_without_a_command_of_ours(
    files: tuple[Any, Any],
) -> None:
    """It is healthy when it is ready, and not while something is missing."""
    missing: list[str] = []

    async def lacks() -> list[str]:
        return missing

    port = free_port()
    server = DeviceServer(f"127.0.0.1:{port}", OpsApp(lacks))
    await server.start()
    (_, *check) = files[1]["services"]["policy"]["healthcheck"]["test"]
    words = [word.replace("9464", str(port)) for word in check]

    async def code() -> int:
        process = await asyncio.create_subprocess_exec(*words)
        return await asyncio.wait_for(process.wait(), PATIENCE)

    try:
        assert await code() == 0
        missing.append("database")
        assert await code() != 0
    finally:
        await server.stop()
    assert await code() != 0


def test_the_image_runs_the_script_in_the_place_of_the_command() -> None:
    """Health checks and `exec` look for `evergreen`, too."""
    text = (ROOT / "Dockerfile.fips").read_text()
    assert "COPY deploy/docker/evergreen-fips.sh /usr/local/bin/evergreen\n" in text
    assert os.access(SCRIPT, os.X_OK)
    assert "ENV PATH=/usr/local/bin:$PATH EVERGREEN_FIPS=required\n" in text
    # The entry point is the usual image's; to name it again would take its `CMD` away.
    assert text.endswith("USER 10001:10001\n")
    assert "ENTRYPOINT" not in text
