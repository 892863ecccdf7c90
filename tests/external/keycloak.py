"""A real Keycloak: the Maven artifact, on this machine alone; it needs Java 17 and Maven.

`EVERGREEN_TEST_KEYCLOAK` names a directory with an unpacked distribution, which spares the download
of 160 MB.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.support.stack import until

VERSION: Final = "26.4.0"
SECRET: Final = "keycloak-secret"
CLIENT: Final = "evergreen"
_ARTIFACT: Final = f"org.keycloak:keycloak-quarkus-dist:{VERSION}:tar.gz"
_DOWNLOAD_SECONDS: Final = 900
_START_SECONDS: Final = 900.0
"""It builds itself when it starts for the first time."""


def password_of(name: str) -> str:
    return f"the password of {name}"


def distribution(directory: Path) -> Path:
    """Where Keycloak is unpacked; skips the test where it cannot be had."""
    if shutil.which("java") is None:
        pytest.skip("needs Java 17")
    made = directory / "keycloak"
    if known := os.environ.get("EVERGREEN_TEST_KEYCLOAK"):
        # It writes into its own directory.
        shutil.copytree(known, made, symlinks=True, ignore=shutil.ignore_patterns("data"))
        return made
    if shutil.which("mvn") is None:
        pytest.skip("needs Maven, or EVERGREEN_TEST_KEYCLOAK")
    copy = ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={_ARTIFACT}"]
    try:
        done = subprocess.run(
            [*copy, f"-DoutputDirectory={directory}"],
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=_DOWNLOAD_SECONDS,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("Keycloak could not be had in time")
    if done.returncode != 0:
        pytest.skip(f"Keycloak could not be had: {(done.stdout + done.stderr)[-300:]}")
    archive = directory / f"keycloak-quarkus-dist-{VERSION}.tar.gz"
    with tarfile.open(archive) as packed:
        packed.extractall(directory, filter="data")
    archive.unlink()
    (directory / f"keycloak-{VERSION}").rename(made)
    return made


def _realm(redirect: str, backchannel: str, signed_out: str) -> dict[str, Any]:
    people = {"olive": "eg-owners", "adam": "eg-admins", "mallory": "eg-owners", "nobody": ""}
    return {
        "realm": "school",
        "enabled": True,
        "sslRequired": "none",
        "groups": [{"name": "eg-admins"}, {"name": "eg-owners"}],
        "users": [
            {
                "username": name,
                "email": f"{name}@school.test",
                "emailVerified": name != "mallory",
                "enabled": True,
                "firstName": name.title(),
                "lastName": "Test",
                "groups": [f"/{group}"] if group else [],
                "credentials": [
                    {"type": "password", "value": password_of(name), "temporary": False}
                ],
            }
            for name, group in people.items()
        ],
        "clients": [
            {
                "clientId": CLIENT,
                "secret": SECRET,
                "enabled": True,
                "publicClient": False,
                "standardFlowEnabled": True,
                "directAccessGrantsEnabled": False,
                "redirectUris": [redirect],
                "attributes": {
                    "pkce.code.challenge.method": "S256",
                    "backchannel.logout.url": backchannel,
                    "backchannel.logout.session.required": "true",
                    "post.logout.redirect.uris": signed_out,
                },
                "protocolMappers": [
                    {
                        "name": "groups",
                        "protocol": "openid-connect",
                        "protocolMapper": "oidc-group-membership-mapper",
                        "config": {
                            "claim.name": "groups",
                            "full.path": "false",
                            "id.token.claim": "true",
                            "userinfo.token.claim": "true",
                            "access.token.claim": "false",
                        },
                    }
                ],
            }
        ],
    }


@contextmanager
def running(place: Path, port: int, ca_file: str, addresses: Sequence[str]) -> Iterator[str]:
    """Runs it with a realm; answers the issuer.

    Args:
        place: the distribution.
        ca_file: whom it trusts when it calls the installation.
        addresses: the installation's for the way back, for back-channel logout and for the way
            back from a logout.
    """
    imported = place / "data/import"
    imported.mkdir(parents=True, exist_ok=True)
    (imported / "school.json").write_text(json.dumps(_realm(*addresses)))
    issuer = f"http://127.0.0.1:{port}/realms/school"
    with (place / "keycloak.log").open("wb") as log:
        process = subprocess.Popen(
            [place / "bin/kc.sh", "start-dev", "--http-host=127.0.0.1", f"--http-port={port}",
             f"--truststore-paths={ca_file}", "--import-realm"],
            env={**os.environ, "JAVA_OPTS_KC_HEAP": "-Xms128m -Xmx512m"},
            stdout=log, stderr=log,
            # Its script starts Java as a child.
            start_new_session=True,
        )  # fmt: skip
    try:
        until(lambda: process.poll() is not None or _answers(issuer), _START_SECONDS, "no Keycloak")
        assert process.poll() is None, (place / "keycloak.log").read_text()[-3000:]
        yield issuer
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _answers(issuer: str) -> bool:
    try:
        answer = httpx.get(f"{issuer}/.well-known/openid-configuration", timeout=5)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200
