"""What the launcher keeps on disk: secrets, ports, certificates."""

from __future__ import annotations

import datetime
import json
import os
import random
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from deploy.certificates import AuthorityError
from deploy.launcher import options, ports, tls
from deploy.launcher.errors import LauncherError
from deploy.launcher.home import Home, master_key, password
from deploy.private_files import write_private
from tests.support.paths import ROOT
from tests.support.stack import free_port

NOW = datetime.datetime.now(datetime.UTC)
NAMES = ["localhost", "127.0.0.1", "::1", "school.example"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path / "home")
    found.prepare()
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_secrets_are_made_once_and_only_for_their_owner(home: Home) -> None:
    """A secret is the same at the next start; nobody else can read it, whatever the umask."""
    before = os.umask(0)
    try:
        first = home.secret("postgres_policy", password)
    finally:
        os.umask(before)
    assert home.secret("postgres_policy", password) == first
    assert len(first) >= 40
    assert mode(home.secrets / "postgres_policy") == 0o600
    assert mode(home.secrets) == 0o700
    assert mode(home.root) == 0o700


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_secret_is_not_made_anew(home: Home, content: str) -> None:
    """What it opens or who it lets in knows the old one."""
    path = home.secret_file("master_key", master_key)
    path.write_text(content)
    with pytest.raises(LauncherError, match="master_key is empty"):
        home.secret("master_key", master_key)
    assert path.read_text() == content


def test_a_database_does_not_start_with_a_new_master_key(home: Home) -> None:
    """Its private keys would not open; the launcher says what is gone, and starts nothing."""
    home.postgres.mkdir()
    (home.postgres / "PG_VERSION").write_text("18\n")
    done = subprocess.run(
        [sys.executable, "-m", "cli.entry", "up"],
        env={
            "PATH": os.environ["PATH"],
            "EVERGREEN_HOME": str(home.root),
            "EVERGREEN_PORT": str(free_port()),
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "its master key is gone" in done.stdout + done.stderr
    assert not (home.secrets / "master_key").exists()


def test_a_failed_write_leaves_the_old_text(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader never sees half a file, also when the disk is full."""
    path = home.root / "bootstrap.json"
    write_private(path, "old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_private(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in home.root.iterdir() if p.name.startswith(".")] == []


def test_one_launcher_at_a_time(home: Home) -> None:
    """A second start on the same home is refused, naming the process; the lock dies with it."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom deploy.launcher.home import Home\n"
        f"with Home(Path({str(home.root)!r})).locked():\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout and holder.stdout.readline() == b"locked\n"
    with pytest.raises(LauncherError) as refused, home.locked():
        pass
    assert f"already runs on {home.root} (process {holder.pid})" in refused.value.message
    assert "EVERGREEN_HOME" in refused.value.advice
    holder.kill()
    holder.communicate()
    with home.locked():
        assert (home.root / "launcher.lock").read_text() == f"{os.getpid()}\n"


def test_a_home_too_deep_for_sockets_gets_a_short_directory(tmp_path: Path) -> None:
    """Socket paths stay below the kernel's limit; the directory is the same at the next start."""
    deep = Home(tmp_path / ("d" * 90))
    deep.prepare()
    run = deep.run_directory()
    assert not run.is_relative_to(deep.root)
    assert run == deep.run_directory()
    assert mode(run) == 0o700
    run.rmdir()


def test_every_socket_fits_however_long_the_homes_path_is(tmp_path: Path) -> None:
    """PostgreSQL's, too: with one length of path the first start waited for it for ever."""
    for length in range(1, 108 - len(str(tmp_path))):
        home = Home(tmp_path / ("d" * length))
        home.prepare()
        run = home.run_directory()
        for name in ("attestation.http.sock", "postgres/.s.PGSQL.5432"):
            assert len(str(run / name)) < 108
        if not run.is_relative_to(home.root):
            run.rmdir()


def test_a_short_directory_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who owns the directory of the sockets can take them over."""
    deep = Home(tmp_path / ("d" * 90))
    deep.prepare()
    run = deep.run_directory()
    run.rmdir()
    run.symlink_to(tmp_path)
    try:
        with pytest.raises((LauncherError, FileExistsError)):
            deep.run_directory()
    finally:
        run.unlink()


@contextmanager
def listening(port: int = 0, host: str = "127.0.0.1") -> Iterator[int]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        taken.bind((host, port))
        taken.listen(1)
        yield taken.getsockname()[1]


def test_ports_are_kept_and_picked_anew_when_taken() -> None:
    """The ports of the last start are used again, but for one that another program took."""
    first = ports.pick(("nats", "policy"), {}, random.Random(1))
    assert len(set(first.values())) == 2
    assert ports.pick(("nats", "policy"), first) == first
    with listening(first["nats"]):
        again = ports.pick(("nats", "policy"), first)
    assert again["policy"] == first["policy"]
    assert again["nats"] not in first.values()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_gateway_port_is_named_with_a_way_out(host: str) -> None:
    """The message names the port, who has it, and how to choose another one."""
    with listening(0, host) as port, pytest.raises(LauncherError) as refused:
        ports.gateway_addresses(port)
    assert f"Port {port} is taken" in refused.value.message
    assert f"process {os.getpid()}" in refused.value.message
    assert f"EVERGREEN_PORT={port + 1}" in refused.value.advice


def test_a_gateway_for_this_machine_alone_listens_on_loopback() -> None:
    """On each of its addresses; all of the machine otherwise."""
    with listening(0, "127.0.0.1") as taken:
        port = taken
    assert "127.0.0.1" in ports.gateway_addresses(port, loopback_only=True)
    assert set(ports.gateway_addresses(port, loopback_only=True)) <= {"127.0.0.1", "::1"}
    assert "0.0.0.0" in ports.gateway_addresses(port)
    assert options.read({"EVERGREEN_LOOPBACK_ONLY": "true"}).loopback_only
    with pytest.raises(LauncherError, match="EVERGREEN_LOOPBACK_ONLY"):
        options.read({"EVERGREEN_LOOPBACK_ONLY": "yes"})


def test_wrong_settings_are_all_named() -> None:
    """A person corrects the environment in one go."""
    with pytest.raises(LauncherError) as refused:
        options.read({"EVERGREEN_PORT": "99999", "EVERGREEN_LOG_FORMAT": "xml"})
    assert "EVERGREEN_PORT is '99999'" in refused.value.message
    assert "EVERGREEN_LOG_FORMAT is 'xml'" in refused.value.message


def test_settings_have_their_documented_defaults() -> None:
    """`make run` without any environment."""
    found = options.read({})
    assert found.home == Path(".evergreen").absolute()
    assert (found.port, found.admin_email) == (8443, "owner@localhost")
    assert not found.loopback_only
    assert (found.log_format, found.log_level) == ("console", "info")


def certificate(files: tls.Tls) -> x509.Certificate:
    return x509.load_pem_x509_certificate(files.server_certificate.read_bytes())


def test_the_certificate_is_made_once(home: Home) -> None:
    """CA and certificate stay from start to start; keys are only for their owner."""
    files = tls.ensure(home.tls, NAMES, NOW)
    before = {path.name: path.read_bytes() for path in home.tls.iterdir()}
    tls.ensure(home.tls, NAMES, NOW + datetime.timedelta(days=260))
    assert {path.name: path.read_bytes() for path in home.tls.iterdir()} == before
    assert mode(home.tls / "ca.key") == mode(files.server_key) == 0o600
    assert mode(files.ca_certificate) == 0o644
    covered = certificate(files).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert covered.value.get_values_for_type(x509.DNSName) == ["localhost", "school.example"]
    assert [str(ip) for ip in covered.value.get_values_for_type(x509.IPAddress)] == [
        "127.0.0.1",
        "::1",
    ]


@pytest.mark.parametrize("days", [270, 397, 800])
def test_the_certificate_is_renewed_by_the_same_ca(home: Home, days: int) -> None:
    """After two thirds of its life, or past its end; what trusts the CA goes on trusting."""
    files = tls.ensure(home.tls, NAMES, NOW)
    old, ca = certificate(files), files.ca_certificate.read_bytes()
    later = NOW + datetime.timedelta(days=days)
    new = certificate(tls.ensure(home.tls, NAMES, later))
    assert files.ca_certificate.read_bytes() == ca
    assert new.serial_number != old.serial_number
    assert new.not_valid_after_utc > later + datetime.timedelta(days=300)
    new.verify_directly_issued_by(x509.load_pem_x509_certificate(ca))


def test_a_new_host_name_or_a_lost_key_makes_a_new_certificate(home: Home) -> None:
    """The certificate always covers the names and fits its key."""
    files = tls.ensure(home.tls, NAMES, NOW)
    first = certificate(files)
    renamed = certificate(tls.ensure(home.tls, [*NAMES, "new.example"], NOW))
    assert renamed.serial_number != first.serial_number
    files.server_key.write_text("broken")
    repaired = certificate(tls.ensure(home.tls, NAMES, NOW))
    assert repaired.serial_number != renamed.serial_number


def test_a_name_that_is_dropped_is_not_certified_any_longer(home: Home) -> None:
    """The names of the public addresses, the former ones too, and of nothing else."""
    urls = ["https://new.example:8443", "https://old.example"]
    names = tls.host_names(urls)
    assert {"localhost", "new.example", "old.example"} <= set(names)
    both = certificate(tls.ensure(home.tls, names, NOW))
    assert certificate(tls.ensure(home.tls, names, NOW)).serial_number == both.serial_number
    alone = certificate(tls.ensure(home.tls, tls.host_names(urls[:1]), NOW))
    covered = alone.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "old.example" not in covered.get_values_for_type(x509.DNSName)


def test_a_given_certificate_is_taken_whole_or_not_at_all(home: Home, tmp_path: Path) -> None:
    """A renewal that is half written, or broken, leaves the one of before."""
    source, other = tmp_path / "given", Home(tmp_path / "other")
    source.mkdir()
    other.prepare()
    for place, part in ((home, ""), (other, ".new")):
        files = tls.ensure(place.tls, NAMES, NOW)
        shutil.copy(files.server_certificate, source / f"{tls.CHAIN}{part}")
        shutil.copy(files.server_key, source / f"{tls.KEY}{part}")
    taken, changed = tls.take(source, home.tls, NOW)
    assert changed
    assert not tls.take(source, home.tls, NOW)[1]
    assert mode(taken[1]) == 0o600
    before = [path.read_text() for path in taken]
    (source / f"{tls.CHAIN}.new").replace(source / tls.CHAIN)
    with pytest.raises(tls.GivenCertificateError, match="not the certificate's"):
        tls.take(source, home.tls, NOW)
    assert [path.read_text() for path in taken] == before
    (source / f"{tls.KEY}.new").replace(source / tls.KEY)
    assert tls.take(source, home.tls, NOW)[1]
    for change, told in (
        (lambda: (source / tls.KEY).write_text("no key"), "no private key"),
        ((source / tls.KEY).unlink, "No such file"),
        (lambda: (source / tls.CHAIN).write_text("nothing"), "No such file|no certificate"),
    ):
        change()
        with pytest.raises(tls.GivenCertificateError, match=told):
            tls.take(source, home.tls, NOW)
    with pytest.raises(tls.GivenCertificateError, match="ended"):
        shutil.copy(home.tls / "given.crt", source / tls.CHAIN)
        shutil.copy(home.tls / "given.key", source / tls.KEY)
        tls.take(source, home.tls, NOW + datetime.timedelta(days=900))


def test_a_ca_without_its_key_is_kept(home: Home) -> None:
    """Another one would not be trusted by any device; a certificate that is good goes on."""
    files = tls.ensure(home.tls, NAMES, NOW)
    ca, first = files.ca_certificate.read_bytes(), certificate(files)
    (home.tls / "ca.key").unlink()
    assert certificate(tls.ensure(home.tls, NAMES, NOW)).serial_number == first.serial_number
    with pytest.raises(AuthorityError, match=r"ca\.key"):
        tls.ensure(home.tls, NAMES, NOW + datetime.timedelta(days=380))
    assert files.ca_certificate.read_bytes() == ca
    assert certificate(files).serial_number == first.serial_number


def test_who_asks_whether_a_home_is_free_makes_nothing(home: Home) -> None:
    """Root may ask: what it made would be its own, and nobody else's to lock."""
    home.require_free()
    assert not (home.root / "launcher.lock").exists()
    with home.locked(), pytest.raises(LauncherError, match="already runs"):
        home.require_free()
    home.require_free()


def test_a_lock_is_no_link(home: Home, tmp_path: Path) -> None:
    """Whose home it is would choose the file that root empties."""
    others = tmp_path / "others"
    others.write_text("as it was")
    (home.root / "launcher.lock").symlink_to(others)
    with pytest.raises(OSError, match=r"launcher\.lock"), home.locked():
        pass
    assert others.read_text() == "as it was"


def test_who_runs_on_a_home_is_told_without_its_lock(home: Home) -> None:
    """A start at the same moment must not be refused; a number that was left is not a holder."""
    assert home.holder() is None
    with home.locked():
        assert home.holder() == os.getpid()
    (home.root / "launcher.lock").write_text(f"{os.getppid()}\n")
    assert home.holder() is None


def test_a_strict_client_accepts_the_certificate(home: Home) -> None:
    """Python's strictest verification, which follows RFC 5280 to the letter."""
    files = tls.ensure(home.tls, NAMES, NOW)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.server_certificate, files.server_key)
    client = ssl.create_default_context(cafile=str(files.ca_certificate))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            accepted, _ = listener.accept()
            with server.wrap_socket(accepted, server_side=True) as secured:
                secured.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        with (
            socket.create_connection(listener.getsockname()) as plain,
            client.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            assert secured.getpeercert()
            secured.send(b"x")
        thread.join()


def test_what_was_remembered_survives_a_broken_note(home: Home) -> None:
    """Facts are added to one another; an unreadable note is as good as none."""
    home.remember(ports={"nats": 1})
    home.remember(other="x")
    assert home.remembered() == {"ports": {"nats": 1}, "other": "x"}
    (home.root / "launcher.json").write_text("{")
    assert home.remembered() == {}
    home.remember(ports={"nats": 2})
    assert json.loads((home.root / "launcher.json").read_text()) == {"ports": {"nats": 2}}
