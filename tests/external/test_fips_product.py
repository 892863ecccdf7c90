"""The whole product in FIPS mode: Debian 13, its module, and two libraries built against its
OpenSSL (`fips_root`).

The first run takes an hour on two cores. With EVERGREEN_TEST_FIPS_ROOT and
EVERGREEN_TEST_FIPS_WHEELS the next ones do not build again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from bench.cpu import below, processes
from deploy.postgres import roles
from servicekit.security import mode
from tests.e2e.world import make_org, ok
from tests.external import fips_postgresql, fips_root, libcrypto_calls, tls_scan
from tests.external.fips_product import Product, is_python, libcryptos, mapped, running
from tests.support import debian
from tests.support.stack import PATIENCE, free_port, until

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("EVERGREEN_TEST_FIPS"), reason="run by `make test-fips`, as root"
    ),
    pytest.mark.timeout(7200),
]

_KEY: Final = "/tmp/backup-passphrase"
_NAMED: Final = {
    r"EC_(KEY|POINT)_(?!generate)": "public keys of P-256 are read, and looked at",
    r"(HMAC_\w+|HMAC)$": "`hmac` of Python: HMAC around the module's hash",
    r"PKCS5_PBKDF2_HMAC$|EVP_PBE_cleanup$": "hands on to the module's PBKDF2",
    r"(RAND_\w+|ECDSA_(SIG_\w+|size))$": "hands on to the module, or codes what it answered",
}
"""What docs/fips.md says of libcrypto's older functions: those that may be called, and why."""
_NAMED_AT_START: Final = {
    r"EC_KEY_generate_key$|BN_priv_rand_range_ex$": "new keys of P-256, by `cryptography`",
    r"DSA_free$": "of no key: libssl looks at which kinds there are",
}
_APPROVED: Final = {
    "EVP_CIPHER_fetch": {"AES-256-GCM", "ID-AES256-GCM", "AES-128-GCM", "ID-AES128-GCM"},
    "EVP_KDF_fetch": {"HKDF", "PBKDF2", "TLS13-KDF", "TLS1-PRF"},
    "EVP_KEYEXCH_fetch": {"ECDH"},
    "EVP_MAC_fetch": {"HMAC"},
    "EVP_MD_fetch": {
        *("SHA1", "SHA224", "SHA256", "SHA384", "SHA512", "SHA2-256", "SHA2-384", "SHA2-512"),
        *("SHA3-224", "SHA3-256", "SHA3-384", "SHA3-512", "SHAKE128", "SHAKE256"),
    },
    "EVP_RAND_fetch": {"CTR-DRBG", "HASH-DRBG", "HMAC-DRBG", "SEED-SRC"},
    "EVP_SIGNATURE_fetch": {"ECDSA", "ED25519", "RSA"},
}
"""Their names in capitals: OpenSSL takes either."""
_LIBCRYPTO: Final = "usr/lib/x86_64-linux-gnu/libcrypto.so.3"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fips_root.Debian]:
    debian.require(debootstrap="debootstrap", nm="binutils")
    with fips_root.directory(tmp_path_factory) as root:
        found = fips_root.Debian(root)
        fips_root.install(found)
        fips_root.build(found)
        yield found


@pytest.fixture(scope="module")
def product(
    installed: fips_root.Debian, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Product]:
    """It, in FIPS mode."""
    output = tmp_path_factory.mktemp("product") / "output"
    home = f"/var/lib/evergreen-{os.getpid()}"
    with running(installed, home, output, **fips_root.required()) as found:
        yield found


def test_the_libraries_of_the_wheels_are_refused_and_those_built_here_are_not(
    installed: fips_root.Debian,
) -> None:
    """Of `cryptography` at the start, of `grpcio` where TLS is asked for."""
    said = installed.must(
        fips_root.PYTHON, "-m", "cli.main", "fips", "check", **fips_root.required()
    )
    assert "EVERGREEN_FIPS is required" in said
    tls = "from servicekit.security.tls import require_grpc_tls; require_grpc_tls()"
    installed.must(fips_root.PYTHON, "-c", tls, **fips_root.required())


def test_each_process_has_one_libcrypto(product: Product) -> None:
    """And none of the libraries with cryptography of their own."""
    found = [process for process in product.processes() if is_python(process)]
    assert len(found) >= 7, "the launcher and six services"
    for process in found:
        assert libcryptos(process) == {"libcrypto.so.3"}, process.command
        files = mapped(process)
        assert "fips.so" in files, process.command
        foreign = {f for f in files if re.search("sodium|argon2|pyrage|_bcrypt|boringssl", f)}
        assert not foreign, process.command


def main_job(product: Product) -> None:
    """A day in small: an organisation, a user, a policy, a device that enrolls, pulls, reports."""
    with product.stack.first_owner() as root:
        org = make_org(product.stack, root)
        assert ok(org.owner.get("/api/policies"))
        org.publish()
        device = org.device()
        device.record("app.installed", {"message": "one"})
        device.send_events()
        device.report_state()
        org.publish()
        assert device.pull()
        ok(org.owner.get("/api/devices"))
        ok(org.owner.get("/api/audit"))


_SERVER: Final = """\
import asyncio, sys
from pathlib import Path
import grpc
from grpc_health.v1 import health, health_pb2_grpc
from deploy.certificates import Authority

async def serve():
    where = Path(sys.argv[1])
    authority = Authority.ensure_in(where / "ca")
    files = {}
    for name in ("policy", "identity", "stranger"):
        (where / name).mkdir()
        signs = Authority.ensure_in(where / "other") if name == "stranger" else authority
        files[name] = signs.ensure(where / name, name)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_secure_port("127.0.0.1:0", files["policy"].server_credentials())
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()

asyncio.run(serve())
"""
_CLIENT: Final = """\
import asyncio, sys
from pathlib import Path
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from servicekit.security.tls import Tls

async def call():
    port, where, name = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    tls = Tls(where / "policy/ca.crt", where / name / "tls.crt", where / name / "tls.key")
    options = [("grpc.ssl_target_name_override", "policy")]
    channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", tls.channel_credentials(), options)
    async with channel:
        health = health_pb2_grpc.HealthStub(channel)
        try:
            print((await health.Check(health_pb2.HealthCheckRequest(), timeout=20)).status)
        except grpc.aio.AioRpcError as error:
            print(error.code().name)

asyncio.run(call())
"""


def test_services_on_a_network_meet_by_tls_of_the_module(installed: fips_root.Debian) -> None:
    """gRPC between two processes, with the certificates of an installation: approved algorithms
    alone, one libcrypto in each, and nobody without a certificate of the CA."""
    where = "/tmp/tls"
    inside = installed.root / where.lstrip("/")
    shutil.rmtree(inside, ignore_errors=True)
    inside.mkdir()
    serving = subprocess.Popen(
        installed.command(fips_root.PYTHON, "-c", _SERVER, where, **fips_root.required()),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert serving.stdout is not None
        port = serving.stdout.readline().strip()
        (server,) = (p for p in below(serving.pid, processes()) if is_python(p))
        assert libcryptos(server) == {"libcrypto.so.3"}

        def says(name: str) -> str:
            words = (fips_root.PYTHON, "-c", _CLIENT, port, where, name)
            return installed.must(*words, **fips_root.required()).strip()

        assert says("identity") == "1"
        assert says("stranger") == "UNAVAILABLE"
        own = (f"{where}/identity/tls.crt", f"{where}/identity/tls.key")
        taken = tls_scan.agreed(installed, int(port), certificate=own)
        # The module has it: FIPS 140-3 allows what ML-KEM, which is approved, is combined with.
        assert tls_scan.wrongly(taken) == {"X25519 beside ML-KEM"}
    finally:
        serving.kill()
        serving.wait()


def test_the_gateway_and_nats_agree_to_approved_tls_alone(
    installed: fips_root.Debian, product: Product
) -> None:
    """By a scan, for what is in a static library cannot be asked."""
    gateway = tls_scan.agreed(installed, product.stack.port)
    assert not tls_scan.wrongly(gateway)
    nats = tls_scan.agreed(installed, product.nats_port, greeting="nats")
    # Go has no setting for the suites of TLS 1.3 but its own FIPS mode, which NATS refuses here.
    assert tls_scan.wrongly(nats) == {"ChaCha20"}


def test_what_envoy_nats_and_postgresql_say_of_themselves(
    installed: fips_root.Debian, product: Product
) -> None:
    """Those of the wheels have no validated module: an operator brings builds that do."""
    programs = {
        Path(f"/proc/{p.pid}/exe").readlink().name: p
        for p in product.processes()
        if not is_python(p) and Path(f"/proc/{p.pid}/exe").exists()
    }
    assert {"envoy", "nats-server", "postgres"} <= set(programs)
    (envoy,) = installed.root.glob("opt/evergreen/lib/python3*/site-packages/envoy/_bin/envoy")
    said = installed.must(f"/{envoy.relative_to(installed.root)}", "--version")
    assert said.strip().endswith("/BoringSSL")
    # Without OpenSSL it can neither offer TLS nor be put into FIPS mode.
    assert not libcryptos(programs["postgres"])


_ASK: Final = """\
import asyncio, json, sys
import asyncpg

async def ask():
    connection = await asyncpg.connect(sys.argv[1], password=sys.argv[2])
    found = {"cipher": await connection.fetchval(
        "SELECT cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()")}
    found["sha256"] = (await connection.fetchval("SELECT sha256('abc')")).hex()
    try:
        found["md5"] = await connection.fetchval("SELECT md5('abc')")
    except asyncpg.PostgresError as refused:
        found["md5"] = str(refused)
    print(json.dumps(found))

asyncio.run(ask())
"""


def test_a_postgresql_with_the_system_s_openssl_is_in_fips_mode_too(
    installed: fips_root.Debian,
) -> None:
    """Debian's: SCRAM and TLS of the module, no MD5, and our schema needs nothing else."""
    with fips_postgresql.running(installed) as found:
        assert libcryptos(found.server()) == {"libcrypto.so.3"}
        assert "fips.so" in mapped(found.server())
        asked = (found.dsn("admin", "postgres"), fips_postgresql.PASSWORD)
        words = (fips_root.PYTHON, "-c", _ASK, *asked)
        said = json.loads(installed.must(*words, **fips_root.required()))
        assert said["cipher"].startswith("TLS_AES_")
        assert said["sha256"].startswith("ba7816bf")
        assert said["md5"].startswith("could not compute MD5 hash")
        assert not tls_scan.wrongly(tls_scan.agreed(installed, found.port, greeting="postgres"))
        migrator = {
            "EVERGREEN_ADMIN_DATABASE_URL": found.dsn("admin", "postgres"),
            "EVERGREEN_ADMIN_DATABASE_PASSWORD_FILE": f"{found.secrets}/../password",
            "EVERGREEN_ROLE_SECRETS": found.secrets,
            "EVERGREEN_MIGRATE_DATABASE_URL": found.dsn(roles.MIGRATOR, roles.DATABASE),
            "EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE": f"{found.secrets}/postgres_migrator",
        }
        for command in (("database", "init"), ("migrate", "up")):
            words = (fips_root.PYTHON, "-m", "cli.main", *command)
            said = installed.must(*words, **fips_root.required(**migrator))
        assert "Migrations applied: " in said


def test_the_end_to_end_tests_pass(installed: fips_root.Debian) -> None:
    """All of them, callers and product in FIPS mode."""
    log = Path(os.environ.get("EVERGREEN_TEST_FIPS_LOG", installed.root / "var/log/e2e.log"))
    words = (
        "env", "-C", "/evergreen", fips_root.PYTHON, "-m", "pytest", "-n2", "--dist=loadfile",
        "-p", "no:cacheprovider", "-rfEs", "tests/e2e",
    )  # fmt: skip
    with log.open("wb") as file:
        done = subprocess.run(
            installed.command(
                *words, HOME="/root", EVERGREEN_TEST_SERVERS="1", **fips_root.required()
            ),
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    assert done.returncode == 0, log.read_text(errors="replace")[-8000:]


@dataclass(frozen=True, slots=True)
class Commands:
    """`evergreen` in Debian."""

    debian: fips_root.Debian
    told: dict[str, str]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs it."""
        return self.debian.run(fips_root.PYTHON, "-m", "cli.main", *words, **self.told)

    def must(self, *words: str) -> str:
        """Runs it; it has to succeed."""
        done = self.run(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def restore(self, file: str, home: str) -> subprocess.CompletedProcess[str]:
        """Restores a backup."""
        return self.run("backup", "restore", file, "--passphrase-file", _KEY, "--home", home)

    def back_up(self, home: str, file: str) -> None:
        """Makes one."""
        (self.debian.root / file.lstrip("/")).unlink(missing_ok=True)
        self.must("backup", "create", "-o", file, "--passphrase-file", _KEY, "--home", home)


def test_backups_go_into_fips_mode_and_back(installed: fips_root.Debian, tmp_path: Path) -> None:
    """With the commands of docs/fips.md: what `evergreen fips migrate` has made ready opens in both
    modes; a backup of age is refused, and so is one whose keys are sealed in the old way."""
    (installed.root / _KEY.lstrip("/")).write_text("correct horse battery\n")
    port = str(free_port())
    homes = [f"/var/lib/evergreen-{os.getpid()}-{name}" for name in ("off", "fips", "back", "none")]
    first, second, third, none = homes
    off = Commands(installed, {})
    approved = Commands(installed, {mode.SUITES: mode.APPROVED})
    fips = Commands(installed, fips_root.required())

    def started(home: str, told: dict[str, str]) -> AbstractContextManager[Product]:
        return running(installed, home, tmp_path / "output", EVERGREEN_PORT=port, **told)

    with started(first, off.told) as product, product.stack.first_owner() as root:
        email, password = product.stack.email, product.stack.password
        org = make_org(product.stack, root)
        policy = org.publish()
        device = org.device()
        off.back_up(first, "/tmp/old.backup")
        approved.back_up(first, "/tmp/mixed.backup")
    with started(first, approved.told) as product:
        product.stack.login()
        approved.must("fips", "migrate", "--home", first)
        for purpose in ("users", "devices", "tokens"):
            approved.must("keys", "rotate", purpose, "--home", first)
        approved.must("fips", "plan", "--home", first)
        approved.back_up(first, "/tmp/ready.backup")

    done = fips.restore("/tmp/old.backup", none)
    assert done.returncode == 1
    assert "was made with age, whose algorithms FIPS mode forbids" in done.stderr
    done = fips.restore("/tmp/mixed.backup", none)
    assert done.returncode == 1
    assert "evergreen fips migrate" in done.stderr

    for commands, file, home in (
        (fips, "/tmp/ready.backup", second),
        (off, "/tmp/fips.backup", third),
    ):
        done = commands.restore(file, home)
        assert done.returncode == 0, done.stdout + done.stderr
        with started(home, commands.told) as product:
            session = product.stack.login(email, password)
            with product.stack.client(session["token"]) as root:
                ok(root.post(f"/api/policies/{policy['id']}/publish", json={}))
            until(device.pull, PATIENCE, "the new policy does not arrive", 0.5)
            device.report_state()
            if home == second:
                commands.back_up(home, "/tmp/fips.backup")


def test_what_is_called_in_libcrypto_is_the_module_s_or_named(
    installed: fips_root.Debian, tmp_path: Path
) -> None:
    """At the start, and during a day in small: algorithms are fetched from the module, and of
    libcrypto's older functions, which compute by themselves, those of docs/fips.md alone."""
    library = installed.root / _LIBCRYPTO
    home = f"/var/lib/evergreen-{os.getpid()}-called"
    with ExitStack() as stack:
        with libcrypto_calls.counted(library) as start:
            product = stack.enter_context(
                running(installed, home, tmp_path / "output", **fips_root.required())
            )
        with libcrypto_calls.counted(library) as job:
            main_job(product)
    for calls, named in ((start, [*_NAMED, *_NAMED_AT_START]), (job, [*_NAMED])):
        own = {name for name in calls.functions if libcrypto_calls.COMPUTES.match(name)}
        assert not {name for name in own if not any(re.match(known, name) for known in named)}
    # A process keeps the cipher that it has fetched, and libssl fetches all that it could use.
    assert "AES-256-GCM" in start.algorithms["EVP_CIPHER_fetch"]
    assert job.functions["EVP_CipherUpdate"]
    assert job.functions["EVP_DigestSign"]
    assert {"EVP_MD_fetch", "EVP_SIGNATURE_fetch"} <= set(job.algorithms)
    for function, names in job.algorithms.items():
        assert {name.upper() for name in names} <= _APPROVED[function], (function, names)
