"""What `evergreen doctor` looks at, and what follows from something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.doctor import installation
from cli.doctor.database import Login
from cli.doctor.examine import examine
from cli.doctor.finding import findings
from cli.doctor.messaging import Server
from cli.doctor.public import Public
from cli.errors import CliError
from contract.contexts import CONTEXTS
from deploy.launcher.home import password
from tests.support.doctor import status
from tests.support.servers import Servers
from tests.support.stack import free_port


async def test_an_installation_in_containers_that_is_stopped_is_one_finding(tmp_path: Path) -> None:
    """Nothing answers: the rest follows from that, and is skipped."""
    place = installation.Installation(
        Public(f"https://localhost:{free_port()}"),
        databases=(Login(f"postgresql://x@/e?host={tmp_path}", None), Login("x", None, "policy")),
        nats=Server(f"nats://127.0.0.1:{free_port()}", monitor=f"http://127.0.0.1:{free_port()}"),
        disks=(tmp_path,),
    )
    checks = await examine(place)
    found = [f for f in findings(checks) if not f.code.startswith(("DISK_", "CLOCK_NOT"))]
    assert [finding.code for finding in found] == ["NOT_RUNNING"]
    assert "docker compose up" in found[0].fix
    why = {check.name: check.skipped for check in checks}
    assert why["database.role.policy"] == why["nats.login"] == why["public.server"] == "not running"


async def test_a_database_alone_that_is_away_is_itself_the_finding(
    servers: Servers, tmp_path: Path
) -> None:
    """While NATS answers, and without asking for every role."""
    secret = servers.home.secret("nats_audit", password)
    place = installation.Installation(
        Public(f"https://localhost:{free_port()}"),
        databases=(Login(f"postgresql://x@/e?host={tmp_path}", None), Login("x", None, "policy")),
        nats=Server(servers.nats_url, "audit", secret),
    )
    checks = await examine(place)
    codes = {finding.code for finding in findings(checks)}
    assert {"DATABASE_UNREACHABLE", "PUBLIC_URL_UNREACHABLE"} <= codes
    assert "NOT_RUNNING" not in codes
    assert status(checks)["running"] == "ok"
    why = {check.name: check.skipped for check in checks}
    assert why["database.role.policy"] == "needs database.login"


def test_settings_of_containers(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    given = {
        "PUBLIC_URL": "https://x.example",
        "TRUSTED_PROXIES": "1",
        "EVERGREEN_CONNECT": "gateway:8443",
        "EVERGREEN_MIGRATE_DATABASE_URL": "postgresql://m@db/evergreen",
        "EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE": str(secret),
        "EVERGREEN_NATS_URL": "nats://nats:4222",
        "EVERGREEN_OPS_TARGET": "x-{context}:9464",
    }
    found = installation.given(given, None)
    assert found.public == Public("https://x.example", None, 1)
    assert found.databases == (Login("postgresql://m@db/evergreen", "s3cret"),)
    assert found.nats == Server("nats://nats:4222")
    assert found.services["policy"] == "http://x-policy:9464"
    with pytest.raises(CliError, match="EVERGREEN_OPS_TARGET"):
        installation.given(given | {"EVERGREEN_OPS_TARGET": "policy:9464"}, None)
    bad = {"PUBLIC_URL": "https://x.example", "TRUSTED_PROXIES": "yes"}
    with pytest.raises(CliError, match="TRUSTED_PROXIES"):
        installation.given(bad, None)
    with pytest.raises(CliError, match="no installation"):
        installation.of_home(tmp_path)


def test_settings_of_the_operators_container(tmp_path: Path) -> None:
    """It has the passwords of all roles; `localhost` is another machine than the container."""
    secrets, own = tmp_path / "secrets", tmp_path / "tls" / "ca.crt"
    secrets.mkdir()
    own.parent.mkdir()
    own.touch()
    for context in CONTEXTS:
        (secrets / f"postgres_{context}").write_text(f"of {context}\n")
    given = {
        "PUBLIC_URL": "https://localhost:8443",
        "EVERGREEN_HOME": str(tmp_path),
        "EVERGREEN_CONNECT": "gateway:8443",
        "EVERGREEN_ROLE_SECRETS": str(secrets),
        "EVERGREEN_MIGRATE_DATABASE_URL": "postgresql://m@db:5432/evergreen?sslmode=verify-full",
        "EVERGREEN_NATS_URL": "tls://nats:4222",
        "EVERGREEN_NATS_CA_FILE": str(own),
    }
    found = installation.given(given, None)
    assert found.public == Public("https://localhost:8443", own, connect="gateway:8443")
    assert found.nats == Server("tls://nats:4222", ca_file=own)
    services = {login.context: (login.dsn, login.password) for login in found.databases}
    dsn = "postgresql://evergreen_policy@db:5432/evergreen?sslmode=verify-full"
    assert set(services) == {"", *CONTEXTS}
    assert services["policy"] == (dsn, "of policy")
    assert found.authorities == ()
    (tmp_path / "inside").mkdir()
    assert installation.given(given, None).authorities == (tmp_path / "tls", tmp_path / "inside")
    assert found.master_key == secrets / "master_key"
    # Behind a proxy the certificate that devices see is not of the own CA.
    assert installation.given(given | {"TRUSTED_PROXIES": "1"}, None).public.ca_file is None
