"""FIPS mode with a real module: Debian 13 and its openssl-provider-fips, made by debootstrap.

`EVERGREEN_TEST_FIPS_ROOT` names a directory in which the installation is made and left for the next
run; without it, it is made anew. It takes two minutes, root, and Debian's packages.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import cryptography
import pytest

from servicekit.security import approved_stream, mode, nkey
from servicekit.security.passwords import hash_password, verify_password
from servicekit.security.sealing import Sealer
from servicekit.security.signing import Signer
from tests.external import debian
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("EVERGREEN_TEST_FIPS"), reason="run by `make test-fips`, as root"
    ),
    pytest.mark.timeout(900),
]

_PACKAGES: Final = (
    "openssl-provider-fips",
    "openssl",
    "python3",
    "python3-cryptography",
    "python3-cffi-backend",
    "python3-jwt",
    "ca-certificates",
)
_NEWER: Final = "python3-cryptography"
"""Debian 13's own refuses Ed25519 in FIPS mode by itself; the next release's is linked with the
same libcrypto."""
_APT: Final = ("-o", "APT::Sandbox::User=root", "-o", "Acquire::Check-Valid-Until=false")
_CONFIGURATION: Final = (ROOT / "deploy/docker/openssl-fips.cnf").read_text()
_MODULES: Final = "/usr/lib/x86_64-linux-gnu/ossl-modules"
_MASTER: Final = bytes(range(32))
_PASSWORD: Final = "correct horse"


class Debian:
    """An installation of Debian 13 in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in it, with its own /proc and nothing of our environment."""
        inside = 'mount -t proc proc "$0/proc" && exec chroot "$0" env -i "$@"'
        told = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **environment}
        words = [f"{name}={value}" for name, value in told.items()]
        return subprocess.run(
            ["unshare", "-m", "sh", "-c", inside, str(self.root), *words, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def must(self, *command: str) -> str:
        done = self.run(*command, DEBIAN_FRONTEND="noninteractive")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs the product's code in FIPS mode."""
        usual = {
            mode.FIPS: mode.REQUIRED,
            "OPENSSL_CONF": "/etc/evergreen/openssl.cnf",
            "PYTHONPATH": "/opt/newer:/evergreen/libs",
        }
        return self.run("python3", "-c", code, **{**usual, **environment})

    def result(self, code: str) -> Any:
        """What code prints as JSON."""
        done = self.python(code)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Debian]:
    debian.require({"debootstrap": "debootstrap"})
    kept = os.environ.get("EVERGREEN_TEST_FIPS_ROOT")
    root = Path(kept) if kept else tmp_path_factory.mktemp("debian") / "root"
    found = Debian(root)
    if not (root / "etc/evergreen/fipsmodule.cnf").exists():
        _install(found)
    shutil.rmtree(root / "evergreen", ignore_errors=True)
    shutil.copytree(
        ROOT / "libs", root / "evergreen/libs", ignore=shutil.ignore_patterns("__pycache__")
    )
    yield found
    if not kept:
        shutil.rmtree(root)


def _install(found: Debian) -> None:
    subprocess.run(
        [
            "debootstrap",
            "--variant=minbase",
            f"--include={','.join(_PACKAGES)}",
            "trixie",
            str(found.root),
            "http://deb.debian.org/debian",
        ],
        check=True,
        timeout=600,
    )
    newer = found.root / "etc/apt/sources.list.d/newer.list"
    newer.write_text("deb http://deb.debian.org/debian sid main\n")
    found.must("apt-get", *_APT, "update", "-q")
    get = " ".join(("apt-get", *_APT, "download", "-q", "-t", "sid", _NEWER))
    found.must("sh", "-c", f"cd /tmp && {get} && dpkg -x {_NEWER}_*.deb /opt/unpacked")
    (found.root / "opt/newer").symlink_to("unpacked/usr/lib/python3/dist-packages")
    # The wheel of this environment, with an OpenSSL inside.
    shutil.copytree(Path(cryptography.__file__).parent, found.root / "opt/wheel/cryptography")
    place = found.root / "etc/evergreen"
    place.mkdir()
    (place / "openssl.cnf").write_text(_CONFIGURATION)
    for name, change in (("empty", None), ("changed", 1)):
        directory = found.root / "opt" / name
        directory.mkdir()
        if change is not None:
            whole = bytearray((found.root / f"{_MODULES.lstrip('/')}/fips.so").read_bytes())
            whole[len(whole) // 2] ^= change
            (directory / "fips.so").write_bytes(whole)
    library = found.root / "opt/library/nacl"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("")
    # At the end: an installation that has it is whole.
    found.must(
        "openssl", "fipsinstall", "-out", "/etc/evergreen/fipsmodule.cnf",
        "-module", f"{_MODULES}/fips.so",
    )  # fmt: skip


def test_the_module_is_taken_and_named(installed: Debian) -> None:
    """By name, version and the digest of its file; there is one libcrypto in the process."""
    found = installed.result(
        "import json, pathlib\n"
        "from servicekit.security import fips\n"
        "maps = pathlib.Path('/proc/self/maps').read_text().splitlines()\n"
        "libraries = {line.split()[-1] for line in maps if 'libcrypto' in line}\n"
        "print(json.dumps(fips.described() | {'libraries': sorted(libraries)}))"
    )
    assert (found["fips"], found["suites"]) == ("required", "approved")
    file = installed.root / found["module"]["file"].lstrip("/")
    digest = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True)
    assert found["module"]["sha256"] == digest.stdout.split()[0]
    assert found["module"]["name"] == "OpenSSL FIPS Provider"
    assert found["module"]["version"].startswith("3.")
    assert len(found["libraries"]) == 1


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"OPENSSL_MODULES": "/opt/empty"}, "no active FIPS module"),
        ({"OPENSSL_CONF": "/nowhere"}, "no active FIPS module"),
        ({"OPENSSL_CONF": ""}, "no active FIPS module"),
        ({"OPENSSL_MODULES": "/opt/changed"}, "no active FIPS module"),
        ({"PYTHONPATH": "/opt/wheel:/evergreen/libs"}, "cryptography has an OpenSSL of its own"),
        ({"PYTHONPATH": "/evergreen/libs"}, "Ed25519 does not work"),
    ],
    ids=["no module", "no file", "no setting", "one bit", "the wheel", "refuses Ed25519"],
)
def test_anything_else_is_refused(
    installed: Debian, environment: dict[str, str], reason: str
) -> None:
    """In one line, with what to do, before any line of the product's own."""
    done = installed.python("import servicekit; print('runs')", **environment)
    assert done.returncode == mode.REFUSED
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("FIPS mode refused: ")
    assert reason in line
    assert "; " in line


def test_a_module_that_is_not_the_default_is_refused(installed: Debian) -> None:
    """It is there, and nothing would use it."""
    loose = _CONFIGURATION.replace("default_properties = fips=yes", "")
    (installed.root / "etc/evergreen/loose.cnf").write_text(loose)
    done = installed.python("import servicekit", OPENSSL_CONF="/etc/evergreen/loose.cnf")
    assert done.returncode == mode.REFUSED
    assert "is there and not the default" in done.stderr


def test_a_forbidden_import_ends_the_process(installed: Debian) -> None:
    """Before the product is loaded, and later on."""
    path = "/opt/newer:/evergreen/libs:/opt/library"
    for code, reason in (
        ("import nacl, servicekit", "nacl is imported"),
        ("import servicekit, nacl", "nacl has cryptography of its own"),
    ):
        done = installed.python(code, PYTHONPATH=path)
        assert done.returncode == mode.REFUSED, done.stderr
        assert reason in done.stderr


def test_the_product_s_cryptography_works_in_the_module(installed: Debian) -> None:
    """What FIPS mode makes, an installation without it reads."""
    secret = base64.b64encode(bytes(32)).decode()
    made = installed.result(
        "import base64, io, json\n"
        "from servicekit.security import approved_stream, digests, jwt, nkey, signing, totp\n"
        "from servicekit.security.passwords import hash_password, verify_password\n"
        "from servicekit.security.sealing import Sealer\n"
        "from datetime import datetime, UTC\n"
        f"sealed = Sealer({_MASTER!r}, 'identity-keys').seal(b'seed')\n"
        f"hashed = hash_password({_PASSWORD!r})\n"
        f"assert verify_password(hashed, {_PASSWORD!r})\n"
        "stream = io.BytesIO()\n"
        f"approved_stream.encrypt_io(io.BytesIO(b'a backup'), stream, {_PASSWORD!r})\n"
        "public, private = approved_stream.new_key_pair()\n"
        "kept = io.BytesIO()\n"
        "to = [approved_stream.read_recipient(public)]\n"
        "approved_stream.encrypt_io(io.BytesIO(b'a backup'), kept, '', to)\n"
        "tokens = {}\n"
        "for algorithm in ('ed25519', 'es256'):\n"
        "    signer = signing.Signer(signing.new_seed(algorithm), algorithm)\n"
        "    token = jwt.encode({'iss': 'us', 'aud': 'us'}, signer, 'kind')\n"
        "    assert signer.public.verifies(b'x', signer.sign(b'x'))\n"
        "    tokens[token] = base64.b64encode(signer.public.raw).decode()\n"
        "at = datetime(2026, 1, 1, tzinfo=UTC)\n"
        "print(json.dumps({'sealed': base64.b64encode(sealed).decode(), 'hash': hashed,\n"
        "    'stream': base64.b64encode(stream.getvalue()).decode(),\n"
        "    'kept': base64.b64encode(kept.getvalue()).decode(), 'private': private,\n"
        f"    'nkey': nkey.public_key({secret!r}), 'tokens': tokens,\n"
        "    'code': totp.code_at(bytes(20), at), 'sha1': digests.sha1_hex(b'abc')}))"
    )
    sealer = Sealer(_MASTER, "identity-keys")
    assert sealer.open(base64.b64decode(made["sealed"])) == b"seed"
    assert verify_password(made["hash"], _PASSWORD)
    key = approved_stream.read_private_key(made["private"].encode())
    for sealed, words, private in (
        (made["stream"], _PASSWORD, None),
        (made["kept"], "", key),
    ):
        opened = io.BytesIO()
        approved_stream.decrypt_io(io.BytesIO(base64.b64decode(sealed)), opened, words, private)
        assert opened.getvalue() == b"a backup"
    assert made["nkey"] == nkey.public_key(secret)
    assert len(made["tokens"]) == 2
    assert made["sha1"] == "a9993e364706816aba3e25717850c26c9cd0d89d"


def test_what_an_installation_without_it_made_is_read_as_far_as_it_may_be(
    installed: Debian, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Approved values are; argon2id, libsodium's seals and short salts are refused by name."""
    sealer = Sealer(_MASTER, "identity-keys")
    old_seal, old_hash = sealer.seal(b"seed"), hash_password(_PASSWORD)
    monkeypatch.setenv(mode.SUITES, mode.APPROVED)
    new_seal, new_hash = sealer.seal(b"seed"), hash_password(_PASSWORD)
    _, name, cost, _, derived = new_hash.split("$")
    short = f"${name}${cost}${base64.b64encode(b'8 bytes!').decode().rstrip('=')}${derived}"
    stream = io.BytesIO()
    approved_stream.encrypt_io(io.BytesIO(b"a backup"), stream, _PASSWORD)
    signer = Signer(bytes(32))
    found = installed.result(
        "import io, json\n"
        "from servicekit.security import approved_stream\n"
        "from servicekit.security.passwords import UnknownSuiteError, verify_password\n"
        "from servicekit.security.sealing import Sealer, SealingError\n"
        "from servicekit.security.signing import PublicKey\n"
        f"sealer = Sealer({_MASTER!r}, 'identity-keys')\n"
        "told = []\n"
        f"for work in (lambda: sealer.open({old_seal!r}),\n"
        f"             lambda: verify_password({old_hash!r}, {_PASSWORD!r})):\n"
        "    try:\n"
        "        work()\n"
        "    except (SealingError, UnknownSuiteError) as error:\n"
        "        told.append(str(error))\n"
        "opened = io.BytesIO()\n"
        f"approved_stream.decrypt_io(io.BytesIO({stream.getvalue()!r}), opened, {_PASSWORD!r})\n"
        f"print(json.dumps([told, sealer.open({new_seal!r}).decode(),\n"
        f"    verify_password({new_hash!r}, {_PASSWORD!r}),\n"
        f"    verify_password({short!r}, {_PASSWORD!r}), opened.getvalue().decode(),\n"
        f"    PublicKey({signer.public.raw!r}).verifies(b'policy', {signer.sign(b'policy')!r})]))"
    )
    (seal, hashed), *rest = found
    assert "evergreen fips migrate" in seal
    assert "needs a new password" in hashed
    assert rest == ["seed", True, False, "a backup", True]


def test_what_is_not_approved_is_refused_where_nobody_asked(installed: Debian) -> None:
    """The libraries' other algorithms do not work in the process."""
    done = installed.python(
        "import servicekit\n"
        "from cryptography.hazmat.primitives.asymmetric import x25519\n"
        "from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305\n"
        "from cryptography.hazmat.primitives.kdf.scrypt import Scrypt\n"
        "for work in (x25519.X25519PrivateKey.generate,\n"
        "             lambda: ChaCha20Poly1305(bytes(32)),\n"
        "             lambda: Scrypt(bytes(16), 32, 1024, 8, 1).derive(b'x')):\n"
        "    try:\n"
        "        work()\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__)\n"
        "    else:\n"
        "        raise AssertionError(work)\n"
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
